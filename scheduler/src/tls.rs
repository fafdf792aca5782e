//! TLS before the services: accepts connections, makes many handshakes at once, and says who is at the other end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use rustls::ServerConfig;
use scalable_tls::{Authority, Certificate, HANDSHAKE_MAX, WorkerIdentity};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

/// Handshakes at once; whoever comes next waits in the listener's queue.
const HANDSHAKES_MAX: usize = 128;
/// Wait when no connection can be accepted because too many files are open.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// Wait before the scheduler's certificate is tried again where it could not be made.
const RENEW_AGAIN: Duration = Duration::from_secs(10);

/// Who is at the other end of a connection over TLS.
#[derive(Clone, Debug)]
pub struct TlsPeer {
    /// Its address.
    pub address: SocketAddr,
    /// The worker it is and until when its certificate says so, where it has shown one.
    pub worker: Option<(Arc<WorkerIdentity>, SystemTime)>,
}

/// A connection after its handshake.
pub struct Secured {
    stream: TlsStream<TcpStream>,
    peer: TlsPeer,
}

impl Connected for Secured {
    type ConnectInfo = TlsPeer;

    fn connect_info(&self) -> TlsPeer {
        self.peer.clone()
    }
}

impl AsyncRead for Secured {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// Connections that have got through, as they come. To be made within the runtime that serves them.
pub struct Incoming {
    connections: mpsc::Receiver<Secured>,
    address: SocketAddr,
}

impl Incoming {
    /// Accepts on `listener` from now on. `cluster_id` is whose workers are known.
    ///
    /// # Errors
    /// When the listener has no address.
    pub fn start(listener: TcpListener, config: Arc<ServerConfig>, cluster_id: &str) -> io::Result<Incoming> {
        let address = listener.local_addr()?;
        let (done, connections) = mpsc::channel(16);
        tokio::spawn(accept(listener, TlsAcceptor::from(config), Arc::from(cluster_id), done));
        Ok(Incoming { connections, address })
    }
}

impl tokio_stream::Stream for Incoming {
    type Item = io::Result<Secured>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().connections.poll_recv(context).map(|next| next.map(Ok))
    }
}

impl axum::serve::Listener for Incoming {
    type Io = Secured;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Secured, SocketAddr) {
        match self.connections.recv().await {
            Some(secured) => {
                let address = secured.peer.address;
                (secured, address)
            }
            // The task that accepts ends only with the runtime.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, cluster_id: Arc<str>, done: mpsc::Sender<Secured>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    // The semaphore is never closed.
    while let Ok(permit) = handshakes.clone().acquire_owned().await {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = done.closed() => return,
        };
        let (tcp, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let (acceptor, cluster_id, done) = (acceptor.clone(), cluster_id.clone(), done.clone());
        tokio::spawn(async move {
            let shaken = tokio::time::timeout(HANDSHAKE_MAX, shake(acceptor, tcp))
                .await
                .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "its handshake took too long")));
            match shaken {
                Ok(stream) => {
                    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                    let worker = shown.and_then(|shown| WorkerIdentity::of_certificate(shown, &cluster_id));
                    let worker = worker.map(|(worker, until)| (Arc::new(worker), until));
                    let _ = done.send(Secured { stream, peer: TlsPeer { address, worker } }).await;
                }
                Err(error) => tracing::debug!(%address, %error, "a connection did not get through its handshake"),
            }
            // Only now: connections that nobody has taken yet count as well.
            drop(permit);
        });
    }
}

async fn shake(acceptor: TlsAcceptor, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    // Without it the end of a large frame waits 40 ms for an acknowledgement that the peer delays.
    tcp.set_nodelay(true)?;
    acceptor.accept(tcp).await
}

/// Makes the scheduler's certificate anew at two thirds of each one's lifetime, for ever.
pub async fn keep_renewed(authority: Arc<Authority>, shown: Certificate, lifetime: Duration) {
    loop {
        let due = shown.renew_at().unwrap_or_else(Instant::now);
        tokio::time::sleep_until(due.into()).await;
        if let Err(error) = authority.renew_scheduler(&shown, lifetime) {
            tracing::error!(%error, "the scheduler's certificate could not be renewed");
            tokio::time::sleep(RENEW_AGAIN.min(lifetime / 10)).await;
        }
    }
}
