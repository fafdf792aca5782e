//! The reactor: one thread that drives the sockets, the lane and the machine. Everything here reacts to one event at a time and
//! never waits for a disk; what may wait is handed to helpers.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustc_hash::FxHashMap;
use scalable_core::ids::{Handle, MILLISECOND, Micros, ShapeId};
use scalable_core::messages::OutcomeClass;
use scalable_core::resources::{Names, Resources};
use scalable_core::worker::{Attempt as Dispatched, Input, Output, Serial, Worker};
use scalable_proto::v1::{self, DispatchBatch, scheduler_control, scheduler_data, worker_control};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::attempt::{Attempt, Order, Settle, command, marker};
use crate::batch::Batch;
use crate::catalog::Catalog;
use crate::cgroup::Cgroups;
use crate::connection::{Arrived, Target};
use crate::helpers::Helpers;
use crate::job::{self, Prepare, Ready, Settled};
use crate::lane::{End, Job, Lane, LaneEvent, Strangers, Stream};
use crate::link::{Identity, Link, Said};
use crate::logs::{Writer, Written};
use crate::options::{MemoryLimit, Options, host};
use crate::watch::{AGE, AGE_WITH_LIMIT, Look, Watch};

/// Threads for staging and publishing: enough to keep a disk busy beside a digest.
const HELPERS: usize = 3;
/// Frames from the scheduler that may wait for the reactor.
const INBOX_FRAMES_MAX: usize = 256;
/// Events of one kind taken before others are looked at.
const TURN_MAX: usize = 1024;
/// How long the last frames may take to be acknowledged before the agent ends anyway.
const LEAVE_MAX: Duration = Duration::from_secs(5);
/// How often orphans are looked for beside the ends of attempts.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// Why the agent ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Drained, or the scheduler said goodbye.
    Well(String),
    /// It could not go on: one sentence.
    Badly(String),
}

/// What helpers and other threads tell the reactor.
enum Told {
    Ready(Serial, Box<Result<Ready, String>>),
    Settled(Serial, Box<Settled>),
    Look(Look),
    Written(Written),
}

/// How far leaving has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    /// Nothing is left on the worker; reports are to be acknowledged first, or goodbye would overtake them.
    Reports(Instant),
    /// Goodbye was said.
    Goodbye(Instant),
}

/// See the module.
pub struct Agent {
    options: Options,
    born: Instant,
    machine: Worker,
    names: Names,
    lane: Lane,
    catalog: Catalog,
    attempts: FxHashMap<Serial, Attempt>,
    next_serial: u64,
    helpers: Helpers,
    writer: Writer,
    watch: Watch,
    /// Attempts in the order in which they are old enough to be watched.
    unwatched: VecDeque<(Instant, Serial)>,
    cgroups: Option<Arc<Cgroups>>,
    link: Link,
    batch: Batch,
    told: mpsc::UnboundedSender<Told>,
    from_threads: mpsc::UnboundedReceiver<Told>,
    inbox: mpsc::Receiver<Arrived>,
    lane_events: Vec<LaneEvent>,
    sweep_due: Instant,
    agent_memory: u64,
    leaving: Leaving,
    ended: Option<Ended>,
}

