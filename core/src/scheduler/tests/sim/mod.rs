//! A cluster in a box: the machine, workers that behave by the protocol and fail in every way they can, and a seed.
//!
//! Messages of a worker's two connections overtake each other; a reset delays what was under way; a lost session's messages
//! come late; workers repeat themselves, forge handles, fall silent, drain, die and come back under the same name.

mod clients;
mod moves;
mod workers;

use super::super::mutation::Mutation;
use super::super::{Config, Scheduler};
use super::oracle::{Oracle, Report};
use super::rng::Rng;
use super::specs::{SCRATCH, random_group, random_open_run, random_run};
use crate::ids::{GroupId, Handle, MILLISECOND, Micros, RunId, SECOND, SessionId, TaskRef};
use crate::messages::*;
use crate::resources::Resources;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Inputs shown when a sequence fails.
const TRACE: usize = 60;

#[derive(Clone, Debug)]
enum Order {
    Retract(Vec<Handle>),
    Cancel(Vec<Handle>),
    Drain,
}

#[derive(Clone, Debug)]
enum Word {
    Reply { given_back: Vec<Handle>, kept: Vec<Handle> },
    Draining,
    Left,
}

/// An attempt on a worker.
#[derive(Clone, Debug)]
struct Item {
    dispatch: Dispatch,
    takes: Resources,
    cancelled: bool,
}

/// A worker as it is, which the machine only hears of.
struct Box_ {
    spec: WorkerSpec,
    session: SessionId,
    control: bool,
    data: bool,
    alive: bool,
    silent: bool,
    draining: bool,
    /// The machine has closed the session: what is still under way may arrive, then nothing.
    closed: bool,
    orders: VecDeque<Order>,
    dispatches: VecDeque<Dispatch>,
    /// What it was asked to keep.
    wanted: VecDeque<TaskRef>,
    words: VecDeque<Word>,
    events: VecDeque<WorkerEvent>,
    queue: Vec<Item>,
    running: Vec<Item>,
    /// Ended, not reported: holds nothing any more.
    settling: Vec<(Item, OutcomeClass)>,
    used: Resources,
    /// Dispatches that have arrived: handle and attempt.
    seen: BTreeMap<Handle, u32>,
    unseen_cancels: BTreeSet<Handle>,
    unseen_retracts: BTreeSet<Handle>,
    said: Vec<WorkerEvent>,
}

impl Box_ {
    fn has_something_to_say(&self) -> bool {
        !self.closed && (!self.events.is_empty() || !self.words.is_empty())
    }

    fn is_idle(&self) -> bool {
        self.queue.is_empty()
            && self.running.is_empty()
            && self.settling.is_empty()
            && self.dispatches.is_empty()
            && self.events.is_empty()
            && self.orders.is_empty()
    }
}

/// The whole of it.
pub(super) struct Sim {
    rng: Rng,
    pub(super) machine: Scheduler,
    oracle: Oracle,
    now: Micros,
    workers: Vec<Box_>,
    next_session: u64,
    next_token: u32,
    next_run: u64,
    runs: Vec<RunId>,
    trace: VecDeque<String>,
    /// How often a task fails, in percent.
    failing: u64,
    healing: bool,
    /// Weight of what clients of open runs do; 0 without any.
    client_share: u64,
}

/// Percent, at a time: the usual, and a cluster where everything breaks.
const FAILING: [u64; 3] = [10, 35, 65];

