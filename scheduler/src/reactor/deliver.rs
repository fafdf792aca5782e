//! Ends and results of tasks on their way to the client that submitted them: gathered into columnar batches, sent with the next
//! flush, and no further ahead of what the client's user has taken than a window.

use bytes::Bytes;
use scalable_core::ids::{GroupId, TaskRef};
use scalable_core::messages::{Input, OutcomeClass};
use scalable_proto::v1;

use super::{GroupInfo, Reactor};
use crate::convert;

/// Bytes of results sent to a client and not taken by its user; at the bound its runs are paused.
const WINDOW_BYTES: u64 = 64 << 20;
/// What an end counts at least: it takes room in the client too.
const END_BYTES: u64 = 16;
/// What a frame counts at least, so that the window also bounds their number.
const FRAME_BYTES: u64 = 2 << 10;
/// A batch is sent when it has so many elements or bytes.
const BATCH_ELEMENTS_MAX: usize = 16_384;
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Ends other than inline results take room on the wire: fewer of them in a batch.
const BATCH_OTHERS_MAX: usize = 256;

/// What gathers for one client.
#[derive(Default)]
pub(super) struct Outgoing {
    group: Option<GroupId>,
    batch: v1::ResultBatch,
    results: Vec<u8>,
    /// Frames that are ready, in order.
    sealed: Vec<v1::ResultBatch>,
    sent: u64,
    taken: u64,
    full: bool,
}

impl Outgoing {
    /// Adds an inline result.
    fn result(&mut self, group: &GroupInfo, index: u32, result: &[u8]) {
        self.element(group, index);
        self.results.extend_from_slice(result);
        self.batch.result_end.push(self.results.len() as u32);
        self.seal_if_full();
    }

    /// Adds another end.
    fn other(&mut self, group: &GroupInfo, index: u32, end: v1::other_end::End) {
        self.element(group, index);
        self.batch.others.push(v1::OtherEnd { at: self.batch.count - 1, end: Some(end) });
        self.batch.result_end.push(self.results.len() as u32);
        self.seal_if_full();
    }

    fn element(&mut self, group: &GroupInfo, index: u32) {
        if self.group != Some(group.id) {
            self.seal();
            self.group = Some(group.id);
            self.batch = v1::ResultBatch { run: group.run.0, group: group.ordinal, first: index, ..Default::default() };
        }
        let batch = &mut self.batch;
        if batch.index.is_empty() && index != batch.first.wrapping_add(batch.count) {
            // Not one range any more.
            batch.index.extend(batch.first..batch.first + batch.count);
            batch.index.push(index);
        } else if !batch.index.is_empty() {
            batch.index.push(index);
        }
        batch.count += 1;
    }

    fn seal_if_full(&mut self) {
        if self.batch.count as usize >= BATCH_ELEMENTS_MAX
            || self.results.len() >= BATCH_BYTES_MAX
            || self.batch.others.len() >= BATCH_OTHERS_MAX
        {
            self.seal();
        }
    }

    fn seal(&mut self) {
        if self.group.take().is_none() {
            return;
        }
        let mut batch = std::mem::take(&mut self.batch);
        batch.results = Bytes::from(std::mem::take(&mut self.results));
        let others: usize = batch.others.iter().map(prost::Message::encoded_len).sum();
        let bytes = batch.results.len() as u64 + others as u64 + END_BYTES * u64::from(batch.count);
        batch.weight = bytes.max(FRAME_BYTES);
        self.sent += batch.weight;
        self.sealed.push(batch);
    }

    /// What is to be sent now.
    pub(super) fn take(&mut self) -> Vec<v1::ResultBatch> {
        self.seal();
        std::mem::take(&mut self.sealed)
    }

    /// The user has taken so much in all.
    pub(super) fn taken(&mut self, weight: u64) {
        self.taken = self.taken.max(weight.min(self.sent));
    }

    /// Whether nothing new is to be started for this client. Once full, it stays so until half of the window is free.
    fn is_full(&mut self) -> bool {
        let ahead = self.sent - self.taken;
        self.full = if self.full { ahead > WINDOW_BYTES / 2 } else { ahead > WINDOW_BYTES };
        self.full
    }
}

impl Reactor {
    /// A function's inline result, committed.
    pub(super) fn deliver_result(&mut self, group: &GroupInfo, index: u32, result: &[u8]) {
        if let Some(client) = group.deliver_to.and_then(|client| self.clients.get_mut(&client)) {
            client.outgoing.result(group, index, result);
        }
    }

    /// A result that its worker keeps, committed.
    pub(super) fn deliver_object(&mut self, group: &GroupInfo, index: u32, object: v1::ObjectRef) {
        if let Some(client) = group.deliver_to.and_then(|client| self.clients.get_mut(&client)) {
            client.outgoing.other(group, index, v1::other_end::End::Object(object));
        }
    }

    /// A command that succeeded.
    pub(super) fn deliver_report(&mut self, group: &GroupInfo, index: u32, report: v1::AttemptReport) {
        if let Some(client) = group.deliver_to.and_then(|client| self.clients.get_mut(&client)) {
            client.outgoing.other(group, index, v1::other_end::End::Finished(report));
        }
    }

    /// A task that is over without success.
    pub(super) fn deliver_error(&mut self, group: &GroupInfo, index: u32, error: v1::TaskError) {
        if let Some(client) = group.deliver_to.and_then(|client| self.clients.get_mut(&client)) {
            client.outgoing.other(group, index, v1::other_end::End::Error(error));
        }
    }

    /// Tasks that are over without having run.
    pub(super) fn deliver_range(
        &mut self,
        group: &GroupInfo,
        first: u32,
        count: u32,
        class: OutcomeClass,
        root: Option<TaskRef>,
    ) {
        if group.deliver_to.is_none() {
            return;
        }
        let root = root.and_then(|root| Some((self.groups.get(&root.group)?.ordinal, root.index)));
        let (root_group, root_index) = root.unwrap_or_default();
        let class = convert::class_to_wire(class).into();
        for index in first..first.saturating_add(count) {
            self.deliver_error(group, index, v1::TaskError { class, root_group, root_index, ..Default::default() });
        }
    }

    /// Runs of clients whose users do not keep up are paused, and go on when they have caught up. True when any has turned.
    pub(super) fn pace_clients(&mut self) -> bool {
        let mut turned = Vec::new();
        for &id in &self.open_runs {
            let Some(run) = self.runs.get_mut(&id) else { continue };
            let paused =
                run.client.and_then(|client| self.clients.get_mut(&client)).is_some_and(|client| client.outgoing.is_full());
            if paused != run.paused {
                run.paused = paused;
                turned.push((id, paused));
            }
        }
        for &(run, paused) in &turned {
            self.step(Input::Pause { run, paused });
        }
        !turned.is_empty()
    }
}
