//! The launcher: one Job that owns everything, then what the scheduler needs, then the wait until it is ready; and all of it away again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource};
use scalable_provider::launch::LaunchError;
use scalable_provider::{Boxed, Launcher};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::access::error_of;
use crate::failure;
use crate::fate::{self, Fate, fate, look, refused};
use crate::forward::Forward;
use crate::names::{
    CLUSTER_LABEL, PROJECT_ANNOTATION, ROLE_LABEL, RUN_ANNOTATION, RUN_LABEL, SCHEDULER_PREFIX, TARGET_ANNOTATION,
};
use crate::objects::{ALIAS, Launch};
use crate::preflight::{Preflight, preflight};
use crate::settings::Root;

/// How often it is looked whether the scheduler is ready: at first, and later.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// How long the first is kept up.
const LOOK_CLOSELY: Duration = Duration::from_secs(20);
/// Longest wait for what was deleted to be gone.
const GONE_MAX: Duration = Duration::from_secs(120);
/// A pod that was given a second and is there so long after it is on a node that nobody reaches.
const STUCK_AFTER: Duration = Duration::from_secs(20);
/// How long pods have to go by themselves before they are told to hurry.
const GRACE: Duration = Duration::from_secs(3);
/// Longest silence of the API during a wait.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What is told while a scheduler is brought up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// What is being done.
    Doing(String),
    /// What is waited for, in Kubernetes' words.
    Waiting {
        /// The short word.
        reason: String,
        /// The words.
        message: String,
    },
}

/// A run in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where.
    pub namespace: String,
    /// The Job that owns everything of it.
    pub root: Root,
    /// Id of its cluster, as the label has it.
    pub cluster_id: String,
    /// Its name.
    pub run: String,
    /// Its project; empty when the Job does not say it.
    pub project: String,
    /// Its target, as its manifest calls it; empty when the Job does not say it.
    pub target: String,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// Its scheduler runs or starts; else how the Job ended.
    pub ended: Option<String>,
}

/// A scheduler in a pod.
pub struct Scheduler {
    /// The run it is for.
    pub run: Run,
    /// Its pod.
    pub pod: String,
    client: Client,
}

/// What brings a scheduler up in a namespace.
#[derive(Clone)]
pub struct KubernetesLauncher {
    /// What asks the API.
    pub client: Client,
    /// What is to be brought up.
    pub launch: Launch,
}

impl Launcher for KubernetesLauncher {
    type Error = LaunchError;
    type Scheduler = Scheduler;

    fn preflight(&self) -> Boxed<'_, Result<(), LaunchError>> {
        Box::pin(async move { self.check().await.map(drop) })
    }

    fn start(&self) -> Boxed<'_, Result<Scheduler, LaunchError>> {
        Box::pin(async move { self.start_telling(&mut |_| {}).await })
    }

    fn destroy(&self, scheduler: Scheduler) -> Boxed<'_, Result<(), LaunchError>> {
        Box::pin(async move { destroy(&self.client, &scheduler.run).await })
    }
}

impl KubernetesLauncher {
    /// Checks everything that can be checked; what stands in the way only now is part of the answer.
    ///
    /// # Errors
    /// What will never work, and what to do about it.
    pub async fn check(&self) -> Result<Preflight, LaunchError> {
        preflight(&self.client, &self.launch).await
    }

    /// Creates everything and waits until the scheduler is ready, telling what it waits for. What was created is deleted when it does not
    /// start; when this program ends meanwhile, the Job's deadline and its time to live do the same.
    ///
    /// # Errors
    /// Why it did not start, in Kubernetes' words.
    pub async fn start_telling(&self, tell: &mut (dyn FnMut(Progress) + Send)) -> Result<Scheduler, LaunchError> {
        let launch = &self.launch;
        let name = launch.name();
        tell(Progress::Doing(format!("creating job {name} in namespace {}", launch.namespace)));
        let jobs: Api<Job> = Api::namespaced(self.client.clone(), &launch.namespace);
        let job = jobs.create(&PostParams::default(), &launch.job()).await.map_err(|error| match failure::code(&error) {
            409 => error_of(
                format!("a run named `{}` exists already in namespace `{}`", launch.run, launch.namespace),
                "attach to it, take it down, or give this one another --name",
            ),
            _ => refused(&format!("create job {name}"), &error),
        })?;
        let run = run_of(&job).ok_or_else(|| error_of(format!("job {name} was created without an id"), ""))?;
        let started = match self.create_rest(&run.root).await {
            Ok(()) => self.wait_ready(run.clone(), tell).await,
            Err(error) => Err(error),
        };
        if let Err(failed) = started {
            tell(Progress::Doing(format!("taking job {name} down")));
            return Err(match destroy(&self.client, &run).await {
                Ok(()) => failed,
                Err(left) => {
                    LaunchError { message: format!("{}\n{}", failed.message, left.message), help: failed.help.or(left.help) }
                }
            });
        }
        started
    }

