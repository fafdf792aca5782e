//! 8787: liveness, readiness, metrics, the status as JSON, the monitoring service and a plain page that says where things
//! are. It reads snapshots and never asks the reactor.
//!
//! Host and Origin are checked before anything else, so that no page of another site can reach it through a browser.
//! `/livez` and `/readyz` answer anybody, on loopback `/metrics` too: they name no task and no file. The rest needs a token, or
//! the cookie that a one-time link leaves in a browser; except where loopback is a pod's own, which whoever may read it reaches.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use scalable_proto::v1;
use scalable_proto::v1::monitoring_service_server::{MonitoringService, MonitoringServiceServer};
use serde_json::{Value, json};
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request as GrpcRequest, Response as GrpcResponse, Status};

use crate::door::Door;
use crate::gate::{Gate, Need};
use crate::snapshot::{Reader, Snapshot, state_word};

/// Name of the cookie and the sign behind it.
const COOKIE_PREFIX: &str = "scalable=";

#[derive(Clone)]
struct Pages {
    snapshots: Reader,
    gate: Gate,
    door: Door,
    site: Arc<Site>,
}

/// One place where 8787 is served.
#[derive(Clone, Debug)]
pub struct Site {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Names that it answers to beside its address and loopback's.
    pub names: Vec<String>,
    /// How.
    pub access: Access,
}

/// Who reaches a site, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// In plain HTTP, whoever is on this machine.
    Machine,
    /// In plain HTTP, whoever may reach this pod's loopback, and so may read.
    Pod,
    /// Over TLS, anybody.
    Network,
}

impl Site {
    fn scheme(&self) -> &'static str {
        if self.access == Access::Network { "https" } else { "http" }
    }

    /// The site's own address as a URL.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme(), self.listen)
    }

    /// True for the `Host` of a request that was meant for this server. A port-forward has any port of its own.
    fn answers_to(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let same = |known: &str| known.eq_ignore_ascii_case(name);
        ["localhost", "127.0.0.1", "[::1]"].into_iter().any(same)
            || host == self.listen.to_string()
            || self.names.iter().any(|known| same(known) || known.eq_ignore_ascii_case(host))
    }
}

/// Everything 8787 answers.
pub fn router(snapshots: Reader, gate: Gate, door: Door, site: Site) -> Router {
    let open = site.access != Access::Network;
    let pages = Pages { snapshots, gate, door, site: Arc::new(site) };
    let monitoring = MonitoringServiceServer::new(Monitoring(pages.snapshots.clone()));
    let grpc = tonic::service::Routes::new(monitoring).into_axum_router();
    let grpc = grpc.layer(middleware::from_fn_with_state(pages.clone(), may_monitor));
    let mut guarded =
        Router::new().route("/", get(front_page)).route("/api/v1/status", get(status)).route("/api/v1/link", post(make_link));
    let mut anybody =
        Router::new().route("/livez", get(async || "ok\n")).route("/readyz", get(async || "ok\n")).route("/login", get(login));
    if open {
        anybody = anybody.route("/metrics", get(metrics));
    } else {
        guarded = guarded.route("/metrics", get(metrics));
    }
    let guarded = guarded.layer(middleware::from_fn_with_state(pages.clone(), may_read));
    anybody.merge(guarded).with_state(pages.clone()).merge(grpc).layer(middleware::from_fn_with_state(pages, same_origin))
}

/// Refuses requests that a browser was made to send by another site, or to another name (DNS rebinding).
async fn same_origin(State(pages): State<Pages>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
    let host = header_text(headers, header::HOST).map(str::to_owned).or(authority).unwrap_or_default();
    if !pages.site.answers_to(&host) {
        return refuse(
            StatusCode::MISDIRECTED_REQUEST,
            "this server answers only to localhost, its address and its names (--http-name)",
        );
    }
    // A page may ask whom it came from; what stands between may have ended TLS.
    let own = |origin: &str| origin.strip_prefix("http://").or(origin.strip_prefix("https://")) == Some(host.as_str());
    if headers.contains_key(header::ORIGIN) && !header_text(headers, header::ORIGIN).is_some_and(own) {
        return refuse(StatusCode::FORBIDDEN, "requests from other sites are refused");
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, "default-src 'self'; object-src 'none'; frame-ancestors 'none'"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, header::HeaderValue::from_static(value));
    }
    response
}

