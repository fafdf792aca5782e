//! `scalable run`.

use serde_json::json;

use super::Context;
use crate::args::RunArgs;
use crate::carry_out::{Job, carry_out, wanted};
use crate::drive::{End, Ended};
use crate::exit::{CommandResult, Failure, code};
use crate::runs::RunDirectory;
use crate::summary::{Summary, counts_text};
use crate::ui::span;
use crate::workflow::{self, Wanted};

/// Checks, plans, runs.
pub fn run(context: &Context, args: &RunArgs) -> CommandResult {
    let workflow = workflow::load(context.ui, &args.manifest)?;
    if args.dry_run {
        return super::plan::show(context, &workflow);
    }
    workflow.check_runnable()?;
    let wanted = Wanted { stub: args.stub, ..wanted(&args.how) };
    let driver = args.workflow.then_some(args.command.as_slice());
    let job = Job { workflow: &workflow, how: &args.how, wanted, idle_ttl: args.idle_ttl, driver };
    carry_out(context, &job)
}

/// The end of a watched run: what became of it, where its outputs are, and the exit code.
pub fn finish_watching(context: &Context, directory: &RunDirectory, ended: Ended) -> CommandResult {
    let exit_code = ended.exit_code();
    match ended.end {
        End::Detached => {
            context.ui.say(format!("{} goes on; to watch it again: scalable attach {}", directory.name, directory.name));
            return Ok(code::OK);
        }
        End::Lost(failure) => {
            // A scheduler that had nothing left to do may end before it could say so; its records have the truth.
            if directory.record().is_ok_and(|record| record.is_over()) {
                return super::report::sum_up(context, directory);
            }
            return Err(failure);
        }
        End::Forced(told) => {
            let message = format!("{} was cancelled, and what became of it was not waited for", directory.name);
            return Err(Failure { code: told.exit_code(), message, help: Some(format!("see {}", directory.path.display())) });
        }
        End::Over => {}
    }
    let record = directory.record()?;
    let summary = Summary::read(directory, &record)?;
    if context.ui.json() {
        let mut document = summary.json(directory);
        document["schema"] = json!("scalable.run.v1");
        document["exit_code"] = json!(exit_code);
        context.ui.out_json(&document)?;
        return Ok(exit_code);
    }
    let state = super::status::state_word(ended.progress.state());
    let wall = summary.wall_s().map(|wall| format!(" in {}", span(wall))).unwrap_or_default();
    let mut text = format!("{} {state}{wall}: {}\n", directory.name, counts_text(&ended.progress.groups));
    if directory.file("outputs").is_dir() {
        text.push_str(&format!("outputs  {}\n", directory.file("outputs").display()));
    }
    text.push_str(&format!("records  {}\n", directory.path.display()));
    if exit_code != code::OK {
        let at = context.runs_dir_option();
        if ended.progress.groups.iter().any(|group| group.failed > 0) {
            text.push_str(&format!("failures scalable report --failures --run-id {}{at}\n", directory.name));
        }
        text.push_str(&format!("go on    scalable retry --failed {}{at}\n", directory.name));
    }
    if !ended.progress.note.is_empty() {
        text.push_str(&format!("note     {}\n", crate::ui::one_line(&ended.progress.note, 400)));
    }
    context.ui.out(text)?;
    Ok(exit_code)
}
