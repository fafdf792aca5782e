//! What `scalable-scheduler` can be told.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use scalable_core::ids::{MILLISECOND, Micros};

/// The server: clients and workers on 8786, people and monitoring on 8787.
#[derive(Clone, Debug, Parser)]
#[command(name = "scalable-scheduler", version)]
pub struct Options {
    /// Where clients and workers connect. Loopback only.
    #[arg(long, default_value = "127.0.0.1:8786")]
    pub listen: SocketAddr,
    /// Where /livez, /readyz, /metrics, the status as JSON and the monitoring service are. Loopback only.
    #[arg(long, default_value = "127.0.0.1:8787")]
    pub http: SocketAddr,
    /// Take any free port where the one asked for is taken.
    #[arg(long)]
    pub any_port: bool,
    /// File with the token every call must show; mode 0600.
    #[arg(long, env = "SCALABLE_TOKEN_FILE")]
    pub token_file: PathBuf,
    /// Directory for the scheduler's own files, such as the logs of the workers it starts.
    #[arg(long, default_value = ".scalable/scheduler")]
    pub state_dir: PathBuf,
    /// Directory for runs whose clients share no disk with the scheduler: each gets one named after it. Default: `runs` in the directory of
    /// the scheduler's own files.
    #[arg(long)]
    pub runs_dir: Option<PathBuf>,
    /// Most bytes of outputs and logs that are copied from workers: at 90 % of it copying stops. Default: no limit.
    #[arg(long, value_name = "BYTES")]
    pub store_limit: Option<u64>,
    /// Seconds that a run whose client shares no disk with the scheduler is kept for it after its end.
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    pub results_ttl: u64,
    /// Start and keep this many workers on this machine (JSON).
    #[arg(long, value_name = "JSON")]
    pub local_workers: Option<String>,
    /// Standard input is a pipe: when it closes, cancel every run, stop the workers and end.
    #[arg(long)]
    pub lifeline: bool,
    /// End when no run is live any more and the idle time-to-live is over.
    #[arg(long)]
    pub exit_when_done: bool,
    /// Seconds without a live run after which `--exit-when-done` ends the scheduler.
    #[arg(long, default_value_t = 0)]
    pub idle_ttl: u64,
    /// Silence after which a worker is suspected, milliseconds.
    #[arg(long, env = "SCALABLE_SUSPECT_AFTER_MS", default_value_t = 15_000, hide = true)]
    pub suspect_after_ms: u64,
    /// Silence after which a worker is lost, milliseconds.
    #[arg(long, env = "SCALABLE_LOST_AFTER_MS", default_value_t = 30_000, hide = true)]
    pub lost_after_ms: u64,
    /// Time after a reset after which a worker is lost, milliseconds.
    #[arg(long, env = "SCALABLE_LOST_AFTER_RESET_MS", default_value_t = 10_000, hide = true)]
    pub lost_after_reset_ms: u64,
    /// How often workers are heard of at least, milliseconds.
    #[arg(long, env = "SCALABLE_HEARTBEAT_MS", default_value_t = 5_000, hide = true)]
    pub heartbeat_ms: u32,
}

impl Options {
    /// Silence after which a worker is suspected.
    pub fn suspect_after(&self) -> Micros {
        self.suspect_after_ms.saturating_mul(MILLISECOND)
    }

    /// Silence after which a worker is lost.
    pub fn lost_after_silence(&self) -> Micros {
        self.lost_after_ms.saturating_mul(MILLISECOND)
    }

    /// Time after a reset after which a worker is lost.
    pub fn lost_after_reset(&self) -> Micros {
        self.lost_after_reset_ms.saturating_mul(MILLISECOND)
    }
}
