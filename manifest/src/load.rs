//! From a file to a resolved manifest: parse, environment, target, overlay, then every section; all findings in one go.

use std::path::{Path, PathBuf};

use crate::diagnostic::{At, Diagnostic, Sink, show, show_names, suggestion};
use crate::expand::expand;
use crate::graph;
use crate::kubernetes;
use crate::lock;
use crate::model::{Component, DEFAULT_COMPONENT, Machine, Manifest};
use crate::node::{Key, Node, Value};
use crate::overlay::merge;
use crate::sections;
use crate::target;
use crate::task;
use crate::yaml::{self, MANIFEST_BYTES_MAX};

/// How a manifest is to be read.
pub struct LoadOptions<'a> {
    /// Target to choose; else `SCALABLE_TARGET`, else the local one, else the first.
    pub target: Option<String>,
    /// Overlay to apply instead of the target's own.
    pub overlay: Option<String>,
    /// The environment.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// The machine a local target would use.
    pub machine: Machine,
    /// As `strict: true` in the file.
    pub strict: bool,
}

/// What came of it.
pub struct Loaded {
    /// Nothing when there is an error among the diagnostics.
    pub manifest: Option<Manifest>,
    /// Errors and warnings by place.
    pub diagnostics: Vec<Diagnostic>,
    /// The file's text, for showing places in it; empty when it could not be read.
    pub source_text: String,
}

/// Reads and checks a manifest. Touches nothing but the file and, for `files` and `from`, what lies beside it.
pub fn load(path: &Path, options: &LoadOptions<'_>) -> Loaded {
    let mut sink = Sink::new(options.strict);
    let text = match read_text(path) {
        Ok(text) => text,
        Err((code, message)) => {
            sink.error(code, "manifest", At::default(), message);
            return Loaded { manifest: None, diagnostics: sink.into_sorted(), source_text: String::new() };
        }
    };
    let manifest = yaml::parse(&text, &mut sink).and_then(|root| resolve(root, path, options, &mut sink));
    let manifest = manifest.filter(|_| !sink.has_errors());
    let diagnostics = sink.into_sorted();
    let manifest = manifest.map(|manifest| Manifest { warnings: diagnostics.clone(), ..manifest });
    Loaded { manifest, diagnostics, source_text: text }
}

fn read_text(path: &Path) -> Result<String, (&'static str, String)> {
    let unreadable = |error: std::io::Error| ("E_READ", format!("could not read manifest at {}: {error}", path.display()));
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(("E_READ", format!("could not read manifest at {}: it is not a file", path.display())));
    }
    if metadata.len() > MANIFEST_BYTES_MAX {
        let message = format!("the manifest is {} bytes long, at most {MANIFEST_BYTES_MAX} are read", metadata.len());
        return Err(("E_TOO_LARGE", message));
    }
    let bytes = std::fs::read(path).map_err(unreadable)?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count();
        ("E_YAML", format!("malformed YAML: the file is not UTF-8 (line {line})"))
    })
}

const TOP_LEVEL_KEYS: [&str; 7] = ["components", "overlays", "project", "strict", "targets", "tasks", "version"];

fn resolve(mut root: Node, path: &Path, options: &LoadOptions<'_>, sink: &mut Sink) -> Option<Manifest> {
    if root.map().is_none() {
        let message = format!("manifest must be a mapping at the top level, got {}", root.type_name());
        sink.error("E_TYPE", "manifest", root.at, message);
        return None;
    }
    let directory = directory_of(path);
    // The mapping's own place is its first key; what is missing is missing at the top.
    root.at = At { line: 1, column: 1 };
    expand(&mut root, "", options.env, sink);
    top_level(&root, sink);
    sink.strict |= root.get("strict").and_then(Node::as_bool).unwrap_or(false);
    let unresolved = root.to_json();
    let chosen = target::choose(&root, options.target.as_deref(), options.env, sink);
    let overlay = options.overlay.clone().or_else(|| target::overlay_of(&root, chosen.as_deref()));
    apply_overlay(&mut root, overlay.as_deref(), chosen.as_deref(), sink);

    sections::version(&root, sink);
    let project = sections::project(&root, &directory, sink);
    let component_count = root.get("components").and_then(Node::map).map_or(0, <[_]>::len);
    let mut target = target::read(&root, chosen.as_deref(), component_count, options.env, sink);
    let mut components = sections::components(&root, target.as_ref(), sink);
    if let Some(target) = &target {
        kubernetes::place::volumes(&root, target, &components, sink);
    }
    let raw = task::read_all(&root, &components, &directory, sink);
    if raw.iter().any(|task| task.component == DEFAULT_COMPONENT) && !components.iter().any(|c| c.name == DEFAULT_COMPONENT) {
        let image = target.as_ref().and_then(|target| target.image.clone());
        components.push(Component { name: DEFAULT_COMPONENT.to_owned(), image, ..Component::default() });
    }
    let tasks = graph::link(raw, sink);
    if let Some(target) = &mut target {
        target.overlay = overlay;
        target.options = root.get("targets").and_then(|t| t.get(&target.name)).map_or(target.options.take(), Node::to_json);
        let used = |component: &Component| tasks.is_empty() || tasks.iter().any(|task| task.component == component.name);
        let without: Vec<_> = components.iter().filter(|c| c.image.is_none() && used(c)).map(|c| c.name.as_str()).collect();
        let without = if components.is_empty() { vec!["the workers"] } else { without };
        target::check_image(target, &without, sink);
    }
    let document = document(&root, &project.name);
    let target_names =
        root.get("targets").and_then(Node::map).unwrap_or_default().iter().map(|(key, _)| key.text.clone()).collect();
    Some(Manifest {
        path: path.to_path_buf(),
        directory,
        project,
        strict: sink.strict,
        target: target?,
        target_names,
        components,
        tasks,
        lock: lock::lock(&document),
        document,
        document_unresolved: unresolved,
        machine: options.machine,
        warnings: Vec::new(),
        search_path: (options.env)("PATH"),
    })
}

