//! The requests to the API that the provider makes, each bounded in time and harmless when it is made twice.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, HostAlias, Pod};
use kube::api::{Api, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, Error};
use scalable_provider::{Reason, ReasonClass};
use serde_json::json;

use crate::failure;
use crate::names::{self, INCARNATION_ANNOTATION, ORDINAL_ANNOTATION, POOL_ANNOTATION};
use crate::plan::{Grace, Slot};
use crate::pods::{BUSY_ANNOTATION, DISRUPT_ANNOTATION};
use crate::settings::{Pool, Root, Settings};
use crate::status::{WORKER_CONTAINER, Wait};

/// Longest wait for an answer.
pub const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Longest wait for a pod's log: its node may not answer.
const LOG_ANSWER_MAX: Duration = Duration::from_secs(5);
/// Most of a pod's log that is kept, bytes: its end.
const LOG_BYTES_MAX: i64 = 4 << 20;
/// How often a create is tried before it is given back.
const CREATE_TRIES: u32 = 3;
/// Longest wait between two tries of a create.
const CREATE_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Name by which this program's events are known.
const COMPONENT: &str = "scalable";

/// Where the requests go.
#[derive(Clone)]
pub struct Requests {
    /// Pods of the namespace.
    pub pods: Api<Pod>,
    events: Api<Event>,
    jobs: Api<Job>,
    namespace: String,
    root: Root,
}

/// Why a request did not do what it should.
#[derive(Debug)]
pub enum Failed {
    /// The API refused it.
    Refused(Reason, Option<Duration>),
    /// There was no answer: it may have been done.
    NoAnswer(String),
    /// The object is not there.
    Absent,
    /// The name belongs to another object.
    Other,
}

/// Waits for an answer at most `longest`.
async fn within<T>(longest: Duration, doing: &str, request: impl Future<Output = Result<T, Error>>) -> Result<T, Failed> {
    match tokio::time::timeout(longest, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(match failure::code(&error) {
            0 => Failed::NoAnswer(format!("cannot {doing}: {}", failure::chain(&error))),
            404 if !failure::chain(&error).contains("namespaces") => Failed::Absent,
            _ => Failed::Refused(failure::classify(doing, &error), failure::retry_after(&error)),
        }),
        Err(_) => {
            Err(Failed::NoAnswer(format!("cannot {doing}: the Kubernetes API did not answer within {} s", longest.as_secs())))
        }
    }
}

impl Requests {
    /// Requests about the objects of a run.
    pub fn new(client: &Client, settings: &Settings) -> Requests {
        let namespace = settings.namespace.as_str();
        Requests {
            pods: Api::namespaced(client.clone(), namespace),
            events: Api::namespaced(client.clone(), namespace),
            jobs: Api::namespaced(client.clone(), namespace),
            namespace: namespace.to_owned(),
            root: settings.root.clone(),
        }
    }

    /// Makes a worker's pod; one of the same name that is ours already is as good.
    ///
    /// # Errors
    /// What the API said, or that it said nothing.
    pub async fn create(&self, pod: Pod) -> Result<Pod, Failed> {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let doing = format!("create pod {name}");
        let mut last = None;
        for tried in 0..CREATE_TRIES {
            match within(ANSWER_MAX, &doing, self.pods.create(&PostParams::default(), &pod)).await {
                Ok(made) => return Ok(made),
                Err(Failed::Refused(reason, _)) if reason.message.contains("already exists") => {
                    return self.existing(&name).await;
                }
                Err(Failed::Refused(reason, Some(pause))) if reason.class == ReasonClass::NotNow => {
                    last = Some(Failed::Refused(reason, Some(pause)));
                    tokio::time::sleep(pause.min(CREATE_PAUSE_MAX)).await;
                }
                Err(Failed::NoAnswer(message)) => {
                    last = Some(Failed::NoAnswer(message));
                    tokio::time::sleep(Duration::from_millis(200 << tried)).await;
                }
                Err(failed) => return Err(failed),
            }
        }
        Err(last.unwrap_or(Failed::Absent))
    }

