//! Functions in lane hosts: results, errors, crashes and what they cost, cancel, retract, limits.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use scalable_proto::v1::*;

use crate::fake::*;
use crate::lane_host::SIGNATURE;

pub fn native(name: &str, isolation: Isolation) -> TaskTemplate {
    let function = FunctionCall {
        name: name.into(),
        codec: "raw".into(),
        native: std::env::current_exe().expect("it runs").display().to_string(),
        signature: SIGNATURE.to_vec().into(),
        isolation: isolation as i32,
        ..FunctionCall::default()
    };
    TaskTemplate { command: Some(task_template::Command::Function(function)), ..TaskTemplate::default() }
}

pub fn process(name: &str) -> TaskTemplate {
    native(name, Isolation::Process)
}

pub fn thread(name: &str) -> TaskTemplate {
    native(name, Isolation::Thread)
}

pub fn two(a: u64, b: u64) -> Vec<u8> {
    [a.to_le_bytes(), b.to_le_bytes()].concat()
}

/// What a call came to.
#[derive(Debug)]
pub enum Came {
    Value(Vec<u8>),
    Kept(u64),
    Report(Box<AttemptReport>),
}

impl Came {
    pub fn report(self) -> AttemptReport {
        match self {
            Came::Report(report) => *report,
            other => panic!("{other:?}"),
        }
    }

    pub fn number(self) -> u64 {
        match self {
            Came::Value(value) => u64::from_le_bytes(value.try_into().expect("eight bytes")),
            other => panic!("{other:?}"),
        }
    }
}

impl Fake {
    /// Dispatches calls in one frame: (index, arguments) each.
    pub fn call_all(&mut self, group: u32, shape: u32, timeout_ms: u64, calls: &[(u32, Vec<u8>)]) -> Vec<u64> {
        let handles: Vec<u64> = calls.iter().map(|_| self.handle()).collect();
        self.call_as(&handles, group, shape, timeout_ms, calls);
        handles
    }

    pub fn call_as(&self, handles: &[u64], group: u32, shape: u32, timeout_ms: u64, calls: &[(u32, Vec<u8>)]) {
        let (mut args, mut args_end) = (Vec::new(), Vec::new());
        for (_, values) in calls {
            args.extend_from_slice(values);
            args_end.push(args.len() as u32);
        }
        self.data(scheduler_data::Body::Dispatch(DispatchBatch {
            handle: handles.to_vec(),
            // As the scheduler sends what is the same for all.
            group: vec![group],
            index: calls.iter().map(|(index, _)| *index).collect(),
            attempt: vec![1; calls.len()],
            shape: vec![shape; calls.len()],
            timeout_ms: vec![timeout_ms],
            task_id: Vec::new(),
            fence: handles.iter().map(|handle| handle & 0xFFFF_FFFF).collect(),
            args_end,
            args: args.into(),
            ..Default::default()
        }));
    }

    pub fn call(&mut self, group: u32, index: u32, values: &[u8]) -> u64 {
        self.call_all(group, 1, 0, &[(index, values.to_vec())])[0]
    }

    pub async fn came(&mut self, handle: u64) -> Came {
        let is = |event: &Event| match event {
            Event::Returned { handle: h, attempt: 1, .. } | Event::Kept { handle: h, attempt: 1, .. } => *h == handle,
            Event::Finished { handle: h, attempt: 1, .. } => *h == handle,
            _ => false,
        };
        match self.until(is).await {
            Event::Returned { value, .. } => Came::Value(value),
            Event::Kept { bytes, .. } => Came::Kept(bytes),
            Event::Finished { report, .. } => Came::Report(report),
            _ => unreachable!("asked for"),
        }
    }

    pub async fn run_call(&mut self, group: u32, index: u32, values: &[u8]) -> Came {
        let handle = self.call(group, index, values);
        self.came(handle).await
    }

    /// A path in the test's directory, for a function that waits.
    pub fn gate(&self, name: &str) -> PathBuf {
        self.base().join(name)
    }
}

pub fn text(path: &Path) -> Vec<u8> {
    path.display().to_string().into_bytes()
}

