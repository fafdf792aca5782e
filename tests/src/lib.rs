//! Harness of the end-to-end tests: real processes in a directory of their own. The cases are in `tests/e2e/`.
//!
//! Nothing here waits for time. [`until`] waits for something to be true and fails the test when it never becomes so.

#![allow(clippy::unwrap_used, reason = "a harness that cannot go on fails the test, with the place where it happened")]

mod gate;
mod ground;
mod process;
mod proxy;
mod run;
mod sandbox;
mod wait;
mod webhook;

pub use gate::Gate;
pub use ground::{Ground, IMAGE, LONG, scheduler_image};
pub use process::{Finished, Running, plain};
pub use proxy::{ApiProxy, Asked, Fate, base64};
pub use run::Run;
pub use sandbox::{ProcessInfo, Sandbox, binary, example};
pub use wait::{DEADLINE, until, until_within};
pub use webhook::Webhook;

/// True when the long forms of the tests are asked for: `scripts/test --long`.
pub fn long() -> bool {
    std::env::var_os("SCALABLE_TEST_LONG").is_some_and(|value| value == "1")
}
