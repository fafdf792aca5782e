//! The oracle's part for open runs: what was appended, who holds which result, who still reads it.

use super::*;

/// What a step said of references: looked at when all else of the step is known.
#[derive(Default)]
pub(super) struct Gone {
    dropped: Vec<(SessionId, TaskRef)>,
    released: Vec<TaskRef>,
    /// A result was given up: what was to be made again for its sake may have begun already.
    pub(super) given_up: bool,
    /// What a worker is to keep.
    pub(super) wanted: Vec<TaskRef>,
}

impl Task {
    /// It has committed an object that nobody has.
    pub(super) fn is_lost(&self) -> bool {
        self.ended == Some(Ended::Succeeded) && self.held && self.holders.is_empty()
    }
}

impl Group {
    /// What was let go before it was there is let go now that it is.
    fn let_go_early(&mut self) {
        for &(first, end) in &self.let_go_early {
            self.tasks.iter_mut().take(end as usize).skip(first as usize).for_each(|task| task.let_go = true);
        }
    }
}

impl Oracle {
    pub(super) fn before_open(&mut self, input: &Input) {
        match input {
            Input::AddGroup { spec, .. } => self.adding = Some((**spec).clone()),
            Input::Append { run, group, first, count, edges, .. } => {
                self.taken = false;
                let Some(state) = self.groups.get_mut(&group.0).filter(|state| state.run == *run) else { return };
                if state.growing && !state.closed && state.tasks.len() == *first as usize {
                    let tasks = (*first..*first + *count).map(|index| {
                        let own = edges.iter().filter(|edge| edge.element == index);
                        Task { edges: own.map(|edge| (edge.upstream, edge.data)).collect(), ..Task::default() }
                    });
                    state.tasks.extend(tasks);
                    state.let_go_early();
                    state.length = Some(state.tasks.len() as u32);
                    self.taken = true;
                }
            }
            Input::CloseRun { run } => known_open(&mut self.runs, *run),
            Input::Pause { run, paused } => {
                if let Some(run) = self.runs.get_mut(&run.0) {
                    run.paused = *paused;
                }
            }
            Input::Release { group, first, count } => {
                let Some(state) = self.groups.get_mut(&group.0) else { return };
                state.group_let_go |= *first == 0 && *count > 0;
                if state.growing {
                    state.let_go_early.push((*first, first.saturating_add(*count)));
                }
                let end = state.tasks.len().min((*first as usize).saturating_add(*count as usize));
                for task in state.tasks.iter_mut().take(end).skip(*first as usize) {
                    task.let_go = true;
                }
            }
            Input::ObjectCopied { session, task } => drop(self.has_copy(*session, *task)),
            Input::ObjectKept { session, task } => {
                if let Some(state) = self.has_copy(*session, *task) {
                    state.kept.insert(*session);
                }
            }
            Input::ObjectSecured { task, attempt } => {
                if let Ok(state) = self.task(*task)
                    && state.ended == Some(Ended::Succeeded)
                    && state.attempts == *attempt
                    && !state.holders.is_empty()
                {
                    state.held = false;
                    state.holders.clear();
                    state.kept.clear();
                }
            }
            _ => {}
        }
    }

    /// A worker has a copy of something, if anybody believes it.
    fn has_copy(&mut self, session: SessionId, task: TaskRef) -> Option<&mut Task> {
        let worker = self.workers.get(&session)?;
        let live = !matches!(worker.state, WorkerState::Lost | WorkerState::Gone);
        let state = self.task(task).ok()?;
        let there = state.ended == Some(Ended::Succeeded) && state.held && !state.holders.is_empty();
        if !there || !live {
            return None;
        }
        state.holders.insert(session);
        Some(state)
    }

    pub(super) fn group_added(&mut self, id: RunId, ordinal: u32, group: GroupId) -> Result<(), String> {
        let spec = self.adding.clone().ok_or("nobody added a group")?;
        let run = self.runs.get_mut(&id.0).ok_or("there is no such run")?;
        ensure!(run.open && run.groups.len() == ordinal as usize, "it has {} groups, open: {}", run.groups.len(), run.open);
        run.groups.push(group.0);
        ensure!(self.groups.insert(group.0, new_group(id, &spec)).is_none(), "its id was used before");
        Ok(())
    }

