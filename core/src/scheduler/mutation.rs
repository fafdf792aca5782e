//! Deliberate faults, to show that the invariant checker and the oracle of the tests would see them. None exists in a normal
//! build: there `Mutations::has` is the constant `false`.

/// A fault that a test can switch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Events match any live row in the slot, whatever their generation and attempt.
    DropAttemptFence,
    /// A finished attempt's resources are not given back to its worker.
    ForgetRelease,
    /// A failure is charged to the next element's budget.
    ChargeNeighbour,
    /// The row survives its commit.
    CommitTwice,
    /// A whole-group dependency counts as met with the first success.
    StartBeforeDependency,
    /// What was given or taken back is dispatched under the same attempt number.
    ReuseAttemptNumber,
    /// The reset of a connection is overlooked.
    IgnoreReset,
    /// A worker's used resources are not looked at when work is placed.
    OverAdmit,
    /// What a dead worker executed is not requeued.
    LoseTaskOnWorkerDeath,
    /// A row given back is not freed.
    KeepRowAfterRetract,
    /// Two dispatches carry one fence.
    RepeatFence,
    /// A result that arrives while its task is being cancelled is committed.
    CommitCancelled,
    /// What was read when its reader ended stays counted as read.
    ForgetReference,
    /// What the client let go of is released though somebody reads it.
    ReleaseEarly,
    /// What reads a result that is made again does not wait for it.
    LoseEdge,
    /// A result that is made again commits a second time.
    CommitAgain,
    /// A paused run's tasks are dispatched.
    IgnorePause,
    /// The last holder's loss is overlooked.
    OverlookLoss,
    /// A result that is there is made again when one of its holders is lost.
    RestoreTwice,
    /// When a worker is out of memory, another attempt than the one that took it is charged.
    BlameNeighbour,
    /// A group that is over is forgotten though the client may want its results.
    ForgetEarly,
    /// A worker that is on its way out is asked to keep what another one leaves.
    MoveToLeaver,
    /// A worker is asked to keep files that nobody but an attempt can be given.
    MoveFiles,
    /// A result stays on its way though it is gone, or the worker to which it was to go.
    KeepMove,
}

impl Mutation {
    /// All of them.
    #[cfg(any(test, feature = "mutations"))]
    pub const ALL: [Mutation; 24] = [
        Mutation::DropAttemptFence,
        Mutation::ForgetRelease,
        Mutation::ChargeNeighbour,
        Mutation::CommitTwice,
        Mutation::StartBeforeDependency,
        Mutation::ReuseAttemptNumber,
        Mutation::IgnoreReset,
        Mutation::OverAdmit,
        Mutation::LoseTaskOnWorkerDeath,
        Mutation::KeepRowAfterRetract,
        Mutation::RepeatFence,
        Mutation::CommitCancelled,
        Mutation::ForgetReference,
        Mutation::ReleaseEarly,
        Mutation::LoseEdge,
        Mutation::CommitAgain,
        Mutation::IgnorePause,
        Mutation::OverlookLoss,
        Mutation::RestoreTwice,
        Mutation::BlameNeighbour,
        Mutation::ForgetEarly,
        Mutation::MoveToLeaver,
        Mutation::MoveFiles,
        Mutation::KeepMove,
    ];
}

/// The fault that is switched on, if any.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mutations {
    #[cfg(any(test, feature = "mutations"))]
    on: Option<Mutation>,
}

impl Mutations {
    #[cfg(any(test, feature = "mutations"))]
    pub(super) fn with(mutation: Mutation) -> Self {
        Mutations { on: Some(mutation) }
    }

    #[cfg(any(test, feature = "mutations"))]
    #[inline]
    pub(super) fn has(self, mutation: Mutation) -> bool {
        self.on == Some(mutation)
    }

    #[cfg(not(any(test, feature = "mutations")))]
    #[inline(always)]
    pub(super) fn has(self, _: Mutation) -> bool {
        false
    }
}
