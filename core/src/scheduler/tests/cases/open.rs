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
        waiting: it waits for f[0], which is assigned
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