impl Sim {
    pub(super) fn new(seed: u64, mutation: Option<Mutation>) -> Self {
        let mut rng = Rng::new(seed);
        let no_prefetch = rng.chance(40);
        let config = Config {
            short_task: if no_prefetch { 0 } else { 200 * MILLISECOND },
            runs_kept: *rng.pick(&[0, 1, 1_000]),
            sessions_kept: 64,
            groups_kept: *rng.pick(&[0, 0, 1, 256]),
            prefetch_max: *rng.pick(&[2, 16, 1_024]),
            prefetch_total_max: *rng.pick(&[4, 1 << 17]),
            attempts_per_worker_max: *rng.pick(&[3, 16_384, 16_384]),
            restores_max: *rng.pick(&[0, 1, 8]),
            move_within: *rng.pick(&[SECOND, 2 * SECOND, 120 * SECOND]),
            ..Config::standard()
        };
        let machine = match mutation {
            Some(mutation) => Scheduler::with_mutation(config, 0, mutation),
            None => Scheduler::new(config, 0),
        };
        let failing = *rng.pick(&FAILING);
        let client_share = *rng.pick(&[0, 65, 65, 65]);
        Sim {
            rng,
            machine,
            oracle: Oracle::new(no_prefetch),
            now: 1,
            workers: Vec::new(),
            next_session: 1,
            next_token: 1,
            next_run: 1,
            runs: Vec::new(),
            trace: VecDeque::new(),
            failing,
            healing: false,
            client_share,
        }
    }

    /// Random steps, then everything is repaired and every run has to end.
    pub(super) fn run(&mut self) -> Result<(), String> {
        self.run_inner().map_err(|what| {
            let trace: Vec<&str> = self.trace.iter().map(String::as_str).collect();
            format!("{what}\nlast inputs:\n{}", trace.join("\n"))
        })
    }

    fn run_inner(&mut self) -> Result<(), String> {
        self.submit()?;
        self.join(false)?;
        let steps = if self.client_share > 0 { 480 } else { 240 };
        for _ in 0..50 + self.rng.below(steps) {
            self.act()?;
        }
        self.heal()
    }

    // ------------------------------------------------------------------------------------------------------------------
    // One way into the machine.

    fn feed(&mut self, input: Input) -> Result<Vec<Output>, String> {
        self.trace.push_back(format!("{} {input:?}", self.now));
        if self.trace.len() > TRACE {
            self.trace.pop_front();
        }
        self.oracle.before(&input);
        let mut out = Vec::new();
        self.machine.step(self.now, input, &mut out);
        for output in &out {
            if let Output::Dispatch { dispatch, .. } = output {
                let memory = self.machine.shape(dispatch.shape).map_or(0, |shape| shape.memory_bytes);
                self.oracle.asked(dispatch.handle, memory);
            }
        }
        self.machine.check().map_err(|what| format!("checker: {what}\nafter {out:#?}"))?;
        self.oracle.after(self.now, &out).map_err(|what| format!("oracle: {what}\nin {out:#?}"))?;
        for output in &out {
            self.route(output);
        }
        Ok(out)
    }

    fn route(&mut self, output: &Output) {
        let session = match output {
            Output::Dispatch { session, .. }
            | Output::Retract { session, .. }
            | Output::CancelAttempts { session, .. }
            | Output::DrainWorker { session }
            | Output::DropObject { session, .. }
            | Output::Fetch { session, .. }
            | Output::CloseSession { session, .. } => *session,
            _ => return,
        };
        let Some(worker) = self.workers.iter_mut().find(|worker| worker.session == session) else { return };
        match output {
            Output::Dispatch { dispatch, .. } => worker.dispatches.push_back(dispatch.clone()),
            Output::Retract { handles, .. } => worker.orders.push_back(Order::Retract(handles.clone())),
            Output::CancelAttempts { handles, .. } => worker.orders.push_back(Order::Cancel(handles.clone())),
            Output::DrainWorker { .. } => worker.orders.push_back(Order::Drain),
            Output::DropObject { .. } => {}
            Output::Fetch { task, .. } => worker.wanted.push_back(*task),
            _ => worker.closed = true,
        }
    }

    // ------------------------------------------------------------------------------------------------------------------
    // What can happen.

