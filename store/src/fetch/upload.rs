//! Bringing a content to a peer: announced, then its chunks, then the peer's verdict.

use tokio::time::timeout;

use super::peer::{Connection, Peer};
use super::{Common, SourceError, UploadRequest};
use crate::wire::{Answer, ChunkHead, Code, Request};

pub(super) async fn run(common: &Common, peer: &Peer, request: &UploadRequest) -> Result<(), SourceError> {
    let mut fresh = false;
    loop {
        let mut lent = peer.connection(fresh).await?;
        let reused = lent.connection.reused;
        match send(common, &mut lent.connection, request).await {
            Ok(()) => {
                lent.give_back();
                return Ok(());
            }
            // The peer had closed a connection that was not in use.
            Err(SourceError::Broken { received: 0, .. }) if reused => fresh = true,
            Err(why) => return Err(why),
        }
    }
}

async fn send(common: &Common, connection: &mut Connection, request: &UploadRequest) -> Result<(), SourceError> {
    let stall = common.options.stall;
    let (content, size) = (&request.content, request.content.len());
    let mut out = Vec::new();
    Request::Put { digest: request.digest, capability: request.capability, size }.encode(&mut out);
    within(stall, 0, connection.stream.write_all(&out)).await?;
    match answer(stall, 0, connection).await? {
        Answer::Status(Code::Ok) => return Ok(()),
        Answer::Status(code) => return Err(SourceError::Refused(code)),
        Answer::Size(_) => {}
        Answer::Shared(_) => return Err(SourceError::Protocol("an answer to something else")),
    }
    let mut scratch = Vec::new();
    for index in 0..content.chunks() {
        let range = content.chunk_range(index);
        let broken = |error: std::io::Error| SourceError::Broken { received: range.start.max(1), why: error.to_string() };
        let sum = content.sum(index, &mut scratch).map_err(broken)?;
        let chunk = content.chunk(index, &mut scratch).map_err(broken)?;
        out.clear();
        ChunkHead { offset: range.start, len: chunk.len() as u32, sum }.encode(&mut out);
        let written = within(stall, range.start.max(1), connection.stream.stream().write_both(&out, chunk)).await;
        if written.is_err() {
            // It says why before it closes, if it can.
            return match answer(stall, range.start.max(1), connection).await {
                Ok(Answer::Status(code)) if code != Code::Ok => Err(SourceError::Refused(code)),
                _ => written,
            };
        }
    }
    match answer(stall, size.max(1), connection).await? {
        Answer::Status(Code::Ok) => Ok(()),
        Answer::Status(code) => Err(SourceError::Refused(code)),
        Answer::Size(_) | Answer::Shared(_) => Err(SourceError::Protocol("an answer to something else")),
    }
}

async fn answer(stall: std::time::Duration, at: u64, connection: &mut Connection) -> Result<Answer, SourceError> {
    let mut body = Vec::new();
    let kind = within(stall, at, connection.stream.read_frame(&mut body)).await?;
    Answer::decode(kind, &body).ok_or(SourceError::Protocol("an answer that is none"))
}

async fn within<T>(stall: std::time::Duration, at: u64, act: impl Future<Output = std::io::Result<T>>) -> Result<T, SourceError> {
    let done = timeout(stall, act).await.map_err(|_| SourceError::Stalled(stall))?;
    done.map_err(|error| SourceError::Broken { received: at, why: error.to_string() })
}
