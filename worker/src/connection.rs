//! One connection to the scheduler: a TCP connection with one stream in each direction. It carries frames and knows nothing of
//! what they mean.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use scalable_proto::MESSAGE_BYTES_MAX;
use scalable_proto::v1::worker_service_client::WorkerServiceClient;
use scalable_proto::v1::{SchedulerControl, SchedulerData, WorkerControl, WorkerData};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::secured::{Secured, may_be_expired};

/// Window of a stream and of a connection, bytes.
const WINDOW_BYTES: u32 = 4 << 20;
const CONNECT_MAX: Duration = Duration::from_secs(5);
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(5);
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(10);

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Registration, heartbeat, cancel, retract, acknowledgements.
    Control,
    /// Batches.
    Data,
}

/// Where the scheduler is and what opens its door.
#[derive(Clone, Debug)]
pub struct Target {
    /// `http://host:port`.
    pub url: String,
    /// Read anew for every connection: a scheduler that was started again has another token.
    pub token_file: Option<PathBuf>,
    /// Instead: a certificate, over TLS.
    pub secured: Option<Arc<Secured>>,
}

/// Something from a connection.
#[derive(Debug)]
pub struct Arrived {
    /// Which.
    pub connection: Connection,
    /// Which opening of it.
    pub generation: u64,
    /// What.
    pub what: What,
}

/// What a connection has to say.
#[derive(Debug)]
pub enum What {
    /// A frame on control.
    Control(Box<SchedulerControl>),
    /// A frame on data.
    Data(Box<SchedulerData>),
    /// It is over.
    Closed {
        /// The scheduler's code, where it gave one.
        code: Option<Code>,
        /// Words for people.
        reason: String,
    },
}

impl Target {
    /// How connections are made.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when the address is none.
    pub fn endpoint(&self) -> Result<Endpoint, Status> {
        // With a connector of our own, which makes it TLS, the transport is told of plain http.
        let url = self.url.replacen("https://", "http://", usize::from(self.secured.is_some()));
        Ok(Endpoint::from_shared(url)
            .map_err(|error| Status::invalid_argument(format!("{} is no address: {error}", self.url)))?
            .connect_timeout(CONNECT_MAX)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
            .keep_alive_timeout(KEEP_ALIVE_MAX)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES))
    }

    async fn connect(&self) -> Result<WorkerServiceClient<Channel>, Status> {
        let endpoint = self.endpoint()?;
        let channel = match &self.secured {
            None => endpoint.connect().await.map_err(|error| Status::unavailable(sources(&error)))?,
            Some(secured) => secured.connect(endpoint).await?,
        };
        Ok(WorkerServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// A stream that was refused because its certificate has expired is opened again with a new one.
    fn refused(&self, status: Status) -> Status {
        match &self.secured {
            Some(secured) if may_be_expired(&status) => {
                secured.distrusted();
                Status::unavailable(status.message())
            }
            _ => status,
        }
    }

    fn request<T>(&self, frames: mpsc::UnboundedReceiver<T>) -> Result<Request<UnboundedReceiverStream<T>>, Status> {
        let mut request = Request::new(UnboundedReceiverStream::new(frames));
        if let Some(file) = &self.token_file {
            let token = std::fs::read_to_string(file)
                .map_err(|error| Status::unavailable(format!("token file {}: {error}", file.display())))?;
            let value = format!("Bearer {}", token.trim()).parse();
            let value = value.map_err(|_| Status::unauthenticated(format!("token file {} holds no token", file.display())))?;
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// An error with its causes, as one line.
pub(crate) fn sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Carries the control stream until it ends.
pub async fn control(
    target: Target,
    frames: mpsc::UnboundedReceiver<WorkerControl>,
    generation: u64,
    inbox: mpsc::Sender<Arrived>,
) {
    let opened = async {
        let request = target.request(frames)?;
        let mut client = target.connect().await?;
        client.control(request).await.map_err(|status| target.refused(status))
    };
    let stream = opened.await.map(tonic::Response::into_inner);
    carry(stream, Connection::Control, generation, inbox, |frame| What::Control(Box::new(frame))).await;
}

/// Carries the data stream until it ends.
pub async fn data(target: Target, frames: mpsc::UnboundedReceiver<WorkerData>, generation: u64, inbox: mpsc::Sender<Arrived>) {
    let opened = async {
        let request = target.request(frames)?;
        let mut client = target.connect().await?;
        client.data(request).await.map_err(|status| target.refused(status))
    };
    let stream = opened.await.map(tonic::Response::into_inner);
    carry(stream, Connection::Data, generation, inbox, |frame| What::Data(Box::new(frame))).await;
}

async fn carry<T>(
    stream: Result<tonic::Streaming<T>, Status>,
    connection: Connection,
    generation: u64,
    inbox: mpsc::Sender<Arrived>,
    wrap: fn(T) -> What,
) {
    let closed = match stream {
        Err(status) => Some(status),
        Ok(mut stream) => loop {
            match stream.message().await {
                // A full inbox holds the stream back: the peer's window does the rest.
                Ok(Some(frame)) => {
                    if inbox.send(Arrived { connection, generation, what: wrap(frame) }).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break None,
                Err(status) => break Some(status),
            }
        },
    };
    let what = match closed {
        None => What::Closed { code: None, reason: "the scheduler ended the stream".to_owned() },
        Some(status) => What::Closed { code: Some(status.code()), reason: status.message().to_owned() },
    };
    // The agent is ending when nobody listens.
    let _ = inbox.send(Arrived { connection, generation, what }).await;
}
