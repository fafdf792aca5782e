//! What a client that shares no disk with the scheduler fetches of a run: a list of its directory's files with a digest each, made once
//! the run is over. The files themselves come from the scheduler's store, as peers' do.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use scalable_core::ids::RunId;
use scalable_proto::v1;
use scalable_store::{Content, Digest, GRANT_MS, ObjectKey, now_ms};

use crate::output_store::{Listing, OutputStore};

/// Files in one reply.
const FILES_PER_REPLY_MAX: u32 = 2000;
/// A call is answered within this time, though it be without a list.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Entries of one run's list.
const FILES_MAX: usize = 8 << 20;
/// What is of no use to the client, or its own: at the top of a run's directory.
const LEFT_OUT: [&str; 5] = ["files", "objects", "attempts", "token", "scheduler"];

impl OutputStore {
    /// The files of a run after the path `after`. At the first call every file of the run is read, once, on a thread of its own; when that
    /// takes longer than a few seconds the answer is `preparing`, and whoever asks again finds it going on. Blocks.
    ///
    /// # Errors
    /// Why there is no list, in one sentence.
    pub fn list(&self, request: &v1::ListRunFilesRequest, address: &str) -> Result<v1::ListRunFilesReply, String> {
        if request.logs {
            return self.list_logs(request, address);
        }
        self.list_until(request, address, Instant::now() + ANSWER_WITHIN)
    }

    fn list_until(
        &self,
        request: &v1::ListRunFilesRequest,
        address: &str,
        until: Instant,
    ) -> Result<v1::ListRunFilesReply, String> {
        let early = |preparing| v1::ListRunFilesReply { address: address.to_owned(), preparing, ..Default::default() };
        let files = loop {
            match self.listing(&request.run, until) {
                Listing::Unknown => return Err(format!("no run `{}` is known here", request.run)),
                Listing::Open => return Ok(early(false)),
                Listing::Busy => return Ok(early(true)),
                Listing::Failed(why) => return Err(format!("the files of `{}` cannot be listed: {why}", request.run)),
                Listing::Made(files) => break files,
                Listing::Make(run, directory) => self.make_list(run, directory),
            }
        };
        let limit = limit_of(request);
        let first = files.partition_point(|file| file.path <= request.after);
        let first = if request.after.is_empty() { 0 } else { first };
        let page = files.iter().skip(first).take(limit).map(|file| granted(file, self.key())).collect();
        let more = files.len() > first + limit;
        Ok(v1::ListRunFilesReply { complete: true, address: address.to_owned(), files: page, more, preparing: false })
    }

    /// The logs that are there, of a run that may live. Whatever has a log's name is whole: it is fetched under another.
    fn list_logs(&self, request: &v1::ListRunFilesRequest, address: &str) -> Result<v1::ListRunFilesReply, String> {
        let reading = self.reading_logs(&request.run).ok_or_else(|| format!("no run `{}` is known here", request.run))?;
        let (run, directory, complete) = reading;
        let listed = self.page_of_logs(run, &directory, request);
        self.logs_read(run);
        let (files, more) = listed.map_err(|error| format!("the logs of `{}` cannot be listed: {error}", request.run))?;
        Ok(v1::ListRunFilesReply { complete, address: address.to_owned(), files, more, preparing: false })
    }

    /// Logs after the path that the request names, and whether there are more.
    fn page_of_logs(
        &self,
        run: RunId,
        directory: &Path,
        request: &v1::ListRunFilesRequest,
    ) -> io::Result<(Vec<v1::RunFile>, bool)> {
        let logs = directory.join("logs");
        let groups = names_in(&logs)?.into_iter().filter(|group| request.group.is_empty() || *group == request.group);
        let mut paths = Vec::new();
        for group in groups {
            let of_group = names_in(&logs.join(&group))?.into_iter().map(|name| format!("logs/{group}/{name}"));
            paths.extend(of_group.filter(|path| *path > request.after));
            if paths.len() > FILES_MAX {
                return Err(io::Error::other(format!("more than {FILES_MAX} files")));
            }
        }
        paths.sort_unstable();
        let limit = limit_of(request);
        let more = paths.len() > limit;
        let mut files = Vec::new();
        for path in paths.into_iter().take(limit) {
            let place = directory.join(&path);
            let metadata = fs::symlink_metadata(&place)?;
            if !metadata.is_file() {
                continue;
            }
            let digest = match self.log_digest(run, &path) {
                Some(digest) => digest,
                None => {
                    let digest = Content::from_file(fs::File::open(&place)?, metadata.len())?.digest()?;
                    self.index().add(digest, place);
                    self.keep_log_digest(run, &path, digest);
                    digest
                }
            };
            let mode = metadata.permissions().mode() & 0o777;
            let file = v1::RunFile { path, size: metadata.len(), mode, digest: digest.0.to_vec().into(), ..Default::default() };
            files.push(granted(&file, self.key()));
        }
        Ok((files, more))
    }

