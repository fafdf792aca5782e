//! Taking work back from a worker that has not started it: for one that starves, for a drain, for a run that has stopped, because it has
//! no room for results.
//!
//! A row asked back is `Retracting` until the worker says what it really gave back. A connection's reset takes back without
//! asking: the fence makes what the worker says of such rows void, and it is told to end them.

use super::Scheduler;
use super::counts::Happening;
use super::mutation::Mutation;
use super::rows::Place;
use super::task_table::{TaskEvent, TaskState};
use crate::ids::{Handle, Micros, SessionId};
use crate::messages::{Outbox, OutcomeClass, Output, WorkerState};

/// Workers that a thief looks at.
const RICH_MAX: usize = 16;

impl Scheduler {
    /// Workers whose room has changed and that got nothing: each takes half of what the richest one of its pool was sent ahead.
    pub(super) fn steal(&mut self, out: &mut Outbox) {
        for thief in std::mem::take(&mut self.idle_check) {
            let Some(worker) = self.workers[thief as usize].as_ref() else { continue };
            if !worker.takes_work() || worker.admitted.len + worker.prefetched.len > 0 {
                continue;
            }
            let Some(victim) = self.richest(thief) else { continue };
            let (worker, rich) = (self.worker(thief), self.worker(victim));
            let half = rich.prefetched.len.div_ceil(2) as usize;
            let mut stays = rich.prefetched.len;
            let fits = |slot: &u32| {
                let row = self.rows.get(*slot);
                worker.serves(self.group_of(row.group).component)
                    && self.shapes.get(row.shape.0).is_some_and(|shape| worker.capacity.fits(&worker.used, shape))
            };
            // What reads objects is taken only when it would wait longer behind what stays than its objects take to move.
            let worth = |slot: &u32| {
                let row = self.rows.get(*slot);
                let group = self.group_of(row.group);
                if !self.reads_objects(group) {
                    stays -= 1;
                    return true;
                }
                let Some(shape) = self.shapes.get(row.shape.0) else { return false };
                let before = rich.executing.len + rich.admitted.len + stays - 1;
                let moves = self.moving(&self.near(row.task()), thief);
                let worth = moves < self.waiting(rich, group, shape, before);
                stays -= u32::from(worth);
                worth
            };
            let wanted: Vec<u32> = self.rows.newest(rich.prefetched).filter(fits).filter(worth).take(half).collect();
            self.retract(victim, wanted, out);
        }
    }

    /// The worker of a thief's pool that was sent most ahead of room; of many, the richest of those looked at this time.
    fn richest(&mut self, thief: u32) -> Option<u32> {
        let pool = &self.worker(thief).pool;
        let (mut poor, mut best) = (Vec::new(), None);
        let after = self.rich.range(self.rich_looked..).chain(self.rich.range(..self.rich_looked)).take(RICH_MAX);
        let mut last = 0;
        for &slot in after {
            last = slot;
            match self.workers.get(slot as usize).and_then(Option::as_ref) {
                Some(other) if other.prefetched.len > 0 => {
                    if slot != thief && other.state == WorkerState::Active && other.pool == *pool {
                        best = best.max(Some((other.prefetched.len, std::cmp::Reverse(slot))));
                    }
                }
                _ => poor.push(slot),
            }
        }
        self.rich_looked = if self.rich.len() > RICH_MAX { last + 1 } else { 0 };
        for slot in poor {
            self.rich.remove(&slot);
        }
        best.map(|(_, std::cmp::Reverse(slot))| slot)
    }

    /// Asks a worker for rows that it is not known to execute.
    pub(super) fn retract(&mut self, worker: u32, slots: Vec<u32>, out: &mut Outbox) {
        let mut handles = Vec::with_capacity(slots.len());
        for slot in slots {
            let Some(next) = self.counts.task(self.rows.get(slot).state, TaskEvent::Retract, 1) else { continue };
            let Some(book) = self.workers[worker as usize].as_mut() else { continue };
            book.move_row(&mut self.rows, slot, Place::Leaving);
            self.rows.get_mut(slot).state = next;
            handles.push(self.rows.handle(slot));
        }
        if !handles.is_empty() {
            let session = self.worker(worker).session;
            out.push(Output::Retract { session, handles });
        }
    }

