//! What happens behind a store's handles: the two threads that move objects, and what every change ends with.

use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Held, LoadError, PAUSE_FRACTION, Pinned, Pressure, Shared, State};
use crate::Content;
use crate::ledger::{Slot, Spilled, Victim};
use crate::spill::{ReadBack, SpillDirectory, SpilledFile};

/// How long objects that could not be written wait before they are tried again, unless the disk gets room before.
const RETRY: Duration = Duration::from_secs(2);

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pinned(self: &Arc<Self>, slot: Slot, content: Content) -> Pinned {
        Pinned { shared: Arc::clone(self), slot, content, spilled: false }
    }

    pub(super) fn unpin(&self, slot: Slot) {
        let mut state = self.lock();
        let held = state.ledger.unpin(slot);
        self.settle(state);
        // Outside the lock: it may be a file to be unlinked or a segment that goes back to its pool.
        drop(held);
    }

    /// Ends every change: wakes the spiller when there may be work for it and tells of the pressure.
    pub(super) fn settle(&self, state: MutexGuard<'_, State>) {
        let totals = state.ledger.totals();
        let paused = totals.memory as f64 >= PAUSE_FRACTION * self.options.memory_bytes_max as f64;
        let now = Pressure { paused, trouble: state.trouble.clone() };
        self.pressure.send_if_modified(|before| {
            let changed = *before != now;
            if changed {
                *before = now;
            }
            changed
        });
        let wake = totals.memory >= self.options.memory_bytes_max / 2 || state.ledger.crowded();
        drop(state);
        if wake {
            self.spill_wake.notify_one();
        }
    }

    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.loads.clear();
        let waiters = std::mem::take(&mut state.waiters);
        drop(state);
        for waiter in waiters.into_values().flatten() {
            drop(waiter.send(Err(LoadError::Closed)));
        }
        self.spill_wake.notify_all();
        self.load_wake.notify_all();
    }

    pub(super) fn spill_loop(&self, directory: &SpillDirectory) {
        let mut state = self.lock();
        while !state.closed {
            let possible = state.trouble.is_none();
            match state.ledger.victim(possible) {
                Victim::Spill(slot) => {
                    let content = match state.ledger.get(slot).map(|entry| &entry.payload) {
                        Some(Held::Content(content)) => content.clone(),
                        _ => continue,
                    };
                    self.settle(state);
                    let written = directory.write(slot, &content);
                    drop(content);
                    self.after_spill(slot, written);
                    state = self.lock();
                }
                Victim::Dropped(held) => {
                    self.settle(state);
                    drop(held);
                    state = self.lock();
                }
                Victim::DiskLimit => {
                    if state.trouble.is_none() {
                        let limit = self.options.disk_bytes_max;
                        state.trouble = Some(format!("objects on disk have reached their limit of {limit} bytes"));
                        self.settle(state);
                        state = self.lock();
                        continue;
                    }
                    state = self.wait_for_room(state);
                }
                Victim::None => state = self.spill_wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Until the disk has room again (an object on it was dropped) or it is time to try.
    fn wait_for_room<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let over = |state: &mut State| state.trouble.is_some() && !state.closed;
        let (mut state, _) = self.spill_wake.wait_timeout_while(state, RETRY, over).unwrap_or_else(PoisonError::into_inner);
        state.trouble = None;
        state
    }

    fn after_spill(&self, slot: Slot, written: io::Result<SpilledFile>) {
        let mut state = self.lock();
        let mut left = (None, None);
        match written {
            Ok(file) => match state.ledger.spilled(slot, Held::Spilled(file)) {
                Spilled::Moved(content) => left.0 = Some(content),
                Spilled::NotNeeded(held, file) => left = (held, Some(file)),
            },
            Err(error) => {
                left.0 = state.ledger.spill_failed(slot);
                let trouble = format!("cannot write to {}: {error}", self.options.directory.display());
                tracing::warn!(%trouble, "objects stay in memory");
                state.trouble = Some(trouble);
            }
        }
        self.settle(state);
        drop(left);
    }

    /// `_directory` lives until both threads are done with it.
    pub(super) fn load_loop(self: &Arc<Self>, _directory: Arc<SpillDirectory>) {
        let mut state = self.lock();
        while !state.closed {
            let Some(slot) = state.loads.pop_front() else {
                state = self.load_wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let reader = match state.ledger.get(slot).map(|entry| &entry.payload) {
                Some(Held::Spilled(file)) => file.to_reader(),
                _ => continue,
            };
            drop(state);
            let read = reader.read(&self.pool);
            self.after_load(slot, read);
            state = self.lock();
        }
    }

    fn after_load(self: &Arc<Self>, slot: Slot, read: Result<Content, ReadBack>) {
        let mut state = self.lock();
        let waiters = state.waiters.remove(&slot).unwrap_or_default();
        let mut left = None;
        let answer = match read {
            Ok(content) => {
                left = state.ledger.loaded(slot, Held::Content(content.clone()));
                state.trouble = None;
                Ok(content)
            }
            Err(why) => {
                let key = state.ledger.get(slot).and_then(|entry| entry.key());
                left = state.ledger.load_failed(slot).or(left);
                match why {
                    ReadBack::Damaged(..) => {
                        left = key.and_then(|key| state.ledger.remove(key)).or(left);
                        Err(LoadError::Damaged(why.to_string()))
                    }
                    ReadBack::Io(..) => Err(LoadError::Io(why.to_string())),
                }
            }
        };
        match answer {
            Ok(content) => {
                for waiter in waiters {
                    state.ledger.pin(slot);
                    // One that is no longer waited for is unpinned again by its own drop, which takes the lock.
                    let pinned = self.pinned(slot, content.clone());
                    drop(state);
                    drop(waiter.send(Ok(pinned)));
                    state = self.lock();
                }
                // The use by this function.
                left = state.ledger.unpin(slot).or(left);
            }
            Err(why) => waiters.into_iter().for_each(|waiter| drop(waiter.send(Err(why.clone())))),
        }
        self.settle(state);
        drop(left);
    }
}
