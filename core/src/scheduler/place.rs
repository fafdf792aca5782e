//! Placement: which ready task goes where.
//!
//! The pick: larger priority first, then the run that has used the least cpu time for its weight, then the order of groups. The
//! groups of an open run take turns: none of them waits for the end of another that happens to be longer.
//! The place: the least loaded worker that serves the component and has room. When nobody has room, short tasks are sent ahead
//! of it, as many as a worker finishes in two round trips, so that it never waits for the next one.
//! A choice costs what it places, however many workers there are: see [`super::ready`].
//!
//! A task that is to run alone gets a worker of its own: one is kept free of new work until it is idle.

use super::Scheduler;
use super::mutation::Mutation;
use super::ready::ClassKey;
use super::rows::{NewRow, Place};
use super::task_table::{TaskEvent, TaskState};
use super::worker_book::Worker;
use crate::ids::{GroupId, MILLISECOND, Micros, RunId, TaskRef};
use crate::messages::{Dispatch, Outbox, Output, WorkerState};
use crate::resources::Resources;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::ops::Bound::{Excluded, Unbounded};

/// Most tasks that one worker gets at a time, from the front of the queue: neighbours end together and stay one range.
const BLOCK_MAX: u32 = 64;
/// Workers that are looked at for one choice, and one more for every block of what is to be placed. Of more, each choice looks at
/// the next ones: the least loaded of so many is near enough to the least loaded of all.
const LOOK_MAX: usize = 64;
/// The same for workers that have no room, of which the one with the shortest queue is sent something ahead of it.
const AHEAD_LOOK_MAX: usize = 16;
/// Cpu time that one group of an open run may be given while others of it wait, in micros.
const TURN: Micros = 10 * MILLISECOND;
/// Groups of an open run among which one is looked for that reads results.
const READERS_LOOK_MAX: usize = 8;

/// What to place next.
struct Pick {
    key: ClassKey,
    group: GroupId,
    /// Most tasks before another run is due.
    most: u32,
    /// It reads results and goes before the group whose turn it is.
    early: bool,
}

/// Tasks of one queue, which are to be placed.
#[derive(Clone, Copy)]
pub(super) struct Work<'a> {
    pub(super) group: GroupId,
    pub(super) key: ClassKey,
    pub(super) shape: &'a Resources,
    /// Most that a worker is sent ahead of room beyond its slots: as much as every worker that serves them could be sent.
    pub(super) ahead_max: u32,
}

/// Neighbouring tasks on their way to one worker.
struct Block {
    worker: u32,
    first: u32,
    count: u32,
    to: Place,
}

impl Scheduler {
    /// Places ready work until nothing ready fits anywhere.
    pub(super) fn place(&mut self, now: Micros, out: &mut Outbox) {
        loop {
            if !self.changed.is_empty() {
                self.offer_changed();
            }
            match self.pick() {
                Some(pick) if pick.key.alone => self.place_alone(&pick, now, out),
                Some(pick) => self.place_group(&pick, now, out),
                None if self.changed.is_empty() => break,
                None => {}
            }
        }
    }

