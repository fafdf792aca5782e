//! Pools that scale: who gets work, and what the planner is shown.

use super::super::world::check;

#[test]
fn a_pool_that_scales_fills_one_worker_before_the_next() {
    check(
        "a pool that scales fills one worker before the next",
        r#"
        > pool p comp=c scaled
        > join w1 cpus=2
        > join w2 cpus=2
        > submit a:3
        w1 <- a[0]#1
        w1 <- a[1]#1
        w2 <- a[2]#1
        > load p
        0: 3 queued, 1 a worker
        w1: busy, runs [], was sent 2, 0 B
        w2: busy, runs [], was sent 1, 0 B
        "#,
    );
}

#[test]
fn the_planner_sees_queued_soon_and_idle() {
    check(
        "the planner sees what is queued, what is soon and who is idle",
        r#"
        > pool p comp=c scaled
        > submit a:4 parallel=3 ; b:4 after=a
        > load p
        0: 3 queued, 1 a worker
        1: 0 queued, 1 a worker
        > join w1
        w1 <- a[0]#1
        > start a[0]
        a[0]#1 starts on w1
        > load p
        0: 2 queued, 1 a worker
        1: 0 queued, 1 a worker
        w1: busy, runs [0], was sent 1, 0 B
        > ok a[0] wall=4000
        a[0]#1 committed
        w1 <- a[1]#1
        > start a[1]
        a[1]#1 starts on w1
        > load p
        0: 2 queued, 1 a worker
        1: 0 queued, 1 a worker, 4 in 12000 ms
        w1: busy, runs [0], was sent 2, 0 B
        > drain w1
        w1 is Draining
        w1 drain
        > load p
        0: 2 queued, 1 a worker
        1: 0 queued, 1 a worker, 4 in 12000 ms
        w1: draining, runs [0], was sent 2, 0 B
        "#,
    );
}
