//! `Content`: shared bytes that are only read. What it is made of (heap, shared memory, a file) is no concern of most of its users;
//! it is of those that want to hand it to another process or send it without a copy.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::segment::{Lease, Release, Released, Segment, SegmentPool};

/// Contents travel and are checked in chunks of this size; the last of a content may be shorter.
pub const CHUNK_BYTES: usize = 1 << 20;

/// The checksum of a chunk: XXH3, 64 bits. It finds what disks, memory and networks do to bytes, not what people do: that is what
/// digests and capabilities are for. Chosen over crc32c because it takes half the time (42 against 23 GiB/s on one core with the chunk in cache,
/// where a loopback connection carries 5) and lets 2^-64 of damages pass instead of 2^-32.
pub fn checksum(bytes: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(bytes)
}

/// Shared, unchanging bytes: on the heap, in shared memory, or in a file. Cheap to clone.
///
/// ```
/// use scalable_store::{Content, SegmentPool};
///
/// let heap = Content::from_bytes(vec![1, 2, 3].into());
/// assert!(heap.as_fd().is_none());
/// // What goes to another process has to be in shared memory.
/// let shared = heap.to_shared(&SegmentPool::new(1 << 20))?;
/// assert!(shared.as_fd().is_some());
/// assert_eq!(shared.bytes()?, heap.bytes()?);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Content(Arc<Inner>);

struct Inner {
    body: Body,
    len: u64,
    /// Checksum of each chunk, zero while it is not known.
    sums: Box<[AtomicU64]>,
}

enum Body {
    Heap(Bytes),
    Segment(Lease),
    File(File),
}

impl Content {
    fn new(body: Body, len: u64) -> Self {
        let chunks = usize::try_from(len.div_ceil(CHUNK_BYTES as u64)).unwrap_or(usize::MAX);
        Self(Arc::new(Inner { body, len, sums: (0..chunks).map(|_| AtomicU64::new(0)).collect() }))
    }

    /// Bytes on the heap.
    pub fn from_bytes(bytes: Bytes) -> Self {
        let len = bytes.len() as u64;
        Self::new(Body::Heap(bytes), len)
    }

    /// The first `len` bytes of a memory file that another process has filled and sealed. Nothing is copied. For a process that
    /// uses its memory files again [`Self::from_segment`] saves the mapping.
    ///
    /// # Errors
    /// As [`Segment::import`], and when the file is shorter than `len`.
    pub fn from_memfd(fd: OwnedFd, len: usize) -> io::Result<Self> {
        Self::from_segment(&Segment::import(fd)?, len, |_| ())
    }

