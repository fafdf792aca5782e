//! Who waits for whom, and how far a failure reaches.

use super::super::world::check;

#[test]
fn element_by_element_all_into_one_explicit_edges() {
    check(
        "element by element, all into one, explicit edges",
        r#"
        > submit a:4 ; b:4 each=a ; c:2 into=b ; d:2 edges=c:1-0
        > join w1 cpus=8
        w1 <- a[0]#1
        w1 <- a[1]#1
        w1 <- a[2]#1
        w1 <- a[3]#1
        w1 <- d[1]#1
        > explain c[1]
        waiting: it waits for b[2], which is waiting, and for 1 more of the 2 elements it needs
        > ok a[2]
        a[2]#1 committed
        w1 <- b[2]#1
        > ok b[2]
        b[2]#1 committed
        > ok a[3]
        a[3]#1 committed
        w1 <- b[3]#1
        > ok b[3]
        b[3]#1 committed
        w1 <- c[1]#1
        > explain d[0]
        waiting: it waits for c[1], which is assigned
        > ok c[1]
        c[1]#1 committed
        w1 <- d[0]#1
        > counts c
        1 waiting, 1 succeeded
        "#,
    );
}

#[test]
fn a_failure_reaches_exactly_what_needs_it() {
    check(
        "a failure reaches exactly what needs it",
        r#"
        > submit a:4 ; b:4 each=a ; c:2 into=b ; d:1 after=c always ; e:1 edges=c:1-0
        > join w1 cpus=4
        w1 <- a[0]#1
        w1 <- a[1]#1
        w1 <- a[2]#1
        w1 <- a[3]#1
        > fail a[0] error
        a[0]#1 ends AppError, for good
        a[0] failed after 1: AppError
        b[0] skipped because of a[0]
        c[0] skipped because of a[0]
        > ok a[1]
        a[1]#1 committed
        w1 <- b[1]#1
        > ok a[2]
        a[2]#1 committed
        w1 <- b[2]#1
        > ok a[3]
        a[3]#1 committed
        w1 <- b[3]#1
        > ok b[1]
        b[1]#1 committed
        > ok b[2]
        b[2]#1 committed
        > ok b[3]
        b[3]#1 committed
        w1 <- c[1]#1
        > ok c[1]
        c[1]#1 committed
        w1 <- d[0]#1
        w1 <- e[0]#1
        > counts c
        1 succeeded, 1 skipped
        "#,
    );
}
