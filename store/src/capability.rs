//! Who may fetch or upload what, until when. The scheduler makes capabilities with the cluster's object key, workers check them
//! with the same key; between them travel only MACs.
//!
//! | right | BLAKE3, keyed with the object key, over |
//! |---|---|
//! | fetch a result | `"scalable object v1"`, run, group, index, attempt (u32), expiry (u64) |
//! | fetch a content | `"scalable blob v1"`, digest (32 bytes), expiry (u64) |
//! | upload a content | `"scalable upload v1"`, digest (32 bytes), size (u64), expiry (u64) |
//!
//! Integers are little endian. Expiry is in milliseconds since the Unix epoch. The three texts differ, and each is followed by
//! a fixed number of bytes, so that no right can be shown as another.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Digest, Key};

/// How long rights are given for: whoever has not used one by then asks again.
pub const GRANT_MS: u64 = 3_600_000;

/// The right to one act, as shown to a peer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// When the right ends: milliseconds since the Unix epoch.
    pub expires_ms: u64,
    /// The MAC.
    pub mac: [u8; 32],
}

impl Capability {
    /// The capability in a message; `None` unless `mac` has exactly 32 bytes.
    pub fn from_parts(expires_ms: u64, mac: &[u8]) -> Option<Self> {
        Some(Self { expires_ms, mac: mac.try_into().ok()? })
    }
}

impl fmt::Debug for Capability {
    /// Never shows the MAC: it is a credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capability(until {} ms)", self.expires_ms)
    }
}

/// Why a capability was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It was not made with this key for this act.
    #[error("the capability is not one for this object")]
    Wrong,
    /// It was right once.
    #[error("the capability has expired")]
    Expired,
}

/// The cluster's object key. Its bytes are never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct ObjectKey([u8; 32]);

impl ObjectKey {
    /// The key in `bytes`, as a scheduler's welcome carries it; `None` unless there are exactly 32.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// A new random key.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn random() -> std::io::Result<Self> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(std::io::Error::other)?;
        Ok(Self(key))
    }

    /// The key's bytes, to be sent to a worker over an authenticated stream and nowhere else.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The right to fetch `key` until `expires_ms`.
    pub fn grant(&self, key: Key, expires_ms: u64) -> Capability {
        Capability { expires_ms, mac: *self.fetch_mac(key, expires_ms).as_bytes() }
    }

    /// The right to upload the `size` bytes whose digest is `digest` until `expires_ms`.
    pub fn grant_upload(&self, digest: Digest, size: u64, expires_ms: u64) -> Capability {
        Capability { expires_ms, mac: *self.upload_mac(digest, size, expires_ms).as_bytes() }
    }

    /// Whether `shown` lets its bearer fetch `key` at `now_ms`.
    ///
    /// # Errors
    /// [`Denied::Wrong`] before [`Denied::Expired`]: a forger does not learn what would have been right once.
    pub fn check(&self, key: Key, shown: &Capability, now_ms: u64) -> Result<(), Denied> {
        decide(self.fetch_mac(key, shown.expires_ms), shown, now_ms)
    }

    /// Whether `shown` lets its bearer upload the content at `now_ms`.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_upload(&self, digest: Digest, size: u64, shown: &Capability, now_ms: u64) -> Result<(), Denied> {
        decide(self.upload_mac(digest, size, shown.expires_ms), shown, now_ms)
    }

    fn fetch_mac(&self, key: Key, expires_ms: u64) -> blake3::Hash {
        let mut mac = blake3::Hasher::new_keyed(&self.0);
        match key {
            Key::Object(id) => {
                mac.update(b"scalable object v1");
                for part in [id.run, id.group, id.index, id.attempt] {
                    mac.update(&part.to_le_bytes());
                }
            }
            Key::Blob(digest) => {
                mac.update(b"scalable blob v1");
                mac.update(&digest.0);
            }
        }
        mac.update(&expires_ms.to_le_bytes());
        mac.finalize()
    }

    fn upload_mac(&self, digest: Digest, size: u64, expires_ms: u64) -> blake3::Hash {
        let mut mac = blake3::Hasher::new_keyed(&self.0);
        mac.update(b"scalable upload v1");
        mac.update(&digest.0);
        mac.update(&size.to_le_bytes());
        mac.update(&expires_ms.to_le_bytes());
        mac.finalize()
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ObjectKey(..)")
    }
}

/// `blake3::Hash` compares in constant time.
fn decide(right: blake3::Hash, shown: &Capability, now_ms: u64) -> Result<(), Denied> {
    if right != blake3::Hash::from_bytes(shown.mac) {
        Err(Denied::Wrong)
    } else if now_ms >= shown.expires_ms {
        Err(Denied::Expired)
    } else {
        Ok(())
    }
}

/// Milliseconds since the Unix epoch on this machine's clock; 0 when the clock stands before it.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ObjectId;

    const ID: ObjectId = ObjectId { run: 1, group: 2, index: 3, attempt: 4 };

    fn key() -> ObjectKey {
        ObjectKey([7; 32])
    }

    /// The bytes under the MAC are a contract with the scheduler: written out once more, by hand.
    #[test]
    fn an_objects_mac_is_over_what_the_protocol_says() {
        let mut bytes = b"scalable object v1".to_vec();
        for part in [1u32, 2, 3, 4] {
            bytes.extend(part.to_le_bytes());
        }
        bytes.extend(99u64.to_le_bytes());
        assert_eq!(key().grant(ID.into(), 99).mac, *blake3::keyed_hash(&[7; 32], &bytes).as_bytes());
    }

    #[test]
    fn a_right_is_for_one_act_until_its_end() {
        let digest = Digest::of(b"x");
        let fetch = key().grant(ID.into(), 100);
        assert_eq!(key().check(ID.into(), &fetch, 99), Ok(()));
        assert_eq!(key().check(ID.into(), &fetch, 100), Err(Denied::Expired));
        assert_eq!(key().check(ObjectId { attempt: 5, ..ID }.into(), &fetch, 99), Err(Denied::Wrong));
        assert_eq!(ObjectKey([8; 32]).check(ID.into(), &fetch, 99), Err(Denied::Wrong));
        assert_eq!(key().check(ID.into(), &Capability { expires_ms: 200, ..fetch }, 99), Err(Denied::Wrong));
        let blob = key().grant(digest.into(), 100);
        assert_eq!(key().check(digest.into(), &blob, 1), Ok(()));
        assert_eq!(key().check_upload(digest, 1, &blob, 1), Err(Denied::Wrong));
        let upload = key().grant_upload(digest, 1, 100);
        assert_eq!(key().check_upload(digest, 1, &upload, 1), Ok(()));
        assert_eq!(key().check_upload(digest, 2, &upload, 1), Err(Denied::Wrong));
        assert_eq!(key().check(digest.into(), &upload, 1), Err(Denied::Wrong));
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(format!("{:?}", key()), "ObjectKey(..)");
        assert!(!format!("{:?}", key().grant(ID.into(), 5)).contains('['));
    }
}
