//! `scalable down`: stop the scheduler and the workers that a run has started, and see that they are gone.

use std::time::Duration;

use serde_json::json;

use super::Context;
use crate::args::DownArgs;
use crate::connect::{Found, block_on, reach};
use crate::exit::{CommandResult, Failure, code};
use crate::launcher::{still_alive, wait_gone};
use crate::which;

/// Longest wait for processes to end: the grace of the tasks and a little more.
const GONE_TIMEOUT: Duration = Duration::from_secs(60);

/// Stops everything of the run; nothing to stop is success.
pub fn run(context: &Context, args: &DownArgs) -> CommandResult {
    let which = which::run(&context.runs_dir, &args.run)?;
    let mut pids = which.record.pids.workers.clone();
    pids.extend(which.record.pids.scheduler);
    let more = block_on(async {
        match reach(&which.record).await? {
            Found::Live(client) => {
                let workers: Vec<u32> = client.status("").await?.workers.iter().map(|worker| worker.pid).collect();
                client.shutdown(true).await?;
                Ok(workers)
            }
            Found::Records(_) => Ok(Vec::new()),
        }
    })?;
    pids.extend(more);
    pids.sort_unstable();
    pids.dedup();
    let before = still_alive(&pids);
    let left = wait_gone(&pids, GONE_TIMEOUT);
    if !left.is_empty() {
        let left: Vec<String> = left.iter().map(u32::to_string).collect();
        return Err(Failure::infrastructure(format!(
            "processes {} of {} are still there",
            left.join(", "),
            which.directory.name
        ))
        .help(format!("look into {}, then end them with kill", which.directory.file("scheduler.log").display())));
    }
    if context.ui.json() {
        context.ui.out_json(&json!({ "schema": "scalable.down.v1", "run": which.directory.name, "stopped": before }))?;
    } else if before.is_empty() {
        context.ui.out(format!("nothing of {} was running", which.directory.name))?;
    } else {
        context.ui.out(format!("{} is down: {} processes have ended", which.directory.name, before.len()))?;
    }
    Ok(code::OK)
}
