//! A few threads for what may wait for a disk: staging, publishing, removing. Their results reach the reactor through its inbox.
//! Jobs are at most one for each attempt, so the queue is bounded by the machine's bound on attempts.

use crossbeam::channel::{Sender, unbounded};

/// Work for a helper. What it finds out it sends itself.
type Work = Box<dyn FnOnce() + Send>;

/// The threads; they end when this is dropped and the queue is empty.
#[derive(Clone, Debug)]
pub struct Helpers {
    jobs: Sender<Work>,
}

impl Helpers {
    /// Starts `threads` of them, at least 1.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(threads: usize) -> std::io::Result<Self> {
        let (jobs, queue) = unbounded::<Work>();
        for _ in 0..threads.max(1) {
            let queue = queue.clone();
            std::thread::Builder::new().name("helper".to_owned()).spawn(move || queue.iter().for_each(|work| work()))?;
        }
        Ok(Helpers { jobs })
    }

    /// Has it done by the next free thread.
    pub fn run(&self, work: impl FnOnce() + Send + 'static) {
        // The threads live as long as any sender.
        let _ = self.jobs.send(Box::new(work));
    }
}
