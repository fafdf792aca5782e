//! A failed attempt in full: which task, with which parameters, how it ended, what it said, where the rest is, and the command
//! to run it again by hand. The same text for a failure of now and for one from the records.

use scalable_proto::v1;

use crate::records::TaskRecord;
use crate::ui::{bytes, harmless, one_line, span};

/// Lines of a stream's tail that are shown.
const TAIL_LINES: usize = 20;

/// What is known of a failed attempt.
#[derive(Clone, Debug, Default)]
pub struct FailureText {
    /// `group[index]`.
    pub task: String,
    pub parameters: String,
    pub attempt: u32,
    pub worker: String,
    /// Class of the failure, in words.
    pub class: String,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub duration_s: Option<f64>,
    pub message: String,
    pub memory: Option<(u64, u64)>,
    pub stdout_tail: String,
    pub stderr_tail: String,
    /// Files with all of it.
    pub logs: Vec<String>,
    pub kept_directory: String,
    pub rerun: String,
    /// It is tried again.
    pub retried: bool,
}

/// A failure class as a word, the one of `error_type` in the records.
pub fn class_word(class: v1::OutcomeClass) -> &'static str {
    match class {
        v1::OutcomeClass::Unspecified => "unknown",
        v1::OutcomeClass::Succeeded => "succeeded",
        v1::OutcomeClass::AppError => "app_error",
        v1::OutcomeClass::Timeout => "timeout",
        v1::OutcomeClass::Oom => "oom",
        v1::OutcomeClass::MissingOutput => "missing_output",
        v1::OutcomeClass::InputChanged => "input_changed",
        v1::OutcomeClass::InfraStart => "infra_start",
        v1::OutcomeClass::Preempted => "preempted",
        v1::OutcomeClass::Cancelled => "cancelled",
        v1::OutcomeClass::LostWorker => "lost_worker",
        v1::OutcomeClass::Poison => "poison",
        v1::OutcomeClass::DependencyFailed => "dependency_failed",
        v1::OutcomeClass::BadOutput => "bad_output",
        v1::OutcomeClass::InputLost => "input_lost",
        v1::OutcomeClass::Rejected => "rejected",
    }
}

impl FailureText {
    /// From the wire.
    pub fn from_wire(failed: &v1::TaskFailed) -> FailureText {
        let report = failed.report.clone().unwrap_or_default();
        let log = |stream: &str, bytes: u64| {
            (bytes > 0 && !failed.log_directory.is_empty())
                .then(|| format!("{}/{}.{}.{stream}", failed.log_directory.trim_end_matches('/'), failed.index, failed.attempt))
        };
        FailureText {
            task: format!("{}[{}]", failed.group, failed.index),
            parameters: failed.parameters.clone(),
            attempt: failed.attempt,
            worker: failed.worker.clone(),
            class: class_word(report.class()).to_owned(),
            exit_code: report.exit_code,
            signal: report.signal,
            duration_s: (report.finished_us > report.started_us && report.started_us > 0)
                .then(|| (report.finished_us - report.started_us) as f64 / 1e6),
            message: report.message.clone(),
            memory: (report.class() == v1::OutcomeClass::Oom).then_some((report.memory_limit_bytes, report.peak_memory_bytes)),
            stdout_tail: String::from_utf8_lossy(&report.stdout_tail).into_owned(),
            stderr_tail: String::from_utf8_lossy(&report.stderr_tail).into_owned(),
            logs: [log("stderr", report.stderr_bytes), log("stdout", report.stdout_bytes)].into_iter().flatten().collect(),
            kept_directory: report.kept_directory.clone(),
            rerun: report.rerun,
            retried: !failed.r#final,
        }
    }

    /// From the records of a run.
    pub fn from_record(record: &TaskRecord) -> FailureText {
        let class = record.error_type.clone().unwrap_or_default();
        FailureText {
            task: record.task_id.clone(),
            parameters: record.parameters_text(),
            attempt: record.attempt,
            worker: record.worker.clone().unwrap_or_default(),
            memory: (class == "oom")
                .then(|| (record.memory_limit_bytes.unwrap_or_default(), record.peak_memory_bytes.unwrap_or_default())),
            class,
            exit_code: record.exit_code,
            signal: record.signal,
            duration_s: record.duration_s,
            message: record.error_message.clone().unwrap_or_default(),
            stdout_tail: record.stdout_tail.clone().unwrap_or_default(),
            stderr_tail: record.stderr_tail.clone().unwrap_or_default(),
            logs: [&record.log_stderr, &record.log_stdout].into_iter().flatten().cloned().collect(),
            kept_directory: record.kept_directory.clone().unwrap_or_default(),
            rerun: record.rerun.clone().unwrap_or_default(),
            retried: record.last == Some(false),
        }
    }

