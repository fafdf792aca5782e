//! Functions in lane hosts: which call goes to which host, when a host is started, and what its end means. What may run when is
//! decided by the machine in `scalable-core`, which grants *slots*; here slots become hosts (isolation by process) or threads of one
//! host (isolation by thread).
//!
//! Everything here is done by the reactor and never waits. A call costs about as much as copying its bytes: no allocation of its own,
//! no timer, no lookup by name.

mod ends;
mod feed;
mod host;
mod inputs;
mod keep;
mod objects;
mod payload;
mod program;
mod start;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use scalable_core::ids::{Handle, Micros, ShapeId};
use scalable_core::messages::OutcomeClass;
use scalable_core::resources::Resources;
use scalable_core::worker::calls::{CallBatch, CallId, CallOutput, LaneId, Over, Part};
use scalable_core::worker::{Output, Worker};
use scalable_lane::agent::Inbox;
use scalable_proto::v1::{AttemptReport, DispatchBatch, FunctionCall, Heartbeat, Isolation, piece, task_template};

use scalable_store::Released;

pub use inputs::Brought;
pub use keep::{Fetched, TellFetched};
pub use objects::{ObjectOptions, Objects};
pub use program::{Executables, Local, architecture, libc};
pub use start::PreparedHost;

use crate::agent::memory::Share;
use crate::attempt::unix_micros;
use crate::batch::Batch;
use crate::catalog::{Catalog, Group};
use crate::cgroup::Cgroups;
use crate::container::Container;
use crate::helpers::Helpers;
use crate::lane::Lane as Processes;
use crate::options::MemoryLimit;
use host::{Host, Number, Stage};
use inputs::bring;
use payload::{Payload, Strings};

/// Work that a slot has ahead, about: as long as a result and the next call take between agent and host, several times over.
const AHEAD_NS: u64 = 1_000_000;
/// Most calls that a slot has ahead.
const AHEAD_MAX: u32 = 8192;
/// Time of a call below which a second waits behind it in its slot.
const PREFETCH_BELOW_NS: u64 = 20_000_000;
/// Calls a host may have at a time, for each slot.
const CALLS_OF_SLOT: u32 = 16_384;
/// Threads that look for programs.
const FINDERS: usize = 2;
/// Most lane hosts at a time.
pub const HOSTS_MAX: usize = 512;
/// How long a host may take to say what it has.
const GREETING_MAX: Duration = Duration::from_secs(30);
/// How long a host without a slot stays.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How long a host may take to end when it is told to.
const STOP_MAX: Duration = Duration::from_secs(5);
/// How long a call that is cancelled or ran into its timeout may go on, so that one that looks ends by itself.
const UNWANTED_MAX: Duration = Duration::from_millis(250);
/// How often the threads of hosts that have calls are looked at.
const PASS_EVERY: Duration = Duration::from_millis(5);
/// Hosts in a row that end by themselves with nobody to blame before their lane is given up.
const BLAMELESS_MAX: u32 = 3;

/// What makes a lane: calls of two groups share hosts when all of this is equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct LaneKey {
    program: Program,
    /// Set in its environment beyond the agent's own.
    env: Vec<(String, String)>,
    directory: Option<PathBuf>,
    by_thread: bool,
    shape: u32,
}

/// The program a lane's hosts are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Program {
    /// In the worker's image.
    Native(PathBuf),
    /// With this content.
    Content { digest: Vec<u8>, size: u64, path: String },
}

#[derive(Debug)]
struct Lane {
    key: LaneKey,
    /// The first group of it, for the environment that all share.
    group: Arc<Group>,
    /// Threads of one host.
    threads: u32,
    /// Limit of one host, bytes; 0 is none.
    memory_limit: u64,
    hosts: Vec<u64>,
    /// Slots for which there may be no host yet.
    homeless: u32,
    /// Nanoseconds a call takes, about; 0 while nothing has returned.
    call_ns: u64,
    /// Hosts in a row that ended with nobody to blame.
    blameless: u32,
}

