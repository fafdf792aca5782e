//! What a program holds: submits, watches, and the unary calls.

use std::sync::Arc;

use prost::Message;
use scalable_core::spec::GROUPS_PER_RUN_MAX;
use scalable_proto::v1::control_service_client::ControlServiceClient;
use scalable_proto::{MESSAGE_BYTES_MAX, v1};
use tokio::sync::{mpsc, oneshot};
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::Error;
use crate::connection::{Command, Connection, RunInParts};
use crate::endpoint::Endpoint;
use crate::shared::Shared;
use crate::watch::Watcher;

/// Room for the frame around a part of a run.
const FRAME_BYTES: usize = 1024;
/// Most tasks of one [`Client::submit_tasks`].
pub(crate) const SMALL_SUBMIT_TASKS_MAX: usize = 1000;

/// A run that the scheduler has accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submitted {
    /// Its name.
    pub run: String,
    /// True when the scheduler knew the key already and this is the run of the earlier submit.
    pub known: bool,
    /// The run's number in later frames of the cluster's epoch.
    pub number: u32,
}

/// A session with a scheduler. Cheap to clone; the session ends when the last clone and the last [`Watcher`] are dropped.
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Endpoint,
    commands: mpsc::Sender<Command>,
    control: ControlServiceClient<Channel>,
}

impl Client {
    /// Connects to the scheduler at `address` (`http://host:port` or `host:port`) and opens a session.
    ///
    /// # Errors
    /// [`Error::BadAddress`], [`Error::BadToken`], [`Error::Unreachable`], [`Error::Unauthenticated`], [`Error::VersionSkew`].
    pub async fn connect(address: &str, token: &str) -> Result<Client, Error> {
        Client::begin(Endpoint::new(address, token)?).await
    }

