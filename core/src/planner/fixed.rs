//! What to do about a pool of workers: a pure function from what is wanted and what is there to operations.
//!
//! This is the fixed-size planner of targets whose pools do not scale; the autoscaling planner is another function of the
//! same shape. It never chooses a busy worker because it never removes one.

use crate::ids::{MILLISECOND, Micros, SECOND};

/// First wait after a worker died young; doubles with every further one up to [`BACKOFF_MAX`].
pub const BACKOFF_INITIAL: Micros = 100 * MILLISECOND;
/// Longest wait between two starts in a pool whose workers keep dying.
pub const BACKOFF_MAX: Micros = 30 * SECOND;
/// A worker that lived this long resets the back-off of its pool.
pub const HEALTHY_AFTER: Micros = 30 * SECOND;

/// What a pool should look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Number of workers.
    pub workers: u32,
}

/// What a pool looks like, and its history of deaths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Ordinals of workers that exist or are being started.
    pub present: Vec<u32>,
    /// Deaths without a healthy worker in between.
    pub deaths_in_row: u32,
    /// When the last one died.
    pub last_death: Option<Micros>,
}

impl Observed {
    /// Takes note of a worker's death after it had lived for `lived`.
    pub fn died(&mut self, now: Micros, ordinal: u32, lived: Micros) {
        self.present.retain(|present| *present != ordinal);
        self.deaths_in_row = if lived >= HEALTHY_AFTER { 1 } else { self.deaths_in_row.saturating_add(1) };
        self.last_death = Some(now);
    }
}

/// What to do now, and when to look again where waiting is part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Ordinals to create.
    pub create: Vec<u32>,
    /// When the back-off is over.
    pub again_at: Option<Micros>,
}

/// Plans one pool. The first death is replaced at once; from the second in a row on, after a back-off.
pub fn plan(now: Micros, desired: &Desired, observed: &Observed) -> Plan {
    let missing: Vec<u32> = (0..desired.workers).filter(|ordinal| !observed.present.contains(ordinal)).collect();
    if missing.is_empty() {
        return Plan { create: Vec::new(), again_at: None };
    }
    let wait = match observed.deaths_in_row {
        0 | 1 => 0,
        n => (BACKOFF_INITIAL << (n - 2).min(20)).min(BACKOFF_MAX),
    };
    let due = observed.last_death.map_or(now, |at| at + wait);
    if due > now { Plan { create: Vec::new(), again_at: Some(due) } } else { Plan { create: missing, again_at: None } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_workers_are_created_and_the_back_off_grows_with_young_deaths() {
        let desired = Desired { workers: 2 };
        let mut observed = Observed::default();
        assert_eq!(plan(0, &desired, &observed).create, vec![0, 1]);
        observed.present = vec![0, 1];
        assert_eq!(plan(0, &desired, &observed), Plan { create: vec![], again_at: None });

        observed.died(10 * SECOND, 1, SECOND);
        assert_eq!(plan(10 * SECOND, &desired, &observed).create, vec![1], "the first death is replaced at once");
        observed.present.push(1);
        observed.died(11 * SECOND, 1, SECOND);
        assert_eq!(plan(11 * SECOND, &desired, &observed).again_at, Some(11 * SECOND + BACKOFF_INITIAL));
        for _ in 0..40 {
            observed.died(20 * SECOND, 1, SECOND);
        }
        assert_eq!(plan(20 * SECOND, &desired, &observed).again_at, Some(20 * SECOND + BACKOFF_MAX));
        assert_eq!(plan(50 * SECOND, &desired, &observed).create, vec![1]);
        observed.died(60 * SECOND, 0, HEALTHY_AFTER);
        assert_eq!(plan(60 * SECOND, &desired, &observed).create, vec![0, 1], "a worker that lived long resets the back-off");
    }
}
