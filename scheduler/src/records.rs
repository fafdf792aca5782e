//! The records of a run: `run.json`, `tasks.jsonl`, `failures.jsonl`, `workers.jsonl`, `summary.json`, and the readable names
//! of committed outputs. Written by one thread of its own, in the order in which the machine decided.
//!
//! The queue to it is bounded. At the bound the reactor waits: a disk that cannot keep up slows the scheduler down rather
//! than losing a record.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use rustc_hash::FxHashMap;
use scalable_core::ids::{GroupId, RunId};
use scalable_core::messages::RunEnd;
use scalable_proto::v1;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use crate::reactor::{GroupInfo, Report};

/// Records waiting to be written.
const QUEUE_MAX: usize = 65_536;
/// Above this many tasks, `tasks.jsonl` keeps failures only and `run.json` says so.
pub const TASKS_RECORDED_MAX: u64 = 1_000_000;
/// What is written reaches the files after this time without a new record.
const FLUSH_AFTER: Duration = Duration::from_millis(50);
/// Version of the layout of `run.json`, `tasks.jsonl` and `summary.json`.
const SCHEMA_VERSION: u32 = 1;

/// One thing to write down.
pub enum Record {
    /// A run was accepted.
    RunBegan(Box<RunRecord>),
    /// A result was committed.
    Succeeded {
        /// The task's group.
        group: Arc<GroupInfo>,
        /// The task.
        index: u32,
        /// The attempt whose result it is.
        attempt: u32,
        /// Where it ran.
        worker: Arc<str>,
        /// What it reported.
        report: Option<Report>,
    },
    /// An attempt ended without committing.
    AttemptEnded {
        /// The task's group.
        group: Arc<GroupInfo>,
        /// The task.
        index: u32,
        /// The attempt.
        attempt: u32,
        /// Where it was.
        worker: Arc<str>,
        /// What is known of it.
        report: Box<v1::AttemptReport>,
        /// It is not tried again.
        last: bool,
    },
    /// A task is over without success.
    Failed {
        /// Its group.
        group: Arc<GroupInfo>,
        /// The task.
        index: u32,
        /// Attempts it had.
        attempts: u32,
        /// Failure class.
        class: &'static str,
    },
    /// Tasks are over without having run.
    Range {
        /// Their group.
        group: Arc<GroupInfo>,
        /// First one.
        first: u32,
        /// How many.
        count: u32,
        /// How.
        kind: Count,
    },
    /// A worker's state changed.
    Worker {
        /// Its session.
        session: u64,
        /// Its name.
        name: Arc<str>,
        /// Its process.
        pid: u32,
        /// From here on.
        state: &'static str,
    },
    /// A run is over.
    RunEnded {
        /// Which.
        run: RunId,
        /// How.
        end: RunEnd,
        /// Every group's counts.
        counts: Vec<v1::GroupCounts>,
    },
}

/// How tasks ended that did not run.
#[derive(Clone, Debug)]
pub enum Count {
    /// A task they depend on failed.
    Skipped {
        /// `group[index]` of the failure it began with.
        root: String,
    },
    /// By request, or because of `max_failures`.
    Cancelled,
}

/// A run as the records need it.
pub struct RunRecord {
    /// Its id.
    pub run: RunId,
    /// As submitted, without templates.
    pub spec: v1::RunSpec,
    /// Its groups in order.
    pub groups: Vec<Arc<GroupInfo>>,
    /// The scheduler's address.
    pub address: String,
    /// 8787's address.
    pub http: String,
    /// File with the token.
    pub token_file: String,
}

/// The reactor's end.
#[derive(Clone)]
pub struct Handle(SyncSender<Record>);

impl Handle {
    /// Queues a record; waits while the queue is full.
    pub fn send(&self, record: Record) {
        // The thread ends only when every handle is gone.
        let _ = self.0.send(record);
    }
}

/// Starts the thread. The second value says which runs are completely recorded; the third ends when the thread has.
///
/// # Errors
/// When the thread cannot be started.
pub fn start() -> io::Result<(Handle, mpsc::Receiver<RunId>, std::thread::JoinHandle<()>)> {
    let (records, queue) = sync_channel(QUEUE_MAX);
    let (done, recorded) = mpsc::channel(1024);
    let thread = std::thread::Builder::new().name("records".to_owned()).spawn(move || {
        Writer { runs: BTreeMap::new(), workers: BTreeMap::new(), done }.run(&queue);
    })?;
    Ok((Handle(records), recorded, thread))
}

