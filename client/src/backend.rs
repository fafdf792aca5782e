//! What is behind a session: a scheduler somewhere, or one inside this process.

use std::path::PathBuf;

use scalable_proto::v1;
use tokio::sync::OnceCell;

use crate::ship::ship;
use crate::{Client, Error, program};

/// See the head of this file.
#[derive(Debug)]
pub(crate) enum Backend {
    /// A connection to a scheduler.
    Remote(Box<Remote>),
    /// In this process: it has the functions itself.
    Local,
}

/// A connection to a scheduler.
#[derive(Debug)]
pub(crate) struct Remote {
    pub(crate) client: Client,
    /// Name of the session's run.
    pub(crate) run: String,
    /// Where it is recorded and its outputs are, on this machine.
    pub(crate) directory: Option<PathBuf>,
    /// This program, described and brought to the scheduler once.
    program: OnceCell<v1::Executable>,
}

impl Remote {
    pub(crate) fn new(client: Client, run: String, directory: Option<PathBuf>) -> Remote {
        Remote { client, run, directory, program: OnceCell::new() }
    }
}

impl Backend {
    /// The program that holds the functions, where workers are to be given one.
    pub(crate) async fn executable(&self) -> Result<Option<v1::Executable>, Error> {
        match self {
            Backend::Local => Ok(None),
            Backend::Remote(remote) => {
                let describe = || async {
                    let described = tokio::task::spawn_blocking(program::describe_running).await;
                    let lost = |error: tokio::task::JoinError| Error::Lost { address: String::new(), reason: error.to_string() };
                    let described = described.map_err(lost)??;
                    ship(&remote.client, &described).await?;
                    Ok(described)
                };
                remote.program.get_or_try_init(describe).await.cloned().map(Some)
            }
        }
    }
}
