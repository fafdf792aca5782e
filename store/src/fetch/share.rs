//! The short cut: a Unix socket to a peer on this host, over which it hands out the open files its objects are in. Requests follow
//! each other without waiting for answers, which come in order.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustc_hash::FxHashMap;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::{Common, SourceError, peer};
use crate::transport::Stream;
use crate::wire::{self, Answer, Code, HEADER, Instance, Request, Shared};
use crate::{Capability, Content, Key, Released, Segment, sys};

/// Bytes of requests that are collected before the peer has taken the last ones.
const OUT_MAX: usize = 64 << 10;

enum Order {
    Share(Key, Capability, oneshot::Sender<Result<Content, SourceError>>),
    Release(u64, Released),
}

/// The way to ask. Cheap to clone.
#[derive(Clone)]
pub(super) struct Channel(mpsc::UnboundedSender<Order>);

impl Channel {
    /// Connects to the socket of this instance. Whoever answers there has been given the name by the peer itself or is the peer.
    pub(super) async fn open(instance: &Instance, common: &Common) -> Option<Self> {
        let connect = || {
            let stream = sys::connect_abstract(&wire::abstract_name(instance))?;
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        };
        let stream = connect().ok()?;
        let greeting = timeout(common.options.connect, peer::greet(Stream::Unix(stream)));
        let Some(Stream::Unix(stream)) = greeting.await.ok()?.ok()?.stream.into_stream() else { return None };
        let (orders, receiver) = mpsc::unbounded_channel();
        let talk = Talk {
            stream,
            releases: orders.downgrade(),
            waiting: VecDeque::new(),
            kept: FxHashMap::default(),
            fds: Vec::new(),
            received: Vec::new(),
        };
        tokio::task::spawn_local(async move {
            if let Err(error) = talk.run(receiver).await {
                tracing::debug!(%error, "a peer on this host has gone");
            }
        });
        Some(Self(orders))
    }

    pub(super) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// The object in its open file; an error when the peer has to be asked for bytes.
    pub(super) async fn share(&self, key: Key, capability: Capability) -> Result<Content, SourceError> {
        let (sender, receiver) = oneshot::channel();
        let gone = || SourceError::Broken { received: 0, why: "the connection on this host has ended".into() };
        self.0.send(Order::Share(key, capability, sender)).map_err(|_| gone())?;
        receiver.await.unwrap_or_else(|_| Err(gone()))
    }
}

struct Talk {
    stream: UnixStream,
    /// Contents send their release here when they are dropped. Weak: they do not keep the connection.
    releases: mpsc::WeakUnboundedSender<Order>,
    /// Who waits for the next answers.
    waiting: VecDeque<oneshot::Sender<Result<Content, SourceError>>>,
    /// Memory files that later contents will be in.
    kept: FxHashMap<u64, Arc<Segment>>,
    fds: Vec<OwnedFd>,
    received: Vec<u8>,
}

impl Talk {
    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) -> io::Result<()> {
        let mut out = Vec::new();
        let mut buffer = vec![0; 16 << 10];
        loop {
            tokio::select! {
                order = orders.recv(), if out.len() < OUT_MAX => {
                    let Some(order) = order else { return Ok(()) };
                    self.encode(order, &mut out);
                    // Whatever else is there goes in the same write.
                    while out.len() < OUT_MAX && let Ok(order) = orders.try_recv() {
                        self.encode(order, &mut out);
                    }
                }
                // Never only writing: the peer may be waiting for its answers to be read.
                ready = self.stream.writable(), if !out.is_empty() => {
                    ready?;
                    match self.stream.try_write(&out) {
                        Ok(count) => drop(out.drain(..count)),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    }
                }
                ready = self.stream.readable() => {
                    ready?;
                    let (stream, fds) = (&self.stream, &mut self.fds);
                    let read = stream.try_io(Interest::READABLE, || sys::recv_with_fds(stream.as_fd(), &mut buffer, fds));
                    match read {
                        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                        Ok(count) => {
                            self.received.extend_from_slice(&buffer[..count]);
                            self.answers()?;
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }

    fn encode(&mut self, order: Order, out: &mut Vec<u8>) {
        match order {
            Order::Share(key, capability, sender) => {
                Request::Share { key, capability }.encode(out);
                self.waiting.push_back(sender);
            }
            Order::Release(lease, released) => {
                Request::Release { lease, retired: released == Released::Retired }.encode(out);
            }
        }
    }

    fn answers(&mut self) -> io::Result<()> {
        let malformed = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut at = 0;
        while let Some(header) = self.received[at..].first_chunk::<HEADER>() {
            let (kind, len) = wire::decode_header(header).ok_or_else(|| malformed("a frame too long"))?;
            let Some(body) = self.received.get(at + HEADER..at + HEADER + len) else { break };
            let answer = Answer::decode(kind, body).ok_or_else(|| malformed("a frame of another protocol"))?;
            at += HEADER + len;
            let sender = self.waiting.pop_front().ok_or_else(|| malformed("an answer to nothing"))?;
            let result = match answer {
                Answer::Shared(shared) => Ok(self.content(shared)?),
                Answer::Status(Code::Ok) | Answer::Size(_) => return Err(malformed("an answer to something else")),
                Answer::Status(code) => Err(SourceError::Refused(code)),
            };
            // Nobody waits any more: the content is dropped, and by that released.
            drop(sender.send(result));
        }
        self.received.drain(..at);
        Ok(())
    }

    fn content(&mut self, shared: Shared) -> io::Result<Content> {
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "an open file that was not sent");
        self.kept.remove(&shared.forget);
        let fd = if shared.with_file {
            if self.fds.is_empty() {
                return Err(malformed());
            }
            Some(self.fds.remove(0))
        } else {
            None
        };
        let releases = self.releases.clone();
        let release = move |released| {
            if let Some(orders) = releases.upgrade() {
                // A connection that has ended has released everything.
                drop(orders.send(Order::Release(shared.lease, released)));
            }
        };
        match (fd, shared.segment) {
            (Some(fd), 0) => {
                // A file on disk is of this content alone: the lease ends at once.
                release(Released::Free);
                Content::from_file(fd.into(), shared.size)
            }
            (fd, number) => {
                let segment = match fd {
                    Some(fd) => Segment::import(fd)?,
                    None => self.kept.get(&number).cloned().ok_or_else(malformed)?,
                };
                if shared.keep {
                    self.kept.insert(number, Arc::clone(&segment));
                }
                let len = usize::try_from(shared.size).map_err(|_| malformed())?;
                Content::from_segment(&segment, len, release)
            }
        }
    }
}
