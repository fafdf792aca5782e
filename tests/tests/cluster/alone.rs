//! Faults of a whole node, of the API server and of names. Each runs by itself, on a cluster that `tests/cluster/up` has started.

mod many;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::{ApiProxy, Fate, Gate, Ground, LONG, Running, until_within};

use crate::lifecycle::{ENSEMBLE, ONE};
use crate::scaling::bursts_beside_a_long_task;

/// The node that fails. The scheduler is kept away from it.
const NODE: &str = "node2";

/// Longest time from a node's death to its tasks elsewhere: 30 s for the leases, and the start of pods on a machine that is busy.
const ELSEWHERE: Duration = Duration::from_secs(50);

/// Six tasks, each with a worker of its own, that say where they are and wait for the gate.
fn waiting(ground: &Ground, gate: &Gate) {
    let door = format!("http://{}:{}", ground.machine(), gate.port());
    ground.manifest(
        "adaptive: { minimum: 6, maximum: 6 }",
        &format!(
            r#"
tasks:
  work:
    foreach: {{ n: {{ range: [0, 6] }} }}
    command:
    - /bin/sh
    - -c
    - 'wget -q -O /dev/null "$1/at/$0/$(hostname)"; until wget -q -O /dev/null "$1/go"; do sleep 0.2; done; hostname > "$2"'
    - "{{n}}"
    - "{door}"
    - "{{outputs.where}}"
    outputs: {{ where: file }}
"#
        ),
    );
}

/// Nothing new goes to [`NODE`] while this lives.
struct Cordon<'g>(&'g Ground);

impl<'g> Cordon<'g> {
    fn new(ground: &'g Ground) -> Cordon<'g> {
        ground.kubectl(&["cordon", NODE]);
        Cordon(ground)
    }
}

impl Drop for Cordon<'_> {
    fn drop(&mut self) {
        self.0.try_kubectl(&["uncordon", NODE]);
    }
}

/// Starts the run with its scheduler on the node that stays, and waits until every task is in a pod of its own, some of them on [`NODE`],
/// whose pods are returned.
fn started(ground: &Ground, gate: &Gate) -> (Running, Vec<String>) {
    let cordon = Cordon::new(ground);
    let run = ground.run(&[]);
    until_within(LONG, "the scheduler on the node that stays", || {
        ground.pods("scalable.io/role=scheduler").iter().any(|pod| !pod["spec"]["nodeName"].is_null()).then_some(())
    });
    drop(cordon);
    until_within(LONG, "six tasks that say where they are", || (gate.asked("at/").len() == 6).then_some(()));
    let there = on_the_node(ground);
    assert!(!there.is_empty(), "no worker is on {NODE}");
    (run, there)
}

/// Worker pods that are bound to [`NODE`].
fn on_the_node(ground: &Ground) -> Vec<String> {
    let pods = ground.pods("scalable.io/role=worker");
    let there = pods.iter().filter(|pod| pod["spec"]["nodeName"] == NODE);
    there.filter_map(|pod| pod["metadata"]["name"].as_str()).map(str::to_owned).collect()
}

/// Undoes a fault also when the test fails.
struct Undo<'g> {
    ground: &'g Ground,
    cluster: PathBuf,
    program: &'static str,
    arguments: &'static [&'static str],
}

impl Undo<'_> {
    fn now(self) {
        self.ground.fault(&self.cluster, self.program, self.arguments);
        std::mem::forget(self);
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        self.ground.fault(&self.cluster, self.program, self.arguments);
    }
}

