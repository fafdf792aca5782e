//! What a pod's status says about a worker: what it waits for, and what it died of. Pure; the platform's words are passed on verbatim.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodCondition, PodStatus};
use scalable_provider::{Cause, ReasonClass};

/// Name of the container the agent runs in: its end is the worker's, whatever sidecars do.
pub const WORKER_CONTAINER: &str = "worker";

/// What a pod waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Whether it can come by itself.
    pub class: ReasonClass,
    /// Kubernetes' short word.
    pub reason: String,
    /// Kubernetes' words.
    pub message: String,
}

/// What a worker died of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// Which kind.
    pub cause: Cause,
    /// Kubernetes' words.
    pub reason: String,
}

/// Where a pod is on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is being started; what for it waits, where Kubernetes says so.
    Starting(Option<Wait>),
    /// The agent runs.
    Running,
    /// The agent is over.
    Ended(Death),
}

/// Where a pod is on its way; `container` is the one that counts.
pub fn phase(pod: &Pod, container: &str) -> Phase {
    if let Some(death) = death(pod, container) {
        return Phase::Ended(death);
    }
    let running = status_of(pod, container).and_then(|status| status.state.as_ref()).is_some_and(|state| state.running.is_some());
    if running { Phase::Running } else { Phase::Starting(wait(pod)) }
}

/// Why somebody is ending the pod: its disruption, else that somebody deleted it. Nothing while nobody does.
pub fn leaving(pod: &Pod) -> Option<Death> {
    let deleted = pod.metadata.deletion_timestamp.is_some();
    match disruption(pod) {
        Some(death) => Some(death),
        None if deleted => Some(Death { cause: Cause::Removed, reason: "the pod was deleted".to_owned() }),
        None => None,
    }
}

fn status_of<'p>(pod: &'p Pod, container: &str) -> Option<&'p ContainerStatus> {
    pod.status.as_ref()?.container_statuses.iter().flatten().find(|status| status.name == container)
}

/// Of all containers, those that run first first.
fn statuses(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten())
}

fn conditions(pod: &Pod) -> &[PodCondition] {
    pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default()
}

/// The disruption that Kubernetes says the pod is under.
fn disruption(pod: &Pod) -> Option<Death> {
    let condition = conditions(pod).iter().find(|c| c.type_ == "DisruptionTarget" && c.status == "True")?;
    let reason = condition.reason.as_deref().unwrap_or("DisruptionTarget");
    let cause = match reason {
        "DeletionByTaintManager" | "DeletionByPodGC" => Cause::NodeLost,
        "TerminationByKubelet" if status_reason(pod) == Some("Evicted") => Cause::Evicted,
        _ => Cause::Preempted,
    };
    Some(Death { cause, reason: said(reason, [condition.message.as_deref(), status_message(pod)]) })
}

fn status_reason(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.reason.as_deref().filter(|reason| !reason.is_empty())
}

fn status_message(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.message.as_deref().filter(|message| !message.is_empty())
}

/// `Reason: message`, with each message once.
fn said<'m>(reason: &str, messages: impl IntoIterator<Item = Option<&'m str>>) -> String {
    let mut made = reason.to_owned();
    for message in messages.into_iter().flatten().map(str::trim).filter(|message| !message.is_empty()) {
        if !made.contains(message) {
            made = format!("{made}: {message}");
        }
    }
    made
}

fn death(pod: &Pod, container: &str) -> Option<Death> {
    let status = pod.status.as_ref()?;
    let over = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
    let terminated = status_of(pod, container).and_then(|status| status.state.as_ref()?.terminated.as_ref());
    if !over && terminated.is_none() {
        return None;
    }
    if status_reason(pod) == Some("Evicted") {
        return Some(Death { cause: Cause::Evicted, reason: said("Evicted", [status_message(pod)]) });
    }
    if let Some(death) = disruption(pod) {
        return Some(death);
    }
    match terminated {
        Some(end) => Some(end_of(pod, container, end)),
        None => Some(never_ran(pod)),
    }
}

