//! Targets: which one is meant, and what each provider's options must be.

use std::collections::BTreeMap;

use crate::diagnostic::{At, Sink, show, show_names, suggestion};
use crate::fields::{Fields, check_name, describe};
use crate::kubernetes;
use crate::model::{LocalOptions, Scaling, Target, WorkerSize};
use crate::node::Node;
use crate::parameters::amount;
use crate::scaling::workers;
use crate::sections::{one_of, section};
use crate::units;

/// Provider of the target that this build can run on.
pub(crate) const LOCAL: &str = "local";
/// Provider whose workers are pods.
pub(crate) const KUBERNETES: &str = "kubernetes";
/// Providers whose options are known.
const PROVIDERS: [&str; 5] = [LOCAL, KUBERNETES, "slurm", "aws", "gcp"];
/// Most worker processes of a local target.
const LOCAL_WORKERS_MAX: i64 = 1_000;
/// Most cpus of a local worker.
const LOCAL_THREADS_MAX: i64 = 4_096;

/// Chooses the target: the one asked for, else `SCALABLE_TARGET`, else the one named `local`, else the first of provider `local`,
/// else the first. All commands choose alike, so that `plan` names what `run` runs. Nothing when there is none to choose.
pub(crate) fn choose(root: &Node, asked: Option<&str>, env: &dyn Fn(&str) -> Option<String>, sink: &mut Sink) -> Option<String> {
    let targets = root.get("targets").and_then(Node::map).unwrap_or_default();
    let from_env = || env("SCALABLE_TARGET").filter(|name| !name.is_empty());
    if let Some(name) = asked.map(str::to_owned).or_else(from_env) {
        let known = targets.iter().map(|(key, _)| key.text.as_str());
        if targets.iter().any(|(key, _)| key.text == name) || (targets.is_empty() && name == LOCAL) {
            return Some(name);
        }
        let message = format!("unknown target '{}'; the manifest has {}", show(&name), show_names(known.clone()));
        sink.error("E_UNKNOWN_TARGET", "targets", root.get("targets").map_or(root.at, |node| node.at), message)
            .maybe_help(suggestion(&name, known));
        return None;
    }
    let is_local = |node: &Node| node.get("provider").and_then(Node::as_str).is_some_and(|p| p.eq_ignore_ascii_case(LOCAL));
    let chosen = targets.iter().find(|(key, _)| key.text == LOCAL).or_else(|| targets.iter().find(|(_, node)| is_local(node)));
    Some(chosen.or(targets.first()).map_or(LOCAL, |(key, _)| key.text.as_str()).to_owned())
}

/// The overlay of the chosen target, when it names one.
pub(crate) fn overlay_of(root: &Node, chosen: Option<&str>) -> Option<String> {
    root.get("targets")?.get(chosen?)?.get("overlay")?.as_str().map(str::to_owned)
}

/// Checks every target and reads the chosen one.
pub(crate) fn read(
    root: &Node,
    chosen: Option<&str>,
    components: usize,
    env: &dyn Fn(&str) -> Option<String>,
    sink: &mut Sink,
) -> Option<Target> {
    let targets = section(root, "targets", sink);
    if targets.is_empty() {
        let message = "manifest defines no targets: commands use a local one with its defaults";
        sink.warn("W_NO_TARGETS", "targets", root.get("targets").map_or(root.at, |node| node.at), message);
        return (chosen == Some(LOCAL)).then(|| implicit_local(components));
    }
    let mut found = None;
    for (name, at, node) in targets {
        let path = format!("targets.{}", show(name));
        if !check_name(name, "target", &path, at, sink) {
            continue;
        }
        let Some(fields) = Fields::open(node, &path, sink) else { continue };
        let selected = chosen == Some(name);
        let target = target(name, &fields, Reading { selected, components, env }, sink);
        if selected {
            found = target;
        }
    }
    found
}

#[derive(Clone, Copy)]
struct Reading<'a> {
    selected: bool,
    components: usize,
    env: &'a dyn Fn(&str) -> Option<String>,
}

fn implicit_local(components: usize) -> Target {
    let max_workers = default_workers(components);
    Target {
        name: LOCAL.to_owned(),
        provider: LOCAL.to_owned(),
        overlay: None,
        walltime: None,
        image: None,
        totals: BTreeMap::new(),
        worker: WorkerSize::default(),
        workers_min: max_workers,
        workers_max: max_workers,
        scaling: Scaling::default(),
        local: Some(LocalOptions { max_workers, threads_per_worker: 1 }),
        kubernetes: None,
        options: serde_json::json!({ "provider": LOCAL }),
        at: At::default(),
    }
}

/// The original's default: a worker for each component, at least one.
fn default_workers(components: usize) -> u32 {
    u32::try_from(components.clamp(1, LOCAL_WORKERS_MAX as usize)).unwrap_or(1)
}

