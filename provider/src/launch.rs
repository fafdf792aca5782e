//! The local target's launcher, for the command line and for programs with a session of their own: the scheduler as a child process in a session of its own, tied to this process by a pipe.
//!
//! The pipe is the scheduler's standard input and carries at most one line. Its end without that line means that the command
//! line is gone, however it died: the scheduler cancels its runs, stops its workers and ends. The line `detach` before the end
//! means that the run is to go on by itself. A scheduler that is started detached has no pipe.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::sync::watch;

use crate::local::LocalWorkers;
use crate::{Boxed, Launcher};

/// Longest wait until the scheduler says where it answers.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait until it has stopped everything: the grace of the tasks and a little more.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// What of its log is shown when it does not start.
const LOG_TAIL_BYTES: u64 = 2000;
/// Longest line it may print when it is ready.
const READY_LINE_BYTES_MAX: u64 = 64 << 10;

/// Why a scheduler could not be started, or did not end as it should.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct LaunchError {
    /// What, where, why.
    pub message: String,
    /// What to do now.
    pub help: Option<String>,
}

impl LaunchError {
    fn new(message: impl Into<String>) -> LaunchError {
        LaunchError { message: message.into(), help: None }
    }

    fn io(doing: impl std::fmt::Display, error: &std::io::Error) -> LaunchError {
        LaunchError::new(format!("cannot {doing}: {error}"))
    }

    fn help(mut self, help: impl Into<String>) -> LaunchError {
        self.help = Some(help.into());
        self
    }
}

/// How the scheduler of a run is started on this machine.
#[derive(Clone, Debug)]
pub struct LocalLauncher {
    /// The run's directory: logs and state lie in it.
    pub run_directory: PathBuf,
    /// File with the token.
    pub token_file: PathBuf,
    /// Its workers.
    pub workers: LocalWorkers,
    /// It goes on when this process ends.
    pub detached: bool,
    /// It ends by itself when it had no live run for so long.
    pub idle_ttl: Option<Duration>,
}

/// What the scheduler prints when it is ready. Fields added later are not looked at.
#[derive(Clone, Debug, Deserialize)]
pub struct Ready {
    /// Where clients and workers connect.
    pub address: String,
    /// Where people look.
    pub http: String,
    /// Its process.
    pub pid: u32,
}

/// A scheduler that was started here.
#[derive(Debug)]
pub struct LocalScheduler {
    /// Where it answers.
    pub ready: Ready,
    lifeline: Option<ChildStdin>,
    exited: watch::Receiver<Option<ExitStatus>>,
    log: PathBuf,
}

impl Launcher for LocalLauncher {
    type Error = LaunchError;
    type Scheduler = LocalScheduler;

    fn preflight(&self) -> Boxed<'_, Result<(), LaunchError>> {
        Box::pin(async move { LocalLauncher::preflight(self) })
    }

    fn start(&self) -> Boxed<'_, Result<LocalScheduler, LaunchError>> {
        let launcher = self.clone();
        Box::pin(async move {
            // Waits for the scheduler's first words: not for a thread of the runtime.
            let started = tokio::task::spawn_blocking(move || LocalLauncher::start(&launcher)).await;
            started.unwrap_or_else(|error| Err(LaunchError::new(format!("the wait for the scheduler broke: {error}"))))
        })
    }

    fn destroy(&self, scheduler: LocalScheduler) -> Boxed<'_, Result<(), LaunchError>> {
        Box::pin(scheduler.stop_meanwhile())
    }
}

impl LocalLauncher {
    /// Makes sure that the programs are there.
    ///
    /// # Errors
    /// When one is not.
    pub fn preflight(&self) -> Result<(), LaunchError> {
        program("scalable-scheduler")?;
        program("scalable-worker")?;
        Ok(())
    }

