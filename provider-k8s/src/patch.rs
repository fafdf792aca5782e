//! Strategic merge: a partial pod laid over a pod, as `kubectl patch` does it.
//!
//! Mappings are merged key by key; `null` removes a key. A list of what has a name is merged by it: `containers`, `initContainers`,
//! `volumes`, `env` and `imagePullSecrets` by `name`, `volumeMounts` by `mountPath`, `volumeDevices` by `devicePath`, `ports` by
//! `containerPort`, `hostAliases` by `ip`, `topologySpreadConstraints` by `topologyKey`. Every other list is replaced as a whole:
//! `tolerations`, `args`, `command`, the terms of an affinity. `$patch: replace` in a mapping replaces it, `$patch: delete` in an element
//! of a merged list removes that element, and an element `$patch: replace` replaces the list by the others.

use serde_json::{Map, Value};

const DIRECTIVE: &str = "$patch";

/// The key by which a list of that name is merged.
fn merge_key(list: &str) -> Option<&'static str> {
    Some(match list {
        "containers" | "initContainers" | "ephemeralContainers" | "volumes" | "env" | "imagePullSecrets" => "name",
        "volumeMounts" => "mountPath",
        "volumeDevices" => "devicePath",
        "ports" => "containerPort",
        "hostAliases" => "ip",
        "topologySpreadConstraints" => "topologyKey",
        _ => return None,
    })
}

/// Lays `patch` over `target`.
pub fn merge(target: &mut Value, patch: &Value) {
    let (Value::Object(into), Value::Object(from)) = (&mut *target, patch) else {
        *target = without_directives(patch);
        return;
    };
    if from.get(DIRECTIVE).is_some_and(|directive| directive == "replace") {
        *target = without_directives(patch);
        return;
    }
    for (key, value) in from.iter().filter(|(key, _)| *key != DIRECTIVE) {
        match (value, merge_key(key)) {
            (Value::Null, _) => drop(into.remove(key)),
            (Value::Array(items), Some(by)) => {
                let list = into.entry(key.clone()).or_insert_with(|| Value::Array(Vec::new()));
                match list {
                    Value::Array(list) => merge_list(list, items, by),
                    other => *other = without_directives(value),
                }
            }
            (Value::Object(_), _) => merge(into.entry(key.clone()).or_insert_with(|| Value::Object(Map::new())), value),
            _ => drop(into.insert(key.clone(), without_directives(value))),
        }
    }
}

fn merge_list(list: &mut Vec<Value>, items: &[Value], by: &str) {
    let directive = |item: &Value, word: &str| item.get(DIRECTIVE).is_some_and(|directive| directive == word);
    if items.iter().any(|item| directive(item, "replace") && item.get(by).is_none()) {
        list.clear();
    }
    for item in items {
        let Some(key) = item.get(by) else {
            if item.get(DIRECTIVE).is_none() {
                list.push(without_directives(item));
            }
            continue;
        };
        let known = list.iter().position(|element| element.get(by) == Some(key));
        match known {
            Some(at) if directive(item, "delete") => drop(list.remove(at)),
            Some(at) => merge(&mut list[at], item),
            None if directive(item, "delete") => {}
            None => list.push(without_directives(item)),
        }
    }
}

/// A value that is put in as it is: what directs the merge is not part of it, and neither are keys that are removed.
fn without_directives(value: &Value) -> Value {
    match value {
        Value::Object(entries) => {
            let kept = entries.iter().filter(|(key, value)| *key != DIRECTIVE && !value.is_null());
            Value::Object(kept.map(|(key, value)| (key.clone(), without_directives(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_directives).collect()),
        other => other.clone(),
    }
}

/// Paths of what `whole` has and `read` has not: keys that no pod has. At most 20.
pub fn unknown(whole: &Value, read: &Value) -> Vec<String> {
    let mut found = Vec::new();
    look(whole, read, "", &mut found);
    found
}

fn look(whole: &Value, read: &Value, path: &str, found: &mut Vec<String>) {
    match (whole, read) {
        (Value::Object(whole), Value::Object(read)) => {
            for (key, value) in whole {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match read.get(key) {
                    Some(read) => look(value, read, &path, found),
                    None if is_empty(value) || found.len() >= 20 => {}
                    None => found.push(path),
                }
            }
        }
        (Value::Array(whole), Value::Array(read)) => {
            for (index, (whole, read)) in whole.iter().zip(read).enumerate() {
                look(whole, read, &format!("{path}[{index}]"), found);
            }
        }
        _ => {}
    }
}

/// What is left out when it is written again.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(target: Value, patch: Value, expected: Value) {
        let mut merged = target;
        merge(&mut merged, &patch);
        assert_eq!(merged, expected);
    }

    #[test]
    fn as_kubernetes_merges() {
        check(json!({"a": 1, "b": {"c": 2}}), json!({"b": {"d": 3}, "a": null}), json!({"b": {"c": 2, "d": 3}}));
        check(
            json!({"containers": [{"name": "worker", "image": "i", "env": [{"name": "A", "value": "1"}]}]}),
            json!({"containers": [{"name": "worker", "env": [{"name": "B", "value": "2"}, {"name": "A", "value": "3"}]}, {"name": "proxy"}]}),
            json!({"containers": [
                {"name": "worker", "image": "i", "env": [{"name": "A", "value": "3"}, {"name": "B", "value": "2"}]},
                {"name": "proxy"},
            ]}),
        );
        check(
            json!({"tolerations": [{"key": "a"}]}),
            json!({"tolerations": [{"key": "b"}]}),
            json!({"tolerations": [{"key": "b"}]}),
        );
        check(
            json!({"volumeMounts": [{"mountPath": "/a", "name": "x"}, {"mountPath": "/b", "name": "y"}]}),
            json!({"volumeMounts": [{"mountPath": "/a", "$patch": "delete"}, {"mountPath": "/b", "readOnly": true}]}),
            json!({"volumeMounts": [{"mountPath": "/b", "name": "y", "readOnly": true}]}),
        );
        check(
            json!({"volumes": [{"name": "a"}, {"name": "b"}]}),
            json!({"volumes": [{"$patch": "replace"}, {"name": "c"}]}),
            json!({"volumes": [{"name": "c"}]}),
        );
        check(
            json!({"securityContext": {"runAsUser": 1, "fsGroup": 2}}),
            json!({"securityContext": {"$patch": "replace", "runAsUser": 3}}),
            json!({"securityContext": {"runAsUser": 3}}),
        );
        check(
            json!({}),
            json!({"affinity": {"nodeAffinity": {"x": [1, 2]}}}),
            json!({"affinity": {"nodeAffinity": {"x": [1, 2]}}}),
        );
    }

    #[test]
    fn keys_that_no_pod_has() {
        let whole = json!({"spec": {"containers": [{"name": "w", "imagee": "i", "args": []}], "nodeName": "n"}});
        let read = json!({"spec": {"containers": [{"name": "w"}], "nodeName": "n"}});
        assert_eq!(unknown(&whole, &read), ["spec.containers[0].imagee"]);
    }
}
