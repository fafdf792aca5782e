//! Workers and scheduler that share no disk: each process has its own view of the file system, in which the others' directories are
//! empty. What they need moves over the network, and outputs and logs end in the user's run directory.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{Finished, Run, Running, Sandbox, binary, until};

/// Mount namespaces that hide something take root.
fn rootless() -> bool {
    let rootless = !nix::unistd::geteuid().is_root();
    if rootless {
        eprintln!("skipped: only root can give processes a file system of their own");
    }
    rootless
}

/// A scheduler, workers and a user, each on a machine of its own as far as files go.
struct Machines {
    sandbox: Sandbox,
    scheduler: Running,
    address: String,
    workers: Vec<Running>,
}

/// Everything that a machine can have of its own.
const PLACES: [&str; 5] = ["user", "scheduler", "w1", "w2", "w3"];

impl Machines {
    /// A scheduler that sees `seen` beside its own directory, and options for it.
    fn start(sandbox: Sandbox, seen: &[&str], options: &[&str]) -> Machines {
        sandbox.token();
        for place in PLACES {
            std::fs::create_dir_all(sandbox.path(place)).unwrap();
        }
        let state = sandbox.path("scheduler").display().to_string();
        let mut arguments =
            vec!["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--token-file", "token", "--state-dir", &state];
        arguments.extend(options);
        let mut own = vec!["scheduler"];
        own.extend(seen);
        let scheduler = blind(&sandbox, &own, "", "scalable-scheduler", &arguments, "scheduler");
        let address = scheduler.address();
        Machines { sandbox, scheduler, address, workers: Vec::new() }
    }

    /// A worker that sees nothing but its own directory. `before` is done in its file system first.
    fn worker_after(&mut self, name: &str, before: &str, options: &[&str]) {
        let own = self.sandbox.path(name).display().to_string();
        let mut arguments = vec![
            "--scheduler",
            &self.address,
            "--token-file",
            "token",
            "--name",
            name,
            "--directory",
            &own,
            "--cpus",
            "2",
            "--memory",
            "1G",
        ];
        arguments.extend(options);
        let worker = blind(&self.sandbox, &[name], before, "scalable-worker", &arguments, name);
        self.workers.push(worker);
    }

    fn worker(&mut self, name: &str) {
        self.worker_after(name, "", &[]);
    }

    /// Writes the user's manifest.
    fn manifest(&self, body: &str) {
        self.sandbox.write(
            "user/scalable.yaml",
            format!(
                "version: 1\nproject: {{ name: machines }}\ntargets: {{ local: {{ provider: local, max_workers: 2 }} }}\n{body}"
            ),
        );
    }

    /// The command line in the user's directory.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.sandbox.command(&binary("scalable"));
        command.current_dir(self.sandbox.path("user")).args(arguments);
        command.env("SCALABLE_ADDRESS", &self.address).env("SCALABLE_TOKEN_FILE", self.sandbox.path("token"));
        command
    }

    fn start_run(&self) -> Running {
        Running::start(self.command(&["run", "--target", "local"]), &self.sandbox.path("."), "run")
    }

    #[track_caller]
    fn run(&self) -> Finished {
        self.start_run().wait().calm()
    }

    /// The user's newest run.
    #[track_caller]
    fn last_run(&self) -> Run {
        let runs = self.sandbox.path("user/.scalable/runs");
        until("a run's directory", || {
            let mut found: Vec<PathBuf> = std::fs::read_dir(&runs)
                .ok()?
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.join("run.json").is_file())
                .collect();
            found.sort_by_key(|path| path.metadata().unwrap().created().unwrap());
            found.pop().map(|directory| Run { directory })
        })
    }

    fn stop(self) {
        for worker in self.workers {
            worker.signal(Signal::SIGTERM);
            worker.wait().calm();
        }
        self.scheduler.signal(Signal::SIGTERM);
        self.scheduler.wait().calm();
        self.sandbox.nothing_is_left();
    }
}

