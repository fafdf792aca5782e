//! Who is to blame when a worker is lost: its platform, the task that took the memory, or, since nobody knows better, everything
//! that executed on it.

use super::Scheduler;
use super::explain::bytes;
use super::mutation::Mutation;
use super::retry::Ending;
use super::task_table::TaskState;
use crate::ids::{Handle, Micros, SessionId};
use crate::messages::{DeathCause, Outbox, OutcomeClass};

/// Attempts of one worker of which it is known what they take: the rest of a longer report is not looked at.
pub const SHARES_MAX: usize = 8;

impl Scheduler {
    /// What a worker says of the memory of its attempts. Each report stands for itself: what it does not name takes less.
    pub(super) fn memory_shares(&mut self, session: SessionId, mut shares: Vec<(Handle, u64)>) {
        let Some(&slot) = self.sessions.get(&session) else { return self.counts.fenced += 1 };
        shares.truncate(SHARES_MAX);
        self.worker_mut(slot).shares = shares;
    }

    /// The platform takes the worker of this name away. It may go on for a while, and be lost by silence only: the first reason
    /// that was said is the one that counts.
    pub(super) fn being_taken(&mut self, name: &str, reason: String) {
        if let Some(&slot) = self.worker_names.get(name) {
            self.worker_mut(slot).taken.get_or_insert(reason);
            self.keeps_no_more(slot);
        }
    }

    /// Ends what a lost worker executed: uncharged where its platform took it, as `oom` for one of them where it was out of memory
    /// (for none where it is not known which, and then all of them are suspect), charged to all where nobody says what it died of. Returns the reason that counts.
    pub(super) fn end_executing(&mut self, now: Micros, slot: u32, cause: DeathCause, reason: &str, out: &mut Outbox) -> String {
        let executing: Vec<u32> = self.rows.on(self.worker(slot).executing).collect();
        let taken = match (cause, &self.worker(slot).taken) {
            (DeathCause::OutOfMemory, _) => None,
            (_, Some(first)) => Some(first.clone()),
            (DeathCause::Taken, None) => Some(reason.to_owned()),
            (DeathCause::Failed, None) => None,
        };
        let memory = cause == DeathCause::OutOfMemory;
        let greedy = if memory { self.greediest(slot, &executing) } else { None };
        let why = match (&taken, greedy) {
            (Some(first), _) => Some(format!("its worker was taken away: {first}")),
            (None, Some(greedy)) => {
                let row = self.rows.get(greedy.row);
                let group = &self.group_of(row.group).name;
                Some(format!("its worker ran out of memory, which is charged to {group}[{}]: {reason}", row.index))
            }
            (None, None) if memory => Some(format!(
                "its worker ran out of memory before it could say what took it: {reason}; if that happens again it runs alone"
            )),
            (None, None) => None,
        };
        let charged = greedy.map(|greedy| match (self.mutations.has(Mutation::BlameNeighbour), executing.as_slice()) {
            (true, [first, second, ..]) => {
                if *first == greedy.row {
                    *second
                } else {
                    *first
                }
            }
            _ => greedy.row,
        });
        let oom = greedy.map(|greedy| self.oom_sentence(greedy, reason));
        // Whether a task was alone is the same for all rows of this worker, and read before the first of them is closed.
        for row in executing {
            if self.rows.get(row).state == TaskState::Cancelling {
                self.end_cancelled(row, None, None, out);
                continue;
            }
            let ending = match (&why, charged) {
                (_, Some(charged)) if charged == row => Ending {
                    peak_memory_bytes: greedy.map_or(0, |greedy| greedy.bytes),
                    why: oom.clone(),
                    ..Ending::unreported(OutcomeClass::Oom)
                },
                (Some(why), _) => Ending {
                    why: Some(why.clone()),
                    suspect: memory && charged.is_none(),
                    ..Ending::unreported(OutcomeClass::Preempted)
                },
                (None, _) => Ending::unreported(OutcomeClass::LostWorker),
            };
            if self.mutations.has(Mutation::LoseTaskOnWorkerDeath) {
                self.close_row(row, None);
            } else {
                self.attempt_failed(now, row, ending, out);
            }
        }
        taken.map_or_else(|| reason.to_owned(), |first| format!("the worker was taken away: {first}"))
    }

    /// Of what executes there, the attempt that takes most above its request as far as the worker said, else the one that takes most.
    /// Nothing where that is not known: several executed, none is known to take more than it asked for, and what was said of them is
    /// less than half of what the worker has, so that most was taken after it was said.
    fn greediest(&self, slot: u32, executing: &[u32]) -> Option<Greedy> {
        let worker = self.worker(slot);
        let all = || {
            executing.iter().map(|&row| {
                let handle = self.rows.handle(row);
                let request = self.shape_of(self.rows.get(row).shape).memory_bytes;
                let bytes = worker.shares.iter().find(|(named, _)| *named == handle).map_or(0, |(_, bytes)| *bytes);
                Greedy { row, request, bytes }
            })
        };
        let said = all().map(|one| one.bytes).fold(0, u64::saturating_add);
        let greediest = all().max_by_key(|one| (one.bytes.saturating_sub(one.request), one.bytes))?;
        let beyond = greediest.request > 0 && greediest.bytes > greediest.request;
        (executing.len() == 1 || beyond || said >= worker.capacity.memory_bytes / 2).then_some(greediest)
    }

    fn oom_sentence(&self, greedy: Greedy, reason: &str) -> String {
        let asked = if greedy.request == 0 { "nothing".to_owned() } else { bytes(greedy.request) };
        let taken = bytes(greedy.bytes);
        let why = match greedy.bytes {
            0 => format!("nothing else executed there, and it had asked for {asked}"),
            some if some > greedy.request => {
                format!(
                    "when it was last looked at it took {taken} and had asked for {asked}, and nothing took more beyond its request"
                )
            }
            _ => format!("when it was last looked at it took {taken} and had asked for {asked}, and nothing took more"),
        };
        let now = "declare what it takes with `memory:`, or let it grow with `on_oom:`";
        format!("out of memory: the worker was ended with everything on it ({reason}); {why}: {now}")
    }
}

/// An attempt that may have taken the memory.
#[derive(Clone, Copy)]
struct Greedy {
    row: u32,
    /// What its task had asked for, bytes; 0 is nothing.
    request: u64,
    /// What it took when its worker spoke of it last; 0 where it never did.
    bytes: u64,
}
