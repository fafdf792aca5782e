//! Runs whose cluster is pods of a Kubernetes namespace: bringing one up, reaching one that is there, taking it down.

mod carry_out;
mod elsewhere;
mod launch;
mod reach;

pub use carry_out::{carry_out, go_on, lost};
pub use elsewhere::{Namespace, Seen, directory_here};
pub use launch::scheduler_image;
pub use reach::{Live, Reached, Way, attach, destroy_run, look_for, open};

use std::path::PathBuf;

use scalable_provider_k8s::Access;
use serde::{Deserialize, Serialize};

/// Where a run is on Kubernetes: `kubernetes` in run.json.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KubernetesRecord {
    /// Namespace of everything.
    pub namespace: String,
    /// Id of its cluster: another run may have the same name.
    pub cluster_id: String,
    /// The kubeconfig that was named, if one was.
    pub kubeconfig: Option<PathBuf>,
    /// The context that was named, if one was.
    pub context: Option<String>,
    /// Where the scheduler was said to be reached, if that was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler_address: Option<String>,
    /// And its store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store_address: Option<String>,
}

impl KubernetesRecord {
    /// How its API is reached.
    pub fn access(&self) -> Access {
        Access { kubeconfig: self.kubeconfig.clone(), context: self.context.clone() }
    }

    /// How its scheduler is reached, by who is `inside` the cluster or not.
    pub fn way(&self, inside: bool) -> Way {
        Way::of(self.scheduler_address.as_deref(), self.store_address.as_deref(), inside)
    }
}