    /// Everything but the Job, and then the Job's pod.
    async fn create_rest(&self, root: &Root) -> Result<(), LaunchError> {
        let launch = &self.launch;
        if let Some((account, role, binding)) = launch.account(root) {
            self.create("service account", &account).await?;
            self.create("role", &role).await?;
            self.create("role binding", &binding).await?;
        }
        let service = self.create("service", &launch.service(&launch.name(), root)).await?;
        let ip = service.spec.and_then(|spec| spec.cluster_ip).filter(|ip| !ip.is_empty() && ip != "None");
        let settings = launch.settings(root, ip.as_deref());
        self.create("secret", &launch.scheduler_secret(root, &settings)).await?;
        self.create("secret", &launch.worker_secret(root)).await?;
        let services: Api<Service> = Api::namespaced(self.client.clone(), &launch.namespace);
        match services.create(&PostParams::default(), &launch.service(ALIAS, root)).await {
            // Another run has it.
            Err(error) if failure::code(&error) == 409 => {}
            Err(error) => return Err(refused(&format!("create service {ALIAS}"), &error)),
            Ok(_) => {}
        }
        let jobs: Api<Job> = Api::namespaced(self.client.clone(), &launch.namespace);
        let patch = Patch::Merge(launch.start_patch());
        let started = jobs.patch(&root.name, &PatchParams::default(), &patch).await;
        started.map(drop).map_err(|error| refused(&format!("start job {}", root.name), &error))
    }

    async fn create<K>(&self, what: &str, object: &K) -> Result<K, LaunchError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.launch.namespace);
        let name = object.meta().name.clone().unwrap_or_default();
        api.create(&PostParams::default(), object).await.map_err(|error| refused(&format!("create {what} {name}"), &error))
    }

    async fn wait_ready(&self, run: Run, tell: &mut (dyn FnMut(Progress) + Send)) -> Result<Scheduler, LaunchError> {
        let begun = Instant::now();
        let mut answered = Instant::now();
        let mut told = None;
        tell(Progress::Doing("waiting for the scheduler".to_owned()));
        loop {
            match look(&self.client, &run).await {
                Ok(Fate::Ready(pod)) => return Ok(Scheduler { run, pod, client: self.client.clone() }),
                Ok(Fate::Over(message) | Fate::Hidden(message)) => {
                    return Err(error_of(message, "see what Kubernetes says of the image, the namespace and its nodes"));
                }
                Ok(Fate::Waiting(waiting)) => {
                    answered = Instant::now();
                    if waiting.is_some() && told != waiting {
                        told.clone_from(&waiting);
                        tell(Progress::Waiting {
                            reason: waiting.as_ref().map(|(reason, _)| reason.clone()).unwrap_or_default(),
                            message: waiting.map(|(_, message)| message).unwrap_or_default(),
                        });
                    }
                }
                Err(error) if answered.elapsed() > SILENCE_MAX => {
                    return Err(error_of(format!("the Kubernetes API does not answer: {}", failure::chain(&error)), ""));
                }
                Err(_) => {}
            }
            if begun.elapsed() > Duration::from_millis(self.launch.options.start_deadline_ms) + GRACE {
                let waited = told.map_or_else(String::new, |(reason, message)| format!(": {reason}: {message}"));
                let seconds = self.launch.options.start_deadline_ms / 1000;
                return Err(error_of(format!("the scheduler was not ready within {seconds} s{waited}"), ""));
            }
            let pause = if begun.elapsed() < LOOK_CLOSELY { LOOK_EVERY.0 } else { LOOK_EVERY.1 };
            tokio::time::sleep(pause).await;
        }
    }
}

impl Scheduler {
    /// A port of the scheduler on this machine; `local` 0 is any that is free.
    ///
    /// # Errors
    /// When nothing can be listened on.
    pub async fn forward(&self, port: u16, local: u16) -> std::io::Result<Forward> {
        Forward::open(&self.client, &self.run.namespace, &self.pod, port, local).await
    }

    /// How the scheduler is, when it is not known otherwise.
    ///
    /// # Errors
    /// When the API does not answer.
    pub async fn fate(&self) -> Result<Fate, LaunchError> {
        fate(&self.client, &self.run).await
    }

