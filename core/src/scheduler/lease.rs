//! Sessions of workers: registration, connections, silence, loss, goodbye. Leases are liveness hints; what protects a result is
//! the fence.

use super::Scheduler;
use super::ended::Ended;
use super::mutation::Mutation;
use super::restore::Loss;
use super::worker_book::Worker;
use super::worker_table::SessionEvent;
use crate::ids::{Micros, SessionId};
use crate::messages::{Connection, DeathCause, Outbox, Output, WorkerSpec, WorkerState};
use crate::spec::NAME_BYTES_MAX;

/// Most components that one worker may serve by name.
const COMPONENTS_MAX: usize = 1024;

impl Scheduler {
    /// A worker registers under a new session.
    pub(super) fn join(&mut self, now: Micros, session: SessionId, spec: WorkerSpec, out: &mut Outbox) {
        if self.sessions.contains_key(&session) || self.ended.find(session).is_some() {
            return;
        }
        if let Some(&old) = self.worker_names.get(&spec.name) {
            self.lose(now, old, DeathCause::Failed, "the worker registered again under a new session", out);
        }
        let names = [&spec.name, &spec.pool].into_iter().chain(&spec.components);
        let refusal = if let Some(bad) = names.into_iter().find(|name| super::accept::bad_name(name).is_some()) {
            Some(format!(
                "{:?} is not a name of 1 to {NAME_BYTES_MAX} bytes without control characters",
                super::accept::shown(bad)
            ))
        } else if spec.components.len() > COMPONENTS_MAX {
            Some(format!("a worker may serve at most {COMPONENTS_MAX} components by name; serve '*' instead"))
        } else if self.sessions.len() >= self.config.workers_max {
            Some(format!("the cluster has {} workers already, the most it takes", self.config.workers_max))
        } else {
            None
        };
        if let Some(reason) = refusal {
            out.push(Output::CloseSession { session, reason });
            return;
        }
        // A worker that only has a new session is taken away as before.
        let taken = self.ended.find_name(&spec.name).and_then(|before| before.taken.clone());
        let serves_all = spec.components.iter().any(|component| component == "*");
        let mut components: Vec<u32> = spec.components.iter().map(|component| self.components.acquire(component)).collect();
        components.sort_unstable();
        let filled = self.pools.get(&spec.pool).and_then(|pool| pool.said.as_ref()).is_some_and(|said| said.scaled);
        let worker = Worker {
            session,
            name: spec.name.clone(),
            pool: spec.pool,
            components,
            serves_all,
            capacity: spec.capacity,
            used: Default::default(),
            state: WorkerState::Joining,
            draining: false,
            full: false,
            control: true,
            data: false,
            reset_at: None,
            last_frame: now,
            deadline: now.saturating_add(self.config.suspect_after),
            round_trip: None,
            admitted: Default::default(),
            prefetched: Default::default(),
            executing: Default::default(),
            leaving: Default::default(),
            unheld: 0,
            prefetched_shapes: Default::default(),
            reserved: false,
            alone: false,
            filled,
            dispatched: 0,
            shares: Vec::new(),
            taken,
            held: Default::default(),
            moves: Default::default(),
        };
        let deadline = worker.deadline;
        self.count_serving(&worker, 1);
        let slot = match self.free_workers.pop() {
            Some(slot) => {
                self.workers[slot as usize] = Some(worker);
                slot
            }
            None => {
                self.workers.push(Some(worker));
                self.workers.len() as u32 - 1
            }
        };
        self.deadlines.insert((deadline, slot));
        self.sessions.insert(session, slot);
        self.worker_names.insert(spec.name, slot);
        out.push(Output::WorkerChanged { session, state: WorkerState::Joining });
    }

    /// A connection is attached, for the first time or again.
    pub(super) fn attach(&mut self, now: Micros, session: SessionId, connection: Connection, out: &mut Outbox) {
        let Some(&slot) = self.sessions.get(&session) else { return self.refuse_ended(session, SessionEvent::Whole) };
        let worker = self.worker_mut(slot);
        worker.last_frame = now;
        match connection {
            Connection::Control => worker.control = true,
            Connection::Data => worker.data = true,
        }
        if worker.control && worker.data {
            worker.reset_at = None;
            self.whole(slot, out);
        }
    }

