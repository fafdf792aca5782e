//! A scheduler with credentials, as strangers, roles and workers see it: every call that reflection names, every page.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use http::uri::PathAndQuery;
use prost::Message;
use scalable_proto::v1;
use scalable_proto::v1::certificate_service_client::CertificateServiceClient;
use scalable_proto::v1::worker_service_client::WorkerServiceClient;
use scalable_tls::{
    Authority, Certificate, Connector, KeyRequest, NewCluster, Trust, Validity, WorkerIdentity, file, write_private,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_reflection::pb::v1 as reflection;

use crate::common::hello;

const HOUR: Duration = Duration::from_secs(3600);

/// An address of this machine that is not loopback; loopback where it has no other.
fn address() -> IpAddr {
    // Connecting a socket for datagrams sends nothing: it chooses the address that would be used.
    let chosen = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr()));
    chosen.map_or(IpAddr::from([127, 0, 0, 1]), |address| address.ip())
}

struct Scheduler {
    process: Child,
    ready: serde_json::Value,
    cluster: NewCluster,
    trust: Trust,
    ip: IpAddr,
    directory: tempfile::TempDir,
}

impl Scheduler {
    fn start() -> Scheduler {
        let cluster = NewCluster::create("c-here").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let credentials = directory.path().join("credentials");
        std::fs::create_dir(&credentials).unwrap();
        for (name, content) in cluster.scheduler_files() {
            write_private(&credentials.join(name), &content).unwrap();
        }
        let ip = address();
        let at = format!("{ip}:0");
        let mut process = Command::new(env!("CARGO_BIN_EXE_scalable-scheduler"))
            .args(["--listen", &at, "--store", &at, "--https", &at, "--http", "127.0.0.1:0", "--trust-loopback", "--lifeline"])
            .args(["--http-name", "scheduler.example"])
            .arg("--credentials")
            .arg(&credentials)
            .arg("--admit")
            .arg(directory.path().join("admitted"))
            .arg("--state-dir")
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
        let trust = Trust::new("c-here", cluster.authority().certificate()).unwrap();
        Scheduler { process, ready, cluster, trust, ip, directory }
    }

    fn token(&self, name: &str) -> String {
        self.cluster.scheduler_files()[name].clone()
    }

    /// A connection that shows this certificate.
    async fn channel(&self, trust: &Trust, own: Option<&Certificate>) -> Result<Channel, tonic::transport::Error> {
        let url = self.ready["address"].as_str().unwrap().replacen("https", "http", 1);
        Endpoint::from_shared(url).unwrap().connect_with_connector(Connector::new(trust, own).unwrap()).await
    }

    fn admit(&self, name: &str, uid: &str, at: &str) {
        std::fs::write(self.directory.path().join("admitted"), format!("{name} {uid} {at}\n")).unwrap();
    }

