//! What must be true of the machine as seen from outside: it reads specs, inputs and outputs and never the machine's state.

mod loss;
mod moves;
mod open;

use super::super::check::ensure;
use crate::ids::{GroupId, Handle, Micros, RunId, SessionId, TaskRef};
use crate::messages::*;
use crate::resources::Resources;
use crate::spec::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Succeeded,
    Failed,
    Skipped,
    Cancelled,
}

#[derive(Clone, Debug)]
struct Active {
    handle: Handle,
    attempt: u32,
    session: SessionId,
    started: bool,
    alone: bool,
}

#[derive(Clone, Debug, Default)]
struct Task {
    attempts: u32,
    active: Option<Active>,
    ended: Option<Ended>,
    retry_at: Micros,
    retries: u32,
    oom: u32,
    lost: u32,
    infra: u32,
    /// Workers that died while it executed.
    deaths: u32,
    cancel_asked: bool,
    /// The last attempt ended with this and nothing follows: the task has to end in the same step.
    must_end: bool,
    /// It has committed, whatever became of its result since.
    committed: bool,
    /// Its result is an object.
    held: bool,
    /// What is held is files of a run's directory.
    files: bool,
    /// Who has it.
    holders: BTreeSet<SessionId>,
    /// Who of them keeps it until it is told otherwise.
    kept: BTreeSet<SessionId>,
    /// They were lost when somebody needed it: it is made again, whatever becomes of that need.
    wanted: bool,
    /// The client has no reference on it.
    let_go: bool,
    released: bool,
    /// What it waits for by edges of its own, and whether it reads it.
    edges: Vec<(TaskRef, bool)>,
}

struct Group {
    run: RunId,
    spec: GroupSpec,
    length: Option<u32>,
    closed: bool,
    /// Elements may follow.
    growing: bool,
    /// The machine knows nothing of it any more.
    forgotten: bool,
    /// The client let go of its first element, there or not.
    group_let_go: bool,
    /// What the client let go of before it was there, `first..end`.
    let_go_early: Vec<(u32, u32)>,
    tasks: Vec<Task>,
    /// For each dependency that is element by element: all (upstream, downstream) pairs.
    pairs: Vec<Option<BTreeSet<(u32, u32)>>>,
}

struct Run {
    /// In order of their ordinals.
    groups: Vec<u32>,
    spec: RunSpec,
    open: bool,
    paused: bool,
    cancelled: bool,
    failures: u32,
    end: Option<RunEnd>,
}

struct Worker {
    capacity: Resources,
    components: Vec<String>,
    state: WorkerState,
    control: bool,
    data: bool,
    /// It said that it has no room for results.
    full: bool,
    /// Attempts on it: what each takes.
    load: BTreeMap<Handle, Resources>,
}

/// A report that the tests sent.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) session: SessionId,
    pub(super) handle: Handle,
    pub(super) attempt: u32,
    pub(super) class: OutcomeClass,
    /// False for what no worker could truthfully say.
    pub(super) genuine: bool,
    pub(super) result: Stored,
}

/// The oracle.
pub(super) struct Oracle {
    /// Nothing is ever sent ahead of room: what was dispatched must fit.
    pub(super) no_prefetch: bool,
    groups: BTreeMap<u32, Group>,
    runs: BTreeMap<u32, Run>,
    workers: BTreeMap<SessionId, Worker>,
    reports: BTreeMap<u32, Report>,
    unanswered: BTreeSet<u32>,
    handles: BTreeSet<Handle>,
    fence: u64,
    submitting: Option<RunSpec>,
    adding: Option<GroupSpec>,
    /// Holders that attempts said not to have had what they hold, in this step.
    denied: BTreeSet<(TaskRef, SessionId)>,
    /// What was let go, dropped and released in this step.
    gone: open::Gone,
    /// The appended range follows what was there.
    taken: bool,
    /// What workers said and what became of them.
    losses: loss::Losses,
    moves: moves::Moves,
    pub(super) commits: u64,
    pub(super) dispatches: u64,
}

