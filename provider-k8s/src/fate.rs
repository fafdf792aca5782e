//! How a run's scheduler is, in Kubernetes' own words: on its way, up, or over and why.

use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Namespace, Pod, Secret};
use kube::Client;
use kube::api::{Api, ListParams, LogParams, PostParams};
use scalable_provider::ReasonClass;
use scalable_provider::launch::LaunchError;
use serde_json::json;

use crate::access::error_of;
use crate::failure;
use crate::launch::Run;
use crate::names::{CLUSTER_LABEL, ROLE_LABEL};
use crate::objects::SCHEDULER_CONTAINER;
use crate::requests::{ANSWER_MAX, warning_of};
use crate::status::{self, Phase};

/// What of the scheduler's log is shown when it is over, lines.
const LOG_LINES: i64 = 20;
/// How often a Job whose pod is being ended is looked at until it says why, and how long it takes to look again.
const LOOKS_MAX: u32 = 10;
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How a scheduler is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It answers, in this pod.
    Ready(String),
    /// It is on its way; what for it waits, short and long, where Kubernetes says so.
    Waiting(Option<(String, String)>),
    /// It is over, and comes back by nothing; why.
    Over(String),
    /// Whoever asks may not look (any more), in the API's words. The scheduler may be as it was.
    Hidden(String),
}

/// How the scheduler of a run is. Takes some seconds at most.
///
/// # Errors
/// When the API does not answer.
pub async fn fate(client: &Client, run: &Run) -> Result<Fate, LaunchError> {
    let looked = tokio::time::timeout(ANSWER_MAX, look(client, run)).await.map_err(|_| {
        error_of(format!("cannot look at the scheduler: the API did not answer within {} s", ANSWER_MAX.as_secs()), "")
    })?;
    let hidden = |error: &kube::Error| matches!(failure::code(error), 403 | 404);
    match looked {
        Ok(Fate::Over(words)) => Ok(Fate::Over(match namespace_end(client, &run.namespace).await {
            Some(end) => format!("{end}; {words}"),
            None => words,
        })),
        Err(error) if hidden(&error) => Ok(match namespace_end(client, &run.namespace).await {
            Some(end) => Fate::Over(end),
            None => Fate::Hidden(failure::classify("look at the scheduler", &error).message),
        }),
        Err(error) => Err(refused("look at the scheduler", &error)),
        Ok(fate) => Ok(fate),
    }
}

pub(crate) fn refused(doing: &str, error: &kube::Error) -> LaunchError {
    error_of(failure::classify(doing, error).message, "")
}

