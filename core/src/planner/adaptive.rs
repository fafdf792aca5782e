//! The adaptive planner: what it remembers between plans, and how a plan is made.

use super::balance::Balance;
use super::decision::{Decision, DecisionLog, Figures, Limit, reason};
use super::estimate::{Estimates, Starts};
use super::gate::Gate;
use super::share::{Claim, divide};
use super::snapshot::{Phase, Pool, Snapshot, WHOLE, WorkerKey};
use super::trouble::{Leave, PoolEvent, Trouble};
use super::victims;
use super::window::Window;
use crate::ids::{Micros, SECOND};
use std::collections::BTreeMap;

/// What to do now. Applying it and planning again at the same time with the workers as they then are changes nothing, but that
/// another pool may take what workers given up leave of the limit over all pools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScalePlan {
    /// One for each pool of the snapshot, in its order.
    pub pools: Vec<PoolPlan>,
    /// When to plan again at the latest; nothing when only an event can change anything.
    pub again_at: Option<Micros>,
}

/// What to do about one pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolPlan {
    /// How many workers to create. From now on they are in the snapshot, starting, until they are reported as failed.
    pub create: u32,
    /// Workers that start, to be given up. One that has registered meanwhile is to finish what it has.
    pub cancel: Vec<WorkerKey>,
    /// Idle workers to drain and then to remove. One that is busy by now is to be left alone.
    pub drain: Vec<Drain>,
    /// Busy workers that take nothing new, finish what they execute and then leave: the limit over all pools is used up and
    /// another pool has less than its share of it.
    pub give_way: Vec<WorkerKey>,
    /// Why, and the figures.
    pub decision: Decision,
}

/// An idle worker to let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Which.
    pub worker: WorkerKey,
    /// It holds objects that nobody else holds: they are moved before it is removed.
    pub move_first: bool,
}

/// Scales pools. Remembers start times, what was wanted lately, obstacles and decisions; everything else is in the snapshot.
///
/// ScalePlan after whatever changed the snapshot, not more often than each [`Planner::DEBOUNCE`], the first of several at once, and at
/// [`ScalePlan::again_at`].
#[derive(Clone, Debug, Default)]
pub struct Planner {
    now: Micros,
    pools: BTreeMap<String, State>,
    log: DecisionLog,
}

#[derive(Clone, Debug, Default)]
struct State {
    starts: Starts,
    wanted: Window,
    trouble: Trouble,
    gate: Gate,
    /// The pool has been needed, or workers of an earlier planner were found: its minimum holds.
    needed: bool,
    /// Up to so many workers, ready or starting, in the interval that began then. Not a number of creations: what was refused or
    /// lost meanwhile is made up for at once.
    ceiling: u32,
    ceiling_at: Option<Micros>,
    /// Latest decision in the log.
    logged: Option<Limit>,
    /// How many workers were being emptied at the latest plan.
    moving: u32,
}

/// A pool while the plan is made.
struct Draft<'a> {
    pool: &'a Pool,
    estimates: Estimates,
    balance: Balance,
    start: Micros,
    low: u32,
    want: u32,
    want_recently: u32,
    /// How many it asks for, all limits but the shared one considered, and what limits that.
    asks: u32,
    limit: Option<Limit>,
    create: u32,
    cancel: Vec<usize>,
    drain: Vec<usize>,
    give_way: Vec<usize>,
}

impl Planner {
    /// Between two plans lies at least this, however much happens.
    pub const DEBOUNCE: Micros = SECOND / 4;
    /// While work waits or workers are to spare, between two plans lies at most this.
    pub const INTERVAL: Micros = SECOND;

    /// Takes note of what happened to a pool. Nothing is kept of pools that were not in the last snapshot.
    pub fn observe(&mut self, now: Micros, pool: &str, event: &PoolEvent) {
        self.now = self.now.max(now);
        let Some(state) = self.pools.get_mut(pool) else { return };
        if let PoolEvent::Started { took, .. } = event {
            state.starts.push(*took);
        }
        state.trouble.observe(self.now, event);
    }

