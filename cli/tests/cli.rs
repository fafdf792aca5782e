//! The program as it is typed: help, manifests, and records of runs that are over. Nothing here starts a scheduler.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const RUN: &str = "run-20260101T000000Z-demo-00000001";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A directory of a test's own, below the build's.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Runs `scalable` in `directory`, with nothing of the caller's environment that it would look at.
fn scalable(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_scalable"))
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .output()
        .unwrap()
}

/// Exit code and both streams, with the places of this machine named.
fn shown(output: &Output, directory: &Path) -> String {
    let plain = |bytes: &[u8]| {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let text = text.replace(directory.to_str().unwrap(), "[DIR]").replace(fixtures().to_str().unwrap(), "[FIXTURES]");
        text.lines().map(|line| format!("{}\n", line.trim_end())).collect::<String>()
    };
    format!("exit {}\n-- stdout\n{}-- stderr\n{}", output.status.code().unwrap(), plain(&output.stdout), plain(&output.stderr))
}

/// A command against the recorded run.
fn recorded(arguments: &[&str]) -> String {
    let mut all = vec!["--runs-dir", "runs"];
    all.extend(arguments);
    shown(&scalable(&fixtures(), &all), &fixtures())
}

/// A command in a directory with this manifest.
fn with_manifest(manifest: &str, arguments: &[&str]) -> String {
    let directory = scratch();
    std::fs::write(directory.path().join("scalable.yaml"), manifest).unwrap();
    shown(&scalable(directory.path(), arguments), &directory.path().canonicalize().unwrap())
}

#[test]
fn help_of_every_command() {
    let mut all = shown(&scalable(&fixtures(), &["--help"]), &fixtures());
    let commands = [
        "validate",
        "plan",
        "run",
        "submit",
        "status",
        "logs",
        "explain",
        "cancel",
        "retry",
        "attach",
        "report",
        "shell",
        "down",
        "completions",
        "version",
    ];
    for command in commands {
        all.push_str(&format!("\n== {command}\n{}", shown(&scalable(&fixtures(), &[command, "--help"]), &fixtures())));
    }
    insta::assert_snapshot!(all);
}

