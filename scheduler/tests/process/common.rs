//! A real scheduler process for a test, and how its peers reach it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use scalable_proto::v1::worker_service_client::WorkerServiceClient;
use scalable_proto::{PROTOCOL, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

/// The token it is started with.
pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A scheduler process that ends with the test.
pub struct Scheduler {
    process: Child,
    /// Where it listens.
    pub address: String,
    /// Its line on standard output.
    pub ready: serde_json::Value,
    /// Its files.
    pub directory: tempfile::TempDir,
}

impl Scheduler {
    /// Starts one that never gives a worker up after a reset, and waits until it is ready.
    pub fn start() -> Scheduler {
        use std::os::unix::fs::OpenOptionsExt;
        let directory = tempfile::tempdir().unwrap();
        let token_file = directory.path().join("token");
        let mut file = std::fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(&token_file).unwrap();
        std::io::Write::write_all(&mut file, TOKEN.as_bytes()).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_scalable-scheduler"))
            .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--lifeline"])
            .arg("--token-file")
            .arg(&token_file)
            .arg("--state-dir")
            .arg(directory.path())
            .env("SCALABLE_LOST_AFTER_RESET_MS", "600000")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = ready["address"].as_str().unwrap().to_owned();
        Scheduler { process, address, ready, directory }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// A connection that shows the token.
pub type Authorized = InterceptedService<Channel, fn(Request<()>) -> Result<Request<()>, Status>>;

fn authorize(mut request: Request<()>) -> Result<Request<()>, Status> {
    let value = format!("Bearer {TOKEN}").parse().map_err(|_| Status::internal("the token is no header value"))?;
    request.metadata_mut().insert("authorization", value);
    Ok(request)
}

/// A connection to it.
pub async fn channel(scheduler: &Scheduler) -> Authorized {
    let channel = Channel::from_shared(scheduler.address.clone()).unwrap().connect().await.unwrap();
    InterceptedService::new(channel, authorize)
}

/// The first words of a peer.
pub fn hello(session: u64, epoch: u64, received: v1::Acks) -> v1::Hello {
    v1::Hello {
        protocol: Some(v1::ProtocolRange { min: *PROTOCOL.start(), max: *PROTOCOL.end() }),
        build: "test".to_owned(),
        session,
        epoch,
        received: Some(received),
        ..Default::default()
    }
}

/// Both ends of a worker's control stream, and what it was greeted with.
pub type ControlEnds = (mpsc::UnboundedSender<v1::WorkerControl>, Streaming<v1::SchedulerControl>, v1::Welcome);

/// A column of a dispatch as it is meant: one value stands for all tasks.
pub fn spread(column: &[u32], tasks: usize) -> Vec<u32> {
    if column.len() == 1 { vec![column[0]; tasks] } else { column.to_vec() }
}

/// Opens a worker's control stream.
pub async fn open_control(client: &mut WorkerServiceClient<Authorized>, hello: v1::Hello) -> ControlEnds {
    let (out, outgoing) = mpsc::unbounded_channel();
    let frame = v1::WorkerHello {
        hello: Some(hello),
        name: "w".to_owned(),
        pool: "p".to_owned(),
        components: vec!["*".to_owned()],
        resources: Some(v1::Resources { milli_cpus: 2000, ..Default::default() }),
        ..Default::default()
    };
    out.send(v1::WorkerControl { seq: 0, acks: None, body: Some(v1::worker_control::Body::Hello(frame)) }).unwrap();
    let mut incoming = client.control(UnboundedReceiverStream::new(outgoing)).await.unwrap().into_inner();
    match incoming.message().await.unwrap().unwrap().body {
        Some(v1::scheduler_control::Body::Welcome(welcome)) => (out, incoming, welcome),
        other => panic!("welcome expected, got {other:?}"),
    }
}

/// Opens a worker's data stream; the number is what the scheduler has received of it.
pub async fn open_data(
    client: &mut WorkerServiceClient<Authorized>,
    session: u64,
    epoch: u64,
    received: u64,
) -> (mpsc::UnboundedSender<v1::WorkerData>, Streaming<v1::SchedulerData>, u64) {
    let (out, outgoing) = mpsc::unbounded_channel();
    out.send(v1::WorkerData { seq: 0, body: Some(v1::worker_data::Body::Bind(v1::Bind { session, epoch, received })) }).unwrap();
    let mut incoming = client.data(UnboundedReceiverStream::new(outgoing)).await.unwrap().into_inner();
    match incoming.message().await.unwrap().unwrap().body {
        Some(v1::scheduler_data::Body::Bound(bound)) => (out, incoming, bound.received),
        other => panic!("bound expected, got {other:?}"),
    }
}
