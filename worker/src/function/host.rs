//! One lane host as the agent knows it: its socket, the calls it has, what it is about to end for.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustc_hash::FxHashMap;
use scalable_core::worker::calls::{CallId, LaneId};
use scalable_lane::agent::{self, Calls, Greeting, Outgoing, Program};
use scalable_lane::frame::{FLAG, FrameError};
use scalable_lane::shared::Shared;
use scalable_lane::socket::Socket;
use scalable_store::{Released, Segment};

use crate::attempt::OfContainer;
use crate::cgroup::Cgroup;
use crate::logs::Tail;

/// Bytes of segments of one host that wait to be filled again.
const FREE_BYTES_MAX: usize = 64 << 20;

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A helper looks for its program.
    Preparing,
    /// It was started and has not said everything about itself.
    Greeting,
    /// It takes calls.
    Ready,
    /// It was told to end, or killed.
    Ending,
}

/// Why the agent has ended it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It has not.
    Alive,
    /// A call in it was to end and did not: that call has its reason, the others are not to blame.
    CallUnwanted,
    /// It was above its memory limit.
    OverMemory,
    /// The container's memory was nearly full and it took most, or the kernel ended it for that.
    OverContainer(OfContainer),
    /// Nobody needs it.
    Unneeded,
    /// It broke the protocol or does not answer: one sentence.
    Broken(String),
}

/// What a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// Nothing.
    Free,
    /// A call.
    Live(CallId),
    /// A call that was taken back and whose return has not come: the number cannot be used yet.
    Taken,
}

/// What a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// A result in it is kept here.
    Here,
    /// The host may fill it.
    Nobody,
}

/// What a thread was seen to execute: the call's number, how many it had finished before, and since when.
pub type Seen = Option<(u32, u64, Instant)>;

/// See the module.
pub struct Host {
    /// Its lane.
    pub lane: LaneId,
    /// How far it is.
    pub stage: Stage,
    /// Why it ends.
    pub fate: Fate,
    /// Threads it has.
    pub threads: u32,
    /// Slots it has been given.
    pub slots: u32,
    /// Slots of these that were never fed.
    pub fresh: u32,
    /// Threads it was told it may use.
    pub allowed: u32,
    /// Our end.
    pub socket: Option<Socket>,
    /// From `Ready` on.
    pub shared: Option<Shared>,
    /// While it greets.
    pub greeting: Option<Greeting>,
    /// What it has.
    pub program: Program,
    /// Groups it knows, or why it cannot execute them.
    pub groups: FxHashMap<u32, Result<(), String>>,
    /// By number.
    pub numbers: Vec<Number>,
    /// Numbers that are free.
    pub free: Vec<u32>,
    /// Live calls.
    pub outstanding: u32,
    /// Memory that large results come in, by the host's number: whether it is read here or free to be filled again.
    pub segments: FxHashMap<u32, (Arc<Segment>, Reading)>,
    /// Bytes of segments that are free.
    pub free_bytes: usize,
    /// Frames the socket has not taken.
    pub pending: VecDeque<Outgoing>,
    /// The frame that is being written.
    pub calls: Calls,
    /// Ends of its output streams.
    pub tails: [Tail; 2],
    /// Since when it has no slot, or when its greeting has to be over.
    pub since: Instant,
    /// When it is killed if an unwanted call still executes.
    pub kill_at: Option<Instant>,
    /// By thread.
    pub seen: Vec<Seen>,
    /// A call takes so long that nothing is to be queued behind it.
    pub stuck: bool,
    /// Bytes it takes, when the watch looked last.
    pub sampled_now: u64,
    /// Its largest so far.
    pub sampled_peak: u64,
    /// Its limit, bytes; 0 is none.
    pub memory_limit: u64,
    /// Its cgroup, where it has one.
    pub cgroup: Option<Cgroup>,
    /// Processes of the container that the kernel had killed for memory when it began.
    pub kills_before: u64,
}

