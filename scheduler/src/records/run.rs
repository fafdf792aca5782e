//! One live run's files: a line for every task that is over, the run's own documents at its beginning and end.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use scalable_core::ids::{GroupId, RunId};
use scalable_core::messages::RunEnd;
use scalable_proto::v1;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::files::{link_tree, replace};
use super::{RunRecord, TASKS_RECORDED_MAX};
use crate::reactor::GroupInfo;

/// Version of the layout of `run.json`, `tasks.jsonl` and `summary.json`.
const SCHEMA_VERSION: u32 = 1;

/// Live workers: name and process by session.
pub(super) type Workers = BTreeMap<u64, (Arc<str>, u32)>;

/// What the thread knows of a live run.
pub(super) struct Run {
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

impl Run {
    pub(super) fn begin(record: RunRecord) -> Run {
        let directory = PathBuf::from(&record.spec.directory);
        let total: u64 = record.groups.iter().map(|group| u64::from(group.spec.length)).sum();
        let began = record.began;
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

    pub(super) fn id(&self) -> RunId {
        self.record.run
    }

    /// False above [`TASKS_RECORDED_MAX`] tasks: then only failures have a line of their own.
    pub(super) fn lists_everything(&self) -> bool {
        self.successes_recorded
    }

    /// Writes down that the run lives, and on which workers.
    pub(super) fn alive(&mut self, workers: &Workers) {
        self.write_run_json(workers, "running", None);
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

    pub(super) fn flush(&mut self) {
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

    pub(super) fn worker(&mut self, name: &str, pid: u32, state: &str) {
        let line = json!({
            "run_id": self.record.spec.name, "worker": name, "pid": pid, "event": state,
            "timestamp": jiff::Timestamp::now().to_string(),
        });
        let written = Self::line(&mut self.workers, &line);
        self.note("workers.jsonl", written);
    }

    pub(super) fn succeeded(&mut self, group: &GroupInfo, index: u32, attempt: u32, worker: &str, report: v1::AttemptReport) {
        self.cpu_us = self.cpu_us.saturating_add(report.user_us + report.system_us);
        let mut outputs = Map::new();
        for output in report.outputs.iter().filter(|output| output.written) {
            let discard = group.discards(&output.name);
            // What its worker holds gets its name when the output store has it.
            if !discard && !output.held {
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

    pub(super) fn attempt_ended(
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

    pub(super) fn ended_badly(
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

    fn write_run_json(&mut self, workers: &Workers, status: &str, finished: Option<jiff::Timestamp>) {
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

    pub(super) fn end(&mut self, end: RunEnd, counts: &[v1::GroupCounts], outputs_missing: Option<&str>) {
        self.flush();
        let status = match end {
            RunEnd::Succeeded => "completed",
            RunEnd::Failed => "failed",
            RunEnd::Cancelled => "cancelled",
        };
        // No worker is told of the run any more.
        let _ = fs::remove_file(self.directory.join(crate::reactor::MARK));
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
            "outputs_missing": outputs_missing,
        });
        let written = replace(&self.directory.join("summary.json"), &summary);
        self.note("summary.json", written);
        self.write_run_json(&Workers::new(), status, Some(finished));
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
