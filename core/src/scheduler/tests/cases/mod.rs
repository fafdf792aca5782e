//! Cases: what the machine says, word for word, when this happens. `>` is what is done, the lines below are the answer.

mod forget;
mod near;
mod open;
mod scaling;

use super::world::check;

#[test]
fn two_workers_one_dies_mid_task() {
    check(
        "two workers, one dies mid-task",
        r#"
        > submit a:2 ; b:1 after=a
        > join w1
        w1 <- a[0]#1
        > join w2
        w2 <- a[1]#1
        > start a[0]
        a[0]#1 starts on w1
        > start a[1]
        a[1]#1 starts on w2
        > die w1
        w1 is Lost
        w1 close: the worker is dead: killed by signal 9
        a[0]#1 ends LostWorker, again
        > ok a[1]
        a[1]#1 committed
        w2 <- a[0]#2
        > start a[0]
        a[0]#2 starts on w2
        > ok a[0]
        a[0]#2 committed
        w2 <- b[0]#1
        > ok b[0]
        b[0]#1 committed
        run r Succeeded
        > attempts a[0]
        2, committed Some(2)
        "#,
    );
}

#[test]
fn what_had_not_started_when_its_worker_died_is_not_charged() {
    check(
        "what had not started when its worker died is not charged",
        r#"
        > submit a:1 lost=0
        > join w1
        w1 <- a[0]#1
        > die w1
        w1 is Lost
        w1 close: the worker is dead: killed by signal 9
        a[0]#1 ends Preempted, again
        > explain a[0]
        ready: attempt 1 was taken back before it ended, uncharged; no worker and no pool serves component 'c'
        > join w2
        w2 <- a[0]#2
        > start a[0]
        a[0]#2 starts on w2
        > ok a[0]
        a[0]#2 committed
        run r Succeeded
        "#,
    );
}

#[test]
fn a_task_whose_worker_dies_executes_again_until_its_budget_is_used() {
    check(
        "a task whose worker dies executes again until its budget is used",
        r#"
        > submit a:2 lost=0 ; b:2 each=a ; c:1 after=b ; d:1 after=b always
        > join w1 cpus=2
        w1 <- a[0]#1
        w1 <- a[1]#1
        > start a[0]
        a[0]#1 starts on w1
        > die w1
        w1 is Lost
        w1 close: the worker is dead: killed by signal 9
        a[1]#1 ends Preempted, again
        a[0]#1 ends LostWorker, for good
        a[0] failed after 1: LostWorker
        b[0] skipped because of a[0]
        c[0] skipped because of a[0]
        > explain a[0]
        failed: it failed after 1 attempt: attempt 1 ended with lost_worker (worker 'w1' of pool 'p': the worker is dead: killed by signal 9); 0 of 0 retries for lost workers used
        > explain b[0]
        skipped: it never ran because of a[0], which failed with lost_worker
        > explain c[0]
        skipped: it never ran because of a[0], which failed with lost_worker
        > join w2
        w2 <- a[1]#2
        > ok a[1]
        a[1]#2 committed
        w2 <- b[1]#1
        > explain d[0]
        waiting: it waits for all of 'b': 1 of 2 are over, 1 assigned
        > ok b[1]
        b[1]#1 committed
        w2 <- d[0]#1
        > ok d[0]
        d[0]#1 committed
        run r Failed
        > explain b[0]
        skipped: it never ran because of a[0], which failed with lost_worker
        "#,
    );
}

#[test]
fn a_suspect_runs_alone_before_it_is_failed_as_poison() {
    check(
        "a suspect runs alone before it is failed as poison",
        r#"
        > submit a:1 ; z:3 prio=-1
        > join w1 cpus=2
        w1 <- a[0]#1
        w1 <- z[0]#1
        > start a[0]
        a[0]#1 starts on w1
        > die w1
        w1 is Lost
        w1 close: the worker is dead: killed by signal 9
        z[0]#1 ends Preempted, again
        a[0]#1 ends LostWorker, again
        > join w2 cpus=2
        w2 <- a[0]#2
        w2 <- z[0]#2
        > start a[0]
        a[0]#2 starts on w2
        > die w2
        w2 is Lost
        w2 close: the worker is dead: killed by signal 9
        z[0]#2 ends Preempted, again
        a[0]#2 ends LostWorker, again
        > join w3 cpus=2
        w3 <- a[0]#3
        > explain z[0]
        ready: attempt 2 was taken back before it ended, uncharged; every worker that serves component 'c' (of 1) is kept for a task that runs alone
        > start a[0]
        a[0]#3 starts on w3
        > explain a[0]
        running: attempt 3 runs on worker 'w3' since 0 us
        > die w3
        w3 is Lost
        w3 close: the worker is dead: killed by signal 9
        a[0]#3 ends LostWorker, for good
        a[0] failed after 3: Poison
        > explain a[0]
        failed: it failed after 3 attempts: attempt 3 ended with poison (worker 'w3' of pool 'p': the worker is dead: killed by signal 9); 3 workers died executing it, the last one executing nothing else
        > join w4 cpus=3
        w4 <- z[0]#3
        w4 <- z[1]#1
        w4 <- z[2]#1
        "#,
    );
}

