//! What a target of provider `kubernetes` says: its options, typed and checked. What is made of them is another crate's matter.

pub(crate) mod keys;
pub(crate) mod place;
pub(crate) mod read;
mod values;

use std::collections::BTreeMap;

use serde_json::Value;

pub use keys::kubernetes_keys;

/// Options of a Kubernetes target.
#[derive(Clone, Debug, PartialEq)]
pub struct KubernetesOptions {
    /// Where everything is made. Nothing: the context's namespace, else `default`.
    pub namespace: Option<String>,
    /// Context of the kubeconfig; nothing: the current one.
    pub context: Option<String>,
    /// Image of the scheduler, which also brings the worker's program into worker pods.
    pub scheduler_image: Option<String>,
    /// Thousandths of a cpu of the scheduler's pod.
    pub scheduler_milli_cpus: u64,
    /// Memory of the scheduler's pod, bytes.
    pub scheduler_memory_bytes: u64,
    /// Where the scheduler keeps records, logs and outputs.
    pub scheduler_storage: SchedulerStorage,
    /// Service account of the scheduler's pod, which then is not made: it must have the rights already.
    pub service_account: Option<String>,
    /// Service account of worker pods; its token is not mounted.
    pub worker_service_account: Option<String>,
    /// `resources` as they go into the pod, before a component replaces cpus and memory.
    pub resources: PodResources,
    /// Most that a worker pod may ask for; larger sizes are clipped to it.
    pub clip: Clip,
    /// Ephemeral storage of a worker pod, bytes.
    pub ephemeral_storage_bytes: Option<u64>,
    /// Environment of worker pods, as entries of a container's `env`.
    pub env: Vec<Value>,
    /// As entries of a container's `envFrom`.
    pub env_from: Vec<Value>,
    /// As entries of a pod's `tolerations`.
    pub tolerations: Vec<Value>,
    /// Labels a node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Labels of all pods.
    pub labels: BTreeMap<String, String>,
    /// Annotations of all pods.
    pub annotations: BTreeMap<String, String>,
    /// `Always`, `IfNotPresent` or `Never`.
    pub image_pull_policy: Option<String>,
    /// Secrets to pull images with.
    pub image_pull_secrets: Vec<String>,
    /// Priority class of all pods.
    pub priority_class: Option<String>,
    /// Volumes of worker pods.
    pub volumes: Vec<VolumeOption>,
    /// Strategic merge patch of worker pods: `metadata` and `spec`.
    pub pod_patch: Option<Value>,
    /// How little pods may do.
    pub pod_security: PodSecurity,
    /// Who the processes are; where nothing is said 10001, and under `baseline` whoever the image says.
    pub run_as: RunAs,
    /// The worker's program is put into the pod; else the image's entry point is one.
    pub inject: bool,
    /// How long what executes may go on when a worker is to go, milliseconds.
    pub drain_timeout_ms: u64,
    /// Longest way of a pod to its program, and of the scheduler to its first answer, milliseconds.
    pub start_deadline_ms: u64,
    /// How long the scheduler of a run that is over keeps what came of it for a client that has not fetched it, milliseconds. Then
    /// everything goes.
    pub results_ttl_ms: u64,
    /// How long the Job of a run, and with it everything of the run, stays after its scheduler has ended, milliseconds.
    pub job_ttl_ms: u64,
    /// An autoscaler may add larger nodes: a request above all of today's may fit later.
    pub node_autoscaling: bool,
}

impl Default for KubernetesOptions {
    fn default() -> KubernetesOptions {
        KubernetesOptions {
            namespace: None,
            context: None,
            scheduler_image: None,
            scheduler_milli_cpus: 500,
            scheduler_memory_bytes: 512 << 20,
            scheduler_storage: SchedulerStorage::Size(10 << 30),
            service_account: None,
            worker_service_account: None,
            resources: PodResources::default(),
            clip: Clip::default(),
            ephemeral_storage_bytes: None,
            env: Vec::new(),
            env_from: Vec::new(),
            tolerations: Vec::new(),
            node_selector: BTreeMap::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            priority_class: None,
            volumes: Vec::new(),
            pod_patch: None,
            pod_security: PodSecurity::Restricted,
            run_as: RunAs::default(),
            inject: true,
            drain_timeout_ms: 120_000,
            start_deadline_ms: 15 * 60_000,
            results_ttl_ms: 24 * 3_600_000,
            job_ttl_ms: 10 * 60_000,
            node_autoscaling: true,
        }
    }
}

/// Where the scheduler keeps what it must not lose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SchedulerStorage {
    /// A volume that lives as long as its pod, of at most so many bytes.
    Size(u64),
    /// A PersistentVolumeClaim that exists.
    Claim(String),
}

/// Requests and limits of a container, as Kubernetes writes quantities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodResources {
    /// What is reserved.
    pub requests: BTreeMap<String, String>,
    /// What is allowed.
    pub limits: BTreeMap<String, String>,
}

/// Most that a worker pod may ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clip {
    /// Thousandths of a cpu.
    pub milli_cpus: Option<u64>,
    /// Bytes.
    pub memory_bytes: Option<u64>,
}

/// A volume of worker pods.
#[derive(Clone, Debug, PartialEq)]
pub struct VolumeOption {
    /// Its name.
    pub name: String,
    /// As the rest of an entry of a pod's `volumes`: `{"persistentVolumeClaim": {"claimName": "data"}}`.
    pub source: Value,
    /// Where all worker containers have it.
    pub mount: Option<String>,
    /// Only a part of it there.
    pub sub_path: Option<String>,
    /// Nobody writes to it.
    pub read_only: bool,
    /// The host directory it stands for: a component's `mounts` from there or below are mounted from this volume.
    pub host: Option<String>,
}

/// How little pods may do: a level of Kubernetes' Pod Security Standards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodSecurity {
    /// No root, no privileges, a root file system that is only read.
    Restricted,
    /// As the image wants it, without privileges.
    Baseline,
}

/// Who the processes of a pod are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunAs {
    /// User id.
    pub user: Option<i64>,
    /// Group id.
    pub group: Option<i64>,
    /// Group that volumes belong to.
    pub fs_group: Option<i64>,
}

/// A component's directory in worker pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentMount {
    /// Name of the volume.
    pub volume: String,
    /// The part of it, or nothing.
    pub sub_path: Option<String>,
    /// Where it is in the container.
    pub path: String,
    /// Nobody writes to it.
    pub read_only: bool,
}