    /// The group whose turn it is, among classes that have work and a worker to look at.
    fn pick(&self) -> Option<Pick> {
        struct Best {
            key: ClassKey,
            priority: i32,
            run: RunId,
            used: (u64, u32),
            group: GroupId,
            /// One that reads results comes first, then groups after the one that had its turn.
            rank: (bool, bool, GroupId),
            others: bool,
        }
        // Used cpu time by weight, compared without division.
        let less = |a: (u64, u32), b: (u64, u32)| (u128::from(a.0) * u128::from(b.1)).cmp(&(u128::from(b.0) * u128::from(a.1)));
        let mut best: Option<Best> = None;
        let mut rival: Option<(u64, u32)> = None;
        for key in &self.open {
            let Some(class) = self.classes.get(key) else { continue };
            let Some((&(Reverse(priority), _), _)) = class.entries.first_key_value() else { continue };
            if best.as_ref().is_some_and(|best| best.priority > priority) {
                continue;
            }
            if best.as_ref().is_some_and(|best| best.priority < priority) {
                (best, rival) = (None, None);
            }
            for (&(_, run_id), groups) in
                class.entries.range((Reverse(priority), RunId(0))..=(Reverse(priority), RunId(u32::MAX)))
            {
                let Some(run) = self.runs.get(&run_id) else { continue };
                let after = if run.kept { groups.range((Excluded(run.turn), Unbounded)).next() } else { None };
                let Some(&due) = after.or(groups.first()) else { continue };
                let reader = if run.kept && run.lead < TURN { self.reader_among(groups, run.turn) } else { None };
                let group = reader.unwrap_or(due);
                let rank = (reader.is_none(), run.kept && group <= run.turn, group);
                let used = (run.charged, run.weight);
                let mut others = run.kept && groups.len() > 1;
                if let Some(best) = best.as_mut().filter(|best| best.run == run_id) {
                    best.others |= run.kept;
                    others |= run.kept;
                }
                let better = best.as_ref().is_none_or(|best| less(used, best.used).then(rank.cmp(&best.rank)).is_lt());
                if better {
                    if let Some(old) = best.as_ref().filter(|old| old.run != run_id)
                        && rival.is_none_or(|rival| less(old.used, rival).is_lt())
                    {
                        rival = Some(old.used);
                    }
                    best = Some(Best { key: *key, priority, run: run_id, used, group, rank, others });
                } else if best.as_ref().is_some_and(|best| best.run != run_id)
                    && rival.is_none_or(|rival| less(used, rival).is_lt())
                {
                    rival = Some(used);
                }
            }
        }
        let best = best?;
        let most = match rival {
            None => u32::MAX,
            Some((charged, weight)) => {
                let due = u128::from(charged) * u128::from(best.used.1) / u128::from(weight.max(1));
                let lead = due.saturating_sub(u128::from(best.used.0));
                let tasks = lead / u128::from(self.estimate(best.key, best.group)) + 1;
                u32::try_from(tasks).unwrap_or(u32::MAX)
            }
        };
        let turn = match best.others {
            true => u32::try_from(TURN / u64::from(self.estimate(best.key, best.group))).unwrap_or(u32::MAX).max(1),
            false => u32::MAX,
        };
        Some(Pick { key: best.key, group: best.group, most: most.min(turn), early: !best.rank.0 })
    }

    /// The next group of these that reads results: what it has read can be dropped, and what it would have to wait for fills
    /// memory meanwhile.
    fn reader_among(&self, groups: &BTreeSet<GroupId>, turn: GroupId) -> Option<GroupId> {
        if self.objects == 0 {
            return None;
        }
        let in_turn = groups.range((Excluded(turn), Unbounded)).chain(groups.range(..=turn));
        in_turn.take(READERS_LOOK_MAX).copied().find(|id| self.reads_objects(self.group_of(*id)))
    }

    /// Cpu time that one task of the group is expected to use, in micros; one second of what it asks for until one has finished.
    fn estimate(&self, key: ClassKey, group: GroupId) -> u32 {
        let asked = || self.shapes.get(key.shape.0).map_or(0, |shape| shape.milli_cpus).saturating_mul(1_000);
        let expected = self.group_of(group).cpu_mean.unwrap_or_else(asked);
        u32::try_from(expected.max(1)).unwrap_or(u32::MAX)
    }

