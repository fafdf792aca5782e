//! What the machine never sees of a growing group: its elements' own arguments and named inputs as they came, and the results
//! that are kept because somebody may still want them. Both are slices of the frames they came in; a frame is let go when none of
//! its elements needs it any more.

use std::collections::BTreeMap;

use bytes::Bytes;
use scalable_core::ids::TaskRef;

/// Elements in one block of result slots.
const BLOCK: u32 = 4096;

/// One [`scalable_proto::v1::Append`] as it is kept.
pub(super) struct Chunk {
    first: u32,
    count: u32,
    /// Elements that still need it.
    needed: u32,
    args_end: Vec<u32>,
    args: Bytes,
    inputs: Vec<Sources>,
}

/// Where one input of a chunk's elements comes from.
pub(super) struct Sources {
    /// Ordinal in the template.
    pub(super) input: u32,
    /// One an element, or a single one that holds for all.
    pub(super) tasks: Vec<TaskRef>,
}

/// One element of a chunk.
#[derive(Clone, Copy)]
pub(super) struct Element<'a> {
    chunk: &'a Chunk,
    at: usize,
}

impl<'a> Element<'a> {
    /// Its own arguments.
    pub(super) fn args(&self) -> &'a [u8] {
        let Some(end) = self.chunk.args_end.get(self.at) else { return &[] };
        let start = if self.at == 0 { 0 } else { self.chunk.args_end[self.at - 1] };
        self.chunk.args.get(start as usize..*end as usize).unwrap_or_default()
    }

    /// The task that an input of it is the result of.
    pub(super) fn source(&self, input: u32) -> Option<TaskRef> {
        let inputs = &self.chunk.inputs;
        // Nearly always every input is said for each element: the n-th is input n.
        let nth = inputs.get(input as usize).filter(|sources| sources.input == input);
        let sources = nth.or_else(|| inputs.iter().find(|sources| sources.input == input))?;
        match sources.tasks.as_slice() {
            [one] => Some(*one),
            each => each.get(self.at).copied(),
        }
    }
}

/// Arguments and results of one growing group.
#[derive(Default)]
pub(super) struct Payload {
    chunks: BTreeMap<u32, Chunk>,
    results: Results,
}

impl Payload {
    /// Keeps what was appended. `args_end` is empty or has one end an element, increasing and within `args`.
    pub(super) fn append(&mut self, first: u32, count: u32, args_end: Vec<u32>, args: Bytes, inputs: Vec<Sources>) {
        if !(args_end.is_empty() && inputs.is_empty()) {
            self.chunks.insert(first, Chunk { first, count, needed: count, args_end, args, inputs });
        }
    }

    /// What was appended with an element, if anything of it is kept.
    pub(super) fn element(&self, index: u32) -> Option<Element<'_>> {
        let (_, chunk) = self.chunks.range(..=index).next_back()?;
        let at = (index - chunk.first) as usize;
        (at < chunk.count as usize).then_some(Element { chunk, at })
    }

    /// Keeps an inline result.
    pub(super) fn keep(&mut self, index: u32, result: Bytes) {
        self.results.keep(index, result);
    }

    /// An inline result that is kept.
    pub(super) fn result(&self, index: u32) -> Option<&Bytes> {
        self.results.get(index)
    }

    /// Nobody needs anything of these elements any more.
    pub(super) fn release(&mut self, first: u32, count: u32) {
        self.results.release(first, count);
        let end = first.saturating_add(count);
        let mut at = first;
        while at < end {
            let Some((&key, chunk)) = self.chunks.range_mut(..=at).next_back() else {
                let Some((&next, _)) = self.chunks.range(at..end).next() else { return };
                at = next;
                continue;
            };
            let chunk_end = chunk.first + chunk.count;
            if chunk_end <= at {
                let Some((&next, _)) = self.chunks.range(at..end).next() else { return };
                at = next;
                continue;
            }
            let until = chunk_end.min(end);
            chunk.needed = chunk.needed.saturating_sub(until - at);
            if chunk.needed == 0 {
                self.chunks.remove(&key);
            }
            at = until;
        }
    }

    /// True when nothing is kept.
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.results.blocks.iter().all(|block| block.slots.is_empty())
    }
}

