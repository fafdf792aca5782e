//! `scalable-scheduler`: puts the parts together and keeps them until the end.

use std::future::IntoFuture;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Parser;
use scalable_core::scheduler::Config;
use scalable_proto::v1;
use scalable_provider::dials::Dials;
use scalable_provider::local::{LocalOptions, LocalProvider, LocalWorkers};
use scalable_scheduler::admission::{Admission, AdmissionFile, AnyOf};
use scalable_scheduler::auth::read_token;
use scalable_scheduler::content_store::{ContentStore, StoreAt};
use scalable_scheduler::door::Door;
use scalable_scheduler::gate::Gate;
use scalable_scheduler::http::{Access, Site};
use scalable_scheduler::options::Options;
use scalable_scheduler::output_store::OutputStore;
use scalable_scheduler::reactor::{Identity, Lifetime, Reactor, Stop, Surroundings};
use scalable_scheduler::runs_dir::RunsDirectory;
use scalable_scheduler::sign::Signer;
use scalable_scheduler::tls::keep_renewed;
use scalable_scheduler::{http, provision, records, serve, snapshot, tls};
use scalable_store::ObjectKey;
use scalable_tls::{Authority, Certificate, SchedulerCredentials, Trust};
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
    if let Err(why) = options.check() {
        bail!(why);
    }
    let secured = match &options.credentials {
        Some(directory) => Some(Secured::new(directory, &options).context("--credentials")?),
        None => None,
    };
    let gate = match (&secured, &options.token_file) {
        (Some(secured), _) => secured.gate.clone(),
        (None, Some(token_file)) => Gate::local(read_token(token_file)?),
        (None, None) => bail!("--token-file FILE or --credentials DIR is needed"),
    };
    let listener = bind(options.listen, options.any_port).await?;
    let http_listener = bind(options.http, options.any_port).await?;
    let (address, http_address) = (listener.local_addr()?, http_listener.local_addr()?);
    let token_file = options.token_file.as_ref().map(std::path::absolute).transpose().context("resolve the token file")?;
    let token_file = token_file.unwrap_or_default();
    let object_key = ObjectKey::random().context("draw a key for objects")?;
    let store_at = StoreAt {
        listen: options.store_at(),
        advertise: options.advertise_store.clone(),
        tls: secured.as_ref().map(|secured| secured.server(&[])).transpose()?,
    };
    let store = ContentStore::start(&options.state_dir.join("store"), store_at, object_key.clone())
        .with_context(|| format!("start the store in {}", options.state_dir.display()))?;
    let limit = options.store_limit.unwrap_or(u64::MAX);
    let dial = secured.as_ref().map(|secured| secured.trust.to_peers(None)).transpose()?;
    let (outputs, copied) =
        OutputStore::start(store.index().clone(), object_key.clone(), limit, dial).context("start the output store")?;
    let identity = Identity {
        cluster_id: match &secured {
            Some(secured) => secured.cluster_id.clone(),
            None => random_hex(16)?,
        },
        epoch: u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_millis())?,
        address: format!("{}://{address}", if secured.is_some() { "https" } else { "http" }),
        http: format!("http://{http_address}"),
        token_file: token_file.display().to_string(),
        heartbeat_ms: options.heartbeat_ms,
        object_key,
        store_address: store.address().to_string(),
    };

    let mut https_url = None;
    let (publisher, reader) = snapshot::channel();
    let door = Door::default();
    let link = door.make_link().map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    let access = if options.trust_loopback { Access::Pod } else { Access::Machine };
    let site = Site { listen: http_address, names: options.http_names.clone(), access };
    // Output is a log where there are credentials, and a link is a secret.
    let link = secured.is_none().then(|| http::link(&site, &link));
    let plain = http::router(reader.clone(), gate.clone(), door.clone(), site);
    let mut over_tls = None;
    if let (Some(secured), Some(https)) = (&secured, options.https) {
        let listener = bind(https, options.any_port).await?;
        let site = Site { listen: listener.local_addr()?, names: options.http_names.clone(), access: Access::Network };
        https_url = Some(site.url());
        let config = secured.server(&["h2", "http/1.1"])?;
        over_tls = Some(Https { router: http::router(reader, gate.clone(), door, site), listener, config });
    }
    serve_http(plain, http_listener, over_tls, &identity.cluster_id)?;

    let Provisioned { seen, stop: stop_provider, observed } = start_provider(&options, &identity.address, &token_file)?;
    let (record_handle, recorded, records_thread) = records::start().context("start the records' thread")?;
    let (stop_sender, stop) = mpsc::channel(4);
    watch_signals(stop_sender.clone())?;
    if options.lifeline {
        watch_lifeline(stop_sender.clone())?;
    }

    let (inbound_sender, inbound) = mpsc::channel(serve::INBOUND_FRAMES_MAX);
    let signer = secured.as_ref().map(|secured| Arc::new(secured.signer(&options, observed)));
    let services = serve::Services::new(inbound_sender, store.into(), outputs.clone(), signer);
    let routes = services.router(&gate).await.context("build the services")?;
    let (served, ended) = oneshot::channel::<()>();
    // The server's own option for this is for listeners that it binds itself. Without it the end of a large frame waits 40 ms for
    // an acknowledgement that the peer delays.
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(HTTP2_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_WINDOW_BYTES)
        .max_concurrent_streams(256)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .add_routes(routes);
    let ended = async {
        let _ = ended.await;
    };
    let server = match &secured {
        None => {
            let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
            tokio::spawn(server.serve_with_incoming_shutdown(incoming, ended))
        }
        Some(secured) => {
            let renewed = keep_renewed(secured.authority.clone(), secured.certificate.clone(), options.certificate_lifetime());
            tokio::spawn(renewed);
            let incoming = tls::Incoming::start(listener, secured.server(&["h2"])?, &secured.cluster_id)?;
            tokio::spawn(server.serve_with_incoming_shutdown(incoming, ended))
        }
    };

    let mut config = Config::standard();
    config.suspect_after = options.suspect_after();
    config.lost_after_silence = options.lost_after_silence();
    config.lost_after_reset = options.lost_after_reset();
    let runs_dir = std::path::absolute(options.runs_dir.clone().unwrap_or_else(|| options.state_dir.join("runs")));
    let runs_dir = Arc::new(
        (runs_dir.and_then(|root| RunsDirectory::make(&root, identity.epoch))).context("make the directory of runs to fetch")?,
    );
    let others = runs_dir.clone();
    std::thread::Builder::new().name("left".to_owned()).spawn(move || others.remove_others()).context("start a thread")?;
    let surroundings = Surroundings {
        records: record_handle,
        recorded,
        seen,
        snapshots: publisher,
        store: outputs,
        copied,
        runs_dir: runs_dir.path().to_owned(),
        results_ttl: Duration::from_secs(options.results_ttl),
        stop,
    };
    let lifetime = Lifetime { exit_when_done: options.exit_when_done, idle_ttl: Duration::from_secs(options.idle_ttl) };
    announce(&identity, link.as_deref(), https_url.as_deref())?;
    tracing::info!(address = %identity.address, http = %identity.http, cluster_id = %identity.cluster_id, "ready");
    let stopped_early = Reactor::new(identity, config, &surroundings).run(inbound, surroundings, lifetime).await;

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
    match stopped_early {
        // Its Job would be complete, as if somebody had fetched what came of its runs.
        Some(reason) if options.kubernetes.is_some() => bail!("stopped before its runs were over and fetched: {reason}"),
        _ => Ok(()),
    }
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
fn announce(identity: &Identity, link: Option<&str>, https: Option<&str>) -> Result<()> {
    let mut line = serde_json::json!({
        "address": identity.address, "http": identity.http, "pid": std::process::id(),
        "cluster_id": identity.cluster_id, "epoch": identity.epoch, "store": identity.store_address,
    });
    for (key, value) in [("link", link), ("https", https)] {
        if let Some(value) = value {
            line[key] = value.into();
        }
    }
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

/// 8787 over TLS.
struct Https {
    router: axum::Router,
    listener: TcpListener,
    config: Arc<rustls::ServerConfig>,
}

/// What a scheduler with credentials has.
struct Secured {
    cluster_id: String,
    trust: Trust,
    authority: Arc<Authority>,
    certificate: Certificate,
    gate: Gate,
}

impl Secured {
    fn new(directory: &Path, options: &Options) -> Result<Secured> {
        let credentials = SchedulerCredentials::read(directory)?;
        let certificate = Certificate::default();
        credentials.authority.renew_scheduler(&certificate, options.certificate_lifetime())?;
        Ok(Secured {
            cluster_id: credentials.trust.cluster_id().to_owned(),
            gate: Gate::of_roles(&credentials),
            trust: credentials.trust,
            authority: Arc::new(credentials.authority),
            certificate,
        })
    }

    fn server(&self, alpn: &[&str]) -> Result<Arc<rustls::ServerConfig>> {
        Ok(self.trust.server(&self.certificate, alpn)?)
    }

    /// `observed` are the workers that the provider knows.
    fn signer(&self, options: &Options, observed: Option<Box<dyn Admission>>) -> Signer {
        let mut known: Vec<Box<dyn Admission>> = observed.into_iter().collect();
        if let Some(file) = &options.admit {
            known.push(Box::new(AdmissionFile(file.clone())));
        }
        Signer {
            authority: self.authority.clone(),
            admission: Box::new(AnyOf(known)),
            trust_proxy: options.trust_proxy,
            lifetime: options.certificate_lifetime(),
        }
    }
}

/// Serves 8787 on a thread of its own: on loopback, and over TLS where that is wanted.
fn serve_http(router: axum::Router, listener: TcpListener, over_tls: Option<Https>, cluster_id: &str) -> Result<()> {
    let listener = listener.into_std().context("hand over the listener of 8787")?;
    let cluster_id = cluster_id.to_owned();
    let over_tls = match over_tls {
        Some(Https { router, listener, config }) => {
            Some((router, listener.into_std().context("hand over the listener of 8787")?, config))
        }
        None => None,
    };
    std::thread::Builder::new()
        .name("http".to_owned())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let serve = async {
                let Some((secured, at, config)) = over_tls else {
                    return axum::serve(TcpListener::from_std(listener)?, router).await;
                };
                let incoming = tls::Incoming::start(TcpListener::from_std(at)?, config, &cluster_id)?;
                let plain = axum::serve(TcpListener::from_std(listener)?, router).into_future();
                let secured = axum::serve(incoming, secured).into_future();
                tokio::try_join!(plain, secured).map(drop)
            };
            let served = runtime.and_then(|runtime| runtime.block_on(serve));
            if let Err(error) = served {
                tracing::error!(%error, "8787 is not served any more");
            }
        })
        .context("start the thread of 8787")?;
    Ok(())
}

