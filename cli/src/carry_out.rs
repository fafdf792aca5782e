//! Carrying a run out: its directory, its scheduler, the submit, watching, and taking everything down again. Used by `run` and
//! `retry`.

use std::ffi::OsString;
use std::time::Duration;

use jiff::Timestamp;
use scalable::Client;

use crate::args::HowArgs;
use crate::cluster::{self, Cluster};
use crate::commands::Context;
use crate::commands::run::finish_watching;
use crate::connect::{self, Place, block_on};
use crate::drive::{End, Ended, Watched, drive};
use crate::driver;
use crate::exit::{CommandResult, Failure, code};
use crate::fetch;
use crate::interrupt::Signals;
use crate::kubernetes;
use crate::launcher::{LocalLauncher, LocalScheduler, wait_gone};
use crate::records::{Pids, RunRecord};
use crate::runs::{self, RunDirectory};
use crate::workflow::{Submission, Wanted, Workflow};

/// Longest wait for processes that were told to end.
const GONE_TIMEOUT: Duration = Duration::from_secs(15);

/// What is to be carried out.
pub struct Job<'a> {
    /// The checked workflow.
    pub workflow: &'a Workflow,
    /// How.
    pub how: &'a HowArgs,
    /// Time without work after which a cluster without tasks ends.
    pub idle_ttl: Duration,
    /// What the run is beyond its manifest.
    pub wanted: Wanted,
    /// A command that drives the cluster instead of the manifest's tasks.
    pub driver: Option<&'a [OsString]>,
}

/// What the options of `run` and `retry` say.
pub fn wanted(how: &HowArgs) -> Wanted {
    Wanted { max_failures: how.max_failures, keep_failed: how.keep_failed, stub: false, takes_over: None }
}

/// Carries it out; the exit code is the run's.
pub fn carry_out(context: &Context, job: &Job<'_>) -> CommandResult {
    let place = connect::asked_for(&job.how.scheduler, &context.runs_dir)?;
    let name = match &job.how.name {
        Some(name) => name.clone(),
        None => runs::new_name(&job.workflow.project(), Timestamp::now())?,
    };
    let directory = runs::create(&context.runs_dir, &name)?;
    let mut record = job.workflow.record(&name, &job.wanted);
    let outcome = prepare_and_go(context, job, place, &directory, &mut record);
    if let Err(failure) = &outcome {
        // The scheduler owns run.json from the submit on; a run that did not come so far is over now.
        let known = directory.record().unwrap_or_default();
        let schedulers = known.fetched && known.submitted;
        if !known.is_over() && !schedulers {
            let finished_at = Some(Timestamp::now().to_string());
            let ended = RunRecord {
                status: "failed".to_owned(),
                finished_at,
                address: None,
                http: None,
                token_file: None,
                pids: Pids::default(),
                ..if known.run_id.is_empty() { record } else { known }
            };
            directory.write_record(&ended)?;
        }
        tracing::debug!(run = %name, failure = %failure.message, "not carried out");
    }
    outcome
}

fn prepare_and_go(
    context: &Context,
    job: &Job<'_>,
    place: Option<Place>,
    directory: &RunDirectory,
    record: &mut RunRecord,
) -> CommandResult {
    directory.write_record(record)?;
    let mut submission = job.workflow.submission(context.ui, directory, &job.wanted)?;
    if job.driver.is_some() && !submission.spec.groups.is_empty() {
        context.ui.say("the command drives this run: the manifest's tasks are not run");
        submission.spec.groups.clear();
    }
    record.groups = Workflow::groups(&submission);
    job.workflow.write_files(directory, &submission)?;
    match place {
        Some(place) => {
            record.address = Some(place.address.clone());
            record.token_file = Some(runs::absolute(&place.token_file)?.display().to_string());
            directory.write_record(record)?;
            block_on(with_scheduler(context, job, &place, directory, record, submission))
        }
        None => match &job.workflow.manifest.target.kubernetes {
            Some(options) => block_on(kubernetes::carry_out(context, job, options, directory, record, submission)),
            None => with_local(context, job, directory, record, submission),
        },
    }
}

