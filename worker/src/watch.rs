//! Looks at attempts that live longer than a moment: the sum of proportional set sizes of an attempt's processes, its peak, and
//! whether it is above its memory limit. A thread of its own, because reading the sums of a large process takes long.
//!
//! The period adapts: looking costs at most one hundredth of a cpu, a twentieth where an attempt with a limit is above half of it.
//!
//! Where all of them share a container with a limit, its memory is measured too, ten times a second and more often the fuller it is. From
//! [`NEAR_PERCENT`] on every attempt is looked at, and what was measured is told after that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use rustc_hash::FxHashMap;

use crate::container::{Container, Filled};
use crate::descendants::{Children, session_of, tree};

/// Age from which an attempt is watched.
pub const AGE: Duration = Duration::from_millis(100);
/// Age where it has a limit that only the watch enforces.
pub const AGE_WITH_LIMIT: Duration = Duration::from_millis(20);
const PERIOD_MIN: Duration = Duration::from_millis(100);
const PERIOD_MAX: Duration = Duration::from_secs(2);
const PERIOD_NEAR_LIMIT_MIN: Duration = Duration::from_millis(20);
const PERIOD_NEAR_LIMIT_MAX: Duration = Duration::from_millis(250);
/// From here on it is told how full the container is, in hundredths of its limit.
pub const NEAR_PERCENT: u64 = 80;
/// Measured more often from here on.
const HALF_PERCENT: u64 = 50;
const MEASURE_MAX: Duration = Duration::from_millis(100);
const MEASURE_HALF: Duration = Duration::from_millis(20);
const MEASURE_NEAR: Duration = Duration::from_millis(10);
/// Added to the agent's own inclination to be killed for memory, for its tasks: the kernel takes a task first.
const OOM_SCORE_ABOVE: i32 = 200;

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Whose.
    pub serial: u64,
    /// Sum now, bytes.
    pub now_bytes: u64,
    /// Largest sum so far, bytes.
    pub peak_bytes: u64,
    /// Above its limit.
    pub over: bool,
}

/// How full the container was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// What was found.
    pub filled: Filled,
    /// When the measuring began.
    pub at: Instant,
}

enum Order {
    Watch { serial: u64, pid: i32, limit: Option<u64> },
    Forget { serial: u64 },
}

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Watch {
    orders: Sender<Order>,
}

struct Watched {
    pid: i32,
    limit: Option<u64>,
    peak: u64,
    due: Instant,
    looked: bool,
}

impl Watch {
    /// Starts it. `seen` and `near` are called on its thread, `near` when the container is nearly full.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(
        container: Option<Arc<Container>>,
        seen: impl Fn(Look) + Send + 'static,
        near: impl Fn(Measured) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (orders, queue) = unbounded();
        let guard = container.map(|container| Guard { container, due: Instant::now(), looks_due: Instant::now() });
        std::thread::Builder::new().name("watch".to_owned()).spawn(move || run(&queue, guard, &seen, &near))?;
        Ok(Watch { orders })
    }

    /// Begins to look at an attempt. `limit` only where the watch is to enforce it.
    pub fn watch(&self, serial: u64, pid: i32, limit: Option<u64>) {
        // The thread lives as long as this does.
        let _ = self.orders.send(Order::Watch { serial, pid, limit });
    }

    /// The attempt is over.
    pub fn forget(&self, serial: u64) {
        let _ = self.orders.send(Order::Forget { serial });
    }
}

struct Guard {
    container: Arc<Container>,
    due: Instant,
    /// Not before this are all attempts looked at again.
    looks_due: Instant,
}

