//! Tasks that fail: who is told, who is stopped, what is tried again.

use tests::Sandbox;

#[test]
fn a_failed_task_stops_its_dependants_and_nothing_else() {
    let sandbox = Sandbox::new();
    sandbox.manifest(
        r#"
targets: { local: { provider: local, max_workers: 2 } }
tasks:
  good:
    foreach: { n: { range: [0, 3] } }
    command: ["PROBE", nothing]
  bad:
    cwd: work
    command: ["PROBE", fail, "7", "the forcing file is from another century"]
    depends_on: [good]
  after_bad:
    foreach: { n: { range: [0, 2] } }
    command: ["PROBE", nothing]
    depends_on: [bad]
  last:
    command: ["PROBE", nothing]
    depends_on: [after_bad]
  beside:
    command: ["PROBE", nothing]
    depends_on: [good]
  clean:
    command: ["PROBE", write, "HERE/cleaned", "yes"]
    depends_on: [bad]
    when: always
"#,
    );
    let finished = sandbox.scalable(&["run"]).expect(1);
    assert!(
        finished.stderr.contains("the forcing file is from another century"),
        "the tail is shown at once:\n{}",
        finished.stderr
    );
    let finished = finished.says(&["bad[0]", "7"]);
    let run = sandbox.last_run();
    assert_eq!(
        run.states(),
        [
            "after_bad[0] skipped",
            "after_bad[1] skipped",
            "bad[0] failed",
            "beside[0] succeeded",
            "clean[0] succeeded",
            "good[0] succeeded",
            "good[1] succeeded",
            "good[2] succeeded",
            "last[0] skipped",
        ],
        "{}",
        finished.stderr
    );
    let bad = run.task("bad[0]");
    assert_eq!((bad["exit_code"].as_i64(), bad["error_type"].as_str()), (Some(7), Some("app_error")), "{bad:#}");
    for skipped in ["after_bad[1]", "last[0]"] {
        let task = run.task(skipped);
        assert!(task["root"].as_str().unwrap().contains("bad[0]"), "{task:#}");
    }
    let failures = run.lines("failures.jsonl");
    assert_eq!(failures.len(), 1, "{failures:#?}");
    assert!(failures[0]["stderr_tail"].as_str().unwrap().contains("another century"), "{:#}", failures[0]);
    assert_eq!(run.document("run.json")["status"], "failed");
    sandbox.scalable(&["logs", "--failed"]).expect(0).says(&["another century"]);
    sandbox.scalable(&["explain", "after_bad[0]"]).expect(0).says(&["bad"]);
    sandbox.scalable(&["shell", "bad[0]", "--", "true"]).expect(0);
    sandbox.nothing_is_left();
}

#[test]
fn retries_are_counted_and_delayed() {
    let sandbox = Sandbox::new();
    sandbox.manifest(
        r#"
targets: { local: { provider: local } }
tasks:
  flaky:
    command: ["PROBE", flaky, "HERE/notes", "2"]
    retries: 2
    backoff: { initial: 100ms, factor: 2, max: 1s }
  hopeless:
    command: ["PROBE", flaky, "HERE/hopeless", "9"]
    retries: 1
    backoff: { initial: 10ms, factor: 2, max: 1s }
  picky:
    command: ["PROBE", flaky, "HERE/picky", "9"]
    retries: 5
    retry_on: [exit: 75, signal]
"#,
    );
    sandbox.scalable(&["run"]).expect(1);
    let run = sandbox.last_run();
    assert_eq!(run.states(), ["flaky[0] succeeded", "hopeless[0] failed", "picky[0] failed"]);
    let starts: Vec<usize> = ["notes", "hopeless", "picky"].iter().map(|notes| sandbox.lines(notes).len()).collect();
    assert_eq!(starts, [3, 2, 1]);
}

#[test]
fn a_missing_output_says_what_was_there() {
    let sandbox = Sandbox::new();
    sandbox.manifest(
        r#"
targets: { local: { provider: local } }
tasks:
  model:
    command: [sh, -c, "mkdir -p out; echo 1 > out/seires.csv"]
    outputs: { series: { path: out/series.csv } }
"#,
    );
    sandbox.scalable(&["run"]).expect(1).says(&["out/series.csv", "seires.csv"]);
    let task = sandbox.last_run().task("model[0]");
    assert_eq!(task["error_type"], "missing_output", "{task:#}");
}

