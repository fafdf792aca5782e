//! Dependencies: what was waited for, what became ready, how far a failure reaches.
//!
//! Every end of a task goes through one worklist as a range, so a chain of ten thousand groups costs a loop and no recursion.
//! An end either *counts* for a dependency (success; any end for an `always` group) or *kills* what waits for it.

use super::Scheduler;
use super::group::Closed;
use super::interval_set::IntervalSet;
use super::mutation::Mutation;
use super::projection::Projection;
use super::rows::NIL;
use super::task_table::{TaskEvent, TaskState};
use crate::ids::{GroupId, RunId, TaskRef};
use crate::messages::{Outbox, Output, RunEnd};
use rustc_hash::FxHashMap;

/// One dependency of a group, on the side that waits.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) group: GroupId,
    pub(super) kind: UpstreamKind,
    /// The results are read.
    pub(super) data: bool,
    /// A gate: it is met. (Element-wise ones have `satisfied`.)
    pub(super) met: bool,
    /// Elements for which this dependency is met. Unused for gates.
    pub(super) satisfied: IntervalSet,
}

/// How elements wait.
#[derive(Debug)]
pub(super) enum UpstreamKind {
    /// All for all.
    Whole,
    /// All for one element.
    One(u32),
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
    /// It holds back all elements or none.
    pub(super) fn is_gate(&self) -> bool {
        matches!(self.kind, UpstreamKind::Whole | UpstreamKind::One(_))
    }

    /// Upstream elements that one element waits for. Of a whole group it says nothing.
    pub(super) fn upstream_of(&self, index: u32) -> Vec<u32> {
        match &self.kind {
            UpstreamKind::Whole => Vec::new(),
            UpstreamKind::One(one) => vec![*one],
            UpstreamKind::Projection { plan, .. } => plan.upstream_of(index),
            UpstreamKind::Edges(edges) => edges.pairs.iter().filter(|(_, to)| *to == index).map(|(from, _)| *from).collect(),
        }
    }

