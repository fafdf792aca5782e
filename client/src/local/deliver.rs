//! Ends of tasks on their way to the session: a batch for each group.

use scalable_core::ids::TaskRef;
use scalable_core::messages::OutcomeClass;
use scalable_proto::v1;

use super::engine::{Engine, worker_name};

/// Results of one group on their way.
#[derive(Debug, Default)]
pub(super) struct Ends {
    batch: v1::ResultBatch,
    pub(super) bytes: Vec<u8>,
}

impl Engine {
    /// A task is over: `add` writes its result.
    pub(super) fn end(&mut self, task: TaskRef, add: impl FnOnce(&mut Ends)) {
        let Some(group) = self.book.get(task.group) else { return };
        let (ordinal, run) = (group.ordinal, self.run.0);
        let ends = self.ends.entry(ordinal).or_insert_with(|| {
            let batch = v1::ResultBatch { run, group: ordinal, ..Default::default() };
            Ends { batch, bytes: Vec::new() }
        });
        ends.batch.index.push(task.index);
        add(ends);
        // A batch is sent long before it has so many bytes: results of 4 GiB cannot be.
        ends.batch.result_end.push(ends.bytes.len() as u32);
        if ends.bytes.len() > 64 << 20 {
            self.deliver();
        }
    }

    pub(super) fn failed(&mut self, task: TaskRef, attempts: u32, class: OutcomeClass) {
        let failure = self.last.remove(&task);
        let (attempt, worker) = failure.as_ref().map_or((attempts, String::new()), |f| (f.attempt, worker_name(f.worker)));
        let report = failure.map(|failure| failure.report);
        self.error(task, v1::TaskError { class: class.number(), attempt, worker, report, ..Default::default() });
    }

    pub(super) fn skipped(&mut self, task: TaskRef, class: OutcomeClass, root: Option<TaskRef>) {
        self.last.remove(&task);
        let root_group = root.and_then(|root| self.book.get(root.group)).map_or(0, |group| group.ordinal);
        let root_index = root.map_or(0, |root| root.index);
        self.error(task, v1::TaskError { class: class.number(), root_group, root_index, ..Default::default() });
    }

    pub(super) fn error(&mut self, task: TaskRef, error: v1::TaskError) {
        self.end(task, |ends| {
            let at = ends.batch.index.len() as u32 - 1;
            ends.batch.others.push(v1::OtherEnd { at, end: Some(v1::other_end::End::Error(error)) });
        });
    }

    pub(super) fn deliver(&mut self) {
        for (_, ends) in self.ends.drain() {
            self.shared.results(v1::ResultBatch { results: ends.bytes.into(), ..ends.batch });
        }
    }
}
