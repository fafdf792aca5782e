//! What clients of open runs do: groups and elements follow, references end, runs are paused and closed. And the copies that
//! workers make, and the holders that they do not find.

use super::*;

impl Sim {
    pub(super) fn client_turn(&mut self) -> Result<(), String> {
        match self.rng.below(100) {
            0..18 => return self.copy(),
            18..22 => return self.secure(),
            22..29 => return self.kill_a_holder(),
            29..30 => return self.fill(),
            30..42 => return self.empty(),
            42..45 => return self.answer_wanted(),
            _ => {}
        }
        let runs = self.oracle.kept_runs();
        if runs.is_empty() {
            return Ok(());
        }
        let run = *self.rng.pick(&runs);
        match self.rng.weighted(&[40, 12, 20, 3, 1, 1]) {
            0 => self.append(run),
            1 => self.add_group(run),
            2 => self.release(run),
            3 => {
                let paused = self.rng.chance(60);
                self.feed(Input::Pause { run, paused }).map(|_| ())
            }
            4 => self.feed(Input::CloseRun { run }).map(|_| ()),
            _ => self.append_wrongly(run),
        }
    }

    /// Some task of the run, if there is one.
    fn some_task(&mut self, run: RunId) -> Option<TaskRef> {
        let groups: Vec<(GroupId, u32, bool)> =
            self.oracle.groups_of(run).into_iter().filter(|(_, length, _)| *length > 0).collect();
        let (group, length, _) = *(!groups.is_empty()).then(|| self.rng.pick(&groups))?;
        Some(TaskRef { group, index: self.rng.below(u64::from(length)) as u32 })
    }

    fn append(&mut self, run: RunId) -> Result<(), String> {
        let groups = self.oracle.groups_of(run);
        let total: u32 = groups.iter().map(|(_, length, _)| length).sum();
        let growing: Vec<(GroupId, u32, bool)> = groups.into_iter().filter(|(_, _, growing)| *growing).collect();
        if growing.is_empty() || total > 40 {
            return Ok(());
        }
        let (group, first, _) = *self.rng.pick(&growing);
        let count = 1 + self.rng.below(3) as u32;
        let mut edges = Vec::new();
        for element in first..first + count {
            for _ in 0..self.rng.below(3) {
                if let Some(upstream) = self.some_task(run) {
                    let data = self.rng.chance(75) && (!self.oracle.is_released(upstream) || self.rng.chance(5));
                    edges.push(Edge { element, upstream, data });
                }
            }
            if element > 0 && self.rng.chance(50) {
                let upstream = TaskRef { group, index: element - 1 };
                edges.push(Edge { element, upstream, data: element > first || !self.oracle.is_released(upstream) });
            }
        }
        let last = self.rng.chance(20);
        self.feed(Input::Append { run, group, first, count, edges, last }).map(|_| ())
    }

    /// Everything a client can get wrong.
    fn append_wrongly(&mut self, run: RunId) -> Result<(), String> {
        let groups = self.oracle.groups_of(run);
        let total: u32 = groups.iter().map(|(_, length, _)| length).sum();
        if groups.is_empty() || total > 40 {
            return Ok(());
        }
        let (group, length, _) = *self.rng.pick(&groups);
        let edge = |element, group, index| Edge { element, upstream: TaskRef { group, index }, data: true };
        let (first, edges) = match self.rng.below(5) {
            0 => (length + 1, Vec::new()),
            1 => (length.saturating_sub(1), Vec::new()),
            2 => (length, vec![edge(length, group, length)]),
            3 => (length, vec![edge(length, GroupId(9_999), 0)]),
            _ => (length, vec![edge(length + 7, group, 0)]),
        };
        let run = if self.rng.chance(10) { RunId(77) } else { run };
        self.feed(Input::Append { run, group, first, count: 1, edges, last: false }).map(|_| ())
    }

    fn add_group(&mut self, run: RunId) -> Result<(), String> {
        let before = self.oracle.groups_of(run);
        if self.oracle.known_groups(run) > 6 || before.len() > 12 {
            return Ok(());
        }
        let specs = self.oracle.specs_of(run);
        let lengths: Vec<(u32, bool)> = before.iter().map(|(_, length, growing)| (*length, *growing)).collect();
        let mut spec = random_group(&mut self.rng, self.machine.names_mut(), &specs, &lengths);
        let mut ordinal = before.len() as u32;
        match self.rng.below(12) {
            0 => spec.name = String::new(),
            1 => ordinal += 1,
            _ => {}
        }
        self.feed(Input::AddGroup { run, ordinal, spec: Box::new(spec) }).map(|_| ())
    }

