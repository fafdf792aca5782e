//! The ready index: which groups have work, by scheduling class, and which workers may have room for a class.
//!
//! Tasks of one class (component, shape, company) fit on the same workers. A class is looked at only when it has work *and* a
//! worker that may take it. A worker found without room is no longer looked at for it, only for what may be sent ahead of room;
//! one that is found full for that too is not looked at at all until its room changes. So a step costs what it places, not what
//! waits, and not what is busy.

use super::Scheduler;
use super::group::Queue;
use super::interval_set::IntervalSet;
use super::mutation::Mutation;
use super::worker_book::Worker;
use crate::ids::{GroupId, RunId, ShapeId, TaskRef};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// What decides where a task may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClassKey {
    /// Interned component.
    pub(super) component: u32,
    pub(super) shape: ShapeId,
    /// Nothing else may run beside it.
    pub(super) alone: bool,
}

/// Level and run of ready work: larger priorities first.
pub(super) type Level = (Reverse<i32>, RunId);

/// Groups and workers of one class.
#[derive(Debug, Default)]
pub(super) struct Class {
    /// Queues that refer to it.
    pub(super) users: u32,
    /// Groups with work that may be placed now.
    pub(super) entries: BTreeMap<Level, BTreeSet<GroupId>>,
    /// How many workers could hold one of its tasks when empty.
    pub(super) workers: u32,
    /// Workers that may have room.
    pub(super) free: Slots,
    /// Workers without room that may be sent something ahead of it.
    pub(super) ahead: Slots,
    /// The worker kept free for the next task, where it is to run alone.
    pub(super) reserved: Option<u32>,
}

impl Class {
    /// Whether any worker may take its tasks.
    pub(super) fn has_workers(&self) -> bool {
        !self.free.is_empty() || !self.ahead.is_empty()
    }
}

/// Slots of workers, of which a part is looked at in turn.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: BTreeSet<u32>,
    /// Where the next look begins.
    next: u32,
}

impl Slots {
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Adds or takes away a worker; says whether it was there.
    pub(super) fn set(&mut self, slot: u32, there: bool) -> bool {
        match there {
            true => !self.slots.insert(slot),
            false => self.slots.remove(&slot),
        }
    }

    pub(super) fn clear(&mut self) {
        self.slots.clear();
    }

    /// All of them; of more than `most`, those after the last look.
    pub(super) fn look(&mut self, most: usize) -> Vec<u32> {
        if self.slots.len() <= most {
            return self.slots.iter().copied().collect();
        }
        let looked: Vec<u32> = self.slots.range(self.next..).chain(self.slots.range(..self.next)).take(most).copied().collect();
        self.next = looked.last().map_or(0, |last| last + 1);
        looked
    }
}

impl FromIterator<u32> for Slots {
    fn from_iter<I: IntoIterator<Item = u32>>(slots: I) -> Self {
        Slots { slots: slots.into_iter().collect(), next: 0 }
    }
}

impl Scheduler {
    /// A queue of the class, for which at first all workers that serve it may have room.
    pub(super) fn new_queue(&mut self, key: ClassKey) -> Queue {
        if !self.classes.contains_key(&key) {
            let free: Slots = self.serving(key).collect();
            self.classes.insert(key, Class { workers: free.len() as u32, free, ..Class::default() });
        }
        if let Some(class) = self.classes.get_mut(&key) {
            class.users += 1;
        }
        Queue { key, ready: IntervalSet::new(), indexed: false }
    }

