//! From tasks that name each other to a graph: references looked up, projections worked out, circles found, an order made.

use std::collections::HashMap;

use scalable_proto::v1::{OutputKind, Projection, projection::Axis};
use scalable_template::{Space, TASKS_MAX};

use crate::diagnostic::{At, Sink, show, show_names, suggestion};
use crate::model::{Link, Select, Task, TaskInput};
use crate::ports::RawInput;
use crate::task::RawTask;

/// Most dependencies of one run, all groups together; the scheduler takes no more.
const DEPENDENCIES_MAX: usize = 1 << 20;

/// Links the tasks and puts each after all it depends on; else they stay in the order of the file. Empty after an error.
pub(crate) fn link(raw: Vec<RawTask>, sink: &mut Sink) -> Vec<Task> {
    let total: u64 = raw.iter().map(|task| u64::from(task.parameters.space.len())).sum();
    if total > u64::from(TASKS_MAX) {
        let message = format!("the tasks have {total} elements together; a run can have at most {TASKS_MAX}");
        sink.error("E_TOO_MANY_TASKS", "tasks", raw.first().map_or(At::default(), |task| task.at), message);
    }
    let by_name: HashMap<&str, usize> = raw.iter().enumerate().map(|(at, task)| (task.name.as_str(), at)).collect();
    let linked: Vec<Linked> = raw.iter().map(|task| linked(task, &raw, &by_name, sink)).collect();
    let dependencies: usize = linked.iter().map(|task| task.dependencies.len()).sum();
    if dependencies > DEPENDENCIES_MAX {
        let message = format!("the tasks have {dependencies} dependencies together; a run can have at most {DEPENDENCIES_MAX}");
        sink.error("E_TOO_LARGE", "tasks", raw.first().map_or(At::default(), |task| task.at), message);
    }
    let Some(order) = order(&raw, &linked, sink) else { return Vec::new() };
    if sink.has_errors() {
        return Vec::new();
    }
    let mut place = vec![0; order.len()];
    for (new, &old) in order.iter().enumerate() {
        place[old] = new;
    }
    let mut tasks: Vec<Option<(RawTask, Linked)>> = raw.into_iter().zip(linked).map(Some).collect();
    order.iter().filter_map(|&old| tasks[old].take()).map(|(raw, linked)| finish(raw, linked, &place)).collect()
}

struct Linked {
    inputs: Vec<TaskInput>,
    stdin: Option<TaskInput>,
    dependencies: Vec<Link>,
}

fn finish(raw: RawTask, mut linked: Linked, place: &[usize]) -> Task {
    for input in linked.inputs.iter_mut().chain(&mut linked.stdin) {
        input.upstream = place[input.upstream];
    }
    for dependency in &mut linked.dependencies {
        dependency.upstream = place[dependency.upstream];
    }
    Task {
        name: raw.name,
        component: raw.component,
        command: raw.command,
        env: raw.env,
        parameters: raw.parameters,
        inputs: linked.inputs,
        stdin: linked.stdin,
        outputs: raw.outputs,
        stdout: raw.stdout,
        stderr: raw.stderr,
        files: raw.files,
        start_in: raw.start_in,
        dependencies: linked.dependencies,
        policy: raw.policy,
        priority: raw.priority,
        max_parallel: raw.max_parallel,
        always: raw.always,
        success_codes: raw.success_codes,
        requested: raw.requested,
        at: raw.at,
    }
}

fn linked(task: &RawTask, all: &[RawTask], by_name: &HashMap<&str, usize>, sink: &mut Sink) -> Linked {
    let mut made = Linked { inputs: Vec::new(), stdin: None, dependencies: Vec::new() };
    for (name, at) in &task.depends_on {
        let path = format!("tasks.{}.depends_on", task.name);
        let Some(&upstream) = by_name.get(name.as_str()) else {
            unknown_task(name, &path, *at, by_name, sink);
            continue;
        };
        if task.command.is_some() && all[upstream].command.is_none() {
            not_runnable(name, &path, *at, sink);
        }
        let count = all[upstream].parameters.space.len();
        let how = if count == 1 { "after it".to_owned() } else { format!("after all {count}") };
        depend(&mut made.dependencies, Link { upstream, select: Select::All, how });
    }
    for raw in &task.inputs {
        if let Some((input, how)) = input(raw, task, all, by_name, sink) {
            depend(&mut made.dependencies, Link { upstream: input.upstream, select: input.select.clone(), how });
            made.inputs.push(input);
        }
    }
    if let Some(raw) = &task.stdin
        && let Some((input, how)) = input(raw, task, all, by_name, sink)
    {
        depend(&mut made.dependencies, Link { upstream: input.upstream, select: input.select.clone(), how });
        made.stdin = Some(input);
    }
    made
}

