//! The agent: runs attempts as child processes, measures them, publishes what they wrote. It decides nothing that the worker
//! machine in `scalable-core` decides; user code never runs inside it.
//!
//! One thread is the reactor: it drives the sockets to the scheduler, the lane's processes and the machine, and never waits for
//! a disk. Directories, copies and digests are made by a few helper threads ([`helpers`]) that meet it through channels.
#![deny(unsafe_code)]

pub mod agent;
pub mod attempt;
pub mod batch;
pub mod catalog;
pub mod cgroup;
pub mod connection;
pub mod container;
pub mod content;
pub mod descendants;
pub mod directory;
pub mod function;
pub mod helpers;
pub mod install;
pub mod job;
pub mod lane;
pub mod layout;
pub mod limits;
pub mod link;
pub mod logs;
pub mod options;
pub mod pattern;
pub mod process;
pub mod publish;
pub mod remote;
pub mod secured;
pub mod sources;
pub mod spawn;
pub mod stage;
pub mod takeover;
pub mod watch;
