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
#![allow(clippy::disallowed_types, clippy::unwrap_used, missing_docs, reason = "a benchmark reads the clock and is no library")]

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use scalable_core::ids::SessionId;
use scalable_core::messages::*;
use scalable_core::resources::Resources;
use scalable_core::scheduler::{Config, Scheduler};
use scalable_core::spec::*;
use std::collections::VecDeque;
use std::hint::black_box;
use std::time::{Duration, Instant};

const TASKS: u32 = 1_000_000;

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
        totals: Vec::new(),
        groups: vec![group],
    }
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
}

criterion_group!(core, benches);
criterion_main!(core);
