//! A scheduler for tests: speaks the worker's side of the wire over a real socket, numbers and acknowledges as the real one, and
//! breaks its connections where a test wants it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use scalable_core::link::{Arrival, Receiver, Sender};
use scalable_proto::v1::worker_service_server::{WorkerService, WorkerServiceServer};
use scalable_proto::v1::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

/// Longest that any event may take; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(60);
pub const OBJECT_KEY: [u8; 32] = [5; 32];
pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// What came from the worker, once and in order.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a test's event, few at a time")]
pub enum Event {
    Hello(Box<WorkerHello>),
    Bound,
    Control(worker_control::Body),
    Started { handle: u64, attempt: u32 },
    Finished { handle: u64, attempt: u32, report: Box<AttemptReport> },
    Returned { handle: u64, attempt: u32, value: Vec<u8> },
    Kept { handle: u64, attempt: u32, bytes: u64 },
    Copied { group: u32, index: u32 },
    Keeps { group: u32, index: u32 },
    KeepsNot { group: u32, index: u32 },
}

/// A frame that is lost together with its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    ControlIn(u64),
    DataIn(u64),
    ControlOut(u64),
    DataOut(u64),
}

type Out<F> = mpsc::UnboundedSender<Result<F, Status>>;

#[derive(Default)]
struct State {
    session: u64,
    epoch: u64,
    /// Answer to a hello that wants to go on.
    forgets: bool,
    refuses: Option<Status>,
    heartbeat_ms: u32,
    to_control: Option<Sender<SchedulerControl>>,
    to_data: Option<Sender<SchedulerData>>,
    from_control: Receiver,
    from_data: Receiver,
    control: Option<Out<SchedulerControl>>,
    data: Option<Out<SchedulerData>>,
    cuts: Vec<Cut>,
    silent: bool,
    /// Set: events on data are counted and not told.
    counts: bool,
    store_address: String,
    counted: u64,
}

impl State {
    /// True once for a cut that has come.
    fn cut(&mut self, cut: Cut) -> bool {
        let before = self.cuts.len();
        self.cuts.retain(|c| *c != cut);
        self.cuts.len() < before
    }

    fn acks(&self) -> Acks {
        Acks { control: self.from_control.received(), data: self.from_data.received() }
    }

    fn acknowledge(&mut self) {
        let acks = Some(self.acks());
        if let Some(out) = self.control.as_ref().filter(|_| !self.silent) {
            let _ = out.send(Ok(SchedulerControl { seq: 0, acks, body: None }));
        }
    }

    fn acked(&mut self, acks: Option<Acks>) {
        let acks = acks.unwrap_or_default();
        self.to_control.as_mut().expect("a session").acked(acks.control);
        self.to_data.as_mut().expect("a session").acked(acks.data);
    }

    fn send_control(&mut self, body: scheduler_control::Body) {
        let acks = Some(self.acks());
        let make = |seq| SchedulerControl { seq, acks, body: Some(body) };
        let frame = self.to_control.as_mut().expect("a session").push(make).expect("few frames");
        if self.cut(Cut::ControlOut(frame.seq)) {
            return drop(self.control.take());
        }
        if let Some(out) = &self.control {
            let _ = out.send(Ok(frame));
        }
    }

    fn send_data(&mut self, body: scheduler_data::Body) {
        let make = |seq| SchedulerData { seq, body: Some(body) };
        let frame = self.to_data.as_mut().expect("a session").push(make).expect("few frames");
        if self.cut(Cut::DataOut(frame.seq)) {
            return drop(self.data.take());
        }
        if let Some(out) = &self.data {
            let _ = out.send(Ok(frame));
        }
    }
}

#[derive(Clone)]
struct Service {
    state: Arc<Mutex<State>>,
    events: mpsc::UnboundedSender<Event>,
}

fn check_token<T>(request: &Request<T>) -> Result<(), Status> {
    let shown = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
    if shown == Some(&format!("Bearer {TOKEN}")) { Ok(()) } else { Err(Status::unauthenticated("wrong token")) }
}

