//! The invariant checker: everything that must hold between two steps, recomputed from scratch.
//!
//! It knows nothing of how the machine got where it is; the tests' oracle, which knows only what went in and came out, looks at
//! the same promises from the other side.

use super::Scheduler;
use super::depend::UpstreamKind;
use super::group::{Group, Run};
use super::interval_set::IntervalSet;
use super::rows::{List, Place, Row};
use super::task_table::TaskState;
use super::worker_book::Worker;
use crate::ids::GroupId;
use crate::messages::WorkerState;
use crate::resources::Resources;
use std::collections::BTreeSet;

/// Fails with a sentence unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($why:tt)*) => {
        if !$holds {
            return Err(format!($($why)*));
        }
    };
}
pub(super) use ensure;

impl Scheduler {
    /// Checks the whole state. For tests: its cost is proportional to everything there is.
    ///
    /// # Errors
    /// The first invariant that does not hold, with figures.
    pub fn check(&self) -> Result<(), String> {
        ensure!(self.counts.impossible == 0, "{} steps were taken that nothing outside can cause", self.counts.impossible);
        ensure!(
            self.settling.is_empty() && self.changed.is_empty() && self.unreserved.is_empty() && self.limits_changed.is_empty(),
            "work was left over at the end of a step"
        );
        ensure!(
            self.edges_met.is_empty() && self.sweeping.is_empty() && self.closing.is_empty() && self.spent.is_empty(),
            "references were left over at the end of a step"
        );
        self.check_rows()?;
        for (slot, worker) in self.workers.iter().enumerate() {
            if let Some(worker) = worker {
                self.check_worker(slot as u32, worker).map_err(|what| format!("worker '{}': {what}", worker.name))?;
            }
        }
        for (id, group) in &self.groups {
            self.check_group(*id, group).map_err(|what| format!("group {} '{}': {what}", id.0, group.name))?;
        }
        self.check_runs()?;
        self.check_edges()?;
        self.check_objects()?;
        self.check_index()
    }

    fn check_rows(&self) -> Result<(), String> {
        let mut dispatched = 0;
        for (slot, row) in self.rows.iter() {
            let Row { group, index, fence, .. } = *row;
            dispatched += 1;
            ensure!(fence <= self.fence, "row {slot} has fence {fence} and the latest is {}", self.fence);
            ensure!(
                self.workers.get(row.worker as usize).is_some_and(Option::is_some),
                "row {slot} lies on a worker that does not live"
            );
            let known = self.groups.get(&group);
            ensure!(
                known.is_some_and(|group| group.dispatched.get(index) == Some(slot)),
                "row {slot} and task {}[{index}] do not know each other",
                group.0
            );
            ensure!(
                known.is_some_and(|group| group.attempts(index) == row.attempt),
                "row {slot} is not the latest attempt of task {}[{index}]",
                group.0
            );
            let fits = match row.place {
                Place::Admitted => row.state == TaskState::Assigned && row.holds,
                Place::Prefetched => row.state == TaskState::Assigned && !row.holds,
                Place::Executing => matches!(row.state, TaskState::Running | TaskState::Cancelling),
                Place::Leaving => matches!(row.state, TaskState::Retracting | TaskState::Cancelling),
                Place::Free => false,
            };
            ensure!(fits, "row {slot} is {:?} on the list {:?}, holding: {}", row.state, row.place, row.holds);
        }
        let by_group: u32 = self.groups.values().map(|group| group.dispatched.len()).sum();
        ensure!(by_group == dispatched, "{dispatched} rows are live and groups count {by_group}");
        Ok(())
    }

