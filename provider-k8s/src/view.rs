//! What is known of the worker pods of a run, from the events of one watch, and what of it is news. Pure: no requests, no clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use scalable_provider::{Cause, Observation};

use crate::names::{INCARNATION_ANNOTATION, ORDINAL_ANNOTATION, POOL_ANNOTATION};
use crate::plan::{self, Slot, State};
use crate::pods::BUSY_ANNOTATION;
use crate::status::{self, Death, Phase, WORKER_CONTAINER, Wait};

/// Unique ids of pods that are gone which are remembered, so that a late answer does not bring one back.
const GONE_MAX: usize = 4096;

/// A pod that is known.
#[derive(Clone, Debug)]
pub struct Entry {
    /// As the plan sees it.
    pub pod: plan::Pod,
    /// Where it is on its way.
    pub phase: Phase,
    /// Its address.
    pub ip: Option<IpAddr>,
    /// When it was first seen.
    pub since: Instant,
    /// What its events say it waits for.
    pub event: Option<Wait>,
    /// When its events were last asked for.
    pub events_asked: Option<Instant>,
    log_done: bool,
    /// It was given up because it did not start in time.
    pub overdue: Option<Death>,
    /// Number of the list it was first seen with or after.
    epoch: u64,
    said_running: bool,
    said_wait: Option<Wait>,
    said_leaving: Option<Death>,
    said_died: bool,
}

/// All that is known.
#[derive(Debug, Default)]
pub struct View {
    entries: BTreeMap<String, Entry>,
    /// Names seen by the list that is under way.
    listing: Option<BTreeSet<String>>,
    epoch: u64,
    fresh: bool,
    gone: VecDeque<String>,
    root_uid: String,
    /// What a pod said is wanted before it goes.
    pub keep_logs: bool,
}

/// The first 64 bits of a unique id: what the rest of the system calls an incarnation by.
pub fn short_uid(uid: &str) -> u64 {
    let digits: String = uid.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).unwrap_or(0)
}

impl View {
    /// Nothing is known; only pods that the Job with this unique id owns are looked at.
    pub fn new(root_uid: &str) -> View {
        View { root_uid: root_uid.to_owned(), ..View::default() }
    }

    /// What is known may not be all any more.
    pub fn stale(&mut self) {
        self.fresh = false;
        self.listing = None;
    }

    /// Whether what is known is all there is.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// A list begins.
    pub fn list_begins(&mut self) {
        self.listing = Some(BTreeSet::new());
        self.epoch += 1;
    }

    /// The list is complete: what it did not have is gone.
    pub fn list_ends(&mut self, asked: &dyn Fn(&str) -> bool) -> Vec<Observation> {
        let Some(listed) = self.listing.take() else { return Vec::new() };
        self.fresh = true;
        let absent =
            |(name, entry): (&String, &Entry)| (!listed.contains(name) && entry.epoch < self.epoch).then(|| name.clone());
        let absent: Vec<String> = self.entries.iter().filter_map(absent).collect();
        absent.iter().flat_map(|name| self.forget(name, None, asked)).collect()
    }

    /// The pod is as given. `asked` says whether the end of a pod was asked for here.
    pub fn applied(&mut self, now: Instant, pod: &Pod, asked: &dyn Fn(&str) -> bool) -> Vec<Observation> {
        let Some((slot, incarnation)) = self.is_ours(pod) else { return Vec::new() };
        let (Some(name), Some(uid)) = (pod.metadata.name.clone(), pod.metadata.uid.clone()) else { return Vec::new() };
        if let Some(listing) = &mut self.listing {
            listing.insert(name.clone());
        }
        let mut news = Vec::new();
        if self.entries.get(&name).is_some_and(|entry| entry.pod.uid != uid) {
            // Deleted and made again between two looks.
            news.extend(self.forget(&name, None, asked));
        }
        let known = self.entries.contains_key(&name);
        let entry = self.entries.entry(name.clone()).or_insert_with(|| Entry {
            pod: plan::Pod {
                name: name.clone(),
                uid,
                slot,
                incarnation,
                state: State::Alive,
                busy: true,
                log_kept: false,
                deleting: None,
            },
            phase: Phase::Starting(None),
            ip: None,
            since: now,
            event: None,
            events_asked: None,
            log_done: false,
            overdue: None,
            epoch: self.epoch,
            said_running: false,
            said_wait: None,
            said_leaving: None,
            said_died: false,
        });
        if !known {
            news.push(started(entry));
        }
        entry.take(pod, asked(&name), &mut news);
        let has_log = matches!(entry.phase, Phase::Running | Phase::Ended(_));
        entry.pod.log_kept = entry.log_done || !(self.keep_logs && has_log);
        news
    }

