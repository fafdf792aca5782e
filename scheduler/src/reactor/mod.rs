//! The reactor: owns the machine and everything around it that needs no thread of its own. Inputs come in through one
//! channel, go through `step`, and the outbox is flushed once per batch of inputs.
//!
//! `workers.rs` keeps the workers' sessions (`columns.rs` gathers what they are sent), `clients.rs` the clients'; `streams.rs` and
//! `handshake.rs` are what both have in common. `runs.rs` keeps what is known of runs beside the machine, `calls.rs` answers unary
//! calls, `moves.rs` empties workers that are to leave. Open runs: `open.rs` takes what clients add and let go of, `payload.rs` keeps
//! arguments and results, `results.rs` what functions returned, `deliver.rs` sends it on to clients. `outputs.rs` has what commands
//! have left on workers copied to where it belongs; `live_logs.rs` asks workers for what attempts write while they execute.

mod calls;
mod clients;
mod columns;
mod deliver;
mod handshake;
mod live_logs;
mod moves;
mod open;
mod outputs;
mod payload;
mod results;
mod runs;
mod streams;
mod workers;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustc_hash::FxHashMap;
use scalable_core::ids::{GroupId, Micros, RunId, SessionId, TaskRef};
use scalable_core::messages::{Input, Outbox, Output};
use scalable_core::resources::Resources;
use scalable_core::scheduler::{PoolLoad, Scheduler, WorkerView};
use scalable_proto::v1;
use scalable_store::ObjectKey;
use tokio::sync::mpsc;
use tokio::time::Sleep;

use crate::convert;
use crate::output_store::{self, OutputStore};
use crate::provision::{PoolState, Seen};
use crate::records::{self, Record};
use crate::serve::{ConnectionId, Inbound};
use crate::snapshot::{Counters, Publisher, Snapshot};

use clients::ClientSession;
use outputs::Outputs;
use payload::Payload;
pub(crate) use runs::MARK;
use runs::RunInfo;
pub use runs::{GroupInfo, Report};
use workers::WorkerSession;

/// Inputs taken before the outbox is flushed.
const INPUTS_PER_FLUSH_MAX: usize = 256;
/// Snapshots for 8787 are published at most this often.
const SNAPSHOT_EVERY: Duration = Duration::from_millis(200);
/// Longest wait for runs to end after the lifeline has closed or a signal came.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(20);

/// What identifies this scheduler to its peers.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Of the cluster; peers that come from another one are refused.
    pub cluster_id: String,
    /// Start time in milliseconds: larger for every later scheduler.
    pub epoch: u64,
    /// Where it listens.
    pub address: String,
    /// Where 8787's pages are.
    pub http: String,
    /// File with the token.
    pub token_file: String,
    /// How often workers are to be heard of.
    pub heartbeat_ms: u32,
    /// What rights to fetch objects are made with.
    pub object_key: ObjectKey,
    /// Where the scheduler's own store answers peers.
    pub store_address: String,
}

/// What else the reactor is connected to.
pub struct Surroundings {
    /// The records' thread.
    pub records: records::Handle,
    /// What it has finished.
    pub recorded: mpsc::Receiver<RunId>,
    /// What the provider sees.
    pub seen: mpsc::Receiver<Seen>,
    /// Snapshots for 8787.
    pub snapshots: Publisher,
    /// Copies what attempts have left on workers.
    pub store: OutputStore,
    /// What it has copied.
    pub copied: mpsc::UnboundedReceiver<output_store::Told>,
    /// Below it are the directories of runs whose clients share no disk with this process.
    pub runs_dir: PathBuf,
    /// How long a run that its client has not fetched is kept.
    pub results_ttl: Duration,
    /// Ends the process gracefully: the lifeline has closed or a signal came.
    pub stop: mpsc::Receiver<Stop>,
}

/// How the process is to end.
#[derive(Clone, Debug)]
pub enum Stop {
    /// Cancel every run and end, for this reason.
    Now(String),
    /// Let the runs go on and end after them.
    WhenDone,
}

/// When the reactor ends by itself.
#[derive(Clone, Copy, Debug)]
pub struct Lifetime {
    /// End when no run is live any more.
    pub exit_when_done: bool,
    /// But not before this time without a live run has passed.
    pub idle_ttl: Duration,
}

