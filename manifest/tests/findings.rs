//! Every bad input has a finding with a code, a place and a way out. Cases are (manifest, expected findings).
#![allow(clippy::unwrap_used)]

mod common;
use common::{Case, errors, places};
use scalable_manifest::*;

/// What a manifest with a good head is made from; the head has five lines.
fn with_head(body: &str) -> String {
    format!("version: 1\nproject: {{name: p}}\ntargets: {{local: {{provider: local}}}}\ncomponents: {{c: {{}}}}\n#\n{body}")
}

/// A manifest with one task `t`; its keys begin in line 8, column 5.
fn task(keys: &str) -> String {
    let body: String = keys.lines().map(|line| format!("    {line}\n")).collect();
    with_head(&format!("tasks:\n  t:\n{body}"))
}

#[track_caller]
fn check(yaml: &str, expected: &[&str]) {
    check_case(&Case::new(yaml), expected);
}

#[track_caller]
fn check_case(case: &Case, expected: &[&str]) {
    let findings = case.findings();
    assert_eq!(places(&findings), expected, "{findings:#?}");
    for finding in &findings {
        assert!(finding.message.len() < 2_000 && !finding.message.contains('\n'), "{finding:?}");
    }
}

#[track_caller]
fn message(yaml: &str, code: &str) -> (String, String) {
    let findings = Case::new(yaml).findings();
    let found = findings.iter().find(|d| d.code == code).unwrap_or_else(|| panic!("{code} not in {findings:#?}"));
    (found.message.clone(), found.help.clone().unwrap_or_default())
}

#[test]
fn the_document_as_a_whole() {
    check("", &["0:0 E_EMPTY manifest"]);
    check("# nothing\n", &["0:0 E_EMPTY manifest"]);
    check("null", &["0:0 E_EMPTY manifest"]);
    check("- a\n- b\n", &["1:1 E_TYPE manifest"]);
    assert_eq!(message("- a\n", "E_TYPE").0, "manifest must be a mapping at the top level, got list");
    check("just text", &["1:1 E_TYPE manifest"]);
    check("a: [1\nb: 2\n", &["2:2 E_YAML manifest"]);
    check(
        "version: 1\nversion: 1\nproject: {name: p}\n",
        &["1:1 W_NO_TARGETS targets", "1:1 W_NO_TASKS tasks", "2:1 E_DUPLICATE_KEY version"],
    );
    check("version: 1\n---\nversion: 1\n", &["2:1 E_YAML manifest"]);
    check("version: !custom 1\n", &["1:18 E_YAML manifest"]);
    check("? [a]\n: 1\n", &["1:3 E_YAML manifest"]);
    check("version: 1\nproject: *nowhere\n", &["2:10 E_YAML manifest"]);
    let (_, help) = message("version: 1\ntasks:\n\tt: {}\n", "E_YAML");
    assert!(help.contains("tab"), "{help}");
    check_case(&Case::bytes(b"version: 1\nproject: {name: \xff}\n"), &["0:0 E_YAML manifest"]);
    let unreadable = load(
        std::path::Path::new("/nonexistent/scalable.yaml"),
        &LoadOptions {
            target: None,
            overlay: None,
            env: &|_| None,
            machine: Machine { milli_cpus: 1, memory_bytes: 1 },
            strict: false,
        },
    );
    assert_eq!(places(&unreadable.diagnostics), ["0:0 E_READ manifest"]);
    assert!(unreadable.diagnostics[0].message.starts_with("could not read manifest at /nonexistent/scalable.yaml"));
}

#[test]
fn documents_that_try_to_be_too_much() {
    let deep = format!("a: {}1{}", "[".repeat(1000), "]".repeat(1000));
    assert_eq!(errors(&Case::new(&deep).findings()), ["E_YAML"]);
    let mut laughs = String::from("l0: &l0 [x,x,x,x,x,x,x,x,x,x]\n");
    for n in 1..12 {
        let prev = n - 1;
        laughs.push_str(&format!(
            "l{n}: &l{n} [*l{prev},*l{prev},*l{prev},*l{prev},*l{prev},*l{prev},*l{prev},*l{prev},*l{prev},*l{prev}]\n"
        ));
    }
    let found = Case::new(&laughs).findings();
    assert_eq!(errors(&found), ["E_YAML"]);
    assert!(found[0].message.contains("aliases repeat more than 200000 values"));
    check("a: &a [*a]\n", &["1:8 E_YAML manifest"]);
    let case = Case::new("");
    let file = std::fs::File::create(case.dir.path().join("scalable.yaml")).unwrap();
    file.set_len((16 << 20) + 1).unwrap();
    check_case(&case, &["0:0 E_TOO_LARGE manifest"]);
    // A great many errors are counted, not kept.
    let many: String = (0..2_000).map(|n| format!("k{n}: 1\n")).collect();
    let found = Case::new(&many).findings();
    assert_eq!(found.len(), DIAGNOSTICS_MAX + 1);
    assert_eq!(found.last().unwrap().code, "E_MORE");
}

