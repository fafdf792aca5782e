//! The client's connection: one task that owns both streams, keeps what is not acknowledged, and makes the connection again when
//! it breaks. Everything a caller asks for arrives as a [`Command`] and is answered by a channel or a [`Feed`].

mod open;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use scalable_core::link::{Arrival, Receiver};
use scalable_proto::{PROTOCOL, v1};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::endpoint::Endpoint;
use crate::outgoing::{Extra, Outgoing};
use crate::shared::Shared;
use crate::watch::Feed;
use crate::{Error, Submitted};
use open::{Open, take_open_frame, woken};

/// A connection that cannot be made again for so long is lost.
const LOST_AFTER: Duration = Duration::from_secs(30);
/// Longest wait for the first message of a stream.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Waits between attempts to connect again: doubled from the first to the last.
const RECONNECT_WAIT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Unacknowledged frames a stream keeps. Data takes a frame a group.
const CONTROL_FRAMES_MAX: usize = 1024;
const DATA_FRAMES_MAX: usize = 4096;
/// Frames handed to the transport and not yet written by it. Data has few: what comes meanwhile grows the next frame.
const CONTROL_TRANSPORT_FRAMES: usize = 32;
const DATA_TRANSPORT_FRAMES: usize = 2;
/// Frames received before they are acknowledged even when more are coming: the scheduler pushes progress only as fast as it is
/// acknowledged.
const FRAMES_PER_ACK: u32 = 64;
/// How long acknowledgements, and words that nobody waits for, wait for more of their kind.
const SAY_AFTER: Duration = Duration::from_millis(10);
/// How long control is heard after data has ended: a scheduler that ends says its last words on one connection and closes both.
const CONTROL_BEHIND_DATA: Duration = Duration::from_millis(200);
/// Heartbeat where the scheduler names none.
const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(5);

type Reply = oneshot::Sender<Result<Submitted, Error>>;

/// What a caller asks of the session.
#[derive(Debug)]
pub(crate) enum Command {
    Submit {
        run: Arc<RunInParts>,
        reply: Reply,
    },
    SubmitTasks {
        request: v1::SubmitTasks,
        reply: Reply,
    },
    Watch {
        run: String,
        feed: Feed,
    },
    /// Serves an open run from now on: what its outbox has is sent, and it is told what arrives.
    Attach {
        open: Arc<Shared>,
    },
}

/// A run as it travels: the head, then group by group.
#[derive(Debug)]
pub(crate) struct RunInParts {
    /// The spec without its groups.
    pub(crate) head: v1::RunSpec,
    pub(crate) groups: Vec<v1::GroupSpec>,
}

#[derive(Debug)]
enum DataJob {
    Begin(Arc<RunInParts>),
    Group(Arc<RunInParts>, usize),
    Commit(Arc<RunInParts>),
    /// A frame of the open run.
    Open(Box<v1::client_data::Body>),
}

impl DataJob {
    fn frame(self, seq: u64) -> v1::ClientData {
        use v1::client_data::Body;
        let body = match self {
            DataJob::Begin(run) => Body::Begin(run.head.clone()),
            DataJob::Group(run, group) => Body::Group(run.groups[group].clone()),
            DataJob::Commit(run) => Body::Commit(v1::Commit { client_key: run.head.client_key.clone() }),
            DataJob::Open(body) => *body,
        };
        v1::ClientData { seq, body: Some(body) }
    }
}

#[derive(Debug)]
enum Asked {
    Run(Arc<RunInParts>),
    Tasks(v1::SubmitTasks),
}

type ControlBody = v1::client_control::Body;

/// Both streams of one connection.
struct Streams {
    control: Streaming<v1::ClientEvents>,
    data: Streaming<v1::ClientResults>,
}

/// Why the streams are not served any more.
enum Stop {
    /// Nobody needs the session.
    Unused,
    /// To be connected again.
    Broken(Error),
    /// Never again.
    Over(Error),
}

/// See the head of this file.
pub(crate) struct Connection {
    endpoint: Endpoint,
    cluster_id: String,
    epoch: u64,
    session: u64,
    heartbeat: Duration,
    control: Outgoing<ControlBody, v1::ClientControl>,
    data: Outgoing<DataJob, v1::ClientData>,
    control_in: Receiver,
    data_in: Receiver,
    since_ack: u32,
    /// When acknowledgements and words that nobody waits for are said at the latest.
    say_at: Option<Instant>,
    asked: HashMap<Vec<u8>, (Asked, Reply)>,
    watches: Vec<(String, Feed)>,
    open: Option<Open>,
    commands: mpsc::Receiver<Command>,
}

