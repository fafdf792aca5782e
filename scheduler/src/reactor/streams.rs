//! A session's two streams as they survive their connections: what was sent and not acknowledged, what was received, which
//! connections are attached. The same for workers and clients; what the frames are is theirs.

use std::time::{Duration, Instant};

use scalable_core::link::{Arrival, Receiver, Sender};
use scalable_core::messages::Connection;
use scalable_proto::v1;

use crate::serve::{ConnectionId, Out};

/// Frames that may come before they are acknowledged: few beside what a peer may have under way.
const ACK_FRAMES: u64 = 8;
/// How long an acknowledgement waits for a frame that could carry it. Nobody waits for one but to free memory.
const ACK_AFTER: Duration = Duration::from_millis(10);

/// The peer did not acknowledge for so long that the bound of frames kept was reached: the frame was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overflow;

/// The two streams of one session; `C` and `D` are the frames that go out on control and data.
pub(super) struct Streams<C, D> {
    control: Option<(ConnectionId, Out<C>)>,
    data: Option<(ConnectionId, Out<D>)>,
    to_control: Sender<C>,
    to_data: Sender<D>,
    from_control: Receiver,
    from_data: Receiver,
    /// Acknowledgements that some frame has carried.
    told: v1::Acks,
    /// Since when something is here that no frame has acknowledged.
    untold_since: Option<Instant>,
}

impl<C: Clone, D: Clone> Streams<C, D> {
    /// Streams that keep at most `frames_max` unacknowledged frames each.
    pub(super) fn new(frames_max: usize) -> Self {
        Streams {
            control: None,
            data: None,
            to_control: Sender::new(frames_max),
            to_data: Sender::new(frames_max),
            from_control: Receiver::default(),
            from_data: Receiver::default(),
            told: v1::Acks::default(),
            untold_since: None,
        }
    }

    /// What to acknowledge.
    pub(super) fn received(&self) -> v1::Acks {
        v1::Acks { control: self.from_control.received(), data: self.from_data.received() }
    }

    /// Sends a numbered frame on control, now or when the connection is back.
    pub(super) fn send_control(&mut self, make: impl FnOnce(u64, v1::Acks) -> C) -> Result<(), Overflow> {
        let acks = self.received();
        let frame = self.to_control.push(|seq| make(seq, acks)).map_err(|_| Overflow)?;
        if let Some((_, out)) = &self.control {
            (self.told, self.untold_since) = (acks, None);
            let _ = out.send(Ok(frame));
        }
        Ok(())
    }

    /// Sends a numbered frame on data, now or when the connection is back.
    pub(super) fn send_data(&mut self, make: impl FnOnce(u64) -> D) -> Result<(), Overflow> {
        let frame = self.to_data.push(make).map_err(|_| Overflow)?;
        if let Some((_, out)) = &self.data {
            let _ = out.send(Ok(frame));
        }
        Ok(())
    }

    /// Sends acknowledgements that no frame has carried, in a frame without a number, once they are many or have waited for long
    /// enough; says when that will be.
    pub(super) fn acknowledge(&mut self, now: Instant, make: impl FnOnce(v1::Acks) -> C) -> Option<Instant> {
        let (acks, told) = (self.received(), self.told);
        let (Some((_, out)), true) = (&self.control, acks != told) else { return None };
        let due = *self.untold_since.get_or_insert(now) + ACK_AFTER;
        let frames = (acks.control + acks.data).saturating_sub(told.control + told.data);
        if frames < ACK_FRAMES && now < due {
            return Some(due);
        }
        (self.told, self.untold_since) = (acks, None);
        let _ = out.send(Ok(make(acks)));
        None
    }

    /// The peer has everything up to these numbers.
    pub(super) fn acked(&mut self, acks: Option<v1::Acks>) {
        if let Some(acks) = acks {
            self.to_control.acked(acks.control);
            self.to_data.acked(acks.data);
        }
    }

    /// Frames on control that are not acknowledged.
    pub(super) fn control_under_way(&self) -> usize {
        self.to_control.len()
    }

    /// Decides about a frame that came on one of the streams.
    pub(super) fn arrive(&mut self, connection: Connection, seq: u64) -> Arrival {
        match connection {
            Connection::Control => self.from_control.arrive(seq),
            Connection::Data => self.from_data.arrive(seq),
        }
    }

    /// Attaches control: the welcome goes out first, then what a peer that goes on with its session has not received. Gives
    /// back an older connection of the same session: its end is not this session's reset.
    pub(super) fn attach_control(
        &mut self,
        id: ConnectionId,
        out: Out<C>,
        welcome: C,
        resumed: Option<v1::Acks>,
    ) -> Option<ConnectionId> {
        let _ = out.send(Ok(welcome));
        if let Some(received) = resumed {
            self.to_data.acked(received.data);
            for frame in self.to_control.resume(received.control) {
                let _ = out.send(Ok(frame));
            }
        }
        self.control.replace((id, out)).map(|(old, _)| old)
    }

    /// Attaches data in the same way; `bound` goes out first.
    pub(super) fn attach_data(&mut self, id: ConnectionId, out: Out<D>, bound: D, received: u64) -> Option<ConnectionId> {
        let _ = out.send(Ok(bound));
        for frame in self.to_data.resume(received) {
            let _ = out.send(Ok(frame));
        }
        self.data.replace((id, out)).map(|(old, _)| old)
    }

    /// Detaches the connection with this id; says which of the two it was, unless a newer one had taken its place.
    pub(super) fn detach(&mut self, id: ConnectionId) -> Option<Connection> {
        if self.control.as_ref().is_some_and(|(current, _)| *current == id) {
            self.control = None;
            return Some(Connection::Control);
        }
        if self.data.as_ref().is_some_and(|(current, _)| *current == id) {
            self.data = None;
            return Some(Connection::Data);
        }
        None
    }

    /// Ends both connections once what was sent has gone out; gives their ids.
    pub(super) fn close(&mut self) -> impl Iterator<Item = ConnectionId> + use<C, D> {
        [self.control.take().map(|(id, _)| id), self.data.take().map(|(id, _)| id)].into_iter().flatten()
    }

    /// True when neither connection is attached.
    pub(super) fn is_detached(&self) -> bool {
        self.control.is_none() && self.data.is_none()
    }
}
