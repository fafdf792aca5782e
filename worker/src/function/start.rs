//! Hosts: when one is started, how it is greeted, when it is told to end.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use scalable_core::messages::OutcomeClass;
use scalable_core::worker::calls::LaneId;
use scalable_lane::agent::{self, Greeting};
use scalable_lane::shared::Shared;
use scalable_lane::socket::Socket;
use scalable_proto::v1::Executable;

use super::host::{Fate, Host, Stage};
use super::program::check;
use super::{BLAMELESS_MAX, CALLS_OF_SLOT, Cx, Functions, GREETING_MAX, HOSTS_MAX, IDLE_MAX, Program, STOP_MAX, failure};
use crate::agent::memory::kills;
use crate::cgroup::Cgroup;
use crate::lane::{Job, Stream};
use crate::options::MemoryLimit;
use crate::spawn::Prepared;

/// What a helper has found for a host.
#[derive(Debug)]
pub struct PreparedHost {
    path: PathBuf,
    directory: Option<PathBuf>,
    cgroup: Option<(Cgroup, std::fs::File)>,
}

impl Functions {
    /// A slot of a lane was granted: a thread of its host, a host that is idle, or a new one.
    pub(super) fn slot(&mut self, cx: &mut Cx<'_>, lane: LaneId) {
        if let Some(row) = self.lanes.get_mut(&lane) {
            row.homeless += 1;
        }
        self.house(cx, lane);
    }

    /// Gives slots that have no host one.
    fn house(&mut self, cx: &mut Cx<'_>, lane: LaneId) {
        while let Some(row) = self.lanes.get_mut(&lane).filter(|row| row.homeless > 0) {
            // The one used last: its memory is warm, and the others may end.
            let serial = row.hosts.iter().rev().copied().find(|serial| self.hosts.get(serial).is_some_and(Host::takes_slots));
            let serial = match serial {
                Some(serial) => serial,
                None => match self.start_host(cx, lane) {
                    Some(serial) => serial,
                    // Too many hosts: the end of one lets this go on.
                    None => return,
                },
            };
            if let Some(row) = self.lanes.get_mut(&lane) {
                row.homeless -= 1;
                if row.hosts.last() != Some(&serial) {
                    row.hosts.retain(|one| *one != serial);
                    row.hosts.push(serial);
                }
            }
            if let Some(host) = self.hosts.get_mut(&serial) {
                host.slots += 1;
                host.fresh += 1;
            }
            self.fill(cx, serial);
        }
    }

    fn start_host(&mut self, cx: &mut Cx<'_>, lane: LaneId) -> Option<u64> {
        if self.hosts.len() >= HOSTS_MAX {
            let idle = self.hosts.iter().filter(|(_, host)| host.slots == 0 && host.stage == Stage::Ready);
            if let Some(serial) = idle.min_by_key(|(_, host)| host.since).map(|(serial, _)| *serial) {
                self.end_host(cx, serial, Fate::Unneeded);
            }
            return None;
        }
        let row = self.lanes.get_mut(&lane)?;
        let serial = *cx.next_serial;
        *cx.next_serial += 1;
        let limit = if cx.memory_limit == MemoryLimit::None { 0 } else { row.memory_limit };
        let mut host = Host::new(lane, row.threads, limit);
        host.since = cx.instant;
        self.hosts.insert(serial, host);
        row.hosts.push(serial);
        let (program, executables) = (row.key.program.clone(), self.objects.programs());
        let directory = row.key.directory.clone();
        let cgroups = cx.cgroups.cloned().filter(|_| limit > 0);
        let required = cx.memory_limit == MemoryLimit::Cgroup;
        let tell = (cx.prepared)(serial);
        self.finders.run(move || {
            let found = match program {
                Program::Native(path) => Ok(path),
                Program::Content { digest, size, path } => {
                    executables.find(&Executable { digest: digest.into(), size, path, ..Executable::default() })
                }
            };
            let prepared = found.and_then(|path| check(&path).map(|()| path)).and_then(|path| {
                let made = cgroups.map(|cgroups| cgroups.create(&serial.to_string(), limit));
                let cgroup = match made {
                    None => None,
                    Some(Ok(made)) => Some(made),
                    Some(Err(error)) if required => return Err(format!("the lane host's cgroup could not be made: {error}")),
                    Some(Err(error)) => {
                        tracing::warn!(%error, "a cgroup could not be made: the watch enforces the limit");
                        None
                    }
                };
                // A client elsewhere has a directory that is not here: its functions start where the agent did.
                Ok(PreparedHost { path, directory: directory.filter(|directory| directory.is_dir()), cgroup })
            });
            tell(prepared);
        });
        Some(serial)
    }