impl Connection {
    /// Connects for the first time and starts the task that serves the session.
    pub(crate) async fn start(endpoint: Endpoint) -> Result<mpsc::Sender<Command>, Error> {
        let (commands_in, commands) = mpsc::channel(64);
        let mut connection = Connection {
            endpoint,
            cluster_id: String::new(),
            epoch: 0,
            session: 0,
            heartbeat: HEARTBEAT_DEFAULT,
            control: Outgoing::new(CONTROL_FRAMES_MAX, CONTROL_TRANSPORT_FRAMES),
            data: Outgoing::new(DATA_FRAMES_MAX, DATA_TRANSPORT_FRAMES),
            control_in: Receiver::default(),
            data_in: Receiver::default(),
            since_ack: 0,
            say_at: None,
            asked: HashMap::new(),
            watches: Vec::new(),
            open: None,
            commands,
        };
        let streams = connection.connect().await?;
        tokio::spawn(connection.run(streams));
        Ok(commands_in)
    }

    async fn run(mut self, mut streams: Streams) {
        loop {
            let error = match self.serve(&mut streams).await {
                Stop::Unused => return,
                Stop::Over(error) => return self.give_up(&error),
                Stop::Broken(error) => error,
            };
            tracing::debug!(%error, "connection broke, connecting again");
            drop(streams);
            streams = match self.reconnect(error).await {
                Ok(streams) => streams,
                Err(error) => return self.give_up(&error),
            };
        }
    }

    /// Tells everybody who waits.
    fn give_up(&mut self, error: &Error) {
        let error = match error {
            Error::Unreachable { address, reason } => Error::Lost { address: address.clone(), reason: reason.clone() },
            other => other.clone(),
        };
        for (_, (_, reply)) in self.asked.drain() {
            let _ = reply.send(Err(error.clone()));
        }
        for (_, feed) in self.watches.drain(..) {
            feed.end(Some(error.clone()));
        }
        if let Some(open) = self.open.take() {
            open.shared.end(error);
        }
    }

    async fn reconnect(&mut self, first: Error) -> Result<Streams, Error> {
        let (begun, mut wait, mut last) = (Instant::now(), RECONNECT_WAIT.0, first);
        while begun.elapsed() < LOST_AFTER {
            match self.connect().await {
                Ok(streams) => return Ok(streams),
                Err(error) if error.is_transient() => last = error,
                Err(error) => return Err(error),
            }
            sleep(wait).await;
            wait = (wait * 2).min(RECONNECT_WAIT.1);
        }
        Err(last)
    }

    fn acks(&self) -> v1::Acks {
        v1::Acks { control: self.control_in.received(), data: self.data_in.received() }
    }

    fn lost(&self, reason: impl Into<String>) -> Error {
        Error::Lost { address: self.endpoint.address().to_owned(), reason: reason.into() }
    }