pub async fn appears(path: &Path) {
    let begin = Instant::now();
    while !path.exists() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{} does not appear", path.display());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn every_end_of_a_call_in_both_isolations() {
    for isolation in [Isolation::Process, Isolation::Thread] {
        let mut fake = Fake::start().await;
        let _worker = fake.ready(&[]).await;
        let names = ["add", "bytes", "panics", "fails", "asynchronous", "unknown"];
        let groups: Vec<_> = names.iter().map(|name| (*name, native(name, isolation), plain())).collect();
        fake.announce(&groups);
        assert_eq!(fake.run_call(1, 0, &two(2, 40)).await.number(), 42);
        let report = fake.run_call(1, 0, b"short").await.report();
        assert_eq!((report.class(), report.panicked), (OutcomeClass::AppError, false));
        assert!(report.message.contains("could not be decoded: eight bytes"), "{}", report.message);
        let inline = fake.run_call(2, 7, &(64u64 << 10).to_le_bytes()).await;
        assert!(matches!(inline, Came::Value(value) if value == vec![7; 64 << 10]));
        let kept = fake.run_call(2, 7, &((64u64 << 10) + 1).to_le_bytes()).await;
        assert!(matches!(kept, Came::Kept(bytes) if bytes == (64 << 10) + 1));
        let report = fake.run_call(3, 5, b"").await.report();
        assert_eq!((report.class(), report.panicked, report.exit_code), (OutcomeClass::AppError, true, None));
        assert!(report.message.starts_with("5 is wrong at ") && report.message.contains("lane_host.rs"), "{}", report.message);
        assert!(report.backtrace.contains("lane_host"), "{}", report.backtrace);
        let report = fake.run_call(4, 0, b"").await.report();
        assert_eq!((report.class(), report.message.as_str()), (OutcomeClass::AppError, "as asked"));
        assert_eq!(fake.run_call(5, 0, &21u64.to_le_bytes()).await.number(), 42);
        let report = fake.run_call(6, 0, b"").await.report();
        assert_eq!(report.class(), OutcomeClass::AppError);
        assert!(report.message.starts_with("version skew: ") && report.message.contains("unknown"), "{}", report.message);
    }
}

#[tokio::test]
async fn many_calls_come_back_once_each() {
    for isolation in [Isolation::Process, Isolation::Thread] {
        let mut fake = Fake::start().await;
        let _worker = fake.ready(&[]).await;
        fake.announce(&[("add", native("add", isolation), plain())]);
        let mut expected = Vec::new();
        for frame in 0..20u64 {
            let calls: Vec<(u32, Vec<u8>)> = (0..1000).map(|n| (n as u32, two(frame * 1000, n))).collect();
            let handles = fake.call_all(1, 1, 0, &calls);
            expected.extend(handles.into_iter().zip((0..1000).map(|n| frame * 1000 + n)));
        }
        let mut got = std::collections::BTreeMap::new();
        while got.len() < expected.len() {
            let event = fake.until(|event| matches!(event, Event::Returned { .. } | Event::Finished { .. })).await;
            let Event::Returned { handle, value, .. } = event else { panic!("{event:?}") };
            assert!(got.insert(handle, u64::from_le_bytes(value.try_into().expect("eight bytes"))).is_none(), "once");
        }
        assert_eq!(got.into_iter().collect::<Vec<_>>(), expected);
    }
}

#[tokio::test]
async fn a_crash_costs_what_was_executing_and_no_more() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    fake.announce(&[
        ("segfault", process("segfault"), plain()),
        ("exits", process("exits"), plain()),
        ("aborts", process("aborts"), plain()),
        ("add", process("add"), plain()),
        ("leak", process("leak"), plain()),
    ]);
    // Once known to be short, many are with a host at a time.
    for n in 0..50 {
        assert_eq!(fake.run_call(4, 0, &two(n, 1)).await.number(), n + 1);
    }
    fake.shape(3, Resources { milli_cpus: 1000, memory_bytes: 200 << 20, ..Resources::default() });
    for (group, class) in [(1, None), (2, Some(3)), (3, None)] {
        let mut handles = Vec::new();
        let all: Vec<(u32, Vec<u8>)> = (0..100).map(|n| (n, two(u64::from(n), 5))).collect();
        handles.extend(fake.call_all(4, 1, 0, &all));
        let bad = fake.call(group, 0, b"");
        handles.extend(fake.call_all(4, 1, 0, &all));
        let report = fake.came(bad).await.report();
        assert_eq!((report.class(), report.exit_code), (OutcomeClass::AppError, class), "{report:?}");
        let signal = [Some(11), None, Some(6)][group as usize - 1];
        assert_eq!(report.signal, signal);
        assert!(report.message.contains("ended the process that executed it"), "{}", report.message);
        if group == 3 {
            assert_eq!(&report.stderr_tail[..], b"last words\n");
        }
        for (nth, handle) in handles.into_iter().enumerate() {
            assert_eq!(fake.came(handle).await.number(), nth as u64 % 100 + 5, "a neighbour's result arrives");
        }
    }
    let leak = fake.call_all(5, 3, 0, &[(0, Vec::new())])[0];
    let report = fake.came(leak).await.report();
    assert_eq!(report.class(), OutcomeClass::Oom, "{report:?}");
    assert!(report.message.contains("out of memory") && report.memory_limit_bytes == 200 << 20, "{}", report.message);
}

