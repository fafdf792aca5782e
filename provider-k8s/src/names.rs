//! Names and labels of what is made in a namespace: deterministic, valid wherever Kubernetes wants a DNS label, and distinct for
//! whatever differs.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

/// Longest DNS label, and longest value of a label.
pub const LABEL_MAX: usize = 63;
/// Which cluster of workers and scheduler an object belongs to.
pub const CLUSTER_LABEL: &str = "scalable.io/cluster";
/// Which run it was made for.
pub const RUN_LABEL: &str = "scalable.io/run";
/// The component of a worker, or `scheduler`.
pub const COMPONENT_LABEL: &str = "scalable.io/component";
/// What the object is: `worker` or `scheduler`.
pub const ROLE_LABEL: &str = "scalable.io/role";
/// Pool of a worker, as the run calls it.
pub const POOL_ANNOTATION: &str = "scalable.io/pool";
/// Name of a run in full: the label may be too short for it.
pub const RUN_ANNOTATION: &str = "scalable.io/run";
/// Project of a run.
pub const PROJECT_ANNOTATION: &str = "scalable.io/project";
/// Target of a run, as the manifest calls it.
pub const TARGET_ANNOTATION: &str = "scalable.io/target";
/// Position of a worker in its pool.
pub const ORDINAL_ANNOTATION: &str = "scalable.io/ordinal";
/// How many came before a worker at its position.
pub const INCARNATION_ANNOTATION: &str = "scalable.io/incarnation";

/// Characters of a digest in a name: a million names of one kind collide once in a thousand times.
const DIGEST_CHARS: usize = 6;
/// Digits of a number in a pod's name.
const NUMBER_CHARS_MAX: usize = 6;

/// The first characters of a digest of `text` in the alphabet of DNS labels, `chars` of them, at most 12.
fn digest(text: &str, chars: usize) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    Sha256::digest(text.as_bytes()).iter().take(chars).map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect()
}

/// `text` as (part of) a DNS label of at most `max` characters: as it is where that is possible, else made so with a digest at the end,
/// because two texts must never become one name.
pub fn dns_label(text: &str, max: usize) -> String {
    let mut made = String::with_capacity(text.len().min(max));
    for c in text.chars() {
        match c.to_ascii_lowercase() {
            c if c.is_ascii_lowercase() || c.is_ascii_digit() => made.push(c),
            _ if made.ends_with('-') => {}
            _ => made.push('-'),
        }
    }
    let made = made.trim_matches('-');
    if made == text && made.len() <= max && !made.is_empty() {
        return made.to_owned();
    }
    let kept: String = made.chars().take(max.saturating_sub(DIGEST_CHARS + 1)).collect();
    format!("{}-{}", kept.trim_end_matches('-'), digest(text, DIGEST_CHARS)).trim_start_matches('-').to_owned()
}

/// `text` as the value of a label: as it is where that is possible, else made so with a digest at the end.
pub fn label_value(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let trimmed = text.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    if trimmed == text && text.len() <= LABEL_MAX && text.chars().all(plain) {
        return text.to_owned();
    }
    let made: String = trimmed.chars().map(|c| if plain(c) { c } else { '-' }).take(LABEL_MAX - DIGEST_CHARS - 1).collect();
    format!("{made}-{}", digest(text, DIGEST_CHARS)).trim_start_matches('-').to_owned()
}

/// How the names of all root Jobs begin.
pub const SCHEDULER_PREFIX: &str = "scalable-scheduler-";

/// Name of the root Job and of the Service of a run: `scalable-scheduler-<run>`.
pub fn scheduler(run: &str) -> String {
    format!("{SCHEDULER_PREFIX}{}", dns_label(run, LABEL_MAX - SCHEDULER_PREFIX.len()))
}

/// Name of a worker's pod: `scalable-worker-<component>-<cluster>-<ordinal>-<incarnation>`. The cluster is in it as five characters,
/// because several runs of one manifest share a namespace.
pub fn worker(component: &str, cluster_id: &str, ordinal: u32, incarnation: u32) -> String {
    const PREFIX: &str = "scalable-worker-";
    const CLUSTER_CHARS: usize = 5;
    let room = LABEL_MAX - PREFIX.len() - (1 + CLUSTER_CHARS) - 2 * (1 + NUMBER_CHARS_MAX);
    format!("{PREFIX}{}-{}-{ordinal}-{incarnation}", dns_label(component, room), digest(cluster_id, CLUSTER_CHARS))
}

/// The labels of everything that belongs to a run.
pub fn labels(cluster_id: &str, run: &str, role: &str, component: &str) -> BTreeMap<String, String> {
    let pairs = [(CLUSTER_LABEL, cluster_id), (RUN_LABEL, run), (ROLE_LABEL, role), (COMPONENT_LABEL, component)];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), label_value(value))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_dns_label(name: &str) -> bool {
        !name.is_empty()
            && name.len() <= LABEL_MAX
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !name.starts_with('-')
            && !name.ends_with('-')
    }

    #[test]
    fn names_as_people_read_them() {
        assert_eq!(worker("gcam", "c1", 0, 1), format!("scalable-worker-gcam-{}-0-1", digest("c1", 5)));
        assert_eq!(scheduler("energy-1"), "scalable-scheduler-energy-1");
        assert_eq!(dns_label("My_Model", 40), format!("my-model-{}", digest("My_Model", 6)));
        assert_eq!(label_value("My_Model.2"), "My_Model.2");
        assert_eq!(label_value("_x"), format!("x-{}", digest("_x", 6)));
        assert_eq!(label_value("ü"), digest("ü", 6));
    }

    proptest! {
        #[test]
        fn every_name_is_valid_and_stays_itself(component in "\\PC{0,120}", cluster in "\\PC{1,80}", n in 0u32..1_000_000, i in 0u32..1_000_000) {
            let name = worker(&component, &cluster, n, i);
            prop_assert!(is_dns_label(&name), "{name}");
            prop_assert!(is_dns_label(&scheduler(&component)));
            prop_assert_eq!(&name, &worker(&component, &cluster, n, i));
            let value = label_value(&component);
            prop_assert!(value.len() <= LABEL_MAX);
            let edge = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
            prop_assert!(edge(value.chars().next()) && edge(value.chars().last()));
        }

        #[test]
        fn what_differs_has_different_names(one in "[a-zA-Z_.-]{1,80}", other in "[a-zA-Z_.-]{1,80}") {
            prop_assume!(one != other);
            prop_assert_ne!(worker(&one, "c", 0, 0), worker(&other, "c", 0, 0));
            prop_assert_ne!(label_value(&one), label_value(&other));
        }
    }
}
