//! One task at a time: command, environment, policy; what it reads and writes is in `ports`. Other tasks are looked up in `graph`.

use std::collections::BTreeMap;
use std::path::Path;

use scalable_proto::v1::{Backoff, Growth, Output, Policy, StartIn, Text, piece::Kind};
use scalable_template::check_shell;

use crate::diagnostic::{At, Sink, show, show_names, suggestion};
use crate::fields::{Fields, check_name, describe};
use crate::files::{FILES_BYTES_MAX, FILES_MAX, Files, Found};
use crate::model::{Command, Component, DEFAULT_COMPONENT, Requested};
use crate::node::Node;
use crate::parameters::{self, Parameters};
use crate::ports::{self, RawInput};
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
    let inputs = ports::inputs(fields, sink);
    let stdin = ports::stdin(fields, sink);
    let mut outputs = ports::outputs(fields, sink);
    let stdout = ports::stream(fields, "stdout", &mut outputs, sink);
    let stderr = ports::stream(fields, "stderr", &mut outputs, sink);
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
    ports::check_paths(&task, fields, sink);
    ports::check_outputs_reachable(&task, fields, sink);
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
