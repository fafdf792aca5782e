//! A resolved manifest: environment and overlay applied, one target chosen, every name checked.

use std::collections::BTreeMap;
use std::path::PathBuf;

use scalable_proto::v1::{Output, Policy, Projection, StartIn, Text};
use scalable_template::Space;
use serde::Serialize;
use serde_json::Value;

use crate::diagnostic::{At, Diagnostic};
use crate::files::Found;
use crate::kubernetes::KubernetesOptions;
use crate::parameters::Parameters;

/// Name of the component of all tasks that name none.
pub const DEFAULT_COMPONENT: &str = "default";

/// The machine a local target would use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Thousandths of a cpu.
    pub milli_cpus: u64,
    /// Bytes of memory in all.
    pub memory_bytes: u64,
}

/// A manifest that was read without an error.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The file.
    pub path: PathBuf,
    /// Its directory, absolute: where local commands start and `files` are looked for.
    pub directory: PathBuf,
    /// Project.
    pub project: Project,
    /// What has no effect is an error.
    pub strict: bool,
    /// The chosen target.
    pub target: Target,
    /// Names of all targets, in the order of the file.
    pub target_names: Vec<String>,
    /// In the order of the file; `default` last, when tasks need it.
    pub components: Vec<Component>,
    /// Each after all it depends on, else in the order of the file.
    pub tasks: Vec<Task>,
    /// The resolved document: what `manifest.yaml` of the run holds and the lock digests.
    pub document: Value,
    /// The document after the environment and before the overlay.
    pub document_unresolved: Value,
    /// SHA-256 of the resolved document's canonical form, hex.
    pub lock: String,
    /// What the local target is planned for.
    pub machine: Machine,
    /// Warnings of the load; part of every plan.
    pub(crate) warnings: Vec<Diagnostic>,
    /// `PATH` of whoever loaded it, for finding programs.
    pub(crate) search_path: Option<String>,
}

impl Manifest {
    /// The resolved document as YAML.
    pub fn to_yaml(&self) -> String {
        serde_saphyr::to_string(&self.document).unwrap_or_else(|_| self.document.to_string())
    }

    /// The component of a task. Every task's component exists once the manifest is loaded.
    pub fn component(&self, name: &str) -> Option<&Component> {
        self.components.iter().find(|component| component.name == name)
    }

    /// What a worker that serves the component is made with, and what of it tasks can have. Memory 0: none was named, and none is
    /// accounted.
    pub fn worker(&self, component: &Component) -> (Amounts, Amounts) {
        let worker = crate::sizes::worker(&self.target, component, self.machine);
        (worker.size, worker.capacity)
    }

    /// The task of that name.
    pub fn task(&self, name: &str) -> Option<&Task> {
        self.tasks.iter().find(|task| task.name == name)
    }
}

/// `project:`.
#[derive(Clone, Debug)]
pub struct Project {
    /// Trimmed, not empty.
    pub name: String,
    /// Recorded only.
    pub default_storage: Option<String>,
    /// Recorded only.
    pub local_cache: Option<String>,
}

impl Project {
    /// The name as part of a run's name: letters, digits, `_`, `-` and `.`, at most 40.
    pub fn slug(&self) -> String {
        slug(&self.name)
    }
}

/// `text` made a valid name.
pub(crate) fn slug(text: &str) -> String {
    let mut made = String::new();
    for c in text.trim().chars() {
        let plain = c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if plain {
            made.push(c);
        } else if !made.ends_with('-') {
            made.push('-');
        }
        if made.len() >= 40 {
            break;
        }
    }
    let made = made.trim_matches(['-', '.']);
    if made.is_empty() { "project".to_owned() } else { made.to_owned() }
}

/// The chosen target.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its name in the manifest.
    pub name: String,
    /// Its provider's name, lower case.
    pub provider: String,
    /// The overlay that was applied.
    pub overlay: Option<String>,
    /// Copied into the plan.
    pub walltime: Option<String>,
    /// Image for components without one.
    pub image: Option<String>,
    /// Run-wide amounts of custom resources.
    pub totals: BTreeMap<String, u64>,
    /// `resources`: size of a worker where a component names none (`limits`, else `requests`).
    pub worker: WorkerSize,
    /// Least workers at the start (adaptive.minimum, else n_workers).
    pub workers_min: u32,
    /// Most workers.
    pub workers_max: u32,
    /// How pools scale between the two.
    pub scaling: Scaling,
    /// For provider `local`.
    pub local: Option<LocalOptions>,
    /// For provider `kubernetes`.
    pub kubernetes: Option<KubernetesOptions>,
    /// All options as resolved, for the provider.
    pub options: Value,
    pub(crate) at: At,
}

impl Target {
    /// Whether this build can run on it. The others can be validated and planned.
    pub fn provider_available(&self) -> bool {
        matches!(self.provider.as_str(), crate::target::LOCAL | crate::target::KUBERNETES)
    }
}

