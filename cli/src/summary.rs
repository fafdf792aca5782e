//! What the records of a run amount to: counts, times, memory, per group and in all. Read once, in memory that does not grow
//! with the number of tasks.

use std::collections::BTreeMap;

use jiff::Timestamp;
use scalable_proto::v1;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::failure_text::FailureText;
use crate::records::{self, RunRecord, TaskRecord};
use crate::runs::RunDirectory;
use crate::table::Table;
use crate::ui::{bytes, one_line, span};

/// Failures kept in a summary; more are counted.
const FAILURES_MAX: usize = 1000;

/// Sums over the tasks of one group, or of all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    /// Tasks that were executed.
    pub executed: u64,
    /// Seconds of execution, in all.
    pub duration_s: f64,
    /// Longest execution.
    pub duration_max_s: f64,
    /// Cpu time, user and system.
    pub cpu_s: f64,
    /// Seconds between being queued and being started, in all.
    pub queued_s: f64,
    /// Largest peak.
    pub peak_memory_bytes: u64,
}

/// See the head of this file.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub run: String,
    pub record: RunRecord,
    pub groups: Vec<v1::GroupCounts>,
    pub sums: BTreeMap<String, Sums>,
    pub failures: Vec<TaskRecord>,
    pub failures_left_out: u64,
    pub note: String,
    total_s: Option<f64>,
}

/// What is read of summary.json.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SummaryFile {
    groups: Vec<GroupFile>,
    total_s: Option<f64>,
    /// The first record that could not be written.
    problem: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct GroupFile {
    #[serde(alias = "name")]
    group: String,
    #[serde(alias = "tasks")]
    length: u32,
    succeeded: u32,
    failed: u32,
    skipped: u32,
    cancelled: u32,
    retried: u32,
}

impl Summary {
    /// Reads the records of a run.
    ///
    /// # Errors
    /// When a file is there and cannot be read.
    pub fn read(directory: &RunDirectory, record: &RunRecord) -> Result<Summary, Failure> {
        let mut summary = Summary { run: directory.name.clone(), record: record.clone(), ..Summary::default() };
        let path = directory.file("tasks.jsonl");
        let tasks =
            records::read_lines::<TaskRecord>(&path).map_err(|error| Failure::io(format!("read {}", path.display()), &error))?;
        let mut counted: BTreeMap<String, v1::GroupCounts> = BTreeMap::new();
        for task in tasks {
            let counts = counted.entry(task.group().to_owned()).or_default();
            match task.state.as_str() {
                "succeeded" => counts.succeeded += 1,
                "failed" => counts.failed += 1,
                "skipped" => counts.skipped += 1,
                "cancelled" => counts.cancelled += 1,
                _ => {}
            }
            counts.retried += task.attempt.saturating_sub(1);
            summary.sums.entry(task.group().to_owned()).or_default().add(&task);
            if task.state == "failed" {
                summary.keep_failure(task);
            }
        }
        // The counts of summary.json are complete also where tasks.jsonl keeps failures only.
        let file: SummaryFile = records::read_json(&directory.file("summary.json")).unwrap_or_default();
        summary.note = file.problem.unwrap_or_default();
        summary.total_s = file.total_s;
        summary.groups = if file.groups.is_empty() {
            let counts = |group: &records::GroupRecord| {
                let counts = counted.get(&group.name).cloned().unwrap_or_default();
                v1::GroupCounts { group: group.name.clone(), length: group.length, ..counts }
            };
            record.groups.iter().map(counts).collect()
        } else {
            file.groups.into_iter().map(GroupFile::into_counts).collect()
        };
        summary.add_tails(directory)?;
        Ok(summary)
    }

    fn keep_failure(&mut self, task: TaskRecord) {
        if self.failures.len() < FAILURES_MAX {
            self.failures.push(task);
        } else {
            self.failures_left_out += 1;
        }
    }

