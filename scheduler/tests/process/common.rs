//! A real scheduler process for a test.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// The token it is started with.
pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A scheduler process that ends with the test.
pub struct Scheduler {
    process: Child,
    /// Where it listens.
    pub address: String,
    /// Its line on standard output.
    pub ready: serde_json::Value,
    /// Its files.
    pub directory: tempfile::TempDir,
}

impl Scheduler {
    /// Starts one that never gives a worker up after a reset, and waits until it is ready.
    pub fn start() -> Scheduler {
        use std::os::unix::fs::OpenOptionsExt;
        let directory = tempfile::tempdir().unwrap();
        let token_file = directory.path().join("token");
        let mut file = std::fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(&token_file).unwrap();
        std::io::Write::write_all(&mut file, TOKEN.as_bytes()).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_scalable-scheduler"))
            .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--lifeline"])
            .arg("--token-file")
            .arg(&token_file)
            .arg("--state-dir")
            .arg(directory.path())
            .env("SCALABLE_LOST_AFTER_RESET_MS", "600000")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = ready["address"].as_str().unwrap().to_owned();
        Scheduler { process, address, ready, directory }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
