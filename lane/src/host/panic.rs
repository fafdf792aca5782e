//! Calling a function so that a panic in it is an end like any other: its message and backtrace are kept for the report.

use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Once;

use super::call::{Call, CallError, Function, Returned, Runtime};
use crate::TEXT_BYTES_MAX;
use crate::frame::cut;

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The encoded result.
    Value(Vec<u8>),
    /// The function returned an error, or its arguments could not be decoded.
    Failed(CallError),
    /// It panicked.
    Panicked {
        /// What the panic said, and where.
        message: String,
        /// At most [`TEXT_BYTES_MAX`] bytes.
        backtrace: String,
    },
    /// There is no runtime for an asynchronous function: why.
    Unable(String),
}

thread_local! {
    static CALLING: Cell<bool> = const { Cell::new(false) };
    static CAUGHT: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

/// Calls a function of this program on this thread. `runtime` is asked for when the function is asynchronous.
pub fn execute<'r>(
    function: &Function,
    call: &mut Call<'_>,
    runtime: impl FnOnce() -> Result<&'r dyn Runtime, String>,
) -> Outcome {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| if CALLING.get() { caught(info) } else { before(info) }));
    });
    // A function that calls functions of this crate itself stays in the outer call.
    let outer = CALLING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(|| match (function.call)(call) {
        Ok(Returned::Value(value)) => Outcome::Value(value),
        Ok(Returned::Future(future)) => match runtime() {
            Ok(runtime) => runtime.block_on(future).map_or_else(Outcome::Failed, Outcome::Value),
            Err(why) => Outcome::Unable(why),
        },
        Err(error) => Outcome::Failed(error),
    }));
    CALLING.set(outer);
    result.unwrap_or_else(|payload| {
        // Its drop is the user's code, too.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
        let (message, backtrace) = CAUGHT.take().unwrap_or_else(|| ("it panicked".to_owned(), String::new()));
        Outcome::Panicked { message, backtrace }
    })
}

fn caught(info: &PanicHookInfo<'_>) {
    let payload = info.payload();
    let words = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let words = words.unwrap_or("a value that is no text");
    let place = info.location().map(|place| format!(" at {}:{}:{}", place.file(), place.line(), place.column()));
    let message = format!("{}{}", cut(words, TEXT_BYTES_MAX / 2), place.unwrap_or_default());
    let backtrace = Backtrace::force_capture().to_string();
    CAUGHT.set(Some((message, cut(&backtrace, TEXT_BYTES_MAX).to_owned())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{GroupOfCalls, Place};

    fn run(call: fn(&mut Call<'_>) -> Result<Returned, CallError>) -> Outcome {
        let function = Function { name: "f", codec: "raw", signature: || [0; 32], call };
        let of = GroupOfCalls::default();
        let mut call = Call::new(b"abc", Vec::new(), &of, Place::default());
        execute(&function, &mut call, || Err("none here".to_owned()))
    }

    #[test]
    fn every_end_of_a_call() {
        assert_eq!(run(|call| Ok(call.values().to_vec().into())), Outcome::Value(b"abc".to_vec()));
        let failed = CallError::Failed("no".to_owned());
        assert_eq!(run(|_| Err(CallError::Failed("no".to_owned()))), Outcome::Failed(failed));
        assert_eq!(run(|_| Ok(Returned::Future(Box::pin(async { Ok(Vec::new()) })))), Outcome::Unable("none here".to_owned()));
        for _ in 0..2 {
            let Outcome::Panicked { message, backtrace } = run(|call| panic!("{} is wrong", call.index())) else {
                panic!("it panics")
            };
            assert!(message.starts_with("0 is wrong at ") && message.contains("panic.rs"), "{message}");
            assert!(backtrace.contains("every_end_of_a_call") && backtrace.len() <= TEXT_BYTES_MAX, "{backtrace}");
        }
    }
}
