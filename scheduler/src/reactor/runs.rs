//! What is known of runs beside the machine: templates, parameters, objects, failures; and what goes into the records.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustc_hash::FxHashMap;
use scalable_core::ids::{GroupId, RunId, SessionId, TaskRef};
use scalable_core::messages::{OutcomeClass, RunEnd};
use scalable_proto::v1;
use scalable_store::Digest;
use scalable_template::Space;
use tonic::Status;

use super::Reactor;
use crate::convert;
use crate::records::{Count, Record, RunRecord};

/// The file in a run's directory by which workers know that it is that one.
pub(crate) const MARK: &str = ".here";
/// Failures of one run that are pushed to its watchers; the records hold all of them.
const FAILURES_PUSHED_MAX: u32 = 1000;

/// What an attempt reported.
#[derive(Clone, Debug)]
pub enum Report {
    /// Everything.
    Full(Box<v1::AttemptReport>),
    /// (started_us, wall_us, user_us, system_us, peak_bytes) of a success with nothing else to tell.
    Brief([u64; 5]),
    /// A function returned: where its inline result lies in the frames of this flush.
    Returned {
        /// Which frame.
        frame: u32,
        /// First byte.
        start: u32,
        /// One after the last.
        end: u32,
        /// Microseconds of execution.
        wall_us: u32,
    },
    /// A function returned an object that its worker keeps.
    Held {
        /// Its bytes.
        size: u64,
        /// Microseconds of execution.
        wall_us: u32,
    },
}

impl Report {
    /// As a whole report.
    pub fn into_full(self) -> v1::AttemptReport {
        match self {
            Report::Full(report) => *report,
            // When it was is not said of functions: a clock reading each would be most of what the shortest of them cost.
            Report::Returned { wall_us, .. } | Report::Held { wall_us, .. } => v1::AttemptReport {
                class: v1::OutcomeClass::Succeeded.into(),
                finished_us: i64::from(wall_us),
                ..Default::default()
            },
            Report::Brief([started, wall, user_us, system_us, peak_memory_bytes]) => v1::AttemptReport {
                class: v1::OutcomeClass::Succeeded.into(),
                exit_code: Some(0),
                started_us: i64::try_from(started).unwrap_or(i64::MAX),
                finished_us: i64::try_from(started.saturating_add(wall)).unwrap_or(i64::MAX),
                user_us,
                system_us,
                peak_memory_bytes,
                memory_method: v1::MemoryMethod::Rusage.into(),
                ..Default::default()
            },
        }
    }
}

/// A group as everybody but the machine needs it.
pub struct GroupInfo {
    pub(super) id: GroupId,
    pub(super) run: RunId,
    /// As submitted.
    pub spec: v1::GroupSpec,
    /// The parameters.
    pub space: Space,
    /// Some later task reads its outputs.
    pub(super) read_by_others: bool,
    /// Ordinal in its run.
    pub(super) ordinal: u32,
    /// False where the run has no directory.
    pub(super) recorded: bool,
    /// The client that is told of every end.
    pub(super) deliver_to: Option<u64>,
}

impl GroupInfo {
    pub(super) fn is_function(&self) -> bool {
        matches!(self.template().command, Some(v1::task_template::Command::Function(_)))
    }

    fn template(&self) -> &v1::TaskTemplate {
        static EMPTY: std::sync::LazyLock<v1::TaskTemplate> = std::sync::LazyLock::new(v1::TaskTemplate::default);
        self.spec.template.as_ref().unwrap_or(&EMPTY)
    }

    /// Inputs in the order of their ordinals on the wire: stdin is the one after the last.
    pub(super) fn inputs(&self) -> impl Iterator<Item = (u32, &v1::InputSource)> {
        let template = self.template();
        let named = template.inputs.iter().map(|input| input.source.as_ref());
        named.chain([template.stdin.as_ref()]).enumerate().filter_map(|(at, source)| Some((at as u32, source?)))
    }

