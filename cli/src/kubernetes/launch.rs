//! From a workflow to what is brought up: the scheduler's pod and its arguments, the pools, the credentials.

use std::collections::BTreeMap;

use scalable_manifest::{Component, DEFAULT_COMPONENT, KubernetesOptions, SchedulerStorage};
use scalable_provider::dials::Dials;
use scalable_provider_k8s::objects::{HTTP_PORT, OBJECT_PORT, PORT, SETTINGS_FILE, STATE_DIRECTORY};
use scalable_provider_k8s::pods::{self, CREDENTIALS_DIRECTORY, WorkerContext};
use scalable_provider_k8s::{Access, Launch, Probe};
use scalable_tls::NewCluster;
use serde_json::json;

use crate::args::KubernetesArgs;
use crate::exit::Failure;
use crate::workflow::Workflow;

/// Names the scheduler's image where the target does not.
pub const IMAGE_VARIABLE: &str = "SCALABLE_SCHEDULER_IMAGE";

/// The scheduler's image: the target's word, else the environment's.
///
/// # Errors
/// When neither names one; with what to do.
pub fn scheduler_image(options: &KubernetesOptions, target: &str) -> Result<String, Failure> {
    let from_environment = || std::env::var(IMAGE_VARIABLE).ok().filter(|name| !name.is_empty());
    options.scheduler_image.clone().or_else(from_environment).ok_or_else(|| no_image(target))
}

/// How the cluster's API is reached: by what the command line names, else by what the target does.
pub fn access(named: &KubernetesArgs, options: &KubernetesOptions) -> Access {
    Access { kubeconfig: named.kubeconfig.clone(), context: named.context.clone().or(options.context.clone()) }
}

/// Where everything is made: the target's namespace, else that of the context.
pub fn namespace(options: &KubernetesOptions, of_context: &str) -> String {
    options.namespace.clone().unwrap_or_else(|| of_context.to_owned())
}

/// What is to be brought up. Contacts nobody.
///
/// # Errors
/// When a pod cannot be made.
pub fn plan(
    workflow: &Workflow,
    options: &KubernetesOptions,
    scheduler_image: String,
    run: &str,
    namespace: &str,
    idle_ttl_s: u64,
) -> Result<Launch, Failure> {
    let cluster_id = NewCluster::random_id().map_err(|error| Failure::infrastructure(error.to_string()))?;
    let cluster = NewCluster::create(&cluster_id).map_err(|error| Failure::infrastructure(error.to_string()))?;
    let mut launch = Launch {
        cluster_id: cluster_id.clone(),
        run: run.to_owned(),
        project: workflow.project(),
        target: workflow.target(),
        namespace: namespace.to_owned(),
        scheduler_image: scheduler_image.clone(),
        scheduler_command: None,
        scheduler_args: Vec::new(),
        probe: Probe::default(),
        options: options.clone(),
        pools: Vec::new(),
        forwards: true,
        scheduler_secret: files(cluster.scheduler_files()),
        worker_secret: files(cluster.worker_files()),
    };
    let context = WorkerContext {
        cluster_id,
        run: run.to_owned(),
        scheduler_image,
        address: format!("https://{}", launch.address()),
        secret: launch.worker_secret_name(),
    };
    launch.pools = pools(workflow, options, &context)?;
    launch.scheduler_args = arguments(&launch, workflow, idle_ttl_s);
    Ok(launch)
}

fn files(set: BTreeMap<&'static str, String>) -> BTreeMap<String, Vec<u8>> {
    set.into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes())).collect()
}

/// A pool for each component that tasks use; where no task says anything one for all that there are, and for a manifest without
/// components one that serves every component.
fn pools(
    workflow: &Workflow,
    options: &KubernetesOptions,
    context: &WorkerContext,
) -> Result<Vec<scalable_provider_k8s::settings::Pool>, Failure> {
    let manifest = &workflow.manifest;
    let pool = |component: &Component| {
        pods::pool(manifest, options, component, context).map_err(|error| Failure::usage(error.to_string()))
    };
    let mut pools = Vec::new();
    for planned in &workflow.plan.pools {
        let default = Component { name: DEFAULT_COMPONENT.to_owned(), ..Component::default() };
        pools.push(pool(manifest.component(&planned.name).unwrap_or(&default))?);
    }
    if let ([only], true) = (&mut pools[..], manifest.components.is_empty()) {
        // As in the original: a target alone is a cluster for everything.
        only.components = vec!["*".to_owned()];
    }
    Ok(pools)
}

fn arguments(launch: &Launch, workflow: &Workflow, idle_ttl_s: u64) -> Vec<String> {
    let service = format!("{}.{}.svc", launch.name(), launch.namespace);
    let scaling = &workflow.manifest.target.scaling;
    let dials = Dials::of(&scaling.parameters, scaling.max_total);
    // A pod whose volume holds more than it may is evicted: the store keeps to the same limit, and counts.
    let limit = match launch.options.scheduler_storage {
        SchedulerStorage::Size(bytes) => Some(("--store-limit", bytes.to_string())),
        SchedulerStorage::Claim(_) => None,
    };
    [
        ("--credentials", CREDENTIALS_DIRECTORY.to_owned()),
        ("--listen", format!("0.0.0.0:{PORT}")),
        ("--http", format!("127.0.0.1:{HTTP_PORT}")),
        ("--https", format!("$(SCALABLE_POD_IP):{HTTP_PORT}")),
        ("--http-name", service.clone()),
        ("--store", format!("0.0.0.0:{OBJECT_PORT}")),
        ("--advertise-store", format!("{service}:{OBJECT_PORT}")),
        ("--state-dir", format!("{STATE_DIRECTORY}/scheduler")),
        ("--runs-dir", format!("{STATE_DIRECTORY}/runs")),
        ("--kubernetes", SETTINGS_FILE.to_owned()),
        ("--scale", json!(dials).to_string()),
        ("--idle-ttl", idle_ttl_s.to_string()),
        ("--results-ttl", launch.options.results_ttl_ms.div_ceil(1000).to_string()),
    ]
    .into_iter()
    .chain(limit)
    .flat_map(|(option, value)| [option.to_owned(), value])
    .chain(["--trust-loopback".to_owned(), "--exit-when-done".to_owned()])
    .collect()
}

fn no_image(target: &str) -> Failure {
    let version = env!("CARGO_PKG_VERSION");
    Failure::usage(format!("no image of the scheduler is named: neither target {target} nor {IMAGE_VARIABLE} says which")).help(
        format!(
            "build and push one that the cluster can pull, then name it:\n  docker/build scalable-scheduler\n  docker tag \
             scalable-scheduler:{version} REGISTRY/scalable-scheduler:{version}\n  docker push \
             REGISTRY/scalable-scheduler:{version}\n  export {IMAGE_VARIABLE}=REGISTRY/scalable-scheduler:{version}"
        ),
    )
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
