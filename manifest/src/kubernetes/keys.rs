//! Every key of a Kubernetes target and of a component. What reads a mapping takes its list from here, so nothing is accepted that these
//! lists do not have: tests and documentation go through them.

use crate::scaling;
use crate::sections;

/// Of the target itself.
pub(crate) const TARGET: [&str; 37] = [
    "provider",
    "overlay",
    "context",
    "namespace",
    "image",
    "scheduler_image",
    "scheduler_cpu",
    "scheduler_memory",
    "scheduler_storage",
    "service_account",
    "worker_service_account",
    "n_workers",
    "adaptive",
    "resources",
    "limits",
    "ephemeral_storage",
    "env",
    "env_from",
    "tolerations",
    "node_selector",
    "labels",
    "annotations",
    "image_pull_policy",
    "image_pull_secrets",
    "priority_class",
    "volumes",
    "pod_patch",
    "pod_security",
    "run_as",
    "inject",
    "drain_timeout",
    "start_deadline",
    "results_ttl",
    "job_ttl",
    "node_autoscaling",
    "walltime",
    "totals",
];

/// Of `resources`; below them are names of resources, which are no keys of ours.
pub(crate) const RESOURCES: [&str; 2] = ["requests", "limits"];
/// Of `limits`.
pub(crate) const LIMITS: [&str; 2] = ["cpus", "memory"];
/// Of `scheduler_storage` where it is a mapping.
pub(crate) const SCHEDULER_STORAGE: [&str; 2] = ["size", "claim"];
/// Of `run_as`.
pub(crate) const RUN_AS: [&str; 3] = ["user", "group", "fs_group"];
/// Of `pod_patch`.
pub(crate) const POD_PATCH: [&str; 2] = ["metadata", "spec"];
/// Of an entry of `env` where that is a list.
pub(crate) const ENV: [&str; 3] = ["name", "value", "valueFrom"];
/// Of an entry of `env_from`.
pub(crate) const ENV_FROM: [&str; 3] = ["secretRef", "configMapRef", "prefix"];
/// Of an entry of `tolerations`.
pub(crate) const TOLERATION: [&str; 5] = ["key", "operator", "value", "effect", "tolerationSeconds"];
/// Of an entry of `volumes`, besides [`SOURCES`].
pub(crate) const VOLUME: [&str; 7] = ["name", "mount", "sub_path", "read_only", "host", "claim", "config_map"];
/// Sources of a volume that are passed on as they are.
pub(crate) const SOURCES: [&str; 11] = [
    "persistentVolumeClaim",
    "secret",
    "configMap",
    "emptyDir",
    "hostPath",
    "nfs",
    "csi",
    "ephemeral",
    "projected",
    "downwardAPI",
    "image",
];

/// Every key that a Kubernetes target and a component of its may have, as a path: `targets.adaptive.minimum`,
/// `targets.volumes[].claim`, `components.cpus`. Names that the user chooses, such as those of `env`, are none.
pub fn kubernetes_keys() -> Vec<String> {
    let lists: [(&str, &[&str]); 13] = [
        ("targets.", &TARGET),
        ("targets.adaptive.", &scaling::KEYS),
        ("targets.resources.", &RESOURCES),
        ("targets.limits.", &LIMITS),
        ("targets.scheduler_storage.", &SCHEDULER_STORAGE),
        ("targets.run_as.", &RUN_AS),
        ("targets.pod_patch.", &POD_PATCH),
        ("targets.env[].", &ENV),
        ("targets.env_from[].", &ENV_FROM),
        ("targets.tolerations[].", &TOLERATION),
        ("targets.volumes[].", &VOLUME),
        ("targets.volumes[].", &SOURCES),
        ("components.", &sections::COMPONENT_KEYS),
    ];
    lists.iter().flat_map(|(of, keys)| keys.iter().map(move |key| format!("{of}{key}"))).collect()
}
