//! The results of one group's tasks, as far as somebody waits for them.
//!
//! An element is eight bytes in a chunk of 1,024: which batch of results has it, and where in that. Batches stay as they arrived and
//! are decoded by whoever reads, on its own thread; nothing is allocated for an element and nobody is woken who does not wait.
//! A chunk goes when every element of it is over and nobody has a handle of one; a batch when all of its results were dropped.

mod results;
#[cfg(test)]
mod tests;
mod waiter;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use bytes::Bytes;
use rustc_hash::FxHashMap;
use scalable_proto::v1;
use smallvec::SmallVec;

use crate::outbox::Range;
use crate::shared::{Shared, Stake};
use crate::task_error::Attempt;
use crate::{Error, TaskError};
use results::{Batch, CHUNK, Elements, GONE, PENDING, Place, State, UNWANTED, complete_ends};

pub(crate) use results::{Other, Raw};
pub(crate) use waiter::{Ready, Waiter};

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Group {
    stake: Arc<Stake>,
    ordinal: u32,
    name: String,
    state: Mutex<State>,
}

/// How far a group is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Tasks submitted so far.
    pub submitted: u32,
    /// Of these, how many are over, well or badly.
    pub over: u32,
    /// Of these, how many have no result: failed, cancelled, skipped or refused.
    pub failed: u32,
    /// True when no more are submitted.
    pub complete: bool,
}

impl Group {
    /// With `in_order` its results can be read in the order of their arrival.
    pub(crate) fn new(stake: Arc<Stake>, ordinal: u32, name: String, in_order: bool) -> Arc<Group> {
        let state = State { in_order, ..State::default() };
        let group = Arc::new(Group { stake, ordinal, name, state: Mutex::new(state) });
        group.shared().register(&group);
        if let Some(error) = group.shared().over() {
            group.lost(error);
        }
        group
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.stake.shared
    }

