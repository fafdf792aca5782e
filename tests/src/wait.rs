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
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_within(DEADLINE, what, look)
}

/// As [`until`], for what takes longer to happen, or must not take as long.
///
/// # Panics
/// When it has not happened within `limit`.
#[track_caller]
pub fn until_within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(started.elapsed() < limit, "waited {limit:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
