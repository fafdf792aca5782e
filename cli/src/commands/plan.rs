//! `scalable plan`: what `run` would do, without doing any of it.

use std::path::Path;

use super::Context;
use crate::args::PlanArgs;
use crate::exit::{CommandResult, Failure, code};
use crate::plan_text;
use crate::records;
use crate::workflow::{self, Workflow};

/// Shows the plan, and writes it where asked to.
pub fn run(context: &Context, args: &PlanArgs) -> CommandResult {
    let workflow = workflow::load(context.ui, &args.manifest)?;
    if let Some(path) = &args.output {
        write(&workflow, path)?;
        context.ui.say(format!("written to {}", path.display()));
    }
    show(context, &workflow)
}

/// Prints the plan.
pub fn show(context: &Context, workflow: &Workflow) -> CommandResult {
    if context.ui.json() {
        let mut document = serde_json::json!({ "schema": "scalable.plan.v1" });
        let plan = serde_json::to_value(&workflow.plan)
            .map_err(|error| Failure::infrastructure(format!("cannot write JSON: {error}")))?;
        for (key, value) in plan.as_object().into_iter().flatten() {
            document[key] = value.clone();
        }
        context.ui.out_json(&document)?;
    } else {
        context.ui.out(plan_text::text(&workflow.plan))?;
    }
    Ok(code::OK)
}

/// plan.json, and manifest.lock beside it.
fn write(workflow: &Workflow, path: &Path) -> Result<(), Failure> {
    let io = |path: &Path| {
        let path = path.display().to_string();
        move |error: std::io::Error| Failure::io(format!("write {path}"), &error)
    };
    records::write_json(path, &workflow.plan).map_err(io(path))?;
    let lock = path.with_file_name("manifest.lock");
    records::write_atomically(&lock, format!("{}\n", workflow.plan.manifest_lock).as_bytes()).map_err(io(&lock))
}
