//! Outputs and logs of commands on workers that do not see their run's directory: who holds them, which of them the output store is
//! copying, and what follows when it has. A run that has such a thing ends only when all of it is copied or lost for good.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};
use scalable_core::ids::{GroupId, RunId, SessionId, TaskRef};
use scalable_core::messages::{Input, Stored};
use scalable_proto::v1;
use scalable_store::Holder;

use super::{GroupInfo, Reactor};
use crate::output_store::{Copy, CopyOutput, OutputStore, Told};
use crate::snapshot::OutputFigures;

/// Times that a copy is tried while its holder lives. After that the holder counts as one that does not have it.
const TRIES_MAX: u32 = 6;
/// Wait before the next try, times the number of tries.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Longest such wait.
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct Outputs {
    pub(super) store: OutputStore,
    /// Committed outputs that are or were on workers.
    held: FxHashMap<TaskRef, Held>,
    /// Copies that the store has not finished.
    copies: FxHashMap<(TaskRef, u32), Pending>,
    /// Those of them that are asked for again, by when.
    again: BTreeSet<(Instant, TaskRef, u32)>,
    /// How many of them were made on each worker.
    uncopied: FxHashMap<SessionId, u32>,
    runs: FxHashMap<RunId, RunOutputs>,
    /// Runs of which it is to be looked whether they can end.
    touched: FxHashSet<RunId>,
    /// What the machine is to be told when the outputs of its last step are dealt with.
    deferred: Vec<Input>,
}

/// A task's committed outputs.
struct Held {
    attempt: u32,
    holders: Vec<SessionId>,
    /// The store has them.
    stored: bool,
    /// The machine needs them no more; holders are told when the copy is there.
    dropping: bool,
}

/// A copy on its way.
struct Pending {
    copy: Box<Copy>,
    /// On whose worker it was made.
    session: SessionId,
    tries: u32,
    /// Not with the store: asked for again then.
    again_at: Option<Instant>,
    waits: bool,
}

impl Pending {
    /// It has outputs; else only logs.
    fn has_outputs(&self) -> bool {
        !self.copy.outputs.is_empty()
    }
}

/// What there is to say of a run.
#[derive(Default)]
struct RunOutputs {
    pending: u32,
    /// Copies that wait for room.
    waiting: u32,
    waiting_bytes: u64,
    lost: u32,
    /// Why the first of the lost ones was.
    first_lost: String,
    /// What this machine's disk has said since the last copy that came about.
    trouble: String,
    /// Since when nothing but room is missing, and none has come.
    stuck_since: Option<Instant>,
}

impl RunOutputs {
    /// A copy of so many bytes waits for room no more.
    fn waits_no_more(&mut self, bytes: u64) {
        self.waiting = self.waiting.saturating_sub(1);
        self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes);
        self.stuck_since = None;
    }
}

impl Outputs {
    pub(super) fn new(store: OutputStore) -> Self {
        Outputs {
            store,
            held: FxHashMap::default(),
            copies: FxHashMap::default(),
            again: BTreeSet::new(),
            uncopied: FxHashMap::default(),
            runs: FxHashMap::default(),
            touched: FxHashSet::default(),
            deferred: Vec::new(),
        }
    }

    /// Something of the run is over: it is looked whether all of it is.
    pub(super) fn touch(&mut self, run: RunId) {
        self.touched.insert(run);
    }

    /// Who holds a task's outputs, and whether the store has them.
    fn holders(&self, task: TaskRef) -> (&[SessionId], bool) {
        self.held.get(&task).map_or((&[], false), |held| (&held.holders, held.stored))
    }

    /// Copies of this worker that are not there yet: it should neither be called idle nor be removed.
    pub(super) fn uncopied(&self, session: SessionId) -> u32 {
        self.uncopied.get(&session).copied().unwrap_or(0)
    }
}

