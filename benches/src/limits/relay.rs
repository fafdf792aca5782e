//! The raw columnar stream over gRPC: a client, a relay and a sink, each a process of its own, with the streams, windows and
//! frames of the real ones. The relay translates columns and decides nothing.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, ready};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use scalable_proto::v1::client_service_client::ClientServiceClient;
use scalable_proto::v1::client_service_server::{ClientService, ClientServiceServer};
use scalable_proto::v1::worker_service_client::WorkerServiceClient;
use scalable_proto::v1::worker_service_server::{WorkerService, WorkerServiceServer};
use scalable_proto::{MESSAGE_BYTES_MAX, v1};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use super::frames;
use super::role::{self, Playing, Role};

/// As the real client, worker and scheduler have it.
const WINDOW_BYTES: u32 = 4 << 20;
/// Frames a client makes ahead.
const FRAMES: usize = 64;

type Reply<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a peer sends, read by whoever answers it: no task and no queue lies between what comes in on one connection and what
/// goes out on the other. Ends when the peer does.
enum Inbound<T> {
    /// The peer has not connected yet.
    Awaited(oneshot::Receiver<Streaming<T>>),
    Open(Box<Streaming<T>>),
}

impl<T> Stream for Inbound<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> Poll<Option<T>> {
        if let Inbound::Awaited(coming) = &mut *self {
            match ready!(Pin::new(coming).poll(context)) {
                Ok(stream) => *self = Inbound::Open(Box::new(stream)),
                Err(_) => return Poll::Ready(None),
            }
        }
        let Inbound::Open(stream) = &mut *self else { return Poll::Ready(None) };
        Poll::Ready(ready!(Pin::new(&mut **stream).poll_next(context)).and_then(Result::ok))
    }
}

/// A place where one peer's stream is left for the one who answers it.
struct Handover<T> {
    to: Mutex<Option<oneshot::Sender<Streaming<T>>>>,
    of: Mutex<Option<oneshot::Receiver<Streaming<T>>>>,
}

impl<T> Handover<T> {
    fn new() -> Self {
        let (sender, receiver) = oneshot::channel();
        Handover { to: Mutex::new(Some(sender)), of: Mutex::new(Some(receiver)) }
    }

    fn leave(&self, stream: Streaming<T>) -> Result<(), Status> {
        let sender = self.to.lock().unwrap_or_else(PoisonError::into_inner).take();
        let sender = sender.ok_or_else(|| Status::resource_exhausted("the relay serves one client and one worker"))?;
        sender.send(stream).map_err(|_| Status::unavailable("the other end has gone"))
    }

    fn take(&self) -> Result<Inbound<T>, Status> {
        let receiver = self.of.lock().unwrap_or_else(PoisonError::into_inner).take();
        receiver.map(Inbound::Awaited).ok_or_else(|| Status::resource_exhausted("the relay serves one client and one worker"))
    }
}

/// Which way frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From the client to the worker and back.
    Through,
    /// The same, but each frame of the client is the head of a chain: the next link goes to the worker when the one before is back.
    Chain,
    /// Back to the client at once.
    Echo,
}

/// Both services of the relay between one client and one worker.
struct Relay {
    way: Way,
    client: Handover<v1::ClientData>,
    worker: Handover<v1::WorkerData>,
    /// The end of a chain.
    ended: (mpsc::Sender<v1::ResultBatch>, Mutex<Option<mpsc::Receiver<v1::ResultBatch>>>),
}

impl Relay {
    fn new(way: Way) -> Self {
        let (sender, receiver) = mpsc::channel(1);
        Relay { way, client: Handover::new(), worker: Handover::new(), ended: (sender, Mutex::new(Some(receiver))) }
    }
}

fn appended(frame: v1::ClientData) -> Option<v1::Append> {
    match frame.body {
        Some(v1::client_data::Body::Append(append)) => Some(append),
        _ => None,
    }
}

fn executed(frame: v1::WorkerData) -> Option<v1::WorkerBatch> {
    match frame.body {
        Some(v1::worker_data::Body::Batch(batch)) => Some(batch),
        _ => None,
    }
}

fn dispatch(batch: v1::DispatchBatch) -> Result<v1::SchedulerData, Status> {
    Ok(v1::SchedulerData { seq: 1, body: Some(v1::scheduler_data::Body::Dispatch(batch)) })
}

fn results(batch: v1::ResultBatch) -> Result<v1::ClientResults, Status> {
    Ok(v1::ClientResults { seq: 1, body: Some(v1::client_results::Body::Results(batch)) })
}

#[tonic::async_trait]
impl ClientService for Relay {
    type ControlStream = Reply<v1::ClientEvents>;
    type DataStream = Reply<v1::ClientResults>;

