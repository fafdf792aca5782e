//! The command lane: attempts as child processes in their own session, their output, their end, and what they leave behind.
//!
//! One epoll set holds a pidfd and two pipes for each process. [`Lane::fd`] is readable when something happened, and
//! [`Lane::poll`] says what; nothing here waits. So the reactor drives it like a socket, and no thread is hopped through between
//! the end of one process and the start of the next.
//!
//! **Nothing outlives its attempt.** When the main process has ended, its group is killed *before* it is waited for (its number
//! cannot be anybody else's until then). What left the group is a child of the agent by now, because the agent is a subreaper:
//! a child that is no main process is an orphan, and belongs to the attempt whose session it is in or whose marker it carries in
//! its environment. One that hid both is a stranger: it is killed when every attempt that could have started it is over. The end
//! is said only when no orphan of the attempt is left, and no stranger that was killed with it.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use rustc_hash::FxHashMap;

use crate::descendants::{Children, has_marker, session_of, tree};
use crate::spawn::{Child, Prepared, Stacks, Streams, spawn};

/// Bytes read from a pipe at a time.
const READ_BYTES: usize = 64 << 10;
/// Bytes of a stream that may be with the caller, not yet written: beyond it the pipe is left alone and the task waits on it.
pub const UNWRITTEN_BYTES_MAX: usize = 1 << 20;
/// Most that is still read from a pipe after its task's end: what a full pipe can hold.
const REST_BYTES_MAX: usize = 1 << 20;
/// Generations of orphans that the end of a lane waits for.
const DROP_ROUNDS_MAX: usize = 1000;
/// Events taken in one call of [`Lane::poll`].
const EVENTS_MAX: usize = 256;

/// Where an output stream goes.
#[derive(Debug)]
pub enum Stream {
    /// Read by the agent.
    Capture,
    /// Straight into this file.
    File(File),
}

/// A process to start.
#[derive(Debug)]
pub struct Job {
    /// The caller's number; events carry it.
    pub serial: u64,
    /// The command.
    pub prepared: Prepared,
    /// Standard input; nothing is /dev/null.
    pub stdin: Option<File>,
    /// Standard output.
    pub stdout: Stream,
    /// Standard error.
    pub stderr: Stream,
    /// `cgroup.procs` of the group to enter.
    pub cgroup: Option<File>,
    /// `NAME=value` in the environment that no other attempt has.
    pub marker: Vec<u8>,
    /// What it finds as descriptor 3.
    pub fourth: Option<OwnedFd>,
}

/// What is done with a child of this process that no attempt can be found for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strangers {
    /// The process starts nothing but attempts: a stranger is what one of them left behind, and is killed.
    Kill,
    /// The process has children of its own.
    Leave,
}

/// Which of the two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What happened.
#[derive(Debug)]
pub enum LaneEvent {
    /// Bytes came from a captured stream. Give them back with [`Lane::written`].
    Output {
        /// Whose.
        serial: u64,
        /// Which stream.
        which: Which,
        /// At least one.
        bytes: Vec<u8>,
    },
    /// A socket that is watched for a process can be read, or written where that was asked for, or its other end is closed.
    Socket {
        /// Whose.
        serial: u64,
    },
    /// No process of the attempt is left.
    Ended {
        /// Whose.
        serial: u64,
        /// How.
        end: End,
    },
}

/// How a process ended and what it used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Exit code, where it exited.
    pub exit_code: Option<i32>,
    /// Signal, where one ended it.
    pub signal: Option<i32>,
    /// It never ran its program: why.
    pub failure: Option<String>,
    /// User time of the process, its children it waited for, and its orphans.
    pub user_us: u64,
    /// System time, likewise.
    pub system_us: u64,
    /// Largest resident set of any one process. The kernel counts from the agent's own at the start, so a task smaller than the
    /// agent shows the agent's size.
    pub max_rss_bytes: u64,
    /// Processes that outlived the main one and were killed.
    pub left_behind: u32,
}

#[derive(Debug)]
struct Pipe {
    file: File,
    /// Our own copy of the other end. While it is open the process's end closes nothing, and the reactor is not woken for that a
    /// moment before it is woken for the end itself.
    _write: File,
    unwritten: usize,
    paused: bool,
}

