//! A namespace of a real cluster for one test: restricted, and with one user who has the one Role that the documentation asks for.
#![allow(clippy::unwrap_used, clippy::print_stdout, dead_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, AttachParams, DeleteParams, ListParams, PostParams};
use kube::{Client, Config};
use scalable_manifest::{KubernetesOptions, LoadOptions, Machine, Manifest, load};
use scalable_provider::Observation;
use scalable_provider_k8s::pods::{self, WorkerContext};
use scalable_provider_k8s::settings::Pool;
use scalable_provider_k8s::{Access, KubernetesLauncher, Launch, Probe, rights};
use serde_json::json;
use tokio::sync::mpsc;

/// The image that is on every node.
pub const IMAGE: &str = "localhost/busybox:1";
/// Longest wait for anything of a cluster that shares two cores.
pub const LONG: Duration = Duration::from_secs(90);

/// The kubeconfig of a cluster that tests may use, or a line that says what is skipped.
pub fn kubeconfig(test: &str) -> Option<PathBuf> {
    let path = std::env::var_os("SCALABLE_TEST_KUBECONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
    if path.is_none() {
        println!("skipped {test}: SCALABLE_TEST_KUBECONFIG names no cluster");
    }
    path
}

/// A namespace of its own.
pub struct Ground {
    pub name: String,
    pub admin: Client,
    config: Config,
}

impl Ground {
    pub async fn new(kubeconfig: PathBuf, what: &str) -> Ground {
        let access = Access { kubeconfig: Some(kubeconfig), context: None };
        let connection = access.connect().await.unwrap();
        let admin = connection.client;
        let name = format!("scalable-{what}-{}", std::process::id());
        let namespace: Namespace = serde_json::from_value(json!({
            "metadata": { "name": name, "labels": { "pod-security.kubernetes.io/enforce": "restricted" } },
        }))
        .unwrap();
        Api::<Namespace>::all(admin.clone()).create(&PostParams::default(), &namespace).await.unwrap();
        Ground { name, admin, config: connection.config }
    }

    /// Gives `scientist` the Role that `rights::manifests` asks for.
    pub async fn with_role(self) -> Ground {
        let rules: Vec<_> = rights::needed(true, true)
            .iter()
            .map(|right| {
                let resources: Vec<_> = right.resource.split(',').collect();
                json!({ "apiGroups": [right.group], "resources": resources, "verbs": right.verbs })
            })
            .collect();
        let role: Role = serde_json::from_value(json!({ "metadata": { "name": "scalable-user" }, "rules": rules })).unwrap();
        Api::<Role>::namespaced(self.admin.clone(), &self.name).create(&PostParams::default(), &role).await.unwrap();
        let binding: RoleBinding = serde_json::from_value(json!({
            "metadata": { "name": "scalable-user" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "scalable-user" },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "scientist" }],
        }))
        .unwrap();
        Api::<RoleBinding>::namespaced(self.admin.clone(), &self.name).create(&PostParams::default(), &binding).await.unwrap();
        self
    }

    /// The configuration of somebody else.
    pub fn config_of(&self, user: &str) -> Config {
        let mut config = self.config.clone();
        config.auth_info.impersonate = Some(user.to_owned());
        config
    }

    pub fn client_of(&self, user: &str) -> Client {
        Client::try_from(self.config_of(user)).unwrap()
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.admin.clone(), &self.name)
    }

    /// A launcher as `scientist`, for a stand-in of a scheduler that answers `/readyz`.
    pub fn launcher(&self, run: &str, pools: Vec<Pool>, options: KubernetesOptions) -> KubernetesLauncher {
        let script = "mkdir -p /scalable/state/www && echo ready > /scalable/state/www/readyz && \
                      trap 'exit 0' TERM; httpd -f -p 8787 -h /scalable/state/www & wait";
        KubernetesLauncher {
            client: self.client_of("scientist"),
            launch: Launch {
                cluster_id: cluster_id(run),
                run: run.to_owned(),
                project: "energy".to_owned(),
                target: "k8s".to_owned(),
                namespace: self.name.clone(),
                scheduler_image: IMAGE.to_owned(),
                scheduler_command: Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()]),
                scheduler_args: Vec::new(),
                probe: Probe { path: "/readyz".to_owned(), port: 8787, tls: false },
                options,
                pools,
                forwards: true,
                scheduler_secret: BTreeMap::from([("token".to_owned(), b"s".to_vec())]),
                worker_secret: BTreeMap::from([("token".to_owned(), b"w".to_vec())]),
            },
        }
    }

    /// Runs a command in a pod.
    pub async fn exec(&self, pod: &str, script: &str) {
        let parameters = AttachParams::default().stdout(false).stderr(true).container("worker");
        let mut process = self.pods().exec(pod, ["/bin/sh", "-c", script], &parameters).await.unwrap();
        process.take_status().unwrap().await;
    }

    /// Names of what is in the namespace by default.
    pub async fn is_empty(&self) -> bool {
        self.pods().list(&ListParams::default()).await.unwrap().items.is_empty()
    }

    pub async fn finish(self) {
        let namespaces: Api<Namespace> = Api::all(self.admin.clone());
        namespaces.delete(&self.name, &DeleteParams::default()).await.unwrap();
    }
}