    /// failures.jsonl knows more of a failure than tasks.jsonl: what it said, where it was kept, how to run it again.
    fn add_tails(&mut self, directory: &RunDirectory) -> Result<(), Failure> {
        if self.failures.is_empty() {
            return Ok(());
        }
        let path = directory.file("failures.jsonl");
        let more =
            records::read_lines::<TaskRecord>(&path).map_err(|error| Failure::io(format!("read {}", path.display()), &error))?;
        let mut last: BTreeMap<String, usize> =
            self.failures.iter().enumerate().map(|(at, failure)| (failure.task_id.clone(), at)).collect();
        for failure in more {
            if let Some(at) = last.get_mut(&failure.task_id)
                && failure.attempt >= self.failures[*at].attempt
            {
                let known = &self.failures[*at];
                let merged = TaskRecord {
                    parameters: if failure.parameters.is_empty() { known.parameters.clone() } else { failure.parameters.clone() },
                    log_stdout: failure.log_stdout.clone().or(known.log_stdout.clone()),
                    log_stderr: failure.log_stderr.clone().or(known.log_stderr.clone()),
                    duration_s: failure.duration_s.or(known.duration_s),
                    error_message: failure.error_message.clone().or(known.error_message.clone()),
                    error_type: failure.error_type.clone().or(known.error_type.clone()),
                    exit_code: failure.exit_code.or(known.exit_code),
                    signal: failure.signal.or(known.signal),
                    worker: failure.worker.clone().or(known.worker.clone()),
                    ..failure
                };
                self.failures[*at] = merged;
            }
        }
        Ok(())
    }

    /// Tasks of one outcome in all groups.
    pub fn count(&self, of: impl Fn(&v1::GroupCounts) -> u32) -> u64 {
        self.groups.iter().map(|group| u64::from(of(group))).sum()
    }

    /// All tasks.
    pub fn tasks(&self) -> u64 {
        self.count(|group| group.length)
    }

    /// Sums over all groups.
    pub fn total(&self) -> Sums {
        self.sums.values().fold(Sums::default(), |mut total, sums| {
            total.executed += sums.executed;
            total.duration_s += sums.duration_s;
            total.duration_max_s = total.duration_max_s.max(sums.duration_max_s);
            total.cpu_s += sums.cpu_s;
            total.queued_s += sums.queued_s;
            total.peak_memory_bytes = total.peak_memory_bytes.max(sums.peak_memory_bytes);
            total
        })
    }

    /// Seconds from the run's start to its end.
    pub fn wall_s(&self) -> Option<f64> {
        self.total_s.or_else(|| seconds_between(&self.record.started_at, self.record.finished_at.as_deref()?))
    }

    /// For programs: `scalable.report.v1`.
    pub fn json(&self, directory: &RunDirectory) -> Value {
        let total = self.total();
        let mean = |sums: &Sums| if sums.executed > 0 { json!(sums.duration_s / sums.executed as f64) } else { Value::Null };
        let group = |group: &v1::GroupCounts| {
            let sums = self.sums.get(&group.group).cloned().unwrap_or_default();
            json!({
                "group": group.group, "tasks": group.length, "succeeded": group.succeeded, "failed": group.failed,
                "skipped": group.skipped, "cancelled": group.cancelled, "retried": group.retried,
                "duration_total_s": sums.duration_s, "duration_mean_s": mean(&sums), "duration_max_s": sums.duration_max_s,
                "cpu_s": sums.cpu_s, "peak_memory_bytes": sums.peak_memory_bytes,
            })
        };
        json!({
            "schema": "scalable.report.v1",
            "run_id": self.run,
            "project": self.record.project_name,
            "target": self.record.target_name,
            "provider": self.record.provider_name,
            "status": self.record.status,
            "started_at": self.record.started_at,
            "finished_at": self.record.finished_at,
            "wall_s": self.wall_s(),
            "directory": directory.path,
            "tasks": {
                "total": self.tasks(), "succeeded": self.count(|g| g.succeeded), "failed": self.count(|g| g.failed),
                "skipped": self.count(|g| g.skipped), "cancelled": self.count(|g| g.cancelled), "retried": self.count(|g| g.retried),
            },
            "timing": { "total_s": total.duration_s, "avg_s": mean(&total), "cpu_s": total.cpu_s, "queued_s": total.queued_s },
            "peak_memory_bytes": total.peak_memory_bytes,
            "groups": self.groups.iter().map(group).collect::<Vec<_>>(),
            "failures": self.failures,
            "failures_left_out": self.failures_left_out,
            "note": self.note,
        })
    }

