//! Results that are lost with their last holder, and made again.
//!
//! A result that somebody needs goes back to waiting: its task runs again under the next number, uncharged, after whatever it reads
//! that is gone too. What reads it waits again, what merely followed it does not. Each loss is answered by one new attempt. A
//! result whose holders die again and again is given up, and what needs it is told why.

use super::Scheduler;
use super::counts::Happening;
use super::depend::{End, Settled, UpstreamKind};
use super::mutation::Mutation;
use super::ready::ClassKey;
use super::rows::NIL;
use super::task_table::{TaskEvent, TaskState};
use crate::ids::{GroupId, SessionId, TaskRef};
use crate::messages::{Outbox, OutcomeClass, Output};

/// How a holder came to have a result no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// It left as it should: nobody's fault.
    Left,
    /// It died, or had not what it said it had.
    Failed,
}

impl Scheduler {
    /// A worker is gone, and with it all that it held.
    pub(super) fn objects_lost(&mut self, worker: u32, objects: impl IntoIterator<Item = TaskRef>, loss: Loss, out: &mut Outbox) {
        let mut gone = Vec::new();
        for task in objects {
            if self.forget_holder(worker, task, loss) || self.mutations.has(Mutation::RestoreTwice) {
                self.counts.note(Happening::ResultLost);
                gone.push(task);
            }
        }
        self.restore(gone, out);
    }

    /// An attempt could not get these from those. True when that says something: it was believed until now, or the result is
    /// known to be gone.
    pub(super) fn inputs_missing(&mut self, missing: &[(TaskRef, SessionId)], out: &mut Outbox) -> bool {
        let mut told = false;
        let mut gone = Vec::new();
        for &(task, session) in missing {
            let Some(group) = self.groups.get(&task.group) else { continue };
            let Some(object) = group.objects.get(&task.index) else { continue };
            told |= object.holders.is_empty() || group.restoring.contains(task.index);
            let Some(&worker) = self.sessions.get(&session) else { continue };
            if !object.holders.contains(&worker) {
                continue;
            }
            told = true;
            // Whatever it has of it after all is not counted on any more.
            out.push(Output::DropObject { session, task });
            if self.forget_holder(worker, task, Loss::Failed) {
                gone.push(task);
            }
        }
        self.restore(gone, out);
        self.counts.note(if told { Happening::InputMissing } else { Happening::InputMissingUnfounded });
        told
    }

    /// One holder less; true when that was the last.
    fn forget_holder(&mut self, worker: u32, task: TaskRef, loss: Loss) -> bool {
        let last = self.remove_holder(task, worker);
        if last
            && loss == Loss::Failed
            && let Some(object) = self.object_mut(task)
        {
            object.losses = object.losses.saturating_add(1);
        }
        last
    }

    /// Results that the elements of a group read (or one of them) and that are gone.
    pub(super) fn gone_inputs(&self, id: GroupId, index: Option<u32>) -> Vec<TaskRef> {
        let group = self.group_of(id);
        let mut gone = Vec::new();
        for upstream in group.upstreams.iter().filter(|upstream| upstream.data) {
            let Some(up) = self.groups.get(&upstream.group) else { continue };
            let whole = matches!(upstream.kind, UpstreamKind::Whole) || !upstream.is_gate() && index.is_none();
            let indices: Vec<u32> = match index {
                _ if up.objects.is_empty() => continue,
                _ if whole => up.objects.keys().copied().collect(),
                Some(index) => upstream.upstream_of(index),
                None => upstream.upstream_of(0),
            };
            let tasks = indices.into_iter().map(|index| TaskRef { group: upstream.group, index });
            gone.extend(tasks.filter(|task| self.is_gone(*task)));
        }
        if let Some(index) = index {
            let head = if group.cells.is_empty() { NIL } else { group.cells.ups(index) };
            let edges = self.edges.led_into(head).map(|at| self.edges.get(at)).filter(|edge| edge.data);
            gone.extend(edges.map(|edge| edge.up).filter(|task| self.is_gone(*task)));
        }
        gone
    }

