//! Edges of appended elements: who waits for whom, one by one. What waits in ranges is in `depend`.
//!
//! An edge is a row of a slab on two lists: of those that lead out of its upstream task, and of those that its element waits for.
//! It goes with its element's end, but for the edges of an element whose result is an object and might have to be made again:
//! those are its lineage and go with the object. A pending element costs its edges (32 bytes each) and a cell (20 bytes) that it
//! shares with its dependants; elements without any edge cost nothing.

use super::rows::NIL;
use crate::ids::TaskRef;
use rustc_hash::FxHashMap;

/// Cells of neighbours are made and freed together.
const CELLS: u32 = 64;
/// Rows of a slab are made so many at a time, so that it never doubles.
const PAGE: usize = 4096;

/// One edge.
#[derive(Clone, Copy, Debug)]
pub(super) struct EdgeRow {
    pub(super) up: TaskRef,
    pub(super) down: TaskRef,
    prev: u32,
    next: u32,
    sibling: u32,
    /// The result is read.
    pub(super) data: bool,
    /// The upstream task is over as it should be, and its result exists where it is read.
    pub(super) met: bool,
}

const _: () = assert!(size_of::<EdgeRow>() <= 32);

/// What an element has of edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    /// First of the edges that it waits for.
    pub(super) ups: u32,
    /// First of the edges that lead out of it.
    pub(super) downs: u32,
    /// Edges that it waits for and that are not met.
    pub(super) left: u32,
    /// Elements that read its result and are not over, once for each edge.
    pub(super) readers: u32,
    /// Elements that are over and would have to read its result again if theirs were lost.
    pub(super) heirs: u32,
}

impl Cell {
    const EMPTY: Cell = Cell { ups: NIL, downs: NIL, left: 0, readers: 0, heirs: 0 };

    fn is_empty(&self) -> bool {
        *self == Cell::EMPTY
    }
}

#[derive(Debug)]
struct Chunk {
    used: u32,
    cells: [Cell; CELLS as usize],
}

/// Cells of one group, for those of its elements that have edges.
#[derive(Debug, Default)]
pub(super) struct Cells {
    chunks: FxHashMap<u32, Box<Chunk>>,
}

impl Cells {
    /// True when no element has an edge.
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// An element's cell, empty where it has none.
    pub(super) fn get(&self, index: u32) -> Cell {
        match self.chunks.get(&(index / CELLS)) {
            Some(chunk) => chunk.cells[(index % CELLS) as usize],
            None => Cell::EMPTY,
        }
    }

    /// Changes an element's cell; it is gone when nothing is in it afterwards.
    pub(super) fn change<T>(&mut self, index: u32, change: impl FnOnce(&mut Cell) -> T) -> T {
        let at = index / CELLS;
        let chunk = self.chunks.entry(at).or_insert_with(|| Box::new(Chunk { used: 0, cells: [Cell::EMPTY; CELLS as usize] }));
        let cell = &mut chunk.cells[(index % CELLS) as usize];
        let before = cell.is_empty();
        let answer = change(cell);
        match (before, cell.is_empty()) {
            (true, false) => chunk.used += 1,
            (false, true) => chunk.used -= 1,
            _ => {}
        }
        if chunk.used == 0 {
            self.chunks.remove(&at);
        }
        answer
    }

    /// Elements of `first..end` that have a cell, in order.
    pub(super) fn within(&self, first: u32, end: u32) -> Vec<u32> {
        let mut indices = Vec::new();
        let mut at = first;
        while at < end {
            let stop = ((at / CELLS + 1) * CELLS).min(end);
            if let Some(chunk) = self.chunks.get(&(at / CELLS)) {
                indices.extend((at..stop).filter(|index| !chunk.cells[(index % CELLS) as usize].is_empty()));
            }
            at = stop;
        }
        indices
    }

