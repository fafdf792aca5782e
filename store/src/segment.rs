//! Shared memory that is used again. A page of a new memory file costs about 2 µs (512 µs per MiB, 1 ms through a mapping), one
//! that was used before 0.1 µs: a store that made a new file for every object could not pass 1 GiB/s. So a segment is a memory file that stays mapped,
//! is sealed so that only this process can write to it, and goes back to its pool when the last content in it is dropped.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use crate::content::Content;
use crate::sys::{self, Access, Mapping};

/// The smallest segment; smaller contents are on the heap.
pub(crate) const SEGMENT_BYTES_MIN: usize = 64 << 10;

const SEALS: libc::c_int = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL;

static NEXT: AtomicU64 = AtomicU64::new(1);

/// A memory file, mapped for as long as it is in use here.
///
/// One that another process gave is kept by its user for as long as that process sends contents in it, so that it is mapped once:
/// see [`Content::from_segment`].
pub struct Segment {
    id: u64,
    fd: OwnedFd,
    capacity: usize,
    map: OnceLock<Mapping>,
}

impl Segment {
    fn create(capacity: usize) -> io::Result<Self> {
        let fd = sys::memfd(capacity)?;
        let map = OnceLock::from(Mapping::new(fd.as_fd(), capacity, Access::Write)?);
        sys::seal(fd.as_fd(), SEALS)?;
        Ok(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), fd, capacity, map })
    }

    /// Takes over a memory file that another process made, to read from.
    ///
    /// # Errors
    /// When it is not a memory file, or not sealed against shrinking, growing and new writers (`F_SEAL_WRITE` or
    /// `F_SEAL_FUTURE_WRITE`): another process could change its size under a reader, which ends in `SIGBUS`.
    pub fn import(fd: OwnedFd) -> io::Result<Arc<Self>> {
        let seals = sys::seals(fd.as_fd())?;
        let fixed = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
        if seals & fixed != fixed || seals & (libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE) == 0 {
            let why = "a memory file that is not sealed against changes of its size and new writers";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let capacity = usize::try_from(sys::size(fd.as_fd())?).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(Arc::new(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), fd, capacity, map: OnceLock::new() }))
    }

    /// Unique in this process: two contents with the same number were in the same memory, one after the other.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Size of the memory file in bytes.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The memory file. Nobody but who made it can write to it.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn mapping(&self) -> io::Result<&Mapping> {
        if self.map.get().is_none() {
            // Two at once: one of both mappings is dropped again.
            drop(self.map.set(Mapping::new(self.fd.as_fd(), self.capacity, Access::Read)?));
        }
        self.map.get().ok_or_else(|| io::Error::other("a mapping just made is gone"))
    }
}

/// What happens when the last content in a segment is gone from this process.
pub(crate) enum Release {
    Pool(Weak<PoolShared>),
    Call(Box<dyn FnOnce(Released) + Send + Sync>),
    Nothing,
}

/// How a segment came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// Nobody reads it any more: it can be written again.
    Free,
    /// Somebody may still read it (see [`Content::retire`]): it must be given up.
    Retired,
}

/// One use of a segment: from being written to the end of its last reader here.
pub(crate) struct Lease {
    segment: Arc<Segment>,
    retired: AtomicBool,
    release: Release,
}

impl Lease {
    pub(crate) fn new(segment: Arc<Segment>, release: Release) -> Self {
        Self { segment, retired: AtomicBool::new(false), release }
    }

    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    /// The first `len` bytes.
    pub(crate) fn bytes(&self, len: usize) -> io::Result<&[u8]> {
        let map = self.segment.mapping()?;
        debug_assert!(len <= map.len());
        // SAFETY: mapped for as long as the segment lives and of fixed size by its seals. Written only through a `SegmentWriter`,
        // which ends before a content exists, and again only after the lease (which `self` borrows from) is dropped. A process
        // that writes to memory it has handed over breaks this: it can only be the user's own, and the bytes are never trusted.
        Ok(unsafe { std::slice::from_raw_parts(map.start().as_ptr(), len.min(map.len())) })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let retired = *self.retired.get_mut();
        match std::mem::replace(&mut self.release, Release::Nothing) {
            Release::Pool(pool) if !retired => {
                if let Some(pool) = pool.upgrade() {
                    pool.put(Arc::clone(&self.segment));
                }
            }
            Release::Call(call) => call(if retired { Released::Retired } else { Released::Free }),
            Release::Pool(_) | Release::Nothing => {}
        }
    }
}

