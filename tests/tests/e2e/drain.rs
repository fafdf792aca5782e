//! SIGTERM to a worker is a drain: what it has is finished or handed back, and nobody is charged for it.

use nix::sys::signal::Signal;
use tests::{Running, Sandbox, until};

const ONE_TASK: &str = r#"
targets: { local: { provider: local } }
tasks:
  long:
    command: [sh, -c, "PROBE gate HERE/notes long HERE/gate && PROBE write {outputs.value} done"]
    outputs: { value: file }
"#;

/// A worker with room for one task, which it gives back soon after it was told to leave.
fn worker(sandbox: &Sandbox, address: &str) -> Running {
    let arguments =
        ["--scheduler", address, "--token-file", "token", "--cpus", "1", "--memory", "1G", "--drain-deadline", "100ms"];
    sandbox.start("scalable-worker", &arguments)
}

#[test]
fn ten_sigterms_of_the_worker_with_the_task() {
    let sandbox = Sandbox::new();
    sandbox.token();
    let (_scheduler, address) = super::by_hand::scheduler(&sandbox);
    sandbox.manifest(ONE_TASK);
    let run = sandbox.start("scalable", &["run", "--address", &address, "--token-file", "token"]);
    let started = |times: usize| {
        until("the next start of the task", || {
            (sandbox.lines("notes").iter().filter(|line| line.starts_with("start ")).count() == times).then_some(())
        });
    };
    for times in 1..=10 {
        let worker = worker(&sandbox, &address);
        started(times);
        worker.signal(Signal::SIGTERM);
        worker.wait().calm().expect(0);
    }
    let _last = worker(&sandbox, &address);
    started(11);
    sandbox.write("gate", "");
    run.wait().calm().expect(0);
    let run = sandbox.last_run();
    let task = run.task("long[0]");
    assert_eq!(
        (task["state"].as_str(), task["attempt"].as_u64()),
        (Some("succeeded"), Some(11)),
        "charged for none of them: {task:#}"
    );
    assert_eq!(run.output("long/value"), "done");
}

/// An attempt that a worker gives back is none of the task's retries, and what the next one says is what counts.
#[test]
fn submit_prints_what_the_attempt_that_succeeded_has_said() {
    let sandbox = Sandbox::new();
    sandbox.token();
    let (_scheduler, address) = super::by_hand::scheduler(&sandbox);
    let script = "echo started; echo started >> notes; until [ -e gate ]; do sleep 0.05; done; echo done";
    let first = worker(&sandbox, &address);
    let submit = sandbox.start("scalable", &["submit", "--address", &address, "--token-file", "token", "--", "sh", "-c", script]);
    let started = |times: usize| until("the next start", || (sandbox.lines("notes").len() == times).then_some(()));
    started(1);
    first.signal(Signal::SIGTERM);
    first.wait().calm().expect(0);
    let _second = worker(&sandbox, &address);
    started(2);
    sandbox.write("gate", "");
    assert_eq!(submit.wait().calm().expect(0).stdout, "started\ndone\n");
}

#[test]
fn a_worker_that_drains_finishes_what_it_has() {
    let sandbox = Sandbox::new();
    sandbox.token();
    let (_scheduler, address) = super::by_hand::scheduler(&sandbox);
    let worker = sandbox.start(
        "scalable-worker",
        &["--scheduler", &address, "--token-file", "token", "--cpus", "1", "--memory", "1G", "--drain-deadline", "10m"],
    );
    sandbox.manifest(ONE_TASK);
    let run = sandbox.start("scalable", &["run", "--address", &address, "--token-file", "token"]);
    sandbox.line("notes", "start long");
    // More than one: none after the first may do anything else.
    for _ in 0..10 {
        worker.signal(Signal::SIGTERM);
    }
    until("the scheduler to know", || {
        let status = sandbox.start("scalable", &["status", "-o", "json", "--address", &address, "--token-file", "token"]).wait();
        status.stdout.to_lowercase().contains("draining").then_some(())
    });
    sandbox.write("gate", "");
    run.wait().calm().expect(0);
    worker.wait().calm().expect(0);
    assert_eq!(sandbox.last_run().task("long[0]")["attempt"], 1);
}
