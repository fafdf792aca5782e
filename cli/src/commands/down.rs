//! `scalable down`: stop the scheduler and the workers that a run has started, and see that they are gone.

use std::io::{self, BufRead, IsTerminal, Read};
use std::time::Duration;

use scalable_provider_k8s::Run;
use serde_json::json;

use super::Context;
use crate::args::DownArgs;
use crate::connect::{Found, block_on, reach};
use crate::exit::{CommandResult, Failure, code};
use crate::kubernetes::{self, KubernetesRecord, Namespace, destroy_run};
use crate::launcher::{still_alive, wait_gone};
use crate::records::RunRecord;
use crate::runs::RunDirectory;
use crate::ui::harmless;
use crate::which::{self, Which};

/// Longest wait for processes to end: the grace of the tasks and a little more.
const GONE_TIMEOUT: Duration = Duration::from_secs(60);
/// Runs that are taken down at once.
const AT_ONCE: usize = 8;
/// What is read of an answer.
const ANSWER_BYTES_MAX: u64 = 100;

/// Stops everything of the run; nothing to stop is success.
pub fn run(context: &Context, args: &DownArgs) -> CommandResult {
    if args.all {
        return block_on(all(context, args));
    }
    if args.elsewhere.is_given() {
        return block_on(down_elsewhere(context, args));
    }
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
    note_down(&which.directory, &which.record)?;
    say_down(context, name, &at.namespace, was_there)
}

/// A run of a namespace, whatever is on this machine, and whether its scheduler lives or not.
async fn down_elsewhere(context: &Context, args: &DownArgs) -> CommandResult {
    let namespace = namespace_of(args).await?;
    let (run, _) = namespace.find(&args.run, None).await?;
    take_down(context, &namespace, &run).await?;
    say_down(context, &run.run, &namespace.name, true)
}

async fn namespace_of(args: &DownArgs) -> Result<Namespace, Failure> {
    Namespace::of(&args.elsewhere).await?.ok_or_else(|| {
        Failure::usage("--all is about the runs of a namespace of Kubernetes, and none was named")
            .help("name it with --namespace; without --all, one run is taken down")
    })
}

/// Deletes it and sees that it is gone; says so in its directory here, where it has one.
async fn take_down(context: &Context, namespace: &Namespace, run: &Run) -> Result<(), Failure> {
    scalable_provider_k8s::destroy(namespace.api(), run).await?;
    match kubernetes::directory_here(&context.runs_dir, run) {
        Some((directory, record)) => note_down(&directory, &record),
        None => Ok(()),
    }
}

fn note_down(directory: &RunDirectory, record: &RunRecord) -> Result<(), Failure> {
    if record.is_over() {
        return Ok(());
    }
    let finished_at = Some(jiff::Timestamp::now().to_string());
    directory.write_record(&RunRecord { status: "cancelled".to_owned(), finished_at, http: None, ..record.clone() })
}

fn say_down(context: &Context, name: &str, namespace: &str, was_there: bool) -> CommandResult {
    if context.ui.json() {
        context.ui.out_json(&json!({ "schema": "scalable.down.v1", "run": name, "stopped": was_there }))?;
    } else if was_there {
        context.ui.out(format!("{name} is down: nothing of it is left in namespace {namespace}"))?;
    } else {
        context.ui.out(format!("nothing of {name} was there in namespace {namespace}"))?;
    }
    Ok(code::OK)
}

/// Every run of a namespace. What is not a run of ours is not touched: a run is known by the labels and the name of its Job, and what
/// belongs to it by being owned by that.
async fn all(context: &Context, args: &DownArgs) -> CommandResult {
    let namespace = namespace_of(args).await?;
    let runs = namespace.runs().await?;
    if !runs.is_empty() && !args.yes && !may_go(context, &runs, &namespace.name)? {
        return Err(Failure::usage("nothing was taken down"));
    }
    let mut ended = Vec::new();
    for some in runs.chunks(AT_ONCE) {
        // Each waits for Kubernetes most of the time.
        let deleted: Vec<_> = some
            .iter()
            .map(|run| {
                let (api, run) = (namespace.api().clone(), run.clone());
                tokio::spawn(async move { scalable_provider_k8s::destroy(&api, &run).await })
            })
            .collect();
        for (deleted, run) in deleted.into_iter().zip(some) {
            let result = match deleted.await {
                Ok(result) => result.map_err(Failure::from),
                Err(error) => Err(Failure::infrastructure(error.to_string())),
            };
            let noted = match (&result, kubernetes::directory_here(&context.runs_dir, run)) {
                (Ok(()), Some((directory, record))) => note_down(&directory, &record),
                _ => Ok(()),
            };
            let result = result.and(noted).map_err(|failure| failure.message);
            if !context.ui.json() {
                context.ui.out(match &result {
                    Ok(()) => format!("{} is down", run.run),
                    Err(why) => format!("{} is not down: {why}", run.run),
                })?;
            }
            ended.push((run.run.as_str(), result));
        }
    }
    if context.ui.json() {
        let runs =
            ended.iter().map(|(run, result)| json!({ "run": run, "stopped": result.is_ok(), "error": result.as_ref().err() }));
        let runs: Vec<_> = runs.collect();
        context.ui.out_json(&json!({ "schema": "scalable.down_all.v1", "namespace": namespace.name, "runs": runs }))?;
    } else if runs.is_empty() {
        context.ui.out(format!("there is no run in namespace {}", namespace.name))?;
    }
    match ended.iter().filter(|(_, result)| result.is_err()).count() {
        0 => Ok(code::OK),
        left => Err(Failure::infrastructure(format!("{left} of {} runs are not down", ended.len()))),
    }
}

/// Asks whether these runs may go; without a terminal that has to be said beforehand.
fn may_go(context: &Context, runs: &[Run], namespace: &str) -> Result<bool, Failure> {
    let names = runs.iter().map(|run| run.run.as_str()).collect::<Vec<_>>().join(", ");
    let what = match runs.len() {
        1 => format!("one run in namespace {namespace}: {names}"),
        several => format!("{several} runs in namespace {namespace}: {names}"),
    };
    if !(context.ui.stderr_is_terminal && io::stdin().is_terminal()) {
        return Err(Failure::usage(format!("--all takes down {what}")).help("say --yes if that is meant"));
    }
    context.ui.show(format!("take down {}? [y/N] ", harmless(&what)));
    let mut answer = String::new();
    io::stdin().lock().take(ANSWER_BYTES_MAX).read_line(&mut answer).map_err(|error| Failure::io("read the answer", &error))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
