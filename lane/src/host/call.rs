//! What a function is to its host, and what one call of it is given and gives back.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::shared::WANTED_BACK;

/// A function of this program that tasks may call.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    /// With its module path, e.g. `model::simulate`. Unique in the program.
    pub name: &'static str,
    /// How arguments and results are encoded, e.g. `bincode2`.
    pub codec: &'static str,
    /// Structural digest of its argument and result types.
    pub signature: fn() -> [u8; 32],
    /// Decodes the arguments, calls it, encodes the result.
    pub call: fn(&mut Call<'_>) -> Result<Returned, CallError>,
}

/// The result of an asynchronous function, on its way.
pub type LaneFuture = Pin<Box<dyn Future<Output = Result<Vec<u8>, CallError>> + Send + 'static>>;

/// What a call gives back.
pub enum Returned {
    /// The encoded result.
    Value(Vec<u8>),
    /// The function is asynchronous: driven by the host's [`Runtime`] until it is done.
    Future(LaneFuture),
}

impl From<Vec<u8>> for Returned {
    fn from(value: Vec<u8>) -> Self {
        Returned::Value(value)
    }
}

impl std::fmt::Debug for Returned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Returned::Value(value) => f.debug_tuple("Value").field(&value.len()).finish(),
            Returned::Future(_) => f.write_str("Future"),
        }
    }
}

/// Why a call gives nothing back. A panic is none of these: the host catches it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The bytes are no arguments of this function: one sentence.
    #[error("the arguments could not be decoded: {0}")]
    Decode(String),
    /// The function returned an error: what its `Display` says.
    #[error("{0}")]
    Failed(String),
}

/// Drives asynchronous functions. Made by a [`RuntimeFactory`] when the first is called.
pub trait Runtime: Send + Sync {
    /// Runs one future to its end on the calling thread. Called by several threads at once.
    ///
    /// # Errors
    /// What the future says.
    fn block_on(&self, future: LaneFuture) -> Result<Vec<u8>, CallError>;
}

/// Makes the runtime, or says in one sentence why there is none.
pub type RuntimeFactory = fn() -> Result<Box<dyn Runtime>, String>;

/// The functions of this program.
#[derive(Debug, Default)]
pub struct Registry {
    functions: Vec<Function>,
    by_name: HashMap<&'static str, usize>,
    runtime: Option<RuntimeFactory>,
}

impl Registry {
    /// Of several functions of one name the first is known.
    pub fn new(functions: impl IntoIterator<Item = Function>) -> Self {
        let mut registry = Registry::default();
        for function in functions {
            if let Entry::Vacant(entry) = registry.by_name.entry(function.name) {
                entry.insert(registry.functions.len());
                registry.functions.push(function);
            }
        }
        registry
    }

    /// With what drives asynchronous functions.
    pub fn with_runtime(mut self, factory: RuntimeFactory) -> Self {
        self.runtime = Some(factory);
        self
    }

    /// All of them, in the order they were given.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// The function of this name.
    pub fn get(&self, name: &str) -> Option<&Function> {
        self.by_name.get(name).map(|at| &self.functions[*at])
    }

    pub(crate) fn runtime(&self) -> Option<RuntimeFactory> {
        self.runtime
    }
}

/// Where one parameter of a function comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// The next of the call's own values.
    Value,
    /// The object or objects of this input.
    Input(u32),
}

/// One input of a call.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// One object's bytes.
    One(&'a [u8]),
    /// A sequence of objects, in index order.
    Many(Objects<'a>),
}

/// The objects of an input that is a sequence.
#[derive(Clone, Debug)]
pub struct Objects<'a>(std::slice::Iter<'a, &'a [u8]>);

impl<'a> Iterator for Objects<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.0.next().copied()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Objects<'_> {}

/// What all calls of one group share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupOfCalls {
    /// Name of the run.
    pub run: String,
    /// Name of the group.
    pub group: String,
    /// Where each parameter comes from, in order. Empty: every one is a value.
    pub parameters: Vec<Parameter>,
}

/// Which task a call is an attempt of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Element of the group.
    pub index: u32,
    /// From 1.
    pub attempt: u32,
    /// The task's number in its cluster.
    pub task_id: u64,
}

/// The bytes of one input.
#[derive(Clone, Debug)]
pub enum InputBytes<'a> {
    /// One object.
    One(&'a [u8]),
    /// Several.
    Many(Vec<&'a [u8]>),
}

/// One call: what a function's arguments are made of, and whose attempt it is.
#[derive(Debug)]
pub struct Call<'a> {
    values: &'a [u8],
    inputs: Vec<InputBytes<'a>>,
    of: &'a GroupOfCalls,
    place: Place,
    state: Option<&'a AtomicU8>,
}

impl<'a> Call<'a> {
    /// A call made by hand, which nobody can cancel: for functions that are called in the same process.
    pub fn new(values: &'a [u8], inputs: Vec<InputBytes<'a>>, of: &'a GroupOfCalls, place: Place) -> Self {
        Call { values, inputs, of, place, state: None }
    }

    pub(crate) fn with_state(mut self, state: &'a AtomicU8) -> Self {
        self.state = Some(state);
        self
    }

    /// What is left of the values, encoded one after the other: a decoder takes its part from the front.
    pub fn values(&mut self) -> &mut &'a [u8] {
        &mut self.values
    }

    /// Where the nth parameter comes from.
    pub fn parameter(&self, nth: usize) -> Parameter {
        self.of.parameters.get(nth).copied().unwrap_or(Parameter::Value)
    }

    /// The objects of an input; an input that does not exist is an empty sequence.
    pub fn input(&self, input: usize) -> Input<'_> {
        match self.inputs.get(input) {
            Some(InputBytes::One(bytes)) => Input::One(bytes),
            Some(InputBytes::Many(all)) => Input::Many(Objects(all.iter())),
            None => Input::Many(Objects([].iter())),
        }
    }

    /// Element of the group.
    pub fn index(&self) -> u32 {
        self.place.index
    }

    /// From 1.
    pub fn attempt(&self) -> u32 {
        self.place.attempt
    }

    /// The task's number in its cluster.
    pub fn task_id(&self) -> u64 {
        self.place.task_id
    }

    /// Name of the run.
    pub fn run(&self) -> &'a str {
        &self.of.run
    }

    /// Name of the group.
    pub fn group(&self) -> &'a str {
        &self.of.group
    }

    /// True when nobody wants the result any more: a function that looks now and then may end early. One that does not is ended
    /// with its host a moment later.
    pub fn cancelled(&self) -> bool {
        self.state.is_some_and(|state| state.load(Ordering::Relaxed) == WANTED_BACK)
    }
}
