//! The store: a handle that never blocks, and two threads that do. One moves the least recently used objects to disk when memory
//! runs short, the other brings back what is asked for.

mod threads;

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io;
use std::ops::Deref;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use rustc_hash::FxHashMap;
use tokio::sync::{oneshot, watch};

use crate::ledger::{Cost, Kind, Ledger, Limits, Place, Slot};
use crate::spill::{SpillDirectory, SpilledFile};
use crate::{Content, Key, SegmentPool, sys};

/// What a store may use.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Bytes of objects in memory. Objects leave memory above 60 % of this, until 50 % are left, so that the 80 % at which a
    /// worker pauses are reached only when the disk does not keep up or everything is in use. Nothing is ever refused or lost for
    /// memory: who goes on producing above 100 % answers for it.
    pub memory_bytes_max: u64,
    /// Bytes of spilled objects on disk.
    pub disk_bytes_max: u64,
    /// Objects known at once; one more is refused.
    pub objects_max: usize,
    /// Where objects are spilled to: a directory of this store alone, made if it is not there (0700), emptied at start and removed
    /// at the end.
    pub directory: PathBuf,
    /// Bytes of unused shared memory kept to be used again (see [`SegmentPool`]).
    pub pool_bytes_max: usize,
}

impl StoreOptions {
    /// A store in `directory` with `memory_bytes_max` of memory, eight times that on disk, and at most a million objects.
    pub fn new(directory: impl Into<PathBuf>, memory_bytes_max: u64) -> Self {
        Self {
            memory_bytes_max,
            disk_bytes_max: memory_bytes_max.saturating_mul(8),
            objects_max: 1 << 20,
            directory: directory.into(),
            pool_bytes_max: usize::try_from(memory_bytes_max / 8).unwrap_or(usize::MAX).min(256 << 20),
        }
    }
}

/// What becomes of an object when memory runs short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The only copy: it is spilled, and kept until it is dropped.
    Origin,
    /// Others have it: it is forgotten.
    Replica,
}

/// What a store holds now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// Bytes of objects in memory, with what is dropped and still in use.
    pub memory_bytes: u64,
    /// Of these: in use (a [`Pinned`] exists).
    pub pinned_bytes: u64,
    /// Bytes of objects on disk that were in memory.
    pub spilled_bytes: u64,
    /// Bytes of files that belong to somebody else, which count against no limit.
    pub external_bytes: u64,
    /// Bytes of shared memory that wait to be used again, not in `memory_bytes`.
    pub pooled_bytes: u64,
    /// Objects known.
    pub objects: u64,
    /// The limit of `memory_bytes`.
    pub memory_bytes_max: u64,
    /// The limit of `spilled_bytes`.
    pub disk_bytes_max: u64,
    /// Why objects that should leave memory do not, in words; `None` when they do.
    pub trouble: Option<String>,
}

impl Usage {
    /// Bytes in memory as a fraction of the limit: at 0.8 a worker takes no new work.
    pub fn memory_fraction(&self) -> f64 {
        self.memory_bytes as f64 / self.memory_bytes_max.max(1) as f64
    }
}

/// How hard a store is pressed. Sent to [`Store::pressure`] when it changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pressure {
    /// At least 80 % of the memory is used: nothing new should be started until it is below.
    pub paused: bool,
    /// Why objects that should leave memory do not (disk full, limit reached, an I/O error), in words.
    pub trouble: Option<String>,
}

/// Fraction of the memory limit from which on a worker pauses.
pub const PAUSE_FRACTION: f64 = 0.8;

/// Why an object was not taken.
#[derive(Debug, thiserror::Error)]
pub enum InsertError {
    /// So many objects are there already.
    #[error("the store has {0} objects, its limit: release results, or raise the limit")]
    TooMany(usize),
    /// The store is being closed.
    #[error("the store is closed")]
    Closed,
}

/// Why an object cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// It was never here or has been dropped.
    #[error("it is not here")]
    Gone,
    /// It was on disk and what is there now is something else. It has been dropped.
    #[error("{0}")]
    Damaged(String),
    /// It is on disk and cannot be read now.
    #[error("{0}")]
    Io(String),
    /// The store is being closed.
    #[error("the store is closed")]
    Closed,
}

/// Where an object is.
#[derive(Debug)]
pub enum Lookup {
    /// In memory, or in a file of somebody else.
    Here(Pinned),
    /// Spilled: [`Store::load`] brings it back.
    OnDisk,
    /// Not in this store.
    Gone,
}

enum Held {
    Content(Content),
    Spilled(SpilledFile),
}

type Waiter = oneshot::Sender<Result<Pinned, LoadError>>;

struct State {
    ledger: Ledger<Held>,
    /// Who waits for what is being loaded.
    waiters: FxHashMap<Slot, Vec<Waiter>>,
    loads: VecDeque<Slot>,
    trouble: Option<String>,
    closed: bool,
}

