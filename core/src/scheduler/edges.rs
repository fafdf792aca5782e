//! Edges of appended elements: who waits for whom, one by one. What waits in ranges is in `depend`.
//!
//! An edge is a row of a slab on two lists: of those that lead out of its upstream task, and of those that its element waits for.
//! It is dead with its element's end, but for the edges of an element whose result is an object and might have to be made again:
//! those are its lineage and go with the object. A pending element costs its edges (28 bytes each) and a cell (24 bytes) that it
//! shares with its dependants; elements without any edge cost nothing. Dead edges are freed when they are more than the living
//! of their list: a task with a million dependants that come and go is looked through once for as many of them.

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
    next: u32,
    sibling: u32,
    /// Nobody waits by it any more: it is freed with the next look through its list.
    pub(super) dead: bool,
    /// The result is read.
    pub(super) data: bool,
    /// The upstream task is over as it should be, and its result exists where it is read.
    pub(super) met: bool,
}

const _: () = assert!(size_of::<EdgeRow>() <= 28);

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
    /// Edges out of it, living and dead.
    pub(super) listed: u32,
    /// Dead ones among them.
    pub(super) dead: u32,
}

impl Cell {
    const EMPTY: Cell = Cell { ups: NIL, downs: NIL, left: 0, readers: 0, heirs: 0, listed: 0, dead: 0 };

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

    /// Bytes that it holds.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.chunks.len() * (size_of::<Chunk>() + 24)
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

    /// Bytes that they hold.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.pages.len() * PAGE * size_of::<EdgeRow>()
    }

    /// Living edges.
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
        let row = EdgeRow { up, down, next: downs, sibling: ups, dead: false, data, met };
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

    /// Nobody waits by an edge any more. Its upstream task's cell counts it; the edges of that list are freed when most are dead.
    pub(super) fn kill(&mut self, at: u32, cell: &mut Cell) {
        self.get_mut(at).dead = true;
        self.live -= 1;
        cell.dead += 1;
        if cell.dead * 2 <= cell.listed {
            return;
        }
        let mut kept = NIL;
        let mut at = std::mem::replace(&mut cell.downs, NIL);
        while at != NIL {
            let here = at;
            at = self.next(here);
            if self.get(here).dead {
                self.get_mut(here).next = self.free;
                self.free = here;
                cell.listed -= 1;
                continue;
            }
            match kept {
                NIL => cell.downs = here,
                before => self.get_mut(before).next = here,
            }
            kept = here;
        }
        if kept != NIL {
            self.get_mut(kept).next = NIL;
        }
        cell.dead = 0;
    }

    /// Living edges out of an upstream task, from a head on.
    pub(super) fn out_of(&self, head: u32) -> impl Iterator<Item = u32> + '_ {
        let all = std::iter::successors((head != NIL).then_some(head), |at| Some(self.next(*at)).filter(|next| *next != NIL));
        all.filter(|at| !self.get(*at).dead)
    }

    /// Edges that an element waits for, from a head on.
    pub(super) fn led_into(&self, head: u32) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors((head != NIL).then_some(head), |at| Some(self.sibling(*at)).filter(|next| *next != NIL))
    }
}
