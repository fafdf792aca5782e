//! Lets the adaptive planner decide for several pools: asks the reactor for their loads, plans, and turns the plan into operations
//! of the provider and requests to the reactor. What it knows of a worker is what the provider said and what the reactor says
//! now; a worker that was there before this driver is taken over when the provider tells of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use scalable_core::ids::{Micros, SECOND};
use scalable_core::messages::DeathCause;
use scalable_core::planner::{
    Blocked, Drain, Group, Limit, Obstacle, Parameters, Phase, Planner, Pool as PlannedPool, PoolEvent, PoolPlan, Snapshot,
    Worker, WorkerKey,
};
use scalable_core::scheduler::{PoolLoad, WorkerLoad};
use scalable_proto::v1;
use scalable_provider::{Cause, Observation, Operation, Provider, Reason, ReasonClass};
use tokio::sync::{mpsc, oneshot};

use super::{DECISIONS_TOLD, PoolState, Seen, Stop, blame, on_a_thread};

/// How long the note of a pool has the latest death in it, so that whoever looks now and then sees it.
const DEATH_TOLD: Micros = 60 * SECOND;
/// Workers of one pool that are emptied at a time.
const EMPTIED_MAX: usize = 16;

/// A pool that scales.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Components its workers serve.
    pub components: Vec<String>,
    /// What one worker has.
    pub capacity: v1::Resources,
    /// Least workers from when it is first needed.
    pub minimum: u32,
    /// Most workers.
    pub maximum: u32,
    /// The minimum is there at once.
    pub minimum_at_once: bool,
}

/// What is to be scaled, and how.
#[derive(Clone, Debug)]
pub struct Scale {
    /// The pools.
    pub pools: Vec<Pool>,
    /// The planner's dials.
    pub parameters: Parameters,
    /// Most workers of all pools together.
    pub max_total: Option<u32>,
}

/// Starts the thread that drives `provider`.
///
/// # Errors
/// When the thread cannot be started.
pub fn start<P: Provider>(provider: P, scale: Scale) -> std::io::Result<(mpsc::Receiver<Seen>, Stop)> {
    on_a_thread(move |seen, stopped| Driver::new(provider, scale, seen).run(stopped))
}

/// A worker, from when its creation was asked for to when it is gone.
struct Member {
    key: WorkerKey,
    pool: usize,
    ordinal: u32,
    asked_at: Micros,
    /// Since when its start is under way: waiting for room is no part of it.
    starting_since: Micros,
    /// What the provider calls it.
    named: Option<(String, u64)>,
    blocked: Option<(Blocked, String)>,
    registered_at: Option<Micros>,
    /// It was asked to go, or goes.
    leaving: bool,
    /// The platform takes it away: it is replaced already.
    taken: bool,
    /// What the reactor said last; nothing while it is not registered.
    load: Option<WorkerLoad>,
    idle_since: Option<Micros>,
    /// What the platform was told of it last: it may be interrupted.
    interruptible: bool,
}

struct Driver<P> {
    provider: P,
    scale: Scale,
    seen: mpsc::Sender<Seen>,
    origin: Instant,
    planner: Planner,
    members: BTreeMap<WorkerKey, Member>,
    next_key: u64,
    /// Why the platform does not answer, while it does not.
    unreachable: Option<String>,
    /// What was told of each pool last.
    told: Vec<Option<PoolState>>,
    /// Of each pool the latest death that nobody here asked for: when, and who died of what, in the platform's words.
    deaths: Vec<Option<(Micros, String)>>,
}

impl<P: Provider> Driver<P> {
    fn new(provider: P, scale: Scale, seen: mpsc::Sender<Seen>) -> Self {
        let told = vec![None; scale.pools.len()];
        let deaths = vec![None; scale.pools.len()];
        Driver {
            provider,
            scale,
            seen,
            origin: Instant::now(),
            planner: Planner::default(),
            members: BTreeMap::new(),
            next_key: 0,
            unreachable: None,
            told,
            deaths,
        }
    }