    fn place_group(&mut self, pick: &Pick, now: Micros, out: &mut Outbox) {
        let Pick { key, group: id, most, early } = *pick;
        let shape = self.shape_of(key.shape);
        let (allowed, _) = self.allowance(id);
        let ready = self.ready_in(id, key);
        let mut left = most.min(allowed).min(ready);
        let workers = self.classes.get(&key).map_or(1, |class| class.workers.max(1));
        let work = Work { group: id, key, shape: &shape, ahead_max: self.config.prefetch_total_max / workers };
        let look = |least: usize| least.max(left as usize / BLOCK_MAX as usize);
        let Some((free, all)) = self.look_for_room(key, &shape, look(LOOK_MAX)) else { return };
        let ahead = match all {
            true => self.classes.get_mut(&key).map_or_else(Vec::new, |class| class.ahead.look(look(AHEAD_LOOK_MAX))),
            false => Vec::new(),
        };
        let (estimate, before) = (self.estimate(key, id), self.group_of(id).dispatched.len());

        if left > 0 && self.reads_objects(self.group_of(id)) {
            self.place_near(work, [&free, &ahead], left, now, out);
            left = 0;
        }
        let entry = |worker: &Worker, slot: u32| Reverse((worker.turn(), slot));
        let mut heap: BinaryHeap<_> = free.iter().map(|slot| entry(self.worker(*slot), *slot)).collect();
        while left > 0
            && let Some(Reverse((_, slot))) = heap.pop()
        {
            let share = match self.worker(slot).filled {
                true => BLOCK_MAX,
                false => (left / (8 * (heap.len() as u32 + 1))).clamp(1, BLOCK_MAX),
            };
            let placed = self.place_block(work, slot, share.min(left), Place::Admitted, now, out);
            left -= placed;
            if placed > 0 && self.has_room(self.worker(slot), &shape) {
                heap.push(entry(self.worker(slot), slot));
            }
        }

        // A worker that has got its share of what is ready gets more when it has reported something: others may have by then.
        let fair = ready.div_ceil(workers);
        let mut served: Vec<u32> = Vec::new();
        if left > 0 && all {
            let mut heap: BinaryHeap<_> = free
                .iter()
                .chain(&ahead)
                .filter(|slot| self.room_ahead(**slot, work) > 0)
                .map(|slot| Reverse((self.worker(*slot).prefetched.len, *slot, 0)))
                .collect();
            while left > 0
                && let Some(Reverse((_, slot, sent))) = heap.pop()
            {
                let share = left / (8 * (heap.len() as u32 + 1));
                let share = share.clamp(1, BLOCK_MAX).min(self.room_ahead(slot, work)).min(fair - sent);
                let placed = self.place_block(work, slot, share, Place::Prefetched, now, out);
                left -= placed;
                if placed > 0 && sent + placed == fair {
                    served.push(slot);
                } else if placed > 0 && self.room_ahead(slot, work) > 0 {
                    heap.push(Reverse((self.worker(slot).prefetched.len, slot, sent + placed)));
                }
            }
        }

        served.sort_unstable();
        for slot in free.into_iter().chain(ahead) {
            let room = self.has_room(self.worker(slot), &shape);
            let room_ahead = !room && self.room_ahead(slot, work) > 0 && (left == 0 || served.binary_search(&slot).is_err());
            let Some(class) = self.classes.get_mut(&key) else { break };
            class.free.set(slot, room);
            class.ahead.set(slot, room_ahead);
        }
        if self.classes.get(&key).is_none_or(|class| !class.has_workers()) {
            self.open.remove(&key);
        }
        let sent = self.group_of(id).dispatched.len() - before;
        if let Some(run) = self.groups.get(&id).and_then(|group| self.runs.get_mut(&group.run)) {
            match early {
                true => run.lead = run.lead.saturating_add(u64::from(estimate) * u64::from(sent)),
                false => (run.turn, run.lead) = (id, 0),
            }
        }
        self.index_group(id);
    }

    /// Workers of the class that have room, at most `look` are looked at, and whether no other worker has. What has none may be
    /// sent something ahead of it. Nothing when those that were looked at have no room and others may have.
    fn look_for_room(&mut self, key: ClassKey, shape: &Resources, look: usize) -> Option<(Vec<u32>, bool)> {
        let class = self.classes.get_mut(&key)?;
        let all = class.free.len() <= look;
        let looked = class.free.look(look);
        let (free, full): (Vec<u32>, Vec<u32>) = looked.into_iter().partition(|slot| self.has_room(self.worker(*slot), shape));
        let class = self.classes.get_mut(&key)?;
        for slot in full {
            class.free.set(slot, false);
            class.ahead.set(slot, true);
        }
        (all || !free.is_empty()).then_some((free, all))
    }