    /// Begins to make the list of a run.
    fn make_list(&self, run: RunId, directory: PathBuf) {
        let store = self.clone();
        let made = std::thread::Builder::new().name("list".to_owned()).spawn(move || {
            let files = walk(&directory);
            for file in files.iter().flatten().filter(|file| !file.directory) {
                if let Some(digest) = Digest::from_slice(&file.digest) {
                    store.index().add(digest, directory.join(&file.path));
                }
            }
            store.listed(run, files.map_err(|error| error.to_string()));
        });
        if let Err(error) = made {
            self.listed(run, Err(format!("no thread can be started: {error}")));
        }
    }
}

fn limit_of(request: &v1::ListRunFilesRequest) -> usize {
    let limit = if request.limit == 0 { FILES_PER_REPLY_MAX } else { request.limit.min(FILES_PER_REPLY_MAX) };
    limit as usize
}

/// Names in a directory that may not be there yet, but for hidden ones: those are on their way.
fn names_in(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| !name.starts_with('.')).collect())
}

fn granted(file: &v1::RunFile, key: &ObjectKey) -> v1::RunFile {
    let mut file = file.clone();
    if let Some(digest) = Digest::from_slice(&file.digest) {
        let expires_ms = now_ms() + GRANT_MS;
        let mac = key.grant(digest.into(), expires_ms).mac.to_vec().into();
        file.capability = Some(v1::Capability { run: 0, expires_ms, mac });
    }
    file
}

