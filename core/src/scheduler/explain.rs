//! Why a task is where it is: one true sentence with figures.
//!
//! Everything said is read from the state at that moment; nothing is guessed from history. Where several reasons hold, the one
//! that would still hold if the others were gone is named first.

use super::Scheduler;
use super::depend::UpstreamKind;
use super::group::{Closed, Failure, Group, Queue, Run};
use super::rows::{NIL, Place, Row};
use super::task_table::TaskState;
use super::worker_book::Worker;
use crate::ids::{GroupId, MILLISECOND, Micros, SECOND, TaskRef};
use crate::messages::{OutcomeClass, WorkerState};
use crate::resources::{ResourceName, Resources};
use crate::spec::GroupSpec;
use std::fmt::Write;

/// Answer to "why".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The state it is about.
    pub state: TaskState,
    /// One sentence, true now.
    pub sentence: String,
}

impl Scheduler {
    /// Says why a task is in its state; nothing when there is no such task. Any element of an open group is explained by what
    /// the group waits for. `now` is only used for how long something has lasted.
    pub fn explain(&self, task: TaskRef, now: Micros) -> Option<Explanation> {
        let group = self.groups.get(&task.group)?;
        let run = self.runs.get(&group.run)?;
        if group.length.is_none() {
            return Some(self.explain_open(group, run));
        }
        let state = self.task_state(task)?;
        let sentence = match state {
            TaskState::Waiting => self.explain_again(group, task.index) + &self.explain_waiting(group, task.index),
            TaskState::Ready => self.explain_ready(task, group, run),
            TaskState::Backoff => self.explain_backoff(group, task.index, now),
            TaskState::Assigned | TaskState::Running | TaskState::Retracting | TaskState::Cancelling => {
                let slot = group.dispatched.get(task.index)?;
                self.explain_dispatched(slot, now)
            }
            TaskState::Succeeded => self.explain_succeeded(group, task),
            TaskState::Failed => self.explain_failed(group, task.index),
            TaskState::Skipped => self.explain_skipped(group, task.index),
            TaskState::Cancelled => self.explain_cancelled(group, run, task.index),
        };
        Some(Explanation { state, sentence })
    }

    fn name_of(&self, task: TaskRef) -> String {
        let name = self.groups.get(&task.group).map_or("?", |group| group.name.as_str());
        format!("{name}[{}]", task.index)
    }

