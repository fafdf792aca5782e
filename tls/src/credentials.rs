//! The sets of files that scheduler and workers have, made in memory for a fresh cluster and read from a directory.

use std::collections::BTreeMap;
use std::path::Path;

use crate::files::{failed, read_private, read_public};
use crate::{Authority, Connection, Secret, TlsError, Trust};

/// Names of the files in a directory of credentials.
pub mod file {
    /// The cluster's id.
    pub const CLUSTER_ID: &str = "cluster-id";
    /// The authority's certificate, PEM.
    pub const CA_CERTIFICATE: &str = "ca.crt";
    /// The authority's key, PEM.
    pub const CA_KEY: &str = "ca.key";
    /// What opens the signing of a worker's certificate.
    pub const BOOTSTRAP_TOKEN: &str = "bootstrap-token";
    /// Role submitter.
    pub const SUBMIT_TOKEN: &str = "submit-token";
    /// Role viewer.
    pub const VIEW_TOKEN: &str = "view-token";
    /// Role admin.
    pub const ADMIN_TOKEN: &str = "admin-token";
}

/// Everything a fresh cluster needs, in memory. Whoever starts the cluster puts the two sets where scheduler and workers read them.
#[derive(Debug)]
pub struct NewCluster {
    cluster_id: String,
    authority: Authority,
    bootstrap: Secret,
    submit: Secret,
    view: Secret,
    admin: Secret,
}

impl NewCluster {
    /// Makes an authority and tokens for the cluster of this id.
    ///
    /// # Errors
    /// [`TlsError::ClusterId`]; when the system has no random numbers.
    pub fn create(cluster_id: &str) -> Result<NewCluster, TlsError> {
        Ok(NewCluster {
            authority: Authority::create(cluster_id)?,
            cluster_id: cluster_id.to_owned(),
            bootstrap: Secret::random()?,
            submit: Secret::random()?,
            view: Secret::random()?,
            admin: Secret::random()?,
        })
    }

    /// A random cluster id.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn random_id() -> Result<String, TlsError> {
        Ok(format!("c{}", &Secret::random()?.expose()[..31]))
    }

    /// The scheduler's files: name to content.
    pub fn scheduler_files(&self) -> BTreeMap<&'static str, String> {
        let mut files = self.worker_files();
        files.insert(file::CA_KEY, self.authority.key());
        files.insert(file::SUBMIT_TOKEN, self.submit.expose().to_owned());
        files.insert(file::VIEW_TOKEN, self.view.expose().to_owned());
        files.insert(file::ADMIN_TOKEN, self.admin.expose().to_owned());
        files
    }

    /// The workers' files.
    pub fn worker_files(&self) -> BTreeMap<&'static str, String> {
        BTreeMap::from([
            (file::CLUSTER_ID, self.cluster_id.clone()),
            (file::CA_CERTIFICATE, self.authority.certificate().to_owned()),
            (file::BOOTSTRAP_TOKEN, self.bootstrap.expose().to_owned()),
        ])
    }

    /// The authority.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What a submitter needs to reach the cluster at `https://host:port`.
    pub fn submitter(&self, address: &str) -> Connection {
        self.connection(address, &self.submit)
    }

    /// What the one who started the cluster needs to reach it.
    pub fn admin(&self, address: &str) -> Connection {
        self.connection(address, &self.admin)
    }

    fn connection(&self, address: &str, token: &Secret) -> Connection {
        Connection {
            address: address.to_owned(),
            cluster_id: self.cluster_id.clone(),
            ca_certificate: self.authority.certificate().to_owned(),
            token: token.expose().to_owned(),
            store_address: None,
        }
    }
}

/// The scheduler's set.
#[derive(Debug)]
pub struct SchedulerCredentials {
    /// Whom it believes.
    pub trust: Trust,
    /// What it signs with.
    pub authority: Authority,
    /// Opens the signing of a worker's certificate.
    pub bootstrap: Secret,
    /// Role submitter.
    pub submit: Secret,
    /// Role viewer, where there is one.
    pub view: Option<Secret>,
    /// Role admin, where there is one.
    pub admin: Option<Secret>,
}

impl SchedulerCredentials {
    /// Reads them.
    ///
    /// # Errors
    /// Which file is missing, is readable by everybody, or is not what it should be. No message shows a secret.
    pub fn read(directory: &Path) -> Result<SchedulerCredentials, TlsError> {
        let (cluster_id, certificate) = read_cluster(directory)?;
        let key = read_private(&directory.join(file::CA_KEY))?;
        let authority =
            Authority::from_pem(&cluster_id, &certificate, &key).map_err(|error| failed(&directory.join(file::CA_KEY), error))?;
        let optional = |name: &str| {
            let path = directory.join(name);
            if path.exists() { token(&path).map(Some) } else { Ok(None) }
        };
        Ok(SchedulerCredentials {
            trust: Trust::new(&cluster_id, &certificate)?,
            authority,
            bootstrap: token(&directory.join(file::BOOTSTRAP_TOKEN))?,
            submit: token(&directory.join(file::SUBMIT_TOKEN))?,
            view: optional(file::VIEW_TOKEN)?,
            admin: optional(file::ADMIN_TOKEN)?,
        })
    }
}

/// A worker's set.
#[derive(Clone, Debug)]
pub struct WorkerCredentials {
    /// Whom it believes.
    pub trust: Trust,
    /// What it shows to have its certificate signed.
    pub bootstrap: Secret,
}

impl WorkerCredentials {
    /// Reads them.
    ///
    /// # Errors
    /// As [`SchedulerCredentials::read`].
    pub fn read(directory: &Path) -> Result<WorkerCredentials, TlsError> {
        let (cluster_id, certificate) = read_cluster(directory)?;
        Ok(WorkerCredentials {
            trust: Trust::new(&cluster_id, &certificate)?,
            bootstrap: token(&directory.join(file::BOOTSTRAP_TOKEN))?,
        })
    }
}

fn read_cluster(directory: &Path) -> Result<(String, String), TlsError> {
    let path = directory.join(file::CLUSTER_ID);
    let cluster_id = read_public(&path)?.trim().to_owned();
    let certificate_path = directory.join(file::CA_CERTIFICATE);
    let certificate = read_public(&certificate_path)?;
    crate::check_cluster_id(&cluster_id).map_err(|error| failed(&path, error))?;
    Trust::new(&cluster_id, &certificate).map_err(|error| failed(&certificate_path, error))?;
    Ok((cluster_id, certificate))
}

fn token(path: &Path) -> Result<Secret, TlsError> {
    Secret::parse(&read_private(path)?).map_err(|why| failed(path, why))
}
