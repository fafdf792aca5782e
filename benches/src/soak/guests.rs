//! Workers that join and leave: every other one is killed, the rest are told to drain.

use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use super::{Plan, STAY, WORKER};
use crate::whole::Whole;

/// How long one stays.
const STAYS: Duration = Duration::from_secs(3);
/// Longest wait for the end of one that was told to drain.
const DRAINS: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

/// How many there were.
#[derive(Debug, Default, Serialize)]
pub struct Guests {
    /// Started.
    pub joined: u32,
    /// Ended by SIGKILL.
    pub killed: u32,
    /// Ended by themselves after SIGTERM.
    pub drained: u32,
}

/// Has them come and go until it is over.
pub fn come_and_go(whole: &Whole, plan: &Plan) -> Result<Guests> {
    let mut guests = Guests::default();
    while !plan.is_over() {
        let name = format!("guest-{}", guests.joined);
        let mut guest = Guest(whole.worker(&name, STAY.cpus, WORKER).spawn().context("start scalable-worker")?);
        guests.joined += 1;
        let joined = Instant::now();
        while joined.elapsed() < STAYS && !plan.is_over() {
            if let Some(status) = guest.0.try_wait()? {
                bail!("the worker {name} ended by itself: {status}");
            }
            std::thread::sleep(LOOK);
        }
        if guests.joined.is_multiple_of(2) {
            guest.0.kill()?;
            guest.0.wait()?;
            guests.killed += 1;
        } else {
            guest.drain(&name)?;
            guests.drained += 1;
        }
    }
    Ok(guests)
}

/// A worker that is killed when nobody waits for it any more.
struct Guest(Child);

impl Guest {
    fn drain(&mut self, name: &str) -> Result<()> {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM)?;
        let asked = Instant::now();
        while asked.elapsed() < DRAINS {
            match self.0.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("the worker {name} was told to drain and ended with {status}"),
                None => std::thread::sleep(LOOK),
            }
        }
        bail!("the worker {name} was told to drain and is there after {DRAINS:?}")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