#[test]
fn a_suspect_waits_for_a_worker_that_is_kept_free_for_it_and_others_wait_for_the_suspect() {
    check(
        "a suspect waits for a worker that is kept free for it, and others wait for the suspect",
        r#"
        > submit a:1 ; z:2 prio=-1
        > join w1 cpus=1
        w1 <- a[0]#1
        > start a[0]
        a[0]#1 starts on w1
        > die w1
        w1 is Lost
        w1 close: the worker is dead: killed by signal 9
        a[0]#1 ends LostWorker, again
        > join w2 cpus=1
        w2 <- a[0]#2
        > start a[0]
        a[0]#2 starts on w2
        > join w3 cpus=2
        w3 <- z[0]#1
        w3 <- z[1]#1
        > start z[0]
        z[0]#1 starts on w3
        > start z[1]
        z[1]#1 starts on w3
        > die w2
        w2 is Lost
        w2 close: the worker is dead: killed by signal 9
        a[0]#2 ends LostWorker, again
        > explain a[0]
        ready: attempt 2 ended with lost_worker (worker 'w2' of pool 'p': the worker is dead: killed by signal 9); 2 or more workers died executing it, so it runs alone next: 'w3' is kept free for it and still has 2 attempts
        > ok z[0]
        z[0]#1 committed
        > used w3
        1000 milli-cpus, 0 MiB, 1 execute, 0 queue
        > ok z[1]
        z[1]#1 committed
        w3 <- a[0]#3
        > start a[0]
        a[0]#3 starts on w3
        > ok a[0]
        a[0]#3 committed
        run r Succeeded
        "#,
    );
}

#[test]
fn a_reset_takes_back_what_had_not_started_and_leaves_what_executes() {
    check(
        "a reset takes back what had not started and leaves what executes",
        r#"
        > submit a:3
        > join w1 cpus=2
        w1 <- a[0]#1
        w1 <- a[1]#1
        > start a[0]
        a[0]#1 starts on w1
        > reset w1 data
        w1 is Suspect
        a[1]#1 ends Preempted, again
        w1 cancel a[1]#1
        > explain a[0]
        running: attempt 1 runs on worker 'w1' since 0 us; the worker is suspect, a connection was lost 0 us ago
        > explain a[1]
        ready: attempt 1 was taken back before it ended, uncharged; no worker that serves component 'c' and is large enough takes work: of 1, 1 suspect (silent, or a connection was lost), 0 draining, 0 joining
        > ok a[0]
        a[0]#1 committed
        > attach w1 data
        w1 is Active
        w1 <- a[1]#2
        w1 <- a[2]#1
        > start a[1]#1
        w1 cancel a[1]#1
        > ok a[1]#1
        superseded
        > start a[1]
        a[1]#2 starts on w1
        > ok a[1]
        a[1]#2 committed
        > start a[2]
        a[2]#1 starts on w1
        > ok a[2]
        a[2]#1 committed
        run r Succeeded
        "#,
    );
}

#[test]
fn a_session_that_does_not_come_back_within_10_s_of_the_reset_is_lost() {
    check(
        "a session that does not come back within 10 s of the reset is lost",
        r#"
        > submit a:1
        > join w1
        w1 <- a[0]#1
        > start a[0]
        a[0]#1 starts on w1
        > reset w1 control
        w1 is Suspect
        > wait 5
        > frame w1
        > wait 4.9
        > wait 0.1
        w1 is Lost
        w1 close: a connection was reset and the session did not come back in time
        a[0]#1 ends LostWorker, again
        > ok a[0]
        superseded
        > attach w1 control
        "#,
    );
}

#[test]
fn silence_makes_suspect_at_15_s_a_frame_lifts_it_30_s_lose_the_worker() {
    check(
        "silence makes suspect at 15 s, a frame lifts it, 30 s lose the worker",
        r#"
        > submit a:2
        > join w1
        w1 <- a[0]#1
        > start a[0]
        a[0]#1 starts on w1
        > wait 14.9
        > wait 0.1
        w1 is Suspect
        > explain a[0]
        running: attempt 1 runs on worker 'w1' since 15.0 s; the worker is suspect, silent for 15.0 s
        > explain a[1]
        ready: no worker that serves component 'c' and is large enough takes work: of 1, 1 suspect (silent, or a connection was lost), 0 draining, 0 joining
        > frame w1
        w1 is Active
        > wait 15
        w1 is Suspect
        > wait 14.9
        > wait 0.1
        w1 is Lost
        w1 close: no frame came for too long
        a[0]#1 ends LostWorker, again
        > explain a[0]
        ready: attempt 1 ended with lost_worker (worker 'w1' of pool 'p': no frame came for too long); no worker and no pool serves component 'c'
        "#,
    );
}

#[test]
fn a_frame_does_not_lift_what_a_reset_has_made_suspect() {
    check(
        "a frame does not lift what a reset has made suspect",
        r#"
        > join w1
        > reset w1 data
        w1 is Suspect
        > frame w1
        > attach w1 data
        w1 is Active
        "#,
    );
}

#[test]
fn the_same_name_registers_again_and_the_old_session_is_lost_at_once() {
    check(
        "the same name registers again and the old session is lost at once",
        r#"
        > submit a:1
        > join w1
        w1 <- a[0]#1
        > start a[0]
        a[0]#1 starts on w1
        > join w1
        w1 is Lost
        w1 close: the worker registered again under a new session
        a[0]#1 ends LostWorker, again
        w1 <- a[0]#2
        > start a[0]
        a[0]#2 starts on w1
        > ok a[0]#1
        superseded
        > ok a[0]
        a[0]#2 committed
        run r Succeeded
        "#,
    );
}