    /// The files of the scheduler's Secret, for whoever may read it.
    ///
    /// # Errors
    /// When it may not be read, or is gone.
    pub async fn credentials(&self) -> Result<BTreeMap<String, Vec<u8>>, LaunchError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.run.namespace);
        let name = &self.run.root.name;
        let secret = secrets.get(name).await.map_err(|error| refused(&format!("read secret {name}"), &error))?;
        Ok(secret.data.unwrap_or_default().into_iter().map(|(name, bytes)| (name, bytes.0)).collect())
    }
}

/// A Job as a run; nothing for one that is not ours.
fn run_of(job: &Job) -> Option<Run> {
    let labels = job.metadata.labels.as_ref()?;
    let said = |key: &str| job.metadata.annotations.as_ref().and_then(|annotations| annotations.get(key)).cloned();
    let name = job.metadata.name.clone().filter(|name| name.starts_with(SCHEDULER_PREFIX))?;
    let label = labels.get(RUN_LABEL)?;
    Some(Run {
        namespace: job.metadata.namespace.clone()?,
        root: Root { name, uid: job.metadata.uid.clone()? },
        cluster_id: labels.get(CLUSTER_LABEL)?.clone(),
        run: said(RUN_ANNOTATION).unwrap_or_else(|| label.clone()),
        project: said(PROJECT_ANNOTATION).unwrap_or_default(),
        target: said(TARGET_ANNOTATION).unwrap_or_default(),
        created_at: job.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()).unwrap_or_default(),
        ended: fate::job_end(job),
    })
}

/// The runs of a namespace, oldest first.
///
/// # Errors
/// When the Jobs may not be listed.
pub async fn list(client: &Client, namespace: &str) -> Result<Vec<Run>, LaunchError> {
    let jobs: Api<Job> = Api::namespaced(client.clone(), namespace);
    let selector = format!("{CLUSTER_LABEL},{ROLE_LABEL}=scheduler");
    let found = jobs.list(&ListParams::default().labels(&selector)).await;
    let found = found.map_err(|error| refused(&format!("list the runs of namespace {namespace}"), &error))?;
    let mut runs: Vec<Run> = found.items.iter().filter_map(run_of).collect();
    runs.sort_by(|one, other| one.created_at.cmp(&other.created_at));
    Ok(runs)
}

/// The newest run of a namespace that is the one meant.
///
/// # Errors
/// When the Jobs may not be listed.
pub async fn find(client: &Client, namespace: &str, is_meant: impl Fn(&Run) -> bool) -> Result<Option<Run>, LaunchError> {
    Ok(list(client, namespace).await?.into_iter().rfind(is_meant))
}

/// How many worker pods run for each cluster of a namespace, by the clusters' ids as their labels have them.
///
/// # Errors
/// When the pods may not be listed.
pub async fn workers(client: &Client, namespace: &str) -> Result<BTreeMap<String, usize>, LaunchError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let found = pods.list(&ListParams::default().labels(&format!("{CLUSTER_LABEL},{ROLE_LABEL}=worker"))).await;
    let found = found.map_err(|error| refused(&format!("list the workers of namespace {namespace}"), &error))?;
    let mut running = BTreeMap::new();
    for pod in found.items {
        let runs = pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"));
        let Some(cluster) = pod.metadata.labels.as_ref().and_then(|labels| labels.get(CLUSTER_LABEL)) else { continue };
        if runs && pod.metadata.deletion_timestamp.is_none() {
            *running.entry(cluster.clone()).or_default() += 1;
        }
    }
    Ok(running)
}

/// The scheduler of a run that is there already.
///
/// # Errors
/// When its scheduler is not up; then how it ended.
pub async fn attach(client: &Client, run: Run) -> Result<Scheduler, LaunchError> {
    match fate(client, &run).await? {
        Fate::Ready(pod) => Ok(Scheduler { run, pod, client: client.clone() }),
        Fate::Over(message) | Fate::Hidden(message) => Err(error_of(message, "")),
        Fate::Waiting(waiting) => {
            let words = waiting.map_or_else(String::new, |(reason, message)| format!(": {reason}: {message}"));
            Err(error_of(format!("the scheduler of run `{}` is not up{words}", run.run), "try again in a moment"))
        }
    }
}

