//! Our own measurements, a function for each row.

pub mod commands;

/// Tasks of the no-op rows.
pub const NOOPS: u32 = 1_000_000;
/// Tasks of a chain.
pub const LINKS: u32 = 1000;
