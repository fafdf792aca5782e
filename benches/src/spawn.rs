//! What a no-op command task costs beside two parallel loops of `posix_spawn` and `waitpid`: in the lane alone, and the whole
//! path through a real scheduler and a real worker; and the price of output, a directory, a cgroup.
//!
//! The figure is wall time per task and slot, with two slots: `wall × 2 ÷ tasks`. Rounds of all rows are interleaved, so that a
//! disturbance of the machine hits all of them alike, and each row shows its median round. A row is compared with the loop that
//! runs the same program.
//!
//! A busy machine disturbs the rows differently: each task has a session of its own, and where the kernel groups processes by
//! session (`sched_autogroup_enabled`) a new session queues behind everything else that wants a cpu, which the loops' children,
//! in the benchmark's session, do not. The load is printed for that reason.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsStr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use scalable_worker::cgroup::Cgroups;
use scalable_worker::lane::{Job, Lane, LaneEvent, Strangers, Stream};
use scalable_worker::spawn::Prepared;
use serde::Serialize;

use crate::whole::{Tasks, Whole};

/// Slots: the figure is for two.
const SLOTS: u32 = 2;
/// The program of the rows that do nothing.
pub const TRUE: &[&CStr] = &[c"/bin/true"];
const ECHO: &[&CStr] = &[c"/bin/echo", c"a line"];

#[derive(Serialize)]
struct Row {
    name: &'static str,
    us_per_task_and_slot: f64,
    /// Against the loop that runs the same program.
    ratio: f64,
}

#[derive(Serialize)]
struct Figures {
    slots: u32,
    load_before: String,
    rows: Vec<Row>,
}

type Measure<'a> = Box<dyn FnMut(u32) -> Result<Duration> + 'a>;

/// Runs all rows whose name contains `only`, and prints them.
pub fn run(json: Option<&Path>, count: u32, rounds: u32, only: &str) -> Result<()> {
    let load_before = std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned();
    let whole = std::cell::RefCell::new(Whole::start(&["--memory-limit", "watch"])?);
    let run = |tasks: Tasks| -> Measure<'_> {
        let whole = &whole;
        Box::new(move |count| whole.borrow_mut().run(count, tasks))
    };
    let plain = Tasks { argv: &["/bin/true"], ..Tasks::default() };
    let line = Tasks { argv: &["/bin/echo", "a line"], ..Tasks::default() };
    // Name, row of the loop it is compared with, measurement.
    let mut rows: Vec<(&'static str, usize, Measure<'_>)> = vec![
        ("posix_spawn + waitpid: true", 0, Box::new(|count| baseline(count, TRUE))),
        ("posix_spawn + waitpid: echo", 1, Box::new(|count| baseline(count, ECHO))),
        ("lane: true", 0, Box::new(|count| lane(count, &["/bin/true"]))),
        ("lane: echo, captured", 1, Box::new(|count| lane(count, &["/bin/echo", "a line"]))),
        ("task: no-op", 0, run(plain)),
        ("task: prints a line (log file)", 1, run(line)),
        ("task: writes an output (directory)", 1, run(Tasks { output: true, ..line })),
    ];
    match Cgroups::detect() {
        Ok(_) => {
            let mut whole = Whole::start(&["--memory-limit", "cgroup"])?;
            let limited = Tasks { memory: 64 << 20, ..plain };
            rows.push(("task: memory limit (cgroup)", 0, Box::new(move |count| whole.run(count, limited))));
        }
        Err(why) => note(&format!("no row for a cgroup: {why}")),
    }
    // The loops stay: the others are compared with them.
    let mut at = 0;
    rows.retain(|(name, against, _)| {
        at += 1;
        *against == at - 1 || name.contains(only)
    });
    let mut figures = vec![Vec::new(); rows.len()];
    for (_, _, measure) in &mut rows {
        measure(count / 10 + SLOTS)?;
    }
    for _ in 0..rounds.max(1) {
        for (at, (_, _, measure)) in rows.iter_mut().enumerate() {
            figures[at].push(measure(count)?.as_secs_f64() * 1e6 * f64::from(SLOTS) / f64::from(count));
        }
    }
    let medians: Vec<f64> = figures.iter_mut().map(|of_row| median(of_row)).collect();
    let row = |((name, against, _), us): (&(&'static str, usize, Measure<'_>), &f64)| Row {
        name,
        us_per_task_and_slot: *us,
        ratio: us / medians[*against],
    };
    let figures = Figures { slots: SLOTS, load_before, rows: rows.iter().zip(&medians).map(row).collect() };
    show(&figures);
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_vec_pretty(&figures)?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[allow(clippy::print_stdout)]
fn show(figures: &Figures) {
    println!("{:<40} {:>18} {:>8}   load before: {}", "", "µs per task, slot", "ratio", figures.load_before);
    for row in &figures.rows {
        println!("{:<40} {:>18.1} {:>8.2}", row.name, row.us_per_task_and_slot, row.ratio);
    }
}

