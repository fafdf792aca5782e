//! Open runs over real sockets against a real scheduler process: what a client appends, a worker is sent; what the worker returns,
//! the client is told.

use std::collections::BTreeMap;

use crate::common::{Authorized, Scheduler, channel, hello, open_control, open_data, spread};
use scalable_proto::v1;
use scalable_proto::v1::client_data::Body as Data;
use scalable_proto::v1::client_results::Body as Told;
use scalable_proto::v1::client_service_client::ClientServiceClient;
use scalable_proto::v1::worker_service_client::WorkerServiceClient;
use tokio::sync::mpsc::UnboundedSender;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

/// A client that numbers its frames and acknowledges what it gets.
struct Client {
    control: UnboundedSender<v1::ClientControl>,
    events: Streaming<v1::ClientEvents>,
    data: UnboundedSender<v1::ClientData>,
    results: Streaming<v1::ClientResults>,
    sent: u64,
    said: u64,
    run: u32,
}

impl Client {
    async fn with_open_run(scheduler: &Scheduler, name: &str, key: u8) -> Client {
        let mut service = ClientServiceClient::new(channel(scheduler).await);
        let (control, outgoing) = tokio::sync::mpsc::unbounded_channel();
        let first = v1::client_control::Body::Hello(hello(0, 0, v1::Acks::default()));
        control.send(v1::ClientControl { seq: 0, acks: None, body: Some(first) }).unwrap();
        let mut events = service.control(UnboundedReceiverStream::new(outgoing)).await.unwrap().into_inner();
        let Some(v1::client_events::Body::Welcome(welcome)) = events.message().await.unwrap().unwrap().body else {
            panic!("welcome expected");
        };
        let (data, outgoing) = tokio::sync::mpsc::unbounded_channel();
        let bind = v1::Bind { session: welcome.session, epoch: welcome.epoch, received: 0 };
        data.send(v1::ClientData { seq: 0, body: Some(Data::Bind(bind)) }).unwrap();
        let results = service.data(UnboundedReceiverStream::new(outgoing)).await.unwrap().into_inner();
        let mut client = Client { control, events, data, results, sent: 0, said: 0, run: 0 };
        let key = vec![key; 16];
        let spec = v1::RunSpec { name: name.to_owned(), client_key: key.clone().into(), open: true, ..Default::default() };
        client.send(Data::Begin(spec));
        client.send(Data::Commit(v1::Commit { client_key: key.into() }));
        client.run = loop {
            if let Told::Submitted(reply) = client.told().await {
                assert!(reply.refusal.is_none(), "{reply:?}");
                break reply.number;
            }
        };
        client
    }

    fn send(&mut self, body: Data) {
        self.sent += 1;
        self.data.send(v1::ClientData { seq: self.sent, body: Some(body) }).unwrap();
    }

    fn say(&mut self, body: v1::client_control::Body) {
        self.said += 1;
        self.control.send(v1::ClientControl { seq: self.said, acks: None, body: Some(body) }).unwrap();
    }

    async fn told(&mut self) -> Told {
        loop {
            let frame = self.results.message().await.unwrap().expect("data stays open");
            if let (1.., Some(body)) = (frame.seq, frame.body) {
                return body;
            }
        }
    }

    /// The next `count` ends, by (group, index): a result, or the class of a failure.
    async fn ends(&mut self, count: usize) -> BTreeMap<(u32, u32), Result<Vec<u8>, v1::OutcomeClass>> {
        let mut ends = BTreeMap::new();
        while ends.len() < count {
            let Told::Results(batch) = self.told().await else { continue };
            let mut start = 0;
            for at in 0..batch.count {
                let index = batch.index.get(at as usize).copied().unwrap_or(batch.first + at);
                let end = batch.result_end[at as usize];
                let error = batch.others.iter().find(|other| other.at == at).and_then(|other| match &other.end {
                    Some(v1::other_end::End::Error(error)) => Some(error.class()),
                    _ => None,
                });
                let value = batch.results[start as usize..end as usize].to_vec();
                start = end;
                let known = ends.insert((batch.group, index), error.map_or(Ok(value), Err));
                assert!(known.is_none(), "an end was told twice");
            }
        }
        ends
    }

    fn append(&mut self, group: u32, first: u32, args: &[&str]) {
        let append = v1::Append { inputs: Vec::new(), ..appended(self.run, group, first, args) };
        self.send(Data::Append(append));
    }

    fn add_function(&mut self, group: u32, inputs: u32) {
        let group_spec = function(&format!("f{group}"), inputs);
        self.send(Data::AddGroup(v1::AddGroup { run: self.run, group, spec: Some(group_spec) }));
    }
}

