//! How often each step of the two tables was taken or refused: what the random tests measure their reach by.

use super::task_table::{TaskEvent, TaskState, TaskVerdict, task_next};
use super::worker_table::{SessionEvent, SessionVerdict, session_next};
use crate::messages::WorkerState;

/// What can happen to open runs and results beside the steps of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Happening {
    /// Elements were appended.
    Appended,
    /// An element was refused.
    ElementRejected,
    /// A group was refused.
    GroupRejected,
    /// An edge was added and waits.
    EdgeWaits,
    /// An edge to what is over was added, to read it.
    EdgeMet,
    /// An edge to what failed was added.
    EdgeDead,
    /// The client let go of something.
    LetGo,
    /// A holder was told that it may drop a result.
    Dropped,
    /// Elements were released.
    Released,
    /// A worker has a copy.
    Copied,
    /// A copy is not needed.
    CopyRefused,
    /// A result cannot be lost any more.
    Secured,
    /// The last holder of a result was lost.
    ResultLost,
    /// A result is to be made again.
    MadeAgain,
    /// So is something that it reads.
    LineageMadeAgain,
    /// A result was lost too often.
    GivenUp,
    /// An attempt could not get what it reads.
    InputMissing,
    /// It said so and nothing is known of that.
    InputMissingUnfounded,
    /// Elements that read a lost result edge by edge wait again.
    EdgeUnmet,
    /// A group that reads a lost result waits again.
    GateClosed,
    /// Elements that read a lost result in ranges wait again.
    RangeUnmet,
    /// A run was paused with something ready.
    Paused,
    /// A group of an open run was forgotten.
    GroupForgotten,
    /// A worker has no room for results.
    WorkerFull,
    /// A worker was asked to keep what another one leaves.
    MoveBegun,
    /// A worker keeps a result that it did not make.
    Kept,
    /// One could not get what it was asked to keep.
    MoveFailed,
    /// One did not answer in time.
    MoveLate,
    /// A result is not on its way any more, for whatever reason.
    MoveOver,
    /// Nobody could be asked.
    MoveNowhere,
}

impl Happening {
    /// All of them, in order.
    pub const ALL: [Happening; 30] = {
        use Happening::*;
        [
            Appended,
            ElementRejected,
            GroupRejected,
            EdgeWaits,
            EdgeMet,
            EdgeDead,
            LetGo,
            Dropped,
            Released,
            Copied,
            CopyRefused,
            Secured,
            ResultLost,
            MadeAgain,
            LineageMadeAgain,
            GivenUp,
            InputMissing,
            InputMissingUnfounded,
            EdgeUnmet,
            GateClosed,
            RangeUnmet,
            Paused,
            GroupForgotten,
            WorkerFull,
            MoveBegun,
            Kept,
            MoveFailed,
            MoveLate,
            MoveOver,
            MoveNowhere,
        ]
    };
}

/// Counters of both tables, and of what the fences turned away before any table was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransitionCounts {
    task: [[u64; TaskEvent::ALL.len()]; TaskState::ALL.len()],
    session: [[u64; SessionEvent::ALL.len()]; 6],
    happened: [u64; Happening::ALL.len()],
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

    /// Counts what happened beside the tables.
    pub(super) fn note(&mut self, what: Happening) {
        self.happened[what as usize] += 1;
    }

    /// How often that happened.
    pub fn of(&self, what: Happening) -> u64 {
        self.happened[what as usize]
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
        for (mine, theirs) in self.happened.iter_mut().zip(other.happened) {
            *mine += theirs;
        }
        self.fenced += other.fenced;
        self.impossible += other.impossible;
    }
}
