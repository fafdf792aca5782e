//! The scheduler's output store: what attempts have made on workers that do not see their run's directory is copied into it, by threads of
//! its own. Nothing of it passes the reactor, which says what is to be copied and hears what came of it.
//!
//! A copy is put together beside its place, checked against its digest, and then has its name; one that was cut goes on where it was.
//! Dependants do not wait for it. At 90 % of the store's limit what does not fit waits until there is room: nothing is dropped, and
//! whoever holds it keeps it.

mod copy;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustc_hash::{FxHashMap, FxHashSet};
use scalable_core::ids::{RunId, TaskRef};
use scalable_proto::v1;
use scalable_store::{
    Digest, FetchMetrics, Fetcher, FetcherOptions, FileError, FileIndex, FileRequest, GRANT_MS, Holder, ObjectKey, SegmentPool,
    TreeRequest, fetch_tree, now_ms,
};
use scalable_tls::PeerDialer;
use tokio::sync::mpsc;

pub use self::copy::{Copy, CopyOutput, Told, Usage};
use crate::records::link_tree;

/// Threads that copy. Each waits for one output at a time; a tree's files travel side by side.
const THREADS: usize = 4;
/// Of the limit, in hundredths, from which on nothing more is taken: the rest is for records and what is counted late.
const FULL_PERCENT: u64 = 90;

/// Digests of logs that are kept for each run, about 100 bytes each.
const LOG_DIGESTS_MAX: usize = 100_000;

/// The list of a run's files.
pub(crate) type Files = Arc<Vec<v1::RunFile>>;

/// What there is of it.
#[derive(Debug)]
pub(crate) enum Listing {
    /// No run of that name.
    Unknown,
    /// The run is not over.
    Open,
    /// Somebody makes the list, or still writes to the run's directory.
    Busy,
    /// Whoever reads this makes it, of the files in this directory.
    Make(RunId, PathBuf),
    /// It could not be made; the next one who asks makes it.
    Failed(String),
    /// Here it is.
    Made(Files),
}

#[derive(Default)]
struct StoredRun {
    name: String,
    directory: PathBuf,
    /// Nothing more is copied there.
    ended: bool,
    /// It is recorded. Together with `busy` 0: nothing is written there any more.
    complete: bool,
    /// Nobody knows it any more: whoever is busy there last removes it.
    forgotten: bool,
    /// Threads that copy to it or make its list now.
    busy: u32,
    files: Option<Files>,
    /// Why there is no list, for the next who asks.
    unlisted: Option<String>,
    /// Digests of logs that somebody has asked for, by their names below `logs`: at most [`LOG_DIGESTS_MAX`], others are made again.
    log_digests: FxHashMap<String, Digest>,
    bytes: u64,
    /// The scheduler has chosen the directory: it is removed with the run.
    own: bool,
}

#[derive(Default)]
struct State {
    runs: FxHashMap<RunId, StoredRun>,
    queue: VecDeque<Box<Copy>>,
    parked: VecDeque<Box<Copy>>,
    bytes: u64,
}

impl State {
    /// Nothing more of a run is copied: what waits is dropped, and what is being copied stops before its next file.
    fn end(&mut self, run: RunId) {
        if let Some(run) = self.runs.get_mut(&run) {
            run.ended = true;
        }
        self.queue.retain(|copy| copy.run != run);
        self.parked.retain(|copy| copy.run != run);
    }

    /// Takes a run that was forgotten, when nobody is busy in its directory.
    fn take_forgotten(&mut self, run: RunId) -> Option<StoredRun> {
        self.runs.get(&run).filter(|run| run.forgotten && run.busy == 0)?;
        self.runs.remove(&run)
    }
}

struct Shared {
    state: Mutex<State>,
    /// Something is to be copied.
    wake: Condvar,
    /// Somebody is busy with a run no more.
    left: Condvar,
    limit: u64,
    files: FileIndex,
    fetcher: Fetcher,
    key: ObjectKey,
    told: mpsc::UnboundedSender<Told>,
}

/// See the module. Cheap to clone; all clones are one. Its threads end with the process.
#[derive(Clone)]
pub struct OutputStore(Arc<Shared>);

