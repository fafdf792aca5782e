//! Drops and resumes every stream of a worker and of a client at every message, against a real scheduler process over real
//! sockets, and sees nothing lost and nothing doubled.

use std::collections::{BTreeMap, BTreeSet};

use crate::common::{Authorized, Scheduler, channel, hello, open_control, open_data, spread};
use scalable_core::link::{Arrival, Receiver, Sender};
use scalable_proto::v1;
use scalable_proto::v1::client_service_client::ClientServiceClient;
use scalable_proto::v1::control_service_client::ControlServiceClient;
use scalable_proto::v1::worker_service_client::WorkerServiceClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

const TASKS: u32 = 6;

/// Counts messages; says when it is the turn of the one at which a stream is to be dropped.
struct Countdown(i64);

impl Countdown {
    fn now(&mut self) -> bool {
        self.0 -= 1;
        self.0 == -1
    }
}

/// A worker that runs nothing: every dispatched attempt is started and has succeeded at once.
struct Worker {
    client: WorkerServiceClient<Authorized>,
    session: u64,
    epoch: u64,
    to_control: Sender<v1::WorkerControl>,
    to_data: Sender<v1::WorkerData>,
    from_control: Receiver,
    from_data: Receiver,
    control: (mpsc::UnboundedSender<v1::WorkerControl>, Streaming<v1::SchedulerControl>),
    data: (mpsc::UnboundedSender<v1::WorkerData>, Streaming<v1::SchedulerData>),
    handles: BTreeSet<u64>,
}

impl Worker {
    async fn register(scheduler: &Scheduler) -> Worker {
        let mut client = WorkerServiceClient::new(channel(scheduler).await);
        let (out, incoming, welcome) = open_control(&mut client, hello(0, 0, v1::Acks::default())).await;
        let (data_out, data_in, _) = open_data(&mut client, welcome.session, welcome.epoch, 0).await;
        Worker {
            client,
            session: welcome.session,
            epoch: welcome.epoch,
            to_control: Sender::new(1000),
            to_data: Sender::new(1000),
            from_control: Receiver::default(),
            from_data: Receiver::default(),
            control: (out, incoming),
            data: (data_out, data_in),
            handles: BTreeSet::new(),
        }
    }

    fn acks(&self) -> v1::Acks {
        v1::Acks { control: self.from_control.received(), data: self.from_data.received() }
    }

    async fn drop_control(&mut self) {
        let hello = hello(self.session, self.epoch, self.acks());
        let (out, incoming, welcome) = open_control(&mut self.client, hello).await;
        assert!(welcome.resumed, "the session goes on");
        let received = welcome.received.unwrap();
        self.to_data.acked(received.data);
        self.control = (out, incoming);
        for frame in self.to_control.resume(received.control) {
            self.control.0.send(frame).unwrap();
        }
    }

    async fn drop_data(&mut self) {
        let received = self.from_data.received();
        let (out, incoming, theirs) = open_data(&mut self.client, self.session, self.epoch, received).await;
        self.data = (out, incoming);
        for frame in self.to_data.resume(theirs) {
            self.data.0.send(frame).unwrap();
        }
    }

    async fn send_data(&mut self, batch: v1::WorkerBatch, countdown: &mut Countdown) {
        let frame = self.to_data.push(|seq| v1::WorkerData { seq, body: Some(v1::worker_data::Body::Batch(batch)) }).unwrap();
        if countdown.now() {
            self.drop_data().await;
        } else {
            self.data.0.send(frame).unwrap();
        }
    }

    async fn send_control(&mut self, body: v1::worker_control::Body, countdown: &mut Countdown) {
        let acks = Some(self.acks());
        let frame = self.to_control.push(|seq| v1::WorkerControl { seq, acks, body: Some(body) }).unwrap();
        if countdown.now() {
            self.drop_control().await;
        } else {
            self.control.0.send(frame).unwrap();
        }
    }

