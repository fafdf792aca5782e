//! Reading the options of a Kubernetes target.

use super::keys;
use super::values;
use super::{Clip, KubernetesOptions, PodSecurity, RunAs, SchedulerStorage};
use crate::diagnostic::{At, Sink, show, suggestion};
use crate::fields::{Fields, describe};
use crate::model::Target;
use crate::node::Node;
use crate::sections::one_of;

/// Reads the options; `selected` says whether keys that mean nothing are to be named.
pub(crate) fn kubernetes(fields: &Fields<'_>, target: &mut Target, selected: bool, sink: &mut Sink) {
    let default = KubernetesOptions::default();
    let name = |key, code, sink: &mut Sink| values::dns_label(fields, key, code, sink);
    let namespace = name("namespace", "E_BAD_NAMESPACE", sink);
    let resources = values::resources(fields, target, sink);
    let options = KubernetesOptions {
        namespace,
        context: fields.text_coded("context", "E_BAD_CONTEXT", sink),
        scheduler_image: fields.text_coded("scheduler_image", "E_BAD_IMAGE", sink),
        scheduler_milli_cpus: fields.cpus("scheduler_cpu", sink).unwrap_or(default.scheduler_milli_cpus),
        scheduler_memory_bytes: values::memory(fields, "scheduler_memory", sink).unwrap_or(default.scheduler_memory_bytes),
        scheduler_storage: storage(fields, sink).unwrap_or(default.scheduler_storage),
        service_account: values::subdomain(fields, "service_account", "E_BAD_SERVICE_ACCOUNT", sink),
        worker_service_account: values::subdomain(fields, "worker_service_account", "E_BAD_WORKER_SERVICE_ACCOUNT", sink),
        resources,
        clip: clip(fields, sink),
        ephemeral_storage_bytes: values::memory(fields, "ephemeral_storage", sink),
        env: values::env(fields, sink),
        env_from: values::env_from(fields, sink),
        tolerations: values::tolerations(fields, sink),
        node_selector: values::pairs(fields, "node_selector", "E_BAD_NODE_SELECTOR", values::Pairs::Labels, sink),
        labels: values::pairs(fields, "labels", "E_BAD_LABELS", values::Pairs::OwnLabels, sink),
        annotations: values::pairs(fields, "annotations", "E_BAD_ANNOTATIONS", values::Pairs::Annotations, sink),
        image_pull_policy: one_of(
            fields,
            "image_pull_policy",
            &["Always", "IfNotPresent", "Never"],
            "E_BAD_IMAGE_PULL_POLICY",
            sink,
        ),
        image_pull_secrets: fields.texts("image_pull_secrets", sink).into_iter().map(|(name, _)| name).collect(),
        priority_class: values::subdomain(fields, "priority_class", "E_BAD_PRIORITY_CLASS", sink),
        volumes: values::volumes(fields, sink),
        pod_patch: pod_patch(fields, sink),
        pod_security: match one_of(fields, "pod_security", &["restricted", "baseline"], "E_BAD_POD_SECURITY", sink).as_deref() {
            Some("baseline") => PodSecurity::Baseline,
            _ => PodSecurity::Restricted,
        },
        run_as: RunAs::default(),
        inject: fields.bool_coded("inject", "E_BAD_INJECT", sink).unwrap_or(default.inject),
        drain_timeout_ms: fields.duration("drain_timeout", sink).unwrap_or(default.drain_timeout_ms),
        start_deadline_ms: fields.positive_duration("start_deadline", sink).unwrap_or(default.start_deadline_ms),
        results_ttl_ms: fields.positive_duration("results_ttl", sink).unwrap_or(default.results_ttl_ms),
        job_ttl_ms: fields.positive_duration("job_ttl", sink).unwrap_or(default.job_ttl_ms),
        node_autoscaling: fields
            .bool_coded("node_autoscaling", "E_BAD_NODE_AUTOSCALING", sink)
            .unwrap_or(default.node_autoscaling),
    };
    target.kubernetes = Some(KubernetesOptions { run_as: run_as(fields, options.pod_security, sink), ..options });
    if let Some(clip) = target.kubernetes.as_ref().map(|options| options.clip.clone()).filter(|_| selected) {
        let size = (target.worker.milli_cpus, target.worker.memory_bytes);
        super::place::clipped(fields, ("resources", "resources"), size, &clip, sink);
    }
    if selected {
        without_effect(fields, target, sink);
    }
}

/// Annotations of pods by which autoscalers of nodes are told what they may remove.
const KEPT_ANNOTATIONS: [&str; 2] = ["cluster-autoscaler.kubernetes.io/safe-to-evict", "karpenter.sh/do-not-disrupt"];