impl Reactor {
    /// An attempt's outputs are on its worker: they are copied, and the machine hears when they cannot be lost any more.
    pub(super) fn outputs_committed(
        &mut self,
        group: &GroupInfo,
        task: TaskRef,
        attempt: u32,
        session: SessionId,
        report: &v1::AttemptReport,
    ) {
        let mut outputs = Vec::new();
        let held = report.outputs.iter().filter(|output| output.written && output.held);
        let held: Vec<&v1::OutputReport> = held.collect();
        for output in held.iter().filter(|output| !group.discards(&output.name)) {
            outputs.push(CopyOutput {
                name: output.name.clone(),
                kind: group.output_kind(&output.name),
                digest: output.digest.to_vec(),
                size: output.size,
                executable: output.executable,
                manifest: output.manifest.to_vec(),
                manifest_size: output.manifest_size,
            });
        }
        if !held.is_empty() {
            self.outputs.held.insert(task, Held { attempt, holders: vec![session], stored: false, dropping: false });
        }
        if outputs.is_empty() && report.logs.is_empty() {
            if !held.is_empty() {
                // Only for later tasks: lineage protects them.
                self.let_go_of(group.run, task);
            }
            return;
        }
        let only_logs = outputs.is_empty();
        self.begin_copy(group, task, attempt, session, outputs, report.logs.clone());
        if only_logs && !held.is_empty() {
            self.let_go_of(group.run, task);
        }
    }

    /// Nobody but tasks reads these outputs where they are. In an open run the client may.
    fn let_go_of(&mut self, run: RunId, task: TaskRef) {
        if self.runs.get(&run).is_some_and(|run| !run.spec.open) {
            self.outputs.deferred.push(Input::Release { group: task.group, first: task.index, count: 1 });
        }
    }

    /// What an attempt that came to nothing has said.
    pub(super) fn logs_held(
        &mut self,
        group: &GroupInfo,
        task: TaskRef,
        attempt: u32,
        session: SessionId,
        report: &v1::AttemptReport,
    ) {
        if !report.logs.is_empty() {
            self.begin_copy(group, task, attempt, session, Vec::new(), report.logs.clone());
        }
    }

    fn begin_copy(
        &mut self,
        group: &GroupInfo,
        task: TaskRef,
        attempt: u32,
        session: SessionId,
        outputs: Vec<CopyOutput>,
        logs: Vec<v1::LogReport>,
    ) {
        if self.runs.get(&group.run).is_none_or(|run| run.end.is_some()) {
            // Its directory is not written to any more: the worker need not keep it.
            if let Some(worker) = self.workers.get_mut(&session) {
                worker.attempt_stored(task, attempt);
            }
            return;
        }
        let mut published = std::path::PathBuf::from("outputs").join(&group.spec.name);
        let element = group.parameters(task.index);
        if !element.is_empty() {
            published.push(element);
        }
        let holders = self.copy_holders(task, session);
        let name = group.spec.name.clone();
        let copy = Box::new(Copy { run: group.run, task, attempt, group: name, published, outputs, logs, holders });
        let pending = Pending { copy: copy.clone(), session, tries: 0, again_at: None, waits: false };
        if self.outputs.copies.insert((task, attempt), pending).is_none() {
            self.outputs.runs.entry(group.run).or_default().pending += 1;
            *self.outputs.uncopied.entry(session).or_default() += 1;
        }
        self.outputs.store.copy(copy);
    }

    fn copy_holders(&self, task: TaskRef, session: SessionId) -> Vec<Holder> {
        let known = self.outputs.held.get(&task).map_or(&[][..], |held| &held.holders);
        let mut sessions: Vec<SessionId> = vec![session];
        sessions.extend(known.iter().copied().filter(|holder| *holder != session));
        let holder = |session: &SessionId| {
            let peer = self.peers.get(*session)?;
            // The scheduler's host is another one, or it would see the run's directory too.
            Some(Holder { address: peer.address.clone(), host: peer.host.clone() })
        };
        sessions.iter().filter_map(holder).collect()
    }

