//! Large arrays are ranges: what they cost does not grow with their length.

use serde_json::Value;
use tests::{Sandbox, until};

#[test]
fn ten_million_elements_are_planned_in_bounded_memory() {
    let sandbox = Sandbox::new();
    sandbox.manifest(
        r#"
targets: { local: { provider: local } }
tasks:
  many:
    foreach: { a: { range: [0, 100] }, b: { range: [0, 100000] } }
    command: ["true", "{a}", "{b}"]
  after:
    foreach: { a: { range: [0, 100] }, b: { range: [0, 100000] } }
    depends_on: [many]
    command: ["true", "{a}", "{b}"]
"#,
    );
    for command in ["validate", "plan"] {
        let finished = sandbox.scalable(&[command]).expect(0);
        assert!(finished.peak_bytes < 64 << 20, "{command}: {} bytes", finished.peak_bytes);
        assert!(finished.stdout.len() < 100_000, "{command}: {} bytes are written", finished.stdout.len());
    }
    let finished = sandbox.scalable(&["plan"]).expect(0);
    let digits: String = finished.stdout.chars().filter(|c| !matches!(c, ',' | '_' | '\u{202f}')).collect();
    assert!(digits.contains("10000000"), "{}", finished.stdout);
}

#[test]
fn more_than_a_run_can_hold_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.manifest(
        "targets: { local: { provider: local } }\ntasks:\n  many: { command: [\"true\"], foreach: { a: { range: [0, 70000] }, b: { range: [0, 70000] } } }\n",
    );
    sandbox.scalable(&["run"]).expect(2).says(&["many", "134"]);
}

/// A group of `tasks` behind a gate: submitted, listed, explained and cancelled; how much larger the scheduler has become.
fn submitted_and_cancelled(tasks: u64) -> u64 {
    let sandbox = Sandbox::new();
    sandbox.token();
    let (scheduler, address) = super::by_hand::scheduler(&sandbox);
    let idle = resident(scheduler.pid());
    sandbox.manifest(&format!(
        r#"
targets: {{ local: {{ provider: local }} }}
tasks:
  many:
    foreach: {{ a: {{ range: [0, {tasks}] }} }}
    command: ["true"]
"#
    ));
    let connect = ["--address", address.as_str(), "--token-file", "token"];
    let run = sandbox.start("scalable", &[&["run"], connect.as_slice()].concat());
    until("the run to be queued", || {
        let status = sandbox.start("scalable", &[&["status", "-o", "json"], connect.as_slice()].concat()).wait();
        let document: Value = serde_json::from_str(&status.stdout).ok()?;
        document.to_string().contains(&format!("\"tasks\":{tasks}")).then_some(())
    });
    let run_name = sandbox.last_run().name();
    // No worker: it waits, and says why.
    sandbox.scalable(&["explain", &format!("many[{}]", tasks - 1), "--run", &run_name]).expect(0).says(&["worker"]);
    let grown = resident(scheduler.pid()).saturating_sub(idle);
    sandbox.scalable(&["cancel", &run_name]).expect(0);
    run.wait().calm().expect(1);
    let lines =
        std::fs::read_to_string(sandbox.last_run().directory.join("tasks.jsonl")).unwrap_or_default().lines().count() as u64;
    if tasks > 1_000_000 {
        assert!(lines < 1_000_000, "above a million tasks only failures are listed: {lines}");
        assert_eq!(sandbox.last_run().document("run.json")["tasks_recorded"], "failures");
    } else {
        assert_eq!(lines, tasks);
    }
    grown
}

fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_million_tasks_wait_in_little_memory() {
    // One more than is listed task by task: what is measured here is waiting, not the writing of a million lines.
    let grown = submitted_and_cancelled(1_000_001);
    assert!(grown < 64 << 20, "{grown} bytes above idle");
}

#[test]
fn every_task_of_a_cancelled_run_is_listed() {
    submitted_and_cancelled(20_000);
}

#[test]
fn ten_million_tasks_wait_in_little_memory() {
    if !tests::long() {
        return;
    }
    let grown = submitted_and_cancelled(10_000_000);
    assert!(grown < 64 << 20, "{grown} bytes above idle");
}
