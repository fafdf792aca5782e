//! From a target's options and a component to the pod of a worker. Pure.
//!
//! A worker is one pod with the component's image as it is. An init container of the scheduler's image puts the worker's program into a
//! volume (`scalable-worker install`), so that the two never differ in version and the image needs nothing of ours.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use scalable_manifest::{Amounts, Component, KubernetesOptions, Manifest, PodSecurity, quantity};
use serde_json::{Map, Value, json};

use crate::names;
use crate::patch;
use crate::settings::{Capacity, Pool};
use crate::status::WORKER_CONTAINER;

/// What the cluster autoscaler asks before it removes a node: `false` keeps the pod where it is.
pub const BUSY_ANNOTATION: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";
/// The same for Karpenter: only its presence counts.
pub const DISRUPT_ANNOTATION: &str = "karpenter.sh/do-not-disrupt";
/// A component's tags.
pub const TAGS_ANNOTATION: &str = "scalable.io/tags";

/// Where the worker's program is put.
pub const BIN_DIRECTORY: &str = "/scalable/bin";
/// Where the credentials are mounted, a file each.
pub const CREDENTIALS_DIRECTORY: &str = "/scalable/credentials";
/// `HOME`, `TMPDIR` and everything that is written.
pub const SCRATCH_DIRECTORY: &str = "/scalable/scratch";
/// Where peers and clients fetch results.
pub const PEER_PORT: u16 = 8788;
/// User and group of restricted pods where the manifest names none.
pub const USER: i64 = 10_001;

const BIN_VOLUME: &str = "scalable-bin";
const CREDENTIALS_VOLUME: &str = "scalable-credentials";
const SCRATCH_VOLUME: &str = "scalable-scratch";
/// What the grace period is longer than the drain.
const GRACE_AFTER_DRAIN_SECONDS: u64 = 30;

/// What the workers of a run have in common.
#[derive(Clone, Debug)]
pub struct WorkerContext {
    /// Id of the cluster.
    pub cluster_id: String,
    /// Name of the run.
    pub run: String,
    /// The scheduler's image, which brings the worker's program.
    pub scheduler_image: String,
    /// Where the scheduler is reached: the URL of its Service.
    pub address: String,
    /// Name of the Secret with the workers' credentials.
    pub secret: String,
}

/// Why no pod can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PodError {
    /// Neither component nor target names an image.
    #[error("no image for component `{component}`: neither it nor the target names one")]
    NoImage {
        /// Which.
        component: String,
    },
    /// The patched pod is none.
    #[error("with `pod_patch` the pod of component `{component}` is none: {message}")]
    Patch {
        /// Which.
        component: String,
        /// What is wrong with it.
        message: String,
    },
}

/// The pool of a component: its pods' template and what each offers. Bounds are the target's.
///
/// # Errors
/// Without an image, and when `pod_patch` makes something of it that is no pod.
pub fn pool(
    manifest: &Manifest,
    options: &KubernetesOptions,
    component: &Component,
    context: &WorkerContext,
) -> Result<Pool, PodError> {
    let (size, capacity) = manifest.worker(component);
    let image = component.image.as_deref().or(manifest.target.image.as_deref());
    let image = image.ok_or_else(|| PodError::NoImage { component: component.name.clone() })?;
    let worker = Worker { options, component, context, image, size: &size, capacity: &capacity };
    Ok(Pool {
        name: component.name.clone(),
        components: vec![component.name.clone()],
        capacity: Capacity {
            milli_cpus: capacity.milli_cpus,
            memory_bytes: capacity.memory_bytes,
            gpus: capacity.gpus,
            custom: capacity.custom.clone(),
        },
        minimum: manifest.target.workers_min,
        maximum: manifest.target.workers_max,
        drain_timeout_ms: options.drain_timeout_ms,
        start_deadline_ms: options.start_deadline_ms,
        template: worker.template()?,
    })
}

struct Worker<'a> {
    options: &'a KubernetesOptions,
    component: &'a Component,
    context: &'a WorkerContext,
    image: &'a str,
    size: &'a Amounts,
    capacity: &'a Amounts,
}