    /// The first `len` bytes of a segment that another process has filled. `released` is called, on whatever thread that happens,
    /// when no content is left in this use of it: with [`Released::Free`] the other process may fill it again.
    ///
    /// # Errors
    /// When the segment is shorter than `len`.
    pub fn from_segment(
        segment: &Arc<Segment>,
        len: usize,
        released: impl FnOnce(Released) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        if len > segment.capacity() {
            let why = format!("{len} bytes announced in a memory file of {}", segment.capacity());
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(Self::from_lease(Lease::new(Arc::clone(segment), Release::Call(Box::new(released))), len))
    }

    pub(crate) fn from_lease(lease: Lease, len: usize) -> Self {
        Self::new(Body::Segment(lease), len as u64)
    }

    /// The first `len` bytes of a file, which must not be changed for as long as the content is used: a change is found by readers
    /// at other peers (checksums, digests), not prevented.
    ///
    /// # Errors
    /// When it is not a regular file or is shorter than `len`.
    pub fn from_file(file: File, len: u64) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        if metadata.len() < len {
            let why = format!("the file has {} bytes, {len} were expected", metadata.len());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
        Ok(Self::new(Body::File(file), len))
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// True for a content of no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Bytes of memory that it holds: zero for a file, the whole segment for one in shared memory.
    pub fn memory_bytes(&self) -> u64 {
        match &self.0.body {
            Body::Heap(bytes) => bytes.len() as u64,
            Body::Segment(lease) => lease.segment().capacity() as u64,
            Body::File(_) => 0,
        }
    }

    /// The open file that it is in, to be given to another process, which finds the content in the first [`Self::len`] bytes;
    /// `None` on the heap.
    ///
    /// Hold the content until the other process has let go of the file: the memory is used again after that. When it may never let go,
    /// say so with [`Self::retire`].
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.0.body {
            Body::Heap(_) => None,
            Body::Segment(lease) => Some(lease.segment().as_fd()),
            Body::File(file) => Some(file.as_fd()),
        }
    }

    /// The shared memory that it is in.
    pub fn segment(&self) -> Option<&Arc<Segment>> {
        match &self.0.body {
            Body::Segment(lease) => Some(lease.segment()),
            Body::Heap(_) | Body::File(_) => None,
        }
    }

    /// True when it is in a file on disk.
    pub fn is_file(&self) -> bool {
        matches!(self.0.body, Body::File(_))
    }

    /// Its memory is never used again: another process may read it for longer than this content lives.
    pub fn retire(&self) {
        if let Body::Segment(lease) = &self.0.body {
            lease.retire();
        }
    }

    /// The bytes where they are in memory; `None` for a file.
    ///
    /// # Errors
    /// When shared memory cannot be mapped.
    pub fn memory(&self) -> io::Result<Option<&[u8]>> {
        match &self.0.body {
            Body::Heap(bytes) => Ok(Some(bytes)),
            Body::Segment(lease) => lease.bytes(self.0.len as usize).map(Some),
            Body::File(_) => Ok(None),
        }
    }

    /// All bytes. Nothing is copied unless it is a file, which is read: that blocks.
    ///
    /// # Errors
    /// When a file cannot be read, or shared memory not be mapped.
    pub fn bytes(&self) -> io::Result<Bytes> {
        match &self.0.body {
            Body::Heap(bytes) => Ok(bytes.clone()),
            Body::Segment(lease) => {
                lease.bytes(self.0.len as usize)?;
                Ok(Bytes::from_owner(View(self.clone())))
            }
            Body::File(file) => {
                let len = usize::try_from(self.0.len).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
                let mut bytes = vec![0; len];
                file.read_exact_at(&mut bytes, 0)?;
                Ok(bytes.into())
            }
        }
    }

    /// Fills `buffer` with the bytes from `offset` on. Blocks on a file.
    ///
    /// # Errors
    /// When there are fewer, or they cannot be read.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.0.len);
        let Some(end) = end else { return Err(io::Error::from(io::ErrorKind::UnexpectedEof)) };
        match (&self.0.body, self.memory()?) {
            (Body::File(file), _) => file.read_exact_at(buffer, offset),
            (_, Some(memory)) => {
                buffer.copy_from_slice(&memory[offset as usize..end as usize]);
                Ok(())
            }
            (_, None) => Err(io::Error::other("a content in memory without memory")),
        }
    }

    /// The same bytes where another process can have them: itself unless it is on the heap, else a copy.
    ///
    /// # Errors
    /// When no shared memory can be had.
    pub fn to_shared(&self, pool: &SegmentPool) -> io::Result<Self> {
        let Body::Heap(bytes) = &self.0.body else { return Ok(self.clone()) };
        let mut writer = pool.take(bytes.len())?;
        writer.as_mut_slice().copy_from_slice(bytes);
        let shared = writer.freeze();
        for (known, sum) in self.0.sums.iter().zip(&shared.0.sums) {
            sum.store(known.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        Ok(shared)
    }

    /// Its BLAKE3 digest. Reads all of it; blocks on a file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn digest(&self) -> io::Result<crate::Digest> {
        let mut hasher = blake3::Hasher::new();
        let mut scratch = Vec::new();
        for i in 0..self.chunks() {
            hasher.update(self.chunk(i, &mut scratch)?);
        }
        Ok(crate::Digest(*hasher.finalize().as_bytes()))
    }

    /// How many chunks it has.
    pub(crate) fn chunks(&self) -> usize {
        self.0.sums.len()
    }

    /// Where chunk `index` lies in it.
    pub(crate) fn chunk_range(&self, index: usize) -> Range<u64> {
        let start = (index as u64) * CHUNK_BYTES as u64;
        start..self.0.len.min(start + CHUNK_BYTES as u64)
    }

    /// Chunk `index`; `scratch` is where it is read to when it is in a file.
    pub(crate) fn chunk<'a>(&'a self, index: usize, scratch: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
        let range = self.chunk_range(index);
        if let Some(memory) = self.memory()? {
            return Ok(&memory[range.start as usize..range.end as usize]);
        }
        scratch.resize((range.end - range.start) as usize, 0);
        self.read_at(scratch, range.start)?;
        Ok(scratch)
    }