impl Agent {
    /// An agent that is not connected yet. `files` is the limit of open files for its tasks, where its own was raised. To be called
    /// on the thread that runs it, which must live as long as the process.
    ///
    /// # Errors
    /// What it cannot do without: /proc, threads, cgroups where they are required.
    pub fn new(options: Options, files: Option<libc::rlimit>) -> anyhow::Result<Self> {
        let (told, from_threads) = mpsc::unbounded_channel();
        let (to_inbox, inbox) = mpsc::channel(INBOX_FRAMES_MAX);
        let cgroups = match options.memory_limit {
            MemoryLimit::Watch | MemoryLimit::None => None,
            MemoryLimit::Auto => Cgroups::detect()
                .inspect_err(|why| tracing::info!(why, "no memory cgroup may be made here: the watch enforces memory limits"))
                .ok(),
            MemoryLimit::Cgroup => Some(Cgroups::detect().map_err(|why| {
                anyhow::anyhow!("--memory-limit cgroup, but no memory cgroup may be made here: {why}; use --memory-limit watch")
            })?),
        };
        let mut names = Names::default();
        let capacity = resources(&options.capacity(), &mut names, true)
            .ok_or_else(|| anyhow::anyhow!("more than {} custom resources", Names::MAX))?;
        let identity = Identity {
            name: options.name(),
            pool: options.pool.clone(),
            components: options.components.clone(),
            resources: options.capacity(),
            host: host(),
            cluster_id: options.cluster_id.clone().unwrap_or_default(),
        };
        let target = Target { url: options.url(), token_file: options.token_file.clone() };
        let (looks, writes) = (told.clone(), told.clone());
        let now = Instant::now();
        Ok(Agent {
            born: now,
            machine: Worker::new(capacity),
            names,
            lane: Lane::new(files, Strangers::Kill)?,
            catalog: Catalog::new(),
            attempts: FxHashMap::default(),
            next_serial: 1,
            helpers: Helpers::start(HELPERS)?,
            // Sending fails only when the reactor is gone, and then nobody has to know.
            writer: Writer::start(move |written| drop(writes.send(Told::Written(written))))?,
            watch: Watch::start(move |look| drop(looks.send(Told::Look(look))))?,
            unwatched: VecDeque::new(),
            cgroups: cgroups.map(Arc::new),
            link: Link::new(target, identity, to_inbox),
            batch: Batch::default(),
            told,
            from_threads,
            inbox,
            lane_events: Vec::new(),
            sweep_due: now + SWEEP_EVERY,
            agent_memory: own_memory(),
            leaving: Leaving::No,
            ended: None,
            options,
        })
    }

    /// Runs until it is drained, dismissed, or cannot go on.
    ///
    /// # Errors
    /// The runtime refuses a signal or the lane's descriptor.
    pub async fn run(mut self) -> anyhow::Result<Ended> {
        let lane_ready = lane_ready(&self.lane)?;
        let mut signals = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
        // A handler instead of "ignore": what is ignored would be ignored by tasks too, if their dispositions were not reset.
        let mut hangup = signal(SignalKind::hangup())?;
        loop {
            self.tick();
            let flushed = self.flush();
            if let Some(ended) = self.ended.take() {
                return Ok(ended);
            }
            if flushed {
                // Lets the connections write before the reactor goes on.
                tokio::task::yield_now().await;
            }
            let deadline = tokio::time::Instant::from_std(self.next_deadline());
            let [terminate, interrupt] = &mut signals;
            tokio::select! {
                biased;
                _ = terminate.recv() => self.drain("the worker received SIGTERM"),
                _ = interrupt.recv() => self.drain("the worker received SIGINT"),
                _ = hangup.recv() => {}
                ready = lane_ready.readable() => {
                    let mut ready = ready?;
                    if !self.poll_lane() {
                        ready.clear_ready();
                    }
                }
                Some(told) = self.from_threads.recv() => self.hear(told),
                Some(arrived) = self.inbox.recv() => self.arrived(arrived),
                () = tokio::time::sleep_until(deadline) => {}
            }
            self.take_what_is_ready();
        }
    }

    /// Everything that has come meanwhile, so that one batch tells of all of it.
    fn take_what_is_ready(&mut self) {
        for _ in 0..TURN_MAX {
            let Ok(told) = self.from_threads.try_recv() else { break };
            self.hear(told);
        }
        for _ in 0..INBOX_FRAMES_MAX {
            let Ok(arrived) = self.inbox.try_recv() else { break };
            self.arrived(arrived);
        }
    }

    fn now(&self) -> Micros {
        self.born.elapsed().as_micros() as Micros
    }

    fn next_deadline(&self) -> Instant {
        let machine = self.machine.next_deadline().map(|at| self.born + Duration::from_micros(at));
        let watch = self.unwatched.front().map(|(at, _)| *at);
        let leaving = match self.leaving {
            Leaving::No => None,
            Leaving::Reports(until) | Leaving::Goodbye(until) => Some(until),
        };
        let fence = Some(self.link.last_heard() + self.options.fence_after).filter(|_| self.link.has_session());
        let all = [machine, watch, leaving, fence, Some(self.link.next_deadline()), Some(self.sweep_due)];
        all.into_iter().flatten().min().unwrap_or(self.sweep_due)
    }

