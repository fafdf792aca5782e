//! The Rust client of Scalable: functions as tasks on workers, with typed handles of their results.
//!
//! ```
//! use scalable::{Error, Session};
//!
//! #[scalable::task(cpus = 1, memory = "512MiB", retries = 2, timeout = "10m")]
//! fn simulate(scenario: String, member: u32) -> Result<f64, std::num::ParseFloatError> {
//!     Ok(scenario.parse::<f64>()? * f64::from(member))
//! }
//!
//! #[scalable::task]
//! fn mean(values: Vec<f64>) -> f64 {
//!     values.iter().sum::<f64>() / values.len() as f64
//! }
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Error> {
//!     scalable::init!();
//!     // `Session::start()` has processes instead of threads.
//!     let session = Session::local().workers(2).start().await?;
//!     let runs = session.map(simulate, (scalable::same("1.5"), 1..=3)).await?;
//!     assert_eq!(session.submit(mean, (runs.all(),)).await?.await?, 3.0);
//!     Ok(())
//! }
//! ```
//!
//! `docs/rust.md` is the chapter for people who know rayon, tokio, Dask or Ray. The parts: [`task`] and [`init!`] make a program's
//! functions known to workers; a [`Session`] takes calls of them; [`Handle`], [`Array`] and [`TaskSet`] give results; [`TaskError`]
//! says what happened to one that has none. [`Client`] is the connection below: runs in the manifest's words, as the command line
//! submits them.
//!
//! A connection consists of two streams, control and data. Both carry numbers and acknowledgements ([`scalable_core::link`]): when the
//! connection breaks it is made again, what was not acknowledged is sent again, and the caller sees none of it.

mod arguments;
mod array;
mod backend;
mod client;
pub mod codec;
mod columns;
mod command;
mod completed;
mod connection;
mod endpoint;
mod error;
mod fetch;
#[cfg(feature = "manifest")]
mod from_manifest;
mod function;
mod functions;
mod group;
mod handle;
mod host;
mod live_logs;
mod local;
#[doc(hidden)]
pub mod macro_support;
mod map;
mod options;
mod outbox;
mod outgoing;
mod processes;
mod program;
mod run_files;
mod scatter;
mod session;
mod shared;
mod ship;
mod signature;
mod start;
mod task_error;
mod template;
mod units;
mod watch;

pub use arguments::{ARGUMENT_BYTES_MAX, Argument, Arguments};
pub use array::{All, Array};
pub use client::{Client, Submitted};
pub use columns::{Column, Columns, Rows, Same, Streamed, rows, same, streamed};
pub use command::{Command, Finished, Running};
pub use completed::{TaskSet, as_completed, first_completed, gather, wait};
pub use error::Error;
#[cfg(feature = "manifest")]
pub use from_manifest::FromManifest;
pub use function::{Callable, Task, Value};
pub use group::Progress;
pub use handle::{Handle, HandleFuture};
pub use local::LocalBuilder;
pub use map::Map;
pub use options::{Configured, Cpus, Isolation, Memory, Options, Span};
pub use processes::Start;
pub use run_files::FetchedFiles;
/// Makes a function a task that a [`Session`] can submit. It stays callable as it was.
///
/// ```
/// #[scalable::task(cpus = 2, memory = "1GiB", retries = 2, backoff = "5s", timeout = "10m", oom_factor = 2.0)]
/// fn fit(samples: Vec<f64>, degree: u32) -> Result<Vec<f64>, String> {
///     if samples.len() > degree as usize { Ok(samples) } else { Err("too few samples".to_owned()) }
/// }
///
/// #[scalable::task(isolation = "thread", resources(licence = 1), retry_on("timeout", "lost"))]
/// async fn fetch(address: String) -> std::io::Result<u64> {
///     Ok(address.len() as u64)
/// }
///
/// assert!(fit(vec![1.0], 3).is_err());
/// ```
///
/// In the parentheses stand the setters of [`Options`], as `name = value`; figures written as text are checked when the program is
/// compiled. `name = "…"` is the name the function is found under, its path unless said. The function
///
/// - owns its parameters, at most 12, and they and its result are [`Value`]s;
/// - may be `async`, and may return a `Result` whose error has `Display`: an error is a failed attempt then. That is told by the name
///   of the type: an alias that is not called `Result` is a value like any other;
/// - has no generic parameters and no `self`.
///
/// Its name becomes a value of its own: it is what is passed to [`Session::submit`], and `name(…)` still calls the function.
/// A variable cannot have that name: `let fit = …` does not compile where the task `fit` is in scope.
///
/// ```compile_fail
/// #[scalable::task]
/// fn length(text: &str) -> usize { // a task owns its parameters
///     text.len()
/// }
/// ```
///
/// ```compile_fail
/// struct NotSerde;
///
/// #[scalable::task]
/// fn consume(value: NotSerde) {} // cannot travel between processes
/// ```
///
/// ```compile_fail
/// #[scalable::task(memory = "512 apples")] // no figure
/// fn count() {}
/// ```
///
/// ```compile_fail
/// # #[scalable::task] fn add(a: u32, b: u32) -> u32 { a + b }
/// # async fn example(session: scalable::Session) -> Result<(), scalable::Error> {
/// session.submit(add, (1, "2")).await?; // not the parameter's type
/// # Ok(())
/// # }
/// ```
pub use scalable_macros::task;
pub use scalable_proto::v1;
pub use scalable_tls::Connection;
pub use scatter::SCATTER_BYTES_MAX;
pub use session::Session;
pub use task_error::{Attempt, TaskError};
pub use watch::{Event, FAILURES_QUEUED_MAX, Watcher};
