//! Open runs: groups and elements that a client adds while its run goes on, and what it lets go of again.
//!
//! A client numbers its groups and elements itself and waits for no answer. What is refused is answered with `Rejected`, and
//! counts as elements that are over: numbers never shift.

use scalable_core::ids::{GroupId, RunId, TaskRef};
use scalable_core::messages::{Edge, Input, Output};
use scalable_core::spec::{GroupSpec, Length};
use scalable_proto::v1;
use scalable_template::Space;

use super::payload::Sources;
use super::{Reactor, runs};
use crate::convert::{self, Refused};

/// Elements in one append.
const APPEND_MAX: u32 = 1 << 20;
/// Bytes of one element's own arguments.
const ARGS_MAX: u32 = 1 << 20;

impl Reactor {
    /// The run that a client names in later frames, if it is its own and may still grow.
    pub(super) fn open_run(&self, client: u64, run: u32) -> Option<RunId> {
        let id = RunId(run);
        self.runs.get(&id).filter(|run| run.client == Some(client) && run.spec.open).map(|_| id)
    }

    pub(super) fn add_group(&mut self, client: u64, frame: v1::AddGroup) -> Result<(), &'static str> {
        let Some(id) = self.open_run(client, frame.run) else { return Err("a group for a run that is not this client's") };
        let spec = frame.spec.unwrap_or_default();
        let Some(run) = self.runs.get(&id) else { return Ok(()) };
        if frame.group != run.groups_added {
            return Err("groups of a run are numbered on");
        }
        let (core, refused) = match self.checked_group(&spec, frame.group) {
            Ok(core) => (core, None),
            Err(refused) => (unusable(), Some(refused)),
        };
        let before = self.outbox.len();
        self.step(Input::AddGroup { run: id, ordinal: frame.group, spec: Box::new(core) });
        let added = self.outbox.iter().skip(before).find_map(|output| match output {
            Output::GroupAdded { run, group, .. } if *run == id => Some(*group),
            _ => None,
        });
        match (added, refused) {
            (Some(group), None) => self.take_in_group(id, group, frame.group, spec),
            (_, refused) => {
                let Some(run) = self.runs.get_mut(&id) else { return Ok(()) };
                run.groups_added += 1;
                // The machine's own refusal follows from the outbox, unless it was given a group only to refuse it.
                if let Some(refused) = refused {
                    self.outbox.truncate(before);
                    self.reject(id, frame.group, 0, 0, &refused);
                }
            }
        }
        Ok(())
    }

    fn checked_group(&mut self, spec: &v1::GroupSpec, ordinal: u32) -> Result<GroupSpec, Refused> {
        super::clients::file_safe(&spec.name, "group")?;
        if spec.parameters.is_some() {
            let space = Space::with_length(&spec.parameters.clone().unwrap_or_default(), spec.length);
            space.map_err(|error| Refused::new("E_BAD_PARAMETERS", format!("group `{}`: {error}", spec.name), ""))?;
        }
        let mut core = convert::group(spec, ordinal as usize, false, self.machine.names_mut())?;
        if spec.growing {
            core.length = Length::Growing;
        }
        Ok(core)
    }

    fn take_in_group(&mut self, run: RunId, group: GroupId, ordinal: u32, spec: v1::GroupSpec) {
        let parameters = spec.parameters.clone().unwrap_or_default();
        // A growing group has no parameters of its own: its elements differ by what is appended.
        let Ok(space) = Space::with_length(&parameters, spec.length) else { return };
        let Some(info) = self.runs.get_mut(&run) else { return };
        info.groups.insert(ordinal, group);
        info.groups_added += 1;
        let recorded = info.is_recorded();
        let deliver_to = info.client.filter(|_| spec.deliver);
        let info = runs::GroupInfo { id: group, run, ordinal, spec, space, read_by_others: true, recorded, deliver_to };
        self.groups.insert(group, std::sync::Arc::new(info));
    }

    pub(super) fn append(&mut self, client: u64, frame: v1::Append) -> Result<(), &'static str> {
        let Some(id) = self.open_run(client, frame.run) else { return Err("elements for a run that is not this client's") };
        let Some(run) = self.runs.get(&id).filter(|run| frame.group < run.groups_added) else {
            return Err("elements for a group that was never added");
        };
        let Some(group) = run.group(frame.group) else {
            let message = "the group of these elements was refused, or is over and let go of";
            let refused = Refused::new("E_GROUP_REFUSED", message, "see the group's refusal");
            self.reject(id, frame.group, frame.first, frame.count, &refused);
            return Ok(());
        };
        let edges = self.checked_append(id, group, &frame)?;
        let sources = edges.sources;
        let before = self.outbox.len();
        let (first, count) = (frame.first, frame.count);
        self.step(Input::Append { run: id, group, first, count, edges: edges.edges, last: frame.last });
        let taken = !self.outbox.iter().skip(before).any(|output| matches!(output, Output::Rejected { run, .. } if *run == id));
        if taken && count > 0 {
            let payload = self.payloads.entry(group).or_default();
            payload.append(first, count, frame.args_end, frame.args, sources);
        }
        self.touch(group);
        Ok(())
    }

    /// Checks the columns of an append; what is wrong with them is a violation of the protocol.
    fn checked_append(&self, run: RunId, group: GroupId, frame: &v1::Append) -> Result<Edges, &'static str> {
        let count = frame.count as usize;
        if frame.count > APPEND_MAX || frame.first.checked_add(frame.count).is_none() {
            return Err("an append of too many elements");
        }
        if !frame.args_end.is_empty() {
            let mut start = 0;
            for &end in &frame.args_end {
                if end < start || end - start > ARGS_MAX {
                    return Err("an element's arguments are malformed or longer than 1 MiB");
                }
                start = end;
            }
            if frame.args_end.len() != count || start as usize != frame.args.len() {
                return Err("the columns of an append do not fit together");
            }
        }
        let inputs = frame.inputs.len();
        let mut made = Edges { edges: Vec::with_capacity(inputs * count), sources: Vec::with_capacity(inputs) };
        for input in &frame.inputs {
            let given = input.group.len();
            if given != input.index.len() || !(given == count || given == 1) {
                return Err("the columns of an append do not fit together");
            }
            let tasks = self.tasks(run, &input.group, &input.index)?;
            made.sources.push(Sources { input: input.input, tasks });
        }
        // Element by element: the machine finds together what belongs together.
        for at in 0..frame.count {
            for sources in &made.sources {
                let upstream = match sources.tasks.as_slice() {
                    [one] => *one,
                    each => each[at as usize],
                };
                made.edges.push(Edge { element: frame.first + at, upstream, data: true });
            }
        }
        let after = self.tasks(run, &frame.after_group, &frame.after_index)?;
        if after.len() != frame.after_element.len() || frame.after_element.iter().any(|&element| element >= frame.count) {
            return Err("the columns of an append do not fit together");
        }
        let edge = |(&element, upstream)| Edge { element: frame.first + element, upstream, data: false };
        made.edges.extend(frame.after_element.iter().zip(after).map(edge));
        if made.edges.iter().any(|edge| edge.upstream.group == group && edge.upstream.index >= edge.element) {
            return Err("an element waits for itself or a later one");
        }
        Ok(made)
    }

    fn tasks(&self, run: RunId, groups: &[u32], indices: &[u32]) -> Result<Vec<TaskRef>, &'static str> {
        if groups.len() != indices.len() {
            return Err("the columns of an append do not fit together");
        }
        let Some(info) = self.runs.get(&run) else { return Ok(Vec::new()) };
        let task = |(&group, &index): (&u32, &u32)| {
            if group >= info.groups_added {
                return Err("an input of a group that was never added");
            }
            // A refused or forgotten group has no number: no task of it is known, and the machine refuses what waits for one.
            Ok(TaskRef { group: info.group(group).unwrap_or(GroupId(0)), index })
        };
        groups.iter().zip(indices).map(task).collect()
    }

    pub(super) fn close_run(&mut self, client: u64, run: u32) -> Result<(), &'static str> {
        match self.open_run(client, run) {
            Some(id) => self.step(Input::CloseRun { run: id }),
            None => return Err("the end of a run that is not this client's"),
        }
        Ok(())
    }

    /// The client's side lets go of results.
    pub(super) fn release(&mut self, client: u64, frame: &v1::ReleaseResults) -> Result<(), &'static str> {
        let ranges = frame.group.len();
        if frame.first.len() != ranges || frame.count.len() != ranges {
            return Err("the columns of a release do not fit together");
        }
        let Some(id) = self.open_run(client, frame.run) else { return Ok(()) };
        for at in 0..ranges {
            let group = self.runs.get(&id).and_then(|run| run.group(frame.group[at]));
            if let Some(group) = group {
                self.step(Input::Release { group, first: frame.first[at], count: frame.count[at] });
            }
        }
        Ok(())
    }

    pub(super) fn cancel_elements(&mut self, client: u64, frame: &v1::CancelElements) {
        let Some(id) = self.open_run(client, frame.run) else { return };
        let Some(group) = self.runs.get(&id).and_then(|run| run.group(frame.group)) else { return };
        let length = self.machine.group(group).and_then(|view| view.length).unwrap_or(0);
        if frame.first == 0 && frame.count >= length {
            return self.step(Input::Cancel { run: id, group: Some(group), index: None });
        }
        for index in frame.first..frame.first.saturating_add(frame.count).min(length) {
            self.step(Input::Cancel { run: id, group: Some(group), index: Some(index) });
        }
    }

    /// Tells the client of a refusal.
    pub(super) fn reject(&mut self, run: RunId, group: u32, first: u32, count: u32, refused: &Refused) {
        let Some(client) = self.runs.get(&run).and_then(|run| run.client) else { return };
        let Some(client) = self.clients.get_mut(&client) else { return };
        let refusal = Some(refused.to_wire());
        client.send_data(v1::client_results::Body::Rejected(v1::Rejected { run: run.0, group, first, count, refusal }));
    }

    /// Nobody is left who could let these runs grow or read their results.
    pub(super) fn abandon_runs(&mut self, client: u64) {
        let open = |(_, run): &(&RunId, &super::RunInfo)| run.client == Some(client) && run.end.is_none();
        let runs: Vec<(RunId, bool)> = self.runs.iter().filter(open).map(|(id, run)| (*id, run.spec.detached)).collect();
        for (id, detached) in runs {
            self.step(Input::CloseRun { run: id });
            if !detached {
                self.step(Input::Cancel { run: id, group: None, index: None });
            }
        }
    }
}

/// What an append means to the machine and to its payload.
struct Edges {
    edges: Vec<Edge>,
    sources: Vec<Sources>,
}

/// In the place of a group that cannot even be put to the machine: it refuses a group without a name, and the number is taken.
fn unusable() -> GroupSpec {
    GroupSpec {
        name: String::new(),
        component: String::new(),
        length: Length::Growing,
        dependencies: Vec::new(),
        priority: 0,
        max_parallel: 0,
        always: false,
        policy: Default::default(),
        resources: Default::default(),
    }
}
