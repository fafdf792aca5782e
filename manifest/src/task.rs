//! One task at a time: command, outputs, inputs by name, policy. What names other tasks is resolved in `graph`.

use std::collections::BTreeMap;
use std::path::Path;

use scalable_proto::v1::{Backoff, Growth, Output, OutputKind, Policy, StartIn, Text, piece::Kind};
use scalable_template::check_shell;

use crate::diagnostic::{At, Sink, show, show_names, suggestion};
use crate::fields::{Fields, check_field_name, check_name, describe};
use crate::files::{FILES_BYTES_MAX, FILES_MAX, Files, Found};
use crate::model::{Command, Component, DEFAULT_COMPONENT, Requested};
use crate::node::Node;
use crate::parameters::{self, Parameters};
use crate::paths;
use crate::sections::{env_entries, file_paths, one_of, section};
use crate::substitution::{self, Known};
use crate::target::amounts;
use crate::units::format_bytes;

const TASK_KEYS: [&str; 31] = [
    "component",
    "cache",
    "outputs",
    "command",
    "shell",
    "files",
    "depends_on",
    "foreach",
    "zip",
    "from",
    "inputs",
    "stdin",
    "stdout",
    "stderr",
    "retries",
    "backoff",
    "timeout",
    "grace",
    "cpus",
    "memory",
    "gpus",
    "resources",
    "env",
    "priority",
    "when",
    "max_parallel",
    "on_oom",
    "on_timeout",
    "retry_on",
    "success_codes",
    "cwd",
];
/// Keys of other tools, and what they are called here.
const HINTS: [(&str, &str); 5] = [
    ("args", "arguments belong to `command`"),
    ("matrix", "write `foreach`"),
    ("needs", "write `depends_on`"),
    ("image", "an image belongs to the component"),
    ("mounts", "mounts belong to the component"),
];
/// Most arguments of one command.
const ARGS_MAX: usize = 10_000;
/// Most inputs and most outputs of one task.
const PORTS_MAX: usize = 256;

/// A task as read, with names of other tasks not yet looked up.
#[derive(Debug)]
pub(crate) struct RawTask {
    pub name: String,
    pub at: At,
    pub component: String,
    pub command: Option<Command>,
    pub env: BTreeMap<String, Text>,
    pub parameters: Parameters,
    pub inputs: Vec<RawInput>,
    pub stdin: Option<RawInput>,
    pub outputs: Vec<Output>,
    pub stdout: String,
    pub stderr: String,
    pub files: Vec<Found>,
    pub start_in: StartIn,
    pub depends_on: Vec<(String, At)>,
    pub policy: Policy,
    pub priority: i32,
    pub max_parallel: u32,
    pub always: bool,
    pub success_codes: Vec<i32>,
    pub requested: Requested,
}

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

/// Reads every task.
pub(crate) fn read_all(root: &Node, components: &[Component], directory: &Path, sink: &mut Sink) -> Vec<RawTask> {
    let tasks = section(root, "tasks", sink);
    if tasks.is_empty() && root.get("tasks").is_none_or(|node| node.scalar().is_none() || node.is_null()) {
        let at = root.get("tasks").map_or(root.at, |node| node.at);
        sink.warn("W_NO_TASKS", "tasks", at, "manifest defines no tasks");
    }
    let mut files = Files::below(directory);
    let mut made = Vec::with_capacity(tasks.len());
    for (name, at, node) in tasks {
        let path = format!("tasks.{}", show(name));
        if !check_name(name, "task", &path, at, sink) {
            continue;
        }
        if let Some(fields) = Fields::open(node, &path, sink) {
            made.push(read(name, at, &fields, components, directory, &mut files, sink));
        }
    }
    made
}

