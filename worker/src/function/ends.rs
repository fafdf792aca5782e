//! What comes back from hosts: results, errors, panics, and their end.

use std::io;
use std::os::fd::OwnedFd;

use scalable_core::messages::OutcomeClass;
use scalable_core::worker::calls::{CallId, Over};
use scalable_lane::INLINE_BYTES_MAX;
use scalable_lane::frame::{Cursor, FLAG, Frame, FrameError, RETURNS, Return, ReturnKind, Returns};
use scalable_proto::v1::{AttemptReport, MemoryMethod};
use scalable_store::{Content, ObjectId, Released};

use super::host::{Fate, Host, Number, Stage};
use super::{Cx, Functions, failure};
use crate::agent::memory::by_kernel;
use crate::attempt::{OfContainer, signal_name, size, unix_micros};
use crate::lane::{End, Which};
use crate::logs::TAIL_BYTES_MAX;
use crate::watch::Look;

/// Frames taken from one host before others are looked at.
const TURN_MAX: usize = 64;

impl Functions {
    /// Takes what a host has sent.
    pub(super) fn receive(&mut self, cx: &mut Cx<'_>, serial: u64) {
        let mut inbox = std::mem::take(&mut self.inbox);
        for _ in 0..TURN_MAX {
            let Some(host) = self.hosts.get_mut(&serial) else { break };
            let Some(socket) = &host.socket else { break };
            let received = inbox.receive(socket);
            let (bytes, fds) = match received {
                Ok(Some(frame)) => frame,
                // Its end is heard of in a moment; until then the closed socket would be heard of again and again.
                Ok(None) => {
                    host.socket = None;
                    if host.stage != Stage::Ending {
                        cx.processes.kill(serial);
                    }
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    let why = format!("its lane host sends what is no frame: {error}");
                    self.broken(cx, serial, why);
                    break;
                }
            };
            if let Some(greeting) = &mut host.greeting {
                match greeting.take(bytes, fds.len()) {
                    Ok(false) => {}
                    Ok(true) => {
                        if let Err(error) = self.greeted(cx, serial) {
                            self.broken(cx, serial, format!("a lane host could not be given its memory: {error}"));
                        }
                    }
                    Err(why) => {
                        self.broken(cx, serial, format!("a lane host cannot be used: {why}"));
                        break;
                    }
                }
                continue;
            }
            if let Err(error) = self.returns(cx, serial, bytes, fds) {
                self.broken(cx, serial, error.to_string());
                break;
            }
            self.fill(cx, serial);
        }
        self.inbox = inbox;
    }

    fn returns(&mut self, cx: &mut Cx<'_>, serial: u64, bytes: &[u8], fds: &mut Vec<OwnedFd>) -> Result<(), FrameError> {
        let frame = Frame::open(bytes, fds.len())?;
        if frame.kind != RETURNS {
            return Err(FrameError("a host sends nothing but returns"));
        }
        let mut returns = Returns::open(frame.body)?;
        let (mut fds, mut count) = (fds.drain(..), 0u64);
        while let Some(one) = returns.next_return()? {
            let Some(host) = self.hosts.get_mut(&serial) else { return Ok(()) };
            if one.call as usize >= host.numbers.len() {
                return Err(FrameError("a host returns a number it never had"));
            }
            let memory = match one.kind {
                ReturnKind::Memory => Some(take_memory(cx, serial, host, &one, &mut fds)?),
                _ => None,
            };
            let Some(number) = host.numbers.get_mut(one.call as usize) else { continue };
            let before = std::mem::replace(number, Number::Free);
            match before {
                Number::Free => return Err(FrameError("a host returns a call it does not have")),
                Number::Taken => host.free.push(one.call),
                Number::Live(call) => {
                    host.free.push(one.call);
                    host.outstanding -= 1;
                    if one.kind == ReturnKind::Dropped {
                        return Err(FrameError("a host dropped a call that was not taken back"));
                    }
                    count += 1;
                    let payload = self.payloads.get_mut(call.batch as usize).and_then(Option::as_mut);
                    // What it read may leave memory from here on.
                    let _read = payload.filter(|of| !of.inputs.is_empty()).and_then(|of| of.inputs.remove(&call.at));
                    self.returned(cx, call, &one, memory)?;
                }
            }
        }
        let Some(host) = self.hosts.get_mut(&serial) else { return Ok(()) };
        if let Some(each) = returns.busy_ns.checked_div(count) {
            host.stuck = false;
            if let Some(lane) = self.lanes.get_mut(&host.lane) {
                lane.took(each);
                lane.blameless = 0;
            }
        }
        Ok(())
    }

