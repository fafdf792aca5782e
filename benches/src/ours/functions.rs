//! Functions that do nothing: what is left is the way to them and back.

use std::time::Instant;

use anyhow::{Result, ensure};
use scalable::{Handle, Isolation, Session};

use super::rig::Rig;
use super::{LEAVES, LINKS, NOOPS, TWO_SLOTS};
use crate::limits::rows::ROUND_TRIPS;
use crate::table::{Measure, Sample, Scale, percentile};
use crate::whole::Wire;

/// Gives back what it gets.
#[scalable::task(cpus = 1)]
pub fn noop(n: u32) -> u32 {
    n
}

/// Gives back what it gets, after three others.
#[scalable::task(cpus = 1)]
pub fn noop_after(n: u32, _one: u32, _two: u32, _three: u32) -> u32 {
    n
}

/// A node of the tree.
#[scalable::task(cpus = 1)]
pub fn add(a: u32, b: u32) -> u32 {
    a + b
}

/// Numbers from a fixed beginning, the same in the peers' scripts (`edges` in `peers/common.py`).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// The first.
    pub fn new() -> Self {
        Random(1)
    }

    /// The next, below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// One array, every result gathered.
pub async fn array(session: Session, isolation: Isolation) -> Result<f64> {
    let begin = Instant::now();
    let gathered = session.map(noop.with().isolation(isolation), (0..NOOPS,)).await?.gather().await?;
    let seconds = begin.elapsed().as_secs_f64();
    ensure!((0..NOOPS).eq(gathered.iter().copied()), "wrong results");
    Ok(seconds)
}

/// Tasks one by one, each after one to three earlier ones, every result awaited.
pub async fn dag(session: Session, count: u32) -> Result<f64> {
    let begin = Instant::now();
    let handles = submit_dag(&session, count).await?;
    for (index, handle) in handles.into_iter().enumerate() {
        ensure!(handle.await? as usize == index, "a wrong result");
    }
    Ok(begin.elapsed().as_secs_f64())
}

/// Submits the tasks of the graph.
pub async fn submit_dag(session: &Session, count: u32) -> Result<Vec<Handle<u32>>> {
    let task = noop_after.with().isolation(Isolation::Thread);
    let mut handles = Vec::with_capacity(count as usize);
    handles.push(session.submit(noop.with().isolation(Isolation::Thread), (0,)).await?);
    let mut random = Random::new();
    for index in 1..count {
        let edges = 1 + random.below(3) as usize;
        let mut parents = [0; 3];
        for parent in &mut parents[..edges] {
            *parent = random.below(u64::from(index)) as usize;
        }
        // A parameter that has no parent of its own names the first again: the same dependency.
        for at in edges..3 {
            parents[at] = parents[0];
        }
        let [a, b, c] = parents.map(|parent| &handles[parent]);
        handles.push(session.submit(task.clone(), (index, a, b, c)).await?);
    }
    Ok(handles)
}

fn noops(wire: Wire, scale: &Scale, isolation: Isolation) -> Result<Measure> {
    let rig = Rig::over(wire, scale, TWO_SLOTS, &[])?;
    Ok(Box::new(move || {
        let (seconds, cpu) = rig.with_cpu(NOOPS, |rig| rig.block_on(|session| array(session, isolation)))?;
        Ok(Sample { values: vec![f64::from(NOOPS) / seconds], cpu })
    }))
}

/// Tasks a second, many in one lane host.
pub fn noop_array(scale: &Scale) -> Result<Measure> {
    noops(Wire::Plain, scale, Isolation::Thread)
}

/// The same over TLS.
pub fn noop_array_tls(scale: &Scale) -> Result<Measure> {
    noops(Wire::Tls, scale, Isolation::Thread)
}

/// Tasks a second, in a lane host for each slot.
pub fn noop_array_process(scale: &Scale) -> Result<Measure> {
    noops(Wire::Plain, scale, Isolation::Process)
}

/// Tasks a second of the random graph.
pub fn noop_dag(scale: &Scale) -> Result<Measure> {
    let rig = Rig::start(scale, TWO_SLOTS, &[])?;
    Ok(Box::new(move || {
        let (seconds, cpu) = rig.with_cpu(NOOPS, |rig| rig.block_on(|session| dag(session, NOOPS)))?;
        Ok(Sample { values: vec![f64::from(NOOPS) / seconds], cpu })
    }))
}

