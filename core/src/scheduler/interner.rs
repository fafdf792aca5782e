//! Values that many groups share, by number: resource shapes and components. Numbers are never given out twice in an epoch;
//! a value is forgotten with its last user.

use rustc_hash::FxHashMap;
use std::hash::Hash;

/// Counted values by number.
#[derive(Debug)]
pub(super) struct Interner<T> {
    numbers: FxHashMap<T, u32>,
    values: FxHashMap<u32, (T, u32)>,
    next: u32,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Interner { numbers: FxHashMap::default(), values: FxHashMap::default(), next: 1 }
    }
}

impl<T: Clone + Eq + Hash> Interner<T> {
    /// The value's number, with one more user.
    pub(super) fn acquire(&mut self, value: &T) -> u32 {
        if let Some(&number) = self.numbers.get(value) {
            if let Some((_, users)) = self.values.get_mut(&number) {
                *users += 1;
            }
            return number;
        }
        let number = self.next;
        self.next += 1;
        self.numbers.insert(value.clone(), number);
        self.values.insert(number, (value.clone(), 1));
        number
    }

    /// One user less; true when that was the last.
    pub(super) fn release(&mut self, number: u32) -> bool {
        let Some((_, users)) = self.values.get_mut(&number) else { return false };
        *users -= 1;
        if *users > 0 {
            return false;
        }
        if let Some((value, _)) = self.values.remove(&number) {
            self.numbers.remove(&value);
        }
        true
    }

    /// The value behind a number.
    pub(super) fn get(&self, number: u32) -> Option<&T> {
        self.values.get(&number).map(|(value, _)| value)
    }

    /// The number of a value that has users.
    pub(super) fn find(&self, value: &T) -> Option<u32> {
        self.numbers.get(value).copied()
    }
}
