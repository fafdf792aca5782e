//! `scalable explain`: why a task is in the state it is in, from its scheduler or, for a run that is over, from its records; and
//! what a plan says, in prose.

use std::path::Path;

use serde_json::json;

use super::Context;
use crate::args::ExplainArgs;
use crate::connect::{self, Found, block_on};
use crate::exit::{CommandResult, Failure, code};
use crate::failure_text::FailureText;
use crate::records::{self, TaskRecord};
use crate::ui::span;
use crate::which::Which;

/// Explains a task or a plan.
pub fn run(context: &Context, args: &ExplainArgs) -> CommandResult {
    let path = Path::new(&args.what);
    if path.extension().is_some_and(|extension| extension == "json") && path.is_file() {
        return plan(context, path);
    }
    if let Some(pool) = args.what.strip_prefix("pool/") {
        return explain_pool(context, args, pool);
    }
    let (which, state, sentence) = block_on(async {
        let (which, found) = connect::named(context, &args.elsewhere, &args.run, Some(&args.what)).await?;
        let (group, index) = which.task()?;
        let (state, sentence) = explain(context, &which, found, group, index).await?;
        Ok((which, state, sentence))
    })?;
    let (group, index) = which.task()?;
    if context.ui.json() {
        context.ui.out_json(&json!({
            "schema": "scalable.explain.v1", "run": which.directory.name, "task": format!("{group}[{index}]"), "state": state,
            "sentence": sentence,
        }))?;
    } else {
        context.ui.out(format!("{group}[{index}] is {state}: {sentence}"))?;
    }
    Ok(code::OK)
}

/// What is there of a pool, why there is not more, and what was decided about it lately.
fn explain_pool(context: &Context, args: &ExplainArgs, pool: &str) -> CommandResult {
    let (which, reply) = block_on(async {
        let (which, found) = connect::named(context, &args.elsewhere, &args.run, None).await?;
        match found {
            Found::Live(client) => {
                let reply = client.explain(&which.directory.name, &format!("pool/{pool}"), 0).await?;
                Ok((which, reply))
            }
            Found::Records(_) => {
                let run = &which.directory.name;
                Err(Failure::usage(format!("{run} is over, and its pools are gone with it"))
                    .help(format!("`scalable status {run}` and its workers.jsonl say what there was")))
            }
        }
    })?;
    if context.ui.json() {
        let lines: Vec<&str> = reply.sentence.lines().collect();
        context.ui.out_json(&json!({
            "schema": "scalable.explain.v1", "run": which.directory.name, "pool": pool, "state": lines.first(),
            "decisions": lines.get(1..).unwrap_or_default(),
        }))?;
    } else {
        context.ui.out(format!("pool {pool}: {}", reply.sentence))?;
    }
    Ok(code::OK)
}

async fn explain(context: &Context, which: &Which, found: Found, group: &str, index: u32) -> Result<(String, String), Failure> {
    match found {
        Found::Live(client) => match client.explain(&which.directory.name, group, index).await {
            Ok(reply) => Ok((reply.state, reply.sentence)),
            // It may have ended and gone between the two calls.
            Err(error) if error.is_transient() && which.directory.record()?.is_over() => from_records(which, group, index),
            Err(error) => Err(error.into()),
        },
        Found::Records(error) => {
            if let Some(error) = error {
                context.ui.warn(format!("{error}; what follows is from the records"));
            }
            from_records(which, group, index)
        }
    }
}

fn from_records(which: &Which, group: &str, index: u32) -> Result<(String, String), Failure> {
    let read = |name: &str| {
        let path = which.directory.file(name);
        records::read_lines::<TaskRecord>(&path).map_err(|error| Failure::io(format!("read {}", path.display()), &error))
    };
    let this = |task: &TaskRecord| task.group() == group && task.index() == index;
    if let Some(task) = read("tasks.jsonl")?.filter(this).last() {
        return Ok((task.state.clone(), sentence(&task)));
    }
    if let Some(failure) = read("failures.jsonl")?.filter(this).last() {
        return Ok(("unfinished".to_owned(), format!("its last attempt failed: {}", FailureText::from_record(&failure).line())));
    }
    let sentence = match (which.record.tasks_recorded.as_str(), which.record.is_over()) {
        ("failures", true) => "it is not among the failures, and of a run of this size only those are recorded one by one",
        (_, true) => "the records of the run do not name it",
        (_, false) => "it had not ended when the records were last written",
    };
    Ok(("unknown".to_owned(), sentence.to_owned()))
}

/// A finished task in one sentence.
fn sentence(task: &TaskRecord) -> String {
    let failed = || FailureText::from_record(task);
    match task.state.as_str() {
        "succeeded" => {
            let took = task.duration_s.map(|seconds| format!(" after {}", span(seconds))).unwrap_or_default();
            let worker = task.worker.as_deref().map(|worker| format!(" on {worker}")).unwrap_or_default();
            format!("attempt {}{worker} ended with exit code {}{took}", task.attempt, task.exit_code.unwrap_or(0))
        }
        "failed" => {
            let message = if failed().message.is_empty() { String::new() } else { format!(": {}", failed().message) };
            format!("attempt {} ended with {}{message}; no attempt is left", task.attempt, failed().how())
        }
        "skipped" => match &task.root {
            Some(root) => format!("it was never started, because {root} failed, on which it depends"),
            None => "it was never started, because a task on which it depends failed".to_owned(),
        },
        "cancelled" if task.attempt > 0 => format!("attempt {} was ended when it was cancelled", task.attempt),
        "cancelled" => "it was cancelled before it was started".to_owned(),
        _ => "the records say no more".to_owned(),
    }
}

fn plan(context: &Context, path: &Path) -> CommandResult {
    let plan: serde_json::Value = records::read_json(path).map_err(|error| {
        Failure::usage(format!("{} is not a plan: {error}", path.display()))
            .help("write one with `scalable plan --output plan.json`")
    })?;
    let text = crate::plan_text::prose(&plan);
    if context.ui.json() {
        context.ui.out_json(&json!({ "schema": "scalable.explain.v1", "plan": path, "sentence": text }))?;
    } else {
        context.ui.out(text)?;
    }
    Ok(code::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_a_sentence() {
        let task = |state: &str| TaskRecord {
            state: state.into(),
            attempt: 2,
            worker: Some("local-0".into()),
            duration_s: Some(1.5),
            exit_code: Some(3),
            error_type: Some("app_error".into()),
            root: Some("prepare[0]".into()),
            ..TaskRecord::default()
        };
        let all: Vec<String> =
            ["succeeded", "failed", "skipped", "cancelled"].map(|state| format!("{state}: {}", sentence(&task(state)))).into();
        insta::assert_snapshot!(all.join("\n"));
    }
}
