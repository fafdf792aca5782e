//! What a task is to the type system: its function, its parameters, its result.

use scalable_lane::host::Function;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::options::{Configured, Options};

/// A value that travels between processes. Implemented for every owned type that serde can write and read.
///
/// ```
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Scenario {
///     name: String,
///     years: u32,
/// }
///
/// fn travels<T: scalable::Value>() {}
/// travels::<Scenario>();
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot travel between processes",
    label = "not `Serialize`, `Deserialize`, `Send` and `'static`",
    note = "put `#[derive(serde::Serialize, serde::Deserialize)]` on it, and let it own what it refers to"
)]
pub trait Value: Serialize + DeserializeOwned + Send + 'static {}

impl<T: Serialize + DeserializeOwned + Send + 'static> Value for T {}

/// A function that was made a task with `#[scalable::task]`. Never implemented by hand.
///
/// ```
/// use scalable::Task;
///
/// #[scalable::task]
/// fn add(a: u32, b: u32) -> u32 {
///     a + b
/// }
///
/// assert_eq!(add(1, 2), 3);
/// assert!(add::FUNCTION.name.ends_with("::add"));
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a task",
    label = "not a task",
    note = "put `#[scalable::task]` before the function"
)]
pub trait Task: Copy + Send + Sync + 'static {
    /// Its parameters as a tuple.
    type Parameters: DeserializeOwned + 'static;
    /// What a handle gives: the function's result, without the `Result` around it.
    type Output: Value;
    /// How a lane host calls it.
    const FUNCTION: Function;

    /// As they were declared.
    fn options() -> Options;
}

/// What can be submitted: a task, or a task with options of its own ([`Configured`]).
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be submitted: it is not a task",
    label = "not a task",
    note = "put `#[scalable::task]` before the function and pass its name"
)]
pub trait Callable {
    /// The task.
    type Task: Task;

    /// Its options where they are not the declared ones.
    #[doc(hidden)]
    fn into_options(self) -> Option<Options>;
}

impl<F: Task> Callable for F {
    type Task = F;

    fn into_options(self) -> Option<Options> {
        None
    }
}

impl<F: Task> Callable for Configured<F> {
    type Task = F;

    fn into_options(self) -> Option<Options> {
        Some(self.options)
    }
}
