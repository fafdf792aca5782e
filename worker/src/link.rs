//! The agent's session with its scheduler: two connections, four numbered streams, and what is done when one of them breaks.
//!
//! Each connection is a task that only carries frames; all state is here, on the reactor. A broken connection is opened again
//! with jittered back-off and goes on where it was: frames that the scheduler has not acknowledged are sent again, frames that
//! come twice are dropped. Only when the scheduler says that the session is gone does a new one begin.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use scalable_core::link::{Arrival, Receiver, Sender};
use scalable_proto::v1::{
    Acks, Bind, Hello, ProtocolRange, Resources, SchedulerControl, SchedulerData, WorkerBatch, WorkerControl, WorkerData,
    WorkerHello, scheduler_control, scheduler_data, worker_control, worker_data,
};
use scalable_proto::{PROTOCOL, v1};
use tokio::sync::mpsc;
use tonic::Code;

use crate::connection::{self, Arrived, Connection, Target, What};

/// Frames on one stream that may wait for an acknowledgement. Beyond it events gather into fewer, larger frames.
const UNACKED_FRAMES_MAX: usize = 4096;
/// Bytes of batches that may wait for an acknowledgement.
const UNACKED_BYTES_MAX: usize = 32 << 20;
/// Frames that may come before they are acknowledged.
const ACK_FRAMES: u64 = 32;
/// How long an acknowledgement waits for a frame that could carry it.
const ACK_AFTER: Duration = Duration::from_millis(50);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Longest that opening a connection and its handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Who the worker is, said at every hello.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// What it serves.
    pub components: Vec<String>,
    /// What it offers.
    pub resources: Resources,
    /// The machine's name.
    pub host: String,
    /// Which programs can run here.
    pub architecture: String,
    /// Where it answers peers.
    pub peer_address: String,
    /// The C library they find.
    pub libc: String,
    /// The only cluster it may belong to; empty is any.
    pub cluster_id: String,
}

/// What the agent has to know.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one a frame, moved once and never kept")]
pub enum Said {
    /// A session began; whatever an earlier one had asked for is void.
    NewSession,
    /// Before either of these: the key that objects are fetched with, and where the run's output store is.
    Welcome {
        /// 32 bytes, or none.
        object_key: bytes::Bytes,
        /// `host:port`, or empty.
        store_address: String,
    },
    /// The same session goes on.
    Resumed,
    /// A frame on control, once and in order.
    Control(scheduler_control::Body),
    /// A frame on data, once and in order.
    Data(scheduler_data::Body),
    /// It makes no sense to go on: one sentence.
    Fatal(String),
}

enum State<F> {
    /// Opened again at this time.
    Down { at: Instant },
    /// On its way: nothing but the handshake's first frame was sent.
    Opening { since: Instant, out: mpsc::UnboundedSender<F> },
    /// Both sides know what the other has.
    Up { out: mpsc::UnboundedSender<F> },
}

struct Line<F> {
    state: State<F>,
    /// Tells what comes from an older connection.
    generation: u64,
    failures: u32,
}

impl<F> Line<F> {
    fn new() -> Self {
        Line { state: State::Down { at: Instant::now() }, generation: 0, failures: 0 }
    }

    fn up(&self) -> Option<&mpsc::UnboundedSender<F>> {
        if let State::Up { out } = &self.state { Some(out) } else { None }
    }

    fn begin(&mut self, now: Instant) -> (u64, mpsc::UnboundedReceiver<F>, &mpsc::UnboundedSender<F>) {
        self.generation += 1;
        // Unbounded as a channel: what is in it is bounded by the frames that may wait for an acknowledgement.
        let (out, frames) = mpsc::unbounded_channel();
        self.state = State::Opening { since: now, out };
        let State::Opening { out, .. } = &self.state else { unreachable!("set in the line above") };
        (self.generation, frames, out)
    }

    fn open(&mut self) {
        if let State::Opening { out, .. } = &self.state {
            self.state = State::Up { out: out.clone() };
            self.failures = 0;
        }
    }

