//! The sending side of one stream of a session: what waits to be numbered, what is to be sent again, and the connection of now.

use std::collections::VecDeque;

use scalable_core::link;
use tokio::sync::mpsc;

/// Frames handed to the transport and not yet written by it.
const TRANSPORT_FRAMES_MAX: usize = 32;

/// `J` is a job from which a frame `F` is made when its turn comes, so that a large submit is not held twice.
#[derive(Debug)]
pub(crate) struct Outgoing<J, F> {
    link: link::Sender<F>,
    frames_max: usize,
    jobs: VecDeque<J>,
    again: VecDeque<F>,
    transport: Option<mpsc::Sender<F>>,
}

impl<J, F: Clone> Outgoing<J, F> {
    /// At most `frames_max` frames are unacknowledged at a time; further jobs wait.
    pub(crate) fn new(frames_max: usize) -> Self {
        Outgoing {
            link: link::Sender::new(frames_max),
            frames_max,
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
        let (transport, frames) = mpsc::channel(TRANSPORT_FRAMES_MAX);
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

    /// True when [`Outgoing::send_next`] would send.
    pub(crate) fn has_next(&self) -> bool {
        self.transport.is_some() && (!self.again.is_empty() || (!self.jobs.is_empty() && self.link.len() < self.frames_max))
    }

    /// Waits until the transport takes one more frame and gives it the next one. Cancel safe: a frame is made only when there is
    /// room for it. False when the connection is gone.
    pub(crate) async fn send_next(&mut self, make: impl Fn(J, u64) -> F) -> bool {
        let Some(transport) = &self.transport else { return false };
        let Ok(permit) = transport.reserve().await else { return false };
        if let Some(frame) = self.again.pop_front() {
            permit.send(frame);
        } else if self.link.len() < self.frames_max
            && let Some(job) = self.jobs.pop_front()
            && let Ok(frame) = self.link.push(|seq| make(job, seq))
        {
            permit.send(frame);
        }
        true
    }
}
