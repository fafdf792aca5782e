//! What a task reads and writes: `inputs`, `outputs` and the three streams, and that no two of them lie at one place.

use std::collections::BTreeMap;

use scalable_proto::v1::{Output, OutputKind, Text, piece::Kind};

use crate::diagnostic::{At, Sink, show, suggestion};
use crate::fields::{Fields, check_field_name, describe};
use crate::model::Command;
use crate::node::Node;
use crate::paths;
use crate::task::RawTask;

/// Most inputs and most outputs of one task.
const PORTS_MAX: usize = 256;

/// `"{task.output}"` or `"{task.output[*]}"`, taken apart.
#[derive(Clone, Debug)]
pub(crate) struct RawInput {
    pub name: String,
    pub path: String,
    pub at: At,
    pub task: String,
    pub output: String,
    pub all: bool,
    pub as_path: String,
}

pub(crate) fn inputs(fields: &Fields<'_>, sink: &mut Sink) -> Vec<RawInput> {
    let Some(node) = fields.get("inputs") else { return Vec::new() };
    let Some(entries) = Fields::open(node, &fields.child("inputs"), sink) else { return Vec::new() };
    if entries.entries().len() > PORTS_MAX {
        sink.error("E_TOO_LARGE", &entries.path, entries.at, format!("'{}' has more than {PORTS_MAX} inputs", entries.path));
        return Vec::new();
    }
    let mut made = Vec::new();
    for (key, node) in entries.entries() {
        let path = entries.child(&key.text);
        if !check_field_name(&key.text, "input", &path, key.at, sink) {
            continue;
        }
        // `{prepare.table}` without quotes is a mapping to YAML; `reference` says so.
        let unquoted = matches!(node.map(), Some([(_, value)]) if value.is_null());
        let (from, as_path) = if node.map().is_some() && !unquoted {
            let Some(inner) = Fields::open(node, &path, sink) else { continue };
            inner.only(&["from", "as"], sink);
            let Some(from) = inner.get("from") else {
                sink.error("E_MISSING_KEY", &path, node.at, format!("'{path}.from' is required")).help("from: \"{task.output}\"");
                continue;
            };
            (from, inside_path(&inner, "as", sink))
        } else {
            (node, String::new())
        };
        if let Some(input) = reference(&key.text, from, &path, as_path, sink) {
            made.push(input);
        }
    }
    made
}

pub(crate) fn stdin(fields: &Fields<'_>, sink: &mut Sink) -> Option<RawInput> {
    let node = fields.get("stdin")?;
    reference("", node, &fields.child("stdin"), String::new(), sink)
}

/// Takes `"{task.output}"` or `"{task.output[*]}"` apart.
fn reference(name: &str, node: &Node, path: &str, as_path: String, sink: &mut Sink) -> Option<RawInput> {
    let parsed = node.as_str().and_then(|text| {
        let inner = text.trim().strip_prefix('{')?.strip_suffix('}')?;
        let (inner, all) = match inner.strip_suffix("[*]") {
            Some(inner) => (inner, true),
            None => (inner, false),
        };
        let (task, output) = inner.rsplit_once('.')?;
        let fine = |part: &str| !part.is_empty() && !part.contains(['{', '}', '[', ']']);
        (fine(task) && fine(output)).then(|| (task.to_owned(), output.to_owned(), all))
    });
    let Some((task, output, all)) = parsed else {
        let message = format!("'{path}' must be \"{{task.output}}\" or \"{{task.output[*]}}\" (got {})", describe(node));
        let quoted = node.map().map(|_| "write it in quotes".to_owned());
        sink.error("E_BAD_INPUT", path, node.at, message).maybe_help(quoted);
        return None;
    };
    Some(RawInput { name: name.to_owned(), path: path.to_owned(), at: node.at, task, output, all, as_path })
}

