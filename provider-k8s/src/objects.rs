//! What a run consists of in a namespace, as objects. Pure: nothing is asked of the API here.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Secret, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use scalable_manifest::{KubernetesOptions, SchedulerStorage, quantity};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::names;
use crate::pods::{
    BUSY_ANNOTATION, CREDENTIALS_DIRECTORY, DISRUPT_ANNOTATION, USER, cpu_quantity, pull_secrets, restricted_container,
    without_nulls,
};
use crate::rights;
use crate::settings::{Pool, Root, Settings, VERSION};

/// Name of the scheduler's container.
pub const SCHEDULER_CONTAINER: &str = "scheduler";
/// The document about the workers, in the scheduler's pod.
pub const SETTINGS_FILE: &str = "/scalable/credentials/settings.json";
/// Where the scheduler keeps records, logs and outputs, in its pod.
pub const STATE_DIRECTORY: &str = "/scalable/state";
/// Name under which the first run of a namespace is reached as well.
pub const ALIAS: &str = "scalable-scheduler";
/// Clients and workers.
pub const PORT: u16 = 8786;
/// People, and probes.
pub const HTTP_PORT: u16 = 8787;
/// Results and outputs.
pub const OBJECT_PORT: u16 = 8788;
/// Time the scheduler has to end, seconds.
const GRACE_SECONDS: u32 = 60;

/// What the kubelet asks to know whether the scheduler is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The path.
    pub path: String,
    /// The port.
    pub port: u16,
    /// Over TLS; the kubelet does not look at the certificate.
    pub tls: bool,
}

impl Default for Probe {
    fn default() -> Probe {
        Probe { path: "/readyz".to_owned(), port: HTTP_PORT, tls: true }
    }
}

/// What is to be brought up.
#[derive(Clone)]
pub struct Launch {
    /// Id of the new cluster.
    pub cluster_id: String,
    /// Name of the run.
    pub run: String,
    /// Its project; the Job says it to whoever looks for the run from elsewhere.
    pub project: String,
    /// Its target, as the manifest calls it; as the project.
    pub target: String,
    /// Where.
    pub namespace: String,
    /// The scheduler's image.
    pub scheduler_image: String,
    /// Its program; nothing: the image's entry point.
    pub scheduler_command: Option<Vec<String>>,
    /// Its arguments.
    pub scheduler_args: Vec<String>,
    /// What the kubelet asks it.
    pub probe: Probe,
    /// The target's options: what the scheduler's pod needs, and how long it may take to start.
    pub options: KubernetesOptions,
    /// The workers.
    pub pools: Vec<Pool>,
    /// Whoever starts the run reaches its scheduler by forwarded ports, and needs the right to.
    pub forwards: bool,
    /// Files in [`CREDENTIALS_DIRECTORY`] of the scheduler's pod; `settings.json` is added.
    pub scheduler_secret: BTreeMap<String, Vec<u8>>,
    /// Files in [`CREDENTIALS_DIRECTORY`] of worker pods.
    pub worker_secret: BTreeMap<String, Vec<u8>>,
}

