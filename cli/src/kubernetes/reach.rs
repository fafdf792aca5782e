//! A run's scheduler in its pod, from here: ports forwarded through the API server, credentials from the Secret that whoever may
//! read it may use.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::Client as Api;
use scalable::Client;
use scalable_provider_k8s::objects::{HTTP_PORT, OBJECT_PORT, PORT};
use scalable_provider_k8s::{Fate, Forward, Run, Scheduler, fate, namespace_end};
use scalable_tls::file;

use super::KubernetesRecord;
use crate::commands::Context;
use crate::exit::Failure;

/// How long the forwarded ports may take to carry a session.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);

/// How often it is looked whether there is a scheduler.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a scheduler that cannot be looked at may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How long a Service's name may take, before its ports are forwarded instead.
const BY_NAME_WITHIN: Duration = Duration::from_secs(10);
/// A Service that does not lead anywhere yet is tried again after this.
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// How a scheduler in a pod is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// By ports that the API server forwards.
    #[default]
    Forwarded,
    /// By the name of its Service, from a pod of the same cluster; where that does not answer, as [`Way::Forwarded`].
    Inside,
    /// At addresses that were said, of 8786 and 8788: something there passes TLS on as it is.
    Said {
        /// Of 8786.
        scheduler: String,
        /// Of 8788.
        store: String,
    },
}

impl Way {
    /// As it was said, else by where this runs.
    pub fn of(scheduler: Option<&str>, store: Option<&str>, inside: bool) -> Way {
        match (scheduler, store, inside) {
            (Some(scheduler), Some(store), _) => Way::Said { scheduler: scheduler.to_owned(), store: store.to_owned() },
            (_, _, true) => Way::Inside,
            _ => Way::Forwarded,
        }
    }
}

/// A session with a scheduler in a pod. Its ports end with it.
pub struct Live {
    /// The session.
    pub client: Client,
    /// What `client` was connected with.
    pub connection: scalable_tls::Connection,
    /// The pages on this machine.
    pub http: String,
    /// The scheduler's pod.
    pub scheduler: Scheduler,
    _ports: [Forward; 3],
}

impl Live {
    /// Opens a session, and forwards the scheduler's ports to loopback where that is the way; the page's in any case.
    ///
    /// # Errors
    /// Why there is none, in the words of whoever refused.
    pub async fn open(scheduler: Scheduler, way: &Way) -> Result<Live, Failure> {
        let secret = scheduler.credentials().await.map_err(|error| {
            let run = &scheduler.run.run;
            let help = format!("whoever comes to a run now needs what is in it; `scalable down {run}` ends the run all the same");
            Failure::from(error).help(help)
        })?;
        let text = |name: &str| text(&secret, name);
        let forward = async |port: u16| {
            let made = scheduler.forward(port, 0).await;
            made.map_err(|error| Failure::io(format!("forward port {port} of pod {}", scheduler.pod), &error))
        };
        // They only listen: nothing is asked of the API before somebody connects.
        let ports = [forward(PORT).await?, forward(OBJECT_PORT).await?, forward(HTTP_PORT).await?];
        let forwarded = scalable_tls::Connection {
            address: format!("https://{}", ports[0].address()),
            cluster_id: text(file::CLUSTER_ID)?,
            ca_certificate: text(file::CA_CERTIFICATE)?,
            token: text(file::SUBMIT_TOKEN)?,
            store_address: Some(ports[1].address().to_string()),
        };
        let at = |scheduler: &str, store: &str| scalable_tls::Connection {
            address: format!("https://{scheduler}"),
            store_address: Some(store.to_owned()),
            ..forwarded.clone()
        };
        let (connection, client) = match way {
            Way::Said { scheduler: address, store } => {
                let connection = at(address, store);
                let client = soon_connected(&connection, CONNECT_WITHIN).await.map_err(|failure| {
                    let help = "see that what is there passes port 8786 of the scheduler's Service on without ending TLS; without \
                                --scheduler-address its ports are forwarded through the API server";
                    failure.help(help)
                })?;
                (connection, client)
            }
            Way::Inside => {
                let service = format!("{}.{}.svc", scheduler.run.root.name, scheduler.run.namespace);
                let by_name = at(&format!("{service}:{PORT}"), &format!("{service}:{OBJECT_PORT}"));
                match soon_connected(&by_name, BY_NAME_WITHIN).await {
                    Ok(client) => (by_name, client),
                    Err(failure) => {
                        tracing::info!(service, why = %failure.message, "the scheduler's Service does not answer: its ports are forwarded");
                        let client = by_forwarded(&forwarded, &ports[0], &scheduler.pod).await?;
                        (forwarded, client)
                    }
                }
            }
            Way::Forwarded => {
                let client = by_forwarded(&forwarded, &ports[0], &scheduler.pod).await?;
                (forwarded, client)
            }
        };
        let http = format!("http://{}", ports[2].address());
        Ok(Live { client, connection, http, scheduler, _ports: ports })
    }

