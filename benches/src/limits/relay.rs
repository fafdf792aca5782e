//! The raw columnar stream over gRPC: a client, a relay and a sink, each a process of its own, with the streams, windows and
//! frames of the real ones. The relay translates columns and decides nothing.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use scalable_proto::v1::client_service_client::ClientServiceClient;
use scalable_proto::v1::client_service_server::{ClientService, ClientServiceServer};
use scalable_proto::v1::worker_service_client::WorkerServiceClient;
use scalable_proto::v1::worker_service_server::{WorkerService, WorkerServiceServer};
use scalable_proto::{MESSAGE_BYTES_MAX, v1};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use super::frames;
use super::role::{Playing, Role, ready};

/// As the real client, worker and scheduler have it.
const WINDOW_BYTES: u32 = 4 << 20;
/// Frames between two ends of a process.
const FRAMES: usize = 64;

type Reply<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Out<T> = mpsc::Sender<Result<T, Status>>;
type In<T> = Mutex<Option<mpsc::Receiver<Result<T, Status>>>>;

/// The relay between one client and one worker.
struct Relay {
    to_worker: Out<v1::SchedulerData>,
    of_worker: In<v1::SchedulerData>,
    to_client: Out<v1::ClientResults>,
    of_client: In<v1::ClientResults>,
    /// The next link and the length of the chain that is going on.
    chain: Mutex<(u32, u32)>,
    /// Answers by itself instead of asking the worker.
    echoes: bool,
}

impl Relay {
    fn new(echoes: bool) -> Self {
        let (to_worker, of_worker) = mpsc::channel(FRAMES);
        let (to_client, of_client) = mpsc::channel(FRAMES);
        let keep = |receiver| Mutex::new(Some(receiver));
        let of_client = Mutex::new(Some(of_client));
        Relay { to_worker, of_worker: keep(of_worker), to_client, of_client, chain: Mutex::default(), echoes }
    }

    async fn appended(&self, append: v1::Append) -> bool {
        if append.last {
            *self.chain.lock().unwrap_or_else(PoisonError::into_inner) = (1, append.count);
            return self.to_worker.send(Ok(dispatch(frames::link(0)))).await.is_ok();
        }
        let batch = frames::dispatch(append);
        match self.echoes {
            true => self.to_client.send(Ok(results(frames::results(frames::execute(batch))))).await.is_ok(),
            false => self.to_worker.send(Ok(dispatch(batch))).await.is_ok(),
        }
    }

    async fn executed(&self, batch: v1::WorkerBatch) -> bool {
        let link = {
            let mut chain = self.chain.lock().unwrap_or_else(PoisonError::into_inner);
            let (next, length) = *chain;
            chain.0 += 1;
            (next < length).then_some(next)
        };
        match link {
            Some(link) => self.to_worker.send(Ok(dispatch(frames::link(link)))).await.is_ok(),
            None => self.to_client.send(Ok(results(frames::results(batch)))).await.is_ok(),
        }
    }
}

fn dispatch(batch: v1::DispatchBatch) -> v1::SchedulerData {
    v1::SchedulerData { seq: 1, body: Some(v1::scheduler_data::Body::Dispatch(batch)) }
}

fn results(batch: v1::ResultBatch) -> v1::ClientResults {
    v1::ClientResults { seq: 1, body: Some(v1::client_results::Body::Results(batch)) }
}

fn taken<T: Send + 'static>(of: &In<T>) -> Result<Response<Reply<T>>, Status> {
    let receiver = of.lock().unwrap_or_else(PoisonError::into_inner).take();
    let receiver = receiver.ok_or_else(|| Status::resource_exhausted("the relay serves one client and one worker"))?;
    Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
}

/// Both services of one relay.
#[derive(Clone)]
struct Services(Arc<Relay>);

#[tonic::async_trait]
impl ClientService for Services {
    type ControlStream = Reply<v1::ClientEvents>;
    type DataStream = Reply<v1::ClientResults>;

    async fn control(&self, _: Request<Streaming<v1::ClientControl>>) -> Result<Response<Self::ControlStream>, Status> {
        Err(Status::unimplemented("the relay has data streams only"))
    }

    async fn data(&self, request: Request<Streaming<v1::ClientData>>) -> Result<Response<Self::DataStream>, Status> {
        let (relay, mut stream) = (self.0.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(v1::ClientData { body: Some(v1::client_data::Body::Append(append)), .. })) = stream.message().await {
                if !relay.appended(append).await {
                    return;
                }
            }
        });
        taken(&self.0.of_client)
    }
}

#[tonic::async_trait]
impl WorkerService for Services {
    type ControlStream = Reply<v1::SchedulerControl>;
    type DataStream = Reply<v1::SchedulerData>;

    async fn control(&self, _: Request<Streaming<v1::WorkerControl>>) -> Result<Response<Self::ControlStream>, Status> {
        Err(Status::unimplemented("the relay has data streams only"))
    }

    async fn data(&self, request: Request<Streaming<v1::WorkerData>>) -> Result<Response<Self::DataStream>, Status> {
        let (relay, mut stream) = (self.0.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(v1::WorkerData { body: Some(v1::worker_data::Body::Batch(batch)), .. })) = stream.message().await {
                if !relay.executed(batch).await {
                    return;
                }
            }
        });
        taken(&self.0.of_worker)
    }
}

fn runtime() -> Result<Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

