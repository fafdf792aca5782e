//! The values of a Kubernetes target's options: names, quantities, environment, tolerations, volumes.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{PodResources, VolumeOption, keys};
use crate::diagnostic::{At, Sink, show};
use crate::fields::{Fields, describe};
use crate::model::Target;
use crate::node::Node;
use crate::units::quantity;

/// Most entries of a list or mapping of a pod.
const ENTRIES_MAX: usize = 500;
/// Longest label, and longest name of one.
const LABEL_MAX: usize = 63;
/// Prefix of names of labels and annotations that are ours.
pub(super) const OURS: &str = "scalable.io/";

fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.len() <= LABEL_MAX && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Names of most objects: DNS labels with points between.
fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

fn is_label_value(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let edge = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= LABEL_MAX && text.bytes().all(inner) && edge(text.chars().next()) && edge(text.chars().last())
}

/// `team` or `example.com/team`.
fn is_qualified(text: &str) -> bool {
    let (prefix, name) = text.rsplit_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    !name.is_empty() && is_label_value(name) && prefix.is_none_or(is_subdomain)
}

/// A text that must be a DNS label.
pub(super) fn dns_label(fields: &Fields<'_>, key: &str, code: &'static str, sink: &mut Sink) -> Option<String> {
    let text = fields.text_coded(key, code, sink)?;
    if !is_dns_label(&text) {
        let message = format!("'{}' is not a name of a {key}", show(&text));
        sink.error(code, &fields.child(key), fields.key_at(key), message)
            .help("use at most 63 lower-case letters, digits and `-`");
    }
    Some(text)
}

/// A text that must be the name of an object.
pub(super) fn subdomain(fields: &Fields<'_>, key: &str, code: &'static str, sink: &mut Sink) -> Option<String> {
    let text = fields.text_coded(key, code, sink)?;
    if !is_subdomain(&text) {
        let message = format!("'{}' is not a name of an object in Kubernetes", show(&text));
        sink.error(code, &fields.child(key), fields.key_at(key), message)
            .help("use lower-case letters, digits, `-` and `.`, at most 63 between points");
    }
    Some(text)
}

/// Memory that may be written as a number of bytes, as Kubernetes allows.
pub(super) fn memory(fields: &Fields<'_>, key: &str, sink: &mut Sink) -> Option<u64> {
    match fields.get(key)?.as_int() {
        Some(bytes) if bytes > 0 => u64::try_from(bytes).ok(),
        Some(_) => {
            let path = fields.child(key);
            sink.error("E_NONPOSITIVE_MEMORY", &path, fields.key_at(key), "memory must be positive");
            None
        }
        None => fields.memory(key, sink),
    }
}

/// `resources: {requests, limits}`: as the pod gets them, and the size of a worker (limits, else requests).
pub(super) fn resources(fields: &Fields<'_>, target: &mut Target, sink: &mut Sink) -> PodResources {
    let mut made = PodResources::default();
    let Some(node) = fields.get("resources") else { return made };
    let Some(resources) = Fields::open(node, &fields.child("resources"), sink) else { return made };
    resources.only(&keys::RESOURCES, sink);
    for part in ["requests", "limits"] {
        let Some(node) = resources.get(part) else { continue };
        let Some(amounts) = Fields::open(node, &resources.child(part), sink) else { continue };
        // Limits come second and win.
        let milli = amounts.cpus("cpu", sink);
        let bytes = memory(&amounts, "memory", sink);
        target.worker.milli_cpus = milli.or(target.worker.milli_cpus);
        target.worker.memory_bytes = bytes.or(target.worker.memory_bytes);
        let quantities = if part == "requests" { &mut made.requests } else { &mut made.limits };
        if let Some(milli) = milli {
            quantities.insert("cpu".to_owned(), cpu_quantity(milli));
        }
        if let Some(bytes) = bytes {
            quantities.insert("memory".to_owned(), quantity(bytes));
        }
        for (key, node) in amounts.entries().iter().filter(|(key, _)| !matches!(key.text.as_str(), "cpu" | "memory")) {
            other_resource(&amounts, &key.text, node, quantities, target, sink);
        }
    }
    let mut counted: BTreeMap<&str, &str> = BTreeMap::new();
    for key in made.requests.keys().chain(made.limits.keys()) {
        let Some((_, name)) = key.rsplit_once('/') else { continue };
        if let Some(other) = counted.insert(name, key).filter(|other| *other != key.as_str()) {
            let message = format!("'{other}' and '{key}' of '{}' would both be what tasks ask for as `{name}`", resources.path);
            sink.error("E_BAD_RESOURCES", &resources.path, resources.at, message).help("give each its own target");
        }
    }
    made
}

