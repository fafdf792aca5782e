//! The worker machine: which dispatched attempt starts when, what ends it, what is said about it. Processes, files and
//! sockets live in the agent; this decides for it and is told what came of it.
//!
//! Attempts start in dispatch order, the first that fits: per shape a queue, and among the heads of those that fit the oldest.
//! One that was overtaken [`OVERTAKEN_MAX`] times is waited for, so that a large attempt behind many small ones starts too.

use std::collections::{BTreeSet, VecDeque};

use rustc_hash::{FxHashMap, FxHashSet};

use crate::ids::{Handle, Micros, ShapeId};
use crate::messages::OutcomeClass;
use crate::resources::Resources;

pub mod calls;
pub mod calls_table;
#[cfg(test)]
mod calls_tests;
mod slots;
pub mod table;
#[cfg(test)]
mod tests;

use calls::{Calls, LaneId};
use slots::Turn;
use table::{Action, Event, State};

/// Most attempts on a worker, in whatever state. A dispatch beyond is given back at once as `Preempted`.
pub const ATTEMPTS_MAX: usize = 1 << 16;
/// Most retracts and cancels kept for dispatches that have not come. Beyond it a retract is answered with "kept".
pub const UNSEEN_MAX: usize = 1 << 16;
/// Most slots whose newest generation is remembered. A slot beyond counts as never seen.
pub const SLOTS_MAX: usize = 1 << 20;
/// How often others may start before the oldest attempt that does not fit.
pub const OVERTAKEN_MAX: u32 = 256;

/// An attempt on this worker, numbered by the caller: strictly increasing, also over sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(pub u64);

/// A dispatched attempt, as far as decisions need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The caller's number for it.
    pub serial: Serial,
    /// The scheduler's row.
    pub handle: Handle,
    /// The task's attempt number.
    pub attempt: u32,
    /// What it takes; announced with [`Worker::shape`].
    pub shape: ShapeId,
    /// Longest it may execute; 0 is no limit.
    pub timeout: Micros,
    /// Between SIGTERM and SIGKILL.
    pub grace: Micros,
}

/// Everything that can happen to the machine.
#[derive(Clone, Debug)]
pub enum Input {
    /// The scheduler dispatched an attempt.
    Dispatch(Attempt),
    /// Give these back if they have not started. Answered by one [`Output::Retracted`].
    Retract(Vec<Handle>),
    /// End these, executing or not.
    Cancel(Vec<Handle>),
    /// The directory is ready, or none is needed.
    Staged(Serial),
    /// The directory could not be made; the class says why.
    StageFailed(Serial, OutcomeClass),
    /// No process of it is left; how it ended by itself.
    Exited(Serial, OutcomeClass),
    /// Outputs are published or thrown away. A class replaces the one decided at exit (a missing output, for instance).
    Settled(Serial, Option<OutcomeClass>),
    /// The watch saw it above its memory limit.
    OverMemory(Serial),
    /// No new work; what executes may go on until the deadline. Of several the earliest deadline counts.
    Drain {
        /// When what still executes is ended.
        deadline: Micros,
    },
    /// The session is over: end everything, report nothing.
    Void,
    /// Nothing but time has passed.
    Tick,
}

/// What the machine wants done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Make its directory, then say `Staged` or `StageFailed`.
    Stage(Serial),
    /// Start its process. `Exited` follows, also when it could not be started.
    Spawn(Serial),
    /// SIGTERM to its process group.
    Terminate(Serial),
    /// SIGKILL to all that belongs to it.
    Kill(Serial),
    /// It succeeded: publish its outputs, then say `Settled`.
    Publish(Serial),
    /// It did not: keep or remove its directory, then say `Settled`.
    Discard(Serial, OutcomeClass),
    /// Tell the scheduler that it executes.
    Started(Serial),
    /// Tell the scheduler that it is over, and forget it.
    Finished(Serial, OutcomeClass),
    /// Forget it without a word.
    Forget(Serial),
    /// Answer to a retract.
    Retracted {
        /// Never started and never will.
        given_back: Vec<Handle>,
        /// Started or ended.
        kept: Vec<Handle>,
    },
    /// A drain has begun and nothing is left. Said once.
    Drained,
}

