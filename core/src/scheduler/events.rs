//! What workers report: starts and ends. The fence is here, and the one place where a result commits.

use super::Scheduler;
use super::depend::End;
use super::lease::Tell;
use super::mutation::Mutation;
use super::retry::Ending;
use super::rows::{Place, Row};
use super::task_table::{TaskEvent, TaskState};
use crate::ids::{Handle, Micros, SessionId};
use crate::messages::{EventKind, Finish, Outbox, OutcomeClass, Output, Stored, WorkerEvent, WorkerState};
use crate::resources::Resources;

impl Scheduler {
    /// Takes a worker's batch of events.
    pub(super) fn events(&mut self, now: Micros, session: SessionId, events: Vec<WorkerEvent>, out: &mut Outbox) {
        let Some(worker) = self.heard(now, session, out) else {
            events.iter().for_each(|event| self.void(event, out));
            return;
        };
        for event in events {
            match (self.fenced_row(worker, event.handle, Some(event.attempt)), &event.kind) {
                (Some(slot), EventKind::Started) => self.started(now, slot, out),
                (Some(slot), EventKind::Finished(finish)) => self.finished(now, slot, finish, out),
                (None, kind) => {
                    if *kind == EventKind::Started {
                        out.push(Output::CancelAttempts { session, handles: vec![event.handle] });
                    }
                    self.void(&event, out);
                }
            }
        }
    }

    /// An event of an attempt that is not current any more.
    fn void(&mut self, event: &WorkerEvent, out: &mut Outbox) {
        self.counts.fenced += 1;
        if let EventKind::Finished(finish) = &event.kind {
            out.push(Output::Superseded { token: finish.token });
        }
    }

    /// The fence: the slot of the live row that a worker means, if the row is its own, of that generation and of that attempt.
    pub(super) fn fenced_row(&self, worker: u32, handle: Handle, attempt: Option<u32>) -> Option<u32> {
        let row = self.rows.live(handle.slot)?;
        let current = row.generation == handle.generation && attempt.is_none_or(|attempt| row.attempt == attempt);
        let current = current || self.mutations.has(Mutation::DropAttemptFence);
        (current && row.worker == worker).then_some(handle.slot)
    }

    fn started(&mut self, now: Micros, slot: u32, out: &mut Outbox) {
        let row = self.rows.get(slot);
        let (state, task, attempt, worker, place, since) = (row.state, row.task(), row.attempt, row.worker, row.place, row.since);
        let (holds, prompt, shape) = (row.holds, row.prompt, row.shape);
        let Some(next) = self.counts.task(state, TaskEvent::Start, 1) else { return };
        if place == Place::Executing {
            return;
        }
        if !holds {
            let shape = self.shape_of(shape);
            let shapes = &self.shapes;
            let Some(book) = self.workers[worker as usize].as_mut() else { return };
            let of = |id: crate::ids::ShapeId| shapes.get(id.0).cloned().unwrap_or_default();
            if book.make_room(&mut self.rows, slot, &shape, of) {
                book.hold(&mut self.rows, slot, &shape);
            } else {
                book.unheld += 1;
            }
            self.rich.insert(worker);
            self.changed.insert(worker);
        } else if prompt {
            self.measure_round_trip(worker, now.saturating_sub(since));
        }
        let Some(book) = self.workers[worker as usize].as_mut() else { return };
        book.move_row(&mut self.rows, slot, Place::Executing);
        let session = book.session;
        let row = self.rows.get_mut(slot);
        (row.state, row.since) = (next, now);
        self.group_mut(task.group).running += 1;
        if next == TaskState::Running {
            out.push(Output::AttemptStarted { task, attempt, session });
        }
    }