    /// The answer to a create: known from now on, unless the watch was faster.
    pub fn created(&mut self, now: Instant, pod: &Pod) -> Vec<Observation> {
        let known = pod.metadata.name.as_ref().is_none_or(|name| self.entries.contains_key(name));
        let gone = pod.metadata.uid.as_ref().is_some_and(|uid| self.gone.contains(uid));
        if known || gone { Vec::new() } else { self.applied(now, pod, &|_| false) }
    }

    /// The pod is gone; `pod` is how it was at the end.
    pub fn deleted(&mut self, pod: &Pod, asked: &dyn Fn(&str) -> bool) -> Vec<Observation> {
        let (Some(name), Some(uid)) = (&pod.metadata.name, &pod.metadata.uid) else { return Vec::new() };
        match self.entries.get(name) {
            Some(entry) if entry.pod.uid == *uid => self.forget(name, Some(pod), asked),
            _ => Vec::new(),
        }
    }

    /// A pod is certainly gone.
    pub fn forget(&mut self, name: &str, last: Option<&Pod>, asked: &dyn Fn(&str) -> bool) -> Vec<Observation> {
        let Some(mut entry) = self.entries.remove(name) else { return Vec::new() };
        if self.gone.len() >= GONE_MAX {
            self.gone.pop_front();
        }
        self.gone.push_back(entry.pod.uid.clone());
        let mut news = Vec::new();
        if let Some(Phase::Ended(death)) = last.map(|pod| status::phase(pod, WORKER_CONTAINER)) {
            entry.died(death, asked(name), &mut news);
        }
        let why = entry.said_leaving.clone().filter(|_| !asked(name));
        let reason = if asked(name) { "the pod was removed as asked" } else { "the pod was deleted" };
        entry.died(why.unwrap_or_else(|| Death { cause: Cause::Removed, reason: reason.to_owned() }), asked(name), &mut news);
        news
    }

    /// What the events of a pod say it waits for.
    pub fn event(&mut self, name: &str, wait: Wait) -> Vec<Observation> {
        let Some(entry) = self.entries.get_mut(name) else { return Vec::new() };
        entry.event = Some(wait);
        let mut news = Vec::new();
        entry.say_wait(&mut news);
        news
    }

    /// The pods, by name.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// One of them, to be changed.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Entry> {
        self.entries.get_mut(name)
    }

    /// What the plan needs.
    pub fn observed(&self) -> plan::Observed {
        plan::Observed { fresh: self.fresh, pods: self.entries.values().map(|entry| entry.pod.clone()).collect() }
    }

    /// Position and incarnation of a pod of this run; nothing for any other, and for one whose annotations are no numbers.
    fn is_ours(&self, pod: &Pod) -> Option<(Slot, u32)> {
        let owned = pod.metadata.owner_references.iter().flatten().any(|owner| owner.uid == self.root_uid);
        let annotations = pod.metadata.annotations.as_ref()?;
        let number = |key: &str| annotations.get(key)?.parse::<u32>().ok();
        let slot = Slot { pool: annotations.get(POOL_ANNOTATION)?.clone(), ordinal: number(ORDINAL_ANNOTATION)? };
        owned.then_some((slot, number(INCARNATION_ANNOTATION)?))
    }
}

