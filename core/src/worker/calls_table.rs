//! States and transitions of a call on its worker: an attempt that is a function and runs in a lane host. One enum, one table. What
//! the transitions mean for queues, slots and time lives in `calls`.
//!
//! ```text
//!   Fetching ── cancel, drain, returned (lost input): reported; retract: given back
//!     │ fetched
//!     ▼       feed                returned, lost
//!   Queued ─────────► Held ─────────────────────────► (reported, forgotten)
//!     │  ▲              │                                  ▲
//!     │  └──────────────┤ taken back (not begun)           │
//!     │                 │ cancel, timeout,                 │ returned, lost,
//!     │ retract: given  ▼ drain deadline                   │ taken back
//!     │ back; cancel, Unwanted ────────────────────────────┘
//!     ▼ drain, void
//!   (never starts)
//! ```

/// Where a call is on its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// Waits for a slot.
    Queued = 1,
    /// With a lane host: executing, or to be executed there. Revocable until it is begun, which the agent knows from the memory it
    /// shares with the host.
    Held = 2,
    /// As `Held`, and to end: why is known.
    Unwanted = 3,
    /// Objects it reads are on their way; takes nothing.
    Fetching = 4,
}

impl State {
    /// Every state, in order.
    pub const ALL: [State; 4] = [State::Queued, State::Held, State::Unwanted, State::Fetching];
}

/// What can happen to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Event {
    /// Everything it reads is here.
    Fetched,
    /// A slot takes it.
    Feed,
    /// Its host gave it back, or died, and had not begun it.
    TakenBack,
    /// Its host said how it ended; or what it reads could not be had.
    Returned,
    /// Its host died while it was executing.
    Lost,
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
    /// The session is over: nobody wants its result.
    Void,
}

impl Event {
    /// Every event, in order.
    pub const ALL: [Event; 11] = [
        Event::Fetched,
        Event::Feed,
        Event::TakenBack,
        Event::Returned,
        Event::Lost,
        Event::Retract,
        Event::Cancel,
        Event::Timeout,
        Event::Drain,
        Event::DrainDeadline,
        Event::Void,
    ];
}

/// What is to be done with a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing beyond the change of state.
    None,
    /// To the end of its queue.
    Enqueue,
    /// Back to the front of its queue.
    Requeue,
    /// Take it back from its host, or end the host.
    End,
    /// Report the end.
    Report,
    /// It counts as given back.
    GiveBack,
    /// It is kept: it may have started.
    Keep,
    /// Drop it without a word.
    Forget,
}

/// Where an event leads. `None` as the state means the row is gone.
pub type Transition = (Option<State>, Action);

/// The table. `None` is a refusal: it cannot happen, or came too late.
pub fn next(state: State, event: Event) -> Option<Transition> {
    use {Action as A, Event as E, State as S};
    Some(match (state, event) {
        (S::Fetching, E::Fetched) => (Some(S::Queued), A::Enqueue),
        (S::Fetching, E::Returned) => (None, A::Report),

        (S::Queued, E::Feed) => (Some(S::Held), A::None),
        (S::Fetching | S::Queued, E::Retract) => (None, A::GiveBack),
        (S::Fetching | S::Queued, E::Cancel | E::Drain | E::DrainDeadline) => (None, A::Report),

        (S::Held, E::TakenBack) => (Some(S::Queued), A::Requeue),
        (S::Held | S::Unwanted, E::Returned | E::Lost) => (None, A::Report),
        (S::Held, E::Cancel | E::Timeout | E::DrainDeadline) => (Some(S::Unwanted), A::End),
        (S::Held, E::Drain) => (Some(S::Held), A::None),

        (S::Unwanted, E::TakenBack) => (None, A::Report),
        (S::Unwanted, E::Cancel | E::Timeout | E::Drain | E::DrainDeadline) => (Some(S::Unwanted), A::None),

        (S::Held | S::Unwanted, E::Retract) => (Some(state), A::Keep),
        (_, E::Void) => (None, A::Forget),
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
        insta::assert_snapshot!("call_table", table);
    }

    #[test]
    fn what_a_host_may_have_begun_is_never_given_back() {
        for state in [State::Held, State::Unwanted] {
            assert_eq!(next(state, Event::Retract), Some((Some(state), Action::Keep)));
        }
    }
}
