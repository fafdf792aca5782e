//! The thread between the session's outbox, the scheduler's machine and the workers' threads.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use scalable_core::ids::{Handle, Micros, RunId, SessionId, TaskRef};
use scalable_core::messages::{
    Connection, Dispatch, EventKind, Finish, Input, Missing, Outbox, OutcomeClass, Output, Stored, WorkerEvent, WorkerSpec,
};
use scalable_core::resources::Resources;
use scalable_core::scheduler::{Config, Scheduler};
use scalable_core::spec::RunSpec;
use scalable_lane::host::{GroupOfCalls, Outcome, Parameter, Place, Registry};
use scalable_proto::v1;
use tokio::sync::mpsc;

use super::book::{Book, Group};
use super::deliver::Ends;
use super::lanes::{Drive, Job, Lanes, Told, Unwanted};
use super::{Blob, LocalBuilder, convert};
use crate::host::Driver;
use crate::macro_support::registry;
use crate::shared::Shared;

/// What threads have told is looked at in portions: results are on their way before the last is in.
const TOLD_AT_ONCE: usize = 4096;
/// The pool of all its workers.
const POOL: &str = "local";
/// Longest sleep, when no timer is set.
const SLEEP: Duration = Duration::from_secs(3600);

/// Starts the engine and the workers.
pub(super) fn start(shared: Arc<Shared>, builder: &LocalBuilder) -> io::Result<()> {
    let (tell, told) = mpsc::unbounded_channel();
    let driver: Arc<dyn Drive> = Arc::new(Driver::new()?);
    let lanes = |number| Lanes::start(format!("local-{number}"), builder.cpus, tell.clone(), driver.clone());
    let workers = (0..builder.workers).map(lanes).collect::<io::Result<Vec<Arc<Lanes>>>>()?;
    let capacity = Resources {
        milli_cpus: u64::from(builder.cpus) * 1000,
        memory_bytes: builder.memory_bytes,
        gpus: 0,
        custom: Default::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let mut engine = Engine::new(shared, workers, &capacity);
    std::thread::Builder::new().name("local-scheduler".to_owned()).spawn(move || runtime.block_on(engine.run(told)))?;
    Ok(())
}

/// An attempt on a worker.
#[derive(Debug)]
struct Attempt {
    number: u32,
    worker: usize,
    timeout: Micros,
    deadline: Option<Micros>,
}

/// What is told of an attempt that ended badly.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) attempt: u32,
    pub(super) worker: usize,
    pub(super) report: v1::AttemptReport,
}

pub(super) struct Engine {
    pub(super) shared: Arc<Shared>,
    registry: Registry,
    machine: Scheduler,
    begun: Instant,
    pub(super) run: RunId,
    pub(super) book: Book,
    workers: Vec<Arc<Lanes>>,
    attempts: FxHashMap<u64, Attempt>,
    deadlines: BTreeSet<(Micros, u64)>,
    /// By the mark that comes back with the machine's verdict.
    results: FxHashMap<u32, Blob>,
    failures: FxHashMap<u32, Failure>,
    next_mark: u32,
    /// How a task's latest attempt failed, until the task is over.
    pub(super) last: FxHashMap<TaskRef, Failure>,
    pub(super) ends: FxHashMap<u32, Ends>,
    jobs: Vec<Vec<Job>>,
    outbox: Outbox,
}

