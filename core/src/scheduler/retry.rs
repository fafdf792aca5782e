//! What happens after an attempt ended badly: again now, again later, or never. Budgets are kept by class and by task.

use super::Scheduler;
use super::depend::End;
use super::group::{Detail, Failure};
use super::mutation::Mutation;
use super::restore::Inputs;
use super::rows::Place;
use super::task_table::{TaskEvent, TaskState};
use crate::ids::{GroupId, Micros, RunId, TaskRef};
use crate::messages::{Finish, Outbox, OutcomeClass, Output};
use crate::resources::Resources;
use crate::spec::{Backoff, Growth, Policy, RetryOn};

/// What follows a bad end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Now,
    Later(Micros),
    GiveUp(OutcomeClass),
}

/// How an attempt ended badly, and what is known of it.
#[derive(Clone, Debug)]
pub(super) struct Ending<'f> {
    pub(super) class: OutcomeClass,
    /// What its worker reported; nothing where its worker was lost.
    pub(super) finish: Option<&'f Finish>,
    /// Most memory that it is known to have taken, bytes; 0 where nothing is known.
    pub(super) peak_memory_bytes: u64,
    /// One sentence, where there is no report to say it.
    pub(super) why: Option<String>,
    /// It is not charged, and may be to blame all the same: twice, and it is to run alone.
    pub(super) suspect: bool,
}

impl<'f> Ending<'f> {
    /// Its worker said so.
    pub(super) fn reported(class: OutcomeClass, finish: &'f Finish) -> Self {
        Ending { class, finish: Some(finish), peak_memory_bytes: finish.peak_memory_bytes, why: None, suspect: false }
    }

    /// Its worker could not say anything any more.
    pub(super) fn unreported(class: OutcomeClass) -> Self {
        Ending { class, finish: None, peak_memory_bytes: 0, why: None, suspect: false }
    }
}

impl Scheduler {
    /// An attempt ended without a result, by its own fault or not: `class` says.
    pub(super) fn attempt_failed(&mut self, now: Micros, slot: u32, ending: Ending<'_>, out: &mut Outbox) {
        let Ending { class, finish, .. } = ending;
        let row = self.rows.get(slot);
        let (task, attempt, state, executing) = (row.task(), row.attempt, row.state, row.place == Place::Executing);
        let worker = self.worker(row.worker);
        let (session, alone) = (worker.session, worker.alone);
        let charged = task.index + u32::from(self.mutations.has(Mutation::ChargeNeighbour));
        let memory = self.shape_of(row.shape).memory_bytes;

        let group = self.group_of(task.group);
        let policy = group.policy.clone();
        let mut detail = group.detail(charged).cloned().unwrap_or_default();
        let largest = if class == OutcomeClass::Oom { self.largest_memory(group.component) } else { u64::MAX };
        let next = decide(&mut detail, &policy, &ending, now, memory, largest, alone && executing);
        if class == OutcomeClass::Preempted && finish.is_none() {
            detail.spared = Some((attempt, session));
        }
        detail.last = match class {
            OutcomeClass::Preempted => detail.last,
            _ => {
                let class = if let Next::GiveUp(class) = next { class } else { class };
                let exit_code = finish.and_then(|finish| finish.exit_code);
                Some(Failure { class, exit_code, attempt, session, with_worker: finish.is_none() })
            }
        };
        detail.backoff_until = match next {
            Next::Later(until) => Some(until),
            _ => None,
        };

        let event = match next {
            Next::Now => TaskEvent::RetryNow,
            Next::Later(_) => TaskEvent::RetryLater,
            Next::GiveUp(_) => TaskEvent::GiveUp,
        };
        self.counts.task(state, event, 1);
        let row = self.close_row(slot, finish);
        let again = !matches!(next, Next::GiveUp(_)) && !self.no_new_starts(task);
        self.remember_attempt(&row, again);
        let group = self.group_mut(task.group);
        group.retried += u32::from(again);
        if charged != task.index && charged < group.length.unwrap_or(0) {
            let attempts = group.attempts(charged);
            group.memos.entry(charged).or_default().attempts = attempts;
        }
        if let Some(memo) = group.memos.get_mut(&charged) {
            memo.detail = Some(Box::new(detail));
        }
        let retry_at = match next {
            _ if !again => None,
            Next::Later(until) => Some(until),
            _ => Some(now),
        };
        let (token, why) = (finish.map(|finish| finish.token), ending.why.map(String::into_boxed_str));
        out.push(Output::AttemptEnded { task, attempt, session, class, token, retry_at, why });
        match next {
            Next::Now => self.requeue(task, out),
            Next::Later(until) => self.wait_backoff(task, until, out),
            Next::GiveUp(class) => self.give_up(task, attempt, class, out),
        }
    }

    /// True when what is not started of the task's run is not to start any more.
    pub(super) fn no_new_starts(&self, task: TaskRef) -> bool {
        let group = self.group_of(task.group);
        !group.restoring.contains(task.index) && self.starts_nothing(task.group)
    }

