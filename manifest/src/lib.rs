//! `scalable.yaml`: parse → resolve (environment, target, overlay) → validate → plan → lower to a [`RunSpec`].
//!
//! Nothing here runs anything or contacts anybody. Findings are collected, with line, column and what to do, and told in one go.
//!
//! [`RunSpec`]: scalable_proto::v1::RunSpec
#![forbid(unsafe_code)]

mod diagnostic;
mod expand;
mod fields;
mod files;
mod graph;
mod kubernetes;
mod load;
mod lock;
mod lower;
mod model;
mod node;
mod overlay;
mod parameters;
mod paths;
mod plan;
mod ports;
mod preview;
mod scaling;
mod sections;
mod sizes;
mod substitution;
mod target;
mod task;
mod units;
mod yaml;

pub use diagnostic::{At, DIAGNOSTICS_MAX, Diagnostic, Severity, report, suggestion};
pub use kubernetes::{
    Clip, ComponentMount, KubernetesOptions, PodResources, PodSecurity, RunAs, SchedulerStorage, VolumeOption, kubernetes_keys,
};
pub use load::{LoadOptions, Loaded, load};
pub use lower::{FileToStore, LowerOptions, Submission, lower};
pub use model::{
    Amounts, Command, Component, DEFAULT_COMPONENT, Link, LocalOptions, Machine, Manifest, Project, Requested, Select, Target,
    Task, TaskInput, WorkerSize,
};
pub use parameters::Parameters;
pub use plan::{DependencyPlan, GroupPlan, LocalWorkers, OutputPlan, ParameterPlan, Plan, PoolPlan, ScalePlan, plan};
pub use units::{format_bytes, quantity};
