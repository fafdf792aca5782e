//! What the output store is asked for and what it answers.

use std::path::PathBuf;

use scalable_core::ids::{RunId, TaskRef};
use scalable_proto::v1;
use scalable_store::Holder;

/// What is copied, and under which name.
#[derive(Clone, Debug)]
pub struct Copy {
    /// The run.
    pub run: RunId,
    /// Whose outputs.
    pub task: TaskRef,
    /// Of which attempt.
    pub attempt: u32,
    /// Name of the group.
    pub group: String,
    /// Where people find the outputs, relative to the run's directory.
    pub published: PathBuf,
    /// What it is.
    pub outputs: Vec<CopyOutput>,
    /// Its logs.
    pub logs: Vec<v1::LogReport>,
    /// Who has it, in the order in which they are asked.
    pub holders: Vec<Holder>,
}

impl Copy {
    /// Bytes of it.
    pub fn bytes(&self) -> u64 {
        let outputs = self.outputs.iter().map(|output| output.size.saturating_add(output.manifest_size));
        outputs.chain(self.logs.iter().map(|log| log.size)).fold(0, u64::saturating_add)
    }
}

/// One output of an attempt.
#[derive(Clone, Debug)]
pub struct CopyOutput {
    /// Its name, which is safe in a path.
    pub name: String,
    /// File, directory or list.
    pub kind: v1::OutputKind,
    /// Of the content of a file.
    pub digest: Vec<u8>,
    /// Bytes of its content.
    pub size: u64,
    /// A file that may be executed.
    pub executable: bool,
    /// Of the manifest of a tree.
    pub manifest: Vec<u8>,
    /// Its bytes.
    pub manifest_size: u64,
}

/// What the reactor hears.
#[derive(Debug)]
pub enum Told {
    /// It is in the run's directory.
    Copied {
        /// Whose.
        task: TaskRef,
        /// Which attempt's.
        attempt: u32,
    },
    /// It could not be copied now.
    Failed {
        /// Whose.
        task: TaskRef,
        /// Which attempt's.
        attempt: u32,
        /// One sentence.
        why: String,
        /// It is the holders' fault, not this machine's.
        missing: bool,
    },
    /// It does not fit any more, and is copied when there is room.
    Waits {
        /// Whose.
        task: TaskRef,
        /// Which attempt's.
        attempt: u32,
    },
}

/// How full the store is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of outputs and logs that were copied.
    pub bytes: u64,
    /// What it may hold; `u64::MAX` is no limit.
    pub limit: u64,
    /// Copies that do not fit.
    pub waiting: u64,
}
