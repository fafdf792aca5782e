//! A manifest with many options at once: what a task finds in its pod, and what Kubernetes says the pods are.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};
use tests::{Ground, LONG, until_within};

/// What the cluster's administrator has made beyond the namespace; it goes with the test.
struct Given<'g> {
    ground: &'g Ground,
    node: String,
}

impl<'g> Given<'g> {
    /// Two volumes without a storage class, each a directory of this machine with a claim on it; a node with a label; a priority.
    fn new(ground: &'g Ground) -> Given<'g> {
        let name = &ground.namespace;
        for claim in ["data", "results"] {
            let directory = Given::directory(ground, claim);
            std::fs::create_dir(&directory).unwrap();
            // Kubernetes gives no directory of a node to a group.
            std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777)).unwrap();
            ground.apply(&format!(
                "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {name}-{claim}}}\nspec:\n  capacity: {{storage: 1Gi}}\n  \
                 accessModes: [ReadWriteMany]\n  storageClassName: ''\n  persistentVolumeReclaimPolicy: Retain\n  hostPath: {{path: {}, type: Directory}}\n\
                 ---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {claim}}}\nspec:\n  accessModes: [ReadWriteMany]\n  \
                 storageClassName: ''\n  volumeName: {name}-{claim}\n  resources: {{requests: {{storage: 1Gi}}}}\n",
                directory.display()
            ));
        }
        ground.kubectl(&["create", "priorityclass", name, "--value", "7", "--preemption-policy", "Never"]);
        ground.kubectl(&["create", "serviceaccount", "model"]);
        ground.kubectl(&["create", "secret", "generic", "licence", "--from-literal", "key=of-a-secret"]);
        ground.kubectl(&["create", "secret", "generic", "site", "--from-literal", "TOKEN=of-all-of-a-secret"]);
        ground.kubectl(&["create", "configmap", "site", "--from-literal", "PLACE=of-a-config-map"]);
        let registry = ["--docker-server", "registry.example.org", "--docker-username", "a", "--docker-password", "b"];
        ground.kubectl(&[&["create", "secret", "docker-registry", "registry"], &registry[..]].concat());
        let nodes = ground.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"]);
        let node = nodes.split(' ').next_back().unwrap().to_owned();
        ground.kubectl(&["label", "node", &node, &format!("{name}=here")]);
        Given { ground, node }
    }

    fn directory(ground: &Ground, claim: &str) -> PathBuf {
        ground.sandbox.path(&format!("volume-{claim}"))
    }
}

impl Drop for Given<'_> {
    fn drop(&mut self) {
        let name = &self.ground.namespace;
        self.ground.try_kubectl(&["label", "node", &self.node, &format!("{name}-")]);
        self.ground.try_kubectl(&["delete", "priorityclass", name]);
        // They go when the claims do, with the namespace.
        for claim in ["data", "results"] {
            self.ground.try_kubectl(&["delete", "pv", &format!("{name}-{claim}"), "--wait=false"]);
        }
    }
}

/// Writes what it finds to its output, and waits until it is let go.
const INSIDE: &str = r#"
components:
  tool:
    memory: 128Mi
    mounts: { /data/inputs: /inputs }
    env: { OF_COMPONENT: tool }
    tags: [a, b]
tasks:
  inside:
    component: tool
    cpus: 0.1
    memory: 32Mi
    outputs: { facts: file }
    command:
      - /bin/sh
      - -c
      - |
        (
          echo "ids $(id -u) $(id -g) $(id -G)"
          echo "env $MODE, $LICENCE, $TOKEN, $SITE_PLACE, $OF_COMPONENT"
          echo "file $(cat /etc/site/PLACE)"
          echo "input $(cat /inputs/one)"
          echo "home $HOME, temporary $TMPDIR"
          touch "$HOME/a" "$TMPDIR/b" && echo "scratch is written to"
          touch /a 2>/dev/null || echo "root is not"
          touch /etc/site/a 2>/dev/null || echo "nor what is mounted to be read"
          [ -e /var/run/secrets/kubernetes.io ] || echo "no token"
          echo "process 1 $(tr '\0' ' ' < /proc/1/cmdline | cut -d ' ' -f 1)"
          echo "from a task" > /data/from-task
        ) > "$0"
        until [ -e $HOME/gate ]; do sleep 0.1; done
      - "{outputs.facts}"
