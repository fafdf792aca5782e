//! Results on workers: who holds them, who needs them, when they may go.
//!
//! Of each element of an open run two questions are answered. Its *result* is needed while the client has a reference on it or a
//! task that is not over reads it; after that holders may drop it. The *element* is needed while its result is, and while the
//! result of a task that has read it could be lost and would have to be made again; after that it is released: arguments and
//! inline results can go, and with it goes its hold on what it has read itself. So lineage lives exactly as long as it could be
//! asked for. Nothing of this is counted for ranges: it follows from which elements are over.

use super::Scheduler;
use super::counts::Happening;
use super::depend::{End, Settled, UpstreamKind};
use super::group::{Group, Object};
use super::holders::Copy;
use super::interval_set::IntervalSet;
use super::mutation::Mutation;
use super::rows::NIL;
use crate::ids::{GroupId, RunId, SessionId, TaskRef};
use crate::messages::{Outbox, Output, Stored};
use std::collections::BTreeMap;

impl Scheduler {
    /// The client has let go of these.
    pub(super) fn let_go(&mut self, id: GroupId, first: u32, count: u32) {
        let Some(group) = self.groups.get_mut(&id).filter(|group| group.kept) else { return };
        // Of a growing group also what is yet to come.
        let most = match (group.growing, group.length) {
            (false, Some(length)) => length.max(1),
            _ => u32::MAX,
        };
        let end = first.saturating_add(count).min(most);
        if group.let_go.insert_range(first, end) > 0 {
            self.counts.note(Happening::LetGo);
            self.sweeping.push((id, first, end));
            if group.unsettled == 0 {
                // Nothing of one without elements is ever released.
                self.spent.push(id);
            }
        }
    }

    /// A worker has a copy of a result.
    pub(super) fn object_copied(&mut self, worker: u32, task: TaskRef, copy: Copy, out: &mut Outbox) {
        let session = self.worker(worker).session;
        let needed = self.result_is_needed(task);
        let known = self.groups.get(&task.group).filter(|group| group.succeeded.contains(task.index));
        match known.and_then(|group| group.objects.get(&task.index)) {
            Some(object) if copy == Copy::Spare && object.holders.contains(&worker) => {}
            // What has no holder is dropped or being made again, under another number.
            Some(object) if needed && !object.holders.is_empty() => {
                self.add_holder(task, worker, copy);
                self.counts.note(if copy == Copy::Kept { Happening::Kept } else { Happening::Copied });
            }
            _ => {
                self.counts.note(Happening::CopyRefused);
                out.push(Output::DropObject { session, task });
            }
        }
    }

    /// A result cannot be lost any more: from here on it is as one that came with its report, and needs no lineage.
    pub(super) fn object_secured(&mut self, task: TaskRef, attempt: u32) {
        if self.committed_attempt(task) != Some(attempt) {
            // It was lost meanwhile and is made again, or is forgotten.
            return;
        }
        self.remove_holders(task);
        if self.groups.get_mut(&task.group).and_then(|group| group.objects.remove(&task.index)).is_none() {
            return;
        }
        self.objects -= 1;
        self.counts.note(Happening::Secured);
        let TaskRef { group, index } = task;
        if !self.group_of(group).cells.is_empty() && self.group_of(group).cells.get(index).ups != NIL {
            self.free_inputs(task, Standing::Heir);
        }
        self.look_at_inputs(group, index, index + 1);
        self.sweeping.push((group, index, index + 1));
    }

    /// The result of an attempt that has just committed.
    pub(super) fn store_result(&mut self, worker: u32, task: TaskRef, result: Stored) {
        if self.group_of(task.group).objects.contains_key(&task.index) {
            self.remove_holders(task);
        }
        let group = self.group_mut(task.group);
        match result {
            Stored::Held(size) | Stored::Files(size) if group.kept => {
                group.as_files = matches!(result, Stored::Files(_));
                let before = group.objects.len();
                group.objects.entry(task.index).or_default().size = size;
                self.objects += (group.objects.len() - before) as u32;
                self.add_holder(task, worker, Copy::Kept);
            }
            _ => {
                let forgotten = group.objects.remove(&task.index).is_some();
                self.objects -= u32::from(forgotten);
            }
        }
    }

    /// True when the result was on workers and is on none any more.
    pub(super) fn is_gone(&self, task: TaskRef) -> bool {
        let group = self.groups.get(&task.group).filter(|group| group.succeeded.contains(task.index));
        group.and_then(|group| group.objects.get(&task.index)).is_some_and(|object| object.holders.is_empty())
    }

