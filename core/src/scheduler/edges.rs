//! Edges of appended elements: who waits for whom, one by one. What waits in ranges is in `depend`.
//!
//! An edge is a row of a slab on two lists: of those that lead out of its upstream task, and of those that its element waits for.
//! It is dead with its element's end, but for the edges of an element whose result is an object and might have to be made again:
//! those are its lineage and go with the object. A pending element costs its edges (28 bytes each) and a cell (28 bytes) that it
//! shares with its dependants; elements without any edge cost nothing. Dead edges are freed when they are more than the living
//! of their list: a task with a million dependants that come and go is looked through once for as many of them.
//!
//! Nobody asks an upstream task for its dependants again once it is over and its result is no object that could be lost: then its
//! list is dissolved, and each edge is *apart*, known to the element that waited alone.

use super::rows::NIL;
use crate::ids::TaskRef;

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
    /// It is on no list of its upstream task's.
    pub(super) apart: bool,
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

/// Cells of one group, for those of its elements that have edges: eight bytes for each 64 elements up to the last of those.
#[derive(Debug, Default)]
pub(super) struct Cells {
    chunks: Vec<Option<Box<Chunk>>>,
    /// Chunks that there are.
    live: u32,
}

impl Cells {
    /// True when no element has an edge.
    pub(super) fn is_empty(&self) -> bool {
        self.live == 0
    }

    fn chunk(&self, at: u32) -> Option<&Chunk> {
        self.chunks.get(at as usize)?.as_deref()
    }

    /// An element's cell, empty where it has none.
    pub(super) fn get(&self, index: u32) -> Cell {
        match self.chunk(index / CELLS) {
            Some(chunk) => chunk.cells[(index % CELLS) as usize],
            None => Cell::EMPTY,
        }
    }

    /// Changes an element's cell; it is gone when nothing is in it afterwards.
    pub(super) fn change<T>(&mut self, index: u32, change: impl FnOnce(&mut Cell) -> T) -> T {
        let at = (index / CELLS) as usize;
        if self.chunks.len() <= at {
            self.chunks.resize_with(at + 1, || None);
        }
        let live = &mut self.live;
        let chunk = self.chunks[at].get_or_insert_with(|| {
            *live += 1;
            Box::new(Chunk { used: 0, cells: [Cell::EMPTY; CELLS as usize] })
        });
        let cell = &mut chunk.cells[(index % CELLS) as usize];
        let before = cell.is_empty();
        let answer = change(cell);
        match (before, cell.is_empty()) {
            (true, false) => chunk.used += 1,
            (false, true) => chunk.used -= 1,
            _ => {}
        }
        if chunk.used == 0 {
            self.chunks[at] = None;
            self.live -= 1;
        }
        answer
    }

    /// The first element from `at` on, below `end`, that has a cell.
    pub(super) fn next(&self, at: u32, end: u32) -> Option<u32> {
        // No cell lies beyond the last chunk.
        let end = end.min((self.chunks.len() as u32).saturating_mul(CELLS));
        let mut at = at;
        while at < end {
            let stop = ((at / CELLS + 1) * CELLS).min(end);
            if let Some(chunk) = self.chunk(at / CELLS)
                && let Some(found) = (at..stop).find(|index| !chunk.cells[(index % CELLS) as usize].is_empty())
            {
                return Some(found);
            }
            at = stop;
        }
        None
    }

    /// The parts of `ranges` that have no edge left to wait for.
    pub(super) fn without_left(&self, ranges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
        let mut free = Vec::with_capacity(ranges.len());
        for (first, end) in ranges {
            let (mut start, mut at) = (first, first);
            while let Some(index) = self.next(at, end) {
                at = index + 1;
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
        let mut at = 0;
        std::iter::from_fn(|| {
            let index = self.next(at, u32::MAX)?;
            at = index + 1;
            Some(index)
        })
        .collect()
    }

    /// Bytes that it holds.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.live as usize * (size_of::<Chunk>() + 16) + self.chunks.capacity() * size_of::<Option<Box<Chunk>>>()
    }

    /// Forgets all of it.
    pub(super) fn clear(&mut self) {
        *self = Cells::default();
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

    /// A new edge at the head of its upstream task's list, before `downs`; with none it is apart. It is on no element's list yet.
    pub(super) fn add(&mut self, up: TaskRef, down: TaskRef, data: bool, met: bool, downs: Option<u32>) -> u32 {
        let (next, apart) = (downs.unwrap_or(NIL), downs.is_none());
        let row = EdgeRow { up, down, next, sibling: NIL, dead: false, apart, data, met };
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

    fn give_back(&mut self, at: u32) {
        self.get_mut(at).next = self.free;
        self.free = at;
    }

    /// Nobody asks an upstream task for its dependants again: its edges are apart, and dead ones free.
    pub(super) fn dissolve(&mut self, cell: &mut Cell) {
        let mut at = std::mem::replace(&mut cell.downs, NIL);
        while at != NIL {
            let here = at;
            let edge = self.get_mut(here);
            (at, edge.apart) = (edge.next, true);
            if edge.dead {
                self.give_back(here);
            }
        }
        (cell.listed, cell.dead) = (0, 0);
    }

    /// Nobody waits by an edge any more. Its upstream task's cell counts it; the edges of that list are freed when most are dead.
    pub(super) fn kill(&mut self, at: u32, cell: &mut Cell) {
        self.live -= 1;
        if self.get(at).apart {
            return self.give_back(at);
        }
        self.get_mut(at).dead = true;
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
                self.give_back(here);
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