#[test]
fn a_worker_that_never_had_its_data_connection_gets_no_work() {
    check(
        "a worker that never had its data connection gets no work",
        r#"
        > submit a:1
        > join w1 half
        > explain a[0]
        ready: no worker that serves component 'c' and is large enough takes work: of 1, 0 suspect (silent, or a connection was lost), 0 draining, 1 joining
        > attach w1 data
        w1 is Active
        w1 <- a[0]#1
        "#,
    );
}

#[test]
fn app_errors_back_off_and_are_tried_as_often_as_asked() {
    check(
        "app errors back off and are tried as often as asked",
        r#"
        > submit a:1 retries=2 backoff=1
        > join w1
        w1 <- a[0]#1
        > start a[0]
        a[0]#1 starts on w1
        > fail a[0] error exit=3
        a[0]#1 ends AppError, again in 1 s
        > explain a[0]
        backoff: attempt 1 ended with app_error (exit code 3); attempt 2 follows in 1.0 s
        > wait 0.9
        > wait 0.1
        w1 <- a[0]#2
        > start a[0]
        a[0]#2 starts on w1
        > fail a[0] timeout
        a[0]#2 ends Timeout, again in 2 s
        > wait 2
        w1 <- a[0]#3
        > start a[0]
        a[0]#3 starts on w1
        > fail a[0] missing
        a[0]#3 ends MissingOutput, for good
        a[0] failed after 3: MissingOutput
        run r Failed
        > explain a[0]
        failed: it failed after 3 attempts: attempt 3 ended with missing_output; 2 of 2 retries used
        "#,
    );
}

#[test]
fn only_what_is_worth_a_retry_is_tried_again() {
    check(
        "only what is worth a retry is tried again",
        r#"
        > submit a:4 retries=5 on=exit:75
        > join w1 cpus=4
        w1 <- a[0]#1
        w1 <- a[1]#1
        w1 <- a[2]#1
        w1 <- a[3]#1
        > fail a[0] error exit=75
        a[0]#1 ends AppError, again
        w1 <- a[0]#2
        > fail a[1] error exit=1
        a[1]#1 ends AppError, for good
        a[1] failed after 1: AppError
        > fail a[2] error signalled
        a[2]#1 ends AppError, for good
        a[2] failed after 1: AppError
        > fail a[3] oom
        a[3]#1 ends Oom, for good
        a[3] failed after 1: Oom
        > explain a[1]
        failed: it failed after 1 attempt: attempt 1 ended with app_error (exit code 1); 0 of 5 retries used
        "#,
    );
}

#[test]
fn memory_grows_after_oom_up_to_the_largest_worker_and_stays_grown() {
    check(
        "memory grows after oom, up to the largest worker, and stays grown",
        r#"
        > submit a:1 mem=1024 oom=1500:8192
        > join w1 mem=2048
        w1 <- a[0]#1 with 1024 MiB
        > start a[0]
        a[0]#1 starts on w1
        > fail a[0] oom
        a[0]#1 ends Oom, again
        w1 <- a[0]#2 with 1536 MiB
        > fail a[0] preempted
        a[0]#2 ends Preempted, again
        w1 is Draining
        w1 drain
        > left w1
        w1 is Gone
        > join w2 mem=2048
        w2 <- a[0]#3 with 1536 MiB
        > start a[0]
        a[0]#3 starts on w2
        > fail a[0] oom peak=1500
        a[0]#3 ends Oom, again
        w2 <- a[0]#4 with 2048 MiB
        > start a[0]
        a[0]#4 starts on w2
        > fail a[0] oom peak=2000
        a[0]#4 ends Oom, for good
        a[0] failed after 4: Oom
        run r Failed
        > explain a[0]
        failed: it failed after 4 attempts: attempt 4 ended with oom; 2 of 2 retries for oom used
        "#,
    );
}

#[test]
fn an_oom_that_no_memory_can_cure_is_final() {
    check(
        "an oom that no memory can cure is final",
        r#"
        > submit a:1 mem=1024 oom=1500:1024
        > join w1 mem=2048
        w1 <- a[0]#1 with 1024 MiB
        > start a[0]
        a[0]#1 starts on w1
        > fail a[0] oom
        a[0]#1 ends Oom, for good
        a[0] failed after 1: Oom
        run r Failed
        > explain a[0]
        failed: it failed after 1 attempt: attempt 1 ended with oom; 0 of 2 retries for oom used
        "#,
    );
}

#[test]
fn a_timeout_grows_by_cause() {
    check(
        "a timeout grows by cause",
        r#"
        > submit a:1 timeout=10 grow=2000 retries=2
        > join w1
        w1 <- a[0]#1 for 10 s
        > start a[0]
        a[0]#1 starts on w1
        > fail a[0] timeout
        a[0]#1 ends Timeout, again
        w1 <- a[0]#2 for 20 s
        > fail a[0] error
        a[0]#2 ends AppError, again
        w1 <- a[0]#3 for 20 s
        > fail a[0] timeout
        a[0]#3 ends Timeout, for good
        a[0] failed after 3: Timeout
        run r Failed
        "#,
    );
}

