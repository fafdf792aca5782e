//! The simple sections: version, project, components.

use std::path::Path;

use crate::diagnostic::{At, Sink, show};
use crate::fields::{Fields, check_name, describe};
use crate::model::{Component, Project, Target, slug};
use crate::node::Node;
use crate::target::LOCAL;

/// Most entries of any one section.
pub(crate) const ENTRIES_MAX: usize = 10_000;

/// The entries of a top-level section; an empty list counts as an empty mapping, as in the original.
pub(crate) fn section<'n>(root: &'n Node, name: &str, sink: &mut Sink) -> Vec<(&'n str, At, &'n Node)> {
    let Some(node) = root.get(name) else { return Vec::new() };
    if node.seq().is_some_and(<[Node]>::is_empty) {
        return Vec::new();
    }
    let Some(fields) = Fields::open(node, name, sink) else { return Vec::new() };
    if fields.entries().len() > ENTRIES_MAX {
        sink.error("E_TOO_LARGE", name, node.at, format!("'{name}' has more than {ENTRIES_MAX} entries"));
        return Vec::new();
    }
    fields.entries().iter().map(|(key, node)| (key.text.as_str(), key.at, node)).collect()
}

/// Checks `version`: 1, or missing with a warning.
pub(crate) fn version(root: &Node, sink: &mut Sink) {
    let Some(node) = root.get("version") else {
        sink.warn("W_DEFAULT_VERSION", "version", root.at, "the manifest has no 'version': read as version 1")
            .help("write `version: 1` at the top");
        return;
    };
    match node.as_int() {
        None => {
            sink.error(
                "E_BAD_VERSION",
                "version",
                node.at,
                format!("manifest 'version' must be an integer, got {}", node.type_name()),
            );
        }
        Some(1) => {}
        Some(other) => {
            let message = format!(
                "manifest schema version {other} is not supported by this Scalable build (expected 1). Upgrade Scalable or downgrade the manifest."
            );
            sink.error("E_BAD_VERSION", "version", node.at, message);
        }
    }
}

/// Reads `project`; a missing one is named after the directory.
pub(crate) fn project(root: &Node, directory: &Path, sink: &mut Sink) -> Project {
    let named_after = || slug(&directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default());
    let Some(node) = root.get("project") else {
        let name = named_after();
        let message = format!("the manifest has no 'project': named '{name}' after its directory");
        sink.warn("W_DEFAULT_PROJECT", "project", root.at, message).help(format!("write `project: {{name: {name}}}`"));
        return Project { name, default_storage: None, local_cache: None };
    };
    let mut project = Project { name: String::new(), default_storage: None, local_cache: None };
    let Some(fields) = Fields::open(node, "project", sink) else { return project };
    fields.only(&["name", "default_storage", "local_cache"], sink);
    match fields.get("name").and_then(Node::as_str).map(str::trim) {
        Some(name) if !name.is_empty() && name.len() <= 200 && !name.chars().any(char::is_control) => {
            project.name = name.to_owned()
        }
        Some(name) if !name.is_empty() => {
            let message = "'project.name' must be one line of at most 200 bytes";
            sink.error("E_BAD_NAME", "project.name", fields.key_at("name"), message);
        }
        _ => {
            let message = "'project.name' is required and must be a non-empty string";
            sink.error("E_MISSING_KEY", "project.name", fields.key_at("name"), message);
        }
    }
    project.default_storage = fields.text("default_storage", sink);
    project.local_cache = fields.text("local_cache", sink);
    for key in ["default_storage", "local_cache"] {
        if fields.get(key).is_some() {
            let path = fields.child(key);
            sink.lenient(
                "W_NO_EFFECT",
                &path,
                fields.key_at(key),
                format!("'{path}' is recorded and has no effect on any target"),
            );
        }
    }
    project
}

/// Keys of a component.
pub(crate) const COMPONENT_KEYS: [&str; 9] =
    ["image", "runtime", "cpus", "memory", "mounts", "env", "tags", "preload_script", "files"];

/// Reads every component.
pub(crate) fn components(root: &Node, target: Option<&Target>, sink: &mut Sink) -> Vec<Component> {
    let mut components = Vec::new();
    for (name, at, node) in section(root, "components", sink) {
        let path = format!("components.{}", show(name));
        if !check_name(name, "component", &path, at, sink) {
            continue;
        }
        if let Some(fields) = Fields::open(node, &path, sink) {
            components.push(component(name, &fields, target, sink));
        }
    }
    components
}

