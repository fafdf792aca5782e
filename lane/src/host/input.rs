//! Frames that came from the agent, kept while calls of them are executed: where each call lies, and the memory that came with it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use smallvec::SmallVec;

use super::call::InputBytes;
use crate::frame::{CallHead, Cursor, FLAG, FrameError, HEAD_BYTES};
use crate::memory::{Mapped, Sealed};

/// Object inside the frame: four bytes of length, then its bytes.
pub(crate) const HERE: u8 = 0;
/// Object in the frame's next descriptor: eight bytes of length.
pub(crate) const IN_MEMORY: u8 = 1;

/// An object that an input is made of.
#[derive(Debug)]
pub(super) enum Object {
    /// Bytes of the frame, from .. to.
    Here(usize, usize),
    /// Came before the call.
    Before(Vec<u8>),
    /// Passed as memory.
    Memory(Mapped),
}

/// What one call has beyond bytes in its frame.
#[derive(Debug)]
struct More {
    /// Where the call lies in the frame.
    at: usize,
    values: Option<Mapped>,
    objects: SmallVec<[Object; 3]>,
    /// For each input: how many of the objects, with [`FLAG`] as a sequence.
    inputs: SmallVec<[u32; 3]>,
    /// Why it cannot be executed.
    unable: Option<String>,
}

/// A frame of calls.
#[derive(Debug)]
pub(super) struct Calls {
    /// The frame, and beyond its end what the memory held before.
    bytes: Vec<u8>,
    more: Vec<More>,
}

/// One call of a frame.
pub(super) struct Taken<'a> {
    pub head: CallHead,
    pub values: &'a [u8],
    pub inputs: Vec<InputBytes<'a>>,
    pub unable: Option<&'a str>,
    /// Where the next one lies.
    pub next: usize,
}

/// Objects that came before their call, by its number.
#[derive(Debug, Default)]
pub(super) struct Before(HashMap<u32, (Vec<Object>, Option<String>)>);

impl Before {
    /// Takes a frame of objects.
    pub fn take(&mut self, mut body: Cursor<'_>, fds: Vec<OwnedFd>) -> Result<(), FrameError> {
        let (call, count) = (body.u32()?, body.u32()?);
        let (objects, unable) = self.0.entry(call).or_default();
        let mut fds = fds.into_iter();
        for _ in 0..count {
            match object(&mut body, &mut fds)? {
                Ok(Found::Bytes(bytes)) => objects.push(Object::Before(bytes.to_vec())),
                Ok(Found::Memory(mapped)) => objects.push(Object::Memory(mapped)),
                Err(why) => *unable = Some(why),
            }
        }
        Ok(())
    }
}

enum Found<'a> {
    Bytes(&'a [u8]),
    Memory(Mapped),
}

/// Reads one object. The inner error is not the agent's fault: memory that cannot be mapped.
fn object<'a>(from: &mut Cursor<'a>, fds: &mut impl Iterator<Item = OwnedFd>) -> Result<Result<Found<'a>, String>, FrameError> {
    match from.u8()? {
        HERE => {
            let length = from.u32()?;
            Ok(Ok(Found::Bytes(from.bytes(length as usize)?)))
        }
        IN_MEMORY => Ok(map(from.u64()?, fds)?.map(Found::Memory)),
        _ => Err(FrameError("an object is neither here nor in memory")),
    }
}

fn map(length: u64, fds: &mut impl Iterator<Item = OwnedFd>) -> Result<Result<Mapped, String>, FrameError> {
    let fd = fds.next().ok_or(FrameError("a descriptor is missing"))?;
    let mapped = Sealed::from_peer(fd, length).and_then(|sealed| sealed.map());
    Ok(mapped.map_err(|error| format!("{length} bytes of memory could not be mapped: {error}")))
}