    /// Both connections are attached and the worker speaks.
    fn whole(&mut self, slot: u32, out: &mut Outbox) {
        if !self.session_event(slot, SessionEvent::Whole, out) {
            return;
        }
        self.renew_deadline(slot);
        self.changed.insert(slot);
        if self.worker(slot).draining {
            self.session_event(slot, SessionEvent::Drain, out);
            self.retract_unstarted(slot, out);
        }
    }

    /// A connection is gone. What the worker is not known to execute goes elsewhere at once.
    pub(super) fn reset(&mut self, now: Micros, session: SessionId, connection: Connection, out: &mut Outbox) {
        let Some(&slot) = self.sessions.get(&session) else { return self.refuse_ended(session, SessionEvent::Reset) };
        if self.mutations.has(Mutation::IgnoreReset) {
            return;
        }
        let worker = self.worker_mut(slot);
        match connection {
            Connection::Control => worker.control = false,
            Connection::Data => worker.data = false,
        }
        worker.reset_at = worker.reset_at.or(Some(now));
        self.renew_deadline(slot);
        self.session_event(slot, SessionEvent::Reset, out);
        let handles = self.take_back_unstarted(now, slot, out);
        if !handles.is_empty() {
            // Kept by the link until the session goes on, so that nothing of this is started then.
            out.push(Output::CancelAttempts { session, handles });
        }
    }

    /// Any frame: the lease is renewed, and a suspect that was only silent is whole again. The worker's slot, if it lives.
    pub(super) fn heard(&mut self, now: Micros, session: SessionId, out: &mut Outbox) -> Option<u32> {
        let slot = *self.sessions.get(&session)?;
        let worker = self.worker_mut(slot);
        worker.last_frame = now;
        if worker.state == WorkerState::Suspect && worker.reset_at.is_none() && worker.control && worker.data {
            self.whole(slot, out);
        }
        Some(slot)
    }

    /// No new work for this worker from here on.
    pub(super) fn drain(&mut self, now: Micros, session: SessionId, tell: Tell, out: &mut Outbox) {
        let Some(&slot) = self.sessions.get(&session) else { return self.refuse_ended(session, SessionEvent::Drain) };
        if tell == Tell::No {
            self.heard(now, session, out);
        }
        if !std::mem::replace(&mut self.worker_mut(slot).draining, true) {
            self.keeps_no_more(slot);
        }
        if self.session_event(slot, SessionEvent::Drain, out) {
            if tell == Tell::Worker {
                out.push(Output::DrainWorker { session });
            }
            if self.worker(slot).state == WorkerState::Draining {
                self.retract_unstarted(slot, out);
            }
        }
    }

    /// The worker said goodbye. With anything left on it that is a loss.
    pub(super) fn left(&mut self, now: Micros, session: SessionId, out: &mut Outbox) {
        let Some(&slot) = self.sessions.get(&session) else { return self.refuse_ended(session, SessionEvent::Leave) };
        if self.worker(slot).rows() > 0 {
            return self.lose(now, slot, DeathCause::Failed, "the session ended with attempts left on the worker", out);
        }
        self.session_event(slot, SessionEvent::Leave, out);
        self.remove_worker(slot, "said goodbye", Loss::Left, out);
    }

    /// The provider says that the worker of this name is dead.
    pub(super) fn died(&mut self, now: Micros, name: &str, cause: DeathCause, reason: &str, out: &mut Outbox) {
        match self.worker_names.get(name) {
            Some(&slot) if cause == DeathCause::Failed => {
                self.lose(now, slot, cause, &format!("the worker is dead: {reason}"), out);
            }
            Some(&slot) => self.lose(now, slot, cause, reason, out),
            None => {
                if let Some(session) = self.ended.find_name(name).map(|ended| ended.session) {
                    self.refuse_ended(session, SessionEvent::Lose);
                }
            }
        }
        self.ended.is_dead(name);
    }

    /// A session is over for the scheduler. What had not started is not charged, what executed as `end_executing` says; all of it goes
    /// elsewhere.
    pub(super) fn lose(&mut self, now: Micros, slot: u32, cause: DeathCause, reason: &str, out: &mut Outbox) {
        self.session_event(slot, SessionEvent::Lose, out);
        let session = self.worker(slot).session;
        out.push(Output::CloseSession { session, reason: reason.to_owned() });
        self.take_back_unstarted(now, slot, out);
        let reason = self.end_executing(now, slot, cause, reason, out);
        let pool = self.worker(slot).pool.clone();
        if let Some(pool) = self.pool_mut(&pool) {
            pool.lost += 1;
        }
        // What the loss of its attempts has ended reads nothing any more.
        self.settle(out);
        self.remove_worker(slot, &reason, Loss::Failed, out);
    }

