//! The provider's loop: watch, plan, request, tell. All its state is here and on one thread. `look.rs` has what time alone brings, and
//! what is told of it.

mod look;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::runtime::watcher::{self, Event, watcher};
use scalable_provider::{Observation, Operation, Reason, ReasonClass};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::bucket::Bucket;
use crate::failure;
use crate::plan::{self, Desired, Grace, Removal, Slot, plan};
use crate::provider::{Limits, ProviderOptions, WorkerPod, Workers};
use crate::requests::{Failed, Requests, pod_of, selector};
use crate::settings::Settings;
use crate::status::Wait;
use crate::view::{Entry, View, short_uid};

/// How often deadlines are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest time a watch is silent before its connection is made anew, seconds.
const WATCH_SECONDS: u32 = 55;
/// Pause before a broken watch is begun again: the first, doubled up to the last.
const WATCH_PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Pause before a failed request is made again: the first, doubled up to the last.
const REQUEST_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Longest wait of a create for its answer.
const CREATE_MAX: Duration = Duration::from_secs(30);
/// Longest wait for all pods to be gone.
const SHUTDOWN_MAX: Duration = Duration::from_secs(60);
/// News that are kept for whoever observes; the watch waits beyond.
const OUTBOX_MAX: usize = 8192;

/// What the provider is asked.
pub enum Command {
    /// Operations, and where those go that failed.
    Apply(Vec<Operation>, oneshot::Sender<Vec<(Operation, Reason)>>),
    /// Remove everything, and say when it is gone.
    Shutdown(oneshot::Sender<()>),
}

/// A call with creates that are not answered yet.
struct Call {
    waits_for: BTreeSet<Slot>,
    failed: Vec<(Operation, Reason)>,
    reply: oneshot::Sender<Vec<(Operation, Reason)>>,
    until: Instant,
}

/// What came of a request.
enum Done {
    Created(Slot, u32, Result<Box<Pod>, Failed>),
    Deleted(String, Grace, Result<(), Failed>),
    LogKept(String, String),
    Marked(String, bool, Result<(), Failed>),
    Warned(String, Result<Option<Wait>, Failed>),
    Told,
    Lifted(Result<(), Failed>),
}

type Watch = BoxStream<'static, Result<Event<Pod>, watcher::Error>>;

/// The provider's state.
pub struct Actor {
    settings: Settings,
    requests: Requests,
    limits: Limits,
    log_directory: Option<PathBuf>,
    view: View,
    desired: Desired,
    /// When a worker was said to be idle.
    idle_since: BTreeMap<String, Instant>,
    /// Incarnations that were used, so that none is used again.
    used: BTreeMap<Slot, u32>,
    calls: Vec<Call>,
    closing: Option<(oneshot::Sender<()>, Instant)>,
    running: JoinSet<(String, Done)>,
    in_flight: BTreeSet<String>,
    /// What failed: when it is tried again, and how often it was.
    again: BTreeMap<String, (Instant, u32)>,
    bucket: Bucket,
    watch: Option<Watch>,
    watch_from: Instant,
    watch_failures: u32,
    /// Since when the API does not answer, and what it is.
    problem: Option<(Instant, String)>,
    problem_said: bool,
    lifted: bool,
    may_read_events: bool,
    told: BTreeMap<(String, String), Instant>,
    /// Events that found no room for a request: of which kind, and what they say.
    untold: BTreeMap<(String, String), (&'static str, String)>,
    outbox: VecDeque<Observation>,
    seen: mpsc::Sender<Observation>,
    workers: Workers,
}

impl Actor {
    /// # Errors
    /// When the configuration cannot be used for connections.
    pub fn new(options: ProviderOptions, seen: mpsc::Sender<Observation>, workers: Workers) -> Result<Actor, kube::Error> {
        let ProviderOptions { settings, mut config, log_directory, limits } = options;
        // What is tried again, and when, is decided here.
        config.default_retry = false;
        let client = Client::try_from(config)?;
        let requests = Requests::new(&client, &settings);
        let now = Instant::now();
        let mut view = View::new(&settings.root.uid);
        view.keep_logs = log_directory.is_some();
        Ok(Actor {
            view,
            requests,
            settings,
            limits,
            log_directory,
            desired: Desired::default(),
            idle_since: BTreeMap::new(),
            used: BTreeMap::new(),
            calls: Vec::new(),
            closing: None,
            running: JoinSet::new(),
            in_flight: BTreeSet::new(),
            again: BTreeMap::new(),
            bucket: Bucket::new(limits.rate, now),
            watch: None,
            watch_from: now,
            watch_failures: 0,
            problem: None,
            problem_said: false,
            lifted: false,
            may_read_events: true,
            told: BTreeMap::new(),
            untold: BTreeMap::new(),
            outbox: VecDeque::new(),
            seen,
            workers,
        })
    }

