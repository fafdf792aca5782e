//! One direction of a stream that survives its connection: numbers, acknowledgements, what to send again.
//!
//! The sender keeps what is not acknowledged; the receiver takes each number once and in order. What connects them may be
//! dropped at any message: after the handshake has told both sides what arrived, nothing is lost and nothing doubled.

use std::collections::VecDeque;

/// Frames not yet acknowledged, bounded.
#[derive(Debug)]
pub struct Sender<F> {
    next: u64,
    unacked: VecDeque<(u64, F)>,
    frames_max: usize,
}

/// The peer did not acknowledge for so long that the bound was reached: the session is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflow;

impl<F: Clone> Sender<F> {
    /// A sender that keeps at most `frames_max` frames.
    pub fn new(frames_max: usize) -> Self {
        Sender { next: 1, unacked: VecDeque::new(), frames_max }
    }

    /// Gives the frame its number and keeps it until it is acknowledged.
    ///
    /// # Errors
    /// [`Overflow`] when `frames_max` frames are kept already; the frame has no number then.
    pub fn push(&mut self, make: impl FnOnce(u64) -> F) -> Result<F, Overflow> {
        if self.unacked.len() >= self.frames_max {
            return Err(Overflow);
        }
        let seq = self.next;
        self.next += 1;
        let frame = make(seq);
        self.unacked.push_back((seq, frame.clone()));
        Ok(frame)
    }

    /// The peer has everything up to `seq`.
    pub fn acked(&mut self, seq: u64) {
        while self.unacked.front().is_some_and(|(s, _)| *s <= seq) {
            self.unacked.pop_front();
        }
    }

    /// What to send again after the peer said that it has everything up to `received`.
    pub fn resume(&mut self, received: u64) -> Vec<F> {
        self.acked(received);
        self.unacked.iter().map(|(_, frame)| frame.clone()).collect()
    }

    /// Frames kept.
    pub fn len(&self) -> usize {
        self.unacked.len()
    }

    /// True when everything was acknowledged.
    pub fn is_empty(&self) -> bool {
        self.unacked.is_empty()
    }
}

/// What a receiver makes of a frame's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The next one: take it.
    New,
    /// Seen before: drop it.
    Repeated,
    /// One is missing: the peer broke the protocol.
    Gap,
}

/// Takes each number once and in order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Receiver {
    received: u64,
}

impl Receiver {
    /// Highest number received in order: what to acknowledge.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Decides about a frame's number.
    pub fn arrive(&mut self, seq: u64) -> Arrival {
        if seq <= self.received {
            Arrival::Repeated
        } else if seq == self.received + 1 {
            self.received = seq;
            Arrival::New
        } else {
            Arrival::Gap
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends ten frames over a connection that is dropped before the k-th delivery, for every k, with the acknowledgement
    /// lost or not, and compares what came out.
    #[test]
    fn dropped_and_resumed_at_every_message_loses_and_doubles_nothing() {
        for drop_at in 0..10 {
            for ack_lost in [false, true] {
                let (mut sender, mut receiver, mut out) = (Sender::new(16), Receiver::default(), Vec::new());
                let mut wire: VecDeque<u64> = VecDeque::new();
                for n in 0..10 {
                    wire.push_back(sender.push(|seq| seq).expect("bound not reached"));
                    if n == drop_at {
                        wire.clear();
                        wire.extend(sender.resume(receiver.received()));
                    }
                    while let Some(seq) = wire.pop_front() {
                        if receiver.arrive(seq) == Arrival::New {
                            out.push(seq);
                        }
                    }
                    if !ack_lost {
                        sender.acked(receiver.received());
                    }
                }
                for seq in sender.resume(receiver.received()) {
                    assert_eq!(receiver.arrive(seq), Arrival::New);
                    out.push(seq);
                }
                assert_eq!(out, (1..=10).collect::<Vec<u64>>(), "dropped at {drop_at}, ack lost: {ack_lost}");
            }
        }
    }

    #[test]
    fn a_gap_is_seen_and_the_bound_holds() {
        let mut receiver = Receiver::default();
        assert_eq!(receiver.arrive(2), Arrival::Gap);
        assert_eq!(receiver.arrive(1), Arrival::New);
        assert_eq!(receiver.arrive(1), Arrival::Repeated);
        let mut sender = Sender::new(1);
        assert_eq!(sender.push(|seq| seq), Ok(1));
        assert_eq!(sender.push(|seq| seq), Err(Overflow));
    }
}