    fn at(&self, site: &str) -> SocketAddr {
        self.ready[site].as_str().unwrap().split_once("://").unwrap().1.parse().unwrap()
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

fn worker_certificate(authority: &Authority, name: &str, validity: Validity) -> Certificate {
    let leaf = authority.worker(&WorkerIdentity::new(name, "u").unwrap(), validity).unwrap();
    let certificate = Certificate::default();
    certificate.set(vec![leaf.certificate], leaf.key, HOUR).unwrap();
    certificate
}

fn with_token<T>(message: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    request
}

/// Makes a call with an empty message and says how it ended.
async fn call(channel: &Channel, path: &str, token: Option<&str>) -> Status {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let messages = with_token(tokio_stream::once(()), token);
    let path: PathAndQuery = path.parse().unwrap();
    match client.streaming(messages, path, codec).await {
        Err(status) => status,
        Ok(answer) => match answer.into_inner().message().await {
            Ok(_) => Status::ok("answered"),
            Err(status) => status,
        },
    }
}

/// Every method of every service, as the scheduler itself lists them.
async fn methods(channel: &Channel, token: &str) -> BTreeSet<String> {
    use reflection::server_reflection_request::MessageRequest;
    use reflection::server_reflection_response::MessageResponse;
    let mut client = reflection::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let (ask, asked) = mpsc::unbounded_channel();
    let send = |message| ask.send(reflection::ServerReflectionRequest { host: String::new(), message_request: Some(message) });
    send(MessageRequest::ListServices(String::new())).unwrap();
    let request = with_token(UnboundedReceiverStream::new(asked), Some(token));
    let mut answers = client.server_reflection_info(request).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(services)) = answers.next().await.unwrap().unwrap().message_response else {
        panic!("a list of services was asked for");
    };
    let mut paths = BTreeSet::new();
    for service in services.service {
        send(MessageRequest::FileContainingSymbol(service.name.clone())).unwrap();
        let Some(MessageResponse::FileDescriptorResponse(found)) = answers.next().await.unwrap().unwrap().message_response else {
            panic!("nothing is known of {}", service.name);
        };
        for file in found.file_descriptor_proto {
            let file = prost_types::FileDescriptorProto::decode(file.as_slice()).unwrap();
            for of in file.service.iter().filter(|of| service.name == format!("{}.{}", file.package(), of.name())) {
                paths.extend(of.method.iter().map(|method| format!("/{}/{}", service.name, method.name())));
            }
        }
    }
    paths
}

#[tokio::test]
async fn every_call_refuses_whom_it_should() {
    let scheduler = Scheduler::start();
    let here = scheduler.cluster.authority();
    let other = NewCluster::create("c-here").unwrap();
    let nobody = scheduler.channel(&scheduler.trust, None).await.unwrap();
    let paths = methods(&nobody, &scheduler.token(file::ADMIN_TOKEN)).await;
    let known = paths.iter().filter(|path| path.starts_with("/scalable.v1.")).count();
    assert!(known >= 12, "{paths:?}");

    let of_other = other.scheduler_files()[file::ADMIN_TOKEN].clone();
    let refused = |status: &Status| matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied);
    for path in &paths {
        for token in [None, Some("0123456789abcdef0123456789abcdef"), Some(""), Some(of_other.as_str())] {
            let status = call(&nobody, path, token).await;
            assert_eq!(status.code(), Code::Unauthenticated, "{path} {token:?}: {status}");
        }
    }
    // No more than each role may. Monitoring is answered on 8787 alone.
    let certified = scheduler.channel(&scheduler.trust, Some(&worker_certificate(here, "w", Validity::of(HOUR)))).await.unwrap();
    for path in paths.iter().filter(|path| !path.contains("MonitoringService")) {
        let work = path.contains("WorkerService");
        let sign = path.contains("CertificateService");
        let submits = ["/Cancel", "/OfferContent", "/ListRunFiles", "/AcknowledgeRun", "/ReadLog"];
        let submit = path.contains("ClientService") || submits.iter().any(|name| path.ends_with(name));
        let end = path.ends_with("/Shutdown");
        let look = !(work || sign || submit || end);
        for (name, may) in [
            (file::VIEW_TOKEN, look),
            (file::SUBMIT_TOKEN, look || submit),
            (file::BOOTSTRAP_TOKEN, sign),
            (file::ADMIN_TOKEN, look || submit || end),
        ] {
            if end && may {
                continue;
            }
            let status = call(&nobody, path, Some(&scheduler.token(name))).await;
            assert_eq!(!refused(&status), may, "{path} with {name}: {status}");
        }
        let status = call(&certified, path, None).await;
        assert_eq!(!refused(&status), work || sign, "{path} with a worker's certificate: {status}");
    }
    assert_eq!(call(&nobody, "/scalable.v1.ControlService/Nothing", None).await.code(), Code::Unauthenticated);

    // Certificates of another cluster, and those that have expired, do not get as far as a call.
    let past = Validity { from: SystemTime::now() - 2 * HOUR, until: SystemTime::now() - HOUR };
    for bad in [worker_certificate(other.authority(), "w", Validity::of(HOUR)), worker_certificate(here, "w", past)] {
        if let Ok(channel) = scheduler.channel(&scheduler.trust, Some(&bad)).await {
            let mut client = Grpc::new(channel);
            let failed = client.ready().await.is_err() || {
                let codec = tonic_prost::ProstCodec::<(), ()>::default();
                let path = PathAndQuery::from_static("/scalable.v1.WorkerService/Control");
                client
                    .streaming(with_token(tokio_stream::once(()), None), path, codec)
                    .await
                    .is_err_and(|status| !matches!(status.code(), Code::InvalidArgument | Code::Ok))
            };
            assert!(failed);
        }
    }
    let foreign = Trust::new("c-here", other.authority().certificate()).unwrap();
    assert!(scheduler.channel(&foreign, None).await.is_err(), "another authority's scheduler is not this one");
    let mut plain = TcpStream::connect(scheduler.at("address")).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // It may be reset before it has said anything.
    let _ = plain.read_to_end(&mut answer).await;
    assert!(answer.first().is_none_or(|kind| *kind == 0x15), "an alert of TLS and nothing else: {answer:?}");
}

