//! The guard of the container's memory: tells the scheduler which attempts take most beyond their requests, and ends the first of them
//! before the kernel ends everything. What the kernel ended all the same is known by its counter.

use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use scalable_core::ids::Handle;
use scalable_core::worker::{Input, Serial, Worker};
use scalable_proto::v1;

use super::Agent;
use crate::attempt::{Attempt, OfContainer, size};
use crate::container::Container;
use crate::function::Functions;
use crate::lane::End;
use crate::options::MemoryLimit;
use crate::watch::Measured;

/// From here on an attempt is ended, in hundredths of the container's limit.
const END_PERCENT: u64 = 95;
/// Between two heartbeats that are sent because the container is nearly full.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// Longest wait for the end of an attempt before another one is looked for: its processes may hang in the kernel.
const ENDING_MAX: Duration = Duration::from_secs(5);
/// Attempts that a heartbeat names.
const SHARES_MAX: usize = scalable_core::scheduler::SHARES_MAX;
/// What a shell exits with when the kernel killed its child.
const KILLED: i32 = 128 + libc::SIGKILL;

/// What the guard remembers.
#[derive(Debug, Default)]
pub(super) struct Guard {
    /// What it is ending, and since when.
    ending: Option<(u64, Instant)>,
    /// What was measured before this says nothing: memory has become free since.
    void_before: Option<Instant>,
    told_at: Option<Instant>,
}

/// What one process tree takes of the worker's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its number with the lane.
    pub serial: u64,
    /// What it takes, bytes, when it was looked at last.
    pub bytes: u64,
    /// What was asked for, bytes; 0 is nothing.
    pub request: u64,
}

impl Share {
    /// Larger is more to blame: what it takes above its request, then in all.
    fn greed(&self) -> (u64, u64) {
        (self.bytes.saturating_sub(self.request), self.bytes)
    }
}

/// Whom to end when the container has so much in use: the greediest, if attempts are what fills it. Where something else does, such as
/// another worker in the same container, ending one would be no help.
fn whom_to_end(shares: &[Share], used_bytes: u64) -> Option<Share> {
    let all = shares.iter().map(|share| share.bytes).fold(0, u64::saturating_add);
    if all < used_bytes / 2 {
        return None;
    }
    shares.iter().copied().max_by_key(Share::greed)
}

impl Guard {
    /// Whether what was measured then may lead to an end: one at a time.
    fn may_end(&mut self, measured: Instant, now: Instant) -> bool {
        if self.ending.is_some_and(|(_, since)| since + ENDING_MAX <= now) {
            self.ending = None;
        }
        self.ending.is_none() && self.void_before.is_none_or(|before| before < measured)
    }

    fn ended(&mut self, serial: u64, now: Instant) {
        if self.ending.take_if(|(ending, _)| *ending == serial).is_some() {
            self.void_before = Some(now);
        }
    }
}

/// Names in a heartbeat what takes most.
pub(super) fn tell_shares(
    heartbeat: &mut v1::Heartbeat,
    attempts: &FxHashMap<Serial, Attempt>,
    functions: &Functions,
    machine: &Worker,
) {
    let mut shares: Vec<(Handle, Share)> = of_commands(attempts).map(|(attempt, share)| (attempt.order.handle, share)).collect();
    functions.call_shares(machine, &mut shares);
    shares.sort_unstable_by_key(|(_, share)| std::cmp::Reverse(share.greed()));
    shares.truncate(SHARES_MAX);
    heartbeat.share_handles = shares.iter().map(|(handle, _)| handle.to_u64()).collect();
    heartbeat.share_bytes = shares.iter().map(|(_, share)| share.bytes).collect();
}

fn of_commands(attempts: &FxHashMap<Serial, Attempt>) -> impl Iterator<Item = (&Attempt, Share)> {
    let seen = attempts.iter().filter(|(_, attempt)| attempt.sampled_now > 0 && attempt.over.is_none());
    seen.map(|(serial, attempt)| {
        (attempt, Share { serial: serial.0, bytes: attempt.sampled_now, request: attempt.order.memory_bytes })
    })
}

impl Agent {
    /// The container is nearly full.
    pub(super) fn container_near(&mut self, measured: Measured) {
        let now = Instant::now();
        if self.guard.told_at.is_none_or(|at| at + TELL_EVERY <= now) {
            self.guard.told_at = Some(now);
            self.link.heartbeat_now(now);
        }
        let filled = measured.filled;
        if filled.percent() < END_PERCENT
            || self.options.memory_limit == MemoryLimit::None
            || !self.guard.may_end(measured.at, now)
        {
            return;
        }
        let mut shares: Vec<Share> = of_commands(&self.attempts).map(|(_, share)| share).collect();
        self.functions.shares(&mut shares);
        let Some(worst) = whom_to_end(&shares, filled.used_bytes) else { return };
        tracing::warn!(
            used = %size(filled.used_bytes),
            limit = %size(filled.limit_bytes),
            taken = %size(worst.bytes),
            request = %size(worst.request),
            serial = worst.serial,
            "the memory of this worker is nearly full: what takes most beyond its request is ended"
        );
        self.guard.ending = Some((worst.serial, now));
        let of = OfContainer { used_bytes: Some(filled.used_bytes), limit_bytes: filled.limit_bytes };
        if self.functions.has_host(worst.serial) {
            return self.functions(|functions, cx| functions.over_container(cx, worst.serial, of));
        }
        if let Some(attempt) = self.attempts.get_mut(&Serial(worst.serial)) {
            attempt.of_container = Some(of);
        }
        self.step(Input::OverMemory(Serial(worst.serial)));
    }

