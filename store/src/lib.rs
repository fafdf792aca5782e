//! Objects of one process: kept in memory, spilled to disk, served to peers, fetched from peers. There is no scheduling in here.
//!
//! | part | what it does |
//! |---|---|
//! | [`Content`] | read-only bytes on the heap, in shared memory or in a file, handed on without a copy |
//! | [`SegmentPool`] | shared memory that is used again, because new memory costs more than moving the bytes |
//! | [`Store`] | objects by [`Key`], the least recently used spilled, pinned while in use, accounted for |
//! | [`PeerServer`] | hands them out to whoever shows a [`Capability`], takes uploads into a [`BlobDirectory`] |
//! | [`Fetcher`] | brings objects from their holders, each once, and contents to those who take uploads |
//! | [`Peers`] | where the holders answer |
//! | [`FileIndex`] | files that are served from where they lie |
//! | [`Tree`] | a directory as a manifest and the contents of its files |
//!
//! Whatever blocks runs on threads of its own; futures resolve on any runtime. The protocol is in `docs/peer-protocol.md`. An example with all
//! parts is at [`Fetcher`].

mod blobs;
mod capability;
mod content;
mod fetch;
mod fetch_tree;
mod files;
mod id;
mod ledger;
mod peers;
mod segment;
mod server;
mod spill;
mod store;
mod sys;
mod transport;
mod tree;
mod wire;

pub use blobs::{BlobDirectory, BlobError, BlobWriter};
pub use capability::{Capability, Denied, GRANT_MS, ObjectKey, now_ms};
pub use content::{CHUNK_BYTES, Content, checksum};
pub use fetch::{
    Fetch, FetchError, FetchMetrics, FetchRequest, Fetcher, FetcherOptions, FileError, FileFetch, FileRequest, Holder, PeerSpeed,
    SourceError, Upload, UploadRequest,
};
pub use fetch_tree::{TreeRequest, fetch_tree};
pub use files::FileIndex;
pub use id::{Digest, Key, ObjectId};
pub use peers::Peers;
pub use segment::{Released, Segment, SegmentPool, SegmentWriter};
pub use server::{PeerServer, ServerMetrics, ServerOptions};
pub use store::{InsertError, Keep, Load, LoadError, Lookup, PAUSE_FRACTION, Pinned, Pressure, Store, StoreOptions, Usage};
pub use sys::raise_open_files_limit;
pub use tree::{TREE_DEPTH_MAX, TREE_ENTRIES_MAX, TREE_PATH_MAX, Tree, TreeError, TreeNode};
pub use wire::Code;