fn without_effect(fields: &Fields<'_>, target: &Target, sink: &mut Sink) {
    let mut say = |path: &str, at: At, why: &str, help: &str| {
        let message = format!("'{path}' has no effect on target '{}' (provider kubernetes): {why}", target.name);
        sink.lenient("W_NO_EFFECT", path, at, message).help(help);
    };
    if fields.get("walltime").is_some() {
        say(&fields.child("walltime"), fields.key_at("walltime"), "pods have no wall time", "give the tasks a `timeout`");
    }
    let scales = fields.get("adaptive").is_some_and(|node| node.as_bool() != Some(false));
    if scales && fields.get("n_workers").is_some() {
        let why = "`adaptive` says how many workers there are";
        say(&fields.child("n_workers"), fields.key_at("n_workers"), why, "leave one of the two out");
    }
    if fields.get("ephemeral_storage").is_some() {
        for part in keys::RESOURCES {
            let amounts = fields.get("resources").and_then(|node| node.get(part));
            if let Some(amount) = amounts.and_then(|node| node.get("ephemeral-storage")) {
                let path = format!("{}.{part}.ephemeral-storage", fields.child("resources"));
                say(&path, amount.at, "`ephemeral_storage` is request and limit", "leave one of the two out");
            }
        }
    }
    let patched = fields.get("pod_patch").and_then(|node| node.get("metadata")).and_then(|node| node.get("annotations"));
    for (path, node) in [("annotations", fields.get("annotations")), ("pod_patch.metadata.annotations", patched)] {
        for (key, _) in node.and_then(Node::map).unwrap_or_default() {
            if KEPT_ANNOTATIONS.contains(&key.text.as_str()) {
                let why = "Scalable changes it as workers become busy and idle, and keeps the scheduler where it is";
                say(&format!("{}.{}", fields.child(path), key.text), key.at, why, "leave it out");
            }
        }
    }
    for (key, _) in fields.entries() {
        let name = key.text.as_str();
        if !keys::TARGET.contains(&name) {
            let path = fields.child(name);
            let message = format!("unknown Kubernetes option '{}' on target '{}': it has no effect", show(name), target.name);
            sink.lenient("W_UNKNOWN_K8S_OPTION", &path, key.at, message).maybe_help(suggestion(name, keys::TARGET));
        }
    }
}

/// `scheduler_storage`: a size, or `{size: …}` or `{claim: …}`.
fn storage(fields: &Fields<'_>, sink: &mut Sink) -> Option<SchedulerStorage> {
    let node = fields.get("scheduler_storage")?;
    if node.map().is_none() {
        return values::memory(fields, "scheduler_storage", sink).map(SchedulerStorage::Size);
    }
    let inner = Fields::open(node, &fields.child("scheduler_storage"), sink)?;
    inner.only(&keys::SCHEDULER_STORAGE, sink);
    let claim = values::subdomain(&inner, "claim", "E_BAD_STORAGE", sink).map(SchedulerStorage::Claim);
    let size = values::memory(&inner, "size", sink).map(SchedulerStorage::Size);
    if claim.is_some() && size.is_some() {
        let message = format!("'{}' has both a size and a claim", inner.path);
        sink.error("E_BAD_STORAGE", &inner.path, inner.at, message).help("a claim has its own size");
    }
    claim.or(size)
}

/// `limits: {cpus, memory}`: no worker pod asks for more.
fn clip(fields: &Fields<'_>, sink: &mut Sink) -> Clip {
    let Some(node) = fields.get("limits") else { return Clip::default() };
    let Some(inner) = Fields::open(node, &fields.child("limits"), sink) else { return Clip::default() };
    inner.only_hinting(&keys::LIMITS, &[("cpu", "write `cpus`, or mean `resources: {limits: {cpu: …}}`")], sink);
    Clip { milli_cpus: inner.cpus("cpus", sink), memory_bytes: values::memory(&inner, "memory", sink) }
}

fn run_as(fields: &Fields<'_>, security: PodSecurity, sink: &mut Sink) -> RunAs {
    let Some(node) = fields.get("run_as") else { return RunAs::default() };
    let Some(inner) = Fields::open(node, &fields.child("run_as"), sink) else { return RunAs::default() };
    inner.only(&keys::RUN_AS, sink);
    let user = inner.int("user", 0..=2_147_483_647, "E_BAD_RUN_AS", sink);
    if user == Some(0) && security == PodSecurity::Restricted {
        let path = inner.child("user");
        sink.error("E_BAD_RUN_AS", &path, inner.key_at("user"), format!("'{path}' is root, which a restricted pod cannot be"))
            .help("use another user, or `pod_security: baseline` where the namespace allows it");
    }
    RunAs {
        user,
        group: inner.int("group", 0..=2_147_483_647, "E_BAD_RUN_AS", sink),
        fs_group: inner.int("fs_group", 0..=2_147_483_647, "E_BAD_RUN_AS", sink),
    }
}

/// `pod_patch`: any part of a pod but what makes it ours.
fn pod_patch(fields: &Fields<'_>, sink: &mut Sink) -> Option<serde_json::Value> {
    let node = fields.get("pod_patch")?;
    let path = fields.child("pod_patch");
    if node.map().is_none() {
        let message = format!("'{path}' must be a mapping with `metadata` and `spec` (got {})", describe(node));
        sink.error("E_BAD_POD_PATCH", &path, node.at, message);
        return None;
    }
    let inner = Fields::open(node, &path, sink)?;
    inner.only_hinting(
        &keys::POD_PATCH,
        &[
            ("containers", "put it under `spec`"),
            ("affinity", "put it under `spec`"),
            ("labels", "put it under `metadata`"),
            ("annotations", "put it under `metadata`"),
        ],
        sink,
    );
    let fixed = [("metadata", "name"), ("metadata", "namespace"), ("metadata", "ownerReferences"), ("spec", "restartPolicy")];
    for (section, key) in fixed {
        if inner.get(section).and_then(|node| node.get(key)).is_some_and(|node: &Node| !node.is_null()) {
            let path = format!("{}.{key}", inner.child(section));
            let at = inner.get(section).map_or(inner.at, |node| node.at);
            sink.error("E_BAD_POD_PATCH", &path, at, format!("'{path}' cannot be changed: worker pods depend on it"));
        }
    }
    for part in ["labels", "annotations"] {
        let entries = inner.get("metadata").and_then(|node| node.get(part)).and_then(Node::map).unwrap_or_default();
        for (key, _) in entries.iter().filter(|(key, _)| key.text.starts_with(values::OURS)) {
            let path = format!("{}.{part}.{}", inner.child("metadata"), show(&key.text));
            sink.error("E_RESERVED_NAME", &path, key.at, format!("'{}' is set by Scalable itself", show(&key.text)));
        }
    }
    Some(node.to_json())
}
