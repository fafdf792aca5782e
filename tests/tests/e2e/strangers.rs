//! Peers that are not ours: without the token, from another version, or talking nonsense.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use scalable_proto::v1;
use scalable_proto::v1::client_service_client::ClientServiceClient;
use scalable_proto::v1::control_service_client::ControlServiceClient;
use scalable_proto::v1::worker_service_client::WorkerServiceClient;
use tests::{DEADLINE, Sandbox};
use tonic::transport::Channel;
use tonic::{Code, Request};

use super::by_hand::scheduler_and_monitoring;

/// Runs `talk` with a deadline on a runtime of its own.
pub fn talking<T>(talk: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(DEADLINE, talk).await.expect("an answer") })
}

pub async fn channel(address: &str) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

pub fn with_token<T>(message: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    request
}

/// What a plain HTTP/1.1 server answers: everything up to the end of the connection.
fn http(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // A server that resets the connection has answered too.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn get(address: &str, path: &str, headers: &str) -> String {
    http(address, &format!("GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n"))
}

#[test]
fn strangers_without_the_token() {
    let sandbox = Sandbox::new();
    let token = sandbox.token();
    let (scheduler, address, monitoring) = scheduler_and_monitoring(&sandbox);
    talking(async {
        let wrong = "f".repeat(32);
        let half = token[..16].to_owned();
        for shown in [None, Some(""), Some(wrong.as_str()), Some(half.as_str())] {
            let status = ControlServiceClient::new(channel(&address).await)
                .get_status(with_token(v1::StatusRequest::default(), shown))
                .await
                .unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated, "{shown:?}: {status}");
            let status = WorkerServiceClient::new(channel(&address).await)
                .control(with_token(tokio_stream_of(Vec::<v1::WorkerControl>::new()), shown))
                .await
                .map(|_| ())
                .unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated, "{shown:?}: {status}");
            let status = ClientServiceClient::new(channel(&address).await)
                .data(with_token(tokio_stream_of(Vec::<v1::ClientData>::new()), shown))
                .await
                .map(|_| ())
                .unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated, "{shown:?}: {status}");
        }
        ControlServiceClient::new(channel(&address).await)
            .get_status(with_token(v1::StatusRequest::default(), Some(&token)))
            .await
            .expect("the token is let in");
    });

    let host = format!("Host: {monitoring}\r\n");
    for open in ["/livez", "/readyz", "/metrics"] {
        let answer = get(&monitoring, open, &host);
        assert!(
            answer.starts_with("HTTP/1.1 200") || open == "/readyz" && answer.starts_with("HTTP/1.1 503"),
            "{open}: {answer}"
        );
        assert!(!answer.contains(&token), "{open}: {answer}");
    }
    let closed = get(&monitoring, "/api/v1/status", &host);
    assert!(closed.starts_with("HTTP/1.1 401") || closed.starts_with("HTTP/1.1 403"), "{closed}");
    let opened = get(&monitoring, "/api/v1/status", &format!("{host}Authorization: Bearer {token}\r\n"));
    assert!(opened.starts_with("HTTP/1.1 200"), "{opened}");
    // A page of somebody else's in the user's browser.
    for headers in ["Host: evil.example\r\n".to_owned(), format!("{host}Origin: http://evil.example\r\n")] {
        let answer = get(&monitoring, "/api/v1/status", &format!("{headers}Authorization: Bearer {token}\r\n"));
        assert!(answer.starts_with("HTTP/1.1 4"), "{headers}: {answer}");
    }
    still_there(&scheduler);
}

#[test]
fn another_version_of_the_protocol() {
    let sandbox = Sandbox::new();
    let token = sandbox.token();
    let (scheduler, address, _) = scheduler_and_monitoring(&sandbox);
    talking(async {
        for (min, max) in [(0, 0), (2, 9), (9, 1)] {
            let hello =
                v1::Hello { protocol: Some(v1::ProtocolRange { min, max }), build: "0.0.1".to_owned(), ..Default::default() };
            let worker = v1::WorkerHello {
                hello: Some(hello.clone()),
                name: "old".to_owned(),
                pool: "p".to_owned(),
                ..Default::default()
            };
            let first = v1::WorkerControl { body: Some(v1::worker_control::Body::Hello(worker)), ..Default::default() };
            let answer = WorkerServiceClient::new(channel(&address).await)
                .control(with_token(tokio_stream_of(vec![first]), Some(&token)))
                .await;
            let said = match answer {
                Err(status) => status.to_string(),
                Ok(stream) => end_of(stream.into_inner()).await,
            };
            assert!(said.to_lowercase().contains("protocol"), "{min}..{max}: {said}");

            let first = v1::ClientControl { body: Some(v1::client_control::Body::Hello(hello)), ..Default::default() };
            let answer = ClientServiceClient::new(channel(&address).await)
                .control(with_token(tokio_stream_of(vec![first]), Some(&token)))
                .await;
            let said = match answer {
                Err(status) => status.to_string(),
                Ok(stream) => end_of(stream.into_inner()).await,
            };
            assert!(said.to_lowercase().contains("protocol"), "{min}..{max}: {said}");
        }
    });
    still_there(&scheduler);
}

