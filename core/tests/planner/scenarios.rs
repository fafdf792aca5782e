//! The reference's scenarios: at most 1.1 times its windowed work balance, no task killed, and near a greedy oracle where tasks
//! last at least as long as a worker's start.

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

pub fn reference(scenario: &Scenario) -> Sum {
    let mut sum = Sum::default();
    for listing in &scenario.listings {
        sum.makespan += listing.reference.0;
        sum.worker_seconds += listing.reference.1;
    }
    sum
}

/// Why `ours` is not good enough beside the reference, if it is not.
pub fn worse_than_reference(ours: &Sum, reference: &Sum) -> Option<String> {
    let worse = |what: &str, ours: u64, reference: u64| {
        (ours * 10 > reference * 11).then(|| format!("{what} {ours} is above 1.1 x {reference}"))
    };
    worse("makespan", ours.makespan, reference.makespan)
        .or_else(|| worse("worker-seconds", ours.worker_seconds, reference.worker_seconds))
        .or_else(|| (ours.killed_tasks > 0).then(|| format!("{} tasks killed", ours.killed_tasks)))
}

/// Every task lasts at least as long as the shortest start, and on the mean as long as the mean start.
fn tasks_last_as_long_as_a_start(scenario: &Scenario) -> bool {
    scenario.listings.iter().all(|listing| {
        let starts = &listing.starts;
        let tasks = &listing.tasks;
        let shortest = tasks.iter().map(|task| task.lasts).min() >= starts.iter().min().copied();
        let (lasts, start): (u64, u64) = (tasks.iter().map(|task| task.lasts).sum(), starts.iter().sum());
        shortest && lasts as u128 * starts.len() as u128 >= start as u128 * tasks.len() as u128
    })
}

#[test]
fn as_good_as_the_reference_and_near_the_oracle() {
    let mut table = vec![format!(
        "{:32} | {:>8} {:>7} {:>7} {:>6} {:>5} {:>5} | {:>8} {:>7} | {:>8} {:>7} | of WWB      | of oracle",
        "mean of 5 seeds", "makespan", "wrk-h", "created", "unused", "flips", "kill", "WWB", "wrk-h", "oracle", "wrk-h"
    )];
    let mut failures = Vec::new();
    for scenario in scenarios() {
        let ours = sum(&scenario, || Box::new(Planned::new()));
        let reference = reference(&scenario);
        let oracle = sum(&scenario, || Box::new(Oracle));
        let seeds = scenario.listings.len() as f64;
        let mean = |figure: u64| figure as f64 / seeds;
        let hours = |seconds: u64| seconds as f64 / 3600.0 / seeds;
        let ratio = |a: u64, b: u64| a as f64 / b as f64;
        let judged = tasks_last_as_long_as_a_start(&scenario);
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
            if judged { " judged" } else { "" },
        ));
        failures.extend(worse_than_reference(&ours, &reference).map(|why| format!("{}: {why}", scenario.name)));
        if judged && ours.makespan * 100 > oracle.makespan * 115 {
            failures.push(format!("{}: makespan above 1.15 x the oracle's", scenario.name));
        }
        if judged && ours.worker_seconds * 100 > oracle.worker_seconds * 125 {
            failures.push(format!("{}: worker-seconds above 1.25 x the oracle's", scenario.name));
        }
    }
    #[allow(clippy::print_stdout)]
    {
        println!("{}", table.join("\n"));
    }
    assert!(failures.is_empty(), "{}\n{}", failures.join("\n"), table.join("\n"));
}
