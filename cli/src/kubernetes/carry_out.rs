//! Carrying a run out on Kubernetes: checks first, then one Job that owns everything, the submit, watching, fetching what came of
//! it, and taking everything down again.

use std::time::Duration;

use jiff::Timestamp;
use scalable_manifest::KubernetesOptions;
use scalable_provider_k8s::{Access, KubernetesLauncher, Progress};

use super::reach::{Live, destroy_run};
use super::{KubernetesRecord, launch};
use crate::carry_out::{Job, detached, with_more};
use crate::cluster;
use crate::commands::Context;
use crate::commands::run::finish_watching;
use crate::drive::{End, Ended, Watched, drive};
use crate::driver;
use crate::exit::{CommandResult, Failure, code};
use crate::fetch;
use crate::interrupt::Signals;
use crate::records::RunRecord;
use crate::runs::RunDirectory;
use crate::workflow::Submission;

/// How often it is looked whether there is a scheduler.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Carries it out; the exit code is the run's.
pub async fn carry_out(
    context: &Context,
    job: &Job<'_>,
    options: &KubernetesOptions,
    directory: &RunDirectory,
    record: &mut RunRecord,
    submission: Submission,
) -> CommandResult {
    if job.how.detach && submission.spec.groups.is_empty() {
        return Err(Failure::usage("a cluster without tasks cannot be detached from: nobody would hold its ports")
            .help("leave --detach out, and it waits for work until Ctrl-C or --idle-ttl"));
    }
    let image = launch::scheduler_image(options, &job.workflow.target())?;
    let named = &job.how.kubernetes;
    let access = Access { kubeconfig: named.kubeconfig.clone(), context: named.context.clone().or(options.context.clone()) };
    let connection = access.connect().await?;
    let namespace = options.namespace.clone().unwrap_or_else(|| connection.namespace.clone());
    let planned = launch::plan(job.workflow, options, image, &directory.name, &namespace, job.idle_ttl.as_secs())?;
    let cluster_id = planned.cluster_id.clone();
    let at = KubernetesRecord { namespace, cluster_id, kubeconfig: access.kubeconfig, context: access.context };
    let launcher = KubernetesLauncher { client: connection.client.clone(), launch: planned };
    let found = launcher.check().await?;
    if !found.name_free {
        let message = format!("a run named {} exists already in namespace {}", directory.name, at.namespace);
        return Err(Failure::usage(message).help("give this one another --name"));
    }
    for reason in &found.not_now {
        context.ui.warn(format!("waits: {reason}"));
    }
    // From here on a signal waits until it can be acted upon.
    let mut signals = Signals::new()?;
    record.kubernetes = Some(at.clone());
    directory.write_record(record)?;
    let ui = context.ui;
    let scheduler = {
        let mut tell = |progress| match progress {
            Progress::Doing(what) => ui.say(what),
            Progress::Waiting { reason, message } => ui.say(format!("waits: {reason}: {message}")),
        };
        tokio::select! {
            started = launcher.start_telling(&mut tell) => started?,
            told = signals.next() => {
                ui.say("taking down what was created");
                destroy_run(context, &at, &directory.name).await?;
                return Ok(told.exit_code());
            }
        }
    };
    let outcome = match signals.unless(Live::open(scheduler)).await {
        Ok(live) => with_scheduler(context, job, directory, record, &live, submission, &mut signals).await,
        Err(failure) => Err(failure),
    };
    match outcome {
        Ok(Outcome::GoesOn) => detached(context, directory),
        Ok(Outcome::Over(exit_code)) => {
            let status = if exit_code == code::OK { "completed" } else { "failed" };
            record.finished_at = Some(Timestamp::now().to_string());
            (record.status, record.http) = (status.to_owned(), None);
            directory.write_record(record)?;
            take_down(context, &at, directory).await;
            Ok(exit_code)
        }
        Ok(Outcome::Ended(ended)) => {
            take_down(context, &at, directory).await;
            finish_watching(context, directory, ended)
        }
        Ok(Outcome::Left(failure)) => {
            let name = &directory.name;
            let help = format!("it is still there: `scalable attach {name}` goes on, `scalable down {name}` gives it up");
            Err(failure.help(help))
        }
        Err(failure) => {
            let left = destroy_run(context, &at, &directory.name).await;
            Err(with_more(failure, left.err()))
        }
    }
}

/// Takes a run down that is over, with everything that came of it on this machine. What is left then, such as a pod on a node that is not
/// reached, is named and changes nothing about how the run ended.
async fn take_down(context: &Context, at: &KubernetesRecord, directory: &RunDirectory) {
    if let Err(left) = destroy_run(context, at, &directory.name).await {
        context.ui.warn(left.message);
        if let Some(help) = left.help {
            context.ui.say(help);
        }
    }
}

