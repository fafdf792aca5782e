//! Large things stay small: a million elements, the largest run there may be, a chain of ten thousand groups.

use super::super::{Config, Scheduler, TaskState};
use crate::ids::*;
use crate::messages::*;
use crate::resources::Resources;
use crate::spec::*;

fn group(name: String, length: u32, dependencies: Vec<Dependency>) -> GroupSpec {
    GroupSpec {
        name,
        component: "c".to_owned(),
        length: Length::Fixed(length),
        dependencies,
        priority: 0,
        max_parallel: 0,
        always: false,
        policy: Policy::default(),
        resources: Resources { milli_cpus: 1_000, ..Resources::default() },
    }
}

fn run(groups: Vec<GroupSpec>, open: bool) -> RunSpec {
    RunSpec {
        name: "r".to_owned(),
        owner: String::new(),
        weight: 1,
        client_key: [0; 16],
        max_failures: 0,
        open,
        keeps: false,
        totals: Vec::new(),
        groups,
    }
}

fn started(groups: Vec<GroupSpec>, slots: u64) -> (Scheduler, Outbox) {
    let mut machine = Scheduler::new(Config::standard(), 0);
    let mut out = Vec::new();
    machine.step(0, Input::Submit(Box::new(run(groups, false))), &mut out);
    join(&mut machine, SessionId(1), slots, &mut out);
    (machine, out)
}

/// A worker comes, with room for so many tasks.
fn join(machine: &mut Scheduler, session: SessionId, slots: u64, out: &mut Outbox) {
    let capacity = Resources { milli_cpus: slots * 1_000, memory_bytes: u64::MAX, ..Resources::default() };
    let name = format!("w{}", session.0);
    let worker = WorkerSpec { name, pool: "p".to_owned(), components: vec!["*".to_owned()], capacity };
    machine.step(0, Input::Join { session, worker }, out);
    machine.step(0, Input::Attach { session, connection: Connection::Data }, out);
}

/// What a worker says of a task that took so many microseconds.
fn finish(class: OutcomeClass, wall: Micros) -> EventKind {
    EventKind::Finished(Finish {
        class,
        exit_code: None,
        signalled: false,
        wall,
        cpu: 1,
        peak_memory_bytes: 0,
        length: None,
        token: 0,
        result: Stored::None,
        missing: None,
    })
}

/// Ends what was dispatched, successfully or not, until `steps` batches were taken or nothing is left.
fn work(machine: &mut Scheduler, mut out: Outbox, steps: usize, class: impl Fn(TaskRef) -> OutcomeClass) -> Option<RunEnd> {
    for step in 0..steps {
        let mut events = Vec::new();
        for output in out.drain(..) {
            match output {
                Output::Dispatch { dispatch, .. } => {
                    let kind = finish(class(dispatch.task), SECOND);
                    events.push(WorkerEvent { handle: dispatch.handle, attempt: dispatch.attempt, kind });
                }
                Output::RunEnded { end, .. } => return Some(end),
                _ => {}
            }
        }
        machine.step(step as u64, Input::Events { session: SessionId(1), events }, &mut out);
    }
    None
}

#[test]
fn the_largest_run_is_a_few_ranges_before_and_after_it_ran() {
    let length = TASKS_PER_RUN_MAX as u32;
    let (mut machine, out) = started(vec![group("a".to_owned(), length, Vec::new())], 512);
    let end = work(&mut machine, out, 100, |_| OutcomeClass::Succeeded);
    assert_eq!(end, None);
    let id = GroupId(1);
    let view = machine.group(id).unwrap();
    assert_eq!((view.succeeded, view.assigned), (100 * 512, 512));
    assert_eq!(view.ready, length - 101 * 512);
    let group = machine.group_of(id);
    assert_eq!(group.succeeded.range_count(), 1);
    assert_eq!(group.queues[0].ready.range_count(), 1);
    assert!(group.memos.is_empty(), "a task that needed nothing of its own has a memo");
    assert_eq!(machine.rows.slots(), 512, "rows are used again");
    assert_eq!(machine.task_state(TaskRef { group: id, index: length - 1 }), Some(TaskState::Ready));
    assert_eq!(machine.committed_attempt(TaskRef { group: id, index: 7 }), Some(1));
    assert_eq!(machine.tasks_in(id, TaskState::Ready, length - 2, 10), [length - 2, length - 1]);
    let explained = machine.explain(TaskRef { group: id, index: length - 1 }, 100).unwrap();
    assert!(explained.sentence.contains("0 of 512 cpus are free"), "{}", explained.sentence);
}

#[test]
fn a_million_elements_run_to_the_end_and_leave_two_ranges() {
    let whole = |group| vec![Dependency { group, kind: DependencyKind::Whole, data: false }];
    let each = vec![Dependency {
        group: 0,
        kind: DependencyKind::Projection(vec![Axis { length: 1_000_000, upstream_stride: 1, downstream_stride: 1 }]),
        data: false,
    }];
    let groups = vec![
        group("a".to_owned(), 1_000_000, Vec::new()),
        group("b".to_owned(), 1_000_000, each),
        group("c".to_owned(), 1, whole(1)),
    ];
    let (mut machine, out) = started(groups, 4_096);
    let end = work(&mut machine, out, 1_000, |_| OutcomeClass::Succeeded);
    assert_eq!(end, Some(RunEnd::Succeeded));
    assert_eq!(machine.group_of(GroupId(2)).succeeded.range_count(), 1);
    machine.check().unwrap();
}