    /// Opens both streams and goes on with the session, or begins a new one where the scheduler has none.
    async fn connect(&mut self) -> Result<Streams, Error> {
        let address = self.endpoint.address().to_owned();
        let refused = |status: Status| match status.code() {
            Code::FailedPrecondition if status.message().contains("protocol") => {
                Error::VersionSkew { reason: status.message().to_owned() }
            }
            // The session went away between two attempts, or somebody else listens there now.
            Code::FailedPrecondition => Error::Lost { address: address.clone(), reason: status.message().to_owned() },
            _ => Error::from_status(&address, &status),
        };

        let hello = v1::Hello {
            cluster_id: self.cluster_id.clone(),
            protocol: Some(v1::ProtocolRange { min: *PROTOCOL.start(), max: *PROTOCOL.end() }),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            session: self.session,
            epoch: self.epoch,
            received: Some(self.acks()),
        };
        let frames = self.control.open(v1::ClientControl { seq: 0, acks: None, body: Some(ControlBody::Hello(hello)) });
        let request = self.endpoint.stream_request(ReceiverStream::new(frames));
        let mut service = self.endpoint.streams(self.endpoint.connect().await?);
        let first = async {
            let mut control = service.control(request).await?.into_inner();
            let message = control.message().await?;
            Ok((control, message))
        };
        let (control, message) = timeout(HANDSHAKE_TIMEOUT, first)
            .await
            .map_err(|_| self.silent("Hello"))?
            .map_err(|status: Status| refused(status))?;
        let welcome = match message.and_then(|message| message.body) {
            Some(v1::client_events::Body::Welcome(welcome)) => welcome,
            Some(v1::client_events::Body::Goodbye(goodbye)) => return Err(self.refusal_of(goodbye)),
            _ => {
                return Err(Error::VersionSkew {
                    reason: "the scheduler answered Hello with something else than Welcome".to_owned(),
                });
            }
        };
        self.welcomed(welcome)?;

        let bind = v1::Bind { session: self.session, epoch: self.epoch, received: self.data_in.received() };
        let frames = self.data.open(v1::ClientData { seq: 0, body: Some(v1::client_data::Body::Bind(bind)) });
        let request = self.endpoint.stream_request(ReceiverStream::new(frames));
        let mut service = self.endpoint.streams(self.endpoint.connect().await?);
        let first = async {
            let mut data = service.data(request).await?.into_inner();
            let message = data.message().await?;
            Ok((data, message))
        };
        let (data, message) = timeout(HANDSHAKE_TIMEOUT, first)
            .await
            .map_err(|_| self.silent("Bind"))?
            .map_err(|status: Status| refused(status))?;
        match message.and_then(|message| message.body) {
            Some(v1::client_results::Body::Bound(bound)) => {
                self.data.resume(bound.received);
                self.data_acked(bound.received);
            }
            _ => {
                return Err(Error::VersionSkew {
                    reason: "the scheduler answered Bind with something else than Bound".to_owned(),
                });
            }
        }
        Ok(Streams { control, data })
    }

    fn silent(&self, what: &str) -> Error {
        let reason = format!("no answer to {what} within {} s", HANDSHAKE_TIMEOUT.as_secs());
        Error::Unreachable { address: self.endpoint.address().to_owned(), reason }
    }

    /// A goodbye before the welcome: the scheduler will not have us.
    fn refusal_of(&self, goodbye: v1::Goodbye) -> Error {
        if goodbye.reason.contains("protocol") {
            Error::VersionSkew { reason: goodbye.reason }
        } else {
            Error::Refused { code: "GOODBYE".to_owned(), message: goodbye.reason, help: String::new() }
        }
    }

    fn welcomed(&mut self, welcome: v1::Welcome) -> Result<(), Error> {
        if !PROTOCOL.contains(&welcome.protocol) {
            return Err(Error::VersionSkew { reason: format!("the scheduler chose protocol {}", welcome.protocol) });
        }
        let first = self.session == 0;
        let another = !first && (welcome.epoch != self.epoch || welcome.cluster_id != self.cluster_id);
        self.cluster_id = welcome.cluster_id;
        self.epoch = welcome.epoch;
        self.session = welcome.session;
        self.heartbeat = match welcome.heartbeat_ms {
            0 => HEARTBEAT_DEFAULT,
            ms => Duration::from_millis(u64::from(ms.clamp(100, 60_000))),
        };
        if welcome.resumed {
            self.control.resume(welcome.received.unwrap_or_default().control);
        } else if !first {
            self.begin_anew(another);
        }
        Ok(())
    }

    /// The session is gone. What was asked and not answered is asked again under its key; another scheduler does not know the
    /// runs that were watched.
    fn begin_anew(&mut self, another: bool) {
        self.control.restart();
        self.data.restart();
        self.control_in = Receiver::default();
        self.data_in = Receiver::default();
        if let Some(open) = self.open.take() {
            // What it knew of the run was in the session: which groups there are and what was delivered.
            open.shared.end(self.lost("the scheduler has ended this session, and with it the tasks that were submitted in it"));
        }
        if another {
            let error = self.lost("another scheduler answers there now");
            for (_, feed) in self.watches.drain(..) {
                feed.end(Some(error.clone()));
            }
        }
        for (run, _) in &self.watches {
            self.control.push(ControlBody::Watch(v1::Watch { run: run.clone() }));
        }
        for (asked, _) in self.asked.values() {
            match asked {
                Asked::Run(run) => push_run(&mut self.data, run),
                Asked::Tasks(request) => self.control.push(ControlBody::Submit(request.clone())),
            }
        }
    }

