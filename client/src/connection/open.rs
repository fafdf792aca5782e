//! An open run on a connection: its outbox is emptied into the streams, and acknowledgements make room in it again.

use std::collections::VecDeque;
use std::sync::Arc;

use scalable_proto::v1;

use super::{Connection, ControlBody, DataJob};
use crate::shared::Shared;

/// An open run.
pub(super) struct Open {
    pub(super) shared: Arc<Shared>,
    /// Numbers of its frames that were sent and are not acknowledged.
    pub(super) under_way: VecDeque<u64>,
}

impl Open {
    pub(super) fn new(shared: Arc<Shared>) -> Open {
        Open { shared, under_way: VecDeque::new() }
    }

    /// True when nobody has to do with it any more and everything was said.
    pub(super) fn is_done(&self) -> bool {
        self.shared.over().is_some()
            || (self.shared.is_abandoned() && self.under_way.is_empty() && !self.shared.outbox().has_next())
    }
}

impl Connection {
    /// True when the open run has a frame for data; else it wakes this task when it has one.
    pub(super) fn has_open_frame(&self) -> bool {
        self.open.as_ref().is_some_and(|open| {
            let mut outbox = open.shared.outbox();
            outbox.idle = !outbox.has_next();
            !outbox.idle
        })
    }

    /// Queues for control what the open run has to say there: what somebody waits for at once, the rest only when it is `due`. True
    /// when something is left.
    pub(super) fn say_words(&mut self, due: bool) -> bool {
        let Some(open) = &self.open else { return false };
        let mut outbox = open.shared.outbox();
        if due || outbox.has_urgent_word() {
            while let Some(word) = outbox.take_word() {
                self.control.push(word);
            }
        }
        let left = outbox.has_word();
        drop(outbox);
        if let Some(weight) = open.shared.taken() {
            self.control.push(ControlBody::Taken(v1::ResultsTaken { weight }));
        }
        left
    }

    /// Everything up to `seq` of data is acknowledged.
    pub(super) fn data_acked(&mut self, seq: u64) {
        self.data.acked(seq);
        let Some(open) = &mut self.open else { return };
        let mut outbox = None;
        while open.under_way.front().is_some_and(|frame| *frame <= seq) {
            open.under_way.pop_front();
            outbox.get_or_insert_with(|| open.shared.outbox()).acknowledged();
        }
        if outbox.take().is_some() {
            open.shared.made_room();
        }
    }
}

/// Takes the open run's next frame.
pub(super) fn take_open_frame(open: Option<&Open>) -> Option<DataJob> {
    open?.shared.outbox().take().map(|body| DataJob::Open(Box::new(body)))
}

/// Completes when the open run may have something to say.
pub(super) async fn woken(open: Option<&Open>) {
    match open {
        Some(open) => open.shared.wake.notified().await,
        None => std::future::pending().await,
    }
}
