//! What a run would be: groups, counts, pools, resources and the first commands. Bounded whatever the number of elements.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use prost::Message;
use scalable_proto::v1::{OutputKind, StartIn};
use scalable_template::{format_cpus, quote_argv, render};
use serde::Serialize;
use serde_json::{Value, json};

use crate::diagnostic::{Diagnostic, Severity, Sink, show};
use crate::lower::{Shape, group_spec};
use crate::model::{Amounts, Command, Component, DEFAULT_COMPONENT, Manifest, Task};
use crate::preview::Preview;
use crate::sizes;
use crate::substitution::literal_text;

/// Commands shown of each group.
const COMMANDS_SHOWN: u32 = 3;
/// Longest shown command, characters.
const COMMAND_SHOWN_MAX: usize = 2_000;
/// Largest group on the wire, bytes; the peer refuses messages above 16 MiB.
const GROUP_BYTES_MAX: usize = 15 << 20;

/// What a run of a manifest would be. Serialised it is `plan.json`: the original's keys and more.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Of this format: 1.
    pub version: u32,
    /// Name of the target.
    pub target: String,
    /// Its provider.
    pub provider: String,
    /// False where this build can plan but not run.
    pub provider_available: bool,
    /// Name of the project.
    pub project: String,
    /// The manifest's lock.
    pub manifest_lock: String,
    /// What has no effect is an error.
    pub strict: bool,
    /// Component of every task.
    pub task_to_component: BTreeMap<String, String>,
    /// Workers and their sizes by component.
    pub scale_plan: ScalePlan,
    /// Elements of all groups that run.
    pub tasks_total: u64,
    /// One a task, each after all it depends on.
    pub groups: Vec<GroupPlan>,
    /// Workers that are scaled together.
    pub pools: Vec<PoolPlan>,
    /// Worker processes, for provider `local`.
    pub local: Option<LocalWorkers>,
    /// Run-wide amounts of custom resources.
    pub totals: BTreeMap<String, u64>,
    /// What may not be as someone thinks.
    pub warnings: Vec<Diagnostic>,
}

/// The original's part of the plan.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ScalePlan {
    /// Workers that serve each component at the start.
    pub workers_by_tag: BTreeMap<String, u32>,
    /// `{cpus, memory, walltime, gpus}` of each component.
    pub resources_by_tag: BTreeMap<String, Value>,
}

/// One group.
#[derive(Clone, Debug, Serialize)]
pub struct GroupPlan {
    /// The task's name.
    pub name: String,
    /// Elements.
    pub count: u32,
    /// Component that serves it.
    pub component: String,
    /// False for a task without a command: it is planned and not run.
    pub runnable: bool,
    /// What each element takes.
    pub resources: Amounts,
    /// The same in words: `1 cpu and 512M`.
    pub takes: String,
    /// Parameters in their order.
    pub parameters: Vec<ParameterPlan>,
    /// What it waits for.
    pub dependencies: Vec<DependencyPlan>,
    /// What it writes.
    pub outputs: Vec<OutputPlan>,
    /// Further attempts after a failure.
    pub retries: u32,
    /// Longest an attempt may take, milliseconds; 0 is no limit.
    pub timeout_ms: u64,
    /// Larger first.
    pub priority: i32,
    /// Most at a time; 0 is no limit.
    pub max_parallel: u32,
    /// Runs after failures too.
    pub always: bool,
    /// `own directory`, `manifest's directory` or `image's directory`.
    pub starts_in: &'static str,
    /// The first commands, for people.
    pub commands: Vec<String>,
}

/// One parameter of a group.
#[derive(Clone, Debug, Serialize)]
pub struct ParameterPlan {
    /// Its name.
    pub name: String,
    /// Values on its axis; rows for a table.
    pub values: u32,
}

/// One dependency of a group.
#[derive(Clone, Debug, Serialize)]
pub struct DependencyPlan {
    /// The group it waits for.
    pub on: String,
    /// In words: `element by element`, `by scenario; fan-in over member`, `after all 200`.
    pub how: String,
}

/// One output of a group.
#[derive(Clone, Debug, Serialize)]
pub struct OutputPlan {
    /// Its name.
    pub name: String,
    /// `file`, `dir` or `list`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Path or pattern in the attempt's directory, or nothing.
    pub path: Option<String>,
    /// It may be missing.
    pub optional: bool,
    /// It stays in the output store.
    pub keep: bool,
}