async fn round_trips(session: Session, isolation: Isolation) -> Result<Vec<f64>> {
    let task = noop.with().isolation(isolation);
    let mut all = Vec::with_capacity(ROUND_TRIPS as usize);
    for index in 0..ROUND_TRIPS {
        let begin = Instant::now();
        let result = session.submit(task.clone(), (index,)).await?.await?;
        all.push(begin.elapsed().as_secs_f64() * 1e6);
        ensure!(result == index, "a wrong result");
    }
    Ok(all)
}

fn rtts(wire: Wire, scale: &Scale, isolation: Isolation) -> Result<Measure> {
    let rig = Rig::over(wire, scale, TWO_SLOTS, &[])?;
    Ok(Box::new(move || {
        let (micros, cpu) = rig.with_cpu(ROUND_TRIPS, |rig| rig.block_on(|session| round_trips(session, isolation)))?;
        Ok(Sample { values: vec![percentile(&micros, 0.5), percentile(&micros, 0.99)], cpu })
    }))
}

/// µs from submit to result: p50, p99; many tasks in one lane host.
pub fn rtt(scale: &Scale) -> Result<Measure> {
    rtts(Wire::Plain, scale, Isolation::Thread)
}

/// The same over TLS.
pub fn rtt_tls(scale: &Scale) -> Result<Measure> {
    rtts(Wire::Tls, scale, Isolation::Thread)
}

/// The same, in a lane host for each slot.
pub fn rtt_process(scale: &Scale) -> Result<Measure> {
    rtts(Wire::Plain, scale, Isolation::Process)
}

/// µs p99 of single tasks of higher priority while the no-op array runs.
pub fn rtt_background(scale: &Scale) -> Result<Measure> {
    let rig = Rig::start(scale, TWO_SLOTS, &[])?;
    Ok(Box::new(move || {
        let micros = rig.block_on(|session| async move {
            let background = session.map(noop.with().isolation(Isolation::Thread), (0..NOOPS,)).spawn().await?;
            let task = noop.with().isolation(Isolation::Thread).priority(1);
            let mut all = Vec::new();
            while !all_over(&background) {
                let begin = Instant::now();
                ensure!(session.submit(task.clone(), (7,)).await?.await? == 7, "a wrong result");
                all.push(begin.elapsed().as_secs_f64() * 1e6);
            }
            ensure!(!all.is_empty(), "the array was over before a single task was");
            Ok(all)
        })?;
        Ok(percentile(&micros, 0.99).into())
    }))
}

fn all_over(array: &scalable::Array<u32>) -> bool {
    let progress = array.progress();
    progress.complete && progress.over == progress.submitted
}

/// µs a link.
pub fn chain(scale: &Scale) -> Result<Measure> {
    let rig = Rig::start(scale, TWO_SLOTS, &[])?;
    Ok(Box::new(move || {
        let links = |session: Session| async move {
            let task = noop.with().isolation(Isolation::Thread);
            let begin = Instant::now();
            let mut last = session.submit(task.clone(), (7,)).await?;
            for _ in 1..LINKS {
                last = session.submit(task.clone(), (&last,)).await?;
            }
            ensure!(last.await? == 7, "a wrong result");
            Ok(begin.elapsed().as_secs_f64() * 1e6 / f64::from(LINKS))
        };
        let (micros, cpu) = rig.with_cpu(LINKS, |rig| rig.block_on(links))?;
        Ok(Sample { values: vec![micros], cpu })
    }))
}

/// Seconds of the tree.
pub fn tree(scale: &Scale) -> Result<Measure> {
    let rig = Rig::start(scale, TWO_SLOTS, &[])?;
    Ok(Box::new(move || {
        let grown = |session: Session| async move {
            let begin = Instant::now();
            let leaves = session.map(noop.with().isolation(Isolation::Thread), ((0..LEAVES).map(|_| 1),)).await?;
            let mut level = leaves;
            while level.len() > 1 {
                let half = level.len() / 2;
                let (even, odd) = ((0..half).map(|at| level.handle(2 * at)), (0..half).map(|at| level.handle(2 * at + 1)));
                let next = session.map(add.with().isolation(Isolation::Thread), (even, odd)).await?;
                level = next;
            }
            ensure!(level.handle(0).await? == LEAVES, "a wrong sum");
            Ok(begin.elapsed().as_secs_f64())
        };
        let (seconds, cpu) = rig.with_cpu(2 * LEAVES - 1, |rig| rig.block_on(grown))?;
        Ok(Sample { values: vec![seconds], cpu })
    }))
}
