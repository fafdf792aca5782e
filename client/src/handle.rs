//! One task's result, now or later.

use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;

use crate::arguments::Source;
use crate::fetch::Fetching;
use crate::group::{Group, Other, Raw, Waiter};
use crate::outbox::Range;
use crate::task_error::Attempt;
use crate::{Error, TaskError, Value, codec};

/// The result of a task that was submitted. Awaiting it, or a reference to it, gives the result; passing it to another submit makes
/// that task wait for it and read it, without the value coming here.
///
/// Dropping it says that the result is not needed any more: the task goes on, and its result is forgotten when no task that was
/// given it is left. [`Handle::cancel_on_drop`] makes dropping it a cancel.
///
/// ```
/// # #[scalable::task] fn prepare(path: String) -> Vec<f64> { Vec::new() }
/// # #[scalable::task] fn mean(values: Vec<f64>) -> f64 { 0.0 }
/// # async fn example(session: scalable::Session) -> Result<(), scalable::Error> {
/// let prepared = session.submit(prepare, ("table.csv",)).await?;
/// let result = session.submit(mean, (&prepared,)).await?;
/// println!("{}", result.await?);
/// # Ok(())
/// # }
/// ```
#[must_use = "a handle that is dropped says that nobody needs the result"]
pub struct Handle<T> {
    group: Arc<Group>,
    index: u32,
    /// The element is this handle's own, not an array's.
    owns: bool,
    cancels: bool,
    result: PhantomData<fn() -> T>,
}

impl<T> std::fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Handle").field(&self.name()).finish()
    }
}

impl<T> Handle<T> {
    pub(crate) fn new(group: Arc<Group>, index: u32, owns: bool) -> Handle<T> {
        Handle { group, index, owns, cancels: false, result: PhantomData }
    }

    pub(crate) fn source(&self) -> Source {
        Source { session: self.group.shared().number, group: self.group.ordinal(), index: self.index }
    }

    pub(crate) fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// The task's name in its run, as `group[index]`.
    pub fn name(&self) -> String {
        format!("{}[{}]", self.group.name(), self.index)
    }

    /// The task's index in its group: for a handle of an array, which element it is.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// True when the task is over, well or badly: awaiting it does not wait for the task then.
    pub fn is_over(&self) -> bool {
        self.group.is_over(self.index)
    }

    /// Asks for the task's end. Awaiting it gives [`TaskError::Cancelled`] then, unless it was over before; what depends on it gives
    /// [`TaskError::DependencyFailed`].
    pub fn cancel(&self) {
        self.group.shared().cancel(Range { group: self.group.ordinal(), first: self.index, count: 1 });
    }

    /// Makes dropping the handle a cancel, unless the task is over then.
    pub fn cancel_on_drop(mut self) -> Self {
        self.cancels = true;
        self
    }

    /// Has `waiter` told when the task is over; true when it is already.
    pub(crate) fn tell(&self, waiter: impl FnOnce() -> Waiter) -> bool {
        self.group.poll(self.index, waiter).is_some()
    }
}

impl<T: Value> Handle<T> {
    /// Waits at most so long. Nothing when the task is not over then; it goes on.
    pub async fn wait(&self, longest: Duration) -> Option<Result<T, Error>> {
        tokio::time::timeout(longest, self).await.ok()
    }
}

impl<T> Drop for Handle<T> {
    fn drop(&mut self) {
        if self.cancels && !self.is_over() {
            self.cancel();
        }
        if self.owns {
            self.group.dropped(self.index);
        }
    }
}

impl<T: Value> IntoFuture for Handle<T> {
    type Output = Result<T, Error>;
    type IntoFuture = HandleFuture<Handle<T>, T>;

    fn into_future(self) -> Self::IntoFuture {
        HandleFuture::new(self)
    }
}

impl<'a, T: Value> IntoFuture for &'a Handle<T> {
    type Output = Result<T, Error>;
    type IntoFuture = HandleFuture<&'a Handle<T>, T>;

    fn into_future(self) -> Self::IntoFuture {
        HandleFuture::new(self)
    }
}

