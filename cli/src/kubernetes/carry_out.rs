//! Carrying a run out on Kubernetes: checks first, then one Job that owns everything, the submit, watching, fetching what came of
//! it, and taking everything down again.

use std::time::Duration;

use jiff::Timestamp;
use scalable_manifest::KubernetesOptions;
use scalable_proto::v1;
use scalable_provider_k8s::{KubernetesLauncher, Progress, Run};

use super::reach::{Live, destroy, destroy_run};
use super::{KubernetesRecord, Way, launch};
use crate::carry_out::{Job, detached, with_more};
use crate::cluster;
use crate::commands::Context;
use crate::commands::run::finish_watching;
use crate::drive::{End, Ended, Watched, drive_until};
use crate::driver;
use crate::exit::{CommandResult, Failure, code};
use crate::fetch;
use crate::interrupt::Signals;
use crate::records::RunRecord;
use crate::runs::RunDirectory;
use crate::workflow::Submission;

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
    let access = launch::access(&job.how.kubernetes, options);
    let connection = access.connect().await?;
    let namespace = launch::namespace(options, &connection.namespace);
    let results_ttl = Duration::from_millis(options.results_ttl_ms);
    let idle_ttl = if submission.spec.groups.is_empty() { job.idle_ttl } else { idle_ttl(job.idle_ttl, results_ttl) };
    let mut planned = launch::plan(job.workflow, options, image, &directory.name, &namespace, idle_ttl.as_secs())?;
    let way = job.how.way.way(connection.inside);
    planned.forwards = way == Way::Forwarded;
    let at = KubernetesRecord {
        namespace,
        cluster_id: planned.cluster_id.clone(),
        kubeconfig: access.kubeconfig,
        context: access.context,
        scheduler_address: job.how.way.scheduler_address.clone(),
        store_address: job.how.way.store_address.clone(),
    };
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
    let run = scheduler.run.clone();
    let outcome = match signals.unless(Live::open(scheduler, &way)).await {
        Ok(live) => with_scheduler(context, job, directory, record, &live, submission, &mut signals).await,
        Err(failure) => Err(failure),
    };
    match outcome {
        Ok(outcome) => conclude(context, &at, &run, directory, outcome).await,
        Err(failure) => {
            let left = destroy(context, &at, &run).await;
            Err(with_more(failure, left.err()))
        }
    }
}

/// How long the scheduler of a run with tasks waits without a run, where the command line says `asked`: until the submit comes, should the
/// command line die before, and no longer than results would be kept when the run is over.
fn idle_ttl(asked: Duration, results_ttl: Duration) -> Duration {
    let most = results_ttl.clamp(Duration::from_secs(60), Duration::from_secs(30 * 60));
    if asked.is_zero() { most } else { asked.min(most) }
}

/// Goes on with a run that is there, as the command line that began it would: watches it, fetches what came of it, takes everything down.
/// Only a lost terminal does not end it.
///
/// # Errors
/// When its scheduler does not know it, or what came of it cannot be fetched.
pub async fn go_on(context: &Context, at: &KubernetesRecord, directory: &RunDirectory, live: &Live) -> CommandResult {
    let mut signals = Signals::new()?;
    let outcome = finish(context, directory, live, true, &mut signals).await?;
    conclude(context, at, &live.scheduler.run, directory, outcome).await
}

/// What is left to do when watching has ended, and the exit code.
async fn conclude(
    context: &Context,
    at: &KubernetesRecord,
    run: &Run,
    directory: &RunDirectory,
    outcome: Outcome,
) -> CommandResult {
    match outcome {
        Outcome::GoesOn => detached(context, directory),
        Outcome::Over(exit_code) => {
            let status = if exit_code == code::OK { "completed" } else { "failed" };
            let known = directory.record()?;
            let finished_at = Some(Timestamp::now().to_string());
            directory.write_record(&RunRecord { status: status.to_owned(), finished_at, http: None, ..known })?;
            take_down(context, at, run).await;
            Ok(exit_code)
        }
        Outcome::Ended(ended) => {
            take_down(context, at, run).await;
            finish_watching(context, directory, ended)
        }
        Outcome::Left(failure) => {
            let name = &directory.name;
            let help = format!("it is still there: `scalable attach {name}` goes on, `scalable down {name}` gives it up");
            Err(failure.help(help))
        }
        Outcome::Lost(why) => {
            let failure = note_lost(directory, &why)?;
            take_down(context, at, run).await;
            Err(failure)
        }
    }
}

/// Says in run.json that a run was lost and why, and what of it is on this machine.
///
/// # Errors
/// When run.json cannot be read or written.
fn note_lost(directory: &RunDirectory, why: &str) -> Result<Failure, Failure> {
    let known = directory.record()?;
    let finished_at = Some(Timestamp::now().to_string());
    let (status, lost_why) = ("failed".to_owned(), Some(why.to_owned()));
    directory.write_record(&RunRecord { status, finished_at, lost: lost_why, http: None, ..known })?;
    Ok(lost(directory, why))
}

/// What is said of a run that was lost.
pub fn lost(directory: &RunDirectory, why: &str) -> Failure {
    super::reach::lost(&directory.name, why).help(what_is_here(directory))
}

/// What of a lost run is on this machine, and what to do with it.
fn what_is_here(directory: &RunDirectory) -> String {
    let (outputs, logs) = (count_files(&directory.file("outputs")), count_files(&directory.file("logs")));
    let here = match (outputs, logs) {
        (0, 0) => "outputs and logs are fetched at the end of a run, so none of them are on this machine".to_owned(),
        _ => format!("on this machine are {outputs} files of outputs and {logs} logs"),
    };
    let path = directory.path.display();
    if directory.file("manifest.yaml").is_file() {
        return format!("{here}; {path} has what was asked for: `scalable retry --failed {}` runs it again", directory.name);
    }
    format!("{here}, in {path}; run its manifest again where that is")
}