#[test]
fn top_level_keys_and_defaults() {
    check(
        "{}",
        &["1:1 W_DEFAULT_VERSION version", "1:1 W_DEFAULT_PROJECT project", "1:1 W_NO_TARGETS targets", "1:1 W_NO_TASKS tasks"],
    );
    let (text, help) = message("version: 1\nproject: {name: p}\ncomponent: {}\n", "E_UNKNOWN_KEY");
    assert!(text.starts_with("unknown top-level manifest key(s): component (allowed: ["), "{text}");
    assert_eq!(help, "did you mean `components`?");
    for (version, message_start) in [
        ("true", "manifest 'version' must be an integer, got bool"),
        ("\"1\"", "manifest 'version' must be an integer, got str"),
        ("1.0", "manifest 'version' must be an integer, got float"),
        ("2", "manifest schema version 2 is not supported by this Scalable build (expected 1). Upgrade"),
    ] {
        let (text, _) = message(&format!("version: {version}\nproject: {{name: p}}\n"), "E_BAD_VERSION");
        assert!(text.starts_with(message_start), "{text}");
    }
    check(
        "version: 1\nproject: {nme: p}\ntargets: []\ntasks: []\n",
        &[
            "2:10 E_MISSING_KEY project.name",
            "2:11 E_UNKNOWN_KEY project.nme",
            "3:10 W_NO_TARGETS targets",
            "4:8 W_NO_TASKS tasks",
        ],
    );
    check(
        "version: 1\nproject: {name: \"  \"}\n",
        &["1:1 W_NO_TARGETS targets", "1:1 W_NO_TASKS tasks", "2:11 E_MISSING_KEY project.name"],
    );
    check("version: 1\nproject: p\n", &["1:1 W_NO_TARGETS targets", "1:1 W_NO_TASKS tasks", "2:10 E_TYPE project"]);
    check(
        "version: 1\nproject: {name: p}\ntargets: 3\ncomponents: x\ntasks: y\n",
        &["3:10 E_TYPE targets", "3:10 W_NO_TARGETS targets", "4:13 E_TYPE components", "5:8 E_TYPE tasks"],
    );
    check(
        "version: 1\nstrict: maybe\nproject: {name: p}\n",
        &["1:1 W_NO_TARGETS targets", "1:1 W_NO_TASKS tasks", "2:9 E_TYPE strict"],
    );
    assert_eq!(Case::new("version: 1\nproject: {name: \" My study! é \"}\n").manifest().project.slug(), "My-study");
}

#[test]
fn the_environment() {
    let head = "version: 1\nproject: {name: \"${N:-d}-${M}\"}\n";
    check(head, &["1:1 W_NO_TARGETS targets", "1:1 W_NO_TASKS tasks", "2:17 E_ENV_UNSET project.name"]);
    let (text, _) = message(head, "E_ENV_UNSET");
    assert_eq!(text, "environment variable 'M' referenced in manifest is not set and no default (${M:-...}) was provided");
    let name = |value: &str| {
        Case::new(&format!("version: 1\nproject: {{name: \"{value}\"}}\n")).env("M", "m").env("EMPTY", "").manifest().project.name
    };
    assert_eq!(name("${N:-d}-${M}"), "d-m");
    assert_eq!(name("x${EMPTY:-default}"), "x", "set but empty is not unset");
    assert_eq!(name("$HOME ${x%.txt} $$ $"), "$HOME ${x%.txt} $$ $", "nothing else is touched");
    assert_eq!(name("$${M} $${M:-${M}} $$${M}"), "${M} ${M:-${M}} $${M}");
    assert_eq!(errors(&Case::new("version: 1\nproject: {name: \"$${open\"}\n").findings()), ["E_BRACE"]);
    // Keys are not expanded; plain scalars serve as numbers.
    let case =
        Case::new("version: 1\nproject: {name: p}\ntargets: {local: {provider: local, max_workers: \"${W}\"}}\n").env("W", "3");
    assert_eq!(errors(&case.findings()), ["E_BAD_MAX_WORKERS"], "quoted it is a string");
    let case = Case::new("version: 1\nproject: {name: p}\ntargets: {local: {provider: local, max_workers: ${W}}}\n");
    assert_eq!(errors(&case.findings()), ["E_YAML"], "in a flow mapping braces need quotes");
    let case = Case::new("version: 1\nproject: {name: p}\ntargets:\n  local:\n    provider: local\n    max_workers: ${W:-3}\n");
    assert_eq!(case.manifest().target.local.unwrap().max_workers, 3);
}

