//! Runs that are found in their namespace: from another directory, with nothing of theirs there.

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{Finished, Ground, LONG, Running, Sandbox, until_within};

use crate::lifecycle::{GATED, running};

/// Another machine of the user's, with nothing but the kubeconfig.
struct Elsewhere<'g> {
    ground: &'g Ground,
    sandbox: Sandbox,
}

impl<'g> Elsewhere<'g> {
    fn new(ground: &'g Ground) -> Elsewhere<'g> {
        Elsewhere { ground, sandbox: Sandbox::new() }
    }

    fn start(&self, arguments: &[&str]) -> Running {
        let kubeconfig = self.ground.sandbox.path("kubeconfig").display().to_string();
        let place = ["--namespace", &self.ground.namespace, "--kubeconfig", &kubeconfig];
        self.sandbox.start("scalable", &[arguments, &place].concat())
    }

    #[track_caller]
    fn scalable(&self, arguments: &[&str]) -> Finished {
        self.start(arguments).wait_within(LONG).calm()
    }

    /// The runs of the namespace.
    #[track_caller]
    fn listed(&self) -> Vec<Value> {
        let said = self.scalable(&["status", "-o", "json"]).expect(0).stdout;
        let document: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(document["schema"], "scalable.namespace.v1");
        document["runs"].as_array().unwrap().clone()
    }
}

/// A run that goes on without a command line, with a task that runs.
fn detached(ground: &Ground, more: &[&str]) -> String {
    ground.manifest("", GATED);
    ground.run_to_end(&[&["--detach"], more].concat()).expect(0);
    until_within(LONG, "a task that runs", || (running(ground) > 0).then_some(()));
    ground.last_run().name()
}

#[test]
fn seen_attached_and_taken_down_from_another_directory() {
    let Some(ground) = Ground::new("anywhere") else { return };
    let elsewhere = Elsewhere::new(&ground);
    assert_eq!(elsewhere.listed(), [Value::Null; 0]);
    let run = detached(&ground, &[]);

    let listed = elsewhere.listed();
    let of = |key: &str| listed[0][key].clone();
    assert_eq!((listed.len(), of("run"), of("status"), of("project")), (1, run.clone().into(), "running".into(), "e2e".into()));
    assert_eq!(listed[0]["tasks"]["total"], 2);
    elsewhere.scalable(&["status"]).expect(0).says(&[&run, "running", "0/2"]);
    elsewhere.scalable(&["status", &run]).expect(0).says(&["work", "worker"]);
    elsewhere.scalable(&["explain", "work[0]"]).expect(0).says(&["running"]);
    // What a task writes is seen while it executes, of one that waits for a gate that nobody has opened.
    let following = elsewhere.start(&["logs", "work[0]", "-f"]);
    until_within(LONG, "the words of a task that executes", || following.stdout().contains("here").then_some(()));
    // Nothing asks for a graceful end here, and a shell's background job may ignore SIGINT.
    following.signal(Signal::SIGTERM);
    following.wait();
    elsewhere.scalable(&["attach", "run-of-somebody"]).expect(2).says(&["there is no run \"run-of-somebody\"", &run]);

    let attached = elsewhere.start(&["attach", &run]);
    ground.open_gate("gate", attached).expect(0).says(&["2 succeeded"]);
    ground.nothing_is_left();
    // From now on the run has a directory there.
    let here = elsewhere.sandbox.last_run();
    assert_eq!((here.name(), here.outputs().len()), (run, 2));
    elsewhere.sandbox.scalable(&["logs", "work[0]"]).expect(0).says(&["here"]);
    elsewhere.sandbox.scalable(&["status"]).expect(0).says(&["completed", "e2e"]);
}

#[test]
fn cancelled_from_another_directory() {
    let Some(ground) = Ground::new("elsewhere") else { return };
    let run = detached(&ground, &[]);
    let elsewhere = Elsewhere::new(&ground);
    elsewhere.scalable(&["cancel", "work[0]"]).expect(0).says(&["cancelling", "work[0]"]);
    elsewhere.scalable(&["cancel", &run]).expect(0);
    elsewhere.scalable(&["attach"]).expect(1).says(&["cancelled"]);
    ground.nothing_is_left();
    elsewhere.scalable(&["attach", &run]).expect(2).says(&["there is no run in namespace"]);
}

#[test]
fn all_runs_go_and_nothing_else() {
    let Some(ground) = Ground::new("all") else { return };
    detached(&ground, &["--name", "one"]);
    ground.run_to_end(&["--detach", "--name", "two"]).expect(0);
    // Somebody else's pod, although it says that it belongs to a run.
    let cluster =
        ground.pods("scalable.io/role=scheduler,scalable.io/run=one")[0]["metadata"]["labels"]["scalable.io/cluster"].clone();
    ground.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: stranger\n  labels: {{scalable.io/cluster: {cluster}, scalable.io/run: one, \
         scalable.io/role: worker}}\nspec:\n  terminationGracePeriodSeconds: 1\n  securityContext: {{runAsNonRoot: true, runAsUser: 1000, \
         seccompProfile: {{type: RuntimeDefault}}}}\n  containers:\n  - name: c\n    image: {}\n    command: [/bin/sleep, '1000']\n    \
         securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}\n",
        tests::IMAGE
    ));
    let elsewhere = Elsewhere::new(&ground);
    elsewhere.scalable(&["down", "--all"]).expect(2).says(&["2 runs", "one, two", "--yes"]);
    assert_eq!(elsewhere.listed().len(), 2);
    elsewhere.scalable(&["down", "--all", "--yes"]).expect(0).says(&["one is down", "two is down"]);
    assert_eq!(ground.ours(), ["pod/stranger"]);
    elsewhere.scalable(&["down", "--all", "--yes"]).expect(0).says(&["there is no run"]);
}

