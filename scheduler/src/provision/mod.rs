//! What stands between a provider of workers and the reactor, on a thread of its own: [`fixed`] keeps one pool at its size,
//! [`scaled`] lets the adaptive planner decide for several. Both tell the reactor what they see, and never wait for it longer than
//! for its next turn.

pub mod fixed;
pub mod scaled;

use std::future::Future;

use scalable_core::messages::DeathCause;
use scalable_core::scheduler::PoolLoad;
use scalable_proto::v1;
use scalable_provider::Cause;
use tokio::sync::{mpsc, oneshot};

/// Observations waiting for the reactor.
const SEEN_MAX: usize = 256;

/// What a driver says to the reactor, or asks of it.
#[derive(Debug)]
pub enum Seen {
    /// A worker is dead, and so is everything it had started.
    Died {
        /// The name it registered with.
        worker: String,
        /// Who is to blame.
        cause: DeathCause,
        /// The platform's own words.
        reason: String,
    },
    /// The platform takes a worker away; it may still work for a while.
    BeingTaken {
        /// The name it registered with.
        worker: String,
        /// The platform's own words.
        reason: String,
    },
    /// State of a pool.
    Pool(PoolState),
    /// The loads of these pools are to be told, in this order.
    Ask {
        /// The pools.
        pools: Vec<String>,
        /// Where to.
        answer: oneshot::Sender<Vec<PoolLoad>>,
    },
    /// The worker is to drain, if it has nothing to do.
    Release {
        /// The name it registered with.
        worker: String,
    },
    /// These workers are to leave, in this order, and hold what nobody else does: others are to fetch it. Said again with each look as
    /// long as that is wanted.
    Empty {
        /// The names they registered with.
        workers: Vec<String>,
    },
    /// The worker is to take nothing new and to leave when it has finished what it executes.
    GiveWay {
        /// The name it registered with.
        worker: String,
    },
}

/// State of a pool, as a driver tells it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PoolState {
    /// Its name.
    pub pool: String,
    /// Components its workers serve.
    pub components: Vec<String>,
    /// What one worker has.
    pub capacity: v1::Resources,
    /// Workers that exist, registered or not.
    pub present: u32,
    /// It scales with its work.
    pub scaled: bool,
    /// Why there are not more, or empty.
    pub note: String,
    /// Latest decisions about it, oldest first, at most [`DECISIONS_TOLD`]: seconds since the scheduler started, and why.
    pub decisions: Vec<(f64, String)>,
}

/// Decisions of one pool that `explain` shows.
pub const DECISIONS_TOLD: usize = 20;

/// Ends the driver: every worker is removed before the answer comes.
pub type Stop = oneshot::Sender<oneshot::Sender<()>>;

/// Who is to blame for a death.
fn blame(cause: Cause) -> DeathCause {
    match cause {
        Cause::Evicted | Cause::Preempted | Cause::NodeLost | Cause::Removed => DeathCause::Taken,
        Cause::OutOfMemory => DeathCause::OutOfMemory,
        Cause::Ended | Cause::Failed | Cause::NotStarted => DeathCause::Failed,
    }
}

/// Runs a driver on a thread of its own.
fn on_a_thread<F, D>(drive: D) -> std::io::Result<(mpsc::Receiver<Seen>, Stop)>
where
    D: FnOnce(mpsc::Sender<Seen>, oneshot::Receiver<oneshot::Sender<()>>) -> F + Send + 'static,
    F: Future<Output = ()>,
{
    let (seen, observed) = mpsc::channel(SEEN_MAX);
    let (stop, stopped) = oneshot::channel();
    std::thread::Builder::new().name("provision".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        match runtime {
            Ok(runtime) => runtime.block_on(drive(seen, stopped)),
            Err(error) => tracing::error!(%error, "the provider's thread cannot run"),
        }
    })?;
    Ok((observed, stop))
}
