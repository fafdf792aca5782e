//! What is asked of a run and of a group before either is taken: names, lengths, dependencies, limits.

use super::Scheduler;
use super::depend::{Edges, Upstream, UpstreamKind};
use super::group::Group;
use super::interval_set::IntervalSet;
use super::projection::Projection;
use crate::ids::GroupId;
use crate::resources::ResourceName;
use crate::spec::{
    Dependency, DependencyKind, EDGES_PER_GROUP_MAX, GROUPS_PER_OPEN_RUN_MAX, GROUPS_PER_RUN_MAX, GroupSpec, Length,
    NAME_BYTES_MAX, RunSpec, TASKS_PER_RUN_MAX,
};
use rustc_hash::FxHashSet;

/// Most dependencies of one run, all groups together.
pub const DEPENDENCIES_PER_RUN_MAX: usize = 1 << 20;

/// Why something is not taken: a stable word and one sentence.
pub(super) type Refusal = (&'static str, String);

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

/// An earlier group of the run, as far as a later one's checks need it.
pub(super) struct Before<'a> {
    /// Its id; at submit its ordinal.
    pub(super) id: GroupId,
    pub(super) name: &'a str,
    /// Its length, where it is known for good.
    length: Option<u32>,
    /// Elements known to exist.
    elements: u32,
    /// Its element 0 is over: it says no length any more.
    begun: bool,
    /// Elements whose results nobody can have any more.
    released: Option<&'a IntervalSet>,
    /// Of an open run.
    kept: bool,
}

impl<'a> Before<'a> {
    fn submitted(ordinal: usize, spec: &'a GroupSpec, kept: bool) -> Self {
        let length = match spec.length {
            Length::Fixed(length) => Some(length),
            Length::From(_) | Length::Growing => None,
        };
        let (id, name) = (GroupId(ordinal as u32), spec.name.as_str());
        Before { id, name, length, elements: length.unwrap_or(0), begun: false, released: None, kept }
    }

    pub(super) fn known(id: GroupId, group: &'a Group) -> Self {
        Before {
            id,
            name: &group.name,
            length: group.length.filter(|_| !group.growing),
            elements: group.length.unwrap_or(0),
            begun: group.succeeded.contains(0) || group.has_trouble(),
            released: Some(&group.released),
            kept: group.kept,
        }
    }
}

impl Scheduler {
    /// Checks a run as a whole and prepares its dependencies, group by group; `Upstream::group` is the ordinal.
    pub(super) fn accept_run(&self, spec: &RunSpec) -> Result<Vec<Vec<Upstream>>, Refusal> {
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
        let most = if spec.open { GROUPS_PER_OPEN_RUN_MAX } else { GROUPS_PER_RUN_MAX };
        if spec.groups.len() > most {
            return Err(("E_TOO_MANY_GROUPS", format!("the run has {} groups and the limit is {most}", spec.groups.len())));
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
                Length::From(_) | Length::Growing => 0,
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
        let mut upstreams = Vec::with_capacity(spec.groups.len());
        for (ordinal, group) in spec.groups.iter().enumerate() {
            let before = |at: usize| {
                let known = spec.groups.get(at).filter(|_| at < ordinal);
                known.map(|known| Before::submitted(at, known, spec.open || spec.keeps))
            };
            if group.length == Length::Growing && !spec.open {
                let message = format!("group '{}' is to grow and its run is not an open one", shown(&group.name));
                return Err(("E_LENGTH", message));
            }
            upstreams.push(self.accept_group(&spec.totals, ordinal, group, before)?);
            if !names.insert(&group.name) {
                return Err(("E_GROUP_EXISTS", format!("two groups are named '{}'", group.name)));
            }
        }
        Ok(upstreams)
    }

    /// Checks a group against those before it and prepares its dependencies.
    pub(super) fn accept_group<'a>(
        &self,
        totals: &[(ResourceName, u64)],
        ordinal: usize,
        group: &GroupSpec,
        before: impl Fn(usize) -> Option<Before<'a>>,
    ) -> Result<Vec<Upstream>, Refusal> {
        for (kind, name) in [("group", &group.name), ("component", &group.component)] {
            if let Some(what) = bad_name(name) {
                return Err(("E_NAME", format!("the {kind} name {:?} of group {ordinal} {what}", shown(name))));
            }
        }
        let name = &group.name;
        if let Length::From(from) = group.length {
            let refuse = |message| Err(("E_LENGTH", message));
            match before(from) {
                None => {
                    return refuse(format!("group '{name}' takes its length from group {from}, which is not before it"));
                }
                Some(source) if source.length.is_none_or(|length| length == 0) => {
                    return refuse(format!(
                        "group '{name}' takes its length from '{}', which has no element known to exist",
                        source.name
                    ));
                }
                Some(source) if source.begun => {
                    return refuse(format!(
                        "group '{name}' takes its length from '{}', whose first element is over",
                        source.name
                    ));
                }
                Some(_) => {}
            }
        }
        for &(resource, amount) in &group.resources.custom {
            if let Some((_, total)) = totals.iter().find(|(total, _)| *total == resource)
                && amount > *total
            {
                let resource = self.names.name(resource);
                return Err((
                    "E_NEVER_FITS",
                    format!("a task of group '{name}' takes {amount} of '{resource}' and the whole run has {total}"),
                ));
            }
        }
        if let Some(message) = self.never_fits(totals, group) {
            return Err(("E_NO_POOL_FITS", message));
        }
        let upstream = |dependency: &Dependency| match before(dependency.group) {
            Some(up) => upstream(group, &up, dependency),
            None => {
                let message = format!("group '{name}' depends on group {}, which is not before it", dependency.group);
                Err(("E_DEPENDENCY", message))
            }
        };
        group.dependencies.iter().map(upstream).collect()
    }
}

fn upstream(group: &GroupSpec, other: &Before<'_>, dependency: &Dependency) -> Result<Upstream, Refusal> {
    let name = &group.name;
    let own = match group.length {
        Length::Fixed(length) => Some(length),
        Length::From(_) | Length::Growing => None,
    };
    let by_element = || {
        other.length.zip(own).ok_or_else(|| {
            let message = format!(
                "group '{name}' depends on '{}' element by element and one of them is open: only a whole dependency is possible",
                other.name
            );
            ("E_DEPENDENCY", message)
        })
    };
    if dependency.data && !other.kept {
        let message = format!("group '{name}' reads results of '{}' and only an open run keeps any", other.name);
        return Err(("E_DEPENDENCY", message));
    }
    let gone = other.released.filter(|_| dependency.data).is_some_and(|released| match dependency.kind {
        DependencyKind::One(index) => released.contains(index),
        _ => !released.is_empty(),
    });
    if gone {
        return Err(("E_RELEASED", format!("group '{name}' reads results of '{}' that were let go", other.name)));
    }
    let kind = match &dependency.kind {
        DependencyKind::Whole => UpstreamKind::Whole,
        DependencyKind::One(index) if *index >= other.elements => {
            let message = format!("group '{name}' waits for element {index} of '{}', which has {}", other.name, other.elements);
            return Err(("E_DEPENDENCY", message));
        }
        DependencyKind::One(index) => UpstreamKind::One(*index),
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
    Ok(Upstream { group: other.id, kind, data: dependency.data, met: false, satisfied: IntervalSet::new() })
}