    /// What is due by time alone.
    fn tick(&mut self) {
        let now = Instant::now();
        if self.machine.next_deadline().is_some_and(|at| at <= self.now()) {
            self.step(Input::Tick);
        }
        if self.link.has_session() && self.link.last_heard() + self.options.fence_after <= now {
            tracing::error!("the scheduler was silent for so long that it has given this worker up: its tasks are ended");
            self.link.forget(now);
            self.begin_anew();
        }
        let (counts, memory) = (self.machine.counts(), &self.attempts);
        self.link.tick(now, || v1::Heartbeat {
            memory_used_bytes: memory.values().map(|attempt| attempt.sampled_now).fold(0, u64::saturating_add),
            executing: counts.executing,
            queued: counts.queued,
        });
        while let Some(&(at, serial)) = self.unwatched.front()
            && (at <= now || self.attempts.get(&serial).is_none_or(|a| a.over.is_some()))
        {
            self.unwatched.pop_front();
            self.begin_watch(serial);
        }
        if self.sweep_due <= now {
            self.sweep_due = now + SWEEP_EVERY;
            self.agent_memory = own_memory();
            let mut events = std::mem::take(&mut self.lane_events);
            self.lane.sweep(&mut events);
            self.lane_events = events;
            self.take_lane_events();
        }
        self.leave(now);
    }

    fn begin_watch(&mut self, serial: Serial) {
        let Some(attempt) = self.attempts.get(&serial).filter(|a| a.over.is_none()) else { return };
        let Some(pid) = self.lane.pid(serial.0) else { return };
        let limit = attempt.order.memory_bytes;
        let by_watch = attempt.cgroup.is_none() && limit > 0 && self.options.memory_limit != MemoryLimit::None;
        self.watch.watch(serial.0, pid, Some(limit).filter(|_| by_watch));
    }

    fn leave(&mut self, now: Instant) {
        match self.leaving {
            Leaving::No => {}
            Leaving::Reports(until) if now < until && self.link.has_session() => {
                if self.batch.is_empty() && self.link.is_acknowledged() {
                    self.link.send_control(worker_control::Body::Goodbye(v1::Goodbye { reason: "drained".to_owned() }));
                    self.leaving = Leaving::Goodbye(now + LEAVE_MAX);
                }
            }
            Leaving::Goodbye(until) if now < until && !self.link.is_acknowledged() => {}
            Leaving::Reports(_) | Leaving::Goodbye(_) => self.end(Ended::Well("drained".to_owned())),
        }
    }

    fn end(&mut self, how: Ended) {
        self.ended.get_or_insert(how);
    }

    /// Sends what has happened. True when anything was sent.
    fn flush(&mut self) -> bool {
        let mut sent = false;
        while !self.batch.is_empty() && self.link.takes_batches() {
            self.link.send_batch(self.batch.take());
            sent = true;
        }
        sent
    }

    /// SIGTERM, once or often: no new work, what runs may finish.
    fn drain(&mut self, reason: &str) {
        let deadline = self.options.drain_deadline;
        if !self.machine.is_draining() {
            tracing::info!(reason, deadline_s = deadline.as_secs_f64(), "draining");
            let deadline_ms = deadline.as_millis() as u64;
            self.link.send_control(worker_control::Body::Draining(v1::Drain { deadline_ms, reason: reason.to_owned() }));
        }
        let deadline = self.now().saturating_add(deadline.as_micros() as Micros);
        self.step(Input::Drain { deadline });
    }

    /// Nothing that the old session wanted is wanted any more.
    fn begin_anew(&mut self) {
        self.step(Input::Void);
        self.catalog.clear();
        self.batch.clear();
    }

    fn arrived(&mut self, arrived: Arrived) {
        let mut said = Vec::new();
        self.link.arrived(arrived, Instant::now(), &mut said);
        for said in said {
            match said {
                Said::NewSession => {
                    self.begin_anew();
                    if self.machine.is_draining() && self.leaving == Leaving::No {
                        let drain = v1::Drain { deadline_ms: 0, reason: "the worker drains".to_owned() };
                        self.link.send_control(worker_control::Body::Draining(drain));
                    }
                }
                Said::Resumed => tracing::info!("the session goes on"),
                Said::Control(body) => self.control(body),
                Said::Data(body) => self.data(body),
                Said::Fatal(why) => self.end(Ended::Badly(why)),
            }
        }
    }