    /// For people.
    pub fn text(&self, directory: &RunDirectory) -> String {
        let record = &self.record;
        let total = self.total();
        let mut text = String::new();
        let mut line = |name: &str, value: String| text.push_str(&format!("{name:<11}{value}\n"));
        line("run", self.run.clone());
        line("project", record.project_name.clone());
        line("target", format!("{} ({})", record.target_name, record.provider_name));
        let wall = self.wall_s().map(|wall| format!(" in {}", span(wall))).unwrap_or_default();
        line("status", format!("{}{wall}", record.status));
        line("tasks", self.counts_text());
        if total.executed > 0 {
            let mean = total.duration_s / total.executed as f64;
            line("timing", format!("{} in tasks, {} a task, {} cpu", span(total.duration_s), span(mean), span(total.cpu_s)));
        }
        line("records", directory.path.display().to_string());
        if self.count(|group| group.succeeded) > 0 && directory.file("outputs").is_dir() {
            line("outputs", directory.file("outputs").display().to_string());
        }
        if !self.note.is_empty() {
            line("note", one_line(&self.note, 400));
        }
        text.push('\n');
        text.push_str(&self.groups_text());
        if !self.failures.is_empty() {
            text.push_str("\nfailures\n");
            for failure in self.failures.iter().take(10) {
                text.push_str(&format!("  {}\n", FailureText::from_record(failure).line()));
            }
            let more = self.count(|group| group.failed).saturating_sub(10);
            if more > 0 {
                text.push_str(&format!("  … and {more} more: `scalable report --failures`\n"));
            }
        }
        text
    }

    /// `198 of 201 succeeded, 2 failed, 1 skipped`.
    pub fn counts_text(&self) -> String {
        counts_text(&self.groups)
    }

    fn groups_text(&self) -> String {
        let headings =
            ["group", "tasks", "succeeded", "failed", "skipped", "cancelled", "retried", "mean", "longest", "cpu", "peak memory"];
        let mut table = Table::new(&headings).numbers_from(1);
        for group in &self.groups {
            let sums = self.sums.get(&group.group).cloned().unwrap_or_default();
            let counts = [group.length, group.succeeded, group.failed, group.skipped, group.cancelled, group.retried];
            let figures = if sums.executed > 0 {
                [
                    span(sums.duration_s / sums.executed as f64),
                    span(sums.duration_max_s),
                    span(sums.cpu_s),
                    bytes(sums.peak_memory_bytes),
                ]
            } else {
                Default::default()
            };
            table.row(std::iter::once(one_line(&group.group, 40)).chain(counts.iter().map(u32::to_string)).chain(figures));
        }
        table.render()
    }
}

/// `198 of 201 succeeded, 2 failed, 1 skipped`.
pub fn counts_text(groups: &[v1::GroupCounts]) -> String {
    let sum = |of: fn(&v1::GroupCounts) -> u32| -> u64 { groups.iter().map(|group| u64::from(of(group))).sum() };
    let mut text = format!("{} of {} succeeded", sum(|g| g.succeeded), sum(|g| g.length));
    for (count, word) in [(sum(|g| g.failed), "failed"), (sum(|g| g.skipped), "skipped"), (sum(|g| g.cancelled), "cancelled")] {
        if count > 0 {
            text.push_str(&format!(", {count} {word}"));
        }
    }
    let retried = sum(|g| g.retried);
    if retried > 0 {
        text.push_str(&format!(", {retried} retries"));
    }
    text
}

impl GroupFile {
    fn into_counts(self) -> v1::GroupCounts {
        v1::GroupCounts {
            group: self.group,
            length: self.length,
            succeeded: self.succeeded,
            failed: self.failed,
            skipped: self.skipped,
            cancelled: self.cancelled,
            retried: self.retried,
            ..v1::GroupCounts::default()
        }
    }
}

impl Sums {
    fn add(&mut self, task: &TaskRecord) {
        let Some(duration) = task.duration_s else { return };
        self.executed += 1;
        self.duration_s += duration;
        self.duration_max_s = self.duration_max_s.max(duration);
        self.cpu_s += task.user_s.unwrap_or(0.0) + task.system_s.unwrap_or(0.0);
        self.peak_memory_bytes = self.peak_memory_bytes.max(task.peak_memory_bytes.unwrap_or(0));
        if let (Some(queued), Some(started)) = (&task.queued_at, &task.started_at) {
            self.queued_s += seconds_between(queued, started).unwrap_or(0.0).max(0.0);
        }
    }
}

fn seconds_between(from: &str, to: &str) -> Option<f64> {
    let (from, to): (Timestamp, Timestamp) = (from.parse().ok()?, to.parse().ok()?);
    Some(to.duration_since(from).as_secs_f64())
}
