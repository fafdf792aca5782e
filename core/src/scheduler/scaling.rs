//! What the adaptive planner is to know of a pool: the work that could run on it, and what its workers do.

use super::Scheduler;
use super::group::Group;
use super::ready::ClassKey;
use super::rows::List;
use crate::ids::{GroupId, Micros, SessionId};
use crate::messages::WorkerState;
use crate::planner::{self, slots};
use crate::resources::Resources;
use std::collections::{BTreeMap, BTreeSet};

/// Executing attempts that are listed of each worker. Of more, the rest counts as not there: a worker that executes so many at
/// once executes short ones.
const RUNNING_MAX: usize = 1_024;

/// A pool as the planner is to see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolLoad {
    /// Groups with tasks that are ready, sent to a worker, executing there, or expected soon.
    pub groups: Vec<planner::Group>,
    /// Its live sessions.
    pub workers: Vec<WorkerLoad>,
}

/// A worker as the planner is to see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerLoad {
    /// Its session.
    pub session: SessionId,
    /// The name it registered with.
    pub name: String,
    /// It was told to drain, or said that it does.
    pub draining: bool,
    /// It is whole and has no attempt on it.
    pub idle: bool,
    /// Attempts it was sent so far: a worker that is idle at two looks with the same figure was idle all the time between.
    pub dispatched: u64,
    /// What it executes; [`planner::Running::group`] is the position in [`PoolLoad::groups`].
    pub running: Vec<planner::Running>,
    /// Bytes of results that are still needed and that nobody else keeps, at an idle one; not 0 while there is any. Of one that is not
    /// idle nobody asks: 0.
    pub only_bytes: u64,
}

impl Scheduler {
    /// The load of a pool. Takes time for the groups that have work, the workers of the pool and what they execute, never for
    /// tasks that wait. A pool that nobody spoke of and that has no worker is empty.
    pub fn pool_load(&self, pool: &str) -> PoolLoad {
        let said = self.pools.get(pool).and_then(|pool| pool.said.as_ref());
        let of_pool = || self.workers.iter().flatten().filter(|worker| worker.pool == pool);
        let capacity = said.map(|said| &said.capacity).or_else(|| of_pool().next().map(|worker| &worker.capacity));
        let serves = |component: u32| match said {
            Some(said) => said.components.iter().any(|name| name == "*" || self.components.find(name) == Some(component)),
            None => of_pool().any(|worker| worker.serves(component)),
        };
        let mut wanted: BTreeSet<GroupId> = BTreeSet::new();
        for (ClassKey { component, .. }, class) in &self.classes {
            if serves(*component) {
                wanted.extend(class.entries.values().flatten());
            }
        }
        for worker in of_pool() {
            wanted.extend(self.rows.on(worker.executing).take(RUNNING_MAX).map(|slot| self.rows.get(slot).group));
            let first = |list: List| self.rows.on(list).next().map(|slot| self.rows.get(slot).group);
            wanted.extend(first(worker.admitted).into_iter().chain(first(worker.prefetched)));
        }
        let mut followers: BTreeSet<GroupId> = BTreeSet::new();
        for id in &wanted {
            followers.extend(self.group_of(*id).downstreams.iter().map(|(follower, _)| *follower));
        }
        wanted.extend(
            followers
                .into_iter()
                .filter(|id| self.groups.get(id).is_some_and(|group| serves(group.component) && !group.waiting.is_empty())),
        );

        let none = Resources::default();
        let capacity = capacity.unwrap_or(&none);
        let mut load = PoolLoad::default();
        let mut position = BTreeMap::new();
        for id in wanted {
            position.insert(id, load.groups.len() as u32);
            load.groups.push(self.group_load(id, capacity));
        }
        load.workers.extend(of_pool().map(|worker| {
            let idle = worker.state == WorkerState::Active && worker.rows() == 0;
            WorkerLoad {
                session: worker.session,
                name: worker.name.clone(),
                draining: worker.draining,
                idle,
                dispatched: worker.dispatched,
                running: (self.rows.on(worker.executing).take(RUNNING_MAX).map(|slot| self.rows.get(slot)))
                    .map(|row| planner::Running {
                        group: position.get(&row.group).copied().unwrap_or(u32::MAX),
                        started_at: row.since,
                    })
                    .collect(),
                only_bytes: if idle { worker.held.alone_bytes() } else { 0 },
            }
        }));
        load
    }

    fn group_load(&self, id: GroupId, capacity: &Resources) -> planner::Group {
        let group = self.group_of(id);
        let (allowed, _) = self.allowance(id);
        let sent = group.dispatched.len().saturating_sub(group.running);
        let (soon, soon_in) = match self.ready_in_about(group) {
            Some(after) => (group.waiting.len(), after),
            None => (0, 0),
        };
        planner::Group {
            slots: slots(capacity, &self.shape_of(group.shape), self.config.attempts_per_worker_max),
            queued: group.ready_len().min(allowed).saturating_add(sent),
            soon,
            soon_in,
            measured: group.wall_mean,
            expected: None,
        }
    }

    /// When what a group waits for will be over, if that can be told: nothing of it waits itself, and each part of it has run
    /// before. As many at a time as run now, so an estimate that more workers make too large.
    fn ready_in_about(&self, group: &Group) -> Option<Micros> {
        let mut longest = None;
        for upstream in &group.upstreams {
            let upstream = self.groups.get(&upstream.group)?;
            let left = upstream.ready_len().saturating_add(upstream.dispatched.len());
            if !upstream.waiting.is_empty() || !upstream.backoff.is_empty() || upstream.growing {
                return None;
            }
            if left == 0 {
                continue;
            }
            let turns = left.div_ceil(upstream.running.max(1));
            let after = upstream.wall_mean?.saturating_mul(u64::from(turns));
            longest = longest.max(Some(after));
        }
        longest
    }
}
