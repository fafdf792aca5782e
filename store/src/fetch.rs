//! The fetcher: brings objects from peers, each once however many ask for it, within a bound of bytes, from several holders at once
//! where there are several, without a copy where the holder is on this host. It runs on threads of its own.

mod admission;
mod engine;
mod file;
mod peer;
mod share;
mod transfer;
mod upload;

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use rustc_hash::FxHashMap;
use scalable_tls::PeerDialer;
use tokio::sync::{mpsc, oneshot};

use crate::wire::Code;
use crate::{Capability, Content, Digest, Key, SegmentPool};

/// How a fetcher behaves.
#[derive(Clone)]
pub struct FetcherOptions {
    /// Bytes of objects on their way at once. The next wait, first come first served; objects above an eighth of this wait apart
    /// and have half of it, so that neither large nor small ones starve. One larger than that half travels alone among the large.
    pub bytes_in_flight_max: u64,
    /// Requests known at once, waiting and on their way; one more is refused.
    pub requests_max: usize,
    /// TCP connections to one peer.
    pub connections_per_peer: usize,
    /// Holders that one object is fetched from at once.
    pub sources_max: usize,
    /// Whether open files are taken from peers on this host instead of bytes.
    pub short_cut: bool,
    /// Name of this host, as in announcements. Peers that say another name are not tried for the short cut; empty tries all.
    pub host: String,
    /// How long connecting may take.
    pub connect: Duration,
    /// How long one chunk or answer may take before its holder is given up.
    pub stall: Duration,
    /// How long a holder that is busy is asked again before it is given up.
    pub busy: Duration,
    /// Where received objects are put: the pool of the store they go to.
    pub pool: SegmentPool,
    /// TCP connections are TLS, to peers of one cluster.
    pub tls: Option<PeerDialer>,
    /// Threads that fetch. Objects are spread over them; each has its part of the bytes in flight.
    pub threads: usize,
}

impl FetcherOptions {
    /// Usual values, with memory of `pool`.
    pub fn new(pool: SegmentPool) -> Self {
        Self {
            bytes_in_flight_max: 256 << 20,
            requests_max: 1 << 17,
            connections_per_peer: 2,
            sources_max: 4,
            short_cut: true,
            host: String::new(),
            connect: Duration::from_secs(5),
            stall: Duration::from_secs(15),
            busy: Duration::from_secs(30),
            pool,
            tls: None,
            threads: 1,
        }
    }
}

/// Who holds an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    /// Where it answers peers: `host:port`.
    pub address: String,
    /// Name of its host as announced, or empty.
    pub host: String,
}

/// What to fetch.
#[derive(Clone, Debug)]
pub struct FetchRequest {
    /// The object.
    pub key: Key,
    /// Its size in bytes. A holder that has something of another size counts as one that does not have it.
    pub size: u64,
    /// Who has it, nearest first.
    pub holders: Vec<Holder>,
    /// What to show them.
    pub capability: Capability,
}

/// What to bring to a peer that takes uploads.
#[derive(Clone, Debug)]
pub struct UploadRequest {
    /// `host:port` of the peer.
    pub address: String,
    /// The content.
    pub content: Content,
    /// Its digest.
    pub digest: Digest,
    /// The right to upload it: [`crate::ObjectKey::grant_upload`].
    pub capability: Capability,
}

/// What to fetch into a file.
#[derive(Clone, Debug)]
pub struct FileRequest {
    /// Digest of the content.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Who has it, in the order in which they are asked.
    pub holders: Vec<Holder>,
    /// What to show them.
    pub capability: Capability,
    /// Where it goes: made (0600) when it is not there. What an earlier attempt has left of the same content there is not fetched again.
    /// The file is right when the fetch has succeeded, and to be renamed by the caller.
    pub part: PathBuf,
}

/// Why a content could not be had in a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// No holder gave it.
    #[error("content {digest} ({size} bytes) {}", list(.sources))]
    Unavailable {
        /// The content.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// Each holder's address and what it did.
        sources: Vec<(String, SourceError)>,
    },
    /// The file cannot be written.
    #[error("cannot write {}: {error}", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// So many requests are waiting already.
    #[error("{0} fetches are waiting already, the limit: wait for some of them")]
    TooMany(usize),
    /// The fetcher is gone.
    #[error("the fetcher was stopped")]
    Stopped,
}

