//! Groups whose length another task says, and groups without elements.

use super::super::world::check;

#[test]
fn an_open_group_has_its_length_when_the_task_it_is_open_on_commits() {
    check(
        "an open group has its length when the task it is open on commits",
        r#"
        > submit a:1 ; b:0 from=a each=x
        refused E_DEPENDENCY: group 'b' depends on group 99, which is not before it
        > submit a:1 ; b:0 from=a ; c:1 after=b
        > explain b[0]
        waiting: 'b' is open: a[0], which is ready, says how many elements it has
        > join w1 cpus=2
        w1 <- a[0]#1
        > ok a[0] length=2
        a[0]#1 committed
        b has 2
        w1 <- b[0]#1
        w1 <- b[1]#1
        > ok b[0]
        b[0]#1 committed
        > explain c[0]
        waiting: it waits for all of 'b': 1 of 2 are over, 1 assigned
        > ok b[1]
        b[1]#1 committed
        w1 <- c[0]#1
        > ok c[0]
        c[0]#1 committed
        run r Succeeded
        "#,
    );
}

#[test]
fn an_open_group_without_a_length_is_skipped_and_so_is_what_needs_it() {
    check(
        "an open group without a length is skipped, and so is what needs it",
        r#"
        > submit a:1 ; b:0 from=a ; c:1 after=b ; d:1 after=b always
        > join w1
        w1 <- a[0]#1
        > ok a[0]
        a[0]#1 committed
        b skipped because of a[0]
        c[0] skipped because of a[0]
        w1 <- d[0]#1
        > explain b[0]
        skipped: 'b' never had an element because of a[0], which succeeded without saying a length that fits
        > explain c[0]
        skipped: it never ran because of a[0], which succeeded without saying a length that fits
        > ok d[0]
        d[0]#1 committed
        run r Failed
        "#,
    );
}

#[test]
fn an_open_group_of_length_zero_is_over_at_once() {
    check(
        "an open group of length zero is over at once",
        r#"
        > submit a:1 ; b:0 from=a ; c:1 after=b
        > join w1
        w1 <- a[0]#1
        > ok a[0] length=0
        a[0]#1 committed
        b has 0
        w1 <- c[0]#1
        > ok c[0]
        c[0]#1 committed
        run r Succeeded
        "#,
    );
}

#[test]
fn a_failure_reaches_an_open_group() {
    check(
        "a failure reaches an open group",
        r#"
        > submit a:1 ; b:0 from=a
        > join w1
        w1 <- a[0]#1
        > fail a[0] error
        a[0]#1 ends AppError, for good
        a[0] failed after 1: AppError
        b skipped because of a[0]
        run r Failed
        > explain b[0]
        skipped: 'b' never had an element because of a[0], which failed with app_error
        "#,
    );
}

#[test]
fn an_open_group_can_be_cancelled() {
    check(
        "an open group can be cancelled",
        r#"
        > submit a:1 ; b:0 from=a
        > cancel b
        b cancelled
        > explain b[0]
        cancelled: 'b' was cancelled before it had an element
        > join w1
        w1 <- a[0]#1
        > ok a[0] length=3
        a[0]#1 committed
        run r Cancelled
        "#,
    );
}

#[test]
fn groups_without_elements_are_over_at_once() {
    check(
        "groups without elements are over at once",
        r#"
        > submit a:0 ; b:1 after=a ; c:0 each=a
        > join w1
        w1 <- b[0]#1
        > ok b[0]
        b[0]#1 committed
        run r Succeeded
        > submit x:0 run=empty
        run empty Succeeded
        "#,
    );
}
