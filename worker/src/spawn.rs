//! Starting a process: the one room with `unsafe` that runs code in a child before `execve`.
//!
//! **Why not `posix_spawn` or `Command`.** Neither can make a session, arm the parent-death signal and say *which* step failed.
//! And both suspend the caller until the child has called `execve`: with an executable on a file system that hangs, the agent
//! would hang too. Here the child is made by `clone(CLONE_VM)` *without* `CLONE_VFORK`: it runs on a stack of its own in the
//! agent's memory while the agent goes on, until `execve` gives it memory of its own. `clone` copies no page table, so the cost
//! does not grow with the agent.
//!
//! **What the child may do.** It shares the agent's memory *and its thread-local storage*, so it may touch nothing but its own
//! stack and the `Shared` block made for it: no allocation, no lock, no panic, no `errno` (hence raw system calls instead of
//! libc's). Everything it needs is laid out before.
//!
//! **How long that memory lives.** The kernel writes 0 to `Shared::in_agent` when the child has left the agent's memory
//! (`CLONE_CHILD_CLEARTID`: at `execve` or exit). Stack and block are used again only after that.
//!
//! **Signals.** All are blocked around `clone`, so none is delivered in the child before its dispositions are default ones; a
//! handler of the agent never runs there.
//!
//! The thread that starts a process must live as long as the agent: the parent-death signal is sent when the *thread* ends.
#![allow(unsafe_code)]

use std::ffi::{CString, OsStr, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};

/// Bytes of a child's stack before `execve`. It calls nothing that recurses; a page would do.
const STACK_BYTES: usize = 64 << 10;
/// Most stacks kept for the next child.
const STACKS_KEPT: usize = 64;

/// Program, arguments, environment and directory, laid out for the child.
#[derive(Debug)]
pub struct Prepared {
    /// Paths to try, in order: the program itself, or its name in every directory of `PATH`.
    candidates: Vec<CString>,
    argv: Vec<CString>,
    /// What all attempts of a group share.
    environment: Arc<[CString]>,
    /// What this one has on top.
    own: Vec<CString>,
    directory: Option<CString>,
}

/// A string with a NUL byte inside cannot be given to a process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} contains a NUL byte, which a command cannot be given")]
pub struct NulError(&'static str);

impl Prepared {
    /// Lays out a command. Its environment is `environment` and `own`, which must not name a variable twice. A program without a
    /// slash is looked for in their `PATH` (else in the system's default).
    ///
    /// # Errors
    /// A NUL byte inside any of the strings.
    pub fn new<'a>(
        argv: impl IntoIterator<Item = &'a OsStr>,
        environment: Arc<[CString]>,
        own: Vec<CString>,
        directory: Option<&Path>,
    ) -> Result<Self, NulError> {
        let argv = argv
            .into_iter()
            .map(|arg| CString::new(arg.as_bytes()).map_err(|_| NulError("an argument")))
            .collect::<Result<Vec<_>, _>>()?;
        let directory = directory.map(|d| CString::new(d.as_os_str().as_bytes())).transpose();
        let directory = directory.map_err(|_| NulError("the directory"))?;
        let program = argv.first().map(|a| a.as_bytes()).unwrap_or_default();
        let candidates = if program.contains(&b'/') || program.is_empty() {
            argv.first().cloned().into_iter().collect()
        } else {
            let all = own.iter().chain(environment.iter());
            let path = all.map(|e| e.as_bytes()).find_map(|e| e.strip_prefix(b"PATH=")).unwrap_or(b"/bin:/usr/bin");
            let in_directory = |directory: &[u8]| {
                let directory: &[u8] = if directory.is_empty() { b"." } else { directory };
                CString::new([directory, b"/", program].concat()).ok()
            };
            path.split(|b| *b == b':').filter_map(in_directory).collect()
        };
        Ok(Prepared { candidates, argv, environment, own, directory })
    }

    /// The program as it was asked for.
    pub fn program(&self) -> PathBuf {
        PathBuf::from(OsStr::from_bytes(self.argv.first().map(|a| a.as_bytes()).unwrap_or_default()))
    }

    /// Where the program was looked for: one sentence's worth, bounded.
    fn searched(&self) -> String {
        let mut text = String::new();
        for (nth, candidate) in self.candidates.iter().enumerate() {
            if nth == 12 {
                text.push_str(", …");
                break;
            }
            if nth > 0 {
                text.push_str(", ");
            }
            text.push_str(&candidate.to_string_lossy());
        }
        text
    }
}

