//! Open runs: groups and elements that follow one by one, the end of that, and the pause.
//!
//! A client counts its groups and elements itself and does not wait for answers. What is refused exists all the same and is over,
//! so that what the client has sent after it still means what it meant.

use super::Scheduler;
use super::accept::{Before, Refusal};
use super::counts::Happening;
use super::depend::{End, Settled, Upstream, UpstreamKind};
use super::group::{Closed, Group};
use crate::ids::{GroupId, RunId, TaskRef};
use crate::messages::{Edge, Outbox, Output};
use crate::resources::ResourceName;
use crate::spec::{GROUPS_PER_OPEN_RUN_MAX, GroupSpec, Length, TASKS_PER_RUN_MAX};

/// What an edge's upstream task says of the element that waits for it.
enum Wait {
    /// It is over as it should be.
    Met,
    Unmet,
    /// It will never be: because of that failure.
    Never(TaskRef),
}

impl Scheduler {
    /// Takes the next group of an open run, or refuses it.
    pub(super) fn append_group(&mut self, id: RunId, ordinal: u32, spec: GroupSpec, out: &mut Outbox) {
        let refuse = |out: &mut Outbox, code, message| {
            out.push(Output::Rejected { run: id, ordinal, first: 0, count: 0, code, message });
        };
        let Some(run) = self.runs.get(&id).filter(|run| run.open) else {
            return refuse(out, "E_RUN_CLOSED", format!("run {} is not open: no group can be added to it", id.0));
        };
        if run.groups_added != ordinal || ordinal == u32::MAX {
            let message = format!("group {ordinal} was added to run '{}', which has had {} groups", run.name, run.groups_added);
            return refuse(out, "E_GROUP_ORDINAL", message);
        }
        if run.groups.len() >= GROUPS_PER_OPEN_RUN_MAX || self.groups.len() >= self.config.groups_max {
            let message = format!(
                "run '{}' has {} groups that are not over and let go of, and the scheduler {}: the limits are \
                 {GROUPS_PER_OPEN_RUN_MAX} and {}",
                run.name,
                run.groups.len(),
                self.groups.len(),
                self.config.groups_max
            );
            // The ordinal is taken: the client counts on.
            if let Some(run) = self.runs.get_mut(&id) {
                run.groups_added += 1;
            }
            return refuse(out, "E_TOO_MANY_GROUPS", message);
        }
        let totals: Vec<(ResourceName, u64)> = run.totals.custom.to_vec();
        let group = GroupId(self.next_group);
        let from = match spec.length {
            Length::From(from) => self.group_at(run, from),
            Length::Fixed(_) | Length::Growing => None,
        };
        let checked = self.accept_added(id, ordinal, &spec, &totals);
        self.next_group += 1;
        match checked {
            Ok(upstreams) => {
                self.add_group(id, group, &totals, spec, from, upstreams);
                out.push(Output::GroupAdded { run: id, ordinal, group });
                self.catch_up(group, out);
            }
            Err((code, message)) => {
                self.counts.note(Happening::GroupRejected);
                // The ordinal exists, and whatever is appended to it is over at once.
                let mut spec = spec;
                spec.dependencies.clear();
                spec.resources = Default::default();
                spec.length = if spec.length == Length::Growing { Length::Growing } else { Length::Fixed(0) };
                for name in [&mut spec.name, &mut spec.component] {
                    if super::accept::bad_name(name).is_some() {
                        *name = format!("group {ordinal}");
                    }
                }
                self.add_group(id, group, &totals, spec, None, Vec::new());
                self.group_mut(group).closed = Some(Closed::Refused);
                self.settling.push_back(Settled { group, first: 0, end: 0, how: End::Failed });
                out.push(Output::GroupAdded { run: id, ordinal, group });
                refuse(out, code, message);
            }
        }
    }