    /// Decisions made so far that did something or changed what limits a pool.
    pub fn log(&self) -> &DecisionLog {
        &self.log
    }

    /// Plans. A time before one that was seen already counts as that one.
    pub fn plan(&mut self, now: Micros, snapshot: &Snapshot) -> ScalePlan {
        self.now = self.now.max(now);
        let now = self.now;
        self.pools.retain(|name, _| snapshot.pools.iter().any(|pool| pool.name == *name));
        let mut drafts: Vec<Draft<'_>> = Vec::with_capacity(snapshot.pools.len());
        for pool in &snapshot.pools {
            let state = self.pools.entry(pool.name.clone()).or_default();
            drafts.push(state.draft(now, pool));
        }
        share_out(now, snapshot.max_total, &mut drafts);
        let mut plan = ScalePlan::default();
        for draft in drafts {
            if let Some(again) = draft.again_at(now) {
                plan.again_at = Some(plan.again_at.map_or(again, |at| at.min(again)));
            }
            let decision = draft.decision(now);
            let state = self.pools.entry(draft.pool.name.clone()).or_default();
            let moving = std::mem::replace(&mut state.moving, decision.moving);
            if decision.acts() || decision.moving != moving || !same_kind(&decision.limit, &state.logged) {
                state.logged.clone_from(&decision.limit);
                self.log.push(decision.clone());
            }
            plan.pools.push(draft.finish(decision));
        }
        plan
    }
}

/// Whether two limits are worth one entry in the log: the same obstacle, whatever its figures.
fn same_kind(a: &Option<Limit>, b: &Option<Limit>) -> bool {
    match (a, b) {
        (Some(Limit::Blocked { by: a, .. }), Some(Limit::Blocked { by: b, .. })) => a == b,
        (
            Some(Limit::Trouble { by: a, message: said, paused: one, .. }),
            Some(Limit::Trouble { by: b, message: says, paused: other, .. }),
        ) => a == b && said == says && one == other,
        (a, b) => a == b,
    }
}

impl State {
    /// Everything about one pool but what it shares with others.
    fn draft<'a>(&mut self, now: Micros, pool: &'a Pool) -> Draft<'a> {
        let parameters = &pool.parameters;
        let start = self.starts.median(parameters.expected_start);
        let estimates = Estimates::of(pool, now);
        let balance = Balance::of(pool, now, start, &estimates);
        self.needed |= pool.minimum_at_once || balance.queued + balance.soon > 0 || balance.staying() > 0;
        let low = if self.needed { pool.minimum.min(pool.maximum) } else { 0 };
        let keepers = victims::keepers(pool).min(balance.ready);
        let unbounded = balance.want().max(keepers);
        let want = unbounded.clamp(low, pool.maximum);
        let want_recently = self.wanted.most(now, parameters.scale_down_delay, want).clamp(low, pool.maximum);
        let limit = (unbounded > pool.maximum).then_some(Limit::Maximum(pool.maximum));
        let mut draft = Draft {
            pool,
            estimates,
            start,
            low,
            want,
            want_recently,
            asks: 0,
            limit,
            create: 0,
            cancel: Vec::new(),
            drain: Vec::new(),
            give_way: Vec::new(),
            balance,
        };
        draft.let_go(now);
        let verdict = self.gate.look(now, pool, draft.balance.staying(), low);
        draft.cancel.extend(verdict.trim.iter().filter(|at| !draft.cancel.contains(at)).copied().collect::<Vec<_>>());
        draft.ask(now, self, verdict.shut.map(|(by, workers)| Limit::Blocked { by, workers }));
        draft
    }

    /// How many workers the pool may have now that it grows from `staying`.
    fn ceiling(&mut self, now: Micros, pool: &Pool, staying: u32) -> u32 {
        let over = |since: Micros| since.saturating_add(pool.parameters.scale_up_interval) <= now;
        if self.ceiling_at.is_none_or(over) {
            self.ceiling = staying.saturating_add(pool.parameters.scale_up_burst.max(staying));
            self.ceiling_at = Some(now);
        }
        self.ceiling
    }
}