fn started(entry: &Entry) -> Observation {
    Observation::Started {
        name: entry.pod.name.clone(),
        uid: short_uid(&entry.pod.uid),
        pool: entry.pod.slot.pool.clone(),
        ordinal: entry.pod.slot.ordinal,
        pid: 0,
    }
}

impl Entry {
    fn take(&mut self, pod: &Pod, asked: bool, news: &mut Vec<Observation>) {
        self.phase = status::phase(pod, WORKER_CONTAINER);
        self.ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()?.parse().ok());
        self.pod.busy = pod.metadata.annotations.as_ref().is_some_and(|a| a.get(BUSY_ANNOTATION).is_some_and(|v| v == "false"));
        let leaving = status::leaving(pod);
        self.pod.state = match (&self.phase, &leaving) {
            (Phase::Ended(_), _) => State::Ended,
            (_, Some(_)) => State::Leaving,
            _ => State::Alive,
        };
        match (&self.phase, leaving) {
            (Phase::Ended(death), _) => self.died(death.clone(), asked, news),
            (_, Some(why)) if !asked => self.say_leaving(why, news),
            (_, Some(_)) => {}
            (Phase::Running, None) if !self.said_running => {
                self.said_running = true;
                news.push(Observation::Running { name: self.pod.name.clone(), pool: self.pod.slot.pool.clone() });
            }
            (Phase::Running, None) => {}
            (Phase::Starting(_), None) => self.say_wait(news),
        }
    }

    fn say_wait(&mut self, news: &mut Vec<Observation>) {
        let Phase::Starting(wait) = &self.phase else { return };
        let Some(wait) = wait.clone().or_else(|| self.event.clone()) else { return };
        if self.said_wait.as_ref() == Some(&wait) || self.said_died {
            return;
        }
        self.said_wait = Some(wait.clone());
        let Wait { class, reason, message } = wait;
        let (name, pool) = (self.pod.name.clone(), self.pod.slot.pool.clone());
        news.push(Observation::Waiting { name, pool, class, reason, message });
    }

    fn say_leaving(&mut self, why: Death, news: &mut Vec<Observation>) {
        if self.said_leaving.is_some() || self.said_died {
            return;
        }
        self.said_leaving = Some(why.clone());
        news.push(Observation::Leaving {
            name: self.pod.name.clone(),
            uid: short_uid(&self.pod.uid),
            pool: self.pod.slot.pool.clone(),
            ordinal: self.pod.slot.ordinal,
            cause: why.cause,
            reason: why.reason,
        });
    }

    fn died(&mut self, death: Death, asked: bool, news: &mut Vec<Observation>) {
        if self.said_died {
            return;
        }
        self.said_died = true;
        // The first cause is the one that counts; an end that was asked for here has no other cause.
        let death = match (self.overdue.clone(), self.said_leaving.clone(), asked) {
            (Some(overdue), _, _) => overdue,
            (None, Some(first), false) => first,
            (None, _, true) => Death { cause: Cause::Removed, reason: death.reason },
            (None, None, false) => death,
        };
        news.push(Observation::Died {
            name: self.pod.name.clone(),
            uid: short_uid(&self.pod.uid),
            pool: self.pod.slot.pool.clone(),
            ordinal: self.pod.slot.ordinal,
            cause: death.cause,
            reason: death.reason,
        });
    }

    /// What it said was put away, or cannot be had.
    pub fn log_kept(&mut self) {
        (self.log_done, self.pod.log_kept) = (true, true);
    }

    /// Gives a pod up that did not start in time.
    pub fn give_up(&mut self, after_seconds: u64) {
        let last = match (&self.said_wait, &self.event) {
            (Some(wait), _) | (None, Some(wait)) => format!(": {}: {}", wait.reason, wait.message),
            (None, None) => String::new(),
        };
        let reason = format!("the pod did not start within {after_seconds} s{last}");
        self.overdue = Some(Death { cause: Cause::NotStarted, reason });
    }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
