//! From the wire's words to the machine's. What cannot be in a session is refused.

use scalable_core::ids::MILLISECOND;
use scalable_core::resources::{Names, Resources};
use scalable_core::spec::{Backoff, Dependency, DependencyKind, GroupSpec, Growth, Length, Policy, RetryOn};
use scalable_proto::v1;
use v1::input_source::Select;

pub(super) fn group(wire: &v1::GroupSpec, names: &mut Names) -> Result<GroupSpec, String> {
    let template = wire.template.clone().unwrap_or_default();
    let mut dependencies = Vec::new();
    for source in template.inputs.iter().filter_map(|input| input.source.as_ref()) {
        let kind = match source.select {
            Some(Select::All(_)) => DependencyKind::Whole,
            Some(Select::Index(index)) => DependencyKind::One(index),
            Some(Select::Element(_)) => continue,
            _ => return Err("an input of a session's task names a task, an array, or one for each element".to_owned()),
        };
        dependencies.push(Dependency { group: source.group as usize, kind, data: true });
    }
    Ok(GroupSpec {
        name: wire.name.clone(),
        component: template.component,
        length: Length::Growing,
        dependencies,
        priority: wire.priority,
        max_parallel: wire.max_parallel,
        always: wire.always,
        policy: policy(wire.policy.clone().unwrap_or_default())?,
        resources: resources(wire.resources.clone().unwrap_or_default(), names)?,
    })
}

fn resources(wire: v1::Resources, names: &mut Names) -> Result<Resources, String> {
    let mut resources =
        Resources { milli_cpus: wire.milli_cpus, memory_bytes: wire.memory_bytes, gpus: wire.gpus, custom: Default::default() };
    for amount in wire.custom {
        let name =
            names.intern(&amount.name).ok_or_else(|| format!("there are too many custom resources for `{}`", amount.name))?;
        resources.custom.push((name, amount.amount));
    }
    resources.custom.sort();
    Ok(resources)
}

fn policy(wire: v1::Policy) -> Result<Policy, String> {
    let mut policy = Policy { retries: wire.retries, timeout: wire.timeout_ms.saturating_mul(MILLISECOND), ..Policy::default() };
    if let Some(backoff) = wire.backoff {
        policy.backoff = Backoff {
            initial: backoff.initial_ms.saturating_mul(MILLISECOND),
            factor_milli: backoff.factor_milli.max(1000),
            max: backoff.max_ms.saturating_mul(MILLISECOND),
        };
    }
    let growth = |factor_milli: u32| Growth { factor_milli: factor_milli.max(1000), max: u64::MAX };
    if let Some(wire) = wire.on_oom {
        policy.on_oom = growth(wire.factor_milli);
    }
    if let Some(wire) = wire.on_timeout {
        policy.on_timeout = growth(wire.factor_milli);
    }
    for word in &wire.retry_on {
        policy.retry_on.push(match word.as_str() {
            "signal" => RetryOn::Signal,
            "oom" => RetryOn::Oom,
            "timeout" => RetryOn::Timeout,
            "lost" => RetryOn::Lost,
            "missing_output" => RetryOn::MissingOutput,
            other => match other.strip_prefix("exit:").and_then(|code| code.parse().ok()) {
                Some(code) => RetryOn::Exit(code),
                None => return Err(format!("retry_on has the unknown entry `{other}`")),
            },
        });
    }
    Ok(policy)
}