impl Oracle {
    pub(super) fn new(no_prefetch: bool) -> Self {
        Oracle {
            no_prefetch,
            groups: BTreeMap::new(),
            runs: BTreeMap::new(),
            workers: BTreeMap::new(),
            reports: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            handles: BTreeSet::new(),
            fence: 0,
            submitting: None,
            adding: None,
            denied: BTreeSet::new(),
            gone: Default::default(),
            taken: false,
            losses: Default::default(),
            moves: Default::default(),
            commits: 0,
            dispatches: 0,
        }
    }

    pub(super) fn report(&mut self, token: u32, report: Report) {
        self.reports.insert(token, report);
    }

    pub(super) fn unfinished_runs(&self) -> Vec<u32> {
        self.runs.iter().filter(|(_, run)| run.end.is_none()).map(|(id, _)| *id).collect()
    }

    pub(super) fn group_count(&self, run: RunId) -> u32 {
        self.runs.get(&run.0).map_or(0, |run| run.groups.len() as u32)
    }

    pub(super) fn first_group(&self, run: RunId) -> u32 {
        self.runs.get(&run.0).and_then(|run| run.groups.first().copied()).unwrap_or(0)
    }

    /// Whether groups wait for this task to say a length.
    pub(super) fn says_length(&self, task: TaskRef) -> bool {
        let Some(group) = self.groups.get(&task.group.0) else { return false };
        let run = &self.runs[&group.run.0];
        let Some(ordinal) = run.groups.iter().position(|id| *id == task.group.0) else { return false };
        let mut groups = run.groups.iter().map(|id| &self.groups[id].spec);
        task.index == 0 && groups.any(|group| matches!(group.length, Length::From(from) if from == ordinal))
    }

    /// Takes note of what goes in, before the step.
    pub(super) fn before(&mut self, input: &Input) {
        self.before_loss(input);
        self.before_moves(input);
        match input {
            Input::Submit(spec) => self.submitting = Some((**spec).clone()),
            Input::Join { session, worker } => {
                self.workers.entry(*session).or_insert(Worker {
                    capacity: worker.capacity.clone(),
                    components: worker.components.clone(),
                    state: WorkerState::Joining,
                    control: true,
                    data: false,
                    full: false,
                    load: BTreeMap::new(),
                });
            }
            Input::Full { session, full } => {
                if let Some(worker) = self.workers.get_mut(session) {
                    worker.full = *full;
                }
            }
            Input::Attach { session, connection } => self.connected(*session, *connection, true),
            Input::Reset { session, connection } => self.connected(*session, *connection, false),
            Input::Events { events, .. } => {
                for event in events {
                    if let EventKind::Finished(finish) = &event.kind {
                        self.unanswered.insert(finish.token);
                        self.denied.extend(finish.missing.iter().flat_map(|missing| missing.0.iter().copied()));
                    }
                }
            }
            Input::Cancel { run, group, index } => self.asked_to_cancel(*run, *group, *index),
            input => self.before_open(input),
        }
    }

    fn connected(&mut self, session: SessionId, connection: Connection, up: bool) {
        if let Some(worker) = self.workers.get_mut(&session) {
            match connection {
                Connection::Control => worker.control = up,
                Connection::Data => worker.data = up,
            }
        }
    }

    fn asked_to_cancel(&mut self, run: RunId, group: Option<GroupId>, index: Option<u32>) {
        let Some(known) = self.runs.get_mut(&run.0).filter(|run| run.end.is_none()) else { return };
        known.cancelled |= group.is_none();
        for (id, state) in self.groups.iter_mut().filter(|(_, state)| state.run == run) {
            if group.is_none_or(|group| group.0 == *id) {
                for (at, task) in state.tasks.iter_mut().enumerate() {
                    task.cancel_asked |= index.is_none_or(|index| index as usize == at);
                    task.let_go |= group.is_none();
                }
                state.group_let_go |= group.is_none();
                // Nothing of a growing group follows then.
                state.closed |= state.growing && index.is_none();
            }
        }
        if group.is_none() {
            known_open(&mut self.runs, run);
        }
    }