#[test]
fn retry_runs_only_what_failed() {
    let sandbox = Sandbox::new();
    sandbox.manifest(
        r#"
targets: { local: { provider: local } }
tasks:
  first:
    foreach: { n: { range: [0, 3] } }
    shell: "echo first >> HERE/notes; echo {n} > {outputs.value}"
    outputs: { value: file }
  second:
    foreach: { n: { range: [0, 3] } }
    inputs: { value: "{first.value}" }
    shell: "echo second >> HERE/notes; test {n} != 1 || test -e HERE/fixed && cat {inputs.value} > {outputs.copy}"
    outputs: { copy: file }
  third:
    inputs: { all: "{second.copy[*]}" }
    shell: "echo third >> HERE/notes; cat {inputs.all} > {outputs.all}"
    outputs: { all: file }
"#,
    );
    sandbox.scalable(&["run"]).expect(1);
    let first = sandbox.last_run();
    assert_eq!(first.task("second[1]")["state"], "failed");
    assert_eq!(first.task("third[0]")["state"], "skipped");
    assert_eq!(sandbox.lines("notes").len(), 6);

    sandbox.write("fixed", "");
    sandbox.scalable(&["retry", "--failed"]).expect(0);
    let second = sandbox.last_run();
    assert_ne!(first.name(), second.name());
    assert_eq!(sandbox.lines("notes")[6..], ["second", "third"], "only what was missing has run");
    assert_eq!(second.output("third/all"), "0\n1\n2\n");
    assert_eq!(second.tasks().len(), 7, "a line for every task, taken over or not");
    // The new run stands on its own feet.
    std::fs::remove_dir_all(&first.directory).unwrap();
    assert_eq!(second.output("first/n=2/value"), "2\n");
}

#[test]
fn max_failures_stops_new_starts() {
    let sandbox = Sandbox::new();
    sandbox.manifest(
        r#"
targets: { local: { provider: local, max_workers: 1 } }
tasks:
  bad:
    foreach: { n: { range: [0, 200] } }
    command: ["PROBE", fail, "1", "no"]
"#,
    );
    sandbox.scalable(&["run", "--max-failures", "3"]).expect(1);
    let run = sandbox.last_run();
    let states = run.states();
    let count = |state: &str| states.iter().filter(|line| line.ends_with(state)).count();
    assert_eq!(states.len(), 200, "a line for every task");
    // What was on its way to the worker when the third failure became known may still have run.
    assert!((3..100).contains(&count(" failed")), "{} failed", count(" failed"));
    assert_eq!(count(" failed") + count(" cancelled"), 200);
}

#[test]
fn a_changed_input_is_found_out() {
    let sandbox = Sandbox::new();
    sandbox.manifest(
        r#"
targets: { local: { provider: local } }
tasks:
  prepare:
    command: ["PROBE", write, "{outputs.table}", "original"]
    outputs: { table: file }
  vandal:
    inputs: { table: { from: "{prepare.table}", as: table } }
    command: [sh, -c, "chmod u+w table 2>/dev/null; echo changed > table"]
  reader:
    depends_on: [vandal]
    when: always
    inputs: { table: { from: "{prepare.table}", as: table } }
    command: [sh, -c, "cat table"]
    stdout: seen
    outputs: { seen: file }
"#,
    );
    sandbox.scalable(&["run"]).expect(1);
    let run = sandbox.last_run();
    let vandal = run.task("vandal[0]");
    assert_eq!(vandal["state"], "failed", "{vandal:#}");
    assert_eq!(run.output("prepare/table"), "original");
    assert_eq!(run.output("reader/seen"), "original", "nobody else's copy has changed");
}

#[test]
fn what_an_output_may_link_to() {
    let sandbox = Sandbox::new();
    sandbox.write("secret", "not yours");
    sandbox.manifest(
        r#"
targets: { local: { provider: local } }
tasks:
  inside:
    cwd: work
    command: [sh, -c, "echo fine > real; ln -s real link"]
    outputs: { link: { path: link } }
  outside:
    cwd: work
    command: [sh, -c, "ln -s HERE/secret link"]
    outputs: { link: { path: link } }
"#,
    );
    sandbox.scalable(&["run"]).expect(1);
    let run = sandbox.last_run();
    assert_eq!(run.states(), ["inside[0] succeeded", "outside[0] failed"]);
    assert_eq!(run.output("inside/link"), "fine\n");
    assert!(!run.outputs().iter().any(|path| path.starts_with("outside")), "{:?}", run.outputs());
}