/// Adds a dependency; one on a whole task is stronger than one on some of its elements.
fn depend(dependencies: &mut Vec<Link>, new: Link) {
    match dependencies.iter_mut().find(|old| old.upstream == new.upstream) {
        Some(old) if new.select == Select::All && old.select != Select::All => *old = new,
        Some(_) => {}
        None => dependencies.push(new),
    }
}

fn unknown_task(name: &str, path: &str, at: At, by_name: &HashMap<&str, usize>, sink: &mut Sink) {
    let mut known: Vec<&str> = by_name.keys().copied().collect();
    known.sort_unstable();
    let message =
        format!("'{path}' names task `{}`, which does not exist; tasks: {}", show(name), show_names(known.iter().copied()));
    sink.error("E_UNKNOWN_TASK", path, at, message).maybe_help(suggestion(name, known));
}

fn not_runnable(name: &str, path: &str, at: At, sink: &mut Sink) {
    let message = format!("'{path}' waits for task `{}`, which has no command and never runs", show(name));
    sink.error("E_NOT_RUNNABLE", path, at, message).help("give that task a command, or remove this");
}

fn input(
    raw: &RawInput,
    task: &RawTask,
    all: &[RawTask],
    by_name: &HashMap<&str, usize>,
    sink: &mut Sink,
) -> Option<(TaskInput, String)> {
    let Some(&upstream) = by_name.get(raw.task.as_str()) else {
        unknown_task(&raw.task, &raw.path, raw.at, by_name, sink);
        return None;
    };
    let from = &all[upstream];
    let Some(output) = from.outputs.iter().find(|output| output.name == raw.output) else {
        let known = from.outputs.iter().map(|output| output.name.as_str());
        let message = format!("task `{}` has no output `{}`; it has {}", raw.task, show(&raw.output), show_names(known.clone()));
        sink.error("E_UNKNOWN_OUTPUT", &raw.path, raw.at, message).maybe_help(suggestion(&raw.output, known));
        return None;
    };
    if task.command.is_some() && from.command.is_none() {
        not_runnable(&raw.task, &raw.path, raw.at, sink);
    }
    let (up, down) = (&from.parameters.space, &task.parameters.space);
    let (select, how) = if raw.all {
        (Select::All, if up.len() == 1 { "after it".to_owned() } else { format!("fan-in over all {}", up.len()) })
    } else {
        match project(up, down) {
            Ok(projected) => projected,
            Err(name) => {
                let message = format!(
                    "tasks `{}` and `{}` both have a parameter `{name}`, but not with the same values in the same order",
                    task.name, raw.task
                );
                sink.error("E_PARAMETERS_DIFFER", &raw.path, raw.at, message).help(format!(
                    "give both the same values, rename one, or take all elements: \"{{{}.{}[*]}}\"",
                    raw.task, raw.output
                ));
                return None;
            }
        }
    };
    let many = match &select {
        Select::All => up.len() > 1,
        Select::Projection(projection) => projection.axes.iter().any(|axis| axis.downstream_stride == 0),
    };
    if many && !raw.as_path.is_empty() {
        let message = format!("`as` puts one thing under a name, but the input is {} of several elements", how);
        sink.error("E_BAD_INPUT", &raw.path, raw.at, message)
            .help(format!("name {{inputs.{0}}} or {{inputs.{0}.list}} in the command", raw.name));
    }
    if raw.name.is_empty() && (many || output.kind() != OutputKind::File) {
        let message = "standard input must be one file".to_owned();
        sink.error("E_BAD_INPUT", &raw.path, raw.at, message);
    }
    let input = TaskInput {
        name: raw.name.clone(),
        upstream,
        output: raw.output.clone(),
        select,
        as_path: raw.as_path.clone(),
        // A task that runs whatever happened before gets what there is.
        optional: output.optional || task.always,
    };
    Some((input, how))
}

