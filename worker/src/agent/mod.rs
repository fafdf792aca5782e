//! The reactor: one thread that drives the sockets, the lane and the machine. Everything here reacts to one event at a time and
//! never waits for a disk; what may wait is handed to helpers.

mod attempts;
mod functions;
mod held;
pub(crate) mod memory;
mod read_log;
mod wire;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustc_hash::FxHashMap;
use scalable_core::ids::Micros;
use scalable_core::resources::{Names, Resources};
use scalable_core::worker::calls::CallId;
use scalable_core::worker::{Input, Serial, Worker};
use scalable_proto::v1::{self, worker_control};
use scalable_store::{Pressure, Released};
use scalable_tls::WorkerCredentials;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::Sleep;

use crate::attempt::Attempt;
use crate::batch::Batch;
use crate::catalog::Catalog;
use crate::cgroup::Cgroups;
use crate::connection::{Arrived, Target};
use crate::container::Container;
use crate::directory::Directory;
use crate::function::{Brought, Fetched, Functions, ObjectOptions, Objects, PreparedHost, architecture, libc};
use crate::helpers::Helpers;
use crate::job::{Ready, Settled};
use crate::lane::{Lane, LaneEvent, Strangers};
use crate::link::{Identity, Link};
use crate::logs::{Writer, Written};
use crate::options::{MemoryLimit, Options, host};
use crate::remote::{Remote, Unready};
use crate::secured::Secured;
use crate::watch::{Look, Measured, Watch};

/// Threads for staging and publishing: enough to keep a disk busy beside a digest.
const HELPERS: usize = 3;
/// Frames from the scheduler that may wait for the reactor.
const INBOX_FRAMES_MAX: usize = 256;
/// Events of one kind taken before others are looked at.
const TURN_MAX: usize = 1024;
/// How long the last frames may take to be acknowledged before the agent ends anyway.
const LEAVE_MAX: Duration = Duration::from_secs(5);
/// How often orphans are looked for beside the ends of attempts.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// Why the agent ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Drained, or the scheduler said goodbye.
    Well(String),
    /// It could not go on: one sentence.
    Badly(String),
}

/// What helpers and other threads tell the reactor.
enum Told {
    Ready(Serial, Box<Result<Ready, Unready>>),
    Looked(u32),
    Settled(Serial, Box<Settled>),
    Look(Look),
    /// The container is nearly full.
    Near(Measured),
    Written(Written),
    Host(u64, Box<Result<PreparedHost, String>>),
    Brought(CallId, u64, Brought),
    Fetched(Box<Fetched>),
    Segment(u64, u32, Released),
    Log(v1::LogChunk),
}

/// How far leaving has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    /// Nothing is left on the worker; reports are to be acknowledged first, or goodbye would overtake them.
    Reports(Instant),
    /// Goodbye was said.
    Goodbye(Instant),
}

/// See the module.
pub struct Agent {
    options: Options,
    born: Instant,
    machine: Worker,
    names: Names,
    lane: Lane,
    catalog: Catalog,
    attempts: FxHashMap<Serial, Attempt>,
    /// How full memory is of results.
    pressure: watch::Receiver<Pressure>,
    /// Kept until the agent ends.
    #[expect(dead_code, reason = "its drop removes it")]
    directory: Directory,
    functions: Functions,
    /// Files of runs whose directory is not here.
    remote: Arc<Remote>,
    held: held::Held,
    bringers: Helpers,
    next_serial: u64,
    helpers: Helpers,
    writer: Writer,
    watch: Watch,
    /// Attempts in the order in which they are old enough to be watched.
    unwatched: VecDeque<(Instant, Serial)>,
    cgroups: Option<Arc<Cgroups>>,
    /// The container that tasks and agent share, where it has a limit.
    container: Option<Arc<Container>>,
    guard: memory::Guard,
    link: Link,
    batch: Batch,
    told: mpsc::UnboundedSender<Told>,
    from_threads: mpsc::UnboundedReceiver<Told>,
    inbox: mpsc::Receiver<Arrived>,
    lane_events: Vec<LaneEvent>,
    sweep_due: Instant,
    agent_memory: u64,
    /// Memory for results is full and the disk takes none of them.
    full: bool,
    leaving: Leaving,
    ended: Option<Ended>,
}

