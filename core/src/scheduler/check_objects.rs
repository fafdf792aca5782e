//! The invariant checker's part for appended edges and results: who waits for whom, who needs what, who holds it. References are
//! counted again from nothing but states and edges.

use super::Scheduler;
use super::check::ensure;
use super::depend::UpstreamKind;
use super::group::Group;
use super::rows::NIL;
use crate::ids::TaskRef;
use std::collections::{BTreeMap, BTreeSet};

impl Scheduler {
    /// Both lists of every edge agree, and every cell counts what its edges say.
    pub(super) fn check_edges(&self) -> Result<(), String> {
        let (mut total, mut listed) = (0, 0);
        // Of each task: how many read it, and how many might again.
        let mut references: BTreeMap<TaskRef, (u32, u32)> = BTreeMap::new();
        for (id, group) in &self.groups {
            ensure!(group.kept || group.cells.is_empty(), "group {} has edges of elements and is of no open run", id.0);
            for index in group.cells.indices() {
                let task = TaskRef { group: *id, index };
                let at = |what: &str| format!("element {index} of group {} '{}': {what}", id.0, group.name);
                let cell = group.cells.get(index);
                let over = group.all_over(index, index + 1);
                let mut left = 0;
                for edge in self.edges.led_into(cell.ups).map(|at| self.edges.get(at)) {
                    total += 1;
                    ensure!(edge.down == task, "{}", at("an edge of another element is on its list"));
                    left += u32::from(!edge.met);
                    let Some(up) = self.groups.get(&edge.up.group) else {
                        // It only followed a task of a group that is forgotten.
                        ensure!(edge.apart && edge.met && !edge.data && !over, "{}", at("an edge comes from nowhere"));
                        continue;
                    };
                    let known = self.edges.out_of(up.cells.downs(edge.up.index)).any(|at| {
                        let other = self.edges.get(at);
                        (other.up, other.down) == (edge.up, edge.down)
                    });
                    ensure!(known || edge.apart, "{}", at("its upstream does not know its edge"));
                    let settled = up.all_over(edge.up.index, edge.up.index + 1) && !up.objects.contains_key(&edge.up.index);
                    ensure!(settled || !edge.apart, "{}", at("what its edge is apart from may be waited for again"));
                    let counts = up.succeeded.contains(edge.up.index)
                        || !edge.data && up.restoring.contains(edge.up.index)
                        || group.always && up.in_trouble(edge.up.index);
                    ensure!(
                        counts == edge.met || edge.met && !edge.data,
                        "{}",
                        at("an edge is met and does not count, or counts and is not met")
                    );
                    ensure!(edge.data || !over, "{}", at("an element that is over still waits"));
                    let inherits = group.objects.contains_key(&index) && group.succeeded.contains(index);
                    ensure!(!over || inherits, "{}", at("an element that is over and will never read again has an edge"));
                    let (readers, heirs) = references.entry(edge.up).or_default();
                    *readers += u32::from(edge.data && !over);
                    *heirs += u32::from(edge.data && over);
                }
                ensure!(left == cell.left, "{} {left}, {}", at("it waits for other edges than it counts:"), cell.left);
                for edge in self.edges.out_of(cell.downs).map(|at| self.edges.get(at)) {
                    listed += 1;
                    ensure!(edge.up == task && !edge.apart, "{}", at("an edge out of another task is on its list"));
                }
            }
        }
        for (id, group) in &self.groups {
            for index in group.cells.indices() {
                let cell = group.cells.get(index);
                let (readers, heirs) = references.remove(&TaskRef { group: *id, index }).unwrap_or_default();
                ensure!(
                    (readers, heirs) == (cell.readers, cell.rare.heirs),
                    "element {index} of group {} '{}': references do not balance: {readers} read it and {heirs} might again, it counts {} and {}",
                    id.0,
                    group.name,
                    cell.readers,
                    cell.rare.heirs
                );
            }
        }
        ensure!(references.values().all(|(readers, heirs)| readers + heirs == 0), "tasks without a cell are read");
        ensure!(total == self.edges.len(), "{total} edges are on lists and {} are in use", self.edges.len());
        ensure!(listed <= total, "{listed} edges lead out of tasks and {total} into them");
        Ok(())
    }

