//! Waiting for something to become true.

use std::time::{Duration, Instant};

/// How long a test waits for something that should happen at once. Only a failing test gets there: it is generous, for machines
/// that do much else.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until `look` sees what it looks for.
///
/// # Panics
/// When that has not happened within [`DEADLINE`].
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(started.elapsed() < DEADLINE, "waited {DEADLINE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
