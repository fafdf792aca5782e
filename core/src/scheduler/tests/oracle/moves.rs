//! Who may be asked to keep what another worker leaves, from what went in alone.

use super::*;

/// What was said of workers that are to leave.
#[derive(Default)]
pub(super) struct Moves {
    /// Those that are to be emptied, ever.
    named: BTreeSet<SessionId>,
    /// Those that drain, or that the platform takes.
    leaving: BTreeSet<SessionId>,
    /// Those that gave something back unasked, which the machine takes for a drain if it believes it.
    may_leave: BTreeSet<SessionId>,
}

impl Oracle {
    pub(super) fn before_moves(&mut self, input: &Input) {
        match input {
            Input::MoveObjects { sessions } => self.moves.named.extend(sessions),
            Input::Drain { session } | Input::Draining { session } => {
                self.moves.leaving.insert(*session);
            }
            Input::Join { session, .. } if self.is_taken(*session) => {
                self.moves.leaving.insert(*session);
            }
            Input::Events { session, events } => {
                let gives_back =
                    |event: &WorkerEvent| matches!(&event.kind, EventKind::Finished(end) if end.class == OutcomeClass::Preempted);
                if events.iter().any(gives_back) {
                    self.moves.may_leave.insert(*session);
                }
            }
            Input::BeingTaken { worker, .. } => self.moves.leaving.extend(self.session_named(worker)),
            _ => {}
        }
    }

    /// A worker is to keep a result.
    pub(super) fn fetched(&mut self, session: SessionId, task: TaskRef, attempt: u32) -> Result<(), String> {
        let worker = self.workers.get(&session).ok_or("there is no such session")?;
        ensure!(worker.state == WorkerState::Active && !worker.full, "the worker is {:?}, full: {}", worker.state, worker.full);
        ensure!(!self.moves.leaving.contains(&session), "the worker is to leave itself");
        let named = self.moves.named.clone();
        let leaving: BTreeSet<SessionId> = self.moves.leaving.union(&self.moves.may_leave).copied().collect();
        let state = self.task(task)?;
        ensure!(state.ended == Some(Ended::Succeeded) && state.held, "it has no result that anybody holds: {state:?}");
        ensure!(!state.files, "it is files of a run's directory");
        ensure!(state.attempts == attempt, "the result is that of attempt {}", state.attempts);
        ensure!(!state.kept.contains(&session), "the worker keeps it already");
        ensure!(state.holders.iter().any(|holder| named.contains(holder)), "nobody who holds it is to be emptied");
        let stays: Vec<&SessionId> = state.kept.difference(&leaving).collect();
        ensure!(stays.iter().all(|keeper| named.contains(keeper)) && stays.len() <= 1, "{stays:?} keep it");
        self.gone.wanted.push(task);
        Ok(())
    }
}