impl Engine {
    fn new(shared: Arc<Shared>, workers: Vec<Arc<Lanes>>, capacity: &Resources) -> Engine {
        let never = Micros::MAX / 4;
        // Threads of this process are not lost.
        let config = Config { suspect_after: never, lost_after_silence: never, lost_after_reset: never, ..Config::standard() };
        let jobs = workers.iter().map(|_| Vec::new()).collect();
        let mut engine = Engine {
            shared,
            registry: registry(),
            machine: Scheduler::new(config, 0),
            begun: Instant::now(),
            run: RunId(0),
            book: Book::default(),
            workers,
            attempts: FxHashMap::default(),
            deadlines: BTreeSet::new(),
            results: FxHashMap::default(),
            failures: FxHashMap::default(),
            next_mark: 0,
            last: FxHashMap::default(),
            ends: FxHashMap::default(),
            jobs,
            outbox: Outbox::new(),
        };
        // Known before there is a worker: what no worker can hold is refused, not waited for.
        engine.step(Input::Pool {
            pool: POOL.to_owned(),
            components: vec!["*".to_owned()],
            capacity: capacity.clone(),
            scaled: false,
            starting: 0,
            note: String::new(),
        });
        for number in 0..engine.workers.len() {
            let worker = WorkerSpec {
                name: worker_name(number),
                pool: POOL.to_owned(),
                components: vec!["*".to_owned()],
                capacity: capacity.clone(),
            };
            let session = session_of(number);
            engine.step(Input::Join { session, worker });
            engine.step(Input::Attach { session, connection: Connection::Data });
        }
        engine.step(Input::Submit(Box::new(RunSpec {
            name: "local".to_owned(),
            owner: String::new(),
            weight: 1,
            client_key: [0; 16],
            max_failures: 0,
            totals: Vec::new(),
            groups: Vec::new(),
            open: true,
            keeps: false,
        })));
        engine.shared.outbox().opened(engine.run.0);
        engine
    }

    fn now(&self) -> Micros {
        // Half a million years fit.
        self.begun.elapsed().as_micros() as Micros
    }

    async fn run(&mut self, mut told: mpsc::UnboundedReceiver<Told>) {
        let mut heard = Vec::new();
        loop {
            self.take_frames();
            self.timers();
            self.hand_over();
            if self.shared.is_abandoned() && !self.shared.outbox().has_next() {
                self.workers.iter().for_each(|worker| worker.stop());
                return;
            }
            let now = self.now();
            let deadline = self.deadlines.first().map(|(at, _)| *at);
            let wake = [self.machine.next_wakeup(), deadline].into_iter().flatten().min();
            let sleep = wake.map_or(SLEEP, |at| Duration::from_micros(at.saturating_sub(now)).min(SLEEP));
            let shared = self.shared.clone();
            tokio::select! {
                biased;
                count = told.recv_many(&mut heard, TOLD_AT_ONCE) => if count == 0 { return },
                () = shared.wake.notified() => {}
                () = tokio::time::sleep(sleep) => {}
            }
            self.hear(&mut heard);
        }
    }

    /// One input for the machine; what comes out is done at once.
    fn step(&mut self, input: Input) {
        let now = self.now();
        let mut outbox = std::mem::take(&mut self.outbox);
        self.machine.step(now, input, &mut outbox);
        for output in outbox.drain(..) {
            self.output(output);
        }
        self.outbox = outbox;
    }

    /// Takes everything the session has to say.
    fn take_frames(&mut self) {
        loop {
            let mut outbox = self.shared.outbox();
            let Some(body) = outbox.take() else {
                outbox.idle = true;
                break;
            };
            outbox.acknowledged();
            drop(outbox);
            self.shared.made_room();
            self.data(body);
        }
        loop {
            let word = self.shared.outbox().take_word();
            let Some(word) = word else { break };
            self.word(word);
        }
        // Nobody is paused here: results are kept as long as they are wanted, taken or not.
        let _ = self.shared.taken();
    }

    fn data(&mut self, body: v1::client_data::Body) {
        use v1::client_data::Body;
        match body {
            Body::AddGroup(v1::AddGroup { group, spec: Some(spec), .. }) => self.add_group(group, &spec),
            Body::Append(append) => self.append(append),
            Body::CloseRun(_) => self.step(Input::CloseRun { run: self.run }),
            _ => {}
        }
    }