    /// Asks a draining or full worker for everything that it is not known to execute.
    pub(super) fn retract_unstarted(&mut self, worker: u32, out: &mut Outbox) {
        let book = self.worker(worker);
        let mut slots: Vec<u32> = self.rows.on(book.admitted).chain(self.rows.on(book.prefetched)).collect();
        slots.sort_unstable_by_key(|slot| self.rows.get(*slot).fence);
        self.retract(worker, slots, out);
    }

    /// A worker has no room for results, or has some again. What it has not started would wait there for as long.
    pub(super) fn full(&mut self, now: Micros, session: SessionId, full: bool, out: &mut Outbox) {
        let Some(slot) = self.heard(now, session, out) else {
            self.counts.fenced += 1;
            return;
        };
        if std::mem::replace(&mut self.worker_mut(slot).full, full) == full {
            return;
        }
        if full {
            self.counts.note(Happening::WorkerFull);
            self.drop_reservation(slot);
            if self.worker(slot).state == WorkerState::Active {
                self.retract_unstarted(slot, out);
            }
        }
        self.changed.insert(slot);
    }

    /// What a worker really gave back, and what it kept.
    pub(super) fn retract_reply(
        &mut self,
        now: Micros,
        session: SessionId,
        given_back: Vec<Handle>,
        kept: Vec<Handle>,
        out: &mut Outbox,
    ) {
        let Some(worker) = self.heard(now, session, out) else {
            self.counts.fenced += (given_back.len() + kept.len()) as u64;
            return;
        };
        for handle in given_back {
            match self.fenced_row(worker, handle, None) {
                Some(slot) => self.given_back(now, slot, out),
                None => self.counts.fenced += 1,
            }
        }
        for handle in kept {
            let Some(slot) = self.fenced_row(worker, handle, None) else {
                self.counts.fenced += 1;
                continue;
            };
            let (state, holds) = (self.rows.get(slot).state, self.rows.get(slot).holds);
            if let Some(next) = self.counts.task(state, TaskEvent::Keep, 1) {
                self.rows.get_mut(slot).state = next;
                let to = if holds { Place::Admitted } else { Place::Prefetched };
                if let Some(book) = self.workers[worker as usize].as_mut() {
                    book.move_row(&mut self.rows, slot, to);
                }
                self.rich.insert(worker);
                self.changed.insert(worker);
            }
        }
    }

    fn given_back(&mut self, now: Micros, slot: u32, out: &mut Outbox) {
        let row = self.rows.get(slot);
        let session = self.worker(row.worker).session;
        match self.counts.task(row.state, TaskEvent::GiveBack, 1) {
            Some(TaskState::Cancelled) => {
                let row = self.close_row(slot, None);
                self.remember_attempt(&row, false);
                self.report_cancelled(&row, session, None, out);
            }
            Some(_) if self.mutations.has(Mutation::KeepRowAfterRetract) => {
                let task = self.rows.get(slot).task();
                self.requeue(task, out);
            }
            Some(_) => self.taken_back(now, slot, session, out),
            None => {}
        }
    }

    /// Everything a worker is not known to execute goes elsewhere; what it still says of those rows is void.
    pub(super) fn take_back_unstarted(&mut self, now: Micros, worker: u32, out: &mut Outbox) -> Vec<Handle> {
        let book = self.worker(worker);
        let session = book.session;
        let lists = [book.admitted, book.prefetched, book.leaving];
        let mut slots: Vec<u32> = lists.into_iter().flat_map(|list| self.rows.on(list)).collect();
        slots.sort_unstable_by_key(|slot| self.rows.get(*slot).fence);
        let handles = slots.iter().map(|slot| self.rows.handle(*slot)).collect();
        for slot in slots {
            if self.rows.get(slot).state == TaskState::Cancelling {
                self.end_cancelled(slot, None, None, out);
            } else {
                self.counts.task(self.rows.get(slot).state, TaskEvent::TakeBack, 1);
                self.taken_back(now, slot, session, out);
            }
        }
        handles
    }

    /// An attempt that never executed is over; its task goes on under the next number, uncharged.
    fn taken_back(&mut self, now: Micros, slot: u32, session: SessionId, out: &mut Outbox) {
        let row = self.close_row(slot, None);
        let again = !self.no_new_starts(row.task());
        self.remember_attempt(&row, again);
        let (task, attempt, class) = (row.task(), row.attempt, OutcomeClass::Preempted);
        let retry_at = again.then_some(now);
        out.push(Output::AttemptEnded { task, attempt, session, class, token: None, retry_at, why: None });
        self.requeue(task, out);
    }
}