impl Draft<'_> {
    /// Chooses what goes because less was wanted for the whole of the scale-down delay.
    fn let_go(&mut self, now: Micros) {
        let mut surplus = self.balance.staying().saturating_sub(self.want_recently) as usize;
        self.cancel = victims::starting(self.pool);
        self.cancel.truncate(surplus);
        surplus -= self.cancel.len();
        let idle_timeout = self.pool.parameters.idle_timeout;
        self.drain = victims::idle(self.pool, |since| since.saturating_add(idle_timeout) <= now);
        self.drain.truncate(surplus);
    }

    /// Decides how many to ask for.
    fn ask(&mut self, now: Micros, state: &mut State, shut: Option<Limit>) {
        let staying = self.balance.staying();
        let missing = self.want.saturating_sub(staying);
        let mut limits = Limits { asks: missing, limit: self.limit.take() };
        if let Some(shut) = shut {
            limits.at_most(0, || shut);
        }
        if let Some(Leave { most, by, message, paused, until }) = state.trouble.leave(now, self.pool) {
            limits.at_most(most, || Limit::Trouble { by, message, paused, until });
        }
        let room = self.pool.maximum.saturating_sub(staying + self.balance.draining);
        limits.at_most(room, || Limit::Maximum(self.pool.maximum));
        if missing > 0 {
            // The minimum is the user's word: it is created at once.
            let ceiling = state.ceiling(now, self.pool, staying).max(self.low);
            limits.at_most(ceiling.saturating_sub(staying), || Limit::Rate);
        }
        Limits { asks: self.asks, limit: self.limit } = limits;
    }

    /// Whether and when time alone may change what is planned.
    fn again_at(&self, now: Micros) -> Option<Micros> {
        let staying = self.balance.staying();
        let spare = staying > self.low && self.balance.idle + self.balance.starting > 0;
        let open = self.balance.queued + self.balance.soon > 0 || spare || staying < self.low;
        let soonest = self.pool.groups.iter().filter(|group| group.soon > 0 && group.soon_in > self.start);
        let due = soonest.map(|group| now + (group.soon_in - self.start)).min();
        let tick = open.then_some(now + Planner::INTERVAL);
        [tick, due.map(|due| due.max(now + Planner::DEBOUNCE))].into_iter().flatten().min()
    }

    fn decision(&self, now: Micros) -> Decision {
        let balance = &self.balance;
        let moving = self.drain.iter().filter(|at| self.moves_first(**at)).count() as u32;
        let worker_ms = |parts: u128| u64::try_from(parts / u128::from(WHOLE) / 1000).unwrap_or(u64::MAX);
        let mut decision = Decision {
            at: now,
            pool: self.pool.name.clone(),
            reason: String::new(),
            create: self.create,
            cancel: self.cancel.len() as u32,
            drain: self.drain.len() as u32 - moving,
            moving,
            give_way: self.give_way.len() as u32,
            limit: self.limit.clone(),
            figures: Figures {
                want: self.want,
                want_recently: self.want_recently,
                ready: balance.ready,
                idle: balance.idle,
                starting: balance.starting,
                blocked: balance.blocked,
                draining: balance.draining,
                queued: balance.queued,
                soon: balance.soon,
                demand_ms: worker_ms(balance.demand),
                supply_ms: worker_ms(balance.supply),
                window: balance.window,
                start: self.start,
            },
        };
        decision.reason = reason(&decision, self.low);
        decision
    }

    fn finish(self, decision: Decision) -> PoolPlan {
        let key = |at: &usize| self.pool.workers[*at].key;
        let drain = self.drain.iter().map(|&at| {
            let worker = self.pool.workers[at].key;
            Drain { worker, move_first: self.moves_first(at) }
        });
        PoolPlan {
            create: self.create,
            cancel: self.cancel.iter().map(key).collect(),
            drain: drain.collect(),
            give_way: self.give_way.iter().map(key).collect(),
            decision,
        }
    }

    /// A worker holds what nobody else keeps.
    fn moves_first(&self, at: usize) -> bool {
        matches!(&self.pool.workers[at].phase, Phase::Ready { only_bytes, .. } if *only_bytes > 0)
    }

    /// How many workers are left after what was chosen so far.
    fn left(&self) -> u32 {
        self.balance.staying() - (self.cancel.len() + self.drain.len() + self.give_way.len()) as u32
    }

    /// Gives up to `count` workers to other pools: those that start, then idle ones, then busy ones when they are done. Answers
    /// with how many are left to give.
    fn give_way(&mut self, now: Micros, mut count: u32) -> u32 {
        let idle_timeout = self.pool.parameters.idle_timeout;
        let mut choose = |chosen: &mut Vec<usize>, candidates: Vec<usize>| {
            for at in candidates {
                if count > 0 && !chosen.contains(&at) {
                    chosen.push(at);
                    count -= 1;
                }
            }
        };
        choose(&mut self.cancel, victims::starting(self.pool));
        choose(&mut self.drain, victims::idle(self.pool, |since| since.saturating_add(idle_timeout) <= now));
        choose(&mut self.give_way, victims::busy(self.pool, now, &self.estimates));
        count
    }
}

