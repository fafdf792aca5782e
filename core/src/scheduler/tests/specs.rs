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
        keeps: false,
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

/// A valid open run: groups that grow and others, what reads and what merely follows.
pub(super) fn random_open_run(rng: &mut Rng, names: &mut Names, number: u64) -> RunSpec {
    let mut run = RunSpec { open: true, groups: Vec::new(), ..random_run(rng, names, number) };
    let (mut specs, mut lengths): (Vec<GroupSpec>, Vec<(u32, bool)>) = (Vec::new(), Vec::new());
    for _ in 0..1 + rng.below(3) {
        let mut spec = random_group(rng, names, &specs, &lengths);
        spec.resources.custom.retain(|(name, amount)| run.totals.iter().all(|(total, most)| total != name || *amount <= *most));
        let fixed = if let Length::Fixed(length) = spec.length { length } else { 0 };
        lengths.push((fixed, spec.length == Length::Growing));
        specs.push(spec);
    }
    run.groups = specs;
    run
}

/// One more group of an open run, after those with these specs and lengths (and whether they grow).
pub(super) fn random_group(rng: &mut Rng, names: &mut Names, before: &[GroupSpec], lengths: &[(u32, bool)]) -> GroupSpec {
    let growing = before.is_empty() || rng.chance(50);
    let mut length = if growing { Length::Growing } else { Length::Fixed(rng.below(5) as u32) };
    let mut dependencies = Vec::new();
    for (up, &(other, grows)) in lengths.iter().enumerate() {
        if !rng.chance(if growing { 15 } else { 45 }) {
            continue;
        }
        let open = matches!(before[up].length, Length::From(_));
        let kind = match rng.below(4) {
            0 | 1 if !growing && !grows && !open && other > 0 => {
                if rng.chance(50) {
                    length = Length::Fixed(other);
                }
                match length {
                    Length::Fixed(own) if own == other => {
                        DependencyKind::Projection(vec![Axis { length: own, upstream_stride: 1, downstream_stride: 1 }])
                    }
                    Length::Fixed(1) => {
                        DependencyKind::Projection(vec![Axis { length: other, upstream_stride: 1, downstream_stride: 0 }])
                    }
                    Length::Fixed(own) if own > 0 => {
                        let pair = |rng: &mut Rng| (rng.below(other.into()) as u32, rng.below(own.into()) as u32);
                        DependencyKind::Edges((0..rng.below(6)).map(|_| pair(rng)).collect())
                    }
                    _ => DependencyKind::Whole,
                }
            }
            2 if other > 0 && !open => DependencyKind::One(rng.below(other.into()) as u32),
            _ => DependencyKind::Whole,
        };
        dependencies.push(Dependency { group: up, kind, data: rng.chance(70) });
    }
    // A later choice may have changed the length that an earlier one was made for.
    dependencies.retain(|dependency| match (&dependency.kind, length) {
        (DependencyKind::Projection(axes), Length::Fixed(own)) => {
            axes[0].downstream_stride * axes[0].length == own || own == 1 && axes[0].downstream_stride == 0
        }
        (DependencyKind::Edges(pairs), Length::Fixed(own)) => pairs.iter().all(|(_, to)| *to < own),
        _ => true,
    });
    let scratch = names.intern(SCRATCH).unwrap();
    let mut resources = Resources {
        milli_cpus: *rng.pick(&[0, 500, 1_000, 2_000]),
        memory_bytes: *rng.pick(&[0, 1 << 30]),
        ..Resources::default()
    };
    if rng.chance(5) {
        resources.custom.push((scratch, 1));
    }
    GroupSpec {
        name: format!("g{}", before.len()),
        component: rng.pick(&["model", "model", "tools"]).to_string(),
        length,
        dependencies,
        priority: rng.below(3) as i32 - 1,
        max_parallel: if rng.chance(20) { 1 + rng.below(3) as u32 } else { 0 },
        always: rng.chance(15),
        policy: random_policy(rng),
        resources,
    }
}
