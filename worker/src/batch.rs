//! What happened since the last batch, in order, as columns. A batch is cut where it would grow too large for one frame.

use std::collections::VecDeque;

use scalable_core::ids::Handle;
use scalable_proto::v1::{AttemptReport, WorkerBatch};

/// Events in one batch.
const EVENTS_MAX: usize = 8192;
/// About how many bytes one batch may have.
const BYTES_MAX: usize = 1 << 20;

/// Bytes that wait to be sent from which on functions wait. What is with hosts then still comes on top.
const BACKLOG_BYTES: usize = 64 << 20;

/// Kinds of the column `event`.
const STARTED: u32 = 0;
const FINISHED: u32 = 1;
const SUCCEEDED: u32 = 2;
const VALUE: u32 = 3;
const OBJECT: u32 = 4;

/// Batches that are not sent: the last one grows. Bounded by the attempts that can be on a worker, and by [`Batch::is_long`].
#[derive(Debug, Default)]
pub struct Batch {
    batches: VecDeque<Growing>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Growing {
    batch: WorkerBatch,
    values: Vec<u8>,
    size: usize,
}

impl Batch {
    /// True when there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// True when so much is not sent that nothing which adds to it should be started: the scheduler does not keep up.
    pub fn is_long(&self) -> bool {
        self.bytes >= BACKLOG_BYTES
    }

    /// The oldest batch, and about how many bytes it has.
    pub fn take(&mut self) -> (WorkerBatch, usize) {
        let Growing { mut batch, values, size } = self.batches.pop_front().unwrap_or_default();
        self.bytes -= size;
        batch.results = values.into();
        (batch, size)
    }

    /// Nobody wants to hear it any more.
    pub fn clear(&mut self) {
        self.batches.clear();
        self.bytes = 0;
    }

    fn row(&mut self, handle: Handle, attempt: u32, event: u32, bytes: usize) -> &mut Growing {
        let full = |one: &Growing| one.batch.event.len() >= EVENTS_MAX || one.size + bytes > BYTES_MAX;
        if self.batches.back().is_none_or(full) {
            self.batches.push_back(Growing::default());
        }
        let Some(one) = self.batches.back_mut() else { unreachable!("one was just pushed") };
        one.size += bytes;
        self.bytes += bytes;
        one.batch.handle.push(handle.to_u64());
        one.batch.attempt.push(attempt);
        one.batch.event.push(event);
        one
    }

    /// It executes.
    pub fn started(&mut self, handle: Handle, attempt: u32) {
        self.row(handle, attempt, STARTED, 16);
    }

    /// It succeeded and has nothing to tell but figures.
    pub fn brief(&mut self, handle: Handle, attempt: u32, figures: [u64; 5]) {
        self.row(handle, attempt, SUCCEEDED, 48).batch.brief.extend(figures);
    }

    /// A function returned this.
    pub fn value(&mut self, handle: Handle, attempt: u32, wall_us: u32, value: &[u8]) {
        let batch = self.row(handle, attempt, VALUE, value.len() + 20);
        // As the wire wants it: a column of ends, and one arena.
        batch.values.extend_from_slice(value);
        let end = batch.values.len() as u32;
        batch.batch.result_end.push(end);
        batch.batch.wall_us.push(wall_us);
    }

    /// A function returned an object of so many bytes, which is kept here.
    pub fn object(&mut self, handle: Handle, attempt: u32, wall_us: u32, bytes: u64) {
        let batch = self.row(handle, attempt, OBJECT, 24);
        batch.batch.object_size.push(bytes);
        batch.batch.wall_us.push(wall_us);
    }

    /// An object of another worker was fetched and a copy is here for the time being.
    pub fn copied(&mut self, group: u32, index: u32) {
        let batch = self.pair();
        batch.copied_group.push(group);
        batch.copied_index.push(index);
    }

    /// An object is kept here, as the scheduler wanted it.
    pub fn kept(&mut self, group: u32, index: u32) {
        let batch = self.pair();
        batch.kept_group.push(group);
        batch.kept_index.push(index);
    }

    /// An object that was to be kept here could not be had.
    pub fn not_kept(&mut self, group: u32, index: u32) {
        let batch = self.pair();
        batch.not_kept_group.push(group);
        batch.not_kept_index.push(index);
    }

    /// Where two more numbers go.
    fn pair(&mut self) -> &mut WorkerBatch {
        let full = |one: &Growing| one.size + 10 > BYTES_MAX;
        if self.batches.back().is_none_or(full) {
            self.batches.push_back(Growing::default());
        }
        let Some(one) = self.batches.back_mut() else { unreachable!("one was just pushed") };
        one.size += 10;
        self.bytes += 10;
        &mut one.batch
    }

    /// It is over.
    pub fn report(&mut self, handle: Handle, attempt: u32, report: AttemptReport) {
        let bytes = prost::Message::encoded_len(&report);
        self.row(handle, attempt, FINISHED, bytes + 24).batch.reports.push(report);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_fit_together_and_large_batches_are_cut() {
        let mut batch = Batch::default();
        let handle = Handle { slot: 1, generation: 1 };
        batch.started(handle, 1);
        batch.brief(handle, 1, [1, 2, 3, 4, 5]);
        batch.value(handle, 1, 7, b"abc");
        batch.object(handle, 1, 8, 1 << 20);
        batch.value(handle, 1, 9, b"");
        let report = AttemptReport { message: "x".repeat(BYTES_MAX / 2), ..AttemptReport::default() };
        for _ in 0..3 {
            batch.report(handle, 1, report.clone());
        }
        let mut events = Vec::new();
        while !batch.is_empty() {
            let (one, _) = batch.take();
            assert_eq!((one.handle.len(), one.attempt.len()), (one.event.len(), one.event.len()));
            assert_eq!(one.reports.len(), one.event.iter().filter(|e| **e == FINISHED).count());
            assert_eq!(one.brief.len(), 5 * one.event.iter().filter(|e| **e == SUCCEEDED).count());
            if one.event.contains(&VALUE) {
                assert_eq!((one.result_end, one.results), (vec![3, 3], bytes::Bytes::from_static(b"abc")));
                assert_eq!((one.object_size, one.wall_us), (vec![1 << 20], vec![7, 8, 9]));
            }
            events.push(one.event);
        }
        assert!(!batch.is_long() && batch.bytes == 0);
        batch.value(handle, 1, 0, b"abc");
        assert!(!batch.is_long() && batch.bytes == 23);
        batch.bytes += BACKLOG_BYTES;
        assert!(batch.is_long());
        batch.clear();
        assert!(!batch.is_long());
        assert_eq!(events, [vec![STARTED, SUCCEEDED, VALUE, OBJECT, VALUE, FINISHED], vec![FINISHED], vec![FINISHED]]);
    }
}
