//! The agent's end: what a host says of itself, and frames for it.

use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::frame::{self, Builder, CALL_BYTES, CallHead, FLAG, Frame, FrameError, HEAD_BYTES};
use crate::host::Parameter;
use crate::memory::{Lent, Sealed};
use crate::socket::{Socket, Wait};
use crate::{FRAME_BYTES_MAX, FRAME_FDS_MAX, VERSIONS};

/// Most functions of one program.
pub const FUNCTIONS_MAX: u32 = 100_000;
/// Most inputs of one function.
pub const INPUTS_MAX: usize = 4096;
/// Largest values of a call inside its frame, bytes. What is larger is passed as memory.
pub const VALUES_INLINE_MAX: usize = 32 << 10;
/// Bytes of objects of one call inside its own frame; more come in frames before it.
const OBJECTS_INLINE_MAX: usize = 32 << 10;
/// Bytes of an object in a frame before its own.
const OBJECT_HEAD_BYTES: usize = 5;
/// Objects of one call that are memory and come with its own frame.
const MEMORY_WITH_CALL_MAX: usize = 16;
/// Bytes at which a frame of calls is sent without waiting for more.
const FRAME_BYTES_GOOD: usize = 64 << 10;

/// A function as a host has named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// Its number in frames.
    pub number: u32,
    /// How its arguments and results are encoded.
    pub codec: String,
    /// Structural digest of its types.
    pub signature: [u8; 32],
}

/// A program as it says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// What it is written in.
    pub language: String,
    /// Version of its library, for messages.
    pub build: String,
    /// Its functions by name.
    pub functions: HashMap<String, Announced>,
}

/// The first frames of a host.
#[derive(Debug, Default)]
pub struct Greeting {
    program: Program,
    version: Option<u16>,
    missing: u32,
}

/// Why a host cannot be used: one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GreetingError {
    /// It does not keep to the protocol.
    #[error("it does not speak the lane protocol: {0}; is it a program that calls scalable::init! first in main?")]
    Malformed(String),
    /// No version is common.
    #[error(
        "it speaks versions {min} to {max} of the lane protocol, this agent {ours_min} to {ours_max}; build it against this release"
    )]
    Version {
        /// The host's oldest.
        min: u16,
        /// The host's newest.
        max: u16,
        /// The agent's oldest.
        ours_min: u16,
        /// The agent's newest.
        ours_max: u16,
    },
}

impl Greeting {
    /// Takes a frame. True when everything was said.
    ///
    /// # Errors
    /// The host cannot be used.
    pub fn take(&mut self, bytes: &[u8], fds: usize) -> Result<bool, GreetingError> {
        let bad = |error: FrameError| GreetingError::Malformed(error.to_string());
        let Frame { kind, mut body } = Frame::open(bytes, fds).map_err(bad)?;
        match (kind, self.version) {
            (frame::HELLO, None) => {
                let (min, max) = (body.u16().map_err(bad)?, body.u16().map_err(bad)?);
                let (ours_min, ours_max) = (*VERSIONS.start(), *VERSIONS.end());
                if max < ours_min || min > ours_max {
                    return Err(GreetingError::Version { min, max, ours_min, ours_max });
                }
                self.version = Some(max.min(ours_max));
                self.missing = body.u32().map_err(bad)?;
                if self.missing > FUNCTIONS_MAX {
                    return Err(GreetingError::Malformed(format!("it has more than {FUNCTIONS_MAX} functions")));
                }
                self.program.language = body.text().map_err(bad)?.to_owned();
                self.program.build = body.text().map_err(bad)?.to_owned();
            }
            (frame::FUNCTIONS, Some(_)) => {
                while !body.rest().is_empty() && self.missing > 0 {
                    let signature = body.digest().map_err(bad)?;
                    let (codec, name) = (body.text().map_err(bad)?.to_owned(), body.text().map_err(bad)?.to_owned());
                    let number = self.program.functions.len() as u32;
                    if self.program.functions.insert(name, Announced { number, codec, signature }).is_some() {
                        return Err(GreetingError::Malformed("it names a function twice".to_owned()));
                    }
                    self.missing -= 1;
                }
            }
            _ => return Err(GreetingError::Malformed(format!("a frame of kind {kind} came in its greeting"))),
        }
        Ok(self.missing == 0)
    }

    /// What was said, and the version to speak.
    pub fn end(self) -> (Program, u16) {
        (self.program, self.version.unwrap_or(*VERSIONS.end()))
    }
}

/// Answers a greeting: from here on the host takes calls. `shared` says how many threads and calls it has.
///
/// # Errors
/// The host is gone.
pub fn welcome(socket: &Socket, version: u16, shared: BorrowedFd<'_>) -> io::Result<()> {
    let mut builder = Builder::new();
    builder.begin(frame::WELCOME);
    builder.u16(version);
    socket.send(builder.finish(1), &[shared], Wait::No)
}

/// A frame on its way, with the memory it lends.
#[derive(Debug)]
pub struct Outgoing {
    /// The frame.
    pub bytes: Vec<u8>,
    /// What comes with it.
    pub memory: Vec<Arc<dyn Lent>>,
}

