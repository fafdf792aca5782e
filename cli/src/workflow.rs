//! From a manifest to what is submitted: reading it with this machine and this environment in mind, showing what is wrong with
//! it, and putting what a run needs into its directory.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use scalable_manifest::{Diagnostic, FileToStore, LoadOptions, Loaded, LowerOptions, Manifest, Plan};
use scalable_proto::v1;
use scalable_provider::local::LocalWorkers;

use crate::args::ManifestArgs;
use crate::diagnostics;
use crate::exit::Failure;
use crate::records::{self, GroupRecord, Parameters, ParametersRecord, RunRecord, SCHEMA_VERSION};
use crate::runs::RunDirectory;
use crate::ui::Ui;

pub use scalable_manifest::Submission;

/// Directories of failed attempts that are kept where nobody says how many.
const KEEP_FAILED: u32 = 10;

/// What a run is beyond its manifest.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// New starts stop after this many failed tasks; 0 is no limit.
    pub max_failures: u32,
    /// Directories of failed attempts to keep, where it is said.
    pub keep_failed: Option<u32>,
    /// One element a group, outputs touched, nothing executed.
    pub stub: bool,
    /// Directory of a run whose committed outputs are taken over.
    pub takes_over: Option<PathBuf>,
}

/// A manifest without errors, and its plan.
pub struct Workflow {
    pub manifest: Manifest,
    pub plan: Plan,
    /// The manifest as it was named.
    source: String,
}

/// Reads and checks a manifest.
pub fn read(args: &ManifestArgs) -> Loaded {
    read_with(&args.manifest, args.target.clone(), args.overlay.clone(), args.strict, &|name| std::env::var(name).ok())
}

fn read_with(
    path: &Path,
    target: Option<String>,
    overlay: Option<String>,
    strict: bool,
    env: &dyn Fn(&str) -> Option<String>,
) -> Loaded {
    scalable_manifest::load(path, &LoadOptions { target, overlay, env, machine: crate::machine::this(), strict })
}

/// Everything that is to be said about a manifest, the findings of its plan too, and the plan where there is one.
pub fn judge(loaded: &Loaded) -> (Vec<Diagnostic>, Option<Plan>) {
    match loaded.manifest.as_ref().map(scalable_manifest::plan) {
        Some(Ok(plan)) => (plan.warnings.clone(), Some(plan)),
        Some(Err(found)) => (found, None),
        None => (loaded.diagnostics.clone(), None),
    }
}

/// Shows all findings on stderr.
pub fn show_diagnostics(ui: Ui, path: &Path, source_text: &str, found: &[Diagnostic]) {
    if !found.is_empty() {
        ui.show(diagnostics::render(ui, &path.display().to_string(), source_text, found));
    }
}

/// Reads, checks and plans a manifest; findings go to stderr.
///
/// # Errors
/// When it has errors.
pub fn load(ui: Ui, args: &ManifestArgs) -> Result<Workflow, Failure> {
    planned(ui, &args.manifest, read(args))
}

fn planned(ui: Ui, path: &Path, loaded: Loaded) -> Result<Workflow, Failure> {
    let (found, plan) = judge(&loaded);
    show_diagnostics(ui, path, &loaded.source_text, &found);
    let (Some(manifest), Some(plan)) = (loaded.manifest, plan) else {
        return Err(Failure::usage(format!("{} is not valid: {}", path.display(), diagnostics::count(&found))));
    };
    let source = crate::runs::absolute(path)?.display().to_string();
    Ok(Workflow { manifest, plan, source })
}

