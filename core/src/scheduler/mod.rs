//! The scheduler machine: every decision about runs, tasks and workers.
//!
//! ```text
//!   Input ──► step ──►  submit   a run becomes groups: ranges of waiting tasks
//!                       lease    sessions of workers: who is alive, who is suspect
//!                       events   starts and ends of attempts; the one commit
//!                       blame    whose fault the loss of a worker is
//!                       retry    what follows a bad end
//!                       cancel   what is to end
//!                          │
//!                       depend   ends are passed on: ready, skipped, group over, run over
//!                          │
//!                       ready ─► place   who is due, and where      steal   what goes back
//!                          │
//!                          ▼
//!                       Outbox
//! ```
//!
//! A step costs what it changes: events times a constant, plus what becomes ready, plus what is placed. It never panics on
//! anything a peer or user can send; what a caller inside breaks is an `expect` that says why it cannot be.

mod accept;
mod blame;
mod cancel;
mod check;
mod check_objects;
mod counts;
mod depend;
mod edges;
mod ended;
mod events;
mod explain;
mod forget;
mod group;
mod holders;
mod interner;
pub mod interval_set;
mod lease;
mod moves;
pub mod mutation;
mod near;
mod objects;
mod open;
mod place;
pub mod projection;
mod ready;
mod restore;
mod retry;
mod row_map;
mod rows;
mod scaling;
mod steal;
mod submit;
pub mod task_table;
#[cfg(test)]
mod tests;
mod views;
mod worker_book;
pub mod worker_table;

pub use accept::DEPENDENCIES_PER_RUN_MAX;
pub use blame::SHARES_MAX;
pub use counts::{Happening, TransitionCounts};
pub use explain::Explanation;
pub use scaling::{PoolLoad, WorkerLoad};
pub use task_table::TaskState;
pub use views::{Forgotten, GroupView, PoolView, RunView, WorkerView};

use crate::ids::{GroupId, MILLISECOND, Micros, RunId, SECOND, SessionId, ShapeId, TaskRef};
use crate::messages::{Input, Outbox};
use crate::resources::{Names, Resources};
use depend::Settled;
use edges::EdgeRows;
use ended::EndedSessions;
use group::{Group, Run};
use holders::Copy;
use interner::Interner;
use lease::Tell;
use mutation::Mutations;
use ready::{Class, ClassKey};
use rows::Rows;
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use worker_book::Worker;

/// What the machine is to hold on to, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// A worker is suspect after this long without a frame.
    pub suspect_after: Micros,
    /// A worker is lost after this long without a frame.
    pub lost_after_silence: Micros,
    /// A worker is lost this long after the first reset of a connection, if it does not come back whole.
    pub lost_after_reset: Micros,
    /// Runs that have ended and are still known; the oldest are forgotten.
    pub runs_kept: usize,
    /// Most runs known, ended ones included.
    pub runs_max: usize,
    /// Most groups of all known runs.
    pub groups_max: usize,
    /// Groups of one open run that are over, let go of and still known; of the oldest beyond that only the counts are kept.
    pub groups_kept: usize,
    /// Most live workers.
    pub workers_max: usize,
    /// Most pools remembered.
    pub pools_max: usize,
    /// Sessions that are over and still known.
    pub sessions_kept: usize,
    /// Most attempts that a worker is sent ahead of room.
    pub prefetch_max: u32,
    /// Most attempts that are sent ahead of room to all workers of a class, whatever one may have: each costs a row.
    pub prefetch_total_max: u32,
    /// Tasks at least this long are never sent ahead of room.
    pub short_task: Micros,
    /// Most attempts on one worker, however little each takes.
    pub attempts_per_worker_max: u32,
    /// Most edges of single elements, all open runs together.
    pub edges_max: u32,
    /// What moves between workers in a second, in bytes: what placement reckons with.
    pub bandwidth: u64,
    /// How often a result is made again whose last holder died. One that is lost more often is given up.
    pub restores_max: u32,
    /// A task runs alone once this many workers have died executing it.
    pub suspicion_alone: u32,
    /// A worker that was asked to keep a result of one that is to leave has this long to say so. Then another one is asked.
    pub move_within: Micros,
}