    fn control(&mut self, body: scheduler_control::Body) {
        let handles = |raw: Vec<u64>| raw.into_iter().map(Handle::from_u64).collect();
        match body {
            scheduler_control::Body::Retract(retract) => self.step(Input::Retract(handles(retract.handles))),
            scheduler_control::Body::Cancel(cancel) => self.step(Input::Cancel(handles(cancel.handles))),
            scheduler_control::Body::Release(release) => self.catalog.release(&release.runs),
            scheduler_control::Body::Drain(drain) => {
                tracing::info!(reason = %drain.reason, "the scheduler wants this worker drained");
                let own = self.options.drain_deadline.as_micros() as Micros;
                let wait = if drain.deadline_ms == 0 { own } else { drain.deadline_ms.saturating_mul(MILLISECOND) };
                self.step(Input::Drain { deadline: self.now().saturating_add(wait) });
            }
            scheduler_control::Body::Goodbye(goodbye) => self.dismissed(&goodbye.reason),
            // The link takes it.
            scheduler_control::Body::Welcome(_) => {}
        }
    }

    /// The scheduler ended the session. One that was given up while it could not be heard begins a new one.
    fn dismissed(&mut self, reason: &str) {
        tracing::info!(reason, "the scheduler says goodbye");
        self.begin_anew();
        if reason.contains("violation") {
            self.end(Ended::Badly(format!("the scheduler ended the session: {reason}")));
        } else if ["lost", "superseded", "silent"].iter().any(|word| reason.contains(word)) {
            self.link.forget(Instant::now());
        } else {
            self.end(Ended::Well(format!("the scheduler said goodbye: {reason}")));
        }
    }

    fn data(&mut self, body: scheduler_data::Body) {
        let taken = match body {
            scheduler_data::Body::Run(run) => self.catalog.announce_run(run).map_err(|e| e.to_string()),
            scheduler_data::Body::Group(group) => self.catalog.announce_group(group).map_err(|e| e.to_string()),
            scheduler_data::Body::Input(chunk) => self.catalog.input(chunk).map_err(|e| e.to_string()),
            scheduler_data::Body::Shape(shape) => self.shape(shape),
            scheduler_data::Body::Dispatch(batch) => self.dispatch(batch),
            // The link takes it.
            scheduler_data::Body::Bound(_) => Ok(()),
        };
        if let Err(why) = taken {
            // Both sides' books differ: a new session makes them equal.
            tracing::error!(why, "the scheduler broke the protocol: a new session begins");
            self.link.forget(Instant::now());
            self.begin_anew();
        }
    }

    fn shape(&mut self, shape: v1::AnnounceShape) -> Result<(), String> {
        let wanted = resources(&shape.resources.unwrap_or_default(), &mut self.names, false);
        let wanted = wanted.ok_or_else(|| format!("more than {} custom resources", Names::MAX))?;
        match self.machine.shape(ShapeId(shape.shape), wanted) {
            true => Ok(()),
            false => Err(format!("shape {} was announced again with other figures", shape.shape)),
        }
    }

    fn dispatch(&mut self, batch: DispatchBatch) -> Result<(), String> {
        let DispatchBatch { handle, group, index, attempt, shape, timeout_ms, task_id, fence } = batch;
        let count = handle.len();
        let columns = [group.len(), index.len(), attempt.len(), shape.len(), timeout_ms.len(), task_id.len(), fence.len()];
        if columns.iter().any(|column| *column != count) {
            return Err("the columns of a dispatch do not fit together".to_owned());
        }
        for at in 0..count {
            let serial = Serial(self.next_serial);
            self.next_serial += 1;
            let (row, shape) = (Handle::from_u64(handle[at]), ShapeId(shape[at]));
            let request = self.machine.request(shape);
            let memory = request.map_or(0, |r| r.memory_bytes);
            let order = Order {
                handle: row,
                group: self.catalog.group(group[at]).cloned(),
                index: index[at],
                attempt: attempt[at],
                task_id: task_id[at],
                fence: fence[at],
                milli_cpus: request.map_or(0, |r| r.milli_cpus),
                memory_bytes: if memory == Resources::MEMORY_UNACCOUNTED { 0 } else { memory },
                objects: self.catalog.take_inputs(handle[at]),
            };
            let grace = order.group.as_ref().map_or(0, |group| group.grace);
            self.attempts.insert(serial, Attempt::new(order));
            let timeout = timeout_ms[at].saturating_mul(MILLISECOND);
            self.step(Input::Dispatch(Dispatched { serial, handle: row, attempt: attempt[at], shape, timeout, grace }));
        }
        Ok(())
    }

