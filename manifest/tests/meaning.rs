//! What a good manifest means: dependencies, sizes, templates, and what is submitted.
#![allow(clippy::unwrap_used)]

mod common;
use common::{Case, errors, places};
use scalable_manifest::*;
use scalable_proto::v1::{self, dependency, input_source, piece, task_template};
use scalable_template::{Space, projection_upstream};

fn yaml(tasks: &str) -> String {
    format!("version: 1\nproject: {{name: p}}\ntargets: {{local: {{provider: local, max_workers: 2}}}}\ntasks:\n{tasks}")
}

/// Two groups, `up` with an output `o` and `down` that reads it; what one element of `down` reads.
fn reads(up: &str, down: &str, input: &str) -> (String, Vec<Vec<u32>>) {
    let case = Case::new(&yaml(&format!(
        "  up: {{command: [cp, \"{{outputs.o}}\"], outputs: {{o: file}}{up}}}\n  down: {{command: [cat, \"{{inputs.i}}\"], inputs: {{i: \"{input}\"}}{down}}}\n"
    )))
    .with("rows.csv", "a,b\n1,x\n2,y\n");
    let how = case.plan().groups[1].dependencies[0].how.clone();
    let spec = case.lower().spec;
    let (up, down) = (&spec.groups[0], &spec.groups[1]);
    let source = down.template.as_ref().unwrap().inputs[0].source.clone().unwrap();
    let elements = (0..down.length).map(|index| match source.select.as_ref().unwrap() {
        input_source::Select::All(true) => (0..up.length).collect(),
        input_source::Select::Index(index) => vec![*index],
        input_source::Select::Projection(projection) => {
            // The core walks the axes in their order: that must be index order too.
            let found = projection_upstream(projection, index).unwrap();
            assert!(
                projection.axes.is_sorted_by_key(|axis| std::cmp::Reverse(if axis.downstream_stride == 0 {
                    axis.upstream_stride
                } else {
                    0
                })) || found.is_sorted()
            );
            found
        }
        other => panic!("{other:?}"),
    });
    let elements = elements.collect();
    // What it reads is what it waits for.
    match (down.dependencies[0].kind.as_ref().unwrap(), source.select.as_ref().unwrap()) {
        (dependency::Kind::Whole(_), input_source::Select::All(true)) => assert_ne!(up.length, 1, "all of one is that one"),
        (dependency::Kind::Whole(_), input_source::Select::Index(0)) => assert_eq!(up.length, 1),
        (dependency::Kind::Projection(one), input_source::Select::Projection(two)) => assert_eq!(one, two),
        other => panic!("{other:?}"),
    }
    (how, elements)
}

#[test]
fn inputs_select_by_shared_parameters() {
    let same = ", foreach: {s: [a, b], m: {range: [0, 3]}}";
    assert_eq!(reads("", "", "{up.o}"), ("after it".into(), vec![vec![0]]));
    assert_eq!(reads(same, same, "{up.o}").0, "element by element");
    assert_eq!(reads(same, same, "{up.o}").1, [[0], [1], [2], [3], [4], [5]]);
    assert_eq!(reads(same, same, "{up.o[*]}").0, "fan-in over all 6");
    assert_eq!(
        reads(same, ", foreach: {s: [a, b]}", "{up.o}"),
        ("by s; fan-in over m".into(), vec![vec![0, 1, 2], vec![3, 4, 5]])
    );
    assert_eq!(reads(same, ", foreach: {m: {range: [0, 3]}}", "{up.o}").1, [[0, 3], [1, 4], [2, 5]]);
    assert_eq!(
        reads(", foreach: {s: [a, b]}", same, "{up.o}"),
        ("by s; fan-out over m".into(), [0, 0, 0, 1, 1, 1].map(|n| vec![n]).to_vec())
    );
    assert_eq!(reads(same, ", foreach: {m: {range: [0, 3]}, s: [a, b]}", "{up.o}").1, [[0], [3], [1], [4], [2], [5]]);
    assert_eq!(
        reads(same, ", foreach: {s: [a, b], k: [x, y]}", "{up.o}"),
        ("by s; fan-in over m; fan-out over k".into(), vec![vec![0, 1, 2], vec![0, 1, 2], vec![3, 4, 5], vec![3, 4, 5]])
    );
    assert_eq!(
        reads(", foreach: {x: [1, 2], y: [1, 2], z: [1, 2]}", ", foreach: {y: [1, 2]}", "{up.o}").1,
        [[0, 1, 4, 5], [2, 3, 6, 7]]
    );
    assert_eq!(reads(same, "", "{up.o}"), ("fan-in over all 6".into(), vec![vec![0, 1, 2, 3, 4, 5]]));
    assert_eq!(reads("", same, "{up.o}").0, "after it");
    assert_eq!(reads(", foreach: {a: [1, 2]}", ", foreach: {b: [1, 2]}", "{up.o}").0, "fan-in over all 2");
    // Ranges and lists of the same values are the same.
    assert_eq!(reads(", foreach: {m: {range: [0, 3]}}", ", foreach: {m: [0, 1, 2]}", "{up.o}").0, "element by element");
    assert_eq!(reads(", from: rows.csv", ", from: rows.csv", "{up.o}").1, [[0], [1]]);
    assert_eq!(reads(", from: rows.csv", ", zip: {a: [1, 2], b: [x, y]}", "{up.o}").0, "element by element");
    assert_eq!(reads(", from: rows.csv", "", "{up.o}").0, "fan-in over all 2");
}

