//! What to do about pools of workers: pure functions from what is wanted and what is there to operations.
//!
//! [`fixed`] keeps a pool at one size. [`adaptive`] scales pools between bounds by the *windowed work balance*: it compares the
//! work that is queued with what the workers that are there, and those that are starting, can do within a window of one worker
//! start plus [`Parameters::target_duration`], creates what is missing, and lets go, after a delay, what was not needed for the
//! whole of it. Neither ever chooses a busy worker.
//!
//! Rooms: [`snapshot`] what the planner is shown, [`parameters`] the dials, [`estimate`] how long tasks and starts take,
//! `balance` demand against supply, [`trouble`] what the platform refuses and how long to wait, `gate` when workers wait for
//! room, `share` one limit over several pools, `window` the memory of the scale-down delay, [`decision`] what was decided and
//! why. Figures are integers: time in micros, parts of a worker in [`snapshot::WHOLE`]ths.

pub mod adaptive;
mod balance;
pub mod decision;
pub mod estimate;
pub mod fixed;
mod gate;
pub mod parameters;
mod share;
pub mod snapshot;
pub mod trouble;
mod victims;
mod window;

pub use adaptive::{Drain, Planner, PoolPlan, ScalePlan};
pub use decision::{Decision, DecisionLog, Figures, Limit};
pub use estimate::Durations;
pub use fixed::{BACKOFF_INITIAL, BACKOFF_MAX, Desired, HEALTHY_AFTER, Observed, Plan, plan};
pub use parameters::Parameters;
pub use snapshot::{Blocked, Group, Phase, Pool, Running, Snapshot, WHOLE, Worker, WorkerKey, slots};
pub use trouble::{Obstacle, PoolEvent};