/// What an administrator is given is all that it takes.
#[test]
fn the_printed_manifests_are_enough() {
    let Some(ground) = Ground::without_rights("manifests") else { return };
    ground.manifest("service_account: runs", "tasks:\n  work: { cpus: 0.1, command: [/bin/true] }\n");
    ground.run_to_end(&[]).expect(3).says(&["you may not", "ask an administrator"]);
    let arguments = ["k8s", "manifests", "-n", &ground.namespace, "--user", "scientist", "--service-account", "runs"];
    ground.apply(&ground.sandbox.scalable(&arguments).expect(0).stdout);
    let given = ground.ours();
    ground.run_to_end(&[]).expect(0);
    assert_eq!(ground.ours(), given);
}

#[test]
fn logs_of_a_run_that_lives() {
    let Some(ground) = Ground::new("logs") else { return };
    let early = "  early:\n    cpus: 0.1\n    memory: 16Mi\n    foreach: { n: { range: [0, 2] } }\n    command: [/bin/sh, -c, 'echo early $0; exit $0', '{n}']\n";
    ground.manifest("", &format!("{GATED}{early}"));
    ground.run_to_end(&["--detach"]).expect(0);
    let run = ground.last_run().name();
    let elsewhere = Elsewhere::new(&ground);
    until_within(LONG, "the logs of both tasks that have ended", || {
        let logs = ground.sandbox.start("scalable", &["logs", "early"]).wait_within(LONG).calm();
        (logs.stdout.contains("early 0") && logs.stdout.contains("early 1")).then_some(())
    });
    elsewhere.scalable(&["logs", "early[0]", "--stream", "stdout"]).expect(0).says(&["early 0"]);
    let failed = elsewhere.scalable(&["logs", "--failed", "--run", &run]).expect(0);
    assert!(failed.stdout.contains("early 1") && !failed.stdout.contains("early 0"), "{}", failed.stdout);
    until_within(LONG, "what a task has written that executes", || {
        elsewhere.scalable(&["logs", "work[0]"]).expect(0).stdout.contains("here").then_some(())
    });

    let followed = ground.sandbox.start("scalable", &["logs", "-f"]);
    until_within(LONG, "what is there already", || followed.stdout().contains("early 1").then_some(()));
    let attached = elsewhere.start(&["attach", &run]);
    ground.open_gate("gate", attached).expect(1);
    ground.nothing_is_left();
    drop(followed);
}

/// Nobody comes back for what came of it: the scheduler gives it up by itself, and the Job takes everything with it later.
#[test]
fn results_that_nobody_fetches_are_given_up() {
    let Some(ground) = Ground::new("ttl") else { return };
    ground.manifest("results_ttl: 5s", "tasks:\n  work: { cpus: 0.1, command: [/bin/true] }\n");
    ground.run_to_end(&["--detach", "--idle-ttl", "10s"]).expect(0);
    until_within(LONG, "the end of the job", || {
        let jobs: Value = serde_json::from_str(&ground.kubectl(&["get", "jobs", "-o", "json"])).unwrap();
        let conditions = jobs["items"][0]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|condition| condition["type"] == "Complete" && condition["status"] == "True").then_some(())
    });
    assert_eq!(Elsewhere::new(&ground).listed()[0]["status"], "ended");
}