    pub(super) fn rejected(&mut self, id: RunId, ordinal: u32, first: u32, count: u32) -> Result<(), String> {
        let Some(run) = self.runs.get_mut(&id.0) else { return Ok(()) };
        let Some(&group) = run.groups.get(ordinal as usize) else { return Ok(()) };
        let Some(state) = self.groups.get_mut(&group) else { return Ok(()) };
        if count == 0 {
            ensure!(self.adding.is_some(), "nobody added a group");
            if ordinal as usize + 1 == run.groups.len() {
                let grows = state.growing;
                *state = new_group(id, &GroupSpec { dependencies: Vec::new(), ..state.spec.clone() });
                state.closed = true;
                state.growing = grows;
                if !grows {
                    (state.tasks, state.length) = (Vec::new(), Some(0));
                }
            }
            return Ok(());
        }
        let had = state.tasks.len();
        if state.growing && had < (first + count) as usize {
            state.tasks.resize((first + count) as usize, Task::default());
            state.let_go_early();
            state.length = Some(first + count);
        }
        // What was there before a range that does not follow it is left alone.
        let from = if self.taken { first as usize } else { had };
        for task in state.tasks.iter_mut().take((first + count) as usize).skip(from) {
            ensure!(task.ended.is_none() && task.attempts == 0, "an element was under way");
            task.ended = Some(Ended::Failed);
            run.failures += 1;
        }
        Ok(())
    }

    /// The result of an attempt that has committed.
    pub(super) fn store(&mut self, task: TaskRef, session: SessionId, result: Stored) -> Result<(), String> {
        let kept = self.groups.get(&task.group.0).and_then(|group| self.runs.get(&group.run.0)).is_some_and(|run| run.spec.open);
        let state = self.task(task)?;
        state.committed = true;
        state.held = kept && matches!(result, Stored::Held(_) | Stored::Files(_));
        state.files = matches!(result, Stored::Files(_));
        state.holders.clear();
        state.kept.clear();
        state.wanted = false;
        // With success its budgets begin anew.
        (state.retries, state.oom, state.lost, state.infra, state.deaths) = (0, 0, 0, 0, 0);
        if state.held {
            state.holders.insert(session);
            state.kept.insert(session);
        }
        Ok(())
    }

    /// A task that is over is dispatched again: only because its result is lost and needed.
    pub(super) fn begin_again(&mut self, task: TaskRef) -> Result<(), String> {
        if self.task(task)?.ended.is_some() {
            ensure!(self.task(task)?.is_lost(), "it is over and its result is there");
            // What needed it may have been given up in this very step, or cancelled with the report that said that it is gone, after
            // it had begun again for that.
            let reported = self.gone.given_up || self.denied.iter().any(|(denied, _)| *denied == task);
            let wanted = self.state(task).wanted || reported || self.is_needed(task);
            ensure!(wanted, "it is over and nobody needs its result: {:?}", self.state(task));
            // What was over when it was to be cancelled is not cancelled.
            let state = self.task(task)?;
            (state.ended, state.cancel_asked) = (None, false);
        }
        Ok(())
    }

    pub(super) fn restored(&mut self, task: TaskRef, attempt: u32, session: SessionId, token: u32) -> Result<(), String> {
        let active = self.close(task, attempt, session)?;
        self.answer(token)?;
        let report = self.reports.get(&token).ok_or("nobody sent that report")?.clone();
        let same = report.genuine && report.session == session && report.handle == active.handle && report.attempt == attempt;
        ensure!(same && report.class == OutcomeClass::Succeeded, "the report is not that attempt's success: {report:?}");
        ensure!(self.task(task)?.committed, "it had never committed");
        let result = report.result;
        self.store(task, session, result)?;
        self.end(task, Ended::Succeeded)
    }

    pub(super) fn holder_gone(&mut self, session: SessionId) {
        for task in self.groups.values_mut().flat_map(|group| &mut group.tasks) {
            task.holders.remove(&session);
            task.kept.remove(&session);
        }
    }