/// Counts for a heartbeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Not started.
    pub queued: u32,
    /// Taking their resources.
    pub executing: u32,
    /// Ended, not yet reported.
    pub settling: u32,
}

#[derive(Debug)]
struct Row {
    handle: Handle,
    shape: ShapeId,
    timeout: Micros,
    grace: Micros,
    state: State,
    /// Why it was ended, decided once.
    cause: Option<OutcomeClass>,
    /// How it is reported; known from `Settling` on.
    class: OutcomeClass,
    /// The session that wanted it is over.
    void: bool,
    deadline: Option<Micros>,
    overtaken: u32,
}

#[derive(Debug)]
struct Shape {
    request: Resources,
    queue: VecDeque<Serial>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unseen {
    Retracted,
    Cancelled,
}

/// The machine. See the module.
#[derive(Debug)]
pub struct Worker {
    capacity: Resources,
    used: Resources,
    rows: FxHashMap<Serial, Row>,
    by_handle: FxHashMap<Handle, Serial>,
    shapes: FxHashMap<ShapeId, Shape>,
    /// Shapes with a queue that is not empty.
    waiting: FxHashSet<ShapeId>,
    queued: u32,
    settling: u32,
    deadlines: BTreeSet<(Micros, Serial)>,
    /// Newest generation dispatched in a slot: tells a handle that has ended from one that has not come yet.
    generations: FxHashMap<u32, u32>,
    unseen: FxHashMap<Handle, Unseen>,
    draining: Option<Micros>,
    drain_deadline_passed: bool,
    drained: bool,
    calls: Calls,
    paused: bool,
    /// Memory for a look at the lanes.
    wanting: Vec<(Serial, LaneId)>,
}

impl Worker {
    /// A worker with nothing on it.
    pub fn new(capacity: Resources) -> Self {
        Worker {
            capacity,
            used: Resources::default(),
            rows: FxHashMap::default(),
            by_handle: FxHashMap::default(),
            shapes: FxHashMap::default(),
            waiting: FxHashSet::default(),
            queued: 0,
            settling: 0,
            deadlines: BTreeSet::new(),
            generations: FxHashMap::default(),
            unseen: FxHashMap::default(),
            draining: None,
            drain_deadline_passed: false,
            drained: false,
            calls: Calls::default(),
            paused: false,
            wanting: Vec::new(),
        }
    }

    /// Announces a shape. A shape never changes: a second announcement of the same id with another request is refused with
    /// `false` while attempts of it are on the worker.
    pub fn shape(&mut self, id: ShapeId, request: Resources) -> bool {
        if let Some(known) = self.shapes.get(&id) {
            if known.request == request {
                return true;
            }
            if self.rows.values().any(|row| row.shape == id) {
                return false;
            }
        }
        self.shapes.insert(id, Shape { request, queue: VecDeque::new() });
        true
    }

    /// What a shape takes.
    pub fn request(&self, id: ShapeId) -> Option<&Resources> {
        self.shapes.get(&id).map(|shape| &shape.request)
    }

    /// When [`Input::Tick`] is due at the latest.
    pub fn next_deadline(&self) -> Option<Micros> {
        let drain = self.draining.filter(|_| !self.drain_deadline_passed && !self.is_empty());
        let row = self.deadlines.first().map(|(at, _)| *at);
        [drain, row, self.calls.next_deadline()].into_iter().flatten().min()
    }

    /// How many attempts are where.
    pub fn counts(&self) -> Counts {
        let executing = self.rows.len() as u32 - self.queued - self.settling;
        // As many calls execute as there are slots, at most.
        let waiting = self.calls.queued + self.calls.fetching;
        let held = self.calls.count as u32 - waiting;
        let slots = self.calls.lanes.iter().flatten().map(|lane| lane.granted).sum::<u32>().min(held);
        Counts { queued: self.queued + waiting + held - slots, executing: executing + slots, settling: self.settling }
    }