/// Files below a directory, at most a million.
fn count_files(directory: &std::path::Path) -> u64 {
    const COUNTED_MAX: u64 = 1_000_000;
    let (mut open, mut files) = (vec![directory.to_owned()], 0);
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(kind) if kind.is_file() && files < COUNTED_MAX => files += 1,
                _ => {}
            }
        }
    }
    files
}

/// Takes a run down that is over, with everything that came of it on this machine. What is left then, such as a pod on a node that is not
/// reached, is named and changes nothing about how the run ended.
async fn take_down(context: &Context, at: &KubernetesRecord, run: &Run) {
    if let Err(left) = destroy(context, at, run).await {
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
    /// Its scheduler is gone, and with it what it had; why.
    Lost(String),
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
    finish(context, directory, live, false, signals).await
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
            driver::run_beside(&environment, &job.workflow.target(), &directory.name, command, signals, live.gone()).await
        }
        None => wait_for_work(context, job, &file, live, signals).await,
    };
    // It opens nothing any more.
    let _ = std::fs::remove_file(&file);
    outcome.map(Outcome::Over)
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
    let gone = async {
        let failure = live.gone().await;
        Err(Failure { message: format!("the scheduler is gone: {}", failure.message), ..failure })
    };
    cluster::until_over(context.ui, &live.client, signals, job.idle_ttl, gone).await
}

/// Watches to the end and fetches what came of it. `outlives`: a lost terminal does not cancel the run.
///
/// # Errors
/// When the scheduler does not know the run.
async fn finish(
    context: &Context,
    directory: &RunDirectory,
    live: &Live,
    outlives: bool,
    signals: &mut Signals,
) -> Result<Outcome, Failure> {
    let path = directory.path.display().to_string();
    let (client, run) = (&live.client, directory.name.as_str());
    let watched = Watched { ui: context.ui, client, run, directory: &path, scheduler: None, outlives };
    let mut ended = match drive_until(&watched, signals, live.gone()).await {
        Ok(ended) => ended,
        Err(failure) => return live.why_gone().await.map(Outcome::Lost).ok_or(failure),
    };
    // Somebody else's cancel may have been the scheduler's own end: then there is nobody to fetch anything from.
    let cancelled = ended.cancelled_by.is_none() && ended.progress.state() == v1::RunState::Cancelled;
    let failure = match &mut ended.end {
        End::Detached => return Ok(Outcome::GoesOn),
        End::Lost(failure) => std::mem::replace(failure, Failure::said(failure.code)),
        End::Over if cancelled && let Some(why) = live.why_gone().await => return Ok(Outcome::Lost(why)),
        End::Over | End::Forced(_) => {
            let fetched = signals.unless(async {
                tokio::select! {
                    fetched = fetch::fetch_run(context.ui, client, directory) => fetched.map(drop),
                    failure = live.gone() => Err(failure),
                }
            });
            match (fetched.await, &ended.end) {
                (Ok(()), _) => return Ok(Outcome::Ended(ended)),
                (Err(failure), End::Forced(_)) => {
                    // Nobody waits for the rest of a run that was left.
                    context.ui.warn(format!("not everything was fetched: {}", failure.message));
                    return Ok(Outcome::Ended(ended));
                }
                (Err(failure), _) => failure,
            }
        }
    };
    Ok(match live.why_gone().await {
        Some(why) => Outcome::Lost(why),
        // It runs; only from here it is not reached.
        None => Outcome::Left(failure),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::runs;

    #[test]
    fn a_scheduler_with_tasks_waits_for_the_submit_and_not_much_longer_than_results_are_kept() {
        let seconds = |asked, results| idle_ttl(Duration::from_secs(asked), Duration::from_secs(results)).as_secs();
        for (asked, results, expected) in [(1800, 86_400, 1800), (0, 86_400, 1800), (1800, 5, 60), (10, 5, 10), (1800, 600, 600)]
        {
            assert_eq!(seconds(asked, results), expected, "{asked} {results}");
        }
    }

    #[test]
    fn a_lost_run_says_why_and_what_is_here() {
        let runs_dir = tempfile::tempdir().unwrap();
        let directory = runs::create(runs_dir.path(), "r").unwrap();
        directory.write_record(&RunRecord { status: "running".to_owned(), ..RunRecord::default() }).unwrap();
        let failure = note_lost(&directory, "job j was deleted").unwrap();
        assert_eq!(failure.code, code::INFRASTRUCTURE);
        assert_eq!(failure.message, "r is lost, because its scheduler is gone: job j was deleted");
        assert!(failure.help.unwrap().contains("none of them are on this machine"));
        let record = directory.record().unwrap();
        assert_eq!((record.status.as_str(), record.lost.as_deref()), ("failed", Some("job j was deleted")));
        assert!(record.is_over());

        std::fs::create_dir_all(directory.file("logs/work")).unwrap();
        std::fs::write(directory.file("logs/work/0.1.stdout"), "x").unwrap();
        std::fs::write(directory.file("manifest.yaml"), "").unwrap();
        let help = what_is_here(&directory);
        assert!(help.starts_with("on this machine are 0 files of outputs and 1 logs"), "{help}");
        assert!(help.contains("scalable retry --failed r"), "{help}");
    }
}