    /// Handles frames until `done` says that the run is over.
    async fn serve(&mut self, countdown: &mut Countdown, mut done: mpsc::Receiver<()>) {
        loop {
            tokio::select! {
                frame = self.control.1.message() => {
                    let frame = frame.unwrap().expect("control stays open");
                    if countdown.now() {
                        self.drop_control().await;
                        continue;
                    }
                    let acks = frame.acks.unwrap_or_default();
                    self.to_control.acked(acks.control);
                    self.to_data.acked(acks.data);
                    if frame.seq == 0 {
                        continue;
                    }
                    match self.from_control.arrive(frame.seq) {
                        Arrival::New => {}
                        Arrival::Repeated => continue,
                        Arrival::Gap => panic!("a frame on control is lost"),
                    }
                    if let Some(v1::scheduler_control::Body::Retract(retract)) = frame.body {
                        let reply = v1::RetractReply { given_back: vec![], kept: retract.handles };
                        self.send_control(v1::worker_control::Body::RetractReply(reply), countdown).await;
                    }
                }
                frame = self.data.1.message() => {
                    let frame = frame.unwrap().expect("data stays open");
                    if countdown.now() {
                        self.drop_data().await;
                        continue;
                    }
                    match self.from_data.arrive(frame.seq) {
                        Arrival::New => {}
                        Arrival::Repeated => continue,
                        Arrival::Gap => panic!("a frame on data is lost"),
                    }
                    let Some(v1::scheduler_data::Body::Dispatch(batch)) = frame.body else { continue };
                    let attempts = spread(&batch.attempt, batch.handle.len());
                    for (handle, attempt) in batch.handle.into_iter().zip(attempts) {
                        assert!(self.handles.insert(handle), "an attempt was dispatched twice");
                        let started = v1::WorkerBatch { handle: vec![handle], attempt: vec![attempt], event: vec![0], ..Default::default() };
                        self.send_data(started, countdown).await;
                        let brief = vec![1, 1, 1, 1, 1];
                        let finished = v1::WorkerBatch { handle: vec![handle], attempt: vec![attempt], event: vec![2], brief, ..Default::default() };
                        self.send_data(finished, countdown).await;
                    }
                    self.send_control(v1::worker_control::Body::Heartbeat(v1::Heartbeat::default()), countdown).await;
                }
                _ = done.recv() => return,
            }
        }
    }
}

fn run_spec(name: &str, directory: &str, key: u8) -> v1::RunSpec {
    v1::RunSpec { name: name.to_owned(), client_key: vec![key; 16].into(), directory: directory.to_owned(), ..Default::default() }
}

fn group(name: &str, after: Option<u32>) -> v1::GroupSpec {
    let whole = |group| v1::Dependency { group, kind: Some(v1::dependency::Kind::Whole(v1::dependency::Whole {})) };
    v1::GroupSpec {
        name: name.to_owned(),
        template: Some(v1::TaskTemplate { component: "c".to_owned(), ..Default::default() }),
        length: TASKS,
        dependencies: after.map(whole).into_iter().collect(),
        resources: Some(v1::Resources { milli_cpus: 1000, ..Default::default() }),
        ..Default::default()
    }
}

/// Submits a run in parts over a client's data stream, dropping it at the countdown's message, and returns the answers.
async fn submit(scheduler: &Scheduler, spec: v1::RunSpec, countdown: &mut Countdown) -> Vec<v1::SubmitReply> {
    let mut client = ClientServiceClient::new(channel(scheduler).await);
    let key = spec.client_key.clone();
    let (control, outgoing) = mpsc::unbounded_channel();
    let first =
        v1::ClientControl { seq: 0, acks: None, body: Some(v1::client_control::Body::Hello(hello(0, 0, v1::Acks::default()))) };
    control.send(first).unwrap();
    let mut events = client.control(UnboundedReceiverStream::new(outgoing)).await.unwrap().into_inner();
    let Some(v1::client_events::Body::Welcome(welcome)) = events.message().await.unwrap().unwrap().body else {
        panic!("welcome expected");
    };
    let mut sender: Sender<v1::ClientData> = Sender::new(100);
    let mut receiver = Receiver::default();
    let bind = |received| v1::ClientData {
        seq: 0,
        body: Some(v1::client_data::Body::Bind(v1::Bind { session: welcome.session, epoch: welcome.epoch, received })),
    };
    let mut parts = vec![v1::client_data::Body::Begin(spec), v1::client_data::Body::Group(group("first", None))];
    parts.push(v1::client_data::Body::Group(group("second", Some(0))));
    parts.push(v1::client_data::Body::Commit(v1::Commit { client_key: key }));
    let mut parts = parts.into_iter();
    let mut replies = Vec::new();
    'connection: loop {
        let (out, outgoing) = mpsc::unbounded_channel();
        out.send(bind(receiver.received())).unwrap();
        let mut results = client.data(UnboundedReceiverStream::new(outgoing)).await.unwrap().into_inner();
        let Some(v1::client_results::Body::Bound(bound)) = results.message().await.unwrap().unwrap().body else {
            panic!("bound expected");
        };
        for frame in sender.resume(bound.received) {
            out.send(frame).unwrap();
        }
        for part in parts.by_ref() {
            let frame = sender.push(|seq| v1::ClientData { seq, body: Some(part) }).unwrap();
            if countdown.now() {
                continue 'connection;
            }
            out.send(frame).unwrap();
        }
        while replies.is_empty() {
            let frame = results.message().await.unwrap().expect("data stays open");
            if countdown.now() {
                continue 'connection;
            }
            match receiver.arrive(frame.seq) {
                Arrival::New => {}
                Arrival::Repeated => continue,
                Arrival::Gap => panic!("an answer is lost"),
            }
            if let Some(v1::client_results::Body::Submitted(reply)) = frame.body {
                replies.push(reply);
            }
        }
        return replies;
    }
}