#[test]
fn nonsense_on_8786() {
    let sandbox = Sandbox::new();
    let token = sandbox.token();
    let (scheduler, address, monitoring) = scheduler_and_monitoring(&sandbox);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // Length 2^24 - 1, type DATA, on a stream that does not exist.
    let huge_frame = [preface.as_slice(), &[0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01], &[0; 4096]].concat();
    let noise: Vec<u8> = (0..200_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for nonsense in [b"".as_slice(), b"\0", b"GET / HTTP/1.1\r\n\r\n", preface, &huge_frame, &noise] {
        for peer in [&address, &monitoring] {
            let mut stream = TcpStream::connect(peer).unwrap();
            stream.set_write_timeout(Some(DEADLINE)).unwrap();
            // The peer may have hung up in the middle: that is its good right.
            let _ = stream.write_all(nonsense);
            let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
            let mut answer = [0; 256];
            let _ = stream.read(&mut answer);
        }
    }
    // Messages that are well-formed and make no sense.
    talking(async {
        let strange = vec![
            vec![],
            vec![v1::WorkerControl::default()],
            vec![v1::WorkerControl { seq: u64::MAX, acks: Some(v1::Acks { control: u64::MAX, data: u64::MAX }), body: None }],
            vec![v1::WorkerControl {
                body: Some(v1::worker_control::Body::Hello(v1::WorkerHello::default())),
                ..Default::default()
            }],
            vec![
                v1::WorkerControl {
                    body: Some(v1::worker_control::Body::Heartbeat(v1::Heartbeat::default())),
                    ..Default::default()
                };
                3
            ],
            vec![v1::WorkerControl {
                body: Some(v1::worker_control::Body::Hello(v1::WorkerHello {
                    hello: Some(v1::Hello {
                        protocol: Some(v1::ProtocolRange { min: 1, max: 1 }),
                        session: u64::MAX,
                        epoch: u64::MAX,
                        ..Default::default()
                    }),
                    name: "x".repeat(1 << 20),
                    pool: "\u{0}\n../..".to_owned(),
                    components: vec!["y".repeat(1 << 20); 4],
                    resources: Some(v1::Resources {
                        milli_cpus: u64::MAX,
                        memory_bytes: u64::MAX,
                        gpus: u64::MAX,
                        custom: vec![],
                    }),
                    ..Default::default()
                })),
                ..Default::default()
            }],
        ];
        for messages in strange {
            let shown = format!("{messages:.200?}");
            let answer = WorkerServiceClient::new(channel(&address).await)
                .control(with_token(tokio_stream_of(messages), Some(&token)))
                .await;
            if let Ok(stream) = answer {
                let said = end_of(stream.into_inner()).await;
                assert!(!said.is_empty(), "{shown}");
            }
        }
        // A message above the limit is refused and not buffered.
        let large = v1::CancelRequest { run: "r".repeat(64 << 20), ..Default::default() };
        let status =
            ControlServiceClient::new(channel(&address).await).cancel(with_token(large, Some(&token))).await.unwrap_err();
        assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted | Code::Unknown | Code::Internal), "{status}");
    });
    still_there(&scheduler);
    // And it still works.
    let worker =
        sandbox.start("scalable-worker", &["--scheduler", &address, "--token-file", "token", "--cpus", "1", "--memory", "1G"]);
    sandbox.manifest("targets: { local: { provider: local } }\ntasks:\n  a: { command: [\"true\"] }\n");
    sandbox.scalable(&["run", "--address", &address, "--token-file", "token"]).expect(0);
    still_there(&worker);
}

#[test]
fn a_token_that_is_no_secret() {
    use std::os::unix::fs::PermissionsExt;
    let sandbox = Sandbox::new();
    sandbox.token();
    std::fs::set_permissions(sandbox.path("token"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let arguments = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--token-file", "token"];
    let finished = sandbox.start("scalable-scheduler", &arguments).wait().calm().says(&["0600"]);
    assert_ne!(finished.code, 0);
}

#[test]
fn a_port_in_use() {
    let sandbox = Sandbox::new();
    sandbox.token();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let arguments = ["--listen", &address, "--http", "127.0.0.1:0", "--token-file", "token"];
    let finished = sandbox.start("scalable-scheduler", &arguments).wait().calm().says(&[&address]);
    assert_ne!(finished.code, 0);
}

fn tokio_stream_of<T>(messages: Vec<T>) -> impl tonic::codegen::tokio_stream::Stream<Item = T> + Send + 'static
where
    T: Send + 'static,
{
    tonic::codegen::tokio_stream::iter(messages)
}

/// What a stream says until it ends, as text.
async fn end_of<T: std::fmt::Debug>(mut stream: tonic::Streaming<T>) -> String {
    let mut said = String::new();
    loop {
        match stream.message().await {
            Ok(Some(message)) => said.push_str(&format!("{message:?} ")),
            Ok(None) => return format!("{said}end"),
            Err(status) => return format!("{said}{status}"),
        }
    }
}

/// Asserts that a program runs and has not panicked.
#[track_caller]
fn still_there(running: &tests::Running) {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", running.pid())).unwrap();
    assert!(!stat.contains(") Z "), "it has ended:\n{}", running.stderr());
    assert!(!running.stderr().contains("panicked at"), "{}", running.stderr());
}