async fn sign(channel: &Channel, token: Option<&str>, name: &str, uid: &str) -> Result<Certificate, Status> {
    let key = KeyRequest::create().unwrap();
    let asked = v1::SignWorkerRequest { name: name.to_owned(), uid: uid.to_owned(), request: key.request().to_vec().into() };
    let reply = CertificateServiceClient::new(channel.clone()).sign_worker(with_token(asked, token)).await?.into_inner();
    let certificate = Certificate::default();
    let chain = reply.chain.iter().map(|part| part.to_vec()).collect();
    key.use_in(&certificate, chain, Duration::from_millis(reply.lifetime_ms)).unwrap();
    Ok(certificate)
}

/// Registers; the streams live as long as what is returned.
async fn register(
    channel: &Channel,
    name: &str,
) -> Result<(mpsc::UnboundedSender<v1::WorkerControl>, tonic::Streaming<v1::SchedulerControl>, v1::Welcome), Status> {
    let (out, outgoing) = mpsc::unbounded_channel();
    let frame = v1::WorkerHello {
        hello: Some(hello(0, 0, v1::Acks::default())),
        name: name.to_owned(),
        pool: "p".to_owned(),
        components: vec!["*".to_owned()],
        resources: Some(v1::Resources { milli_cpus: 1000, ..Default::default() }),
        ..Default::default()
    };
    out.send(v1::WorkerControl { seq: 0, acks: None, body: Some(v1::worker_control::Body::Hello(frame)) }).unwrap();
    let mut client = WorkerServiceClient::new(channel.clone());
    let mut incoming = client.control(UnboundedReceiverStream::new(outgoing)).await?.into_inner();
    match incoming.message().await?.and_then(|frame| frame.body) {
        Some(v1::scheduler_control::Body::Welcome(welcome)) => Ok((out, incoming, welcome)),
        other => panic!("welcome expected, got {other:?}"),
    }
}

async fn bind(channel: &Channel, welcome: &v1::Welcome) -> Result<(), Status> {
    let (session, epoch) = (welcome.session, welcome.epoch);
    let bind = v1::WorkerData { seq: 0, body: Some(v1::worker_data::Body::Bind(v1::Bind { session, epoch, received: 0 })) };
    let mut client = WorkerServiceClient::new(channel.clone());
    client.data(tokio_stream::once(bind)).await?.into_inner().message().await.map(drop)
}