    fn returned(&mut self, cx: &mut Cx<'_>, call: CallId, one: &Return<'_>, memory: Option<Content>) -> Result<(), FrameError> {
        // Nobody waits for it when the session is over.
        let Some(over) = cx.machine.call_over(call, cx.out) else { return Ok(()) };
        if over.cause.is_none() && one.kind == ReturnKind::Value {
            if one.payload.len() > INLINE_BYTES_MAX {
                return Err(FrameError("a result inside a frame is too large"));
            }
            cx.batch.value(over.handle, over.attempt, one.wall_us, one.payload);
            return Ok(());
        }
        let text = || String::from_utf8_lossy(one.payload).into_owned();
        let mut report = match (one.kind, memory) {
            (ReturnKind::Memory, Some(content)) => match self.keep(call, &over, content) {
                Ok(size) if over.cause.is_none() => {
                    cx.batch.object(over.handle, over.attempt, one.wall_us, size);
                    return Ok(());
                }
                Ok(_) => failure(OutcomeClass::Succeeded, String::new()),
                Err(why) => failure(OutcomeClass::InfraStart, why),
            },
            (ReturnKind::Panicked, _) => {
                let mut payload = Cursor::new(one.payload);
                let length = payload.u16()?;
                let message = String::from_utf8_lossy(payload.bytes(usize::from(length))?).into_owned();
                let backtrace = String::from_utf8_lossy(payload.rest()).into_owned();
                AttemptReport { panicked: true, backtrace, ..failure(OutcomeClass::AppError, message) }
            }
            (ReturnKind::Decode, _) => failure(OutcomeClass::AppError, format!("its arguments could not be decoded: {}", text())),
            (ReturnKind::Unable, _) => failure(OutcomeClass::InfraStart, text()),
            _ => failure(OutcomeClass::AppError, text()),
        };
        if let Some(cause) = over.cause {
            report = failure(cause, cause_words(cause));
        }
        report.started_us = report.finished_us.saturating_sub(i64::from(one.wall_us));
        self.report(cx, &over, report);
        Ok(())
    }

    /// Keeps a large result here, and says its bytes. The error is nobody's fault: there is no room.
    fn keep(&mut self, call: CallId, over: &Over, content: Content) -> Result<u64, String> {
        let bytes = content.len();
        let Some(payload) = self.payloads.get(call.batch as usize).and_then(Option::as_ref).filter(|_| over.cause.is_none())
        else {
            // Nobody wants it.
            return Ok(bytes);
        };
        let (number, group) = payload.group(call.at);
        let id = ObjectId { run: group.run.id, group: number, index: payload.index[call.at as usize], attempt: over.attempt };
        self.objects.put(id, content).map(|()| bytes)
    }

    /// Nobody reads a segment of a host any more.
    pub fn segment_released(&mut self, cx: &mut Cx<'_>, serial: u64, number: u32, how: Released) {
        let Some(host) = self.hosts.get_mut(&serial).filter(|host| host.stage == Stage::Ready) else { return };
        host.segment_released(number, how);
        if !matches!(host.send_pending(), Ok(true)) {
            self.await_room(cx, serial);
        }
    }

