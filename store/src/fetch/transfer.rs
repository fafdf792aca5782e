//! One object on its way: the short cut where there is one, else its chunks from one or several holders. A holder that fails is replaced
//! by the next; what it had not delivered is fetched elsewhere.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::engine::{Engine, Job, Source};
use super::peer::{Connection, Peer};
use super::{Common, FetchAnswer, FetchError, SourceError, add};
use crate::Content;
use crate::content::{CHUNK_BYTES, checksum};
use crate::segment::{Piece, SEGMENT_BYTES_MIN};
use crate::wire::{Answer, ChunkHead, Code, Request};

/// Chunks that are asked for at once when there are several holders: enough to hide a round trip, few enough that a slow holder
/// keeps little from the others.
const BATCH: usize = 4;

/// Fetches the object. An abandoned one ends as if it had been stopped.
pub(super) async fn run(engine: &Rc<Engine>, job: &Rc<Job>) -> FetchAnswer {
    let mut failures: Vec<(String, SourceError)> = Vec::new();
    if let Some(content) = share(engine, job).await {
        return Ok(content);
    }
    let small = job.size < SEGMENT_BYTES_MIN as u64;
    let len = usize::try_from(job.size).map_err(|_| no_memory(job, "larger than the address space"))?;
    let (split, pieces) = if small {
        (None, Vec::new())
    } else {
        let writer = engine.common.options.pool.take(len).map_err(|error| no_memory(job, &error.to_string()))?;
        let (split, pieces) = writer.split(CHUNK_BYTES);
        (Some(split), pieces)
    };
    let sums = pieces.iter().map(|_| Cell::new(0)).collect();
    let work =
        Rc::new(Work { left: RefCell::new(pieces.into()), sums, heap: RefCell::new(vec![0; if small { len } else { 0 }]) });
    work.fetch_all(engine, job, small, &mut failures).await?;
    let work = Rc::into_inner(work).ok_or(FetchError::Stopped)?;
    match split {
        None => Ok(Content::from_bytes(work.heap.into_inner().into())),
        Some(split) => {
            let content = split.join().ok_or(FetchError::Stopped)?;
            work.sums.iter().enumerate().for_each(|(i, sum)| content.set_sum(i, sum.get()));
            Ok(content)
        }
    }
}

fn no_memory(job: &Job, why: &str) -> FetchError {
    FetchError::Memory(job.key, why.to_owned())
}

/// From the first holder on this host that hands it out.
async fn share(engine: &Rc<Engine>, job: &Job) -> Option<Content> {
    let mut at = 0;
    loop {
        let source = job.sources.borrow().get(at).cloned()?;
        at += 1;
        let peer = engine.peer(&source.holder.address);
        let Some(channel) = peer.channel(&source.holder).await else { continue };
        let asked = timeout(engine.common.options.stall, channel.share(job.key, source.capability)).await;
        match asked {
            Ok(Ok(content)) if content.len() == job.size => {
                add(&engine.common.counters.shared, 1);
                add(&engine.common.counters.bytes_shared, job.size);
                return Some(content);
            }
            // Whatever it is, it is asked for again as bytes, and then counted.
            _ => continue,
        }
    }
}

/// The chunks that nobody is fetching.
struct Work {
    left: RefCell<VecDeque<Piece>>,
    sums: Vec<Cell<u64>>,
    /// An object too small for shared memory.
    heap: RefCell<Vec<u8>>,
}

/// How a holder's part ended.
type Ended = Result<(), SourceError>;