    /// Looks at what came out of one step.
    pub(super) fn after(&mut self, now: Micros, out: &[Output]) -> Result<(), String> {
        self.look_at_loss(out)?;
        for output in out {
            self.output(now, output).map_err(|what| format!("{what}, in {output:?}"))?;
        }
        ensure!(self.unanswered.is_empty(), "reports {:?} were not answered", self.unanswered);
        self.submitting = None;
        self.adding = None;
        self.look_at_gone()?;
        for (id, group) in &self.groups {
            for (index, task) in group.tasks.iter().enumerate() {
                ensure!(!task.must_end || task.ended.is_some(), "task {id}[{index}] has no attempt left and did not end");
            }
        }
        for (session, worker) in &self.workers {
            let whole = worker.control && worker.data;
            ensure!(worker.state != WorkerState::Active || whole, "{session:?} is active without both connections");
        }
        Ok(())
    }

    fn output(&mut self, now: Micros, output: &Output) -> Result<(), String> {
        match output {
            Output::Submitted { run, first_group, known, .. } => self.submitted(*run, *first_group, *known),
            Output::Refused { .. } => Ok(()),
            Output::GroupAdded { run, ordinal, group } => self.group_added(*run, *ordinal, *group),
            Output::Rejected { run, ordinal, first, count, .. } => self.rejected(*run, *ordinal, *first, *count),
            Output::Restored { task, attempt, session, token } => self.restored(*task, *attempt, *session, *token),
            Output::Released { group, first, count } => self.released(*group, *first, *count),
            Output::GroupForgotten { run, group } => self.forgotten(*run, *group),
            Output::DropObject { session, task } => self.dropped(*session, *task),
            Output::Fetch { session, task, attempt } => self.fetched(*session, *task, *attempt),
            Output::Dispatch { session, dispatch } => self.dispatched(now, *session, dispatch),
            Output::Retract { session, handles } | Output::CancelAttempts { session, handles } => {
                ensure!(!handles.is_empty(), "it names nothing");
                ensure!(self.workers.contains_key(session), "there is no such session");
                Ok(())
            }
            Output::DrainWorker { .. } | Output::CloseSession { .. } => Ok(()),
            Output::AttemptStarted { task, attempt, session } => {
                let active = self.active(*task, *attempt, *session)?;
                ensure!(!active.started, "it had started before");
                active.started = true;
                Ok(())
            }
            Output::AttemptEnded { task, attempt, session, class, token, retry_at, .. } => {
                self.attempt_ended(now, *task, *attempt, *session, *class, *token, *retry_at)
            }
            Output::Committed { task, attempt, session, token } => self.committed(*task, *attempt, *session, *token),
            Output::Superseded { token } => self.answer(*token),
            Output::TaskFailed { task, attempts, .. } => {
                let state = self.task(*task)?;
                ensure!(state.active.is_none() && *attempts == state.attempts, "it had {} attempts", state.attempts);
                self.gone.given_up |= self.task(*task)?.committed;
                self.end(*task, Ended::Failed)?;
                let run = self.groups[&task.group.0].run;
                if let Some(run) = self.runs.get_mut(&run.0) {
                    run.failures += 1;
                }
                Ok(())
            }
            Output::Skipped { group, first, count, root } => self.skipped(*group, *first, *count, *root),
            Output::Cancelled { group, first, count } => self.cancelled(*group, *first, *count),
            Output::LengthKnown { group, length } => {
                let state = self.groups.get_mut(&group.0).ok_or("there is no such group")?;
                if std::mem::take(&mut state.growing) {
                    ensure!(state.tasks.len() == *length as usize, "{} were appended", state.tasks.len());
                    return Ok(());
                }
                ensure!(state.length.is_none() && !state.closed, "it had a length");
                state.length = Some(*length);
                state.tasks = vec![Task::default(); *length as usize];
                Ok(())
            }
            Output::RunEnded { run, end } => self.run_ended(*run, *end),
            Output::WorkerChanged { session, state } => {
                let worker = self.workers.get_mut(session).ok_or("there is no such session")?;
                ensure!(!matches!(worker.state, WorkerState::Lost | WorkerState::Gone), "it was over");
                worker.state = *state;
                if matches!(state, WorkerState::Lost | WorkerState::Gone) {
                    self.holder_gone(*session);
                }
                Ok(())
            }
        }
    }