#[derive(Debug)]
struct Process {
    child: Child,
    pipes: [Option<Pipe>; 2],
    marker: Vec<u8>,
    /// Set when the main process was waited for and orphans are still dying.
    ended: Option<End>,
}

/// An orphan that is being killed or watched.
#[derive(Debug)]
struct Orphan {
    /// Whose it is; nothing for a stranger.
    serial: Option<u64>,
    /// Newest attempt when it was first seen: it cannot have been started by a later one.
    newest: u64,
    /// Watched until it has ended, so that it is waited for. Nothing while no descriptor could be had.
    pidfd: Option<OwnedFd>,
    killed: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Lane {
    epoll: Epoll,
    null: File,
    stacks: Stacks,
    processes: FxHashMap<u64, Process>,
    by_pid: FxHashMap<i32, u64>,
    orphans: FxHashMap<i32, Orphan>,
    children: Children,
    strangers: Strangers,
    seen: Vec<i32>,
    newest: u64,
    buffer: Vec<u8>,
}

const KIND_PIDFD: u64 = 0;
const KIND_STDOUT: u64 = 1;
const KIND_STDERR: u64 = 2;
const KIND_ORPHAN: u64 = 3;
const KIND_SOCKET: u64 = 4;

impl Lane {
    /// A lane for the calling thread, which alone may use it and must live as long as the processes: children belong to the
    /// thread that made them. Makes the process a subreaper. `files` is the limit of open files that children get.
    ///
    /// # Errors
    /// No epoll, no /dev/null, no /proc.
    pub fn new(files: Option<libc::rlimit>, strangers: Strangers) -> io::Result<Self> {
        // SAFETY: no memory is involved.
        if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let children = Children::open().map_err(|e| {
            io::Error::new(e.kind(), format!("cannot read the list of child processes in /proc (is it mounted?): {e}"))
        })?;
        Ok(Lane {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            null,
            stacks: Stacks::new(files),
            processes: FxHashMap::default(),
            by_pid: FxHashMap::default(),
            orphans: FxHashMap::default(),
            children,
            strangers,
            seen: Vec::new(),
            newest: 0,
            buffer: vec![0; READ_BYTES],
        })
    }

    /// Readable when [`Lane::poll`] has something to say.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Processes that have not ended.
    pub fn len(&self) -> usize {
        self.processes.len()
    }

    /// True when none runs.
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }

    /// Starts a process and says its pid, which is its session's and group's too. `Ended` follows for every process that was
    /// started.
    ///
    /// # Errors
    /// No process or pipe could be made: a limit of the system.
    pub fn start(&mut self, job: Job) -> io::Result<i32> {
        let Job { serial, prepared, stdin, stdout, stderr, cgroup, marker, fourth } = job;
        let (out_read, out_write) = self.stream(stdout)?;
        let (err_read, err_write) = self.stream(stderr)?;
        let fds = [
            stdin.as_ref().map_or(self.null.as_fd(), File::as_fd),
            out_write.as_ref().map_or(self.null.as_fd(), File::as_fd),
            err_write.as_ref().map_or(self.null.as_fd(), File::as_fd),
        ];
        let streams = Streams { fds, cgroup: cgroup.as_ref().map(File::as_fd), fourth: fourth.as_ref().map(OwnedFd::as_fd) };
        let child = spawn(prepared, &streams, &mut self.stacks)?;
        self.newest = self.newest.max(serial);
        let pid = child.pid;
        // From here on the process exists: it must be waited for whatever happens.
        self.by_pid.insert(pid, serial);
        let watched = self
            .watch(child.pidfd.as_fd(), serial << 3 | KIND_PIDFD)
            .and_then(|()| out_read.as_ref().map_or(Ok(()), |f| self.watch(f.as_fd(), serial << 3 | KIND_STDOUT)))
            .and_then(|()| err_read.as_ref().map_or(Ok(()), |f| self.watch(f.as_fd(), serial << 3 | KIND_STDERR)));
        if let Err(error) = watched {
            self.by_pid.remove(&pid);
            signal_group(pid, libc::SIGKILL);
            wait(pid, 0);
            return Err(error);
        }
        let pipe = |read: Option<File>, write: Option<File>| {
            read.zip(write).map(|(file, write)| Pipe { file, _write: write, unwritten: 0, paused: false })
        };
        let pipes = [pipe(out_read, out_write), pipe(err_read, err_write)];
        self.processes.insert(serial, Process { child, pipes, marker, ended: None });
        Ok(pid)
    }