    /// Forgets a session that is over, but for a note of how it ended.
    fn remove_worker(&mut self, slot: u32, reason: &str, loss: Loss, out: &mut Outbox) {
        let Some(worker) = self.workers[slot as usize].take() else { return };
        debug_assert_eq!(worker.rows(), 0);
        self.free_workers.push(slot);
        self.deadlines.remove(&(worker.deadline, slot));
        self.sessions.remove(&worker.session);
        self.worker_names.remove(&worker.name);
        self.changed.remove(&slot);
        self.last_changed = None;
        self.idle_check.retain(|idle| *idle != slot);
        self.count_serving(&worker, -1);
        for component in worker.components {
            self.components.release(component);
        }
        for (key, class) in &mut self.classes {
            let looked_at = class.free.set(slot, false) | class.ahead.set(slot, false);
            if looked_at && !class.has_workers() {
                self.open.remove(key);
            }
        }
        self.ended.add(Ended {
            session: worker.session,
            name: worker.name,
            pool: worker.pool,
            state: worker.state,
            reason: reason.to_owned(),
            taken: worker.taken,
        });
        if !self.mutations.has(Mutation::KeepMove) {
            self.moves_lost(worker.moves);
        }
        if !self.mutations.has(Mutation::OverlookLoss) {
            self.objects_lost(slot, worker.held.tasks(), loss, out);
        }
    }

    /// A message of a session that is over.
    fn refuse_ended(&mut self, session: SessionId, event: SessionEvent) {
        if let Some(ended) = self.ended.find(session) {
            self.counts.session(ended.state, event);
        }
    }

    /// Takes a step of the session table; false when it was refused.
    fn session_event(&mut self, slot: u32, event: SessionEvent, out: &mut Outbox) -> bool {
        let worker = self.worker(slot);
        let (session, before) = (worker.session, worker.state);
        let Some(state) = self.counts.session(before, event) else { return false };
        if state != before {
            self.worker_mut(slot).state = state;
            out.push(Output::WorkerChanged { session, state });
            if before == WorkerState::Active {
                self.drop_reservation(slot);
            }
        }
        true
    }

    /// When the machine has to look at this worker next, if nothing is heard of it.
    fn deadline(&self, worker: &Worker) -> Micros {
        let silence = match worker.state {
            WorkerState::Suspect => self.config.lost_after_silence,
            _ => self.config.suspect_after,
        };
        let silent = worker.last_frame.saturating_add(silence);
        worker.reset_at.map_or(silent, |at| silent.min(at.saturating_add(self.config.lost_after_reset)))
    }

    fn renew_deadline(&mut self, slot: u32) {
        let deadline = self.deadline(self.worker(slot));
        let old = std::mem::replace(&mut self.worker_mut(slot).deadline, deadline);
        self.deadlines.remove(&(old, slot));
        self.deadlines.insert((deadline, slot));
    }

    /// Looks at workers whose deadline has passed. A frame does not touch the deadlines: an entry may come early and is renewed.
    pub(super) fn expire_leases(&mut self, now: Micros, out: &mut Outbox) {
        while let Some(&(entry, slot)) = self.deadlines.first() {
            if entry > now {
                break;
            }
            let worker = self.worker(slot);
            let silent_for = now.saturating_sub(worker.last_frame);
            let reset_over = worker.reset_at.is_some_and(|at| at.saturating_add(self.config.lost_after_reset) <= now);
            if reset_over {
                self.lose(now, slot, DeathCause::Failed, "a connection was reset and the session did not come back in time", out);
                continue;
            }
            if silent_for >= self.config.lost_after_silence {
                self.lose(now, slot, DeathCause::Failed, "no frame came for too long", out);
                continue;
            }
            if silent_for >= self.config.suspect_after && worker.state != WorkerState::Suspect {
                self.session_event(slot, SessionEvent::Silence, out);
            }
            self.renew_deadline(slot);
        }
    }
}

/// Who asked for a drain, and so whether the worker is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tell {
    /// The worker said so itself.
    No,
    /// The scheduler's side wants it.
    Worker,
}
