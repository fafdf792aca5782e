//! The threads of a host. Each has a queue of its own and takes from the others when that is empty (crossbeam-deque). One thread at
//! a time sits in the *seat*: it waits for the next frame. There is no thread beside those that execute, so with one thread a call
//! is read, executed and answered without any hop.
//!
//! Results gather in their thread's frame while more work is at hand. They are sent when it is full, when [`FLUSH_AFTER_NS`] have
//! passed, or when nothing is left to do. A call that takes long after short ones must not hold their results back: then the
//! *flusher* sends them; it sleeps unless results are waiting.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::exit;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crossbeam_deque::{Steal, Stealer, Worker};

use super::call::{Call, CallError, GroupOfCalls, Parameter, Place, Registry, Runtime};
use super::fail;
use super::input::{Before, Calls, Taken};
use super::panic::{Outcome, execute};
use crate::frame::{self, Builder, Cursor, FLAG, Frame, FrameError, RETURN_BYTES, ReturnKind, Returns, cut, write_return};
use crate::memory::Segment;
use crate::shared::Shared;
use crate::socket::{Socket, Wait};
use crate::{FRAME_BYTES_MAX, FRAME_FDS_MAX, INLINE_BYTES_MAX, TEXT_BYTES_MAX};

/// Age of the oldest result at which a thread sends what it has before it goes on.
const FLUSH_AFTER_NS: u64 = 200_000;
/// Age at which the flusher does it for a thread that executes.
const FLUSHER_AFTER: Duration = Duration::from_millis(1);
/// Bytes of results that are sent without waiting for more.
const FRAME_BYTES_GOOD: usize = 48 << 10;
/// Stack of a thread, as a program's first thread has it; untouched pages cost nothing.
const STACK_BYTES: usize = 8 << 20;
/// Buffers kept for frames to come.
const BUFFERS_KEPT: usize = 16;

/// A piece of a frame: so many calls from there on.
struct Piece {
    calls: Arc<Calls>,
    at: usize,
    count: u32,
}

/// A group of calls as it was announced.
struct Group {
    function: usize,
    of: GroupOfCalls,
}

/// Held by the thread that waits for a frame.
#[derive(Default)]
struct Seat {
    before: Before,
    pieces: Vec<(usize, u32)>,
}

/// Results of a thread that are not sent.
#[derive(Default)]
struct Out {
    frame: Builder,
    count: u32,
    busy_ns: u64,
    /// When the first of them was written.
    since_ns: u64,
    memory: Vec<OwnedFd>,
}

/// Where large results are put.
#[derive(Default)]
struct Segments {
    /// By number; nothing while it is filled, and after it was given up.
    all: Vec<Option<Segment>>,
    /// By capacity: those that nobody reads.
    free: HashMap<usize, Vec<u32>>,
    /// Numbers that were given up.
    given_up: Vec<u32>,
}

struct Host {
    registry: Registry,
    socket: Socket,
    shared: Shared,
    born: Instant,
    groups: Mutex<HashMap<u32, Arc<Group>>>,
    /// Counts announcements: a thread that has seen this many knows all groups.
    groups_version: AtomicU64,
    seat: Mutex<Seat>,
    stealers: Vec<Stealer<Piece>>,
    /// Threads that sleep. Also what they sleep on.
    sleepers: AtomicU32,
    sleep: Mutex<()>,
    wake: Condvar,
    /// Threads with a smaller number may execute.
    allowed: AtomicU32,
    ending: AtomicBool,
    outs: Vec<Mutex<Out>>,
    flusher: OnceLock<Thread>,
    flusher_sleeps: AtomicBool,
    runtime: OnceLock<Result<Box<dyn Runtime>, String>>,
    buffers: Mutex<Vec<Vec<u8>>>,
    segments: Mutex<Segments>,
}