    /// How it ended, in a few words: `exit code 3 after 1.2 s`.
    pub fn how(&self) -> String {
        let mut how = match (self.exit_code, self.signal) {
            (_, Some(signal)) => format!("ended by signal {signal}{}", signal_name(signal)),
            (Some(code), None) => format!("exit code {code}"),
            (None, None) => self.class.replace('_', " "),
        };
        if let Some(seconds) = self.duration_s {
            how.push_str(&format!(" after {}", span(seconds)));
        }
        how
    }

    /// One line.
    pub fn line(&self) -> String {
        let parameters = if self.parameters.is_empty() { String::new() } else { format!(" ({})", self.parameters) };
        let again = if self.retried { ", will be tried again" } else { "" };
        let message = if self.message.is_empty() { String::new() } else { format!(": {}", self.message) };
        one_line(&format!("{}{parameters} attempt {}: {}{message}{again}", self.task, self.attempt, self.how()), 240)
    }

    /// All of it. `run_directory` makes relative paths absolute.
    pub fn full(&self, run_directory: &str) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &str| {
            if !value.is_empty() {
                text.push_str(&format!("  {name:<11}{}\n", one_line(value, 4000)));
            }
        };
        line("parameters", &self.parameters);
        line("ended", &self.how());
        if !self.class.is_empty() && self.class != "app_error" {
            line("class", &self.class);
        }
        line("why", &self.message);
        // What ended with its worker was not measured to its end.
        if let Some((limit, peak)) = self.memory.filter(|memory| *memory != (0, 0)) {
            line("memory", &format!("limit {}, peak {}", bytes(limit), bytes(peak)));
        }
        line("worker", &self.worker);
        for log in &self.logs {
            line("log", &in_directory(run_directory, log));
        }
        line(
            "directory",
            &if self.kept_directory.is_empty() { String::new() } else { in_directory(run_directory, &self.kept_directory) },
        );
        for (name, tail) in [("stderr", &self.stderr_tail), ("stdout", &self.stdout_tail)] {
            // What it printed to stdout explains a failure only where stderr is silent.
            if tail.trim().is_empty() || (name == "stdout" && !self.stderr_tail.trim().is_empty()) {
                continue;
            }
            text.push_str(&format!("  the end of its {name}:\n"));
            let tail = harmless(tail.trim_end());
            let lines: Vec<&str> = tail.lines().collect();
            for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
                text.push_str(&format!("    | {line}\n"));
            }
        }
        if !self.rerun.is_empty() {
            text.push_str(&format!(
                "  to run it again by hand:\n    {}\n",
                harmless(self.rerun.trim_end()).replace('\n', "\n    ")
            ));
        }
        if self.retried {
            text.push_str("  it will be tried again\n");
        }
        format!("{} failed in attempt {}\n{text}", one_line(&self.task, 200), self.attempt)
    }
}

fn in_directory(directory: &str, path: &str) -> String {
    if path.starts_with('/') || directory.is_empty() { path.to_owned() } else { format!("{directory}/{path}") }
}

fn signal_name(signal: i32) -> String {
    nix::sys::signal::Signal::try_from(signal).map_or_else(|_| String::new(), |signal| format!(" ({})", signal.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> v1::TaskFailed {
        v1::TaskFailed {
            run: "run-1".into(),
            group: "simulate".into(),
            index: 7,
            parameters: "scenario=rcp45,member=7".into(),
            attempt: 2,
            worker: "local-0".into(),
            r#final: true,
            log_directory: "/runs/run-1/logs/simulate".into(),
            report: Some(v1::AttemptReport {
                class: v1::OutcomeClass::AppError.into(),
                exit_code: Some(3),
                started_us: 1_000_000,
                finished_us: 2_200_000,
                message: "the command ended with exit code 3".into(),
                stderr_tail: b"Traceback:\n  \x1b[31mValueError\x1b[0m: no such scenario\x07\n".to_vec().into(),
                stderr_bytes: 40,
                stdout_tail: b"starting\n".to_vec().into(),
                stdout_bytes: 9,
                kept_directory: "failed/simulate/7.2".into(),
                rerun: "cd /runs/run-1/failed/simulate/7.2 &&\npython3 simulate.py rcp45 7".into(),
                ..Default::default()
            }),
        }
    }

    #[test]
    fn a_failure_in_full() {
        insta::assert_snapshot!(FailureText::from_wire(&failed()).full("/runs/run-1"));
    }

    #[test]
    fn a_failure_on_one_line() {
        let mut failed = failed();
        failed.r#final = false;
        failed.parameters = "name=a\nb\x1b[2J".into();
        insta::assert_snapshot!(FailureText::from_wire(&failed).line());
    }

    #[test]
    fn out_of_memory_names_limit_and_peak() {
        let report = v1::AttemptReport {
            class: v1::OutcomeClass::Oom.into(),
            signal: Some(9),
            memory_limit_bytes: 512 << 20,
            peak_memory_bytes: 511 << 20,
            ..Default::default()
        };
        let failed =
            v1::TaskFailed { group: "big".into(), attempt: 1, report: Some(report), r#final: true, ..Default::default() };
        insta::assert_snapshot!(FailureText::from_wire(&failed).full(""));
    }
}