/// See the module.
pub struct Reactor {
    identity: Identity,
    machine: Scheduler,
    origin: Instant,
    outbox: Outbox,
    workers: FxHashMap<SessionId, WorkerSession>,
    clients: FxHashMap<u64, ClientSession>,
    connections: FxHashMap<ConnectionId, Peer>,
    runs: BTreeMap<RunId, RunInfo>,
    /// Runs that may grow and are not over.
    open_runs: Vec<RunId>,
    /// Runs that are over and of which nothing is recorded.
    unrecorded: Vec<RunId>,
    groups: FxHashMap<GroupId, Arc<GroupInfo>>,
    /// Arguments and results of growing groups.
    payloads: FxHashMap<GroupId, Payload>,
    reports: Vec<runs::Report>,
    /// Frames that the reports of this flush are slices of.
    result_frames: Vec<Bytes>,
    peers: results::Peers,
    /// The group that was touched last since watchers were told.
    touched: Option<GroupId>,
    /// How the last attempt of a task ended whose own end follows in the outbox.
    last_error: Option<(TaskRef, v1::TaskError)>,
    pending_submits: FxHashMap<[u8; 16], clients::PendingSubmit>,
    records: records::Handle,
    snapshots: Publisher,
    counters: Counters,
    next_session: u64,
    /// When acknowledgements have to be sent that no frame has carried.
    acks_due: Option<Instant>,
    stopping: Option<(Instant, String)>,
    /// It was told to stop while a run was not over, or waited for whoever fetches what came of it.
    stopped_early: bool,
    idle_since: Option<Instant>,
    ended_sessions: Vec<SessionId>,
    pools: BTreeMap<String, SeenPool>,
    outputs: Outputs,
    live_logs: live_logs::LiveLogs,
    runs_dir: PathBuf,
    results_ttl: Duration,
}

/// What the provider says of a pool.
struct SeenPool {
    capacity: Resources,
    state: PoolState,
}

/// Whose stream a connection is.
#[derive(Clone, Copy, Debug)]
enum Peer {
    Worker(SessionId),
    Client(u64),
}

impl Reactor {
    /// A reactor around a new machine.
    pub fn new(identity: Identity, config: scalable_core::scheduler::Config, surroundings: &Surroundings) -> Self {
        Reactor {
            machine: Scheduler::new(config, 0),
            // Session numbers never repeat across epochs: a worker of an earlier scheduler cannot be mistaken for a new one.
            next_session: identity.epoch << 16,
            identity,
            origin: Instant::now(),
            outbox: Outbox::new(),
            workers: FxHashMap::default(),
            clients: FxHashMap::default(),
            connections: FxHashMap::default(),
            runs: BTreeMap::new(),
            open_runs: Vec::new(),
            unrecorded: Vec::new(),
            groups: FxHashMap::default(),
            payloads: FxHashMap::default(),
            reports: Vec::new(),
            result_frames: Vec::new(),
            peers: results::Peers::default(),
            touched: None,
            last_error: None,
            pending_submits: FxHashMap::default(),
            records: surroundings.records.clone(),
            snapshots: surroundings.snapshots.clone(),
            counters: Counters::default(),
            acks_due: None,
            stopping: None,
            stopped_early: false,
            idle_since: Some(Instant::now()),
            ended_sessions: Vec::new(),
            pools: BTreeMap::new(),
            outputs: Outputs::new(surroundings.store.clone()),
            live_logs: live_logs::LiveLogs::default(),
            runs_dir: surroundings.runs_dir.clone(),
            results_ttl: surroundings.results_ttl,
        }
    }