#[test]
fn what_cannot_be_started_is_tried_elsewhere_later_within_its_own_budget() {
    check(
        "what cannot be started is tried elsewhere later, within its own budget",
        r#"
        > submit a:1
        > join w1
        w1 <- a[0]#1
        > fail a[0] infra
        a[0]#1 ends InfraStart, again in 1 s
        > explain a[0]
        backoff: attempt 1 ended with infra_start; attempt 2 follows in 1.0 s
        > wait 1
        w1 <- a[0]#2
        "#,
    );
}

#[test]
fn what_a_worker_cancelled_without_being_told_is_not_the_task_s_fault() {
    check(
        "what a worker cancelled without being told is not the task's fault",
        r#"
        > submit a:1 backoff=1
        > join w1
        w1 <- a[0]#1
        > start a[0]
        a[0]#1 starts on w1
        > fail a[0] cancelled
        a[0]#1 ends InfraStart, again in 1 s
        "#,
    );
}

#[test]
fn short_tasks_are_sent_ahead_of_room_and_an_idle_worker_takes_half_of_them() {
    check(
        "short tasks are sent ahead of room, and an idle worker takes half of them",
        r#"
        > submit a:6
        > join w1 cpus=2
        w1 <- a[0]#1
        w1 <- a[1]#1
        > start a[0]
        a[0]#1 starts on w1
        > ok a[0] wall=1
        a[0]#1 committed
        w1 <- a[2]#1
        w1 <- a[3]#1
        w1 <- a[4]#1
        > explain a[3]
        assigned: attempt 1 was sent ahead of room to worker 'w1' 0 us ago and is queued there: 2 before it, 0 executing
        > used w1
        2000 milli-cpus, 0 MiB, 0 execute, 4 queue
        > ok a[1] wall=1
        a[1]#1 committed
        w1 <- a[5]#1
        > join w2
        w1 retract a[5]#1
        > explain a[5]
        retracting: attempt 1 was sent to worker 'w1' 0 us ago and is being taken back: the worker has yet to say whether it had started
        > back w1 a[5]
        a[5]#1 ends Preempted, again
        w2 <- a[5]#2
        > start a[5]
        a[5]#2 starts on w2
        > keep w1 a[4]
        "#,
    );
}

#[test]
fn a_row_asked_back_that_starts_anyway_stays_where_it_is() {
    check(
        "a row asked back that starts anyway stays where it is",
        r#"
        > submit a:3
        > join w1
        w1 <- a[0]#1
        > start a[0]
        a[0]#1 starts on w1
        > ok a[0] wall=1
        a[0]#1 committed
        w1 <- a[1]#1
        w1 <- a[2]#1
        > join w2
        w1 retract a[2]#1
        > start a[1]
        a[1]#1 starts on w1
        > ok a[1] wall=1
        a[1]#1 committed
        > start a[2]
        a[2]#1 starts on w1
        > keep w1 a[2]
        > ok a[2]
        a[2]#1 committed
        run r Succeeded
        "#,
    );
}

#[test]
fn a_worker_that_starts_in_the_room_of_an_end_it_has_not_reported_is_believed() {
    check(
        "a worker that starts in the room of an end it has not reported is believed",
        r#"
        > submit a:3
        > join w1
        w1 <- a[0]#1
        > start a[0]
        a[0]#1 starts on w1
        > ok a[0] wall=1
        a[0]#1 committed
        w1 <- a[1]#1
        w1 <- a[2]#1
        > start a[1]
        a[1]#1 starts on w1
        > start a[2]
        a[2]#1 starts on w1
        > used w1
        1000 milli-cpus, 0 MiB, 2 execute, 0 queue
        > ok a[1]
        a[1]#1 committed
        > used w1
        1000 milli-cpus, 0 MiB, 1 execute, 0 queue
        > ok a[2]
        a[2]#1 committed
        run r Succeeded
        "#,
    );
}

#[test]
fn what_is_sent_ahead_and_starts_early_takes_the_place_of_what_was_admitted_later() {
    check(
        "what is sent ahead and starts early takes the place of what was admitted later",
        r#"
        > submit big:2 cpus=2 prio=1 ; small:4 cpus=1
        > join w1 cpus=3
        w1 <- big[0]#1
        w1 <- small[0]#1
        > start big[0]
        big[0]#1 starts on w1
        > ok big[0] wall=1
        big[0]#1 committed
        w1 <- big[1]#1
        > used w1
        3000 milli-cpus, 0 MiB, 0 execute, 2 queue
        > ok small[0] wall=1
        small[0]#1 committed
        w1 <- small[1]#1
        w1 <- small[2]#1
        w1 <- small[3]#1
        > used w1
        3000 milli-cpus, 0 MiB, 0 execute, 4 queue
        "#,
    );
}

#[test]
fn a_draining_worker_finishes_what_it_executes_and_hands_back_the_rest() {
    check(
        "a draining worker finishes what it executes and hands back the rest",
        r#"
        > submit a:3 ; b:1
        > join w1 cpus=3
        w1 <- a[0]#1
        w1 <- a[1]#1
        w1 <- a[2]#1
        > start a[0]
        a[0]#1 starts on w1
        > draining w1
        w1 is Draining
        w1 retract a[1]#1 a[2]#1
        > explain a[1]
        retracting: attempt 1 was sent to worker 'w1' 0 us ago and is being taken back: the worker has yet to say whether it had started; the worker is draining
        > back w1 a[1]
        a[1]#1 ends Preempted, again
        > keep w1 a[2]
        > fail a[2] preempted
        a[2]#1 ends Preempted, again
        > ok a[0]
        a[0]#1 committed
        > left w1
        w1 is Gone
        > join w2 cpus=4
        w2 <- a[1]#2
        w2 <- a[2]#2
        w2 <- b[0]#1
        "#,
    );
}