fn note(text: &str) {
    eprintln!("{text}");
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Two threads, each a loop of `posix_spawn` with /dev/null on all three streams and `waitpid`.
pub fn baseline(count: u32, argv: &'static [&'static CStr]) -> Result<Duration> {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..SLOTS).map(|_| scope.spawn(move || spawn_loop(count / SLOTS, argv))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a loop panicked"))?)
    })?;
    Ok(begin.elapsed())
}

fn spawn_loop(count: u32, argv: &[&CStr]) -> Result<()> {
    let environment: Vec<CString> =
        std::env::vars().filter_map(|(name, value)| CString::new(format!("{name}={value}")).ok()).collect();
    let null_terminated = |strings: &mut dyn Iterator<Item = &CStr>| -> Vec<*mut libc::c_char> {
        strings.map(|s| s.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect()
    };
    let envp = null_terminated(&mut environment.iter().map(CString::as_c_str));
    let args = null_terminated(&mut argv.iter().copied());
    // SAFETY: plain libc calls on values that live through the loop; lists are null-terminated.
    unsafe {
        let mut actions: libc::posix_spawn_file_actions_t = std::mem::zeroed();
        libc::posix_spawn_file_actions_init(&mut actions);
        for (fd, flags) in [(0, libc::O_RDONLY), (1, libc::O_WRONLY), (2, libc::O_WRONLY)] {
            libc::posix_spawn_file_actions_addopen(&mut actions, fd, c"/dev/null".as_ptr(), flags, 0);
        }
        for _ in 0..count {
            let (mut pid, mut status) = (0, 0);
            let error = libc::posix_spawn(&mut pid, args[0], &actions, std::ptr::null(), args.as_ptr(), envp.as_ptr());
            ensure!(error == 0, "posix_spawn: {}", std::io::Error::from_raw_os_error(error));
            ensure!(libc::waitpid(pid, &mut status, 0) == pid && status == 0, "{argv:?} did not end well: {status}");
        }
        libc::posix_spawn_file_actions_destroy(&mut actions);
    }
    Ok(())
}

/// The lane alone, as the reactor drives it: two processes at a time, the next one started when one has ended.
fn lane(count: u32, argv: &[&str]) -> Result<Duration> {
    let mut lane = Lane::new(None, Strangers::Leave)?;
    let environment: Arc<[CString]> =
        std::env::vars().filter_map(|(name, value)| CString::new(format!("{name}={value}")).ok()).collect();
    let (mut started, mut ended) = (0, 0);
    let mut events = Vec::new();
    let begin = Instant::now();
    while ended < count {
        while started < count && lane.len() < SLOTS as usize {
            let prepared = Prepared::new(argv.iter().map(OsStr::new), environment.clone(), Vec::new(), None)?;
            let (stdout, stderr) = (Stream::Capture, Stream::Capture);
            let job = Job {
                serial: u64::from(started),
                prepared,
                fourth: None,
                stdin: None,
                stdout,
                stderr,
                cgroup: None,
                marker: Vec::new(),
            };
            lane.start(job)?;
            started += 1;
        }
        poll(&mut [PollFd::new(lane.fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
        lane.poll(&mut events);
        for event in events.drain(..) {
            if let LaneEvent::Ended { end, .. } = event {
                ensure!(end.exit_code == Some(0), "{argv:?} did not end well: {end:?}");
                ended += 1;
            }
        }
    }
    Ok(begin.elapsed())
}
