//! 8786's services. They hold no state: each stream's task hands its frames to the reactor over one bounded channel, each
//! unary call hands over a closure that runs there. A peer that sends faster than the reactor takes is stopped by its socket.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use scalable_proto::{MESSAGE_BYTES_MAX, v1};
use scalable_tls::WorkerIdentity;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::content_store::ContentStore;
use crate::gate::{Caller, Gate, guard};
use crate::output_store::OutputStore;
use crate::reactor::Reactor;
use crate::sign::Signer;

/// Frames waiting for the reactor, of all peers together.
pub const INBOUND_FRAMES_MAX: usize = 1024;
/// A stream whose first message does not come in this time is closed.
const FIRST_MESSAGE_WITHIN: Duration = Duration::from_secs(10);
/// A worker that has not answered a question in this time is not waited for any longer.
const WORKER_ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// One stream of one peer, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Where the reactor puts frames for a stream. What waits here is bounded by what its sender may keep unacknowledged.
pub type Out<T> = mpsc::UnboundedSender<Result<T, Status>>;

/// What reaches the reactor.
#[expect(clippy::large_enum_variant, reason = "one a frame, moved once through a bounded channel")]
pub enum Inbound {
    /// A worker's control stream began.
    WorkerControlOpened(ConnectionId, v1::WorkerHello, Out<v1::SchedulerControl>),
    /// A worker's data stream began; with the worker it is, where a certificate says so.
    WorkerDataOpened(ConnectionId, (v1::Bind, Option<Arc<WorkerIdentity>>), Out<v1::SchedulerData>),
    /// A frame on a worker's control stream.
    WorkerControl(ConnectionId, v1::WorkerControl),
    /// A frame on a worker's data stream.
    WorkerData(ConnectionId, v1::WorkerData),
    /// A client's control stream began.
    ClientControlOpened(ConnectionId, v1::Hello, Out<v1::ClientEvents>),
    /// A client's data stream began.
    ClientDataOpened(ConnectionId, v1::Bind, Out<v1::ClientResults>),
    /// A frame on a client's control stream.
    ClientControl(ConnectionId, v1::ClientControl),
    /// A frame on a client's data stream.
    ClientData(ConnectionId, v1::ClientData),
    /// A stream ended or was reset.
    Closed(ConnectionId),
    /// A unary call.
    Call(Box<dyn FnOnce(&mut Reactor) + Send>),
}

/// What every service has: the way to the reactor.
#[derive(Clone)]
pub struct Services {
    inbound: mpsc::Sender<Inbound>,
    next: Arc<AtomicU64>,
    store: Arc<ContentStore>,
    outputs: OutputStore,
    pub(crate) signer: Option<Arc<Signer>>,
}