/// A relative path in the attempt's directory; empty where there is none or it is wrong.
fn inside_path(fields: &Fields<'_>, key: &str, sink: &mut Sink) -> String {
    let Some(text) = fields.text(key, sink) else { return String::new() };
    let path = fields.child(key);
    let at = fields.get(key).map_or(fields.at, |node| node.at);
    if text.contains(['{', '}']) {
        let message = format!("'{path}' is taken as it stands: nothing is substituted in it, got '{}'", show(&text));
        sink.error("E_UNKNOWN_FIELD", &path, at, message)
            .help("every attempt has a directory of its own, so one name serves all elements");
        return String::new();
    }
    match paths::relative(&text) {
        Ok(relative) if !relative.is_empty() => relative,
        Ok(_) => {
            sink.error("E_PATH_ESCAPES", &path, at, format!("'{path}' names the attempt's directory itself"));
            String::new()
        }
        Err(bad) => {
            let message = format!("'{path}' {}: '{}'", bad.reason(), show(&text));
            sink.error("E_PATH_ESCAPES", &path, at, message).help("it lies in the attempt's own directory");
            String::new()
        }
    }
}

pub(crate) fn outputs(fields: &Fields<'_>, sink: &mut Sink) -> Vec<Output> {
    let Some(node) = fields.get("outputs") else { return Vec::new() };
    let Some(entries) = Fields::open(node, &fields.child("outputs"), sink) else { return Vec::new() };
    if entries.entries().len() > PORTS_MAX {
        sink.error("E_TOO_LARGE", &entries.path, entries.at, format!("'{}' has more than {PORTS_MAX} outputs", entries.path));
        return Vec::new();
    }
    let mut made = Vec::new();
    for (key, node) in entries.entries() {
        let path = entries.child(&key.text);
        if !check_field_name(&key.text, "output", &path, key.at, sink) {
            continue;
        }
        let mut output = Output { name: key.text.clone(), ..Output::default() };
        if node.map().is_none() {
            output.kind = output_kind(node, &path, fields, sink) as i32;
        } else if let Some(inner) = Fields::open(node, &path, sink) {
            inner.only(&["path", "type", "optional", "keep"], sink);
            if let Some(kind) = inner.get("type") {
                output.kind = output_kind(kind, &inner.child("type"), fields, sink) as i32;
            }
            output.path = inside_path(&inner, "path", sink);
            output.optional = inner.bool("optional", sink).unwrap_or(false);
            output.discard = !inner.bool("keep", sink).unwrap_or(true);
        }
        made.push(output);
    }
    made
}

fn has_command(fields: &Fields<'_>) -> bool {
    fields.get("command").or(fields.get("shell")).is_some()
}

fn output_kind(node: &Node, path: &str, fields: &Fields<'_>, sink: &mut Sink) -> OutputKind {
    let text = node.as_text().unwrap_or_default();
    match text {
        "file" => return OutputKind::File,
        "dir" | "directory" => return OutputKind::Dir,
        "list" => return OutputKind::List,
        _ => {}
    }
    let message = format!("'{path}' must be one of ['file', 'dir', 'list'] (got {})", describe(node));
    if has_command(fields) || node.as_str().is_none() {
        sink.error("E_BAD_OUTPUT", path, node.at, message).maybe_help(suggestion(text, ["file", "dir", "list"]));
    } else {
        // The original took any word; without a command nothing depends on it.
        sink.lenient("W_NO_EFFECT", path, node.at, message);
    }
    OutputKind::File
}

/// The output that a stream is; declared here when `outputs` does not.
pub(crate) fn stream(fields: &Fields<'_>, key: &str, outputs: &mut Vec<Output>, sink: &mut Sink) -> String {
    let Some(name) = fields.text(key, sink) else { return String::new() };
    let path = fields.child(key);
    let at = fields.get(key).map_or(fields.at, |node| node.at);
    if !check_field_name(&name, "output", &path, at, sink) {
        return String::new();
    }
    match outputs.iter().find(|output| output.name == name) {
        None => outputs.push(Output { name: name.clone(), ..Output::default() }),
        Some(output) if output.kind() != OutputKind::File || !output.path.is_empty() => {
            let message = format!("'{path}' makes the stream the output `{name}`, which must be a file without a `path`");
            sink.error("E_BAD_OUTPUT", &path, at, message);
        }
        Some(_) => {}
    }
    name
}

