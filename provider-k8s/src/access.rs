//! How the API of a cluster is reached from where a person works: a kubeconfig that is named, the one of the environment, or, in a pod, the
//! pod's own.

use std::path::PathBuf;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use scalable_provider::launch::LaunchError;

use crate::failure;

/// Longest time until a connection to the API stands.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Which cluster is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// A kubeconfig; nothing: `KUBECONFIG`, else `~/.kube/config`, else the service account of the pod this runs in.
    pub kubeconfig: Option<PathBuf>,
    /// A context of it; nothing: its current one.
    pub context: Option<String>,
}

/// A cluster that can be asked.
#[derive(Clone)]
pub struct Connection {
    /// How it is reached.
    pub config: Config,
    /// What asks it.
    pub client: Client,
    /// Namespace of the context, else `default`.
    pub namespace: String,
    /// This runs in a pod of the cluster and asks as the pod's service account: its Services can be reached by their names.
    pub inside: bool,
}

impl Access {
    /// Reads the configuration. Nothing is asked yet.
    ///
    /// # Errors
    /// When there is no configuration, or not of that context, or it cannot be used.
    pub async fn connect(&self) -> Result<Connection, LaunchError> {
        let (mut config, inside) = self.config().await?;
        config.connect_timeout = Some(CONNECT_MAX);
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config.clone())
            .map_err(|error| error_of(format!("the Kubernetes configuration cannot be used: {}", failure::chain(&error)), ""))?;
        Ok(Connection { config, client, namespace, inside })
    }

    async fn config(&self) -> Result<(Config, bool), LaunchError> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let help = "name a kubeconfig with --kubeconfig or KUBECONFIG, and a context with --context";
        if let Some(path) = &self.kubeconfig {
            let unusable = |error: &(dyn std::error::Error + 'static)| {
                error_of(format!("the kubeconfig {} cannot be used: {}", path.display(), failure::chain(error)), help)
            };
            let read = Kubeconfig::read_from(path).map_err(|error| unusable(&error))?;
            let config = Config::from_custom_kubeconfig(read, &options).await.map_err(|error| unusable(&error))?;
            return Ok((config, false));
        }
        if self.context.is_some() {
            let config = Config::from_kubeconfig(&options).await;
            let config =
                config.map_err(|error| error_of(format!("the kubeconfig cannot be used: {}", failure::chain(&error)), help))?;
            return Ok((config, false));
        }
        if let Ok(config) = Config::from_kubeconfig(&options).await {
            return Ok((config, false));
        }
        // Without a kubeconfig there is the pod's own account, or nothing.
        let config = Config::infer()
            .await
            .map_err(|error| error_of(format!("no Kubernetes cluster is known: {}", failure::chain(&error)), help))?;
        Ok((config, true))
    }
}

/// An error with what to do; an empty help is none.
pub(crate) fn error_of(message: impl Into<String>, help: &str) -> LaunchError {
    LaunchError { message: message.into(), help: (!help.is_empty()).then(|| help.to_owned()) }
}
