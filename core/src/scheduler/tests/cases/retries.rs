//! What follows a bad end: what is charged, what grows, what is tried again.

use super::super::world::check;

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
fn a_worker_that_was_out_of_memory_is_charged_to_the_task_that_took_it() {
    check(
        "a worker that was out of memory is charged to the task that took most above its request",
        r#"
        > submit a:2 mem=64 oom=1500:512 ; b:1 mem=8 oom=1500:512
        > join w1 cpus=3 mem=512
        w1 <- a[0]#1 with 64 MiB
        w1 <- a[1]#1 with 64 MiB
        w1 <- b[0]#1 with 8 MiB
        > start a[0]
        a[0]#1 starts on w1
        > start a[1]
        a[1]#1 starts on w1
        > start b[0]
        b[0]#1 starts on w1
        > shares w1 b[0]=40 a[0]=70 a[1]=60
        > reset w1 control
        w1 is Suspect
        > die w1 oom
        w1 is Lost
        w1 close: OOMKilled: the memory limit is 128Mi
        a[0]#1 ends Preempted, again: its worker ran out of memory, which is charged to b[0]: OOMKilled: the memory limit is 128Mi
        a[1]#1 ends Preempted, again: its worker ran out of memory, which is charged to b[0]: OOMKilled: the memory limit is 128Mi
        b[0]#1 ends Oom, again: out of memory: the worker was ended with everything on it (OOMKilled: the memory limit is 128Mi); when it was last looked at it took 40 MiB and had asked for 8.0 MiB, and nothing took more beyond its request: declare what it takes with `memory:`, or let it grow with `on_oom:`
        > join w2 cpus=3 mem=512
        w2 <- a[0]#2 with 64 MiB
        w2 <- a[1]#2 with 64 MiB
        w2 <- b[0]#2 with 60 MiB
        "#,
    );
}

#[test]
fn the_last_report_decides_and_what_has_ended_is_not_charged() {
    check(
        "the last report decides, and what has ended is not charged",
        r#"
        > submit a:3 oom=1500:64
        > join w1 cpus=3 mem=64
        w1 <- a[0]#1
        w1 <- a[1]#1
        w1 <- a[2]#1
        > start a[0]
        a[0]#1 starts on w1
        > start a[1]
        a[1]#1 starts on w1
        > start a[2]
        a[2]#1 starts on w1
        > shares w1 a[1]=50
        > shares w1 a[2]=40 a[0]=30 a[1]=9
        > ok a[2]
        a[2]#1 committed
        > die w1 oom
        w1 is Lost
        w1 close: OOMKilled: the memory limit is 128Mi
        a[0]#1 ends Oom, again: out of memory: the worker was ended with everything on it (OOMKilled: the memory limit is 128Mi); when it was last looked at it took 30 MiB and had asked for nothing, and nothing took more beyond its request: declare what it takes with `memory:`, or let it grow with `on_oom:`
        a[1]#1 ends Preempted, again: its worker ran out of memory, which is charged to a[0]: OOMKilled: the memory limit is 128Mi
        > explain a[1]
        ready: attempt 1 was lost with worker 'w1', uncharged: OOMKilled: the memory limit is 128Mi; no worker and no pool serves component 'c'
        "#,
    );
}

