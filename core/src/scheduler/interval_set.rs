//! A set of `u32` kept as ranges: what groups are made of until their tasks are dispatched.
//!
//! Memory is proportional to the number of ranges (about 12 bytes each), time of an operation to its logarithm plus the ranges
//! it touches. The worst that a group can do is to fail every other element: half as many ranges as elements.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included};

/// A set of indices as disjoint, never touching, half-open ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IntervalSet {
    /// First index of a range to the one after its last.
    ranges: BTreeMap<u32, u32>,
    len: u32,
}

impl IntervalSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Everything in `first..end`.
    pub fn from_range(first: u32, end: u32) -> Self {
        let mut set = Self::new();
        set.insert_range(first, end);
        set
    }

    /// Number of indices.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// True without any index.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of ranges: what the set costs.
    pub fn range_count(&self) -> usize {
        self.ranges.len()
    }

    /// Whether `index` is in the set.
    pub fn contains(&self, index: u32) -> bool {
        self.ranges.range(..=index).next_back().is_some_and(|(_, end)| index < *end)
    }

    /// One after the last index of the range that `index` is in; `index` itself where it is in none.
    pub fn range_end(&self, index: u32) -> u32 {
        self.ranges.range(..=index).next_back().map_or(index, |(_, end)| index.max(*end))
    }

    /// Smallest index.
    pub fn first(&self) -> Option<u32> {
        self.ranges.first_key_value().map(|(first, _)| *first)
    }

    /// Adds `first..end` and says how many of them are new.
    pub fn insert_range(&mut self, first: u32, end: u32) -> u32 {
        if first >= end {
            return 0;
        }
        let (mut new_first, mut new_end, mut known) = (first, end, 0);
        if let Some((&before, before_end)) = self.ranges.range_mut(..=first).next_back()
            && *before_end >= first
        {
            if *before_end >= end {
                return 0;
            }
            known += *before_end - first;
            new_first = before;
        }
        while let Some((&next, &next_end)) = self.ranges.range((Excluded(first), Included(new_end))).next() {
            self.ranges.remove(&next);
            known += next_end.min(end) - next.min(end);
            new_end = new_end.max(next_end);
        }
        self.ranges.insert(new_first, new_end);
        let added = end - first - known;
        self.len += added;
        added
    }

    /// Adds one index; false when it was there.
    pub fn insert(&mut self, index: u32) -> bool {
        self.insert_range(index, index + 1) == 1
    }

    /// Takes `first..end` out and says how many of them were there.
    pub fn remove_range(&mut self, first: u32, end: u32) -> u32 {
        if first >= end {
            return 0;
        }
        let mut removed = 0;
        if let Some((_, before_end)) = self.ranges.range_mut(..first).next_back()
            && *before_end > first
        {
            let tail_end = *before_end;
            *before_end = first;
            removed += tail_end.min(end) - first;
            if tail_end > end {
                self.ranges.insert(end, tail_end);
            }
        }
        while let Some((&next, &next_end)) = self.ranges.range(first..end).next() {
            self.ranges.remove(&next);
            removed += next_end.min(end) - next;
            if next_end > end {
                self.ranges.insert(end, next_end);
            }
        }
        self.len -= removed;
        removed
    }

    /// Takes one index out; false when it was not there.
    pub fn remove(&mut self, index: u32) -> bool {
        self.remove_range(index, index + 1) == 1
    }

    /// Takes up to `count` indices from the first range: its start and how many.
    pub fn take_first(&mut self, count: u32) -> Option<(u32, u32)> {
        if count == 0 {
            return None;
        }
        let (first, end) = self.ranges.pop_first()?;
        let taken = count.min(end - first);
        if first + taken < end {
            self.ranges.insert(first + taken, end);
        }
        self.len -= taken;
        Some((first, taken))
    }

    /// Everything, as ranges `first..end`; the set is empty afterwards.
    pub fn take_all(&mut self) -> Vec<(u32, u32)> {
        self.len = 0;
        std::mem::take(&mut self.ranges).into_iter().collect()
    }

    /// Ranges `first..end` in order.
    pub fn ranges(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.ranges.iter().map(|(first, end)| (*first, *end))
    }

    /// The parts of the set within `first..end`, as ranges in order.
    pub fn within(&self, first: u32, end: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
        let head = if first < end { self.ranges.range(..first).next_back() } else { None };
        let head = head.and_then(|(_, e)| (*e > first).then(|| (first, (*e).min(end))));
        let rest = self.ranges.range(first.min(end)..end).map(move |(s, e)| (*s, (*e).min(end)));
        head.into_iter().chain(rest)
    }

    /// Indices from `first` on, in order.
    pub fn iter_from(&self, first: u32) -> impl Iterator<Item = u32> + '_ {
        self.within(first, u32::MAX).flat_map(|(first, end)| first..end)
    }

    /// Whether every index of `first..end` is in the set.
    pub fn contains_range(&self, first: u32, end: u32) -> bool {
        first >= end || self.ranges.range(..=first).next_back().is_some_and(|(_, e)| *e >= end)
    }
}
