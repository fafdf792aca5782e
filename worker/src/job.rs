//! What helpers do for an attempt: make it ready, and settle it afterwards. Both are whole jobs; the reactor only hears the result.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use scalable_core::messages::OutcomeClass;
use scalable_proto::v1::{LogReport, OutputReport};

use crate::attempt::{Command, Order, Settle, command};
use crate::catalog::Group;
use crate::cgroup::{Cgroup, Cgroups};
use crate::layout::Place;
use crate::publish::{Unpublished, keep_or_remove, publish, remove};
use crate::remote::{Remote, Unready};
use crate::stage::{Staged, stage, touch_outputs};
use crate::takeover::Taken;

/// An attempt that can be started.
#[derive(Debug, Default)]
pub struct Ready {
    /// Its directory.
    pub staged: Option<Box<Staged>>,
    /// Its command; nothing for a stub and for one whose outputs were taken over.
    pub command: Option<Command>,
    /// Its cgroup.
    pub cgroup: Option<(Cgroup, std::fs::File)>,
    /// Nothing is to be executed: outputs of an earlier run are there.
    pub taken: Option<Taken>,
}

/// What making it ready takes.
#[derive(Debug)]
pub struct Prepare {
    /// What was asked.
    pub order: Order,
    /// Its group.
    pub group: Arc<Group>,
    /// Where it lies.
    pub place: Place,
    /// Its key, where outputs of an earlier run may be taken over.
    pub key: Option<[u8; 32]>,
    /// A cgroup to be made: where, under which name, with which limit in bytes.
    pub cgroup: Option<(Arc<Cgroups>, String, u64)>,
    /// Brings what is not here.
    pub remote: Arc<Remote>,
    /// Without a cgroup the attempt must not start; otherwise the watch takes its place.
    pub cgroup_required: bool,
}

/// Makes an attempt ready.
///
/// # Errors
/// Why not. Nothing of it is left then.
pub fn prepare(job: &Prepare) -> Result<Ready, Unready> {
    let mut ready = Ready::default();
    if job.group.run.is_shared()
        && let (Some(key), Some(earlier)) = (&job.key, job.group.run.earlier())
    {
        ready.taken = earlier.take(&job.group, &job.place, key);
        if ready.taken.is_some() {
            return Ok(ready);
        }
    }
    let brought = match job.group.needs_directory {
        true => job.remote.bring(&job.group, &job.order.objects),
        false => Ok(()),
    };
    match brought.and_then(|()| prepare_in_directory(job, &mut ready).map_err(Unready::from)) {
        Ok(()) => Ok(ready),
        Err(message) => {
            if job.group.needs_directory {
                remove(&job.place.directory());
            }
            if let Some((cgroup, _)) = ready.cgroup {
                cgroup.remove();
            }
            Err(message)
        }
    }
}

fn prepare_in_directory(job: &Prepare, ready: &mut Ready) -> Result<(), String> {
    let group = &job.group;
    if group.needs_directory {
        let staged = stage(group, &job.place, &job.order.objects).map_err(|error| error.to_string())?;
        ready.staged = Some(Box::new(staged));
    }
    if group.template.stub {
        return match &ready.staged {
            Some(staged) => touch_outputs(group, staged).map_err(|error| error.to_string()),
            None => Ok(()),
        };
    }
    ready.command = Some(command(&job.order, group, ready.staged.as_deref())?);
    if let Some((cgroups, name, limit)) = &job.cgroup {
        match cgroups.create(name, *limit) {
            Ok(made) => ready.cgroup = Some(made),
            Err(error) if job.cgroup_required => return Err(format!("its cgroup could not be made: {error}")),
            Err(error) => tracing::warn!(%error, "a cgroup could not be made: the watch enforces the limit"),
        }
    }
    Ok(())
}

/// What came of settling.
#[derive(Debug)]
pub struct Settled {
    /// Published outputs, or why there are none although the command succeeded.
    pub outcome: Result<Vec<OutputReport>, Unpublished>,
    /// What its streams are kept as, where the run's directory is not here.
    pub logs: Vec<LogReport>,
    /// Where the directory was kept, relative to the run's.
    pub kept: Option<PathBuf>,
    /// Handed back for the report.
    pub staged: Option<Box<Staged>>,
}

/// Publishes or throws away; removes directory and cgroup, or keeps the directory of a failure.
pub fn settle(
    group: &Group,
    at: &Place,
    what: Settle,
    staged: Option<Box<Staged>>,
    cgroup: Option<Cgroup>,
    remote: &Remote,
) -> Settled {
    if let Some(cgroup) = cgroup {
        cgroup.remove();
    }
    let logs = if group.run.is_shared() { Vec::new() } else { remote.hold_logs(at) };
    let mut settled = Settled { outcome: Ok(Vec::new()), logs, kept: None, staged };
    let Some(staged) = settled.staged.as_deref_mut() else { return settled };
    // Only the directory's paths are needed from here on.
    (staged.stdin, staged.stdout, staged.stderr) = (None, None, None);
    let worth_keeping = match what {
        Settle::Publish => {
            settled.outcome = publish(group, at, staged).and_then(|mut outputs| {
                if !group.run.is_shared() {
                    let held = remote.hold(group, at, &mut outputs);
                    held.map_err(|message| Unpublished { class: OutcomeClass::InfraStart, message })?;
                }
                Ok(outputs)
            });
            settled.outcome.is_err() && group.run.is_shared()
        }
        // Where nobody would find it nothing is kept.
        Settle::Discard(class) => group.run.is_shared() && !matches!(class, OutcomeClass::Cancelled | OutcomeClass::Preempted),
    };
    if worth_keeping {
        // One at a time, so that two helpers do not both take the last place.
        static KEEPING: Mutex<()> = Mutex::new(());
        let _one = KEEPING.lock().unwrap_or_else(PoisonError::into_inner);
        settled.kept = keep_or_remove(at, &staged.directory, group.run.keep_failed);
    } else {
        remove(&staged.directory);
    }
    settled
}
