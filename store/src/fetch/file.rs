//! A content on its way into a file: chunk by chunk, never all in memory. What has come stays when a holder fails, when the connection is
//! cut, and when this process ends: the next attempt goes on behind the last whole chunk. Nothing is believed before the digest is right.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::engine::Engine;
use super::peer::Connection;
use super::transfer::Line;
use super::{FileError, FileRequest, Holder, SourceError, add};
use crate::content::CHUNK_BYTES;
use crate::wire::{Answer, Code, Request};
use crate::{Content, Digest};

/// How often the same holders are gone through again when the last round has brought something.
const ROUNDS_MAX: usize = 100;

/// What has come so far.
struct Part {
    file: File,
    hasher: blake3::Hasher,
    at: u64,
}

impl Part {
    /// Opens what an earlier attempt has left, whole chunks of it, or begins anew.
    fn open(request: &FileRequest) -> io::Result<Self> {
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&request.part)?;
        let chunk = CHUNK_BYTES as u64;
        let there = file.metadata()?.len();
        let keep = if there >= request.size { request.size } else { there / chunk * chunk };
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; CHUNK_BYTES.min(usize::try_from(keep).unwrap_or(CHUNK_BYTES))];
        let mut left = keep;
        while left > 0 {
            let now = buffer.len().min(usize::try_from(left).unwrap_or(buffer.len()));
            file.read_exact(&mut buffer[..now])?;
            hasher.update(&buffer[..now]);
            left -= now as u64;
        }
        file.set_len(keep)?;
        file.seek(SeekFrom::Start(keep))?;
        Ok(Self { file, hasher, at: keep })
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            // Half a chunk is worth nothing: the next attempt begins where this chunk does.
            let _ = self.file.set_len(self.at);
            return Err(error);
        }
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn begin_again(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hasher = blake3::Hasher::new();
        self.at = 0;
        Ok(())
    }

    fn is_right(&self, digest: Digest) -> bool {
        self.hasher.finalize() == blake3::Hash::from_bytes(digest.0)
    }
}

/// Why one holder's part ended early.
enum Stop {
    Source(SourceError),
    Disk(io::Error),
}

impl From<SourceError> for Stop {
    fn from(error: SourceError) -> Self {
        Stop::Source(error)
    }
}

/// Fetches the content into `request.part`. The file is complete and right when this succeeds.
pub(super) async fn run(engine: &Rc<Engine>, request: &FileRequest, wanted: impl Fn() -> bool) -> Result<(), FileError> {
    let disk = |error: io::Error| FileError::Disk { path: request.part.clone(), error };
    let mut part = Part::open(request).map_err(disk)?;
    let mut sources: Vec<(String, SourceError)> = Vec::new();
    let mut confirmed = false;
    for round in 0..ROUNDS_MAX {
        let before = part.at;
        for holder in &request.holders {
            if !wanted() {
                return Err(FileError::Stopped);
            }
            let came = from_holder(engine, request, holder, &mut part, confirmed, &wanted).await;
            match came {
                Ok(()) if part.is_right(request.digest) => {
                    add(&engine.common.counters.fetched, 1);
                    return Ok(());
                }
                // Every chunk had the checksum that was sent with it: this holder has something else, or what was here before is wrong.
                Ok(()) => {
                    confirmed = true;
                    part.begin_again().map_err(disk)?;
                    sources.push((holder.address.clone(), SourceError::Corrupt(0)));
                }
                Err(Stop::Disk(error)) => {
                    add(&engine.common.counters.failed, 1);
                    return Err(disk(error));
                }
                Err(Stop::Source(why)) => sources.push((holder.address.clone(), why)),
            }
            add(&engine.common.counters.source_failures, 1);
        }
        // A holder whose connection broke in the middle is asked for the rest while that brings more; the first is given one more chance.
        if part.at <= before && round > 0 || sources.is_empty() || !sources.iter().any(|(_, why)| is_passing(why)) {
            break;
        }
    }
    add(&engine.common.counters.failed, 1);
    sources.dedup();
    sources.truncate(16);
    Err(FileError::Unavailable { digest: request.digest, size: request.size, sources })
}

