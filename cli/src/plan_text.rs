//! A plan for people: the workers, then each group with its count, what it takes, waits for and writes, and its first commands;
//! and a plan.json in prose.

use scalable_manifest::{GroupPlan, Plan};
use serde_json::Value;

use crate::ui::{harmless, one_line, span};

/// Groups shown in full; of more, their number.
const GROUPS_SHOWN: usize = 200;

/// The plan as text.
pub fn text(plan: &Plan) -> String {
    let mut text = format!("project {}  target {} ({})\n", one_line(&plan.project, 80), plan.target, plan.provider);
    if !plan.provider_available {
        text.push_str(&format!("this build cannot run on {}: the plan is all there is\n", plan.provider));
    }
    for pool in &plan.pools {
        let workers = if pool.workers_min == pool.workers_max {
            format!("{}", pool.workers_max)
        } else {
            format!("{} to {}", pool.workers_min, pool.workers_max)
        };
        let serves = if pool.components == ["*"] { "every component".to_owned() } else { pool.components.join(", ") };
        let image = pool.image.as_ref().map(|image| format!(", image {image}")).unwrap_or_default();
        text.push_str(&format!("pool {}: {workers} workers of {}, for {serves}{image}\n", pool.name, pool.has));
    }
    if plan.local.is_some() {
        text.push_str("images are not used on a local target: commands run with what this machine has\n");
    }
    for (name, amount) in &plan.totals {
        text.push_str(&format!("in the whole run: {amount} of {name}\n"));
    }
    if plan.groups.is_empty() {
        text.push_str("no tasks: a run starts the workers and waits for work\n");
        return text;
    }
    let runnable = plan.groups.iter().filter(|group| group.runnable).count();
    text.push_str(&format!("{} tasks in {runnable} groups\n", plan.tasks_total));
    for group in plan.groups.iter().take(GROUPS_SHOWN) {
        text.push('\n');
        text.push_str(&group_text(group));
    }
    if plan.groups.len() > GROUPS_SHOWN {
        text.push_str(&format!("\n… and {} more groups; `-o json` has all\n", plan.groups.len() - GROUPS_SHOWN));
    }
    text
}

fn group_text(group: &GroupPlan) -> String {
    let parameters: Vec<String> =
        group.parameters.iter().map(|parameter| format!("{} ({})", parameter.name, parameter.values)).collect();
    let over = if parameters.is_empty() { String::new() } else { format!(" over {}", parameters.join(" × ")) };
    let tasks = if group.count == 1 { "1 task".to_owned() } else { format!("{} tasks", group.count) };
    let mut text = format!("{}: {tasks}{over}\n", group.name);
    if !group.runnable {
        text.push_str("  has no command: it is planned and not run\n");
        return text;
    }
    let mut facts =
        vec![format!("component {}", group.component), group.takes.clone(), format!("starts in its {}", starts_in(group))];
    if group.retries > 0 {
        facts.push(format!("{} retries", group.retries));
    }
    if group.timeout_ms > 0 {
        facts.push(format!("at most {}", span(group.timeout_ms as f64 / 1000.0)));
    }
    if group.priority != 0 {
        facts.push(format!("priority {}", group.priority));
    }
    if group.max_parallel > 0 {
        facts.push(format!("at most {} at a time", group.max_parallel));
    }
    if group.always {
        facts.push("also after failures".to_owned());
    }
    text.push_str(&format!("  {}\n", facts.join(", ")));
    for dependency in &group.dependencies {
        text.push_str(&format!("  waits for {}: {}\n", dependency.on, dependency.how));
    }
    let outputs: Vec<String> = group
        .outputs
        .iter()
        .map(|output| {
            let path = output.path.as_ref().map(|path| format!(" at {path}")).unwrap_or_default();
            let optional = if output.optional { ", optional" } else { "" };
            let keep = if output.keep { "" } else { ", not kept" };
            format!("{} ({}{path}{optional}{keep})", output.name, output.kind)
        })
        .collect();
    if !outputs.is_empty() {
        text.push_str(&format!("  writes {}\n", outputs.join(", ")));
    }
    for command in &group.commands {
        text.push_str(&format!("  $ {}\n", harmless(command).replace('\n', "\n    ")));
    }
    let more = u64::from(group.count).saturating_sub(group.commands.len() as u64);
    if more > 0 && !group.commands.is_empty() {
        text.push_str(&format!("  … and {more} more\n"));
    }
    text
}

fn starts_in(group: &GroupPlan) -> &'static str {
    group.starts_in
}

/// A plan.json in a few sentences. Reads what is there: plans of the original have fewer keys.
pub fn prose(plan: &Value) -> String {
    let word = |key: &str| plan[key].as_str().unwrap_or("unknown").to_owned();
    let mut text = format!("The plan is for target {} with provider {}", word("target"), word("provider"));
    if plan["provider_available"] == Value::Bool(false) {
        text.push_str(", on which this build cannot run");
    }
    text.push_str(".\n");
    for (component, workers) in plan["scale_plan"]["workers_by_tag"].as_object().into_iter().flatten() {
        let size = &plan["scale_plan"]["resources_by_tag"][component];
        let memory = size["memory"].as_str().map(|memory| format!(" and {memory} of memory")).unwrap_or_default();
        text.push_str(&format!("Component {component} begins with {workers} workers of {} cpus{memory}.\n", size["cpus"]));
    }
    let groups: Vec<&Value> = plan["groups"].as_array().into_iter().flatten().collect();
    for group in groups.iter().take(GROUPS_SHOWN) {
        let name = group["name"].as_str().unwrap_or("?");
        let waits: Vec<String> = group["dependencies"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|dependency| Some(format!("{} ({})", dependency["on"].as_str()?, dependency["how"].as_str()?)))
            .collect();
        let begins = if waits.is_empty() { "can begin at once".to_owned() } else { format!("waits for {}", waits.join(" and ")) };
        let takes = group["takes"].as_str().map(|takes| format!(" of {takes}")).unwrap_or_default();
        text.push_str(&format!("Group {name} has {} tasks{takes} and {begins}.\n", group["count"]));
    }
    if groups.is_empty() {
        let tasks: Vec<String> = plan["task_to_component"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(task, component)| format!("{task} in {}", component.as_str().unwrap_or("?")))
            .collect();
        text.push_str(&if tasks.is_empty() {
            "It has no tasks.\n".to_owned()
        } else {
            format!("Its tasks are {}.\n", tasks.join(", "))
        });
    }
    for warning in plan["warnings"].as_array().into_iter().flatten() {
        if let (Some(code), Some(message)) = (warning["code"].as_str(), warning["message"].as_str()) {
            text.push_str(&format!("Note ({code}): {message}.\n"));
        }
    }
    text
}