fn fault<'g>(ground: &'g Ground, program: &str, arguments: &[&str], undo: (&'static str, &'static [&'static str])) -> Undo<'g> {
    let cluster = ground.own_cluster().unwrap();
    ground.fault(&cluster, program, arguments);
    Undo { ground, cluster, program: undo.0, arguments: undo.1 }
}

/// The attempts of all tasks, and the distinct pods that are named in what they wrote.
fn attempts(ground: &Ground) -> Vec<u64> {
    let run = ground.last_run();
    (0..6).map(|n| run.task(&format!("work[{n}]"))["attempt"].as_u64().unwrap_or(0)).collect()
}

/// The kubelet is dead and its containers live: nothing is executed twice, whatever Kubernetes thinks of them.
#[test]
fn a_kubelet_dies() {
    let Some(ground) = Ground::new("kubelet").and_then(|ground| ground.with_own_cluster("a dead kubelet")) else { return };
    let gate = Gate::new();
    waiting(&ground, &gate);
    let (run, there) = started(&ground, &gate);
    let undo = fault(&ground, "node-stop", &[NODE, "kubelet"], ("node-start", &[NODE]));
    // Kubernetes has given its pods up: they are to go, and nobody is there who could end them.
    until_within(LONG, "Kubernetes to give up the node's pods", || {
        let pods = ground.pods("scalable.io/role=worker");
        let given_up =
            pods.iter().filter(|pod| pod["spec"]["nodeName"] == NODE && !pod["metadata"]["deletionTimestamp"].is_null());
        (given_up.count() == there.len()).then_some(())
    });
    gate.open("go");
    // What does not go is waited for a while.
    let finished = run.wait_within(LONG).calm().expect(0);
    assert_eq!(attempts(&ground), [1; 6]);
    // What a dead node still has is named; it goes when the node is back.
    let left = ground.ours();
    assert!(
        left.iter().all(|name| there.iter().any(|pod| *name == format!("pod/{pod}"))),
        "{left:?} is not only on {NODE}: {there:?}"
    );
    for pod in left.iter().filter_map(|name| name.strip_prefix("pod/")) {
        assert!(finished.stderr.contains(pod), "{pod} is not named:\n{}", finished.stderr);
    }
    undo.now();
    ground.becomes_empty(LONG);
}

/// The node is dead, with no sign: its tasks run elsewhere, at nobody's charge, and what it says when it is back is too late.
#[test]
fn a_node_dies() {
    let Some(ground) = Ground::new("node").and_then(|ground| ground.with_own_cluster("a dead node")) else { return };
    let gate = Gate::new();
    waiting(&ground, &gate);
    let (run, there) = started(&ground, &gate);
    let begun = Instant::now();
    let undo = fault(&ground, "node-stop", &[NODE, "node"], ("node-start", &[NODE]));
    until_within(LONG, "the lost tasks elsewhere", || (gate.asked("at/").len() == 6 + there.len()).then_some(()));
    let took = begun.elapsed();
    println!("{} tasks elsewhere {took:.1?} after their node died", there.len());
    assert!(took <= ELSEWHERE, "{took:?} until the lost tasks were elsewhere");
    // It is back, with processes that know of nothing.
    undo.now();
    until_within(LONG, "the pods that were lost to go", || {
        let pods = on_the_node(&ground);
        there.iter().all(|lost| !pods.contains(lost)).then_some(())
    });
    gate.open("go");
    run.wait_within(LONG).calm().expect(0);
    ground.becomes_empty(LONG);
    let again = attempts(&ground).iter().filter(|attempt| **attempt == 2).count();
    assert_eq!((again, attempts(&ground).len() - again), (there.len(), 6 - there.len()), "{:?}", attempts(&ground));
}

/// The API server stops answering in the middle: tasks that run do not notice, and the run ends when it is back.
#[test]
fn the_api_server_stops() {
    let Some(ground) = Ground::new("api").and_then(|ground| ground.with_own_cluster("an API server that stops")) else { return };
    let gate = Gate::new();
    let door = format!("http://{}:{}", ground.machine(), gate.port());
    ground.manifest(
        "",
        &format!(
            r#"
tasks:
  first:
    foreach: {{ n: {{ range: [0, 2] }} }}
    cpus: 0.2
    command: [/bin/sh, -c, 'wget -q -O /dev/null "$1/at/$0"; until wget -q -O /dev/null "$1/go"; do sleep 0.2; done', "{{n}}", "{door}"]
  second:
    foreach: {{ n: {{ range: [0, 4] }} }}
    depends_on: [first]
    cpus: 0.2
    command: [/bin/sh, -c, 'wget -q -O /dev/null "$1/after/$0"; exit 0', "{{n}}", "{door}"]
"#
        ),
    );
    let run = ground.run(&[]);
    until_within(LONG, "both tasks to run", || (gate.asked("at/").len() == 2).then_some(()));
    let undo = fault(&ground, "api-stop", &[], ("api-start", &[]));
    gate.open("go");
    until_within(LONG, "the tasks behind them, without an API", || (gate.asked("after/").len() == 4).then_some(()));
    undo.now();
    run.wait_within(LONG).calm().expect(0);
    ground.nothing_is_left();
    assert_eq!(gate.most_asked("at/") + gate.most_asked("after/"), 2, "a task was executed twice");
}

/// The scheduler's requests fail in every way that an API server's may, for minutes: what has come of it in the end is the same.
#[test]
fn the_api_server_is_unreliable() {
    let Some(ground) = Ground::new("faults").and_then(|ground| ground.with_own_cluster("an unreliable API server")) else {
        return;
    };
    let cluster = ground.own_cluster().unwrap();
    // Always the same of the same number; what number a request gets differs from run to run.
    let proxy =
        ApiProxy::before(&cluster, ground.admin(), |asked| match asked.number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 57 {
            0..8 => Fate::Refuse(429),
            8..14 => Fate::Refuse(500),
            14..18 => Fate::Refuse(503),
            18..26 => Fate::Cut,
            26..34 => Fate::LoseAnswer,
            34..36 => Fate::Late(Duration::from_secs(10)),
            36..80 if asked.watches() => Fate::Expire(u32::try_from(asked.number % 7).unwrap_or(0)),
            _ => Fate::Pass,
        });
    let port = proxy.port().to_string();
    let undo = fault(&ground, "api-through", &[&port], ("api-direct", &[]));
    let (begun, time) = (Instant::now(), Duration::from_secs(if tests::long() { 600 } else { 120 }));
    bursts_beside_a_long_task(&ground, |_| begun.elapsed() < time);
    undo.now();
    let (disturbed, all) = proxy.disturbed();
    let of = |is: fn(&Fate) -> bool| disturbed.iter().filter(|(_, fate)| is(fate)).count();
    let counts = [
        of(|fate| matches!(fate, Fate::Refuse(429))),
        of(|fate| matches!(fate, Fate::Refuse(500 | 503))),
        of(|fate| *fate == Fate::Cut),
        of(|fate| *fate == Fate::LoseAnswer),
        of(|fate| matches!(fate, Fate::Late(_))),
        of(|fate| matches!(fate, Fate::Expire(_))),
    ];
    println!("of {all} requests: 429, 5xx, cut, answer lost, late, expired: {counts:?}");
    assert!(counts.iter().all(|count| *count > 0), "some faults were never met, of {all} requests: {counts:?}");
}

/// A cluster without names is no obstacle: pods are told the scheduler's address.
#[test]
fn no_names() {
    let Some(ground) = Ground::new("names-gone").and_then(|ground| ground.with_own_cluster("a cluster without DNS")) else {
        return;
    };
    let undo = fault(&ground, "dns-stop", &[], ("dns-start", &[]));
    ground.manifest("", ENSEMBLE);
    ground.run_to_end(&[]).expect(0);
    undo.now();
    ground.nothing_is_left();
}

/// The climate ensemble, on pods of an image with a model and nothing of ours: several of them, on both nodes.
#[test]
fn the_climate_ensemble() {
    let Some(ground) = Ground::new("climate") else { return };
    let example = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/climate");
    for file in ["scalable.yaml", "prepare.py", "simulate.py", "summarise.py"] {
        ground.sandbox.write(file, std::fs::read(example.join(file)).unwrap());
    }
    let members = if tests::long() { 250 } else { 25 };
    let ground = ground.env("MEMBERS", &members.to_string());
    ground.current_namespace();
    let run = ground.run(&[]);
    run.wait_within(Duration::from_secs(if tests::long() { 3600 } else { 600 })).calm().expect(0);
    ground.nothing_is_left();
    let run = ground.last_run();
    let tasks = run.tasks();
    assert_eq!(tasks.len(), 4 * members + 2);
    assert!(tasks.iter().all(|task| task["state"] == "succeeded"), "{:#?}", run.states());
    let workers: std::collections::BTreeSet<&str> =
        tasks.iter().filter(|task| task["task_name"] == "simulate").filter_map(|task| task["worker"].as_str()).collect();
    assert!(workers.len() > 1, "one pod did everything: {workers:?}");
    // The same as FaIR called by hand, where there is a Python that has it.
    if let Some(python) = std::env::var_os("SCALABLE_TEST_CLIMATE_PYTHON") {
        let mut check = ground.sandbox.command(std::path::Path::new(&python));
        check.arg(example.join("check.py")).arg(&run.directory);
        let checked = Running::start(check, &ground.sandbox.path(""), "check").wait_within(LONG).expect(0);
        println!("{}", checked.stdout);
    }
}

/// The command line is killed right after each of its requests that change something: whatever it had made by then goes by itself, when the
/// deadline of the start or the run's results have had their time.
#[test]
fn the_command_line_is_killed_after_each_of_its_requests() {
    let Some(ground) = Ground::new("each").and_then(|ground| ground.with_own_cluster("a command line that is killed")) else {
        return;
    };
    let cluster = ground.own_cluster().unwrap();
    ground.manifest("start_deadline: 10s\nresults_ttl: 5s\njob_ttl: 2s", ONE);
    let direct = ground.sandbox.read("kubeconfig");
    let mut kills = 0;
    for wanted in 1.. {
        // Counted here, not by the proxy: requests that only ask are of no interest.
        let seen = std::sync::atomic::AtomicU32::new(0);
        let proxy = ApiProxy::before(&cluster, ground.admin(), move |asked| {
            let number = if asked.changes() { seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1 } else { 0 };
            if number == wanted { Fate::Stop } else { Fate::Pass }
        });
        ground.through(proxy.port());
        let run = ground.run(&["--name", &format!("killed-{wanted}")]);
        let stopped = until_within(LONG, "the request to be answered, or the end of the run", || {
            proxy.stopped().map(Some).or_else(|| run.ended().then_some(None))
        });
        let Some(asked) = stopped else {
            run.wait().calm().expect(0);
            break;
        };
        println!("killed after {} {}", asked.method, asked.path);
        run.signal(Signal::SIGKILL);
        run.wait();
        kills += 1;
    }
    ground.sandbox.write("kubeconfig", direct);
    // The Job, its secrets, its account and rights, its services, its start, and what ends it.
    assert!(kills >= 8, "only {kills} requests changed something");
    ground.becomes_empty(Duration::from_secs(240));
}
