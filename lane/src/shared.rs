//! Memory that agent and host share: what became of each call that was sent, and what each thread executes now. It tells without
//! a frame, also of a host that is dead, stopped or in an endless loop, and takes a call back in one instruction.
//!
//! ```text
//!                  agent sends              host begins            host returns, agent takes it
//!   FREE ─────────────────────► QUEUED ───────────────► BEGUN ───────────────────────────────► FREE
//!                                  │ agent                │ agent cancels
//!                                  ▼                      ▼
//!                              TAKEN_BACK            WANTED_BACK
//!                                  │ host says it was dropped, or dies      (all lead to FREE)
//! ```
//!
//! The agent trusts nothing it reads here: a host is a user's program. It only ever compares with its own books.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::memory;

/// No call has this number.
pub const FREE: u8 = 0;
/// Sent and not begun.
pub const QUEUED: u8 = 1;
/// A thread has begun it.
pub const BEGUN: u8 = 2;
/// The agent took it back before it was begun.
pub const TAKEN_BACK: u8 = 3;
/// It was begun and nobody wants its result any more.
pub const WANTED_BACK: u8 = 4;

/// Most calls a host may have at a time.
pub const CALLS_MAX: u32 = 1 << 16;
/// Most threads of one host.
pub const THREADS_MAX: u32 = 256;

const MAGIC: u32 = u32::from_le_bytes(*b"SLN1");
const LINE: usize = 64;

#[repr(C, align(64))]
struct Head {
    magic: AtomicU32,
    threads: AtomicU32,
    calls: AtomicU32,
}

#[repr(C, align(64))]
struct Thread {
    /// Number of the call it executes plus one; 0 is none.
    executes: AtomicU64,
    /// Calls it has finished.
    finished: AtomicU64,
}

/// The mapping.
#[derive(Debug)]
pub struct Shared {
    base: NonNull<u8>,
    bytes: usize,
    threads: u32,
    calls: u32,
}

// SAFETY: everything behind the pointer is atomic; unmapping is done once, by the owner.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

fn size(threads: u32, calls: u32) -> usize {
    (LINE * (1 + threads as usize) + calls as usize).next_multiple_of(4096)
}

