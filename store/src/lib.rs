//! Objects of one process: kept in memory, spilled to disk, served to peers, fetched from peers. There is no scheduling in here.
mod capability;
mod content;
mod id;
mod segment;
mod sys;

pub use capability::{Capability, Denied, ObjectKey, now_ms};
pub use content::{CHUNK_BYTES, Content, checksum};
pub use id::{Digest, Key, ObjectId};
pub use segment::{Released, Segment, SegmentPool, SegmentWriter};
pub use sys::raise_open_files_limit;
