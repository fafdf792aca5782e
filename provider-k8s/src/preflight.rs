//! What can be known before anything exists: the namespace, rights, hard limits, and whether the API would take every pod.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, PodSpec, ResourceQuota};
use kube::Client;
use kube::api::{Api, ListParams, PostParams};
use scalable_provider::ReasonClass;
use scalable_provider::launch::LaunchError;

use crate::access::error_of;
use crate::failure::{self, quantity};
use crate::objects::{Launch, SCHEDULER_CONTAINER};
use crate::plan::Slot;
use crate::requests::pod_of;
use crate::rights;
use crate::settings::Root;

/// Pods that the API is asked about at once.
const AT_ONCE: usize = 8;
/// Largest Secret that the API takes, bytes, less what its names need.
const SECRET_BYTES_MAX: usize = 1_000_000;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preflight {
    /// What stands in the way now and may not later: it is waited for.
    pub not_now: Vec<String>,
    /// The Job's name is free. It is taken where a run of that name exists.
    pub name_free: bool,
}

/// Checks everything that can be checked.
///
/// # Errors
/// What will never work, and what to do about it.
pub async fn preflight(client: &Client, launch: &Launch) -> Result<Preflight, LaunchError> {
    namespace_exists(client, launch).await?;
    rights_are_there(client, launch).await?;
    let root = Root { name: launch.name(), uid: "00000000-0000-0000-0000-000000000000".to_owned() };
    let bytes = launch.settings(&root, None).to_json().len();
    if bytes > SECRET_BYTES_MAX {
        let message = format!("the workers' description has {bytes} bytes and a Secret holds {SECRET_BYTES_MAX}");
        return Err(error_of(message, "use fewer components in one run, or a shorter `pod_patch`"));
    }
    let mut found = Preflight { not_now: quotas(client, launch).await?, name_free: true };
    nodes(client, launch, &mut found).await?;
    dry_runs(client, launch, &root, &mut found).await?;
    Ok(found)
}

async fn namespace_exists(client: &Client, launch: &Launch) -> Result<(), LaunchError> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    match namespaces.get(&launch.namespace).await {
        Ok(namespace) if namespace.metadata.deletion_timestamp.is_some() => {
            Err(error_of(format!("namespace `{}` is being deleted", launch.namespace), "wait, or use another one"))
        }
        Ok(_) => Ok(()),
        Err(error) => match failure::code(&error) {
            404 => Err(error_of(
                format!("there is no namespace `{}`", launch.namespace),
                "name one that exists in the target's `namespace`; Scalable does not make namespaces",
            )),
            // Who may only see a namespace's inside is told by what follows.
            403 => Ok(()),
            401 => Err(error_of(
                format!("the Kubernetes API does not know who asks: {}", failure::chain(&error)),
                "log in to the cluster again, or name another context",
            )),
            _ => Err(error_of(format!("the Kubernetes API cannot be asked: {}", failure::chain(&error)), "")),
        },
    }
}

async fn rights_are_there(client: &Client, launch: &Launch) -> Result<(), LaunchError> {
    let account = launch.options.service_account.as_deref();
    let missing = rights::missing(client, &launch.namespace, &rights::needed(account.is_none(), launch.forwards)).await;
    let missing = missing.map_err(|error| error_of(format!("rights cannot be asked for: {}", failure::chain(&error)), ""))?;
    if missing.is_empty() {
        return Ok(());
    }
    let message = format!("you may not {} in namespace `{}`", missing.join(", "), launch.namespace);
    let only_account = missing.iter().all(|m| m.contains("roles") || m.contains("rolebindings") || m.contains("serviceaccounts"));
    let hint = match (only_account, account) {
        (true, None) => "without those rights name a service account that exists in the target's `service_account`, or ",
        _ => "check the namespace's name, or ",
    };
    Err(error_of(message, &format!("{hint}ask an administrator for this:\n{}", rights::manifests(&launch.namespace, account))))
}

/// Compares hard limits with the scheduler and one worker.
async fn quotas(client: &Client, launch: &Launch) -> Result<Vec<String>, LaunchError> {
    let quotas: Api<ResourceQuota> = Api::namespaced(client.clone(), &launch.namespace);
    // Who may not see quotas is told by the dry run, as far as one pod goes.
    let Ok(quotas) = quotas.list(&ListParams::default()).await else { return Ok(Vec::new()) };
    let scheduler: Option<PodSpec> = launch.job().spec.and_then(|spec| spec.template.spec);
    let smallest = launch
        .pools
        .iter()
        .filter_map(|pool| pool.template.spec.as_ref())
        .min_by_key(|spec| needs(spec).get("requests.cpu").copied().unwrap_or_default());
    let mut needed = scheduler.as_ref().map(needs).unwrap_or_default();
    for (key, amount) in smallest.map(needs).unwrap_or_default() {
        *needed.entry(key).or_default() += amount;
    }
    let mut later = Vec::new();
    for quota in quotas.items {
        let name = quota.metadata.name.clone().unwrap_or_default();
        let spec = quota.spec.unwrap_or_default();
        if spec.scopes.as_ref().is_some_and(|scopes| !scopes.is_empty()) || spec.scope_selector.is_some() {
            // It may not be about these pods.
            continue;
        }
        let used = quota.status.and_then(|status| status.used).unwrap_or_default();
        for (key, hard) in spec.hard.unwrap_or_default() {
            let (Some(need), Some(limit)) = (needed.get(key.as_str()), quantity(&hard.0)) else { continue };
            let used_words = used.get(&key).map_or("0", |used| used.0.as_str());
            let words = format!("quota `{name}`: {key} is limited to {}, and {used_words} is used", hard.0);
            if *need > limit {
                let message = format!("{words}; the scheduler and one worker need {}", thousandths(*need));
                return Err(error_of(message, "ask for a larger quota, or make the component smaller"));
            }
            if quantity(used_words).unwrap_or(0) + need > limit {
                later.push(words);
            }
        }
    }
    Ok(later)
}