impl std::fmt::Debug for Launch {
    /// Without the secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Launch");
        shown
            .field("cluster_id", &self.cluster_id)
            .field("run", &self.run)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl Launch {
    /// Name of the Job, and of everything that there is once.
    pub fn name(&self) -> String {
        names::scheduler(&self.run)
    }

    /// Where workers reach the scheduler: `scalable-scheduler-<run>.<namespace>.svc:8786`.
    pub fn address(&self) -> String {
        format!("{}.{}.svc:{PORT}", self.name(), self.namespace)
    }

    /// Name of the Secret that worker pods mount.
    pub fn worker_secret_name(&self) -> String {
        worker_secret_name(&self.run)
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let own = names::labels(&self.cluster_id, &self.run, "scheduler", "scheduler");
        self.options.labels.clone().into_iter().chain(own).collect()
    }

    fn metadata(&self, name: &str, root: &Root) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(self.namespace.clone()),
            labels: Some(self.labels()),
            owner_references: Some(vec![root.owner()]),
            ..ObjectMeta::default()
        }
    }

    /// The Job that owns everything: its one pod is the scheduler, its deadline is lifted by the scheduler once it is up. It has no pod
    /// before [`Launch::start_patch`]: what the pod needs is owned by the Job and so made after it. Its deadline runs from the first.
    pub fn job(&self) -> Job {
        made(json!({
            "metadata": {
                "name": self.name(), "namespace": self.namespace, "labels": self.labels(),
                "annotations": {
                    names::RUN_ANNOTATION: self.run,
                    names::PROJECT_ANNOTATION: self.project,
                    names::TARGET_ANNOTATION: self.target,
                },
            },
            "spec": {
                "completions": 1,
                "parallelism": 0,
                "backoffLimit": 0,
                "activeDeadlineSeconds": Duration::from_millis(self.options.start_deadline_ms).as_secs().max(1),
                "ttlSecondsAfterFinished": Duration::from_millis(self.options.job_ttl_ms).as_secs().max(1),
                "template": { "metadata": { "labels": self.labels(), "annotations": self.annotations() }, "spec": self.pod_spec() },
            },
        }))
    }

    /// What makes the Job create its pod.
    pub fn start_patch(&self) -> Value {
        json!({ "spec": { "parallelism": 1 } })
    }

    /// The Job's pod alone, for asking the API whether it would take it.
    pub fn pod(&self) -> Value {
        let mut spec = self.pod_spec();
        if self.options.service_account.is_none()
            && let Value::Object(fields) = &mut spec
        {
            // It is made with the Job.
            fields.remove("serviceAccountName");
        }
        let metadata = json!({ "name": self.name(), "labels": self.labels(), "annotations": self.annotations() });
        without_nulls(json!({ "metadata": metadata, "spec": spec }))
    }

    fn annotations(&self) -> BTreeMap<String, String> {
        let keep = [(BUSY_ANNOTATION, "false"), (DISRUPT_ANNOTATION, "true")];
        let keep = keep.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
        self.options.annotations.clone().into_iter().chain(keep).collect()
    }

    /// Name of the scheduler's service account.
    pub fn service_account_name(&self) -> String {
        self.options.service_account.clone().unwrap_or_else(|| self.name())
    }

    fn pod_spec(&self) -> Value {
        let options = &self.options;
        let state = match &options.scheduler_storage {
            SchedulerStorage::Size(bytes) => json!({ "name": "state", "emptyDir": { "sizeLimit": quantity(*bytes) } }),
            SchedulerStorage::Claim(name) => json!({ "name": "state", "persistentVolumeClaim": { "claimName": name } }),
        };
        let size =
            json!({ "cpu": cpu_quantity(options.scheduler_milli_cpus), "memory": quantity(options.scheduler_memory_bytes) });
        // It may use what is idle of cpus; memory beyond its request would make it the first to go.
        let memory = json!({ "cpu": cpu_quantity(options.scheduler_milli_cpus.max(1000)), "memory": size["memory"] });
        let probe = json!({
            "httpGet": {
                "path": self.probe.path, "port": self.probe.port, "scheme": if self.probe.tls { "HTTPS" } else { "HTTP" },
            },
            "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 3,
        });
        let container = json!({
            "name": SCHEDULER_CONTAINER,
            "image": self.scheduler_image,
            "imagePullPolicy": options.image_pull_policy,
            "command": self.scheduler_command,
            "args": self.scheduler_args,
            "env": [
                { "name": "SCALABLE_POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                { "name": "SCALABLE_POD_NAMESPACE", "valueFrom": { "fieldRef": { "fieldPath": "metadata.namespace" } } },
                { "name": "SCALABLE_POD_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
                { "name": "HOME", "value": STATE_DIRECTORY },
                { "name": "TMPDIR", "value": STATE_DIRECTORY },
            ],
            "ports": [
                { "name": "grpc", "containerPort": PORT },
                { "name": "http", "containerPort": HTTP_PORT },
                { "name": "objects", "containerPort": OBJECT_PORT },
            ],
            "readinessProbe": probe,
            "resources": { "requests": size, "limits": memory },
            "securityContext": restricted_container(),
            "volumeMounts": [
                { "name": "credentials", "mountPath": CREDENTIALS_DIRECTORY, "readOnly": true },
                { "name": "state", "mountPath": STATE_DIRECTORY },
            ],
        });
        without_nulls(json!({
            "restartPolicy": "Never",
            "enableServiceLinks": false,
            "serviceAccountName": self.service_account_name(),
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "priorityClassName": options.priority_class,
            "nodeSelector": (!options.node_selector.is_empty()).then_some(&options.node_selector),
            "tolerations": options.tolerations,
            "imagePullSecrets": pull_secrets(options),
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
                "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [container],
            "volumes": [{ "name": "credentials", "secret": { "secretName": self.name(), "defaultMode": 0o440 } }, state],
        }))
    }

    /// The document for the scheduler.
    pub fn settings(&self, root: &Root, service_ip: Option<&str>) -> Settings {
        Settings {
            version: VERSION,
            cluster_id: self.cluster_id.clone(),
            run: self.run.clone(),
            namespace: self.namespace.clone(),
            root: root.clone(),
            address: self.address(),
            service_ip: service_ip.map(str::to_owned),
            pools: self.pools.clone(),
        }
    }

    /// The scheduler's Secret: what was given, and the document.
    pub fn scheduler_secret(&self, root: &Root, settings: &Settings) -> Secret {
        let mut files = self.scheduler_secret.clone();
        files.insert("settings.json".to_owned(), settings.to_json().into_bytes());
        self.secret(&self.name(), root, files)
    }

    /// The workers' Secret.
    pub fn worker_secret(&self, root: &Root) -> Secret {
        self.secret(&self.worker_secret_name(), root, self.worker_secret.clone())
    }

    fn secret(&self, name: &str, root: &Root, files: BTreeMap<String, Vec<u8>>) -> Secret {
        let data = files.into_iter().map(|(name, bytes)| (name, ByteString(bytes))).collect();
        Secret { metadata: self.metadata(name, root), data: Some(data), type_: Some("Opaque".to_owned()), ..Secret::default() }
    }

    /// A Service before the scheduler.
    pub fn service(&self, name: &str, root: &Root) -> Service {
        let mut service: Service = made(json!({ "metadata": {}, "spec": {
            "selector": { names::CLUSTER_LABEL: names::label_value(&self.cluster_id), names::ROLE_LABEL: "scheduler" },
            "ports": [
                { "name": "grpc", "port": PORT, "targetPort": PORT, "protocol": "TCP" },
                { "name": "http", "port": HTTP_PORT, "targetPort": HTTP_PORT, "protocol": "TCP" },
                { "name": "objects", "port": OBJECT_PORT, "targetPort": OBJECT_PORT, "protocol": "TCP" },
            ],
        } }));
        service.metadata = self.metadata(name, root);
        service
    }

    /// Service account, Role and RoleBinding of the scheduler, where the manifest names no account.
    pub fn account(&self, root: &Root) -> Option<(ServiceAccount, Role, RoleBinding)> {
        if self.options.service_account.is_some() {
            return None;
        }
        let name = self.name();
        let metadata = || self.metadata(&name, root);
        let account =
            ServiceAccount { metadata: metadata(), automount_service_account_token: Some(true), ..ServiceAccount::default() };
        let role = Role { metadata: metadata(), rules: Some(rights::scheduler_rules(Some(&name))) };
        let mut binding: RoleBinding = made(json!({
            "metadata": {},
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
            "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": self.namespace }],
        }));
        binding.metadata = metadata();
        Some((account, role, binding))
    }
}

/// Name of the Secret that a run's worker pods mount.
pub fn worker_secret_name(run: &str) -> String {
    format!("{}-workers", names::scheduler(run))
}

/// An object from its JSON.
fn made<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(without_nulls(value)).expect("written here with the fields of the type")
}
