//! Runs whose directory this worker does not see. What their attempts read is brought here before they start: files beside the manifest
//! from the scheduler's store, outputs of other tasks from the workers that hold them or from that store. What they make stays here as
//! content that others fetch by its digest, until the scheduler's store has it and nobody reads it any more.
//!
//! Such a run has a directory of its own below the agent's, laid out as the run's directory is (`layout.rs`), so that staging and
//! publishing are the same in both cases. Everything here may wait for a disk or a network: it is for helper threads.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use rustc_hash::FxHashSet;
use scalable_core::messages::OutcomeClass;
use scalable_proto::v1::{LogReport, ObjectRef, OutputKind, OutputReport};
use scalable_store::{
    Digest, Fetcher, FetcherOptions, FileError, FileFetch, FileIndex, FileRequest, GRANT_MS, Holder, SegmentPool, Tree, TreeNode,
    TreeRequest, fetch_tree, now_ms,
};
use scalable_tls::PeerDialer;

use crate::catalog::Group;
use crate::content::{TREE_DEPTH_MAX, digest_file};
use crate::layout::{self, Place};
use crate::sources::Sources;

/// Files of one tree that are asked for at once.
const FILES_AHEAD: usize = 32;

/// Why an attempt's inputs are not here.
#[derive(Debug)]
pub struct Unready {
    /// The class of its end.
    pub class: OutcomeClass,
    /// One sentence.
    pub message: String,
    /// Objects that no holder gave.
    pub missing: Vec<ObjectRef>,
}

impl From<String> for Unready {
    fn from(message: String) -> Self {
        Unready { class: OutcomeClass::InfraStart, message, missing: Vec::new() }
    }
}

/// A file or directory that goes one day.
#[derive(Clone, Debug)]
pub struct Leaving {
    path: PathBuf,
    /// What of it is served to peers, if that is known: else it is looked for among all that is.
    served: Option<Vec<(Digest, PathBuf)>>,
}

impl Leaving {
    /// Everything at or below a path.
    pub fn below(path: PathBuf) -> Self {
        Leaving { path, served: None }
    }

    /// It lies in this directory.
    pub fn is_below(&self, directory: &Path) -> bool {
        self.path.starts_with(directory)
    }

    /// A log of the attempt at `at`.
    pub fn log(at: &Place, log: &LogReport) -> Self {
        let path = at.log(&log.stream);
        let served = Digest::from_slice(&log.digest).map(|digest| vec![(digest, path.clone())]);
        Leaving { path, served }
    }

