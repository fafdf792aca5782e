//! Workflows that go well, and what their directory says afterwards.

use serde_json::Value;
use tests::Sandbox;

const ENSEMBLE: &str = r#"
targets: { local: { provider: local, max_workers: 2 } }
components: { model: { cpus: 1, memory: 256M } }
tasks:
  prepare:
    component: model
    command: ["PROBE", write, "{outputs.table}", "the table"]
    outputs: { table: file }
  simulate:
    component: model
    foreach: { scenario: [low, high], member: { range: [0, 3] } }
    inputs: { table: "{prepare.table}" }
    command: ["PROBE", write, "{outputs.series}", "{scenario}/{member};"]
    outputs: { series: file }
  summarise:
    component: model
    inputs: { all: "{simulate.series[*]}" }
    command: ["PROBE", concatenate, "{outputs.report}", "{inputs.all.list}"]
    outputs: { report: file }
"#;

#[test]
fn fan_out_and_fan_in() {
    let sandbox = Sandbox::new();
    sandbox.manifest(ENSEMBLE);
    sandbox.scalable(&["run", "--target", "local"]).expect(0);
    let run = sandbox.last_run();

    assert_eq!(
        run.outputs(),
        [
            "prepare/table",
            "simulate/scenario=high,member=0/series",
            "simulate/scenario=high,member=1/series",
            "simulate/scenario=high,member=2/series",
            "simulate/scenario=low,member=0/series",
            "simulate/scenario=low,member=1/series",
            "simulate/scenario=low,member=2/series",
            "summarise/report",
        ]
    );
    assert_eq!(run.output("summarise/report"), "low/0;low/1;low/2;high/0;high/1;high/2;", "inputs come in index order");

    let tasks = run.tasks();
    assert_eq!(tasks.len(), 8, "{tasks:#?}");
    for task in &tasks {
        assert_eq!(task["state"], "succeeded", "{task:#}");
        assert_eq!(task["exit_code"], 0, "{task:#}");
        let at = |name: &str| task[name].as_str().unwrap_or_else(|| panic!("no {name} in {task:#}")).to_owned();
        let time = |name: &str| at(name).parse::<jiff::Timestamp>().unwrap();
        assert!(time("queued_at") <= time("started_at") && time("started_at") <= time("finished_at"), "{task:#}");
        assert!(!at("worker").is_empty(), "{task:#}");
        assert!(task["peak_memory_bytes"].as_u64().unwrap() > 100_000, "{task:#}");
        assert_eq!(at("key").len(), 64, "{task:#}");
    }
    assert!(run.lines("failures.jsonl").is_empty(), "{:#?}", run.lines("failures.jsonl"));
    let keys: std::collections::BTreeSet<&str> = tasks.iter().map(|task| task["key"].as_str().unwrap()).collect();
    assert_eq!(keys.len(), 8, "every task is another one");

    let record = run.document("run.json");
    assert_eq!(record["status"], "completed", "{record:#}");
    assert!(record["finished_at"].is_string() && record["pids"]["scheduler"].is_null(), "{record:#}");
    for name in ["summary.json", "plan.json"] {
        run.document(name);
    }
    assert!(!run.directory.join("attempts").exists() || walkable_is_empty(&run.directory.join("attempts")));
    sandbox.nothing_is_left();
}

fn walkable_is_empty(directory: &std::path::Path) -> bool {
    std::fs::read_dir(directory).unwrap().flatten().all(|entry| entry.path().is_dir() && walkable_is_empty(&entry.path()))
}

#[test]
fn the_same_again_has_the_same_keys() {
    let sandbox = Sandbox::new();
    sandbox.manifest(ENSEMBLE);
    let keys = || {
        sandbox.scalable(&["run"]).expect(0);
        let tasks = sandbox.last_run().tasks();
        let mut keys: Vec<(String, String)> =
            tasks.iter().map(|task| (task["task_id"].to_string(), task["key"].as_str().unwrap().to_owned())).collect();
        keys.sort();
        keys
    };
    let first = keys();
    assert_eq!(first, keys());
    // Another table is another input: everything behind it is another task, whatever its command.
    let text = sandbox.read("scalable.yaml").replace("the table", "another table");
    sandbox.write("scalable.yaml", text);
    let other = keys();
    let same: Vec<_> = first.iter().filter(|key| other.contains(key)).collect();
    // `summarise` reads what `simulate` wrote, and that has not changed.
    assert_eq!(same.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["\"summarise[0]\""]);
}

#[test]
fn element_by_element_follows_the_parameters() {
    let sandbox = Sandbox::new();
    sandbox.manifest(
        r#"
targets: { local: { provider: local, max_workers: 2 } }
tasks:
  simulate:
    foreach: { scenario: [low, high], member: { range: [0, 2] } }
    command: ["PROBE", write, "{outputs.series}", "{scenario}/{member};"]
    outputs: { series: file }
  double:
    foreach: { scenario: [low, high], member: { range: [0, 2] } }
    inputs: { series: "{simulate.series}" }
    shell: "cat {inputs.series} {inputs.series} > {outputs.twice}"
    outputs: { twice: file }
  by_scenario:
    foreach: { scenario: [low, high] }
    inputs: { series: "{double.twice}" }
    shell: "cat {inputs.series} > {outputs.all}"
    outputs: { all: file }
"#,
    );
    sandbox.scalable(&["run"]).expect(0);
    let run = sandbox.last_run();
    assert_eq!(run.output("double/scenario=high,member=1/twice"), "high/1;high/1;");
    assert_eq!(run.output("by_scenario/scenario=low/all"), "low/0;low/0;low/1;low/1;");
}