    fn act(&mut self) -> Result<(), String> {
        let choice = self.rng.weighted(&[30, 30, 30, 14, 3, 3, 4, 3, 6, 2, 3, 2, 4, 2, 1, 2, 2, 2, 2, 4, 1, self.client_share]);
        match choice {
            0 => self.worker_turn(),
            1 => self.deliver_some(),
            2 => {
                self.worker_turn()?;
                self.deliver_some()
            }
            3 => self.pass_time(),
            4 => self.submit(),
            5 => self.join(false),
            6 => self.reset(),
            7 => self.attach(),
            8 => self.cancel(),
            9 => self.die(),
            10 => self.repeat_or_forge(),
            11 => self.drain(),
            12 => self.toggle_silence(),
            13 => self.join(true),
            14 => self.say_pool(),
            15 => self.dead_session(),
            16 => self.unasked_reply(),
            17 => self.leave(),
            18 => self.give_back_unasked(),
            19 => self.say_shares(),
            20 => self.being_taken(),
            _ => self.client_turn(),
        }
    }

    fn submit(&mut self) -> Result<(), String> {
        if self.next_run > 4 {
            return Ok(());
        }
        let spec = match self.client_share > 0 && self.rng.chance(70) {
            true => random_open_run(&mut self.rng, self.machine.names_mut(), self.next_run),
            false => random_run(&mut self.rng, self.machine.names_mut(), self.next_run),
        };
        self.next_run += 1;
        let again = self.rng.chance(10);
        let out = self.feed(Input::Submit(Box::new(spec.clone())))?;
        for output in &out {
            match output {
                Output::Submitted { run, .. } => self.runs.push(*run),
                Output::Refused { code, message, .. } => return Err(format!("a valid run was refused: {code} {message}")),
                _ => {}
            }
        }
        if again && self.machine.run_named(&spec.name).is_some() {
            let out = self.feed(Input::Submit(Box::new(spec)))?;
            let known = matches!(out.first(), Some(Output::Submitted { known: true, .. }));
            if !known {
                return Err("the same key made another run".to_owned());
            }
        }
        Ok(())
    }

    /// A worker registers: a new one, or one that has forgotten its session and comes under its old name.
    fn join(&mut self, replace: bool) -> Result<(), String> {
        let name = match self.workers.iter().filter(|worker| !worker.closed).map(|worker| worker.spec.name.clone()).next() {
            Some(name) if replace => name,
            _ if replace => return Ok(()),
            _ if self.workers.iter().filter(|worker| worker.alive && !worker.closed).count() >= 4 => return Ok(()),
            _ => format!("w{}", self.next_session),
        };
        let mut capacity = Resources {
            milli_cpus: *self.rng.pick(&[1_000, 2_000, 2_000, 4_000]),
            memory_bytes: *self.rng.pick(&[2 << 30, 4 << 30, Resources::MEMORY_UNACCOUNTED]),
            gpus: self.rng.below(2),
            ..Resources::default()
        };
        if self.rng.chance(30)
            && let Some(scratch) = self.machine.names_mut().intern(SCRATCH)
        {
            capacity.custom.push((scratch, 1));
        }
        let components: Vec<String> = match self.rng.below(3) {
            0 => vec!["model".to_owned()],
            1 => vec!["model".to_owned(), "tools".to_owned()],
            _ => vec!["*".to_owned()],
        };
        let pool = self.rng.pick(&["p", "p", "q"]).to_string();
        self.join_as(WorkerSpec { name, pool, components, capacity })
    }