    /// Makes those of these results again that somebody needs, and whatever of their lineage is gone too.
    pub(super) fn restore(&mut self, gone: Vec<TaskRef>, out: &mut Outbox) {
        let mut work: Vec<TaskRef> = gone;
        let mut again: Vec<TaskRef> = Vec::new();
        while let Some(task) = work.pop() {
            let ended = |scheduler: &Scheduler| {
                let run = scheduler.groups.get(&task.group).and_then(|group| scheduler.runs.get(&group.run));
                run.is_none_or(|run| run.end.is_some() || run.cancelling)
            };
            let twice = self.mutations.has(Mutation::RestoreTwice)
                && self.groups.get(&task.group).is_some_and(|group| group.succeeded.contains(task.index));
            if !(self.is_gone(task) || twice) || ended(self) || !self.result_is_needed(task) {
                continue;
            }
            self.take_back_end(task);
            self.counts.note(Happening::MadeAgain);
            let inputs = self.gone_inputs(task.group, Some(task.index));
            if !inputs.is_empty() {
                self.counts.note(Happening::LineageMadeAgain);
            }
            work.extend(inputs);
            again.push(task);
        }
        for task in again {
            self.begin_again(task, out);
        }
    }

    /// The task is not over any more; what reads its result waits again.
    fn take_back_end(&mut self, task: TaskRef) {
        let TaskRef { group: id, index } = task;
        self.counts.task(TaskState::Succeeded, TaskEvent::LoseResult, 1);
        let group = self.group_mut(id);
        let attempts = group.attempts(index);
        group.memos.entry(index).or_default().attempts = attempts;
        group.succeeded.remove(index);
        group.restoring.insert(index);
        group.waiting.insert(index);
        group.unsettled += 1;
        let was_over = std::mem::take(&mut group.over);
        let (run, key) = (group.run, ClassKey { component: group.component, shape: group.shape, alone: false });
        if group.queues.is_empty() {
            let queue = self.new_queue(key);
            self.group_mut(id).queues.push(queue);
        }
        if let Some(run) = self.runs.get_mut(&run) {
            run.groups_over -= u32::from(was_over);
        }
        // As reader it counts again by what it reads.
        let mut at = self.group_of(id).cells.ups(index);
        while at != NIL {
            let up = self.edges.get(at).up;
            self.change_cell(up, |cell| {
                cell.rare.heirs -= 1;
                cell.readers += 1;
            });
            at = self.edges.sibling(at);
        }
        self.unmeet_edges(task);
        for (down, ordinal) in self.group_of(id).downstreams.clone() {
            self.unmeet_range(down, ordinal, index);
        }
    }

    /// Elements with an edge to it that read it wait again.
    fn unmeet_edges(&mut self, task: TaskRef) {
        let mut at = self.group_of(task.group).cells.downs(task.index);
        while at != NIL {
            let edge = self.edges.get_mut(at);
            let down = edge.down;
            let unmet = edge.data && !edge.dead && std::mem::take(&mut edge.met);
            at = self.edges.next(at);
            if unmet && !self.mutations.has(Mutation::LoseEdge) {
                self.counts.note(Happening::EdgeUnmet);
                self.change_cell(down, |cell| cell.left += 1);
                self.wait_again(down.group, down.index, down.index + 1);
            }
        }
    }

    /// Elements of a group that read it in ranges wait again.
    fn unmeet_range(&mut self, down: GroupId, ordinal: u32, index: u32) {
        let Some(waiter) = self.groups.get_mut(&down) else { return };
        let upstream = &mut waiter.upstreams[ordinal as usize];
        if !upstream.data {
            return;
        }
        match &upstream.kind {
            UpstreamKind::One(one) if *one != index => {}
            UpstreamKind::Whole | UpstreamKind::One(_) => {
                if std::mem::take(&mut upstream.met) {
                    waiter.whole_left += 1;
                    self.counts.note(Happening::GateClosed);
                    self.wait_again(down, 0, u32::MAX);
                }
            }
            UpstreamKind::Projection { .. } | UpstreamKind::Edges(_) => {
                self.counts.note(Happening::RangeUnmet);
                for (first, end) in upstream.uncount(index) {
                    self.wait_again(down, first, end);
                }
            }
        }
    }

