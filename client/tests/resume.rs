//! A scheduler in miniature that breaks every stream at every message, before or after it was taken, with the session kept or
//! forgotten. What arrives on either side is compared with what an unbroken connection gives.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use scalable::{Client, Error, Event, Session as OpenSession, v1};
use scalable_core::link::{Arrival, Receiver, Sender};
use scalable_proto::v1::client_service_server::{ClientService, ClientServiceServer};
use scalable_proto::v1::control_service_server::{ControlService, ControlServiceServer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const RUN: &str = "run-1";

/// When the connection breaks.
#[derive(Clone, Copy, Debug)]
struct Fault {
    /// At this message, counted over both streams and directions.
    at: u64,
    /// The message was taken, or sent, before the break.
    taken: bool,
    /// The scheduler has forgotten the session afterwards.
    forgets: bool,
}

type Out<T> = mpsc::UnboundedSender<Result<T, Status>>;

struct Session {
    number: u64,
    to_control: Sender<v1::ClientEvents>,
    to_data: Sender<v1::ClientResults>,
    from_control: Receiver,
    from_data: Receiver,
    assembling: Option<v1::RunSpec>,
}

impl Session {
    fn new(number: u64) -> Session {
        Session {
            number,
            to_control: Sender::new(1000),
            to_data: Sender::new(1000),
            from_control: Receiver::default(),
            from_data: Receiver::default(),
            assembling: None,
        }
    }
}

struct State {
    fault: Option<Fault>,
    messages: u64,
    sessions: u64,
    /// Counts breaks: a stream of before is not heard any more.
    breaks: u64,
    session: Session,
    control: Option<Out<v1::ClientEvents>>,
    data: Option<Out<v1::ClientResults>>,
    runs: BTreeMap<Vec<u8>, v1::RunSpec>,
    tasks: BTreeMap<Vec<u8>, u32>,
    repeated: u32,
    open: Open,
}

/// What a client has said of its open run.
#[derive(Default)]
struct Open {
    groups: Vec<v1::GroupSpec>,
    /// Arguments of each element of each group.
    elements: Vec<Vec<Vec<u8>>>,
    /// (group, index) read by the elements of each group, in order.
    reads: Vec<(u32, u32)>,
    released: Vec<(u32, u32)>,
    cancelled: Vec<(u32, u32, u32)>,
    taken: u64,
    closed: bool,
}

impl State {
    /// Counts a message; true when the connection is to break at it.
    fn breaks_at(&mut self, taken: bool) -> bool {
        self.fault.is_some_and(|fault| fault.at == self.messages && fault.taken == taken)
    }

    fn break_now(&mut self) {
        let fault = self.fault.take().unwrap();
        self.breaks += 1;
        self.control = None;
        self.data = None;
        if fault.forgets {
            self.sessions += 1;
            self.session = Session::new(self.sessions);
        }
    }

    fn event(&mut self, body: v1::client_events::Body) {
        let session = &mut self.session;
        let acks = v1::Acks { control: session.from_control.received(), data: session.from_data.received() };
        let frame = session.to_control.push(|seq| v1::ClientEvents { seq, acks: Some(acks), body: Some(body) }).unwrap();
        self.send(|state| {
            if let Some(out) = &state.control {
                let _ = out.send(Ok(frame));
            }
        });
    }

    fn result(&mut self, body: v1::client_results::Body) {
        let frame = self.session.to_data.push(|seq| v1::ClientResults { seq, body: Some(body) }).unwrap();
        self.send(|state| {
            if let Some(out) = &state.data {
                let _ = out.send(Ok(frame));
            }
        });
    }

    fn send(&mut self, send: impl FnOnce(&State)) {
        if self.breaks_at(false) {
            self.break_now();
        } else {
            send(self);
            if self.breaks_at(true) {
                self.break_now();
            }
        }
        self.messages += 1;
    }

    /// Takes an incoming frame, unless the connection breaks before.
    fn take(&mut self, breaks: u64, take: impl FnOnce(&mut State)) -> bool {
        if self.breaks != breaks {
            return false;
        }
        if self.breaks_at(false) {
            self.break_now();
            self.messages += 1;
            return false;
        }
        let breaks_now = self.breaks_at(true);
        self.messages += 1;
        take(self);
        if breaks_now && self.fault.is_some() {
            self.break_now();
            return false;
        }
        true
    }

    fn control_frame(&mut self, frame: v1::ClientControl) {
        if let Some(acks) = frame.acks {
            self.session.to_control.acked(acks.control);
            self.session.to_data.acked(acks.data);
        }
        if frame.seq == 0 {
            return;
        }
        match self.session.from_control.arrive(frame.seq) {
            Arrival::New => {}
            Arrival::Repeated => {
                self.repeated += 1;
                return;
            }
            Arrival::Gap => panic!("a gap on control"),
        }
        match frame.body {
            Some(v1::client_control::Body::Watch(_)) => {
                self.event(progress(v1::RunState::Running, false));
                for index in 0..3 {
                    let failed = v1::TaskFailed { run: RUN.into(), group: "g".into(), index, ..Default::default() };
                    self.event(v1::client_events::Body::Failed(failed));
                }
                self.event(progress(v1::RunState::Failed, true));
            }
            Some(v1::client_control::Body::Submit(submit)) => {
                *self.tasks.entry(submit.client_key.to_vec()).or_default() += 1;
                let reply = v1::SubmitReply { client_key: submit.client_key, run: submit.run, ..Default::default() };
                self.event(v1::client_events::Body::Submitted(reply));
            }
            Some(v1::client_control::Body::Release(release)) => {
                for ((group, first), count) in release.group.iter().zip(&release.first).zip(&release.count) {
                    assert!(((first + count) as usize) <= self.open.elements[*group as usize].len(), "released before appended");
                    self.open.released.extend((*first..first + count).map(|index| (*group, index)));
                }
            }
            Some(v1::client_control::Body::Cancel(cancel)) => {
                assert!(((cancel.first + cancel.count) as usize) <= self.open.elements[cancel.group as usize].len());
                self.open.cancelled.push((cancel.group, cancel.first, cancel.count));
            }
            Some(v1::client_control::Body::Taken(taken)) => self.open.taken = taken.weight,
            other => panic!("unexpected {other:?}"),
        }
    }

    fn data_frame(&mut self, frame: v1::ClientData) {
        match self.session.from_data.arrive(frame.seq) {
            Arrival::New => {}
            Arrival::Repeated => {
                self.repeated += 1;
                return;
            }
            Arrival::Gap => panic!("a gap on data"),
        }
        match frame.body {
            Some(v1::client_data::Body::Begin(begin)) => self.session.assembling = Some(begin),
            Some(v1::client_data::Body::Group(group)) => self.session.assembling.as_mut().unwrap().groups.push(group),
            Some(v1::client_data::Body::Commit(commit)) => {
                let spec = self.session.assembling.take().unwrap();
                let known = self.runs.insert(commit.client_key.to_vec(), spec).is_some();
                let reply =
                    v1::SubmitReply { client_key: commit.client_key, run: RUN.into(), known, number: 5, ..Default::default() };
                self.result(v1::client_results::Body::Submitted(reply));
            }
            Some(v1::client_data::Body::AddGroup(add)) => {
                assert_eq!((add.run, add.group as usize), (5, self.open.groups.len()), "groups are counted on");
                self.open.groups.push(add.spec.unwrap());
                self.open.elements.push(Vec::new());
            }
            Some(v1::client_data::Body::Append(append)) => self.append(append),
            Some(v1::client_data::Body::CloseRun(close)) => {
                assert!(close.run == 5 && !std::mem::replace(&mut self.open.closed, true), "closed once");
                self.event(progress(v1::RunState::Succeeded, true));
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}

impl State {
    /// Every task gives back its own arguments; of an argument 13 becomes a failure.
    fn append(&mut self, append: v1::Append) {
        let known = &mut self.open.elements[append.group as usize];
        assert_eq!(append.first as usize, known.len(), "elements are counted on");
        let mut start = 0;
        for at in 0..append.count as usize {
            let end = append.args_end.get(at).copied().unwrap_or(0) as usize;
            known.push(append.args[start..end].to_vec());
            start = end;
        }
        for input in &append.inputs {
            for (group, index) in input.group.iter().zip(&input.index) {
                assert!((*index as usize) < self.open.elements[*group as usize].len(), "a task reads one that is known");
                self.open.reads.push((*group, *index));
            }
        }
        let failed = |at: &usize| append.args.get(*at) == Some(&13) && append.args_end.get(*at) == Some(&(*at as u32 + 1));
        let error = v1::TaskError { class: v1::OutcomeClass::AppError.into(), attempt: 1, ..Default::default() };
        let end = |at: usize| v1::OtherEnd { at: at as u32, end: Some(v1::other_end::End::Error(error.clone())) };
        let others: Vec<v1::OtherEnd> = (0..append.count as usize).filter(failed).map(end).collect();
        if append.count == 0 {
            return;
        }
        self.result(v1::client_results::Body::Results(v1::ResultBatch {
            run: append.run,
            group: append.group,
            first: append.first,
            count: append.count,
            index: Vec::new(),
            result_end: append.args_end,
            results: append.args,
            others,
            weight: 1 << 20,
        }));
    }
}

fn progress(state: v1::RunState, complete: bool) -> v1::client_events::Body {
    v1::client_events::Body::Progress(v1::RunProgress { run: RUN.into(), state: state.into(), complete, ..Default::default() })
}

#[derive(Clone)]
struct Server(Arc<Mutex<State>>);

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn check<T>(request: &Request<T>) -> Result<(), Status> {
    match request.metadata().get("authorization").and_then(|value| value.to_str().ok()) {
        Some(shown) if shown == format!("Bearer {TOKEN}") => Ok(()),
        _ => Err(Status::unauthenticated("no")),
    }
}

#[tonic::async_trait]
impl ClientService for Server {
    type ControlStream = Replies<v1::ClientEvents>;
    type DataStream = Replies<v1::ClientResults>;

    async fn control(&self, request: Request<Streaming<v1::ClientControl>>) -> Result<Response<Self::ControlStream>, Status> {
        check(&request)?;
        let (out, replies) = mpsc::unbounded_channel();
        let (state, mut frames) = (self.0.clone(), request.into_inner());
        tokio::spawn(async move {
            let Some(v1::client_control::Body::Hello(hello)) = frames.message().await.unwrap().and_then(|frame| frame.body)
            else {
                panic!("no hello first")
            };
            {
                let mut state = state.lock().unwrap();
                let resumed = hello.session == state.session.number;
                if !resumed {
                    state.sessions += 1;
                    state.session = Session::new(state.sessions);
                }
                let session = &mut state.session;
                let received = v1::Acks { control: session.from_control.received(), data: session.from_data.received() };
                let welcome = v1::Welcome {
                    cluster_id: "c".into(),
                    epoch: 7,
                    session: session.number,
                    protocol: 1,
                    heartbeat_ms: 100,
                    received: Some(received),
                    resumed,
                    ..Default::default()
                };
                let body = Some(v1::client_events::Body::Welcome(welcome));
                out.send(Ok(v1::ClientEvents { seq: 0, acks: None, body })).unwrap();
                for frame in session.to_control.resume(hello.received.unwrap_or_default().control) {
                    let _ = out.send(Ok(frame));
                }
                state.control = Some(out);
            }
            let breaks = state.lock().unwrap().breaks;
            while let Ok(Some(frame)) = frames.message().await {
                if !state.lock().unwrap().take(breaks, |state| state.control_frame(frame)) {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(replies))))
    }

    async fn data(&self, request: Request<Streaming<v1::ClientData>>) -> Result<Response<Self::DataStream>, Status> {
        check(&request)?;
        let (out, replies) = mpsc::unbounded_channel();
        let (state, mut frames) = (self.0.clone(), request.into_inner());
        tokio::spawn(async move {
            let Some(v1::client_data::Body::Bind(bind)) = frames.message().await.unwrap().and_then(|frame| frame.body) else {
                panic!("no bind first")
            };
            {
                let mut state = state.lock().unwrap();
                if bind.session != state.session.number {
                    let _ = out.send(Err(Status::failed_precondition("this session is over")));
                    return;
                }
                let received = state.session.from_data.received();
                let body = Some(v1::client_results::Body::Bound(v1::Bound { received }));
                out.send(Ok(v1::ClientResults { seq: 0, body })).unwrap();
                for frame in state.session.to_data.resume(bind.received) {
                    let _ = out.send(Ok(frame));
                }
                state.data = Some(out);
            }
            let breaks = state.lock().unwrap().breaks;
            while let Ok(Some(frame)) = frames.message().await {
                if !state.lock().unwrap().take(breaks, |state| state.data_frame(frame)) {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(replies))))
    }
}

#[tonic::async_trait]
impl ControlService for Server {
    async fn offer_content(&self, _: Request<v1::OfferRequest>) -> Result<Response<v1::OfferReply>, Status> {
        Ok(Response::new(v1::OfferReply::default()))
    }

    async fn list_runs(&self, _: Request<v1::ListRunsRequest>) -> Result<Response<v1::ListRunsReply>, Status> {
        Err(Status::unimplemented("list_runs"))
    }
    async fn get_status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        check(&request)?;
        match request.into_inner().run.as_str() {
            "" | RUN => Ok(Response::new(v1::StatusReply::default())),
            other => Err(Status::not_found(format!("no run `{other}` is known here"))),
        }
    }
    async fn list_tasks(&self, _: Request<v1::ListTasksRequest>) -> Result<Response<v1::ListTasksReply>, Status> {
        Err(Status::unimplemented("list_tasks"))
    }
    async fn explain(&self, _: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainReply>, Status> {
        Err(Status::unimplemented("explain"))
    }
    async fn cancel(&self, _: Request<v1::CancelRequest>) -> Result<Response<v1::CancelReply>, Status> {
        Err(Status::unimplemented("cancel"))
    }
    async fn shutdown(&self, _: Request<v1::ShutdownRequest>) -> Result<Response<v1::ShutdownReply>, Status> {
        Err(Status::unimplemented("shutdown"))
    }
    async fn list_run_files(&self, _: Request<v1::ListRunFilesRequest>) -> Result<Response<v1::ListRunFilesReply>, Status> {
        Err(Status::unimplemented("list_run_files"))
    }
    async fn acknowledge_run(&self, _: Request<v1::AcknowledgeRunRequest>) -> Result<Response<v1::AcknowledgeRunReply>, Status> {
        Err(Status::unimplemented("acknowledge_run"))
    }
    async fn read_log(&self, _: Request<v1::ReadLogRequest>) -> Result<Response<v1::ReadLogReply>, Status> {
        Err(Status::unimplemented("read_log"))
    }
}

async fn serve(fault: Option<Fault>) -> (Arc<Mutex<State>>, String) {
    let state = State {
        fault,
        messages: 0,
        sessions: 1,
        breaks: 0,
        session: Session::new(1),
        control: None,
        data: None,
        runs: BTreeMap::new(),
        tasks: BTreeMap::new(),
        repeated: 0,
        open: Open::default(),
    };
    let state = Arc::new(Mutex::new(state));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tonic::transport::Server::builder()
        .add_service(ClientServiceServer::new(Server(state.clone())))
        .add_service(ControlServiceServer::new(Server(state.clone())))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    (state, address)
}

fn spec() -> v1::RunSpec {
    let group = |n: u32| v1::GroupSpec { name: format!("g{n}"), length: n, ..Default::default() };
    v1::RunSpec { name: RUN.into(), client_key: vec![7; 16].into(), groups: (1..=4).map(group).collect(), ..Default::default() }
}

/// Submits in both forms and watches; returns the indices of the failures seen and how many messages there were.
async fn scenario(fault: Option<Fault>) -> (Vec<u32>, u64) {
    let (state, address) = serve(fault).await;
    let client = Client::connect(&address, TOKEN).await.unwrap();
    let submitted = client.submit_run(spec()).await.unwrap();
    assert_eq!(submitted.run, RUN);
    let tasks = v1::SubmitTasks {
        run: "run-2".into(),
        client_key: vec![9; 16].into(),
        tasks: vec![v1::TaskSpec { name: "t".into(), ..Default::default() }],
        directory: String::new(),
        fetched: false,
    };
    assert_eq!(client.submit_tasks(tasks).await.unwrap().run, "run-2");
    let mut events = client.watch(RUN).await.unwrap();
    let (mut failures, mut last) = (Vec::new(), v1::RunProgress::default());
    while let Some(event) = events.next().await {
        match event.unwrap() {
            Event::Failed(failed) => failures.push(failed.index),
            Event::Progress(progress) => last = progress,
            Event::Missed(count) => panic!("{count} missed"),
        }
    }
    assert!(last.complete && last.state() == v1::RunState::Failed, "the end was seen: {last:?}");
    let state = state.lock().unwrap();
    assert_eq!(state.runs.len(), 1, "one run under one key");
    assert_eq!(state.runs[[7; 16].as_slice()], spec(), "all groups, once and in order");
    assert!(state.fault.is_none(), "the fault was injected");
    (failures, state.messages)
}

#[tokio::test]
async fn every_stream_broken_at_every_message_loses_and_doubles_nothing() {
    let (unbroken, messages) = scenario(None).await;
    assert_eq!(unbroken, [0, 1, 2]);
    // Pings are counted too and their number depends on time: the messages of the protocol itself are fewer.
    let protocol = 6 + 1 + 1 + 1 + 1 + 5;
    assert!(messages >= protocol, "{messages}");
    for at in 0..protocol {
        for taken in [false, true] {
            let (failures, _) = scenario(Some(Fault { at, taken, forgets: false })).await;
            assert_eq!(failures, [0, 1, 2], "broken at {at}, taken: {taken}");
        }
    }
}

#[tokio::test]
async fn a_forgotten_session_is_begun_anew_and_what_was_asked_is_asked_again() {
    for at in 0..15 {
        for taken in [false, true] {
            // What was told under the forgotten session may be told again: only the set of failures is promised.
            let (failures, _) = scenario(Some(Fault { at, taken, forgets: true })).await;
            assert!(failures.iter().all(|index| *index < 3), "broken at {at}, taken: {taken}: {failures:?}");
        }
    }
}

#[tokio::test]
async fn refusals_have_their_own_errors() {
    let (_, address) = serve(None).await;
    assert!(matches!(Client::connect(&address, "wrong").await, Err(Error::Unauthenticated { .. })));
    let client = Client::connect(&address, TOKEN).await.unwrap();
    match client.watch("run-9").await {
        Err(Error::Refused { message, .. }) => assert!(message.contains("run-9"), "{message}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(client.list_runs().await, Err(Error::VersionSkew { .. })), "a call the scheduler does not know");
    assert!(matches!(client.submit_tasks(v1::SubmitTasks::default()).await, Err(Error::Refused { .. })));
    let large = v1::GroupSpec { name: "x".repeat(17 << 20), ..Default::default() };
    let large = v1::RunSpec { groups: vec![large], ..Default::default() };
    match client.submit_run(large).await {
        Err(Error::Refused { code, .. }) => assert_eq!(code, "TOO_LARGE"),
        other => panic!("{other:?}"),
    }
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    assert!(matches!(Client::connect(&nobody, TOKEN).await, Err(Error::Unreachable { .. })));
}

#[scalable::task]
fn echo(n: u8) -> u8 {
    n
}

#[scalable::task]
fn echo_beside(n: u8, _read: u8) -> u8 {
    n
}

/// What a user sees of an open run, and how many messages there were. With a session that is forgotten the user sees an error.
async fn open_scenario(fault: Option<Fault>) -> (Result<Vec<u8>, Error>, u64) {
    let (state, address) = serve(fault).await;
    let session = OpenSession::connect(&address, TOKEN).await.unwrap();
    let work = async {
        let one = session.submit(echo, (1,)).await?;
        let two = session.submit(echo_beside, (2, &one)).await?;
        let array = session.map(echo, (3..6,)).await?;
        let mut results = vec![(&one).await?, two.await?];
        results.extend(array.gather().await?);
        // One after the other: a frame each.
        for n in 6..9 {
            results.push(session.submit(echo, (n,)).await?.await?);
        }
        assert!(matches!(session.submit(echo, (13,)).await?.await, Err(Error::Task(_)) | Err(Error::Lost { .. })));
        one.cancel();
        Ok(results)
    };
    let result = work.await;
    // The end is seen when the run was closed: everything was said then.
    let client = session.client().unwrap().clone();
    let events = client.watch(RUN).await;
    drop(session);
    if result.is_ok() {
        let closed = || state.lock().unwrap().open.closed;
        let mut events = events.unwrap();
        while !closed() {
            let _ = events.next().await;
            tokio::task::yield_now().await;
        }
    }
    let state = state.lock().unwrap();
    if result.is_ok() {
        let flat = |group: usize| state.open.elements[group].iter().flatten().copied().collect::<Vec<u8>>();
        assert_eq!((flat(0), flat(1), flat(2)), (vec![1, 6, 7, 8, 13], vec![2], vec![3, 4, 5]), "once each and in order");
        assert_eq!(state.open.reads, [(0, 0)]);
    }
    assert!(state.fault.is_none() || result.is_err(), "the fault was injected");
    (result, state.messages)
}

#[tokio::test]
async fn an_open_run_broken_at_every_message_loses_and_doubles_nothing() {
    let (unbroken, messages) = open_scenario(None).await;
    assert_eq!(unbroken.unwrap(), (1..9).collect::<Vec<u8>>());
    // Begin and commit and their answer; three groups, seven appends and a last one, and their answers.
    let protocol = 3 + 3 + 8 + 7;
    assert!(messages >= protocol, "{messages}");
    for at in 3..protocol {
        for taken in [false, true] {
            let (results, _) = open_scenario(Some(Fault { at, taken, forgets: false })).await;
            assert_eq!(results.unwrap(), (1..9).collect::<Vec<u8>>(), "broken at message {at}, taken: {taken}");
            let (results, _) = open_scenario(Some(Fault { at, taken, forgets: true })).await;
            match results {
                // It was forgotten after the last word.
                Ok(results) => assert_eq!(results, (1..9).collect::<Vec<u8>>()),
                Err(error) => assert!(matches!(error, Error::Lost { .. }), "{error:?}"),
            }
        }
    }
}