    fn submitted(&mut self, id: RunId, first_group: GroupId, known: bool) -> Result<(), String> {
        if known {
            ensure!(self.runs.contains_key(&id.0), "it is not known");
            return Ok(());
        }
        let spec = self.submitting.take().ok_or("nothing was submitted")?;
        let groups: Vec<u32> = (first_group.0..).take(spec.groups.len()).collect();
        for (group, spec) in groups.iter().zip(&spec.groups) {
            ensure!(self.groups.insert(*group, new_group(id, spec)).is_none(), "its groups' ids were used before");
        }
        let (open, paused) = (spec.open, false);
        let run = Run { groups, spec, open, paused, cancelled: false, failures: 0, end: None };
        ensure!(self.runs.insert(id.0, run).is_none(), "its id was used before");
        Ok(())
    }

    fn dispatched(&mut self, now: Micros, session: SessionId, dispatch: &Dispatch) -> Result<(), String> {
        let Dispatch { handle, task, attempt, fence, .. } = *dispatch;
        self.dispatches += 1;
        ensure!(fence > self.fence, "its fence is not larger than {}", self.fence);
        self.fence = fence;
        ensure!(self.handles.insert(handle), "its handle was used before");
        let unmet = self.unmet(task)?;
        ensure!(unmet.is_none(), "it waits for {unmet:?}");
        ensure!(!self.workers.get(&session).is_some_and(|worker| worker.full), "the worker has no room for results");
        let group = &self.groups[&task.group.0];
        let run = &self.runs[&group.run.0];
        let stopped = run.spec.max_failures > 0 && run.failures >= run.spec.max_failures;
        ensure!(run.end.is_none() && !run.cancelled, "its run is over or cancelled");
        let again = group.tasks.get(task.index as usize).is_some_and(|task| task.committed);
        ensure!(!stopped || group.spec.always || again, "its run has stopped");
        ensure!(!run.paused, "its run is paused");
        let spec = group.spec.clone();
        let on_workers = group.tasks.iter().filter(|task| task.active.is_some()).count() as u32;
        ensure!(spec.max_parallel == 0 || on_workers < spec.max_parallel, "{on_workers} of its group are on workers");
        for (name, total) in &run.spec.totals {
            let used: u64 = run
                .groups
                .iter()
                .map(|id| &self.groups[id])
                .map(|group| {
                    group.spec.resources.custom(*name) * group.tasks.iter().filter(|task| task.active.is_some()).count() as u64
                })
                .sum();
            ensure!(used + spec.resources.custom(*name) <= *total, "{used} of {total} are in use");
        }
        let totals: Vec<_> = run.spec.totals.iter().map(|(name, _)| *name).collect();
        let mut takes = spec.resources.clone();
        takes.custom.retain(|(name, _)| !totals.contains(name));

        let deaths = self.task(task)?.deaths;
        let others_alone = self.groups.values().flat_map(|group| &group.tasks).filter_map(|task| task.active.as_ref());
        let others_alone = others_alone.filter(|active| active.session == session && active.alone).count();
        ensure!(others_alone == 0, "a task runs alone there");
        let worker = self.workers.get_mut(&session).ok_or("there is no such session")?;
        ensure!(worker.state == WorkerState::Active && worker.control && worker.data, "the worker is {:?}", worker.state);
        ensure!(
            worker.components.iter().any(|c| c == "*" || *c == spec.component),
            "the worker does not serve '{}'",
            spec.component
        );
        ensure!(worker.capacity.fits(&Resources::default(), &takes), "it can never fit there");
        ensure!(deaths < 2 || worker.load.is_empty(), "it is to run alone and {} others are there", worker.load.len());
        worker.load.insert(handle, takes);
        if self.no_prefetch {
            let mut sum = Resources::default();
            worker.load.values().for_each(|takes| sum.add(takes));
            ensure!(
                worker.capacity.fits(&sum, &Resources::default()),
                "the worker has {:?} and was given {sum:?}",
                worker.capacity
            );
            let customs = sum.custom.iter().all(|(name, amount)| *amount <= worker.capacity.custom(*name));
            ensure!(customs, "the worker has {:?} and was given {sum:?}", worker.capacity);
        }

        self.begin_again(task)?;
        let state = self.task(task)?;
        ensure!(state.ended.is_none(), "it is over");
        ensure!(state.active.is_none(), "another attempt is under way");
        ensure!(attempt > state.attempts, "it had {} attempts", state.attempts);
        ensure!(now >= state.retry_at, "it was to wait until {}", state.retry_at);
        ensure!(!state.cancel_asked, "it was cancelled");
        state.attempts = attempt;
        state.active = Some(Active { handle, attempt, session, started: false, alone: deaths >= 2 });
        Ok(())
    }