type Reply<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Services {
    /// Services that hand over to `inbound`, and contents to `store`. `signer` signs certificates of workers, where there are any.
    /// `outputs` lists what runs have left.
    pub fn new(
        inbound: mpsc::Sender<Inbound>,
        store: Arc<ContentStore>,
        outputs: OutputStore,
        signer: Option<Arc<Signer>>,
    ) -> Self {
        Services { inbound, next: Arc::new(AtomicU64::new(1)), store, outputs, signer }
    }

    /// Everything 8786 answers, behind the gate.
    pub async fn router(&self, gate: &Gate) -> Result<tonic::service::Routes, tonic_reflection::server::Error> {
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_serving::<v1::worker_service_server::WorkerServiceServer<Services>>().await;
        reporter.set_serving::<v1::client_service_server::ClientServiceServer<Services>>().await;
        reporter.set_serving::<v1::control_service_server::ControlServiceServer<Services>>().await;
        let reflection =
            tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(v1::DESCRIPTORS).build_v1()?;
        let workers = v1::worker_service_server::WorkerServiceServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let clients = v1::client_service_server::ClientServiceServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let control = v1::control_service_server::ControlServiceServer::new(self.clone());
        let mut routes = tonic::service::Routes::new(workers)
            .add_service(clients)
            .add_service(control)
            .add_service(health)
            .add_service(reflection);
        if self.signer.is_some() {
            routes = routes.add_service(v1::certificate_service_server::CertificateServiceServer::new(self.clone()));
        }
        let guarded = routes.into_axum_router().layer(axum::middleware::from_fn_with_state(gate.clone(), guard));
        Ok(guarded.into())
    }

    /// Reads a stream: its first message opens it, every further one is handed over, its end is told.
    fn pump<In: Send + 'static, First: Send + 'static, Output: Send + 'static>(
        &self,
        mut stream: Streaming<In>,
        first: impl FnOnce(In) -> Result<First, Status> + Send + 'static,
        open: fn(ConnectionId, First, Out<Output>) -> Inbound,
        frame: fn(ConnectionId, In) -> Inbound,
    ) -> Response<Reply<Output>> {
        let id = ConnectionId(self.next.fetch_add(1, Ordering::Relaxed));
        let (out, replies) = mpsc::unbounded_channel();
        let inbound = self.inbound.clone();
        tokio::spawn(async move {
            let hello = match tokio::time::timeout(FIRST_MESSAGE_WITHIN, stream.message()).await {
                Ok(Ok(Some(message))) => first(message),
                Ok(Ok(None) | Err(_)) => return,
                Err(_) => {
                    let _ = out.send(Err(Status::deadline_exceeded("the first message of a stream must come within 10 s")));
                    return;
                }
            };
            let hello = match hello {
                Ok(hello) => hello,
                Err(status) => {
                    let _ = out.send(Err(status));
                    return;
                }
            };
            if inbound.send(open(id, hello, out)).await.is_err() {
                return;
            }
            while let Ok(Some(message)) = stream.message().await {
                if inbound.send(frame(id, message)).await.is_err() {
                    return;
                }
            }
            let _ = inbound.send(Inbound::Closed(id)).await;
        });
        Response::new(Box::pin(UnboundedReceiverStream::new(replies)))
    }

    pub(crate) async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Reactor) -> Result<T, Status> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let (reply, answer) = oneshot::channel();
        let call = Box::new(move |reactor: &mut Reactor| {
            let _ = reply.send(call(reactor));
        });
        let gone = || Status::unavailable("the scheduler is shutting down");
        self.inbound.send(Inbound::Call(call)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map(Response::new)
    }
}

fn no_handshake() -> Status {
    Status::invalid_argument("a stream begins with its handshake: hello on control, bind on data")
}

/// The worker whose certificate this call came with.
fn worker_of<T>(request: &Request<T>) -> Option<Arc<WorkerIdentity>> {
    request.extensions().get::<Caller>()?.worker().cloned()
}

#[tonic::async_trait]
impl v1::worker_service_server::WorkerService for Services {
    type ControlStream = Reply<v1::SchedulerControl>;
    type DataStream = Reply<v1::SchedulerData>;

    async fn control(&self, request: Request<Streaming<v1::WorkerControl>>) -> Result<Response<Self::ControlStream>, Status> {
        let worker = worker_of(&request);
        let first = move |frame: v1::WorkerControl| match frame.body {
            Some(v1::worker_control::Body::Hello(hello)) => match worker {
                Some(worker) if worker.name() != hello.name => Err(Status::permission_denied(format!(
                    "this certificate is of worker `{}`, not of `{}`",
                    worker.name(),
                    hello.name
                ))),
                _ => Ok(hello),
            },
            _ => Err(no_handshake()),
        };
        Ok(self.pump(request.into_inner(), first, Inbound::WorkerControlOpened, Inbound::WorkerControl))
    }

    async fn data(&self, request: Request<Streaming<v1::WorkerData>>) -> Result<Response<Self::DataStream>, Status> {
        let worker = worker_of(&request);
        let first = move |frame: v1::WorkerData| match frame.body {
            Some(v1::worker_data::Body::Bind(bind)) => Ok((bind, worker)),
            _ => Err(no_handshake()),
        };
        Ok(self.pump(request.into_inner(), first, Inbound::WorkerDataOpened, Inbound::WorkerData))
    }
}