/// The end of the agent's container.
fn end_of(pod: &Pod, container: &str, end: &ContainerStateTerminated) -> Death {
    let message = end.message.as_deref();
    let reason = end.reason.as_deref().unwrap_or_default();
    let who = if container == WORKER_CONTAINER { "the worker" } else { "it" };
    match (reason, end.exit_code) {
        ("OOMKilled", _) => {
            let limit = memory_limit(pod, container).map_or_else(String::new, |limit| format!("the memory limit is {limit}"));
            Death { cause: Cause::OutOfMemory, reason: said("OOMKilled", [Some(limit.as_str()), message]) }
        }
        ("StartError" | "ContainerCannotRun", _) => Death { cause: Cause::NotStarted, reason: said(reason, [message]) },
        // What the kubelet says of a container whose node came back without it.
        ("ContainerStatusUnknown", _) => Death { cause: Cause::NodeLost, reason: said(reason, [message]) },
        (_, 0) => Death { cause: Cause::Ended, reason: said(&format!("{who} ended with code 0"), [message]) },
        (_, code) => {
            let signal = (code > 128 && code < 160).then(|| format!("signal {}", code - 128));
            let words = format!("{who} ended with code {code}");
            Death { cause: Cause::Failed, reason: said(&words, [signal.as_deref(), message, status_message(pod)]) }
        }
    }
}

/// A pod that is over although its agent never ran.
fn never_ran(pod: &Pod) -> Death {
    let status = pod.status.as_ref();
    let ended = |status: &ContainerStatus| {
        let end = status.state.as_ref()?.terminated.as_ref().filter(|end| end.exit_code != 0)?;
        let words = format!("container `{}` ended with code {}", status.name, end.exit_code);
        Some(said(&words, [end.reason.as_deref(), end.message.as_deref()]))
    };
    let container = status.and_then(|status| statuses(status).find_map(ended));
    let words = match (status_reason(pod), container) {
        (Some(reason), _) => said(reason, [status_message(pod)]),
        (None, Some(words)) => words,
        (None, None) => said("the pod ended before its worker ran", [status_message(pod)]),
    };
    let cause = if status_reason(pod) == Some("NodeLost") { Cause::NodeLost } else { Cause::NotStarted };
    Death { cause, reason: words }
}

fn memory_limit(pod: &Pod, container: &str) -> Option<String> {
    let container = pod.spec.as_ref()?.containers.iter().find(|c| c.name == container)?;
    Some(container.resources.as_ref()?.limits.as_ref()?.get("memory")?.0.clone())
}

/// What a pod that is being started waits for, where Kubernetes says so.
fn wait(pod: &Pod) -> Option<Wait> {
    let not_scheduled = conditions(pod).iter().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(condition) = not_scheduled {
        let reason = condition.reason.clone().unwrap_or_else(|| "Unschedulable".to_owned());
        return Some(Wait { class: ReasonClass::NotNow, reason, message: condition.message.clone().unwrap_or_default() });
    }
    let status = pod.status.as_ref()?;
    statuses(status)
        .filter_map(|status| Some((status, status.state.as_ref()?)))
        .find_map(|(status, state)| wait_of(status, state))
}

fn wait_of(status: &ContainerStatus, state: &ContainerState) -> Option<Wait> {
    let waiting = state.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    let class = match reason {
        // On the way, with nothing to say.
        "ContainerCreating" | "PodInitializing" => return None,
        // The text of the name is wrong: waiting does not change it.
        "InvalidImageName" => ReasonClass::Never,
        _ => ReasonClass::NotNow,
    };
    let said_before = status.last_state.as_ref().and_then(|last| last.terminated.as_ref()).map(|end| {
        let words = format!("it ended with code {}", end.exit_code);
        said(&words, [end.reason.as_deref().filter(|reason| *reason != "Error"), end.message.as_deref()])
    });
    let mut message = waiting.message.clone().unwrap_or_default();
    if message.is_empty() {
        message = format!("container `{}` with image {}", status.name, status.image);
    }
    if let Some(before) = said_before {
        message = format!("{message}: {before}");
    }
    Some(Wait { class, reason: reason.to_owned(), message })
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
