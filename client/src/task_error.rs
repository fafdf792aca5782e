//! How a task that was submitted ended badly: what happened, on which attempt and worker, and what it last said.

use std::fmt;
use std::sync::Arc;

use scalable_proto::v1;

/// The attempt that an error is about, and what it left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempt {
    /// The task, as `group[index]`.
    pub task: String,
    /// From 1; 0 when there was none.
    pub number: u32,
    /// Name of the worker, or empty.
    pub worker: String,
    /// The end of what it wrote to its output, at most 16 KiB.
    pub stdout: String,
    /// The end of what it wrote to its error output, at most 16 KiB.
    pub stderr: String,
}

/// Why a task has no result. Every variant but [`TaskError::Rejected`] tells the attempt it is about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The function returned an error, or the command an exit code that is none of success. The message is the error's `Display`.
    #[error("{attempt} failed: {message}{}", tail(.attempt))]
    Failed {
        /// What it said.
        message: String,
        /// The command's exit code.
        exit_code: Option<i32>,
        /// Where.
        attempt: Arc<Attempt>,
    },
    /// The function panicked.
    #[error("{attempt} panicked: {message}{}", tail(.attempt))]
    Panicked {
        /// The panic's message and place.
        message: String,
        /// Its backtrace, where the worker could make one.
        backtrace: String,
        /// Where.
        attempt: Arc<Attempt>,
    },
    /// It needed more memory than it had, also after its memory was raised.
    #[error(
        "{attempt} ran out of memory: it had {limit} bytes and was seen at {peak}; give it more with `memory`, or let `oom_factor` do it"
    )]
    Oom {
        /// Bytes it had; 0 when not known.
        limit: u64,
        /// Highest figure seen, bytes.
        peak: u64,
        /// Where.
        attempt: Arc<Attempt>,
    },
    /// It ran longer than its `timeout`.
    #[error("{attempt} ran into its timeout{}", tail(.attempt))]
    Timeout {
        /// Where.
        attempt: Arc<Attempt>,
    },
    /// The workers that executed it went away, more often than its budget allows.
    #[error("{attempt} was lost with its worker: {message}")]
    WorkerLost {
        /// What is known of the loss.
        message: String,
        /// The last attempt.
        attempt: Arc<Attempt>,
    },
    /// It was cancelled.
    #[error("{attempt} was cancelled{}", because(.message))]
    Cancelled {
        /// Why, or empty.
        message: String,
        /// Where.
        attempt: Arc<Attempt>,
    },
    /// A task it depends on has no result.
    #[error("{attempt} was not run: {root}, which it depends on, did not succeed{}", because(.message))]
    DependencyFailed {
        /// The failure it began with, as `group[index]`.
        root: String,
        /// More, or empty.
        message: String,
        /// The task that was not run.
        attempt: Arc<Attempt>,
    },
    /// Workers die when they execute it.
    #[error("{attempt} is not tried again: workers died executing it{}", because(.message))]
    Poison {
        /// More, or empty.
        message: String,
        /// The last attempt.
        attempt: Arc<Attempt>,
    },
    /// It was refused and never existed.
    #[error("{message}{}", because(.help))]
    Rejected {
        /// Stable code, for programs.
        code: String,
        /// One sentence.
        message: String,
        /// What to do now, or empty.
        help: String,
    },
    /// The program on the worker has another function of this name: other arguments or another result.
    #[error("{attempt} was not run: the worker's program is another version: {message}")]
    VersionSkew {
        /// What differs.
        message: String,
        /// Where.
        attempt: Arc<Attempt>,
    },
    /// It could not be started: the executable, the directory, the disk.
    #[error("{attempt} could not be started: {message}")]
    NotStarted {
        /// Why.
        message: String,
        /// Where.
        attempt: Arc<Attempt>,
    },
    /// A result it needs, or its own, is gone and could not be made again.
    #[error("the result of {attempt} is lost: {message}")]
    ResultLost {
        /// What happened.
        message: String,
        /// Where.
        attempt: Arc<Attempt>,
    },
    /// The bytes of the result are no value of the type that was expected.
    #[error("the result of {attempt} could not be decoded: {message}")]
    Undecodable {
        /// What the codec said.
        message: String,
        /// Where.
        attempt: Arc<Attempt>,
    },
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.task.is_empty() { "the task" } else { &self.task })?;
        match (self.number, self.worker.as_str()) {
            (0, _) => Ok(()),
            (number, "") => write!(f, " (attempt {number})"),
            (number, worker) => write!(f, " (attempt {number} on {worker})"),
        }
    }
}