/// The workflow of a run that is over, as it was resolved then.
///
/// The copy in the run's directory has its environment filled in already: what still looks like a variable in it is meant as it
/// stands. It is read from beside the manifest, where `files` and `from` begin.
///
/// # Errors
/// When there is no manifest, or it is not valid any more.
pub fn load_of_run(ui: Ui, directory: &RunDirectory, record: &RunRecord) -> Result<Workflow, Failure> {
    let path = directory.file("manifest.yaml");
    let text = fs::read_to_string(&path).map_err(|error| {
        Failure::io(format!("read {}", path.display()), &error).help("only runs of a manifest can be run again")
    })?;
    let beside = PathBuf::from(&record.base_directory).join(format!(".scalable-retry-{}.yaml", std::process::id()));
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&beside)?;
        file.write_all(text.replace("${", "$${").as_bytes())
    };
    write().map_err(|error| {
        Failure::io(format!("read the manifest from {}", record.base_directory), &error)
            .help("the directory of the run's manifest must be there and writable: its files are needed again")
    })?;
    let path_of_programs = |name: &str| (name == "PATH").then(|| std::env::var("PATH").ok())?;
    // Overlays were merged into the copy; merging them again changes nothing.
    let target = Some(record.target_name.clone());
    let loaded = read_with(&beside, target, record.overlay.clone(), record.strict, &path_of_programs);
    // It was written a moment ago and only this process knows its name.
    let _ = fs::remove_file(&beside);
    let workflow = planned(ui, &path, loaded)?;
    Ok(Workflow { source: record.source_manifest_path.clone(), ..workflow })
}

impl Workflow {
    /// Name of its target.
    pub fn target(&self) -> String {
        self.plan.target.clone()
    }

    /// The project as part of a run's name.
    pub fn project(&self) -> String {
        self.manifest.project.slug()
    }

    /// This build can run it.
    ///
    /// # Errors
    /// When it can only be planned, or names no image of the scheduler that needs one.
    pub fn check_runnable(&self) -> Result<(), Failure> {
        if let Some(options) = &self.manifest.target.kubernetes {
            return crate::kubernetes::scheduler_image(options, &self.plan.target).map(drop);
        }
        if self.plan.provider_available {
            return Ok(());
        }
        let (target, provider) = (&self.plan.target, &self.plan.provider);
        let local: Vec<&str> = self.manifest.target_names.iter().map(String::as_str).filter(|name| name != target).collect();
        let others =
            if local.is_empty() { String::new() } else { format!("; the manifest's other targets are {}", local.join(", ")) };
        Err(Failure::usage(format!(
            "target {target} has the provider {provider}, which this build cannot run on; it validates and plans"
        ))
        .help(format!("run it on a target with provider: local{others}")))
    }

    /// What run.json says before there is a scheduler.
    pub fn record(&self, name: &str, wanted: &Wanted) -> RunRecord {
        RunRecord {
            schema_version: SCHEMA_VERSION,
            run_id: name.to_owned(),
            project_name: self.manifest.project.name.clone(),
            target_name: self.plan.target.clone(),
            provider_name: self.plan.provider.clone(),
            manifest_lock: self.plan.manifest_lock.clone(),
            source_manifest_path: self.source.clone(),
            base_directory: self.manifest.directory.display().to_string(),
            overlay: self.manifest.target.overlay.clone(),
            strict: self.manifest.strict,
            started_at: Timestamp::now().to_string(),
            status: "starting".to_owned(),
            tasks_recorded: "all".to_owned(),
            takes_over: wanted.takes_over.as_ref().map(|path| path.display().to_string()),
            stub: wanted.stub,
            ..RunRecord::default()
        }
    }

    /// What is submitted.
    ///
    /// # Errors
    /// When a file of it cannot be read any more.
    pub fn submission(&self, ui: Ui, directory: &RunDirectory, wanted: &Wanted) -> Result<Submission, Failure> {
        let mut client_key = [0; 16];
        getrandom::fill(&mut client_key).map_err(|error| Failure::infrastructure(format!("no random bytes: {error}")))?;
        let options = LowerOptions {
            run_name: directory.name.clone(),
            directory: text_of(&directory.path)?,
            owner: owner(),
            client_key,
            max_failures: wanted.max_failures,
            keep_failed: wanted.keep_failed.unwrap_or(KEEP_FAILED),
            stub: wanted.stub,
            // Whether the run ends with the command line is decided by the scheduler's lifeline, not by a session that may
            // be lost for a while.
            detached: true,
            takes_over: wanted.takes_over.as_deref().map(text_of).transpose()?.unwrap_or_default(),
            ..LowerOptions::default()
        };
        scalable_manifest::lower(&self.manifest, &self.plan, &options).map_err(|found| {
            ui.show(diagnostics::render(ui, &self.source, "", &found));
            Failure::usage(format!("{} cannot be submitted: {}", self.source, diagnostics::count(&found)))
        })
    }