    /// The store has said something.
    pub(super) fn outputs_told(&mut self, told: Told) {
        match told {
            Told::Copied { task, attempt } => self.copied(task, attempt),
            Told::Waits { task, attempt } => {
                if let Some(pending) = self.outputs.copies.get_mut(&(task, attempt))
                    && !pending.waits
                {
                    pending.waits = true;
                    let (run, bytes) = (pending.copy.run, pending.copy.bytes());
                    let of_run = self.outputs.runs.entry(run).or_default();
                    of_run.waiting += 1;
                    of_run.waiting_bytes = of_run.waiting_bytes.saturating_add(bytes);
                    if of_run.waiting == 1 {
                        tracing::warn!(run = run.0, bytes, "the output store is full: copying stops until there is room");
                    }
                    self.mark_dirty(run);
                    self.outputs.touch(run);
                }
            }
            Told::Failed { task, attempt, why, missing } => self.copy_failed(task, attempt, why, missing),
        }
    }

    fn mark_dirty(&mut self, run: RunId) {
        if let Some(run) = self.runs.get_mut(&run) {
            run.dirty = true;
        }
    }

    /// A copy is no longer waited for.
    fn copy_over(&mut self, task: TaskRef, attempt: u32) -> Option<Pending> {
        let pending = self.outputs.copies.remove(&(task, attempt))?;
        let run = pending.copy.run;
        if let Some(count) = self.outputs.uncopied.get_mut(&pending.session) {
            *count -= 1;
            if *count == 0 {
                self.outputs.uncopied.remove(&pending.session);
            }
        }
        if let Some(at) = pending.again_at {
            self.outputs.again.remove(&(at, task, attempt));
        }
        if let Some(of_run) = self.outputs.runs.get_mut(&run) {
            of_run.pending = of_run.pending.saturating_sub(1);
            if pending.waits {
                of_run.waits_no_more(pending.copy.bytes());
            }
        }
        if let Some(worker) = self.workers.get_mut(&pending.session) {
            worker.attempt_stored(task, attempt);
        }
        self.mark_dirty(run);
        self.outputs.touch(run);
        Some(pending)
    }

    fn copied(&mut self, task: TaskRef, attempt: u32) {
        let Some(pending) = self.copy_over(task, attempt) else { return };
        if let Some(of_run) = self.outputs.runs.get_mut(&pending.copy.run) {
            of_run.trouble.clear();
        }
        if !pending.has_outputs() {
            return;
        }
        let Some(held) = self.outputs.held.get_mut(&task).filter(|held| held.attempt == attempt) else { return };
        held.stored = true;
        let dropped = if held.dropping { std::mem::take(&mut held.holders) } else { Vec::new() };
        for session in dropped {
            self.drop_copy(session, task);
        }
        let open = |group: &GroupInfo| self.runs.get(&group.run).is_some_and(|run| run.spec.open);
        let of = self.groups.get(&task.group).cloned();
        let Some(group) = of.filter(|group| !open(group) || self.machine.stored(task) != Stored::None) else {
            // It was let go of before it was copied; its group may be forgotten by now.
            self.outputs_released(task.group, task.index, 1);
            return;
        };
        // What is not to be kept is only on workers: it stays what can be lost and made again.
        let only_copied = !group.has_discarded();
        if only_copied {
            self.step(Input::ObjectSecured { task, attempt });
        }
        self.let_go_of(group.run, task);
    }

    fn copy_failed(&mut self, task: TaskRef, attempt: u32, why: String, missing: bool) {
        let Some(pending) = self.outputs.copies.get_mut(&(task, attempt)) else { return };
        pending.tries += 1;
        let (session, tries, outputs) = (pending.session, pending.tries, pending.has_outputs());
        let (run, bytes) = (pending.copy.run, pending.copy.bytes());
        let holder = pending.copy.holders.first().map(|holder| holder.address.clone());
        let again_at = Instant::now() + (AGAIN_AFTER * tries).min(AGAIN_AFTER_MAX);
        pending.again_at = Some(again_at);
        let had_room = std::mem::take(&mut pending.waits);
        self.outputs.again.insert((again_at, task, attempt));
        if had_room && let Some(of_run) = self.outputs.runs.get_mut(&run) {
            of_run.waits_no_more(bytes);
        }
        tracing::warn!(group = task.group.0, index = task.index, attempt, tries, %why, "an output could not be copied yet");
        let lives = self.workers.get(&session).is_some_and(|worker| !worker.closed);
        // A worker that has begun a new session keeps the logs of the old one for a while.
        let answers = lives || holder.is_some_and(|address| self.peers.serves(&address));
        if !missing {
            // This machine's disk: it is tried until there is room, and said why.
            if let Some(of_run) = self.outputs.runs.get_mut(&run) {
                of_run.trouble = why;
            }
            return;
        }
        if !outputs {
            if !answers || tries >= TRIES_MAX {
                self.copy_lost(task, attempt, &why);
            }
            return;
        }
        if lives && tries < TRIES_MAX {
            return;
        }
        if lives {
            // It answers, and what it has is not what it reported.
            self.step(Input::ObjectMissing { session, task });
            if let Some(held) = self.outputs.held.get_mut(&task) {
                held.holders.retain(|holder| *holder != session);
            }
        }
        self.source_gone(task, attempt, &why);
    }

