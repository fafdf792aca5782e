//! What the user's side of a session and its connection share: the outbox, the groups whose results come, and how much of the
//! results was taken.
//!
//! Flow control of results: a result counts as taken when it was read or is not wanted any more; while somebody waits for a result
//! that is not there, everything that arrives counts as taken, for what is waited for may lie behind it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};

use scalable_proto::v1;
use scalable_store::{Fetcher, FetcherOptions, Holder, Peers, SegmentPool};
use tokio::sync::Notify;

use crate::Error;
use crate::endpoint::Endpoint;
use crate::group::Group;
use crate::outbox::{Outbox, Range};
use crate::processes::Processes;

/// The scheduler hears of taken results when so much was taken since it heard of them last, in its own measure.
const TAKEN_STEP: u64 = 256 << 10;
/// Memory for fetched results that is kept to be used again.
const FETCH_POOL_BYTES: usize = 64 << 20;

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Tells sessions of one process apart.
    pub(crate) number: u64,
    /// For messages.
    pub(crate) address: String,
    /// Whose workers results are fetched from; none for a session inside this process.
    endpoint: Option<Endpoint>,
    outbox: Mutex<Outbox>,
    /// Wakes the connection.
    pub(crate) wake: Notify,
    /// Wakes who waits for room in the outbox.
    room: Notify,
    /// Those that somebody still has to do with, by ordinal.
    groups: RwLock<BTreeMap<u32, Weak<Group>>>,
    arrived: AtomicU64,
    read: AtomicU64,
    reported: AtomicU64,
    /// Who waits for a result that is not there.
    waiting: AtomicU32,
    /// Nobody submits any more and nobody has a handle.
    abandoned: AtomicBool,
    over: OnceLock<Error>,
    /// Where workers answer that hold results.
    peers: Peers,
    fetcher: OnceLock<Fetcher>,
}

impl Shared {
    pub(crate) fn new(address: String, endpoint: Option<Endpoint>) -> Arc<Shared> {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        Arc::new(Shared {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            address,
            endpoint,
            outbox: Mutex::default(),
            wake: Notify::new(),
            room: Notify::new(),
            groups: RwLock::default(),
            arrived: AtomicU64::new(0),
            read: AtomicU64::new(0),
            reported: AtomicU64::new(0),
            waiting: AtomicU32::new(0),
            abandoned: AtomicBool::new(false),
            over: OnceLock::new(),
            peers: Peers::default(),
            fetcher: OnceLock::new(),
        })
    }

    /// The outbox. Whoever queues something calls [`Shared::queued`] with it afterwards.
    pub(crate) fn outbox(&self) -> MutexGuard<'_, Outbox> {
        // It is consistent between any two statements of its methods that can panic: a panic elsewhere does not spoil it.
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something was queued: wakes the connection if it sleeps.
    #[inline]
    pub(crate) fn queued(&self, mut outbox: MutexGuard<'_, Outbox>) {
        let idle = std::mem::take(&mut outbox.idle);
        drop(outbox);
        if idle {
            self.wake.notify_one();
        }
    }