impl Lane {
    /// Calls that one slot has ahead.
    fn ahead(&self) -> u32 {
        match self.call_ns {
            0 => 1,
            ns => {
                let fits = (AHEAD_NS / ns).min(u64::from(AHEAD_MAX)) as u32;
                fits.max(1) + u32::from(ns < PREFETCH_BELOW_NS)
            }
        }
    }

    /// Calls a thread takes at a time from a frame: about a twentieth of what its slot has ahead.
    fn piece(&self) -> u32 {
        match self.call_ns {
            0 => 1,
            ns => (AHEAD_NS / 20 / ns).clamp(1, 256) as u32,
        }
    }

    fn took(&mut self, ns: u64) {
        let ns = ns.max(1);
        // Quickly up, slowly down: a queue that is too long costs more than one that is too short.
        self.call_ns = if self.call_ns == 0 || ns > self.call_ns {
            ns.midpoint(self.call_ns.max(1)).max(1)
        } else {
            (self.call_ns * 7 + ns) / 8
        };
    }
}

/// Tells the reactor what a helper has found for a host.
pub type TellPrepared = Box<dyn FnOnce(Result<PreparedHost, String>) + Send>;

/// Tells the reactor which objects of a call have come.
pub type TellBrought = Box<dyn FnOnce(Brought) + Send>;

/// Tells the reactor that nobody reads a segment any more.
pub type TellReleased = Box<dyn FnOnce(Released) + Send + Sync>;

/// What of the agent is needed here.
pub struct Cx<'a> {
    /// The machine.
    pub machine: &'a mut Worker,
    /// Starts and watches processes.
    pub processes: &'a mut Processes,
    /// What was announced.
    pub catalog: &'a mut Catalog,
    /// What is told to the scheduler.
    pub batch: &'a mut Batch,
    /// Threads for what may wait for a disk.
    pub helpers: &'a Helpers,
    /// Tells the reactor which program a host is, or why there is none.
    pub prepared: &'a dyn Fn(u64) -> TellPrepared,
    /// Begins to look at a process's memory.
    pub watch: &'a dyn Fn(u64, i32, Option<u64>),
    /// Tells the reactor which objects have come for a call of a batch with this serial.
    pub brought: &'a dyn Fn(CallId, u64) -> TellBrought,
    /// Tells the reactor what became of an object that is to be kept.
    pub fetched: &'a dyn Fn() -> TellFetched,
    /// Tells the reactor that a segment of a host is read no more.
    pub released: &'a dyn Fn(u64, u32) -> TellReleased,
    /// Where cgroups may be made.
    pub cgroups: Option<&'a Arc<Cgroups>>,
    /// The container that everything shares, where it has a limit.
    pub container: Option<&'a Container>,
    /// How limits are enforced.
    pub memory_limit: MemoryLimit,
    /// The machine's clock.
    pub now: Micros,
    /// The same as an instant.
    pub instant: Instant,
    /// The next number for an attempt or a host.
    pub next_serial: &'a mut u64,
    /// What the machine wants done with processes.
    pub out: &'a mut Vec<Output>,
}

/// See the module.
pub struct Functions {
    capacity: Resources,
    lanes: FxHashMap<LaneId, Lane>,
    by_key: FxHashMap<LaneKey, LaneId>,
    /// By group and shape.
    by_group: FxHashMap<(u32, u32), LaneId>,
    hosts: FxHashMap<u64, Host>,
    payloads: Vec<Option<Payload>>,
    objects: Objects,
    /// Objects on their way that are to be kept.
    keeping: u32,
    /// What was asked for under a smaller serial belongs to an earlier session.
    session_since: u64,
    /// Threads that look for programs, which may come over the network.
    finders: Helpers,
    inbox: Inbox,
    fed: Vec<CallId>,
    outputs: Vec<CallOutput>,
    done: Vec<u32>,
    pass_due: Option<Instant>,
    /// Hosts could take more, and too much waits to be told to the scheduler.
    held_back: bool,
}

