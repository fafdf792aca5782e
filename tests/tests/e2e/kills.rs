//! Processes that are killed or stopped from outside, each at the worst moment: with a task on it.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::{Sandbox, until};

/// The number behind `pid=` of a note.
fn pid(note: &str) -> i32 {
    let digits = note.split("pid=").nth(1).unwrap().split(' ').next().unwrap();
    digits.parse().unwrap()
}

/// Notes of one event of one task, in order.
fn notes_of(sandbox: &Sandbox, event: &str, name: &str) -> Vec<String> {
    let begin = format!("{event} {name} ");
    sandbox.lines("notes").into_iter().filter(|line| line.starts_with(&begin)).collect()
}

fn alive(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None).is_ok()
        && std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Four tasks on two workers; the first start of each waits for the gate, later ones do not. What it writes is which start it was.
const GATED: &str = r#"
targets: { local: { provider: local, max_workers: 2 } }
tasks:
  work:
    foreach: { n: { range: [0, 4] } }
    command: ["PROBE", gate-first, "HERE/notes", "{n}", "HERE/gate", "{outputs.value}"]
    outputs: { value: file }
"#;

#[test]
fn a_worker_killed_in_the_middle_of_a_task() {
    let sandbox = Sandbox::new();
    sandbox.manifest(GATED);
    let running = sandbox.start("scalable", &["run"]);
    let note = sandbox.line("notes", "start ");
    let (task, name) = (pid(&note), note.split(' ').nth(1).unwrap().to_owned());
    let worker = sandbox.worker_of(task);
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();

    let again = until("the second start", || notes_of(&sandbox, "start", &name).into_iter().nth(1));
    assert!(!alive(task), "no task outlives its agent: {task} is alive while {again} runs");
    sandbox.write("gate", "");
    running.wait().calm().expect(0);

    let run = sandbox.last_run();
    assert_eq!(run.tasks().len(), 4, "one line a task");
    let id = format!("work[{name}]");
    assert_eq!(run.task(&id)["state"], "succeeded");
    assert!(run.task(&id)["attempt"].as_u64() >= Some(2));
    assert_eq!(run.output(&format!("work/n={name}/value")), "2", "the result is that of the attempt that was committed");
    assert_eq!(run.outputs().len(), 4);
    sandbox.nothing_is_left();
}

#[test]
fn a_worker_that_is_stopped_and_comes_back() {
    let sandbox = Sandbox::new().short_leases();
    // Room for everything on either worker: the one that is stopped is not replaced while it is there.
    sandbox.manifest(&GATED.replace("max_workers: 2", "max_workers: 2, threads_per_worker: 4"));
    let running = sandbox.start("scalable", &["run"]);
    let note = sandbox.line("notes", "start ");
    let (task, name) = (pid(&note), note.split(' ').nth(1).unwrap().to_owned());
    let worker = sandbox.worker_of(task);
    kill(Pid::from_raw(worker), Signal::SIGSTOP).unwrap();

    // Silent for longer than its lease: somebody else gets the task and finishes it.
    until("the second start's end", || notes_of(&sandbox, "end", &name).pop());
    // Now the old one finishes too, and its agent wakes up and wants to report.
    sandbox.write("gate", "");
    if alive(worker) {
        let _ = kill(Pid::from_raw(worker), Signal::SIGCONT);
    }
    running.wait().calm().expect(0);
    let run = sandbox.last_run();
    assert_eq!(run.tasks().len(), 4);
    assert!(run.task(&format!("work[{name}]"))["attempt"].as_u64() >= Some(2));
    assert_eq!(run.output(&format!("work/n={name}/value")), "2", "the late result commits nothing");
    sandbox.nothing_is_left();
}

#[test]
fn a_task_that_kills_its_workers_is_found() {
    let sandbox = Sandbox::new();
    sandbox.manifest(
        r#"
targets: { local: { provider: local, max_workers: 2 } }
tasks:
  poison:
    command: [sh, -c, "echo attempt >> HERE/notes; kill -9 $PPID; sleep 1000"]
  neighbours:
    foreach: { n: { range: [0, 20] } }
    command: ["PROBE", nothing]
"#,
    );
    sandbox.scalable(&["run"]).expect(1);
    let run = sandbox.last_run();
    let poison = run.task("poison[0]");
    assert_eq!(poison["state"], "failed", "{poison:#}");
    assert!(matches!(poison["error_type"].as_str(), Some("lost_worker" | "poison")), "{poison:#}");
    let neighbours =
        run.states().into_iter().filter(|line| line.starts_with("neighbours") && line.ends_with("succeeded")).count();
    assert_eq!(neighbours, 20, "they are not blamed");
    assert!((2..=5).contains(&sandbox.lines("notes").len()), "{:?}", sandbox.lines("notes"));
    sandbox.nothing_is_left();
}

#[test]
fn the_command_line_killed() {
    let sandbox = Sandbox::new();
    sandbox.manifest(GATED);
    let running = sandbox.start("scalable", &["run"]);
    sandbox.line("notes", "start ");
    assert!(!sandbox.processes_of("scalable-scheduler").is_empty() && !sandbox.processes_of("scalable-worker").is_empty());
    running.signal(Signal::SIGKILL);
    assert_eq!(running.wait().code, 128 + 9);
    sandbox.nothing_is_left();
    let run = sandbox.last_run();
    assert_eq!(run.document("run.json")["status"], "cancelled");
}

#[test]
fn the_scheduler_killed() {
    let sandbox = Sandbox::new();
    sandbox.manifest(GATED);
    let running = sandbox.start("scalable", &["run"]);
    sandbox.line("notes", "start ");
    let scheduler = sandbox.processes_of("scalable-scheduler").pop().expect("a scheduler");
    kill(Pid::from_raw(scheduler.pid), Signal::SIGKILL).unwrap();
    running.wait().calm().expect(3).says(&["scheduler"]);
    sandbox.nothing_is_left();
}

#[track_caller]
fn ended_by(signal: Signal, code: i32) {
    let sandbox = Sandbox::new();
    sandbox.manifest(GATED);
    let running = sandbox.start("scalable", &["run"]);
    sandbox.line("notes", "start ");
    running.signal(signal);
    running.wait().calm().expect(code);
    sandbox.nothing_is_left();
    let run = sandbox.last_run();
    assert_eq!(run.document("run.json")["status"], "cancelled");
    assert_eq!(run.tasks().len(), 4, "a line for every task");
    assert!(run.states().iter().all(|line| line.ends_with("cancelled")), "{:?}", run.states());
    run.document("summary.json");
    let ends = sandbox.lines("notes").into_iter().filter(|line| line.starts_with("end ")).count();
    assert_eq!(ends, 0, "nobody went through the gate");
}

#[test]
fn sigint_cancels() {
    ended_by(Signal::SIGINT, 130);
}

#[test]
fn sigterm_cancels() {
    ended_by(Signal::SIGTERM, 143);
}

#[test]
fn sighup_cancels_what_cannot_outlive_it() {
    ended_by(Signal::SIGHUP, 129);
}
