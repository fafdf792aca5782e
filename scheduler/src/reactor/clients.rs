//! Clients' sessions: handshake, runs submitted in parts, progress pushed as fast as it is acknowledged.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustc_hash::FxHashSet;
use scalable_core::ids::{GroupId, RunId};
use scalable_core::link::Arrival;
use scalable_core::messages::{Connection, Input};
use scalable_core::spec::GROUPS_PER_RUN_MAX;
use scalable_proto::v1;
use scalable_template::Space;
use tonic::Status;

use super::deliver::Outgoing;
use super::handshake::{SESSION_OVER, welcome};
use super::streams::Streams;
use super::{Peer, Reactor};
use crate::convert::{self, Refused};
use crate::serve::{ConnectionId, Out};

/// Frames kept for a client that does not acknowledge; what it is told beyond that is only in the records.
const FRAMES_KEPT_MAX: usize = 4096;
/// Progress frames under way to one client: the next goes out when one was acknowledged, so a slow client gets fewer.
const PROGRESS_UNDER_WAY_MAX: usize = 4;
/// A session without a connection is kept this long for its client to come back.
const KEPT_AFTER_RESET: Duration = Duration::from_secs(60);
/// Wire bytes of one run's groups.
const RUN_BYTES_MAX: usize = 256 << 20;
/// Runs one client may watch.
const WATCHES_MAX: usize = 64;
/// Tasks in one submit of the readable form.
const SUBMIT_TASKS_MAX: usize = 1000;

/// One client.
pub(super) struct ClientSession {
    streams: Streams<v1::ClientEvents, v1::ClientResults>,
    pub(super) watches: BTreeSet<String>,
    behind: BTreeSet<RunId>,
    assembling: Option<Box<v1::RunSpec>>,
    assembled_bytes: usize,
    left_at: Option<Instant>,
    pub(super) outgoing: Outgoing,
    /// Holders of objects that it knows.
    peers: FxHashSet<u32>,
    overflowed: bool,
}

/// Whom to answer when the machine has decided about a submit, and what to keep then.
pub(super) struct PendingSubmit {
    client: u64,
    over_data: bool,
    spec: v1::RunSpec,
    spaces: Vec<Space>,
}

impl ClientSession {
    fn new() -> Self {
        ClientSession {
            streams: Streams::new(FRAMES_KEPT_MAX),
            watches: BTreeSet::new(),
            behind: BTreeSet::new(),
            assembling: None,
            assembled_bytes: 0,
            left_at: None,
            outgoing: Outgoing::default(),
            peers: FxHashSet::default(),
            overflowed: false,
        }
    }

    /// Sends a numbered frame on control. A client that acknowledges nothing is not told more than [`FRAMES_KEPT_MAX`] things.
    pub(super) fn send(&mut self, body: v1::client_events::Body) {
        let _ = self.streams.send_control(|seq, acks| v1::ClientEvents { seq, acks: Some(acks), body: Some(body) });
    }

    /// Sends a numbered frame on data. Every one of them matters: a client that acknowledges none is sent away.
    pub(super) fn send_data(&mut self, body: v1::client_results::Body) {
        self.overflowed |= self.streams.send_data(|seq| v1::ClientResults { seq, body: Some(body) }).is_err();
    }

    /// Tells it of a holder of objects, once.
    pub(super) fn introduce(&mut self, peer: &v1::AnnouncePeer) {
        if self.peers.insert(peer.peer) {
            self.send_data(v1::client_results::Body::Peer(peer.clone()));
        }
    }

    /// Sends the results that have gathered, and acknowledgements that no frame has carried; says when to look at those again.
    pub(super) fn flush(&mut self, now: Instant) -> Option<Instant> {
        for batch in self.outgoing.take() {
            self.send_data(v1::client_results::Body::Results(batch));
        }
        self.streams.acknowledge(now, |acks| v1::ClientEvents { seq: 0, acks: Some(acks), body: None })
    }
}

