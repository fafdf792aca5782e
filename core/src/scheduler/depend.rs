//! Dependencies: what was waited for, what became ready, how far a failure reaches.
//!
//! Every end of a task goes through one worklist as a range, so a chain of ten thousand groups costs a loop and no recursion.
//! An end either *counts* for a dependency (success; any end for an `always` group) or *kills* what waits for it.

use super::Scheduler;
use super::group::Closed;
use super::interval_set::IntervalSet;
use super::mutation::Mutation;
use super::projection::Projection;
use super::task_table::{TaskEvent, TaskState};
use crate::ids::{GroupId, TaskRef};
use crate::messages::{Outbox, Output, RunEnd};
use rustc_hash::FxHashMap;

/// One dependency of a group, on the side that waits.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) group: GroupId,
    pub(super) kind: UpstreamKind,
    /// A whole-group dependency: it is met. (Element-wise ones have `satisfied`.)
    pub(super) met: bool,
    /// Elements for which this dependency is met. Unused for whole-group dependencies.
    pub(super) satisfied: IntervalSet,
}

/// How elements wait.
#[derive(Debug)]
pub(super) enum UpstreamKind {
    /// All for all.
    Whole,
    /// Cell by cell; the counter says how many upstream elements of a cell have ended, and exists while some have.
    Projection { plan: Projection, ended: FxHashMap<u32, u32> },
    /// Explicit pairs.
    Edges(Edges),
}

/// Explicit pairs, sorted for lookup from upstream, with a counter for each element that waits.
#[derive(Debug)]
pub(super) struct Edges {
    /// (upstream, downstream), sorted, without repetition.
    pub(super) pairs: Vec<(u32, u32)>,
    /// Downstream elements that have edges, sorted.
    pub(super) downs: Vec<u32>,
    /// Edges of each not met yet.
    pub(super) left: Vec<u32>,
}

impl Edges {
    pub(super) fn new(mut pairs: Vec<(u32, u32)>) -> Self {
        pairs.sort_unstable();
        pairs.dedup();
        let mut downs: Vec<u32> = pairs.iter().map(|(_, down)| *down).collect();
        downs.sort_unstable();
        let mut left: Vec<u32> = Vec::new();
        let mut unique: Vec<u32> = Vec::new();
        for down in downs {
            if unique.last() == Some(&down) {
                if let Some(count) = left.last_mut() {
                    *count += 1;
                }
            } else {
                unique.push(down);
                left.push(1);
            }
        }
        Edges { pairs, downs: unique, left }
    }

    /// Pairs whose upstream lies in `first..end`.
    pub(super) fn from(&self, first: u32, end: u32) -> &[(u32, u32)] {
        let start = self.pairs.partition_point(|(up, _)| *up < first);
        let stop = self.pairs.partition_point(|(up, _)| *up < end);
        &self.pairs[start..stop]
    }
}

impl Upstream {
    /// Elements met from the beginning, in a group of `length` elements.
    pub(super) fn initially_satisfied(&self, length: u32) -> IntervalSet {
        match &self.kind {
            UpstreamKind::Whole => IntervalSet::new(),
            UpstreamKind::Projection { plan, .. } if plan.fan_in == 0 => IntervalSet::from_range(0, length),
            UpstreamKind::Projection { .. } => IntervalSet::new(),
            UpstreamKind::Edges(edges) => {
                let mut free = IntervalSet::from_range(0, length);
                for &down in &edges.downs {
                    free.remove(down);
                }
                free
            }
        }
    }

    /// Counts the end of upstream elements `first..end`; returns downstream ranges for which that was the last one.
    fn count(&mut self, first: u32, end: u32) -> Vec<(u32, u32)> {
        let mut met = Vec::new();
        match &mut self.kind {
            UpstreamKind::Whole => {}
            UpstreamKind::Projection { plan, .. } if plan.is_identity() => met.push((first, end)),
            UpstreamKind::Projection { plan, ended } => {
                for index in first..end {
                    let cell = plan.cell(index);
                    if plan.fan_in > 1 {
                        let count = ended.entry(cell).or_insert(0);
                        *count += 1;
                        if *count < plan.fan_in {
                            continue;
                        }
                        ended.remove(&cell);
                    }
                    met.extend(plan.downstream_ranges(cell));
                }
            }
            UpstreamKind::Edges(edges) => {
                let start = edges.pairs.partition_point(|(up, _)| *up < first);
                let stop = edges.pairs.partition_point(|(up, _)| *up < end);
                for &(_, down) in &edges.pairs[start..stop] {
                    if let Ok(at) = edges.downs.binary_search(&down) {
                        edges.left[at] -= 1;
                        if edges.left[at] == 0 {
                            met.push((down, down + 1));
                        }
                    }
                }
            }
        }
        for &(first, end) in &met {
            self.satisfied.insert_range(first, end);
        }
        met
    }

