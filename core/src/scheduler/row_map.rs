//! Which row each dispatched element of a group has.
//!
//! Elements are dispatched and end as neighbours, a block at a time. Sixteen neighbours share a cache line, so that a block
//! costs a few looks into memory instead of one for every element: with a million attempts on workers nothing of it is in a cache.

use super::rows::NIL;
use rustc_hash::FxHashMap;

/// Neighbours in one page.
const PAGE: u32 = 16;

/// Rows by element.
#[derive(Debug, Default)]
pub(super) struct RowMap {
    /// By the first element divided by [`PAGE`]; none is empty.
    pages: FxHashMap<u32, [u32; PAGE as usize]>,
    len: u32,
}

impl RowMap {
    /// How many elements have a row.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn get(&self, index: u32) -> Option<u32> {
        let slot = self.pages.get(&(index / PAGE))?[(index % PAGE) as usize];
        (slot != NIL).then_some(slot)
    }

    /// An element that had none has a row.
    pub(super) fn insert(&mut self, index: u32, slot: u32) {
        let page = self.pages.entry(index / PAGE).or_insert([NIL; PAGE as usize]);
        let before = std::mem::replace(&mut page[(index % PAGE) as usize], slot);
        debug_assert!(before == NIL && slot != NIL);
        self.len += 1;
    }

    /// An element has no row any more.
    pub(super) fn remove(&mut self, index: u32) {
        let Some(page) = self.pages.get_mut(&(index / PAGE)) else { return };
        if std::mem::replace(&mut page[(index % PAGE) as usize], NIL) == NIL {
            return;
        }
        self.len -= 1;
        if *page == [NIL; PAGE as usize] {
            self.pages.remove(&(index / PAGE));
        }
    }

    /// Gives back the memory of what has had rows, when nothing has one.
    pub(super) fn shrink(&mut self) {
        if self.len == 0 {
            self.pages = FxHashMap::default();
        }
    }

    /// Elements and their rows, in no order of the elements but the same one every time.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let of_page = |(page, slots): (&u32, &[u32; PAGE as usize])| {
            let first = page * PAGE;
            let elements = (first..=first + (PAGE - 1)).zip(*slots);
            elements.filter(|(_, slot)| *slot != NIL).collect::<Vec<_>>()
        };
        self.pages.iter().flat_map(of_page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_map_of_what_was_inserted_and_not_removed() {
        let mut map = RowMap::default();
        for index in [0, 15, 16, 40, u32::MAX] {
            map.insert(index, index / 2);
        }
        map.remove(15);
        map.remove(15);
        map.remove(41);
        let mut all: Vec<(u32, u32)> = map.iter().collect();
        all.sort_unstable();
        assert_eq!(all, [(0, 0), (16, 8), (40, 20), (u32::MAX, u32::MAX / 2)]);
        assert_eq!((map.len(), map.get(15), map.get(16)), (4, None, Some(8)));
        for (index, _) in all {
            map.remove(index);
        }
        assert_eq!((map.len(), map.pages.len()), (0, 0), "no page stays behind");
    }
}
