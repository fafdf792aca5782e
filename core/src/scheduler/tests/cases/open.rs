//! Open runs: groups and elements that follow, and what is refused of them.

use super::super::world::check;

#[test]
fn elements_follow_and_the_run_ends_when_it_is_closed() {
    check(
        "elements follow and the run ends when it is closed",
        r#"
        > submit f:grow open
        > join w1 cpus=2
        > append f 2
        w1 <- f[0]#1
        w1 <- f[1]#1
        > group g:grow
        > append g 2 0<f[0] 1<f[1] 1<g[0]
        > ok f[0]
        f[0]#1 committed
        w1 <- g[0]#1
        > append f 1 0<g[0] last
        f has 3
        > ok g[0]
        g[0]#1 committed
        w1 <- f[2]#1
        > ok f[2]
        f[2]#1 committed
        > ok f[1]
        f[1]#1 committed
        w1 <- g[1]#1
        > close
        g has 2
        > ok g[1]
        g[1]#1 committed
        f[0..3] released
        g[0..2] released
        run r Succeeded
        "#,
    );
}

#[test]
fn a_result_lives_as_long_as_somebody_needs_it_and_is_made_again_when_it_is_lost() {
    check(
        "a result lives as long as somebody needs it and is made again when it is lost",
        r#"
        > submit f:grow open
        > join w1
        > append f 2 1<f[0]
        w1 <- f[0]#1
        > ok f[0] held=10
        f[0]#1 committed
        w1 <- f[1]#1
        > release f 0 1
        > ok f[1] held=1
        f[1]#1 committed
        w1 may drop f[0]
        > holders f[1]
        w1
        > die w1
        w1 is Lost
        w1 close: the worker is dead: killed by signal 9
        > join w2
        w2 <- f[0]#2
        > explain f[1]
        waiting: its result was lost with its last holder and is made again; it waits for f[0], which is assigned: its result was lost and is made again
        > ok f[0] held=10
        f[0]#2 restored
        w2 <- f[1]#2
        > ok f[1] held=1
        f[1]#2 restored
        w2 may drop f[0]
        > release f 1 1
        w2 may drop f[1]
        f[0..2] released
        > close
        f has 2
        run r Succeeded
        "#,
    );
}

#[test]
fn a_result_that_is_secured_needs_no_holder_and_is_not_made_again() {
    check(
        "a result that is secured needs no holder and is not made again",
        r#"
        > submit f:grow open
        > join w1
        > append f 2 1<f[0]
        w1 <- f[0]#1
        > ok f[0] held=10
        f[0]#1 committed
        w1 <- f[1]#1
        > secured f[0] 2
        > holders f[0]
        w1
        > secured f[0] 1
        > holders f[0]
        nobody
        > ok f[1] held=1
        f[1]#1 committed
        > die w1
        w1 is Lost
        w1 close: the worker is dead: killed by signal 9
        > join w2
        w2 <- f[1]#2
        > ok f[1]
        f[1]#2 restored
        > release f 0 2
        f[0..2] released
        > close
        f has 2
        run r Succeeded
        "#,
    );
}

#[test]
fn what_is_refused_exists_and_is_over() {
    check(
        "what is refused exists and is over",
        r#"
        > submit f:grow open
        > group bad:2 after=nobody
        bad rejected E_DEPENDENCY: group 'bad' depends on group 99, which is not before it
        > group on:1 after=bad
        on[0] skipped because of bad[0]
        > append f 3 0<f[1] 2<f[0]
        f[0..1] rejected E_EDGE: it waits for f[1], which is not there before it
        f[2] skipped because of f[0]
        > explain f[0]
        failed: it was refused when it was appended
        > explain f[2]
        skipped: it never ran because of f[0], which failed
        > append f 2 first=7
        f[7..9] rejected E_APPEND: elements 7 .. were appended to group 'f', which has 3
        > counts f
        1 ready, 7 failed, 1 skipped
        > append f 1 last 0<f[0]
        f[9] skipped because of f[0]
        f has 10
        > append f 1
        f[10..11] rejected E_GROUP_CLOSED: group 'f' has 10 elements for good: nothing follows
        > group g:grow after=f
        > append g 1
        g[0] skipped because of f[0]
        > close
        g has 1
        "#,
    );
}

#[test]
fn nothing_waits_for_all_of_what_waits_for_it() {
    check(
        "nothing waits for all of what waits for it",
        r#"
        > submit f:grow open
        > append f 1
        > group all:1 after=f
        > group g:grow
        > append g 1 0~all[0]
        > append f 2 0~all[0] 1~g[0]
        f[1..2] rejected E_CYCLE: it waits for all[0], which waits for all of its own group
        f[2..3] rejected E_CYCLE: it waits for g[0], which waits for all of its own group
        all[0] skipped because of f[1]
        g[0] skipped because of f[1]
        "#,
    );
}

#[test]
fn nothing_of_a_paused_run_is_dispatched() {
    check(
        "nothing of a paused run is dispatched",
        r#"
        > submit f:grow open
        > join w1
        > pause
        > append f 2
        > explain f[0]
        ready: nothing of its run is dispatched: its client does not read its results
        > resume
        w1 <- f[0]#1
        > pause
        > ok f[0]
        f[0]#1 committed
        > resume
        w1 <- f[1]#1
        "#,
    );
}

#[test]
fn a_cancelled_open_run_is_closed_and_lets_go() {
    check(
        "a cancelled open run is closed and lets go",
        r#"
        > submit f:grow open
        > join w1
        > append f 3
        w1 <- f[0]#1
        > ok f[0] held=1
        f[0]#1 committed
        w1 <- f[1]#1
        > cancel f
        f has 3
        f[2] cancelled
        w1 cancel f[1]#1
        > append f 1
        f[3..4] rejected E_CANCELLED: group 'f' was cancelled
        > cancel run
        w1 may drop f[0]
        f[0] released
        f[2] released
        > fail f[1] cancelled
        f[1]#1 ends Cancelled, for good
        f[1] cancelled
        f[1] released
        run r Cancelled
        "#,
    );
}

#[test]
fn what_reads_results_goes_before_what_makes_more_of_them() {
    check(
        "what reads results goes before what makes more of them",
        r#"
        > submit f:grow; g:grow open
        > join w1
        > append f 8
        w1 <- f[0]#1
        > append g 5 0<f[0] 1<f[0] 2<f[0] 3<f[0] 4<f[0]
        > ok f[0] held=1 wall=1
        f[0]#1 committed
        w1 <- g[0]#1
        > ok g[0] wall=1
        g[0]#1 committed
        w1 <- g[1]#1
        w1 <- g[2]#1
        > ok g[1] wall=1
        g[1]#1 committed
        w1 <- g[3]#1
        "#,
    );
}
