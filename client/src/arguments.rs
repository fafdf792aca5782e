//! What may stand where a parameter is: a value, or a handle of another task's result. Checked by the compiler against the
//! parameters of the function.

use smallvec::SmallVec;

use crate::Value;
use crate::array::All;
use crate::codec::{self, CodecError};
use crate::handle::Handle;

/// Most bytes of one task's own arguments.
pub const ARGUMENT_BYTES_MAX: usize = 1 << 20;

/// Where a parameter comes from.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The next of the element's own values.
    Value,
    /// One task's result.
    Handle,
    /// The results of a whole array.
    All,
}

/// The kinds of a call's parameters, in order: three values of two bits each. Zero is "every one a value".
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Shape(pub u32);

impl Shape {
    /// With the kind of the nth parameter.
    pub const fn with(self, nth: usize, kind: Kind) -> Shape {
        Shape(self.0 | (kind as u32) << (2 * nth))
    }

    /// The kind of the nth parameter.
    pub const fn kind(self, nth: usize) -> Kind {
        match (self.0 >> (2 * nth)) & 3 {
            0 => Kind::Value,
            1 => Kind::Handle,
            _ => Kind::All,
        }
    }

    /// True when a parameter is a whole array.
    pub const fn has_all(self) -> bool {
        self.0 & 0xaaaa_aaaa != 0
    }
}

/// A task whose result is read.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Whose task.
    pub session: u64,
    /// Ordinal of its group.
    pub group: u32,
    /// Its index; of no meaning for a whole array.
    pub index: u32,
}

/// The arguments of calls, as they are collected: values one after the other, and sources in the order of the parameters.
#[doc(hidden)]
#[derive(Debug, Default)]
pub struct Given {
    pub(crate) values: Vec<u8>,
    pub(crate) sources: SmallVec<[Source; 4]>,
}

/// What may stand where a parameter of type `P` is: a `P`, a `&P`, a [`Handle<P>`] or a reference to one, and for a `Vec<T>` the
/// results of a whole array ([`Array::all`](crate::Array::all)).
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be given where the task has a parameter of type `{P}`",
    label = "expected a `{P}` or a `Handle<{P}>`",
    note = "a value must be of exactly the parameter's type; a handle must be of a task that returns it"
)]
pub trait Argument<P> {
    #[doc(hidden)]
    const KIND: Kind;

    /// Appends it.
    #[doc(hidden)]
    fn give(&self, to: &mut Given) -> Result<(), CodecError>;
}

impl<P: Value> Argument<P> for P {
    const KIND: Kind = Kind::Value;

    #[inline]
    fn give(&self, to: &mut Given) -> Result<(), CodecError> {
        codec::encode(self, &mut to.values)
    }
}

impl<P: Value> Argument<P> for &P {
    const KIND: Kind = Kind::Value;

    #[inline]
    fn give(&self, to: &mut Given) -> Result<(), CodecError> {
        codec::encode(*self, &mut to.values)
    }
}

impl Argument<String> for &str {
    const KIND: Kind = Kind::Value;

    #[inline]
    fn give(&self, to: &mut Given) -> Result<(), CodecError> {
        codec::encode(*self, &mut to.values)
    }
}

impl<T: Value> Argument<Vec<T>> for &[T] {
    const KIND: Kind = Kind::Value;

    #[inline]
    fn give(&self, to: &mut Given) -> Result<(), CodecError> {
        codec::encode(*self, &mut to.values)
    }
}

impl<P> Argument<P> for Handle<P> {
    const KIND: Kind = Kind::Handle;

    #[inline]
    fn give(&self, to: &mut Given) -> Result<(), CodecError> {
        to.sources.push(self.source());
        Ok(())
    }
}

impl<P> Argument<P> for &Handle<P> {
    const KIND: Kind = Kind::Handle;

    #[inline]
    fn give(&self, to: &mut Given) -> Result<(), CodecError> {
        to.sources.push(self.source());
        Ok(())
    }
}

impl<T> Argument<Vec<T>> for All<T> {
    const KIND: Kind = Kind::All;

    fn give(&self, to: &mut Given) -> Result<(), CodecError> {
        to.sources.push(self.source());
        Ok(())
    }
}

/// The arguments of a call: a tuple with one [`Argument`] for each parameter, `()` where there are none, `(value,)` for one.
#[diagnostic::on_unimplemented(
    message = "`{Self}` are not the arguments of a task with the parameters `{P}`",
    label = "expected a tuple with one argument for each of `{P}`",
    note = "one argument is written `(value,)`, none `()`"
)]
pub trait Arguments<P> {
    #[doc(hidden)]
    const SHAPE: Shape;

    /// Appends them.
    #[doc(hidden)]
    fn give(&self, to: &mut Given) -> Result<(), CodecError>;
}

impl Arguments<()> for () {
    const SHAPE: Shape = Shape(0);

    #[inline]
    fn give(&self, _: &mut Given) -> Result<(), CodecError> {
        Ok(())
    }
}

macro_rules! tuples {
    ($($nth:tt $argument:ident $parameter:ident),*) => {
        impl<$($argument: Argument<$parameter>, $parameter),*> Arguments<($($parameter,)*)> for ($($argument,)*) {
            const SHAPE: Shape = Shape(0)$(.with($nth, $argument::KIND))*;

            #[inline]
            fn give(&self, to: &mut Given) -> Result<(), CodecError> {
                $(self.$nth.give(to)?;)*
                Ok(())
            }
        }
    };
}

tuples!(0 A0 P0);
tuples!(0 A0 P0, 1 A1 P1);
tuples!(0 A0 P0, 1 A1 P1, 2 A2 P2);
tuples!(0 A0 P0, 1 A1 P1, 2 A2 P2, 3 A3 P3);
tuples!(0 A0 P0, 1 A1 P1, 2 A2 P2, 3 A3 P3, 4 A4 P4);
tuples!(0 A0 P0, 1 A1 P1, 2 A2 P2, 3 A3 P3, 4 A4 P4, 5 A5 P5);
tuples!(0 A0 P0, 1 A1 P1, 2 A2 P2, 3 A3 P3, 4 A4 P4, 5 A5 P5, 6 A6 P6);
tuples!(0 A0 P0, 1 A1 P1, 2 A2 P2, 3 A3 P3, 4 A4 P4, 5 A5 P5, 6 A6 P6, 7 A7 P7);
tuples!(0 A0 P0, 1 A1 P1, 2 A2 P2, 3 A3 P3, 4 A4 P4, 5 A5 P5, 6 A6 P6, 7 A7 P7, 8 A8 P8);
tuples!(0 A0 P0, 1 A1 P1, 2 A2 P2, 3 A3 P3, 4 A4 P4, 5 A5 P5, 6 A6 P6, 7 A7 P7, 8 A8 P8, 9 A9 P9);
tuples!(0 A0 P0, 1 A1 P1, 2 A2 P2, 3 A3 P3, 4 A4 P4, 5 A5 P5, 6 A6 P6, 7 A7 P7, 8 A8 P8, 9 A9 P9, 10 A10 P10);
tuples!(0 A0 P0, 1 A1 P1, 2 A2 P2, 3 A3 P3, 4 A4 P4, 5 A5 P5, 6 A6 P6, 7 A7 P7, 8 A8 P8, 9 A9 P9, 10 A10 P10, 11 A11 P11);
