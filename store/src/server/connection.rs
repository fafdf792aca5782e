//! One connection of a server: the handshake, then one request after the other. An error ends the connection and nothing else.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use scalable_tls::HANDSHAKE_MAX;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::{Shared, add, same_user, share, upload};
use crate::content::{CHUNK_BYTES, Content, checksum};
use crate::store::{LoadError, Pinned};
use crate::transport::{Connected, Stream};
use crate::wire::{Answer, CLIENT_HELLO, ChunkHead, Code, Request, ServerHello, judge_client_hello};
use crate::{Capability, Key};

/// Counts a connection for as long as it lives.
struct Counted<'a>(&'a Shared);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.counters.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection as it was accepted.
pub(super) enum Taken {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Makes the handshake of TLS where there is one.
async fn open_stream(taken: Taken, shared: &Shared) -> io::Result<Stream> {
    match (taken, &shared.options.tls) {
        (Taken::Unix(unix), _) => Ok(Stream::Unix(unix)),
        (Taken::Tcp(tcp), None) => Ok(Stream::Tcp(tcp)),
        (Taken::Tcp(tcp), Some(config)) => {
            // Records of TLS go out as they are made: without it the end of a large chunk waits for a delayed acknowledgement.
            tcp.set_nodelay(true)?;
            let accepting = TlsAcceptor::from(config.clone()).accept(tcp);
            let tls = timeout(HANDSHAKE_MAX.min(shared.options.stall), accepting).await??;
            Ok(Stream::Tls(Box::new(tls.into())))
        }
    }
}

pub(super) async fn run(taken: Taken, shared: &Shared) {
    let before = shared.counters.connections.fetch_add(1, Ordering::Relaxed);
    let _counted = Counted(shared);
    let full = before >= shared.options.connections_max;
    let mut stream = match open_stream(taken, shared).await {
        Ok(stream) => Connected::new(stream),
        Err(error) => {
            add(&shared.counters.refused, 1);
            tracing::debug!(%error, "a peer did not get through its handshake");
            return;
        }
    };
    // A peer that goes away or sends nonsense is no event worth a line: it knows best.
    if let Err(error) = talk(&mut stream, shared, full).await {
        tracing::debug!(%error, "a peer's connection has ended");
    }
}

async fn talk(stream: &mut Connected, shared: &Shared, full: bool) -> io::Result<()> {
    let mut hello = [0; CLIENT_HELLO];
    timeout(shared.options.stall, stream.read_exact(&mut hello)).await??;
    let code = match judge_client_hello(&hello) {
        Code::Ok if full => Code::Busy,
        Code::Ok if matches!(stream.stream(), Stream::Unix(unix) if !same_user(unix)) => Code::Denied,
        code => code,
    };
    let answer = ServerHello { code, instance: shared.instance, shares: shared.shares };
    timeout(shared.options.stall, stream.write_all(&answer.encode())).await??;
    if code != Code::Ok {
        add(&shared.counters.refused, 1);
        return Ok(());
    }
    let mut leases = share::Leases::new(shared);
    let mut body = Vec::new();
    loop {
        let idle = match stream.stream() {
            Stream::Tcp(_) | Stream::Tls(_) => shared.options.idle,
            // It may hold open files of ours for as long as it wants, and says so by being there.
            Stream::Unix(_) => std::time::Duration::MAX,
        };
        let kind = match timeout(idle, stream.read_frame(&mut body)).await? {
            Ok(kind) => kind,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        let Some(request) = Request::decode(kind, &body) else {
            refuse(stream, shared, Code::Malformed).await?;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a request of the peer protocol"));
        };
        match request {
            Request::Fetch { key, capability, offset, length } => {
                fetch(stream, shared, key, &capability, offset, length).await?;
            }
            Request::Put { digest, capability, size } => {
                upload::receive(stream, shared, digest, &capability, size).await?;
            }
            Request::Share { key, capability } => {
                timeout(shared.options.stall, leases.share(stream, key, &capability)).await??;
            }
            Request::Release { lease, retired } => leases.release(lease, retired),
        }
    }
}

/// Answers with a code.
pub(super) async fn refuse(stream: &mut Connected, shared: &Shared, code: Code) -> io::Result<()> {
    if code != Code::Ok {
        add(&shared.counters.refused, 1);
    }
    let mut out = Vec::new();
    Answer::Status(code).encode(&mut out);
    timeout(shared.options.stall, stream.write_all(&out)).await?
}

/// What is asked for, if it is here and the capability is right.
pub(super) fn open(shared: &Shared, key: Key, capability: &Capability) -> Result<Opened, Code> {
    match shared.judge_fetch(key, capability) {
        Code::Ok => {}
        code => return Err(code),
    }
    match shared.store.open_blocking(key) {
        Ok(pinned) => return Ok(Opened::Stored(pinned)),
        Err(LoadError::Gone | LoadError::Closed) => {}
        Err(LoadError::Io(_) | LoadError::Damaged(_)) => return Err(Code::Disk),
    }
    if let (Key::Blob(digest), Some(files)) = (key, &shared.options.files) {
        match files.open(digest) {
            Ok(Some(content)) => return Ok(Opened::Uploaded(content)),
            Ok(None) => {}
            Err(error) => tracing::debug!(%digest, %error, "a file that should be served cannot be opened"),
        }
    }
    match (key, &shared.options.uploads) {
        (Key::Blob(digest), Some(blobs)) => match blobs.get(digest) {
            Ok(Some(content)) => Ok(Opened::Uploaded(content)),
            Ok(None) => Err(Code::Gone),
            Err(_) => Err(Code::Disk),
        },
        _ => Err(Code::Gone),
    }
}

/// A content to be sent.
pub(super) enum Opened {
    Stored(Pinned),
    /// In a file of its own.
    Uploaded(Content),
}

impl Opened {
    pub(super) fn content(&self) -> &Content {
        match self {
            Self::Stored(pinned) => pinned.content(),
            Self::Uploaded(content) => content,
        }
    }
}

/// A turn to send or receive contents. `None`: so many wait already that this one should come back later.
pub(super) async fn turn(shared: &Shared) -> Option<SemaphorePermit<'_>> {
    if let Ok(permit) = shared.active.try_acquire() {
        return Some(permit);
    }
    struct Waiting<'a>(&'a Shared);
    impl Drop for Waiting<'_> {
        fn drop(&mut self) {
            self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let before = shared.waiting.fetch_add(1, Ordering::Relaxed);
    let _waiting = Waiting(shared);
    if before >= shared.options.active_max * 4 {
        return None;
    }
    // The semaphore is never closed.
    shared.active.acquire().await.ok()
}

async fn fetch(
    stream: &mut Connected,
    shared: &Shared,
    key: Key,
    capability: &Capability,
    offset: u64,
    length: u64,
) -> io::Result<()> {
    let opened = match open(shared, key, capability) {
        Ok(opened) => opened,
        Err(code) => return refuse(stream, shared, code).await,
    };
    let content = opened.content();
    let size = content.len();
    let chunk = CHUNK_BYTES as u64;
    let end = offset.checked_add(length).filter(|end| *end <= size && (*end == size || end % chunk == 0));
    let Some(end) = end.filter(|_| offset.is_multiple_of(chunk)) else { return refuse(stream, shared, Code::Range).await };
    let Some(_turn) = turn(shared).await else { return refuse(stream, shared, Code::Busy).await };

    let mut head = Vec::with_capacity(64);
    let mut scratch = Vec::new();
    Answer::Size(size).encode(&mut head);
    let mut at = offset;
    while at < end {
        let index = (at / chunk) as usize;
        let range = content.chunk_range(index);
        let len = (range.end - range.start) as usize;
        // A file is read where its checksum is not known yet or it is to be encrypted, else it goes as it lies. A sum that is known
        // is sent, whatever was read: the reader sees what the disk has done.
        let known = content.known_sum(index);
        let read = content.is_file() && (known.is_none() || stream.stream().is_encrypted());
        let sum = match known {
            None if read => content.chunk(index, &mut scratch).map(checksum).inspect(|sum| content.set_sum(index, *sum)),
            Some(sum) if read => content.chunk(index, &mut scratch).map(|_| sum),
            _ => content.sum(index, &mut Vec::new()),
        };
        let sum = match sum {
            Ok(sum) => sum,
            // Before the first chunk there is a code for it, later only the end of the connection.
            Err(_) if at == offset => return refuse(stream, shared, Code::Disk).await,
            Err(error) => return Err(error),
        };
        ChunkHead { offset: at, len: len as u32, sum }.encode(&mut head);
        let memory = content.memory()?;
        let sending = async {
            match (memory, content.as_fd()) {
                (Some(memory), _) => stream.stream().write_both(&head, &memory[range.start as usize..range.end as usize]).await,
                (None, _) if read => stream.stream().write_both(&head, &scratch).await,
                (None, Some(file)) => stream.stream().write_file(&head, file.as_fd(), at, len).await,
                (None, None) => Err(io::Error::other("a content that is nowhere")),
            }
        };
        timeout(shared.options.stall, sending).await??;
        add(&shared.counters.bytes_sent, len as u64);
        head.clear();
        at = range.end;
    }
    if !head.is_empty() {
        timeout(shared.options.stall, stream.write_all(&head)).await??;
    }
    add(&shared.counters.served, 1);
    Ok(())
}
