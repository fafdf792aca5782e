//! Workers that come, fall silent, are reset, drain and die.

use super::super::world::check;

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
fn a_worker_without_room_for_results_gives_back_what_it_has_not_started_until_there_is_room() {
    check(
        "a worker without room for results gives back what it has not started until there is room",
        r#"
        > submit a:3
        > join w1 cpus=2
        w1 <- a[0]#1
        w1 <- a[1]#1
        > start a[0]
        a[0]#1 starts on w1
        > full w1
        w1 retract a[1]#1
        > full w1
        > back w1 a[1]
        a[1]#1 ends Preempted, again
        > explain a[1]
        ready: attempt 1 was taken back before it ended, uncharged; every worker that serves component 'c' and is large enough (of 1) has its memory full of results and no room for more on its disk: another worker, or results that are let go of, would make room
        > ok a[0]
        a[0]#1 committed
        > join w2
        w2 <- a[1]#2
        > full w1 no
        w1 <- a[2]#1
        > die w1
        w1 is Lost
        w1 close: the worker is dead: killed by signal 9
        a[2]#1 ends Preempted, again
        > full w1
        > ok a[1]
        a[1]#2 committed
        w2 <- a[2]#2
        > ok a[2]
        a[2]#2 committed
        run r Succeeded
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
