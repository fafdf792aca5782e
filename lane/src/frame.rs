//! The layout of frames: little endian, a head of 8 bytes (length of the frame, its kind, its descriptors), then what the kind says.
//! Records are read where they lie; nothing is copied to be understood.

use crate::FRAME_BYTES_MAX;

/// Host → agent, first: versions and how many functions follow.
pub const HELLO: u16 = 1;
/// Host → agent: functions, in order.
pub const FUNCTIONS: u16 = 2;
/// Agent → host, first: the version, with the shared memory.
pub const WELCOME: u16 = 3;
/// Agent → host: what calls of a group share.
pub const GROUP: u16 = 4;
/// Agent → host: calls.
pub const CALLS: u16 = 5;
/// Host → agent: what became of calls.
pub const RETURNS: u16 = 6;
/// Agent → host: how many threads may execute.
pub const SLOTS: u16 = 7;
/// Agent → host: nothing more comes; end when nothing executes.
pub const STOP: u16 = 8;
/// Agent → host: segments of results that nobody reads any more.
pub const SEGMENTS: u16 = 10;
/// Agent → host: objects for a call that follows, which are too many for its own frame.
pub const OBJECTS: u16 = 9;

/// Bytes of every frame's head.
pub const HEAD_BYTES: usize = 8;
/// Bytes of a call before its values.
pub const CALL_BYTES: usize = 32;
/// Bytes of a return before its payload.
pub const RETURN_BYTES: usize = 16;
/// In a length: the bytes lie in the frame's next descriptor. In a count: the input is a sequence.
pub const FLAG: u32 = 1 << 31;

/// What a frame that is none says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of the lane protocol is malformed: {0}")]
pub struct FrameError(pub &'static str);

/// Reads a frame from its front.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// Of these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Cursor { rest: bytes }
    }

    /// What has not been read.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next bytes.
    ///
    /// # Errors
    /// There are fewer.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(FrameError("it ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(FrameError("it ends too early"))?;
        self.rest = rest;
        Ok(*taken)
    }

    /// One byte.
    ///
    /// # Errors
    /// There is none.
    pub fn u8(&mut self) -> Result<u8, FrameError> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Two bytes.
    ///
    /// # Errors
    /// There are fewer.
    pub fn u16(&mut self) -> Result<u16, FrameError> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes.
    ///
    /// # Errors
    /// There are fewer.
    pub fn u32(&mut self) -> Result<u32, FrameError> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// There are fewer.
    pub fn u64(&mut self) -> Result<u64, FrameError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A digest.
    ///
    /// # Errors
    /// There are fewer than 32 bytes.
    pub fn digest(&mut self) -> Result<[u8; 32], FrameError> {
        self.array()
    }

    /// A text: two bytes of length, UTF-8.
    ///
    /// # Errors
    /// It is cut, or no UTF-8.
    pub fn text(&mut self) -> Result<&'a str, FrameError> {
        let count = self.u16()?;
        std::str::from_utf8(self.bytes(usize::from(count))?).map_err(|_| FrameError("a text is not UTF-8"))
    }
}

/// A frame that was received.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: u16,
    /// What it says.
    pub body: Cursor<'a>,
}

impl<'a> Frame<'a> {
    /// Reads the head.
    ///
    /// # Errors
    /// Length or descriptors are not what came.
    pub fn open(bytes: &'a [u8], fds: usize) -> Result<Self, FrameError> {
        let mut body = Cursor::new(bytes);
        let (length, kind, brought) = (body.u32()?, body.u16()?, body.u16()?);
        if length as usize != bytes.len() {
            return Err(FrameError("its length is not the packet's"));
        }
        if usize::from(brought) != fds {
            return Err(FrameError("its descriptors are not those that came"));
        }
        Ok(Frame { kind, body })
    }
}

/// Writes a frame. Used again and again: its memory is kept.
#[derive(Debug, Default)]
pub struct Builder {
    bytes: Vec<u8>,
}

impl Builder {
    /// An empty one; [`Builder::begin`] comes first.
    pub fn new() -> Self {
        Builder::default()
    }

    /// Begins a frame and forgets the one before.
    pub fn begin(&mut self, kind: u16) {
        self.bytes.clear();
        self.u32(0);
        self.u16(kind);
        self.u16(0);
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True before [`Builder::begin`].
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// True when so many bytes more are still one frame.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.bytes.len().saturating_add(bytes) <= FRAME_BYTES_MAX
    }

    /// Appends.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// Appends.
    pub fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends.
    pub fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends.
    pub fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends.
    pub fn bytes(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
    }

