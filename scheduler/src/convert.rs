//! From the wire to the core: what a peer sent becomes a [`spec::RunSpec`] or a readable refusal. Nothing here trusts a
//! number, a length or an enum.

use scalable_core::ids::MILLISECOND;
use scalable_core::messages::{self, OutcomeClass};
use scalable_core::resources::{Names, Resources};
use scalable_core::spec::{self, Axis, Backoff, Dependency, DependencyKind, GroupSpec, Growth, Length, Policy, RetryOn, RunSpec};
use scalable_proto::v1;

/// Why a request cannot be taken: a stable word, one sentence, what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// A stable word.
    pub code: &'static str,
    /// What and where.
    pub message: String,
    /// What to do now.
    pub help: String,
}

impl Refused {
    /// A refusal.
    pub fn new(code: &'static str, message: impl Into<String>, help: impl Into<String>) -> Self {
        Refused { code, message: message.into(), help: help.into() }
    }

    /// As it goes over the wire.
    pub fn to_wire(&self) -> v1::Refusal {
        v1::Refusal { code: self.code.to_owned(), message: self.message.clone(), help: self.help.clone() }
    }
}

fn malformed(what: impl Into<String>) -> Refused {
    Refused::new("E_MALFORMED", what, "this is a bug of the client that sent it, or its version does not fit the scheduler's")
}

/// Resources of a peer.
///
/// # Errors
/// When a custom name is unusable or there are too many names.
pub fn resources(wire: Option<&v1::Resources>, names: &mut Names) -> Result<Resources, Refused> {
    let Some(wire) = wire else { return Ok(Resources::default()) };
    let mut custom = amounts(&wire.custom, names)?;
    custom.retain(|(_, amount)| *amount > 0);
    Ok(Resources {
        milli_cpus: wire.milli_cpus,
        memory_bytes: wire.memory_bytes,
        gpus: wire.gpus,
        custom: custom.into_iter().collect(),
    })
}

fn amounts(wire: &[v1::NamedAmount], names: &mut Names) -> Result<Vec<(scalable_core::resources::ResourceName, u64)>, Refused> {
    let mut out = Vec::with_capacity(wire.len().min(64));
    for entry in wire {
        if entry.name.is_empty() || entry.name.len() > spec::NAME_BYTES_MAX {
            return Err(malformed(format!("a custom resource has a name of {} bytes", entry.name.len())));
        }
        let name = names.intern(&entry.name).ok_or_else(|| {
            Refused::new(
                "E_TOO_MANY_RESOURCES",
                format!("the cluster knows {} custom resources already, `{}` is one too many", Names::MAX, entry.name),
                "use fewer names",
            )
        })?;
        if out.iter().any(|(known, _)| *known == name) {
            return Err(malformed(format!("custom resource `{}` is named twice", entry.name)));
        }
        out.push((name, entry.amount));
    }
    out.sort_unstable();
    Ok(out)
}

/// Resources as they go over the wire.
pub fn resources_to_wire(resources: &Resources, names: &Names) -> v1::Resources {
    v1::Resources {
        milli_cpus: resources.milli_cpus,
        memory_bytes: resources.memory_bytes,
        gpus: resources.gpus,
        custom: resources
            .custom
            .iter()
            .map(|(name, amount)| v1::NamedAmount { name: names.name(*name).to_owned(), amount: *amount })
            .collect(),
    }
}

/// A run.
///
/// # Errors
/// What is wrong with it, naming the group.
pub fn run(wire: &v1::RunSpec, names: &mut Names) -> Result<RunSpec, Refused> {
    let client_key = wire.client_key.as_ref().try_into().map_err(|_| malformed("the client key is not 16 bytes long"))?;
    if wire.groups.len() > spec::GROUPS_PER_RUN_MAX {
        let message = format!("the run has {} groups; at most {} are allowed", wire.groups.len(), spec::GROUPS_PER_RUN_MAX);
        return Err(Refused::new("E_TOO_MANY_GROUPS", message, "split it into several runs, or use foreach"));
    }
    // Outputs of commands may lie on workers: then they are followed as results are.
    let keeps = !wire.open && !wire.directory.is_empty();
    let mut groups = Vec::with_capacity(wire.groups.len());
    for (ordinal, wire) in wire.groups.iter().enumerate() {
        groups.push(group(wire, ordinal, keeps, names)?);
    }
    Ok(RunSpec {
        name: wire.name.clone(),
        owner: wire.owner.clone(),
        weight: wire.weight.max(1),
        client_key,
        max_failures: wire.max_failures,
        totals: amounts(&wire.totals, names)?,
        groups,
        open: wire.open,
        keeps,
    })
}