    /// Starts a scheduler and waits, on this thread, until it says that it is ready.
    ///
    /// # Errors
    /// Why it did not start, with the end of its log.
    pub fn start(&self) -> Result<LocalScheduler, LaunchError> {
        let log = self.run_directory.join("scheduler.log");
        let mut child = self.spawn(&log)?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let lifeline = child.stdin.take();
        let stdout = child.stdout.take();
        let exited = reap(child);
        let line = stdout.and_then(|stdout| first_line(stdout, READY_TIMEOUT));
        let ready = line.as_deref().and_then(|line| serde_json::from_str::<Ready>(line).ok());
        match ready {
            Some(ready) => Ok(LocalScheduler { ready, lifeline, exited, log }),
            None => {
                drop(lifeline);
                Err(not_started(pid, &exited, &log))
            }
        }
    }

    fn spawn(&self, log: &Path) -> Result<Child, LaunchError> {
        let program = program("scalable-scheduler")?;
        let log_file = File::create(log).map_err(|error| LaunchError::io(format!("write {}", log.display()), &error))?;
        let workers = serde_json::to_string(&self.workers)
            .map_err(|error| LaunchError::new(format!("the workers cannot be described: {error}")))?;
        let mut command = Command::new(&program);
        command.arg("--any-port").arg("--token-file").arg(&self.token_file);
        command.arg("--state-dir").arg(self.run_directory.join("scheduler")).arg("--local-workers").arg(workers);
        if let Some(idle) = self.idle_ttl {
            command.arg("--exit-when-done").arg("--idle-ttl").arg(idle.as_secs().to_string());
        } else if self.detached {
            command.arg("--exit-when-done");
        }
        if !self.detached {
            command.arg("--lifeline");
        }
        command.stdin(if self.detached { Stdio::null() } else { Stdio::piped() });
        command.stdout(Stdio::piped()).stderr(log_file);
        // SAFETY: setsid is async-signal-safe and touches no memory of the parent.
        unsafe {
            command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into));
        }
        command.spawn().map_err(|error| LaunchError::io(format!("start {}", program.display()), &error))
    }
}

impl LocalScheduler {
    /// Completes when the scheduler has ended.
    pub async fn exited(&self) -> ExitStatus {
        let mut exited = self.exited.clone();
        loop {
            if let Some(status) = *exited.borrow_and_update() {
                return status;
            }
            if exited.changed().await.is_err() {
                // The thread that waits for it tells the status before it ends.
                std::future::pending::<()>().await;
            }
        }
    }

    /// True when it is gone.
    pub fn has_exited(&self) -> bool {
        self.exited.borrow().is_some()
    }