impl Reactor {
    pub(super) fn client_control_opened(&mut self, id: ConnectionId, hello: &v1::Hello, out: Out<v1::ClientEvents>) {
        let protocol = match self.check_hello(hello) {
            Ok(protocol) => protocol,
            Err(status) => {
                let _ = out.send(Err(status));
                return;
            }
        };
        let resumed = hello.epoch == self.identity.epoch && self.clients.contains_key(&hello.session);
        let number = if resumed { hello.session } else { self.new_session() };
        let client = self.clients.entry(number).or_insert_with(ClientSession::new);
        let received = client.streams.received();
        let body = Some(v1::client_events::Body::Welcome(welcome(&self.identity, number, protocol, received, resumed)));
        let frame = v1::ClientEvents { seq: 0, acks: Some(received), body };
        let goes_on = resumed.then(|| hello.received.unwrap_or_default());
        client.left_at = None;
        if let Some(old) = client.streams.attach_control(id, out, frame, goes_on) {
            self.connections.remove(&old);
        }
        self.connections.insert(id, Peer::Client(number));
    }

    pub(super) fn client_data_opened(&mut self, id: ConnectionId, bind: &v1::Bind, out: Out<v1::ClientResults>) {
        let epoch = self.identity.epoch;
        let Some(client) = self.clients.get_mut(&bind.session).filter(|_| bind.epoch == epoch) else {
            let _ = out.send(Err(Status::failed_precondition(SESSION_OVER)));
            return;
        };
        let bound = v1::client_results::Body::Bound(v1::Bound { received: client.streams.received().data });
        let frame = v1::ClientResults { seq: 0, body: Some(bound) };
        client.left_at = None;
        if let Some(old) = client.streams.attach_data(id, out, frame, bind.received) {
            self.connections.remove(&old);
        }
        self.connections.insert(id, Peer::Client(bind.session));
    }