    /// What kind of output this is.
    pub(super) fn output_kind(&self, name: &str) -> v1::OutputKind {
        self.template().outputs.iter().find(|output| output.name == name).map_or(v1::OutputKind::File, v1::Output::kind)
    }

    /// Some output is only for later tasks.
    pub(super) fn has_discarded(&self) -> bool {
        self.template().outputs.iter().any(|output| output.discard)
    }

    /// Digests of the files beside the manifest that its tasks get.
    fn files(&self) -> impl Iterator<Item = Digest> + '_ {
        self.template().files.iter().filter_map(|file| Digest::from_slice(&file.digest))
    }

    /// True for functions each of whose inputs is the result of one task.
    pub(super) fn reads_single_results(&self) -> bool {
        use v1::input_source::Select;
        let single = |source: &v1::InputSource| matches!(source.select, Some(Select::Element(_) | Select::Index(_)));
        self.is_function() && !self.template().inputs.is_empty() && self.inputs().all(|(_, source)| single(source))
    }

    pub(super) fn output_ordinal(&self, name: &str) -> Option<usize> {
        self.template().outputs.iter().position(|output| output.name == name)
    }

    pub(super) fn announcement(&self) -> v1::AnnounceGroup {
        v1::AnnounceGroup {
            group: self.id.0,
            run: self.run.0,
            name: self.spec.name.clone(),
            template: self.spec.template.clone(),
            parameters: self.spec.parameters.clone(),
            grace_ms: self.spec.policy.as_ref().map_or(0, |policy| policy.grace_ms),
        }
    }

    /// The group's id.
    pub(crate) fn id(&self) -> GroupId {
        self.id
    }

    /// The run it belongs to.
    pub(crate) fn run(&self) -> RunId {
        self.run
    }

    /// What its tasks need to run in.
    pub(crate) fn component(&self) -> &str {
        &self.template().component
    }

    /// True when this output is only for later tasks.
    pub(crate) fn discards(&self, output: &str) -> bool {
        self.template().outputs.iter().any(|known| known.name == output && known.discard)
    }

    /// The key of a task that reads nothing: what its worker would have said in a whole report.
    pub(crate) fn key_without_inputs(&self, index: u32) -> Bytes {
        Bytes::copy_from_slice(&scalable_template::key(self.template(), index, &self.space.values(index), &[]))
    }

    /// An element's parameters as people read them.
    pub(super) fn parameters(&self, index: u32) -> String {
        self.space.element_name(index)
    }
}

/// A committed output.
#[derive(Clone, Debug, Default)]
pub(super) struct Stored {
    pub(super) written: bool,
    pub(super) digest: Bytes,
    pub(super) size: u64,
    /// It is on workers that do not see the run's directory, and perhaps in the output store.
    pub(super) held: bool,
    pub(super) manifest: Bytes,
    pub(super) manifest_size: u64,
    pub(super) executable: bool,
}

/// A run as everybody but the machine needs it.
pub(super) struct RunInfo {
    pub(super) spec: v1::RunSpec,
    /// By ordinal; without those that were refused, and those that the machine has forgotten.
    pub(super) groups: BTreeMap<u32, GroupId>,
    /// How many it has had: the ordinal of the next one.
    pub(super) groups_added: u32,
    /// Whose it is, as long as it is open.
    pub(super) client: Option<u64>,
    /// Its client's user does not keep up.
    pub(super) paused: bool,
    objects: FxHashMap<TaskRef, Box<[Stored]>>,
    pub(super) end: Option<RunEnd>,
    pub(super) complete: bool,
    /// Something has changed since its watchers were told.
    pub(super) dirty: bool,
    pub(super) failures_pushed: u32,
    pub(super) told_at: Option<Instant>,
    /// What the file `.here` in its directory says.
    mark: Bytes,
    /// Since when it could be fetched by a client that shares no disk, until that has fetched it.
    to_fetch_since: Option<Instant>,
    fetched: bool,
}