    fn down(&mut self, now: Instant) {
        let wait = backoff(self.failures);
        self.failures = self.failures.saturating_add(1);
        self.generation += 1;
        self.state = State::Down { at: now + wait };
    }
}

/// Exponential with full jitter above half: many workers that lost one scheduler do not come back at once.
fn backoff(failures: u32) -> Duration {
    let whole = BACKOFF_MIN.saturating_mul(1 << failures.min(10)).min(BACKOFF_MAX);
    let mut random = [0; 4];
    // Without randomness all wait equally long, which is no reason to fail.
    let _ = getrandom::fill(&mut random);
    let share = f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX);
    whole.mul_f64(0.5 + share / 2.0)
}

/// See the module.
pub struct Link {
    target: Target,
    identity: Identity,
    inbox: mpsc::Sender<Arrived>,
    control: Line<WorkerControl>,
    data: Line<WorkerData>,
    to_control: Sender<WorkerControl>,
    to_data: Sender<WorkerData>,
    from_control: Receiver,
    from_data: Receiver,
    /// Bytes of the batches that are not acknowledged, in order of their numbers.
    data_bytes: VecDeque<(u64, usize)>,
    data_bytes_sum: usize,
    /// Acknowledgements as last sent, and since when newer ones wait.
    told: Acks,
    ack_since: Option<Instant>,
    session: u64,
    epoch: u64,
    heartbeat: Duration,
    heartbeat_due: Instant,
    last_heard: Instant,
    ever_welcomed: bool,
}

impl Link {
    /// A link that is not connected; [`Link::tick`] opens it. Frames arrive in `inbox`.
    pub fn new(target: Target, identity: Identity, inbox: mpsc::Sender<Arrived>) -> Self {
        let now = Instant::now();
        Link {
            target,
            identity,
            inbox,
            control: Line::new(),
            data: Line::new(),
            to_control: Sender::new(UNACKED_FRAMES_MAX),
            to_data: Sender::new(UNACKED_FRAMES_MAX),
            from_control: Receiver::default(),
            from_data: Receiver::default(),
            data_bytes: VecDeque::new(),
            data_bytes_sum: 0,
            told: Acks::default(),
            ack_since: None,
            session: 0,
            epoch: 0,
            heartbeat: Duration::from_secs(5),
            heartbeat_due: now,
            last_heard: now,
            ever_welcomed: false,
        }
    }

    /// True while there is a session, connected or not.
    pub fn has_session(&self) -> bool {
        self.session != 0
    }

    /// Since when nothing has come from the scheduler.
    pub fn last_heard(&self) -> Instant {
        self.last_heard
    }

    /// True when nothing that was sent waits for an acknowledgement.
    pub fn is_acknowledged(&self) -> bool {
        self.to_control.is_empty() && self.to_data.is_empty()
    }

    /// True when a batch may be sent: in a session, and not too much waits for an acknowledgement.
    pub fn takes_batches(&self) -> bool {
        self.has_session() && self.to_data.len() < UNACKED_FRAMES_MAX && self.data_bytes_sum < UNACKED_BYTES_MAX
    }

    /// When [`Link::tick`] is due at the latest.
    pub fn next_deadline(&self) -> Instant {
        let of = |state: &State<WorkerControl>| match state {
            State::Down { at } => Some(*at),
            State::Opening { since, .. } => Some(*since + HANDSHAKE_MAX),
            State::Up { .. } => None,
        };
        let data = match &self.data.state {
            State::Down { at } if self.control.up().is_some() => Some(*at),
            State::Opening { since, .. } => Some(*since + HANDSHAKE_MAX),
            _ => None,
        };
        let up = self.control.up().is_some();
        let ack = self.ack_since.filter(|_| up).map(|since| since + ACK_AFTER);
        let heartbeat = Some(self.heartbeat_due).filter(|_| up);
        [of(&self.control.state), data, ack, heartbeat].into_iter().flatten().min().unwrap_or(self.heartbeat_due)
    }

    /// A heartbeat has something to say that is not to wait.
    pub fn hurry_heartbeat(&mut self, now: Instant) {
        self.heartbeat_due = now;
    }

