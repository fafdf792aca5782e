//! What the scheduler machine costs for one task: a group of a million no-op elements on two large workers.
//!
//! Figures are wall time divided by the number of tasks (`time: [62 ns …]` is 62 ns a task), but for `submit`, which costs the
//! same for any number.
//!
//! | benchmark | what is in it |
//! |---|---|
//! | `submit` | one submit of the whole group, nothing dispatched; time for all of it |
//! | `dispatch` | two workers with room for all of it attach: a million dispatches in one step |
//! | `complete` | a million ends in batches of 256, nothing left to dispatch |
//! | `steady` | all of it: two workers with 512 slots, starts and ends in batches of 128, dispatches in the same steps |
//! | `functions` | the same in an open run: ends without starts, results inline, let go of in ranges as they come |
//! | `append` | a million distinct elements with 1 to 3 random edges each, appended by 1,024, nothing dispatched |
//! | `dag` | the same, and all of it run: ends in batches of 128, results inline and read, let go of at the end of each batch |
//! | `objects` | a hundred thousand pairs: a result of 1 MiB that stays on its worker, and a task that reads it |
//! | `steal` | two workers, one of them with all the work sent ahead: the other asks for half, again and again |
#![allow(clippy::disallowed_types, clippy::unwrap_used, missing_docs, reason = "a benchmark reads the clock and is no library")]

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use scalable_core::ids::{GroupId, RunId, SessionId, TaskRef};
use scalable_core::messages::*;
use scalable_core::resources::Resources;
use scalable_core::scheduler::{Config, Scheduler};
use scalable_core::spec::*;
use std::collections::VecDeque;
use std::hint::black_box;
use std::time::{Duration, Instant};

const TASKS: u32 = 1_000_000;
const PAIRS: u32 = 100_000;

fn run() -> RunSpec {
    let group = GroupSpec {
        name: "noop".to_owned(),
        component: "default".to_owned(),
        length: Length::Fixed(TASKS),
        dependencies: Vec::new(),
        priority: 0,
        max_parallel: 0,
        always: false,
        policy: Policy::default(),
        resources: Resources { milli_cpus: 1_000, memory_bytes: 1 << 20, ..Resources::default() },
    };
    RunSpec {
        name: "run-bench".to_owned(),
        owner: "bench".to_owned(),
        weight: 1,
        client_key: [1; 16],
        max_failures: 0,
        open: false,
        keeps: false,
        totals: Vec::new(),
        groups: vec![group],
    }
}

/// An open run with one growing group.
fn opened() -> Scheduler {
    let mut spec = run();
    spec.open = true;
    spec.groups[0].length = Length::Growing;
    let config = Config { attempts_per_worker_max: u32::MAX, ..Config::standard() };
    let mut machine = Scheduler::new(config, 0);
    machine.step(0, Input::Submit(Box::new(spec)), &mut Vec::new());
    machine
}

/// Appends: none, or 1 to 3 edges to earlier elements for each.
fn appends(tasks: u32, edged: bool) -> Vec<Input> {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let group = GroupId(1);
    (0..tasks)
        .step_by(1024)
        .map(|first| {
            let count = (tasks - first).min(1024);
            let mut edges = Vec::new();
            for element in first..first + count {
                if edged && element > 0 {
                    for _ in 0..1 + next() % 3 {
                        let upstream = TaskRef { group, index: (next() % u64::from(element)) as u32 };
                        edges.push(Edge { element, upstream, data: true });
                    }
                }
            }
            Input::Append { run: RunId(1), group, first, count, edges, last: first + count == tasks }
        })
        .collect()
}

fn appended(mut machine: Scheduler, inputs: Vec<Input>) -> Scheduler {
    let mut out = Vec::new();
    for input in inputs {
        machine.step(1, input, &mut out);
    }
    assert!(out.iter().all(|output| matches!(output, Output::LengthKnown { .. })));
    machine
}

