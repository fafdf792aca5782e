//! The peer protocol's frames: `docs/peer-protocol.md` in bytes. Fixed layouts, little endian, nothing longer than [`BODY_MAX`]
//! beside the chunks themselves.

use crate::content::CHUNK_BYTES;
use crate::{Capability, Digest, Key, ObjectId};

pub(crate) const MAGIC: [u8; 8] = *b"SCALPEER";
pub(crate) const VERSION: u16 = 1;
pub(crate) const CLIENT_HELLO: usize = 16;
pub(crate) const SERVER_HELLO: usize = 40;
pub(crate) const HEADER: usize = 8;
pub(crate) const BODY_MAX: usize = 128;

/// Names one server process for as long as it lives.
pub(crate) type Instance = [u8; 16];

/// What a peer answers instead of what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u16)]
pub enum Code {
    /// Done, or go on.
    #[error("done")]
    Ok = 0,
    /// It does not have it.
    #[error("it does not have it (any more)")]
    Gone = 1,
    /// The capability was not made for this.
    #[error("it refused the capability")]
    Denied = 2,
    /// The capability's time is over.
    #[error("the capability has expired")]
    Expired = 3,
    /// Too many at once: ask again later.
    #[error("it is busy")]
    Busy = 4,
    /// More than it takes.
    #[error("it does not take contents as large")]
    TooLarge = 5,
    /// What was sent is not this protocol.
    #[error("it did not understand the request")]
    Malformed = 6,
    /// No common version.
    #[error("it speaks no common version of the peer protocol")]
    Version = 7,
    /// It has it and cannot read or write it.
    #[error("it cannot read or write its disk")]
    Disk = 8,
    /// It has no key to check capabilities with yet: ask again later.
    #[error("it is not registered yet")]
    NotReady = 9,
    /// Not by handing over an open file; ask for the bytes.
    #[error("it cannot be shared")]
    NotShareable = 10,
    /// What was uploaded is not what was announced.
    #[error("what arrived is not what was announced")]
    Corrupt = 11,
    /// No room for uploads.
    #[error("it has no room for it")]
    Full = 12,
    /// The range lies outside the content.
    #[error("the range asked for lies outside the content")]
    Range = 13,
}

impl Code {
    pub(crate) fn from_u16(code: u16) -> Option<Self> {
        use Code::*;
        [Ok, Gone, Denied, Expired, Busy, TooLarge, Malformed, Version, Disk, NotReady, NotShareable, Corrupt, Full, Range]
            .into_iter()
            .find(|known| *known as u16 == code)
    }
}

/// First bytes of a client: what versions it speaks.
pub(crate) fn client_hello() -> [u8; CLIENT_HELLO] {
    let mut bytes = [0; CLIENT_HELLO];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
    bytes[10..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes
}

/// What a server answers to a client's first bytes.
pub(crate) fn judge_client_hello(bytes: &[u8; CLIENT_HELLO]) -> Code {
    let mut r = Reader(bytes);
    let parts = (|| Some((r.take::<8>()?, r.u16()?, r.u16()?)))();
    match parts {
        Some((MAGIC, min, max)) if (min..=max).contains(&VERSION) => Code::Ok,
        Some((MAGIC, ..)) => Code::Version,
        _ => Code::Malformed,
    }
}

/// First bytes of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ServerHello {
    pub code: Code,
    pub instance: Instance,
    /// It also listens on the abstract Unix socket named after the instance.
    pub shares: bool,
}

impl ServerHello {
    pub(crate) fn encode(&self) -> [u8; SERVER_HELLO] {
        let mut bytes = [0; SERVER_HELLO];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&(self.code as u16).to_le_bytes());
        bytes[12..16].copy_from_slice(&(CHUNK_BYTES as u32).to_le_bytes());
        bytes[16..32].copy_from_slice(&self.instance);
        bytes[32] = u8::from(self.shares);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; SERVER_HELLO]) -> Option<Self> {
        let mut r = Reader(bytes);
        let (magic, _version, code) = (r.take::<8>()?, r.u16()?, Code::from_u16(r.u16()?)?);
        let (chunk, instance, flags) = (r.u32()?, r.take::<16>()?, r.u8()?);
        (magic == MAGIC && chunk as usize == CHUNK_BYTES).then_some(Self { code, instance, shares: flags & 1 == 1 })
    }
}

/// The abstract Unix socket of a server.
pub(crate) fn abstract_name(instance: &Instance) -> String {
    let mut name = String::from("scalable-store-");
    for byte in instance {
        name.push_str(&format!("{byte:02x}"));
    }
    name
}

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// `length` bytes of a content from `offset` on, both at chunk boundaries (or the end).
    Fetch { key: Key, capability: Capability, offset: u64, length: u64 },
    /// The bytes of a content follow as chunks once the server has said to go on.
    Put { digest: Digest, capability: Capability, size: u64 },
    /// The open file that a content is in. Unix sockets only.
    Share { key: Key, capability: Capability },
    /// An open file that was handed over is not read any more (or, `retired`, may be read for ever). No answer.
    Release { lease: u64, retired: bool },
}