    fn accept_added(
        &self,
        run: RunId,
        ordinal: u32,
        spec: &GroupSpec,
        totals: &[(ResourceName, u64)],
    ) -> Result<Vec<Upstream>, Refusal> {
        let run = self.runs.get(&run).ok_or_else(|| ("E_RUN_CLOSED", "there is no such run".to_owned()))?;
        let before = |at: usize| {
            let id = self.group_at(run, at)?;
            self.groups.get(&id).map(|group| Before::known(id, group))
        };
        let from = if let Length::From(from) = spec.length { Some(from) } else { None };
        let named = spec.dependencies.iter().map(|dependency| dependency.group).chain(from);
        if let Some(gone) = named.into_iter().find(|at| *at < ordinal as usize && before(*at).is_none()) {
            let message = format!(
                "group '{}' depends on group {gone} of its run, which is over, was let go of and is forgotten, or never was",
                super::accept::shown(&spec.name)
            );
            return Err(("E_RELEASED", message));
        }
        let upstreams = self.accept_group(totals, ordinal as usize, spec, before)?;
        let length = if let Length::Fixed(length) = spec.length { u64::from(length) } else { 0 };
        if run.tasks + length > TASKS_PER_RUN_MAX {
            let message = format!(
                "group '{}' has {length} tasks, its run has {} and the limit is {TASKS_PER_RUN_MAX}",
                spec.name, run.tasks
            );
            return Err(("E_TOO_MANY_TASKS", message));
        }
        Ok(upstreams)
    }

    /// A group that was added while earlier ones are under way, or over, begins where they are.
    fn catch_up(&mut self, id: GroupId, out: &mut Outbox) {
        if self.starts_nothing(id) {
            self.close_open(id, Closed::Cancelled, out);
            self.cancel_unstarted(id, 0, u32::MAX, out);
        }
        for ordinal in 0..self.group_of(id).upstreams.len() as u32 {
            self.catch_up_with(id, ordinal, out);
        }
        let known = self.group_of(id);
        if known.length == Some(0) && !known.growing {
            self.settling.push_back(Settled { group: id, first: 0, end: 0, how: End::Succeeded });
        } else if known.whole_left == 0 {
            self.all_whole_met(id);
        }
        if !self.gone_inputs(id, None).is_empty() {
            // What was dropped because nobody read it is read now, unless the group was skipped at once.
            self.settle(out);
            let gone = self.gone_inputs(id, None);
            self.restore(gone, out);
        }
    }

    fn catch_up_with(&mut self, id: GroupId, ordinal: u32, out: &mut Outbox) {
        let always = self.group_of(id).always;
        let upstream = &self.group_of(id).upstreams[ordinal as usize];
        let (up_id, data) = (upstream.group, upstream.data);
        let Some(up) = self.groups.get(&up_id) else { return };
        let first_trouble = |up: &Group| {
            let index = up.first_trouble();
            let root = match up.closed {
                Some(Closed::Skipped(root)) => Some(root),
                _ => up.root_of(index),
            };
            self.known_root(root, TaskRef { group: up_id, index })
        };
        match &upstream.kind {
            UpstreamKind::Whole => {
                if up.has_trouble() && !always {
                    let root = first_trouble(up);
                    self.skip_all(id, root, out);
                } else if up.over {
                    self.gate_met(id, ordinal);
                }
            }
            UpstreamKind::One(index) => match self.wait_for(TaskRef { group: up_id, index: *index }, data, always) {
                Wait::Met => self.gate_met(id, ordinal),
                Wait::Unmet => {}
                Wait::Never(root) => self.skip_all(id, root, out),
            },
            UpstreamKind::Projection { .. } | UpstreamKind::Edges(_) => {
                let mut counted: Vec<(u32, u32)> = up.succeeded.ranges().collect();
                if !data {
                    counted.extend(up.restoring.ranges());
                }
                let trouble: Vec<(u32, u32, Option<TaskRef>)> = [&up.failed, &up.skipped, &up.cancelled]
                    .into_iter()
                    .flat_map(|set| set.ranges())
                    .flat_map(|(first, end)| (first..end).map(|index| (index, index + 1, up.root_of(index))))
                    .collect();
                for (first, end, root) in trouble {
                    if always {
                        counted.push((first, end));
                        continue;
                    }
                    let reached = self.group_of(id).upstreams[ordinal as usize].reach(first, end);
                    for (from, to) in reached {
                        let root = self.known_root(root, TaskRef { group: up_id, index: first });
                        self.skip_range(id, from, to, root, out);
                    }
                }
                for (first, end) in counted {
                    self.group_mut(id).upstreams[ordinal as usize].count(first, end);
                }
            }
        }
    }

    /// How an upstream task stands towards something that waits for it.
    fn wait_for(&self, up: TaskRef, data: bool, always: bool) -> Wait {
        let Some(group) = self.groups.get(&up.group) else { return Wait::Unmet };
        let index = up.index;
        if group.succeeded.contains(index) || !data && group.restoring.contains(index) {
            return Wait::Met;
        }
        match group.in_trouble(index) {
            false => Wait::Unmet,
            true if always => Wait::Met,
            true => Wait::Never(self.known_root(group.root_of(index), up)),
        }
    }

