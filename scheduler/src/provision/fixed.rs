//! Keeps one pool at its size: replaces what dies, with back-off.

use std::time::{Duration, Instant};

use scalable_core::ids::Micros;
use scalable_core::messages::DeathCause;
use scalable_core::planner::{Desired, Observed, plan};
use scalable_proto::v1;
use scalable_provider::{Observation, Operation, Provider};
use tokio::sync::{mpsc, oneshot};

use super::{PoolState, Seen, Stop, blame, on_a_thread};

/// A pool of fixed size.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Components its workers serve.
    pub components: Vec<String>,
    /// What one worker has.
    pub capacity: v1::Resources,
    /// How many workers it has.
    pub workers: u32,
}

/// Starts the thread that drives `provider`.
///
/// # Errors
/// When the thread cannot be started.
pub fn start<P: Provider>(provider: P, pool: Pool) -> std::io::Result<(mpsc::Receiver<Seen>, Stop)> {
    on_a_thread(move |seen, stopped| drive(provider, pool, seen, stopped))
}

struct Driver {
    pool: Pool,
    observed: Observed,
    born: Vec<(u64, Instant)>,
    started: u32,
    note: String,
    seen: mpsc::Sender<Seen>,
}

async fn drive<P: Provider>(
    provider: P,
    pool: Pool,
    seen: mpsc::Sender<Seen>,
    mut stopped: oneshot::Receiver<oneshot::Sender<()>>,
) {
    let origin = Instant::now();
    let now = || -> Micros { u64::try_from(origin.elapsed().as_micros()).unwrap_or(u64::MAX) };
    let mut observations = provider.observe();
    let mut driver = Driver { pool, observed: Observed::default(), born: Vec::new(), started: 0, note: String::new(), seen };
    loop {
        let plan = plan(now(), &Desired { workers: driver.pool.workers }, &driver.observed);
        let mut wait = plan.again_at.map(|due| Duration::from_micros(due.saturating_sub(now())));
        if !plan.create.is_empty() {
            let pool = driver.pool.name.clone();
            let create = |ordinal| Operation::Create { pool: pool.clone(), ordinal };
            driver.observed.present.extend(&plan.create);
            let failed = provider.apply(plan.create.into_iter().map(create).collect()).await;
            for (operation, reason) in failed {
                if let Operation::Create { ordinal, .. } = operation {
                    driver.observed.died(now(), ordinal, 0);
                }
                driver.note = reason.to_string();
                tracing::error!(%reason, "a worker could not be started");
            }
            driver.tell_pool().await;
            wait = Some(Duration::ZERO);
        }
        tokio::select! {
            observation = observations.recv() => match observation {
                Some(observation) => driver.observe(now(), observation).await,
                None => return,
            },
            done = &mut stopped => {
                if let Ok(done) = done {
                    provider.shutdown().await;
                    let _ = done.send(());
                }
                return;
            }
            () = tokio::time::sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => {}
        }
    }
}

impl Driver {
    async fn observe(&mut self, now: Micros, observation: Observation) {
        match observation {
            Observation::Started { name, uid, ordinal, pid, .. } => {
                tracing::info!(worker = %name, pid, ordinal, "worker started");
                self.born.push((uid, Instant::now()));
                self.started += 1;
            }
            Observation::Died { name, uid, ordinal, cause, reason, .. } => {
                let lived = match self.born.iter().position(|(known, _)| *known == uid) {
                    Some(at) => self.born.swap_remove(at).1.elapsed(),
                    None => Duration::ZERO,
                };
                self.observed.died(now, ordinal, u64::try_from(lived.as_micros()).unwrap_or(u64::MAX));
                self.started = self.started.saturating_sub(1);
                self.note =
                    if self.observed.deaths_in_row > 1 { format!("workers keep ending: {reason}") } else { String::new() };
                let _ = self.seen.send(Seen::Died { worker: name, cause: blame(cause), reason }).await;
            }
            Observation::Waiting { reason, message, .. } => self.note = format!("{reason}: {message}"),
            Observation::Running { .. } => self.note.clear(),
            Observation::Leaving { name, cause, reason, .. } => {
                tracing::warn!(worker = %name, %reason, "a worker is being ended");
                if blame(cause) == DeathCause::Taken {
                    let _ = self.seen.send(Seen::BeingTaken { worker: name, reason }).await;
                }
            }
            Observation::Reach { problem } => self.note = problem.unwrap_or_default(),
        }
        self.tell_pool().await;
    }

    async fn tell_pool(&self) {
        let seen = Seen::Pool(PoolState {
            pool: self.pool.name.clone(),
            components: self.pool.components.clone(),
            capacity: self.pool.capacity.clone(),
            present: self.started,
            note: self.note.clone(),
            ..PoolState::default()
        });
        let _ = self.seen.send(seen).await;
    }
}