    fn now(&self) -> Micros {
        u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    async fn run(mut self, mut stopped: oneshot::Receiver<oneshot::Sender<()>>) {
        let mut observations = self.provider.observe();
        // The reactor has to know of the pools before it is asked for their loads.
        for at in 0..self.scale.pools.len() {
            self.tell(at, Vec::new(), String::new()).await;
        }
        loop {
            if !self.turn().await {
                return;
            }
            let next = tokio::time::sleep(Duration::from_micros(Planner::DEBOUNCE));
            tokio::pin!(next);
            // Whatever is observed meanwhile is taken at once; what follows from it is planned with the next turn.
            loop {
                tokio::select! {
                    () = &mut next => break,
                    observation = observations.recv() => match observation {
                        Some(observation) => self.observe(observation).await,
                        None => return,
                    },
                    done = &mut stopped => {
                        if let Ok(done) = done {
                            self.provider.shutdown().await;
                            let _ = done.send(());
                        }
                        return;
                    }
                }
            }
        }
    }

    /// Asks, plans and acts once; false when there is no reactor any more.
    async fn turn(&mut self) -> bool {
        let (answer, loads) = oneshot::channel();
        let pools = self.scale.pools.iter().map(|pool| pool.name.clone()).collect();
        if self.seen.send(Seen::Ask { pools, answer }).await.is_err() {
            return false;
        }
        let Ok(loads) = loads.await else { return false };
        let now = self.now();
        let nobody: Vec<bool> = loads.iter().map(|load| load.workers.is_empty()).collect();
        let groups = self.take_loads(now, loads);
        let snapshot = self.snapshot(groups);
        let plan = self.planner.plan(now, &snapshot);
        for (at, (pool_plan, nobody)) in plan.pools.into_iter().zip(nobody).enumerate() {
            let note = self.note(now, at, &pool_plan);
            let name = &self.scale.pools[at].name;
            let of_pool = self.planner.log().iter().rev().filter(|decision| decision.pool == *name);
            let mut decisions: Vec<(f64, String)> =
                of_pool.take(DECISIONS_TOLD).map(|made| (made.at as f64 / SECOND as f64, made.reason.clone())).collect();
            decisions.reverse();
            if nobody && pool_plan.create == 0 && pool_plan.decision.figures.queued > 0 {
                tracing::debug!(pool = %name, reason = %pool_plan.decision.reason, "work waits for workers");
            }
            self.carry_out(now, at, pool_plan).await;
            self.tell(at, decisions, note).await;
        }
        self.mark(now).await;
        true
    }

    /// Takes what the reactor says of the workers, and returns what it says of each pool's groups.
    fn take_loads(&mut self, now: Micros, loads: Vec<PoolLoad>) -> Vec<Vec<Group>> {
        let mut by_name: FxHashMap<String, (usize, WorkerLoad)> = FxHashMap::default();
        let mut groups = Vec::with_capacity(loads.len());
        for (at, load) in loads.into_iter().enumerate() {
            by_name.extend(load.workers.into_iter().map(|mut worker| (std::mem::take(&mut worker.name), (at, worker))));
            groups.push(load.groups);
        }
        let mut started = Vec::new();
        for member in self.members.values_mut() {
            let Some((name, _)) = &member.named else { continue };
            let said = by_name.remove(name).filter(|(at, _)| *at == member.pool).map(|(_, load)| load);
            let Some(load) = said else {
                member.load = None;
                member.idle_since = None;
                continue;
            };
            if member.registered_at.is_none() {
                member.registered_at = Some(now);
                member.blocked = None;
                started.push((member.pool, member.asked_at, now.saturating_sub(member.starting_since)));
            }
            let same = member.load.as_ref().is_some_and(|before| before.idle && before.dispatched == load.dispatched);
            member.idle_since = match (load.idle, same) {
                (true, true) => member.idle_since,
                (true, false) => Some(now),
                (false, _) => None,
            };
            member.leaving = load.draining;
            member.load = Some(load);
        }
        for (pool, asked_at, took) in started {
            self.planner.observe(now, &self.scale.pools[pool].name, &PoolEvent::Started { asked_at, took });
        }
        groups
    }

    fn snapshot(&self, groups: Vec<Vec<Group>>) -> Snapshot {
        let pools = self.scale.pools.iter().zip(groups).enumerate().map(|(at, (pool, groups))| PlannedPool {
            name: pool.name.clone(),
            minimum: pool.minimum,
            maximum: pool.maximum,
            minimum_at_once: pool.minimum_at_once,
            parameters: self.scale.parameters,
            groups,
            workers: self.members.values().filter(|member| member.pool == at && !member.taken).map(Member::shown).collect(),
            room_coming: false,
            object_bytes_per_worker: None,
        });
        Snapshot { pools: pools.collect(), max_total: self.scale.max_total }
    }

    async fn carry_out(&mut self, now: Micros, at: usize, plan: PoolPlan) {
        let decision = &plan.decision;
        if decision.acts() {
            tracing::info!(pool = %decision.pool, reason = %decision.reason, "scaling");
        }
        if plan.create > 0 {
            self.create(now, at, plan.create).await;
        }
        // On a stale view nothing is given up.
        if self.unreachable.is_some() {
            return;
        }
        let mut given_up = Vec::new();
        for key in plan.cancel {
            let Some(member) = self.members.get_mut(&key) else { continue };
            if let Some((name, _)) = member.named.clone() {
                member.leaving = true;
                // Until the platform gets to it, which may take a while when its API does not answer, it may have registered and have
                // something to finish and to hand over. One that has nothing goes at once.
                given_up.push(Operation::Drain { name });
            }
        }
        if !given_up.is_empty() {
            self.apply(now, given_up).await;
        }
        let (emptied, released): (Vec<Drain>, Vec<Drain>) = plan.drain.into_iter().partition(|drain| drain.move_first);
        for drain in released {
            self.request(drain.worker, |worker| Seen::Release { worker }).await;
        }
        let name = |drain: &Drain| Some(self.members.get(&drain.worker)?.named.as_ref()?.0.clone());
        let workers: Vec<String> = emptied.iter().take(EMPTIED_MAX).filter_map(name).collect();
        if !workers.is_empty() {
            // They stay as they are until nothing is only theirs: then the next plan lets them go.
            let _ = self.seen.send(Seen::Empty { workers }).await;
        }
        for key in plan.give_way {
            self.request(key, |worker| Seen::GiveWay { worker }).await;
        }
    }

    async fn request(&mut self, key: WorkerKey, seen: impl FnOnce(String) -> Seen) {
        let Some(member) = self.members.get_mut(&key) else { return };
        let Some((name, _)) = &member.named else { return };
        let seen = seen(name.clone());
        member.leaving = true;
        let _ = self.seen.send(seen).await;
    }

    async fn create(&mut self, now: Micros, at: usize, count: u32) {
        let mut taken: Vec<u32> = self.members.values().filter(|member| member.pool == at).map(|member| member.ordinal).collect();
        taken.sort_unstable();
        let free = (0..).filter(|ordinal| taken.binary_search(ordinal).is_err());
        let ordinals: Vec<u32> = free.take(count as usize).collect();
        let pool = self.scale.pools[at].name.clone();
        let mut operations = Vec::with_capacity(ordinals.len());
        for ordinal in ordinals {
            let key = WorkerKey(self.next_key);
            self.next_key += 1;
            self.members.insert(key, Member::new(key, at, ordinal, now));
            operations.push(Operation::Create { pool: pool.clone(), ordinal });
        }
        self.apply(now, operations).await;
    }

    async fn apply(&mut self, asked_at: Micros, operations: Vec<Operation>) {
        let creates: Vec<String> = (operations.iter())
            .filter_map(|operation| match operation {
                Operation::Create { pool, .. } => Some(pool.clone()),
                _ => None,
            })
            .collect();
        let failed = self.provider.apply(operations).await;
        let refused = failed.iter().filter(|(operation, _)| matches!(operation, Operation::Create { .. })).count();
        let now = self.now();
        if let Some(pool) = creates.first().filter(|_| creates.len() > refused) {
            self.planner.observe(now, pool, &PoolEvent::Accepted { asked_at });
        }
        for (operation, reason) in failed {
            tracing::warn!(?operation, %reason, "the platform refused");
            if let Operation::Create { pool, ordinal } = operation {
                let at = self.pool_at(&pool);
                let gone = |member: &Member| Some(member.pool) == at && member.ordinal == ordinal && member.named.is_none();
                self.members.retain(|_, member| !gone(member));
                let event = PoolEvent::Failed { asked_at, by: obstacle_of_refusal(&reason), message: reason.message };
                self.planner.observe(now, &pool, &event);
            }
        }
    }

    fn pool_at(&self, name: &str) -> Option<usize> {
        self.scale.pools.iter().position(|pool| pool.name == name)
    }

    fn named(&mut self, name: &str) -> Option<&mut Member> {
        self.members.values_mut().find(|member| member.named.as_ref().is_some_and(|(known, _)| known == name))
    }

    async fn observe(&mut self, observation: Observation) {
        let now = self.now();
        match observation {
            Observation::Started { name, uid, pool, ordinal, .. } => self.started(now, name, uid, &pool, ordinal),
            Observation::Waiting { name, reason, message, class, .. } => {
                let by = obstacle_of_waiting(&reason, class);
                if let Some(member) = self.named(&name) {
                    let since = match &member.blocked {
                        Some((before, _)) if Some(before.by) == by => before.since,
                        _ => now,
                    };
                    member.unblock(now);
                    member.blocked = by.map(|by| (Blocked { by, since }, format!("{reason}: {message}")));
                }
            }
            Observation::Running { name, .. } => {
                if let Some(member) = self.named(&name) {
                    member.unblock(now);
                }
            }
            Observation::Leaving { name, cause, reason, .. } => {
                tracing::warn!(worker = %name, %reason, "the platform takes a worker away");
                if let Some(member) = self.named(&name) {
                    (member.leaving, member.taken) = (true, true);
                }
                if blame(cause) == DeathCause::Taken {
                    let _ = self.seen.send(Seen::BeingTaken { worker: name, reason }).await;
                }
            }
            Observation::Died { name, pool, cause, reason, .. } => self.died(now, name, &pool, cause, reason).await,
            Observation::Reach { problem } => self.unreachable = problem,
        }
    }

    fn started(&mut self, now: Micros, name: String, uid: u64, pool: &str, ordinal: u32) {
        let Some(at) = self.pool_at(pool) else {
            tracing::warn!(worker = %name, %pool, "a worker of a pool that is not scaled here");
            return;
        };
        let mine = |member: &&mut Member| member.pool == at && member.ordinal == ordinal && !member.taken;
        let key = match self.members.values_mut().find(mine) {
            Some(member) => {
                member.named = Some((name.clone(), uid));
                member.key
            }
            // It was there before this driver, or is one of two at the same place.
            None => {
                let key = WorkerKey(self.next_key);
                self.next_key += 1;
                let member = Member { named: Some((name.clone(), uid)), ..Member::new(key, at, ordinal, now) };
                self.members.insert(key, member);
                key
            }
        };
        tracing::info!(worker = %name, %pool, ordinal, key = key.0, "worker exists");
    }

    async fn died(&mut self, now: Micros, name: String, pool: &str, cause: Cause, reason: String) {
        let key = self.named(&name).map(|member| member.key);
        if let Some(member) = key.and_then(|key| self.members.remove(&key)) {
            let platform = blame(cause) == DeathCause::Taken;
            let asked_at = member.asked_at;
            if member.registered_at.is_some() && (member.taken || !member.leaving) {
                self.deaths[member.pool] = Some((now, format!("worker {name} is gone: {reason}")));
            }
            let event = match member.registered_at {
                _ if member.leaving || platform => None,
                Some(since) => Some(PoolEvent::Died { asked_at, lived: now.saturating_sub(since), message: reason.clone() }),
                None => {
                    let by = member.blocked.map_or(Obstacle::Crash, |(blocked, _)| blocked.by);
                    Some(PoolEvent::Failed { asked_at, by, message: reason.clone() })
                }
            };
            if let Some(event) = event {
                self.planner.observe(now, pool, &event);
            }
        }
        let _ = self.seen.send(Seen::Died { worker: name, cause: blame(cause), reason }).await;
    }

    /// Why a pool has no more workers, and what took the latest that it lost, in the platform's words where it has any.
    fn note(&self, now: Micros, at: usize, plan: &PoolPlan) -> String {
        if let Some(problem) = &self.unreachable {
            return format!("the platform does not answer: {problem}");
        }
        let why = self.why_not_more(at, plan);
        match &self.deaths[at] {
            Some((when, death)) if now.saturating_sub(*when) < DEATH_TOLD => match why.as_str() {
                "" => death.clone(),
                _ => format!("{why}; {death}"),
            },
            _ => why,
        }
    }

    fn why_not_more(&self, at: usize, plan: &PoolPlan) -> String {
        let blocked = self.members.values().filter(|member| member.pool == at).filter_map(|member| member.blocked.as_ref());
        let words: Vec<&String> = blocked.map(|(_, words)| words).collect();
        match (words.first(), &plan.decision.limit) {
            (Some(first), _) if words.len() > 1 => format!("{first} (and {} more workers that wait)", words.len() - 1),
            (Some(first), _) => (*first).clone(),
            (None, Some(Limit::Trouble { by, message, .. })) if message.is_empty() => by.words().to_owned(),
            (None, Some(Limit::Trouble { by, message, .. })) => format!("{}: {message}", by.words()),
            (None, Some(Limit::MaxTotal(total))) => format!("all pools together may have {total} workers"),
            // Bounds of its own and growth step by step are no news: the decisions have them.
            (None, _) => String::new(),
        }
    }

    async fn tell(&mut self, at: usize, decisions: Vec<(f64, String)>, note: String) {
        let pool = &self.scale.pools[at];
        let present = self.members.values().filter(|member| member.pool == at && !member.taken).count();
        let state = PoolState {
            pool: pool.name.clone(),
            components: pool.components.clone(),
            capacity: pool.capacity.clone(),
            present: u32::try_from(present).unwrap_or(u32::MAX),
            scaled: true,
            note,
            decisions,
        };
        if self.told[at].as_ref() != Some(&state) {
            self.told[at] = Some(state.clone());
            let _ = self.seen.send(Seen::Pool(state)).await;
        }
    }

    /// Tells the provider which workers may be interrupted, where that has changed. It knows what a pause is worth a request.
    async fn mark(&mut self, now: Micros) {
        let mut marks = Vec::new();
        for member in self.members.values_mut() {
            let (Some((name, _)), Some(_)) = (&member.named, member.registered_at) else { continue };
            let interruptible = member.load.as_ref().is_some_and(|load| load.idle && load.only_bytes == 0);
            if interruptible != member.interruptible && !member.leaving {
                member.interruptible = interruptible;
                marks.push(Operation::Mark { name: name.clone(), busy: !interruptible });
            }
        }
        if !marks.is_empty() {
            self.apply(now, marks).await;
        }
    }
}

impl Member {
    fn new(key: WorkerKey, pool: usize, ordinal: u32, now: Micros) -> Self {
        Member {
            key,
            pool,
            ordinal,
            asked_at: now,
            starting_since: now,
            named: None,
            blocked: None,
            registered_at: None,
            leaving: false,
            taken: false,
            load: None,
            idle_since: None,
            interruptible: false,
        }
    }

