//! Names of things inside the machines. Small integers that are never used again within one epoch.

/// A point in time: microseconds on the caller's monotonic clock, from any origin.
pub type Micros = u64;

/// One millisecond, in [`Micros`].
pub const MILLISECOND: Micros = 1_000;
/// One second, in [`Micros`].
pub const SECOND: Micros = 1_000_000;

/// A run, counted from 1 within an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u32);

/// A group of any run, counted from 1 within an epoch. The groups that a run was submitted with have consecutive ids in order of
/// their ordinals; those added to an open run later have any larger ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

/// One registration of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// An interned resource shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShapeId(pub u32);

/// A task: one element of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskRef {
    /// The group.
    pub group: GroupId,
    /// The element, from 0.
    pub index: u32,
}

impl TaskRef {
    /// The task's number outside: unique within an epoch.
    pub fn id(self) -> u64 {
        (u64::from(self.group.0) << 32) | u64::from(self.index)
    }
}

/// A dispatched attempt's row: slot and generation. A handle of a row that was given up never matches again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle {
    /// Position in the slab.
    pub slot: u32,
    /// How often the slot had been given out before, plus 1.
    pub generation: u32,
}

impl Handle {
    /// As one number, for the wire.
    pub fn to_u64(self) -> u64 {
        (u64::from(self.generation) << 32) | u64::from(self.slot)
    }

    /// From the wire. Any number is accepted; a wrong one matches no row.
    pub fn from_u64(raw: u64) -> Self {
        Handle { slot: raw as u32, generation: (raw >> 32) as u32 }
    }
}