/// Every file and empty directory, in order of paths, with its digest. Hidden files are left out: they are somebody's notes on the way.
fn walk(root: &Path) -> io::Result<Vec<v1::RunFile>> {
    let mut found = Vec::new();
    let mut open = vec![String::new()];
    while let Some(below) = open.pop() {
        let mut empty = true;
        for entry in fs::read_dir(root.join(&below))? {
            let entry = entry?;
            // Names of groups, elements and outputs are text; another name in a tree cannot be said in a reply.
            let name = match entry.file_name().into_string() {
                Ok(name) => name,
                Err(_) => {
                    tracing::warn!(path = ?entry.path(), "its name is not UTF-8: clients that share no disk do not get it");
                    continue;
                }
            };
            let top = below.is_empty();
            if top && (name.starts_with('.') || name.ends_with(".new") || LEFT_OUT.contains(&name.as_str())) {
                continue;
            }
            empty = false;
            let path = if top { name } else { format!("{below}/{name}") };
            let metadata = fs::symlink_metadata(entry.path())?;
            if metadata.is_dir() {
                open.push(path);
                continue;
            }
            if !metadata.is_file() {
                continue;
            }
            if found.len() >= FILES_MAX {
                return Err(io::Error::other(format!("more than {FILES_MAX} files")));
            }
            let content = Content::from_file(fs::File::open(entry.path())?, metadata.len())?;
            found.push(v1::RunFile {
                path,
                size: metadata.len(),
                mode: metadata.permissions().mode() & 0o777,
                digest: content.digest()?.0.to_vec().into(),
                ..Default::default()
            });
        }
        if empty && !below.is_empty() {
            found.push(v1::RunFile { path: below, directory: true, mode: 0o755, ..Default::default() });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;
    use scalable_store::FileIndex;

    #[test]
    fn a_run_s_files_are_listed_page_by_page_once_it_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let run = directory.path().join("run-1");
        for (path, content) in
            [("tasks.jsonl", "{}\n"), ("outputs/a/x", "1"), ("outputs/a.b/y", "22"), ("objects/a/0/1/x", "1"), (".here", "m")]
        {
            let path = run.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        fs::create_dir_all(run.join("outputs/empty")).unwrap();
        // What cannot be said in a reply does not keep the rest from its client.
        fs::write(run.join("outputs/empty").join(OsStr::from_bytes(b"\xff")), "3").unwrap();
        let (store, _told) = OutputStore::start(FileIndex::new(), ObjectKey::random().unwrap(), u64::MAX, None).unwrap();
        store.begin(RunId(1), "run-1", run.clone(), [], true);
        let ask = |after: &str| {
            let after = after.to_owned();
            let request = v1::ListRunFilesRequest { run: "run-1".to_owned(), after, limit: 2, ..Default::default() };
            store.list(&request, "here:1").unwrap()
        };
        let before = ask("");
        assert!(!before.complete && before.files.is_empty());
        store.complete(RunId(1));
        let mut paths = Vec::new();
        loop {
            let page = ask(paths.last().map_or("", String::as_str));
            assert!(page.complete && page.address == "here:1");
            for file in &page.files {
                assert_eq!(file.directory, file.capability.is_none());
                paths.push(file.path.clone());
            }
            if !page.more {
                break;
            }
        }
        assert_eq!(paths, ["outputs/a.b/y", "outputs/a/x", "outputs/empty", "tasks.jsonl"]);
        assert!(store.index().open(Digest::of(b"22")).unwrap().is_some());
        store.forget(RunId(1));
        assert!(!run.exists() && store.index().is_empty());
        let gone = v1::ListRunFilesRequest { run: "run-1".to_owned(), ..Default::default() };
        assert!(store.list(&gone, "").unwrap_err().contains("no run"));
    }

    #[test]
    fn logs_are_listed_while_the_run_lives() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _told) = OutputStore::start(FileIndex::new(), ObjectKey::random().unwrap(), u64::MAX, None).unwrap();
        store.begin(RunId(1), "run-1", directory.path().to_owned(), [], true);
        let ask = |group: &str, after: &str, limit| {
            let (run, after, group) = ("run-1".to_owned(), after.to_owned(), group.to_owned());
            let request = v1::ListRunFilesRequest { run, after, limit, logs: true, group };
            let reply = store.list(&request, "here:1").unwrap();
            let paths: Vec<String> = reply.files.iter().map(|file| file.path.clone()).collect();
            (paths, reply.more, reply.complete, reply.files)
        };
        assert_eq!(ask("", "", 0).0, [""; 0], "no attempt has ended");
        for (path, content) in
            [("a/0.1.stdout", "one"), ("a/0.1.stderr", "two"), ("b/0.1.stdout", "3"), ("a/.1.1.stdout.part", "")]
        {
            let path = directory.path().join("logs").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        fs::write(directory.path().join("tasks.jsonl"), "{}").unwrap();
        let (paths, more, complete, files) = ask("", "", 2);
        assert_eq!((paths, more, complete), (vec!["logs/a/0.1.stderr".to_owned(), "logs/a/0.1.stdout".to_owned()], true, false));
        assert!(files.iter().all(|file| file.capability.is_some()));
        assert!(store.index().open(Digest::of(b"two")).unwrap().is_some());
        assert_eq!(ask("", "logs/a/0.1.stdout", 2).0, ["logs/b/0.1.stdout"]);
        assert_eq!(ask("b", "", 0).0, ["logs/b/0.1.stdout"]);
        assert_eq!(ask("../..", "", 0).0, [""; 0]);
        store.complete(RunId(1));
        assert!(ask("", "", 0).2);
        store.forget(RunId(1));
        assert!(!directory.path().exists(), "nobody reads there any more");
    }

    #[test]
    fn a_list_is_made_by_one_while_others_are_told_that_it_is_prepared() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _told) = OutputStore::start(FileIndex::new(), ObjectKey::random().unwrap(), u64::MAX, None).unwrap();
        store.begin(RunId(1), "run-1", directory.path().to_owned(), [], false);
        store.complete(RunId(1));
        let now = Instant::now();
        let Listing::Make(run, _) = store.listing("run-1", now) else { panic!("the first is to make it") };
        let request = v1::ListRunFilesRequest { run: "run-1".to_owned(), ..Default::default() };
        let reply = store.list_until(&request, "here:1", now).unwrap();
        assert!(reply.preparing && !reply.complete && reply.files.is_empty());
        let asked = {
            let (store, request) = (store.clone(), request.clone());
            std::thread::spawn(move || store.list_until(&request, "here:1", now + Duration::from_secs(600)))
        };
        store.listed(run, Err("the disk is gone".to_owned()));
        assert!(asked.join().unwrap().unwrap_err().contains("the disk is gone"));
        fs::write(directory.path().join("summary.json"), "{}").unwrap();
        let reply = store.list(&request, "here:1").unwrap();
        assert!(reply.complete && !reply.preparing && reply.files.len() == 1);
        store.begin(RunId(2), "run-2", directory.path().to_owned(), [], false);
        assert!(matches!(store.listing("run-2", now), Listing::Open));
    }
}
