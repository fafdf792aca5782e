//! What the scheduler has announced: runs, groups, and objects of attempts that are still to come. Interned once, shared by all
//! attempts. What is wrong with an announcement is kept with it and said by each attempt that needs it: a bad template fails its
//! tasks, never the session.

use std::collections::BTreeSet;
use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustc_hash::FxHashMap;
use scalable_core::ids::{MILLISECOND, Micros, SECOND};
use scalable_proto::v1::{
    AnnounceGroup, AnnounceRun, InputChunk, ObjectRef, TaskTemplate, Text, piece::Kind, task_template::Command,
};
use scalable_template::{Space, needs_directory};

use crate::layout;
use crate::options::Options;
use crate::takeover::Earlier;

/// Most runs that are not released.
pub const RUNS_MAX: usize = 10_000;
/// Most groups of all of them that are not released.
pub const GROUPS_MAX: usize = 200_000;
/// Most objects announced for attempts whose dispatch has not come.
pub const OBJECTS_MAX: usize = 1 << 22;
/// SIGTERM to SIGKILL where the policy says nothing.
const GRACE: Micros = 10 * SECOND;

/// A run as far as its attempts need it.
#[derive(Debug)]
pub struct Run {
    /// Its number within the epoch.
    pub id: u32,
    /// Its name.
    pub name: String,
    announced: PathBuf,
    base: Option<PathBuf>,
    mark: Vec<u8>,
    sight: OnceLock<Sight>,
    /// Directories of failed attempts to keep.
    pub keep_failed: u32,
    /// Names of its groups by ordinal.
    pub groups: Vec<String>,
    /// Directory of the earlier run whose outputs may be taken over.
    pub takes_over: Option<PathBuf>,
    earlier: OnceLock<Earlier>,
}

/// Whether this worker sees the run's directory.
#[derive(Debug)]
struct Sight {
    directory: PathBuf,
    shared: bool,
    base: Option<PathBuf>,
}

/// The file in a run's directory by which a worker knows that it is that one.
const MARK: &str = ".here";

impl Run {
    /// Looks whether the run's directory is here. Blocks: for a helper thread, once. `own` is where the run lies otherwise.
    pub fn look(&self, own: PathBuf) {
        self.sight.get_or_init(|| {
            let seen = std::fs::read(self.announced.join(MARK)).is_ok_and(|mark| mark == self.mark);
            if seen {
                return self.here();
            }
            tracing::info!(run = %self.name, "the run's directory is not here: its files come and go over the network");
            // A manifest's directory that is not here either cannot be where a command starts.
            let base = self.base.clone().filter(|base| base.is_dir());
            Sight { directory: own, shared: false, base }
        });
    }

    fn here(&self) -> Sight {
        Sight { directory: self.announced.clone(), shared: true, base: self.base.clone() }
    }

    /// It was looked already.
    pub fn is_decided(&self) -> bool {
        self.sight.get().is_some()
    }

    /// This worker sees the run's directory: what lies there need not move. True until it was looked.
    pub fn is_shared(&self) -> bool {
        self.sight.get().is_none_or(|sight| sight.shared)
    }

    /// Where its records and outputs lie, or what stands for that here.
    pub fn directory(&self) -> &std::path::Path {
        self.sight.get().map_or(&self.announced, |sight| &sight.directory)
    }

    /// Where a command without a directory of its own starts; nothing is its own directory where it has one, else the agent's.
    pub fn base_directory(&self) -> Option<&std::path::Path> {
        self.sight.get().map_or(&self.base, |sight| &sight.base).as_deref()
    }

    /// What the earlier run has committed, read when it is first asked for: on a helper thread, it may take long.
    pub fn earlier(&self) -> Option<&Earlier> {
        let directory = self.takes_over.as_ref()?;
        Some(self.earlier.get_or_init(|| Earlier::read(directory)))
    }
}

/// A group as far as its attempts need it.
#[derive(Debug)]
pub struct Group {
    /// Its run.
    pub run: Arc<Run>,
    /// Its number within the epoch.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// The command and all it needs.
    pub template: TaskTemplate,
    /// Parameters by index.
    pub space: Space,
    /// Between SIGTERM and SIGKILL.
    pub grace: Micros,
    /// Its elements are calls of a function.
    pub is_function: bool,
    /// Attempts have a directory of their own.
    pub needs_directory: bool,
    /// Inputs whose list of paths is a file the command names.
    pub lists: BTreeSet<String>,
    /// The agent's environment without what the template sets itself.
    pub environment: Arc<[CString]>,
    /// Why no attempt of it can start.
    pub refusal: Option<String>,
}

