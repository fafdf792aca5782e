//! What a session has yet to tell its scheduler. Frames of the data stream in order, and what travels on control when the frames it
//! speaks about have arrived.
//!
//! An append is sent at once when nothing is under way; else it waits here and grows, until the transport takes it. There is no
//! timer. A group has at most one append that grows; one that names results of a later one is begun anew behind that, so that the
//! scheduler never reads of a task it does not know.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;
use scalable_proto::v1;

use crate::arguments::{Kind, Shape, Source};

/// Bytes that wait or are not acknowledged, at most; a submit waits for room.
pub(crate) const UNACKNOWLEDGED_BYTES_MAX: usize = 32 << 20;
/// An append is not grown beyond this.
pub(crate) const APPEND_BYTES_MAX: usize = 1 << 20;
/// Nor beyond this.
pub(crate) const APPEND_ELEMENTS_MAX: u32 = 1 << 16;
/// What an element costs beside its arguments.
const ELEMENT_BYTES: usize = 4;
/// What a source costs.
const SOURCE_BYTES: usize = 8;
/// Words that wait for more of their kind, and ranges in them, at most.
const WORDS_WAIT_MAX: usize = 64;
const RANGES_WAIT_MAX: usize = 1024;
/// What a frame costs beside what is in it.
const FRAME_BYTES: usize = 64;

/// Sources of the elements' inputs: (group, index) each.
#[derive(Debug, Default)]
struct Column {
    input: u32,
    group: Vec<u32>,
    index: Vec<u32>,
}

/// Elements of one group that travel together.
#[derive(Debug, Default)]
pub(crate) struct Elements {
    pub(crate) count: u32,
    pub(crate) args: Vec<u8>,
    pub(crate) args_end: Vec<u32>,
    inputs: Vec<Column>,
}

impl Elements {
    /// Without elements, for calls of this shape. `fixed` has a bit for each parameter whose source is the group's.
    pub(crate) fn new(shape: Shape, fixed: u32) -> Elements {
        let inputs = inputs_of(shape).enumerate().filter(|(_, parameter)| fixed & (1 << parameter) == 0);
        let column = |(input, _)| Column { input: input as u32, ..Column::default() };
        Elements { inputs: inputs.map(column).collect(), ..Elements::default() }
    }

    /// One more element: its values were appended to `args` already.
    #[inline]
    pub(crate) fn push(&mut self, sources: &[Source]) {
        // Appends are bounded far below 4 GiB.
        self.args_end.push(self.args.len() as u32);
        self.count += 1;
        for (column, source) in self.inputs.iter_mut().zip(sources) {
            column.group.push(source.group);
            column.index.push(source.index);
        }
    }

    /// What it costs to hold and to send.
    pub(crate) fn bytes(&self) -> usize {
        self.args.len() + self.count as usize * (ELEMENT_BYTES + self.inputs.len() * SOURCE_BYTES)
    }

    /// True when it is to be sent as it is.
    pub(crate) fn is_full(&self) -> bool {
        self.count >= APPEND_ELEMENTS_MAX || self.bytes() >= APPEND_BYTES_MAX
    }
}

/// The parameters that are inputs, in order.
pub(crate) fn inputs_of(shape: Shape) -> impl Iterator<Item = usize> {
    (0..16).filter(move |nth| shape.kind(*nth) != Kind::Value)
}

/// A frame that waits.
#[derive(Debug)]
enum Entry {
    Group { group: u32, spec: Box<v1::GroupSpec> },
    Append { group: u32, first: u32, elements: Elements, last: bool },
    Close,
}

/// What the session knows of a group of its own.
#[derive(Debug, Default)]
struct Sent {
    /// Elements appended.
    length: u32,
    /// Number of its latest append.
    latest: Option<u64>,
    /// That one may grow while it waits.
    grows: bool,
    /// Nothing follows.
    ended: bool,
}

/// What travels on control once everything that was queued before it was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) group: u32,
    pub(crate) first: u32,
    pub(crate) count: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Word {
    Release(Vec<Range>),
    Cancel(Range),
    Locate { group: u32, index: u32 },
}

