//! The seam between the peer protocol and what carries it: TCP, TLS over TCP, or a Unix socket. Everything above reads and writes
//! through [`Connected`].

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

use crate::sys;
use crate::wire::{self, HEADER};

/// What carries a connection.
pub(crate) enum Stream {
    Tcp(TcpStream),
    /// Boxed once a connection: what it keeps is kilobytes.
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

/// A connection to a peer. Frames are read through a small buffer, so that a request, or the heads before a chunk, take one call of
/// the kernel; what is longer than the buffer is read in place.
pub(crate) struct Connected(BufReader<Stream>);

/// Longer than the heads that come before a chunk, and short enough that copying what is read beyond them costs nothing.
const BUFFER: usize = 256;

impl Connected {
    pub(crate) fn new(stream: Stream) -> Self {
        Self(BufReader::with_capacity(BUFFER, stream))
    }

    pub(crate) fn stream(&mut self) -> &mut Stream {
        self.0.get_mut()
    }

    /// What carries it, if nothing has been read beyond what was asked for.
    pub(crate) fn into_stream(self) -> Option<Stream> {
        self.0.buffer().is_empty().then(|| self.0.into_inner())
    }

    pub(crate) async fn read_exact(&mut self, into: &mut [u8]) -> io::Result<()> {
        self.0.read_exact(into).await.map(drop)
    }

    pub(crate) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let stream = self.0.get_mut();
        stream.write_all(bytes).await?;
        stream.sent().await
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

macro_rules! each {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream {
            Stream::Tcp($inner) => $call,
            Stream::Tls($inner) => $call,
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
        each!(self, s => s.write_all(&body[written - head.len()..]).await)?;
        self.sent().await
    }

    /// What TLS has taken may still lie in this process: it is to go out before an answer is waited for.
    async fn sent(&mut self) -> io::Result<()> {
        match self {
            Self::Tls(tls) => tls.flush().await,
            Self::Tcp(_) | Self::Unix(_) => Ok(()),
        }
    }

    /// True where bytes have to pass through this process.
    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Writes a header and `len` bytes of a file from `at` on, which do not pass through this process. Not over TLS.
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
            // The kernel encrypts nothing.
            Self::Tls(_) => Err(io::ErrorKind::Unsupported.into()),
        }
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
