//! `scalable down`: stop the scheduler and the workers that a run has started, and see that they are gone.

use std::time::Duration;

use serde_json::json;

use super::Context;
use crate::args::DownArgs;
use crate::connect::{Found, block_on, reach};
use crate::exit::{CommandResult, Failure, code};
use crate::kubernetes::{KubernetesRecord, destroy_run};
use crate::launcher::{still_alive, wait_gone};
use crate::records::RunRecord;
use crate::which::{self, Which};

/// Longest wait for processes to end: the grace of the tasks and a little more.
const GONE_TIMEOUT: Duration = Duration::from_secs(60);

/// Stops everything of the run; nothing to stop is success.
pub fn run(context: &Context, args: &DownArgs) -> CommandResult {
    let which = which::run(&context.runs_dir, &args.run)?;
    if let Some(at) = &which.record.kubernetes {
        return down_on_kubernetes(context, &which, at);
    }
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

fn down_on_kubernetes(context: &Context, which: &Which, at: &KubernetesRecord) -> CommandResult {
    let name = &which.directory.name;
    let was_there = block_on(destroy_run(context, at, name))?;
    if !which.record.is_over() {
        let finished_at = Some(jiff::Timestamp::now().to_string());
        let record = RunRecord { status: "cancelled".to_owned(), finished_at, http: None, ..which.record.clone() };
        which.directory.write_record(&record)?;
    }
    if context.ui.json() {
        context.ui.out_json(&json!({ "schema": "scalable.down.v1", "run": name, "stopped": was_there }))?;
    } else if was_there {
        context.ui.out(format!("{name} is down: nothing of it is left in namespace {}", at.namespace))?;
    } else {
        context.ui.out(format!("nothing of {name} was there in namespace {}", at.namespace))?;
    }
    Ok(code::OK)
}