/// Inline results by index, in blocks that are made when their first result comes and dropped with their last.
#[derive(Default)]
struct Results {
    /// By number; one without slots is not there.
    blocks: Vec<Block>,
}

#[derive(Default)]
struct Block {
    live: u32,
    slots: Box<[Option<Bytes>]>,
}

impl Results {
    fn keep(&mut self, index: u32, result: Bytes) {
        let number = (index / BLOCK) as usize;
        if self.blocks.len() <= number {
            self.blocks.resize_with(number + 1, Block::default);
        }
        let block = &mut self.blocks[number];
        let at = (index % BLOCK) as usize;
        if block.slots.len() <= at {
            // Small groups stay small: the block grows with its elements until it is whole.
            let length = (at + 1).next_power_of_two().max(4);
            let mut slots = std::mem::take(&mut block.slots).into_vec();
            slots.resize(length, None);
            block.slots = slots.into();
        }
        let slot = &mut block.slots[at];
        block.live += u32::from(slot.is_none());
        *slot = Some(result);
    }

    fn get(&self, index: u32) -> Option<&Bytes> {
        self.blocks.get((index / BLOCK) as usize)?.slots.get((index % BLOCK) as usize)?.as_ref()
    }

    fn release(&mut self, first: u32, count: u32) {
        // Nothing is kept beyond the last block.
        let end = first.saturating_add(count).min((self.blocks.len() as u32).saturating_mul(BLOCK));
        for number in first / BLOCK..end.div_ceil(BLOCK) {
            let Some(block) = self.blocks.get_mut(number as usize) else { return };
            let start = number * BLOCK;
            let from = first.max(start) - start;
            let until = (end - start).min(block.slots.len() as u32);
            for slot in block.slots.get_mut(from as usize..until as usize).unwrap_or_default() {
                block.live -= u32::from(slot.take().is_some());
            }
            if block.live == 0 {
                *block = Block::default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scalable_core::ids::GroupId;

    fn args(payload: &Payload, index: u32) -> &[u8] {
        payload.element(index).map_or(&[][..], |element| element.args())
    }

    fn appended() -> Payload {
        let mut payload = Payload::default();
        payload.append(0, 3, vec![1, 1, 4], Bytes::from_static(b"abcd"), Vec::new());
        payload.append(3, 2, Vec::new(), Bytes::new(), Vec::new());
        let tasks = vec![TaskRef { group: GroupId(7), index: 1 }, TaskRef { group: GroupId(7), index: 0 }];
        let shared = vec![TaskRef { group: GroupId(8), index: 5 }];
        payload.append(
            5,
            2,
            vec![2, 2],
            Bytes::from_static(b"xy"),
            vec![Sources { input: 0, tasks }, Sources { input: 1, tasks: shared }],
        );
        payload
    }

    #[test]
    fn arguments_and_sources_are_found_by_element() {
        let payload = appended();
        let args: Vec<&[u8]> = (0..8).map(|index| args(&payload, index)).collect();
        assert_eq!(args, [&b"a"[..], b"", b"bcd", b"", b"", b"xy", b"", b""]);
        let source = |index, input| payload.element(index).and_then(|element| element.source(input));
        assert_eq!(source(6, 0).map(|task| task.index), Some(0));
        assert_eq!(source(5, 1), source(6, 1));
        assert_eq!(source(6, 2), None);
        assert_eq!(source(4, 0), None);
    }

    #[test]
    fn nothing_is_left_when_everything_is_released_in_any_order() {
        let mut payload = appended();
        for index in [0, 1, 4, 6, 4095, 4096, 9000] {
            payload.keep(index, Bytes::from_static(b"result"));
        }
        payload.release(1, 2);
        assert_eq!(args(&payload, 0), b"a", "a chunk stays as long as one element needs it");
        assert_eq!(payload.result(1), None);
        assert!(payload.result(0).is_some());
        payload.release(5, 2);
        assert_eq!(args(&payload, 5), b"");
        payload.release(0, 1);
        payload.release(3, 2);
        payload.release(7, 10_000);
        assert!(payload.is_empty());
    }
}