    /// The outputs of the attempt at `at`. Of trees it is not kept what is in them.
    pub fn outputs(group: &Group, at: &Place, outputs: &[OutputReport]) -> Self {
        let path = at.objects();
        let held = group.template.outputs.iter().zip(outputs).filter(|(_, report)| report.held);
        let served = held.map(|(output, report)| match output.kind() {
            OutputKind::File => Digest::from_slice(&report.digest).map(|digest| (digest, path.join(&report.name))),
            OutputKind::Dir | OutputKind::List => None,
        });
        let served = served.collect();
        Leaving { path, served }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Remote {
    root: PathBuf,
    /// Directories of one session are not those of the next.
    generation: AtomicU64,
    files: FileIndex,
    fetcher: Fetcher,
    sources: Sources,
    /// What somebody brings now.
    coming: Mutex<FxHashSet<PathBuf>>,
    came: Condvar,
}

impl Remote {
    /// With directories below `root`, from `sources`; `host` is this host's name; `tls` is how peers and the scheduler's store are dialled, if by TLS.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(root: PathBuf, sources: Sources, host: String, tls: Option<PeerDialer>) -> io::Result<Self> {
        let options = FetcherOptions { host, tls, connections_per_peer: 4, ..FetcherOptions::new(SegmentPool::new(0)) };
        Ok(Remote {
            root,
            generation: AtomicU64::new(0),
            files: FileIndex::new(),
            fetcher: Fetcher::start(options)?,
            sources,
            coming: Mutex::default(),
            came: Condvar::new(),
        })
    }

    /// Contents that peers may fetch.
    pub fn files(&self) -> &FileIndex {
        &self.files
    }

    /// Where the run of this name lies here.
    pub fn directory(&self, run: &str) -> PathBuf {
        self.root.join(self.generation.load(Ordering::Relaxed).to_string()).join(run)
    }

    /// A new session: nothing of the old one is wanted any more. Returns what is to be removed by a helper.
    pub fn begin_anew(&self) -> PathBuf {
        self.sources.peers().clear();
        self.root.join(self.generation.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Removes these and serves nothing of them any more. What cannot be removed lies among the agent's own files.
    pub fn remove(&self, leaving: &[Leaving]) {
        let unknown: Vec<&Path> = leaving.iter().filter(|one| one.served.is_none()).map(|one| one.path.as_path()).collect();
        self.files.remove_below(&unknown);
        for (digest, path) in leaving.iter().flat_map(|one| one.served.iter().flatten()) {
            self.files.remove(*digest, path);
        }
        for Leaving { path, .. } in leaving {
            let removed = match fs::symlink_metadata(path) {
                Ok(found) if found.is_dir() => crate::content::remove_tree(path),
                Ok(_) => fs::remove_file(path),
                Err(_) => Ok(()),
            };
            if let Err(error) = removed {
                tracing::warn!(path = %path.display(), %error, "what a run has left here could not be removed");
            }
        }
    }

    /// Brings everything that an attempt reads and that is not here.
    ///
    /// # Errors
    /// What is missing, or what the disk said.
    pub fn bring(&self, group: &Group, objects: &[Vec<ObjectRef>]) -> Result<(), Unready> {
        let directory = group.run.directory();
        if !group.run.is_shared() {
            self.bring_files(group, directory)?;
        }
        let template = &group.template;
        let sources = template.inputs.iter().map(|input| input.source.as_ref()).chain([template.stdin.as_ref()]);
        let mut missing = Vec::new();
        for (ordinal, source) in sources.enumerate() {
            let (Some(source), Some(objects)) = (source, objects.get(ordinal)) else { continue };
            let upstream = group.run.groups.get(source.group as usize).map_or("", String::as_str);
            let upstream = layout::name("group", upstream).map_err(|error| Unready::from(error.to_string()))?;
            let output = layout::name("output", &source.output).map_err(|error| Unready::from(error.to_string()))?;
            let mut ahead = Ahead::new(self);
            for object in objects.iter().filter(|object| object.attempt > 0 && object.held) {
                let target = layout::objects(directory, upstream, object.index, object.attempt).join(output);
                ahead.object(object, target, &mut missing)?;
            }
            ahead.finish(&mut missing)?;
        }
        if let Some((_, why)) = missing.first() {
            let message = format!("{} of the outputs it reads could not be had: {why}", missing.len());
            let missing = missing.into_iter().map(|(object, _)| object).collect();
            return Err(Unready { class: OutcomeClass::InputLost, message, missing });
        }
        Ok(())
    }

    fn bring_files(&self, group: &Group, directory: &Path) -> Result<(), Unready> {
        for file in &group.template.files {
            let digest = Digest::from_slice(&file.digest)
                .ok_or_else(|| Unready::from(format!("`{}` has a digest of {} bytes", file.path, file.digest.len())))?;
            let target = layout::content(directory, &file.digest);
            let store = self.sources.store();
            let (_, address) = store.ok_or_else(|| "the scheduler has said no place from which files come".to_owned())?;
            let holders = vec![Holder { address, host: String::new() }];
            self.one(digest, file.size, holders, &target).map_err(|error| match error {
                FileError::Disk { .. } => disk(&error),
                other => {
                    let message = format!("`{}` could not be had from the scheduler's store: {other}", file.path);
                    Unready { class: OutcomeClass::InfraStart, message, missing: Vec::new() }
                }
            })?;
        }
        Ok(())
    }

    /// Brings one file, unless it is here or somebody brings it already.
    fn one(&self, digest: Digest, size: u64, holders: Vec<Holder>, target: &Path) -> Result<(), FileError> {
        let _claim = self.claim(target);
        if fs::symlink_metadata(target).is_ok() {
            return Ok(());
        }
        let part = part_of(target);
        self.ask(digest, size, holders, &part)?.wait()?;
        settle_file(&part, target, 0o444)
    }

    fn ask(&self, digest: Digest, size: u64, holders: Vec<Holder>, part: &Path) -> Result<FileFetch, FileError> {
        if let Some(parent) = part.parent() {
            fs::create_dir_all(parent).map_err(|error| FileError::Disk { path: parent.to_owned(), error })?;
        }
        let Some(key) = self.sources.key() else { return Err(FileError::Stopped) };
        let capability = key.grant(digest.into(), now_ms() + GRANT_MS);
        Ok(self.fetcher.fetch_file(FileRequest { digest, size, holders, capability, part: part.to_owned() }))
    }

    fn holders(&self, object: &ObjectRef) -> Vec<Holder> {
        let mut holders = self.sources.peers().holders(&object.holders);
        if object.stored
            && let Some((_, address)) = self.sources.store()
        {
            holders.push(Holder { address, host: String::new() });
        }
        holders
    }

    /// The right to bring what is to be at `target`: one at a time.
    fn claim<'a>(&'a self, target: &'a Path) -> Claim<'a> {
        let mut coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
        while !coming.insert(target.to_owned()) {
            coming = self.came.wait(coming).unwrap_or_else(PoisonError::into_inner);
        }
        Claim { remote: self, target }
    }

    /// A tree: its manifest, then its files, in a directory beside its place.
    fn tree(&self, object: &ObjectRef, target: &Path) -> Result<(), FileError> {
        let _claim = self.claim(target);
        if fs::symlink_metadata(target).is_ok() {
            return Ok(());
        }
        let disk = |path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| FileError::Disk { path, error }
        };
        let manifest = Digest::from_slice(&object.manifest);
        let manifest = manifest.ok_or_else(|| disk(target)(io::Error::other("its manifest has no digest")))?;
        let key = self.sources.key().ok_or(FileError::Stopped)?;
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(disk(parent))?;
        }
        let part = part_of(target);
        let request = TreeRequest {
            manifest,
            manifest_size: object.manifest_size,
            holders: self.holders(object),
            manifest_path: &layout::tree_manifest(target),
            part: &part,
        };
        fetch_tree(&self.fetcher, &request, |digest| key.grant(digest.into(), now_ms() + GRANT_MS))?;
        if object.kind() == OutputKind::List
            && let Some(mark) = layout::list_mark(target)
        {
            fs::File::create(&mark).map_err(disk(&mark))?;
        }
        fs::rename(&part, target).map_err(disk(target))
    }

    /// What an attempt has published stays here to be fetched: adds to its reports what others need for that.
    ///
    /// # Errors
    /// The outputs cannot be read or the manifest of a tree not be written.
    pub fn hold(&self, group: &Group, at: &Place, outputs: &mut [OutputReport]) -> Result<(), String> {
        let objects = at.objects();
        for (output, report) in group.template.outputs.iter().zip(outputs).filter(|(_, report)| report.written) {
            let path = objects.join(&report.name);
            report.held = true;
            if output.kind() == OutputKind::File {
                report.executable = fs::symlink_metadata(&path).is_ok_and(|found| found.permissions().mode() & 0o111 != 0);
                if let Some(digest) = Digest::from_slice(&report.digest) {
                    self.files.add(digest, path);
                }
                continue;
            }
            let tree = Tree::scan(&path).map_err(|error| format!("output `{}` cannot be read again: {error}", report.name))?;
            if tree.entries().any(|(path, _)| path.iter().filter(|byte| **byte == b'/').count() > TREE_DEPTH_MAX) {
                return Err(format!("output `{}` is deeper than {TREE_DEPTH_MAX} levels", report.name));
            }
            if let Some((path, _)) = tree.entries().find(|(path, _)| !output.discard && std::str::from_utf8(path).is_err()) {
                let shown = String::from_utf8_lossy(path);
                return Err(format!(
                    "output `{}` has a file whose name is not UTF-8: {shown:?}; give it another name",
                    report.name
                ));
            }
            let encoded = tree.encode();
            let manifest = layout::tree_manifest(&path);
            fs::write(&manifest, &encoded).map_err(|error| format!("{}: {error}", manifest.display()))?;
            let digest = Digest::of(&encoded);
            report.manifest = digest.0.to_vec().into();
            report.manifest_size = encoded.len() as u64;
            self.files.add(digest, manifest);
            for (below, node) in tree.entries() {
                if let TreeNode::File { digest, .. } = node {
                    self.files.add(*digest, path.join(OsStr::from_bytes(below)));
                }
            }
        }
        Ok(())
    }

    /// What an attempt has written to its streams, to be fetched. A log that cannot be read is not reported.
    pub fn hold_logs(&self, at: &Place) -> Vec<LogReport> {
        let log = |stream: &str| {
            let path = at.log(stream);
            let (digest, size) = digest_file(&path).ok()?;
            self.files.add(Digest(digest), path);
            Some(LogReport { stream: stream.to_owned(), digest: digest.to_vec().into(), size })
        };
        ["stdout", "stderr"].into_iter().filter_map(log).collect()
    }
}

struct Claim<'a> {
    remote: &'a Remote,
    target: &'a Path,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.remote.coming.lock().unwrap_or_else(PoisonError::into_inner).remove(self.target);
        self.remote.came.notify_all();
    }
}

