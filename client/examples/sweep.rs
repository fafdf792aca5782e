//! A parameter sweep that looks closer where it is worth it: every result may submit new tasks.
//!
//! ```text
//! $ cargo build --release     # the scheduler and the worker, once
//! $ cargo run --release -p scalable --example sweep
//! best of 88 evaluations: f(1.5000) = -2.2500
//! ```

#![allow(clippy::print_stdout, reason = "what an example has to say")]

use scalable::{Error, Session, TaskSet};

/// A valley with its floor at 1.5.
#[scalable::task(retries = 1, timeout = "1m")]
fn evaluate(x: f64) -> Result<f64, String> {
    let y = x * x - 3.0 * x;
    if y.is_finite() { Ok(y) } else { Err(format!("f({x}) is not a number")) }
}

/// An interval that was evaluated in its middle.
#[derive(Clone, Copy)]
struct Interval {
    middle: f64,
    width: f64,
}

/// The example itself: `main` runs it, and a test.
pub async fn run(session: &Session) -> Result<String, Error> {
    // Dropping the set, for an error for example, cancels what is still running.
    let mut running = TaskSet::new().cancel_on_drop();
    for n in 0..16 {
        let interval = Interval { middle: -8.0 + f64::from(n) + 0.5, width: 1.0 };
        running.insert(interval, session.submit(evaluate, (interval.middle,)).await?);
    }

    let (mut evaluations, mut best) = (0, (f64::NAN, f64::INFINITY));
    while let Some((interval, result)) = running.next().await {
        evaluations += 1;
        let value = result?;
        if value < best.1 {
            best = (interval.middle, value);
        }
        // Its slope is at most 19 there: can the interval hold something better?
        let lowest_possible = value - 19.0 * interval.width / 2.0;
        if interval.width > 1e-4 && lowest_possible < best.1 && value < best.1 + interval.width * interval.width {
            for middle in [interval.middle - interval.width / 4.0, interval.middle + interval.width / 4.0] {
                let half = Interval { middle, width: interval.width / 2.0 };
                running.insert(half, session.submit(evaluate, (middle,)).await?);
            }
        }
    }
    Ok(format!("best of {evaluations} evaluations: f({:.4}) = {:.4}", best.0, best.1))
}

#[allow(dead_code)]
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    scalable::init!();
    let session = Session::start().await?;
    println!("{}", run(&session).await?);
    Ok(())
}
