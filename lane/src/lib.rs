//! The lane protocol: how the agent has functions of a user's program called in a *lane host*, which is that program started as
//! a child of the agent. `docs/lane-protocol.md` says every frame and every byte of shared memory, for hosts in other languages.
//!
//! [`host`] is what a user's program runs, [`agent`] the agent's end of the same. The rest is what both share: [`frame`] is the
//! layout of frames, [`socket`] carries them, [`shared`] is the memory that tells without a frame what is executing and what was
//! taken back, [`memory`] is large values that are passed and not copied.
//!
//! **Nothing here schedules.** Which call goes to which host, when, and what its end means is the agent's.
#![deny(unsafe_code)]

pub mod agent;
pub mod frame;
pub mod host;
pub mod memory;
pub mod shared;
pub mod socket;

/// Versions of the protocol this crate speaks.
pub const VERSIONS: std::ops::RangeInclusive<u16> = 1..=1;
/// The environment variable that names the descriptor of a host's socket. A program that finds it set is a lane host.
pub const FD_VARIABLE: &str = "SCALABLE_LANE_FD";
/// The descriptor an agent gives it as.
pub const HOST_FD: i32 = 3;
/// Largest frame, bytes: a socket of packets carries it whole or not at all.
pub const FRAME_BYTES_MAX: usize = 128 << 10;
/// Most descriptors that come with one frame.
pub const FRAME_FDS_MAX: usize = 64;
/// Largest result or input object that travels inside a frame, bytes. What is larger is passed as memory.
pub const INLINE_BYTES_MAX: usize = 64 << 10;
/// Largest text of an error, of a panic, and of its backtrace, bytes each.
pub const TEXT_BYTES_MAX: usize = 16 << 10;
