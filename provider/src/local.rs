//! The local target: workers are child processes of the scheduler.
//!
//! One thread starts processes and lives as long as the scheduler, because the parent-death signal of a child fires when the
//! *thread* that forked it ends. Another thread reaps. The process is a subreaper, so what a dead worker leaves behind
//! becomes its child: before a death is reported, every such orphan is killed. A replacement therefore never shares the
//! machine with its predecessor's tasks.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc as std_mpsc};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::{Boxed, Cause, Observation, Operation, Provider, Reason, ReasonClass};

/// What the workers of the local target look like.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalWorkers {
    /// How many.
    pub workers: u32,
    /// Thousandths of a cpu of each.
    pub milli_cpus: u64,
    /// Memory of each, bytes; nothing where memory is not accounted.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Gpus of each.
    #[serde(default)]
    pub gpus: u64,
    /// Custom resources of each.
    #[serde(default)]
    pub custom: BTreeMap<String, u64>,
    /// Components each serves.
    #[serde(default = "every_component")]
    pub components: Vec<String>,
    /// Name of the pool.
    #[serde(default = "pool_name")]
    pub pool: String,
    /// Directory for scratch files.
    #[serde(default)]
    pub scratch: Option<String>,
    /// Further arguments of each.
    #[serde(default)]
    pub worker_args: Vec<String>,
}

fn every_component() -> Vec<String> {
    vec!["*".to_owned()]
}

fn pool_name() -> String {
    "local".to_owned()
}

/// Where the workers find their scheduler, and what they are.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// The program `scalable-worker`.
    pub program: PathBuf,
    /// The scheduler's address.
    pub address: String,
    /// File with the token.
    pub token_file: PathBuf,
    /// Directory of the workers' logs.
    pub log_directory: PathBuf,
    /// What they look like.
    pub workers: LocalWorkers,
}

/// The provider of the local target.
pub struct LocalProvider {
    requests: std_mpsc::Sender<Request>,
    observations: Mutex<Option<mpsc::Receiver<Observation>>>,
}

enum Request {
    Apply(Vec<Operation>, oneshot::Sender<Vec<(Operation, Reason)>>),
    Exited(Pid, Cause, String),
    Shutdown(oneshot::Sender<()>),
}

struct Child {
    name: String,
    uid: u64,
    ordinal: u32,
}

/// Woken when there is a child to wait for again.
type Children = Arc<(Mutex<bool>, Condvar)>;

impl LocalProvider {
    /// Makes this process a subreaper and starts the two threads.
    ///
    /// # Errors
    /// When the process cannot become a subreaper or a thread cannot be started.
    pub fn start(options: LocalOptions) -> io::Result<Self> {
        // SAFETY: prctl with these arguments only sets a flag of this process.
        if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        std::fs::create_dir_all(&options.log_directory)?;
        let (requests, inbox) = std_mpsc::channel();
        let (seen, observations) = mpsc::channel(1024);
        let children: Children = Arc::default();
        let (to_starter, for_reaper) = (requests.clone(), children.clone());
        std::thread::Builder::new().name("reaper".to_owned()).spawn(move || reap(&for_reaper, &to_starter))?;
        std::thread::Builder::new().name("provider".to_owned()).spawn(move || {
            Starter { options, children, alive: BTreeMap::new(), seen, next_uid: AtomicU64::new(1) }.run(&inbox);
        })?;
        Ok(LocalProvider { requests, observations: Mutex::new(Some(observations)) })
    }
}

impl Provider for LocalProvider {
    fn observe(&self) -> mpsc::Receiver<Observation> {
        let taken = self.observations.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.unwrap_or_else(|| mpsc::channel(1).1)
    }

    fn apply(&self, operations: Vec<Operation>) -> Boxed<'_, Vec<(Operation, Reason)>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            if self.requests.send(Request::Apply(operations, reply)).is_err() {
                return Vec::new();
            }
            answer.await.unwrap_or_default()
        })
    }

    fn shutdown(&self) -> Boxed<'_, ()> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            if self.requests.send(Request::Shutdown(reply)).is_ok() {
                let _ = answer.await;
            }
        })
    }
}

/// Waits for every child, workers and adopted orphans alike.
fn reap(children: &Children, requests: &std_mpsc::Sender<Request>) {
    loop {
        match waitpid(None, None) {
            Ok(status) => {
                let (Some(pid), words) = (status.pid(), in_words(status)) else { continue };
                let cause = if matches!(status, WaitStatus::Exited(_, 0)) { Cause::Ended } else { Cause::Failed };
                if requests.send(Request::Exited(pid, cause, words)).is_err() {
                    return;
                }
            }
            Err(nix::errno::Errno::ECHILD) => {
                let (lock, woken) = &**children;
                let mut any = lock.lock().unwrap_or_else(PoisonError::into_inner);
                while !*any {
                    any = woken.wait(any).unwrap_or_else(PoisonError::into_inner);
                }
                *any = false;
            }
            Err(_) => {}
        }
    }
}

fn in_words(status: WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, code) => format!("the worker process exited with code {code}"),
        WaitStatus::Signaled(_, signal, _) => format!("the worker process was killed by {signal}"),
        other => format!("the worker process ended: {other:?}"),
    }
}

/// Lives on the thread that starts processes.
struct Starter {
    options: LocalOptions,
    children: Children,
    alive: BTreeMap<i32, Child>,
    seen: mpsc::Sender<Observation>,
    next_uid: AtomicU64,
}

