//! `scalable attach`: watch a run that goes on without a command line. Leaving it never ends it.

use super::Context;
use super::run::finish_watching;
use crate::args::AttachArgs;
use crate::connect::{Found, block_on, reach};
use crate::drive::{End, Watched, drive};
use crate::exit::CommandResult;
use crate::interrupt::Signals;
use crate::kubernetes::destroy_run;
use crate::which;

/// Watches to the end, with the exit codes of `run`; a run that is over already is summed up.
pub fn run(context: &Context, args: &AttachArgs) -> CommandResult {
    let which = which::run(&context.runs_dir, &args.run)?;
    if which.record.is_over() {
        return super::report::sum_up(context, &which.directory);
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
            if let Some(at) = &which.record.kubernetes {
                destroy_run(context, at, &which.directory.name).await?;
            }
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