/// What the thread knows of a live run.
struct Run {
    record: RunRecord,
    directory: PathBuf,
    tasks: Option<BufWriter<File>>,
    failures: Option<BufWriter<File>>,
    workers: Option<BufWriter<File>>,
    successes_recorded: bool,
    began: jiff::Timestamp,
    /// `began` as every line says it.
    queued_at: String,
    last_attempts: FxHashMap<(GroupId, u32), LastAttempt>,
    cpu_us: u64,
    first_failure: Option<Value>,
    /// The first thing that could not be written; said in `summary.json`.
    problem: Option<String>,
}

/// The number, worker and report of an attempt after which its task was given up.
type LastAttempt = (u32, Arc<str>, Box<v1::AttemptReport>);

struct Writer {
    runs: BTreeMap<RunId, Run>,
    workers: BTreeMap<u64, (Arc<str>, u32)>,
    done: mpsc::Sender<RunId>,
}

/// A line of `tasks.jsonl`.
#[derive(Serialize)]
struct TaskLine<'a> {
    run_id: &'a str,
    task_id: String,
    task_name: &'a str,
    index: u32,
    #[serde(skip_serializing_if = "Map::is_empty")]
    parameters: Map<String, Value>,
    component: &'a str,
    state: &'a str,
    attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<&'a str>,
    queued_at: &'a str,
    started_at: Option<String>,
    finished_at: Option<String>,
    duration_s: Option<f64>,
    exit_code: Option<i32>,
    signal: Option<i32>,
    user_s: Option<f64>,
    system_s: Option<f64>,
    peak_memory_bytes: Option<u64>,
    memory_method: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_limit_bytes: Option<u64>,
    error_type: Option<&'a str>,
    error_message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    outputs: Map<String, Value>,
    log_stdout: Option<String>,
    log_stderr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    taken_over_from: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_directory: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rerun: Option<&'a str>,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Record>) {
        loop {
            match queue.recv_timeout(FLUSH_AFTER) {
                Ok(record) => self.write(record),
                Err(RecvTimeoutError::Timeout) => {
                    for run in self.runs.values_mut() {
                        run.flush();
                    }
                    match queue.recv() {
                        Ok(record) => self.write(record),
                        Err(_) => return,
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn write(&mut self, record: Record) {
        match record {
            Record::RunBegan(record) => {
                let mut run = Run::begin(*record);
                for (name, pid) in self.workers.values() {
                    run.worker(name, *pid, "active");
                }
                run.write_run_json(&self.workers, "running", None);
                self.runs.insert(run.record.run, run);
            }
            Record::Succeeded { group, index, attempt, worker, report } => {
                if let Some(run) = self.runs.get_mut(&group.run()) {
                    let brief = matches!(report, Some(Report::Brief(_)));
                    let mut report = report.map(Report::into_full).unwrap_or_default();
                    if brief && run.successes_recorded {
                        report.key = group.key_without_inputs(index);
                    }
                    run.succeeded(&group, index, attempt, &worker, report);
                }
            }
            Record::AttemptEnded { group, index, attempt, worker, report, last } => {
                if let Some(run) = self.runs.get_mut(&group.run()) {
                    run.attempt_ended(&group, index, attempt, worker, report, last);
                }
            }
            Record::Failed { group, index, attempts, class } => {
                if let Some(run) = self.runs.get_mut(&group.run()) {
                    run.ended_badly(&group, index, attempts, "failed", Some(class), None);
                }
            }
            Record::Range { group, first, count, kind } => {
                let Some(run) = self.runs.get_mut(&group.run()) else { return };
                let (state, root) = match &kind {
                    Count::Skipped { root } => ("skipped", Some(root.as_str())),
                    Count::Cancelled => ("cancelled", None),
                };
                let class = if root.is_some() { "dependency_failed" } else { "cancelled" };
                // A large range of tasks that never ran is told by its group's counts, as successes are.
                if run.successes_recorded || count < 1000 {
                    for index in first..first.saturating_add(count) {
                        run.ended_badly(&group, index, 0, state, Some(class), root);
                    }
                }
            }
            Record::Worker { session, name, pid, state } => {
                if matches!(state, "lost" | "gone") {
                    self.workers.remove(&session);
                } else {
                    self.workers.insert(session, (name.clone(), pid));
                }
                for run in self.runs.values_mut() {
                    run.worker(&name, pid, state);
                    run.write_run_json(&self.workers, "running", None);
                }
            }
            Record::RunEnded { run: id, end, counts } => {
                if let Some(mut run) = self.runs.remove(&id) {
                    run.end(end, &counts);
                }
                let _ = self.done.blocking_send(id);
            }
        }
    }
}

impl Run {
    fn begin(record: RunRecord) -> Run {
        let directory = PathBuf::from(&record.spec.directory);
        let total: u64 = record.groups.iter().map(|group| u64::from(group.spec.length)).sum();
        let began = jiff::Timestamp::now();
        let mut run = Run {
            directory: directory.clone(),
            tasks: None,
            failures: None,
            workers: None,
            successes_recorded: total <= TASKS_RECORDED_MAX,
            began,
            queued_at: began.to_string(),
            last_attempts: FxHashMap::default(),
            cpu_us: 0,
            first_failure: None,
            problem: None,
            record,
        };
        let made = fs::create_dir_all(&directory);
        run.note("make the run's directory", made);
        run.tasks = run.open("tasks.jsonl");
        run.failures = run.open("failures.jsonl");
        run.workers = run.open("workers.jsonl");
        run
    }

    fn open(&mut self, name: &str) -> Option<BufWriter<File>> {
        let opened = File::options().create(true).append(true).open(self.directory.join(name));
        match opened {
            Ok(file) => Some(BufWriter::with_capacity(1 << 16, file)),
            Err(error) => {
                self.note::<()>(name, Err(error));
                None
            }
        }
    }

    /// Keeps the first thing that went wrong and logs it.
    fn note<T>(&mut self, what: &str, result: io::Result<T>) {
        if let Err(error) = result {
            tracing::error!(run = %self.record.spec.name, what, %error, "a record could not be written");
            self.problem.get_or_insert_with(|| format!("could not write {what}: {error}"));
        }
    }

    fn flush(&mut self) {
        for file in [&mut self.tasks, &mut self.failures, &mut self.workers] {
            let flushed = file.as_mut().map_or(Ok(()), BufWriter::flush);
            if let Err(error) = flushed {
                self.problem.get_or_insert_with(|| format!("could not write the records: {error}"));
            }
        }
    }

    fn line(file: &mut Option<BufWriter<File>>, value: &impl Serialize) -> io::Result<()> {
        let Some(file) = file else { return Ok(()) };
        serde_json::to_writer(&mut *file, value)?;
        file.write_all(b"\n")
    }

    fn worker(&mut self, name: &str, pid: u32, state: &str) {
        let line = json!({
            "run_id": self.record.spec.name, "worker": name, "pid": pid, "event": state,
            "timestamp": jiff::Timestamp::now().to_string(),
        });
        let written = Self::line(&mut self.workers, &line);
        self.note("workers.jsonl", written);
    }

    fn succeeded(&mut self, group: &GroupInfo, index: u32, attempt: u32, worker: &str, report: v1::AttemptReport) {
        self.cpu_us = self.cpu_us.saturating_add(report.user_us + report.system_us);
        let mut outputs = Map::new();
        for output in report.outputs.iter().filter(|output| output.written) {
            let discard = group.discards(&output.name);
            if !discard {
                let published = self.publish(group, index, attempt, &output.name);
                self.note("an output's readable name", published);
            }
            let path = self.output_path(group, index, &output.name);
            let digest = hex(&output.digest);
            outputs.insert(output.name.clone(), json!({ "path": path, "digest": digest, "size": output.size, "kept": !discard }));
        }
        if self.successes_recorded {
            self.write_task(group, index, attempt, "succeeded", Some(worker), &report, None, None, outputs);
        }
    }

    fn attempt_ended(
        &mut self,
        group: &GroupInfo,
        index: u32,
        attempt: u32,
        worker: Arc<str>,
        report: Box<v1::AttemptReport>,
        last: bool,
    ) {
        self.cpu_us = self.cpu_us.saturating_add(report.user_us + report.system_us);
        let class = class_word(report.class());
        if !matches!(report.class(), v1::OutcomeClass::Preempted | v1::OutcomeClass::Cancelled) {
            let line = json!({
                "run_id": self.record.spec.name,
                "task_id": format!("{}[{index}]", group.spec.name),
                "parameters": parameters(group, index),
                "attempt": attempt,
                "worker": &*worker,
                "error_type": class,
                "error_message": report.message,
                "exit_code": report.exit_code,
                "signal": report.signal,
                "finished_at": stamp(report.finished_us),
                "stderr_tail": String::from_utf8_lossy(&report.stderr_tail),
                "stdout_tail": String::from_utf8_lossy(&report.stdout_tail),
                "log_stderr": log(group, index, attempt, "stderr", report.stderr_bytes),
                "kept_directory": (!report.kept_directory.is_empty()).then_some(&report.kept_directory),
                "rerun": report.rerun,
                "last": last,
            });
            if self.first_failure.is_none() && last {
                self.first_failure = Some(line.clone());
            }
            let written = Self::line(&mut self.failures, &line);
            self.note("failures.jsonl", written);
        }
        if last {
            self.last_attempts.insert((group.id(), index), (attempt, worker, report));
        }
    }

    fn ended_badly(
        &mut self,
        group: &GroupInfo,
        index: u32,
        attempts: u32,
        state: &str,
        class: Option<&str>,
        root: Option<&str>,
    ) {
        let last = self.last_attempts.remove(&(group.id(), index));
        let (attempt, worker, report) = match &last {
            Some((attempt, worker, report)) => (*attempt, Some(&**worker), (**report).clone()),
            None => (attempts, None, v1::AttemptReport::default()),
        };
        self.write_task(group, index, attempt, state, worker, &report, class, root, Map::new());
    }

    #[allow(clippy::too_many_arguments)] // one line of a record has that many fields
    fn write_task(
        &mut self,
        group: &GroupInfo,
        index: u32,
        attempt: u32,
        state: &str,
        worker: Option<&str>,
        report: &v1::AttemptReport,
        class: Option<&str>,
        root: Option<&str>,
        outputs: Map<String, Value>,
    ) {
        let ran = report.started_us > 0;
        let seconds = |us: u64| ran.then_some(us as f64 / 1e6);
        let duration_s = ran.then(|| report.finished_us.saturating_sub(report.started_us) as f64 / 1e6);
        let line = TaskLine {
            run_id: &self.record.spec.name,
            task_id: format!("{}[{index}]", group.spec.name),
            task_name: &group.spec.name,
            index,
            parameters: parameters(group, index),
            component: group.component(),
            state,
            attempt,
            worker,
            queued_at: &self.queued_at,
            started_at: stamp(report.started_us),
            finished_at: stamp(report.finished_us),
            duration_s,
            exit_code: report.exit_code,
            signal: report.signal,
            user_s: seconds(report.user_us),
            system_s: seconds(report.system_us),
            peak_memory_bytes: ran.then_some(report.peak_memory_bytes),
            memory_method: match report.memory_method() {
                v1::MemoryMethod::Unspecified => None,
                v1::MemoryMethod::Cgroup => Some("cgroup"),
                v1::MemoryMethod::Sampled => Some("sampled"),
                v1::MemoryMethod::Rusage => Some("rusage"),
            },
            memory_limit_bytes: (report.memory_limit_bytes > 0).then_some(report.memory_limit_bytes),
            error_type: class,
            error_message: (!report.message.is_empty()).then_some(&report.message),
            root,
            key: (!report.key.is_empty()).then(|| hex(&report.key)),
            outputs,
            log_stdout: log(group, index, attempt, "stdout", report.stdout_bytes),
            log_stderr: log(group, index, attempt, "stderr", report.stderr_bytes),
            taken_over_from: (!report.taken_over_from.is_empty()).then_some(&report.taken_over_from),
            kept_directory: (!report.kept_directory.is_empty()).then_some(&report.kept_directory),
            rerun: (!report.rerun.is_empty()).then_some(&report.rerun),
        };
        let written = Self::line(&mut self.tasks, &line);
        self.note("tasks.jsonl", written);
    }

    fn output_path(&self, group: &GroupInfo, index: u32, output: &str) -> PathBuf {
        let mut path = PathBuf::from("outputs").join(&group.spec.name);
        let element = group.space.element_name(index);
        if !element.is_empty() {
            path.push(element);
        }
        path.join(output)
    }

    /// Gives a committed output its readable name: hard links, so nothing is copied and nothing can be half there for long.
    fn publish(&self, group: &GroupInfo, index: u32, attempt: u32, output: &str) -> io::Result<()> {
        let mut source = self.directory.join("objects").join(&group.spec.name);
        source.extend([index.to_string(), attempt.to_string(), output.to_owned()]);
        let target = self.directory.join(self.output_path(group, index, output));
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        link_tree(&source, &target)
    }

    fn write_run_json(&mut self, workers: &BTreeMap<u64, (Arc<str>, u32)>, status: &str, finished: Option<jiff::Timestamp>) {
        let path = self.directory.join("run.json");
        // The command line has written what it knows; that is kept.
        let mut run: Map<String, Value> =
            fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let spec = &self.record.spec;
        let mut set = |key: &str, value: Value| {
            run.insert(key.to_owned(), value);
        };
        set("run_id", json!(spec.name));
        set("project_name", json!(spec.project));
        set("target_name", json!(spec.target));
        set("manifest_lock", json!(spec.manifest_lock));
        set("status", json!(status));
        set("started_at", json!(self.began.to_string()));
        set("finished_at", json!(finished.map(|at| at.to_string())));
        set("schema_version", json!(SCHEMA_VERSION));
        set("tasks_recorded", json!(if self.successes_recorded { "all" } else { "failures" }));
        set("base_directory", json!(spec.base_directory));
        let groups = self
            .record
            .groups
            .iter()
            .map(|group| json!({ "name": group.spec.name, "length": group.spec.length, "parameters": group.space.names() }));
        set("groups", groups.collect());
        if finished.is_none() {
            set("address", json!(self.record.address));
            set("http", json!(self.record.http));
            set("token_file", json!(self.record.token_file));
            let pids: Vec<u32> = workers.values().map(|(_, pid)| *pid).collect();
            set("pids", json!({ "scheduler": std::process::id(), "workers": pids }));
        } else {
            for key in ["address", "http", "token_file", "pids"] {
                run.shift_remove(key);
            }
        }
        let written = replace(&path, &Value::Object(run));
        self.note("run.json", written);
    }

    fn end(&mut self, end: RunEnd, counts: &[v1::GroupCounts]) {
        self.flush();
        let status = match end {
            RunEnd::Succeeded => "completed",
            RunEnd::Failed => "failed",
            RunEnd::Cancelled => "cancelled",
        };
        for leftover in ["objects", "attempts"] {
            let removed = match fs::remove_dir_all(self.directory.join(leftover)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
            self.note(leftover, removed);
        }
        let finished = jiff::Timestamp::now();
        let sum = |field: fn(&v1::GroupCounts) -> u32| counts.iter().map(|group| u64::from(field(group))).sum::<u64>();
        let groups: Vec<Value> = counts
            .iter()
            .map(|group| {
                json!({
                    "name": group.group, "length": group.length, "succeeded": group.succeeded, "failed": group.failed,
                    "skipped": group.skipped, "cancelled": group.cancelled, "retried": group.retried,
                })
            })
            .collect();
        let total_s = finished.duration_since(self.began).as_secs_f64();
        let summary = json!({
            "schema_version": SCHEMA_VERSION,
            "run_id": self.record.spec.name,
            "project_name": self.record.spec.project,
            "target_name": self.record.spec.target,
            "status": status,
            "started_at": self.began.to_string(),
            "finished_at": finished.to_string(),
            "total_s": total_s,
            "cpu_s": self.cpu_us as f64 / 1e6,
            "tasks": {
                "total": sum(|group| group.length), "succeeded": sum(|group| group.succeeded), "failed": sum(|group| group.failed),
                "skipped": sum(|group| group.skipped), "cancelled": sum(|group| group.cancelled), "retried": sum(|group| group.retried),
            },
            "groups": groups,
            "first_failure": self.first_failure,
            "problem": self.problem,
        });
        let written = replace(&self.directory.join("summary.json"), &summary);
        self.note("summary.json", written);
        self.write_run_json(&BTreeMap::new(), status, Some(finished));
    }
}

fn parameters(group: &GroupInfo, index: u32) -> Map<String, Value> {
    group.space.values(index).into_iter().map(|(name, value)| (name.to_owned(), Value::String(value.into_owned()))).collect()
}

fn log(group: &GroupInfo, index: u32, attempt: u32, stream: &str, bytes: u64) -> Option<String> {
    (bytes > 0).then(|| format!("logs/{}/{index}.{attempt}.{stream}", group.spec.name))
}

fn stamp(us: i64) -> Option<String> {
    if us <= 0 { None } else { jiff::Timestamp::from_microsecond(us).ok().map(|at| at.to_string()) }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn class_word(class: v1::OutcomeClass) -> String {
    class.as_str_name().trim_start_matches("OUTCOME_CLASS_").to_ascii_lowercase()
}

/// Writes a file whole or not at all: readers see the old one or the new one.
fn replace(path: &Path, value: &Value) -> io::Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    let temporary = path.with_extension("json.new");
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, path)
}

/// Links `source` under `target`, replacing what is there: a file as a hard link, a directory as a tree of hard links, a
/// symbolic link as itself.
fn link_tree(source: &Path, target: &Path) -> io::Result<()> {
    let mut work = vec![(source.to_owned(), target.to_owned())];
    while let Some((source, target)) = work.pop() {
        let kind = fs::symlink_metadata(&source)?.file_type();
        if kind.is_dir() {
            fs::create_dir_all(&target)?;
            for entry in fs::read_dir(&source)? {
                let entry = entry?;
                work.push((entry.path(), target.join(entry.file_name())));
            }
            continue;
        }
        if let Err(error) = fs::remove_file(&target)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        fs::hard_link(&source, &target)?;
    }
    Ok(())
}