#[tonic::async_trait]
impl v1::client_service_server::ClientService for Services {
    type ControlStream = Reply<v1::ClientEvents>;
    type DataStream = Reply<v1::ClientResults>;

    async fn control(&self, request: Request<Streaming<v1::ClientControl>>) -> Result<Response<Self::ControlStream>, Status> {
        let first = |frame: v1::ClientControl| match frame.body {
            Some(v1::client_control::Body::Hello(hello)) => Ok(hello),
            _ => Err(no_handshake()),
        };
        Ok(self.pump(request.into_inner(), first, Inbound::ClientControlOpened, Inbound::ClientControl))
    }

    async fn data(&self, request: Request<Streaming<v1::ClientData>>) -> Result<Response<Self::DataStream>, Status> {
        let first = |frame: v1::ClientData| match frame.body {
            Some(v1::client_data::Body::Bind(bind)) => Ok(bind),
            _ => Err(no_handshake()),
        };
        Ok(self.pump(request.into_inner(), first, Inbound::ClientDataOpened, Inbound::ClientData))
    }
}

#[tonic::async_trait]
impl v1::control_service_server::ControlService for Services {
    async fn list_runs(&self, _: Request<v1::ListRunsRequest>) -> Result<Response<v1::ListRunsReply>, Status> {
        self.call(|reactor| Ok(reactor.list_runs())).await
    }

    async fn get_status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        self.call(|reactor| reactor.status(&request.into_inner())).await
    }

    async fn list_tasks(&self, request: Request<v1::ListTasksRequest>) -> Result<Response<v1::ListTasksReply>, Status> {
        self.call(|reactor| reactor.list_tasks(&request.into_inner())).await
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainReply>, Status> {
        self.call(|reactor| reactor.explain(&request.into_inner())).await
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Result<Response<v1::CancelReply>, Status> {
        self.call(|reactor| reactor.cancel(&request.into_inner())).await
    }

    async fn offer_content(&self, request: Request<v1::OfferRequest>) -> Result<Response<v1::OfferReply>, Status> {
        let store = self.store.clone();
        // Reads a file of the client's: not on the reactor's thread.
        let answer = tokio::task::spawn_blocking(move || store.offered(&request.into_inner())).await;
        let answer = answer.map_err(|error| Status::internal(error.to_string()))?;
        answer.map(Response::new).map_err(Status::invalid_argument)
    }

    async fn list_run_files(&self, request: Request<v1::ListRunFilesRequest>) -> Result<Response<v1::ListRunFilesReply>, Status> {
        let (outputs, address) = (self.outputs.clone(), self.store.address().to_string());
        // Reads all of the run's files once: not on the reactor's thread.
        let answer = tokio::task::spawn_blocking(move || outputs.list(&request.into_inner(), &address)).await;
        let answer = answer.map_err(|error| Status::internal(error.to_string()))?;
        answer.map(Response::new).map_err(Status::not_found)
    }

    async fn acknowledge_run(
        &self,
        request: Request<v1::AcknowledgeRunRequest>,
    ) -> Result<Response<v1::AcknowledgeRunReply>, Status> {
        self.call(|reactor| reactor.acknowledge_run(&request.into_inner())).await
    }

    async fn read_log(&self, request: Request<v1::ReadLogRequest>) -> Result<Response<v1::ReadLogReply>, Status> {
        let asked = self.call(|reactor| reactor.read_log(&request.into_inner())).await?.into_inner();
        let Some(answer) = asked else { return Ok(Response::new(v1::ReadLogReply { over: true, ..Default::default() })) };
        match tokio::time::timeout(WORKER_ANSWERS_WITHIN, answer).await {
            Ok(Ok(reply)) => Ok(Response::new(reply)),
            Ok(Err(_)) => Err(Status::unavailable("the worker that the attempt was on is gone; try again")),
            Err(_) => Err(Status::deadline_exceeded("the worker that the attempt is on does not answer; try again")),
        }
    }

    async fn shutdown(&self, request: Request<v1::ShutdownRequest>) -> Result<Response<v1::ShutdownReply>, Status> {
        self.call(|reactor| reactor.shut_down(&request.into_inner())).await
    }
}