/// Workers made from one template.
#[derive(Clone, Debug, Serialize)]
pub struct PoolPlan {
    /// Its name.
    pub name: String,
    /// Components it serves; `*` is every one.
    pub components: Vec<String>,
    /// Image its workers run in; nothing where none is used or named.
    pub image: Option<String>,
    /// Workers at the start.
    pub workers_min: u32,
    /// Most workers.
    pub workers_max: u32,
    /// What tasks can have of each worker; memory 0 is not accounted.
    pub worker: Amounts,
    /// The same in words.
    pub has: String,
}

/// The workers of a local target.
#[derive(Clone, Debug, Serialize)]
pub struct LocalWorkers {
    /// Worker processes.
    pub workers: u32,
    /// Cpus of each, thousandths.
    pub milli_cpus: u64,
    /// Memory of each, bytes.
    pub memory_bytes: u64,
    /// Cpus of each, whole.
    pub threads: u32,
    /// Gpus of each.
    pub gpus: u64,
    /// Custom resources of each.
    pub custom: BTreeMap<String, u64>,
}

impl Plan {
    /// True when there is something to run.
    pub fn is_runnable(&self) -> bool {
        self.groups.iter().any(|group| group.runnable)
    }
}

/// Plans a run. Contacts nobody; on a local target it looks whether programs exist.
///
/// # Errors
/// Everything that would refuse the run, with the warnings: no pool fits, a program is missing, too large for the wire.
pub fn plan(manifest: &Manifest) -> Result<Plan, Vec<Diagnostic>> {
    let mut sink = Sink::new(manifest.strict);
    let takes = requests(manifest, &mut sink);
    let groups = manifest.tasks.iter().zip(&takes).map(|(task, takes)| group_plan(manifest, task, takes, &mut sink)).collect();
    let target = &manifest.target;
    if !target.provider_available() {
        let message = format!(
            "provider '{}' of target '{}' cannot run in this build; it can be validated and planned",
            target.provider, target.name
        );
        sink.warn("W_PROVIDER_UNAVAILABLE", &format!("targets.{}.provider", target.name), target.at, message);
    }
    let failed = sink.has_errors();
    let mut warnings = manifest.warnings.clone();
    warnings.extend(sink.into_sorted());
    if failed {
        return Err(warnings);
    }
    debug_assert!(warnings.iter().all(|d| d.severity == Severity::Warning));
    Ok(Plan {
        version: 1,
        target: target.name.clone(),
        provider: target.provider.clone(),
        provider_available: target.provider_available(),
        project: manifest.project.name.clone(),
        manifest_lock: manifest.lock.clone(),
        strict: manifest.strict,
        task_to_component: manifest.tasks.iter().map(|task| (task.name.clone(), task.component.clone())).collect(),
        scale_plan: scale_plan(manifest),
        tasks_total: manifest.tasks.iter().filter(|task| task.command.is_some()).map(|task| u64::from(task.len())).sum(),
        groups,
        pools: pools(manifest),
        local: local_workers(manifest),
        totals: target.totals.clone(),
        warnings,
    })
}

/// What each task's elements take, in the order of the tasks.
pub(crate) fn requests(manifest: &Manifest, sink: &mut Sink) -> Vec<Amounts> {
    let nameless = Component::default();
    let request = |task: &Task, sink: &mut Sink| {
        let component = manifest.component(&task.component).unwrap_or(&nameless);
        sizes::request(task, component, &manifest.target, manifest.machine, sink)
    };
    manifest.tasks.iter().map(|task| request(task, sink)).collect()
}

