//! Who has to be to blame when a worker is lost, from what went in alone.

use super::super::super::SHARES_MAX;
use super::super::super::check::ensure;
use super::Oracle;
use crate::ids::{Handle, SessionId};
use crate::messages::*;
use std::collections::{BTreeMap, BTreeSet};

/// What workers and the platform have said.
#[derive(Default)]
pub(super) struct Losses {
    /// Names of live sessions.
    names: BTreeMap<String, SessionId>,
    /// What each worker said last of its attempts.
    shares: BTreeMap<SessionId, BTreeMap<Handle, u64>>,
    /// Those that the platform takes.
    taken: BTreeSet<SessionId>,
    /// Those whose workers are known to be dead.
    dead: BTreeSet<SessionId>,
    /// What each dispatched attempt's task had asked for.
    asked: BTreeMap<Handle, u64>,
    /// Whose death was confirmed in this step, and what of.
    died: Option<(SessionId, DeathCause)>,
    /// The one that ran out of memory in this step, and nobody knows by whom.
    unsaid: Option<SessionId>,
}

impl Oracle {
    /// What the task of a dispatched attempt had asked for.
    pub(in super::super) fn asked(&mut self, handle: Handle, memory_bytes: u64) {
        self.losses.asked.insert(handle, memory_bytes);
    }

    /// The platform takes its worker away.
    pub(super) fn is_taken(&self, session: SessionId) -> bool {
        self.losses.taken.contains(&session)
    }

    /// The session of this name.
    pub(super) fn session_named(&self, name: &str) -> Option<SessionId> {
        self.losses.names.get(name).copied()
    }

    pub(super) fn before_loss(&mut self, input: &Input) {
        let losses = &mut self.losses;
        (losses.died, losses.unsaid) = (None, None);
        match input {
            // A session that has been before changes nothing.
            Input::Join { session, worker } if !self.workers.contains_key(session) => {
                let before = losses.names.insert(worker.name.clone(), *session);
                if before.is_some_and(|before| losses.taken.contains(&before) && !losses.dead.contains(&before)) {
                    losses.taken.insert(*session);
                }
            }
            Input::MemoryShares { session, shares } => {
                losses.shares.insert(*session, shares.iter().copied().take(SHARES_MAX).collect());
            }
            Input::BeingTaken { worker, .. } => losses.taken.extend(losses.names.get(worker)),
            Input::Died { worker, cause, .. } => {
                losses.dead.extend(losses.names.get(worker));
                losses.died = losses.names.get(worker).map(|session| (*session, *cause));
            }
            _ => {}
        }
    }

    /// Of what a lost worker executed: nothing is charged where the platform took it, one attempt as `oom` where memory ended it, and
    /// that the right one if it is known.
    pub(super) fn look_at_loss(&mut self, out: &[Output]) -> Result<(), String> {
        for output in out {
            let Output::WorkerChanged { session: lost, state: WorkerState::Lost } = output else { continue };
            let cause = self.losses.died.filter(|(session, _)| session == lost).map(|(_, cause)| cause);
            let taken = self.losses.taken.contains(lost) || cause == Some(DeathCause::Taken);
            let ends: Vec<(Handle, OutcomeClass)> = out.iter().filter_map(|output| self.started_there(*lost, output)).collect();
            let ooms: Vec<Handle> =
                ends.iter().filter(|(_, class)| *class == OutcomeClass::Oom).map(|(handle, _)| *handle).collect();
            let charged = ends.iter().filter(|(_, class)| *class == OutcomeClass::LostWorker).count();
            if cause == Some(DeathCause::OutOfMemory) {
                ensure!(charged == 0, "{charged} attempts are charged with the loss of {lost:?}, which was out of memory");
                let cancelled = out.iter().any(|output| {
                    matches!(output, Output::AttemptEnded { session, class: OutcomeClass::Cancelled, .. } if session == lost)
                });
                let greediest = self.greediest(*lost, &ends);
                // What was being cancelled may be what took it, or what makes it unknown.
                let right = ooms == greediest.as_slice() || cancelled && ooms.is_empty();
                ensure!(right, "{ooms:?} are charged with the memory of {lost:?}, and {greediest:?} took most of {ends:?}");
                if greediest.is_none() && !cancelled {
                    self.losses.unsaid = Some(*lost);
                }
            } else {
                ensure!(ooms.is_empty(), "{ooms:?} are charged with memory, of which nobody spoke");
                ensure!(!taken || charged == 0, "{charged} attempts are charged with the loss of {lost:?}, which was taken away");
                let spared = ends.iter().any(|(_, class)| *class == OutcomeClass::Preempted);
                ensure!(taken || !spared, "nobody is charged with the loss of {lost:?}");
            }
        }
        Ok(())
    }

    /// An attempt that executed there and whose end this is.
    fn started_there(&self, lost: SessionId, output: &Output) -> Option<(Handle, OutcomeClass)> {
        let Output::AttemptEnded { task, session, class, token: None, .. } = output else { return None };
        let active = self.groups.get(&task.group.0)?.tasks.get(task.index as usize)?.active.as_ref()?;
        (*session == lost && active.started && *class != OutcomeClass::Cancelled).then_some((active.handle, *class))
    }

    /// Which of these took most beyond its request, or in all, as far as was said; nothing where too little was.
    fn greediest(&self, worker: SessionId, ends: &[(Handle, OutcomeClass)]) -> Option<Handle> {
        let shares = self.losses.shares.get(&worker);
        let of = |handle: Handle| {
            let bytes = shares.and_then(|shares| shares.get(&handle)).copied().unwrap_or(0);
            (bytes, self.losses.asked.get(&handle).copied().unwrap_or(0))
        };
        let greed = |handle: Handle| (of(handle).0.saturating_sub(of(handle).1), of(handle).0);
        let greediest = ends.iter().map(|(handle, _)| *handle).max_by_key(|handle| greed(*handle))?;
        let (bytes, asked) = of(greediest);
        let said: u64 = ends.iter().map(|(handle, _)| of(*handle).0).sum();
        let has = self.workers.get(&worker).map_or(u64::MAX, |worker| worker.capacity.memory_bytes);
        (ends.len() == 1 || asked > 0 && bytes > asked || said >= has / 2).then_some(greediest)
    }

    /// Whether a worker was lost in this step without anybody's being charged, so that what executed there is suspect.
    pub(super) fn is_unsaid(&self, worker: SessionId) -> bool {
        self.losses.unsaid == Some(worker)
    }
}
