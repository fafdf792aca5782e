//! States and transitions of an attempt on its worker: one enum, one table. What the transitions mean for queues, resources
//! and time lives in the parent module.
//!
//! ```text
//!              start            staged              exited              settled
//!   Queued ───────────► Staging ───────► Executing ────────► Settling ───────────► (reported, forgotten)
//!     │                    │                 │                  ▲  ▲
//!     │ retract: given     │ cancel,         │ cancel,          │  │ exited
//!     │ back; cancel,      │ drain,          │ timeout,         │  │
//!     │ drain, void:       │ void            │ drain deadline   │  │
//!     ▼ never starts       ▼                 ▼                  │  │
//!   (forgotten)          Doomed           Ending ───────────────┘  │
//!                          │                 │ grace over, over     │
//!                          │ staged          │ memory, void         │
//!                          ▼                 ▼                      │
//!                        Settling          Killed ──────────────────┘
//! ```

/// Where an attempt is on its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Waits for resources; takes none.
    Queued,
    /// Its directory is made and its inputs put there. Takes its resources; nothing of the task runs.
    Staging,
    /// As `Staging`, but it will not execute: it ends as soon as staging has.
    Doomed,
    /// Its process runs.
    Executing,
    /// Its process was asked to end (SIGTERM) and has its grace.
    Ending,
    /// Its whole process group was killed (SIGKILL); the kernel has not said yet that it is over.
    Killed,
    /// No process is left; outputs are being published or thrown away. Its resources are free when its end is reported and not
    /// before: in the scheduler's books they are its own until then, and a start that needs them would look like an over-commit.
    Settling,
}

impl State {
    /// Every state, in order.
    pub const ALL: [State; 7] =
        [State::Queued, State::Staging, State::Doomed, State::Executing, State::Ending, State::Killed, State::Settling];

    /// True while the attempt takes its resources.
    pub fn takes_resources(self) -> bool {
        self != State::Queued
    }
}

/// What can happen to an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Event {
    /// Its turn has come and it fits.
    Start,
    /// Its directory is ready (or it needs none).
    Staged,
    /// Its directory could not be made.
    StageFailed,
    /// No process of it is left.
    Exited,
    /// Its outputs are published, or its directory is gone.
    Settled,
    /// The scheduler wants it back if it has not started.
    Retract,
    /// It is to end.
    Cancel,
    /// It ran into its timeout.
    Timeout,
    /// The worker drains from now on.
    Drain,
    /// The drain's deadline has passed.
    DrainDeadline,
    /// The time between SIGTERM and SIGKILL is over.
    GraceOver,
    /// The watch saw it above its memory limit.
    OverMemory,
    /// The session is over: nobody wants its result.
    Void,
}

impl Event {
    /// Every event, in order.
    pub const ALL: [Event; 13] = [
        Event::Start,
        Event::Staged,
        Event::StageFailed,
        Event::Exited,
        Event::Settled,
        Event::Retract,
        Event::Cancel,
        Event::Timeout,
        Event::Drain,
        Event::DrainDeadline,
        Event::GraceOver,
        Event::OverMemory,
        Event::Void,
    ];
}

/// What is to be done with a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing beyond the change of state.
    None,
    /// Take the resources and make the directory.
    Stage,
    /// Start the process.
    Spawn,
    /// SIGTERM to the process group; the grace begins.
    Terminate,
    /// SIGKILL to everything that belongs to the attempt.
    Kill,
    /// Free the resources; publish the outputs if it succeeded and nothing had ended it, else throw them away.
    Settle,
    /// Report the end.
    Report,
    /// It counts as given back.
    GiveBack,
    /// It is kept: it has started.
    Keep,
    /// Drop it without a word.
    Forget,
}

/// Where an event leads. `None` as the state means the row is gone.
pub type Transition = (Option<State>, Action);

/// The table. `None` is a refusal: the event cannot happen in that state and the caller's own books are wrong.
pub fn next(state: State, event: Event) -> Option<Transition> {
    use {Action as A, Event as E, State as S};
    Some(match (state, event) {
        (S::Queued, E::Start) => (Some(S::Staging), A::Stage),
        (S::Queued, E::Retract) => (None, A::GiveBack),
        (S::Queued, E::Cancel | E::Drain) => (None, A::Report),
        (S::Queued, E::Void) => (None, A::Forget),

        (S::Staging, E::Staged) => (Some(S::Executing), A::Spawn),
        (S::Staging, E::StageFailed) => (Some(S::Settling), A::Settle),
        (S::Staging, E::Cancel | E::Drain | E::Void) => (Some(S::Doomed), A::None),

        (S::Doomed, E::Staged | E::StageFailed) => (Some(S::Settling), A::Settle),
        (S::Doomed, E::Cancel | E::Drain | E::DrainDeadline | E::Void) => (Some(S::Doomed), A::None),

        (S::Executing, E::Exited) => (Some(S::Settling), A::Settle),
        (S::Executing, E::Cancel | E::Timeout | E::DrainDeadline) => (Some(S::Ending), A::Terminate),
        (S::Executing, E::OverMemory | E::Void) => (Some(S::Killed), A::Kill),
        (S::Executing, E::Drain) => (Some(S::Executing), A::None),

        (S::Ending, E::Exited) => (Some(S::Settling), A::Settle),
        (S::Ending, E::GraceOver | E::OverMemory | E::Void) => (Some(S::Killed), A::Kill),
        (S::Ending, E::Cancel | E::Drain | E::DrainDeadline) => (Some(S::Ending), A::None),

        (S::Killed, E::Exited) => (Some(S::Settling), A::Settle),
        (S::Killed, E::Cancel | E::Drain | E::DrainDeadline | E::OverMemory | E::Void) => (Some(S::Killed), A::None),

        (S::Settling, E::Settled) => (None, A::Report),
        (S::Settling, E::Cancel | E::Drain | E::DrainDeadline | E::OverMemory | E::Void) => (Some(S::Settling), A::None),

        (S::Staging | S::Doomed | S::Executing | S::Ending | S::Killed | S::Settling, E::Retract) => (Some(state), A::Keep),

        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pair, legal and refused, as a table in a file: a change of it is a change to be looked at.
    #[test]
    fn every_state_and_event() {
        let mut table = String::new();
        for state in State::ALL {
            for event in Event::ALL {
                let line = match next(state, event) {
                    Some((Some(to), action)) => format!("{state:?} + {event:?} -> {to:?}, {action:?}"),
                    Some((None, action)) => format!("{state:?} + {event:?} -> gone, {action:?}"),
                    None => format!("{state:?} + {event:?} -> refused"),
                };
                table.push_str(&line);
                table.push('\n');
            }
        }
        insta::assert_snapshot!("attempt_table", table);
    }

    #[test]
    fn nothing_leaves_a_process_behind() {
        for state in [State::Executing, State::Ending, State::Killed] {
            for event in Event::ALL {
                if let Some((to, _)) = next(state, event) {
                    let to = to.expect("a row with a process is never dropped");
                    assert!(to != State::Settling || event == Event::Exited, "{state:?} + {event:?}");
                }
            }
        }
    }
}