    fn add_group(&mut self, ordinal: u32, wire: &v1::GroupSpec) {
        let template = wire.template.clone().unwrap_or_default();
        let Some(v1::task_template::Command::Function(call)) = &template.command else {
            return self.refuse_group(ordinal, "NO_FUNCTION", "a session inside a process runs functions only".to_owned());
        };
        let Some(function) = self.registry.get(&call.name).copied() else {
            return self.refuse_group(ordinal, "UNKNOWN_FUNCTION", format!("this program has no function {}", call.name));
        };
        let spec = match convert::group(wire, self.machine.names_mut()) {
            Ok(spec) => spec,
            Err(message) => return self.refuse_group(ordinal, "BAD_GROUP", message),
        };
        self.step(Input::AddGroup { run: self.run, ordinal, spec: Box::new(spec) });
        let Some(id) = self.book.id(ordinal) else { return };
        let parameter = |parameter: &v1::Parameter| match parameter.kind {
            Some(v1::parameter::Kind::Input(input)) => Parameter::Input(input),
            _ => Parameter::Value,
        };
        let parameters = call.parameters.iter().map(parameter).collect();
        let of = Arc::new(GroupOfCalls { run: "local".to_owned(), group: wire.name.clone(), parameters });
        let book = &self.book;
        if let Some(group) = Group::new(ordinal, function, of, &template, |ordinal| book.id(ordinal)) {
            self.book.insert(id, group);
        }
    }

    /// A group that the machine never hears of. Its ordinal is taken all the same: by a group without tasks.
    fn refuse_group(&mut self, ordinal: u32, code: &str, message: String) {
        let spec = v1::GroupSpec { name: format!("refused-{ordinal}"), ..Default::default() };
        if let Ok(spec) = convert::group(&spec, self.machine.names_mut()) {
            self.step(Input::AddGroup { run: self.run, ordinal, spec: Box::new(spec) });
        }
        self.reject(ordinal, 0, 0, code, message);
    }

    fn reject(&self, group: u32, first: u32, count: u32, code: &str, message: String) {
        let refusal = Some(v1::Refusal { code: code.to_owned(), message, help: String::new() });
        self.shared.rejected(v1::Rejected { run: self.run.0, group, first, count, refusal });
    }

    fn append(&mut self, append: v1::Append) {
        let (ordinal, first, count, last) = (append.group, append.first, append.count, append.last);
        let Some(group) = self.book.id(ordinal) else { return };
        let Some(edges) = self.book.append(group, append) else {
            return self.reject(ordinal, first, count, "UNKNOWN_GROUP", "a task reads a group that was refused".to_owned());
        };
        self.step(Input::Append { run: self.run, group, first, count, edges, last });
    }

    fn word(&mut self, word: v1::client_control::Body) {
        use v1::client_control::Body;
        match word {
            Body::Release(release) => {
                for ((ordinal, first), count) in release.group.iter().zip(&release.first).zip(&release.count) {
                    if let Some(group) = self.book.id(*ordinal) {
                        self.step(Input::Release { group, first: *first, count: *count });
                    }
                }
            }
            Body::Cancel(cancel) => {
                let Some(group) = self.book.id(cancel.group) else { return };
                let all = self.book.get(group).is_some_and(|known| cancel.first == 0 && cancel.count >= known.length);
                if all {
                    return self.step(Input::Cancel { run: self.run, group: Some(group), index: None });
                }
                for index in cancel.first..cancel.first.saturating_add(cancel.count) {
                    self.step(Input::Cancel { run: self.run, group: Some(group), index: Some(index) });
                }
            }
            _ => {}
        }
    }

    /// Ends what has run for too long, and lets the machine see that time has passed.
    fn timers(&mut self) {
        let now = self.now();
        while let Some((at, handle)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.remove(&(at, handle));
            let Some(attempt) = self.attempts.get(&handle) else { continue };
            if self.workers[attempt.worker].end(handle) == Unwanted::Abandoned {
                let message = format!("it ran longer than its timeout of {} ms", attempt.timeout / 1000);
                self.ended(handle, OutcomeClass::Timeout, v1::AttemptReport { message, ..Default::default() });
            }
        }
        if self.machine.next_wakeup().is_some_and(|at| at <= now) {
            self.step(Input::Tick);
        }
    }