    /// Waits until `queue` has found room, or the session is over.
    pub(crate) async fn with_room<T>(&self, mut queue: impl FnMut(&mut Outbox) -> Option<T>) -> Result<T, Error> {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            // Registered before looking: room that is made meanwhile is not missed.
            room.as_mut().enable();
            if let Some(error) = self.over.get() {
                return Err(error.clone());
            }
            if let Some(done) = self.try_now(&mut queue) {
                return Ok(done);
            }
            let _waiting = self.wait_for_result();
            room.await;
        }
    }

    /// As [`Shared::with_room`], when it is there at once.
    #[inline]
    pub(crate) fn try_now<T>(&self, queue: impl FnOnce(&mut Outbox) -> Option<T>) -> Option<T> {
        let mut outbox = self.outbox();
        let done = queue(&mut outbox);
        self.queued(outbox);
        done
    }

    /// Frames were acknowledged.
    pub(crate) fn made_room(&self) {
        self.room.notify_waiters();
    }

    /// A group whose ordinal the outbox has just given out.
    pub(crate) fn register(&self, group: &Arc<Group>) {
        self.groups.write().unwrap_or_else(PoisonError::into_inner).insert(group.ordinal(), Arc::downgrade(group));
    }

    /// Nobody has to do with the group of this ordinal any more.
    pub(crate) fn forget(&self, ordinal: u32) {
        self.groups.write().unwrap_or_else(PoisonError::into_inner).remove(&ordinal);
        let mut outbox = self.outbox();
        outbox.forget(ordinal);
        self.queued(outbox);
    }

    /// The group of this ordinal, if anybody still has to do with it.
    pub(crate) fn group(&self, ordinal: u32) -> Option<Arc<Group>> {
        self.groups.read().unwrap_or_else(PoisonError::into_inner).get(&ordinal)?.upgrade()
    }

    /// The name of a task for messages.
    pub(crate) fn task_name(&self, group: u32, index: u32) -> String {
        match self.group(group) {
            Some(group) => format!("{}[{index}]", group.name()),
            None => format!("#{group}[{index}]"),
        }
    }

    /// Results have come.
    pub(crate) fn results(&self, results: v1::ResultBatch) {
        let weight = results.weight;
        self.arrived.fetch_add(weight, Ordering::Relaxed);
        let length = self.outbox().length(results.group);
        match self.group(results.group) {
            Some(group) => group.arrived(results, length),
            None => self.was_read(weight),
        }
    }

    /// A worker that holds results is, or has moved.
    pub(crate) fn introduced(&self, peer: v1::AnnouncePeer) {
        let holder = Holder { address: peer.address, host: peer.host };
        self.peers.introduce(peer.peer, holder);
    }

    /// Those of the peers that are known.
    pub(crate) fn holders(&self, peers: &[u32]) -> Vec<Holder> {
        self.peers.holders(peers)
    }

    /// What fetches results from workers: started when it is needed first.
    pub(crate) fn fetcher(&self) -> std::io::Result<&Fetcher> {
        if self.fetcher.get().is_none() {
            let pool = SegmentPool::new(FETCH_POOL_BYTES);
            let options = match &self.endpoint {
                Some(endpoint) => endpoint.fetcher_options(pool),
                None => FetcherOptions::new(pool),
            };
            let started = Fetcher::start(options)?;
            // When another thread was faster, its fetcher stays and this one ends.
            let _ = self.fetcher.set(started);
        }
        self.fetcher.get().ok_or_else(|| std::io::Error::other("it was not kept"))
    }

    /// Elements were refused, or with `count` 0 the group.
    pub(crate) fn rejected(&self, rejected: v1::Rejected) {
        let length = self.outbox().length(rejected.group);
        if let Some(group) = self.group(rejected.group) {
            group.rejected(rejected, length);
        }
    }

    /// The user has taken results of this weight.
    pub(crate) fn was_read(&self, weight: u64) {
        let read = self.read.fetch_add(weight, Ordering::Relaxed) + weight;
        if read >= self.reported.load(Ordering::Relaxed) + TAKEN_STEP {
            self.wake.notify_one();
        }
    }

    /// Says that somebody waits for a result that is not there, until the guard is dropped.
    pub(crate) fn wait_for_result(&self) -> Waiting<'_> {
        self.begin_wait();
        Waiting(self)
    }

    /// Awaits something, with the session knowing that somebody waits while it is not there.
    pub(crate) async fn while_waiting<F: Future>(&self, future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        let mut waits = None;
        std::future::poll_fn(|context| {
            let polled = future.as_mut().poll(context);
            if polled.is_pending() && waits.is_none() {
                waits = Some(self.wait_for_result());
            }
            polled
        })
        .await
    }

    /// As [`Shared::wait_for_result`]; ended with [`Shared::end_wait`].
    pub(crate) fn begin_wait(&self) {
        if self.waiting.fetch_add(1, Ordering::AcqRel) == 0
            && self.arrived.load(Ordering::Relaxed) >= self.reported.load(Ordering::Relaxed) + TAKEN_STEP
        {
            self.wake.notify_one();
        }
    }

    pub(crate) fn end_wait(&self) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
    }

    /// What the scheduler is to be told, when it is enough to tell.
    pub(crate) fn taken(&self) -> Option<u64> {
        let counted = if self.waiting.load(Ordering::Acquire) > 0 { &self.arrived } else { &self.read };
        let (taken, reported) = (counted.load(Ordering::Relaxed), self.reported.load(Ordering::Relaxed));
        (taken >= reported + TAKEN_STEP).then(|| {
            self.reported.store(taken, Ordering::Relaxed);
            taken
        })
    }

    /// The session is over: everybody who waits hears it.
    pub(crate) fn end(&self, error: Error) {
        let error = self.over.get_or_init(|| error).clone();
        self.room.notify_waiters();
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner).clone();
        for group in groups.values().filter_map(Weak::upgrade) {
            group.lost(&error);
        }
    }

    /// Why the session is over, if it is.
    pub(crate) fn over(&self) -> Option<&Error> {
        self.over.get()
    }

    /// True when nobody submits any more and nobody has a handle.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// Groups that somebody still has to do with, and how many elements each has.
    pub(crate) fn groups(&self) -> Vec<(Arc<Group>, u32)> {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner).clone();
        let outbox = self.outbox();
        groups.values().filter_map(Weak::upgrade).map(|group| (group.clone(), outbox.length(group.ordinal()))).collect()
    }

    /// Queues words.
    pub(crate) fn release(&self, range: Range) {
        let mut outbox = self.outbox();
        outbox.release(range);
        self.queued(outbox);
    }

    /// Asks where a result is that could be had from none of its holders.
    pub(crate) fn locate(&self, group: u32, index: u32) {
        let mut outbox = self.outbox();
        outbox.locate(group, index);
        self.queued(outbox);
    }

    pub(crate) fn cancel(&self, range: Range) {
        let mut outbox = self.outbox();
        outbox.cancel(range);
        self.queued(outbox);
    }
}

/// See [`Shared::wait_for_result`].
pub(crate) struct Waiting<'a>(&'a Shared);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.end_wait();
    }
}

/// Held by everybody who has to do with a session; the connection ends when the last one is dropped.
#[derive(Debug)]
pub(crate) struct Stake {
    pub(crate) shared: Arc<Shared>,
    /// The session's own processes, which end when nobody has to do with it any more.
    #[allow(dead_code)]
    pub(crate) processes: Option<Processes>,
}

impl Drop for Stake {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.abandoned.store(true, Ordering::Release);
        let mut outbox = shared.outbox();
        outbox.close();
        outbox.idle = false;
        drop(outbox);
        shared.wake.notify_one();
    }
}
