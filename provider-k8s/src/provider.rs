//! The provider: workers as pods. It runs on a thread of its own, with one watch and a bounded number of requests under way.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use scalable_provider::{Boxed, Observation, Operation, Provider, Reason, ReasonClass};
use tokio::sync::{mpsc, oneshot};

use crate::actor::{Actor, Command};
use crate::bucket::Rate;
use crate::settings::Settings;

/// Observations that wait for whoever asked for them; beyond that the provider waits.
const OBSERVATIONS_MAX: usize = 1024;
/// Calls that wait for the provider; beyond that they wait themselves.
const COMMANDS_MAX: usize = 64;

/// How much the provider asks of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests that begin.
    pub rate: Rate,
    /// Requests under way, at least 1.
    pub parallel: usize,
}

impl Default for Limits {
    /// 20 a second, 50 at once after a rest, 16 under way: what Argo's controller asks for.
    fn default() -> Limits {
        Limits { rate: Rate { per_second: 20, burst: 50 }, parallel: 16 }
    }
}

/// What the provider needs.
#[derive(Clone, Debug)]
pub struct ProviderOptions {
    /// What its workers are.
    pub settings: Settings,
    /// How the API is reached: in a pod [`kube::Config::incluster`].
    pub config: kube::Config,
    /// Where the ends of the workers' logs are put before their pods are deleted, `<pod>.log` each.
    pub log_directory: Option<PathBuf>,
    /// How much it asks of the API.
    pub limits: Limits,
}

/// A worker's pod, for whoever has to tell ours from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerPod {
    /// The pod's unique id.
    pub uid: String,
    /// Its address; nothing before it has one.
    pub ip: Option<IpAddr>,
    /// It is over, or being ended.
    pub ending: bool,
}

/// The pods that are known to be workers of this run, by name. A copy is another handle of the same.
#[derive(Clone, Debug, Default)]
pub struct Workers(Arc<Mutex<BTreeMap<String, WorkerPod>>>);

impl Workers {
    /// The pod of that name. A pod that was created a moment ago may not be known yet, or not its address: ask again.
    pub fn get(&self, name: &str) -> Option<WorkerPod> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub(crate) fn set(&self, pods: BTreeMap<String, WorkerPod>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = pods;
    }

    pub(crate) fn put(&self, name: &str, pod: Option<WorkerPod>) {
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match pod {
            Some(pod) => drop(pods.insert(name.to_owned(), pod)),
            None => drop(pods.remove(name)),
        }
    }
}

/// Creates, observes and removes worker pods. See [`Provider`] for what each call means; here
///
/// - a [`Operation::Create`] is answered when the pod exists or the API refused it, or after 30 s without an answer; what was refused is
///   not tried again by itself;
/// - [`Operation::Drain`], [`Operation::Delete`] and [`Operation::Mark`] are remembered and tried until they are done;
/// - a pod that is over is reported once, its log is put away, and it is deleted;
/// - a pod that does not start within its pool's deadline is deleted and reported as [`scalable_provider::Cause::NotStarted`].
///
/// When it starts it lifts the start deadline of the Job that owns everything, and what pods wait for and die of it also tells as events
/// of that Job.
pub struct KubernetesProvider {
    commands: mpsc::Sender<Command>,
    observations: Mutex<Option<mpsc::Receiver<Observation>>>,
    workers: Workers,
}

impl KubernetesProvider {
    /// Starts the provider's thread. Pods that exist already are taken over: each is observed as started.
    ///
    /// # Errors
    /// When the thread cannot be started, or the log directory cannot be made.
    pub fn start(options: ProviderOptions) -> io::Result<KubernetesProvider> {
        if let Some(directory) = &options.log_directory {
            std::fs::create_dir_all(directory)?;
        }
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (seen, observations) = mpsc::channel(OBSERVATIONS_MAX);
        let workers = Workers::default();
        let known = workers.clone();
        std::thread::Builder::new().name("kubernetes".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(async {
                    match Actor::new(options, seen, known) {
                        Ok(actor) => actor.run(inbox).await,
                        Err(error) => tracing::error!(%error, "the Kubernetes API cannot be asked"),
                    }
                }),
                Err(error) => tracing::error!(%error, "the provider's thread cannot run"),
            }
        })?;
        Ok(KubernetesProvider { commands, observations: Mutex::new(Some(observations)), workers })
    }

    /// The pods that are known to be workers.
    pub fn workers(&self) -> Workers {
        self.workers.clone()
    }
}

impl Provider for KubernetesProvider {
    fn observe(&self) -> mpsc::Receiver<Observation> {
        let taken = self.observations.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.unwrap_or_else(|| mpsc::channel(1).1)
    }

    fn apply(&self, operations: Vec<Operation>) -> Boxed<'_, Vec<(Operation, Reason)>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let kept = operations.clone();
            let sent = self.commands.send(Command::Apply(operations, reply)).await.is_ok();
            match answer.await {
                Ok(failed) if sent => failed,
                _ => {
                    let message = "the provider has ended".to_owned();
                    kept.into_iter().map(|o| (o, Reason { class: ReasonClass::Never, message: message.clone() })).collect()
                }
            }
        })
    }

    fn shutdown(&self) -> Boxed<'_, ()> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            if self.commands.send(Command::Shutdown(reply)).await.is_ok() {
                // Without an answer the provider is gone, and with it nothing that could still be done.
                let _ = answer.await;
            }
        })
    }
}
