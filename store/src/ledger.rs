//! The accounts of a store: what lies where, who uses it, and what has to leave memory next. Pure: it moves no bytes and reads no
//! clock, and is checked against a model in its tests.
//!
//! ```text
//!            insert                begin_spill            spilled
//!   (gone) ─────────► Memory ──────────────► Spilling ──────────► Disk
//!                        ▲ ▲                    │                  │ ▲
//!                        │ └────────────────────┘                  │ │ load_failed
//!                        │     spill_failed, or used meanwhile     ▼ │
//!                        └─────────────────────────────────────── Loading
//!                                       loaded
//! ```
//!
//! An external entry (a file that belongs to somebody else) stays where it is. An entry that is removed while it is in use is
//! forgotten at once and accounted until its last user is gone.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use crate::Key;

/// Names an entry for as long as anything is known of it. Never used twice.
pub(crate) type Slot = u64;

/// Where an entry's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Memory,
    Spilling,
    Disk,
    Loading,
    External,
}

/// What a store may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Above so many bytes in memory objects leave it...
    pub high: u64,
    /// ...until so many are left.
    pub low: u64,
    pub disk: u64,
    pub objects: usize,
    /// Entries in memory that hold an open file.
    pub handles: usize,
}

/// What an entry costs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Bytes in memory while it is there.
    pub memory: u64,
    /// Bytes on disk while it is there.
    pub disk: u64,
    /// Holds an open file while in memory.
    pub handle: bool,
}

/// What becomes of an entry that has to leave memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The only copy: spilled.
    Origin,
    /// Others have it: dropped.
    Replica,
    /// Not in memory at all.
    External,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub memory: u64,
    pub disk: u64,
    /// Of `memory`: in use.
    pub pinned: u64,
    /// Of `memory`: being written to disk.
    pub spilling: u64,
    pub external: u64,
    pub objects: usize,
    pub handles: usize,
}

pub(crate) struct Entry<P> {
    /// `None` once it was removed.
    key: Option<Key>,
    cost: Cost,
    kind: Kind,
    pub place: Place,
    pins: u32,
    tick: u64,
    pub payload: P,
}

impl<P> Entry<P> {
    pub(crate) fn key(&self) -> Option<Key> {
        self.key
    }
}

/// What has to leave memory next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Victim<P> {
    /// Write it to disk and say `spilled` or `spill_failed`.
    Spill(Slot),
    /// Already removed: others have it.
    Dropped(P),
    /// Something should leave and nothing can: the disk's limit is reached.
    DiskLimit,
    /// Nothing has to, or nothing can because all is in use.
    None,
}

/// How a spill ended for the accounts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Spilled<P> {
    /// It is on disk now; this was in memory.
    Moved(P),
    /// It was used or removed meanwhile: what was written is of no use. With it what was kept, if it was removed.
    NotNeeded(Option<P>, P),
}

pub(crate) struct Ledger<P> {
    entries: FxHashMap<Slot, Entry<P>>,
    by_key: FxHashMap<Key, Slot>,
    /// What can leave memory, by last use: the only copies and the others.
    origins: BTreeMap<u64, Slot>,
    replicas: BTreeMap<u64, Slot>,
    next_slot: Slot,
    next_tick: u64,
    /// Between passing the high mark and reaching the low one.
    draining: bool,
    limits: Limits,
    totals: Totals,
}

/// How many of the least recently used are tried for one that still fits on the disk.
const CANDIDATES_MAX: usize = 64;

