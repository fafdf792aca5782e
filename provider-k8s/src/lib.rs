//! Kubernetes as a target: workers as pods of one namespace ([`KubernetesProvider`], used by the scheduler), and what brings a scheduler
//! up there and takes everything down again (used by the command line). No operator, no cluster-wide right, nothing left behind: every
//! object belongs to one Job, and the garbage collector removes what the Job owns.

mod access;
mod actor;
pub mod bucket;
pub mod failure;
mod fate;
mod forward;
mod launch;
pub mod names;
pub mod network;
pub mod objects;
pub mod patch;
pub mod plan;
pub mod pods;
mod preflight;
mod provider;
mod requests;
pub mod rights;
pub mod settings;
pub mod status;
mod view;

pub use access::{Access, Connection};
pub use fate::{Fate, fate, namespace_end};
pub use forward::Forward;
pub use launch::{KubernetesLauncher, Progress, Run, Scheduler, attach, destroy, find, left, list, workers};
pub use objects::{Launch, Probe};
pub use preflight::Preflight;
pub use provider::{KubernetesProvider, Limits, ProviderOptions, WorkerPod, Workers};