/// As [`fate`], without what may be known of the namespace.
pub(crate) async fn look(client: &Client, run: &Run) -> Result<Fate, kube::Error> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &run.namespace);
    let selector = format!("{CLUSTER_LABEL}={},{ROLE_LABEL}=scheduler", run.cluster_id);
    let found = pods.list(&ListParams::default().labels(&selector)).await?;
    let pod = found.items.into_iter().max_by_key(|pod| pod.metadata.creation_timestamp.clone().map(|time| time.0));
    let mut leaving = None;
    if let Some(pod) = &pod {
        let name = pod.metadata.name.clone().unwrap_or_default();
        match status::phase(pod, SCHEDULER_CONTAINER) {
            _ if pod.metadata.deletion_timestamp.is_some() => {
                let why = status::leaving(pod).map_or_else(String::new, |death| death.reason);
                leaving = Some(format!("the scheduler's pod {name} is being ended: {why}"));
            }
            Phase::Ended(death) => {
                let words = format!("the scheduler's pod {name} is over: {}{}", death.reason, log_tail(&pods, &name).await);
                return Ok(Fate::Over(words));
            }
            Phase::Running if is_ready(pod) => return Ok(Fate::Ready(name)),
            Phase::Running => {
                return Ok(Fate::Waiting(Some(("NotReady".to_owned(), format!("pod {name} does not answer its probe yet")))));
            }
            Phase::Starting(Some(wait)) if wait.class == ReasonClass::Never => {
                return Ok(Fate::Over(format!("the scheduler's pod {name} cannot start: {}: {}", wait.reason, wait.message)));
            }
            Phase::Starting(Some(wait)) => return Ok(Fate::Waiting(Some((wait.reason, wait.message)))),
            Phase::Starting(None) => {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                return Ok(Fate::Waiting(newest_warning(client, &run.namespace, &uid).await));
            }
        }
    }
    let jobs: Api<Job> = Api::namespaced(client.clone(), &run.namespace);
    let mut looks = 0;
    let job = loop {
        let job = jobs.get_opt(&run.root.name).await?.filter(|job| job.metadata.uid.as_ref() == Some(&run.root.uid));
        looks += 1;
        // The Job says why it ends its pod just after it has begun to.
        let says_more = leaving.is_some() && looks < LOOKS_MAX && job.as_ref().is_some_and(|job| job_end(job).is_none());
        if !says_more {
            break job;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    if let Some(words) = over_without_pod(&run.root.name, job.as_ref(), leaving) {
        return Ok(Fate::Over(words));
    }
    Ok(Fate::Waiting(newest_warning(client, &run.namespace, &run.root.uid).await))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Why a run whose scheduler has no pod, or one that is `leaving`, is over; nothing for one whose Job has yet to make its pod. A Job
/// makes its pod once.
fn over_without_pod(name: &str, job: Option<&Job>, leaving: Option<String>) -> Option<String> {
    let of_job = match job {
        None => Some(format!("job {name} was deleted")),
        Some(job) if job.metadata.deletion_timestamp.is_some() => Some(format!("job {name} is being deleted")),
        Some(job) => job_end(job).map(|end| format!("job {name} ended: {end}")),
    };
    match (of_job, leaving) {
        (Some(job), Some(pod)) => Some(format!("{job}; {pod}")),
        (job, pod) => job.or(pod),
    }
}

/// How a Job ended, or is about to when its pod has, in Kubernetes' words.
pub(crate) fn job_end(job: &Job) -> Option<String> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    let of_type = |kind: &str| conditions.iter().find(|c| c.status == "True" && c.type_ == kind);
    let over = ["Failed", "Complete", "FailureTarget"].into_iter().find_map(of_type)?;
    let words = [over.reason.as_deref(), over.message.as_deref()].into_iter().flatten().filter(|words| !words.is_empty());
    let words = words.collect::<Vec<_>>().join(": ");
    let kind = if over.type_ == "Complete" { "Complete" } else { "Failed" };
    Some(if words.is_empty() { kind.to_owned() } else { format!("{kind}: {words}") })
}

/// That a namespace is going or gone, where that can be known. Who may not look at the namespace itself learns it from what the API says
/// to an object that is to be made there; none is made.
pub async fn namespace_end(client: &Client, namespace: &str) -> Option<String> {
    let asked = async {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        match namespaces.get(namespace).await {
            Ok(found) => {
                return found.metadata.deletion_timestamp.is_some().then(|| format!("namespace {namespace} is being deleted"));
            }
            Err(error) if failure::code(&error) == 404 => return Some(format!("there is no namespace {namespace}")),
            Err(_) => {}
        }
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let probe: Secret = serde_json::from_value(json!({ "metadata": { "generateName": "scalable-probe-" } })).ok()?;
        said_of_namespace(namespace, secrets.create(&dry_run, &probe).await.err()?)
    };
    tokio::time::timeout(ANSWER_MAX, asked).await.ok().flatten()
}

/// What the refusal of an object says of its namespace.
fn said_of_namespace(namespace: &str, refusal: kube::Error) -> Option<String> {
    let kube::Error::Api(status) = refusal else { return None };
    match status.code {
        403 if status.message.contains("being terminated") => Some(format!("namespace {namespace} is being deleted")),
        404 => Some(format!("there is no namespace {namespace}")),
        _ => None,
    }
}

async fn newest_warning(client: &Client, namespace: &str, uid: &str) -> Option<(String, String)> {
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let newest = warning_of(&events, uid).await.ok()??;
    Some((newest.reason.unwrap_or_default(), newest.message.unwrap_or_default()))
}

async fn log_tail(pods: &Api<Pod>, name: &str) -> String {
    let parameters = LogParams {
        container: Some(SCHEDULER_CONTAINER.to_owned()),
        tail_lines: Some(LOG_LINES),
        limit_bytes: Some(4000),
        ..LogParams::default()
    };
    match tokio::time::timeout(Duration::from_secs(5), pods.logs(name, &parameters)).await {
        Ok(Ok(text)) if !text.trim().is_empty() => format!("\n{}", text.trim_end()),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    fn job(deleted: bool, condition: Option<(&str, &str, &str)>) -> Job {
        let conditions = condition.map(|(kind, reason, message)| {
            json!([{ "type": "Suspended", "status": "False" }, { "type": kind, "status": "True", "reason": reason, "message": message }])
        });
        serde_json::from_value(json!({
            "metadata": { "name": "j", "deletionTimestamp": deleted.then_some("2026-01-01T00:00:00Z") },
            "status": { "conditions": conditions },
        }))
        .expect("a job")
    }

    #[test]
    fn a_scheduler_without_a_pod_is_over_when_its_job_is() {
        let pod = || Some("pod p is being ended: the pod was deleted".to_owned());
        let limit = ("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit");
        let failed = "job j ended: Failed: BackoffLimitExceeded: Job has reached the specified backoff limit";
        for (job, leaving, expected) in [
            (None, None, Some("job j was deleted".to_owned())),
            (None, pod(), Some("job j was deleted; pod p is being ended: the pod was deleted".to_owned())),
            (Some(job(true, None)), None, Some("job j is being deleted".to_owned())),
            (Some(job(false, Some(limit))), None, Some(failed.to_owned())),
            (Some(job(false, Some(("FailureTarget", limit.1, limit.2)))), None, Some(failed.to_owned())),
            (Some(job(false, Some(("Complete", "", "")))), None, Some("job j ended: Complete".to_owned())),
            (Some(job(false, None)), pod(), pod()),
            (Some(job(false, None)), None, None),
        ] {
            assert_eq!(over_without_pod("j", job.as_ref(), leaving), expected);
        }
    }

    #[test]
    fn what_a_refusal_says_of_the_namespace() {
        for (code, message, expected) in [
            (
                403,
                "secrets \"x\" is forbidden: unable to create new content in namespace n because it is being terminated",
                Some("namespace n is being deleted"),
            ),
            (404, "namespaces \"n\" not found", Some("there is no namespace n")),
            (403, "secrets is forbidden: User \"u\" cannot create resource \"secrets\"", None),
            (500, "being terminated", None),
        ] {
            let refusal = kube::Error::Api(Box::new(Status { code, message: message.to_owned(), ..Status::default() }));
            assert_eq!(said_of_namespace("n", refusal).as_deref(), expected, "{code} {message}");
        }
    }
}