    fn release(&mut self, run: RunId) -> Result<(), String> {
        if self.rng.chance(10) {
            // Nobody has anything to do with the group any more.
            let groups = self.oracle.groups_of(run);
            let Some((group, ..)) = (!groups.is_empty()).then(|| *self.rng.pick(&groups)) else { return Ok(()) };
            return self.feed(Input::Release { group, first: 0, count: u32::MAX }).map(|_| ());
        }
        // What has been read, and may have to be made again for what was made from it; of any run.
        let read = self.oracle.held_inputs();
        if !read.is_empty() && self.rng.chance(40) {
            let TaskRef { group, index } = *self.rng.pick(&read);
            return self.feed(Input::Release { group, first: index, count: 1 }).map(|_| ());
        }
        let Some(task) = self.some_task(run) else { return Ok(()) };
        let count = *self.rng.pick(&[1, 1, 2, 4]);
        self.feed(Input::Release { group: task.group, first: task.index, count }).map(|_| ())
    }

    /// A worker that holds something dies.
    fn kill_a_holder(&mut self) -> Result<(), String> {
        let mut held = self.oracle.held();
        let heirs = self.oracle.held_with_lost_inputs();
        if !heirs.is_empty() && self.rng.chance(70) {
            held = heirs;
        }
        if held.is_empty() {
            return Ok(());
        }
        let task = *self.rng.pick(&held);
        let holders: Vec<SessionId> = self.machine.holders(task).collect();
        let Some(at) = self.workers.iter().position(|worker| holders.contains(&worker.session) && !worker.closed) else {
            return Ok(());
        };
        self.workers[at].alive = false;
        let worker = self.workers[at].spec.name.clone();
        self.feed(Input::Died { worker, cause: DeathCause::Failed, reason: "signal 9".to_owned() }).map(|_| ())
    }

    /// A worker has no room for results, or has some again.
    fn fill(&mut self) -> Result<(), String> {
        let Some(at) = self.some_worker() else { return Ok(()) };
        let (session, full) = (self.workers[at].session, self.rng.chance(60));
        self.feed(Input::Full { session, full }).map(|_| ())
    }

    /// A worker says that it has a copy of something.
    fn copy(&mut self) -> Result<(), String> {
        let held = self.oracle.held();
        let Some(at) = self.some_worker() else { return Ok(()) };
        if held.is_empty() {
            return Ok(());
        }
        let task = match self.rng.chance(85) {
            true => *self.rng.pick(&held),
            false => TaskRef { group: GroupId(1 + self.rng.below(4) as u32), index: self.rng.below(4) as u32 },
        };
        let session = self.workers[at].session;
        self.feed(Input::ObjectCopied { session, task }).map(|_| ())
    }

    /// Something is where it cannot be lost; now and then it is what an earlier attempt made.
    fn secure(&mut self) -> Result<(), String> {
        let held = self.oracle.held();
        if held.is_empty() {
            return Ok(());
        }
        let task = *self.rng.pick(&held);
        let attempt = self.machine.committed_attempt(task).unwrap_or(1) + u32::from(self.rng.chance(20));
        self.feed(Input::ObjectSecured { task, attempt }).map(|_| ())
    }

    /// Which of its inputs an attempt did not get, and from whom: truthfully, or not.
    pub(super) fn missing(&mut self, task: TaskRef) -> Vec<(TaskRef, SessionId)> {
        let mut missing = Vec::new();
        for (input, holders) in self.oracle.inputs(task) {
            if self.rng.chance(60) {
                missing.extend(holders.into_iter().map(|holder| (input, holder)));
            }
        }
        if self.rng.chance(20) {
            missing.push((task, SessionId(self.rng.below(5))));
        }
        missing
    }

    /// Everything is appended, and read.
    pub(super) fn clients_end(&mut self) -> Result<(), String> {
        let sessions: Vec<SessionId> = self.workers.iter().map(|worker| worker.session).collect();
        for session in sessions {
            self.feed(Input::Full { session, full: false })?;
        }
        for run in self.oracle.kept_runs() {
            self.feed(Input::Pause { run, paused: false })?;
        }
        for run in self.oracle.open_runs() {
            self.feed(Input::CloseRun { run })?;
        }
        Ok(())
    }
}
