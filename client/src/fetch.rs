//! Results that did not come with the news of them: they are fetched from a worker that holds them.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use scalable_proto::v1;
use scalable_store::{Capability, FetchRequest, Key, ObjectId};

use crate::group::Group;
use crate::task_error::Attempt;
use crate::{Error, TaskError};

/// A result on its way.
pub(crate) type Fetching = Pin<Box<dyn Future<Output = Result<Bytes, Error>> + Send>>;

/// Fetches an object from those that hold it.
pub(crate) fn fetch(group: &Arc<Group>, index: u32, object: &v1::ObjectRef) -> Fetching {
    let task = format!("{}[{index}]", group.name());
    let attempt = Arc::new(Attempt { task, number: object.attempt, ..Attempt::default() });
    let lost = move |message: String| Error::Task(TaskError::ResultLost { message, attempt: attempt.clone() });
    let shared = group.shared();
    let shown = object.capability.as_ref();
    let Some((run, capability)) =
        shown.and_then(|shown| Some((shown.run, Capability::from_parts(shown.expires_ms, &shown.mac)?)))
    else {
        let error = lost("the scheduler gave no right to fetch it".to_owned());
        return Box::pin(async move { Err(error) });
    };
    let id = ObjectId { run, group: object.group, index: object.index, attempt: object.attempt };
    let request = FetchRequest { key: Key::Object(id), size: object.size, holders: shared.holders(&object.holders), capability };
    match shared.fetcher() {
        Ok(fetcher) => {
            let fetched = fetcher.fetch(request);
            Box::pin(async move {
                let content = fetched.await.map_err(|error| lost(error.to_string()))?;
                content.bytes().map_err(|error| lost(format!("it was fetched and cannot be read: {error}")))
            })
        }
        Err(error) => {
            let error = lost(format!("nothing can be fetched in this process: {error}"));
            Box::pin(async move { Err(error) })
        }
    }
}