"#;

#[test]
fn many_options_at_once() {
    let image = format!("scalable-worker:{}", env!("CARGO_PKG_VERSION"));
    let archive = std::env::var_os("SCALABLE_TEST_ARCHIVES")
        .map(|directory| PathBuf::from(directory).join(format!("scalable-worker-{}.tar", env!("CARGO_PKG_VERSION"))));
    if !archive.is_some_and(|archive| archive.is_file()) {
        println!("skipped many options at once: SCALABLE_TEST_ARCHIVES has no image of scalable-worker");
        return;
    }
    let Some(ground) = Ground::new("options").and_then(|ground| ground.with_own_cluster("many options at once")) else { return };
    let given = Given::new(&ground);
    let data = Given::directory(&ground, "data");
    std::fs::create_dir(data.join("inputs")).unwrap();
    std::fs::write(data.join("inputs/one"), "of a volume").unwrap();
    let before = ground.ours();
    ground.manifest(
        &format!(
            r#"
image: {image}
inject: false
image_pull_policy: IfNotPresent
image_pull_secrets: [registry]
adaptive: {{ minimum: 1, maximum: 1 }}
resources: {{ requests: {{ cpu: 200m, memory: 64Mi }}, limits: {{ memory: 16Gi }} }}
limits: {{ memory: 160Mi }}
ephemeral_storage: 200Mi
scheduler_cpu: 150m
scheduler_memory: 256Mi
scheduler_storage: {{ claim: results }}
worker_service_account: model
env: {{ MODE: fast, LICENCE: {{ secretKeyRef: {{ name: licence, key: key }} }} }}
env_from: [{{ secretRef: {{ name: site }} }}, {{ configMapRef: {{ name: site }}, prefix: SITE_ }}]
node_selector: {{ {name}: here }}
tolerations: [{{ key: gpu, operator: Exists, effect: NoSchedule }}]
labels: {{ team: energy }}
annotations: {{ example.com/cost: "17" }}
priority_class: {name}
volumes: [{{ name: data, claim: data, host: /data, mount: /data }}, {{ name: site, config_map: site, mount: /etc/site, read_only: true }}]
drain_timeout: 7s
job_ttl: 1m
pod_patch: {{ metadata: {{ labels: {{ patched: "yes" }} }}, spec: {{ topologySpreadConstraints: [{{ maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {{ matchLabels: {{ team: energy }} }} }}] }} }}
"#,
            name = ground.namespace
        ),
        INSIDE,
    );
    let run = ground.run(&[]);
    let pod = until_within(LONG, "a worker that says that it is busy", || {
        let pods = ground.pods("scalable.io/role=worker");
        pods.into_iter().find(|pod| data.join("from-task").is_file() && pod["status"]["phase"] == "Running")
    });
    let scheduler = ground.pods("scalable.io/role=scheduler").remove(0);
    // What the scheduler keeps is on the claim, until the command line has fetched it.
    let name = ground.last_run().name();
    let kept = std::fs::read_dir(Given::directory(&ground, "results").join("runs")).unwrap().flatten();
    let kept: Vec<PathBuf> = kept.map(|epoch| epoch.path().join(&name)).collect();
    assert!(kept.iter().any(|directory| directory.is_dir()), "{kept:?}");
    ground.open_gate("gate", run).expect(0).says(&["W_CLIPPED"]);
    assert!(!kept.iter().any(|directory| directory.exists()), "{kept:?}");

    let run = ground.last_run();
    the_worker_is(&pod, &image, &run.name(), &ground, &given);
    the_scheduler_is(&scheduler, &ground, &given);
    let facts = run.output(&run.outputs()[0]);
    assert_eq!(
        facts,
        "ids 10001 10001 10001\nenv fast, of-a-secret, of-all-of-a-secret, of-a-config-map, tool\nfile of-a-config-map\ninput of a volume\n\
         home /scalable/scratch, temporary /scalable/scratch\nscratch is written to\nroot is not\nnor what is mounted to be read\nno token\n\
         process 1 /usr/local/bin/scalable-worker\n"
    );
    assert_eq!(std::fs::read_to_string(data.join("from-task")).unwrap(), "from a task\n");
    assert_eq!(ground.ours(), before);
}