/// Whole cpus as such, else thousandths.
fn cpu_quantity(milli: u64) -> String {
    if milli.is_multiple_of(1000) { (milli / 1000).to_string() } else { format!("{milli}m") }
}

fn other_resource(
    amounts: &Fields<'_>,
    key: &str,
    node: &Node,
    quantities: &mut BTreeMap<String, String>,
    target: &mut Target,
    sink: &mut Sink,
) {
    let path = amounts.child(key);
    if key == "ephemeral-storage" || key.starts_with("hugepages-") {
        if let Some(bytes) = memory(amounts, key, sink) {
            quantities.insert(key.to_owned(), quantity(bytes));
        }
        return;
    }
    if key.ends_with("/gpu") {
        match node.as_text().and_then(|text| text.parse::<u64>().ok()).filter(|n| *n <= 1024) {
            Some(gpus) => {
                target.worker.gpus = gpus;
                quantities.insert(key.to_owned(), gpus.to_string());
            }
            None => {
                let message = format!("'{path}' must be a number of gpus (got {})", describe(node));
                sink.error("E_BAD_GPUS", &path, node.at, message);
            }
        }
        return;
    }
    let amount = node.as_text().and_then(|text| text.parse::<u64>().ok()).filter(|n| *n <= 1_000_000_000);
    match (key.rsplit_once('/'), amount) {
        (Some((_, name)), Some(amount)) if is_qualified(key) => {
            target.worker.custom.insert(name.to_owned(), amount);
            quantities.insert(key.to_owned(), amount.to_string());
        }
        (Some(_), _) => {
            let message = format!("'{path}' must be a whole amount of an extended resource (got {})", describe(node));
            sink.error("E_BAD_RESOURCES", &path, node.at, message);
        }
        (None, _) => {
            let message = format!("'{path}' is not a resource of a container");
            let help = "use cpu, memory, ephemeral-storage, hugepages-SIZE, or an extended resource such as nvidia.com/gpu";
            sink.error("E_BAD_RESOURCES", &path, node.at, message).help(help);
        }
    }
}

/// What the pairs of a mapping are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pairs {
    /// Labels of something else.
    Labels,
    /// Labels of our own objects: `scalable.io/…` is taken.
    OwnLabels,
    /// Annotations of our own objects.
    Annotations,
}

/// A mapping of names to texts.
pub(super) fn pairs(
    fields: &Fields<'_>,
    key: &str,
    code: &'static str,
    kind: Pairs,
    sink: &mut Sink,
) -> BTreeMap<String, String> {
    let mut made = BTreeMap::new();
    let Some(node) = fields.get(key) else { return made };
    let path = fields.child(key);
    let Some(entries) = node.map().filter(|entries| entries.len() <= ENTRIES_MAX) else {
        sink.error(code, &path, node.at, format!("'{path}' must be a mapping (got {})", describe(node)));
        return made;
    };
    for (name, node) in entries {
        let path = format!("{path}.{}", show(&name.text));
        let text = node.as_text();
        let value = text.filter(|text| kind == Pairs::Annotations || is_label_value(text));
        if !is_qualified(&name.text) {
            let message = format!("'{}' is not a name of a label or annotation", show(&name.text));
            sink.error(code, &path, name.at, message)
                .help("write NAME or example.com/NAME with letters, digits, `-`, `_` and `.`");
        } else if kind != Pairs::Labels && name.text.starts_with(OURS) {
            sink.error("E_RESERVED_NAME", &path, name.at, format!("'{}' is set by Scalable itself", show(&name.text)));
        } else if let Some(value) = value {
            made.insert(name.text.clone(), value.to_owned());
        } else {
            let message = format!("'{path}' cannot be {}", describe(node));
            sink.error(code, &path, node.at, message).help("use at most 63 letters, digits, `-`, `_` and `.`");
        }
    }
    made
}

