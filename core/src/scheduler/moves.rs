//! Results that a worker holds alone, moved before it leaves.
//!
//! Whoever scales a pool names workers that are to be emptied, again and again while it wants that. Each result that such a worker
//! holds alone is fetched by another one, which says when it keeps it, or that it could not get it. Only so much is on its way at
//! once, from one worker and to one worker; what follows is begun as it arrives, and with the next time that the worker is named.
//!
//! Nothing is decided for good: a worker that is named and becomes busy, or is named no more, stays as it was; a worker that was
//! to keep something and is lost has kept nothing; whoever could not get something is left alone for a while and another is asked.
//! Outputs of commands stay where they are ([`Stored::Files`](crate::messages::Stored::Files)), and their worker with them, until those
//! that read them are over or the output store has them.

use super::Scheduler;
use super::check::ensure;
use super::counts::Happening;
use super::group::Object;
use super::holders::Copy;
use super::mutation::Mutation;
use super::rows::NIL;
use super::worker_book::Worker;
use crate::ids::{Micros, SECOND, SessionId, TaskRef};
use crate::messages::{Outbox, Output, WorkerState};
use std::collections::BTreeMap;

/// Most results on their way from one worker, and to one.
pub(super) const MOVES_MAX: usize = 64;
/// Most bytes of them. A larger one travels alone.
pub(super) const MOVE_BYTES_MAX: u64 = 256 << 20;
/// How long a worker that was named gets nothing from others and goes on giving by itself.
const NAMED_FOR: Micros = 2 * SECOND;
/// How long nothing is asked of a worker that could not get something.
const AGAIN_AFTER: Micros = 5 * SECOND;
/// Workers among which the results of one worker are divided at a time.
const TARGETS_MAX: usize = 16;

/// What is on its way to and from a worker.
#[derive(Debug, Default)]
pub(super) struct Moves {
    coming: BTreeMap<TaskRef, Coming>,
    coming_bytes: u64,
    going: u32,
    going_bytes: u64,
    /// It is to be emptied, if it is named again before then.
    named_until: Micros,
    /// Nothing is asked of it before then.
    left_alone_until: Micros,
}

/// A result on its way.
#[derive(Clone, Copy, Debug)]
struct Coming {
    /// Slot of the worker that is to leave.
    from: u32,
    bytes: u64,
    /// Without an answer until then it is not waited for.
    until: Micros,
}

impl Moves {
    fn takes(&self, bytes: u64) -> bool {
        has_room(self.coming.len(), self.coming_bytes, bytes)
    }

    fn gives(&self, bytes: u64) -> bool {
        has_room(self.going as usize, self.going_bytes, bytes)
    }
}

fn has_room(objects: usize, sum: u64, bytes: u64) -> bool {
    objects == 0 || objects < MOVES_MAX && sum.saturating_add(bytes) <= MOVE_BYTES_MAX
}

impl Worker {
    /// It is on its way out.
    pub(super) fn leaves(&self) -> bool {
        self.draining || self.taken.is_some()
    }

    /// It may be asked to keep what others have, unless it is to be emptied itself.
    fn may_keep(&self) -> bool {
        self.state == WorkerState::Active && !self.leaves() && !self.full
    }
}

impl Scheduler {
    /// These workers are to be emptied, in the order in which they are to leave. When every worker there is is among them, the last
    /// one stays and takes what the others have.
    pub(super) fn move_objects(&mut self, now: Micros, sessions: &[SessionId], out: &mut Outbox) {
        let named: Vec<u32> = sessions.iter().filter_map(|session| self.sessions.get(session).copied()).collect();
        for slot in &named {
            self.worker_mut(*slot).moves.named_until = now.saturating_add(NAMED_FOR);
        }
        let somebody = self.workers.iter().flatten().any(|worker| worker.may_keep() && worker.moves.named_until <= now);
        if !somebody && let Some(last) = named.iter().rfind(|slot| self.worker(**slot).may_keep()) {
            self.worker_mut(*last).moves.named_until = now;
        }
        for slot in named {
            self.move_from(now, slot, out);
        }
    }

    /// Has others fetch what a worker that is to be emptied holds alone, as much as may be on its way.
    fn move_from(&mut self, now: Micros, from: u32, out: &mut Outbox) {
        if self.worker(from).moves.named_until <= now {
            return;
        }
        self.give_up_late(now, from);
        let worker = self.worker(from);
        if worker.held.alone().len() <= worker.moves.going as usize {
            return;
        }
        let targets = self.targets(now, from);
        if targets.is_empty() {
            self.counts.note(Happening::MoveNowhere);
            return;
        }
        let worker = self.worker(from);
        let fixed = |task: &TaskRef| self.group_of(task.group).as_files && !self.mutations.has(Mutation::MoveFiles);
        let stays = |task: &TaskRef| !fixed(task) && self.object(*task).is_some_and(|object| object.coming_to == NIL);
        let stay: Vec<TaskRef> = worker.held.alone().iter().copied().filter(stays).take(MOVES_MAX).collect();
        for task in stay {
            let Some(bytes) = self.object(task).map(Object::weight) else { continue };
            if !self.worker(from).moves.gives(bytes) {
                return;
            }
            if let Some(to) = self.target(task, bytes, from, &targets) {
                self.begin_move(now, task, bytes, from, to, out);
            }
        }
    }