impl Worker<'_> {
    fn template(&self) -> Result<PodTemplateSpec, PodError> {
        let patched = |message: String| PodError::Patch { component: self.component.name.clone(), message };
        let mut pod = without_nulls(json!({
            "metadata": { "labels": self.labels(), "annotations": self.annotations() },
            "spec": self.spec(),
        }));
        if let Some(patch) = &self.options.pod_patch {
            patch::merge(&mut pod, patch);
            // What makes it ours is not for a patch to change.
            patch::merge(&mut pod, &json!({ "metadata": { "labels": self.own_labels() }, "spec": { "restartPolicy": "Never" } }));
        }
        let template: PodTemplateSpec = serde_json::from_value(pod.clone()).map_err(|error| patched(error.to_string()))?;
        let containers = template.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
        if !containers.iter().any(|container| container.name == WORKER_CONTAINER) {
            return Err(patched(format!("it has no container `{WORKER_CONTAINER}`")));
        }
        let read = serde_json::to_value(&template).map_err(|error| patched(error.to_string()))?;
        match patch::unknown(&pod, &read).as_slice() {
            [] => Ok(template),
            keys => Err(patched(format!("no pod has {}", keys.join(", ")))),
        }
    }

    fn own_labels(&self) -> BTreeMap<String, String> {
        names::labels(&self.context.cluster_id, &self.context.run, "worker", &self.component.name)
    }

    fn labels(&self) -> BTreeMap<String, String> {
        self.options.labels.clone().into_iter().chain(self.own_labels()).collect()
    }

    fn annotations(&self) -> BTreeMap<String, String> {
        let mut made = self.options.annotations.clone();
        if !self.component.tags.is_empty() {
            made.insert(TAGS_ANNOTATION.to_owned(), self.component.tags.join(","));
        }
        // A new worker gets work at once.
        made.insert(BUSY_ANNOTATION.to_owned(), "false".to_owned());
        made.insert(DISRUPT_ANNOTATION.to_owned(), "true".to_owned());
        made
    }

    fn spec(&self) -> Value {
        let options = self.options;
        let grace = options.drain_timeout_ms.div_ceil(1000) + GRACE_AFTER_DRAIN_SECONDS;
        json!({
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "serviceAccountName": options.worker_service_account,
            "terminationGracePeriodSeconds": grace,
            "priorityClassName": options.priority_class,
            "nodeSelector": none_if_empty(&options.node_selector),
            "tolerations": options.tolerations,
            "imagePullSecrets": pull_secrets(options),
            "securityContext": pod_security(options),
            "initContainers": if options.inject { json!([self.install()]) } else { json!([]) },
            "containers": [self.container()],
            "volumes": self.volumes(),
        })
    }

    /// What puts the worker's program into the volume. It asks for what the worker asks for, so that it costs nothing and no quota that
    /// wants figures refuses it.
    fn install(&self) -> Value {
        json!({
            "name": "install",
            "image": self.context.scheduler_image,
            "imagePullPolicy": self.options.image_pull_policy,
            "command": ["scalable-worker", "install", BIN_DIRECTORY],
            "resources": self.basic_resources(),
            "securityContext": restricted_container(),
            "volumeMounts": [{ "name": BIN_VOLUME, "mountPath": BIN_DIRECTORY }],
        })
    }

    fn container(&self) -> Value {
        json!({
            "name": WORKER_CONTAINER,
            "image": self.image,
            "imagePullPolicy": self.options.image_pull_policy,
            "command": self.options.inject.then(|| [format!("{BIN_DIRECTORY}/scalable-worker")]),
            "args": self.args(),
            "env": self.env(),
            "envFrom": self.options.env_from,
            "ports": [{ "name": "peer", "containerPort": PEER_PORT, "protocol": "TCP" }],
            "resources": self.resources(),
            "securityContext": container_security(self.options),
            "volumeMounts": self.volume_mounts(),
        })
    }

    fn args(&self) -> Vec<String> {
        let mut args: Vec<String> = [
            ("--address", self.context.address.as_str()),
            ("--cluster-id", self.context.cluster_id.as_str()),
            ("--credentials", CREDENTIALS_DIRECTORY),
            ("--name", "$(SCALABLE_POD_NAME)"),
            ("--uid", "$(SCALABLE_POD_UID)"),
            ("--pool", self.component.name.as_str()),
            ("--components", self.component.name.as_str()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value.to_owned()])
        .collect();
        let mut flag = |name: &str, value: String| args.extend([name.to_owned(), value]);
        flag("--cpus", format!("{}m", self.capacity.milli_cpus));
        if self.capacity.memory_bytes > 0 {
            flag("--memory", self.capacity.memory_bytes.to_string());
        }
        if self.capacity.gpus > 0 {
            flag("--gpus", self.capacity.gpus.to_string());
        }
        for (name, amount) in self.capacity.custom.iter().filter(|(_, amount)| **amount > 0) {
            flag("--resource", format!("{name}={amount}"));
        }
        flag("--drain-deadline", format!("{}ms", self.options.drain_timeout_ms));
        flag("--peer-address", format!("0.0.0.0:{PEER_PORT}"));
        flag("--advertise", format!("$(SCALABLE_POD_IP):{PEER_PORT}"));
        flag("--directory", format!("{SCRATCH_DIRECTORY}/worker"));
        args
    }

    fn env(&self) -> Vec<Value> {
        let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
        let mut env = vec![
            field("SCALABLE_POD_NAME", "metadata.name"),
            field("SCALABLE_POD_UID", "metadata.uid"),
            field("SCALABLE_POD_IP", "status.podIP"),
        ];
        let named = |name: &str| self.options.env.iter().any(|entry| entry.get("name").is_some_and(|n| n == name));
        for name in ["HOME", "TMPDIR"].into_iter().filter(|name| !named(name)) {
            env.push(json!({ "name": name, "value": SCRATCH_DIRECTORY }));
        }
        env.extend(self.options.env.iter().cloned());
        env
    }

    /// Requests and limits: the target's, with the component's cpus and memory in place of both.
    fn resources(&self) -> Value {
        let mut requests = self.options.resources.requests.clone();
        let mut limits = self.options.resources.limits.clone();
        if self.component.milli_cpus.is_some() {
            let cpus = cpu_quantity(self.size.milli_cpus);
            requests.insert("cpu".to_owned(), cpus.clone());
            limits.insert("cpu".to_owned(), cpus);
        }
        if self.component.memory_bytes.is_some() {
            let bytes = quantity(self.size.memory_bytes);
            requests.insert("memory".to_owned(), bytes.clone());
            limits.insert("memory".to_owned(), bytes);
        }
        if !limits.contains_key("cpu") && !requests.contains_key("cpu") {
            // Nobody named any: the worker offers one, so it reserves one.
            requests.insert("cpu".to_owned(), cpu_quantity(self.size.milli_cpus));
        }
        if let Some(bytes) = self.options.ephemeral_storage_bytes {
            requests.insert("ephemeral-storage".to_owned(), quantity(bytes));
            limits.insert("ephemeral-storage".to_owned(), quantity(bytes));
        }
        for amounts in [&mut requests, &mut limits] {
            self.clip(amounts);
        }
        // Kubernetes takes extended resources only where both are the same, and wants no request above its limit.
        let whole: Vec<_> = requests.iter().filter(|(key, _)| key.contains('/')).map(|(k, v)| (k.clone(), v.clone())).collect();
        for (key, amount) in whole {
            limits.entry(key).or_insert(amount);
        }
        json!({ "requests": requests, "limits": limits })
    }

    fn clip(&self, amounts: &mut BTreeMap<String, String>) {
        let clip = &self.options.clip;
        let above = |amounts: &BTreeMap<String, String>, key: &str, limit: u64, scale: u128| {
            let amount = amounts.get(key).and_then(|text| crate::failure::quantity(text));
            amount.is_some_and(|amount| amount > u128::from(limit) * scale)
        };
        if let Some(milli) = clip.milli_cpus.filter(|milli| above(amounts, "cpu", *milli, 1)) {
            amounts.insert("cpu".to_owned(), cpu_quantity(milli));
        }
        if let Some(bytes) = clip.memory_bytes.filter(|bytes| above(amounts, "memory", *bytes, 1000)) {
            amounts.insert("memory".to_owned(), quantity(bytes));
        }
    }

    /// Cpus and memory only: no device is needed to copy a file.
    fn basic_resources(&self) -> Value {
        let mut resources = self.resources();
        for part in ["requests", "limits"] {
            if let Some(Value::Object(amounts)) = resources.get_mut(part) {
                amounts.retain(|key, _| matches!(key.as_str(), "cpu" | "memory"));
            }
        }
        resources
    }

    fn volumes(&self) -> Vec<Value> {
        let scratch = json!({ "sizeLimit": self.options.ephemeral_storage_bytes.map(quantity) });
        let mut volumes = vec![
            json!({ "name": CREDENTIALS_VOLUME, "secret": { "secretName": self.context.secret, "defaultMode": 0o440 } }),
            json!({ "name": SCRATCH_VOLUME, "emptyDir": scratch }),
        ];
        if self.options.inject {
            volumes.push(json!({ "name": BIN_VOLUME, "emptyDir": {} }));
        }
        for volume in &self.options.volumes {
            let mut entry = json!({ "name": volume.name });
            patch::merge(&mut entry, &volume.source);
            volumes.push(entry);
        }
        volumes
    }

    fn volume_mounts(&self) -> Vec<Value> {
        let mut mounts = vec![
            json!({ "name": CREDENTIALS_VOLUME, "mountPath": CREDENTIALS_DIRECTORY, "readOnly": true }),
            json!({ "name": SCRATCH_VOLUME, "mountPath": SCRATCH_DIRECTORY }),
        ];
        if self.options.inject {
            mounts.push(json!({ "name": BIN_VOLUME, "mountPath": BIN_DIRECTORY, "readOnly": true }));
        }
        let mount = |volume: &str, path: &str, sub_path: &Option<String>, read_only: bool| json!({ "name": volume, "mountPath": path, "subPath": sub_path, "readOnly": read_only.then_some(true) });
        for volume in &self.options.volumes {
            mounts.extend(volume.mount.as_ref().map(|path| mount(&volume.name, path, &volume.sub_path, volume.read_only)));
        }
        for (host, container) in &self.component.mounts {
            let found = self.options.mount(host, container);
            mounts.extend(found.map(|found| mount(&found.volume, &found.path, &found.sub_path, found.read_only)));
        }
        mounts
    }
}