    fn copy_lost(&mut self, task: TaskRef, attempt: u32, why: &str) {
        if let Some(pending) = self.copy_over(task, attempt) {
            let of_run = self.outputs.runs.entry(pending.copy.run).or_default();
            if pending.has_outputs() {
                of_run.lost += 1;
                if of_run.lost == 1 {
                    why.clone_into(&mut of_run.first_lost);
                }
            } else {
                let (group, index) = (&pending.copy.group, task.index);
                tracing::warn!(%group, index, attempt, %why, "what an attempt has said is lost");
            }
        }
    }

    /// Copies whose time has come again.
    pub(super) fn retry_copies(&mut self) {
        let now = Instant::now();
        let stuck = self.outputs.runs.iter().filter(|(_, of_run)| of_run.stuck_since.is_some()).map(|(run, _)| *run);
        let stuck: Vec<RunId> = stuck.collect();
        self.outputs.touched.extend(stuck);
        while self.outputs.again.first().is_some_and(|(at, ..)| *at <= now) {
            let Some((_, task, attempt)) = self.outputs.again.pop_first() else { break };
            let key = (task, attempt);
            let Some(session) = self.outputs.copies.get(&key).map(|pending| pending.session) else { continue };
            let holders = self.copy_holders(key.0, session);
            if let Some(pending) = self.outputs.copies.get_mut(&key) {
                pending.again_at = None;
                // Of a session that is over it is tried where its worker was.
                if !holders.is_empty() {
                    pending.copy.holders = holders;
                }
                self.outputs.store.copy(pending.copy.clone());
            }
        }
    }

    /// A worker is gone, and what it had with it.
    pub(super) fn outputs_left(&mut self, session: SessionId) {
        for held in self.outputs.held.values_mut() {
            held.holders.retain(|holder| *holder != session);
        }
        // What is on its way from there fails by itself, or comes whole. What was to be asked for later is not there any more, but for
        // logs, which nobody makes again: they are asked for once more.
        let later = |(_, pending): &(&(TaskRef, u32), &Pending)| {
            let again = pending.again_at.is_some() && pending.has_outputs();
            pending.session == session && (pending.waits || again)
        };
        let later: FxHashSet<(TaskRef, u32)> = self.outputs.copies.iter().filter(later).map(|(key, _)| *key).collect();
        self.outputs.store.give_up(&later);
        for (task, attempt) in later {
            self.source_gone(task, attempt, "its worker was lost before it was copied");
        }
    }

    /// What was to be copied is on no worker any more.
    fn source_gone(&mut self, task: TaskRef, attempt: u32, why: &str) {
        let outputs = self.outputs.copies.get(&(task, attempt)).is_some_and(|pending| pending.has_outputs());
        match self.machine.committed_attempt(task) {
            // Another attempt makes it, and is copied then. Until that commits the run is not over.
            committed if outputs && committed != Some(attempt) => drop(self.copy_over(task, attempt)),
            // Nobody makes it again: logs, or its run is being cancelled.
            _ => self.copy_lost(task, attempt, why),
        }
    }