impl Agent {
    /// An agent that is not connected yet. `files` is the limit of open files for its tasks, where its own was raised. To be called
    /// on the thread that runs it, which must live as long as the process.
    ///
    /// # Errors
    /// What it cannot do without: /proc, threads, cgroups where they are required.
    pub fn new(options: Options, files: Option<libc::rlimit>) -> anyhow::Result<Self> {
        let (told, from_threads) = mpsc::unbounded_channel();
        let (to_inbox, inbox) = mpsc::channel(INBOX_FRAMES_MAX);
        let cgroups = match options.memory_limit {
            MemoryLimit::Watch | MemoryLimit::None => None,
            MemoryLimit::Auto => Cgroups::detect()
                .inspect_err(|why| tracing::info!(why, "no memory cgroup may be made here: the watch enforces memory limits"))
                .ok(),
            MemoryLimit::Cgroup => Some(Cgroups::detect().map_err(|why| {
                anyhow::anyhow!("--memory-limit cgroup, but no memory cgroup may be made here: {why}; use --memory-limit watch")
            })?),
        };
        let mut names = Names::default();
        let capacity = resources(&options.capacity(), &mut names, true)
            .ok_or_else(|| anyhow::anyhow!("more than {} custom resources", Names::MAX))?;
        let directory = Directory::make(options.directory.as_deref()).context("--directory")?;
        let secured = secured(&options)?.map(Arc::new);
        let tls = secured.as_ref().map(|secured| anyhow::Ok((secured.peer_server()?, secured.peer_dialer()?))).transpose()?;
        let objects = Objects::start(ObjectOptions {
            directory: directory.path().to_owned(),
            memory_bytes_max: options.object_memory(),
            peer_address: options.peer_address,
            host: host(),
            executables: options.executables.clone(),
            tls,
            short_cuts: !options.no_short_cuts,
        });
        let objects = objects.context("results cannot be kept here")?;
        let pressure = objects.pressure();
        let identity = Identity {
            peer_address: options.advertise.clone().unwrap_or_else(|| objects.address().to_string()),
            name: options.name(),
            pool: options.pool.clone(),
            components: options.components.clone(),
            resources: options.capacity(),
            host: host(),
            architecture: architecture().to_owned(),
            libc: libc(),
            cluster_id: match &secured {
                Some(secured) => secured.trust().cluster_id().to_owned(),
                None => options.cluster_id.clone().unwrap_or_default(),
            },
        };
        let target = Target { url: options.url(), token_file: options.token_file.clone(), secured };
        if let Some(secured) = &target.secured {
            let endpoint = target.endpoint().map_err(|status| anyhow::anyhow!("--address: {}", status.message()))?;
            tokio::spawn(secured.clone().keep_renewed(endpoint));
        }
        let (looks, writes, measures) = (told.clone(), told.clone(), told.clone());
        let container = Container::own().map(Arc::new);
        let now = Instant::now();
        Ok(Agent {
            born: now,
            remote: objects.remote().clone(),
            held: held::Held::default(),
            bringers: Helpers::start(held::BRINGERS)?,
            functions: Functions::new(capacity.clone(), objects)?,
            pressure,
            directory,
            machine: Worker::new(capacity),
            names,
            lane: Lane::new(files, Strangers::Kill)?,
            catalog: Catalog::new(),
            attempts: FxHashMap::default(),
            next_serial: 1,
            helpers: Helpers::start(HELPERS)?,
            // Sending fails only when the reactor is gone, and then nobody has to know.
            writer: Writer::start(move |written| drop(writes.send(Told::Written(written))))?,
            watch: Watch::start(
                container.clone(),
                move |look| drop(looks.send(Told::Look(look))),
                move |measured| drop(measures.send(Told::Near(measured))),
            )?,
            container,
            guard: memory::Guard::default(),
            unwatched: VecDeque::new(),
            cgroups: cgroups.map(Arc::new),
            link: Link::new(target, identity, to_inbox),
            batch: Batch::default(),
            told,
            from_threads,
            inbox,
            lane_events: Vec::new(),
            sweep_due: now + SWEEP_EVERY,
            agent_memory: own_memory(),
            full: false,
            leaving: Leaving::No,
            ended: None,
            options,
        })
    }

    /// Runs until it is drained, dismissed, or cannot go on.
    ///
    /// # Errors
    /// The runtime refuses a signal or the lane's descriptor.
    pub async fn run(mut self) -> anyhow::Result<Ended> {
        let lane_ready = lane_ready(&self.lane)?;
        let mut signals = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
        // A handler instead of "ignore": what is ignored would be ignored by tasks too, if their dispositions were not reset.
        let mut hangup = signal(SignalKind::hangup())?;
        // The lane's descriptor had more when it was read last.
        let mut lane_busy = false;
        let mut alarm = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        loop {
            self.tick();
            let flushed = self.flush();
            if let Some(ended) = self.ended.take() {
                return Ok(ended);
            }
            if flushed && (lane_busy || !self.inbox.is_empty() || !self.from_threads.is_empty()) {
                // Lets the connections write before the reactor goes on. With nothing to go on with they do so anyway.
                tokio::task::yield_now().await;
            }
            set_alarm(alarm.as_mut(), self.next_deadline());
            let [terminate, interrupt] = &mut signals;
            tokio::select! {
                biased;
                _ = terminate.recv() => self.drain("the worker received SIGTERM"),
                _ = interrupt.recv() => self.drain("the worker received SIGINT"),
                _ = hangup.recv() => {}
                ready = lane_ready.readable() => {
                    let mut ready = ready?;
                    lane_busy = self.poll_lane();
                    if !lane_busy {
                        ready.clear_ready();
                    }
                }
                Some(told) = self.from_threads.recv() => self.hear(told),
                Some(arrived) = self.inbox.recv() => self.arrived(arrived),
                Ok(()) = self.pressure.changed() => self.pressed(),
                () = &mut alarm => {}
            }
            self.take_what_is_ready();
        }
    }

