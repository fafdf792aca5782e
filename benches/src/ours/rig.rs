//! A real scheduler and real workers with a session of this program on them, and what each process uses meanwhile.

use std::future::Future;

use anyhow::Result;
use scalable::Session;

use super::process::{cpu_seconds, cpu_seconds_below};
use crate::table::Scale;
use crate::whole::{Whole, Wire, Workers};

/// See the head of this file.
pub struct Rig {
    /// Dropped before the processes end.
    pub session: Session,
    runtime: tokio::runtime::Runtime,
    /// The processes.
    pub whole: Whole,
}

impl Rig {
    /// Starts everything.
    pub fn start(scale: &Scale, workers: Workers, worker_arguments: &[&str]) -> Result<Self> {
        Self::over(Wire::Plain, scale, workers, worker_arguments)
    }

    /// As [`Rig::start`], over such connections.
    pub fn over(wire: Wire, scale: &Scale, workers: Workers, worker_arguments: &[&str]) -> Result<Self> {
        let whole = Whole::over(wire, &scale.programs, workers, worker_arguments)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let session = runtime.block_on(whole.session())?;
        Ok(Rig { session, runtime, whole })
    }

    /// Runs `work` with the session.
    pub fn block_on<T, F: Future<Output = Result<T>>>(&self, work: impl FnOnce(Session) -> F) -> Result<T> {
        self.runtime.block_on(work(self.session.clone()))
    }

    /// CPU microseconds a task of each process while `work` is done.
    pub fn with_cpu<T>(&self, tasks: u32, work: impl FnOnce(&Self) -> Result<T>) -> Result<(T, Vec<(&'static str, f64)>)> {
        let before = self.cpu()?;
        let made = work(self)?;
        let used = self.cpu()?.into_iter().zip(before);
        let per_task = used.map(|((name, after), (_, before))| (name, (after - before) * 1e6 / f64::from(tasks))).collect();
        Ok((made, per_task))
    }

    fn cpu(&self) -> Result<[(&'static str, f64); 4]> {
        let (mut workers, mut below) = (0.0, 0.0);
        for pid in self.whole.worker_pids() {
            workers += cpu_seconds(pid)?;
            below += cpu_seconds_below(pid);
        }
        let (client, scheduler) = (cpu_seconds(std::process::id())?, cpu_seconds(self.whole.scheduler_pid())?);
        Ok([("client", client), ("scheduler", scheduler), ("workers", workers), ("lane hosts", below)])
    }
}
