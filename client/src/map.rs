//! Many calls of one task as one array: its arguments are read, encoded and handed over in chunks.

use std::future::{Future, IntoFuture, poll_fn};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::arguments::{ARGUMENT_BYTES_MAX, Given, Shape};
use crate::array::Array;
use crate::columns::Cells;
use crate::function::Task;
use crate::group::Group;
use crate::options::Options;
use crate::outbox::Elements;
use crate::session::{Session, refused, unencodable};
use crate::{Error, template};

/// Elements that are handed over together at most: few enough that the first ones run while the next are encoded.
const CHUNK_ELEMENTS: u32 = 8192;
/// Bytes that are handed over together, about.
const CHUNK_BYTES: usize = 256 << 10;

/// Tasks that are submitted and not over at most while results are taken one by one: enough that no worker waits, however short they
/// are, and little against what a scheduler holds.
const FOR_EACH_AHEAD: u32 = 1 << 18;

/// Many calls that are about to be submitted: made by [`Session::map`].
///
/// Awaited, it hands over all arguments and gives the [`Array`]. [`Map::spawn`] gives the array at once and hands over arguments in
/// the background; [`Map::for_each`] takes results while it does so, and keeps none of them.
#[must_use = "nothing is submitted before it is awaited"]
pub struct Map<'a, F, C> {
    session: Session,
    options: Options,
    shape: Shape,
    fixed: u32,
    ahead: u32,
    cells: C,
    /// What the arguments may borrow from.
    task: PhantomData<(F, &'a ())>,
}

impl<F, C> std::fmt::Debug for Map<'_, F, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Map").field("options", &self.options).finish_non_exhaustive()
    }
}

impl<F: Task, C: Cells> Map<'_, F, C> {
    pub(crate) fn new(session: Session, options: Options, shape: Shape, fixed: u32, cells: C) -> Self {
        Map { session, options, shape, fixed, ahead: u32::MAX, cells, task: PhantomData }
    }

    /// At most so many tasks are submitted and not over at a time: arguments beyond them are not asked for. For streams that never end.
    pub fn buffered(mut self, tasks: u32) -> Self {
        self.ahead = tasks.max(1);
        self
    }

    /// Makes the group.
    async fn begin(mut self) -> Result<(Arc<Group>, Feed<C>), Error> {
        let mut spec = self.session.spec::<F>(self.shape, &self.options).await?;
        let mut fixed = Given::default();
        self.cells.give_fixed(&mut fixed).map_err(|error| unencodable(&error))?;
        self.session.check(0, &fixed)?;
        template::fix(&mut spec, self.shape, self.fixed, &fixed.sources);
        let group = self.session.add_group(spec, true);
        let feed = Feed {
            session: self.session,
            group: group.clone(),
            shape: self.shape,
            fixed: self.fixed,
            ahead: self.ahead,
            cells: self.cells,
            chunk: Elements::new(self.shape, self.fixed),
            given: Given::default(),
        };
        Ok((group, feed))
    }

    async fn submit(self) -> Result<Array<F::Output>, Error> {
        let (group, feed) = self.begin().await?;
        feed.run().await?;
        Ok(Array::new(group))
    }

    /// Submits all calls and gives each result to `each` when it comes, with its number, until all were given. Arguments are handed
    /// over only as fast as results are taken, and nothing of either is kept.
    ///
    /// # Errors
    /// When arguments cannot be handed over, when the connection is lost, or the first error of `each`; what is not over is cancelled
    /// then.
    ///
    /// ```
    /// # #[scalable::task] fn square(n: u64) -> u64 { n * n }
    /// # async fn example(session: scalable::Session) -> Result<(), scalable::Error> {
    /// let mut sum = 0;
    /// session.map(square, (0..1_000_000_000,)).for_each(|_, result| Ok(sum += result?)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn for_each(
        mut self,
        mut each: impl FnMut(usize, Result<F::Output, Error>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.ahead = self.ahead.min(FOR_EACH_AHEAD);
        let (group, feed) = self.begin().await?;
        let array = Array::<F::Output>::new(group).cancel_on_drop();
        let mut feeding = std::pin::pin!(feed.run());
        let mut reading = std::pin::pin!(array.drain(true, &mut each));
        let mut fed = false;
        poll_fn(|context| {
            if !fed {
                match feeding.as_mut().poll(context) {
                    Poll::Ready(Ok(())) => fed = true,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {}
                }
            }
            reading.as_mut().poll(context)
        })
        .await
    }
}

