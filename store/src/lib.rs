//! Objects of one process: kept in memory, spilled to disk, served to peers, fetched from peers. There is no scheduling in here.
mod blobs;
mod capability;
mod content;
mod fetch;
mod id;
mod ledger;
mod segment;
mod server;
mod spill;
mod store;
mod sys;
mod transport;
mod wire;

pub use blobs::{BlobDirectory, BlobError, BlobWriter};
pub use capability::{Capability, Denied, ObjectKey, now_ms};
pub use content::{CHUNK_BYTES, Content, checksum};
pub use fetch::{
    Fetch, FetchError, FetchMetrics, FetchRequest, Fetcher, FetcherOptions, Holder, PeerSpeed, SourceError, Upload, UploadRequest,
};
pub use id::{Digest, Key, ObjectId};
pub use segment::{Released, Segment, SegmentPool, SegmentWriter};
pub use server::{PeerServer, ServerMetrics, ServerOptions};
pub use store::{InsertError, Keep, Load, LoadError, Lookup, PAUSE_FRACTION, Pinned, Pressure, Store, StoreOptions, Usage};
pub use sys::raise_open_files_limit;
pub use wire::Code;