/// What the child is given besides the command. Descriptors must be 3 or above, so that putting them in place of 0, 1 and 2
/// overwrites none of them.
#[derive(Debug)]
pub struct Streams<'a> {
    /// Standard input, output, error.
    pub fds: [BorrowedFd<'a>; 3],
    /// `cgroup.procs` of the group the child is to enter, open for writing.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// What the child finds as descriptor 3, if anything.
    pub fourth: Option<BorrowedFd<'a>>,
}

/// Which step failed in the child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Session = 1,
    ParentGone = 2,
    Cgroup = 3,
    Directory = 4,
    Streams = 5,
    Exec = 6,
}

/// Why the command did not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    /// One sentence: which step, which path, the system's words, what to do.
    pub message: String,
    /// The system's error number.
    pub errno: i32,
}

/// What parent and child share until `execve`. Pointers point into the `Memory` that owns it.
#[repr(C)]
struct Shared {
    candidates: *const *const c_char,
    argv: *const *const c_char,
    env: *const *const c_char,
    directory: *const c_char,
    fds: [c_int; 3],
    cgroup: c_int,
    fourth: c_int,
    agent: libc::pid_t,
    /// Limit of open files to give back, where the agent raised its own.
    files: libc::rlimit,
    files_set: bool,
    /// `step << 32 | errno`, 0 while nothing failed.
    failure: AtomicU64,
    /// Which candidate the failure is about.
    candidate: AtomicUsize,
    /// Not 0 while the child still uses the agent's memory. Written by the kernel.
    in_agent: AtomicI32,
}

/// All memory a child uses before `execve`.
struct Memory {
    shared: Shared,
    prepared: Prepared,
    _pointers: [Vec<*const c_char>; 3],
    stack: Option<Stack>,
}

/// A child that was made. Dropping it does not end the process.
pub struct Child {
    /// Its process, session and group id.
    pub pid: libc::pid_t,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    memory: *mut Memory,
}

// SAFETY: the memory behind the pointer is owned by this value alone (the child process uses it too, but through its own
// references and only until `in_agent` is 0, which `drop` respects).
unsafe impl Send for Child {}

impl std::fmt::Debug for Child {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Child").field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl Child {
    /// Why it did not get as far as running its program. Meaningful once it was waited for.
    pub fn failure(&self) -> Option<StartError> {
        // SAFETY: the block lives until `drop`; the field is atomic.
        let memory = unsafe { &*self.memory };
        let raw = memory.shared.failure.load(Ordering::Acquire);
        if raw == 0 {
            return None;
        }
        let (step, errno) = ((raw >> 32) as u32, raw as u32 as i32);
        let words = io::Error::from_raw_os_error(errno);
        let prepared = &memory.prepared;
        let program = prepared.program().display().to_string();
        let message = match step {
            s if s == Step::Exec as u32 => {
                let candidate = prepared.candidates.get(memory.shared.candidate.load(Ordering::Relaxed));
                let candidate = candidate.map(|c| c.to_string_lossy().into_owned()).unwrap_or_default();
                exec_message(&program, &candidate, errno, &words, prepared)
            }
            s if s == Step::Directory as u32 => {
                let directory = prepared.directory.as_ref().map(|d| d.to_string_lossy().into_owned()).unwrap_or_default();
                format!("cannot start {program}: directory {directory}: {words}")
            }
            s if s == Step::Cgroup as u32 => format!("cannot start {program}: it could not enter its cgroup: {words}"),
            s if s == Step::ParentGone as u32 => format!("cannot start {program}: the agent was ending"),
            s if s == Step::Session as u32 => format!("cannot start {program}: no session of its own: {words}"),
            _ => format!("cannot start {program}: its streams could not be put in place: {words}"),
        };
        Some(StartError { message, errno })
    }

