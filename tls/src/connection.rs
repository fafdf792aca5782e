//! What a client has to know of a cluster beyond its machine, and the file that holds it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files::{failed, read_private, write_private};
use crate::{Secret, TlsError, Trust};

/// A cluster as a client reaches it. As JSON in a file of mode 0600: the *connection file*.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connection {
    /// `https://host:port` of 8786.
    pub address: String,
    /// The cluster's id: what the scheduler's certificate is verified for.
    pub cluster_id: String,
    /// The authority's certificate, PEM.
    pub ca_certificate: String,
    /// The token of a role.
    pub token: String,
    /// `host:port` where the scheduler's store is reached from here, when it is not where it says: behind a port-forward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_address: Option<String>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Connection");
        shown.field("address", &self.address).field("cluster_id", &self.cluster_id).finish_non_exhaustive()
    }
}

impl Connection {
    /// Reads a connection file.
    ///
    /// # Errors
    /// [`TlsError::File`] when it cannot be read, can be read by everybody, or is none; the others when its parts are not what they
    /// should be.
    pub fn read(path: &Path) -> Result<Connection, TlsError> {
        let text = read_private(path)?;
        // The parser's words would show what it read: a secret.
        let parsed: Result<Connection, serde_json::Error> = serde_json::from_str(&text);
        let connection = parsed
            .map_err(|error| failed(path, format!("is no connection file (line {}, column {})", error.line(), error.column())))?;
        connection.check().map_err(|error| failed(path, error))?;
        Ok(connection)
    }

    /// Writes it, with mode 0600.
    ///
    /// # Errors
    /// [`TlsError::File`].
    pub fn write(&self, path: &Path) -> Result<(), TlsError> {
        let text = serde_json::to_string_pretty(self).map_err(|error| failed(path, error))?;
        write_private(path, &text)
    }

    /// Checks its parts; contacts nobody.
    ///
    /// # Errors
    /// What is wrong with which.
    pub fn check(&self) -> Result<(), TlsError> {
        self.trust()?;
        Secret::parse(&self.token).map_err(|why| TlsError::Certificate(format!("the token {why}")))?;
        if !self.address.starts_with("https://") {
            return Err(TlsError::Certificate(format!("the address {} does not begin with https://", self.address)));
        }
        Ok(())
    }

    /// Whom it believes.
    ///
    /// # Errors
    /// When id or certificate are not what they should be.
    pub fn trust(&self) -> Result<Trust, TlsError> {
        Trust::new(&self.cluster_id, &self.ca_certificate)
    }
}