    /// Who may be asked: of the same pool first, then who has work and so will not be let go soon, then who has least to do with it.
    fn targets(&self, now: Micros, from: u32) -> Vec<u32> {
        let pool = &self.worker(from).pool;
        let blind = self.mutations.has(Mutation::MoveToLeaver);
        let may = |worker: &Worker| {
            (worker.may_keep() || blind) && worker.moves.named_until <= now && worker.moves.left_alone_until <= now
        };
        let live = (0u32..).zip(&self.workers).filter_map(|(slot, worker)| Some((slot, worker.as_ref()?)));
        let mut found: Vec<_> = live
            .filter(|(slot, worker)| *slot != from && may(worker))
            .map(|(slot, worker)| (worker.pool != *pool, worker.rows() == 0, worker.moves.coming_bytes, worker.held.len(), slot))
            .collect();
        if found.len() > TARGETS_MAX {
            found.select_nth_unstable(TARGETS_MAX);
            found.truncate(TARGETS_MAX);
        }
        found.sort_unstable();
        found.into_iter().map(|(.., slot)| slot).collect()
    }

    /// Who is to keep a result: one that has a copy already, else the first that has least on its way.
    fn target(&self, task: TaskRef, bytes: u64, from: u32, targets: &[u32]) -> Option<u32> {
        let holders = self.object(task).map(|object| &object.holders[..]).unwrap_or_default();
        let pool = &self.worker(from).pool;
        let free = targets.iter().enumerate().filter(|(_, slot)| self.worker(**slot).moves.takes(bytes));
        let best = free.min_by_key(|(at, slot)| {
            let worker = self.worker(**slot);
            (!holders.contains(slot), worker.pool != *pool, worker.rows() == 0, worker.moves.coming_bytes, *at)
        });
        best.map(|(_, slot)| *slot)
    }

    fn begin_move(&mut self, now: Micros, task: TaskRef, bytes: u64, from: u32, to: u32, out: &mut Outbox) {
        let Some(attempt) = self.committed_attempt(task) else { return };
        let Some(object) = self.object_mut(task) else { return };
        object.coming_to = to;
        let until = now.saturating_add(self.config.move_within);
        let target = &mut self.worker_mut(to).moves;
        target.coming.insert(task, Coming { from, bytes, until });
        target.coming_bytes = target.coming_bytes.saturating_add(bytes);
        let source = &mut self.worker_mut(from).moves;
        source.going += 1;
        source.going_bytes = source.going_bytes.saturating_add(bytes);
        self.counts.note(Happening::MoveBegun);
        out.push(Output::Fetch { session: self.worker(to).session, task, attempt });
    }

    /// Which worker a result is on its way from because it is to leave.
    pub(super) fn moves_from(&self, task: TaskRef) -> Option<u32> {
        let to = self.object(task)?.coming_to;
        Some(self.workers.get(to as usize)?.as_ref()?.moves.coming.get(&task)?.from)
    }

    /// Nothing is waited for any more where a result was on its way.
    pub(super) fn move_over(&mut self, task: TaskRef) -> Option<u32> {
        if self.mutations.has(Mutation::KeepMove) {
            return None;
        }
        let object = self.object_mut(task)?;
        let to = std::mem::replace(&mut object.coming_to, NIL);
        let moves = &mut self.workers.get_mut(to as usize)?.as_mut()?.moves;
        let coming = moves.coming.remove(&task)?;
        moves.coming_bytes = moves.coming_bytes.saturating_sub(coming.bytes);
        self.no_more_from(coming);
        Some(coming.from)
    }

    fn no_more_from(&mut self, coming: Coming) {
        if let Some(source) = self.workers[coming.from as usize].as_mut() {
            source.moves.going -= 1;
            source.moves.going_bytes = source.moves.going_bytes.saturating_sub(coming.bytes);
        }
        self.counts.note(Happening::MoveOver);
    }

    /// A worker is gone, and what was on its way to it is where it was.
    pub(super) fn moves_lost(&mut self, moves: Moves) {
        for (task, coming) in moves.coming {
            if let Some(object) = self.object_mut(task) {
                object.coming_to = NIL;
            }
            self.no_more_from(coming);
        }
    }

