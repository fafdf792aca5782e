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

mod client;
mod endpoint;
mod error;
mod outgoing;
mod session;
mod watch;

pub use client::{Client, Submitted};
pub use error::Error;
pub use scalable_proto::v1;
pub use watch::{Event, FAILURES_QUEUED_MAX, Watcher};
