//! How often each step of the two tables was taken or refused: what the random tests measure their reach by.

use super::task_table::{TaskEvent, TaskState, TaskVerdict, task_next};
use super::worker_table::{SessionEvent, SessionVerdict, session_next};
use crate::messages::WorkerState;

/// Counters of both tables, and of what the fences turned away before any table was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransitionCounts {
    task: [[u64; TaskEvent::ALL.len()]; TaskState::ALL.len()],
    session: [[u64; SessionEvent::ALL.len()]; 6],
    /// Events and replies whose handle, attempt or session matched no live row.
    pub fenced: u64,
    /// Steps taken that nothing outside can cause: bugs of the machine.
    pub impossible: u64,
}

impl TransitionCounts {
    /// Asks the task table and counts the answer; `None` when nothing changes.
    pub(super) fn task(&mut self, state: TaskState, event: TaskEvent, times: u32) -> Option<TaskState> {
        self.task[state as usize][event as usize] += u64::from(times);
        match task_next(state, event) {
            TaskVerdict::To(next) => Some(next),
            TaskVerdict::Refused => None,
            TaskVerdict::Never => {
                self.impossible += 1;
                None
            }
        }
    }

    /// Asks the session table and counts the answer; `None` when nothing changes.
    pub(super) fn session(&mut self, state: WorkerState, event: SessionEvent) -> Option<WorkerState> {
        self.session[state as usize][event as usize] += 1;
        match session_next(state, event) {
            SessionVerdict::To(next) => Some(next),
            SessionVerdict::Refused => None,
            SessionVerdict::Never => {
                self.impossible += 1;
                None
            }
        }
    }

    /// How often the task table was asked about this pair.
    pub fn of_task(&self, state: TaskState, event: TaskEvent) -> u64 {
        self.task[state as usize][event as usize]
    }

    /// How often the session table was asked about this pair.
    pub fn of_session(&self, state: WorkerState, event: SessionEvent) -> u64 {
        self.session[state as usize][event as usize]
    }

    /// Adds another machine's counts.
    pub fn add(&mut self, other: &TransitionCounts) {
        for (mine, theirs) in self.task.iter_mut().flatten().zip(other.task.iter().flatten()) {
            *mine += theirs;
        }
        for (mine, theirs) in self.session.iter_mut().flatten().zip(other.session.iter().flatten()) {
            *mine += theirs;
        }
        self.fenced += other.fenced;
        self.impossible += other.impossible;
    }
}
