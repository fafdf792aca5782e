//! Workers' sessions: handshake, streams that survive their connections, batches in both directions.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rustc_hash::FxHashSet;
use scalable_core::ids::{GroupId, Handle, RunId, SessionId, ShapeId, TaskRef};
use scalable_core::link::Arrival;
use scalable_core::messages::{
    Connection, Dispatch, EventKind, Finish, Input, Missing, OutcomeClass, Stored, WorkerEvent, WorkerSpec, WorkerState,
};
use scalable_core::resources::Resources;
use scalable_core::scheduler::{SHARES_MAX, projection};
use scalable_proto::v1;
use scalable_tls::WorkerIdentity;
use tonic::Status;

use super::columns::Columns;
use super::handshake::{SESSION_OVER, welcome};
use super::moves::Answers;
use super::runs::Report;
use super::streams::Streams;
use super::{Peer, Reactor};
use crate::convert;
use crate::records::Record;
use crate::serve::{ConnectionId, Out};

/// Frames kept for a worker that does not acknowledge; one more closes its session.
const FRAMES_KEPT_MAX: usize = 8192;
/// Objects in one input frame.
const OBJECTS_PER_FRAME_MAX: usize = 8192;
/// The largest result that travels inline.
const INLINE_BYTES_MAX: u32 = 64 << 10;
/// Missing objects that one report names.
const MISSING_MAX: usize = 1000;

/// One registration of a worker.
pub(super) struct WorkerSession {
    pub(super) name: Arc<str>,
    pub(super) pid: u32,
    pub(super) host: String,
    streams: Streams<v1::SchedulerControl, v1::SchedulerData>,
    runs: FxHashSet<RunId>,
    groups: FxHashSet<GroupId>,
    shapes: FxHashSet<ShapeId>,
    columns: Columns,
    dropped: v1::DropObjects,
    /// Groups that it may forget, to be said with the next flush.
    forgotten: Vec<u32>,
    stored: v1::AttemptsStored,
    /// What it is to keep because others leave, to be said with the next flush.
    wanted: Vec<v1::ObjectRef>,
    /// Holders of objects that it knows.
    peers: FxHashSet<u32>,
    /// What the last dispatch referred to, and so needs no announcement.
    announced: Option<(GroupId, ShapeId)>,
    overflowed: bool,
    /// It said that it has no room for results.
    full: bool,
    pub(super) closed: bool,
}

impl WorkerSession {
    fn new(name: &str, pid: u32, host: String) -> Self {
        WorkerSession {
            name: Arc::from(name),
            pid,
            host,
            streams: Streams::new(FRAMES_KEPT_MAX),
            runs: FxHashSet::default(),
            groups: FxHashSet::default(),
            shapes: FxHashSet::default(),
            columns: Columns::default(),
            dropped: v1::DropObjects::default(),
            forgotten: Vec::new(),
            stored: v1::AttemptsStored::default(),
            wanted: Vec::new(),
            peers: FxHashSet::default(),
            announced: None,
            overflowed: false,
            full: false,
            closed: false,
        }
    }

    /// Sends a numbered frame on control, now or when the connection is back.
    pub(super) fn send_control(&mut self, body: v1::scheduler_control::Body) {
        let sent = self.streams.send_control(|seq, acks| v1::SchedulerControl { seq, acks: Some(acks), body: Some(body) });
        self.overflowed |= sent.is_err();
    }

    pub(super) fn send_data(&mut self, body: v1::scheduler_data::Body) {
        let sent = self.streams.send_data(|seq| v1::SchedulerData { seq, body: Some(body) });
        self.overflowed |= sent.is_err();
    }

    fn send_batch(&mut self) {
        if let Some(batch) = self.columns.take() {
            self.send_data(v1::scheduler_data::Body::Dispatch(batch));
        }
    }

    /// Tells it of a holder of objects, once.
    pub(super) fn introduce(&mut self, peer: &v1::AnnouncePeer) {
        if self.peers.insert(peer.peer) {
            self.send_data(v1::scheduler_data::Body::Peer(peer.clone()));
        }
    }

    /// It need not keep this object; said with the next flush.
    pub(super) fn drop_object(&mut self, task: TaskRef) {
        self.dropped.group.push(task.group.0);
        self.dropped.index.push(task.index);
    }

    /// It is to fetch and keep this object; said with the next flush, after who holds it.
    pub(super) fn keep(&mut self, object: v1::ObjectRef) {
        self.wanted.push(object);
    }