    /// Everything that has come meanwhile, so that one batch tells of all of it.
    fn take_what_is_ready(&mut self) {
        for _ in 0..TURN_MAX {
            let Ok(told) = self.from_threads.try_recv() else { break };
            self.hear(told);
        }
        for _ in 0..INBOX_FRAMES_MAX {
            let Ok(arrived) = self.inbox.try_recv() else { break };
            self.arrived(arrived);
        }
    }

    /// Memory is nearly full of results, or is not any more: nothing new is started while it is.
    fn pressed(&mut self) {
        let pressure = self.pressure.borrow_and_update().clone();
        let full = pressure.paused && pressure.trouble.is_some();
        if std::mem::replace(&mut self.full, full) != full {
            self.link.hurry_heartbeat(Instant::now());
        }
        if pressure.paused != self.machine.is_paused() {
            tracing::info!(paused = pressure.paused, trouble = pressure.trouble, "memory for results is pressed");
        }
        self.functions(|functions, cx| {
            cx.machine.pause(pressure.paused, cx.now, cx.out);
            functions.act(cx);
        });
    }

    fn now(&self) -> Micros {
        self.born.elapsed().as_micros() as Micros
    }

    fn next_deadline(&self) -> Instant {
        let machine = self.machine.next_deadline().map(|at| self.born + Duration::from_micros(at));
        let watch = self.unwatched.front().map(|(at, _)| *at);
        let leaving = match self.leaving {
            Leaving::No => None,
            Leaving::Reports(until) | Leaving::Goodbye(until) => Some(until),
        };
        let fence = Some(self.link.last_heard() + self.options.fence_after).filter(|_| self.link.has_session());
        let functions = self.functions.next_deadline();
        let all = [machine, functions, watch, leaving, fence, Some(self.link.next_deadline()), Some(self.sweep_due)];
        all.into_iter().flatten().min().unwrap_or(self.sweep_due)
    }

    /// What is due by time alone.
    fn tick(&mut self) {
        let now = Instant::now();
        if self.machine.next_deadline().is_some_and(|at| at <= self.now()) {
            self.step(Input::Tick);
        }
        if self.link.has_session() && self.link.last_heard() + self.options.fence_after <= now {
            tracing::error!("the scheduler was silent for so long that it has given this worker up: its tasks are ended");
            self.link.forget(now);
            self.begin_anew();
        }
        if self.functions.next_deadline().is_some_and(|at| at <= now) {
            self.functions(|functions, cx| functions.tick(cx));
        }
        let (counts, memory) = (self.machine.counts(), &self.attempts);
        let (functions, machine, paused, full) = (&self.functions, &self.machine, self.machine.is_paused(), self.full);
        self.link.tick(now, || {
            let hosts = functions.sampled_bytes();
            let mut heartbeat = v1::Heartbeat {
                memory_used_bytes: memory.values().map(|attempt| attempt.sampled_now).fold(hosts, u64::saturating_add),
                executing: counts.executing,
                queued: counts.queued,
                paused,
                full,
                ..v1::Heartbeat::default()
            };
            functions.tell(&mut heartbeat);
            memory::tell_shares(&mut heartbeat, memory, functions, machine);
            heartbeat
        });
        while let Some(&(at, serial)) = self.unwatched.front()
            && (at <= now || self.attempts.get(&serial).is_none_or(|a| a.over.is_some()))
        {
            self.unwatched.pop_front();
            self.begin_watch(serial);
        }
        if self.sweep_due <= now {
            self.sweep_due = now + SWEEP_EVERY;
            self.fade(now);
            self.agent_memory = own_memory();
            let mut events = std::mem::take(&mut self.lane_events);
            self.lane.sweep(&mut events);
            self.lane_events = events;
            self.take_lane_events();
            self.poll_lane();
        }
        self.leave(now);
    }

    fn begin_watch(&mut self, serial: Serial) {
        let Some(attempt) = self.attempts.get(&serial).filter(|a| a.over.is_none()) else { return };
        let Some(pid) = self.lane.pid(serial.0) else { return };
        let limit = attempt.order.memory_bytes;
        let by_watch = attempt.cgroup.is_none() && limit > 0 && self.options.memory_limit != MemoryLimit::None;
        self.watch.watch(serial.0, pid, Some(limit).filter(|_| by_watch));
    }