    fn now(&self) -> Micros {
        u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn step(&mut self, input: Input) {
        let now = self.now();
        self.machine.step(now, input, &mut self.outbox);
    }

    /// Runs until told to stop. Returns when every run is over and recorded, or the time for that has passed: why it was told to stop, where
    /// a run was not over then or not fetched.
    pub async fn run(
        mut self,
        mut inbound: mpsc::Receiver<Inbound>,
        mut surroundings: Surroundings,
        mut lifetime: Lifetime,
    ) -> Option<String> {
        let mut batch = Vec::with_capacity(INPUTS_PER_FLUSH_MAX);
        let mut snapshot_due = Instant::now();
        let mut seen_open = true;
        let mut alarm = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        loop {
            if self.may_end(lifetime) {
                break;
            }
            set_alarm(alarm.as_mut(), self.next_wakeup(snapshot_due, lifetime));
            tokio::select! {
                taken = inbound.recv_many(&mut batch, INPUTS_PER_FLUSH_MAX) => {
                    if taken == 0 {
                        break;
                    }
                    for frame in batch.drain(..) {
                        self.handle(frame);
                    }
                }
                run = surroundings.recorded.recv() => {
                    if let Some(run) = run {
                        self.recorded(run);
                    }
                }
                Some(told) = surroundings.copied.recv() => {
                    self.outputs_told(told);
                    while let Ok(told) = surroundings.copied.try_recv() {
                        self.outputs_told(told);
                    }
                }
                seen = surroundings.seen.recv(), if seen_open => match seen {
                    Some(seen) => self.seen(seen),
                    None => seen_open = false,
                },
                stop = surroundings.stop.recv() => match stop {
                    Some(Stop::Now(reason)) => self.begin_stop(reason, true),
                    Some(Stop::WhenDone) => lifetime.exit_when_done = true,
                    None => self.begin_stop("the scheduler was told to stop".to_owned(), true),
                },
                () = &mut alarm => {}
            }
            let now = self.now();
            if self.machine.next_wakeup().is_some_and(|due| due <= now) {
                self.step(Input::Tick);
            }
            self.flush();
            if snapshot_due <= Instant::now() {
                self.expire_clients();
                self.retry_copies();
                self.publish();
                snapshot_due = Instant::now() + SNAPSHOT_EVERY;
            }
        }
        self.say_goodbye();
        self.stopping.filter(|_| self.stopped_early).map(|(_, reason)| reason)
    }

    fn next_wakeup(&self, snapshot_due: Instant, lifetime: Lifetime) -> Instant {
        let mut wake_at = Instant::now() + Duration::from_secs(1);
        if let Some(due) = self.machine.next_wakeup() {
            wake_at = wake_at.min(self.origin + Duration::from_micros(due));
        }
        for due in [self.next_progress(), self.acks_due].into_iter().flatten() {
            wake_at = wake_at.min(due);
        }
        if let Some((deadline, _)) = &self.stopping {
            wake_at = wake_at.min(*deadline);
        }
        if let (true, Some(since)) = (lifetime.exit_when_done, self.idle_since) {
            wake_at = wake_at.min(since + lifetime.idle_ttl);
        }
        wake_at.max(snapshot_due.min(wake_at))
    }

    /// A run is not over, or what came of it is not fetched.
    fn is_wanted(&self) -> bool {
        self.runs.values().any(|run| !run.complete || run.awaits_client(self.results_ttl))
    }

    fn may_end(&self, lifetime: Lifetime) -> bool {
        if let Some((deadline, _)) = &self.stopping {
            let live = self.runs.values().any(|run| !run.complete);
            return !live || *deadline <= Instant::now();
        }
        // Without an idle time-to-live, a scheduler that has never had a run waits for one.
        lifetime.exit_when_done
            && !self.is_wanted()
            && (self.counters.runs > 0 || !lifetime.idle_ttl.is_zero())
            && self.idle_since.is_some_and(|since| since + lifetime.idle_ttl <= Instant::now())
    }

    fn begin_stop(&mut self, reason: String, cancel: bool) {
        if self.stopping.is_some() {
            return;
        }
        tracing::info!(%reason, "stopping");
        self.stopped_early = self.is_wanted();
        self.stopping = Some((Instant::now() + SHUTDOWN_WITHIN, reason));
        if cancel {
            let live: Vec<RunId> = self.runs.iter().filter(|(_, run)| run.end.is_none()).map(|(id, _)| *id).collect();
            for run in live {
                self.step(Input::Cancel { run, group: None, index: None });
            }
        }
    }

    fn say_goodbye(&mut self) {
        let reason = self.stopping.as_ref().map_or_else(|| "every run is over".to_owned(), |(_, reason)| reason.clone());
        for session in self.workers.values_mut() {
            session.send_control(v1::scheduler_control::Body::Goodbye(v1::Goodbye { reason: reason.clone() }));
        }
        for client in self.clients.values_mut() {
            client.send(v1::client_events::Body::Goodbye(v1::Goodbye { reason: reason.clone() }));
        }
        self.publish();
    }

    fn handle(&mut self, frame: Inbound) {
        match frame {
            Inbound::WorkerControlOpened(id, hello, out) => self.worker_control_opened(id, hello, out),
            Inbound::WorkerDataOpened(id, (bind, worker), out) => self.worker_data_opened(id, &bind, worker.as_deref(), out),
            Inbound::WorkerControl(id, frame) => self.worker_control(id, frame),
            Inbound::WorkerData(id, frame) => self.worker_data(id, frame),
            Inbound::ClientControlOpened(id, hello, out) => self.client_control_opened(id, &hello, out),
            Inbound::ClientDataOpened(id, bind, out) => self.client_data_opened(id, &bind, out),
            Inbound::ClientControl(id, frame) => self.client_control(id, frame),
            Inbound::ClientData(id, frame) => self.client_data(id, frame),
            Inbound::Closed(id) => self.closed(id),
            Inbound::Call(call) => call(self),
        }
    }

    fn closed(&mut self, id: ConnectionId) {
        match self.connections.remove(&id) {
            Some(Peer::Worker(session)) => self.worker_closed(session, id),
            Some(Peer::Client(client)) => self.client_closed(client, id),
            None => {}
        }
    }

    fn seen(&mut self, seen: Seen) {
        match seen {
            Seen::Died { worker, cause, reason } => {
                tracing::warn!(%worker, ?cause, %reason, "worker died");
                self.step(Input::Died { worker, cause, reason });
            }
            Seen::BeingTaken { worker, reason } => self.step(Input::BeingTaken { worker, reason }),
            Seen::Pool(state) => {
                let pool = state.pool.clone();
                match convert::resources(Some(&state.capacity), self.machine.names_mut()) {
                    Ok(capacity) => {
                        let known = self.pools.get(&pool).map(|seen| (&seen.state.note, seen.state.present));
                        if known != Some((&state.note, state.present)) {
                            self.runs.values_mut().for_each(|run| run.dirty = true);
                        }
                        self.pools.insert(pool.clone(), SeenPool { capacity, state });
                        self.tell_pool(&pool);
                    }
                    Err(refused) => tracing::error!(%pool, problem = %refused.message, "the pool's resources cannot be used"),
                }
            }
            Seen::Ask { pools, answer } => {
                let _ = answer.send(pools.iter().map(|pool| self.pool_load(pool)).collect());
            }
            Seen::Release { worker } => self.drain_worker(&worker, true),
            Seen::Empty { workers } => self.empty_workers(&workers),
            Seen::GiveWay { worker } => self.drain_worker(&worker, false),
        }
    }

    /// What the planner is to know of a pool. A worker is not idle while it has something that is nowhere else yet.
    fn pool_load(&self, pool: &str) -> PoolLoad {
        let mut load = self.machine.pool_load(pool);
        for worker in &mut load.workers {
            worker.idle &= self.outputs.uncopied(worker.session) == 0;
        }
        load
    }

    /// Drains the worker of this name; if it is to be idle, only when it is, and when nothing would be lost with it.
    fn drain_worker(&mut self, name: &str, idle: bool) {
        let found = self.machine.workers().find(|worker| worker.name == name);
        let may_go = |worker: &WorkerView| self.is_idle(worker) && !self.machine.holds_alone(worker.session);
        if let Some(worker) = found.filter(|worker| !idle || may_go(worker)) {
            self.step(Input::Drain { session: worker.session });
        }
    }

    fn is_idle(&self, worker: &WorkerView) -> bool {
        worker.executing + worker.queued == 0 && self.outputs.uncopied(worker.session) == 0
    }

    /// Tells the machine what the provider says of a pool, less the workers that have registered meanwhile.
    fn tell_pool(&mut self, pool: &str) {
        let Some(seen) = self.pools.get(pool) else { return };
        let registered = self.machine.workers().filter(|worker| worker.pool == pool).count();
        let input = Input::Pool {
            pool: pool.to_owned(),
            components: seen.state.components.clone(),
            capacity: seen.capacity.clone(),
            starting: seen.state.present.saturating_sub(u32::try_from(registered).unwrap_or(u32::MAX)),
            scaled: seen.state.scaled,
            note: seen.state.note.clone(),
        };
        self.step(input);
    }

    /// Does everything the machine wants done, then sends what has gathered.
    fn flush(&mut self) {
        loop {
            let mut outbox = std::mem::take(&mut self.outbox);
            for output in outbox.drain(..) {
                self.act(output);
            }
            // What acting has put to the machine is in the outbox already; the allocation is kept where that is nothing.
            if self.outbox.is_empty() {
                self.outbox = outbox;
            }
            self.reports.clear();
            self.result_frames.clear();
            let closed = self.close_runs();
            if !self.pace_clients() && !closed && self.outbox.is_empty() {
                break;
            }
        }
        for run in std::mem::take(&mut self.unrecorded) {
            self.recorded(run);
        }
        for session in self.ended_sessions.drain(..) {
            self.workers.remove(&session);
        }
        let now = Instant::now();
        let workers = self.workers.values_mut().filter_map(|session| session.flush(now)).min();
        let clients = self.clients.values_mut().filter_map(|client| client.flush(now)).min();
        self.acks_due = workers.into_iter().chain(clients).min();
        self.drop_overflowed();
        self.touched = None;
        self.push_progress();
    }

    fn act(&mut self, output: Output) {
        match output {
            Output::Submitted { client_key, run, first_group, known } => self.submitted(client_key, run, first_group, known),
            Output::Refused { client_key, code, message } => self.refused(client_key, code, message),
            Output::Dispatch { session, dispatch } => self.dispatch(session, dispatch),
            Output::Retract { session, handles } => {
                self.tell_worker(session, |handles| v1::scheduler_control::Body::Retract(v1::Retract { handles }), &handles)
            }
            Output::CancelAttempts { session, handles } => self.tell_worker(
                session,
                |handles| v1::scheduler_control::Body::Cancel(v1::CancelAttempts { handles, reason: "cancelled".to_owned() }),
                &handles,
            ),
            Output::DrainWorker { session } => {
                if let Some(worker) = self.workers.get_mut(&session) {
                    worker.send_control(v1::scheduler_control::Body::Drain(v1::Drain {
                        deadline_ms: 0,
                        reason: "the scheduler drains this worker".to_owned(),
                    }));
                }
            }
            // A worker that was given up may begin a new session; it knows that by the word.
            Output::CloseSession { session, reason } if self.ended_sessions.contains(&session) => {
                self.close_session(session, &format!("lost: {reason}"));
            }
            Output::CloseSession { session, reason } => self.close_session(session, &reason),
            Output::AttemptStarted { task, .. } => self.touch(task.group),
            Output::AttemptEnded { task, attempt, session, class, token, retry_at, why } => {
                let report = self.report_of_end(token, why);
                self.attempt_ended(task, attempt, session, class, report, retry_at.is_some());
            }
            Output::Committed { task, attempt, session, token } => self.committed(task, attempt, session, token),
            Output::Superseded { .. } => self.counters.superseded += 1,
            Output::TaskFailed { task, attempts, class } => self.task_failed(task, attempts, class),
            Output::Skipped { group, first, count, root } => self.skipped(group, first, count, root),
            Output::Cancelled { group, first, count } => self.cancelled(group, first, count),
            Output::LengthKnown { group, .. } => self.touch(group),
            // Taken from the outbox when the client's frame was: what follows in the same batch needs the number.
            Output::GroupAdded { .. } => {}
            Output::Rejected { run, ordinal, first, count, code, message } => {
                self.reject(run, ordinal, first, count, &convert::Refused::new(code, message, ""));
            }
            Output::Released { group, first, count } => self.released(group, first, count),
            Output::GroupForgotten { run, group } => self.group_forgotten(run, group),
            Output::DropObject { session, task } => self.drop_object(session, task),
            Output::Fetch { session, task, attempt } => self.keep_elsewhere(session, task, attempt),
            Output::Restored { task, attempt, session, token } => self.restored(task, attempt, session, token),
            Output::RunEnded { run, end } => self.run_ended(run, end),
            Output::WorkerChanged { session, state } => self.worker_changed(session, state),
        }
    }

    fn publish(&self) {
        let snapshot = Snapshot {
            cluster: self.cluster_status(None),
            runs: self.runs.keys().rev().take(100).map(|run| self.progress(*run)).collect(),
            counters: self.counters,
            outputs: self.output_figures(),
        };
        self.snapshots.send_replace(Arc::new(snapshot));
    }

    fn record(&self, record: Record) {
        self.records.send(record);
    }
}

/// Makes the reactor's one timer fire at this time or earlier. A new one for every turn would cost three system calls each time: the
/// runtime wakes itself to look at it. So it may fire when nothing is due any more, and is set again then.
fn set_alarm(alarm: Pin<&mut Sleep>, at: Instant) {
    let at = tokio::time::Instant::from_std(at);
    if at < alarm.deadline() || alarm.is_elapsed() {
        alarm.reset(at);
    }
}
