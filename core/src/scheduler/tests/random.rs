//! Random sequences: thousands of short lives of a cluster, the checker and the oracle after every step.
//!
//! `SCALABLE_SEQUENCES` says how many, `SCALABLE_SEED` replays one.

use super::super::mutation::Mutation;
use super::super::task_table::{TaskEvent, TaskState, TaskVerdict, task_next};
use super::super::worker_table::{SessionEvent, SessionVerdict, WORKER_STATES, session_next};
use super::super::{Happening, TransitionCounts};
use super::sim::Sim;
use std::panic::{AssertUnwindSafe, catch_unwind};

const SEQUENCES: u64 = 10_000;
/// Every legal step and every refusal of both tables is taken at least this often.
const TAKEN_MIN: u64 = 100;
/// A deliberate fault has to be seen within this many sequences.
const MUTATION_SEQUENCES: u64 = 2_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn play(seed: u64, mutation: Option<Mutation>) -> Result<TransitionCounts, String> {
    let mut sim = Sim::new(seed, mutation);
    let played = catch_unwind(AssertUnwindSafe(|| sim.run()));
    match played {
        Ok(Ok(())) => Ok(sim.machine.counts().clone()),
        Ok(Err(what)) => Err(what),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err(format!("panic: {}", said.unwrap_or("?")))
        }
    }
}

#[test]
fn random_sequences_keep_every_promise() {
    let replay = number("SCALABLE_SEED");
    let sequences = number("SCALABLE_SEQUENCES").unwrap_or(SEQUENCES);
    let seeds = match replay {
        Some(seed) => seed..seed + 1,
        None => 1..sequences + 1,
    };
    let mut total = TransitionCounts::default();
    for seed in seeds {
        match play(seed, None) {
            Ok(counts) => total.add(&counts),
            Err(what) => panic!(
                "seed {seed}: {what}\n\nreplay: SCALABLE_SEED={seed} cargo test -p scalable-core random_sequences_keep_every_promise"
            ),
        }
    }
    let rare = print_counts(&total);
    if replay.is_none() && sequences >= SEQUENCES {
        assert!(rare.is_empty(), "taken less than {TAKEN_MIN} times: {rare:?}");
    }
}

/// Prints how often each step was taken, and returns the rare ones.
fn print_counts(counts: &TransitionCounts) -> Vec<String> {
    let mut rare = Vec::new();
    let mut line = |what: String, taken: u64| {
        println!("{taken:>10}  {what}");
        if taken < TAKEN_MIN {
            rare.push(what);
        }
    };
    for state in TaskState::ALL {
        for event in TaskEvent::ALL {
            match task_next(state, event) {
                TaskVerdict::To(next) => line(format!("{state:?} + {event:?} -> {next:?}"), counts.of_task(state, event)),
                TaskVerdict::Refused => line(format!("{state:?} + {event:?} refused"), counts.of_task(state, event)),
                TaskVerdict::Never => {}
            }
        }
    }
    for state in WORKER_STATES {
        for event in SessionEvent::ALL {
            match session_next(state, event) {
                SessionVerdict::To(next) => {
                    line(format!("worker {state:?} + {event:?} -> {next:?}"), counts.of_session(state, event))
                }
                SessionVerdict::Refused => line(format!("worker {state:?} + {event:?} refused"), counts.of_session(state, event)),
                SessionVerdict::Never => {}
            }
        }
    }
    for what in Happening::ALL {
        line(format!("{what:?}"), counts.of(what));
    }
    line("fenced".to_owned(), counts.fenced);
    rare
}

#[test]
fn every_deliberate_fault_is_caught() {
    let mut missed = Vec::new();
    for mutation in Mutation::ALL {
        let caught = (1..=MUTATION_SEQUENCES).find_map(|seed| play(seed, Some(mutation)).err().map(|what| (seed, what)));
        match caught {
            Some((seed, what)) => {
                println!("{mutation:?}: caught by sequence {seed}: {}", what.lines().next().unwrap_or_default());
            }
            None => missed.push(mutation),
        }
    }
    assert!(missed.is_empty(), "not caught within {MUTATION_SEQUENCES} sequences: {missed:?}");
}