/// Deletes a run's Job and with it everything that it owns, and waits until nothing of it is left. Pods that do not go by themselves are
/// told to hurry: whoever wants a worker's work has let it finish before.
///
/// # Errors
/// What is left.
pub async fn destroy(client: &Client, run: &Run) -> Result<(), LaunchError> {
    let jobs: Api<Job> = Api::namespaced(client.clone(), &run.namespace);
    let this_one =
        DeleteParams::background().preconditions(Preconditions { uid: Some(run.root.uid.clone()), ..Preconditions::default() });
    let begun = Instant::now();
    loop {
        match jobs.delete(&run.root.name, &this_one).await {
            Ok(_) => break,
            // 409: the name is another run's by now.
            Err(error) if matches!(failure::code(&error), 404 | 409) => break,
            Err(error) if failure::code(&error) == 403 || begun.elapsed() > GONE_MAX => {
                return Err(refused(&format!("delete job {}", run.root.name), &error));
            }
            Err(_) => tokio::time::sleep(LOOK_EVERY.1).await,
        }
    }
    let mut hurried = BTreeMap::new();
    loop {
        let left = left(client, run).await;
        match left {
            Ok(left) if left.is_empty() => return Ok(()),
            Ok(left) if begun.elapsed() > GONE_MAX || stuck(&hurried, &left) => {
                let message = format!("not gone after {} s: {}", begun.elapsed().as_secs(), left.join(", "));
                return Err(error_of(
                    message,
                    "a pod goes when its containers have ended, after its grace period at the latest; one on a node that is not reached when the node is back or removed",
                ));
            }
            // Without the right to look nothing would be seen later either.
            Err(error) if failure::code(&error) == 403 || begun.elapsed() > GONE_MAX => {
                return Err(refused("see what is left", &error));
            }
            _ => {}
        }
        if begun.elapsed() > GRACE {
            hurry(client, run, &mut hurried).await;
        }
        tokio::time::sleep(LOOK_EVERY.0).await;
    }
}

/// Everything of the run, in words: its Job, and what that owns.
///
/// # Errors
/// When something may not be listed.
pub async fn left(client: &Client, run: &Run) -> Result<Vec<String>, kube::Error> {
    let mut left = named::<Pod>(client, run, "pod").await?;
    left.extend(named::<Job>(client, run, "job").await?);
    left.extend(named::<Service>(client, run, "service").await?);
    left.extend(named::<Secret>(client, run, "secret").await?);
    // Without the right to list them they were not made here.
    left.extend(named::<ServiceAccount>(client, run, "service account").await.unwrap_or_default());
    left.extend(named::<RoleBinding>(client, run, "role binding").await.unwrap_or_default());
    left.extend(named::<Role>(client, run, "role").await.unwrap_or_default());
    Ok(left)
}

async fn named<K>(client: &Client, run: &Run, what: &str) -> Result<Vec<String>, kube::Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), &run.namespace);
    let found = api.list_metadata(&ListParams::default().labels(&format!("{CLUSTER_LABEL}={}", run.cluster_id))).await?;
    let ours = found.items.into_iter().filter(|object| belongs(&object.metadata, run));
    Ok(ours.map(|object| format!("{what} {}", object.metadata.name.unwrap_or_default())).collect())
}

/// It is the run's Job, or that owns it. A label alone does not make anything ours.
fn belongs(metadata: &ObjectMeta, run: &Run) -> bool {
    metadata.uid.as_ref() == Some(&run.root.uid)
        || metadata.owner_references.iter().flatten().any(|owner| owner.uid == run.root.uid)
}

/// All that is left are pods that should have gone long ago.
fn stuck(hurried: &BTreeMap<String, Instant>, left: &[String]) -> bool {
    let long_ago = hurried.values().filter(|at| at.elapsed() > STUCK_AFTER).count();
    left.iter().all(|what| what.starts_with("pod ")) && left.len() == long_ago
}

/// Gives the pods that are left a second, and remembers when.
async fn hurry(client: &Client, run: &Run, hurried: &mut BTreeMap<String, Instant>) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &run.namespace);
    let selector = format!("{CLUSTER_LABEL}={}", run.cluster_id);
    let Ok(found) = pods.list_metadata(&ListParams::default().labels(&selector)).await else { return };
    hurried.retain(|uid, _| found.items.iter().any(|pod| pod.metadata.uid.as_ref() == Some(uid)));
    for pod in found.items {
        if !belongs(&pod.metadata, run) {
            continue;
        }
        let (Some(name), Some(uid)) = (pod.metadata.name, pod.metadata.uid) else { continue };
        if hurried.contains_key(&uid) {
            continue;
        }
        let this_one = Preconditions { uid: Some(uid.clone()), ..Preconditions::default() };
        if pods.delete(&name, &DeleteParams::default().grace_period(1).preconditions(this_one)).await.is_ok() {
            hurried.insert(uid, Instant::now());
        }
    }
}
