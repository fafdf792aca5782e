//! What was decided and why: one sentence and the figures, kept for `explain`.

use super::trouble::Obstacle;
use crate::ids::{Micros, SECOND};
use std::collections::VecDeque;

/// What keeps a pool from having what it wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Its own maximum.
    Maximum(u32),
    /// The limit over all pools.
    MaxTotal(u32),
    /// How fast workers are created.
    Rate,
    /// Workers that are there already are blocked.
    Blocked {
        /// By what.
        by: Obstacle,
        /// How many of them.
        workers: u32,
    },
    /// The platform refused or starts failed.
    Trouble {
        /// What stands in the way.
        by: Obstacle,
        /// The platform's own words.
        message: String,
        /// So often in a row that one worker at a time is tried.
        paused: bool,
        /// When the next one is tried; nothing when it may be now.
        until: Option<Micros>,
    },
}

/// The figures behind a decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Workers wanted now, within the bounds.
    pub want: u32,
    /// The most that was wanted within the scale-down delay.
    pub want_recently: u32,
    /// Registered workers.
    pub ready: u32,
    /// Those of them that have nothing to do.
    pub idle: u32,
    /// Workers on their way.
    pub starting: u32,
    /// Those of them that are blocked.
    pub blocked: u32,
    /// Workers on their way out.
    pub draining: u32,
    /// Tasks that could execute now and do not.
    pub queued: u64,
    /// Tasks ready within a worker's start.
    pub soon: u64,
    /// Work of the window, in milliseconds of a whole worker.
    pub demand_ms: u64,
    /// What the workers can do of it, in milliseconds of a whole worker.
    pub supply_ms: u64,
    /// The window: a worker's start plus the target duration.
    pub window: Micros,
    /// How long a worker takes to start.
    pub start: Micros,
}

/// What was decided for a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// When.
    pub at: Micros,
    /// For which pool.
    pub pool: String,
    /// Why, in one sentence.
    pub reason: String,
    /// Workers created.
    pub create: u32,
    /// Starting workers given up.
    pub cancel: u32,
    /// Idle workers let go.
    pub drain: u32,
    /// Idle workers that are to go when what only they hold is elsewhere.
    pub moving: u32,
    /// Busy workers that leave when they are done, for another pool's sake.
    pub give_way: u32,
    /// What keeps the pool from having what it wants.
    pub limit: Option<Limit>,
    /// The figures.
    pub figures: Figures,
}

impl Decision {
    /// Whether it does anything. Workers that are being emptied stay.
    pub fn acts(&self) -> bool {
        self.create + self.cancel + self.drain + self.give_way > 0
    }
}

/// The sentence of a decision.
pub(super) fn reason(decision: &Decision, low: u32) -> String {
    let Figures { want, want_recently, ready, idle, starting, blocked, queued, soon, demand_ms, supply_ms, window, .. } =
        decision.figures;
    let window_s = window / SECOND;
    let balance = || {
        let coming = if soon > 0 { format!(" and {soon} soon") } else { String::new() };
        format!(
            "{queued} tasks queued{coming} need {} s of a worker within {window_s} s, {ready} ready and {starting} starting workers can \
             do {} s of it",
            demand_ms.div_ceil(1000),
            supply_ms / 1000
        )
    };
    let limited = || match &decision.limit {
        None => String::new(),
        Some(Limit::Maximum(maximum)) => format!("; its maximum is {maximum}"),
        Some(Limit::MaxTotal(total)) => format!("; all pools together may have {total}"),
        Some(Limit::Rate) => "; more follow step by step".to_owned(),
        Some(Limit::Blocked { by, workers }) => format!("; no more while {workers} are blocked: {}", by.words()),
        Some(Limit::Trouble { by, message, paused, .. }) => {
            let state = if *paused { "paused" } else { "backing off" };
            let colon = if message.is_empty() { "" } else { ": " };
            format!("; {state}, {}{colon}{message}", by.words())
        }
    };
    let staying = ready + starting;
    let lately = || {
        if staying > want_recently {
            format!("no more than {want_recently} were wanted lately")
        } else {
            "another pool has less than its share".to_owned()
        }
    };
    let mut parts = Vec::new();
    if decision.create > 0 {
        let why = if staying < low { format!("its minimum is {low} and it has {staying}") } else { balance() };
        parts.push(format!("creates {}: {why}{}", decision.create, limited()));
    }
    if decision.give_way > 0 {
        parts.push(format!(
            "lets {} busy workers leave when they are done: another pool has less than its share",
            decision.give_way
        ));
    }
    if decision.cancel + decision.drain > 0 {
        let what = match (decision.cancel, decision.drain) {
            (cancel, 0) => format!("gives up {cancel} of {starting} starting workers"),
            (0, drain) => format!("lets {drain} of {idle} idle workers go"),
            (cancel, drain) => {
                format!("gives up {cancel} of {starting} starting workers and lets {drain} of {idle} idle ones go")
            }
        };
        let why = if staying <= want_recently && blocked > 0 && decision.cancel > 0 {
            format!("{blocked} have waited too long{}", limited())
        } else {
            lately()
        };
        parts.push(format!("{what}: {why}"));
    }
    if decision.moving > 0 {
        let moving = decision.moving;
        parts.push(format!("keeps {moving} of {idle} idle workers until what only they hold is elsewhere: {}", lately()));
    }
    if !parts.is_empty() {
        return parts.join("; ");
    }
    if want > staying {
        let why = if staying < low { format!("its minimum is {low} and it has {staying}") } else { balance() };
        return format!("wants {want}: {why}{}", limited());
    }
    if let Some(limit) = &decision.limit {
        return match limit {
            Limit::Maximum(_) => format!("keeps {staying}: {}{}", balance(), limited()),
            _ => format!("keeps {staying}{}", limited()),
        };
    }
    if staying > want {
        return format!(
            "keeps {staying} although {want} would do: they may be wanted again, or some have not been idle for long"
        );
    }
    if queued > 0 { format!("keeps {staying}: {}", balance()) } else { format!("keeps {staying}: nothing is queued") }
}

/// The latest decisions that did something or changed what limits a pool, oldest first.
#[derive(Clone, Debug, Default)]
pub struct DecisionLog {
    kept: VecDeque<Decision>,
}

impl DecisionLog {
    /// How many are kept over all pools; the oldest gives way.
    pub const KEPT: usize = 1000;

    pub(super) fn push(&mut self, decision: Decision) {
        if self.kept.len() == Self::KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(decision);
    }

    /// All that are kept, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Decision> + ExactSizeIterator {
        self.kept.iter()
    }
}
