//! A worker's book: what it has, what is reserved, and what it was sent.
//!
//! A row *holds* resources (admitted or executing) or was sent ahead of room (prefetched). What is held never exceeds the
//! capacity. A worker starts what it was sent in order, each as soon as it fits; the book follows the same rule, so that both
//! agree without asking.

use super::holders::Held;
use super::moves::Moves;
use super::rows::{List, NIL, Place, Rows};
use crate::ids::{Handle, Micros, SessionId, ShapeId};
use crate::messages::WorkerState;
use crate::resources::Resources;
use smallvec::SmallVec;

/// A live session of a worker.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) session: SessionId,
    pub(super) name: String,
    pub(super) pool: String,
    /// Interned components, sorted.
    pub(super) components: Vec<u32>,
    /// It serves every component.
    pub(super) serves_all: bool,
    pub(super) capacity: Resources,
    pub(super) used: Resources,
    pub(super) state: WorkerState,
    /// A drain was asked for.
    pub(super) draining: bool,
    /// It has no room for results and starts nothing.
    pub(super) full: bool,
    pub(super) control: bool,
    pub(super) data: bool,
    /// Since when a connection is missing that was there.
    pub(super) reset_at: Option<Micros>,
    pub(super) last_frame: Micros,
    /// Its entry among the deadlines.
    pub(super) deadline: Micros,
    /// From dispatch to start, at its best, in micros.
    pub(super) round_trip: Option<Micros>,
    pub(super) admitted: List,
    pub(super) prefetched: List,
    pub(super) executing: List,
    /// Results that it holds.
    pub(super) held: Held,
    /// Results that it is to keep because others leave, and those that others are to keep because it leaves.
    pub(super) moves: Moves,
    pub(super) leaving: List,
    /// Executing rows that hold nothing: see [`Worker::make_room`].
    pub(super) unheld: u32,
    /// How many prefetched rows there are of each shape.
    pub(super) prefetched_shapes: SmallVec<[(ShapeId, u32); 2]>,
    /// Kept free for a task that is to run alone.
    pub(super) reserved: bool,
    /// Such a task is on it.
    pub(super) alone: bool,
    /// Its pool scales: it is filled before an emptier one gets work, so that the emptier one can be let go.
    pub(super) filled: bool,
    /// Attempts it was sent.
    pub(super) dispatched: u64,
    /// What executing attempts take of its memory, bytes, as it said last.
    pub(super) shares: Vec<(Handle, u64)>,
    /// The platform takes it away: the first reason it gave.
    pub(super) taken: Option<String>,
}

impl Worker {
    pub(super) fn list_mut(&mut self, place: Place) -> &mut List {
        match place {
            Place::Admitted => &mut self.admitted,
            Place::Prefetched => &mut self.prefetched,
            Place::Executing => &mut self.executing,
            Place::Leaving | Place::Free => &mut self.leaving,
        }
    }

    /// Rows on it.
    pub(super) fn rows(&self) -> u32 {
        self.admitted.len + self.prefetched.len + self.executing.len + self.leaving.len
    }

    pub(super) fn serves(&self, component: u32) -> bool {
        self.serves_all || self.components.binary_search(&component).is_ok()
    }

    /// Whether ordinary work may be placed on it.
    pub(super) fn takes_work(&self) -> bool {
        self.state == WorkerState::Active && !self.full && !self.reserved && !self.alone && self.unheld == 0
    }

    /// Share of its cpus in use, in millionths; a worker without cpus counts its rows.
    pub(super) fn load(&self) -> u64 {
        match self.capacity.milli_cpus {
            0 => u64::from(self.rows()),
            capacity => (u128::from(self.used.milli_cpus) * 1_000_000 / u128::from(capacity)) as u64,
        }
    }

    /// Its place in the order in which workers get work, smaller first: the least loaded, in a pool that scales the most loaded.
    pub(super) fn turn(&self) -> (u64, u32) {
        match self.filled {
            false => (self.load(), self.rows()),
            true => (u64::MAX - self.load(), u32::MAX - self.rows()),
        }
    }

    /// Whether it serves a component and could hold a task of this shape if it were empty.
    pub(super) fn holds_one(&self, component: u32, shape: &Resources) -> bool {
        self.serves(component) && self.capacity.fits(&Resources::default(), shape)
    }

    /// How many tasks of this shape it could hold if it were empty, at most `most`.
    pub(super) fn slots(&self, shape: &Resources, most: u32) -> u32 {
        room(&self.capacity, &Resources::default(), shape, most)
    }

    /// How many tasks of this shape fit beside what is used, at most `most`.
    pub(super) fn room_for(&self, shape: &Resources, most: u32) -> u32 {
        room(&self.capacity, &self.used, shape, most)
    }

    /// Moves a row to another list.
    pub(super) fn move_row(&mut self, rows: &mut Rows, slot: u32, to: Place) {
        self.unlink(rows, slot);
        rows.link(self.list_mut(to), slot, to);
        if to == Place::Prefetched {
            self.count_shape(rows.get(slot).shape, 1);
        }
    }

