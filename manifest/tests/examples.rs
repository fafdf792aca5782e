//! The original's example manifests, and the tutorial's, mean here what they mean there.
#![allow(clippy::unwrap_used)]

mod common;
use common::{Case, errors, places};
use serde_json::json;

fn codes(case: &Case) -> Vec<&'static str> {
    case.load().diagnostics.iter().map(|d| d.code).collect()
}

#[test]
fn the_tutorials_manifest_loads_verbatim() {
    let case = Case::example("tutorial.yaml");
    assert_eq!(codes(&case), ["W_DEFAULT_VERSION", "W_DEFAULT_PROJECT", "W_NO_TASKS"]);
    let manifest = case.manifest();
    assert!(manifest.project.name.starts_with("study"), "{}", manifest.project.name);
    assert_eq!((manifest.target.name.as_str(), manifest.target.provider.as_str()), ("k8s", "kubernetes"));
    assert_eq!((manifest.target.workers_min, manifest.target.workers_max), (2, 20));
    let plan = case.plan();
    assert!(plan.provider_available, "this build runs on Kubernetes");
    let pool = &plan.pools[0];
    assert_eq!((pool.name.as_str(), pool.image.as_deref()), ("default", Some("ghcr.io/my-org/demeter:2.0.1")));
    assert_eq!(pool.worker.milli_cpus, 4_000);
    assert_eq!(pool.worker.memory_bytes, (16 << 30) - (64 << 20), "less the agent's reserve");
}

#[test]
fn a_task_added_to_the_tutorials_manifest_runs_in_its_image() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/examples/tutorial.yaml")).unwrap();
    let case = Case::new(&format!("{text}tasks:\n  hello:\n    command: [\"true\"]\n"));
    let plan = case.plan();
    assert_eq!(plan.task_to_component["hello"], "default");
    assert_eq!(plan.groups[0].resources.milli_cpus, 4_000);
    assert_eq!(case.lower().spec.groups[0].template.clone().unwrap().image, "ghcr.io/my-org/demeter:2.0.1");
}

#[test]
fn minimal() {
    let case = Case::example("minimal.yaml");
    assert_eq!(codes(&case), [""; 0]);
    let plan = case.plan();
    assert_eq!(plan.task_to_component["hello"], "worker");
    assert_eq!(plan.scale_plan.resources_by_tag["worker"], json!({"cpus": 1, "memory": "1G", "walltime": null, "gpus": 0}));
    let local = plan.local.unwrap();
    assert_eq!((local.workers, local.milli_cpus, local.memory_bytes), (2, 1_000, 4_500_000_000));
    assert_eq!(places(&plan.warnings), ["13:3 W_NOT_RUNNABLE tasks.hello"]);
}

#[test]
fn gcam_stitches() {
    let case = Case::example("gcam_stitches.yaml");
    assert_eq!(case.manifest().target.name, "local");
    assert_eq!(codes(&case), ["W_NO_EFFECT", "W_NO_EFFECT"]);
    let plan = case.plan();
    assert_eq!(plan.scale_plan.resources_by_tag["gcam"]["cpus"], json!(2));
    let slurm = Case::example("gcam_stitches.yaml").target("hpc");
    let plan = slurm.plan();
    assert_eq!(plan.scale_plan.resources_by_tag["gcam"], json!({"cpus": 2, "memory": "8G", "walltime": "02:00:00", "gpus": 0}));
    assert!(!plan.provider_available);
    assert!(places(&plan.warnings).iter().any(|w| w.ends_with("W_PROVIDER_UNAVAILABLE targets.hpc.provider")));
}