    fn state_word(&self, task: TaskRef) -> &'static str {
        self.task_state(task).map_or("unknown", TaskState::word)
    }

    fn explain_open(&self, group: &Group, run: &Run) -> Explanation {
        let from = group.length_from.map(|group| TaskRef { group, index: 0 });
        let (state, sentence) = match (group.closed, from) {
            (Some(Closed::Skipped(root)), _) if !self.groups.contains_key(&root.group) => {
                let root = "a task of an earlier group, which is over and forgotten";
                (TaskState::Skipped, format!("'{}' never had an element because of {root}", group.name))
            }
            (Some(Closed::Skipped(root)), _) => {
                let root = format!("{}, which {}", self.name_of(root), self.ended_how(root));
                (TaskState::Skipped, format!("'{}' never had an element because of {root}", group.name))
            }
            (Some(Closed::Refused), _) => (TaskState::Failed, format!("'{}' was refused", group.name)),
            (Some(Closed::Cancelled), _) => {
                (TaskState::Cancelled, format!("'{}' was cancelled before it had an element{}", group.name, why_cancelled(run)))
            }
            (None, Some(from)) => {
                let (name, state) = (self.name_of(from), self.state_word(from));
                (TaskState::Waiting, format!("'{}' is open: {name}, which is {state}, says how many elements it has", group.name))
            }
            (None, None) => (TaskState::Waiting, format!("'{}' is open", group.name)),
        };
        Explanation { state, sentence }
    }

    /// How a task that stands at the beginning of a skip has ended.
    fn ended_how(&self, task: TaskRef) -> String {
        let class = self.groups.get(&task.group).and_then(|group| group.detail(task.index)).and_then(|detail| detail.last);
        match (self.task_state(task), class) {
            (Some(TaskState::Failed), Some(failure)) => format!("failed with {}", failure.class.word()),
            (Some(TaskState::Failed), None) => "failed".to_owned(),
            (Some(TaskState::Cancelled), _) => "was cancelled".to_owned(),
            (Some(TaskState::Succeeded), _) => "succeeded without saying a length that fits".to_owned(),
            (Some(state), _) => format!("is {}", state.word()),
            (None, _) => "was cancelled before it existed".to_owned(),
        }
    }

    fn explain_waiting(&self, group: &Group, index: u32) -> String {
        for upstream in &group.upstreams {
            let Some(up) = self.groups.get(&upstream.group) else { continue };
            let over = |index: u32| {
                let trouble = up.failed.contains(index) || up.skipped.contains(index) || up.cancelled.contains(index);
                up.succeeded.contains(index) || group.always && trouble
            };
            if upstream.met || !upstream.is_gate() && upstream.satisfied.contains(index) {
                continue;
            }
            if matches!(upstream.kind, UpstreamKind::Whole) {
                return format!("it waits for all of {}", self.progress(upstream.group, up));
            }
            let named = upstream.upstream_of(index);
            let mut left = named.iter().copied().filter(|index| !over(*index));
            let Some(first) = left.next() else { continue };
            let task = TaskRef { group: upstream.group, index: first };
            let more = match left.count() {
                0 => String::new(),
                more => format!(", and for {more} more of the {} elements it needs", named.len()),
            };
            return format!("it waits for {}, which is {}{more}", self.name_of(task), self.state_word(task));
        }
        let head = if group.cells.is_empty() { NIL } else { group.cells.ups(index) };
        let mut unmet = self.edges.led_into(head).map(|at| self.edges.get(at)).filter(|edge| !edge.met).map(|edge| edge.up);
        // The one that is nearest to its end says most.
        let Some(first) = unmet.next() else { return "it waits for its dependencies".to_owned() };
        let more = match unmet.count() {
            0 => String::new(),
            more => format!(", and for {more} more"),
        };
        let again = self.groups.get(&first.group).is_some_and(|up| up.restoring.contains(first.index));
        let again = if again { ": its result was lost and is made again" } else { "" };
        format!("it waits for {}, which is {}{more}{again}", self.name_of(first), self.state_word(first))
    }

    /// What is to be said of a committed result.
    fn explain_succeeded(&self, group: &Group, task: TaskRef) -> String {
        let mut sentence = format!("attempt {} succeeded and its result is committed", group.attempts(task.index));
        let Some(object) = group.objects.get(&task.index) else { return sentence };
        let size = bytes(object.size);
        match &object.holders[..] {
            [] => {
                let _ = write!(sentence, "; nobody needs its {size} now, and it would be made again");
            }
            [only] => {
                let worker = self.worker(*only);
                let _ = write!(sentence, "; its {size} are on worker '{}' only", worker.name);
                match self.moves_to(task) {
                    Some(to) => {
                        let _ = write!(sentence, ", which is to leave: they are on their way to worker '{to}'");
                    }
                    None if worker.state == WorkerState::Draining => {
                        sentence.push_str(", which is draining: if they are still needed when it has gone they are made again");
                    }
                    None => {}
                }
            }
            holders => {
                let _ = write!(sentence, "; its {size} are on {} workers", holders.len());
            }
        }
        sentence
    }

    /// What made a task that was over begin again.
    fn explain_again(&self, group: &Group, index: u32) -> String {
        match group.restoring.contains(index) {
            true => "its result was lost with its last holder and is made again; ".to_owned(),
            false => String::new(),
        }
    }

    /// How far a group is, for somebody who waits for all of it.
    fn progress(&self, id: GroupId, group: &Group) -> String {
        let Some(length) = group.length else {
            return format!("'{}', which has no length yet", group.name);
        };
        let ended = length - group.unsettled;
        let on_workers = group.dispatched.len();
        let mut parts = String::new();
        for (count, word) in [
            (group.running, "executing"),
            (on_workers - group.running, "assigned"),
            (group.ready_len(), "ready"),
            (group.backoff.len(), "in backoff"),
            (group.waiting.len(), "waiting"),
        ] {
            if count > 0 {
                let comma = if parts.is_empty() { "" } else { ", " };
                let _ = write!(parts, "{comma}{count} {word}");
            }
        }
        let parts = if parts.is_empty() { format!("group {}", id.0) } else { parts };
        format!("'{}': {ended} of {length} are over, {parts}", group.name)
    }

    fn explain_ready(&self, task: TaskRef, group: &Group, run: &Run) -> String {
        let mut sentence = self.explain_again(group, task.index);
        if sentence.is_empty() {
            sentence = self.last_attempt(group, task.index);
        }
        if run.paused {
            sentence.push_str("nothing of its run is dispatched: its client does not read its results");
            return sentence;
        }
        for &(name, amount) in &group.totals {
            let (total, used) = (run.totals.custom(name), run.totals_used.custom(name));
            if total - used < amount {
                let name = self.names.name(name);
                let _ = write!(sentence, "it takes {amount} of the run's {total} '{name}', of which {used} are in use");
                return sentence;
            }
        }
        if group.max_parallel > 0 && group.dispatched.len() >= group.max_parallel {
            let count = group.dispatched.len();
            let _ =
                write!(sentence, "of '{}', {count} are on workers, and its max_parallel is {}", group.name, group.max_parallel);
            return sentence;
        }
        let Some(queue) = group.queues.iter().find(|queue| queue.ready.contains(task.index)) else { return sentence };
        sentence.push_str(&self.explain_no_place(group, queue));
        sentence
    }

    /// What came before, for a task that is to be tried again.
    fn last_attempt(&self, group: &Group, index: u32) -> String {
        let attempts = group.attempts(index);
        let detail = group.detail(index);
        let spared = detail.and_then(|detail| detail.spared).filter(|(attempt, _)| *attempt == attempts);
        if let Some(ended) = spared.and_then(|(_, session)| self.ended.find(session)) {
            return format!("attempt {attempts} was lost with worker '{}', uncharged: {}; ", ended.name, ended.reason);
        }
        match detail.and_then(|detail| detail.last) {
            Some(failure) if failure.attempt == attempts => format!("{}; ", self.describe_failure(&failure)),
            _ if attempts > 0 => format!("attempt {attempts} was taken back before it ended, uncharged; "),
            _ => String::new(),
        }
    }

    /// Why no worker that is there, and none that a pool may yet bring, can ever hold a task of a group; nothing where one can, or where
    /// no pool has said what its workers have: then workers join as they like.
    pub(super) fn never_fits(&self, totals: &[(ResourceName, u64)], group: &GroupSpec) -> Option<String> {
        let (name, component) = (&group.name, &group.component);
        let mut shape = group.resources.clone();
        shape.custom.retain(|(resource, _)| totals.iter().all(|(total, _)| total != resource));
        let fits = |capacity: &Resources| capacity.fits(&Resources::default(), &shape);
        let serves = |served: &[String]| served.iter().any(|served| served == "*" || served == component);
        let said: Vec<_> = self.pools.iter().filter_map(|(pool, state)| Some((pool, state.said.as_ref()?))).collect();
        // A pool without cpus has not said what its workers have.
        if said.is_empty() || said.iter().any(|(_, said)| said.capacity.milli_cpus == 0) {
            return None;
        }
        let id = self.components.find(component);
        let joined = |worker: &Worker| id.map_or(worker.serves_all, |id| worker.serves(id));
        if self.workers.iter().flatten().any(|worker| joined(worker) && fits(&worker.capacity)) {
            return None;
        }
        let serving: Vec<_> = said.iter().filter(|(_, said)| serves(&said.components)).collect();
        if serving.iter().any(|(_, said)| fits(&said.capacity)) {
            return None;
        }
        let needs = self.amounts(&shape);
        let largest = serving.iter().max_by_key(|(_, said)| (said.capacity.milli_cpus, said.capacity.memory_bytes));
        Some(match largest {
            Some((pool, said)) => format!(
                "a task of '{name}' needs {needs}, and a worker of pool '{pool}', the largest that serves component '{component}', has {}",
                self.amounts(&said.capacity)
            ),
            None => {
                let pools: Vec<String> = said.iter().map(|(pool, _)| format!("'{pool}'")).collect();
                format!("no pool serves component '{component}', for which '{name}' asks; there are: {}", pools.join(", "))
            }
        })
    }

    /// Why no worker takes the tasks of a queue.
    fn explain_no_place(&self, group: &Group, queue: &Queue) -> String {
        let component = self.components.get(group.component).map_or("?", String::as_str);
        let shape = self.shape_of(queue.key.shape);
        let needs = self.amounts(&shape);
        let serving: Vec<&Worker> = self.workers.iter().flatten().filter(|worker| worker.serves(group.component)).collect();
        if serving.is_empty() {
            let pool = self.pools.iter().find_map(|(name, pool)| {
                let said = pool.said.as_ref()?;
                said.components.iter().any(|served| served == "*" || served == component).then_some((name, pool.lost, said))
            });
            return match pool {
                None => format!("no worker and no pool serves component '{component}'"),
                Some((name, lost, said)) => {
                    let mut sentence =
                        format!("pool '{name}' serves component '{component}' and has no worker: {} starting", said.starting);
                    if lost > 0 {
                        let _ = write!(sentence, ", {lost} lost so far");
                    }
                    if !said.note.is_empty() {
                        let _ = write!(sentence, "; {}", said.note);
                    }
                    sentence
                }
            };
        }
        let count = serving.len();
        let large: Vec<&Worker> =
            serving.iter().copied().filter(|worker| worker.capacity.fits(&Resources::default(), &shape)).collect();
        if large.is_empty() {
            let largest = serving.iter().max_by_key(|worker| (worker.capacity.milli_cpus, worker.capacity.memory_bytes));
            let has = largest.map_or_else(String::new, |worker| self.amounts(&worker.capacity));
            return format!(
                "it needs {needs}, and the largest worker that serves component '{component}' (of {count}) has {has}"
            );
        }
        let active: Vec<&Worker> = large.iter().copied().filter(|worker| worker.state == WorkerState::Active).collect();
        let count = large.len();
        if active.is_empty() {
            let of = |state: WorkerState| large.iter().filter(|worker| worker.state == state).count();
            let (suspect, draining, joining) = (of(WorkerState::Suspect), of(WorkerState::Draining), of(WorkerState::Joining));
            return format!(
                "no worker that serves component '{component}' and is large enough takes work: of {count}, {suspect} suspect (silent, \
                 or a connection was lost), {draining} draining, {joining} joining"
            );
        }
        if active.iter().all(|worker| worker.full) {
            return format!(
                "every worker that serves component '{component}' and is large enough (of {count}) has its memory full of results and \
                 no room for more on its disk: another worker, or results that are let go of, would make room"
            );
        }
        if queue.key.alone {
            let suspicion = self.config.suspicion_alone;
            let kept = self.classes.get(&queue.key).and_then(|class| class.reserved).map(|slot| self.worker(slot));
            let kept = match kept {
                Some(worker) => {
                    format!("'{}' is kept free for it and still has {}", worker.name, plural(worker.rows(), "attempt"))
                }
                None => "no worker is free of others".to_owned(),
            };
            return format!("{suspicion} or more workers died executing it, so it runs alone next: {kept}");
        }
        let open: Vec<&Worker> = active.into_iter().filter(|worker| !worker.reserved && !worker.alone && !worker.full).collect();
        if open.is_empty() {
            return format!("every worker that serves component '{component}' (of {count}) is kept for a task that runs alone");
        }
        let free = |worker: &Worker| worker.capacity.milli_cpus.saturating_sub(worker.used.milli_cpus);
        let total_free: u64 = open.iter().map(|worker| free(worker)).sum();
        let total: u64 = open.iter().map(|worker| worker.capacity.milli_cpus).sum();
        let short = self.short_of(&open, &shape);
        format!(
            "it needs {needs}, and {short}: {} of {} are free on workers that serve component '{component}' and are large enough (of {})",
            cpus(total_free),
            plural(cpus(total), "cpu"),
            open.len()
        )
    }

    /// Which resource keeps a request off the workers: the first that is short on all of them, else that none has all at once.
    fn short_of(&self, workers: &[&Worker], shape: &Resources) -> String {
        let lacks = |only: Resources| workers.iter().all(|worker| !worker.capacity.fits(&worker.used, &only));
        if lacks(Resources { milli_cpus: shape.milli_cpus, ..Resources::default() }) {
            return "no worker has that many cpus free".to_owned();
        }
        if lacks(Resources { memory_bytes: shape.memory_bytes, ..Resources::default() }) {
            let free = |worker: &Worker| worker.capacity.memory_bytes.saturating_sub(worker.used.memory_bytes);
            let most = workers.iter().map(|worker| free(worker)).max().unwrap_or(0);
            return format!("no worker has more than {} of memory free", bytes(most));
        }
        if lacks(Resources { gpus: shape.gpus, ..Resources::default() }) {
            return "no worker has that many gpus free".to_owned();
        }
        for &(name, amount) in &shape.custom {
            if lacks(Resources { custom: [(name, amount)].into_iter().collect(), ..Resources::default() }) {
                return format!("no worker has {amount} '{}' free", self.names.name(name));
            }
        }
        if workers.iter().all(|worker| worker.rows() >= self.config.attempts_per_worker_max) {
            return format!("every worker has {} attempts, the most it takes", self.config.attempts_per_worker_max);
        }
        "no worker has all of it free at once".to_owned()
    }

    fn explain_backoff(&self, group: &Group, index: u32, now: Micros) -> String {
        let detail = group.detail(index);
        let until = detail.and_then(|detail| detail.backoff_until).unwrap_or(now);
        let failure = detail.and_then(|detail| detail.last).map(|failure| self.describe_failure(&failure)).unwrap_or_default();
        format!("{failure}; attempt {} follows in {}", group.attempts(index) + 1, duration(until.saturating_sub(now)))
    }

    fn explain_dispatched(&self, slot: u32, now: Micros) -> String {
        let row = self.rows.get(slot);
        let worker = self.worker(row.worker);
        let (attempt, name) = (row.attempt, &worker.name);
        let since = duration(now.saturating_sub(row.since));
        let mut sentence = match (row.state, row.place) {
            (TaskState::Running, _) => format!("attempt {attempt} runs on worker '{name}' since {since}"),
            (TaskState::Retracting, _) => format!(
                "attempt {attempt} was sent to worker '{name}' {since} ago and is being taken back: the worker has yet to say whether \
                 it had started"
            ),
            (TaskState::Cancelling, Place::Executing) => {
                format!("attempt {attempt} is being cancelled: it executes on worker '{name}' since {since}")
            }
            (TaskState::Cancelling, _) => {
                format!("attempt {attempt} is being cancelled on worker '{name}', where it had not started")
            }
            (_, Place::Prefetched) => self.explain_prefetched(row, worker, &since),
            _ => format!(
                "attempt {attempt} was sent to worker '{name}' {since} ago and has room there; it has not said that it started"
            ),
        };
        match worker.state {
            WorkerState::Suspect if worker.reset_at.is_some() => {
                let for_long = duration(now.saturating_sub(worker.reset_at.unwrap_or(now)));
                let _ = write!(sentence, "; the worker is suspect, a connection was lost {for_long} ago");
            }
            WorkerState::Suspect => {
                let for_long = duration(now.saturating_sub(worker.last_frame));
                let _ = write!(sentence, "; the worker is suspect, silent for {for_long}");
            }
            WorkerState::Draining => sentence.push_str("; the worker is draining"),
            _ => {}
        }
        sentence
    }

    fn explain_prefetched(&self, row: &Row, worker: &Worker, since: &str) -> String {
        let before = self.rows.on(worker.prefetched).take_while(|slot| self.rows.get(*slot).fence < row.fence).count();
        let queued = before as u32 + worker.admitted.len;
        format!(
            "attempt {} was sent ahead of room to worker '{}' {since} ago and is queued there: {queued} before it, {} executing",
            row.attempt, worker.name, worker.executing.len
        )
    }

    fn describe_failure(&self, failure: &Failure) -> String {
        let mut sentence = format!("attempt {} ended with {}", failure.attempt, failure.class.word());
        if let Some(code) = failure.exit_code.filter(|_| failure.class == OutcomeClass::AppError) {
            let _ = write!(sentence, " (exit code {code})");
        }
        if failure.with_worker
            && let Some(ended) = self.ended.find(failure.session)
        {
            let _ = write!(sentence, " (worker '{}' of pool '{}': {})", ended.name, ended.pool, ended.reason);
        }
        sentence
    }

    fn explain_failed(&self, group: &Group, index: u32) -> String {
        let attempts = group.attempts(index);
        let attempts = plural(attempts, "attempt");
        if group.rejected.contains(index) {
            return "it was refused when it was appended".to_owned();
        }
        if group.lost_for_good.contains(index) {
            let most = self.config.restores_max;
            return format!("it failed after {attempts}: its result was lost with its holders more than {most} times");
        }
        let Some(detail) = group.detail(index) else { return format!("it failed after {attempts}") };
        let Some(failure) = detail.last else { return format!("it failed after {attempts}") };
        let policy = &group.policy;
        let budget = match failure.class {
            OutcomeClass::Oom => format!("{} of {} retries for oom used", detail.oom, policy.oom_budget),
            OutcomeClass::LostWorker => format!("{} of {} retries for lost workers used", detail.lost, policy.lost_worker_budget),
            OutcomeClass::InfraStart => {
                format!("{} of {} retries for starts used", detail.infra_start, policy.infra_start_budget)
            }
            OutcomeClass::Poison => {
                format!("{} workers died executing it, the last one executing nothing else", detail.suspicion)
            }
            _ => format!("{} of {} retries used", detail.retries, policy.retries),
        };
        let what = self.describe_failure(&failure);
        format!("it failed after {attempts}: {what}; {budget}")
    }

    fn explain_skipped(&self, group: &Group, index: u32) -> String {
        // What it needs itself and did not get: known while the run lives, else the root alone is.
        for upstream in &group.upstreams {
            let Some(up) = self.groups.get(&upstream.group) else { continue };
            let needed = upstream.upstream_of(index);
            if let Some(from) = needed.into_iter().find(|from| up.cancelled.contains(*from)) {
                return format!("it never ran because {}[{from}], which it needs, was cancelled", up.name);
            }
        }
        match group.root_of(index) {
            Some(root) if self.task_state(root) == Some(TaskState::Cancelled) => {
                let name = self.groups.get(&root.group).map_or("?", |group| group.name.as_str());
                format!("it never ran because something of '{name}' that it needs was cancelled")
            }
            Some(root) if !self.groups.contains_key(&root.group) => {
                "it never ran because of a task of an earlier group, which is over and forgotten".to_owned()
            }
            Some(root) => format!("it never ran because of {}, which {}", self.name_of(root), self.ended_how(root)),
            None => "it never ran because something it needs failed".to_owned(),
        }
    }

    fn explain_cancelled(&self, group: &Group, run: &Run, index: u32) -> String {
        let when = match group.attempts(index) {
            0 => "before its first attempt".to_owned(),
            attempts => format!("after attempt {attempts} was sent to a worker"),
        };
        let failure = group.detail(index).and_then(|detail| detail.last);
        let failure = failure.map(|failure| format!("; {}", self.describe_failure(&failure))).unwrap_or_default();
        format!("it was cancelled {when}{}{failure}", why_cancelled(run))
    }

    /// A request or a capacity in words.
    fn amounts(&self, resources: &Resources) -> String {
        let mut words = plural(cpus(resources.milli_cpus), "cpu");
        match resources.memory_bytes {
            0 | Resources::MEMORY_UNACCOUNTED => {}
            memory => {
                let _ = write!(words, ", {} of memory", bytes(memory));
            }
        }
        if resources.gpus > 0 {
            let _ = write!(words, ", {}", plural(resources.gpus, "gpu"));
        }
        for &(name, amount) in &resources.custom {
            let _ = write!(words, ", {amount} '{}'", self.names.name(name));
        }
        words
    }
}

