//! `scalable shell TASK`: a shell in the kept directory of a failed attempt, with the task's environment.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use super::Context;
use crate::args::ShellArgs;
use crate::exit::{CommandResult, Failure};
use crate::records::{self, TaskRecord};
use crate::task_environment;
use crate::which::{self, Which};

/// Becomes the shell.
pub fn run(context: &Context, args: &ShellArgs) -> CommandResult {
    let which = which::any(&context.runs_dir, &args.run, &args.task)?;
    let (group, index) = which.task()?;
    let attempt = kept_attempt(&which, group, index, args.attempt)?;
    let kept = which.directory.file("failed").join(group).join(format!("{index}.{attempt}"));
    let work = Some(kept.join("work")).filter(|work| work.is_dir()).unwrap_or(kept.clone());
    let environment = match task_environment::of_task(context.ui, &which, group, index, attempt, &kept) {
        Ok(environment) => environment,
        Err(failure) => {
            context.ui.warn(format!("the environment the manifest gives the task is not set: {}", failure.message));
            task_environment::standard(&which.directory.name, group, index, attempt, &work)
        }
    };
    let (program, arguments): (OsString, Vec<OsString>) = match args.command.split_first() {
        Some((program, arguments)) => (program.into(), arguments.iter().map(OsString::from).collect()),
        None => (std::env::var_os("SHELL").filter(|shell| !shell.is_empty()).unwrap_or_else(|| "/bin/sh".into()), Vec::new()),
    };
    context.ui.say(format!("{group}[{index}] attempt {attempt} in {}", work.display()));
    if let Some(rerun) = rerun(&which, group, index, attempt) {
        context.ui.say(format!("to run it again: {}", rerun.trim_end()));
    }
    let error = Command::new(&program).args(arguments).current_dir(&work).envs(environment).exec();
    Err(Failure::io(format!("start {}", program.display()), &error))
}

/// The last attempt whose directory was kept, or the one asked for.
fn kept_attempt(which: &Which, group: &str, index: u32, wanted: Option<u32>) -> Result<u32, Failure> {
    let directory: PathBuf = which.directory.file("failed").join(group);
    let attempt = |name: OsString| {
        let name = name.into_string().ok()?;
        let (of, attempt) = name.split_once('.')?;
        (of.parse() == Ok(index)).then(|| attempt.parse::<u32>().ok())?
    };
    let entries = std::fs::read_dir(&directory).into_iter().flatten();
    let kept: Vec<u32> = entries.filter_map(|entry| attempt(entry.ok()?.file_name())).collect();
    let found = match wanted {
        Some(wanted) => kept.iter().copied().find(|attempt| *attempt == wanted),
        None => kept.iter().copied().max(),
    };
    found.ok_or_else(|| {
        let of = wanted.map(|wanted| format!("attempt {wanted} of ")).unwrap_or_default();
        Failure::usage(format!("no directory of {of}{group}[{index}] was kept")).help(
            "only failed attempts that had a directory of their own keep it, and only as many as --keep-failed says; \
             `scalable report --failures` names those there are",
        )
    })
}

fn rerun(which: &Which, group: &str, index: u32, attempt: u32) -> Option<String> {
    let failures = records::read_lines::<TaskRecord>(&which.directory.file("failures.jsonl")).ok()?;
    let mut this = failures.filter(|failure| failure.group() == group && failure.index() == index && failure.attempt == attempt);
    this.next().and_then(|failure| failure.rerun).filter(|rerun| !rerun.is_empty())
}