    /// Serves until a stream breaks or nobody needs the session.
    async fn serve(&mut self, streams: &mut Streams) -> Stop {
        let mut heartbeat = interval(self.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut commands_open = true;
        // Set when data has ended while control has not said why: what is still under way there is heard first.
        let mut data_broken: Option<(Error, Instant)> = None;
        loop {
            self.watches.retain(|(_, feed)| !feed.is_abandoned());
            let open_done = self.open.as_ref().is_none_or(Open::is_done);
            if !commands_open && self.watches.is_empty() && self.asked.is_empty() && open_done {
                return Stop::Unused;
            }
            self.say_what_is_due();
            let say_at = self.say_at;
            let acks = self.acks();
            let make_control = |body, seq| v1::ClientControl { seq, acks: Some(acks), body: Some(body) };
            let control_ready = self.control.has_next();
            let data_ready = self.data.has_next() || (self.data.has_room() && self.has_open_frame());
            let address = self.endpoint.address();
            tokio::select! {
                // In this order: what has arrived is taken before it is acknowledged, all at once.
                biased;
                command = self.commands.recv(), if commands_open => match command {
                    Some(command) => self.command(command),
                    None => commands_open = false,
                },
                message = streams.control.message() => match message {
                    Ok(Some(message)) => if let Err(stop) = self.control_message(message) { return stop },
                    Ok(None) => return Stop::Broken(self.lost("the scheduler closed the control stream")),
                    Err(status) => return Stop::Broken(Error::from_status(address, &status)),
                },
                message = streams.data.message(), if data_broken.is_none() => {
                    let error = match message {
                        Ok(Some(message)) => match self.data_message(message) {
                            Ok(()) => continue,
                            Err(stop) => return stop,
                        },
                        Ok(None) => self.lost("the scheduler closed the data stream"),
                        Err(status) => Error::from_status(address, &status),
                    };
                    data_broken = Some((error, Instant::now() + CONTROL_BEHIND_DATA));
                },
                error = broken_for_good(data_broken.as_ref()) => return Stop::Broken(error),
                sent = self.control.send_next(make_control, || None), if control_ready => if sent.is_err() {
                    return Stop::Broken(self.lost("the control stream is closed"));
                },
                sent = self.data.send_next(DataJob::frame, || take_open_frame(self.open.as_ref())),
                    if data_ready && data_broken.is_none() => match (sent, &mut self.open) {
                    (Err(_), _) => return Stop::Broken(self.lost("the data stream is closed")),
                    (Ok(Some(Extra(seq))), Some(open)) => open.under_way.push_back(seq),
                    (Ok(_), _) => {}
                },
                () = woken(self.open.as_ref()) => {}
                _ = heartbeat.tick() => self.send_acks(),
                () = reached(say_at) => {}
            }
        }
    }

    /// Says what may wait, once it has waited for long enough or has become much.
    fn say_what_is_due(&mut self) {
        let now = Instant::now();
        let due = self.say_at.is_some_and(|at| at <= now);
        let words = self.say_words(due);
        if due && self.since_ack > 0 {
            self.send_acks();
        }
        self.say_at = match words || self.since_ack > 0 {
            true if due => Some(now + SAY_AFTER),
            true => self.say_at.or(Some(now + SAY_AFTER)),
            false => None,
        };
    }

    /// A ping without a number: it carries acknowledgements and renews the lease, and losing one costs nothing.
    fn send_acks(&mut self) {
        self.since_ack = 0;
        let ping = v1::ClientControl { seq: 0, acks: Some(self.acks()), body: Some(ControlBody::Ping(v1::Ping {})) };
        self.control.send_unnumbered(ping);
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Submit { run, reply } => {
                push_run(&mut self.data, &run);
                self.asked.insert(run.head.client_key.to_vec(), (Asked::Run(run), reply));
            }
            Command::SubmitTasks { request, reply } => {
                self.control.push(ControlBody::Submit(request.clone()));
                self.asked.insert(request.client_key.to_vec(), (Asked::Tasks(request), reply));
            }
            Command::Watch { run, feed } => {
                self.control.push(ControlBody::Watch(v1::Watch { run: run.clone() }));
                self.watches.push((run, feed));
            }
            Command::Attach { open } => self.open = Some(Open::new(open)),
        }
    }

