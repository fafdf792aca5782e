//! Large values as sealed memory: a file that exists only in memory, cannot be changed or cut any more, and is passed by its
//! descriptor. The receiver maps it read-only, so a gigabyte costs as much to pass as a byte.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

const FIXED: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
const SEALS: i32 = FIXED | libc::F_SEAL_WRITE;

/// Memory that never changes again.
#[derive(Debug)]
pub struct Sealed {
    fd: OwnedFd,
    len: u64,
}

impl Sealed {
    /// Copies `bytes` into new memory.
    ///
    /// # Errors
    /// No memory, or no descriptor is left.
    pub fn new(bytes: &[u8]) -> io::Result<Self> {
        Self::gather(&[bytes])
    }

    /// As [`Sealed::new`], from several parts.
    ///
    /// # Errors
    /// As [`Sealed::new`].
    pub fn gather(parts: &[&[u8]]) -> io::Result<Self> {
        let mut file = File::from(create()?);
        let mut len = 0;
        for part in parts {
            file.write_all(part)?;
            len += part.len() as u64;
        }
        let fd = OwnedFd::from(file);
        // SAFETY: no memory is involved.
        if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, SEALS | libc::F_SEAL_SEAL) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Sealed { fd, len })
    }

    /// Takes memory that a peer has passed, if it is what the peer says.
    ///
    /// It may be longer than what is promised: the rest is nobody's. Its maker may write to it again through a mapping it has kept, and
    /// promises not to while it is in use here.
    ///
    /// # Errors
    /// It is not sealed (its owner could pull it away under us), or shorter.
    pub fn from_peer(fd: OwnedFd, len: u64) -> io::Result<Self> {
        // SAFETY: no memory is involved; `stat` is ours.
        let (seals, size) = unsafe {
            let seals = libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS);
            let mut stat: libc::stat = std::mem::zeroed();
            let size = if libc::fstat(fd.as_raw_fd(), &mut stat) == 0 { stat.st_size } else { -1 };
            (seals, size)
        };
        let written = seals & (libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE) != 0;
        if seals < 0 || seals & FIXED != FIXED || !written {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "memory was passed that is not sealed"));
        }
        if !u64::try_from(size).is_ok_and(|size| size >= len) {
            let message = format!("memory of {size} bytes was passed where {len} were promised");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(Sealed { fd, len })
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Maps it for reading.
    ///
    /// # Errors
    /// No address space, or too many mappings.
    pub fn map(&self) -> io::Result<Mapped> {
        let len = usize::try_from(self.len).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        if len == 0 {
            return Ok(Mapped { base: NonNull::dangling(), len });
        }
        // SAFETY: a new mapping of a file that is sealed against every change, so that the bytes are as constant as a slice's.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, self.fd.as_raw_fd(), 0) };
        match NonNull::new(base.cast::<u8>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => Ok(Mapped { base, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Memory that its maker fills again and again, and nobody else can write. A page of a new memory file costs ten times what one costs
/// that was used before, so large results go into segments, and the agent says when nobody reads one any more.
#[derive(Debug)]
pub struct Segment {
    fd: OwnedFd,
    base: NonNull<u8>,
    capacity: usize,
}

// SAFETY: the mapping is this value's own; it is written through `&mut self` only.
unsafe impl Send for Segment {}

impl Segment {
    /// What is made for so many bytes: a quarter of a power of two more at most, so that results of about one size use the same.
    pub fn capacity_for(bytes: usize) -> usize {
        let bytes = bytes.max(crate::INLINE_BYTES_MAX);
        bytes.next_multiple_of((1 << bytes.ilog2()) / 4)
    }

    /// A new one.
    ///
    /// # Errors
    /// No memory, address space or descriptor is left.
    pub fn create(capacity: usize) -> io::Result<Self> {
        let fd = create()?;
        let capacity = capacity.max(1);
        // SAFETY: a new mapping of a new file, whose size is sealed before anybody else has it. Writers other than this mapping are
        // sealed off.
        unsafe {
            if libc::ftruncate(fd.as_raw_fd(), capacity as libc::off_t) != 0 {
                return Err(io::Error::last_os_error());
            }
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let base = libc::mmap(ptr::null_mut(), capacity, access, libc::MAP_SHARED, fd.as_raw_fd(), 0);
            if base == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
            let segment = Segment { fd, base, capacity };
            let seals = FIXED | libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL;
            if libc::fcntl(segment.fd.as_raw_fd(), libc::F_ADD_SEALS, seals) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(segment)
        }
    }

    /// Bytes it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Fills its beginning. To be called when nobody reads it.
    pub fn fill(&mut self, bytes: &[u8]) {
        let count = bytes.len().min(self.capacity);
        // SAFETY: the mapping is at least as long and this value's own.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.as_ptr(), count) };
    }
}

impl AsFd for Segment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and no reference to it is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.capacity) };
    }
}

/// Memory that is lent to a peer with a frame, and kept until the frame was sent.
pub trait Lent: std::fmt::Debug + Send + Sync {
    /// Its descriptor.
    fn fd(&self) -> BorrowedFd<'_>;
    /// Bytes of it that are meant.
    fn bytes(&self) -> u64;
}

impl Lent for Sealed {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn bytes(&self) -> u64 {
        self.len
    }
}

impl AsFd for Sealed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Sealed> for OwnedFd {
    fn from(sealed: Sealed) -> Self {
        sealed.fd
    }
}

pub(crate) fn create() -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string; a result that is not negative is a new descriptor that is ours.
    unsafe {
        let fd = libc::memfd_create(c"scalable".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Sealed memory, mapped for reading.
#[derive(Debug)]
pub struct Mapped {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the bytes are never written while they are mapped; unmapping is done once, by the owner.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl std::ops::Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: a mapping of `len` bytes that lives as long as `self` and never changes (or a dangling pointer and no bytes).
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the mapping is this value's own and no reference to it is left.
            unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_read_back_and_cannot_be_written() {
        let sealed = Sealed::gather(&[b"ab", b"", b"cde"]).expect("memory");
        assert_eq!((&*sealed.map().expect("mapped"), sealed.len()), (&b"abcde"[..], 5));
        let mut file = File::from(sealed.fd.try_clone().expect("a descriptor"));
        assert!(file.write_all(b"x").is_err());
        let taken = Sealed::from_peer(sealed.fd.try_clone().expect("a descriptor"), 5).expect("as promised");
        assert_eq!(&*taken.map().expect("mapped"), b"abcde");
        assert!(Sealed::from_peer(OwnedFd::from(sealed), 6).is_err());
        assert!(Sealed::new(b"").expect("memory").map().expect("mapped").is_empty());
    }

    #[test]
    fn a_segment_is_filled_again_and_by_nobody_else() {
        let mut segment = Segment::create(Segment::capacity_for(100_000)).expect("memory");
        assert!(segment.capacity() >= 100_000 && segment.capacity() < 125_000);
        let theirs = Sealed::from_peer(segment.as_fd().try_clone_to_owned().expect("a descriptor"), 3).expect("sealed");
        let mapped = theirs.map().expect("mapped");
        for content in [b"abc", b"xyz"] {
            segment.fill(content);
            assert_eq!(&*mapped, content);
        }
        assert!(File::from(theirs.fd).write_all(b"no").is_err());
    }

    #[test]
    fn memory_that_is_not_sealed_is_refused() {
        assert!(Sealed::from_peer(create().expect("memory"), 0).is_err());
        let file = File::open("/dev/null").expect("there");
        assert!(Sealed::from_peer(file.into(), 0).is_err());
    }
}