    /// Gives the stack back for the next child, if the child has left it.
    pub fn take_stack(&mut self, stacks: &mut Stacks) {
        // SAFETY: as in `failure`; the stack is taken only when the kernel has said that the child is out of this memory.
        let memory = unsafe { &mut *self.memory };
        if memory.shared.in_agent.load(Ordering::Acquire) == 0
            && let Some(stack) = memory.stack.take()
            && stacks.free.len() < STACKS_KEPT
        {
            stacks.free.push(stack);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: `memory` came from `Box::into_raw` and is freed here only. While the child still runs on it (it was never
        // waited for and has not called `execve`), freeing would pull the ground from under it: then it is left to leak.
        unsafe {
            if (*self.memory).shared.in_agent.load(Ordering::Acquire) == 0 {
                drop(Box::from_raw(self.memory));
            }
        }
    }
}

fn exec_message(program: &str, candidate: &str, errno: i32, words: &io::Error, prepared: &Prepared) -> String {
    let by_name = !prepared.program().as_os_str().as_bytes().contains(&b'/');
    match errno {
        libc::ENOENT if by_name => {
            format!("command {program} was not found; looked for {}; install it or name it with its path", prepared.searched())
        }
        libc::ENOENT => {
            format!("command {program} was not found (or the interpreter it names in its first line or header is missing)")
        }
        libc::EACCES => format!("command {candidate} may not be executed (permission denied); chmod +x helps for a script"),
        libc::ENOEXEC => {
            format!("command {candidate} is no executable this machine knows; a script needs a first line such as #!/bin/sh")
        }
        libc::E2BIG => format!(
            "command {program}: its arguments and environment are too long for the system; \
             a file with one path a line is {{inputs.NAME.list}}"
        ),
        _ => format!("command {candidate} could not be executed: {words}"),
    }
}

/// A child's stack: pages with a guard page below.
#[derive(Debug)]
struct Stack {
    base: *mut c_void,
}

const GUARD_BYTES: usize = 64 << 10;

impl Stack {
    fn new() -> io::Result<Self> {
        // SAFETY: a fresh private mapping; its lowest part is made inaccessible, so that an overflow is a fault and not silent.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE;
            let base = libc::mmap(ptr::null_mut(), GUARD_BYTES + STACK_BYTES, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            if base == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let stack = Stack { base };
            if libc::mprotect(base, GUARD_BYTES, libc::PROT_NONE) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(stack)
        }
    }

    /// Where a stack that grows down begins: 16-byte aligned, as every ABI wants it.
    fn top(&self) -> *mut c_void {
        // SAFETY: one past the mapping, which is what `clone` wants.
        unsafe { self.base.add(GUARD_BYTES + STACK_BYTES) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and no child runs on it (see `Child`).
        unsafe { libc::munmap(self.base, GUARD_BYTES + STACK_BYTES) };
    }
}

/// Stacks for the next children: one that was used has its page mapped already.
#[derive(Debug, Default)]
pub struct Stacks {
    free: Vec<Stack>,
    files: Option<libc::rlimit>,
}

// SAFETY: the mappings are owned by the value.
unsafe impl Send for Stacks {}

impl Stacks {
    /// `files` is the limit of open files that children get, where the agent raised its own.
    pub fn new(files: Option<libc::rlimit>) -> Self {
        Stacks { free: Vec::new(), files }
    }
}

/// Starts a process in its own session and process group. Returns as soon as it exists; whether its program could be executed is
/// known from [`Child::failure`] when it has ended.
///
/// # Errors
/// No process could be made: the system's limit of processes or memory.
pub fn spawn(prepared: Prepared, streams: &Streams<'_>, stacks: &mut Stacks) -> io::Result<Child> {
    let stack = match stacks.free.pop() {
        Some(stack) => stack,
        None => Stack::new()?,
    };
    let top = stack.top();
    let pointers =
        [pointers(&prepared.candidates, &[]), pointers(&prepared.argv, &[]), pointers(&prepared.own, &prepared.environment)];
    let shared = Shared {
        candidates: pointers[0].as_ptr(),
        argv: pointers[1].as_ptr(),
        env: pointers[2].as_ptr(),
        directory: prepared.directory.as_ref().map_or(ptr::null(), |d| d.as_ptr()),
        fds: [streams.fds[0].as_raw_fd(), streams.fds[1].as_raw_fd(), streams.fds[2].as_raw_fd()],
        cgroup: streams.cgroup.map_or(-1, |fd| fd.as_raw_fd()),
        fourth: streams.fourth.map_or(-1, |fd| fd.as_raw_fd()),
        agent: std::process::id() as libc::pid_t,
        files: stacks.files.unwrap_or(libc::rlimit { rlim_cur: 0, rlim_max: 0 }),
        files_set: stacks.files.is_some(),
        failure: AtomicU64::new(0),
        candidate: AtomicUsize::new(0),
        in_agent: AtomicI32::new(1),
    };
    debug_assert!(shared.fds.iter().all(|fd| *fd > 2), "streams lie above 2");
    let memory = Box::into_raw(Box::new(Memory { shared, prepared, _pointers: pointers, stack: Some(stack) }));
    let mut pidfd: RawFd = -1;
    // SAFETY: `top` is the end of a mapping that only this child uses; `child` keeps to the rules of the module; the block
    // outlives the child's use of it because `Child::drop` waits for `in_agent`. CLONE_PIDFD stores through the pointer given as
    // parent_tid before clone returns. Signals are blocked meanwhile and the mask is put back.
    let pid = unsafe {
        let shared: *mut Shared = &raw mut (*memory).shared;
        let in_agent: *mut c_int = (*shared).in_agent.as_ptr();
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let flags = libc::CLONE_VM | libc::CLONE_PIDFD | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD;
        let pid = libc::clone(child, top, flags, shared.cast(), &raw mut pidfd, ptr::null_mut::<c_void>(), in_agent);
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
        if pid < 0 {
            // No child was made: nobody else uses the block.
            drop(Box::from_raw(memory));
            return Err(error);
        }
        pid
    };
    // SAFETY: the kernel has just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child { pid, pidfd, memory })
}

/// A null-terminated list. The strings are boxed: moving what owns them does not move their bytes.
fn pointers(some: &[CString], more: &[CString]) -> Vec<*const c_char> {
    some.iter().chain(more).map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

/// The child, until `execve`. See the rules at the top of the file.
extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: `argument` is the `Shared` block of `spawn`, alive until the kernel clears `in_agent`; all pointers in it are
    // NUL-terminated strings or null-terminated lists of them that live as long.
    unsafe {
        let shared = argument.cast::<Shared>().cast_const();
        let fail = |step: Step, result: isize| -> ! {
            (*shared).failure.store(((step as u64) << 32) | u64::from((-result) as u32), Ordering::Release);
            loop {
                raw(libc::SYS_exit_group, [127, 0, 0, 0, 0]);
            }
        };
        // Dispositions: what the agent ignores (SIGPIPE) or handles must not reach the program, nor run here.
        let default = [0u64; 4];
        let mut signal = 1;
        while signal <= 64 {
            if signal != libc::SIGKILL as usize && signal != libc::SIGSTOP as usize {
                raw(libc::SYS_rt_sigaction, [signal, (&raw const default).addr(), 0, 8, 0]);
            }
            signal += 1;
        }
        raw(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize, 0, 0, 0]);
        // The agent may have ended before the signal was armed.
        if raw(libc::SYS_getppid, [0; 5]) != (*shared).agent as isize {
            fail(Step::ParentGone, -(libc::ESRCH as isize));
        }
        let result = raw(libc::SYS_setsid, [0; 5]);
        if result < 0 {
            fail(Step::Session, result);
        }
        if (*shared).cgroup >= 0 {
            let me = b"0";
            let result = raw(libc::SYS_write, [(*shared).cgroup as usize, me.as_ptr().addr(), 1, 0, 0]);
            if result < 0 {
                fail(Step::Cgroup, result);
            }
        }
        if !(*shared).directory.is_null() {
            let result = raw(libc::SYS_chdir, [(*shared).directory.addr(), 0, 0, 0, 0]);
            if result < 0 {
                fail(Step::Directory, result);
            }
        }
        let fds = &raw const (*shared).fds;
        let mut to = 0;
        while to < 3 {
            let from = *fds.cast::<c_int>().add(to);
            let result = raw(libc::SYS_dup3, [from as usize, to, 0, 0, 0]);
            if result < 0 {
                fail(Step::Streams, result);
            }
            to += 1;
        }
        if (*shared).fourth >= 0 {
            // Last: what it overwrites is needed no more. One that lies there already only stays open.
            let from = (*shared).fourth as usize;
            let result = match from {
                3 => raw(libc::SYS_fcntl, [3, libc::F_SETFD as usize, 0, 0, 0]),
                _ => raw(libc::SYS_dup3, [from, 3, 0, 0, 0]),
            };
            if result < 0 {
                fail(Step::Streams, result);
            }
        }
        if (*shared).files_set {
            // Best effort: a program with a higher limit than it was promised still runs.
            raw(libc::SYS_prlimit64, [0, libc::RLIMIT_NOFILE as usize, (&raw const (*shared).files).addr(), 0, 0]);
        }
        let none = 0u64;
        raw(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as usize, (&raw const none).addr(), 0, 8, 0]);
        // As execvp: the first that can be executed; one that is there and may not be executed is remembered over "not found".
        let mut remembered = -(libc::ENOENT as isize);
        let mut at = 0;
        while !(*(*shared).candidates.add(at)).is_null() {
            let candidate = (*(*shared).candidates.add(at)).addr();
            let result = raw(libc::SYS_execve, [candidate, (*shared).argv.addr(), (*shared).env.addr(), 0, 0]);
            match -result as c_int {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => {
                    // A directory of PATH that may not be looked into is no reason to name it.
                    if raw(libc::SYS_faccessat, [libc::AT_FDCWD as usize, candidate, libc::F_OK as usize, 0, 0]) == 0 {
                        remembered = result;
                        (*shared).candidate.store(at, Ordering::Relaxed);
                    }
                }
                _ => {
                    (*shared).candidate.store(at, Ordering::Relaxed);
                    fail(Step::Exec, result)
                }
            }
            at += 1;
        }
        fail(Step::Exec, remembered)
    }
}

/// A system call that touches no `errno`. Pointers come as addresses.
///
/// # Safety
/// As the system call.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn raw(number: libc::c_long, a: [usize; 5]) -> isize {
    let result: isize;
    // SAFETY: the kernel's calling convention; rcx and r11 are overwritten by `syscall`.
    unsafe {
        std::arch::asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
            in("r10") a[3], in("r8") a[4], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// A system call that touches no `errno`. Pointers come as addresses.
///
/// # Safety
/// As the system call.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
unsafe fn raw(number: libc::c_long, a: [usize; 5]) -> isize {
    let result: isize;
    // SAFETY: the kernel's calling convention.
    unsafe {
        std::arch::asm!("svc 0", in("x8") number, inlateout("x0") a[0] as isize => result, in("x1") a[1], in("x2") a[2],
            in("x3") a[3], in("x4") a[4], options(nostack));
    }
    result
}

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
compile_error!("the agent runs on Linux on x86_64 and aarch64; another system needs `raw` in worker/src/spawn.rs");
