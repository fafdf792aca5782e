//! `scalable run --target k8s` on a real Kubernetes, which `SCALABLE_TEST_KUBECONFIG` names: `scripts/test --cluster` starts one. Every
//! test has a namespace of its own and a user with one namespaced Role. Those in `alone` change the whole cluster: they run by
//! themselves, after the others.

#![allow(clippy::print_stdout, reason = "what a test has measured, and what is skipped, is said")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod alone;
mod anywhere;
mod functions;
mod guide;
mod lifecycle;
mod lost;
mod options;
mod reach;
mod reasons;
mod refused;
mod scaling;
mod vandals;