impl Config {
    /// The figures of DESIGN §5.
    pub fn standard() -> Self {
        Config {
            suspect_after: 15 * SECOND,
            lost_after_silence: 30 * SECOND,
            lost_after_reset: 10 * SECOND,
            runs_kept: 1_000,
            runs_max: 10_000,
            groups_max: 1_000_000,
            groups_kept: 256,
            workers_max: 10_000,
            pools_max: 1_024,
            sessions_kept: 256,
            prefetch_max: 1_024,
            prefetch_total_max: 1 << 17,
            short_task: 200 * MILLISECOND,
            attempts_per_worker_max: 16_384,
            edges_max: 64 << 20,
            bandwidth: 1 << 30,
            restores_max: 8,
            suspicion_alone: 2,
            move_within: 120 * SECOND,
        }
    }
}

/// What is known of a pool beside its workers.
#[derive(Debug, Default)]
struct Pool {
    said: Option<PoolSaid>,
    lost: u32,
}

/// What the provider said of a pool.
#[derive(Debug)]
struct PoolSaid {
    components: Vec<String>,
    capacity: Resources,
    starting: u32,
    scaled: bool,
    note: String,
}

/// The scheduler machine. [`Scheduler::step`] is the only way in, the outbox the only way out.
#[derive(Debug)]
pub struct Scheduler {
    config: Config,
    mutations: Mutations,
    now: Micros,
    counts: TransitionCounts,

    names: Names,
    shapes: Interner<Resources>,
    components: Interner<String>,

    runs: BTreeMap<RunId, Run>,
    groups: FxHashMap<GroupId, Group>,
    client_keys: FxHashMap<[u8; 16], RunId>,
    run_names: FxHashMap<String, RunId>,
    ended_runs: VecDeque<RunId>,
    next_run: u32,
    next_group: u32,
    /// Tasks that wait for an attempt, by when.
    backoffs: BTreeSet<(Micros, TaskRef)>,

    edges: EdgeRows,
    /// Results that workers hold, or held.
    objects: u32,
    rows: Rows,
    /// Fence of the latest dispatch.
    fence: u64,
    classes: BTreeMap<ClassKey, Class>,
    /// Classes with work and a worker to look at.
    open: BTreeSet<ClassKey>,

    workers: Vec<Option<Worker>>,
    free_workers: Vec<u32>,
    sessions: FxHashMap<SessionId, u32>,
    worker_names: FxHashMap<String, u32>,
    ended: EndedSessions,
    /// When to look at which worker.
    deadlines: BTreeSet<(Micros, u32)>,
    pools: BTreeMap<String, Pool>,
    /// Slots of workers that were sent work ahead of room and may still have some.
    rich: BTreeSet<u32>,
    /// Where the next look at a part of them begins.
    rich_looked: u32,

    // Within a step; empty between steps.
    settling: VecDeque<Settled>,
    /// Workers whose room has changed.
    changed: BTreeSet<u32>,
    /// The one that was added last: a batch of ends adds its worker once.
    last_changed: Option<u32>,
    unreserved: Vec<u32>,
    idle_check: Vec<u32>,
    limits_changed: Vec<GroupId>,
    /// Elements whose last edge was met.
    edges_met: Vec<TaskRef>,
    /// Elements of `first..end` that nobody may need any more.
    sweeping: Vec<(GroupId, u32, u32)>,
    /// Runs in which nothing follows any more.
    closing: Vec<RunId>,
    /// Groups of open runs that may have come to be of no more use.
    spent: Vec<GroupId>,
}

