//! Results of one group's tasks as they lie in memory: slots in chunks, and batches as they arrived.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use rustc_hash::FxHashMap;
use scalable_proto::v1;
use smallvec::SmallVec;

use super::waiter::Waiter;
use crate::{Error, TaskError};

pub(super) const CHUNK: u32 = 1024;

/// No result yet.
pub(super) const PENDING: u32 = u32::MAX;
/// No result yet, and nobody wants it.
pub(super) const UNWANTED: u32 = u32::MAX - 1;
/// Over, and nobody wants it any more.
pub(super) const GONE: u32 = u32::MAX - 2;
/// In `at`: it was read.
pub(super) const READ: u32 = 1 << 31;

#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) batch: u32,
    pub(super) at: u32,
}
const _: () = assert!(size_of::<Slot>() == 8);

#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) slots: [Slot; CHUNK as usize],
    /// Elements that are not gone.
    pub(super) left: u32,
}

/// Which elements a batch is about.
#[derive(Debug)]
pub(super) enum Elements {
    From(u32),
    These(Vec<u32>),
}

/// Results as they arrived.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) elements: Elements,
    pub(super) count: u32,
    pub(super) bytes: Bytes,
    /// The end of each result in `bytes`; empty when all are empty.
    pub(super) ends: Vec<u32>,
    pub(super) others: FxHashMap<u32, Arc<Other>>,
    /// Results that somebody may still want.
    pub(super) left: u32,
    /// Of these, how many were not read.
    pub(super) unread: u32,
    /// What the batch counts in the scheduler's window.
    pub(super) weight: u64,
}

/// An end that is no inline result.
#[derive(Debug)]
pub(crate) enum Other {
    /// To be fetched.
    Object(v1::ObjectRef),
    /// There is none: it was a command, and it succeeded.
    Finished(Box<v1::AttemptReport>),
    /// There is none.
    Failed(TaskError),
}

impl Elements {
    pub(super) fn index(&self, at: u32) -> u32 {
        match self {
            Elements::From(first) => first + at,
            Elements::These(these) => these[at as usize],
        }
    }
}

impl Batch {
    pub(super) fn index(&self, at: u32) -> u32 {
        self.elements.index(at)
    }

    pub(super) fn range(&self, at: u32) -> std::ops::Range<usize> {
        let end = |at: u32| self.ends[at as usize] as usize;
        if self.ends.is_empty() {
            return 0..0;
        }
        if at == 0 { 0..end(0) } else { end(at - 1)..end(at) }
    }
}

/// A result, not yet decoded.
#[derive(Clone, Debug)]
pub(crate) enum Raw {
    /// The codec's bytes.
    Inline(Bytes),
    /// An object or a failure.
    Other(Arc<Other>),
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Number of the first chunk.
    pub(super) first_chunk: u32,
    pub(super) chunks: VecDeque<Option<Box<Chunk>>>,
    /// Number of the first batch. Batches are numbered as they arrive; where nobody reads them in that order, the number of one that
    /// is gone is given to another.
    pub(super) first_batch: u32,
    pub(super) batches: VecDeque<Option<Batch>>,
    pub(super) free_batches: Vec<u32>,
    pub(super) in_order: bool,
    /// Elements that are over.
    pub(super) over: u32,
    /// Elements that are over and have no result.
    pub(super) failed: u32,
    /// Number of elements, once nothing follows.
    pub(super) length: Option<u32>,
    /// Elements appended so far.
    pub(super) appended: u32,
    pub(super) waiting: FxHashMap<u32, SmallVec<[Waiter; 1]>>,
    /// Woken by every batch.
    pub(super) watching: Vec<Waker>,
    /// Everything that has no result yet ends like this.
    pub(super) all: Option<Error>,
}

pub(super) enum Place<'a> {
    Freed,
    Unborn,
    Here(&'a Chunk),
}