/// Calls never unwind while a lock is held; if one did, what it left is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the host on the calling thread and as many more as the agent has said. Returns when it is over.
pub(super) fn run(registry: Registry, socket: Socket, shared: Shared) -> Result<(), String> {
    let threads = shared.threads();
    let queues: Vec<Worker<Piece>> = (0..threads).map(|_| Worker::new_fifo()).collect();
    let host = Arc::new(Host {
        registry,
        socket,
        born: Instant::now(),
        groups: Mutex::default(),
        groups_version: AtomicU64::new(0),
        seat: Mutex::default(),
        stealers: queues.iter().map(Worker::stealer).collect(),
        sleepers: AtomicU32::new(0),
        sleep: Mutex::default(),
        wake: Condvar::new(),
        allowed: AtomicU32::new(threads),
        ending: AtomicBool::new(false),
        outs: (0..threads).map(|_| Mutex::default()).collect(),
        flusher: OnceLock::new(),
        flusher_sleeps: AtomicBool::new(false),
        runtime: OnceLock::new(),
        buffers: Mutex::default(),
        segments: Mutex::default(),
        shared,
    });
    let words = |error: std::io::Error| format!("a thread could not be started: {error}");
    let flusher = host.clone();
    let flusher =
        std::thread::Builder::new().name("lane flusher".to_owned()).stack_size(128 << 10).spawn(move || flusher.flush_late());
    // Only set here.
    let _ = host.flusher.set(flusher.map_err(words)?.thread().clone());
    let mut queues = queues.into_iter().enumerate();
    let first = queues.next();
    let mut others = Vec::new();
    for (nth, queue) in queues {
        let host = host.clone();
        let builder = std::thread::Builder::new().name(format!("lane {nth}")).stack_size(STACK_BYTES);
        others.push(builder.spawn(move || host.work(nth as u32, &queue)).map_err(words)?);
    }
    if let Some((_, queue)) = first {
        host.work(0, &queue);
    }
    for other in others {
        // What a thread had to say it has said to the agent.
        let _ = other.join();
    }
    Ok(())
}

impl Host {
    fn now_ns(&self) -> u64 {
        self.born.elapsed().as_nanos() as u64
    }

    /// One thread, until the host ends.
    fn work(&self, thread: u32, queue: &Worker<Piece>) {
        let mut known = Known::default();
        loop {
            while thread < self.allowed.load(Ordering::Relaxed)
                && let Some(piece) = self.find(thread, queue)
            {
                self.share();
                if lock(&self.outs[thread as usize]).count > 0 {
                    self.wake_flusher();
                }
                self.run_piece(thread, piece, &mut known);
            }
            self.flush(&mut lock(&self.outs[thread as usize]));
            match self.seat.try_lock() {
                Ok(mut seat) => self.read(&mut seat, queue),
                Err(TryLockError::Poisoned(poisoned)) => self.read(&mut poisoned.into_inner(), queue),
                Err(TryLockError::WouldBlock) => {
                    if self.ending.load(Ordering::Acquire) {
                        return;
                    }
                    self.rest(thread, queue);
                    continue;
                }
            }
            if thread >= self.allowed.load(Ordering::Relaxed) {
                // What it has read is for the others.
                self.share();
            }
            if self.ending.load(Ordering::Acquire) {
                // Everybody looks for himself; what is queued is still executed.
                self.wake_all();
                if queue.is_empty() {
                    return;
                }
            }
        }
    }

    fn find(&self, thread: u32, queue: &Worker<Piece>) -> Option<Piece> {
        if let Some(piece) = queue.pop() {
            return Some(piece);
        }
        let count = self.stealers.len();
        for step in 1..count {
            let victim = &self.stealers[(thread as usize + step) % count];
            loop {
                match victim.steal_batch_and_pop(queue) {
                    Steal::Success(piece) => return Some(piece),
                    Steal::Empty => break,
                    Steal::Retry => {}
                }
            }
        }
        None
    }

    /// Before this thread executes: somebody else is to take the seat, or what there is beside.
    fn share(&self) {
        if self.stealers.len() > 1 {
            // Orders the queue and the seat before the look at who sleeps: one that goes to sleep looks the other way round.
            fence(Ordering::SeqCst);
            if self.sleepers.load(Ordering::Relaxed) > 0 {
                self.wake_one();
            }
        }
    }

    fn wake_one(&self) {
        // One that is about to sleep does so before this returns; one that is woken finds the lock free.
        drop(lock(&self.sleep));
        if (self.allowed.load(Ordering::Relaxed) as usize) < self.stealers.len() {
            // One that may not execute could be chosen.
            self.wake.notify_all();
        } else {
            self.wake.notify_one();
        }
    }

