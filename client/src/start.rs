//! Ways to a session.

use std::path::Path;

use scalable_proto::v1;

use crate::backend::{Backend, Remote};
use crate::processes::Processes;
use crate::session::{Component, Session, refused};
use crate::{Client, Connection, Error};

impl Session {
    /// Connects to the scheduler at `address` (`host:port` or a URL) with its token and opens a run there.
    ///
    /// # Errors
    /// As [`Client::connect`]; [`Error::Refused`] when the scheduler takes no run.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), scalable::Error> {
    /// let session = scalable::Session::connect("127.0.0.1:8786", "the token").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect(address: &str, token: &str) -> Result<Session, Error> {
        Session::open(Client::connect(address, token).await?, None, None, Vec::new()).await
    }

    /// As [`Session::connect`], with the token in a file.
    ///
    /// # Errors
    /// As [`Session::connect`]; [`Error::Refused`] when the file cannot be read.
    pub async fn connect_with_token_file(address: &str, token_file: impl AsRef<Path>) -> Result<Session, Error> {
        let file = token_file.as_ref();
        let token = std::fs::read_to_string(file)
            .map_err(|error| refused("TOKEN_FILE", format!("the token file {} cannot be read: {error}", file.display()), ""))?;
        Session::connect(address, &token).await
    }

    /// Connects to a cluster beyond this machine with what a connection file says (`docs/security.md`), over TLS, and opens a run there.
    ///
    /// # Errors
    /// As [`Session::connect`]; [`Error::Refused`] when the file cannot be read, can be read by others, or is none.
    pub async fn connect_with_file(file: impl AsRef<Path>) -> Result<Session, Error> {
        let connection = Connection::read(file.as_ref());
        let connection = connection.map_err(|error| refused("CONNECTION_FILE", error.to_string(), ""))?;
        Session::open(Client::connect_with(&connection).await?, None, None, Vec::new()).await
    }

    /// The session that this program was started for: `scalable run … --workflow -- CMD` sets `SCALABLE_ADDRESS`,
    /// `SCALABLE_TOKEN_FILE`, `SCALABLE_TARGET` and `SCALABLE_RUN`; for a cluster beyond this machine, `SCALABLE_CONNECTION` names a
    /// connection file instead of the first two.
    ///
    /// # Errors
    /// [`Error::Refused`] when the program was not started so; as [`Session::connect_with_token_file`].
    pub async fn from_env() -> Result<Session, Error> {
        if let Some(file) = std::env::var_os("SCALABLE_CONNECTION").filter(|file| !file.is_empty()) {
            return Session::connect_with_file(Path::new(&file)).await;
        }
        let variable = |name: &str| {
            std::env::var(name).ok().filter(|value| !value.is_empty()).ok_or_else(|| {
                let message = format!("{name} is not set: this program was not started by `scalable run … --workflow -- CMD`");
                refused("NOT_FROM_ENV", message, "start it so, or use Session::start() or Session::connect(address, token)")
            })
        };
        let (address, token_file) = (variable("SCALABLE_ADDRESS")?, variable("SCALABLE_TOKEN_FILE")?);
        Session::connect_with_token_file(&address, token_file).await
    }

    /// A program that a worker has started to run its functions, and that goes on to a session of its own, has forgotten [`init!`](crate::init):
    /// every session would start the next.
    ///
    /// # Errors
    /// [`Error::Refused`] in such a program.
    pub(crate) fn initialised() -> Result<(), Error> {
        // `init!` takes it out of the environment.
        match std::env::var_os(scalable_lane::FD_VARIABLE) {
            None => Ok(()),
            Some(_) => Err(refused(
                "NO_INIT",
                "a worker has started this program to run its functions, and it opens a session instead".to_owned(),
                "put `scalable::init!();` first in main",
            )),
        }
    }

    /// Opens a run on a connection, recorded where a directory is named.
    pub(crate) async fn open(
        client: Client,
        directory: Option<&Path>,
        processes: Option<Processes>,
        components: Vec<Component>,
    ) -> Result<Session, Error> {
        Session::initialised()?;
        let program = std::env::current_exe().ok();
        let program = program.as_deref().and_then(Path::file_stem).map(|name| name.to_string_lossy().into_owned());
        let project: String =
            program.unwrap_or_default().chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
        let project = if project.is_empty() { "session".to_owned() } else { project };
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let directory = directory.map(std::fs::canonicalize).transpose();
        let directory =
            directory.map_err(|error| refused("NO_DIRECTORY", format!("the session's directory is gone: {error}"), ""))?;
        let spec = v1::RunSpec {
            name: run_name(&project)?,
            project,
            directory: directory.as_deref().map(path).unwrap_or_default(),
            base_directory: std::env::current_dir().ok().as_deref().map(path).unwrap_or_default(),
            ..Default::default()
        };
        let (shared, run) = client.open_run(spec).await?;
        Ok(Session::new(shared, Backend::Remote(Box::new(Remote::new(client, run, directory))), processes, components))
    }
}

/// `run-<time>-<project>-<8 hex>`, as the command line names runs.
fn run_name(project: &str) -> Result<String, Error> {
    let mut random = [0; 4];
    getrandom::fill(&mut random).map_err(|error| refused("NO_RANDOMNESS", format!("no name could be drawn: {error}"), ""))?;
    let project: String = project.chars().take(40).collect();
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    Ok(format!("run-{seconds}-{project}-{:08x}", u32::from_le_bytes(random)))
}