    /// Why the scheduler is gone, where Kubernetes says so.
    pub async fn why_gone(&self) -> Option<String> {
        match self.scheduler.fate().await {
            Ok(Fate::Over(words)) => Some(words),
            // The right to look may have been taken away and nothing else; whether the scheduler is there, its session knows.
            Ok(Fate::Hidden(words)) => match tokio::time::timeout(ANSWER_WITHIN, self.client.list_runs()).await {
                Ok(Ok(_)) => None,
                _ => Some(format!("it does not answer, and Kubernetes does not say why: {words}")),
            },
            // Without an answer nothing is known.
            Ok(Fate::Ready(_) | Fate::Waiting(_)) | Err(_) => None,
        }
    }

    /// Comes when the scheduler is gone, with the reason.
    pub async fn gone(&self) -> Failure {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Some(why) = self.why_gone().await {
                return Failure::infrastructure(why);
            }
        }
    }
}

async fn connected(connection: &scalable_tls::Connection, within: Duration) -> Result<Client, Failure> {
    match tokio::time::timeout(within, Client::connect_with(connection)).await {
        Ok(connected) => Ok(connected?),
        Err(_) => Err(unanswered(connection, within, "nothing was answered")),
    }
}

/// As [`connected`], again and again: a Service leads to its pod somewhat later than Kubernetes calls that ready.
async fn soon_connected(connection: &scalable_tls::Connection, within: Duration) -> Result<Client, Failure> {
    let ends = tokio::time::Instant::now() + within;
    loop {
        match tokio::time::timeout_at(ends, Client::connect_with(connection)).await {
            Ok(Ok(client)) => return Ok(client),
            Ok(Err(scalable::Error::Unreachable { reason, .. })) if tokio::time::Instant::now() + AGAIN_AFTER >= ends => {
                return Err(unanswered(connection, within, &reason));
            }
            Ok(Err(scalable::Error::Unreachable { .. })) => tokio::time::sleep(AGAIN_AFTER).await,
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(unanswered(connection, within, "nothing was answered")),
        }
    }
}

fn unanswered(connection: &scalable_tls::Connection, within: Duration, why: &str) -> Failure {
    let (address, waited) = (&connection.address, within.as_secs());
    Failure::infrastructure(format!("no session with the scheduler at {address} within {waited} s: {why}"))
}

/// As [`connected`], with what the API server said where the port could not be forwarded.
async fn by_forwarded(connection: &scalable_tls::Connection, port: &Forward, pod: &str) -> Result<Client, Failure> {
    connected(connection, CONNECT_WITHIN).await.map_err(|failure| match port.problem() {
        Some(problem) => Failure { message: format!("pod {pod}: {}: {problem}", failure.message), ..failure },
        None => failure,
    })
}

fn text(secret: &BTreeMap<String, Vec<u8>>, name: &str) -> Result<String, Failure> {
    let bytes = secret.get(name).ok_or_else(|| Failure::infrastructure(format!("the run's Secret has no {name}")))?;
    let text = String::from_utf8(bytes.clone());
    Ok(text.map_err(|_| Failure::infrastructure(format!("{name} in the run's Secret is no text")))?.trim_end().to_owned())
}

/// What is found of a run.
pub enum Reached {
    /// Its scheduler.
    Live(Box<Live>),
    /// Its scheduler is over; why.
    Lost(String),
}

