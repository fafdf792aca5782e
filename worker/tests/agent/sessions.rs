//! Sessions: registration refused, connections lost at every message, sessions lost, drains, silence.

use std::collections::BTreeMap;

use nix::sys::signal::Signal;
use scalable_proto::v1::*;

use crate::fake::*;
use crate::processes::descendants;

/// Four commands, one of them retracted, one with output; with a frame lost together with its connection. What the scheduler
/// hears must not depend on it.
async fn story(cut: Option<Cut>) -> BTreeMap<String, Vec<String>> {
    let mut fake = Fake::start().await;
    if let Some(cut) = cut {
        fake.cut(cut);
    }
    fake.with_heartbeat(50);
    let _worker = fake.ready(&[]).await;
    fake.announce(&[
        ("true", argv(&["true"]), plain()),
        ("said", argv(&["echo", "x"]), plain()),
        ("long", shell("read x < gate"), plain()),
    ]);
    let gate = fake.base().join("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).expect("made");
    let long = fake.dispatch(3, 0, 1, 0);
    fake.started(long).await;
    let large = fake.dispatch(1, 1, 2, 0);
    fake.control(scheduler_control::Body::Retract(Retract { handles: vec![large] }));
    let reply = fake.until(|event| matches!(event, Event::Control(worker_control::Body::RetractReply(_)))).await;
    let said = fake.dispatch(2, 0, 1, 0);
    let plain = fake.dispatch(1, 0, 1, 0);
    let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
    told.entry("reply".into()).or_default().push(match reply {
        Event::Control(worker_control::Body::RetractReply(reply)) => format!("{} given back", reply.given_back.len()),
        other => panic!("{other:?}"),
    });
    for (name, handle) in [("said", said), ("plain", plain)] {
        let report = fake.finished(handle).await;
        told.entry(name.into()).or_default().push(format!("{:?} {}", report.class(), report.stdout_bytes));
    }
    // A heartbeat after everything else, so that later frames exist to be lost.
    fake.until(|event| matches!(event, Event::Control(worker_control::Body::Heartbeat(_)))).await;
    let opened = tokio::task::spawn_blocking(move || std::fs::write(gate, "x\n"));
    let report = fake.finished(long).await;
    opened.await.expect("no panic").expect("written");
    told.entry("long".into()).or_default().push(format!("{:?}", report.class()));
    for event in fake.rest() {
        match event {
            Event::Finished { handle, .. } => panic!("{handle} was told twice"),
            Event::Started { handle, .. } => {
                let name =
                    [("long", long), ("said", said), ("plain", plain), ("large", large)].into_iter().find(|(_, h)| *h == handle);
                told.entry("started".into()).or_default().push(name.expect("known").0.to_owned());
            }
            _ => {}
        }
    }
    told
}

#[tokio::test]
async fn a_connection_lost_at_any_message_loses_and_doubles_nothing() {
    let undisturbed = story(None).await;
    assert_eq!(undisturbed["long"], ["Succeeded"]);
    let mut cuts: Vec<Cut> = Vec::new();
    cuts.extend((1..=4).map(Cut::ControlIn));
    cuts.extend((1..=5).map(Cut::DataIn));
    cuts.push(Cut::ControlOut(1));
    cuts.extend((1..=10).map(Cut::DataOut));
    for cut in cuts {
        assert_eq!(story(Some(cut)).await, undisturbed, "{cut:?}");
    }
}

#[tokio::test]
async fn a_session_that_goes_on_keeps_its_running_attempts() {
    let mut fake = Fake::start().await;
    let worker = fake.ready(&[]).await;
    fake.announce(&[("long", shell("read x < gate; echo done"), plain())]);
    let gate = fake.base().join("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).expect("made");
    let handle = fake.dispatch(1, 0, 1, 0);
    fake.started(handle).await;
    for _ in 0..3 {
        fake.break_connections(false);
        let Event::Hello(hello) =
            fake.until(|event| matches!(event, Event::Hello(h) if h.hello.as_ref().is_some_and(|h| h.session != 0))).await
        else {
            unreachable!("asked for")
        };
        assert_eq!(hello.hello.map(|h| (h.session, h.epoch)), Some((1, 77)));
        fake.attached().await;
    }
    assert_eq!(descendants(worker.pid().as_raw()).len(), 1);
    tokio::task::spawn_blocking(move || std::fs::write(gate, "x\n")).await.expect("no panic").expect("written");
    assert_eq!(fake.finished(handle).await.class(), OutcomeClass::Succeeded);
}

#[tokio::test]
async fn a_session_that_is_gone_takes_its_attempts_with_it() {
    let mut fake = Fake::start().await;
    let worker = fake.ready(&[]).await;
    fake.announce(&[("long", argv(&["sleep", "1000"]), plain()), ("true", argv(&["true"]), plain())]);
    let old = fake.dispatch(1, 0, 1, 0);
    fake.started(old).await;
    fake.break_connections(true);
    fake.attached().await;
    fake.announce(&[("long", argv(&["sleep", "1000"]), plain()), ("true", argv(&["true"]), plain())]);
    let new = fake.dispatch(2, 0, 2, 0);
    assert_eq!(fake.finished(new).await.class(), OutcomeClass::Succeeded, "both cpus: the old task is gone");
    assert!(descendants(worker.pid().as_raw()).is_empty());
    assert!(
        fake.rest().iter().all(|event| !matches!(event, Event::Finished { .. })),
        "nobody hears of what the old session wanted"
    );
}

#[tokio::test]
async fn silence_ends_the_tasks_and_begins_a_new_session() {
    let mut fake = Fake::start().await;
    fake.with_heartbeat(100);
    let worker = fake.ready(&["--fence-after", "1s"]).await;
    fake.announce(&[("long", argv(&["sleep", "1000"]), plain())]);
    let handle = fake.dispatch(1, 0, 1, 0);
    fake.started(handle).await;
    fake.fall_silent();
    let again = |event: &Event| matches!(event, Event::Hello(h) if h.hello.as_ref().is_some_and(|h| h.session == 0));
    fake.until(again).await;
    fake.until(again).await;
    while !descendants(worker.pid().as_raw()).is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn ten_sigterms_and_the_task_still_finishes() {
    let mut fake = Fake::start().await;
    let mut worker = fake.ready(&["--drain-deadline", "10m"]).await;
    fake.announce(&[("long", shell("read x < gate"), plain())]);
    let gate = fake.base().join("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).expect("made");
    let executing = fake.dispatch(1, 0, 2, 0);
    fake.started(executing).await;
    let queued = fake.dispatch(1, 1, 2, 0);
    // Control and data may overtake each other: an answer on control says nothing about data, a started attempt behind it does.
    for _ in 0..10 {
        worker.signal(Signal::SIGTERM);
    }
    let drains = |event: &Event| matches!(event, Event::Control(worker_control::Body::Draining(_)));
    fake.until(drains).await;
    let report = fake.finished(queued).await;
    assert_eq!((report.class(), report.exit_code), (OutcomeClass::Preempted, None));
    let late = fake.dispatch(1, 2, 1, 0);
    assert_eq!(fake.finished(late).await.class(), OutcomeClass::Preempted, "no new work");
    tokio::task::spawn_blocking(move || std::fs::write(gate, "x\n")).await.expect("no panic").expect("written");
    assert_eq!(fake.finished(executing).await.class(), OutcomeClass::Succeeded);
    fake.until(|event| matches!(event, Event::Control(worker_control::Body::Goodbye(_)))).await;
    assert_eq!(worker.code().await, Some(0));
    assert!(!fake.rest().iter().any(drains), "said once");
}

#[tokio::test]
async fn the_drain_deadline_hands_back_what_runs() {
    let mut fake = Fake::start().await;
    let mut worker = fake.ready(&["--drain-deadline", "100ms"]).await;
    fake.announce(&[("long", argv(&["sleep", "1000"]), plain())]);
    let handle = fake.dispatch(1, 0, 1, 0);
    fake.started(handle).await;
    worker.signal(Signal::SIGINT);
    let report = fake.finished(handle).await;
    assert_eq!((report.class(), report.signal), (OutcomeClass::Preempted, Some(15)));
    assert_eq!(worker.code().await, Some(0));
}

#[tokio::test]
async fn goodbye_ends_everything() {
    let mut fake = Fake::start().await;
    let mut worker = fake.ready(&[]).await;
    fake.announce(&[("long", argv(&["sleep", "1000"]), plain())]);
    let handle = fake.dispatch(1, 0, 1, 0);
    fake.started(handle).await;
    worker.signal(Signal::SIGHUP);
    fake.control(scheduler_control::Body::Goodbye(Goodbye { reason: "the run is over".into() }));
    assert_eq!(worker.code().await, Some(0));
    assert!(descendants(worker.pid().as_raw()).is_empty());
}

#[tokio::test]
async fn a_worker_that_was_given_up_registers_again() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    fake.control(scheduler_control::Body::Goodbye(Goodbye { reason: "lost".into() }));
    fake.attached().await;
    fake.announce(&[("true", argv(&["true"]), plain())]);
    assert_eq!(fake.execute(1, 0).await.class(), OutcomeClass::Succeeded);
}

#[tokio::test]
async fn refusals_end_the_worker_with_a_sentence() {
    let fake = Fake::start().await;
    let wrong = fake.base().join("wrong");
    std::fs::write(&wrong, "another token altogether, no doubt").expect("written");
    let mut worker = fake.worker(&["--token-file", &wrong.display().to_string()]);
    assert_eq!(worker.code().await, Some(3));
    fake.refuse(tonic::Status::failed_precondition("this scheduler speaks protocol 2 to 3"));
    let mut worker = fake.worker(&[]);
    assert_eq!(worker.code().await, Some(3));
    let mut worker = fake.worker(&["--token-file", "/no/such/file"]);
    assert_eq!(worker.code().await, Some(3));
    let mut worker = fake.worker(&["--cpus", "many"]);
    assert_eq!(worker.code().await, Some(2));
    let other = Fake::start().await;
    let mut worker = other.worker(&["--cluster-id", "another"]);
    assert_eq!(worker.code().await, Some(3));
}

#[tokio::test]
async fn malformed_frames_begin_a_new_session_and_never_end_the_worker() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    let malformed: Vec<scheduler_data::Body> = vec![
        scheduler_data::Body::Group(AnnounceGroup { group: 1, run: 99, ..AnnounceGroup::default() }),
        scheduler_data::Body::Dispatch(DispatchBatch { handle: vec![1, 2], group: vec![1], ..DispatchBatch::default() }),
        scheduler_data::Body::Bound(Bound { received: 5 }),
        scheduler_data::Body::Input(InputChunk { handle: 1, input: u32::MAX, objects: vec![] }),
    ];
    for body in malformed {
        fake.data(body);
        fake.attached().await;
    }
    fake.raw_data(SchedulerData { seq: 1000, body: None });
    fake.attached().await;
    fake.announce(&[("true", argv(&["true"]), plain())]);
    assert_eq!(fake.execute(1, 0).await.class(), OutcomeClass::Succeeded);
    let report = {
        let handle = fake.dispatch(1, 0, 42, 0);
        fake.finished(handle).await
    };
    assert_eq!(report.class(), OutcomeClass::InfraStart, "a shape that was never announced");
}

#[tokio::test]
async fn a_worker_waits_for_a_scheduler_that_is_not_there_yet() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    let mut fake = Fake::start().await;
    let mut worker = fake.worker(&["--address", &address]);
    fake.address = address;
    worker.handles_signals().await;
    worker.signal(Signal::SIGHUP);
    assert!(worker.child.try_wait().expect("ours").is_none());
    // Drained before it ever registered: nothing is there to wait for.
    worker.signal(Signal::SIGTERM);
    assert_eq!(worker.code().await, Some(0));
}
