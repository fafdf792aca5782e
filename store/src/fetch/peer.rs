//! What a fetcher thread has of one peer: a few connections that are used again, and the short cut if there is one.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpStream;
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::{Common, Holder, SourceError, share};
use crate::transport::{Connected, Stream};
use crate::wire::{Code, SERVER_HELLO, ServerHello, client_hello};

/// One peer, as one thread sees it.
pub(super) struct Peer {
    pub address: String,
    common: Arc<Common>,
    permits: Semaphore,
    idle: RefCell<Vec<Idle>>,
    channel: Mutex<ShortCut>,
    last_used: Cell<Instant>,
}

/// Whether the peer hands over open files.
enum ShortCut {
    Untried,
    Absent,
    Open(share::Channel),
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// A connection on which requests are made one after the other.
pub(super) struct Connection {
    pub stream: Connected,
    hello: ServerHello,
    /// Used before: the peer may have closed it meanwhile, which is no fault of its.
    pub reused: bool,
}

/// A connection in use, counted against the peer's.
pub(super) struct Lent<'a> {
    pub connection: Connection,
    peer: &'a Peer,
    _permit: SemaphorePermit<'a>,
}

impl Lent<'_> {
    /// The connection is between two requests: it can be used again.
    pub(super) fn give_back(mut self) {
        self.connection.reused = true;
        let Self { connection, peer, .. } = self;
        peer.idle.borrow_mut().push(Idle { connection, since: Instant::now() });
    }
}

/// An unused connection is closed after so long, well before the other side does.
const IDLE: std::time::Duration = std::time::Duration::from_secs(20);

impl Peer {
    pub(super) fn new(address: String, common: Arc<Common>) -> Self {
        let permits = Semaphore::new(common.options.connections_per_peer.max(1));
        let last_used = Cell::new(Instant::now());
        Self { address, common, permits, idle: RefCell::default(), channel: Mutex::new(ShortCut::Untried), last_used }
    }

    /// A connection, when one is free. `fresh` makes a new one.
    pub(super) async fn connection(&self, fresh: bool) -> Result<Lent<'_>, SourceError> {
        self.last_used.set(Instant::now());
        // The semaphore is never closed.
        let permit = self.permits.acquire().await.map_err(|_| SourceError::Protocol("no connection"))?;
        let reused = if fresh { None } else { self.idle.borrow_mut().pop() };
        let connection = match reused {
            Some(idle) => idle.connection,
            None => connect(&self.address, &self.common).await?,
        };
        Ok(Lent { connection, peer: self, _permit: permit })
    }

    /// The short cut to this peer: it exists when the peer is on this host, in this network namespace, and runs as this user.
    pub(super) async fn channel(&self, holder: &Holder) -> Option<share::Channel> {
        let own = &self.common.options.host;
        let elsewhere = !own.is_empty() && !holder.host.is_empty() && *own != holder.host;
        if !self.common.options.short_cut || elsewhere {
            return None;
        }
        self.last_used.set(Instant::now());
        let mut short_cut = self.channel.lock().await;
        match &*short_cut {
            ShortCut::Absent => return None,
            ShortCut::Open(channel) if !channel.is_closed() => return Some(channel.clone()),
            // A peer that has gone may be back, as another instance.
            ShortCut::Open(_) | ShortCut::Untried => *short_cut = ShortCut::Untried,
        }
        // A peer that cannot be reached is tried again next time. After a restart an old connection would know the old instance only.
        let lent = self.connection(true).await.ok()?;
        let hello = lent.connection.hello;
        lent.give_back();
        let channel = if hello.shares { share::Channel::open(&hello.instance, &self.common).await } else { None };
        self.common.with_speed(&self.address, |speed| speed.shares = channel.is_some());
        *short_cut = channel.clone().map_or(ShortCut::Absent, ShortCut::Open);
        channel
    }

    /// Closes connections that nobody has used for some time; true when the peer itself was not.
    pub(super) fn sweep(&self) -> bool {
        self.idle.borrow_mut().retain(|idle| idle.since.elapsed() < IDLE);
        let shares = match self.channel.try_lock() {
            Ok(short_cut) => matches!(&*short_cut, ShortCut::Open(channel) if !channel.is_closed()),
            Err(_) => true,
        };
        !shares && self.last_used.get().elapsed() > IDLE
    }
}

async fn connect(address: &str, common: &Common) -> Result<Connection, SourceError> {
    let failed = |error: std::io::Error| SourceError::Connect(error.to_string());
    let connecting = async {
        let tcp = TcpStream::connect(address).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        match &common.options.tls {
            None => greet(Stream::Tcp(tcp)).await,
            Some(tls) => {
                let tls = tls.dial(tcp).await.map_err(failed)?;
                greet(Stream::Tls(Box::new(tls.into()))).await
            }
        }
    };
    let limit = common.options.connect;
    timeout(limit, connecting)
        .await
        .unwrap_or_else(|_| Err(SourceError::Connect(format!("no answer for {} ms", limit.as_millis()))))
}

/// The handshake.
pub(super) async fn greet(stream: Stream) -> Result<Connection, SourceError> {
    let mut stream = Connected::new(stream);
    let broken = |error: std::io::Error| SourceError::Broken { received: 0, why: error.to_string() };
    stream.write_all(&client_hello()).await.map_err(broken)?;
    let mut bytes = [0; SERVER_HELLO];
    stream.read_exact(&mut bytes).await.map_err(broken)?;
    let hello = ServerHello::decode(&bytes).ok_or(SourceError::Protocol("its first bytes are something else"))?;
    match hello.code {
        Code::Ok => Ok(Connection { stream, hello, reused: false }),
        code => Err(SourceError::Refused(code)),
    }
}
