//! Submit: a run is checked as a whole and then becomes groups, or is refused and nothing has changed. What has ended is
//! remembered here and forgotten.

use super::Scheduler;
use super::depend::{End, Settled, Upstream};
use super::group::{Group, Run};
use super::interval_set::IntervalSet;
use super::ready::ClassKey;
use super::views::Forgotten;
use crate::ids::{GroupId, RunId, ShapeId};
use crate::messages::{Outbox, Output};
use crate::resources::{ResourceName, Resources};
use crate::spec::{GroupSpec, Length, RunSpec};
use std::collections::VecDeque;

impl Scheduler {
    /// Takes a run or refuses it.
    pub(super) fn submit(&mut self, spec: RunSpec, out: &mut Outbox) {
        let client_key = spec.client_key;
        if let Some(&run) = self.client_keys.get(&client_key) {
            let first_group = self.runs.get(&run).map_or(GroupId(0), |run| run.first_group);
            out.push(Output::Submitted { client_key, run, first_group, known: true });
            return;
        }
        match self.accept_run(&spec) {
            Ok(upstreams) => self.add_run(spec, upstreams, out),
            Err((code, message)) => out.push(Output::Refused { client_key, code, message }),
        }
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
        let run = Run {
            name: spec.name.clone(),
            owner: spec.owner,
            weight: spec.weight,
            client_key: spec.client_key,
            max_failures: spec.max_failures,
            totals,
            totals_used: Resources::default(),
            first_group: if count > 0 { first_group } else { GroupId(0) },
            groups_added: 0,
            groups: Vec::with_capacity(spec.groups.len()),
            groups_over: 0,
            spent: VecDeque::new(),
            forgotten: Forgotten::default(),
            shapes: Default::default(),
            components: Default::default(),
            open: spec.open || spec.keeps,
            kept: spec.open || spec.keeps,
            extensible: spec.open,
            paused: false,
            turn: GroupId(0),
            lead: 0,
            failures: 0,
            cancelling: false,
            stopped: false,
            end: None,
            charged: u64::try_from(charged).unwrap_or(u64::MAX),
            throttled: Default::default(),
            tasks: 0,
        };
        let mut ids = Vec::with_capacity(spec.groups.len());
        self.runs.insert(id, run);
        self.client_keys.insert(spec.client_key, id);
        self.run_names.insert(spec.name, id);
        for ((ordinal, group), mut upstreams) in (0u32..).zip(spec.groups).zip(upstreams) {
            let group_id = GroupId(first_group.0 + ordinal);
            for upstream in &mut upstreams {
                upstream.group = GroupId(upstream.group.0 + first_group.0);
            }
            let from = match group.length {
                Length::From(from) => Some(GroupId(first_group.0 + from as u32)),
                Length::Fixed(_) | Length::Growing => None,
            };
            self.add_group(id, group_id, &spec.totals, group, from, upstreams);
            ids.push(group_id);
        }
        out.push(Output::Submitted { client_key: spec.client_key, run: id, first_group, known: false });
        if count == 0 && !spec.open && !spec.keeps {
            self.end_run(id, out);
        }
        for group in ids {
            self.begin_group(group);
        }
    }

    /// The group joins its run; nothing of it is looked at yet.
    pub(super) fn add_group(
        &mut self,
        run_id: RunId,
        id: GroupId,
        totals: &[(ResourceName, u64)],
        spec: GroupSpec,
        length_from: Option<GroupId>,
        upstreams: Vec<Upstream>,
    ) {
        let mut group = self.new_group(run_id, totals, spec, upstreams);
        group.length_from = length_from;
        for (at, upstream) in (0u32..).zip(&group.upstreams) {
            if let Some(upstream) = self.groups.get_mut(&upstream.group) {
                upstream.downstreams.push((id, at));
            }
        }
        if let Some(from) = length_from
            && let Some(from) = self.groups.get_mut(&from)
        {
            from.openers.push(id);
        }
        if let Some(run) = self.runs.get_mut(&run_id) {
            if run.groups_added == 0 {
                run.first_group = id;
            }
            group.ordinal = run.groups_added;
            run.groups_added += 1;
            run.groups.push(id);
            run.tasks += u64::from(group.length.unwrap_or(0));
            group.kept = run.kept;
        }
        let extensible = self.runs.get(&run_id).is_some_and(|run| run.extensible);
        for upstream in group.upstreams.iter().filter(|_| extensible) {
            let Some(up) = self.groups.get(&upstream.group) else { continue };
            let whole = matches!(upstream.kind, super::depend::UpstreamKind::Whole) && !up.over && up.kept;
            group.behind.extend(up.behind.iter().copied().chain(whole.then_some(upstream.group)));
        }
        group.behind.sort_unstable();
        group.behind.dedup();
        self.groups.insert(id, group);
    }

    /// A group that waits for nothing begins.
    fn begin_group(&mut self, id: GroupId) {
        let known = self.group_of(id);
        if known.length == Some(0) && !known.growing {
            self.settling.push_back(Settled { group: id, first: 0, end: 0, how: End::Succeeded });
        } else if known.whole_left == 0 {
            self.all_whole_met(id);
        }
    }

    fn new_group(&mut self, run: RunId, totals: &[(ResourceName, u64)], spec: GroupSpec, mut upstreams: Vec<Upstream>) -> Group {
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
            Length::Growing => Some(0),
        };
        for upstream in &mut upstreams {
            upstream.satisfied = upstream.initially_satisfied(length.unwrap_or(0));
        }
        let whole = upstreams.iter().filter(|upstream| upstream.is_gate()).count();
        let queue = self.new_queue(ClassKey { component, shape, alone: false });
        Group {
            run,
            ordinal: 0,
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
            growing: spec.length == Length::Growing,
            kept: false,
            reads: false,
            as_files: false,
            length_from: None,
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
            doomed: None,
            rejected: IntervalSet::new(),
            lost_for_good: IntervalSet::new(),
            restoring: IntervalSet::new(),
            let_go: IntervalSet::new(),
            released: IntervalSet::new(),
            behind: Default::default(),
            spent: false,
            cells: Default::default(),
            objects: Default::default(),
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
        for group in run.groups {
            self.release_queues(group);
            let Some(group) = self.groups.remove(&group) else { continue };
            self.components.release(group.component);
            self.shapes.release(group.shape.0);
            for shape in group.grown {
                self.shapes.release(shape.0);
            }
        }
        for shape in run.shapes {
            self.shapes.release(shape);
        }
        for component in run.components {
            self.components.release(component);
        }
    }
}

/// Custom amounts as [`Resources`] keeps them: by name, without zeros, one entry a name.
pub(super) fn sorted(amounts: &[(ResourceName, u64)]) -> smallvec::SmallVec<[(ResourceName, u64); 2]> {
    let mut sum = Resources::default();
    for &amount in amounts {
        sum.add(&Resources { custom: [amount].into_iter().collect(), ..Resources::default() });
    }
    sum.custom.retain(|(_, amount)| *amount > 0);
    sum.custom
}
