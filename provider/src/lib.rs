//! What creates, observes and removes workers on a target ([`Provider`]), and what brings a scheduler up there and takes
//! everything down again ([`Launcher`]). The traits have no word of any one platform; [`local`] is the target that runs
//! everything as processes of this machine.

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
        /// The platform's own words.
        reason: String,
    },
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
pub trait Launcher {
    /// What can go wrong.
    type Error;
    /// A scheduler that was started.
    type Scheduler;

    /// Checks everything that can be checked before anything is created.
    ///
    /// # Errors
    /// What is missing and what to do about it.
    fn preflight(&self) -> Result<(), Self::Error>;

    /// Starts a scheduler and waits until it answers.
    ///
    /// # Errors
    /// Why it did not start, in the platform's own words.
    fn start(&self) -> Result<Self::Scheduler, Self::Error>;

    /// Takes everything down that `start` created and verifies that it is gone.
    ///
    /// # Errors
    /// What is left.
    fn destroy(&self, scheduler: Self::Scheduler) -> Result<(), Self::Error>;
}