/// Why one holder did not give an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// It said so.
    #[error("{0}")]
    Refused(Code),
    /// It could not be reached.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The connection ended or failed in the middle.
    #[error("the connection broke after {received} bytes: {why}")]
    Broken {
        /// Bytes of the object received from it and found right.
        received: u64,
        /// The error.
        why: String,
    },
    /// Nothing came for too long.
    #[error("nothing came for {} ms", .0.as_millis())]
    Stalled(Duration),
    /// A chunk does not have the checksum sent with it.
    #[error("what it sent is damaged at byte {0}")]
    Corrupt(u64),
    /// It has something of another size.
    #[error("what it has is {found} bytes long, not {expected}")]
    SizeDiffers {
        /// Its size there.
        found: u64,
        /// The size asked for.
        expected: u64,
    },
    /// It does not speak the protocol.
    #[error("it does not speak the peer protocol: {0}")]
    Protocol(&'static str),
}

/// Why an object could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// No holder gave it.
    #[error("{key} ({size} bytes) {}", list(.sources))]
    Unavailable {
        /// The object.
        key: Key,
        /// Its size in bytes.
        size: u64,
        /// Each holder's address and what it did.
        sources: Vec<(String, SourceError)>,
    },
    /// So many requests are waiting already.
    #[error("{0} fetches are waiting already, the limit: wait for some of them")]
    TooMany(usize),
    /// No memory for it here.
    #[error("no memory to receive {0}: {1}")]
    Memory(Key, String),
    /// The fetcher is gone.
    #[error("the fetcher was stopped")]
    Stopped,
}

fn list(sources: &[(String, SourceError)]) -> String {
    if sources.is_empty() {
        return "has no known holder".into();
    }
    let each: Vec<String> = sources.iter().map(|(address, why)| format!("{address}: {why}")).collect();
    format!("could be had from none of its holders: {}", each.join("; "))
}

/// What a fetcher has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FetchMetrics {
    /// Requests taken.
    pub requests: u64,
    /// Of these: those that joined a transfer that was waiting or on its way.
    pub joined: u64,
    /// Objects that arrived.
    pub fetched: u64,
    /// Of these: those that came as an open file.
    pub shared: u64,
    /// Objects that could not be had.
    pub failed: u64,
    /// Holders that failed, whether or not another one helped.
    pub source_failures: u64,
    /// Bytes received.
    pub bytes_copied: u64,
    /// Bytes that came as an open file.
    pub bytes_shared: u64,
    /// Requests that are waiting or on their way now.
    pub pending: u64,
    /// Bytes of objects on their way now.
    pub bytes_in_flight: u64,
}

#[derive(Default)]
struct Counters {
    requests: AtomicU64,
    joined: AtomicU64,
    fetched: AtomicU64,
    shared: AtomicU64,
    failed: AtomicU64,
    source_failures: AtomicU64,
    bytes_copied: AtomicU64,
    bytes_shared: AtomicU64,
    pending: AtomicUsize,
    bytes_in_flight: AtomicU64,
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

/// What is known of a peer's speed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PeerSpeed {
    /// Bytes per second as received lately (moving average over transfers, the newest weighs 30 %); 0: nothing measured.
    pub bytes_per_second: f64,
    /// It is on this host and hands over open files: moving costs nothing.
    pub shares: bool,
}

/// Peers whose speed is remembered; when there are more all are forgotten and measured anew.
const SPEEDS_MAX: usize = 1 << 16;

/// What all threads of a fetcher share.
struct Common {
    options: FetcherOptions,
    counters: Counters,
    speeds: Mutex<FxHashMap<String, PeerSpeed>>,
}

impl Common {
    fn with_speed(&self, address: &str, change: impl FnOnce(&mut PeerSpeed)) {
        let mut speeds = self.speeds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(speed) = speeds.get_mut(address) {
            change(speed);
            return;
        }
        if speeds.len() >= SPEEDS_MAX {
            speeds.clear();
        }
        change(speeds.entry(address.to_owned()).or_default());
    }

