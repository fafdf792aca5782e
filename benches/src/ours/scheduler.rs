//! What a task costs the scheduler's process: CPU, and memory while it waits.

use std::time::Duration;

use anyhow::{Result, ensure};
use scalable::{Isolation, Session};

use super::functions::{array, dag, noop, submit_dag};
use super::process::{cpu_seconds, resident_bytes};
use super::rig::Rig;
use super::{NOOPS, TWO_SLOTS};
use crate::table::{Measure, Scale};
use crate::whole::Workers;

const NO_WORKERS: Workers = Workers { number: 0, cpus: 0 };
/// Longest wait for the scheduler to have taken what was submitted.
const TAKEN_WITHIN: Duration = Duration::from_secs(30);

fn cpu_of(rig: &Rig, work: impl FnOnce(&Rig) -> Result<f64>) -> Result<f64> {
    let before = cpu_seconds(rig.whole.scheduler_pid())?;
    work(rig)?;
    Ok((cpu_seconds(rig.whole.scheduler_pid())? - before) * 1e6 / f64::from(NOOPS))
}

/// CPU µs of the scheduler for a task of an array.
pub fn cpu_array(scale: &Scale) -> Result<Measure> {
    let rig = Rig::start(scale, TWO_SLOTS, &[])?;
    Ok(Box::new(move || Ok(cpu_of(&rig, |rig| rig.block_on(|session| array(session, Isolation::Thread)))?.into())))
}

/// CPU µs of the scheduler for a task of the random graph.
pub fn cpu_dag(scale: &Scale) -> Result<Measure> {
    let rig = Rig::start(scale, TWO_SLOTS, &[])?;
    Ok(Box::new(move || Ok(cpu_of(&rig, |rig| rig.block_on(|session| dag(session, NOOPS)))?.into())))
}

/// Resident bytes a task beyond its argument; `submit` is to keep the tasks pending. Every run has a scheduler of its own: memory
/// that a run before has left would hide what this one takes.
fn bytes<K, F: Future<Output = Result<K>>>(scale: &Scale, submit: impl Fn(Session) -> F) -> Result<f64> {
    let rig = Rig::start(scale, NO_WORKERS, &[])?;
    let pid = rig.whole.scheduler_pid();
    let before = resident_bytes(pid)?;
    let argument_bytes: usize = (0..NOOPS).map(encoded_bytes).sum();
    let kept = rig.block_on(|session| async move {
        let kept = submit(session).await?;
        // Handed over is not yet taken: what is on the way still comes.
        let begin = std::time::Instant::now();
        let (mut last, mut still) = (0, 0);
        while still < 10 {
            ensure!(begin.elapsed() < TAKEN_WITHIN, "the scheduler's memory does not come to rest");
            tokio::time::sleep(Duration::from_millis(30)).await;
            let now = resident_bytes(pid)?;
            still = if now == last { still + 1 } else { 0 };
            last = now;
        }
        Ok(kept)
    })?;
    let grown = resident_bytes(pid)?.saturating_sub(before);
    drop(kept);
    Ok((grown as f64 - argument_bytes as f64) / f64::from(NOOPS))
}

/// Bytes of a number as an argument.
fn encoded_bytes(n: u32) -> usize {
    match n {
        0..=250 => 1,
        251..=0xffff => 3,
        _ => 5,
    }
}

/// Bytes of a pending element of an array.
pub fn bytes_array(scale: &Scale) -> Result<Measure> {
    let scale = scale.clone();
    Ok(Box::new(move || {
        let submit =
            |session: Session| async move { Ok(session.map(noop.with().isolation(Isolation::Thread), (0..NOOPS,)).await?) };
        Ok(bytes(&scale, submit)?.into())
    }))
}

/// Bytes of a pending task of the random graph.
pub fn bytes_distinct(scale: &Scale) -> Result<Measure> {
    let scale = scale.clone();
    Ok(Box::new(move || Ok(bytes(&scale, |session| async move { submit_dag(&session, NOOPS).await })?.into())))
}
