//! Groups of open runs that are over and of no more use: when they are forgotten, and what comes late.

use super::super::super::{Config, Scheduler};
use super::super::world::check_keeping;
use crate::ids::{GroupId, RunId, TaskRef};
use crate::messages::{Input, Output, Stored};
use crate::spec::{Dependency, DependencyKind, GroupSpec, Length, RunSpec};

#[test]
fn a_group_is_forgotten_when_it_is_over_released_and_nothing_waits_for_it() {
    check_keeping(
        0,
        "a group is forgotten when it is over, released, and nothing waits for it",
        r#"
        > submit f:2 retries=1; g:1 reads=after:f; h:1 after=f prio=-1 open
        > join w1 cpus=4
        w1 <- f[0]#1
        w1 <- f[1]#1
        > fail f[0] error
        f[0]#1 ends AppError, again
        w1 <- f[0]#2
        > ok f[0] held=1
        f[0]#2 committed
        > ok f[1]
        f[1]#1 committed
        w1 <- g[0]#1
        w1 <- h[0]#1
        > release f 0 2
        > ok g[0]
        g[0]#1 committed
        w1 may drop f[0]
        f[0..2] released
        > forgotten
        0 groups: 0 succeeded, 0 failed, 0 skipped, 0 cancelled, 0 retried
        > release g 0 1
        g[0] released
        g forgotten
        > ok h[0]
        h[0]#1 committed
        f forgotten
        > forgotten
        2 groups: 3 succeeded, 0 failed, 0 skipped, 0 cancelled, 1 retried
        > explain f[0]
        nothing
        > group i:1 after=f
        i rejected E_RELEASED: group 'i' depends on group 0 of its run, which is over, was let go of and is forgotten, or never was
        > group j:1 reads=after:h
        w1 <- j[0]#1
        > ok j[0]
        j[0]#1 committed
        > close
        h[0] released
        j[0] released
        run r Failed
        "#,
    );
}

#[test]
fn what_failed_in_a_forgotten_group_is_not_forgotten_of_the_run() {
    check_keeping(
        0,
        "what failed in a forgotten group is not forgotten of the run",
        r#"
        > submit f:1; g:1 after=f open
        > join w1 cpus=4
        w1 <- f[0]#1
        > release g 0 1
        > fail f[0] error
        f[0]#1 ends AppError, for good
        f[0] failed after 1: AppError
        g[0] skipped because of f[0]
        g[0] released
        g forgotten
        > release f 0 1
        f[0] released
        f forgotten
        > close
        run r Failed
        "#,
    );
}

#[test]
fn the_last_of_them_are_kept_to_be_explained() {
    check_keeping(
        1,
        "the last of them are kept to be explained",
        r#"
        > submit f:1; g:1 prio=-1 open
        > join w1 cpus=4
        w1 <- f[0]#1
        w1 <- g[0]#1
        > release f 0 1
        > release g 0 1
        > ok f[0]
        f[0]#1 committed
        f[0] released
        > explain f[0]
        succeeded: attempt 1 succeeded and its result is committed
        > ok g[0]
        g[0]#1 committed
        g[0] released
        f forgotten
        > explain g[0]
        succeeded: attempt 1 succeeded and its result is committed
        > close
        run r Succeeded
        "#,
    );
}

#[test]
fn an_element_that_only_followed_a_forgotten_task_still_waits_for_others() {
    check_keeping(
        0,
        "an element that only followed a forgotten task still waits for others",
        r#"
        > submit f:1; g:grow; slow:1 open
        > join w1 cpus=4
        w1 <- f[0]#1
        w1 <- slow[0]#1
        > append g 1 0~f[0] 0<slow[0]
        > release f 0 1
        > ok f[0] held=1
        f[0]#1 committed
        w1 may drop f[0]
        f[0] released
        f forgotten
        > explain g[0]
        waiting: it waits for slow[0], which is assigned
        > ok slow[0]
        slow[0]#1 committed
        w1 <- g[0]#1
        > ok g[0]
        g[0]#1 committed
        > append g 1 0~f[0]
        g[1..2] rejected E_EDGE: it waits for an element of group 1, which its run has not, or which is over, was let go of and is forgotten
        > close
        g has 2
        g[0..2] released
        slow[0] released
        run r Failed
        "#,
    );
}

#[test]
fn one_without_elements_is_forgotten_when_the_client_lets_go_of_it() {
    check_keeping(
        0,
        "one without elements is forgotten when the client lets go of it",
        r#"
        > submit f:grow; g:0 open
        > append f 0 last
        f has 0
        > group h:1 after=f
        > release f 0 1
        > release g 0 1
        g forgotten
        > join w1 cpus=4
        w1 <- h[0]#1
        > ok h[0]
        h[0]#1 committed
        f forgotten
        > close
        h[0] released
        run r Succeeded
        "#,
    );
}

