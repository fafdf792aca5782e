//! The threads of one worker: they take calls from the worker's queue, one at a time.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};
use scalable_lane::host::{Call, Function, GroupOfCalls, InputBytes, Outcome, Place, Runtime, execute};
use tokio::sync::mpsc::UnboundedSender;

use super::{Blob, Read};

/// A call that waits for a thread.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) handle: u64,
    pub(super) function: Function,
    pub(super) of: Arc<GroupOfCalls>,
    pub(super) place: Place,
    pub(super) values: Blob,
    pub(super) reads: Vec<Read>,
    /// Its start is to be told: it has a timeout.
    pub(super) timed: bool,
}

/// What a thread tells.
#[derive(Debug)]
pub(super) enum Told {
    Started { handle: u64, at: Instant },
    Ended { handle: u64, outcome: Outcome, wall: Duration },
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Which thread executes which call.
    executing: FxHashMap<u64, u64>,
    /// Threads that nobody waits for any more.
    left_alone: FxHashSet<u64>,
    threads: u64,
    over: bool,
}

/// What became of a call that is not wanted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unwanted {
    /// It had not started, and will not.
    Taken,
    /// It was executing: its thread was replaced, and what it says is not heard.
    Abandoned,
    /// It is over, or was never here.
    Unknown,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Lanes {
    name: String,
    queue: Mutex<Queue>,
    work: Condvar,
    tell: UnboundedSender<Told>,
    runtime: Arc<dyn Drive>,
}

/// What drives asynchronous functions.
pub(super) trait Drive: Runtime + std::fmt::Debug {}
impl<T: Runtime + std::fmt::Debug> Drive for T {}

impl Lanes {
    pub(super) fn start(
        name: String,
        threads: u32,
        tell: UnboundedSender<Told>,
        runtime: Arc<dyn Drive>,
    ) -> io::Result<Arc<Lanes>> {
        let lanes = Arc::new(Lanes { name, queue: Mutex::default(), work: Condvar::new(), tell, runtime });
        for _ in 0..threads {
            lanes.clone().add_thread()?;
        }
        Ok(lanes)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_thread(self: Arc<Self>) -> io::Result<()> {
        let mut queue = self.queue();
        queue.threads += 1;
        let number = queue.threads;
        drop(queue);
        let thread = std::thread::Builder::new().name(format!("{}-{number}", self.name));
        thread.spawn(move || self.work(number)).map(drop)
    }

    /// Queues calls.
    pub(super) fn push(&self, jobs: impl IntoIterator<Item = Job>) {
        let mut queue = self.queue();
        let before = queue.jobs.len();
        queue.jobs.extend(jobs);
        let added = queue.jobs.len() - before;
        drop(queue);
        if added == 1 { self.work.notify_one() } else { self.work.notify_all() }
    }

    /// Takes a call back that has not started.
    pub(super) fn take_back(&self, handle: u64) -> bool {
        let mut queue = self.queue();
        let before = queue.jobs.len();
        queue.jobs.retain(|job| job.handle != handle);
        queue.jobs.len() < before
    }

    /// Ends a call as far as that is possible.
    pub(super) fn end(self: &Arc<Self>, handle: u64) -> Unwanted {
        if self.take_back(handle) {
            return Unwanted::Taken;
        }
        let mut queue = self.queue();
        let Some(thread) = queue.executing.remove(&handle) else { return Unwanted::Unknown };
        queue.left_alone.insert(thread);
        drop(queue);
        // Without another thread the worker has one cpu less: its tasks still run, later.
        let _ = self.clone().add_thread();
        Unwanted::Abandoned
    }

    /// No more calls: threads end when they are idle.
    pub(super) fn stop(&self) {
        let mut queue = self.queue();
        queue.over = true;
        queue.jobs.clear();
        drop(queue);
        self.work.notify_all();
    }

    fn work(&self, number: u64) {
        while let Some(job) = self.next(number) {
            let begun = Instant::now();
            if job.timed {
                let _ = self.tell.send(Told::Started { handle: job.handle, at: begun });
            }
            let outcome = self.execute(&job);
            let mut queue = self.queue();
            if queue.left_alone.remove(&number) {
                return;
            }
            queue.executing.remove(&job.handle);
            drop(queue);
            // The engine is gone when the session is: nobody wants to know then.
            let _ = self.tell.send(Told::Ended { handle: job.handle, outcome, wall: begun.elapsed() });
        }
    }

    fn next(&self, number: u64) -> Option<Job> {
        let mut queue = self.queue();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                queue.executing.insert(job.handle, number);
                return Some(job);
            }
            if queue.over {
                return None;
            }
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn execute(&self, job: &Job) -> Outcome {
        fn read(read: &Read) -> InputBytes<'_> {
            match read {
                Read::One(bytes) => InputBytes::One(bytes),
                Read::Many(all) => InputBytes::Many(all.iter().map(|bytes| &bytes[..]).collect()),
            }
        }
        let mut call = Call::new(&job.values, job.reads.iter().map(read).collect(), &job.of, job.place);
        let runtime: &dyn Runtime = &*self.runtime;
        execute(&job.function, &mut call, || Ok(runtime))
    }
}
