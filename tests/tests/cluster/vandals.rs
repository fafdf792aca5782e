//! A user who deletes what a run needs, and an organisation that adds to its pods.

use serde_json::json;
use tests::{Ground, LONG, Webhook, until_within};

use crate::lifecycle::{ENSEMBLE, GATED, running};

/// Worker pods that somebody deletes are replaced; their tasks are executed again and none of their attempts is charged.
#[test]
fn the_workers_are_deleted() {
    let Some(ground) = Ground::new("deleted") else { return };
    // A pod that is deleted may finish what it executes: here it is not given the time.
    ground.manifest("drain_timeout: 1s", GATED);
    let run = ground.run(&[]);
    until_within(LONG, "two tasks that run", || (running(&ground) == 2).then_some(()));
    let before = ground.workers();
    ground.kubectl(&["delete", "pods", "-l", "scalable.io/role=worker", "--wait=false"]);
    until_within(LONG, "both tasks on other pods", || {
        let others = ground.workers().iter().all(|worker| !before.contains(worker));
        (others && running(&ground) == 2).then_some(())
    });
    ground.open_gate("gate", run).expect(0);
    ground.nothing_is_left();
    assert_eq!(ground.last_run().states(), ["work[0] succeeded", "work[1] succeeded"]);
}

/// An admission webhook gives every worker's pod a sidecar that does not end by itself: workers come, go and end as if it were not there.
#[test]
fn a_webhook_adds_a_sidecar() {
    let Some(ground) = Ground::new("sidecar").and_then(|ground| ground.with_own_cluster("an admission webhook")) else { return };
    let security = json!({ "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } });
    let sidecar = json!({
        "name": "audit", "image": tests::IMAGE, "command": ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"], "securityContext": security,
    });
    let cluster = ground.own_cluster().unwrap();
    let webhook = Webhook::new(&cluster, &json!([{ "op": "add", "path": "/spec/containers/0", "value": sidecar }]));
    let name = format!("{}.example.org", ground.namespace);
    let authority = std::fs::read_to_string(cluster.join("pki/ca.crt")).unwrap();
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration", "metadata": { "name": name },
        "webhooks": [{
            "name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail",
            "rules": [{ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"] }],
            "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": ground.namespace } },
            "objectSelector": { "matchLabels": { "scalable.io/role": "worker" } },
            "clientConfig": {
                "url": format!("https://{}:{}/", ground.machine(), webhook.port()), "caBundle": tests::base64(authority.as_bytes()),
            },
        }],
    });
    ground.apply(&configuration.to_string());
    ground.manifest("", ENSEMBLE);
    let run = ground.run(&[]);
    let pod = until_within(LONG, "a worker with its sidecar", || ground.pods("scalable.io/role=worker").pop());
    let finished = run.wait_within(LONG);
    ground.kubectl(&["delete", "mutatingwebhookconfiguration", &name]);
    finished.calm().expect(0);
    ground.nothing_is_left();
    assert_eq!(pod["spec"]["containers"][0]["name"], "audit", "{pod:#}");
    assert!(webhook.asked() >= 2, "it was asked {} times", webhook.asked());
}
