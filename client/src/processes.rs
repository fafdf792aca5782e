//! A session with a scheduler and workers of its own on this machine, as processes. They end with the session, also when this
//! process is killed: the scheduler holds the other end of a pipe, and its workers die with it.

use std::fs;
use std::future::{Future, IntoFuture};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;

use scalable_provider::launch::{LaunchError, LocalLauncher, LocalScheduler};
use scalable_provider::local::LocalWorkers;

use crate::options::Memory;
use crate::session::{Component, Session, refused};
use crate::{Client, Error};

/// What a directory of a session begins with; the number of the process that made it follows.
const DIRECTORY: &str = "scalable-session-";

/// What a session with processes of its own consists of: made by [`Session::start`], started by awaiting it.
#[derive(Clone, Debug)]
#[must_use = "nothing happens before it is awaited"]
pub struct Start {
    workers: LocalWorkers,
    directory: Option<PathBuf>,
    components: Vec<Component>,
    fault: Option<String>,
}

impl Session {
    /// A session with a scheduler and workers of its own on this machine: one worker with all cpus unless said otherwise. `main` must
    /// begin with [`init!`](crate::init). The programs `scalable-scheduler` and `scalable-worker` are looked for in
    /// `SCALABLE_BIN_DIR`, else beside this program, else in the `PATH`.
    ///
    /// # Errors
    /// When awaited: [`Error::Refused`] when the programs are not there or do not start; [`Error::Unreachable`].
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), scalable::Error> {
    /// let session = scalable::Session::start().workers(2).cpus(4).memory("8GiB").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn start() -> Start {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let workers = LocalWorkers {
            workers: 1,
            milli_cpus: cpus as u64 * 1000,
            memory_bytes: None,
            gpus: 0,
            custom: Default::default(),
            components: vec!["*".to_owned()],
            pool: "local".to_owned(),
            scratch: None,
            worker_args: Vec::new(),
        };
        Start { workers, directory: None, components: Vec::new(), fault: None }
    }
}

impl Start {
    /// Number of workers.
    pub fn workers(mut self, workers: u32) -> Self {
        self.workers.workers = workers;
        self
    }

    /// Cpus of each worker.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.workers.milli_cpus = u64::from(cpus) * 1000;
        self
    }

    /// Memory of each worker: what its tasks may take together. Without it memory is not looked at.
    pub fn memory(mut self, memory: impl Into<Memory>) -> Self {
        match memory.into().bytes() {
            Ok(bytes) => self.workers.memory_bytes = Some(bytes),
            Err(text) => self.fault = Some(format!("memory is a figure like \"512MiB\" or \"2GB\", not {text:?}")),
        }
        self
    }

    /// An amount of a custom resource of each worker.
    pub fn resource(mut self, name: &str, amount: u64) -> Self {
        self.workers.custom.insert(name.to_owned(), amount);
        self
    }

    /// Where logs, records and outputs of the session go; made if need be, and kept. Commands with outputs or files need it. Without it
    /// logs are in a directory of their own that goes with the session, and nothing is recorded.
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    #[cfg(feature = "manifest")]
    pub(crate) fn with_components(mut self, components: Vec<Component>) -> Self {
        self.components = components;
        self
    }

    #[cfg(feature = "manifest")]
    pub(crate) fn with_workers(mut self, workers: LocalWorkers) -> Self {
        self.workers = workers;
        self
    }

    async fn run(self) -> Result<Session, Error> {
        if let Some(fault) = self.fault {
            return Err(refused("BAD_OPTION", fault, ""));
        }
        if self.workers.workers == 0 || self.workers.milli_cpus == 0 {
            return Err(refused("NO_WORKERS", "a session needs workers, and they need cpus".to_owned(), ""));
        }
        let kept = self.directory.clone();
        // Waits for the scheduler's first words: not for a thread of the runtime.
        let started = tokio::task::spawn_blocking(move || start(self.workers, self.directory)).await;
        let (processes, token) = started.unwrap_or_else(|error| Err(refused("NOT_STARTED", error.to_string(), "")))?;
        let client = Client::connect(processes.address(), &token).await?;
        Session::open(client, kept.as_deref(), Some(processes), self.components).await
    }
}

impl IntoFuture for Start {
    type Output = Result<Session, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// The processes of a session. Dropped, they end; a directory that is theirs alone is removed then.
#[derive(Debug)]
pub(crate) struct Processes {
    scheduler: Option<LocalScheduler>,
    directory: PathBuf,
    kept: bool,
}

impl Processes {
    fn address(&self) -> &str {
        self.scheduler.as_ref().map_or("", |scheduler| &scheduler.ready.address)
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        let Some(scheduler) = self.scheduler.take() else { return };
        let directory = (!self.kept).then(|| std::mem::take(&mut self.directory));
        // The scheduler waits for connections of this process to be closed, which a thread of the runtime does that may be this one.
        // When the process ends first, the scheduler sees that, and the next session here removes the directory.
        let stopping = std::thread::Builder::new().name("session-end".to_owned()).spawn(move || {
            if let Err(error) = scheduler.stop() {
                tracing::warn!(%error, "the session's scheduler did not end by itself");
            }
            if let Some(directory) = directory {
                let _ = fs::remove_dir_all(directory);
            }
        });
        if let Err(error) = stopping {
            tracing::warn!(%error, "no thread to wait for the end of the session's scheduler");
        }
    }
}

fn start(workers: LocalWorkers, directory: Option<PathBuf>) -> Result<(Processes, String), Error> {
    Session::initialised()?;
    let kept = directory.is_some();
    let failed = |error: io::Error| refused("NO_DIRECTORY", format!("the session's directory cannot be made: {error}"), "");
    let directory = match directory {
        Some(directory) => {
            fs::create_dir_all(&directory).map_err(failed)?;
            fs::canonicalize(directory).map_err(failed)?
        }
        None => own_directory().map_err(failed)?,
    };
    let (token_file, token) = make_token(&directory).map_err(failed)?;
    let launcher = LocalLauncher { run_directory: directory.clone(), token_file, workers, detached: false, idle_ttl: None };
    let refused = |error: LaunchError| refused("NOT_STARTED", error.message, error.help.as_deref().unwrap_or_default());
    let launched = launcher.preflight().and_then(|()| launcher.start());
    match launched {
        Ok(scheduler) => Ok((Processes { scheduler: Some(scheduler), directory, kept }, token)),
        Err(error) => {
            if !kept {
                let _ = fs::remove_dir_all(directory);
            }
            Err(refused(error))
        }
    }
}

/// A directory that only this user can look into. Those of processes that are gone are removed.
fn own_directory() -> io::Result<PathBuf> {
    let parent = std::env::temp_dir();
    for entry in fs::read_dir(&parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(DIRECTORY)?.split_once('-')?.0.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            // Another user's cannot be removed, and need not be.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let directory = parent.join(format!("{DIRECTORY}{}-{:016x}", std::process::id(), u64::from_le_bytes(random)));
    fs::DirBuilder::new().mode(0o700).create(&directory)?;
    Ok(directory)
}

fn make_token(directory: &Path) -> io::Result<(PathBuf, String)> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = directory.join("token");
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?.write_all(token.as_bytes())?;
    Ok((path, token))
}
