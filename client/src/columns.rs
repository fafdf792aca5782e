//! The arguments of many calls: a column for each parameter. A column is an iterator or a stream of arguments, or one argument that
//! is the same for all; columns end together with the shortest.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio_stream::Stream;

use crate::arguments::{Argument, Arguments, Given, Kind, Shape};
use crate::array::{All, Array};
use crate::codec::CodecError;
use crate::handle::Handle;

/// One parameter's arguments for many calls:
///
/// - an iterator of arguments (values, handles), one for each call;
/// - a stream of them, wrapped in [`streamed`];
/// - `&Handle<P>`, `All<P>` or [`same`]`(value)`: the same for each call;
/// - `&Array<P>`: the result of its nth task for the nth call.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not give arguments for a parameter of type `{P}`",
    label = "expected an iterator of `{P}` or of `Handle<{P}>`, or one `&Handle<{P}>` for all",
    note = "a value that is the same for every call is written `scalable::same(value)`"
)]
pub trait Column<P> {
    /// True when it never ends by itself.
    #[doc(hidden)]
    const ENDLESS: bool;
    /// What each call gets.
    #[doc(hidden)]
    const KIND: Kind;
    /// True when the source is said once for all calls.
    #[doc(hidden)]
    const FIXED: bool;
    #[doc(hidden)]
    type Cells: Cells;

    #[doc(hidden)]
    fn open(self) -> Self::Cells;
}

/// A column that is being read.
#[doc(hidden)]
pub trait Cells {
    /// True when there is one more, false at the end.
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<bool>;

    /// Appends the one that [`Cells::poll_more`] has announced, and keeps a handle in it alive until [`Cells::appended`].
    fn give(&mut self, to: &mut Given) -> Result<(), CodecError>;

    /// What was given has been handed over.
    fn appended(&mut self) {}

    /// The source for all calls.
    fn give_fixed(&mut self, _: &mut Given) -> Result<(), CodecError> {
        Ok(())
    }
}

/// An iterator that is being read.
#[doc(hidden)]
pub struct Iterated<I: Iterator, P> {
    rest: I,
    next: Option<I::Item>,
    kept: Vec<I::Item>,
    parameter: std::marker::PhantomData<fn() -> P>,
}

impl<P, I: IntoIterator> Column<P> for I
where
    I::Item: Argument<P>,
{
    const ENDLESS: bool = false;
    const KIND: Kind = <I::Item as Argument<P>>::KIND;
    const FIXED: bool = false;
    type Cells = Iterated<I::IntoIter, P>;

    fn open(self) -> Self::Cells {
        const {
            assert!(
                !matches!(<I::Item as Argument<P>>::KIND, Kind::All),
                "pass `array.all()` itself: it is the same for every call"
            )
        };
        Iterated { rest: self.into_iter(), next: None, kept: Vec::new(), parameter: std::marker::PhantomData }
    }
}

impl<P, I: Iterator> Cells for Iterated<I, P>
where
    I::Item: Argument<P>,
{
    #[inline]
    fn poll_more(&mut self, _: &mut Context<'_>) -> Poll<bool> {
        if self.next.is_none() {
            self.next = self.rest.next();
        }
        Poll::Ready(self.next.is_some())
    }

    #[inline]
    fn give(&mut self, to: &mut Given) -> Result<(), CodecError> {
        if let Some(item) = self.next.take() {
            item.give(to)?;
            if const { !matches!(<I::Item as Argument<P>>::KIND, Kind::Value) } {
                self.kept.push(item);
            }
        }
        Ok(())
    }

    fn appended(&mut self) {
        self.kept.clear();
    }
}

/// A stream as a column or as rows: see [`streamed`].
#[derive(Debug)]
pub struct Streamed<S>(S);

