//! π by Monte-Carlo: many tasks that throw darts, one sum.
//!
//! ```text
//! $ cargo build --release     # the scheduler and the worker, once
//! $ cargo run --release -p scalable --example pi
//! π is about 3.1414 (64 tasks, 64000000 darts)
//! ```

#![allow(clippy::print_stdout, reason = "what an example has to say")]

use scalable::{Error, Session};

#[scalable::task]
fn throw(seed: u64, darts: u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut coordinate = || {
        // xorshift64*: good enough for darts.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..darts).filter(|_| coordinate().powi(2) + coordinate().powi(2) <= 1.0).count() as u64
}

/// The example itself: `main` runs it, and a test.
pub async fn run(session: &Session, darts: u64) -> Result<String, Error> {
    let tasks = 64;
    let hits = session.map(throw, (0..tasks, scalable::same(darts))).await?.gather().await?;
    let pi = 4.0 * hits.iter().sum::<u64>() as f64 / (tasks * darts) as f64;
    Ok(format!("π is about {pi:.4} ({tasks} tasks, {} darts)", tasks * darts))
}

#[allow(dead_code)]
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    scalable::init!();
    let session = Session::start().await?;
    println!("{}", run(&session, 1_000_000).await?);
    Ok(())
}
