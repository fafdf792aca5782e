//! Cancelling: a run, a group, one task; and the stop of a run that has failed too often.

use super::Scheduler;
use super::depend::End;
use super::group::Closed;
use super::rows::Place;
use super::task_table::{TaskEvent, TaskState};
use crate::ids::{GroupId, RunId, TaskRef};
use crate::messages::{Outbox, Output};
use std::collections::BTreeMap;

impl Scheduler {
    /// Ends a run, a group of it, or one element.
    pub(super) fn cancel(&mut self, run_id: RunId, group: Option<GroupId>, index: Option<u32>, out: &mut Outbox) {
        let Some(run) = self.runs.get_mut(&run_id) else { return };
        let groups: Vec<GroupId> = match group {
            Some(group) if self.groups.get(&group).is_some_and(|known| known.run == run_id) => vec![group],
            Some(_) => return,
            None => {
                run.cancelling |= run.end.is_none();
                let groups = run.groups.clone();
                self.close_run(run_id, out);
                for &group in &groups {
                    self.let_go(group, 0, u32::MAX);
                }
                groups
            }
        };
        let (first, end) = match index {
            Some(index) => (index, index.saturating_add(1)),
            None => (0, u32::MAX),
        };
        // Everything is cancelled before any of it is passed on: what depends on it is then cancelled itself and not skipped.
        for &group in &groups {
            if index.is_none() {
                self.close_open(group, Closed::Cancelled, out);
                self.cancel_growth(group, out);
            }
            self.cancel_unstarted(group, first, end, out);
            self.refuse_cancel_of_ended(group, first, end);
        }
        let mut slots: Vec<u32> = Vec::new();
        for group in groups {
            let group = self.group_of(group);
            slots.extend(group.dispatched.iter().filter(|(index, _)| (first..end).contains(index)).map(|(_, slot)| slot));
        }
        self.cancel_rows(slots, out);
    }

    /// What waits, is ready or backs off ends here and now.
    pub(super) fn cancel_unstarted(&mut self, id: GroupId, first: u32, end: u32, out: &mut Outbox) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let mut hit: Vec<(u32, u32)> = Vec::new();
        let mut take = |set: &mut super::interval_set::IntervalSet| -> u32 {
            let inside: Vec<(u32, u32)> = set.within(first, end).collect();
            let count = inside.iter().map(|(first, end)| set.remove_range(*first, *end)).sum();
            hit.extend(inside);
            count
        };
        let waiting = take(&mut group.waiting);
        let ready: u32 = group.queues.iter_mut().map(|queue| take(&mut queue.ready)).sum();
        let backoffs: Vec<u32> = group.backoff.within(first, end).flat_map(|(first, end)| first..end).collect();
        let in_backoff = take(&mut group.backoff);
        for index in backoffs {
            let detail = group.memos.get_mut(&index).and_then(|memo| memo.detail.as_mut());
            if let Some(until) = detail.and_then(|detail| detail.backoff_until.take()) {
                self.backoffs.remove(&(until, TaskRef { group: id, index }));
            }
        }
        for (state, count) in [(TaskState::Waiting, waiting), (TaskState::Ready, ready), (TaskState::Backoff, in_backoff)] {
            if count > 0 {
                self.counts.task(state, TaskEvent::Cancel, count);
            }
        }
        hit.sort_unstable();
        for (first, end) in hit {
            out.push(Output::Cancelled { group: id, first, count: end - first });
            self.settling.push_back(super::depend::Settled { group: id, first, end, how: End::Cancelled });
        }
        self.index_group(id);
    }

    /// A request that reaches tasks that are over changes nothing of them, and is counted.
    fn refuse_cancel_of_ended(&mut self, id: GroupId, first: u32, end: u32) {
        let Some(group) = self.groups.get(&id) else { return };
        let ended = [
            (TaskState::Succeeded, &group.succeeded),
            (TaskState::Failed, &group.failed),
            (TaskState::Skipped, &group.skipped),
            (TaskState::Cancelled, &group.cancelled),
        ];
        for (state, set) in ended {
            if set.within(first, end).next().is_some() {
                self.counts.task(state, TaskEvent::Cancel, 1);
            }
        }
    }

    /// Attempts on workers are ended there; their tasks are over when the worker says so, or is lost.
    fn cancel_rows(&mut self, mut slots: Vec<u32>, out: &mut Outbox) {
        slots.sort_unstable_by_key(|slot| self.rows.get(*slot).fence);
        let mut handles: BTreeMap<u32, Vec<crate::ids::Handle>> = BTreeMap::new();
        for slot in slots {
            let (state, place, worker) = {
                let row = self.rows.get(slot);
                (row.state, row.place, row.worker)
            };
            let Some(next) = self.counts.task(state, TaskEvent::Cancel, 1) else { continue };
            self.rows.get_mut(slot).state = next;
            if matches!(place, Place::Admitted | Place::Prefetched)
                && let Some(book) = self.workers[worker as usize].as_mut()
            {
                book.move_row(&mut self.rows, slot, Place::Leaving);
            }
            handles.entry(worker).or_default().push(self.rows.handle(slot));
        }
        for (worker, handles) in handles {
            let session = self.worker(worker).session;
            out.push(Output::CancelAttempts { session, handles });
        }
    }

    /// A run has reached `max_failures`: nothing of it starts any more but what runs always. What executes goes on; what was
    /// sent and has not started is asked back, since a cancel could hit it executing.
    pub(super) fn stop_run(&mut self, id: RunId, out: &mut Outbox) {
        let Some(run) = self.runs.get(&id) else { return };
        let mut asked: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for group in run.groups.clone() {
            if self.groups.get(&group).is_none_or(|group| group.always) {
                continue;
            }
            self.close_open(group, Closed::Cancelled, out);
            self.cancel_unstarted(group, 0, u32::MAX, out);
            for (_, slot) in self.group_of(group).dispatched.iter() {
                let row = self.rows.get(slot);
                if row.state == TaskState::Assigned && self.worker(row.worker).state == crate::messages::WorkerState::Active {
                    asked.entry(row.worker).or_default().push(slot);
                }
            }
        }
        for (worker, mut slots) in asked {
            slots.sort_unstable_by_key(|slot| self.rows.get(*slot).fence);
            self.retract(worker, slots, out);
        }
    }
}