impl RunInfo {
    pub(super) fn group(&self, ordinal: u32) -> Option<GroupId> {
        self.groups.get(&ordinal).copied()
    }

    pub(super) fn group_ids(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.groups.values().copied()
    }

    /// False where it has no directory to record anything in.
    pub(super) fn is_recorded(&self) -> bool {
        !self.spec.directory.is_empty()
    }

    /// Its client has not fetched it, and is waited for.
    pub(super) fn awaits_client(&self, ttl: Duration) -> bool {
        self.spec.fetched && !self.fetched && self.to_fetch_since.is_none_or(|since| since.elapsed() < ttl)
    }

    /// Nobody reads what these elements have left any more.
    pub(super) fn release_objects(&mut self, group: GroupId, first: u32, count: u32) {
        let kept = self.objects.len();
        if kept <= count as usize {
            let end = first.saturating_add(count);
            return self.objects.retain(|task, _| task.group != group || !(first..end).contains(&task.index));
        }
        for index in first..first.saturating_add(count) {
            self.objects.remove(&TaskRef { group, index });
        }
    }

    pub(super) fn object(&self, task: TaskRef, output: usize) -> Option<&Stored> {
        self.objects.get(&task)?.get(output)
    }

    pub(super) fn announcement(&self, id: RunId) -> v1::AnnounceRun {
        v1::AnnounceRun {
            run: id.0,
            name: self.spec.name.clone(),
            directory: self.spec.directory.clone(),
            base_directory: self.spec.base_directory.clone(),
            keep_failed: self.spec.keep_failed,
            groups: self.spec.groups.iter().map(|group| group.name.clone()).collect(),
            takes_over: self.spec.takes_over.clone(),
            strict: self.spec.strict,
            mark: self.mark.clone(),
        }
    }
}

impl Reactor {
    /// Takes in a run that the machine has accepted.
    pub(super) fn begin_run(
        &mut self,
        run: RunId,
        first_group: GroupId,
        spec: v1::RunSpec,
        spaces: Vec<Space>,
        client: Option<u64>,
    ) {
        self.counters.runs += 1;
        self.idle_since = None;
        let mut read = vec![false; spec.groups.len()];
        for template in spec.groups.iter().filter_map(|group| group.template.as_ref()) {
            for source in template.inputs.iter().filter_map(|input| input.source.as_ref()).chain(template.stdin.as_ref()) {
                if let Some(read) = read.get_mut(source.group as usize) {
                    *read = true;
                }
            }
        }
        let mut groups = Vec::with_capacity(spec.groups.len());
        for (ordinal, (group, space)) in spec.groups.iter().zip(spaces).enumerate() {
            let id = GroupId(first_group.0 + ordinal as u32);
            let info = Arc::new(GroupInfo {
                id,
                run,
                spec: group.clone(),
                space,
                read_by_others: read[ordinal] || spec.open,
                ordinal: ordinal as u32,
                recorded: !spec.directory.is_empty(),
                deliver_to: client.filter(|_| group.deliver),
            });
            groups.push(info.clone());
            self.groups.insert(id, info);
        }
        let ids: BTreeMap<u32, GroupId> = groups.iter().map(|group| (group.ordinal, group.id)).collect();
        let mut header = spec.clone();
        // The templates live in the groups; what stays here is what the announcement of the run needs.
        for group in &mut header.groups {
            *group = v1::GroupSpec { name: std::mem::take(&mut group.name), ..Default::default() };
        }
        let mut mark = Bytes::new();
        if !header.directory.is_empty() {
            let directory = PathBuf::from(&header.directory);
            mark = leave_mark(&directory);
            let files: Vec<Digest> = groups.iter().flat_map(|group| group.files()).collect();
            self.outputs.store.begin(run, &header.name, directory, files, header.fetched);
            self.record(Record::RunBegan(Box::new(RunRecord {
                began: jiff::Timestamp::now(),
                run,
                spec: header.clone(),
                groups,
                address: self.identity.address.clone(),
                http: self.identity.http.clone(),
                token_file: self.identity.token_file.clone(),
            })));
        }
        if header.open {
            self.open_runs.push(run);
        }
        let info = RunInfo {
            spec: header,
            groups_added: ids.len() as u32,
            groups: ids,
            client,
            paused: false,
            objects: FxHashMap::default(),
            end: None,
            complete: false,
            dirty: true,
            failures_pushed: 0,
            told_at: None,
            mark,
            to_fetch_since: None,
            fetched: false,
        };
        self.runs.insert(run, info);
        // One without any task is over already.
        self.outputs.touch(run);
    }