    /// Takes elements of a growing group; those that are refused are over at once.
    #[expect(clippy::too_many_arguments, reason = "the fields of one input")]
    pub(super) fn append(
        &mut self,
        run_id: RunId,
        id: GroupId,
        first: u32,
        count: u32,
        edges: &[Edge],
        last: bool,
        out: &mut Outbox,
    ) {
        let known = self.groups.get(&id).filter(|group| group.run == run_id);
        let Some(ordinal) = known.map(|group| group.ordinal) else {
            let message = format!("group {} is none of run {}, or is over and forgotten", id.0, run_id.0);
            out.push(Output::Rejected { run: run_id, ordinal: u32::MAX, first, count, code: "E_GROUP", message });
            return;
        };
        match self.accept_append(run_id, id, first, count) {
            Ok(()) => {
                self.counts.note(Happening::Appended);
                self.extend(id, count);
                let refused = self.refused_edges(id, first, count, edges);
                self.reject_elements(run_id, id, ordinal, &refused, out);
                let group = self.group_of(id);
                if self.starts_nothing(id) {
                    self.cancel_unstarted(id, first, first + count, out);
                } else if let Some(root) = group.doomed {
                    let trouble = |up: &Upstream| {
                        let known = self.groups.get(&up.group).filter(|known| known.has_trouble())?;
                        Some(TaskRef { group: up.group, index: known.first_trouble() })
                    };
                    let nearest = group.upstreams.iter().find_map(trouble).unwrap_or(root);
                    let root = self.known_root(Some(root), nearest);
                    self.skip_range(id, first, first + count, root, out);
                } else {
                    self.add_edges(id, (first, count), &refused, edges, out);
                    if self.group_of(id).whole_left == 0 {
                        self.elements_met(id, vec![(first, first + count)]);
                    }
                }
            }
            Err((code, message)) => {
                out.push(Output::Rejected { run: run_id, ordinal, first, count, code, message });
                self.make_rejected(id, first, count, out);
            }
        }
        if last {
            self.end_growth(id, out);
        }
    }

    fn accept_append(&self, run_id: RunId, id: GroupId, first: u32, count: u32) -> Result<(), Refusal> {
        let (Some(run), Some(group)) = (self.runs.get(&run_id), self.groups.get(&id)) else {
            return Err(("E_GROUP", format!("there is no group {}", id.0)));
        };
        let name = &group.name;
        let length = group.length.unwrap_or(0);
        match group.closed {
            Some(Closed::Refused) => return Err(("E_GROUP_REFUSED", format!("group '{name}' was refused"))),
            Some(_) => return Err(("E_CANCELLED", format!("group '{name}' was cancelled"))),
            None => {}
        }
        if !group.growing {
            return Err(("E_GROUP_CLOSED", format!("group '{name}' has {length} elements for good: nothing follows")));
        }
        if first != length {
            return Err(("E_APPEND", format!("elements {first} .. were appended to group '{name}', which has {length}")));
        }
        if run.tasks + u64::from(count) > TASKS_PER_RUN_MAX || length.checked_add(count).is_none() {
            let message = format!(
                "{count} more elements of group '{name}' make more tasks than the {TASKS_PER_RUN_MAX} that a run may have"
            );
            return Err(("E_TOO_MANY_TASKS", message));
        }
        Ok(())
    }