impl<F: Task, C: Cells + Send + 'static> Map<'_, F, C> {
    /// Gives the array at once and hands over the arguments in a task of the runtime. An error on the way ends the array: what has no
    /// result then gives that error.
    ///
    /// # Errors
    /// When the group cannot be made.
    pub async fn spawn(self) -> Result<Array<F::Output>, Error> {
        let (group, feed) = self.begin().await?;
        let fed = group.clone();
        tokio::spawn(async move {
            if let Err(error) = feed.run().await {
                fed.lost(&error);
            }
        });
        Ok(Array::new(group))
    }
}

impl<'a, F: Task, C: Cells + Send + 'a> IntoFuture for Map<'a, F, C> {
    type Output = Result<Array<F::Output>, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.submit())
    }
}

/// Arguments on their way.
struct Feed<C> {
    session: Session,
    group: Arc<Group>,
    shape: Shape,
    fixed: u32,
    ahead: u32,
    cells: C,
    chunk: Elements,
    given: Given,
}

impl<C: Cells> Feed<C> {
    /// Hands over everything. On an error the group is closed with what it has, for nothing may be left waiting for the rest.
    async fn run(mut self) -> Result<(), Error> {
        let mut result = Ok(());
        loop {
            let last = match poll_fn(|context| self.fill(context)).await {
                Ok(last) => last,
                Err(error) => {
                    result = Err(error);
                    true
                }
            };
            let empty = Elements::new(self.shape, self.fixed);
            let chunk = std::mem::replace(&mut self.chunk, empty);
            let count = chunk.count;
            self.session.append_elements(&self.group, &mut Some(chunk), last).await?;
            self.cells.appended();
            self.group.appended(count, last);
            if last {
                return result;
            }
        }
    }

    /// Fills the chunk; ready when it is full, when nothing more is there now, or at the end: then with true.
    fn fill(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, Error>> {
        let Poll::Ready(room) = self.group.poll_room(self.ahead, context.waker()) else { return Poll::Pending };
        while self.chunk.count < room.min(CHUNK_ELEMENTS) && self.chunk.args.len() < CHUNK_BYTES {
            match self.cells.poll_more(context) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Poll::Ready(Ok(true)),
                Poll::Pending if self.chunk.count > 0 => return Poll::Ready(Ok(false)),
                Poll::Pending => return Poll::Pending,
            }
            self.one()?;
        }
        Poll::Ready(Ok(false))
    }

    /// One more element.
    #[inline]
    fn one(&mut self) -> Result<(), Error> {
        let before = self.chunk.args.len();
        self.given.values = std::mem::take(&mut self.chunk.args);
        self.given.sources.clear();
        let given = self.cells.give(&mut self.given);
        let number = self.session.shared().number;
        let bytes = self.given.values.len() - before;
        if let Err(error) = self.fits(given, bytes, number) {
            // What was written of it is taken back: the elements before it are whole.
            self.given.values.truncate(before);
            self.chunk.args = std::mem::take(&mut self.given.values);
            return Err(error);
        }
        self.chunk.args = std::mem::take(&mut self.given.values);
        self.chunk.push(&self.given.sources);
        Ok(())
    }

    #[inline]
    fn fits(&self, given: Result<(), crate::codec::CodecError>, bytes: usize, session: u64) -> Result<(), Error> {
        given.map_err(|error| unencodable(&error))?;
        if bytes > ARGUMENT_BYTES_MAX || self.given.sources.iter().any(|source| source.session != session) {
            return self.session.check(bytes, &self.given);
        }
        if self.given.sources.iter().any(|source| source.group >= self.group.ordinal()) {
            let message = "an argument of a map is the result of a task that was submitted later".to_owned();
            return Err(refused("LATER_HANDLE", message, "submit what the map reads before the map"));
        }
        Ok(())
    }
}