    fn leave(&mut self, now: Instant) {
        match self.leaving {
            Leaving::No => {}
            Leaving::Reports(until) if now < until && self.link.has_session() => {
                if self.batch.is_empty() && self.link.is_acknowledged() && self.held.is_copied() {
                    self.link.send_control(worker_control::Body::Goodbye(v1::Goodbye { reason: "drained".to_owned() }));
                    self.leaving = Leaving::Goodbye(now + LEAVE_MAX);
                }
            }
            Leaving::Goodbye(until) if now < until && !self.link.is_acknowledged() => {}
            Leaving::Reports(_) | Leaving::Goodbye(_) => self.end(Ended::Well("drained".to_owned())),
        }
    }

    fn end(&mut self, how: Ended) {
        self.ended.get_or_insert(how);
    }

    /// Sends what has happened. True when anything was sent.
    fn flush(&mut self) -> bool {
        let mut sent = false;
        while !self.batch.is_empty() && self.link.takes_batches() {
            let (batch, bytes) = self.batch.take();
            self.link.send_batch(batch, bytes);
            sent = true;
        }
        if self.functions.is_held_back() && !self.batch.is_long() {
            self.functions(|functions, cx| functions.go_on(cx));
        }
        sent
    }

    /// SIGTERM, once or often: no new work, what runs may finish.
    fn drain(&mut self, reason: &str) {
        let deadline = self.options.drain_deadline;
        if !self.machine.is_draining() {
            tracing::info!(reason, deadline_s = deadline.as_secs_f64(), "draining");
            let deadline_ms = deadline.as_millis() as u64;
            self.link.send_control(worker_control::Body::Draining(v1::Drain { deadline_ms, reason: reason.to_owned() }));
        }
        let deadline = self.now().saturating_add(deadline.as_micros() as Micros);
        self.begin_drain(deadline);
    }

    /// What no host has begun is not begun any more.
    fn begin_drain(&mut self, deadline: Micros) {
        self.functions(|functions, cx| functions.take_back_all(cx));
        self.step(Input::Drain { deadline });
    }

    /// Nothing that the old session wanted is wanted any more.
    fn begin_anew(&mut self) {
        self.step(Input::Void);
        self.functions(|functions, cx| functions.void(cx));
        self.void_held(Instant::now());
        self.catalog.clear();
        self.batch.clear();
    }
}

/// What a worker beyond its scheduler's machine has; nothing on one machine.
fn secured(options: &Options) -> anyhow::Result<Option<Secured>> {
    let Some(directory) = &options.credentials else { return Ok(None) };
    let credentials = WorkerCredentials::read(directory).context("--credentials")?;
    if let Some(wanted) = options.cluster_id.as_deref().filter(|wanted| *wanted != credentials.trust.cluster_id()) {
        anyhow::bail!("--credentials are of cluster {}, and --cluster-id wants {wanted}", credentials.trust.cluster_id());
    }
    Secured::new(credentials, &options.name(), options.uid.as_deref().unwrap_or_default()).map(Some)
}

/// The lane's epoll set in the runtime's.
#[allow(unsafe_code)]
fn lane_ready(lane: &Lane) -> anyhow::Result<AsyncFd<OwnedFd>> {
    let fd = lane.fd().try_clone_to_owned()?;
    // SAFETY: the descriptor is a second one for the lane's set and owned by what is made here.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// The agent's own largest resident set so far, bytes.
fn own_memory() -> u64 {
    nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)
        .map_or(0, |usage| (usage.max_rss() as u64).saturating_mul(1024))
}

/// From the wire. In a capacity no memory figure means that memory is not accounted. Nothing when there are too many names.
fn resources(wire: &v1::Resources, names: &mut Names, capacity: bool) -> Option<Resources> {
    let mut made =
        Resources { milli_cpus: wire.milli_cpus, memory_bytes: wire.memory_bytes, gpus: wire.gpus, ..Resources::default() };
    if capacity && made.memory_bytes == 0 {
        made.memory_bytes = Resources::MEMORY_UNACCOUNTED;
    }
    for named in wire.custom.iter().filter(|named| named.amount > 0) {
        let name = names.intern(&named.name)?;
        let mut one = Resources::default();
        one.custom.push((name, named.amount));
        made.add(&one);
    }
    Some(made)
}

/// Makes the reactor's one timer fire at this time or earlier. A new one for every turn would cost three system calls each time: the
/// runtime wakes itself to look at it. So it may fire when nothing is due any more, and is set again then.
fn set_alarm(alarm: Pin<&mut Sleep>, at: Instant) {
    let at = tokio::time::Instant::from_std(at);
    if at < alarm.deadline() || alarm.is_elapsed() {
        alarm.reset(at);
    }
}