    pub(super) fn touch(&mut self, group: GroupId) {
        // Most of what happens in one flush happens to one group.
        if self.touched.replace(group) == Some(group) {
            return;
        }
        let Some(of) = self.groups.get(&group).map(|group| group.run) else { return };
        self.outputs.touch(of);
        if let Some(run) = self.runs.get_mut(&of) {
            run.dirty = true;
        }
    }

    fn report(&self, token: u32) -> Option<Report> {
        self.reports.get(token as usize).cloned()
    }

    pub(super) fn committed(&mut self, task: TaskRef, attempt: u32, session: SessionId, token: u32) {
        self.counters.committed += 1;
        let Some(group) = self.groups.get(&task.group).cloned() else { return };
        self.keep_objects(&group, task, attempt, session, token);
        if self.returned(&group, task, attempt, token) && !group.recorded {
            return self.touch(task.group);
        }
        let report = self.report(token);
        self.touch(task.group);
        if group.deliver_to.is_some() && !group.is_function() {
            let report = report.clone().map(Report::into_full).unwrap_or_default();
            self.deliver_report(&group, task.index, report);
        }
        if group.recorded {
            let worker = self.worker_name(session);
            self.record(Record::Succeeded { group, index: task.index, attempt, worker, report });
        }
    }

    /// What a committed attempt has made, for those that read it and for the output store.
    pub(super) fn keep_objects(&mut self, group: &GroupInfo, task: TaskRef, attempt: u32, session: SessionId, token: u32) {
        let Some(Report::Full(report)) = self.report(token) else { return };
        if let (true, Some(run)) = (group.read_by_others, self.runs.get_mut(&group.run)) {
            let stored = group.template().outputs.iter().map(|output| {
                let found = report.outputs.iter().find(|found| found.name == output.name && found.written);
                found.map_or_else(Stored::default, |found| Stored {
                    written: true,
                    digest: found.digest.clone(),
                    size: found.size,
                    held: found.held,
                    manifest: found.manifest.clone(),
                    manifest_size: found.manifest_size,
                    executable: found.executable,
                })
            });
            run.objects.insert(task, stored.collect());
        }
        if group.recorded {
            self.outputs_committed(group, task, attempt, session, &report);
        }
    }

    /// What the worker reported of an end, else why it had none to report.
    pub(super) fn report_of_end(&mut self, token: Option<u32>, why: Option<Box<str>>) -> v1::AttemptReport {
        let report = token.and_then(|token| self.report(token)).map(Report::into_full);
        let message = why.map(String::from).unwrap_or_default();
        report.unwrap_or_else(|| v1::AttemptReport { message, ..Default::default() })
    }