    fn check_worker(&self, slot: u32, worker: &Worker) -> Result<(), String> {
        let mut used = Resources::default();
        let mut unheld = 0;
        let lists = [
            (worker.admitted, Place::Admitted),
            (worker.prefetched, Place::Prefetched),
            (worker.executing, Place::Executing),
            (worker.leaving, Place::Leaving),
        ];
        for (list, place) in lists {
            self.check_list(slot, list, place)?;
            for row in self.rows.on(list).map(|slot| self.rows.get(slot)) {
                if row.holds {
                    used.add(&self.shape_of(row.shape));
                } else if place == Place::Executing {
                    unheld += 1;
                }
            }
        }
        let on_lists = self.rows.iter().filter(|(_, row)| row.worker == slot).count();
        ensure!(on_lists as u32 == worker.rows(), "{on_lists} rows lie on it and its lists have {}", worker.rows());
        ensure!(used == worker.used, "its rows hold {used:?} and its book says {:?}", worker.used);
        ensure!(unheld == worker.unheld, "{unheld} rows execute without holding anything and its book says {}", worker.unheld);
        ensure!(worker.capacity.fits(&worker.used, &Resources::default()), "it has {:?} and {used:?} are used", worker.capacity);
        ensure!(worker.rows() <= self.config.attempts_per_worker_max, "it has {} attempts", worker.rows());
        ensure!(self.sessions.get(&worker.session) == Some(&slot), "its session leads elsewhere");
        ensure!(self.worker_names.get(&worker.name) == Some(&slot), "its name leads elsewhere");
        ensure!(self.deadlines.contains(&(worker.deadline, slot)), "nothing will look at it again");
        let whole = worker.control && worker.data;
        match worker.state {
            WorkerState::Active => ensure!(whole && worker.reset_at.is_none(), "it is active without both connections"),
            WorkerState::Joining => ensure!(!whole, "it is joining with both connections"),
            WorkerState::Lost | WorkerState::Gone => return Err("it is over and still live".to_owned()),
            WorkerState::Suspect | WorkerState::Draining => {}
        }
        if worker.reset_at.is_some() {
            ensure!(worker.state == WorkerState::Suspect, "a connection is missing and it is {:?}", worker.state);
            let unstarted = worker.admitted.len + worker.prefetched.len + worker.leaving.len;
            ensure!(unstarted == 0, "a connection is missing and {unstarted} attempts wait on it");
        }
        ensure!(!worker.alone || worker.rows() == 1, "a task that is to run alone has {} beside it", worker.rows() - 1);
        let promised = self.classes.values().filter(|class| class.reserved == Some(slot)).count();
        ensure!(promised == usize::from(worker.reserved), "{promised} classes count on it, reserved: {}", worker.reserved);
        for &(shape, count) in &worker.prefetched_shapes {
            let there = self.rows.on(worker.prefetched).filter(|slot| self.rows.get(*slot).shape == shape).count();
            ensure!(there as u32 == count, "{there} prefetched rows of shape {} and its book says {count}", shape.0);
        }
        // What was sent ahead and fits now would have been promoted.
        if worker.unheld == 0 && worker.state == WorkerState::Active {
            let waits = self.rows.on(worker.prefetched).find(|slot| {
                let shape = self.shape_of(self.rows.get(*slot).shape);
                worker.capacity.fits(&worker.used, &shape)
            });
            ensure!(waits.is_none(), "row {waits:?} was sent ahead, fits, and holds nothing");
        }
        Ok(())
    }

    fn check_list(&self, worker: u32, list: List, place: Place) -> Result<(), String> {
        let (mut fence, mut len) = (0, 0);
        for slot in self.rows.on(list) {
            let row = self.rows.get(slot);
            ensure!(row.place == place && row.worker == worker, "row {slot} is on the list {place:?} and says {:?}", row.place);
            ensure!(row.fence > fence, "fences {fence} and {} follow each other on the list {place:?}", row.fence);
            fence = row.fence;
            len += 1;
            ensure!(len <= list.len, "the list {place:?} is longer than it says");
        }
        ensure!(len == list.len, "the list {place:?} has {len} rows and says {}", list.len);
        Ok(())
    }

