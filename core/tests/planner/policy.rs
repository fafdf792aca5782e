//! The planner as a policy of the simulated world, and the same planner with its eyes half closed.

use crate::world::{Actions, Policy, World};
use scalable_core::planner::{Phase, Planner, Pool, PoolEvent, Snapshot};

/// The planner, with a change to what it is shown.
pub struct Planned {
    pub planner: Planner,
    shown: fn(u64, &mut Pool),
}

impl Planned {
    pub fn new() -> Self {
        Self::shown(|_, _| {})
    }

    /// A planner that is shown something else than what is there; `shown` gets the time in micros.
    pub fn shown(shown: fn(u64, &mut Pool)) -> Self {
        Planned { planner: Planner::default(), shown }
    }
}

impl Policy for Planned {
    fn decide(&mut self, world: &World) -> Actions {
        let now = world.now * 1000;
        let mut pool = world.pool();
        (self.shown)(now, &mut pool);
        let mut plan = self.planner.plan(now, &Snapshot { pools: vec![pool], max_total: None });
        let pool = plan.pools.remove(0);
        assert!(pool.give_way.is_empty(), "nobody to give way to");
        for drain in &pool.drain {
            let worker = &world.workers[&drain.worker.0];
            assert!(worker.ready && worker.executing.is_empty(), "{:?} is to be drained", worker);
        }
        for key in &pool.cancel {
            assert!(!world.workers[&key.0].ready, "only a starting worker is given up");
        }
        let drained = pool.drain.iter().map(|drain| drain.worker.0);
        Actions { create: pool.create, remove: pool.cancel.iter().map(|key| key.0).chain(drained).collect() }
    }

    fn registered(&mut self, now: u64, asked: u64) {
        self.planner.observe(now * 1000, "pool", &PoolEvent::Started { asked_at: asked * 1000 });
    }
}

/// Hides how long the attempts that execute have been running.
pub fn without_running_evidence(now: u64, pool: &mut Pool) {
    for worker in &mut pool.workers {
        if let Phase::Ready { running, .. } = &mut worker.phase {
            running.iter_mut().for_each(|attempt| attempt.started_at = now);
        }
    }
}
