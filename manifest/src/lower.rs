//! From a manifest to what is submitted: a [`RunSpec`] and the files that must be in the run's directory before.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use scalable_proto::v1::{
    Argv, Dependency, FileRef, GroupSpec, Input, InputSource, NamedAmount, Piece, Resources, RunSpec, TaskTemplate, Text,
    dependency, input_source, piece, task_template,
};

use crate::diagnostic::{Diagnostic, Sink, show};
use crate::files::{Found, digest};
use crate::model::{Amounts, Command, Manifest, Select, Task, TaskInput};
use crate::plan::{Plan, requests, totals_of};

/// What the submission is beyond the manifest.
#[derive(Clone, Debug, Default)]
pub struct LowerOptions {
    /// Name of the run.
    pub run_name: String,
    /// Directory of the run, as scheduler and workers see it.
    pub directory: String,
    /// Where commands without a directory of their own start; nothing: the manifest's directory on a local target, else the image's.
    pub base_directory: Option<String>,
    /// Who asks.
    pub owner: String,
    /// Share among runs of equal priority; 0 is 1.
    pub weight: u32,
    /// Key of the submit.
    pub client_key: [u8; 16],
    /// New starts stop after this many failures; 0 is no limit.
    pub max_failures: u32,
    /// Directories of failed attempts to keep.
    pub keep_failed: u32,
    /// One element a group, outputs touched, nothing executed.
    pub stub: bool,
    /// The run goes on without its client.
    pub detached: bool,
    /// Directory of an earlier run whose outputs are taken over, or empty.
    pub takes_over: String,
    /// Labels of the run.
    pub labels: BTreeMap<String, String>,
}

/// What to submit, and what to store before.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The run.
    pub spec: RunSpec,
    /// Content to put under `files/<digest>` of the run's directory. Each digest once.
    pub files: Vec<FileToStore>,
}

/// One file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileToStore {
    /// Where it is.
    pub source: PathBuf,
    /// BLAKE3 of its content when it was read.
    pub digest: [u8; 32],
    /// Bytes.
    pub size: u64,
    /// Some group has it as an executable.
    pub executable: bool,
}

/// Lowers a planned manifest; the plan is what says that everything fits. Reads the content of `files`.
///
/// # Errors
/// A file that cannot be read any more or has grown, paths that are not UTF-8.
pub fn lower(manifest: &Manifest, plan: &Plan, options: &LowerOptions) -> Result<Submission, Vec<Diagnostic>> {
    let mut sink = Sink::new(false);
    // The plan has warned already.
    let takes = requests(manifest, &mut Sink::new(false));
    let mut stored: HashMap<&Path, Option<FileToStore>> = HashMap::new();
    let mut ordinals: HashMap<usize, u32> = HashMap::new();
    let mut groups: Vec<GroupSpec> = Vec::new();
    let shape = if options.stub { Shape::Stub } else { Shape::Whole };
    for (at, task) in manifest.tasks.iter().enumerate().filter(|(_, task)| task.command.is_some()) {
        ordinals.insert(at, groups.len() as u32);
        let mut group = group_spec(manifest, task, &takes[at], shape);
        renumber(&mut group, &ordinals);
        let refs = task.files.iter().filter_map(|file| file_ref(file, task, &mut stored, &mut sink)).collect();
        group.template.get_or_insert_default().files = refs;
        groups.push(group);
    }
    let base_directory = options.base_directory.clone().unwrap_or_else(|| match manifest.target.local {
        Some(_) => manifest.directory.to_str().map(str::to_owned).unwrap_or_else(|| {
            let message = format!("the manifest's directory {} is not UTF-8", manifest.directory.display());
            sink.error("E_FILE", "manifest", Default::default(), message);
            String::new()
        }),
        None => String::new(),
    });
    if sink.has_errors() {
        return Err(sink.into_sorted());
    }
    let spec = RunSpec {
        name: options.run_name.clone(),
        owner: options.owner.clone(),
        weight: options.weight.max(1),
        client_key: options.client_key.to_vec().into(),
        project: manifest.project.name.clone(),
        target: manifest.target.name.clone(),
        directory: options.directory.clone(),
        base_directory,
        max_failures: options.max_failures,
        keep_failed: options.keep_failed,
        totals: named(&manifest.target.totals),
        strict: manifest.strict,
        manifest_lock: plan.manifest_lock.clone(),
        detached: options.detached,
        labels: options.labels.clone().into_iter().collect(),
        takes_over: options.takes_over.clone(),
        groups,
        open: false,
        fetched: false,
    };
    let mut files: Vec<FileToStore> = stored.into_values().flatten().collect();
    files.sort_unstable_by_key(|file| file.digest);
    files.dedup_by(|one, other| {
        let same = one.digest == other.digest;
        other.executable |= same && one.executable;
        same
    });
    Ok(Submission { spec, files })
}

/// How much of a group is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// All of it.
    Whole,
    /// One element, nothing executed.
    Stub,
    /// Without parameters, for looking at commands.
    Template,
}

