//! `scalable-worker`: sets up the process and runs the agent on its main thread, which lives as long as the process does: tasks
//! are told to die when the thread that started them ends.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use scalable_worker::agent::{Agent, Ended};
use scalable_worker::options::Options;
use scalable_worker::{install, process};

/// Without a command, the agent.
#[derive(Parser)]
#[command(name = "scalable-worker", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand)]
enum Command {
    /// Copy this program into a directory, as `scalable-worker` with mode 0755, for containers of other images.
    Install {
        /// The directory; made where it is missing.
        directory: PathBuf,
    },
}

fn main() -> ExitCode {
    let Cli { command, options } = Cli::parse();
    if let Some(Command::Install { directory }) = command {
        return match install::install(&directory) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error.to_string()),
        };
    }
    let filter = tracing_subscriber::EnvFilter::try_from_env("SCALABLE_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    match run(options) {
        Ok(Ended::Well(why)) => {
            tracing::info!(why, "ended");
            ExitCode::SUCCESS
        }
        Ok(Ended::Badly(why)) => fail(&why),
        Err(error) => fail(&format!("{error:#}")),
    }
}

/// The last thing said, for people; 3 is the code for infrastructure.
fn fail(why: &str) -> ExitCode {
    eprintln!("scalable-worker: {why}");
    ExitCode::from(3)
}

fn run(options: Options) -> anyhow::Result<Ended> {
    options.check().map_err(anyhow::Error::msg)?;
    if options.die_with_parent {
        process::die_with_parent().context("--die-with-parent")?;
    }
    process::close_on_exec().context("inherited files could not be closed for tasks")?;
    let files = process::raise_open_files();
    if let Some(file) = &options.token_file {
        std::fs::metadata(file).with_context(|| format!("--token-file {}", file.display()))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async { Agent::new(options, files)?.run().await })
}