    /// True when no attempt is on the worker.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.calls.count == 0
    }

    /// True from the first drain on.
    pub fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// What executing attempts take.
    pub fn used(&self) -> &Resources {
        &self.used
    }

    /// The only way in.
    pub fn step(&mut self, now: Micros, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Dispatch(attempt) => self.dispatch(attempt, out),
            Input::Retract(handles) => self.retract(handles, now, out),
            Input::Cancel(handles) => self.cancel(handles, now, out),
            Input::Staged(serial) => self.apply(serial, Event::Staged, None, now, out),
            Input::StageFailed(serial, class) => self.apply(serial, Event::StageFailed, Some(class), now, out),
            Input::Exited(serial, class) => self.apply(serial, Event::Exited, Some(class), now, out),
            Input::Settled(serial, class) => self.apply(serial, Event::Settled, class, now, out),
            Input::OverMemory(serial) => self.apply(serial, Event::OverMemory, None, now, out),
            Input::Drain { deadline } => self.drain(deadline, now, out),
            Input::Void => self.void(now, out),
            Input::Tick => {}
        }
        self.pass_time(now, out);
        self.start_what_fits(now, out);
        self.say_drained(out);
    }

    fn say_drained(&mut self, out: &mut Vec<Output>) {
        if self.draining.is_some() && self.is_empty() && !self.drained {
            self.drained = true;
            out.push(Output::Drained);
        }
    }

    fn dispatch(&mut self, attempt: Attempt, out: &mut Vec<Output>) {
        let Attempt { serial, handle, attempt: _, shape, timeout, grace } = attempt;
        if self.generations.len() < SLOTS_MAX || self.generations.contains_key(&handle.slot) {
            self.generations.insert(handle.slot, handle.generation);
        }
        match self.unseen.remove(&handle) {
            Some(Unseen::Retracted) => return out.push(Output::Forget(serial)),
            Some(Unseen::Cancelled) => return out.push(Output::Finished(serial, OutcomeClass::Cancelled)),
            None => {}
        }
        if self.draining.is_some() || self.rows.len() >= ATTEMPTS_MAX {
            return out.push(Output::Finished(serial, OutcomeClass::Preempted));
        }
        let fits = self.shapes.get(&shape).is_some_and(|s| self.capacity.fits(&Resources::default(), &s.request));
        let Some(queue) = self.shapes.get_mut(&shape).map(|s| &mut s.queue).filter(|_| fits) else {
            return out.push(Output::Finished(serial, OutcomeClass::InfraStart));
        };
        queue.push_back(serial);
        self.waiting.insert(shape);
        self.queued += 1;
        self.by_handle.insert(handle, serial);
        let row = Row {
            handle,
            shape,
            timeout,
            grace,
            state: State::Queued,
            cause: None,
            class: OutcomeClass::Succeeded,
            void: false,
            deadline: None,
            overtaken: 0,
        };
        let previous = self.rows.insert(serial, row);
        debug_assert!(previous.is_none(), "a serial is used once");
    }

    fn retract(&mut self, handles: Vec<Handle>, now: Micros, out: &mut Vec<Output>) {
        let (mut given_back, mut kept) = (Vec::new(), Vec::new());
        for handle in handles {
            if let Some(call) = self.calls.find(handle) {
                let applied = self.calls.apply(call, calls_table::Event::Retract, None);
                match applied.map(|applied| applied.action) {
                    Some(calls_table::Action::GiveBack) => given_back.push(handle),
                    _ => kept.push(handle),
                }
                continue;
            }
            match self.by_handle.get(&handle).copied() {
                Some(serial) if self.rows.get(&serial).is_some_and(|row| row.state == State::Queued) => {
                    self.apply(serial, Event::Retract, None, now, out);
                    given_back.push(handle);
                }
                Some(_) => kept.push(handle),
                None if self.has_ended(handle) => kept.push(handle),
                None if self.unseen.contains_key(&handle) => given_back.push(handle),
                None if self.unseen.len() >= UNSEEN_MAX => kept.push(handle),
                None => {
                    self.unseen.insert(handle, Unseen::Retracted);
                    given_back.push(handle);
                }
            }
        }
        out.push(Output::Retracted { given_back, kept });
    }

    fn cancel(&mut self, handles: Vec<Handle>, now: Micros, out: &mut Vec<Output>) {
        for handle in handles {
            if let Some(call) = self.calls.find(handle) {
                self.calls.end(call, calls_table::Event::Cancel, OutcomeClass::Cancelled);
            } else if let Some(serial) = self.by_handle.get(&handle).copied() {
                self.doom(serial, OutcomeClass::Cancelled);
                self.apply(serial, Event::Cancel, None, now, out);
            } else if !self.has_ended(handle) && self.unseen.len() < UNSEEN_MAX {
                self.unseen.entry(handle).or_insert(Unseen::Cancelled);
            }
        }
    }

    /// True when the handle was dispatched here once and is not on the worker any more.
    fn has_ended(&self, handle: Handle) -> bool {
        self.generations.get(&handle.slot).is_some_and(|newest| handle.generation <= *newest) || self.calls.has_come(handle)
    }

    fn drain(&mut self, deadline: Micros, now: Micros, out: &mut Vec<Output>) {
        self.draining = Some(self.draining.map_or(deadline, |earlier| earlier.min(deadline)));
        for serial in self.serials() {
            if self.rows.get(&serial).is_some_and(|row| matches!(row.state, State::Queued | State::Staging)) {
                self.doom(serial, OutcomeClass::Preempted);
            }
            self.apply(serial, Event::Drain, None, now, out);
        }
        for call in self.calls.all() {
            self.calls.end(call, calls_table::Event::Drain, OutcomeClass::Preempted);
        }
    }

    fn void(&mut self, now: Micros, out: &mut Vec<Output>) {
        for serial in self.serials() {
            if let Some(row) = self.rows.get_mut(&serial) {
                row.void = true;
            }
            self.doom(serial, OutcomeClass::Cancelled);
            self.apply(serial, Event::Void, None, now, out);
        }
        self.calls.void();
        self.by_handle.clear();
        self.generations.clear();
        self.unseen.clear();
    }

    fn serials(&self) -> Vec<Serial> {
        let mut serials: Vec<Serial> = self.rows.keys().copied().collect();
        serials.sort_unstable();
        serials
    }

    /// The first reason to end an attempt is the one that is reported. What has ended by itself has none.
    fn doom(&mut self, serial: Serial, cause: OutcomeClass) {
        if let Some(row) = self.rows.get_mut(&serial)
            && row.state != State::Settling
        {
            row.cause.get_or_insert(cause);
        }
    }

    fn pass_time(&mut self, now: Micros, out: &mut Vec<Output>) {
        if self.draining.is_some_and(|deadline| deadline <= now) && !self.drain_deadline_passed {
            self.drain_deadline_passed = true;
            for serial in self.serials() {
                self.doom(serial, OutcomeClass::Preempted);
                self.apply(serial, Event::DrainDeadline, None, now, out);
            }
            for call in self.calls.all() {
                self.calls.end(call, calls_table::Event::DrainDeadline, OutcomeClass::Preempted);
            }
        }
        self.calls.pass_time(now);
        while let Some(&(at, serial)) = self.deadlines.first()
            && at <= now
        {
            self.deadlines.pop_first();
            let Some(row) = self.rows.get_mut(&serial) else { continue };
            row.deadline = None;
            let event = match row.state {
                State::Executing => Event::Timeout,
                State::Ending => Event::GraceOver,
                _ => continue,
            };
            if event == Event::Timeout {
                self.doom(serial, OutcomeClass::Timeout);
            }
            self.apply(serial, event, None, now, out);
        }
    }

    fn start_what_fits(&mut self, now: Micros, out: &mut Vec<Output>) {
        while let Some(turn) = self.first_that_fits() {
            match turn {
                Turn::Process(serial) => self.apply(serial, Event::Start, None, now, out),
                Turn::Lane(lane) => self.grant(lane),
            }
        }
    }

    /// Takes one transition of the table and does what it says. A pair that the table refuses changes nothing: it is what a
    /// message that came too late looks like.
    fn apply(&mut self, serial: Serial, event: Event, class: Option<OutcomeClass>, now: Micros, out: &mut Vec<Output>) {
        let Some(row) = self.rows.get_mut(&serial) else { return };
        let before = row.state;
        let Some((after, action)) = table::next(before, event) else { return };
        let deadline_before = row.deadline.take();
        if let Some(at) = deadline_before {
            self.deadlines.remove(&(at, serial));
        }
        if let Some(after) = after {
            row.state = after;
        }
        let deadline = match action {
            Action::Terminate => Some(now.saturating_add(row.grace)),
            Action::Spawn if row.timeout > 0 => Some(now.saturating_add(row.timeout)),
            // What stays where it is keeps its deadline.
            Action::None | Action::Keep if after == Some(before) => deadline_before,
            _ => None,
        };
        let (shape, handle) = (row.shape, row.handle);
        if let Some(class) = class
            && row.cause.is_none()
        {
            row.class = class;
        }
        if let Some(cause) = row.cause {
            row.class = cause;
        }
        if event == Event::OverMemory && after == Some(State::Killed) {
            // Also where it had been asked to end before: it is what really ended it.
            row.cause = Some(row.cause.unwrap_or(OutcomeClass::Oom));
        }
        row.deadline = deadline;
        if let Some(at) = deadline {
            self.deadlines.insert((at, serial));
        }
        if before == State::Queued && after != Some(State::Queued) {
            self.leave_queue(shape, serial);
        }
        if before.takes_resources() && !after.is_some_and(State::takes_resources) {
            let request = self.shapes[&shape].request.clone();
            self.used.remove(&request);
        }
        if !before.takes_resources() && after.is_some_and(State::takes_resources) {
            let request = self.shapes[&shape].request.clone();
            self.used.add(&request);
        }
        if before != State::Settling && after == Some(State::Settling) {
            self.settling += 1;
        }
        self.act(serial, handle, action, after, out);
    }

    fn act(&mut self, serial: Serial, handle: Handle, action: Action, after: Option<State>, out: &mut Vec<Output>) {
        let Some(row) = self.rows.get(&serial) else { return };
        let (class, void, cause) = (row.class, row.void, row.cause);
        match action {
            Action::None | Action::Keep => {}
            Action::Stage => out.push(Output::Stage(serial)),
            Action::Spawn => out.extend([Output::Started(serial), Output::Spawn(serial)]),
            Action::Terminate => out.push(Output::Terminate(serial)),
            Action::Kill => out.push(Output::Kill(serial)),
            Action::Settle if cause.is_none() && class == OutcomeClass::Succeeded => out.push(Output::Publish(serial)),
            Action::Settle => out.push(Output::Discard(serial, class)),
            Action::Report if void => out.push(Output::Forget(serial)),
            Action::Report => out.push(Output::Finished(serial, class)),
            Action::GiveBack | Action::Forget => out.push(Output::Forget(serial)),
        }
        if after.is_none() {
            if row.state == State::Settling {
                self.settling -= 1;
            }
            self.rows.remove(&serial);
            if self.by_handle.get(&handle) == Some(&serial) {
                self.by_handle.remove(&handle);
            }
        }
    }

    fn leave_queue(&mut self, shape: ShapeId, serial: Serial) {
        self.queued -= 1;
        let Some(queue) = self.shapes.get_mut(&shape).map(|s| &mut s.queue) else { return };
        // Queues are sorted by serial: the front for a start, anywhere for a retract.
        if let Ok(at) = queue.binary_search(&serial) {
            queue.remove(at);
        }
        if queue.is_empty() {
            self.waiting.remove(&shape);
        }
    }
}
