//! What a dispatch said of its calls, as the columns it came in: nothing is taken apart before a call is written to its host.

use std::sync::Arc;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use super::inputs::Inputs;
use crate::catalog::Group;

/// Byte strings one after the other: where each ends, and all of them.
#[derive(Debug, Default)]
pub struct Strings {
    ends: Vec<u32>,
    bytes: Bytes,
}

impl Strings {
    /// Nothing when the ends do not fit together or lie outside the bytes.
    pub fn new(ends: Vec<u32>, bytes: Bytes) -> Option<Self> {
        let fit = ends.is_sorted() && ends.last().is_none_or(|end| *end as usize <= bytes.len());
        fit.then_some(Strings { ends, bytes })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// One of them; empty where there is none.
    pub fn get(&self, at: u32) -> &[u8] {
        let at = at as usize;
        let Some(end) = self.ends.get(at) else { return &[] };
        let begin = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[begin as usize..*end as usize]
    }
}

/// Columns of a dispatch, one entry a call.
#[derive(Debug)]
pub struct Payload {
    /// Element of the group.
    pub index: Vec<u32>,
    /// The attempt's number.
    pub attempt: Vec<u32>,
    /// The task's number in its cluster.
    pub task_id: Vec<u64>,
    /// The calls' own arguments; empty when none has any.
    pub args: Strings,
    /// The end of each call's inline results in `values`; empty when none reads any.
    pub values_of_end: Vec<u32>,
    /// Inline results that calls read, one an input.
    pub values: Strings,
    /// From which element on which group.
    pub groups: Vec<(u32, u32, Arc<Group>)>,
    /// Of calls that read anything but inline results.
    pub inputs: FxHashMap<u32, Inputs>,
    /// Tells the batch from a later one of the same number.
    pub serial: u64,
}

impl Payload {
    /// Checks that the columns of `count` calls fit together.
    ///
    /// # Errors
    /// One sentence: they do not.
    pub fn check(&self, count: usize) -> Result<(), String> {
        let args_fit = self.args.is_empty() || self.args.len() == count;
        let ends = &self.values_of_end;
        let values_fit = (ends.is_empty() || ends.len() == count)
            && ends.is_sorted()
            && ends.last().map_or(0, |end| *end as usize) == self.values.len();
        match args_fit && values_fit {
            true => Ok(()),
            false => Err("the arguments of a dispatch do not fit its columns".to_owned()),
        }
    }

    /// Number and group of a call.
    pub fn group(&self, at: u32) -> (u32, &Arc<Group>) {
        let after = self.groups.partition_point(|(first, ..)| *first <= at);
        let (_, number, group) = &self.groups[after.saturating_sub(1)];
        (*number, group)
    }

    /// Which of `values` a call reads.
    pub fn values_of(&self, at: u32) -> std::ops::Range<u32> {
        let at = at as usize;
        let Some(end) = self.values_of_end.get(at) else { return 0..0 };
        let begin = at.checked_sub(1).map_or(0, |before| self.values_of_end[before]);
        begin..*end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_what_lies_between_ends() {
        let strings = Strings::new(vec![1, 1, 3], Bytes::from_static(b"abc")).unwrap();
        let all: Vec<&[u8]> = (0..4).map(|at| strings.get(at)).collect();
        assert_eq!(all, [&b"a"[..], b"", b"bc", b""]);
        assert!(Strings::new(vec![2, 1], Bytes::from_static(b"abc")).is_none(), "ends go back");
        assert!(Strings::new(vec![4], Bytes::from_static(b"abc")).is_none(), "an end lies outside");
    }

    #[test]
    fn columns_that_do_not_fit_are_refused() {
        let payload = |args: Vec<u32>, values_of_end: Vec<u32>, values: Vec<u32>| Payload {
            index: vec![0, 1],
            attempt: vec![1, 1],
            task_id: vec![0, 1],
            args: Strings::new(args, Bytes::from_static(b"abcd")).unwrap(),
            values_of_end,
            values: Strings::new(values, Bytes::from_static(b"abcd")).unwrap(),
            groups: Vec::new(),
            inputs: FxHashMap::default(),
            serial: 0,
        };
        let good = payload(vec![1, 2], vec![0, 2], vec![1, 4]);
        assert_eq!(good.check(2), Ok(()));
        assert_eq!((good.values_of(0), good.values_of(1)), (0..0, 0..2));
        assert!(payload(vec![1], vec![], vec![]).check(2).is_err(), "arguments of one call are missing");
        assert!(payload(vec![], vec![1, 2], vec![1]).check(2).is_err(), "a result is missing");
        assert!(payload(vec![], vec![], vec![1]).check(2).is_err(), "a result is nobody's");
        assert!(payload(vec![], vec![2, 1], vec![1]).check(2).is_err(), "ends go back");
    }
}
