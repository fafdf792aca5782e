//! Results that stay on the worker because they are too large to travel with their report, objects of other workers that calls
//! here read, and the server that gives ours to others.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rustc_hash::FxHashMap;
use scalable_lane::INLINE_BYTES_MAX;
use scalable_lane::memory::Lent;
use scalable_proto::v1::{Executable, Heartbeat, ObjectRef};
use scalable_store::{
    BlobDirectory, Capability, Content, Digest, Fetch, FetchRequest, Fetcher, FetcherOptions, GRANT_MS, Holder, Keep, Key, Load,
    Lookup, ObjectId, ObjectKey, PeerServer, Pinned, Pressure, ServerOptions, Store, StoreOptions, now_ms,
};
use scalable_tls::PeerDialer;

use crate::remote::Remote;
use crate::sources::Sources;

use super::program::{EXECUTABLE_BYTES_MAX, Executables, Local};

/// Bytes of programs that are kept, in all.
const PROGRAMS_BYTES_MAX: u64 = 4 << 30;

/// An object that is here and stays where it is until this is dropped.
#[derive(Debug)]
pub struct Kept {
    _pinned: Option<Pinned>,
    content: Content,
}

impl Lent for Kept {
    fn fd(&self) -> BorrowedFd<'_> {
        self.content.as_fd().expect("`Objects::keep` makes it of contents that have one")
    }

    fn bytes(&self) -> u64 {
        self.content.len()
    }
}

/// An object as a call reads it.
#[derive(Clone, Debug)]
pub enum Found {
    /// Copied into the call.
    Here(Bytes),
    /// Passed.
    Kept(Arc<Kept>),
}

/// An object on its way.
pub enum Coming {
    /// From this worker's disk.
    Load(Load),
    /// From a peer.
    Fetch(ObjectId, Fetch),
}

/// One that has come.
pub enum Come {
    /// From this worker's disk.
    Loaded(Pinned),
    /// From a peer.
    Fetched(ObjectId, Content),
}

/// Where an object is.
pub enum Looked {
    /// Here.
    Found(Found),
    /// To be waited for.
    Coming(Coming),
    /// Nobody has it.
    Missing(String),
}

/// An object that is to be kept.
pub enum Wanted {
    /// It is here, and stays.
    Here,
    /// To be waited for.
    Coming(ObjectId, Fetch),
    /// It cannot be had: one sentence.
    Never(String),
}

impl Coming {
    /// Waits for it.
    ///
    /// # Errors
    /// Why it could not be had.
    pub async fn come(self) -> Result<Come, String> {
        match self {
            Coming::Load(load) => load.await.map(Come::Loaded).map_err(|error| error.to_string()),
            Coming::Fetch(id, fetch) => match fetch.await {
                Ok(content) => Ok(Come::Fetched(id, content)),
                Err(error) => Err(error.to_string()),
            },
        }
    }
}

/// What a worker keeps and fetches objects with.
#[derive(Debug)]
pub struct ObjectOptions {
    /// A directory of this worker alone.
    pub directory: PathBuf,
    /// Bytes of objects in memory.
    pub memory_bytes_max: u64,
    /// Where peers are answered.
    pub peer_address: SocketAddr,
    /// Name of this host.
    pub host: String,
    /// Directory of programs that are there already, each named by its digest.
    pub executables: Option<PathBuf>,
    /// Peers are answered and asked over TLS.
    pub tls: Option<(Arc<rustls::ServerConfig>, PeerDialer)>,
    /// Whether peers on this host are handed memory instead of bytes.
    pub short_cuts: bool,
}

/// See the module.
pub struct Objects {
    store: Store,
    fetcher: Fetcher,
    server: PeerServer,
    sources: Sources,
    /// By group and index: what is kept here of it.
    here: FxHashMap<(u32, u32), ObjectId>,
    programs: Arc<Programs>,
    remote: Arc<Remote>,
}

