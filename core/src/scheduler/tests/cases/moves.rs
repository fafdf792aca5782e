//! Workers that are to be emptied: what nobody else keeps is fetched by others before they leave.

use super::super::world::check;

#[test]
fn what_only_one_holds_goes_to_one_of_the_same_pool_that_has_work() {
    check(
        "what only one holds goes to one of the same pool that has work",
        r#"
        > submit f:grow open
        > join w1
        > append f 2
        w1 <- f[0]#1
        > ok f[0] held=1 wall=1
        f[0]#1 committed
        w1 <- f[1]#1
        > ok f[1] held=2 wall=1
        f[1]#1 committed
        > join other pool=q
        > join idle
        > submit g:1 cpus=2 run=other
        > join busy cpus=2
        busy <- g[0]#1
        > load p
        0: 1 queued, 1 a worker
        w1: idle, runs [], was sent 2, 3145728 B
        idle: idle, runs [], was sent 0, 0 B
        busy: busy, runs [], was sent 1, 0 B
        > empty w1
        busy is to keep f[0]#1
        busy is to keep f[1]#1
        > empty w1
        > explain f[1]
        succeeded: attempt 1 succeeded and its result is committed; its 2.0 MiB are on worker 'w1' only, which is to leave: they are on their way to worker 'busy'
        > kept busy f[0]
        > kept busy f[1]
        > load p
        0: 1 queued, 1 a worker
        w1: idle, runs [], was sent 2, 0 B
        idle: idle, runs [], was sent 0, 0 B
        busy: busy, runs [], was sent 1, 0 B
        > left w1
        w1 is Gone
        > holders f[1]
        busy
        "#,
    );
}

#[test]
fn files_stay_where_they_are_and_nobody_is_asked_to_keep_them() {
    check(
        "files stay where they are, and nobody is asked to keep them",
        r#"
        > submit f:grow open
        > join w1
        > append f 2
        w1 <- f[0]#1
        > ok f[0] files=1 wall=1
        f[0]#1 committed
        w1 <- f[1]#1
        > ok f[1] files=2 wall=1
        f[1]#1 committed
        > join idle
        > empty w1
        > load p
        w1: idle, runs [], was sent 2, 3145728 B
        idle: idle, runs [], was sent 0, 0 B
        > copied idle f[1]
        > holders f[1]
        w1 idle
        "#,
    );
}

#[test]
fn a_copy_that_a_call_has_brought_is_not_counted_on() {
    check(
        "a copy that a call has brought is not counted on",
        r#"
        > submit f:grow open
        > join w1
        > append f 1
        w1 <- f[0]#1
        > ok f[0] held=1 wall=1
        f[0]#1 committed
        > join w2
        > join w3
        > copied w3 f[0]
        > holders f[0]
        w1 w3
        > empty w1
        w3 is to keep f[0]#1
        > kept w3 f[0]
        > load p
        w1: idle, runs [], was sent 1, 0 B
        w2: idle, runs [], was sent 0, 0 B
        w3: idle, runs [], was sent 0, 0 B
        > drain w1
        w1 is Draining
        w1 drain
        > load p
        w1: draining, runs [], was sent 1, 0 B
        w2: idle, runs [], was sent 0, 0 B
        w3: idle, runs [], was sent 0, 1048576 B
        > empty w3
        w2 is to keep f[0]#1
        "#,
    );
}

#[test]
fn of_workers_that_are_all_to_leave_the_last_one_takes_everything() {
    check(
        "of workers that are all to leave the last one takes everything",
        r#"
        > submit f:grow open
        > join w1
        > join w2
        > append f 2
        w1 <- f[0]#1
        w2 <- f[1]#1
        > ok f[0] held=1 wall=1
        f[0]#1 committed
        > ok f[1] held=2 wall=1
        f[1]#1 committed
        > empty w1 w2
        w2 is to keep f[0]#1
        > kept w2 f[0]
        > left w1
        w1 is Gone
        > empty w2
        > holders f[0]
        w2
        "#,
    );
}

#[test]
fn who_cannot_get_it_is_left_alone_and_another_one_is_asked() {
    check(
        "who cannot get it is left alone and another one is asked",
        r#"
        > submit f:grow open
        > join w1
        > append f 1
        w1 <- f[0]#1
        > ok f[0] held=1 wall=1
        f[0]#1 committed
        > join w2
        > join w3
        > empty w1
        w2 is to keep f[0]#1
        > notkept w2 f[0]
        > empty w1
        w3 is to keep f[0]#1
        > die w3
        w3 is Lost
        w3 close: the worker is dead: killed by signal 9
        > empty w1
        > wait 6
        > empty w1
        w2 is to keep f[0]#1
        > release f 0 1
        w1 may drop f[0]
        f[0] released
        > kept w2 f[0]
        w2 may drop f[0]
        "#,
    );
}

#[test]
fn a_worker_that_is_taken_away_is_not_counted_on() {
    check(
        "a worker that is taken away is not counted on",
        r#"
        > submit f:grow open
        > join w1
        > append f 1
        w1 <- f[0]#1
        > ok f[0] held=1 wall=1
        f[0]#1 committed
        > join w2
        > kept w2 f[0]
        > taken w1
        > load p
        w1: idle, runs [], was sent 1, 0 B
        w2: idle, runs [], was sent 0, 1048576 B
        > empty w2
        > join w3
        > empty w2
        w3 is to keep f[0]#1
        "#,
    );
}

#[test]
fn only_so_much_is_on_its_way_at_once() {
    let many: String = (0..70).map(|index| format!("> ok f[{index}] held=1 wall=1\nf[{index}]#1 committed\n")).collect();
    let sent: String = (0..70).map(|index| format!("w1 <- f[{index}]#1\n")).collect();
    let asked: String = (0..64).map(|index| format!("w2 is to keep f[{index}]#1\n")).collect();
    let half: String = (0..31).map(|index| format!("> kept w2 f[{index}]\n")).collect();
    let rest: String = (64..70).map(|index| format!("w2 is to keep f[{index}]#1\n")).collect();
    check(
        "only so much is on its way at once",
        &format!(
            "> submit f:grow cpus=0 ; g:grow open\n> join w1\n> append f 70\n{sent}{many}> join w2\n> empty w1\n{asked}\
             > empty w1\n{half}> kept w2 f[31]\n{rest}> append g 1\nw1 <- g[0]#1\n> ok g[0] held=300\ng[0]#1 committed\n> empty w1\n"
        ),
    );
}
