//! What the platform refuses, how starts fail, and how long a pool waits before it tries again.
//!
//! ```text
//!            failed                      failed by a worker asked for later
//! healthy ───────────► waiting until ──► (longer) ... from `start_failures` in a row on: paused
//!    ▲                       │ over
//!    │  it helped            ▼
//!    └──────────────── one at a time, doubling with each success
//! ```
//!
//! Many workers are asked for at once and fail for one reason. Only the first failure of such a wave counts: one of a worker that
//! was asked for before the last strike is no new evidence.

use super::fixed::HEALTHY_AFTER;
use super::snapshot::{Phase, Pool};
use crate::ids::{MILLISECOND, Micros, SECOND};

/// Kinds of obstacle. The first three stand in the way of a worker's creation, the others of its start or its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// A quota is used up.
    Quota,
    /// The platform refuses this worker: rights, admission, a limit on a single worker.
    Refused,
    /// The platform does not answer, or with an error of its own.
    Unavailable,
    /// No room in the cluster. Waited for by the workers themselves; see [`Parameters::max_unschedulable`].
    ///
    /// [`Parameters::max_unschedulable`]: super::Parameters::max_unschedulable
    Unschedulable,
    /// The image cannot be had.
    Image,
    /// The worker cannot be set up: a volume, a secret, an executable is missing.
    Config,
    /// The worker starts and ends.
    Crash,
}

impl Obstacle {
    /// Waits after the first failure and at most, in between doubling. The first crash is made up for at once, as a worker of a
    /// fixed pool is.
    fn waits(self) -> (Micros, Micros) {
        match self {
            Obstacle::Quota | Obstacle::Unschedulable => (5 * SECOND, 60 * SECOND),
            Obstacle::Refused => (30 * SECOND, 300 * SECOND),
            Obstacle::Unavailable => (SECOND, 30 * SECOND),
            Obstacle::Image | Obstacle::Config => (10 * SECOND, 300 * SECOND),
            Obstacle::Crash => (500 * MILLISECOND, 60 * SECOND),
        }
    }

    /// Whether the platform taking a creation shows that the obstacle is gone.
    fn ends_with_acceptance(self) -> bool {
        matches!(self, Obstacle::Quota | Obstacle::Refused | Obstacle::Unavailable | Obstacle::Unschedulable)
    }

    fn wait(self, strikes: u32) -> Micros {
        let (first, most) = self.waits();
        match (self, strikes) {
            (Obstacle::Crash, 0 | 1) => 0,
            (_, strikes) => (first << strikes.saturating_sub(1).min(20)).min(most),
        }
    }

    /// In words, to follow the pool's name.
    pub fn words(self) -> &'static str {
        match self {
            Obstacle::Quota => "the quota is used up",
            Obstacle::Refused => "the platform refuses its workers",
            Obstacle::Unavailable => "the platform does not answer",
            Obstacle::Unschedulable => "the cluster has no room for its workers",
            Obstacle::Image => "the image cannot be had",
            Obstacle::Config => "its workers cannot be set up",
            Obstacle::Crash => "its workers keep ending",
        }
    }
}

/// Something that happened to a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolEvent {
    /// The platform took the creation of a worker.
    Accepted {
        /// When it was asked for.
        asked_at: Micros,
    },
    /// A worker registered.
    Started {
        /// When it was asked for.
        asked_at: Micros,
        /// How long its start took. Waiting for room in the cluster is no part of it where the platform tells them apart.
        took: Micros,
    },
    /// A worker was refused, or ended before it registered. One that the planner gave up is not reported.
    Failed {
        /// When it was asked for.
        asked_at: Micros,
        /// Why.
        by: Obstacle,
        /// The platform's own words.
        message: String,
    },
    /// A registered worker is dead and was not told to leave. One that did not live for [`HEALTHY_AFTER`] counts as a crash;
    /// losses that are the platform's doing (its node, an eviction) are not reported.
    Died {
        /// When it was asked for.
        asked_at: Micros,
        /// How long it was registered.
        lived: Micros,
        /// The platform's own words.
        message: String,
    },
}