    /// Takes what threads have told.
    fn hear(&mut self, heard: &mut Vec<Told>) {
        let mut events: Vec<Vec<WorkerEvent>> = self.workers.iter().map(|_| Vec::new()).collect();
        for told in heard.drain(..) {
            match told {
                Told::Started { handle, at } => {
                    let Some(attempt) = self.attempts.get_mut(&handle) else { continue };
                    let deadline = at.saturating_duration_since(self.begun).as_micros() as Micros + attempt.timeout;
                    attempt.deadline = Some(deadline);
                    self.deadlines.insert((deadline, handle));
                }
                Told::Ended { handle, outcome, wall } => {
                    let Some(attempt) = self.forget(handle) else { continue };
                    let mark = self.mark();
                    let report = |message: String| v1::AttemptReport { message, ..Default::default() };
                    let (class, failure) = match outcome {
                        Outcome::Value(value) => {
                            self.results.insert(mark, value.into());
                            (OutcomeClass::Succeeded, None)
                        }
                        Outcome::Failed(error) => (OutcomeClass::AppError, Some(report(error.to_string()))),
                        Outcome::Unable(why) => (OutcomeClass::InfraStart, Some(report(why))),
                        Outcome::Panicked { message, backtrace } => {
                            (OutcomeClass::AppError, Some(v1::AttemptReport { panicked: true, backtrace, ..report(message) }))
                        }
                    };
                    let bytes = self.results.get(&mark).map_or(0, Blob::len);
                    if let Some(report) = failure {
                        self.failures.insert(mark, Failure { attempt: attempt.number, worker: attempt.worker, report });
                    }
                    let finish = finish(class, mark, wall, bytes);
                    events[attempt.worker].extend(both(handle, attempt.number, finish));
                }
            }
        }
        for (number, events) in events.into_iter().enumerate().filter(|(_, events)| !events.is_empty()) {
            self.step(Input::Events { session: session_of(number), events });
        }
    }

    /// An attempt that this thread has ended.
    fn ended(&mut self, handle: u64, class: OutcomeClass, report: v1::AttemptReport) {
        let Some(attempt) = self.forget(handle) else { return };
        let mark = self.mark();
        self.failures.insert(mark, Failure { attempt: attempt.number, worker: attempt.worker, report });
        let events = both(handle, attempt.number, finish(class, mark, Duration::ZERO, 0)).into();
        self.step(Input::Events { session: session_of(attempt.worker), events });
    }

    fn forget(&mut self, handle: u64) -> Option<Attempt> {
        let attempt = self.attempts.remove(&handle)?;
        if let Some(deadline) = attempt.deadline {
            self.deadlines.remove(&(deadline, handle));
        }
        Some(attempt)
    }