impl Scheduler {
    /// A machine without runs and workers.
    pub fn new(config: Config, now: Micros) -> Self {
        let ended = EndedSessions::new(config.sessions_kept);
        Scheduler {
            config,
            mutations: Mutations::default(),
            now,
            counts: TransitionCounts::default(),
            names: Names::default(),
            shapes: Interner::default(),
            components: Interner::default(),
            runs: BTreeMap::new(),
            groups: FxHashMap::default(),
            client_keys: FxHashMap::default(),
            run_names: FxHashMap::default(),
            ended_runs: VecDeque::new(),
            next_run: 1,
            next_group: 1,
            backoffs: BTreeSet::new(),
            edges: EdgeRows::new(),
            objects: 0,
            rows: Rows::default(),
            fence: 0,
            classes: BTreeMap::new(),
            open: BTreeSet::new(),
            workers: Vec::new(),
            free_workers: Vec::new(),
            sessions: FxHashMap::default(),
            worker_names: FxHashMap::default(),
            ended,
            deadlines: BTreeSet::new(),
            pools: BTreeMap::new(),
            rich: BTreeSet::new(),
            rich_looked: 0,
            settling: VecDeque::new(),
            changed: BTreeSet::new(),
            last_changed: None,
            unreserved: Vec::new(),
            idle_check: Vec::new(),
            limits_changed: Vec::new(),
            edges_met: Vec::new(),
            sweeping: Vec::new(),
            closing: Vec::new(),
            spent: Vec::new(),
        }
    }

    /// The same with a deliberate fault, for tests of the tests.
    #[cfg(any(test, feature = "mutations"))]
    pub fn with_mutation(config: Config, now: Micros, mutation: mutation::Mutation) -> Self {
        Scheduler { mutations: Mutations::with(mutation), ..Self::new(config, now) }
    }

    /// Takes one input and adds what follows from it to `out`. `now` never goes back; an earlier time counts as the latest one.
    /// Leases are looked at only by [`Input::Tick`], so that frames that have come are taken before their sender is called silent.
    pub fn step(&mut self, now: Micros, input: Input, out: &mut Outbox) {
        self.now = self.now.max(now);
        let now = self.now;
        self.end_backoffs(now, out);
        match input {
            Input::Submit(spec) => self.submit(*spec, out),
            Input::Join { session, worker } => self.join(now, session, worker, out),
            Input::Attach { session, connection } => self.attach(now, session, connection, out),
            Input::Reset { session, connection } => self.reset(now, session, connection, out),
            Input::Frame { session } => {
                self.heard(now, session, out);
            }
            Input::Events { session, events } => self.events(now, session, events, out),
            Input::RetractReply { session, given_back, kept } => self.retract_reply(now, session, given_back, kept, out),
            Input::Draining { session } => self.drain(now, session, Tell::No, out),
            Input::Drain { session } => self.drain(now, session, Tell::Worker, out),
            Input::Full { session, full } => self.full(now, session, full, out),
            Input::Left { session } => self.left(now, session, out),
            Input::Died { worker, cause, reason } => self.died(now, &worker, cause, &reason, out),
            Input::BeingTaken { worker, reason } => self.being_taken(&worker, reason),
            Input::MemoryShares { session, shares } => self.memory_shares(session, shares),
            Input::Cancel { run, group, index } => self.cancel(run, group, index, out),
            Input::Pool { pool, components, capacity, starting, scaled, note } => {
                if let Some(known) = self.pool_mut(&pool) {
                    let before = known.said.replace(PoolSaid { components, capacity, starting, scaled, note });
                    if before.is_none_or(|before| before.scaled != scaled) {
                        let of_pool = self.workers.iter_mut().flatten().filter(|worker| worker.pool == pool);
                        of_pool.for_each(|worker| worker.filled = scaled);
                    }
                }
            }
            Input::AddGroup { run, ordinal, spec } => self.append_group(run, ordinal, *spec, out),
            Input::Append { run, group, first, count, edges, last } => self.append(run, group, first, count, &edges, last, out),
            Input::CloseRun { run } => self.close_run(run, out),
            Input::Release { group, first, count } => self.let_go(group, first, count),
            Input::Pause { run, paused } => self.pause(run, paused),
            Input::ObjectCopied { session, task } => match self.heard(now, session, out) {
                Some(worker) => self.object_copied(worker, task, Copy::Spare, out),
                None => self.counts.fenced += 1,
            },
            Input::MoveObjects { sessions } => self.move_objects(now, &sessions, out),
            Input::ObjectKept { session, task } => match self.heard(now, session, out) {
                Some(worker) => self.object_kept(now, worker, task, out),
                None => self.counts.fenced += 1,
            },
            Input::ObjectNotKept { session, task } => match self.heard(now, session, out) {
                Some(worker) => self.object_not_kept(now, worker, task),
                None => self.counts.fenced += 1,
            },
            Input::ObjectMissing { session, task } => {
                self.inputs_missing(&[(task, session)], out);
            }
            Input::ObjectSecured { task, attempt } => self.object_secured(task, attempt),
            Input::Forget { run } => self.forget(run),
            Input::Tick => self.expire_leases(now, out),
        }
        self.look_at_limits();
        self.settle(out);
        for run in std::mem::take(&mut self.closing) {
            self.end_if_over(run, out);
        }
        self.place(now, out);
        self.steal(out);
        self.sweep(out);
        self.forget_spent(out);
    }