    pub(super) fn dropped(&mut self, session: SessionId, task: TaskRef) -> Result<(), String> {
        // A copy of what nobody knows is not needed either.
        let Ok(state) = self.task(task) else { return Ok(()) };
        state.holders.remove(&session);
        state.kept.remove(&session);
        if !self.denied.contains(&(task, session)) {
            self.gone.dropped.push((session, task));
        }
        Ok(())
    }

    pub(super) fn released(&mut self, group: GroupId, first: u32, count: u32) -> Result<(), String> {
        for index in first..first + count {
            let task = TaskRef { group, index };
            let state = self.task(task)?;
            ensure!(!state.released, "{index} was released before");
            state.released = true;
            self.gone.released.push(task);
        }
        Ok(())
    }

    /// Looked at once all else of the step is known: it is said last.
    pub(super) fn forgotten(&mut self, run: RunId, group: GroupId) -> Result<(), String> {
        let state = self.groups.get(&group.0).filter(|state| state.run == run).ok_or("its run has no such group")?;
        ensure!(!state.forgotten, "it was forgotten before");
        let known = self.runs.get(&run.0).filter(|run| run.spec.open && run.end.is_none());
        let known = known.ok_or("its run is over, or was never open")?;
        ensure!(!self.group_is_under_way(group.0), "it is not over");
        for (index, task) in state.tasks.iter().enumerate() {
            ensure!(task.ended.is_some() && task.let_go && task.released, "its element {index} is wanted");
        }
        ensure!(!state.tasks.is_empty() || state.group_let_go, "the client may make something depend on it");
        let ordinal = known.groups.iter().position(|id| *id == group.0);
        for id in known.groups.iter().filter(|id| self.group_is_under_way(**id)) {
            let waits = self.groups[id].spec.dependencies.iter().any(|dependency| Some(dependency.group) == ordinal);
            // What is made again waits for what it reads alone.
            let first =
                self.groups[id].growing || self.groups[id].tasks.iter().any(|task| !task.committed && task.ended.is_none());
            ensure!(!(waits && first), "group {id} waits for it");
        }
        if let Some(state) = self.groups.get_mut(&group.0) {
            state.forgotten = true;
        }
        Ok(())
    }

    /// At the end of a step: what was dropped was not needed, what was released will never be.
    pub(super) fn look_at_gone(&mut self) -> Result<(), String> {
        self.denied.clear();
        let Gone { dropped, released, given_up, wanted } = std::mem::take(&mut self.gone);
        let over = |oracle: &Oracle, task: &TaskRef| {
            let run = oracle.groups.get(&task.group.0).and_then(|group| oracle.runs.get(&group.run.0));
            run.is_none_or(|run| run.end.is_some())
        };
        self.look_at_lost(given_up);
        for (session, task) in dropped {
            let state = self.state(task);
            let stale = state.ended != Some(Ended::Succeeded) || !state.held;
            // Of what is made again old copies are dropped.
            let lost = state.is_lost();
            let free = over(self, &task) || stale || lost || !self.is_needed(task);
            ensure!(free, "{task:?} is needed and {session:?} may drop it");
        }
        for task in wanted {
            ensure!(over(self, &task) || self.is_needed(task), "{task:?} is to be kept and nobody needs it");
        }
        for task in released {
            if over(self, &task) {
                continue;
            }
            let state = self.state(task);
            ensure!(state.ended.is_some() && state.let_go, "{task:?} is released and not over, or the client needs it");
            ensure!(!self.is_retained(task), "{task:?} is released and somebody reads it");
            ensure!(self.state(task).holders.is_empty(), "{task:?} is released and held");
        }
        let ended: Vec<u32> = self.runs.iter().filter(|(_, run)| run.end.is_some() && run.spec.open).map(|(id, _)| *id).collect();
        for id in ended {
            let groups = self.runs[&id].groups.clone();
            for group in groups.iter().map(|id| &self.groups[id]) {
                for (index, task) in group.tasks.iter().enumerate() {
                    ensure!(task.released && task.holders.is_empty(), "'{}'[{index}] outlives its run", group.spec.name);
                }
            }
        }
        Ok(())
    }

