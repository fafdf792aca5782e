//! Handing open files to peers on the same host. Each use is a lease: the content stays in use here until the peer releases it.
//! A peer that goes away without releasing may still read what it has, so that memory is never used again.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustc_hash::FxHashMap;
use tokio::io::Interest;

use super::connection::{Opened, open, refuse};
use super::{Shared, add};
use crate::transport::{Connected, Stream};
use crate::wire::{Answer, Code, Shared as SharedAnswer};
use crate::{Capability, Content, Key, sys};

/// Leases of one connection at once; the next content is sent as bytes.
const LEASES_MAX: usize = 4096;
/// Memory files that a peer keeps mapped, and the largest that it keeps: what a peer may hold of memory that is free here.
const KEPT_MAX: usize = 64;
const KEPT_BYTES_MAX: usize = 2 << 20;

/// What one peer has of this server.
pub(super) struct Leases<'a> {
    shared: &'a Shared,
    next: u64,
    open: FxHashMap<u64, Lease>,
    /// Memory files that the peer has mapped, oldest first.
    kept: VecDeque<u64>,
}

struct Lease {
    content: Content,
    /// Keeps it accounted as in use.
    _opened: Opened,
}

impl<'a> Leases<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        Self { shared, next: 1, open: FxHashMap::default(), kept: VecDeque::new() }
    }

    pub(super) async fn share(&mut self, stream: &mut Connected, key: Key, capability: &Capability) -> io::Result<()> {
        let shared = self.shared;
        let opened = match open(shared, key, capability) {
            Ok(opened) => opened,
            Err(code) => return refuse(stream, shared, code).await,
        };
        let spilled = matches!(&opened, Opened::Stored(pinned) if pinned.is_spilled());
        // What was spilled has checksums that the reader of an open file would not check.
        if !matches!(stream.stream(), Stream::Unix(_)) || spilled || self.open.len() >= LEASES_MAX {
            return refuse(stream, shared, Code::NotShareable).await;
        }
        let Ok(content) = opened.content().to_shared(shared.store.pool()) else {
            return refuse(stream, shared, Code::NotShareable).await;
        };
        let (answer, fd) = self.lease(&content);
        let mut out = Vec::new();
        Answer::Shared(answer).encode(&mut out);
        add(&shared.counters.served, 1);
        add(&shared.counters.bytes_shared, content.len());
        add(&shared.counters.leases, 1);
        let sent = send(stream, &out, if fd { content.as_fd() } else { None }).await;
        self.open.insert(answer.lease, Lease { content, _opened: opened });
        sent
    }

    /// What to tell the peer, and whether the file has to go with it.
    fn lease(&mut self, content: &Content) -> (SharedAnswer, bool) {
        let lease = self.next;
        self.next += 1;
        let mut answer = SharedAnswer { lease, segment: 0, size: content.len(), forget: 0, with_file: true, keep: false };
        if let Some(segment) = content.segment() {
            answer.segment = segment.id();
            if self.kept.contains(&segment.id()) {
                answer.with_file = false;
                answer.keep = true;
            } else if segment.capacity() <= KEPT_BYTES_MAX {
                answer.keep = true;
                self.kept.push_back(segment.id());
                if self.kept.len() > KEPT_MAX {
                    answer.forget = self.kept.pop_front().unwrap_or(0);
                }
            }
        }
        (answer, answer.with_file)
    }

    pub(super) fn release(&mut self, lease: u64, retired: bool) {
        if let Some(lease) = self.open.remove(&lease) {
            self.shared.counters.leases.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
            if retired {
                lease.content.retire();
            }
        }
    }
}

impl Drop for Leases<'_> {
    fn drop(&mut self) {
        let open: Vec<u64> = self.open.keys().copied().collect();
        open.into_iter().for_each(|lease| self.release(lease, true));
    }
}

/// Sends a frame and with it an open file.
async fn send(stream: &mut Connected, frame: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let Stream::Unix(unix) = stream.stream() else { return Err(io::ErrorKind::Unsupported.into()) };
    let sent = unix.async_io(Interest::WRITABLE, || sys::send_with_fd(unix.as_fd(), frame, fd)).await?;
    stream.write_all(&frame[sent..]).await
}