    async fn control(&self, _: Request<Streaming<v1::ClientControl>>) -> Result<Response<Self::ControlStream>, Status> {
        Err(Status::unimplemented("the relay has data streams only"))
    }

    async fn data(&self, request: Request<Streaming<v1::ClientData>>) -> Result<Response<Self::DataStream>, Status> {
        self.client.leave(request.into_inner())?;
        let echoed = |append| results(frames::results(frames::execute(frames::dispatch(append))));
        let reply: Self::DataStream = match self.way {
            Way::Through => Box::pin(self.worker.take()?.filter_map(executed).map(|batch| results(frames::results(batch)))),
            Way::Echo => Box::pin(self.client.take()?.filter_map(appended).map(echoed)),
            Way::Chain => {
                let ended = self.ended.1.lock().unwrap_or_else(PoisonError::into_inner).take();
                let ended = ended.ok_or_else(|| Status::resource_exhausted("the relay serves one client"))?;
                Box::pin(ReceiverStream::new(ended).map(results))
            }
        };
        Ok(Response::new(reply))
    }
}

#[tonic::async_trait]
impl WorkerService for Relay {
    type ControlStream = Reply<v1::SchedulerControl>;
    type DataStream = Reply<v1::SchedulerData>;

    async fn control(&self, _: Request<Streaming<v1::WorkerControl>>) -> Result<Response<Self::ControlStream>, Status> {
        Err(Status::unimplemented("the relay has data streams only"))
    }

    async fn data(&self, request: Request<Streaming<v1::WorkerData>>) -> Result<Response<Self::DataStream>, Status> {
        self.worker.leave(request.into_inner())?;
        let appends = self.client.take()?.filter_map(appended);
        if self.way != Way::Chain {
            return Ok(Response::new(Box::pin(appends.map(|append| dispatch(frames::dispatch(append))))));
        }
        let (length, ended) = (Arc::new(AtomicU32::new(0)), self.ended.0.clone());
        let length_known = length.clone();
        let heads = appends.map(move |append| {
            length_known.store(append.count, Ordering::Relaxed);
            dispatch(frames::link(0))
        });
        let links = self.worker.take()?.filter_map(executed).filter_map(move |batch| {
            let next = batch.handle.first().map_or(0, |handle| *handle as u32) + 1;
            if next < length.load(Ordering::Relaxed) {
                return Some(dispatch(frames::link(next)));
            }
            // The client waits for the end of one chain before it begins another.
            let _ = ended.try_send(frames::results(batch));
            None
        });
        Ok(Response::new(Box::pin(heads.merge(links))))
    }
}

fn runtime() -> Result<Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

/// The role of the relay.
pub fn serve() -> Result<()> {
    listen(Relay::new(Way::Through))
}

/// The role of the relay that goes on with a chain by itself.
pub fn chain() -> Result<()> {
    listen(Relay::new(Way::Chain))
}

/// The role of the echo: one hop, no sink.
pub fn echo() -> Result<()> {
    listen(Relay::new(Way::Echo))
}

fn listen(relay: Relay) -> Result<()> {
    runtime()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        role::ready(&format!("http://{}", listener.local_addr()?))?;
        let relay = Arc::new(relay);
        let clients = ClientServiceServer::from_arc(relay.clone());
        let workers = WorkerServiceServer::from_arc(relay);
        // A socket that was accepted inherits nothing: without this, small frames wait for acknowledgements.
        let incoming =
            TcpListenerStream::new(listener).map(|socket| socket.and_then(|socket| socket.set_nodelay(true).map(|()| socket)));
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
        let mut service = WorkerServiceClient::new(connect(relay).await?).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let (there, coming) = oneshot::channel();
        let dispatched = |frame: v1::SchedulerData| match frame.body {
            Some(v1::scheduler_data::Body::Dispatch(batch)) => Some(batch),
            _ => None,
        };
        let (over, ended) = oneshot::channel::<()>();
        let answers = Inbound::Awaited(coming).filter_map(dispatched).map(move |batch| {
            // Dropped with this stream, which says that it is over.
            let _ = &over;
            v1::WorkerData { seq: 1, body: Some(v1::worker_data::Body::Batch(frames::execute(batch))) }
        });
        let stream = service.data(answers).await?.into_inner();
        role::ready("")?;
        let _ = there.send(stream);
        let _ = ended.await;
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

    /// Two hops, for chains.
    pub fn of_chain() -> Result<Self> {
        let relay = Playing::start(Role::ChainRelay, None)?;
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
            out.send(data(v1::Append { count: length, ..frames::append(0, 1) })).await?;
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