fn read(
    name: &str,
    at: At,
    fields: &Fields<'_>,
    components: &[Component],
    directory: &Path,
    files: &mut Files<'_>,
    sink: &mut Sink,
) -> RawTask {
    fields.only_hinting(&TASK_KEYS, &HINTS, sink);
    let component = component_name(fields, components, sink);
    if fields.bool("cache", sink) == Some(true) {
        let path = fields.child("cache");
        let message = format!("'{path}' has no effect yet: results are taken over by `retry --failed` only");
        sink.lenient("W_NO_EFFECT", &path, fields.key_at("cache"), message);
    }
    let parameters = parameters::read(fields, directory, sink);
    let inputs = inputs(fields, sink);
    let stdin = stdin(fields, sink);
    let mut outputs = outputs(fields, sink);
    let stdout = stream(fields, "stdout", &mut outputs, sink);
    let stderr = stream(fields, "stderr", &mut outputs, sink);
    if !stdout.is_empty() && stdout == stderr {
        let path = fields.child("stderr");
        let message = format!("standard output and standard error cannot both be the output `{stdout}`");
        sink.error("E_DUPLICATE_NAME", &path, fields.key_at("stderr"), message).help("use `shell:` with 2>&1");
    }
    // By key, so that an input or output that is wrong is told once and not again wherever it is named.
    let keys = |section: &str| -> Vec<String> {
        let entries = fields.get(section).and_then(Node::map).unwrap_or_default();
        entries.iter().map(|(key, _)| key.text.clone()).collect()
    };
    let known = Known {
        parameters: parameters.iter().flat_map(|p| p.space.names()).map(str::to_owned).collect(),
        inputs: keys("inputs"),
        outputs: {
            let mut names = keys("outputs");
            names.extend(
                outputs
                    .iter()
                    .filter(|o| fields.get("outputs").and_then(|all| all.get(&o.name)).is_none())
                    .map(|o| o.name.clone()),
            );
            names
        },
        parameters_unknown: parameters.is_none(),
    };
    let parameters = parameters.unwrap_or_else(Parameters::none);
    let command = command(fields, &known, sink);
    let mut env = BTreeMap::new();
    for (name, node, path) in env_entries(fields, sink) {
        if let Some(text) = substitution::text(node, &path, &known, sink) {
            env.insert(name.to_owned(), text);
        }
    }
    let own = file_paths(fields, sink);
    let shared = components.iter().find(|c| c.name == component).map(|c| c.files.clone()).unwrap_or_default();
    let found = staged_files(fields, &shared, &own, files, sink);
    let in_work = !found.is_empty()
        || !own.is_empty()
        || !shared.is_empty()
        || inputs.iter().any(|input| !input.as_path.is_empty())
        || outputs.iter().any(|output| !output.path.is_empty())
        || stdin.is_some()
        || !stdout.is_empty()
        || !stderr.is_empty();
    let cwd = one_of(fields, "cwd", &["work"], "E_BAD_CWD", sink);
    let task = RawTask {
        name: name.to_owned(),
        at,
        component,
        command,
        env,
        parameters,
        inputs,
        stdin,
        outputs,
        stdout,
        stderr,
        files: found,
        start_in: if in_work || cwd.is_some() { StartIn::Work } else { StartIn::Base },
        depends_on: fields.texts("depends_on", sink),
        policy: policy(fields, sink),
        priority: fields.int("priority", -1_000_000..=1_000_000, "E_BAD_PRIORITY", sink).unwrap_or(0) as i32,
        max_parallel: fields.int("max_parallel", 1..=i64::from(u32::MAX), "E_BAD_MAX_PARALLEL", sink).unwrap_or(0) as u32,
        always: one_of(fields, "when", &["always"], "E_BAD_WHEN", sink).is_some(),
        success_codes: success_codes(fields, sink),
        requested: Requested {
            milli_cpus: fields.cpus("cpus", sink),
            memory_bytes: fields.memory("memory", sink),
            gpus: fields.int("gpus", 0..=1024, "E_BAD_GPUS", sink).unwrap_or(0) as u64,
            custom: amounts(fields, "resources", sink),
        },
    };
    check_paths(&task, fields, sink);
    check_outputs_reachable(&task, fields, sink);
    task
}