    pub(super) fn client_closed(&mut self, number: u64, id: ConnectionId) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        client.streams.detach(id);
        if client.streams.is_detached() {
            client.left_at = Some(Instant::now());
        }
    }

    /// Forgets clients that are gone for good, and what only they could have gone on with.
    pub(super) fn expire_clients(&mut self) {
        let gone = |(_, client): &(&u64, &ClientSession)| {
            client.overflowed || client.left_at.is_some_and(|left| left.elapsed() >= KEPT_AFTER_RESET)
        };
        let gone: Vec<u64> = self.clients.iter().filter(gone).map(|(number, _)| *number).collect();
        for number in gone {
            self.close_client(number, "the client acknowledges nothing");
        }
    }

    pub(super) fn client_control(&mut self, id: ConnectionId, frame: v1::ClientControl) {
        let Some(Peer::Client(number)) = self.connections.get(&id).copied() else { return };
        let Some(client) = self.clients.get_mut(&number) else { return };
        client.streams.acked(frame.acks);
        if frame.seq > 0 {
            match client.streams.arrive(Connection::Control, frame.seq) {
                Arrival::New => {}
                Arrival::Repeated => return,
                Arrival::Gap => return self.close_client(number, "a frame on control is missing"),
            }
        }
        match frame.body {
            Some(v1::client_control::Body::Watch(watch)) => self.watch(number, watch.run),
            Some(v1::client_control::Body::Submit(submit)) => {
                let key = submit.client_key.clone();
                if let Err(refused) = self.submit_tasks(number, submit) {
                    self.answer(number, false, refusal(key, &refused));
                }
            }
            Some(v1::client_control::Body::Release(release)) => {
                if let Err(what) = self.release(number, &release) {
                    self.close_client(number, what);
                }
            }
            Some(v1::client_control::Body::Cancel(cancel)) => self.cancel_elements(number, &cancel),
            Some(v1::client_control::Body::Locate(locate)) => self.find_again(number, &locate),
            Some(v1::client_control::Body::Taken(taken)) => client.outgoing.taken(taken.weight),
            Some(v1::client_control::Body::Ping(_)) | None => {}
            Some(v1::client_control::Body::Hello(_)) => self.close_client(number, "a second hello on one stream"),
        }
    }

    fn close_client(&mut self, number: u64, what: &str) {
        if let Some(mut client) = self.clients.remove(&number) {
            client.send(v1::client_events::Body::Goodbye(v1::Goodbye { reason: format!("protocol violation: {what}") }));
            self.abandon_runs(number);
        }
    }

    fn watch(&mut self, number: u64, run: String) {
        let known = self.run_named(&run);
        let Some(client) = self.clients.get_mut(&number) else { return };
        if client.watches.len() < WATCHES_MAX {
            client.watches.insert(run.clone());
        }
        match known {
            Some(id) => {
                client.behind.insert(id);
                if let Some(run) = self.runs.get_mut(&id) {
                    run.told_at = None;
                }
            }
            None => {
                let note = format!("no run `{run}` is known here");
                client.send(v1::client_events::Body::Progress(v1::RunProgress {
                    run,
                    note,
                    complete: true,
                    ..Default::default()
                }));
            }
        }
    }

    pub(super) fn client_data(&mut self, id: ConnectionId, frame: v1::ClientData) {
        let Some(Peer::Client(number)) = self.connections.get(&id).copied() else { return };
        let Some(client) = self.clients.get_mut(&number) else { return };
        match client.streams.arrive(Connection::Data, frame.seq) {
            Arrival::New => {}
            Arrival::Repeated => return,
            Arrival::Gap => return self.close_client(number, "a frame on data is missing"),
        }
        match frame.body {
            Some(v1::client_data::Body::Begin(begin)) => {
                client.assembled_bytes = prost::Message::encoded_len(&begin);
                client.assembling = Some(Box::new(begin));
            }
            Some(v1::client_data::Body::Group(group)) => {
                client.assembled_bytes = client.assembled_bytes.saturating_add(prost::Message::encoded_len(&group));
                // At the bound the parts are dropped; the refusal comes with the commit.
                match &mut client.assembling {
                    Some(run) if run.groups.len() <= GROUPS_PER_RUN_MAX && client.assembled_bytes <= RUN_BYTES_MAX => {
                        run.groups.push(group);
                    }
                    _ => {}
                }
            }
            Some(v1::client_data::Body::Commit(commit)) => {
                let (spec, bytes) = (client.assembling.take(), client.assembled_bytes);
                let outcome = match spec {
                    Some(_) if bytes > RUN_BYTES_MAX => Err(Refused::new(
                        "E_RUN_TOO_LARGE",
                        format!("the run takes {bytes} bytes; at most {RUN_BYTES_MAX} are allowed"),
                        "use foreach with ranges instead of long lists, or split the run",
                    )),
                    Some(spec) => self.submit(number, true, *spec),
                    None => Err(Refused::new("E_MALFORMED", "a commit without a run", "send begin first")),
                };
                if let Err(refused) = outcome {
                    self.answer(number, true, refusal(commit.client_key, &refused));
                }
            }
            Some(v1::client_data::Body::AddGroup(group)) => {
                if let Err(what) = self.add_group(number, group) {
                    self.close_client(number, what);
                }
            }
            Some(v1::client_data::Body::Append(append)) => {
                if let Err(what) = self.append(number, append) {
                    self.close_client(number, what);
                }
            }
            Some(v1::client_data::Body::CloseRun(close)) => {
                if let Err(what) = self.close_run(number, close.run) {
                    self.close_client(number, what);
                }
            }
            Some(v1::client_data::Body::Bind(_)) | None => {}
        }
    }

    /// Checks a run and puts it to the machine; the answer follows from the outbox.
    fn submit(&mut self, client: u64, over_data: bool, mut spec: v1::RunSpec) -> Result<(), Refused> {
        if self.stopping.is_some() {
            return Err(Refused::new("E_STOPPING", "the scheduler is shutting down", "start it again"));
        }
        file_safe(&spec.name, "run")?;
        if spec.fetched {
            spec.directory = self.runs_dir.join(&spec.name).display().to_string();
        }
        let core = convert::run(&spec, self.machine.names_mut())?;
        let unrecorded = spec.open && spec.directory.is_empty();
        if !unrecorded && !std::path::Path::new(&spec.directory).is_absolute() {
            return Err(Refused::new(
                "E_NO_DIRECTORY",
                format!("run `{}` names no absolute directory for its records", spec.name),
                "set RunSpec.directory",
            ));
        }
        let mut spaces = Vec::with_capacity(spec.groups.len());
        for group in &spec.groups {
            file_safe(&group.name, "group")?;
            let parameters = group.parameters.clone().unwrap_or_default();
            let space = Space::with_length(&parameters, group.length).map_err(|error| {
                Refused::new("E_BAD_PARAMETERS", format!("group `{}`: {error}", group.name), "check foreach, zip and from")
            })?;
            spaces.push(space);
        }
        let key = core.client_key;
        if self.pending_submits.contains_key(&key) {
            return Err(Refused::new("E_BUSY", "a submit with this key is being decided", "wait for its answer"));
        }
        self.pending_submits.insert(key, PendingSubmit { client, over_data, spec, spaces });
        self.step(Input::Submit(Box::new(core)));
        Ok(())
    }

    /// The readable form: every task becomes a group of one.
    fn submit_tasks(&mut self, client: u64, submit: v1::SubmitTasks) -> Result<(), Refused> {
        if submit.tasks.is_empty() || submit.tasks.len() > SUBMIT_TASKS_MAX {
            let message = format!("{} tasks in one submit; 1 to {SUBMIT_TASKS_MAX} are allowed", submit.tasks.len());
            return Err(Refused::new("E_TOO_MANY_TASKS", message, "submit a run with groups instead"));
        }
        let mut spec = v1::RunSpec {
            name: submit.run,
            client_key: submit.client_key,
            directory: submit.directory,
            fetched: submit.fetched,
            project: "submit".to_owned(),
            ..Default::default()
        };
        let literal = |text: String| v1::Text { pieces: vec![v1::Piece { kind: Some(v1::piece::Kind::Literal(text)) }] };
        let names: Vec<String> = submit.tasks.iter().map(|task| task.name.clone()).collect();
        for task in submit.tasks {
            let mut dependencies = Vec::new();
            for after in &task.after {
                let group = names.iter().position(|name| name == after).ok_or_else(|| {
                    Refused::new(
                        "E_UNKNOWN_TASK",
                        format!("task `{}` is after `{after}`, which is not in this submit", task.name),
                        "name an earlier task",
                    )
                })?;
                let kind = Some(v1::dependency::Kind::Whole(v1::dependency::Whole {}));
                dependencies.push(v1::Dependency { group: group as u32, kind });
            }
            let template = v1::TaskTemplate {
                component: if task.component.is_empty() { "default".to_owned() } else { task.component },
                command: Some(v1::task_template::Command::Argv(v1::Argv { args: task.argv.into_iter().map(literal).collect() })),
                env: task.env.into_iter().map(|(name, value)| (name, literal(value))).collect(),
                ..Default::default()
            };
            if !task.directory.is_empty() && spec.base_directory.is_empty() {
                spec.base_directory = task.directory;
            }
            spec.groups.push(v1::GroupSpec {
                name: task.name,
                template: Some(template),
                length: 1,
                dependencies,
                policy: task.policy,
                resources: task.resources,
                ..Default::default()
            });
        }
        self.submit(client, false, spec)
    }

    pub(super) fn submitted(&mut self, key: [u8; 16], run: RunId, first_group: GroupId, known: bool) {
        let Some(pending) = self.pending_submits.remove(&key) else { return };
        if !known {
            let client = Some(pending.client).filter(|_| pending.spec.open);
            self.begin_run(run, first_group, pending.spec, pending.spaces, client);
        }
        let name = self.runs.get(&run).map_or_else(String::new, |run| run.spec.name.clone());
        let reply = v1::SubmitReply { client_key: key.to_vec().into(), run: name, refusal: None, known, number: run.0 };
        self.answer(pending.client, pending.over_data, reply);
    }

    pub(super) fn refused(&mut self, key: [u8; 16], code: &'static str, message: String) {
        let Some(pending) = self.pending_submits.remove(&key) else { return };
        let refused = Refused::new(code, message, "");
        self.answer(pending.client, pending.over_data, refusal(key.to_vec().into(), &refused));
    }

    fn answer(&mut self, client: u64, over_data: bool, reply: v1::SubmitReply) {
        let Some(client) = self.clients.get_mut(&client) else { return };
        if over_data {
            client.send_data(v1::client_results::Body::Submitted(reply));
        } else {
            client.send(v1::client_events::Body::Submitted(reply));
        }
    }

    /// Shortest time between two progress frames of a run: none for small ones, longer for runs with many groups, so that
    /// telling never costs more than a few per cent of a core. The end of a run is always told at once.
    fn progress_interval(groups: u32) -> Duration {
        if groups < 16 { Duration::ZERO } else { Duration::from_micros(u64::from(groups) * 50) }
    }

    /// When a progress frame that was held back is due.
    pub(super) fn next_progress(&self) -> Option<Instant> {
        let due = |run: &super::RunInfo| run.told_at.map(|told| told + Self::progress_interval(run.groups.len() as u32));
        self.runs.values().filter(|run| run.dirty && !run.complete).filter_map(due).min()
    }

    pub(super) fn push_progress(&mut self) {
        let now = Instant::now();
        let mut due = Vec::new();
        for (id, run) in &mut self.runs {
            let wait = Self::progress_interval(run.groups.len() as u32);
            if run.dirty && (run.complete || run.told_at.is_none_or(|told| told + wait <= now)) {
                (run.dirty, run.told_at) = (false, Some(now));
                due.push((*id, run.spec.name.clone()));
            }
        }
        for client in self.clients.values_mut() {
            for (id, name) in &due {
                if client.watches.contains(name) {
                    client.behind.insert(*id);
                }
            }
        }
        let ready: Vec<(u64, RunId)> = self
            .clients
            .iter()
            .filter(|(_, client)| client.streams.control_under_way() < PROGRESS_UNDER_WAY_MAX)
            .flat_map(|(number, client)| client.behind.iter().map(|run| (*number, *run)))
            .collect();
        for (number, run) in ready {
            let progress = self.progress(run);
            if let Some(client) = self.clients.get_mut(&number) {
                client.behind.remove(&run);
                client.send(v1::client_events::Body::Progress(progress));
            }
        }
    }
}

fn refusal(key: bytes::Bytes, refused: &Refused) -> v1::SubmitReply {
    v1::SubmitReply { client_key: key, run: String::new(), refusal: Some(refused.to_wire()), known: false, number: 0 }
}

/// Names become directories: only what is safe in one is taken.
pub(super) fn file_safe(name: &str, what: &str) -> Result<(), Refused> {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && name.len() <= 200 && name.chars().all(safe) && !name.starts_with('.') {
        return Ok(());
    }
    let shown: String = name.chars().take(40).map(|c| if c.is_control() { '?' } else { c }).collect();
    Err(Refused::new(
        "E_BAD_NAME",
        format!("`{shown}` is no name for a {what}: 1 to 200 letters, digits, `-`, `_` and `.`, not beginning with `.`"),
        "choose another name",
    ))
}