impl Objects {
    /// Opens the store and begins to answer peers, which are told to come later until the scheduler has said its key.
    ///
    /// # Errors
    /// The directory or the address cannot be had.
    pub fn start(options: ObjectOptions) -> io::Result<Self> {
        let spill = options.directory.join("objects");
        let store = Store::open(StoreOptions::new(&spill, options.memory_bytes_max))?;
        let (serve, dial) = options.tls.unzip();
        let short_cut = options.short_cuts;
        let sources = Sources::default();
        let remote =
            Arc::new(Remote::start(options.directory.join("runs"), sources.clone(), options.host.clone(), dial.clone())?);
        let files = Some(remote.files().clone());
        let serving = ServerOptions { threads: 1, tls: serve, files, short_cut, ..ServerOptions::new(options.peer_address) };
        let server = PeerServer::start(serving, store.clone())?;
        let fetching = FetcherOptions { host: options.host, tls: dial, short_cut, ..FetcherOptions::new(store.pool().clone()) };
        let fetcher = Fetcher::start(fetching)?;
        let programs = Arc::new(Programs {
            local: Local::new(options.executables),
            directory: options.directory.join("executables"),
            fetcher: fetcher.clone(),
            sources: sources.clone(),
            blobs: Mutex::default(),
        });
        Ok(Objects { store, fetcher, server, sources, here: FxHashMap::default(), programs, remote })
    }

    /// Where peers are answered.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Files of runs whose directory is not here.
    pub fn remote(&self) -> &Arc<Remote> {
        &self.remote
    }

    /// Finds programs, for helpers.
    pub fn programs(&self) -> Arc<dyn Executables> {
        self.programs.clone()
    }

    /// The scheduler has said its key and where its output store is.
    pub fn welcome(&mut self, key: &[u8], store_address: &str) {
        let key = ObjectKey::from_slice(key);
        if let Some(key) = &key {
            self.server.set_key(key.clone());
        }
        self.sources.welcome(key, store_address);
    }

    /// A peer is there, or has moved.
    pub fn peer(&mut self, peer: u32, address: String, host: String) {
        self.sources.peers().introduce(peer, Holder { address, host });
    }

    /// Keeps a result that a host has passed.
    ///
    /// # Errors
    /// One sentence: there are too many.
    pub fn put(&mut self, id: ObjectId, content: Content) -> Result<(), String> {
        // An earlier attempt's is nobody's any more.
        self.drop_element(id.group, id.index);
        self.store.insert(id, content, Keep::Origin).map_err(|error| error.to_string())?;
        self.here.insert((id.group, id.index), id);
        Ok(())
    }

    /// Keeps a copy of an object that was fetched, so that the next call that reads it finds it here.
    pub fn copied(&mut self, id: ObjectId, content: Content) -> io::Result<Found> {
        self.here.insert((id.group, id.index), id);
        match self.store.insert(id, content.clone(), Keep::Replica) {
            Ok(pinned) => self.found(pinned),
            // It can be read all the same.
            Err(_) => self.keep(None, content),
        }
    }

    /// An object that is here, as a call reads it.
    ///
    /// # Errors
    /// There is no shared memory left.
    pub fn found(&self, pinned: Pinned) -> io::Result<Found> {
        let content = pinned.content().clone();
        self.keep(Some(pinned), content)
    }

    fn keep(&self, pinned: Option<Pinned>, content: Content) -> io::Result<Found> {
        if content.as_fd().is_none() && content.len() <= INLINE_BYTES_MAX as u64 {
            return Ok(Found::Here(content.bytes()?));
        }
        let content = content.to_shared(self.store.pool())?;
        Ok(Found::Kept(Arc::new(Kept { _pinned: pinned, content })))
    }

    /// Looks for an object that a call reads.
    pub fn look(&self, run: u32, object: &ObjectRef) -> Looked {
        if !object.inline.is_empty() || object.size == 0 {
            return Looked::Found(Found::Here(object.inline.clone()));
        }
        let run = object.capability.as_ref().map_or(run, |capability| capability.run);
        let id = ObjectId { run, group: object.group, index: object.index, attempt: object.attempt };
        match self.store.get(id) {
            Lookup::Here(pinned) => match self.found(pinned) {
                Ok(found) => Looked::Found(found),
                Err(error) => Looked::Missing(error.to_string()),
            },
            Lookup::OnDisk => Looked::Coming(Coming::Load(self.store.load(id))),
            Lookup::Gone => match self.fetch(id, object) {
                Ok(fetch) => Looked::Coming(Coming::Fetch(id, fetch)),
                Err(why) => Looked::Missing(why),
            },
        }
    }