/// What became of a run that was begun.
enum Outcome {
    /// It goes on without this command line.
    GoesOn,
    /// It is over, as far as this command line waits for it.
    Ended(Ended),
    /// This command line cannot go on, for this reason, and the run, or what came of it, is still there.
    Left(Failure),
    /// A cluster without tasks of its own is over, with this exit code.
    Over(u8),
}

async fn with_scheduler(
    context: &Context,
    job: &Job<'_>,
    directory: &RunDirectory,
    record: &mut RunRecord,
    live: &Live,
    mut submission: Submission,
    signals: &mut Signals,
) -> Result<Outcome, Failure> {
    let namespace = &live.scheduler.run.namespace;
    context.ui.say(format!(
        "{}  pod {namespace}/{}  page {} (from elsewhere: kubectl port-forward -n {namespace} svc/{} 8787:8787)",
        directory.name, live.scheduler.pod, live.http, live.scheduler.run.root.name
    ));
    "running".clone_into(&mut record.status);
    (record.http, record.fetched, submission.spec.fetched) = (Some(live.http.clone()), true, true);
    directory.write_record(record)?;
    if submission.spec.groups.is_empty() {
        return serve(context, job, directory, live, signals).await;
    }
    signals.unless(fetch::bring_files(&live.client, directory, &submission.files)).await?;
    signals.unless(async { Ok(live.client.submit_run(submission.spec).await?) }).await?;
    record.submitted = true;
    directory.write_record(record)?;
    if job.how.detach {
        return Ok(Outcome::GoesOn);
    }
    finish(context, directory, live, signals).await
}

/// A cluster without tasks: a driver works on it, or it waits for whoever connects.
async fn serve(
    context: &Context,
    job: &Job<'_>,
    directory: &RunDirectory,
    live: &Live,
    signals: &mut Signals,
) -> Result<Outcome, Failure> {
    let file = directory.file("connection.json");
    live.connection.write(&file).map_err(|error| Failure::infrastructure(error.to_string()))?;
    let outcome = match job.driver {
        Some(command) => {
            let environment = [("SCALABLE_CONNECTION", file.display().to_string())];
            driver::run_beside(&environment, &job.workflow.target(), &directory.name, command, signals, gone(live)).await
        }
        None => wait_for_work(context, job, &file, live, signals).await,
    };
    // It opens nothing any more.
    let _ = std::fs::remove_file(&file);
    outcome.map(Outcome::Over)
}

/// Comes when the scheduler is gone, with the reason.
async fn gone(live: &Live) -> Failure {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Some(why) = live.why_gone().await {
            return Failure::infrastructure(format!("the scheduler is gone: {why}"));
        }
    }
}

async fn wait_for_work(
    context: &Context,
    job: &Job<'_>,
    file: &std::path::Path,
    live: &Live,
    signals: &mut Signals,
) -> CommandResult {
    context.ui.out(format!(
        "the cluster is ready; the manifest has no tasks, so it waits for work\n  connection  {}\n  page        {}\nto give it work, \
         from another terminal:\n  scalable submit --connection {} -- COMMAND\nit ends with Ctrl-C, or after {} without work",
        file.display(),
        live.http,
        file.display(),
        crate::ui::span(job.idle_ttl.as_secs_f64()),
    ))?;
    cluster::until_over(context.ui, &live.client, signals, job.idle_ttl, async { Err(gone(live).await) }).await
}

/// Watches to the end and fetches what came of it.
///
/// # Errors
/// When the scheduler does not know the run.
async fn finish(context: &Context, directory: &RunDirectory, live: &Live, signals: &mut Signals) -> Result<Outcome, Failure> {
    let path = directory.path.display().to_string();
    let (client, run) = (&live.client, directory.name.as_str());
    let watched = Watched { ui: context.ui, client, run, directory: &path, scheduler: None, outlives: false };
    let mut ended = drive(&watched, signals).await?;
    let fetched = match &mut ended.end {
        End::Detached => return Ok(Outcome::GoesOn),
        End::Lost(failure) => match live.why_gone().await {
            Some(why) => {
                failure.message = format!("the scheduler is gone: {why}\n{}", failure.message);
                return Ok(Outcome::Ended(ended));
            }
            // It runs; only from here it is not reached.
            None => Err(Failure { code: failure.code, message: failure.message.clone(), help: None }),
        },
        End::Over | End::Forced(_) => signals.unless(fetch::fetch_run(context.ui, client, directory)).await.map(drop),
    };
    match (fetched, &ended.end) {
        (Ok(()), _) => Ok(Outcome::Ended(ended)),
        (Err(failure), End::Forced(_)) => {
            // Nobody waits for the rest of a run that was left.
            context.ui.warn(format!("not everything was fetched: {}", failure.message));
            Ok(Outcome::Ended(ended))
        }
        (Err(failure), _) => Ok(Outcome::Left(failure)),
    }
}