    /// Somebody may read the result: the client, or a task that is not over.
    pub(super) fn result_is_needed(&self, task: TaskRef) -> bool {
        let Some(group) = self.groups.get(&task.group) else { return false };
        let index = task.index;
        if !group.kept || group.released.contains(index) {
            return false;
        }
        !group.let_go.contains(index)
            || !group.cells.is_empty() && group.cells.readers(index) > 0
            || self.read_in_ranges(group, index, Lineage::Apart)
    }

    /// The result may be read, or may have to be made again for the sake of another one.
    pub(super) fn element_is_needed(&self, task: TaskRef) -> bool {
        let Some(group) = self.groups.get(&task.group) else { return false };
        let cells = &group.cells;
        !group.let_go.contains(task.index)
            || !cells.is_empty() && cells.readers(task.index) + cells.heirs(task.index) > 0
            || self.read_in_ranges(group, task.index, Lineage::Included)
    }

    /// Whether a group that depends on this element's group has elements that read it.
    fn read_in_ranges(&self, group: &Group, index: u32, lineage: Lineage) -> bool {
        let reads = |&(down, ordinal): &(GroupId, u32)| {
            let Some(waiter) = self.groups.get(&down) else { return false };
            let upstream = &waiter.upstreams[ordinal as usize];
            let heirs = lineage == Lineage::Included;
            let any =
                |first: u32, end: u32| !waiter.all_over(first, end) || heirs && waiter.objects.range(first..end).next().is_some();
            upstream.data
                && match &upstream.kind {
                    UpstreamKind::Whole => !waiter.over || heirs && !waiter.objects.is_empty(),
                    UpstreamKind::One(one) => *one == index && (!waiter.over || heirs && !waiter.objects.is_empty()),
                    // What begins last is over last: looked at from behind, the answer comes soon.
                    _ => upstream.reach(index, index + 1).into_iter().rev().any(|(first, end)| any(first, end)),
                }
        };
        group.downstreams.iter().any(reads)
    }

    /// Elements are over: they read nothing any more, but what they have read is their lineage while their results are objects.
    pub(super) fn inputs_read(&mut self, settled: Settled) {
        let Settled { group: id, first, end, how } = settled;
        let group = self.group_mut(id);
        if how != End::Succeeded && !group.objects.is_empty() {
            // What was lost and could not be made again.
            let before = group.objects.len();
            group.objects.retain(|index, _| !(first..end).contains(index));
            let left = group.objects.len();
            self.objects -= (before - left) as u32;
        }
        let group = self.group_of(id);
        if !group.let_go.is_empty() {
            self.sweeping.push((id, first, end));
        }
        let group = self.group_of(id);
        if !group.cells.is_empty() {
            let mut from = first;
            while let Some(index) = self.group_of(id).cells.next(from, end) {
                from = index + 1;
                let group = self.group_of(id);
                if group.cells.ups(index) == NIL {
                    continue;
                }
                let task = TaskRef { group: id, index };
                match how == End::Succeeded && group.objects.contains_key(&index) {
                    true => self.inherit_inputs(task),
                    false => self.free_inputs(task, Standing::Reader),
                }
            }
        }
        self.look_at_inputs(id, first, end);
    }

    /// An element is over and its result an object: what it has read stays its lineage, other edges go.
    fn inherit_inputs(&mut self, task: TaskRef) {
        let (mut kept, mut left, mut at) = (NIL, 0, self.group_of(task.group).cells.ups(task.index));
        while at != NIL {
            let here = at;
            at = self.edges.sibling(here);
            let edge = *self.edges.get(here);
            if !edge.data {
                self.free_edge(here);
                continue;
            }
            self.edges.set_sibling(here, kept);
            kept = here;
            left += u32::from(!edge.met);
            self.change_cell(edge.up, |cell| {
                cell.readers -= 1;
                cell.rare.heirs += 1;
            });
            self.sweep_later(edge.up);
        }
        self.change_cell(task, |cell| (cell.ups, cell.left) = (kept, left));
    }