    /// Elements are over without a result: what an earlier attempt of theirs had is not waited for.
    pub(super) fn outputs_given_up(&mut self, group: GroupId, first: u32, count: u32) {
        if self.outputs.copies.is_empty() {
            return;
        }
        let range = first..first.saturating_add(count);
        let mut gone: FxHashSet<(TaskRef, u32)> = if (count as usize) < self.outputs.copies.len() {
            let tasks = range.map(|index| TaskRef { group, index });
            tasks.filter_map(|task| Some((task, self.outputs.held.get(&task)?.attempt))).collect()
        } else {
            let of = |(task, _): &&(TaskRef, u32)| task.group == group && range.contains(&task.index);
            self.outputs.copies.keys().filter(of).copied().collect()
        };
        gone.retain(|key| self.outputs.copies.get(key).is_some_and(|pending| pending.has_outputs()));
        self.outputs.store.give_up(&gone);
        for (task, attempt) in gone {
            self.copy_lost(task, attempt, "its worker was lost before it was copied, and it is not made again");
        }
    }

    /// The machine needs a worker's copy no more. True when that is dealt with here.
    pub(super) fn drop_held(&mut self, session: SessionId, task: TaskRef) -> bool {
        let Some(held) = self.outputs.held.get_mut(&task) else { return false };
        let copying = self.outputs.copies.contains_key(&(task, held.attempt));
        if !held.holders.contains(&session) {
            return false;
        }
        if copying {
            held.dropping = true;
            return true;
        }
        held.holders.retain(|holder| *holder != session);
        false
    }

    /// Nobody reads these elements any more: workers may let go of what the store has.
    pub(super) fn outputs_released(&mut self, group: GroupId, first: u32, count: u32) {
        if self.outputs.held.is_empty() {
            return;
        }
        for index in first..first.saturating_add(count) {
            let task = TaskRef { group, index };
            let copying = |held: &Held| !held.stored && self.outputs.copies.contains_key(&(task, held.attempt));
            if self.outputs.held.get(&task).is_none_or(copying) {
                continue;
            }
            let held = self.outputs.held.remove(&task);
            for session in held.into_iter().flat_map(|held| held.holders) {
                self.drop_copy(session, task);
            }
        }
    }

    fn drop_copy(&mut self, session: SessionId, task: TaskRef) {
        if let Some(worker) = self.workers.get_mut(&session) {
            worker.drop_object(task);
        }
    }

    /// Tells the machine what has gathered, and ends runs that are over and whose outputs are where they belong. True when something
    /// may follow from that.
    pub(super) fn close_runs(&mut self) -> bool {
        let deferred = std::mem::take(&mut self.outputs.deferred);
        let mut closed = !deferred.is_empty();
        for input in deferred {
            self.step(input);
        }
        self.touched = None;
        if self.outputs.touched.is_empty() {
            return closed;
        }
        for run in std::mem::take(&mut self.outputs.touched) {
            let open = self.runs.get(&run).is_some_and(|info| !info.spec.open && info.end.is_none());
            let over = open && self.machine.only_open(run);
            let pending = self.outputs.runs.get(&run).map_or(0, |of_run| of_run.pending);
            // Nobody waits for room for ever.
            let given_up = match self.outputs.runs.get_mut(&run) {
                Some(of_run) if over && of_run.waiting > 0 && of_run.waiting == pending => {
                    of_run.stuck_since.get_or_insert_with(Instant::now).elapsed() >= self.results_ttl
                }
                Some(of_run) => {
                    of_run.stuck_since = None;
                    false
                }
                None => false,
            };
            if over && (pending == 0 || given_up) {
                self.step(Input::CloseRun { run });
                closed = true;
            }
        }
        closed
    }

    /// What a run waits for that is not a task, in one sentence; empty when nothing.
    pub(super) fn outputs_note(&self, run: RunId) -> String {
        let Some(of_run) = self.outputs.runs.get(&run) else { return String::new() };
        if of_run.waiting > 0 {
            let usage = self.outputs.store.usage();
            return format!(
                "limited: storage: the output store has {} of at most {} bytes, and {} of this run's outputs ({} bytes) wait on their \
                 workers; nothing is lost: give the scheduler more (--store-limit, or scheduler_storage of a Kubernetes target), or cancel the run",
                usage.bytes, usage.limit, of_run.waiting, of_run.waiting_bytes
            );
        }
        if of_run.lost > 0 {
            return format!("{} outputs could not be copied: {}", of_run.lost, of_run.first_lost);
        }
        if of_run.pending > 0 && self.machine.only_open(run) {
            let why = if of_run.trouble.is_empty() { String::new() } else { format!("; {}", of_run.trouble) };
            return format!("every task is over; {} outputs are being copied{why}", of_run.pending);
        }
        String::new()
    }