    fn join_as(&mut self, spec: WorkerSpec) -> Result<(), String> {
        let session = SessionId(self.next_session);
        self.next_session += 1;
        if let Some(old) = self.workers.iter_mut().find(|worker| worker.spec.name == spec.name && !worker.closed) {
            old.alive = false;
        }
        self.workers.push(Box_ {
            spec: spec.clone(),
            session,
            control: true,
            data: false,
            alive: true,
            silent: false,
            draining: false,
            closed: false,
            orders: VecDeque::new(),
            dispatches: VecDeque::new(),
            wanted: VecDeque::new(),
            words: VecDeque::new(),
            events: VecDeque::new(),
            queue: Vec::new(),
            running: Vec::new(),
            settling: Vec::new(),
            used: Resources::default(),
            seen: BTreeMap::new(),
            unseen_cancels: BTreeSet::new(),
            unseen_retracts: BTreeSet::new(),
            said: Vec::new(),
        });
        self.feed(Input::Join { session, worker: spec })?;
        if self.rng.chance(80) {
            self.connect(self.workers.len() - 1, Connection::Data, true)?;
        }
        Ok(())
    }

    fn connect(&mut self, at: usize, connection: Connection, up: bool) -> Result<(), String> {
        let worker = &mut self.workers[at];
        match connection {
            Connection::Control => worker.control = up,
            Connection::Data => worker.data = up,
        }
        let session = worker.session;
        let input = match up {
            true => Input::Attach { session, connection },
            false => Input::Reset { session, connection },
        };
        self.feed(input).map(|_| ())
    }

    fn some_worker(&mut self) -> Option<usize> {
        let live: Vec<usize> =
            (0..self.workers.len()).filter(|at| self.workers[*at].alive && !self.workers[*at].closed).collect();
        if live.is_empty() { None } else { Some(*self.rng.pick(&live)) }
    }

    fn some_connection(&mut self) -> Connection {
        if self.rng.chance(50) { Connection::Control } else { Connection::Data }
    }

    fn reset(&mut self) -> Result<(), String> {
        let Some(at) = self.some_worker() else { return Ok(()) };
        let connection = self.some_connection();
        self.connect(at, connection, false)
    }

    fn attach(&mut self) -> Result<(), String> {
        let Some(at) = self.some_worker() else { return Ok(()) };
        if self.rng.chance(70) {
            for connection in [Connection::Control, Connection::Data] {
                self.connect(at, connection, true)?;
            }
            return Ok(());
        }
        let connection = self.some_connection();
        self.connect(at, connection, true)
    }

    fn cancel(&mut self) -> Result<(), String> {
        let Some(run) = (!self.runs.is_empty()).then(|| *self.rng.pick(&self.runs)) else { return Ok(()) };
        let groups = self.oracle.groups_of(run);
        if groups.is_empty() {
            return Ok(());
        }
        let some = self.rng.pick(&groups).0;
        let (group, index) = match self.rng.below(10) {
            0 | 1 => (None, None),
            2..5 => (Some(some), None),
            _ => (Some(some), Some(self.rng.below(6) as u32)),
        };
        let times = if self.rng.chance(30) { 2 } else { 1 };
        for _ in 0..times {
            self.feed(Input::Cancel { run, group, index })?;
        }
        Ok(())
    }

    fn die(&mut self) -> Result<(), String> {
        let Some(at) = self.some_worker() else { return Ok(()) };
        self.workers[at].alive = false;
        if self.rng.chance(60) {
            let worker = self.workers[at].spec.name.clone();
            let cause = *self.rng.pick(&[
                DeathCause::Failed,
                DeathCause::Failed,
                DeathCause::Taken,
                DeathCause::OutOfMemory,
                DeathCause::OutOfMemory,
            ]);
            return self.feed(Input::Died { worker, cause, reason: format!("{cause:?}") }).map(|_| ());
        }
        Ok(())
    }

    /// A worker says what some of its attempts take: of what executes, of what is over, and of what never was.
    fn say_shares(&mut self) -> Result<(), String> {
        let Some(at) = self.some_worker() else { return Ok(()) };
        let session = self.workers[at].session;
        let mut handles: Vec<Handle> = self.workers[at].running.iter().map(|item| item.dispatch.handle).collect();
        handles.extend(self.workers[at].seen.keys().copied().take(2));
        handles.push(Handle { slot: self.rng.below(8) as u32, generation: 1 + self.rng.below(4) as u32 });
        handles.sort_unstable();
        handles.dedup();
        handles.retain(|_| self.rng.chance(70));
        let shares = handles.into_iter().map(|handle| (handle, self.rng.below(6 << 30))).collect();
        self.feed(Input::MemoryShares { session, shares }).map(|_| ())
    }

