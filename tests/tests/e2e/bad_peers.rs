//! Peers that are ours and do not do their part: transfers that are cut short or damaged, a worker whose disk is full, clients that come
//! and go by the thousand, and one that stops reading.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use scalable_proto::v1;
use scalable_proto::v1::control_service_client::ControlServiceClient;
use tests::{DEADLINE, Running, Sandbox, binary, until};

use crate::by_hand;
use crate::strangers::{channel, talking, with_token};

/// Starts the program of functions as a client.
fn driver(sandbox: &Sandbox, address: &str, name: &str, arguments: &[&str]) -> Running {
    let mut driver = sandbox.command(&binary("functions"));
    driver.args(arguments).env("SCALABLE_ADDRESS", address).env("SCALABLE_TOKEN_FILE", sandbox.path("token"));
    Running::start(driver, &sandbox.path("."), name)
}

fn worker(sandbox: &Sandbox, address: &str, more: &[&str]) -> Running {
    let mut arguments = vec!["--scheduler", address, "--token-file", "token", "--memory", "1G"];
    arguments.extend(more);
    sandbox.start("scalable-worker", &arguments)
}

#[track_caller]
fn stop(sandbox: &Sandbox, processes: impl IntoIterator<Item = Running>) {
    for process in processes {
        process.signal(Signal::SIGTERM);
        process.wait().calm();
    }
    sandbox.nothing_is_left();
}

/// Memory that a process has now.
fn resident_bytes(process: &Running) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", process.pid())).unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).unwrap().unwrap() as u64
}

/// What a [`Relay`] has done to connections.
#[derive(Default)]
struct Faults {
    damaged: AtomicU32,
    cut: AtomicU32,
}

/// How far into a connection something happens to it: in the middle of an object.
const INTO: usize = 1_500_000;

/// Stands between a worker's data port and its peers. Of the connections that carry much the first is damaged, the second cut, and so
/// on with the next pair; then all is well.
fn relay(listener: TcpListener, to: String, pairs: u32) -> Arc<Faults> {
    let faults = Arc::new(Faults::default());
    let shared = faults.clone();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, faults) = (client.unwrap(), shared.clone());
            let server = TcpStream::connect(&to).unwrap();
            let (from_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || pass(from_client, to_server, |_, _| true));
            std::thread::spawn(move || {
                let mut fate = None;
                pass(server, client, |passed, bytes| {
                    if passed + bytes.len() <= INTO {
                        return true;
                    }
                    match *fate.get_or_insert_with(|| faults.next(pairs)) {
                        Fate::Cut => return false,
                        Fate::Damaged if passed <= INTO => bytes[INTO - passed] ^= 1,
                        Fate::Damaged | Fate::Whole => {}
                    }
                    true
                });
            });
        }
    });
    faults
}

#[derive(Clone, Copy)]
enum Fate {
    Damaged,
    Cut,
    Whole,
}

impl Faults {
    fn next(&self, pairs: u32) -> Fate {
        let take = |count: &AtomicU32| {
            count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < pairs).then_some(count + 1)).is_ok()
        };
        let cut_next = self.cut.load(Ordering::Relaxed) < self.damaged.load(Ordering::Relaxed);
        match cut_next {
            true if take(&self.cut) => Fate::Cut,
            false if take(&self.damaged) => Fate::Damaged,
            _ => Fate::Whole,
        }
    }
}

/// Hands on what comes, until `change` says that it is enough.
fn pass(mut from: TcpStream, mut to: TcpStream, mut change: impl FnMut(usize, &mut [u8]) -> bool) {
    let (mut buffer, mut passed) = (vec![0; 64 << 10], 0);
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let bytes = &mut buffer[..read];
        if !change(passed, bytes) || to.write_all(bytes).is_err() {
            break;
        }
        passed += read;
    }
    // Either may be closed already.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[test]
fn transfers_that_are_damaged_or_cut_short_are_noticed_and_had_anew() {
    const OBJECTS: usize = 4;
    let sandbox = Sandbox::new();
    sandbox.token();
    let (scheduler, address) = by_hand::scheduler(&sandbox);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let advertised = listener.local_addr().unwrap().to_string();
    // Free now; whoever takes it before the worker does makes that say so and this test fail.
    let own = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let faults = relay(listener, own.clone(), 2);
    let maker =
        worker(&sandbox, &address, &["--cpus", "1", "--peer-address", &own, "--advertise", &advertised, "--no-short-cuts"]);
    let directory = sandbox.path(".").display().to_string();
    let client = driver(&sandbox, &address, "driver", &["lose", &directory, &OBJECTS.to_string(), "3000000"]);
    until("everything to be made", || client.stdout().lines().any(|line| line == "made").then_some(()));
    let reader = worker(&sandbox, &address, &["--cpus", "2", "--no-short-cuts"]);
    for gate in ["go on", "read now"] {
        sandbox.write(gate, "");
    }
    let finished = client.wait().calm().expect(0);
    assert_eq!(finished.stdout.lines().collect::<Vec<_>>(), ["made", "true", "true"]);
    let (damaged, cut) = (faults.damaged.load(Ordering::Relaxed), faults.cut.load(Ordering::Relaxed));
    assert!(damaged > 0 && cut > 0, "{damaged} connections were damaged and {cut} cut");
    let made = sandbox.lines("made").len();
    // Each fault may cost what was on its way then, which is made again.
    assert!((OBJECTS..=OBJECTS * 5).contains(&made), "{OBJECTS} objects were made {made} times");
    stop(&sandbox, [reader, maker, scheduler]);
}