    /// A helper has looked for the program of a host.
    pub fn prepared(&mut self, cx: &mut Cx<'_>, serial: u64, prepared: Result<PreparedHost, String>) {
        let Some(host) = self.hosts.get_mut(&serial) else { return };
        let lane = host.lane;
        let started = match prepared {
            // Nobody needs it any more.
            Ok(PreparedHost { cgroup, .. }) if host.stage == Stage::Ending => {
                if let Some((cgroup, _)) = cgroup {
                    cx.helpers.run(move || cgroup.remove());
                }
                return self.host_gone(cx, serial);
            }
            Ok(prepared) => self.spawn_host(cx, serial, prepared),
            Err(why) => Err(why),
        };
        if let Err(why) = started {
            self.give_lane_up(cx, lane, &why);
            self.host_gone(cx, serial);
        }
    }

    fn spawn_host(&mut self, cx: &mut Cx<'_>, serial: u64, prepared: PreparedHost) -> Result<(), String> {
        let PreparedHost { path, directory, cgroup } = prepared;
        let Some(host) = self.hosts.get_mut(&serial) else { return Ok(()) };
        let Some(row) = self.lanes.get(&host.lane) else { return Err("its lane is gone".to_owned()) };
        let marker = format!("SCALABLE_LANE_HOST={}-{serial}", std::process::id()).into_bytes();
        let fd = format!("{}={}", scalable_lane::FD_VARIABLE, scalable_lane::HOST_FD).into_bytes();
        let mut own = vec![marker.clone(), fd];
        own.extend(row.key.env.iter().map(|(name, value)| format!("{name}={value}").into_bytes()));
        let own: Result<Vec<CString>, _> = own.into_iter().map(CString::new).collect();
        let own = own.map_err(|_| "the environment of a function contains a NUL byte".to_owned())?;
        let command = Prepared::new([OsStr::new(&path)], row.group.environment.clone(), own, directory.as_deref());
        let command = command.map_err(|error| error.to_string())?;
        let words = |error: io::Error| {
            format!("no lane host could be started: {error}; a limit of the system (ulimit -u, -n, pids of the cgroup)?")
        };
        let (ours, theirs) = Socket::pair().map_err(words)?;
        let (cgroup, procs) = cgroup.unzip();
        let job = Job {
            serial,
            prepared: command,
            stdin: None,
            stdout: Stream::Capture,
            stderr: Stream::Capture,
            cgroup: procs,
            marker,
            fourth: Some(OwnedFd::from(theirs)),
        };
        host.kills_before = kills(cx.container);
        let pid = cx.processes.start(job).map_err(words)?;
        if let Err(error) = cx.processes.watch_socket(serial, ours.as_fd()) {
            cx.processes.kill(serial);
            host.fate = Fate::Broken(words(error));
        }
        let by_watch = host.memory_limit > 0 && cgroup.is_none();
        (cx.watch)(serial, pid, Some(host.memory_limit).filter(|_| by_watch));
        host.cgroup = cgroup;
        host.socket = Some(ours);
        host.greeting = Some(Greeting::default());
        host.stage = Stage::Greeting;
        host.since = cx.instant + GREETING_MAX;
        Ok(())
    }

    /// The host has said everything about itself: it gets the memory that both share, and calls.
    pub(super) fn greeted(&mut self, cx: &mut Cx<'_>, serial: u64) -> io::Result<()> {
        let Some(host) = self.hosts.get_mut(&serial) else { return Ok(()) };
        let (program, version) = host.greeting.take().unwrap_or_default().end();
        let (shared, fd) = Shared::create(host.threads, CALLS_OF_SLOT.saturating_mul(host.threads))?;
        if let Some(socket) = &host.socket {
            agent::welcome(socket, version, fd.as_fd())?;
        }
        host.numbered(shared.calls());
        (host.program, host.shared) = (program, Some(shared));
        host.stage = Stage::Ready;
        host.since = cx.instant;
        self.fill(cx, serial);
        Ok(())
    }

    /// No host of this lane can be had: what waits in it is reported.
    pub(super) fn give_lane_up(&mut self, cx: &mut Cx<'_>, lane: LaneId, why: &str) {
        tracing::warn!(why, "a lane host could not be started");
        let mut waiting = Vec::new();
        cx.machine.take_all(lane, &mut waiting);
        for call in waiting {
            if let Some(over) = cx.machine.call_over(call, cx.out) {
                let class = over.cause.unwrap_or(OutcomeClass::InfraStart);
                self.report(cx, &over, failure(class, why.to_owned()));
            }
        }
    }

    /// Ends a host: politely when nothing is in it, else at once.
    pub(super) fn end_host(&mut self, cx: &mut Cx<'_>, serial: u64, fate: Fate) {
        let Some(host) = self.hosts.get_mut(&serial) else { return };
        if host.fate == Fate::Alive {
            host.fate = fate;
        }
        let polite = host.stage == Stage::Ready && host.shared.as_ref().is_some_and(|shared| shared.executing().count() == 0);
        match host.stage {
            Stage::Preparing | Stage::Ending => {}
            _ if polite && host.socket.as_ref().is_some_and(|socket| agent::stop().send(socket).is_ok()) => {}
            _ => cx.processes.kill(serial),
        }
        host.stage = Stage::Ending;
        host.since = cx.instant + STOP_MAX;
    }