    /// Ready elements of `first..end` are not ready any more.
    fn wait_again(&mut self, id: GroupId, first: u32, end: u32) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let mut moved = 0;
        for queue in &mut group.queues {
            let ready: Vec<(u32, u32)> = queue.ready.within(first, end).collect();
            for (first, end) in ready {
                moved += queue.ready.remove_range(first, end);
                group.waiting.insert_range(first, end);
            }
        }
        if moved > 0 {
            self.counts.task(TaskState::Ready, TaskEvent::LoseInput, moved);
            self.index_group(id);
        }
    }

    /// A task whose result is to be made again becomes ready, waits for what it reads, or is given up.
    fn begin_again(&mut self, task: TaskRef, out: &mut Outbox) {
        if !self.group_of(task.group).waiting.contains(task.index) {
            // Giving up one of them has stopped the run, and with it the others.
            return;
        }
        let losses = self.group_of(task.group).objects.get(&task.index).map_or(0, |object| u32::from(object.losses));
        if losses > self.config.restores_max {
            self.counts.note(Happening::GivenUp);
            return self.give_up_waiting(task, OutcomeClass::LostWorker, out);
        }
        match self.inputs_of(task) {
            Inputs::There => self.elements_met(task.group, vec![(task.index, task.index + 1)]),
            Inputs::Lacking => {}
            Inputs::Never(root) => self.skip_range(task.group, task.index, task.index + 1, root, out),
        }
    }

    /// A task that waits is over: it failed without another attempt.
    fn give_up_waiting(&mut self, task: TaskRef, class: OutcomeClass, out: &mut Outbox) {
        self.counts.task(TaskState::Waiting, TaskEvent::Refuse, 1);
        let group = self.group_mut(task.group);
        group.waiting.remove(task.index);
        group.lost_for_good.insert(task.index);
        let (run, attempts) = (group.run, group.attempts(task.index));
        out.push(Output::TaskFailed { task, attempts, class });
        self.settling.push_back(Settled { group: task.group, first: task.index, end: task.index + 1, how: End::Failed });
        self.count_failures(run, 1, out);
    }

    /// Whether a task that may run otherwise has what it needs.
    pub(super) fn inputs_of(&self, task: TaskRef) -> Inputs {
        let group = self.group_of(task.group);
        let ranges = group.upstreams.iter().filter(|upstream| !upstream.is_gate());
        let left = if group.cells.is_empty() { 0 } else { group.cells.left(task.index) };
        if group.whole_left == 0 && left == 0 && ranges.clone().all(|upstream| upstream.satisfied.contains(task.index)) {
            return Inputs::There;
        }
        if group.always {
            return Inputs::Lacking;
        }
        let root = |id: GroupId, index: u32| {
            let up = self.groups.get(&id).filter(|up| up.in_trouble(index))?;
            Some(self.known_root(up.root_of(index), TaskRef { group: id, index }))
        };
        for upstream in &group.upstreams {
            let whole = matches!(upstream.kind, UpstreamKind::Whole);
            let found = match self.groups.get(&upstream.group) {
                Some(up) if whole && !upstream.met => {
                    let firsts = [up.failed.first(), up.skipped.first(), up.cancelled.first()];
                    firsts.into_iter().flatten().min().and_then(|index| root(upstream.group, index))
                }
                _ if upstream.met || whole || upstream.satisfied.contains(task.index) => None,
                _ => upstream.upstream_of(task.index).into_iter().find_map(|index| root(upstream.group, index)),
            };
            if let Some(root) = found {
                return Inputs::Never(root);
            }
        }
        let head = if group.cells.is_empty() { NIL } else { group.cells.ups(task.index) };
        let unmet = self.edges.led_into(head).map(|at| self.edges.get(at)).filter(|edge| !edge.met);
        match unmet.map(|edge| edge.up).find_map(|up| root(up.group, up.index)) {
            Some(root) => Inputs::Never(root),
            None => Inputs::Lacking,
        }
    }
}

/// Whether a task has what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inputs {
    There,
    /// Something is not over, or is being made again.
    Lacking,
    /// Something will never be, because of that failure.
    Never(TaskRef),
}