fn appended(run: u32, group: u32, first: u32, args: &[&str]) -> v1::Append {
    let mut append = v1::Append { run, group, first, count: args.len() as u32, ..Default::default() };
    let mut bytes = Vec::new();
    for arg in args {
        bytes.extend_from_slice(arg.as_bytes());
        append.args_end.push(bytes.len() as u32);
    }
    append.args = bytes.into();
    append
}

fn function(name: &str, inputs: u32) -> v1::GroupSpec {
    let input = |ordinal: u32| v1::Input {
        name: ordinal.to_string(),
        source: Some(v1::InputSource { select: Some(v1::input_source::Select::Element(true)), ..Default::default() }),
        ..Default::default()
    };
    let call = v1::FunctionCall { name: name.to_owned(), codec: "text".to_owned(), ..Default::default() };
    v1::GroupSpec {
        name: name.to_owned(),
        template: Some(v1::TaskTemplate {
            component: "c".to_owned(),
            command: Some(v1::task_template::Command::Function(call)),
            inputs: (0..inputs).map(input).collect(),
            ..Default::default()
        }),
        growing: true,
        deliver: true,
        resources: Some(v1::Resources { milli_cpus: 1000, ..Default::default() }),
        ..Default::default()
    }
}

/// A worker whose functions join their inputs and arguments; `fail` fails.
struct Worker {
    control: (UnboundedSender<v1::WorkerControl>, Streaming<v1::SchedulerControl>),
    data: (UnboundedSender<v1::WorkerData>, Streaming<v1::SchedulerData>),
    sent: u64,
    /// Groups that it was told to forget are said there.
    forgotten: UnboundedSender<u32>,
}

impl Worker {
    async fn register(scheduler: &Scheduler, forgotten: UnboundedSender<u32>) -> Worker {
        let mut service: WorkerServiceClient<Authorized> = WorkerServiceClient::new(channel(scheduler).await);
        let (control, incoming, welcome) = open_control(&mut service, hello(0, 0, v1::Acks::default())).await;
        assert_eq!(welcome.object_key.len(), 32);
        let (data, data_in, _) = open_data(&mut service, welcome.session, welcome.epoch, 0).await;
        Worker { control: (control, incoming), data: (data, data_in), sent: 0, forgotten }
    }

    /// Executes what it is sent, for ever.
    async fn serve(mut self) {
        loop {
            tokio::select! {
                frame = self.control.1.message() => {
                    let frame = frame.unwrap().expect("control stays open");
                    let acks = Some(v1::Acks { control: frame.seq, data: 0 });
                    self.control.0.send(v1::WorkerControl { seq: 0, acks, body: None }).unwrap();
                    if let Some(v1::scheduler_control::Body::Release(release)) = frame.body {
                        for group in release.groups {
                            // Most tests do not look.
                            let _ = self.forgotten.send(group);
                        }
                    }
                }
                frame = self.data.1.message() => {
                    let frame = frame.unwrap().expect("data stays open");
                    let acks = Some(v1::Acks { control: 0, data: frame.seq });
                    self.control.0.send(v1::WorkerControl { seq: 0, acks, body: None }).unwrap();
                    if let Some(v1::scheduler_data::Body::Dispatch(batch)) = frame.body {
                        self.execute(&batch);
                    }
                }
            }
        }
    }

    fn execute(&mut self, batch: &v1::DispatchBatch) {
        let mut done = v1::WorkerBatch { handle: batch.handle.clone(), ..Default::default() };
        done.attempt = spread(&batch.attempt, batch.handle.len());
        let (mut results, mut start, mut read) = (Vec::new(), 0, 0);
        let ends = |at: usize| batch.values_of_end.get(at).map_or(0, |end| *end as usize);
        let bytes = |value: usize| value.checked_sub(1).map_or(0, |before| batch.value_end[before] as usize);
        for at in 0..batch.handle.len() {
            // Results of inputs that follow each other do so in `values` too.
            let input = &batch.values[bytes(read)..bytes(ends(at))];
            read = ends(at);
            let end = batch.args_end.get(at).copied().unwrap_or(0);
            let args = &batch.args[start as usize..end as usize];
            start = end;
            if args == b"fail" {
                done.event.push(1);
                let class = v1::OutcomeClass::AppError.into();
                done.reports.push(v1::AttemptReport { class, message: "it fails".to_owned(), ..Default::default() });
                continue;
            }
            done.event.push(3);
            results.extend_from_slice(input);
            results.extend_from_slice(args);
            done.result_end.push(results.len() as u32);
            done.wall_us.push(1);
        }
        done.results = results.into();
        self.sent += 1;
        self.data.0.send(v1::WorkerData { seq: self.sent, body: Some(v1::worker_data::Body::Batch(done)) }).unwrap();
    }
}