    /// What the guard has ended is over, or something else is.
    pub(super) fn guarded_ended(&mut self, serial: u64) {
        self.guard.ended(serial, Instant::now());
    }
}

/// Processes of the container that the kernel has killed for memory so far.
pub fn kills(container: Option<&Container>) -> u64 {
    container.map_or(0, Container::kills)
}

/// Whether the kernel ended a process for the container's memory: it was killed, and the kernel has killed something of the container
/// since it began that nothing else was.
pub fn by_kernel(container: Option<&Container>, end: &End, kills_before: u64) -> Option<OfContainer> {
    let killed = end.signal == Some(libc::SIGKILL) || end.exit_code == Some(KILLED);
    let container = container.filter(|container| killed && container.claim(kills_before))?;
    Some(OfContainer { used_bytes: None, limit_bytes: container.filled()?.limit_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(serial: u64, mib: u64, request: u64) -> Share {
        Share { serial, bytes: mib << 20, request: request << 20 }
    }

    #[track_caller]
    fn check(what: &str, shares: &[Share], used_mib: u64, expected: Option<u64>) {
        assert_eq!(whom_to_end(shares, used_mib << 20).map(|share| share.serial), expected, "{what}");
    }

    #[test]
    fn what_takes_most_beyond_its_request_is_ended_when_attempts_fill_the_container() {
        check("beyond its request", &[share(1, 60, 60), share(2, 40, 8), share(3, 20, 0)], 122, Some(2));
        check("without a request all of it is beyond", &[share(1, 60, 60), share(2, 50, 0)], 122, Some(2));
        check("nobody is beyond: the largest", &[share(1, 50, 60), share(2, 55, 64)], 122, Some(2));
        check("nothing executes", &[], 122, None);
        check("something else fills it", &[share(1, 30, 0), share(2, 20, 0)], 122, None);
    }

    #[test]
    fn a_kill_is_the_kernels_for_memory_when_its_counter_has_grown_since_the_beginning() {
        let mount = tempfile::tempdir().expect("a directory");
        let write = |file: &str, text: &str| std::fs::write(mount.path().join(file), text).expect("written");
        write("memory.max", "134217728\n");
        write("memory.current", "1\n");
        write("memory.stat", "anon 1\n");
        write("memory.events", "oom_kill 2\n");
        let container = Container::find(mount.path(), "0::/\n").expect("a container");
        let killed = End { signal: Some(libc::SIGKILL), ..End::default() };
        let before = kills(Some(&container));
        let said = |end: &End| by_kernel(Some(&container), end, before);
        assert_eq!(said(&killed), None, "somebody else killed it");
        write("memory.events", "oom_kill 3\n");
        let by_kernel = Some(OfContainer { used_bytes: None, limit_bytes: 128 << 20 });
        assert_eq!(said(&killed), by_kernel);
        assert_eq!(said(&killed), None, "that one was another process");
        write("memory.events", "oom_kill 4\n");
        assert_eq!(said(&End { signal: Some(libc::SIGSEGV), ..End::default() }), None, "another signal");
        assert_eq!(said(&End { exit_code: Some(1), ..End::default() }), None, "an end of its own");
        assert_eq!(said(&End { exit_code: Some(137), ..End::default() }), by_kernel, "a shell says so of its child");
        assert_eq!(super::by_kernel(None, &killed, 0), None, "no container with a limit");
        let sentence = OfContainer { used_bytes: None, limit_bytes: 128 << 20 }.sentence("the task", 100 << 20, 0);
        assert!(sentence.contains("its limit of 128.0 MiB, and the kernel ended the task; it took 100.0 MiB"), "{sentence}");
    }

    #[test]
    fn one_is_ended_at_a_time_and_the_next_only_by_what_was_measured_after_it() {
        let at = |seconds| Instant::now() + Duration::from_secs(seconds);
        let (begin, end, later) = (at(1), at(2), at(3));
        let mut guard = Guard::default();
        assert!(guard.may_end(begin, begin));
        guard.ending = Some((7, begin));
        assert!(!guard.may_end(end, end), "it is being ended");
        guard.ended(8, end);
        assert!(!guard.may_end(end, end), "another one was over");
        guard.ended(7, end);
        assert!(!guard.may_end(begin, later), "measured before its end");
        assert!(guard.may_end(later, later));
        guard.ending = Some((9, begin));
        assert!(guard.may_end(at(60), at(60)), "what hangs is not waited for any longer");
    }
}