    fn wake_all(&self) {
        let _guard = lock(&self.sleep);
        self.wake.notify_all();
    }

    /// Sleeps until there is work or the seat is free.
    fn rest(&self, thread: u32, queue: &Worker<Piece>) {
        let guard = lock(&self.sleep);
        self.sleepers.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let work = thread < self.allowed.load(Ordering::Relaxed)
            && (!queue.is_empty() || self.stealers.iter().any(|stealer| !stealer.is_empty()));
        let seat = !matches!(self.seat.try_lock(), Err(TryLockError::WouldBlock));
        if !work && !seat && !self.ending.load(Ordering::Acquire) {
            drop(self.wake.wait(guard));
        }
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
    }

    /// In the seat: waits for a frame and takes it apart. Its calls are in this thread's queue afterwards.
    fn read(&self, seat: &mut Seat, queue: &Worker<Piece>) {
        if self.ending.load(Ordering::Acquire) {
            return;
        }
        let mut buffer = lock(&self.buffers).pop().unwrap_or_default();
        // Made once: what lies beyond a frame's end is never looked at.
        buffer.resize(FRAME_BYTES_MAX, 0);
        let mut fds = Vec::new();
        match self.socket.receive(&mut buffer, &mut fds, Wait::Yes) {
            // The agent is gone: nobody wants to hear what still executes.
            Ok(0) => exit(0),
            Ok(count) => {
                if let Err(error) = self.take(buffer, count, fds, seat, queue) {
                    fail(&error.to_string());
                }
            }
            Err(error) => fail(&format!("the agent cannot be heard any more: {error}")),
        }
    }

    fn take(
        &self,
        bytes: Vec<u8>,
        length: usize,
        fds: Vec<std::os::fd::OwnedFd>,
        seat: &mut Seat,
        queue: &Worker<Piece>,
    ) -> Result<(), FrameError> {
        let Frame { kind, mut body } = Frame::open(&bytes[..length], fds.len())?;
        match kind {
            frame::CALLS => {
                seat.pieces.clear();
                let calls = Arc::new(Calls::open(bytes, length, fds, &mut seat.before, &mut seat.pieces)?);
                for &(at, count) in &seat.pieces {
                    queue.push(Piece { calls: calls.clone(), at, count });
                }
                return Ok(());
            }
            frame::OBJECTS => seat.before.take(body, fds)?,
            frame::GROUP => self.group(&mut body)?,
            frame::SLOTS => {
                self.allowed.store(body.u32()?, Ordering::Release);
                self.wake_all();
            }
            frame::SEGMENTS => self.read_no_more(&mut body)?,
            frame::STOP => self.ending.store(true, Ordering::Release),
            _ => return Err(FrameError("a host does not know its kind")),
        }
        self.give_back(bytes);
        Ok(())
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let mut buffers = lock(&self.buffers);
        if buffers.len() < BUFFERS_KEPT {
            buffers.push(buffer);
        }
    }

    /// Puts a result into a segment that nobody reads; a descriptor comes with one that is new.
    fn put(&self, value: &[u8]) -> std::io::Result<(u32, Option<OwnedFd>)> {
        let capacity = Segment::capacity_for(value.len());
        let used = {
            let mut segments = lock(&self.segments);
            let number = segments.free.get_mut(&capacity).and_then(Vec::pop);
            number.and_then(|number| Some((number, segments.all[number as usize].take()?)))
        };
        let (number, mut segment, new) = match used {
            Some((number, segment)) => (number, segment, None),
            None => {
                let segment = Segment::create(capacity)?;
                let fd = segment.as_fd().try_clone_to_owned()?;
                let mut segments = lock(&self.segments);
                let number = segments.given_up.pop().unwrap_or_else(|| {
                    segments.all.push(None);
                    segments.all.len() as u32 - 1
                });
                (number, segment, Some(fd))
            }
        };
        segment.fill(value);
        lock(&self.segments).all[number as usize] = Some(segment);
        Ok((number, new))
    }