/// Starts a worker; what comes out are the groups that it was told to forget.
async fn with_worker(scheduler: &Scheduler) -> tokio::sync::mpsc::UnboundedReceiver<u32> {
    let (forgotten, told) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(Worker::register(scheduler, forgotten).await.serve());
    told
}

fn ok(text: &str) -> Result<Vec<u8>, v1::OutcomeClass> {
    Ok(text.as_bytes().to_vec())
}

#[tokio::test]
async fn results_of_appended_elements_come_back_and_feed_later_ones() {
    let scheduler = Scheduler::start();
    with_worker(&scheduler).await;
    let mut client = Client::with_open_run(&scheduler, "run-a", 1).await;
    client.add_function(0, 0);
    client.append(0, 0, &["a", "", "ccc"]);
    let ends = client.ends(3).await;
    assert_eq!(ends, BTreeMap::from([((0, 0), ok("a")), ((0, 1), ok("")), ((0, 2), ok("ccc"))]));

    // Dependency and data in one: on results that are there, and on an earlier element of the same frame.
    client.add_function(1, 1);
    let input = v1::ElementInput { input: 0, group: vec![0, 0, 1], index: vec![2, 0, 0] };
    let append = v1::Append { inputs: vec![input], ..appended(client.run, 1, 0, &["x", "y", "z"]) };
    client.send(Data::Append(append));
    let ends = client.ends(3).await;
    assert_eq!(ends, BTreeMap::from([((1, 0), ok("cccx")), ((1, 1), ok("ay")), ((1, 2), ok("cccxz"))]));

    client.send(Data::CloseRun(v1::CloseRun { run: client.run }));
    client.say(v1::client_control::Body::Watch(v1::Watch { run: "run-a".to_owned() }));
    loop {
        let frame = client.events.message().await.unwrap().expect("control stays open");
        if let Some(v1::client_events::Body::Progress(progress)) = frame.body
            && progress.complete
        {
            assert_eq!(progress.state(), v1::RunState::Succeeded, "{progress:?}");
            break;
        }
    }
}

#[tokio::test]
async fn a_failure_is_told_with_its_report_and_skips_what_reads_it() {
    let scheduler = Scheduler::start();
    with_worker(&scheduler).await;
    let mut client = Client::with_open_run(&scheduler, "run-b", 2).await;
    client.add_function(0, 0);
    client.add_function(1, 1);
    client.append(0, 0, &["fail", "b"]);
    let input = v1::ElementInput { input: 0, group: vec![0, 0], index: vec![0, 1] };
    let append = v1::Append { inputs: vec![input], ..appended(client.run, 1, 0, &["x", "y"]) };
    client.send(Data::Append(append));
    let ends = client.ends(4).await;
    assert_eq!(
        ends,
        BTreeMap::from([
            ((0, 0), Err(v1::OutcomeClass::AppError)),
            ((0, 1), ok("b")),
            ((1, 0), Err(v1::OutcomeClass::DependencyFailed)),
            ((1, 1), ok("by")),
        ])
    );
}

#[tokio::test]
async fn refused_groups_keep_their_numbers_and_the_rest_goes_on() {
    let scheduler = Scheduler::start();
    with_worker(&scheduler).await;
    let mut client = Client::with_open_run(&scheduler, "run-c", 3).await;
    let bad = v1::GroupSpec { name: "../etc".to_owned(), ..function("f", 0) };
    client.send(Data::AddGroup(v1::AddGroup { run: client.run, group: 0, spec: Some(bad) }));
    client.append(0, 0, &["a", "b"]);
    client.add_function(1, 0);
    client.append(1, 0, &["c"]);
    let mut rejected = Vec::new();
    let mut done = None;
    while done.is_none() {
        match client.told().await {
            Told::Rejected(refused) => {
                assert!(refused.refusal.is_some_and(|refusal| !refusal.message.is_empty()));
                rejected.push((refused.group, refused.first, refused.count));
            }
            Told::Results(batch) => done = Some((batch.group, batch.results.to_vec())),
            _ => {}
        }
    }
    assert_eq!(rejected, [(0, 0, 0), (0, 0, 2)]);
    assert_eq!(done, Some((1, b"c".to_vec())));
}

