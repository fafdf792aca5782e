//! A command that drives a cluster: the manifest says what the cluster is, a program of the user's own what is done on it.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::Cluster;
use crate::exit::{CommandResult, Failure, code};
use crate::interrupt::{self, Signals, Told};

/// Runs the driver to its end, takes the cluster down, and ends with the driver's exit code; 3 when the cluster ended first.
///
/// The driver stays in the terminal's process group: Ctrl-C reaches it as any other command there. SIGTERM and SIGHUP are passed
/// on to it, and what it makes of them is its exit code.
pub async fn run(cluster: Cluster<'_>, signals: &mut Signals, target: &str, command: &[OsString]) -> CommandResult {
    let outcome = drive(&cluster, signals, target, command).await;
    let status = match &outcome {
        Ok(code::OK) => "completed",
        _ => "failed",
    };
    cluster.take_down(status).await?;
    outcome
}

async fn drive(cluster: &Cluster<'_>, signals: &mut Signals, target: &str, command: &[OsString]) -> CommandResult {
    let environment = [
        ("SCALABLE_ADDRESS", cluster.scheduler.ready.address.clone()),
        ("SCALABLE_TOKEN_FILE", cluster.record.token_file.clone().unwrap_or_default()),
    ];
    let gone = async { cluster.ended(cluster.scheduler.exited().await) };
    run_beside(&environment, target, &cluster.directory.name, command, signals, gone).await
}

/// Runs a driver with `environment` to its end, or until the cluster is `gone`.
///
/// # Errors
/// When it cannot be started, and how the cluster ended when that came first.
pub async fn run_beside(
    environment: &[(&str, String)],
    target: &str,
    run: &str,
    command: &[OsString],
    signals: &mut Signals,
    gone: impl Future<Output = Failure>,
) -> CommandResult {
    let (program, arguments) = command.split_first().ok_or_else(|| Failure::usage("--workflow needs a command after `--`"))?;
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .env("SCALABLE_TARGET", target)
        .env("SCALABLE_RUN", run)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            Failure::usage(format!("the driver {} cannot be started: {error}", program.display()))
                .help("name an executable after `--`; a script needs its interpreter: -- python3 driver.py")
        })?;
    let pid = child.id().map(|pid| Pid::from_raw(pid.cast_signed()));
    tokio::pin!(gone);
    loop {
        tokio::select! {
            status = child.wait() => {
                let status = status.map_err(|error| Failure::io("wait for the driver", &error))?;
                return Ok(exit_code(status));
            }
            failure = &mut gone => {
                // What it drove is gone; it may want to say so itself.
                pass_on(pid, Signal::SIGTERM);
                let _ = tokio::time::timeout(GONE_WITHIN, child.wait()).await;
                return Err(failure);
            }
            told = signals.next() => match told {
                // A terminal has told it already.
                Told::Interrupt if interrupt::is_in_foreground() => {}
                Told::Interrupt => pass_on(pid, Signal::SIGINT),
                Told::Terminate => pass_on(pid, Signal::SIGTERM),
                Told::Hangup => pass_on(pid, Signal::SIGHUP),
            }
        }
    }
}

/// How long a driver whose cluster is gone may take to end by itself.
const GONE_WITHIN: std::time::Duration = std::time::Duration::from_secs(5);

fn pass_on(pid: Option<Pid>, signal: Signal) {
    if let Some(pid) = pid {
        // It may have ended meanwhile; it has not been waited for, so the number is still its own.
        let _ = kill(pid, signal);
    }
}

/// As a shell says it: the code, or 128 and the signal.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(code::FAILED)
}