    /// True when nothing of the group that has not started is to start any more.
    pub(super) fn starts_nothing(&self, id: GroupId) -> bool {
        let group = self.group_of(id);
        !group.always && self.runs.get(&group.run).is_some_and(|run| run.stopped)
    }

    /// A task without an attempt may be dispatched again, or is cancelled where nothing starts any more.
    pub(super) fn requeue(&mut self, task: TaskRef, out: &mut Outbox) {
        if self.no_new_starts(task) {
            self.counts.task(TaskState::Ready, TaskEvent::Cancel, 1);
            self.cancelled_unstarted(task, out);
        } else {
            self.make_ready_or_wait(task, out);
        }
    }

    /// A task that may be dispatched again does so when what it reads is still there.
    fn make_ready_or_wait(&mut self, task: TaskRef, out: &mut Outbox) {
        match self.inputs_of(task) {
            Inputs::There => self.make_ready(task),
            lacking => {
                self.counts.task(TaskState::Ready, TaskEvent::LoseInput, 1);
                self.group_mut(task.group).waiting.insert(task.index);
                if let Inputs::Never(root) = lacking {
                    self.skip_range(task.group, task.index, task.index + 1, root, out);
                }
            }
        }
    }

    fn wait_backoff(&mut self, task: TaskRef, until: Micros, out: &mut Outbox) {
        if self.no_new_starts(task) {
            self.counts.task(TaskState::Backoff, TaskEvent::Cancel, 1);
            self.cancelled_unstarted(task, out);
            return;
        }
        self.group_mut(task.group).backoff.insert(task.index);
        self.backoffs.insert((until, task));
    }

    fn cancelled_unstarted(&mut self, task: TaskRef, out: &mut Outbox) {
        out.push(Output::Cancelled { group: task.group, first: task.index, count: 1 });
        self.note_end(task.group, task.index, task.index + 1, End::Cancelled);
    }

    /// Tasks whose wait is over become ready.
    pub(super) fn end_backoffs(&mut self, now: Micros, out: &mut Outbox) {
        while let Some(&(until, task)) = self.backoffs.first() {
            if until > now {
                break;
            }
            self.backoffs.pop_first();
            self.counts.task(TaskState::Backoff, TaskEvent::BackoffOver, 1);
            let group = self.group_mut(task.group);
            group.backoff.remove(task.index);
            if let Some(detail) = group.memos.get_mut(&task.index).and_then(|memo| memo.detail.as_mut()) {
                detail.backoff_until = None;
            }
            self.make_ready_or_wait(task, out);
        }
    }

    fn give_up(&mut self, task: TaskRef, attempts: u32, class: OutcomeClass, out: &mut Outbox) {
        out.push(Output::TaskFailed { task, attempts, class });
        self.note_end(task.group, task.index, task.index + 1, End::Failed);
        self.count_failures(self.group_of(task.group).run, 1, out);
    }

    /// More tasks of the run have failed.
    pub(super) fn count_failures(&mut self, run_id: RunId, count: u32, out: &mut Outbox) {
        let Some(run) = self.runs.get_mut(&run_id) else { return };
        run.failures += count;
        if run.max_failures > 0 && run.failures >= run.max_failures && !run.stopped {
            run.stopped = true;
            self.stop_run(run_id, out);
        }
    }

    /// Most memory that any worker serving the component has, or will have as the provider says. Nothing known is no bound.
    fn largest_memory(&self, component: u32) -> u64 {
        let name = self.components.get(component).map_or("", String::as_str);
        let of_workers =
            self.workers.iter().flatten().filter(|worker| worker.serves(component)).map(|worker| worker.capacity.memory_bytes);
        let of_pools = self.pools.values().filter_map(|pool| pool.said.as_ref());
        let of_pools = of_pools.filter(|said| said.components.iter().any(|c| c == "*" || c == name));
        of_workers.chain(of_pools.map(|said| said.capacity.memory_bytes)).max().unwrap_or(u64::MAX)
    }
}