    /// As [`Client::connect`], to a cluster beyond this machine: over TLS, verified for the cluster and not for the address.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_with(connection: &scalable_tls::Connection) -> Result<Client, Error> {
        Client::begin(Endpoint::secured(connection)?).await
    }

    async fn begin(endpoint: Endpoint) -> Result<Client, Error> {
        let commands = Connection::start(endpoint.clone()).await?;
        let control = endpoint.control(endpoint.connect_lazily());
        Ok(Client { endpoint, commands, control })
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The scheduler's address.
    pub fn address(&self) -> &str {
        self.endpoint.address()
    }

    /// Submits a run, all or nothing, and returns when the scheduler has accepted it. Without a `client_key` the run gets a
    /// random one; with the key of an earlier submit the answer is that submit's run.
    ///
    /// # Errors
    /// [`Error::Refused`] when the scheduler, or a limit checked here, does not allow it; [`Error::Lost`].
    pub async fn submit_run(&self, mut spec: v1::RunSpec) -> Result<Submitted, Error> {
        let groups = std::mem::take(&mut spec.groups);
        if groups.len() > GROUPS_PER_RUN_MAX {
            let message = format!("the run has {} groups, the limit is {GROUPS_PER_RUN_MAX}", groups.len());
            return Err(refused("TOO_MANY_GROUPS", message, "make elements of one group of groups that differ by values only"));
        }
        if let Some((name, bytes)) = too_large(&spec, &groups) {
            let message = format!("{name} takes {bytes} bytes on the wire, the limit is {}", MESSAGE_BYTES_MAX - FRAME_BYTES);
            return Err(refused(
                "TOO_LARGE",
                message,
                "split the group, or let a file hold the values and pass the number of the row",
            ));
        }
        complete_key(&mut spec.client_key)?;
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Submit { run: Arc::new(RunInParts { head: spec, groups }), reply }, answer).await
    }

    /// Submits at most 1,000 tasks in their readable form, each a group of its own. Idempotent as [`Client::submit_run`].
    ///
    /// # Errors
    /// As [`Client::submit_run`].
    pub async fn submit_tasks(&self, mut request: v1::SubmitTasks) -> Result<Submitted, Error> {
        if request.tasks.is_empty() || request.tasks.len() > SMALL_SUBMIT_TASKS_MAX {
            let message = format!("{} tasks in a small submit, it takes 1 to {SMALL_SUBMIT_TASKS_MAX}", request.tasks.len());
            return Err(refused("TOO_MANY_TASKS", message, "submit them as a run with array groups"));
        }
        let bytes = request.encoded_len();
        if bytes > MESSAGE_BYTES_MAX - FRAME_BYTES {
            let message = format!("the tasks take {bytes} bytes on the wire, the limit is {}", MESSAGE_BYTES_MAX - FRAME_BYTES);
            return Err(refused("TOO_LARGE", message, "submit fewer tasks at a time"));
        }
        complete_key(&mut request.client_key)?;
        let (reply, answer) = oneshot::channel();
        self.ask(Command::SubmitTasks { request, reply }, answer).await
    }

    async fn ask(&self, command: Command, answer: oneshot::Receiver<Result<Submitted, Error>>) -> Result<Submitted, Error> {
        self.commands.send(command).await.map_err(|_| self.session_over())?;
        answer.await.map_err(|_| self.session_over())?
    }

    fn session_over(&self) -> Error {
        Error::Lost { address: self.address().to_owned(), reason: "the session is over".to_owned() }
    }

    pub(crate) fn control(&self) -> ControlServiceClient<Channel> {
        self.control.clone()
    }

    /// The events of `run`, beginning with its state.
    ///
    /// # Errors
    /// [`Error::Refused`] when the scheduler does not know the run; the errors of a unary call.
    pub async fn watch(&self, run: &str) -> Result<Watcher, Error> {
        self.status(run).await?;
        let (watcher, feed) = Watcher::new();
        self.commands.send(Command::Watch { run: run.to_owned(), feed }).await.map_err(|_| self.session_over())?;
        Ok(watcher)
    }

    /// Opens a run that takes groups and tasks until it is closed.
    pub(crate) async fn open_run(&self, spec: v1::RunSpec) -> Result<(Arc<Shared>, String), Error> {
        let submitted = self.submit_run(v1::RunSpec { open: true, ..spec }).await?;
        let shared = Shared::new(self.address().to_owned(), Some(self.endpoint.clone()));
        shared.outbox().opened(submitted.number);
        self.commands.send(Command::Attach { open: shared.clone() }).await.map_err(|_| self.session_over())?;
        Ok((shared, submitted.run))
    }

    pub(crate) fn failed(&self, status: tonic::Status) -> Error {
        Error::from_status(self.address(), &status)
    }

    /// Runs the scheduler knows.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Unauthenticated`], [`Error::Refused`]; so for every call below.
    pub async fn list_runs(&self) -> Result<Vec<v1::RunProgress>, Error> {
        let request = self.endpoint.request(v1::ListRunsRequest {});
        let reply = self.control.clone().list_runs(request).await.map_err(|status| self.failed(status))?;
        Ok(reply.into_inner().runs)
    }

    /// State of the cluster, and of `run` unless it is empty.
    ///
    /// # Errors
    /// As [`Client::list_runs`]; [`Error::Refused`] when the run is not known.
    pub async fn status(&self, run: &str) -> Result<v1::StatusReply, Error> {
        let request = self.endpoint.request(v1::StatusRequest { run: run.to_owned() });
        let reply = self.control.clone().get_status(request).await.map_err(|status| self.failed(status))?;
        Ok(reply.into_inner())
    }

    /// Tasks of a run, a page at a time.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn list_tasks(&self, request: v1::ListTasksRequest) -> Result<Vec<v1::TaskStatus>, Error> {
        let request = self.endpoint.request(request);
        let reply = self.control.clone().list_tasks(request).await.map_err(|status| self.failed(status))?;
        Ok(reply.into_inner().tasks)
    }

    /// Why a task is in the state it is in.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn explain(&self, run: &str, group: &str, index: u32) -> Result<v1::ExplainReply, Error> {
        let request = self.endpoint.request(v1::ExplainRequest { run: run.to_owned(), group: group.to_owned(), index });
        let reply = self.control.clone().explain(request).await.map_err(|status| self.failed(status))?;
        Ok(reply.into_inner())
    }

    /// Cancels a run, a group of it (`group` not empty) or one task of that (`index`). Returns how many tasks were meant; a task
    /// that executes ends when its process group has.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn cancel(&self, run: &str, group: &str, index: Option<u32>, reason: &str) -> Result<u32, Error> {
        let request = v1::CancelRequest { run: run.to_owned(), group: group.to_owned(), index, reason: reason.to_owned() };
        let request = self.endpoint.request(request);
        let reply = self.control.clone().cancel(request).await.map_err(|status| self.failed(status))?;
        Ok(reply.into_inner().tasks)
    }

    /// Says that a content is about to be named, and whether it is to be uploaded first.
    ///
    /// # Errors
    /// As [`Client::list_runs`]; [`Error::Refused`] when the store does not take such a content.
    pub(crate) async fn offer_content(&self, offer: v1::OfferRequest) -> Result<v1::OfferReply, Error> {
        let request = self.endpoint.request(offer);
        let reply = self.control.clone().offer_content(request).await.map_err(|status| self.failed(status))?;
        Ok(reply.into_inner())
    }

    /// Asks the scheduler to stop its workers and to end; with `cancel_runs` also when runs are live.
    ///
    /// # Errors
    /// As [`Client::list_runs`]; [`Error::Refused`] when a run is live and `cancel_runs` is false.
    pub async fn shutdown(&self, cancel_runs: bool) -> Result<(), Error> {
        let request = self.endpoint.request(v1::ShutdownRequest { cancel_runs });
        self.control.clone().shutdown(request).await.map_err(|status| self.failed(status))?;
        Ok(())
    }

    /// True when the scheduler says of itself that it serves (the standard gRPC health service).
    ///
    /// # Errors
    /// As [`Client::list_runs`].
    pub async fn health(&self) -> Result<bool, Error> {
        let mut service = HealthClient::new(self.endpoint.connect_lazily());
        let request = self.endpoint.request(HealthCheckRequest { service: String::new() });
        let reply = service.check(request).await.map_err(|status| self.failed(status))?;
        Ok(reply.into_inner().status() == ServingStatus::Serving)
    }
}

