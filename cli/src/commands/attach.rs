//! `scalable attach`: watch a run that goes on without a command line. Leaving it never ends it.

use super::Context;
use super::run::finish_watching;
use crate::args::AttachArgs;
use crate::connect::{self, Found, Session, block_on, reach};
use crate::drive::{End, Watched, drive};
use crate::exit::{CommandResult, Failure};
use crate::interrupt::Signals;
use crate::kubernetes::{self, KubernetesRecord, Live, Reached};
use crate::records::RunRecord;
use crate::runs::{self, RunDirectory};
use crate::which;

/// Watches to the end, with the exit codes of `run`; a run that is over already is summed up.
pub fn run(context: &Context, args: &AttachArgs) -> CommandResult {
    if args.elsewhere.is_given() {
        return block_on(async {
            let (which, found) = connect::named(context, &args.elsewhere, &args.run, None).await?;
            let (Some(at), Found::Live(Session::Forwarded(live))) = (&which.record.kubernetes, found) else {
                return Err(super::status::unreachable(&which.directory.name, None));
            };
            let directory = adopt(context, &which.directory, &which.record)?;
            watch_on_kubernetes(context, at, &directory, &live).await
        });
    }
    let which = which::run(&context.runs_dir, &args.run)?;
    if let Some(why) = &which.record.lost {
        return Err(kubernetes::lost(&which.directory, why));
    }
    if which.record.is_over() {
        return super::report::sum_up(context, &which.directory);
    }
    if let Some(at) = &which.record.kubernetes {
        return block_on(async {
            match kubernetes::look_for(at, &which.directory.name).await? {
                Reached::Live(live) => watch_on_kubernetes(context, at, &which.directory, &live).await,
                Reached::Lost(why) => Err(kubernetes::lost(&which.directory, &why)),
            }
        });
    }
    let directory = which.directory.path.display().to_string();
    let ended = block_on(async {
        let mut signals = Signals::new()?;
        let client = match reach(&which.record).await? {
            Found::Live(client) => client,
            Found::Records(error) => return Err(super::status::unreachable(&which.directory.name, error.as_ref())),
        };
        let watched = Watched {
            ui: context.ui,
            client: &client,
            run: &which.directory.name,
            directory: &directory,
            scheduler: None,
            outlives: true,
        };
        let ended = drive(&watched, &mut signals).await?;
        if which.record.fetched && matches!(ended.end, End::Over) {
            signals.unless(crate::fetch::fetch_run(context.ui, &client, &which.directory)).await?;
        }
        Ok(ended)
    });
    // It may have ended, and its scheduler with it, between the look at its records and the connection.
    let lost = ended.as_ref().map_or(true, |ended| matches!(ended.end, End::Lost(_)));
    if lost && which.directory.record().is_ok_and(|record| record.is_over()) {
        return super::report::sum_up(context, &which.directory);
    }
    finish_watching(context, &which.directory, ended?)
}

async fn watch_on_kubernetes(context: &Context, at: &KubernetesRecord, directory: &RunDirectory, live: &Live) -> CommandResult {
    let name = &directory.name;
    if live.client.list_runs().await?.is_empty() {
        return Err(Failure::usage(format!("nothing was submitted to the cluster {name}, so there is nothing to watch"))
            .help(format!("`scalable status {name}` shows it, `scalable down {name}` ends it")));
    }
    kubernetes::go_on(context, at, directory, live).await
}

/// The directory here of a run that was begun elsewhere; it is made where there is none. From then on commands find the run by it.
///
/// # Errors
/// When another run has the name here, or the disk refuses.
pub fn adopt(context: &Context, directory: &RunDirectory, record: &RunRecord) -> Result<RunDirectory, Failure> {
    if directory.record().is_ok_and(|known| known.kubernetes == record.kubernetes) {
        return Ok(directory.clone());
    }
    let made = runs::create(&context.runs_dir, &directory.name).map_err(|failure| {
        let help = format!("{} is another run's; keep this one apart with --runs-dir DIR", directory.path.display());
        if directory.path.exists() { failure.help(help) } else { failure }
    })?;
    made.write_record(record)?;
    context.ui.say(format!("what comes of it will be in {}", made.path.display()));
    Ok(made)
}