/// Charges the failure to the task and says what follows.
fn decide(
    detail: &mut Detail,
    policy: &Policy,
    ending: &Ending<'_>,
    now: Micros,
    memory: u64,
    largest: u64,
    alone: bool,
) -> Next {
    let Ending { class, finish, .. } = *ending;
    let worth = policy.retry_on.is_empty() || policy.retry_on.iter().any(|on| matches(*on, class, finish));
    match class {
        // An input that was lost is waited for: see `make_ready`.
        OutcomeClass::Preempted | OutcomeClass::InputLost => {
            detail.suspicion = detail.suspicion.saturating_add(u32::from(ending.suspect));
            Next::Now
        }
        OutcomeClass::InfraStart => {
            if detail.infra_start >= policy.infra_start_budget {
                return Next::GiveUp(class);
            }
            detail.infra_start += 1;
            // A place where nothing starts does not get better at once: never less than the standard wait.
            let least = wait(Policy::default().backoff, detail.infra_start);
            after(now, wait(policy.backoff, detail.infra_start).max(least))
        }
        OutcomeClass::LostWorker => {
            detail.suspicion = detail.suspicion.saturating_add(1);
            if alone {
                return Next::GiveUp(OutcomeClass::Poison);
            }
            if !worth || detail.lost >= policy.lost_worker_budget {
                return Next::GiveUp(class);
            }
            detail.lost += 1;
            Next::Now
        }
        OutcomeClass::Oom => {
            let grown = grow_memory(policy.on_oom, memory, ending.peak_memory_bytes, largest);
            if !worth || detail.oom >= policy.oom_budget || grown <= memory {
                return Next::GiveUp(class);
            }
            detail.oom += 1;
            detail.memory = Some(grown);
            Next::Now
        }
        _ => {
            if !worth || detail.retries >= policy.retries {
                return Next::GiveUp(class);
            }
            detail.retries += 1;
            if class == OutcomeClass::Timeout && policy.timeout > 0 {
                let current = detail.timeout.unwrap_or(policy.timeout);
                let grown = grown(current, policy.on_timeout.factor_milli).min(policy.on_timeout.max).max(current);
                detail.timeout = Some(grown);
            }
            after(now, wait(policy.backoff, detail.retries))
        }
    }
}

fn matches(on: RetryOn, class: OutcomeClass, finish: Option<&Finish>) -> bool {
    let exit_code = finish.and_then(|finish| finish.exit_code);
    let signalled = finish.is_some_and(|finish| finish.signalled);
    match on {
        RetryOn::Exit(code) => class == OutcomeClass::AppError && exit_code == Some(code),
        RetryOn::Signal => class == OutcomeClass::AppError && signalled,
        RetryOn::Oom => class == OutcomeClass::Oom,
        RetryOn::Timeout => class == OutcomeClass::Timeout,
        RetryOn::Lost => class == OutcomeClass::LostWorker,
        RetryOn::MissingOutput => class == OutcomeClass::MissingOutput,
    }
}

fn after(now: Micros, wait: Micros) -> Next {
    if wait == 0 { Next::Now } else { Next::Later(now.saturating_add(wait)) }
}

/// Wait before the n-th retry, n from 1.
fn wait(backoff: Backoff, n: u32) -> Micros {
    let mut wait = backoff.initial.min(backoff.max);
    // 64 doublings are more than any maximum: the loop is bounded whatever the budget.
    for _ in 1..n.min(64) {
        wait = grown(wait, backoff.factor_milli).min(backoff.max);
    }
    wait
}

fn grown(value: u64, factor_milli: u32) -> u64 {
    u64::try_from(u128::from(value) * u128::from(factor_milli.max(1_000)) / 1_000).unwrap_or(u64::MAX)
}

/// Memory of the next attempt: by factor from what was asked, or from the measured peak where that is larger. What comes from a
/// measured peak is rounded up to five significant bits, so that a thousand peaks do not make a thousand shapes.
fn grow_memory(growth: Growth, memory: u64, peak: u64, largest: u64) -> u64 {
    let from_peak = grown(peak, growth.factor_milli);
    let step = 1u64 << (64 - from_peak.leading_zeros()).saturating_sub(5);
    let from_peak = from_peak.div_ceil(step).saturating_mul(step);
    grown(memory, growth.factor_milli).max(from_peak).min(growth.max).min(match largest {
        Resources::MEMORY_UNACCOUNTED => u64::MAX,
        bytes => bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SECOND;

    #[test]
    fn waits_double_up_to_the_maximum() {
        let backoff = Backoff { initial: SECOND, factor_milli: 2_000, max: 60 * SECOND };
        let waits: Vec<u64> = [1, 2, 3, 6, 7, 1_000_000].map(|n| wait(backoff, n) / SECOND).to_vec();
        assert_eq!(waits, [1, 2, 4, 32, 60, 60]);
    }

    #[test]
    fn memory_grows_from_the_larger_of_request_and_peak() {
        let growth = Growth { factor_milli: 1_500, max: 16 << 30 };
        let cases = [
            ("from the request, exactly", 512_000_000, 0, u64::MAX, 768_000_000),
            ("from the peak", 512 << 20, 1 << 30, u64::MAX, (3 << 30) / 2),
            ("at most the maximum", 12 << 30, 0, u64::MAX, 16 << 30),
            ("at most the largest worker", 1 << 30, 8 << 30, 2 << 30, 2 << 30),
            ("cannot grow", 2 << 30, 0, 2 << 30, 2 << 30),
        ];
        for (name, memory, peak, largest, expected) in cases {
            assert_eq!(grow_memory(growth, memory, peak, largest), expected, "{name}");
        }
        let rounded = grow_memory(growth, 0, 1_000_000_007, u64::MAX);
        assert!((1_500_000_010..1_600_000_000).contains(&rounded) && rounded.count_ones() <= 5, "{rounded}");
    }
}
