//! The agent: runs attempts as child processes, measures them, publishes what they wrote. It decides nothing that the worker
//! machine in `scalable-core` decides; user code never runs inside it.
//!
//! One thread is the reactor: it drives the sockets to the scheduler, the lane's processes and the machine, and never waits for
//! a disk. Directories, copies and digests are made by a few helper threads ([`helpers`]) that meet it through channels.
#![deny(unsafe_code)]

pub mod descendants;
pub mod lane;
pub mod spawn;
