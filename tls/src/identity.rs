//! Who a worker's certificate says it is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::TlsError;

/// Longest name or uid, bytes.
const NAME_BYTES_MAX: usize = 128;

/// A worker, as its certificate names it: `scalable://CLUSTER/worker/NAME/UID`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WorkerIdentity {
    name: String,
    uid: String,
}

impl WorkerIdentity {
    /// A worker of this name and uid.
    ///
    /// # Errors
    /// [`TlsError::WorkerName`].
    pub fn new(name: &str, uid: &str) -> Result<WorkerIdentity, TlsError> {
        for part in [name, uid] {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
            if part.is_empty() || part.len() > NAME_BYTES_MAX || !part.bytes().all(plain) {
                return Err(TlsError::WorkerName(part.chars().take(NAME_BYTES_MAX).collect()));
            }
        }
        Ok(WorkerIdentity { name: name.to_owned(), uid: uid.to_owned() })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its platform's unique id of this instance.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    pub(crate) fn uri(&self, cluster_id: &str) -> String {
        format!("scalable://{cluster_id}/worker/{}/{}", self.name, self.uid)
    }

    /// Reads it from a certificate that was verified; with it the time until which the certificate is good. Nothing when it is none of
    /// a worker of this cluster.
    pub fn of_certificate(certificate: &[u8], cluster_id: &str) -> Option<(WorkerIdentity, SystemTime)> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let names = &parsed.subject_alternative_name().ok()??.value.general_names;
        let mut uris = names.iter().filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None });
        let (uri, None) = (uris.next()?, uris.next()) else { return None };
        let (cluster, rest) = uri.strip_prefix("scalable://")?.split_once("/worker/")?;
        let (name, uid) = rest.split_once('/')?;
        let until = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
        let identity = WorkerIdentity::new(name, uid).ok()?;
        (cluster == cluster_id).then(|| (identity, UNIX_EPOCH + Duration::from_secs(until)))
    }
}
