//! What functions return: small results, which are kept here and travel with the frames, and objects, which stay on their workers.

use rustc_hash::FxHashMap;
use scalable_core::ids::{GroupId, SessionId, TaskRef};
use scalable_core::messages::{Dispatch, Stored};
use scalable_proto::v1;

use bytes::Bytes;
use scalable_store::{GRANT_MS, ObjectId, now_ms};

use super::runs::Report;
use super::{GroupInfo, Reactor};

/// Objects in one input frame, and bytes of inline content.
const OBJECTS_PER_FRAME_MAX: usize = 8192;
const INLINE_PER_FRAME_MAX: usize = 1 << 20;

/// Holders of objects as their peers know them: numbers that are used once.
#[derive(Default)]
pub(super) struct Peers {
    by_session: FxHashMap<SessionId, v1::AnnouncePeer>,
    by_number: FxHashMap<u32, SessionId>,
    last: u32,
}

impl Peers {
    /// A worker that serves objects.
    pub(super) fn join(&mut self, session: SessionId, address: &str, host: &str) {
        if !address.is_empty() {
            self.last += 1;
            let peer = v1::AnnouncePeer { peer: self.last, address: address.to_owned(), host: host.to_owned() };
            self.by_number.insert(peer.peer, session);
            self.by_session.insert(session, peer);
        }
    }

    /// It is gone.
    pub(super) fn leave(&mut self, session: SessionId) {
        if let Some(peer) = self.by_session.remove(&session) {
            self.by_number.remove(&peer.peer);
        }
    }

    /// The worker of this number.
    pub(super) fn session(&self, peer: u32) -> Option<SessionId> {
        self.by_number.get(&peer).copied()
    }

    pub(super) fn get(&self, session: SessionId) -> Option<&v1::AnnouncePeer> {
        self.by_session.get(&session)
    }

    /// Whether some worker answers its peers at this address now.
    pub(super) fn serves(&self, address: &str) -> bool {
        self.by_session.values().any(|peer| peer.address == address)
    }
}

impl Reactor {
    /// A committed result of a function, if that is what the report is.
    pub(super) fn returned(&mut self, group: &GroupInfo, task: TaskRef, attempt: u32, token: u32) -> bool {
        match self.reports.get(token as usize) {
            Some(&Report::Returned { frame, start, end, .. }) => {
                let Some(frame) = self.result_frames.get(frame as usize) else { return true };
                let result = frame.slice(start as usize..end as usize);
                self.deliver_result(group, task.index, &result);
                self.payloads.entry(task.group).or_default().keep(task.index, result);
                true
            }
            Some(Report::Held { .. }) => {
                self.tell_where(group, task, attempt);
                true
            }
            _ => false,
        }
    }

    /// Tells the client of a group where an object is.
    fn tell_where(&mut self, group: &GroupInfo, task: TaskRef, attempt: u32) {
        if group.deliver_to.is_some() {
            let (object, peers) = self.object(task, attempt);
            if let Some(client) = group.deliver_to.and_then(|client| self.clients.get_mut(&client)) {
                peers.iter().for_each(|peer| client.introduce(peer));
            }
            self.deliver_object(group, task.index, object);
        }
    }

    /// A client could not fetch an object. Of one without holders it is told when it is there again, or given up; of what failed or
    /// is let go of it knows.
    pub(super) fn find_again(&mut self, client: u64, frame: &v1::LocateResult) {
        let Some(run) = self.open_run(client, frame.run) else { return };
        let group = self.runs.get(&run).and_then(|run| run.group(frame.group));
        let Some(group) = group.and_then(|group| self.groups.get(&group)).cloned() else { return };
        let task = TaskRef { group: group.id, index: frame.index };
        if let Some(attempt) = self.machine.committed_attempt(task)
            && self.machine.holders(task).next().is_some()
        {
            self.tell_where(&group, task, attempt);
        }
    }

