//! One process that a test has started itself.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{DEADLINE, until};

/// A running process. Its streams go to files, so that it never waits for a reader; it is killed when the test ends without
/// having waited for it.
#[derive(Debug)]
pub struct Running {
    what: String,
    pid: i32,
    child: Option<Child>,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// A process that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code, or 128 plus the signal that ended it.
    pub code: i32,
    /// All it wrote.
    pub stdout: String,
    /// All it wrote.
    pub stderr: String,
    /// Largest resident set, bytes.
    pub peak_bytes: u64,
    what: String,
}

impl Running {
    /// Starts `command` with its streams in `<directory>/<name>.{stdout,stderr}`.
    pub fn start(mut command: Command, directory: &Path, name: &str) -> Running {
        let (stdout, stderr) = (directory.join(format!("{name}.stdout")), directory.join(format!("{name}.stderr")));
        let what = format!("{command:?}");
        // Whoever runs the tests may ignore hang-ups, and children would inherit that.
        // SAFETY: setting a signal's default is allowed between fork and exec.
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(&mut command, || {
                libc::signal(libc::SIGHUP, libc::SIG_DFL);
                Ok(())
            });
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&stdout).unwrap())
            .stderr(File::create(&stderr).unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {what}: {error}"));
        Running { what, pid: child.id() as i32, child: Some(child), stdout, stderr }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// What it has written to stdout up to now.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.stdout).unwrap_or_default()).into_owned()
    }

    /// What it has written to stderr up to now.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    /// Of a scheduler: the line in which it says where it listens.
    ///
    /// # Panics
    /// When that does not come, or is no JSON.
    #[track_caller]
    pub fn ready(&self) -> Value {
        let line = until("the scheduler to say where it listens", || Some(self.stdout().split_once('\n')?.0.to_owned()));
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// Of a scheduler: where clients reach it, `host:port`.
    ///
    /// # Panics
    /// As [`Running::ready`].
    #[track_caller]
    pub fn address(&self) -> String {
        plain(&self.ready()["address"])
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        assert!(self.child.is_some(), "{} has been waited for already", self.what);
        kill(Pid::from_raw(self.pid), signal).unwrap();
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not come.
    #[track_caller]
    pub fn wait(self) -> Finished {
        self.wait_within(DEADLINE)
    }

    /// As [`Running::wait`], for what takes longer.
    ///
    /// # Panics
    /// When the end does not come within `limit`.
    #[track_caller]
    pub fn wait_within(mut self, limit: Duration) -> Finished {
        let started = Instant::now();
        let (status, peak_bytes) = loop {
            if let Some(ended) = self.poll() {
                break ended;
            }
            assert!(
                started.elapsed() < limit,
                "waited {limit:?} for the end of {}\n{}\n{}",
                self.what,
                self.stdout(),
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(5));
        };
        self.child = None;
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Finished { code, stdout: self.stdout(), stderr: self.stderr(), peak_bytes, what: self.what.clone() }
    }

    /// True once it has ended; [`Running::wait`] then returns at once.
    pub fn ended(&self) -> bool {
        // SAFETY: all zeroes is a valid siginfo_t, waitid only writes to it, and WNOWAIT leaves the child as it is; the process id is
        // zero where no child has ended.
        unsafe {
            let mut state: libc::siginfo_t = std::mem::zeroed();
            let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            libc::waitid(libc::P_PID, self.pid as libc::id_t, &mut state, flags) == 0 && state.si_pid() == self.pid
        }
    }

    fn poll(&self) -> Option<(ExitStatus, u64)> {
        let mut status = 0;
        // SAFETY: all zeroes is a valid rusage, and wait4 only writes to the two places it is given.
        let (ended, usage) = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            (libc::wait4(self.pid, &mut status, libc::WNOHANG, &mut usage), usage)
        };
        assert!(ended >= 0, "{} was waited for by somebody else", self.what);
        (ended > 0).then(|| (ExitStatus::from_raw(status), u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Finished {
    /// Asserts the exit code; what the process wrote is in the message otherwise.
    #[track_caller]
    pub fn expect(self, code: i32) -> Finished {
        assert_eq!(self.code, code, "{} ended with {}\nstdout:\n{}\nstderr:\n{}", self.what, self.code, self.stdout, self.stderr);
        self
    }

    /// Asserts that stdout or stderr contain every one of `words`.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Finished {
        let all = format!("{}\n{}", self.stdout, self.stderr);
        for word in words {
            assert!(all.contains(word), "{} does not say {word:?}:\n{all}", self.what);
        }
        self
    }

    /// Asserts that nothing panicked on the way.
    #[track_caller]
    pub fn calm(self) -> Finished {
        let all = format!("{}\n{}", self.stdout, self.stderr);
        assert!(!all.contains("panicked at") && !all.contains("RUST_BACKTRACE"), "{} panicked:\n{all}", self.what);
        self
    }
}

/// `host:port` of a URL without TLS.
///
/// # Panics
/// When it is none.
pub fn plain(url: &Value) -> String {
    url.as_str().and_then(|url| url.strip_prefix("http://")).unwrap_or_else(|| panic!("no address: {url}")).to_owned()
}