impl Calls {
    /// Takes a frame of `length` bytes apart: every call is well-formed afterwards. Says where pieces of about `piece` calls begin and
    /// how many they have.
    pub fn open(
        bytes: Vec<u8>,
        length: usize,
        fds: Vec<OwnedFd>,
        before: &mut Before,
        pieces: &mut Vec<(usize, u32)>,
    ) -> Result<Calls, FrameError> {
        let mut body = Cursor::new(&bytes[HEAD_BYTES..length]);
        let (count, piece) = (body.u32()?, body.u32()?.max(1));
        let (mut more, mut fds) = (Vec::new(), fds.into_iter());
        for nth in 0..count {
            let at = length - body.rest().len();
            if nth % piece == 0 {
                pieces.push((at, piece.min(count - nth)));
            }
            let head = CallHead::read(&mut body)?;
            body.bytes(head.bytes() - crate::frame::CALL_BYTES)?;
            if head.values & FLAG == 0 && head.inputs == 0 {
                continue;
            }
            let mut one = More { at, values: None, objects: SmallVec::new(), inputs: SmallVec::new(), unable: None };
            if !before.0.is_empty()
                && let Some((objects, unable)) = before.0.remove(&head.call)
            {
                (one.objects, one.unable) = (objects.into(), unable);
            }
            if head.values & FLAG != 0 {
                match map(u64::from(head.values & !FLAG), &mut fds)? {
                    Ok(mapped) => one.values = Some(mapped),
                    Err(why) => one.unable = Some(why),
                }
            }
            if head.inputs > 0 {
                let end = at + head.bytes();
                let begin = end - head.inputs as usize;
                one.read_inputs(&bytes[begin..end], begin, &mut fds)?;
            }
            more.push(one);
        }
        if !body.rest().is_empty() {
            return Err(FrameError("something follows its last call"));
        }
        Ok(Calls { bytes, more })
    }

    /// The call that lies there. `open` has said where the first lies, each says where the next does.
    pub fn call(&self, at: usize) -> Taken<'_> {
        let head = CallHead::read(&mut Cursor::new(&self.bytes[at..])).expect("`open` has read it");
        let mut taken = Taken { head, values: &[], inputs: Vec::new(), unable: None, next: at + head.bytes() };
        let begin = at + crate::frame::CALL_BYTES;
        if head.values & FLAG == 0 {
            taken.values = &self.bytes[begin..begin + head.values as usize];
        }
        if head.values & FLAG != 0 || head.inputs > 0 {
            let found = self.more.binary_search_by_key(&at, |one| one.at).expect("`open` has made one for it");
            self.more[found].give(&self.bytes, &mut taken);
        }
        taken
    }

    /// The memory of the frame, for the next.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

impl More {
    fn read_inputs(&mut self, bytes: &[u8], begin: usize, fds: &mut impl Iterator<Item = OwnedFd>) -> Result<(), FrameError> {
        let mut from = Cursor::new(bytes);
        for _ in 0..from.u16()? {
            self.inputs.push(from.u32()?);
        }
        for _ in 0..from.u32()? {
            match object(&mut from, fds)? {
                Ok(Found::Bytes(found)) => {
                    let end = begin + bytes.len() - from.rest().len();
                    self.objects.push(Object::Here(end - found.len(), end));
                }
                Ok(Found::Memory(mapped)) => self.objects.push(Object::Memory(mapped)),
                Err(why) => self.unable = Some(why),
            }
        }
        let wanted: u64 = self.inputs.iter().map(|count| u64::from(count & !FLAG)).sum();
        let single = self.inputs.iter().all(|count| count & FLAG != 0 || *count == 1);
        if self.unable.is_none() && (wanted != self.objects.len() as u64 || !single) {
            return Err(FrameError("its inputs and its objects do not fit together"));
        }
        Ok(())
    }

    fn give<'a>(&'a self, frame: &'a [u8], to: &mut Taken<'a>) {
        to.unable = self.unable.as_deref();
        if to.unable.is_some() {
            return;
        }
        if let Some(values) = &self.values {
            to.values = values;
        }
        let mut objects = self.objects.iter().map(|object| match object {
            Object::Here(begin, end) => &frame[*begin..*end],
            Object::Before(bytes) => bytes.as_slice(),
            Object::Memory(mapped) => mapped,
        });
        to.inputs.reserve_exact(self.inputs.len());
        for count in &self.inputs {
            to.inputs.push(match count & FLAG {
                0 => InputBytes::One(objects.next().unwrap_or_default()),
                _ => InputBytes::Many(objects.by_ref().take((count & !FLAG) as usize).collect()),
            });
        }
    }
}