#[tonic::async_trait]
impl WorkerService for Service {
    type ControlStream = UnboundedReceiverStream<Result<SchedulerControl, Status>>;
    type DataStream = UnboundedReceiverStream<Result<SchedulerData, Status>>;

    async fn control(&self, request: Request<Streaming<WorkerControl>>) -> Result<Response<Self::ControlStream>, Status> {
        check_token(&request)?;
        let mut frames = request.into_inner();
        let (out, answer) = mpsc::unbounded_channel();
        let service = self.clone();
        tokio::spawn(async move {
            let Ok(Some(WorkerControl { seq: 0, body: Some(worker_control::Body::Hello(hello)), .. })) = frames.message().await
            else {
                panic!("control begins with an unnumbered hello");
            };
            if !service.hello(hello, out) {
                return;
            }
            while let Ok(Some(frame)) = frames.message().await {
                if !service.control_frame(frame) {
                    break;
                }
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(answer)))
    }

    async fn data(&self, request: Request<Streaming<WorkerData>>) -> Result<Response<Self::DataStream>, Status> {
        check_token(&request)?;
        let mut frames = request.into_inner();
        let (out, answer) = mpsc::unbounded_channel();
        let service = self.clone();
        tokio::spawn(async move {
            let Ok(Some(WorkerData { seq: 0, body: Some(worker_data::Body::Bind(bind)) })) = frames.message().await else {
                panic!("data begins with an unnumbered bind");
            };
            if !service.bind(&bind, out) {
                return;
            }
            while let Ok(Some(frame)) = frames.message().await {
                if !service.data_frame(frame) {
                    break;
                }
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(answer)))
    }
}

impl Service {
    fn hello(&self, hello: WorkerHello, out: Out<SchedulerControl>) -> bool {
        let wanted = hello.hello.clone().expect("has one");
        let mut state = self.state.lock().expect("no test panics inside");
        if let Some(status) = state.refuses.clone() {
            let _ = out.send(Err(status));
            return false;
        }
        let resumed = !state.forgets && wanted.session == state.session && wanted.epoch == state.epoch && wanted.session != 0;
        if !resumed {
            state.forgets = false;
            state.session += 1;
            state.to_control = Some(Sender::new(100_000));
            state.to_data = Some(Sender::new(100_000));
            (state.from_control, state.from_data) = (Receiver::default(), Receiver::default());
            state.data = None;
        }
        let welcome = Welcome {
            cluster_id: "test".into(),
            epoch: state.epoch,
            session: state.session,
            protocol: 1,
            heartbeat_ms: state.heartbeat_ms,
            received: Some(state.acks()),
            resumed,
            object_key: OBJECT_KEY.to_vec().into(),
            store_address: state.store_address.clone(),
        };
        let body = Some(scheduler_control::Body::Welcome(welcome));
        let _ = out.send(Ok(SchedulerControl { seq: 0, acks: None, body }));
        if resumed {
            let received = wanted.received.unwrap_or_default();
            state.to_data.as_mut().expect("a session").acked(received.data);
            for frame in state.to_control.as_mut().expect("a session").resume(received.control) {
                let _ = out.send(Ok(frame));
            }
        }
        state.control = Some(out);
        drop(state);
        let _ = self.events.send(Event::Hello(Box::new(hello)));
        true
    }

    fn bind(&self, bind: &Bind, out: Out<SchedulerData>) -> bool {
        let mut state = self.state.lock().expect("no test panics inside");
        if bind.session != state.session || bind.epoch != state.epoch {
            let _ = out.send(Err(Status::failed_precondition("this session is over")));
            return false;
        }
        let received = state.from_data.received();
        let _ = out.send(Ok(SchedulerData { seq: 0, body: Some(scheduler_data::Body::Bound(Bound { received })) }));
        for frame in state.to_data.as_mut().expect("a session").resume(bind.received) {
            let _ = out.send(Ok(frame));
        }
        state.data = Some(out);
        drop(state);
        let _ = self.events.send(Event::Bound);
        true
    }

    /// False when the connection is to be broken.
    fn control_frame(&self, frame: WorkerControl) -> bool {
        let mut state = self.state.lock().expect("no test panics inside");
        if frame.seq > 0 && state.cut(Cut::ControlIn(frame.seq)) {
            state.control = None;
            return false;
        }
        state.acked(frame.acks);
        if frame.seq > 0 {
            match state.from_control.arrive(frame.seq) {
                Arrival::New => {}
                Arrival::Repeated => return true,
                Arrival::Gap => panic!("a frame on control is missing"),
            }
            state.acknowledge();
        }
        drop(state);
        if let Some(body) = frame.body {
            let _ = self.events.send(Event::Control(body));
        }
        true
    }

    fn data_frame(&self, frame: WorkerData) -> bool {
        let mut state = self.state.lock().expect("no test panics inside");
        if state.cut(Cut::DataIn(frame.seq)) {
            state.data = None;
            return false;
        }
        match state.from_data.arrive(frame.seq) {
            Arrival::New => {}
            Arrival::Repeated => return true,
            Arrival::Gap => panic!("a frame on data is missing"),
        }
        state.acknowledge();
        let Some(worker_data::Body::Batch(batch)) = frame.body else { panic!("not a batch") };
        for (group, index) in batch.copied_group.iter().zip(&batch.copied_index) {
            let _ = self.events.send(Event::Copied { group: *group, index: *index });
        }
        for (group, index) in batch.kept_group.iter().zip(&batch.kept_index) {
            let _ = self.events.send(Event::Keeps { group: *group, index: *index });
        }
        for (group, index) in batch.not_kept_group.iter().zip(&batch.not_kept_index) {
            let _ = self.events.send(Event::KeepsNot { group: *group, index: *index });
        }
        if state.counts {
            state.counted += batch.event.iter().filter(|event| **event > 2).count() as u64;
            return true;
        }
        drop(state);
        let (mut reports, mut brief) = (batch.reports.into_iter(), batch.brief.chunks(5));
        let (mut ends, mut begin, mut kept) = (batch.result_end.into_iter(), 0, batch.object_size.into_iter());
        assert_eq!(batch.wall_us.len(), batch.event.iter().filter(|event| **event > 2).count());
        for ((handle, attempt), event) in batch.handle.into_iter().zip(batch.attempt).zip(batch.event) {
            let _ = self.events.send(match event {
                0 => Event::Started { handle, attempt },
                1 => Event::Finished { handle, attempt, report: Box::new(reports.next().expect("one a finish")) },
                3 => {
                    let end = ends.next().expect("one a value") as usize;
                    let value = batch.results[std::mem::replace(&mut begin, end)..end].to_vec();
                    Event::Returned { handle, attempt, value }
                }
                4 => Event::Kept { handle, attempt, bytes: kept.next().expect("one an object") },
                _ => {
                    let figures = brief.next().expect("one a success");
                    let report = AttemptReport {
                        class: OutcomeClass::Succeeded as i32,
                        exit_code: Some(0),
                        started_us: figures[0] as i64,
                        finished_us: (figures[0] + figures[1]) as i64,
                        user_us: figures[2],
                        system_us: figures[3],
                        peak_memory_bytes: figures[4],
                        ..AttemptReport::default()
                    };
                    Event::Finished { handle, attempt, report: Box::new(report) }
                }
            });
        }
        true
    }
}

/// The scheduler, and a directory for one run.
pub struct Fake {
    pub address: String,
    directory: tempfile::TempDir,
    state: Arc<Mutex<State>>,
    events: mpsc::UnboundedReceiver<Event>,
    seen: VecDeque<Event>,
    pub groups: Vec<TaskTemplate>,
    names: Vec<String>,
    next_handle: u32,
}

/// A worker process; killed when dropped.
pub struct Running {
    pub child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(self.pid(), signal).expect("it runs");
    }

    pub fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.id() as i32)
    }

    /// Waits until it handles SIGHUP, the last of its signals.
    pub async fn handles_signals(&self) {
        let begin = std::time::Instant::now();
        while begin.elapsed() < PATIENCE {
            let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("the kernel says so");
            if u64::from_str_radix(caught.trim(), 16).expect("hex") & 1 != 0 {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("the worker never handles its signals");
    }

    /// Waits for its end and says the exit code.
    pub async fn code(&mut self) -> Option<i32> {
        let begin = std::time::Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                return status.code();
            }
            assert!(begin.elapsed() < PATIENCE, "the worker does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Fake {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let state = Arc::new(Mutex::new(State { epoch: 77, heartbeat_ms: 1000, ..State::default() }));
        let (sender, events) = mpsc::unbounded_channel();
        let service = Service { state: state.clone(), events: sender };
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(WorkerServiceServer::new(service))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join("token"), TOKEN).expect("written");
        Fake { address, directory, state, events, seen: VecDeque::new(), groups: Vec::new(), names: Vec::new(), next_handle: 1 }
    }

    /// The run's directory.
    pub fn run(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// Where commands without a directory of their own start.
    pub fn base(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    pub fn worker(&self, arguments: &[&str]) -> Running {
        let mut command = Command::new(env!("CARGO_BIN_EXE_scalable-worker"));
        command.args(["--name", "w"]).args(arguments);
        if !arguments.contains(&"--address") {
            command.args(["--address", &self.address]);
        }
        if !arguments.contains(&"--cpus") {
            command.args(["--cpus", "2"]);
        }
        if !arguments.contains(&"--token-file") {
            command.arg("--token-file").arg(self.directory.path().join("token"));
        }
        if !arguments.contains(&"--memory-limit") {
            command.args(["--memory-limit", "watch"]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        if std::env::var_os("SHOW_WORKER").is_none() {
            command.stderr(Stdio::null());
        }
        Running { child: command.spawn().expect("the worker can be started") }
    }

    /// Lets frames be lost together with their connections.
    pub fn cut(&self, cut: Cut) {
        self.state.lock().expect("no test panics inside").cuts.push(cut);
    }

    pub fn with_heartbeat(&self, ms: u32) {
        self.state.lock().expect("no test panics inside").heartbeat_ms = ms;
    }

    pub fn refuse(&self, status: Status) {
        self.state.lock().expect("no test panics inside").refuses = Some(status);
    }

    /// Both connections break, and whether the session is known afterwards.
    pub fn break_connections(&self, forgets: bool) {
        let mut state = self.state.lock().expect("no test panics inside");
        state.forgets = forgets;
        (state.control, state.data) = (None, None);
    }

    /// Where workers that come from now on are told that the output store is.
    pub fn store_at(&self, address: &str) {
        self.state.lock().expect("no test panics inside").store_address = address.to_owned();
    }

    /// From now on events on data are only counted; says how many functions have returned since.
    pub fn count(&self) -> u64 {
        let mut state = self.state.lock().expect("no test panics inside");
        state.counts = true;
        state.counted
    }

    /// Neither acknowledges nor says anything from now on.
    pub fn fall_silent(&self) {
        self.state.lock().expect("no test panics inside").silent = true;
    }

    pub fn control(&self, body: scheduler_control::Body) {
        self.state.lock().expect("no test panics inside").send_control(body);
    }

    pub fn data(&self, body: scheduler_data::Body) {
        self.state.lock().expect("no test panics inside").send_data(body);
    }

    /// A frame that is not numbered as it should be.
    pub fn raw_data(&self, frame: SchedulerData) {
        let state = self.state.lock().expect("no test panics inside");
        let _ = state.data.as_ref().expect("attached").send(Ok(frame));
    }

    /// A worker of two cpus that has registered and bound its data.
    pub async fn ready(&mut self, arguments: &[&str]) -> Running {
        let worker = self.worker(arguments);
        self.attached().await;
        worker
    }

    pub async fn attached(&mut self) {
        self.until(|event| matches!(event, Event::Bound)).await;
    }

    /// The next event that fits; others stay for later.
    pub async fn until(&mut self, fits: impl Fn(&Event) -> bool) -> Event {
        if let Some(at) = self.seen.iter().position(&fits) {
            return self.seen.remove(at).expect("there");
        }
        loop {
            let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
            let event = event.unwrap_or_else(|_| panic!("nothing fits; seen: {:#?}", self.seen)).expect("the server lives");
            if fits(&event) {
                return event;
            }
            if !matches!(event, Event::Control(worker_control::Body::Heartbeat(_))) {
                self.seen.push_back(event);
            }
        }
    }

    /// Everything that came and nobody has asked for.
    pub fn rest(&mut self) -> Vec<Event> {
        while let Ok(event) = self.events.try_recv() {
            self.seen.push_back(event);
        }
        self.seen.drain(..).collect()
    }

    /// Announces one run (1) with these groups (1, 2, …) and shapes: 1 is half a cpu, 2 is two cpus.
    pub fn announce(&mut self, groups: &[(&str, TaskTemplate, ParameterSpace)]) {
        self.announce_run(AnnounceRun { keep_failed: 10, ..self.run_announcement(groups) }, groups);
    }

    pub fn run_announcement(&self, groups: &[(&str, TaskTemplate, ParameterSpace)]) -> AnnounceRun {
        AnnounceRun {
            run: 1,
            name: "run-test".into(),
            directory: self.run().display().to_string(),
            base_directory: self.base().display().to_string(),
            groups: groups.iter().map(|(name, ..)| (*name).to_owned()).collect(),
            ..AnnounceRun::default()
        }
    }

    pub fn announce_run(&mut self, run: AnnounceRun, groups: &[(&str, TaskTemplate, ParameterSpace)]) {
        let _ = std::fs::create_dir_all(self.run());
        self.data(scheduler_data::Body::Run(run));
        for (n, (name, template, parameters)) in groups.iter().enumerate() {
            self.groups.push(template.clone());
            self.names.push((*name).to_owned());
            self.data(scheduler_data::Body::Group(AnnounceGroup {
                group: n as u32 + 1,
                run: 1,
                name: (*name).to_owned(),
                template: Some(template.clone()),
                parameters: Some(parameters.clone()),
                grace_ms: 500,
            }));
        }
        self.shape(1, Resources { milli_cpus: 500, ..Resources::default() });
        self.shape(2, Resources { milli_cpus: 2000, ..Resources::default() });
    }

    pub fn shape(&self, shape: u32, resources: Resources) {
        self.data(scheduler_data::Body::Shape(AnnounceShape { shape, resources: Some(resources) }));
    }

    /// A new handle.
    pub fn handle(&mut self) -> u64 {
        self.next_handle += 1;
        (1u64 << 32) | u64::from(self.next_handle)
    }

    pub fn dispatch(&mut self, group: u32, index: u32, shape: u32, timeout_ms: u64) -> u64 {
        let handle = self.handle();
        self.dispatch_as(handle, group, index, shape, timeout_ms);
        handle
    }

    pub fn dispatch_as(&self, handle: u64, group: u32, index: u32, shape: u32, timeout_ms: u64) {
        self.data(scheduler_data::Body::Dispatch(DispatchBatch {
            handle: vec![handle],
            group: vec![group],
            index: vec![index],
            attempt: vec![1],
            shape: vec![shape],
            timeout_ms: vec![timeout_ms],
            task_id: vec![u64::from(group) << 32 | u64::from(index)],
            fence: vec![handle & 0xFFFF_FFFF],
            ..DispatchBatch::default()
        }));
    }

    /// Dispatches one element and waits for its report.
    pub async fn execute(&mut self, group: u32, index: u32) -> AttemptReport {
        let handle = self.dispatch(group, index, 1, 0);
        self.finished(handle).await
    }

    /// As [`Fake::execute`], with the objects that its inputs are.
    pub async fn execute_with(&mut self, group: u32, index: u32, inputs: &[Vec<ObjectRef>]) -> AttemptReport {
        let handle = self.handle();
        for (input, objects) in inputs.iter().enumerate() {
            let chunk = InputChunk { handle, input: input as u32, objects: objects.clone() };
            self.data(scheduler_data::Body::Input(chunk));
        }
        self.dispatch_as(handle, group, index, 1, 0);
        self.finished(handle).await
    }

    pub async fn started(&mut self, handle: u64) {
        self.until(|event| matches!(event, Event::Started { handle: h, attempt: 1 } if *h == handle)).await;
    }

    pub async fn finished(&mut self, handle: u64) -> AttemptReport {
        let event = self.until(|event| matches!(event, Event::Finished { handle: h, attempt: 1, .. } if *h == handle)).await;
        let Event::Finished { report, .. } = event else { unreachable!("asked for") };
        *report
    }

    pub fn read(&self, path: &str) -> String {
        let path = self.run().join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    pub fn exists(&self, path: &str) -> bool {
        std::fs::symlink_metadata(self.run().join(path)).is_ok()
    }

    /// The object that a report tells of.
    pub fn object(index: u32, report: &AttemptReport, output: usize) -> ObjectRef {
        let output = &report.outputs[output];
        let (digest, size) = (output.digest.clone(), output.size);
        ObjectRef { index, attempt: u32::from(output.written), digest, size, ..ObjectRef::default() }
    }
}

pub fn literal(text: &str) -> Text {
    Text { pieces: vec![Piece { kind: Some(piece::Kind::Literal(text.into())) }] }
}

/// A text in which `{o:NAME}`, `{i:NAME}`, `{l:NAME}`, `{p:NAME}` and `{w}` are output, input, list of an input, parameter, workdir.
pub fn text(text: &str) -> Text {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').expect("closed");
        pieces.push(piece::Kind::Literal(before.into()));
        pieces.push(match name.split_once(':') {
            Some(("o", name)) => piece::Kind::Output(name.into()),
            Some(("i", name)) => piece::Kind::Input(name.into()),
            Some(("l", name)) => piece::Kind::InputList(name.into()),
            Some(("p", name)) => piece::Kind::Parameter(name.into()),
            None if name == "w" => piece::Kind::Builtin(Builtin::Workdir as i32),
            _ => panic!("{name}"),
        });
        rest = after;
    }
    pieces.push(piece::Kind::Literal(rest.into()));
    let pieces = pieces.into_iter().filter(|kind| *kind != piece::Kind::Literal(String::new()));
    Text { pieces: pieces.map(|kind| Piece { kind: Some(kind) }).collect() }
}

pub fn argv(args: &[&str]) -> TaskTemplate {
    let args = args.iter().map(|arg| text(arg)).collect();
    TaskTemplate { command: Some(task_template::Command::Argv(Argv { args })), ..TaskTemplate::default() }
}

pub fn shell(script: &str) -> TaskTemplate {
    TaskTemplate { command: Some(task_template::Command::Shell(text(script))), ..TaskTemplate::default() }
}

pub fn output(name: &str, kind: OutputKind, path: &str) -> Output {
    Output { name: name.into(), kind: kind as i32, path: path.into(), ..Output::default() }
}

/// An input that is element 0 of the group with this ordinal.
pub fn input(name: &str, group: u32, output: &str, r#as: &str) -> Input {
    let select = Some(input_source::Select::Index(0));
    let source = InputSource { group, output: output.into(), select, optional: false };
    Input { name: name.into(), source: Some(source), r#as: r#as.into() }
}

pub fn plain() -> ParameterSpace {
    ParameterSpace::default()
}

pub fn files_below(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![path.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
            found.push(entry.path().strip_prefix(path).expect("below").display().to_string());
        }
    }
    found.sort();
    found
}
