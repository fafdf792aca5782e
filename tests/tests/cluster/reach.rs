//! Schedulers that are reached without forwarded ports, by users who have no right to forward any.

use serde_json::{Value, json};
use tests::{Ground, IMAGE, LONG, scheduler_image, until_within};

use crate::lifecycle::{ENSEMBLE, ONE};

/// Takes the right to forward ports from the user's Role.
fn without_forwarding(ground: &Ground) {
    let mut role: Value = serde_json::from_str(&ground.kubectl(&["get", "role", "scalable-user", "-o", "json"])).unwrap();
    let rules = role["rules"].as_array_mut().unwrap();
    let before = rules.len();
    rules.retain(|rule| rule["resources"] != json!(["pods/portforward"]));
    assert_eq!(rules.len(), before - 1, "{rules:#?}");
    ground.apply(&role.to_string());
}

/// What an ingress, a load balancer or a node has to do: pass connections to 8786 and 8788 on. Who ends TLS there is no scheduler.
#[test]
fn at_an_address_of_the_cluster() {
    let Some(ground) = Ground::new("address") else { return };
    ground.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: door}\nspec:\n  type: NodePort\n  selector: {scalable.io/role: scheduler}\n  ports:\n  \
         - {name: scheduler, port: 8786}\n  - {name: store, port: 8788}\n",
    );
    let node = ground.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].status.addresses[?(@.type=='InternalIP')].address}"]);
    let ports = ground.kubectl(&["get", "service", "door", "-o", "jsonpath={.spec.ports[*].nodePort}"]);
    let addresses: Vec<String> = ports.split_whitespace().map(|port| format!("{node}:{port}")).collect();
    let [scheduler, store] = &addresses[..] else { panic!("{ports}") };

    ground.manifest("", ONE);
    without_forwarding(&ground);
    ground.run_to_end(&[]).expect(3).says(&["pods/portforward"]);
    ground.run_to_end(&["--scheduler-address", scheduler]).expect(2).says(&["--store-address"]);
    // Nothing of the scheduler's answers there.
    let nobody = "127.0.0.1:1";
    let refused = ground.run_to_end(&["--scheduler-address", nobody, "--store-address", nobody]);
    refused.expect(3).says(&[nobody, "without ending TLS"]);
    assert_eq!(ground.ours(), ["service/door"]);

    ground.manifest("", ENSEMBLE);
    ground.run_to_end(&["--detach", "--scheduler-address", scheduler, "--store-address", store]).expect(0);
    // The way is remembered.
    let attached = ground.sandbox.start("scalable", &["attach"]).wait_within(LONG).calm();
    attached.expect(0).says(&["5 succeeded"]);
    assert_eq!(ground.last_run().outputs().len(), 5);
    assert_eq!(ground.ours(), ["service/door"]);
}

/// A pod that starts runs in its own cluster needs nothing but its service account: the scheduler's Service has a name there.
#[test]
fn from_a_pod_of_the_cluster() {
    let Some(ground) = Ground::new("inside") else { return };
    let Some(programs) = std::env::var_os("SCALABLE_TEST_STATIC_BIN_DIR").map(std::path::PathBuf::from) else {
        println!("skipped: SCALABLE_TEST_STATIC_BIN_DIR names no static programs");
        return;
    };
    without_forwarding(&ground);
    let scheduler_image = scheduler_image();
    ground.apply(&format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: driver}}\n---\napiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\n\
         metadata: {{name: driver}}\nroleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: scalable-user}}\nsubjects:\n\
         - {{kind: ServiceAccount, name: driver}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: driver}}\nspec:\n  \
         serviceAccountName: driver\n  terminationGracePeriodSeconds: 1\n  securityContext: {{runAsNonRoot: true, runAsUser: 1000, \
         fsGroup: 1000, seccompProfile: {{type: RuntimeDefault}}}}\n  volumes: [{{name: work, emptyDir: {{}}}}]\n  containers:\n  \
         - name: worker\n    image: {IMAGE}\n    command: [/bin/sleep, '1000']\n    env: [{{name: HOME, value: /work}}, \
         {{name: SCALABLE_SCHEDULER_IMAGE, value: '{scheduler_image}'}}]\n    workingDir: /work\n    \
         volumeMounts: [{{name: work, mountPath: /work}}]\n    \
         securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}\n",
    ));
    ground.kubectl(&["wait", "--for=condition=Ready", "pod/driver", "--timeout=50s"]);
    ground.manifest("", ENSEMBLE);
    let manifest = ground.sandbox.path("scalable.yaml");
    for file in [programs.join("scalable"), manifest] {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        ground.kubectl(&["cp", &file.display().to_string(), &format!("driver:/work/{name}"), "-c", "worker"]);
    }
    // It goes on when whoever started it is gone: requests of the tests have an end.
    assert!(ground.exec(
        "driver",
        "(./scalable run scalable.yaml --target k8s >said 2>&1; echo $? >code.new; mv code.new code) >/dev/null 2>&1 &"
    ));
    until_within(LONG, "the end of the run in the pod", || ground.exec("driver", "test -e code").then_some(()));
    let said = ground.kubectl(&["exec", "driver", "-c", "worker", "--", "/bin/sh", "-c", "cat said code"]);
    assert!(said.contains("5 succeeded") && said.trim_end().ends_with("\n0"), "{said}");
    assert!(ground.exec("driver", "test $(find .scalable/runs/*/outputs -type f | wc -l) = 5"), "{said}");
    let ours = ground.ours();
    assert!(ours.iter().all(|name| name.ends_with("/driver")), "{ours:?}");
}
