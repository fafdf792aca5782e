//! `scalable cancel`: a run, a group of it, or one task.

use serde_json::json;

use super::Context;
use crate::args::CancelArgs;
use crate::connect::{self, Found, block_on};
use crate::exit::{CommandResult, Failure, code};
use crate::which::Which;

/// Asks the run's scheduler; returns when it has taken the request.
pub fn run(context: &Context, args: &CancelArgs) -> CommandResult {
    let (which, tasks) = block_on(async {
        let (which, found) = connect::named(context, &args.elsewhere, "@last", Some(&args.what)).await?;
        let tasks = cancel(&which, found, &args.reason).await?;
        Ok((which, tasks))
    })?;
    let run = which.directory.name.clone();
    let what = match (&which.group, which.index) {
        (Some(group), Some(index)) => format!("{run}/{group}[{index}]"),
        (Some(group), None) => format!("{run}/{group}"),
        _ => run,
    };
    if context.ui.json() {
        context.ui.out_json(&json!({ "schema": "scalable.cancel.v1", "cancelled": what, "tasks": tasks }))?;
    } else {
        context.ui.out(format!("cancelling {what}: {tasks} tasks"))?;
    }
    Ok(code::OK)
}

async fn cancel(which: &Which, found: Found, reason: &str) -> Result<u32, Failure> {
    if which.record.is_over() {
        return Err(Failure::usage(format!("{} is over already: {}", which.directory.name, which.record.status)));
    }
    match found {
        Found::Live(client) => {
            Ok(client.cancel(&which.directory.name, which.group.as_deref().unwrap_or_default(), which.index, reason).await?)
        }
        Found::Records(error) => Err(super::status::unreachable(&which.directory.name, error.as_ref())),
    }
}