impl State {
    pub(super) fn chunk(&self, chunk: u32) -> Place<'_> {
        let Some(at) = chunk.checked_sub(self.first_chunk) else { return Place::Freed };
        match self.chunks.get(at as usize) {
            None => Place::Unborn,
            Some(None) => Place::Freed,
            Some(Some(chunk)) => Place::Here(chunk),
        }
    }

    /// The element's slot, if its chunk is not gone.
    pub(super) fn slot_mut(&mut self, index: u32) -> Option<&mut Slot> {
        let at = (index / CHUNK).checked_sub(self.first_chunk)? as usize;
        while self.chunks.len() <= at {
            let slots = [Slot { batch: PENDING, at: 0 }; CHUNK as usize];
            self.chunks.push_back(Some(Box::new(Chunk { slots, left: CHUNK })));
        }
        Some(&mut self.chunks[at].as_mut()?.slots[(index % CHUNK) as usize])
    }

    pub(super) fn slot(&mut self, index: u32) -> Slot {
        self.slot_mut(index).map_or(Slot { batch: GONE, at: 0 }, |slot| *slot)
    }

    /// Marks an element as gone, and its chunk when it was the last.
    pub(super) fn gone(&mut self, index: u32) {
        if let Some(slot) = self.slot_mut(index) {
            slot.batch = GONE;
        }
        let at = ((index / CHUNK) - self.first_chunk) as usize;
        if let Some(Some(chunk)) = self.chunks.get_mut(at) {
            chunk.left -= 1;
            if chunk.left == 0 {
                self.chunks[at] = None;
                while matches!(self.chunks.front(), Some(None)) {
                    self.chunks.pop_front();
                    self.first_chunk += 1;
                }
            }
        }
    }

    /// A result, and what its batch weighs when this was the last of it that was not read.
    pub(super) fn raw(&mut self, index: u32, slot: Slot) -> (Raw, u64) {
        let Some(batch) = self.batch(slot.batch) else {
            // A slot names a batch only while the batch counts it.
            return (Raw::Inline(Bytes::new()), 0);
        };
        let at = slot.at & !READ;
        let raw = match batch.others.get(&at) {
            Some(other) => Raw::Other(other.clone()),
            None => Raw::Inline(batch.bytes.slice(batch.range(at))),
        };
        if slot.at & READ != 0 {
            return (raw, 0);
        }
        if let Some(slot) = self.slot_mut(index) {
            slot.at |= READ;
        }
        (raw, self.read_one(slot.batch))
    }

    /// One more result of a batch was read or let go of; what the batch weighs when it was the last.
    pub(super) fn read_one(&mut self, key: u32) -> u64 {
        match self.batches.get_mut((key - self.first_batch) as usize) {
            Some(Some(batch)) => {
                batch.unread -= 1;
                if batch.unread == 0 { batch.weight } else { 0 }
            }
            _ => 0,
        }
    }

    /// Takes a batch; returns what it weighs when nobody wants anything of it, and who is to be woken.
    pub(super) fn take(&mut self, mut batch: Batch) -> (u64, Vec<Waker>) {
        let reused = self.free_batches.pop();
        let key = reused.unwrap_or_else(|| self.next_batch());
        let mut woken = std::mem::take(&mut self.watching);
        for at in 0..batch.count {
            let index = batch.index(at);
            let Some(slot) = self.slot_mut(index) else { continue };
            match slot.batch {
                PENDING => {
                    *slot = Slot { batch: key, at };
                    batch.left += 1;
                    if !self.waiting.is_empty()
                        && let Some(waiters) = self.waiting.remove(&index)
                    {
                        woken.extend(waiters.into_iter().filter_map(Waiter::told));
                    }
                }
                UNWANTED => self.gone(index),
                GONE => continue,
                key => {
                    woken.extend(self.told_again(index, key, &batch, at));
                    continue;
                }
            }
            self.over += 1;
            if batch.others.get(&at).is_some_and(|other| matches!(**other, Other::Failed(_))) {
                self.failed += 1;
            }
        }
        batch.unread = batch.left;
        let unwanted = if batch.left == 0 { batch.weight } else { 0 };
        let kept = (batch.left > 0).then_some(batch);
        match (reused, kept) {
            (Some(key), kept @ Some(_)) => self.batches[(key - self.first_batch) as usize] = kept,
            (Some(key), None) => self.free_batches.push(key),
            (None, kept @ Some(_)) => self.batches.push_back(kept),
            (None, None) => {}
        }
        (unwanted, woken)
    }

    /// An element that was over already has come again in `batch`: an object that has moved, or was lost for good. Returns who waits
    /// for that.
    fn told_again(&mut self, index: u32, key: u32, batch: &Batch, at: u32) -> Vec<Waker> {
        let end = match batch.others.get(&at) {
            Some(end) => end.clone(),
            None => {
                let inline = batch.bytes.slice(batch.range(at));
                Arc::new(Other::Object(v1::ObjectRef { size: inline.len() as u64, inline, ..Default::default() }))
            }
        };
        let place = self.slot(index).at & !READ;
        let known = key.checked_sub(self.first_batch).and_then(|at| self.batches.get_mut(at as usize)?.as_mut());
        // Anything but an object is final.
        if let Some(Other::Object(_)) = known.as_ref().and_then(|known| known.others.get(&place)).map(|other| &**other)
            && let Some(known) = known
        {
            self.failed += u32::from(matches!(*end, Other::Failed(_)));
            known.others.insert(place, end);
        }
        self.waiting.remove(&index).into_iter().flatten().filter_map(Waiter::told).collect()
    }

    pub(super) fn next_batch(&self) -> u32 {
        self.first_batch + self.batches.len() as u32
    }

    pub(super) fn batch(&self, key: u32) -> Option<&Batch> {
        self.batches.get(key.checked_sub(self.first_batch)? as usize)?.as_ref()
    }

    /// One who held a batch lets it go.
    pub(super) fn let_go(&mut self, key: u32) {
        let at = (key - self.first_batch) as usize;
        let Some(Some(batch)) = self.batches.get_mut(at) else { return };
        batch.left -= 1;
        if batch.left > 0 {
            return;
        }
        self.batches[at] = None;
        if !self.in_order {
            self.free_batches.push(key);
            return;
        }
        while matches!(self.batches.front(), Some(None)) {
            self.batches.pop_front();
            self.first_batch += 1;
        }
    }

    /// Nobody wants the element any more; returns what its batch weighs when this was the last of it that was not read.
    pub(super) fn dropped(&mut self, index: u32) -> u64 {
        let slot = self.slot(index);
        match slot.batch {
            GONE | UNWANTED => 0,
            PENDING => {
                self.waiting.remove(&index);
                if let Some(slot) = self.slot_mut(index) {
                    slot.batch = UNWANTED;
                }
                0
            }
            key => {
                let read = if slot.at & READ == 0 { self.read_one(key) } else { 0 };
                self.let_go(key);
                self.gone(index);
                read
            }
        }
    }

    pub(super) fn watch(&mut self, waker: &Waker) {
        if !self.watching.iter().any(|known| known.will_wake(waker)) {
            self.watching.push(waker.clone());
        }
    }

    pub(super) fn end_all(&mut self, error: Error) -> Vec<Waker> {
        self.all.get_or_insert(error);
        let mut woken = std::mem::take(&mut self.watching);
        for (_, waiters) in self.waiting.drain() {
            woken.extend(waiters.into_iter().filter_map(Waiter::told));
        }
        woken
    }
}

/// The end of each element's result, also of those that have none; empty when all are empty. Nothing when the batch contradicts
/// itself.
pub(super) fn complete_ends(ends: Vec<u32>, others: &FxHashMap<u32, Arc<Other>>, count: u32, bytes: usize) -> Option<Vec<u32>> {
    let ends = if ends.is_empty() || ends.len() == count as usize {
        ends
    } else if ends.len() + others.len() == count as usize {
        // Only those that have a result are in the column.
        let (mut told, mut last) = (ends.iter(), 0);
        let end = |at: u32| {
            if !others.contains_key(&at) {
                last = *told.next()?;
            }
            Some(last)
        };
        (0..count).map(end).collect::<Option<Vec<u32>>>()?
    } else {
        return None;
    };
    let grows = ends.iter().zip(ends.iter().skip(1)).all(|(one, next)| one <= next);
    let last = ends.last().copied().unwrap_or(0) as usize;
    (grows && last == bytes).then_some(ends)
}
