//! What a run's user hears when somebody takes away what the run needs, and that nothing is left then.

use serde_json::Value;
use tests::{Ground, LONG, Running, until_within};

use crate::lifecycle::{GATED, running};

/// A run that is watched, with a task that runs.
fn watched(ground: &Ground) -> Running {
    ground.manifest("", GATED);
    let run = ground.run(&[]);
    until_within(LONG, "a task that runs", || (running(ground) > 0).then_some(()));
    run
}

/// Name of the Job that owns everything of the run.
fn job(ground: &Ground) -> String {
    let pods = ground.pods("scalable.io/role=scheduler");
    pods[0]["metadata"]["labels"]["job-name"].as_str().unwrap().to_owned()
}

#[test]
fn the_schedulers_pod_is_deleted() {
    let Some(ground) = Ground::new("podgone") else { return };
    let run = watched(&ground);
    ground.kubectl(&["delete", "pod", "-l", "scalable.io/role=scheduler", "--wait=false"]);
    let ended = run.wait_within(LONG).calm().expect(3);
    ended.says(&["is lost, because its scheduler is gone", "the pod was deleted", "none of them are on this machine"]);
    ground.nothing_is_left();
    assert_eq!(ground.last_run().document("run.json")["status"], "failed");
    // Whoever asks later hears the same.
    ground.sandbox.scalable(&["attach"]).expect(3).says(&["is lost, because its scheduler is gone"]);
    ground.sandbox.scalable(&["status"]).expect(0).says(&["its scheduler was lost"]);
}

#[test]
fn nobody_watches_when_the_scheduler_is_lost() {
    let Some(ground) = Ground::new("unwatched") else { return };
    ground.manifest("", GATED);
    ground.run_to_end(&["--detach"]).expect(0);
    until_within(LONG, "a task that runs", || (running(&ground) > 0).then_some(()));
    let name = ground.last_run().name();
    ground.kubectl(&["delete", "pod", "-l", "scalable.io/role=scheduler"]);
    until_within(LONG, "the end of the job", || {
        let jobs: Value = serde_json::from_str(&ground.kubectl(&["get", "jobs", "-o", "json"])).unwrap();
        let conditions = jobs["items"][0]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|condition| condition["type"] == "Failed" && condition["status"] == "True").then_some(())
    });
    ground.sandbox.scalable(&["attach"]).expect(3).says(&[
        "is lost, because its scheduler is gone",
        "BackoffLimitExceeded",
        "none of them are on this machine",
    ]);
    let listed = ground.sandbox.scalable(&["status", "--namespace", &ground.namespace]).expect(0);
    listed.says(&[&name, "lost", "BackoffLimitExceeded"]);
    ground.sandbox.start("scalable", &["down", &name]).wait_within(LONG).calm().expect(0);
    ground.nothing_is_left();
}

#[test]
fn the_job_is_deleted() {
    let Some(ground) = Ground::new("jobgone") else { return };
    let run = watched(&ground);
    let job = job(&ground);
    ground.kubectl(&["delete", "job", &job, "--wait=false"]);
    run.wait_within(LONG).calm().expect(3).says(&["is lost, because its scheduler is gone", &format!("job {job} was deleted")]);
    ground.nothing_is_left();
}

/// The scheduler has read it: the run goes on. Only whoever comes later cannot prove to it who they are.
#[test]
fn the_secret_is_deleted() {
    let Some(ground) = Ground::new("secretgone") else { return };
    let run = watched(&ground);
    let job = job(&ground);
    ground.kubectl(&["delete", "secret", &job]);
    ground.sandbox.scalable(&["attach"]).expect(3).says(&[&format!("cannot read secret {job}"), "not found", "scalable down"]);
    ground.open_gate("gate", run).expect(0);
    ground.nothing_is_left();
}

#[test]
fn the_namespace_is_deleted() {
    let Some(ground) = Ground::new("namespacegone") else { return };
    let run = watched(&ground);
    ground.kubectl(&["delete", "namespace", &ground.namespace, "--wait=false"]);
    let ended = run.wait_within(LONG).calm().expect(3).says(&["is lost, because its scheduler is gone"]);
    // The right to ask for more goes with the namespace, sooner or later than the rest.
    let said = ["is being deleted", "there is no namespace", "Kubernetes does not say why"];
    assert!(said.iter().any(|words| ended.stderr.contains(words)), "{}", ended.stderr);
}