impl Work {
    /// Until nothing is left, or no holder is.
    async fn fetch_all(
        self: &Rc<Self>,
        engine: &Rc<Engine>,
        job: &Rc<Job>,
        small: bool,
        failures: &mut Vec<(String, SourceError)>,
    ) -> Result<(), FetchError> {
        let mut next = 0;
        // Holders that have done their part well, should another one leave something.
        let mut proven: Vec<Source> = Vec::new();
        // One holder at least has to confirm that the object is there, even if it has no bytes.
        let mut confirmed = false;
        let mut running: JoinSet<(Source, Ended)> = JoinSet::new();
        loop {
            let several = job.sources.borrow().len().min(engine.common.options.sources_max.max(1));
            let wanted = if small { 1 } else { several.min(self.sums.len().div_ceil(BATCH)).max(1) };
            let work_left = !confirmed && running.is_empty() || !self.left.borrow().is_empty();
            while work_left && running.len() < wanted {
                let untried = job.sources.borrow().get(next).cloned();
                next += usize::from(untried.is_some());
                let Some(source) = untried.or_else(|| proven.pop()) else { break };
                let (work, engine, job) = (Rc::clone(self), Rc::clone(engine), Rc::clone(job));
                let batch = if wanted == 1 { usize::MAX } else { BATCH };
                running.spawn_local(async move {
                    let peer = engine.peer(&source.holder.address);
                    let ended = work.fetch_from(&engine.common, &job, &peer, &source, batch).await;
                    (source, ended)
                });
            }
            match running.join_next().await {
                Some(Ok((source, Ok(())))) => {
                    confirmed = true;
                    proven.push(source);
                    if running.is_empty() && self.left.borrow().is_empty() {
                        return Ok(());
                    }
                }
                Some(Ok((source, Err(why)))) => {
                    if job.is_abandoned() {
                        return Err(FetchError::Stopped);
                    }
                    add(&engine.common.counters.source_failures, 1);
                    failures.push((source.holder.address, why));
                    if confirmed && running.is_empty() && self.left.borrow().is_empty() {
                        return Ok(());
                    }
                }
                Some(Err(_)) => return Err(FetchError::Stopped),
                None => {
                    return Err(FetchError::Unavailable { key: job.key, size: job.size, sources: std::mem::take(failures) });
                }
            }
        }
    }

    /// Batches from one holder until nothing is left or it fails.
    async fn fetch_from(&self, common: &Common, job: &Job, peer: &Peer, source: &Source, batch: usize) -> Ended {
        let mut fresh = false;
        let mut first = true;
        let mut received = 0;
        let begun = Instant::now();
        let mut pause = Duration::from_millis(5);
        while first || !self.left.borrow().is_empty() {
            first = false;
            let mut lent = peer.connection(fresh).await?;
            let reused = lent.connection.reused;
            let mut pieces = self.take(batch);
            if pieces.is_empty() && !self.sums.is_empty() {
                // Others have taken the rest while this one waited for its connection.
                lent.give_back();
                return Ok(());
            }
            let before = received;
            let asked = self.range(common, job, &mut lent.connection, source, &mut pieces, &mut received).await;
            if !pieces.is_empty() {
                let mut left = self.left.borrow_mut();
                pieces.into_iter().rev().for_each(|piece| left.push_front(piece));
            }
            match asked {
                Ok(()) => lent.give_back(),
                Err(SourceError::Refused(code)) if matches!(code, Code::Busy | Code::NotReady) => {
                    lent.give_back();
                    if begun.elapsed() >= common.options.busy || job.is_abandoned() {
                        return Err(SourceError::Refused(code));
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                    first = true;
                }
                Err(SourceError::Refused(code)) => {
                    lent.give_back();
                    return Err(SourceError::Refused(code));
                }
                // The peer had closed a connection that was not in use: that says nothing about it.
                Err(SourceError::Broken { .. }) if reused && received == before => {
                    fresh = true;
                    first = true;
                }
                Err(why) => return Err(why),
            }
        }
        Ok(())
    }

    /// The next chunks, which follow each other.
    fn take(&self, max: usize) -> VecDeque<Piece> {
        let mut left = self.left.borrow_mut();
        let mut taken: VecDeque<Piece> = VecDeque::new();
        while taken.len() < max {
            let follows = match (taken.back(), left.front()) {
                (_, None) => false,
                (None, Some(_)) => true,
                (Some(last), Some(next)) => next.index() == last.index() + 1,
            };
            let Some(piece) = (if follows { left.pop_front() } else { None }) else { break };
            taken.push_back(piece);
        }
        taken
    }

    /// Asks for `pieces` and receives them; those that are done leave the queue.
    async fn range(
        &self,
        common: &Common,
        job: &Job,
        connection: &mut Connection,
        source: &Source,
        pieces: &mut VecDeque<Piece>,
        received: &mut u64,
    ) -> Ended {
        let begun = Instant::now();
        let before = *received;
        let offset = pieces.front().map_or(0, |piece| (piece.index() * CHUNK_BYTES) as u64);
        let length = pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        let length = if self.sums.is_empty() { job.size } else { length };
        let mut line = Line { connection, stall: common.options.stall, body: Vec::new() };
        line.ask(&Request::Fetch { key: job.key, capability: source.capability, offset, length }, *received).await?;
        match line.answer(*received).await? {
            Answer::Size(size) if size == job.size => {}
            Answer::Size(found) => return Err(SourceError::SizeDiffers { found, expected: job.size }),
            Answer::Status(code) => return Err(SourceError::Refused(code)),
            Answer::Shared(_) => return Err(SourceError::Protocol("an answer to something else")),
        }
        if self.sums.is_empty() && job.size > 0 {
            let mut heap = std::mem::take(&mut *self.heap.borrow_mut());
            let got = line.chunk(0, &mut heap, *received).await;
            *self.heap.borrow_mut() = heap;
            got?;
            *received += job.size;
        }
        while let Some(piece) = pieces.front_mut() {
            if job.is_abandoned() {
                return Err(SourceError::Protocol("nobody waits for it any more"));
            }
            let (index, len) = (piece.index(), piece.len() as u64);
            let sum = line.chunk((index * CHUNK_BYTES) as u64, piece.as_mut_slice(), *received).await?;
            self.sums[index].set(sum);
            *received += len;
            add(&common.counters.bytes_copied, len);
            pieces.pop_front();
        }
        if self.sums.is_empty() {
            add(&common.counters.bytes_copied, job.size);
        }
        if *received > before {
            common.measured(&source.holder.address, *received - before, begun.elapsed());
        }
        Ok(())
    }
}

/// A connection in the middle of a request.
pub(super) struct Line<'a> {
    pub(super) connection: &'a mut Connection,
    pub(super) stall: Duration,
    pub(super) body: Vec<u8>,
}

