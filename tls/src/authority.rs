//! A cluster's authority: signs the scheduler's certificate and those of workers, and nothing else.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::CertificateSigningRequestDer;
use time::OffsetDateTime;

use crate::trust::workers_name;
use crate::{Certificate, TlsError, WorkerIdentity, check_cluster_id};

/// How long the authority itself is good: longer than any cluster lives.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How far clocks of one cluster may be apart.
const CLOCK_SKEW: Duration = Duration::from_secs(300);
/// Largest request for a certificate.
const REQUEST_BYTES_MAX: usize = 8 << 10;

/// From when until when a certificate is good.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    /// From.
    pub from: SystemTime,
    /// Until.
    pub until: SystemTime,
}

impl Validity {
    /// From now on for so long, and from some minutes before: clocks differ.
    pub fn of(lifetime: Duration) -> Validity {
        let now = SystemTime::now();
        // A certificate knows seconds: the last one begun counts whole.
        Validity { from: now - CLOCK_SKEW, until: now + lifetime + Duration::from_secs(1) }
    }
}

/// A certificate and its key.
pub struct Leaf {
    /// The certificate, DER.
    pub certificate: Vec<u8>,
    /// The key, PKCS #8.
    pub key: Vec<u8>,
}

impl std::fmt::Debug for Leaf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Leaf(…)")
    }
}

/// See the module.
pub struct Authority {
    cluster_id: String,
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("cluster_id", &self.cluster_id).finish_non_exhaustive()
    }
}

fn wrong(what: &str) -> impl Fn(rcgen::Error) -> TlsError {
    move |error| TlsError::Certificate(format!("{what}: {error}"))
}

impl Authority {
    /// A new one for this cluster.
    ///
    /// # Errors
    /// When the id is none, or the system has no random numbers.
    pub fn create(cluster_id: &str) -> Result<Authority, TlsError> {
        check_cluster_id(cluster_id)?;
        let key = KeyPair::generate().map_err(wrong("make the authority's key"))?;
        let mut params = params(&format!("scalable {cluster_id}"), Validity::of(AUTHORITY_LIFETIME));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).map_err(wrong("make the authority's certificate"))?.pem();
        Ok(Authority { cluster_id: cluster_id.to_owned(), issuer: Issuer::new(params, key), certificate })
    }

    /// One that was made before: its certificate and its key, PEM.
    ///
    /// # Errors
    /// When they are not what they should be, or not made for each other.
    pub fn from_pem(cluster_id: &str, certificate: &str, key: &str) -> Result<Authority, TlsError> {
        check_cluster_id(cluster_id)?;
        let key = KeyPair::from_pem(key).map_err(|_| TlsError::Certificate("the authority's key is none".to_owned()))?;
        let public = key.public_key_raw().to_vec();
        let issuer = Issuer::from_ca_cert_pem(certificate, key).map_err(wrong("the authority's certificate"))?;
        let made_for = x509_parser::pem::parse_x509_pem(certificate.as_bytes())
            .ok()
            .and_then(|(_, pem)| Some(pem.parse_x509().ok()?.public_key().subject_public_key.data.to_vec()));
        if made_for.as_deref() != Some(public.as_slice()) {
            return Err(TlsError::Certificate("the authority's key is not its certificate's".to_owned()));
        }
        Ok(Authority { cluster_id: cluster_id.to_owned(), issuer, certificate: certificate.to_owned() })
    }

    /// Its certificate, PEM: what everybody of the cluster believes.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its key, PEM: nobody's but the scheduler's.
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A certificate of the scheduler, whose one name is the cluster's id.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn scheduler(&self, validity: Validity) -> Result<Leaf, TlsError> {
        let mut params = params("scalable-scheduler", validity);
        params.subject_alt_names = vec![SanType::DnsName(text(&self.cluster_id)?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.leaf(params)
    }

    /// A certificate of a worker whose key is made here: where the authority itself starts the worker.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn worker(&self, identity: &WorkerIdentity, validity: Validity) -> Result<Leaf, TlsError> {
        self.leaf(self.worker_params(identity, validity)?)
    }

    /// Signs a worker's request. Nothing of the request but its key is taken over.
    ///
    /// # Errors
    /// When it is no request, its signature is wrong, or its key is of another kind than P-256.
    pub fn sign_worker(&self, request: &[u8], identity: &WorkerIdentity, validity: Validity) -> Result<Vec<u8>, TlsError> {
        if request.len() > REQUEST_BYTES_MAX {
            return Err(TlsError::Certificate(format!("a request for a certificate has at most {REQUEST_BYTES_MAX} bytes")));
        }
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
            .map_err(wrong("the request for a certificate"))?;
        if *request.public_key.algorithm() != PKCS_ECDSA_P256_SHA256 {
            return Err(TlsError::Certificate("a worker's key is one for ECDSA P-256".to_owned()));
        }
        let params = self.worker_params(identity, validity)?;
        let signed = params.signed_by(&request.public_key, &self.issuer).map_err(wrong("sign the certificate"))?;
        Ok(signed.der().to_vec())
    }

    fn worker_params(&self, identity: &WorkerIdentity, validity: Validity) -> Result<CertificateParams, TlsError> {
        let mut params = params("scalable-worker", validity);
        params.subject_alt_names =
            vec![SanType::DnsName(text(&workers_name(&self.cluster_id))?), SanType::URI(text(&identity.uri(&self.cluster_id))?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        Ok(params)
    }

    fn leaf(&self, params: CertificateParams) -> Result<Leaf, TlsError> {
        let key = KeyPair::generate().map_err(wrong("make a key"))?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(wrong("sign the certificate"))?;
        Ok(Leaf { certificate: certificate.der().to_vec(), key: key.serialize_der() })
    }

    /// Puts a new certificate of the scheduler into `shown`.
    ///
    /// # Errors
    /// As [`Authority::scheduler`].
    pub fn renew_scheduler(&self, shown: &Certificate, lifetime: Duration) -> Result<(), TlsError> {
        let leaf = self.scheduler(Validity::of(lifetime))?;
        shown.set(vec![leaf.certificate], leaf.key, lifetime)
    }
}

/// A key that was made here, and the request for a certificate of it.
pub struct KeyRequest {
    key: KeyPair,
    request: Vec<u8>,
}

impl std::fmt::Debug for KeyRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyRequest(…)")
    }
}

impl KeyRequest {
    /// A new key, in memory only.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn create() -> Result<KeyRequest, TlsError> {
        let key = KeyPair::generate().map_err(wrong("make a key"))?;
        let request = CertificateParams::default().serialize_request(&key).map_err(wrong("make a request"))?;
        Ok(KeyRequest { request: request.der().to_vec(), key })
    }

    /// The request, PKCS #10, DER.
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// Shows what was signed from now on in `shown`.
    ///
    /// # Errors
    /// When it was signed for another key.
    pub fn use_in(self, shown: &Certificate, chain: Vec<Vec<u8>>, lifetime: Duration) -> Result<(), TlsError> {
        shown.set(chain, self.key.serialize_der(), lifetime)
    }
}

fn params(common_name: &str, validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    params.not_before = OffsetDateTime::from(validity.from);
    params.not_after = OffsetDateTime::from(validity.until);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

fn text(text: &str) -> Result<rcgen::string::Ia5String, TlsError> {
    text.to_owned().try_into().map_err(wrong("a name in a certificate"))
}