    /// Slots of workers that serve a class and could hold one of its tasks when empty.
    pub(super) fn serving(&self, key: ClassKey) -> impl Iterator<Item = u32> + '_ {
        let shape = self.shape_of(key.shape);
        self.workers
            .iter()
            .enumerate()
            .filter_map(move |(slot, worker)| worker.as_ref()?.holds_one(key.component, &shape).then_some(slot as u32))
    }

    /// A worker has come (`1`) or has gone (`-1`): the classes that it serves have another number of workers.
    pub(super) fn count_serving(&mut self, worker: &Worker, by: i32) {
        for (key, class) in &mut self.classes {
            if self.shapes.get(key.shape.0).is_some_and(|shape| worker.holds_one(key.component, shape)) {
                class.workers = class.workers.saturating_add_signed(by);
            }
        }
    }

    /// The group is over: its queues are gone.
    pub(super) fn release_queues(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        for queue in std::mem::take(&mut group.queues) {
            let Some(class) = self.classes.get_mut(&queue.key) else { continue };
            class.users -= 1;
            if class.users == 0 {
                self.open.remove(&queue.key);
                self.classes.remove(&queue.key);
            }
        }
    }

    /// How many more tasks of the group may be on workers, by its own limit and the run's totals.
    pub(super) fn allowance(&self, id: GroupId) -> (u32, bool) {
        let group = self.group_of(id);
        let on_workers = group.dispatched.len();
        let mut allowed = match group.max_parallel {
            0 => u32::MAX,
            most => most.saturating_sub(on_workers),
        };
        let mut by_totals = false;
        if let Some(run) = self.runs.get(&group.run) {
            if run.paused && !self.mutations.has(Mutation::IgnorePause) {
                return (0, false);
            }
            for &(name, amount) in &group.totals {
                let left = run.totals.custom(name).saturating_sub(run.totals_used.custom(name));
                let tasks = u32::try_from(left / amount.max(1)).unwrap_or(u32::MAX);
                by_totals |= tasks == 0;
                allowed = allowed.min(tasks);
            }
        }
        (allowed, by_totals)
    }

    /// Brings the index in line with the group's queues and limits. To be called after either changed.
    pub(super) fn index_group(&mut self, id: GroupId) {
        let (allowed, by_totals) = self.allowance(id);
        let Some(group) = self.groups.get_mut(&id) else { return };
        let level = (Reverse(group.priority), group.run);
        let mut throttled = false;
        for queue in &mut group.queues {
            let wanted = !queue.ready.is_empty() && allowed > 0;
            throttled |= !queue.ready.is_empty() && by_totals;
            if wanted == queue.indexed {
                continue;
            }
            queue.indexed = wanted;
            let Some(class) = self.classes.get_mut(&queue.key) else { continue };
            if wanted {
                class.entries.entry(level).or_default().insert(id);
                if class.has_workers() {
                    self.open.insert(queue.key);
                }
            } else {
                if let Some(groups) = class.entries.get_mut(&level) {
                    groups.remove(&id);
                    if groups.is_empty() {
                        class.entries.remove(&level);
                    }
                }
                if class.entries.is_empty() {
                    self.open.remove(&queue.key);
                    if let Some(worker) = class.reserved.take() {
                        self.unreserved.push(worker);
                    }
                }
            }
        }
        if throttled && let Some(run) = self.runs.get_mut(&group.run) {
            run.throttled.insert(id);
        }
        while let Some(slot) = self.unreserved.pop() {
            if let Some(worker) = self.workers[slot as usize].as_mut() {
                worker.reserved = false;
                self.changed.insert(slot);
            }
        }
    }

    /// Part of a run's totals is free again: groups that waited for it are looked at.
    pub(super) fn index_throttled(&mut self, run: RunId) {
        let waiting = match self.runs.get_mut(&run) {
            Some(run) if !run.throttled.is_empty() => std::mem::take(&mut run.throttled),
            _ => return,
        };
        for group in waiting {
            self.index_group(group);
        }
    }

    /// Puts a task that has nothing on any worker into the queue where it belongs.
    pub(super) fn make_ready(&mut self, task: TaskRef) {
        let group = self.group_of(task.group);
        let detail = group.detail(task.index);
        let alone = detail.is_some_and(|detail| detail.suspicion >= self.config.suspicion_alone);
        let base = group.queues.first().map(|queue| queue.key);
        let Some(base) = base else { return };
        let shape = match detail.and_then(|detail| detail.memory) {
            Some(memory) => self.grown_shape(task.group, memory),
            None => base.shape,
        };
        let key = ClassKey { component: base.component, shape, alone };
        let known = self.group_of(task.group).queues.iter().position(|queue| queue.key == key);
        let at = match known {
            Some(at) => at,
            None => {
                let queue = self.new_queue(key);
                let group = self.group_mut(task.group);
                group.queues.push(queue);
                group.queues.len() - 1
            }
        };
        self.group_mut(task.group).queues[at].ready.insert(task.index);
        self.index_group(task.group);
    }

    /// The group's shape with another memory figure, interned for as long as the group is known.
    fn grown_shape(&mut self, id: GroupId, memory: u64) -> ShapeId {
        let mut shape = self.shape_of(self.group_of(id).shape);
        shape.memory_bytes = memory;
        if let Some(known) = self.shapes.find(&shape) {
            let known = ShapeId(known);
            if self.group_of(id).grown.contains(&known) {
                return known;
            }
        }
        let grown = ShapeId(self.shapes.acquire(&shape));
        self.group_mut(id).grown.push(grown);
        grown
    }

    /// Follows what workers do with room that has become free, and offers those that may have some left to the classes they
    /// serve.
    pub(super) fn offer_changed(&mut self) {
        self.last_changed = None;
        for slot in std::mem::take(&mut self.changed) {
            self.promote(slot);
            let Some(worker) = self.workers[slot as usize].as_ref() else { continue };
            if worker.state != crate::messages::WorkerState::Active {
                continue;
            }
            for (key, class) in &mut self.classes {
                if worker.serves(key.component) {
                    class.free.set(slot, true);
                    class.ahead.set(slot, false);
                    if !class.entries.is_empty() {
                        self.open.insert(*key);
                    }
                }
            }
            self.idle_check.push(slot);
        }
    }
}
