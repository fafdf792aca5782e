//! What `#[scalable::task]` and `scalable::init!` write calls of. Not for use by hand, and free to change.

pub use crate::host::serve_if_asked;
pub use inventory;
pub use scalable_lane::host::{Call, CallError, Function, Returned};

use std::fmt::Display;
use std::future::Future;

use scalable_lane::host::{Input, Parameter, Registry};
use serde::Serialize;

use crate::function::{Task, Value};
use crate::{codec, units};

/// A function of this program.
#[derive(Debug)]
pub struct Registered(pub Function);

inventory::collect!(Registered);

/// All functions of this program.
pub(crate) fn registry() -> Registry {
    Registry::new(inventory::iter::<Registered>.into_iter().map(|registered| registered.0))
}

/// The result of a function that can fail.
pub trait Fallible {
    /// What it gives when it does not.
    type Value;
}

impl<T, E: Display> Fallible for Result<T, E> {
    type Value = T;
}

/// Compiles only for types that travel.
pub fn is_value<T: Value>() {}

/// The nth argument of a call.
///
/// # Errors
/// When the bytes are no encoding of a `T`.
#[inline]
pub fn argument<T: Value>(call: &mut Call<'_>, nth: usize) -> Result<T, CallError> {
    let decoded = match call.parameter(nth) {
        Parameter::Value => codec::decode_first(call.values()),
        Parameter::Input(input) => match call.input(input as usize) {
            Input::One(bytes) => codec::decode(bytes),
            Input::Many(objects) => codec::decode_sequence(objects),
        },
    };
    decoded.map_err(|error| CallError::Decode(format!("argument {}, a {}: {error}", nth + 1, std::any::type_name::<T>())))
}

/// Encodes a result.
///
/// # Errors
/// What its `Serialize` says.
#[inline]
pub fn plain<T: Serialize>(value: T) -> Result<Vec<u8>, CallError> {
    let mut bytes = Vec::new();
    codec::encode(&value, &mut bytes).map_err(|error| CallError::Failed(format!("its result could not be encoded: {error}")))?;
    Ok(bytes)
}

/// Encodes the result of a function that can fail.
///
/// # Errors
/// What the function's error says, with its causes where the type shows them in `{:#}`.
#[inline]
pub fn fallible<T: Serialize, E: Display>(result: Result<T, E>) -> Result<Vec<u8>, CallError> {
    match result {
        Ok(value) => plain(value),
        Err(error) => Err(CallError::Failed(format!("{error:#}"))),
    }
}

/// The result of an asynchronous function.
pub fn later(future: impl Future<Output = Result<Vec<u8>, CallError>> + Send + 'static) -> Returned {
    Returned::Future(Box::pin(future))
}

/// Structural digest of a task's parameters and result.
pub fn signature<F: Task>() -> [u8; 32] {
    crate::signature::of::<F>()
}

/// Refuses a program whose `cpus = "…"` is no figure.
pub const fn check_cpus(text: &str) {
    assert!(units::milli_cpus(text).is_some(), "cpus are a number like 2, 0.5 or \"500m\"");
}

/// Refuses a program whose `memory = "…"` is no figure.
pub const fn check_memory(text: &str) {
    assert!(units::memory(text).is_some(), "memory is a figure like \"512MiB\" or \"2GB\"");
}

/// Refuses a program whose `timeout = "…"` and the like is no span of time.
pub const fn check_duration(text: &str) {
    assert!(units::duration_ms(text).is_some(), "a span of time is written like \"500ms\", \"10m\" or \"1h30m\"");
}