fn component(name: &str, fields: &Fields<'_>, target: Option<&Target>, sink: &mut Sink) -> Component {
    fields.only(&COMPONENT_KEYS, sink);
    fields.text("runtime", sink);
    fields.text("preload_script", sink);
    let made = Component {
        name: name.to_owned(),
        image: fields.text("image", sink),
        milli_cpus: fields.cpus("cpus", sink),
        memory_bytes: fields.memory("memory", sink),
        memory_text: fields.get("memory").and_then(Node::as_str).map(str::to_owned),
        mounts: mounts(fields, sink),
        env: env(fields, sink),
        tags: fields.texts("tags", sink).into_iter().map(|(tag, _)| tag).collect(),
        files: file_paths(fields, sink),
    };
    if let Some(target) = target {
        crate::kubernetes::place::component(fields, &made, target, sink);
    }
    if let Some(target) = target.filter(|target| target.provider == LOCAL) {
        for key in ["image", "runtime", "mounts", "tags", "preload_script"] {
            if fields
                .get(key)
                .is_some_and(|node| node.map().is_none_or(|m| !m.is_empty()) && node.seq().is_none_or(|s| !s.is_empty()))
            {
                let path = fields.child(key);
                let message = format!(
                    "'{path}' has no effect on target '{}': local workers run commands as they are installed here",
                    target.name
                );
                sink.lenient("W_NO_EFFECT", &path, fields.key_at(key), message);
            }
        }
    }
    made
}

fn mounts(fields: &Fields<'_>, sink: &mut Sink) -> Vec<(String, String)> {
    let Some(node) = fields.get("mounts") else { return Vec::new() };
    let path = fields.child("mounts");
    let Some(entries) = node.map() else {
        let message = format!("'{path}' must be a mapping of host:container paths");
        sink.error("E_TYPE", &path, node.at, message);
        return Vec::new();
    };
    let mut made = Vec::new();
    for (host, container) in entries {
        let path = format!("{path}.{}", show(&host.text));
        if !host.text.starts_with('/') {
            let message = format!("host mount path must be absolute, got '{}'", show(&host.text));
            sink.error("E_RELATIVE_HOST_MOUNT", &path, host.at, message);
        }
        match container.as_str() {
            Some(inside) if inside.starts_with('/') => made.push((host.text.clone(), inside.to_owned())),
            Some(inside) => {
                let message = format!("container mount path must be absolute, got '{}'", show(inside));
                sink.error("E_RELATIVE_CONTAINER_MOUNT", &path, container.at, message);
            }
            None => {
                let message = format!("'{}' must be a mapping of host:container paths", fields.child("mounts"));
                sink.error("E_TYPE", &path, container.at, message);
            }
        }
    }
    made
}

fn env(fields: &Fields<'_>, sink: &mut Sink) -> Vec<(String, String)> {
    let mut made = Vec::new();
    for (name, node, path) in env_entries(fields, sink) {
        match node.as_text().filter(|text| !text.contains('\0')) {
            Some(text) => made.push((name.to_owned(), text.to_owned())),
            None => {
                let message = format!("'{}' must be a mapping of NAME:VALUE pairs", fields.child("env"));
                sink.error("E_TYPE", &path, node.at, message);
            }
        }
    }
    made
}

/// Entries of an `env` mapping with valid names.
pub(crate) fn env_entries<'n>(fields: &Fields<'n>, sink: &mut Sink) -> Vec<(&'n str, &'n Node, String)> {
    let Some(node) = fields.get("env") else { return Vec::new() };
    let base = fields.child("env");
    let Some(entries) = node.map() else {
        let message = format!("'{base}' must be a mapping of NAME:VALUE pairs");
        sink.error("E_TYPE", &base, node.at, message);
        return Vec::new();
    };
    let mut made = Vec::new();
    for (key, value) in entries {
        let path = format!("{base}.{}", show(&key.text));
        let name = key.text.as_str();
        let word =
            name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !name.starts_with(|c: char| c.is_ascii_digit());
        if name.is_empty() || name.len() > 256 || !word {
            let message = format!("'{}' is not a name of an environment variable", show(name));
            sink.error("E_BAD_NAME", &path, key.at, message).help("use letters, digits and `_`, not beginning with a digit");
        } else if name.starts_with("SCALABLE_") {
            let message = format!("'{name}' cannot be set: variables that begin with SCALABLE_ tell the task who it is");
            sink.error("E_RESERVED_NAME", &path, key.at, message);
        } else {
            made.push((name, value, path));
        }
    }
    made
}

/// The paths of a `files` list, normalised. Whether they exist is checked where they are used.
pub(crate) fn file_paths(fields: &Fields<'_>, sink: &mut Sink) -> Vec<String> {
    let mut made: Vec<String> = Vec::new();
    for (text, at) in fields.texts("files", sink) {
        match crate::paths::relative(&text) {
            Ok(path) if !made.contains(&path) => made.push(path),
            Ok(_) => {}
            Err(bad) => {
                let path = fields.child("files");
                let message = format!("'{}' {}; files lie below the manifest's directory", show(&text), bad.reason());
                sink.error("E_PATH_ESCAPES", &path, at, message);
            }
        }
    }
    made
}

/// `what` for a value that is one of a few words.
pub(crate) fn one_of(fields: &Fields<'_>, key: &str, words: &[&str], code: &'static str, sink: &mut Sink) -> Option<String> {
    let node = fields.get(key)?;
    let word = node.as_text().unwrap_or_default();
    if words.contains(&word) {
        return Some(word.to_owned());
    }
    let path = fields.child(key);
    let allowed = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(", ");
    sink.error(code, &path, node.at, format!("'{path}' must be one of [{allowed}] (got {})", describe(node)));
    None
}