    fn stream(&self, stream: Stream) -> io::Result<(Option<File>, Option<File>)> {
        match stream {
            Stream::File(file) => Ok((None, Some(file))),
            Stream::Capture => {
                let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
                // Only our end: a task must find its output as blocking as everywhere.
                nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
                Ok((Some(File::from(read)), Some(File::from(write))))
            }
        }
    }

    fn watch(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token))?)
    }

    /// Watches a socket that the caller shares with a process. It stays watched until it is closed.
    ///
    /// # Errors
    /// A limit of the system.
    pub fn watch_socket(&self, serial: u64, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.watch(socket, serial << 3 | KIND_SOCKET)
    }

    /// Whether the caller wants to hear that a socket it watches can be written.
    pub fn watch_writable(&self, serial: u64, socket: BorrowedFd<'_>, wanted: bool) {
        let flags = if wanted { EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
        let mut event = EpollEvent::new(flags, serial << 3 | KIND_SOCKET);
        // It can only fail for a descriptor that is not in the set, and then nobody waits for it.
        let _ = self.epoll.modify(socket, &mut event);
    }

    /// The process id of an attempt that has not ended.
    pub fn pid(&self, serial: u64) -> Option<i32> {
        self.processes.get(&serial).map(|p| p.child.pid)
    }

    /// Asks the whole group to end.
    pub fn terminate(&self, serial: u64) {
        if let Some(process) = self.processes.get(&serial).filter(|p| p.ended.is_none()) {
            signal_group(process.child.pid, libc::SIGTERM);
            // A stopped process would not see it.
            signal_group(process.child.pid, libc::SIGCONT);
        }
    }

    /// Kills the group and everything below it. `Ended` follows when the kernel says so.
    pub fn kill(&self, serial: u64) {
        if let Some(process) = self.processes.get(&serial).filter(|p| p.ended.is_none()) {
            signal_group(process.child.pid, libc::SIGKILL);
            // Later ones first: a parent that sees its child die could start another.
            for pid in tree(process.child.pid).into_iter().skip(1) {
                signal(pid, libc::SIGKILL);
            }
        }
    }

    /// The caller has written (or dropped) so many bytes of a stream: more may be read.
    pub fn written(&mut self, serial: u64, which: Which, bytes: usize) {
        let Some(process) = self.processes.get_mut(&serial) else { return };
        let (at, kind) = place(which);
        let Some(pipe) = &mut process.pipes[at] else { return };
        pipe.unwritten = pipe.unwritten.saturating_sub(bytes);
        if pipe.paused && pipe.unwritten < UNWRITTEN_BYTES_MAX / 2 {
            pipe.paused = false;
            let mut event = EpollEvent::new(EpollFlags::EPOLLIN, serial << 3 | kind);
            // It can only fail for a descriptor that is not in the set, and then there is nothing to read.
            let _ = self.epoll.modify(&pipe.file, &mut event);
        }
    }

    /// Takes what happened. Never waits. True when there may be more at once; otherwise [`Lane::fd`] becomes readable again for
    /// whatever happens from now on (it is enough to hear of changes).
    pub fn poll(&mut self, out: &mut Vec<LaneEvent>) -> bool {
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        let (mut ended, mut orphan_ended, mut more) = (Vec::new(), false, count == EVENTS_MAX);
        for event in &events[..count] {
            let token = event.data();
            match token & 7 {
                KIND_STDOUT => more |= self.read(token >> 3, Which::Stdout, out),
                KIND_STDERR => more |= self.read(token >> 3, Which::Stderr, out),
                KIND_ORPHAN => {
                    self.orphan_ended((token >> 3) as i32);
                    orphan_ended = true;
                }
                KIND_SOCKET => {
                    // The caller may leave something in it: it is looked at again before anything is waited for.
                    more = true;
                    out.push(LaneEvent::Socket { serial: token >> 3 });
                }
                _ => ended.push(token >> 3),
            }
        }
        for serial in &ended {
            self.main_ended(*serial, out);
        }
        if orphan_ended || !ended.is_empty() {
            self.settle_orphans(out);
        }
        more
    }

    /// Looks for strangers whose time is over, and for orphans a reading has missed. Called now and then.
    pub fn sweep(&mut self, out: &mut Vec<LaneEvent>) {
        self.settle_orphans(out);
    }

    /// True when there may be more to read.
    fn read(&mut self, serial: u64, which: Which, out: &mut Vec<LaneEvent>) -> bool {
        let Some(process) = self.processes.get_mut(&serial) else { return false };
        let (at, kind) = place(which);
        let Some(pipe) = &mut process.pipes[at] else { return false };
        match pipe.file.read(&mut self.buffer) {
            Ok(0) => process.pipes[at] = None,
            Ok(count) => {
                pipe.unwritten += count;
                if pipe.unwritten >= UNWRITTEN_BYTES_MAX {
                    pipe.paused = true;
                    let mut none = EpollEvent::new(EpollFlags::empty(), serial << 3 | kind);
                    let _ = self.epoll.modify(&pipe.file, &mut none);
                }
                out.push(LaneEvent::Output { serial, which, bytes: self.buffer[..count].to_vec() });
                return count == READ_BYTES;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(_) => process.pipes[at] = None,
        }
        false
    }

    /// Reads what is left in the pipes of a process that has ended.
    fn read_rest(&mut self, serial: u64, out: &mut Vec<LaneEvent>) {
        let Some(process) = self.processes.get_mut(&serial) else { return };
        for which in [Which::Stdout, Which::Stderr] {
            let Some(mut pipe) = process.pipes[place(which).0].take() else { continue };
            let mut total = 0;
            while total < REST_BYTES_MAX {
                match pipe.file.read(&mut self.buffer) {
                    Ok(0) | Err(_) => break,
                    Ok(count) => {
                        total += count;
                        out.push(LaneEvent::Output { serial, which, bytes: self.buffer[..count].to_vec() });
                    }
                }
            }
        }
    }

    fn main_ended(&mut self, serial: u64, out: &mut Vec<LaneEvent>) {
        let Some(process) = self.processes.get_mut(&serial).filter(|p| p.ended.is_none()) else { return };
        let pid = process.child.pid;
        // Before it is waited for: until then its number is nobody else's.
        signal_group(pid, libc::SIGKILL);
        let Some((status, usage)) = wait(pid, libc::WNOHANG) else { return };
        let mut end = End { failure: process.child.failure().map(|f| f.message), ..End::default() };
        if libc::WIFEXITED(status) {
            end.exit_code = Some(libc::WEXITSTATUS(status));
        } else if libc::WIFSIGNALED(status) {
            end.signal = Some(libc::WTERMSIG(status));
        }
        end.add(&usage);
        process.child.take_stack(&mut self.stacks);
        process.ended = Some(end);
        self.by_pid.remove(&pid);
        // What the group still wrote while it was being killed is in the pipe by now or never.
        self.read_rest(serial, out);
    }

    fn orphan_ended(&mut self, pid: i32) {
        let Some(orphan) = self.orphans.remove(&pid) else { return };
        let usage = wait(pid, libc::WNOHANG).map(|(_, usage)| usage);
        let end = orphan.serial.and_then(|serial| self.processes.get_mut(&serial)).and_then(|p| p.ended.as_mut());
        if let (Some(usage), Some(end)) = (usage, end) {
            end.add(&usage);
        }
    }

    /// Finds orphans, kills those whose attempt is over, and says the end of attempts that have none left.
    fn settle_orphans(&mut self, out: &mut Vec<LaneEvent>) {
        let mut seen = std::mem::take(&mut self.seen);
        self.children.read(&mut seen);
        for &pid in &seen {
            if !self.by_pid.contains_key(&pid) {
                self.orphan(pid);
            }
        }
        self.seen = seen;
        // A stranger that is being killed may be of any attempt that could have started it: they wait for it, too.
        let waits = |serial: u64| {
            self.orphans.values().any(|orphan| match orphan.serial {
                Some(owner) => owner == serial,
                None => orphan.killed && serial <= orphan.newest,
            })
        };
        let ended = self.processes.iter().filter(|(_, process)| process.ended.is_some()).map(|(serial, _)| *serial);
        let over: Vec<u64> = ended.filter(|serial| !waits(*serial)).collect();
        for serial in over {
            if let Some(end) = self.processes.remove(&serial).and_then(|p| p.ended) {
                out.push(LaneEvent::Ended { serial, end });
            }
        }
    }

    /// One child that is no main process: whose is it, and is that attempt over?
    fn orphan(&mut self, pid: i32) {
        if !self.orphans.contains_key(&pid) {
            let serial = self.owner(pid);
            self.orphans.insert(pid, Orphan { serial, newest: self.newest, pidfd: None, killed: false });
        }
        let Some(orphan) = self.orphans.get_mut(&pid) else { return };
        if orphan.pidfd.is_none() {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, (pid as u64) << 3 | KIND_ORPHAN);
            // Without a descriptor (the limit of open files) it is tried again with the next attempt's end or sweep.
            orphan.pidfd = pidfd_open(pid).ok().filter(|fd| self.epoll.add(fd, event).is_ok());
        }
        let over = match orphan.serial {
            Some(serial) => self.processes.get(&serial).is_none_or(|p| p.ended.is_some()),
            None => {
                self.strangers == Strangers::Kill
                    && !self.processes.iter().any(|(serial, p)| *serial <= orphan.newest && p.ended.is_none())
            }
        };
        if over && !orphan.killed {
            orphan.killed = true;
            signal(pid, libc::SIGKILL);
            if let Some(end) = orphan.serial.and_then(|s| self.processes.get_mut(&s)).and_then(|p| p.ended.as_mut()) {
                end.left_behind += 1;
            }
        }
    }

    fn owner(&self, pid: i32) -> Option<u64> {
        let session = session_of(pid).map(|(session, _)| session);
        let by_session = self.processes.iter().find(|(_, p)| Some(p.child.pid) == session).map(|(serial, _)| *serial);
        by_session.or_else(|| self.processes.iter().find(|(_, p)| has_marker(pid, &p.marker)).map(|(serial, _)| *serial))
    }
}

