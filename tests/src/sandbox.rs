//! A directory of a test's own, and everything that was started in it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Finished, Run, Running, until};

/// Name of the variable by which a test knows the processes it has caused: every descendant inherits it.
const MARKER: &str = "SCALABLE_E2E_SANDBOX";

/// One test's world: a directory, an environment, and the processes that live in it. When the test fails the directory is kept
/// and its path printed; what still runs is killed either way.
#[derive(Debug)]
pub struct Sandbox {
    directory: Option<tempfile::TempDir>,
    path: PathBuf,
    environment: Vec<(String, String)>,
    started: AtomicU32,
}

/// A process found in a sandbox.
#[derive(Debug, Clone)]
pub struct ProcessInfo {
    /// Process id.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// File name of the program.
    pub program: String,
    /// Its arguments, for messages.
    pub arguments: String,
}

impl Sandbox {
    /// A new, empty one.
    #[allow(clippy::new_without_default, reason = "makes a directory: nothing one wants by default")]
    pub fn new() -> Sandbox {
        let directory = tempfile::Builder::new().prefix("scalable-e2e-").tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap();
        Sandbox { directory: Some(directory), path, environment: Vec::new(), started: AtomicU32::new(0) }
    }

    /// With a variable in the environment of everything started from here.
    pub fn env(mut self, name: &str, value: &str) -> Sandbox {
        self.set_env(name, value);
        self
    }

    /// Sets or replaces a variable of [`Sandbox::env`].
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// With leases so short that a test can wait for their end.
    pub fn short_leases(self) -> Sandbox {
        self.env("SCALABLE_HEARTBEAT_MS", "200")
            .env("SCALABLE_SUSPECT_AFTER_MS", "800")
            .env("SCALABLE_LOST_AFTER_MS", "2000")
            .env("SCALABLE_LOST_AFTER_RESET_MS", "1000")
    }