    async fn existing(&self, name: &str) -> Result<Pod, Failed> {
        let found = within(ANSWER_MAX, &format!("read pod {name}"), self.pods.get(name)).await?;
        let ours = found.metadata.owner_references.iter().flatten().any(|owner| owner.uid == self.root.uid);
        if ours { Ok(found) } else { Err(Failed::Other) }
    }

    /// Deletes this very pod.
    ///
    /// # Errors
    /// What the API said; a pod that is not there is [`Failed::Absent`].
    pub async fn delete(&self, name: &str, uid: &str, grace: Grace) -> Result<(), Failed> {
        let parameters = DeleteParams {
            grace_period_seconds: match grace {
                Grace::Own => None,
                Grace::Short => Some(1),
                Grace::None => Some(0),
            },
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..DeleteParams::default()
        };
        match within(ANSWER_MAX, &format!("delete pod {name}"), self.pods.delete(name, &parameters)).await {
            // Another pod has the name by now.
            Err(Failed::Refused(reason, _)) if reason.message.contains("Precondition failed") => Err(Failed::Absent),
            answer => answer.map(drop),
        }
    }

    /// Marks this very pod busy or idle for what removes nodes.
    ///
    /// # Errors
    /// What the API said.
    pub async fn mark(&self, name: &str, uid: &str, busy: bool) -> Result<Pod, Failed> {
        let do_not_disrupt = if busy { json!("true") } else { json!(null) };
        let safe_to_evict = if busy { "false" } else { "true" };
        let annotations = json!({ BUSY_ANNOTATION: safe_to_evict, DISRUPT_ANNOTATION: do_not_disrupt });
        let patch = json!({ "metadata": { "uid": uid, "annotations": annotations } });
        let (parameters, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let request = self.pods.patch(name, &parameters, &patch);
        within(ANSWER_MAX, &format!("mark pod {name}"), request).await
    }

    /// Puts the end of a pod's log away in `directory`. What cannot be had is left out: a pod that never ran has none.
    pub async fn keep_log(&self, name: &str, directory: &Path) {
        let parameters = LogParams {
            container: Some(WORKER_CONTAINER.to_owned()),
            limit_bytes: Some(LOG_BYTES_MAX),
            tail_lines: Some(100_000),
            ..LogParams::default()
        };
        match within(LOG_ANSWER_MAX, &format!("read the log of pod {name}"), self.pods.logs(name, &parameters)).await {
            Ok(text) if text.is_empty() => {}
            Ok(text) => {
                let path = directory.join(format!("{name}.log"));
                if let Err(error) = tokio::fs::write(&path, text).await {
                    tracing::warn!(path = %path.display(), %error, "the log of a worker could not be kept");
                }
            }
            Err(failed) => tracing::debug!(worker = name, ?failed, "the log of a worker cannot be had"),
        }
    }

    /// The newest warning among a pod's events, as what it waits for.
    ///
    /// # Errors
    /// What the API said.
    pub async fn warning(&self, name: &str, uid: &str) -> Result<Option<Wait>, Failed> {
        let doing = format!("list the events of pod {name}");
        let newest = within(ANSWER_MAX, &doing, warning_of(&self.events, uid)).await?;
        Ok(newest.map(|event| Wait {
            class: ReasonClass::NotNow,
            reason: event.reason.unwrap_or_else(|| "Warning".to_owned()),
            message: event.message.unwrap_or_default(),
        }))
    }

    /// Tells whoever looks at the Job that owns everything.
    ///
    /// # Errors
    /// What the API said.
    pub async fn tell(&self, kind: &str, reason: &str, note: &str) -> Result<(), Failed> {
        let now = k8s_openapi::jiff::Timestamp::now().to_string();
        let mut short = String::new();
        for c in note.chars() {
            // What an event may hold.
            if short.len() + c.len_utf8() > 1024 {
                break;
            }
            short.push(c);
        }
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": { "generateName": format!("{}.", self.root.name), "namespace": self.namespace },
            "involvedObject": {
                "apiVersion": "batch/v1", "kind": "Job", "name": self.root.name, "namespace": self.namespace, "uid": self.root.uid,
            },
            "type": kind, "reason": reason, "message": short, "count": 1,
            "firstTimestamp": now, "lastTimestamp": now,
            "source": { "component": COMPONENT }, "reportingComponent": COMPONENT,
        });
        let event: Event = serde_json::from_value(event).map_err(|error| Failed::NoAnswer(error.to_string()))?;
        within(ANSWER_MAX, "write an event", self.events.create(&PostParams::default(), &event)).await.map(drop)
    }

    /// Lifts the deadline until which the scheduler had to be up.
    ///
    /// # Errors
    /// What the API said.
    pub async fn lift_deadline(&self) -> Result<(), Failed> {
        let patch = json!({ "metadata": { "uid": self.root.uid }, "spec": { "activeDeadlineSeconds": null } });
        let (parameters, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let request = self.jobs.patch(&self.root.name, &parameters, &patch);
        within(ANSWER_MAX, &format!("lift the start deadline of job {}", self.root.name), request).await.map(drop)
    }
}

