//! Whom a process of one cluster believes: certificates of the cluster's authority, by the cluster's id and never by an address.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme, crypto, version};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client};

use crate::{Certificate, TlsError, check_cluster_id};

/// Longest handshake: whoever takes longer is cut off.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// The name that certificates of workers have in common: what serves objects is the scheduler under its cluster's id, or one of these.
pub(crate) fn workers_name(cluster_id: &str) -> String {
    format!("worker.{cluster_id}")
}

/// One cluster and its authority.
#[derive(Clone)]
pub struct Trust {
    cluster_id: String,
    scheduler: ServerName<'static>,
    worker: ServerName<'static>,
    roots: Arc<RootCertStore>,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("cluster_id", &self.cluster_id).finish_non_exhaustive()
    }
}

fn provider() -> Arc<crypto::CryptoProvider> {
    Arc::new(crypto::aws_lc_rs::default_provider())
}

/// What rustls refuses although it was made here, in words.
fn unusable(error: impl fmt::Display) -> TlsError {
    TlsError::Certificate(format!("TLS cannot be set up: {error}"))
}

impl Trust {
    /// Believes the authority in `ca_certificate` (PEM) for this cluster.
    ///
    /// # Errors
    /// When one of them is not what it should be.
    pub fn new(cluster_id: &str, ca_certificate: &str) -> Result<Trust, TlsError> {
        check_cluster_id(cluster_id)?;
        let no_certificate = |why: &dyn fmt::Display| TlsError::Certificate(format!("the authority's certificate: {why}"));
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_certificate.as_bytes()) {
            let certificate = certificate.map_err(|error| no_certificate(&error))?;
            roots.add(certificate).map_err(|error| no_certificate(&error))?;
        }
        if roots.is_empty() {
            return Err(no_certificate(&"there is none"));
        }
        let name = |name: String| ServerName::try_from(name).map_err(|error| no_certificate(&error));
        Ok(Trust {
            cluster_id: cluster_id.to_owned(),
            scheduler: name(cluster_id.to_owned())?,
            worker: name(workers_name(cluster_id))?,
            roots: Arc::new(roots),
        })
    }

    /// The cluster.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// For connections to the scheduler's gRPC; shows `own` where it has a certificate.
    ///
    /// # Errors
    /// When rustls refuses what it was given.
    pub fn to_scheduler(&self, own: Option<&Certificate>) -> Result<Arc<ClientConfig>, TlsError> {
        let verifier = WebPkiServerVerifier::builder_with_provider(self.roots.clone(), provider()).build().map_err(unusable)?;
        let mut config = client_config(verifier, own)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    /// The scheduler's name on such connections.
    pub(crate) fn scheduler_name(&self) -> ServerName<'static> {
        self.scheduler.clone()
    }

    /// For connections to those who serve objects: workers and the scheduler's store.
    ///
    /// # Errors
    /// As [`Trust::to_scheduler`].
    pub fn to_peers(&self, own: Option<&Certificate>) -> Result<PeerDialer, TlsError> {
        let inner = WebPkiServerVerifier::builder_with_provider(self.roots.clone(), provider()).build().map_err(unusable)?;
        let verifier = Arc::new(PeerVerifier { inner, scheduler: self.scheduler.clone() });
        let config = Arc::new(client_config(verifier, own)?);
        Ok(PeerDialer { connector: TlsConnector::from(config), name: self.worker.clone() })
    }

    /// For a server that shows `own`. Who connects may show a certificate, which must then be good; whether one is needed is
    /// decided for each call.
    ///
    /// # Errors
    /// As [`Trust::to_scheduler`].
    pub fn server(&self, own: &Certificate, alpn: &[&str]) -> Result<Arc<ServerConfig>, TlsError> {
        let clients = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider())
            .allow_unauthenticated()
            .build()
            .map_err(unusable)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::new(own.clone()));
        // A resumed connection would not look at the peer's certificate again.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(Arc::new(config))
    }
}

fn client_config(verifier: Arc<dyn ServerCertVerifier>, own: Option<&Certificate>) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match own {
        Some(own) => builder.with_client_cert_resolver(Arc::new(own.clone())),
        None => builder.with_no_client_auth(),
    };
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// Makes connections to those who serve objects.
#[derive(Clone)]
pub struct PeerDialer {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl fmt::Debug for PeerDialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerDialer").field("name", &self.name).finish_non_exhaustive()
    }
}

impl PeerDialer {
    /// The handshake over a connection to a worker, or to the scheduler's store.
    ///
    /// # Errors
    /// Of the connection, or because the other side is no part of this cluster.
    pub async fn dial(&self, tcp: TcpStream) -> io::Result<client::TlsStream<TcpStream>> {
        self.connector.connect(self.name.clone(), tcp).await
    }
}

/// Takes a worker's certificate and the scheduler's alike: whoever fetches knows an address, not who is there.
#[derive(Debug)]
struct PeerVerifier {
    inner: Arc<WebPkiServerVerifier>,
    scheduler: ServerName<'static>,
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        worker: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner
            .verify_server_cert(certificate, between, worker, ocsp, now)
            .or_else(|_| self.inner.verify_server_cert(certificate, between, &self.scheduler, ocsp, now))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