    fn finished(&mut self, now: Micros, slot: u32, finish: &Finish, out: &mut Outbox) {
        let row = self.rows.get(slot);
        let (state, place, worker, prompt, since) = (row.state, row.place, row.worker, row.prompt, row.since);
        if place == Place::Admitted && prompt && has_executed(finish.class) {
            self.measure_round_trip(worker, now.saturating_sub(since).saturating_sub(finish.wall));
        }
        let mut class = as_reported(finish.class);
        if class == OutcomeClass::InputLost && state != TaskState::Cancelling {
            // Ends of the same batch count before what is said of their results.
            self.settle(out);
            let missing = finish.missing.as_ref().map_or(&[][..], |missing| &missing.0);
            if !self.inputs_missing(missing, out) {
                class = OutcomeClass::InfraStart;
            }
        }
        match finish.class {
            OutcomeClass::Succeeded => self.commit(slot, finish, out),
            _ if state == TaskState::Cancelling => self.end_cancelled(slot, Some(finish), Some(finish.token), out),
            reported => {
                self.attempt_failed(now, slot, Ending::reported(class, finish), out);
                if reported == OutcomeClass::Preempted {
                    self.hands_back(worker, out);
                }
            }
        }
    }

    /// Only a worker that drains hands back what it was sent; its own word for that travels on the other connection and may come
    /// later. Without this it would be sent the same tasks again until then.
    fn hands_back(&mut self, worker: u32, out: &mut Outbox) {
        if self.worker(worker).state == WorkerState::Active {
            let session = self.worker(worker).session;
            self.drain(self.now, session, Tell::Worker, out);
        }
    }

    /// Commits the result of the current attempt of a task. The only place where that happens.
    fn commit(&mut self, slot: u32, finish: &Finish, out: &mut Outbox) {
        let row = self.rows.get(slot);
        let (task, attempt, state) = (row.task(), row.attempt, row.state);
        let worker = row.worker;
        let session = self.worker(worker).session;
        let cancelled_too = self.mutations.has(Mutation::CommitCancelled);
        if self.counts.task(state, TaskEvent::Commit, 1).is_none() && !cancelled_too {
            out.push(Output::Superseded { token: finish.token });
            if matches!(finish.result, Stored::Held(_) | Stored::Files(_)) {
                out.push(Output::DropObject { session, task });
            }
            self.end_cancelled(slot, Some(finish), None, out);
            return;
        }
        if !self.mutations.has(Mutation::CommitTwice) {
            self.close_row(slot, Some(finish));
        }
        let group = self.group_of(task.group);
        let again = !group.restoring.is_empty() && group.restoring.contains(task.index);
        if group.kept && (again || finish.result != Stored::None) {
            self.store_result(worker, task, finish.result);
        }
        let token = finish.token;
        out.push(match again && !self.mutations.has(Mutation::CommitAgain) {
            true => Output::Restored { task, attempt, session, token },
            false => Output::Committed { task, attempt, session, token },
        });
        self.note_end(task.group, task.index, task.index + 1, End::Succeeded);
        if task.index == 0 && !again {
            self.open_groups(task, finish.length, out);
        }
    }

    /// A cancelled attempt is over, whatever became of it.
    pub(super) fn end_cancelled(&mut self, slot: u32, finish: Option<&Finish>, token: Option<u32>, out: &mut Outbox) {
        let row = self.rows.get(slot);
        let session = self.worker(row.worker).session;
        self.counts.task(row.state, TaskEvent::EndCancelled, 1);
        let row = self.close_row(slot, finish);
        self.remember_attempt(&row, false);
        self.report_cancelled(&row, session, token, out);
    }

    /// Says that a task's last attempt was ended and the task with it.
    pub(super) fn report_cancelled(&mut self, row: &Row, session: SessionId, token: Option<u32>, out: &mut Outbox) {
        let (task, attempt, class) = (row.task(), row.attempt, OutcomeClass::Cancelled);
        out.push(Output::AttemptEnded { task, attempt, session, class, token, retry_at: None, why: None });
        out.push(Output::Cancelled { group: task.group, first: task.index, count: 1 });
        self.note_end(task.group, task.index, task.index + 1, End::Cancelled);
    }

