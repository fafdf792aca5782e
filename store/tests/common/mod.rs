//! A peer with all it needs, and ways to fetch from it.
#![allow(dead_code, clippy::unwrap_used)]

use std::time::Duration;

use scalable_store::*;

pub struct World {
    pub root: tempfile::TempDir,
    pub cluster: ObjectKey,
}

pub struct Peer {
    pub store: Store,
    pub server: PeerServer,
}

impl World {
    pub fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap(), cluster: ObjectKey::random().unwrap() }
    }

    pub fn store(&self, name: &str, memory: u64) -> Store {
        Store::open(StoreOptions::new(self.root.path().join(name), memory)).unwrap()
    }

    pub fn peer(&self, name: &str) -> Peer {
        self.peer_with(name, |_| ())
    }

    pub fn peer_with(&self, name: &str, change: impl FnOnce(&mut ServerOptions)) -> Peer {
        let store = self.store(name, 256 << 20);
        let mut options = ServerOptions::new(([127, 0, 0, 1], 0).into());
        change(&mut options);
        let server = PeerServer::start(options, store.clone()).unwrap();
        server.set_key(self.cluster.clone());
        Peer { store, server }
    }

    pub fn request(&self, key: impl Into<Key>, size: u64, holders: &[Holder]) -> FetchRequest {
        let key = key.into();
        let capability = self.cluster.grant(key, now_ms() + 600_000);
        FetchRequest { key, size, holders: holders.to_vec(), capability }
    }
}

impl Peer {
    pub fn holder(&self) -> Holder {
        holder(self.server.address())
    }

    pub fn put(&self, index: u32, bytes: &[u8]) -> ObjectId {
        let content = Content::from_bytes(bytes.to_vec().into());
        let content = if bytes.len() > 64 << 10 { content.to_shared(self.store.pool()).unwrap() } else { content };
        drop(self.store.insert(id(index), content, Keep::Origin).unwrap());
        id(index)
    }
}

pub fn holder(address: std::net::SocketAddr) -> Holder {
    Holder { address: address.to_string(), host: String::new() }
}

pub fn id(index: u32) -> ObjectId {
    ObjectId { run: 1, group: 2, index, attempt: 1 }
}

/// Bytes that differ from place to place and from seed to seed.
pub fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.to_le_bytes());
    }
    out.truncate(len);
    out
}

pub fn fetcher(change: impl FnOnce(&mut FetcherOptions)) -> Fetcher {
    let mut options = FetcherOptions::new(SegmentPool::new(64 << 20));
    change(&mut options);
    Fetcher::start(options).unwrap()
}

/// Without the short cut: bytes over TCP.
pub fn tcp_fetcher() -> Fetcher {
    fetcher(|options| options.short_cut = false)
}

/// Until `reached` is true; fails after a minute.
pub fn eventually(what: &str, mut reached: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !reached() {
        assert!(begun.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
