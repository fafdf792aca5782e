//! Our own measurements, a function for each row.

pub mod commands;
pub mod data;
pub mod functions;
pub mod growth;
pub mod process;
pub mod rig;
pub mod scheduler;

use crate::whole::Workers;

/// Tasks of the no-op rows.
pub const NOOPS: u32 = 1_000_000;
/// Tasks of a chain.
pub const LINKS: u32 = 1000;
/// Leaves of the tree: 32,767 tasks in all.
pub const LEAVES: u32 = 16_384;
/// Most rows.
pub const TWO_SLOTS: Workers = Workers { number: 1, cpus: 2 };
/// Rows that move data between workers.
pub const FOUR_WORKERS: Workers = Workers { number: 4, cpus: 1 };
