//! Results that stay on workers: read where they are, fetched from peers, spilled, dropped; programs from the store.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use scalable_proto::v1::*;
use scalable_store::{
    BlobDirectory, Content, Digest, Fetcher, FetcherOptions, FileRequest, Holder, Keep, ObjectId, ObjectKey, PeerServer,
    SegmentPool, ServerOptions, Store, StoreOptions, now_ms,
};

use crate::fake::*;
use crate::functions::{Came, process, two};

/// A function that reads one object or all, and says how many bytes they have.
fn length(select: input_source::Select) -> TaskTemplate {
    let source = Some(InputSource { select: Some(select), ..InputSource::default() });
    TaskTemplate { inputs: vec![Input { source, ..Input::default() }], ..process("length") }
}

impl Fake {
    /// Calls a function with objects for its one input.
    async fn run_reading(&mut self, group: u32, objects: Vec<ObjectRef>) -> Came {
        let handle = self.handle();
        self.data(scheduler_data::Body::Input(InputChunk { handle, input: 0, objects }));
        self.call_as(&[handle], group, 1, 0, &[(0, Vec::new())]);
        self.came(handle).await
    }
}

/// A peer that the test plays.
fn peer(directory: &tempfile::TempDir) -> (Store, PeerServer) {
    let store = Store::open(StoreOptions::new(directory.path().join("peer"), 256 << 20)).expect("a store");
    let address: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let blobs = BlobDirectory::open(directory.path().join("blobs"), 1 << 30).expect("a directory");
    let options = ServerOptions { threads: 1, uploads: Some(blobs), ..ServerOptions::new(address) };
    let server = PeerServer::start(options, store.clone()).expect("a server");
    server.set_key(ObjectKey::from_slice(&OBJECT_KEY).expect("32 bytes"));
    (store, server)
}

fn announce_peer(fake: &Fake, peer: u32, server: &PeerServer) {
    let address = server.address().to_string();
    fake.data(scheduler_data::Body::Peer(AnnouncePeer { peer, address, host: String::new() }));
}

fn capability(id: ObjectId) -> Option<Capability> {
    let granted = ObjectKey::from_slice(&OBJECT_KEY).expect("32 bytes").grant(id.into(), now_ms() + 60_000);
    Some(Capability { run: id.run, expires_ms: granted.expires_ms, mac: granted.mac.to_vec().into() })
}

#[tokio::test]
async fn objects_are_read_where_they_are() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    let (one, all) = (length(input_source::Select::Index(0)), length(input_source::Select::All(true)));
    fake.announce(&[("bytes", process("bytes"), plain()), ("one", one, plain()), ("all", all, plain())]);
    assert!(matches!(fake.run_call(1, 4, &(1u64 << 20).to_le_bytes()).await, Came::Kept(1_048_576)));
    let kept = ObjectRef { index: 4, attempt: 1, size: 1 << 20, group: 1, ..ObjectRef::default() };
    let inline = ObjectRef { index: 5, attempt: 1, size: 3, group: 1, inline: b"abc".as_slice().into(), ..ObjectRef::default() };
    let with = async |fake: &mut Fake, group: u32, objects: Vec<ObjectRef>| {
        let handle = fake.handle();
        fake.data(scheduler_data::Body::Input(InputChunk { handle, input: 0, objects }));
        fake.call_as(&[handle], group, 1, 0, &[(0, Vec::new())]);
        fake.came(handle).await
    };
    assert_eq!(with(&mut fake, 2, vec![kept.clone()]).await.number(), 1 << 20);
    assert_eq!(with(&mut fake, 2, vec![inline.clone()]).await.number(), 3);
    assert_eq!(with(&mut fake, 3, vec![inline.clone(), kept.clone(), inline.clone()]).await.number(), (1 << 20) + 6);
    assert_eq!(with(&mut fake, 3, Vec::new()).await.number(), 0);
    fake.control(scheduler_control::Body::Drop(DropObjects { group: vec![1], index: vec![4] }));
    // Control and data may overtake each other: what is dropped is gone sooner or later.
    let begin = Instant::now();
    let report = loop {
        match with(&mut fake, 3, vec![inline.clone(), kept.clone()]).await {
            Came::Report(report) => break report,
            _ => assert!(begin.elapsed() < Duration::from_secs(60), "it is dropped"),
        }
    };
    assert_eq!(report.class(), OutcomeClass::InputLost);
    assert_eq!((report.missing.len(), report.missing[0].index), (1, 4));
}