/// What a server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Status(Code),
    /// Size of the whole content; the chunks asked for follow.
    Size(u64),
    /// A content as an open file, valid until it is released.
    Shared(Shared),
}

/// An open file with a content in its first `size` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shared {
    pub lease: u64,
    /// Number of the memory file; 0: a file on disk, of this content alone.
    pub segment: u64,
    pub size: u64,
    /// Memory file that the client must not keep any longer; 0: none.
    pub forget: u64,
    /// The file comes with this frame; else it is one that came before.
    pub with_file: bool,
    /// The client keeps it for later contents.
    pub keep: bool,
}

/// Goes before each chunk, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkHead {
    pub offset: u64,
    pub len: u32,
    pub sum: u64,
}

/// Bytes of a chunk's head as a frame.
#[cfg(test)]
const CHUNK_FRAME: usize = HEADER + 20;

const FETCH: u8 = 1;
const PUT: u8 = 2;
const SHARE: u8 = 3;
const RELEASE: u8 = 4;
const CHUNK: u8 = 5;
const STATUS: u8 = 129;
const SIZE: u8 = 130;
const SHARED: u8 = 131;

/// Starts a frame; returns where its body begins.
fn begin(out: &mut Vec<u8>, kind: u8) -> usize {
    out.extend_from_slice(&[0, 0, 0, 0, kind, 0, 0, 0]);
    out.len()
}

fn end(out: &mut [u8], body: usize) {
    let len = (out.len() - body) as u32;
    out[body - HEADER..body - HEADER + 4].copy_from_slice(&len.to_le_bytes());
}

fn put_key(out: &mut Vec<u8>, key: Key) {
    match key {
        Key::Object(id) => {
            out.push(0);
            for part in [id.run, id.group, id.index, id.attempt] {
                out.extend_from_slice(&part.to_le_bytes());
            }
            out.extend_from_slice(&[0; 16]);
        }
        Key::Blob(digest) => {
            out.push(1);
            out.extend_from_slice(&digest.0);
        }
    }
}

fn put_capability(out: &mut Vec<u8>, capability: &Capability) {
    out.extend_from_slice(&capability.expires_ms.to_le_bytes());
    out.extend_from_slice(&capability.mac);
}

impl Request {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let body = match self {
            Self::Fetch { key, capability, offset, length } => {
                let body = begin(out, FETCH);
                put_key(out, *key);
                put_capability(out, capability);
                out.extend_from_slice(&offset.to_le_bytes());
                out.extend_from_slice(&length.to_le_bytes());
                body
            }
            Self::Put { digest, capability, size } => {
                let body = begin(out, PUT);
                put_key(out, Key::Blob(*digest));
                put_capability(out, capability);
                out.extend_from_slice(&size.to_le_bytes());
                body
            }
            Self::Share { key, capability } => {
                let body = begin(out, SHARE);
                put_key(out, *key);
                put_capability(out, capability);
                body
            }
            Self::Release { lease, retired } => {
                let body = begin(out, RELEASE);
                out.extend_from_slice(&lease.to_le_bytes());
                out.push(u8::from(*retired));
                body
            }
        };
        end(out, body);
    }

    /// `None`: not a request of this version.
    pub(crate) fn decode(kind: u8, body: &[u8]) -> Option<Self> {
        let mut r = Reader(body);
        let request = match kind {
            FETCH => Self::Fetch { key: r.key()?, capability: r.capability()?, offset: r.u64()?, length: r.u64()? },
            PUT => {
                let Key::Blob(digest) = r.key()? else { return None };
                Self::Put { digest, capability: r.capability()?, size: r.u64()? }
            }
            SHARE => Self::Share { key: r.key()?, capability: r.capability()? },
            RELEASE => Self::Release { lease: r.u64()?, retired: r.u8()? == 1 },
            _ => return None,
        };
        r.0.is_empty().then_some(request)
    }
}

impl Answer {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let body = match self {
            Self::Status(code) => {
                let body = begin(out, STATUS);
                out.extend_from_slice(&(*code as u16).to_le_bytes());
                body
            }
            Self::Size(size) => {
                let body = begin(out, SIZE);
                out.extend_from_slice(&size.to_le_bytes());
                body
            }
            Self::Shared(shared) => {
                let body = begin(out, SHARED);
                for number in [shared.lease, shared.segment, shared.size, shared.forget] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
                out.push(u8::from(shared.with_file) | u8::from(shared.keep) << 1);
                body
            }
        };
        end(out, body);
    }

    /// `None`: not an answer of this version.
    pub(crate) fn decode(kind: u8, body: &[u8]) -> Option<Self> {
        let mut r = Reader(body);
        let answer = match kind {
            STATUS => Self::Status(Code::from_u16(r.u16()?)?),
            SIZE => Self::Size(r.u64()?),
            SHARED => {
                let (lease, segment, size, forget, flags) = (r.u64()?, r.u64()?, r.u64()?, r.u64()?, r.u8()?);
                Self::Shared(Shared { lease, segment, size, forget, with_file: flags & 1 == 1, keep: flags & 2 == 2 })
            }
            _ => return None,
        };
        r.0.is_empty().then_some(answer)
    }
}

