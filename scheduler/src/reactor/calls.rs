//! Answers to unary calls, and the views of state that progress frames and snapshots share.

use scalable_core::ids::{RunId, TaskRef};
use scalable_core::messages::{Input, RunEnd, WorkerState};
use scalable_core::scheduler::TaskState;
use scalable_proto::v1;
use tonic::Status;

use super::{Reactor, workers};
use crate::convert;

/// Tasks in one listing.
const LIST_MAX: u32 = 10_000;
/// The row of those groups of an open run that are over and forgotten: no group can have this name.
const FORGOTTEN: &str = "(forgotten)";

impl Reactor {
    /// The run of this name; `@last` or nothing is the newest.
    pub(super) fn run_named(&self, name: &str) -> Option<RunId> {
        if name.is_empty() || name == "@last" {
            return self.runs.keys().next_back().copied();
        }
        self.runs.iter().find(|(_, run)| run.spec.name == name).map(|(id, _)| *id)
    }

    pub(super) fn wanted_run(&self, name: &str) -> Result<RunId, Status> {
        self.run_named(name).ok_or_else(|| {
            Status::not_found(format!("no run `{name}` is known here; `scalable status` lists the runs of this scheduler"))
        })
    }

    pub(super) fn wanted_group(&self, run: RunId, name: &str) -> Result<std::sync::Arc<super::GroupInfo>, Status> {
        let groups = self.runs.get(&run).into_iter().flat_map(|run| run.group_ids());
        let found = groups.filter_map(|id| self.groups.get(&id)).find(|group| group.spec.name == name);
        found.cloned().ok_or_else(|| {
            let forgotten = self.machine.run(run).map_or(0, |run| run.forgotten.groups);
            let but = match forgotten {
                0 => String::new(),
                groups => format!("; of {groups} groups that are over and let go of it knows the sum only, as `{FORGOTTEN}`"),
            };
            Status::not_found(format!("the run has no group `{name}`{but}"))
        })
    }

    pub(crate) fn progress(&self, id: RunId) -> v1::RunProgress {
        let Some(run) = self.runs.get(&id) else { return v1::RunProgress::default() };
        let cancelling = self.machine.run(id).is_some_and(|view| view.cancelling);
        let state = match run.end {
            None if cancelling => v1::RunState::Cancelling,
            None => v1::RunState::Running,
            Some(RunEnd::Succeeded) => v1::RunState::Succeeded,
            Some(RunEnd::Failed) => v1::RunState::Failed,
            Some(RunEnd::Cancelled) => v1::RunState::Cancelled,
        };
        let groups = run.group_ids().filter_map(|group| self.group_counts(group)).chain(self.forgotten_counts(id)).collect();
        v1::RunProgress {
            run: run.spec.name.clone(),
            state: state.into(),
            groups,
            pools: self.pool_counts(),
            complete: run.complete,
            note: self.outputs_note(id),
        }
    }

    fn group_counts(&self, id: scalable_core::ids::GroupId) -> Option<v1::GroupCounts> {
        let view = self.machine.group(id)?;
        let info = self.groups.get(&id)?;
        Some(v1::GroupCounts {
            group: info.spec.name.clone(),
            length: view.length.unwrap_or(0),
            open: view.length.is_none(),
            waiting: view.waiting,
            ready: view.ready,
            backoff: view.backoff,
            assigned: view.assigned,
            running: view.running,
            succeeded: view.succeeded,
            failed: view.failed,
            skipped: view.skipped,
            cancelled: view.cancelled,
            retried: view.retried,
        })
    }

    /// The groups of an open run that are over and of which only this is kept, in one row.
    fn forgotten_counts(&self, id: RunId) -> Option<v1::GroupCounts> {
        let sum = self.machine.run(id)?.forgotten;
        let count = |tasks: u64| u32::try_from(tasks).unwrap_or(u32::MAX);
        (sum.groups > 0).then(|| v1::GroupCounts {
            group: FORGOTTEN.to_owned(),
            length: count(sum.succeeded + sum.failed + sum.skipped + sum.cancelled),
            succeeded: count(sum.succeeded),
            failed: count(sum.failed),
            skipped: count(sum.skipped),
            cancelled: count(sum.cancelled),
            retried: count(sum.retried),
            ..Default::default()
        })
    }