/// Why an element was not taken: wait for room, and try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// See the head of this file.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Set once the run is accepted.
    run: u32,
    entries: VecDeque<Entry>,
    /// Number of the first entry.
    first: u64,
    /// Bytes of the entries and of what is not acknowledged.
    bytes: usize,
    /// Bytes of frames that were taken, oldest first.
    under_way: VecDeque<usize>,
    /// Frames that were acknowledged.
    acknowledged: u64,
    words: VecDeque<(u64, Word)>,
    /// Groups that somebody still has to do with.
    groups: FxHashMap<u32, Sent>,
    groups_added: u32,
    closed: bool,
    /// The connection found nothing to do and sleeps.
    pub(crate) idle: bool,
}

impl Outbox {
    /// The run's number in frames.
    pub(crate) fn opened(&mut self, run: u32) {
        self.run = run;
    }

    /// True when the connection has something to take.
    pub(crate) fn has_next(&self) -> bool {
        !self.entries.is_empty()
    }

    /// Queues a group and returns its ordinal.
    pub(crate) fn add_group(&mut self, spec: Box<v1::GroupSpec>) -> u32 {
        // The scheduler refuses more than it can hold at a time, long before the numbers are used up.
        let group = self.groups_added;
        self.groups_added += 1;
        self.groups.insert(group, Sent { ended: !spec.growing, ..Sent::default() });
        self.bytes += FRAME_BYTES;
        self.entries.push_back(Entry::Group { group, spec });
        group
    }

    /// Elements of a group so far.
    pub(crate) fn length(&self, group: u32) -> u32 {
        self.groups.get(&group).map_or(0, |sent| sent.length)
    }

    /// Appends one element to a growing group and returns its index. `values` are its own arguments, `sources` its inputs.
    pub(crate) fn append_one(&mut self, group: u32, shape: Shape, values: &[u8], sources: &[Source]) -> Result<u32, Full> {
        let cost = values.len() + ELEMENT_BYTES + sources.len() * SOURCE_BYTES;
        if self.bytes > 0 && self.bytes + cost > UNACKNOWLEDGED_BYTES_MAX {
            return Err(Full);
        }
        let behind = sources.iter().filter_map(|source| self.waits(source.group)).max().unwrap_or(0);
        let (next, first) = (self.first + self.entries.len() as u64, self.first);
        let sent = self.groups.entry(group).or_default();
        let index = sent.length;
        sent.length += 1;
        self.bytes += cost;
        if sent.grows
            && let Some(at) = sent.latest.filter(|entry| *entry >= behind.max(first)).map(|entry| (entry - first) as usize)
            && let Some(Entry::Append { elements, .. }) = self.entries.get_mut(at)
            && !elements.is_full()
        {
            elements.args.extend_from_slice(values);
            elements.push(sources);
            return Ok(index);
        }
        let mut elements = Elements::new(shape, 0);
        elements.args.extend_from_slice(values);
        elements.push(sources);
        self.bytes += FRAME_BYTES;
        (sent.latest, sent.grows) = (Some(next), true);
        self.entries.push_back(Entry::Append { group, first: index, elements, last: false });
        Ok(index)
    }

    /// Appends many elements at once; gives them back when there is no room.
    pub(crate) fn append(&mut self, group: u32, elements: Elements, last: bool) -> Result<u32, Elements> {
        let cost = elements.bytes() + FRAME_BYTES;
        if self.bytes > 0 && self.bytes + cost > UNACKNOWLEDGED_BYTES_MAX {
            return Err(elements);
        }
        let next = self.first + self.entries.len() as u64;
        let sent = self.groups.entry(group).or_default();
        let first = sent.length;
        sent.length += elements.count;
        (sent.latest, sent.grows) = (Some(next), false);
        sent.ended |= last;
        self.bytes += cost;
        self.entries.push_back(Entry::Append { group, first, elements, last });
        Ok(first)
    }