fn target(name: &str, fields: &Fields<'_>, reading: Reading<'_>, sink: &mut Sink) -> Option<Target> {
    let provider = match fields.get("provider").and_then(Node::as_str).map(str::trim) {
        Some(provider) if !provider.is_empty() => provider.to_lowercase(),
        _ => {
            let path = fields.child("provider");
            sink.error("E_MISSING_KEY", &path, fields.key_at("provider"), format!("'{path}' is required and must be a string"));
            return None;
        }
    };
    if !PROVIDERS.contains(&provider.as_str()) {
        let path = fields.child("provider");
        let known = PROVIDERS.iter().map(|p| format!("'{p}'")).collect::<Vec<_>>().join(", ");
        let message = format!("unknown provider '{}'; known providers: [{known}]", show(&provider));
        let help = suggestion(&provider, PROVIDERS);
        let at = fields.get("provider").map_or(fields.at, |node| node.at);
        sink.error("E_UNKNOWN_PROVIDER", &path, at, message).maybe_help(help);
        return None;
    }
    let mut target = Target {
        overlay: fields.text("overlay", sink),
        totals: amounts(fields, "totals", sink),
        image: fields.text_coded("image", "E_BAD_IMAGE", sink),
        options: serde_json::Value::Null,
        at: fields.at,
        ..implicit_local(reading.components)
    };
    target.name = name.to_owned();
    target.provider.clone_from(&provider);
    match provider.as_str() {
        LOCAL => local(fields, &mut target, reading, sink),
        KUBERNETES => {
            workers(fields, &mut target, sink);
            kubernetes::read::kubernetes(fields, &mut target, reading.selected, sink);
        }
        "slurm" => slurm(fields, &mut target, reading, sink),
        "aws" => aws(fields, &mut target, sink),
        _ => gcp(fields, &mut target, reading, sink),
    }
    if provider != LOCAL {
        target.local = None;
        // Slurm checks its own spelling of it.
        target.walltime = fields.get("walltime").and_then(Node::as_text).map(str::to_owned);
    }
    Some(target)
}

/// A mapping of names to whole amounts.
pub(crate) fn amounts(fields: &Fields<'_>, key: &str, sink: &mut Sink) -> BTreeMap<String, u64> {
    let mut made = BTreeMap::new();
    let Some(node) = fields.get(key) else { return made };
    let Some(inner) = Fields::open(node, &fields.child(key), sink) else { return made };
    for (name, node) in inner.entries() {
        let path = inner.child(&name.text);
        if !check_name(&name.text, "resource", &path, name.at, sink) {
            continue;
        }
        if matches!(name.text.as_str(), "cpus" | "cpu" | "memory" | "gpus" | "gpu") {
            let message = format!("'{path}' is not a custom resource");
            sink.error("E_RESERVED_NAME", &path, name.at, message).help("cpus, memory and gpus have keys of their own");
            continue;
        }
        match amount(node) {
            Some(0) => {}
            Some(amount) if amount <= 1_000_000_000 => drop(made.insert(name.text.clone(), amount)),
            _ => {
                let message = format!("'{path}' must be a whole amount (got {})", describe(node));
                sink.error("E_TYPE", &path, node.at, message);
            }
        }
    }
    if made.len() > 64 {
        sink.error("E_TOO_LARGE", &inner.path, inner.at, format!("'{}' names more than 64 resources", inner.path));
    }
    made
}

const LOCAL_KEYS: [&str; 10] = [
    "provider",
    "overlay",
    "max_workers",
    "threads_per_worker",
    "processes",
    "containers",
    "dashboard_address",
    "totals",
    "gpus",
    "resources",
];

fn local(fields: &Fields<'_>, target: &mut Target, reading: Reading<'_>, sink: &mut Sink) {
    let workers = fields.int("max_workers", 1..=LOCAL_WORKERS_MAX, "E_BAD_MAX_WORKERS", sink);
    let threads = fields.int("threads_per_worker", 1..=LOCAL_THREADS_MAX, "E_BAD_THREADS_PER_WORKER", sink);
    let max_workers = workers.map_or_else(|| default_workers(reading.components), |n| n as u32);
    target.local = Some(LocalOptions { max_workers, threads_per_worker: threads.unwrap_or(1) as u32 });
    (target.workers_min, target.workers_max) = (max_workers, max_workers);
    let processes = fields.bool_coded("processes", "E_BAD_PROCESSES_FLAG", sink);
    let containers = one_of(fields, "containers", &["none", "auto", "docker"], "E_BAD_CONTAINERS_MODE", sink);
    target.worker.gpus = fields.int("gpus", 0..=1024, "E_BAD_GPUS", sink).unwrap_or(0) as u64;
    let kubernetes_style = fields.get("resources").is_some_and(|node| node.get("requests").or(node.get("limits")).is_some());
    if !kubernetes_style {
        target.worker.custom = amounts(fields, "resources", sink);
    }
    if !reading.selected {
        return;
    }
    let mut no_effect = |key: &str, why: &str| {
        let path = fields.child(key);
        let message = format!("'{path}' has no effect on target '{}' (provider local): {why}", target.name);
        let help = suggestion(key, LOCAL_KEYS).filter(|_| !LOCAL_KEYS.contains(&key));
        sink.lenient("W_NO_EFFECT", &path, fields.key_at(key), message).maybe_help(help);
    };
    if processes == Some(false) {
        no_effect("processes", "workers are always processes");
    }
    if kubernetes_style {
        no_effect("resources", "the size of a local worker is threads_per_worker cpus and its share of the memory");
    }
    if fields.get("dashboard_address").is_some() {
        no_effect("dashboard_address", "the address is 127.0.0.1:8787 where that is free, else printed");
    }
    for (key, _) in fields.entries() {
        let name = key.text.as_str();
        if !LOCAL_KEYS.contains(&name) {
            no_effect(name, "the local provider does not have this option");
        }
    }
    if containers.is_some_and(|mode| mode != "none") {
        let path = fields.child("containers");
        let message = "local containers are not used yet: commands run as they are installed here";
        sink.warn("W_LOCAL_CONTAINERS_DEFERRED", &path, fields.key_at("containers"), message);
    }
}