pub fn cluster_id(run: &str) -> String {
    format!("cluster-of-{run}")
}

/// A manifest with the given targets' options and components, in YAML.
pub fn manifest(options: &str, components: &str) -> Manifest {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("scalable.yaml");
    let indented: String = options.lines().map(|line| format!("    {line}\n")).collect();
    let tasks = "tasks: {}\n";
    let text = format!(
        "version: 1\nproject: {{name: p}}\ntargets:\n  k8s:\n    provider: kubernetes\n    image: {IMAGE}\n{indented}components:\n{components}{tasks}"
    );
    std::fs::write(&path, &text).unwrap();
    let machine = Machine { milli_cpus: 1000, memory_bytes: 1 << 30 };
    let options = LoadOptions { target: Some("k8s".to_owned()), overlay: None, env: &|_| None, machine, strict: false };
    let loaded = load(&path, &options);
    loaded.manifest.unwrap_or_else(|| panic!("{:#?}\n{text}", loaded.diagnostics))
}

/// Pools of all components of a manifest.
pub fn pools(manifest: &Manifest, run: &str) -> Vec<Pool> {
    let options = manifest.target.kubernetes.clone().unwrap();
    let context = WorkerContext {
        cluster_id: cluster_id(run),
        run: run.to_owned(),
        scheduler_image: IMAGE.to_owned(),
        address: "https://nowhere:8786".to_owned(),
        secret: scalable_provider_k8s::objects::worker_secret_name(run),
    };
    manifest.components.iter().map(|component| pods::pool(manifest, &options, component, &context).unwrap()).collect()
}

/// Waits for the first observation that `wanted` has something to say about.
pub async fn until<T>(seen: &mut mpsc::Receiver<Observation>, what: &str, wanted: impl Fn(&Observation) -> Option<T>) -> T {
    let mut others = Vec::new();
    let found = tokio::time::timeout(LONG, async {
        loop {
            let observation = seen.recv().await.expect("the provider goes on");
            if let Some(found) = wanted(&observation) {
                return found;
            }
            others.push(observation);
        }
    });
    match found.await {
        Ok(found) => found,
        Err(_) => panic!("{what} was not seen; this was: {others:#?}"),
    }
}

/// Stands before the API server, and can stop to answer: connections stay open and nothing passes.
pub struct Proxy {
    pub config: Config,
    open: tokio::sync::watch::Sender<bool>,
}

impl Proxy {
    pub async fn before(config: &Config) -> Proxy {
        let host = config.cluster_url.host().unwrap().to_owned();
        let server = format!("{host}:{}", config.cluster_url.port_u16().unwrap_or(443));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut changed = config.clone();
        changed.cluster_url = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
        changed.tls_server_name = Some(host);
        let (open, opened) = tokio::sync::watch::channel(true);
        tokio::spawn(async move {
            while let Ok((here, _)) = listener.accept().await {
                let there = tokio::net::TcpStream::connect(&server).await.unwrap();
                let (from_here, to_here) = here.into_split();
                let (from_there, to_there) = there.into_split();
                tokio::spawn(pass(from_here, to_there, opened.clone()));
                tokio::spawn(pass(from_there, to_here, opened.clone()));
            }
        });
        Proxy { config: changed, open }
    }

    pub fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut opened: tokio::sync::watch::Receiver<bool>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(count) = from.read(&mut buffer).await else { return };
        if opened.wait_for(|open| *open).await.is_err() || count == 0 || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