    /// The checksum of chunk `index` where it was computed or received before.
    pub(crate) fn known_sum(&self, index: usize) -> Option<u64> {
        self.0.sums.get(index).map(|sum| sum.load(Ordering::Relaxed)).filter(|sum| *sum != 0)
    }

    /// Remembers the checksum of chunk `index`, which must be right.
    pub(crate) fn set_sum(&self, index: usize, sum: u64) {
        if let Some(slot) = self.0.sums.get(index) {
            slot.store(sum, Ordering::Relaxed);
        }
    }

    /// The checksum of chunk `index`, computed at the first call.
    pub(crate) fn sum(&self, index: usize, scratch: &mut Vec<u8>) -> io::Result<u64> {
        if let Some(known) = self.known_sum(index) {
            return Ok(known);
        }
        let sum = checksum(self.chunk(index, scratch)?);
        self.set_sum(index, sum);
        Ok(sum)
    }
}

impl From<Bytes> for Content {
    fn from(bytes: Bytes) -> Self {
        Self::from_bytes(bytes)
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.0.body {
            Body::Heap(_) => "heap",
            Body::Segment(_) => "shared memory",
            Body::File(_) => "file",
        };
        write!(f, "Content({} bytes, {place})", self.0.len)
    }
}

/// Keeps the segment for as long as the bytes are used.
struct View(Content);

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        self.0.memory().ok().flatten().expect("was mapped before the view was made, and stays so")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> Content {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Content::from_file(file, bytes.len() as u64).unwrap()
    }

    #[test]
    fn all_kinds_read_the_same() {
        let bytes: Vec<u8> = (0..CHUNK_BYTES + 1000).map(|i| (i % 251) as u8).collect();
        let pool = SegmentPool::new(0);
        let heap = Content::from_bytes(bytes.clone().into());
        let shared = heap.to_shared(&pool).unwrap();
        let again = Content::from_memfd(shared.as_fd().unwrap().try_clone_to_owned().unwrap(), bytes.len()).unwrap();
        for content in [heap, shared, again, file(&bytes)] {
            let mut some = [0; 7];
            content.read_at(&mut some, CHUNK_BYTES as u64 - 3).unwrap();
            assert_eq!(some, bytes[CHUNK_BYTES - 3..CHUNK_BYTES + 4]);
            assert_eq!(content.bytes().unwrap(), bytes);
            assert_eq!(content.chunks(), 2);
            let mut scratch = Vec::new();
            assert_eq!(content.sum(1, &mut scratch).unwrap(), checksum(&bytes[CHUNK_BYTES..]));
            assert_eq!(content.digest().unwrap(), crate::Digest::of(&bytes));
            assert!(content.read_at(&mut some, bytes.len() as u64 - 6).is_err());
            assert!(content.read_at(&mut some, u64::MAX - 2).is_err());
        }
    }

    #[test]
    fn bytes_keep_their_memory() {
        let pool = SegmentPool::new(1 << 20);
        let mut writer = pool.take(100_000).unwrap();
        writer.as_mut_slice().fill(9);
        let bytes = writer.freeze().bytes().unwrap().slice(10..20);
        assert_eq!(pool.free_bytes(), 0);
        assert_eq!(&bytes[..], [9; 10]);
        drop(bytes);
        assert!(pool.free_bytes() > 0);
    }

    #[test]
    fn lengths_are_checked() {
        let pool = SegmentPool::new(0);
        let shared = pool.take(SEGMENT).unwrap().freeze();
        assert!(Content::from_memfd(shared.as_fd().unwrap().try_clone_to_owned().unwrap(), SEGMENT + 1).is_err());
        assert!(Content::from_file(tempfile::tempfile().unwrap(), 1).is_err());
        assert!(Content::from_file(File::open("/").unwrap(), 0).is_err());
        assert_eq!(Content::from_bytes(Bytes::new()).bytes().unwrap().len(), 0);
    }

    const SEGMENT: usize = 64 << 10;
}