    /// The only way into the machine: does what it says, and tells it what came of that, until nothing follows.
    fn step(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        let mut outputs = Vec::new();
        while let Some(input) = inputs.pop_front() {
            self.machine.step(self.now(), input, &mut outputs);
            for output in outputs.drain(..) {
                self.act(output, &mut inputs);
            }
        }
    }

    fn act(&mut self, output: Output, inputs: &mut VecDeque<Input>) {
        match output {
            Output::Stage(serial) => self.stage(serial, inputs),
            Output::Spawn(serial) => self.spawn(serial, inputs),
            Output::Terminate(serial) => self.lane.terminate(serial.0),
            Output::Kill(serial) => self.lane.kill(serial.0),
            Output::Publish(serial) => self.settle(serial, Settle::Publish, inputs),
            Output::Discard(serial, class) => self.settle(serial, Settle::Discard(class), inputs),
            Output::Started(serial) => {
                if let Some(attempt) = self.attempts.get(&serial) {
                    self.batch.started(attempt.order.handle, attempt.order.attempt);
                }
            }
            Output::Finished(serial, class) => self.finished(serial, class),
            Output::Forget(serial) => drop(self.remove(serial)),
            Output::Retracted { given_back, kept } => {
                let raw = |handles: Vec<Handle>| handles.into_iter().map(Handle::to_u64).collect();
                let reply = v1::RetractReply { given_back: raw(given_back), kept: raw(kept) };
                self.link.send_control(worker_control::Body::RetractReply(reply));
            }
            Output::Drained => self.leaving = Leaving::Reports(Instant::now() + LEAVE_MAX),
        }
    }

    fn stage(&mut self, serial: Serial, inputs: &mut VecDeque<Input>) {
        let Some(attempt) = self.attempts.get_mut(&serial) else { return };
        let refusal = match &attempt.order.group {
            None => Some("the scheduler never announced its group".to_owned()),
            Some(group) => group.refusal.clone(),
        };
        let (Some(group), Some(place), None) = (attempt.order.group.clone(), attempt.place(), &refusal) else {
            attempt.message = refusal.unwrap_or_default();
            return inputs.push_back(Input::StageFailed(serial, OutcomeClass::InfraStart));
        };
        let limit = attempt.order.memory_bytes;
        let cgroup = self.cgroups.as_ref().filter(|_| limit > 0 && !group.template.stub);
        if !group.needs_directory && cgroup.is_none() && group.run.takes_over.is_none() {
            if !group.template.stub {
                match command(&attempt.order, &group, None) {
                    Ok(made) => attempt.command = Some(made),
                    Err(why) => {
                        attempt.message = why;
                        return inputs.push_back(Input::StageFailed(serial, OutcomeClass::InfraStart));
                    }
                }
            }
            return inputs.push_back(Input::Staged(serial));
        }
        let prepare = Prepare {
            key: group.run.takes_over.as_ref().and_then(|_| attempt.key()),
            order: attempt.order.clone(),
            cgroup: cgroup.map(|cgroups| (cgroups.clone(), serial.0.to_string(), limit)),
            cgroup_required: self.options.memory_limit == MemoryLimit::Cgroup,
            group,
            place,
        };
        let told = self.told.clone();
        self.helpers.run(move || drop(told.send(Told::Ready(serial, Box::new(job::prepare(&prepare))))));
    }

