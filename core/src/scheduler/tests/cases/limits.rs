//! What may run at a time, who is next, and the run that has failed too often.

use super::super::world::check;

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
