//! A blocked matrix product: blocks are results of tasks and stay where they are; the tasks that multiply read them from there.
//!
//! ```text
//! $ cargo build --release     # the scheduler and the worker, once
//! $ cargo run --release -p scalable --example matrix
//! 512 × 512 in 16 blocks: 96 tasks, largest difference 0.0e0
//! ```

#![allow(clippy::print_stdout, reason = "what an example has to say")]

use scalable::{Array, Error, Handle, Session};
use serde::{Deserialize, Serialize};

/// Rows and columns of a block.
const BLOCK: usize = 128;
/// Blocks in a row.
const BLOCKS: usize = 4;

/// A square block, row by row: 128 KiB, more than travels with a message.
#[derive(Serialize, Deserialize)]
struct Block(Vec<f64>);

/// The number at a place of either matrix: integers, so that sums are exact.
fn number(which: u8, row: usize, column: usize) -> f64 {
    ((row * 31 + column * 17 + usize::from(which) * 7) % 11) as f64 - 5.0
}

#[scalable::task]
fn fill(which: u8, block_row: usize, block_column: usize) -> Block {
    let at = |n: usize| number(which, block_row * BLOCK + n / BLOCK, block_column * BLOCK + n % BLOCK);
    Block((0..BLOCK * BLOCK).map(at).collect())
}

#[scalable::task]
fn multiply_add(sum: Option<Block>, a: Block, b: Block) -> Option<Block> {
    let mut sum = sum.map_or_else(|| vec![0.0; BLOCK * BLOCK], |block| block.0);
    for row in 0..BLOCK {
        for inner in 0..BLOCK {
            let factor = a.0[row * BLOCK + inner];
            for column in 0..BLOCK {
                sum[row * BLOCK + column] += factor * b.0[inner * BLOCK + column];
            }
        }
    }
    Some(Block(sum))
}

/// The example itself: `main` runs it, and a test.
pub async fn run(session: &Session) -> Result<String, Error> {
    let places = || (0..BLOCKS).flat_map(|row| (0..BLOCKS).map(move |column| (row, column)));
    let a = session.map(fill, scalable::rows(places().map(|(row, column)| (0u8, row, column)))).await?;
    let b = session.map(fill, scalable::rows(places().map(|(row, column)| (1u8, row, column)))).await?;

    // A block of the product is a chain of tasks: each adds one pair of blocks to what the one before has left.
    let mut tasks = a.len() + b.len();
    let mut product = Vec::new();
    for (row, column) in places() {
        let block = |matrix: &Array<Block>, row, column| matrix.handle(row * BLOCKS + column);
        let (first_a, first_b) = (block(&a, row, 0), block(&b, 0, column));
        let mut sum: Handle<Option<Block>> = session.submit(multiply_add, (None, first_a, first_b)).await?;
        for inner in 1..BLOCKS {
            sum = session.submit(multiply_add, (sum, block(&a, row, inner), block(&b, inner, column))).await?;
        }
        tasks += BLOCKS;
        product.push(sum);
    }

    let mut difference: f64 = 0.0;
    for ((block_row, block_column), block) in places().zip(product) {
        let block = block.await?.map_or_else(Vec::new, |block| block.0);
        // A few rows of each block are computed here too.
        for row in (0..BLOCK).step_by(BLOCK / 4) {
            for column in 0..BLOCK {
                let (here_row, here_column) = (block_row * BLOCK + row, block_column * BLOCK + column);
                let terms = (0..BLOCK * BLOCKS).map(|inner| number(0, here_row, inner) * number(1, inner, here_column));
                difference = difference.max((block[row * BLOCK + column] - terms.sum::<f64>()).abs());
            }
        }
    }
    let size = BLOCK * BLOCKS;
    Ok(format!("{size} × {size} in {} blocks: {tasks} tasks, largest difference {difference:.1e}", BLOCKS * BLOCKS))
}

#[allow(dead_code)]
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    scalable::init!();
    let session = Session::start().workers(2).cpus(1).await?;
    println!("{}", run(&session).await?);
    Ok(())
}
