//! A scheduler and its workers inside this process, for tests: the scheduler's machine itself, with threads as workers. No sockets,
//! no processes, no files; arguments and results are encoded as they are on the way to other processes.
//!
//! What this cannot do: end a function that does not return. A timeout or a cancel ends the attempt, and its thread is replaced and
//! left to itself; a crash of the function is the process's.

mod book;
mod convert;
mod deliver;
mod engine;
mod lanes;

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;

use crate::Error;
use crate::backend::Backend;
use crate::session::{Session, refused};
use crate::shared::Shared;

/// Most threads of all workers together.
const THREADS_MAX: u32 = 1024;

/// What a session inside this process consists of: made by [`Session::local`].
#[derive(Clone, Debug)]
#[must_use = "nothing happens before `start`"]
pub struct LocalBuilder {
    workers: u32,
    cpus: u32,
    memory_bytes: u64,
}

impl Session {
    /// A session inside this process, for tests: two workers with one cpu each unless said otherwise.
    ///
    /// ```
    /// #[scalable::task]
    /// fn fragile(n: u32) -> Result<u32, String> {
    ///     if n == 3 { Err("three is too many".to_owned()) } else { Ok(n) }
    /// }
    ///
    /// # fn main() -> Result<(), scalable::Error> {
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// let session = scalable::Session::local().workers(2).start().await?;
    /// let results = session.map(fragile, (0..5,)).await?.gather_each().await?;
    /// assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 4);
    /// # Ok(())
    /// # })
    /// # }
    /// ```
    pub fn local() -> LocalBuilder {
        LocalBuilder { workers: 2, cpus: 1, memory_bytes: u64::MAX }
    }
}

impl LocalBuilder {
    /// Number of workers.
    pub fn workers(mut self, workers: u32) -> Self {
        self.workers = workers;
        self
    }

    /// Cpus of each worker: so many of its tasks of one cpu run at a time.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Memory of each worker, bytes: what its tasks ask for together. Not looked at unless said; never enforced.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// Starts the threads; awaiting the builder does the same.
    ///
    /// # Errors
    /// [`Error::Refused`] without workers or cpus, and when the system gives no threads.
    pub async fn start(self) -> Result<Session, Error> {
        let threads = self.workers.checked_mul(self.cpus).filter(|threads| (1..=THREADS_MAX).contains(threads));
        if threads.is_none() {
            let message =
                format!("{} workers of {} cpus were asked for, 1 to {THREADS_MAX} cpus can be had", self.workers, self.cpus);
            return Err(refused("NO_WORKERS", message, ""));
        }
        let shared = Shared::new("this process".to_owned(), None);
        let started = engine::start(shared.clone(), &self);
        started.map_err(|error| refused("NO_THREADS", format!("the session's threads could not be started: {error}"), ""))?;
        Ok(Session::new(shared, Backend::Local, None, Vec::new()))
    }
}

impl IntoFuture for LocalBuilder {
    type Output = Result<Session, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.start())
    }
}

/// Bytes that are shared by who keeps and who reads them.
type Blob = bytes::Bytes;

/// What a call reads of other tasks.
#[derive(Clone, Debug)]
enum Read {
    One(Blob),
    Many(Arc<[Blob]>),
}