async fn may_read(State(pages): State<Pages>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    // A cookie lets a browser read; what changes something needs the token itself.
    let reading = request.method() == Method::GET;
    let cookie = header_text(headers, header::COOKIE).into_iter().flat_map(|cookies| cookies.split("; "));
    let known = |cookie: &str| cookie.strip_prefix(COOKIE_PREFIX).is_some_and(|cookie| pages.door.knows(cookie));
    let shown = pages.gate.admit(Need::Look, headers, request.extensions());
    if shown.is_ok() || (reading && (pages.site.access == Access::Pod || cookie.into_iter().any(known))) {
        return next.run(request).await;
    }
    refuse(StatusCode::UNAUTHORIZED, "this page needs the cluster's token: authorization: Bearer <token>")
}

async fn may_monitor(State(pages): State<Pages>, request: Request, next: Next) -> Response {
    if pages.site.access == Access::Pod {
        return next.run(request).await;
    }
    match pages.gate.admit(Need::Look, request.headers(), request.extensions()) {
        Ok(_) => next.run(request).await,
        Err(status) => status.into_http(),
    }
}

async fn make_link(State(pages): State<Pages>) -> Response {
    match pages.door.make_link() {
        Ok(secret) => link(&pages.site, &secret).into_response(),
        Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the system has no random numbers"),
    }
}

/// The address that lets a browser in, once.
pub fn link(site: &Site, secret: &str) -> String {
    format!("{}/login?once={secret}", site.url())
}

async fn login(State(pages): State<Pages>, Query(query): Query<BTreeMap<String, String>>) -> Response {
    match pages.door.enter(query.get("once").map_or("", String::as_str)) {
        Ok(Some(cookie)) => {
            let secure = if pages.site.access == Access::Network { "; Secure" } else { "" };
            let cookie = format!("{COOKIE_PREFIX}{cookie}; HttpOnly; SameSite=Strict; Path=/{secure}");
            (StatusCode::SEE_OTHER, [(header::SET_COOKIE, cookie), (header::LOCATION, "/".to_owned())]).into_response()
        }
        Ok(None) => refuse(StatusCode::UNAUTHORIZED, "this link has been used or is too old: ask for a new one"),
        Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the system has no random numbers"),
    }
}

fn header_text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn refuse(status: StatusCode, words: &'static str) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], format!("{words}\n")).into_response()
}