    /// Puts a new row on a list.
    pub(super) fn link(&mut self, rows: &mut Rows, slot: u32, to: Place) {
        rows.link(self.list_mut(to), slot, to);
        self.dispatched += 1;
        if to == Place::Prefetched {
            self.count_shape(rows.get(slot).shape, 1);
        }
    }

    /// Takes a row off its list.
    pub(super) fn unlink(&mut self, rows: &mut Rows, slot: u32) {
        let place = rows.get(slot).place;
        if place == Place::Prefetched {
            self.count_shape(rows.get(slot).shape, -1);
        }
        rows.unlink(self.list_mut(place), slot);
    }

    fn count_shape(&mut self, shape: ShapeId, by: i32) {
        match self.prefetched_shapes.iter_mut().find(|(known, _)| *known == shape) {
            Some((_, count)) => *count = count.saturating_add_signed(by),
            None => self.prefetched_shapes.push((shape, by.max(0) as u32)),
        }
        self.prefetched_shapes.retain(|(_, count)| *count > 0);
    }

    /// Reserves a row's resources; the caller has made sure that they fit.
    pub(super) fn hold(&mut self, rows: &mut Rows, slot: u32, shape: &Resources) {
        let row = rows.get_mut(slot);
        debug_assert!(!row.holds);
        row.holds = true;
        self.used.add(shape);
    }

    /// Gives a row's resources back, if it holds any.
    pub(super) fn release(&mut self, rows: &mut Rows, slot: u32, shape: &Resources) {
        let row = rows.get_mut(slot);
        if std::mem::take(&mut row.holds) {
            self.used.remove(shape);
        } else if row.place == Place::Executing {
            self.unheld -= 1;
        }
    }

    /// Reserves room that has become free: first for what executes without any, then for prefetched rows in order of dispatch,
    /// as the worker starts them.
    pub(super) fn promote(&mut self, rows: &mut Rows, shape_of: impl Fn(ShapeId) -> Resources) {
        if self.unheld > 0 {
            let without: Vec<u32> = rows.on(self.executing).filter(|slot| !rows.get(*slot).holds).collect();
            for slot in without {
                let request = shape_of(rows.get(slot).shape);
                if self.capacity.fits(&self.used, &request) {
                    self.hold(rows, slot, &request);
                    self.unheld -= 1;
                }
            }
        }
        if self.unheld > 0 {
            return;
        }
        let mut full: SmallVec<[ShapeId; 4]> = SmallVec::new();
        let mut known: Option<(ShapeId, Resources)> = None;
        let mut at = self.prefetched.head;
        while at != NIL && full.len() < self.prefetched_shapes.len() {
            let next = rows.next(at).unwrap_or(NIL);
            let shape = rows.get(at).shape;
            if !full.contains(&shape) {
                if known.as_ref().is_none_or(|(id, _)| *id != shape) {
                    known = Some((shape, shape_of(shape)));
                }
                if let Some((_, request)) = &known {
                    if self.capacity.fits(&self.used, request) {
                        self.hold(rows, at, request);
                        self.move_row(rows, at, Place::Admitted);
                    } else {
                        full.push(shape);
                    }
                }
            }
            at = next;
        }
    }

    /// Makes room for a row that the worker has started ahead of the book: what was admitted and has not started gives way,
    /// newest first. False when there is no room even then: the worker has started it in the room of an attempt whose end it
    /// has not reported yet (its process is gone, its outputs are being published). Such a row executes without holding
    /// anything, and is the first to get what becomes free; until then the worker gets no new work.
    pub(super) fn make_room(
        &mut self,
        rows: &mut Rows,
        for_slot: u32,
        request: &Resources,
        shape_of: impl Fn(ShapeId) -> Resources,
    ) -> bool {
        while !self.capacity.fits(&self.used, request) {
            let newest_of = |list: List| rows.newest(list).find(|slot| rows.get(*slot).holds && *slot != for_slot);
            let (admitted, leaving) = (newest_of(self.admitted), newest_of(self.leaving));
            let Some(slot) = admitted.or(leaving) else { return false };
            let shape = shape_of(rows.get(slot).shape);
            self.release(rows, slot, &shape);
            if rows.get(slot).place == Place::Admitted {
                self.move_row(rows, slot, Place::Prefetched);
            }
        }
        true
    }
}

/// How many requests fit into what is left of `capacity` after `used`, at most `most`.
fn room(capacity: &Resources, used: &Resources, request: &Resources, most: u32) -> u32 {
    let along = |capacity: u64, used: u64, request: u64| match request {
        0 => u64::MAX,
        _ if capacity == u64::MAX => u64::MAX,
        _ => capacity.saturating_sub(used) / request,
    };
    let mut room = along(capacity.milli_cpus, used.milli_cpus, request.milli_cpus)
        .min(along(capacity.memory_bytes, used.memory_bytes, request.memory_bytes))
        .min(along(capacity.gpus, used.gpus, request.gpus));
    for &(name, amount) in &request.custom {
        room = room.min(along(capacity.custom(name), used.custom(name), amount));
    }
    room.min(u64::from(most)) as u32
}
