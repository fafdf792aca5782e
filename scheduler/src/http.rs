//! 8787: liveness, readiness, metrics, the status as JSON, the monitoring service and a plain page that says where things
//! are. It reads snapshots and never asks the reactor.
//!
//! Host and Origin are checked before anything else, so that no page of another site can reach it through a browser.
//! `/livez`, `/readyz` and `/metrics` answer anybody on this machine and name no task and no file; the rest needs the token, or
//! the cookie that a one-time link leaves in a browser.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;

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
use tonic::service::interceptor::InterceptedService;
use tonic::{Request as GrpcRequest, Response as GrpcResponse, Status};

use crate::auth::Token;
use crate::door::Door;
use crate::snapshot::{Reader, Snapshot, state_word};

/// Name of the cookie and the sign behind it.
const COOKIE_PREFIX: &str = "scalable=";

#[derive(Clone)]
struct Pages {
    snapshots: Reader,
    token: Token,
    door: Door,
    listen: SocketAddr,
}

/// Everything 8787 answers.
pub fn router(snapshots: Reader, token: Token, door: Door, listen: SocketAddr) -> Router {
    let monitoring = MonitoringServiceServer::new(Monitoring(snapshots.clone()));
    let grpc = tonic::service::Routes::new(InterceptedService::new(monitoring, token.interceptor())).into_axum_router();
    let pages = Pages { snapshots, token, door, listen };
    let guarded = Router::new()
        .route("/", get(front_page))
        .route("/api/v1/status", get(status))
        .route("/api/v1/link", post(make_link))
        .layer(middleware::from_fn_with_state(pages.clone(), need_token));
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(async || "ok\n"))
        .route("/metrics", get(metrics))
        .route("/login", get(login))
        .merge(guarded)
        .with_state(pages.clone())
        .merge(grpc)
        .layer(middleware::from_fn_with_state(pages, same_origin))
}

/// Refuses requests that a browser was made to send by another site, or to another name (DNS rebinding).
async fn same_origin(State(pages): State<Pages>, request: Request, next: Next) -> Response {
    let names = ["127.0.0.1", "localhost", "[::1]"].map(|host| format!("{host}:{}", pages.listen.port()));
    let headers = request.headers();
    let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
    let host = header_text(headers, header::HOST).map(str::to_owned).or(authority);
    if !host.is_some_and(|host| names.contains(&host)) {
        return refuse(StatusCode::MISDIRECTED_REQUEST, "this server answers only to 127.0.0.1 and localhost");
    }
    if let Some(origin) = header_text(headers, header::ORIGIN)
        && !names.iter().any(|name| origin == format!("http://{name}"))
    {
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

async fn need_token(State(pages): State<Pages>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let shown = header_text(headers, header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
    // A cookie lets a browser read; what changes something needs the token itself.
    let reading = request.method() == Method::GET;
    let cookie = header_text(headers, header::COOKIE).into_iter().flat_map(|cookies| cookies.split("; "));
    let known = |cookie: &str| cookie.strip_prefix(COOKIE_PREFIX).is_some_and(|cookie| pages.door.knows(cookie));
    if shown.is_some_and(|token| pages.token.matches(token)) || (reading && cookie.into_iter().any(known)) {
        return next.run(request).await;
    }
    refuse(StatusCode::UNAUTHORIZED, "this page needs the cluster's token: authorization: Bearer <content of the token file>")
}

async fn make_link(State(pages): State<Pages>) -> Response {
    match pages.door.make_link() {
        Ok(secret) => link(pages.listen, &secret).into_response(),
        Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the system has no random numbers"),
    }
}

/// The address that lets a browser in, once.
pub fn link(listen: SocketAddr, secret: &str) -> String {
    format!("http://{listen}/login?once={secret}")
}

async fn login(State(pages): State<Pages>, Query(query): Query<BTreeMap<String, String>>) -> Response {
    match pages.door.enter(query.get("once").map_or("", String::as_str)) {
        Ok(Some(cookie)) => {
            let cookie = format!("{COOKIE_PREFIX}{cookie}; HttpOnly; SameSite=Strict; Path=/");
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
