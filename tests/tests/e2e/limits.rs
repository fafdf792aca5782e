//! Limits that tasks run into: time and memory.

use tests::Sandbox;

#[test]
fn a_task_that_forks_and_does_not_listen() {
    let sandbox = Sandbox::new();
    sandbox.manifest(
        r#"
targets: { local: { provider: local, max_workers: 2 } }
tasks:
  deaf:
    command: ["PROBE", deaf, "HERE/notes"]
    timeout: 1s
  beside:
    command: ["PROBE", nothing]
"#,
    );
    sandbox.scalable(&["run"]).expect(1);
    assert_eq!(sandbox.lines("notes").iter().filter(|line| line.starts_with("child ")).count(), 2);
    let run = sandbox.last_run();
    assert_eq!(run.states(), ["beside[0] succeeded", "deaf[0] failed"]);
    let task = run.task("deaf[0]");
    assert_eq!(task["error_type"], "timeout", "{task:#}");
    // Neither the one in the task's group nor the one that had left it.
    sandbox.nothing_is_left();
}

#[test]
fn a_child_left_behind_keeps_nobody_waiting() {
    let sandbox = Sandbox::new();
    sandbox.manifest(
        r#"
targets: { local: { provider: local } }
tasks:
  leaving:
    command: ["PROBE", leave, "HERE/notes"]
"#,
    );
    sandbox.scalable(&["run"]).expect(0);
    assert_eq!(sandbox.last_run().states(), ["leaving[0] succeeded"]);
    sandbox.nothing_is_left();
}

/// Runs a task that fills memory beside others, on a worker that enforces limits by `how`, and returns how it was measured.
fn too_much_memory(how: &str) -> String {
    let sandbox = Sandbox::new();
    sandbox.token();
    let (_scheduler, address) = super::by_hand::scheduler(&sandbox);
    let connect = ["--address", &address, "--token-file", "token"];
    let _worker =
        sandbox.start("scalable-worker", &[&connect[..], &["--cpus", "2", "--memory", "2G", "--memory-limit", how]].concat());
    sandbox.manifest(
        r#"
targets: { local: { provider: local, threads_per_worker: 2 } }
tasks:
  hog:
    command: ["PROBE", hog, "1500000000"]
    memory: 100M
    on_oom: { factor: 1.2, max: 120M }
  beside:
    foreach: { n: { range: [0, 4] } }
    command: ["PROBE", nothing]
    memory: 100M
"#,
    );
    sandbox.scalable(&[&["run"], &connect[..]].concat()).expect(1).says(&["hog[0]", "memory"]);
    let run = sandbox.last_run();
    let hog = run.task("hog[0]");
    assert_eq!(hog["error_type"], "oom", "{hog:#}");
    let (limit, peak) = (hog["memory_limit_bytes"].as_u64().unwrap(), hog["peak_memory_bytes"].as_u64().unwrap());
    assert_eq!(limit, 120_000_000, "it grew by its cause, up to its bound: {hog:#}");
    assert!((90_000_000..1_500_000_000).contains(&peak), "{hog:#}");
    assert_eq!(run.states().iter().filter(|line| line.starts_with("beside") && line.ends_with("succeeded")).count(), 4);
    hog["memory_method"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn memory_above_its_limit_with_what_the_machine_has() {
    let method = too_much_memory("auto");
    assert!(["cgroup", "sampled", "rusage"].contains(&method.as_str()), "{method}");
}

#[test]
fn memory_above_its_limit_seen_by_the_watch() {
    let method = too_much_memory("watch");
    assert!(["sampled", "rusage"].contains(&method.as_str()), "{method}");
}

#[test]
fn memory_that_grows_until_it_is_enough() {
    let sandbox = Sandbox::new();
    sandbox.manifest(
        r#"
targets: { local: { provider: local, max_workers: 1 } }
tasks:
  hog:
    command: ["PROBE", hog, "150000000"]
    memory: 100M
    on_oom: { factor: 3, max: 600M }
"#,
    );
    sandbox.scalable(&["run"]).expect(0);
    let hog = sandbox.last_run().task("hog[0]");
    // Three times what it had, in whole mebibytes.
    let limit = hog["memory_limit_bytes"].as_u64().unwrap();
    assert!((300_000_000..304_000_000).contains(&limit), "{hog:#}");
    assert!((150_000_000..300_000_000).contains(&hog["peak_memory_bytes"].as_u64().unwrap()), "{hog:#}");
}
