//! What goes into the scheduler machine and what comes out. Both are plain records that can be written down and replayed.

use crate::ids::{GroupId, Handle, Micros, RunId, SessionId, ShapeId, TaskRef};
use crate::resources::Resources;
use crate::spec::{GroupSpec, RunSpec};

/// One of a peer's two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Connection {
    /// Registration, heartbeat, cancel, retract, acknowledgements.
    Control,
    /// Batches.
    Data,
}

/// A worker as it registers.
#[derive(Clone, Debug)]
pub struct WorkerSpec {
    /// Unique among live workers.
    pub name: String,
    /// The pool it belongs to.
    pub pool: String,
    /// Components it serves; `"*"` is every one.
    pub components: Vec<String>,
    /// What it has.
    pub capacity: Resources,
}

/// Everything that can happen to the machine.
#[derive(Clone, Debug)]
pub enum Input {
    /// A whole run. Answered by [`Output::Submitted`] or [`Output::Refused`].
    Submit(Box<RunSpec>),
    /// A new session; its control connection is attached. It gets work once data is attached too.
    Join {
        /// New, never used before.
        session: SessionId,
        /// Who it is.
        worker: WorkerSpec,
    },
    /// A connection of a session was attached (again).
    Attach {
        /// Whose.
        session: SessionId,
        /// Which.
        connection: Connection,
    },
    /// A connection of a session was reset or closed.
    Reset {
        /// Whose.
        session: SessionId,
        /// Which.
        connection: Connection,
    },
    /// Any frame came: the lease is renewed.
    Frame {
        /// Whose.
        session: SessionId,
    },
    /// What happened on a worker, in order.
    Events {
        /// Whose.
        session: SessionId,
        /// In the order it happened.
        events: Vec<WorkerEvent>,
    },
    /// Answer to [`Output::Retract`]: what was really given back.
    RetractReply {
        /// Whose.
        session: SessionId,
        /// Never started and never will be.
        given_back: Vec<Handle>,
        /// Started, or unknown to the worker because it had ended.
        kept: Vec<Handle>,
    },
    /// The worker drains: no new work; what it has not started is handed back as `Preempted` or by retract.
    Draining {
        /// Whose.
        session: SessionId,
    },
    /// The scheduler's side wants the worker drained.
    Drain {
        /// Whose.
        session: SessionId,
    },
    /// The worker's memory is full of results and its disk takes no more of them: it starts nothing until that is over.
    Full {
        /// Whose.
        session: SessionId,
        /// Whether it is so now.
        full: bool,
    },
    /// The worker said goodbye with nothing left on it; or the server closed the session for a violation of the protocol.
    Left {
        /// Whose.
        session: SessionId,
    },
    /// The provider confirms that the worker of this name is dead.
    Died {
        /// The worker's name.
        worker: String,
        /// What it died of.
        cause: DeathCause,
        /// The platform's own words.
        reason: String,
    },
    /// The platform takes the worker of this name away, or has lost sight of its machine. It may still work for a while, and its
    /// death may never be confirmed.
    BeingTaken {
        /// The worker's name.
        worker: String,
        /// The platform's own words.
        reason: String,
    },
    /// What executing attempts take of their worker's memory. It replaces what the worker said before.
    MemoryShares {
        /// Whose.
        session: SessionId,
        /// Attempts and what each takes, bytes; those that take most above their requests, at most
        /// [`SHARES_MAX`](crate::scheduler::SHARES_MAX).
        shares: Vec<(Handle, u64)>,
    },
    /// A run, group or task is to end.
    Cancel {
        /// The run.
        run: RunId,
        /// Only this group.
        group: Option<GroupId>,
        /// Only this element of it.
        index: Option<u32>,
    },
    /// What the provider says of a pool: workers on their way and why it has no more. Used by `explain`.
    Pool {
        /// The pool.
        pool: String,
        /// Components its workers (will) serve.
        components: Vec<String>,
        /// What one of its workers has.
        capacity: Resources,
        /// It scales with its work: its fullest worker gets work first, so that others become idle and can be let go.
        scaled: bool,
        /// Created and not registered yet.
        starting: u32,
        /// The platform's words, or empty.
        note: String,
    },
    /// The next group of an open run. Answered by [`Output::GroupAdded`] or [`Output::Rejected`].
    AddGroup {
        /// The run.
        run: RunId,
        /// How many groups the run had.
        ordinal: u32,
        /// As at submit.
        spec: Box<GroupSpec>,
    },
    /// Elements of a growing group. Only a refusal is answered, by [`Output::Rejected`].
    Append {
        /// The run.
        run: RunId,
        /// The group.
        group: GroupId,
        /// How many elements the group had.
        first: u32,
        /// How many follow.
        count: u32,
        /// What they wait for.
        edges: Vec<Edge>,
        /// Nothing follows: the group's length is known.
        last: bool,
    },
    /// Nothing follows: the open run ends when its tasks are over. Growing groups have their lengths.
    CloseRun {
        /// The run.
        run: RunId,
    },
    /// The client has no reference on these elements' results any more, neither to read them nor as inputs of what it has yet to
    /// append. They may exist already or not, be over or not.
    Release {
        /// The group.
        group: GroupId,
        /// First element.
        first: u32,
        /// How many.
        count: u32,
    },
    /// Nothing of the run is dispatched while it is paused: its client does not read its results.
    Pause {
        /// The run.
        run: RunId,
        /// From here on.
        paused: bool,
    },
    /// The worker has fetched a task's object for what it executes and holds a copy of it too, for the time being.
    ObjectCopied {
        /// Whose.
        session: SessionId,
        /// The task whose result it is.
        task: TaskRef,
    },
    /// These workers are to be emptied, in the order in which they are to leave: others fetch what nobody else keeps, see
    /// [`Output::Fetch`]. To be said again, at least each second, as long as that is wanted.
    MoveObjects {
        /// Whose; sessions that are over are passed over.
        sessions: Vec<SessionId>,
    },
    /// The worker keeps a task's object, as it was asked to: it does not drop it before it is told to.
    ObjectKept {
        /// Whose.
        session: SessionId,
        /// The task whose result it is.
        task: TaskRef,
    },
    /// The worker could not get a task's object that it was asked to keep.
    ObjectNotKept {
        /// Whose.
        session: SessionId,
        /// The task whose result it is.
        task: TaskRef,
    },
    /// A worker has not what it is said to hold.
    ObjectMissing {
        /// Whose copy.
        session: SessionId,
        /// The task whose result it is.
        task: TaskRef,
    },
    /// The result of a task is where it cannot be lost: no worker needs to hold it any more. What still has a copy is not asked to
    /// drop it; whoever said this does that.
    ObjectSecured {
        /// The task whose result it is.
        task: TaskRef,
        /// The attempt whose result was secured: another one's is not.
        attempt: u32,
    },
    /// Forget a run that has ended.
    Forget {
        /// The run.
        run: RunId,
    },
    /// Nothing but time has passed.
    Tick,
}

