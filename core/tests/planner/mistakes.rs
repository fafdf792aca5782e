//! Two mistakes that were made once: the scenarios' check must see them.

use crate::fixture::{Scenario, scenarios};
use crate::policy::{Planned, without_running_evidence};
use crate::scenarios::{reference, sum, worse_than_reference};
use crate::world::{Actions, Policy, SLOTS, World};
use std::collections::VecDeque;

fn scenario(name: &str) -> Scenario {
    scenarios().into_iter().find(|scenario| scenario.name.starts_with(name)).unwrap()
}

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

#[test]
fn one_mean_for_all_groups_is_seen() {
    let scenario = scenario("bimodal");
    let reference = reference(&scenario);
    let wrong = sum(&scenario, || Box::new(GlobalMean { wanted: VecDeque::new() }));
    assert!(worse_than_reference(&wrong, &reference).is_some(), "{wrong:?} beside {reference:?}");
    let right = sum(&scenario, || Box::new(Planned::new()));
    assert_eq!(worse_than_reference(&right, &reference), None);
}

#[test]
fn work_that_still_runs_not_counting_as_evidence_is_seen() {
    let scenario = scenario("burst 200 x ~40min");
    let reference = reference(&scenario);
    let wrong = sum(&scenario, || Box::new(Planned::shown(without_running_evidence)));
    assert!(worse_than_reference(&wrong, &reference).is_some(), "{wrong:?} beside {reference:?}");
    let right = sum(&scenario, || Box::new(Planned::new()));
    assert_eq!(worse_than_reference(&right, &reference), None);
}
