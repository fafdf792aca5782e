//! Work that is sent ahead of room, and asked back.

use super::super::world::check;

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
fn a_worker_is_not_sent_ahead_what_others_could_be_sent() {
    check(
        "a worker is not sent ahead what others could be sent",
        r#"
        > submit a:8
        > join w1
        w1 <- a[0]#1
        > join w2
        w2 <- a[1]#1
        > wait 1
        > start a[0]
        a[0]#1 starts on w1
        > ok a[0] wall=1
        a[0]#1 committed
        w1 <- a[2]#1
        w1 <- a[3]#1
        w1 <- a[4]#1
        w1 <- a[5]#1
        > ok a[1]
        a[1]#1 committed
        w2 <- a[6]#1
        w2 <- a[7]#1
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