/// A task as a group. Upstream groups are numbered by position in the manifest, and files have no digests yet.
pub(crate) fn group_spec(manifest: &Manifest, task: &Task, takes: &Amounts, shape: Shape) -> GroupSpec {
    let parameters = match shape {
        Shape::Whole => task.parameters.clone(),
        Shape::Stub => task.parameters.first(),
        Shape::Template => crate::parameters::Parameters::none(),
    };
    let select = |select: &Select| if shape == Shape::Stub { Select::All } else { select.clone() };
    let dependencies = task.dependencies.iter().map(|link| Dependency {
        group: link.upstream as u32,
        kind: Some(match select(&link.select) {
            Select::All => dependency::Kind::Whole(dependency::Whole {}),
            Select::Projection(projection) => dependency::Kind::Projection(projection),
        }),
    });
    let source = |input: &TaskInput| InputSource {
        group: input.upstream as u32,
        output: input.output.clone(),
        optional: input.optional,
        select: Some(match select(&input.select) {
            // All of one is that one, under its own name: several lie in a directory.
            Select::All if manifest.tasks.get(input.upstream).is_some_and(|upstream| upstream.len() == 1) => {
                input_source::Select::Index(0)
            }
            Select::All => input_source::Select::All(true),
            Select::Projection(projection) => input_source::Select::Projection(projection),
        }),
    };
    let input = |input: &TaskInput| Input { name: input.name.clone(), source: Some(source(input)), r#as: input.as_path.clone() };
    let component = manifest.component(&task.component);
    let mut env: HashMap<String, Text> =
        component.into_iter().flat_map(|c| &c.env).map(|(name, value)| (name.clone(), literal(value))).collect();
    env.extend(task.env.clone());
    let file = |file: &Found| FileRef {
        path: file.path.clone(),
        digest: vec![0; 32].into(),
        size: file.size,
        executable: file.executable,
    };
    let template = TaskTemplate {
        component: task.component.clone(),
        command: task.command.as_ref().map(|command| match command {
            Command::Argv(args) => task_template::Command::Argv(Argv { args: args.clone() }),
            Command::Shell(text) => task_template::Command::Shell(text.clone()),
        }),
        env,
        inputs: task.inputs.iter().map(input).collect(),
        outputs: task.outputs.clone(),
        files: task.files.iter().map(file).collect(),
        start_in: task.start_in as i32,
        stdin: task.stdin.as_ref().map(source),
        stdout: task.stdout.clone(),
        stderr: task.stderr.clone(),
        success_codes: task.success_codes.clone(),
        image: component.and_then(|c| c.image.clone()).or_else(|| manifest.target.image.clone()).unwrap_or_default(),
        stub: shape == Shape::Stub,
    };
    GroupSpec {
        name: task.name.clone(),
        template: Some(template),
        length: parameters.space.len(),
        parameters: Some(parameters.wire),
        length_from: None,
        dependencies: dependencies.collect(),
        priority: task.priority,
        max_parallel: task.max_parallel,
        always: task.always,
        policy: Some(task.policy.clone()),
        resources: Some(Resources {
            milli_cpus: takes.milli_cpus,
            memory_bytes: takes.memory_bytes,
            gpus: takes.gpus,
            custom: named(&takes.custom),
        }),
        totals: totals_of(task, manifest),
        growing: false,
        deliver: false,
    }
}

/// Upstream positions in the manifest become ordinals in the run: tasks without a command are no groups.
fn renumber(group: &mut GroupSpec, ordinals: &HashMap<usize, u32>) {
    group.dependencies.retain(|dependency| ordinals.contains_key(&(dependency.group as usize)));
    for dependency in &mut group.dependencies {
        dependency.group = ordinals[&(dependency.group as usize)];
    }
    let Some(template) = &mut group.template else { return };
    for source in template.inputs.iter_mut().filter_map(|input| input.source.as_mut()).chain(&mut template.stdin) {
        // A task that runs never reads from one that does not; `validate` refuses that.
        source.group = ordinals.get(&(source.group as usize)).copied().unwrap_or(source.group);
    }
}

fn file_ref<'m>(
    file: &'m Found,
    task: &Task,
    stored: &mut HashMap<&'m Path, Option<FileToStore>>,
    sink: &mut Sink,
) -> Option<FileRef> {
    let entry = stored.entry(&file.source).or_insert_with(|| match digest(&file.source) {
        Ok((digest, size)) => Some(FileToStore { source: file.source.clone(), digest, size, executable: file.executable }),
        Err(error) => {
            let path = format!("tasks.{}.files", task.name);
            sink.error("E_FILE", &path, task.at, format!("could not read '{}': {error}", show(&file.path)));
            None
        }
    });
    let content = entry.as_ref()?;
    if content.size != file.size {
        let path = format!("tasks.{}.files", task.name);
        let message = format!("'{}' changed while it was read: {} bytes, then {}", show(&file.path), file.size, content.size);
        sink.error("E_FILE", &path, task.at, message).help("try again when nothing writes it");
        return None;
    }
    Some(FileRef {
        path: file.path.clone(),
        digest: content.digest.to_vec().into(),
        size: content.size,
        executable: file.executable,
    })
}

fn literal(text: &str) -> Text {
    Text { pieces: vec![Piece { kind: Some(piece::Kind::Literal(text.to_owned())) }] }
}

fn named(amounts: &BTreeMap<String, u64>) -> Vec<NamedAmount> {
    amounts.iter().map(|(name, amount)| NamedAmount { name: name.clone(), amount: *amount }).collect()
}
