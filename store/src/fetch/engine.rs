//! One thread of a fetcher: takes requests, joins those for one object, lets them travel in turn.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::LocalSet;

use super::admission::Admission;
use super::peer::Peer;
use super::{Command, Common, FetchAnswer, FetchError, FileError, Holder, Pending, add, file, transfer, upload};
use crate::content::CHUNK_BYTES;
use crate::{Capability, Key};

/// Files that one thread receives at once.
const FILES_AT_ONCE_MAX: usize = 16;

/// Everything one thread knows.
pub(super) struct Engine {
    pub common: Arc<Common>,
    jobs: RefCell<FxHashMap<Key, Rc<Job>>>,
    admission: RefCell<Admission<Rc<Job>>>,
    peers: RefCell<FxHashMap<String, Rc<Peer>>>,
}

/// A holder and what to show it.
#[derive(Clone)]
pub(super) struct Source {
    pub holder: Holder,
    pub capability: Capability,
}

/// An object that somebody waits for.
pub(super) struct Job {
    pub key: Key,
    pub size: u64,
    /// May grow while the object is on its way.
    pub sources: RefCell<Vec<Source>>,
    waiters: RefCell<Vec<(oneshot::Sender<FetchAnswer>, Pending)>>,
}

impl Job {
    /// Nobody waits any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.waiters.borrow().iter().all(|(waiter, _)| waiter.is_closed())
    }

    /// More holders than this can hardly be of use, and everyone who asks may name some.
    const SOURCES_MAX: usize = 256;

    fn add_sources(&self, holders: Vec<Holder>, capability: Capability) {
        let mut sources = self.sources.borrow_mut();
        for holder in holders {
            if sources.len() < Self::SOURCES_MAX && !sources.iter().any(|source| source.holder == holder) {
                sources.push(Source { holder, capability });
            }
        }
    }
}

pub(super) fn run(runtime: &Runtime, mut commands: mpsc::UnboundedReceiver<Command>, common: Arc<Common>) {
    let share = common.options.bytes_in_flight_max / common.options.threads.max(1) as u64;
    let engine = Rc::new(Engine {
        common,
        jobs: RefCell::default(),
        admission: RefCell::new(Admission::new(share)),
        peers: RefCell::default(),
    });
    // One chunk of each is in memory.
    let files_max = usize::try_from(share / CHUNK_BYTES as u64).unwrap_or(usize::MAX).clamp(1, FILES_AT_ONCE_MAX);
    let files = Rc::new(Semaphore::new(files_max));
    let local = LocalSet::new();
    local.block_on(runtime, async {
        let sweeper = Rc::clone(&engine);
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(10)).await;
                sweeper.peers.borrow_mut().retain(|_, peer| Rc::strong_count(peer) > 1 || !peer.sweep());
            }
        });
        while let Some(command) = commands.recv().await {
            match command {
                Command::Fetch(request, sender, pending) => {
                    let known = engine.jobs.borrow().get(&request.key).cloned();
                    let job = match known {
                        Some(job) => {
                            add(&engine.common.counters.joined, 1);
                            job
                        }
                        None => {
                            let job = Rc::new(Job {
                                key: request.key,
                                size: request.size,
                                sources: RefCell::default(),
                                waiters: RefCell::default(),
                            });
                            engine.jobs.borrow_mut().insert(request.key, Rc::clone(&job));
                            engine.admission.borrow_mut().push(Rc::clone(&job), request.size);
                            job
                        }
                    };
                    job.add_sources(request.holders, request.capability);
                    job.waiters.borrow_mut().push((sender, pending));
                    engine.admit();
                }
                Command::File(request, sender, pending) => {
                    let (engine, files) = (Rc::clone(&engine), Rc::clone(&files));
                    tokio::task::spawn_local(async move {
                        let turn = files.acquire().await;
                        let result = match sender.is_closed() || turn.is_err() {
                            true => Err(FileError::Stopped),
                            false => file::run(&engine, &request, || !sender.is_closed()).await,
                        };
                        drop((turn, pending));
                        // One that is not waited for any more finds what has come next time.
                        drop(sender.send(result));
                    });
                }
                Command::Upload(request, sender, pending) => {
                    let engine = Rc::clone(&engine);
                    tokio::task::spawn_local(async move {
                        let peer = engine.peer(&request.address);
                        let result = upload::run(&engine.common, &peer, &request).await;
                        drop(pending);
                        // Nobody waits any more: the content is there all the same.
                        drop(sender.send(result));
                    });
                }
            }
        }
        // The fetcher is gone: what is on its way is dropped with the local set.
    });
}

impl Engine {
    pub(super) fn peer(&self, address: &str) -> Rc<Peer> {
        let mut peers = self.peers.borrow_mut();
        if let Some(peer) = peers.get(address) {
            return Rc::clone(peer);
        }
        let peer = Rc::new(Peer::new(address.to_owned(), Arc::clone(&self.common)));
        peers.insert(address.to_owned(), Rc::clone(&peer));
        peer
    }

    /// Starts what may travel.
    fn admit(self: &Rc<Self>) {
        loop {
            let next = self.admission.borrow_mut().next();
            let Some((job, size)) = next else { break };
            add(&self.common.counters.bytes_in_flight, size);
            let engine = Rc::clone(self);
            tokio::task::spawn_local(async move { engine.travel(job, size).await });
        }
    }

    async fn travel(self: Rc<Self>, job: Rc<Job>, size: u64) {
        let result = if job.is_abandoned() { Err(FetchError::Stopped) } else { transfer::run(&self, &job).await };
        self.jobs.borrow_mut().remove(&job.key);
        let counters = &self.common.counters;
        add(if result.is_ok() { &counters.fetched } else { &counters.failed }, 1);
        counters.bytes_in_flight.fetch_sub(size, std::sync::atomic::Ordering::Relaxed);
        self.admission.borrow_mut().done(size);
        for (waiter, pending) in job.waiters.take() {
            drop(pending);
            // One that is not waited for any more is no loss.
            drop(waiter.send(result.clone()));
        }
        self.admit();
    }
}