    pub(super) fn attempt_ended(
        &mut self,
        task: TaskRef,
        attempt: u32,
        session: SessionId,
        class: OutcomeClass,
        mut report: v1::AttemptReport,
        again: bool,
    ) {
        let Some(group) = self.groups.get(&task.group).cloned() else { return };
        self.touch(task.group);
        let worker = self.worker_name(session);
        if report.class() != convert::class_to_wire(class) {
            report.set_class(convert::class_to_wire(class));
        }
        if report.message.is_empty() && class == OutcomeClass::LostWorker {
            report.message = format!("worker {worker} was lost while this attempt was on it");
        }
        let charged = !matches!(class, OutcomeClass::Preempted | OutcomeClass::Cancelled);
        if charged {
            self.counters.attempts_failed += 1;
            self.push_failure(&group, task.index, attempt, &worker, &report, !again);
        }
        if !again && group.deliver_to.is_some() {
            let (class, worker) = (report.class, worker.to_string());
            let error = v1::TaskError { class, attempt, worker, report: Some(report.clone()), ..Default::default() };
            self.last_error = Some((task, error));
        }
        if group.recorded {
            self.logs_held(&group, task, attempt, session, &report);
            let report = Box::new(report);
            self.record(Record::AttemptEnded { group, index: task.index, attempt, worker, report, last: !again });
        }
    }

    fn push_failure(
        &mut self,
        group: &GroupInfo,
        index: u32,
        attempt: u32,
        worker: &str,
        report: &v1::AttemptReport,
        last: bool,
    ) {
        let Some(run) = self.runs.get_mut(&group.run) else { return };
        if run.failures_pushed >= FAILURES_PUSHED_MAX {
            return;
        }
        run.failures_pushed += 1;
        let failed = v1::TaskFailed {
            run: run.spec.name.clone(),
            group: group.spec.name.clone(),
            index,
            parameters: group.parameters(index),
            attempt,
            worker: worker.to_owned(),
            report: Some(report.clone()),
            r#final: last,
            log_directory: format!("{}/logs/{}", run.spec.directory, group.spec.name),
        };
        let name = run.spec.name.clone();
        for client in self.clients.values_mut().filter(|client| client.watches.contains(&name)) {
            client.send(v1::client_events::Body::Failed(failed.clone()));
        }
    }

    pub(super) fn task_failed(&mut self, task: TaskRef, attempts: u32, class: OutcomeClass) {
        let Some(group) = self.groups.get(&task.group).cloned() else { return };
        self.touch(task.group);
        self.outputs_given_up(task.group, task.index, 1);
        if group.deliver_to.is_some() {
            let error = match self.last_error.take_if(|(failed, _)| *failed == task) {
                Some((_, error)) => v1::TaskError { class: convert::class_to_wire(class).into(), ..error },
                None => v1::TaskError { class: convert::class_to_wire(class).into(), attempt: attempts, ..Default::default() },
            };
            self.deliver_error(&group, task.index, error);
        }
        if group.recorded {
            self.record(Record::Failed { group, index: task.index, attempts, class: class.word() });
        }
    }

    pub(super) fn skipped(&mut self, group: GroupId, first: u32, count: u32, root: TaskRef) {
        let Some(group) = self.groups.get(&group).cloned() else { return };
        self.touch(group.id);
        self.outputs_given_up(group.id, first, count);
        self.deliver_range(&group, first, count, OutcomeClass::DependencyFailed, Some(root));
        if !group.recorded {
            return;
        }
        let root = self.groups.get(&root.group).map_or_else(String::new, |info| format!("{}[{}]", info.spec.name, root.index));
        self.record(Record::Range { group, first, count, kind: Count::Skipped { root } });
    }

    pub(super) fn cancelled(&mut self, group: GroupId, first: u32, count: u32) {
        let Some(group) = self.groups.get(&group).cloned() else { return };
        self.touch(group.id);
        self.outputs_given_up(group.id, first, count);
        self.deliver_range(&group, first, count, OutcomeClass::Cancelled, None);
        if group.recorded {
            self.record(Record::Range { group, first, count, kind: Count::Cancelled });
        }
    }