/// Runs all there is without starts; `result` says what each end brings. What has ended is let go of.
fn functions(mut machine: Scheduler, tasks: u32, result: impl Fn(TaskRef) -> Stored) -> Scheduler {
    let mut out = Vec::new();
    attach(&mut machine, 512, &mut out);
    let mut on_worker: [VecDeque<Dispatch>; 2] = Default::default();
    let (mut committed, mut now, mut turn) = (0, 10, 0);
    while committed < tasks {
        let (mut first, mut count, mut releases) = (0, 0, Vec::new());
        for output in out.drain(..) {
            match output {
                Output::Dispatch { session, dispatch } => on_worker[session.0 as usize - 1].push_back(dispatch),
                Output::Committed { task, .. } => {
                    committed += 1;
                    if count > 0 && task.index == first + count {
                        count += 1;
                    } else {
                        releases.push((task.group, first, count));
                        (first, count) = (task.index, 1);
                    }
                }
                _ => {}
            }
        }
        releases.push((GroupId(1), first, count));
        for (group, first, count) in releases {
            machine.step(now, Input::Release { group, first, count }, &mut out);
        }
        let queue = &mut on_worker[turn];
        let events: Vec<WorkerEvent> = queue.drain(..queue.len().min(128)).map(|dispatch| returned(&dispatch, &result)).collect();
        now += 100;
        machine.step(now, Input::Events { session: SessionId(turn as u64 + 1), events }, &mut out);
        turn = 1 - turn;
    }
    machine
}

fn returned(dispatch: &Dispatch, result: impl Fn(TaskRef) -> Stored) -> WorkerEvent {
    let mut event = finished(dispatch);
    if let EventKind::Finished(finish) = &mut event.kind {
        (finish.result, finish.wall) = (result(dispatch.task), 1_000);
    }
    event
}

/// A hundred thousand elements, and as many that read one of them each.
fn pairs() -> (Scheduler, Vec<Input>) {
    let group = GroupId(1);
    let batch = |first: u32| {
        let edges =
            (0..512).map(|at| Edge { element: first + 512 + at, upstream: TaskRef { group, index: first + at }, data: true });
        Input::Append { run: RunId(1), group, first, count: 1024, edges: edges.collect(), last: false }
    };
    (opened(), (0..2 * PAIRS).step_by(1024).map(batch).collect())
}

/// All the work is on the first worker; the second asks for half of it, gets it, and so on until both have their share.
fn steal(mut machine: Scheduler) -> u32 {
    let mut out = Vec::new();
    attach(&mut machine, 1, &mut out);
    let mut on_worker: [VecDeque<Dispatch>; 2] = Default::default();
    let (mut committed, mut stolen, mut now) = (0, 0, 10);
    while committed < 100_000 {
        let mut replies = Vec::new();
        for output in out.drain(..) {
            match output {
                Output::Dispatch { session, dispatch } => on_worker[session.0 as usize - 1].push_back(dispatch),
                Output::Committed { .. } => committed += 1,
                Output::Retract { session, handles } => {
                    let queue = &mut on_worker[session.0 as usize - 1];
                    queue.retain(|dispatch| !handles.contains(&dispatch.handle));
                    stolen += handles.len() as u32;
                    replies.push(Input::RetractReply { session, given_back: handles, kept: Vec::new() });
                }
                _ => {}
            }
        }
        for reply in replies {
            machine.step(now, reply, &mut out);
        }
        // The second worker is a hundred times as fast as the first.
        for (at, most) in [(0usize, 1), (1, 100)] {
            let queue = &mut on_worker[at];
            let events = queue.drain(..queue.len().min(most)).map(|dispatch| returned(&dispatch, |_| Stored::None)).collect();
            now += 100;
            machine.step(now, Input::Events { session: SessionId(at as u64 + 1), events }, &mut out);
        }
    }
    stolen
}

fn submitted() -> Scheduler {
    let config = Config { attempts_per_worker_max: u32::MAX, ..Config::standard() };
    let mut machine = Scheduler::new(config, 0);
    machine.step(0, Input::Submit(Box::new(run())), &mut Vec::new());
    machine
}

fn attach(machine: &mut Scheduler, slots: u64, out: &mut Outbox) {
    for number in 1..=2 {
        let session = SessionId(number);
        let capacity = Resources { milli_cpus: slots * 1_000, memory_bytes: u64::MAX, ..Resources::default() };
        let worker = WorkerSpec { name: format!("w{number}"), pool: "p".to_owned(), components: vec!["*".to_owned()], capacity };
        machine.step(1, Input::Join { session, worker }, out);
        machine.step(1, Input::Attach { session, connection: Connection::Data }, out);
    }
}

fn finished(dispatch: &Dispatch) -> WorkerEvent {
    let finish = Finish {
        class: OutcomeClass::Succeeded,
        exit_code: Some(0),
        signalled: false,
        wall: 300_000,
        cpu: 100,
        peak_memory_bytes: 1 << 20,
        length: None,
        token: 0,
        result: Stored::None,
        missing: None,
    };
    WorkerEvent { handle: dispatch.handle, attempt: dispatch.attempt, kind: EventKind::Finished(finish) }
}

