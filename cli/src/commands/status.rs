//! `scalable status`: what a run is doing now, or how it ended; with `--all` every run, with `--address` a whole cluster.

use jiff::Timestamp;
use scalable_proto::v1;
use serde_json::{Value, json};

use super::Context;
use crate::args::StatusArgs;
use crate::connect::{self, Found, block_on};
use crate::exit::{CommandResult, Failure, code};
use crate::kubernetes::{Namespace, Seen};
use crate::progress::pool_line;
use crate::records::RunRecord;
use crate::runs;
use crate::summary::Summary;
use crate::table::Table;
use crate::ui::{one_line, span};
use crate::which::Which;

/// Shows the state.
pub fn run(context: &Context, args: &StatusArgs) -> CommandResult {
    if args.elsewhere.is_given() && args.run.is_none() {
        return block_on(there(context, args));
    }
    if args.all {
        return all(context);
    }
    let wanted = args.run.as_deref().unwrap_or("@last");
    if let Some(place) = connect::asked_for(&args.scheduler, &context.runs_dir)?.filter(|_| !args.elsewhere.is_given()) {
        return block_on(async {
            let client = place.connect().await?;
            let run = if wanted == "@last" { "" } else { wanted };
            let status = client.status(run).await?;
            let runs = client.list_runs().await?;
            cluster(context, &place.address, &status, &runs)
        });
    }
    block_on(async {
        let (which, found) = connect::named(context, &args.elsewhere, wanted, None).await?;
        match found {
            Found::Live(client) if which.record.groups.is_empty() => {
                let status = client.status("").await?;
                let runs = client.list_runs().await?;
                cluster(context, client.address(), &status, &runs)
            }
            Found::Live(client) => live(context, &which, client.status(&which.directory.name).await?),
            Found::Records(None) => over(context, &which),
            Found::Records(Some(error)) => {
                context.ui.warn(format!("run.json says that {} is {}, but {error}", which.directory.name, which.record.status));
                over(context, &which)
            }
        }
    })
}

/// The runs of a namespace of Kubernetes.
async fn there(context: &Context, args: &StatusArgs) -> CommandResult {
    let Some(namespace) = Namespace::of(&args.elsewhere).await? else {
        return Err(Failure::usage("no namespace was named").help("name one with --namespace"));
    };
    let seen = namespace.look().await?;
    let now = Timestamp::now();
    if context.ui.json() {
        let runs: Vec<Value> = seen.iter().map(|seen| seen_json(seen, now)).collect();
        context.ui.out_json(&json!({ "schema": "scalable.namespace.v1", "namespace": namespace.name, "runs": runs }))?;
        return Ok(code::OK);
    }
    if seen.is_empty() {
        let end = scalable_provider_k8s::namespace_end(namespace.api(), &namespace.name).await;
        context.ui.say(end.unwrap_or_else(|| format!("there is no run in namespace {}", namespace.name)));
        return Ok(code::OK);
    }
    context.ui.out(seen_table(&seen, now))?;
    Ok(code::OK)
}

fn seen_json(seen: &Seen, now: Timestamp) -> Value {
    let tasks = seen.tasks.map(|(over, total)| json!({ "over": over, "total": total }));
    json!({
        "run": seen.run.run, "status": seen.state, "project": seen.run.project, "target": seen.run.target,
        "started_at": seen.run.created_at, "age_s": age_s(seen, now), "workers": seen.workers, "tasks": tasks, "note": seen.why,
    })
}

fn seen_table(seen: &[Seen], now: Timestamp) -> String {
    let mut table = Table::new(&["run", "state", "age", "workers", "tasks", ""]);
    for seen in seen {
        table.row([
            seen.run.run.clone(),
            seen.state.to_owned(),
            age_s(seen, now).map_or_else(|| "?".to_owned(), span),
            seen.workers.to_string(),
            seen.tasks.map_or_else(|| "?".to_owned(), |(over, total)| format!("{over}/{total}")),
            seen.why.clone(),
        ]);
    }
    table.render()
}

fn age_s(seen: &Seen, now: Timestamp) -> Option<f64> {
    Some(now.duration_since(seen.run.created_at.parse().ok()?).as_secs_f64())
}

/// Why a live run could not be reached.
pub fn unreachable(run: &str, error: Option<&scalable::Error>) -> Failure {
    match error {
        Some(error) => Failure::infrastructure(format!("the scheduler of {run} does not answer: {error}"))
            .help("if the machine was restarted the run is gone: `scalable retry --failed` goes on from what is there"),
        None => Failure::usage(format!("{run} has no scheduler any more"))
            .help("`scalable status` and `scalable report` read its records"),
    }
}