/// Starts a program of the project in a file system in which only `seen` of the places has anything.
fn blind(sandbox: &Sandbox, seen: &[&str], before: &str, program: &str, arguments: &[&str], name: &str) -> Running {
    let hide: Vec<String> = PLACES
        .iter()
        .filter(|place| !seen.contains(place))
        .map(|place| format!("mount -t tmpfs none '{}'", sandbox.path(place).display()))
        .collect();
    let mut script = hide.join(" && ");
    if !before.is_empty() {
        script = format!("{script} && {before}");
    }
    script.push_str(" && exec \"$0\" \"$@\"");
    let mut command = sandbox.command(Path::new("unshare"));
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]).arg(binary(program)).args(arguments);
    Running::start(command, &sandbox.path("."), name)
}

/// Members, a reduce over all of them, files beside the manifest, every kind of output, and one that is only for later tasks.
const ENSEMBLE: &str = r#"
components: { model: { cpus: 1, memory: 64M } }
tasks:
  prepare:
    component: model
    files: [base.txt, tools/scale.sh]
    shell: "sh tools/scale.sh base.txt > {outputs.table} && mkdir -p {outputs.maps}/deep && echo map > {outputs.maps}/deep/m && echo prepared"
    outputs: { table: file, maps: dir }
  simulate:
    component: model
    foreach: { member: { range: [0, 6] } }
    inputs: { table: "{prepare.table}", maps: "{prepare.maps}" }
    shell: "cat {inputs.table} {inputs.maps}/deep/m > {outputs.series} && echo {member} >> {outputs.series} && mkdir -p parts && echo {member} > parts/a && echo b > parts/b && echo scratch-{member} > {outputs.scratch}"
    outputs:
      series: file
      parts: { path: "parts/*", type: list }
      scratch: { type: file, keep: false }
  summarise:
    component: model
    inputs: { series: "{simulate.series[*]}", parts: "{simulate.parts[*]}", scratch: "{simulate.scratch[*]}" }
    shell: "cat $(cat {inputs.series.list}) > {outputs.all} && cat $(cat {inputs.parts.list}) >> {outputs.all} && cat $(cat {inputs.scratch.list}) >> {outputs.all} && mkdir -p {outputs.report} && cp {outputs.all} {outputs.report}/all.txt && mkdir {outputs.report}/empty && echo summed >&2"
    outputs: { all: file, report: dir }
"#;

fn ensemble(machines: &Machines) {
    machines.manifest(ENSEMBLE);
    machines.sandbox.write("user/base.txt", "base\n");
    machines.sandbox.write("user/tools/scale.sh", "cat \"$1\" \"$1\"\n");
}

/// What the ensemble makes.
#[track_caller]
fn check_ensemble(run: &Run) {
    let summary = run.document("summary.json");
    assert_eq!(summary["status"], "completed", "{summary:#}");
    assert_eq!(summary["tasks"]["succeeded"], 8);
    assert_eq!(summary["outputs_missing"], Value::Null, "{summary:#}");
    let mut outputs = vec!["prepare/maps/deep/m".to_owned(), "prepare/table".to_owned()];
    let mut all = String::new();
    for member in 0..6 {
        let element = format!("simulate/member={member}");
        outputs.extend([format!("{element}/parts/a"), format!("{element}/parts/b"), format!("{element}/series")]);
        all.push_str(&format!("base\nbase\nmap\n{member}\n"));
    }
    (0..6).for_each(|member| all.push_str(&format!("{member}\nb\n")));
    (0..6).for_each(|member| all.push_str(&format!("scratch-{member}\n")));
    outputs.extend(["summarise/all".to_owned(), "summarise/report/all.txt".to_owned()]);
    outputs.sort();
    assert_eq!(run.outputs(), outputs);
    assert_eq!(run.output("summarise/report/all.txt"), all);
    assert!(run.directory.join("outputs/summarise/report/empty").is_dir());
    let log = |path: &str| std::fs::read_to_string(run.directory.join("logs").join(path)).unwrap();
    assert_eq!(log("prepare/0.1.stdout"), "prepared\n");
    assert_eq!(log("summarise/0.1.stderr"), "summed\n");
    // Numbers of attempts say nothing: one that was taken back before it started counts too.
    assert_eq!(run.lines("failures.jsonl"), Vec::<Value>::new());
    for gone in ["objects", "attempts", ".here"] {
        assert!(!run.directory.join(gone).exists(), "{gone} is left");
    }
}