async fn front_page(State(pages): State<Pages>) -> Response {
    let snapshot = pages.snapshots.borrow().clone();
    let mut text = format!(
        "Scalable scheduler {}\ncluster {}\n\n/livez /readyz   liveness and readiness\n/metrics         Prometheus\n\
         /api/v1/status   this cluster as JSON\nscalable.v1.MonitoringService   the same over gRPC\n\n",
        snapshot.cluster.build, snapshot.cluster.cluster_id
    );
    for run in &snapshot.runs {
        text.push_str(&format!("{}  {}\n", run.run, state_word(run.state())));
    }
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

async fn status(State(pages): State<Pages>) -> Response {
    let snapshot = pages.snapshots.borrow().clone();
    ([(header::CONTENT_TYPE, "application/json")], status_json(&snapshot).to_string()).into_response()
}

fn status_json(snapshot: &Snapshot) -> Value {
    let runs: Vec<Value> = snapshot
        .runs
        .iter()
        .map(|run| {
            let groups: Vec<Value> = run
                .groups
                .iter()
                .map(|group| {
                    json!({
                        "name": group.group, "length": group.length, "open": group.open, "waiting": group.waiting,
                        "ready": group.ready, "backoff": group.backoff, "assigned": group.assigned, "running": group.running,
                        "succeeded": group.succeeded, "failed": group.failed, "skipped": group.skipped,
                        "cancelled": group.cancelled, "retried": group.retried,
                    })
                })
                .collect();
            json!({ "run": run.run, "state": state_word(run.state()), "complete": run.complete, "groups": groups })
        })
        .collect();
    let pools: Vec<Value> = snapshot
        .cluster
        .pools
        .iter()
        .map(|pool| {
            json!({
                "pool": pool.pool, "workers": pool.workers, "starting": pool.starting, "suspect": pool.suspect,
                "draining": pool.draining, "lost": pool.lost, "milli_cpus": pool.milli_cpus,
                "milli_cpus_used": pool.milli_cpus_used, "memory_bytes_used": pool.memory_bytes_used, "note": pool.note,
            })
        })
        .collect();
    let workers: Vec<Value> = snapshot
        .cluster
        .workers
        .iter()
        .map(|worker| {
            json!({
                "name": worker.name, "pool": worker.pool, "state": worker.state, "executing": worker.executing,
                "queued": worker.queued, "pid": worker.pid, "host": worker.host, "session": worker.session,
            })
        })
        .collect();
    json!({
        "schema": "scalable.status.v1", "cluster_id": snapshot.cluster.cluster_id, "epoch": snapshot.cluster.epoch,
        "build": snapshot.cluster.build, "runs": runs, "pools": pools, "workers": workers, "counters": snapshot.counters,
    })
}

async fn metrics(State(pages): State<Pages>) -> Response {
    let snapshot = pages.snapshots.borrow().clone();
    let mut registry = Registry::with_prefix("scalable");
    let mut add = |name: &str, help: &str, value: u64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    let counters = snapshot.counters;
    add("attempts_dispatched", "Attempts sent to workers since the scheduler started", counters.dispatched);
    add("tasks_committed", "Tasks whose result was committed since the scheduler started", counters.committed);
    add("attempts_failed", "Attempts that ended without committing since the scheduler started", counters.attempts_failed);
    add("completions_superseded", "Completions that came too late since the scheduler started", counters.superseded);
    add("workers_lost", "Workers declared lost since the scheduler started", counters.workers_lost);
    add("runs_accepted", "Runs accepted since the scheduler started", counters.runs);
    let sum = |field: fn(&v1::PoolCounts) -> u64| snapshot.cluster.pools.iter().map(field).sum();
    add("workers_active", "Workers that take work", sum(|pool| u64::from(pool.workers)));
    let outputs = snapshot.outputs;
    add("outputs_stored_bytes", "Bytes of outputs and logs that the output store has copied", outputs.stored_bytes);
    add("outputs_waiting", "Attempts whose outputs do not fit into the output store", outputs.waiting);
    add("outputs_copied_bytes", "Bytes that came to the output store over connections", outputs.copied_bytes);
    add("outputs_shared_bytes", "Bytes that came to the output store as open files of workers on its host", outputs.shared_bytes);
    add("milli_cpus_used", "Thousandths of cpus taken by attempts", sum(|pool| pool.milli_cpus_used));
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be encoded"),
    }
}

/// The monitoring service: reading only.
struct Monitoring(Reader);

#[tonic::async_trait]
impl MonitoringService for Monitoring {
    type WatchRunStream = Pin<Box<dyn Stream<Item = Result<v1::RunProgress, Status>> + Send>>;

    async fn get_cluster(&self, _: GrpcRequest<v1::GetClusterRequest>) -> Result<GrpcResponse<v1::StatusReply>, Status> {
        Ok(GrpcResponse::new(self.0.borrow().cluster.clone()))
    }

    async fn watch_run(&self, request: GrpcRequest<v1::WatchRunRequest>) -> Result<GrpcResponse<Self::WatchRunStream>, Status> {
        let wanted = request.into_inner().run;
        if !self.0.borrow().runs.iter().any(|run| run.run == wanted) {
            return Err(Status::not_found(format!("no run `{wanted}` is among the 100 newest of this scheduler")));
        }
        let states = WatchStream::new(self.0.clone());
        let of_run = states.filter_map(move |snapshot| snapshot.runs.iter().find(|run| run.run == wanted).cloned().map(Ok));
        Ok(GrpcResponse::new(Box::pin(of_run)))
    }
}