fn run(queue: &Receiver<Order>, mut guard: Option<Guard>, seen: &dyn Fn(Look), near: &dyn Fn(Measured)) {
    let mut watched: FxHashMap<u64, Watched> = FxHashMap::default();
    let mut eyes = Eyes { children: Children::of_leader().ok(), own: Memory::of("self").map(|own| own.range) };
    loop {
        let measure = guard.as_ref().filter(|_| !watched.is_empty()).map(|guard| guard.due);
        let next = watched.values().map(|w| w.due).chain(measure).min();
        let order = match next {
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => queue.recv_deadline(due),
        };
        match order {
            Ok(Order::Watch { serial, pid, limit }) => {
                watched.insert(serial, Watched { pid, limit, peak: 0, due: Instant::now(), looked: false });
            }
            Ok(Order::Forget { serial }) => drop(watched.remove(&serial)),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                let now = Instant::now();
                for (serial, one) in watched.iter_mut().filter(|(_, w)| w.due <= now) {
                    look(*serial, one, &mut eyes, seen);
                }
                if let Some(guard) = guard.as_mut().filter(|guard| guard.due <= now) {
                    guard.measure(&mut watched, &mut eyes, seen, near);
                }
            }
        }
    }
}

impl Guard {
    fn measure(&mut self, watched: &mut FxHashMap<u64, Watched>, eyes: &mut Eyes, seen: &dyn Fn(Look), near: &dyn Fn(Measured)) {
        let at = Instant::now();
        let Some(filled) = self.container.filled() else {
            self.due = at + PERIOD_MAX;
            return;
        };
        let (cost, percent) = (at.elapsed(), filled.percent());
        if percent >= NEAR_PERCENT {
            if self.looks_due <= at {
                let begin = Instant::now();
                for (serial, one) in watched.iter_mut() {
                    look(*serial, one, eyes, seen);
                }
                self.looks_due = Instant::now() + (begin.elapsed() * 20).clamp(MEASURE_NEAR, PERIOD_MAX);
            }
            near(Measured { filled, at });
        }
        self.due = Instant::now() + measure_period(percent, cost);
    }
}

/// Until the next measuring, which costs at most one hundredth of a cpu unless that would be later than the latest.
fn measure_period(percent: u64, cost: Duration) -> Duration {
    let least = match percent {
        NEAR_PERCENT.. => MEASURE_NEAR,
        HALF_PERCENT.. => MEASURE_HALF,
        _ => MEASURE_MAX,
    };
    (cost * 100).clamp(least, MEASURE_MAX)
}

/// What is looked with.
struct Eyes {
    children: Option<Children>,
    /// Where the agent's own memory lies.
    own: Option<String>,
}

fn look(serial: u64, one: &mut Watched, eyes: &mut Eyes, seen: &dyn Fn(Look)) {
    let begin = Instant::now();
    let mut processes = tree(one.pid);
    // What left the tree and stayed in the session is a child of the agent by now.
    if let Some(children) = &mut eyes.children {
        let mut orphans = Vec::new();
        children.read(&mut orphans);
        for orphan in orphans.into_iter().filter(|pid| *pid != one.pid) {
            if session_of(orphan).is_some_and(|(session, _)| session == one.pid) {
                processes.extend(tree(orphan));
            }
        }
    }
    if !one.looked {
        one.looked = true;
        prefer_for_oom(&processes);
    }
    let memory = processes.iter().filter_map(|pid| Memory::of(&pid.to_string())).collect();
    let now_bytes = sum(memory, eyes.own.as_deref());
    one.peak = one.peak.max(now_bytes);
    let over = one.limit.is_some_and(|limit| now_bytes > limit);
    let near = one.limit.is_some_and(|limit| now_bytes > limit / 2);
    let cost = begin.elapsed();
    let period = if near {
        (cost * 20).clamp(PERIOD_NEAR_LIMIT_MIN, PERIOD_NEAR_LIMIT_MAX)
    } else {
        (cost * 100).clamp(PERIOD_MIN, PERIOD_MAX)
    };
    one.due = Instant::now() + period;
    seen(Look { serial, now_bytes, peak_bytes: one.peak, over });
}

