//! One pool in virtual time, second by second: the world of the reference simulation, so that its rows can be compared.
//! What it has beyond that: bounds that are checked in every second, and workers that may be placed on evenly.

use crate::fixture::{Listing, Task};
use scalable_core::ids::{Micros, SECOND};
use scalable_core::planner::{Blocked, Durations, Group, Obstacle, Parameters, Phase, Pool, Running, Worker, WorkerKey};
use std::collections::{BTreeMap, VecDeque};

/// Tasks a worker executes at once.
pub const SLOTS: usize = 4;

/// Where the next task goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The oldest worker that has a free slot, as in the reference.
    Oldest,
    /// The worker that has most free slots.
    LeastLoaded,
}

/// What a pool is given.
#[derive(Clone, Debug)]
pub struct Setting {
    pub minimum: u32,
    pub maximum: u32,
    pub room: usize,
    /// Creations beyond this many workers are refused.
    pub quota: usize,
    pub parameters: Parameters,
    pub placement: Placement,
}

impl Setting {
    pub fn reference(room: usize) -> Self {
        Setting {
            minimum: 0,
            maximum: 200,
            room,
            quota: usize::MAX,
            parameters: Parameters::DEFAULT,
            placement: Placement::Oldest,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Executing {
    pub task: Task,
    pub started: u64,
}

impl Executing {
    pub fn ends(&self) -> u64 {
        self.started + self.task.lasts
    }
}

#[derive(Clone, Debug)]
pub struct Simulated {
    pub asked: u64,
    pub ready_at: u64,
    pub ready: bool,
    pub roomless: Option<u64>,
    pub registered: u64,
    pub idle_since: Option<u64>,
    pub executing: Vec<Executing>,
}

/// What a policy does in one second.
#[derive(Clone, Debug, Default)]
pub struct Actions {
    pub create: u32,
    /// Starting, or idle: removing a busy one is counted.
    pub remove: Vec<u64>,
}

/// Whoever decides.
pub trait Policy {
    fn decide(&mut self, world: &World) -> Actions;
    /// A worker registered that had been asked for at `asked`.
    fn registered(&mut self, _now: u64, _asked: u64) {}
    /// The platform took or refused the creation of a worker that was asked for now.
    fn answered(&mut self, _now: u64, _accepted: bool) {}
}

/// What came out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Seconds until the last task was over.
    pub makespan: u64,
    /// Seconds of registered workers.
    pub worker_seconds: u64,
    pub killed_tasks: u64,
    pub created: u64,
    pub unused: u64,
    /// Seconds in which workers were created or removed.
    pub events: u64,
    /// Changes between creating and removing.
    pub flips: u64,
    /// Creations that were refused.
    pub refused: u64,
    /// When workers were last created or removed, in milliseconds.
    pub last_event: u64,
    /// The most workers there were.
    pub most: usize,
}

/// Times in milliseconds.
pub struct World {
    pub setting: Setting,
    pub now: u64,
    pub arrivals: VecDeque<Task>,
    pub queue: VecDeque<Task>,
    pub workers: BTreeMap<u64, Simulated>,
    pub durations: Vec<Durations>,
    pub starts: Vec<u64>,
    pub outcome: Outcome,
    created: u64,
    done: usize,
    total: usize,
    growing: Option<bool>,
    needed: bool,
}

impl World {
    pub fn new(listing: &Listing, setting: Setting) -> Self {
        World {
            setting,
            now: 0,
            arrivals: listing.tasks.iter().copied().collect(),
            queue: VecDeque::new(),
            workers: BTreeMap::new(),
            durations: vec![Durations::default(); listing.classes.len()],
            starts: listing.starts.clone(),
            outcome: Outcome::default(),
            created: 0,
            done: 0,
            total: listing.tasks.len(),
            growing: None,
            needed: false,
        }
    }

    /// Runs until every task is over and every worker above the minimum is gone.
    pub fn run(mut self, policy: &mut dyn Policy) -> Outcome {
        while !self.over() {
            self.step(policy);
            assert!(self.now < 200_000_000, "{} of {} tasks are over", self.done, self.total);
        }
        self.outcome.makespan = self.now / 1000;
        let end = self.now;
        while self.workers.len() > self.setting.minimum as usize {
            self.step(policy);
            assert!(self.now < end + 3_600_000, "{} workers are left over", self.workers.len());
        }
        self.outcome
    }

    /// How long the next worker that is created will take to start.
    pub fn next_start(&self) -> u64 {
        self.starts[self.created as usize % self.starts.len()]
    }

    fn step(&mut self, policy: &mut dyn Policy) {
        self.advance(policy);
        let actions = policy.decide(self);
        self.apply(&actions, policy);
    }

    /// Whether every task is over.
    pub fn over(&self) -> bool {
        self.done == self.total
    }

    /// What happens in a second before anybody decides.
    pub fn advance(&mut self, policy: &mut dyn Policy) {
        while self.arrivals.front().is_some_and(|task| task.arrives <= self.now) {
            self.queue.extend(self.arrivals.pop_front());
        }
        self.needed |= !self.queue.is_empty();
        self.advance_starts(policy);
        self.finish_and_place();
        self.outcome.worker_seconds += self.workers.values().filter(|worker| worker.ready).count() as u64;
    }

    fn advance_starts(&mut self, policy: &mut dyn Policy) {
        let ready = self.workers.values().filter(|worker| worker.ready).count();
        let mut pending: Vec<u64> = self.workers.iter().filter(|(_, worker)| !worker.ready).map(|(id, _)| *id).collect();
        pending.sort_by_key(|id| self.workers[id].asked);
        let least = *self.starts.iter().min().unwrap();
        for (position, id) in pending.into_iter().enumerate() {
            let worker = self.workers.get_mut(&id).unwrap();
            if ready + position < self.setting.room {
                worker.roomless = None;
                if self.now >= worker.ready_at {
                    worker.ready = true;
                    worker.registered = self.now;
                    worker.idle_since = Some(self.now);
                    policy.registered(self.now, worker.asked);
                }
            } else {
                worker.ready_at = worker.ready_at.max(self.now + least);
                if self.now - worker.asked >= 2000 && worker.roomless.is_none() {
                    worker.roomless = Some(self.now);
                }
            }
        }
    }

    fn finish_and_place(&mut self) {
        let now = self.now;
        for worker in self.workers.values_mut().filter(|worker| worker.ready) {
            for over in worker.executing.extract_if(.., |executing| executing.ends() <= now) {
                self.done += 1;
                self.durations[over.task.class].push(over.task.lasts * 1000);
            }
            while self.setting.placement == Placement::Oldest && worker.executing.len() < SLOTS {
                let Some(task) = self.queue.pop_front() else { break };
                worker.executing.push(Executing { task, started: now });
            }
        }
        while self.setting.placement == Placement::LeastLoaded && !self.queue.is_empty() {
            let free = self.workers.iter_mut().filter(|(_, worker)| worker.ready && worker.executing.len() < SLOTS);
            let Some((_, worker)) = free.min_by_key(|(id, worker)| (worker.executing.len(), **id)) else { break };
            let task = self.queue.pop_front().unwrap();
            worker.executing.push(Executing { task, started: now });
        }
        for worker in self.workers.values_mut().filter(|worker| worker.ready) {
            worker.idle_since = if worker.executing.is_empty() { worker.idle_since.or(Some(now)) } else { None };
        }
    }

    /// Carries out what was decided and ends the second.
    pub fn apply(&mut self, actions: &Actions, policy: &mut dyn Policy) {
        let now = self.now;
        let mut turn = |growing: bool| {
            self.outcome.events += 1;
            self.outcome.last_event = now;
            self.outcome.flips += u64::from(self.growing.is_some_and(|before| before != growing));
            self.growing = Some(growing);
        };
        if !actions.remove.is_empty() {
            turn(false);
        }
        if actions.create > 0 {
            turn(true);
        }
        for id in &actions.remove {
            let worker = self.workers.remove(id).expect("a policy removes workers that are there");
            self.outcome.killed_tasks += worker.executing.len() as u64;
            self.outcome.unused += u64::from(!worker.ready);
            for executing in worker.executing {
                self.queue.push_front(executing.task);
            }
        }
        for _ in 0..actions.create {
            let accepted = self.workers.len() < self.setting.quota;
            policy.answered(now, accepted);
            if !accepted {
                self.outcome.refused += 1;
                continue;
            }
            let ready_at = self.now + self.next_start();
            self.created += 1;
            let (asked, executing) = (self.now, Vec::new());
            let worker = Simulated { asked, ready_at, ready: false, roomless: None, registered: 0, idle_since: None, executing };
            self.workers.insert(self.created, worker);
        }
        self.outcome.created = self.created;
        self.outcome.most = self.outcome.most.max(self.workers.len());
        let low = if self.needed { self.setting.minimum as usize } else { 0 };
        let count = self.workers.len();
        assert!(count >= low.min(self.setting.quota) && count <= self.setting.maximum as usize, "{count} workers");
        self.now += 1000;
    }

    /// The pool as the planner is shown it.
    pub fn pool(&self) -> Pool {
        let micros = |ms: u64| -> Micros { ms * (SECOND / 1000) };
        let mut groups: Vec<Group> = self
            .durations
            .iter()
            .map(|durations| Group { slots: SLOTS as u32, measured: durations.mean(), ..Group::default() })
            .collect();
        for task in &self.queue {
            groups[task.class].queued += 1;
        }
        let workers = self.workers.iter().map(|(id, worker)| {
            let phase = if worker.ready {
                let running = worker
                    .executing
                    .iter()
                    .map(|executing| Running { group: executing.task.class as u32, started_at: micros(executing.started) });
                Phase::Ready {
                    registered_at: micros(worker.registered),
                    idle_since: worker.idle_since.map(micros),
                    running: running.collect(),
                    only_bytes: 0,
                }
            } else {
                let blocked = worker.roomless.map(|since| Blocked { by: Obstacle::Unschedulable, since: micros(since) });
                Phase::Starting { blocked }
            };
            Worker { key: WorkerKey(*id), asked_at: micros(worker.asked), phase }
        });
        Pool {
            name: "pool".to_owned(),
            minimum: self.setting.minimum,
            maximum: self.setting.maximum,
            minimum_at_once: false,
            parameters: self.setting.parameters,
            groups,
            workers: workers.collect(),
            room_coming: false,
            object_bytes_per_worker: None,
        }
    }
}