/// Nothing may lie under two names, or be both given and collected, in the attempt's directory.
pub(crate) fn check_paths(task: &RawTask, fields: &Fields<'_>, sink: &mut Sink) {
    let mut staged: BTreeMap<&str, (String, At)> = BTreeMap::new();
    for file in &task.files {
        staged.insert(&file.path, (format!("the file '{}'", show(&file.path)), fields.key_at("files")));
    }
    for input in task.inputs.iter().filter(|input| !input.as_path.is_empty()) {
        let what = format!("the input `{}`", input.name);
        if let Some((other, _)) = staged.insert(&input.as_path, (what, input.at)) {
            let message = format!("`{}` would be put at '{}', where {other} is", input.name, show(&input.as_path));
            sink.error("E_DUPLICATE_PATH", &input.path, input.at, message);
        }
    }
    // A path that lies below a file: everything between a path and its extensions is sorted after it, so look parents up.
    for (path, (what, at)) in &staged {
        let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
        if let Some(parent) = parents.rev().find(|parent| staged.contains_key(parent)) {
            let message = format!("{what} lies below '{}', which is itself a file or input", show(parent));
            sink.error("E_DUPLICATE_PATH", &fields.path, *at, message);
        }
    }
    for output in task.outputs.iter().filter(|output| !output.path.is_empty()) {
        let clash = match output.kind() {
            OutputKind::List => staged.iter().find(|(path, _)| paths::matches(&output.path, path)),
            _ => staged.get_key_value(output.path.as_str()),
        };
        if let Some((path, (what, _))) = clash {
            let at = output_at(fields, &output.name);
            let place = format!("{}.outputs.{}.path", fields.path, output.name);
            let message = format!("the output `{}` would be collected from '{}', where {what} is", output.name, show(path));
            sink.error("E_DUPLICATE_PATH", &place, at, message);
        }
    }
}

/// Where an output is declared.
fn output_at(fields: &Fields<'_>, name: &str) -> At {
    let declared = fields.get("outputs").and_then(Node::map).and_then(|outputs| outputs.iter().find(|(key, _)| key.text == name));
    declared.map_or(fields.at, |(key, _)| key.at)
}

/// An output that is neither a stream, nor has a path, nor is named in the command can never be written.
pub(crate) fn check_outputs_reachable(task: &RawTask, fields: &Fields<'_>, sink: &mut Sink) {
    let texts: Vec<&Text> = match &task.command {
        None => return,
        Some(Command::Argv(args)) => args.iter().chain(task.env.values()).collect(),
        Some(Command::Shell(text)) => std::iter::once(text).chain(task.env.values()).collect(),
    };
    for output in &task.outputs {
        let kind = Some(Kind::Output(output.name.clone()));
        let named = texts.iter().any(|text| text.pieces.iter().any(|piece| piece.kind == kind));
        let stream = output.name == task.stdout || output.name == task.stderr;
        // A wrong path has been told already.
        let wanted_path = fields.get("outputs").and_then(|outputs| outputs.get(&output.name)?.get("path")).is_some();
        if !named && !stream && !wanted_path {
            let path = format!("{}.outputs.{}", fields.path, output.name);
            let message =
                format!("nothing writes the output `{}`: the command does not name {{outputs.{}}}", output.name, output.name);
            sink.error("E_OUTPUT_UNREACHABLE", &path, output_at(fields, &output.name), message)
                .help("name it in the command, or say where it is written: {path: out/series.csv}");
        }
    }
}