impl Outgoing {
    /// Sends it; never waits.
    ///
    /// # Errors
    /// `WouldBlock`, or the host is gone.
    pub fn send(&self, socket: &Socket) -> io::Result<()> {
        let mut fds = Vec::with_capacity(self.memory.len());
        fds.extend(self.memory.iter().map(|memory| memory.fd()));
        socket.send(&self.bytes, &fds, Wait::No)
    }
}

fn small(kind: u16, write: impl FnOnce(&mut Builder)) -> Outgoing {
    let mut builder = Builder::new();
    builder.begin(kind);
    write(&mut builder);
    Outgoing { bytes: builder.finish(0).to_vec(), memory: Vec::new() }
}

/// How many threads may execute from now on.
pub fn slots(count: u32) -> Outgoing {
    small(frame::SLOTS, |to| to.u32(count))
}

/// Nothing more comes.
pub fn stop() -> Outgoing {
    small(frame::STOP, |_| {})
}

/// Segments that nobody reads any more: to be filled again, or with [`FLAG`] to be given up. At most a few thousand at a time.
pub fn segments(numbers: &[u32]) -> Outgoing {
    small(frame::SEGMENTS, |to| {
        to.u32(numbers.len() as u32);
        numbers.iter().for_each(|number| to.u32(*number));
    })
}

/// Announces a group under a number. `function` is [`Announced::number`]. Names are cut after 16 KiB, parameters after 10,000.
pub fn group(number: u32, function: u32, run: &str, group: &str, parameters: &[Parameter]) -> Outgoing {
    const NAME_BYTES: usize = 16 << 10;
    const PARAMETERS: usize = 10_000;
    let parameters = &parameters[..parameters.len().min(PARAMETERS)];
    small(frame::GROUP, |to| {
        to.u32(number);
        to.u32(function);
        to.text(frame::cut(run, NAME_BYTES));
        to.text(frame::cut(group, NAME_BYTES));
        to.u16(parameters.len() as u16);
        for parameter in parameters {
            to.u32(match parameter {
                Parameter::Value => u32::MAX,
                Parameter::Input(input) => *input,
            });
        }
    })
}

/// One object a call reads.
#[derive(Clone, Debug)]
pub enum Object<'a> {
    /// Copied into the frame; at most [`crate::INLINE_BYTES_MAX`].
    Here(&'a [u8]),
    /// Passed.
    Memory(Arc<dyn Lent>),
}

/// One input of a call.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// A sequence; else exactly one object.
    pub many: bool,
    /// In index order.
    pub objects: Vec<Object<'a>>,
}

/// A frame of calls that is being written.
#[derive(Debug, Default)]
pub struct Calls {
    frame: Builder,
    count: u32,
    memory: Vec<Arc<dyn Lent>>,
}

impl Calls {
    /// Calls in it.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// True when it is large enough to be sent.
    pub fn is_full(&self) -> bool {
        self.count > 0 && self.frame.len() >= FRAME_BYTES_GOOD || self.memory.len() >= FRAME_FDS_MAX - MEMORY_WITH_CALL_MAX
    }

    /// Appends a call without inputs whose values are small. To be asked before: [`Calls::is_full`].
    pub fn push(&mut self, head: CallHead, values: &[u8]) {
        debug_assert!(values.len() <= VALUES_INLINE_MAX && !self.is_full());
        self.begin();
        CallHead { values: values.len() as u32, inputs: 0, ..head }.write(&mut self.frame);
        self.frame.bytes(values);
        self.count += 1;
    }