    /// It waits no longer for what it waited for.
    fn unblock(&mut self, now: Micros) {
        if self.blocked.take().is_some_and(|(blocked, _)| blocked.by == Obstacle::Unschedulable) {
            self.starting_since = now;
        }
    }

    fn shown(&self) -> Worker {
        let phase = match (self.leaving, self.registered_at, &self.load) {
            (true, ..) => Phase::Draining,
            (false, None, _) => Phase::Starting { blocked: self.blocked.as_ref().map(|(blocked, _)| *blocked) },
            (false, Some(registered_at), load) => Phase::Ready {
                registered_at,
                // Without a session its connection is in doubt: it is not idle.
                idle_since: self.idle_since,
                running: load.as_ref().map(|load| load.running.clone()).unwrap_or_default(),
                only_bytes: load.as_ref().map_or(0, |load| load.only_bytes),
            },
        };
        Worker { key: self.key, asked_at: self.asked_at, phase }
    }
}

/// What stands in the way when the creation of a worker is refused.
fn obstacle_of_refusal(reason: &Reason) -> Obstacle {
    match reason.class {
        _ if reason.message.contains("exceeded quota") => Obstacle::Quota,
        ReasonClass::Never => Obstacle::Refused,
        ReasonClass::NotNow => Obstacle::Unavailable,
    }
}

/// What a worker that is being started waits for, when that is more than time: by the platform's short word.
fn obstacle_of_waiting(reason: &str, class: ReasonClass) -> Option<Obstacle> {
    match reason {
        "Unschedulable" | "SchedulingGated" => Some(Obstacle::Unschedulable),
        _ if reason.contains("Image") => Some(Obstacle::Image),
        "CrashLoopBackOff" | "RunContainerError" | "StartError" => Some(Obstacle::Crash),
        _ if reason.starts_with("Failed") || reason.contains("Config") => Some(Obstacle::Config),
        _ => (class == ReasonClass::Never).then_some(Obstacle::Config),
    }
}

#[cfg(test)]
#[path = "scaled_tests.rs"]
mod tests;
