//! Calls: attempts that are functions. A second, light table beside that of processes, because a call may take less than a
//! microsecond: rows are columns of the batches they came in, queues are ranges, and nothing is hashed.
//!
//! A **lane** is a queue of calls that the same lane hosts can execute, all of one resource shape. A **slot** of a lane takes what
//! one task's shape takes, and executes calls one after the other. Slots are granted in the order of the oldest waiting call, among
//! processes too ([`super::Worker`] compares), and are given up when their lane is empty or an older attempt's turn has come. So what
//! executes never exceeds the worker's capacity, and neither kind starves the other.

use std::collections::{BTreeSet, VecDeque};

use rustc_hash::FxHashMap;

use super::calls_table::{self as table, Action, Event, State};
use super::{SLOTS_MAX, Serial};
use crate::ids::{Handle, MILLISECOND, Micros};
use crate::messages::OutcomeClass;
use crate::resources::Resources;

/// Most calls on a worker, in whatever state. A dispatch beyond is given back at once as `Preempted`.
pub const CALLS_MAX: usize = 1 << 18;
/// Most lanes at a time.
pub const LANES_MAX: usize = 4096;

/// Most slots of one lane.
pub const SLOTS_OF_LANE_MAX: u32 = 256;

/// A call: element `at` of the batch it came in. The number of a batch is used again when no call of it is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId {
    /// The batch.
    pub batch: u32,
    /// The element.
    pub at: u32,
}

/// A lane. Its number is used again after [`super::Worker::close_lane`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(pub u32);

/// Calls that were dispatched together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallBatch {
    /// Number of element 0; element n has n more. Strictly increasing, also among processes.
    pub serial: u64,
    /// The scheduler's rows.
    pub handles: Vec<u64>,
    /// The tasks' attempt numbers.
    pub attempts: Vec<u32>,
    /// Longest each may execute; 0 is no limit. Empty when none has any.
    pub timeouts_ms: Vec<u64>,
    /// What no part names is no call. In order.
    pub parts: Vec<Part>,
}

/// Elements `first .. first + count` of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// Their lane.
    pub lane: LaneId,
    /// Objects they read are still on their way: [`super::Worker::call_ready`] follows.
    pub fetching: bool,
}

/// A call that is over, as the scheduler knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over {
    /// The scheduler's row.
    pub handle: Handle,
    /// The attempt.
    pub attempt: u32,
    /// Why it was ended from outside; nothing when it ended by itself.
    pub cause: Option<OutcomeClass>,
}

/// What the machine wants done with calls, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallOutput {
    /// A slot of this lane was granted: to be fed with [`super::Worker::feed`], and given up with [`super::Worker::slot_free`].
    Slot(LaneId),
    /// Take it back from its host and say so, or end it: the host is to be ended when it does not return soon.
    End(CallId),
    /// Tell the scheduler: it never started.
    Over(Over),
}

#[derive(Debug)]
struct Batch {
    serial: u64,
    handles: Vec<u64>,
    attempts: Vec<u32>,
    timeouts_ms: Vec<u64>,
    /// A [`State`] as a number, 0 is over.
    states: Vec<u8>,
    parts: Vec<Part>,
    left: u32,
}

impl Batch {
    fn state(&self, at: u32) -> Option<State> {
        State::ALL.get(usize::from(*self.states.get(at as usize)?).checked_sub(1)?).copied()
    }

    fn lane(&self, at: u32) -> Option<LaneId> {
        let after = self.parts.partition_point(|part| part.first <= at);
        let part = self.parts.get(after.checked_sub(1)?)?;
        (at < part.first + part.count).then_some(part.lane)
    }
}

/// A part of a batch that waits. Some of its calls may be over; the serial tells a batch from a later one of the same number.
#[derive(Clone, Copy, Debug)]
struct Range {
    batch: u32,
    serial: u64,
    first: u32,
    count: u32,
}