impl Functions {
    /// None so far.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn new(capacity: Resources, objects: Objects) -> std::io::Result<Self> {
        Ok(Functions {
            capacity,
            lanes: FxHashMap::default(),
            by_key: FxHashMap::default(),
            by_group: FxHashMap::default(),
            hosts: FxHashMap::default(),
            payloads: Vec::new(),
            objects,
            keeping: 0,
            session_since: 0,
            finders: Helpers::start(FINDERS)?,
            inbox: Inbox::default(),
            fed: Vec::new(),
            outputs: Vec::new(),
            done: Vec::new(),
            pass_due: None,
            held_back: false,
        })
    }

    /// True when this number is a host's.
    pub fn has_host(&self, serial: u64) -> bool {
        self.hosts.contains_key(&serial)
    }

    /// Bytes that hosts take, when they were looked at last.
    pub fn sampled_bytes(&self) -> u64 {
        self.hosts.values().map(|host| host.sampled_now).fold(0, u64::saturating_add)
    }

    /// What each host takes, when it was looked at last.
    pub fn shares(&self, shares: &mut Vec<Share>) {
        let living = self.hosts.iter().filter(|(_, host)| host.sampled_now > 0 && host.stage != Stage::Ending);
        shares.extend(living.map(|(&serial, host)| Share { serial, bytes: host.sampled_now, request: host.memory_limit }));
    }

    /// What each call that executes takes: an equal part of its host's memory, since threads cannot be told apart.
    pub fn call_shares(&self, machine: &Worker, shares: &mut Vec<(Handle, Share)>) {
        for (&serial, host) in self.hosts.iter().filter(|(_, host)| host.sampled_now > 0) {
            let executing: Vec<u32> = host.shared.as_ref().map(|shared| shared.executing().collect()).unwrap_or_default();
            let calls = executing.len().max(1) as u64;
            let share =
                Share { serial, bytes: host.sampled_now / calls, request: host.memory_limit / u64::from(host.threads.max(1)) };
            let call = |number: &u32| match host.numbers.get(*number as usize) {
                Some(Number::Live(call)) => machine.call_handle(*call),
                _ => None,
            };
            shares.extend(executing.iter().filter_map(call).map(|handle| (handle, share)));
        }
    }

    /// Fills in a heartbeat's figures of objects.
    pub fn tell(&self, heartbeat: &mut Heartbeat) {
        self.objects.tell(heartbeat);
    }

    /// Objects that are kept here.
    pub fn objects(&mut self) -> &mut Objects {
        &mut self.objects
    }

    /// Takes the elements `first .. first + count` of a dispatch, for each range: they are functions.
    ///
    /// # Errors
    /// The scheduler broke the protocol.
    pub fn dispatch(&mut self, cx: &mut Cx<'_>, batch: DispatchBatch, ranges: &[(u32, u32)]) -> Result<(), String> {
        let DispatchBatch { handle, group, index, attempt, shape, timeout_ms, task_id, args_end, args, .. } = batch;
        let outside = || "arguments or results of a dispatch lie outside it".to_owned();
        let mut payload = Payload {
            index,
            attempt: attempt.clone(),
            task_id,
            args: Strings::new(args_end, args).ok_or_else(outside)?,
            values_of_end: batch.values_of_end,
            values: Strings::new(batch.value_end, batch.values).ok_or_else(outside)?,
            groups: Vec::new(),
            inputs: FxHashMap::default(),
            serial: *cx.next_serial,
        };
        payload.check(handle.len())?;
        let (mut parts, mut coming) = (Vec::with_capacity(ranges.len()), Vec::new());
        for &(first, count) in ranges {
            let (number, shape) = (group[first as usize], shape[first as usize]);
            let Some(of) = cx.catalog.group(number).cloned() else { continue };
            match self.lane_of(cx, number, shape, &of) {
                Ok(lane) if of.template.inputs.is_empty() => {
                    parts.push(Part { first, count, lane, fetching: false });
                    payload.groups.push((first, number, of));
                }
                Ok(lane) => {
                    for at in first..first + count {
                        // Neighbours that have what they read stay one range.
                        if payload.values_of(at).len() == of.template.inputs.len() {
                            match parts.last_mut() {
                                Some(Part { first, count, lane: same, fetching: false })
                                    if *same == lane && *first + *count == at =>
                                {
                                    *count += 1;
                                }
                                _ => parts.push(Part { first: at, count: 1, lane, fetching: false }),
                            }
                            continue;
                        }
                        let refs = cx.catalog.take_inputs(handle[at as usize]);
                        let part = |fetching| Part { first: at, count: 1, lane, fetching };
                        match self.find_inputs(of.run.id, refs) {
                            Ok((inputs, on_their_way)) => {
                                parts.push(part(!on_their_way.is_empty()));
                                payload.inputs.insert(at, inputs);
                                if !on_their_way.is_empty() {
                                    coming.push((at, on_their_way));
                                }
                            }
                            Err(report) => cx.batch.report(Handle::from_u64(handle[at as usize]), attempt[at as usize], *report),
                        }
                    }
                    payload.groups.push((first, number, of));
                }
                Err(why) => {
                    for at in first as usize..(first + count) as usize {
                        let over = Over { handle: Handle::from_u64(handle[at]), attempt: attempt[at], cause: None };
                        self.report(cx, &over, failure(OutcomeClass::InfraStart, why.clone()));
                    }
                }
            }
        }
        let timeouts_ms = if timeout_ms.iter().all(|ms| *ms == 0) { Vec::new() } else { timeout_ms };
        let serial = *cx.next_serial;
        *cx.next_serial += handle.len() as u64;
        self.collect(cx);
        let mut lanes: Vec<LaneId> = parts.iter().map(|part| part.lane).collect();
        lanes.dedup();
        let number =
            cx.machine.dispatch_calls(CallBatch { serial, handles: handle, attempts: attempt, timeouts_ms, parts }) as usize;
        if self.payloads.len() <= number {
            self.payloads.resize_with(number + 1, || None);
        }
        self.payloads[number] = Some(payload);
        for (at, on_their_way) in coming {
            bring(cx, CallId { batch: number as u32, at }, serial, on_their_way);
        }
        self.act(cx);
        for lane in lanes {
            self.fill_lane(cx, lane);
        }
        self.act(cx);
        Ok(())
    }

    /// Forgets batches of which no call is left.
    fn collect(&mut self, cx: &mut Cx<'_>) {
        cx.machine.take_done(&mut self.done);
        for number in self.done.drain(..) {
            if let Some(payload) = self.payloads.get_mut(number as usize) {
                *payload = None;
            }
        }
    }

    /// The lane of a group and shape.
    fn lane_of(&mut self, cx: &mut Cx<'_>, number: u32, shape: u32, group: &Arc<Group>) -> Result<LaneId, String> {
        if let Some(lane) = self.by_group.get(&(number, shape)) {
            return Ok(*lane);
        }
        let Some(task_template::Command::Function(function)) = &group.template.command else {
            return Err("it is no function".to_owned());
        };
        if let Some(refusal) = &group.refusal {
            return Err(refusal.clone());
        }
        let request = cx.machine.request(ShapeId(shape)).cloned().ok_or("the scheduler never announced its shape")?;
        let key = lane_key(function, group, shape)?;
        let lane = match self.by_key.get(&key) {
            Some(lane) => *lane,
            None => {
                let opened = cx.machine.open_lane(ShapeId(shape)).or_else(|| {
                    self.close_lanes(cx);
                    cx.machine.open_lane(ShapeId(shape))
                });
                let opened = opened.ok_or_else(|| {
                    "the worker is too small for it, or has too many different functions at a time: use fewer programs and shapes in \
                     one run"
                        .to_owned()
                })?;
                let threads = if key.by_thread { self.threads(&request) } else { 1 };
                let each = if request.memory_bytes == Resources::MEMORY_UNACCOUNTED { 0 } else { request.memory_bytes };
                let lane = Lane {
                    key: key.clone(),
                    group: group.clone(),
                    threads,
                    memory_limit: each.saturating_mul(u64::from(threads)),
                    hosts: Vec::new(),
                    homeless: 0,
                    call_ns: 0,
                    blameless: 0,
                };
                self.lanes.insert(opened, lane);
                self.by_key.insert(key, opened);
                opened
            }
        };
        self.by_group.insert((number, shape), lane);
        Ok(lane)
    }

    /// How often a request fits into the worker: the threads of a host whose slots are threads.
    fn threads(&self, request: &Resources) -> u32 {
        let most = scalable_lane::shared::THREADS_MAX;
        let mut used = Resources::default();
        let mut threads = 0;
        while threads < most && self.capacity.fits(&used, request) {
            used.add(request);
            threads += 1;
        }
        // A request that takes nothing fits without end; more threads than cpus would only wait for each other.
        let cpus = (self.capacity.milli_cpus.div_ceil(1000) as u32).clamp(1, most);
        if request.milli_cpus == 0 { threads.min(cpus * 4).max(1) } else { threads.max(1) }
    }

    /// Does what the machine wants with calls, until it wants nothing more.
    pub fn act(&mut self, cx: &mut Cx<'_>) {
        loop {
            let mut outputs = std::mem::take(&mut self.outputs);
            cx.machine.take_calls(&mut outputs);
            if outputs.is_empty() {
                self.outputs = outputs;
                return;
            }
            let ends = outputs.iter().filter(|output| matches!(output, CallOutput::End(_))).count();
            // One search for all of them.
            let places = if ends > 0 { self.places() } else { FxHashMap::default() };
            for output in outputs.drain(..) {
                match output {
                    CallOutput::Slot(lane) => self.slot(cx, lane),
                    CallOutput::End(call) => self.end_call(cx, call, places.get(&call).copied()),
                    CallOutput::Over(over) => {
                        let class = over.cause.unwrap_or(OutcomeClass::Preempted);
                        let message = match class {
                            OutcomeClass::Cancelled => "it was cancelled before it started",
                            OutcomeClass::Timeout => "it ran into its timeout and was ended",
                            _ => "its worker drains or has too many calls; it had not started",
                        };
                        self.report(cx, &over, failure(class, message.to_owned()));
                    }
                }
            }
            self.outputs = outputs;
        }
    }

    /// Where calls are: host and number.
    fn places(&self) -> FxHashMap<CallId, (u64, u32)> {
        let of = |(serial, host): (&u64, &Host)| {
            let serial = *serial;
            host.live().map(move |(number, call)| (call, (serial, number))).collect::<Vec<_>>()
        };
        self.hosts.iter().flat_map(of).collect()
    }

    /// A call is to end: it is taken back when it was not begun, else it has a moment to end by itself.
    fn end_call(&mut self, cx: &mut Cx<'_>, call: CallId, place: Option<(u64, u32)>) {
        let Some((serial, number)) = place else { return };
        let Some(host) = self.hosts.get_mut(&serial) else { return };
        if host.take_back(number) {
            cx.machine.call_back(call);
            return;
        }
        if let Some(shared) = &host.shared {
            shared.want_back(number);
        }
        let at = cx.instant + UNWANTED_MAX;
        host.kill_at = Some(host.kill_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Takes back what of these the hosts have not begun: for a retract, whose answer is to say what was really given back.
    pub fn take_back(&mut self, cx: &mut Cx<'_>, handles: &[Handle]) {
        let held: Vec<CallId> = handles.iter().filter_map(|handle| cx.machine.held_call(*handle)).collect();
        if held.is_empty() {
            return;
        }
        let places = self.places();
        // From the last to the first: each goes to the front of its queue.
        for call in held.into_iter().rev() {
            if let Some((serial, number)) = places.get(&call)
                && self.hosts.get_mut(serial).is_some_and(|host| host.take_back(*number))
            {
                cx.machine.call_back(call);
            }
        }
    }

    /// Takes back everything the hosts have not begun: the worker drains.
    pub fn take_back_all(&mut self, cx: &mut Cx<'_>) {
        let serials: Vec<u64> = self.hosts.keys().copied().collect();
        for serial in serials {
            self.take_back_from(cx, serial);
        }
    }

    /// Takes back everything a host has not begun.
    fn take_back_from(&mut self, cx: &mut Cx<'_>, serial: u64) {
        let Some(host) = self.hosts.get_mut(&serial) else { return };
        let mut live: Vec<(u32, CallId)> = host.live().collect();
        live.sort_unstable_by_key(|(_, call)| *call);
        for (number, call) in live.into_iter().rev() {
            if host.take_back(number) {
                cx.machine.call_back(call);
            }
        }
    }

    /// The session is over: nobody wants anything of it. The machine has forgotten its calls.
    pub fn void(&mut self, cx: &mut Cx<'_>) {
        let serials: Vec<u64> = self.hosts.keys().copied().collect();
        for serial in serials {
            if let Some(host) = self.hosts.get_mut(&serial) {
                host.numbers.fill(Number::Taken);
                host.outstanding = 0;
            }
            self.end_host(cx, serial, host::Fate::Unneeded);
        }
        // Numbers of groups and shapes mean something else from now on.
        self.by_key.clear();
        self.by_group.clear();
        self.objects.clear();
        (self.keeping, self.session_since) = (0, *cx.next_serial);
        self.collect(cx);
    }

    /// Runs that nobody needs any more.
    pub fn release(&mut self, cx: &mut Cx<'_>, runs: &[u32]) {
        self.objects.drop_runs(runs);
        self.by_group.retain(|(group, _), _| cx.catalog.group(*group).is_some_and(|of| !runs.contains(&of.run.id)));
    }

    /// Groups of which everything is over, in order. Their lanes stay: others use them too.
    pub fn forget_groups(&mut self, groups: &[u32]) {
        self.by_group.retain(|(group, _), _| groups.binary_search(group).is_err());
    }

    /// Tells the scheduler how a call ended that has more to tell than its result.
    fn report(&mut self, cx: &mut Cx<'_>, over: &Over, report: AttemptReport) {
        cx.batch.report(over.handle, over.attempt, report);
    }
}

/// A report of a failure that ended now.
fn failure(class: OutcomeClass, message: String) -> AttemptReport {
    let now = unix_micros();
    AttemptReport { class: class.number(), message, started_us: now, finished_us: now, ..AttemptReport::default() }
}

/// What a function's hosts have in common.
fn lane_key(function: &FunctionCall, group: &Group, shape: u32) -> Result<LaneKey, String> {
    let program = match (&function.executable, function.native.as_str()) {
        (_, native) if !native.is_empty() => Program::Native(PathBuf::from(native)),
        (Some(executable), _) if executable.digest.len() == 32 => {
            if executable.size > program::EXECUTABLE_BYTES_MAX {
                return Err(format!(
                    "the program {} is larger than 256 MiB; strip it, or name one in the image",
                    executable.path
                ));
            }
            Program::Content { digest: executable.digest.to_vec(), size: executable.size, path: executable.path.clone() }
        }
        _ => return Err(format!("the function {} names no program it is part of", function.name)),
    };
    let mut env = Vec::with_capacity(group.template.env.len());
    for (name, text) in &group.template.env {
        let mut value = String::new();
        for piece in &text.pieces {
            match &piece.kind {
                Some(piece::Kind::Literal(literal)) => value.push_str(literal),
                _ => return Err(format!("the environment variable {name} of a function may not depend on its task")),
            }
        }
        env.push((name.clone(), value));
    }
    env.sort_unstable();
    let by_thread = function.isolation() == Isolation::Thread;
    Ok(LaneKey { program, env, directory: group.run.base_directory().map(Path::to_owned), by_thread, shape })
}