    fn check_group(&self, id: GroupId, group: &Group) -> Result<(), String> {
        let length = group.length.unwrap_or(0);
        let mut all = IntervalSet::new();
        let queues = group.queues.iter().map(|queue| &queue.ready);
        let sets = [&group.waiting, &group.backoff, &group.succeeded, &group.failed, &group.skipped, &group.cancelled];
        let mut total = 0;
        for set in queues.chain(sets) {
            for (first, end) in set.ranges() {
                ensure!(first < end && end <= length, "it has {length} elements and a range {first}..{end}");
                ensure!(all.insert_range(first, end) == end - first, "an element of {first}..{end} is in two states");
                total += end - first;
            }
        }
        let mut running = 0;
        for (index, slot) in group.dispatched.iter() {
            ensure!(index < length && all.insert(index), "element {index} is on a worker and in another state");
            running += u32::from(self.rows.get(slot).place == Place::Executing);
            total += 1;
        }
        ensure!(total == length, "it has {length} elements and {total} are accounted for");
        ensure!(running == group.running, "{running} execute and it counts {}", group.running);
        let ended = group.succeeded.len() + group.failed.len() + group.skipped.len() + group.cancelled.len();
        ensure!(group.unsettled == length - ended, "{ended} of {length} are over and it counts {} to go", group.unsettled);
        let over = !group.growing && (group.length.is_some() || group.closed.is_some()) && ended == length;
        ensure!(over == group.over, "over: {over}, and it says {}", group.over);
        ensure!(
            group.max_parallel == 0 || group.dispatched.len() <= group.max_parallel,
            "{} of at most {} are on workers",
            group.dispatched.len(),
            group.max_parallel
        );
        for index in group.skipped.iter_from(0) {
            ensure!(group.root_of(index).is_some(), "element {index} was skipped and nothing says why");
        }
        for index in group.backoff.iter_from(0) {
            let until = group.detail(index).and_then(|detail| detail.backoff_until);
            let task = crate::ids::TaskRef { group: id, index };
            ensure!(until.is_some_and(|until| self.backoffs.contains(&(until, task))), "element {index} waits for no timer");
        }
        for (index, memo) in &group.memos {
            let Some(detail) = &memo.detail else { continue };
            let charged = detail.retries + detail.oom + detail.lost + detail.infra_start;
            ensure!(charged <= memo.attempts, "element {index} had {} attempts and {charged} are charged", memo.attempts);
            ensure!(
                detail.retries <= group.policy.retries
                    && detail.oom <= group.policy.oom_budget
                    && detail.lost <= group.policy.lost_worker_budget
                    && detail.infra_start <= group.policy.infra_start_budget,
                "element {index} has used more than its budgets: {detail:?}"
            );
        }
        self.check_dependencies(group)
    }

    /// What waits waits for something, and nothing has left `Waiting` too early.
    fn check_dependencies(&self, group: &Group) -> Result<(), String> {
        let run = self.runs.get(&group.run).ok_or("its run is not known")?;
        if run.end.is_some() {
            return Ok(());
        }
        let counts = |up: &Group, index: u32, data: bool| {
            up.succeeded.contains(index)
                || !data && up.restoring.contains(index)
                || group.always && (up.failed.contains(index) || up.skipped.contains(index) || up.cancelled.contains(index))
        };
        let mut left = u32::from(group.length.is_none());
        for upstream in group.upstreams.iter().filter(|upstream| upstream.is_gate()) {
            let Some(up) = self.known_or_forgotten(run, upstream.group)? else {
                ensure!(upstream.met || group.over, "it waits for a group that is forgotten");
                left += u32::from(!upstream.met);
                continue;
            };
            let met = match &upstream.kind {
                UpstreamKind::One(index) => counts(up, *index, upstream.data),
                _ => up.over && (group.always || !up.has_trouble()),
            };
            // What was met once and is not read stays met whatever becomes of the result.
            let stays = upstream.met && !upstream.data && up.kept;
            ensure!(met == upstream.met || stays, "the gate on '{}' is met: {met}, and it says {}", up.name, upstream.met);
            left += u32::from(!upstream.met);
        }
        ensure!(left == group.whole_left, "{left} gates are closed and it counts {}", group.whole_left);
        let skipped_or_cancelled = |index| group.skipped.contains(index) || group.cancelled.contains(index);
        for index in 0..group.length.unwrap_or(0) {
            let mut met = left == 0 && group.cells.left(index) == 0;
            for upstream in group.upstreams.iter().filter(|upstream| !upstream.is_gate()) {
                let Some(up) = self.known_or_forgotten(run, upstream.group)? else {
                    met &= upstream.satisfied.contains(index);
                    continue;
                };
                let satisfied = upstream.upstream_of(index).into_iter().all(|from| counts(up, from, upstream.data));
                let says = upstream.satisfied.contains(index);
                let stays = says && !upstream.data && up.kept;
                ensure!(
                    satisfied == says || stays,
                    "element {index} may go on after '{}': {satisfied}, and it says {says}",
                    up.name
                );
                met &= says;
            }
            ensure!(!(met && group.waiting.contains(index)), "element {index} waits for nothing");
            // What has begun, or is over, may have read what is lost by now.
            let begun = group.kept && !group.queues.iter().any(|queue| queue.ready.contains(index));
            ensure!(
                met || begun || group.waiting.contains(index) || skipped_or_cancelled(index),
                "element {index} went on too early"
            );
        }
        Ok(())
    }

