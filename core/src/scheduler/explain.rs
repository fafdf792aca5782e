//! Why a task is where it is: one true sentence with figures.

use super::Scheduler;
use super::task_table::TaskState;
use crate::ids::{Micros, TaskRef};

/// Answer to "why".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The state it is about.
    pub state: TaskState,
    /// One sentence, true now.
    pub sentence: String,
}

impl Scheduler {
    /// Says why a task is in its state; nothing when there is no such task.
    pub fn explain(&self, task: TaskRef, _now: Micros) -> Option<Explanation> {
        let state = self.task_state(task)?;
        Some(Explanation { state, sentence: state.word().to_owned() })
    }
}