    fn measured(&self, address: &str, bytes: u64, took: Duration) {
        let now = bytes as f64 / took.as_secs_f64().max(1e-9);
        self.with_speed(address, |speed| {
            let before = speed.bytes_per_second;
            speed.bytes_per_second = if before == 0.0 { now } else { 0.7 * before + 0.3 * now };
        });
    }
}

/// Takes one from the requests that are pending when a request is over, however it ends.
struct Pending(Arc<Common>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.counters.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

type FetchAnswer = Result<Content, FetchError>;

enum Command {
    Fetch(FetchRequest, oneshot::Sender<FetchAnswer>, Pending),
    Upload(UploadRequest, oneshot::Sender<Result<(), SourceError>>, Pending),
    File(FileRequest, oneshot::Sender<Result<(), FileError>>, Pending),
}

/// Brings objects from peers. Cheap to clone; all clones are one. No call blocks.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use scalable_store::*;
/// let directory = std::env::temp_dir().join(format!("store-example-{}", std::process::id()));
/// let store = Store::open(StoreOptions::new(directory, 64 << 20))?;
/// let server = PeerServer::start(ServerOptions::new(([127, 0, 0, 1], 0).into()), store.clone())?;
/// let cluster = ObjectKey::random()?;
/// server.set_key(cluster.clone());
///
/// // One worker keeps a result...
/// let id = ObjectId { run: 1, group: 0, index: 7, attempt: 1 };
/// store.insert(id, Content::from_bytes(vec![7; 100_000].into()), Keep::Origin)?;
///
/// // ...the scheduler tells another who has it and what to show...
/// let capability = cluster.grant(id.into(), now_ms() + 60_000);
/// let holders = vec![Holder { address: server.address().to_string(), host: String::new() }];
///
/// // ...and that one fetches it. The future may be awaited on any runtime.
/// let fetcher = Fetcher::start(FetcherOptions::new(SegmentPool::new(8 << 20)))?;
/// let fetch = fetcher.fetch(FetchRequest { key: id.into(), size: 100_000, holders, capability });
/// assert_eq!(fetch.wait()?.bytes()?.len(), 100_000);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Fetcher(Arc<Owner>);

struct Owner {
    common: Arc<Common>,
    /// One a thread. Dropped before the threads are waited for, which ends them.
    senders: Mutex<Vec<mpsc::UnboundedSender<Command>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Fetcher {
    /// Starts its threads.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(options: FetcherOptions) -> io::Result<Self> {
        let threads_max = options.threads.max(1);
        let common = Arc::new(Common { options, counters: Counters::default(), speeds: Mutex::default() });
        let (mut senders, mut threads) = (Vec::new(), Vec::new());
        for number in 0..threads_max {
            let (sender, commands) = mpsc::unbounded_channel();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let common = Arc::clone(&common);
            let run = move || engine::run(&runtime, commands, common);
            threads.push(std::thread::Builder::new().name(format!("fetch-{number}")).spawn(run)?);
            senders.push(sender);
        }
        Ok(Self(Arc::new(Owner { common, senders: Mutex::new(senders), threads: Mutex::new(threads) })))
    }

    /// Fetches an object. When the same object is on its way already this waits for it, and its holders are more to turn to.
    /// Dropping the future gives it up; the transfer ends when nobody waits for it any more.
    pub fn fetch(&self, request: FetchRequest) -> Fetch {
        let (sender, receiver) = oneshot::channel();
        add(&self.0.common.counters.requests, 1);
        let thread = match request.key {
            Key::Object(id) => id.index as usize,
            Key::Blob(digest) => digest.0[0] as usize,
        };
        match self.pending() {
            Ok(pending) => self.send(thread, Command::Fetch(request, sender, pending)),
            // Its receiver is below: it cannot be closed yet.
            Err(limit) => drop(sender.send(Err(FetchError::TooMany(limit)))),
        }
        Fetch(receiver)
    }

    /// Brings a content to a peer.
    pub fn upload(&self, request: UploadRequest) -> Upload {
        let (sender, receiver) = oneshot::channel();
        let thread = request.digest.0[0] as usize;
        match self.pending() {
            Ok(pending) => self.send(thread, Command::Upload(request, sender, pending)),
            Err(_) => drop(sender.send(Err(SourceError::Refused(Code::Busy)))),
        }
        Upload(receiver)
    }

    /// Fetches a content into a file, chunk by chunk. Its thread writes the file, so files are best fetched by a fetcher of their own.
    /// Dropping the future gives it up; what has come stays in the file.
    pub fn fetch_file(&self, request: FileRequest) -> FileFetch {
        let (sender, receiver) = oneshot::channel();
        add(&self.0.common.counters.requests, 1);
        let thread = request.digest.0[0] as usize;
        match self.pending() {
            Ok(pending) => self.send(thread, Command::File(request, sender, pending)),
            // Its receiver is below: it cannot be closed yet.
            Err(limit) => drop(sender.send(Err(FileError::TooMany(limit)))),
        }
        FileFetch(receiver)
    }

    /// What is known of the speed of the peer at this address; `None` when nothing is.
    pub fn speed(&self, address: &str) -> Option<PeerSpeed> {
        self.0.common.speeds.lock().unwrap_or_else(PoisonError::into_inner).get(address).copied()
    }

    /// What it has done so far.
    pub fn metrics(&self) -> FetchMetrics {
        let c = &self.0.common.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FetchMetrics {
            requests: get(&c.requests),
            joined: get(&c.joined),
            fetched: get(&c.fetched),
            shared: get(&c.shared),
            failed: get(&c.failed),
            source_failures: get(&c.source_failures),
            bytes_copied: get(&c.bytes_copied),
            bytes_shared: get(&c.bytes_shared),
            pending: c.pending.load(Ordering::Relaxed) as u64,
            bytes_in_flight: get(&c.bytes_in_flight),
        }
    }

    fn pending(&self) -> Result<Pending, usize> {
        let common = &self.0.common;
        let before = common.counters.pending.fetch_add(1, Ordering::Relaxed);
        let pending = Pending(Arc::clone(common));
        if before < common.options.requests_max { Ok(pending) } else { Err(common.options.requests_max) }
    }

    fn send(&self, thread: usize, command: Command) {
        let senders = self.0.senders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = thread.checked_rem(senders.len()).and_then(|i| senders.get(i)) {
            // A thread that is gone drops the command, whose future then says that the fetcher has stopped.
            drop(sender.send(command));
        }
    }
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fetcher({:?})", self.metrics())
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.senders.lock().unwrap_or_else(PoisonError::into_inner).clear();
        for thread in std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner)) {
            // One that panicked has said so.
            drop(thread.join());
        }
    }
}

