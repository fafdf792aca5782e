//! The key that rights to fetch objects are made with: known to the scheduler and its workers, never to tasks or clients.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use scalable_proto::v1;

/// How long a right to fetch is good for.
const GOOD_FOR: Duration = Duration::from_secs(3600);

/// See the module. Shows nothing when it is printed.
#[derive(Clone)]
pub struct ObjectKey([u8; 32]);

impl std::fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ObjectKey(..)")
    }
}

impl ObjectKey {
    /// A new one.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        Ok(ObjectKey(key))
    }

    /// As workers are told it.
    pub fn to_wire(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }

    /// The right to fetch one object for an hour, as the comment at `Capability` in the wire's files says.
    pub fn capability(&self, run: u32, group: u32, index: u32, attempt: u32) -> v1::Capability {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let expires_ms = u64::try_from((now + GOOD_FOR).as_millis()).unwrap_or(u64::MAX);
        let mut mac = blake3::Hasher::new_keyed(&self.0);
        mac.update(b"scalable object v1");
        for number in [run, group, index, attempt] {
            mac.update(&number.to_le_bytes());
        }
        mac.update(&expires_ms.to_le_bytes());
        v1::Capability { run, expires_ms, mac: Bytes::copy_from_slice(mac.finalize().as_bytes()) }
    }
}
