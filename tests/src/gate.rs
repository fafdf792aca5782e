//! Something that tasks on other machines wait for: an address that refuses until the test opens it, and remembers who asked.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Answers HTTP requests: paths that are open with 200, all others with 503. Ends with the process.
#[derive(Debug)]
pub struct Gate {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    open: BTreeSet<String>,
    asked: BTreeMap<String, u32>,
}

impl Gate {
    /// A gate that other machines of the test's network reach too.
    #[allow(clippy::new_without_default, reason = "opens a port: nothing one wants by default")]
    pub fn new() -> Gate {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || answer(stream, &shared));
            }
        });
        Gate { address, state }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Lets through who asks for this path from now on.
    pub fn open(&self, path: &str) {
        self.state.lock().unwrap().open.insert(path.to_owned());
    }

    /// The distinct paths asked for so far that begin with `prefix`, without it.
    pub fn asked(&self, prefix: &str) -> BTreeSet<String> {
        let state = self.state.lock().unwrap();
        state.asked.keys().filter_map(|path| path.strip_prefix(prefix)).map(str::to_owned).collect()
    }

    /// How often that path of those which begin with `prefix` was asked for that was asked for most.
    pub fn most_asked(&self, prefix: &str) -> u32 {
        let state = self.state.lock().unwrap();
        state.asked.iter().filter(|(path, _)| path.starts_with(prefix)).map(|(_, times)| *times).max().unwrap_or(0)
    }
}

fn answer(stream: TcpStream, state: &Mutex<State>) {
    // A peer that says nothing, or is on a node that died, holds its thread no longer than this.
    let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
    let mut line = String::new();
    let mut reader = BufReader::new(&stream);
    if reader.read_line(&mut line).is_err() {
        return;
    }
    // The rest of the request, so that closing the connection resets nothing.
    let mut header = String::new();
    while reader.read_line(&mut header).is_ok_and(|read| read > 2) {
        header.clear();
    }
    let path = line.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
    let open = {
        let mut state = state.lock().unwrap();
        let open = state.open.contains(&path);
        *state.asked.entry(path).or_default() += 1;
        open
    };
    let status = if open { "200 OK" } else { "503 Closed" };
    let _ = (&stream).write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").as_bytes());
}
