//! Signs workers' certificates: the first for whom the provider knows, the next ones for whoever has a good one and is at work.

use std::sync::Arc;
use std::time::Duration;

use scalable_proto::v1;
use scalable_tls::{Authority, Validity, WorkerIdentity};
use tonic::{Request, Response, Status};

use crate::admission::{Admission, NotAdmitted};
use crate::gate::Caller;
use crate::serve::Services;
use crate::tls::TlsPeer;

/// What signing takes.
pub struct Signer {
    /// Whose certificates.
    pub authority: Arc<Authority>,
    /// Which workers are ours.
    pub admission: Box<dyn Admission>,
    /// A proxy stands between: the address of a call says nothing.
    pub trust_proxy: bool,
    /// How long a certificate is good.
    pub lifetime: Duration,
}

impl Signer {
    /// Signs. Blocks.
    fn sign(&self, worker: &WorkerIdentity, request: &[u8]) -> Result<v1::SignWorkerReply, Status> {
        let validity = Validity::of(self.lifetime);
        let signed = self.authority.sign_worker(request, worker, validity);
        let signed = signed.map_err(|error| Status::invalid_argument(error.to_string()))?;
        tracing::info!(worker = worker.name(), uid = worker.uid(), "a worker's certificate was signed");
        Ok(v1::SignWorkerReply { chain: vec![signed.into()], lifetime_ms: self.lifetime.as_millis() as u64 })
    }
}

#[tonic::async_trait]
impl v1::certificate_service_server::CertificateService for Services {
    async fn sign_worker(&self, request: Request<v1::SignWorkerRequest>) -> Result<Response<v1::SignWorkerReply>, Status> {
        let signer = self.signer.clone().ok_or_else(|| Status::unimplemented("this scheduler has no credentials"))?;
        let caller = request.extensions().get::<Caller>().cloned();
        let from = request.extensions().get::<TlsPeer>().map(|peer| peer.address.ip());
        let asked = request.into_inner();
        let worker = WorkerIdentity::new(&asked.name, &asked.uid).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let name = asked.name.clone();
        let live = self.call(move |reactor| Ok(reactor.has_live_worker(&name))).await?.into_inner();
        match caller.as_ref().and_then(Caller::worker) {
            Some(known) if **known != worker => {
                return Err(Status::permission_denied(format!(
                    "this certificate is of worker `{}`: it renews no other",
                    known.name()
                )));
            }
            Some(_) if live => {
                let signed = tokio::task::spawn_blocking(move || signer.sign(&worker, &asked.request)).await;
                return signed.map_err(|error| Status::internal(error.to_string()))?.map(Response::new);
            }
            Some(_) => {
                let name = worker.name();
                return Err(Status::failed_precondition(format!(
                    "no session of worker `{name}` is live: it begins with its token"
                )));
            }
            None if live => {
                return Err(Status::unavailable(format!(
                    "a session of worker `{}` is live: it renews with its certificate",
                    worker.name()
                )));
            }
            None => {}
        }
        let signed = tokio::task::spawn_blocking(move || {
            let address = if signer.trust_proxy { None } else { Some(from.ok_or_else(no_address)?) };
            match signer.admission.admit(worker.name(), worker.uid(), address) {
                Ok(()) => signer.sign(&worker, &asked.request),
                Err(NotAdmitted::NotYet(why)) => Err(Status::unavailable(why)),
                Err(NotAdmitted::Never(why)) => {
                    tracing::warn!(worker = worker.name(), uid = worker.uid(), ?from, %why, "a worker gets no certificate");
                    Err(Status::permission_denied(why))
                }
            }
        });
        signed.await.map_err(|error| Status::internal(error.to_string()))?.map(Response::new)
    }
}

/// Cannot be: the service exists only where every connection is TLS, and says whose it is.
fn no_address() -> Status {
    Status::internal("the connection has no address")
}
