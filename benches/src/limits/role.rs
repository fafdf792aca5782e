//! This program, started again as one of the processes of a limit. A role prints where it listens as its first line and ends
//! when its standard input does, so that none outlives the measurement.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::{copy, relay, tcp};

/// Whether this process has said that it is there.
static READY: AtomicBool = AtomicBool::new(false);

/// What a process of a limit does.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Role {
    /// gRPC: passes what a client appends to a worker, and back.
    Relay,
    /// gRPC: goes on with a chain of its client by itself.
    ChainRelay,
    /// gRPC: answers what a relay dispatches. Takes the relay's address.
    Sink,
    /// gRPC: answers a client's appends itself.
    Echo,
    /// The relay's frames over plain TCP.
    TcpRelay,
    /// The sink's frames over plain TCP. Takes the relay's address.
    TcpSink,
    /// Sends blocks over plain TCP for as long as somebody reads.
    TcpSource,
}

impl Role {
    /// Plays the role until standard input ends.
    pub fn play(self, peer: Option<&str>) -> Result<()> {
        std::thread::spawn(|| {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            std::process::exit(0);
        });
        let peer = || peer.context("this role needs an address");
        let played = match self {
            Role::Relay => relay::serve(),
            Role::ChainRelay => relay::chain(),
            Role::Sink => relay::sink(peer()?),
            Role::Echo => relay::echo(),
            Role::TcpRelay => tcp::relay(),
            Role::TcpSink => tcp::sink(peer()?),
            Role::TcpSource => copy::source(),
        };
        // Once it was there it ends with its peers, and says nothing of it.
        if READY.load(Ordering::Relaxed) { Ok(()) } else { played }
    }
}

/// Says where this role listens, or that it is there (with an empty address).
#[allow(clippy::print_stdout)]
pub fn ready(address: &str) -> Result<()> {
    READY.store(true, Ordering::Relaxed);
    println!("{address}");
    Ok(std::io::stdout().flush()?)
}

/// A process in a role; it ends when this is dropped.
pub struct Playing {
    child: Child,
    /// Closing it ends the role.
    _stdin: Option<ChildStdin>,
    /// Where it listens.
    pub address: String,
}

impl Playing {
    /// Starts a process and waits until it is there.
    pub fn start(role: Role, peer: Option<&str>) -> Result<Self> {
        let name = role.to_possible_value().context("every role has a name")?.get_name().to_owned();
        let mut child = Command::new(std::env::current_exe()?)
            .args(["role", &name])
            .args(peer)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start the role {name}"))?;
        let stdout = child.stdout.take().context("it is piped")?;
        let stdin = child.stdin.take();
        let mut playing = Playing { child, _stdin: stdin, address: String::new() };
        BufReader::new(stdout).read_line(&mut playing.address)?;
        anyhow::ensure!(playing.address.ends_with('\n'), "the role {name} ended before it was ready");
        playing.address.truncate(playing.address.trim_end().len());
        Ok(playing)
    }
}

impl Drop for Playing {
    fn drop(&mut self) {
        // It may have ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