impl Line<'_> {
    pub(super) async fn ask(&mut self, request: &Request, received: u64) -> Ended {
        let mut out = Vec::with_capacity(128);
        request.encode(&mut out);
        let sent = timeout(self.stall, self.connection.stream.write_all(&out)).await;
        sent.map_err(|_| SourceError::Stalled(self.stall))?.map_err(|error| broken(received, &error))
    }

    pub(super) async fn answer(&mut self, received: u64) -> Result<Answer, SourceError> {
        let read = timeout(self.stall, self.connection.stream.read_frame(&mut self.body)).await;
        let kind = read.map_err(|_| SourceError::Stalled(self.stall))?.map_err(|error| broken(received, &error))?;
        Answer::decode(kind, &self.body).ok_or(SourceError::Protocol("an answer that is none"))
    }

    /// Receives the chunk at `offset`, in place. Returns its checksum.
    pub(super) async fn chunk(&mut self, offset: u64, into: &mut [u8], received: u64) -> Result<u64, SourceError> {
        let stream = &mut self.connection.stream;
        let body = &mut self.body;
        let reading = async {
            let kind = stream.read_frame(body).await.map_err(|error| broken(received, &error))?;
            let head = ChunkHead::decode(kind, body).ok_or(SourceError::Protocol("a chunk that is none"))?;
            if head.offset != offset || head.len as usize != into.len() {
                return Err(SourceError::Protocol("a chunk that was not asked for"));
            }
            stream.read_exact(into).await.map_err(|error| broken(received, &error))?;
            if checksum(into) != head.sum {
                return Err(SourceError::Corrupt(offset));
            }
            Ok(head.sum)
        };
        timeout(self.stall, reading).await.unwrap_or(Err(SourceError::Stalled(self.stall)))
    }
}

fn broken(received: u64, error: &std::io::Error) -> SourceError {
    SourceError::Broken { received, why: error.to_string() }
}