/// One group; its ordinal says which others it may refer to. `keeps`: what commands read counts as data.
///
/// # Errors
/// What is wrong with it.
pub fn group(wire: &v1::GroupSpec, ordinal: usize, keeps: bool, names: &mut Names) -> Result<GroupSpec, Refused> {
    let template =
        wire.template.as_ref().ok_or_else(|| malformed(format!("group {ordinal} (`{}`) has no template", wire.name)))?;
    let earlier = |group: u32| -> Result<usize, Refused> {
        let group = group as usize;
        if group < ordinal {
            Ok(group)
        } else {
            Err(malformed(format!("group `{}` refers to group {group}, which is not before it", wire.name)))
        }
    };
    let length = match wire.length_from {
        Some(from) => Length::From(earlier(from)?),
        None => Length::Fixed(wire.length),
    };
    for input in template.inputs.iter().filter_map(|input| input.source.as_ref()).chain(template.stdin.as_ref()) {
        earlier(input.group)?;
    }
    let mut dependencies = Vec::with_capacity(wire.dependencies.len());
    for dependency in &wire.dependencies {
        let kind = match dependency.kind.as_ref() {
            Some(v1::dependency::Kind::Whole(_)) => DependencyKind::Whole,
            Some(v1::dependency::Kind::Projection(projection)) => DependencyKind::Projection(axes(projection)),
            Some(v1::dependency::Kind::Edges(edges)) => {
                if edges.upstream.len() != edges.downstream.len() || edges.upstream.len() > spec::EDGES_PER_GROUP_MAX {
                    return Err(malformed(format!("group `{}` has malformed or too many edges", wire.name)));
                }
                DependencyKind::Edges(edges.upstream.iter().copied().zip(edges.downstream.iter().copied()).collect())
            }
            None => return Err(malformed(format!("group `{}` has a dependency without a kind", wire.name))),
        };
        // In an open run what commands read are files, which the machine does not keep.
        let named = template.inputs.iter().filter(|_| keeps).filter_map(|input| input.source.as_ref());
        let mut sources = named.chain(template.stdin.as_ref().filter(|_| keeps)).chain(sources_of_function(template));
        let data = sources.any(|source| source.group == dependency.group);
        dependencies.push(Dependency { group: earlier(dependency.group)?, kind, data });
    }
    for source in sources_of_function(template) {
        let kind = match &source.select {
            Some(v1::input_source::Select::All(_)) => DependencyKind::Whole,
            Some(v1::input_source::Select::Projection(projection)) => DependencyKind::Projection(axes(projection)),
            Some(v1::input_source::Select::Index(index)) => DependencyKind::One(*index),
            // Said with each append.
            Some(v1::input_source::Select::Element(_)) | None => continue,
        };
        dependencies.push(Dependency { group: earlier(source.group)?, kind, data: true });
    }
    Ok(GroupSpec {
        name: wire.name.clone(),
        component: template.component.clone(),
        length,
        dependencies,
        priority: wire.priority,
        max_parallel: wire.max_parallel,
        always: wire.always,
        policy: policy(wire.policy.as_ref())?,
        resources: resources(wire.resources.as_ref(), names)?,
    })
}

/// What a function reads: each source is dependency and data in one.
pub fn sources_of_function(template: &v1::TaskTemplate) -> impl Iterator<Item = &v1::InputSource> {
    let is_function = matches!(template.command, Some(v1::task_template::Command::Function(_)));
    template.inputs.iter().filter(move |_| is_function).filter_map(|input| input.source.as_ref())
}

/// Axes of a projection.
pub fn axes(wire: &v1::Projection) -> Vec<Axis> {
    let axis = |axis: &v1::projection::Axis| Axis {
        length: axis.length,
        upstream_stride: axis.upstream_stride,
        downstream_stride: axis.downstream_stride,
    };
    wire.axes.iter().map(axis).collect()
}