    /// What is lost and needed now is made again.
    pub(super) fn look_at_lost(&mut self, given_up: bool) {
        let lost = |(id, group): (&u32, &Group)| {
            let id = GroupId(*id);
            let lost = (0u32..).zip(&group.tasks).filter(|(_, task)| task.is_lost() && !task.wanted && !task.released);
            lost.map(|(index, _)| TaskRef { group: id, index }).collect::<Vec<_>>()
        };
        let lost: Vec<TaskRef> = self.groups.iter().flat_map(lost).collect();
        let needed: Vec<TaskRef> = lost.into_iter().filter(|task| given_up || self.is_needed(*task)).collect();
        for task in needed {
            if let Ok(state) = self.task(task) {
                state.wanted = true;
            }
        }
    }

    /// Tasks that read this one, and whether a whole group that is not over does.
    fn readers(&self, task: TaskRef) -> (Vec<TaskRef>, Vec<u32>) {
        let group = &self.groups[&task.group.0];
        let run = &self.runs[&group.run.0];
        let ordinal = run.groups.iter().position(|id| *id == task.group.0).unwrap();
        let (mut tasks, mut whole) = (Vec::new(), Vec::new());
        for id in &run.groups {
            let down = &self.groups[id];
            for (at, dependency) in down.spec.dependencies.iter().enumerate() {
                if !dependency.data || dependency.group != ordinal {
                    continue;
                }
                match (&down.pairs[at], &dependency.kind) {
                    (None, DependencyKind::One(index)) if *index != task.index => {}
                    (None, _) => whole.push(*id),
                    (Some(pairs), _) => {
                        let to = pairs.iter().filter(|(from, _)| *from == task.index).map(|(_, to)| *to);
                        tasks.extend(to.map(|index| TaskRef { group: GroupId(*id), index }));
                    }
                }
            }
            for (index, down) in (0u32..).zip(&down.tasks) {
                if down.edges.contains(&(task, true)) {
                    tasks.push(TaskRef { group: GroupId(*id), index });
                }
            }
        }
        (tasks, whole)
    }

    fn state(&self, task: TaskRef) -> &Task {
        &self.groups[&task.group.0].tasks[task.index as usize]
    }

    /// Not over, or over and to be made again.
    fn is_under_way(&self, task: TaskRef) -> bool {
        let state = self.state(task);
        state.ended.is_none() || state.is_lost() && !state.released && (state.wanted || self.is_needed(task))
    }

    /// Somebody may read its result.
    pub(super) fn is_needed(&self, task: TaskRef) -> bool {
        if !self.state(task).let_go {
            return true;
        }
        let (tasks, whole) = self.readers(task);
        tasks.into_iter().any(|reader| self.is_under_way(reader)) || whole.into_iter().any(|id| self.group_is_under_way(id))
    }

    fn group_is_under_way(&self, id: u32) -> bool {
        let group = &self.groups[&id];
        let tasks = (0..group.tasks.len() as u32).map(|index| TaskRef { group: GroupId(id), index });
        group.growing || group.length.is_none() && !group.closed || tasks.into_iter().any(|task| self.is_under_way(task))
    }

    /// Somebody may read its result, or would have to if his own were lost.
    fn is_retained(&self, task: TaskRef) -> bool {
        let heir = |state: &Task| state.ended == Some(Ended::Succeeded) && state.held && !state.released;
        let (tasks, whole) = self.readers(task);
        self.is_needed(task)
            || tasks.into_iter().any(|reader| heir(self.state(reader)))
            || whole.into_iter().any(|id| self.groups[&id].tasks.iter().any(heir))
    }