/// What a worker died of, as far as that says who is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeathCause {
    /// It failed or ended, and nobody says why: whatever executed is suspect.
    Failed,
    /// The platform took it: its machine is gone or was needed for something else, or somebody removed it. No task is to blame.
    Taken,
    /// Everything on it together used more memory than it may. One task is to blame.
    OutOfMemory,
}

/// What an appended element waits for: any task of its run that exists, of the same group one with a smaller index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// The element that waits.
    pub element: u32,
    /// The task it waits for, over already or not.
    pub upstream: TaskRef,
    /// Its result is read.
    pub data: bool,
}

/// Where an attempt's result is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stored {
    /// There is none, or it is nobody's business here (files of a run directory).
    #[default]
    None,
    /// It came with the report, so many bytes: it cannot be lost.
    Inline(u32),
    /// The worker keeps it, so many bytes: an object.
    Held(u64),
    /// The same as files of a run's directory, which only an attempt that reads them can be given: nobody else is asked to keep them.
    Files(u64),
}

/// Objects that an attempt could not get, and the sessions that were asked for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing(pub Vec<(TaskRef, SessionId)>);

/// Something that happened to an attempt on its worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerEvent {
    /// The row the dispatch named.
    pub handle: Handle,
    /// The attempt the dispatch named: a fence.
    pub attempt: u32,
    /// What.
    pub kind: EventKind,
}

/// Kinds of [`WorkerEvent`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It executes now.
    Started,
    /// It is over.
    Finished(Finish),
}

/// How an attempt ended, as far as decisions need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// What kind of end.
    pub class: OutcomeClass,
    /// Exit code, where it exited.
    pub exit_code: Option<i32>,
    /// True when a signal ended it.
    pub signalled: bool,
    /// Wall time of execution.
    pub wall: Micros,
    /// User and system time.
    pub cpu: Micros,
    /// Peak memory.
    pub peak_memory_bytes: u64,
    /// Length for groups open on this task.
    pub length: Option<u32>,
    /// The caller's mark for the report behind this, given back in the outputs.
    pub token: u32,
    /// Its result.
    pub result: Stored,
    /// With [`OutcomeClass::InputLost`]: which holders had not what they are said to hold. Boxed: nearly every end has none.
    pub missing: Option<Box<Missing>>,
}

