//! Scheduler and workers started by hand, in "terminals" of their own.

use tests::{Running, Sandbox, plain};

/// Starts a scheduler on any free port with the token in `token`, and returns it with its address.
pub fn scheduler(sandbox: &Sandbox) -> (Running, String) {
    let (running, address, _) = scheduler_and_monitoring(sandbox);
    (running, address)
}

/// As [`scheduler`], with the address that people and monitoring use behind.
pub fn scheduler_and_monitoring(sandbox: &Sandbox) -> (Running, String, String) {
    let running =
        sandbox.start("scalable-scheduler", &["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--token-file", "token"]);
    let said = running.ready();
    (running, plain(&said["address"]), plain(&said["http"]))
}

#[test]
fn two_terminals() {
    let sandbox = Sandbox::new();
    sandbox.token();
    let (scheduler, address) = scheduler(&sandbox);
    let worker =
        sandbox.start("scalable-worker", &["--scheduler", &address, "--token-file", "token", "--cpus", "2", "--memory", "1G"]);
    sandbox.manifest(
        r#"
targets: { local: { provider: local } }
tasks:
  simulate:
    foreach: { n: { range: [0, 10] } }
    command: ["PROBE", write, "{outputs.value}", "{n}"]
    outputs: { value: file }
"#,
    );
    for _ in 0..2 {
        sandbox.scalable(&["run", "--address", &address, "--token-file", "token"]).expect(0);
        assert_eq!(sandbox.last_run().output("simulate/n=7/value"), "7");
    }
    // They are the user's: a run that ends leaves them alone.
    for program in ["scalable-scheduler", "scalable-worker"] {
        assert_eq!(sandbox.processes_of(program).len(), 1, "{program}");
    }
    worker.signal(nix::sys::signal::Signal::SIGTERM);
    worker.wait().calm().expect(0);
    scheduler.signal(nix::sys::signal::Signal::SIGTERM);
    scheduler.wait().calm();
    sandbox.nothing_is_left();
}