    /// The group, or none when it is one of those that its run has forgotten.
    fn known_or_forgotten(&self, run: &Run, id: GroupId) -> Result<Option<&Group>, String> {
        let group = self.groups.get(&id);
        let had = run.extensible && (run.first_group..GroupId(self.next_group)).contains(&id);
        ensure!(group.is_some() || had && run.groups.binary_search(&id).is_err(), "an upstream group is not known");
        Ok(group)
    }

    /// What may be forgotten is on its way to that, and no more of it is kept than should be.
    fn check_spent(&self, run: &Run) -> Result<(), String> {
        ensure!(run.spent.len() <= self.config.groups_kept, "{} spent groups are kept", run.spent.len());
        let mut marked = 0;
        for id in &run.groups {
            let group = self.group_of(*id);
            marked += usize::from(group.spent);
            ensure!(group.spent == run.spent.contains(id), "group {} and its run disagree on whether it is spent", id.0);
            let length = group.length.unwrap_or(0);
            let released = if length == 0 { group.let_go.contains(0) } else { group.released.contains_range(0, length) };
            let waited_for = group.downstreams.iter().filter_map(|(id, _)| self.groups.get(id)).any(|waiter| !waiter.over);
            let live = run.extensible && run.end.is_none();
            ensure!(
                !(live && group.over && released && !waited_for) || group.spent,
                "group {} '{}' is over and released, nothing waits for it, and it is kept for good",
                id.0,
                group.name
            );
        }
        ensure!(marked == run.spent.len(), "{marked} groups are spent and {} are listed", run.spent.len());
        Ok(())
    }