    /// Every result is held while it is needed, made again when it is lost, and dropped and released when it is not needed.
    pub(super) fn check_objects(&self) -> Result<(), String> {
        let (mut read, mut inherited) = (BTreeSet::new(), BTreeSet::new());
        for group in self.groups.values().filter(|group| group.kept) {
            self.count_reads(group, &mut read, &mut inherited);
        }
        for (id, group) in &self.groups {
            let cancelling = self.runs.get(&group.run).is_some_and(|run| run.cancelling);
            let live = self.runs.get(&group.run).is_some_and(|run| run.end.is_none());
            let what = |index: u32, what: &str| Err(format!("element {index} of group {} '{}': {what}", id.0, group.name));
            if !group.kept || !live {
                let nothing = group.objects.is_empty() && group.restoring.is_empty() && group.cells.is_empty();
                ensure!(nothing, "group {} has results or edges that nobody follows", id.0);
                let length = group.length.unwrap_or(0);
                ensure!(
                    !group.kept || group.released.contains_range(0, length),
                    "group {} is of an ended run and not released",
                    id.0
                );
                continue;
            }
            for index in 0..group.length.unwrap_or(0) {
                let task = TaskRef { group: *id, index };
                let over = group.all_over(index, index + 1);
                let needed = !group.let_go.contains(index) || read.contains(&task);
                let retained = needed || inherited.contains(&task);
                let released = group.released.contains(index);
                if released && retained {
                    return what(index, "it is released and needed");
                }
                if released && !over {
                    return what(index, "it is released and not over");
                }
                if over && !retained && !released {
                    return what(index, "nobody needs it and it is not released");
                }
                let restoring = group.restoring.contains(index);
                if restoring && over {
                    return what(index, "its result is made again and it is over");
                }
                match group.objects.get(&index) {
                    None if restoring => return what(index, "a result is made again that never was"),
                    None => {}
                    Some(object) => {
                        if released || !(restoring || group.succeeded.contains(index)) {
                            return what(index, "it has a result and is released, or has not succeeded");
                        }
                        if restoring && !object.holders.is_empty() {
                            return what(index, "its result is made again though somebody holds it");
                        }
                        if !restoring && needed && object.holders.is_empty() && !cancelling {
                            return what(index, "its result is needed, lost, and not made again");
                        }
                        if !needed && !object.holders.is_empty() {
                            return what(index, "nobody needs its result and it is held");
                        }
                        let mut seen = BTreeSet::new();
                        for holder in &object.holders {
                            let worker = self.workers.get(*holder as usize).and_then(Option::as_ref);
                            if !worker.is_some_and(|worker| worker.held.contains(&task)) || !seen.insert(*holder) {
                                return what(index, "a holder does not live, does not know, or is named twice");
                            }
                        }
                        if usize::from(object.kept) > object.holders.len() {
                            return what(index, "more keep its result than hold it");
                        }
                        if object.keepers().iter().any(|holder| self.worker(*holder).leaves()) {
                            return what(index, "its result is counted on where it is about to go");
                        }
                    }
                }
            }
        }
        let objects: usize = self.groups.values().map(|group| group.objects.len()).sum();
        ensure!(objects == self.objects as usize, "groups have {objects} results and {} are counted", self.objects);
        for (slot, worker) in (0u32..).zip(&self.workers) {
            let Some(worker) = worker else { continue };
            let mut alone_bytes = 0;
            for task in worker.held.tasks() {
                let at = |what: &str| format!("worker '{}' holds {}[{}] and {what}", worker.name, task.group.0, task.index);
                let object = self.object(task).filter(|object| object.holders.contains(&slot));
                let Some(object) = object else { return Err(at("nobody knows")) };
                let alone = object.keepers().iter().all(|keeper| *keeper == slot);
                ensure!(alone == worker.held.alone().contains(&task), "{}", at(&format!("is alone with it: {alone}")));
                alone_bytes += if alone { object.weight() } else { 0 };
            }
            let says = worker.held.alone_bytes();
            ensure!(alone_bytes == says, "worker '{}' holds {alone_bytes} B alone and says {says}", worker.name);
        }
        self.check_moves()
    }

    /// What elements of a group read, and would have to read again.
    fn count_reads(&self, group: &Group, read: &mut BTreeSet<TaskRef>, inherited: &mut BTreeSet<TaskRef>) {
        for upstream in group.upstreams.iter().filter(|upstream| upstream.data) {
            let task = |index| TaskRef { group: upstream.group, index };
            let whole = matches!(upstream.kind, UpstreamKind::Whole);
            let length = self.groups.get(&upstream.group).and_then(|up| up.length).unwrap_or(0);
            let all: Vec<TaskRef> = if whole { (0..length).map(task).collect() } else { Vec::new() };
            if upstream.is_gate() {
                let of = if whole { all } else { upstream.upstream_of(0).into_iter().map(task).collect() };
                if !group.over {
                    read.extend(of);
                } else if !group.objects.is_empty() {
                    inherited.extend(of);
                }
                continue;
            }
            for index in 0..group.length.unwrap_or(0) {
                let of = upstream.upstream_of(index).into_iter().map(task);
                if !group.all_over(index, index + 1) {
                    read.extend(of);
                } else if group.objects.contains_key(&index) {
                    inherited.extend(of);
                }
            }
        }
        for index in group.cells.indices().into_iter().filter(|index| group.cells.ups(*index) != NIL) {
            let over = group.all_over(index, index + 1);
            let of = self.edges.led_into(group.cells.ups(index)).map(|at| self.edges.get(at));
            let of = of.filter(|edge| edge.data).map(|edge| edge.up);
            match (over, group.objects.contains_key(&index)) {
                (false, _) => read.extend(of),
                (true, true) => inherited.extend(of),
                (true, false) => {}
            }
        }
    }
}
