//! Placement of tasks that read objects: where their inputs are, what moving them costs, and what waiting there costs.
//!
//! A task goes where it is expected to begin to work first. Moving costs the bytes that are not there at the configured
//! bandwidth; waiting costs the attempts that are there already, each a mean of its group, shared by the worker's slots. A holder
//! that is full is waited for, by sending the task ahead of room, only while that is cheaper than moving what it reads to a
//! worker that is free; work sent ahead is taken back by one that starves. So no worker stands idle beside a queue that is
//! longer than the move.

use super::Scheduler;
use super::depend::UpstreamKind;
use super::group::{Group, Object};
use super::place::Work;
use super::rows::{NIL, Place};
use super::worker_book::Worker;
use crate::ids::{Micros, SECOND, TaskRef};
use crate::messages::Outbox;
use crate::resources::Resources;
use smallvec::SmallVec;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Objects of one task that are looked at; the rest is taken to lie as these do.
const INPUTS_MAX: usize = 256;

/// Where the inputs of a task are.
#[derive(Debug, Default)]
pub(super) struct Near {
    total: u64,
    by_worker: SmallVec<[(u32, u64); 4]>,
}

impl Near {
    fn add(&mut self, object: &Object) {
        self.total = self.total.saturating_add(object.size);
        for &holder in &object.holders {
            match self.by_worker.iter_mut().find(|(worker, _)| *worker == holder) {
                Some((_, bytes)) => *bytes = bytes.saturating_add(object.size),
                None => self.by_worker.push((holder, object.size)),
            }
        }
    }

    /// Bytes that would have to be moved to a worker.
    fn missing(&self, worker: u32) -> u64 {
        let there = self.by_worker.iter().find(|(holder, _)| *holder == worker).map_or(0, |(_, bytes)| *bytes);
        self.total - there.min(self.total)
    }
}

impl Scheduler {
    /// Whether where its inputs are matters for any element of the group.
    pub(super) fn reads_objects(&self, group: &Group) -> bool {
        self.objects > 0 && (group.reads || group.upstreams.iter().any(|upstream| upstream.data))
    }

    /// Where the objects are that a task reads.
    pub(super) fn near(&self, task: TaskRef) -> Near {
        let mut near = Near::default();
        let group = self.group_of(task.group);
        let mut room = INPUTS_MAX;
        let mut add = |up: &Group, index: u32| {
            if room > 0
                && let Some(object) = up.objects.get(&index)
            {
                near.add(object);
                room -= 1;
            }
        };
        for upstream in group.upstreams.iter().filter(|upstream| upstream.data) {
            let Some(up) = self.groups.get(&upstream.group).filter(|up| !up.objects.is_empty()) else { continue };
            match &upstream.kind {
                UpstreamKind::Whole => up.objects.keys().take(INPUTS_MAX).for_each(|index| add(up, *index)),
                // Its copies are shared by all elements: one of many need not care where the first was.
                UpstreamKind::One(_) if group.length.is_none_or(|length| length > 64) => {}
                _ => upstream.upstream_of(task.index).into_iter().take(INPUTS_MAX).for_each(|index| add(up, index)),
            }
        }
        let head = if group.cells.is_empty() { NIL } else { group.cells.ups(task.index) };
        for edge in self.edges.led_into(head).take(INPUTS_MAX).map(|at| self.edges.get(at)).filter(|edge| edge.data) {
            if let Some(up) = self.groups.get(&edge.up.group) {
                add(up, edge.up.index);
            }
        }
        near
    }

    /// Time to move what a worker has not of a task's inputs.
    pub(super) fn moving(&self, near: &Near, worker: u32) -> Micros {
        let micros = u128::from(near.missing(worker)) * u128::from(SECOND) / u128::from(self.config.bandwidth.max(1));
        u64::try_from(micros).unwrap_or(u64::MAX)
    }