    /// An element reads nothing any more and never will.
    fn free_inputs(&mut self, task: TaskRef, standing: Standing) {
        let mut at = self.group_of(task.group).cells.ups(task.index);
        let forget = self.mutations.has(Mutation::ForgetReference);
        while at != NIL {
            let here = at;
            at = self.edges.sibling(here);
            let edge = *self.edges.get(here);
            match standing {
                Standing::Reader if edge.apart && edge.data && !forget => {
                    self.edges.free_apart(here);
                    if let Some(group) = self.groups.get_mut(&edge.up.group) {
                        group.cells.unread(edge.up.index);
                    }
                }
                Standing::Reader => self.free_edge_and(here, |cell| cell.readers -= u32::from(edge.data && !forget)),
                Standing::Heir => self.free_edge_and(here, |cell| cell.rare.heirs -= 1),
            }
            if edge.data {
                self.sweep_later(edge.up);
            }
        }
        self.change_cell(task, |cell| (cell.ups, cell.left) = (NIL, 0));
    }

    /// One who needed it does so no more: what the client has let go of may go.
    fn sweep_later(&mut self, task: TaskRef) {
        if self.groups.get(&task.group).is_some_and(|group| group.let_go.contains(task.index)) {
            self.sweeping.push((task.group, task.index, task.index + 1));
        }
    }

    fn free_edge(&mut self, at: u32) {
        self.free_edge_and(at, |_| {});
    }

    /// An edge goes, and its upstream task counts what it meant.
    fn free_edge_and(&mut self, at: u32, change: impl FnOnce(&mut super::edges::Cell)) {
        let edges = &mut self.edges;
        let up = edges.get(at).up;
        match self.groups.get_mut(&up.group) {
            Some(group) => group.cells.change(up.index, |cell| {
                change(cell);
                edges.kill(at, cell);
            }),
            // What merely followed its upstream task, which is forgotten: nobody counts it.
            None => edges.free_apart(at),
        }
    }

    pub(super) fn change_cell(&mut self, task: TaskRef, change: impl FnOnce(&mut super::edges::Cell)) {
        if let Some(group) = self.groups.get_mut(&task.group) {
            group.cells.change(task.index, change);
        }
    }

    /// Elements `first..end` read less than before: what their group reads in ranges is looked at again.
    fn look_at_inputs(&mut self, id: GroupId, first: u32, end: u32) {
        let Some(group) = self.groups.get(&id) else { return };
        for upstream in group.upstreams.iter().filter(|upstream| upstream.data) {
            let Some(up) = self.groups.get(&upstream.group) else { continue };
            if up.let_go.is_empty() {
                continue;
            }
            match &upstream.kind {
                UpstreamKind::Whole if group.over => self.sweeping.push((upstream.group, 0, u32::MAX)),
                UpstreamKind::One(index) if group.over => self.sweeping.push((upstream.group, *index, *index + 1)),
                UpstreamKind::Whole | UpstreamKind::One(_) => {}
                UpstreamKind::Projection { plan, .. } if plan.is_identity() => {
                    self.sweeping.push((upstream.group, first, end));
                }
                _ => {
                    let mut last = None;
                    for index in (first..end).flat_map(|index| upstream.upstream_of(index)) {
                        if last != Some(index) {
                            self.sweeping.push((upstream.group, index, index + 1));
                            last = Some(index);
                        }
                    }
                }
            }
        }
    }

    /// Lets go of what nobody needs any more, and of what only that needed: once at the end of a step.
    pub(super) fn sweep(&mut self, out: &mut Outbox) {
        if self.sweeping.is_empty() {
            return;
        }
        let mut released: BTreeMap<GroupId, IntervalSet> = BTreeMap::new();
        while let Some((id, first, end)) = self.sweeping.pop() {
            let Some(group) = self.groups.get(&id) else { continue };
            let mut parts: Vec<(u32, u32)> = Vec::new();
            for (first, end) in group.let_go.within(first, end) {
                let mut at = first;
                while at < end {
                    at = group.released.range_end(at, end);
                    let until = group.over_until(at, end);
                    let until = group.released.within(at, until).next().map_or(until, |(first, _)| first);
                    if at < until {
                        parts.push((at, until));
                        at = until;
                    } else {
                        at = group.over_after(at, end);
                    }
                }
            }
            let read = group
                .downstreams
                .iter()
                .any(|(down, at)| self.groups.get(down).is_some_and(|waiter| waiter.upstreams[*at as usize].data));
            let plain = !read && group.cells.is_empty() && group.objects.is_empty();
            for (first, end) in parts {
                if plain {
                    self.release(id, first, end, &mut released, out);
                    continue;
                }
                self.sweep_each(id, first, end, &mut released, out);
            }
        }
        for (group, ranges) in released {
            for (first, end) in ranges.ranges() {
                out.push(Output::Released { group, first, count: end - first });
            }
        }
    }

