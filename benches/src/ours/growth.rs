//! Whether the scheduler machine's cost for a task stays the same when there are more tasks or more workers: the machine alone,
//! driven as a scheduler's process drives it, with workers that end every task at once.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use scalable_core::ids::{GroupId, Handle, RunId, SessionId, TaskRef};
use scalable_core::messages::{
    Connection, Dispatch, Edge, EventKind, Finish, Input, Outbox, OutcomeClass, Output, Stored, WorkerEvent, WorkerSpec,
};
use scalable_core::resources::Resources;
use scalable_core::scheduler::{Config, Scheduler};
use scalable_core::spec::{GroupSpec, Length, Policy, RunSpec};

use super::functions::Random;
use crate::table::{Measure, Sample, Scale};

/// The only group.
const GROUP: GroupId = GroupId(1);
const RUN: RunId = RunId(1);
/// Elements that a client appends at once.
const APPENDED: u32 = 4096;

/// Which tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tasks {
    /// One array.
    Array,
    /// Appended one by one, each after one to three earlier ones.
    Distinct,
}

/// How the simulated workers look.
#[derive(Clone, Copy, Debug)]
struct Fleet {
    workers: u32,
    slots: u32,
}

/// Few workers that take much, as in the rows with real processes.
const TWO: Fleet = Fleet { workers: 2, slots: 512 };

fn run(tasks: Tasks, count: u32) -> RunSpec {
    let group = GroupSpec {
        name: "noop".to_owned(),
        component: "default".to_owned(),
        length: if tasks == Tasks::Array { Length::Fixed(count) } else { Length::Growing },
        dependencies: Vec::new(),
        priority: 0,
        max_parallel: 0,
        always: false,
        policy: Policy::default(),
        resources: Resources { milli_cpus: 1_000, ..Resources::default() },
    };
    RunSpec {
        name: "run-growth".to_owned(),
        owner: "bench".to_owned(),
        weight: 1,
        client_key: [1; 16],
        max_failures: 0,
        open: tasks == Tasks::Distinct,
        keeps: false,
        totals: Vec::new(),
        groups: vec![group],
    }
}

/// Everything a client says of the tasks.
fn inputs(tasks: Tasks, count: u32) -> Vec<Input> {
    let mut inputs = vec![Input::Submit(Box::new(run(tasks, count)))];
    if tasks == Tasks::Array {
        return inputs;
    }
    let mut random = Random::new();
    for first in (0..count).step_by(APPENDED as usize) {
        let appended = APPENDED.min(count - first);
        let mut edges = Vec::new();
        for index in first.max(1)..first + appended {
            for _ in 0..1 + random.below(3) {
                let upstream = TaskRef { group: GROUP, index: random.below(u64::from(index)) as u32 };
                edges.push(Edge { element: index, upstream, data: false });
            }
        }
        let last = first + appended == count;
        inputs.push(Input::Append { run: RUN, group: GROUP, first, count: appended, edges, last });
    }
    inputs.push(Input::CloseRun { run: RUN });
    inputs
}

fn events(batch: &[Dispatch], result: Stored) -> Vec<WorkerEvent> {
    let of = |dispatch: &Dispatch, kind| WorkerEvent { handle: dispatch.handle, attempt: dispatch.attempt, kind };
    let finish = Finish {
        class: OutcomeClass::Succeeded,
        exit_code: None,
        signalled: false,
        wall: 1,
        cpu: 1,
        peak_memory_bytes: 0,
        length: None,
        token: 0,
        result,
        missing: None,
    };
    batch.iter().map(|dispatch| of(dispatch, EventKind::Finished(finish.clone()))).collect()
}

