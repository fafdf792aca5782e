//! The seam between the peer protocol and what carries it: TCP or a Unix socket today, TLS over TCP later. Everything above reads
//! and writes through [`Stream`].

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::sys;
use crate::wire::{self, HEADER};

/// A connection to a peer.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

macro_rules! each {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream {
            Stream::Tcp($inner) => $call,
            Stream::Unix($inner) => $call,
        }
    };
}

impl Stream {
    /// Writes a header and a content, in one call of the kernel while it takes them.
    pub(crate) async fn write_both(&mut self, head: &[u8], body: &[u8]) -> io::Result<()> {
        let mut written = 0;
        while written < head.len() {
            let parts = [IoSlice::new(&head[written..]), IoSlice::new(body)];
            written += nonzero(each!(self, s => s.write_vectored(&parts).await)?)?;
        }
        each!(self, s => s.write_all(&body[written - head.len()..]).await)
    }

    /// Writes a header and `len` bytes of a file from `at` on, which do not pass through this process.
    pub(crate) async fn write_file(&mut self, head: &[u8], file: BorrowedFd<'_>, at: u64, len: usize) -> io::Result<()> {
        let mut sent = 0;
        while sent < head.len() {
            sent += nonzero(self.when_writable(|socket| sys::send_more(socket, &head[sent..])).await?)?;
        }
        let mut sent = 0;
        while sent < len {
            let now = self.when_writable(|socket| sys::sendfile(socket, file, at + sent as u64, len - sent)).await?;
            sent += nonzero(now)?;
        }
        Ok(())
    }

    async fn when_writable<T>(&self, mut call: impl FnMut(BorrowedFd<'_>) -> io::Result<T>) -> io::Result<T> {
        match self {
            Self::Tcp(s) => s.async_io(Interest::WRITABLE, || call(s.as_fd())).await,
            Self::Unix(s) => s.async_io(Interest::WRITABLE, || call(s.as_fd())).await,
        }
    }

    /// Reads the next frame: its kind and its body in `body`.
    pub(crate) async fn read_frame(&mut self, body: &mut Vec<u8>) -> io::Result<u8> {
        let mut header = [0; HEADER];
        self.read_exact(&mut header).await?;
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a frame longer than any of the protocol");
        let (kind, len) = wire::decode_header(&header).ok_or_else(malformed)?;
        body.resize(len, 0);
        self.read_exact(body).await?;
        Ok(kind)
    }
}

/// Zero bytes taken means that no more will be.
fn nonzero(count: usize) -> io::Result<usize> {
    if count == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(count) }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), s => Pin::new(s).poll_read(context, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), s => Pin::new(s).poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), s => Pin::new(s).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), s => Pin::new(s).poll_shutdown(context))
    }
}
