//! The command `scalable`. Nothing but the arguments is looked at before a command is known: `--help` and completions start at
//! once.

mod args;
mod carry_out;
mod cluster;
mod commands;
mod connect;
mod diagnostics;
mod drive;
mod driver;
mod exit;
mod failure_text;
mod fetch;
mod interrupt;
mod kubernetes;
mod launcher;
mod machine;
mod plan_text;
mod progress;
mod records;
mod runs;
mod summary;
mod table;
mod task_environment;
mod ui;
mod which;
mod workflow;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::commands::Context;
use crate::exit::exit_code;
use crate::ui::Ui;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ui = Ui::new(cli.globals.format, cli.globals.no_progress);
    let context = Context { ui, runs_dir: cli.globals.runs_dir };
    let result = match &cli.command {
        Command::Validate(args) => commands::validate::run(&context, args),
        Command::Plan(args) => commands::plan::run(&context, args),
        Command::Run(args) => commands::run::run(&context, args),
        Command::Submit(args) => commands::submit::run(&context, args),
        Command::Status(args) => commands::status::run(&context, args),
        Command::Logs(args) => commands::logs::run(&context, args),
        Command::Explain(args) => commands::explain::run(&context, args),
        Command::Cancel(args) => commands::cancel::run(&context, args),
        Command::Retry(args) => commands::retry::run(&context, args),
        Command::Attach(args) => commands::attach::run(&context, args),
        Command::Report(args) => commands::report::run(&context, args),
        Command::Shell(args) => commands::shell::run(&context, args),
        Command::Down(args) => commands::down::run(&context, args),
        Command::K8s(args) => commands::k8s::run(&context, args),
        Command::Completions(args) => commands::completions::run(&context, args),
        Command::Version => commands::version::run(&context),
    };
    match result {
        Ok(code) => exit_code(code),
        Err(failure) => {
            ui.fail(&failure);
            exit_code(failure.code)
        }
    }
}