/// The memory of a process, as `smaps_rollup` has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Memory {
    /// Where it lies. Chosen at random by the kernel at each start of a program, so equal for two processes only when one has begun as
    /// the other and has started no program since.
    range: String,
    /// Proportional set size, KiB: shared pages are divided by how many share them, so that sums over processes make sense.
    pss: u64,
    /// Resident set size, KiB.
    rss: u64,
}

impl Memory {
    fn of(process: &str) -> Option<Memory> {
        Memory::parse(&std::fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?)
    }

    fn parse(text: &str) -> Option<Memory> {
        let range = text.split(' ').next()?.to_owned();
        let figure = |name| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
        };
        Some(Memory { range, pss: figure("Pss:")?, rss: figure("Rss:")? })
    }
}

/// Bytes of processes together. A process between `vfork` and the program that it starts has its parent's memory, not a share of it, and the
/// kernel counts that for both: it is known by the same place and the very same figures, and is counted once. What still lies where the
/// agent does is the agent's.
fn sum(mut memory: Vec<Memory>, own: Option<&str>) -> u64 {
    memory.sort_unstable();
    memory.dedup();
    let others = memory.iter().filter(|memory| Some(memory.range.as_str()) != own);
    others.fold(0u64, |sum, memory| sum.saturating_add(memory.pss.saturating_mul(1024)))
}

/// When the machine runs out of memory, a task goes before its agent. Children inherit it, so the first look is enough.
fn prefer_for_oom(processes: &[i32]) {
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|text| text.trim().parse::<i32>().ok());
    let score = own.unwrap_or(0).saturating_add(OOM_SCORE_ABOVE).min(1000).to_string();
    for pid in processes {
        // Best effort: the process may be gone, or another user's.
        let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), &score);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fuller_container_is_measured_more_often_and_never_less_than_ten_times_a_second() {
        let cases =
            [(0, 10, 100_000), (49, 10, 100_000), (50, 10, 20_000), (80, 10, 10_000), (95, 500, 50_000), (99, 9_000, 100_000)];
        for (percent, cost, expected) in cases {
            let period = measure_period(percent, Duration::from_micros(cost));
            assert_eq!(period, Duration::from_micros(expected), "{percent} % at {cost} µs");
        }
    }

    #[test]
    fn the_sum_of_this_process_is_what_it_holds() {
        let before = Memory::of("self").expect("we may look at ourselves");
        let held = vec![1u8; 64 << 20];
        let after = Memory::of("self").expect("we may look at ourselves");
        assert!(after.pss >= before.pss + (60 << 10) && after.rss >= after.pss, "{before:?} {after:?}");
        assert_eq!(before.range, after.range);
        assert_eq!(held[5], 1);
    }

    /// A process that has a parent's memory until it has started its program, as a shell's and Python's children do.
    #[test]
    fn memory_that_two_processes_have_together_is_counted_once() {
        let at = |range: &str, pss, rss| Memory { range: range.to_owned(), pss, rss };
        let (parent, agent) = (at("1-2", 100_000, 120_000), at("3-4", 14_000, 15_000));
        let forked = [at("1-2", 60_000, 120_000), at("1-2", 61_000, 120_500)];
        let cases = [
            (vec![parent.clone(), parent.clone(), parent.clone()], 100_000),
            (vec![parent.clone(), agent.clone()], 100_000),
            (vec![agent], 0),
            (forked.to_vec(), 121_000),
            (vec![parent, at("5-6", 100_000, 120_000)], 200_000),
        ];
        for (memory, expected) in cases {
            let said = format!("{memory:?}");
            assert_eq!(sum(memory, Some("3-4")), expected << 10, "{said}");
        }
        let text = "55d0a000-7ffc1000 ---p 00000000 00:00 0    [rollup]\nRss:    120000 kB\nPss:    100000 kB\n";
        assert_eq!(Memory::parse(text), Some(at("55d0a000-7ffc1000", 100_000, 120_000)));
        assert_eq!(Memory::parse(""), None);
    }
}