    /// Groups as run.json lists them.
    pub fn groups(submission: &Submission) -> Vec<GroupRecord> {
        let names = |group: &v1::GroupSpec| match Parameters::from_wire(group.parameters.as_ref()) {
            Parameters::None => Vec::new(),
            Parameters::Product(axes) => axes.iter().map(|axis| axis.name().to_owned()).collect(),
            Parameters::Table { names, .. } => names,
        };
        let record =
            |group: &v1::GroupSpec| GroupRecord { name: group.name.clone(), length: group.length, parameters: names(group) };
        submission.spec.groups.iter().map(record).collect()
    }

    /// Writes manifest, plan, lock, parameters and the content of `files` into the run's directory.
    ///
    /// # Errors
    /// When the disk does not take them, or a file has changed since it was read.
    pub fn write_files(&self, directory: &RunDirectory, submission: &Submission) -> Result<(), Failure> {
        let write = |name: &str, content: &[u8]| {
            let path = directory.file(name);
            fs::write(&path, content).map_err(|error| Failure::io(format!("write {}", path.display()), &error))
        };
        write("manifest.yaml", self.manifest.to_yaml().as_bytes())?;
        write("manifest.lock", format!("{}\n", self.plan.manifest_lock).as_bytes())?;
        let groups = submission.spec.groups.iter();
        let groups: BTreeMap<String, Parameters> =
            groups.map(|group| (group.name.clone(), Parameters::from_wire(group.parameters.as_ref()))).collect();
        for (name, document) in [
            ("plan.json", serde_json::to_value(&self.plan)),
            ("parameters.json", serde_json::to_value(ParametersRecord { schema_version: SCHEMA_VERSION, groups })),
        ] {
            let path = directory.file(name);
            let written = document.map_err(std::io::Error::from).and_then(|document| records::write_json(&path, &document));
            written.map_err(|error| Failure::io(format!("write {}", path.display()), &error))?;
        }
        if submission.files.is_empty() {
            return Ok(());
        }
        let files = directory.file("files");
        fs::create_dir_all(&files).map_err(|error| Failure::io(format!("make {}", files.display()), &error))?;
        submission.files.iter().try_for_each(|file| store(&files, file))
    }

    /// Workers of the local target.
    ///
    /// # Errors
    /// When the target is not local.
    pub fn local_workers(&self) -> Result<LocalWorkers, Failure> {
        let planned =
            self.plan.local.as_ref().ok_or_else(|| Failure::usage(format!("target {} is not local", self.plan.target)))?;
        Ok(LocalWorkers {
            workers: planned.workers,
            milli_cpus: planned.milli_cpus,
            memory_bytes: Some(planned.memory_bytes).filter(|bytes| *bytes > 0),
            gpus: planned.gpus,
            custom: planned.custom.clone(),
            components: vec!["*".to_owned()],
            pool: self.plan.pools.first().map_or_else(|| self.plan.target.clone(), |pool| pool.name.clone()),
            scratch: None,
            worker_args: Vec::new(),
        })
    }
}

/// Copies one file's content to where workers find it, and checks that it still is what its digest says.
fn store(files: &Path, file: &FileToStore) -> Result<(), Failure> {
    let name: String = file.digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let target = files.join(name);
    let copy = || {
        let mut source = fs::File::open(&file.source)?;
        let mode = if file.executable { 0o555 } else { 0o444 };
        let mut stored = OpenOptions::new().write(true).create_new(true).mode(mode).open(&target)?;
        let mut hasher = blake3::Hasher::new();
        let mut chunk = vec![0; 1 << 16];
        loop {
            let read = source.read(&mut chunk)?;
            if read == 0 {
                return Ok(hasher.finalize());
            }
            hasher.update(&chunk[..read]);
            stored.write_all(&chunk[..read])?;
        }
    };
    let digest = copy().map_err(|error: std::io::Error| Failure::io(format!("copy {}", file.source.display()), &error))?;
    if *digest.as_bytes() == file.digest {
        return Ok(());
    }
    Err(Failure::usage(format!("{} was changed while the run was being prepared", file.source.display()))
        .help("start the run again"))
}

fn text_of(path: &Path) -> Result<String, Failure> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Failure::usage(format!("the path {} is not UTF-8", path.display())).help("choose another directory with --runs-dir")
    })
}

/// Who runs it, for the records and for fair sharing.
fn owner() -> String {
    let uid = nix::unistd::getuid();
    nix::unistd::User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}
