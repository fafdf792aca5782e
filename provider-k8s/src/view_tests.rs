//! Sequences of what a watch says, and the news of it.

use serde_json::{Value, json};

use super::*;

const ROOT: &str = "root-uid";

struct Watch {
    view: View,
    asked: Vec<&'static str>,
}

impl Watch {
    fn new() -> Watch {
        let mut view = View::new(ROOT);
        view.list_begins();
        assert!(view.list_ends(&|_| false).is_empty());
        Watch { view, asked: Vec::new() }
    }

    fn applied(&mut self, pod: &Pod) -> Vec<String> {
        let asked = self.asked.clone();
        words(&self.view.applied(Instant::now(), pod, &|name| asked.contains(&name)))
    }

    fn deleted(&mut self, pod: &Pod) -> Vec<String> {
        let asked = self.asked.clone();
        words(&self.view.deleted(pod, &|name| asked.contains(&name)))
    }

    fn state(&self, name: &str) -> State {
        self.view.get(name).expect("known").pod.state
    }
}

fn words(news: &[Observation]) -> Vec<String> {
    let word = |news: &Observation| match news {
        Observation::Started { name, ordinal, .. } => format!("started {name} at {ordinal}"),
        Observation::Running { name, .. } => format!("running {name}"),
        Observation::Waiting { name, reason, .. } => format!("waiting {name} {reason}"),
        Observation::Leaving { name, cause, .. } => format!("leaving {name} {cause:?}"),
        Observation::Died { name, cause, .. } => format!("died {name} {cause:?}"),
        Observation::Reach { .. } => "reach".to_owned(),
    };
    news.iter().map(word).collect()
}

fn pod_with(name: &str, uid: &str, status: Value) -> Pod {
    let metadata = json!({
        "name": name, "uid": uid,
        "annotations": { POOL_ANNOTATION: "p", ORDINAL_ANNOTATION: "4", INCARNATION_ANNOTATION: "1" },
        "ownerReferences": [{ "apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": ROOT }],
    });
    let spec = json!({ "containers": [{ "name": "worker" }] });
    serde_json::from_value(json!({ "metadata": metadata, "spec": spec, "status": status })).expect("a pod")
}

fn state(state: Value) -> Value {
    let status = json!({ "name": "worker", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state });
    json!({ "phase": "Running", "podIP": "10.0.0.9", "containerStatuses": [status] })
}

fn pending() -> Value {
    json!({ "phase": "Pending" })
}

fn running() -> Value {
    state(json!({ "running": {} }))
}

fn ended(code: i32) -> Value {
    state(json!({ "terminated": { "exitCode": code } }))
}

fn leaving(mut pod: Pod) -> Pod {
    pod.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("a time");
    pod
}

#[test]
fn a_life() {
    let mut watch = Watch::new();
    assert_eq!(watch.applied(&pod_with("w", "1", pending())), ["started w at 4"]);
    let waiting = state(json!({ "waiting": { "reason": "ErrImagePull", "message": "m" } }));
    assert_eq!(watch.applied(&pod_with("w", "1", waiting.clone())), ["waiting w ErrImagePull"]);
    assert_eq!(watch.applied(&pod_with("w", "1", waiting)), [""; 0], "once");
    assert_eq!(watch.applied(&pod_with("w", "1", running())), ["running w"]);
    assert_eq!(watch.view.get("w").and_then(|entry| entry.ip), "10.0.0.9".parse().ok());
    assert_eq!(watch.applied(&pod_with("w", "1", running())), [""; 0]);
    assert_eq!(watch.applied(&pod_with("w", "1", ended(1))), ["died w Failed"]);
    assert_eq!(watch.state("w"), State::Ended);
    assert_eq!(watch.deleted(&pod_with("w", "1", ended(1))), [""; 0], "its death was told");
    assert!(watch.view.get("w").is_none());
}