fn group_plan(manifest: &Manifest, task: &Task, takes: &Amounts, sink: &mut Sink) -> GroupPlan {
    let path = format!("tasks.{}", task.name);
    match &task.command {
        None => {
            let message = format!("task `{}` has no command: it is planned and not run", task.name);
            sink.warn("W_NOT_RUNNABLE", &path, task.at, message).help("give it `command:` or `shell:`");
        }
        Some(Command::Argv(_)) if manifest.target.local.is_some() => check_program(manifest, task, sink),
        Some(_) => {}
    }
    if task.start_in == StartIn::Base {
        warn_not_portable(manifest, task, sink);
    }
    let size = group_spec(manifest, task, takes, Shape::Whole).encoded_len();
    if size > GROUP_BYTES_MAX {
        let message = format!(
            "task `{}` is {size} bytes with its command and parameters, at most {GROUP_BYTES_MAX} can be sent",
            task.name
        );
        sink.error("E_TOO_LARGE", &path, task.at, message);
    }
    let space = task.space();
    let axes: BTreeMap<&str, u32> = space.axes().into_iter().map(|(name, length, _)| (name, length)).collect();
    let parameter = |name: &str| ParameterPlan { name: name.to_owned(), values: axes.get(name).copied().unwrap_or(space.len()) };
    GroupPlan {
        name: task.name.clone(),
        count: space.len(),
        component: task.component.clone(),
        runnable: task.command.is_some(),
        takes: sizes::amounts_words(takes),
        resources: takes.clone(),
        parameters: space.names().into_iter().map(parameter).collect(),
        dependencies: task
            .dependencies
            .iter()
            .map(|link| DependencyPlan { on: manifest.tasks[link.upstream].name.clone(), how: link.how.clone() })
            .collect(),
        outputs: task.outputs.iter().map(output_plan).collect(),
        retries: task.policy.retries,
        timeout_ms: task.policy.timeout_ms,
        priority: task.priority,
        max_parallel: task.max_parallel,
        always: task.always,
        starts_in: match (task.start_in, &manifest.target.local) {
            (StartIn::Work, _) => "own directory",
            (StartIn::Base, Some(_)) => "manifest's directory",
            (StartIn::Base, None) => "image's directory",
        },
        commands: commands(manifest, task, takes, sink),
    }
}

fn output_plan(output: &scalable_proto::v1::Output) -> OutputPlan {
    OutputPlan {
        name: output.name.clone(),
        kind: match output.kind() {
            OutputKind::File => "file",
            OutputKind::Dir => "dir",
            OutputKind::List => "list",
        },
        path: Some(output.path.clone()).filter(|path| !path.is_empty()),
        optional: output.optional,
        keep: !output.discard,
    }
}

fn commands(manifest: &Manifest, task: &Task, takes: &Amounts, sink: &mut Sink) -> Vec<String> {
    if task.command.is_none() {
        return Vec::new();
    }
    let template = group_spec(manifest, task, takes, Shape::Template).template.unwrap_or_default();
    let mut shown = Vec::new();
    for index in 0..task.len().min(COMMANDS_SHOWN) {
        match render(&template, &Preview { manifest, task, index, takes }) {
            Ok(rendered) => {
                let line = match &task.command {
                    Some(Command::Shell(_)) => {
                        rendered.argv.last().map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
                    }
                    _ => quote_argv(&rendered.argv),
                };
                let mut short: String = line.chars().take(COMMAND_SHOWN_MAX).collect();
                if short.len() < line.len() {
                    short.push('…');
                }
                shown.push(short);
            }
            Err(error) => {
                let name = task.space().task_name(&task.name, index);
                sink.error("E_BAD_COMMAND", &format!("tasks.{}", task.name), task.at, format!("the command of {name}: {error}"));
                break;
            }
        }
    }
    shown
}

/// The program of a local command exists and may be executed.
fn check_program(manifest: &Manifest, task: &Task, sink: &mut Sink) {
    let Some(Command::Argv(args)) = &task.command else { return };
    let Some(program) = args.first().and_then(literal_text).filter(|program| !program.is_empty()) else { return };
    let executable = |path: &Path| path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    let beside = program.trim_start_matches("./");
    let staged = task.files.iter().find(|file| file.path == beside);
    let problem = if program.starts_with('/') {
        (!executable(Path::new(&program))).then_some("is not there or may not be executed")
    } else if program.contains('/') && task.start_in == StartIn::Work {
        // It may also be an input, or made by another program: only what is staged can be judged.
        staged.filter(|file| !file.executable).map(|_| "may not be executed")
    } else if program.contains('/') {
        (!executable(&manifest.directory.join(&program))).then_some("is not beside the manifest or may not be executed")
    } else {
        let component = manifest.component(&task.component);
        let shared = || component.and_then(|c| c.env.iter().find(|(name, _)| name == "PATH")).map(|(_, value)| value.clone());
        let own = task.env.get("PATH").map(literal_text);
        let search = match own {
            Some(text) => text,
            None => shared().or_else(|| manifest.search_path.clone()),
        };
        let Some(search) = search else { return };
        let found = search.split(':').filter(|dir| dir.starts_with('/')).any(|dir| executable(&Path::new(dir).join(&program)));
        (!found).then_some("is not in PATH")
    };
    if let Some(problem) = problem {
        let path = format!("tasks.{}.command[0]", task.name);
        let help = if staged.is_some() && !program.contains('/') {
            format!("to run the staged file write ./{program}")
        } else if staged.is_some() {
            format!("chmod +x {beside}")
        } else {
            "install it, correct the name, or write its whole path".to_owned()
        };
        let message = format!("the program `{}` of task `{}` {problem}", show(&program), task.name);
        sink.error("E_MISSING_EXECUTABLE", &path, task.at, message).help(help);
    }
}