/// A session with the scheduler of a run that is there.
///
/// # Errors
/// When it is not, or does not answer; with how it ended, where that is still known.
pub async fn attach(at: &KubernetesRecord, run: &str) -> Result<Live, Failure> {
    match look_for(at, run).await? {
        Reached::Live(live) => Ok(*live),
        Reached::Lost(why) => Err(lost(run, &why)),
    }
}

/// As [`attach`], for whoever has more to say of a run that is lost.
///
/// # Errors
/// When it is not there any more, or does not answer.
pub async fn look_for(at: &KubernetesRecord, run: &str) -> Result<Reached, Failure> {
    let cluster = at.access().connect().await?;
    let (api, way) = (cluster.client, at.way(cluster.inside));
    let found = match find(&api, at).await {
        Ok(Some(found)) => found,
        Ok(None) => return Err(nothing_left(&api, at, run).await),
        // Who may not look at the runs of a namespace that is going learns that it is.
        Err(failure) => match namespace_end(&api, &at.namespace).await {
            Some(end) => return Err(Failure { message: format!("{end}; {}", failure.message), ..failure }),
            None => return Err(failure),
        },
    };
    reached(&api, found, &way).await
}

/// A session with the scheduler of this run.
///
/// # Errors
/// When it is over, or does not answer.
pub async fn open(api: &Api, run: Run, way: &Way) -> Result<Live, Failure> {
    let name = run.run.clone();
    match reached(api, run, way).await? {
        Reached::Live(live) => Ok(*live),
        Reached::Lost(why) => Err(lost(&name, &why)),
    }
}

async fn reached(api: &Api, run: Run, way: &Way) -> Result<Reached, Failure> {
    let name = run.run.clone();
    match fate(api, &run).await? {
        Fate::Ready(_) => {
            let scheduler = scalable_provider_k8s::attach(api, run).await?;
            Ok(Reached::Live(Box::new(Live::open(scheduler, way).await?)))
        }
        Fate::Over(words) => Ok(Reached::Lost(words)),
        Fate::Hidden(words) => Err(Failure::infrastructure(format!("{name} cannot be looked at: {words}"))),
        Fate::Waiting(waiting) => {
            let words = waiting.map_or_else(String::new, |(reason, message)| format!(": {reason}: {message}"));
            Err(Failure::infrastructure(format!("the scheduler of {name} is not up{words}"))
                .help(format!("try again in a moment; `scalable down {name}` gives it up")))
        }
    }
}

async fn nothing_left(api: &Api, at: &KubernetesRecord, run: &str) -> Failure {
    let end = namespace_end(api, &at.namespace).await;
    let why = end.map(|end| format!(": {end}")).unwrap_or_default();
    Failure::infrastructure(format!("nothing of {run} is left in namespace {}{why}", at.namespace))
        .help("what has ended is kept there for some minutes only; `scalable report` reads what came of it")
}

/// What a run is said to be whose scheduler is over before anybody has fetched what came of it.
pub fn lost(run: &str, why: &str) -> Failure {
    Failure::infrastructure(format!("{run} is lost, because its scheduler is gone: {why}"))
}

async fn find(api: &Api, at: &KubernetesRecord) -> Result<Option<Run>, Failure> {
    Ok(scalable_provider_k8s::find(api, &at.namespace, |known| known.cluster_id == at.cluster_id).await?)
}

/// Takes a run down and sees that nothing of it is left; false when it was not there.
///
/// # Errors
/// What is left.
pub async fn destroy_run(context: &Context, at: &KubernetesRecord, run: &str) -> Result<bool, Failure> {
    let api = at.access().connect().await?.client;
    let Some(found) = find(&api, at).await? else { return Ok(false) };
    scalable_provider_k8s::destroy(&api, &found).await?;
    context.ui.say(format!("nothing of {run} is left in namespace {}", at.namespace));
    Ok(true)
}

/// Takes this run down, and sees that nothing of it is left, also when somebody else has deleted its Job already.
///
/// # Errors
/// What is left.
pub async fn destroy(context: &Context, at: &KubernetesRecord, run: &Run) -> Result<(), Failure> {
    let api = at.access().connect().await?.client;
    scalable_provider_k8s::destroy(&api, run).await?;
    context.ui.say(format!("nothing of {} is left in namespace {}", run.run, at.namespace));
    Ok(())
}
