//! Pools that scale with their work, with real workers.

use nix::sys::signal::Signal;
use serde_json::json;
use tests::{Running, Sandbox, binary, until};

/// Windows so short that a test need not wait for them, and never longer than the test's own patience.
fn dials(minimum: u32, maximum: u32) -> String {
    json!({
        "minimum": minimum, "maximum": maximum, "target_duration_ms": 1000, "expected_duration_ms": 2000, "expected_start_ms": 500,
        "scale_down_delay_ms": 300, "idle_timeout_ms": 100, "scale_up_interval_ms": 100,
    })
    .to_string()
}

fn start_scheduler(sandbox: &Sandbox, scale: &str) -> (Running, String) {
    sandbox.token();
    let workers = json!({ "workers": 1, "milli_cpus": 1000, "pool": "local" }).to_string();
    let fixed = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--token-file", "token"];
    let scheduler = [&fixed[..], &["--local-workers", &workers, "--scale", scale]].concat();
    let scheduler = sandbox.start("scalable-scheduler", &scheduler);
    let address = scheduler.address();
    (scheduler, address)
}

/// A file that this test has for itself: tasks wait at it until it is dropped.
fn close_gate(sandbox: &Sandbox, name: &str) -> std::fs::File {
    let gate = std::fs::File::create(sandbox.path(name)).unwrap();
    gate.lock().unwrap();
    gate
}

fn start_driver(sandbox: &Sandbox, address: &str, gate: &str, tasks: &str) -> Running {
    let mut driver = sandbox.command(&binary("functions"));
    driver.args(["wait", &sandbox.path(gate).display().to_string(), tasks]);
    driver.env("SCALABLE_ADDRESS", address).env("SCALABLE_TOKEN_FILE", sandbox.path("token"));
    Running::start(driver, &sandbox.path("."), &format!("waits-at-{gate}"))
}

fn workers(sandbox: &Sandbox) -> Vec<i32> {
    sandbox.processes_of("scalable-worker").iter().map(|process| process.pid).collect()
}

#[test]
fn a_pool_grows_from_nothing_to_its_maximum_and_goes_back_to_nothing() {
    let sandbox = Sandbox::new();
    let (scheduler, address) = start_scheduler(&sandbox, &dials(0, 3));
    for round in 0..2 {
        let name = format!("gate-{round}");
        let gate = close_gate(&sandbox, &name);
        let driver = start_driver(&sandbox, &address, &name, "30");
        until("three workers to be there", || (workers(&sandbox).len() == 3).then_some(()));
        drop(gate);
        assert_eq!(driver.wait().expect(0).stdout, "435\n");
        until("every worker to be let go", || workers(&sandbox).is_empty().then_some(()));
    }
    let log = scheduler.stderr();
    assert!(log.contains("creates 3: 30 tasks queued"), "{log}");
    assert!(!log.contains("killed by"), "no worker is killed: {log}");
    scheduler.signal(Signal::SIGTERM);
    scheduler.wait();
    sandbox.nothing_is_left();
}

#[test]
fn what_a_worker_holds_alone_is_elsewhere_before_it_leaves() {
    let sandbox = Sandbox::new();
    let (scheduler, address) = start_scheduler(&sandbox, &dials(0, 3));
    let gate = close_gate(&sandbox, "gate");
    let mut driver = sandbox.command(&binary("functions"));
    let (here, behind) = (sandbox.path(".").display().to_string(), sandbox.path("gate").display().to_string());
    driver.args(["leave", &here, &behind, "30", "300000"]);
    driver.env("SCALABLE_ADDRESS", &address).env("SCALABLE_TOKEN_FILE", sandbox.path("token"));
    let driver = Running::start(driver, &sandbox.path("."), "driver");
    until("three workers to be there, each with a task", || {
        (workers(&sandbox).len() == 3 && sandbox.processes_of("functions").len() >= 4).then_some(())
    });
    drop(gate);
    until("everything to be made", || driver.stdout().lines().any(|line| line == "made").then_some(()));
    // Nobody wants a worker any more but for what it holds: one takes what all have, and the others go.
    let last = until("one worker to be left", || match workers(&sandbox)[..] {
        [last] => Some(last),
        _ => None,
    });
    sandbox.write("read now", "");
    assert_eq!(driver.wait().calm().expect(0).stdout, "made\ntrue\ntrue\n");
    // Until the driver's session is forgotten somebody might ask for them again.
    assert_eq!(workers(&sandbox), [last], "nothing was made or read elsewhere");
    let mut made: Vec<usize> = sandbox.lines("made").iter().map(|line| line.parse().unwrap()).collect();
    made.sort_unstable();
    assert_eq!(made, (0..30).collect::<Vec<_>>(), "each was made once");
    let log = scheduler.stderr();
    assert!(!log.contains("killed by") && !log.contains("lost"), "no worker is lost: {log}");
    scheduler.signal(Signal::SIGTERM);
    scheduler.wait();
    sandbox.nothing_is_left();
}

#[test]
fn a_busy_worker_is_never_let_go_and_one_that_dies_is_replaced() {
    let sandbox = Sandbox::new();
    let (scheduler, address) = start_scheduler(&sandbox, &dials(1, 3));
    let (long, short) = (close_gate(&sandbox, "long"), close_gate(&sandbox, "short"));
    let one = start_driver(&sandbox, &address, "long", "1");
    let first = until("the first worker", || workers(&sandbox).first().copied());
    until("the long task to execute", || (sandbox.processes_of("functions").len() > 1).then_some(()));
    let many = start_driver(&sandbox, &address, "short", "20");
    until("three workers to be there", || (workers(&sandbox).len() == 3).then_some(()));
    // One of the others dies with what it executes: it is replaced, and its task runs again.
    let victim = workers(&sandbox).into_iter().find(|pid| *pid != first).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    until("a worker in its place", || {
        let now = workers(&sandbox);
        (now.len() == 3 && !now.contains(&victim)).then_some(())
    });
    drop(short);
    assert_eq!(many.wait().expect(0).stdout, "190\n");
    until("all but the busy one to be let go", || (workers(&sandbox) == [first]).then_some(()));
    drop(long);
    assert_eq!(one.wait().expect(0).stdout, "0\n");
    scheduler.signal(Signal::SIGTERM);
    scheduler.wait();
    sandbox.nothing_is_left();
}