    /// Downstream ranges that wait for any of the upstream elements `first..end`.
    fn reach(&self, first: u32, end: u32) -> Vec<(u32, u32)> {
        match &self.kind {
            UpstreamKind::Whole => Vec::new(),
            UpstreamKind::Projection { plan, .. } if plan.is_identity() => vec![(first, end)],
            UpstreamKind::Projection { plan, .. } => {
                let (mut reached, mut last) = (Vec::new(), None);
                for index in first..end {
                    let cell = plan.cell(index);
                    if last != Some(cell) {
                        reached.extend(plan.downstream_ranges(cell));
                        last = Some(cell);
                    }
                }
                reached
            }
            UpstreamKind::Edges(edges) => edges.from(first, end).iter().map(|(_, down)| (*down, *down + 1)).collect(),
        }
    }
}

/// How elements ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Succeeded,
    Failed,
    Skipped(TaskRef),
    Cancelled,
}

/// Elements `first..end` of a group that ended the same way. Without elements it stands for the group itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settled {
    pub(super) group: GroupId,
    pub(super) first: u32,
    pub(super) end: u32,
    pub(super) how: End,
}

impl Scheduler {
    /// Notes an end. Neighbouring successes become one entry, as they come from workers in runs of indices.
    pub(super) fn note_end(&mut self, group: GroupId, first: u32, end: u32, how: End) {
        if let Some(last) = self.settling.back_mut()
            && last.group == group
            && last.end == first
            && first < end
            && last.first < last.end
            && last.how == how
            && how == End::Succeeded
        {
            last.end = end;
            return;
        }
        self.settling.push_back(Settled { group, first, end, how });
    }

    /// Passes every noted end on to what depends on it, until nothing is left to pass on.
    pub(super) fn settle(&mut self, out: &mut Outbox) {
        while let Some(settled) = self.settling.pop_front() {
            self.settle_one(settled, out);
        }
    }

    fn settle_one(&mut self, settled: Settled, out: &mut Outbox) {
        let Settled { group: id, first, end, how } = settled;
        let Some(group) = self.groups.get_mut(&id) else { return };
        match how {
            End::Succeeded => group.succeeded.insert_range(first, end),
            End::Failed => group.failed.insert_range(first, end),
            End::Cancelled => group.cancelled.insert_range(first, end),
            End::Skipped(root) => {
                if first < end {
                    group.roots.insert(first, (end, root));
                }
                group.skipped.insert_range(first, end)
            }
        };
        group.unsettled -= end - first;
        let now_over = group.unsettled == 0 && !group.over;
        group.over |= now_over;
        let trouble = group.has_trouble();
        let openers = if how != End::Succeeded && (first == 0) { std::mem::take(&mut group.openers) } else { Vec::new() };
        let downstreams = std::mem::take(&mut group.downstreams);
        let root = match how {
            End::Skipped(root) => root,
            _ => TaskRef { group: id, index: first },
        };
        let early = self.mutations.has(Mutation::StartBeforeDependency);
        for &(down, ordinal) in &downstreams {
            let Some(waiter) = self.groups.get_mut(&down) else { continue };
            let counts = how == End::Succeeded || waiter.always;
            let upstream = &mut waiter.upstreams[ordinal as usize];
            match (&upstream.kind, counts) {
                (UpstreamKind::Whole, true) => {
                    let met = now_over && (waiter.always || !trouble) || early;
                    if met && !std::mem::replace(&mut upstream.met, true) {
                        waiter.whole_left -= 1;
                        if waiter.whole_left == 0 {
                            self.all_whole_met(down);
                        }
                    }
                }
                (UpstreamKind::Whole, false) => self.skip_all(down, root, out),
                (_, true) => {
                    let met = upstream.count(first, end);
                    if waiter.whole_left == 0 {
                        self.elements_met(down, met);
                    }
                }
                (_, false) => {
                    let reached = upstream.reach(first, end);
                    for (first, end) in reached {
                        self.skip_range(down, first, end, root, out);
                    }
                }
            }
        }
        if let Some(group) = self.groups.get_mut(&id) {
            group.downstreams = downstreams;
        }
        for opener in openers {
            self.close_open(opener, Closed::Skipped(root), out);
        }
        if now_over {
            self.group_over(id, out);
        }
    }

    /// Every whole-group dependency is met: what no element-wise one holds back is ready.
    pub(super) fn all_whole_met(&mut self, id: GroupId) {
        let Some(group) = self.groups.get(&id) else { return };
        let waiting: Vec<(u32, u32)> = group.waiting.ranges().collect();
        self.elements_met(id, waiting);
    }

