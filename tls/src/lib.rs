//! What secures connections between the parts of one cluster: an authority of its own, certificates with roles in them, tokens, and
//! the directories and files they lie in. What a role may do is the scheduler's affair.
//!
//! | part | what it does |
//! |---|---|
//! | [`NewCluster`] | makes everything a fresh cluster needs, in memory |
//! | [`SchedulerCredentials`], [`WorkerCredentials`] | read a directory of credentials |
//! | [`Connection`] | a client's file: address, cluster, authority, token |
//! | [`Authority`] | signs for the scheduler and for workers |
//! | [`Certificate`] | the certificate of this process, which may be exchanged while it is used |
//! | [`Trust`] | rustls configurations that know one cluster and no address |
//! | [`Connector`] | connects gRPC channels over TLS |
//!
//! TLS 1.3 only, one provider of cryptography, no resumption: a certificate that has expired opens nothing.

#[cfg(feature = "authority")]
mod authority;
mod certificate;
mod connection;
mod connector;
#[cfg(feature = "authority")]
mod credentials;
mod files;
#[cfg(feature = "authority")]
mod identity;
mod secret;
mod trust;

#[cfg(feature = "authority")]
pub use authority::{Authority, KeyRequest, Leaf, Validity};
pub use certificate::Certificate;
pub use connection::Connection;
pub use connector::Connector;
#[cfg(feature = "authority")]
pub use credentials::{NewCluster, SchedulerCredentials, WorkerCredentials, file};
pub use files::write_private;
#[cfg(feature = "authority")]
pub use identity::WorkerIdentity;
pub use secret::Secret;
pub use trust::{HANDSHAKE_MAX, PeerDialer, Trust};

/// Longest cluster id: a DNS label that leaves room for a label before it.
pub const CLUSTER_ID_MAX: usize = 63;

/// What can be wrong with credentials, in words for people.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read or written, or is not kept as it should be.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A cluster's id is not one.
    #[error("`{0}` is no cluster id: it has 1 to 63 lower-case letters, digits and hyphens, a letter first and no hyphen last")]
    ClusterId(String),
    /// A worker's name or uid is not one.
    #[error("`{0}` is no name or uid of a worker: it has 1 to 128 letters, digits, dots, hyphens and underscores")]
    WorkerName(String),
    /// A certificate, key or request is not what it should be.
    #[error("{0}")]
    Certificate(String),
    /// The system has no random numbers.
    #[error("no random numbers: {0}")]
    Random(String),
}

/// Checks a cluster's id.
///
/// # Errors
/// [`TlsError::ClusterId`].
pub fn check_cluster_id(id: &str) -> Result<(), TlsError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let ok = !id.is_empty()
        && id.len() <= CLUSTER_ID_MAX
        && id.bytes().all(plain)
        && id.as_bytes().first().is_some_and(u8::is_ascii_lowercase)
        && !id.ends_with('-');
    if ok { Ok(()) } else { Err(TlsError::ClusterId(id.chars().take(100).collect())) }
}