/// A scheduler that runs already: the run outlives this command line by itself.
async fn with_scheduler(
    context: &Context,
    job: &Job<'_>,
    place: &Place,
    directory: &RunDirectory,
    record: &mut RunRecord,
    mut submission: Submission,
) -> CommandResult {
    if job.driver.is_some() {
        return Err(Failure::usage("--workflow starts a cluster of its own, and --address (or SCALABLE_ADDRESS) names another")
            .help("give one of the two; a driver of a cluster that runs already needs no `scalable run`"));
    }
    if submission.spec.groups.is_empty() {
        return Err(Failure::usage(
            "the manifest has no tasks, and --address names a scheduler that runs already: nothing is to be done",
        ));
    }
    let mut signals = Signals::new()?;
    let client = place.connect().await?;
    if !client.shares(&directory.path).await? {
        signals.unless(fetch::bring_files(&client, directory, &submission.files)).await?;
        submission.spec.fetched = true;
        record.fetched = true;
        "running".clone_into(&mut record.status);
        directory.write_record(record)?;
    }
    client.submit_run(submission.spec).await?;
    if record.fetched {
        record.submitted = true;
        directory.write_record(record)?;
    }
    if job.how.detach {
        return detached(context, directory);
    }
    let path = directory.path.display().to_string();
    let watched =
        Watched { ui: context.ui, client: &client, run: &directory.name, directory: &path, scheduler: None, outlives: true };
    let ended = drive(&watched, &mut signals).await?;
    if record.fetched && matches!(ended.end, End::Over) {
        signals.unless(fetch::fetch_run(context.ui, &client, directory)).await?;
    }
    finish_watching(context, directory, ended)
}

/// A scheduler of its own, as a child of this process.
fn with_local(
    context: &Context,
    job: &Job<'_>,
    directory: &RunDirectory,
    record: &mut RunRecord,
    submission: Submission,
) -> CommandResult {
    let (token_file, token) = runs::make_token(directory)?;
    let launcher = LocalLauncher {
        run_directory: directory.path.clone(),
        token_file: token_file.clone(),
        workers: job.workflow.local_workers()?,
        detached: job.how.detach,
        // A driver's cluster ends with the driver, however long that computes by itself.
        idle_ttl: (submission.spec.groups.is_empty() && job.driver.is_none()).then_some(job.idle_ttl),
    };
    launcher.preflight()?;
    block_on(async {
        // From here on a signal waits until it can be acted upon.
        let mut signals = Signals::new()?;
        let scheduler = launcher.start()?;
        record.address = Some(scheduler.ready.address.clone());
        record.http = Some(scheduler.ready.http.clone());
        record.token_file = Some(token_file.display().to_string());
        record.pids = Pids { scheduler: Some(scheduler.ready.pid), workers: Vec::new() };
        let begun = begin(context, job, directory, record, &scheduler, &token, submission);
        let (client, ended) = match begun.await {
            Ok(begun) => begun,
            Err(failure) => {
                let stopped = stop_started(scheduler).await;
                return Err(with_more(failure, stopped.err()));
            }
        };
        match ended {
            None if job.how.detach => {
                scheduler.detach()?;
                detached(context, directory)
            }
            None => {
                let cluster = Cluster { context, directory, record, client, scheduler };
                match job.driver {
                    Some(driver) => driver::run(cluster, &mut signals, &job.workflow.target(), driver).await,
                    None => cluster::serve(cluster, &mut signals, job.idle_ttl).await,
                }
            }
            Some(()) => watch(context, directory, &client, scheduler, &mut signals).await,
        }
    })
}