impl ChunkHead {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let body = begin(out, CHUNK);
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.len.to_le_bytes());
        out.extend_from_slice(&self.sum.to_le_bytes());
        end(out, body);
    }

    pub(crate) fn decode(kind: u8, body: &[u8]) -> Option<Self> {
        let mut r = Reader(body);
        let head = Self { offset: r.u64()?, len: r.u32()?, sum: r.u64()? };
        (kind == CHUNK && r.0.is_empty() && head.len as usize <= CHUNK_BYTES).then_some(head)
    }
}

/// A frame's kind and length of its body; `None` when it is longer than any frame.
pub(crate) fn decode_header(bytes: &[u8; HEADER]) -> Option<(u8, usize)> {
    let mut r = Reader(bytes);
    let (len, kind) = (r.u32()? as usize, r.u8()?);
    (len <= BODY_MAX).then_some((kind, len))
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn key(&mut self) -> Option<Key> {
        match self.u8()? {
            0 => {
                let id = ObjectId { run: self.u32()?, group: self.u32()?, index: self.u32()?, attempt: self.u32()? };
                (self.take::<16>()? == [0; 16]).then_some(Key::Object(id))
            }
            1 => Some(Key::Blob(Digest(self.take()?))),
            _ => None,
        }
    }

    fn capability(&mut self) -> Option<Capability> {
        Some(Capability { expires_ms: self.u64()?, mac: self.take()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body(frame: &[u8]) -> (u8, &[u8]) {
        let (kind, len) = decode_header(frame[..HEADER].try_into().unwrap()).unwrap();
        assert_eq!(frame.len(), HEADER + len);
        (kind, &frame[HEADER..])
    }

    #[test]
    fn frames_survive_the_wire() {
        let object = Key::Object(ObjectId { run: 1, group: 2, index: 3, attempt: 4 });
        let digest = Digest([5; 32]);
        let capability = Capability { expires_ms: 6, mac: [7; 32] };
        for request in [
            Request::Fetch { key: object, capability, offset: 8, length: 9 },
            Request::Fetch { key: digest.into(), capability, offset: u64::MAX, length: 0 },
            Request::Put { digest, capability, size: 10 },
            Request::Share { key: object, capability },
            Request::Release { lease: 11, retired: true },
        ] {
            let mut out = Vec::new();
            request.encode(&mut out);
            let (kind, body) = body(&out);
            assert_eq!(Request::decode(kind, body), Some(request));
            assert_eq!(Request::decode(kind, &body[1..]), None);
        }
        let shared = Shared { lease: 1, segment: 2, size: 3, forget: 4, with_file: true, keep: false };
        for answer in [Answer::Status(Code::Gone), Answer::Size(12), Answer::Shared(shared)] {
            let mut out = Vec::new();
            answer.encode(&mut out);
            let (kind, body) = body(&out);
            assert_eq!(Answer::decode(kind, body), Some(answer));
        }
        let mut out = Vec::new();
        let head = ChunkHead { offset: 1, len: 2, sum: 3 };
        head.encode(&mut out);
        assert_eq!(out.len(), CHUNK_FRAME);
        let (kind, chunk) = body(&out);
        assert_eq!(ChunkHead::decode(kind, chunk), Some(head));
        let hello = ServerHello { code: Code::Busy, instance: [3; 16], shares: true };
        assert_eq!(ServerHello::decode(&hello.encode()), Some(hello));
    }

    #[test]
    fn hellos_are_judged() {
        let mut hello = client_hello();
        assert_eq!(judge_client_hello(&hello), Code::Ok);
        hello[8..12].copy_from_slice(&[2, 0, 3, 0]);
        assert_eq!(judge_client_hello(&hello), Code::Version);
        hello[0] = b'G';
        assert_eq!(judge_client_hello(&hello), Code::Malformed);
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(kind in any::<u8>(), bytes in proptest::collection::vec(any::<u8>(), 0..BODY_MAX)) {
            if let Some(request) = Request::decode(kind, &bytes) {
                let mut out = Vec::new();
                request.encode(&mut out);
                prop_assert_eq!(body(&out).0, kind);
            }
            Answer::decode(kind, &bytes);
            ChunkHead::decode(kind, &bytes);
        }
    }
}
