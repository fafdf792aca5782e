//! The limits as measurements of the table's rows.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::copy::{Memcpy, TcpCopy};
use super::{relay, tcp};
use crate::ours::{LINKS, NOOPS, commands};
use crate::table::{Measure, Sample, Scale, percentile};

/// Round trips of one run.
pub const ROUND_TRIPS: u32 = 2000;

fn round_trips(micros: &[f64]) -> Sample {
    vec![percentile(micros, 0.5), percentile(micros, 0.99)].into()
}

fn per_second(count: u32, seconds: f64) -> Sample {
    (f64::from(count) / seconds).into()
}

fn per_task(count: u32, seconds: f64) -> Sample {
    (seconds * 1e6 / f64::from(count)).into()
}

/// Two hops over gRPC, tasks a second.
pub fn relay_stream(_: &Scale) -> Result<Measure> {
    let mut client = relay::Client::of_relay()?;
    Ok(Box::new(move || Ok(per_second(NOOPS, client.stream(NOOPS)?))))
}

/// One hop over gRPC, tasks a second.
pub fn echo_stream(_: &Scale) -> Result<Measure> {
    let mut client = relay::Client::of_echo()?;
    Ok(Box::new(move || Ok(per_second(NOOPS, client.stream(NOOPS)?))))
}

/// Two hops over plain TCP, tasks a second.
pub fn tcp_stream(_: &Scale) -> Result<Measure> {
    let mut client = tcp::Client::of_relay()?;
    Ok(Box::new(move || Ok(per_second(NOOPS, client.stream(NOOPS)?))))
}

/// Two hops over gRPC and back, µs: p50, p99.
pub fn relay_round_trips(_: &Scale) -> Result<Measure> {
    let mut client = relay::Client::of_relay()?;
    Ok(Box::new(move || Ok(round_trips(&client.round_trips(ROUND_TRIPS)?))))
}

/// One hop over gRPC and back, µs: p50, p99.
pub fn echo_round_trips(_: &Scale) -> Result<Measure> {
    let mut client = relay::Client::of_echo()?;
    Ok(Box::new(move || Ok(round_trips(&client.round_trips(ROUND_TRIPS)?))))
}

/// Two hops over plain TCP and back, µs: p50, p99.
pub fn tcp_round_trips(_: &Scale) -> Result<Measure> {
    let mut client = tcp::Client::of_relay()?;
    Ok(Box::new(move || Ok(round_trips(&client.round_trips(ROUND_TRIPS)?))))
}

/// Relay to sink and back over gRPC, µs a link.
pub fn relay_chain(_: &Scale) -> Result<Measure> {
    let mut client = relay::Client::of_chain()?;
    Ok(Box::new(move || Ok(per_task(LINKS, client.chain(LINKS)?))))
}

/// To a sink and back over plain TCP, µs a link.
pub fn tcp_chain(_: &Scale) -> Result<Measure> {
    let mut hop = tcp::Hop::start()?;
    Ok(Box::new(move || Ok(per_task(LINKS, hop.chain(LINKS)?))))
}

/// Loopback TCP, MiB a second.
pub fn tcp_copy(scale: &Scale) -> Result<Measure> {
    let (mut copy, blocks) = (TcpCopy::start()?, scale.of(4096, 1024));
    Ok(Box::new(move || Ok(copy.run(blocks)?.into())))
}

/// Memory to memory, MiB a second.
pub fn memcpy(scale: &Scale) -> Result<Measure> {
    let (mut copy, blocks) = (Memcpy::start(), scale.of(4096, 1024));
    Ok(Box::new(move || Ok(copy.run(blocks).into())))
}

/// Two parallel loops of `posix_spawn` and `waitpid`, tasks a second.
pub fn spawn_loops(scale: &Scale) -> Result<Measure> {
    let count = commands::count(scale);
    Ok(Box::new(move || Ok(per_second(count, crate::spawn::baseline(count, crate::spawn::TRUE)?.as_secs_f64()))))
}

/// `/bin/true` from a shell, ms.
pub fn shell_true(_: &Scale) -> Result<Measure> {
    Ok(Box::new(move || Ok(from_a_shell("/bin/true")?.into())))
}

/// Milliseconds of one start of `command` by a shell that starts it again and again.
pub fn from_a_shell(command: &str) -> Result<f64> {
    const STARTS: u32 = 50;
    let script = format!("i=0; while [ $i -lt {STARTS} ]; do {command} > /dev/null || exit 1; i=$((i+1)); done");
    let begin = std::time::Instant::now();
    let status = std::process::Command::new("/bin/sh").args(["-c", &script]).status()?;
    let took: Duration = begin.elapsed();
    ensure!(status.success(), "{command}: {status}");
    Ok(took.as_secs_f64() * 1e3 / f64::from(STARTS))
}
