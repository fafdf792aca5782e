//! Submit: a run is checked as a whole and then becomes groups, or is refused and nothing has changed.

use super::Scheduler;
use super::depend::{Edges, End, Settled, Upstream, UpstreamKind};
use super::group::{Group, Run};
use super::interval_set::IntervalSet;
use super::projection::Projection;
use super::ready::ClassKey;
use crate::ids::{GroupId, RunId, ShapeId};
use crate::messages::{Outbox, Output};
use crate::resources::{ResourceName, Resources};
use crate::spec::{
    Dependency, DependencyKind, EDGES_PER_GROUP_MAX, GROUPS_PER_RUN_MAX, GroupSpec, Length, NAME_BYTES_MAX, RunSpec,
    TASKS_PER_RUN_MAX,
};
use rustc_hash::FxHashSet;

/// Most dependencies of one run, all groups together.
pub const DEPENDENCIES_PER_RUN_MAX: usize = 1 << 20;

/// Why a run is not taken: a stable word and one sentence.
type Refusal = (&'static str, String);

/// What is wrong with a name, if anything.
pub(super) fn bad_name(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("is empty")
    } else if name.len() > NAME_BYTES_MAX {
        Some("is longer than 256 bytes")
    } else if name.chars().any(char::is_control) {
        Some("has a control character")
    } else {
        None
    }
}

/// A name as it may be shown: at most 64 characters of it.
pub(super) fn shown(name: &str) -> &str {
    name.char_indices().nth(64).map_or(name, |(at, _)| &name[..at])
}

impl Scheduler {
    /// Takes a run or refuses it.
    pub(super) fn submit(&mut self, spec: RunSpec, out: &mut Outbox) {
        let client_key = spec.client_key;
        if let Some(&run) = self.client_keys.get(&client_key) {
            let first_group = self.runs.get(&run).map_or(GroupId(0), |run| run.first_group);
            out.push(Output::Submitted { client_key, run, first_group, known: true });
            return;
        }
        let checked = self.accept_run(&spec).and_then(|()| upstreams(&spec));
        match checked {
            Ok(upstreams) => self.add_run(spec, upstreams, out),
            Err((code, message)) => out.push(Output::Refused { client_key, code, message }),
        }
    }

    fn accept_run(&self, spec: &RunSpec) -> Result<(), Refusal> {
        if let Some(what) = bad_name(&spec.name) {
            return Err(("E_NAME", format!("the run's name {:?} {what}", shown(&spec.name))));
        }
        if !spec.owner.is_empty()
            && let Some(what) = bad_name(&spec.owner)
        {
            return Err(("E_NAME", format!("the owner's name {:?} {what}", shown(&spec.owner))));
        }
        if self.run_names.contains_key(&spec.name) {
            return Err(("E_RUN_EXISTS", format!("there is a run '{}' already", spec.name)));
        }
        if spec.weight == 0 {
            return Err(("E_WEIGHT", "the run's weight is 0 and must be at least 1".to_owned()));
        }
        if spec.groups.len() > GROUPS_PER_RUN_MAX {
            return Err((
                "E_TOO_MANY_GROUPS",
                format!("the run has {} groups and the limit is {GROUPS_PER_RUN_MAX}", spec.groups.len()),
            ));
        }
        if self.groups.len() + spec.groups.len() > self.config.groups_max || self.runs.len() >= self.config.runs_max {
            return Err((
                "E_SCHEDULER_FULL",
                format!(
                    "the scheduler holds {} runs with {} groups and takes no more; wait for runs to end",
                    self.runs.len(),
                    self.groups.len()
                ),
            ));
        }
        let dependencies: usize = spec.groups.iter().map(|group| group.dependencies.len()).sum();
        if dependencies > DEPENDENCIES_PER_RUN_MAX {
            return Err((
                "E_TOO_MANY_DEPENDENCIES",
                format!("the run has {dependencies} dependencies and the limit is {DEPENDENCIES_PER_RUN_MAX}"),
            ));
        }
        let tasks: u64 = spec
            .groups
            .iter()
            .map(|group| match group.length {
                Length::Fixed(length) => u64::from(length),
                Length::From(_) => 0,
            })
            .sum();
        if tasks > TASKS_PER_RUN_MAX {
            return Err(("E_TOO_MANY_TASKS", format!("the run has {tasks} tasks and the limit is {TASKS_PER_RUN_MAX}")));
        }
        let mut totals: FxHashSet<ResourceName> = FxHashSet::default();
        for (name, _) in &spec.totals {
            if !totals.insert(*name) {
                return Err(("E_TOTALS", format!("the run names a total of '{}' twice", self.names.name(*name))));
            }
        }
        let mut names: FxHashSet<&str> = FxHashSet::default();
        for (ordinal, group) in spec.groups.iter().enumerate() {
            self.accept_group(spec, ordinal, group)?;
            if !names.insert(&group.name) {
                return Err(("E_GROUP_EXISTS", format!("two groups are named '{}'", group.name)));
            }
        }
        Ok(())
    }