/// What comes of starting a provider; where there is none nothing is ever seen.
struct Provisioned {
    seen: mpsc::Receiver<provision::Seen>,
    stop: Option<provision::Stop>,
    /// The workers it knows, where they need certificates.
    observed: Option<Box<dyn Admission>>,
}

fn start_provider(options: &Options, address: &str, token_file: &Path) -> Result<Provisioned> {
    let dials = options.scale.as_deref().map(Dials::parse).transpose();
    let dials = dials.map_err(|problem| anyhow::anyhow!("--scale: {problem}"))?;
    #[cfg(feature = "k8s")]
    if let Some(settings) = &options.kubernetes {
        let started =
            scalable_scheduler::kubernetes::start(settings, &dials.unwrap_or_default(), &options.state_dir.join("pods"))?;
        return Ok(Provisioned { seen: started.seen, stop: Some(started.stop), observed: Some(started.admission) });
    }
    let Some(json) = &options.local_workers else {
        return Ok(Provisioned { seen: mpsc::channel(1).1, stop: None, observed: None });
    };
    let workers: LocalWorkers = serde_json::from_str(json).context("--local-workers")?;
    let program = match std::env::current_exe().context("find this program")?.parent() {
        Some(directory) if directory.join("scalable-worker").exists() => directory.join("scalable-worker"),
        _ => "scalable-worker".into(),
    };
    let custom = workers.custom.iter().map(|(name, amount)| v1::NamedAmount { name: name.clone(), amount: *amount });
    let capacity = v1::Resources {
        milli_cpus: workers.milli_cpus,
        memory_bytes: workers.memory_bytes.unwrap_or(u64::MAX),
        gpus: workers.gpus,
        custom: custom.collect(),
    };
    let (name, components, count) = (workers.pool.clone(), workers.components.clone(), workers.workers);
    let provider = LocalProvider::start(LocalOptions {
        program,
        address: address.to_owned(),
        token_file: token_file.to_owned(),
        log_directory: options.state_dir.join("workers"),
        workers,
    })
    .context("start the local provider")?;
    let (seen, stop) = match dials {
        None => provision::fixed::start(provider, provision::fixed::Pool { name, components, capacity, workers: count }),
        Some(dials) => {
            let (minimum, maximum) = (dials.minimum.unwrap_or(0), dials.maximum.unwrap_or(count));
            let pool = provision::scaled::Pool { name, components, capacity, minimum, maximum, minimum_at_once: false };
            let scale =
                provision::scaled::Scale { pools: vec![pool], parameters: dials.parameters(), max_total: dials.max_total };
            provision::scaled::start(provider, scale)
        }
    }
    .context("start the provider's thread")?;
    Ok(Provisioned { seen, stop: Some(stop), observed: None })
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