    /// Those of `candidates` that wait for nothing any more become ready.
    fn elements_met(&mut self, id: GroupId, candidates: Vec<(u32, u32)>) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let mut ranges: Vec<(u32, u32)> = candidates;
        for upstream in group.upstreams.iter().filter(|upstream| !matches!(upstream.kind, UpstreamKind::Whole)) {
            ranges = ranges.into_iter().flat_map(|(first, end)| upstream.satisfied.within(first, end)).collect();
        }
        let ranges: Vec<(u32, u32)> =
            ranges.into_iter().flat_map(|(first, end)| group.waiting.within(first, end).collect::<Vec<_>>()).collect();
        let mut changed = false;
        for (first, end) in ranges {
            let moved = group.waiting.remove_range(first, end);
            if self.counts.task(TaskState::Waiting, TaskEvent::DependenciesMet, moved).is_some() {
                group.queues[0].ready.insert_range(first, end);
                changed = true;
            }
        }
        if changed {
            self.index_group(id);
        }
    }

    /// Waiting elements of `first..end` will never run.
    fn skip_range(&mut self, id: GroupId, first: u32, end: u32, root: TaskRef, out: &mut Outbox) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let hit: Vec<(u32, u32)> = group.waiting.within(first, end).collect();
        for (first, end) in hit {
            let count = group.waiting.remove_range(first, end);
            if self.counts.task(TaskState::Waiting, TaskEvent::Skip, count).is_some() {
                out.push(Output::Skipped { group: id, first, count, root });
                self.settling.push_back(Settled { group: id, first, end, how: End::Skipped(root) });
            }
        }
    }

    /// Nothing of the group that still waits will ever run.
    fn skip_all(&mut self, id: GroupId, root: TaskRef, out: &mut Outbox) {
        let Some(group) = self.groups.get(&id) else { return };
        if group.length.is_none() {
            self.close_open(id, Closed::Skipped(root), out);
        } else {
            self.skip_range(id, 0, u32::MAX, root, out);
        }
    }

    /// An open group ends without ever having had an element.
    pub(super) fn close_open(&mut self, id: GroupId, how: Closed, out: &mut Outbox) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if group.length.is_some() || group.closed.is_some() {
            return;
        }
        group.closed = Some(how);
        let how = match how {
            Closed::Skipped(root) => {
                out.push(Output::Skipped { group: id, first: 0, count: 0, root });
                End::Skipped(root)
            }
            Closed::Cancelled => {
                out.push(Output::Cancelled { group: id, first: 0, count: 0 });
                End::Cancelled
            }
        };
        self.settling.push_back(Settled { group: id, first: 0, end: 0, how });
    }

    /// Element 0 of a group has committed: groups open on it have their length now, or never will.
    pub(super) fn open_groups(&mut self, task: TaskRef, length: Option<u32>, out: &mut Outbox) {
        let openers = match self.groups.get_mut(&task.group) {
            Some(group) if task.index == 0 => std::mem::take(&mut group.openers),
            _ => return,
        };
        for id in openers {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            if group.closed.is_some() {
                continue;
            }
            let Some(run) = self.runs.get_mut(&group.run) else { continue };
            match length {
                Some(length) if run.tasks + u64::from(length) <= crate::spec::TASKS_PER_RUN_MAX => {
                    run.tasks += u64::from(length);
                    group.length = Some(length);
                    group.unsettled = length;
                    group.waiting = IntervalSet::from_range(0, length);
                    group.whole_left -= 1;
                    out.push(Output::LengthKnown { group: id, length });
                    if length == 0 {
                        self.settling.push_back(Settled { group: id, first: 0, end: 0, how: End::Succeeded });
                    } else if group.whole_left == 0 {
                        self.all_whole_met(id);
                    }
                }
                _ => self.close_open(id, Closed::Skipped(task), out),
            }
        }
    }

    /// The last element of a group is over.
    fn group_over(&mut self, id: GroupId, out: &mut Outbox) {
        self.release_queues(id);
        let Some(group) = self.groups.get(&id) else { return };
        let run_id = group.run;
        let Some(run) = self.runs.get_mut(&run_id) else { return };
        run.groups_over += 1;
        if run.groups_over == run.groups && run.end.is_none() {
            self.end_run(run_id, out);
        }
    }

    /// Every group is over: says how the run ended and lets go of what only a living run needs.
    pub(super) fn end_run(&mut self, id: crate::ids::RunId, out: &mut Outbox) {
        let Some(run) = self.runs.get(&id) else { return };
        let groups = run.group_ids().filter_map(|id| self.groups.get(&id));
        let (mut failed, mut cancelled) = (run.stopped, false);
        for group in groups {
            failed |= !group.failed.is_empty() || !group.skipped.is_empty() || matches!(group.closed, Some(Closed::Skipped(_)));
            cancelled |= !group.cancelled.is_empty() || group.closed == Some(Closed::Cancelled);
        }
        let end = match (run.cancelling, failed, cancelled) {
            (true, _, _) => RunEnd::Cancelled,
            (_, true, _) => RunEnd::Failed,
            (_, _, true) => RunEnd::Cancelled,
            _ => RunEnd::Succeeded,
        };
        for group in run.group_ids() {
            if let Some(group) = self.groups.get_mut(&group) {
                group.upstreams = Vec::new();
                group.downstreams = Vec::new();
            }
        }
        if let Some(run) = self.runs.get_mut(&id) {
            run.end = Some(end);
            run.throttled.clear();
        }
        out.push(Output::RunEnded { run: id, end });
        self.retain_ended(id);
    }
}
