//! A command that drives a cluster which `scalable run --workflow` starts for it.

use nix::sys::signal::Signal;
use tests::{Sandbox, until};

const MANIFEST: &str = r#"
targets: { local: { provider: local, max_workers: 1 } }
tasks:
  never: { command: ["PROBE", touch, "HERE/ran"] }
"#;

fn drive(sandbox: &Sandbox, script: &str) -> tests::Running {
    sandbox.start("scalable", &["run", "--target", "local", "--workflow", "--", "sh", "-c", script])
}

#[test]
fn its_exit_code_is_the_runs_and_it_finds_the_cluster_in_its_environment() {
    let sandbox = Sandbox::new();
    sandbox.manifest(MANIFEST);
    let script = format!(
        "set -e; '{}' submit -- echo worked > said; echo $SCALABLE_TARGET $SCALABLE_RUN > where; exit 7",
        tests::binary("scalable").display()
    );
    drive(&sandbox, &script).wait().expect(7);
    assert_eq!(sandbox.read("said"), "worked\n");
    let said = sandbox.read("where");
    let name = said.trim_end().strip_prefix("local ").unwrap_or_else(|| panic!("{said:?}"));
    assert!(sandbox.runs().iter().any(|run| run.name() == name), "{name} is no run's name");
    assert!(!sandbox.path("ran").exists(), "the manifest's tasks are the driver's business");
    sandbox.nothing_is_left();
}

#[test]
fn a_driver_that_a_signal_ends_says_so_and_nothing_is_left() {
    let sandbox = Sandbox::new();
    sandbox.manifest(MANIFEST);
    let running = drive(&sandbox, "echo up > up; exec sleep 600");
    sandbox.line("up", "up");
    running.signal(Signal::SIGTERM);
    running.wait().expect(128 + 15);
    sandbox.nothing_is_left();
}

#[test]
fn a_cluster_that_ends_first_is_exit_code_3() {
    let sandbox = Sandbox::new();
    sandbox.manifest(MANIFEST);
    let running = drive(&sandbox, "echo up > up; exec sleep 600");
    sandbox.line("up", "up");
    let scheduler = until("the scheduler's process", || sandbox.processes_of("scalable-scheduler").pop());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(scheduler.pid), Signal::SIGKILL).unwrap();
    running.wait().expect(3);
    sandbox.nothing_is_left();
}

#[test]
fn a_driver_that_cannot_be_started_is_a_usage_error() {
    let sandbox = Sandbox::new();
    sandbox.manifest(MANIFEST);
    let finished = sandbox.scalable(&["run", "--target", "local", "--workflow", "--", "./no-such-driver"]);
    finished.expect(2).says(&["the driver ./no-such-driver cannot be started"]);
    sandbox.nothing_is_left();
}