fn slurm(fields: &Fields<'_>, target: &mut Target, reading: Reading<'_>, sink: &mut Sink) {
    for (key, code) in [
        ("queue", "E_BAD_QUEUE"),
        ("account", "E_BAD_ACCOUNT"),
        ("interface", "E_BAD_INTERFACE"),
        ("logs_location", "E_BAD_LOGS_LOCATION"),
        ("name", "E_BAD_NAME"),
    ] {
        fields.text_coded(key, code, sink);
    }
    fields.bool_coded("suppress_logs", "E_BAD_SUPPRESS_LOGS", sink);
    if let Some(node) = fields.get("walltime") {
        let text = node.as_text().unwrap_or_default();
        let parts: Vec<_> = text.split(':').collect();
        let digits = |part: &str, lengths: std::ops::RangeInclusive<usize>| {
            lengths.contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit())
        };
        if !matches!(parts[..], [h, m, s] if digits(h, 1..=3) && digits(m, 2..=2) && digits(s, 2..=2)) {
            let path = fields.child("walltime");
            let message = format!("walltime must be HH:MM:SS (got {})", describe(node));
            sink.error("E_BAD_WALLTIME", &path, node.at, message);
        }
    }
    match fields.get("comm_port") {
        Some(_) => drop(fields.int("comm_port", 1..=65_535, "E_BAD_COMM_PORT", sink)),
        None if (reading.env)("COMM_PORT").is_none() => {
            let path = fields.child("comm_port");
            let message = "comm_port is required for Slurm targets (or set COMM_PORT in the environment)";
            sink.error("E_MISSING_COMM_PORT", &path, fields.at, message);
        }
        None => {}
    }
    one_of(fields, "container_runtime", &["apptainer", "docker"], "E_BAD_CONTAINER_RUNTIME", sink);
    (target.workers_min, target.workers_max) = (1, 1);
}

fn aws(fields: &Fields<'_>, target: &mut Target, sink: &mut Sink) {
    fields.text_coded("region", "E_BAD_REGION", sink);
    one_of(fields, "cluster_type", &["fargate", "ec2"], "E_INVALID_CLUSTER_TYPE", sink);
    workers(fields, target, sink);
    // Fargate counts cpus in 1024ths and memory in MiB.
    let shares = fields.int("worker_cpu", 1..=1_000_000, "E_BAD_WORKER_CPU", sink);
    target.worker.milli_cpus = shares.map(|shares| (shares as u64) * 1000 / 1024).filter(|milli| *milli > 0);
    let mebibytes = fields.int("worker_mem", 1..=100_000_000, "E_BAD_WORKER_MEM", sink);
    target.worker.memory_bytes = mebibytes.map(|mebibytes| (mebibytes as u64) << 20);
}

fn gcp(fields: &Fields<'_>, target: &mut Target, reading: Reading<'_>, sink: &mut Sink) {
    fields.text_coded("region", "E_BAD_REGION", sink);
    workers(fields, target, sink);
    if reading.selected && fields.text_coded("project_id", "E_BAD_PROJECT_ID", sink).is_none() {
        sink.warn("W_MISSING_PROJECT_ID", &fields.child("project_id"), fields.at, "project_id is not set");
    }
}

/// Says when pods of a Kubernetes target would have no image. Asked once it is known which components are used.
pub(crate) fn check_image(target: &Target, without_image: &[&str], sink: &mut Sink) {
    if target.provider == KUBERNETES && target.image.is_none() && !without_image.is_empty() {
        let path = format!("targets.{}.image", target.name);
        let message =
            format!("no image for {}: neither the target nor the component names one", show_names(without_image.iter().copied()));
        sink.warn("W_MISSING_IMAGE", &path, target.at, message).help("name an image on the target or on each component");
    }
}

/// Size of a worker in words, for messages.
pub(crate) fn worker_words(milli_cpus: u64, memory_bytes: u64) -> String {
    let cpus = scalable_template::format_cpus(milli_cpus);
    let unit = if milli_cpus == 1000 { "cpu" } else { "cpus" };
    match memory_bytes {
        0 => format!("{cpus} {unit}"),
        bytes => format!("{cpus} {unit} and {}", units::format_bytes(bytes)),
    }
}