    /// The end of its log, for messages.
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }

    /// Lets it go on by itself.
    ///
    /// # Errors
    /// When it is gone.
    pub fn detach(mut self) -> Result<(), LaunchError> {
        match self.lifeline.take() {
            None => Ok(()),
            Some(mut lifeline) => lifeline
                .write_all(b"detach\n")
                .and_then(|()| lifeline.flush())
                .map_err(|error| LaunchError::io("tell the scheduler to go on alone", &error)),
        }
    }

    /// Ends it and waits until it is gone; kills it when it does not end in time.
    ///
    /// # Errors
    /// When it had to be killed.
    pub fn stop(mut self) -> Result<(), LaunchError> {
        self.lifeline = None;
        if self.wait(STOP_TIMEOUT) {
            return Ok(());
        }
        let pid = Pid::from_raw(self.ready.pid.cast_signed());
        // It has not been reaped, so the number is still its own.
        let _ = kill(pid, Signal::SIGKILL);
        self.wait(STOP_TIMEOUT);
        let message = format!("the scheduler (process {pid}) did not stop within {} s and was killed", STOP_TIMEOUT.as_secs());
        Err(LaunchError::new(message).help(format!("its log is {}", self.log.display())))
    }

    /// As [`LocalScheduler::stop`], with the runtime going on meanwhile: the scheduler waits for the connections of this process to
    /// be closed, and that is the runtime's work.
    ///
    /// # Errors
    /// When it had to be killed.
    pub async fn stop_meanwhile(self) -> Result<(), LaunchError> {
        let stopped = tokio::task::spawn_blocking(move || self.stop()).await;
        stopped.unwrap_or_else(|error| Err(LaunchError::new(format!("the wait for the scheduler's end broke: {error}"))))
    }

    fn wait(&self, longest: Duration) -> bool {
        let until = Instant::now() + longest;
        while self.exited.borrow().is_none() {
            if Instant::now() >= until {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

fn reap(mut child: Child) -> watch::Receiver<Option<ExitStatus>> {
    let (tell, exited) = watch::channel(None);
    thread::spawn(move || {
        if let Ok(status) = child.wait() {
            tell.send_replace(Some(status));
        }
    });
    exited
}

fn first_line(stdout: impl Read + Send + 'static, longest: Duration) -> Option<String> {
    let (tell, line) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        if BufReader::new(stdout.take(READY_LINE_BYTES_MAX)).read_line(&mut line).is_ok() {
            // Whoever asked may have given up.
            let _ = tell.send(line);
        }
    });
    line.recv_timeout(longest).ok().filter(|line| !line.is_empty())
}

/// Makes sure that a scheduler that is of no use is gone, and says what became of it.
fn not_started(pid: Pid, exited: &watch::Receiver<Option<ExitStatus>>, log: &Path) -> LaunchError {
    let gone_within = |longest: Duration| {
        let until = Instant::now() + longest;
        while exited.borrow().is_none() && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        exited.borrow().is_some()
    };
    // One that failed ends by itself at once; until it is reaped the number is its own.
    let by_itself = gone_within(Duration::from_secs(1));
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        if exited.borrow().is_none() {
            let _ = kill(pid, signal);
            gone_within(Duration::from_secs(5));
        }
    }
    let how = match *exited.borrow() {
        Some(status) if by_itself => format!("the scheduler did not start: {status}"),
        _ => format!("the scheduler did not say within {} s that it is ready", READY_TIMEOUT.as_secs()),
    };
    LaunchError::new(format!("{how}\n{}", tail(log).trim_end())).help(format!("its log is {}", log.display()))
}

/// The last lines of a file.
pub fn tail(path: &Path) -> String {
    let read = || {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

/// A program of Scalable: in `SCALABLE_BIN_DIR`, beside this one (for an example, where cargo puts programs), or in the PATH.
///
/// # Errors
/// When it is in none of them.
pub fn program(name: &str) -> Result<PathBuf, LaunchError> {
    let given = std::env::var_os("SCALABLE_BIN_DIR").map(PathBuf::from);
    let beside = std::env::current_exe().ok().and_then(|path| fs::canonicalize(path).ok());
    let beside = beside.and_then(|path| path.parent().map(Path::to_owned));
    // Cargo builds examples one directory below the programs.
    let above = beside.as_deref().filter(|directory| directory.ends_with("examples")).and_then(Path::parent).map(Path::to_owned);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = match given {
        Some(directory) => vec![directory],
        None => beside.into_iter().chain(above).chain(std::env::split_paths(&path)).collect(),
    };
    places.iter().map(|directory| directory.join(name)).find(|path| is_executable(path)).ok_or_else(|| {
        LaunchError::new(format!("{name} is not installed beside `scalable` nor in the PATH"))
            .help("put the three programs into one directory, or name it in SCALABLE_BIN_DIR")
    })
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Of these processes those that still are programs of Scalable: a number may have been given to another process since.
pub fn still_alive(pids: &[u32]) -> Vec<u32> {
    let ours = |pid: &u32| {
        let command = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        let zombie = fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])));
        // The kernel cuts the name to 15 bytes.
        !zombie && command.starts_with(b"scalable-")
    };
    pids.iter().copied().filter(ours).collect()
}

/// Waits until none of these processes is left; answers with those that are.
pub fn wait_gone(pids: &[u32], longest: Duration) -> Vec<u32> {
    let until = Instant::now() + longest;
    loop {
        let left = still_alive(pids);
        if left.is_empty() || Instant::now() >= until {
            return left;
        }
        thread::sleep(Duration::from_millis(10));
    }
}