impl<T> AsRef<Handle<T>> for Handle<T> {
    fn as_ref(&self) -> &Handle<T> {
        self
    }
}

/// Waits for a [`Handle`]'s result.
#[must_use = "futures do nothing unless awaited"]
pub struct HandleFuture<H: AsRef<Handle<T>>, T> {
    handle: H,
    /// The session knows that somebody waits.
    waits: bool,
    fetching: Option<Fetching>,
    result: PhantomData<fn() -> T>,
}

impl<H: AsRef<Handle<T>>, T> std::fmt::Debug for HandleFuture<H, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("HandleFuture").field(self.handle.as_ref()).finish()
    }
}

impl<H: AsRef<Handle<T>>, T> Unpin for HandleFuture<H, T> {}

impl<H: AsRef<Handle<T>>, T> HandleFuture<H, T> {
    fn new(handle: H) -> Self {
        HandleFuture { handle, waits: false, fetching: None, result: PhantomData }
    }

    pub(crate) fn handle(&self) -> &Handle<T> {
        self.handle.as_ref()
    }

    fn waits(&mut self, waits: bool) {
        if self.waits != waits {
            self.waits = waits;
            let shared = self.handle.as_ref().group.shared();
            if waits { shared.begin_wait() } else { shared.end_wait() }
        }
    }
}

impl<H: AsRef<Handle<T>>, T: Value> Future for HandleFuture<H, T> {
    type Output = Result<T, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if this.fetching.is_none() {
            let handle = this.handle.as_ref();
            let (group, index) = (&handle.group, handle.index);
            let Some(found) = group.poll(index, || Waiter::Task(context.waker().clone())) else {
                this.waits(true);
                return Poll::Pending;
            };
            match found.and_then(|raw| known(group, index, raw)) {
                Ok(Known::Here(bytes)) => {
                    let result = decoded(group, index, &bytes);
                    this.waits(false);
                    return Poll::Ready(result);
                }
                Ok(Known::There(fetching)) => this.fetching = Some(fetching),
                Err(error) => {
                    this.waits(false);
                    return Poll::Ready(Err(error));
                }
            }
        }
        let Some(fetching) = &mut this.fetching else { return Poll::Pending };
        let Poll::Ready(fetched) = fetching.as_mut().poll(context) else {
            this.waits(true);
            return Poll::Pending;
        };
        this.fetching = None;
        this.waits(false);
        let handle = this.handle.as_ref();
        Poll::Ready(fetched.and_then(|bytes| decoded(&handle.group, handle.index, &bytes)))
    }
}

impl<H: AsRef<Handle<T>>, T> Drop for HandleFuture<H, T> {
    fn drop(&mut self) {
        self.waits(false);
    }
}

/// Where a result is.
pub(crate) enum Known {
    /// These are its bytes.
    Here(Bytes),
    /// It is being fetched.
    There(Fetching),
}

/// A result's bytes, or the way to them.
pub(crate) fn known(group: &Arc<Group>, index: u32, raw: Raw) -> Result<Known, Error> {
    match raw {
        Raw::Inline(bytes) => Ok(Known::Here(bytes)),
        Raw::Other(other) => match &*other {
            Other::Failed(error) => Err(Error::Task(error.clone())),
            // What a command leaves behind is made into a value by `command`.
            Other::Finished(report) => crate::command::encoded(report).map(Known::Here),
            Other::Object(object) if object.inline.len() as u64 == object.size => Ok(Known::Here(object.inline.clone())),
            Other::Object(_) => Ok(Known::There(crate::fetch::fetch(group.clone(), index, other))),
        },
    }
}

/// A result from its bytes.
#[inline]
pub(crate) fn decoded<T: Value>(group: &Group, index: u32, bytes: &[u8]) -> Result<T, Error> {
    codec::decode(bytes).map_err(|error| {
        let attempt = Arc::new(Attempt { task: format!("{}[{index}]", group.name()), ..Attempt::default() });
        let message = format!("{error}; a {} was expected", std::any::type_name::<T>());
        Error::Task(TaskError::Undecodable { message, attempt })
    })
}