    /// Runs until whoever holds the provider lets it go.
    pub async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let seen = self.seen.clone();
        loop {
            let now = Instant::now();
            if self.watch.is_none() && now >= self.watch_from {
                let config = watcher::Config::default().labels(&selector(&self.settings)).timeout(WATCH_SECONDS);
                self.watch = Some(watcher(self.requests.pods.clone(), config).boxed());
                self.watch_from = now;
            }
            let pause = self.start_requests(now);
            self.settle(now);
            tokio::select! {
                permit = seen.reserve(), if !self.outbox.is_empty() => match permit {
                    Ok(permit) => if let Some(news) = self.outbox.pop_front() { permit.send(news) },
                    Err(_) => return,
                },
                event = next(&mut self.watch), if self.watch.is_some() && self.outbox.len() < OUTBOX_MAX => match event {
                    Some(Ok(event)) => self.on_event(Instant::now(), event),
                    Some(Err(error)) => self.lost(Instant::now(), failure::chain(&error)),
                    None => self.lost(Instant::now(), "the watch of the pods ended".to_owned()),
                },
                command = inbox.recv() => match command {
                    Some(command) => self.on_command(Instant::now(), command),
                    None => return,
                },
                Some(done) = self.running.join_next() => if let Ok((key, done)) = done {
                    self.in_flight.remove(&key);
                    self.on_done(Instant::now(), key, done);
                },
                _ = look.tick() => self.look(Instant::now()),
                () = tokio::time::sleep(pause.unwrap_or(LOOK_EVERY)), if pause.is_some() => {}
            }
        }
    }

    /// The API does not answer: nothing is believed until a list is complete again.
    fn lost(&mut self, now: Instant, why: String) {
        tracing::warn!(%why, "the pods are not seen");
        self.view.stale();
        self.watch = None;
        self.watch_from = now + doubled(WATCH_PAUSE, self.watch_failures);
        self.watch_failures += 1;
        self.problem.get_or_insert((now, why));
    }

    fn on_event(&mut self, now: Instant, event: Event<Pod>) {
        let desired = &self.desired;
        let asked = |name: &str| desired.removals.contains_key(name);
        let mut changed = None;
        let news = match event {
            Event::Init => {
                self.view.list_begins();
                Vec::new()
            }
            Event::InitApply(pod) | Event::Apply(pod) => {
                let news = self.view.applied(now, &pod, &asked);
                changed = pod.metadata.name;
                news
            }
            Event::Delete(pod) => {
                let news = self.view.deleted(&pod, &asked);
                changed = pod.metadata.name;
                news
            }
            Event::InitDone => {
                let news = self.view.list_ends(&asked);
                self.on_sight();
                news
            }
        };
        if let Some(name) = changed {
            self.on_pod(&name);
        }
        self.say(now, news);
    }

    /// All pods are known again.
    fn on_sight(&mut self) {
        self.watch_failures = 0;
        self.problem = None;
        if std::mem::take(&mut self.problem_said) {
            self.outbox.push_back(Observation::Reach { problem: None });
        }
        let names = |view: &View| view.entries().map(|entry| entry.pod.name.clone()).collect::<BTreeSet<_>>();
        let known = names(&self.view);
        self.desired.removals.retain(|name, _| known.contains(name));
        self.desired.marks.retain(|name, _| known.contains(name));
        self.idle_since.retain(|name, _| known.contains(name));
        self.workers.set(self.view.entries().map(|entry| (entry.pod.name.clone(), worker_pod(entry))).collect());
    }

    /// A pod changed or is gone.
    fn on_pod(&mut self, name: &str) {
        let entry = self.view.get(name);
        if entry.is_none() {
            self.desired.removals.remove(name);
            self.desired.marks.remove(name);
            self.idle_since.remove(name);
        }
        self.workers.put(name, entry.map(worker_pod));
    }

