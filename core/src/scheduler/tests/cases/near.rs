//! Data-aware placement: where inputs are, what moving costs, what waiting costs. The standard bandwidth is 1 GiB a second.

use super::super::world::check;

#[test]
fn a_task_goes_where_its_inputs_are() {
    check(
        "a task goes where its inputs are",
        r#"
        > submit f:grow open
        > join w1
        > append f 1
        w1 <- f[0]#1
        > ok f[0] held=64 wall=1
        f[0]#1 committed
        > join w0
        > append f 2 0<f[0]
        w1 <- f[1]#1
        w0 <- f[2]#1
        "#,
    );
}

#[test]
fn a_holder_is_waited_for_while_moving_costs_more() {
    check(
        "a holder is waited for while moving costs more",
        r#"
        > submit f:grow ; g:grow open
        > join w1
        > append f 1
        w1 <- f[0]#1
        > ok f[0] held=512 wall=100
        f[0]#1 committed
        > append f 1
        w1 <- f[1]#1
        > join w2
        > append f 6 0<f[0] 1<f[0] 2<f[0] 3<f[0] 4<f[0] 5<f[0]
        w1 <- f[2]#1
        w1 <- f[3]#1
        w1 <- f[4]#1
        w1 <- f[5]#1
        w1 <- f[6]#1
        w2 <- f[7]#1
        > ok f[7] wall=100
        f[7]#1 committed
        "#,
    );
}

#[test]
fn what_is_cheaper_to_move_than_to_wait_for_is_moved() {
    check(
        "what is cheaper to move than to wait for is moved",
        r#"
        > submit f:grow open
        > join w1
        > append f 1
        w1 <- f[0]#1
        > ok f[0] held=64 wall=1000
        f[0]#1 committed
        > append f 1
        w1 <- f[1]#1
        > join w2
        > append f 1 0<f[0]
        w2 <- f[2]#1
        "#,
    );
}

#[test]
fn a_worker_that_starves_takes_what_would_wait_longer_than_it_moves() {
    check(
        "a worker that starves takes what would wait longer than it moves",
        r#"
        > submit f:grow open
        > join w1
        > append f 1
        w1 <- f[0]#1
        > ok f[0] held=512 wall=100
        f[0]#1 committed
        > append f 1
        w1 <- f[1]#1
        > join w2
        > append f 6 0<f[0] 1<f[0] 2<f[0] 3<f[0] 4<f[0] 5<f[0]
        w1 <- f[2]#1
        w1 <- f[3]#1
        w1 <- f[4]#1
        w1 <- f[5]#1
        w1 <- f[6]#1
        w2 <- f[7]#1
        > start f[7]
        f[7]#1 starts on w2
        > copied w2 f[0]
        > ok f[7] wall=100
        f[7]#1 committed
        w1 retract f[6]#1 f[5]#1 f[4]#1
        > back w1 f[4] f[5] f[6]
        f[4]#1 ends Preempted, again
        f[5]#1 ends Preempted, again
        f[6]#1 ends Preempted, again
        w2 <- f[4]#2
        w2 <- f[5]#2
        "#,
    );
}
