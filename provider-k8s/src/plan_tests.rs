//! Tables and random sequences for the plan.

use proptest::prelude::*;

use super::*;

fn slot(ordinal: u32) -> Slot {
    Slot { pool: "gcam".to_owned(), ordinal }
}

fn pod(ordinal: u32, incarnation: u32, state: State) -> Pod {
    Pod {
        name: format!("w-{ordinal}-{incarnation}"),
        uid: format!("u-{ordinal}-{incarnation}"),
        slot: slot(ordinal),
        incarnation,
        state,
        busy: false,
        log_kept: true,
        deleting: None,
    }
}

fn want(ordinals: impl IntoIterator<Item = u32>) -> Desired {
    Desired { slots: ordinals.into_iter().map(|ordinal| (slot(ordinal), 0)).collect(), ..Desired::default() }
}

fn removal(grace: Grace) -> Removal {
    Removal { uid: None, grace }
}

fn words(operations: &[Operation]) -> Vec<String> {
    let word = |operation: &Operation| match operation {
        Operation::KeepLog { name, .. } => format!("log {name}"),
        Operation::Delete { name, uid, grace } => format!("delete {name} {uid} {grace:?}"),
        Operation::Create { slot, incarnation } => format!("create {}-{incarnation}", slot.ordinal),
        Operation::Mark { name, busy, .. } => format!("mark {name} {busy}"),
    };
    operations.iter().map(word).collect()
}

#[track_caller]
fn check(name: &str, desired: &Desired, pods: &[Pod], fresh: bool, expected: &[&str]) {
    let observed = Observed { fresh, pods: pods.to_vec() };
    assert_eq!(words(&plan(desired, &observed)), expected, "{name}");
}

#[test]
fn what_is_missing_is_made_once() {
    use State::{Alive, Ended, Leaving};
    check("nothing wanted", &want([]), &[], true, &[]);
    check("two wanted", &want([0, 1]), &[], true, &["create 0-0", "create 1-0"]);
    check("one is there", &want([0, 1]), &[pod(0, 0, Alive)], true, &["create 1-0"]);
    check("a view that may be stale makes nothing", &want([0]), &[], false, &[]);
    check("one that leaves is replaced", &want([0]), &[pod(0, 0, Leaving)], true, &["create 0-1"]);
    check(
        "one that is over is replaced and goes",
        &want([0]),
        &[pod(0, 3, Ended)],
        true,
        &["delete w-0-3 u-0-3 None", "create 0-4"],
    );
    let mut later = want([]);
    later.slots.insert(slot(0), 7);
    check("incarnations that were used before are not used again", &later, &[pod(0, 2, Leaving)], true, &["create 0-7"]);
    let replaced = [pod(0, 0, Leaving), pod(0, 1, Alive)];
    check("a replacement is enough", &want([0]), &replaced, true, &[]);
}

#[test]
fn what_is_to_go_goes() {
    use State::{Alive, Ended, Leaving};
    let mut desired = want([]);
    desired.removals.insert("w-0-0".to_owned(), removal(Grace::Own));
    check("by name, also on a stale view", &desired, &[pod(0, 0, Alive)], false, &["delete w-0-0 u-0-0 Own"]);
    check("once somebody ends it there is nothing to do", &desired, &[pod(0, 0, Leaving)], true, &[]);
    let unread = Pod { log_kept: false, ..pod(0, 0, Alive) };
    check("its log comes first", &desired, std::slice::from_ref(&unread), true, &["log w-0-0"]);
    check("other names stay", &desired, &[pod(0, 1, Alive)], true, &[]);
    desired.removals.insert("w-0-0".to_owned(), Removal { uid: Some("other".to_owned()), grace: Grace::Own });
    check("another incarnation of the name stays", &desired, &[pod(0, 0, Alive)], true, &[]);
    desired.removals.insert("w-0-0".to_owned(), removal(Grace::Short));
    check("the time can be made shorter", &desired, &[pod(0, 0, Leaving)], true, &["delete w-0-0 u-0-0 Short"]);
    let accepted = Pod { deleting: Some(Grace::Short), ..pod(0, 0, Leaving) };
    check("what was accepted is not asked again", &desired, &[accepted], true, &[]);
    check("what is over is kept on a stale view", &want([]), &[pod(0, 0, Ended)], false, &[]);
    check("what is over and asked to go goes", &desired, &[pod(0, 0, Ended)], false, &["delete w-0-0 u-0-0 None"]);
    desired.slots.insert(slot(0), 0);
    check(
        "a slot whose pod is to go is served by the next",
        &desired,
        &[pod(0, 0, Alive)],
        true,
        &["delete w-0-0 u-0-0 Short", "create 0-1"],
    );
}