    /// It need not know this group any more, if it did; said with the next flush.
    pub(super) fn group_forgotten(&mut self, group: GroupId) {
        if self.groups.remove(&group) {
            self.forgotten.push(group.0);
        }
    }

    /// It need not stay for what this attempt has left; said with the next flush.
    pub(super) fn attempt_stored(&mut self, task: TaskRef, attempt: u32) {
        self.stored.group.push(task.group.0);
        self.stored.index.push(task.index);
        self.stored.attempt.push(attempt);
    }

    /// Sends what has gathered in this batch of inputs, and acknowledgements that no frame has carried; says when to look at those
    /// again.
    pub(super) fn flush(&mut self, now: Instant) -> Option<Instant> {
        self.send_batch();
        if !self.wanted.is_empty() {
            let objects = std::mem::take(&mut self.wanted);
            self.send_data(v1::scheduler_data::Body::Keep(v1::KeepObjects { objects }));
        }
        if !self.dropped.group.is_empty() {
            let dropped = std::mem::take(&mut self.dropped);
            self.send_control(v1::scheduler_control::Body::Drop(dropped));
        }
        if !self.forgotten.is_empty() {
            let groups = std::mem::take(&mut self.forgotten);
            self.send_control(v1::scheduler_control::Body::Release(v1::Release { runs: Vec::new(), groups }));
        }
        if !self.stored.group.is_empty() {
            let stored = std::mem::take(&mut self.stored);
            self.send_control(v1::scheduler_control::Body::Stored(stored));
        }
        self.streams.acknowledge(now, |acks| v1::SchedulerControl { seq: 0, acks: Some(acks), body: None })
    }
}

impl Reactor {
    pub(super) fn worker_control_opened(&mut self, id: ConnectionId, frame: v1::WorkerHello, out: Out<v1::SchedulerControl>) {
        let hello = frame.hello.clone().unwrap_or_default();
        let protocol = match self.check_hello(&hello) {
            Ok(protocol) => protocol,
            Err(status) => {
                let _ = out.send(Err(status));
                return;
            }
        };
        let wanted = SessionId(hello.session);
        let resumed = hello.epoch == self.identity.epoch
            && self.workers.get(&wanted).is_some_and(|session| !session.closed && *session.name == *frame.name);
        let session = if resumed {
            wanted
        } else {
            let capacity = match convert::resources(frame.resources.as_ref(), self.machine.names_mut()) {
                Ok(capacity) => capacity,
                Err(refused) => {
                    let _ = out.send(Err(Status::invalid_argument(refused.message)));
                    return;
                }
            };
            let memory_bytes = if capacity.memory_bytes == 0 { Resources::MEMORY_UNACCOUNTED } else { capacity.memory_bytes };
            let problem = if frame.name.is_empty() || frame.name.len() > scalable_core::spec::NAME_BYTES_MAX {
                Some("a worker's name has 1 to 256 bytes")
            } else if frame.components.is_empty() || frame.components.len() > 1000 {
                Some("a worker serves 1 to 1,000 components")
            } else {
                None
            };
            if let Some(problem) = problem {
                let _ = out.send(Err(Status::invalid_argument(problem)));
                return;
            }
            let session = SessionId(self.new_session());
            self.workers.insert(session, WorkerSession::new(&frame.name, frame.pid, frame.host.clone()));
            let worker = WorkerSpec {
                name: frame.name.clone(),
                pool: frame.pool,
                components: frame.components,
                capacity: Resources { memory_bytes, ..capacity },
            };
            self.peers.join(session, &frame.peer_address, &frame.host);
            tracing::info!(worker = %frame.name, session = session.0, "worker registered");
            let pool = worker.pool.clone();
            self.step(Input::Join { session, worker });
            self.tell_pool(&pool);
            session
        };
        let Some(worker) = self.workers.get_mut(&session) else { return };
        let received = worker.streams.received();
        let mut welcome = welcome(&self.identity, session.0, protocol, received, resumed);
        welcome.object_key = Bytes::copy_from_slice(self.identity.object_key.expose());
        welcome.store_address = self.identity.store_address.clone();
        let body = Some(v1::scheduler_control::Body::Welcome(welcome));
        let frame = v1::SchedulerControl { seq: 0, acks: Some(received), body };
        let goes_on = resumed.then(|| hello.received.unwrap_or_default());
        if let Some(old) = worker.streams.attach_control(id, out, frame, goes_on) {
            self.connections.remove(&old);
        }
        self.connections.insert(id, Peer::Worker(session));
        self.step(Input::Attach { session, connection: Connection::Control });
    }

