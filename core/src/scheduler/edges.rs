//! Edges of appended elements: who waits for whom, one by one. What waits in ranges is in `depend`.
//!
//! An edge is a row of a slab on two lists: of those that lead out of its upstream task, and of those that its element waits for.
//! It is dead with its element's end, but for the edges of an element whose result is an object and might have to be made again:
//! those are its lineage and go with the object. A pending element costs its edges (28 bytes each) and a cell (16 bytes) that it
//! shares with its dependants; elements without any edge cost nothing. Dead edges are freed when they are more than
//! the living of their list were when it was looked through last: a task with a million dependants that come and go is looked through
//! once for as many of them.
//!
//! Nobody asks an upstream task for its dependants again once it is over and its result is no object that could be lost: then its
//! list is dissolved, and each edge is *apart*, known to the element that waited alone.

use super::rows::NIL;
use crate::ids::TaskRef;
use rustc_hash::FxHashMap;

/// Cells of so many neighbours are made and freed together.
const CELLS: u32 = 4096;
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
    pub(super) rare: Rare,
}

/// What few elements have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rare {
    /// Elements that are over and would have to read its result again if theirs were lost.
    pub(super) heirs: u32,
    /// Dead edges among those that lead out of it.
    dead: u32,
    /// As many may be dead before its list is looked through: those that lived when that was done last.
    dead_max: u32,
}

impl Cell {
    const EMPTY: Cell = Cell { ups: NIL, downs: NIL, left: 0, readers: 0, rare: Rare { heirs: 0, dead: 0, dead_max: 0 } };

    fn is_empty(&self) -> bool {
        (self.ups, self.downs) == (NIL, NIL) && (self.left, self.readers, self.rare.heirs) == (0, 0, 0)
    }
}

/// Cells of neighbours, a column for each figure: what is changed one by one all over a graph lies close together. The columns grow
/// with the elements that have a cell, up to [`CELLS`].
#[derive(Debug, Default)]
struct Chunk {
    /// Cells in which something is.
    used: u32,
    ups: Vec<u32>,
    downs: Vec<u32>,
    left: Vec<u32>,
    readers: Vec<u32>,
    rare: FxHashMap<u32, Rare>,
}

impl Chunk {
    fn get(&self, at: usize) -> Cell {
        if at >= self.ups.len() {
            return Cell::EMPTY;
        }
        let rare = if self.rare.is_empty() { None } else { self.rare.get(&(at as u32)).copied() };
        Cell {
            ups: self.ups[at],
            downs: self.downs[at],
            left: self.left[at],
            readers: self.readers[at],
            rare: rare.unwrap_or_default(),
        }
    }

    fn set(&mut self, at: usize, cell: Cell) {
        if at >= self.ups.len() {
            let length = (at + 1).next_power_of_two();
            self.ups.resize(length, NIL);
            self.downs.resize(length, NIL);
            self.left.resize(length, 0);
            self.readers.resize(length, 0);
        }
        (self.ups[at], self.downs[at], self.left[at], self.readers[at]) = (cell.ups, cell.downs, cell.left, cell.readers);
        if cell.rare != Rare::default() {
            self.rare.insert(at as u32, cell.rare);
        } else if !self.rare.is_empty() {
            self.rare.remove(&(at as u32));
        }
    }
}

/// Cells of one group, for those of its elements that have edges.
#[derive(Debug, Default)]
pub(super) struct Cells {
    /// One without columns is not there.
    chunks: Vec<Chunk>,
    /// Chunks that there are.
    live: u32,
}

fn place(index: u32) -> (usize, usize) {
    ((index / CELLS) as usize, (index % CELLS) as usize)
}

impl Cells {
    /// True when no element has an edge.
    pub(super) fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// An element's cell, empty where it has none.
    pub(super) fn get(&self, index: u32) -> Cell {
        let (chunk, at) = place(index);
        self.chunks.get(chunk).map_or(Cell::EMPTY, |chunk| chunk.get(at))
    }

    /// First of the edges that an element waits for.
    pub(super) fn ups(&self, index: u32) -> u32 {
        let (chunk, at) = place(index);
        self.chunks.get(chunk).and_then(|chunk| chunk.ups.get(at)).copied().unwrap_or(NIL)
    }

    /// First of the edges that lead out of an element.
    pub(super) fn downs(&self, index: u32) -> u32 {
        let (chunk, at) = place(index);
        self.chunks.get(chunk).and_then(|chunk| chunk.downs.get(at)).copied().unwrap_or(NIL)
    }

    /// Edges that an element waits for and that are not met.
    pub(super) fn left(&self, index: u32) -> u32 {
        let (chunk, at) = place(index);
        self.chunks.get(chunk).and_then(|chunk| chunk.left.get(at)).copied().unwrap_or(0)
    }