#[test]
fn targets() {
    let target = |keys: &str| {
        format!("version: 1\nproject: {{name: p}}\ntargets:\n  t: {{{keys}}}\ntasks: {{a: {{command: [\"true\"]}}}}\n")
    };
    check(&target("provider: docker"), &["4:17 E_UNKNOWN_PROVIDER targets.t.provider"]);
    let (text, help) = message(&target("provider: kubernets"), "E_UNKNOWN_PROVIDER");
    assert!(text.starts_with("unknown provider 'kubernets'; known providers: ["), "{text}");
    assert_eq!(help, "did you mean `kubernetes`?");
    check(&target("max_workers: 2"), &["4:6 E_MISSING_KEY targets.t.provider"]);
    assert_eq!(message(&target("provider: 7"), "E_MISSING_KEY").0, "'targets.t.provider' is required and must be a string");
    for (keys, code) in [
        ("max_workers: 0", "E_BAD_MAX_WORKERS"),
        ("max_workers: true", "E_BAD_MAX_WORKERS"),
        ("max_workers: 1.5", "E_BAD_MAX_WORKERS"),
        ("max_workers: 1000000", "E_BAD_MAX_WORKERS"),
        ("threads_per_worker: -1", "E_BAD_THREADS_PER_WORKER"),
        ("processes: 3", "E_BAD_PROCESSES_FLAG"),
        ("containers: podman", "E_BAD_CONTAINERS_MODE"),
        ("totals: [a]", "E_TYPE"),
        ("totals: {licence: some}", "E_TYPE"),
        ("totals: {cpus: 3}", "E_RESERVED_NAME"),
        ("gpus: -1", "E_BAD_GPUS"),
    ] {
        assert_eq!(errors(&Case::new(&target(&format!("provider: local, {keys}"))).findings()), [code], "{keys}");
    }
    // Both spellings of booleans.
    for word in ["yes", "on", "true", "True"] {
        check(&target(&format!("provider: local, processes: {word}")), &[]);
    }
    check(&target("provider: local, processes: no"), &["4:24 W_NO_EFFECT targets.t.processes"]);
    check(&target("provider: local, containers: docker"), &["4:24 W_LOCAL_CONTAINERS_DEFERRED targets.t.containers"]);
    check(&target("provider: local, max_wokers: 2"), &["4:24 W_NO_EFFECT targets.t.max_wokers"]);
    assert_eq!(message(&target("provider: local, max_wokers: 2"), "W_NO_EFFECT").1, "did you mean `max_workers`?");
    for (keys, code) in [
        ("walltime: 2h, comm_port: 1", "E_BAD_WALLTIME"),
        ("comm_port: 0", "E_BAD_COMM_PORT"),
        ("queue: short", "E_MISSING_COMM_PORT"),
        ("comm_port: 1, container_runtime: podman", "E_BAD_CONTAINER_RUNTIME"),
        ("comm_port: 1, suppress_logs: 3", "E_BAD_SUPPRESS_LOGS"),
        ("comm_port: 1, queue: 3", "E_BAD_QUEUE"),
    ] {
        assert_eq!(errors(&Case::new(&target(&format!("provider: slurm, {keys}"))).findings()), [code], "{keys}");
    }
    assert_eq!(errors(&Case::new(&target("provider: slurm")).env("COMM_PORT", "50051").findings()), [""; 0]);
    check(&target("provider: slurm, comm_port: 1, walltime: 12:00:00"), &["4:6 W_PROVIDER_UNAVAILABLE targets.t.provider"]);
    for (keys, code) in [
        ("image: i, namespace: Team Energy", "E_BAD_NAMESPACE"),
        ("image: i, namespace: 3", "E_BAD_NAMESPACE"),
        ("image: i, adaptive: {minimum: 5, maximum: 2}", "E_BAD_ADAPTIVE"),
        ("image: i, adaptive: {min: 5}", "E_UNKNOWN_KEY"),
        ("image: i, adaptive: {target_duration: 0s}", "E_BAD_ADAPTIVE"),
        ("image: i, adaptive: {scale_up_burst: 10001}", "E_BAD_ADAPTIVE"),
        ("image: i, adaptive: {max_total: 0}", "E_BAD_ADAPTIVE"),
        ("image: i, adaptive: {idle_timeout: soon}", "E_BAD_DURATION"),
        ("image: i, n_workers: many", "E_BAD_N_WORKERS"),
        ("image: i, tolerations: {}", "E_BAD_TOLERATIONS"),
        ("image: i, env: []", "E_BAD_ENV"),
        ("image: i, resources: {limits: {memory: lots}}", "E_BAD_MEMORY"),
        ("image: i, resources: {limits: {cpu: x}}", "E_BAD_CPUS"),
        ("image: i, resources: {limit: {cpu: 1}}", "E_UNKNOWN_KEY"),
        ("image: i, resources: {limits: {disk: 1}}", "E_BAD_RESOURCES"),
        ("image: i, resources: {limits: {example.com/fpga: some}}", "E_BAD_RESOURCES"),
        ("image: i, resources: {limits: {nvidia.com/gpu: -1}}", "E_BAD_GPUS"),
        ("image: i, limits: {cpu: 1}", "E_UNKNOWN_KEY"),
        ("image: i, limits: {cpus: none}", "E_BAD_CPUS"),
        ("image: i, context: 3", "E_BAD_CONTEXT"),
        ("image: i, scheduler_image: 3", "E_BAD_IMAGE"),
        ("image: i, scheduler_storage: {size: 1Gi, claim: c}", "E_BAD_STORAGE"),
        ("image: i, scheduler_storage: lots", "E_BAD_MEMORY"),
        ("image: i, service_account: Bob Smith", "E_BAD_SERVICE_ACCOUNT"),
        ("image: i, worker_service_account: Bob", "E_BAD_WORKER_SERVICE_ACCOUNT"),
        ("image: i, ephemeral_storage: 0", "E_NONPOSITIVE_MEMORY"),
        ("image: i, env: {A: {secret: s}}", "E_BAD_ENV"),
        ("image: i, env: {A: {secretKeyRef: {name: s}}}", "E_BAD_ENV"),
        ("image: i, env: {SCALABLE_X: 1}", "E_RESERVED_NAME"),
        ("image: i, env: {1A: 1}", "E_BAD_NAME"),
        ("image: i, env: [{name: A, valu: 1}]", "E_UNKNOWN_KEY"),
        ("image: i, env: [{name: A, value: a, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]", "E_BAD_ENV"),
        ("image: i, resources: {limits: {nvidia.com/gpu: 1, amd.com/gpu: 1}}", "E_BAD_RESOURCES"),
        ("image: i, env_from: {secretRef: {name: s}}", "E_BAD_ENV"),
        ("image: i, env_from: [{prefix: P}]", "E_BAD_ENV"),
        ("image: i, tolerations: [{key: a, operator: Is}]", "E_BAD_TOLERATIONS"),
        ("image: i, tolerations: [{ky: a}]", "E_UNKNOWN_KEY"),
        ("image: i, node_selector: {a: b c}", "E_BAD_NODE_SELECTOR"),
        ("image: i, labels: {a b: c}", "E_BAD_LABELS"),
        ("image: i, labels: {scalable.io/run: c}", "E_RESERVED_NAME"),
        ("image: i, annotations: [a]", "E_BAD_ANNOTATIONS"),
        ("image: i, image_pull_policy: Sometimes", "E_BAD_IMAGE_PULL_POLICY"),
        ("image: i, image_pull_secrets: [3]", "E_TYPE"),
        ("image: i, priority_class: [a]", "E_BAD_PRIORITY_CLASS"),
        ("image: i, volumes: {name: a}", "E_BAD_VOLUMES"),
        ("image: i, volumes: [{mount: /a, claim: c}]", "E_BAD_VOLUMES"),
        ("image: i, volumes: [{name: a, mount: /a}]", "E_BAD_VOLUMES"),
        ("image: i, volumes: [{name: a, claim: c}]", "E_BAD_VOLUMES"),
        ("image: i, volumes: [{name: a, mount: a, claim: c}]", "E_BAD_VOLUMES"),
        ("image: i, volumes: [{name: a, mount: /a, claim: c, secret: s}]", "E_BAD_VOLUMES"),
        ("image: i, volumes: [{name: scalable-a, mount: /a, claim: c}]", "E_RESERVED_NAME"),
        ("image: i, pod_patch: [a]", "E_BAD_POD_PATCH"),
        ("image: i, pod_patch: {spec: {restartPolicy: Always}}", "E_BAD_POD_PATCH"),
        ("image: i, pod_patch: {metadata: {labels: {scalable.io/run: a}}}", "E_RESERVED_NAME"),
        ("image: i, pod_patch: {affinity: {}}", "E_UNKNOWN_KEY"),
        ("image: i, pod_security: privileged", "E_BAD_POD_SECURITY"),
        ("image: i, run_as: {user: 0}", "E_BAD_RUN_AS"),
        ("image: i, run_as: {user: root}", "E_BAD_RUN_AS"),
        ("image: i, inject: maybe", "E_BAD_INJECT"),
        ("image: i, drain_timeout: soon", "E_BAD_DURATION"),
        ("image: i, start_deadline: 0", "E_BAD_DURATION"),
        ("image: i, results_ttl: 0", "E_BAD_DURATION"),
        ("image: i, job_ttl: 0", "E_BAD_DURATION"),
        ("image: i, node_autoscaling: 3", "E_BAD_NODE_AUTOSCALING"),
    ] {
        assert_eq!(errors(&Case::new(&target(&format!("provider: kubernetes, {keys}"))).findings()), [code], "{keys}");
    }
    check(
        &target("provider: kubernetes, adapt_min: 2"),
        &["4:6 W_MISSING_IMAGE targets.t.image", "4:29 W_UNKNOWN_K8S_OPTION targets.t.adapt_min"],
    );
    // What is above the target's limits is cut to them, and said.
    let clipped = "image: i, resources: {requests: {cpu: 4, memory: 8G}}, limits: {cpus: 2, memory: 16G}";
    let finding = "W_CLIPPED targets.t.resources";
    assert!(
        places(&Case::new(&target(&format!("provider: kubernetes, {clipped}"))).findings()).iter().any(|p| p.ends_with(finding))
    );
    check(&target("provider: kubernetes, image: i, walltime: 1h"), &["4:39 W_NO_EFFECT targets.t.walltime"]);
    assert_eq!(errors(&Case::new(&target("provider: aws, cluster_type: eks")).findings()), ["E_INVALID_CLUSTER_TYPE"]);
    assert!(places(&Case::new(&target("provider: gcp")).findings()).iter().any(|p| p.contains("W_MISSING_PROJECT_ID")));
}