    /// Appends a call each of whose inputs is one small object, unless it is too large for that: false then, and nothing was
    /// appended. To be asked before: [`Calls::is_full`].
    pub fn push_small<'a>(
        &mut self,
        head: CallHead,
        values: &[u8],
        inputs: impl ExactSizeIterator<Item = &'a [u8]> + Clone,
    ) -> bool {
        let count = inputs.len();
        let length = 6 + inputs.clone().map(|object| 4 + OBJECT_HEAD_BYTES + object.len()).sum::<usize>();
        if values.len() > VALUES_INLINE_MAX || CALL_BYTES + length > OBJECTS_INLINE_MAX {
            return false;
        }
        self.begin();
        CallHead { values: values.len() as u32, inputs: length as u32, ..head }.write(&mut self.frame);
        self.frame.bytes(values);
        self.frame.u16(count as u16);
        (0..count).for_each(|_| self.frame.u32(1));
        self.frame.u32(count as u32);
        inputs.for_each(|object| write_here(object, &mut self.frame));
        self.count += 1;
        true
    }

    fn begin(&mut self) {
        if self.count == 0 {
            self.frame.begin(frame::CALLS);
            self.frame.u32(0);
            self.frame.u32(0);
        }
    }

    /// Appends a call of any kind and says which frames must be sent before this one. To be asked before: [`Calls::is_full`].
    ///
    /// # Errors
    /// No memory for large values.
    pub fn push_any(&mut self, head: CallHead, values: &[u8], inputs: &[Input<'_>]) -> io::Result<Vec<Outgoing>> {
        let in_memory = (values.len() > VALUES_INLINE_MAX).then(|| Sealed::new(values)).transpose()?;
        let objects = || inputs.iter().flat_map(|input| &input.objects);
        let lent = objects().filter(|object| matches!(object, Object::Memory(_))).count();
        let apart = objects().map(object_bytes).sum::<usize>() > OBJECTS_INLINE_MAX || lent >= MEMORY_WITH_CALL_MAX;
        let before = if apart { objects_before(head.call, objects()) } else { Vec::new() };
        self.begin();
        let at = self.frame.len();
        CallHead { values: 0, inputs: 0, ..head }.write(&mut self.frame);
        let values_length = values.len() as u32;
        match in_memory {
            Some(memory) => {
                self.frame.set_u32(at + CALL_BYTES - 8, values_length | FLAG);
                self.memory.push(Arc::new(memory));
            }
            None => {
                self.frame.set_u32(at + CALL_BYTES - 8, values_length);
                self.frame.bytes(values);
            }
        }
        if !inputs.is_empty() {
            let begin = self.frame.len();
            self.frame.u16(inputs.len() as u16);
            for input in inputs {
                self.frame.u32(input.objects.len() as u32 | if input.many { FLAG } else { 0 });
            }
            let here: Vec<&Object<'_>> = if apart { Vec::new() } else { objects().collect() };
            self.frame.u32(here.len() as u32);
            for object in here {
                write_object(object, &mut self.frame, &mut self.memory);
            }
            let length = (self.frame.len() - begin) as u32;
            self.frame.set_u32(at + CALL_BYTES - 4, length);
        }
        self.count += 1;
        Ok(before)
    }

    /// Ends the frame. `piece` is how many calls a thread takes at a time.
    pub fn finish(&mut self, piece: u32) -> Outgoing {
        self.begin();
        self.frame.set_u32(HEAD_BYTES, self.count);
        self.frame.set_u32(HEAD_BYTES + 4, piece);
        self.count = 0;
        let memory = std::mem::take(&mut self.memory);
        Outgoing { bytes: self.frame.finish(memory.len()).to_vec(), memory }
    }
}

fn object_bytes(object: &Object<'_>) -> usize {
    match object {
        Object::Here(bytes) => OBJECT_HEAD_BYTES + bytes.len(),
        Object::Memory(_) => 9,
    }
}

fn write_object(object: &Object<'_>, to: &mut Builder, memory: &mut Vec<Arc<dyn Lent>>) {
    match object {
        Object::Here(bytes) => write_here(bytes, to),
        Object::Memory(sealed) => {
            to.u8(crate::host::IN_MEMORY);
            to.u64(sealed.bytes());
            memory.push(sealed.clone());
        }
    }
}

fn write_here(bytes: &[u8], to: &mut Builder) {
    to.u8(crate::host::HERE);
    to.u32(bytes.len() as u32);
    to.bytes(bytes);
}

fn objects_before<'a>(call: u32, objects: impl Iterator<Item = &'a Object<'a>>) -> Vec<Outgoing> {
    let mut frames = Vec::new();
    let (mut builder, mut memory, mut count) = (Builder::new(), Vec::new(), 0u32);
    let begin = |builder: &mut Builder| {
        builder.begin(frame::OBJECTS);
        builder.u32(call);
        builder.u32(0);
    };
    let end = |builder: &mut Builder, memory: &mut Vec<Arc<dyn Lent>>, count: u32| {
        builder.set_u32(HEAD_BYTES + 4, count);
        let memory = std::mem::take(memory);
        Outgoing { bytes: builder.finish(memory.len()).to_vec(), memory }
    };
    begin(&mut builder);
    for object in objects {
        if count > 0 && (!builder.has_room(object_bytes(object)) || memory.len() == FRAME_FDS_MAX) {
            frames.push(end(&mut builder, &mut memory, count));
            begin(&mut builder);
            count = 0;
        }
        write_object(object, &mut builder, &mut memory);
        count += 1;
    }
    if count > 0 {
        frames.push(end(&mut builder, &mut memory, count));
    }
    frames
}

/// Receives frames of a host.
#[derive(Debug)]
pub struct Inbox {
    buffer: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Default for Inbox {
    fn default() -> Self {
        Inbox { buffer: vec![0; FRAME_BYTES_MAX], fds: Vec::new() }
    }
}

impl Inbox {
    /// The next frame, whole, and its descriptors. Nothing: the host has closed its end. Never waits.
    ///
    /// # Errors
    /// `WouldBlock`; a frame that is too large.
    pub fn receive(&mut self, socket: &Socket) -> io::Result<Option<(&[u8], &mut Vec<OwnedFd>)>> {
        self.fds.clear();
        match socket.receive(&mut self.buffer, &mut self.fds, Wait::No)? {
            0 => Ok(None),
            count => Ok(Some((&self.buffer[..count], &mut self.fds))),
        }
    }
}
