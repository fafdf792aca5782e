//! The work of the soak.

use std::sync::atomic::Ordering;

use anyhow::{Result, ensure};
use scalable::{Isolation, Session};

use super::Plan;
use crate::ours::data::Block;
use crate::ours::functions::noop;

/// No-ops of one array, and objects that are there at a time.
const ARRAY: u64 = if cfg!(debug_assertions) { 10_000 } else { 1_000_000 };
const BATCH: u64 = 50;
/// Four times what travels with a message.
const OBJECT_BYTES: usize = 256 << 10;

#[scalable::task(cpus = 1)]
fn make_object(n: u32) -> Block {
    Block::of(n as u8, OBJECT_BYTES)
}

#[scalable::task(cpus = 1)]
fn length(block: Block) -> u64 {
    block.len() as u64
}

/// Arrays of no-ops, one after the other, every result looked at.
pub async fn noops(session: &Session, plan: &Plan) -> Result<()> {
    let mut done = 0;
    while done < plan.noops {
        let count = ARRAY.min(plan.noops - done) as u32;
        let (mut seen, mut sum) = (0_u64, 0_u64);
        let each = |_: usize, result: Result<u32, scalable::Error>| {
            sum += u64::from(result?);
            seen += 1;
            Ok(())
        };
        session.map(noop.with().isolation(Isolation::Thread), (0..count,)).for_each(each).await?;
        let count = u64::from(count);
        ensure!(seen == count && sum == count * (count - 1) / 2, "{seen} results of {count} no-ops");
        done += count;
        plan.noops_done.store(done, Ordering::Relaxed);
        plan.paced(done, plan.noops).await;
    }
    Ok(())
}

/// Objects, a batch after the other: made, read by tasks wherever these run, and let go of.
pub async fn objects(session: &Session, plan: &Plan) -> Result<()> {
    let mut done = 0;
    while done < plan.objects {
        let count = BATCH.min(plan.objects - done);
        let blocks = session.map(make_object.with().priority(1), (0..count as u32,)).await?;
        let lengths = session.map(length.with().priority(1), (&blocks,)).await?;
        drop(blocks);
        let bytes: u64 = lengths.gather().await?.into_iter().sum();
        ensure!(bytes == count * OBJECT_BYTES as u64, "{bytes} bytes of {count} objects were read");
        done += count;
        plan.objects_done.store(done, Ordering::Relaxed);
        plan.paced(done, plan.objects).await;
    }
    Ok(())
}
