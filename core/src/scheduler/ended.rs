//! Sessions that are over, remembered for a while: their late messages are void and known to be, and `explain` has a reason.

use crate::ids::SessionId;
use crate::messages::WorkerState;
use std::collections::VecDeque;

/// How a session ended.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub(super) session: SessionId,
    pub(super) name: String,
    pub(super) pool: String,
    pub(super) state: WorkerState,
    pub(super) reason: String,
    /// The platform was taking its worker away, and nobody has said since that it is dead: whoever comes under its name is taken too.
    pub(super) taken: Option<String>,
}

/// The latest ends, bounded.
#[derive(Debug)]
pub(super) struct EndedSessions {
    latest: VecDeque<Ended>,
    most: usize,
}

impl EndedSessions {
    pub(super) fn new(most: usize) -> Self {
        EndedSessions { latest: VecDeque::new(), most }
    }

    pub(super) fn add(&mut self, ended: Ended) {
        self.latest.push_back(ended);
        while self.latest.len() > self.most {
            self.latest.pop_front();
        }
    }

    pub(super) fn find(&self, session: SessionId) -> Option<&Ended> {
        self.latest.iter().rev().find(|ended| ended.session == session)
    }

    /// The worker of this name is dead: who comes under that name is another one.
    pub(super) fn is_dead(&mut self, name: &str) {
        self.latest.iter_mut().filter(|ended| ended.name == name).for_each(|ended| ended.taken = None);
    }

    /// The latest of this name.
    pub(super) fn find_name(&self, name: &str) -> Option<&Ended> {
        self.latest.iter().rev().find(|ended| ended.name == name)
    }
}