    /// What keeps a task from starting: (dependency, upstream element), if anything does.
    fn unmet(&self, task: TaskRef) -> Result<Option<(usize, u32)>, String> {
        let group = self.groups.get(&task.group.0).ok_or("there is no such group")?;
        let run = &self.runs[&group.run.0];
        for (ordinal, dependency) in group.spec.dependencies.iter().enumerate() {
            let up = &self.groups[&run.groups[dependency.group]];
            let met = |task: &Task| counts(task, dependency.data, group.spec.always);
            match (&group.pairs[ordinal], &dependency.kind) {
                (None, DependencyKind::One(index)) => {
                    if !met(&up.tasks[*index as usize]) {
                        return Ok(Some((ordinal, *index)));
                    }
                }
                (None, _) => {
                    let closed = up.closed && group.spec.always;
                    let ended = |task: &Task| met(task) || !dependency.data && task.committed;
                    if up.length.is_none() && !closed || up.growing || !up.tasks.iter().all(ended) {
                        return Ok(Some((ordinal, u32::MAX)));
                    }
                }
                (Some(pairs), _) => {
                    let missing = pairs.iter().find(|(from, to)| *to == task.index && !met(&up.tasks[*from as usize]));
                    if let Some((from, _)) = missing {
                        return Ok(Some((ordinal, *from)));
                    }
                }
            }
        }
        let own = group.tasks.get(task.index as usize).ok_or("there is no such task")?;
        for (up, data) in &own.edges {
            let state = &self.groups[&up.group.0].tasks[up.index as usize];
            if !counts(state, *data, group.spec.always) {
                return Ok(Some((usize::MAX, up.index)));
            }
        }
        Ok(None)
    }

    fn task(&mut self, task: TaskRef) -> Result<&mut Task, String> {
        let group = self.groups.get_mut(&task.group.0).ok_or("there is no such group")?;
        ensure!(!group.forgotten, "its group is forgotten");
        group.tasks.get_mut(task.index as usize).ok_or_else(|| "there is no such task".to_owned())
    }

    fn active(&mut self, task: TaskRef, attempt: u32, session: SessionId) -> Result<&mut Active, String> {
        let active = self.task(task)?.active.as_mut().ok_or("no attempt is under way")?;
        ensure!(
            active.attempt == attempt && active.session == session,
            "attempt {} is under way on {:?}",
            active.attempt,
            active.session
        );
        Ok(active)
    }

    /// The attempt is not under way any more.
    fn close(&mut self, task: TaskRef, attempt: u32, session: SessionId) -> Result<Active, String> {
        self.active(task, attempt, session)?;
        let active = self.task(task)?.active.take().ok_or("no attempt is under way")?;
        if let Some(worker) = self.workers.get_mut(&session) {
            worker.load.remove(&active.handle);
        }
        Ok(active)
    }

    fn end(&mut self, task: TaskRef, how: Ended) -> Result<(), String> {
        let run = self.groups.get(&task.group.0).ok_or("there is no such group")?.run;
        ensure!(self.runs[&run.0].end.is_none(), "its run was over");
        let state = self.task(task)?;
        if state.is_lost() {
            state.ended = None;
        }
        ensure!(state.ended.is_none(), "it was {:?} before", state.ended);
        ensure!(state.active.is_none(), "an attempt of it is under way");
        state.ended = Some(how);
        Ok(())
    }

