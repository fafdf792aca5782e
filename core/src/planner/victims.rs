//! Which workers go first. Busy ones are never among those that are removed.

use super::estimate::Estimates;
use super::snapshot::{Phase, Pool};
use super::trouble::Obstacle;
use crate::ids::Micros;
use std::cmp::Reverse;

/// Positions of the workers that start, in the order in which they are given up: those without room, those stuck otherwise, the
/// newest.
pub(super) fn starting(pool: &Pool) -> Vec<usize> {
    let mut found: Vec<_> = pool
        .workers
        .iter()
        .enumerate()
        .filter_map(|(at, worker)| match &worker.phase {
            Phase::Starting { blocked } => {
                let rank = match blocked {
                    Some(blocked) if blocked.by == Obstacle::Unschedulable => 0,
                    Some(_) => 1,
                    None => 2,
                };
                Some((rank, Reverse(worker.asked_at), Reverse(worker.key), at))
            }
            _ => None,
        })
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(.., at)| at).collect()
}

/// Positions of the workers that have been idle since a time that `long_enough` accepts, in the order in which they are let go:
/// those whose objects are least to move, then the longest idle, then the newest.
pub(super) fn idle(pool: &Pool, long_enough: impl Fn(Micros) -> bool) -> Vec<usize> {
    let mut found: Vec<_> = pool
        .workers
        .iter()
        .enumerate()
        .filter_map(|(at, worker)| match &worker.phase {
            Phase::Ready { idle_since: Some(since), only_bytes, .. } if long_enough(*since) => {
                Some((*only_bytes, *since, Reverse(worker.key), at))
            }
            _ => None,
        })
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(.., at)| at).collect()
}

/// Positions of busy workers, the one that is done first in front.
pub(super) fn busy(pool: &Pool, now: Micros, estimates: &Estimates) -> Vec<usize> {
    let mut found: Vec<_> = pool
        .workers
        .iter()
        .enumerate()
        .filter_map(|(at, worker)| match &worker.phase {
            Phase::Ready { idle_since: None, running, .. } => {
                let left = running.iter().map(|attempt| estimates.remaining(attempt, now)).max().unwrap_or(0);
                Some((left, Reverse(worker.key), at))
            }
            _ => None,
        })
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(.., at)| at).collect()
}

/// How many ready workers must stay so that the objects that only one worker holds find room on those that stay; 60 % of a worker's
/// bytes are counted on.
pub(super) fn keepers(pool: &Pool) -> u32 {
    let Some(each) = pool.object_bytes_per_worker else { return 0 };
    let held: u128 = pool
        .workers
        .iter()
        .map(|worker| match &worker.phase {
            Phase::Ready { only_bytes, .. } => u128::from(*only_bytes),
            _ => 0,
        })
        .sum();
    let usable = (u128::from(each) * 6 / 10).max(1);
    u32::try_from(held.div_ceil(usable)).unwrap_or(u32::MAX)
}