impl<P> Ledger<P> {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            entries: FxHashMap::default(),
            by_key: FxHashMap::default(),
            origins: BTreeMap::new(),
            replicas: BTreeMap::new(),
            next_slot: 1,
            next_tick: 1,
            draining: false,
            limits,
            totals: Totals::default(),
        }
    }

    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    pub(crate) fn find(&self, key: Key) -> Option<Slot> {
        self.by_key.get(&key).copied()
    }

    pub(crate) fn get(&self, slot: Slot) -> Option<&Entry<P>> {
        self.entries.get(&slot)
    }

    pub(crate) fn has_room(&self) -> bool {
        self.entries.len() < self.limits.objects
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.by_key.keys().copied()
    }

    /// Enters what was not there, in use once. The caller has asked `find` and `has_room`.
    pub(crate) fn insert(&mut self, key: Key, cost: Cost, kind: Kind, payload: P) -> Slot {
        let slot = self.next_slot;
        self.next_slot += 1;
        let place = if kind == Kind::External { Place::External } else { Place::Memory };
        let cost = if kind == Kind::External { Cost { memory: 0, ..cost } } else { cost };
        self.entries.insert(slot, Entry { key: Some(key), cost, kind, place, pins: 1, tick: 0, payload });
        let before = self.by_key.insert(key, slot);
        debug_assert!(before.is_none(), "the caller has asked");
        self.totals.objects += 1;
        if kind == Kind::External {
            self.totals.external += cost.disk;
        } else {
            self.totals.memory += cost.memory;
            self.totals.pinned += cost.memory;
            self.totals.handles += usize::from(cost.handle);
        }
        slot
    }

    /// One more user.
    pub(crate) fn pin(&mut self, slot: Slot) {
        let Some(entry) = self.entries.get_mut(&slot) else { return };
        entry.pins += 1;
        if entry.pins == 1 {
            if in_memory(entry.place) {
                self.totals.pinned += entry.cost.memory;
            }
            let tick = entry.tick;
            self.origins.remove(&tick);
            self.replicas.remove(&tick);
        }
    }

    /// Others may not have it any more: what would have been dropped is spilled from here on.
    pub(crate) fn keep(&mut self, slot: Slot) {
        let Some(entry) = self.entries.get_mut(&slot) else { return };
        if entry.kind == Kind::Replica {
            entry.kind = Kind::Origin;
            if self.replicas.remove(&entry.tick).is_some() {
                self.origins.insert(entry.tick, slot);
            }
        }
    }

    /// One user less. Returns what was kept for it when it was removed meanwhile.
    pub(crate) fn unpin(&mut self, slot: Slot) -> Option<P> {
        let entry = self.entries.get_mut(&slot)?;
        debug_assert!(entry.pins > 0, "every unpin follows a pin");
        entry.pins -= 1;
        if entry.pins > 0 {
            return None;
        }
        if in_memory(entry.place) {
            self.totals.pinned -= entry.cost.memory;
        }
        if entry.key.is_none() {
            // One that is on its way between memory and disk is taken out when it arrives.
            return if matches!(entry.place, Place::Spilling | Place::Loading) { None } else { self.take_out(slot) };
        }
        self.used(slot);
        None
    }

    /// Forgets the entry. Returns what was kept for it unless it is in use, in which case `unpin`, `spilled` or `loaded` returns it.
    pub(crate) fn remove(&mut self, key: Key) -> Option<P> {
        let slot = self.by_key.remove(&key)?;
        let entry = self.entries.get_mut(&slot)?;
        entry.key = None;
        self.totals.objects -= 1;
        let (tick, busy) = (entry.tick, entry.pins > 0 || matches!(entry.place, Place::Spilling | Place::Loading));
        self.origins.remove(&tick);
        self.replicas.remove(&tick);
        if busy { None } else { self.take_out(slot) }
    }

    /// What has to leave memory next. `disk` says whether writing to disk is possible at all.
    pub(crate) fn victim(&mut self, disk: bool) -> Victim<P> {
        let left = self.totals.memory - self.totals.spilling;
        let crowded = self.crowded();
        self.draining = if self.draining { left > self.limits.low } else { left > self.limits.high };
        if !self.draining && !crowded {
            return Victim::None;
        }
        let origin = self.origins.first_key_value().map(|(tick, slot)| (*tick, *slot));
        let replica = self.replicas.first_key_value().map(|(tick, slot)| (*tick, *slot));
        let room = self.limits.disk.saturating_sub(self.totals.disk);
        let fits = |slot: &Slot| self.entries.get(slot).is_some_and(|entry| entry.cost.disk <= room);
        let fitting = if disk { self.origins.iter().take(CANDIDATES_MAX).find(|(_, slot)| fits(slot)) } else { None };
        let fitting = fitting.map(|(tick, slot)| (*tick, *slot));
        match (fitting, replica) {
            (None, None) if origin.is_some() => Victim::DiskLimit,
            (None, None) => Victim::None,
            (Some((old, slot)), other) if other.is_none_or(|(tick, _)| old < tick) => {
                self.origins.remove(&old);
                if let Some(entry) = self.entries.get_mut(&slot) {
                    entry.place = Place::Spilling;
                    self.totals.spilling += entry.cost.memory;
                    self.totals.disk += entry.cost.disk;
                }
                Victim::Spill(slot)
            }
            (_, Some((_, slot))) => {
                let key = self.entries.get(&slot).and_then(|entry| entry.key);
                key.and_then(|key| self.remove(key)).map_or(Victim::None, Victim::Dropped)
            }
            (Some(_), None) => Victim::None,
        }
    }

    /// A spill is done. `payload` says where it is now.
    pub(crate) fn spilled(&mut self, slot: Slot, payload: P) -> Spilled<P> {
        let Some(entry) = self.entries.get_mut(&slot) else { return Spilled::NotNeeded(None, payload) };
        if entry.pins > 0 || entry.key.is_none() {
            return Spilled::NotNeeded(self.spill_failed(slot), payload);
        }
        self.totals.spilling -= entry.cost.memory;
        self.totals.memory -= entry.cost.memory;
        self.totals.handles -= usize::from(entry.cost.handle);
        entry.place = Place::Disk;
        Spilled::Moved(std::mem::replace(&mut entry.payload, payload))
    }

    /// A spill is not done: the entry stays in memory. Returns what was kept for it when it was removed meanwhile.
    pub(crate) fn spill_failed(&mut self, slot: Slot) -> Option<P> {
        let entry = self.entries.get_mut(&slot)?;
        self.totals.spilling -= entry.cost.memory;
        self.totals.disk -= entry.cost.disk;
        entry.place = Place::Memory;
        match (entry.key.is_some(), entry.pins) {
            (true, 0) => self.used(slot),
            (false, 0) => return self.take_out(slot),
            _ => {}
        }
        None
    }

    /// A load begins: the memory is accounted from now on.
    pub(crate) fn begin_load(&mut self, slot: Slot) {
        let Some(entry) = self.entries.get_mut(&slot) else { return };
        debug_assert_eq!(entry.place, Place::Disk);
        entry.place = Place::Loading;
        self.totals.memory += entry.cost.memory;
        self.totals.handles += usize::from(entry.cost.handle);
        if entry.pins > 0 {
            self.totals.pinned += entry.cost.memory;
        }
    }

    /// A load is done; returns where it was before. The entry is in use once more (by whoever waited for it), until `unpin`.
    pub(crate) fn loaded(&mut self, slot: Slot, payload: P) -> Option<P> {
        let entry = self.entries.get_mut(&slot)?;
        entry.place = Place::Memory;
        entry.pins += 1;
        if entry.pins == 1 {
            self.totals.pinned += entry.cost.memory;
        }
        self.totals.disk -= entry.cost.disk;
        Some(std::mem::replace(&mut entry.payload, payload))
    }

    /// A load is not done: the entry stays on disk. Returns what was kept for it when it was removed meanwhile.
    pub(crate) fn load_failed(&mut self, slot: Slot) -> Option<P> {
        let entry = self.entries.get_mut(&slot)?;
        entry.place = Place::Disk;
        self.totals.memory -= entry.cost.memory;
        self.totals.handles -= usize::from(entry.cost.handle);
        if entry.pins > 0 {
            self.totals.pinned -= entry.cost.memory;
        }
        if entry.key.is_none() && entry.pins == 0 { self.take_out(slot) } else { None }
    }

    /// More entries hold an open file than should.
    pub(crate) fn crowded(&self) -> bool {
        self.totals.handles > self.limits.handles
    }

    fn used(&mut self, slot: Slot) {
        let Some(entry) = self.entries.get_mut(&slot) else { return };
        entry.tick = self.next_tick;
        self.next_tick += 1;
        if entry.place == Place::Memory {
            match entry.kind {
                Kind::Origin => self.origins.insert(entry.tick, slot),
                Kind::Replica => self.replicas.insert(entry.tick, slot),
                Kind::External => None,
            };
        }
    }

    fn take_out(&mut self, slot: Slot) -> Option<P> {
        let entry = self.entries.remove(&slot)?;
        match entry.place {
            Place::Memory => {
                self.totals.memory -= entry.cost.memory;
                self.totals.handles -= usize::from(entry.cost.handle);
            }
            Place::Disk => self.totals.disk -= entry.cost.disk,
            Place::External => self.totals.external -= entry.cost.disk,
            Place::Spilling | Place::Loading => debug_assert!(false, "these are taken out when they arrive"),
        }
        Some(entry.payload)
    }
}

fn in_memory(place: Place) -> bool {
    matches!(place, Place::Memory | Place::Spilling | Place::Loading)
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