fn component_name(fields: &Fields<'_>, components: &[Component], sink: &mut Sink) -> String {
    let path = fields.child("component");
    let Some(node) = fields.get("component") else { return DEFAULT_COMPONENT.to_owned() };
    let Some(name) = node.as_str() else {
        sink.error("E_TYPE", &path, node.at, format!("'{path}' is required and must be a string"));
        return DEFAULT_COMPONENT.to_owned();
    };
    if !components.iter().any(|component| component.name == name) {
        let known = components.iter().map(|component| component.name.as_str());
        let task = fields.path.trim_start_matches("tasks.");
        let message =
            format!("task '{task}' references unknown component '{}'; components: {}", show(name), show_names(known.clone()));
        sink.error("E_UNKNOWN_COMPONENT", &path, node.at, message).maybe_help(suggestion(name, known));
    }
    name.to_owned()
}

fn command(fields: &Fields<'_>, known: &Known, sink: &mut Sink) -> Option<Command> {
    if let (Some(_), Some(shell)) = (fields.get("command"), fields.get("shell")) {
        let message = format!("'{}' has both `command` and `shell`", fields.path);
        sink.error("E_BAD_COMMAND", &fields.child("shell"), shell.at, message).help("keep one of them");
    }
    if let Some(node) = fields.get("shell") {
        let path = fields.child("shell");
        let text = substitution::text(node, &path, known, sink)?;
        if text.pieces.is_empty() {
            sink.error("E_BAD_COMMAND", &path, node.at, format!("'{path}' is empty"));
        }
        if let Err(error) = check_shell(&text) {
            let field = text.pieces.get(error.piece).map(piece_words).unwrap_or_default();
            let message = format!("`{field}` stands {}, where its value would not be one word", error.place);
            sink.error("E_SHELL_QUOTING", &path, node.at, message).help(error.help);
        }
        return Some(Command::Shell(text));
    }
    let node = fields.get("command")?;
    let path = fields.child("command");
    let Some(items) = node.seq() else {
        let message = format!("'{path}' must be a list of a program and its arguments, got {}", node.type_name());
        let help = node
            .as_str()
            .map(|_| "for a text that a shell reads use `shell:`; else write [\"program\", \"argument\"]".to_owned());
        sink.error("E_BAD_COMMAND", &path, node.at, message).maybe_help(help);
        return None;
    };
    if items.is_empty() || items.len() > ARGS_MAX {
        let message = format!("'{path}' has {} arguments; it needs a program and at most {ARGS_MAX} in all", items.len());
        sink.error("E_BAD_COMMAND", &path, node.at, message);
        return None;
    }
    let texts = items.iter().enumerate().map(|(nth, item)| substitution::text(item, &format!("{path}[{nth}]"), known, sink));
    let texts: Vec<_> = texts.collect();
    if texts.first().and_then(Option::as_ref).is_some_and(|program| program.pieces.is_empty()) {
        sink.error("E_BAD_COMMAND", &format!("{path}[0]"), items[0].at, "the program's name is empty");
    }
    texts.into_iter().collect::<Option<_>>().map(Command::Argv)
}

fn piece_words(piece: &scalable_proto::v1::Piece) -> String {
    match &piece.kind {
        Some(Kind::Parameter(name)) => format!("{{{name}}}"),
        Some(Kind::Input(name)) => format!("{{inputs.{name}}}"),
        Some(Kind::InputList(name)) => format!("{{inputs.{name}.list}}"),
        Some(Kind::Output(name)) => format!("{{outputs.{name}}}"),
        Some(Kind::Builtin(builtin)) => {
            let name = substitution::BUILTINS.iter().find(|(_, b)| *b as i32 == *builtin).map_or("", |(name, _)| name);
            format!("{{{name}}}")
        }
        Some(Kind::Literal(_)) | None => String::new(),
    }
}

