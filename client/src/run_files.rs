//! Files between a client and a scheduler that share no disk: files beside a manifest go to the scheduler's store before a run is submitted,
//! and everything in the run's directory comes from there when it is over.

use std::collections::VecDeque;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use scalable_proto::v1;
use scalable_store::{
    Capability, Content, Digest, Fetcher, FetcherOptions, FileError, FileFetch, FileRequest, Holder, SegmentPool,
};

use crate::client::refused;
use crate::{Client, Error};

/// Files that are asked for at once.
const AHEAD: usize = 16;
/// Times that a file is asked for again when the connection is cut, with waits that grow from half a second to ten.
const TRIES_MAX: u32 = 12;
/// How long a scheduler is waited for that reads a run's files for their list.
const PREPARING_MAX: Duration = Duration::from_secs(3600);
/// How a run ended, among its files.
const RUN_RECORD: &str = "run.json";
/// Name of the file by which a client learns whether the scheduler sees its directory.
const PROBE: &str = ".client";

/// What has come of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FetchedFiles {
    /// Files that are there now.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of the files: those that were there already.
    pub there_already: u64,
}

impl Client {
    /// Whether the scheduler sees this directory, which must exist: then nothing has to be brought to it or fetched from it.
    ///
    /// # Errors
    /// The directory cannot be written; those of a unary call.
    pub async fn shares(&self, directory: &Path) -> Result<bool, Error> {
        let path = std::path::absolute(directory).map_err(|error| disk(directory, &error))?.join(PROBE);
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|error| refused("NO_RANDOMNESS", format!("no mark could be drawn: {error}"), ""))?;
        fs::write(&path, random).map_err(|error| disk(&path, &error))?;
        let (digest, path_text) = (Digest::of(&random).0.to_vec(), path.display().to_string());
        let offer = v1::OfferRequest { digest: digest.into(), size: random.len() as u64, path: path_text };
        let reply = self.offer_content(offer).await;
        // Its purpose is fulfilled; left behind it would mean nothing.
        let _ = fs::remove_file(&path);
        Ok(!reply?.needed)
    }

    /// Brings a file to the scheduler's store, unless that has its content or sees the file itself.
    ///
    /// # Errors
    /// [`Error::Refused`] when it is too large for the store or was changed meanwhile; those of a unary call.
    pub async fn bring_file(&self, path: &Path, digest: [u8; 32], size: u64) -> Result<(), Error> {
        let shown = path.display().to_string();
        let offer = v1::OfferRequest { digest: digest.to_vec().into(), size, path: shown.clone() };
        let failed = |address: &str, why: &dyn std::fmt::Display| {
            let message = format!("{shown} could not be brought to the scheduler's store at {address}: {why}");
            refused("FILE_NOT_BROUGHT", message, "see that this machine reaches that address and that the file is not changed")
        };
        crate::ship::bring(self, path, offer, failed).await
    }

    /// Fetches everything in the directory of a run that is over (records, logs, outputs) into `into`, chunk by chunk and each file
    /// checked against its digest. What is there already is not fetched again, and what an earlier call has left half done is gone on with.
    /// `progress` is told after each file.
    ///
    /// # Errors
    /// [`Error::Refused`] when the run is not over, the disk refuses, or a file cannot be had although it was asked for again and again;
    /// those of a unary call.
    pub async fn fetch_run(&self, run: &str, into: &Path, mut progress: impl FnMut(FetchedFiles)) -> Result<FetchedFiles, Error> {
        let options = FetcherOptions { connections_per_peer: 4, ..self.endpoint().fetcher_options(SegmentPool::new(0)) };
        let fetcher = Fetcher::start(options).map_err(|error| disk(into, &error))?;
        let mut done = FetchedFiles::default();
        let mut after = String::new();
        // What says how the run ended comes when everything that it speaks of is there.
        let mut end = None;
        let asked = Asked { run, logs: false, group: "" };
        loop {
            let page = self.list_run_files(asked, &after).await?;
            if !page.complete {
                return Err(refused(
                    "RUN_NOT_OVER",
                    format!("run `{run}` is not over: it has no final files yet"),
                    "wait for its end",
                ));
            }
            let mut coming: VecDeque<Coming> = VecDeque::new();
            for file in &page.files {
                let target = into.join(checked(&file.path)?);
                let previous = std::mem::replace(&mut after, file.path.clone());
                if file.path == RUN_RECORD {
                    end = Some((file.clone(), previous, page.address.clone(), target));
                    continue;
                }
                if file.directory {
                    fs::create_dir_all(&target).map_err(|error| disk(&target, &error))?;
                    continue;
                }
                if coming.len() >= AHEAD
                    && let Some(first) = coming.pop_front()
                {
                    self.arrive(asked, &fetcher, first, &mut done, &mut progress).await?;
                }
                let address = self.endpoint().store_address(&page.address);
                coming.push_back(begin(asked, &fetcher, file.clone(), previous, address, target)?);
            }
            for left in coming {
                self.arrive(asked, &fetcher, left, &mut done, &mut progress).await?;
            }
            if !page.more {
                break;
            }
        }
        if let Some((file, previous, address, target)) = end {
            let last = begin(asked, &fetcher, file, previous, self.endpoint().store_address(&address), target)?;
            self.arrive(asked, &fetcher, last, &mut done, &mut progress).await?;
        }
        Ok(done)
    }

    /// Fetches the logs that are there of a run, which may live, into its directory `into`: those of attempts that have ended; of one group
    /// where that is not empty. What is there already is not fetched again. True when the run is over: no more will come.
    ///
    /// # Errors
    /// As [`Client::fetch_run`].
    pub async fn fetch_logs(&self, run: &str, group: &str, into: &Path) -> Result<bool, Error> {
        let options = FetcherOptions { connections_per_peer: 4, ..self.endpoint().fetcher_options(SegmentPool::new(0)) };
        let fetcher = Fetcher::start(options).map_err(|error| disk(into, &error))?;
        let asked = Asked { run, logs: true, group };
        let (mut done, mut after) = (FetchedFiles::default(), String::new());
        loop {
            let page = self.list_run_files(asked, &after).await?;
            let mut coming: VecDeque<Coming> = VecDeque::new();
            for file in page.files {
                let target = into.join(checked(&file.path)?);
                let previous = std::mem::replace(&mut after, file.path.clone());
                if coming.len() >= AHEAD
                    && let Some(first) = coming.pop_front()
                {
                    self.arrive(asked, &fetcher, first, &mut done, &mut |_| {}).await?;
                }
                coming.push_back(begin(asked, &fetcher, file, previous, self.endpoint().store_address(&page.address), target)?);
            }
            for left in coming {
                self.arrive(asked, &fetcher, left, &mut done, &mut |_| {}).await?;
            }
            if !page.more {
                return Ok(page.complete);
            }
        }
    }

    /// Says that every file of the run is here: the scheduler may forget it.
    ///
    /// # Errors
    /// Those of a unary call.
    pub async fn acknowledge_run(&self, run: &str) -> Result<(), Error> {
        let request = self.endpoint().request(v1::AcknowledgeRunRequest { run: run.to_owned() });
        self.control().acknowledge_run(request).await.map_err(|status| self.failed(status))?;
        Ok(())
    }

    /// Asks for a page of the list, and again while the scheduler reads the run's files for it.
    async fn list_run_files(&self, asked: Asked<'_>, after: &str) -> Result<v1::ListRunFilesReply, Error> {
        let Asked { run, logs, group } = asked;
        let (after, limit) = (after.to_owned(), 1000);
        let request = v1::ListRunFilesRequest { run: run.to_owned(), after, limit, logs, group: group.to_owned() };
        let (mut tries, mut waits, asked_at) = (0, 0, Instant::now());
        loop {
            let asked = self.endpoint().request(request.clone());
            match self.control().list_run_files(asked).await.map_err(|status| self.failed(status)) {
                Ok(reply) => {
                    let reply = reply.into_inner();
                    if !reply.preparing {
                        return Ok(reply);
                    }
                    if asked_at.elapsed() >= PREPARING_MAX {
                        let message = format!(
                            "the scheduler has read the files of run `{run}` for {} minutes and is not done",
                            PREPARING_MAX.as_secs() / 60
                        );
                        return Err(refused("FILES_NOT_LISTED", message, "try again: it goes on reading meanwhile"));
                    }
                    // It answers: what has failed before counts no more.
                    tries = 0;
                    waits += 1;
                    tokio::time::sleep(pause(waits)).await;
                }
                Err(error) if error.is_transient() && tries < TRIES_MAX => {
                    tries += 1;
                    tokio::time::sleep(pause(tries)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for a file, asking for it again while that makes sense.
    async fn arrive(
        &self,
        asked: Asked<'_>,
        fetcher: &Fetcher,
        mut coming: Coming,
        done: &mut FetchedFiles,
        progress: &mut impl FnMut(FetchedFiles),
    ) -> Result<(), Error> {
        let mut tries = 0;
        while let Some(fetch) = coming.fetch.take() {
            match fetch.await {
                Ok(()) => {
                    let settled = fs::set_permissions(&coming.part, Permissions::from_mode(coming.file.mode & 0o777))
                        .and_then(|()| fs::rename(&coming.part, &coming.target));
                    settled.map_err(|error| disk(&coming.target, &error))?;
                }
                Err(FileError::Disk { path, error }) => return Err(disk(&path, &error)),
                Err(error) if tries >= TRIES_MAX => {
                    let message = format!("{} of run `{}` could not be fetched: {error}", coming.file.path, asked.run);
                    return Err(refused("FILE_NOT_FETCHED", message, "try again: what has come so far is kept"));
                }
                Err(_) => {
                    tries += 1;
                    tokio::time::sleep(pause(tries)).await;
                    // The right to it may have expired, and the store have another address now.
                    let page = self.list_run_files(asked, &coming.after).await?;
                    let file = page.files.into_iter().find(|file| file.path == coming.file.path).unwrap_or(coming.file);
                    let address = self.endpoint().store_address(&page.address);
                    coming = begin(asked, fetcher, file, coming.after, address, coming.target)?;
                }
            }
        }
        done.files += 1;
        done.bytes += coming.file.size;
        done.there_already += u64::from(coming.there_already);
        progress(*done);
        Ok(())
    }
}

/// Which files are asked for.
#[derive(Clone, Copy)]
struct Asked<'a> {
    run: &'a str,
    logs: bool,
    group: &'a str,
}

/// A file on its way.
struct Coming {
    file: v1::RunFile,
    /// The path before it in the list.
    after: String,
    target: PathBuf,
    part: PathBuf,
    /// Nothing: it is there.
    fetch: Option<FileFetch>,
    there_already: bool,
}

fn begin(
    asked: Asked<'_>,
    fetcher: &Fetcher,
    file: v1::RunFile,
    after: String,
    address: &str,
    target: PathBuf,
) -> Result<Coming, Error> {
    let bad = |what: &str| refused("BAD_LIST", format!("the scheduler lists {} {what}", file.path), "");
    let digest = Digest::from_slice(&file.digest).ok_or_else(|| bad("without a digest"))?;
    let right = file.capability.as_ref().and_then(|right| Capability::from_parts(right.expires_ms, &right.mac));
    let capability = right.ok_or_else(|| bad("without the right to fetch it"))?;
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(|error| disk(parent, &error))?;
    }
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let part = match asked.logs {
        // Somebody else may be fetching the whole run to the same place.
        true => target.with_file_name(format!(".{name}.{}.part", std::process::id())),
        false => target.with_file_name(format!(".{name}.part")),
    };
    if is_there(&target, file.size, digest).map_err(|error| disk(&target, &error))? {
        return Ok(Coming { file, after, target, part, fetch: None, there_already: true });
    }
    let holders = vec![Holder { address: address.to_owned(), host: String::new() }];
    let request = FileRequest { digest, size: file.size, holders, capability, part: part.clone() };
    Ok(Coming { fetch: Some(fetcher.fetch_file(request)), file, after, target, part, there_already: false })
}

fn is_there(target: &Path, size: u64, digest: Digest) -> io::Result<bool> {
    match fs::symlink_metadata(target) {
        Ok(found) if found.is_file() && found.len() == size => {
            Ok(Content::from_file(File::open(target)?, size)?.digest()? == digest)
        }
        _ => Ok(false),
    }
}

/// A path of the list stays below the directory it is joined to.
pub(crate) fn checked(path: &str) -> Result<&Path, Error> {
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if path.is_empty() || !plain || path.contains('\0') {
        return Err(refused("BAD_LIST", format!("the scheduler lists {path:?}, which is no path below a run's directory"), ""));
    }
    Ok(Path::new(path))
}

fn pause(tries: u32) -> Duration {
    (Duration::from_millis(250) * 2_u32.saturating_pow(tries.min(6))).min(Duration::from_secs(10))
}

pub(crate) fn disk(path: &Path, error: &io::Error) -> Error {
    let help = if error.kind() == io::ErrorKind::StorageFull {
        "free some space and try again: what has come so far is kept"
    } else {
        "see that it can be written"
    };
    refused("DISK", format!("{}: {error}", path.display()), help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_the_directory_are_refused() {
        for good in ["a", "outputs/x/y=1/z", "..a"] {
            assert!(checked(good).is_ok(), "{good}");
        }
        for evil in ["", "/etc/passwd", "../x", "a/../x", "a\0b", "."] {
            assert!(checked(evil).is_err(), "{evil:?}");
        }
    }
}