/// How an attempt or a task ended. Names and numbers as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
#[allow(missing_docs)]
pub enum OutcomeClass {
    Succeeded = 1,
    AppError = 2,
    Timeout = 3,
    Oom = 4,
    MissingOutput = 5,
    InputChanged = 6,
    InfraStart = 7,
    Preempted = 8,
    Cancelled = 9,
    LostWorker = 10,
    Poison = 11,
    DependencyFailed = 12,
    BadOutput = 13,
    InputLost = 14,
    Rejected = 15,
}

impl OutcomeClass {
    /// The class's number on the wire.
    pub fn number(self) -> i32 {
        self as i32
    }

    /// The class as it is written in records and sentences: the wire's name in lower case.
    pub fn word(self) -> &'static str {
        match self {
            OutcomeClass::Succeeded => "succeeded",
            OutcomeClass::AppError => "app_error",
            OutcomeClass::Timeout => "timeout",
            OutcomeClass::Oom => "oom",
            OutcomeClass::MissingOutput => "missing_output",
            OutcomeClass::InputChanged => "input_changed",
            OutcomeClass::BadOutput => "bad_output",
            OutcomeClass::InfraStart => "infra_start",
            OutcomeClass::Preempted => "preempted",
            OutcomeClass::Cancelled => "cancelled",
            OutcomeClass::LostWorker => "lost_worker",
            OutcomeClass::Poison => "poison",
            OutcomeClass::DependencyFailed => "dependency_failed",
            OutcomeClass::InputLost => "input_lost",
            OutcomeClass::Rejected => "rejected",
        }
    }
}