    /// The platform takes a worker away, which goes on for a while all the same.
    fn being_taken(&mut self) -> Result<(), String> {
        let Some(at) = self.some_worker() else { return Ok(()) };
        let worker = self.workers[at].spec.name.clone();
        self.feed(Input::BeingTaken { worker, reason: "its node is gone".to_owned() }).map(|_| ())
    }

    fn drain(&mut self) -> Result<(), String> {
        let Some(at) = self.some_worker() else { return Ok(()) };
        if self.rng.chance(50) {
            let session = self.workers[at].session;
            return self.feed(Input::Drain { session }).map(|_| ());
        }
        self.begin_drain(at);
        Ok(())
    }

    fn begin_drain(&mut self, at: usize) {
        let hand_back = self.rng.chance(50);
        let worker = &mut self.workers[at];
        if std::mem::replace(&mut worker.draining, true) {
            return;
        }
        worker.words.push_back(Word::Draining);
        if hand_back {
            for item in std::mem::take(&mut worker.queue) {
                self.report(at, &item.dispatch, OutcomeClass::Preempted);
            }
        }
    }

    fn toggle_silence(&mut self) -> Result<(), String> {
        if let Some(at) = self.some_worker() {
            self.workers[at].silent = !self.workers[at].silent;
        }
        Ok(())
    }

    fn say_pool(&mut self) -> Result<(), String> {
        // Large enough for every task: what none can hold is refused, and cases show that.
        let scratch = self.machine.names_mut().intern(SCRATCH).ok_or("too many names")?;
        let mut capacity = Resources { milli_cpus: 8_000, memory_bytes: u64::MAX, gpus: 4, ..Resources::default() };
        capacity.custom.push((scratch, 4));
        let pool = Input::Pool {
            pool: "p".to_owned(),
            components: vec!["*".to_owned()],
            capacity,
            starting: 1,
            scaled: false,
            note: String::new(),
        };
        self.feed(pool).map(|_| ())
    }

    /// Goodbye at any time, also in the middle of work: what the server makes of a violation of the protocol.
    fn leave(&mut self) -> Result<(), String> {
        let Some(at) = self.some_worker() else { return Ok(()) };
        self.workers[at].closed = true;
        self.workers[at].alive = false;
        let session = self.workers[at].session;
        self.feed(Input::Left { session }).map(|_| ())
    }

    /// A worker may give back what it has not started without being asked.
    fn give_back_unasked(&mut self) -> Result<(), String> {
        let able = |worker: &Box_| worker.alive && !worker.closed && !worker.queue.is_empty();
        let able: Vec<usize> = (0..self.workers.len()).filter(|at| able(&self.workers[*at])).collect();
        if !able.is_empty() {
            let at = *self.rng.pick(&able);
            let worker = &mut self.workers[at];
            let given_back = worker.queue.drain(..).map(|item| item.dispatch.handle).collect();
            worker.words.push_back(Word::Reply { given_back, kept: Vec::new() });
        }
        Ok(())
    }

    /// Late messages of a session that is over.
    fn dead_session(&mut self) -> Result<(), String> {
        let over: Vec<usize> = (0..self.workers.len()).filter(|at| self.workers[*at].closed).collect();
        if over.is_empty() {
            return Ok(());
        }
        let at = *self.rng.pick(&over);
        let (session, name) = (self.workers[at].session, self.workers[at].spec.name.clone());
        let connection = self.some_connection();
        let input = match self.rng.below(7) {
            0 => Input::Attach { session, connection },
            1 => Input::Reset { session, connection },
            2 => Input::Draining { session },
            3 => Input::Left { session },
            4 => Input::Frame { session },
            5 => {
                // The name may have been taken by another session, which is then the one that dies.
                let taken = self.workers.iter().any(|worker| worker.spec.name == name && !worker.closed);
                if taken {
                    return Ok(());
                }
                Input::Died { worker: name, cause: DeathCause::OutOfMemory, reason: "late".to_owned() }
            }
            _ => {
                let events: Vec<WorkerEvent> = self.workers[at].events.drain(..).collect();
                Input::Events { session, events }
            }
        };
        self.feed(input).map(|_| ())
    }

