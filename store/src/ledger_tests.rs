//! The accounts against a model that counts everything anew after every step.

use proptest::prelude::*;

use super::*;
use crate::ObjectId;

fn key(n: u32) -> Key {
    Key::Object(ObjectId { run: 1, group: 1, index: n, attempt: 1 })
}

const LIMITS: Limits = Limits { high: 60, low: 50, disk: 100, objects: 12, handles: 4 };

#[derive(Clone, Debug)]
enum Step {
    Insert { n: u32, bytes: u64, kind: u8 },
    Pin(u32),
    Unpin(usize),
    Remove(u32),
    Keep(u32),
    Victim { disk: bool },
    SpillEnds { at: usize, well: bool },
    Load(u32),
    LoadEnds { at: usize, well: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..16u32, 1..40u64, 0..6u8).prop_map(|(n, bytes, kind)| Step::Insert { n, bytes, kind }),
        2 => (0..16u32).prop_map(Step::Pin),
        5 => any::<usize>().prop_map(Step::Unpin),
        2 => (0..16u32).prop_map(Step::Remove),
        1 => (0..16u32).prop_map(Step::Keep),
        3 => any::<bool>().prop_map(|some| Step::Victim { disk: some }),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(at, well)| Step::SpillEnds { at, well }),
        2 => (0..16u32).prop_map(Step::Load),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(at, well)| Step::LoadEnds { at, well }),
    ]
}

/// What the model knows of an entry.
#[derive(Clone, Debug)]
struct Known {
    slot: Slot,
    n: u32,
    bytes: u64,
    handle: bool,
    kind: Kind,
    place: Place,
    pins: u32,
    named: bool,
    used: u64,
}

#[derive(Default)]
struct Model {
    known: Vec<Known>,
    clock: u64,
    draining: bool,
}

impl Model {
    fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for entry in &self.known {
            totals.objects += usize::from(entry.named);
            match entry.place {
                Place::External => totals.external += entry.bytes,
                Place::Disk => totals.disk += entry.bytes,
                place => {
                    totals.memory += entry.bytes;
                    totals.handles += usize::from(entry.handle);
                    totals.pinned += if entry.pins > 0 { entry.bytes } else { 0 };
                    totals.spilling += if place == Place::Spilling { entry.bytes } else { 0 };
                    totals.disk += if place == Place::Memory { 0 } else { entry.bytes };
                }
            }
        }
        totals
    }

    fn named(&mut self, n: u32) -> Option<&mut Known> {
        self.known.iter_mut().find(|entry| entry.named && entry.n == n)
    }

    /// Forgets what nobody names or uses; returns which.
    fn sweep(&mut self) -> Vec<Slot> {
        let over = |e: &Known| !e.named && e.pins == 0 && !matches!(e.place, Place::Spilling | Place::Loading);
        let gone = self.known.iter().filter(|e| over(e)).map(|e| e.slot).collect();
        self.known.retain(|e| !over(e));
        gone
    }

    fn free_again(&mut self, slot: Slot) {
        self.clock += 1;
        let clock = self.clock;
        if let Some(entry) = self.known.iter_mut().find(|e| e.slot == slot && e.pins == 0) {
            entry.used = clock;
        }
    }

    /// What the ledger has to answer: the least recently used that can leave.
    fn victim(&mut self, disk: bool) -> Option<(Slot, Kind)> {
        let totals = self.totals();
        let left = totals.memory - totals.spilling;
        self.draining = if self.draining { left > LIMITS.low } else { left > LIMITS.high };
        if !self.draining && totals.handles <= LIMITS.handles {
            return None;
        }
        let room = LIMITS.disk.saturating_sub(totals.disk);
        self.known
            .iter()
            .filter(|e| e.named && e.place == Place::Memory && e.pins == 0)
            .filter(|e| e.kind == Kind::Replica || (disk && e.bytes <= room))
            .min_by_key(|e| e.used)
            .map(|e| (e.slot, e.kind))
    }
}

