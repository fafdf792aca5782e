//! A proxy in front of a real API server, which fails in the ways that API servers and what lies before them fail. Connections are
//! HTTP/1.1 over TLS on both sides, one there for each here. Requests with a token go on as they are; others go on as the administrator,
//! whose certificate does not pass through, and say themselves whom they are for.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Longest body of a request.
const BODY_MAX: usize = 4 << 20;

/// What a test knows of a request before it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Counted from one.
    pub number: u64,
    /// `GET`, `POST`, …
    pub method: String,
    /// With its query.
    pub path: String,
}

impl Asked {
    /// It changes something.
    pub fn changes(&self) -> bool {
        self.method != "GET" && !self.path.contains("dryRun=All") && !self.path.contains("accessreviews")
    }

    /// It is a watch.
    pub fn watches(&self) -> bool {
        self.path.contains("watch=true") || self.path.contains("watch=1")
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Pass,
    /// It is answered with this code, 429 with a time to wait; the server never sees it.
    Refuse(u16),
    /// The connection ends instead.
    Cut,
    /// It goes on, and instead of the answer the connection ends.
    LoseAnswer,
    /// It goes on after so long.
    Late(Duration),
    /// Of a watch: after so many events the next ones are lost, and then the server says that they are gone (410).
    Expire(u32),
    /// It goes on and is answered, and [`ApiProxy::stopped`] tells of it: nothing passes from then on.
    Stop,
}

type Decide = Box<dyn Fn(&Asked) -> Fate + Send + Sync>;

/// A proxy that runs until it is dropped.
pub struct ApiProxy {
    port: u16,
    shared: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

struct Shared {
    decide: Decide,
    count: AtomicU64,
    stopped: Mutex<Option<Asked>>,
    fates: Mutex<Vec<(Asked, Fate)>>,
    server: String,
    as_administrator: TlsConnector,
    as_asked: TlsConnector,
}

impl ApiProxy {
    /// Listens on a port of this machine. `admin` is the administrator's kubeconfig of a cluster in `cluster`, and `decide` says what
    /// becomes of each request.
    pub fn before(cluster: &Path, admin: &Path, decide: impl Fn(&Asked) -> Fate + Send + Sync + 'static) -> ApiProxy {
        let acceptor = acceptor(cluster);
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(certificates(&cluster.join("pki/ca.crt")));
        let crypto = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = || {
            let client =
                rustls::ClientConfig::builder_with_provider(crypto.clone()).with_safe_default_protocol_versions().unwrap();
            client.with_root_certificates(roots.clone())
        };
        let (user, address) = administrator(admin);
        let as_administrator = client().with_client_auth_cert(user.0, user.1).unwrap();
        let shared = Arc::new(Shared {
            decide: Box::new(decide),
            count: AtomicU64::new(0),
            stopped: Mutex::new(None),
            fates: Mutex::new(Vec::new()),
            server: address,
            as_administrator: TlsConnector::from(Arc::new(as_administrator)),
            as_asked: TlsConnector::from(Arc::new(client().with_no_client_auth())),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("0.0.0.0:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepting = shared.clone();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, shared) = (acceptor.clone(), accepting.clone());
                tokio::spawn(async move {
                    // Whoever ends its connection in the middle has its reasons.
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let _ = serve(stream, &shared).await;
                    }
                });
            }
        });
        ApiProxy { port, shared, _runtime: runtime }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The request of [`Fate::Stop`], once it was answered.
    pub fn stopped(&self) -> Option<Asked> {
        self.shared.stopped.lock().unwrap().clone()
    }

