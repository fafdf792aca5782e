//! Workers that are to leave and hold what nobody else keeps: the machine says who is to keep what instead, and hears what came of it.

use rustc_hash::FxHashSet;
use scalable_core::ids::{GroupId, SessionId, TaskRef};
use scalable_core::messages::Input;
use scalable_proto::v1;

use super::Reactor;

/// A worker's answers to what it was asked to keep, as they came: columns.
#[derive(Default)]
pub(super) struct Answers {
    kept: (Vec<u32>, Vec<u32>),
    not_kept: (Vec<u32>, Vec<u32>),
}

impl Answers {
    /// Takes them out of a batch.
    pub(super) fn take(batch: &mut v1::WorkerBatch) -> Self {
        let take = |column: &mut Vec<u32>| std::mem::take(column);
        Answers {
            kept: (take(&mut batch.kept_group), take(&mut batch.kept_index)),
            not_kept: (take(&mut batch.not_kept_group), take(&mut batch.not_kept_index)),
        }
    }

    /// The columns belong together.
    pub(super) fn fit(&self) -> bool {
        self.kept.0.len() == self.kept.1.len() && self.not_kept.0.len() == self.not_kept.1.len()
    }
}

fn tasks((groups, indices): (Vec<u32>, Vec<u32>)) -> impl Iterator<Item = TaskRef> {
    groups.into_iter().zip(indices).map(|(group, index)| TaskRef { group: GroupId(group), index })
}

impl Reactor {
    /// Workers of these names are to be emptied, as far as they are idle.
    pub(super) fn empty_workers(&mut self, names: &[String]) {
        let wanted: FxHashSet<&str> = names.iter().map(String::as_str).collect();
        let mut found: Vec<(usize, SessionId)> = Vec::new();
        for worker in self.machine.workers().filter(|worker| wanted.contains(worker.name.as_str())) {
            if self.is_idle(&worker)
                && let Some(at) = names.iter().position(|name| *name == worker.name)
            {
                found.push((at, worker.session));
            }
        }
        found.sort_unstable();
        let sessions: Vec<SessionId> = found.into_iter().map(|(_, session)| session).collect();
        if !sessions.is_empty() {
            self.step(Input::MoveObjects { sessions });
        }
    }

    /// A worker is to keep what another one leaves.
    pub(super) fn keep_elsewhere(&mut self, session: SessionId, task: TaskRef, attempt: u32) {
        if !self.workers.contains_key(&session) {
            return self.step(Input::ObjectNotKept { session, task });
        }
        let (object, peers) = self.object(task, attempt);
        if let Some(worker) = self.workers.get_mut(&session) {
            peers.iter().for_each(|peer| worker.introduce(peer));
            worker.keep(object);
        }
    }

    /// What a worker says of what it was asked to keep.
    pub(super) fn answered(&mut self, session: SessionId, answers: Answers) {
        for task in tasks(answers.kept) {
            self.step(Input::ObjectKept { session, task });
        }
        for task in tasks(answers.not_kept) {
            self.step(Input::ObjectNotKept { session, task });
        }
    }
}
