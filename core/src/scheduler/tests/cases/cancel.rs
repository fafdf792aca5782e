//! Runs, groups and tasks that are cancelled.

use super::super::world::check;

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