    /// True while a worker of this name has a session, whatever its connections do.
    pub(crate) fn has_live_worker(&self, name: &str) -> bool {
        self.workers.values().any(|worker| !worker.closed && *worker.name == *name)
    }

    /// `worker` is who the connection's certificate says it is: its session is its own and nobody else's.
    pub(super) fn worker_data_opened(
        &mut self,
        id: ConnectionId,
        bind: &v1::Bind,
        worker: Option<&WorkerIdentity>,
        out: Out<v1::SchedulerData>,
    ) {
        let session = SessionId(bind.session);
        let epoch = self.identity.epoch;
        let own = |name: &str| worker.is_none_or(|worker| worker.name() == name);
        let goes_on = |worker: &&mut WorkerSession| !worker.closed && bind.epoch == epoch && own(&worker.name);
        let Some(worker) = self.workers.get_mut(&session).filter(goes_on) else {
            let _ = out.send(Err(Status::failed_precondition(SESSION_OVER)));
            return;
        };
        let bound = v1::scheduler_data::Body::Bound(v1::Bound { received: worker.streams.received().data });
        let frame = v1::SchedulerData { seq: 0, body: Some(bound) };
        if let Some(old) = worker.streams.attach_data(id, out, frame, bind.received) {
            self.connections.remove(&old);
        }
        self.connections.insert(id, Peer::Worker(session));
        self.step(Input::Attach { session, connection: Connection::Data });
    }

    pub(super) fn worker_closed(&mut self, session: SessionId, id: ConnectionId) {
        if let Some(connection) = self.workers.get_mut(&session).and_then(|worker| worker.streams.detach(id)) {
            self.step(Input::Reset { session, connection });
        }
    }

    pub(super) fn worker_control(&mut self, id: ConnectionId, frame: v1::WorkerControl) {
        let Some(Peer::Worker(session)) = self.connections.get(&id).copied() else { return };
        let Some(worker) = self.workers.get_mut(&session) else { return };
        worker.streams.acked(frame.acks);
        self.step(Input::Frame { session });
        let Some(worker) = self.workers.get_mut(&session) else { return };
        if frame.seq > 0 {
            match worker.streams.arrive(Connection::Control, frame.seq) {
                Arrival::New => {}
                Arrival::Repeated => return,
                Arrival::Gap => return self.violation(session, "a frame on control is missing"),
            }
        }
        match frame.body {
            Some(v1::worker_control::Body::RetractReply(reply)) => {
                let handles = |raw: Vec<u64>| raw.into_iter().map(Handle::from_u64).collect();
                self.step(Input::RetractReply { session, given_back: handles(reply.given_back), kept: handles(reply.kept) });
            }
            Some(v1::worker_control::Body::Draining(_)) => self.step(Input::Draining { session }),
            Some(v1::worker_control::Body::Goodbye(goodbye)) => {
                tracing::info!(session = session.0, reason = %goodbye.reason, "worker says goodbye");
                self.step(Input::Left { session });
            }
            Some(v1::worker_control::Body::Heartbeat(v1::Heartbeat { share_handles, share_bytes, full, .. })) => {
                if share_handles.len() != share_bytes.len() {
                    return self.violation(session, "the columns of a heartbeat do not fit together");
                }
                let before = std::mem::replace(&mut worker.full, full);
                if before != full {
                    self.step(Input::Full { session, full });
                }
                let shares = share_handles.into_iter().map(Handle::from_u64).zip(share_bytes).take(SHARES_MAX).collect();
                self.step(Input::MemoryShares { session, shares });
            }
            Some(v1::worker_control::Body::Log(chunk)) => self.live_logs.answered(session, chunk),
            None => {}
            Some(v1::worker_control::Body::Hello(_)) => self.violation(session, "a second hello on one stream"),
        }
    }