    fn read_no_more(&self, body: &mut Cursor<'_>) -> Result<(), FrameError> {
        let mut segments = lock(&self.segments);
        for _ in 0..body.u32()? {
            let number = body.u32()?;
            let place = segments.all.get_mut((number & !FLAG) as usize).ok_or(FrameError("a segment was never made"))?;
            let capacity = place.as_ref().map(Segment::capacity).ok_or(FrameError("a segment was given back twice"))?;
            if number & FLAG == 0 {
                segments.free.entry(capacity).or_default().push(number);
            } else {
                *place = None;
                segments.given_up.push(number & !FLAG);
            }
        }
        Ok(())
    }

    fn group(&self, body: &mut Cursor<'_>) -> Result<(), FrameError> {
        let (number, function) = (body.u32()?, body.u32()? as usize);
        if function >= self.registry.functions().len() {
            return Err(FrameError("a group calls a function that this program did not name"));
        }
        let (run, group) = (body.text()?.to_owned(), body.text()?.to_owned());
        let mut parameters = Vec::new();
        for _ in 0..body.u16()? {
            parameters.push(match body.u32()? {
                u32::MAX => Parameter::Value,
                input => Parameter::Input(input),
            });
        }
        let group = Arc::new(Group { function, of: GroupOfCalls { run, group, parameters } });
        lock(&self.groups).insert(number, group);
        self.groups_version.fetch_add(1, Ordering::Release);
        Ok(())
    }

    fn run_piece(&self, thread: u32, piece: Piece, known: &mut Known) {
        let version = self.groups_version.load(Ordering::Acquire);
        if known.version != version {
            known.groups.clear();
            known.version = version;
        }
        let (mut at, mut began) = (piece.at, self.now_ns());
        for nth in 0..piece.count {
            let taken = piece.calls.call(at);
            at = taken.next;
            let call = taken.head.call;
            if !self.shared.begin(thread, call) {
                let mut out = lock(&self.outs[thread as usize]);
                self.write(&mut out, call, 0, ReturnKind::Dropped, &[]);
                continue;
            }
            let outcome = self.call(taken, known);
            self.shared.end(thread);
            let now = self.now_ns();
            let more = nth + 1 < piece.count;
            self.returned(thread, call, began, now, outcome, more);
            began = now;
        }
        if let Ok(calls) = Arc::try_unwrap(piece.calls) {
            self.give_back(calls.into_bytes());
        }
    }

    fn call(&self, taken: Taken<'_>, known: &mut Known) -> Outcome {
        let Taken { head, values, inputs, unable, .. } = taken;
        if let Some(why) = unable {
            return Outcome::Unable(why.to_owned());
        }
        let announced = || lock(&self.groups).get(&head.group).cloned();
        let group = match known.groups.entry(head.group) {
            Entry::Occupied(entry) => Some(&*entry.into_mut()),
            Entry::Vacant(entry) => announced().map(|group| &*entry.insert(group)),
        };
        let Some(group) = group else {
            return Outcome::Unable(format!("group {} was never announced to this lane host", head.group));
        };
        let function = &self.registry.functions()[group.function];
        let place = Place { index: head.index, attempt: head.attempt, task_id: head.task_id };
        let mut call = Call::new(values, inputs, &group.of, place);
        if let Some(state) = self.shared.state(head.call) {
            call = call.with_state(state);
        }
        execute(function, &mut call, || self.runtime())
    }

    fn runtime(&self) -> Result<&dyn Runtime, String> {
        let made = self.runtime.get_or_init(|| match self.registry.runtime() {
            Some(factory) => factory().map_err(|why| format!("the runtime for asynchronous functions cannot be made: {why}")),
            None => Err("this program has no runtime for asynchronous functions".to_owned()),
        });
        made.as_ref().map(|runtime| &**runtime).map_err(Clone::clone)
    }

