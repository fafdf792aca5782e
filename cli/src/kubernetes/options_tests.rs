//! Every key that a Kubernetes target and a component may have, with what it does to what is brought up, or that it is said to do nothing.
//! A key that no row has fails the test, and so does a row whose key does nothing.

use std::collections::BTreeSet;

use scalable_manifest::{Severity, kubernetes_keys};
use scalable_proto::v1;
use serde_json::Value;

use super::*;
use crate::args::ManifestArgs;
use crate::ui::{Format, Ui};
use crate::workflow;

/// What a manifest becomes.
struct Made {
    options: KubernetesOptions,
    launch: Launch,
    spec: v1::RunSpec,
    provider: String,
}

impl Made {
    fn worker(&self) -> Value {
        json!(self.launch.pools[0].template)
    }

    fn job(&self) -> Value {
        json!(self.launch.job())
    }

    /// The value of an argument of the scheduler.
    fn argument(&self, name: &str) -> Value {
        let at = self.launch.scheduler_args.iter().position(|argument| argument == name);
        json!(at.and_then(|at| self.launch.scheduler_args.get(at + 1)))
    }

    fn dial(&self, name: &str) -> Value {
        let dials: Value = serde_json::from_str(self.argument("--scale").as_str().unwrap_or_default()).unwrap_or_default();
        dials[name].clone()
    }

    fn bounds(&self) -> Value {
        json!([self.launch.pools[0].minimum, self.launch.pools[0].maximum])
    }
}

