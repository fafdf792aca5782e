//! The sending side of one stream of a session: what waits to be numbered, what is to be sent again, and the connection of now.

use std::collections::VecDeque;

use scalable_core::link;
use tokio::sync::mpsc;

/// The connection is gone.
#[derive(Debug)]
pub(crate) struct Gone;

/// A job that was not queued was sent, in the frame of this number.
#[derive(Debug)]
pub(crate) struct Extra(pub(crate) u64);

/// `J` is a job from which a frame `F` is made when its turn comes, so that a large submit is not held twice.
#[derive(Debug)]
pub(crate) struct Outgoing<J, F> {
    link: link::Sender<F>,
    frames_max: usize,
    transport_frames: usize,
    jobs: VecDeque<J>,
    again: VecDeque<F>,
    transport: Option<mpsc::Sender<F>>,
}

impl<J, F: Clone> Outgoing<J, F> {
    /// At most `frames_max` frames are unacknowledged at a time, at most `transport_frames` not written; further jobs wait.
    pub(crate) fn new(frames_max: usize, transport_frames: usize) -> Self {
        Outgoing {
            link: link::Sender::new(frames_max),
            frames_max,
            transport_frames,
            jobs: VecDeque::new(),
            again: VecDeque::new(),
            transport: None,
        }
    }

    /// Queues a job.
    pub(crate) fn push(&mut self, job: J) {
        self.jobs.push_back(job);
    }

    /// Begins a new connection: returns where the transport takes its frames from. Nothing but `first` is sent before
    /// [`Outgoing::resume`].
    pub(crate) fn open(&mut self, first: F) -> mpsc::Receiver<F> {
        let (transport, frames) = mpsc::channel(self.transport_frames);
        // The channel is empty and its receiver is held here: the first frame always fits.
        let _ = transport.try_send(first);
        self.again.clear();
        self.transport = Some(transport);
        frames
    }

    /// The peer has everything up to `received`: the rest is sent again before anything new.
    pub(crate) fn resume(&mut self, received: u64) {
        self.again = self.link.resume(received).into();
    }

    /// Forgets jobs and frames and begins to number anew, on the connection that is open.
    pub(crate) fn restart(&mut self) {
        self.link = link::Sender::new(self.frames_max);
        self.jobs.clear();
        self.again.clear();
    }

    /// The peer has everything up to `seq`.
    pub(crate) fn acked(&mut self, seq: u64) {
        self.link.acked(seq);
    }

    /// Hands a frame without a number to the transport, which is not kept and not sent again; dropped when the transport is busy.
    pub(crate) fn send_unnumbered(&self, frame: F) {
        if let Some(transport) = &self.transport {
            let _ = transport.try_send(frame);
        }
    }

    /// True when a job could become a frame.
    pub(crate) fn has_room(&self) -> bool {
        self.transport.is_some() && self.link.len() < self.frames_max
    }

    /// True when [`Outgoing::send_next`] has something of its own to send.
    pub(crate) fn has_next(&self) -> bool {
        (self.transport.is_some() && !self.again.is_empty()) || (self.has_room() && !self.jobs.is_empty())
    }

    /// Waits until the transport takes one more frame and gives it the next one: what is to be sent again, else a queued job, else
    /// one that `more` has then. Cancel safe: a frame is made only when there is room for it.
    pub(crate) async fn send_next(
        &mut self,
        make: impl Fn(J, u64) -> F,
        more: impl FnOnce() -> Option<J>,
    ) -> Result<Option<Extra>, Gone> {
        let Some(transport) = &self.transport else { return Err(Gone) };
        let Ok(permit) = transport.reserve().await else { return Err(Gone) };
        if let Some(frame) = self.again.pop_front() {
            permit.send(frame);
            return Ok(None);
        }
        if self.link.len() >= self.frames_max {
            return Ok(None);
        }
        let queued = self.jobs.pop_front();
        let extra = queued.is_none();
        let Some(job) = queued.or_else(more) else { return Ok(None) };
        let mut number = 0;
        if let Ok(frame) = self.link.push(|seq| {
            number = seq;
            make(job, seq)
        }) {
            permit.send(frame);
        }
        Ok(extra.then_some(Extra(number)))
    }
}