#[test]
fn ends_that_nobody_here_asked_for() {
    let mut watch = Watch::new();
    watch.applied(&pod_with("w", "1", running()));
    assert_eq!(watch.applied(&leaving(pod_with("w", "1", running()))), ["leaving w Removed"]);
    assert_eq!(watch.state("w"), State::Leaving);
    assert_eq!(watch.deleted(&pod_with("w", "1", running())), ["died w Removed"]);
    let taint = json!([{ "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager" }]);
    let mut lost = running();
    lost["conditions"] = taint.clone();
    watch.applied(&pod_with("v", "2", running()));
    assert_eq!(watch.applied(&leaving(pod_with("v", "2", lost))), ["leaving v NodeLost"]);
    let mut over = ended(137);
    over["conditions"] = taint;
    assert_eq!(watch.deleted(&pod_with("v", "2", over)), ["died v NodeLost"], "the first cause counts");
}

#[test]
fn ends_that_were_asked_for() {
    let mut watch = Watch::new();
    watch.applied(&pod_with("w", "1", running()));
    watch.asked.push("w");
    assert_eq!(watch.applied(&leaving(pod_with("w", "1", running()))), [""; 0]);
    assert_eq!(watch.applied(&leaving(pod_with("w", "1", ended(143)))), ["died w Removed"]);
    watch.asked.push("v");
    watch.applied(&pod_with("v", "2", running()));
    watch.view.get_mut("v").expect("known").give_up(7);
    assert_eq!(watch.deleted(&pod_with("v", "2", running())), ["died v NotStarted"], "given up is not asked for");
}

#[test]
fn a_list_says_what_is_gone() {
    let mut watch = Watch::new();
    watch.applied(&pod_with("w", "1", running()));
    watch.applied(&pod_with("v", "2", running()));
    watch.view.stale();
    assert!(!watch.view.is_fresh());
    watch.view.list_begins();
    assert_eq!(watch.applied(&pod_with("v", "2", running())), [""; 0]);
    // Made while the list was on its way: it need not be in it.
    watch.view.created(Instant::now(), &pod_with("u", "3", pending()));
    assert_eq!(words(&watch.view.list_ends(&|_| false)), ["died w Removed"]);
    assert!(watch.view.is_fresh() && watch.view.get("u").is_some() && watch.view.get("v").is_some());
    watch.view.list_begins();
    watch.view.stale();
    assert!(watch.view.list_ends(&|_| false).is_empty() && !watch.view.is_fresh(), "a list that broke off says nothing");
}

#[test]
fn late_answers_bring_nothing_back() {
    let mut watch = Watch::new();
    assert_eq!(words(&watch.view.created(Instant::now(), &pod_with("w", "1", pending()))), ["started w at 4"]);
    watch.applied(&pod_with("w", "1", running()));
    watch.deleted(&pod_with("w", "1", running()));
    assert_eq!(words(&watch.view.created(Instant::now(), &pod_with("w", "1", pending()))), [""; 0]);
    assert!(watch.view.get("w").is_none());
    // Another one of that name.
    assert_eq!(watch.applied(&pod_with("w", "2", pending())), ["started w at 4"]);
    assert_eq!(watch.deleted(&pod_with("w", "1", running())), [""; 0]);
    assert_eq!(watch.applied(&pod_with("w", "3", pending())), ["died w Removed", "started w at 4"]);
}

#[test]
fn pods_of_others_are_not_looked_at() {
    let mut watch = Watch::new();
    let mut other = pod_with("w", "1", running());
    other.metadata.owner_references = None;
    assert_eq!(watch.applied(&other), [""; 0]);
    let mut malformed = pod_with("w", "1", running());
    malformed.metadata.annotations.get_or_insert_default().insert(ORDINAL_ANNOTATION.to_owned(), "x".to_owned());
    assert_eq!(watch.applied(&malformed), [""; 0]);
}

#[test]
fn logs_are_kept_of_what_ran() {
    let mut watch = Watch::new();
    watch.view.keep_logs = true;
    let kept = |watch: &Watch| watch.view.get("w").expect("known").pod.log_kept;
    watch.applied(&pod_with("w", "1", pending()));
    assert!(kept(&watch), "it has said nothing");
    watch.applied(&pod_with("w", "1", running()));
    assert!(!kept(&watch));
    watch.view.get_mut("w").expect("known").log_kept();
    watch.applied(&pod_with("w", "1", ended(0)));
    assert!(kept(&watch));
}

#[test]
fn unique_ids_as_numbers() {
    assert_eq!(short_uid("0123abcd-4567-89ef-0000-000000000000"), 0x0123_abcd_4567_89ef);
    assert_eq!(short_uid("?"), 0);
}