    /// What a task reads and who is said to have it.
    pub(crate) fn inputs(&self, task: TaskRef) -> Vec<(TaskRef, Vec<SessionId>)> {
        let Some(group) = self.groups.get(&task.group.0) else { return Vec::new() };
        let run = &self.runs[&group.run.0];
        let mut inputs: Vec<TaskRef> = Vec::new();
        for (at, dependency) in group.spec.dependencies.iter().enumerate().filter(|(_, dependency)| dependency.data) {
            let up = GroupId(run.groups[dependency.group]);
            let length = self.groups[&up.0].tasks.len() as u32;
            let indices: Vec<u32> = match (&group.pairs[at], &dependency.kind) {
                (None, DependencyKind::One(index)) => vec![*index],
                (None, _) => (0..length).collect(),
                (Some(pairs), _) => pairs.iter().filter(|(_, to)| *to == task.index).map(|(from, _)| *from).collect(),
            };
            inputs.extend(indices.into_iter().map(|index| TaskRef { group: up, index }));
        }
        if let Some(state) = group.tasks.get(task.index as usize) {
            inputs.extend(state.edges.iter().filter(|(_, data)| *data).map(|(up, _)| *up));
        }
        let held = inputs.into_iter().map(|up| (up, self.state(up).holders.iter().copied().collect::<Vec<_>>()));
        held.filter(|(_, holders)| !holders.is_empty()).collect()
    }

    /// Results that somebody holds.
    pub(crate) fn held(&self) -> Vec<TaskRef> {
        let of = |(id, group): (&u32, &Group)| {
            let id = *id;
            let held = (0u32..).zip(&group.tasks).filter(|(_, task)| !task.holders.is_empty()).map(|(index, _)| index);
            held.map(|index| TaskRef { group: GroupId(id), index }).collect::<Vec<_>>()
        };
        self.groups.iter().flat_map(of).collect()
    }

    /// Results that somebody holds and from which another result was made that somebody holds.
    pub(crate) fn held_inputs(&self) -> Vec<TaskRef> {
        let of = |task: TaskRef| self.state(task).edges.iter().filter(|(_, data)| *data).map(|(up, _)| *up).collect::<Vec<_>>();
        let held = |up: &TaskRef| !self.state(*up).holders.is_empty() && !self.state(*up).let_go;
        self.held().into_iter().flat_map(of).filter(held).collect()
    }

    /// Results that somebody holds and that were made from results that nobody holds any more.
    pub(crate) fn held_with_lost_inputs(&self) -> Vec<TaskRef> {
        let lost = |task: &TaskRef| self.state(*task).edges.iter().any(|(up, data)| *data && self.state(*up).is_lost());
        self.held().into_iter().filter(lost).collect()
    }

    /// Whether nobody can have its result any more.
    pub(crate) fn is_released(&self, task: TaskRef) -> bool {
        self.state(task).released
    }

    /// Open runs.
    pub(crate) fn open_runs(&self) -> Vec<RunId> {
        self.runs.iter().filter(|(_, run)| run.open).map(|(id, _)| RunId(*id)).collect()
    }

    /// Runs that were opened and are not over.
    pub(crate) fn kept_runs(&self) -> Vec<RunId> {
        self.runs.iter().filter(|(_, run)| run.spec.open && run.end.is_none()).map(|(id, _)| RunId(*id)).collect()
    }

    /// Groups of a run that are not forgotten.
    pub(crate) fn known_groups(&self, run: RunId) -> usize {
        let groups = self.runs.get(&run.0).map_or(&[][..], |run| &run.groups[..]);
        groups.iter().filter(|id| !self.groups[id].forgotten).count()
    }

    /// A run's groups with their lengths, and which grow; also of those that are forgotten.
    pub(crate) fn groups_of(&self, run: RunId) -> Vec<(GroupId, u32, bool)> {
        let groups = self.runs.get(&run.0).map_or(&[][..], |run| &run.groups[..]);
        groups.iter().map(|id| (GroupId(*id), self.groups[id].tasks.len() as u32, self.groups[id].growing)).collect()
    }

    /// Specs of a run's groups.
    pub(crate) fn specs_of(&self, run: RunId) -> Vec<GroupSpec> {
        let groups = self.runs.get(&run.0).map_or(&[][..], |run| &run.groups[..]);
        groups.iter().map(|id| self.groups[id].spec.clone()).collect()
    }
}
