//! The worker beyond its scheduler's machine: gets its certificate signed with the bootstrap token, shows it from then on, and has it
//! renewed before it expires. The key is made here and never leaves memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use scalable_proto::v1::SignWorkerRequest;
use scalable_proto::v1::certificate_service_client::CertificateServiceClient;
use scalable_tls::{Certificate, Connector, KeyRequest, PeerDialer, Trust, WorkerCredentials, WorkerIdentity};
use tokio::sync::{Mutex, Notify};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::connection::sources;

/// Longest that signing may take.
const SIGN_MAX: Duration = Duration::from_secs(10);
/// Longest wait before a renewal that failed is tried again.
const RENEW_AGAIN_MAX: Duration = Duration::from_secs(60);
/// Shortest.
const RENEW_AGAIN_MIN: Duration = Duration::from_millis(200);

/// What one worker of a cluster with credentials has. Shared by its connections.
#[derive(Debug)]
pub struct Secured {
    credentials: WorkerCredentials,
    identity: WorkerIdentity,
    own: Certificate,
    /// One asks at a time; the other connection takes what came.
    asking: Mutex<()>,
    /// A certificate has come.
    got: Notify,
}

impl Secured {
    /// For the worker of this name and uid; contacts nobody.
    ///
    /// # Errors
    /// When name or uid cannot be in a certificate.
    pub fn new(credentials: WorkerCredentials, name: &str, uid: &str) -> anyhow::Result<Secured> {
        let identity = WorkerIdentity::new(name, uid).context("--name and --uid")?;
        Ok(Secured { credentials, identity, own: Certificate::default(), asking: Mutex::new(()), got: Notify::new() })
    }

    /// The cluster.
    pub fn trust(&self) -> &Trust {
        &self.credentials.trust
    }

    /// For the server that peers ask. Until there is a certificate it gets nobody through.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn peer_server(&self) -> anyhow::Result<Arc<rustls::ServerConfig>> {
        Ok(self.trust().server(&self.own, &[])?)
    }

    /// For asking peers.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn peer_dialer(&self) -> anyhow::Result<PeerDialer> {
        Ok(self.trust().to_peers(Some(&self.own))?)
    }

    /// A connection that shows this worker's certificate, which is asked for first where there is none that is good.
    ///
    /// # Errors
    /// Of the scheduler: `UNAVAILABLE` is worth another try.
    pub async fn connect(&self, endpoint: Endpoint) -> Result<Channel, Status> {
        {
            let _asking = self.asking.lock().await;
            if !self.own.is_good() {
                let channel = self.channel(&endpoint, None).await?;
                self.sign(channel, Some(self.credentials.bootstrap.expose())).await?;
            }
        }
        self.channel(&endpoint, Some(&self.own)).await
    }

    /// The scheduler does not know the certificate: a new one is asked for with the next connection.
    pub fn distrusted(&self) {
        self.own.forget();
    }

    async fn channel(&self, endpoint: &Endpoint, own: Option<&Certificate>) -> Result<Channel, Status> {
        let connector = Connector::new(self.trust(), own).map_err(|error| Status::internal(error.to_string()))?;
        endpoint.connect_with_connector(connector).await.map_err(|error| Status::unavailable(sources(&error)))
    }

    /// Has a new key signed, and shows it from then on.
    async fn sign(&self, channel: Channel, token: Option<&str>) -> Result<(), Status> {
        let internal = |error: scalable_tls::TlsError| Status::internal(error.to_string());
        let key = KeyRequest::create().map_err(internal)?;
        let mut request = Request::new(SignWorkerRequest {
            name: self.identity.name().to_owned(),
            uid: self.identity.uid().to_owned(),
            request: key.request().to_vec().into(),
        });
        request.set_timeout(SIGN_MAX);
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse();
            let value = value.map_err(|_| Status::unauthenticated("the bootstrap token is no token"))?;
            request.metadata_mut().insert("authorization", value);
        }
        let reply = CertificateServiceClient::new(channel).sign_worker(request).await?.into_inner();
        let chain = reply.chain.into_iter().map(|certificate| certificate.to_vec()).collect();
        let lifetime = Duration::from_millis(reply.lifetime_ms);
        key.use_in(&self.own, chain, lifetime).map_err(internal)?;
        tracing::info!(lifetime_s = lifetime.as_secs_f64(), "the scheduler has signed this worker's certificate");
        self.got.notify_one();
        Ok(())
    }

    /// Renews at two thirds of each certificate's lifetime, for ever. Streams that are open go on.
    pub async fn keep_renewed(self: Arc<Self>, endpoint: Endpoint) {
        loop {
            let Some(due) = self.own.renew_at() else {
                self.got.notified().await;
                continue;
            };
            if due > Instant::now() {
                // In short steps: while the machine sleeps, this clock does not go on.
                let step = (due - Instant::now()).min(RENEW_AGAIN_MAX);
                tokio::select! {
                    () = tokio::time::sleep(step) => {}
                    () = self.got.notified() => {}
                }
                continue;
            }
            // One that has expired is replaced with the token, when a connection needs it.
            if !self.own.is_good() {
                self.got.notified().await;
                continue;
            }
            let began = Instant::now();
            let renewed = async {
                let channel = self.channel(&endpoint, Some(&self.own)).await?;
                self.sign(channel, None).await
            };
            if let Err(status) = renewed.await {
                tracing::warn!(reason = status.message(), "this worker's certificate could not be renewed yet");
                // At least some tries in the last third of the lifetime.
                let wait = (began - due).min(RENEW_AGAIN_MAX).max(RENEW_AGAIN_MIN);
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// True for a refusal that a certificate which has expired meanwhile explains.
pub fn may_be_expired(status: &Status) -> bool {
    status.code() == Code::Unauthenticated
}
