//! What the scheduler's pod is told about its workers: a document that the command line makes and the scheduler reads from a mounted
//! file. Everything in it was checked, so that the scheduler only has to fill in names.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde::{Deserialize, Serialize};

/// The document's form. One that is newer is refused: fields would be missed.
pub const VERSION: u32 = 1;
/// Largest document, bytes: what fits into a Secret.
const BYTES_MAX: u64 = 1 << 20;

/// The document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Its form: [`VERSION`].
    pub version: u32,
    /// Id of the cluster that scheduler and workers are.
    pub cluster_id: String,
    /// Name of the run, as in labels and names.
    pub run: String,
    /// Where all of it is.
    pub namespace: String,
    /// The Job that owns everything.
    pub root: Root,
    /// Where workers reach the scheduler: host and port of its Service.
    pub address: String,
    /// Address of that Service, for pods of a cluster whose names cannot be resolved.
    #[serde(default)]
    pub service_ip: Option<String>,
    /// The pools, at most [`POOLS_MAX`].
    pub pools: Vec<Pool>,
}

/// Most pools of a run.
pub const POOLS_MAX: usize = 1000;

/// The Job that owns everything of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Its name.
    pub name: String,
    /// Its unique id.
    pub uid: String,
}

impl Root {
    /// The reference that makes an object go when the Job goes. It names no controller: the Job's own would let go of pods that are not
    /// of its making.
    pub fn owner(&self) -> OwnerReference {
        OwnerReference {
            api_version: "batch/v1".to_owned(),
            kind: "Job".to_owned(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            controller: Some(false),
            block_owner_deletion: Some(false),
        }
    }
}

/// Workers made from one template.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name; on Kubernetes that of its component.
    pub name: String,
    /// Components its workers serve.
    pub components: Vec<String>,
    /// What one worker offers to tasks.
    pub capacity: Capacity,
    /// Least workers while the run has tasks for it.
    pub minimum: u32,
    /// Most workers.
    pub maximum: u32,
    /// How long what executes may go on when a worker is to go, milliseconds.
    pub drain_timeout_ms: u64,
    /// Longest way from the creation of a pod to its program running, milliseconds; what takes longer is replaced.
    pub start_deadline_ms: u64,
    /// What a pod is made from. Name and owner are filled in.
    pub template: PodTemplateSpec,
}

/// What one worker offers to tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Thousandths of a cpu.
    pub milli_cpus: u64,
    /// Bytes; 0 where memory is not accounted.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Whole gpus.
    #[serde(default)]
    pub gpus: u64,
    /// Custom resources.
    #[serde(default)]
    pub custom: BTreeMap<String, u64>,
}

/// Why the document is of no use.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file.
    #[error("could not read {path}: {error}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// The text.
    #[error("{path} does not describe the workers: {message}")]
    Malformed {
        /// Which.
        path: String,
        /// What is wrong.
        message: String,
    },
}

impl Settings {
    /// Reads a mounted document.
    ///
    /// # Errors
    /// A file that cannot be read, is larger than a Secret can be, is of a newer form, or breaks a bound.
    pub fn read(path: &Path) -> Result<Settings, SettingsError> {
        let shown = path.display().to_string();
        let read = || {
            let size = std::fs::metadata(path)?.len();
            if size > BYTES_MAX {
                return Err(std::io::Error::other(format!("{size} bytes are more than {BYTES_MAX}")));
            }
            std::fs::read(path)
        };
        let bytes = read().map_err(|error| SettingsError::Read { path: shown.clone(), error })?;
        Settings::parse(&bytes).map_err(|message| SettingsError::Malformed { path: shown, message })
    }

    /// Reads the document from its text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Settings, String> {
        let settings: Settings = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if settings.version != VERSION {
            return Err(format!("it has form {} and this program reads {VERSION}: use one version of both", settings.version));
        }
        if settings.pools.len() > POOLS_MAX {
            return Err(format!("{} pools are more than {POOLS_MAX}", settings.pools.len()));
        }
        match settings.pools.iter().find(|pool| pool.minimum > pool.maximum) {
            Some(pool) => Err(format!("pool `{}` has a minimum {} above its maximum {}", pool.name, pool.minimum, pool.maximum)),
            None => Ok(settings),
        }
    }

    /// The document's text.
    ///
    /// # Panics
    /// Never: every key of it is a string.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("maps of the document have string keys")
    }

    /// The pool of that name.
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.name == name)
    }
}