    /// Elements that are over and that the client has let go of: neighbours are released together.
    fn sweep_each(&mut self, id: GroupId, first: u32, end: u32, released: &mut BTreeMap<GroupId, IntervalSet>, out: &mut Outbox) {
        let early = self.mutations.has(Mutation::ReleaseEarly);
        let mut start = first;
        for index in first..end {
            let task = TaskRef { group: id, index };
            if early || !self.element_is_needed(task) {
                continue;
            }
            if start < index {
                self.release(id, start, index, released, out);
            }
            start = index + 1;
            if !self.result_is_needed(task) {
                self.drop_holders(task, out);
            }
        }
        if start < end {
            self.release(id, start, end, released, out);
        }
    }

    /// Tells every holder of a result that it may drop it.
    fn drop_holders(&mut self, task: TaskRef, out: &mut Outbox) {
        for holder in self.remove_holders(task) {
            self.counts.note(Happening::Dropped);
            out.push(Output::DropObject { session: self.worker(holder).session, task });
        }
    }

    /// Elements that nobody needs any more; what they have read may follow.
    fn release(&mut self, id: GroupId, first: u32, end: u32, released: &mut BTreeMap<GroupId, IntervalSet>, out: &mut Outbox) {
        self.group_mut(id).released.insert_range(first, end);
        self.counts.note(Happening::Released);
        released.entry(id).or_default().insert_range(first, end);
        let objects: Vec<u32> = self.group_of(id).objects.range(first..end).map(|(index, _)| *index).collect();
        for index in objects {
            let task = TaskRef { group: id, index };
            self.drop_holders(task, out);
            self.group_mut(id).objects.remove(&index);
            self.objects -= 1;
            self.free_inputs(task, Standing::Heir);
        }
        let group = self.group_mut(id);
        if group.over && !group.growing && group.length.is_some_and(|length| group.released.len() >= length) {
            group.shrink();
            self.spent.push(id);
        }
        self.look_at_inputs(id, first, end);
    }

    /// The run is over: every reference on its results has ended.
    pub(super) fn release_run(&mut self, id: RunId, out: &mut Outbox) {
        let groups = self.runs.get(&id).map(|run| run.groups.clone()).unwrap_or_default();
        for id in groups {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            let length = group.length.unwrap_or(0);
            let cells: Vec<u32> = group.cells.indices();
            let objects: Vec<u32> = group.objects.keys().copied().collect();
            let mut left = IntervalSet::from_range(0, length);
            for (first, end) in group.released.ranges() {
                left.remove_range(first, end);
            }
            group.let_go = IntervalSet::from_range(0, length);
            group.released = IntervalSet::from_range(0, length);
            for index in objects {
                self.drop_holders(TaskRef { group: id, index }, out);
            }
            for index in cells {
                let mut at = self.group_of(id).cells.ups(index);
                while at != NIL {
                    let here = at;
                    at = self.edges.sibling(here);
                    self.free_edge(here);
                }
            }
            let group = self.group_mut(id);
            let forgotten = std::mem::take(&mut group.objects).len();
            group.cells.clear();
            self.objects -= forgotten as u32;
            for (first, end) in left.ranges() {
                out.push(Output::Released { group: id, first, count: end - first });
            }
        }
    }

    /// Sessions whose workers hold the result of a task, oldest copy first.
    pub fn holders(&self, task: TaskRef) -> impl Iterator<Item = SessionId> + '_ {
        let object = self.groups.get(&task.group).and_then(|group| group.objects.get(&task.index));
        let holders = object.map_or(&[][..], |object| &object.holders[..]);
        holders.iter().map(|holder| self.worker(*holder).session)
    }

    /// Where the result of a committed task is. On a worker also while it is dropped or being made again: then it has no
    /// holders. Sizes of inline results are not kept here: `Inline(0)` is every other result of an open run that is not released.
    pub fn stored(&self, task: TaskRef) -> Stored {
        let Some(group) = self.groups.get(&task.group).filter(|group| group.kept) else { return Stored::None };
        match group.objects.get(&task.index) {
            Some(Object { size, .. }) if group.as_files => Stored::Files(*size),
            Some(Object { size, .. }) => Stored::Held(*size),
            None if group.succeeded.contains(task.index) && !group.released.contains(task.index) => Stored::Inline(0),
            None => Stored::None,
        }
    }
}

/// Whether those count that are over and might have to be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lineage {
    Apart,
    Included,
}

/// As what an element is counted by what it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It is not over.
    Reader,
    /// It is over and its result could be lost.
    Heir,
}
