//! Results of 1 MiB that other tasks read.

use std::fmt;
use std::time::Instant;

use anyhow::{Result, ensure};
use scalable::Session;
use serde::de::{Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

use super::functions::Random;
use super::rig::Rig;
use super::{FOUR_WORKERS, TWO_SLOTS};
use crate::limits::copy::BLOCK_BYTES;
use crate::table::{Measure, Scale};
use crate::whole::{Wire, Workers};

/// Blocks of the row `exchange` that tasks read.
const BLOCKS: u32 = 64;

/// Bytes that travel as bytes.
pub struct Block(Vec<u8>);

impl Block {
    /// So many bytes, all alike.
    pub fn of(byte: u8, bytes: usize) -> Block {
        Block(vec![byte; bytes])
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl Serialize for Block {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Block {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Block;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Block, E> {
                Ok(Block(bytes.to_vec()))
            }

            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Block, E> {
                Ok(Block(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

/// A block.
#[scalable::task(cpus = 1)]
pub fn make(n: u32) -> Block {
    Block(vec![n as u8; BLOCK_BYTES])
}

/// Length of a block.
#[scalable::task(cpus = 1)]
pub fn consume(block: Block) -> u64 {
    block.0.len() as u64
}

/// Length of two blocks.
#[scalable::task(cpus = 1)]
pub fn consume_two(a: Block, b: Block) -> u64 {
    (a.0.len() + b.0.len()) as u64
}

async fn one_to_one(session: Session, count: u32) -> Result<f64> {
    let begin = Instant::now();
    let blocks = session.map(make, (0..count,)).await?;
    let lengths = session.map(consume, (&blocks,)).await?;
    // What is read is kept for its reader only.
    drop(blocks);
    let bytes: u64 = lengths.gather().await?.into_iter().sum();
    ensure!(bytes == u64::from(count) * BLOCK_BYTES as u64, "{bytes} bytes were read");
    Ok(f64::from(count) / begin.elapsed().as_secs_f64())
}

async fn two_each(session: Session, count: u32) -> Result<f64> {
    let blocks = session.map(make, (0..BLOCKS,)).await?;
    blocks.wait().await;
    let mut random = Random::new();
    let pairs: Vec<[usize; 2]> = (0..count)
        .map(|_| {
            let a = random.below(u64::from(BLOCKS));
            [a, (a + 1 + random.below(u64::from(BLOCKS) - 1)) % u64::from(BLOCKS)].map(|block| block as usize)
        })
        .collect();
    let begin = Instant::now();
    let (a, b) = (pairs.iter().map(|pair| blocks.handle(pair[0])), pairs.iter().map(|pair| blocks.handle(pair[1])));
    let lengths = session.map(consume_two, (a, b)).await?;
    let bytes: u64 = lengths.gather().await?.into_iter().sum();
    ensure!(bytes == 2 * u64::from(count) * BLOCK_BYTES as u64, "{bytes} bytes were read");
    Ok(2.0 * f64::from(count) / begin.elapsed().as_secs_f64())
}

fn results(wire: Wire, scale: &Scale, workers: Workers, arguments: &[&str]) -> Result<Measure> {
    let (rig, count) = (Rig::over(wire, scale, workers, arguments)?, scale.of(1000, 300));
    Ok(Box::new(move || Ok(rig.block_on(|session| one_to_one(session, count))?.into())))
}

fn exchange(scale: &Scale, arguments: &[&str]) -> Result<Measure> {
    let (rig, count) = (Rig::start(scale, FOUR_WORKERS, arguments)?, scale.of(1000, 300));
    Ok(Box::new(move || Ok(rig.block_on(|session| two_each(session, count))?.into())))
}

/// Workers on this host send each other bytes over TCP, as if they were not.
const NO_SHORT_CUTS: &[&str] = &["--no-short-cuts"];

/// MiB a second, one worker, without short cuts.
pub fn results_net(scale: &Scale) -> Result<Measure> {
    results(Wire::Plain, scale, TWO_SLOTS, NO_SHORT_CUTS)
}

/// The same over TLS.
pub fn results_net_tls(scale: &Scale) -> Result<Measure> {
    results(Wire::Tls, scale, TWO_SLOTS, NO_SHORT_CUTS)
}

/// MiB a second, four workers, without short cuts.
pub fn results_net_four(scale: &Scale) -> Result<Measure> {
    results(Wire::Plain, scale, FOUR_WORKERS, NO_SHORT_CUTS)
}

/// MiB a second, two blocks a task, without short cuts.
pub fn exchange_net(scale: &Scale) -> Result<Measure> {
    exchange(scale, NO_SHORT_CUTS)
}

/// MiB a second, one worker, as they go by default.
pub fn results_host(scale: &Scale) -> Result<Measure> {
    results(Wire::Plain, scale, TWO_SLOTS, &[])
}

/// MiB a second, four workers, as they go by default.
pub fn results_host_four(scale: &Scale) -> Result<Measure> {
    results(Wire::Plain, scale, FOUR_WORKERS, &[])
}

/// MiB a second, two blocks a task, as they go by default.
pub fn exchange_host(scale: &Scale) -> Result<Measure> {
    exchange(scale, &[])
}
