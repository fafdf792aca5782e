//! `scalable completions SHELL`.

use clap::CommandFactory;

use super::Context;
use crate::args::{Cli, CompletionsArgs};
use crate::exit::{CommandResult, code};

/// Prints the script for a shell.
pub fn run(context: &Context, args: &CompletionsArgs) -> CommandResult {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "scalable", &mut script);
    context.ui.out(String::from_utf8_lossy(&script))?;
    Ok(code::OK)
}