#[test]
fn choosing_a_target() {
    let yaml = "version: 1\nproject: {name: p}\ntargets:\n  k: {provider: kubernetes, image: i}\n  l: {provider: local}\n  local: {provider: local, max_workers: 7}\n";
    let chosen = |case: Case| case.manifest().target.name;
    assert_eq!(chosen(Case::new(yaml)), "local");
    assert_eq!(chosen(Case::new(yaml).target("k")), "k");
    assert_eq!(chosen(Case::new(yaml).env("SCALABLE_TARGET", "k")), "k");
    assert_eq!(chosen(Case::new(yaml).env("SCALABLE_TARGET", "k").target("l")), "l");
    assert_eq!(chosen(Case::new(&yaml.replace("  local:", "  other:"))), "l");
    assert_eq!(chosen(Case::new(&yaml.replace("provider: local", "provider: gcp"))), "local", "by name");
    check_case(&Case::new(yaml).target("loacl"), &["1:1 W_NO_TASKS tasks", "4:3 E_UNKNOWN_TARGET targets"]);
    // Every target is checked, whichever is chosen; warnings are about the chosen one.
    let bad = yaml.replace("image: i", "image: 3").replace("provider: kubernetes", "provider: kubernetes, n_workers: 0, odd: 1");
    assert_eq!(errors(&Case::new(&bad).findings()), ["E_BAD_N_WORKERS", "E_BAD_IMAGE"]);
    assert_eq!(
        Case::new("version: 1\nproject: {name: p}\n").manifest().target.local,
        Some(LocalOptions { max_workers: 1, threads_per_worker: 1 })
    );
}

#[test]
fn overlays() {
    let yaml = |overlay: &str, overlays: &str| {
        format!(
            "version: 1\nproject: {{name: p}}\ntargets: {{local: {{provider: local, overlay: {overlay}}}}}\ncomponents: {{c: {{cpus: 1, env: {{A: \"1\"}}}}}}\noverlays: {overlays}\n"
        )
    };
    let (text, _) = message(&yaml("nope", "{}"), "E_UNKNOWN_OVERLAY");
    assert_eq!(text, "overlay 'nope' referenced but not defined; available overlays: []");
    assert_eq!(message(&yaml("prd", "{prod: {}}"), "E_UNKNOWN_OVERLAY").1, "did you mean `prod`?");
    assert_eq!(errors(&Case::new(&yaml("prod", "{prod: [1]}")).findings()), ["E_TYPE"]);
    assert_eq!(errors(&Case::new(&yaml("prod", "[1]")).findings()), ["E_UNKNOWN_OVERLAY", "E_TYPE"]);
    assert_eq!(errors(&Case::new(&yaml("prod", "{prod: {compnents: {}}}")).findings()), ["E_UNKNOWN_KEY"]);
    // An error in an overlay is shown where it stands.
    check(&yaml("prod", "{prod: {components: {c: {cpus: 0}}}}"), &["1:1 W_NO_TASKS tasks", "5:42 E_BAD_CPUS components.c.cpus"]);
    let merged = Case::new(&yaml("prod", "{prod: {components: {c: {cpus: 2, env: {B: \"2\"}}}}}")).manifest();
    assert_eq!(merged.component("c").unwrap().env.len(), 2);
    let case = Case::new(&yaml("prod", "{prod: {}, other: {components: {c: {cpus: 3}}}}"));
    assert_eq!(case.overlay("other").manifest().component("c").unwrap().milli_cpus, Some(3_000));
    assert_eq!(errors(&Case::new(&yaml("prod", "{prod: {}}")).overlay("x").findings()), ["E_UNKNOWN_OVERLAY"]);
}