    /// Number of the group's latest append, while it waits.
    fn waits(&self, group: u32) -> Option<u64> {
        self.groups.get(&group)?.latest.filter(|entry| *entry >= self.first)
    }

    /// Nobody has to do with a group any more: nothing follows in it, and nothing will read its results.
    pub(crate) fn forget(&mut self, group: u32) {
        let Some(sent) = self.groups.remove(&group) else { return };
        if !(sent.ended || self.closed) {
            self.bytes += FRAME_BYTES;
            self.entries.push_back(Entry::Append { group, first: sent.length, elements: Elements::default(), last: true });
        }
        if sent.length == 0 {
            // It has no result to let go of: the group itself is.
            self.release(Range { group, first: 0, count: 1 });
        }
    }

    /// Nothing follows: the run ends when its tasks are over.
    pub(crate) fn close(&mut self) {
        if !std::mem::replace(&mut self.closed, true) {
            self.bytes += FRAME_BYTES;
            self.entries.push_back(Entry::Close);
        }
    }

    /// Takes the next frame for the data stream.
    pub(crate) fn take(&mut self) -> Option<v1::client_data::Body> {
        use v1::client_data::Body;
        let run = self.run;
        let entry = self.entries.pop_front()?;
        self.first += 1;
        let (bytes, body) = match entry {
            Entry::Group { group, spec } => (FRAME_BYTES, Body::AddGroup(v1::AddGroup { run, group, spec: Some(*spec) })),
            Entry::Close => (FRAME_BYTES, Body::CloseRun(v1::CloseRun { run })),
            Entry::Append { group, first, elements, last } => {
                let bytes = elements.bytes() + FRAME_BYTES;
                let input = |column: Column| v1::ElementInput { input: column.input, group: column.group, index: column.index };
                let append = v1::Append {
                    run,
                    group,
                    first,
                    count: elements.count,
                    args_end: if elements.args.is_empty() { Vec::new() } else { elements.args_end },
                    args: elements.args.into(),
                    inputs: elements.inputs.into_iter().map(input).collect(),
                    last,
                    ..Default::default()
                };
                (bytes, Body::Append(append))
            }
        };
        self.under_way.push_back(bytes);
        Some(body)
    }

    /// One more frame was acknowledged.
    pub(crate) fn acknowledged(&mut self) {
        if let Some(bytes) = self.under_way.pop_front() {
            self.bytes -= bytes;
            self.acknowledged += 1;
        }
    }