/// What a key does.
enum Effect {
    /// Here in the worker's pod.
    Worker(&'static str, Value),
    /// Here in the scheduler's Job.
    Job(&'static str, Value),
    /// This dial of the scheduler's planner.
    Dial(&'static str, Value),
    /// In what the run is otherwise made of.
    Run(fn(&Made) -> Value, Value),
    /// A finding, as code and path, that `strict` refuses, and this in the worker's pod.
    Said(&'static str, &'static str, Value),
    /// Nothing but a finding of this code at this path, which `strict` refuses.
    Nothing(&'static str, &'static str),
}

struct Row {
    key: &'static str,
    target: &'static str,
    component: &'static str,
    effect: Effect,
}

fn of_target(key: &'static str, target: &'static str, effect: Effect) -> Row {
    Row { key, target, component: "", effect }
}

fn of_component(key: &'static str, component: &'static str, effect: Effect) -> Row {
    Row { key, target: "", component, effect }
}

/// Loads a manifest with these keys: what it becomes, unless it is refused, and the codes and paths of its findings.
fn load(target: &str, component: &str, strict: bool) -> (Option<Made>, Vec<(Severity, String)>) {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("input.txt"), "1").expect("a file");
    let path = directory.path().join("scalable.yaml");
    let image = if target.starts_with("image:") { "" } else { "image: base\n" };
    let keys: String = format!("provider: kubernetes\n{image}{target}").lines().map(|line| format!("    {line}\n")).collect();
    let text = format!(
        "version: 1\nproject: {{name: p}}\ntargets:\n  k:\n{keys}components:\n  c: {{{component}}}\n\
         tasks:\n  t: {{component: c, command: [x]}}\noverlays:\n  large: {{targets: {{k: {{namespace: of-the-overlay}}}}}}\n"
    );
    std::fs::write(&path, &text).expect("a manifest");
    let args = ManifestArgs { manifest: path, target: Some("k".to_owned()), overlay: None, strict };
    let loaded = workflow::read(&args);
    let (found, planned) = workflow::judge(&loaded);
    let found = found.iter().map(|finding| (finding.severity, format!("{} {}", finding.code, finding.path))).collect();
    let ui = Ui {
        format: Format::Text,
        bars: false,
        quiet: true,
        colour: false,
        stdout_is_terminal: false,
        stderr_is_terminal: false,
    };
    let workflow = planned.and_then(|_| workflow::load(ui, &args).ok());
    let made = workflow.map(|workflow| {
        let options = workflow.manifest.target.kubernetes.clone().expect("a Kubernetes target");
        // Where the target names none the environment would be asked.
        let image =
            options.scheduler_image.as_ref().map_or_else(String::new, |_| scheduler_image(&options, "k").unwrap_or_default());
        let launch = plan(&workflow, &options, image, "r", &namespace(&options, "of-the-context"), 1)
            .unwrap_or_else(|failure| panic!("{}\n{text}", failure.message));
        let lower =
            scalable_manifest::LowerOptions { run_name: "r".to_owned(), directory: "/r".to_owned(), ..Default::default() };
        let submission = scalable_manifest::lower(&workflow.manifest, &workflow.plan, &lower);
        let spec = submission.unwrap_or_else(|found| panic!("{found:?}\n{text}")).spec;
        Made { options, launch, spec, provider: workflow.plan.provider }
    });
    (made, found)
}

fn value(effect: &Effect, made: &Made) -> Value {
    match effect {
        Effect::Worker(at, _) | Effect::Said(_, at, _) => made.worker().pointer(at).cloned().unwrap_or_default(),
        Effect::Job(at, _) => made.job().pointer(at).cloned().unwrap_or_default(),
        Effect::Dial(name, _) => made.dial(name),
        Effect::Run(read, _) => read(made),
        Effect::Nothing(..) => Value::Null,
    }
}

fn check(row: &Row, base: &Made) {
    let what = format!("{} by `{}`", row.key, [row.target, row.component].concat());
    let (made, found) = load(row.target, row.component, false);
    let made = made.unwrap_or_else(|| panic!("{what} is refused: {found:?}"));
    let (strictly, refused) = load(row.target, row.component, true);
    let finding = match row.effect {
        Effect::Said(finding, _, _) => Some(finding.to_owned()),
        Effect::Nothing(code, path) => Some(format!("{code} {path}")),
        _ => None,
    };
    match finding {
        None => {
            assert!(found.is_empty(), "{what} has findings: {found:?}");
            assert!(strictly.is_some(), "{what} is refused under strict: {refused:?}");
        }
        Some(finding) => {
            let has = |found: &[(Severity, String)], severity| {
                found.iter().any(|(s, said)| *s == severity && said.starts_with(&finding))
            };
            assert!(has(&found, Severity::Warning), "{what} does not say {finding}: {found:?}");
            assert!(strictly.is_none() && has(&refused, Severity::Error), "{what} is not refused under strict: {refused:?}");
        }
    }
    let expected = match &row.effect {
        Effect::Worker(_, expected)
        | Effect::Job(_, expected)
        | Effect::Dial(_, expected)
        | Effect::Run(_, expected)
        | Effect::Said(_, _, expected) => expected,
        Effect::Nothing(..) => return,
    };
    assert_eq!(value(&row.effect, &made), *expected, "{what}");
    // Without its provider the base would be none.
    if row.key != "targets.provider" {
        assert_ne!(value(&row.effect, base), *expected, "{what} is so without the key");
    }
}

#[test]
fn every_key_has_an_effect_or_says_that_it_has_none() {
    let rows = [of_where(), of_scheduler(), of_scaling(), of_resources(), of_pods(), of_volumes(), of_components()];
    let rows: Vec<Row> = rows.into_iter().flatten().collect();
    let known: BTreeSet<String> = kubernetes_keys().into_iter().collect();
    let named: BTreeSet<String> = rows.iter().map(|row| row.key.to_owned()).filter(|key| !key.is_empty()).collect();
    assert_eq!(known, named, "keys of the manifest (left), and keys that have a row here (right)");
    let base = load("", "", true).0.expect("a manifest without options");
    rows.iter().for_each(|row| check(row, &base));
}

/// What lies beside the keys: options of other targets, and keys that nobody knows.
const NO_KEY: &str = "";

fn of_where() -> Vec<Row> {
    use Effect::*;
    vec![
        of_target("targets.provider", "", Run(|made| json!(made.provider), json!("kubernetes"))),
        of_target("targets.overlay", "overlay: large", Run(|made| json!(made.launch.namespace), json!("of-the-overlay"))),
        of_target(
            "targets.context",
            "context: prod",
            Run(|made| json!(access(&KubernetesArgs::default(), &made.options).context), json!("prod")),
        ),
        of_target("targets.namespace", "namespace: team", Run(|made| json!(made.launch.namespace), json!("team"))),
        of_target("targets.walltime", "walltime: 1h", Nothing("W_NO_EFFECT", "targets.k.walltime")),
        of_target(
            "targets.totals",
            "totals: {licence: 5}",
            Run(|made| json!(made.spec.totals[..].first().map(|t| t.amount)), json!(5)),
        ),
        of_target(NO_KEY, "max_workers: 2", Nothing("W_UNKNOWN_K8S_OPTION", "targets.k.max_workers")),
        of_target(NO_KEY, "dashboard_address: ':1'", Nothing("W_UNKNOWN_K8S_OPTION", "targets.k.dashboard_address")),
    ]
}

fn of_scheduler() -> Vec<Row> {
    use Effect::*;
    const REQUESTS: &str = "/spec/template/spec/containers/0/resources/requests";
    const STATE: &str = "/spec/template/spec/volumes/1";
    let state = |source: Value| {
        let mut state = json!({ "name": "state" });
        state.as_object_mut().expect("a mapping").extend(source.as_object().expect("a mapping").clone());
        state
    };
    let size = || json!({ "emptyDir": { "sizeLimit": "5Gi" } });
    vec![
        of_target("targets.scheduler_image", "scheduler_image: s:2", Job("/spec/template/spec/containers/0/image", json!("s:2"))),
        // It also brings the worker's program.
        of_target("targets.scheduler_image", "scheduler_image: s:2", Worker("/spec/initContainers/0/image", json!("s:2"))),
        of_target("targets.scheduler_cpu", "scheduler_cpu: 250m", Job(REQUESTS, json!({ "cpu": "250m", "memory": "512Mi" }))),
        of_target("targets.scheduler_memory", "scheduler_memory: 1Gi", Job(REQUESTS, json!({ "cpu": "500m", "memory": "1Gi" }))),
        of_target("targets.scheduler_storage", "scheduler_storage: 5Gi", Job(STATE, state(size()))),
        of_target("targets.scheduler_storage.size", "scheduler_storage: {size: 5Gi}", Job(STATE, state(size()))),
        of_target(
            "targets.scheduler_storage.size",
            "scheduler_storage: {size: 5Gi}",
            Run(|made| made.argument("--store-limit"), json!((5_u64 << 30).to_string())),
        ),
        of_target(
            "targets.scheduler_storage.claim",
            "scheduler_storage: {claim: results}",
            Job(STATE, state(json!({ "persistentVolumeClaim": { "claimName": "results" } }))),
        ),
        of_target(
            "targets.service_account",
            "service_account: runs",
            Job("/spec/template/spec/serviceAccountName", json!("runs")),
        ),
        of_target("targets.start_deadline", "start_deadline: 1m", Job("/spec/activeDeadlineSeconds", json!(60))),
        of_target(
            "targets.start_deadline",
            "start_deadline: 1m",
            Run(|made| json!(made.launch.pools[0].start_deadline_ms), json!(60_000)),
        ),
        of_target("targets.results_ttl", "results_ttl: 2h", Run(|made| made.argument("--results-ttl"), json!("7200"))),
        of_target("targets.job_ttl", "job_ttl: 1m", Job("/spec/ttlSecondsAfterFinished", json!(60))),
        // Read by the check before anything is created.
        of_target(
            "targets.node_autoscaling",
            "node_autoscaling: false",
            Run(|made| json!(made.launch.options.node_autoscaling), json!(false)),
        ),
    ]
}

fn of_scaling() -> Vec<Row> {
    use Effect::*;
    let mut rows = vec![
        of_target("targets.n_workers", "n_workers: 3", Run(Made::bounds, json!([3, 3]))),
        of_target("targets.n_workers", "n_workers: 3\nadaptive: {maximum: 4}", Nothing("W_NO_EFFECT", "targets.k.n_workers")),
        of_target("targets.n_workers", "n_workers: 3\nadaptive: false", Run(Made::bounds, json!([3, 3]))),
        of_target("targets.adaptive", "adaptive: true", Run(Made::bounds, json!([1, 10]))),
        of_target("targets.adaptive.minimum", "adaptive: {minimum: 2}", Run(Made::bounds, json!([2, 10]))),
        of_target("targets.adaptive.maximum", "adaptive: {maximum: 4}", Run(Made::bounds, json!([1, 4]))),
    ];
    let dials: [(&str, &str, &str, u64); 12] = [
        ("targets.adaptive.max_total", "adaptive: {max_total: 7}", "max_total", 7),
        ("targets.adaptive.target_duration", "adaptive: {target_duration: 90s}", "target_duration_ms", 90_000),
        ("targets.adaptive.expected_duration", "adaptive: {expected_duration: 7s}", "expected_duration_ms", 7_000),
        ("targets.adaptive.expected_start", "adaptive: {expected_start: 7s}", "expected_start_ms", 7_000),
        ("targets.adaptive.scale_down_delay", "adaptive: {scale_down_delay: 7s}", "scale_down_delay_ms", 7_000),
        ("targets.adaptive.idle_timeout", "adaptive: {idle_timeout: 7s}", "idle_timeout_ms", 7_000),
        ("targets.adaptive.scale_up_burst", "adaptive: {scale_up_burst: 7}", "scale_up_burst", 7),
        ("targets.adaptive.scale_up_interval", "adaptive: {scale_up_interval: 7s}", "scale_up_interval_ms", 7_000),
        ("targets.adaptive.max_unschedulable", "adaptive: {max_unschedulable: 7}", "max_unschedulable", 7),
        ("targets.adaptive.unschedulable_grace", "adaptive: {unschedulable_grace: 7s}", "unschedulable_grace_ms", 7_000),
        ("targets.adaptive.unschedulable_probe", "adaptive: {unschedulable_probe: 7}", "unschedulable_probe", 7),
        ("targets.adaptive.start_failures", "adaptive: {start_failures: 7}", "start_failures", 7),
    ];
    rows.extend(dials.map(|(key, target, dial, amount)| of_target(key, target, Dial(dial, json!(amount)))));
    rows
}

fn of_resources() -> Vec<Row> {
    use Effect::*;
    const REQUESTS: &str = "/spec/containers/0/resources/requests";
    const LIMITS: &str = "/spec/containers/0/resources/limits";
    const ALL: &str =
        "resources: {requests: {cpu: 500m, memory: 500MB}, limits: {memory: 16Gi, nvidia.com/gpu: 2, example.com/fpga: 3}}";
    vec![
        of_target("targets.resources", ALL, Worker(REQUESTS, json!({ "cpu": "500m", "memory": "500M" }))),
        of_target("targets.resources.requests", ALL, Worker(REQUESTS, json!({ "cpu": "500m", "memory": "500M" }))),
        of_target(
            "targets.resources.limits",
            ALL,
            Worker(LIMITS, json!({ "memory": "16Gi", "nvidia.com/gpu": "2", "example.com/fpga": "3" })),
        ),
        of_target(
            "targets.resources.limits",
            ALL,
            Run(
                |made| json!([made.launch.pools[0].capacity.gpus, made.launch.pools[0].capacity.custom.get("fpga")]),
                json!([2, 3]),
            ),
        ),
        // Kubernetes wants both of an extended resource.
        of_target(
            "targets.resources.requests",
            "resources: {requests: {cpu: 1, amd.com/gpu: 1}}",
            Worker(LIMITS, json!({ "amd.com/gpu": "1" })),
        ),
        of_target(
            "targets.limits",
            "resources: {requests: {cpu: 4, memory: 8Gi}}\nlimits: {cpus: 2, memory: 4Gi}",
            Said("W_CLIPPED targets.k.resources", REQUESTS, json!({ "cpu": "2", "memory": "4Gi" })),
        ),
        of_target(
            "targets.limits.cpus",
            "resources: {requests: {cpu: 4}}\nlimits: {cpus: 1500m}",
            Said("W_CLIPPED targets.k.resources", REQUESTS, json!({ "cpu": "1500m" })),
        ),
        of_target(
            "targets.limits.memory",
            "resources: {limits: {memory: 4G}}\nlimits: {memory: 500MB}",
            Said("W_CLIPPED targets.k.resources", LIMITS, json!({ "memory": "500M" })),
        ),
        of_target(
            "targets.ephemeral_storage",
            "ephemeral_storage: 20Gi",
            Worker("/spec/volumes/1/emptyDir/sizeLimit", json!("20Gi")),
        ),
        of_target("targets.ephemeral_storage", "ephemeral_storage: 20Gi", Worker(LIMITS, json!({ "ephemeral-storage": "20Gi" }))),
        of_target(
            "targets.ephemeral_storage",
            "ephemeral_storage: 20Gi\nresources: {limits: {ephemeral-storage: 1Gi}}",
            Nothing("W_NO_EFFECT", "targets.k.resources.limits.ephemeral-storage"),
        ),
    ]
}

fn of_pods() -> Vec<Row> {
    use Effect::*;
    const ENV: &str = "/spec/containers/0/env/5";
    let toleration = |key: &str| {
        json!({ "key": "gpu", "operator": "Equal", "value": "true", "effect": "NoExecute", "tolerationSeconds": 5 })[key].clone()
    };
    const TOLERATIONS: &str = "tolerations: [{key: gpu, operator: Equal, value: true, effect: NoExecute, tolerationSeconds: 5}]";
    const SELECTOR: &str = "node_selector: {pool: gpu}";
    const PULL: &str = "image_pull_policy: Always";
    const SECRETS: &str = "image_pull_secrets: [registry]";
    const PRIORITY: &str = "priority_class: batch";
    const PATCH: &str = "pod_patch: {metadata: {labels: {extra: '1'}}, spec: {topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway}]}}";
    const RUN_AS: &str = "run_as: {user: 1000, group: 2000, fs_group: 3000}";
    let secret = || json!({ "name": "KEY", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } });
    vec![
        of_target("targets.image", "image: other", Worker("/spec/containers/0/image", json!("other"))),
        of_target("targets.image_pull_policy", PULL, Worker("/spec/containers/0/imagePullPolicy", json!("Always"))),
        of_target("targets.image_pull_policy", PULL, Worker("/spec/initContainers/0/imagePullPolicy", json!("Always"))),
        of_target("targets.image_pull_policy", PULL, Job("/spec/template/spec/containers/0/imagePullPolicy", json!("Always"))),
        of_target("targets.image_pull_secrets", SECRETS, Worker("/spec/imagePullSecrets", json!([{ "name": "registry" }]))),
        of_target(
            "targets.image_pull_secrets",
            SECRETS,
            Job("/spec/template/spec/imagePullSecrets", json!([{ "name": "registry" }])),
        ),
        of_target("targets.inject", "inject: false", Worker("/spec/containers/0/command", Value::Null)),
        of_target("targets.inject", "inject: false", Worker("/spec/initContainers", Value::Null)),
        of_target("targets.env", "env: {MODE: yes}", Worker(ENV, json!({ "name": "MODE", "value": "yes" }))),
        of_target("targets.env", "env: {KEY: {secretKeyRef: {name: s, key: k}}}", Worker(ENV, secret())),
        of_target("targets.env", "env: {TMPDIR: /data/tmp}", Worker("/spec/containers/0/env/4/value", json!("/data/tmp"))),
        of_target("targets.env[].name", "env: [{name: MODE, value: 1}]", Worker("/spec/containers/0/env/5/name", json!("MODE"))),
        of_target("targets.env[].value", "env: [{name: MODE, value: 1}]", Worker("/spec/containers/0/env/5/value", json!("1"))),
        of_target(
            "targets.env[].valueFrom",
            "env: [{name: KEY, valueFrom: {secretKeyRef: {name: s, key: k}}}]",
            Worker(ENV, secret()),
        ),
        of_target(
            "targets.env_from",
            "env_from: [{secretRef: {name: s}}]",
            Worker("/spec/containers/0/envFrom", json!([{ "secretRef": { "name": "s" } }])),
        ),
        of_target(
            "targets.env_from[].secretRef",
            "env_from: [{secretRef: {name: s}}]",
            Worker("/spec/containers/0/envFrom/0/secretRef/name", json!("s")),
        ),
        of_target(
            "targets.env_from[].configMapRef",
            "env_from: [{configMapRef: {name: m}}]",
            Worker("/spec/containers/0/envFrom/0/configMapRef/name", json!("m")),
        ),
        of_target(
            "targets.env_from[].prefix",
            "env_from: [{configMapRef: {name: m}, prefix: P_}]",
            Worker("/spec/containers/0/envFrom/0/prefix", json!("P_")),
        ),
        of_target("targets.tolerations", TOLERATIONS, Job("/spec/template/spec/tolerations/0/key", json!("gpu"))),
        of_target("targets.tolerations[].key", TOLERATIONS, Worker("/spec/tolerations/0/key", toleration("key"))),
        of_target("targets.tolerations[].operator", TOLERATIONS, Worker("/spec/tolerations/0/operator", toleration("operator"))),
        of_target("targets.tolerations[].value", TOLERATIONS, Worker("/spec/tolerations/0/value", toleration("value"))),
        of_target("targets.tolerations[].effect", TOLERATIONS, Worker("/spec/tolerations/0/effect", toleration("effect"))),
        of_target(
            "targets.tolerations[].tolerationSeconds",
            TOLERATIONS,
            Worker("/spec/tolerations/0/tolerationSeconds", toleration("tolerationSeconds")),
        ),
        of_target("targets.node_selector", SELECTOR, Worker("/spec/nodeSelector", json!({ "pool": "gpu" }))),
        of_target("targets.node_selector", SELECTOR, Job("/spec/template/spec/nodeSelector", json!({ "pool": "gpu" }))),
        of_target("targets.labels", "labels: {team: energy}", Worker("/metadata/labels/team", json!("energy"))),
        of_target("targets.labels", "labels: {team: energy}", Job("/spec/template/metadata/labels/team", json!("energy"))),
        of_target("targets.annotations", "annotations: {cost: '17'}", Worker("/metadata/annotations/cost", json!("17"))),
        of_target(
            "targets.annotations",
            "annotations: {cost: '17'}",
            Job("/spec/template/metadata/annotations/cost", json!("17")),
        ),
        of_target(
            "targets.annotations",
            "annotations: {karpenter.sh/do-not-disrupt: 'false'}",
            Nothing("W_NO_EFFECT", "targets.k.annotations.karpenter.sh/do-not-disrupt"),
        ),
        of_target("targets.priority_class", PRIORITY, Worker("/spec/priorityClassName", json!("batch"))),
        of_target("targets.priority_class", PRIORITY, Job("/spec/template/spec/priorityClassName", json!("batch"))),
        of_target(
            "targets.worker_service_account",
            "worker_service_account: model",
            Worker("/spec/serviceAccountName", json!("model")),
        ),
        of_target("targets.pod_patch", PATCH, Worker("/metadata/labels/extra", json!("1"))),
        of_target("targets.pod_patch.metadata", PATCH, Worker("/metadata/labels/extra", json!("1"))),
        of_target("targets.pod_patch.spec", PATCH, Worker("/spec/topologySpreadConstraints/0/topologyKey", json!("zone"))),
        of_target(
            "targets.pod_patch.metadata",
            "pod_patch: {metadata: {annotations: {cluster-autoscaler.kubernetes.io/safe-to-evict: 'true'}}}",
            Nothing("W_NO_EFFECT", "targets.k.pod_patch.metadata.annotations.cluster-autoscaler.kubernetes.io/safe-to-evict"),
        ),
        of_target(
            "targets.pod_security",
            "pod_security: baseline",
            Worker("/spec/containers/0/securityContext", json!({ "allowPrivilegeEscalation": false })),
        ),
        of_target("targets.pod_security", "pod_security: baseline", Worker("/spec/securityContext/runAsUser", Value::Null)),
        of_target("targets.run_as", RUN_AS, Worker("/spec/securityContext/runAsUser", json!(1000))),
        of_target("targets.run_as.user", RUN_AS, Worker("/spec/securityContext/runAsUser", json!(1000))),
        of_target("targets.run_as.group", RUN_AS, Worker("/spec/securityContext/runAsGroup", json!(2000))),
        of_target("targets.run_as.fs_group", RUN_AS, Worker("/spec/securityContext/fsGroup", json!(3000))),
        of_target("targets.drain_timeout", "drain_timeout: 5m", Worker("/spec/terminationGracePeriodSeconds", json!(330))),
        of_target(
            "targets.drain_timeout",
            "drain_timeout: 5m",
            Run(|made| json!(made.launch.pools[0].drain_timeout_ms), json!(300_000)),
        ),
    ]
}

fn of_volumes() -> Vec<Row> {
    use Effect::*;
    // Behind those of Scalable.
    const VOLUME: &str = "/spec/volumes/3";
    const MOUNT: &str = "/spec/containers/0/volumeMounts/3";
    const PART: &str = "volumes: [{name: v, claim: study, mount: /data, sub_path: run-7, read_only: true}]";
    let volume = |source: &str, value: Value| json!({ "name": "v", source: value });
    let mounted = json!({ "name": "v", "mountPath": "/in", "subPath": "gcam" });
    let mut rows = vec![
        of_target("targets.volumes", PART, Worker(VOLUME, volume("persistentVolumeClaim", json!({ "claimName": "study" })))),
        of_target("targets.volumes[].name", PART, Worker("/spec/volumes/3/name", json!("v"))),
        of_target("targets.volumes[].mount", PART, Worker("/spec/containers/0/volumeMounts/3/mountPath", json!("/data"))),
        of_target("targets.volumes[].sub_path", PART, Worker("/spec/containers/0/volumeMounts/3/subPath", json!("run-7"))),
        of_target("targets.volumes[].read_only", PART, Worker("/spec/containers/0/volumeMounts/3/readOnly", json!(true))),
        Row {
            key: "targets.volumes[].host",
            target: "volumes: [{name: v, claim: study, host: /data}]",
            component: "mounts: {/data/gcam: /in}",
            effect: Worker(MOUNT, mounted.clone()),
        },
        Row {
            key: "components.mounts",
            target: "volumes: [{name: v, claim: study, host: /data}]",
            component: "mounts: {/data/gcam: /in}",
            effect: Worker(MOUNT, mounted),
        },
        of_target(
            "targets.volumes[].host",
            "volumes: [{name: v, claim: study, host: /data}]",
            Nothing("W_NO_EFFECT", "targets.k.volumes[0]"),
        ),
        of_component("components.mounts", "mounts: {/data/gcam: /in}", Nothing("W_NO_EFFECT", "components.c.mounts./data/gcam")),
    ];
    let sources: [(&str, &str, &str, Value); 13] = [
        (
            "targets.volumes[].claim",
            "volumes: [{name: v, mount: /m, claim: c}]",
            "persistentVolumeClaim",
            json!({ "claimName": "c" }),
        ),
        ("targets.volumes[].config_map", "volumes: [{name: v, mount: /m, config_map: c}]", "configMap", json!({ "name": "c" })),
        ("targets.volumes[].secret", "volumes: [{name: v, mount: /m, secret: s}]", "secret", json!({ "secretName": "s" })),
        (
            "targets.volumes[].persistentVolumeClaim",
            "volumes: [{name: v, mount: /m, persistentVolumeClaim: {claimName: c}}]",
            "persistentVolumeClaim",
            json!({ "claimName": "c" }),
        ),
        (
            "targets.volumes[].configMap",
            "volumes: [{name: v, mount: /m, configMap: {name: c}}]",
            "configMap",
            json!({ "name": "c" }),
        ),
        (
            "targets.volumes[].emptyDir",
            "volumes: [{name: v, mount: /m, emptyDir: {medium: Memory}}]",
            "emptyDir",
            json!({ "medium": "Memory" }),
        ),
        (
            "targets.volumes[].hostPath",
            "volumes: [{name: v, mount: /m, hostPath: {path: /h}}]",
            "hostPath",
            json!({ "path": "/h" }),
        ),
        (
            "targets.volumes[].nfs",
            "volumes: [{name: v, mount: /m, nfs: {server: s, path: /p}}]",
            "nfs",
            json!({ "server": "s", "path": "/p" }),
        ),
        ("targets.volumes[].csi", "volumes: [{name: v, mount: /m, csi: {driver: d}}]", "csi", json!({ "driver": "d" })),
        (
            "targets.volumes[].ephemeral",
            "volumes: [{name: v, mount: /m, ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce]}}}}]",
            "ephemeral",
            json!({ "volumeClaimTemplate": { "spec": { "accessModes": ["ReadWriteOnce"] } } }),
        ),
        (
            "targets.volumes[].projected",
            "volumes: [{name: v, mount: /m, projected: {sources: [{secret: {name: s}}]}}]",
            "projected",
            json!({ "sources": [{ "secret": { "name": "s" } }] }),
        ),
        (
            "targets.volumes[].downwardAPI",
            "volumes: [{name: v, mount: /m, downwardAPI: {items: [{path: p, fieldRef: {fieldPath: metadata.labels}}]}}]",
            "downwardAPI",
            json!({ "items": [{ "path": "p", "fieldRef": { "fieldPath": "metadata.labels" } }] }),
        ),
        (
            "targets.volumes[].image",
            "volumes: [{name: v, mount: /m, image: {reference: r:1}}]",
            "image",
            json!({ "reference": "r:1" }),
        ),
    ];
    rows.extend(sources.map(|(key, target, source, value)| of_target(key, target, Worker(VOLUME, volume(source, value)))));
    rows
}

fn of_components() -> Vec<Row> {
    use Effect::*;
    const RESOURCES: &str = "/spec/containers/0/resources";
    let target = "resources: {requests: {cpu: 4, memory: 8Gi}, limits: {cpu: 4, memory: 8Gi}}";
    let replaced = |component: &'static str, key: &'static str, cpu: &str, memory: &str| {
        let both = json!({ "cpu": cpu, "memory": memory });
        Row { key, target, component, effect: Worker(RESOURCES, json!({ "requests": both, "limits": both })) }
    };
    fn template(made: &Made) -> v1::TaskTemplate {
        made.spec.groups[0].template.clone().unwrap_or_default()
    }
    vec![
        of_component("components.image", "image: 'gcam:7'", Worker("/spec/containers/0/image", json!("gcam:7"))),
        of_component("components.runtime", "runtime: apptainer", Nothing("W_NO_EFFECT", "components.c.runtime")),
        of_component(
            "components.preload_script",
            "preload_script: load.sh",
            Nothing("W_NO_EFFECT", "components.c.preload_script"),
        ),
        replaced("cpus: 500m", "components.cpus", "500m", "8Gi"),
        replaced("memory: 500MB", "components.memory", "4", "500M"),
        Row {
            key: "components.memory",
            target: "limits: {memory: 1Gi}",
            component: "memory: 2Gi",
            effect: Said("W_CLIPPED components.c.memory", "/spec/containers/0/resources/limits", json!({ "memory": "1Gi" })),
        },
        of_component(
            "components.env",
            "env: {DATA: /in}",
            Run(|made| json!(template(made).env.contains_key("DATA")), json!(true)),
        ),
        of_component("components.tags", "tags: [a, b]", Worker("/metadata/annotations/scalable.io~1tags", json!("a,b"))),
        of_component("components.files", "files: [input.txt]", Run(|made| json!(template(made).files.len()), json!(1))),
    ]
}
