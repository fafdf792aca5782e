//! The local target's launcher, which programs with a session of their own use too.

pub use scalable_provider::launch::{LocalLauncher, LocalScheduler, still_alive, wait_gone};

use scalable_provider::launch::LaunchError;

use crate::exit::Failure;

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Failure {
        let failure = Failure::infrastructure(error.message);
        match error.help {
            Some(help) => failure.help(help),
            None => failure,
        }
    }
}