    fn mark(&mut self) -> u32 {
        self.next_mark = self.next_mark.wrapping_add(1);
        self.next_mark
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::Submitted { run, .. } => self.run = run,
            Output::GroupAdded { group, .. } => self.book.announce(Some(group)),
            Output::Rejected { ordinal, first, count, code, message, .. } => {
                if count == 0 && self.book.announced() == ordinal {
                    self.book.announce(None);
                }
                self.reject(ordinal, first, count, code, message);
            }
            Output::Dispatch { session, dispatch } => self.dispatch(session, dispatch),
            Output::Retract { session, handles } => self.retract(session, handles),
            Output::CancelAttempts { session, handles } => self.cancel(session, handles),
            Output::Committed { task, token, .. } => {
                let result = self.results.remove(&token).unwrap_or_default();
                self.last.remove(&task);
                self.book.keep(task, result.clone());
                self.end(task, |ends| ends.bytes.extend_from_slice(&result));
            }
            Output::Restored { task, token, .. } => {
                if let Some(result) = self.results.remove(&token) {
                    self.book.keep(task, result);
                }
            }
            Output::Superseded { token } => {
                self.results.remove(&token);
                self.failures.remove(&token);
            }
            Output::AttemptEnded { task, token, .. } => {
                if let Some(failure) = token.and_then(|token| self.failures.remove(&token)) {
                    self.last.insert(task, failure);
                }
            }
            Output::TaskFailed { task, attempts, class } => self.failed(task, attempts, class),
            Output::Skipped { group, first, count, root } => {
                for index in first..first + count {
                    self.skipped(TaskRef { group, index }, OutcomeClass::DependencyFailed, Some(root));
                }
            }
            Output::Cancelled { group, first, count } => {
                for index in first..first + count {
                    self.skipped(TaskRef { group, index }, OutcomeClass::Cancelled, None);
                }
            }
            Output::Released { group, first, count } => {
                if let Some(group) = self.book.get_mut(group) {
                    group.released(first, count);
                }
            }
            Output::GroupForgotten { group, .. } => self.book.forget(group),
            // Workers and their sessions stay, and what started is of no interest.
            Output::Refused { .. }
            | Output::DrainWorker { .. }
            | Output::CloseSession { .. }
            | Output::AttemptStarted { .. }
            | Output::LengthKnown { .. }
            | Output::DropObject { .. }
            | Output::Fetch { .. }
            | Output::RunEnded { .. }
            | Output::WorkerChanged { .. } => {}
        }
    }

    fn dispatch(&mut self, session: SessionId, dispatch: Dispatch) {
        let (worker, handle, task) = (number_of(session), dispatch.handle.to_u64(), dispatch.task);
        let attempt = Attempt { number: dispatch.attempt, worker, timeout: dispatch.timeout, deadline: None };
        self.attempts.insert(handle, attempt);
        let reads = self.book.reads(task);
        let (Some(reads), Some(group)) = (reads, self.book.get(task.group)) else {
            let message = "a result it reads is gone".to_owned();
            return self.ended(handle, OutcomeClass::InputLost, v1::AttemptReport { message, ..Default::default() });
        };
        self.jobs[worker].push(Job {
            handle,
            function: group.function,
            of: group.of.clone(),
            place: Place { index: task.index, attempt: dispatch.attempt, task_id: task.id() },
            values: group.values(task.index),
            reads,
            timed: dispatch.timeout > 0,
        });
    }

    fn retract(&mut self, session: SessionId, handles: Vec<Handle>) {
        let worker = number_of(session);
        let (mut given_back, mut kept) = (Vec::new(), Vec::new());
        for handle in handles {
            let raw = handle.to_u64();
            let here = self.jobs[worker].len();
            self.jobs[worker].retain(|job| job.handle != raw);
            if self.jobs[worker].len() < here || self.workers[worker].take_back(raw) {
                self.forget(raw);
                given_back.push(handle);
            } else {
                kept.push(handle);
            }
        }
        self.step(Input::RetractReply { session, given_back, kept });
    }

    fn cancel(&mut self, session: SessionId, handles: Vec<Handle>) {
        let worker = number_of(session);
        for handle in handles {
            let raw = handle.to_u64();
            let here = self.jobs[worker].len();
            self.jobs[worker].retain(|job| job.handle != raw);
            if self.jobs[worker].len() < here || self.workers[worker].end(raw) != Unwanted::Unknown {
                self.ended(raw, OutcomeClass::Cancelled, v1::AttemptReport::default());
            }
        }
    }

    /// Gives calls to threads and results to the session.
    fn hand_over(&mut self) {
        for (worker, jobs) in self.workers.iter().zip(&mut self.jobs).filter(|(_, jobs)| !jobs.is_empty()) {
            worker.push(jobs.drain(..));
        }
        self.deliver();
    }
}

pub(super) fn worker_name(number: usize) -> String {
    format!("local-{number}")
}

/// Sessions are counted from 1.
fn session_of(number: usize) -> SessionId {
    SessionId(number as u64 + 1)
}

fn number_of(session: SessionId) -> usize {
    session.0 as usize - 1
}

fn finish(class: OutcomeClass, token: u32, wall: Duration, bytes: usize) -> Finish {
    let wall = wall.as_micros() as Micros;
    Finish {
        class,
        exit_code: None,
        signalled: false,
        wall,
        cpu: wall,
        peak_memory_bytes: 0,
        length: None,
        token,
        // It cannot be lost: it is in this process.
        result: Stored::Inline(u32::try_from(bytes).unwrap_or(u32::MAX)),
        missing: None::<Box<Missing>>,
    }
}

/// The start and the end of an attempt.
fn both(handle: u64, attempt: u32, finish: Finish) -> [WorkerEvent; 2] {
    let handle = Handle::from_u64(handle);
    [
        WorkerEvent { handle, attempt, kind: EventKind::Started },
        WorkerEvent { handle, attempt, kind: EventKind::Finished(finish) },
    ]
}