    pub(super) fn worker_data(&mut self, id: ConnectionId, frame: v1::WorkerData) {
        let Some(Peer::Worker(session)) = self.connections.get(&id).copied() else { return };
        self.step(Input::Frame { session });
        let Some(worker) = self.workers.get_mut(&session) else { return };
        match worker.streams.arrive(Connection::Data, frame.seq) {
            Arrival::New => {}
            Arrival::Repeated => return,
            Arrival::Gap => return self.violation(session, "a frame on data is missing"),
        }
        let Some(v1::worker_data::Body::Batch(mut batch)) = frame.body else { return };
        let copied = (std::mem::take(&mut batch.copied_group), std::mem::take(&mut batch.copied_index));
        let answers = Answers::take(&mut batch);
        match self.events(batch) {
            Some(events) if copied.0.len() == copied.1.len() && answers.fit() => {
                for (&group, &index) in copied.0.iter().zip(&copied.1) {
                    self.step(Input::ObjectCopied { session, task: TaskRef { group: GroupId(group), index } });
                }
                self.step(Input::Events { session, events });
                self.answered(session, answers);
            }
            _ => self.violation(session, "the columns of a batch do not fit together"),
        }
    }

    /// Turns a batch into events; the reports wait in `reports` under their tokens until the outbox is flushed.
    fn events(&mut self, batch: v1::WorkerBatch) -> Option<Vec<WorkerEvent>> {
        let v1::WorkerBatch { handle, attempt, event, reports, brief, result_end, results, object_size, wall_us, .. } = batch;
        let (mut ends, mut sizes, mut walls) = (result_end.into_iter(), object_size.into_iter(), wall_us.into_iter());
        let frame = u32::try_from(self.result_frames.len()).ok()?;
        let (mut start, length) = (0, results.len());
        if !results.is_empty() {
            self.result_frames.push(results);
        } else {
            self.result_frames.push(Bytes::new());
        }
        if handle.len() != attempt.len() || handle.len() != event.len() || brief.len() % 5 != 0 {
            return None;
        }
        let (mut reports, mut briefs) = (reports.into_iter(), brief.chunks_exact(5));
        let mut events = Vec::with_capacity(handle.len());
        for ((handle, attempt), event) in handle.into_iter().zip(attempt).zip(event) {
            let token = u32::try_from(self.reports.len()).ok()?;
            let kind = match event {
                0 => EventKind::Started,
                1 => {
                    let report = reports.next()?;
                    let mut finish = convert::finish(&report, token);
                    finish.missing = self.missing(&report);
                    self.reports.push(Report::Full(Box::new(report)));
                    EventKind::Finished(finish)
                }
                2 => {
                    let brief: [u64; 5] = briefs.next()?.try_into().ok()?;
                    self.reports.push(Report::Brief(brief));
                    EventKind::Finished(Finish {
                        class: OutcomeClass::Succeeded,
                        exit_code: Some(0),
                        signalled: false,
                        wall: brief[1],
                        cpu: brief[2].saturating_add(brief[3]),
                        peak_memory_bytes: brief[4],
                        length: None,
                        result: Stored::None,
                        missing: None,
                        token,
                    })
                }
                3 => {
                    let (end, wall_us) = (ends.next()?, walls.next()?);
                    if end < start || end as usize > length || end - start > INLINE_BYTES_MAX {
                        return None;
                    }
                    self.reports.push(Report::Returned { frame, start, end, wall_us });
                    let size = end - start;
                    start = end;
                    EventKind::Finished(returned(wall_us, Stored::Inline(size), token))
                }
                4 => {
                    let (size, wall_us) = (sizes.next()?, walls.next()?);
                    self.reports.push(Report::Held { size, wall_us });
                    EventKind::Finished(returned(wall_us, Stored::Held(size), token))
                }
                _ => return None,
            };
            events.push(WorkerEvent { handle: Handle::from_u64(handle), attempt, kind });
        }
        Some(events)
    }

    /// Which holders had not what they are said to hold.
    fn missing(&self, report: &v1::AttemptReport) -> Option<Box<Missing>> {
        let of = |object: &v1::ObjectRef| {
            let task = TaskRef { group: GroupId(object.group), index: object.index };
            let holders = object.holders.iter().filter_map(|&peer| self.peers.session(peer));
            holders.map(|session| (task, session)).collect::<Vec<_>>()
        };
        let missing: Vec<(TaskRef, SessionId)> = report.missing.iter().take(MISSING_MAX).flat_map(of).collect();
        (!missing.is_empty()).then(|| Box::new(Missing(missing)))
    }

    fn violation(&mut self, session: SessionId, what: &str) {
        self.close_session(session, &format!("protocol violation: {what}"));
        self.step(Input::Left { session });
    }

