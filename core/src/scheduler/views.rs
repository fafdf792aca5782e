//! What others may read of the machine: runs, groups, workers, pools, states of tasks. Copies, never references into it.

use super::Scheduler;
use super::rows::Place;
use super::task_table::TaskState;
use crate::ids::{GroupId, RunId, SessionId, TaskRef};
use crate::messages::{RunEnd, WorkerState};
use crate::resources::Resources;
use std::collections::BTreeMap;

/// A run as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunView {
    /// Its name.
    pub name: String,
    /// Who asked for it.
    pub owner: String,
    /// Its first group. Those that it was submitted with follow it; see [`Scheduler::run_groups`] for all of an open run.
    pub first_group: GroupId,
    /// How many groups it has had.
    pub groups: u32,
    /// What is known of those that were forgotten.
    pub forgotten: Forgotten,
    /// Groups and elements may follow.
    pub open: bool,
    /// Nothing of it is dispatched: its client does not read its results.
    pub paused: bool,
    /// How it ended, once it has.
    pub end: Option<RunEnd>,
    /// Somebody cancelled the whole run.
    pub cancelling: bool,
    /// It had `max_failures` failures: nothing starts any more.
    pub stopped: bool,
    /// Tasks that failed.
    pub failures: u32,
    /// Cpu time used and expected of what runs, in micros, as the fair pick counts it: a new run starts level with the others.
    pub charged: u64,
}

/// Groups of an open run that are over and of which nobody can want anything any more, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// How many groups.
    pub groups: u32,
    /// Tasks over with a committed result.
    pub succeeded: u64,
    /// Over without.
    pub failed: u64,
    /// Never ran because something they need failed.
    pub skipped: u64,
    /// Ended by request or by `max_failures`.
    pub cancelled: u64,
    /// Attempts that were followed by another one.
    pub retried: u64,
    /// Something was not as it should be: a task failed or was skipped, or a group never had an element because of that.
    pub trouble: bool,
    /// Something was cancelled.
    pub cancellation: bool,
}

/// A group as it is now. The counts add up to `length`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupView {
    /// Its name.
    pub name: String,
    /// Its run.
    pub run: RunId,
    /// Number of elements; nothing while another task is to say it. Of a growing group: so far.
    pub length: Option<u32>,
    /// No element follows: the length is known for good, or there will be none.
    pub closed: bool,
    /// A dependency is not over.
    pub waiting: u32,
    /// May be dispatched.
    pub ready: u32,
    /// Waiting before another attempt.
    pub backoff: u32,
    /// On a worker, not known to execute.
    pub assigned: u32,
    /// Executing.
    pub running: u32,
    /// Over with a committed result.
    pub succeeded: u32,
    /// Over without.
    pub failed: u32,
    /// Never ran because something it needs failed.
    pub skipped: u32,
    /// Ended by request or by `max_failures`.
    pub cancelled: u32,
    /// Attempts that came to something and were followed by another one; not those taken back unstarted.
    pub retried: u32,
    /// Every element is over.
    pub over: bool,
}

/// A live worker as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerView {
    /// Its session.
    pub session: SessionId,
    /// Its name.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// Its state.
    pub state: WorkerState,
    /// What it has.
    pub capacity: Resources,
    /// What is reserved.
    pub used: Resources,
    /// Attempts that execute.
    pub executing: u32,
    /// Attempts that were sent and are not known to execute.
    pub queued: u32,
}

/// A pool as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolView {
    /// Its name.
    pub pool: String,
    /// Live workers by state.
    pub workers: BTreeMap<WorkerState, u32>,
    /// What its active workers have together.
    pub capacity: Resources,
    /// What is reserved of it.
    pub used: Resources,
    /// Workers on their way, as the provider says.
    pub starting: u32,
    /// The platform's words, or empty.
    pub note: String,
    /// Workers lost since the beginning.
    pub lost: u32,
}

impl Scheduler {
    /// A run, unless it is unknown or forgotten.
    pub fn run(&self, run: RunId) -> Option<RunView> {
        let run = self.runs.get(&run)?;
        Some(RunView {
            name: run.name.clone(),
            owner: run.owner.clone(),
            first_group: run.first_group,
            groups: run.groups_added,
            forgotten: run.forgotten,
            open: run.open,
            paused: run.paused,
            end: run.end,
            cancelling: run.cancelling,
            stopped: run.stopped,
            failures: run.failures,
            charged: run.charged,
        })
    }

    /// Every task of the run is over: only its being open keeps it from ending.
    pub fn only_open(&self, run: RunId) -> bool {
        let over = |run: &super::group::Run| run.groups_over as usize == run.groups.len();
        self.runs.get(&run).is_some_and(|run| run.open && run.end.is_none() && over(run))
    }