#[test]
fn marks_follow() {
    let mut desired = want([0]);
    desired.marks.insert("w-0-0".to_owned(), true);
    check("busy", &desired, &[pod(0, 0, State::Alive)], true, &["mark w-0-0 true"]);
    let busy = Pod { busy: true, ..pod(0, 0, State::Alive) };
    check("busy already", &desired, std::slice::from_ref(&busy), true, &[]);
    desired.marks.insert("w-0-0".to_owned(), false);
    check("idle", &desired, &[busy], true, &["mark w-0-0 false"]);
    check("what leaves is not marked", &desired, &[Pod { busy: true, ..pod(0, 0, State::Leaving) }], true, &["create 0-1"]);
}

fn any_pod() -> impl Strategy<Value = Pod> {
    let state = prop_oneof![Just(State::Alive), Just(State::Leaving), Just(State::Ended)];
    let grace = prop_oneof![Just(None), Just(Some(Grace::Own)), Just(Some(Grace::Short)), Just(Some(Grace::None))];
    (0u32..4, 0u32..3, state, any::<bool>(), any::<bool>(), grace).prop_map(
        |(ordinal, incarnation, state, busy, log_kept, deleting)| Pod {
            busy,
            log_kept,
            deleting,
            ..pod(ordinal, incarnation, state)
        },
    )
}

fn any_desired() -> impl Strategy<Value = Desired> {
    let name = (0u32..4, 0u32..3).prop_map(|(ordinal, incarnation)| format!("w-{ordinal}-{incarnation}"));
    let grace = prop_oneof![Just(Grace::Own), Just(Grace::Short)];
    let slots = prop::collection::btree_map((0u32..4).prop_map(slot), 0u32..5, 0..4);
    let removals = prop::collection::btree_map(name.clone(), grace.prop_map(removal), 0..4);
    (slots, removals, prop::collection::btree_map(name, any::<bool>(), 0..4)).prop_map(|(slots, removals, marks)| Desired {
        slots,
        removals,
        marks,
    })
}

/// What the API does with an operation.
fn carry_out(operation: &Operation, pods: &mut Vec<Pod>) {
    let named =
        |pods: &mut Vec<Pod>, wanted: &str| pods.iter().position(|pod| pod.name == wanted).expect("planned from what is there");
    match operation {
        Operation::KeepLog { name, .. } => {
            let at = named(pods, name);
            pods[at].log_kept = true;
        }
        Operation::Delete { name, grace: Grace::None, .. } => {
            let at = named(pods, name);
            pods.remove(at);
        }
        Operation::Delete { name, grace, .. } => {
            let at = named(pods, name);
            (pods[at].state, pods[at].deleting) = (State::Leaving, Some(*grace));
        }
        Operation::Create { slot, incarnation } => {
            assert!(!pods.iter().any(|pod| pod.slot == *slot && pod.incarnation == *incarnation), "a name is used twice");
            pods.push(pod(slot.ordinal, *incarnation, State::Alive));
        }
        Operation::Mark { name, busy, .. } => {
            let at = named(pods, name);
            pods[at].busy = *busy;
        }
    }
}

proptest! {
    #[test]
    fn it_comes_to_rest_and_then_all_is_as_wanted(desired in any_desired(), found in prop::collection::vec(any_pod(), 0..8)) {
        let mut pods: Vec<Pod> = Vec::new();
        for pod in found {
            if !pods.iter().any(|known| known.name == pod.name) {
                pods.push(pod);
            }
        }
        for round in 0.. {
            prop_assert!(round < 6, "it does not come to rest: {desired:?} {pods:?}");
            let operations = plan(&desired, &Observed { fresh: true, pods: pods.clone() });
            for operation in &operations {
                if let Operation::Delete { name, .. } = operation {
                    let pod = pods.iter().find(|pod| pod.name == *name).expect("planned from what is there");
                    prop_assert!(pod.state == State::Ended || desired.removals.contains_key(name), "deleted unasked: {pod:?}");
                }
            }
            for operation in &operations {
                carry_out(operation, &mut pods);
            }
            if operations.is_empty() {
                break;
            }
        }
        for slot in desired.slots.keys() {
            let living = |pod: &&Pod| pod.slot == *slot && pod.state == State::Alive && !desired.removals.contains_key(&pod.name);
            prop_assert!(pods.iter().filter(living).count() >= 1, "{slot:?} is not served");
        }
    }

    #[test]
    fn a_stale_view_changes_only_what_was_named(desired in any_desired(), pods in prop::collection::vec(any_pod(), 0..8)) {
        for operation in plan(&desired, &Observed { fresh: false, pods }) {
            match operation {
                Operation::Create { .. } => prop_assert!(false, "made on a stale view"),
                Operation::Delete { name, .. } | Operation::KeepLog { name, .. } => {
                    prop_assert!(desired.removals.contains_key(&name));
                }
                Operation::Mark { .. } => {}
            }
        }
    }
}