/// Objects of one input: files are asked for ahead of each other, trees one by one.
struct Ahead<'a> {
    remote: &'a Remote,
    asked: VecDeque<(ObjectRef, PathBuf)>,
    fetches: VecDeque<FileFetch>,
    parts: VecDeque<PathBuf>,
}

impl<'a> Ahead<'a> {
    fn new(remote: &'a Remote) -> Self {
        Ahead { remote, asked: Default::default(), fetches: Default::default(), parts: Default::default() }
    }

    fn object(&mut self, object: &ObjectRef, target: PathBuf, missing: &mut Vec<(ObjectRef, String)>) -> Result<(), Unready> {
        if fs::symlink_metadata(&target).is_ok() {
            return Ok(());
        }
        if object.kind() != OutputKind::File {
            return note(object, self.remote.tree(object, &target), missing);
        }
        let Some(digest) = Digest::from_slice(&object.digest) else {
            missing.push((bare(object), "it has no digest".to_owned()));
            return Ok(());
        };
        // Not claimed: two that bring the same at once have parts of their own, and the second replaces the first by the same bytes.
        let part = unique_part_of(&target);
        match self.remote.ask(digest, object.size, self.remote.holders(object), &part) {
            Ok(fetch) => {
                self.asked.push_back((object.clone(), target));
                self.fetches.push_back(fetch);
                self.parts.push_back(part);
            }
            Err(error) => return note(object, Err(error), missing),
        }
        if self.fetches.len() >= FILES_AHEAD { self.next(missing) } else { Ok(()) }
    }