/// What a client, or a worker whose message was under way, may still say of a group finds nothing.
#[test]
fn late_words_about_a_forgotten_group_change_nothing() {
    let mut machine = Scheduler::new(Config { groups_kept: 0, ..Config::standard() }, 0);
    let run = RunId(1);
    let group = |length| GroupSpec {
        name: "f".to_owned(),
        component: "c".to_owned(),
        length,
        dependencies: Vec::new(),
        priority: 0,
        max_parallel: 0,
        always: false,
        policy: Default::default(),
        resources: Default::default(),
    };
    let spec = RunSpec {
        name: "r".to_owned(),
        owner: String::new(),
        weight: 1,
        client_key: [1; 16],
        max_failures: 0,
        open: true,
        keeps: false,
        totals: Vec::new(),
        groups: vec![group(Length::Growing)],
    };
    let mut out = Vec::new();
    let forgotten = GroupId(1);
    let task = TaskRef { group: forgotten, index: 0 };
    machine.step(1, Input::Submit(Box::new(spec)), &mut out);
    machine.step(2, Input::Append { run, group: forgotten, first: 0, count: 0, edges: Vec::new(), last: true }, &mut out);
    machine.step(3, Input::Release { group: forgotten, first: 0, count: 1 }, &mut out);
    assert_eq!(out.last(), Some(&Output::GroupForgotten { run, group: forgotten }));
    let dependency = Dependency { group: 0, kind: DependencyKind::One(0), data: true };
    let late = [
        Input::Release { group: forgotten, first: 0, count: u32::MAX },
        Input::Cancel { run, group: Some(forgotten), index: None },
        Input::Cancel { run, group: Some(forgotten), index: Some(0) },
        Input::ObjectSecured { task, attempt: 1 },
        Input::Append { run, group: forgotten, first: 0, count: 1, edges: Vec::new(), last: false },
        Input::AddGroup {
            run,
            ordinal: 1,
            spec: Box::new(GroupSpec { dependencies: vec![dependency], ..group(Length::Fixed(1)) }),
        },
        Input::Tick,
    ];
    let mut codes = Vec::new();
    for (now, input) in (4..).zip(late) {
        out.clear();
        machine.step(now, input, &mut out);
        machine.check().unwrap();
        codes.extend(out.iter().filter_map(|output| match output {
            Output::Rejected { code, .. } => Some(*code),
            _ => None,
        }));
    }
    assert_eq!(codes, ["E_GROUP", "E_RELEASED"]);
    assert_eq!((machine.group(forgotten), machine.task_state(task), machine.stored(task)), (None, None, Stored::None));
    let view = machine.run(run).unwrap();
    assert_eq!((view.groups, view.forgotten.groups), (2, 1));
}

/// A run that goes on for long holds what is under way and a few groups more.
#[test]
fn a_run_of_many_groups_holds_as_much_as_one_of_few() {
    let kept = Config::standard().groups_kept;
    let mut machine = Scheduler::new(Config::standard(), 0);
    let group = |ordinal: u32| GroupSpec {
        name: format!("f-{ordinal}"),
        component: "c".to_owned(),
        length: Length::Growing,
        dependencies: Vec::new(),
        priority: 0,
        max_parallel: 0,
        always: false,
        policy: Default::default(),
        resources: Default::default(),
    };
    let spec = RunSpec {
        name: "r".to_owned(),
        owner: String::new(),
        weight: 1,
        client_key: [1; 16],
        max_failures: 0,
        open: true,
        keeps: false,
        totals: Vec::new(),
        groups: Vec::new(),
    };
    let (run, mut out) = (RunId(1), Vec::new());
    machine.step(1, Input::Submit(Box::new(spec)), &mut out);
    let mut shapes = std::collections::BTreeSet::new();
    for ordinal in 0..4 * kept as u32 {
        out.clear();
        machine.step(2, Input::AddGroup { run, ordinal, spec: Box::new(group(ordinal)) }, &mut out);
        let Some(Output::GroupAdded { group, .. }) = out.first() else { panic!("{out:?}") };
        let group = *group;
        shapes.insert(machine.groups[&group].shape);
        machine.step(2, Input::Append { run, group, first: 0, count: 2, edges: Vec::new(), last: true }, &mut out);
        machine.step(2, Input::Cancel { run, group: Some(group), index: None }, &mut out);
        machine.step(2, Input::Release { group, first: 0, count: 2 }, &mut out);
        assert!(machine.run_groups(run).count() <= kept, "{} groups are known", machine.run_groups(run).count());
    }
    machine.check().unwrap();
    let view = machine.run(run).unwrap();
    assert_eq!(view.forgotten.cancelled, 2 * 3 * kept as u64);
    assert_eq!(shapes.len(), 1, "a shape keeps its number, which workers know");
    machine.step(3, Input::CloseRun { run }, &mut out);
    assert_eq!(machine.run(run).and_then(|run| run.end), Some(crate::messages::RunEnd::Cancelled));
    machine.step(3, Input::Forget { run }, &mut out);
    machine.check().unwrap();
    assert_eq!(machine.shapes.find(&Default::default()), None, "with the run its shapes are forgotten");
}