    /// What should have been answered long ago is asked of somebody else.
    fn give_up_late(&mut self, now: Micros, from: u32) {
        let late = |task: &&TaskRef| {
            let to = self.object(**task).map_or(NIL, |object| object.coming_to);
            let target = self.workers.get(to as usize).and_then(Option::as_ref);
            target.is_some_and(|target| target.moves.coming.get(*task).is_some_and(|coming| coming.until <= now))
        };
        let late: Vec<TaskRef> = self.worker(from).held.alone().iter().take(2 * MOVES_MAX).filter(late).copied().collect();
        for task in late {
            let to = self.object(task).map_or(NIL, |object| object.coming_to);
            self.move_over(task);
            self.worker_mut(to).moves.left_alone_until = now.saturating_add(AGAIN_AFTER);
            self.counts.note(Happening::MoveLate);
        }
    }

    /// A worker keeps what it was asked to fetch.
    pub(super) fn object_kept(&mut self, now: Micros, worker: u32, task: TaskRef, out: &mut Outbox) {
        let from = match self.object(task) {
            Some(object) if object.coming_to == worker => self.move_over(task),
            _ => None,
        };
        self.object_copied(worker, task, Copy::Kept, out);
        // What it makes room for follows at once, in steps that are worth a look at all workers.
        if let Some(from) = from
            && let Some(source) = &self.workers[from as usize]
            && source.moves.going as usize <= MOVES_MAX / 2
        {
            self.move_from(now, from, out);
        }
    }

    /// A worker could not get what it was asked to fetch: nothing is asked of it for a while.
    pub(super) fn object_not_kept(&mut self, now: Micros, worker: u32, task: TaskRef) {
        if self.object(task).is_some_and(|object| object.coming_to == worker) {
            self.move_over(task);
            self.worker_mut(worker).moves.left_alone_until = now.saturating_add(AGAIN_AFTER);
            self.counts.note(Happening::MoveFailed);
        }
    }

    /// Whether a worker holds anything that nobody else keeps: it would be lost with it.
    pub fn holds_alone(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(|slot| !self.worker(*slot).held.alone().is_empty())
    }

    /// The name of the worker to which a result is on its way.
    pub(super) fn moves_to(&self, task: TaskRef) -> Option<&str> {
        let to = self.object(task)?.coming_to;
        Some(&self.workers.get(to as usize)?.as_ref()?.name)
    }

    /// The invariant checker's part: what is on its way is there, comes from a worker that holds it, goes to one that lives and does
    /// not keep it yet, and is counted at both.
    pub(super) fn check_moves(&self) -> Result<(), String> {
        let mut going: BTreeMap<u32, (u32, u64)> = BTreeMap::new();
        let mut coming = 0;
        for (slot, worker) in (0u32..).zip(&self.workers) {
            let Some(worker) = worker else { continue };
            let moves = &worker.moves;
            for (task, one) in &moves.coming {
                let at =
                    |what: &str| format!("{}[{}] is on its way to worker '{}' and {what}", task.group.0, task.index, worker.name);
                let Some(object) = self.object(*task) else { return Err(at("does not exist")) };
                ensure!(object.coming_to == slot, "{}", at("does not know it"));
                ensure!(object.holders.contains(&one.from), "{}", at("is not where it is to come from"));
                ensure!(!object.keepers().contains(&slot), "{}", at("is kept there"));
                let (objects, bytes) = going.entry(one.from).or_default();
                (*objects, *bytes) = (*objects + 1, *bytes + one.bytes);
                coming += 1;
            }
            let bytes: u64 = moves.coming.values().map(|one| one.bytes).sum();
            ensure!(
                bytes == moves.coming_bytes,
                "{bytes} B are on their way to '{}', which counts {}",
                worker.name,
                moves.coming_bytes
            );
            ensure!(moves.coming.len() <= MOVES_MAX, "{} results are on their way to '{}'", moves.coming.len(), worker.name);
            ensure!(moves.coming.len() <= 1 || bytes <= MOVE_BYTES_MAX, "{bytes} B are on their way to '{}'", worker.name);
        }
        for (slot, worker) in (0u32..).zip(&self.workers) {
            let Some(worker) = worker else { continue };
            let found = going.remove(&slot).unwrap_or_default();
            let says = (worker.moves.going, worker.moves.going_bytes);
            ensure!(found == says, "{found:?} are on their way from '{}', which counts {says:?}", worker.name);
            ensure!(found.0 as usize <= MOVES_MAX, "{} results are on their way from '{}'", found.0, worker.name);
            ensure!(found.0 <= 1 || found.1 <= MOVE_BYTES_MAX, "{} B are on their way from '{}'", found.1, worker.name);
        }
        ensure!(going.is_empty(), "results are on their way from workers that do not live");
        let objects = self.groups.values().flat_map(|group| group.objects.values());
        let known = objects.filter(|object| object.coming_to != NIL).count();
        ensure!(known == coming, "{known} results are on their way somewhere and workers count {coming}");
        Ok(())
    }
}
