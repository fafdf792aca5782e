//! The scheduler's store: programs of clients, which workers ask it for by their digest. A peer like a worker's, on threads and an
//! address of its own: no byte of them passes 8786 or the reactor.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustc_hash::FxHashMap;
use scalable_proto::v1;
use scalable_store::{
    BlobDirectory, Content, Digest, FileIndex, GRANT_MS, Keep, ObjectKey, PeerServer, Pinned, ServerOptions, Store, StoreOptions,
    now_ms,
};

/// Largest content that is taken.
pub const CONTENT_BYTES_MAX: u64 = 256 << 20;
/// All contents that were uploaded together.
const UPLOADS_BYTES_MAX: u64 = 8 << 30;
/// Contents known at once; at the bound all are forgotten, and offered again by whoever needs them.
const OFFERED_MAX: usize = 4096;
/// What is served lies in files: the store's own memory holds next to nothing.
const MEMORY_BYTES_MAX: u64 = 64 << 20;

/// Where the store answers peers.
#[derive(Clone, Debug)]
pub struct StoreAt {
    /// Where it listens; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Where peers reach it, when that is somewhere else.
    pub advertise: Option<String>,
    /// Over TLS.
    pub tls: Option<Arc<rustls::ServerConfig>>,
}

/// See the module.
pub struct ContentStore {
    store: Store,
    _server: PeerServer,
    advertised: String,
    uploads: BlobDirectory,
    key: ObjectKey,
    index: FileIndex,
    /// Files of clients on this machine that are served as they lie.
    files: Mutex<FxHashMap<Digest, Pinned>>,
}

impl ContentStore {
    /// Starts to serve there, with files in `directory`.
    ///
    /// # Errors
    /// When the directory cannot be made or the address is taken.
    pub fn start(directory: &Path, at: StoreAt, key: ObjectKey) -> io::Result<Self> {
        let store = Store::open(StoreOptions::new(directory.join("spill"), MEMORY_BYTES_MAX))?;
        let uploads = BlobDirectory::open(directory.join("contents"), UPLOADS_BYTES_MAX)?;
        let mut options = ServerOptions::new(at.listen);
        options.tls = at.tls;
        options.uploads = Some(uploads.clone());
        options.upload_bytes_max = CONTENT_BYTES_MAX;
        let index = FileIndex::new();
        options.files = Some(index.clone());
        let server = PeerServer::start(options, store.clone())?;
        server.set_key(key.clone());
        let advertised = at.advertise.unwrap_or_else(|| server.address().to_string());
        Ok(ContentStore { store, _server: server, advertised, uploads, key, index, files: Mutex::default() })
    }

    /// Files that are served from where they lie.
    pub fn index(&self) -> &FileIndex {
        &self.index
    }

    /// Where peers reach it.
    pub fn address(&self) -> &str {
        &self.advertised
    }

    /// A client is about to name a content. Blocks: reads the file that is offered, where this process sees it.
    ///
    /// # Errors
    /// What is wrong with the offer, in one sentence.
    pub fn offered(&self, offer: &v1::OfferRequest) -> Result<v1::OfferReply, String> {
        let digest = Digest::from_slice(&offer.digest).ok_or("a digest has 32 bytes")?;
        if offer.size > CONTENT_BYTES_MAX {
            return Err(format!("it has {} bytes; at most {CONTENT_BYTES_MAX} are taken", offer.size));
        }
        let known = self.uploads.get(digest).map_err(|error| format!("the store cannot be read: {error}"))?.is_some();
        if known || self.serves(digest) || self.takes_over(digest, offer) {
            return Ok(v1::OfferReply::default());
        }
        let expires_ms = now_ms() + GRANT_MS;
        let right = self.key.grant_upload(digest, offer.size, expires_ms);
        let mac = right.mac.to_vec().into();
        let capability = Some(v1::Capability { run: 0, expires_ms, mac });
        Ok(v1::OfferReply { needed: true, address: self.address().to_string(), capability })
    }

    fn serves(&self, digest: Digest) -> bool {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&digest)
    }

    /// Serves the client's own file, where this process sees it and it has the content.
    fn takes_over(&self, digest: Digest, offer: &v1::OfferRequest) -> bool {
        let take = || -> io::Result<Option<Pinned>> {
            let path = Path::new(&offer.path);
            let meta = std::fs::metadata(path)?;
            if !path.is_absolute() || !meta.is_file() || meta.size() != offer.size {
                return Ok(None);
            }
            let mut file = File::open(path)?;
            let mut hasher = blake3::Hasher::new();
            io::copy(&mut file, &mut hasher)?;
            if *hasher.finalize().as_bytes() != digest.0 {
                return Ok(None);
            }
            let content = Content::from_file(file, offer.size)?;
            self.store.insert(digest, content, Keep::Origin).map(Some).map_err(io::Error::other)
        };
        let Ok(Some(pinned)) = take() else { return false };
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if files.len() >= OFFERED_MAX {
            for (digest, _) in files.drain() {
                self.store.drop_object(digest);
            }
        }
        files.insert(digest, pinned);
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn store(directory: &Path) -> ContentStore {
        let at = StoreAt { listen: "127.0.0.1:0".parse().unwrap(), advertise: None, tls: None };
        ContentStore::start(directory, at, ObjectKey::random().unwrap()).unwrap()
    }

    #[test]
    fn a_file_that_is_seen_need_not_be_uploaded_and_another_must() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory.path().join("store"));
        let path = directory.path().join("program");
        std::fs::write(&path, "a program").unwrap();
        let offer = |content: &str| v1::OfferRequest {
            digest: Digest::of(content.as_bytes()).0.to_vec().into(),
            size: content.len() as u64,
            path: path.display().to_string(),
        };
        assert!(!store.offered(&offer("a program")).unwrap().needed);
        // The same size, another content: whoever asked for it by its digest would be given something else.
        let other = store.offered(&offer("b program")).unwrap();
        assert!(other.needed && other.capability.is_some() && !other.address.is_empty());
        std::fs::remove_file(&path).unwrap();
        assert!(!store.offered(&offer("a program")).unwrap().needed, "it is served from the open file");
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let offer = v1::OfferRequest { digest: vec![1; 32].into(), size: CONTENT_BYTES_MAX + 1, ..Default::default() };
        assert!(store.offered(&offer).unwrap_err().contains("at most"));
    }
}