/// Arguments that name a file beside the manifest work on this machine only.
fn warn_not_portable(manifest: &Manifest, task: &Task, sink: &mut Sink) {
    let Some(Command::Argv(args)) = &task.command else { return };
    for (nth, text) in args.iter().enumerate() {
        let Some(literal) = literal_text(text) else { continue };
        let Ok(relative) = crate::paths::relative(&literal) else { continue };
        // The first word without a slash is looked for in PATH, not here.
        let is_path = nth > 0 || literal.contains('/');
        if is_path && !relative.is_empty() && manifest.directory.join(&relative).exists() {
            let path = format!("tasks.{}.command[{nth}]", task.name);
            let message = format!("'{}' is a file beside the manifest; on another target it would not be there", show(&literal));
            sink.warn("W_NOT_PORTABLE", &path, task.at, message).help(format!("add it to the task's `files: [{relative}]`"));
        }
    }
}

/// Components that tasks name, else all, else `default`.
fn used_components(manifest: &Manifest) -> Vec<Component> {
    let named: BTreeSet<&str> = manifest.tasks.iter().map(|task| task.component.as_str()).collect();
    let used = |component: &&Component| named.is_empty() || named.contains(component.name.as_str());
    let mut used: Vec<Component> = manifest.components.iter().filter(used).cloned().collect();
    if used.is_empty() {
        used.push(Component { name: DEFAULT_COMPONENT.to_owned(), image: manifest.target.image.clone(), ..Component::default() });
    }
    used
}

fn scale_plan(manifest: &Manifest) -> ScalePlan {
    let target = &manifest.target;
    let mut plan = ScalePlan::default();
    if manifest.tasks.is_empty() {
        return plan;
    }
    for component in used_components(manifest) {
        let (milli_cpus, memory) = sizes::component_size(target, &component);
        let cpus = if milli_cpus.is_multiple_of(1000) {
            json!(milli_cpus / 1000)
        } else {
            format_cpus(milli_cpus).parse::<f64>().map_or(Value::Null, Value::from)
        };
        let memory = component.memory_text.clone().or_else(|| memory.map(crate::units::format_bytes));
        let resources = json!({ "cpus": cpus, "memory": memory, "walltime": target.walltime, "gpus": target.worker.gpus });
        plan.workers_by_tag.insert(component.name.clone(), target.workers_min);
        plan.resources_by_tag.insert(component.name, resources);
    }
    plan
}

fn pools(manifest: &Manifest) -> Vec<PoolPlan> {
    let target = &manifest.target;
    let pool = |name: &str, components: Vec<String>, component: &Component| {
        let worker = sizes::worker(target, component, manifest.machine);
        PoolPlan {
            name: name.to_owned(),
            components,
            image: component.image.clone().or_else(|| target.image.clone()).filter(|_| target.local.is_none()),
            workers_min: target.workers_min,
            workers_max: target.workers_max,
            has: sizes::amounts_words(&worker.capacity),
            worker: worker.capacity,
        }
    };
    let used = used_components(manifest);
    if target.local.is_some() {
        return used.first().map(|component| pool(&target.name, vec!["*".to_owned()], component)).into_iter().collect();
    }
    used.iter().map(|component| pool(&component.name, vec![component.name.clone()], component)).collect()
}

fn local_workers(manifest: &Manifest) -> Option<LocalWorkers> {
    let local = manifest.target.local.as_ref()?;
    let worker = sizes::worker(&manifest.target, &Component::default(), manifest.machine).capacity;
    Some(LocalWorkers {
        workers: local.max_workers,
        milli_cpus: worker.milli_cpus,
        memory_bytes: worker.memory_bytes,
        threads: local.threads_per_worker,
        gpus: worker.gpus,
        custom: worker.custom,
    })
}

/// Names of the custom resources of a task that count against the run.
pub(crate) fn totals_of(task: &Task, manifest: &Manifest) -> Vec<String> {
    task.requested.custom.keys().filter(|name| manifest.target.totals.contains_key(*name)).cloned().collect()
}