    fn unasked_reply(&mut self) -> Result<(), String> {
        let Some(at) = self.some_worker() else { return Ok(()) };
        // Of what executes, truthfully or not; never of what has not started: giving that back is the worker's right, and
        // running it afterwards would not be.
        let running: Vec<Handle> = self.workers[at].running.iter().map(|item| item.dispatch.handle).collect();
        let all: Vec<Handle> = self.workers[at].seen.keys().copied().collect();
        let session = self.workers[at].session;
        let told: BTreeSet<Handle> =
            self.workers[at].said.iter().filter(|event| event.kind == EventKind::Started).map(|event| event.handle).collect();
        let given_back = running.into_iter().filter(|handle| told.contains(handle)).collect();
        self.feed(Input::RetractReply { session, given_back, kept: all }).map(|_| ())
    }

    fn repeat_or_forge(&mut self) -> Result<(), String> {
        let Some(at) = self.some_worker() else { return Ok(()) };
        let session = self.workers[at].session;
        if self.workers[at].said.is_empty() {
            return Ok(());
        }
        let said = self.workers[at].said.clone();
        let mut event = self.rng.pick(&said).clone();
        let mut from = session;
        match self.rng.below(5) {
            0 => {}
            1 => event.attempt += 1,
            2 => event.handle.generation = event.handle.generation.wrapping_sub(1),
            3 => event.handle.slot = self.rng.below(8) as u32,
            _ => {
                let Some(other) = self.some_worker() else { return Ok(()) };
                from = self.workers[other].session;
            }
        }
        // What its own worker may still say truthfully is no forgery: only a start that was said before is repeated for it.
        let may_say = |worker: &Box_| {
            let handle = event.handle;
            let under_way = worker.dispatches.iter().any(|d| d.handle == handle && d.attempt == event.attempt);
            let has = worker.seen.get(&handle) == Some(&event.attempt) || under_way;
            let over = |said: &&WorkerEvent| said.handle == handle && matches!(said.kind, EventKind::Finished(_));
            worker.session == from && has && worker.said.iter().find(over).is_none()
        };
        let alive = self.workers.iter().any(may_say);
        if alive && !(event.kind == EventKind::Started && said.contains(&event) && from == session) {
            return Ok(());
        }
        if !alive && self.rng.chance(50) {
            event.kind = EventKind::Finished(finish(OutcomeClass::Succeeded, 0));
        }
        if let EventKind::Finished(finish) = &mut event.kind {
            finish.token = self.token(from, event.handle, event.attempt, finish.class, false, finish.result);
        }
        self.feed(Input::Events { session: from, events: vec![event] }).map(|_| ())
    }

    fn token(
        &mut self,
        session: SessionId,
        handle: Handle,
        attempt: u32,
        class: OutcomeClass,
        genuine: bool,
        result: Stored,
    ) -> u32 {
        let token = self.next_token;
        self.next_token += 1;
        self.oracle.report(token, Report { session, handle, attempt, class, genuine, result });
        token
    }

    fn pass_time(&mut self) -> Result<(), String> {
        let by = *self.rng.pick(&[1, MILLISECOND, 20 * MILLISECOND, SECOND / 3, SECOND, 4 * SECOND, 4 * SECOND, 16 * SECOND]);
        self.advance(by)
    }