    fn on_command(&mut self, now: Instant, command: Command) {
        match command {
            Command::Apply(operations, reply) => self.on_apply(now, operations, reply),
            Command::Shutdown(reply) => {
                for slot in std::mem::take(&mut self.desired.slots).into_keys() {
                    self.answer(&slot, Some(Reason { class: ReasonClass::Never, message: "the cluster ends".to_owned() }));
                }
                self.closing = Some((reply, now + SHUTDOWN_MAX));
            }
        }
    }

    fn on_apply(&mut self, now: Instant, operations: Vec<Operation>, reply: oneshot::Sender<Vec<(Operation, Reason)>>) {
        let mut call = Call { waits_for: BTreeSet::new(), failed: Vec::new(), reply, until: now + CREATE_MAX };
        for operation in operations {
            match &operation {
                Operation::Create { pool, ordinal } => {
                    let refusal = match (self.settings.pool(pool), &self.closing) {
                        (None, _) => Some(format!("there is no pool `{pool}`")),
                        (_, Some(_)) => Some("the cluster ends".to_owned()),
                        _ => None,
                    };
                    if let Some(message) = refusal {
                        call.failed.push((operation, Reason { class: ReasonClass::Never, message }));
                        continue;
                    }
                    let slot = Slot { pool: pool.clone(), ordinal: *ordinal };
                    let incarnation = self.used.get(&slot).map_or(0, |used| used.saturating_add(1));
                    self.desired.slots.entry(slot.clone()).or_insert(incarnation);
                    call.waits_for.insert(slot);
                }
                Operation::Drain { name } => self.remove(name, None, Grace::Own),
                Operation::Delete { name, uid } => self.remove(name, Some(*uid), Grace::Short),
                Operation::Mark { name, busy: true } => {
                    self.idle_since.remove(name);
                    self.desired.marks.insert(name.clone(), true);
                }
                Operation::Mark { name, busy: false } => {
                    self.desired.marks.remove(name);
                    self.idle_since.entry(name.clone()).or_insert(now);
                }
            }
        }
        self.calls.push(call);
    }

    /// Remembers that a pod is to go; one that is not known is gone.
    fn remove(&mut self, name: &str, uid: Option<u64>, grace: Grace) {
        let Some(entry) = self.view.get(name).filter(|entry| uid.is_none_or(|uid| uid == short_uid(&entry.pod.uid))) else {
            return;
        };
        let uid = Some(entry.pod.uid.clone());
        let removal = self.desired.removals.entry(name.to_owned()).or_insert(Removal { uid: uid.clone(), grace });
        *removal = Removal { uid, grace: removal.grace.max(grace) };
    }

    /// Starts what is planned, as far as it may; how long until more may be started.
    fn start_requests(&mut self, now: Instant) -> Option<Duration> {
        let mut wanted: Vec<(String, Todo)> = Vec::new();
        if !self.lifted {
            wanted.push(("lift".to_owned(), Todo::Lift));
        }
        for operation in plan(&self.desired, &self.view.observed()) {
            wanted.push((key_of(&operation), Todo::Planned(operation)));
        }
        let mut soonest: Option<Duration> = None;
        for (key, todo) in wanted {
            if self.in_flight.contains(&key) {
                continue;
            }
            if let Some((due, _)) = self.again.get(&key)
                && *due > now
            {
                soonest = Some(soonest.unwrap_or(Duration::MAX).min(*due - now));
                continue;
            }
            if self.in_flight.len() >= self.limits.parallel.max(1) {
                // The end of any of them is the next moment.
                break;
            }
            if let Err(pause) = self.bucket.take(now) {
                soonest = Some(soonest.unwrap_or(Duration::MAX).min(pause));
                break;
            }
            self.start(key, todo);
        }
        soonest
    }