    /// Takes a frame's number: true when its body is to be looked at.
    fn arrived(&mut self, arrival: Arrival) -> Result<bool, Stop> {
        match arrival {
            Arrival::Repeated => Ok(false),
            Arrival::Gap => Err(Stop::Over(self.lost("the scheduler left out a message of the stream"))),
            Arrival::New => {
                self.since_ack += 1;
                if self.since_ack >= FRAMES_PER_ACK {
                    self.send_acks();
                }
                Ok(true)
            }
        }
    }

    fn control_message(&mut self, message: v1::ClientEvents) -> Result<(), Stop> {
        if let Some(acks) = message.acks {
            self.control.acked(acks.control);
            self.data_acked(acks.data);
        }
        let goodbye = matches!(message.body, Some(v1::client_events::Body::Goodbye(_)));
        // A goodbye and a mere acknowledgement may come without a number.
        if message.seq != 0 {
            let arrival = self.control_in.arrive(message.seq);
            if !self.arrived(arrival)? {
                return Ok(());
            }
        } else if !goodbye {
            return Ok(());
        }
        match message.body {
            Some(v1::client_events::Body::Progress(progress)) => self.progress(progress),
            Some(v1::client_events::Body::Failed(failed)) => {
                for (_, feed) in self.watches.iter().filter(|(run, _)| *run == failed.run) {
                    feed.failed(failed.clone());
                }
            }
            Some(v1::client_events::Body::Submitted(reply)) => self.answered(reply),
            Some(v1::client_events::Body::Goodbye(goodbye)) => {
                let reason =
                    if goodbye.reason.is_empty() { "the scheduler ended the session".to_owned() } else { goodbye.reason };
                return Err(Stop::Over(self.lost(reason)));
            }
            Some(v1::client_events::Body::Welcome(_)) | None => {}
        }
        Ok(())
    }

    fn progress(&mut self, progress: v1::RunProgress) {
        let complete = progress.complete;
        for (_, feed) in self.watches.iter().filter(|(run, _)| *run == progress.run) {
            feed.progress(progress.clone());
            if complete {
                feed.end(None);
            }
        }
        if complete {
            self.watches.retain(|(run, _)| *run != progress.run);
        }
    }

    fn data_message(&mut self, message: v1::ClientResults) -> Result<(), Stop> {
        use v1::client_results::Body;
        let arrival = self.data_in.arrive(message.seq);
        if !self.arrived(arrival)? {
            return Ok(());
        }
        match (message.body, &self.open) {
            (Some(Body::Submitted(reply)), _) => self.answered(reply),
            (Some(Body::Results(results)), Some(open)) => open.shared.results(results),
            (Some(Body::Rejected(rejected)), Some(open)) => open.shared.rejected(rejected),
            (Some(Body::Peer(peer)), Some(open)) => open.shared.introduced(peer),
            _ => {}
        }
        Ok(())
    }

    fn answered(&mut self, answer: v1::SubmitReply) {
        let Some((_, reply)) = self.asked.remove(answer.client_key.as_ref()) else { return };
        let result = match answer.refusal {
            Some(refusal) => Err(Error::Refused { code: refusal.code, message: refusal.message, help: refusal.help }),
            None => Ok(Submitted { run: answer.run, known: answer.known, number: answer.number }),
        };
        // A caller that does not wait any more has nothing to be told.
        let _ = reply.send(result);
    }
}

/// Completes at this time, if there is one.
async fn reached(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Completes when control has been heard for long enough after data had ended.
async fn broken_for_good(broken: Option<&(Error, Instant)>) -> Error {
    match broken {
        Some((error, until)) => {
            tokio::time::sleep_until(*until).await;
            error.clone()
        }
        None => std::future::pending().await,
    }
}

fn push_run(data: &mut Outgoing<DataJob, v1::ClientData>, run: &Arc<RunInParts>) {
    data.push(DataJob::Begin(run.clone()));
    for group in 0..run.groups.len() {
        data.push(DataJob::Group(run.clone(), group));
    }
    data.push(DataJob::Commit(run.clone()));
}