/// Whole cpus as such, else thousandths.
pub(crate) fn cpu_quantity(milli: u64) -> String {
    if milli.is_multiple_of(1000) { (milli / 1000).to_string() } else { format!("{milli}m") }
}

pub(crate) fn pull_secrets(options: &KubernetesOptions) -> Vec<Value> {
    options.image_pull_secrets.iter().map(|name| json!({ "name": name })).collect()
}

fn none_if_empty(pairs: &BTreeMap<String, String>) -> Option<&BTreeMap<String, String>> {
    (!pairs.is_empty()).then_some(pairs)
}

/// A pod's security context under the target's options.
fn pod_security(options: &KubernetesOptions) -> Value {
    let restricted = options.pod_security == PodSecurity::Restricted;
    let id = |named: Option<i64>| named.or(restricted.then_some(USER));
    json!({
        "runAsNonRoot": restricted.then_some(true),
        "runAsUser": id(options.run_as.user),
        "runAsGroup": id(options.run_as.group),
        // Whoever the image's user is, the group may read the credentials, and nobody else.
        "fsGroup": options.run_as.fs_group.unwrap_or(USER),
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}

fn container_security(options: &KubernetesOptions) -> Value {
    match options.pod_security {
        PodSecurity::Restricted => json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        }),
        PodSecurity::Baseline => json!({ "allowPrivilegeEscalation": false }),
    }
}

/// The security context of a container of ours, which needs nothing, in whatever pod.
pub(crate) fn restricted_container() -> Value {
    json!({
        "runAsNonRoot": true,
        "runAsUser": USER,
        "runAsGroup": USER,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"] },
    })
}

/// A value without keys that are null, and without empty lists.
pub(crate) fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(entries) => {
            let kept = entries.into_iter().map(|(key, value)| (key, without_nulls(value)));
            let empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
            Value::Object(kept.filter(|(_, value)| !empty(value)).collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}