fn why_cancelled(run: &Run) -> String {
    if run.cancelling {
        "; the whole run was cancelled".to_owned()
    } else if run.stopped {
        let failures = plural(run.failures, "failure");
        format!("; its run has had {failures}, its max_failures is {}, and nothing of it starts any more", run.max_failures)
    } else {
        String::new()
    }
}

fn plural(count: impl std::fmt::Display, word: &str) -> String {
    let count = count.to_string();
    if count == "1" { format!("1 {word}") } else { format!("{count} {word}s") }
}

fn cpus(milli: u64) -> String {
    match milli % 1_000 {
        0 => format!("{}", milli / 1_000),
        rest => format!("{}.{}", milli / 1_000, format!("{rest:03}").trim_end_matches('0')),
    }
}

pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (count, 0);
    // Tenths are kept by dividing only while a whole unit is left.
    while value >= 10 * 1024 && unit + 1 < UNITS.len() {
        value /= 1024;
        unit += 1;
    }
    if value >= 1024 && unit + 1 < UNITS.len() {
        let tenths = value * 10 / 1024;
        return format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit + 1]);
    }
    format!("{value} {}", UNITS[unit])
}

fn duration(micros: Micros) -> String {
    match micros {
        0..MILLISECOND => format!("{micros} us"),
        MILLISECOND..SECOND => format!("{} ms", micros / MILLISECOND),
        _ if micros < 120 * SECOND => format!("{}.{} s", micros / SECOND, micros % SECOND / (SECOND / 10)),
        _ if micros < 7_200 * SECOND => format!("{} min", micros / (60 * SECOND)),
        _ => format!("{} h", micros / (3_600 * SECOND)),
    }
}