    fn spawn(&mut self, serial: Serial, inputs: &mut VecDeque<Input>) {
        let Some(attempt) = self.attempts.get_mut(&serial) else { return };
        attempt.began = Some((SystemTime::now(), Instant::now()));
        let prepared = attempt.command.as_mut().and_then(|command| command.prepared.take());
        let Some(prepared) = prepared else {
            // A stub, or outputs that were taken over: there is nothing to execute.
            attempt.over = attempt.began.map(|(_, instant)| instant);
            attempt.end = Some(End::default());
            return inputs.push_back(Input::Exited(serial, OutcomeClass::Succeeded));
        };
        let (stdin, stdout, stderr) = match attempt.staged.as_deref_mut() {
            Some(staged) => (staged.stdin.take(), staged.stdout.take(), staged.stderr.take()),
            None => (None, None, None),
        };
        let stream = |file: Option<std::fs::File>| file.map_or(Stream::Capture, Stream::File);
        let job = Job {
            serial: serial.0,
            prepared,
            stdin,
            stdout: stream(stdout),
            stderr: stream(stderr),
            cgroup: attempt.cgroup.as_ref().and_then(|(_, procs)| procs.try_clone().ok()),
            marker: marker(&attempt.order),
        };
        if let Err(error) = self.lane.start(job) {
            attempt.message =
                format!("no process could be started: {error}; a limit of the system (ulimit -u, -n, pids of the cgroup)?");
            attempt.began = None;
            return inputs.push_back(Input::Exited(serial, OutcomeClass::InfraStart));
        }
        let by_watch = attempt.order.memory_bytes > 0 && attempt.cgroup.is_none();
        let age = if by_watch { AGE_WITH_LIMIT } else { AGE };
        let due = Instant::now() + age;
        // Kept in order: the two ages are constants, so only few are passed.
        let at = self.unwatched.iter().rposition(|(at, _)| *at <= due).map_or(0, |at| at + 1);
        self.unwatched.insert(at, (due, serial));
    }

    fn settle(&mut self, serial: Serial, what: Settle, inputs: &mut VecDeque<Input>) {
        let Some(attempt) = self.attempts.get_mut(&serial) else { return };
        if attempt.unwritten > 0 {
            // Told again when the last byte of its output is in its file.
            attempt.settle = Some(what);
            return;
        }
        attempt.settle = None;
        let cgroup = attempt.cgroup.take().map(|(cgroup, _)| cgroup);
        let staged = attempt.staged.take();
        let (Some(group), Some(place)) = (attempt.order.group.clone(), attempt.place()) else {
            return inputs.push_back(Input::Settled(serial, None));
        };
        if staged.is_none() && cgroup.is_none() {
            return inputs.push_back(Input::Settled(serial, None));
        }
        let told = self.told.clone();
        self.helpers.run(move || {
            let settled = job::settle(&group, &place, what, staged, cgroup);
            drop(told.send(Told::Settled(serial, Box::new(settled))));
        });
    }

    fn finished(&mut self, serial: Serial, class: OutcomeClass) {
        let Some(attempt) = self.remove(serial) else { return };
        let (handle, number) = (attempt.order.handle, attempt.order.attempt);
        if class == OutcomeClass::Succeeded && attempt.is_brief() {
            return self.batch.brief(handle, number, attempt.brief(self.agent_memory));
        }
        let limit = match self.options.memory_limit {
            MemoryLimit::None => 0,
            _ => attempt.order.memory_bytes,
        };
        let report = attempt.report(class, limit, self.agent_memory);
        if report.class() == v1::OutcomeClass::InfraStart {
            tracing::warn!(task = %attempt.name(), attempt = number, message = %report.message, "could not be run");
        }
        self.batch.report(handle, number, report);
    }

    fn remove(&mut self, serial: Serial) -> Option<Attempt> {
        let attempt = self.attempts.remove(&serial)?;
        if attempt.tails.iter().any(|tail| tail.total > 0) {
            self.writer.close(serial.0);
        }
        Some(attempt)
    }

    /// True when the lane had something to say.
    fn poll_lane(&mut self) -> bool {
        let mut events = std::mem::take(&mut self.lane_events);
        let more = self.lane.poll(&mut events);
        self.lane_events = events;
        self.take_lane_events();
        more
    }

    fn take_lane_events(&mut self) {
        let mut events = std::mem::take(&mut self.lane_events);
        for event in events.drain(..) {
            match event {
                LaneEvent::Output { serial, which, bytes } => {
                    let Some(attempt) = self.attempts.get_mut(&Serial(serial)) else { continue };
                    attempt.tail(which).push(&bytes);
                    let Some(place) = attempt.place() else { continue };
                    attempt.unwritten += bytes.len();
                    let name = if which == crate::lane::Which::Stdout { "stdout" } else { "stderr" };
                    self.writer.write(serial, which, place.log(name), bytes);
                }
                LaneEvent::Ended { serial, end } => self.process_ended(Serial(serial), end),
            }
        }
        self.lane_events = events;
    }