#[tokio::test]
async fn objects_of_peers_are_fetched_once_and_kept() {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, server) = peer(&directory);
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    fake.announce(&[("all", length(input_source::Select::All(true)), plain())]);
    announce_peer(&fake, 7, &server);
    let id = |index| ObjectId { run: 1, group: 9, index, attempt: 2 };
    for index in [3, 4] {
        let content = Content::from_bytes(vec![1; 300_000 + index as usize].into());
        store.insert(id(index), content, Keep::Origin).expect("there is room");
    }
    let object = |index: u32, capability| ObjectRef {
        index,
        attempt: 2,
        group: 9,
        size: 300_000 + u64::from(index),
        holders: vec![7],
        capability,
        ..ObjectRef::default()
    };
    // With the right that came with the dispatch, and with the worker's own.
    let both = vec![object(3, capability(id(3))), object(4, None)];
    assert_eq!(fake.run_reading(1, both.clone()).await.number(), 600_007);
    for index in [3, 4] {
        fake.until(|event| matches!(event, Event::Copied { group: 9, index: at } if *at == index)).await;
    }
    drop(server);
    assert_eq!(fake.run_reading(1, both).await.number(), 600_007, "the copies are here");
    let report = fake.run_reading(1, vec![object(5, capability(id(5)))]).await.report();
    assert_eq!((report.class(), report.missing.len()), (OutcomeClass::InputLost, 1), "{report:?}");
    assert!(report.message.contains("could not be had"), "{}", report.message);
}

#[tokio::test]
async fn what_another_worker_leaves_is_kept_until_it_is_dropped() {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, server) = peer(&directory);
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&["--object-memory", "8MiB"]).await;
    fake.announce(&[("bytes", process("bytes"), plain()), ("all", length(input_source::Select::All(true)), plain())]);
    announce_peer(&fake, 7, &server);
    let id = |index| ObjectId { run: 1, group: 9, index, attempt: 2 };
    let object = |index: u32| ObjectRef {
        index,
        attempt: 2,
        group: 9,
        size: 1 << 20,
        holders: vec![7],
        capability: capability(id(index)),
        ..ObjectRef::default()
    };
    for index in 0..4 {
        store.insert(id(index), Content::from_bytes(vec![1; 1 << 20].into()), Keep::Origin).expect("there is room");
    }
    // One of them is here already, because a call has read it.
    assert_eq!(fake.run_reading(2, vec![object(0)]).await.number(), 1 << 20);
    fake.data(scheduler_data::Body::Keep(KeepObjects { objects: (0..4).map(object).collect() }));
    for index in 0..4 {
        fake.until(|event| matches!(event, Event::Keeps { group: 9, index: at } if *at == index)).await;
    }
    // With nobody who has it, and without a right.
    let nowhere = ObjectRef { holders: vec![8], ..object(4) };
    let wrong = ObjectRef { capability: None, ..object(5) };
    fake.data(scheduler_data::Body::Keep(KeepObjects { objects: vec![nowhere, wrong] }));
    for index in [4, 5] {
        fake.until(|event| matches!(event, Event::KeepsNot { group: 9, index: at } if *at == index)).await;
    }
    // The holder leaves, memory runs short, and all of it is still here.
    drop(server);
    for index in 0..24 {
        assert!(matches!(fake.run_call(1, index, &(1u64 << 20).to_le_bytes()).await, Came::Kept(1_048_576)));
    }
    assert_eq!(fake.run_reading(2, (0..4).map(object).collect()).await.number(), 4 << 20);
    fake.data(scheduler_data::Body::Keep(KeepObjects { objects: vec![object(6)] }));
    fake.until(|event| matches!(event, Event::KeepsNot { group: 9, index: 6 })).await;
}

