//! What creates, observes and removes workers on a target ([`Provider`]), and what brings a scheduler up there and takes
//! everything down again ([`Launcher`]). The traits have no word of any one platform; [`local`] is the target that runs
//! everything as processes of this machine.

pub mod dials;
pub mod launch;
pub mod local;

use std::future::Future;
use std::pin::Pin;

use tokio::sync::mpsc;

/// One change to a target. Applying one again is harmless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Start the worker with this ordinal of the pool, unless it exists.
    Create {
        /// The pool.
        pool: String,
        /// Position in the pool, from 0.
        ordinal: u32,
    },
    /// Ask the worker to finish and leave.
    Drain {
        /// Its name.
        name: String,
    },
    /// Remove the worker, whatever it is doing.
    Delete {
        /// Its name.
        name: String,
        /// Which incarnation: a newer one of the same name is left alone.
        uid: u64,
    },
    /// Tell the platform whether the worker has something that an interruption would lose. Where nothing interrupts, nothing happens.
    Mark {
        /// Its name.
        name: String,
        /// It executes tasks, or holds what exists nowhere else.
        busy: bool,
    },
}

/// What became of an [`Operation`] that could not be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{class:?}: {message}")]
pub struct Reason {
    /// What kind of obstacle.
    pub class: ReasonClass,
    /// The platform's own words.
    pub message: String,
}

/// Kinds of obstacle: *never* and *not now* are different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasonClass {
    /// It will not work until somebody changes something.
    Never,
    /// It may work later.
    NotNow,
}

/// Something seen on a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// The worker exists and is starting.
    Started {
        /// Its name: it registers with this one.
        name: String,
        /// Which incarnation.
        uid: u64,
        /// The pool.
        pool: String,
        /// Position in the pool.
        ordinal: u32,
        /// Process id where there is one.
        pid: u32,
    },
    /// The worker is dead, and so is everything it had started.
    Died {
        /// Its name.
        name: String,
        /// Which incarnation.
        uid: u64,
        /// The pool.
        pool: String,
        /// Position in the pool.
        ordinal: u32,
        /// What it died of.
        cause: Cause,
        /// The platform's own words.
        reason: String,
    },
    /// The worker exists and is being started, and this is what it waits for. Said again when that changes. Only where a start takes time.
    Waiting {
        /// Its name.
        name: String,
        /// The pool.
        pool: String,
        /// Whether it can come by itself.
        class: ReasonClass,
        /// The platform's short word, such as `Unschedulable`.
        reason: String,
        /// The platform's own words.
        message: String,
    },
    /// The worker's program runs and will register. Only where a start takes time.
    Running {
        /// Its name.
        name: String,
        /// The pool.
        pool: String,
    },
    /// The platform is ending the worker, and nobody here asked for it. It may go on for some time, or for ever where its machine is
    /// not reached any more: a replacement need not wait for it, and its death is told when it is certain.
    Leaving {
        /// Its name.
        name: String,
        /// Which incarnation.
        uid: u64,
        /// The pool.
        pool: String,
        /// Position in the pool.
        ordinal: u32,
        /// What it will have died of.
        cause: Cause,
        /// The platform's own words.
        reason: String,
    },
    /// Whether the platform answers. While it does not, nothing is known of workers but what they say themselves.
    Reach {
        /// Why it does not answer; nothing when it does again.
        problem: Option<String>,
    },
}

/// What a worker died of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// It ended by itself and in order.
    Ended,
    /// Its program failed or was killed.
    Failed,
    /// It used more memory than it may.
    OutOfMemory,
    /// It never ran: an image, a volume or a program was missing, or it took too long.
    NotStarted,
    /// Its machine was short of something and sent it away.
    Evicted,
    /// Its place was taken away: preemption, a drained or reclaimed machine.
    Preempted,
    /// Its machine is gone.
    NodeLost,
    /// Somebody removed it.
    Removed,
}

/// A future that can be kept in a box.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Creates, observes and removes workers.
pub trait Provider: Send + Sync + 'static {
    /// Everything that happens from now on, in order. Called once.
    fn observe(&self) -> mpsc::Receiver<Observation>;

    /// Applies operations; answers with those that failed and why.
    fn apply(&self, operations: Vec<Operation>) -> Boxed<'_, Vec<(Operation, Reason)>>;

    /// Removes every worker and waits until nothing is left.
    fn shutdown(&self) -> Boxed<'_, ()>;
}

/// Brings a scheduler up on a target and takes everything down again.
pub trait Launcher: Send + Sync {
    /// What can go wrong.
    type Error;
    /// A scheduler that was started.
    type Scheduler;

    /// Checks everything that can be checked before anything is created.
    ///
    /// # Errors
    /// What is missing and what to do about it.
    fn preflight(&self) -> Boxed<'_, Result<(), Self::Error>>;

    /// Starts a scheduler and waits until it answers. What was created is removed when it does not.
    ///
    /// # Errors
    /// Why it did not start, in the platform's own words.
    fn start(&self) -> Boxed<'_, Result<Self::Scheduler, Self::Error>>;

    /// Takes everything down that `start` created and verifies that it is gone.
    ///
    /// # Errors
    /// What is left.
    fn destroy(&self, scheduler: Self::Scheduler) -> Boxed<'_, Result<(), Self::Error>>;
}