    /// New elements wait.
    fn extend(&mut self, id: GroupId, count: u32) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let first = group.length.unwrap_or(0);
        group.length = Some(first + count);
        group.waiting.insert_range(first, first + count);
        group.unsettled += count;
        if let Some(run) = self.runs.get_mut(&group.run) {
            run.tasks += u64::from(count);
        }
    }

    /// What was refused as a whole exists, as far as there is room, and is over.
    fn make_rejected(&mut self, id: GroupId, first: u32, count: u32, out: &mut Outbox) {
        let Some(group) = self.groups.get(&id) else { return };
        let (length, growing) = (group.length.unwrap_or(0), group.growing);
        let Some(end) = first.checked_add(count).filter(|end| growing && *end > length) else { return };
        let room = self.runs.get(&group.run).is_some_and(|run| run.tasks + u64::from(end - length) <= TASKS_PER_RUN_MAX);
        if room {
            self.extend(id, end - length);
            let run = self.group_of(id).run;
            self.reject_range(id, length, end);
            self.count_failures(run, end - length, out);
        }
    }

    /// Elements that exist and wait are over: they were refused.
    fn reject_range(&mut self, id: GroupId, first: u32, end: u32) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let count = group.waiting.remove_range(first, end);
        group.rejected.insert_range(first, end);
        self.counts.note(Happening::ElementRejected);
        self.counts.task(super::TaskState::Waiting, super::task_table::TaskEvent::Refuse, count);
        self.settling.push_back(Settled { group: id, first, end, how: End::Failed });
    }

    /// Elements of `first .. first + count` with an edge that cannot be, in order, and why.
    fn refused_edges(&self, id: GroupId, first: u32, count: u32, edges: &[Edge]) -> Vec<(u32, Refusal)> {
        let mut refused: Vec<(u32, Refusal)> = Vec::new();
        let mut room = self.config.edges_max.saturating_sub(self.edges.len());
        let group = self.group_of(id);
        for edge in edges {
            let Edge { element, upstream, data } = *edge;
            if element < first || element - first >= count {
                // An edge of nobody there: the whole range it came with is in doubt, and its first element says so.
                let message = format!("an edge names element {element} and {count} were appended from {first} on");
                refused.push((first, ("E_EDGE", message)));
                continue;
            }
            let known = self.groups.get(&upstream.group).filter(|up| up.run == group.run);
            let before = upstream.group != id || upstream.index < element;
            let refusal = match known {
                Some(up) if before && upstream.index < up.length.unwrap_or(0) => {
                    if data && up.released.contains(upstream.index) {
                        let message = format!("{}[{}], which it reads, was let go", up.name, upstream.index);
                        Some(("E_RELEASED", message))
                    } else if self.waits_for_all_of(upstream.group, id) {
                        let message =
                            format!("it waits for {}[{}], which waits for all of its own group", up.name, upstream.index);
                        Some(("E_CYCLE", message))
                    } else if room == 0 {
                        let message = format!("the scheduler holds {} edges and takes no more", self.config.edges_max);
                        Some(("E_TOO_MANY_EDGES", message))
                    } else {
                        room -= 1;
                        None
                    }
                }
                Some(up) => {
                    let (name, index) = (&up.name, upstream.index);
                    Some(("E_EDGE", format!("it waits for {name}[{index}], which is not there before it")))
                }
                None => {
                    let message = format!(
                        "it waits for an element of group {}, which its run has not, or which is over, was let go of and is forgotten",
                        upstream.group.0
                    );
                    Some(("E_EDGE", message))
                }
            };
            refused.extend(refusal.map(|refusal| (element, refusal)));
        }
        refused.sort_by_key(|(element, _)| *element);
        refused.dedup_by_key(|(element, _)| *element);
        refused
    }

    /// Whether something of a group waits for all of a growing one, that is for an element yet to be appended to it.
    fn waits_for_all_of(&self, group: GroupId, growing: GroupId) -> bool {
        if self.groups.get(&group).is_none_or(|group| group.behind.is_empty()) {
            return false;
        }
        let mut work = vec![group];
        let mut seen: Vec<GroupId> = Vec::new();
        while let Some(id) = work.pop() {
            let behind = self.groups.get(&id).map_or(&[][..], |group| &group.behind[..]);
            for &other in behind.iter().filter(|other| self.groups.get(other).is_some_and(|other| !other.over)) {
                if other == growing {
                    return true;
                }
                if !seen.contains(&other) {
                    seen.push(other);
                    work.push(other);
                }
            }
        }
        false
    }

    /// What the upstream group waits for as a whole, this one does too from now on.
    fn stand_behind(&mut self, id: GroupId, up: GroupId) {
        let behind = match self.groups.get(&up) {
            Some(up) if !up.behind.is_empty() => up.behind.clone(),
            _ => return,
        };
        let new: Vec<GroupId> = behind.into_iter().filter(|other| self.groups.get(other).is_some_and(|up| !up.over)).collect();
        let group = self.group_mut(id);
        for other in new {
            if let Err(at) = group.behind.binary_search(&other) {
                group.behind.insert(at, other);
            }
        }
    }

    fn reject_elements(&mut self, run: RunId, id: GroupId, ordinal: u32, refused: &[(u32, Refusal)], out: &mut Outbox) {
        for (first, (code, message)) in refused {
            let message = message.clone();
            out.push(Output::Rejected { run, ordinal, first: *first, count: 1, code, message });
            self.reject_range(id, *first, first + 1);
        }
        // The run may stop with this: all of them were refused before.
        self.count_failures(run, refused.len() as u32, out);
    }

    fn add_edges(
        &mut self,
        id: GroupId,
        (first, count): (u32, u32),
        refused: &[(u32, Refusal)],
        edges: &[Edge],
        out: &mut Outbox,
    ) {
        let always = self.group_of(id).always;
        let mut gone: Vec<TaskRef> = Vec::new();
        let mut dead: Vec<(u32, TaskRef)> = Vec::new();
        let mut reads = false;
        for &Edge { element, upstream, data } in edges {
            let there = element >= first && element - first < count;
            if !there || refused.binary_search_by_key(&element, |(element, _)| *element).is_ok() {
                continue;
            }
            let met = match self.wait_for(upstream, data, always) {
                Wait::Never(root) => {
                    self.counts.note(Happening::EdgeDead);
                    dead.push((element, root));
                    continue;
                }
                Wait::Met if !data => continue,
                Wait::Met => true,
                Wait::Unmet => false,
            };
            if upstream.group != id {
                self.stand_behind(id, upstream.group);
            }
            self.counts.note(if met { Happening::EdgeMet } else { Happening::EdgeWaits });
            let down = TaskRef { group: id, index: element };
            self.add_edge(upstream, down, data, met);
            reads |= data;
            if data && self.is_gone(upstream) {
                gone.push(upstream);
            }
        }
        self.group_mut(id).reads |= reads;
        for (element, root) in dead {
            self.skip_range(id, element, element + 1, root, out);
        }
        if !gone.is_empty() {
            // What was skipped at once reads nothing.
            self.settle(out);
            self.restore(gone, out);
        }
    }

    fn add_edge(&mut self, up: TaskRef, down: TaskRef, data: bool, met: bool) {
        let edges = &mut self.edges;
        let Some(group) = self.groups.get_mut(&up.group) else { return };
        // What is over and cannot be lost is never asked for its dependants again.
        let apart = met && !group.objects.contains_key(&up.index);
        let at = group.cells.change(up.index, |cell| {
            cell.readers += u32::from(data);
            if apart {
                return edges.add(up, down, data, met, None);
            }
            let at = edges.add(up, down, data, met, Some(cell.downs));
            cell.downs = at;
            at
        });
        // Nearly always a task of the same group.
        let group = if up.group == down.group { Some(group) } else { self.groups.get_mut(&down.group) };
        let Some(group) = group else { return };
        group.cells.change(down.index, |cell| {
            edges.set_sibling(at, cell.ups);
            cell.ups = at;
            cell.left += u32::from(!met);
        });
    }

    /// Nothing follows in a growing group.
    fn end_growth(&mut self, id: GroupId, out: &mut Outbox) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if !std::mem::take(&mut group.growing) {
            return;
        }
        out.push(Output::LengthKnown { group: id, length: group.length.unwrap_or(0) });
        let how = match group.closed {
            Some(Closed::Cancelled) => End::Cancelled,
            _ => End::Succeeded,
        };
        self.settling.push_back(Settled { group: id, first: 0, end: 0, how });
    }

    /// Nothing of a cancelled growing group follows.
    pub(super) fn cancel_growth(&mut self, id: GroupId, out: &mut Outbox) {
        if self.groups.get(&id).is_some_and(|group| group.growing && group.closed.is_none()) {
            self.group_mut(id).closed = Some(Closed::Cancelled);
            self.end_growth(id, out);
        }
    }

    /// Nothing follows in an open run.
    pub(super) fn close_run(&mut self, id: RunId, out: &mut Outbox) {
        let Some(run) = self.runs.get_mut(&id).filter(|run| run.open) else { return };
        run.open = false;
        for group in run.groups.clone() {
            self.end_growth(group, out);
        }
        self.closing.push(id);
    }

    /// Nothing of a run is dispatched, or again.
    pub(super) fn pause(&mut self, id: RunId, paused: bool) {
        let Some(run) = self.runs.get_mut(&id).filter(|run| run.paused != paused && run.end.is_none()) else { return };
        run.paused = paused;
        for group in run.groups.clone() {
            if paused && self.group_of(group).ready_len() > 0 {
                self.counts.note(Happening::Paused);
            }
            self.index_group(group);
        }
    }
}
