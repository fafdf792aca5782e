//! The Rust client of Scalable: connects to a scheduler, submits runs, watches them, asks and cancels.
//!
//! ```no_run
//! # async fn example(spec: scalable_proto::v1::RunSpec) -> Result<(), scalable::Error> {
//! use tokio_stream::StreamExt;
//!
//! let client = scalable::Client::connect("http://127.0.0.1:8786", "token").await?;
//! let submitted = client.submit_run(spec).await?;
//! let mut events = client.watch(&submitted.run).await?;
//! while let Some(event) = events.next().await {
//!     if let scalable::Event::Progress(progress) = event? {
//!         println!("{:?}", progress.state());
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A client holds one session of two streams, control and data. Both carry numbers and acknowledgements
//! ([`scalable_core::link`]): when the connection breaks it is made again, what was not acknowledged is sent again, and the
//! caller sees none of it. What is submitted carries a key of 16 bytes under which the scheduler accepts it once.

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
mod local;
#[doc(hidden)]
pub mod macro_support;
mod map;
mod options;
mod outbox;
mod outgoing;
mod processes;
mod program;
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
pub use scalable_macros::task;
pub use scalable_proto::v1;
pub use scatter::SCATTER_BYTES_MAX;
pub use session::Session;
pub use task_error::{Attempt, TaskError};
pub use watch::{Event, FAILURES_QUEUED_MAX, Watcher};