    fn check_runs(&self) -> Result<(), String> {
        for (id, run) in &self.runs {
            let groups = || run.groups.iter().filter_map(|id| self.groups.get(id));
            ensure!(groups().count() == run.groups.len(), "run {} has lost a group", id.0);
            let had = run.groups.len() + run.forgotten.groups as usize;
            ensure!(
                had <= run.groups_added as usize,
                "run {} has had {} groups and {had} are accounted for",
                id.0,
                run.groups_added
            );
            ensure!(groups().map(|group| group.ordinal).is_sorted(), "run {}: groups are out of order", id.0);
            self.check_spent(run).map_err(|what| format!("run {}: {what}", id.0))?;
            let over = groups().filter(|group| group.over).count() as u32;
            ensure!(over == run.groups_over, "run {}: {over} groups are over and it counts {}", id.0, run.groups_over);
            let ended = over as usize == run.groups.len() && !run.open;
            ensure!(run.end.is_some() == ended, "run {}: {over} of {} groups, {:?}", id.0, run.groups.len(), run.end);
            let failures = groups().map(|group| group.failed.len()).sum::<u32>() + run.forgotten.failed as u32;
            ensure!(failures == run.failures, "run {}: {failures} failures and it counts {}", id.0, run.failures);
            let mut used = Resources::default();
            for group in groups() {
                for _ in 0..group.dispatched.len() {
                    used.add(&Resources { custom: group.totals.iter().copied().collect(), ..Resources::default() });
                }
            }
            ensure!(used == run.totals_used, "run {}: {used:?} of its totals are used and it says {:?}", id.0, run.totals_used);
            ensure!(run.totals.fits(&used, &Resources::default()), "run {}: {used:?} of {:?} are used", id.0, run.totals);
            for (name, amount) in &used.custom {
                ensure!(*amount <= run.totals.custom(*name), "run {}: {amount} of a total is used", id.0);
            }
        }
        ensure!(self.ended_runs.len() <= self.config.runs_kept, "{} ended runs are kept", self.ended_runs.len());
        for (_, task) in &self.backoffs {
            let waits = self.groups.get(&task.group).is_some_and(|group| group.backoff.contains(task.index));
            ensure!(waits, "a timer is set for {}[{}], which does not wait", task.group.0, task.index);
        }
        Ok(())
    }

    /// The ready index lists what may be placed, and nothing ready fits on a worker that takes work.
    fn check_index(&self) -> Result<(), String> {
        let mut listed: BTreeSet<(super::ready::ClassKey, GroupId)> = BTreeSet::new();
        for (key, class) in &self.classes {
            for (level, groups) in &class.entries {
                ensure!(!groups.is_empty(), "class {key:?} has an empty level {level:?}");
                listed.extend(groups.iter().map(|group| (*key, *group)));
            }
            ensure!(class.entries.is_empty() || !class.has_workers(), "class {key:?} has work and workers to look at");
            let serving = self.serving(*key).count();
            ensure!(class.workers as usize == serving, "class {key:?} counts {} workers of {serving}", class.workers);
            if let Some(slot) = class.reserved {
                ensure!(!class.entries.is_empty(), "class {key:?} keeps a worker free for nothing");
                ensure!(self.worker(slot).rows() > 0, "worker '{}' is kept free, idle and unused", self.worker(slot).name);
            }
        }
        ensure!(self.open.is_empty(), "{} classes are open between steps", self.open.len());
        for (id, group) in &self.groups {
            let (allowed, by_totals) = self.allowance(*id);
            for queue in &group.queues {
                let wanted = !queue.ready.is_empty() && allowed > 0;
                // Another group may have taken the last of a total: that is noticed when it is this group's turn.
                let late = queue.indexed && by_totals;
                ensure!(
                    wanted == queue.indexed || late,
                    "group {}: to be indexed: {wanted}, and it says {}",
                    id.0,
                    queue.indexed
                );
                ensure!(listed.remove(&(queue.key, *id)) == queue.indexed, "group {} and the index disagree", id.0);
                let by_group = group.max_parallel > 0 && group.dispatched.len() >= group.max_parallel;
                if !queue.ready.is_empty() && by_totals && !by_group && !late {
                    let waits = self.runs.get(&group.run).is_some_and(|run| run.throttled.contains(id));
                    ensure!(waits, "group {} waits for totals and nobody knows", id.0);
                }
                if !wanted {
                    continue;
                }
                let shape = self.shape_of(queue.key.shape);
                for worker in self.workers.iter().flatten().filter(|worker| worker.serves(queue.key.component)) {
                    let fits = match queue.key.alone {
                        true => worker.rows() == 0 && worker.capacity.fits(&Resources::default(), &shape),
                        false => {
                            worker.capacity.fits(&worker.used, &shape) && worker.rows() < self.config.attempts_per_worker_max
                        }
                    };
                    ensure!(!(worker.takes_work() && fits), "group {} has ready work that fits on '{}'", id.0, worker.name);
                }
            }
        }
        ensure!(listed.is_empty(), "the index lists groups without work: {listed:?}");
        Ok(())
    }
}