#[tokio::test]
async fn a_crash_in_a_shared_host_costs_what_was_executing_in_it() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    fake.announce(&[
        ("add", thread("add"), plain()),
        ("segfault", thread("segfault"), plain()),
        ("wait", thread("wait"), plain()),
    ]);
    assert_eq!(fake.run_call(1, 0, &two(1, 1)).await.number(), 2);
    let gate = fake.gate("gate");
    let neighbour = fake.call(3, 0, &text(&gate));
    appears(&gate).await;
    let bad = fake.call(2, 0, b"");
    let after = fake.call_all(1, 1, 0, &(0..50).map(|n| (n, two(1, u64::from(n)))).collect::<Vec<_>>());
    for handle in [bad, neighbour] {
        let report = fake.came(handle).await.report();
        assert_eq!((report.class(), report.signal), (OutcomeClass::AppError, Some(11)), "{report:?}");
    }
    for (nth, handle) in after.into_iter().enumerate() {
        assert_eq!(fake.came(handle).await.number(), nth as u64 + 1);
    }
}

#[tokio::test]
async fn a_tight_loop_ends_when_it_is_cancelled_or_out_of_time() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    fake.announce(&[
        ("spin", process("spin"), plain()),
        ("spin thread", thread("spin"), plain()),
        ("wait", thread("wait"), plain()),
        ("looks", process("looks"), plain()),
    ]);
    for group in [1, 2] {
        let began = fake.gate("spins");
        let spin = fake.call(group, 0, &text(&began));
        appears(&began).await;
        std::fs::remove_file(&began).expect("there");
        let asked = Instant::now();
        fake.control(scheduler_control::Body::Cancel(CancelAttempts { handles: vec![spin], reason: "test".into() }));
        assert_eq!(fake.came(spin).await.report().class(), OutcomeClass::Cancelled);
        assert!(asked.elapsed() < Duration::from_secs(10), "it ends soon");
        let timed = fake.call_all(group, 1, 100, &[(0, Vec::new())])[0];
        assert_eq!(fake.came(timed).await.report().class(), OutcomeClass::Timeout);
    }
    // A neighbour in the same host is not to blame: a fresh host executes it.
    let (began, gate) = (fake.gate("spins"), fake.gate("gate"));
    let neighbour = fake.call(3, 0, &text(&gate));
    appears(&gate).await;
    // The file is there a moment before its content.
    let mut first = String::new();
    while first.is_empty() {
        tokio::task::yield_now().await;
        first = std::fs::read_to_string(&gate).expect("there");
    }
    let spin = fake.call(2, 0, &text(&began));
    appears(&began).await;
    fake.control(scheduler_control::Body::Cancel(CancelAttempts { handles: vec![spin], reason: "test".into() }));
    assert_eq!(fake.came(spin).await.report().class(), OutcomeClass::Cancelled);
    let begin = Instant::now();
    while std::fs::read_to_string(&gate).is_ok_and(|pid| pid == first || pid.is_empty()) {
        assert!(begin.elapsed() < Duration::from_secs(60), "it is executed again");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    std::fs::remove_file(&gate).expect("there");
    assert!(matches!(fake.came(neighbour).await, Came::Value(_)));
    // One that looks ends by itself, and keeps its host.
    let looks = fake.gate("looks");
    let handle = fake.call(4, 0, &text(&looks));
    appears(&looks).await;
    fake.control(scheduler_control::Body::Cancel(CancelAttempts { handles: vec![handle], reason: "test".into() }));
    assert_eq!(fake.came(handle).await.report().class(), OutcomeClass::Cancelled);
    assert!(!looks.exists(), "it saw it");
}