    /// Opens what is down, gives up what does not open, sends what is due. `load` is asked for a heartbeat's figures.
    pub fn tick(&mut self, now: Instant, load: impl FnOnce() -> v1::Heartbeat) {
        match &self.control.state {
            State::Down { at } if *at <= now => self.open_control(now),
            State::Opening { since, .. } if *since + HANDSHAKE_MAX <= now => self.control.down(now),
            _ => {}
        }
        match &self.data.state {
            State::Down { at } if *at <= now && self.control.up().is_some() => self.open_data(now),
            State::Opening { since, .. } if *since + HANDSHAKE_MAX <= now => self.data.down(now),
            _ => {}
        }
        if self.control.up().is_some() && self.heartbeat_due <= now {
            self.heartbeat_due = now + self.heartbeat;
            self.send_control(worker_control::Body::Heartbeat(load()));
        }
        let waiting = self.received().control + self.received().data - self.told.control - self.told.data;
        if waiting >= ACK_FRAMES || self.ack_since.is_some_and(|since| since + ACK_AFTER <= now) {
            self.acknowledge();
        }
    }

    /// The next heartbeat goes with the next [`Link::tick`].
    pub fn heartbeat_now(&mut self, now: Instant) {
        self.heartbeat_due = self.heartbeat_due.min(now);
    }

    fn open_control(&mut self, now: Instant) {
        let hello = Hello {
            cluster_id: self.identity.cluster_id.clone(),
            protocol: Some(ProtocolRange { min: *PROTOCOL.start(), max: *PROTOCOL.end() }),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            session: self.session,
            epoch: self.epoch,
            received: Some(self.received()),
        };
        let identity = self.identity.clone();
        let hello = WorkerHello {
            hello: Some(hello),
            name: identity.name,
            pool: identity.pool,
            components: identity.components,
            resources: Some(identity.resources),
            pid: std::process::id(),
            host: identity.host,
            architecture: identity.architecture,
            libc: identity.libc,
            peer_address: identity.peer_address,
        };
        let (generation, frames, out) = self.control.begin(now);
        // The receiver is alive: it is the other end of what was just made.
        let _ = out.send(WorkerControl { seq: 0, acks: None, body: Some(worker_control::Body::Hello(hello)) });
        tokio::spawn(connection::control(self.target.clone(), frames, generation, self.inbox.clone()));
    }

    fn open_data(&mut self, now: Instant) {
        let bind = Bind { session: self.session, epoch: self.epoch, received: self.from_data.received() };
        let (generation, frames, out) = self.data.begin(now);
        let _ = out.send(WorkerData { seq: 0, body: Some(worker_data::Body::Bind(bind)) });
        tokio::spawn(connection::data(self.target.clone(), frames, generation, self.inbox.clone()));
    }

    fn received(&self) -> Acks {
        Acks { control: self.from_control.received(), data: self.from_data.received() }
    }

    fn acknowledge(&mut self) {
        let acks = self.received();
        if let Some(out) = self.control.up() {
            let _ = out.send(WorkerControl { seq: 0, acks: Some(acks), body: None });
            self.told = acks;
            self.ack_since = None;
        }
    }

    /// Sends a frame on control, now or when the connection is back. Without a session there is nobody to tell.
    pub fn send_control(&mut self, body: worker_control::Body) {
        if !self.has_session() {
            return;
        }
        let acks = self.received();
        let Ok(frame) = self.to_control.push(|seq| WorkerControl { seq, acks: Some(acks), body: Some(body) }) else {
            // Thousands of frames without an answer: the session cannot be saved, a new one can.
            tracing::warn!("the scheduler acknowledges nothing: a new session begins");
            return self.forget(Instant::now());
        };
        if let Some(out) = self.control.up() {
            let _ = out.send(frame);
            self.told = acks;
            self.ack_since = None;
        }
    }