#[tokio::test]
async fn results_that_do_not_fit_are_spilled_and_read_back() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&["--object-memory", "8MiB"]).await;
    fake.announce(&[("bytes", process("bytes"), plain()), ("one", length(input_source::Select::Index(0)), plain())]);
    for index in 0..24 {
        assert!(matches!(fake.run_call(1, index, &(1u64 << 20).to_le_bytes()).await, Came::Kept(1_048_576)));
    }
    let spilled = |event: &Event| matches!(event, Event::Control(worker_control::Body::Heartbeat(beat)) if beat.spilled_bytes > 8 << 20 && !beat.paused);
    fake.until(spilled).await;
    for index in 0..24 {
        let object = ObjectRef { index, attempt: 1, size: 1 << 20, group: 1, ..ObjectRef::default() };
        assert_eq!(fake.run_reading(2, vec![object]).await.number(), 1 << 20);
    }
}

#[tokio::test]
async fn what_a_session_has_left_uncopied_can_be_had_for_a_while() {
    let directory = tempfile::tempdir().expect("a directory");
    let fetcher = Fetcher::start(FetcherOptions::new(SegmentPool::new(0))).expect("threads");
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    let Event::Hello(hello) = fake.until(|event| matches!(event, Event::Hello(_))).await else { unreachable!("asked for") };
    let groups = [("say", shell("echo said $SCALABLE_INDEX"), plain())];
    // The run's directory has no such mark: the worker does not see it.
    let elsewhere = AnnounceRun { mark: b"elsewhere".as_slice().into(), ..fake.run_announcement(&groups) };
    fake.announce_run(elsewhere.clone(), &groups);
    let report = fake.execute(1, 0).await;
    let fetch = async |name: &str| {
        let digest = Digest::from_slice(&report.logs[0].digest).expect("32 bytes");
        let key = ObjectKey::from_slice(&OBJECT_KEY).expect("32 bytes");
        let holders = vec![Holder { address: hello.peer_address.clone(), host: String::new() }];
        let capability = key.grant(digest.into(), now_ms() + 60_000);
        let part = directory.path().join(name);
        fetcher.fetch_file(FileRequest { digest, size: 7, holders, capability, part: part.clone() }).await.map(|()| part)
    };
    fake.break_connections(true);
    fake.attached().await;
    // What follows is done by the threads that would have removed it before.
    fake.announce_run(elsewhere, &groups);
    for index in 1..10 {
        assert_eq!(fake.execute(1, index).await.class(), OutcomeClass::Succeeded);
    }
    let part = fetch("log").await.expect("it is still there");
    assert_eq!(std::fs::read_to_string(part).expect("text"), "said 0\n");
}

#[tokio::test]
async fn a_program_comes_from_the_store_where_it_is_not_on_the_worker() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_store, server) = peer(&directory);
    let program = std::fs::read(std::env::current_exe().expect("it runs")).expect("read");
    let digest = Digest::of(&program);
    let blobs = BlobDirectory::open(directory.path().join("blobs"), 1 << 30).expect("a directory");
    blobs.put(digest, &Content::from_bytes(program.clone().into())).expect("there is room");
    let mut fake = Fake::start().await;
    fake.store_at(&server.address().to_string());
    let cache = directory.path().join("worker");
    let _worker = fake.ready(&["--directory", &cache.display().to_string()]).await;
    let mut template = process("add");
    let Some(task_template::Command::Function(function)) = &mut template.command else { unreachable!("it is one") };
    function.native = String::new();
    let path = "/nowhere/program".into();
    function.executable =
        Some(Executable { digest: digest.0.to_vec().into(), size: program.len() as u64, path, ..Executable::default() });
    fake.announce(&[("add", template, plain())]);
    assert_eq!(fake.run_call(1, 0, &two(2, 3)).await.number(), 5);
    let kept = cache.join("executables").join(digest.to_hex());
    assert_eq!(std::fs::metadata(kept).expect("kept").permissions().mode() & 0o777, 0o700);
}