    /// Looks for an object that is to be kept here. A copy that a call has brought is one that stays from here on.
    pub fn want(&mut self, object: &ObjectRef) -> Wanted {
        let Some(run) = object.capability.as_ref().map(|capability| capability.run) else {
            return Wanted::Never("the scheduler gave no right to fetch it".to_owned());
        };
        let id = ObjectId { run, group: object.group, index: object.index, attempt: object.attempt };
        if object.size == 0 || self.store.keep(id) {
            return Wanted::Here;
        }
        match self.fetch(id, object) {
            Ok(fetch) => Wanted::Coming(id, fetch),
            Err(why) => Wanted::Never(why),
        }
    }

    fn fetch(&self, id: ObjectId, object: &ObjectRef) -> Result<Fetch, String> {
        let holders = self.sources.peers().holders(&object.holders);
        if holders.is_empty() {
            return Err(format!("{id} is not here and nobody is known to have it"));
        }
        let shown = object.capability.as_ref().and_then(|shown| Capability::from_parts(shown.expires_ms, &shown.mac));
        let own = || self.sources.key().map(|key| key.grant(id.into(), now_ms() + GRANT_MS));
        let Some(capability) = shown.or_else(own) else {
            return Err(format!("{id} may not be fetched: the scheduler gave no right to"));
        };
        let request = FetchRequest { key: id.into(), size: object.size, holders, capability };
        Ok(self.fetcher.fetch(request))
    }

    /// Nobody needs this element's object any more.
    pub fn drop_element(&mut self, group: u32, index: u32) {
        if let Some(id) = self.here.remove(&(group, index)) {
            self.store.drop_object(id);
        }
    }

    /// Nobody needs anything of these runs any more.
    pub fn drop_runs(&mut self, runs: &[u32]) {
        self.here.retain(|_, id| !runs.contains(&id.run));
        self.store.drop_all(|key| matches!(key, Key::Object(id) if runs.contains(&id.run)));
    }

    /// Nobody needs anything any more.
    pub fn clear(&mut self) {
        self.here.clear();
        self.sources.peers().clear();
        self.store.drop_all(|_| true);
    }

    /// Fills in a heartbeat's figures.
    pub fn tell(&self, heartbeat: &mut Heartbeat) {
        let usage = self.store.usage();
        (heartbeat.stored_bytes, heartbeat.spilled_bytes) = (usage.memory_bytes, usage.spilled_bytes);
    }

    /// Says whenever the store is pressed harder or less.
    pub fn pressure(&self) -> tokio::sync::watch::Receiver<Pressure> {
        self.store.pressure()
    }
}

/// Programs on this machine, else from the scheduler's output store.
struct Programs {
    local: Local,
    directory: PathBuf,
    fetcher: Fetcher,
    sources: Sources,
    /// Opened when the first program is fetched.
    blobs: Mutex<Option<BlobDirectory>>,
}

impl Executables for Programs {
    fn find(&self, wanted: &Executable) -> Result<PathBuf, String> {
        let why = match self.local.find(wanted) {
            Ok(path) => return Ok(path),
            Err(why) => why,
        };
        let (Some((key, address)), Some(digest)) = (self.sources.store(), Digest::from_slice(&wanted.digest)) else {
            return Err(why);
        };
        self.fetch(wanted, digest, &key, address.clone())
            .map_err(|error| format!("{why}; and it could not be fetched from the scheduler's store at {address}: {error}"))
    }
}

impl Programs {
    fn fetch(&self, wanted: &Executable, digest: Digest, key: &ObjectKey, address: String) -> Result<PathBuf, String> {
        let words = |error: io::Error| format!("{}: {error}", self.directory.display());
        let path = self.directory.join(digest.to_hex());
        if is_executable(&path) {
            return Ok(path);
        }
        let blobs = {
            let mut opened = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
            match &*opened {
                Some(blobs) => blobs.clone(),
                None => opened.insert(BlobDirectory::open(&self.directory, PROGRAMS_BYTES_MAX).map_err(words)?).clone(),
            }
        };
        let request = FetchRequest {
            key: digest.into(),
            size: wanted.size.min(EXECUTABLE_BYTES_MAX),
            holders: vec![Holder { address, host: String::new() }],
            capability: key.grant(digest.into(), now_ms() + GRANT_MS),
        };
        let content = self.fetcher.fetch(request).wait().map_err(|error| error.to_string())?;
        let path = blobs.put(digest, &content).map_err(|error| error.to_string())?;
        // The content was checked against its digest: from here on it may be executed.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).map_err(words)?;
        Ok(path)
    }
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o100 != 0)
}