    pub(crate) fn ordinal(&self) -> u32 {
        self.ordinal
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The methods of the state leave it consistent at every call that can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a batch of results, all of them of the first `length` elements.
    pub(crate) fn arrived(&self, results: v1::ResultBatch, length: u32) {
        let shared = self.shared();
        let listed = results.index.len() as u32;
        let (elements, count, end) = match results.index.iter().copied().max() {
            None => (Elements::From(results.first), results.count, results.first.checked_add(results.count)),
            Some(max) => (Elements::These(results.index), listed, max.checked_add(1)),
        };
        let others = self.others(results.others, &elements, count);
        let ends = complete_ends(results.result_end, &others, count, results.results.len());
        let (Some(ends), true) = (ends, end.is_some_and(|end| end <= length)) else {
            return shared.end(Error::Lost {
                address: shared.address.clone(),
                reason: format!("a batch of results of {} does not add up", self.name),
            });
        };
        let weight = results.weight;
        let batch = Batch { elements, count, bytes: results.results, ends, others, left: 0, unread: 0, weight };
        let (unwanted, woken) = self.state().take(batch);
        if unwanted > 0 {
            shared.was_read(unwanted);
        }
        woken.into_iter().for_each(Waker::wake);
    }

    fn others(&self, others: Vec<v1::OtherEnd>, elements: &Elements, count: u32) -> FxHashMap<u32, Arc<Other>> {
        let mut found = FxHashMap::default();
        for other in others.into_iter().filter(|other| other.at < count) {
            let end = match other.end {
                Some(v1::other_end::End::Object(object)) => Other::Object(object),
                Some(v1::other_end::End::Finished(report)) => Other::Finished(Box::new(report)),
                Some(v1::other_end::End::Error(error)) => {
                    let root = self.shared().task_name(error.root_group, error.root_index);
                    Other::Failed(TaskError::from_wire(error, format!("{}[{}]", self.name, elements.index(other.at)), root))
                }
                None => continue,
            };
            found.insert(other.at, Arc::new(end));
        }
        found
    }

    /// Elements were refused, or the group and all that follows.
    pub(crate) fn rejected(&self, mut rejected: v1::Rejected, length: u32) {
        // What is refused beyond the elements that there are cannot be told to anybody.
        if rejected.count > 0 {
            rejected.count = rejected.count.min(length.saturating_sub(rejected.first));
            if rejected.count == 0 {
                return;
            }
        }
        let refusal = rejected.refusal.unwrap_or_default();
        let error = TaskError::Rejected { code: refusal.code, message: refusal.message, help: refusal.help };
        let woken = if rejected.count == 0 {
            self.state().end_all(Error::Task(error))
        } else {
            let mut others = FxHashMap::default();
            let end = Arc::new(Other::Failed(error));
            others.extend((0..rejected.count).map(|at| (at, end.clone())));
            let elements = Elements::From(rejected.first);
            let bytes = Bytes::new();
            let count = rejected.count;
            let batch = Batch { elements, count, bytes, ends: Vec::new(), others, left: 0, unread: 0, weight: 0 };
            let mut state = self.state();
            // The group was refused, and why was said: that its elements are too is no news.
            if state.all.is_some() { Vec::new() } else { state.take(batch).1 }
        };
        woken.into_iter().for_each(Waker::wake);
    }

    /// The session is over: nothing arrives any more.
    pub(crate) fn lost(&self, error: &Error) {
        let woken = self.state().end_all(error.clone());
        woken.into_iter().for_each(Waker::wake);
    }

    /// The element's result, or the promise that `waiter` is told when it is there.
    pub(crate) fn poll(&self, index: u32, waiter: impl FnOnce() -> Waiter) -> Option<Result<Raw, Error>> {
        let mut state = self.state();
        let slot = state.slot(index);
        if slot.batch < GONE {
            let (raw, read) = state.raw(index, slot);
            drop(state);
            if read > 0 {
                self.shared().was_read(read);
            }
            return Some(Ok(raw));
        }
        if let Some(error) = &state.all {
            return Some(Err(error.clone()));
        }
        if slot.batch == GONE {
            let (message, task) = ("it was taken out of its array".to_owned(), format!("{}[{index}]", self.name));
            let attempt = Arc::new(Attempt { task, ..Attempt::default() });
            return Some(Err(Error::Task(TaskError::ResultLost { message, attempt })));
        }
        match waiter() {
            Waiter::Task(waker) => {
                let waiters = state.waiting.entry(index).or_default();
                let known = waiters.iter().any(|known| matches!(known, Waiter::Task(known) if known.will_wake(&waker)));
                if !known {
                    waiters.push(Waiter::Task(waker));
                }
            }
            queue => state.waiting.entry(index).or_default().push(queue),
        }
        None
    }

    /// The end of an element of which `known` was told, once it is another.
    pub(crate) fn poll_moved(&self, index: u32, known: &Arc<Other>, waker: &Waker) -> Poll<Result<Arc<Other>, Error>> {
        let mut state = self.state();
        let slot = state.slot(index);
        if slot.batch < GONE
            && let (Raw::Other(now), _) = state.raw(index, slot)
            && !Arc::ptr_eq(&now, known)
        {
            return Poll::Ready(Ok(now));
        }
        if let Some(error) = &state.all {
            return Poll::Ready(Err(error.clone()));
        }
        if slot.batch == GONE {
            return Poll::Ready(Ok(known.clone()));
        }
        let waiters = state.waiting.entry(index).or_default();
        if !waiters.iter().any(|waiter| matches!(waiter, Waiter::Task(known) if known.will_wake(waker))) {
            waiters.push(Waiter::Task(waker.clone()));
        }
        Poll::Pending
    }

    /// True when the element is over.
    pub(crate) fn is_over(&self, index: u32) -> bool {
        let mut state = self.state();
        state.all.is_some() || state.slot(index).batch <= GONE
    }

    /// Nobody has a handle of the element any more.
    pub(crate) fn dropped(&self, index: u32) {
        let read = self.state().dropped(index);
        if read > 0 {
            self.shared().was_read(read);
        }
        self.shared().release(Range { group: self.ordinal, first: index, count: 1 });
    }

    /// More elements were appended.
    pub(crate) fn appended(&self, count: u32, last: bool) {
        let mut state = self.state();
        state.appended += count;
        if last {
            state.length = Some(state.appended);
        }
        let woken = std::mem::take(&mut state.watching);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn progress(&self) -> Progress {
        let state = self.state();
        Progress { submitted: state.appended, over: state.over, failed: state.failed, complete: state.length.is_some() }
    }

    /// How many more may be appended so that at most `ahead` are not over.
    pub(crate) fn poll_room(&self, ahead: u32, waker: &Waker) -> Poll<u32> {
        let mut state = self.state();
        let under_way = state.appended - state.over.min(state.appended);
        if under_way < ahead || state.all.is_some() {
            return Poll::Ready(ahead.saturating_sub(under_way).max(1));
        }
        state.watch(waker);
        Poll::Pending
    }

    /// Ready when every element is over and nothing follows, or nothing arrives any more.
    pub(crate) fn poll_over(&self, waker: &Waker) -> Poll<()> {
        let mut state = self.state();
        if state.length == Some(state.over) || state.all.is_some() {
            return Poll::Ready(());
        }
        state.watch(waker);
        Poll::Pending
    }

    /// Ready when so many elements are over, or nothing arrives any more.
    pub(crate) fn poll_over_of(&self, length: u32, waker: &Waker) -> Poll<()> {
        let mut state = self.state();
        if state.over >= length || state.all.is_some() {
            return Poll::Ready(());
        }
        state.watch(waker);
        Poll::Pending
    }

    /// The first element without a result.
    pub(crate) fn first_pending(&self) -> u32 {
        let mut state = self.state();
        let appended = state.appended;
        (0..appended).find(|index| matches!(state.slot(*index).batch, PENDING | UNWANTED)).unwrap_or(appended)
    }

    /// Whether element `index` was appended; `Some(false)` when the group ends before it, none when that is not known yet.
    pub(crate) fn is_appended(&self, index: u32, waker: &Waker) -> Option<bool> {
        let mut state = self.state();
        if index < state.appended {
            return Some(true);
        }
        if state.length.is_some() || state.all.is_some() {
            return Some(false);
        }
        state.watch(waker);
        None
    }

    /// Passes the results that came next to `each`, at most `cursor.most` of them.
    pub(crate) fn read_arrivals(&self, cursor: &mut Cursor, waker: &Waker, each: &mut dyn FnMut(u32, Raw)) -> Reading {
        let mut state = self.state();
        let mut taken = 0;
        let mut released: SmallVec<[Range; 4]> = SmallVec::new();
        let mut budget = cursor.most;
        cursor.skip_to(state.first_batch);
        while budget > 0 && cursor.batch < state.next_batch() {
            let Some(batch) = state.batch(cursor.batch).filter(|batch| cursor.at < batch.count) else {
                cursor.skip_to(cursor.batch + 1);
                continue;
            };
            let index = batch.index(cursor.at);
            cursor.at += 1;
            let slot = state.slot(index);
            if slot.batch != cursor.batch {
                continue;
            }
            let (raw, read) = state.raw(index, slot);
            taken += read;
            // An object is let go of when it has been fetched.
            let consumed = cursor.consumes && matches!(raw, Raw::Inline(_));
            each(index, raw);
            budget -= 1;
            if consumed {
                state.dropped(index);
                match released.last_mut() {
                    Some(last) if last.first + last.count == index => last.count += 1,
                    _ => released.push(Range { group: self.ordinal, first: index, count: 1 }),
                }
            }
        }
        let reading = if budget < cursor.most {
            Reading::Some
        } else if state.length == Some(state.over) {
            Reading::End
        } else if let Some(error) = &state.all {
            Reading::Lost(error.clone())
        } else {
            state.watch(waker);
            Reading::Nothing
        };
        drop(state);
        if taken > 0 {
            self.shared().was_read(taken);
        }
        released.into_iter().for_each(|range| self.shared().release(range));
        reading
    }

    /// Elements that nobody has dropped, as ranges.
    fn kept(&self) -> Vec<(u32, u32)> {
        let state = self.state();
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        let mut index = 0;
        while index < state.appended {
            let (chunk, at) = (index / CHUNK, (index % CHUNK) as usize);
            let (kept, step) = match state.chunk(chunk) {
                Place::Freed => (false, CHUNK - at as u32),
                Place::Unborn => (true, CHUNK - at as u32),
                Place::Here(chunk) => (!matches!(chunk.slots[at].batch, GONE | UNWANTED), 1),
            };
            let step = step.min(state.appended - index);
            if kept {
                match ranges.last_mut() {
                    Some((first, count)) if *first + *count == index => *count += step,
                    _ => ranges.push((index, step)),
                }
            }
            index += step;
        }
        ranges
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for (first, count) in self.kept() {
            self.shared().release(Range { group: self.ordinal, first, count });
        }
        self.shared().forget(self.ordinal);
    }
}

/// Where a reader of [`Group::read_arrivals`] is.
#[derive(Debug)]
pub(crate) struct Cursor {
    batch: u32,
    at: u32,
    /// What was read is dropped.
    consumes: bool,
    /// Results at a time.
    most: usize,
}

impl Cursor {
    /// From the first result on.
    pub(crate) fn new(consumes: bool) -> Cursor {
        Cursor { batch: 0, at: 0, consumes, most: 4096 }
    }

    fn skip_to(&mut self, batch: u32) {
        if self.batch < batch {
            (self.batch, self.at) = (batch, 0);
        }
    }
}

/// What a reader found.
#[derive(Debug)]
pub(crate) enum Reading {
    /// Results.
    Some,
    /// None now; the waker is woken.
    Nothing,
    /// Everything is over and was read.
    End,
    /// What is missing will never come.
    Lost(Error),
}
