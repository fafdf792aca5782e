//! What is refused, what is known already, and what nobody may send.

use super::super::world::check;

#[test]
fn runs_that_are_refused_change_nothing() {
    check(
        "runs that are refused change nothing",
        r#"
        > submit a:1 after=b
        refused E_DEPENDENCY: group 'a' depends on group 99, which is not before it
        > submit a:2 ; b:3 each=a
        refused E_PROJECTION: the dependency of group 'b' on 'a' does not fit: downstream axes have 2 elements but the group has 3
        > submit a:2 ; b:3 edges=a:2-0
        refused E_EDGE: the edge 2 -> 0 of group 'b' leaves 'a' (2) or itself (3)
        > submit a:1 ; a:1
        refused E_GROUP_EXISTS: two groups are named 'a'
        > submit a:1 weight=0
        refused E_WEIGHT: the run's weight is 0 and must be at least 1
        > submit :1
        refused E_NAME: the group name "" of group 0 is empty
        > submit a:200000000
        refused E_TOO_MANY_TASKS: the run has 200000000 tasks and the limit is 134217728
        > submit a:1 takes=licence:3 totals=licence:2
        refused E_NEVER_FITS: a task of group 'a' takes 3 of 'licence' and the whole run has 2
        > submit a:0 ; b:0 from=a
        refused E_LENGTH: group 'b' takes its length from 'a', which has no element known to exist
        > submit a:1 ; b:0 from=a ; c:1 each=b
        refused E_DEPENDENCY: group 'c' depends on 'b' element by element and one of them is open: only a whole dependency is possible
        > submit a:1
        > submit b:1 run=r
        refused E_RUN_EXISTS: there is a run 'r' already
        "#,
    );
}

#[test]
fn the_same_key_is_the_same_run_also_after_its_end_until_it_is_forgotten() {
    check(
        "the same key is the same run, also after its end, until it is forgotten",
        r#"
        > submit a:1 key=7
        > submit a:1 key=7
        known
        > forget
        > join w1
        w1 <- a[0]#1
        > ok a[0]
        a[0]#1 committed
        run r Succeeded
        > submit a:1 key=7
        known
        > forget
        > submit a:1 key=7
        w1 <- a[0]#1
        "#,
    );
}

#[test]
fn messages_nobody_may_send_change_nothing() {
    check(
        "messages nobody may send change nothing",
        r#"
        > submit a:1
        > join w1
        w1 <- a[0]#1
        > start a[0]
        a[0]#1 starts on w1
        > start a[0]
        > keep w1 a[0]
        > back w1 a[0]
        > ok a[0]
        a[0]#1 committed
        run r Succeeded
        > ok a[0]
        superseded
        > start a[0]
        w1 cancel a[0]#1
        > back w1 a[0]
        > attach w1 data
        > reset w1 data
        w1 is Suspect
        > reset w1 control
        > die w1
        w1 is Lost
        w1 close: the worker is dead: killed by signal 9
        > die w1
        > draining w1
        > left w1
        > frame w1
        > attach w1 data
        "#,
    );
}