    /// When an [`Input::Tick`] is due: the end of a wait, or the next look at a worker. It may come to nothing.
    pub fn next_wakeup(&self) -> Option<Micros> {
        let backoff = self.backoffs.first().map(|(at, _)| *at);
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        backoff.into_iter().chain(deadline).min()
    }

    /// What a shape that a dispatch named takes. Known as long as a run that uses it.
    pub fn shape(&self, shape: ShapeId) -> Option<&Resources> {
        self.shapes.get(shape.0)
    }

    /// Names of custom resources.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// To intern names of custom resources for specs.
    pub fn names_mut(&mut self) -> &mut Names {
        &mut self.names
    }

    /// How often each step of the tables was taken or refused.
    pub fn counts(&self) -> &TransitionCounts {
        &self.counts
    }

    fn look_at_limits(&mut self) {
        let mut changed = std::mem::take(&mut self.limits_changed);
        changed.sort_unstable();
        changed.dedup();
        for id in changed.drain(..) {
            let Some(group) = self.groups.get(&id) else { continue };
            let (run, of_run) = (group.run, !group.totals.is_empty());
            self.index_group(id);
            if of_run {
                self.index_throttled(run);
            }
        }
        self.limits_changed = changed;
    }

    fn pool_mut(&mut self, name: &str) -> Option<&mut Pool> {
        if !self.pools.contains_key(name) {
            if self.pools.len() >= self.config.pools_max {
                return None;
            }
            self.pools.insert(name.to_owned(), Pool::default());
        }
        self.pools.get_mut(name)
    }

    fn group_of(&self, id: GroupId) -> &Group {
        self.groups.get(&id).expect("a group is known as long as anything of it is on a worker, in a queue or in a timer")
    }

    fn group_mut(&mut self, id: GroupId) -> &mut Group {
        self.groups.get_mut(&id).expect("a group is known as long as anything of it is on a worker, in a queue or in a timer")
    }

    fn worker(&self, slot: u32) -> &Worker {
        self.workers[slot as usize].as_ref().expect("a slot in a row, a class or a deadline is a live worker's")
    }

    fn worker_mut(&mut self, slot: u32) -> &mut Worker {
        self.workers[slot as usize].as_mut().expect("a slot in a row, a class or a deadline is a live worker's")
    }

    fn shape_of(&self, shape: ShapeId) -> Resources {
        self.shapes.get(shape.0).cloned().unwrap_or_default()
    }
}
