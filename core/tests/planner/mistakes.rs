//! Two mistakes that were made once: the scenarios' check must see them.

use crate::fixture::scenarios;
use crate::policy::{Planned, without_running_evidence};
use crate::scenarios::{Bench, sum};
use crate::world::{Actions, Policy, SLOTS, World};
use scalable_core::planner::{Group, Phase, Pool};
use std::collections::VecDeque;

/// The first mistake: one mean over all groups, and as many workers as the work that is there takes within the target duration.
struct GlobalMean {
    wanted: VecDeque<(u64, usize)>,
}

impl Policy for GlobalMean {
    fn decide(&mut self, world: &World) -> Actions {
        const TARGET: u64 = 60_000_000;
        let means: Vec<u64> = world.durations.iter().filter_map(|durations| durations.mean()).collect();
        let mean = if means.is_empty() { 15_000_000 } else { means.iter().sum::<u64>() / means.len() as u64 };
        let executing: usize = world.workers.values().map(|worker| worker.executing.len()).sum();
        let tasks = world.queue.len() + executing;
        let slots = (tasks as u64 * mean).div_ceil(TARGET).min(tasks as u64);
        let want = (slots as usize).div_ceil(SLOTS).min(world.setting.maximum as usize);
        self.wanted.push_back((world.now, want));
        self.wanted.retain(|(at, _)| at + 60_000 >= world.now);
        let most = self.wanted.iter().map(|(_, want)| *want).max().unwrap();
        let surplus = world.workers.len().saturating_sub(most);
        let idle = world.workers.iter().filter(|(_, worker)| worker.executing.is_empty()).map(|(id, _)| *id);
        Actions { create: want.saturating_sub(world.workers.len()) as u32, remove: idle.take(surplus).collect() }
    }
}

/// A planner with one more mistake of the kind: it is shown all groups as one.
fn all_groups_as_one(_: u64, pool: &mut Pool) {
    let queued = pool.groups.iter().map(|group| group.queued).sum();
    let measured: Vec<u64> = pool.groups.iter().filter_map(|group| group.measured).collect();
    let mean = measured.iter().sum::<u64>().checked_div(measured.len() as u64);
    pool.groups = vec![Group { slots: SLOTS as u32, queued, measured: mean, ..Group::default() }];
    for worker in &mut pool.workers {
        if let Phase::Ready { running, .. } = &mut worker.phase {
            running.iter_mut().for_each(|attempt| attempt.group = 0);
        }
    }
}

/// The check refuses the wrong policy and takes the planner.
fn check(scenario: &str, wrong: impl FnMut() -> Box<dyn Policy>) {
    let bench = Bench::new(scenarios().into_iter().find(|known| known.name.starts_with(scenario)).unwrap());
    let wrong = bench.complaints(&sum(&bench.scenario, wrong));
    assert!(wrong.iter().any(|complaint| complaint.contains("makespan")), "the mistake is not seen: {wrong:?}");
    let right = bench.complaints(&sum(&bench.scenario, || Box::new(Planned::new())));
    assert!(right.is_empty(), "{right:?}");
}

#[test]
fn one_mean_for_all_groups_is_seen() {
    check("bimodal", || Box::new(GlobalMean { wanted: VecDeque::new() }));
}

#[test]
fn groups_that_are_not_told_apart_are_seen() {
    check("bimodal", || Box::new(Planned::shown(all_groups_as_one)));
}

#[test]
fn work_that_still_runs_not_counting_as_evidence_is_seen() {
    check("burst 200 x ~40min", || Box::new(Planned::shown(without_running_evidence)));
}
