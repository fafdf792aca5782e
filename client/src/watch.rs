//! The events of a run as a stream. Between the session and a slow reader lies a bounded queue: of progress only the newest is
//! kept, of failures the first [`FAILURES_QUEUED_MAX`], and how many were left out is said.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use scalable_proto::v1;
use tokio_stream::Stream;

use crate::Error;

/// Failures that wait for a slow reader at most.
pub const FAILURES_QUEUED_MAX: usize = 4096;

/// What happened to a run.
#[derive(Clone, Debug)]
pub enum Event {
    /// Its state now.
    Progress(v1::RunProgress),
    /// An attempt ended badly.
    Failed(Box<v1::TaskFailed>),
    /// So many failures were not delivered because the reader was slower than they came. The run's records have them.
    Missed(u64),
}

#[derive(Debug, Default)]
struct Queue {
    failures: VecDeque<Box<v1::TaskFailed>>,
    missed: u64,
    progress: Option<v1::RunProgress>,
    end: Option<Option<Error>>,
    reader: Option<Waker>,
    reader_gone: bool,
}

/// The session's side of a watch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Feed(Arc<Mutex<Queue>>);

impl Feed {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // The queue is consistent between any two statements below: a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn progress(&self, progress: v1::RunProgress) {
        let mut queue = self.queue();
        queue.progress = Some(progress);
        wake(queue);
    }

    pub(crate) fn failed(&self, failed: v1::TaskFailed) {
        let mut queue = self.queue();
        if queue.failures.len() < FAILURES_QUEUED_MAX {
            queue.failures.push_back(Box::new(failed));
        } else {
            queue.missed += 1;
        }
        wake(queue);
    }

    /// Nothing follows; with an error when the run's end was not seen.
    pub(crate) fn end(&self, error: Option<Error>) {
        let mut queue = self.queue();
        queue.end.get_or_insert(error);
        wake(queue);
    }

    /// True when nobody reads any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.queue().reader_gone
    }
}

fn wake(mut queue: MutexGuard<'_, Queue>) {
    let reader = queue.reader.take();
    drop(queue);
    if let Some(reader) = reader {
        reader.wake();
    }
}

/// Events of one run, from its state when the watch began to its end. Survives reconnects: after one, the stream goes on with
/// the state of then. Ends after the progress with `complete`, or with an error when the scheduler is gone for good.
#[derive(Debug)]
pub struct Watcher(Feed);

impl Watcher {
    pub(crate) fn new() -> (Watcher, Feed) {
        let feed = Feed::default();
        (Watcher(feed.clone()), feed)
    }
}

impl Stream for Watcher {
    type Item = Result<Event, Error>;

    /// Failures come before the progress that counts them, so that a reader has shown a failure when it sees the end.
    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut queue = self.0.queue();
        if let Some(failed) = queue.failures.pop_front() {
            return Poll::Ready(Some(Ok(Event::Failed(failed))));
        }
        if queue.missed > 0 {
            return Poll::Ready(Some(Ok(Event::Missed(std::mem::take(&mut queue.missed)))));
        }
        if let Some(progress) = queue.progress.take() {
            return Poll::Ready(Some(Ok(Event::Progress(progress))));
        }
        if let Some(end) = &mut queue.end {
            return Poll::Ready(end.take().map(Err));
        }
        queue.reader = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.queue().reader_gone = true;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt;

    fn progress(note: &str) -> v1::RunProgress {
        v1::RunProgress { note: note.to_owned(), ..Default::default() }
    }

    #[tokio::test]
    async fn a_slow_reader_gets_the_newest_progress_every_failure_and_the_count_of_the_rest() {
        let (mut watcher, feed) = Watcher::new();
        feed.progress(progress("old"));
        for index in 0..FAILURES_QUEUED_MAX as u32 + 3 {
            feed.failed(v1::TaskFailed { index, ..Default::default() });
        }
        feed.progress(progress("new"));
        feed.end(None);
        for expected in 0..FAILURES_QUEUED_MAX as u32 {
            match watcher.next().await.unwrap().unwrap() {
                Event::Failed(failed) => assert_eq!(failed.index, expected),
                other => panic!("expected failure {expected}, got {other:?}"),
            }
        }
        assert!(matches!(watcher.next().await.unwrap().unwrap(), Event::Missed(3)));
        assert!(matches!(watcher.next().await.unwrap().unwrap(), Event::Progress(p) if p.note == "new"));
        assert!(watcher.next().await.is_none());
        assert!(watcher.next().await.is_none(), "the end stays the end");
    }

    #[tokio::test]
    async fn a_lost_scheduler_ends_the_stream_with_one_error() {
        let (mut watcher, feed) = Watcher::new();
        feed.end(Some(Error::Lost { address: "a".into(), reason: "r".into() }));
        feed.end(None);
        assert!(matches!(watcher.next().await.unwrap(), Err(Error::Lost { .. })));
        assert!(watcher.next().await.is_none());
        assert!(!feed.is_abandoned());
        drop(watcher);
        assert!(feed.is_abandoned());
    }
}