/// Where segments come from and go back to. Cheap to clone; all clones are one pool.
#[derive(Clone)]
pub struct SegmentPool(Arc<PoolShared>);

pub(crate) struct PoolShared {
    free: Mutex<Free>,
    bytes_max: usize,
}

#[derive(Default)]
struct Free {
    by_capacity: BTreeMap<usize, Vec<Arc<Segment>>>,
    bytes: usize,
    made: u64,
    reused: u64,
}

impl PoolShared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the segment, or gives it up when the pool would be too large with it.
    fn put(&self, segment: Arc<Segment>) {
        let mut free = self.lock();
        if free.bytes + segment.capacity <= self.bytes_max {
            free.bytes += segment.capacity;
            free.by_capacity.entry(segment.capacity).or_default().push(segment);
        }
    }
}

impl SegmentPool {
    /// A pool that keeps at most `bytes_max` bytes of unused segments.
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(PoolShared { free: Mutex::default(), bytes_max }))
    }

    /// Memory for a content of `len` bytes, to be written and then frozen.
    ///
    /// # Errors
    /// When no memory file can be made: too many open files, no memory.
    pub fn take(&self, len: usize) -> io::Result<SegmentWriter> {
        let capacity = capacity_for(len);
        let reused = {
            let mut free = self.0.lock();
            let found = free.by_capacity.get_mut(&capacity).and_then(Vec::pop);
            if found.is_some() {
                free.bytes -= capacity;
                free.reused += 1;
            } else {
                free.made += 1;
            }
            found
        };
        let segment = match reused {
            Some(segment) => segment,
            None => Arc::new(Segment::create(capacity)?),
        };
        Ok(SegmentWriter { lease: Lease::new(segment, Release::Pool(Arc::downgrade(&self.0))), len })
    }

    /// Bytes of segments that wait to be used again.
    pub fn free_bytes(&self) -> usize {
        self.0.lock().bytes
    }

    /// Gives up all unused segments.
    pub fn trim(&self) {
        let unused = std::mem::take(&mut self.0.lock().by_capacity);
        let bytes = unused.iter().map(|(capacity, segments)| capacity * segments.len()).sum::<usize>();
        self.0.lock().bytes -= bytes;
    }

    /// How many segments were made and how many used again.
    pub fn counts(&self) -> (u64, u64) {
        let free = self.0.lock();
        (free.made, free.reused)
    }
}

/// Sizes in steps of a quarter of a power of two, so that objects of nearly one size use each other's segments and at most a fifth
/// of a segment is unused.
fn capacity_for(len: usize) -> usize {
    let len = len.max(SEGMENT_BYTES_MIN);
    let step = (1usize << (usize::BITS - 1 - len.leading_zeros())) / 4;
    len.next_multiple_of(step)
}

/// A segment that is being written and that nobody reads yet.
pub struct SegmentWriter {
    lease: Lease,
    len: usize,
}

impl SegmentWriter {
    /// Length of the content that is written.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a content of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it, to be written. What is there before is what an earlier content left, or zeros.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let start = self.start();
        // SAFETY: mapped writable in `create`, at least `len` long; the writer is the only one that has the segment, and is
        // borrowed for as long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
    }

    /// The content written.
    pub fn freeze(self) -> Content {
        Content::from_lease(self.lease, self.len)
    }

    fn start(&self) -> *mut u8 {
        let map = self.lease.segment.map.get().expect("a segment of a pool is mapped when it is made");
        debug_assert!(self.len <= map.len());
        map.start().as_ptr()
    }

    /// Cuts it into pieces of `piece` bytes (the last may be shorter) that are written independently of each other.
    pub(crate) fn split(self, piece: usize) -> (Split, Vec<Piece>) {
        let whole = Arc::new(self);
        let pieces = (0..whole.len.div_ceil(piece))
            .map(|i| {
                let range = i * piece..whole.len.min((i + 1) * piece);
                Piece { whole: Arc::clone(&whole), index: i, range }
            })
            .collect();
        (Split(whole), pieces)
    }
}

