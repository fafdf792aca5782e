//! What the machine keeps of a group and of a run. A group is ranges; only tasks that needed something of their own have a memo.

use super::depend::Upstream;
use super::edges::Cells;
use super::interval_set::IntervalSet;
use super::ready::ClassKey;
use super::row_map::RowMap;
use super::rows::NIL;
use super::views::Forgotten;
use crate::ids::{GroupId, Micros, RunId, SessionId, ShapeId, TaskRef};
use crate::messages::{OutcomeClass, RunEnd};
use crate::resources::{ResourceName, Resources};
use crate::spec::Policy;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Ready tasks of one group that go the same way: the same component, shape and company.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) key: ClassKey,
    pub(super) ready: IntervalSet,
    /// Whether the ready index lists it.
    pub(super) indexed: bool,
}

/// What one task needed beyond its group's ranges.
#[derive(Debug, Default)]
pub(super) struct Memo {
    /// Number of the latest attempt.
    pub(super) attempts: u32,
    /// Present once an attempt ended badly.
    pub(super) detail: Option<Box<Detail>>,
}

/// What failures have done to a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Detail {
    /// Used of `retries`.
    pub(super) retries: u32,
    /// Used of `oom_budget`.
    pub(super) oom: u32,
    /// Used of `lost_worker_budget`.
    pub(super) lost: u32,
    /// Used of `infra_start_budget`.
    pub(super) infra_start: u32,
    /// Workers that died while they executed it.
    pub(super) suspicion: u32,
    /// Grown memory, in bytes.
    pub(super) memory: Option<u64>,
    /// Grown timeout.
    pub(super) timeout: Option<Micros>,
    /// End of its wait, while it waits.
    pub(super) backoff_until: Option<Micros>,
    /// How the last bad attempt ended.
    pub(super) last: Option<Failure>,
    /// The last attempt that was lost with its worker and not charged, and where it was.
    pub(super) spared: Option<(u32, SessionId)>,
}

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) class: OutcomeClass,
    pub(super) exit_code: Option<i32>,
    pub(super) attempt: u32,
    /// Where it was.
    pub(super) session: SessionId,
    /// It ended because its worker was lost.
    pub(super) with_worker: bool,
}

/// A group.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) run: RunId,
    /// Its number within its run.
    pub(super) ordinal: u32,
    pub(super) name: String,
    /// Interned component.
    pub(super) component: u32,
    pub(super) priority: i32,
    pub(super) max_parallel: u32,
    pub(super) always: bool,
    pub(super) policy: Policy,
    /// What a worker must have for a task that has grown nothing.
    pub(super) shape: ShapeId,
    /// Grown shapes that its tasks have had.
    pub(super) grown: SmallVec<[ShapeId; 2]>,
    /// What comes out of the run's totals.
    pub(super) totals: Vec<(ResourceName, u64)>,
    /// Nothing while it is open. Of a growing group what it has so far.
    pub(super) length: Option<u32>,
    /// More elements may be appended.
    pub(super) growing: bool,
    /// Of an open run: what becomes of its results is followed.
    pub(super) kept: bool,
    /// Elements of it read results of single others.
    pub(super) reads: bool,
    /// Workers keep its results as [`Stored::Files`](crate::messages::Stored::Files).
    pub(super) as_files: bool,
    /// The group whose element 0 says the length.
    pub(super) length_from: Option<GroupId>,
    /// Groups open on this one's element 0.
    pub(super) openers: Vec<GroupId>,
    pub(super) upstreams: Vec<Upstream>,
    /// Groups that depend on this one, and which of their dependencies that is.
    pub(super) downstreams: Vec<(GroupId, u32)>,
    /// Whole-group dependencies not met yet, and one for a length not known yet.
    pub(super) whole_left: u32,

    pub(super) waiting: IntervalSet,
    /// The first is the plain one; others hold tasks with grown memory or in quarantine.
    pub(super) queues: Vec<Queue>,
    pub(super) backoff: IntervalSet,
    /// Slots of dispatched attempts by index.
    pub(super) dispatched: RowMap,
    pub(super) running: u32,
    pub(super) succeeded: IntervalSet,
    pub(super) failed: IntervalSet,
    pub(super) skipped: IntervalSet,
    /// First skipped index to the one after the last, and why.
    pub(super) roots: BTreeMap<u32, (u32, TaskRef)>,
    pub(super) cancelled: IntervalSet,
    /// Elements whose end was not passed on yet; over at 0.
    pub(super) unsettled: u32,
    pub(super) over: bool,
    /// It was open when it was skipped or cancelled: it has no element. Or it was refused: every element of it is rejected.
    pub(super) closed: Option<Closed>,
    /// It grows, and what it needs will never be: so appended elements are skipped at once.
    pub(super) doomed: Option<TaskRef>,
    /// Refused when they were appended; part of `failed`.
    pub(super) rejected: IntervalSet,
    /// Given up because their results were lost too often; part of `failed`.
    pub(super) lost_for_good: IntervalSet,
    /// Committed once and to be made again: not over now, and part of another state.
    pub(super) restoring: IntervalSet,
    /// The client has no reference on them. Element 0 stands for the group itself where it has no element.
    pub(super) let_go: IntervalSet,
    /// Nobody needs them any more.
    pub(super) released: IntervalSet,
    /// Groups that something of this one waits for as a whole, by itself or through what it waits for: none of those may come to
    /// wait for this one.
    pub(super) behind: SmallVec<[GroupId; 2]>,
    /// It is among [`Run::spent`].
    pub(super) spent: bool,
    /// Edges of single elements.
    pub(super) cells: Cells,
    /// Results that workers hold, or held and may have to be made again.
    pub(super) objects: BTreeMap<u32, Object>,
    pub(super) memos: BTreeMap<u32, Memo>,
    /// Attempts that came to something and were followed by another. One that was taken back unstarted is not among them.
    pub(super) retried: u32,
    /// Moving mean of wall time, in micros, once an attempt has finished.
    pub(super) wall_mean: Option<Micros>,
    /// Moving mean of cpu time, in micros.
    pub(super) cpu_mean: Option<Micros>,
}

