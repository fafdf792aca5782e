//! Workers that wait for room in the cluster, or are stuck in their start: no more are created beside many of them, and after a
//! while only a few go on waiting. This needs no timer to open again: the few that wait get room when there is some.

use super::snapshot::{Blocked, Phase, Pool};
use super::trouble::Obstacle;
use super::victims;
use crate::ids::Micros;

/// What the gate remembers of a pool.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gate {
    /// Workers were given up for want of room, and none has got any since.
    trimmed: bool,
}

/// What it says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// No worker is created: so many of the pool are blocked by this.
    pub(super) shut: Option<(Obstacle, u32)>,
    /// Positions of workers to give up.
    pub(super) trim: Vec<usize>,
}

impl Gate {
    /// Lifted to this many waiting workers, or as many as the pool has, once the platform says that room is coming.
    const ROOM_COMING: u32 = 50;

    /// Looks at a pool of `staying` workers that must have `low`.
    pub(super) fn look(&mut self, now: Micros, pool: &Pool, staying: u32, low: u32) -> Verdict {
        let parameters = &pool.parameters;
        let blocked = |at: usize| match &pool.workers[at].phase {
            Phase::Starting { blocked } => *blocked,
            _ => None,
        };
        let victims = victims::starting(pool);
        let roomless: Vec<(usize, Blocked)> = victims
            .iter()
            .filter_map(|&at| blocked(at).filter(|blocked| blocked.by == Obstacle::Unschedulable).map(|blocked| (at, blocked)))
            .collect();
        let count = roomless.len() as u32;
        if count == 0 {
            self.trimmed = false;
        }
        let mut trim = Vec::new();
        let patience_over = |blocked: &Blocked| blocked.since.saturating_add(parameters.unschedulable_grace) <= now;
        if !pool.room_coming && roomless.iter().any(|(_, blocked)| patience_over(blocked)) {
            self.trimmed = true;
            let most = count.saturating_sub(parameters.unschedulable_probe).min(staying.saturating_sub(low));
            trim = roomless.iter().take(most as usize).map(|&(at, _)| at).collect();
        }
        let limit = if pool.room_coming { Self::ROOM_COMING.max(staying) } else { parameters.max_unschedulable };
        if count > 0 && (count >= limit || (self.trimmed && !pool.room_coming)) {
            return Verdict { shut: Some((Obstacle::Unschedulable, count)), trim };
        }
        let mut stuck = victims.iter().filter_map(|&at| blocked(at)).filter(|blocked| blocked.by != Obstacle::Unschedulable);
        let first = stuck.next().map(|blocked| blocked.by);
        let shut = first.map(|by| (by, 1 + stuck.count() as u32)).filter(|(_, count)| *count >= parameters.start_failures);
        Verdict { shut, trim }
    }
}