    /// Sends a batch, now or when the connection is back. To be asked before: [`Link::takes_batches`].
    /// `bytes` is about its size: to measure it would cost as much as to encode it.
    pub fn send_batch(&mut self, batch: WorkerBatch, bytes: usize) {
        let Ok(frame) = self.to_data.push(|seq| WorkerData { seq, body: Some(worker_data::Body::Batch(batch)) }) else {
            return self.forget(Instant::now());
        };
        self.data_bytes_sum += bytes;
        self.data_bytes.push_back((frame.seq, bytes));
        if let Some(out) = self.data.up() {
            let _ = out.send(frame);
        }
    }

    /// Gives the session up: the next hello asks for a new one.
    pub fn forget(&mut self, now: Instant) {
        self.session = 0;
        self.epoch = 0;
        self.to_control = Sender::new(UNACKED_FRAMES_MAX);
        self.to_data = Sender::new(UNACKED_FRAMES_MAX);
        self.from_control = Receiver::default();
        self.from_data = Receiver::default();
        self.data_bytes.clear();
        self.data_bytes_sum = 0;
        self.told = Acks::default();
        self.ack_since = None;
        self.last_heard = now;
        self.control.down(now);
        self.data.down(now);
    }

    fn acked(&mut self, acks: Acks) {
        self.to_control.acked(acks.control);
        self.acked_data(acks.data);
    }

    fn acked_data(&mut self, seq: u64) {
        self.to_data.acked(seq);
        while let Some(&(number, bytes)) = self.data_bytes.front()
            && number <= seq
        {
            self.data_bytes.pop_front();
            self.data_bytes_sum -= bytes;
        }
    }

    /// Takes what a connection has brought.
    pub fn arrived(&mut self, arrived: Arrived, now: Instant, out: &mut Vec<Said>) {
        let current = match arrived.connection {
            Connection::Control => self.control.generation,
            Connection::Data => self.data.generation,
        };
        if arrived.generation != current {
            return;
        }
        match arrived.what {
            What::Control(frame) => {
                self.last_heard = now;
                self.control_frame(*frame, now, out);
            }
            What::Data(frame) => {
                self.last_heard = now;
                self.data_frame(*frame, now, out);
            }
            What::Closed { code, reason } => self.closed(arrived.connection, code, &reason, now, out),
        }
    }

    fn closed(&mut self, connection: Connection, code: Option<Code>, reason: &str, now: Instant, out: &mut Vec<Said>) {
        tracing::info!(?connection, reason, "connection to the scheduler closed");
        match (connection, code) {
            (_, Some(Code::Unauthenticated | Code::PermissionDenied)) => {
                let address = &self.target.url;
                let check = if self.target.secured.is_some() { "--credentials, --name and --uid" } else { "--token-file" };
                out.push(Said::Fatal(format!("the scheduler at {address} refuses this worker: {reason}; check {check}")));
            }
            (Connection::Control, Some(Code::FailedPrecondition | Code::InvalidArgument | Code::Unimplemented)) => {
                let address = &self.target.url;
                out.push(Said::Fatal(format!("the scheduler at {address} refuses this worker: {reason}")));
            }
            // The session is gone: only a hello can tell what is to be done.
            (Connection::Data, Some(Code::FailedPrecondition)) => {
                self.data.down(now);
                self.control.down(now);
            }
            (Connection::Control, _) => self.control.down(now),
            (Connection::Data, _) => self.data.down(now),
        }
    }

    /// The peer broke the protocol: nothing it says is certain any more, so both sides begin anew.
    fn violation(&mut self, what: &str, now: Instant, out: &mut Vec<Said>) {
        tracing::error!(what, "the scheduler broke the protocol: a new session begins");
        self.forget(now);
        out.push(Said::NewSession);
    }

    fn control_frame(&mut self, frame: SchedulerControl, now: Instant, out: &mut Vec<Said>) {
        if matches!(self.control.state, State::Opening { .. }) {
            return match frame.body {
                Some(scheduler_control::Body::Welcome(welcome)) => self.welcome(welcome, now, out),
                _ => self.violation("control does not begin with a welcome", now, out),
            };
        }
        if let Some(acks) = frame.acks {
            self.acked(acks);
        }
        if frame.seq > 0 {
            match self.from_control.arrive(frame.seq) {
                Arrival::New => {}
                Arrival::Repeated => return,
                Arrival::Gap => return self.violation("a frame on control is missing", now, out),
            }
            self.ack_since.get_or_insert(now);
        }
        match frame.body {
            Some(scheduler_control::Body::Welcome(_)) => self.violation("a second welcome on one stream", now, out),
            Some(body) => out.push(Said::Control(body)),
            None => {}
        }
    }