#[test]
fn workers_that_see_nothing_run_an_ensemble_for_a_scheduler_that_sees_the_run() {
    if rootless() {
        return;
    }
    let mut machines = Machines::start(Sandbox::new(), &["user"], &[]);
    machines.worker("w1");
    machines.worker("w2");
    ensemble(&machines);
    machines.run().expect(0);
    let run = machines.last_run();
    check_ensemble(&run);
    let workers: std::collections::BTreeSet<String> =
        run.tasks().iter().map(|task| task["worker"].as_str().unwrap().to_owned()).collect();
    assert_eq!(workers.len(), 2, "both had a part: {workers:?}");
    for worker in ["w1", "w2"] {
        assert!(machines.sandbox.read(&format!("{worker}.stderr")).contains("the run's directory is not here"), "{worker}");
    }
    machines.stop();
}

#[test]
fn a_scheduler_that_sees_nothing_either_gives_everything_back_to_the_user() {
    if rootless() {
        return;
    }
    let mut machines = Machines::start(Sandbox::new(), &[], &[]);
    machines.worker("w1");
    machines.worker("w2");
    ensemble(&machines);
    machines.run().expect(0);
    let run = machines.last_run();
    check_ensemble(&run);
    let record = run.document("run.json");
    assert_eq!((&record["status"], &record["fetched"]), (&Value::from("completed"), &Value::Bool(true)));
    assert!(record.get("address").is_none() && record["source_manifest_path"].as_str().is_some_and(|path| !path.is_empty()));
    machines.stop();
}

#[test]
fn logs_of_attempts_that_failed_arrive_too() {
    if rootless() {
        return;
    }
    let mut machines = Machines::start(Sandbox::new(), &[], &[]);
    machines.worker("w1");
    machines.manifest(
        r#"
tasks:
  fails: { component: model, retries: 1, shell: "echo said; echo complained >&2; exit 3" }
components: { model: { cpus: 1, memory: 64M } }
"#,
    );
    machines.run().expect(1).says(&["complained"]);
    let run = machines.last_run();
    for attempt in 1..=2 {
        for (stream, said) in [("stdout", "said\n"), ("stderr", "complained\n")] {
            let path = run.directory.join(format!("logs/fails/0.{attempt}.{stream}"));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), said, "{}", path.display());
        }
    }
    machines.stop();
}

