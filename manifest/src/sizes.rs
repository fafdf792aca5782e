//! What one element takes and one worker has. The rules of DESIGN §2, "Sizes".

use crate::diagnostic::Sink;
use crate::model::{Amounts, Component, Machine, Target, Task};
use crate::target::worker_words;
use crate::units::format_bytes;

/// Cpus of a component where neither it nor the target names any.
const DEFAULT_MILLI_CPUS: u64 = 1_000;
/// Most memory of a pod that is kept for the agent.
const AGENT_BYTES_MAX: u64 = 64 << 20;

/// A worker that serves `component`: what it is made with and what tasks can have of it.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    /// As asked of the platform. Memory 0: none was named, and memory is not accounted.
    pub size: Amounts,
    /// What tasks can take: less the agent's reserve on a cluster.
    pub capacity: Amounts,
}

/// The worker of a target that serves a component.
pub(crate) fn worker(target: &Target, component: &Component, machine: Machine) -> Worker {
    if let Some(local) = &target.local {
        let share = machine.memory_bytes / 10 * 9 / u64::from(local.max_workers.max(1));
        let size = Amounts {
            milli_cpus: u64::from(local.threads_per_worker) * 1000,
            memory_bytes: share,
            gpus: target.worker.gpus,
            custom: target.worker.custom.clone(),
        };
        return Worker { capacity: size.clone(), size };
    }
    let (milli_cpus, memory) = component_size(target, component);
    let size =
        Amounts { milli_cpus, memory_bytes: memory.unwrap_or(0), gpus: target.worker.gpus, custom: target.worker.custom.clone() };
    let reserve = AGENT_BYTES_MAX.min(size.memory_bytes / 4);
    Worker { capacity: Amounts { memory_bytes: size.memory_bytes - reserve, ..size.clone() }, size }
}

/// Cpus and memory of a component: its own, else the target's, else one cpu and no figure for memory; never more than the target's
/// `limits`.
pub(crate) fn component_size(target: &Target, component: &Component) -> (u64, Option<u64>) {
    let clip = target.kubernetes.as_ref().map(|options| options.clip.clone()).unwrap_or_default();
    let milli_cpus = component.milli_cpus.or(target.worker.milli_cpus).unwrap_or(DEFAULT_MILLI_CPUS);
    let memory = component.memory_bytes.or(target.worker.memory_bytes);
    (milli_cpus.min(clip.milli_cpus.unwrap_or(u64::MAX)), memory.map(|bytes| bytes.min(clip.memory_bytes.unwrap_or(u64::MAX))))
}

/// What each element of a task takes. What can never fit is an error; on the local target cpus and memory are clamped with a warning.
pub(crate) fn request(task: &Task, component: &Component, target: &Target, machine: Machine, sink: &mut Sink) -> Amounts {
    let (size_cpus, size_memory) = component_size(target, component);
    let asked = &task.requested;
    let milli_cpus = asked.milli_cpus.unwrap_or_else(|| match (asked.memory_bytes, size_memory) {
        (Some(memory), Some(whole)) => scaled(size_cpus, memory, whole, Rounding::Up).max(1),
        _ => size_cpus,
    });
    let memory = asked.memory_bytes.or_else(|| match asked.milli_cpus {
        Some(cpus) => size_memory.map(|whole| scaled(whole, cpus, size_cpus, Rounding::Down).max(1)),
        None => size_memory,
    });
    let mut amounts = Amounts { milli_cpus, memory_bytes: memory.unwrap_or(0), gpus: asked.gpus, custom: asked.custom.clone() };
    let worker = worker(target, component, machine);
    let path = format!("tasks.{}", task.name);
    custom_fits(task, &worker, target, &path, sink);
    let too_large = amounts.milli_cpus > worker.size.milli_cpus
        || (worker.size.memory_bytes > 0 && amounts.memory_bytes > worker.size.memory_bytes);
    let ask = worker_words(amounts.milli_cpus, amounts.memory_bytes);
    let has = worker_words(worker.size.milli_cpus, worker.size.memory_bytes);
    if too_large && target.local.is_none() {
        let message = format!(
            "task `{}` asks for {ask}; a worker of component `{}` on target '{}' has {has}",
            task.name, component.name, target.name
        );
        let help = "ask for less, or make the component (or the target's resources) larger";
        sink.error("E_NO_POOL_FITS", &path, task.at, message).help(help);
        return amounts;
    }
    amounts.milli_cpus = amounts.milli_cpus.min(worker.size.milli_cpus);
    if worker.size.memory_bytes > 0 {
        // On a cluster, what exceeds the rest after the agent's reserve gets that rest.
        amounts.memory_bytes = amounts.memory_bytes.min(worker.capacity.memory_bytes);
    }
    if too_large {
        let got = worker_words(amounts.milli_cpus, amounts.memory_bytes);
        let message =
            format!("task `{}` asks for {ask}; a worker of target '{}' has {has}: it gets {got}", task.name, target.name);
        sink.lenient("W_CLAMPED", &path, task.at, message)
            .help("fewer max_workers give each more memory, more threads_per_worker more cpus");
    }
    amounts
}

fn custom_fits(task: &Task, worker: &Worker, target: &Target, path: &str, sink: &mut Sink) {
    let asked = &task.requested;
    if asked.gpus > worker.size.gpus {
        let message = format!(
            "task `{}` asks for {} gpus; a worker of target '{}' has {}",
            task.name, asked.gpus, target.name, worker.size.gpus
        );
        sink.error("E_NO_POOL_FITS", path, task.at, message).help("gpus are never clamped: give the target's workers as many");
    }
    for (name, amount) in &asked.custom {
        let (has, whose) = match target.totals.get(name) {
            Some(total) => (*total, "the whole run"),
            None => (worker.size.custom.get(name).copied().unwrap_or(0), "a worker"),
        };
        if *amount > has {
            let message =
                format!("task `{}` asks for {amount} of `{name}`; {whose} on target '{}' has {has}", task.name, target.name);
            let help = format!("say on the target how many there are in all: totals: {{{name}: {amount}}}");
            sink.error("E_NO_POOL_FITS", path, task.at, message).help(help);
        }
    }
}

enum Rounding {
    Up,
    Down,
}

/// `amount × part / whole` without overflow.
fn scaled(amount: u64, part: u64, whole: u64, rounding: Rounding) -> u64 {
    let (product, whole) = (u128::from(amount) * u128::from(part), u128::from(whole.max(1)));
    let result = match rounding {
        Rounding::Up => product.div_ceil(whole),
        Rounding::Down => product / whole,
    };
    u64::try_from(result).unwrap_or(u64::MAX)
}

/// Amounts in words: `1 cpu and 512M, 2 gpus, 1 licence`.
pub(crate) fn amounts_words(amounts: &Amounts) -> String {
    let mut words = worker_words(amounts.milli_cpus, 0);
    if amounts.memory_bytes > 0 {
        words.push_str(&format!(" and {}", format_bytes(amounts.memory_bytes)));
    }
    if amounts.gpus > 0 {
        words.push_str(&format!(", {} gpu{}", amounts.gpus, if amounts.gpus == 1 { "" } else { "s" }));
    }
    for (name, amount) in &amounts.custom {
        words.push_str(&format!(", {amount} {name}"));
    }
    words
}
