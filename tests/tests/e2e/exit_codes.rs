//! Exit codes and what is said with them, before anything has started.

use tests::Sandbox;

/// Checks a manifest that must be refused with code 2 by `run`, without a trace of a run.
#[track_caller]
fn refused(case: &str, body: &str, words: &[&str]) {
    let sandbox = Sandbox::new();
    sandbox.manifest(body);
    let finished = sandbox.scalable(&["run"]);
    assert_eq!(finished.code, 2, "{case}: {}\n{}", finished.stdout, finished.stderr);
    finished.says(words);
    assert!(sandbox.runs().is_empty(), "{case}: nothing is made for a run that is refused");
    sandbox.nothing_is_left();
}

#[test]
fn manifests_that_are_refused() {
    refused(
        "an unknown key",
        "targets: { local: { provider: local } }\ntasks:\n  a:\n    comand: [\"true\"]\n",
        &["scalable.yaml:6", "comand", "command"],
    );
    refused(
        "a dependency in a circle",
        "targets: { local: { provider: local } }\ntasks:\n  a: { command: [\"true\"], depends_on: [b] }\n  b: { command: [\"true\"], depends_on: [a] }\n",
        &["a", "b"],
    );
    refused(
        "a placeholder nobody knows",
        "targets: { local: { provider: local } }\ntasks:\n  a: { command: [echo, \"{mebmer}\"], foreach: { member: { range: [0, 2] } } }\n",
        &["mebmer", "member"],
    );
    refused(
        "a request that no worker can hold",
        "targets: { local: { provider: local } }\ntasks:\n  a: { command: [\"true\"], resources: { licence: 1 } }\n",
        &["licence"],
    );
    refused(
        "a Kubernetes target when no image of the scheduler is named",
        "targets: { k8s: { provider: kubernetes, image: x } }\ntasks:\n  a: { command: [\"true\"] }\n",
        &["k8s"],
    );
    refused(
        "a path out of the directory",
        "targets: { local: { provider: local } }\ntasks:\n  a: { command: [\"true\"], outputs: { x: { path: ../../x } } }\n",
        &["../../x"],
    );
    refused(
        "two errors in one go",
        "targets: { local: { provider: local, max_workers: 0 } }\ntasks:\n  a: { command: [\"true\"], retries: many }\n",
        &["max_workers", "retries"],
    );
}

#[test]
fn usage_and_infrastructure() {
    let sandbox = Sandbox::new();
    sandbox.scalable(&["run"]).expect(2).says(&["scalable.yaml"]);
    sandbox.scalable(&["run", "--no-such-option"]).expect(2);
    sandbox.scalable(&["status", "run-that-never-was"]).expect(2);
    sandbox.manifest("targets: { local: { provider: local } }\ntasks:\n  a: { command: [\"true\"] }\n");
    sandbox.token();
    // Port 1 on loopback: nobody listens.
    sandbox.scalable(&["run", "--address", "127.0.0.1:1", "--token-file", "token"]).expect(3).says(&["127.0.0.1:1"]);
    sandbox.scalable(&["run", "--target", "nowhere"]).expect(2).says(&["nowhere", "local"]);
    sandbox.nothing_is_left();
}

#[test]
fn a_program_that_is_not_there() {
    let sandbox = Sandbox::new();
    sandbox.manifest("targets: { local: { provider: local } }\ntasks:\n  a: { command: [no-such-program-anywhere] }\n");
    let finished = sandbox.scalable(&["run"]);
    assert!(matches!(finished.code, 1 | 2), "{}\n{}", finished.stdout, finished.stderr);
    finished.says(&["no-such-program-anywhere"]);
    sandbox.nothing_is_left();
}

#[test]
fn validate_and_plan_start_nothing() {
    let sandbox = Sandbox::new();
    sandbox.manifest(
        "targets: { k8s: { provider: kubernetes, image: x }, local: { provider: local } }\ntasks:\n  a: { command: [\"true\", \"{n}\"], foreach: { n: { range: [0, 7] } } }\n",
    );
    sandbox.scalable(&["validate"]).expect(0);
    for target in ["k8s", "local"] {
        sandbox.scalable(&["plan", "--target", target]).expect(0).says(&["7"]);
    }
    sandbox.scalable(&["run", "--dry-run", "--target", "local"]).expect(0);
    assert!(sandbox.runs().is_empty());
    sandbox.nothing_is_left();
}