    /// The host is no more: its slots are given up, and lanes that waited for room go on.
    pub(super) fn host_gone(&mut self, cx: &mut Cx<'_>, serial: u64) {
        let Some(host) = self.hosts.remove(&serial) else { return };
        if let Some(cgroup) = host.cgroup {
            cx.helpers.run(move || cgroup.remove());
        }
        if let Some(row) = self.lanes.get_mut(&host.lane) {
            row.hosts.retain(|one| *one != serial);
        }
        for slot in 0..host.slots {
            cx.machine.slot_free(host.lane, slot < host.fresh, cx.now, cx.out);
        }
        let waiting: Vec<LaneId> = self.lanes.iter().filter(|(_, row)| row.homeless > 0).map(|(lane, _)| *lane).collect();
        for lane in waiting {
            self.house(cx, lane);
        }
    }

    /// A host has ended by itself and nobody was executing in it. Too often, and its lane is given up.
    pub(super) fn blameless(&mut self, cx: &mut Cx<'_>, lane: LaneId, why: &str) {
        let Some(row) = self.lanes.get_mut(&lane) else { return };
        row.blameless += 1;
        if row.blameless >= BLAMELESS_MAX {
            row.blameless = 0;
            self.give_lane_up(cx, lane, why);
        }
    }

    /// When [`Functions::tick`] is due at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        let of = |host: &Host| {
            let stage = match host.stage {
                Stage::Preparing => None,
                Stage::Greeting | Stage::Ending => Some(host.since),
                Stage::Ready => Some(host.since + IDLE_MAX).filter(|_| host.slots == 0),
            };
            [stage, host.kill_at].into_iter().flatten().min()
        };
        self.hosts.values().filter_map(of).chain(self.pass_due).min()
    }

    /// What is due by time alone.
    pub fn tick(&mut self, cx: &mut Cx<'_>) {
        if self.pass_due.is_some_and(|at| at <= cx.instant) {
            self.pass(cx);
        }
        let now = cx.instant;
        let due: Vec<u64> = self.hosts.iter().filter(|(_, host)| is_due(host, now)).map(|(serial, _)| *serial).collect();
        for serial in due {
            let Some(host) = self.hosts.get_mut(&serial) else { continue };
            match host.stage {
                Stage::Preparing => {}
                Stage::Greeting => {
                    let why = format!("a lane host did not say within {} s what it has", GREETING_MAX.as_secs());
                    self.end_host(cx, serial, Fate::Broken(why));
                }
                Stage::Ending => {
                    cx.processes.kill(serial);
                    host.since = now + STOP_MAX;
                }
                Stage::Ready if host.kill_at.is_some_and(|at| at <= now) => {
                    host.kill_at = None;
                    let live: Vec<_> = host.live().collect();
                    if live.iter().any(|(_, call)| cx.machine.is_unwanted(*call)) {
                        self.end_host(cx, serial, Fate::CallUnwanted);
                    }
                }
                Stage::Ready => self.end_host(cx, serial, Fate::Unneeded),
            }
        }
        self.close_lanes(cx);
        self.act(cx);
    }

    /// Forgets lanes that nothing is left of.
    pub(super) fn close_lanes(&mut self, cx: &mut Cx<'_>) {
        let idle: Vec<LaneId> =
            self.lanes.iter().filter(|(_, row)| row.hosts.is_empty() && row.homeless == 0).map(|(lane, _)| *lane).collect();
        for lane in idle {
            if cx.machine.close_lane(lane)
                && let Some(row) = self.lanes.remove(&lane)
            {
                self.by_key.retain(|_, of| *of != lane);
                self.by_group.retain(|_, of| *of != lane);
                drop(row);
            }
        }
    }

    /// Ends hosts that do nothing, the longest idle first, when the worker's memory is needed.
    pub fn free_memory(&mut self, cx: &mut Cx<'_>) {
        let capacity = self.capacity.memory_bytes;
        if capacity == scalable_core::resources::Resources::MEMORY_UNACCOUNTED {
            return;
        }
        let idle = |host: &Host| host.slots == 0 && host.stage == Stage::Ready;
        let taken: u64 = self.hosts.values().filter(|host| idle(host)).map(|host| host.sampled_now).sum();
        if cx.machine.used().memory_bytes.saturating_add(taken) <= capacity {
            return;
        }
        let oldest = self.hosts.iter().filter(|(_, host)| idle(host)).min_by_key(|(_, host)| host.since);
        if let Some(serial) = oldest.map(|(serial, _)| *serial) {
            self.end_host(cx, serial, Fate::Unneeded);
        }
    }
}

fn is_due(host: &Host, now: Instant) -> bool {
    match host.stage {
        Stage::Preparing => false,
        Stage::Greeting | Stage::Ending => host.since <= now,
        Stage::Ready => host.kill_at.is_some_and(|at| at <= now) || (host.slots == 0 && host.since + IDLE_MAX <= now),
    }
}