    /// The parts of `ranges` that have no edge left to wait for.
    pub(super) fn without_left(&self, ranges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
        let mut free = Vec::with_capacity(ranges.len());
        for (first, end) in ranges {
            let mut start = first;
            for index in self.within(first, end) {
                if self.get(index).left > 0 {
                    if start < index {
                        free.push((start, index));
                    }
                    start = index + 1;
                }
            }
            if start < end {
                free.push((start, end));
            }
        }
        free
    }

    /// Elements that have a cell, in order.
    pub(super) fn indices(&self) -> Vec<u32> {
        let mut indices: Vec<u32> = Vec::new();
        for (at, chunk) in &self.chunks {
            let of_chunk = (0u32..).zip(&chunk.cells).filter(|(_, cell)| !cell.is_empty());
            indices.extend(of_chunk.map(|(offset, _)| at * CELLS + offset));
        }
        indices.sort_unstable();
        indices
    }

    /// Forgets all of it.
    pub(super) fn clear(&mut self) {
        self.chunks = FxHashMap::default();
    }
}

/// All edges.
#[derive(Debug, Default)]
pub(super) struct EdgeRows {
    pages: Vec<Box<[EdgeRow]>>,
    /// Rows that were ever given out.
    used: u32,
    /// First of the free ones, by `next`.
    free: u32,
    live: u32,
}

impl EdgeRows {
    pub(super) fn new() -> Self {
        EdgeRows { pages: Vec::new(), used: 0, free: NIL, live: 0 }
    }

    /// Edges there are.
    pub(super) fn len(&self) -> u32 {
        self.live
    }

    pub(super) fn get(&self, at: u32) -> &EdgeRow {
        &self.pages[at as usize / PAGE][at as usize % PAGE]
    }

    pub(super) fn get_mut(&mut self, at: u32) -> &mut EdgeRow {
        &mut self.pages[at as usize / PAGE][at as usize % PAGE]
    }

    /// A new edge at the head of both lists: of `downs` and of `ups`, which become the new heads.
    pub(super) fn add(&mut self, up: TaskRef, down: TaskRef, data: bool, met: bool, downs: u32, ups: u32) -> u32 {
        let row = EdgeRow { up, down, prev: NIL, next: downs, sibling: ups, data, met };
        let at = if self.free != NIL {
            let at = self.free;
            self.free = self.get(at).next;
            at
        } else {
            let at = self.used;
            self.used += 1;
            if at as usize / PAGE == self.pages.len() {
                self.pages.push(vec![row; PAGE].into_boxed_slice());
            }
            at
        };
        *self.get_mut(at) = row;
        if downs != NIL {
            self.get_mut(downs).prev = at;
        }
        self.live += 1;
        at
    }

    /// The next edge out of the same upstream task.
    pub(super) fn next(&self, at: u32) -> u32 {
        self.get(at).next
    }

    /// The next edge that the same element waits for.
    pub(super) fn sibling(&self, at: u32) -> u32 {
        self.get(at).sibling
    }

    /// Another edge follows `at` among those that its element waits for.
    pub(super) fn set_sibling(&mut self, at: u32, sibling: u32) {
        self.get_mut(at).sibling = sibling;
    }

    /// Takes an edge off the list of its upstream task and frees it; the task's new head, where that has changed.
    pub(super) fn free(&mut self, at: u32) -> Option<u32> {
        let EdgeRow { prev, next, .. } = *self.get(at);
        if next != NIL {
            self.get_mut(next).prev = prev;
        }
        if prev != NIL {
            self.get_mut(prev).next = next;
        }
        self.get_mut(at).next = self.free;
        self.free = at;
        self.live -= 1;
        (prev == NIL).then_some(next)
    }

    /// Edges out of an upstream task, from a head on.
    pub(super) fn out_of(&self, head: u32) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors((head != NIL).then_some(head), |at| Some(self.next(*at)).filter(|next| *next != NIL))
    }

    /// Edges that an element waits for, from a head on.
    pub(super) fn led_into(&self, head: u32) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors((head != NIL).then_some(head), |at| Some(self.sibling(*at)).filter(|next| *next != NIL))
    }
}