    /// Elements met from the beginning, in a group of `length` elements.
    pub(super) fn initially_satisfied(&self, length: u32) -> IntervalSet {
        match &self.kind {
            UpstreamKind::Whole | UpstreamKind::One(_) => IntervalSet::new(),
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
    pub(super) fn count(&mut self, first: u32, end: u32) -> Vec<(u32, u32)> {
        let mut met = Vec::new();
        match &mut self.kind {
            UpstreamKind::Whole | UpstreamKind::One(_) => {}
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

    /// Takes back what [`Upstream::count`] did for one upstream element; returns downstream ranges that wait again.
    pub(super) fn uncount(&mut self, index: u32) -> Vec<(u32, u32)> {
        let reached = self.reach(index, index + 1);
        match &mut self.kind {
            UpstreamKind::Whole | UpstreamKind::One(_) => {}
            UpstreamKind::Projection { plan, ended } => {
                if plan.fan_in > 1 {
                    let cell = plan.cell(index);
                    let count = ended.entry(cell).or_insert(plan.fan_in);
                    *count -= 1;
                    if *count == 0 {
                        ended.remove(&cell);
                    }
                }
            }
            UpstreamKind::Edges(edges) => {
                for &(down, _) in &reached {
                    if let Ok(at) = edges.downs.binary_search(&down) {
                        edges.left[at] += 1;
                    }
                }
            }
        }
        for &(first, end) in &reached {
            self.satisfied.remove_range(first, end);
        }
        reached
    }

    /// Downstream ranges that wait for any of the upstream elements `first..end`.
    pub(super) fn reach(&self, first: u32, end: u32) -> Vec<(u32, u32)> {
        match &self.kind {
            UpstreamKind::Whole | UpstreamKind::One(_) => Vec::new(),
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

/// Whether an end is the first of its element, or follows because its result had to be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Time {
    First,
    Again,
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
        while !self.settling.is_empty() {
            while let Some(settled) = self.settling.pop_front() {
                self.settle_one(settled, out);
            }
            self.begin_ready();
        }
    }

    /// Elements whose last edge was met become ready, all of a group together.
    fn begin_ready(&mut self) {
        let mut met = std::mem::take(&mut self.edges_met);
        met.sort_unstable();
        let mut at = 0;
        while at < met.len() {
            let group = met[at].group;
            let mut ranges: Vec<(u32, u32)> = Vec::new();
            while at < met.len() && met[at].group == group {
                let index = met[at].index;
                match ranges.last_mut() {
                    Some((_, end)) if *end == index => *end += 1,
                    Some((_, end)) if *end > index => {}
                    _ => ranges.push((index, index + 1)),
                }
                at += 1;
            }
            self.elements_met(group, ranges);
        }
        met.clear();
        self.edges_met = met;
    }

    /// Elements that were over before and whose results had to be made again are passed on apart from the others: only what
    /// reads them waits for them.
    fn settle_one(&mut self, settled: Settled, out: &mut Outbox) {
        let Settled { group: id, first, end, how } = settled;
        let Some(group) = self.groups.get_mut(&id) else { return };
        if group.restoring.is_empty() {
            return self.pass_on(settled, Time::First, out);
        }
        let again: Vec<(u32, u32)> = group.restoring.within(first, end).collect();
        let mut at = first;
        for (again, stop) in again {
            if at < again {
                self.pass_on(Settled { group: id, first: at, end: again, how }, Time::First, out);
            }
            self.group_mut(id).restoring.remove_range(again, stop);
            self.pass_on(Settled { group: id, first: again, end: stop, how }, Time::Again, out);
            at = stop;
        }
        if at < end || first == end {
            self.pass_on(Settled { group: id, first: at, end, how }, Time::First, out);
        }
    }

    fn pass_on(&mut self, settled: Settled, time: Time, out: &mut Outbox) {
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
        let now_over = group.unsettled == 0 && !group.over && !group.growing;
        group.over |= now_over;
        let trouble = group.has_trouble();
        let openers = if how != End::Succeeded && (first == 0) { std::mem::take(&mut group.openers) } else { Vec::new() };
        let downstreams = std::mem::take(&mut group.downstreams);
        let (kept, edged) = (group.kept, !group.cells.is_empty());
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
                    if now_over && (waiter.always || !trouble) || early {
                        self.gate_met(down, ordinal);
                    }
                }
                (UpstreamKind::One(index), true) if (first..end).contains(index) => self.gate_met(down, ordinal),
                // What was met once and is not read does not matter any more.
                (UpstreamKind::Whole, false) if !upstream.met => self.skip_all(down, root, out),
                (UpstreamKind::One(index), false) if (first..end).contains(index) && !upstream.met => {
                    self.skip_all(down, root, out);
                }
                (UpstreamKind::Whole | UpstreamKind::One(_), _) => {}
                _ if time == Time::Again && !upstream.data => {}
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
        if edged {
            self.pass_on_edges(settled, out);
        }
        if kept {
            self.inputs_read(settled);
        }
        for opener in openers {
            self.close_open(opener, Closed::Skipped(root), out);
        }
        if now_over {
            self.group_over(id, out);
        }
    }

    /// A dependency that held back a whole group holds it back no longer.
    pub(super) fn gate_met(&mut self, id: GroupId, ordinal: u32) {
        let Some(waiter) = self.groups.get_mut(&id) else { return };
        if !std::mem::replace(&mut waiter.upstreams[ordinal as usize].met, true) {
            waiter.whole_left -= 1;
            if waiter.whole_left == 0 {
                self.all_whole_met(id);
            }
        }
    }

    /// Passes ends on along edges of single elements.
    fn pass_on_edges(&mut self, settled: Settled, out: &mut Outbox) {
        let Settled { group: id, first, end, how } = settled;
        let mut from = first;
        while let Some(index) = self.group_of(id).cells.next(from, end) {
            from = index + 1;
            let root = match how {
                End::Skipped(root) => root,
                _ => TaskRef { group: id, index },
            };
            let mut at = self.group_of(id).cells.downs(index);
            while at != NIL {
                let here = at;
                at = self.edges.next(here);
                let edge = self.edges.get_mut(here);
                if edge.met || edge.dead {
                    continue;
                }
                let down = edge.down;
                let Some(waiter) = self.groups.get_mut(&down.group) else { continue };
                if how == End::Succeeded || waiter.always {
                    edge.met = true;
                    if waiter.cells.meet(down.index) == 0 && waiter.whole_left == 0 {
                        self.edges_met.push(down);
                    }
                } else {
                    self.skip_range(down.group, down.index, down.index + 1, root, out);
                }
            }
            let edges = &mut self.edges;
            if let Some(group) = self.groups.get_mut(&id).filter(|group| !group.objects.contains_key(&index)) {
                // It cannot be lost, so nobody will wait for it again.
                group.cells.change(index, |cell| edges.dissolve(cell));
            }
        }
    }

    /// Every gate is open: what no other dependency holds back is ready.
    pub(super) fn all_whole_met(&mut self, id: GroupId) {
        let Some(group) = self.groups.get(&id) else { return };
        let waiting: Vec<(u32, u32)> = group.waiting.ranges().collect();
        self.elements_met(id, waiting);
    }

    /// Those of `candidates` that wait for nothing any more become ready.
    pub(super) fn elements_met(&mut self, id: GroupId, candidates: Vec<(u32, u32)>) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let mut ranges: Vec<(u32, u32)> = candidates;
        for upstream in group.upstreams.iter().filter(|upstream| !upstream.is_gate()) {
            ranges = ranges.into_iter().flat_map(|(first, end)| upstream.satisfied.within(first, end)).collect();
        }
        let mut waiting: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (first, end) in ranges {
            waiting.extend(group.waiting.within(first, end));
        }
        let ranges = waiting;
        let ranges = if group.cells.is_empty() { ranges } else { group.cells.without_left(ranges) };
        let mut changed = false;
        let mut apart: Vec<u32> = Vec::new();
        for (first, end) in ranges {
            let moved = group.waiting.remove_range(first, end);
            if self.counts.task(TaskState::Waiting, TaskEvent::DependenciesMet, moved).is_some() {
                group.queues[0].ready.insert_range(first, end);
                changed = true;
                if !group.memos.is_empty() {
                    // What has failed before may belong into another queue.
                    apart
                        .extend(group.memos.range(first..end).filter(|(_, memo)| memo.detail.is_some()).map(|(index, _)| *index));
                }
            }
        }
        for index in apart {
            self.group_mut(id).queues[0].ready.remove(index);
            self.make_ready(TaskRef { group: id, index });
        }
        if changed {
            self.index_group(id);
        }
    }

    /// Waiting elements of `first..end` will never run.
    pub(super) fn skip_range(&mut self, id: GroupId, first: u32, end: u32, root: TaskRef, out: &mut Outbox) {
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
    pub(super) fn skip_all(&mut self, id: GroupId, root: TaskRef, out: &mut Outbox) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if group.length.is_none() {
            self.close_open(id, Closed::Skipped(root), out);
        } else {
            if group.growing && group.doomed.is_none() {
                group.doomed = Some(root);
            }
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
            Closed::Refused => End::Failed,
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
        if run.extensible {
            // What it has waited for may have been kept for its sake alone.
            self.spent.push(id);
            self.spent.extend(group.upstreams.iter().map(|upstream| upstream.group));
        }
        self.end_if_over(run_id, out);
    }

    /// Ends the run when nothing follows and every group is over.
    pub(super) fn end_if_over(&mut self, id: RunId, out: &mut Outbox) {
        let Some(run) = self.runs.get(&id) else { return };
        if run.groups_over as usize == run.groups.len() && !run.open && run.end.is_none() {
            self.end_run(id, out);
        }
    }

    /// Every group is over: says how the run ended and lets go of what only a living run needs.
    pub(super) fn end_run(&mut self, id: RunId, out: &mut Outbox) {
        let Some(run) = self.runs.get(&id) else { return };
        let groups = run.groups.iter().filter_map(|id| self.groups.get(id));
        let (mut failed, mut cancelled) = (run.stopped || run.forgotten.trouble, run.forgotten.cancellation);
        for group in groups {
            failed |= group.failed_somehow();
            cancelled |= !group.cancelled.is_empty() || group.closed == Some(Closed::Cancelled);
        }
        let end = match (run.cancelling, failed, cancelled) {
            (true, _, _) => RunEnd::Cancelled,
            (_, true, _) => RunEnd::Failed,
            (_, _, true) => RunEnd::Cancelled,
            _ => RunEnd::Succeeded,
        };
        if run.kept {
            self.release_run(id, out);
        }
        let groups = self.runs.get(&id).map(|run| run.groups.clone()).unwrap_or_default();
        for group in groups {
            if let Some(group) = self.groups.get_mut(&group) {
                group.upstreams = Vec::new();
                group.downstreams = Vec::new();
                group.spent = false;
            }
        }
        if let Some(run) = self.runs.get_mut(&id) {
            run.end = Some(end);
            run.throttled.clear();
            run.spent = Default::default();
        }
        out.push(Output::RunEnded { run: id, end });
        self.retain_ended(id);
    }
}