/// Lets a stream give the arguments of [`Session::map`](crate::Session::map): calls are submitted as its items come.
///
/// ```
/// # #[scalable::task] fn square(n: u64) -> u64 { n * n }
/// # async fn example(session: scalable::Session, numbers: tokio::sync::mpsc::Receiver<u64>) -> Result<(), scalable::Error> {
/// let numbers = tokio_stream::wrappers::ReceiverStream::new(numbers);
/// let squares = session.map(square, (scalable::streamed(numbers),)).await?;
/// # Ok(())
/// # }
/// ```
pub fn streamed<S: Stream>(stream: S) -> Streamed<S> {
    Streamed(stream)
}

/// A stream that is being read.
#[doc(hidden)]
pub struct StreamedCells<S: Stream, P> {
    rest: Pin<Box<S>>,
    next: Option<S::Item>,
    kept: Vec<S::Item>,
    parameter: std::marker::PhantomData<fn() -> P>,
}

impl<P, S: Stream> Column<P> for Streamed<S>
where
    S::Item: Argument<P>,
{
    const ENDLESS: bool = false;
    const KIND: Kind = <S::Item as Argument<P>>::KIND;
    const FIXED: bool = false;
    type Cells = StreamedCells<S, P>;

    fn open(self) -> Self::Cells {
        const {
            assert!(
                !matches!(<S::Item as Argument<P>>::KIND, Kind::All),
                "pass `array.all()` itself: it is the same for every call"
            )
        };
        StreamedCells { rest: Box::pin(self.0), next: None, kept: Vec::new(), parameter: std::marker::PhantomData }
    }
}

impl<P, S: Stream> Cells for StreamedCells<S, P>
where
    S::Item: Argument<P>,
{
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        if self.next.is_none() {
            match self.rest.as_mut().poll_next(context) {
                Poll::Ready(item) => self.next = item,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(self.next.is_some())
    }

    fn give(&mut self, to: &mut Given) -> Result<(), CodecError> {
        if let Some(item) = self.next.take() {
            item.give(to)?;
            if const { !matches!(<S::Item as Argument<P>>::KIND, Kind::Value) } {
                self.kept.push(item);
            }
        }
        Ok(())
    }

    fn appended(&mut self) {
        self.kept.clear();
    }
}

/// The same argument for every call: see [`same`].
#[derive(Debug)]
pub struct Same<A>(A);

/// An argument that is the same for every call of a [`Session::map`](crate::Session::map). A value is sent with each call: for one of
/// more than a few hundred bytes, [`Session::scatter`](crate::Session::scatter) it once and pass `&handle`.
pub fn same<A>(argument: A) -> Same<A> {
    Same(argument)
}

/// A column that repeats itself.
#[doc(hidden)]
pub struct SameCells<A, P> {
    argument: A,
    encoded: Option<Vec<u8>>,
    parameter: std::marker::PhantomData<fn() -> P>,
}

impl<P, A: Argument<P>> Column<P> for Same<A> {
    const ENDLESS: bool = true;
    const KIND: Kind = A::KIND;
    const FIXED: bool = !matches!(A::KIND, Kind::Value);
    type Cells = SameCells<A, P>;

    fn open(self) -> Self::Cells {
        SameCells { argument: self.0, encoded: None, parameter: std::marker::PhantomData }
    }
}

impl<P> Column<P> for &Handle<P> {
    const ENDLESS: bool = true;
    const KIND: Kind = Kind::Handle;
    const FIXED: bool = true;
    type Cells = SameCells<Self, P>;

    fn open(self) -> Self::Cells {
        same(self).open_as()
    }
}

impl<T> Column<Vec<T>> for All<T> {
    const ENDLESS: bool = true;
    const KIND: Kind = Kind::All;
    const FIXED: bool = true;
    type Cells = SameCells<Self, Vec<T>>;

    fn open(self) -> Self::Cells {
        same(self).open_as()
    }
}

impl<A> Same<A> {
    fn open_as<P>(self) -> SameCells<A, P> {
        SameCells { argument: self.0, encoded: None, parameter: std::marker::PhantomData }
    }
}

impl<P, A: Argument<P>> Cells for SameCells<A, P> {
    fn poll_more(&mut self, _: &mut Context<'_>) -> Poll<bool> {
        Poll::Ready(true)
    }

    fn give(&mut self, to: &mut Given) -> Result<(), CodecError> {
        if const { !matches!(A::KIND, Kind::Value) } {
            return Ok(());
        }
        match &self.encoded {
            Some(encoded) => to.values.extend_from_slice(encoded),
            None => {
                let start = to.values.len();
                self.argument.give(to)?;
                self.encoded = Some(to.values[start..].to_vec());
            }
        }
        Ok(())
    }

    fn give_fixed(&mut self, to: &mut Given) -> Result<(), CodecError> {
        if const { !matches!(A::KIND, Kind::Value) } { self.argument.give(to) } else { Ok(()) }
    }
}

/// The results of an array, one for each call.
#[doc(hidden)]
pub struct ArrayCells<'a, T> {
    array: &'a Array<T>,
    next: u32,
}