    fn pool_counts(&self) -> Vec<v1::PoolCounts> {
        let in_state = |pool: &scalable_core::scheduler::PoolView, state| pool.workers.get(&state).copied().unwrap_or(0);
        self.machine
            .pools()
            .into_iter()
            .map(|pool| v1::PoolCounts {
                workers: in_state(&pool, WorkerState::Active),
                starting: pool.starting + in_state(&pool, WorkerState::Joining),
                suspect: in_state(&pool, WorkerState::Suspect),
                draining: in_state(&pool, WorkerState::Draining),
                milli_cpus: pool.capacity.milli_cpus,
                milli_cpus_used: pool.used.milli_cpus,
                memory_bytes: pool.capacity.memory_bytes,
                memory_bytes_used: pool.used.memory_bytes,
                note: pool.note,
                lost: pool.lost,
                pool: pool.pool,
            })
            .collect()
    }

    pub(super) fn cluster_status(&self, run: Option<v1::RunProgress>) -> v1::StatusReply {
        let names = self.machine.names();
        let worker_status = |view: scalable_core::scheduler::WorkerView| {
            let session = self.workers.get(&view.session);
            v1::WorkerStatus {
                name: view.name,
                pool: view.pool,
                state: workers::state_word(view.state).to_owned(),
                executing: view.executing,
                queued: view.queued,
                resources: Some(convert::resources_to_wire(&view.capacity, names)),
                used: Some(convert::resources_to_wire(&view.used, names)),
                pid: session.map_or(0, |session| session.pid),
                session: view.session.0,
                host: session.map_or_else(String::new, |session| session.host.clone()),
                uncopied: self.outputs.uncopied(view.session),
            }
        };
        v1::StatusReply {
            run,
            pools: self.pool_counts(),
            workers: self.machine.workers().map(worker_status).collect(),
            cluster_id: self.identity.cluster_id.clone(),
            epoch: self.identity.epoch,
            build: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    pub(crate) fn list_runs(&self) -> v1::ListRunsReply {
        v1::ListRunsReply { runs: self.runs.keys().rev().take(1000).map(|run| self.progress(*run)).collect() }
    }

    pub(crate) fn status(&self, request: &v1::StatusRequest) -> Result<v1::StatusReply, Status> {
        let run = if request.run.is_empty() { None } else { Some(self.progress(self.wanted_run(&request.run)?)) };
        Ok(self.cluster_status(run))
    }

    pub(crate) fn list_tasks(&self, request: &v1::ListTasksRequest) -> Result<v1::ListTasksReply, Status> {
        let run = self.wanted_run(&request.run)?;
        let limit = request.limit.clamp(1, LIST_MAX) as usize;
        let mut wanted = Vec::new();
        for word in &request.states {
            let state = TaskState::ALL.iter().find(|state| state.word() == word).ok_or_else(|| {
                let known: Vec<&str> = TaskState::ALL.iter().map(|state| state.word()).collect();
                Status::invalid_argument(format!("`{word}` is no state of a task; there are {}", known.join(", ")))
            })?;
            wanted.push(*state);
        }
        if wanted.is_empty() {
            wanted.extend(TaskState::ALL);
        }
        let groups = if request.group.is_empty() {
            let ids = self.runs.get(&run).into_iter().flat_map(|run| run.group_ids());
            ids.filter_map(|id| self.groups.get(&id).cloned()).collect()
        } else {
            vec![self.wanted_group(run, &request.group)?]
        };
        let mut tasks = Vec::new();
        for group in groups {
            for state in &wanted {
                let room = limit.saturating_sub(tasks.len());
                for index in self.machine.tasks_in(group.id, *state, request.first, room) {
                    let task = TaskRef { group: group.id, index };
                    tasks.push(v1::TaskStatus {
                        group: group.spec.name.clone(),
                        index,
                        parameters: group.parameters(index),
                        state: state.word().to_owned(),
                        attempt: self.machine.task_attempt(task),
                        worker: self
                            .machine
                            .task_worker(task)
                            .map(|session| self.worker_name(session).to_string())
                            .unwrap_or_default(),
                    });
                }
            }
        }
        Ok(v1::ListTasksReply { tasks })
    }

    pub(crate) fn explain(&self, request: &v1::ExplainRequest) -> Result<v1::ExplainReply, Status> {
        if let Some(pool) = request.group.strip_prefix("pool/") {
            return self.explain_pool(pool);
        }
        let run = self.wanted_run(&request.run)?;
        let group = self.wanted_group(run, &request.group)?;
        let task = TaskRef { group: group.id, index: request.index };
        let explanation = self.machine.explain(task, self.now()).ok_or_else(|| {
            let length = self.machine.group(group.id).and_then(|view| view.length).unwrap_or(0);
            Status::not_found(format!("group `{}` has {length} tasks; there is no [{}]", request.group, request.index))
        })?;
        let sentence = match self.uncopied_because(run, task) {
            Some(why) => format!("{}; {why}", explanation.sentence),
            None => explanation.sentence,
        };
        Ok(v1::ExplainReply { state: explanation.state.word().to_owned(), sentence })
    }

    /// What is there of a pool, why there is not more, and what was decided about it lately.
    fn explain_pool(&self, name: &str) -> Result<v1::ExplainReply, Status> {
        let pools = self.pool_counts();
        let Some(pool) = pools.iter().find(|pool| pool.pool == name) else {
            let known: Vec<&str> = pools.iter().map(|pool| pool.pool.as_str()).collect();
            return Err(Status::not_found(format!("there is no pool `{name}`; there are: {}", known.join(", "))));
        };
        let mut sentence = format!(
            "{} workers, {} starting, {} suspect, {} draining, {} lost so far",
            pool.workers, pool.starting, pool.suspect, pool.draining, pool.lost
        );
        if !pool.note.is_empty() {
            sentence.push_str(&format!("; {}", pool.note));
        }
        for (at, reason) in self.pools.get(name).map(|seen| seen.state.decisions.as_slice()).unwrap_or_default() {
            sentence.push_str(&format!("\n{at:.1} s: {reason}"));
        }
        Ok(v1::ExplainReply { state: "pool".to_owned(), sentence })
    }

    pub(crate) fn cancel(&mut self, request: &v1::CancelRequest) -> Result<v1::CancelReply, Status> {
        let run = self.wanted_run(&request.run)?;
        let group = if request.group.is_empty() { None } else { Some(self.wanted_group(run, &request.group)?.id) };
        if group.is_none() && request.index.is_some() {
            return Err(Status::invalid_argument("an index needs a group"));
        }
        let open = |progress: &v1::RunProgress| -> u32 {
            progress.groups.iter().map(|g| g.waiting + g.ready + g.backoff + g.assigned + g.running).sum()
        };
        let tasks = if request.index.is_some() { 1 } else { open(&self.progress(run)) };
        tracing::info!(run = %request.run, group = %request.group, index = ?request.index, reason = %request.reason, "cancel");
        self.step(Input::Cancel { run, group, index: request.index });
        Ok(v1::CancelReply { tasks })
    }

    pub(crate) fn shut_down(&mut self, request: &v1::ShutdownRequest) -> Result<v1::ShutdownReply, Status> {
        let live = self.runs.values().any(|run| run.end.is_none());
        if live && !request.cancel_runs {
            return Err(Status::failed_precondition("runs are live: cancel them first, or ask for it with cancel_runs"));
        }
        self.begin_stop("a client asked for it".to_owned(), request.cancel_runs);
        Ok(v1::ShutdownReply {})
    }
}
