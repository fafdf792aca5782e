//! What to do next, from what is wanted and what is seen: pure, level-triggered, and harmless when done twice.
//!
//! A *slot* is a position of a pool. At most one living pod serves it; one that is being ended by the platform, or is over, no longer
//! counts, and its successor has the next incarnation and so another name.

use std::collections::{BTreeMap, BTreeSet};

/// A position of a pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot {
    /// The pool.
    pub pool: String,
    /// From 0.
    pub ordinal: u32,
}

/// What is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Positions that must have a living pod, with the incarnation of the pod that is to be made when there is none.
    pub slots: BTreeMap<Slot, u32>,
    /// Pods that are to go, by name.
    pub removals: BTreeMap<String, Removal>,
    /// Whether a pod is to be marked busy, by name; without an entry its mark stays.
    pub marks: BTreeMap<String, bool>,
}

/// How a pod is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Only this incarnation of the name.
    pub uid: Option<String>,
    /// What time it has.
    pub grace: Grace,
}

/// What time a pod has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grace {
    /// Its own: what executes may finish.
    Own,
    /// A second.
    Short,
    /// Its containers are over.
    None,
}

/// What is seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// All pods of the run are in it, and nothing is known to be missing.
    pub fresh: bool,
    /// The pods.
    pub pods: Vec<Pod>,
}

/// A pod as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its unique id.
    pub uid: String,
    /// Its position.
    pub slot: Slot,
    /// How many came before it there.
    pub incarnation: u32,
    /// How it is.
    pub state: State,
    /// It is marked busy.
    pub busy: bool,
    /// What it said was put away, or cannot be had.
    pub log_kept: bool,
    /// A delete with this time was accepted.
    pub deleting: Option<Grace>,
}

/// How a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// It starts or runs.
    Alive,
    /// Somebody ends it: it may go on for a while, or for ever on a node that is not reached.
    Leaving,
    /// Its worker is over.
    Ended,
}

/// One request to the API.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Put away what the pod said.
    KeepLog {
        /// Its name.
        name: String,
        /// Its unique id.
        uid: String,
    },
    /// Delete this very pod.
    Delete {
        /// Its name.
        name: String,
        /// Its unique id, the precondition.
        uid: String,
        /// What time it has.
        grace: Grace,
    },
    /// Make a pod.
    Create {
        /// Its position.
        slot: Slot,
        /// How many came before it there.
        incarnation: u32,
    },
    /// Mark a pod busy or idle.
    Mark {
        /// Its name.
        name: String,
        /// Its unique id.
        uid: String,
        /// Which.
        busy: bool,
    },
}

/// The operations that bring what is seen nearer to what is wanted, most urgent first. Nothing is decided on a view that may be stale,
/// but what was asked for by name and unique id.
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<Operation> {
    let mut operations = Vec::new();
    let mut served: BTreeSet<&Slot> = BTreeSet::new();
    for pod in &observed.pods {
        let asked = desired.removals.get(&pod.name).filter(|removal| removal.uid.as_ref().is_none_or(|uid| *uid == pod.uid));
        let grace = match (pod.state, asked) {
            // A pod that is over goes by itself, on a view that is known to be true.
            (State::Ended, asked) if asked.is_some() || observed.fresh => Some(Grace::None),
            (State::Alive, Some(removal)) => Some(removal.grace),
            // The time it has can be made shorter.
            (State::Leaving, Some(removal)) if removal.grace > Grace::Own => Some(removal.grace),
            _ => None,
        };
        let grace = grace.filter(|grace| pod.deleting.is_none_or(|accepted| accepted < *grace));
        let identity = || (pod.name.clone(), pod.uid.clone());
        if let Some(grace) = grace {
            let (name, uid) = identity();
            operations.push(match pod.log_kept {
                true => Operation::Delete { name, uid, grace },
                false => Operation::KeepLog { name, uid },
            });
        } else if pod.state == State::Alive
            && asked.is_none()
            && let Some(busy) = desired.marks.get(&pod.name).filter(|busy| **busy != pod.busy)
        {
            let (name, uid) = identity();
            operations.push(Operation::Mark { name, uid, busy: *busy });
        }
        if pod.state == State::Alive && asked.is_none() {
            served.insert(&pod.slot);
        }
    }
    if observed.fresh {
        let missing = desired.slots.iter().filter(|(slot, _)| !served.contains(slot));
        operations.extend(missing.map(|(slot, incarnation)| Operation::Create {
            slot: slot.clone(),
            incarnation: (*incarnation).max(next_incarnation(observed, slot)),
        }));
    }
    operations.sort_by_key(rank);
    operations
}

/// The first incarnation of a slot that no pod has or had, as far as is seen.
fn next_incarnation(observed: &Observed, slot: &Slot) -> u32 {
    observed.pods.iter().filter(|pod| pod.slot == *slot).map(|pod| pod.incarnation.saturating_add(1)).max().unwrap_or(0)
}

/// Deletes come before creates: they make room in a quota.
fn rank(operation: &Operation) -> u8 {
    match operation {
        Operation::Delete { .. } => 0,
        Operation::KeepLog { .. } => 1,
        Operation::Create { .. } => 2,
        Operation::Mark { .. } => 3,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