/// Microseconds a task, from submit to the end of the last.
fn cost(tasks: Tasks, count: u32, fleet: Fleet) -> Result<f64> {
    let inputs = inputs(tasks, count);
    let config = Config { attempts_per_worker_max: u32::MAX, edges_max: u32::MAX, ..Config::standard() };
    let mut machine = Scheduler::new(config, 0);
    let mut out = Outbox::new();
    for number in 1..=u64::from(fleet.workers) {
        let session = SessionId(number);
        let capacity = Resources { milli_cpus: u64::from(fleet.slots) * 1_000, memory_bytes: u64::MAX, ..Resources::default() };
        let worker = WorkerSpec { name: format!("w{number}"), pool: "p".to_owned(), components: vec!["*".to_owned()], capacity };
        machine.step(1, Input::Join { session, worker }, &mut out);
        machine.step(1, Input::Attach { session, connection: Connection::Data }, &mut out);
    }
    out.clear();
    let result = if tasks == Tasks::Distinct { Stored::Inline(4) } else { Stored::None };
    let mut on_worker: Vec<VecDeque<Dispatch>> = (0..fleet.workers).map(|_| VecDeque::new()).collect();
    let mut waiting: VecDeque<usize> = VecDeque::new();
    let (mut committed, mut now) = (0, 10);
    let begin = Instant::now();
    let mut inputs = inputs.into_iter();
    let mut answers: VecDeque<Input> = VecDeque::new();
    while committed < count {
        now += 100;
        match answers.pop_front().or_else(|| inputs.next()) {
            Some(input) => machine.step(now, input, &mut out),
            None => {
                ensure!(!waiting.is_empty(), "nothing is dispatched after {committed} of {count} tasks");
            }
        }
        if let Some(worker) = waiting.pop_front() {
            let queue = &mut on_worker[worker];
            let batch: Vec<Dispatch> = queue.drain(..queue.len().min(128)).collect();
            if !queue.is_empty() {
                waiting.push_back(worker);
            }
            let events = events(&batch, result);
            machine.step(now, Input::Events { session: SessionId(worker as u64 + 1), events }, &mut out);
        }
        for output in out.drain(..) {
            match output {
                Output::Dispatch { session, dispatch } => {
                    let worker = session.0 as usize - 1;
                    if on_worker[worker].is_empty() {
                        waiting.push_back(worker);
                    }
                    on_worker[worker].push_back(dispatch);
                }
                Output::Retract { session, handles } => {
                    let queue = &mut on_worker[session.0 as usize - 1];
                    let queued = |handle: &Handle| queue.iter().any(|of| of.handle == *handle);
                    let (given_back, kept): (Vec<Handle>, Vec<Handle>) = handles.into_iter().partition(queued);
                    queue.retain(|dispatch| !given_back.contains(&dispatch.handle));
                    answers.push_back(Input::RetractReply { session, given_back, kept });
                }
                Output::Committed { .. } => committed += 1,
                Output::Rejected { message, .. } => bail!("{message}"),
                _ => {}
            }
        }
    }
    Ok(begin.elapsed().as_secs_f64() * 1e6 / f64::from(count))
}

/// The middle of some measurements: small ones are over before a clock says much.
fn repeated(tasks: Tasks, count: u32, fleet: Fleet) -> Result<f64> {
    let times = (1_000_000 / count).clamp(1, 50);
    let costs = (0..times).map(|_| cost(tasks, count, fleet)).collect::<Result<Vec<f64>>>()?;
    Ok(crate::table::percentile(&costs, 0.5))
}

/// Cost of an array of 10 M (quick: 2 M) against one of 10 k.
pub fn arrays(scale: &Scale) -> Result<Measure> {
    let large = scale.of(10_000_000, 2_000_000);
    Ok(Box::new(move || {
        let (small, large) = (repeated(Tasks::Array, 10_000, TWO)?, repeated(Tasks::Array, large, TWO)?);
        Ok(Sample { values: vec![large / small], cpu: vec![("machine, 10 k", small), ("machine, large", large)] })
    }))
}

/// Cost of 10 M (quick: 2 M) distinct tasks against 1 M; that of 10 k is reported beside it.
pub fn distinct(scale: &Scale) -> Result<Measure> {
    let large = scale.of(10_000_000, 2_000_000);
    Ok(Box::new(move || {
        let of = |count| repeated(Tasks::Distinct, count, TWO);
        let (tiny, small, large) = (of(10_000)?, of(1_000_000)?, of(large)?);
        let cpu = vec![("machine, 10 k", tiny), ("machine, 1 M", small), ("machine, large", large)];
        Ok(Sample { values: vec![large / small], cpu })
    }))
}

/// Cost of a task of a million with 10,000 workers against 2, as many slots each.
pub fn workers(scale: &Scale) -> Result<Measure> {
    let count = scale.of(1_000_000, 400_000);
    Ok(Box::new(move || {
        let of = |workers| repeated(Tasks::Array, count, Fleet { workers, slots: 4 });
        let (few, many) = (of(2)?, of(10_000)?);
        Ok(Sample { values: vec![many / few], cpu: vec![("machine, 2 workers", few), ("machine, 10,000 workers", many)] })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_ends_whatever_they_and_the_workers_are() {
        for tasks in [Tasks::Array, Tasks::Distinct] {
            for fleet in [TWO, Fleet { workers: 50, slots: 1 }] {
                assert!(cost(tasks, 9_000, fleet).unwrap() > 0.0, "{tasks:?} {fleet:?}");
            }
        }
    }
}