/// `env`: `NAME: value`, `NAME: {secretKeyRef: {name, key}}`, or a list as in a pod.
pub(super) fn env(fields: &Fields<'_>, sink: &mut Sink) -> Vec<Value> {
    let Some(node) = fields.get("env") else { return Vec::new() };
    let path = fields.child("env");
    let mut made = Vec::new();
    match (node.map(), node.seq()) {
        (Some(entries), _) if entries.len() <= ENTRIES_MAX => {
            for (name, node) in entries {
                made.extend(env_entry(&name.text, name.at, node, &format!("{path}.{}", show(&name.text)), sink));
            }
        }
        (_, Some(items)) if items.len() <= ENTRIES_MAX && !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                let path = format!("{path}[{index}]");
                let Some(entry) = Fields::open(item, &path, sink) else { continue };
                entry.only(&keys::ENV, sink);
                let name = entry.text_coded("name", "E_BAD_ENV", sink).unwrap_or_default();
                if entry.get("value").is_some() && entry.get("valueFrom").is_some() {
                    sink.error("E_BAD_ENV", &path, item.at, format!("'{path}' has both 'value' and 'valueFrom'"));
                }
                match entry.get("valueFrom").or(entry.get("value")) {
                    Some(value) => made.extend(env_entry(&name, entry.at, value, &path, sink)),
                    None => made.push(json!({ "name": name, "value": "" })),
                }
            }
        }
        _ => {
            sink.error("E_BAD_ENV", &path, node.at, format!("'{path}' must be a mapping (got {})", describe(node)));
        }
    }
    made
}

fn env_entry(name: &str, at: At, node: &Node, path: &str, sink: &mut Sink) -> Option<Value> {
    let plain = !name.is_empty() && name.len() <= 256 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    if !plain || name.starts_with(|c: char| c.is_ascii_digit()) {
        let message = format!("'{}' is not a name of an environment variable", show(name));
        sink.error("E_BAD_NAME", path, at, message).help("use letters, digits and `_`, not beginning with a digit");
        return None;
    }
    if name.starts_with("SCALABLE_") {
        let message = format!("'{name}' cannot be set: variables that begin with SCALABLE_ tell the worker who it is");
        sink.error("E_RESERVED_NAME", path, at, message);
        return None;
    }
    if let Some(text) = node.as_text().filter(|text| !text.contains('\0')) {
        return Some(json!({ "name": name, "value": text }));
    }
    let source = node.map().and_then(|entries| match entries {
        [(key, inner)] if key.text == "valueFrom" => inner.map(),
        _ => Some(entries),
    });
    let known = ["secretKeyRef", "configMapKeyRef", "fieldRef", "resourceFieldRef"];
    match source {
        Some([(key, inner)]) if known.contains(&key.text.as_str()) && inner.map().is_some() => {
            let needs: &[&str] = if key.text.ends_with("KeyRef") { &["name", "key"] } else { &[] };
            if let Some(missing) = needs.iter().find(|needed| inner.get(needed).and_then(Node::as_str).is_none()) {
                sink.error("E_BAD_ENV", path, inner.at, format!("'{path}.{}' needs '{missing}'", key.text));
                return None;
            }
            Some(json!({ "name": name, "valueFrom": { key.text.clone(): inner.to_json() } }))
        }
        _ => {
            let message = format!("'{path}' must be a value or one of {} (got {})", known.join(", "), describe(node));
            sink.error("E_BAD_ENV", path, node.at, message)
                .help("write for example NAME: {secretKeyRef: {name: SECRET, key: KEY}}");
            None
        }
    }
}

/// `env_from`: a list of `{secretRef: {name}}` and `{configMapRef: {name}}`.
pub(super) fn env_from(fields: &Fields<'_>, sink: &mut Sink) -> Vec<Value> {
    let Some(items) = list(fields, "env_from", "E_BAD_ENV", sink) else { return Vec::new() };
    let mut made = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let path = format!("{}[{index}]", fields.child("env_from"));
        let Some(entry) = Fields::open(item, &path, sink) else { continue };
        entry.only(&keys::ENV_FROM, sink);
        let named = |key| entry.get(key).and_then(|node: &Node| node.get("name")).and_then(Node::as_str).is_some();
        if named("secretRef") != named("configMapRef") {
            made.push(item.to_json());
        } else {
            let message = format!("'{path}' must have one of secretRef and configMapRef, with a name");
            sink.error("E_BAD_ENV", &path, item.at, message).help("write for example - secretRef: {name: SECRET}");
        }
    }
    made
}

fn list<'n>(fields: &Fields<'n>, key: &str, code: &'static str, sink: &mut Sink) -> Option<&'n [Node]> {
    let node = fields.get(key)?;
    let items = node.seq().filter(|items| items.len() <= ENTRIES_MAX);
    if items.is_none() {
        let path = fields.child(key);
        sink.error(code, &path, node.at, format!("'{path}' must be a list (got {})", describe(node)));
    }
    items
}