/// How many are asked for, and what has cut that down.
struct Limits {
    asks: u32,
    limit: Option<Limit>,
}

impl Limits {
    fn at_most(&mut self, most: u32, limit: impl FnOnce() -> Limit) {
        if self.asks > most {
            self.asks = most;
            self.limit = Some(limit());
        }
    }
}

/// Divides the limit over all pools. Where it is used up, pools that have more than their share give way to those with less.
fn share_out(now: Micros, max_total: Option<u32>, drafts: &mut [Draft<'_>]) {
    let Some(total) = max_total else {
        drafts.iter_mut().for_each(|draft| draft.create = draft.asks);
        return;
    };
    let staying: u64 = drafts.iter().map(|draft| u64::from(draft.balance.staying())).sum();
    let leaving: u64 =
        drafts.iter().map(|draft| u64::from(draft.balance.draining + draft.balance.staying() - draft.left())).sum();
    let draining: u64 = drafts.iter().map(|draft| u64::from(draft.balance.draining)).sum();
    let room = u64::from(total).saturating_sub(staying + draining);
    let claims: Vec<Claim> =
        drafts.iter().map(|draft| Claim { has: draft.balance.staying(), asks: draft.asks, low: draft.low }).collect();
    let given = divide(room, &claims);
    // What each would have if nobody had anything yet; a pool that cannot get more at present claims no more than it has.
    let ideal: Vec<Claim> = drafts
        .iter()
        .map(|draft| {
            let reachable = draft.balance.staying() + draft.asks;
            // Those on their way out still count as the pool's: else it would seem to need less with each one that gives way.
            Claim { has: 0, asks: draft.want.max(draft.low).min(reachable) + draft.balance.draining, low: draft.low }
        })
        .collect();
    let share = divide(u64::from(total), &ideal);
    let mut short = (staying + draining).saturating_sub(u64::from(total));
    for (at, draft) in drafts.iter_mut().enumerate() {
        draft.create = given[at];
        if given[at] < claims[at].asks {
            draft.limit = Some(Limit::MaxTotal(total));
            short += u64::from(
                share[at].saturating_sub(claims[at].has + draft.balance.draining + given[at]).min(claims[at].asks - given[at]),
            );
        }
    }
    let mut short = u32::try_from(short.saturating_sub(leaving)).unwrap_or(u32::MAX);
    let mut richest: Vec<(u32, usize)> =
        drafts.iter().zip(&share).enumerate().map(|(at, (draft, share))| (draft.left().saturating_sub(*share), at)).collect();
    richest.sort_unstable_by(|a, b| b.cmp(a));
    for (excess, at) in richest {
        let gives = excess.min(short);
        short -= gives - drafts[at].give_way(now, gives);
    }
}
