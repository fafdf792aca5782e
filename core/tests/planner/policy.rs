//! The planner as a policy of the simulated world, and the same planner with its eyes half closed.

use crate::world::{Actions, Policy, World};
use scalable_core::planner::{Obstacle, Phase, Planner, Pool, PoolEvent, PoolPlan, Snapshot};

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
        let plan = self.planner.plan(now, &Snapshot { pools: vec![pool], max_total: None });
        assert!(plan.again_at.is_none_or(|at| at > now), "the next plan is not in the past");
        actions(world, &plan.pools[0])
    }

    fn registered(&mut self, now: u64, asked: u64) {
        self.planner.observe(now * 1000, "pool", &PoolEvent::Started { asked_at: asked * 1000, took: (now - asked) * 1000 });
    }

    fn answered(&mut self, now: u64, accepted: bool) {
        let asked_at = now * 1000;
        let refused = || PoolEvent::Failed { asked_at, by: Obstacle::Quota, message: "exceeded quota: pods".to_owned() };
        let event = if accepted { PoolEvent::Accepted { asked_at } } else { refused() };
        self.planner.observe(asked_at + 1, "pool", &event);
    }
}

/// What a plan means for a world; checks that no busy worker is chosen.
pub fn actions(world: &World, plan: &PoolPlan) -> Actions {
    assert!(plan.give_way.is_empty(), "nobody to give way to");
    for drain in &plan.drain {
        let worker = &world.workers[&drain.worker.0];
        assert!(worker.ready && worker.executing.is_empty(), "{worker:?} is to be drained");
    }
    for key in &plan.cancel {
        assert!(!world.workers[&key.0].ready, "only a starting worker is given up");
    }
    let drained = plan.drain.iter().map(|drain| drain.worker.0);
    Actions { create: plan.create, remove: plan.cancel.iter().map(|key| key.0).chain(drained).collect() }
}

/// Hides how long the attempts that execute have been running.
pub fn without_running_evidence(now: u64, pool: &mut Pool) {
    for worker in &mut pool.workers {
        if let Phase::Ready { running, .. } = &mut worker.phase {
            running.iter_mut().for_each(|attempt| attempt.started_at = now);
        }
    }
}