fn started(dispatch: &Dispatch) -> WorkerEvent {
    WorkerEvent { handle: dispatch.handle, attempt: dispatch.attempt, kind: EventKind::Started }
}

/// Everything dispatched, and the ends of all of it as the two workers would report them.
fn all_dispatched() -> (Scheduler, Vec<(SessionId, Vec<WorkerEvent>)>) {
    let mut machine = submitted();
    let mut out = Vec::new();
    attach(&mut machine, u64::from(TASKS), &mut out);
    let mut of_worker = [Vec::new(), Vec::new()];
    for output in &out {
        if let Output::Dispatch { session, dispatch } = output {
            of_worker[session.0 as usize - 1].push(finished(dispatch));
        }
    }
    let [one, two] = of_worker.map(|events| events.chunks(256).map(<[WorkerEvent]>::to_vec).collect::<Vec<_>>());
    let mut batches = Vec::new();
    let mut two = two.into_iter();
    for batch in one {
        batches.push((SessionId(1), batch));
        batches.extend(two.next().map(|batch| (SessionId(2), batch)));
    }
    batches.extend(two.map(|batch| (SessionId(2), batch)));
    (machine, batches)
}

fn steady(mut machine: Scheduler) -> u32 {
    let mut out = Vec::new();
    attach(&mut machine, 512, &mut out);
    let mut on_worker: [VecDeque<Dispatch>; 2] = Default::default();
    let (mut committed, mut now, mut turn) = (0, 10, 0);
    loop {
        for output in out.drain(..) {
            match output {
                Output::Dispatch { session, dispatch } => on_worker[session.0 as usize - 1].push_back(dispatch),
                Output::Committed { .. } => committed += 1,
                _ => {}
            }
        }
        if committed == TASKS {
            return committed;
        }
        let queue = &mut on_worker[turn];
        let batch: Vec<Dispatch> = queue.drain(..queue.len().min(128)).collect();
        let mut events: Vec<WorkerEvent> = batch.iter().map(started).collect();
        events.extend(batch.iter().map(finished));
        now += 100;
        machine.step(now, Input::Events { session: SessionId(turn as u64 + 1), events }, &mut out);
        turn = 1 - turn;
    }
}

/// Times `routine` alone and divides by the number of tasks.
fn per_task<T, R>(criterion: &mut Criterion, name: &str, tasks: u32, setup: impl Fn() -> T, routine: impl Fn(T) -> R) {
    let mut group = criterion.benchmark_group("core");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).measurement_time(Duration::from_secs(4));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let mut total = Duration::ZERO;
            for _ in 0..iterations {
                let prepared = setup();
                let start = Instant::now();
                let made = black_box(routine(prepared));
                total += start.elapsed();
                drop(made);
            }
            total / tasks
        });
    });
    group.finish();
}

fn benches(criterion: &mut Criterion) {
    per_task(criterion, "submit", 1, || (), |()| submitted());
    per_task(criterion, "dispatch", TASKS, submitted, |mut machine| {
        let mut out = Vec::with_capacity(TASKS as usize + 8);
        attach(&mut machine, u64::from(TASKS), &mut out);
        (machine, out)
    });
    per_task(criterion, "complete", TASKS, all_dispatched, |(mut machine, batches)| {
        let mut out = Vec::with_capacity(1024);
        for (session, events) in batches {
            out.clear();
            machine.step(2, Input::Events { session, events }, &mut out);
        }
        assert!(out.iter().any(|output| matches!(output, Output::RunEnded { .. })));
        machine
    });
    per_task(criterion, "steady", TASKS, submitted, steady);
    let inline = |_| Stored::Inline(8);
    let plain = || appended(opened(), appends(TASKS, false));
    per_task(criterion, "functions", TASKS, plain, |machine| functions(machine, TASKS, inline));
    let edged = || (opened(), appends(TASKS, true));
    per_task(criterion, "append", TASKS, edged, |(machine, inputs)| appended(machine, inputs));
    per_task(criterion, "dag", TASKS, edged, |(machine, inputs)| functions(appended(machine, inputs), TASKS, inline));
    let of_pair = |task: TaskRef| if task.index % 1024 < 512 { Stored::Held(1 << 20) } else { Stored::Inline(8) };
    let all = PAIRS * 2 / 1024 * 1024;
    per_task(criterion, "objects", all, pairs, |(machine, inputs)| functions(appended(machine, inputs), all, of_pair));
    per_task(criterion, "steal", 100_000, submitted, steal);
}

criterion_group!(core, benches);
criterion_main!(core);