impl Drop for Lane {
    /// Kills what still runs and waits for it: nothing outlives the lane.
    fn drop(&mut self) {
        for serial in self.processes.keys() {
            self.kill(*serial);
        }
        for process in self.processes.values().filter(|p| p.ended.is_none()) {
            wait(process.child.pid, 0);
        }
        // Each round adopts what the one before has orphaned.
        let mut seen = Vec::new();
        for _ in 0..DROP_ROUNDS_MAX {
            self.children.read(&mut seen);
            seen.retain(|pid| self.strangers == Strangers::Kill || self.owner(*pid).is_some());
            if seen.is_empty() {
                break;
            }
            for &pid in &seen {
                signal(pid, libc::SIGKILL);
                wait(pid, 0);
            }
        }
    }
}

impl End {
    fn add(&mut self, usage: &libc::rusage) {
        let micros = |t: libc::timeval| (t.tv_sec as u64).saturating_mul(1_000_000).saturating_add(t.tv_usec as u64);
        self.user_us += micros(usage.ru_utime);
        self.system_us += micros(usage.ru_stime);
        self.max_rss_bytes = self.max_rss_bytes.max((usage.ru_maxrss as u64).saturating_mul(1024));
    }
}

fn place(which: Which) -> (usize, u64) {
    match which {
        Which::Stdout => (0, KIND_STDOUT),
        Which::Stderr => (1, KIND_STDERR),
    }
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: no memory is involved. One that is gone already is what was wanted.
    unsafe { libc::kill(pid, signal) };
}

/// A child that has only just been made has no group yet: then it is signalled itself.
fn signal_group(pid: i32, number: i32) {
    // SAFETY: no memory is involved.
    if unsafe { libc::kill(-pid, number) } != 0 && Errno::last() == Errno::ESRCH {
        signal(pid, number);
    }
}

fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: no memory is involved; a result that is not negative is a new descriptor that is ours.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as RawFd)) }
    }
}

/// Waits for one child: its status and what it used.
fn wait(pid: i32, options: i32) -> Option<(i32, libc::rusage)> {
    loop {
        // SAFETY: both places are ours and large enough.
        unsafe {
            let (mut status, mut usage) = (0, std::mem::zeroed());
            let result = libc::wait4(pid, &mut status, options, &mut usage);
            if result == pid {
                return Some((status, usage));
            }
            if result == 0 || Errno::last() != Errno::EINTR {
                return None;
            }
        }
    }
}