    /// Bytes that a host has written to a stream: the end of them is kept for messages.
    pub fn output(&mut self, serial: u64, which: Which, bytes: &[u8]) {
        if let Some(host) = self.hosts.get_mut(&serial) {
            host.tails[if which == Which::Stdout { 0 } else { 1 }].push(bytes);
        }
    }

    /// The watch has looked at a host.
    pub fn look(&mut self, cx: &mut Cx<'_>, look: Look) {
        let Some(host) = self.hosts.get_mut(&look.serial) else { return };
        (host.sampled_now, host.sampled_peak) = (look.now_bytes, host.sampled_peak.max(look.peak_bytes));
        if look.over && host.stage != Stage::Ending {
            self.end_host(cx, look.serial, Fate::OverMemory);
            cx.processes.kill(look.serial);
        }
        self.free_memory(cx);
        self.act(cx);
    }

    /// The container's memory is nearly full, and this host takes most of it.
    pub fn over_container(&mut self, cx: &mut Cx<'_>, serial: u64, of: OfContainer) {
        self.end_host(cx, serial, Fate::OverContainer(of));
        cx.processes.kill(serial);
        self.act(cx);
    }

    /// No process of a host is left.
    pub fn host_ended(&mut self, cx: &mut Cx<'_>, serial: u64, end: &End) {
        // What it had sent before is still to be had.
        while self.hosts.get(&serial).is_some_and(|host| host.socket.is_some()) {
            let before = self.hosts.get(&serial).map_or(0, |host| host.outstanding);
            self.receive(cx, serial);
            if self.hosts.get(&serial).map_or(0, |host| host.outstanding) == before {
                break;
            }
        }
        let Some(host) = self.hosts.get_mut(&serial) else { return };
        let seen = host.cgroup.as_ref().map(|cgroup| cgroup.seen());
        if host.fate == Fate::Alive && seen.is_some_and(|seen| seen.killed) {
            host.fate = Fate::OverMemory;
        }
        if host.fate == Fate::Alive
            && let Some(of) = by_kernel(cx.container, end, host.kills_before)
        {
            host.fate = Fate::OverContainer(of);
        }
        let greeted = host.shared.is_some();
        let ready = host.stage == Stage::Ready;
        host.stage = Stage::Ending;
        let executing: Vec<u32> = host.shared.as_ref().map(|shared| shared.executing().collect()).unwrap_or_default();
        let mut live: Vec<(u32, CallId)> = host.live().collect();
        live.sort_unstable_by_key(|(_, call)| *call);
        let lane = host.lane;
        let mut blamed = 0;
        // From the last to the first: each goes to the front of its queue.
        for (number, call) in live.into_iter().rev() {
            let blame = executing.contains(&number);
            let Some(host) = self.hosts.get(&serial) else { return };
            let spared = host.fate == Fate::CallUnwanted || host.fate == Fate::Unneeded;
            if !blame || (spared && !cx.machine.is_unwanted(call)) {
                cx.machine.call_back(call);
                continue;
            }
            blamed += 1;
            let report = crash_report(host, end, seen.and_then(|seen| seen.peak));
            if let Some(over) = cx.machine.call_over(call, cx.out) {
                let report = match over.cause {
                    Some(cause) => AttemptReport { started_us: report.started_us, ..failure(cause, cause_words(cause)) },
                    None => report,
                };
                self.report(cx, &over, report);
            }
        }
        let Some(host) = self.hosts.get(&serial) else { return };
        let why = match (&host.fate, &end.failure) {
            (Fate::Broken(why), _) => Some(format!("{why}{}", host.last_words())),
            (_, Some(failure)) => Some(failure.clone()),
            (Fate::OverMemory, None) if !greeted => Some(format!(
                "the program was ended before it said what it has: it took more than its limit of {}; ask for more with `memory`",
                size(host.memory_limit)
            )),
            (Fate::OverContainer(of), None) if !greeted => Some(of.sentence("the program", host.sampled_peak, host.memory_limit)),
            (Fate::Alive, None) if !greeted => Some(format!(
                "the program {} before it said what it has; it must call scalable::init! first in main{}",
                how(end),
                host.last_words()
            )),
            (Fate::Alive | Fate::OverMemory | Fate::OverContainer(_), None) if blamed == 0 && ready => {
                Some(format!("its lane host {} while nothing was executing in it{}", how(end), host.last_words()))
            }
            _ => None,
        };
        match why {
            Some(why) if !greeted => self.give_lane_up(cx, lane, &why),
            Some(why) if blamed == 0 => self.blameless(cx, lane, &why),
            _ => {}
        }
        self.host_gone(cx, serial);
        self.act(cx);
    }
}

