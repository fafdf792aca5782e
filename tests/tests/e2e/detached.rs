//! Runs that go on without a command line.

use nix::sys::signal::Signal;
use tests::{Run, Sandbox, until};

const GATED: &str = r#"
targets: { local: { provider: local, max_workers: 2 } }
tasks:
  work:
    foreach: { n: { range: [0, 4] } }
    command: ["PROBE", gate, "HERE/notes", "{n}", "HERE/gate"]
"#;

fn detach(sandbox: &Sandbox) -> Run {
    sandbox.manifest(GATED);
    let finished = sandbox.scalable(&["run", "--detach"]).expect(0);
    let run = sandbox.last_run();
    finished.says(&[&run.name(), "attach"]);
    sandbox.line("notes", "start ");
    run
}

#[test]
fn detach_attach_and_end() {
    let sandbox = Sandbox::new();
    let run = detach(&sandbox);
    sandbox.scalable(&["status"]).expect(0).says(&[&run.name(), "work"]);
    sandbox.scalable(&["explain", "work[0]"]).expect(0).says(&["running"]);
    let attached = sandbox.start("scalable", &["attach", &run.name()]);
    // Somebody who watches may go away.
    let other = sandbox.start("scalable", &["attach"]);
    until("the second watcher to say something", || (!other.stderr().is_empty()).then_some(()));
    other.signal(Signal::SIGKILL);
    other.wait();
    sandbox.write("gate", "");
    attached.wait().calm().expect(0);
    assert_eq!(run.tasks().len(), 4);
    sandbox.nothing_is_left();
    sandbox.scalable(&["attach", &run.name()]).expect(0);
}

#[test]
fn detached_and_never_seen_again() {
    let sandbox = Sandbox::new();
    let run = detach(&sandbox);
    sandbox.write("gate", "");
    sandbox.nothing_is_left();
    assert_eq!(run.document("run.json")["status"], "completed");
    assert_eq!(run.states().iter().filter(|line| line.ends_with("succeeded")).count(), 4);
    sandbox.scalable(&["status"]).expect(0).says(&[&run.name()]);
}

#[test]
fn cancelled_by_somebody_else() {
    let sandbox = Sandbox::new();
    let run = detach(&sandbox);
    let attached = sandbox.start("scalable", &["attach"]);
    until("the watcher to say something", || (!attached.stderr().is_empty()).then_some(()));
    sandbox.scalable(&["cancel", &run.name()]).expect(0);
    attached.wait().calm().expect(1).says(&["cancel"]);
    sandbox.nothing_is_left();
    assert!(run.states().iter().all(|line| line.ends_with("cancelled")), "{:?}", run.states());
}

#[test]
fn one_task_cancelled() {
    let sandbox = Sandbox::new();
    let run = detach(&sandbox);
    sandbox.scalable(&["cancel", &format!("{}/work[0]", run.name())]).expect(0);
    sandbox.write("gate", "");
    sandbox.nothing_is_left();
    assert_eq!(run.task("work[0]")["state"], "cancelled");
    assert_eq!(run.states().iter().filter(|line| line.ends_with("succeeded")).count(), 3);
}
