//! The peer server: hands out what its store holds to whoever shows a capability for it, and takes uploads. It runs on threads of
//! its own, each with a single-threaded runtime: one thread fills a loopback connection, and a slow peer costs a waiting future.

mod connection;
mod share;
mod upload;

use std::io;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::LocalSet;

use crate::wire::{Code, Instance, abstract_name};
use crate::{BlobDirectory, Capability, Denied, Digest, FileIndex, Key, ObjectKey, Store, now_ms, sys};

/// How a server behaves.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where it listens; port 0 takes any free one.
    pub address: SocketAddr,
    /// Threads that serve.
    pub threads: usize,
    /// Connections at once; the next one is told that it is busy and closed.
    pub connections_max: usize,
    /// Requests answered at once, each with at most one chunk in this process's memory. Four times as many wait; the next is told
    /// that it is busy.
    pub active_max: usize,
    /// Whether peers on this host that run as this user are handed open files instead of bytes.
    pub short_cut: bool,
    /// How long a peer may take to receive or send one chunk or frame before its connection is closed.
    pub stall: Duration,
    /// How long a TCP connection may be without a request before it is closed.
    pub idle: Duration,
    /// Where uploads go; `None` refuses them. What is in it is served as well.
    pub uploads: Option<BlobDirectory>,
    /// Largest upload in bytes.
    pub upload_bytes_max: u64,
    /// Files that are served by their digests from where they lie.
    pub files: Option<FileIndex>,
    /// TCP connections are TLS. Who may have what is still a capability's affair.
    pub tls: Option<Arc<rustls::ServerConfig>>,
}

impl ServerOptions {
    /// Listens at `address` without uploads.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            threads: std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).clamp(1, 4)),
            connections_max: 1024,
            active_max: 64,
            short_cut: true,
            stall: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            uploads: None,
            upload_bytes_max: 256 << 20,
            files: None,
            tls: None,
        }
    }
}

/// What a server has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerMetrics {
    /// Connections now.
    pub connections: u64,
    /// Connections taken.
    pub accepted: u64,
    /// Requests that were answered with a content, or a part of one.
    pub served: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Bytes of contents sent.
    pub bytes_sent: u64,
    /// Bytes of contents handed over without a copy.
    pub bytes_shared: u64,
    /// Open files that peers on this host hold now.
    pub leases: u64,
    /// Bytes of uploads received.
    pub bytes_received: u64,
}

#[derive(Default)]
struct Counters {
    connections: AtomicUsize,
    accepted: AtomicU64,
    served: AtomicU64,
    refused: AtomicU64,
    bytes_sent: AtomicU64,
    bytes_shared: AtomicU64,
    leases: AtomicU64,
    bytes_received: AtomicU64,
}

struct Shared {
    store: Store,
    options: ServerOptions,
    instance: Instance,
    shares: bool,
    keys: RwLock<Keys>,
    active: Semaphore,
    waiting: AtomicUsize,
    counters: Counters,
}

/// The key of now, and the one before it: capabilities that were on their way when the key changed stay good.
#[derive(Default)]
struct Keys {
    now: Option<ObjectKey>,
    before: Option<ObjectKey>,
}

impl Keys {
    fn judge(&self, check: impl Fn(&ObjectKey) -> Result<(), Denied>) -> Code {
        let Some(now) = &self.now else { return Code::NotReady };
        let verdict = match (check(now), &self.before) {
            (Err(Denied::Wrong), Some(before)) => check(before),
            (verdict, _) => verdict,
        };
        match verdict {
            Ok(()) => Code::Ok,
            Err(Denied::Wrong) => Code::Denied,
            Err(Denied::Expired) => Code::Expired,
        }
    }
}

impl Shared {
    fn judge_fetch(&self, key: Key, capability: &Capability) -> Code {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.judge(|with| with.check(key, capability, now_ms()))
    }