/// `tolerations`, as in a pod.
pub(super) fn tolerations(fields: &Fields<'_>, sink: &mut Sink) -> Vec<Value> {
    const CODE: &str = "E_BAD_TOLERATIONS";
    let Some(items) = list(fields, "tolerations", CODE, sink) else { return Vec::new() };
    let mut made = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let path = format!("{}[{index}]", fields.child("tolerations"));
        let Some(entry) = Fields::open(item, &path, sink) else { continue };
        entry.only(&keys::TOLERATION, sink);
        crate::sections::one_of(&entry, "operator", &["Exists", "Equal"], CODE, sink);
        crate::sections::one_of(&entry, "effect", &["NoSchedule", "PreferNoSchedule", "NoExecute"], CODE, sink);
        entry.int("tolerationSeconds", i64::MIN..=i64::MAX, CODE, sink);
        let mut toleration = Map::new();
        for (key, value) in entry.entries() {
            let json = match key.text.as_str() {
                "tolerationSeconds" => value.to_json(),
                // `value: true` is the text.
                _ => Value::String(value.as_text().unwrap_or_default().to_owned()),
            };
            toleration.insert(key.text.clone(), json);
        }
        made.push(Value::Object(toleration));
    }
    made
}

/// `volumes`: `{name, mount, claim}` and the like.
pub(super) fn volumes(fields: &Fields<'_>, sink: &mut Sink) -> Vec<VolumeOption> {
    let Some(items) = list(fields, "volumes", "E_BAD_VOLUMES", sink) else { return Vec::new() };
    let mut made: Vec<VolumeOption> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let path = format!("{}[{index}]", fields.child("volumes"));
        let Some(entry) = Fields::open(item, &path, sink) else { continue };
        let Some(volume) = volume(&entry, sink) else { continue };
        if made.iter().any(|known| known.name == volume.name) {
            sink.error("E_BAD_VOLUMES", &path, item.at, format!("there is a volume '{}' already", show(&volume.name)));
        } else if volume.name.starts_with("scalable-") {
            let message =
                format!("'{}' cannot be a volume's name: those that begin with scalable- are taken", show(&volume.name));
            sink.error("E_RESERVED_NAME", &path, item.at, message);
        }
        made.push(volume);
    }
    made
}

fn volume(entry: &Fields<'_>, sink: &mut Sink) -> Option<VolumeOption> {
    const CODE: &str = "E_BAD_VOLUMES";
    let known: Vec<&str> = keys::VOLUME.into_iter().chain(keys::SOURCES).collect();
    entry.only(&known, sink);
    let name = dns_label(entry, "name", CODE, sink);
    let absolute = |key: &str, sink: &mut Sink| {
        let text = entry.text_coded(key, CODE, sink)?;
        if !text.starts_with('/') {
            let path = entry.child(key);
            sink.error(CODE, &path, entry.key_at(key), format!("'{path}' must be an absolute path (got '{}')", show(&text)));
        }
        Some(text)
    };
    let (mount, host) = (absolute("mount", sink), absolute("host", sink));
    let mut sources: Vec<Value> = Vec::new();
    if let Some(claim) = subdomain(entry, "claim", CODE, sink) {
        sources.push(json!({ "persistentVolumeClaim": { "claimName": claim } }));
    }
    if let Some(config_map) = subdomain(entry, "config_map", CODE, sink) {
        sources.push(json!({ "configMap": { "name": config_map } }));
    }
    for key in keys::SOURCES {
        let Some(node) = entry.get(key) else { continue };
        match (key, node.as_str()) {
            ("secret", Some(name)) => sources.push(json!({ "secret": { "secretName": name } })),
            _ if node.map().is_some() => sources.push(json!({ key: node.to_json() })),
            _ => {
                let path = entry.child(key);
                sink.error(CODE, &path, node.at, format!("'{path}' must be a mapping (got {})", describe(node)));
            }
        }
    }
    let name = match name {
        Some(name) => name,
        None => {
            sink.error(CODE, &entry.path, entry.at, format!("'{}' needs a name", entry.path));
            return None;
        }
    };
    if sources.len() != 1 {
        let message = format!("'{}' must say what it is, once: it names {} sources", entry.path, sources.len());
        sink.error(CODE, &entry.path, entry.at, message)
            .help("write one of claim: NAME, secret: NAME, config_map: NAME, emptyDir: {}, or another source as in a pod");
        return None;
    }
    if mount.is_none() && host.is_none() {
        let message = format!("'{}' is mounted nowhere", entry.path);
        sink.error(CODE, &entry.path, entry.at, message)
            .help("write mount: /PATH, or host: /PATH for the components' mounts from there");
    }
    Some(VolumeOption {
        name,
        source: sources.remove(0),
        mount,
        sub_path: entry.text_coded("sub_path", CODE, sink),
        read_only: entry.bool_coded("read_only", CODE, sink).unwrap_or(false),
        host,
    })
}
