//! How a command ends: exit codes, and errors that say what happened, why and what to do now.

use std::fmt;
use std::io;
use std::process::ExitCode;

/// Exit codes of every command. They are part of the interface and documented in docs/cli.md.
pub mod code {
    /// All succeeded, or the run goes on without the command line.
    pub const OK: u8 = 0;
    /// A task failed, or somebody else cancelled.
    pub const FAILED: u8 = 1;
    /// Usage, manifest, or a request that no pool of the target can ever hold.
    pub const USAGE: u8 = 2;
    /// Infrastructure: no scheduler, no workers, no disk.
    pub const INFRASTRUCTURE: u8 = 3;
    /// Cancelled because the terminal went away: 128 + SIGHUP.
    pub const HANGUP: u8 = 129;
    /// Cancelled by Ctrl-C: 128 + SIGINT.
    pub const INTERRUPTED: u8 = 130;
    /// Cancelled by SIGTERM: 128 + SIGTERM.
    pub const TERMINATED: u8 = 143;
}

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub struct Failure {
    /// One of [`code`].
    pub code: u8,
    /// What, where, why. Empty when everything was said already.
    pub message: String,
    /// What to do now.
    pub help: Option<String>,
}

/// What a command returns: its exit code, or why there is none of its own.
pub type CommandResult = Result<u8, Failure>;

impl Failure {
    /// The request cannot be carried out as it stands.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { code: code::USAGE, message: message.into(), help: None }
    }

    /// Something around the run is broken.
    pub fn infrastructure(message: impl Into<String>) -> Failure {
        Failure { code: code::INFRASTRUCTURE, message: message.into(), help: None }
    }

    /// Everything was printed already.
    pub fn said(code: u8) -> Failure {
        Failure { code, message: String::new(), help: None }
    }

    /// With what to do now.
    pub fn help(mut self, help: impl Into<String>) -> Failure {
        self.help = Some(help.into());
        self
    }

    /// An input or output error, with what was being done: "cannot read x: no such file".
    pub fn io(doing: impl fmt::Display, error: &io::Error) -> Failure {
        Failure::infrastructure(format!("cannot {doing}: {error}"))
    }
}

impl From<scalable::Error> for Failure {
    fn from(error: scalable::Error) -> Failure {
        let code = match &error {
            scalable::Error::BadAddress { .. } | scalable::Error::BadToken | scalable::Error::Refused { .. } => code::USAGE,
            _ => code::INFRASTRUCTURE,
        };
        let help = error.help().map(str::to_owned);
        Failure { code, message: error.to_string(), help }
    }
}

/// Writing to stdout failed. When the reader has gone away there is nobody to complain to.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::said(code::OK),
            _ => Failure::infrastructure(format!("cannot write the output: {error}")),
        }
    }
}

/// The process's exit code.
pub fn exit_code(code: u8) -> ExitCode {
    ExitCode::from(code)
}