    fn accept_group(&self, spec: &RunSpec, ordinal: usize, group: &GroupSpec) -> Result<(), Refusal> {
        for (kind, name) in [("group", &group.name), ("component", &group.component)] {
            if let Some(what) = bad_name(name) {
                return Err(("E_NAME", format!("the {kind} name {:?} of group {ordinal} {what}", shown(name))));
            }
        }
        let name = &group.name;
        if let Length::From(from) = group.length {
            match spec.groups.get(from).filter(|_| from < ordinal) {
                None => {
                    return Err((
                        "E_LENGTH",
                        format!("group '{name}' takes its length from group {from}, which is not before it"),
                    ));
                }
                Some(source) if !matches!(source.length, Length::Fixed(1..)) => {
                    return Err((
                        "E_LENGTH",
                        format!("group '{name}' takes its length from '{}', which has no element known to exist", source.name),
                    ));
                }
                Some(_) => {}
            }
        }
        for &(resource, amount) in &group.resources.custom {
            if let Some((_, total)) = spec.totals.iter().find(|(total, _)| *total == resource)
                && amount > *total
            {
                let resource = self.names.name(resource);
                return Err((
                    "E_NEVER_FITS",
                    format!("a task of group '{name}' takes {amount} of '{resource}' and the whole run has {total}"),
                ));
            }
        }
        for dependency in &group.dependencies {
            if dependency.group >= ordinal {
                return Err((
                    "E_DEPENDENCY",
                    format!("group '{name}' depends on group {}, which is not before it", dependency.group),
                ));
            }
        }
        Ok(())
    }