struct Shared {
    state: Mutex<State>,
    spill_wake: Condvar,
    load_wake: Condvar,
    pool: SegmentPool,
    pressure: watch::Sender<Pressure>,
    options: StoreOptions,
}

struct Owner {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Objects by key. Cheap to clone; all clones are one store. No call blocks unless it says so.
///
/// Dropping the last handle ends the store: its threads finish the object they are at, and its directory is removed.
#[derive(Clone)]
pub struct Store(Arc<Owner>);

impl Store {
    /// Opens a store. Blocks on the disk.
    ///
    /// # Errors
    /// When the directory cannot be had: no right, or another living process has it.
    pub fn open(options: StoreOptions) -> io::Result<Self> {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("cannot spill to {}: {error}", options.directory.display()));
        let directory = Arc::new(SpillDirectory::open(&options.directory).map_err(named)?);
        let limits = Limits {
            high: options.memory_bytes_max / 5 * 3,
            low: options.memory_bytes_max / 2,
            disk: options.disk_bytes_max,
            objects: options.objects_max,
            handles: usize::try_from(sys::open_files_limit() / 2).unwrap_or(usize::MAX),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                ledger: Ledger::new(limits),
                waiters: FxHashMap::default(),
                loads: VecDeque::new(),
                trouble: None,
                closed: false,
            }),
            spill_wake: Condvar::new(),
            load_wake: Condvar::new(),
            pool: SegmentPool::new(options.pool_bytes_max),
            pressure: watch::Sender::new(Pressure::default()),
            options,
        });
        let mut threads = Vec::new();
        let (spiller, loader) = (Arc::clone(&shared), Arc::clone(&shared));
        let held = Arc::clone(&directory);
        threads.push(std::thread::Builder::new().name("store-spill".into()).spawn(move || spiller.spill_loop(&directory))?);
        threads.push(std::thread::Builder::new().name("store-load".into()).spawn(move || loader.load_loop(held))?);
        Ok(Self(Arc::new(Owner { shared, threads: Mutex::new(threads) })))
    }

    /// Puts an object in. What was there under the same key stays: a key names one content. The returned handle keeps it in use.
    ///
    /// # Errors
    /// When there are too many objects, or the store is closed. Memory is no reason.
    pub fn insert(&self, key: impl Into<Key>, content: Content, keep: Keep) -> Result<Pinned, InsertError> {
        let key = key.into();
        let shared = &self.0.shared;
        let mut state = shared.lock();
        if state.closed {
            return Err(InsertError::Closed);
        }
        if let Some(slot) = state.ledger.find(key) {
            state.ledger.pin(slot);
            return Ok(shared.pinned(slot, content));
        }
        if !state.ledger.has_room() {
            return Err(InsertError::TooMany(shared.options.objects_max));
        }
        let kind = match keep {
            _ if content.is_file() => Kind::External,
            Keep::Origin => Kind::Origin,
            Keep::Replica => Kind::Replica,
        };
        let cost = Cost { memory: content.memory_bytes(), disk: content.len(), handle: content.as_fd().is_some() };
        let slot = state.ledger.insert(key, cost, kind, Held::Content(content.clone()));
        shared.settle(state);
        Ok(shared.pinned(slot, content))
    }

    /// Puts in a file that belongs to somebody else, such as a command's published output, to be served to peers. It counts
    /// against no limit and is not removed with the object.
    ///
    /// # Errors
    /// As [`Self::insert`].
    pub fn insert_file(&self, key: impl Into<Key>, file: File, len: u64) -> io::Result<Pinned> {
        self.insert(key, Content::from_file(file, len)?, Keep::Origin).map_err(io::Error::other)
    }

    /// The object if it is in memory. Counts as a use of it.
    pub fn get(&self, key: impl Into<Key>) -> Lookup {
        let shared = &self.0.shared;
        let mut state = shared.lock();
        let Some(slot) = state.ledger.find(key.into()) else { return Lookup::Gone };
        match state.ledger.get(slot).map(|entry| &entry.payload) {
            Some(Held::Content(content)) => {
                let content = content.clone();
                state.ledger.pin(slot);
                Lookup::Here(shared.pinned(slot, content))
            }
            Some(Held::Spilled(_)) => Lookup::OnDisk,
            None => Lookup::Gone,
        }
    }

    /// The object, brought back from disk when it is there. The future may be polled anywhere.
    pub fn load(&self, key: impl Into<Key>) -> Load {
        let shared = &self.0.shared;
        let (sender, receiver) = oneshot::channel();
        let mut state = shared.lock();
        let found = state.ledger.find(key.into());
        let Some((slot, entry)) = found.and_then(|slot| Some((slot, state.ledger.get(slot)?))) else {
            drop(state);
            // Nobody else can have closed the receiver, which is returned below.
            drop(sender.send(Err(LoadError::Gone)));
            return Load(receiver);
        };
        match (&entry.payload, entry.place) {
            (Held::Content(content), _) => {
                let content = content.clone();
                state.ledger.pin(slot);
                drop(state);
                drop(sender.send(Ok(shared.pinned(slot, content))));
            }
            (Held::Spilled(_), place) => {
                if place == Place::Disk {
                    state.ledger.begin_load(slot);
                    state.loads.push_back(slot);
                    shared.load_wake.notify_one();
                }
                state.waiters.entry(slot).or_default().push(sender);
                shared.settle(state);
            }
        }
        Load(receiver)
    }

    /// The object as it is: a spilled one is opened where it lies, which blocks. For threads that serve peers.
    ///
    /// # Errors
    /// When it is not here or its file cannot be opened.
    pub fn open_blocking(&self, key: impl Into<Key>) -> Result<Pinned, LoadError> {
        let shared = &self.0.shared;
        let mut state = shared.lock();
        let slot = state.ledger.find(key.into()).ok_or(LoadError::Gone)?;
        state.ledger.pin(slot);
        let reader = match state.ledger.get(slot).map(|entry| &entry.payload) {
            Some(Held::Content(content)) => {
                let content = content.clone();
                return Ok(shared.pinned(slot, content));
            }
            Some(Held::Spilled(file)) => file.to_reader(),
            None => return Err(LoadError::Gone),
        };
        drop(state);
        match reader.open() {
            Ok(content) => Ok(Pinned { shared: Arc::clone(shared), slot, content, spilled: true }),
            Err(error) => {
                shared.unpin(slot);
                Err(LoadError::Io(error.to_string()))
            }
        }
    }

    /// Has an object kept that may be a copy of somebody else's: it counts as the only one from here on. False when it is not here.
    pub fn keep(&self, key: impl Into<Key>) -> bool {
        let mut state = self.0.shared.lock();
        let Some(slot) = state.ledger.find(key.into()) else { return false };
        state.ledger.keep(slot);
        true
    }

    /// Forgets an object. Who uses it can finish; its file is unlinked by the store's thread or with its last use.
    /// Returns whether it was there.
    pub fn drop_object(&self, key: impl Into<Key>) -> bool {
        let shared = &self.0.shared;
        let mut state = shared.lock();
        let key = key.into();
        let known = state.ledger.find(key).is_some();
        let held = state.ledger.remove(key);
        if matches!(held, Some(Held::Spilled(_))) {
            // There is room on the disk again.
            state.trouble = None;
        }
        shared.settle(state);
        drop(held);
        known
    }

    /// Forgets every object that `forget` is true for, e.g. those of a run that is over. Returns how many.
    pub fn drop_all(&self, mut forget: impl FnMut(Key) -> bool) -> usize {
        let keys: Vec<Key> = self.0.shared.lock().ledger.keys().filter(|key| forget(*key)).collect();
        keys.into_iter().filter(|key| self.drop_object(*key)).count()
    }

    /// What it holds now.
    pub fn usage(&self) -> Usage {
        let shared = &self.0.shared;
        let (totals, trouble) = {
            let state = shared.lock();
            (state.ledger.totals(), state.trouble.clone())
        };
        Usage {
            memory_bytes: totals.memory,
            pinned_bytes: totals.pinned,
            spilled_bytes: totals.disk,
            external_bytes: totals.external,
            pooled_bytes: shared.pool.free_bytes() as u64,
            objects: totals.objects as u64,
            memory_bytes_max: shared.options.memory_bytes_max,
            disk_bytes_max: shared.options.disk_bytes_max,
            trouble,
        }
    }

    /// How hard it is pressed, now and whenever that changes.
    pub fn pressure(&self) -> watch::Receiver<Pressure> {
        self.0.shared.pressure.subscribe()
    }

    /// Where its shared memory comes from, for contents that will be put in.
    pub fn pool(&self) -> &SegmentPool {
        &self.0.shared.pool
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({:?})", self.0.shared.options.directory)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.close();
        for thread in std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner)) {
            // One that panicked has said so; there is nothing left to do with it.
            drop(thread.join());
        }
    }
}

/// An object in use: it stays where it is until this is dropped.
pub struct Pinned {
    shared: Arc<Shared>,
    slot: Slot,
    content: Content,
    spilled: bool,
}

impl Pinned {
    /// True when it was opened where it was spilled to.
    pub(crate) fn is_spilled(&self) -> bool {
        self.spilled
    }

    /// The content. A clone of it keeps the bytes but is not accounted once this is dropped.
    pub fn content(&self) -> &Content {
        &self.content
    }
}

impl Deref for Pinned {
    type Target = Content;

    fn deref(&self) -> &Content {
        &self.content
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pinned({:?})", self.content)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.shared.unpin(self.slot);
    }
}

/// Resolves to the object, in use.
pub struct Load(oneshot::Receiver<Result<Pinned, LoadError>>);

impl Future for Load {
    type Output = Result<Pinned, LoadError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or(Err(LoadError::Closed)))
    }
}

impl Load {
    /// Waits for the object on this thread.
    ///
    /// # Errors
    /// As the future.
    pub fn wait(self) -> Result<Pinned, LoadError> {
        self.0.blocking_recv().unwrap_or(Err(LoadError::Closed))
    }
}