/// The pod of a worker: the pool's template with name, place and owner.
pub fn pod_of(settings: &Settings, pool: &Pool, slot: &Slot, incarnation: u32) -> Pod {
    let component = pool.components.first().map_or(pool.name.as_str(), String::as_str);
    let mut metadata = pool.template.metadata.clone().unwrap_or_default();
    metadata.name = Some(names::worker(component, &settings.cluster_id, slot.ordinal, incarnation));
    metadata.namespace = Some(settings.namespace.clone());
    metadata.owner_references = Some(vec![settings.root.owner()]);
    let labels = metadata.labels.get_or_insert_default();
    labels.extend(names::labels(&settings.cluster_id, &settings.run, "worker", component));
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.extend([
        (POOL_ANNOTATION.to_owned(), slot.pool.clone()),
        (ORDINAL_ANNOTATION.to_owned(), slot.ordinal.to_string()),
        (INCARNATION_ANNOTATION.to_owned(), incarnation.to_string()),
    ]);
    let mut spec = pool.template.spec.clone();
    if let (Some(spec), Some(alias)) = (&mut spec, host_alias(settings)) {
        spec.host_aliases.get_or_insert_default().push(alias);
    }
    Pod { metadata, spec, status: None }
}

/// The scheduler's name in the pod's own list of hosts: workers find it where the cluster's names cannot be resolved.
fn host_alias(settings: &Settings) -> Option<HostAlias> {
    let host = settings.address.rsplit_once(':').map_or(settings.address.as_str(), |(host, _)| host);
    let ip = settings.service_ip.clone().filter(|_| !host.is_empty())?;
    Some(HostAlias { ip, hostnames: Some(vec![host.to_owned()]) })
}

/// Selects the worker pods of a run.
pub fn selector(settings: &Settings) -> String {
    let value = names::label_value(&settings.cluster_id);
    format!("{}={value},{}=worker", names::CLUSTER_LABEL, names::ROLE_LABEL)
}

/// The newest warning about the object of this uid. The parts of Kubernetes say in different fields when an event was.
///
/// # Errors
/// What the API said.
pub async fn warning_of(events: &Api<Event>, uid: &str) -> Result<Option<Event>, kube::Error> {
    let parameters = ListParams::default().fields(&format!("involvedObject.uid={uid},type=Warning")).limit(50);
    let at = |event: &Event| {
        let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
        let last = event.last_timestamp.as_ref().map(|time| time.0);
        series.or(last).or(event.event_time.as_ref().map(|time| time.0))
    };
    // What these begin to say ("Error: ErrImagePull") the status of the container says in full.
    let of_status = |event: &Event| matches!(event.reason.as_deref(), Some("Failed" | "BackOff"));
    Ok(events.list(&parameters).await?.items.into_iter().filter(|event| !of_status(event)).max_by_key(at))
}
