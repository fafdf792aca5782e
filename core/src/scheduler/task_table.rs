//! The states of a task and every step between them.
//!
//! ```text
//!             dependencies met       dispatch          start
//!   Waiting ───────────────► Ready ───────────► Assigned ──────► Running ───────┐
//!     │                      ▲ ▲ ▲               │ ▲  │            ▲ │          │ commit
//!     │ skip      backoff    │ │ └─ give back,   │ │  │ retract    │ │          ├────────► Succeeded
//!     ▼           over       │ │    take back,   │ │ keep          │ │          │
//!   Skipped   Backoff ───────┘ │    retry now    │ │  ▼      start │ │          │ give up
//!               ▲              └─────────────────┤ Retracting ─────┘ │          ├────────► Failed
//!               └──────────── retry later ───────┴───────┴───────────┘          │
//!                                                                               │
//!   Waiting ◄── lose input ── Ready      Waiting ◄── lose result ── Succeeded      Waiting ── refuse ──► Failed
//!   Waiting, Ready, Backoff ── cancel ──► Cancelled ◄── end, give back ── Cancelling ◄── cancel ── Assigned, Running, Retracting
//! ```
//!
//! A pair that is neither drawn nor *refused* can be caused by no input: taking it is a bug that the invariant checker reports.
//! *Refused* pairs come from peers and users (repeated, late, crossing messages) and change nothing.

/// States of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum TaskState {
    /// A dependency is not over.
    Waiting,
    /// May be dispatched.
    Ready,
    /// Waits before the next attempt.
    Backoff,
    /// Dispatched, not known to execute.
    Assigned,
    /// Executes.
    Running,
    /// Asked back from its worker.
    Retracting,
    /// To be ended on its worker.
    Cancelling,
    /// Over: its result is committed.
    Succeeded,
    /// Over: no attempt is left.
    Failed,
    /// Over: never ran because something it needs failed.
    Skipped,
    /// Over: by request, or because the run had reached `max_failures`.
    Cancelled,
}

/// What moves a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum TaskEvent {
    /// All it waits for is over as it should be.
    DependenciesMet,
    /// Something it needs failed.
    Skip,
    /// Given to a worker.
    Dispatch,
    /// The worker executes it.
    Start,
    /// A result of the current attempt.
    Commit,
    /// The attempt ended without a result; again at once.
    RetryNow,
    /// The attempt ended badly; again later.
    RetryLater,
    /// The attempt ended badly and was the last.
    GiveUp,
    /// The wait is over.
    BackoffOver,
    /// Asked back.
    Retract,
    /// The worker has not started it and never will.
    GiveBack,
    /// The worker did not give it back.
    Keep,
    /// Its worker's connection was reset, or the worker died, before it was known to execute.
    TakeBack,
    /// Somebody wants it ended, or the run has stopped.
    Cancel,
    /// A cancelled attempt is over.
    EndCancelled,
    /// What it reads was lost.
    LoseInput,
    /// Its result was lost and is needed: it is to be made again.
    LoseResult,
    /// Over without any further attempt: refused when it was appended, or its result is lost for good.
    Refuse,
}

/// What the table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskVerdict {
    /// Go there.
    To(TaskState),
    /// Somebody outside may cause this; nothing changes.
    Refused,
    /// Nothing outside can cause this.
    Never,
}

impl TaskState {
    /// All of them, in order.
    pub const ALL: [TaskState; 11] = {
        use TaskState::*;
        [Waiting, Ready, Backoff, Assigned, Running, Retracting, Cancelling, Succeeded, Failed, Skipped, Cancelled]
    };

    /// True when nothing follows.
    pub fn is_over(self) -> bool {
        matches!(self, TaskState::Succeeded | TaskState::Failed | TaskState::Skipped | TaskState::Cancelled)
    }

    /// The word on the wire and on the command line.
    pub fn word(self) -> &'static str {
        match self {
            TaskState::Waiting => "waiting",
            TaskState::Ready => "ready",
            TaskState::Backoff => "backoff",
            TaskState::Assigned => "assigned",
            TaskState::Running => "running",
            TaskState::Retracting => "retracting",
            TaskState::Cancelling => "cancelling",
            TaskState::Succeeded => "succeeded",
            TaskState::Failed => "failed",
            TaskState::Skipped => "skipped",
            TaskState::Cancelled => "cancelled",
        }
    }
}

impl TaskEvent {
    /// All of them, in order.
    pub const ALL: [TaskEvent; 18] = {
        use TaskEvent::*;
        [
            DependenciesMet,
            Skip,
            Dispatch,
            Start,
            Commit,
            RetryNow,
            RetryLater,
            GiveUp,
            BackoffOver,
            Retract,
            GiveBack,
            Keep,
            TakeBack,
            Cancel,
            EndCancelled,
            LoseInput,
            LoseResult,
            Refuse,
        ]
    };
}

/// The table.
pub fn task_next(state: TaskState, event: TaskEvent) -> TaskVerdict {
    use TaskEvent as E;
    use TaskState as S;
    use TaskVerdict::{Never, Refused, To};
    match (state, event) {
        (S::Waiting, E::DependenciesMet) => To(S::Ready),
        (S::Waiting, E::Skip) => To(S::Skipped),
        (S::Waiting, E::Refuse) => To(S::Failed),
        (S::Ready, E::LoseInput) => To(S::Waiting),
        (S::Succeeded, E::LoseResult) => To(S::Waiting),
        (S::Ready, E::Dispatch) => To(S::Assigned),
        (S::Backoff, E::BackoffOver) => To(S::Ready),
        (S::Waiting | S::Ready | S::Backoff, E::Cancel) => To(S::Cancelled),

        (S::Assigned | S::Retracting, E::Start) => To(S::Running),
        (S::Cancelling, E::Start) => To(S::Cancelling),
        (S::Running, E::Start) => Refused,

        (S::Assigned | S::Running | S::Retracting, E::Commit) => To(S::Succeeded),
        (S::Cancelling, E::Commit) => Refused,
        (S::Assigned | S::Running | S::Retracting, E::RetryNow) => To(S::Ready),
        (S::Assigned | S::Running | S::Retracting, E::RetryLater) => To(S::Backoff),
        (S::Assigned | S::Running | S::Retracting, E::GiveUp) => To(S::Failed),

        (S::Assigned, E::Retract) => To(S::Retracting),
        (S::Assigned | S::Retracting, E::GiveBack) => To(S::Ready),
        (S::Cancelling, E::GiveBack) => To(S::Cancelled),
        (S::Running, E::GiveBack) => Refused,
        (S::Retracting, E::Keep) => To(S::Assigned),
        (S::Assigned | S::Running | S::Cancelling, E::Keep) => Refused,
        (S::Assigned | S::Retracting, E::TakeBack) => To(S::Ready),

        (S::Assigned | S::Running | S::Retracting, E::Cancel) => To(S::Cancelling),
        (S::Cancelling | S::Succeeded | S::Failed | S::Skipped | S::Cancelled, E::Cancel) => Refused,
        (S::Cancelling, E::EndCancelled) => To(S::Cancelled),
        _ => Never,
    }
}
