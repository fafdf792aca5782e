//! What the agent sets for its own process before anything else: signals from its parent, inherited files, limits.
#![allow(unsafe_code)]

use std::io;

/// Ends this process when the thread that started it ends.
///
/// # Errors
/// The kernel refuses.
pub fn die_with_parent() -> io::Result<()> {
    let parent = nix::unistd::getppid();
    // SAFETY: no memory is involved.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // It may have ended before the signal was armed.
    if nix::unistd::getppid() != parent {
        return Err(io::Error::other("the parent has ended already"));
    }
    Ok(())
}

/// Marks every inherited file above standard error to be closed in tasks, and makes sure that 0, 1 and 2 are open, so that no
/// file of the agent can get one of these numbers. What the agent opens itself is marked from the beginning.
///
/// # Errors
/// /proc or /dev/null is not there.
pub fn close_on_exec() -> io::Result<()> {
    loop {
        let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
        use std::os::fd::{AsRawFd, IntoRawFd};
        if null.as_raw_fd() > 2 {
            break;
        }
        // Stays open under this number on purpose.
        let _ = null.into_raw_fd();
    }
    let listed: Vec<i32> =
        std::fs::read_dir("/proc/self/fd")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for fd in listed.into_iter().filter(|fd| *fd > 2) {
        // SAFETY: no memory is involved; a number that was closed meanwhile (the listing's own) is refused.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}

/// Raises the soft limit of open files to the hard one: a process takes three. Gives the limit as it was, for tasks.
pub fn raise_open_files() -> Option<libc::rlimit> {
    // SAFETY: the place is ours.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 || limit.rlim_cur >= limit.rlim_max {
            return None;
        }
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
        (libc::setrlimit(libc::RLIMIT_NOFILE, &raised) == 0).then_some(limit)
    }
}
