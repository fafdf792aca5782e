//! Dispatches for one worker as they gather into the columns of one frame.

use bytes::Bytes;
use scalable_core::ids::SECOND;
use scalable_core::messages::Dispatch;
use scalable_proto::v1;

/// Tasks in one dispatch frame.
const TASKS_MAX: usize = 2048;
/// Bytes of arguments and inline results in one dispatch frame.
const BYTES_MAX: usize = 1 << 20;

/// See the module.
#[derive(Default)]
pub(super) struct Columns {
    batch: v1::DispatchBatch,
    args: Vec<u8>,
    /// Inline results that tasks of the batch read.
    values: Vec<u8>,
    /// The batch has commands, which are told their fence.
    has_commands: bool,
}

impl Columns {
    /// Adds the inline results that the next task reads, one for each input. Nothing when one of them is none, or when they are too
    /// large together: then they travel in frames of their own.
    pub(super) fn push_values<'a>(&mut self, results: impl Iterator<Item = Option<&'a Bytes>>) -> Option<()> {
        let (ends, bytes) = (self.batch.value_end.len(), self.values.len());
        let mut taken = 0;
        for result in results {
            match result {
                Some(result) if taken + result.len() <= BYTES_MAX => {
                    taken += result.len();
                    self.values.extend_from_slice(result);
                    self.batch.value_end.push(self.values.len() as u32);
                }
                _ => {
                    self.batch.value_end.truncate(ends);
                    self.values.truncate(bytes);
                    return None;
                }
            }
        }
        self.batch.values_of_end.resize(self.batch.handle.len(), ends as u32);
        self.batch.values_of_end.push(self.batch.value_end.len() as u32);
        Some(())
    }

    /// Adds a task with its own arguments, after the results it reads.
    pub(super) fn push(&mut self, dispatch: &Dispatch, args: &[u8], is_command: bool) {
        self.has_commands |= is_command;
        let batch = &mut self.batch;
        batch.handle.push(dispatch.handle.to_u64());
        batch.group.push(dispatch.task.group.0);
        batch.index.push(dispatch.task.index);
        batch.attempt.push(dispatch.attempt);
        batch.shape.push(dispatch.shape.0);
        batch.timeout_ms.push(dispatch.timeout.div_ceil(SECOND / 1000));
        batch.fence.push(dispatch.fence);
        if !args.is_empty() || !batch.args_end.is_empty() {
            batch.args_end.resize(batch.handle.len() - 1, self.args.len() as u32);
            self.args.extend_from_slice(args);
            batch.args_end.push(self.args.len() as u32);
        }
    }

    /// True when it is large enough to be sent.
    pub(super) fn is_full(&self) -> bool {
        self.batch.handle.len() >= TASKS_MAX || self.args.len() + self.values.len() >= BYTES_MAX
    }

    /// What has gathered, if anything.
    pub(super) fn take(&mut self) -> Option<v1::DispatchBatch> {
        if self.batch.handle.is_empty() {
            return None;
        }
        let Columns { mut batch, args, values, has_commands } = std::mem::take(self);
        shorten(&mut batch.group);
        shorten(&mut batch.attempt);
        shorten(&mut batch.shape);
        shorten(&mut batch.timeout_ms);
        if !batch.args_end.is_empty() {
            batch.args_end.resize(batch.handle.len(), args.len() as u32);
        }
        if !batch.values_of_end.is_empty() {
            batch.values_of_end.resize(batch.handle.len(), batch.value_end.len() as u32);
        }
        if !has_commands {
            batch.fence.clear();
        }
        (batch.args, batch.values) = (args.into(), values.into());
        Some(batch)
    }
}

/// A column with one value for all tasks is sent as that value.
fn shorten<T: PartialEq>(column: &mut Vec<T>) {
    if let [first, rest @ ..] = column.as_slice()
        && rest.iter().all(|value| value == first)
    {
        column.truncate(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scalable_core::ids::{GroupId, Handle, ShapeId, TaskRef};

    fn dispatch(index: u32) -> Dispatch {
        let task = TaskRef { group: GroupId(7), index };
        Dispatch { handle: Handle { slot: index, generation: 1 }, task, attempt: 1, shape: ShapeId(2), timeout: 0, fence: 9 }
    }

    #[test]
    fn tasks_with_and_without_arguments_and_results_share_a_frame() {
        let mut columns = Columns::default();
        assert!(columns.take().is_none());
        columns.push(&dispatch(0), b"", false);
        let (a, b) = (Bytes::from_static(b"a"), Bytes::from_static(b"bcd"));
        assert!(columns.push_values([Some(&a), Some(&b)].into_iter()).is_some());
        columns.push(&dispatch(1), b"xy", false);
        assert!(columns.push_values([Some(&a), None].into_iter()).is_none(), "one of them is no inline result");
        columns.push(&dispatch(2), b"", false);
        let batch = columns.take().unwrap();
        assert_eq!((batch.args_end, batch.args.as_ref()), (vec![0, 2, 2], &b"xy"[..]));
        assert_eq!((batch.values_of_end, batch.value_end), (vec![0, 2, 2], vec![1, 4]));
        assert_eq!((batch.values.as_ref(), batch.group, batch.fence), (&b"abcd"[..], vec![7], vec![]));
        columns.push(&dispatch(3), b"", true);
        let batch = columns.take().unwrap();
        assert_eq!((batch.fence, batch.args_end.len(), batch.values_of_end.len()), (vec![9], 0, 0), "nothing is left of it");
    }

    #[test]
    fn results_that_are_too_large_together_travel_by_themselves() {
        let mut columns = Columns::default();
        let large = Bytes::from(vec![0; BYTES_MAX / 2 + 1]);
        assert!(columns.push_values([Some(&large)].into_iter()).is_some());
        columns.push(&dispatch(0), b"", false);
        assert!(!columns.is_full() && columns.push_values([Some(&large), Some(&large)].into_iter()).is_none());
        assert!(columns.push_values([Some(&large)].into_iter()).is_some());
        columns.push(&dispatch(1), b"", false);
        assert!(columns.is_full());
    }
}