    /// Gives up an attempt's row: its resources, its place on the worker, its part of limits and totals. What becomes of the
    /// task is the caller's business. `finish` is what was reported of it, if anything.
    pub(super) fn close_row(&mut self, slot: u32, finish: Option<&Finish>) -> Row {
        let row = self.rows.get(slot).clone();
        let worker = self.workers[row.worker as usize].as_mut().expect("a live row's worker is live");
        if !self.mutations.has(Mutation::ForgetRelease) {
            let shape = self.shapes.get(row.shape.0).expect("a shape is known as long as the runs that use it");
            worker.release(&mut self.rows, slot, shape);
        }
        worker.unlink(&mut self.rows, slot);
        worker.alone = false;
        if self.last_changed != Some(row.worker) {
            self.last_changed = Some(row.worker);
            self.changed.insert(row.worker);
        }
        self.rows.free(slot);

        let group = self.groups.get_mut(&row.group).expect("a row's group is known as long as the row lives");
        group.dispatched.remove(row.index);
        group.running -= u32::from(row.place == Place::Executing);
        if let Some(finish) = finish.filter(|finish| has_executed(finish.class)) {
            group.measure(finish.wall, finish.cpu);
            if finish.class == OutcomeClass::Succeeded
                && !group.memos.is_empty()
                && let Some(memo) = group.memos.get_mut(&row.index)
            {
                memo.detail = None;
            }
        }
        let used = finish.map_or(0, |finish| finish.cpu);
        if let Some(run) = self.runs.get_mut(&group.run) {
            run.charged = run.charged.saturating_sub(u64::from(row.estimate)).saturating_add(used);
            for &(name, amount) in &group.totals {
                let part = Resources { custom: [(name, amount)].into_iter().collect(), ..Resources::default() };
                run.totals_used.remove(&part);
            }
        }
        if group.max_parallel > 0 || !group.totals.is_empty() {
            self.limits_changed.push(row.group);
        }
        row
    }

    /// Writes down which attempt a task has had, so that the next one has another number.
    pub(super) fn remember_attempt(&mut self, row: &Row, followed: bool) {
        let reuse = followed && self.mutations.has(Mutation::ReuseAttemptNumber);
        let group = self.group_mut(row.group);
        group.memos.entry(row.index).or_default().attempts = row.attempt - u32::from(reuse);
    }

    /// Reserves room on a worker for what it executes or was sent ahead of room.
    pub(super) fn promote(&mut self, worker: u32) {
        let shapes = &self.shapes;
        if let Some(book) = self.workers[worker as usize].as_mut()
            && book.prefetched.len + book.unheld > 0
        {
            book.promote(&mut self.rows, |id| shapes.get(id.0).cloned().unwrap_or_default());
        }
    }

    /// Folds in a time from dispatch to start: the least counts, and is forgotten slowly.
    fn measure_round_trip(&mut self, worker: u32, sample: Micros) {
        if let Some(worker) = self.workers[worker as usize].as_mut() {
            worker.round_trip = Some(match worker.round_trip {
                Some(known) if sample > known => known + (sample - known) / 16,
                _ => sample,
            });
        }
    }
}

/// Whether an end of this class says how long such tasks execute.
fn has_executed(class: OutcomeClass) -> bool {
    matches!(class, OutcomeClass::Succeeded | OutcomeClass::AppError)
}

/// Classes that only the scheduler may say are taken for the nearest thing a worker can mean.
fn as_reported(class: OutcomeClass) -> OutcomeClass {
    match class {
        // It ended what nobody cancelled: not the task's fault, and bounded.
        OutcomeClass::Cancelled | OutcomeClass::LostWorker => OutcomeClass::InfraStart,
        OutcomeClass::Poison | OutcomeClass::DependencyFailed | OutcomeClass::Rejected => OutcomeClass::AppError,
        class => class,
    }
}