fn map(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: a new mapping of a file whose size is sealed.
    let base = unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(ptr::null_mut(), bytes, access, libc::MAP_SHARED, fd.as_raw_fd(), 0)
    };
    match NonNull::new(base.cast::<u8>()) {
        Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => Ok(base),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Shared {
    /// Made by the agent. Both figures are cut to what a host may have.
    ///
    /// # Errors
    /// No memory or descriptor is left.
    pub fn create(threads: u32, calls: u32) -> io::Result<(Shared, OwnedFd)> {
        let (threads, calls) = (threads.clamp(1, THREADS_MAX), calls.clamp(1, CALLS_MAX));
        let bytes = size(threads, calls);
        let fd = memory::create()?;
        // SAFETY: no memory is involved.
        unsafe {
            if libc::ftruncate(fd.as_raw_fd(), bytes as libc::off_t) != 0
                || libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL)
                    != 0
            {
                return Err(io::Error::last_os_error());
            }
        }
        let shared = Shared { base: map(fd.as_fd(), bytes)?, bytes, threads, calls };
        shared.head().threads.store(threads, Ordering::Relaxed);
        shared.head().calls.store(calls, Ordering::Relaxed);
        shared.head().magic.store(MAGIC, Ordering::Release);
        Ok((shared, fd))
    }

    /// Opened by the host.
    ///
    /// # Errors
    /// It is not what an agent makes.
    pub fn open(fd: OwnedFd) -> io::Result<Shared> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "the shared memory is not an agent's");
        // SAFETY: no memory but `stat`, which is ours.
        let length = unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            if libc::fstat(fd.as_raw_fd(), &mut stat) == 0 { stat.st_size } else { 0 }
        };
        let bytes = usize::try_from(length).map_err(|_| bad())?;
        if bytes < LINE {
            return Err(bad());
        }
        let mut shared = Shared { base: map(fd.as_fd(), bytes)?, bytes, threads: 0, calls: 0 };
        let (threads, calls) = (shared.head().threads.load(Ordering::Relaxed), shared.head().calls.load(Ordering::Relaxed));
        let magic = shared.head().magic.load(Ordering::Acquire);
        if magic != MAGIC || threads == 0 || threads > THREADS_MAX || calls > CALLS_MAX || size(threads, calls) != bytes {
            return Err(bad());
        }
        (shared.threads, shared.calls) = (threads, calls);
        Ok(shared)
    }

    /// Threads of the host.
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// Calls it may have at a time.
    pub fn calls(&self) -> u32 {
        self.calls
    }

    fn head(&self) -> &Head {
        // SAFETY: the mapping is page-aligned and holds at least one line; all fields are atomic.
        unsafe { self.base.cast::<Head>().as_ref() }
    }

    fn thread(&self, thread: u32) -> &Thread {
        assert!(thread < self.threads, "a thread of this host");
        // SAFETY: within the mapping (see `size`), aligned to a line; all fields are atomic.
        unsafe { self.base.add(LINE * (1 + thread as usize)).cast::<Thread>().as_ref() }
    }

    /// State of a call; nothing for a number that no call of this host can have.
    pub fn state(&self, call: u32) -> Option<&AtomicU8> {
        (call < self.calls).then(|| {
            // SAFETY: within the mapping (see `size`); atomic.
            unsafe { self.base.add(LINE * (1 + self.threads as usize) + call as usize).cast::<AtomicU8>().as_ref() }
        })
    }

    fn exchange(&self, call: u32, from: u8, to: u8) -> bool {
        self.state(call).is_some_and(|s| s.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok())
    }

    /// Agent: a call is about to be sent.
    pub fn queue(&self, call: u32) {
        if let Some(state) = self.state(call) {
            state.store(QUEUED, Ordering::Release);
        }
    }

    /// Agent: takes a call back. False when it was begun.
    pub fn take_back(&self, call: u32) -> bool {
        self.exchange(call, QUEUED, TAKEN_BACK)
    }

    /// Agent: asks a call that was begun to end early.
    pub fn want_back(&self, call: u32) {
        self.exchange(call, BEGUN, WANTED_BACK);
    }

    /// Agent: nobody has this number any more.
    pub fn free(&self, call: u32) {
        if let Some(state) = self.state(call) {
            state.store(FREE, Ordering::Release);
        }
    }

    /// Host: begins a call. False when it was taken back.
    pub fn begin(&self, thread: u32, call: u32) -> bool {
        // Before the state says so: a crash in between blames a call that was not begun rather than none.
        self.thread(thread).executes.store(u64::from(call) + 1, Ordering::Release);
        let begun = self.exchange(call, QUEUED, BEGUN);
        if !begun {
            self.thread(thread).executes.store(0, Ordering::Release);
        }
        begun
    }

    /// Host: the thread executes nothing any more.
    pub fn end(&self, thread: u32) {
        let thread = self.thread(thread);
        thread.finished.store(thread.finished.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        thread.executes.store(0, Ordering::Release);
    }

    /// What a thread executes, and how many calls it had finished before: the same pair twice is the same execution.
    pub fn executes(&self, thread: u32) -> Option<(u32, u64)> {
        let record = self.thread(thread);
        let executes = record.executes.load(Ordering::Acquire);
        let call = u32::try_from(executes.checked_sub(1)?).ok()?;
        Some((call, record.finished.load(Ordering::Relaxed)))
    }

    /// Calls that threads execute now.
    pub fn executing(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.threads).filter_map(|thread| self.executes(thread)).map(|(call, _)| call)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and no reference to it is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_begun_or_taken_back_and_never_both() {
        let (agent, fd) = Shared::create(2, 100).expect("memory");
        let host = Shared::open(fd).expect("an agent's");
        assert_eq!((host.threads(), host.calls()), (2, 100));
        for call in [3, 4] {
            agent.queue(call);
        }
        assert!(host.begin(1, 3));
        assert!(!agent.take_back(3), "it was begun");
        assert_eq!(agent.executing().collect::<Vec<_>>(), [3]);
        assert!(agent.take_back(4));
        assert!(!host.begin(0, 4), "it was taken back");
        agent.want_back(3);
        assert_eq!(host.state(3).expect("there").load(Ordering::Relaxed), WANTED_BACK);
        host.end(1);
        assert_eq!(agent.executing().count(), 0);
        assert!(agent.state(100).is_none() && !host.begin(0, 100), "a number beyond is nobody's");
    }

    #[test]
    fn other_memory_is_refused() {
        assert!(Shared::open(memory::create().expect("memory")).is_err());
        let zeros = memory::Sealed::new(&[0; 8192]).expect("memory");
        assert!(Shared::open(zeros.into()).is_err());
    }
}