/// The role of the relay.
pub fn serve() -> Result<()> {
    listen(Relay::new(false))
}

/// The role of the echo: one hop, no sink.
pub fn echo() -> Result<()> {
    listen(Relay::new(true))
}

fn listen(relay: Relay) -> Result<()> {
    runtime()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        ready(&format!("http://{}", listener.local_addr()?))?;
        let services = Services(Arc::new(relay));
        let clients = ClientServiceServer::new(services.clone());
        let workers = WorkerServiceServer::new(services);
        // A socket that was accepted inherits nothing: without this, small frames wait for acknowledgements.
        let incoming = tokio_stream::StreamExt::map(TcpListenerStream::new(listener), |socket| {
            socket.and_then(|socket| socket.set_nodelay(true).map(|()| socket))
        });
        Server::builder()
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .add_service(clients.max_decoding_message_size(MESSAGE_BYTES_MAX))
            .add_service(workers.max_decoding_message_size(MESSAGE_BYTES_MAX))
            .serve_with_incoming(incoming)
            .await?;
        Ok(())
    })
}

async fn connect(address: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(address.to_owned())?
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    Ok(endpoint.connect().await?)
}

/// The role of the sink.
pub fn sink(relay: &str) -> Result<()> {
    runtime()?.block_on(async {
        let (out, frames_out) = mpsc::channel(FRAMES);
        let mut service = WorkerServiceClient::new(connect(relay).await?).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut stream = service.data(ReceiverStream::new(frames_out)).await?.into_inner();
        ready("")?;
        while let Some(v1::SchedulerData { body: Some(v1::scheduler_data::Body::Dispatch(batch)), .. }) = stream.message().await? {
            let body = Some(v1::worker_data::Body::Batch(frames::execute(batch)));
            out.send(v1::WorkerData { seq: 1, body }).await?;
        }
        Ok(())
    })
}

/// The client's end, with the processes of the other ends.
pub struct Client {
    runtime: Runtime,
    out: mpsc::Sender<v1::ClientData>,
    results: Streaming<v1::ClientResults>,
    _others: Vec<Playing>,
}

impl Client {
    /// Two hops: a relay and a sink.
    pub fn of_relay() -> Result<Self> {
        let relay = Playing::start(Role::Relay, None)?;
        let sink = Playing::start(Role::Sink, Some(&relay.address))?;
        Self::connected(vec![relay, sink])
    }

    /// One hop: an echo.
    pub fn of_echo() -> Result<Self> {
        Self::connected(vec![Playing::start(Role::Echo, None)?])
    }

    fn connected(others: Vec<Playing>) -> Result<Self> {
        let runtime = runtime()?;
        let (out, frames_out) = mpsc::channel(FRAMES);
        let results = runtime.block_on(async {
            let mut service = ClientServiceClient::new(connect(&others[0].address).await?);
            service = service.max_decoding_message_size(MESSAGE_BYTES_MAX);
            anyhow::Ok(service.data(ReceiverStream::new(frames_out)).await?.into_inner())
        })?;
        Ok(Client { runtime, out, results, _others: others })
    }

    /// Seconds until `count` tasks have gone there and their results are back, in large frames.
    pub fn stream(&mut self, count: u32) -> Result<f64> {
        let (out, results) = (self.out.clone(), &mut self.results);
        self.runtime.block_on(async {
            let begin = Instant::now();
            let send = async move {
                for first in (0..count).step_by(frames::BATCH as usize) {
                    out.send(data(frames::append(first, frames::BATCH.min(count - first)))).await?;
                }
                anyhow::Ok(())
            };
            // A task of its own, so that frames are made while others are read.
            let sending = tokio::spawn(send);
            let mut back = 0;
            while back < count {
                back += frames::check(&next(results).await?)?;
            }
            sending.await??;
            Ok(begin.elapsed().as_secs_f64())
        })
    }

    /// Microseconds of `count` round trips, one at a time.
    pub fn round_trips(&mut self, count: u32) -> Result<Vec<f64>> {
        let (out, results) = (&self.out, &mut self.results);
        self.runtime.block_on(async {
            let mut all = Vec::with_capacity(count as usize);
            for index in 0..count {
                let begin = Instant::now();
                out.send(data(frames::append(index, 1))).await?;
                frames::check(&next(results).await?)?;
                all.push(begin.elapsed().as_secs_f64() * 1e6);
            }
            Ok(all)
        })
    }

    /// Seconds of `length` round trips between relay and sink, the client waiting for the last.
    pub fn chain(&mut self, length: u32) -> Result<f64> {
        let (out, results) = (&self.out, &mut self.results);
        self.runtime.block_on(async {
            let begin = Instant::now();
            out.send(data(v1::Append { last: true, count: length, ..frames::append(0, 1) })).await?;
            frames::check(&next(results).await?)?;
            Ok(begin.elapsed().as_secs_f64())
        })
    }
}

fn data(append: v1::Append) -> v1::ClientData {
    v1::ClientData { seq: 1, body: Some(v1::client_data::Body::Append(append)) }
}

async fn next(results: &mut Streaming<v1::ClientResults>) -> Result<v1::ResultBatch> {
    match results.message().await?.context("the relay ended")?.body {
        Some(v1::client_results::Body::Results(batch)) => Ok(batch),
        other => bail!("not a batch of results: {other:?}"),
    }
}
