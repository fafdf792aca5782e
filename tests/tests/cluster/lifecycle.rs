//! From the command to its results and an empty namespace.

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{Ground, LONG, until, until_within};

/// Four tasks over pods, and one that reads what they wrote.
pub const ENSEMBLE: &str = r#"
tasks:
  member:
    cpus: 0.1
    foreach: { n: { range: [0, 4] } }
    command: [/bin/sh, -c, 'hostname; echo "$0" > "$1"', "{n}", "{outputs.series}"]
    outputs: { series: file }
  all:
    cpus: 0.1
    inputs: { series: "{member.series[*]}" }
    command: [/bin/sh, -c, 'cat $(cat "$0") > "$1"', "{inputs.series.list}", "{outputs.table}"]
    outputs: { table: file }
"#;

/// One task that does nothing.
pub const ONE: &str = "tasks:\n  one: { cpus: 0.1, command: [/bin/true] }\n";

/// Two tasks that wait until their gate is open.
pub const GATED: &str = r#"
tasks:
  work:
    cpus: 0.1
    foreach: { n: { range: [0, 2] } }
    command: [/bin/sh, -c, 'echo here; until [ -e $HOME/gate ]; do sleep 0.1; done; echo "$0" > "$1"', "{n}", "{outputs.done}"]
    outputs: { done: file }
"#;

#[test]
fn an_ensemble_and_its_outputs() {
    let Some(ground) = Ground::new("ensemble") else { return };
    ground.manifest("", ENSEMBLE);
    ground.run_to_end(&[]).expect(0);
    ground.nothing_is_left();
    let run = ground.last_run();
    assert_eq!(
        run.states(),
        ["all[0] succeeded", "member[0] succeeded", "member[1] succeeded", "member[2] succeeded", "member[3] succeeded"]
    );
    let table = run.outputs().into_iter().find(|path| path.starts_with("all")).unwrap();
    assert_eq!(run.output(&table), "0\n1\n2\n3\n");
    // What a task wrote and what its pod wrote are here, although the pods are gone.
    let log = ground.sandbox.scalable(&["logs", "member[0]"]).expect(0);
    assert!(log.stdout.contains("scalable-worker-"), "{}", log.stdout);
    assert_eq!(run.document("summary.json")["status"], "completed");
}

#[test]
fn a_failure_is_the_exit_code() {
    let Some(ground) = Ground::new("failure") else { return };
    ground.manifest("", "tasks:\n  bad: { cpus: 0.1, command: [/bin/sh, -c, 'echo no licence >&2; exit 7'] }\n");
    ground.run_to_end(&[]).expect(1).says(&["bad", "exit code 7", "no licence"]);
    ground.nothing_is_left();
}

/// The tutorial's file as it is printed there, but for the image, and for a clip to what the nodes of a small cluster have.
#[test]
fn the_tutorials_manifest() {
    let Some(ground) = Ground::new("tutorial") else { return };
    ground.sandbox.write(
        "scalable.yaml",
        format!(
            "targets:\n  k8s:\n    provider: kubernetes\n    namespace: {}\n    image: {}\n    adaptive:\n      minimum: 2\n      maximum: 20\n    \
             resources:\n      requests:\n        cpu: \"4\"\n        memory: \"16Gi\"\n      limits:\n        cpu: \"4\"\n        memory: \"16Gi\"\n    \
             limits: {{ cpus: 0.5, memory: 128Mi }}\n",
            ground.namespace,
            tests::IMAGE
        ),
    );
    let run = ground.run(&[]);
    let connection = ground.connection(&run);
    until_within(LONG, "the minimum of workers", || (ground.workers().len() == 2).then_some(()));

    // The page, as the tutorial opens it: the alias is this run's, for the namespace had none.
    let forward = ground.start_kubectl("forward", &["port-forward", "service/scalable-scheduler", "0:8787"]);
    let port = until("the forward", || {
        let said = forward.stdout();
        said.split_once("127.0.0.1:").and_then(|(_, rest)| rest.split(' ').next()).map(str::to_owned)
    });
    let page = until("the page", || http(&port, "/"));
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    drop(forward);

    ground
        .sandbox
        .scalable(&["submit", "--connection", &connection, "--cpus", "0.1", "--", "/bin/hostname"])
        .expect(0)
        .says(&["scalable-worker-"]);
    run.signal(Signal::SIGINT);
    // It had no work left to cancel.
    run.wait_within(LONG).calm().expect(0);
    ground.nothing_is_left();
}

/// A request by hand: the tests have no HTTP client.
pub fn http(port: &str, path: &str) -> Option<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(format!("127.0.0.1:{port}")).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer).filter(|answer| !answer.is_empty())
}

#[test]
fn an_interrupt_leaves_nothing() {
    let Some(ground) = Ground::new("interrupt") else { return };
    ground.manifest("", GATED);
    let run = ground.run(&[]);
    until_within(LONG, "a task that runs", || (running(&ground) > 0).then_some(()));
    run.signal(Signal::SIGINT);
    run.wait_within(LONG).calm().expect(130);
    ground.nothing_is_left();
}

/// How many tasks of the sandbox's newest run are running, as its user is told.
pub fn running(ground: &Ground) -> u64 {
    let Some(run) = ground.sandbox.runs().pop() else { return 0 };
    if run.try_document("run.json").is_none_or(|record| record["submitted"] != Value::Bool(true)) {
        return 0;
    }
    let status = ground.sandbox.start("scalable", &["status", "-o", "json"]).wait_within(LONG);
    let document: Value = serde_json::from_str(&status.stdout).unwrap_or_default();
    let counts = document["groups"].as_array().into_iter().flatten().filter_map(|group| group["running"].as_u64());
    counts.sum()
}

#[test]
fn the_command_line_is_killed_and_somebody_comes_back() {
    let Some(ground) = Ground::new("killed") else { return };
    ground.manifest("", GATED);
    let run = ground.run(&[]);
    until_within(LONG, "a task that runs", || (running(&ground) > 0).then_some(()));
    run.signal(Signal::SIGKILL);
    run.wait();
    let attached = ground.sandbox.start("scalable", &["attach"]);
    ground.open_gate("gate", attached).expect(0);
    ground.nothing_is_left();
    assert_eq!(ground.last_run().outputs().len(), 2);
}

#[test]
fn detached_and_given_up() {
    let Some(ground) = Ground::new("detached") else { return };
    ground.manifest("", GATED);
    ground.run_to_end(&["--detach"]).expect(0).says(&["attach"]);
    until_within(LONG, "a task that runs", || (running(&ground) > 0).then_some(()));
    let run = ground.last_run().name();
    ground.sandbox.scalable(&["explain", "work[0]"]).expect(0).says(&["running"]);
    ground.sandbox.scalable(&["down", &run]).expect(0);
    ground.nothing_is_left();
}