/// The last lines of the error output, for a message.
fn tail(attempt: &Attempt) -> String {
    const LINES: usize = 10;
    let text = attempt.stderr.trim_end();
    if text.is_empty() {
        return String::new();
    }
    let start = text.rmatch_indices('\n').nth(LINES - 1).map_or(0, |(at, _)| at + 1);
    format!("\n{}", &text[start..])
}

fn because(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

impl TaskError {
    /// The attempt it is about; none for [`TaskError::Rejected`].
    pub fn attempt(&self) -> Option<&Attempt> {
        match self {
            TaskError::Rejected { .. } => None,
            TaskError::Failed { attempt, .. }
            | TaskError::Panicked { attempt, .. }
            | TaskError::Oom { attempt, .. }
            | TaskError::Timeout { attempt }
            | TaskError::WorkerLost { attempt, .. }
            | TaskError::Cancelled { attempt, .. }
            | TaskError::DependencyFailed { attempt, .. }
            | TaskError::Poison { attempt, .. }
            | TaskError::VersionSkew { attempt, .. }
            | TaskError::NotStarted { attempt, .. }
            | TaskError::ResultLost { attempt, .. }
            | TaskError::Undecodable { attempt, .. } => Some(attempt),
        }
    }

    /// From the wire. `task` is the task's name, `root` that of the failure it began with.
    pub(crate) fn from_wire(error: v1::TaskError, task: String, root: String) -> TaskError {
        use v1::OutcomeClass as Class;
        let class = error.class();
        let report = error.report.unwrap_or_default();
        let attempt = Arc::new(Attempt {
            task,
            number: error.attempt,
            worker: error.worker,
            stdout: String::from_utf8_lossy(&report.stdout_tail).into_owned(),
            stderr: String::from_utf8_lossy(&report.stderr_tail).into_owned(),
        });
        let message = report.message;
        match class {
            _ if report.panicked => TaskError::Panicked { message, backtrace: report.backtrace, attempt },
            Class::Timeout => TaskError::Timeout { attempt },
            Class::Oom => TaskError::Oom { limit: report.memory_limit_bytes, peak: report.peak_memory_bytes, attempt },
            Class::LostWorker => TaskError::WorkerLost { message, attempt },
            Class::Cancelled | Class::Preempted => TaskError::Cancelled { message, attempt },
            Class::DependencyFailed => TaskError::DependencyFailed { root, message, attempt },
            Class::Poison => TaskError::Poison { message, attempt },
            Class::Rejected => TaskError::Rejected { code: "REJECTED".to_owned(), message, help: String::new() },
            Class::InfraStart => TaskError::NotStarted { message, attempt },
            Class::InputLost | Class::InputChanged => TaskError::ResultLost { message, attempt },
            _ => TaskError::Failed {
                message: said(message, &report.exit_code, &report.signal),
                exit_code: report.exit_code,
                attempt,
            },
        }
    }
}

/// What a failure says, also where it says nothing.
fn said(message: String, exit_code: &Option<i32>, signal: &Option<i32>) -> String {
    match (message.is_empty(), exit_code, signal) {
        (false, ..) => message,
        (true, _, Some(signal)) => format!("it was ended by signal {signal}"),
        (true, Some(code), None) => format!("it exited with code {code}"),
        (true, None, None) => "it did not say why".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_where_and_the_last_words() {
        let report = v1::AttemptReport {
            message: "no such scenario".to_owned(),
            stderr_tail: (0..20).map(|n| format!("line {n}\n")).collect::<String>().into(),
            ..Default::default()
        };
        let wire = v1::TaskError {
            class: v1::OutcomeClass::AppError.into(),
            attempt: 2,
            worker: "local-1".to_owned(),
            report: Some(report),
            ..Default::default()
        };
        let error = TaskError::from_wire(wire, "simulate[7]".to_owned(), String::new());
        let text = error.to_string();
        assert!(text.starts_with("simulate[7] (attempt 2 on local-1) failed: no such scenario\nline 10\n"), "{text}");
        assert!(text.ends_with("line 19"), "{text}");
    }
}