fn all(context: &Context) -> CommandResult {
    let runs = runs::list(&context.runs_dir)?;
    if context.ui.json() {
        let runs: Vec<Value> = runs
            .iter()
            .map(|(directory, record)| {
                json!({
                    "run": directory.name, "status": record.status, "project": record.project_name, "target": record.target_name,
                    "started_at": record.started_at, "finished_at": record.finished_at, "directory": directory.path,
                })
            })
            .collect();
        context.ui.out_json(&json!({ "schema": "scalable.runs.v1", "runs": runs }))?;
        return Ok(code::OK);
    }
    let mut table = Table::new(&["run", "status", "target", "started", "finished"]);
    for (directory, record) in &runs {
        let finished = record.finished_at.clone().unwrap_or_default();
        table.row([
            directory.name.clone(),
            record.status.clone(),
            record.target_name.clone(),
            record.started_at.clone(),
            finished,
        ]);
    }
    context.ui.out(table.render())?;
    Ok(code::OK)
}

fn live(context: &Context, which: &Which, status: v1::StatusReply) -> CommandResult {
    let progress = status.run.clone().unwrap_or_default();
    if context.ui.json() {
        context.ui.out_json(&json!({
            "schema": "scalable.status.v1",
            "run": run_json(which, state_word(progress.state())),
            "groups": progress.groups.iter().map(group_json).collect::<Vec<_>>(),
            "pools": status.pools.iter().map(pool_json).collect::<Vec<_>>(),
            "workers": status.workers.iter().map(worker_json).collect::<Vec<_>>(),
            "note": progress.note,
        }))?;
        return Ok(code::OK);
    }
    let mut text = format!("{}  {}\n", which.directory.name, state_word(progress.state()));
    text.push_str(&facts(&which.record));
    text.push('\n');
    text.push_str(&groups_table(&progress.groups));
    text.push('\n');
    text.push_str(&cluster_text(&status));
    if !progress.note.is_empty() {
        text.push_str(&format!("\n{}\n", progress.note));
    }
    context.ui.out(text)?;
    Ok(code::OK)
}

fn over(context: &Context, which: &Which) -> CommandResult {
    let mut summary = Summary::read(&which.directory, &which.record)?;
    if let Some(why) = &which.record.lost {
        summary.note = format!("its scheduler was lost: {why}");
    }
    if context.ui.json() {
        context.ui.out_json(&json!({
            "schema": "scalable.status.v1",
            "run": run_json(which, &which.record.status),
            "groups": summary.groups.iter().map(group_json).collect::<Vec<_>>(),
            "pools": [],
            "workers": [],
            "note": summary.note,
        }))?;
        return Ok(code::OK);
    }
    let mut text = format!("{}  {}\n", which.directory.name, which.record.status);
    text.push_str(&facts(&which.record));
    text.push('\n');
    text.push_str(&groups_table(&summary.groups));
    text.push_str(&format!("\nrecords: {}\n", which.directory.path.display()));
    if !summary.note.is_empty() {
        text.push_str(&format!("note: {}\n", one_line(&summary.note, 400)));
    }
    context.ui.out(text)?;
    Ok(code::OK)
}

fn cluster(context: &Context, address: &str, status: &v1::StatusReply, runs: &[v1::RunProgress]) -> CommandResult {
    if context.ui.json() {
        let run = |run: &v1::RunProgress| json!({ "run": run.run, "status": state_word(run.state()), "groups": run.groups.iter().map(group_json).collect::<Vec<_>>() });
        context.ui.out_json(&json!({
            "schema": "scalable.cluster.v1",
            "address": address, "cluster_id": status.cluster_id, "epoch": status.epoch, "build": status.build,
            "runs": runs.iter().map(run).collect::<Vec<_>>(),
            "pools": status.pools.iter().map(pool_json).collect::<Vec<_>>(),
            "workers": status.workers.iter().map(worker_json).collect::<Vec<_>>(),
        }))?;
        return Ok(code::OK);
    }
    let mut text = format!("cluster {} at {address}\n\n{}", status.cluster_id, cluster_text(status));
    let mut table = Table::new(&["run", "status", "over", "tasks"]);
    for run in runs {
        let over: u64 = run.groups.iter().map(|group| u64::from(crate::progress::over(group))).sum();
        let tasks: u64 = run.groups.iter().map(|group| u64::from(group.length)).sum();
        table.row([run.run.clone(), state_word(run.state()).to_owned(), over.to_string(), tasks.to_string()]);
    }
    text.push_str(&format!("\n{}", table.render()));
    context.ui.out(text)?;
    Ok(code::OK)
}

/// A state as a word.
pub fn state_word(state: v1::RunState) -> &'static str {
    match state {
        v1::RunState::Unspecified => "unknown",
        v1::RunState::Running => "running",
        v1::RunState::Cancelling => "cancelling",
        v1::RunState::Succeeded => "succeeded",
        v1::RunState::Failed => "failed",
        v1::RunState::Cancelled => "cancelled",
    }
}

