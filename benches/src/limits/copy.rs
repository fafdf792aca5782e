//! What moving bytes costs at least: over a loopback TCP connection, and from memory to memory.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use anyhow::Result;

use super::role::{Playing, Role, ready};

/// The size of a result in the rows that move data.
pub const BLOCK_BYTES: usize = 1 << 20;
/// Blocks that are copied in turn: far more than a cache holds.
const BLOCKS: usize = 256;

fn blocks() -> Vec<u8> {
    (0..BLOCKS * BLOCK_BYTES).map(|at| at as u8).collect()
}

/// The role of the source: sends blocks in turn to whoever connects.
pub fn source() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    ready(&listener.local_addr()?.to_string())?;
    let blocks = blocks();
    let (mut socket, _) = listener.accept()?;
    loop {
        for block in blocks.chunks_exact(BLOCK_BYTES) {
            socket.write_all(block)?;
        }
    }
}

/// A connection to a source in a process of its own.
pub struct TcpCopy {
    socket: TcpStream,
    target: Vec<u8>,
    _source: Playing,
}

impl TcpCopy {
    /// Starts the source.
    pub fn start() -> Result<Self> {
        let source = Playing::start(Role::TcpSource, None)?;
        Ok(TcpCopy { socket: TcpStream::connect(&source.address)?, target: blocks(), _source: source })
    }

    /// MiB a second of reading `count` blocks to where they stay.
    pub fn run(&mut self, count: usize) -> Result<f64> {
        let begin = Instant::now();
        for at in 0..count {
            let target = self.target.chunks_exact_mut(BLOCK_BYTES).nth(at % BLOCKS);
            self.socket.read_exact(target.unwrap_or_default())?;
        }
        Ok(mib_per_second(count, begin))
    }
}

/// Two regions of memory.
pub struct Memcpy {
    source: Vec<u8>,
    target: Vec<u8>,
}

impl Memcpy {
    /// Touches both.
    pub fn start() -> Self {
        Memcpy { source: blocks(), target: blocks() }
    }

    /// MiB a second of copying `count` blocks, by one thread.
    pub fn run(&mut self, count: usize) -> f64 {
        let begin = Instant::now();
        for at in 0..count {
            let range = at % BLOCKS * BLOCK_BYTES..(at % BLOCKS + 1) * BLOCK_BYTES;
            self.target[range.clone()].copy_from_slice(&self.source[range]);
            std::hint::black_box(&mut self.target);
        }
        mib_per_second(count, begin)
    }
}

fn mib_per_second(count: usize, begin: Instant) -> f64 {
    (count * BLOCK_BYTES) as f64 / f64::from(1 << 20) / begin.elapsed().as_secs_f64()
}
