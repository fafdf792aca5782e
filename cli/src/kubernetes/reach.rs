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
    /// Forwards the scheduler's ports and opens a session.
    ///
    /// # Errors
    /// Why there is none, in the words of whoever refused.
    pub async fn open(scheduler: Scheduler) -> Result<Live, Failure> {
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
        let ports = [forward(PORT).await?, forward(OBJECT_PORT).await?, forward(HTTP_PORT).await?];
        let connection = scalable_tls::Connection {
            address: format!("https://{}", ports[0].address()),
            cluster_id: text(file::CLUSTER_ID)?,
            ca_certificate: text(file::CA_CERTIFICATE)?,
            token: text(file::SUBMIT_TOKEN)?,
            store_address: Some(ports[1].address().to_string()),
        };
        let client = tokio::time::timeout(CONNECT_WITHIN, Client::connect_with(&connection)).await;
        let client = match client {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => {
                let failure = Failure::from(error);
                return Err(match ports[0].problem() {
                    Some(problem) => Failure { message: format!("{}: {problem}", failure.message), ..failure },
                    None => failure,
                });
            }
            Err(_) => {
                let why = ports[0].problem().unwrap_or_else(|| "nothing was answered".to_owned());
                let waited = CONNECT_WITHIN.as_secs();
                return Err(Failure::infrastructure(format!(
                    "no session with the scheduler in pod {} within {waited} s: {why}",
                    scheduler.pod
                )));
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
    let api = at.access().connect().await?.client;
    let found = match find(&api, at).await {
        Ok(Some(found)) => found,
        Ok(None) => return Err(nothing_left(&api, at, run).await),
        // Who may not look at the runs of a namespace that is going learns that it is.
        Err(failure) => match namespace_end(&api, &at.namespace).await {
            Some(end) => return Err(Failure { message: format!("{end}; {}", failure.message), ..failure }),
            None => return Err(failure),
        },
    };
    reached(&api, found).await
}

/// A session with the scheduler of this run.
///
/// # Errors
/// When it is over, or does not answer.
pub async fn open(api: &Api, run: Run) -> Result<Live, Failure> {
    let name = run.run.clone();
    match reached(api, run).await? {
        Reached::Live(live) => Ok(*live),
        Reached::Lost(why) => Err(lost(&name, &why)),
    }
}

async fn reached(api: &Api, run: Run) -> Result<Reached, Failure> {
    let name = run.run.clone();
    match fate(api, &run).await? {
        Fate::Ready(_) => Ok(Reached::Live(Box::new(Live::open(scalable_provider_k8s::attach(api, run).await?).await?))),
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
