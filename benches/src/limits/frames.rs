//! The frames of a no-op task on its way, as the real programs send them: `Append` from a client, `DispatchBatch` to a worker,
//! `WorkerBatch` back, `ResultBatch` to the client. One place makes each from the one before it, so that every limit moves the
//! same columns; nothing is decided here.

use scalable_proto::v1;

/// Bytes of a no-op's argument and of its result: a `u32` above 65,535 in the codec's variable length.
const VALUE_BYTES: usize = 5;
/// Tasks of one frame when there are many.
pub const BATCH: u32 = 1024;

/// Elements `first .. first + count` of the group, each with an argument of its own.
pub fn append(first: u32, count: u32) -> v1::Append {
    let mut args = Vec::with_capacity(count as usize * VALUE_BYTES);
    for index in first..first + count {
        args.push(252);
        args.extend_from_slice(&index.to_le_bytes());
    }
    let args_end = ends(count);
    v1::Append { run: 1, group: 0, first, count, args_end, args: args.into(), ..v1::Append::default() }
}

fn ends(count: u32) -> Vec<u32> {
    (1..=count).map(|n| n * VALUE_BYTES as u32).collect()
}

/// What a scheduler makes of it for a worker: rows in a slab, first attempts, one shape, no deadline.
pub fn dispatch(append: v1::Append) -> v1::DispatchBatch {
    let v1::Append { first, count, args_end, args, .. } = append;
    v1::DispatchBatch {
        handle: (first..first + count).map(|index| 1 << 32 | u64::from(index)).collect(),
        // What is the same for all is sent once.
        group: vec![1],
        index: (first..first + count).collect(),
        attempt: vec![1],
        shape: vec![1],
        timeout_ms: vec![0],
        args_end,
        args,
        ..Default::default()
    }
}

/// What a worker answers when each task returned its argument.
pub fn execute(batch: v1::DispatchBatch) -> v1::WorkerBatch {
    let n = batch.handle.len();
    v1::WorkerBatch {
        handle: batch.handle,
        attempt: vec![1; n],
        event: vec![3; n],
        result_end: batch.args_end,
        results: batch.args,
        wall_us: vec![1; n],
        ..v1::WorkerBatch::default()
    }
}

/// What the scheduler tells the client: elements in the order in which they ended.
pub fn results(batch: v1::WorkerBatch) -> v1::ResultBatch {
    let first = batch.handle.first().map_or(0, |handle| *handle as u32);
    v1::ResultBatch {
        run: 1,
        group: 0,
        first,
        count: batch.handle.len() as u32,
        result_end: batch.result_end,
        results: batch.results,
        ..v1::ResultBatch::default()
    }
}

/// Checks that a batch holds what its elements were given, and says how many they are.
pub fn check(batch: &v1::ResultBatch) -> anyhow::Result<u32> {
    let mut begin = 0;
    for (index, end) in (batch.first..).zip(&batch.result_end) {
        let result: &[u8] = batch.results.get(begin..*end as usize).unwrap_or_default();
        anyhow::ensure!(result.len() == VALUE_BYTES && result[1..] == index.to_le_bytes(), "a wrong result of element {index}");
        begin = *end as usize;
    }
    anyhow::ensure!(batch.result_end.len() == batch.count as usize, "results are missing");
    Ok(batch.count)
}

/// One link of a chain, as a worker gets it.
pub fn link(index: u32) -> v1::DispatchBatch {
    dispatch(append(index, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_arrives_as_the_results_of_its_own_elements() {
        for (first, count) in [(0, 1), (70_000, 3), (4096, BATCH)] {
            let back = results(execute(dispatch(append(first, count))));
            assert_eq!((back.first, check(&back).ok()), (first, Some(count)));
        }
    }

    #[test]
    fn a_wrong_or_missing_result_is_noticed() {
        let right = results(execute(dispatch(append(5, 2))));
        let wrong = v1::ResultBatch { first: 6, ..right.clone() };
        let missing = v1::ResultBatch { count: 3, ..right };
        assert!(check(&wrong).is_err());
        assert!(check(&missing).is_err());
    }
}