/// Submits, where there is something to submit. `Some` says that there is a run to be watched.
async fn begin(
    context: &Context,
    job: &Job<'_>,
    directory: &RunDirectory,
    record: &mut RunRecord,
    scheduler: &LocalScheduler,
    token: &str,
    submission: Submission,
) -> Result<(Client, Option<()>), Failure> {
    directory.write_record(record)?;
    context.ui.say(format!("{}  scheduler {}  page {}", directory.name, scheduler.ready.address, scheduler.ready.http));
    let client = Client::connect(&scheduler.ready.address, token).await?;
    if submission.spec.groups.is_empty() {
        "running".clone_into(&mut record.status);
        directory.write_record(record)?;
        return Ok((client, None));
    }
    client.submit_run(submission.spec).await?;
    Ok((client, (!job.how.detach).then_some(())))
}

async fn watch(
    context: &Context,
    directory: &RunDirectory,
    client: &Client,
    scheduler: LocalScheduler,
    signals: &mut Signals,
) -> CommandResult {
    let path = directory.path.display().to_string();
    let watched =
        Watched { ui: context.ui, client, run: &directory.name, directory: &path, scheduler: Some(&scheduler), outlives: false };
    let ended = match drive(&watched, signals).await {
        Ok(ended) => ended,
        Err(failure) => {
            let stopped = stop_started(scheduler).await;
            return Err(with_more(failure, stopped.err()));
        }
    };
    if matches!(ended.end, End::Detached) {
        scheduler.detach()?;
        return detached(context, directory);
    }
    let stopped = take_down(client, scheduler, &ended).await;
    if stopped.is_ok() {
        // It opens nothing any more.
        let _ = std::fs::remove_file(directory.file("token"));
    }
    let result = finish_watching(context, directory, ended);
    match (result, stopped) {
        (Ok(_), Err(failure)) => Err(failure),
        (Err(failure), Err(more)) => Err(with_more(failure, Some(more))),
        (result, Ok(())) => result,
    }
}

/// Stops the scheduler and its workers and sees that they are gone.
async fn take_down(client: &Client, scheduler: LocalScheduler, ended: &Ended) -> Result<(), Failure> {
    let mut pids = vec![scheduler.ready.pid];
    if !matches!(ended.end, End::Lost(_)) {
        // Without an answer the closed pipe says the same, only more slowly.
        if let Ok(status) = client.status("").await {
            pids.extend(status.workers.iter().map(|worker| worker.pid));
        }
        let _ = client.shutdown(true).await;
    }
    scheduler.stop_meanwhile().await?;
    verify_gone(&pids)
}

/// Ends a scheduler whose run did not begin.
async fn stop_started(scheduler: LocalScheduler) -> Result<(), Failure> {
    let pid = scheduler.ready.pid;
    scheduler.stop_meanwhile().await?;
    verify_gone(&[pid])
}

/// Everything that was started is gone.
///
/// # Errors
/// What is left.
pub fn verify_gone(pids: &[u32]) -> Result<(), Failure> {
    let left = wait_gone(pids, GONE_TIMEOUT);
    if left.is_empty() {
        return Ok(());
    }
    let left: Vec<String> = left.iter().map(u32::to_string).collect();
    Err(Failure::infrastructure(format!("processes {} did not end", left.join(", "))).help("end them with kill"))
}

/// A failure, and what went wrong on top of it.
pub fn with_more(failure: Failure, more: Option<Failure>) -> Failure {
    match more {
        Some(more) => Failure { message: format!("{}\n{}", failure.message, more.message), ..failure },
        None => failure,
    }
}

/// Says how to come back.
pub fn detached(context: &Context, directory: &RunDirectory) -> CommandResult {
    let ui = context.ui;
    if ui.json() {
        ui.out_json(
            &serde_json::json!({ "schema": "scalable.submitted.v1", "run": directory.name, "directory": directory.path }),
        )?;
    } else {
        ui.out(&directory.name)?;
    }
    let at = context.runs_dir_option();
    ui.say(format!("the run goes on without this command line; to watch it again:\n  scalable attach {}{at}", directory.name));
    Ok(code::OK)
}