    fn add_run(&mut self, spec: RunSpec, upstreams: Vec<Vec<Upstream>>, out: &mut Outbox) {
        let (id, first_group) = (RunId(self.next_run), GroupId(self.next_group));
        let count = spec.groups.len() as u32;
        self.next_run += 1;
        self.next_group += count;
        let weight = u128::from(spec.weight);
        // A new run begins level with the run that is due next: it owes nothing and is owed nothing.
        let level = |run: &Run| u128::from(run.charged) * weight / u128::from(run.weight);
        let charged = self.runs.values().filter(|run| run.end.is_none()).map(level).min().unwrap_or(0);
        let totals = Resources { custom: sorted(&spec.totals), ..Resources::default() };
        let mut run = Run {
            name: spec.name.clone(),
            owner: spec.owner,
            weight: spec.weight,
            client_key: spec.client_key,
            max_failures: spec.max_failures,
            totals,
            totals_used: Resources::default(),
            first_group,
            groups: count,
            groups_over: 0,
            failures: 0,
            cancelling: false,
            stopped: false,
            end: None,
            charged: u64::try_from(charged).unwrap_or(u64::MAX),
            throttled: Default::default(),
            tasks: 0,
        };
        for ((ordinal, group), upstreams) in (0u32..).zip(spec.groups).zip(upstreams) {
            let group_id = GroupId(first_group.0 + ordinal);
            let group = self.new_group(id, first_group, &spec.totals, group, upstreams);
            run.tasks += u64::from(group.length.unwrap_or(0));
            for (at, upstream) in (0u32..).zip(&group.upstreams) {
                if let Some(upstream) = self.groups.get_mut(&upstream.group) {
                    upstream.downstreams.push((group_id, at));
                }
            }
            if let Some(from) = group.length_from
                && let Some(from) = self.groups.get_mut(&from)
            {
                from.openers.push(group_id);
            }
            self.groups.insert(group_id, group);
        }
        self.client_keys.insert(spec.client_key, id);
        self.run_names.insert(spec.name, id);
        self.runs.insert(id, run);
        out.push(Output::Submitted { client_key: spec.client_key, run: id, first_group, known: false });
        if count == 0 {
            self.end_run(id, out);
        }
        for group in (first_group.0..first_group.0 + count).map(GroupId) {
            let known = self.group_of(group);
            if known.length == Some(0) {
                self.settling.push_back(Settled { group, first: 0, end: 0, how: End::Succeeded });
            } else if known.whole_left == 0 {
                self.all_whole_met(group);
            }
        }
    }

    fn new_group(
        &mut self,
        run: RunId,
        first_group: GroupId,
        totals: &[(ResourceName, u64)],
        spec: GroupSpec,
        mut upstreams: Vec<Upstream>,
    ) -> Group {
        let component = self.components.acquire(&spec.component);
        let mut worker_part = spec.resources;
        worker_part.custom = sorted(&worker_part.custom);
        let of_run: Vec<(ResourceName, u64)> =
            worker_part.custom.iter().filter(|(name, _)| totals.iter().any(|(total, _)| total == name)).copied().collect();
        worker_part.custom.retain(|(name, _)| !of_run.iter().any(|(total, _)| total == name));
        let shape = ShapeId(self.shapes.acquire(&worker_part));
        let length = match spec.length {
            Length::Fixed(length) => Some(length),
            Length::From(_) => None,
        };
        for upstream in &mut upstreams {
            upstream.group = GroupId(upstream.group.0 + first_group.0);
            upstream.satisfied = upstream.initially_satisfied(length.unwrap_or(0));
        }
        let whole = upstreams.iter().filter(|upstream| matches!(upstream.kind, UpstreamKind::Whole)).count();
        let queue = self.new_queue(ClassKey { component, shape, alone: false });
        Group {
            run,
            name: spec.name,
            component,
            priority: spec.priority,
            max_parallel: spec.max_parallel,
            always: spec.always,
            policy: spec.policy,
            shape,
            grown: Default::default(),
            totals: of_run,
            length,
            length_from: match spec.length {
                Length::From(from) => Some(GroupId(first_group.0 + from as u32)),
                Length::Fixed(_) => None,
            },
            openers: Vec::new(),
            whole_left: whole as u32 + u32::from(length.is_none()),
            upstreams,
            downstreams: Vec::new(),
            waiting: IntervalSet::from_range(0, length.unwrap_or(0)),
            queues: vec![queue],
            backoff: IntervalSet::new(),
            dispatched: Default::default(),
            running: 0,
            succeeded: IntervalSet::new(),
            failed: IntervalSet::new(),
            skipped: IntervalSet::new(),
            roots: Default::default(),
            cancelled: IntervalSet::new(),
            unsettled: length.unwrap_or(0),
            over: false,
            closed: None,
            memos: Default::default(),
            retried: 0,
            wall_mean: None,
            cpu_mean: None,
        }
    }