    /// Elements that read the result of this one and are not over.
    pub(super) fn readers(&self, index: u32) -> u32 {
        let (chunk, at) = place(index);
        self.chunks.get(chunk).and_then(|chunk| chunk.readers.get(at)).copied().unwrap_or(0)
    }

    /// Elements that are over and would have to read the result of this one again.
    pub(super) fn heirs(&self, index: u32) -> u32 {
        let (chunk, at) = place(index);
        let rare = self.chunks.get(chunk).filter(|chunk| !chunk.rare.is_empty());
        rare.and_then(|chunk| chunk.rare.get(&(at as u32))).map_or(0, |rare| rare.heirs)
    }

    /// One of the edges that an element waits for is met; how many are left.
    pub(super) fn meet(&mut self, index: u32) -> u32 {
        let (chunk, at) = place(index);
        // It has an edge, so its cell is there and stays.
        let left = &mut self.chunks[chunk].left[at];
        *left -= 1;
        *left
    }

    /// One element less reads the result of this one.
    pub(super) fn unread(&mut self, index: u32) {
        let (chunk, at) = place(index);
        let readers = &mut self.chunks[chunk].readers[at];
        if *readers > 1 {
            *readers -= 1;
        } else {
            self.change(index, |cell| cell.readers -= 1);
        }
    }

    /// Changes an element's cell; it is gone when nothing is in it afterwards.
    pub(super) fn change<T>(&mut self, index: u32, change: impl FnOnce(&mut Cell) -> T) -> T {
        let (number, at) = place(index);
        if self.chunks.len() <= number {
            self.chunks.resize_with(number + 1, Chunk::default);
        }
        let chunk = &mut self.chunks[number];
        let mut cell = chunk.get(at);
        let before = cell.is_empty();
        let answer = change(&mut cell);
        match (before, cell.is_empty()) {
            (true, true) => return answer,
            (true, false) => {
                self.live += u32::from(chunk.used == 0);
                chunk.used += 1;
            }
            (false, true) => {
                cell = Cell::EMPTY;
                chunk.used -= 1;
            }
            (false, false) => {}
        }
        if chunk.used == 0 {
            *chunk = Chunk::default();
            self.live -= 1;
        } else {
            chunk.set(at, cell);
        }
        answer
    }

    /// The first element from `at` on, below `end`, that has a cell.
    pub(super) fn next(&self, at: u32, end: u32) -> Option<u32> {
        let mut at = at;
        while at < end {
            let (number, from) = place(at);
            let chunk = self.chunks.get(number)?;
            let base = number as u32 * CELLS;
            let stop = chunk.ups.len().min((end - base) as usize);
            if let Some(found) = (from..stop).find(|at| !chunk.get(*at).is_empty()) {
                return Some(base + found as u32);
            }
            at = base.checked_add(CELLS)?;
        }
        None
    }

    /// The parts of `ranges` that have no edge left to wait for.
    pub(super) fn without_left(&self, ranges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
        let mut free = Vec::with_capacity(ranges.len());
        for (first, end) in ranges {
            let mut start = first;
            for index in first..end {
                if self.left(index) > 0 {
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
        let column = |column: &Vec<u32>| column.capacity() * size_of::<u32>();
        let columns = |chunk: &Chunk| column(&chunk.ups) + column(&chunk.downs) + column(&chunk.left) + column(&chunk.readers);
        let rare = |chunk: &Chunk| chunk.rare.capacity() * (size_of::<(u32, Rare)>() + 1);
        let chunks: usize = self.chunks.iter().map(|chunk| columns(chunk) + rare(chunk)).sum();
        chunks + self.chunks.capacity() * size_of::<Chunk>()
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

    /// Nobody waits by an edge that is apart any more.
    pub(super) fn free_apart(&mut self, at: u32) {
        debug_assert!(self.get(at).apart);
        self.live -= 1;
        self.give_back(at);
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
        (cell.rare.dead, cell.rare.dead_max) = (0, 0);
    }

    /// Nobody waits by an edge any more. Its upstream task's cell counts it; the edges of that list are freed when most are dead.
    pub(super) fn kill(&mut self, at: u32, cell: &mut Cell) {
        if self.get(at).apart {
            return self.free_apart(at);
        }
        self.live -= 1;
        self.get_mut(at).dead = true;
        cell.rare.dead += 1;
        if cell.rare.dead <= cell.rare.dead_max {
            return;
        }
        let (mut kept, mut living) = (NIL, 0);
        let mut at = std::mem::replace(&mut cell.downs, NIL);
        while at != NIL {
            let here = at;
            at = self.next(here);
            if self.get(here).dead {
                self.give_back(here);
                continue;
            }
            living += 1;
            match kept {
                NIL => cell.downs = here,
                before => self.get_mut(before).next = here,
            }
            kept = here;
        }
        if kept != NIL {
            self.get_mut(kept).next = NIL;
        }
        (cell.rare.dead, cell.rare.dead_max) = (0, living);
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
