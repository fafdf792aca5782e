//! What time alone brings: workers idle for long enough, pods that start for too long or wait without a word, an API that is silent; and
//! what of all news whoever looks at the Job is told.

use std::time::{Duration, Instant};

use scalable_provider::{Cause, Observation};

use super::{Actor, Done, REQUEST_PAUSE};
use crate::plan::{self, Grace};
use crate::status::Phase;
use crate::view::Entry;

/// Longest time the first list may take.
const LIST_MAX: Duration = Duration::from_secs(30);
/// How long the API may be out of reach before that is said.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// How long a worker must be idle before it is marked so: short tasks do not turn into requests.
const IDLE_BEFORE_MARK: Duration = Duration::from_secs(10);
/// How long a pod may say nothing of what it waits for before its events are asked, and how often then.
const EVENTS_AFTER: Duration = Duration::from_secs(3);
const EVENTS_EVERY: Duration = Duration::from_secs(8);
/// Pods whose events are asked at once.
const EVENTS_AT_ONCE: usize = 4;
/// How often one kind of news of one pool is told as an event of the Job.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// Kinds of news that are remembered for that.
const TOLD_MAX: usize = 1000;

impl Actor {
    /// Looks at deadlines.
    pub(super) fn look(&mut self, now: Instant) {
        if let Some((since, problem)) = &self.problem
            && !self.problem_said
            && now.saturating_duration_since(*since) >= SILENCE_MAX
        {
            self.problem_said = true;
            self.outbox.push_back(Observation::Reach { problem: Some(problem.clone()) });
        }
        if self.watch.is_some() && !self.view.is_fresh() && now.saturating_duration_since(self.watch_from) > LIST_MAX {
            self.lost(now, format!("the Kubernetes API did not list the pods within {} s", LIST_MAX.as_secs()));
        }
        let long_idle = |(name, since): (&String, &Instant)| {
            (now.saturating_duration_since(*since) >= IDLE_BEFORE_MARK).then(|| name.clone())
        };
        for name in self.idle_since.iter().filter_map(long_idle).collect::<Vec<_>>() {
            self.idle_since.remove(&name);
            self.desired.marks.insert(name, false);
        }
        self.again.retain(|_, (due, _)| *due + REQUEST_PAUSE.1 > now);
        self.told.retain(|_, at| now.saturating_duration_since(*at) < TELL_EVERY);
        for ((reason, pool), (kind, note)) in std::mem::take(&mut self.untold) {
            self.tell(now, kind, &reason, &pool, &note);
        }
        self.give_up_late_ones(now);
        self.ask_for_events(now);
    }

    fn give_up_late_ones(&mut self, now: Instant) {
        let deadline = |pool: &str| self.settings.pool(pool).map_or(u64::MAX, |pool| pool.start_deadline_ms);
        let late = |entry: &&Entry| {
            let waited = u64::try_from(now.saturating_duration_since(entry.since).as_millis()).unwrap_or(u64::MAX);
            matches!(entry.phase, Phase::Starting(_)) && entry.overdue.is_none() && waited > deadline(&entry.pod.slot.pool)
        };
        let late: Vec<(String, u64)> = self
            .view
            .entries()
            .filter(late)
            .map(|entry| (entry.pod.name.clone(), deadline(&entry.pod.slot.pool) / 1000))
            .collect();
        for (name, seconds) in late {
            if let Some(entry) = self.view.get_mut(&name) {
                entry.give_up(seconds);
            }
            self.remove(&name, None, Grace::Short);
        }
    }

    /// Asks for the events of pods that wait without a reason: volumes that are not mounted are said nowhere else.
    fn ask_for_events(&mut self, now: Instant) {
        if !self.may_read_events || !self.view.is_fresh() {
            return;
        }
        let since = |at: Instant| now.saturating_duration_since(at);
        let silent = |entry: &&Entry| {
            matches!(entry.phase, Phase::Starting(None))
                && entry.pod.state == plan::State::Alive
                && entry.events_asked.map_or(since(entry.since) >= EVENTS_AFTER, |at| since(at) >= EVENTS_EVERY)
        };
        let mut silent: Vec<&Entry> = self.view.entries().filter(silent).collect();
        silent.sort_by_key(|entry| entry.events_asked);
        let chosen: Vec<(String, String)> =
            silent.iter().take(EVENTS_AT_ONCE).map(|entry| (entry.pod.name.clone(), entry.pod.uid.clone())).collect();
        for (name, uid) in chosen {
            let key = format!("events {name}");
            if self.in_flight.contains(&key) || self.bucket.take(now).is_err() {
                continue;
            }
            if let Some(entry) = self.view.get_mut(&name) {
                entry.events_asked = Some(now);
            }
            let requests = self.requests.clone();
            self.in_flight.insert(key.clone());
            self.running.spawn(async move {
                let result = requests.warning(&name, &uid).await;
                (key, Done::Warned(name, result))
            });
        }
    }

    /// Passes news on, and the worst of it to whoever looks at the Job.
    pub(super) fn say(&mut self, now: Instant, news: Vec<Observation>) {
        for observation in news {
            match &observation {
                Observation::Waiting { pool, reason, message, name, .. } => {
                    self.tell(now, "Warning", reason, pool, &format!("pod {name}: {message}"));
                }
                Observation::Died { pool, cause, reason, name, .. } if !matches!(cause, Cause::Ended | Cause::Removed) => {
                    self.tell(now, "Warning", &format!("Worker{cause:?}"), pool, &format!("pod {name}: {reason}"));
                }
                _ => {}
            }
            self.outbox.push_back(observation);
        }
    }

    /// Tells an event of the Job, each kind now and then only.
    pub(super) fn tell(&mut self, now: Instant, kind: &'static str, reason: &str, pool: &str, note: &str) {
        let about = (reason.to_owned(), pool.to_owned());
        if self.told.contains_key(&about) || self.told.len() >= TOLD_MAX {
            return;
        }
        if self.in_flight.len() >= self.limits.parallel * 2 || self.bucket.take(now).is_err() {
            // The newest of its kind is told when there is room for the request.
            if self.untold.len() < TOLD_MAX || self.untold.contains_key(&about) {
                self.untold.insert(about, (kind, note.to_owned()));
            }
            return;
        }
        self.untold.remove(&about);
        self.told.insert(about, now);
        let key = format!("tell {reason} {pool}");
        let (requests, reason, note) = (self.requests.clone(), reason.to_owned(), note.to_owned());
        self.in_flight.insert(key.clone());
        self.running.spawn(async move {
            if let Err(failed) = requests.tell(kind, &reason, &note).await {
                tracing::debug!(?failed, "an event could not be written");
            }
            (key, Done::Told)
        });
    }
}