    /// Keeps the run among those that have ended; the oldest beyond the limit are forgotten.
    pub(super) fn retain_ended(&mut self, id: RunId) {
        self.ended_runs.push_back(id);
        while self.ended_runs.len() > self.config.runs_kept {
            if let Some(oldest) = self.ended_runs.pop_front() {
                self.drop_run(oldest);
            }
        }
    }

    /// Forgets a run that has ended.
    pub(super) fn forget(&mut self, id: RunId) {
        if self.runs.get(&id).is_some_and(|run| run.end.is_some()) {
            self.ended_runs.retain(|ended| *ended != id);
            self.drop_run(id);
        }
    }

    fn drop_run(&mut self, id: RunId) {
        let Some(run) = self.runs.remove(&id) else { return };
        self.client_keys.remove(&run.client_key);
        self.run_names.remove(&run.name);
        for group in run.group_ids() {
            self.release_queues(group);
            let Some(group) = self.groups.remove(&group) else { continue };
            self.components.release(group.component);
            self.shapes.release(group.shape.0);
            for shape in group.grown {
                self.shapes.release(shape.0);
            }
        }
    }
}

/// The run's dependencies prepared, group by group; `Upstream::group` is still the ordinal.
fn upstreams(spec: &RunSpec) -> Result<Vec<Vec<Upstream>>, Refusal> {
    spec.groups
        .iter()
        .map(|group| group.dependencies.iter().map(|dependency| upstream(spec, group, dependency)).collect())
        .collect()
}

fn upstream(spec: &RunSpec, group: &GroupSpec, dependency: &Dependency) -> Result<Upstream, Refusal> {
    let name = &group.name;
    let other = &spec.groups[dependency.group];
    let lengths = match (other.length, group.length) {
        (Length::Fixed(upstream), Length::Fixed(downstream)) => Some((upstream, downstream)),
        _ => None,
    };
    let by_element = || {
        lengths.ok_or_else(|| {
            let message = format!(
                "group '{name}' depends on '{}' element by element and one of them is open: only a whole dependency is possible",
                other.name
            );
            ("E_DEPENDENCY", message)
        })
    };
    let kind = match &dependency.kind {
        DependencyKind::Whole => UpstreamKind::Whole,
        DependencyKind::Projection(axes) => {
            let (upstream, downstream) = by_element()?;
            let plan = Projection::new(axes, upstream, downstream).map_err(|what| {
                ("E_PROJECTION", format!("the dependency of group '{name}' on '{}' does not fit: {what}", other.name))
            })?;
            UpstreamKind::Projection { plan, ended: Default::default() }
        }
        DependencyKind::Edges(pairs) => {
            let (upstream, downstream) = by_element()?;
            if pairs.len() > EDGES_PER_GROUP_MAX {
                return Err((
                    "E_TOO_MANY_EDGES",
                    format!("group '{name}' has {} edges and the limit is {EDGES_PER_GROUP_MAX}", pairs.len()),
                ));
            }
            if let Some((from, to)) = pairs.iter().find(|(from, to)| *from >= upstream || *to >= downstream) {
                return Err((
                    "E_EDGE",
                    format!(
                        "the edge {from} -> {to} of group '{name}' leaves '{}' ({upstream}) or itself ({downstream})",
                        other.name
                    ),
                ));
            }
            UpstreamKind::Edges(Edges::new(pairs.clone()))
        }
    };
    Ok(Upstream { group: GroupId(dependency.group as u32), kind, met: false, satisfied: IntervalSet::new() })
}

/// Custom amounts as [`Resources`] keeps them: by name, without zeros, one entry a name.
fn sorted(amounts: &[(ResourceName, u64)]) -> smallvec::SmallVec<[(ResourceName, u64); 2]> {
    let mut sum = Resources::default();
    for &amount in amounts {
        sum.add(&Resources { custom: [amount].into_iter().collect(), ..Resources::default() });
    }
    sum.custom.retain(|(_, amount)| *amount > 0);
    sum.custom
}