/// What stands in a pool's way at present.
#[derive(Clone, Debug, Default)]
pub(super) struct Trouble {
    spell: Option<Spell>,
}

#[derive(Clone, Debug)]
struct Spell {
    by: Obstacle,
    message: String,
    strikes: u32,
    struck_at: Micros,
    until: Micros,
    /// How many workers asked for since the strike there may be at once.
    allowance: u32,
    /// A plan was made since the strike.
    planned: bool,
}

/// How many workers a pool in trouble may create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leave {
    pub(super) most: u32,
    pub(super) by: Obstacle,
    pub(super) message: String,
    pub(super) paused: bool,
    /// While it waits.
    pub(super) until: Option<Micros>,
}

impl Trouble {
    /// Longest message that is kept, in bytes.
    const MESSAGE_MAX: usize = 1024;

    pub(super) fn observe(&mut self, now: Micros, event: &PoolEvent) {
        match event {
            PoolEvent::Accepted { asked_at } => self.helped(*asked_at, |by| by.ends_with_acceptance()),
            PoolEvent::Started { asked_at, .. } => self.helped(*asked_at, |_| true),
            PoolEvent::Failed { asked_at, by, message } => self.strike(now, *asked_at, *by, message),
            PoolEvent::Died { asked_at, lived, message } if *lived < HEALTHY_AFTER => {
                self.strike(now, *asked_at, Obstacle::Crash, message);
            }
            PoolEvent::Died { .. } => {}
        }
    }

    fn strike(&mut self, now: Micros, asked_at: Micros, by: Obstacle, message: &str) {
        let before = self.spell.as_ref().map_or(0, |spell| spell.strikes);
        if self.spell.as_ref().is_some_and(|spell| spell.by == by && (asked_at < spell.struck_at || !spell.planned)) {
            return;
        }
        let strikes = before.saturating_add(1);
        let mut end = message.len().min(Self::MESSAGE_MAX);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        let message = message[..end].to_owned();
        self.spell =
            Some(Spell { by, message, strikes, struck_at: now, until: now + by.wait(strikes), allowance: 1, planned: false });
    }

    /// A worker asked for since the strike came further than the obstacle lets them.
    fn helped(&mut self, asked_at: Micros, ends: impl Fn(Obstacle) -> bool) {
        let Some(spell) = &mut self.spell else { return };
        if asked_at < spell.struck_at || !spell.planned || !ends(spell.by) {
            return;
        }
        spell.allowance = spell.allowance.saturating_mul(2);
        // A crash is over only when one has lived long enough: those that end register first.
        if spell.by == Obstacle::Crash {
            return;
        }
        spell.strikes = spell.strikes.saturating_sub(1);
        if spell.strikes == 0 {
            self.spell = None;
        }
    }