#[derive(Debug)]
pub(super) struct Lane {
    /// What a slot takes.
    pub request: Resources,
    queue: VecDeque<Range>,
    /// Calls in the queue that are not over.
    pub queued: u32,
    /// Calls that will be in it when their objects have come.
    pub fetching: u32,
    pub granted: u32,
    /// Slots of these that have not been fed yet.
    pub unfed: u32,
    /// How often others went first while this lane's oldest call waited.
    pub overtaken: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Newest {
    generation: u32,
    batch: u32,
    at: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Calls {
    batches: Vec<Option<Batch>>,
    free: Vec<u32>,
    pub lanes: Vec<Option<Lane>>,
    /// Newest call of each slot of the scheduler's table.
    newest: Vec<Newest>,
    /// As `newest`, for slots beyond [`SLOTS_MAX`].
    newest_beyond: FxHashMap<u32, Newest>,
    pub count: usize,
    pub queued: u32,
    /// Calls whose objects are on their way.
    pub fetching: u32,
    causes: FxHashMap<CallId, OutcomeClass>,
    /// Calls that were seen executing, and since when.
    seen: FxHashMap<CallId, Micros>,
    deadlines: BTreeSet<(Micros, CallId)>,
    /// Batches of which no call is left.
    done: Vec<u32>,
    pub out: Vec<CallOutput>,
}

impl Calls {
    fn newest(&self, slot: u32) -> Option<&Newest> {
        if (slot as usize) < SLOTS_MAX { self.newest.get(slot as usize) } else { self.newest_beyond.get(&slot) }
    }

    /// The call of a handle, while it is on the worker.
    pub fn handle(&self, call: CallId) -> Option<Handle> {
        let batch = self.batches.get(call.batch as usize)?.as_ref()?;
        batch.state(call.at)?;
        batch.handles.get(call.at as usize).map(|raw| Handle::from_u64(*raw))
    }

    /// The call of a handle.
    pub fn find(&self, handle: Handle) -> Option<CallId> {
        let newest = self.newest(handle.slot).filter(|newest| newest.generation == handle.generation)?;
        let batch = self.batches.get(newest.batch as usize)?.as_ref()?;
        // The number of the batch may be another one's by now.
        (batch.handles.get(newest.at as usize) == Some(&handle.to_u64()) && batch.state(newest.at).is_some())
            .then_some(CallId { batch: newest.batch, at: newest.at })
    }

    /// True when a call of this handle was dispatched here once.
    pub fn has_come(&self, handle: Handle) -> bool {
        self.newest(handle.slot).is_some_and(|newest| handle.generation <= newest.generation)
    }

    fn note(&mut self, handle: Handle, batch: u32, at: u32) {
        let slot = handle.slot as usize;
        let newest = Newest { generation: handle.generation, batch, at };
        if slot >= SLOTS_MAX {
            if self.newest_beyond.len() < SLOTS_MAX {
                self.newest_beyond.insert(handle.slot, newest);
            }
            return;
        }
        if self.newest.len() <= slot {
            self.newest.resize(slot + 1, Newest::default());
        }
        self.newest[slot] = newest;
    }

    pub fn state(&self, call: CallId) -> Option<State> {
        self.batches.get(call.batch as usize)?.as_ref()?.state(call.at)
    }

    pub fn lane_mut(&mut self, lane: LaneId) -> Option<&mut Lane> {
        self.lanes.get_mut(lane.0 as usize)?.as_mut()
    }

    pub fn lane(&self, lane: LaneId) -> Option<&Lane> {
        self.lanes.get(lane.0 as usize)?.as_ref()
    }

    pub fn open_lane(&mut self, request: Resources) -> Option<LaneId> {
        let lane = Lane { request, queue: VecDeque::new(), queued: 0, fetching: 0, granted: 0, unfed: 0, overtaken: 0 };
        if let Some(at) = self.lanes.iter().position(Option::is_none) {
            self.lanes[at] = Some(lane);
            return Some(LaneId(at as u32));
        }
        if self.lanes.len() >= LANES_MAX {
            return None;
        }
        self.lanes.push(Some(lane));
        Some(LaneId(self.lanes.len() as u32 - 1))
    }

    /// Takes a batch. `refuse` says of a handle why it is not to be queued.
    pub fn add(&mut self, batch: CallBatch, mut refuse: impl FnMut(Handle) -> Refuse) -> u32 {
        let CallBatch { serial, handles, attempts, timeouts_ms, parts } = batch;
        let number = self.free.pop().unwrap_or_else(|| {
            self.batches.push(None);
            self.batches.len() as u32 - 1
        });
        let mut states = vec![0; handles.len()];
        let (mut left, mut fetching) = (0, 0);
        for &Part { first, count, lane, fetching: waits } in &parts {
            let before = left;
            for at in first..first + count {
                let handle = Handle::from_u64(handles[at as usize]);
                self.note(handle, number, at);
                let why =
                    if self.count + (left as usize) < CALLS_MAX { refuse(handle) } else { Refuse::As(OutcomeClass::Preempted) };
                match why {
                    Refuse::No => {
                        states[at as usize] = if waits { State::Fetching } else { State::Queued } as u8;
                        left += 1;
                    }
                    Refuse::Silently => {}
                    Refuse::As(class) => {
                        let over = Over { handle, attempt: attempts[at as usize], cause: Some(class) };
                        self.out.push(CallOutput::Over(over));
                    }
                }
            }
            fetching += if waits { left - before } else { 0 };
            if left == before {
                continue;
            }
            let Some(lane) = self.lane_mut(lane) else { continue };
            if waits {
                lane.fetching += left - before;
            } else {
                lane.queue.push_back(Range { batch: number, serial, first, count });
                lane.queued += left - before;
            }
        }
        self.count += left as usize;
        self.queued += left - fetching;
        self.fetching += fetching;
        self.batches[number as usize] = Some(Batch { serial, handles, attempts, timeouts_ms, states, parts, left });
        if left == 0 {
            self.finish(number);
        }
        number
    }

    fn finish(&mut self, batch: u32) {
        self.batches[batch as usize] = None;
        self.done.push(batch);
    }

    /// The oldest call that waits in a lane.
    pub fn head(&mut self, lane: LaneId) -> Option<Serial> {
        let row = self.lanes.get_mut(lane.0 as usize)?.as_mut()?;
        if row.queued == 0 {
            row.queue.clear();
            return None;
        }
        while let Some(range) = row.queue.front_mut() {
            let of = self.batches.get(range.batch as usize).and_then(Option::as_ref).filter(|of| of.serial == range.serial);
            let states = of.map(|of| &of.states[range.first as usize..(range.first + range.count) as usize]).unwrap_or_default();
            if let Some(skip) = states.iter().position(|state| *state == State::Queued as u8) {
                (range.first, range.count) = (range.first + skip as u32, range.count - skip as u32);
                return Some(Serial(range.serial + u64::from(range.first)));
            }
            row.queue.pop_front();
        }
        None
    }

    /// Hands over at most `max` of a lane's oldest calls.
    pub fn feed(&mut self, lane: LaneId, max: u32, to: &mut Vec<CallId>) -> u32 {
        let Some(row) = self.lanes.get_mut(lane.0 as usize).and_then(Option::as_mut) else { return 0 };
        let mut fed = 0;
        while fed < max
            && let Some(range) = row.queue.front_mut()
        {
            let of = self.batches.get_mut(range.batch as usize).and_then(Option::as_mut).filter(|of| of.serial == range.serial);
            // A range of a batch that is gone has no call left.
            let Some(of) = of else {
                row.queue.pop_front();
                continue;
            };
            let end = range.first + range.count;
            while range.first < end && fed < max {
                let state = &mut of.states[range.first as usize];
                if *state == State::Queued as u8 {
                    *state = State::Held as u8;
                    to.push(CallId { batch: range.batch, at: range.first });
                    fed += 1;
                }
                range.first += 1;
            }
            range.count = end - range.first;
            if range.count == 0 {
                row.queue.pop_front();
            }
        }
        row.queued -= fed;
        if fed > 0 {
            row.overtaken = 0;
        }
        self.queued -= fed;
        fed
    }

    /// Takes one transition of the table. Nothing when the table refuses it, which is what comes too late.
    pub fn apply(&mut self, call: CallId, event: Event, cause: Option<OutcomeClass>) -> Option<Applied> {
        let batch = self.batches.get_mut(call.batch as usize)?.as_mut()?;
        let before = batch.state(call.at)?;
        let (after, action) = table::next(before, event)?;
        batch.states[call.at as usize] = after.map_or(0, |state| state as u8);
        let (handle, attempt) = (Handle::from_u64(batch.handles[call.at as usize]), batch.attempts[call.at as usize]);
        let serial = batch.serial;
        let waits = [Some(before), after].iter().any(|state| matches!(state, Some(State::Queued | State::Fetching)));
        let lane = if waits { batch.lane(call.at) } else { None };
        let first_cause = self.causes.get(&call).copied().or(cause);
        match (after, first_cause) {
            (Some(State::Unwanted), Some(cause)) => drop(self.causes.insert(call, cause)),
            (None, _) if before == State::Unwanted => drop(self.causes.remove(&call)),
            _ => {}
        }
        self.fetching -= u32::from(before == State::Fetching);
        if before == State::Held || before == State::Unwanted {
            self.unsee(call, after);
        }
        if let Some(lane) = lane.and_then(|lane| self.lanes.get_mut(lane.0 as usize)?.as_mut()) {
            lane.fetching -= u32::from(before == State::Fetching);
            if before == State::Queued {
                lane.queued -= 1;
                self.queued -= 1;
            } else if after == Some(State::Queued) {
                lane.queued += 1;
                self.queued += 1;
                let range = Range { batch: call.batch, serial, first: call.at, count: 1 };
                match lane.queue.front_mut() {
                    _ if action == Action::Enqueue => lane.queue.push_back(range),
                    Some(range) if range.batch == call.batch && range.serial == serial && range.first == call.at + 1 => {
                        (range.first, range.count) = (call.at, range.count + 1);
                    }
                    _ => lane.queue.push_front(range),
                }
            }
        }
        if after.is_none() {
            self.count -= 1;
            let left = self.batches[call.batch as usize].as_mut().map_or(0, |batch| {
                batch.left -= 1;
                batch.left
            });
            if left == 0 {
                self.finish(call.batch);
            }
        }
        Some(Applied { action, over: Over { handle, attempt, cause: first_cause } })
    }

    fn unsee(&mut self, call: CallId, after: Option<State>) {
        if self.seen.is_empty() || after == Some(State::Held) || after == Some(State::Unwanted) {
            return;
        }
        self.seen.remove(&call);
        // Few: only calls that were seen and have a limit.
        if let Some(&entry) = self.deadlines.iter().find(|(_, of)| *of == call) {
            self.deadlines.remove(&entry);
        }
    }

    /// The agent saw it executing since then. True the first time.
    pub fn see(&mut self, call: CallId, since: Micros) -> Option<Over> {
        let batch = self.batches.get(call.batch as usize)?.as_ref()?;
        batch.state(call.at).filter(|state| matches!(state, State::Held | State::Unwanted))?;
        if self.seen.contains_key(&call) {
            return None;
        }
        self.seen.insert(call, since);
        let timeout = batch.timeouts_ms.get(call.at as usize).copied().unwrap_or(0).saturating_mul(MILLISECOND);
        if timeout > 0 {
            self.deadlines.insert((since.saturating_add(timeout), call));
        }
        let handle = Handle::from_u64(batch.handles[call.at as usize]);
        Some(Over { handle, attempt: batch.attempts[call.at as usize], cause: None })
    }

    pub fn next_deadline(&self) -> Option<Micros> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    pub fn pass_time(&mut self, now: Micros) {
        while let Some(&(at, call)) = self.deadlines.first()
            && at <= now
        {
            self.deadlines.pop_first();
            self.end(call, Event::Timeout, OutcomeClass::Timeout);
        }
    }

    /// Ends a call for a reason, wherever it is.
    pub fn end(&mut self, call: CallId, event: Event, cause: OutcomeClass) {
        let Some(Applied { action, over }) = self.apply(call, event, Some(cause)) else { return };
        match action {
            Action::End => self.out.push(CallOutput::End(call)),
            Action::Report => self.out.push(CallOutput::Over(over)),
            _ => {}
        }
    }

    /// Every call on the worker, oldest first.
    pub fn all(&self) -> Vec<CallId> {
        let mut batches: Vec<(u64, u32)> = (0..self.batches.len() as u32)
            .filter_map(|number| Some((self.batches[number as usize].as_ref()?.serial, number)))
            .collect();
        batches.sort_unstable();
        let of = |number: u32| {
            let states = self.batches[number as usize].as_ref().map(|batch| batch.states.as_slice()).unwrap_or_default();
            states
                .iter()
                .enumerate()
                .filter(|(_, state)| **state != 0)
                .map(move |(at, _)| CallId { batch: number, at: at as u32 })
        };
        batches.into_iter().flat_map(|(_, number)| of(number)).collect()
    }

    /// Numbers of batches of which no call is left, since this was last asked: what the caller keeps for them can go.
    pub fn take_done(&mut self, to: &mut Vec<u32>) {
        self.free.extend(&self.done);
        to.append(&mut self.done);
    }

    /// Forgets every call and what was known of handles.
    pub fn void(&mut self) {
        for call in self.all() {
            self.apply(call, Event::Void, None);
        }
        self.newest.clear();
        self.newest_beyond.clear();
    }

    /// Lanes that could use one more slot, and their oldest call.
    pub fn wanting(&mut self, to: &mut Vec<(Serial, LaneId)>) {
        to.clear();
        for lane in (0..self.lanes.len() as u32).map(LaneId) {
            let wants = self.lane(lane).is_some_and(|row| row.queued > row.unfed && row.granted < SLOTS_OF_LANE_MAX);
            if wants && let Some(head) = self.head(lane) {
                to.push((head, lane));
            }
        }
    }

    /// What granted slots take, in all: for the test that the books are right.
    #[cfg(test)]
    pub fn taken(&self) -> Resources {
        let mut sum = Resources::default();
        for lane in self.lanes.iter().flatten() {
            for _ in 0..lane.granted {
                sum.add(&lane.request);
            }
        }
        sum
    }
}

/// Whether a dispatched call is queued.
pub(super) enum Refuse {
    No,
    Silently,
    As(OutcomeClass),
}

/// What became of a transition.
pub(super) struct Applied {
    pub action: Action,
    pub over: Over,
}
