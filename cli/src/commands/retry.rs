//! `scalable retry --failed`: a new run of the same manifest that takes over every committed output whose key is unchanged.

use std::time::Duration;

use super::Context;
use crate::args::RetryArgs;
use crate::carry_out::{Job, carry_out, wanted};
use crate::connect::{Found, block_on, reach};
use crate::exit::{CommandResult, Failure, code};
use crate::which;
use crate::workflow::{self, Wanted};

/// Runs again what did not succeed.
pub fn run(context: &Context, args: &RetryArgs) -> CommandResult {
    let which = which::run(&context.runs_dir, &args.run)?;
    let record = &which.record;
    let run = &which.directory.name;
    if !record.is_over() {
        // Its scheduler may have died without a word: what it has recorded is as good as any.
        match block_on(reach(record))? {
            Found::Live(_) => {
                return Err(Failure::usage(format!("{run} is {}: only a run that is over can be run again", record.status))
                    .help(format!("wait for it with `scalable attach {run}`, or end it with `scalable cancel {run}`")));
            }
            Found::Records(_) => context.ui.warn(format!("{run} was {} when its scheduler was last heard of", record.status)),
        }
    }
    if record.status == "completed" {
        context.ui.say(format!("every task of {run} has succeeded: there is nothing to run again"));
        return Ok(code::OK);
    }
    if record.stub {
        return Err(Failure::usage(format!("{run} was a --stub run: it executed nothing that could be taken over")));
    }
    let workflow = workflow::load_of_run(context.ui, &which.directory, record)?;
    workflow.check_runnable()?;
    let wanted = Wanted { takes_over: Some(which.directory.path.clone()), ..wanted(&args.how) };
    let job = Job { workflow: &workflow, how: &args.how, wanted, idle_ttl: Duration::ZERO, driver: None };
    carry_out(context, &job)
}