    /// An object that was lost is there again: its readers are told where with their dispatch, its client now.
    pub(super) fn restored(&mut self, task: TaskRef, attempt: u32, session: SessionId, token: u32) {
        if let Some(group) = self.groups.get(&task.group).cloned() {
            self.note_difference(&group, task, token);
            self.keep_objects(&group, task, attempt, session, token);
            self.returned(&group, task, attempt, token);
        }
    }

    /// A function's result as its readers are told of it, and the peers it names.
    pub(super) fn object(&self, task: TaskRef, attempt: u32) -> (v1::ObjectRef, Vec<v1::AnnouncePeer>) {
        let mut object = v1::ObjectRef { index: task.index, attempt, group: task.group.0, ..Default::default() };
        match self.machine.stored(task) {
            Stored::Held(size) | Stored::Files(size) => {
                let peers: Vec<v1::AnnouncePeer> =
                    self.machine.holders(task).filter_map(|holder| self.peers.get(holder)).cloned().collect();
                object.size = size;
                object.holders = peers.iter().map(|peer| peer.peer).collect();
                object.capability = Some(self.capability(task, attempt));
                (object, peers)
            }
            Stored::None | Stored::Inline(_) => {
                object.inline =
                    self.payloads.get(&task.group).and_then(|kept| kept.result(task.index)).cloned().unwrap_or_default();
                object.size = object.inline.len() as u64;
                (object, Vec::new())
            }
        }
    }

    fn capability(&self, task: TaskRef, attempt: u32) -> v1::Capability {
        let run = self.groups.get(&task.group).map_or(0, |group| group.run.0);
        let expires_ms = now_ms() + GRANT_MS;
        let id = ObjectId { run, group: task.group.0, index: task.index, attempt };
        let granted = self.identity.object_key.grant(id.into(), expires_ms);
        v1::Capability { run, expires_ms, mac: Bytes::copy_from_slice(&granted.mac) }
    }

    /// Sends what one input of a function reads.
    pub(super) fn send_results(&mut self, session: SessionId, dispatch: &Dispatch, input: u32, upstream: &[TaskRef]) {
        let handle = dispatch.handle.to_u64();
        let mut chunk = v1::InputChunk { handle, input, objects: Vec::new() };
        let mut inline = 0;
        for &task in upstream {
            let attempt = self.machine.committed_attempt(task).unwrap_or(0);
            let (object, peers) = self.object(task, attempt);
            let Some(worker) = self.workers.get_mut(&session) else { return };
            peers.iter().for_each(|peer| worker.introduce(peer));
            inline += object.inline.len();
            chunk.objects.push(object);
            if chunk.objects.len() >= OBJECTS_PER_FRAME_MAX || inline >= INLINE_PER_FRAME_MAX {
                let full = std::mem::replace(&mut chunk, v1::InputChunk { handle, input, objects: Vec::new() });
                inline = 0;
                worker.send_data(v1::scheduler_data::Body::Input(full));
            }
        }
        if let Some(worker) = self.workers.get_mut(&session)
            && !chunk.objects.is_empty()
        {
            worker.send_data(v1::scheduler_data::Body::Input(chunk));
        }
    }

    /// Nobody will ask for anything of these elements again.
    pub(super) fn released(&mut self, group: GroupId, first: u32, count: u32) {
        if let Some(payload) = self.payloads.get_mut(&group) {
            payload.release(first, count);
            if payload.is_empty() {
                self.payloads.remove(&group);
            }
        }
        let run = self.groups.get(&group).and_then(|info| self.runs.get_mut(&info.run));
        if let Some(run) = run.filter(|run| run.spec.open) {
            run.release_objects(group, first, count);
        }
        self.outputs_released(group, first, count);
    }

    /// A holder may drop its copy.
    pub(super) fn drop_object(&mut self, session: SessionId, task: TaskRef) {
        if !self.drop_held(session, task)
            && let Some(worker) = self.workers.get_mut(&session)
        {
            worker.drop_object(task);
        }
    }
}
