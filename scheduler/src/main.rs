//! `scalable-scheduler`: puts the parts together and keeps them until the end.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Parser;
use scalable_core::scheduler::Config;
use scalable_proto::v1;
use scalable_provider::local::{LocalOptions, LocalProvider, LocalWorkers};
use scalable_scheduler::auth::Token;
use scalable_scheduler::content_store::ContentStore;
use scalable_scheduler::door::Door;
use scalable_scheduler::options::Options;
use scalable_scheduler::output_store::OutputStore;
use scalable_scheduler::reactor::{Identity, Lifetime, Reactor, Stop, Surroundings};
use scalable_scheduler::{http, provision, records, serve, snapshot};
use scalable_store::ObjectKey;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

/// Window of every stream and connection: enough for the largest frame on loopback and in a cluster.
const HTTP2_WINDOW_BYTES: u32 = 4 << 20;
/// Longest wait for the last frames to go out, on loopback.
const GOODBYE_WITHIN: Duration = Duration::from_millis(200);

fn main() -> Result<()> {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_env("SCALABLE_LOG").unwrap_or_else(|_| "info".into()))
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(run(options))
}

async fn run(options: Options) -> Result<()> {
    for (what, address) in [("--listen", options.listen), ("--http", options.http)] {
        if !address.ip().is_loopback() {
            bail!("{what} {address}: only loopback is allowed, because nothing beyond it is served without TLS");
        }
    }
    let token = Token::read(&options.token_file)?;
    let listener = bind(options.listen, options.any_port).await?;
    let http_listener = bind(options.http, options.any_port).await?;
    let (address, http_address) = (listener.local_addr()?, http_listener.local_addr()?);
    let token_file = std::path::absolute(&options.token_file).context("resolve the token file")?;
    let object_key = ObjectKey::random().context("draw a key for objects")?;
    let store_at = SocketAddr::new(options.listen.ip(), 0);
    let store = ContentStore::start(&options.state_dir.join("store"), store_at, object_key.clone())
        .with_context(|| format!("start the store in {}", options.state_dir.display()))?;
    let limit = options.store_limit.unwrap_or(u64::MAX);
    let (outputs, copied) =
        OutputStore::start(store.index().clone(), object_key.clone(), limit).context("start the output store")?;
    let identity = Identity {
        cluster_id: random_hex(16)?,
        epoch: u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_millis())?,
        address: format!("http://{address}"),
        http: format!("http://{http_address}"),
        token_file: token_file.display().to_string(),
        heartbeat_ms: options.heartbeat_ms,
        object_key,
        store_address: store.address().to_string(),
    };

    let (publisher, reader) = snapshot::channel();
    let door = Door::default();
    let link = door.make_link().map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    let link = http::link(http_address, &link);
    serve_http(http::router(reader, token.clone(), door, http_address), http_listener)?;

    let (seen, stop_provider) = start_provider(&options, &identity.address, &token_file)?;
    let (record_handle, recorded, records_thread) = records::start().context("start the records' thread")?;
    let (stop_sender, stop) = mpsc::channel(4);
    watch_signals(stop_sender.clone())?;
    if options.lifeline {
        watch_lifeline(stop_sender.clone())?;
    }

    let (inbound_sender, inbound) = mpsc::channel(serve::INBOUND_FRAMES_MAX);
    let routes = serve::Services::new(inbound_sender, store.into(), outputs.clone()).router(&token).await.context("build the services")?;
    let (served, ended) = oneshot::channel::<()>();
    // The server's own option for this is for listeners that it binds itself. Without it the end of a large frame waits 40 ms for
    // an acknowledgement that the peer delays.
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(HTTP2_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_WINDOW_BYTES)
        .max_concurrent_streams(256)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, async {
            let _ = ended.await;
        });
    let server = tokio::spawn(server);

    let mut config = Config::standard();
    config.suspect_after = options.suspect_after();
    config.lost_after_silence = options.lost_after_silence();
    config.lost_after_reset = options.lost_after_reset();
    let runs_dir = std::path::absolute(options.runs_dir.clone().unwrap_or_else(|| options.state_dir.join("runs")));
    let surroundings = Surroundings {
        records: record_handle,
        recorded,
        seen,
        snapshots: publisher,
        store: outputs,
        copied,
        runs_dir: runs_dir.context("resolve --runs-dir")?,
        results_ttl: Duration::from_secs(options.results_ttl),
        stop,
    };
    let lifetime = Lifetime { exit_when_done: options.exit_when_done, idle_ttl: Duration::from_secs(options.idle_ttl) };
    announce(&identity, &link)?;
    tracing::info!(address = %identity.address, http = %identity.http, cluster_id = %identity.cluster_id, "ready");
    Reactor::new(identity, config, &surroundings).run(inbound, surroundings, lifetime).await;

    // Nothing runs any more. The provider first, so that it does not replace the workers that leave now.
    if let Some(stop) = stop_provider {
        let (done, gone) = oneshot::channel();
        if stop.send(done).is_ok() {
            let _ = tokio::time::timeout(Duration::from_secs(10), gone).await;
        }
    }
    // Goodbyes are on their way: the server ends when its streams have. A peer that keeps its connection, or makes a new one in this
    // moment, is not waited for.
    let _ = served.send(());
    let _ = tokio::time::timeout(GOODBYE_WITHIN, server).await;
    let _ = records_thread.join();
    drop(stop_sender);
    Ok(())
}