fn pick<T>(all: &[T], at: usize) -> Option<&T> {
    all.get(at.checked_rem(all.len())?)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn accounts_agree_with_a_model(steps in proptest::collection::vec(step(), 1..120)) {
        let mut ledger: Ledger<u32> = Ledger::new(LIMITS);
        let mut model = Model::default();
        for step in steps {
            // The payload of an entry is its number, so that what comes back can be told.
            let mut returned: Vec<u32> = Vec::new();
            let numbers: std::collections::BTreeMap<Slot, u32> = model.known.iter().map(|e| (e.slot, e.n)).collect();
            match step {
                Step::Insert { n, bytes, kind } => {
                    if ledger.find(key(n)).is_some() || !ledger.has_room() { continue; }
                    let kind = [Kind::Origin, Kind::Origin, Kind::Replica, Kind::Replica, Kind::Origin, Kind::External][kind as usize];
                    let handle = bytes % 2 == 0 && kind != Kind::External;
                    let slot = ledger.insert(key(n), Cost { memory: bytes, disk: bytes, handle }, kind, n);
                    let place = if kind == Kind::External { Place::External } else { Place::Memory };
                    model.known.push(Known { slot, n, bytes, handle, kind, place, pins: 1, named: true, used: 0 });
                }
                Step::Pin(n) => {
                    let Some(entry) = model.named(n) else { continue };
                    entry.pins += 1;
                    ledger.pin(entry.slot);
                }
                Step::Unpin(at) => {
                    let pinned: Vec<Slot> = model.known.iter().filter(|e| e.pins > 0).map(|e| e.slot).collect();
                    let Some(slot) = pick(&pinned, at).copied() else { continue };
                    returned.extend(ledger.unpin(slot));
                    model.known.iter_mut().filter(|e| e.slot == slot).for_each(|e| e.pins -= 1);
                    model.free_again(slot);
                }
                Step::Remove(n) => {
                    returned.extend(ledger.remove(key(n)));
                    if let Some(entry) = model.named(n) { entry.named = false; }
                }
                Step::Keep(n) => {
                    let Some(entry) = model.named(n) else { continue };
                    if entry.kind == Kind::Replica { entry.kind = Kind::Origin; }
                    ledger.keep(entry.slot);
                }
                Step::Victim { disk } => {
                    let expected = model.victim(disk);
                    match (ledger.victim(disk), expected) {
                        (Victim::Spill(slot), Some((right, Kind::Origin))) => {
                            prop_assert_eq!(slot, right);
                            model.known.iter_mut().filter(|e| e.slot == slot).for_each(|e| e.place = Place::Spilling);
                        }
                        (Victim::Dropped(n), Some((right, Kind::Replica))) => {
                            prop_assert_eq!(Some(&n), numbers.get(&right));
                            model.known.retain(|e| e.slot != right);
                        }
                        (Victim::DiskLimit | Victim::None, None) => {}
                        (got, right) => prop_assert!(false, "{:?} instead of {:?}", got, right),
                    }
                }
                Step::SpillEnds { at, well } => {
                    let busy: Vec<Slot> = model.known.iter().filter(|e| e.place == Place::Spilling).map(|e| e.slot).collect();
                    let Some(slot) = pick(&busy, at).copied() else { continue };
                    let entry = model.known.iter_mut().find(|e| e.slot == slot).unwrap();
                    let moves = well && entry.named && entry.pins == 0;
                    entry.place = if moves { Place::Disk } else { Place::Memory };
                    if well {
                        match ledger.spilled(slot, entry.n) {
                            Spilled::Moved(_) => prop_assert!(moves),
                            Spilled::NotNeeded(held, _) => { prop_assert!(!moves); returned.extend(held); }
                        }
                    } else {
                        returned.extend(ledger.spill_failed(slot));
                    }
                    if !moves { model.free_again(slot); }
                }
                Step::Load(n) => {
                    let Some(entry) = model.named(n).filter(|e| e.place == Place::Disk) else { continue };
                    entry.place = Place::Loading;
                    ledger.begin_load(entry.slot);
                }
                Step::LoadEnds { at, well } => {
                    let busy: Vec<Slot> = model.known.iter().filter(|e| e.place == Place::Loading).map(|e| e.slot).collect();
                    let Some(slot) = pick(&busy, at).copied() else { continue };
                    let entry = model.known.iter_mut().find(|e| e.slot == slot).unwrap();
                    if well {
                        entry.place = Place::Memory;
                        entry.pins += 1;
                        prop_assert_eq!(ledger.loaded(slot, entry.n), Some(entry.n));
                    } else {
                        entry.place = Place::Disk;
                        returned.extend(ledger.load_failed(slot));
                    }
                }
            }
            let gone = model.sweep();
            let expected: Vec<u32> = gone.iter().filter_map(|slot| numbers.get(slot).copied()).collect();
            prop_assert_eq!(returned, expected);
            prop_assert_eq!(ledger.totals(), model.totals());
            prop_assert!(ledger.totals().disk <= LIMITS.disk);
        }
        // Everything that is let go leaves nothing behind.
        for entry in model.known.clone() {
            if entry.place == Place::Spilling { ledger.spill_failed(entry.slot); }
            if entry.place == Place::Loading { ledger.load_failed(entry.slot); }
            if entry.named { ledger.remove(key(entry.n)); }
            for _ in 0..entry.pins { ledger.unpin(entry.slot); }
        }
        prop_assert_eq!(ledger.totals(), Totals::default());
        prop_assert!(ledger.entries.is_empty() && ledger.origins.is_empty() && ledger.replicas.is_empty());
    }
}