#[tokio::test]
async fn a_certificate_is_signed_for_whom_it_should_be_and_opens_one_workers_streams() {
    let scheduler = Scheduler::start();
    let nobody = scheduler.channel(&scheduler.trust, None).await.unwrap();
    let bootstrap = scheduler.token(file::BOOTSTRAP_TOKEN);
    let code = |got: Result<Certificate, Status>| got.map(drop).unwrap_err().code();
    let ask = async |name: &str, uid: &str| sign(&nobody, Some(&bootstrap), name, uid).await;

    assert_eq!(code(ask("w", "u").await), Code::Unavailable, "not observed yet");
    scheduler.admit("w", "u", "192.0.2.7");
    assert_eq!(code(ask("w", "u").await), Code::PermissionDenied, "from another address");
    scheduler.admit("w", "u", &scheduler.ip.to_string());
    assert_eq!(code(ask("w", "other").await), Code::PermissionDenied, "another uid");
    assert_eq!(code(ask("w/x", "u").await), Code::InvalidArgument);
    assert_eq!(code(ask("", "u").await), Code::InvalidArgument);
    let certificate = ask("w", "u").await.unwrap();

    let worker = scheduler.channel(&scheduler.trust, Some(&certificate)).await.unwrap();
    assert_eq!(register(&worker, "somebody").await.map(drop).unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(code(sign(&worker, None, "w", "u").await), Code::FailedPrecondition, "it is not at work yet");
    let (_out, _incoming, welcome) = register(&worker, "w").await.unwrap();
    assert_eq!(code(ask("w", "u").await), Code::Unavailable, "its session is live");
    bind(&worker, &welcome).await.unwrap();

    // Another worker's session is another worker's, although its number is known.
    let other = worker_certificate(scheduler.cluster.authority(), "other", Validity::of(HOUR));
    let other = scheduler.channel(&scheduler.trust, Some(&other)).await.unwrap();
    assert_eq!(bind(&other, &welcome).await.unwrap_err().code(), Code::FailedPrecondition);

    // It renews for itself, whatever the provider sees, and for nobody else.
    std::fs::remove_file(scheduler.directory.path().join("admitted")).unwrap();
    let renewed = sign(&worker, None, "w", "u").await.unwrap();
    scheduler.channel(&scheduler.trust, Some(&renewed)).await.unwrap();
    assert_eq!(code(sign(&worker, None, "w", "u2").await), Code::PermissionDenied);
    assert_eq!(code(sign(&worker, None, "other", "u").await), Code::PermissionDenied);
}

/// Sends one request and returns (status, whole answer).
async fn ask(scheduler: &Scheduler, site: &str, request_line: &str, headers: &[&str]) -> (u16, String) {
    let at = scheduler.at(site);
    let host = if headers.iter().any(|header| header.starts_with("Host:")) { String::new() } else { format!("Host: {at}\r\n") };
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let request = format!("{request_line} HTTP/1.1\r\n{host}{headers}Connection: close\r\n\r\n");
    let mut tcp = TcpStream::connect(at).await.unwrap();
    let mut answer = String::new();
    if site == "http" {
        tcp.write_all(request.as_bytes()).await.unwrap();
        tcp.read_to_string(&mut answer).await.unwrap();
    } else {
        let mut tls = scheduler.trust.to_peers(None).unwrap().dial(tcp).await.unwrap();
        tls.write_all(request.as_bytes()).await.unwrap();
        // Whether TLS is closed in good order is not what is asked here.
        let _ = tls.read_to_string(&mut answer).await;
    }
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

#[tokio::test]
async fn pages_answer_whom_they_should_on_both_sites() {
    let scheduler = Scheduler::start();
    assert!(scheduler.ready["link"].is_null(), "a pod's output is a log");
    let bearer = |name: &str| format!("Authorization: Bearer {}", scheduler.token(name));
    let (view, bootstrap) = (bearer(file::VIEW_TOKEN), bearer(file::BOOTSTRAP_TOKEN));
    let (view, bootstrap) = (view.as_str(), bootstrap.as_str());
    for (site, line, headers, status) in [
        // What a port-forward reaches: whoever may forward may read, by whatever port of their own.
        ("http", "GET /livez", vec![], 200),
        ("http", "GET /metrics", vec![], 200),
        ("http", "GET /", vec![], 200),
        ("http", "GET /", vec!["Host: localhost:8787"], 200),
        ("http", "GET /api/v1/status", vec!["Host: localhost:18787"], 200),
        ("http", "GET /api/v1/status", vec!["Host: [::1]:18787", "Origin: http://[::1]:18787"], 200),
        ("http", "GET /api/v1/status", vec!["Host: localhost:8787", "Origin: http://localhost:3000"], 403),
        ("http", "GET /api/v1/status", vec!["Host: localhost:8787", "Origin: null"], 403),
        ("http", "GET /", vec!["Host: evil.example"], 421),
        ("http", "GET /", vec!["Host: evil.example:8787"], 421),
        ("http", "GET /", vec!["Host: localhost.evil.example"], 421),
        ("http", "GET /", vec!["Host: scheduler.example"], 200),
        ("http", "POST /api/v1/link", vec![], 401),
        ("http", "POST /api/v1/link", vec![view], 200),
        // What the network reaches: probes need nothing, everything else a role.
        ("https", "GET /livez", vec![], 200),
        ("https", "GET /readyz", vec![], 200),
        ("https", "GET /metrics", vec![], 401),
        ("https", "GET /metrics", vec![view], 200),
        ("https", "GET /", vec![], 401),
        ("https", "GET /api/v1/status", vec![], 401),
        ("https", "GET /api/v1/status", vec!["Authorization: Bearer nothing"], 401),
        ("https", "GET /api/v1/status", vec![bootstrap], 401),
        ("https", "GET /api/v1/status", vec!["Cookie: scalable="], 401),
        ("https", "GET /api/v1/status", vec![view], 200),
        ("https", "GET /api/v1/status", vec![view, "Host: scheduler.example"], 200),
        ("https", "GET /api/v1/status", vec![view, "Host: scheduler.example", "Origin: https://scheduler.example"], 200),
        ("https", "GET /api/v1/status", vec![view, "Host: scheduler.example", "Origin: https://evil.example"], 403),
        ("https", "GET /livez", vec!["Host: evil.example"], 421),
        ("https", "GET /login?once=guess", vec![], 401),
        ("https", "POST /api/v1/link", vec![], 401),
        ("https", "POST /scalable.v1.MonitoringService/GetCluster", vec![], 200),
    ] {
        let (got, answer) = ask(&scheduler, site, line, &headers).await;
        assert_eq!(got, status, "{site} {line} {headers:?}\n{answer}");
        if line.contains("MonitoringService") {
            assert!(answer.contains("grpc-status: 16"), "{answer}");
        }
    }
    let (_, link) = ask(&scheduler, "https", "POST /api/v1/link", &[view]).await;
    let path = link.lines().last().unwrap().splitn(4, '/').nth(3).unwrap();
    let (status, answer) = ask(&scheduler, "https", &format!("GET /{path}"), &[]).await;
    assert!(status == 303 && answer.contains("; Secure"), "{answer}");
}
