//! Who holds which result, and whose copy is counted on.
//!
//! A copy is *kept* by the worker that made it, and by one that was asked to keep it because another one is to leave. A copy that a
//! call has brought is *spare*: its worker may drop it without a word when memory is short. A worker that drains, or that the
//! platform takes away, keeps nothing any more. A worker holds a result *alone* while nobody else keeps a copy of it: with that
//! worker the result may be lost.

use super::Scheduler;
use super::group::Object;
use crate::ids::TaskRef;
use smallvec::SmallVec;
use std::collections::BTreeSet;

/// What a worker holds.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// What nobody else keeps.
    alone: BTreeSet<TaskRef>,
    shared: BTreeSet<TaskRef>,
    alone_bytes: u64,
}

/// What a new copy is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copy {
    /// It is there until it is dropped.
    Kept,
    /// It may go at any time.
    Spare,
}

impl Held {
    pub(super) fn contains(&self, task: &TaskRef) -> bool {
        self.alone.contains(task) || self.shared.contains(task)
    }

    /// How many results.
    pub(super) fn len(&self) -> usize {
        self.alone.len() + self.shared.len()
    }

    /// All of them, in order.
    pub(super) fn tasks(&self) -> Vec<TaskRef> {
        let mut tasks: Vec<TaskRef> = self.alone.iter().chain(&self.shared).copied().collect();
        tasks.sort_unstable();
        tasks
    }

    /// What nobody else keeps.
    pub(super) fn alone(&self) -> &BTreeSet<TaskRef> {
        &self.alone
    }

    /// Bytes of what nobody else keeps; not 0 while there is any.
    pub(super) fn alone_bytes(&self) -> u64 {
        self.alone_bytes
    }

    fn put_alone(&mut self, task: TaskRef, weight: u64) {
        self.shared.remove(&task);
        if self.alone.insert(task) {
            self.alone_bytes = self.alone_bytes.saturating_add(weight);
        }
    }

    fn put_shared(&mut self, task: TaskRef, weight: u64) {
        self.remove(&task, weight);
        self.shared.insert(task);
    }

    fn remove(&mut self, task: &TaskRef, weight: u64) {
        if self.alone.remove(task) {
            self.alone_bytes = self.alone_bytes.saturating_sub(weight);
        }
        self.shared.remove(task);
    }
}

impl Object {
    /// What it counts, bytes: also an empty one is something.
    pub(super) fn weight(&self) -> u64 {
        self.size.max(1)
    }

    /// Those of its holders whose copies are counted on.
    pub(super) fn keepers(&self) -> &[u32] {
        &self.holders[..usize::from(self.kept)]
    }
}

impl Scheduler {
    pub(super) fn object(&self, task: TaskRef) -> Option<&Object> {
        self.groups.get(&task.group)?.objects.get(&task.index)
    }

    pub(super) fn object_mut(&mut self, task: TaskRef) -> Option<&mut Object> {
        self.groups.get_mut(&task.group)?.objects.get_mut(&task.index)
    }

    /// A live worker has a copy of a result, or keeps the one that it has.
    pub(super) fn add_holder(&mut self, task: TaskRef, worker: u32, copy: Copy) {
        let kept = copy == Copy::Kept && !self.worker(worker).leaves();
        let Some(object) = self.object_mut(task) else { return };
        match object.holders.iter().position(|holder| *holder == worker) {
            Some(at) if kept && at >= usize::from(object.kept) => {
                object.holders.remove(at);
            }
            Some(_) => return,
            None => {}
        }
        if kept {
            object.holders.insert(usize::from(object.kept), worker);
            object.kept += 1;
            return self.sort_out(task);
        }
        object.holders.push(worker);
        let (alone, weight) = (object.kept == 0, object.weight());
        let held = &mut self.worker_mut(worker).held;
        if alone { held.put_alone(task, weight) } else { held.put_shared(task, weight) }
    }

    /// One holder less; true when that was the last. Its worker may be gone already.
    pub(super) fn remove_holder(&mut self, task: TaskRef, worker: u32) -> bool {
        let Some(object) = self.object_mut(task) else { return false };
        let Some(at) = object.holders.iter().position(|holder| *holder == worker) else { return false };
        object.holders.remove(at);
        let kept = at < usize::from(object.kept);
        object.kept -= u16::from(kept);
        let (weight, last) = (object.weight(), object.holders.is_empty());
        if let Some(worker) = self.workers[worker as usize].as_mut() {
            worker.held.remove(&task, weight);
        }
        if kept {
            self.sort_out(task);
        }
        if last || self.moves_from(task) == Some(worker) {
            self.move_over(task);
        }
        last
    }

    /// Nobody holds a result any more. Those who did, oldest copy first.
    pub(super) fn remove_holders(&mut self, task: TaskRef) -> SmallVec<[u32; 2]> {
        self.move_over(task);
        let Some(object) = self.object_mut(task) else { return SmallVec::new() };
        let weight = object.weight();
        object.kept = 0;
        let holders = std::mem::take(&mut object.holders);
        for holder in &holders {
            self.worker_mut(*holder).held.remove(&task, weight);
        }
        holders
    }

    /// From here on a worker's copies are not counted on: it is about to leave.
    pub(super) fn keeps_no_more(&mut self, worker: u32) {
        for task in self.worker(worker).held.tasks() {
            let Some(object) = self.object_mut(task) else { continue };
            if let Some(at) = object.keepers().iter().position(|holder| *holder == worker) {
                object.holders.remove(at);
                object.kept -= 1;
                object.holders.push(worker);
                self.sort_out(task);
            }
        }
    }

    /// Tells each holder of a result whether it is alone with it.
    fn sort_out(&mut self, task: TaskRef) {
        let Scheduler { groups, workers, .. } = self;
        let Some(object) = groups.get(&task.group).and_then(|group| group.objects.get(&task.index)) else { return };
        for (at, holder) in object.holders.iter().enumerate() {
            let Some(worker) = workers[*holder as usize].as_mut() else { continue };
            let others = object.kept - u16::from(at < usize::from(object.kept));
            match others {
                0 => worker.held.put_alone(task, object.weight()),
                _ => worker.held.put_shared(task, object.weight()),
            }
        }
    }
}