    pub(super) fn close_session(&mut self, session: SessionId, reason: &str) {
        let Some(worker) = self.workers.get_mut(&session) else { return };
        if worker.closed {
            return;
        }
        worker.closed = true;
        worker.send_control(v1::scheduler_control::Body::Goodbye(v1::Goodbye { reason: reason.to_owned() }));
        tracing::info!(worker = %worker.name, session = session.0, %reason, "session closed");
        for id in worker.streams.close() {
            self.connections.remove(&id);
        }
    }

    pub(super) fn drop_overflowed(&mut self) {
        let overflowed: Vec<SessionId> =
            self.workers.iter().filter(|(_, worker)| worker.overflowed && !worker.closed).map(|(id, _)| *id).collect();
        for session in overflowed {
            self.violation(session, "the worker acknowledges nothing");
        }
    }

    pub(super) fn worker_changed(&mut self, session: SessionId, state: WorkerState) {
        let Some(worker) = self.workers.get(&session) else { return };
        let (word, name) = (state_word(state), worker.name.clone());
        self.records.send(Record::Worker { session: session.0, name, pid: worker.pid, state: word });
        if matches!(state, WorkerState::Lost | WorkerState::Gone) {
            if state == WorkerState::Lost {
                self.counters.workers_lost += 1;
            }
            // A loss is followed by `CloseSession` with its reason in full.
            if state == WorkerState::Gone {
                self.close_session(session, word);
            }
            self.peers.leave(session);
            self.live_logs.left(session);
            self.outputs_left(session);
            // Forgotten when the outbox is flushed: later outputs of this step still ask for its name.
            self.ended_sessions.push(session);
        }
        for run in self.runs.values_mut() {
            run.dirty = true;
        }
    }

    pub(super) fn tell_worker(
        &mut self,
        session: SessionId,
        body: impl FnOnce(Vec<u64>) -> v1::scheduler_control::Body,
        handles: &[Handle],
    ) {
        if let Some(worker) = self.workers.get_mut(&session) {
            // What the machine says about a row must not overtake the dispatch of that row within one flush.
            worker.send_batch();
            worker.send_control(body(handles.iter().map(|handle| handle.to_u64()).collect()));
        }
    }

    pub(super) fn dispatch(&mut self, session: SessionId, dispatch: Dispatch) {
        self.counters.dispatched += 1;
        let Some(group) = self.groups.get(&dispatch.task.group).cloned() else { return };
        self.touch(dispatch.task.group);
        self.announce(session, &group, dispatch.shape);
        if self.add_values(session, &dispatch, &group).is_none() {
            for (ordinal, source) in group.inputs() {
                self.send_objects(session, &dispatch, ordinal, source, &group);
            }
        }
        let element = self.payloads.get(&group.id).and_then(|payload| payload.element(dispatch.task.index));
        let args = element.map_or(&[][..], |element| element.args());
        let Some(worker) = self.workers.get_mut(&session) else { return };
        worker.columns.push(&dispatch, args, !group.is_function());
        if worker.columns.is_full() {
            worker.send_batch();
        }
    }

    /// Adds what a task reads to the columns of its dispatch, when each of its inputs is one inline result.
    fn add_values(&mut self, session: SessionId, dispatch: &Dispatch, group: &super::GroupInfo) -> Option<()> {
        if !group.reads_single_results() {
            return None;
        }
        let worker = self.workers.get_mut(&session)?;
        let (payloads, run) = (&self.payloads, self.runs.get(&group.run)?);
        let own = payloads.get(&group.id).and_then(|payload| payload.element(dispatch.task.index));
        let result = |(input, source): (u32, &v1::InputSource)| {
            let task = match source.select {
                Some(v1::input_source::Select::Index(index)) => TaskRef { group: run.group(source.group)?, index },
                _ => own?.source(input)?,
            };
            payloads.get(&task.group)?.result(task.index)
        };
        worker.columns.push_values(group.inputs().map(result))
    }

    /// Tells the worker what the dispatch refers to, once per session.
    fn announce(&mut self, session: SessionId, group: &super::GroupInfo, shape: ShapeId) {
        let Some(worker) = self.workers.get_mut(&session) else { return };
        if worker.announced.replace((group.id, shape)) == Some((group.id, shape)) {
            return;
        }
        if worker.runs.insert(group.run)
            && let Some(run) = self.runs.get(&group.run)
        {
            worker.send_data(v1::scheduler_data::Body::Run(run.announcement(group.run)));
        }
        if worker.groups.insert(group.id) {
            worker.send_data(v1::scheduler_data::Body::Group(group.announcement()));
        }
        if worker.shapes.insert(shape)
            && let Some(resources) = self.machine.shape(shape)
        {
            let resources = convert::resources_to_wire(resources, self.machine.names());
            worker.send_data(v1::scheduler_data::Body::Shape(v1::AnnounceShape { shape: shape.0, resources: Some(resources) }));
        }
    }