impl Host {
    /// One that is being prepared.
    pub fn new(lane: LaneId, threads: u32, memory_limit: u64) -> Self {
        Host {
            lane,
            stage: Stage::Preparing,
            fate: Fate::Alive,
            threads,
            slots: 0,
            fresh: 0,
            allowed: threads,
            socket: None,
            shared: None,
            greeting: None,
            program: Program::default(),
            groups: FxHashMap::default(),
            numbers: Vec::new(),
            free: Vec::new(),
            outstanding: 0,
            segments: FxHashMap::default(),
            free_bytes: 0,
            pending: VecDeque::new(),
            calls: Calls::default(),
            tails: Default::default(),
            since: Instant::now(),
            kill_at: None,
            seen: vec![None; threads as usize],
            stuck: false,
            sampled_now: 0,
            sampled_peak: 0,
            memory_limit,
            cgroup: None,
            kills_before: 0,
        }
    }

    /// True when slots may be given to it.
    pub fn takes_slots(&self) -> bool {
        self.stage != Stage::Ending && self.slots < self.threads
    }

    /// Makes its numbers.
    pub fn numbered(&mut self, calls: u32) {
        self.numbers = vec![Number::Free; calls as usize];
        // The smallest comes first, so that few lines of memory are used while there are few calls.
        self.free = (0..calls).rev().collect();
    }

    /// Sends what waits. True when nothing waits any more.
    ///
    /// # Errors
    /// The host is gone.
    pub fn send_pending(&mut self) -> io::Result<bool> {
        let Some(socket) = &self.socket else { return Ok(false) };
        while let Some(frame) = self.pending.front() {
            match frame.send(socket) {
                Ok(()) => drop(self.pending.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Its socket, while it has one.
    pub fn socket_fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(|socket| socket.as_fd())
    }

    /// Takes a call back if it was not begun. Its number is used again when the host has said that it dropped it.
    pub fn take_back(&mut self, number: u32) -> bool {
        let taken = self.shared.as_ref().is_some_and(|shared| shared.take_back(number));
        if taken {
            self.numbers[number as usize] = Number::Taken;
            self.outstanding -= 1;
        }
        taken
    }

    /// Takes a segment that a result came in: a new one, or one that was free.
    ///
    /// # Errors
    /// The host broke the protocol.
    pub fn segment(&mut self, number: u32, new: Option<OwnedFd>) -> Result<Arc<Segment>, FrameError> {
        if let Some(fd) = new {
            let segment = Segment::import(fd).map_err(|_| FrameError("a result's memory is not sealed"))?;
            if self.segments.insert(number, (segment.clone(), Reading::Here)).is_some() {
                return Err(FrameError("a segment comes twice"));
            }
            return Ok(segment);
        }
        let (segment, reading) = self.segments.get_mut(&number).ok_or(FrameError("a segment never came"))?;
        if std::mem::replace(reading, Reading::Here) == Reading::Here {
            return Err(FrameError("a segment was filled while it was read"));
        }
        self.free_bytes -= segment.capacity();
        Ok(segment.clone())
    }

    /// Nobody reads a segment any more: the host is told to fill it again, or to give it up.
    pub fn segment_released(&mut self, number: u32, how: Released) {
        let Some((segment, reading)) = self.segments.get_mut(&number).filter(|(_, reading)| *reading == Reading::Here) else {
            return;
        };
        let capacity = segment.capacity();
        let told = if how == Released::Free && self.free_bytes + capacity <= FREE_BYTES_MAX {
            *reading = Reading::Nobody;
            self.free_bytes += capacity;
            number
        } else {
            self.segments.remove(&number);
            number | FLAG
        };
        self.pending.push_back(agent::segments(&[told]));
    }

    /// Calls and their numbers.
    pub fn live(&self) -> impl Iterator<Item = (u32, CallId)> + '_ {
        self.numbers.iter().enumerate().filter_map(|(number, what)| match what {
            Number::Live(call) => Some((number as u32, *call)),
            Number::Free | Number::Taken => None,
        })
    }

    /// The end of what it has written to its error stream, for messages.
    pub fn last_words(&self) -> String {
        let bytes = self.tails[1].last(2048);
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim();
        if text.is_empty() { String::new() } else { format!("; it said: {text}") }
    }
}