    /// Queues words that may not overtake what is queued now.
    fn word(&mut self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// These results are needed no more.
    pub(crate) fn release(&mut self, range: Range) {
        let after = self.word();
        if let Some((number, Word::Release(ranges))) = self.words.back_mut()
            && *number == after
        {
            match ranges.last_mut() {
                Some(last) if last.group == range.group && last.first + last.count == range.first => last.count += range.count,
                _ => ranges.push(range),
            }
            return;
        }
        self.words.push_back((after, Word::Release(vec![range])));
    }

    /// These tasks are to end.
    pub(crate) fn cancel(&mut self, range: Range) {
        let after = self.word();
        self.words.push_back((after, Word::Cancel(range)));
    }

    /// A result could be had from none of its holders.
    pub(crate) fn locate(&mut self, group: u32, index: u32) {
        let after = self.word();
        self.words.push_back((after, Word::Locate { group, index }));
    }

    /// True when [`Outbox::take_word`] has something that is not to wait for more: a cancel or a question, or much that was let go of.
    pub(crate) fn has_urgent_word(&self) -> bool {
        let ready = self.words.iter().take(WORDS_WAIT_MAX).take_while(|(after, _)| *after <= self.acknowledged);
        let mut ranges = 0;
        for (_, word) in ready {
            match word {
                Word::Cancel(_) | Word::Locate { .. } => return true,
                Word::Release(some) => ranges += some.len(),
            }
        }
        ranges >= RANGES_WAIT_MAX || self.has_word() && self.words.len() >= WORDS_WAIT_MAX
    }

    /// True when [`Outbox::take_word`] has something.
    pub(crate) fn has_word(&self) -> bool {
        self.words.front().is_some_and(|(after, _)| *after <= self.acknowledged)
    }

    /// Takes the next frame for the control stream.
    pub(crate) fn take_word(&mut self) -> Option<v1::client_control::Body> {
        use v1::client_control::Body;
        if !self.has_word() {
            return None;
        }
        let run = self.run;
        let (_, word) = self.words.pop_front()?;
        Some(match word {
            Word::Cancel(Range { group, first, count }) => Body::Cancel(v1::CancelElements { run, group, first, count }),
            Word::Locate { group, index } => Body::Locate(v1::LocateResult { run, group, index }),
            Word::Release(mut ranges) => {
                // What was released under way has been acknowledged meanwhile: one frame for all.
                while self.has_word()
                    && let Some((_, Word::Release(_))) = self.words.front()
                    && let Some((_, Word::Release(more))) = self.words.pop_front()
                {
                    ranges.extend(more);
                }
                let mut release = v1::ReleaseResults { run, ..Default::default() };
                for Range { group, first, count } in ranges {
                    release.group.push(group);
                    release.first.push(first);
                    release.count.push(count);
                }
                Body::Release(release)
            }
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use v1::client_data::Body;

    fn source(group: u32, index: u32) -> Source {
        Source { session: 0, group, index }
    }

    fn appends(outbox: &mut Outbox) -> Vec<(u32, u32, u32)> {
        let mut seen = Vec::new();
        while let Some(body) = outbox.take() {
            if let Body::Append(append) = body {
                seen.push((append.group, append.first, append.count));
            }
        }
        seen
    }

    #[test]
    fn what_waits_grows_and_what_was_taken_does_not() {
        let mut outbox = Outbox::default();
        let group = outbox.add_group(Box::default());
        for expected in 0..3 {
            assert_eq!(outbox.append_one(group, Shape(0), b"xy", &[]), Ok(expected));
        }
        assert!(matches!(outbox.take(), Some(Body::AddGroup(_))));
        let Some(Body::Append(append)) = outbox.take() else { panic!("an append") };
        assert_eq!((append.first, append.count, append.args_end.as_slice()), (0, 3, [2, 4, 6].as_slice()));
        assert_eq!(append.args.as_ref(), b"xyxyxy");
        assert_eq!(outbox.append_one(group, Shape(0), b"", &[]), Ok(3));
        let Some(Body::Append(append)) = outbox.take() else { panic!("an append") };
        assert_eq!((append.first, append.count, append.args_end.len()), (3, 1, 0), "no values, no column");
    }

    #[test]
    fn an_element_does_not_join_an_append_that_lies_before_the_array_it_reads() {
        let one = Shape(0).with(0, Kind::Handle);
        let mut outbox = Outbox::default();
        let (array, f) = (outbox.add_group(Box::default()), outbox.add_group(Box::default()));
        outbox.append_one(f, one, b"", &[source(array, 0)]).unwrap();
        let mut elements = Elements::new(Shape(0), 0);
        elements.push(&[]);
        outbox.append(array, elements, false).unwrap();
        outbox.append_one(f, one, b"", &[source(array, 0)]).unwrap();
        assert_eq!(appends(&mut outbox), [(f, 0, 1), (array, 0, 1), (f, 1, 1)]);
    }

    #[test]
    fn a_group_that_nobody_has_to_do_with_is_ended_and_let_go_of_once() {
        let growing = || Box::new(v1::GroupSpec { growing: true, ..v1::GroupSpec::default() });
        let mut outbox = Outbox::default();
        let (ended, open, empty) = (outbox.add_group(growing()), outbox.add_group(growing()), outbox.add_group(growing()));
        let mut elements = Elements::new(Shape(0), 0);
        elements.push(&[]);
        outbox.append(ended, elements, true).unwrap();
        outbox.append_one(open, Shape(0), b"", &[]).unwrap();
        [ended, open, empty, empty].into_iter().for_each(|group| outbox.forget(group));
        let mut ends = Vec::new();
        while let Some(body) = outbox.take() {
            if let Body::Append(append) = body {
                ends.push((append.group, append.first, append.count, append.last));
            }
        }
        assert_eq!(ends, [(ended, 0, 1, true), (open, 0, 1, false), (open, 1, 0, true), (empty, 0, 0, true)]);
        for _ in 0..7 {
            outbox.acknowledged();
        }
        let Some(v1::client_control::Body::Release(release)) = outbox.take_word() else { panic!("a release") };
        assert_eq!((release.group, release.first, release.count), (vec![empty], vec![0], vec![1]), "others let go of elements");
        assert_eq!(outbox.add_group(growing()), 3, "numbers are not used again");
        outbox.close();
        outbox.forget(3);
        assert_eq!(outbox.take().map(|body| matches!(body, Body::AddGroup(_))), Some(true));
        assert!(matches!(outbox.take(), Some(Body::CloseRun(_))));
        assert!(outbox.take().is_none(), "the end of the run is the end of its groups");
    }

    #[test]
    fn an_element_never_comes_before_what_it_reads() {
        let one = Shape(0).with(0, Kind::Handle);
        let mut outbox = Outbox::default();
        let (f, g, h) = (outbox.add_group(Box::default()), outbox.add_group(Box::default()), outbox.add_group(Box::default()));
        outbox.append_one(g, Shape(0), b"", &[]).unwrap();
        outbox.append_one(f, Shape(0), b"", &[]).unwrap();
        outbox.append_one(h, one, b"", &[source(g, 0)]).unwrap();
        outbox.append_one(h, one, b"", &[source(f, 0)]).unwrap();
        outbox.append_one(f, Shape(0), b"", &[]).unwrap();
        // The new element of f has joined f's append, which lies before h's: h's may go on growing.
        outbox.append_one(h, one, b"", &[source(f, 1)]).unwrap();
        // g's new element reads nothing and joins too. One that reads h's cannot.
        outbox.append_one(g, one, b"", &[source(h, 2)]).unwrap();
        assert_eq!(appends(&mut outbox), [(g, 0, 1), (f, 0, 2), (h, 0, 3), (g, 1, 1)]);
    }

    #[test]
    fn bytes_are_bounded_until_they_are_acknowledged() {
        let mut outbox = Outbox::default();
        let group = outbox.add_group(Box::default());
        let value = vec![0; 1 << 20];
        let mut taken = 0;
        while outbox.append_one(group, Shape(0), &value, &[]).is_ok() {
            taken += 1;
        }
        assert_eq!(taken, 31);
        while outbox.take().is_some() {}
        assert_eq!(outbox.append_one(group, Shape(0), &value, &[]), Err(Full), "sent is not acknowledged");
        outbox.acknowledged();
        outbox.acknowledged();
        assert_eq!(outbox.append_one(group, Shape(0), &value, &[]), Ok(31));
        while !outbox.under_way.is_empty() {
            outbox.acknowledged();
        }
        while outbox.take().is_some() {
            outbox.acknowledged();
        }
        assert_eq!(outbox.bytes, 0, "everything that was counted was given back");
    }

    #[test]
    fn a_release_waits_for_what_was_queued_before_it() {
        let mut outbox = Outbox::default();
        let group = outbox.add_group(Box::default());
        outbox.append_one(group, Shape(0), b"", &[]).unwrap();
        outbox.release(Range { group, first: 0, count: 1 });
        outbox.release(Range { group, first: 1, count: 1 });
        assert_eq!(outbox.take_word(), None);
        while outbox.take().is_some() {}
        outbox.acknowledged();
        assert_eq!(outbox.take_word(), None, "the append is still under way");
        outbox.acknowledged();
        let Some(v1::client_control::Body::Release(release)) = outbox.take_word() else { panic!("a release") };
        assert_eq!((release.first, release.count), (vec![0], vec![2]), "ranges are joined");
        outbox.cancel(Range { group, first: 0, count: 2 });
        assert!(matches!(outbox.take_word(), Some(v1::client_control::Body::Cancel(_))), "nothing is under way");
    }
}
