//! What an attempt that executes has written so far, for whoever looks at it from far away. Read by a helper from the file to which the
//! writer appends it; the reactor waits for no disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use scalable_proto::v1::{self, worker_control};

use super::{Agent, Told};

/// Bytes in one answer.
const CHUNK_BYTES_MAX: usize = 256 << 10;

impl Agent {
    /// Answers with the next bytes of a stream, or that there is nothing to read: calls of functions share their host's streams.
    pub(super) fn read_log(&mut self, asked: v1::ReadLog) {
        let (index, number) = (asked.index, asked.attempt);
        let of_group = |attempt: &&crate::attempt::Attempt| {
            let group = attempt.order.group.as_ref().map(|group| group.number);
            group == Some(asked.group) && attempt.order.index == index && attempt.order.attempt == number
        };
        // An attempt that is on its way to the lane has written nothing and will: that is no end.
        let place = self.attempts.values().find(of_group).and_then(|attempt| attempt.place());
        let Some(place) = place else {
            return self.tell_log(v1::LogChunk { call: asked.call, over: true, ..v1::LogChunk::default() });
        };
        let (path, told) = (place.log(if asked.stderr { "stderr" } else { "stdout" }), self.told.clone());
        self.helpers.run(move || {
            let data = read(&path, asked.offset).unwrap_or_else(|error| {
                tracing::warn!(file = %path.display(), %error, "the log of a task could not be read");
                Vec::new()
            });
            let chunk = v1::LogChunk { call: asked.call, data: data.into(), over: false };
            drop(told.send(Told::Log(chunk)));
        });
    }

    pub(super) fn tell_log(&mut self, chunk: v1::LogChunk) {
        self.link.send_control(worker_control::Body::Log(chunk));
    }
}

/// At most [`CHUNK_BYTES_MAX`] bytes from `offset` on. A file begins with its first byte: none is nothing yet.
fn read(path: &Path, offset: u64) -> io::Result<Vec<u8>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let left = file.metadata()?.len().saturating_sub(offset);
    let mut data = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES_MAX)];
    // Appended to only, so that what was there when its size was asked is there now.
    file.read_exact_at(&mut data, offset)?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read_from_where_its_reader_is() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("0.1.stdout");
        assert_eq!(read(&path, 0).expect("nothing yet"), b"");
        std::fs::write(&path, b"one two").expect("written");
        assert_eq!(read(&path, 0).expect("read"), b"one two");
        assert_eq!(read(&path, 4).expect("read"), b"two");
        assert_eq!(read(&path, 7).expect("read"), b"");
        assert_eq!(read(&path, u64::MAX).expect("read"), b"", "an offset beyond the end is no error");
        std::fs::write(&path, vec![b'x'; CHUNK_BYTES_MAX + 5]).expect("written");
        assert_eq!(read(&path, 0).expect("read").len(), CHUNK_BYTES_MAX);
        assert_eq!(read(&path, CHUNK_BYTES_MAX as u64).expect("read").len(), 5);
    }
}
