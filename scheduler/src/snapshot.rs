//! What 8787 shows: published by the reactor, read by other threads. No page ever asks the reactor for a list.

use std::sync::Arc;

use scalable_proto::v1;
use serde::Serialize;
use tokio::sync::watch;

/// State of the cluster at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The cluster, its pools and its workers.
    pub cluster: v1::StatusReply,
    /// Runs, newest first, at most 100.
    pub runs: Vec<v1::RunProgress>,
    /// Totals since the scheduler started.
    pub counters: Counters,
    /// The output store.
    pub outputs: OutputFigures,
}

/// What the output store holds and has copied.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct OutputFigures {
    /// Bytes of outputs and logs in it.
    pub stored_bytes: u64,
    /// Attempts whose outputs do not fit.
    pub waiting: u64,
    /// Bytes that came over connections.
    pub copied_bytes: u64,
    /// Bytes that came as open files of workers on this host.
    pub shared_bytes: u64,
}

/// Totals since the scheduler started.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Counters {
    /// Attempts sent to workers.
    pub dispatched: u64,
    /// Tasks whose result was committed.
    pub committed: u64,
    /// Attempts that ended without committing.
    pub attempts_failed: u64,
    /// Completions that came too late.
    pub superseded: u64,
    /// Workers declared lost.
    pub workers_lost: u64,
    /// Runs accepted.
    pub runs: u64,
}

/// The reactor's end.
pub type Publisher = watch::Sender<Arc<Snapshot>>;
/// The readers' end.
pub type Reader = watch::Receiver<Arc<Snapshot>>;

/// A publisher and its reader.
pub fn channel() -> (Publisher, Reader) {
    watch::channel(Arc::new(Snapshot::default()))
}

/// A run's state as people read it.
pub fn state_word(state: v1::RunState) -> &'static str {
    match state {
        v1::RunState::Unspecified => "unknown",
        v1::RunState::Running => "running",
        v1::RunState::Cancelling => "cancelling",
        v1::RunState::Succeeded => "succeeded",
        v1::RunState::Failed => "failed",
        v1::RunState::Cancelled => "cancelled",
    }
}