    /// The requests that did not simply pass, and how many there were in all.
    pub fn disturbed(&self) -> (Vec<(Asked, Fate)>, u64) {
        (self.shared.fates.lock().unwrap().clone(), self.shared.count.load(Ordering::Relaxed))
    }
}

/// Accepts TLS with a certificate that the API server of the cluster in `cluster`, and whoever trusts it, accepts.
pub(crate) fn acceptor(cluster: &Path) -> TlsAcceptor {
    let through = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/api-through");
    let output = Command::new(&through).arg(cluster).arg("certificate").output().unwrap();
    assert!(output.status.success(), "{}: {}", through.display(), String::from_utf8_lossy(&output.stderr));
    let certificate = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let chain = certificates(Path::new(&format!("{certificate}.crt")));
    let key = PrivateKeyDer::from_pem_file(format!("{certificate}.key")).unwrap();
    let crypto = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(crypto).with_safe_default_protocol_versions().unwrap();
    TlsAcceptor::from(Arc::new(server.with_no_client_auth().with_single_cert(chain, key).unwrap()))
}

fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(path).unwrap().map(Result::unwrap).collect()
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Who the administrator of a kubeconfig is, and where the server.
fn administrator(kubeconfig: &Path) -> (Identity, String) {
    let output = Command::new(kubeconfig.with_file_name("bin").join("kubectl"))
        .args(["config", "view", "--raw", "--minify", "--flatten", "-o", "json", "--kubeconfig"])
        .arg(kubeconfig)
        .output()
        .unwrap();
    let config: Value = serde_json::from_slice(&output.stdout).unwrap();
    let user = &config["users"][0]["user"];
    let decoded = |name: &str| through_base64(&["--decode"], user[name].as_str().unwrap().as_bytes());
    let chain = CertificateDer::pem_slice_iter(&decoded("client-certificate-data")).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(&decoded("client-key-data")).unwrap();
    let server = config["clusters"][0]["cluster"]["server"].as_str().unwrap();
    ((chain, key), server.trim_start_matches("https://").to_owned())
}

/// Bytes as base64, in one line.
pub fn base64(bytes: &[u8]) -> String {
    String::from_utf8(through_base64(&["--wrap=0"], bytes)).unwrap()
}

fn through_base64(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut process = Command::new("base64");
    process.args(arguments).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut process = process.spawn().unwrap();
    std::io::Write::write_all(&mut process.stdin.take().unwrap(), input).unwrap();
    process.wait_with_output().unwrap().stdout
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// The head of a request or an answer: its first line and its fields, as they are.
pub(crate) struct Head {
    text: Vec<u8>,
}

impl Head {
    pub(crate) async fn read(from: &mut (impl AsyncBufReadExt + Unpin)) -> std::io::Result<Option<Head>> {
        let mut text = Vec::new();
        loop {
            let before = text.len();
            let read = from.read_until(b'\n', &mut text).await?;
            if read == 0 {
                return Ok(None);
            }
            if text.len() - before == 2 && before > 0 {
                return Ok(Some(Head { text }));
            }
            if text.len() > 1 << 16 {
                return Err(std::io::Error::other("a head without an end"));
            }
        }
    }

    fn word(&self, at: usize) -> String {
        let text = String::from_utf8_lossy(&self.text);
        text.lines().next().and_then(|line| line.split(' ').nth(at)).unwrap_or_default().to_owned()
    }

    fn field(&self, name: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.text);
        let mut fields = text.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
    }

    /// Bytes that follow.
    pub(crate) fn length(&self) -> usize {
        self.field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)
    }
}

/// Serves the requests of one connection, one after the other.
async fn serve(here: impl Stream, shared: &Shared) -> std::io::Result<()> {
    let mut here = BufReader::new(here);
    let mut there: Option<BufReader<Box<dyn Stream>>> = None;
    while let Some(head) = Head::read(&mut here).await? {
        if head.length() > BODY_MAX || head.field("transfer-encoding").is_some() {
            return Err(std::io::Error::other("a body that this proxy does not take"));
        }
        let mut body = vec![0; head.length()];
        here.read_exact(&mut body).await?;
        let number = shared.count.fetch_add(1, Ordering::Relaxed) + 1;
        let asked = Asked { number, method: head.word(0), path: head.word(1) };
        let fate = if shared.stopped.lock().unwrap().is_some() { Fate::Cut } else { (shared.decide)(&asked) };
        if fate != Fate::Pass {
            shared.fates.lock().unwrap().push((asked.clone(), fate));
        }
        match fate {
            Fate::Cut => return Ok(()),
            Fate::Refuse(code) => {
                refuse(&mut here, code).await?;
                continue;
            }
            Fate::Late(time) => tokio::time::sleep(time).await,
            Fate::Pass | Fate::LoseAnswer | Fate::Expire(_) | Fate::Stop => {}
        }
        if there.is_none() {
            there = Some(BufReader::new(connect(shared, head.field("authorization").is_some()).await?));
        }
        let Some(server) = there.as_mut() else { return Ok(()) };
        server.write_all(&head.text).await?;
        server.write_all(&body).await?;
        server.flush().await?;
        let Some(answer) = Head::read(server).await? else { return Ok(()) };
        if fate == Fate::LoseAnswer {
            return Ok(());
        }
        here.write_all(&answer.text).await?;
        if answer.word(1) == "101" {
            here.flush().await?;
            return tokio::io::copy_bidirectional(&mut here, server).await.map(drop);
        }
        if answer.field("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            let events = if let Fate::Expire(events) = fate { Some(events) } else { None };
            if !chunks(server, &mut here, events.filter(|_| answer.word(1) == "200")).await? {
                return Ok(());
            }
        } else {
            let mut body = vec![0; answer.length()];
            server.read_exact(&mut body).await?;
            here.write_all(&body).await?;
        }
        here.flush().await?;
        if fate == Fate::Stop {
            *shared.stopped.lock().unwrap() = Some(asked);
            return Ok(());
        }
    }
    Ok(())
}

async fn connect(shared: &Shared, with_token: bool) -> std::io::Result<Box<dyn Stream>> {
    let stream = TcpStream::connect(&shared.server).await?;
    stream.set_nodelay(true)?;
    let host = shared.server.rsplit_once(':').map_or(shared.server.as_str(), |(host, _)| host).to_owned();
    let name = ServerName::try_from(host).map_err(std::io::Error::other)?;
    let connector = if with_token { &shared.as_asked } else { &shared.as_administrator };
    Ok(Box::new(connector.connect(name, stream).await?))
}

async fn refuse(here: &mut (impl AsyncWrite + Unpin), code: u16) -> std::io::Result<()> {
    let (reason, more) = match code {
        429 => ("TooManyRequests", "Retry-After: 1\r\n"),
        410 => ("Expired", ""),
        503 => ("ServiceUnavailable", ""),
        _ => ("InternalError", ""),
    };
    let body = status(code, reason);
    let head =
        format!("HTTP/1.1 {code} {reason}\r\nContent-Type: application/json\r\n{more}Content-Length: {}\r\n\r\n", body.len());
    here.write_all(head.as_bytes()).await?;
    here.write_all(body.as_bytes()).await?;
    here.flush().await
}

fn status(code: u16, reason: &str) -> String {
    format!(
        r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","message":"the proxy says {reason}","reason":"{reason}","code":{code}}}"#
    )
}

/// Passes a chunked body on, each chunk as it comes: an API server sends an event a chunk. With `events` only so many, then nothing until one
/// has been lost, then the news that it is gone. False when the connection can carry nothing more.
async fn chunks(
    server: &mut (impl AsyncBufReadExt + Unpin),
    here: &mut (impl AsyncWrite + Unpin),
    events: Option<u32>,
) -> std::io::Result<bool> {
    let mut passed = 0;
    loop {
        let mut size = Vec::new();
        server.read_until(b'\n', &mut size).await?;
        let text = String::from_utf8_lossy(&size);
        let length = usize::from_str_radix(text.trim(), 16).map_err(|_| std::io::Error::other("no chunk"))?;
        let mut chunk = vec![0; length + 2];
        server.read_exact(&mut chunk).await?;
        if length > 0 && events.is_some_and(|events| passed >= events) {
            let gone = format!("{{\"type\":\"ERROR\",\"object\":{}}}\n", status(410, "Expired"));
            here.write_all(format!("{:x}\r\n{gone}\r\n0\r\n\r\n", gone.len()).as_bytes()).await?;
            here.flush().await?;
            return Ok(false);
        }
        here.write_all(&size).await?;
        here.write_all(&chunk).await?;
        here.flush().await?;
        passed += 1;
        if length == 0 {
            return Ok(true);
        }
    }
}