#[tokio::test]
async fn what_no_host_has_begun_is_given_back() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&["--cpus", "0.5"]).await;
    fake.announce(&[("wait", process("wait"), plain()), ("add", process("add"), plain())]);
    // Short by all that is known: so several are with the host behind the one that waits.
    for n in 0..50 {
        assert_eq!(fake.run_call(2, 0, &two(n, 1)).await.number(), n + 1);
    }
    let gate = fake.gate("gate");
    let wait = fake.call(1, 0, &text(&gate));
    let behind = fake.call_all(2, 1, 0, &(0..20).map(|n| (n, two(1, u64::from(n)))).collect::<Vec<_>>());
    appears(&gate).await;
    let handles: Vec<u64> = [wait].into_iter().chain(behind[..10].iter().copied()).collect();
    fake.control(scheduler_control::Body::Retract(Retract { handles }));
    let reply = fake.until(|event| matches!(event, Event::Control(worker_control::Body::RetractReply(_)))).await;
    let Event::Control(worker_control::Body::RetractReply(reply)) = reply else { unreachable!("asked for") };
    assert_eq!((reply.given_back, reply.kept), (behind[..10].to_vec(), vec![wait]));
    fake.control(scheduler_control::Body::Cancel(CancelAttempts { handles: behind[10..15].to_vec(), reason: "test".into() }));
    for handle in &behind[10..15] {
        assert_eq!(fake.came(*handle).await.report().class(), OutcomeClass::Cancelled);
    }
    fake.started(wait).await;
    std::fs::remove_file(&gate).expect("there");
    assert!(matches!(fake.came(wait).await, Came::Value(_)));
    for (nth, handle) in behind[15..].iter().enumerate() {
        assert_eq!(fake.came(*handle).await.number(), nth as u64 + 16);
    }
    assert!(!fake.rest().iter().any(|event| matches!(event, Event::Returned { .. })), "what was given back never runs");
}

#[tokio::test]
async fn calls_and_commands_share_the_worker() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&["--cpus", "1"]).await;
    fake.announce(&[("wait", process("wait"), plain()), ("command", argv(&["true"]), plain()), ("add", thread("add"), plain())]);
    fake.shape(3, Resources { milli_cpus: 1000, ..Resources::default() });
    let gate = fake.gate("gate");
    let wait = fake.call_all(1, 3, 0, &[(0, text(&gate))])[0];
    appears(&gate).await;
    let command = fake.dispatch(2, 0, 3, 0);
    let add = fake.call_all(3, 3, 0, &[(0, two(1, 2))])[0];
    // The shape that was announced last is known: everything before it was taken.
    fake.started(wait).await;
    assert!(
        !fake.rest().iter().any(|event| matches!(event, Event::Started { .. } | Event::Returned { .. })),
        "the worker is full"
    );
    std::fs::remove_file(&gate).expect("there");
    assert!(matches!(fake.came(wait).await, Came::Value(_)));
    assert_eq!(fake.finished(command).await.class(), OutcomeClass::Succeeded);
    assert_eq!(fake.came(add).await.number(), 3);
}

#[tokio::test]
async fn threads_of_one_host_take_from_each_other() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    fake.announce(&[("wait", thread("wait"), plain()), ("add", thread("add"), plain())]);
    for n in 0..50 {
        assert_eq!(fake.run_call(2, 0, &two(n, 1)).await.number(), n + 1);
    }
    let gate = fake.gate("gate");
    let wait = fake.call(1, 0, &text(&gate));
    let behind = fake.call_all(2, 1, 0, &(0..200).map(|n| (n, two(1, u64::from(n)))).collect::<Vec<_>>());
    for (nth, handle) in behind.into_iter().enumerate() {
        assert_eq!(fake.came(handle).await.number(), nth as u64 + 1, "others go on while one waits");
    }
    std::fs::remove_file(&gate).expect("there");
    assert!(matches!(fake.came(wait).await, Came::Value(_)));
}

#[tokio::test]
async fn a_program_that_cannot_be_a_lane_host_says_why() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    let program = |native: &str| {
        let mut template = process("add");
        let Some(task_template::Command::Function(function)) = &mut template.command else { unreachable!("it is one") };
        function.native = native.into();
        template
    };
    let shipped = |path: &str, content: &[u8]| {
        let mut template = program("");
        let Some(task_template::Command::Function(function)) = &mut template.command else { unreachable!("it is one") };
        let digest = blake3::hash(content).as_bytes().to_vec().into();
        function.executable = Some(Executable { digest, size: content.len() as u64, path: path.into(), ..Executable::default() });
        template
    };
    let mut skew = process("add");
    let Some(task_template::Command::Function(function)) = &mut skew.command else { unreachable!("it is one") };
    function.signature = vec![9; 32].into();
    let own = std::env::current_exe().expect("it runs");
    let content = std::fs::read(&own).expect("read");
    fake.announce(&[
        ("missing", program("/nope/program"), plain()),
        ("true", program("/bin/true"), plain()),
        ("skew", skew, plain()),
        ("gone", shipped("/nope/program", b"content"), plain()),
        ("shipped", shipped(&own.display().to_string(), &content), plain()),
    ]);
    let check = async |fake: &mut Fake, group, class, part: &str| {
        let report = fake.run_call(group, 0, &two(1, 1)).await.report();
        assert_eq!(report.class(), class, "{report:?}");
        assert!(report.message.contains(part), "{}", report.message);
    };
    check(&mut fake, 1, OutcomeClass::InfraStart, "/nope/program cannot be started on this worker").await;
    check(&mut fake, 2, OutcomeClass::InfraStart, "scalable::init!").await;
    check(&mut fake, 3, OutcomeClass::AppError, "version skew: argument or result types of add differ").await;
    check(&mut fake, 4, OutcomeClass::InfraStart, "is not on this worker").await;
    assert_eq!(fake.run_call(5, 0, &two(1, 1)).await.number(), 2);
}

