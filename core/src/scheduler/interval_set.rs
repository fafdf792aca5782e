//! A set of `u32` made for runs of neighbours: what groups are made of until their tasks are dispatched.
//!
//! Indices are kept in blocks of 4,096. A block with one run of neighbours is that run and nothing else (16 bytes); one with
//! more is a bitmap (about half a kilobyte) until it is full or empty, or is mended. So a million elements that go the same way cost four
//! kilobytes, the worst that tasks can do to a group is two bits an element and set, and an operation on one index takes the same
//! time however torn the set is.

/// Indices of a block, as a power of two.
const SHIFT: u32 = 12;
const BLOCK: u32 = 1 << SHIFT;
const WORDS: usize = (BLOCK / 64) as usize;

/// A torn block.
#[derive(Clone, Debug)]
struct Bits {
    count: u32,
    /// Which words have any bit.
    any: u64,
    /// Which words have all bits.
    all: u64,
    words: [u64; WORDS],
}

/// 4,096 neighbours.
#[derive(Clone, Debug)]
enum Block {
    /// Those of `first..end`.
    Run {
        first: u16,
        end: u16,
    },
    Bits(Box<Bits>),
}

const EMPTY: Block = Block::Run { first: 0, end: 0 };
const _: () = assert!(size_of::<Block>() <= 16);

/// Bits `first..end` of a word, where `first < end <= 64`.
fn mask(first: u32, end: u32) -> u64 {
    (u64::MAX >> (64 - (end - first))) << first
}

impl Bits {
    fn of_run(first: u32, end: u32) -> Box<Bits> {
        let mut bits = Box::new(Bits { count: 0, any: 0, all: 0, words: [0; WORDS] });
        bits.change(first, end, true);
        bits
    }

    /// Sets or clears `first..end`; how many of them changed.
    fn change(&mut self, first: u32, end: u32, on: bool) -> u32 {
        let before = self.count;
        let mut at = first;
        while at < end {
            let word = (at / 64) as usize;
            let stop = ((at / 64 + 1) * 64).min(end);
            let mask = mask(at % 64, stop - word as u32 * 64);
            let old = self.words[word];
            let new = if on { old | mask } else { old & !mask };
            self.words[word] = new;
            self.count = self.count + new.count_ones() - old.count_ones();
            let bit = 1u64 << word;
            self.any = if new == 0 { self.any & !bit } else { self.any | bit };
            self.all = if new == u64::MAX { self.all | bit } else { self.all & !bit };
            at = stop;
        }
        self.count.abs_diff(before)
    }

    /// The first index from `at` on that is in (or, with `on` false, is not in); [`BLOCK`] where there is none.
    fn next(&self, at: u32, on: bool) -> u32 {
        let word = (at / 64) as usize;
        let turned = |word: usize| if on { self.words[word] } else { !self.words[word] };
        let here = turned(word) & (u64::MAX << (at % 64));
        if here != 0 {
            return word as u32 * 64 + here.trailing_zeros();
        }
        let others = if on { self.any } else { !self.all };
        let after = if word + 1 < WORDS { others & (u64::MAX << (word + 1)) } else { 0 };
        match after {
            0 => BLOCK,
            after => {
                let word = after.trailing_zeros();
                word * 64 + turned(word as usize).trailing_zeros()
            }
        }
    }
}

impl Block {
    fn count(&self) -> u32 {
        match self {
            Block::Run { first, end } => u32::from(end - first),
            Block::Bits(bits) => bits.count,
        }
    }

    /// The first index from `at` on that is in (or, with `on` false, is not in); [`BLOCK`] where there is none.
    fn next(&self, at: u32, on: bool) -> u32 {
        match self {
            Block::Run { first, end } => {
                let (first, end) = (u32::from(*first), u32::from(*end));
                match on {
                    true if at < end => at.max(first),
                    true => BLOCK,
                    false if at >= first => at.max(end),
                    false => at,
                }
            }
            Block::Bits(bits) => bits.next(at, on),
        }
    }

    /// Sets or clears `from..to`; how many of them changed. Tears the block or mends it where that is due.
    fn change(&mut self, from: u32, to: u32, on: bool) -> u32 {
        if let Block::Run { first, end } = self {
            let (low, high) = (u32::from(*first), u32::from(*end));
            let run = match on {
                // Nothing there, or the two touch.
                true if low == high => Some((from, to)),
                true if from <= high && to >= low => Some((low.min(from), high.max(to))),
                true => None,
                false if low == high || to <= low || from >= high => Some((low, high)),
                false if from <= low => Some((to.min(high), high)),
                false if to >= high => Some((low, from)),
                false => None,
            };
            if let Some((new_first, new_end)) = run {
                (*first, *end) = if new_first < new_end { (new_first as u16, new_end as u16) } else { (0, 0) };
                return (high - low).abs_diff(u32::from(*end - *first));
            }
            *self = Block::Bits(Bits::of_run(low, high));
        }
        let Block::Bits(bits) = self else { return 0 };
        let changed = bits.change(from, to, on);
        match bits.count {
            0 => *self = EMPTY,
            BLOCK => *self = Block::Run { first: 0, end: BLOCK as u16 },
            _ => {}
        }
        changed
    }
}

/// A set of indices as disjoint, never touching, half-open ranges.
#[derive(Clone, Debug, Default)]
pub struct IntervalSet {
    blocks: Vec<Block>,
    len: u32,
    /// No block before this one has anything.
    low: usize,
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

