//! The reference's scenarios: at most 1.1 times its windowed work balance, no task killed, and near a greedy oracle where tasks
//! last at least as long as a worker's start (the rows marked `judged`; beside the others the oracle is shown only).

use crate::fixture::{Scenario, scenarios};
use crate::oracle::Oracle;
use crate::policy::Planned;
use crate::world::{Outcome, Policy, Setting, World};

/// Sums over the seeds of a scenario.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    pub makespan: u64,
    pub worker_seconds: u64,
    pub killed_tasks: u64,
    pub created: u64,
    pub unused: u64,
    pub flips: u64,
}

pub fn sum(scenario: &Scenario, mut policy: impl FnMut() -> Box<dyn Policy>) -> Sum {
    let mut sum = Sum::default();
    for listing in &scenario.listings {
        let outcome: Outcome = World::new(listing, Setting::reference(scenario.room)).run(policy().as_mut());
        sum.makespan += outcome.makespan;
        sum.worker_seconds += outcome.worker_seconds;
        sum.killed_tasks += outcome.killed_tasks;
        sum.created += outcome.created;
        sum.unused += outcome.unused;
        sum.flips += outcome.flips;
    }
    sum
}

fn reference(scenario: &Scenario) -> Sum {
    let mut sum = Sum::default();
    for listing in &scenario.listings {
        sum.makespan += listing.reference.0;
        sum.worker_seconds += listing.reference.1;
    }
    sum
}

/// Every task lasts at least as long as the shortest start, and on the mean as long as the mean start.
fn tasks_last_as_long_as_a_start(scenario: &Scenario) -> bool {
    scenario.listings.iter().all(|listing| {
        let starts = &listing.starts;
        let tasks = &listing.tasks;
        let shortest = tasks.iter().map(|task| task.lasts).min() >= starts.iter().min().copied();
        let (lasts, start): (u64, u64) = (tasks.iter().map(|task| task.lasts).sum(), starts.iter().sum());
        shortest && u128::from(lasts) * starts.len() as u128 >= u128::from(start) * tasks.len() as u128
    })
}

/// A scenario with everything that a policy is judged by.
pub struct Bench {
    pub scenario: Scenario,
    pub reference: Sum,
    pub oracle: Sum,
    /// The oracle is a judge too.
    pub beside_oracle: bool,
}

impl Bench {
    pub fn new(scenario: Scenario) -> Self {
        let (reference, oracle) = (reference(&scenario), sum(&scenario, || Box::new(Oracle)));
        Bench { beside_oracle: tasks_last_as_long_as_a_start(&scenario), scenario, reference, oracle }
    }

    /// Why a policy is not good enough.
    pub fn complaints(&self, policy: &Sum) -> Vec<String> {
        let mut complaints = Vec::new();
        let mut check = |what: &str, figure: u64, most: u64| {
            if figure > most {
                complaints.push(format!("{}: {what} is {figure}, may be {most}", self.scenario.name));
            }
        };
        check("makespan beside the reference", policy.makespan, self.reference.makespan * 110 / 100);
        check("worker-seconds beside the reference", policy.worker_seconds, self.reference.worker_seconds * 110 / 100);
        check("number of tasks killed", policy.killed_tasks, 0);
        if self.beside_oracle {
            check("makespan beside the oracle", policy.makespan, self.oracle.makespan * 115 / 100);
            check("worker-seconds beside the oracle", policy.worker_seconds, self.oracle.worker_seconds * 125 / 100);
            // Not to know the durations costs the time in which they show, no more: two windows of a start and the target duration.
            // Proportions alone would forgive an hour's work that waits for one worker.
            let windows = 2 * (90 + 60) * self.scenario.listings.len() as u64;
            check("makespan beside the oracle's and what not knowing costs", policy.makespan, self.oracle.makespan + windows);
        }
        complaints
    }
}

#[test]
fn as_good_as_the_reference_and_near_the_oracle() {
    let mut table = vec![format!(
        "{:32} | {:>8} {:>7} {:>7} {:>6} {:>5} {:>5} | {:>8} {:>7} | {:>8} {:>7} | of WWB      | of oracle",
        "mean of 5 seeds", "makespan", "wrk-h", "created", "unused", "flips", "kill", "WWB", "wrk-h", "oracle", "wrk-h"
    )];
    let mut failures = Vec::new();
    for bench in scenarios().into_iter().map(Bench::new) {
        let Bench { scenario, reference, oracle, beside_oracle } = &bench;
        let ours = sum(scenario, || Box::new(Planned::new()));
        let seeds = scenario.listings.len() as f64;
        let mean = |figure: u64| figure as f64 / seeds;
        let hours = |seconds: u64| seconds as f64 / 3600.0 / seeds;
        let ratio = |a: u64, b: u64| a as f64 / b as f64;
        table.push(format!(
            "{:32} | {:8.0} {:7.2} {:7.0} {:6.0} {:5.1} {:5} | {:8.0} {:7.2} | {:8.0} {:7.2} | {:.3} {:.3} | {:.3} {:.3}{}",
            scenario.name,
            mean(ours.makespan),
            hours(ours.worker_seconds),
            mean(ours.created),
            mean(ours.unused),
            mean(ours.flips),
            ours.killed_tasks,
            mean(reference.makespan),
            hours(reference.worker_seconds),
            mean(oracle.makespan),
            hours(oracle.worker_seconds),
            ratio(ours.makespan, reference.makespan),
            ratio(ours.worker_seconds, reference.worker_seconds),
            ratio(ours.makespan, oracle.makespan),
            ratio(ours.worker_seconds, oracle.worker_seconds),
            if *beside_oracle { " judged" } else { "" },
        ));
        failures.extend(bench.complaints(&ours));
    }
    #[allow(clippy::print_stdout)]
    {
        println!("{}", table.join("\n"));
    }
    assert!(failures.is_empty(), "{}\n{}", failures.join("\n"), table.join("\n"));
}