impl<'a, P> Column<P> for &'a Array<P> {
    const ENDLESS: bool = false;
    const KIND: Kind = Kind::Handle;
    const FIXED: bool = false;
    type Cells = ArrayCells<'a, P>;

    fn open(self) -> Self::Cells {
        ArrayCells { array: self, next: 0 }
    }
}

impl<T> Cells for ArrayCells<'_, T> {
    #[inline]
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        self.array.poll_submitted(self.next, context)
    }

    #[inline]
    fn give(&mut self, to: &mut Given) -> Result<(), CodecError> {
        to.sources.push(self.array.source_of(self.next));
        self.next += 1;
        Ok(())
    }
}

/// The arguments of many calls of a task with the parameters `P`: a tuple of [`Column`]s, or [`rows`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not give the arguments of many calls with the parameters `{P}`",
    label = "expected a tuple with one column for each of `{P}`",
    note = "one column is written `(column,)`; an iterator of whole tuples is given as `scalable::rows(iterator)`"
)]
pub trait Columns<P> {
    #[doc(hidden)]
    const ENDLESS: bool;
    #[doc(hidden)]
    const SHAPE: Shape;
    /// Bit n: the nth parameter's source is said once for all calls.
    #[doc(hidden)]
    const FIXED: u32;
    #[doc(hidden)]
    type Cells: Cells;

    #[doc(hidden)]
    fn open(self) -> Self::Cells;
}

macro_rules! tuples {
    ($($nth:tt $column:ident $parameter:ident),*) => {
        impl<$($column: Column<$parameter>, $parameter),*> Columns<($($parameter,)*)> for ($($column,)*) {
            const ENDLESS: bool = true $(&& $column::ENDLESS)*;
            const SHAPE: Shape = Shape(0)$(.with($nth, $column::KIND))*;
            const FIXED: u32 = 0 $(| ($column::FIXED as u32) << $nth)*;
            type Cells = ($($column::Cells,)*);

            fn open(self) -> Self::Cells {
                ($(self.$nth.open(),)*)
            }
        }

        impl<$($column: Cells),*> Cells for ($($column,)*) {
            #[inline]
            fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<bool> {
                $(match self.$nth.poll_more(context) {
                    Poll::Ready(true) => {}
                    other => return other,
                })*
                Poll::Ready(true)
            }

            #[inline]
            fn give(&mut self, to: &mut Given) -> Result<(), CodecError> {
                $(self.$nth.give(to)?;)*
                Ok(())
            }

            fn appended(&mut self) {
                $(self.$nth.appended();)*
            }

            fn give_fixed(&mut self, to: &mut Given) -> Result<(), CodecError> {
                $(self.$nth.give_fixed(to)?;)*
                Ok(())
            }
        }
    };
}

