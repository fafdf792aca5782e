//! Results that did not come with the news of them: they are fetched from a worker that holds them. When none has it any more the
//! scheduler says where it is, at once or when it has been made again.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use scalable_proto::v1;
use scalable_store::{Capability, FetchRequest, Key, ObjectId};

use crate::group::{Group, Other};
use crate::task_error::Attempt;
use crate::{Error, TaskError};

/// A result on its way.
pub(crate) type Fetching = Pin<Box<dyn Future<Output = Result<Bytes, Error>> + Send>>;

/// How often one attempt's result is asked for, and waits between: doubled from the first to the last. Together they are longer than a
/// scheduler takes to see that a worker is gone.
const TRIES: u32 = 16;
const WAIT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Fetches the object that `found` is from those that hold it, wherever it goes meanwhile.
pub(crate) fn fetch(group: Arc<Group>, index: u32, mut found: Arc<Other>) -> Fetching {
    Box::pin(async move {
        let (mut attempt, mut tries, mut wait) = (0, 0, WAIT.0);
        loop {
            let object = match &*found {
                Other::Object(object) if object.inline.len() as u64 == object.size => return Ok(object.inline.clone()),
                Other::Object(object) => object,
                Other::Failed(error) => return Err(Error::Task(error.clone())),
                Other::Finished(report) => return crate::command::encoded(report),
            };
            if attempt != object.attempt {
                (attempt, tries, wait) = (object.attempt, 0, WAIT.0);
            }
            let message = match once(&group, object).await {
                Ok(bytes) => return Ok(bytes),
                Err(message) => message,
            };
            tries += 1;
            // Outside a runtime of tokio there is no clock to wait by.
            if tries == TRIES || tokio::runtime::Handle::try_current().is_err() {
                let task = format!("{}[{index}]", group.name());
                let attempt = Arc::new(Attempt { task, number: object.attempt, ..Attempt::default() });
                return Err(Error::Task(TaskError::ResultLost { message, attempt }));
            }
            tracing::debug!(object = group.name(), index, message, "a result could not be fetched, asking where it is");
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(WAIT.1);
            group.shared().locate(group.ordinal(), index);
            found = poll_fn(|context| group.poll_moved(index, &found, context.waker())).await?;
        }
    })
}

/// Fetches an object from those that hold it, or says why that cannot be done.
async fn once(group: &Group, object: &v1::ObjectRef) -> Result<Bytes, String> {
    let shared = group.shared();
    let shown = object.capability.as_ref();
    let shown = shown.and_then(|shown| Some((shown.run, Capability::from_parts(shown.expires_ms, &shown.mac)?)));
    let (run, capability) = shown.ok_or("the scheduler gave no right to fetch it")?;
    let id = ObjectId { run, group: object.group, index: object.index, attempt: object.attempt };
    let request = FetchRequest { key: Key::Object(id), size: object.size, holders: shared.holders(&object.holders), capability };
    let fetcher = shared.fetcher().map_err(|error| format!("nothing can be fetched in this process: {error}"))?;
    let content = fetcher.fetch(request).await.map_err(|error| error.to_string())?;
    content.bytes().map_err(|error| format!("it was fetched and cannot be read: {error}"))
}
