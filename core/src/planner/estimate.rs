//! How long tasks last and workers take to start, from what was seen so far.
//!
//! What still runs is evidence too. Without it a group of which nothing has finished would look short for ever, and a worker that
//! is needed would be given up while it starts.

use super::snapshot::{Group, Phase, Pool, Running};
use crate::ids::Micros;
use std::collections::VecDeque;

/// Durations of the latest finished tasks of one group, at most [`Durations::KEPT`] of them.
#[derive(Clone, Debug, Default)]
pub struct Durations {
    kept: VecDeque<Micros>,
    sum: u128,
}

impl Durations {
    /// How many are kept; the oldest gives way.
    pub const KEPT: usize = 200;

    /// Takes note of one.
    pub fn push(&mut self, duration: Micros) {
        if self.kept.len() == Self::KEPT
            && let Some(oldest) = self.kept.pop_front()
        {
            self.sum -= u128::from(oldest);
        }
        self.kept.push_back(duration);
        self.sum += u128::from(duration);
    }

    /// Their mean, once there is one.
    pub fn mean(&self) -> Option<Micros> {
        if self.kept.is_empty() {
            return None;
        }
        Micros::try_from(self.sum / self.kept.len() as u128).ok()
    }
}

/// How long the latest workers took from being asked for to their registration.
#[derive(Clone, Debug, Default)]
pub(super) struct Starts {
    kept: VecDeque<Micros>,
}

impl Starts {
    const KEPT: usize = 20;
    const ENOUGH: usize = 3;

    pub(super) fn push(&mut self, took: Micros) {
        if self.kept.len() == Self::KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(took);
    }

    /// The median, or `expected` until three are known.
    pub(super) fn median(&self, expected: Micros) -> Micros {
        if self.kept.len() < Self::ENOUGH {
            return expected;
        }
        let mut sorted: Vec<Micros> = self.kept.iter().copied().collect();
        sorted.sort_unstable();
        sorted[sorted.len() / 2]
    }
}

/// What is believed of each group of a pool.
pub(super) struct Estimates {
    /// By position in [`Pool::groups`]; one more for attempts of groups that are not there.
    each: Vec<Estimate>,
}

#[derive(Clone, Copy)]
struct Estimate {
    duration: Micros,
    measured: bool,
}

impl Estimates {
    pub(super) fn of(pool: &Pool, now: Micros) -> Self {
        let stranger = pool.groups.len();
        let mut longest = vec![0; stranger + 1];
        for worker in &pool.workers {
            let Phase::Ready { running, .. } = &worker.phase else { continue };
            for attempt in running {
                let at = (attempt.group as usize).min(stranger);
                longest[at] = now.saturating_sub(attempt.started_at).max(longest[at]);
            }
        }
        let none = Group::default();
        let groups = pool.groups.iter().chain(std::iter::once(&none));
        let each = groups.zip(longest).map(|(group, longest)| match group.measured {
            // Those still running have lasted at least this long; half of it counts, as the longest is not the mean.
            Some(mean) => Estimate { duration: mean.max(longest / 2), measured: true },
            // What has lasted so long is expected to last as long again.
            None => Estimate {
                duration: group.expected.unwrap_or(pool.parameters.expected_duration).max(longest.saturating_mul(2)),
                measured: false,
            },
        });
        Self { each: each.collect() }
    }

    /// How long a task of a group lasts.
    pub(super) fn duration(&self, group: usize) -> Micros {
        self.each[group.min(self.each.len() - 1)].duration
    }

    /// How long an attempt still runs.
    pub(super) fn remaining(&self, attempt: &Running, now: Micros) -> Micros {
        let estimate = self.each[(attempt.group as usize).min(self.each.len() - 1)];
        let elapsed = now.saturating_sub(attempt.started_at);
        let left = estimate.duration.saturating_sub(elapsed);
        if !estimate.measured || elapsed > estimate.duration { left.max(elapsed) } else { left }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_latest_durations_count() {
        let mut durations = Durations::default();
        assert_eq!(durations.mean(), None);
        for _ in 0..Durations::KEPT {
            durations.push(10);
        }
        assert_eq!(durations.mean(), Some(10));
        for _ in 0..Durations::KEPT / 2 {
            durations.push(30);
        }
        assert_eq!(durations.mean(), Some(20));
    }

    #[test]
    fn a_start_takes_what_is_expected_until_three_were_seen() {
        let mut starts = Starts::default();
        for took in [5, 1] {
            starts.push(took);
            assert_eq!(starts.median(60), 60);
        }
        starts.push(3);
        assert_eq!(starts.median(60), 3);
    }
}