#[test]
fn a_drain_from_the_scheduler_s_side_tells_the_worker() {
    check(
        "a drain from the scheduler's side tells the worker",
        r#"
        > submit a:1
        > join w1
        w1 <- a[0]#1
        > drain w1
        w1 is Draining
        w1 drain
        w1 retract a[0]#1
        > drain w1
        > back w1 a[0]
        a[0]#1 ends Preempted, again
        > left w1
        w1 is Gone
        "#,
    );
}

#[test]
fn a_worker_that_hands_back_is_taken_for_draining_before_it_says_so() {
    check(
        "a worker that hands back is taken for draining before it says so",
        r#"
        > submit a:1
        > join w1
        w1 <- a[0]#1
        > fail a[0] preempted
        a[0]#1 ends Preempted, again
        w1 is Draining
        w1 drain
        > draining w1
        "#,
    );
}

#[test]
fn goodbye_in_the_middle_of_work_is_a_loss() {
    check(
        "goodbye in the middle of work is a loss",
        r#"
        > submit a:1
        > join w1
        w1 <- a[0]#1
        > start a[0]
        a[0]#1 starts on w1
        > left w1
        w1 is Lost
        w1 close: the session ended with attempts left on the worker
        a[0]#1 ends LostWorker, again
        "#,
    );
}

#[test]
fn no_more_than_max_parallel_at_a_time() {
    check(
        "no more than max_parallel at a time",
        r#"
        > submit a:3 parallel=1
        > join w1 cpus=4
        w1 <- a[0]#1
        > explain a[1]
        ready: of 'a', 1 are on workers, and its max_parallel is 1
        > ok a[0]
        a[0]#1 committed
        w1 <- a[1]#1
        > ok a[1]
        a[1]#1 committed
        w1 <- a[2]#1
        "#,
    );
}

#[test]
fn a_resource_of_the_run_is_shared_by_its_groups_and_never_sent_ahead() {
    check(
        "a resource of the run is shared by its groups and never sent ahead",
        r#"
        > submit a:2 takes=licence:1 totals=licence:1 ; b:1 takes=licence:1
        > join w1 cpus=4
        w1 <- a[0]#1
        > explain a[1]
        ready: it takes 1 of the run's 1 'licence', of which 1 are in use
        > explain b[0]
        ready: it takes 1 of the run's 1 'licence', of which 1 are in use
        > ok a[0] wall=1
        a[0]#1 committed
        w1 <- a[1]#1
        > ok a[1] wall=1
        a[1]#1 committed
        w1 <- b[0]#1
        > ok b[0]
        b[0]#1 committed
        run r Succeeded
        "#,
    );
}

#[test]
fn larger_priorities_first_then_the_order_of_groups() {
    check(
        "larger priorities first, then the order of groups",
        r#"
        > submit low:1 prio=-1 ; normal:1 ; high:1 prio=5
        > join w1
        w1 <- high[0]#1
        > ok high[0]
        high[0]#1 committed
        w1 <- normal[0]#1
        > ok normal[0]
        normal[0]#1 committed
        w1 <- low[0]#1
        "#,
    );
}

#[test]
fn the_run_that_has_used_less_for_its_weight_is_next() {
    check(
        "the run that has used less for its weight is next",
        r#"
        > submit a:4 run=one
        > submit b:4 run=two weight=3
        > join w1
        w1 <- a[0]#1
        > start a[0]
        a[0]#1 starts on w1
        > ok a[0]
        a[0]#1 committed
        w1 <- b[0]#1
        > start b[0]
        b[0]#1 starts on w1
        > ok b[0]
        b[0]#1 committed
        w1 <- b[1]#1
        > start b[1]
        b[1]#1 starts on w1
        > ok b[1]
        b[1]#1 committed
        w1 <- b[2]#1
        > start b[2]
        b[2]#1 starts on w1
        > ok b[2]
        b[2]#1 committed
        w1 <- a[1]#1
        > ok a[1]
        a[1]#1 committed
        w1 <- b[3]#1
        "#,
    );
}

#[test]
fn max_failures_stops_new_starts_lets_go_on_what_executes_and_runs_what_runs_always() {
    check(
        "max_failures stops new starts, lets go on what executes, and runs what runs always",
        r#"
        > submit a:4 max_failures=1 retries=1 ; b:2 after=a ; clean:1 after=b always
        > join w1 cpus=3
        w1 <- a[0]#1
        w1 <- a[1]#1
        w1 <- a[2]#1
        > start a[0]
        a[0]#1 starts on w1
        > start a[1]
        a[1]#1 starts on w1
        > fail a[0] error
        a[0]#1 ends AppError, again
        w1 <- a[0]#2
        > start a[0]
        a[0]#2 starts on w1
        > fail a[0] error
        a[0]#2 ends AppError, for good
        a[0] failed after 2: AppError
        a[3] cancelled
        b[0..2] cancelled
        w1 retract a[2]#1
        w1 <- clean[0]#1
        > keep w1 a[2]
        > fail a[1] error
        a[1]#1 ends AppError, for good
        a[1] cancelled
        > ok a[2]
        a[2]#1 committed
        > explain a[3]
        cancelled: it was cancelled before its first attempt; its run has had 1 failure, its max_failures is 1, and nothing of it starts any more
        > explain b[0]
        cancelled: it was cancelled before its first attempt; its run has had 1 failure, its max_failures is 1, and nothing of it starts any more
        > ok clean[0]
        clean[0]#1 committed
        run r Failed
        "#,
    );
}