#[test]
fn an_output_that_is_lost_before_it_is_copied_is_made_again_once() {
    if rootless() {
        return;
    }
    // Nothing is copied: there is no room. So the only copy of what w1 has made is on w1.
    let mut machines = Machines::start(Sandbox::new().short_leases(), &[], &["--store-limit", "1000"]);
    machines.worker("w1");
    machines.manifest(
        r#"
components: { model: { cpus: 1, memory: 64M } }
tasks:
  make: { component: model, shell: "echo made >> HERE/made; head -c 100000 /dev/zero > {outputs.large}", outputs: { large: file } }
  wait:
    component: model
    inputs: { large: "{make.large}" }
    shell: "wc -c < {inputs.large} > {outputs.size}; until [ -e HERE/w2/go ] || [ -e HERE/w1/go ]; do sleep 0.1; done"
    outputs: { size: file }
  use: { component: model, inputs: { large: "{make.large}", size: "{wait.size}" }, shell: "cat {inputs.size} > {outputs.size}", outputs: { size: file } }
"#,
    );
    let manifest = machines.sandbox.read("user/scalable.yaml");
    let here = machines.sandbox.path(".").canonicalize().unwrap();
    machines.sandbox.write("user/scalable.yaml", manifest.replace("HERE", &here.display().to_string()));
    let running = machines.start_run();
    let ask = |machines: &Machines, words: &[&str]| {
        Running::start(machines.command(words), &machines.sandbox.path("."), "ask").wait().stdout
    };
    let limited = |text: String| text.contains("limited: storage: the output store has 0 of at most 1000 bytes").then_some(());
    until("the run to say that storage limits it", || limited(running.stderr()));
    until("the second task to run", || machines.sandbox.processes_of("sleep").first().map(|_| ()));
    machines.worker("w2");
    machines.workers[0].signal(Signal::SIGKILL);
    machines.workers.remove(0).wait();
    machines.sandbox.write("w2/go", "");
    until("the last task to be over", || {
        let said: Value = serde_json::from_str(&ask(&machines, &["status", "-o", "json"])).ok()?;
        let groups = said["runs"][0]["groups"].as_array()?.clone();
        groups.iter().all(|group| group["succeeded"] == 1).then_some(())
    });
    // Only room is missing now. Nothing was dropped, and giving up is the user's to say.
    let name = machines.last_run().name();
    let explained = ask(&machines, &["explain", &format!("{name}/make[0]")]);
    assert!(explained.contains("limited: storage") && explained.contains("w2"), "{explained}");
    assert!(explained.contains("1 of this run's outputs (100000 bytes) wait"), "what was lost is not waited for: {explained}");
    running.signal(Signal::SIGTERM);
    running.wait().expect(143);
    let run = machines.last_run();
    assert_eq!(run.states(), ["make[0] succeeded", "use[0] succeeded", "wait[0] succeeded"], "each committed once");
    let makes = machines.sandbox.lines("made");
    assert_eq!(makes.len(), 2, "made, and made again once: {makes:?}");
    let log = machines.sandbox.read("scheduler.stderr");
    assert!(!log.contains("panicked"), "{log}");
    machines.stop();
}

#[test]
fn a_worker_whose_disk_is_full_says_so_and_the_others_go_on() {
    if rootless() {
        return;
    }
    let mut machines = Machines::start(Sandbox::new(), &[], &[]);
    let small = format!("mount -t tmpfs -o size=256k none '{}'", machines.sandbox.path("w1").display());
    machines.worker_after("w1", &small, &[]);
    machines.manifest(
        r#"
components: { model: { cpus: 1, memory: 64M } }
tasks:
  make: { component: model, shell: "head -c 1000000 /dev/zero > {outputs.large}", outputs: { large: file } }
"#,
    );
    let finished = machines.run().expect(1);
    let all = format!("{}{}", finished.stdout, finished.stderr);
    assert!(all.contains("No space left on device"), "{all}");
    machines.stop();
}

#[test]
fn the_climate_ensemble_runs_unchanged_on_workers_that_see_only_its_python() {
    if rootless() {
        return;
    }
    let Some(python) = std::env::var_os("CLIMATE_PYTHON").map(PathBuf::from).filter(|python| python.is_file()) else {
        eprintln!("skipped: CLIMATE_PYTHON names no Python with examples/climate/requirements.txt");
        return;
    };
    let mut machines = Machines::start(Sandbox::new(), &[], &[]);
    machines.worker("w1");
    machines.worker("w2");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/climate");
    for name in ["scalable.yaml", "prepare.py", "simulate.py", "summarise.py"] {
        machines.sandbox.write(&format!("user/{name}"), std::fs::read(example.join(name)).unwrap());
    }
    let mut command = machines.command(&["run", "--target", "local"]);
    command.env("CLIMATE_PYTHON", &python).env("MEMBERS", "3");
    Running::start(command, &machines.sandbox.path("."), "run").wait().calm().expect(0);
    let run = machines.last_run();
    assert_eq!(run.document("summary.json")["tasks"]["succeeded"], 14);
    assert_eq!(run.outputs().iter().filter(|path| path.starts_with("simulate/")).count(), 12);
    assert!(run.outputs().iter().any(|path| path.starts_with("summarise/report/")));
    machines.stop();
}
