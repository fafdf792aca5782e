//! Rows of dispatched attempts: a slab with generations, threaded onto one list per worker and kind.
//!
//! A task has a row from its dispatch to the end of that attempt and at no other time. Lists keep the order of dispatch, which
//! is the order in which the worker starts what it was sent.

use super::task_table::TaskState;
use crate::ids::{GroupId, Handle, Micros, ShapeId, TaskRef};

/// No row.
pub(super) const NIL: u32 = u32::MAX;

/// Which of its worker's lists a row is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Place {
    /// On none: the slot is free.
    Free,
    /// Assigned, its resources reserved.
    Admitted,
    /// Assigned ahead of room, nothing reserved.
    Prefetched,
    /// Executing: running, or being cancelled after it had started.
    Executing,
    /// Asked back or cancelled before it was known to execute.
    Leaving,
}

/// One dispatched attempt.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// Order of dispatch.
    pub(super) fence: u64,
    /// Time of dispatch, then of the start.
    pub(super) since: Micros,
    pub(super) group: GroupId,
    pub(super) index: u32,
    pub(super) attempt: u32,
    pub(super) generation: u32,
    /// Slot of its worker.
    pub(super) worker: u32,
    pub(super) shape: ShapeId,
    prev: u32,
    next: u32,
    /// Cpu time charged to the run in advance, in micros.
    pub(super) estimate: u32,
    pub(super) state: TaskState,
    pub(super) place: Place,
    /// Its resources are reserved in the worker's book.
    pub(super) holds: bool,
    /// It was admitted at dispatch and may start at once: its start measures the round trip.
    pub(super) prompt: bool,
}

// A million rows are 56 MB: what is not needed by every completion goes to the group's memo.
const _: () = assert!(size_of::<Row>() <= 56);

impl Row {
    pub(super) fn task(&self) -> TaskRef {
        TaskRef { group: self.group, index: self.index }
    }

    /// Whether it is on a worker's lists.
    pub(super) fn is_live(&self) -> bool {
        self.place != Place::Free
    }
}

/// A list of rows in order of dispatch.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    pub(super) head: u32,
    pub(super) tail: u32,
    pub(super) len: u32,
}

impl Default for List {
    fn default() -> Self {
        List { head: NIL, tail: NIL, len: 0 }
    }
}

/// What a new row starts with.
pub(super) struct NewRow {
    pub(super) fence: u64,
    pub(super) since: Micros,
    pub(super) task: TaskRef,
    pub(super) attempt: u32,
    pub(super) worker: u32,
    pub(super) shape: ShapeId,
    pub(super) estimate: u32,
    pub(super) prompt: bool,
}

/// All rows.
#[derive(Debug, Default)]
pub(super) struct Rows {
    slots: Vec<Row>,
    free: Vec<u32>,
}

impl Rows {
    /// A new row, assigned and on no list yet.
    pub(super) fn add(&mut self, new: NewRow) -> Handle {
        let row = |generation| Row {
            fence: new.fence,
            since: new.since,
            group: new.task.group,
            index: new.task.index,
            attempt: new.attempt,
            generation,
            worker: new.worker,
            shape: new.shape,
            prev: NIL,
            next: NIL,
            estimate: new.estimate,
            state: TaskState::Assigned,
            place: Place::Free,
            holds: false,
            prompt: new.prompt,
        };
        match self.free.pop() {
            Some(slot) => {
                let generation = self.slots[slot as usize].generation;
                self.slots[slot as usize] = row(generation);
                Handle { slot, generation }
            }
            None => {
                self.slots.push(row(1));
                Handle { slot: self.slots.len() as u32 - 1, generation: 1 }
            }
        }
    }

    /// Gives up a row that is on no list: its handle never matches again. A slot whose generations are used up is retired.
    pub(super) fn free(&mut self, slot: u32) {
        let row = &mut self.slots[slot as usize];
        debug_assert!(!row.is_live());
        if row.generation < u32::MAX {
            row.generation += 1;
            self.free.push(slot);
        }
    }

    pub(super) fn get(&self, slot: u32) -> &Row {
        &self.slots[slot as usize]
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> &mut Row {
        &mut self.slots[slot as usize]
    }

    /// The row in a slot that a peer named, if it is live.
    pub(super) fn live(&self, slot: u32) -> Option<&Row> {
        self.slots.get(slot as usize).filter(|row| row.is_live())
    }

    pub(super) fn handle(&self, slot: u32) -> Handle {
        Handle { slot, generation: self.slots[slot as usize].generation }
    }

    /// Slots there are, live or free.
    #[cfg(test)]
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Live rows.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Row)> {
        self.slots.iter().enumerate().filter(|(_, row)| row.is_live()).map(|(slot, row)| (slot as u32, row))
    }

    /// Puts a row on a list at its place in the order of dispatch. Nearly always that is the end.
    pub(super) fn link(&mut self, list: &mut List, slot: u32, place: Place) {
        let fence = self.get(slot).fence;
        let mut after = list.tail;
        while after != NIL && self.get(after).fence > fence {
            after = self.get(after).prev;
        }
        let next = if after == NIL { list.head } else { self.get(after).next };
        let row = self.get_mut(slot);
        debug_assert!(row.place == Place::Free);
        (row.prev, row.next, row.place) = (after, next, place);
        match after {
            NIL => list.head = slot,
            _ => self.get_mut(after).next = slot,
        }
        match next {
            NIL => list.tail = slot,
            _ => self.get_mut(next).prev = slot,
        }
        list.len += 1;
    }

    /// Takes a row off the list it is on.
    pub(super) fn unlink(&mut self, list: &mut List, slot: u32) {
        let row = self.get_mut(slot);
        let (prev, next) = (row.prev, row.next);
        (row.prev, row.next, row.place) = (NIL, NIL, Place::Free);
        match prev {
            NIL => list.head = next,
            _ => self.get_mut(prev).next = next,
        }
        match next {
            NIL => list.tail = prev,
            _ => self.get_mut(next).prev = prev,
        }
        list.len -= 1;
    }

    /// The row after this one on its list.
    pub(super) fn next(&self, slot: u32) -> Option<u32> {
        some(self.get(slot).next)
    }

    /// The row before this one on its list.
    pub(super) fn prev(&self, slot: u32) -> Option<u32> {
        some(self.get(slot).prev)
    }

    /// Slots of a list, in order of dispatch.
    pub(super) fn on(&self, list: List) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(some(list.head), |slot| self.next(*slot))
    }

    /// Slots of a list, newest first.
    pub(super) fn newest(&self, list: List) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(some(list.tail), |slot| self.prev(*slot))
    }
}

fn some(slot: u32) -> Option<u32> {
    (slot != NIL).then_some(slot)
}
