//! A run's scheduler in its pod, from here: ports forwarded through the API server, credentials from the Secret that whoever may
//! read it may use.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::Client as Api;
use scalable::Client;
use scalable_provider_k8s::objects::{HTTP_PORT, OBJECT_PORT, PORT};
use scalable_provider_k8s::{Forward, Run, Scheduler};
use scalable_tls::file;

use super::KubernetesRecord;
use crate::commands::Context;
use crate::exit::Failure;

/// How long the forwarded ports may take to carry a session.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);

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
        let secret = scheduler.credentials().await?;
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

    /// Why the scheduler is gone, where Kubernetes knows.
    pub async fn why_gone(&self) -> Option<String> {
        self.scheduler.ended().await.ok().flatten()
    }
}

fn text(secret: &BTreeMap<String, Vec<u8>>, name: &str) -> Result<String, Failure> {
    let bytes = secret.get(name).ok_or_else(|| Failure::infrastructure(format!("the run's Secret has no {name}")))?;
    let text = String::from_utf8(bytes.clone());
    Ok(text.map_err(|_| Failure::infrastructure(format!("{name} in the run's Secret is no text")))?.trim_end().to_owned())
}

/// A session with the scheduler of a run that is there.
///
/// # Errors
/// When it is not, or does not answer; with how it ended, where that is still known.
pub async fn attach(at: &KubernetesRecord, run: &str) -> Result<Live, Failure> {
    let api = at.access().connect().await?.client;
    let found = find(&api, at).await?.ok_or_else(|| {
        Failure::infrastructure(format!("nothing of {run} is left in namespace {}", at.namespace))
            .help("what has ended is kept there for some minutes only; `scalable report` reads what came of it")
    })?;
    Live::open(scalable_provider_k8s::attach(&api, found).await?).await
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