    /// Number of ranges.
    pub fn range_count(&self) -> usize {
        self.ranges().count()
    }

    /// Bytes that it holds.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let torn = self.blocks.iter().filter(|block| matches!(block, Block::Bits(_))).count();
        self.blocks.capacity() * size_of::<Block>() + torn * size_of::<Bits>()
    }

    /// Looks for torn blocks that are one run again and holds them as that.
    pub(super) fn mend(&mut self) {
        for block in &mut self.blocks {
            let Block::Bits(bits) = block else { continue };
            let first = bits.next(0, true);
            let end = if first < BLOCK { bits.next(first, false) } else { first };
            if end - first == bits.count {
                *block = if first < end { Block::Run { first: first as u16, end: end as u16 } } else { EMPTY };
            }
        }
    }

    /// Whether `index` is in the set.
    pub fn contains(&self, index: u32) -> bool {
        let at = index % BLOCK;
        self.blocks.get((index >> SHIFT) as usize).is_some_and(|block| match block {
            Block::Run { first, end } => (u32::from(*first)..u32::from(*end)).contains(&at),
            Block::Bits(bits) => bits.words[(at / 64) as usize] >> (at % 64) & 1 == 1,
        })
    }

    /// The first index from `at` on, below `end`, that is in the set.
    fn next_in(&self, at: u32, end: u32) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        let mut at = at.max((self.low as u32) << SHIFT);
        while at < end {
            let number = at >> SHIFT;
            let block = self.blocks.get(number as usize)?;
            let next = block.next(at % BLOCK, true);
            if next < BLOCK {
                return Some((number << SHIFT) + next).filter(|found| *found < end);
            }
            at = (number + 1).checked_shl(SHIFT).filter(|at| *at > 0)?;
        }
        None
    }

    /// The first index from `at` on that is not in the set, at most `end`.
    fn next_out(&self, at: u32, end: u32) -> u32 {
        let mut at = at;
        while at < end {
            let number = at >> SHIFT;
            let Some(block) = self.blocks.get(number as usize) else { return at };
            let next = block.next(at % BLOCK, false);
            if next < BLOCK {
                return ((number << SHIFT) + next).min(end);
            }
            match (number + 1).checked_mul(BLOCK) {
                Some(next) => at = next,
                None => return end,
            }
        }
        end
    }

    /// One after the last index of the range that `index` is in, at most `end`; `index` itself where it is in none.
    pub fn range_end(&self, index: u32, end: u32) -> u32 {
        self.next_out(index, end.max(index))
    }

    /// Smallest index.
    pub fn first(&self) -> Option<u32> {
        self.next_in(0, u32::MAX)
    }

    /// Sets or clears `first..end` and says how many of them changed.
    fn change(&mut self, first: u32, end: u32, on: bool) -> u32 {
        let mut changed = 0;
        let mut at = first;
        while at < end {
            let number = at >> SHIFT;
            let base = number << SHIFT;
            let stop = base.checked_add(BLOCK).map_or(end, |next| next.min(end));
            let Some(block) = self.blocks.get_mut(number as usize) else { break };
            changed += block.change(at - base, stop - base, on);
            at = stop;
        }
        changed
    }

    /// Adds `first..end` and says how many of them are new.
    pub fn insert_range(&mut self, first: u32, end: u32) -> u32 {
        if first >= end {
            return 0;
        }
        let (low, last) = ((first >> SHIFT) as usize, ((end - 1) >> SHIFT) as usize);
        if last >= self.blocks.len() {
            self.blocks.resize(last + 1, EMPTY);
        }
        self.low = if self.len == 0 { low } else { self.low.min(low) };
        let added = self.change(first, end, true);
        self.len += added;
        added
    }

    /// Adds one index; false when it was there.
    pub fn insert(&mut self, index: u32) -> bool {
        self.insert_range(index, index + 1) == 1
    }

    /// Takes `first..end` out and says how many of them were there.
    pub fn remove_range(&mut self, first: u32, end: u32) -> u32 {
        if self.len == 0 || first >= end {
            return 0;
        }
        let first = first.max((self.low as u32) << SHIFT);
        let removed = self.change(first, end, false);
        self.len -= removed;
        self.raise();
        removed
    }

    /// The lowest block may be empty now.
    fn raise(&mut self) {
        while self.len > 0 && self.blocks.get(self.low).is_some_and(|block| block.count() == 0) {
            self.low += 1;
        }
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
        let first = self.first()?;
        let end = self.next_out(first, first.saturating_add(count));
        self.remove_range(first, end);
        Some((first, end - first))
    }

    /// Ranges `first..end` in order.
    pub fn ranges(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.within(0, u32::MAX)
    }

    /// The parts of the set within `first..end`, as ranges in order.
    pub fn within(&self, first: u32, end: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
        let mut at = first;
        std::iter::from_fn(move || {
            let first = self.next_in(at, end)?;
            at = self.next_out(first, end);
            Some((first, at))
        })
    }

    /// Indices from `first` on, in order.
    pub fn iter_from(&self, first: u32) -> impl Iterator<Item = u32> + '_ {
        self.within(first, u32::MAX).flat_map(|(first, end)| first..end)
    }

    /// Whether every index of `first..end` is in the set.
    pub fn contains_range(&self, first: u32, end: u32) -> bool {
        first >= end || self.next_out(first, end) == end
    }
}