    /// Heartbeats come at least every 5 s, the machine is woken when it asks to be.
    fn advance(&mut self, by: Micros) -> Result<(), String> {
        self.now += by;
        for at in 0..self.workers.len() {
            let worker = &self.workers[at];
            if worker.alive && !worker.closed && !worker.silent && (worker.control || worker.data) {
                let session = worker.session;
                self.feed(Input::Frame { session })?;
            }
        }
        if self.machine.next_wakeup().is_some_and(|at| at <= self.now) {
            self.feed(Input::Tick)?;
            if self.machine.next_wakeup().is_some_and(|at| at <= self.now) {
                return Err("the machine asks to be woken for a time that has passed".to_owned());
            }
        }
        Ok(())
    }

    // ------------------------------------------------------------------------------------------------------------------
    // The end: everything is repaired, and every run has to end.

    fn heal(&mut self) -> Result<(), String> {
        self.healing = true;
        for at in 0..self.workers.len() {
            if self.workers[at].closed {
                continue;
            }
            self.workers[at].silent = false;
            if !self.workers[at].alive {
                let worker = self.workers[at].spec.name.clone();
                self.feed(Input::Died { worker, cause: DeathCause::Failed, reason: "signal 9".to_owned() })?;
            } else {
                for connection in [Connection::Control, Connection::Data] {
                    self.connect(at, connection, true)?;
                }
            }
        }
        self.clients_end()?;
        let scratch = self.machine.names_mut().intern(SCRATCH).ok_or("too many names")?;
        let mut capacity = Resources { milli_cpus: 8_000, memory_bytes: u64::MAX, gpus: 4, ..Resources::default() };
        capacity.custom.push((scratch, 4));
        self.join_as(WorkerSpec { name: "healer".to_owned(), pool: "p".to_owned(), components: vec!["*".to_owned()], capacity })?;
        let healer = self.workers.len() - 1;
        self.connect(healer, Connection::Data, true)?;
        for _ in 0..2_000 {
            if self.oracle.unfinished_runs().is_empty() {
                return Ok(());
            }
            for at in 0..self.workers.len() {
                if self.workers[at].closed || !self.workers[at].alive {
                    continue;
                }
                self.receive(at);
                self.start_what_fits(at);
                while !self.workers[at].running.is_empty() {
                    self.end_one(at);
                    self.start_what_fits(at);
                }
                self.report_settled(at);
                while self.workers[at].has_something_to_say() {
                    self.deliver(at)?;
                }
                if !self.workers[at].closed {
                    self.deliver(at)?;
                }
            }
            let wait = self.machine.next_wakeup().map_or(SECOND, |at| at.saturating_sub(self.now));
            self.advance(wait.clamp(MILLISECOND, 4 * SECOND))?;
        }
        let runs = self.oracle.unfinished_runs();
        Err(format!("runs {runs:?} did not end after everything was repaired:\n{}", self.stuck(&runs).join("\n")))
    }

    /// What the machine says of the tasks of these runs that are not over.
    fn stuck(&self, runs: &[u32]) -> Vec<String> {
        let mut stuck = Vec::new();
        for (group, length, _) in runs.iter().flat_map(|run| self.oracle.groups_of(RunId(*run))) {
            for task in (0..length).map(|index| TaskRef { group, index }) {
                if self.machine.task_state(task).is_none_or(|state| !state.is_over()) {
                    let said = self.machine.explain(task, self.now).map(|said| said.sentence);
                    stuck.push(format!("{}[{}]: {}", task.group.0, task.index, said.unwrap_or_default()));
                }
            }
        }
        stuck
    }
}

fn finish(class: OutcomeClass, token: u32) -> Finish {
    Finish {
        class,
        exit_code: None,
        signalled: false,
        wall: MILLISECOND,
        cpu: MILLISECOND,
        peak_memory_bytes: 0,
        length: None,
        token,
        result: Stored::None,
        missing: None,
    }
}