    pub(super) fn output_figures(&self) -> OutputFigures {
        let (usage, moved) = (self.outputs.store.usage(), self.outputs.store.metrics());
        OutputFigures {
            stored_bytes: usage.bytes,
            waiting: usage.waiting,
            copied_bytes: moved.bytes_copied,
            shared_bytes: moved.bytes_shared,
        }
    }

    /// Why a task's outputs are not in the run's directory yet; nothing when they are.
    pub(super) fn uncopied_because(&self, run: RunId, task: TaskRef) -> Option<String> {
        let (_, pending) = self.outputs.copies.iter().find(|((of, _), pending)| *of == task && pending.has_outputs())?;
        let holder = self.worker_name(pending.session);
        let bytes = pending.copy.bytes();
        Some(match pending.waits {
            true => format!("its outputs ({bytes} bytes) wait on worker {holder}: {}", self.outputs_note(run)),
            false if pending.tries > 0 => {
                format!("its outputs ({bytes} bytes) are on worker {holder} and could not be copied {} times yet", pending.tries)
            }
            false => format!("its outputs ({bytes} bytes) are being copied from worker {holder}"),
        })
    }

    /// The run is over: nothing is known of its outputs any more but where they lie.
    pub(super) fn outputs_ended(&mut self, run: RunId) {
        let groups: FxHashSet<GroupId> = self.runs.get(&run).into_iter().flat_map(|run| run.group_ids()).collect();
        let left: Vec<(TaskRef, u32)> =
            self.outputs.copies.keys().filter(|(task, _)| groups.contains(&task.group)).copied().collect();
        self.outputs.store.end(run);
        for (task, attempt) in left {
            self.copy_lost(task, attempt, "the run was cancelled before it was copied");
        }
        self.outputs.held.retain(|task, _| !groups.contains(&task.group));
    }

    /// An output that was lost is made again: the committed record stays, and a difference is said.
    pub(super) fn note_difference(&self, group: &GroupInfo, task: TaskRef, token: u32) {
        let Some(super::Report::Full(report)) = self.reports.get(token as usize) else { return };
        let Some(run) = self.runs.get(&group.run) else { return };
        for output in report.outputs.iter().filter(|output| output.written) {
            let before = group.output_ordinal(&output.name).and_then(|ordinal| run.object(task, ordinal));
            if before.is_some_and(|before| before.written && before.digest != output.digest) {
                let task = format!("{}[{}]", group.spec.name, task.index);
                tracing::warn!(run = %run.spec.name, %task, output = %output.name, "nondeterministic: made again it is another content");
            }
        }
    }

    /// A run is not known any more: what the store has of it goes too. On a thread of its own, because that may be much.
    pub(super) fn forget_outputs(&mut self, run: RunId) {
        self.outputs.runs.remove(&run);
        let store = self.outputs.store.clone();
        let forgotten = std::thread::Builder::new().name("forget".to_owned()).spawn(move || store.forget(run));
        if let Err(error) = forgotten {
            tracing::warn!(%error, "what was fetched stays on the disk");
        }
    }

    /// Where an attempt that reads a command's output finds it, beside its digest.
    pub(super) fn locate(&self, task: TaskRef, object: &mut v1::ObjectRef) -> Vec<v1::AnnouncePeer> {
        let (holders, stored) = self.outputs.holders(task);
        let peers: Vec<v1::AnnouncePeer> = holders.iter().filter_map(|holder| self.peers.get(*holder)).cloned().collect();
        object.holders = peers.iter().map(|peer| peer.peer).collect();
        object.stored = stored;
        peers
    }
}