/// What was cut, to be joined again.
pub(crate) struct Split(Arc<SegmentWriter>);

impl Split {
    /// The content, once every piece has been dropped; `None` before that.
    pub(crate) fn join(self) -> Option<Content> {
        Arc::into_inner(self.0).map(SegmentWriter::freeze)
    }
}

/// One piece, written by whoever has it.
pub(crate) struct Piece {
    whole: Arc<SegmentWriter>,
    index: usize,
    range: Range<usize>,
}

impl Piece {
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    pub(crate) fn len(&self) -> usize {
        self.range.len()
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: inside the mapping, which `whole` keeps; pieces do not overlap and each exists once, and no content of the
        // segment exists while a piece does.
        unsafe { std::slice::from_raw_parts_mut(self.whole.start().add(self.range.start), self.range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacities_waste_at_most_a_fifth_and_repeat() {
        for len in (1..40_000_000).step_by(99_991) {
            let capacity = capacity_for(len);
            assert!(capacity >= len && capacity.is_multiple_of(4096));
            assert!(len <= SEGMENT_BYTES_MIN || capacity * 4 <= len * 5 + 4, "{len} {capacity}");
        }
        assert_eq!(capacity_for((1 << 20) + 8), 5 << 18);
    }

    #[test]
    fn a_dropped_content_gives_its_memory_to_the_next() {
        let pool = SegmentPool::new(4 << 20);
        let mut writer = pool.take(1 << 20).unwrap();
        writer.as_mut_slice().fill(1);
        let first = writer.freeze();
        let id = first.segment().unwrap().id();
        let other = first.clone();
        drop(first);
        assert_eq!(pool.free_bytes(), 0);
        drop(other);
        assert_eq!(pool.free_bytes(), 1 << 20);
        let second = pool.take(1 << 20).unwrap().freeze();
        assert_eq!(second.segment().unwrap().id(), id);
        second.retire();
        drop(second);
        assert_eq!(pool.free_bytes(), 0);
        assert_eq!(pool.counts(), (1, 1));
    }

    #[test]
    fn a_pool_keeps_no_more_than_it_may() {
        let pool = SegmentPool::new(1 << 20);
        let all: Vec<_> = (0..20).map(|_| pool.take(1 << 18).unwrap().freeze()).collect();
        drop(all);
        assert_eq!(pool.free_bytes(), 1 << 20);
        pool.trim();
        assert_eq!(pool.free_bytes(), 0);
    }

    #[test]
    fn nobody_else_can_write_or_resize_a_segment() {
        let content = SegmentPool::new(0).take(100_000).unwrap().freeze();
        let fd = content.as_fd().unwrap();
        let raw = std::os::fd::AsRawFd::as_raw_fd(&fd);
        assert!(Mapping::new(fd, 4096, Access::Write).is_err());
        assert!(std::fs::OpenOptions::new().write(true).open(format!("/proc/self/fd/{raw}")).and_then(|f| f.set_len(1)).is_err());
        let written = std::fs::OpenOptions::new()
            .write(true)
            .open(format!("/proc/self/fd/{raw}"))
            .and_then(|mut f| std::io::Write::write_all(&mut f, b"x"));
        assert!(written.is_err());
    }

    #[test]
    fn pieces_join_when_all_are_back() {
        let pool = SegmentPool::new(0);
        let (split, pieces) = pool.take(250).unwrap().split(100);
        for mut piece in pieces {
            let value = piece.index() as u8;
            piece.as_mut_slice().fill(value);
        }
        let content = split.join().unwrap();
        assert_eq!(content.memory().unwrap().unwrap()[..].iter().filter(|b| **b == 2).count(), 50);
        let (split, pieces) = pool.take(250).unwrap().split(100);
        assert!(split.join().is_none());
        drop(pieces);
    }

    #[test]
    fn foreign_memory_must_be_sealed() {
        let fd = sys::memfd(4096).unwrap();
        assert!(Segment::import(fd).is_err());
        let fd = sys::memfd(4096).unwrap();
        sys::seal(fd.as_fd(), libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_WRITE).unwrap();
        assert!(Segment::import(fd).is_ok());
        assert!(Segment::import(tempfile::tempfile().unwrap().into()).is_err());
    }
}