#[tokio::test]
async fn a_drain_lets_calls_end_and_gives_the_rest_back() {
    let mut fake = Fake::start().await;
    let mut worker = fake.ready(&["--cpus", "0.5"]).await;
    fake.announce(&[("wait", process("wait"), plain()), ("add", process("add"), plain())]);
    for n in 0..20 {
        assert_eq!(fake.run_call(2, 0, &two(n, 1)).await.number(), n + 1);
    }
    let gate = fake.gate("gate");
    let wait = fake.call(1, 0, &text(&gate));
    let behind = fake.call_all(2, 1, 0, &(0..20).map(|n| (n, two(1, u64::from(n)))).collect::<Vec<_>>());
    appears(&gate).await;
    fake.control(scheduler_control::Body::Drain(Drain { deadline_ms: 60_000, reason: "test".into() }));
    for handle in behind {
        assert_eq!(fake.came(handle).await.report().class(), OutcomeClass::Preempted);
    }
    std::fs::remove_file(&gate).expect("there");
    assert!(matches!(fake.came(wait).await, Came::Value(_)));
    assert_eq!(worker.code().await, Some(0));
}

/// Clock ticks of processor time that a process has taken.
fn ticks(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum()
}

/// How fast calls go from dispatch to report through one agent with two slots, and what agent and hosts take of a processor for each.
/// `cargo test --release -p scalable-worker --test agent -- --ignored --nocapture measure_calls` prints one JSON object a line.
#[tokio::test]
#[ignore = "a measurement"]
#[expect(clippy::print_stdout, reason = "what it is for")]
async fn measure_calls() {
    let calls_in_all: u64 = std::env::var("CALLS").ok().and_then(|calls| calls.parse().ok()).unwrap_or(4_000_000);
    for (name, isolation) in [("process", Isolation::Process), ("thread", Isolation::Thread)] {
        let mut fake = Fake::start().await;
        let worker = fake.ready(&["--cpus", "2"]).await;
        fake.announce(&[("nothing", native("nothing", isolation), plain())]);
        fake.shape(3, Resources { milli_cpus: 1000, ..Resources::default() });
        let first = fake.call_all(1, 3, 0, &[(0, Vec::new())])[0];
        fake.came(first).await;
        let (batch, ahead) = (4096u64, 1u64 << 16);
        let columns = |value: u32| vec![value; batch as usize];
        let (mut sent, mut done) = (0, fake.count());
        let begin = Instant::now();
        while done < calls_in_all {
            while sent < calls_in_all && sent - done <= ahead - batch {
                let slots = (0..batch).map(|n| (2 << 32) + (sent % ahead) + n + ((sent / ahead) << 32));
                fake.data(scheduler_data::Body::Dispatch(DispatchBatch {
                    handle: slots.collect(),
                    group: columns(1),
                    index: (0..batch as u32).collect(),
                    attempt: columns(1),
                    shape: columns(3),
                    timeout_ms: vec![0; batch as usize],
                    task_id: (0..batch).map(|n| 1 << 32 | n).collect(),
                    fence: (sent..sent + batch).collect(),
                    args_end: (1..=batch as u32).map(|n| n * 8).collect(),
                    args: vec![1; batch as usize * 8].into(),
                    ..Default::default()
                }));
                sent += batch;
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
            done = fake.count();
        }
        let wall = begin.elapsed().as_secs_f64();
        let agent = worker.pid().as_raw();
        let children = std::fs::read_to_string(format!("/proc/{agent}/task/{agent}/children")).unwrap_or_default();
        let hosts: u64 = children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(ticks).sum();
        let each = |ticks: u64| (ticks as f64 * 1e7 / done as f64).round();
        println!(
            "{{\"id\":\"calls.{name}\",\"per_second\":{:.0},\"agent_cpu_ns\":{},\"host_cpu_ns\":{},\"calls\":{done}}}",
            done as f64 / wall,
            each(ticks(agent)),
            each(hosts)
        );
    }
}
