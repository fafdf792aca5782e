//! What is submitted: runs, groups, dependencies, policies. Checked by [`crate::scheduler`] at submit, never changed afterwards.

use crate::ids::{Micros, SECOND};
use crate::resources::{ResourceName, Resources};

/// Most tasks in one run; of an open one in those of its groups that are not forgotten.
pub const TASKS_PER_RUN_MAX: u64 = 1 << 27;
/// Most groups in one run.
pub const GROUPS_PER_RUN_MAX: usize = 10_000;
/// Most groups in one open run that are not forgotten.
pub const GROUPS_PER_OPEN_RUN_MAX: usize = 100_000;
/// Most edges of one appended element.
pub const EDGES_PER_ELEMENT_MAX: usize = 1 << 20;
/// Most explicit edges of one group.
pub const EDGES_PER_GROUP_MAX: usize = 4 << 20;
/// Most bytes of any name.
pub const NAME_BYTES_MAX: usize = 256;

/// A run as submitted: all or nothing.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// Unique among the runs the scheduler knows.
    pub name: String,
    /// Who asked for it.
    pub owner: String,
    /// Share among runs of equal priority, at least 1.
    pub weight: u32,
    /// The client's key: a second submit with the same key answers with the same run.
    pub client_key: [u8; 16],
    /// New starts stop when this many tasks have failed; 0 is no limit.
    pub max_failures: u32,
    /// Run-wide amounts of custom resources. A resource named here counts against the run, not against workers.
    pub totals: Vec<(ResourceName, u64)>,
    /// Groups and elements may follow: the run ends only after it was closed. Only such a run has results that are kept, counted
    /// and restored; the client has a reference on each of them until it lets go or the run ends.
    pub open: bool,
    /// Nothing follows, but its results are kept, counted and restored as those of an open run, and it ends only after it was closed:
    /// whoever collects its results closes it.
    pub keeps: bool,
    /// In order: a group depends only on earlier ones.
    pub groups: Vec<GroupSpec>,
}

/// Tasks that share everything but their index.
#[derive(Clone, Debug)]
pub struct GroupSpec {
    /// Unique in the run.
    pub name: String,
    /// Routing: workers announce which components they serve.
    pub component: String,
    /// How many.
    pub length: Length,
    /// What each waits for.
    pub dependencies: Vec<Dependency>,
    /// Larger first.
    pub priority: i32,
    /// Most attempts on workers at a time; 0 is no limit.
    pub max_parallel: u32,
    /// Runs when the dependencies are over, however they ended.
    pub always: bool,
    /// What happens when an attempt ends badly.
    pub policy: Policy,
    /// What each task takes. Entries named in [`RunSpec::totals`] are taken from the run.
    pub resources: Resources,
}

/// Number of elements of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Known at submit; 0 is a group that is over at once.
    Fixed(u32),
    /// Said by element 0 of that group (ordinal in the run) when it commits. Such a group has only whole dependencies.
    From(usize),
    /// Elements are appended while the run is open. Such a group has only dependencies on whole groups and on single elements;
    /// its elements have edges of their own.
    Growing,
}

/// A dependency on an earlier group.
#[derive(Clone, Debug)]
pub struct Dependency {
    /// Ordinal in the run.
    pub group: usize,
    /// Which elements wait for which.
    pub kind: DependencyKind,
    /// The results are read: they are kept until then, and restored when they are lost. Only in open runs.
    pub data: bool,
}

/// The kinds of dependency.
#[derive(Clone, Debug)]
pub enum DependencyKind {
    /// Every element waits for the whole upstream group.
    Whole,
    /// Every element waits for this one element of the upstream group, which may be a growing one.
    One(u32),
    /// Element by element along shared axes; see [`Axis`].
    Projection(Vec<Axis>),
    /// Explicit pairs (upstream index, downstream index).
    Edges(Vec<(u32, u32)>),
}

/// One axis of a projection between two mixed-radix spaces: its length and how much one step moves the index on either side.
/// `upstream_stride` 0 is fan-out, `downstream_stride` 0 fan-in. One axis `(n, 1, 1)` is element by element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Steps along it.
    pub length: u32,
    /// What a step adds to the upstream index.
    pub upstream_stride: u32,
    /// What a step adds to the downstream index.
    pub downstream_stride: u32,
}

/// What happens when an attempt ends badly. Budgets are separate per class.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Further attempts after `app_error`, `missing_output` and the like, and after `timeout`.
    pub retries: u32,
    /// Wait before the n-th retry: `initial * factor^(n-1)`, at most `max`.
    pub backoff: Backoff,
    /// Longest an attempt may execute; 0 is no limit. Enforced by the worker, said with the dispatch.
    pub timeout: Micros,
    /// Memory of the next attempt after `oom`.
    pub on_oom: Growth,
    /// Timeout of the next attempt after `timeout`; factor 1000 is unchanged.
    pub on_timeout: Growth,
    /// Failures worth a retry; empty is any.
    pub retry_on: Vec<RetryOn>,
    /// Further attempts after the worker was lost while executing.
    pub lost_worker_budget: u32,
    /// Further attempts after `oom`.
    pub oom_budget: u32,
    /// Further attempts after `infra_start`.
    pub infra_start_budget: u32,
}

impl Default for Policy {
    /// DESIGN §5: `app_error` 0, `lost_worker` 3, `oom` 2 with memory x 1.5, `infra_start` with backoff.
    fn default() -> Self {
        Policy {
            retries: 0,
            backoff: Backoff { initial: SECOND, factor_milli: 2_000, max: 60 * SECOND },
            timeout: 0,
            on_oom: Growth { factor_milli: 1_500, max: u64::MAX },
            on_timeout: Growth { factor_milli: 1_000, max: u64::MAX },
            retry_on: Vec::new(),
            lost_worker_budget: 3,
            oom_budget: 2,
            infra_start_budget: 5,
        }
    }
}

/// Exponential wait between attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Before the first retry.
    pub initial: Micros,
    /// Thousandths.
    pub factor_milli: u32,
    /// Longest.
    pub max: Micros,
}

/// Growth of a figure by cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Thousandths; 1000 is unchanged.
    pub factor_milli: u32,
    /// Never above (bytes, or microseconds). The core also clamps memory to the largest worker that serves the component.
    pub max: u64,
}

/// A failure that is worth a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryOn {
    /// This exit code.
    Exit(i32),
    /// Ended by a signal.
    Signal,
    /// Out of memory.
    Oom,
    /// Ran into its timeout.
    Timeout,
    /// Its worker was lost.
    Lost,
    /// A declared output was not there.
    MissingOutput,
}