    fn process_ended(&mut self, serial: Serial, end: End) {
        let Some(attempt) = self.attempts.get_mut(&serial) else { return };
        let now = Instant::now();
        attempt.over = Some(now);
        attempt.sampled_now = 0;
        attempt.cgroup_seen = attempt.cgroup.as_ref().map(|(cgroup, _)| cgroup.seen());
        let class = attempt.class_of_end(&end);
        attempt.end = Some(end);
        if attempt.began.is_some_and(|(_, began)| now - began >= AGE_WITH_LIMIT) {
            self.watch.forget(serial.0);
        }
        self.step(Input::Exited(serial, class));
    }

    fn hear(&mut self, told: Told) {
        match told {
            Told::Ready(serial, ready) => self.ready(serial, *ready),
            Told::Settled(serial, settled) => {
                let Some(attempt) = self.attempts.get_mut(&serial) else { return };
                let Settled { outcome, kept, staged } = *settled;
                (attempt.kept, attempt.staged) = (kept, staged);
                let class = match outcome {
                    Ok(outputs) => {
                        if attempt.taken_over_from.is_empty() {
                            attempt.outputs = outputs;
                        }
                        None
                    }
                    Err(unpublished) => {
                        attempt.message = unpublished.message;
                        Some(unpublished.class)
                    }
                };
                self.step(Input::Settled(serial, class));
            }
            Told::Look(look) => {
                let serial = Serial(look.serial);
                let Some(attempt) = self.attempts.get_mut(&serial).filter(|a| a.over.is_none()) else { return };
                attempt.sampled_peak = attempt.sampled_peak.max(look.peak_bytes);
                attempt.sampled_now = look.now_bytes;
                if look.over {
                    self.step(Input::OverMemory(serial));
                }
            }
            Told::Written(Written { serial, which, bytes }) => {
                self.lane.written(serial, which, bytes);
                let Some(attempt) = self.attempts.get_mut(&Serial(serial)) else { return };
                attempt.unwritten = attempt.unwritten.saturating_sub(bytes);
                if attempt.unwritten == 0
                    && let Some(what) = attempt.settle.take()
                {
                    let mut inputs = VecDeque::new();
                    self.settle(Serial(serial), what, &mut inputs);
                    for input in inputs {
                        self.step(input);
                    }
                }
            }
        }
    }

    fn ready(&mut self, serial: Serial, ready: Result<Ready, String>) {
        let Some(attempt) = self.attempts.get_mut(&serial) else { return };
        match ready {
            Ok(Ready { staged, command, cgroup, taken }) => {
                (attempt.staged, attempt.command, attempt.cgroup) = (staged, command, cgroup);
                if let Some(taken) = taken {
                    (attempt.outputs, attempt.taken_over_from) = (taken.outputs, taken.from);
                }
                self.step(Input::Staged(serial));
            }
            Err(why) => {
                attempt.message = why;
                self.step(Input::StageFailed(serial, OutcomeClass::InfraStart));
            }
        }
    }
}

/// The lane's epoll set in the runtime's.
#[allow(unsafe_code)]
fn lane_ready(lane: &Lane) -> anyhow::Result<AsyncFd<OwnedFd>> {
    let fd = lane.fd().try_clone_to_owned()?;
    // SAFETY: the descriptor is a second one for the lane's set and owned by what is made here.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// The agent's own largest resident set so far, bytes.
fn own_memory() -> u64 {
    nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)
        .map_or(0, |usage| (usage.max_rss() as u64).saturating_mul(1024))
}

/// From the wire. In a capacity no memory figure means that memory is not accounted. Nothing when there are too many names.
fn resources(wire: &v1::Resources, names: &mut Names, capacity: bool) -> Option<Resources> {
    let mut made =
        Resources { milli_cpus: wire.milli_cpus, memory_bytes: wire.memory_bytes, gpus: wire.gpus, ..Resources::default() };
    if capacity && made.memory_bytes == 0 {
        made.memory_bytes = Resources::MEMORY_UNACCOUNTED;
    }
    for named in wire.custom.iter().filter(|named| named.amount > 0) {
        let name = names.intern(&named.name)?;
        let mut one = Resources::default();
        one.custom.push((name, named.amount));
        made.add(&one);
    }
    Some(made)
}
