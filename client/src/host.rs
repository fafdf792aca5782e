//! The program as a lane host.

use scalable_lane::host::{self, CallError, LaneFuture, Runtime};

use crate::macro_support::registry;

/// Drives asynchronous functions.
#[derive(Debug)]
pub(crate) struct Driver(tokio::runtime::Runtime);

impl Driver {
    pub(crate) fn new() -> std::io::Result<Driver> {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map(Driver)
    }
}

impl Runtime for Driver {
    fn block_on(&self, future: LaneFuture) -> Result<Vec<u8>, CallError> {
        self.0.block_on(future)
    }
}

/// A runtime for asynchronous functions.
fn runtime() -> Result<Box<dyn Runtime>, String> {
    Driver::new().map(|driver| Box::new(driver) as Box<dyn Runtime>).map_err(|error| error.to_string())
}

/// What `scalable::init!()` calls: serves and never returns when this program was started as a lane host.
#[doc(hidden)]
pub fn serve_if_asked() {
    // On a thread of its own: the caller's may be a runtime's, on which nothing may wait. The variable is looked at here already, so
    // that a program that was not asked starts no thread.
    if std::env::var_os(scalable_lane::FD_VARIABLE).is_none() {
        return;
    }
    let serving = std::thread::Builder::new().name("lane-host".to_owned());
    let served = serving.spawn(|| host::serve_if_asked(|| registry().with_runtime(runtime)));
    let _ = served.map(std::thread::JoinHandle::join);
    std::process::exit(1);
}

/// Stands first in `main` of a program whose tasks run on workers: when the program was started by a worker to run tasks, they are
/// run here, and the rest of `main` is not.
///
/// ```no_run
/// #[scalable::task]
/// fn square(n: u64) -> u64 {
///     n * n
/// }
///
/// #[tokio::main(flavor = "current_thread")]
/// async fn main() -> Result<(), scalable::Error> {
///     scalable::init!();
///     let session = scalable::Session::start().await?;
///     println!("{}", session.submit(square, (3,)).await?.await?);
///     Ok(())
/// }
/// ```
#[macro_export]
macro_rules! init {
    () => {
        $crate::macro_support::serve_if_asked()
    };
}