/// The result of a task on the workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    /// Bytes.
    pub(super) size: u64,
    /// Slots of the workers that have it, first those that keep it, each kind in the order in which they came. None: it was dropped,
    /// or lost.
    pub(super) holders: SmallVec<[u32; 2]>,
    /// How many of them keep it.
    pub(super) kept: u16,
    /// How often the last holder was lost, as far as anybody counts.
    pub(super) losses: u16,
    /// Slot of the worker that fetches it because another one is to leave, or [`NIL`].
    pub(super) coming_to: u32,
}

// There may be one for every task of a run.
const _: () = assert!(size_of::<Object>() == 40);

impl Default for Object {
    fn default() -> Self {
        Object { size: 0, holders: SmallVec::new(), kept: 0, losses: 0, coming_to: NIL }
    }
}

/// How an open group ended without ever having an element, or that it was never taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    /// It was refused.
    Refused,
    /// Because of that failure.
    Skipped(TaskRef),
    /// By request.
    Cancelled,
}

impl Group {
    pub(super) fn ready_len(&self) -> u32 {
        self.queues.iter().map(|queue| queue.ready.len()).sum()
    }

    /// Everything of it is over and nobody needs any of it: gives back what only tells elements apart that are alike now.
    pub(super) fn shrink(&mut self) {
        let sets = [&mut self.waiting, &mut self.backoff, &mut self.restoring, &mut self.let_go, &mut self.released];
        let ends = [&mut self.succeeded, &mut self.failed, &mut self.skipped, &mut self.cancelled];
        let ready = self.queues.iter_mut().map(|queue| &mut queue.ready);
        sets.into_iter().chain(ends).chain(ready).for_each(IntervalSet::mend);
        // Empty maps keep what they have had room for.
        self.dispatched.shrink();
        if self.objects.is_empty() {
            self.objects = BTreeMap::new();
        }
        if self.memos.is_empty() {
            self.memos = BTreeMap::new();
        }
    }

    /// How far everything from `at` on is over, at most up to `end`, or how far it is over in the same way.
    pub(super) fn over_until(&self, at: u32, end: u32) -> u32 {
        let sets = [&self.succeeded, &self.failed, &self.skipped, &self.cancelled];
        sets.into_iter().map(|set| set.range_end(at, end)).max().unwrap_or(at)
    }

    /// The first element after `at` and before `end` that is over, or `end`.
    pub(super) fn over_after(&self, at: u32, end: u32) -> u32 {
        let sets = [&self.succeeded, &self.failed, &self.skipped, &self.cancelled];
        let next = |set: &IntervalSet| set.within(at.saturating_add(1), end).next().map(|(first, _)| first);
        sets.into_iter().filter_map(next).min().unwrap_or(end)
    }

    /// Whether every element of `first..end` is over.
    pub(super) fn all_over(&self, first: u32, end: u32) -> bool {
        let mut at = first;
        while at < end {
            match self.over_until(at, end) {
                until if until > at => at = until,
                _ => return false,
            }
        }
        true
    }