pub(crate) fn refused(code: &str, message: String, help: &str) -> Error {
    Error::Refused { code: code.to_owned(), message, help: help.to_owned() }
}

/// The first part of a run that does not fit into a message.
fn too_large(head: &v1::RunSpec, groups: &[v1::GroupSpec]) -> Option<(String, usize)> {
    let limit = MESSAGE_BYTES_MAX - FRAME_BYTES;
    let head = ("the run without its groups".to_owned(), head.encoded_len());
    let groups = groups.iter().map(|group| (format!("group {:?}", group.name), group.encoded_len()));
    std::iter::once(head).chain(groups).find(|(_, bytes)| *bytes > limit)
}

/// A key of 16 bytes: the caller's, or a random one where there is none.
fn complete_key<K: AsRef<[u8]> + From<Vec<u8>>>(key: &mut K) -> Result<(), Error> {
    match key.as_ref().len() {
        16 => Ok(()),
        0 => {
            let mut random = vec![0; 16];
            getrandom::fill(&mut random)
                .map_err(|error| refused("NO_RANDOMNESS", format!("no key could be drawn: {error}"), ""))?;
            *key = random.into();
            Ok(())
        }
        length => Err(refused("BAD_CLIENT_KEY", format!("a client key has 16 bytes, not {length}"), "")),
    }
}