/// The content of a large result, in the host's memory.
fn take_memory(
    cx: &Cx<'_>,
    serial: u64,
    host: &mut Host,
    one: &Return<'_>,
    fds: &mut impl Iterator<Item = OwnedFd>,
) -> Result<Content, FrameError> {
    let mut payload = Cursor::new(one.payload);
    let (length, number) = (payload.u64()?, payload.u32()?);
    let new = match number & FLAG {
        0 => None,
        _ => Some(fds.next().ok_or(FrameError("a descriptor is missing"))?),
    };
    let number = number & !FLAG;
    let segment = host.segment(number, new)?;
    let length = usize::try_from(length).map_err(|_| FrameError("a result is larger than memory can be"))?;
    Content::from_segment(&segment, length, (cx.released)(serial, number))
        .map_err(|_| FrameError("a result's memory is shorter than was said"))
}

/// How a process ended, as the rest of a sentence.
fn how(end: &End) -> String {
    match (end.exit_code, end.signal) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}{}", signal_name(signal)),
        (None, None) => "ended, and how is not known".to_owned(),
    }
}

fn cause_words(cause: OutcomeClass) -> String {
    match cause {
        OutcomeClass::Timeout => "the function ran into its timeout and was ended".to_owned(),
        OutcomeClass::Preempted => "its worker drains and the deadline was over".to_owned(),
        _ => "it was cancelled".to_owned(),
    }
}

/// What a call has to say whose host died while executing it.
fn crash_report(host: &Host, end: &End, peak: Option<u64>) -> AttemptReport {
    let (class, message) = match &host.fate {
        Fate::OverMemory => (
            OutcomeClass::Oom,
            format!(
                "out of memory: the lane host took {} and its limit is {}; ask for more with `memory`",
                size(peak.unwrap_or(host.sampled_peak).max(host.sampled_now)),
                size(host.memory_limit)
            ),
        ),
        Fate::OverContainer(of) => {
            let taken = peak.unwrap_or(host.sampled_peak).max(host.sampled_now);
            (OutcomeClass::Oom, of.sentence("the lane host", taken, host.memory_limit))
        }
        Fate::Broken(why) => (OutcomeClass::AppError, why.clone()),
        _ => (OutcomeClass::AppError, format!("the function ended the process that executed it, which {}", how(end))),
    };
    let (peak_memory_bytes, method) = match peak {
        Some(peak) => (peak, MemoryMethod::Cgroup),
        None if host.sampled_peak > 0 => (host.sampled_peak, MemoryMethod::Sampled),
        None => (end.max_rss_bytes, MemoryMethod::Rusage),
    };
    AttemptReport {
        exit_code: end.exit_code,
        signal: end.signal,
        peak_memory_bytes,
        memory_method: method as i32,
        memory_limit_bytes: match &host.fate {
            Fate::OverContainer(of) if host.memory_limit == 0 => of.limit_bytes,
            _ => host.memory_limit,
        },
        stdout_tail: host.tails[0].last(TAIL_BYTES_MAX).into(),
        stderr_tail: host.tails[1].last(TAIL_BYTES_MAX).into(),
        stdout_bytes: host.tails[0].total,
        stderr_bytes: host.tails[1].total,
        finished_us: unix_micros(),
        ..failure(class, message)
    }
}
