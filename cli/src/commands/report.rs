//! `scalable report`: what the records of a run amount to.

use serde_json::json;

use super::Context;
use crate::args::ReportArgs;
use crate::exit::{CommandResult, Failure, code};
use crate::failure_text::FailureText;
use crate::runs::{self, RunDirectory};
use crate::summary::Summary;
use crate::table::Table;
use crate::ui::{Format, bytes, span};

/// Sums a run up, lists its failures, or compares two runs.
pub fn run(context: &Context, args: &ReportArgs) -> CommandResult {
    let json = args.format.unwrap_or(context.ui.format) == Format::Json;
    let text = match &args.compare {
        Some(names) => compare(context, names, json)?,
        None => {
            let directory = runs::find(&context.runs_dir, args.run_id.as_deref().unwrap_or("@last"))?;
            let summary = Summary::read(&directory, &directory.record()?)?;
            match (args.failures, json) {
                (false, false) => summary.text(&directory),
                (false, true) => pretty(&summary.json(&directory))?,
                (true, false) => failures_text(&summary, &directory),
                (true, true) => pretty(&json!({
                    "schema": "scalable.failures.v1", "run_id": summary.run, "failures": summary.failures,
                    "failures_left_out": summary.failures_left_out,
                }))?,
            }
        }
    };
    match &args.output {
        Some(path) => {
            std::fs::write(path, &text).map_err(|error| Failure::io(format!("write {}", path.display()), &error))?;
            context.ui.say(format!("written to {}", path.display()));
        }
        None => context.ui.out(text)?,
    }
    Ok(code::OK)
}

/// The report of a run that is over, with the exit code the run had.
pub fn sum_up(context: &Context, directory: &RunDirectory) -> CommandResult {
    let record = directory.record()?;
    let summary = Summary::read(directory, &record)?;
    context.ui.out(if context.ui.json() { pretty(&summary.json(directory))? } else { summary.text(directory) })?;
    Ok(if record.status == "completed" { code::OK } else { code::FAILED })
}

fn pretty(document: &serde_json::Value) -> Result<String, Failure> {
    serde_json::to_string_pretty(document)
        .map(|text| text + "\n")
        .map_err(|error| Failure::infrastructure(format!("cannot write JSON: {error}")))
}

fn failures_text(summary: &Summary, directory: &RunDirectory) -> String {
    if summary.failures.is_empty() {
        return format!("{} has no failed task\n", summary.run);
    }
    let root = directory.path.display().to_string();
    let mut text: String = summary.failures.iter().map(|failure| FailureText::from_record(failure).full(&root) + "\n").collect();
    if summary.failures_left_out > 0 {
        text.push_str(&format!("… and {} more in {}\n", summary.failures_left_out, directory.file("failures.jsonl").display()));
    }
    text
}

fn compare(context: &Context, names: &[String], json: bool) -> Result<String, Failure> {
    let read = |name: &String| {
        let directory = runs::find(&context.runs_dir, name)?;
        let summary = Summary::read(&directory, &directory.record()?)?;
        Ok::<_, Failure>((directory, summary))
    };
    let runs = names.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    if json {
        let runs: Vec<_> = runs.iter().map(|(directory, summary)| summary.json(directory)).collect();
        return pretty(&json!({ "schema": "scalable.comparison.v1", "runs": runs }));
    }
    let headings: Vec<&str> = std::iter::once("").chain(runs.iter().map(|(_, summary)| summary.run.as_str())).collect();
    let mut table = Table::new(&headings);
    let mut row = |name: &str, cell: &dyn Fn(&Summary) -> String| {
        table.row(std::iter::once(name.to_owned()).chain(runs.iter().map(|(_, summary)| cell(summary))));
    };
    row("status", &|summary| summary.record.status.clone());
    row("target", &|summary| summary.record.target_name.clone());
    row("started", &|summary| summary.record.started_at.clone());
    row("wall time", &|summary| summary.wall_s().map(span).unwrap_or_default());
    row("tasks", &|summary| summary.counts_text());
    row("time in tasks", &|summary| span(summary.total().duration_s));
    row("cpu time", &|summary| span(summary.total().cpu_s));
    row("waiting time", &|summary| span(summary.total().queued_s));
    row("peak memory", &|summary| bytes(summary.total().peak_memory_bytes));
    let mut groups: Vec<&str> = Vec::new();
    for group in runs.iter().flat_map(|(_, summary)| &summary.groups) {
        if !groups.contains(&group.group.as_str()) && groups.len() < 100 {
            groups.push(&group.group);
        }
    }
    for name in groups {
        row(&format!("{name}: mean"), &|summary| match summary.sums.get(name) {
            Some(sums) if sums.executed > 0 => {
                format!("{} ({} tasks)", span(sums.duration_s / sums.executed as f64), sums.executed)
            }
            _ => String::new(),
        });
    }
    Ok(table.render())
}