    /// Runs that are known, in order of submission.
    pub fn runs(&self) -> impl Iterator<Item = RunId> + '_ {
        self.runs.keys().copied()
    }

    /// Groups of a run that are known, in order of their ordinals.
    pub fn run_groups(&self, run: RunId) -> impl Iterator<Item = GroupId> + '_ {
        self.runs.get(&run).into_iter().flat_map(|run| run.groups.iter().copied())
    }

    /// The run of this name.
    pub fn run_named(&self, name: &str) -> Option<RunId> {
        self.run_names.get(name).copied()
    }

    /// A group, unless it is unknown or forgotten.
    pub fn group(&self, group: GroupId) -> Option<GroupView> {
        let group = self.groups.get(&group)?;
        let dispatched = group.dispatched.len();
        Some(GroupView {
            name: group.name.clone(),
            run: group.run,
            length: group.length,
            closed: !group.growing && (group.length.is_some() || group.closed.is_some()),
            waiting: group.waiting.len(),
            ready: group.ready_len(),
            backoff: group.backoff.len(),
            assigned: dispatched - group.running,
            running: group.running,
            succeeded: group.succeeded.len(),
            failed: group.failed.len(),
            skipped: group.skipped.len(),
            cancelled: group.cancelled.len(),
            retried: group.retried,
            over: group.over,
        })
    }

    /// Live workers, in no particular but a stable order.
    pub fn workers(&self) -> impl Iterator<Item = WorkerView> + '_ {
        self.workers.iter().flatten().map(|worker| WorkerView {
            session: worker.session,
            name: worker.name.clone(),
            pool: worker.pool.clone(),
            state: worker.state,
            capacity: worker.capacity.clone(),
            used: worker.used.clone(),
            executing: worker.executing.len,
            queued: worker.rows() - worker.executing.len,
        })
    }

    /// Pools that have workers or that a provider spoke of, by name.
    pub fn pools(&self) -> Vec<PoolView> {
        let mut pools: BTreeMap<&str, PoolView> = BTreeMap::new();
        for (name, known) in &self.pools {
            let view = pools.entry(name).or_default();
            view.lost = known.lost;
            if let Some(said) = &known.said {
                view.starting = said.starting;
                view.note = said.note.clone();
            }
        }
        for worker in self.workers.iter().flatten() {
            let view = pools.entry(&worker.pool).or_default();
            *view.workers.entry(worker.state).or_default() += 1;
            if worker.state == WorkerState::Active {
                view.capacity.add(&worker.capacity);
                view.used.add(&worker.used);
            }
        }
        pools.into_iter().map(|(name, view)| PoolView { pool: name.to_owned(), ..view }).collect()
    }

    /// A task's state, unless there is no such task. Its worst case is a lookup in each of the group's ranges.
    pub fn task_state(&self, task: TaskRef) -> Option<TaskState> {
        let group = self.groups.get(&task.group)?;
        if task.index >= group.length? {
            return None;
        }
        if let Some(slot) = group.dispatched.get(task.index) {
            return Some(self.rows.get(slot).state);
        }
        let ranges = [
            (&group.succeeded, TaskState::Succeeded),
            (&group.waiting, TaskState::Waiting),
            (&group.backoff, TaskState::Backoff),
            (&group.failed, TaskState::Failed),
            (&group.skipped, TaskState::Skipped),
            (&group.cancelled, TaskState::Cancelled),
        ];
        let state = ranges.into_iter().find(|(set, _)| set.contains(task.index)).map(|(_, state)| state);
        state.or_else(|| group.queues.iter().any(|queue| queue.ready.contains(task.index)).then_some(TaskState::Ready))
    }

    /// Number of the task's latest attempt; 0 before the first, or when there is no such task.
    pub fn task_attempt(&self, task: TaskRef) -> u32 {
        self.groups.get(&task.group).map_or(0, |group| group.attempts(task.index))
    }

    /// The attempt whose result the task has, once it succeeded.
    pub fn committed_attempt(&self, task: TaskRef) -> Option<u32> {
        let group = self.groups.get(&task.group)?;
        group.succeeded.contains(task.index).then(|| group.attempts(task.index))
    }

    /// The worker that a task's current attempt is on.
    pub fn task_worker(&self, task: TaskRef) -> Option<SessionId> {
        let slot = self.groups.get(&task.group)?.dispatched.get(task.index)?;
        Some(self.worker(self.rows.get(slot).worker).session)
    }

    /// Up to `limit` indices of the group that are in `state`, from `first` on, in order. Takes time for the group's dispatched
    /// rows or for what it returns, never for the group.
    pub fn tasks_in(&self, group: GroupId, state: TaskState, first: u32, limit: usize) -> Vec<u32> {
        let Some(group) = self.groups.get(&group) else { return Vec::new() };
        let from = |set: &super::interval_set::IntervalSet| set.iter_from(first).take(limit).collect();
        match state {
            TaskState::Waiting => from(&group.waiting),
            TaskState::Backoff => from(&group.backoff),
            TaskState::Succeeded => from(&group.succeeded),
            TaskState::Failed => from(&group.failed),
            TaskState::Skipped => from(&group.skipped),
            TaskState::Cancelled => from(&group.cancelled),
            TaskState::Ready => {
                let queues = group.queues.iter().flat_map(|queue| queue.ready.iter_from(first).take(limit));
                let mut found: Vec<u32> = queues.collect();
                found.sort_unstable();
                found.truncate(limit);
                found
            }
            TaskState::Assigned | TaskState::Running | TaskState::Retracting | TaskState::Cancelling => {
                let in_state =
                    group.dispatched.iter().filter(|(index, slot)| *index >= first && self.rows.get(*slot).state == state);
                let mut found: Vec<u32> = in_state.map(|(index, _)| index).collect();
                found.sort_unstable();
                found.truncate(limit);
                found
            }
        }
    }

    /// Attempts on workers, executing or not.
    pub fn attempts_on_workers(&self) -> usize {
        self.rows.iter().filter(|(_, row)| row.place != Place::Free).count()
    }
}