/// Everything the machine wants done, in order. The caller flushes once per batch of inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// The run is in. `known` when the client key had been seen before.
    Submitted {
        /// The client's key.
        client_key: [u8; 16],
        /// Its id.
        run: RunId,
        /// Its groups are `first_group ..` in order.
        first_group: GroupId,
        /// True for a repetition.
        known: bool,
    },
    /// The run is not in; nothing has changed.
    Refused {
        /// The client's key.
        client_key: [u8; 16],
        /// A stable word, e.g. `E_TOO_MANY_TASKS`.
        code: &'static str,
        /// One sentence.
        message: String,
    },
    /// Run this.
    Dispatch {
        /// On whom.
        session: SessionId,
        /// What.
        dispatch: Dispatch,
    },
    /// Give these back if they have not started.
    Retract {
        /// Whom to ask.
        session: SessionId,
        /// Which rows.
        handles: Vec<Handle>,
    },
    /// End these, executing or not.
    CancelAttempts {
        /// Whom to tell.
        session: SessionId,
        /// Which rows.
        handles: Vec<Handle>,
    },
    /// Tell the worker to drain.
    DrainWorker {
        /// Whom.
        session: SessionId,
    },
    /// The session is over: close its connections with this reason.
    CloseSession {
        /// Which.
        session: SessionId,
        /// One sentence.
        reason: String,
    },
    /// An attempt started to execute.
    AttemptStarted {
        /// The task.
        task: TaskRef,
        /// The attempt.
        attempt: u32,
        /// Where.
        session: SessionId,
    },
    /// An attempt ended without committing.
    AttemptEnded {
        /// The task.
        task: TaskRef,
        /// The attempt.
        attempt: u32,
        /// Where it was.
        session: SessionId,
        /// How.
        class: OutcomeClass,
        /// The report's mark, where the worker sent one.
        token: Option<u32>,
        /// When it is tried again, or nothing when that was the last.
        retry_at: Option<Micros>,
        /// Why, one sentence, where no worker reported it and there is more to say than the class.
        why: Option<Box<str>>,
    },
    /// A result was committed: the only place where that happens.
    Committed {
        /// The task.
        task: TaskRef,
        /// The attempt whose result it is.
        attempt: u32,
        /// Where it ran.
        session: SessionId,
        /// The report's mark.
        token: u32,
    },
    /// A completion came too late or from the wrong session: its outputs are to be thrown away.
    Superseded {
        /// The report's mark.
        token: u32,
    },
    /// The task is over without success; follows the [`Output::AttemptEnded`] of its last attempt where there was one.
    TaskFailed {
        /// The task.
        task: TaskRef,
        /// Attempts it had.
        attempts: u32,
        /// Why.
        class: OutcomeClass,
    },
    /// These never ran because `root` failed.
    Skipped {
        /// Their group.
        group: GroupId,
        /// First element.
        first: u32,
        /// How many.
        count: u32,
        /// The failure it began with. Where a whole range was cancelled, the first element of that range.
        root: TaskRef,
    },
    /// These were cancelled: by request, or because the run had reached `max_failures`.
    Cancelled {
        /// Their group.
        group: GroupId,
        /// First element.
        first: u32,
        /// How many.
        count: u32,
    },
    /// A group that was open has a length now.
    LengthKnown {
        /// The group.
        group: GroupId,
        /// Its length.
        length: u32,
    },
    /// Answer to [`Input::AddGroup`].
    GroupAdded {
        /// The run.
        run: RunId,
        /// As asked.
        ordinal: u32,
        /// Its id.
        group: GroupId,
    },
    /// A group or elements that were refused. They exist and are over; what depends on them is skipped. `count` 0 is the group
    /// itself: everything that is appended to it is rejected too. A wrong ordinal and an unknown run make nothing exist.
    Rejected {
        /// The run.
        run: RunId,
        /// Ordinal of the group.
        ordinal: u32,
        /// First element.
        first: u32,
        /// How many.
        count: u32,
        /// A stable word, e.g. `E_TOO_MANY_TASKS`.
        code: &'static str,
        /// One sentence.
        message: String,
    },
    /// A result that was lost after its commit exists again. The committed record stays as it is.
    Restored {
        /// The task.
        task: TaskRef,
        /// The attempt whose result it is now.
        attempt: u32,
        /// Where it ran.
        session: SessionId,
        /// The report's mark.
        token: u32,
    },
    /// Nobody needs these any more, neither to read them nor to restore anything: arguments and inline results can go. Said once of
    /// each element of an open run, in ranges, at the end of a step.
    Released {
        /// The group.
        group: GroupId,
        /// First element.
        first: u32,
        /// How many.
        count: u32,
    },
    /// A group of an open run is not known any more: it is over, all of it was released, and nobody can want anything of it. Its counts
    /// are in [`RunView::forgotten`](crate::scheduler::RunView::forgotten); its id is not used again.
    GroupForgotten {
        /// The run.
        run: RunId,
        /// The group.
        group: GroupId,
    },
    /// The worker is to fetch a task's object from those who hold it and to keep it, because one of them is to leave. Answered by
    /// [`Input::ObjectKept`] or [`Input::ObjectNotKept`].
    Fetch {
        /// Who.
        session: SessionId,
        /// The task whose result it is.
        task: TaskRef,
        /// The attempt whose result it is.
        attempt: u32,
    },
    /// The worker may drop its copy of a task's result.
    DropObject {
        /// Who.
        session: SessionId,
        /// The task whose result it is.
        task: TaskRef,
    },
    /// The run is over.
    RunEnded {
        /// Which.
        run: RunId,
        /// How.
        end: RunEnd,
    },
    /// A worker's state changed.
    WorkerChanged {
        /// Its session.
        session: SessionId,
        /// From here on.
        state: WorkerState,
    },
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// Every task succeeded.
    Succeeded,
    /// At least one task failed.
    Failed,
    /// It was cancelled.
    Cancelled,
}

/// A task on its way to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispatch {
    /// Its row: comes back with every event.
    pub handle: Handle,
    /// The task.
    pub task: TaskRef,
    /// From 1, strictly increasing for a task.
    pub attempt: u32,
    /// What it takes, interned: see `Scheduler::shape`.
    pub shape: ShapeId,
    /// Longest it may execute; 0 is no limit.
    pub timeout: Micros,
    /// Strictly increasing over all dispatches of the epoch.
    pub fence: u64,
}

/// States of a worker; the table is in `scheduler/worker_table.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkerState {
    /// Registered; a connection is missing that it never had.
    Joining,
    /// Whole: both connections of the session are attached.
    Active,
    /// Silent for too long, or a connection was reset: no new work.
    Suspect,
    /// No new work; ends when nothing is left on it.
    Draining,
    /// Dead as far as the scheduler is concerned: its attempts are requeued, its messages are void.
    Lost,
    /// Said goodbye with nothing left on it.
    Gone,
}

/// Where outputs are collected.
pub type Outbox = Vec<Output>;