#[test]
fn parameters_of_one_name_must_have_the_same_values() {
    for (up, down) in [
        ("foreach: {m: [1, 2]}", "foreach: {m: [1, 3]}"),
        ("foreach: {m: [1, 2]}", "foreach: {m: [2, 1]}"),
        ("foreach: {m: [1, 2]}", "foreach: {m: [1, 2, 3]}"),
        ("foreach: {m: [1, 2]}", "zip: {m: [1, 2]}"),
        ("zip: {m: [1, 2], k: [1, 2]}", "zip: {m: [1, 2]}"),
    ] {
        let case = Case::new(&yaml(&format!(
            "  up: {{command: [cp, \"{{outputs.o}}\"], outputs: {{o: file}}, {up}}}\n  down: {{command: [cat], inputs: {{i: \"{{up.o}}\"}}, {down}}}\n"
        )));
        let findings = case.findings();
        assert_eq!(places(&findings), ["6:38 E_PARAMETERS_DIFFER tasks.down.inputs.i"], "{up} {down}");
        assert!(findings[0].help.as_deref().unwrap().contains("{up.o[*]}"));
    }
}

#[test]
fn dependencies_are_merged_and_ordered() {
    let case = Case::new(&yaml(
        "  last: {command: [cat], depends_on: [mid, first, mid], inputs: {i: \"{mid.o}\"}, foreach: {m: [1, 2]}}\n  \
         mid: {command: [cp, \"{outputs.o}\"], outputs: {o: file}, inputs: {i: \"{first.o}\"}, foreach: {m: [1, 2]}}\n  \
         first: {command: [cp, \"{outputs.o}\"], outputs: {o: file}, foreach: {m: [1, 2]}}\n  \
         free: {command: [\"true\"]}\n",
    ));
    let spec = case.lower().spec;
    assert_eq!(spec.groups.iter().map(|g| g.name.as_str()).collect::<Vec<_>>(), ["first", "mid", "last", "free"]);
    let kinds = |group: &v1::GroupSpec| -> Vec<_> {
        group.dependencies.iter().map(|d| (d.group, matches!(d.kind, Some(dependency::Kind::Whole(_))))).collect()
    };
    assert_eq!(kinds(&spec.groups[1]), [(0, false)]);
    assert_eq!(kinds(&spec.groups[2]), [(1, true), (0, true)], "the whole is stronger than its elements");
    assert_eq!(spec.groups[2].template.as_ref().unwrap().inputs[0].source.as_ref().unwrap().group, 1);
    let axes = match &spec.groups[1].dependencies[0].kind {
        Some(dependency::Kind::Projection(projection)) => projection.axes.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(axes, [v1::projection::Axis { length: 2, upstream_stride: 1, downstream_stride: 1 }]);
}

#[test]
fn circles_are_named() {
    let case = Case::new(&yaml(
        "  free: {command: [\"true\"]}\n  a: {command: [\"true\"], depends_on: [free, c]}\n  b: {command: [\"true\"], depends_on: [a]}\n  \
         c: {command: [\"true\"], depends_on: [b]}\n  d: {command: [\"true\"], depends_on: [c]}\n",
    ));
    let findings = case.findings();
    assert_eq!(places(&findings), ["6:3 E_CYCLE tasks.a"]);
    assert_eq!(findings[0].message, "tasks wait for each other in a circle: a → c → b → a");
    // A long chain is no circle and needs no stack.
    let chain: String =
        (0..5_000).map(|n| format!("  t{n}: {{command: [\"true\"], depends_on: [t{}]}}\n", (n + 1).min(4_999))).collect();
    let last = "depends_on: [t4999]}";
    let at = chain.rfind(last).unwrap();
    let chain = format!("{}}}\n", chain[..at].trim_end_matches([' ', ',']));
    assert_eq!(Case::new(&yaml(&chain)).plan().groups[0].name, "t4999");
}

#[test]
fn references_that_lead_nowhere() {
    let up = "  up: {command: [cp, \"{outputs.o}\", \"{outputs.l}\"], outputs: {o: file, l: {type: list, path: \"*.nc\"}, d: {type: dir, path: d}}, foreach: {m: [1, 2]}}\n";
    for (down, code) in [
        ("inputs: {i: \"{up.x}\"}", "E_UNKNOWN_OUTPUT"),
        ("inputs: {i: {from: \"{up.o}\", as: a.nc}}", "E_BAD_INPUT"),
        ("inputs: {i: {from: \"{up.o[*]}\", as: a.nc}}, foreach: {m: [1, 2]}", "E_BAD_INPUT"),
        ("stdin: \"{up.o}\"", "E_BAD_INPUT"),
        ("stdin: \"{up.l}\", foreach: {m: [1, 2]}", "E_BAD_INPUT"),
        ("stdin: \"{up.d}\", foreach: {m: [1, 2]}", "E_BAD_INPUT"),
        ("inputs: {i: {from: \"{up.o}\", as: ../a}}, foreach: {m: [1, 2]}", "E_PATH_ESCAPES"),
        ("inputs: {i: {from: \"{up.o}\", as: /a}}, foreach: {m: [1, 2]}", "E_PATH_ESCAPES"),
        ("inputs: {i: {from: \"{up.o}\", as: a}, j: {from: \"{up.o}\", as: ./a}}, foreach: {m: [1, 2]}", "E_DUPLICATE_PATH"),
        ("inputs: {i: {from: \"{up.o}\", as: a}, j: {from: \"{up.o}\", as: a/b}}, foreach: {m: [1, 2]}", "E_DUPLICATE_PATH"),
        ("inputs: {i: {from: \"{up.o}\", as: a}}, outputs: {x: {path: a}}, foreach: {m: [1, 2]}", "E_DUPLICATE_PATH"),
        (
            "inputs: {i: {from: \"{up.o}\", as: a.nc}}, outputs: {x: {type: list, path: \"*.nc\"}}, foreach: {m: [1, 2]}",
            "E_DUPLICATE_PATH",
        ),
        ("files: [s.py], outputs: {x: {path: s.py}}", "E_DUPLICATE_PATH"),
        ("files: [s.py], inputs: {i: {from: \"{up.o}\", as: s.py}}, foreach: {m: [1, 2]}", "E_DUPLICATE_PATH"),
        ("stdout: log, stderr: log", "E_DUPLICATE_NAME"),
        ("stdout: log, outputs: {log: dir}", "E_BAD_OUTPUT"),
        ("stdout: log, outputs: {log: {path: x}}", "E_BAD_OUTPUT"),
    ] {
        let case = Case::new(&yaml(&format!("{up}  down: {{command: [cat], {down}}}\n"))).with("s.py", "");
        assert_eq!(errors(&case.findings()), [code], "{down}: {:#?}", case.findings());
    }
    for good in [
        "inputs: {i: {from: \"{up.o}\", as: data/a.nc}}, outputs: {x: {path: data/b.nc}}, foreach: {m: [1, 2]}",
        "inputs: {i: {from: \"{up.o}\", as: a.nc}}, outputs: {x: {type: list, path: \"out/*.nc\"}}, foreach: {m: [1, 2]}",
        "outputs: {d: {type: dir, path: out}, x: {path: out/x.csv}}",
        "stdout: log, outputs: {log: {keep: false}}",
        "stdin: \"{up.o}\", foreach: {m: [1, 2]}",
    ] {
        let case = Case::new(&yaml(&format!("{up}  down: {{command: [cat], {good}}}\n")));
        assert_eq!(errors(&case.findings()), [""; 0], "{good}: {:#?}", case.findings());
    }
}

#[test]
fn a_template_has_everything_the_worker_needs() {
    let case = Case::new(
        "version: 1\nproject: {name: p}\ntargets: {local: {provider: local, totals: {licence: 5}}}\n\
         components:\n  m: {env: {A: \"{x}\", B: component}, files: [lib], cpus: 1, memory: 1G}\n\
         tasks:\n  t:\n    component: m\n    files: [run.sh, ./lib/one.txt]\n    command: [./run.sh, \"{m}-{index}\", \"{outputs.o}\"]\n    foreach: {m: [7]}\n    \
         env: {B: \"{m}\", N: 3}\n    outputs:\n      o: {optional: true, keep: false}\n      d: {type: dir, path: ./out//d}\n    stdout: log\n    \
         retries: 2\n    backoff: {initial: 1s, factor: 2, max: 60s}\n    timeout: 10m\n    grace: 30s\n    on_oom: {factor: 1.5, max: 16G}\n    \
         on_timeout: {factor: 2, max: 1h}\n    retry_on: [exit: 75, signal, oom, \"exit:3\", {exit: [1, 2]}]\n    success_codes: [3, 0]\n    \
         priority: -5\n    when: always\n    max_parallel: 4\n    resources: {licence: 1}\n",
    )
    .with("lib/one.txt", "1")
    .with("lib/.scalable/junk", "no")
    .with("lib/two/three.txt", "3")
    .with("run.sh", "#!/bin/sh\n");
    let script = case.dir.path().join("run.sh");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let submission = case.lower();
    let group = &submission.spec.groups[0];
    let template = group.template.as_ref().unwrap();
    assert_eq!(template.start_in(), v1::StartIn::Work);
    let text = |name: &str| template.env[name].pieces.iter().map(|p| p.kind.clone().unwrap()).collect::<Vec<_>>();
    assert_eq!(text("A"), [piece::Kind::Literal("{x}".into())], "braces mean nothing in a component's environment");
    assert_eq!(text("B"), [piece::Kind::Parameter("m".into())], "the task's own wins");
    assert_eq!(text("N"), [piece::Kind::Literal("3".into())]);
    let files: Vec<_> = template.files.iter().map(|f| (f.path.as_str(), f.size, f.executable)).collect();
    assert_eq!(files, [("lib/one.txt", 1, false), ("lib/two/three.txt", 1, false), ("run.sh", 10, true)]);
    assert_eq!(template.files[0].digest.as_ref(), blake3::hash(b"1").as_bytes());
    assert_eq!(submission.files.len(), 3);
    assert!(submission.files.iter().all(|f| blake3::hash(&std::fs::read(&f.source).unwrap()).as_bytes() == &f.digest));
    let outputs: Vec<_> = template.outputs.iter().map(|o| (o.name.as_str(), o.path.as_str(), o.optional, o.discard)).collect();
    assert_eq!(outputs, [("o", "", true, true), ("d", "out/d", false, false), ("log", "", false, false)]);
    assert_eq!((template.stdout.as_str(), template.success_codes.as_slice()), ("log", [0, 3].as_slice()));
    let policy = group.policy.as_ref().unwrap();
    assert_eq!((policy.retries, policy.timeout_ms, policy.grace_ms), (2, 600_000, 30_000));
    assert_eq!(policy.backoff, Some(v1::Backoff { initial_ms: 1_000, factor_milli: 2_000, max_ms: 60_000 }));
    assert_eq!(policy.on_oom, Some(v1::Growth { factor_milli: 1_500, memory_bytes_max: 16_000_000_000, timeout_ms_max: 0 }));
    assert_eq!(policy.on_timeout, Some(v1::Growth { factor_milli: 2_000, memory_bytes_max: 0, timeout_ms_max: 3_600_000 }));
    assert_eq!(policy.retry_on, ["exit:75", "signal", "oom", "exit:3", "exit:1", "exit:2"]);
    assert_eq!(
        (group.priority, group.always, group.max_parallel, group.totals.as_slice()),
        (-5, true, 4, ["licence".to_owned()].as_slice())
    );
    assert_eq!(submission.spec.totals, [v1::NamedAmount { name: "licence".into(), amount: 5 }]);
    assert_eq!(submission.spec.base_directory, case.dir.path().canonicalize().unwrap().to_str().unwrap());
    assert_eq!(case.lower().spec, submission.spec, "lowering is repeatable");
}

#[test]
fn where_a_command_starts() {
    let starts = |keys: &str| {
        let up = "  up: {command: [cp, \"{outputs.o}\"], outputs: {o: file}}\n";
        let case = Case::new(&yaml(&format!("{up}  t: {{command: [cat, x.py, \"{{workdir}}\"]{keys}}}\n"))).with("x.py", "");
        let plan = case.plan();
        (plan.groups[1].starts_in, places(&plan.warnings))
    };
    let (base, warned) = starts("");
    assert_eq!(base, "manifest's directory");
    assert_eq!(warned, ["6:3 W_NOT_PORTABLE tasks.t.command[1]"]);
    assert_eq!(starts(", inputs: {i: \"{up.o}\"}").0, "manifest's directory", "an input without `as` is a path elsewhere");
    for keys in [
        ", cwd: work",
        ", files: [x.py]",
        ", inputs: {i: {from: \"{up.o}\", as: a}}",
        ", outputs: {o: {path: a}}",
        ", stdin: \"{up.o}\"",
        ", stdout: log",
        ", stderr: log",
    ] {
        assert_eq!(starts(keys), ("own directory", vec![]), "{keys}");
    }
}

fn takes(target: &str, component: &str, task: &str) -> Result<(u64, u64), Vec<String>> {
    let case = Case::new(&format!(
        "version: 1\nproject: {{name: p}}\ntargets: {{t: {{{target}}}}}\ncomponents: {{c: {{{component}}}}}\ntasks: {{a: {{component: c, command: [cat], {task}}}}}\n"
    ));
    let manifest = case.manifest();
    plan(&manifest).map(|plan| (plan.groups[0].resources.milli_cpus, plan.groups[0].resources.memory_bytes)).map_err(|found| {
        found.iter().filter(|d| d.severity == Severity::Error).map(|d| format!("{}: {}", d.code, d.message)).collect()
    })
}

#[test]
fn sizes_on_a_cluster() {
    let k8s = "provider: kubernetes, image: i";
    let large = "provider: kubernetes, image: i, resources: {requests: {cpu: 2, memory: 4Gi}, limits: {cpu: 4, memory: 8Gi}}";
    const GI: u64 = 1 << 30;
    const RESERVE: u64 = 64 << 20;
    for (target, component, task, expected) in [
        // Neither: the component's size, its memory less the agent's reserve.
        (k8s, "", "", (1_000, 0)),
        (k8s, "cpus: 2, memory: 8Gi", "", (2_000, 8 * GI - RESERVE)),
        (large, "", "", (4_000, 8 * GI - RESERVE)),
        (large, "cpus: 2", "", (2_000, 8 * GI - RESERVE)),
        (large, "memory: 2Gi", "", (4_000, 2 * GI - RESERVE)),
        (k8s, "memory: 100Mi", "", (1_000, 75 << 20)),
        // One of the two: the other in proportion.
        (k8s, "cpus: 4, memory: 8Gi", "cpus: 1", (1_000, 2 * GI)),
        (k8s, "cpus: 4, memory: 8Gi", "memory: 2Gi", (1_000, 2 * GI)),
        (k8s, "cpus: 4, memory: 8Gi", "cpus: 500m", (500, GI)),
        (k8s, "cpus: 3, memory: 8Gi", "memory: 1Gi", (375, GI)),
        (k8s, "cpus: 2", "memory: 1Gi", (2_000, GI)),
        (k8s, "cpus: 2", "cpus: 1", (1_000, 0)),
        // Both; up to the component's size fits.
        (k8s, "cpus: 4, memory: 8Gi", "cpus: 4, memory: 8Gi", (4_000, 8 * GI - RESERVE)),
        (k8s, "cpus: 4, memory: 8Gi", "cpus: 2, memory: 7Gi", (2_000, 7 * GI)),
    ] {
        assert_eq!(takes(target, component, task), Ok(expected), "{target} | {component} | {task}");
    }
    for (component, task, words) in [
        (
            "cpus: 4, memory: 8Gi",
            "cpus: 5, memory: 1Gi",
            "asks for 5 cpus and 1Gi; a worker of component `c` on target 't' has 4 cpus and 8Gi",
        ),
        ("cpus: 4, memory: 8Gi", "cpus: 1, memory: 9Gi", "asks for 1 cpu and 9Gi"),
        ("", "cpus: 1001m", "asks for 1.001 cpus; a worker of component `c` on target 't' has 1 cpu"),
        ("", "gpus: 1", "asks for 1 gpus; a worker of target 't' has 0"),
        ("", "resources: {licence: 1}", "asks for 1 of `licence`; a worker on target 't' has 0"),
    ] {
        let refused = takes(k8s, component, task).unwrap_err();
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert!(refused[0].starts_with("E_NO_POOL_FITS") && refused[0].contains(words), "{refused:?}");
    }
    let gpu = "provider: kubernetes, image: i, resources: {limits: {nvidia.com/gpu: \"2\"}}";
    assert!(takes(gpu, "", "gpus: 2").is_ok() && takes(gpu, "", "gpus: 3").is_err());
    let totals = "provider: kubernetes, image: i, totals: {licence: 5}";
    assert!(takes(totals, "", "resources: {licence: 5}").is_ok());
    assert!(takes(totals, "", "resources: {licence: 6}").unwrap_err()[0].contains("the whole run on target 't' has 5"));
}

#[test]
fn sizes_on_this_machine_are_clamped() {
    // 4 cpus and 10 GB; 90 % of the memory is shared by two workers.
    let local = "provider: local, max_workers: 2, threads_per_worker: 2, resources: {slot: 3}";
    for (component, task, expected) in [
        ("", "", (1_000, 0)),
        ("cpus: 2, memory: 4G", "", (2_000, 4_000_000_000)),
        ("cpus: 6, memory: 20G", "", (2_000, 4_500_000_000)),
        ("cpus: 6, memory: 20G", "cpus: 1", (1_000, 3_333_333_333)),
        ("", "memory: 1G", (1_000, 1_000_000_000)),
        ("", "memory: 100G", (1_000, 4_500_000_000)),
        ("", "resources: {slot: 3}", (1_000, 0)),
    ] {
        assert_eq!(takes(local, component, task), Ok(expected), "{component} | {task}");
    }
    assert!(takes(local, "", "gpus: 1").unwrap_err()[0].starts_with("E_NO_POOL_FITS"));
    assert!(takes(local, "", "resources: {slot: 4}").unwrap_err()[0].starts_with("E_NO_POOL_FITS"));
    let yaml = format!(
        "version: 1\nproject: {{name: p}}\ntargets: {{t: {{{local}}}}}\ncomponents: {{c: {{cpus: 6, memory: 20G}}}}\ntasks:\n  a: {{component: c, command: [cat]}}\n"
    );
    let findings = Case::new(&yaml).findings();
    assert_eq!(places(&findings), ["6:3 W_CLAMPED tasks.a"]);
    assert_eq!(
        findings[0].message,
        "task `a` asks for 6 cpus and 20G; a worker of target 't' has 2 cpus and 4500M: it gets 2 cpus and 4500M"
    );
    assert_eq!(errors(&Case::new(&yaml).strict().findings()), ["W_CLAMPED"], "refused under strict");
    let plan = Case::new(&yaml).plan();
    assert_eq!(plan.pools.len(), 1);
    assert_eq!((plan.pools[0].components.as_slice(), plan.pools[0].workers_max), (["*".to_owned()].as_slice(), 2));
}

#[test]
fn a_task_without_a_command_is_planned_and_not_run() {
    let case = Case::new(&yaml("  old: {outputs: {db: directory-of-things}}\n  new: {command: [\"true\"]}\n"));
    let plan = case.plan();
    assert_eq!(places(&plan.warnings), ["5:23 W_NO_EFFECT tasks.old.outputs.db", "5:3 W_NOT_RUNNABLE tasks.old"]);
    assert_eq!((plan.tasks_total, plan.groups[0].runnable, plan.groups[1].runnable), (1, false, true));
    assert_eq!(case.lower().spec.groups.iter().map(|g| g.name.as_str()).collect::<Vec<_>>(), ["new"]);
    let waits = Case::new(&yaml(
        "  old: {outputs: {db: dir}}\n  new: {command: [cat], inputs: {i: \"{old.db}\"}}\n  two: {command: [cat], depends_on: [old]}\n",
    ));
    assert_eq!(errors(&waits.findings()), ["E_NOT_RUNNABLE", "E_NOT_RUNNABLE"]);
}

#[test]
fn a_stub_is_one_element_a_group() {
    let case = Case::example("ensemble.yaml");
    let spec = case.lower_with(&LowerOptions { stub: true, ..LowerOptions::default() }).spec;
    assert_eq!(spec.groups.iter().map(|g| g.length).collect::<Vec<_>>(), [1, 1, 1]);
    for group in &spec.groups {
        let template = group.template.as_ref().unwrap();
        assert!(template.stub);
        let space = Space::with_length(group.parameters.as_ref().unwrap(), group.length).unwrap();
        assert!(group.name != "simulate" || space.element_name(0) == "scenario=rcp26,member=0");
        assert!(group.dependencies.iter().all(|d| matches!(d.kind, Some(dependency::Kind::Whole(_)))));
        let all = [Some(input_source::Select::All(true)), Some(input_source::Select::Index(0))];
        assert!(template.inputs.iter().all(|i| all.contains(&i.source.as_ref().unwrap().select)));
    }
}

#[test]
fn ten_million_elements_are_a_line() {
    let case = Case::new(&yaml(
        "  t: {command: [cp, \"{x}\", \"{outputs.o}\"], outputs: {o: file}, foreach: {x: {range: [0, 10000000]}}}\n  \
         u: {command: [cat, \"{inputs.i}\"], inputs: {i: \"{t.o}\"}, foreach: {x: {range: [0, 10000000]}}}\n  \
         v: {command: [cat, \"{inputs.i.list}\"], inputs: {i: \"{t.o[*]}\"}}\n",
    ));
    let plan = case.plan();
    assert_eq!(plan.tasks_total, 20_000_001);
    assert_eq!(plan.groups[1].dependencies[0].how, "element by element");
    assert_eq!(plan.groups[2].commands, ["cat '<list of i>'"]);
    assert!(serde_json::to_string(&plan).unwrap().len() < 10_000);
    let spec = case.lower().spec;
    assert!(prost::Message::encoded_len(&spec) < 10_000);
    let limit = Case::new(&yaml("  t: {command: [cat], foreach: {x: {range: [0, 134217728]}}}\n  u: {command: [cat]}\n"));
    assert_eq!(errors(&limit.findings()), ["E_TOO_MANY_TASKS"]);
}

#[test]
fn the_shell_gets_words_and_never_text() {
    let case = Case::new(&yaml("  t:\n    from: rows.csv\n    shell: printf '<%s>' {name}; printf '{{%s}}' {other}\n"))
        .with("rows.csv", "name,other\n\"'; echo broken; '\",$(echo broken)\n\"a\nb\",`echo broken`\n");
    let spec = case.lower().spec;
    let group = &spec.groups[0];
    let Some(task_template::Command::Shell(text)) = &group.template.as_ref().unwrap().command else { panic!() };
    assert_eq!(text.pieces.len(), 4);
    let commands = case.plan().groups[0].commands.clone();
    for (command, expected) in commands.iter().zip(["<'; echo broken; '>{$(echo broken)}", "<a\nb>{`echo broken`}"]) {
        let output = std::process::Command::new("/bin/sh").args(["-c", command]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }
}

#[test]
fn files_stay_beside_the_manifest() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "s").unwrap();
    let case = Case::new(&yaml("  t: {command: [cat], files: [d]}\n")).with("d/a", "a");
    let link = |target: &std::path::Path, name: &str| std::os::unix::fs::symlink(target, case.dir.path().join(name)).unwrap();
    link(std::path::Path::new("a"), "d/inside");
    let submission = case.lower();
    let files: Vec<_> = submission.spec.groups[0].template.as_ref().unwrap().files.iter().map(|f| f.path.clone()).collect();
    assert_eq!(files, ["d/a", "d/inside"], "a link inside is the file it points to");
    assert_eq!(submission.files.len(), 1, "content is stored once");
    link(&outside.path().join("secret"), "d/out");
    let findings = case.findings();
    assert_eq!(errors(&findings), ["E_FILE"]);
    assert!(findings[0].message.contains("'d/out' is a link out of the manifest's directory"), "{}", findings[0].message);
    std::fs::remove_file(case.dir.path().join("d/out")).unwrap();
    link(std::path::Path::new("."), "d/loop");
    assert!(case.findings()[0].message.contains("a link to a directory around it"));
    std::fs::remove_file(case.dir.path().join("d/loop")).unwrap();
    let large = std::fs::File::create(case.dir.path().join("d/large")).unwrap();
    large.set_len((256 << 20) + 1).unwrap();
    assert_eq!(errors(&case.findings()), ["E_TOO_LARGE"]);
    let many = Case::new(&yaml("  t: {command: [cat], files: [d]}\n"));
    std::fs::create_dir(many.dir.path().join("d")).unwrap();
    (0..10_001).for_each(|n| std::fs::write(many.dir.path().join(format!("d/{n}")), "").unwrap());
    assert_eq!(errors(&many.findings()), ["E_FILE"]);
}