    fn welcome(&mut self, welcome: v1::Welcome, now: Instant, out: &mut Vec<Said>) {
        let wanted = &self.identity.cluster_id;
        if !wanted.is_empty() && *wanted != welcome.cluster_id {
            return out.push(Said::Fatal(format!(
                "the scheduler at {} is cluster {}, and --cluster-id wants {wanted}",
                self.target.url, welcome.cluster_id
            )));
        }
        if !PROTOCOL.contains(&welcome.protocol) || welcome.session == 0 {
            return out.push(Said::Fatal(format!(
                "the scheduler at {} wants protocol {}, this worker speaks {} to {}: use programs of the same release",
                self.target.url,
                welcome.protocol,
                PROTOCOL.start(),
                PROTOCOL.end()
            )));
        }
        out.push(Said::Welcome { object_key: welcome.object_key.clone(), store_address: welcome.store_address.clone() });
        self.heartbeat = Duration::from_millis(u64::from(welcome.heartbeat_ms).clamp(10, 60_000));
        self.heartbeat_due = now + self.heartbeat;
        let received = welcome.received.unwrap_or_default();
        if welcome.resumed && self.session == welcome.session && self.epoch == welcome.epoch {
            self.control.open();
            self.acked_data(received.data);
            for frame in self.to_control.resume(received.control) {
                if let Some(line) = self.control.up() {
                    let _ = line.send(frame);
                }
            }
            out.push(Said::Resumed);
            if let State::Down { at } = &mut self.data.state {
                *at = now;
            }
            return;
        }
        let (had, generation) = (self.has_session(), self.control.generation);
        // The streams begin anew; the connection that said so stays.
        let line = std::mem::replace(&mut self.control, Line::new());
        self.forget(now);
        self.control = line;
        self.control.generation = generation;
        self.control.open();
        self.data.failures = 0;
        self.data.state = State::Down { at: now };
        self.session = welcome.session;
        self.epoch = welcome.epoch;
        if had || self.ever_welcomed {
            tracing::warn!(session = welcome.session, "the earlier session is gone: its tasks are ended");
        } else {
            tracing::info!(session = welcome.session, cluster = %welcome.cluster_id, "registered");
        }
        self.ever_welcomed = true;
        out.push(Said::NewSession);
    }

    fn data_frame(&mut self, frame: SchedulerData, now: Instant, out: &mut Vec<Said>) {
        if matches!(self.data.state, State::Opening { .. }) {
            return match frame.body {
                Some(scheduler_data::Body::Bound(bound)) => {
                    self.data.open();
                    let frames = self.to_data.resume(bound.received);
                    self.acked_data(bound.received);
                    for frame in frames {
                        if let Some(line) = self.data.up() {
                            let _ = line.send(frame);
                        }
                    }
                }
                _ => self.violation("data does not begin with bound", now, out),
            };
        }
        match self.from_data.arrive(frame.seq) {
            Arrival::New => {}
            Arrival::Repeated => return,
            Arrival::Gap => return self.violation("a frame on data is missing", now, out),
        }
        self.ack_since.get_or_insert(now);
        match frame.body {
            Some(scheduler_data::Body::Bound(_)) => self.violation("a second bound on one stream", now, out),
            Some(body) => out.push(Said::Data(body)),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_within_its_bounds() {
        for failures in 0..20 {
            let whole = BACKOFF_MIN.saturating_mul(1 << failures.min(10)).min(BACKOFF_MAX);
            for _ in 0..20 {
                let wait = backoff(failures);
                assert!(wait >= whole / 2 && wait <= whole, "{failures}: {wait:?}");
            }
        }
    }
}