#[test]
fn models_with_hard_wired_names() {
    let sandbox = Sandbox::new();
    sandbox
        .write("model/run.sh", "cat data/table.csv - > out/series.csv; echo to-stdout; echo a > out/a.nc; echo b > out/b.nc\n");
    sandbox.manifest(
        r#"
targets: { local: { provider: local } }
tasks:
  prepare:
    command: ["PROBE", write, "{outputs.table}", "rows"]
    outputs: { table: file }
  model:
    files: [model]
    command: [sh, model/run.sh]
    inputs: { table: { from: "{prepare.table}", as: data/table.csv } }
    stdin: "{prepare.table}"
    stdout: said
    outputs:
      series: { path: out/series.csv }
      said: file
      fields: { path: "out/*.nc", type: list }
      everything: { path: out, type: dir }
      extra: { path: out/none.csv, optional: true }
"#,
    );
    sandbox.scalable(&["run"]).expect(0);
    let run = sandbox.last_run();
    assert_eq!(run.output("model/series"), "rowsrows");
    assert_eq!(run.output("model/said"), "to-stdout\n");
    let outputs = run.outputs();
    let has = |path: &str| outputs.iter().any(|output| output == path);
    assert!(has("model/everything/series.csv") && has("model/everything/a.nc"), "{outputs:?}");
    assert_eq!(outputs.iter().filter(|path| path.starts_with("model/fields/")).count(), 2, "{outputs:?}");
    assert!(!outputs.iter().any(|path| path.starts_with("model/extra")), "{outputs:?}");
}

#[test]
fn a_task_knows_what_it_is() {
    let sandbox = Sandbox::new();
    sandbox.manifest(
        r#"
targets: { local: { provider: local } }
tasks:
  told:
    foreach: { n: { range: [0, 2] } }
    command: ["PROBE", environment, "{outputs.variables}"]
    outputs: { variables: file }
"#,
    );
    sandbox.scalable(&["run"]).expect(0);
    let run = sandbox.last_run();
    let told = run.output("told/n=1/variables");
    for line in [
        format!("SCALABLE_RUN={}", run.name()),
        "SCALABLE_GROUP=told".into(),
        "SCALABLE_INDEX=1".into(),
        "SCALABLE_ATTEMPT=1".into(),
    ] {
        assert!(told.lines().any(|told| told == line), "{line} is not in\n{told}");
    }
    for name in ["SCALABLE_TASK_ID=", "SCALABLE_ATTEMPT=", "SCALABLE_FENCE="] {
        assert!(told.lines().any(|line| line.starts_with(name) && line.len() > name.len()), "{name} is not in\n{told}");
    }
    assert!(!told.contains("TOKEN"), "no task is told the token:\n{told}");
}

#[test]
fn a_stub_run_executes_nothing() {
    let sandbox = Sandbox::new();
    sandbox.manifest(
        r#"
targets: { local: { provider: local } }
tasks:
  write:
    foreach: { n: { range: [0, 50] } }
    command: ["PROBE", arguments, "HERE/executed", "{n}", "{outputs.a}", "{outputs.b}"]
    outputs: { a: file, b: dir }
  read:
    inputs: { all: "{write.a[*]}" }
    command: ["PROBE", arguments, "HERE/executed", "{inputs.all}"]
"#,
    );
    sandbox.scalable(&["run", "--stub"]).expect(0);
    let run = sandbox.last_run();
    assert_eq!(run.states(), ["read[0] succeeded", "write[0] succeeded"]);
    assert!(!sandbox.path("executed").exists(), "{}", sandbox.read("executed"));
    assert!(run.directory.join("outputs/write").is_dir());
}

#[test]
fn status_logs_and_report_of_a_run_that_is_over() {
    let sandbox = Sandbox::new();
    sandbox.manifest(
        r#"
targets: { local: { provider: local } }
tasks:
  talk:
    foreach: { n: { range: [0, 2] } }
    command: [echo, "number {n}"]
"#,
    );
    sandbox.scalable(&["run"]).expect(0);
    sandbox.nothing_is_left();
    let status: Value = serde_json::from_str(&sandbox.scalable(&["status", "-o", "json"]).expect(0).stdout).unwrap();
    assert!(status.to_string().contains(&sandbox.last_run().name()), "{status:#}");
    sandbox.scalable(&["logs"]).expect(0).says(&["number 0", "number 1"]);
    let one = sandbox.scalable(&["logs", "talk[1]"]).expect(0).says(&["number 1"]);
    assert!(!one.stdout.contains("number 0"), "{}", one.stdout);
    sandbox.scalable(&["explain", "talk[0]"]).expect(0).says(&["succeeded"]);
    sandbox.scalable(&["report"]).expect(0).says(&["talk"]);
}