#[test]
fn a_file_that_changes_between_plan_and_submit_is_refused() {
    let case = Case::new(&yaml("  t: {command: [cat], files: [a]}\n")).with("a", "1");
    let manifest = case.manifest();
    let planned = plan(&manifest).unwrap();
    case.put("a", "12");
    let refused = lower(&manifest, &planned, &LowerOptions::default()).unwrap_err();
    assert_eq!(errors(&refused), ["E_FILE"]);
    std::fs::remove_file(case.dir.path().join("a")).unwrap();
    assert_eq!(errors(&lower(&manifest, &planned, &LowerOptions::default()).unwrap_err()), ["E_FILE"]);
}

#[test]
fn the_lock_is_the_originals() {
    // The figure is Python's: sha256 of json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).
    let case = Case::new(
        "version: 1\nproject: {name: \"é \\\"x\\\"\"}\ntargets: {local: {provider: local, max_workers: 2, processes: yes}}\ncomponents: {a: {cpus: 1, tags: [z, y]}}\n",
    );
    assert_eq!(case.manifest().lock, "0251c5eb063fc2fa57ea35816ce50652b1d8be91909c4fd980d774f3e4cbe8fa");
    // Comments and order do not matter, values do.
    let reordered = Case::new(
        "# hello\ncomponents: {a: {tags: [z, y], cpus: 1}}\nversion: 1\nproject: {name: \"é \\\"x\\\"\"}\ntargets: {local: {processes: true, provider: local, max_workers: 2}}\n",
    );
    assert_eq!(reordered.manifest().lock, case.manifest().lock);
}