    /// Whether a worker takes a task of this shape and has room for it.
    pub(super) fn has_room(&self, worker: &Worker, shape: &Resources) -> bool {
        let none = Resources::default();
        let used = if self.mutations.has(Mutation::OverAdmit) { &none } else { &worker.used };
        worker.takes_work() && worker.rows() < self.config.attempts_per_worker_max && worker.capacity.fits(used, shape)
    }

    /// How many more tasks of a group a worker without room may be sent ahead of it.
    pub(super) fn room_ahead(&self, slot: u32, work: Work<'_>) -> u32 {
        let worker = self.worker(slot);
        if !worker.takes_work() || self.has_room(worker, work.shape) {
            return 0;
        }
        let depth = self.prefetch_depth(worker, work);
        let rows = self.config.attempts_per_worker_max.saturating_sub(worker.rows());
        depth.saturating_sub(worker.prefetched.len).min(rows)
    }

    /// The first ready task of a queue.
    pub(super) fn first_ready(&self, id: GroupId, key: ClassKey) -> Option<u32> {
        self.group_of(id).queues.iter().find(|queue| queue.key == key)?.ready.first()
    }

    fn ready_in(&self, id: GroupId, key: ClassKey) -> u32 {
        self.group_of(id).queues.iter().find(|queue| queue.key == key).map_or(0, |queue| queue.ready.len())
    }

    /// How many rows may be sent to a worker ahead of room: what it finishes in two round trips, and one for every slot.
    fn prefetch_depth(&self, worker: &Worker, work: Work<'_>) -> u32 {
        let group = self.group_of(work.group);
        let (Some(wall), Some(round_trip)) = (group.wall_mean, worker.round_trip) else { return 0 };
        if wall >= self.config.short_task || !group.totals.is_empty() {
            return 0;
        }
        let most = self.config.prefetch_max;
        let slots = u64::from(worker.slots(work.shape, most));
        let turns = round_trip.saturating_mul(2).div_ceil(wall.max(1)).min(u64::from(most));
        ((slots * turns).min(u64::from(work.ahead_max)) + slots).min(u64::from(most)) as u32
    }

    /// Takes up to `most` tasks from the front of the queue and sends them to one worker; says how many went.
    pub(super) fn place_block(
        &mut self,
        work: Work<'_>,
        worker: u32,
        most: u32,
        to: Place,
        now: Micros,
        out: &mut Outbox,
    ) -> u32 {
        let room = match to {
            Place::Admitted if !self.mutations.has(Mutation::OverAdmit) => self.worker(worker).room_for(work.shape, most),
            _ => most,
        };
        let room = room.min(self.config.attempts_per_worker_max.saturating_sub(self.worker(worker).rows()));
        let mut placed = 0;
        while placed < room {
            let queue = self.group_mut(work.group).queues.iter_mut().find(|queue| queue.key == work.key);
            let Some((first, count)) = queue.and_then(|queue| queue.ready.take_first(room - placed)) else { break };
            self.dispatch(work, Block { worker, first, count, to }, now, out);
            placed += count;
        }
        placed
    }

