//! Uploads: who may, how much, checked chunk by chunk and as a whole, visible only when right.

use std::io;

use tokio::time::timeout;

use super::connection::{refuse, turn};
use super::{Shared, add};
use crate::blobs::{BlobError, BlobWriter};
use crate::content::{CHUNK_BYTES, checksum};
use crate::transport::Connected;
use crate::wire::{ChunkHead, Code};
use crate::{Capability, Digest};

pub(super) async fn receive(
    stream: &mut Connected,
    shared: &Shared,
    digest: Digest,
    capability: &Capability,
    size: u64,
) -> io::Result<()> {
    let Some(blobs) = &shared.options.uploads else { return refuse(stream, shared, Code::Denied).await };
    match shared.judge_upload(digest, size, capability) {
        Code::Ok => {}
        code => return refuse(stream, shared, code).await,
    }
    if size > shared.options.upload_bytes_max {
        return refuse(stream, shared, Code::TooLarge).await;
    }
    let Some(_turn) = turn(shared).await else { return refuse(stream, shared, Code::Busy).await };
    // `Ok` for a content that is here already ends the upload, `Size` by an empty content aside: see the protocol.
    match blobs.get(digest) {
        Ok(Some(there)) if there.len() == size => return refuse(stream, shared, Code::Ok).await,
        Ok(_) => {}
        Err(_) => return refuse(stream, shared, Code::Disk).await,
    }
    let writer = match blobs.begin(digest, size) {
        Ok(writer) => writer,
        Err(error) => return refuse(stream, shared, code_of(&error)).await,
    };
    let mut out = Vec::new();
    crate::wire::Answer::Size(size).encode(&mut out);
    timeout(shared.options.stall, stream.write_all(&out)).await??;
    match take(stream, shared, writer, size).await? {
        Ok(()) => {
            add(&shared.counters.served, 1);
            refuse(stream, shared, Code::Ok).await
        }
        Err(code) => {
            refuse(stream, shared, code).await?;
            // What is still on its way is not a request.
            Err(io::Error::new(io::ErrorKind::InvalidData, "an upload that was not what it said"))
        }
    }
}

async fn take(stream: &mut Connected, shared: &Shared, mut writer: BlobWriter, size: u64) -> io::Result<Result<(), Code>> {
    let mut body = Vec::new();
    let mut chunk = Vec::new();
    let mut at = 0;
    while at < size {
        let kind = timeout(shared.options.stall, stream.read_frame(&mut body)).await??;
        let expected = (size - at).min(CHUNK_BYTES as u64);
        let head = ChunkHead::decode(kind, &body).filter(|head| head.offset == at && u64::from(head.len) == expected);
        let Some(head) = head else { return Ok(Err(Code::Malformed)) };
        chunk.resize(head.len as usize, 0);
        timeout(shared.options.stall, stream.read_exact(&mut chunk)).await??;
        if checksum(&chunk) != head.sum {
            return Ok(Err(Code::Corrupt));
        }
        if let Err(error) = writer.write(&chunk) {
            return Ok(Err(code_of(&error)));
        }
        add(&shared.counters.bytes_received, chunk.len() as u64);
        at += expected;
    }
    // Waits for the disk, which may take long for a large one: not on the thread that serves others.
    let finished = tokio::task::spawn_blocking(move || writer.finish()).await.map_err(io::Error::other)?;
    Ok(finished.map(drop).map_err(|error| code_of(&error)))
}

fn code_of(error: &BlobError) -> Code {
    match error {
        BlobError::Full { .. } => Code::Full,
        BlobError::Differs(_) => Code::Corrupt,
        BlobError::Io(error) if error.kind() == io::ErrorKind::StorageFull => Code::Full,
        BlobError::Io(_) => Code::Disk,
    }
}
