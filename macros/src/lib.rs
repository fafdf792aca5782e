//! The attribute `#[scalable::task]`. What it writes is in [`task`], what it understands in [`settings`].
#![forbid(unsafe_code)]

mod settings;
mod task;

use proc_macro::TokenStream;

/// Makes a function a task that a session can submit. It stays callable as it was.
///
/// See the documentation of `scalable::task`, where it is used from.
#[proc_macro_attribute]
pub fn task(settings: TokenStream, item: TokenStream) -> TokenStream {
    task::expand(settings.into(), item.into()).unwrap_or_else(|error| error.to_compile_error()).into()
}
