//! The states of a worker's session and every step between them.
//!
//! ```text
//!              whole            drain
//!   Joining ──────────► Active ────────► Draining        Joining, Active, Suspect, Draining ── lose ──► Lost
//!      │                 │  ▲               │                                               └─ leave ─► Gone
//!      │ reset, silence  │  │ whole         │ reset, silence
//!      └───────────────► Suspect ◄──────────┘
//! ```
//!
//! A drain of a suspect is remembered: once whole it goes on to `Draining` in the same step. Lost and gone sessions are
//! remembered for a while, so that their late messages are known for what they are; nothing brings one back.

use crate::messages::WorkerState;

/// What moves a worker's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum SessionEvent {
    /// Both connections are attached, and a frame has come since it was silent.
    Whole,
    /// A connection was reset.
    Reset,
    /// No frame for `suspect_after`.
    Silence,
    /// No new work from here on.
    Drain,
    /// Confirmed dead, not back in time, replaced under its own name, or against the protocol.
    Lose,
    /// Goodbye with nothing left on it.
    Leave,
}

/// What the table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionVerdict {
    /// Go there.
    To(WorkerState),
    /// Somebody outside may cause this; nothing changes.
    Refused,
    /// Nothing outside can cause this.
    Never,
}

impl SessionEvent {
    /// All of them, in order.
    pub const ALL: [SessionEvent; 6] = {
        use SessionEvent::*;
        [Whole, Reset, Silence, Drain, Lose, Leave]
    };
}

/// All states of a worker, in order.
pub const WORKER_STATES: [WorkerState; 6] = {
    use WorkerState::*;
    [Joining, Active, Suspect, Draining, Lost, Gone]
};

/// The table.
pub fn session_next(state: WorkerState, event: SessionEvent) -> SessionVerdict {
    use SessionEvent as E;
    use SessionVerdict::{Never, Refused, To};
    use WorkerState as S;
    match (state, event) {
        (S::Joining | S::Suspect, E::Whole) => To(S::Active),
        (S::Joining | S::Active | S::Draining, E::Reset | E::Silence) => To(S::Suspect),
        (S::Joining | S::Active, E::Drain) => To(S::Draining),
        (S::Suspect, E::Drain) => To(S::Suspect),
        (S::Joining | S::Active | S::Suspect | S::Draining, E::Lose) => To(S::Lost),
        (S::Joining | S::Active | S::Suspect | S::Draining, E::Leave) => To(S::Gone),

        (S::Active | S::Draining, E::Whole) => Refused,
        (S::Suspect, E::Reset) => Refused,
        (S::Draining, E::Drain) => Refused,
        (S::Lost | S::Gone, E::Whole | E::Reset | E::Drain | E::Lose | E::Leave) => Refused,
        (S::Suspect | S::Lost | S::Gone, E::Silence) => Never,
    }
}