#[test]
fn a_worker_whose_disk_is_full_while_it_spills_loses_nothing_and_another_goes_on() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can give a process a small disk of its own");
        return;
    }
    let sandbox = Sandbox::new();
    let token = sandbox.token();
    let (scheduler, address) = by_hand::scheduler(&sandbox);
    std::fs::create_dir(sandbox.path("small")).unwrap();
    let small = sandbox.path("small").display().to_string();
    let script = format!("mount -t tmpfs -o size=512k none '{small}' && exec \"$0\" \"$@\"");
    let mut command = sandbox.command(Path::new("unshare"));
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]).arg(binary("scalable-worker"));
    command.args(["--scheduler", &address, "--token-file", "token", "--cpus", "1", "--memory", "1G", "--name", "full"]);
    command.args(["--directory", &small, "--object-memory", "4MiB"]);
    let full = Running::start(command, &sandbox.path("."), "full");
    // Six megabytes, of which three fit into its memory before it starts nothing more, and half a one onto its disk.
    let client = driver(&sandbox, &address, "driver", &["objects", "20", "300000"]);
    talking(async {
        let mut control = ControlServiceClient::new(channel(&address).await);
        let why = v1::ExplainRequest { group: "fill".to_owned(), index: 19, ..Default::default() };
        let full = "has its memory full of results and no room for more on its disk";
        // Not there yet at first.
        while !control
            .explain(with_token(why.clone(), Some(&token)))
            .await
            .is_ok_and(|reply| reply.into_inner().sentence.contains(full))
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let other = worker(&sandbox, &address, &["--cpus", "1"]);
    let finished = client.wait().calm().expect(0);
    assert_eq!(finished.stdout.lines().collect::<Vec<_>>(), ["true", "true"]);
    let said = full.stderr();
    assert!(!full.ended() && said.contains("small/objects: No space left on device"), "{said}");
    stop(&sandbox, [full, other, scheduler]);
}

#[test]
fn sessions_that_come_and_go_leave_nothing_behind() {
    // The last thousand runs are kept, and a session without a connection for a minute: with that the scheduler is as large as it gets.
    let (half, at_once) = (if tests::long() { 5_000 } else { 1_000 }, 4);
    let sandbox = Sandbox::new();
    sandbox.token();
    let (scheduler, address) = by_hand::scheduler(&sandbox);
    let worker = worker(&sandbox, &address, &["--cpus", "1"]);
    let each = (half / at_once).to_string();
    let measured = [(); 2].map(|()| {
        let client = |nth| driver(&sandbox, &address, &format!("driver-{nth}"), &["sessions", &each]);
        for client in (0..at_once).map(client).collect::<Vec<Running>>() {
            assert_eq!(client.wait_within(4 * DEADLINE).calm().expect(0).stdout, "2\n");
        }
        resident_bytes(&scheduler)
    });
    // What is kept of a session for that minute.
    let most = measured[0] + half as u64 * (4 << 10);
    assert!(measured[1] <= most, "{measured:?} bytes after {half} sessions and after as many more");
    stop(&sandbox, [worker, scheduler]);
}

#[test]
fn a_client_that_stops_reading_holds_up_nobody_and_goes_on_where_it_was() {
    const TASKS: u64 = 15_000;
    const BYTES: u64 = 30_000;
    let sandbox = Sandbox::new();
    let token = sandbox.token();
    let (scheduler, address) = by_hand::scheduler(&sandbox);
    let worker = worker(&sandbox, &address, &["--cpus", "2"]);
    let stopped = driver(&sandbox, &address, "stopped", &["flood", &TASKS.to_string(), &BYTES.to_string()]);
    until("its first results", || stopped.stdout().contains("begun").then_some(()));
    stopped.signal(Signal::SIGSTOP);
    talking(async {
        let mut control = ControlServiceClient::new(channel(&address).await);
        loop {
            let ready = v1::ListTasksRequest { states: vec!["ready".to_owned()], limit: 1, ..Default::default() };
            let found = control.list_tasks(with_token(ready, Some(&token))).await.unwrap().into_inner().tasks;
            if let Some(v1::TaskStatus { group, index, .. }) = found.into_iter().next() {
                let why = v1::ExplainRequest { group, index, ..Default::default() };
                let said = control.explain(with_token(why, Some(&token))).await.unwrap().into_inner().sentence;
                if said.contains("its client does not read its results") {
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let held = resident_bytes(&scheduler);
    let other = driver(&sandbox, &address, "other", &["results"]).wait_within(2 * DEADLINE).calm().expect(0);
    assert_eq!(other.stdout.lines().next(), Some("3 5 6 75"));
    // The window, what was under way when it was full, both as it came and as it goes: much less than all results.
    assert!(held < TASKS * BYTES / 2, "the scheduler has {held} bytes of {}", TASKS * BYTES);
    stopped.signal(Signal::SIGCONT);
    // It has half a gigabyte to take.
    let finished = stopped.wait_within(4 * DEADLINE).calm().expect(0);
    assert_eq!(finished.stdout.lines().last(), Some(format!("{TASKS} {TASKS}").as_str()));
    stop(&sandbox, [worker, scheduler]);
}
