//! Pods as Kubernetes describes them, and what is read of them.

use serde_json::{Value, json};

use super::*;

fn pod(status: Value) -> Pod {
    let resources = json!({ "limits": { "memory": "16Gi" } });
    let spec = json!({ "containers": [{ "name": "worker", "image": "i", "resources": resources }] });
    serde_json::from_value(json!({ "metadata": { "name": "w" }, "spec": spec, "status": status })).expect("a pod")
}

fn worker(state: Value) -> Value {
    let status = json!({ "name": "worker", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state });
    json!({ "phase": "Running", "containerStatuses": [status] })
}

#[track_caller]
fn waits(status: Value, class: ReasonClass, reason: &str, message: &str) {
    let wait = Wait { class, reason: reason.to_owned(), message: message.to_owned() };
    assert_eq!(phase(&pod(status), WORKER_CONTAINER), Phase::Starting(Some(wait)));
}

#[track_caller]
fn died(status: Value, cause: Cause, reason: &str) {
    assert_eq!(phase(&pod(status), WORKER_CONTAINER), Phase::Ended(Death { cause, reason: reason.to_owned() }));
}

#[test]
fn what_a_pod_waits_for() {
    use ReasonClass::{Never, NotNow};
    let unschedulable = "0/2 nodes are available: 2 Insufficient cpu.";
    waits(
        json!({ "phase": "Pending", "conditions": [
            { "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": unschedulable },
        ] }),
        NotNow,
        "Unschedulable",
        unschedulable,
    );
    let back_off = "Back-off pulling image \"nowhere/i:1\"";
    waits(
        worker(json!({ "waiting": { "reason": "ImagePullBackOff", "message": back_off } })),
        NotNow,
        "ImagePullBackOff",
        back_off,
    );
    waits(worker(json!({ "waiting": { "reason": "InvalidImageName", "message": "bad" } })), Never, "InvalidImageName", "bad");
    let missing = "secret \"s\" not found";
    let status = worker(json!({ "waiting": { "reason": "CreateContainerConfigError", "message": missing } }));
    waits(status, NotNow, "CreateContainerConfigError", missing);
    let status = worker(json!({ "waiting": { "reason": "ErrImageNeverPull" } }));
    waits(status, NotNow, "ErrImageNeverPull", "container `worker` with image i");
    for silent in ["ContainerCreating", "PodInitializing"] {
        let status = worker(json!({ "waiting": { "reason": silent } }));
        assert_eq!(phase(&pod(status), WORKER_CONTAINER), Phase::Starting(None));
    }
    assert_eq!(phase(&pod(json!({ "phase": "Pending" })), WORKER_CONTAINER), Phase::Starting(None));
    let running = worker(json!({ "running": { "startedAt": "2026-01-01T00:00:00Z" } }));
    assert_eq!(phase(&pod(running), WORKER_CONTAINER), Phase::Running);
}

#[test]
fn what_a_worker_died_of() {
    let end = |code: i32, reason: &str| worker(json!({ "terminated": { "exitCode": code, "reason": reason } }));
    died(end(137, "OOMKilled"), Cause::OutOfMemory, "OOMKilled: the memory limit is 16Gi");
    died(end(0, "Completed"), Cause::Ended, "the worker ended with code 0");
    died(end(1, "Error"), Cause::Failed, "the worker ended with code 1");
    died(end(137, "Error"), Cause::Failed, "the worker ended with code 137: signal 9");
    died(end(137, "ContainerStatusUnknown"), Cause::NodeLost, "ContainerStatusUnknown");
    let start = "exec: \"/nowhere\": no such file or directory";
    died(
        worker(json!({ "terminated": { "exitCode": 128, "reason": "StartError", "message": start } })),
        Cause::NotStarted,
        &format!("StartError: {start}"),
    );
    let evicted = "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ";
    died(
        json!({ "phase": "Failed", "reason": "Evicted", "message": evicted }),
        Cause::Evicted,
        &format!("Evicted: {}", evicted.trim()),
    );
    let condition = |reason: &str| {
        let condition = json!({ "type": "DisruptionTarget", "status": "True", "reason": reason, "message": "gone" });
        json!({ "phase": "Failed", "conditions": [condition] })
    };
    died(condition("PreemptionByScheduler"), Cause::Preempted, "PreemptionByScheduler: gone");
    died(condition("EvictionByEvictionAPI"), Cause::Preempted, "EvictionByEvictionAPI: gone");
    died(condition("DeletionByTaintManager"), Cause::NodeLost, "DeletionByTaintManager: gone");
    died(condition("DeletionByPodGC"), Cause::NodeLost, "DeletionByPodGC: gone");
    died(
        json!({ "phase": "Failed", "reason": "OutOfcpu", "message": "Node didn't have enough resource: cpu" }),
        Cause::NotStarted,
        "OutOfcpu: Node didn't have enough resource: cpu",
    );
    let install = json!({ "name": "install", "image": "s", "imageID": "", "ready": false, "restartCount": 0,
        "state": { "terminated": { "exitCode": 2, "reason": "Error", "message": "no space" } } });
    died(
        json!({ "phase": "Failed", "initContainerStatuses": [install] }),
        Cause::NotStarted,
        "container `install` ended with code 2: Error: no space",
    );
    died(json!({ "phase": "Failed" }), Cause::NotStarted, "the pod ended before its worker ran");
}

#[test]
fn a_pod_that_somebody_ends() {
    let running = worker(json!({ "running": { "startedAt": "2026-01-01T00:00:00Z" } }));
    let mut deleted = pod(running);
    assert_eq!(leaving(&deleted), None);
    deleted.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("a time");
    assert_eq!(leaving(&deleted).map(|death| death.cause), Some(Cause::Removed));
    assert_eq!(phase(&deleted, WORKER_CONTAINER), Phase::Running);
}