impl Starter {
    fn run(mut self, inbox: &std_mpsc::Receiver<Request>) {
        while let Ok(request) = inbox.recv() {
            match request {
                Request::Apply(operations, reply) => {
                    let failed = operations.into_iter().filter_map(|operation| self.apply(operation)).collect();
                    let _ = reply.send(failed);
                }
                Request::Exited(pid, cause, reason) => self.exited(pid, cause, reason),
                Request::Shutdown(reply) => {
                    self.stop_everything(inbox);
                    let _ = reply.send(());
                }
            }
        }
    }

    fn apply(&mut self, operation: Operation) -> Option<(Operation, Reason)> {
        match &operation {
            Operation::Create { ordinal, .. } => {
                if self.alive.values().any(|child| child.ordinal == *ordinal) {
                    return None;
                }
                match self.create(*ordinal) {
                    Ok(()) => None,
                    Err(error) => {
                        let class = match error.kind() {
                            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => ReasonClass::Never,
                            _ => ReasonClass::NotNow,
                        };
                        let message = format!("could not start {}: {error}", self.options.program.display());
                        Some((operation, Reason { class, message }))
                    }
                }
            }
            Operation::Drain { name } => {
                self.signal(name, None, Signal::SIGTERM);
                None
            }
            Operation::Delete { name, uid } => {
                self.signal(name, Some(*uid), Signal::SIGKILL);
                None
            }
            // Nothing but its user interrupts a process here.
            Operation::Mark { .. } => None,
        }
    }

    fn signal(&self, name: &str, uid: Option<u64>, signal: Signal) {
        for (pid, child) in &self.alive {
            if child.name == name && uid.is_none_or(|uid| uid == child.uid) {
                let _ = kill(Pid::from_raw(*pid), signal);
            }
        }
    }

    fn create(&mut self, ordinal: u32) -> io::Result<()> {
        let uid = self.next_uid.fetch_add(1, Ordering::Relaxed);
        let shape = &self.options.workers;
        let name = if uid <= u64::from(shape.workers) {
            format!("{}-{ordinal}", shape.pool)
        } else {
            format!("{}-{ordinal}-{uid}", shape.pool)
        };
        let log = std::fs::File::create(self.options.log_directory.join(format!("{name}.log")))?;
        let mut command = Command::new(&self.options.program);
        command
            .args(["--address", &self.options.address, "--name", &name, "--pool", &shape.pool, "--die-with-parent"])
            .arg("--token-file")
            .arg(&self.options.token_file)
            .args(["--components", &shape.components.join(",")])
            .args(["--cpus", &format!("{}m", shape.milli_cpus)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0);
        if let Some(bytes) = shape.memory_bytes {
            command.args(["--memory", &bytes.to_string()]);
        }
        if shape.gpus > 0 {
            command.args(["--gpus", &shape.gpus.to_string()]);
        }
        for (resource, amount) in &shape.custom {
            command.args(["--resource", &format!("{resource}={amount}")]);
        }
        command.args(&shape.worker_args);
        // The reaper waits for it: dropping the handle neither waits nor kills.
        let pid = command.spawn()?.id();
        let (lock, woken) = &*self.children;
        *lock.lock().unwrap_or_else(PoisonError::into_inner) = true;
        woken.notify_one();
        let pool = shape.pool.clone();
        self.alive.insert(pid as i32, Child { name: name.clone(), uid, ordinal });
        let _ = self.seen.blocking_send(Observation::Started { name, uid, pool, ordinal, pid });
        Ok(())
    }

    fn exited(&mut self, pid: Pid, cause: Cause, reason: String) {
        let Some(child) = self.alive.remove(&pid.as_raw()) else { return };
        self.kill_orphans();
        let pool = self.options.workers.pool.clone();
        let Child { name, uid, ordinal } = child;
        let _ = self.seen.blocking_send(Observation::Died { name, uid, pool, ordinal, cause, reason });
    }

    /// Kills every child of this process that is not a worker: it was adopted from a worker that died. Killing one may make
    /// its own children ours, so this goes on until a look finds none.
    fn kill_orphans(&self) {
        for _ in 0..1000 {
            let orphans: Vec<i32> =
                children_of(std::process::id()).into_iter().filter(|pid| !self.alive.contains_key(pid)).collect();
            if orphans.is_empty() {
                return;
            }
            for pid in orphans {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::yield_now();
        }
    }

    fn stop_everything(&mut self, inbox: &std_mpsc::Receiver<Request>) {
        for pid in self.alive.keys() {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        while !self.alive.is_empty() {
            match inbox.recv() {
                Ok(Request::Exited(pid, cause, reason)) => self.exited(pid, cause, reason),
                Ok(Request::Apply(_, reply)) => drop(reply),
                Ok(Request::Shutdown(reply)) => drop(reply),
                Err(_) => return,
            }
        }
        self.kill_orphans();
    }
}

/// Living (not zombie) processes whose parent is `parent`.
fn children_of(parent: u32) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // The command name is in parentheses and may itself contain any character.
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let mut fields = rest.split(' ');
        let (state, ppid) = (fields.next(), fields.next());
        if state != Some("Z") && ppid == Some(&parent.to_string()) {
            found.push(pid);
        }
    }
    found
}
