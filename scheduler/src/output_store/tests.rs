//! Tests of the output store: what becomes of copies when others fail and when their run is over.

#![allow(clippy::unwrap_used)]

use std::net::{TcpListener, TcpStream};

use scalable_core::ids::GroupId;

use super::*;

const RUN: RunId = RunId(1);

/// A store with a limit of 1000 bytes, of which 900 are taken, and the run that lies in `run`.
fn store(run: &Path) -> (OutputStore, mpsc::UnboundedReceiver<Told>) {
    let (store, told) = OutputStore::start(FileIndex::new(), ObjectKey::random().unwrap(), 1000, None).unwrap();
    store.begin(RUN, "run-1", run.to_owned(), [], true);
    (store, told)
}

/// A copy of one log of so many bytes.
fn copy(index: u32, size: u64, holders: Vec<Holder>) -> Box<Copy> {
    let log = v1::LogReport { stream: "stdout".to_owned(), digest: vec![7; 32].into(), size };
    Box::new(Copy {
        run: RUN,
        task: TaskRef { group: GroupId(1), index },
        attempt: 1,
        group: "g".to_owned(),
        published: PathBuf::from("outputs/g"),
        outputs: Vec::new(),
        logs: vec![log],
        holders,
    })
}

/// A holder that takes connections and says nothing: what is asked of it is on its way until it is dropped.
struct Silent {
    listener: TcpListener,
    asked: Option<TcpStream>,
}

impl Silent {
    fn new() -> Silent {
        Silent { listener: TcpListener::bind("127.0.0.1:0").unwrap(), asked: None }
    }

    fn holder(&self) -> Vec<Holder> {
        vec![Holder { address: self.listener.local_addr().unwrap().to_string(), host: "elsewhere".to_owned() }]
    }

    fn is_asked(&mut self) {
        self.asked = Some(self.listener.accept().unwrap().0);
    }
}

#[test]
fn what_did_not_fit_is_copied_when_another_copy_fails() {
    let directory = tempfile::tempdir().unwrap();
    let (store, mut told) = store(directory.path());
    // What fits beside nothing but itself, and is there already when its turn comes.
    fs::create_dir_all(directory.path().join("logs/g")).unwrap();
    fs::write(directory.path().join("logs/g/2.1.stdout"), [0; 500]).unwrap();
    let mut silent = Silent::new();
    store.copy(copy(1, 500, silent.holder()));
    silent.is_asked();
    store.copy(copy(2, 500, Vec::new()));
    assert!(matches!(told.blocking_recv(), Some(Told::Waits { task, .. }) if task.index == 2));
    assert_eq!(store.usage(), Usage { bytes: 500, limit: 1000, waiting: 1 });
    drop(silent);
    let mut heard = [told.blocking_recv().unwrap(), told.blocking_recv().unwrap()];
    heard.sort_by_key(|told| matches!(told, Told::Copied { .. }));
    assert!(matches!(&heard[0], Told::Failed { task, missing: true, .. } if task.index == 1), "{heard:?}");
    assert!(matches!(&heard[1], Told::Copied { task, .. } if task.index == 2), "{heard:?}");
    assert_eq!(store.usage(), Usage { bytes: 500, limit: 1000, waiting: 0 });
}

#[test]
fn what_waits_is_given_up_by_attempt_and_by_run() {
    let directory = tempfile::tempdir().unwrap();
    let (store, mut told) = store(directory.path());
    for index in 1..=3 {
        store.copy(copy(index, 901, Vec::new()));
        assert!(matches!(told.blocking_recv(), Some(Told::Waits { .. })));
    }
    let task = |index| TaskRef { group: GroupId(1), index };
    store.give_up(&[(task(1), 1), (task(2), 2)].into_iter().collect());
    assert_eq!(store.usage().waiting, 2, "the second attempt of task 2 is another one");
    store.end(RunId(2));
    assert_eq!(store.usage().waiting, 2);
    store.end(RUN);
    assert_eq!(store.usage().waiting, 0);
}

#[test]
fn a_forgotten_run_s_directory_goes_with_its_last_copy() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run-1");
    let (store, mut told) = store(&run);
    let mut silent = Silent::new();
    let mut copying = copy(1, 400, silent.holder());
    copying.logs.push(v1::LogReport { stream: "stderr".to_owned(), ..copying.logs[0].clone() });
    store.copy(copying);
    silent.is_asked();
    store.complete(RUN);
    assert!(matches!(store.listing("run-1", Instant::now()), Listing::Busy), "somebody writes there");
    store.forget(RUN);
    assert!(matches!(store.listing("run-1", Instant::now()), Listing::Unknown) && run.exists());
    drop(silent);
    assert!(matches!(told.blocking_recv(), Some(Told::Failed { .. })));
    assert!(!run.exists());
    assert_eq!(store.usage().bytes, 0);
}

#[test]
fn nothing_is_written_for_a_run_that_has_ended() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _told) = store(directory.path());
    let logs = directory.path().join("logs/g");
    fs::create_dir_all(&logs).unwrap();
    // Already there, so that each would be taken without being asked for.
    fs::write(logs.join("1.1.stdout"), [0; 5]).unwrap();
    let carried = |copy: &Copy| store.0.carry_out(copy, directory.path());
    assert!(carried(&copy(1, 5, Vec::new())).is_ok());
    store.end(RUN);
    assert!(matches!(carried(&copy(1, 5, Vec::new())), Err(Failure::Here(why)) if why.contains("over")));
}