fn policy(wire: Option<&v1::Policy>) -> Result<Policy, Refused> {
    let mut policy = Policy::default();
    let Some(wire) = wire else { return Ok(policy) };
    policy.retries = wire.retries;
    if let Some(backoff) = wire.backoff {
        policy.backoff = Backoff {
            initial: backoff.initial_ms.saturating_mul(MILLISECOND),
            factor_milli: backoff.factor_milli.max(1_000),
            max: backoff.max_ms.saturating_mul(MILLISECOND),
        };
    }
    policy.timeout = wire.timeout_ms.saturating_mul(MILLISECOND);
    let or_unbounded = |figure: u64| if figure == 0 { u64::MAX } else { figure };
    if let Some(growth) = wire.on_oom {
        policy.on_oom = Growth { factor_milli: growth.factor_milli.max(1_000), max: or_unbounded(growth.memory_bytes_max) };
    }
    if let Some(growth) = wire.on_timeout {
        policy.on_timeout = Growth {
            factor_milli: growth.factor_milli.max(1_000),
            max: or_unbounded(growth.timeout_ms_max.saturating_mul(MILLISECOND)),
        };
    }
    for word in &wire.retry_on {
        policy.retry_on.push(match word.as_str() {
            "signal" => RetryOn::Signal,
            "oom" => RetryOn::Oom,
            "timeout" => RetryOn::Timeout,
            "lost" => RetryOn::Lost,
            "missing_output" => RetryOn::MissingOutput,
            other => match other.strip_prefix("exit:").and_then(|code| code.trim().parse().ok()) {
                Some(code) => RetryOn::Exit(code),
                None => return Err(malformed(format!("retry_on has the unknown entry `{other}`"))),
            },
        });
    }
    Ok(policy)
}

/// An attempt's report, as far as decisions need it.
pub fn finish(report: &v1::AttemptReport, token: u32) -> messages::Finish {
    let class = match report.class() {
        v1::OutcomeClass::Succeeded => OutcomeClass::Succeeded,
        v1::OutcomeClass::Timeout => OutcomeClass::Timeout,
        v1::OutcomeClass::Oom => OutcomeClass::Oom,
        v1::OutcomeClass::MissingOutput => OutcomeClass::MissingOutput,
        v1::OutcomeClass::InputChanged => OutcomeClass::InputChanged,
        v1::OutcomeClass::BadOutput => OutcomeClass::BadOutput,
        v1::OutcomeClass::InputLost => OutcomeClass::InputLost,
        v1::OutcomeClass::InfraStart => OutcomeClass::InfraStart,
        v1::OutcomeClass::Preempted => OutcomeClass::Preempted,
        v1::OutcomeClass::Cancelled => OutcomeClass::Cancelled,
        // What only the scheduler may say, and what it does not know, counts as a failure of the task.
        v1::OutcomeClass::AppError
        | v1::OutcomeClass::Unspecified
        | v1::OutcomeClass::LostWorker
        | v1::OutcomeClass::Poison
        | v1::OutcomeClass::DependencyFailed
        | v1::OutcomeClass::Rejected => OutcomeClass::AppError,
    };
    let wall = report.finished_us.saturating_sub(report.started_us);
    messages::Finish {
        class,
        exit_code: report.exit_code,
        signalled: report.signal.is_some(),
        wall: u64::try_from(wall).unwrap_or(0),
        cpu: report.user_us.saturating_add(report.system_us),
        peak_memory_bytes: report.peak_memory_bytes,
        length: report.length,
        result: held(report),
        missing: None,
        token,
    }
}

/// Outputs that stay on the worker, files of the run's directory, are the task's result.
fn held(report: &v1::AttemptReport) -> messages::Stored {
    let held = report.outputs.iter().filter(|output| output.written && output.held);
    let sizes: Vec<u64> = held.map(|output| output.size.saturating_add(output.manifest_size)).collect();
    match sizes.is_empty() {
        true => messages::Stored::None,
        false => messages::Stored::Files(sizes.into_iter().fold(0, u64::saturating_add)),
    }
}

/// A class as it goes over the wire: the numbers are the same.
pub fn class_to_wire(class: OutcomeClass) -> v1::OutcomeClass {
    v1::OutcomeClass::try_from(class.number()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_have_the_same_names_and_numbers_in_the_core_and_on_the_wire() {
        use OutcomeClass as C;
        let all = [
            C::Succeeded,
            C::AppError,
            C::Timeout,
            C::Oom,
            C::MissingOutput,
            C::InputChanged,
            C::InfraStart,
            C::Preempted,
            C::Cancelled,
            C::LostWorker,
            C::Poison,
            C::DependencyFailed,
            C::BadOutput,
            C::InputLost,
            C::Rejected,
        ];
        for class in all {
            let wire = class_to_wire(class).as_str_name().trim_start_matches("OUTCOME_CLASS_").to_lowercase();
            assert_eq!(wire, class.word());
        }
        assert!(v1::OutcomeClass::try_from(all.len() as i32 + 1).is_err(), "a class of the wire is missing in the core");
    }
}
