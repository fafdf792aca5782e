//! A session on the target of a manifest, with its components.

use std::future::{Future, IntoFuture};
use std::path::{Path, PathBuf};
use std::pin::Pin;

use scalable_manifest::{LoadOptions, Loaded, Machine, Severity};
use scalable_provider::local::LocalWorkers;

use crate::Error;
use crate::session::{Component, Session, refused};

/// A session that a manifest describes: made by [`Session::from_manifest`], started by awaiting it.
#[derive(Clone, Debug)]
#[must_use = "nothing happens before it is awaited"]
pub struct FromManifest {
    path: PathBuf,
    target: Option<String>,
    directory: Option<PathBuf>,
}

impl Session {
    /// A session on a target of a manifest: its workers are as the manifest says, and a task's `component` is one of the manifest's,
    /// from which it has its environment and, where it names none, its cpus and memory. Tasks of the manifest are not run.
    ///
    /// # Errors
    /// When awaited: [`Error::Refused`] when the manifest is not valid, or names a target that a program cannot start; as
    /// [`Session::start`].
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), scalable::Error> {
    /// let session = scalable::Session::from_manifest("scalable.yaml").target("local").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_manifest(path: impl Into<PathBuf>) -> FromManifest {
        FromManifest { path: path.into(), target: None, directory: None }
    }
}

impl FromManifest {
    /// Which target; else `SCALABLE_TARGET`, else the local one, else the first.
    pub fn target(mut self, target: &str) -> Self {
        self.target = Some(target.to_owned());
        self
    }

    /// As [`Start::directory`](crate::Start::directory).
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    async fn run(self) -> Result<Session, Error> {
        let FromManifest { path, target, directory } = self;
        let (workers, components) = read(&path, target)?;
        let start = Session::start().with_workers(workers).with_components(components);
        match directory {
            Some(directory) => start.directory(directory).await,
            None => start.await,
        }
    }
}

impl IntoFuture for FromManifest {
    type Output = Result<Session, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// The workers of the target, and the components.
fn read(path: &Path, target: Option<String>) -> Result<(LocalWorkers, Vec<Component>), Error> {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let machine = Machine { milli_cpus: cpus as u64 * 1000, memory_bytes: memory_of_machine() };
    let env = |name: &str| std::env::var(name).ok();
    let loaded = scalable_manifest::load(path, &LoadOptions { target, overlay: None, env: &env, machine, strict: false });
    let Loaded { manifest, mut diagnostics, .. } = loaded;
    let plan = manifest.as_ref().map(scalable_manifest::plan);
    let plan = plan.and_then(|planned| planned.map_err(|found| diagnostics.extend(found)).ok());
    let (Some(manifest), Some(plan)) = (manifest, plan) else {
        let errors = diagnostics.iter().filter(|found| found.severity == Severity::Error);
        let lines: Vec<String> = errors.map(ToString::to_string).collect();
        let message = format!("{} is not valid:\n{}", path.display(), lines.join("\n"));
        return Err(refused("BAD_MANIFEST", message, "`scalable validate` shows the places"));
    };
    let Some(local) = plan.local else {
        let message = format!("a program cannot start target {} itself: its provider is {}", plan.target, plan.provider);
        let help = format!("start it so: scalable run {} --target {} --workflow -- PROGRAM", path.display(), plan.target);
        return Err(refused("TARGET_NOT_LOCAL", message, &help));
    };
    let workers = LocalWorkers {
        workers: local.workers,
        milli_cpus: local.milli_cpus,
        memory_bytes: Some(local.memory_bytes).filter(|bytes| *bytes > 0),
        gpus: local.gpus,
        custom: local.custom,
        components: vec!["*".to_owned()],
        pool: plan.pools.first().map_or_else(|| plan.target.clone(), |pool| pool.name.clone()),
        scratch: None,
        worker_args: Vec::new(),
    };
    let component = |component: &scalable_manifest::Component| Component {
        name: component.name.clone(),
        milli_cpus: component.milli_cpus,
        memory_bytes: component.memory_bytes,
        env: component.env.clone(),
    };
    Ok((workers, manifest.components.iter().map(component).collect()))
}

/// Memory of this machine, bytes; as much as can be said where it does not say.
fn memory_of_machine() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.and_then(|kib| kib.checked_mul(1024)).unwrap_or(u64::MAX)
}
