//! The windowed work balance: what is queued against what the workers that are there or starting can do of it in the window.
//!
//! Everything is counted in parts of a worker times micros, so that one pool may serve tasks of several sizes. The window is one
//! worker start plus the target duration: what could be done sooner by the workers there are is not worth a new one.

use super::estimate::Estimates;
use super::snapshot::{Phase, Pool, WHOLE, Worker};
use super::victims;
use crate::ids::Micros;
use std::collections::BTreeMap;

/// What a pool has and what it needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Balance {
    pub(super) ready: u32,
    pub(super) idle: u32,
    pub(super) starting: u32,
    pub(super) blocked: u32,
    pub(super) draining: u32,
    pub(super) queued: u64,
    pub(super) soon: u64,
    /// Work of the window, in part-micros.
    pub(super) demand: u128,
    /// What can be done of it, in part-micros.
    pub(super) supply: u128,
    pub(super) window: Micros,
    /// More workers that the work of the window needs.
    pub(super) add: u32,
    /// Workers, starting or idle, that it can do without.
    pub(super) spare: u32,
}

impl Balance {
    pub(super) fn of(pool: &Pool, now: Micros, start: Micros, estimates: &Estimates) -> Self {
        let window = start.saturating_add(pool.parameters.target_duration);
        let mut balance = Balance { window, ..Balance::default() };
        let mut queue = balance.count_work(pool, start, estimates);
        // A gap too small for the largest tasks is no help to them, and the small ones that fit in it are not queued for long.
        let largest = queue.keys().next_back().copied().unwrap_or(u64::MAX);
        let mut free = Vec::with_capacity(pool.workers.len());
        let offers: Vec<u128> = pool
            .workers
            .iter()
            .map(|worker| {
                let offer = balance.offer(pool, worker, now, start, estimates);
                free.push(offer.free);
                let free = if offer.free >= largest { u128::from(offer.free) * u128::from(offer.free_for) } else { 0 };
                offer.of_running + free
            })
            .collect();
        // The tightest first, whatever the order of the workers.
        free.sort_unstable();
        free.into_iter().for_each(|free| place(&mut queue, free));
        balance.supply = offers.iter().sum();
        if balance.demand > balance.supply {
            let whole = u128::from(WHOLE);
            let gap = balance.demand - balance.supply;
            let for_time = gap.div_ceil(whole * u128::from(pool.parameters.target_duration.max(1)));
            let unplaced: u128 = queue.iter().map(|(share, count)| u128::from(*share) * u128::from(*count)).sum();
            balance.add = u32::try_from(for_time.min(unplaced.div_ceil(whole))).unwrap_or(u32::MAX);
        } else {
            balance.spare = spare(pool, &offers, balance.supply - balance.demand);
        }
        balance
    }

    /// Workers that stay: those that drain are not among them.
    pub(super) fn staying(&self) -> u32 {
        self.ready + self.starting
    }

    /// What the pool wants now, its bounds apart.
    pub(super) fn want(&self) -> u32 {
        let least = (self.ready - self.idle).max(u32::from(self.queued > 0));
        self.staying().saturating_add(self.add).saturating_sub(self.spare).max(least)
    }

    /// Counts the queue; answers with how many tasks there are of each share, the largest first once iterated in reverse.
    fn count_work(&mut self, pool: &Pool, start: Micros, estimates: &Estimates) -> BTreeMap<u64, u64> {
        let mut queue = BTreeMap::new();
        for (at, group) in pool.groups.iter().enumerate() {
            let soon = if group.soon_in <= start { u64::from(group.soon) } else { 0 };
            let queued = u64::from(group.queued);
            if queued + soon == 0 {
                continue;
            }
            let duration = estimates.duration(at);
            // What is soon ready counts in full: those who will do it may have nothing to do until then.
            self.demand += u128::from(queued + soon) * u128::from(duration.min(self.window)) * u128::from(group.share());
            self.queued += queued;
            self.soon += soon;
            *queue.entry(group.share()).or_insert(0) += queued + soon;
        }
        queue
    }

    /// Counts a worker; answers with what it can do within the window. More workers than there are tasks help nobody, therefore
    /// what it has free is told apart: it counts only where any task of the queue fits in, and is taken off the queue.
    fn offer(&mut self, pool: &Pool, worker: &Worker, now: Micros, start: Micros, estimates: &Estimates) -> Offer {
        match &worker.phase {
            Phase::Draining => {
                self.draining += 1;
                Offer::default()
            }
            Phase::Starting { blocked } => {
                self.starting += 1;
                if blocked.is_some() {
                    self.blocked += 1;
                    return Offer::default();
                }
                let left = start_left(start, now.saturating_sub(worker.asked_at));
                Offer { free: WHOLE, free_for: self.window.saturating_sub(left), of_running: 0 }
            }
            Phase::Ready { idle_since, running, .. } => {
                self.ready += 1;
                self.idle += u32::from(idle_since.is_some());
                let (mut used, mut of_running) = (0, 0);
                for attempt in running {
                    let share = pool.groups.get(attempt.group as usize).map_or(WHOLE, |group| group.share());
                    used += share;
                    let ahead = self.window.saturating_sub(estimates.remaining(attempt, now));
                    of_running += u128::from(share) * u128::from(ahead);
                }
                Offer { free: WHOLE.saturating_sub(used), free_for: self.window, of_running }
            }
        }
    }
}

/// What a worker can do within the window.
#[derive(Default)]
struct Offer {
    /// Parts of it that are free, or will be when it has started.
    free: u64,
    /// For how long.
    free_for: Micros,
    /// Part-micros of what is left of the window once the attempts that execute are over.
    of_running: u128,
}

/// How long a start still takes at `age`. One that is late is taken to need a moment more; one that took more than twice as long
/// as usual needs the longer the later it is, so that workers stuck for a reason nobody told are made up for.
fn start_left(start: Micros, age: Micros) -> Micros {
    start.saturating_sub(age).max(start / 12).max(age.saturating_sub(start.saturating_mul(2)))
}

/// Takes what fits into `free` off the queue, largest first.
fn place(queue: &mut BTreeMap<u64, u64>, mut free: u64) {
    for (share, count) in queue.iter_mut().rev() {
        let fits = (*count).min(free / share);
        *count -= fits;
        free -= fits * share;
    }
}

/// How many workers may go so that what they offer is still to spare: first all that start, then those that are idle.
fn spare(pool: &Pool, offers: &[u128], mut slack: u128) -> u32 {
    let mut spare = 0;
    for at in victims::starting(pool).into_iter().chain(victims::idle(pool, |_| true)) {
        if offers[at] > slack {
            break;
        }
        slack -= offers[at];
        spare += 1;
    }
    spare
}