    fn returned(&self, thread: u32, call: u32, began: u64, now: u64, outcome: Outcome, more: bool) {
        let wall_ns = now - began;
        let wall_us = u32::try_from(wall_ns / 1000).unwrap_or(u32::MAX);
        let mut out = lock(&self.outs[thread as usize]);
        match &outcome {
            Outcome::Value(value) if value.len() <= INLINE_BYTES_MAX => {
                self.write(&mut out, call, wall_us, ReturnKind::Value, &[value])
            }
            Outcome::Value(value) => match self.put(value) {
                Ok((number, new)) => {
                    if out.memory.len() == FRAME_FDS_MAX {
                        self.flush(&mut out);
                    }
                    let flag = if new.is_some() { FLAG } else { 0 };
                    let length = (value.len() as u64).to_le_bytes();
                    self.write(&mut out, call, wall_us, ReturnKind::Memory, &[&length, &(number | flag).to_le_bytes()]);
                    out.memory.extend(new);
                }
                Err(error) => {
                    let why = format!("its result of {} bytes could not be put into shared memory: {error}", value.len());
                    self.write(&mut out, call, wall_us, ReturnKind::Unable, &[why.as_bytes()]);
                }
            },
            Outcome::Failed(CallError::Failed(why)) => {
                self.write(&mut out, call, wall_us, ReturnKind::Failed, &[cut(why, TEXT_BYTES_MAX).as_bytes()]);
            }
            Outcome::Failed(CallError::Decode(why)) => {
                self.write(&mut out, call, wall_us, ReturnKind::Decode, &[cut(why, TEXT_BYTES_MAX).as_bytes()]);
            }
            Outcome::Panicked { message, backtrace } => {
                let message = cut(message, TEXT_BYTES_MAX).as_bytes();
                let length = (message.len() as u16).to_le_bytes();
                let backtrace = cut(backtrace, TEXT_BYTES_MAX).as_bytes();
                self.write(&mut out, call, wall_us, ReturnKind::Panicked, &[&length, message, backtrace]);
            }
            Outcome::Unable(why) => {
                self.write(&mut out, call, wall_us, ReturnKind::Unable, &[cut(why, TEXT_BYTES_MAX).as_bytes()]);
            }
        }
        out.busy_ns += wall_ns;
        if out.count == 1 {
            out.since_ns = now;
        }
        if now - out.since_ns >= FLUSH_AFTER_NS || out.frame.len() >= FRAME_BYTES_GOOD {
            self.flush(&mut out);
        } else if more && out.count == 1 {
            drop(out);
            self.wake_flusher();
        }
    }

    fn write(&self, out: &mut Out, call: u32, wall_us: u32, kind: ReturnKind, payload: &[&[u8]]) {
        let bytes = RETURN_BYTES + payload.iter().map(|part| part.len()).sum::<usize>();
        if out.count > 0 && !out.frame.has_room(bytes) {
            self.flush(out);
        }
        if out.count == 0 {
            Returns::begin(&mut out.frame);
        }
        write_return(&mut out.frame, call, wall_us, kind, payload);
        out.count += 1;
    }

    /// Sends what a thread has. The agent takes it sooner or later: it waits for nothing of ours.
    fn flush(&self, out: &mut Out) {
        if out.count == 0 {
            return;
        }
        out.frame.set_u32(Returns::COUNT_AT, out.count);
        out.frame.set_u64(Returns::BUSY_AT, out.busy_ns);
        let fds: Vec<BorrowedFd<'_>> = out.memory.iter().map(AsFd::as_fd).collect();
        if self.socket.send(out.frame.finish(fds.len()), &fds, Wait::Yes).is_err() {
            // Nobody is left to hear it.
            exit(0);
        }
        drop(fds);
        out.memory.clear();
        (out.count, out.busy_ns) = (0, 0);
    }

    fn wake_flusher(&self) {
        if self.flusher_sleeps.swap(false, Ordering::AcqRel)
            && let Some(flusher) = self.flusher.get()
        {
            flusher.unpark();
        }
    }

    /// The flusher. It ends with the process.
    fn flush_late(&self) {
        loop {
            // Said before the look: a result that comes after it wakes.
            self.flusher_sleeps.store(true, Ordering::Release);
            let (mut waiting, now) = (false, self.now_ns());
            for out in &self.outs {
                let mut out = lock(out);
                if out.count > 0 {
                    waiting = true;
                    if now.saturating_sub(out.since_ns) >= FLUSHER_AFTER.as_nanos() as u64 {
                        self.flush(&mut out);
                    }
                }
            }
            if waiting {
                std::thread::sleep(FLUSHER_AFTER);
            } else {
                std::thread::park();
            }
        }
    }
}

/// What a thread knows of groups without asking.
#[derive(Default)]
struct Known {
    version: u64,
    groups: HashMap<u32, Arc<Group>>,
}
