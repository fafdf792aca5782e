//! The certificate of this process: exchanged while connections are made with it, good until it expires.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{SignatureScheme, crypto};

use crate::TlsError;

/// What this process shows to prove who it is. Clones show the same one. Empty until it is set for the first time.
#[derive(Clone, Default)]
pub struct Certificate(Arc<RwLock<Option<Held>>>);

#[derive(Clone)]
struct Held {
    key: Arc<CertifiedKey>,
    since: Instant,
    /// By the other clock: only that one goes on while the machine sleeps.
    until: SystemTime,
    lifetime: Duration,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificate(…)")
    }
}

impl Certificate {
    /// Shows this one from now on. `chain` begins with the certificate itself, `key` is its PKCS #8 key, `lifetime` how long it is
    /// good from now on.
    ///
    /// # Errors
    /// When key and certificate are not made for each other.
    pub fn set(&self, chain: Vec<Vec<u8>>, key: Vec<u8>, lifetime: Duration) -> Result<(), TlsError> {
        let chain = chain.into_iter().map(CertificateDer::from).collect();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
        let key = CertifiedKey::from_der(chain, key, &crypto::aws_lc_rs::default_provider())
            .map_err(|error| TlsError::Certificate(format!("the certificate cannot be used: {error}")))?;
        let held = Held { key: Arc::new(key), since: Instant::now(), until: SystemTime::now() + lifetime, lifetime };
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(held);
        Ok(())
    }

    /// Shows none any more.
    pub fn forget(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// True while there is one that has not expired.
    pub fn is_good(&self) -> bool {
        self.held().is_some_and(|held| held.since.elapsed() < held.lifetime && SystemTime::now() < held.until)
    }

    /// When it is to be renewed: at two thirds of its lifetime. Nothing while there is none.
    pub fn renew_at(&self) -> Option<Instant> {
        self.held().map(|held| held.since + held.lifetime * 2 / 3)
    }

    fn held(&self) -> Option<Held> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.held().map(|held| held.key)
    }
}

impl ResolvesClientCert for Certificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.held().map(|held| held.key)
    }

    fn has_certs(&self) -> bool {
        self.held().is_some()
    }
}