#[test]
fn the_resolved_document_can_be_read_again() {
    let text = "version: 1\nproject: {name: \"yes\"}\ntargets:\n  local: {provider: local}\ncomponents:\n  a: {env: {A: \"12:00:00\", B: \"no\", C: \"1e3\", D: \"a: b # c\", E: \"multi\\nline\", F: \"\", G: \"{x}\"}}\ntasks:\n  t: {component: a, command: [\"true\", \"3\", \"~\"]}\n";
    let first = Case::new(text).manifest();
    let again = Case::new(&first.to_yaml()).manifest();
    assert_eq!(again.document, first.document, "{}", first.to_yaml());
    assert_eq!(again.lock, first.lock);
}

#[test]
fn anchors_and_merge_keys_are_yamls() {
    let case = Case::new(&yaml("  a: &a {command: [\"true\"], retries: 3, cpus: 1}\n  b: {<<: *a, retries: 1}\n  c: *a\n"));
    let retries: Vec<_> = case.manifest().tasks.iter().map(|t| t.policy.retries).collect();
    assert_eq!(retries, [3, 1, 3]);
    assert_eq!(case.manifest().tasks[1].requested.milli_cpus, Some(1_000));
}

#[test]
fn optional_inputs_and_tasks_that_always_run() {
    let case = Case::new(&yaml(
        "  up: {command: [cp, \"{outputs.o}\", \"{outputs.p}\"], outputs: {o: {optional: true}, p: file}}\n  \
         down: {command: [cat, \"{inputs.o}\", \"{inputs.p}\"], inputs: {o: \"{up.o}\", p: \"{up.p}\"}}\n  \
         always: {command: [cat], inputs: {p: \"{up.p}\"}, when: always}\n",
    ));
    let spec = case.lower().spec;
    let optional = |group: usize| -> Vec<bool> {
        spec.groups[group].template.as_ref().unwrap().inputs.iter().map(|i| i.source.as_ref().unwrap().optional).collect()
    };
    assert_eq!((optional(1), optional(2)), (vec![true, false], vec![true]));
}

#[test]
fn adaptive_keys_become_the_planner_s_dials() {
    let target = "provider: kubernetes, image: i, adaptive: {minimum: 2, max_total: 9, target_duration: 5m, idle_timeout: 0s, scale_up_burst: 4}";
    let yaml = format!("version: 1\nproject: {{name: p}}\ntargets: {{k8s: {{{target}}}}}\ncomponents: {{c: {{cpus: 1}}}}\n");
    let target = Case::new(&yaml).target("k8s").manifest().target;
    assert_eq!((target.workers_min, target.workers_max, target.scaling.max_total), (2, 10, Some(9)));
    let parameters = target.scaling.parameters;
    assert_eq!((parameters.target_duration, parameters.idle_timeout, parameters.scale_up_burst), (300_000_000, 0, 4));
    assert_eq!(parameters.scale_down_delay, 60_000_000);
}