#[test]
fn a_chain_of_ten_thousand_groups_is_a_loop() {
    let chain = |fails: bool| {
        let groups = (0..GROUPS_PER_RUN_MAX)
            .map(|at| {
                let before = at.checked_sub(1).map(|group| Dependency { group, kind: DependencyKind::Whole, data: false });
                group(format!("g{at}"), 1, before.into_iter().collect())
            })
            .collect();
        let (mut machine, out) = started(groups, 1);
        let class = if fails { OutcomeClass::AppError } else { OutcomeClass::Succeeded };
        work(&mut machine, out, GROUPS_PER_RUN_MAX + 1, |_| class)
    };
    assert_eq!(chain(true), Some(RunEnd::Failed));
    assert_eq!(chain(false), Some(RunEnd::Succeeded));
}

#[test]
fn empty_groups_end_a_chain_in_one_step() {
    let groups = (0..GROUPS_PER_RUN_MAX)
        .map(|at| {
            let before = at.checked_sub(1).map(|group| Dependency { group, kind: DependencyKind::Whole, data: false });
            group(format!("g{at}"), 0, before.into_iter().collect())
        })
        .collect();
    let (_, out) = started(groups, 1);
    assert!(out.iter().any(|output| matches!(output, Output::RunEnded { end: RunEnd::Succeeded, .. })));
}

#[test]
fn all_into_one_costs_one_counter() {
    let into_one = DependencyKind::Projection(vec![Axis { length: 1_000_000, upstream_stride: 1, downstream_stride: 0 }]);
    let out_of_one = DependencyKind::Projection(vec![Axis { length: 1_000_000, upstream_stride: 0, downstream_stride: 1 }]);
    let groups = vec![
        group("many".to_owned(), 1_000_000, Vec::new()),
        group("one".to_owned(), 1, vec![Dependency { group: 0, kind: into_one, data: false }]),
        group("again".to_owned(), 1_000_000, vec![Dependency { group: 1, kind: out_of_one, data: false }]),
    ];
    let (mut machine, out) = started(groups, 4_096);
    assert_eq!(work(&mut machine, out, 1_000, |_| OutcomeClass::Succeeded), Some(RunEnd::Succeeded));
}

#[test]
fn ended_runs_are_forgotten_and_leave_nothing() {
    let mut machine = Scheduler::new(Config { runs_kept: 2, ..Config::standard() }, 0);
    let mut out = Vec::new();
    for number in 0..10u8 {
        let groups = vec![group(format!("g{number}"), 3, Vec::new())];
        let spec = RunSpec { name: format!("r{number}"), client_key: [number; 16], ..run(groups, false) };
        machine.step(0, Input::Submit(Box::new(spec)), &mut out);
        machine.step(0, Input::Cancel { run: RunId(u32::from(number) + 1), group: None, index: None }, &mut out);
        machine.check().unwrap();
    }
    assert_eq!(machine.runs().map(|run| run.0).collect::<Vec<_>>(), [9, 10]);
    assert_eq!((machine.groups.len(), machine.classes.len(), machine.client_keys.len()), (2, 0, 2));
    assert!(machine.explain(TaskRef { group: GroupId(1), index: 0 }, 0).is_none());
    assert!(machine.explain(TaskRef { group: GroupId(10), index: 0 }, 0).is_some());
    machine.step(0, Input::Forget { run: RunId(9) }, &mut out);
    machine.step(0, Input::Forget { run: RunId(10) }, &mut out);
    assert!(machine.shape(ShapeId(1)).is_none(), "a shape without users is known");
}

/// Sends so many more tasks to 500 workers of one slot each, and says where each went.
fn appended(machine: &mut Scheduler, first: u32, count: u32, out: &mut Outbox) -> Vec<(SessionId, Dispatch)> {
    let append = Input::Append { run: RunId(1), group: GroupId(1), first, count, edges: Vec::new(), last: false };
    machine.step(SECOND, append, out);
    let sent = |output| match output {
        Output::Dispatch { session, dispatch } => Some((session, dispatch)),
        _ => None,
    };
    out.drain(..).filter_map(sent).collect()
}

#[test]
fn of_hundreds_of_workers_that_may_be_sent_more_the_idle_one_is_found() {
    let (workers, mut out) = (500, Outbox::new());
    let mut machine = Scheduler::new(Config::standard(), 0);
    for session in 1..=workers {
        join(&mut machine, SessionId(session), 1, &mut out);
    }
    let growing = GroupSpec { length: Length::Growing, ..group("a".to_owned(), 0, Vec::new()) };
    machine.step(0, Input::Submit(Box::new(run(vec![growing], true))), &mut out);
    out.clear();
    // Short tasks, and a millisecond from dispatch to start: two more may be sent ahead to each.
    let sent = appended(&mut machine, 0, workers as u32, &mut out);
    assert_eq!(sent.len() as u64, workers);
    for (session, dispatch) in sent {
        let event = |kind| WorkerEvent { handle: dispatch.handle, attempt: dispatch.attempt, kind };
        machine.step(SECOND + MILLISECOND, Input::Events { session, events: vec![event(EventKind::Started)] }, &mut out);
        let events = vec![event(finish(OutcomeClass::Succeeded, MILLISECOND))];
        machine.step(SECOND + 2 * MILLISECOND, Input::Events { session, events }, &mut out);
    }
    out.clear();
    let busy = appended(&mut machine, workers as u32, workers as u32 - 1, &mut out);
    let idle: Vec<u64> = (1..=workers).filter(|session| busy.iter().all(|(sent, _)| sent.0 != *session)).collect();
    assert_eq!(idle.len(), 1, "each but one has got one");
    let last = appended(&mut machine, 2 * workers as u32 - 1, 1, &mut out);
    assert_eq!(last.iter().map(|(session, _)| session.0).collect::<Vec<_>>(), idle);
    machine.check().unwrap();
}