async fn bind(address: SocketAddr, any_port: bool) -> Result<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(error) if any_port && error.kind() == std::io::ErrorKind::AddrInUse => {
            TcpListener::bind((address.ip(), 0)).await.with_context(|| format!("no port is free on {}", address.ip()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            bail!("{address} is taken by another program: stop it, name another port, or use --any-port")
        }
        Err(error) => Err(error).with_context(|| format!("cannot listen on {address}")),
    }
}

/// The one line on standard output: where the scheduler is.
fn announce(identity: &Identity, link: &str) -> Result<()> {
    let line = serde_json::json!({
        "address": identity.address, "http": identity.http, "pid": std::process::id(),
        "cluster_id": identity.cluster_id, "epoch": identity.epoch, "link": link,
    });
    let mut out = std::io::stdout().lock();
    // Whoever started this may have closed the pipe by now; the files say the same.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    Ok(())
}

fn random_hex(bytes: usize) -> Result<String> {
    let mut raw = vec![0; bytes];
    getrandom::fill(&mut raw).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    Ok(raw.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn serve_http(router: axum::Router, listener: TcpListener) -> Result<()> {
    let listener = listener.into_std().context("hand over the listener of 8787")?;
    std::thread::Builder::new()
        .name("http".to_owned())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let served = runtime
                .and_then(|runtime| runtime.block_on(async { axum::serve(TcpListener::from_std(listener)?, router).await }));
            if let Err(error) = served {
                tracing::error!(%error, "8787 is not served any more");
            }
        })
        .context("start the thread of 8787")?;
    Ok(())
}

fn start_provider(
    options: &Options,
    address: &str,
    token_file: &Path,
) -> Result<(mpsc::Receiver<provision::Seen>, Option<provision::Stop>)> {
    let Some(json) = &options.local_workers else {
        return Ok((mpsc::channel(1).1, None));
    };
    let workers: LocalWorkers = serde_json::from_str(json).context("--local-workers")?;
    let program = match std::env::current_exe().context("find this program")?.parent() {
        Some(directory) if directory.join("scalable-worker").exists() => directory.join("scalable-worker"),
        _ => "scalable-worker".into(),
    };
    let custom = workers.custom.iter().map(|(name, amount)| v1::NamedAmount { name: name.clone(), amount: *amount });
    let pool = provision::Pool {
        name: workers.pool.clone(),
        components: workers.components.clone(),
        capacity: v1::Resources {
            milli_cpus: workers.milli_cpus,
            memory_bytes: workers.memory_bytes.unwrap_or(u64::MAX),
            gpus: workers.gpus,
            custom: custom.collect(),
        },
        workers: workers.workers,
    };
    let provider = LocalProvider::start(LocalOptions {
        program,
        address: address.to_owned(),
        token_file: token_file.to_owned(),
        log_directory: options.state_dir.join("workers"),
        workers,
    })
    .context("start the local provider")?;
    let (seen, stop) = provision::start(provider, pool).context("start the provider's thread")?;
    Ok((seen, Some(stop)))
}

fn watch_signals(stop: mpsc::Sender<Stop>) -> Result<()> {
    for (kind, name) in [(SignalKind::terminate(), "SIGTERM"), (SignalKind::interrupt(), "SIGINT")] {
        let mut signals = signal(kind).with_context(|| format!("watch {name}"))?;
        let stop = stop.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                let _ = stop.send(Stop::Now(format!("the scheduler received {name}"))).await;
            }
        });
    }
    Ok(())
}

/// A closed pipe means that whoever started this scheduler is gone, however it ended: everything is cancelled. One that wrote
/// `detach` first leaves on purpose: the runs go on, and the scheduler ends after them.
fn watch_lifeline(stop: mpsc::Sender<Stop>) -> Result<()> {
    std::thread::Builder::new()
        .name("lifeline".to_owned())
        .spawn(move || {
            let mut said = Vec::new();
            // More than a word is never said; what comes beyond it is not kept.
            let _ = std::io::stdin().lock().take(64).read_to_end(&mut said);
            let stop_for =
                if said.starts_with(b"detach\n") { Stop::WhenDone } else { Stop::Now("the command line is gone".to_owned()) };
            let _ = stop.blocking_send(stop_for);
        })
        .context("start the lifeline's thread")?;
    Ok(())
}