    /// Sends the references of the objects that one input of a task reads.
    fn send_objects(
        &mut self,
        session: SessionId,
        dispatch: &Dispatch,
        input: u32,
        source: &v1::InputSource,
        group: &super::GroupInfo,
    ) {
        if let Some(v1::input_source::Select::Element(_)) = &source.select {
            let element = self.payloads.get(&group.id).and_then(|payload| payload.element(dispatch.task.index));
            let source = element.and_then(|element| element.source(input));
            return self.send_results(session, dispatch, input, source.as_slice());
        }
        let Some(upstream) = self.runs.get(&group.run).and_then(|run| run.group(source.group)) else { return };
        let indices: Vec<u32> = match &source.select {
            Some(v1::input_source::Select::Projection(axes)) => {
                projection::upstream_of(&convert::axes(axes), dispatch.task.index).into_iter().collect()
            }
            Some(v1::input_source::Select::Index(index)) => vec![*index],
            Some(v1::input_source::Select::Element(_)) => Vec::new(),
            Some(v1::input_source::Select::All(_)) | None => {
                let length = self.machine.group(upstream).and_then(|group| group.length).unwrap_or(0);
                (0..length).collect()
            }
        };
        let Some(info) = self.groups.get(&upstream).cloned() else { return };
        if info.is_function() {
            let tasks: Vec<TaskRef> = indices.into_iter().map(|index| TaskRef { group: upstream, index }).collect();
            return self.send_results(session, dispatch, input, &tasks);
        }
        let output = info.output_ordinal(&source.output);
        let kind = info.output_kind(&source.output);
        let mut peers = Vec::new();
        for chunk in indices.chunks(OBJECTS_PER_FRAME_MAX) {
            let objects: Vec<v1::ObjectRef> = chunk
                .iter()
                .map(|&index| {
                    let task = TaskRef { group: upstream, index };
                    let stored = output.and_then(|output| self.runs.get(&group.run)?.object(task, output));
                    match (stored, self.machine.committed_attempt(task)) {
                        (Some(stored), Some(attempt)) if stored.written => {
                            let mut object = v1::ObjectRef {
                                index,
                                attempt,
                                digest: stored.digest.clone(),
                                size: stored.size,
                                ..Default::default()
                            };
                            if stored.held {
                                object.group = upstream.0;
                                object.held = true;
                                object.kind = kind.into();
                                object.manifest = stored.manifest.clone();
                                object.manifest_size = stored.manifest_size;
                                object.executable = stored.executable;
                                peers.extend(self.locate(task, &mut object));
                            }
                            object
                        }
                        _ => v1::ObjectRef { index, ..Default::default() },
                    }
                })
                .collect();
            let body = v1::scheduler_data::Body::Input(v1::InputChunk { handle: dispatch.handle.to_u64(), input, objects });
            if let Some(worker) = self.workers.get_mut(&session) {
                peers.drain(..).for_each(|peer| worker.introduce(&peer));
                worker.send_data(body);
            }
        }
    }

    pub(super) fn worker_name(&self, session: SessionId) -> Arc<str> {
        self.workers.get(&session).map_or_else(|| Arc::from("?"), |worker| worker.name.clone())
    }
}

/// The end of a function that returned. Its execution time is taken for its processor time: it had a thread of its own.
fn returned(wall_us: u32, result: Stored, token: u32) -> Finish {
    Finish {
        class: OutcomeClass::Succeeded,
        exit_code: None,
        signalled: false,
        wall: wall_us.into(),
        cpu: wall_us.into(),
        peak_memory_bytes: 0,
        length: None,
        result,
        missing: None,
        token,
    }
}

/// A worker's state as people read it.
pub(super) fn state_word(state: WorkerState) -> &'static str {
    match state {
        WorkerState::Joining => "joining",
        WorkerState::Active => "active",
        WorkerState::Suspect => "suspect",
        WorkerState::Draining => "draining",
        WorkerState::Lost => "lost",
        WorkerState::Gone => "gone",
    }
}