    /// Time until a worker is done with so many attempts of a group, as far as is known. A second each until one has ended.
    pub(super) fn waiting(&self, worker: &Worker, group: &Group, shape: &Resources, attempts: u32) -> Micros {
        let wall = group.wall_mean.unwrap_or(SECOND);
        let slots = worker.slots(shape, self.config.prefetch_max.max(1)).max(1);
        wall.saturating_mul(u64::from(attempts)) / u64::from(slots)
    }

    /// Places tasks of the group one by one, each where it is expected to begin first, as long as some worker of those given has
    /// room or may be sent something ahead of it.
    pub(super) fn place_near(&mut self, work: Work<'_>, workers: [&[u32]; 2], mut left: u32, now: Micros, out: &mut Outbox) {
        let shape = work.shape;
        let load = |scheduler: &Scheduler, slot: u32| {
            let worker = scheduler.worker(slot);
            (worker.load(), worker.rows(), slot)
        };
        let mut free: BinaryHeap<_> = workers[0].iter().map(|slot| Reverse(load(self, *slot))).collect();
        let mut ahead: BinaryHeap<_> = workers[1]
            .iter()
            .filter(|slot| self.room_ahead(**slot, work) > 0)
            .map(|slot| Reverse((self.worker(*slot).prefetched.len, *slot)))
            .collect();
        while left > 0 {
            let Some(index) = self.first_ready(work.group, work.key) else { break };
            // Entries are as old as the last look at their worker.
            let least = loop {
                let Some(&Reverse(entry)) = free.peek() else { break None };
                if self.has_room(self.worker(entry.2), shape) && load(self, entry.2) == entry {
                    break Some(entry.2);
                }
                free.pop();
                if self.has_room(self.worker(entry.2), shape) {
                    free.push(Reverse(load(self, entry.2)));
                }
            };
            let shortest = loop {
                let Some(&Reverse((len, slot))) = ahead.peek() else { break None };
                if self.room_ahead(slot, work) > 0 && self.worker(slot).prefetched.len == len {
                    break Some(slot);
                }
                ahead.pop();
                if self.room_ahead(slot, work) > 0 {
                    ahead.push(Reverse((self.worker(slot).prefetched.len, slot)));
                }
            };
            let near = self.near(TaskRef { group: work.group, index });
            let Some(worker) = self.nearest(work, &near, least, shortest) else { break };
            let to = if self.has_room(self.worker(worker), shape) { Place::Admitted } else { Place::Prefetched };
            if self.place_block(work, worker, 1, to, now, out) == 0 {
                break;
            }
            left -= 1;
        }
    }

    /// The worker on which a task is expected to begin first: the least loaded one with room, the one with the shortest queue
    /// that may be sent more, or a holder of its inputs.
    fn nearest(&self, work: Work<'_>, near: &Near, least: Option<u32>, shortest: Option<u32>) -> Option<u32> {
        let Work { key, shape, .. } = work;
        let group = self.group_of(work.group);
        let cost = |slot: u32| {
            let worker = self.worker(slot);
            let waiting = match self.has_room(worker, shape) {
                true => 0,
                false => self.waiting(worker, group, shape, worker.rows()),
            };
            waiting.saturating_add(self.moving(near, slot))
        };
        let other = least.or(shortest)?;
        let holders = near.by_worker.iter().map(|(slot, _)| *slot).filter(|slot| {
            let worker = self.worker(*slot);
            let serves = worker.holds_one(key.component, shape);
            let room = match least {
                // With somebody free a holder may be waited for as long as the move would take.
                Some(_) => self.has_room(worker, shape) || self.may_wait(worker, group),
                None => self.room_ahead(*slot, work) > 0,
            };
            worker.takes_work() && serves && room
        });
        let best = holders.map(|slot| (cost(slot), slot)).min();
        match best {
            Some((holder_cost, holder)) if holder_cost <= cost(other) => Some(holder),
            _ => Some(other),
        }
    }

    /// Whether a worker without room may be sent a task of the group because its inputs are there.
    fn may_wait(&self, worker: &Worker, group: &Group) -> bool {
        let ahead = self.config.short_task > 0 && group.totals.is_empty();
        ahead && worker.prefetched.len < self.config.prefetch_max && worker.rows() < self.config.attempts_per_worker_max
    }
}
