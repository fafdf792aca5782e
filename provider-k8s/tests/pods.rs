//! Pods, as they are sent to the API: one with every option, one with none, and what a patch may not do.
#![allow(clippy::unwrap_used)]

mod common;

use common::{cluster_id, manifest, pools};
use scalable_manifest::Manifest;
use scalable_provider_k8s::pods::{self, PodError, WorkerContext};
use serde_json::Value;

fn pod(manifest: &Manifest) -> Value {
    serde_json::to_value(&pools(manifest, "Energy 1")[0].template).unwrap()
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap()
}

#[test]
fn with_no_option() {
    let manifest = manifest("", "  gcam: {}\n");
    insta::assert_snapshot!("plain", pretty(&pod(&manifest)));
    assert_eq!(pools(&manifest, "r")[0].capacity.milli_cpus, 1_000);
}

#[test]
fn with_every_option() {
    let options = r#"
worker_service_account: model
resources:
  requests: {cpu: "4", memory: 16Gi}
  limits: {cpu: "4", memory: 16Gi, nvidia.com/gpu: 1, example.com/fpga: 2}
limits: {memory: 24Gi}
ephemeral_storage: 50Gi
env: {MODE: fast, KEY: {secretKeyRef: {name: licence, key: key}}, TMPDIR: /scratch}
env_from: [{configMapRef: {name: site}}]
tolerations: [{key: gpu, operator: Exists, effect: NoSchedule}]
node_selector: {pool: gpu}
labels: {team: energy}
annotations: {example.com/cost: "17"}
image_pull_policy: Always
image_pull_secrets: [registry]
priority_class: batch
volumes:
- {name: data, claim: study, host: /data}
- {name: scratch, emptyDir: {medium: Memory}, mount: /scratch}
- {name: licence, secret: licence, mount: /licence, read_only: true}
run_as: {user: 1000, fs_group: 2000}
drain_timeout: 5m
pod_patch:
  metadata: {labels: {extra: "1"}}
  spec:
    topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway}]
    containers:
    - name: worker
      env: [{name: PATCHED, value: "1"}]
    - {name: log, image: log:1}
"#;
    let component = "  GCAM_core: {image: 'gcam:7', cpus: 2, memory: 32Gi, tags: [a, b], mounts: {/data/gcam: /inputs}}\n";
    let manifest = manifest(options, component);
    insta::assert_snapshot!("every", pretty(&pod(&manifest)));
    let pool = &pools(&manifest, "r")[0];
    assert_eq!((pool.capacity.gpus, pool.capacity.custom["fpga"]), (1, 2));
    assert_eq!(pool.capacity.memory_bytes, (24 << 30) - (64 << 20));
}

#[test]
fn as_the_image_wants_it() {
    let manifest = manifest("pod_security: baseline\ninject: false\n", "  model: {}\n");
    let pod = pod(&manifest);
    assert!(pod["spec"].get("initContainers").is_none());
    let container = &pod["spec"]["containers"][0];
    assert!(container.get("command").is_none(), "{container}");
    assert_eq!(container["securityContext"], serde_json::json!({ "allowPrivilegeEscalation": false }));
    let context = &pod["spec"]["securityContext"];
    assert!(context.get("runAsUser").is_none() && context["fsGroup"] == 10_001, "{context}");
}

#[test]
fn what_is_no_pod_is_refused() {
    let refusal = |options: &str| {
        let manifest = manifest(options, "  c: {}\n");
        let context = WorkerContext {
            cluster_id: cluster_id("r"),
            run: "r".to_owned(),
            scheduler_image: "s:1".to_owned(),
            address: "https://s:8786".to_owned(),
            secret: "s".to_owned(),
        };
        let options = manifest.target.kubernetes.clone().unwrap();
        pods::pool(&manifest, &options, &manifest.components[0], &context).unwrap_err()
    };
    let patch = |message: &str| PodError::Patch { component: "c".to_owned(), message: message.to_owned() };
    assert_eq!(refusal("pod_patch: {spec: {nodeNam: a}}"), patch("no pod has spec.nodeNam"));
    let renamed = "pod_patch: {spec: {containers: [{name: worker, $patch: delete}, {name: other}]}}";
    assert_eq!(refusal(renamed), patch("it has no container `worker`"));
    let mistyped = refusal("pod_patch: {spec: {hostNetwork: 3}}").to_string();
    assert!(mistyped.starts_with("with `pod_patch` the pod of component `c` is none: "), "{mistyped}");
}

#[test]
fn the_rights_to_ask_for() {
    insta::assert_snapshot!("rights", scalable_provider_k8s::rights::manifests("team", Some("scalable")));
    insta::assert_snapshot!("binding", scalable_provider_k8s::rights::binding("team", "a: \"person\""));
    insta::assert_snapshot!("network", scalable_provider_k8s::network::policies("team"));
}