    /// Appends a text, cut after 65,535 bytes.
    pub fn text(&mut self, value: &str) {
        let value = cut(value, usize::from(u16::MAX));
        self.u16(value.len() as u16);
        self.bytes(value.as_bytes());
    }

    /// Writes over four bytes that were appended before.
    pub fn set_u32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Writes over eight bytes that were appended before.
    pub fn set_u64(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// Ends the frame: what is to be sent, with so many descriptors.
    pub fn finish(&mut self, fds: usize) -> &[u8] {
        let length = self.bytes.len() as u32;
        self.set_u32(0, length);
        self.bytes[6..8].copy_from_slice(&(fds as u16).to_le_bytes());
        &self.bytes
    }
}

/// The longest beginning of a text that has at most `bytes`, cut between characters.
pub fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A call as it lies in a [`CALLS`] frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallHead {
    /// Its number at this host: free again when it was returned.
    pub call: u32,
    /// The group that was announced with this number.
    pub group: u32,
    /// Element of the group.
    pub index: u32,
    /// From 1.
    pub attempt: u32,
    /// The task's number.
    pub task_id: u64,
    /// Bytes of its own values; with [`FLAG`] they lie in a descriptor.
    pub values: u32,
    /// Bytes of its inputs' description and of objects inside the frame; 0 without inputs.
    pub inputs: u32,
}

impl CallHead {
    /// Reads one.
    ///
    /// # Errors
    /// It is cut.
    pub fn read(from: &mut Cursor<'_>) -> Result<Self, FrameError> {
        let mut head = Cursor::new(from.bytes(CALL_BYTES)?);
        Ok(CallHead {
            call: head.u32()?,
            group: head.u32()?,
            index: head.u32()?,
            attempt: head.u32()?,
            task_id: head.u64()?,
            values: head.u32()?,
            inputs: head.u32()?,
        })
    }

    /// Appends it.
    pub fn write(&self, to: &mut Builder) {
        let mut bytes = [0; CALL_BYTES];
        bytes[0..4].copy_from_slice(&self.call.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.group.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.index.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.attempt.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.task_id.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.values.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.inputs.to_le_bytes());
        to.bytes(&bytes);
    }

    /// Bytes of it and of what follows it in the frame.
    pub fn bytes(&self) -> usize {
        let values = if self.values & FLAG == 0 { self.values as usize } else { 0 };
        CALL_BYTES + values + self.inputs as usize
    }
}

/// How a call ended, as a number in its return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ReturnKind {
    /// The payload is the result.
    Value = 0,
    /// The result lies in a segment; the payload is its length, eight bytes, and the segment's number, four. With [`FLAG`] the segment
    /// is new, or replaces the one of that number, and is the frame's next descriptor.
    Memory = 1,
    /// The function returned an error; the payload is its text.
    Failed = 2,
    /// It panicked; the payload is the message as a text, then the backtrace.
    Panicked = 3,
    /// The arguments could not be decoded; the payload says why.
    Decode = 4,
    /// It was not begun: it had been taken back.
    Dropped = 5,
    /// The host could not give it what it needs; the payload says why.
    Unable = 6,
}

impl ReturnKind {
    fn of(number: u32) -> Option<Self> {
        use ReturnKind as K;
        [K::Value, K::Memory, K::Failed, K::Panicked, K::Decode, K::Dropped, K::Unable].get(number as usize).copied()
    }
}

/// A return as it lies in a [`RETURNS`] frame.
#[derive(Clone, Copy, Debug)]
pub struct Return<'a> {
    /// The call's number.
    pub call: u32,
    /// Microseconds it executed.
    pub wall_us: u32,
    /// How it ended.
    pub kind: ReturnKind,
    /// See [`ReturnKind`].
    pub payload: &'a [u8],
}

/// Appends a return.
pub fn write_return(to: &mut Builder, call: u32, wall_us: u32, kind: ReturnKind, payload: &[&[u8]]) {
    let mut bytes = [0; RETURN_BYTES];
    bytes[0..4].copy_from_slice(&call.to_le_bytes());
    bytes[4..8].copy_from_slice(&wall_us.to_le_bytes());
    bytes[8..12].copy_from_slice(&(kind as u32).to_le_bytes());
    let length: usize = payload.iter().map(|part| part.len()).sum();
    bytes[12..16].copy_from_slice(&(length as u32).to_le_bytes());
    to.bytes(&bytes);
    for part in payload {
        to.bytes(part);
    }
}

/// The returns of one frame.
#[derive(Clone, Debug)]
pub struct Returns<'a> {
    /// Nanoseconds that the thread has spent on these calls, in all.
    pub busy_ns: u64,
    /// How many.
    pub count: u32,
    rest: Cursor<'a>,
}