    /// How many workers may be created now; nothing when nothing stands in the way.
    pub(super) fn leave(&mut self, now: Micros, pool: &Pool) -> Option<Leave> {
        let spell = self.spell.as_mut()?;
        spell.planned = true;
        let since = pool.workers.iter().filter(|worker| worker.asked_at >= spell.struck_at);
        let lives = |phase: &Phase| matches!(phase, Phase::Ready { registered_at, .. } if *registered_at + HEALTHY_AFTER <= now);
        if since.clone().any(|worker| lives(&worker.phase)) {
            self.spell = None;
            return None;
        }
        let tried = u32::try_from(since.count()).unwrap_or(u32::MAX);
        let waiting = spell.until > now;
        Some(Leave {
            most: if waiting { 0 } else { spell.allowance.saturating_sub(tried) },
            by: spell.by,
            message: spell.message.clone(),
            paused: spell.strikes >= pool.parameters.start_failures,
            until: waiting.then_some(spell.until),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::{Worker, WorkerKey};
    use super::*;
    use crate::planner::Parameters;

    fn pool(workers: Vec<Worker>) -> Pool {
        Pool {
            name: "p".to_owned(),
            minimum: 0,
            maximum: 100,
            minimum_at_once: false,
            parameters: Parameters::DEFAULT,
            groups: vec![],
            workers,
            room_coming: false,
            object_bytes_per_worker: None,
        }
    }

    fn starting(asked_at: Micros) -> Worker {
        Worker { key: WorkerKey(asked_at), asked_at, phase: Phase::Starting { blocked: None } }
    }

    fn failed(asked_at: Micros, by: Obstacle) -> PoolEvent {
        PoolEvent::Failed { asked_at, by, message: "words".to_owned() }
    }

    #[test]
    fn a_wave_of_refusals_is_one_strike_and_waits_double_up_to_a_minute() {
        let mut trouble = Trouble::default();
        for at in 10..20 {
            trouble.observe(at, &failed(9, Obstacle::Quota));
        }
        let leave = trouble.leave(20, &pool(vec![])).unwrap();
        assert_eq!((leave.most, leave.until, leave.paused), (0, Some(10 + 5 * SECOND), false));
        let mut now = 10 + 5 * SECOND;
        for wait in [10, 20, 40, 60, 60] {
            assert_eq!(trouble.leave(now, &pool(vec![])).unwrap().most, 1, "one is tried");
            assert_eq!(trouble.leave(now, &pool(vec![starting(now)])).unwrap().most, 0, "and no second one meanwhile");
            trouble.observe(now + 1, &failed(now, Obstacle::Quota));
            let leave = trouble.leave(now + 1, &pool(vec![])).unwrap();
            assert_eq!(leave.until, Some(now + 1 + wait * SECOND));
            now = now + 1 + wait * SECOND;
        }
        assert!(trouble.leave(now, &pool(vec![])).unwrap().paused);
        // What is accepted opens the way step by step: 6 strikes, 6 successes.
        for round in 1..6 {
            trouble.observe(now + round, &PoolEvent::Accepted { asked_at: now });
            assert_eq!(trouble.leave(now + round, &pool(vec![])).unwrap().most, 1 << round);
        }
        trouble.observe(now + 6, &PoolEvent::Accepted { asked_at: now });
        assert_eq!(trouble.leave(now + 6, &pool(vec![])), None);
    }

    #[test]
    fn a_first_crash_is_made_up_for_at_once_and_only_a_long_life_ends_the_spell() {
        let mut trouble = Trouble::default();
        trouble.observe(100, &PoolEvent::Died { asked_at: 1, lived: HEALTHY_AFTER, message: String::new() });
        assert_eq!(trouble.leave(100, &pool(vec![])), None, "an old worker's end is no trouble");
        let crash = |asked_at| PoolEvent::Died { asked_at, lived: 0, message: "exit 1".to_owned() };
        trouble.observe(100, &crash(1));
        assert_eq!(trouble.leave(100, &pool(vec![])).unwrap().most, 1);
        trouble.observe(200, &PoolEvent::Started { asked_at: 100, took: 100 });
        trouble.observe(201, &crash(100));
        let leave = trouble.leave(201, &pool(vec![])).unwrap();
        assert_eq!((leave.until, leave.message.as_str()), (Some(201 + SECOND), "exit 1"));
        let ready = Phase::Ready { registered_at: 300, idle_since: None, running: vec![], only_bytes: 0 };
        let lives = pool(vec![Worker { key: WorkerKey(1), asked_at: 202, phase: ready }]);
        assert!(trouble.leave(300 + HEALTHY_AFTER - 1, &lives).is_some());
        assert_eq!(trouble.leave(300 + HEALTHY_AFTER, &lives), None);
    }
}