fn directory_of(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    parent.canonicalize().unwrap_or_else(|_| parent.to_path_buf())
}

fn top_level(root: &Node, sink: &mut Sink) {
    for (key, _) in root.map().unwrap_or_default() {
        if !TOP_LEVEL_KEYS.contains(&key.text.as_str()) {
            let allowed = TOP_LEVEL_KEYS.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
            let message = format!("unknown top-level manifest key(s): {} (allowed: [{allowed}])", show(&key.text));
            sink.error("E_UNKNOWN_KEY", &show(&key.text), key.at, message).maybe_help(suggestion(&key.text, TOP_LEVEL_KEYS));
        }
    }
    if let Some(node) = root.get("strict").filter(|node| node.as_bool().is_none()) {
        sink.error("E_TYPE", "strict", node.at, format!("'strict' must be a boolean, got {}", node.type_name()));
    }
}

/// Merges the overlay and takes `overlays` and the target's `overlay` out of the document.
fn apply_overlay(root: &mut Node, overlay: Option<&str>, chosen: Option<&str>, sink: &mut Sink) {
    let overlays = root.get("overlays").cloned();
    let entries: &[(Key, Node)] = overlays.as_ref().and_then(Node::map).unwrap_or_default();
    if let Some(node) = overlays.as_ref().filter(|node| node.map().is_none() && !node.is_null()) {
        sink.error("E_TYPE", "overlays", node.at, format!("'overlays' must be a mapping, got {}", node.type_name()));
    }
    for (key, node) in entries.iter().filter(|(_, node)| node.map().is_none() && !node.is_null()) {
        let path = format!("overlays.{}", show(&key.text));
        sink.error(
            "E_TYPE",
            &path,
            node.at,
            format!("overlay '{}' must be a mapping, got {}", show(&key.text), node.type_name()),
        );
    }
    let known = |name: &str| entries.iter().any(|(key, _)| key.text == name);
    let available = entries.iter().map(|(key, _)| format!("'{}'", show(&key.text))).collect::<Vec<_>>().join(", ");
    let unknown = |name: &str| format!("overlay '{}' referenced but not defined; available overlays: [{available}]", show(name));
    let targets = root.get("targets").and_then(Node::map).unwrap_or_default();
    for (key, target) in targets {
        if let Some(node) = target.get("overlay")
            && let Some(name) = node.as_str().filter(|name| !known(name))
        {
            let path = format!("targets.{}.overlay", show(&key.text));
            let help = suggestion(name, entries.iter().map(|(key, _)| key.text.as_str()));
            sink.error("E_UNKNOWN_OVERLAY", &path, node.at, unknown(name)).maybe_help(help);
        }
    }
    if let Some(name) = overlay.filter(|name| !known(name))
        && !targets.iter().any(|(_, target)| target.get("overlay").and_then(Node::as_str) == Some(name))
    {
        let message = unknown(name);
        sink.error("E_UNKNOWN_OVERLAY", "overlays", overlays.as_ref().map_or(root.at, |node| node.at), message)
            .help(format!("the manifest has {}", show_names(entries.iter().map(|(key, _)| key.text.as_str()))));
    }
    remove(root, "overlays");
    if let Some((_, over)) = entries.iter().find(|(key, node)| Some(key.text.as_str()) == overlay && node.map().is_some()) {
        let mut over = over.clone();
        for key in over.map().unwrap_or_default() {
            if !TOP_LEVEL_KEYS.contains(&key.0.text.as_str()) {
                let path = format!("overlays.{}.{}", show(overlay.unwrap_or_default()), show(&key.0.text));
                let message = format!("unknown overlay key(s): {}", show(&key.0.text));
                sink.error("E_UNKNOWN_KEY", &path, key.0.at, message).maybe_help(suggestion(&key.0.text, TOP_LEVEL_KEYS));
            }
        }
        remove(&mut over, "overlays");
        merge(root, &over);
    }
    if let Value::Map(entries) = &mut root.value
        && let Some((_, targets)) = entries.iter_mut().find(|(key, _)| key.text == "targets")
        && let Value::Map(targets) = &mut targets.value
        && let Some((_, target)) = targets.iter_mut().find(|(key, _)| Some(key.text.as_str()) == chosen)
    {
        remove(target, "overlay");
    }
}

fn remove(node: &mut Node, name: &str) {
    if let Value::Map(entries) = &mut node.value {
        entries.retain(|(key, _)| key.text != name);
    }
}

/// The resolved document with the defaults that the original demands: `version` and `project`.
fn document(root: &Node, project: &str) -> serde_json::Value {
    let mut document = root.to_json();
    if let Some(entries) = document.as_object_mut() {
        if !entries.contains_key("version") {
            entries.shift_insert(0, "version".to_owned(), 1.into());
        }
        if !entries.contains_key("project") {
            entries.shift_insert(1, "project".to_owned(), serde_json::json!({ "name": project }));
        }
    }
    document
}