impl<'a> Returns<'a> {
    /// Where the count lies in the frame, for the writer.
    pub const COUNT_AT: usize = HEAD_BYTES;
    /// Where `busy_ns` lies in the frame, for the writer.
    pub const BUSY_AT: usize = HEAD_BYTES + 8;

    /// Begins a frame of returns.
    pub fn begin(to: &mut Builder) {
        to.begin(RETURNS);
        to.u32(0);
        to.u32(0);
        to.u64(0);
    }

    /// Reads the frame's body.
    ///
    /// # Errors
    /// It is cut.
    pub fn open(mut body: Cursor<'a>) -> Result<Self, FrameError> {
        let (count, _) = (body.u32()?, body.u32()?);
        Ok(Returns { busy_ns: body.u64()?, count, rest: body })
    }

    /// The next of them.
    ///
    /// # Errors
    /// It is cut, or ends in a way that there is none.
    pub fn next_return(&mut self) -> Result<Option<Return<'a>>, FrameError> {
        if self.rest.rest().is_empty() {
            return Ok(None);
        }
        let mut head = Cursor::new(self.rest.bytes(RETURN_BYTES)?);
        let (call, wall_us, kind, length) = (head.u32()?, head.u32()?, head.u32()?, head.u32()?);
        let kind = ReturnKind::of(kind).ok_or(FrameError("a call ends in a way that there is none"))?;
        Ok(Some(Return { call, wall_us, kind, payload: self.rest.bytes(length as usize)? }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_read_as_it_was_written() {
        let head = CallHead { call: 1, group: 2, index: 3, attempt: 4, task_id: 5 << 40, values: 2, inputs: 0 };
        let mut builder = Builder::new();
        builder.begin(CALLS);
        head.write(&mut builder);
        builder.bytes(b"ab");
        let bytes = builder.finish(0).to_vec();
        let mut frame = Frame::open(&bytes, 0).expect("a frame");
        assert_eq!((frame.kind, CallHead::read(&mut frame.body)), (CALLS, Ok(head)));
        assert_eq!((frame.body.rest(), head.bytes()), (&b"ab"[..], CALL_BYTES + 2));
        assert_eq!(CallHead { values: 2 | FLAG, inputs: 7, ..head }.bytes(), CALL_BYTES + 7);
    }

    #[test]
    fn returns_are_read_as_they_were_written() {
        let mut builder = Builder::new();
        Returns::begin(&mut builder);
        write_return(&mut builder, 7, 11, ReturnKind::Value, &[b"x", b"yz"]);
        write_return(&mut builder, 8, 0, ReturnKind::Dropped, &[]);
        builder.set_u32(Returns::COUNT_AT, 2);
        builder.set_u64(Returns::BUSY_AT, 99);
        let bytes = builder.finish(0).to_vec();
        let mut returns = Returns::open(Frame::open(&bytes, 0).expect("a frame").body).expect("returns");
        assert_eq!((returns.busy_ns, returns.count), (99, 2));
        let first = returns.next_return().expect("well-formed").expect("there");
        assert_eq!((first.call, first.wall_us, first.kind, first.payload), (7, 11, ReturnKind::Value, &b"xyz"[..]));
        let second = returns.next_return().expect("well-formed").expect("there");
        assert_eq!((second.call, second.kind), (8, ReturnKind::Dropped));
        assert!(returns.next_return().expect("well-formed").is_none());
    }

    /// Whatever comes, reading it ends and does not panic.
    #[test]
    fn what_is_cut_or_wrong_is_an_error() {
        let mut builder = Builder::new();
        Returns::begin(&mut builder);
        write_return(&mut builder, 7, 11, ReturnKind::Value, &[b"xyz"]);
        let bytes = builder.finish(0).to_vec();
        assert!(Frame::open(&bytes, 1).is_err() && Frame::open(&bytes[..20], 0).is_err() && Frame::open(&[], 0).is_err());
        for end in HEAD_BYTES..bytes.len() {
            let read = Returns::open(Cursor::new(&bytes[HEAD_BYTES..end])).and_then(|mut r| r.next_return());
            assert!(read.is_err() || end == HEAD_BYTES + 16, "{end}");
        }
        let mut wrong = bytes.clone();
        wrong[HEAD_BYTES + 16 + 8] = 77;
        assert!(Returns::open(Cursor::new(&wrong[HEAD_BYTES..])).expect("a head").next_return().is_err());
        assert_eq!((cut("añb", 2), cut("añb", 3), cut("ab", 9)), ("a", "añ", "ab"));
    }
}
