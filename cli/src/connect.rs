//! From a run, or an address, to a session with its scheduler.

use std::path::{Path, PathBuf};

use scalable::{Client, Connection};

use crate::args::{ElsewhereArgs, SchedulerArgs};
use crate::commands::Context;
use crate::exit::Failure;
use crate::kubernetes::{self, Namespace};
use crate::records::RunRecord;
use crate::runs::{self, RunDirectory};
use crate::which::{self, Which};

/// Runs an async command on a runtime of one thread.
///
/// # Errors
/// What the command returns, or that the system gives no runtime.
pub fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::io("start the runtime", &error))?.block_on(work)
}

/// Where a scheduler is and what it wants to see.
#[derive(Clone, Debug)]
pub struct Place {
    /// `host:port` or a URL.
    pub address: String,
    /// File with the token; for a cluster beyond this machine, whose address begins with https, its connection file.
    pub token_file: PathBuf,
}

impl Place {
    /// A session with the scheduler there.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn connect(&self) -> Result<Client, Failure> {
        Ok(self.try_connect().await??)
    }

    /// As [`Place::connect`]; the outer error when it cannot be read what the scheduler wants to see.
    async fn try_connect(&self) -> Result<Result<Client, scalable::Error>, Failure> {
        if self.address.starts_with("https://") {
            return Ok(Client::connect_with(&read_connection(&self.token_file)?).await);
        }
        let token = runs::read_token(&self.token_file)?;
        Ok(Client::connect(&self.address, &token).await)
    }
}

fn read_connection(file: &Path) -> Result<Connection, Failure> {
    Connection::read(file).map_err(|error| Failure::usage(format!("the connection file {error}")))
}

/// The scheduler of a run that lives.
pub fn place_of(record: &RunRecord) -> Option<Place> {
    Some(Place { address: record.address.clone()?, token_file: PathBuf::from(record.token_file.clone()?) })
}

/// The scheduler that was asked for with `--address`; nothing when none was.
///
/// # Errors
/// When its token is not known.
pub fn asked_for(args: &SchedulerArgs, runs_dir: &Path) -> Result<Option<Place>, Failure> {
    if let Some(file) = &args.connection {
        return Ok(Some(Place { address: read_connection(file)?.address, token_file: file.clone() }));
    }
    let Some(address) = &args.address else { return Ok(None) };
    if let Some(token_file) = &args.token_file {
        return Ok(Some(Place { address: address.clone(), token_file: token_file.clone() }));
    }
    let same = |record: &RunRecord| record.address.as_deref().is_some_and(|known| host_and_port(known) == host_and_port(address));
    let known = runs::list(runs_dir)?.into_iter().filter(|(_, record)| !record.is_over()).find(|(_, record)| same(record));
    let place = known.and_then(|(_, record)| place_of(&record)).map(|place| Place { address: address.clone(), ..place });
    place.map(Some).ok_or_else(|| {
        Failure::usage(format!("the token of the scheduler at {address} is not known"))
            .help("name the file it was started with: --token-file FILE, or SCALABLE_TOKEN_FILE")
    })
}

fn host_and_port(address: &str) -> &str {
    address.split_once("://").map_or(address, |(_, rest)| rest).trim_end_matches('/')
}

/// The newest scheduler that was started from here and still lives.
///
/// # Errors
/// When there is none.
pub fn newest(runs_dir: &Path) -> Result<(RunDirectory, Place), Failure> {
    let live = runs::list(runs_dir)?.into_iter().filter(|(_, record)| !record.is_over());
    live.filter_map(|(directory, record)| place_of(&record).map(|place| (directory, place))).next().ok_or_else(|| {
        Failure::usage("no scheduler is running that was started from here")
            .help("start one with `scalable run` on a manifest without tasks, or name one with --address")
    })
}

/// A session with a run's scheduler.
pub enum Session {
    /// Straight to it.
    Direct(Box<Client>),
    /// Through the API server of its Kubernetes.
    Forwarded(Box<kubernetes::Live>),
}

impl std::ops::Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        match self {
            Session::Direct(client) => client,
            Session::Forwarded(live) => &live.client,
        }
    }
}

/// What a command finds when it looks for a run: its scheduler, or only its directory.
pub enum Found {
    /// It lives.
    Live(Session),
    /// It is over, or its scheduler does not answer; then with the reason.
    Records(Option<scalable::Error>),
}

/// What was typed, as a run with what was named of it, and its scheduler: from the run's directory here, or, where the options say so, from
/// a namespace of Kubernetes.
///
/// # Errors
/// When there is no such run, group or element; when the scheduler does not accept this client; on Kubernetes when it is not there.
pub async fn named(
    context: &Context,
    elsewhere: &ElsewhereArgs,
    run: &str,
    what: Option<&str>,
) -> Result<(Which, Found), Failure> {
    let Some(namespace) = Namespace::of(elsewhere).await? else {
        let which = match what {
            Some(what) => which::any(&context.runs_dir, run, what)?,
            None => which::run(&context.runs_dir, run)?,
        };
        let found = reach(&which.record).await?;
        return Ok((which, found));
    };
    let (found, what) = namespace.find(run, what).await?;
    let live = kubernetes::open(namespace.api(), found.clone(), namespace.way()).await?;
    let progress = live.client.list_runs().await?.into_iter().find(|progress| progress.run == found.run);
    let run = match kubernetes::directory_here(&context.runs_dir, &found) {
        Some((directory, record)) => Which { directory, record, group: None, index: None },
        None => {
            let path = runs::absolute(&context.runs_dir)?.join(&found.run);
            let record = namespace.record(&found, progress.as_ref());
            Which { directory: RunDirectory { path, name: found.run.clone() }, record, group: None, index: None }
        }
    };
    let which = match what {
        Some(what) => which::of_run(run, what)?,
        None => run,
    };
    Ok((which, Found::Live(Session::Forwarded(Box::new(live)))))
}

/// Connects to the scheduler of a run that lives.
///
/// # Errors
/// When the scheduler answers but does not accept this client.
pub async fn reach(record: &RunRecord) -> Result<Found, Failure> {
    if let Some(at) = record.kubernetes.as_ref().filter(|_| !record.is_over()) {
        let live = kubernetes::attach(at, &record.run_id).await?;
        return Ok(Found::Live(Session::Forwarded(Box::new(live))));
    }
    let Some(place) = place_of(record).filter(|_| !record.is_over()) else { return Ok(Found::Records(None)) };
    let Ok(connected) = place.try_connect().await else { return Ok(Found::Records(None)) };
    match connected {
        Ok(client) => match client.status(&record.run_id).await {
            Ok(_) => Ok(Found::Live(Session::Direct(Box::new(client)))),
            // The port was taken over by the scheduler of another run.
            Err(error) if !record.groups.is_empty() => Ok(Found::Records(Some(error))),
            Err(_) => Ok(Found::Live(Session::Direct(Box::new(client)))),
        },
        Err(error @ scalable::Error::VersionSkew { .. }) => Err(error.into()),
        Err(error) => Ok(Found::Records(Some(error))),
    }
}