#[test]
fn gke_with_its_overlays() {
    let case = Case::example("gke.yaml");
    let manifest = case.manifest();
    assert_eq!((manifest.target.name.as_str(), manifest.target.overlay.as_deref()), ("gke", Some("gke-prod")));
    let gcam = manifest.component("gcam").unwrap();
    assert_eq!((gcam.milli_cpus, gcam.memory_bytes), (Some(16_000), Some(64_000_000_000)));
    assert_eq!(gcam.env, [("GCAM_DATA".to_owned(), "/data/gcam".to_owned())]);
    let post = manifest.component("postprocess").unwrap();
    assert_eq!((post.milli_cpus, post.memory_bytes), (Some(4_000), Some(32_000_000_000)));
    assert_eq!(manifest.target.image.as_deref(), Some("ghcr.io/energy/base:1.4"));
    assert!(manifest.document.get("overlays").is_none() && manifest.document["targets"]["gke"].get("overlay").is_none());
    assert_eq!(manifest.document["targets"]["gke-dev"]["overlay"], "gke-dev");
    assert_eq!(manifest.document_unresolved["components"]["gcam"]["cpus"], 8);
    let dev = Case::example("gke.yaml").target("gke-dev").env("REGISTRY", "r").manifest();
    assert_eq!((dev.target.workers_min, dev.target.workers_max), (1, 5));
    assert_eq!(dev.target.options["namespace"], "energy-dev");
    assert_eq!(dev.target.image.as_deref(), Some("r/base:1.4"));
    assert_eq!(dev.component("gcam").unwrap().milli_cpus, Some(8_000));
    assert_ne!(dev.lock, manifest.lock);
    // The flag wins over the target's own.
    let other = Case::example("gke.yaml").target("gke-dev").overlay("gke-prod").manifest();
    assert_eq!(other.component("gcam").unwrap().milli_cpus, Some(16_000));
}

#[test]
fn environments_on_kubernetes_need_their_overlay() {
    for (target, workers, cpus) in [("k8s-dev", (1, 5), 2_000), ("k8s-prod", (4, 40), 8_000)] {
        let manifest = Case::example("k8s_environments.yaml").target(target).manifest();
        assert_eq!((manifest.target.workers_min, manifest.target.workers_max), workers);
        assert_eq!(manifest.component("gcam").unwrap().milli_cpus, Some(cpus));
    }
    let plain = Case::example("k8s_environments.yaml").target("plain").load();
    assert_eq!(errors(&plain.diagnostics), ["E_UNKNOWN_COMPONENT"]);
    assert!(plain.diagnostics[0].message.contains("'gcam'"));
}

#[test]
fn aws() {
    let case = Case::example("aws.yaml");
    assert_eq!(codes(&case), ["W_NO_EFFECT"]);
    let plan = case.plan();
    assert_eq!((plan.pools[0].workers_min, plan.pools[0].workers_max), (1, 10));
    assert_eq!(plan.groups[0].resources.milli_cpus, 4_000);
    assert_eq!(plan.groups[0].resources.memory_bytes, (16 << 30) - (64 << 20));
}

#[test]
fn overlays_share_components() {
    for (target, cpus) in [("local", 1_000), ("hpc", 16_000), ("cloud", 8_000)] {
        let manifest = Case::example("overlays.yaml").target(target).manifest();
        assert_eq!(manifest.component("model").unwrap().milli_cpus, Some(cpus), "{target}");
    }
}

#[test]
fn the_ensemble_is_planned() {
    let case = Case::example("ensemble.yaml");
    let plan = case.plan();
    assert!(plan.warnings.is_empty(), "{:#?}", plan.warnings);
    assert_eq!(plan.tasks_total, 202);
    let simulate = &plan.groups[1];
    assert_eq!((simulate.name.as_str(), simulate.count, simulate.takes.as_str()), ("simulate", 200, "1 cpu and 512M"));
    assert_eq!(
        simulate.commands,
        [0, 1, 2].map(|m| format!(
            "python3 simulate.py rcp26 {m} outputs/prepare/table outputs/simulate/scenario=rcp26,member={m}/series"
        ))
    );
    assert_eq!(
        plan.groups[2].commands,
        ["python3 summarise.py outputs/summarise/report outputs/simulate/scenario=rcp26,member=0/series \
          outputs/simulate/scenario=rcp26,member=1/series outputs/simulate/scenario=rcp26,member=2/series '…(197 more)'"]
    );
    assert_eq!(plan.groups[2].dependencies[0].how, "fan-in over all 200");
    assert_eq!(simulate.starts_in, "own directory");
    let json = serde_json::to_value(&plan).unwrap();
    for key in ["version", "target", "provider", "manifest_lock", "task_to_component", "scale_plan"] {
        assert!(json.get(key).is_some(), "{key}");
    }
    assert_eq!(json["scale_plan"]["workers_by_tag"], json!({"model": 2, "tools": 2}));
}
