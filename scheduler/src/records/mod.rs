//! The records of a run: `run.json`, `tasks.jsonl`, `failures.jsonl`, `workers.jsonl`, `summary.json`, and the readable names
//! of committed outputs. Written by one thread of its own, in the order in which the machine decided.
//!
//! The queue to it is bounded. At the bound the reactor waits: a disk that cannot keep up slows the scheduler down rather
//! than losing a record.

mod files;
mod run;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use scalable_core::ids::RunId;
use scalable_core::messages::RunEnd;
use scalable_proto::v1;
use tokio::sync::mpsc;

use crate::reactor::{GroupInfo, Report};
pub(crate) use files::link_tree;
use run::{Run, Workers};

/// Records waiting to be written.
const QUEUE_MAX: usize = 65_536;
/// Above this many tasks, `tasks.jsonl` keeps failures only and `run.json` says so.
pub const TASKS_RECORDED_MAX: u64 = 1_000_000;
/// What is written reaches the files after this time without a new record.
const FLUSH_AFTER: Duration = Duration::from_millis(50);

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
        /// Why outputs are missing in the run's directory, if any are.
        outputs_missing: Option<String>,
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
    /// When it was taken. Not when it is recorded, which may be after its first tasks have started.
    pub began: jiff::Timestamp,
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

struct Writer {
    runs: BTreeMap<RunId, Run>,
    workers: Workers,
    done: mpsc::Sender<RunId>,
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
                run.alive(&self.workers);
                self.runs.insert(run.id(), run);
            }
            Record::Succeeded { group, index, attempt, worker, report } => {
                if let Some(run) = self.runs.get_mut(&group.run()) {
                    let brief = matches!(report, Some(Report::Brief(_)));
                    let mut report = report.map(Report::into_full).unwrap_or_default();
                    if brief && run.lists_everything() {
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
                if run.lists_everything() || count < 1000 {
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
                    run.alive(&self.workers);
                }
            }
            Record::RunEnded { run: id, end, counts, outputs_missing } => {
                if let Some(mut run) = self.runs.remove(&id) {
                    run.end(end, &counts, outputs_missing.as_deref());
                }
                let _ = self.done.blocking_send(id);
            }
        }
    }
}