/// The scheduler announced more than the bounds allow, or in a wrong order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CatalogError(String);

/// See the module.
#[derive(Debug)]
pub struct Catalog {
    runs: FxHashMap<u32, Arc<Run>>,
    groups: FxHashMap<u32, Arc<Group>>,
    /// Objects by handle and input, before the dispatch.
    objects: FxHashMap<u64, Vec<Vec<ObjectRef>>>,
    objects_count: usize,
    /// What an attempt gets of the agent's environment where its template sets nothing: one for all groups.
    environment: Arc<[CString]>,
}

impl Catalog {
    /// An empty one; every attempt gets the agent's own environment as it is now, without its secrets and what it was told of itself.
    pub fn new() -> Self {
        let of_agent = Options::variables();
        let passed = |name: &OsString| !of_agent.iter().any(|own| **own == *name) && !name.to_str().is_some_and(is_ours);
        let environment =
            std::env::vars_os().filter(|(name, _)| passed(name)).filter_map(|(name, value)| entry(name, value)).collect();
        Catalog {
            runs: FxHashMap::default(),
            groups: FxHashMap::default(),
            objects: FxHashMap::default(),
            objects_count: 0,
            environment,
        }
    }

    /// Forgets everything: a new session announces anew.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.groups.clear();
        self.objects.clear();
        self.objects_count = 0;
    }

    /// Takes a run.
    ///
    /// # Errors
    /// More than [`RUNS_MAX`].
    pub fn announce_run(&mut self, run: AnnounceRun) -> Result<(), CatalogError> {
        if self.runs.len() >= RUNS_MAX && !self.runs.contains_key(&run.run) {
            return Err(CatalogError(format!("more than {RUNS_MAX} runs were announced and not released")));
        }
        let base = PathBuf::from(&run.base_directory);
        let value = Run {
            id: run.run,
            name: run.name,
            announced: PathBuf::from(run.directory),
            base: Some(base).filter(|b| !b.as_os_str().is_empty()),
            mark: run.mark.to_vec(),
            sight: OnceLock::new(),
            keep_failed: run.keep_failed,
            groups: run.groups,
            takes_over: Some(PathBuf::from(run.takes_over)).filter(|d| d.is_absolute()),
            earlier: OnceLock::new(),
        };
        if value.mark.is_empty() {
            // A run without files, or a scheduler that shares every directory.
            let here = value.here();
            value.sight.get_or_init(|| here);
        }
        self.runs.insert(run.run, Arc::new(value));
        Ok(())
    }

    /// Takes a group.
    ///
    /// # Errors
    /// Its run is not known, or more than [`GROUPS_MAX`].
    pub fn announce_group(&mut self, group: AnnounceGroup) -> Result<(), CatalogError> {
        let Some(run) = self.runs.get(&group.run).cloned() else {
            return Err(CatalogError(format!("group {} was announced before its run {}", group.group, group.run)));
        };
        if self.groups.len() >= GROUPS_MAX && !self.groups.contains_key(&group.group) {
            return Err(CatalogError(format!("more than {GROUPS_MAX} groups were announced and not released")));
        }
        let template = group.template.unwrap_or_default();
        let space = Space::new(&group.parameters.unwrap_or_default());
        let is_function = matches!(template.command, Some(Command::Function(_)));
        // The group of a function is no directory's name.
        let mut refusal = layout::name("group", &group.name).err().map(|e| e.to_string()).filter(|_| !is_function);
        if !is_function && !run.announced.is_absolute() {
            refusal.get_or_insert_with(|| format!("run directory {:?} is not absolute", run.announced));
        }
        let space = space.or_else(|error| {
            refusal.get_or_insert_with(|| format!("the group's parameters are malformed: {error}"));
            Space::new(&Default::default())
        });
        let space = space.map_err(|error| CatalogError(format!("group {}: {error}", group.group)))?;
        let taken = |e: &&CString| {
            let name = e.as_bytes().split(|b| *b == b'=').next().unwrap_or_default();
            !std::str::from_utf8(name).is_ok_and(|name| template.env.contains_key(name))
        };
        let environment = match template.env.is_empty() {
            true => self.environment.clone(),
            false => self.environment.iter().filter(taken).cloned().collect(),
        };
        let value = Group {
            environment,
            is_function,
            needs_directory: needs_directory(&template),
            lists: lists(&template),
            grace: if group.grace_ms == 0 { GRACE } else { group.grace_ms.saturating_mul(MILLISECOND) },
            name: group.name,
            number: group.group,
            run,
            template,
            space,
            refusal,
        };
        self.groups.insert(group.group, Arc::new(value));
        Ok(())
    }

    /// Takes a part of what an attempt reads, before its dispatch.
    ///
    /// # Errors
    /// More than [`OBJECTS_MAX`] are waiting, or an input beyond any template's.
    pub fn input(&mut self, chunk: InputChunk) -> Result<(), CatalogError> {
        self.objects_count = self.objects_count.saturating_add(chunk.objects.len().max(1));
        if self.objects_count > OBJECTS_MAX || chunk.input > 65_535 {
            return Err(CatalogError(format!(
                "more than {OBJECTS_MAX} input objects wait for a dispatch, or input {} is none",
                chunk.input
            )));
        }
        let inputs = self.objects.entry(chunk.handle).or_default();
        let at = chunk.input as usize;
        if inputs.len() <= at {
            inputs.resize_with(at + 1, Vec::new);
        }
        inputs[at].extend(chunk.objects);
        Ok(())
    }

    /// The group of a dispatch.
    pub fn group(&self, id: u32) -> Option<&Arc<Group>> {
        self.groups.get(&id)
    }

    /// A run that is not released.
    pub fn run(&self, id: u32) -> Option<&Arc<Run>> {
        self.runs.get(&id)
    }

    /// Hands over what was announced for an attempt, by input.
    pub fn take_inputs(&mut self, handle: u64) -> Vec<Vec<ObjectRef>> {
        if self.objects.is_empty() {
            return Vec::new();
        }
        let inputs = self.objects.remove(&handle).unwrap_or_default();
        self.objects_count -= inputs.iter().map(|objects| objects.len().max(1)).sum::<usize>().min(self.objects_count);
        inputs
    }

    /// Forgets runs and their groups. Attempts that still run keep theirs.
    pub fn release(&mut self, runs: &[u32]) {
        for run in runs {
            self.runs.remove(run);
        }
        self.groups.retain(|_, group| !runs.contains(&group.run.id));
    }

    /// Forgets groups of which everything is over.
    pub fn forget_groups(&mut self, groups: &[u32]) {
        for group in groups {
            self.groups.remove(group);
        }
    }
}