    fn next(&mut self, missing: &mut Vec<(ObjectRef, String)>) -> Result<(), Unready> {
        let (Some((object, target)), Some(fetch), Some(part)) =
            (self.asked.pop_front(), self.fetches.pop_front(), self.parts.pop_front())
        else {
            return Ok(());
        };
        let mode = if object.executable { 0o555 } else { 0o444 };
        let came = fetch.wait().and_then(|()| settle_file(&part, &target, mode));
        if came.is_err() {
            // What is there of it is worth nothing to the next attempt, which may be told of another digest.
            let _ = fs::remove_file(&part);
        }
        note(&object, came, missing)
    }

    fn finish(mut self, missing: &mut Vec<(ObjectRef, String)>) -> Result<(), Unready> {
        while !self.fetches.is_empty() {
            self.next(missing)?;
        }
        Ok(())
    }
}

/// A disk that refuses is this worker's trouble; anything else says that the object is not to be had.
fn note(object: &ObjectRef, came: Result<(), FileError>, missing: &mut Vec<(ObjectRef, String)>) -> Result<(), Unready> {
    match came {
        Ok(()) => Ok(()),
        Err(error @ FileError::Disk { .. }) => Err(disk(&error)),
        Err(error) => {
            missing.push((bare(object), error.to_string()));
            Ok(())
        }
    }
}

fn disk(error: &FileError) -> Unready {
    let full =
        matches!(error, FileError::Disk { error, .. } if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)));
    let hint = if full { "; free some space on the worker, or give it another --directory" } else { "" };
    Unready::from(format!("what it reads could not be brought here: {error}{hint}"))
}

/// An object's name without its content.
fn bare(object: &ObjectRef) -> ObjectRef {
    ObjectRef { inline: Default::default(), ..object.clone() }
}

/// Where something is put together before it has its name.
fn part_of(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.{}.part", std::process::id()))
}

fn unique_part_of(target: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.{}.{}.part", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
}

fn set_mode(path: &Path, mode: u32) -> Result<(), FileError> {
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(|error| FileError::Disk { path: path.to_owned(), error })
}

fn settle_file(part: &Path, target: &Path, mode: u32) -> Result<(), FileError> {
    set_mode(part, mode)?;
    fs::rename(part, target).map_err(|error| FileError::Disk { path: target.to_owned(), error })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_is_served_no_more_and_the_rest_is() {
        let directory = tempfile::tempdir().unwrap();
        let remote = Remote::start(directory.path().to_owned(), Sources::default(), String::new(), None).unwrap();
        let at = |index| Place { run: directory.path().to_owned(), group: "g".to_owned(), index, attempt: 1 };
        let digest = Digest::of(b"said");
        for path in [at(1).log("stdout"), at(2).log("stdout"), at(1).objects().join("tree/x"), at(2).objects().join("tree/x")] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "said").unwrap();
            remote.files().add(digest, path);
        }
        let log = LogReport { stream: "stdout".to_owned(), digest: digest.0.to_vec().into(), size: 4 };
        let (log, tree) = (Leaving::log(&at(1), &log), Leaving::below(at(1).objects()));
        assert!(tree.is_below(directory.path()) && !tree.is_below(&at(2).objects()));
        remote.remove(&[log, tree]);
        assert!(!at(1).log("stdout").exists() && !at(1).objects().exists());
        assert!(at(2).log("stdout").exists() && at(2).objects().join("tree/x").exists());
        assert!(remote.files().open(digest).unwrap().is_some());
        remote.files().remove(digest, &at(2).log("stdout"));
        remote.files().remove(digest, &at(2).objects().join("tree/x"));
        assert!(remote.files().is_empty(), "no place of the first attempt is left");
    }
}