    /// True when it is over without success.
    pub(super) fn in_trouble(&self, index: u32) -> bool {
        self.failed.contains(index) || self.skipped.contains(index) || self.cancelled.contains(index)
    }

    /// True when something in it is over without success.
    pub(super) fn has_trouble(&self) -> bool {
        self.closed.is_some() || !(self.failed.is_empty() && self.skipped.is_empty() && self.cancelled.is_empty())
    }

    /// True when something in it failed, or did not run because something else had failed.
    pub(super) fn failed_somehow(&self) -> bool {
        let never = matches!(self.closed, Some(Closed::Skipped(_) | Closed::Refused));
        never || !self.failed.is_empty() || !self.skipped.is_empty()
    }

    /// The first element that is over without success, or 0.
    pub(super) fn first_trouble(&self) -> u32 {
        let firsts = [self.failed.first(), self.skipped.first(), self.cancelled.first()];
        firsts.into_iter().flatten().min().unwrap_or(0)
    }

    /// Number of the latest attempt of an element; 0 before the first.
    pub(super) fn attempts(&self, index: u32) -> u32 {
        match self.memos.get(&index) {
            Some(memo) => memo.attempts,
            None => {
                let failed = self.failed.contains(index) && !self.rejected.contains(index);
                u32::from(failed || self.dispatched.get(index).is_some() || self.succeeded.contains(index))
            }
        }
    }

    pub(super) fn detail(&self, index: u32) -> Option<&Detail> {
        self.memos.get(&index).and_then(|memo| memo.detail.as_deref())
    }

    /// The failure that a skipped element goes back to.
    pub(super) fn root_of(&self, index: u32) -> Option<TaskRef> {
        if let Some(Closed::Skipped(root)) = self.closed {
            return Some(root);
        }
        self.roots.range(..=index).next_back().filter(|(_, (end, _))| index < *end).map(|(_, (_, root))| *root)
    }

    /// Folds an attempt's figures into the means: each new one counts an eighth.
    pub(super) fn measure(&mut self, wall: Micros, cpu: Micros) {
        let fold = |mean: &mut Option<Micros>, new: Micros| {
            *mean = Some(mean.map_or(new, |old| (u128::from(old) * 7 / 8 + u128::from(new) / 8) as u64));
        };
        fold(&mut self.wall_mean, wall);
        fold(&mut self.cpu_mean, cpu);
    }
}

/// A run.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) name: String,
    pub(super) owner: String,
    pub(super) weight: u32,
    pub(super) client_key: [u8; 16],
    pub(super) max_failures: u32,
    /// Run-wide amounts.
    pub(super) totals: Resources,
    pub(super) totals_used: Resources,
    /// Its first group, known or not.
    pub(super) first_group: GroupId,
    /// Groups that it has had: the ordinal of the next one.
    pub(super) groups_added: u32,
    /// Those that are known, in order of their ordinals.
    pub(super) groups: Vec<GroupId>,
    /// Of those.
    pub(super) groups_over: u32,
    /// Those that are over and of no more use, the longest known first. One that turned out to be of use again may be among them.
    pub(super) spent: VecDeque<GroupId>,
    /// What is left of those that are not known any more.
    pub(super) forgotten: Forgotten,
    /// Shapes and components that such groups had, once each: workers know them by their numbers.
    pub(super) shapes: BTreeSet<u32>,
    pub(super) components: BTreeSet<u32>,
    /// Groups and elements may follow.
    pub(super) open: bool,
    /// Groups and elements may follow.
    pub(super) extensible: bool,
    /// It was submitted as an open run: its results are followed until it ends.
    pub(super) kept: bool,
    /// Nothing of it is dispatched.
    pub(super) paused: bool,
    /// The group that had its turn last: the next one is due.
    pub(super) turn: GroupId,
    /// Cpu time given since then to groups that read results and went before it.
    pub(super) lead: Micros,
    /// Tasks that failed.
    pub(super) failures: u32,
    /// Somebody cancelled the whole run.
    pub(super) cancelling: bool,
    /// `max_failures` was reached.
    pub(super) stopped: bool,
    pub(super) end: Option<RunEnd>,
    /// Cpu time used and estimated for what runs, in micros; starts at the least of the runs there are.
    pub(super) charged: u64,
    /// Groups whose ready tasks wait for the run's totals.
    pub(super) throttled: BTreeSet<GroupId>,
    /// Tasks of fixed and known lengths, in groups that are known.
    pub(super) tasks: u64,
}