    fn start(&mut self, key: String, todo: Todo) {
        let requests = self.requests.clone();
        self.in_flight.insert(key.clone());
        match todo {
            Todo::Lift => drop(self.running.spawn(async move { (key, Done::Lifted(requests.lift_deadline().await)) })),
            Todo::Planned(plan::Operation::KeepLog { name, uid }) => {
                let directory = self.log_directory.clone();
                self.running.spawn(async move {
                    if let Some(directory) = directory {
                        requests.keep_log(&name, &directory).await;
                    }
                    (key, Done::LogKept(name, uid))
                });
            }
            Todo::Planned(plan::Operation::Delete { name, uid, grace }) => drop(self.running.spawn(async move {
                let result = requests.delete(&name, &uid, grace).await;
                (key, Done::Deleted(name, grace, result))
            })),
            Todo::Planned(plan::Operation::Mark { name, uid, busy }) => drop(self.running.spawn(async move {
                let result = requests.mark(&name, &uid, busy).await.map(drop);
                (key, Done::Marked(name, busy, result))
            })),
            Todo::Planned(plan::Operation::Create { slot, incarnation }) => {
                let Some(pool) = self.settings.pool(&slot.pool) else { return };
                let pod = pod_of(&self.settings, pool, &slot, incarnation);
                self.running.spawn(async move {
                    let result = requests.create(pod).await.map(Box::new);
                    (key, Done::Created(slot, incarnation, result))
                });
            }
        }
    }

    fn on_done(&mut self, now: Instant, key: String, done: Done) {
        match done {
            Done::Created(slot, incarnation, result) => self.on_created(now, slot, incarnation, result),
            Done::Deleted(name, grace, result) => match result {
                Ok(()) => {
                    self.again.remove(&key);
                    if let Some(entry) = self.view.get_mut(&name) {
                        entry.pod.deleting = Some(grace);
                    }
                }
                Err(Failed::Absent | Failed::Other) => {
                    let desired = &self.desired;
                    let news = self.view.forget(&name, None, &|name| desired.removals.contains_key(name));
                    self.on_pod(&name);
                    self.say(now, news);
                }
                Err(failed) => self.put_off(now, key, failed),
            },
            Done::LogKept(name, uid) => {
                if let Some(entry) = self.view.get_mut(&name).filter(|entry| entry.pod.uid == uid) {
                    entry.log_kept();
                }
            }
            Done::Marked(name, busy, result) => match result {
                Ok(()) => {
                    self.again.remove(&key);
                    if let Some(entry) = self.view.get_mut(&name) {
                        entry.pod.busy = busy;
                    }
                }
                Err(Failed::Absent | Failed::Other) => drop(self.desired.marks.remove(&name)),
                Err(failed) => self.put_off(now, key, failed),
            },
            Done::Warned(name, Ok(Some(wait))) => {
                let news = self.view.event(&name, wait);
                self.say(now, news);
            }
            Done::Warned(_, Err(Failed::Refused(reason, _))) if reason.class == ReasonClass::Never => {
                tracing::warn!(%reason, "what pods wait for is only known as far as their status says");
                self.may_read_events = false;
            }
            Done::Warned(..) | Done::Told => {}
            Done::Lifted(Ok(()) | Err(Failed::Absent | Failed::Other)) => self.lifted = true,
            Done::Lifted(Err(failed)) => self.put_off(now, key, failed),
        }
    }

    fn on_created(&mut self, now: Instant, slot: Slot, incarnation: u32, result: Result<Box<Pod>, Failed>) {
        let used = self.used.entry(slot.clone()).or_insert(incarnation);
        *used = incarnation.max(*used);
        let reason = match result {
            Ok(pod) => {
                let news = self.view.created(now, &pod);
                if let Some(name) = &pod.metadata.name {
                    self.on_pod(name);
                }
                self.say(now, news);
                None
            }
            // The name belongs to somebody else's pod: the next one is free, or the one after it.
            Err(Failed::Other) if self.desired.slots.contains_key(&slot) => {
                self.desired.slots.insert(slot, incarnation.saturating_add(1));
                return;
            }
            Err(Failed::Refused(reason, _)) => Some(reason),
            Err(Failed::NoAnswer(message)) => {
                self.lost(now, message.clone());
                Some(Reason { class: ReasonClass::NotNow, message })
            }
            Err(Failed::Absent | Failed::Other) => {
                Some(Reason { class: ReasonClass::NotNow, message: "the pod was gone before it was read".to_owned() })
            }
        };
        if let Some(reason) = &reason {
            self.tell(now, "Warning", "PodCreateFailed", &slot.pool, &reason.message);
        }
        self.desired.slots.remove(&slot);
        self.answer(&slot, reason);
    }

