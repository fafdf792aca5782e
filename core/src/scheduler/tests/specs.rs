//! Random runs: every kind of dependency, open lengths, `always`, limits and totals, small enough to end soon.

use super::rng::Rng;
use crate::ids::SECOND;
use crate::resources::{Names, Resources};
use crate::spec::*;

/// The names that run-wide totals and workers use.
pub(super) const LICENCE: &str = "licence";
pub(super) const SCRATCH: &str = "scratch";

/// A group of its run's axes, as a manifest's `foreach` makes it.
struct Space {
    axes: Vec<usize>,
}

impl Space {
    fn length(&self, lengths: &[u32]) -> u32 {
        self.axes.iter().map(|axis| lengths[*axis]).product()
    }

    /// What one step along `axis` adds to the index; the last axis varies fastest.
    fn stride(&self, axis: usize, lengths: &[u32]) -> u32 {
        match self.axes.iter().position(|own| *own == axis) {
            None => 0,
            Some(at) => self.axes[at + 1..].iter().map(|axis| lengths[*axis]).product(),
        }
    }
}

/// The projection between two spaces of one run.
fn projection(upstream: &Space, downstream: &Space, lengths: &[u32]) -> Vec<Axis> {
    let used = |axis: &usize| upstream.axes.contains(axis) || downstream.axes.contains(axis);
    (0..lengths.len())
        .filter(used)
        .map(|axis| Axis {
            length: lengths[axis],
            upstream_stride: upstream.stride(axis, lengths),
            downstream_stride: downstream.stride(axis, lengths),
        })
        .collect()
}

/// A valid run.
pub(super) fn random_run(rng: &mut Rng, names: &mut Names, number: u64) -> RunSpec {
    let licence = names.intern(LICENCE).unwrap();
    let scratch = names.intern(SCRATCH).unwrap();
    let lengths: Vec<u32> = (0..3).map(|_| *rng.pick(&[1, 2, 2, 3, 3, 4, 0])).collect();
    let totals = if rng.chance(40) { vec![(licence, 1 + rng.below(3))] } else { Vec::new() };
    let count = 1 + rng.below(5) as usize;
    let mut spaces: Vec<Space> = Vec::new();
    let mut groups: Vec<GroupSpec> = Vec::new();
    for ordinal in 0..count {
        let axes: Vec<usize> = (0..lengths.len()).filter(|_| rng.chance(50)).collect();
        let space = Space { axes };
        let sources: Vec<usize> = (0..ordinal).filter(|at| matches!(groups[*at].length, Length::Fixed(1..))).collect();
        let open = !sources.is_empty() && rng.chance(15);
        let length = match open {
            true => Length::From(*rng.pick(&sources)),
            false => Length::Fixed(space.length(&lengths)),
        };
        let mut dependencies = Vec::new();
        for up in 0..ordinal {
            if !rng.chance(45) {
                continue;
            }
            let fixed = match (length, groups[up].length) {
                (Length::Fixed(own), Length::Fixed(other)) => Some((own, other)),
                _ => None,
            };
            let kind = match (fixed, rng.below(4)) {
                (Some(_), 0 | 1) => DependencyKind::Projection(projection(&spaces[up], &space, &lengths)),
                (Some((own, other)), 2) if own > 0 && other > 0 => {
                    let edges = rng.below(6);
                    DependencyKind::Edges(
                        (0..edges).map(|_| (rng.below(other.into()) as u32, rng.below(own.into()) as u32)).collect(),
                    )
                }
                _ => DependencyKind::Whole,
            };
            dependencies.push(Dependency { group: up, kind, data: false });
        }
        let mut resources = Resources {
            milli_cpus: *rng.pick(&[0, 500, 1_000, 1_000, 2_000]),
            memory_bytes: *rng.pick(&[0, 0, 1 << 30, 2 << 30]),
            gpus: u64::from(rng.chance(10)),
            ..Resources::default()
        };
        if rng.chance(25) && !totals.is_empty() {
            resources.custom.push((licence, 1));
        }
        if rng.chance(10) {
            resources.custom.push((scratch, 1));
        }
        groups.push(GroupSpec {
            name: format!("g{ordinal}"),
            component: rng.pick(&["model", "model", "tools"]).to_string(),
            length,
            dependencies,
            priority: rng.below(3) as i32 - 1,
            max_parallel: if rng.chance(20) { 1 + rng.below(3) as u32 } else { 0 },
            always: rng.chance(20),
            policy: random_policy(rng),
            resources,
        });
        spaces.push(space);
    }
    let mut client_key = [0; 16];
    client_key[..8].copy_from_slice(&number.to_le_bytes());
    RunSpec {
        name: format!("run-{number}"),
        owner: "tester".to_owned(),
        weight: 1 + rng.below(3) as u32,
        client_key,
        max_failures: if rng.chance(20) { 1 + rng.below(3) as u32 } else { 0 },
        open: false,
        totals,
        groups,
    }
}

fn random_policy(rng: &mut Rng) -> Policy {
    Policy {
        retries: rng.below(3) as u32,
        backoff: Backoff {
            initial: *rng.pick(&[0, SECOND / 10, SECOND, 4 * SECOND]),
            factor_milli: *rng.pick(&[1_000, 2_000]),
            max: 10 * SECOND,
        },
        timeout: *rng.pick(&[0, SECOND]),
        on_oom: Growth { factor_milli: *rng.pick(&[1_000, 1_500, 2_000]), max: 16 << 30 },
        on_timeout: Growth { factor_milli: *rng.pick(&[1_000, 2_000]), max: 60 * SECOND },
        retry_on: if rng.chance(15) { vec![RetryOn::Exit(75), RetryOn::Lost, RetryOn::Oom] } else { Vec::new() },
        lost_worker_budget: *rng.pick(&[0, 1, 3, 3, 3]),
        oom_budget: rng.below(3) as u32,
        infra_start_budget: rng.below(4) as u32,
    }
}
