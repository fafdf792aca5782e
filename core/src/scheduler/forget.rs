//! Groups of open runs that nobody can want anything of any more.
//!
//! An open run may go on for days and have any number of groups. One that is *spent* is over, every element of it is released, and
//! nothing that waits names it: no answer depends on it but what `explain` says of it. The last few of a run stay for that, older ones
//! are forgotten: their counts are added up, their ids are never used again. What comes late and names one finds nothing, as it would
//! after the end of the run.

use super::Scheduler;
use super::counts::Happening;
use super::group::{Closed, Group, Run};
use super::interner::Interner;
use super::mutation::Mutation;
use crate::ids::{GroupId, TaskRef};
use crate::messages::{Outbox, Output};
use std::collections::BTreeSet;
use std::hash::Hash;

impl Scheduler {
    /// The group of this number in its run, if it is known.
    pub(super) fn group_at(&self, run: &Run, ordinal: usize) -> Option<GroupId> {
        let number = |id: &GroupId| self.groups.get(id).map_or(0, |group| group.ordinal as usize);
        run.groups.binary_search_by_key(&ordinal, number).ok().map(|at| run.groups[at])
    }

    /// The failure that something goes back to, or what is nearest to it and still known.
    pub(super) fn known_root(&self, root: Option<TaskRef>, nearest: TaskRef) -> TaskRef {
        root.filter(|root| self.groups.contains_key(&root.group)).unwrap_or(nearest)
    }

    /// Whether nobody can want anything of a group of an open run any more.
    pub(super) fn is_spent(&self, group: &Group) -> bool {
        let length = group.length.unwrap_or(0);
        let released = match length {
            0 => group.let_go.contains(0),
            _ => group.released.len() >= length || self.mutations.has(Mutation::ForgetEarly),
        };
        // What was added last is over last: looked at from behind, the answer comes soon.
        let mut waiters = group.downstreams.iter().rev();
        group.over && !group.growing && released && waiters.all(|(id, _)| self.groups.get(id).is_none_or(|waiter| waiter.over))
    }

    /// Looks at groups that may be spent now, and forgets the oldest of those that are: once at the end of a step.
    pub(super) fn forget_spent(&mut self, out: &mut Outbox) {
        if self.spent.is_empty() {
            return;
        }
        let mut looked_at = std::mem::take(&mut self.spent);
        looked_at.sort_unstable();
        looked_at.dedup();
        for id in looked_at.drain(..) {
            let Some(group) = self.groups.get(&id).filter(|group| !group.spent && self.is_spent(group)) else { continue };
            let run_id = group.run;
            let Some(run) = self.runs.get_mut(&run_id).filter(|run| run.extensible && run.end.is_none()) else { continue };
            run.spent.push_back(id);
            self.group_mut(id).spent = true;
            while let Some(run) = self.runs.get_mut(&run_id).filter(|run| run.spent.len() > self.config.groups_kept)
                && let Some(oldest) = run.spent.pop_front()
            {
                self.group_mut(oldest).spent = false;
                // Something may have been added that follows it.
                if self.is_spent(self.group_of(oldest)) {
                    self.forget_group(oldest, out);
                }
            }
        }
        self.spent = looked_at;
    }

    fn forget_group(&mut self, id: GroupId, out: &mut Outbox) {
        self.release_queues(id);
        let Some(mut group) = self.groups.remove(&id) else { return };
        for index in group.cells.indices() {
            // Elements that merely followed one of its tasks may wait for others yet: their edges are their own from now on.
            let edges = &mut self.edges;
            group.cells.change(index, |cell| edges.dissolve(cell));
        }
        for (at, upstream) in (0u32..).zip(&group.upstreams) {
            if let Some(up) = self.groups.get_mut(&upstream.group)
                && let Ok(found) = up.downstreams.binary_search(&(id, at))
            {
                up.downstreams.remove(found);
            }
        }
        let Some(run) = self.runs.get_mut(&group.run) else { return };
        if let Ok(at) = run.groups.binary_search(&id) {
            run.groups.remove(at);
        }
        run.groups_over -= 1;
        run.throttled.remove(&id);
        run.tasks -= u64::from(group.length.unwrap_or(0));
        let sum = &mut run.forgotten;
        sum.groups += 1;
        sum.succeeded += u64::from(group.succeeded.len());
        sum.failed += u64::from(group.failed.len());
        sum.skipped += u64::from(group.skipped.len());
        sum.cancelled += u64::from(group.cancelled.len());
        sum.retried += u64::from(group.retried);
        sum.trouble |= group.failed_somehow();
        sum.cancellation |= !group.cancelled.is_empty() || group.closed == Some(Closed::Cancelled);
        keep_once(&mut run.components, &mut self.components, group.component);
        for shape in group.grown.iter().chain([&group.shape]) {
            keep_once(&mut run.shapes, &mut self.shapes, shape.0);
        }
        self.counts.note(Happening::GroupForgotten);
        out.push(Output::GroupForgotten { run: group.run, group: id });
    }
}

/// The run is one user of a number in the place of its group, so that the next group gets the same one.
fn keep_once<T: Clone + Eq + Hash>(kept: &mut BTreeSet<u32>, of: &mut Interner<T>, number: u32) {
    if !kept.insert(number) {
        of.release(number);
    }
}