/// Compares every pod with the largest node, where nodes may be listed.
async fn nodes(client: &Client, launch: &Launch, found: &mut Preflight) -> Result<(), LaunchError> {
    let nodes: Api<Node> = Api::all(client.clone());
    let Ok(nodes) = nodes.list(&ListParams::default()).await else { return Ok(()) };
    let allocatable = nodes.items.into_iter().filter_map(|node| node.status?.allocatable).collect::<Vec<_>>();
    let largest = |key: &str| {
        let amounts =
            allocatable.iter().filter_map(|amounts| Some((quantity(&amounts.get(key)?.0)?, amounts.get(key)?.0.clone())));
        amounts.max_by_key(|(amount, _)| *amount)
    };
    for pool in &launch.pools {
        let Some(spec) = &pool.template.spec else { continue };
        let needs = needs(spec);
        for key in ["cpu", "memory"] {
            let (Some(need), Some((most, words))) = (needs.get(key), largest(key)) else { continue };
            if *need <= most {
                continue;
            }
            let message = format!(
                "a worker of component `{}` asks for {} {key}, and the largest of {} nodes has {words}",
                pool.name,
                thousandths(*need),
                allocatable.len()
            );
            if !launch.options.node_autoscaling {
                return Err(error_of(message, "ask for less; `node_autoscaling: false` says that no larger node will come"));
            }
            found.not_now.push(message);
        }
    }
    Ok(())
}

fn thousandths(amount: u128) -> String {
    if amount.is_multiple_of(1000) { (amount / 1000).to_string() } else { format!("{amount}m") }
}

/// What a pod counts as in a quota, thousandths.
fn needs(spec: &PodSpec) -> BTreeMap<String, u128> {
    let mut made: BTreeMap<String, u128> = BTreeMap::from([("pods".to_owned(), 1000), ("count/pods".to_owned(), 1000)]);
    for container in &spec.containers {
        let resources = container.resources.clone().unwrap_or_default();
        let limits = resources.limits.unwrap_or_default();
        // A container without a request asks for its limit.
        let requests = limits.iter().chain(resources.requests.iter().flatten()).collect::<BTreeMap<_, _>>();
        for (key, amount) in requests {
            let amount = quantity(&amount.0).unwrap_or(0);
            *made.entry(format!("requests.{key}")).or_default() += amount;
            if matches!(key.as_str(), "cpu" | "memory" | "ephemeral-storage") {
                *made.entry(key.clone()).or_default() += amount;
            }
        }
        for (key, amount) in limits {
            *made.entry(format!("limits.{key}")).or_default() += quantity(&amount.0).unwrap_or(0);
        }
    }
    made
}

/// Asks the API whether it would take the Job and every pod. Pods are asked about as such: a Job is taken whatever its pod is.
async fn dry_runs(client: &Client, launch: &Launch, root: &Root, found: &mut Preflight) -> Result<(), LaunchError> {
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let jobs: Api<Job> = Api::namespaced(client.clone(), &launch.namespace);
    match jobs.create(&dry_run, &launch.job()).await {
        Ok(_) => {}
        Err(error) if failure::code(&error) == 409 => found.name_free = false,
        Err(error) => weigh(&format!("create job {}", launch.name()), &error, found)?,
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), &launch.namespace);
    let scheduler: Pod = serde_json::from_value(launch.pod()).map_err(|error| error_of(error.to_string(), ""))?;
    let settings = launch.settings(root, None);
    let worker = |pool: &crate::settings::Pool| {
        let mut pod = pod_of(&settings, pool, &Slot { pool: pool.name.clone(), ordinal: 0 }, 0);
        // The Job that will own it does not exist yet.
        pod.metadata.owner_references = None;
        pod
    };
    let mut all = vec![(SCHEDULER_CONTAINER.to_owned(), scheduler)];
    all.extend(launch.pools.iter().map(|pool| (format!("worker of component `{}`", pool.name), worker(pool))));
    let ask = |(what, pod): (String, Pod)| {
        let (pods, dry_run) = (pods.clone(), dry_run.clone());
        async move { (what, pods.create(&dry_run, &pod).await) }
    };
    let answers: Vec<_> = futures_util::stream::iter(all.into_iter().map(ask)).buffered(AT_ONCE).collect().await;
    for (what, answer) in answers {
        match answer {
            Err(error) if failure::code(&error) != 409 => weigh(&format!("create the pod of the {what}"), &error, found)?,
            _ => {}
        }
    }
    Ok(())
}

fn weigh(doing: &str, error: &kube::Error, found: &mut Preflight) -> Result<(), LaunchError> {
    let reason = failure::classify(doing, error);
    match reason.class {
        ReasonClass::Never => Err(error_of(reason.message, "nothing was created")),
        ReasonClass::NotNow => {
            found.not_now.push(reason.message);
            Ok(())
        }
    }
}