#[tokio::test]
async fn a_client_whose_user_takes_nothing_pauses_its_run_until_the_user_does() {
    let scheduler = Scheduler::start();
    with_worker(&scheduler).await;
    let mut client = Client::with_open_run(&scheduler, "run-d", 4).await;
    client.add_function(0, 0);
    // 3,200 results of 32 KiB are more than any window.
    let text = "x".repeat(32 << 10);
    let (count, each) = (3_200_u32, 100_u32);
    for first in (0..count).step_by(each as usize) {
        client.append(0, first, &vec![text.as_str(); each as usize]);
    }
    let mut control = v1::control_service_client::ControlServiceClient::new(channel(&scheduler).await);
    let (mut got, mut weight) = (0, 0);
    let explain = v1::ExplainRequest { run: "run-d".to_owned(), group: "f0".to_owned(), index: count - 1 };
    let mut paused = false;
    while got < count {
        tokio::select! {
            told = client.told() => if let Told::Results(batch) = told {
                got += batch.count;
                weight += batch.weight;
            },
            reply = control.explain(explain.clone()), if !paused => {
                // The last element may not have come yet.
                if reply.is_ok_and(|reply| reply.into_inner().sentence.contains("client")) {
                    paused = true;
                    assert!(got < count, "it waits for the client and everything is done");
                }
            }
        }
        if paused {
            client.say(v1::client_control::Body::Taken(v1::ResultsTaken { weight }));
        }
    }
    assert!(paused);
}

#[tokio::test]
async fn groups_that_are_over_and_let_go_of_are_forgotten_everywhere_but_in_the_sum() {
    const GROUPS: u32 = 300;
    /// Of so many it can still be said how they ended.
    const KEPT: u32 = 256;
    let scheduler = Scheduler::start();
    let mut forgotten = with_worker(&scheduler).await;
    let mut client = Client::with_open_run(&scheduler, "run-e", 5).await;
    for group in 0..GROUPS {
        client.add_function(group, 0);
        client.send(Data::Append(v1::Append { last: true, ..appended(client.run, group, 0, &["x"]) }));
        assert_eq!(client.ends(1).await, BTreeMap::from([((group, 0), ok("x"))]));
        let release = v1::ReleaseResults { run: client.run, group: vec![group], first: vec![0], count: vec![1] };
        client.say(v1::client_control::Body::Release(release));
    }
    let mut told = std::collections::BTreeSet::new();
    while (told.len() as u32) < GROUPS - KEPT {
        assert!(told.insert(forgotten.recv().await.expect("the worker lives")), "a group is forgotten once");
    }
    let mut control = v1::control_service_client::ControlServiceClient::new(channel(&scheduler).await);
    let status = control.get_status(v1::StatusRequest { run: "run-e".to_owned() }).await.unwrap().into_inner();
    let groups = status.run.unwrap().groups;
    assert_eq!(groups.len() as u32, KEPT + 1);
    let sum = groups.last().unwrap();
    assert_eq!((sum.group.as_str(), sum.length, sum.succeeded), ("(forgotten)", GROUPS - KEPT, GROUPS - KEPT));
    assert_eq!(groups.iter().map(|group| group.succeeded).sum::<u32>(), GROUPS);
    let asked = v1::ExplainRequest { run: "run-e".to_owned(), group: "f0".to_owned(), index: 0 };
    let refused = control.explain(asked).await.unwrap_err();
    assert!(refused.message().contains("44 groups that are over and let go of"), "{refused:?}");

    // Whatever still names one is refused, and the rest goes on.
    let release = v1::ReleaseResults { run: client.run, group: vec![0], first: vec![0], count: vec![1] };
    client.say(v1::client_control::Body::Release(release));
    client.say(v1::client_control::Body::Locate(v1::LocateResult { run: client.run, group: 0, index: 0 }));
    client.append(0, 1, &["late"]);
    client.add_function(GROUPS, 1);
    let input = v1::ElementInput { input: 0, group: vec![0, GROUPS - 1], index: vec![0, 0] };
    client.send(Data::Append(v1::Append { inputs: vec![input], ..appended(client.run, GROUPS, 0, &["y", "z"]) }));
    client.add_function(GROUPS + 1, 0);
    client.append(GROUPS + 1, 0, &["last"]);
    let (mut rejected, mut done) = (Vec::new(), None);
    while done.is_none() {
        match client.told().await {
            Told::Rejected(refused) => rejected.push((refused.group, refused.first, refused.refusal.unwrap().code)),
            Told::Results(batch) => done = Some((batch.group, batch.results.to_vec())),
            _ => {}
        }
    }
    let code = |group, first, code: &str| (group, first, code.to_owned());
    // The other one is known, and let go of.
    let expected = [code(0, 1, "E_GROUP_REFUSED"), code(GROUPS, 0, "E_EDGE"), code(GROUPS, 1, "E_RELEASED")];
    assert_eq!(rejected, expected);
    assert_eq!(done, Some((GROUPS + 1, b"last".to_vec())));
}