    fn put_off(&mut self, now: Instant, key: String, failed: Failed) {
        let (message, asked) = match failed {
            Failed::Refused(reason, pause) => (reason.message, pause),
            Failed::NoAnswer(message) => {
                self.lost(now, message.clone());
                (message, None)
            }
            Failed::Absent | Failed::Other => return,
        };
        let (_, tries) = self.again.get(&key).copied().unwrap_or((now, 0));
        let pause = asked.unwrap_or(Duration::ZERO).max(doubled(REQUEST_PAUSE, tries));
        tracing::warn!(%message, pause_s = pause.as_secs(), "a request failed and is made again");
        self.again.insert(key, (now + pause, tries + 1));
    }

    /// Answers whoever waits for a slot.
    fn answer(&mut self, slot: &Slot, reason: Option<Reason>) {
        for call in self.calls.iter_mut() {
            if call.waits_for.remove(slot)
                && let Some(reason) = &reason
            {
                let operation = Operation::Create { pool: slot.pool.clone(), ordinal: slot.ordinal };
                call.failed.push((operation, reason.clone()));
            }
        }
    }

    /// Ends calls whose creates are answered, and the shutdown when nothing is left.
    fn settle(&mut self, now: Instant) {
        let observed = self.view.observed();
        let served = |slot: &Slot| {
            let alive = |pod: &&plan::Pod| pod.slot == *slot && pod.state == plan::State::Alive;
            observed.pods.iter().filter(alive).any(|pod| !self.desired.removals.contains_key(&pod.name))
        };
        let done = |slot: &&Slot| observed.fresh && served(slot) && !self.in_flight.contains(&slot_key(slot));
        for slot in self.desired.slots.keys().filter(done).cloned().collect::<Vec<_>>() {
            self.desired.slots.remove(&slot);
            self.answer(&slot, None);
        }
        let late: BTreeSet<Slot> =
            self.calls.iter().filter(|call| now >= call.until).flat_map(|call| call.waits_for.iter().cloned()).collect();
        for slot in late {
            let problem = self.problem.as_ref().map_or("it did not answer in time", |(_, problem)| problem.as_str());
            let message = format!("the Kubernetes API cannot be reached: {problem}");
            self.desired.slots.remove(&slot);
            self.answer(&slot, Some(Reason { class: ReasonClass::NotNow, message }));
        }
        let (answered, open) =
            std::mem::take(&mut self.calls).into_iter().partition::<Vec<_>, _>(|call| call.waits_for.is_empty());
        self.calls = open;
        for call in answered {
            // Whoever asked may be gone.
            let _ = call.reply.send(call.failed);
        }
        self.close(now);
    }

    fn close(&mut self, now: Instant) {
        let Some((_, until)) = &self.closing else { return };
        let gone = self.view.is_fresh() && self.view.entries().next().is_none() && self.in_flight.is_empty();
        if !gone && now < *until {
            let all: Vec<String> = self.view.entries().map(|entry| entry.pod.name.clone()).collect();
            for name in all {
                self.remove(&name, None, Grace::Short);
            }
            return;
        }
        if !gone {
            let left = self.view.entries().count();
            tracing::warn!(left, "pods are left; they go with the job that owns them");
        }
        if let Some((reply, _)) = self.closing.take() {
            let _ = reply.send(());
        }
    }
}

/// What is to be asked of the API.
enum Todo {
    Lift,
    Planned(plan::Operation),
}

async fn next(watch: &mut Option<Watch>) -> Option<Result<Event<Pod>, watcher::Error>> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

fn doubled((first, last): (Duration, Duration), times: u32) -> Duration {
    first.saturating_mul(1 << times.min(10)).min(last)
}

fn slot_key(slot: &Slot) -> String {
    format!("create {} {}", slot.ordinal, slot.pool)
}

fn key_of(operation: &plan::Operation) -> String {
    match operation {
        plan::Operation::Create { slot, .. } => slot_key(slot),
        plan::Operation::Delete { name, .. } => format!("delete {name}"),
        plan::Operation::KeepLog { name, .. } => format!("log {name}"),
        plan::Operation::Mark { name, .. } => format!("mark {name}"),
    }
}

fn worker_pod(entry: &Entry) -> WorkerPod {
    WorkerPod { uid: entry.pod.uid.clone(), ip: entry.ip, ending: entry.pod.state != plan::State::Alive }
}
