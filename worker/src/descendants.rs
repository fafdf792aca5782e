//! What processes are there: a thread's children, a process's session, marker and descendants, read from /proc. All of it is a
//! snapshot that may be old when it is read; callers repeat until nothing is left.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Most processes one walk looks at.
pub const PROCESSES_MAX: usize = 1 << 16;

/// Bytes the kernel gives at most in one reading of a list.
const BUFFER_BYTES: usize = 2048;

/// The children list of one thread, kept open: reading it again is one system call.
#[derive(Debug)]
pub struct Children {
    files: Vec<File>,
    buffer: Vec<u8>,
}

impl Children {
    /// Children of the calling thread. When that thread leads the process these include every process that was orphaned below
    /// (the agent is a subreaper and adoption goes to the leader); otherwise the leader's are read too.
    ///
    /// # Errors
    /// /proc is not mounted, or the kernel was built without the list.
    pub fn open() -> std::io::Result<Self> {
        let leader = std::process::id();
        let me = nix::unistd::gettid().as_raw() as u32;
        let mut files = vec![File::open(format!("/proc/{leader}/task/{me}/children"))?];
        if me != leader {
            files.push(File::open(format!("/proc/{leader}/task/{leader}/children"))?);
        }
        Ok(Children { files, buffer: Vec::new() })
    }

    /// Children of the thread that leads the process, from whichever thread.
    ///
    /// # Errors
    /// As [`Children::open`].
    pub fn of_leader() -> std::io::Result<Self> {
        let leader = std::process::id();
        Ok(Children { files: vec![File::open(format!("/proc/{leader}/task/{leader}/children"))?], buffer: Vec::new() })
    }

    /// The children that exist now. One that ends while the list is read may hide another one, until the next reading.
    pub fn read(&mut self, out: &mut Vec<i32>) {
        out.clear();
        for file in &self.files {
            let mut filled = 0;
            loop {
                if filled == self.buffer.len() {
                    self.buffer.resize(filled.max(BUFFER_BYTES) * 2, 0);
                }
                match file.read_at(&mut self.buffer[filled..], filled as u64) {
                    Ok(0) | Err(_) => break,
                    Ok(count) => filled += count,
                }
                // The kernel fills what it is given up to a page: less is the end.
                if filled < BUFFER_BYTES {
                    break;
                }
            }
            numbers(&self.buffer[..filled], out);
        }
    }
}

fn numbers(text: &[u8], out: &mut Vec<i32>) {
    let words = text.split(|b| *b == b' ').filter_map(|word| std::str::from_utf8(word).ok()?.trim().parse::<i32>().ok());
    out.extend(words.take(PROCESSES_MAX));
}

/// The session a process is in and whether it is a zombie; nothing when it is gone.
pub fn session_of(pid: i32) -> Option<(i32, bool)> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, also parentheses and spaces: fields are counted from the last one.
    let after = stat.iter().rposition(|b| *b == b')')? + 2;
    let text = std::str::from_utf8(stat.get(after..)?).ok()?;
    let mut fields = text.split(' ');
    let state = fields.next()?;
    let session = fields.nth(2)?.parse().ok()?;
    Some((session, matches!(state, "Z" | "X")))
}

/// True when the environment a process was started with holds `marker` (`NAME=value`). An empty one marks nobody.
pub fn has_marker(pid: i32, marker: &[u8]) -> bool {
    if marker.is_empty() {
        return false;
    }
    let Ok(environment) = std::fs::read(format!("/proc/{pid}/environ")) else { return false };
    environment.split(|b| *b == 0).any(|entry| entry == marker)
}

/// `pid` and everything below it, parents first.
pub fn tree(pid: i32) -> Vec<i32> {
    let mut found = vec![pid];
    let mut at = 0;
    while at < found.len() && found.len() < PROCESSES_MAX {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", found[at])) else {
            at += 1;
            continue;
        };
        for thread in threads.flatten() {
            if let Ok(text) = std::fs::read(thread.path().join("children")) {
                numbers(&text, &mut found);
            }
        }
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    #[test]
    fn a_child_is_listed_with_its_session_and_marker() {
        let mut child = Command::new("cat")
            .env("MARKER_OF_THIS_TEST", "7")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cat can be started");
        let pid = child.id() as i32;
        // The environment is the new one once the program runs: it does when it answers on its pipe.
        child.stdin.as_mut().expect("a pipe").write_all(b"x").expect("cat reads");
        child.stdout.as_mut().expect("a pipe").read_exact(&mut [0]).expect("cat answers");
        let mut children = Children::open().expect("the kernel lists children");
        let mut found = Vec::new();
        children.read(&mut found);
        assert!(found.contains(&pid), "{found:?}");
        let own = session_of(std::process::id() as i32).expect("we exist").0;
        assert_eq!(session_of(pid), Some((own, false)));
        assert!(has_marker(pid, b"MARKER_OF_THIS_TEST=7"));
        assert!(!has_marker(pid, b"MARKER_OF_THIS_TEST=8"));
        assert!(!has_marker(pid, b""), "the end of an environment is no marker");
        assert!(tree(std::process::id() as i32).contains(&pid));
        drop(child.stdin.take());
        child.wait().expect("it ends when its input does");
        assert_eq!(session_of(pid), None);
    }
}