/// Element-wise selection by shared parameters, and how to say it. Fails with the name of a parameter whose values differ.
fn project(up: &Space, down: &Space) -> Result<(Select, String), String> {
    let down_names = down.names();
    let shared: Vec<&str> = up.names().into_iter().filter(|name| down_names.contains(name)).collect();
    for name in &shared {
        if !up.same_values(down, name) {
            return Err((*name).to_owned());
        }
    }
    if shared.is_empty() {
        let how = if up.len() == 1 { "after it".to_owned() } else { format!("fan-in over all {}", up.len()) };
        return Ok((Select::All, how));
    }
    let (up_axes, down_axes) = (up.axes(), down.axes());
    if up_axes.is_empty() || down_axes.is_empty() {
        // Rows of tables match only as whole rows.
        let same =
            up_axes.is_empty() && down_axes.is_empty() && shared.len() == down_names.len() && shared.len() == up.names().len();
        if !same {
            return Err(shared[0].to_owned());
        }
        let axis = Axis { length: up.len(), upstream_stride: 1, downstream_stride: 1 };
        return Ok((Select::Projection(Projection { axes: vec![axis] }), "element by element".to_owned()));
    }
    let mut axes = Vec::new();
    let (mut fan_in, mut fan_out) = (Vec::new(), Vec::new());
    for &(name, length, upstream_stride) in &up_axes {
        let downstream_stride = down_axes.iter().find(|(n, ..)| *n == name).map_or(0, |(.., stride)| *stride);
        if downstream_stride == 0 {
            fan_in.push(name);
        }
        axes.push(Axis { length, upstream_stride, downstream_stride });
    }
    for &(name, length, downstream_stride) in down_axes.iter().filter(|(name, ..)| !shared.contains(name)) {
        fan_out.push(name);
        axes.push(Axis { length, upstream_stride: 0, downstream_stride });
    }
    let mut how = if fan_in.is_empty() && fan_out.is_empty() {
        "element by element".to_owned()
    } else {
        format!("by {}", shared.join(", "))
    };
    for (word, names) in [("fan-in", fan_in), ("fan-out", fan_out)] {
        if !names.is_empty() {
            how.push_str(&format!("; {word} over {}", names.join(", ")));
        }
    }
    Ok((Select::Projection(Projection { axes: merged(axes) }), how))
}

/// Axes that follow each other in both groups are one longer axis; axes of length 1 are none.
fn merged(mut axes: Vec<Axis>) -> Vec<Axis> {
    axes.retain(|axis| axis.length > 1);
    loop {
        let mut pairs = (0..axes.len()).flat_map(|slow| (0..axes.len()).map(move |fast| (slow, fast)));
        let found = pairs.find(|&(slow, fast)| {
            let (s, f) = (&axes[slow], &axes[fast]);
            let follows = |slow: u32, fast: u32| u64::from(slow) == u64::from(fast) * u64::from(f.length);
            slow != fast && follows(s.upstream_stride, f.upstream_stride) && follows(s.downstream_stride, f.downstream_stride)
        });
        let Some((slow, fast)) = found else { break };
        axes[fast].length *= axes[slow].length;
        axes.remove(slow);
    }
    if axes.is_empty() {
        axes.push(Axis { length: 1, upstream_stride: 1, downstream_stride: 1 });
    }
    axes
}

/// An order in which every task comes after what it depends on, as close to the file's as that allows.
fn order(raw: &[RawTask], linked: &[Linked], sink: &mut Sink) -> Option<Vec<usize>> {
    let mut waiting: Vec<usize> = linked.iter().map(|task| task.dependencies.len()).collect();
    let mut dependents = vec![Vec::new(); raw.len()];
    for (at, task) in linked.iter().enumerate() {
        for dependency in &task.dependencies {
            dependents[dependency.upstream].push(at);
        }
    }
    let mut ready: std::collections::BTreeSet<usize> = (0..raw.len()).filter(|&at| waiting[at] == 0).collect();
    let mut order = Vec::with_capacity(raw.len());
    while let Some(at) = ready.pop_first() {
        order.push(at);
        for &next in &dependents[at] {
            waiting[next] -= 1;
            if waiting[next] == 0 {
                ready.insert(next);
            }
        }
    }
    if order.len() == raw.len() {
        return Some(order);
    }
    // From any task that is left, going up among those left must come back to a task already seen.
    let mut trail: Vec<usize> = Vec::new();
    let mut at = (0..raw.len()).find(|&at| waiting[at] > 0)?;
    while !trail.contains(&at) {
        trail.push(at);
        at = linked[at].dependencies.iter().map(|d| d.upstream).find(|&up| waiting[up] > 0)?;
    }
    let start = trail.iter().position(|&seen| seen == at)?;
    let mut names: Vec<&str> = trail[start..].iter().map(|&at| raw[at].name.as_str()).collect();
    names.push(&raw[at].name);
    let shown = if names.len() > 12 {
        format!("{} → … → {}", names[..10].join(" → "), names[names.len() - 1])
    } else {
        names.join(" → ")
    };
    let first = trail[start..].iter().min_by_key(|&&at| raw[at].at).copied().unwrap_or(at);
    let message = format!("tasks wait for each other in a circle: {shown}");
    sink.error("E_CYCLE", &format!("tasks.{}", raw[first].name), raw[first].at, message).help("remove one of these dependencies");
    None
}