impl Default for Catalog {
    fn default() -> Self {
        Self::new()
    }
}

fn entry(name: OsString, value: OsString) -> Option<CString> {
    // The token would let a task speak for the worker.
    if name.as_encoded_bytes().starts_with(b"SCALABLE_TOKEN") {
        return None;
    }
    let mut bytes = name.into_vec();
    bytes.push(b'=');
    bytes.extend(value.into_vec());
    CString::new(bytes).ok()
}

/// Names an attempt gets from the agent and nobody else.
pub fn is_ours(name: &str) -> bool {
    const OURS: [&str; 7] = ["RUN", "GROUP", "INDEX", "TASK_ID", "ATTEMPT", "FENCE", "WORKDIR"];
    name.strip_prefix("SCALABLE_").is_some_and(|rest| OURS.contains(&rest))
}

fn lists(template: &TaskTemplate) -> BTreeSet<String> {
    let command: &[Text] = match &template.command {
        Some(Command::Argv(argv)) => &argv.args,
        Some(Command::Shell(text)) => std::slice::from_ref(text),
        Some(Command::Function(_)) | None => &[],
    };
    let pieces = command.iter().chain(template.env.values()).flat_map(|text| &text.pieces);
    let named = pieces.filter_map(|piece| match &piece.kind {
        Some(Kind::InputList(name)) => Some(name.clone()),
        _ => None,
    });
    named.collect()
}