    pub(super) fn run_ended(&mut self, id: RunId, end: RunEnd) {
        let progress = self.progress(id);
        self.outputs_ended(id);
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.end = Some(end);
        run.dirty = true;
        run.objects = FxHashMap::default();
        for session in self.workers.values_mut() {
            session.send_control(v1::scheduler_control::Body::Release(v1::Release { runs: vec![id.0], groups: Vec::new() }));
        }
        self.open_runs.retain(|open| *open != id);
        for group in self.runs.get(&id).into_iter().flat_map(|run| run.group_ids()) {
            self.payloads.remove(&group);
        }
        match self.runs.get(&id).is_some_and(RunInfo::is_recorded) {
            true => {
                let missing = Some(self.outputs_note(id)).filter(|note| !note.is_empty());
                self.record(Record::RunEnded { run: id, end, counts: progress.groups, outputs_missing: missing });
            }
            false => self.unrecorded.push(id),
        }
    }

    /// A group of an open run is over and of no more use to anybody: nothing of it is kept but its counts, which the machine has.
    pub(super) fn group_forgotten(&mut self, run: RunId, group: GroupId) {
        self.payloads.remove(&group);
        for worker in self.workers.values_mut() {
            worker.group_forgotten(group);
        }
        if let (Some(info), Some(run)) = (self.groups.remove(&group), self.runs.get_mut(&run)) {
            run.groups.remove(&info.ordinal);
            run.dirty = true;
        }
    }

    /// The records of a run are written and its outputs are in the store.
    pub(super) fn recorded(&mut self, id: RunId) {
        if let Some(run) = self.runs.get_mut(&id) {
            run.complete = true;
            run.dirty = true;
            run.told_at = None;
            run.to_fetch_since = Some(Instant::now());
            self.outputs.store.complete(id);
        }
        if self.runs.values().all(|run| run.complete) {
            self.idle_since = Some(Instant::now());
        }
        self.forget_old_runs();
    }

    /// A client that shares no disk has every file of the run.
    pub(crate) fn acknowledge_run(&mut self, request: &v1::AcknowledgeRunRequest) -> Result<v1::AcknowledgeRunReply, Status> {
        let id = self.run_named(&request.run).filter(|_| !request.run.is_empty());
        let run = id.and_then(|id| self.runs.get_mut(&id));
        let run = run.ok_or_else(|| Status::not_found(format!("no run `{}` is known here", request.run)))?;
        if !run.complete {
            return Err(Status::failed_precondition(format!("run `{}` is not over", request.run)));
        }
        // Its own directory goes; that of a client who shares the disk is the client's.
        let forget = run.spec.fetched && !std::mem::replace(&mut run.fetched, true);
        if forget && let Some(id) = id {
            self.forget_outputs(id);
        }
        if self.runs.values().all(|run| run.complete) {
            self.idle_since = Some(Instant::now());
        }
        Ok(v1::AcknowledgeRunReply {})
    }

    /// Keeps what is known of ended runs bounded, as the machine does.
    fn forget_old_runs(&mut self) {
        let ended: Vec<RunId> = self.runs.iter().filter(|(_, run)| run.complete).map(|(id, _)| *id).collect();
        for id in ended {
            if self.machine.run(id).is_none()
                && !self.runs.get(&id).is_some_and(|run| run.awaits_client(self.results_ttl))
                && let Some(run) = self.runs.remove(&id)
            {
                self.forget_outputs(id);
                for group in run.group_ids() {
                    self.groups.remove(&group);
                }
            }
        }
    }
}

/// Leaves a mark by which workers know the run's directory. One small file, written here so that it is there before any worker is told of
/// the run. Where it cannot be written no worker will find it, and the records say what is wrong with the directory.
fn leave_mark(directory: &Path) -> Bytes {
    let mut mark = [0; 16];
    if let Err(error) = getrandom::fill(&mut mark) {
        tracing::error!(%error, "no random numbers: every worker is taken to see the run's directory");
        return Bytes::new();
    }
    let written = std::fs::create_dir_all(directory).and_then(|()| std::fs::write(directory.join(MARK), mark));
    if let Err(error) = written {
        tracing::warn!(directory = %directory.display(), %error, "workers will not know the run's directory");
    }
    Bytes::copy_from_slice(&mark)
}