/// Trouble of a connection, not of what is at its other end.
fn is_passing(why: &SourceError) -> bool {
    matches!(why, SourceError::Broken { .. } | SourceError::Stalled(_) | SourceError::Corrupt(_))
}

async fn from_holder(
    engine: &Rc<Engine>,
    request: &FileRequest,
    holder: &Holder,
    part: &mut Part,
    confirmed: bool,
    wanted: &impl Fn() -> bool,
) -> Result<(), Stop> {
    if part.at == request.size && request.size > 0 && !confirmed {
        return Ok(());
    }
    let peer = engine.peer(&holder.address);
    if let Some(channel) = peer.channel(holder).await
        && let Ok(Ok(content)) =
            timeout(engine.common.options.stall, channel.share(request.digest.into(), request.capability)).await
        && content.len() == request.size
    {
        copy(&content, part).map_err(Stop::Disk)?;
        add(&engine.common.counters.shared, 1);
        add(&engine.common.counters.bytes_shared, request.size);
        return Ok(());
    }
    let (begun, mut pause, mut fresh) = (Instant::now(), Duration::from_millis(5), false);
    loop {
        let mut lent = peer.connection(fresh).await?;
        let (reused, before) = (lent.connection.reused, part.at);
        let asked = rest(engine, request, holder, &mut lent.connection, part, wanted).await;
        match asked {
            Ok(()) => {
                lent.give_back();
                return Ok(());
            }
            Err(Stop::Source(SourceError::Refused(Code::Busy | Code::NotReady)))
                if begun.elapsed() < engine.common.options.busy && wanted() =>
            {
                lent.give_back();
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
            Err(Stop::Source(SourceError::Refused(code))) => {
                lent.give_back();
                return Err(SourceError::Refused(code).into());
            }
            // The peer had closed a connection that was not in use: that says nothing about it.
            Err(Stop::Source(SourceError::Broken { .. })) if reused && part.at == before => fresh = true,
            Err(why) => return Err(why),
        }
    }
}

/// From a peer on this host that handed over the open file.
fn copy(content: &Content, part: &mut Part) -> io::Result<()> {
    part.begin_again()?;
    let mut scratch = Vec::new();
    for index in 0..content.chunks() {
        part.push(content.chunk(index, &mut scratch)?)?;
    }
    Ok(())
}

/// Asks one holder for all that is missing.
async fn rest(
    engine: &Rc<Engine>,
    request: &FileRequest,
    holder: &Holder,
    connection: &mut Connection,
    part: &mut Part,
    wanted: &impl Fn() -> bool,
) -> Result<(), Stop> {
    let begun = Instant::now();
    let before = part.at;
    let mut line = Line { connection, stall: engine.common.options.stall, body: Vec::new() };
    let (offset, length) = (part.at, request.size - part.at);
    let ask = Request::Fetch { key: request.digest.into(), capability: request.capability, offset, length };
    line.ask(&ask, 0).await?;
    match line.answer(0).await? {
        Answer::Size(size) if size == request.size => {}
        Answer::Size(found) => return Err(SourceError::SizeDiffers { found, expected: request.size }.into()),
        Answer::Status(code) => return Err(SourceError::Refused(code).into()),
        Answer::Shared(_) => return Err(SourceError::Protocol("an answer to something else").into()),
    }
    let mut chunk = vec![0; usize::try_from(length).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)];
    while part.at < request.size {
        let now = chunk.len().min(usize::try_from(request.size - part.at).unwrap_or(chunk.len()));
        line.chunk(part.at, &mut chunk[..now], part.at - before).await?;
        part.push(&chunk[..now]).map_err(Stop::Disk)?;
        add(&engine.common.counters.bytes_copied, now as u64);
        if !wanted() {
            return Err(SourceError::Protocol("nobody waits for it any more").into());
        }
    }
    if part.at > before {
        engine.common.measured(&holder.address, part.at - before, begun.elapsed());
    }
    Ok(())
}
