//! Where comes from what is not here: other workers, and the scheduler's store. The reactor hears of them, helpers ask.

use std::sync::{Arc, PoisonError, RwLock};

use scalable_store::{ObjectKey, Peers};

/// What the scheduler has said of them. Copies share it.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    peers: Peers,
    said: Arc<RwLock<Said>>,
}

#[derive(Debug, Default)]
struct Said {
    key: Option<ObjectKey>,
    store: Option<String>,
}

impl Sources {
    /// The scheduler has said its key and where its store is, if it has any.
    pub fn welcome(&self, key: Option<ObjectKey>, store_address: &str) {
        let store = Some(store_address.to_owned()).filter(|address| !address.is_empty());
        *self.said.write().unwrap_or_else(PoisonError::into_inner) = Said { key, store };
    }

    /// The key with which rights are made.
    pub fn key(&self) -> Option<ObjectKey> {
        self.said.read().unwrap_or_else(PoisonError::into_inner).key.clone()
    }

    /// Where the scheduler's store is, with the key.
    pub fn store(&self) -> Option<(ObjectKey, String)> {
        let said = self.said.read().unwrap_or_else(PoisonError::into_inner);
        said.key.clone().zip(said.store.clone())
    }

    /// The other workers.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }
}