#[track_caller]
fn has(object: &Value, path: &str, expected: Value) {
    assert_eq!(object.pointer(path).unwrap_or(&Value::Null), &expected, "{path} of {object:#}");
}

/// The element of a list that has this value.
#[track_caller]
fn element<'v>(object: &'v Value, list: &str, key: &str, value: &str) -> &'v Value {
    let items = object.pointer(list).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    items.iter().find(|item| item[key] == value).unwrap_or_else(|| panic!("no {key} {value} in {list} of {object:#}"))
}

fn the_worker_is(pod: &Value, image: &str, run: &str, ground: &Ground, given: &Given<'_>) {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    assert!(name.starts_with("scalable-worker-tool-"), "{name}");
    for (label, value) in [("run", run), ("component", "tool"), ("role", "worker")] {
        has(pod, &format!("/metadata/labels/scalable.io~1{label}"), json!(value));
    }
    assert!(pod["metadata"]["labels"]["scalable.io/cluster"].is_string(), "{pod:#}");
    has(pod, "/metadata/labels/team", json!("energy"));
    has(pod, "/metadata/labels/patched", json!("yes"));
    has(pod, "/metadata/annotations/example.com~1cost", json!("17"));
    has(pod, "/metadata/annotations/scalable.io~1tags", json!("a,b"));
    has(pod, "/metadata/annotations/cluster-autoscaler.kubernetes.io~1safe-to-evict", json!("false"));
    has(pod, "/metadata/annotations/karpenter.sh~1do-not-disrupt", json!("true"));
    has(pod, "/spec/nodeName", json!(given.node));
    has(pod, "/spec/priorityClassName", json!(ground.namespace));
    has(pod, "/spec/priority", json!(7));
    has(pod, "/spec/serviceAccountName", json!("model"));
    has(pod, "/spec/automountServiceAccountToken", json!(false));
    has(pod, "/spec/terminationGracePeriodSeconds", json!(37));
    has(pod, "/spec/imagePullSecrets", json!([{ "name": "registry" }]));
    has(pod, "/spec/topologySpreadConstraints/0/topologyKey", json!("kubernetes.io/hostname"));
    has(pod, "/spec/initContainers", Value::Null);
    has(pod, "/spec/securityContext/runAsUser", json!(10_001));
    has(pod, "/spec/securityContext/fsGroup", json!(10_001));
    has(pod, "/spec/securityContext/seccompProfile/type", json!("RuntimeDefault"));
    has(element(pod, "/spec/tolerations", "key", "gpu"), "/operator", json!("Exists"));
    has(element(pod, "/spec/volumes", "name", "data"), "/persistentVolumeClaim/claimName", json!("data"));
    has(element(pod, "/spec/volumes", "name", "scalable-scratch"), "/emptyDir/sizeLimit", json!("200Mi"));
    let container = element(pod, "/spec/containers", "name", "worker");
    has(container, "/image", json!(image));
    has(container, "/imagePullPolicy", json!("IfNotPresent"));
    has(container, "/command", Value::Null);
    has(container, "/resources/requests", json!({ "cpu": "200m", "memory": "128Mi", "ephemeral-storage": "200Mi" }));
    has(container, "/resources/limits", json!({ "memory": "128Mi", "ephemeral-storage": "200Mi" }));
    has(container, "/securityContext/readOnlyRootFilesystem", json!(true));
    has(container, "/securityContext/capabilities/drop", json!(["ALL"]));
    has(element(container, "/volumeMounts", "mountPath", "/inputs"), "/subPath", json!("inputs"));
}

fn the_scheduler_is(pod: &Value, ground: &Ground, given: &Given<'_>) {
    has(pod, "/metadata/labels/team", json!("energy"));
    has(pod, "/metadata/annotations/example.com~1cost", json!("17"));
    has(pod, "/spec/nodeName", json!(given.node));
    has(pod, "/spec/priorityClassName", json!(ground.namespace));
    has(element(pod, "/spec/tolerations", "key", "gpu"), "/operator", json!("Exists"));
    has(element(pod, "/spec/volumes", "name", "state"), "/persistentVolumeClaim/claimName", json!("results"));
    has(pod, "/spec/imagePullSecrets", json!([{ "name": "registry" }]));
    has(pod, "/spec/containers/0/resources/requests", json!({ "cpu": "150m", "memory": "256Mi" }));
}