tuples!(0 C0 P0);
tuples!(0 C0 P0, 1 C1 P1);
tuples!(0 C0 P0, 1 C1 P1, 2 C2 P2);
tuples!(0 C0 P0, 1 C1 P1, 2 C2 P2, 3 C3 P3);
tuples!(0 C0 P0, 1 C1 P1, 2 C2 P2, 3 C3 P3, 4 C4 P4);
tuples!(0 C0 P0, 1 C1 P1, 2 C2 P2, 3 C3 P3, 4 C4 P4, 5 C5 P5);
tuples!(0 C0 P0, 1 C1 P1, 2 C2 P2, 3 C3 P3, 4 C4 P4, 5 C5 P5, 6 C6 P6);
tuples!(0 C0 P0, 1 C1 P1, 2 C2 P2, 3 C3 P3, 4 C4 P4, 5 C5 P5, 6 C6 P6, 7 C7 P7);
tuples!(0 C0 P0, 1 C1 P1, 2 C2 P2, 3 C3 P3, 4 C4 P4, 5 C5 P5, 6 C6 P6, 7 C7 P7, 8 C8 P8);
tuples!(0 C0 P0, 1 C1 P1, 2 C2 P2, 3 C3 P3, 4 C4 P4, 5 C5 P5, 6 C6 P6, 7 C7 P7, 8 C8 P8, 9 C9 P9);
tuples!(0 C0 P0, 1 C1 P1, 2 C2 P2, 3 C3 P3, 4 C4 P4, 5 C5 P5, 6 C6 P6, 7 C7 P7, 8 C8 P8, 9 C9 P9, 10 C10 P10);
tuples!(0 C0 P0, 1 C1 P1, 2 C2 P2, 3 C3 P3, 4 C4 P4, 5 C5 P5, 6 C6 P6, 7 C7 P7, 8 C8 P8, 9 C9 P9, 10 C10 P10, 11 C11 P11);

/// Whole calls: see [`rows`].
#[derive(Debug)]
pub struct Rows<I>(I);

/// An iterator of whole calls (tuples of arguments) for [`Session::map`](crate::Session::map).
///
/// ```
/// # #[scalable::task] fn add(a: u32, b: u32) -> u32 { a + b }
/// # async fn example(session: scalable::Session) -> Result<(), scalable::Error> {
/// let sums = session.map(add, scalable::rows((0..10).map(|n| (n, 10 - n)))).await?;
/// assert_eq!(sums.gather().await?, vec![10; 10]);
/// # Ok(())
/// # }
/// ```
pub fn rows<I: IntoIterator>(calls: I) -> Rows<I> {
    Rows(calls)
}

/// Rows that are being read.
#[doc(hidden)]
pub struct RowCells<I: Iterator, P> {
    rest: I,
    next: Option<I::Item>,
    kept: Vec<I::Item>,
    parameters: std::marker::PhantomData<fn() -> P>,
}

impl<P, I: IntoIterator> Columns<P> for Rows<I>
where
    I::Item: Arguments<P>,
{
    const ENDLESS: bool = false;
    const SHAPE: Shape = <I::Item as Arguments<P>>::SHAPE;
    const FIXED: u32 = 0;
    type Cells = RowCells<I::IntoIter, P>;

    fn open(self) -> Self::Cells {
        const { assert!(!<I::Item as Arguments<P>>::SHAPE.has_all(), "`array.all()` is the same for every call: pass columns") };
        RowCells { rest: self.0.into_iter(), next: None, kept: Vec::new(), parameters: std::marker::PhantomData }
    }
}

impl<P, I: Iterator> Cells for RowCells<I, P>
where
    I::Item: Arguments<P>,
{
    #[inline]
    fn poll_more(&mut self, _: &mut Context<'_>) -> Poll<bool> {
        if self.next.is_none() {
            self.next = self.rest.next();
        }
        Poll::Ready(self.next.is_some())
    }

    #[inline]
    fn give(&mut self, to: &mut Given) -> Result<(), CodecError> {
        if let Some(row) = self.next.take() {
            row.give(to)?;
            if const { <I::Item as Arguments<P>>::SHAPE.0 != 0 } {
                self.kept.push(row);
            }
        }
        Ok(())
    }

    fn appended(&mut self) {
        self.kept.clear();
    }
}