#[test]
fn what_is_asked_back_when_the_run_stops_is_cancelled_once_it_is_given_back() {
    check(
        "what is asked back when the run stops is cancelled once it is given back",
        r#"
        > submit a:3 max_failures=1
        > join w1 cpus=2
        w1 <- a[0]#1
        w1 <- a[1]#1
        > start a[0]
        a[0]#1 starts on w1
        > fail a[0] error
        a[0]#1 ends AppError, for good
        a[0] failed after 1: AppError
        a[2] cancelled
        w1 retract a[1]#1
        > back w1 a[1]
        a[1]#1 ends Preempted, for good
        a[1] cancelled
        run r Failed
        "#,
    );
}

#[test]
fn a_cancelled_run_ends_when_its_attempts_have() {
    check(
        "a cancelled run ends when its attempts have",
        r#"
        > submit a:3 ; b:1 after=a ; c:1 after=a always
        > join w1 cpus=2
        w1 <- a[0]#1
        w1 <- a[1]#1
        > start a[0]
        a[0]#1 starts on w1
        > cancel run
        a[2] cancelled
        b[0] cancelled
        c[0] cancelled
        w1 cancel a[0]#1 a[1]#1
        > explain a[0]
        cancelling: attempt 1 is being cancelled: it executes on worker 'w1' since 0 us
        > cancel run
        > ok a[0]
        superseded
        a[0]#1 ends Cancelled, for good
        a[0] cancelled
        > fail a[1] cancelled
        a[1]#1 ends Cancelled, for good
        a[1] cancelled
        run r Cancelled
        > explain a[2]
        cancelled: it was cancelled before its first attempt; the whole run was cancelled
        > cancel run
        "#,
    );
}

#[test]
fn a_cancelled_task_skips_what_needs_it_and_nothing_else() {
    check(
        "a cancelled task skips what needs it and nothing else",
        r#"
        > submit a:2 ; b:2 each=a ; c:1 after=b always
        > join w1
        w1 <- a[0]#1
        > cancel a[1]
        a[1] cancelled
        b[1] skipped because of a[1]
        > explain b[1]
        skipped: it never ran because a[1], which it needs, was cancelled
        > ok a[0]
        a[0]#1 committed
        w1 <- b[0]#1
        > ok b[0]
        b[0]#1 committed
        w1 <- c[0]#1
        > ok c[0]
        c[0]#1 committed
        run r Failed
        > counts b
        1 succeeded, 1 skipped
        "#,
    );
}

#[test]
fn a_cancelled_group_skips_what_needs_it() {
    check(
        "a cancelled group skips what needs it",
        r#"
        > submit a:3 ; b:3 each=a ; c:1 after=b
        > join w1
        w1 <- a[0]#1
        > cancel a
        a[1..3] cancelled
        w1 cancel a[0]#1
        b[1..3] skipped because of a[1]
        c[0] skipped because of a[1]
        > fail a[0] cancelled
        a[0]#1 ends Cancelled, for good
        a[0] cancelled
        b[0] skipped because of a[0]
        run r Failed
        > explain b[2]
        skipped: it never ran because something of 'a' that it needs was cancelled
        > explain c[0]
        skipped: it never ran because something of 'a' that it needs was cancelled
        "#,
    );
}

#[test]
fn a_cancelled_attempt_ends_with_its_worker() {
    check(
        "a cancelled attempt ends with its worker",
        r#"
        > submit a:1
        > join w1
        w1 <- a[0]#1
        > start a[0]
        a[0]#1 starts on w1
        > cancel a[0]
        w1 cancel a[0]#1
        > die w1
        w1 is Lost
        w1 close: the worker is dead: killed by signal 9
        a[0]#1 ends Cancelled, for good
        a[0] cancelled
        run r Cancelled
        "#,
    );
}

#[test]
fn a_cancelled_attempt_that_had_not_started_ends_with_the_connection() {
    check(
        "a cancelled attempt that had not started ends with the connection",
        r#"
        > submit a:1
        > join w1
        w1 <- a[0]#1
        > cancel a[0]
        w1 cancel a[0]#1
        > reset w1 data
        w1 is Suspect
        a[0]#1 ends Cancelled, for good
        a[0] cancelled
        w1 cancel a[0]#1
        run r Cancelled
        "#,
    );
}

#[test]
fn an_open_group_has_its_length_when_the_task_it_is_open_on_commits() {
    check(
        "an open group has its length when the task it is open on commits",
        r#"
        > submit a:1 ; b:0 from=a each=x
        refused E_DEPENDENCY: group 'b' depends on group 99, which is not before it
        > submit a:1 ; b:0 from=a ; c:1 after=b
        > explain b[0]
        waiting: 'b' is open: a[0], which is ready, says how many elements it has
        > join w1 cpus=2
        w1 <- a[0]#1
        > ok a[0] length=2
        a[0]#1 committed
        b has 2
        w1 <- b[0]#1
        w1 <- b[1]#1
        > ok b[0]
        b[0]#1 committed
        > explain c[0]
        waiting: it waits for all of 'b': 1 of 2 are over, 1 assigned
        > ok b[1]
        b[1]#1 committed
        w1 <- c[0]#1
        > ok c[0]
        c[0]#1 committed
        run r Succeeded
        "#,
    );
}

