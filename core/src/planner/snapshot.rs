//! What the adaptive planner is shown: plain records, so that a decision can be replayed.

use super::parameters::Parameters;
use super::trouble::Obstacle;
use crate::ids::Micros;
use crate::resources::Resources;

/// One worker in parts: a task of a group of which `slots` fit takes `WHOLE / slots`. Divisible by 1 to 16.
pub const WHOLE: u64 = 720_720;

/// A worker, as whoever asks for the plan numbers them. Never used again for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerKey(pub u64);

/// Everything the planner looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The pools, in any order that stays. Names are distinct.
    pub pools: Vec<Pool>,
    /// Most workers over all pools, those that drain included.
    pub max_total: Option<u32>,
}

/// A pool: its bounds, its work and its workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Least workers, ready or starting, from when the pool is first needed. A minimum above the maximum counts as the maximum.
    pub minimum: u32,
    /// Most workers, those that drain included.
    pub maximum: u32,
    /// The minimum starts at once, not with the pool's first task.
    pub minimum_at_once: bool,
    /// How it scales.
    pub parameters: Parameters,
    /// Groups with tasks that are queued, soon ready or executing here. Any other may be left out.
    pub groups: Vec<Group>,
    /// Its workers. One that is gone, or terminating on a node that does not answer, is left out: it is replaced.
    pub workers: Vec<Worker>,
    /// The platform has said that it is adding room for workers that wait for it.
    pub room_coming: bool,
    /// Bytes of results that one worker can keep; nothing where that does not limit.
    pub object_bytes_per_worker: Option<u64>,
}

/// Tasks of one kind: a group, or several of one function and shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// How many of its tasks one worker of the pool executes at once; see [`slots`]. 0 counts as 1.
    pub slots: u32,
    /// Tasks that could execute now and do not, those sent to a worker and not started included.
    pub queued: u32,
    /// Tasks that are expected to be ready in [`Group::soon_in`]: the caller's estimate from what they depend on.
    pub soon: u32,
    /// See [`Group::soon`]. What lies further ahead than a worker's start takes is not looked at.
    pub soon_in: Micros,
    /// Mean duration of its latest finished tasks ([`Durations`](super::Durations) keeps one); nothing while none has finished.
    pub measured: Option<Micros>,
    /// What the manifest or an earlier run says a task lasts.
    pub expected: Option<Micros>,
}

/// A worker of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Its number.
    pub key: WorkerKey,
    /// When its creation was asked for.
    pub asked_at: Micros,
    /// What it is doing.
    pub phase: Phase,
}

/// What a worker is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Asked for and not registered.
    Starting {
        /// What it waits for, when that is more than time.
        blocked: Option<Blocked>,
    },
    /// Registered and taking work. One whose connection is in doubt counts as ready and not idle.
    Ready {
        /// When it registered.
        registered_at: Micros,
        /// Since when it has had nothing at all: no attempt executing or sent, no output not yet copied. Nothing = busy.
        idle_since: Option<Micros>,
        /// Attempts that execute.
        running: Vec<Running>,
        /// Bytes of objects that are still needed and that only it holds.
        only_bytes: u64,
    },
    /// Leaving: takes no work, finishes what it executes.
    Draining,
}

/// Why a worker's start does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// What stands in its way.
    pub by: Obstacle,
    /// Since when.
    pub since: Micros,
}

/// An attempt that executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Position of its group in [`Pool::groups`]; one that is not there is taken as a whole worker's task of unknown length.
    pub group: u32,
    /// When it started.
    pub started_at: Micros,
}

impl Group {
    /// Parts of a worker that one task takes.
    pub(super) fn share(&self) -> u64 {
        (WHOLE / u64::from(self.slots.max(1))).max(1)
    }
}

/// How many tasks of shape `request` fit on a worker of `capacity`, at least 1 (what fits nowhere is refused long before), at
/// most `most`: the executing slots it has.
pub fn slots(capacity: &Resources, request: &Resources, most: u32) -> u32 {
    let times = |capacity: u64, request: u64| {
        if request == 0 || capacity == u64::MAX { u64::MAX } else { capacity / request }
    };
    let mut fits = times(capacity.milli_cpus, request.milli_cpus)
        .min(times(capacity.memory_bytes, request.memory_bytes))
        .min(times(capacity.gpus, request.gpus));
    for &(name, amount) in &request.custom {
        fits = fits.min(times(capacity.custom(name), amount));
    }
    u32::try_from(fits).unwrap_or(u32::MAX).min(most).max(1)
}