fn facts(record: &RunRecord) -> String {
    let mut text = format!("project {}  target {} ({})\n", record.project_name, record.target_name, record.provider_name);
    text.push_str(&format!("started {}", record.started_at));
    if let Some(finished) = &record.finished_at {
        text.push_str(&format!("  finished {finished}"));
    }
    text.push('\n');
    if let (Some(address), false) = (&record.address, record.is_over()) {
        text.push_str(&format!("scheduler {address}  page {}\n", record.http.as_deref().unwrap_or("none")));
    }
    text
}

/// Counts of groups as a table.
pub fn groups_table(groups: &[v1::GroupCounts]) -> String {
    let mut table =
        Table::new(&["group", "tasks", "succeeded", "running", "waiting", "failed", "skipped", "cancelled", "retried"])
            .numbers_from(1);
    for group in groups {
        let length = if group.open { "?".to_owned() } else { group.length.to_string() };
        let waiting = group.waiting + group.ready + group.backoff + group.assigned;
        let counts = [group.succeeded, group.running, waiting, group.failed, group.skipped, group.cancelled, group.retried];
        let cells = [one_line(&group.group, 40), length].into_iter().chain(counts.iter().map(u32::to_string));
        table.row(cells);
    }
    table.render()
}

fn cluster_text(status: &v1::StatusReply) -> String {
    let mut text: String = status.pools.iter().map(|pool| format!("{}\n", pool_line(pool))).collect();
    if !status.workers.is_empty() {
        let mut table = Table::new(&["worker", "state", "executing", "queued", "process", "host"]).numbers_from(2);
        for worker in &status.workers {
            let figures = [worker.executing.to_string(), worker.queued.to_string(), worker.pid.to_string()];
            let words = [one_line(&worker.name, 40), worker.state.clone()];
            table.row(words.into_iter().chain(figures).chain([one_line(&worker.host, 40)]));
        }
        text.push_str(&format!("\n{}", table.render()));
    }
    text
}

fn run_json(which: &Which, status: &str) -> Value {
    let record = &which.record;
    json!({
        "run": which.directory.name, "status": status, "project": record.project_name, "target": record.target_name,
        "provider": record.provider_name, "started_at": record.started_at, "finished_at": record.finished_at,
        "directory": which.directory.path, "address": record.address, "http": record.http,
    })
}

/// Counts of a group for programs.
pub fn group_json(group: &v1::GroupCounts) -> Value {
    json!({
        "group": group.group, "tasks": if group.open { Value::Null } else { group.length.into() },
        "waiting": group.waiting, "ready": group.ready, "backoff": group.backoff, "assigned": group.assigned, "running": group.running,
        "succeeded": group.succeeded, "failed": group.failed, "skipped": group.skipped, "cancelled": group.cancelled,
        "retried": group.retried,
    })
}

fn pool_json(pool: &v1::PoolCounts) -> Value {
    json!({
        "pool": pool.pool, "workers": pool.workers, "starting": pool.starting, "suspect": pool.suspect, "draining": pool.draining,
        "lost": pool.lost, "milli_cpus": pool.milli_cpus, "milli_cpus_used": pool.milli_cpus_used, "memory_bytes": pool.memory_bytes,
        "memory_bytes_used": pool.memory_bytes_used, "note": pool.note,
    })
}

fn worker_json(worker: &v1::WorkerStatus) -> Value {
    json!({
        "worker": worker.name, "pool": worker.pool, "state": worker.state, "executing": worker.executing, "queued": worker.queued,
        "pid": worker.pid, "host": worker.host, "session": worker.session,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use scalable_provider_k8s::Run;
    use scalable_provider_k8s::settings::Root;

    #[test]
    fn the_runs_of_a_namespace() {
        let seen = |name: &str, state: &'static str, why: &str, tasks| Seen {
            run: Run {
                namespace: "n".to_owned(),
                root: Root { name: format!("scalable-scheduler-{name}"), uid: "u".to_owned() },
                cluster_id: "c".to_owned(),
                run: name.to_owned(),
                project: "energy".to_owned(),
                target: "k8s".to_owned(),
                created_at: "2026-01-01T00:00:00Z".to_owned(),
                ended: None,
            },
            state,
            why: why.to_owned(),
            workers: 2,
            tasks,
        };
        let now = "2026-01-01T01:30:00Z".parse().unwrap();
        let all = [seen("one", "running", "", Some((3, 10))), seen("two", "lost", "Failed: BackoffLimitExceeded", None)];
        let json: Vec<String> = all.iter().map(|seen| seen_json(seen, now).to_string()).collect();
        insta::assert_snapshot!(format!("{}\n{}", seen_table(&all, now), json.join("\n")));
    }
}