    /// Makes a row for each task of the block and tells the worker.
    fn dispatch(&mut self, work: Work<'_>, block: Block, now: Micros, out: &mut Outbox) {
        let estimate = self.estimate(work.key, work.group);
        let repeat_fence = self.mutations.has(Mutation::RepeatFence);
        let group = self.groups.get_mut(&work.group).expect("an indexed group is known");
        let run = self.runs.get_mut(&group.run).expect("a group's run is known as long as the group");
        let worker = self.workers[block.worker as usize].as_mut().expect("a candidate is a live worker");
        self.counts.task(TaskState::Ready, TaskEvent::Dispatch, block.count);
        run.charged = run.charged.saturating_add(u64::from(estimate) * u64::from(block.count));
        let admitted = block.to == Place::Admitted;
        if !admitted {
            self.rich.insert(block.worker);
        }
        for index in block.first..block.first + block.count {
            let (mut attempt, mut timeout) = (1, group.policy.timeout);
            if !group.memos.is_empty()
                && let Some(memo) = group.memos.get_mut(&index)
            {
                memo.attempts += 1;
                attempt = memo.attempts;
                timeout = memo.detail.as_ref().and_then(|detail| detail.timeout).unwrap_or(timeout);
            }
            if !repeat_fence || self.fence.is_multiple_of(2) {
                self.fence += 1;
            }
            let task = TaskRef { group: work.group, index };
            let handle = self.rows.add(NewRow {
                fence: self.fence,
                since: now,
                task,
                attempt,
                worker: block.worker,
                shape: work.key.shape,
                estimate,
                prompt: admitted,
            });
            worker.link(&mut self.rows, handle.slot, block.to);
            if admitted {
                worker.hold(&mut self.rows, handle.slot, work.shape);
            }
            group.dispatched.insert(index, handle.slot);
            for &(name, amount) in &group.totals {
                run.totals_used.add(&Resources { custom: [(name, amount)].into_iter().collect(), ..Resources::default() });
            }
            out.push(Output::Dispatch {
                session: worker.session,
                dispatch: Dispatch { handle, task, attempt, shape: work.key.shape, timeout, fence: self.fence },
            });
        }
    }

    /// Finds, or keeps free, a worker for a task that is to run alone.
    fn place_alone(&mut self, pick: &Pick, now: Micros, out: &mut Outbox) {
        let Pick { key, group: id, .. } = *pick;
        if self.allowance(id).0 == 0 {
            // Another group has taken the last of the run's totals since this one was listed.
            return self.index_group(id);
        }
        let reserved = self.classes.get(&key).and_then(|class| class.reserved);
        let idle = |scheduler: &Scheduler, slot: u32| scheduler.worker(slot).rows() == 0;
        let chosen = match reserved {
            Some(slot) if idle(self, slot) => Some(slot),
            _ => self
                .serving(key)
                .filter(|slot| self.worker(*slot).takes_work())
                .filter(|slot| reserved.is_none() || idle(self, *slot))
                .min_by_key(|slot| (self.worker(*slot).rows(), *slot)),
        };
        let Some(slot) = chosen else { return self.close_class(key) };
        if let Some(other) = reserved.filter(|other| *other != slot) {
            self.worker_mut(other).reserved = false;
            self.changed.insert(other);
        }
        let go = idle(self, slot);
        let worker = self.worker_mut(slot);
        (worker.reserved, worker.alone) = (!go, go);
        if let Some(class) = self.classes.get_mut(&key) {
            class.reserved = (!go).then_some(slot);
        }
        if !go {
            return self.close_class(key);
        }
        let shape = self.shape_of(key.shape);
        let work = Work { group: id, key, shape: &shape, ahead_max: 0 };
        if self.place_block(work, slot, 1, Place::Admitted, now, out) == 0 {
            self.worker_mut(slot).alone = false;
        }
        self.index_group(id);
    }

    /// Nothing more to place in this class until a worker changes.
    fn close_class(&mut self, key: ClassKey) {
        if let Some(class) = self.classes.get_mut(&key) {
            class.free.clear();
            class.ahead.clear();
        }
        self.open.remove(&key);
    }

    /// A worker is no longer kept free: the class that waited for it looks for another.
    pub(super) fn drop_reservation(&mut self, slot: u32) {
        if !std::mem::take(&mut self.worker_mut(slot).reserved) {
            return;
        }
        let keys: Vec<ClassKey> =
            self.classes.iter().filter(|(_, class)| class.reserved == Some(slot)).map(|(key, _)| *key).collect();
        for key in keys {
            let serving = self.serving(key).filter(|slot| self.worker(*slot).state == WorkerState::Active).collect();
            if let Some(class) = self.classes.get_mut(&key) {
                class.reserved = None;
                class.free = serving;
                class.ahead.clear();
                if !class.entries.is_empty() && class.has_workers() {
                    self.open.insert(key);
                }
            }
        }
    }
}
