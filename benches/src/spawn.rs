//! What a no-op command task costs: the lane (and further rows) beside two parallel loops of `posix_spawn` and `waitpid`.
//!
//! The figure is wall time per task and slot, with two slots: `wall × 2 ÷ tasks`. Rounds of all rows are interleaved, so that a
//! disturbance of the machine hits all of them alike, and each row shows its median round.
#![allow(unsafe_code)]

use std::ffi::{CString, OsStr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use scalable_worker::lane::{Job, Lane, LaneEvent, Stream};
use scalable_worker::spawn::Prepared;
use serde::Serialize;

/// Slots: the figure is for two.
const SLOTS: u32 = 2;

#[derive(Serialize)]
struct Row {
    name: &'static str,
    us_per_task_and_slot: f64,
    ratio: f64,
}

/// Runs all rows and prints them.
pub fn run(json: Option<&Path>, count: u32, rounds: u32) -> Result<()> {
    type Measure = fn(u32) -> Result<Duration>;
    let rows: [(&'static str, Measure); 3] =
        [("posix_spawn + waitpid, two loops", baseline), ("lane, no-op", lane_noop), ("lane, prints a line", lane_line)];
    let mut figures = vec![Vec::new(); rows.len()];
    for (_, measure) in rows {
        measure(count / 10 + SLOTS)?;
    }
    for _ in 0..rounds.max(1) {
        for (row, (_, measure)) in rows.iter().enumerate() {
            figures[row].push(measure(count)?.as_secs_f64() * 1e6 * f64::from(SLOTS) / f64::from(count));
        }
    }
    let medians: Vec<f64> = figures.iter_mut().map(|of_row| median(of_row)).collect();
    let table: Vec<Row> = rows
        .iter()
        .zip(&medians)
        .map(|((name, _), us)| Row { name, us_per_task_and_slot: *us, ratio: us / medians[0] })
        .collect();
    show(&table);
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_vec_pretty(&table)?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[allow(clippy::print_stdout)]
fn show(table: &[Row]) {
    println!("{:<40} {:>18} {:>8}", "", "µs per task, slot", "ratio");
    for row in table {
        println!("{:<40} {:>18.1} {:>8.2}", row.name, row.us_per_task_and_slot, row.ratio);
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Two threads, each a loop of `posix_spawn("/bin/true")` with /dev/null on all three streams and `waitpid`.
fn baseline(count: u32) -> Result<Duration> {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..SLOTS).map(|_| scope.spawn(move || spawn_loop(count / SLOTS))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a loop panicked"))?)
    })?;
    Ok(begin.elapsed())
}

fn spawn_loop(count: u32) -> Result<()> {
    let environment: Vec<CString> =
        std::env::vars().filter_map(|(name, value)| CString::new(format!("{name}={value}")).ok()).collect();
    let mut envp: Vec<*mut libc::c_char> = environment.iter().map(|e| e.as_ptr().cast_mut()).collect();
    envp.push(std::ptr::null_mut());
    let argv = [c"true".as_ptr().cast_mut(), std::ptr::null_mut()];
    // SAFETY: plain libc calls on values that live through the loop; lists are null-terminated.
    unsafe {
        let mut actions: libc::posix_spawn_file_actions_t = std::mem::zeroed();
        libc::posix_spawn_file_actions_init(&mut actions);
        for (fd, flags) in [(0, libc::O_RDONLY), (1, libc::O_WRONLY), (2, libc::O_WRONLY)] {
            libc::posix_spawn_file_actions_addopen(&mut actions, fd, c"/dev/null".as_ptr(), flags, 0);
        }
        for _ in 0..count {
            let (mut pid, mut status) = (0, 0);
            let error =
                libc::posix_spawn(&mut pid, c"/bin/true".as_ptr(), &actions, std::ptr::null(), argv.as_ptr(), envp.as_ptr());
            ensure!(error == 0, "posix_spawn: {}", std::io::Error::from_raw_os_error(error));
            ensure!(libc::waitpid(pid, &mut status, 0) == pid && status == 0, "/bin/true did not end well: {status}");
        }
        libc::posix_spawn_file_actions_destroy(&mut actions);
    }
    Ok(())
}

fn lane_noop(count: u32) -> Result<Duration> {
    lane(count, &["/bin/true"])
}

fn lane_line(count: u32) -> Result<Duration> {
    lane(count, &["/bin/echo", "a line"])
}

/// The lane alone, as the reactor drives it: two processes at a time, the next one started when one has ended.
fn lane(count: u32, argv: &[&str]) -> Result<Duration> {
    let mut lane = Lane::new(None)?;
    let environment: Vec<CString> =
        std::env::vars().filter_map(|(name, value)| CString::new(format!("{name}={value}")).ok()).collect();
    let (mut started, mut ended) = (0, 0);
    let mut events = Vec::new();
    let begin = Instant::now();
    while ended < count {
        while started < count && lane.len() < SLOTS as usize {
            let prepared = Prepared::new(argv.iter().map(OsStr::new), environment.clone(), None)?;
            let (stdout, stderr) = (Stream::Capture, Stream::Capture);
            let job = Job { serial: u64::from(started), prepared, stdin: None, stdout, stderr, cgroup: None, marker: Vec::new() };
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