/// How a target's pools scale: the section `adaptive` beyond its bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scaling {
    /// The planner's dials.
    pub parameters: scalable_core::planner::Parameters,
    /// Most workers of all pools together.
    pub max_total: Option<u32>,
}

/// What one worker has, as far as the manifest says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerSize {
    /// Thousandths of a cpu.
    pub milli_cpus: Option<u64>,
    /// Bytes.
    pub memory_bytes: Option<u64>,
    /// Whole gpus.
    pub gpus: u64,
    /// Custom resources.
    pub custom: BTreeMap<String, u64>,
}

/// Options of the local target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalOptions {
    /// Worker processes.
    pub max_workers: u32,
    /// Cpus of each.
    pub threads_per_worker: u32,
}

/// A component.
#[derive(Clone, Debug, Default)]
pub struct Component {
    /// Its name: what tasks are routed by.
    pub name: String,
    /// Image.
    pub image: Option<String>,
    /// Thousandths of a cpu, when named.
    pub milli_cpus: Option<u64>,
    /// Bytes, when named.
    pub memory_bytes: Option<u64>,
    /// Memory as written.
    pub memory_text: Option<String>,
    /// Host path to container path.
    pub mounts: Vec<(String, String)>,
    /// Environment of its tasks; braces mean nothing in it.
    pub env: Vec<(String, String)>,
    /// Labels.
    pub tags: Vec<String>,
    /// Files its commands need, relative to the manifest's directory.
    pub files: Vec<String>,
}

/// What a task runs.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Program and arguments.
    Argv(Vec<Text>),
    /// Text for `/bin/sh -c`.
    Shell(Text),
}

/// A task: one group of the run.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its name.
    pub name: String,
    /// Component that serves it.
    pub component: String,
    /// Nothing: planned, not run.
    pub command: Option<Command>,
    /// Environment, over that of the component.
    pub env: BTreeMap<String, Text>,
    pub(crate) parameters: Parameters,
    /// What it reads.
    pub inputs: Vec<TaskInput>,
    /// What its standard input is.
    pub stdin: Option<TaskInput>,
    /// What it writes, streams included.
    pub outputs: Vec<Output>,
    /// Output that standard output is, or empty.
    pub stdout: String,
    /// Output that standard error is, or empty.
    pub stderr: String,
    /// Files staged for it: those of its component and its own.
    pub(crate) files: Vec<Found>,
    /// Where its command starts.
    pub start_in: StartIn,
    /// What it waits for, by position in [`Manifest::tasks`].
    pub dependencies: Vec<Link>,
    /// Retries and limits.
    pub policy: Policy,
    /// Larger first.
    pub priority: i32,
    /// Most at a time; 0 is no limit.
    pub max_parallel: u32,
    /// Runs after failures too.
    pub always: bool,
    /// Exit codes that are success; empty is 0.
    pub success_codes: Vec<i32>,
    /// What one element asks for.
    pub requested: Requested,
    pub(crate) at: At,
}

impl Task {
    /// The parameters of its elements.
    pub fn space(&self) -> &Space {
        &self.parameters.space
    }

    /// Number of its elements.
    pub fn len(&self) -> u32 {
        self.parameters.space.len()
    }

    /// Always false: a group has at least one element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a task names of resources, before sizes are worked out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requested {
    /// Thousandths of a cpu.
    pub milli_cpus: Option<u64>,
    /// Bytes.
    pub memory_bytes: Option<u64>,
    /// Whole gpus.
    pub gpus: u64,
    /// Custom resources.
    pub custom: BTreeMap<String, u64>,
}

/// Something a task reads.
#[derive(Clone, Debug)]
pub struct TaskInput {
    /// Name; empty for standard input.
    pub name: String,
    /// Position in [`Manifest::tasks`].
    pub upstream: usize,
    /// Output of that task.
    pub output: String,
    /// Which of its elements.
    pub select: Select,
    /// Where it is put in the attempt's directory, or empty.
    pub as_path: String,
    /// It may be absent.
    pub optional: bool,
}

/// Which upstream elements an element reads or waits for.
#[derive(Clone, Debug, PartialEq)]
pub enum Select {
    /// All of them.
    All,
    /// Those that share its parameters.
    Projection(Projection),
}

/// A dependency between two tasks.
#[derive(Clone, Debug)]
pub struct Link {
    /// Position in [`Manifest::tasks`], smaller than the task's own.
    pub upstream: usize,
    /// Which elements.
    pub select: Select,
    /// In words: `element by element`, `fan-in over member`, `after all 200`.
    pub how: String,
}

/// Amounts for people and JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amounts {
    /// Thousandths of a cpu.
    pub milli_cpus: u64,
    /// Bytes; 0 where memory is not accounted.
    pub memory_bytes: u64,
    /// Whole gpus.
    pub gpus: u64,
    /// Custom resources.
    pub custom: BTreeMap<String, u64>,
}
