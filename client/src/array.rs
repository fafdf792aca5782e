//! The results of a whole array: one group of tasks, submitted with one call.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use crate::arguments::Source;
use crate::group::{Cursor, Group, Progress, Raw, Reading};
use crate::handle::{self, Handle, Known};
use crate::outbox::Range;
use crate::{Error, Value};

/// The tasks of one [`Session::map`](crate::Session::map), in the order of their arguments. Its results are kept until it and the
/// handles made from it are dropped; what reads them with `&self` can read them again.
///
/// ```
/// # #[scalable::task] fn square(n: u64) -> u64 { n * n }
/// # #[scalable::task] fn sum(values: Vec<u64>) -> u64 { values.iter().sum() }
/// # async fn example(session: scalable::Session) -> Result<(), scalable::Error> {
/// let squares = session.map(square, (0..100,)).await?;
/// while let Some((index, result)) = squares.next_completed().await {
///     println!("{index}: {}", result?);
/// }
/// let total = session.submit(sum, (squares.all(),)).await?.await?;
/// assert_eq!(total, 328_350);
/// # Ok(())
/// # }
/// ```
#[must_use = "an array that is dropped says that nobody needs its results"]
pub struct Array<T> {
    group: Arc<Group>,
    reader: Mutex<Reader>,
    cancels: bool,
    result: PhantomData<fn() -> T>,
}

/// What reads results in the order in which they came.
#[derive(Debug)]
struct Reader {
    cursor: Cursor,
    found: VecDeque<(u32, Raw)>,
    lost: bool,
}

impl Reader {
    fn new(consumes: bool) -> Reader {
        Reader { cursor: Cursor::new(consumes), found: VecDeque::new(), lost: false }
    }

    /// The next results, at most a few thousand at a time; none at the end.
    fn poll(&mut self, group: &Group, context: &mut Context<'_>) -> Poll<Option<Result<(), Error>>> {
        if !self.found.is_empty() {
            return Poll::Ready(Some(Ok(())));
        }
        let found = &mut self.found;
        match group.read_arrivals(&mut self.cursor, context.waker(), &mut |index, raw| found.push_back((index, raw))) {
            Reading::Some => Poll::Ready(Some(Ok(()))),
            Reading::Nothing => Poll::Pending,
            Reading::End => Poll::Ready(None),
            Reading::Lost(_) if self.lost => Poll::Ready(None),
            Reading::Lost(error) => {
                self.lost = true;
                Poll::Ready(Some(Err(error)))
            }
        }
    }
}

impl<T> std::fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Array").field("name", &self.name()).field("progress", &self.progress()).finish()
    }
}

/// All results of an [`Array`], as one argument: a task with a parameter `Vec<T>` reads them in index order when they are there.
#[derive(Clone, Debug)]
pub struct All<T> {
    group: Arc<Group>,
    result: PhantomData<fn() -> T>,
}

impl<T> All<T> {
    pub(crate) fn source(&self) -> Source {
        Source { session: self.group.shared().number, group: self.group.ordinal(), index: 0 }
    }
}

impl<T> Array<T> {
    pub(crate) fn new(group: Arc<Group>) -> Array<T> {
        Array { group, reader: Mutex::new(Reader::new(false)), cancels: false, result: PhantomData }
    }

    fn reader(&self) -> MutexGuard<'_, Reader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The group's name in its run.
    pub fn name(&self) -> &str {
        self.group.name()
    }

    /// Number of tasks submitted so far.
    pub fn len(&self) -> usize {
        self.progress().submitted as usize
    }

    /// True when no task was submitted so far.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.group.progress()
    }

    /// The nth task's handle. The result stays the array's: it is kept until the array and all its handles are dropped.
    ///
    /// # Panics
    /// When the array has no task `index`.
    pub fn handle(&self, index: usize) -> Handle<T> {
        assert!(index < self.len(), "task {index} of an array of {}", self.len());
        // Below the length, which is a u32.
        Handle::new(self.group.clone(), index as u32, false)
    }

    /// All results as one argument of another task.
    pub fn all(&self) -> All<T> {
        All { group: self.group.clone(), result: PhantomData }
    }

    /// Asks for the end of all its tasks that are not over.
    pub fn cancel(&self) {
        self.group.shared().cancel(Range { group: self.group.ordinal(), first: 0, count: self.progress().submitted });
    }

    /// Makes dropping the array a cancel of what is not over then.
    pub fn cancel_on_drop(mut self) -> Self {
        self.cancels = true;
        self
    }

    pub(crate) fn source_of(&self, index: u32) -> Source {
        Source { session: self.group.shared().number, group: self.group.ordinal(), index }
    }

    /// True when task `index` was submitted, false when there will be none.
    pub(crate) fn poll_submitted(&self, index: u32, context: &mut Context<'_>) -> Poll<bool> {
        self.group.is_appended(index, context.waker()).map_or(Poll::Pending, Poll::Ready)
    }

    /// Waits until every task is over, however it ended.
    pub async fn wait(&self) {
        self.group.shared().while_waiting(poll_fn(|context| self.group.poll_over(context.waker()))).await;
    }
}

