//! The process around the scheduler machine: sockets, records and the provider. It decides nothing.
//!
//! One thread, the reactor's, owns the machine and drives 8786; 8787, the records and the provider run on threads of their
//! own and meet it only through bounded queues.

pub mod admission;
pub mod auth;
pub mod content_store;
pub mod convert;
pub mod door;
pub mod gate;
pub mod http;
#[cfg(feature = "k8s")]
pub mod kubernetes;
pub mod options;
pub mod output_store;
pub mod provision;
pub mod reactor;
pub mod records;
pub mod run_files;
pub mod runs_dir;
pub mod serve;
pub mod sign;
pub mod snapshot;
pub mod tls;