    /// A path in it.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.path.join(relative)
    }

    /// Writes a file.
    pub fn write(&self, relative: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(relative);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Writes the file `token` as a scheduler wants it, and returns what is in it.
    pub fn token(&self) -> String {
        use std::os::unix::fs::PermissionsExt;
        let token = "0123456789abcdef0123456789abcdef";
        let path = self.write("token", token);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
        token.to_owned()
    }

    /// Reads a file; nothing when it is not there.
    pub fn read(&self, relative: &str) -> String {
        std::fs::read_to_string(self.path(relative)).unwrap_or_default()
    }

    /// Lines of a file that are complete.
    pub fn lines(&self, relative: &str) -> Vec<String> {
        let text = self.read(relative);
        let end = text.rfind('\n').map_or(0, |at| at + 1);
        text[..end].lines().map(str::to_owned).collect()
    }

    /// Waits until a file has a complete line that contains `words`, and returns it.
    #[track_caller]
    pub fn line(&self, relative: &str, words: &str) -> String {
        until(&format!("a line with {words:?} in {relative}"), || {
            self.lines(relative).into_iter().find(|line| line.contains(words))
        })
    }

    /// Writes scalable.yaml: version and project are put before `body`, `PROBE` is the test program and `HERE` the sandbox.
    pub fn manifest(&self, body: &str) {
        let body = body.replace("PROBE", &probe().display().to_string()).replace("HERE", &self.path.display().to_string());
        self.write("scalable.yaml", format!("version: 1\nproject: {{ name: e2e }}\n{body}"));
    }

    /// A command with the sandbox's directory and environment. Of the environment around the tests only what programs need in
    /// order to start is passed on.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.path).env_clear();
        for name in ["PATH", "TMPDIR", "LANG"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.env("HOME", &self.path).env(MARKER, &self.path).env("RUST_BACKTRACE", "1").env("NO_COLOR", "1");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts one of the project's programs.
    pub fn start(&self, program: &str, arguments: &[&str]) -> Running {
        let mut command = self.command(&binary(program));
        command.args(arguments);
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        Running::start(command, &self.path, &format!("{number:02}-{program}"))
    }

    /// Runs the command line to its end.
    #[track_caller]
    pub fn scalable(&self, arguments: &[&str]) -> Finished {
        self.start("scalable", arguments).wait().calm()
    }

    /// Directories of all runs, oldest first.
    pub fn runs(&self) -> Vec<Run> {
        let Ok(entries) = std::fs::read_dir(self.path(".scalable/runs")) else { return Vec::new() };
        let mut runs: Vec<(std::time::SystemTime, PathBuf)> = entries
            .flatten()
            .filter(|entry| entry.path().join("run.json").is_file())
            .map(|entry| (entry.metadata().unwrap().created().unwrap(), entry.path()))
            .collect();
        runs.sort();
        runs.into_iter().map(|(_, directory)| Run { directory }).collect()
    }

    /// The newest run. Waits until there is one.
    #[track_caller]
    pub fn last_run(&self) -> Run {
        until("a run's directory", || self.runs().pop())
    }

    /// Everything alive that was started from here, directly or not.
    pub fn processes(&self) -> Vec<ProcessInfo> {
        let mine = format!("{MARKER}={}", self.path.display());
        let here = std::process::id() as i32;
        let entries = std::fs::read_dir("/proc").unwrap();
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
        pids.filter(|pid| *pid != here)
            .filter_map(|pid| {
                let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
                environment.split(|byte| *byte == 0).any(|variable| variable == mine.as_bytes()).then_some(pid)
            })
            .filter_map(process)
            .collect()
    }

    /// Those of [`Sandbox::processes`] that run one program.
    pub fn processes_of(&self, program: &str) -> Vec<ProcessInfo> {
        self.processes().into_iter().filter(|process| process.program == program).collect()
    }

    /// The worker in whose hands process `pid` is.
    #[track_caller]
    pub fn worker_of(&self, pid: i32) -> i32 {
        let mut at = pid;
        while let Some(seen) = process(at) {
            if seen.program == "scalable-worker" {
                return at;
            }
            at = seen.parent;
        }
        panic!("process {pid} is not below a worker")
    }

    /// Waits until nothing that was started from here is alive.
    #[track_caller]
    pub fn nothing_is_left(&self) {
        let mut left = Vec::new();
        let gone = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until("the end of every process of this test", || {
                left = self.processes();
                left.is_empty().then_some(())
            });
        }));
        assert!(gone.is_ok(), "still there: {left:#?}");
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Twice: a process may be born between the look and the kill.
        for _ in 0..2 {
            for process in self.processes() {
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
        }
        if std::thread::panicking()
            && let Some(directory) = self.directory.take()
        {
            eprintln!("the test's directory is kept: {}", directory.keep().display());
        }
    }
}

/// What /proc says about a process, unless it is gone or a zombie.
fn process(pid: i32) -> Option<ProcessInfo> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the program's name, which may contain anything: state, parent.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let (state, parent) = (fields.next()?, fields.next()?.parse().ok()?);
    if state == "Z" || state == "X" {
        return None;
    }
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(ProcessInfo {
        pid,
        parent,
        program: program.file_name()?.to_string_lossy().trim_end_matches(" (deleted)").to_owned(),
        arguments: String::from_utf8_lossy(&arguments).replace('\0', " "),
    })
}

/// A program of the project: from `SCALABLE_BIN_DIR`, else of the build that this test belongs to.
#[track_caller]
pub fn binary(name: &str) -> PathBuf {
    let directory = std::env::var_os("SCALABLE_BIN_DIR").map(PathBuf::from).unwrap_or_else(build_directory);
    let path = directory.join(name);
    assert!(path.is_file(), "{} is not there: build it with `cargo build --workspace --bins`", path.display());
    path
}

/// An example of the Rust library, of the build that this test belongs to.
#[track_caller]
pub fn example(name: &str) -> PathBuf {
    let path = build_directory().join("examples").join(name);
    assert!(path.is_file(), "{} is not there: build it with `cargo build --workspace --examples`", path.display());
    path
}

/// The program that plays the tasks.
#[track_caller]
fn probe() -> PathBuf {
    let path = build_directory().join("probe");
    assert!(path.is_file(), "{} is not there: build it with `cargo build -p tests --bins`", path.display());
    path
}

/// `target/debug` for a test in `target/debug/deps`.
fn build_directory() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().to_owned()
}