#[test]
fn usage_errors_end_2() {
    for arguments in [&["nonsense"][..], &["run", "--nonsense"], &["submit"], &["retry"], &["report", "--compare", "a"]] {
        let output = scalable(&fixtures(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
}

const ENSEMBLE: &str = r#"version: 1
project: { name: demo }
targets:
  local: { provider: local, max_workers: 2 }
  cluster: { provider: kubernetes, image: "x/y:1" }
components:
  model: { image: "x/y:1", cpus: 1, memory: 64M }
tasks:
  prepare:
    component: model
    command: ["sh", "-c", "echo 1 > $0", "{outputs.table}"]
    outputs: { table: file }
  simulate:
    component: model
    foreach: { scenario: [rcp26, "rcp 45"], member: { range: [0, 50] } }
    command: ["cp", "{inputs.table}", "{outputs.series}"]
    inputs: { table: "{prepare.table}" }
    outputs: { series: { path: out/series.csv } }
    retries: 2
    timeout: 10m
  summarise:
    component: model
    shell: "cat {inputs.all} > {outputs.report}"
    inputs: { all: "{simulate.series[*]}" }
    outputs: { report: file }
"#;

#[test]
fn a_plan_says_what_would_run() {
    // The share of this machine's memory is not the same everywhere.
    let plan = with_manifest(ENSEMBLE, &["plan", "--target", "local"]);
    let plan: String = plan.lines().filter(|line| !line.starts_with("pool ")).map(|line| format!("{line}\n")).collect();
    insta::assert_snapshot!(plan);
}

#[test]
fn a_plan_for_programs_names_its_schema_and_lies_where_asked() {
    let directory = scratch();
    std::fs::write(directory.path().join("scalable.yaml"), ENSEMBLE).unwrap();
    let output = scalable(directory.path(), &["plan", "--target", "local", "--dry-run", "--output", "plan.json", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output, directory.path()));
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["schema"], "scalable.plan.v1");
    assert_eq!(printed["tasks_total"], 102);
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(directory.path().join("plan.json")).unwrap()).unwrap();
    for key in ["version", "target", "provider", "manifest_lock", "task_to_component", "scale_plan"] {
        assert_eq!(written[key], printed[key], "{key}");
        assert!(!written[key].is_null(), "{key} of the original's plan");
    }
    let lock = std::fs::read_to_string(directory.path().join("manifest.lock")).unwrap();
    assert_eq!(lock.trim(), written["manifest_lock"].as_str().unwrap());
    let prose = scalable(directory.path(), &["explain", "plan.json"]);
    let prose = shown(&prose, directory.path());
    assert!(prose.contains("Group simulate has 100 tasks") && prose.contains("waits for prepare"), "{prose}");
}

#[test]
fn a_kubernetes_target_wants_an_image_of_the_scheduler_before_anything_else() {
    let planned = with_manifest(ENSEMBLE, &["plan", "--target", "cluster"]);
    assert!(planned.starts_with("exit 0\n"), "{planned}");
    let run = with_manifest(ENSEMBLE, &["run", "--target", "cluster"]);
    assert!(run.starts_with("exit 2\n"), "{run}");
    assert!(run.contains("no image of the scheduler is named") && run.contains("docker/build"), "{run}");
}

#[test]
fn every_error_of_a_manifest_is_shown_in_its_place() {
    let manifest = "version: 1\nproject: { name: demo }\ntargets: { local: { provider: local } }\ntasks:\n  a:\n    comand: [\"true\"]\n    \
                    retries: many\n  b:\n    command: [\"true\", \"{nothing}\"]\n";
    insta::assert_snapshot!(with_manifest(manifest, &["validate"]));
    let json = with_manifest(manifest, &["validate", "-o", "json"]);
    assert!(
        json.starts_with("exit 2\n") && json.contains("\"schema\": \"scalable.validate.v1\"") && json.contains("\"ok\": false"),
        "{json}"
    );
    assert!(with_manifest(manifest, &["run"]).starts_with("exit 2\n"));
    assert!(with_manifest(manifest, &["plan"]).starts_with("exit 2\n"));
}

#[test]
fn a_missing_manifest_is_an_error_of_usage() {
    let directory = scratch();
    let output = shown(&scalable(directory.path(), &["run"]), directory.path());
    assert!(output.starts_with("exit 2\n") && output.contains("scalable.yaml"), "{output}");
    assert!(!directory.path().join(".scalable").exists(), "nothing was made");
}

#[test]
fn the_state_of_a_run_that_is_over() {
    insta::assert_snapshot!(recorded(&["status"]));
}

#[test]
fn the_state_of_a_run_for_programs() {
    insta::assert_snapshot!(recorded(&["status", "-o", "json", RUN]));
}

#[test]
fn all_runs() {
    insta::assert_snapshot!(recorded(&["status", "--all"]));
}

#[test]
fn a_report() {
    insta::assert_snapshot!(recorded(&["report", "--latest"]));
}

#[test]
fn a_report_for_programs() {
    let output = recorded(&["report", "--run-id", RUN, "--format", "json"]);
    for wanted in
        ["\"schema\": \"scalable.report.v1\"", "\"succeeded\": 4", "\"wall_s\": 63.5", "\"peak_memory_bytes\": 108003328"]
    {
        assert!(output.contains(wanted), "{wanted} in {output}");
    }
}

#[test]
fn failures_in_full() {
    insta::assert_snapshot!(recorded(&["report", "--failures"]));
}

#[test]
fn two_runs_side_by_side() {
    insta::assert_snapshot!(recorded(&["report", "--compare", "@last", RUN]));
}

#[test]
fn an_end_is_explained_from_the_records() {
    let tasks = [
        "simulate[0]",
        "simulate[scenario=rcp45,member=0]",
        "summarise",
        "@last/simulate[1]",
        "simulate",
        "simulate[9]",
        "nothing",
    ];
    let all: String = tasks.iter().map(|task| format!("== {task}\n{}", recorded(&["explain", task]))).collect();
    insta::assert_snapshot!(all);
}

#[test]
fn logs_are_read_where_they_lie() {
    let asked: [&[&str]; 5] = [
        &["logs"],
        &["logs", "--failed"],
        &["logs", "simulate[2]", "--attempt", "1", "--stream", "stderr"],
        &["logs", "-f", "simulate[member=0,scenario=rcp26]"],
        &["logs", "prepare"],
    ];
    let all: String = asked.iter().map(|arguments| format!("== {}\n{}", arguments.join(" "), recorded(arguments))).collect();
    // Not a terminal: what a task wrote comes as it is.
    assert!(all.contains("\x1b[31m"));
    insta::assert_snapshot!(all.replace('\x1b', "ESC"));
}

#[test]
fn what_needs_a_live_run_says_so() {
    for arguments in [&["cancel"][..], &["shell", "simulate[2]"], &["status", "run-9"], &["submit", "--", "true"]] {
        let output = recorded(arguments);
        assert!(
            output.starts_with("exit 2\n") && output.contains("help:") | output.contains("over already"),
            "{arguments:?}: {output}"
        );
    }
    assert!(recorded(&["down"]).contains("nothing of"), "down is idempotent");
    let output = recorded(&["attach"]);
    assert!(
        output.starts_with("exit 1\n") && output.contains("failed in 1 min 4 s"),
        "attach to a failed run sums it up: {output}"
    );
}

#[test]
fn a_scheduler_that_is_gone_is_reported_and_the_records_are_read() {
    let directory = scratch();
    let run = directory.path().join("runs/run-x");
    std::fs::create_dir_all(&run).unwrap();
    std::fs::write(run.join("token"), "0123456789abcdef0123456789abcdef").unwrap();
    // A port that was free a moment ago and on which nobody listens.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let record = serde_json::json!({
        "run_id": "run-x", "status": "running", "address": format!("http://127.0.0.1:{port}"), "token_file": run.join("token"),
        "started_at": "2026-01-01T00:00:00Z", "groups": [{ "name": "a", "length": 1, "parameters": [] }],
    });
    std::fs::write(run.join("run.json"), record.to_string()).unwrap();
    let status = shown(&scalable(directory.path(), &["--runs-dir", "runs", "status"]), directory.path());
    assert!(status.starts_with("exit 0\n") && status.contains("no scheduler answers at"), "{status}");
    let cancel = shown(&scalable(directory.path(), &["--runs-dir", "runs", "cancel"]), directory.path());
    assert!(cancel.starts_with("exit 3\n"), "{cancel}");
    let retry = shown(&scalable(directory.path(), &["--runs-dir", "runs", "retry", "--failed"]), directory.path());
    assert!(retry.contains("was running when its scheduler was last heard of") && retry.contains("manifest.yaml"), "{retry}");
}

#[test]
fn versions_and_completions() {
    let version = recorded(&["version", "-o", "json"]);
    assert!(version.contains("scalable.version.v1") && version.contains("\"protocol\""), "{version}");
    for shell in ["bash", "zsh", "fish"] {
        let script = recorded(&["completions", shell]);
        assert!(script.starts_with("exit 0\n") && script.contains("max-failures"), "{shell}");
    }
}
