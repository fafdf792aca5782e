//! Runs whose directory is not here: the look that decides it, what attempts of them have left here for others, and when it may go.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};
use scalable_core::worker::{Input, Serial};
use scalable_proto::v1::{self, AttemptReport};

use super::{Agent, Told};
use crate::attempt::Attempt;
use crate::catalog::Group;
use crate::remote::Leaving;

/// Threads that bring what attempts read: as many attempts can wait for a network at once.
pub(super) const BRINGERS: usize = 8;

/// How long what a session has left uncopied is there when it is over: as long as a copy that was begun may take to notice.
const FADES_AFTER: Duration = Duration::from_secs(60);
/// Sessions of which something is kept so.
const FADING_MAX: usize = 4;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Attempts that wait for the look at their run's directory.
    undecided: Vec<Serial>,
    /// Runs that are being looked at.
    looking: FxHashSet<u32>,
    /// Outputs by group and index.
    objects: FxHashMap<(u32, u32), Leaving>,
    /// Attempts with something that the scheduler's store has not copied yet, and their logs.
    uncopied: FxHashMap<(u32, u32, u32), Vec<Leaving>>,
    /// What sessions that are over have left uncopied, by when it goes.
    fading: VecDeque<(Instant, Leaving)>,
}

impl Held {
    /// Nothing here is wanted by the scheduler's store any more.
    pub(super) fn is_copied(&self) -> bool {
        self.uncopied.is_empty()
    }
}

impl Agent {
    /// True when the attempt can be made ready now. Otherwise it is when it is known where its run lies.
    pub(super) fn is_decided(&mut self, serial: Serial, group: &Arc<Group>) -> bool {
        let run = &group.run;
        if run.is_decided() {
            return true;
        }
        self.held.undecided.push(serial);
        if self.held.looking.insert(run.id) {
            let (run, own, told) = (run.clone(), self.remote.directory(&run.name), self.told.clone());
            self.helpers.run(move || {
                run.look(own);
                drop(told.send(Told::Looked(run.id)));
            });
        }
        false
    }

    /// It is known where a run lies.
    pub(super) fn looked(&mut self, run: u32) {
        self.held.looking.remove(&run);
        let mut inputs: VecDeque<Input> = VecDeque::new();
        for serial in std::mem::take(&mut self.held.undecided) {
            self.stage(serial, &mut inputs);
        }
        self.go_on(inputs, Vec::new());
    }

    /// An attempt is over: what it has left here is kept until the scheduler lets go of it.
    pub(super) fn hold(&mut self, attempt: &Attempt, report: &AttemptReport) {
        let (Some(group), Some(place)) = (&attempt.order.group, attempt.place()) else { return };
        let wanted = |output: &v1::OutputReport| {
            output.held && !group.template.outputs.iter().any(|known| known.name == output.name && known.discard)
        };
        if report.outputs.iter().any(|output| output.held) {
            let outputs = Leaving::outputs(group, &place, &report.outputs);
            self.held.objects.insert((group.number, place.index), outputs);
        }
        if !report.logs.is_empty() || report.outputs.iter().any(wanted) {
            let logs = report.logs.iter().map(|log| Leaving::log(&place, log)).collect();
            self.held.uncopied.insert((group.number, place.index, place.attempt), logs);
        }
    }

    /// The scheduler's store has these, or does not want them.
    pub(super) fn stored(&mut self, stored: &v1::AttemptsStored) {
        let mut logs = Vec::new();
        for ((group, index), attempt) in stored.group.iter().zip(&stored.index).zip(&stored.attempt) {
            logs.extend(self.held.uncopied.remove(&(*group, *index, *attempt)).unwrap_or_default());
        }
        self.remove_later(logs);
    }

    /// Nobody reads this element's outputs any more.
    pub(super) fn drop_held(&mut self, group: u32, index: u32) {
        if let Some(objects) = self.held.objects.remove(&(group, index)) {
            self.remove_later(vec![objects]);
        }
    }

    /// Nobody needs anything of these runs any more.
    pub(super) fn release_held(&mut self, runs: &[u32]) {
        let mut directories = Vec::new();
        for run in runs.iter().filter_map(|run| self.catalog.run(*run)).filter(|run| !run.is_shared()) {
            directories.push(run.directory().to_owned());
        }
        if !directories.is_empty() {
            self.held.objects.retain(|_, objects| !directories.iter().any(|directory| objects.is_below(directory)));
            self.remove_later(directories.into_iter().map(Leaving::below).collect());
        }
    }

    /// The session is over: nothing of it is wanted, but what the scheduler's store may be copying from it at this moment.
    pub(super) fn void_held(&mut self, now: Instant) {
        let uncopied = !self.held.is_copied();
        let mut fading = std::mem::take(&mut self.held.fading);
        self.held = Held::default();
        let old = Leaving::below(self.remote.begin_anew());
        if !uncopied {
            self.held.fading = fading;
            return self.remove_later(vec![old]);
        }
        if fading.len() >= FADING_MAX {
            let oldest = fading.pop_front().map(|(_, leaving)| leaving);
            self.remove_later(oldest.into_iter().collect());
        }
        fading.push_back((now + FADES_AFTER, old));
        self.held.fading = fading;
    }

    /// Removes what earlier sessions have left, when its time has come.
    pub(super) fn fade(&mut self, now: Instant) {
        let mut faded = Vec::new();
        while self.held.fading.front().is_some_and(|(at, _)| *at <= now) {
            faded.extend(self.held.fading.pop_front().map(|(_, leaving)| leaving));
        }
        self.remove_later(faded);
    }

    fn remove_later(&self, leaving: Vec<Leaving>) {
        if leaving.is_empty() {
            return;
        }
        let remote = self.remote.clone();
        self.helpers.run(move || remote.remove(&leaving));
    }
}