impl<T: Value> Array<T> {
    /// The next task that is over and its result, in the order in which they end; nothing when all were given.
    ///
    /// When the connection to the scheduler is lost, the error is given once, with the number of the first task that has no result.
    pub async fn next_completed(&self) -> Option<(usize, Result<T, Error>)> {
        let next = {
            let ready = poll_fn(|context| {
                let mut reader = self.reader();
                match reader.poll(&self.group, context) {
                    Poll::Ready(Some(Ok(()))) => Poll::Ready(reader.found.pop_front().map(Ok)),
                    Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
                    Poll::Ready(None) => Poll::Ready(None),
                    Poll::Pending => Poll::Pending,
                }
            });
            self.group.shared().while_waiting(ready).await?
        };
        Some(match next {
            Ok((index, raw)) => (index as usize, value(&self.group, index, raw).await),
            Err(error) => (self.group.first_pending() as usize, Err(error)),
        })
    }

    /// Waits for all results and gives them in order, or the first failure.
    ///
    /// # Errors
    /// Of a task that has none: the one that came first.
    pub async fn gather(self) -> Result<Vec<T>, Error> {
        let mut values: Vec<Option<T>> = Vec::new();
        self.drain(self.is_alone(), |index, result| {
            if values.len() <= index {
                values.resize_with(index + 1, || None);
            }
            values[index] = Some(result?);
            Ok(())
        })
        .await?;
        // Every element was given once, else the drain had ended with an error.
        Ok(values.into_iter().flatten().collect())
    }

    /// Waits for all tasks and gives how each ended, in order.
    ///
    /// # Errors
    /// When the connection to the scheduler is lost.
    pub async fn gather_each(self) -> Result<Vec<Result<T, Error>>, Error> {
        let mut values: Vec<Option<Result<T, Error>>> = Vec::new();
        self.drain(self.is_alone(), |index, result| {
            if values.len() <= index {
                values.resize_with(index + 1, || None);
            }
            values[index] = Some(result);
            Ok(())
        })
        .await?;
        Ok(values.into_iter().flatten().collect())
    }

    /// True when nobody else has a handle: results can be forgotten as they are read.
    fn is_alone(&self) -> bool {
        Arc::strong_count(&self.group) == 1
    }

    /// Gives every result to `each`, in the order in which they come; with `consumes` it is forgotten then.
    pub(crate) async fn drain(
        &self,
        consumes: bool,
        mut each: impl FnMut(usize, Result<T, Error>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut reader = Reader::new(consumes);
        loop {
            let more = self.group.shared().while_waiting(poll_fn(|context| reader.poll(&self.group, context))).await;
            match more {
                None => return Ok(()),
                Some(Err(error)) => return Err(error),
                Some(Ok(())) => {}
            }
            while let Some((index, raw)) = reader.found.pop_front() {
                match raw {
                    Raw::Inline(bytes) => each(index as usize, handle::decoded(&self.group, index, &bytes))?,
                    other => {
                        let value = value(&self.group, index, other).await;
                        if consumes {
                            self.group.dropped(index);
                        }
                        each(index as usize, value)?;
                    }
                }
            }
        }
    }
}

impl<T> Drop for Array<T> {
    fn drop(&mut self) {
        if self.cancels {
            let progress = self.progress();
            if !progress.complete || progress.over < progress.submitted {
                self.cancel();
            }
        }
    }
}

/// A result, fetched if need be.
async fn value<T: Value>(group: &Arc<Group>, index: u32, raw: Raw) -> Result<T, Error> {
    let bytes = match handle::known(group, index, raw)? {
        Known::Here(bytes) => bytes,
        Known::There(fetching) => fetching.await?,
    };
    handle::decoded(group, index, &bytes)
}