#[test]
fn an_open_group_without_a_length_is_skipped_and_so_is_what_needs_it() {
    check(
        "an open group without a length is skipped, and so is what needs it",
        r#"
        > submit a:1 ; b:0 from=a ; c:1 after=b ; d:1 after=b always
        > join w1
        w1 <- a[0]#1
        > ok a[0]
        a[0]#1 committed
        b skipped because of a[0]
        c[0] skipped because of a[0]
        w1 <- d[0]#1
        > explain b[0]
        skipped: 'b' never had an element because of a[0], which succeeded without saying a length that fits
        > explain c[0]
        skipped: it never ran because of a[0], which succeeded without saying a length that fits
        > ok d[0]
        d[0]#1 committed
        run r Failed
        "#,
    );
}

#[test]
fn an_open_group_of_length_zero_is_over_at_once() {
    check(
        "an open group of length zero is over at once",
        r#"
        > submit a:1 ; b:0 from=a ; c:1 after=b
        > join w1
        w1 <- a[0]#1
        > ok a[0] length=0
        a[0]#1 committed
        b has 0
        w1 <- c[0]#1
        > ok c[0]
        c[0]#1 committed
        run r Succeeded
        "#,
    );
}

#[test]
fn a_failure_reaches_an_open_group() {
    check(
        "a failure reaches an open group",
        r#"
        > submit a:1 ; b:0 from=a
        > join w1
        w1 <- a[0]#1
        > fail a[0] error
        a[0]#1 ends AppError, for good
        a[0] failed after 1: AppError
        b skipped because of a[0]
        run r Failed
        > explain b[0]
        skipped: 'b' never had an element because of a[0], which failed with app_error
        "#,
    );
}

#[test]
fn an_open_group_can_be_cancelled() {
    check(
        "an open group can be cancelled",
        r#"
        > submit a:1 ; b:0 from=a
        > cancel b
        b cancelled
        > explain b[0]
        cancelled: 'b' was cancelled before it had an element
        > join w1
        w1 <- a[0]#1
        > ok a[0] length=3
        a[0]#1 committed
        run r Cancelled
        "#,
    );
}

#[test]
fn groups_without_elements_are_over_at_once() {
    check(
        "groups without elements are over at once",
        r#"
        > submit a:0 ; b:1 after=a ; c:0 each=a
        > join w1
        w1 <- b[0]#1
        > ok b[0]
        b[0]#1 committed
        run r Succeeded
        > submit x:0 run=empty
        run empty Succeeded
        "#,
    );
}

#[test]
fn element_by_element_all_into_one_explicit_edges() {
    check(
        "element by element, all into one, explicit edges",
        r#"
        > submit a:4 ; b:4 each=a ; c:2 into=b ; d:2 edges=c:1-0
        > join w1 cpus=8
        w1 <- a[0]#1
        w1 <- a[1]#1
        w1 <- a[2]#1
        w1 <- a[3]#1
        w1 <- d[1]#1
        > explain c[1]
        waiting: it waits for b[2], which is waiting, and for 1 more of the 2 elements it needs
        > ok a[2]
        a[2]#1 committed
        w1 <- b[2]#1
        > ok b[2]
        b[2]#1 committed
        > ok a[3]
        a[3]#1 committed
        w1 <- b[3]#1
        > ok b[3]
        b[3]#1 committed
        w1 <- c[1]#1
        > explain d[0]
        waiting: it waits for c[1], which is assigned
        > ok c[1]
        c[1]#1 committed
        w1 <- d[0]#1
        > counts c
        1 waiting, 1 succeeded
        "#,
    );
}

#[test]
fn a_failure_reaches_exactly_what_needs_it() {
    check(
        "a failure reaches exactly what needs it",
        r#"
        > submit a:4 ; b:4 each=a ; c:2 into=b ; d:1 after=c always ; e:1 edges=c:1-0
        > join w1 cpus=4
        w1 <- a[0]#1
        w1 <- a[1]#1
        w1 <- a[2]#1
        w1 <- a[3]#1
        > fail a[0] error
        a[0]#1 ends AppError, for good
        a[0] failed after 1: AppError
        b[0] skipped because of a[0]
        c[0] skipped because of a[0]
        > ok a[1]
        a[1]#1 committed
        w1 <- b[1]#1
        > ok a[2]
        a[2]#1 committed
        w1 <- b[2]#1
        > ok a[3]
        a[3]#1 committed
        w1 <- b[3]#1
        > ok b[1]
        b[1]#1 committed
        > ok b[2]
        b[2]#1 committed
        > ok b[3]
        b[3]#1 committed
        w1 <- c[1]#1
        > ok c[1]
        c[1]#1 committed
        w1 <- d[0]#1
        w1 <- e[0]#1
        > counts c
        1 succeeded, 1 skipped
        "#,
    );
}