#[test]
fn where_nothing_is_known_of_the_memory_everything_is_suspect_and_runs_alone_the_third_time() {
    check(
        "where too little is known of the memory everything is suspect, uncharged, and runs alone the third time",
        r#"
        > submit a:2 mem=16 oom=1000:16
        > join w1 cpus=2 mem=64
        w1 <- a[0]#1 with 16 MiB
        w1 <- a[1]#1 with 16 MiB
        > start a[0]
        a[0]#1 starts on w1
        > start a[1]
        a[1]#1 starts on w1
        > die w1 oom
        w1 is Lost
        w1 close: OOMKilled: the memory limit is 128Mi
        a[0]#1 ends Preempted, again: its worker ran out of memory before it could say what took it: OOMKilled: the memory limit is 128Mi; if that happens again it runs alone
        a[1]#1 ends Preempted, again: its worker ran out of memory before it could say what took it: OOMKilled: the memory limit is 128Mi; if that happens again it runs alone
        > join w2 cpus=2 mem=64
        w2 <- a[0]#2 with 16 MiB
        w2 <- a[1]#2 with 16 MiB
        > start a[0]
        a[0]#2 starts on w2
        > start a[1]
        a[1]#2 starts on w2
        > shares w2 a[0]=2 a[1]=3
        > die w2 oom
        w2 is Lost
        w2 close: OOMKilled: the memory limit is 128Mi
        a[0]#2 ends Preempted, again: its worker ran out of memory before it could say what took it: OOMKilled: the memory limit is 128Mi; if that happens again it runs alone
        a[1]#2 ends Preempted, again: its worker ran out of memory before it could say what took it: OOMKilled: the memory limit is 128Mi; if that happens again it runs alone
        > join w3 cpus=2 mem=64
        w3 <- a[0]#3 with 16 MiB
        > start a[0]
        a[0]#3 starts on w3
        > ok a[0]
        a[0]#3 committed
        w3 <- a[1]#3 with 16 MiB
        > start a[1]
        a[1]#3 starts on w3
        > die w3 oom
        w3 is Lost
        w3 close: OOMKilled: the memory limit is 128Mi
        a[1]#3 ends Oom, for good: out of memory: the worker was ended with everything on it (OOMKilled: the memory limit is 128Mi); nothing else executed there, and it had asked for 16 MiB: declare what it takes with `memory:`, or let it grow with `on_oom:`
        a[1] failed after 3: Oom
        run r Failed
        > explain a[1]
        failed: it failed after 3 attempts: attempt 3 ended with oom (worker 'w3' of pool 'p': OOMKilled: the memory limit is 128Mi); 0 of 2 retries for oom used
        "#,
    );
}

#[test]
fn what_had_not_started_took_no_memory() {
    check(
        "what had not started took no memory",
        r#"
        > submit a:1
        > join w1
        w1 <- a[0]#1
        > die w1 oom
        w1 is Lost
        w1 close: OOMKilled: the memory limit is 128Mi
        a[0]#1 ends Preempted, again
        "#,
    );
}

#[test]
fn a_worker_that_the_platform_took_is_charged_to_nobody() {
    check(
        "a worker that the platform took is charged to nobody",
        r#"
        > submit a:1 lost=0
        > join w1
        w1 <- a[0]#1
        > start a[0]
        a[0]#1 starts on w1
        > die w1 taken
        w1 is Lost
        w1 close: Preempting: for a pod of more priority
        a[0]#1 ends Preempted, again: its worker was taken away: Preempting: for a pod of more priority
        "#,
    );
}

#[test]
fn a_worker_that_was_being_taken_and_fell_silent_is_charged_to_nobody() {
    check(
        "a worker that was being taken and fell silent is charged to nobody, with the first cause",
        r#"
        > submit a:1 lost=0
        > join w1
        w1 <- a[0]#1
        > start a[0]
        a[0]#1 starts on w1
        > wait 15
        w1 is Suspect
        > taken w1
        > wait 15
        w1 is Lost
        w1 close: no frame came for too long
        a[0]#1 ends Preempted, again: its worker was taken away: its node is gone
        > explain a[0]
        ready: attempt 1 was lost with worker 'w1', uncharged: the worker was taken away: its node is gone; no worker and no pool serves component 'c'
        > join w2
        w2 <- a[0]#2
        > start a[0]
        a[0]#2 starts on w2
        > taken w2
        > die w2
        w2 is Lost
        w2 close: the worker is dead: killed by signal 9
        a[0]#2 ends Preempted, again: its worker was taken away: its node is gone
        "#,
    );
}

#[test]
fn a_worker_that_is_being_taken_is_so_under_its_next_session_too() {
    check(
        "a worker that is being taken is so under its next session too, until it is dead",
        r#"
        > submit a:1 lost=1
        > join w1
        w1 <- a[0]#1
        > start a[0]
        a[0]#1 starts on w1
        > taken w1
        > join w1
        w1 is Lost
        w1 close: the worker registered again under a new session
        a[0]#1 ends Preempted, again: its worker was taken away: its node is gone
        w1 <- a[0]#2
        > start a[0]
        a[0]#2 starts on w1
        > die w1
        w1 is Lost
        w1 close: the worker is dead: killed by signal 9
        a[0]#2 ends Preempted, again: its worker was taken away: its node is gone
        > join w1
        w1 <- a[0]#3
        > start a[0]
        a[0]#3 starts on w1
        > die w1
        w1 is Lost
        w1 close: the worker is dead: killed by signal 9
        a[0]#3 ends LostWorker, again
        "#,
    );
}