fn inputs(fields: &Fields<'_>, sink: &mut Sink) -> Vec<RawInput> {
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

fn stdin(fields: &Fields<'_>, sink: &mut Sink) -> Option<RawInput> {
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

fn outputs(fields: &Fields<'_>, sink: &mut Sink) -> Vec<Output> {
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
        if output.kind() == OutputKind::List && output.path.is_empty() && fields_have_command(fields) {
            let message = format!("'{path}' is a list and needs a `path` with a pattern");
            sink.error("E_BAD_OUTPUT", &path, node.at, message).help("{type: list, path: \"out/*.nc\"}");
        }
        made.push(output);
    }
    made
}

fn fields_have_command(fields: &Fields<'_>) -> bool {
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
    if fields_have_command(fields) || node.as_str().is_none() {
        sink.error("E_BAD_OUTPUT", path, node.at, message).maybe_help(suggestion(text, ["file", "dir", "list"]));
    } else {
        // The original took any word; without a command nothing depends on it.
        sink.lenient("W_NO_EFFECT", path, node.at, message);
    }
    OutputKind::File
}

/// The output that a stream is; declared here when `outputs` does not.
fn stream(fields: &Fields<'_>, key: &str, outputs: &mut Vec<Output>, sink: &mut Sink) -> String {
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

fn staged_files(fields: &Fields<'_>, shared: &[String], own: &[String], files: &mut Files<'_>, sink: &mut Sink) -> Vec<Found> {
    let mut found: BTreeMap<String, Found> = BTreeMap::new();
    for path in shared.iter().chain(own) {
        match files.list(path) {
            Ok(list) => found.extend(list.into_iter().map(|file| (file.path.clone(), file))),
            Err(message) => {
                sink.error("E_FILE", &fields.child("files"), fields.key_at("files"), message);
            }
        }
    }
    let bytes = found.values().map(|file| file.size).fold(0u64, u64::saturating_add);
    if bytes > FILES_BYTES_MAX || found.len() > FILES_MAX {
        let message = format!(
            "the files of '{}' are {} files of {} in all; at most {FILES_MAX} files of {} are shipped",
            fields.path,
            found.len(),
            format_bytes(bytes),
            format_bytes(FILES_BYTES_MAX)
        );
        sink.error("E_TOO_LARGE", &fields.child("files"), fields.key_at("files"), message)
            .help("put large data where every worker sees it and pass its path");
    }
    found.into_values().collect()
}

fn policy(fields: &Fields<'_>, sink: &mut Sink) -> Policy {
    Policy {
        retries: fields.int("retries", 0..=1_000, "E_BAD_RETRIES", sink).unwrap_or(0) as u32,
        backoff: backoff(fields, sink),
        timeout_ms: fields.positive_duration("timeout", sink).unwrap_or(0),
        grace_ms: fields.positive_duration("grace", sink).unwrap_or(0),
        on_oom: growth(fields, "on_oom", sink),
        on_timeout: growth(fields, "on_timeout", sink),
        retry_on: retry_on(fields, sink),
    }
}

fn backoff(fields: &Fields<'_>, sink: &mut Sink) -> Option<Backoff> {
    let inner = Fields::open(fields.get("backoff")?, &fields.child("backoff"), sink)?;
    inner.only(&["initial", "factor", "max"], sink);
    let initial_ms = inner.duration("initial", sink).unwrap_or(1_000);
    let max_ms = inner.duration("max", sink).unwrap_or(initial_ms.max(60_000));
    if max_ms < initial_ms {
        sink.error(
            "E_BAD_DURATION",
            &inner.child("max"),
            inner.key_at("max"),
            format!("'{}.max' is below `initial`", inner.path),
        );
    }
    Some(Backoff { initial_ms, factor_milli: inner.factor("factor", sink).unwrap_or(2_000), max_ms })
}

fn growth(fields: &Fields<'_>, key: &str, sink: &mut Sink) -> Option<Growth> {
    let inner = Fields::open(fields.get(key)?, &fields.child(key), sink)?;
    inner.only(&["factor", "max"], sink);
    let factor_milli = inner.factor("factor", sink).unwrap_or(1_500);
    let mut growth = Growth { factor_milli, ..Growth::default() };
    if key == "on_oom" {
        growth.memory_bytes_max = inner.memory("max", sink).unwrap_or(0);
    } else {
        growth.timeout_ms_max = inner.positive_duration("max", sink).unwrap_or(0);
        if fields.get("timeout").is_none() {
            let message = format!("'{}' has no effect without a `timeout`", inner.path);
            sink.lenient("W_NO_EFFECT", &inner.path, fields.key_at(key), message);
        }
    }
    Some(growth)
}

fn retry_on(fields: &Fields<'_>, sink: &mut Sink) -> Vec<String> {
    const WORDS: [&str; 5] = ["signal", "oom", "timeout", "lost", "missing_output"];
    let Some(node) = fields.get("retry_on") else { return Vec::new() };
    let path = fields.child("retry_on");
    let items = node.seq().unwrap_or(std::slice::from_ref(node));
    let mut made = Vec::new();
    for item in items {
        let codes: Vec<&Node> = match item.get("exit") {
            Some(codes) if item.map().is_some_and(|entries| entries.len() == 1) => {
                codes.seq().map_or(vec![codes], |s| s.iter().collect())
            }
            _ => Vec::new(),
        };
        let spelled = item.as_str().and_then(|text| text.strip_prefix("exit:")).and_then(|code| code.trim().parse::<i64>().ok());
        let codes: Option<Vec<i64>> = match (item.as_str(), spelled) {
            (Some(word), _) if WORDS.contains(&word) => {
                made.push(word.to_owned());
                continue;
            }
            (_, Some(code)) => Some(vec![code]),
            _ if codes.is_empty() => None,
            _ => codes.iter().map(|code| code.as_int()).collect(),
        };
        match codes.filter(|codes| codes.iter().all(|code| (0..=255).contains(code))) {
            Some(codes) => made.extend(codes.iter().map(|code| format!("exit:{code}"))),
            None => {
                let message = format!(
                    "'{path}' takes exit: CODE (0 to 255), signal, oom, timeout, lost, missing_output (got {})",
                    describe(item)
                );
                let help = suggestion(item.as_text().unwrap_or_default(), WORDS);
                sink.error("E_BAD_RETRY_ON", &path, item.at, message).maybe_help(help);
            }
        }
    }
    made.dedup();
    made.truncate(512);
    made
}

fn success_codes(fields: &Fields<'_>, sink: &mut Sink) -> Vec<i32> {
    let Some(node) = fields.get("success_codes") else { return Vec::new() };
    let path = fields.child("success_codes");
    let items = node.seq().unwrap_or(std::slice::from_ref(node));
    let codes: Option<Vec<i32>> =
        items.iter().map(|item| item.as_int().filter(|code| (0..=255).contains(code)).map(|code| code as i32)).collect();
    match codes.filter(|codes| !codes.is_empty()) {
        Some(mut codes) => {
            codes.sort_unstable();
            codes.dedup();
            codes
        }
        None => {
            let message = format!("'{path}' must be a list of exit codes from 0 to 255 (got {})", describe(node));
            sink.error("E_BAD_SUCCESS_CODES", &path, node.at, message);
            Vec::new()
        }
    }
}

/// Nothing may lie under two names, or be both given and collected, in the attempt's directory.
fn check_paths(task: &RawTask, fields: &Fields<'_>, sink: &mut Sink) {
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
fn check_outputs_reachable(task: &RawTask, fields: &Fields<'_>, sink: &mut Sink) {
    let texts: Vec<&Text> = match &task.command {
        None => return,
        Some(Command::Argv(args)) => args.iter().chain(task.env.values()).collect(),
        Some(Command::Shell(text)) => std::iter::once(text).chain(task.env.values()).collect(),
    };
    for output in &task.outputs {
        let kind = Some(Kind::Output(output.name.clone()));
        let named = texts.iter().any(|text| text.pieces.iter().any(|piece| piece.kind == kind));
        let stream = output.name == task.stdout || output.name == task.stderr;
        // A list without a path, and a wrong path, have been told already.
        let wanted_path = fields.get("outputs").and_then(|outputs| outputs.get(&output.name)?.get("path")).is_some();
        if !named && !stream && !wanted_path && output.kind() != OutputKind::List {
            let path = format!("{}.outputs.{}", fields.path, output.name);
            let message =
                format!("nothing writes the output `{}`: the command does not name {{outputs.{}}}", output.name, output.name);
            sink.error("E_OUTPUT_UNREACHABLE", &path, output_at(fields, &output.name), message)
                .help("name it in the command, or say where it is written: {path: out/series.csv}");
        }
    }
}