#[test]
fn runs_that_are_refused_change_nothing() {
    check(
        "runs that are refused change nothing",
        r#"
        > submit a:1 after=b
        refused E_DEPENDENCY: group 'a' depends on group 99, which is not before it
        > submit a:2 ; b:3 each=a
        refused E_PROJECTION: the dependency of group 'b' on 'a' does not fit: downstream axes have 2 elements but the group has 3
        > submit a:2 ; b:3 edges=a:2-0
        refused E_EDGE: the edge 2 -> 0 of group 'b' leaves 'a' (2) or itself (3)
        > submit a:1 ; a:1
        refused E_GROUP_EXISTS: two groups are named 'a'
        > submit a:1 weight=0
        refused E_WEIGHT: the run's weight is 0 and must be at least 1
        > submit :1
        refused E_NAME: the group name "" of group 0 is empty
        > submit a:200000000
        refused E_TOO_MANY_TASKS: the run has 200000000 tasks and the limit is 134217728
        > submit a:1 takes=licence:3 totals=licence:2
        refused E_NEVER_FITS: a task of group 'a' takes 3 of 'licence' and the whole run has 2
        > submit a:0 ; b:0 from=a
        refused E_LENGTH: group 'b' takes its length from 'a', which has no element known to exist
        > submit a:1 ; b:0 from=a ; c:1 each=b
        refused E_DEPENDENCY: group 'c' depends on 'b' element by element and one of them is open: only a whole dependency is possible
        > submit a:1
        > submit b:1 run=r
        refused E_RUN_EXISTS: there is a run 'r' already
        "#,
    );
}

#[test]
fn the_same_key_is_the_same_run_also_after_its_end_until_it_is_forgotten() {
    check(
        "the same key is the same run, also after its end, until it is forgotten",
        r#"
        > submit a:1 key=7
        > submit a:1 key=7
        known
        > forget
        > join w1
        w1 <- a[0]#1
        > ok a[0]
        a[0]#1 committed
        run r Succeeded
        > submit a:1 key=7
        known
        > forget
        > submit a:1 key=7
        w1 <- a[0]#1
        "#,
    );
}

#[test]
fn explain_nothing_serves_the_component() {
    check(
        "explain: nothing serves the component",
        r#"
        > submit a:1 comp=model
        > explain a[0]
        ready: no worker and no pool serves component 'model'
        > join w0 comp=tools
        > explain a[0]
        ready: no worker and no pool serves component 'model'
        > pool k8s comp=model starting=2 note=0/3_nodes_are_available:_insufficient_cpu
        > explain a[0]
        ready: pool 'k8s' serves component 'model' and has no worker: 2 starting; 0/3 nodes are available: insufficient cpu
        "#,
    );
}

#[test]
fn explain_no_room() {
    check(
        "explain: no room",
        r#"
        > submit a:2 cpus=2 mem=600 ; b:1 cpus=8 ; c:1 gpus=1 ; d:1 takes=scratch:1
        > join w1 cpus=3 mem=1000
        w1 <- a[0]#1 with 600 MiB
        > join w2 cpus=1 mem=4000
        > explain a[1]
        ready: it needs 2 cpus, 600 MiB of memory, and no worker has that many cpus free: 1 of 3 cpus are free on workers that serve component 'c' and are large enough (of 1)
        > explain b[0]
        ready: it needs 8 cpus, and the largest worker that serves component 'c' (of 2) has 3 cpus, 1000 MiB of memory
        > explain c[0]
        ready: it needs 1 cpu, 1 gpu, and the largest worker that serves component 'c' (of 2) has 3 cpus, 1000 MiB of memory
        > join w3 cpus=1 has=scratch:1
        w3 <- d[0]#1
        > join w4 cpus=3 mem=400
        > explain a[1]
        ready: it needs 2 cpus, 600 MiB of memory, and no worker has that many cpus free: 1 of 3 cpus are free on workers that serve component 'c' and are large enough (of 1)
        "#,
    );
}

#[test]
fn explain_a_dependency_by_name_and_how_many_more() {
    check(
        "explain: a dependency by name, and how many more",
        r#"
        > submit a:3 ; b:1 after=a ; c:1 into=a
        > explain b[0]
        waiting: it waits for all of 'a': 0 of 3 are over, 3 ready
        > explain c[0]
        waiting: it waits for a[0], which is ready, and for 2 more of the 3 elements it needs
        > join w1
        w1 <- a[0]#1
        > start a[0]
        a[0]#1 starts on w1
        > explain c[0]
        waiting: it waits for a[0], which is running, and for 2 more of the 3 elements it needs
        > explain b[0]
        waiting: it waits for all of 'a': 0 of 3 are over, 1 executing, 2 ready
        > explain a[7]
        nothing
        "#,
    );
}

#[test]
fn messages_nobody_may_send_change_nothing() {
    check(
        "messages nobody may send change nothing",
        r#"
        > submit a:1
        > join w1
        w1 <- a[0]#1
        > start a[0]
        a[0]#1 starts on w1
        > start a[0]
        > keep w1 a[0]
        > back w1 a[0]
        > ok a[0]
        a[0]#1 committed
        run r Succeeded
        > ok a[0]
        superseded
        > start a[0]
        w1 cancel a[0]#1
        > back w1 a[0]
        > attach w1 data
        > reset w1 data
        w1 is Suspect
        > reset w1 control
        > die w1
        w1 is Lost
        w1 close: the worker is dead: killed by signal 9
        > die w1
        > draining w1
        > left w1
        > frame w1
        > attach w1 data
        "#,
    );
}
