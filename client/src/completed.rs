//! Several handles at once: in the order in which they end, the first of them, all of them.

use std::future::{IntoFuture, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::group::{Ready, Waiter};
use crate::handle::{Handle, HandleFuture};
use crate::{Error, Value};

/// Handles under keys of the user's choice, given back in the order in which their tasks end. More can be inserted at any time, also
/// because of what has come. Dropping it drops the handles; with [`TaskSet::cancel_on_drop`] that cancels their tasks.
///
/// ```
/// # #[scalable::task] fn evaluate(x: f64) -> f64 { x * x }
/// # async fn example(session: scalable::Session) -> Result<(), scalable::Error> {
/// let mut running = scalable::TaskSet::new();
/// for step in 0..10 {
///     running.insert(step, session.submit(evaluate, (f64::from(step),)).await?);
/// }
/// while let Some((step, result)) = running.next().await {
///     if result? > 50.0 && step < 100 {
///         running.insert(step * 10, session.submit(evaluate, (f64::from(step) / 10.0,)).await?);
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct TaskSet<K, T> {
    ready: Arc<Ready>,
    next: u64,
    handles: FxHashMap<u64, (K, Handle<T>)>,
    /// The one whose result is being read.
    reading: Option<(K, HandleFuture<Handle<T>, T>)>,
    cancels: bool,
}

impl<K, T> std::fmt::Debug for TaskSet<K, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskSet").field("len", &self.len()).finish()
    }
}

impl<K, T> Default for TaskSet<K, T> {
    fn default() -> Self {
        TaskSet { ready: Arc::default(), next: 0, handles: FxHashMap::default(), reading: None, cancels: false }
    }
}

impl<K, T> TaskSet<K, T> {
    /// Without handles.
    pub fn new() -> Self {
        TaskSet::default()
    }

    /// Adds a handle. Keys need not differ.
    pub fn insert(&mut self, key: K, handle: Handle<T>) {
        let token = self.next;
        self.next += 1;
        let handle = if self.cancels { handle.cancel_on_drop() } else { handle };
        if handle.tell(|| Waiter::Queue(self.ready.clone(), token)) {
            self.ready.push(token);
        }
        self.handles.insert(token, (key, handle));
    }

    /// Handles whose results were not given back yet.
    pub fn len(&self) -> usize {
        self.handles.len() + usize::from(self.reading.is_some())
    }

    /// True when nothing is left to wait for.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Dropping the set cancels what is not over then.
    pub fn cancel_on_drop(mut self) -> Self {
        self.cancels = true;
        self.handles = self.handles.drain().map(|(token, (key, handle))| (token, (key, handle.cancel_on_drop()))).collect();
        self
    }

    /// Asks for the end of everything in the set; [`TaskSet::next`] gives what becomes of it.
    pub fn cancel(&self) {
        self.handles.values().for_each(|(_, handle)| handle.cancel());
    }
}

impl<K, T: Value> TaskSet<K, T> {
    /// The next that is over, with its result; nothing when none is left. Can be dropped and called again: nothing is lost.
    #[allow(clippy::should_implement_trait)]
    pub async fn next(&mut self) -> Option<(K, Result<T, Error>)> {
        let of = match (&self.reading, self.handles.values().next()) {
            (Some((_, future)), _) => future.handle(),
            (None, Some((_, handle))) => handle,
            (None, None) => return None,
        };
        let shared = of.group().shared().clone();
        shared.while_waiting(poll_fn(|context| self.poll_completed(context))).await
    }

    fn poll_completed(&mut self, context: &mut Context<'_>) -> Poll<Option<(K, Result<T, Error>)>> {
        loop {
            if let Some((_, future)) = &mut self.reading {
                let Poll::Ready(result) = Pin::new(future).poll(context) else { return Poll::Pending };
                return Poll::Ready(self.reading.take().map(|(key, _)| (key, result)));
            }
            if self.handles.is_empty() {
                return Poll::Ready(None);
            }
            let Some(token) = self.ready.pop(context.waker()) else { return Poll::Pending };
            self.reading = self.handles.remove(&token).map(|(key, handle)| (key, handle.into_future()));
        }
    }
}

/// Handles as a [`TaskSet`] under their positions: what [`TaskSet::next`] gives first has ended first.
///
/// ```
/// # #[scalable::task] fn square(n: u64) -> u64 { n * n }
/// # async fn example(session: scalable::Session) -> Result<(), scalable::Error> {
/// let handles = vec![session.submit(square, (3,)).await?, session.submit(square, (4,)).await?];
/// let mut completed = scalable::as_completed(handles);
/// while let Some((position, result)) = completed.next().await {
///     println!("{position}: {}", result?);
/// }
/// # Ok(())
/// # }
/// ```
pub fn as_completed<T>(handles: impl IntoIterator<Item = Handle<T>>) -> TaskSet<usize, T> {
    let mut set = TaskSet::new();
    handles.into_iter().enumerate().for_each(|(position, handle)| set.insert(position, handle));
    set
}

/// Waits for all handles and gives their results in order, or the first failure in order. The other tasks go on then, unless nobody
/// has their handles.
///
/// # Errors
/// Of the first handle whose task has no result.
///
/// ```
/// # #[scalable::task] fn square(n: u64) -> u64 { n * n }
/// # async fn example(session: scalable::Session) -> Result<(), scalable::Error> {
/// let handles = [session.submit(square, (3,)).await?, session.submit(square, (4,)).await?];
/// assert_eq!(scalable::gather(&handles).await?, [9, 16]);
/// # Ok(())
/// # }
/// ```
pub async fn gather<'a, T: Value>(handles: impl IntoIterator<Item = &'a Handle<T>>) -> Result<Vec<T>, Error> {
    let handles = handles.into_iter();
    let mut values = Vec::with_capacity(handles.size_hint().0);
    for handle in handles {
        values.push(handle.await?);
    }
    Ok(values)
}

/// Waits until the first of the handles is over: its position in the slice. Nothing when there are none.
pub async fn first_completed<T>(handles: &[Handle<T>]) -> Option<usize> {
    let shared = handles.first()?.group().shared();
    let first = poll_fn(|context| {
        let over = handles.iter().position(|handle| handle.tell(|| Waiter::Task(context.waker().clone())));
        over.map_or(Poll::Pending, Poll::Ready)
    });
    Some(shared.while_waiting(first).await)
}

/// Waits until all of the handles are over, at most so long. True when they are; what is not goes on.
pub async fn wait<T>(handles: &[Handle<T>], longest: Duration) -> bool {
    let all = async {
        for handle in handles {
            let over =
                poll_fn(
                    |context| {
                        if handle.tell(|| Waiter::Task(context.waker().clone())) { Poll::Ready(()) } else { Poll::Pending }
                    },
                );
            handle.group().shared().while_waiting(over).await;
        }
    };
    tokio::time::timeout(longest, all).await.is_ok()
}
