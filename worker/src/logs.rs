//! Output streams: the last bytes of each for the report, all bytes in a file. One thread writes the files, in order; a file
//! begins with its first byte. How much may wait to be written is bounded by the lane, which leaves a pipe alone meanwhile.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use crossbeam::channel::{Sender, unbounded};
use rustc_hash::FxHashMap;

use crate::lane::Which;

/// Bytes of a stream that a failure's report carries.
pub const TAIL_BYTES_MAX: usize = 16 << 10;
/// Bytes of a stream that a success's report carries.
pub const TAIL_BYTES_SUCCESS: usize = 4 << 10;
/// Most files the writer keeps open; beyond it one is closed and opened again for its next bytes.
const FILES_OPEN_MAX: usize = 256;

/// The end of a stream and how long it was.
#[derive(Debug, Default)]
pub struct Tail {
    bytes: VecDeque<u8>,
    /// All bytes that came.
    pub total: u64,
}

impl Tail {
    /// Takes more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let keep = &bytes[bytes.len().saturating_sub(TAIL_BYTES_MAX)..];
        let drop = (self.bytes.len() + keep.len()).saturating_sub(TAIL_BYTES_MAX);
        self.bytes.drain(..drop.min(self.bytes.len()));
        self.bytes.extend(keep);
    }

    /// The last `most` bytes, from the beginning of a UTF-8 character on where there is one near.
    pub fn last(&self, most: usize) -> Vec<u8> {
        let mut skip = self.bytes.len().saturating_sub(most);
        if skip > 0 || self.total > self.bytes.len() as u64 {
            let continuation = |at: usize| self.bytes.get(at).is_some_and(|b| b & 0xC0 == 0x80);
            for _ in 0..3 {
                if continuation(skip) {
                    skip += 1;
                }
            }
        }
        self.bytes.iter().skip(skip).copied().collect()
    }
}

/// Bytes that are in their file now, or were dropped because it could not be written.
#[derive(Debug)]
pub struct Written {
    /// Whose.
    pub serial: u64,
    /// Which stream.
    pub which: Which,
    /// How many.
    pub bytes: usize,
}

enum Order {
    Write { serial: u64, which: Which, path: PathBuf, bytes: Vec<u8> },
    Close { serial: u64 },
}

/// The thread that writes; it ends when this is dropped.
#[derive(Debug)]
pub struct Writer {
    orders: Sender<Order>,
}

impl Writer {
    /// Starts it. `done` is called on its thread.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(done: impl Fn(Written) + Send + 'static) -> io::Result<Self> {
        let (orders, queue) = unbounded();
        std::thread::Builder::new().name("logs".to_owned()).spawn(move || {
            let mut files: FxHashMap<(u64, bool), File> = FxHashMap::default();
            for order in queue {
                match order {
                    Order::Write { serial, which, path, bytes } => {
                        let key = (serial, which == Which::Stdout);
                        if let Err(error) = write(&mut files, key, &path, &bytes) {
                            tracing::warn!(file = %path.display(), %error, "output of a task could not be written");
                        }
                        done(Written { serial, which, bytes: bytes.len() });
                    }
                    Order::Close { serial } => {
                        files.remove(&(serial, true));
                        files.remove(&(serial, false));
                    }
                }
            }
        })?;
        Ok(Writer { orders })
    }

    /// Appends bytes to the file at `path`.
    pub fn write(&self, serial: u64, which: Which, path: PathBuf, bytes: Vec<u8>) {
        // The thread lives as long as this does.
        let _ = self.orders.send(Order::Write { serial, which, path, bytes });
    }

    /// Nothing more comes for this attempt.
    pub fn close(&self, serial: u64) {
        let _ = self.orders.send(Order::Close { serial });
    }
}

fn write(files: &mut FxHashMap<(u64, bool), File>, key: (u64, bool), path: &PathBuf, bytes: &[u8]) -> io::Result<()> {
    if let Some(file) = files.get_mut(&key) {
        return file.write_all(bytes);
    }
    if files.len() >= FILES_OPEN_MAX
        && let Some(&other) = files.keys().next()
    {
        files.remove(&other);
    }
    let open = || File::options().append(true).create(true).open(path);
    let mut file = match (open(), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(parent)?;
            open()?
        }
        (opened, _) => opened?,
    };
    file.write_all(bytes)?;
    files.insert(key, file);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_the_end_and_counts_everything() {
        let mut tail = Tail::default();
        tail.push(b"abc");
        tail.push(b"def");
        assert_eq!(tail.last(4), b"cdef");
        tail.push(&vec![b'x'; TAIL_BYTES_MAX + 5]);
        tail.push(b"end");
        assert_eq!(tail.total, 6 + TAIL_BYTES_MAX as u64 + 5 + 3);
        let last = tail.last(TAIL_BYTES_MAX);
        assert_eq!((last.len(), &last[last.len() - 4..]), (TAIL_BYTES_MAX, &b"xend"[..]));
    }

    #[test]
    fn a_tail_does_not_begin_inside_a_character() {
        let mut tail = Tail::default();
        tail.push("aü🌍z".as_bytes());
        for (most, expected) in [(1, "z"), (2, "z"), (4, "z"), (5, "🌍z"), (6, "🌍z"), (7, "ü🌍z"), (100, "aü🌍z")] {
            assert_eq!(String::from_utf8(tail.last(most)).expect("whole characters"), expected, "{most}");
        }
    }

    #[test]
    fn files_begin_with_their_first_byte_and_keep_order() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (sender, written) = unbounded();
        let writer = Writer::start(move |w| drop(sender.send(w))).expect("a thread");
        let path = dir.path().join("logs/a group/0.1.stdout");
        for n in 0..300u64 {
            writer.write(n % 290, Which::Stdout, dir.path().join(format!("logs/{}", n % 290)), b"x".to_vec());
        }
        writer.write(1, Which::Stderr, path.clone(), b"one ".to_vec());
        writer.write(1, Which::Stderr, path.clone(), b"two".to_vec());
        writer.close(1);
        for _ in 0..302 {
            written.recv().expect("each is answered");
        }
        assert_eq!(fs::read(&path).expect("there"), b"one two");
        assert_eq!(fs::read(dir.path().join("logs/3")).expect("there"), b"xx", "also when it was closed in between");
    }
}