impl OutputStore {
    /// Starts its threads. `files` is what the scheduler's store serves to peers, `limit` what outputs and logs may take, `tls` how workers
    /// are dialled, if by TLS. The second value says what came of each copy.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        files: FileIndex,
        key: ObjectKey,
        limit: u64,
        tls: Option<PeerDialer>,
    ) -> io::Result<(Self, mpsc::UnboundedReceiver<Told>)> {
        let (told, receiver) = mpsc::unbounded_channel();
        let fetcher =
            Fetcher::start(FetcherOptions { connections_per_peer: 4, tls, ..FetcherOptions::new(SegmentPool::new(0)) })?;
        let (state, wake, left) = Default::default();
        let shared = Arc::new(Shared { state, wake, left, limit, files, fetcher, key, told });
        for number in 0..THREADS {
            let shared = shared.clone();
            std::thread::Builder::new().name(format!("outputs-{number}")).spawn(move || shared.work())?;
        }
        Ok((OutputStore(shared), receiver))
    }

    /// A run begins in this directory; `files` lie in its `files/` and are served from there. `own`: the directory goes with the run.
    pub fn begin(&self, run: RunId, name: &str, directory: PathBuf, files: impl IntoIterator<Item = Digest>, own: bool) {
        for digest in files {
            self.0.files.add(digest, directory.join("files").join(digest.to_hex()));
        }
        let stored = StoredRun { name: name.to_owned(), directory, own, ..StoredRun::default() };
        self.0.lock().runs.insert(run, stored);
    }

    /// Nothing more of the run is copied. What a thread copies at this moment stops before its next file.
    pub fn end(&self, run: RunId) {
        self.0.lock().end(run);
    }

    /// The run is over and recorded: its files can be listed when nobody is busy with it any more.
    pub fn complete(&self, run: RunId) {
        let mut state = self.0.lock();
        state.end(run);
        if let Some(run) = state.runs.get_mut(&run) {
            run.complete = true;
        }
    }

    /// What there is of the list of a run's files. While somebody is busy with the run, that is waited for until then. Who is told to make
    /// the list says with [`OutputStore::listed`] what came of it, in any case.
    pub(crate) fn listing(&self, name: &str, until: Instant) -> Listing {
        let mut state = self.0.lock();
        loop {
            let run = state.runs.iter_mut().find(|(_, run)| run.name == name && !run.forgotten);
            let Some((id, run)) = run else { return Listing::Unknown };
            if !run.complete {
                return Listing::Open;
            }
            if let Some(files) = &run.files {
                return Listing::Made(files.clone());
            }
            if let Some(why) = run.unlisted.take() {
                return Listing::Failed(why);
            }
            if run.busy == 0 {
                run.busy = 1;
                return Listing::Make(*id, run.directory.clone());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Listing::Busy;
            }
            state = self.0.left.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The list of a run's files, or why there is none.
    pub(crate) fn listed(&self, run: RunId, files: Result<Vec<v1::RunFile>, String>) {
        self.0.leave(run, |run| match files {
            Ok(files) => run.files = Some(Arc::new(files)),
            Err(why) => run.unlisted = Some(why),
        });
    }

    /// A run whose logs are to be listed, its directory, and whether it is over. Its directory stays until [`OutputStore::logs_read`].
    pub(crate) fn reading_logs(&self, name: &str) -> Option<(RunId, PathBuf, bool)> {
        let mut state = self.0.lock();
        let (id, run) = state.runs.iter_mut().find(|(_, run)| run.name == name && !run.forgotten)?;
        run.busy += 1;
        Some((*id, run.directory.clone(), run.complete))
    }

    /// The logs were listed.
    pub(crate) fn logs_read(&self, run: RunId) {
        self.0.leave(run, |_| {});
    }

    /// The digest of a log, where it was asked for before: what has its name is whole and never changes.
    pub(crate) fn log_digest(&self, run: RunId, name: &str) -> Option<Digest> {
        self.0.lock().runs.get(&run)?.log_digests.get(name).copied()
    }

    /// Keeps the digest of a log.
    pub(crate) fn keep_log_digest(&self, run: RunId, name: &str, digest: Digest) {
        if let Some(run) = self.0.lock().runs.get_mut(&run)
            && run.log_digests.len() < LOG_DIGESTS_MAX
        {
            run.log_digests.insert(name.to_owned(), digest);
        }
    }

    /// What is served to peers from where it lies.
    pub(crate) fn index(&self) -> &FileIndex {
        &self.0.files
    }

    /// What rights to fetch are made with.
    pub(crate) fn key(&self) -> &ObjectKey {
        &self.0.key
    }

    /// Copies this as soon as a thread is free.
    pub fn copy(&self, copy: Box<Copy>) {
        self.0.lock().queue.push_back(copy);
        self.0.wake.notify_one();
    }

    /// These attempts' copies are not wanted any more. One that a thread carries out now goes on.
    pub fn give_up(&self, attempts: &FxHashSet<(TaskRef, u32)>) {
        if attempts.is_empty() {
            return;
        }
        let mut state = self.0.lock();
        state.queue.retain(|copy| !attempts.contains(&(copy.task, copy.attempt)));
        state.parked.retain(|copy| !attempts.contains(&(copy.task, copy.attempt)));
    }

    /// The run is forgotten: nothing of it is served, and what is the scheduler's own of it is removed, by whoever is busy
    /// with it, if somebody is. Blocks on the disk.
    pub fn forget(&self, run: RunId) {
        let mut state = self.0.lock();
        state.end(run);
        if let Some(run) = state.runs.get_mut(&run) {
            run.forgotten = true;
        }
        let forgotten = state.take_forgotten(run);
        drop(state);
        if let Some(run) = forgotten {
            self.0.remove(&run);
        }
    }

    /// How full it is.
    pub fn usage(&self) -> Usage {
        let state = self.0.lock();
        Usage { bytes: state.bytes, limit: self.0.limit, waiting: state.parked.len() as u64 }
    }

    /// Transfers so far.
    pub fn metrics(&self) -> FetchMetrics {
        self.0.fetcher.metrics()
    }
}

/// Why a copy did not come about.
enum Failure {
    Missing(String),
    Here(String),
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Unavailable { .. } => Failure::Missing(error.to_string()),
            _ => Failure::Here(error.to_string()),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        loop {
            let mut state = self.lock();
            let copy = loop {
                if let Some(copy) = state.queue.pop_front() {
                    break copy;
                }
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            };
            let bytes = copy.bytes();
            let full = self.limit / 100 * FULL_PERCENT;
            let fits = self.limit == u64::MAX || state.bytes.saturating_add(bytes) <= full;
            let Some(run) = state.runs.get_mut(&copy.run).filter(|run| !run.ended) else { continue };
            let (task, attempt) = (copy.task, copy.attempt);
            if !fits {
                state.parked.push_back(copy);
                drop(state);
                let _ = self.told.send(Told::Waits { task, attempt });
                continue;
            }
            let directory = run.directory.clone();
            run.busy += 1;
            // Counted before it is there, so that copies side by side cannot pass the limit together.
            state.bytes += bytes;
            drop(state);
            let done = self.carry_out(&copy, &directory);
            self.leave(copy.run, |run| run.bytes += if done.is_ok() { bytes } else { 0 });
            if done.is_err() {
                self.room(&mut self.lock(), bytes);
            }
            // Without a reactor nobody has to know; of a run that has ended it does not want to.
            let _ = self.told.send(match done {
                Ok(()) => Told::Copied { task, attempt },
                Err(Failure::Missing(why)) => Told::Failed { task, attempt, why, missing: true },
                Err(Failure::Here(why)) => Told::Failed { task, attempt, why, missing: false },
            });
        }
    }

    /// One that was busy with a run is so no more. Of a run that is forgotten the last one removes what is left.
    fn leave(&self, run: RunId, with: impl FnOnce(&mut StoredRun)) {
        let mut state = self.lock();
        if let Some(run) = state.runs.get_mut(&run) {
            run.busy -= 1;
            with(run);
        }
        let forgotten = state.take_forgotten(run);
        drop(state);
        self.left.notify_all();
        if let Some(run) = forgotten {
            self.remove(&run);
        }
    }

    /// So many bytes are free again: what did not fit may fit now.
    fn room(&self, state: &mut State, bytes: u64) {
        state.bytes = state.bytes.saturating_sub(bytes);
        let parked = std::mem::take(&mut state.parked);
        state.queue.extend(parked);
        self.wake.notify_all();
    }

    /// Nothing of a forgotten run is served or kept.
    fn remove(&self, run: &StoredRun) {
        self.files.remove_below(&[&run.directory]);
        if run.own
            && let Err(error) = fs::remove_dir_all(&run.directory)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(directory = %run.directory.display(), %error, "the directory of a run that was fetched could not be removed");
        }
        self.room(&mut self.lock(), run.bytes);
    }

    /// Refuses when the run has ended meanwhile: what is fetched for it is read by nobody.
    fn wanted(&self, run: RunId) -> Result<(), Failure> {
        match self.lock().runs.get(&run).is_some_and(|run| !run.ended) {
            true => Ok(()),
            false => Err(Failure::Here("its run is over".to_owned())),
        }
    }

    fn carry_out(&self, copy: &Copy, directory: &Path) -> Result<(), Failure> {
        for log in &copy.logs {
            self.wanted(copy.run)?;
            let stream = if log.stream == "stdout" { "stdout" } else { "stderr" };
            let name = format!("{}.{}.{stream}", copy.task.index, copy.attempt);
            let target = directory.join("logs").join(&copy.group).join(name);
            self.file(&log.digest, log.size, &copy.holders, &target, 0o644)?;
        }
        let mut objects = directory.join("objects").join(&copy.group);
        objects.extend([copy.task.index.to_string(), copy.attempt.to_string()]);
        for output in &copy.outputs {
            self.wanted(copy.run)?;
            let (object, published) = (objects.join(&output.name), directory.join(&copy.published).join(&output.name));
            match output.kind {
                v1::OutputKind::File => {
                    let mode = if output.executable { 0o555 } else { 0o444 };
                    self.file(&output.digest, output.size, &copy.holders, &object, mode)?;
                    if let Some(digest) = Digest::from_slice(&output.digest) {
                        self.files.add(digest, &published);
                    }
                }
                v1::OutputKind::Dir | v1::OutputKind::List => self.tree(output, &copy.holders, &object, &published)?,
            }
            let here = |path: &Path, error: io::Error| Failure::Here(format!("{}: {error}", path.display()));
            if let Some(parent) = published.parent() {
                fs::create_dir_all(parent).map_err(|error| here(parent, error))?;
            }
            link_tree(&object, &published).map_err(|error| here(&published, error))?;
        }
        Ok(())
    }

    fn file(&self, digest: &[u8], size: u64, holders: &[Holder], target: &Path, mode: u32) -> Result<(), Failure> {
        let here = |path: &Path, error: io::Error| Failure::Here(format!("{}: {error}", path.display()));
        let digest = Digest::from_slice(digest).ok_or_else(|| Failure::Missing("it was reported without a digest".to_owned()))?;
        if fs::symlink_metadata(target).is_ok_and(|found| found.is_file() && found.len() == size) {
            // Under its name it is whole: an attempt's files never change.
            return Ok(());
        }
        let part = beside(target, "part");
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(|error| here(parent, error))?;
        }
        let capability = self.key.grant(digest.into(), now_ms() + GRANT_MS);
        let request = FileRequest { digest, size, holders: holders.to_vec(), capability, part: part.clone() };
        self.fetcher.fetch_file(request).wait()?;
        fs::set_permissions(&part, Permissions::from_mode(mode)).map_err(|error| here(&part, error))?;
        fs::rename(&part, target).map_err(|error| here(target, error))
    }

    fn tree(&self, output: &CopyOutput, holders: &[Holder], object: &Path, published: &Path) -> Result<(), Failure> {
        let here = |path: &Path, error: io::Error| Failure::Here(format!("{}: {error}", path.display()));
        let manifest = Digest::from_slice(&output.manifest);
        let manifest = manifest.ok_or_else(|| Failure::Missing("a tree was reported without its manifest".to_owned()))?;
        let manifest_path = beside(object, "tree");
        if let Some(parent) = object.parent() {
            fs::create_dir_all(parent).map_err(|error| here(parent, error))?;
        }
        if fs::symlink_metadata(object).is_err() {
            let part = beside(object, "part");
            let request = TreeRequest {
                manifest,
                manifest_size: output.manifest_size,
                holders: holders.to_vec(),
                manifest_path: &manifest_path,
                part: &part,
            };
            let grant = |digest: Digest| self.key.grant(digest.into(), now_ms() + GRANT_MS);
            let tree = fetch_tree(&self.fetcher, &request, grant)?;
            if output.kind == v1::OutputKind::List {
                let mark = beside(object, "list");
                fs::write(&mark, b"").map_err(|error| here(&mark, error))?;
            }
            fs::rename(&part, object).map_err(|error| here(object, error))?;
            self.serve(&tree, published);
        }
        self.files.add(manifest, manifest_path);
        Ok(())
    }

    /// Workers may ask for a tree's files here too.
    fn serve(&self, tree: &scalable_store::Tree, at: &Path) {
        use std::os::unix::ffi::OsStrExt;
        for (below, node) in tree.entries() {
            if let scalable_store::TreeNode::File { digest, .. } = node {
                self.files.add(*digest, at.join(std::ffi::OsStr::from_bytes(below)));
            }
        }
    }
}

/// `.NAME.WHAT` beside a path.
fn beside(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{what}"))
}