#[test]
fn components() {
    let component = |keys: &str| {
        format!(
            "version: 1\nproject: {{name: p}}\ntargets: {{k: {{provider: kubernetes, image: i}}}}\ncomponents:\n  a: {{{keys}}}\ntasks: {{t: {{component: a, command: [x]}}}}\n"
        )
    };
    for (keys, code, text) in [
        ("cpus: 0", "E_BAD_CPUS", "'components.a.cpus' must be a positive number of cpus such as 2, 0.5 or 500m (got 0)"),
        ("cpus: -1", "E_BAD_CPUS", "(got -1)"),
        ("cpus: true", "E_BAD_CPUS", "(got true)"),
        ("cpus: lots", "E_BAD_CPUS", "(got lots)"),
        ("memory: 8", "E_TYPE", "'components.a.memory' must be a string when set (e.g. '8G', '500MB'); got int"),
        ("memory: 8X", "E_BAD_MEMORY", "'8X'"),
        ("memory: 0G", "E_NONPOSITIVE_MEMORY", "'0G'"),
        ("mounts: [a]", "E_TYPE", "'components.a.mounts' must be a mapping of host:container paths"),
        ("mounts: {data: /data}", "E_RELATIVE_HOST_MOUNT", "'data'"),
        ("mounts: {/data: data}", "E_RELATIVE_CONTAINER_MOUNT", "'data'"),
        ("env: [a]", "E_TYPE", "'components.a.env' must be a mapping of NAME:VALUE pairs"),
        ("env: {A: [1]}", "E_TYPE", "'components.a.env' must be a mapping of NAME:VALUE pairs"),
        ("env: {A B: 1}", "E_BAD_NAME", "'A B'"),
        ("env: {SCALABLE_RUN: 1}", "E_RESERVED_NAME", "'SCALABLE_RUN'"),
        ("tags: [1]", "E_TYPE", "'components.a.tags' must be a list of strings"),
        ("image: 3", "E_TYPE", "'components.a.image' must be a string when set"),
        ("runtime: []", "E_TYPE", "'components.a.runtime' must be a string when set"),
        ("gpus: 1", "E_UNKNOWN_KEY", "unknown 'components.a' key(s): gpus (allowed: ["),
        ("files: [../x]", "E_PATH_ESCAPES", "'../x'"),
    ] {
        let findings = Case::new(&component(keys)).findings();
        assert_eq!(errors(&findings), [code], "{keys}");
        assert!(findings.iter().any(|d| d.message.contains(text)), "{keys}: {findings:#?}");
    }
    let local = "version: 1\nproject: {name: p}\ntargets: {local: {provider: local}}\ncomponents:\n  a: {image: i, mounts: {/a: /b}, runtime: docker, tags: [x], preload_script: s.py}\ntasks: {t: {component: a, command: [\"true\"]}}\n";
    let no_effect = ["image", "mounts", "runtime", "tags", "preload_script"].map(|key| format!("W_NO_EFFECT components.a.{key}"));
    let found = Case::new(local).findings();
    let found: Vec<_> = places(&found).iter().map(|p| p.split_once(' ').unwrap().1.to_owned()).collect();
    assert_eq!(found, no_effect);
    assert_eq!(errors(&Case::new(local).strict().findings()), ["W_NO_EFFECT"; 5], "an error under strict");
    assert_eq!(errors(&Case::new(&local.replace("version: 1", "version: 1\nstrict: yes")).findings()), ["W_NO_EFFECT"; 5]);
    let env = Case::new(&component("env: {A: yes, B: 1.50, C: null, D: \"{x}\"}")).manifest();
    let env = &env.component("a").unwrap().env;
    let expected = [("A", "yes"), ("B", "1.50"), ("C", ""), ("D", "{x}")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(*env, expected, "values as they are written");
}

#[test]
fn names_are_safe() {
    let long = "x".repeat(64 << 10);
    for (name, why) in [
        ("\"a b\"", "contains ` `"),
        ("\"a\\nb\"", "contains `\\n`"),
        ("../x", "contains `/`"),
        ("\"🌍\"", "contains `🌍`"),
        ("\"\"", "is empty"),
        ("\"-a\"", "does not begin with a letter or digit"),
        ("a[0]", "contains `[`"),
        (long.as_str(), "is 65536 bytes long, at most 100 are possible"),
    ] {
        let yaml = with_head(&format!("tasks:\n  {name}: {{command: [\"true\"]}}\n"));
        let (text, help) = message(&yaml, "E_BAD_NAME");
        assert!(text.contains(why), "{text}");
        assert!(text.len() < 300 && help.contains("letters, digits"), "{help}");
        for section in ["components", "targets"] {
            let yaml = format!("version: 1\nproject: {{name: p}}\n{section}:\n  {name}: {{provider: local}}\n");
            assert!(errors(&Case::new(&yaml).findings()).contains(&"E_BAD_NAME"), "{section} {name}");
        }
        let quoted = if name.starts_with('"') || name.len() > 50 { name.to_owned() } else { format!("\"{name}\"") };
        let keys = format!("command: [\"true\"]\nforeach: {{{quoted}: [1]}}");
        if !quoted.contains(&long) {
            assert_eq!(errors(&Case::new(&task(&keys)).findings()), ["E_BAD_NAME"], "{name}");
        }
    }
    check(&task("command: [\"true\"]\nforeach: {index: [1]}"), &["9:15 E_RESERVED_NAME tasks.t.foreach.index"]);
    check(&task("command: [\"true\"]\nforeach: {a.b: [1]}"), &["9:15 E_BAD_NAME tasks.t.foreach.a.b"]);
    check(&task("command: [\"true\"]\noutputs: {a.b: {path: x}}"), &["9:15 E_BAD_NAME tasks.t.outputs.a.b"]);
}

#[test]
fn wrong_keys_and_types_of_a_task() {
    for (keys, place, code) in [
        ("retires: 2", "9:5", "E_UNKNOWN_KEY"),
        ("matrix: {}", "9:5", "E_UNKNOWN_KEY"),
        ("component: 3", "9:16", "E_TYPE"),
        ("component: d", "9:16", "E_UNKNOWN_COMPONENT"),
        ("cache: 3", "9:12", "E_TYPE"),
        ("retries: -1", "9:14", "E_BAD_RETRIES"),
        ("retries: two", "9:14", "E_BAD_RETRIES"),
        ("backoff: 3", "9:14", "E_TYPE"),
        ("backoff: {initial: fast}", "9:24", "E_BAD_DURATION"),
        ("backoff: {factor: 0.5}", "9:23", "E_BAD_FACTOR"),
        ("backoff: {initial: 2s, max: 1s}", "9:28", "E_BAD_DURATION"),
        ("timeout: soon", "9:14", "E_BAD_DURATION"),
        ("timeout: 0", "9:14", "E_BAD_DURATION"),
        ("grace: -1s", "9:12", "E_BAD_DURATION"),
        ("cpus: none", "9:11", "E_BAD_CPUS"),
        ("memory: 512", "9:13", "E_TYPE"),
        ("memory: 5Q", "9:13", "E_BAD_MEMORY"),
        ("gpus: half", "9:11", "E_BAD_GPUS"),
        ("resources: {licence: -1}", "9:26", "E_TYPE"),
        ("resources: {memory: 1}", "9:17", "E_RESERVED_NAME"),
        ("env: {1A: x}", "9:11", "E_BAD_NAME"),
        ("priority: high", "9:15", "E_BAD_PRIORITY"),
        ("when: sometimes", "9:11", "E_BAD_WHEN"),
        ("max_parallel: 0", "9:19", "E_BAD_MAX_PARALLEL"),
        ("on_oom: {factor: 1.5, maximum: 16G}", "9:27", "E_UNKNOWN_KEY"),
        ("on_oom: {max: 5}", "9:19", "E_TYPE"),
        ("retry_on: [sigterm]", "9:16", "E_BAD_RETRY_ON"),
        ("retry_on: [exit: 256]", "9:16", "E_BAD_RETRY_ON"),
        ("success_codes: []", "9:20", "E_BAD_SUCCESS_CODES"),
        ("success_codes: [0, 300]", "9:20", "E_BAD_SUCCESS_CODES"),
        ("cwd: /tmp", "9:10", "E_BAD_CWD"),
        ("depends_on: [nobody]", "9:18", "E_UNKNOWN_TASK"),
        ("depends_on: [3]", "9:18", "E_TYPE"),
        ("depends_on: t", "7:3", "E_CYCLE"),
        ("inputs: {x: 3}", "9:17", "E_BAD_INPUT"),
        ("inputs: {x: prepare.table}", "9:17", "E_BAD_INPUT"),
        ("inputs: {x: {prepare.table}}", "9:17", "E_BAD_INPUT"),
        ("inputs: {x: \"{nobody.table}\"}", "9:17", "E_UNKNOWN_TASK"),
        ("inputs: {x: {as: a}}", "9:17", "E_MISSING_KEY"),
        ("stdin: table.csv", "9:12", "E_BAD_INPUT"),
        ("outputs: {x: {path: a, type: folder}}", "9:34", "E_BAD_OUTPUT"),
        ("outputs: {x: {type: list}}", "9:15", "E_OUTPUT_UNREACHABLE"),
        ("outputs: {x: file}", "9:15", "E_OUTPUT_UNREACHABLE"),
        ("outputs: {x: {path: /abs}}", "9:25", "E_PATH_ESCAPES"),
        ("outputs: {x: {path: a/../../b}}", "9:25", "E_PATH_ESCAPES"),
        ("outputs: {x: {path: .}}", "9:25", "E_PATH_ESCAPES"),
        ("outputs: {x: {path: \"{index}.csv\"}}", "9:25", "E_UNKNOWN_FIELD"),
        ("outputs: {x: {path: a, keep: perhaps}}", "9:34", "E_TYPE"),
        ("files: [nothing.py]", "9:5", "E_FILE"),
        ("files: [/etc/passwd]", "9:13", "E_PATH_ESCAPES"),
        ("foreach: [a]", "9:14", "E_TYPE"),
        ("foreach: {}", "9:14", "E_BAD_PARAMETERS"),
        ("foreach: {a: []}", "9:18", "E_BAD_PARAMETERS"),
        ("foreach: {a: 3}", "9:18", "E_TYPE"),
        ("foreach: {a: [[1]]}", "9:19", "E_TYPE"),
        ("foreach: {a: [1, 1]}", "9:22", "E_BAD_PARAMETERS"),
        ("foreach: {a: {range: [1]}}", "9:18", "E_BAD_PARAMETERS"),
        ("foreach: {a: {range: [1, 1]}}", "9:18", "E_BAD_PARAMETERS"),
        ("foreach: {a: {range: [0, 5, 0]}}", "9:18", "E_BAD_PARAMETERS"),
        ("foreach: {a: {range: [0, 200000000]}}", "9:18", "E_TOO_MANY_TASKS"),
        ("foreach: {a: {range: [-9223372036854775808, 9223372036854775807]}}", "9:18", "E_TOO_MANY_TASKS"),
        ("foreach: {a: {range: [0, 20000]}, b: {range: [0, 20000]}}", "9:5", "E_TOO_MANY_TASKS"),
        ("foreach: {a: [\"x\\0y\"]}", "9:19", "E_NUL"),
        ("foreach: {a: [1]}\nzip: {b: [1]}", "10:5", "E_BAD_PARAMETERS"),
        ("zip: {a: [1, 2], b: [1]}", "9:22", "E_BAD_PARAMETERS"),
        ("from: nothing.csv", "9:11", "E_FILE"),
        ("from: ../x.csv", "9:11", "E_PATH_ESCAPES"),
        ("shell: echo", "9:12", "E_BAD_COMMAND"),
    ] {
        let findings = Case::new(&task(&format!("command: [\"true\"]\n{keys}"))).findings();
        let path = &findings.first().unwrap_or_else(|| panic!("{keys}: nothing found")).path;
        assert_eq!(places(&findings), [format!("{place} {code} {path}")], "{keys}\n{findings:#?}");
        assert!(path.starts_with("tasks.t"), "{keys}: {path}");
    }
}

#[test]
fn commands_and_substitutions() {
    for (keys, place, code) in [
        ("command: python3 x.py", "8:14", "E_BAD_COMMAND"),
        ("command: []", "8:14", "E_BAD_COMMAND"),
        ("command: [\"\"]", "8:15", "E_BAD_COMMAND"),
        ("command: [[a]]", "8:15", "E_TYPE"),
        ("command: [\"true\", {a}]", "8:23", "E_TYPE"),
        ("command: [\"true\", \"{scenario}\"]", "8:23", "E_UNKNOWN_FIELD"),
        ("command: [\"true\", \"{inputs.x}\"]", "8:23", "E_UNKNOWN_FIELD"),
        ("command: [\"true\", \"{outputs.x}\"]", "8:23", "E_UNKNOWN_FIELD"),
        ("command: [\"true\", \"{\"]", "8:23", "E_BRACE"),
        ("command: [\"true\", \"}\"]", "8:23", "E_BRACE"),
        ("command: [\"true\", \"a\\0b\"]", "8:23", "E_NUL"),
        ("command: [\"true\"]\nenv: {A: \"{nobody}\"}", "9:14", "E_UNKNOWN_FIELD"),
        ("shell: \"\"", "8:12", "E_BAD_COMMAND"),
        ("shell: echo '{index}'", "8:12", "E_SHELL_QUOTING"),
        ("shell: echo \"{index}\"", "8:12", "E_SHELL_QUOTING"),
        ("shell: 'echo # {index}'", "8:12", "E_SHELL_QUOTING"),
    ] {
        let findings = Case::new(&task(keys)).findings();
        let path = &findings.first().unwrap_or_else(|| panic!("{keys}: nothing found")).path;
        assert_eq!(places(&findings), [format!("{place} {code} {path}")], "{keys}\n{findings:#?}");
    }
    assert!(message(&task("command: echo hi"), "E_BAD_COMMAND").1.contains("shell:"));
    let (text, help) = message(&task("command: [\"true\", \"{senario}\"]\nforeach: {scenario: [a]}"), "E_UNKNOWN_FIELD");
    assert!(text.contains("`{senario}`") && text.contains("`scenario`") && text.contains("`workdir`"), "{text}");
    assert_eq!(help, "did you mean `scenario`?");
    let (_, help) = message(&task("shell: x=a.txt; echo ${x%.txt}"), "E_UNKNOWN_FIELD");
    assert!(help.starts_with("`$${x%.txt}` is `${x%.txt}` as it stands"), "{help}");
    let commands = |keys: &str| Case::new(&task(keys)).env("DATA", "/d/{x}").plan().groups[0].commands.clone();
    assert_eq!(commands("command: [echo, \"{{}}\", \"a{{b\", \"{index}\", 3, true, 1.50]"), ["echo '{}' 'a{b' 0 3 true 1.50"]);
    assert_eq!(commands("shell: x=a.txt; echo $${x%.txt} $HOME {index} ${DATA}"), ["x=a.txt; echo ${x%.txt} $HOME '0' /d/{x}"]);
    assert_eq!(
        commands("command: [echo, \"{cpus}\", \"{memory}\", \"{group}\", \"{attempt}\"]\nmemory: 512M\ncpus: 500m"),
        ["echo 0.5 512000000 t 1"]
    );
}

#[test]
fn a_missing_program_is_said_before_anything_starts() {
    let (text, help) = message(&task("command: [no-such-program-here, x]"), "E_MISSING_EXECUTABLE");
    assert_eq!(text, "the program `no-such-program-here` of task `t` is not in PATH");
    assert!(help.starts_with("install it"));
    assert_eq!(errors(&Case::new(&task("command: [/no/such/program]")).findings()), ["E_MISSING_EXECUTABLE"]);
    assert_eq!(errors(&Case::new(&task("command: [./run.sh]")).with("run.sh", "").findings()), ["E_MISSING_EXECUTABLE"]);
    let staged = Case::new(&task("command: [run.sh]\nfiles: [run.sh]")).with("run.sh", "");
    assert_eq!(staged.findings()[0].help.as_deref(), Some("to run the staged file write ./run.sh"));
    let staged = Case::new(&task("command: [./run.sh]\nfiles: [run.sh]")).with("run.sh", "");
    assert_eq!(staged.findings()[0].help.as_deref(), Some("chmod +x run.sh"));
    assert_eq!(errors(&Case::new(&task("command: [cat]\nenv: {PATH: /nowhere}")).findings()), ["E_MISSING_EXECUTABLE"]);
    assert_eq!(
        errors(&Case::new(&task("shell: no-such-program-here")).findings()),
        [""; 0],
        "a shell text is the shell's business"
    );
}

#[test]
fn several_findings_come_in_one_go_in_order() {
    let yaml = "version: 1\nproject: {name: p}\ntargets: {local: {provider: local}}\ncomponents:\n  a: {cpus: 0, memry: 1G}\ntasks:\n  t: {component: b, retries: x, command: [\"true\", \"{y}\"]}\n  u: {depends_on: [v], command: [\"true\"]}\n";
    check(
        yaml,
        &[
            "5:13 E_BAD_CPUS components.a.cpus",
            "5:16 E_UNKNOWN_KEY components.a.memry",
            "7:18 E_UNKNOWN_COMPONENT tasks.t.component",
            "7:30 E_BAD_RETRIES tasks.t.retries",
            "7:51 E_UNKNOWN_FIELD tasks.t.command[1]",
            "8:20 E_UNKNOWN_TASK tasks.u.depends_on",
        ],
    );
    let report = report(&Case::new(yaml).findings());
    assert_eq!(report["ok"], false);
    assert_eq!(report["errors"][1]["help"], "did you mean `memory`?");
    assert_eq!(report["errors"][1]["line"], 5);
    assert_eq!(report["errors"][1]["column"], 16);
    assert_eq!(report["warnings"], serde_json::json!([]));
}

#[test]
fn a_csv_says_which_line() {
    let case = |csv: &str| Case::new(&task("command: [\"true\", \"{a}\"]\nfrom: rows.csv")).with("rows.csv", csv);
    for (csv, text) in [
        ("", "the file has no header"),
        ("a,b\n", "has a header but no rows"),
        ("a,a\n1,2\n", "line 1: column `a` is named twice"),
        ("a,b\n1,2\n3\n", "line 3: has 1 values, the header names 2"),
        ("a,b\n1,2\n\n3,4,5\n", "line 4: has 3 values, the header names 2"),
        ("a,b c\n1,2\n", "line 1: column 2 cannot be a parameter"),
        ("a,\n1,2\n", "line 1: column 2 cannot be a parameter"),
        ("a\nx\0y\n", "line 2: a value contains a NUL byte"),
    ] {
        let findings = case(csv).findings();
        assert!(findings.iter().any(|d| d.code == "E_BAD_CSV" && d.message.contains(text)), "{csv:?}: {findings:#?}");
    }
    let binary = case("");
    std::fs::write(binary.dir.path().join("rows.csv"), b"a\n\xff\xfe\n").unwrap();
    assert!(binary.findings().iter().any(|d| d.message.contains("line 2: is not UTF-8")), "{:#?}", binary.findings());
    let good = case("\u{feff}a,b\n1,\"x, \"\"y\"\"\nz\"\n2,🌍\n");
    assert_eq!(good.manifest().tasks[0].space().value(0, "b").unwrap(), "x, \"y\"\nz");
    assert_eq!(good.manifest().tasks[0].len(), 2);
    let large = case("");
    std::fs::File::create(large.dir.path().join("rows.csv")).unwrap().set_len(64 << 20).unwrap();
    assert_eq!(errors(&large.findings())[0], "E_TOO_LARGE");
    let tabs = Case::new(&task("command: [\"true\", \"{a}\"]\nfrom: rows.tsv")).with("rows.tsv", "a\tb\n1,5\t2\n");
    assert_eq!(tabs.manifest().tasks[0].space().value(0, "a").unwrap(), "1,5");
}

#[test]
fn a_foreach_from_a_table_of_values_is_bounded() {
    let values = (0..300_000).map(|n| format!("a-rather-long-value-{n:020}")).collect::<Vec<_>>().join(",");
    let findings = Case::new(&task(&format!("command: [\"true\"]\nforeach: {{a: [{values}]}}"))).findings();
    assert_eq!(errors(&findings), ["E_TOO_LARGE"]);
    assert!(findings[0].help.as_deref().unwrap().contains("range"));
    let parameters = (0..257).map(|n| format!("p{n}: [1]")).collect::<Vec<_>>().join(", ");
    assert_eq!(errors(&Case::new(&task(&format!("command: [\"true\"]\nforeach: {{{parameters}}}"))).findings()), ["E_TOO_LARGE"]);
}

/// Every manifest that comes from a good one by a few wrong bytes is read, or refused with a place, and never more than that.
#[test]
fn damaged_manifests_are_refused_and_nothing_worse() {
    let examples = ["ensemble.yaml", "gke.yaml", "gcam_stitches.yaml", "overlays.yaml"];
    let pieces = [
        "{", "}", "[", "]", ":", "\n", "  ", "\t", "\"", "'", "&a", "*a", "<<", "${", "$${", "{{", "-", "0", "null", "\u{0}",
        "🌍", "|", "#", "!", "%",
    ];
    // A linear congruential generator: the same damage in every run.
    let mut state = 0x2545_F491_4F6C_DD1Du64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut refused = 0;
    for round in 0..400 {
        let case = Case::example(examples[round % examples.len()]);
        let path = case.dir.path().join("scalable.yaml");
        let mut text: Vec<char> = std::fs::read_to_string(&path).unwrap().chars().collect();
        for _ in 0..=random(4) {
            let at = random(text.len());
            let end = (at + random(6)).min(text.len());
            let new: Vec<char> = pieces[random(pieces.len())].chars().collect();
            text.splice(at..end, new);
        }
        let text: String = text.into_iter().collect();
        std::fs::write(&path, &text).unwrap();
        let findings = case.findings();
        let failed = !errors(&findings).is_empty();
        refused += usize::from(failed);
        let lines = text.lines().count() as u32 + 1;
        assert!(findings.iter().all(|d| d.line <= lines && d.message.len() < 4_000), "{text}\n{findings:#?}");
        if !failed {
            case.lower();
        }
    }
    assert!((80..400).contains(&refused), "{refused} of 400 were refused: the damage proves nothing");
}
