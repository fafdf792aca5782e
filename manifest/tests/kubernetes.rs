//! What the options of a Kubernetes target become.
#![allow(clippy::unwrap_used)]

mod common;
use common::{Case, places};
use scalable_manifest::*;
use serde_json::json;

fn manifest(options: &str, component: &str) -> Case {
    Case::new(&format!(
        "version: 1\nproject: {{name: p}}\ntargets:\n  k:\n    provider: kubernetes\n    image: i\n{options}components:\n  c: {{{component}}}\ntasks: {{t: {{component: c, command: [x]}}}}\n"
    ))
}

fn options(text: &str) -> KubernetesOptions {
    let indented: String = text.lines().map(|line| format!("    {line}\n")).collect();
    manifest(&indented, "").manifest().target.kubernetes.unwrap()
}

#[test]
fn defaults_and_sizes() {
    assert_eq!(options(""), KubernetesOptions::default());
    let all = options(
        "namespace: team\nscheduler_cpu: 2\nscheduler_memory: 1Gi\nscheduler_storage: {claim: results}\nephemeral_storage: 20Gi\n\
         drain_timeout: 5m\nstart_deadline: 1h\nresults_ttl: 2d\njob_ttl: 30s\ninject: no\npod_security: baseline\nrun_as: {user: 0, fs_group: 5}\nnode_autoscaling: no",
    );
    assert_eq!(all.namespace.as_deref(), Some("team"));
    assert_eq!((all.scheduler_milli_cpus, all.scheduler_memory_bytes), (2_000, 1 << 30));
    assert_eq!(all.scheduler_storage, SchedulerStorage::Claim("results".to_owned()));
    assert_eq!((all.drain_timeout_ms, all.start_deadline_ms), (300_000, 3_600_000));
    assert_eq!((all.results_ttl_ms, all.job_ttl_ms), (2 * 86_400_000, 30_000));
    assert!(!all.inject && !all.node_autoscaling);
    assert_eq!(all.pod_security, PodSecurity::Baseline);
    assert_eq!(all.run_as, RunAs { user: Some(0), group: None, fs_group: Some(5) });
    assert_eq!(options("scheduler_storage: 5G").scheduler_storage, SchedulerStorage::Size(5_000_000_000));
}

#[test]
fn resources_are_normalised_and_counted() {
    let case = manifest(
        "    resources:\n      requests: {cpu: 500m, memory: 500MB}\n      limits: {cpu: \"2\", memory: 17179869184, nvidia.com/gpu: 2, example.com/fpga: 3, ephemeral-storage: 1Gi}\n",
        "",
    );
    let target = case.manifest().target;
    let made = target.kubernetes.unwrap().resources;
    assert_eq!(json!(made.requests), json!({"cpu": "500m", "memory": "500M"}));
    let limits =
        json!({"cpu": "2", "memory": "16Gi", "nvidia.com/gpu": "2", "example.com/fpga": "3", "ephemeral-storage": "1Gi"});
    assert_eq!(json!(made.limits), limits);
    assert_eq!((target.worker.milli_cpus, target.worker.memory_bytes, target.worker.gpus), (Some(2_000), Some(16 << 30), 2));
    assert_eq!(target.worker.custom["fpga"], 3);
}

#[test]
fn environment_in_both_spellings() {
    let mapping = options(
        "env: {A: yes, B: 3, C: {secretKeyRef: {name: s, key: k}}, D: {valueFrom: {fieldRef: {fieldPath: metadata.name}}}}",
    );
    let list = options(
        "env:\n- {name: A, value: yes}\n- {name: B, value: 3}\n- {name: C, valueFrom: {secretKeyRef: {name: s, key: k}}}\n- {name: D, valueFrom: {fieldRef: {fieldPath: metadata.name}}}",
    );
    assert_eq!(
        mapping.env,
        [
            json!({"name": "A", "value": "yes"}),
            json!({"name": "B", "value": "3"}),
            json!({"name": "C", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}),
            json!({"name": "D", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
        ]
    );
    assert_eq!(mapping.env, list.env);
    let made = options(
        "env_from: [{secretRef: {name: s}, prefix: P_}]\ntolerations: [{key: gpu, value: true, effect: NoSchedule, tolerationSeconds: 5}]",
    );
    assert_eq!(made.env_from, [json!({"secretRef": {"name": "s"}, "prefix": "P_"})]);
    assert_eq!(made.tolerations, [json!({"key": "gpu", "value": "true", "effect": "NoSchedule", "tolerationSeconds": 5})]);
}

#[test]
fn mounts_come_from_the_volume_that_stands_for_their_directory() {
    let made = options(
        "volumes:\n- {name: data, claim: study, host: /data}\n- {name: deep, claim: gcam, host: /data/gcam/, sub_path: v7, read_only: yes}\n- {name: cfg, config_map: settings, mount: /etc/model}",
    );
    let mount = |host: &str| made.mount(host, "/in").map(|m| (m.volume, m.sub_path, m.read_only));
    assert_eq!(mount("/data"), Some(("data".to_owned(), None, false)));
    assert_eq!(mount("/data/runs/1/"), Some(("data".to_owned(), Some("runs/1".to_owned()), false)));
    assert_eq!(mount("/data/gcam"), Some(("deep".to_owned(), Some("v7".to_owned()), true)));
    assert_eq!(mount("/data/gcam/input"), Some(("deep".to_owned(), Some("v7/input".to_owned()), true)));
    assert_eq!(mount("/database"), None);
    assert_eq!(made.volumes[2].source, json!({"configMap": {"name": "settings"}}));
}

#[test]
fn what_has_no_effect_is_said() {
    let case = manifest("", "runtime: apptainer, preload_script: load.sh, mounts: {/data: /in}, tags: [a]");
    let found = places(&case.findings());
    for path in ["components.c.runtime", "components.c.preload_script", "components.c.mounts./data"] {
        assert!(found.iter().any(|place| place.ends_with(&format!("W_NO_EFFECT {path}"))), "{path} is not in {found:?}");
    }
    assert!(!found.iter().any(|place| place.contains("tags")), "{found:?}");
    let errors = common::errors(&manifest("", "runtime: apptainer").strict().findings());
    assert!(errors.contains(&"W_NO_EFFECT"), "{errors:?}");
}

#[test]
fn a_size_above_the_limits_is_cut() {
    let case = manifest("    limits: {cpus: 4, memory: 8Gi}\n", "cpus: 16, memory: 64Gi");
    let manifest = case.manifest();
    let (size, capacity) = manifest.worker(&manifest.components[0]);
    assert_eq!((size.milli_cpus, size.memory_bytes), (4_000, 8 << 30));
    assert_eq!(capacity.memory_bytes, (8 << 30) - (64 << 20));
    let found = places(&case.findings());
    for key in ["cpus", "memory"] {
        assert!(found.iter().any(|place| place.ends_with(&format!("W_CLIPPED components.c.{key}"))), "{found:?}");
    }
}
