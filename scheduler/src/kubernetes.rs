//! Workers as pods: the provider, its pools, and which pods may have certificates.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use scalable_proto::v1;
use scalable_provider::dials::Dials;
use scalable_provider_k8s::settings::Settings;
use scalable_provider_k8s::{KubernetesProvider, Limits, ProviderOptions, Workers};
use tokio::sync::mpsc;

use crate::admission::{Admission, NotAdmitted, judge};
use crate::provision::scaled::{Pool, Scale};
use crate::provision::{self, Seen, Stop};

/// A provider that runs.
pub struct Started {
    /// What it sees.
    pub seen: mpsc::Receiver<Seen>,
    /// Ends it.
    pub stop: Stop,
    /// The pods it knows.
    pub admission: Box<dyn Admission>,
}

/// Starts the provider that the document at `settings` describes; the ends of pods' logs go to `logs`.
///
/// # Errors
/// When the document cannot be read, this is no pod with a service account, or a thread cannot be started.
pub fn start(settings: &Path, dials: &Dials, logs: &Path) -> Result<Started> {
    let settings = Settings::read(settings)?;
    let config = kube::Config::incluster().context("--kubernetes is for a scheduler in a pod with a service account")?;
    let pools = settings.pools.iter().map(|pool| {
        let has = &pool.capacity;
        let custom = has.custom.iter().map(|(name, amount)| v1::NamedAmount { name: name.clone(), amount: *amount });
        Pool {
            name: pool.name.clone(),
            components: pool.components.clone(),
            capacity: v1::Resources {
                milli_cpus: has.milli_cpus,
                // Without a figure memory is not accounted.
                memory_bytes: if has.memory_bytes == 0 { u64::MAX } else { has.memory_bytes },
                gpus: has.gpus,
                custom: custom.collect(),
            },
            minimum: pool.minimum,
            maximum: pool.maximum,
            // A cluster for everything is there for whoever comes.
            minimum_at_once: pool.components.iter().any(|component| component == "*"),
        }
    });
    let scale = Scale { pools: pools.collect(), parameters: dials.parameters(), max_total: dials.max_total };
    let options = ProviderOptions { settings, config, log_directory: Some(logs.to_owned()), limits: Limits::default() };
    let provider = KubernetesProvider::start(options).context("start the Kubernetes provider")?;
    let admission = Box::new(Pods(provider.workers()));
    let (seen, stop) = provision::scaled::start(provider, scale).context("start the provider's thread")?;
    Ok(Started { seen, stop, admission })
}

/// Pods that the provider observes as this run's workers.
struct Pods(Workers);

impl Admission for Pods {
    fn admit(&self, name: &str, uid: &str, address: Option<IpAddr>) -> Result<(), NotAdmitted> {
        match self.0.get(name) {
            None => Err(NotAdmitted::NotYet(format!("no pod `{name}` is observed here yet"))),
            Some(pod) if pod.ending => Err(NotAdmitted::Never(format!("pod `{name}` is being ended"))),
            Some(pod) => judge(name, uid, address, &pod.uid, pod.ip),
        }
    }
}