    fn answer(&mut self, token: u32) -> Result<(), String> {
        ensure!(self.unanswered.remove(&token), "nobody waits for that answer");
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one output")]
    fn attempt_ended(
        &mut self,
        now: Micros,
        task: TaskRef,
        attempt: u32,
        session: SessionId,
        class: OutcomeClass,
        token: Option<u32>,
        retry_at: Option<Micros>,
    ) -> Result<(), String> {
        let active = self.close(task, attempt, session)?;
        if let Some(token) = token {
            self.answer(token)?;
            let report = self.reports.get(&token).ok_or("nobody sent that report")?.clone();
            let same = report.genuine && report.session == session && report.handle == active.handle && report.attempt == attempt;
            ensure!(same, "the report is not that attempt's: {report:?}");
        }
        let policy = self.groups[&task.group.0].spec.policy.clone();
        let suspect = class == OutcomeClass::Preempted && active.started && self.is_unsaid(session);
        let state = self.task(task)?;
        state.deaths += u32::from(suspect);
        if class == OutcomeClass::LostWorker {
            ensure!(active.started, "it had not started, and the worker's death was charged to it");
            state.deaths += 1;
        }
        let Some(retry_at) = retry_at else {
            state.must_end = true;
            return Ok(());
        };
        ensure!(retry_at >= now, "it is tried again in the past");
        state.retry_at = retry_at;
        match class {
            OutcomeClass::Preempted | OutcomeClass::InputLost => {}
            OutcomeClass::LostWorker => state.lost += 1,
            OutcomeClass::Oom => state.oom += 1,
            OutcomeClass::InfraStart => state.infra += 1,
            _ => state.retries += 1,
        }
        ensure!(
            state.lost <= policy.lost_worker_budget
                && state.oom <= policy.oom_budget
                && state.infra <= policy.infra_start_budget
                && state.retries <= policy.retries,
            "it has had more retries than it may: {state:?}"
        );
        Ok(())
    }

    fn committed(&mut self, task: TaskRef, attempt: u32, session: SessionId, token: u32) -> Result<(), String> {
        let active = self.close(task, attempt, session)?;
        self.answer(token)?;
        self.commits += 1;
        let report = self.reports.get(&token).ok_or("nobody sent that report")?.clone();
        let same = report.genuine && report.session == session && report.handle == active.handle && report.attempt == attempt;
        ensure!(same && report.class == OutcomeClass::Succeeded, "the report is not that attempt's success: {report:?}");
        ensure!(!self.task(task)?.cancel_asked, "it was cancelled");
        ensure!(!self.task(task)?.committed, "it had committed before");
        let result = report.result;
        self.store(task, session, result)?;
        self.end(task, Ended::Succeeded)
    }

    fn skipped(&mut self, id: GroupId, first: u32, count: u32, root: TaskRef) -> Result<(), String> {
        let root_state = self.task(root).map(|task| task.ended).unwrap_or(None);
        let closed_root = self.groups.get(&root.group.0).is_some_and(|group| group.closed);
        ensure!(root_state.is_some() || closed_root, "its root is not over");
        let group = self.groups.get_mut(&id.0).ok_or("there is no such group")?;
        if count == 0 {
            ensure!(group.length.is_none() && !group.closed, "it skips nothing");
            group.closed = true;
            return Ok(());
        }
        ensure!(!group.spec.always, "it runs always");
        let run = self.groups[&id.0].run;
        for index in first..first + count {
            let group = &self.groups[&id.0];
            let bad = |task: &Task| task.ended.is_some_and(|ended| ended != Ended::Succeeded);
            let blamed = group.spec.dependencies.iter().enumerate().any(|(ordinal, dependency)| {
                let up = &self.groups[&self.runs[&run.0].groups[dependency.group]];
                match (&group.pairs[ordinal], &dependency.kind) {
                    (None, DependencyKind::One(index)) => bad(&up.tasks[*index as usize]),
                    (None, _) => up.closed || up.tasks.iter().any(bad),
                    (Some(pairs), _) => pairs.iter().any(|(from, to)| *to == index && bad(&up.tasks[*from as usize])),
                }
            });
            let edges = &group.tasks[index as usize].edges;
            let blamed = blamed || edges.iter().any(|(up, _)| bad(&self.groups[&up.group.0].tasks[up.index as usize]));
            ensure!(blamed, "nothing that {index} needs has failed");
            let task = TaskRef { group: id, index };
            let kept = self.runs[&run.0].spec.open;
            ensure!(self.task(task)?.attempts == 0 || kept, "it had an attempt");
            self.end(task, Ended::Skipped)?;
        }
        Ok(())
    }

    fn cancelled(&mut self, id: GroupId, first: u32, count: u32) -> Result<(), String> {
        let group = self.groups.get_mut(&id.0).ok_or("there is no such group")?;
        let run = &self.runs[&group.run.0];
        let stopped = run.spec.max_failures > 0 && run.failures >= run.spec.max_failures && !group.spec.always;
        if count == 0 {
            ensure!(group.length.is_none() && !group.closed, "it cancels nothing");
            group.closed = true;
            return Ok(());
        }
        for index in first..first + count {
            let task = TaskRef { group: id, index };
            let asked = self.task(task)?.cancel_asked;
            ensure!(asked || stopped, "nobody wanted {index} cancelled");
            self.end(task, Ended::Cancelled)?;
        }
        Ok(())
    }

    fn run_ended(&mut self, id: RunId, end: RunEnd) -> Result<(), String> {
        let run = self.runs.get_mut(&id.0).ok_or("there is no such run")?;
        ensure!(run.end.is_none(), "it was over");
        run.end = Some(end);
        ensure!(!run.open, "it is open");
        let (mut failed, mut other) = (run.spec.max_failures > 0 && run.failures >= run.spec.max_failures, false);
        for group in run.groups.iter().map(|id| &self.groups[id]) {
            ensure!(group.length.is_some() || group.closed, "'{}' is still open", group.spec.name);
            ensure!(!group.growing, "'{}' still grows", group.spec.name);
            other |= group.closed;
            for (index, task) in group.tasks.iter().enumerate() {
                match task.ended {
                    None => return Err(format!("'{}'[{index}] is not over", group.spec.name)),
                    Some(Ended::Failed | Ended::Skipped) => failed = true,
                    Some(Ended::Cancelled) => other = true,
                    Some(Ended::Succeeded) => {}
                }
            }
        }
        let as_expected = match end {
            RunEnd::Cancelled => run.cancelled || (other && !failed),
            RunEnd::Failed => !run.cancelled && (failed || other),
            RunEnd::Succeeded => !run.cancelled && !failed && !other,
        };
        ensure!(as_expected, "cancelled: {}, failed: {failed}, other trouble: {other}", run.cancelled);
        Ok(())
    }
}

fn known_open(runs: &mut BTreeMap<u32, Run>, id: RunId) {
    if let Some(run) = runs.get_mut(&id.0) {
        run.open = false;
    }
}

/// Whether an upstream task stands as something that waits for it needs it.
fn counts(task: &Task, data: bool, always: bool) -> bool {
    match task.ended {
        // What has committed has, whatever became of its result.
        _ if task.committed && !data => true,
        Some(Ended::Succeeded) => !task.is_lost(),
        Some(_) => always,
        None => false,
    }
}

fn new_group(run: RunId, spec: &GroupSpec) -> Group {
    let length = match spec.length {
        Length::Fixed(length) => Some(length),
        Length::From(_) => None,
        Length::Growing => Some(0),
    };
    let pairs = spec.dependencies.iter().map(|dependency| match &dependency.kind {
        DependencyKind::Whole | DependencyKind::One(_) => None,
        DependencyKind::Projection(axes) => Some(pairs_of(axes)),
        DependencyKind::Edges(pairs) => Some(pairs.iter().copied().collect()),
    });
    Group {
        run,
        length,
        closed: false,
        growing: spec.length == Length::Growing,
        forgotten: false,
        group_let_go: false,
        let_go_early: Vec::new(),
        tasks: vec![Task::default(); length.unwrap_or(0) as usize],
        pairs: pairs.collect(),
        spec: spec.clone(),
    }
}

/// All pairs of a projection, by walking every combination of steps.
fn pairs_of(axes: &[Axis]) -> BTreeSet<(u32, u32)> {
    let mut pairs = BTreeSet::from([(0, 0)]);
    for axis in axes {
        pairs = pairs
            .iter()
            .flat_map(|(up, down)| {
                (0..axis.length).map(move |step| (up + step * axis.upstream_stride, down + step * axis.downstream_stride))
            })
            .collect();
    }
    pairs
}