/// Resolves to the object.
pub struct Fetch(oneshot::Receiver<FetchAnswer>);

impl Future for Fetch {
    type Output = FetchAnswer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or(Err(FetchError::Stopped)))
    }
}

impl Fetch {
    /// Waits for the object on this thread.
    ///
    /// # Errors
    /// As the future.
    pub fn wait(self) -> FetchAnswer {
        self.0.blocking_recv().unwrap_or(Err(FetchError::Stopped))
    }
}

/// Resolves when the file is complete and right.
pub struct FileFetch(oneshot::Receiver<Result<(), FileError>>);

impl Future for FileFetch {
    type Output = Result<(), FileError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or(Err(FileError::Stopped)))
    }
}

impl FileFetch {
    /// Waits for the file on this thread.
    ///
    /// # Errors
    /// As the future.
    pub fn wait(self) -> Result<(), FileError> {
        self.0.blocking_recv().unwrap_or(Err(FileError::Stopped))
    }
}

/// Resolves when the peer has the content and has checked it.
pub struct Upload(oneshot::Receiver<Result<(), SourceError>>);

impl Future for Upload {
    type Output = Result<(), SourceError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(stopped)
    }
}

impl Upload {
    /// Waits for the end of the upload on this thread.
    ///
    /// # Errors
    /// As the future.
    pub fn wait(self) -> Result<(), SourceError> {
        stopped(self.0.blocking_recv())
    }
}

fn stopped<E>(answer: Result<Result<(), SourceError>, E>) -> Result<(), SourceError> {
    answer.unwrap_or_else(|_| Err(SourceError::Broken { received: 0, why: "the fetcher was stopped".into() }))
}