    fn judge_upload(&self, digest: Digest, size: u64, capability: &Capability) -> Code {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.judge(|with| with.check_upload(digest, size, capability, now_ms()))
    }
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

/// A running server. Dropping it closes every connection and waits for its threads.
pub struct PeerServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl PeerServer {
    /// Starts to serve what `store` holds. Until [`Self::set_key`] every request is told to come back later.
    ///
    /// # Errors
    /// When it cannot listen there, or no thread can be started.
    pub fn start(options: ServerOptions, store: Store) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("cannot listen at {}: {error}", options.address));
        let listener = std::net::TcpListener::bind(options.address).map_err(named)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let mut instance = Instance::default();
        getrandom::fill(&mut instance).map_err(io::Error::other)?;
        let unix = if options.short_cut { listen_abstract(&instance) } else { None };
        let shared = Arc::new(Shared {
            store,
            instance,
            shares: unix.is_some(),
            keys: RwLock::default(),
            active: Semaphore::new(options.active_max),
            waiting: AtomicUsize::new(0),
            counters: Counters::default(),
            options,
        });
        let (stop, stopped) = watch::channel(false);
        let mut threads = Vec::new();
        for number in 0..shared.options.threads.max(1) {
            let (listener, unix) = (listener.try_clone()?, unix.as_ref().map(|l| l.try_clone()).transpose()?);
            let (shared, stopped) = (Arc::clone(&shared), stopped.clone());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let run = move || LocalSet::new().block_on(&runtime, serve(listener, unix, shared, stopped));
            threads.push(std::thread::Builder::new().name(format!("peers-{number}")).spawn(run)?);
        }
        Ok(Self { address, shared, stop, threads: Mutex::new(threads) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The key that capabilities are checked with from now on. Those made with the one before stay good until they expire.
    pub fn set_key(&self, key: ObjectKey) {
        let mut keys = self.shared.keys.write().unwrap_or_else(PoisonError::into_inner);
        if keys.now.as_ref() != Some(&key) {
            keys.before = keys.now.replace(key);
        }
    }

    /// What it has done so far.
    pub fn metrics(&self) -> ServerMetrics {
        let c = &self.shared.counters;
        ServerMetrics {
            connections: c.connections.load(Ordering::Relaxed) as u64,
            accepted: c.accepted.load(Ordering::Relaxed),
            served: c.served.load(Ordering::Relaxed),
            refused: c.refused.load(Ordering::Relaxed),
            bytes_sent: c.bytes_sent.load(Ordering::Relaxed),
            bytes_shared: c.bytes_shared.load(Ordering::Relaxed),
            leases: c.leases.load(Ordering::Relaxed),
            bytes_received: c.bytes_received.load(Ordering::Relaxed),
        }
    }
}

impl Drop for PeerServer {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for thread in std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner)) {
            // One that panicked has said so.
            drop(thread.join());
        }
    }
}

/// The socket for peers on this host. Its name cannot be guessed, so that whoever reaches it has been told by this server and
/// shares its network namespace. Without one there is no short cut, nothing else.
fn listen_abstract(instance: &Instance) -> Option<std::os::unix::net::UnixListener> {
    let listen = || {
        let address = std::os::unix::net::SocketAddr::from_abstract_name(abstract_name(instance))?;
        let listener = std::os::unix::net::UnixListener::bind_addr(&address)?;
        listener.set_nonblocking(true)?;
        io::Result::Ok(listener)
    };
    listen().inspect_err(|error| tracing::warn!(%error, "peers on this host will be sent bytes")).ok()
}

async fn serve(
    tcp: std::net::TcpListener,
    unix: Option<std::os::unix::net::UnixListener>,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) {
    let listen = || io::Result::Ok((TcpListener::from_std(tcp)?, unix.map(UnixListener::from_std).transpose()?));
    let (tcp, unix) = match listen() {
        Ok(both) => both,
        Err(error) => {
            tracing::error!(%error, "this thread cannot serve peers");
            return;
        }
    };
    let accept_unix = async || match &unix {
        Some(listener) => listener.accept().await.map(|(stream, _)| connection::Taken::Unix(stream)),
        None => std::future::pending().await,
    };
    loop {
        let accepted = tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => return,
            accepted = tcp.accept() => accepted.map(|(stream, _)| connection::Taken::Tcp(stream)),
            accepted = accept_unix() => accepted,
        };
        match accepted {
            Ok(stream) => {
                let shared = Arc::clone(&shared);
                add(&shared.counters.accepted, 1);
                tokio::task::spawn_local(async move { connection::run(stream, &shared).await });
            }
            Err(error) => {
                // Too many open files: those that are closed meanwhile make room.
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Whether the process at the other end of a Unix socket runs as this process's user.
fn same_user(stream: &tokio::net::UnixStream) -> bool {
    use std::os::fd::AsFd;
    sys::peer_user(stream.as_fd()).is_ok_and(|user| user == sys::own_user())
}