/// Waits for the run's end over the monitoring of its control service, and returns each group's counts.
async fn wait_for_end(scheduler: &Scheduler, run: &str) -> BTreeMap<String, v1::GroupCounts> {
    let mut client = ClientServiceClient::new(channel(scheduler).await);
    let (control, outgoing) = mpsc::unbounded_channel();
    let first =
        v1::ClientControl { seq: 0, acks: None, body: Some(v1::client_control::Body::Hello(hello(0, 0, v1::Acks::default()))) };
    control.send(first).unwrap();
    let watch = v1::client_control::Body::Watch(v1::Watch { run: run.to_owned() });
    control.send(v1::ClientControl { seq: 1, acks: None, body: Some(watch) }).unwrap();
    let mut events = client.control(UnboundedReceiverStream::new(outgoing)).await.unwrap().into_inner();
    loop {
        let frame = events.message().await.unwrap().expect("control stays open");
        let acks = Some(v1::Acks { control: frame.seq, data: 0 });
        control.send(v1::ClientControl { seq: 0, acks, body: Some(v1::client_control::Body::Ping(v1::Ping {})) }).unwrap();
        if let Some(v1::client_events::Body::Progress(progress)) = frame.body
            && progress.complete
        {
            assert_eq!(progress.state(), v1::RunState::Succeeded, "{progress:?}");
            return progress.groups.into_iter().map(|group| (group.group.clone(), group)).collect();
        }
    }
}

#[tokio::test]
async fn every_stream_dropped_at_every_message_loses_and_doubles_nothing() {
    let scheduler = Scheduler::start();
    let mut worker = Worker::register(&scheduler).await;
    for at in 0.. {
        let mut countdown = Countdown(at);
        let name = format!("run-{at}");
        let directory = scheduler.directory.path().join(&name).display().to_string();
        let key = u8::try_from(at).expect("fewer than 256 messages");
        let replies = submit(&scheduler, run_spec(&name, &directory, key), &mut Countdown(i64::MAX)).await;
        assert!(replies.iter().all(|reply| reply.refusal.is_none()), "{replies:?}");
        let (finished, done) = mpsc::channel(1);
        let (groups, ()) = tokio::join!(
            async {
                let groups = wait_for_end(&scheduler, &name).await;
                drop(finished);
                groups
            },
            worker.serve(&mut countdown, done)
        );
        for name in ["first", "second"] {
            assert_eq!(groups[name].succeeded, TASKS, "dropped at message {at}");
        }
        let lines = std::fs::read_to_string(format!("{directory}/tasks.jsonl")).unwrap();
        let ids: BTreeSet<String> = lines
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["task_id"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!((lines.lines().count(), ids.len()), (12, 12), "each task is recorded once, dropped at message {at}");
        if countdown.0 >= 0 {
            assert!(at > 20, "the run has {at} messages: too few to have tested anything");
            return;
        }
    }
}

#[tokio::test]
async fn a_submit_dropped_at_every_message_is_taken_once() {
    let scheduler = Scheduler::start();
    for at in 0.. {
        let mut countdown = Countdown(at);
        let name = format!("run-{at}");
        let directory = scheduler.directory.path().join(&name).display().to_string();
        let key = u8::try_from(at).expect("fewer than 256 messages");
        let replies = submit(&scheduler, run_spec(&name, &directory, key), &mut countdown).await;
        assert_eq!(replies.len(), 1);
        assert!(replies[0].refusal.is_none() && replies[0].run == name, "dropped at message {at}: {replies:?}");
        // The same key again, on a new session, answers with the same run.
        let again = submit(&scheduler, run_spec(&name, &directory, key), &mut Countdown(i64::MAX)).await;
        assert!(again[0].known && again[0].run == name, "{again:?}");
        let mut control = ControlServiceClient::new(channel(&scheduler).await);
        let runs = control.list_runs(v1::ListRunsRequest {}).await.unwrap().into_inner().runs;
        assert_eq!(runs.iter().filter(|run| run.run == name).count(), 1);
        if countdown.0 >= 0 {
            assert!(at >= 5, "a submit has {at} messages: too few to have tested anything");
            return;
        }
    }
}
