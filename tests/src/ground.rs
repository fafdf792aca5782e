//! A namespace of a real Kubernetes for one test: restricted, with one user who has the one Role that the documentation asks for.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use scalable_provider_k8s::rights;
use serde_json::{Value, json};

use crate::{Finished, Run, Running, Sandbox, binary, until_within};

/// An image that is on every node of the test cluster: a shell and nothing of ours.
pub const IMAGE: &str = "localhost/busybox:1";

/// Longest wait for anything of a cluster whose parts share two cores.
pub const LONG: Duration = Duration::from_secs(120);

/// Names the kubeconfig of a cluster that the tests may use.
const KUBECONFIG: &str = "SCALABLE_TEST_KUBECONFIG";

/// Kinds of everything that a run makes.
const KINDS: &str = "all,secret,configmap,role,rolebinding,serviceaccount,pvc,networkpolicy";

/// What every namespace has, and what the test's user was given.
const NOT_OURS: [&str; 4] = [
    "configmap/kube-root-ca.crt",
    "serviceaccount/default",
    "role.rbac.authorization.k8s.io/scalable-user",
    "rolebinding.rbac.authorization.k8s.io/scalable-user",
];

/// The scheduler's image, as the cluster's nodes have it.
pub fn scheduler_image() -> String {
    std::env::var("SCALABLE_TEST_SCHEDULER_IMAGE").unwrap_or_else(|_| format!("scalable-scheduler:{}", env!("CARGO_PKG_VERSION")))
}

/// A namespace, and a sandbox whose programs know the cluster by its user's kubeconfig. The namespace is deleted at the end.
#[derive(Debug)]
pub struct Ground {
    /// The user's machine.
    pub sandbox: Sandbox,
    /// The namespace's name.
    pub namespace: String,
    admin: PathBuf,
    kubectl: PathBuf,
    lines: AtomicU32,
}

impl Ground {
    /// A namespace of its own; nothing, with a line that says what is skipped, where no cluster is named.
    pub fn new(what: &str) -> Option<Ground> {
        Some(Ground::without_rights(what)?.with_rights())
    }

    /// As [`Ground::new`], but the user has no right at all.
    #[allow(clippy::print_stdout, reason = "a test that is skipped says so")]
    pub fn without_rights(what: &str) -> Option<Ground> {
        let Some(admin) = std::env::var_os(KUBECONFIG).filter(|path| !path.is_empty()).map(PathBuf::from) else {
            println!("skipped {what}: {KUBECONFIG} names no cluster");
            return None;
        };
        Some(Ground::at(admin, what))
    }

    /// A namespace of the cluster with this administrator, whose user has no right yet.
    pub fn at(admin: PathBuf, what: &str) -> Ground {
        let beside = admin.with_file_name("bin").join("kubectl");
        let kubectl = if beside.is_file() { beside } else { PathBuf::from("kubectl") };
        let sandbox = Sandbox::new();
        let namespace = format!("scalable-{what}-{}", std::process::id());
        let kubeconfig = sandbox.path("kubeconfig").display().to_string();
        let sandbox = sandbox.env("KUBECONFIG", &kubeconfig).env("SCALABLE_SCHEDULER_IMAGE", &scheduler_image());
        let ground = Ground { sandbox, namespace, admin, kubectl, lines: AtomicU32::new(0) };
        ground.kubectl(&["create", "namespace", &ground.namespace]);
        ground.kubectl(&["label", "namespace", &ground.namespace, "pod-security.kubernetes.io/enforce=restricted"]);
        let mut config: Value =
            serde_json::from_str(&ground.kubectl(&["config", "view", "--raw", "--minify", "--flatten", "-o", "json"])).unwrap();
        config["users"][0]["user"]["as"] = json!("scientist");
        ground.sandbox.write("kubeconfig", config.to_string());
        ground
    }

    /// Gives the user the one Role that the documentation asks for.
    pub fn with_rights(self) -> Ground {
        let mut rights = rights::manifests(&self.namespace, None);
        rights.push_str(&rights::binding(&self.namespace, "scientist"));
        self.apply(&rights);
        self
    }

    /// With a variable in the environment of everything that the user starts.
    pub fn env(mut self, name: &str, value: &str) -> Ground {
        self.sandbox.set_env(name, value);
        self
    }

    /// The directory of the cluster, where `tests/cluster/up` has started it.
    pub fn own_cluster(&self) -> Option<PathBuf> {
        self.admin.parent().filter(|directory| directory.join("pid").is_dir()).map(Path::to_owned)
    }

    /// For faults that only the tests' own cluster can show; nothing, with a line that says what is skipped, on any other.
    #[allow(clippy::print_stdout, reason = "a test that is skipped says so")]
    pub fn with_own_cluster(self, what: &str) -> Option<Ground> {
        if self.own_cluster().is_none() {
            println!("skipped {what}: the cluster was not started by tests/cluster/up");
            return None;
        }
        Some(self)
    }

    /// The address of this machine, as pods of the tests' own cluster reach it.
    #[track_caller]
    pub fn machine(&self) -> String {
        let config: Value = serde_json::from_slice(&std::fs::read(self.sandbox.path("kubeconfig")).unwrap()).unwrap();
        let server = config["clusters"][0]["cluster"]["server"].as_str().unwrap_or_default().to_owned();
        let network = server.strip_prefix("https://").unwrap().splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
        format!("{network}.0.254")
    }

    /// Lets the user's programs reach the API server through a proxy on this port of this machine.
    pub fn through(&self, port: u16) {
        let mut config: Value = serde_json::from_slice(&std::fs::read(self.sandbox.path("kubeconfig")).unwrap()).unwrap();
        config["clusters"][0]["cluster"]["server"] = json!(format!("https://127.0.0.1:{port}"));
        self.sandbox.write("kubeconfig", config.to_string());
    }

    /// Makes the namespace that of the user's current context.
    pub fn current_namespace(&self) {
        let mut config: Value = serde_json::from_slice(&std::fs::read(self.sandbox.path("kubeconfig")).unwrap()).unwrap();
        config["contexts"][0]["context"]["namespace"] = json!(self.namespace);
        self.sandbox.write("kubeconfig", config.to_string());
    }

    /// Runs one of the programs of `tests/cluster` on the cluster's directory.
    #[track_caller]
    pub fn fault(&self, cluster: &Path, program: &str, arguments: &[&str]) {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster").join(program);
        let output = Command::new(&program).arg(cluster).args(arguments).output().unwrap();
        assert!(output.status.success(), "{} {arguments:?}: {}", program.display(), said(&output));
    }

    /// The kubeconfig of the administrator.
    pub fn admin(&self) -> &Path {
        &self.admin
    }

    /// Runs kubectl as the administrator, in the namespace, and returns what it printed.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let output = self.try_kubectl(arguments);
        assert!(output.status.success(), "kubectl {arguments:?}: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// As [`Ground::kubectl`], whatever comes of it.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Output {
        self.kubectl_command(&self.admin, "60s").args(arguments).output().unwrap()
    }

    /// A kubectl that goes on, as the user.
    pub fn start_kubectl(&self, name: &str, arguments: &[&str]) -> Running {
        let mut command = self.kubectl_command(&self.sandbox.path("kubeconfig"), "0");
        command.args(arguments);
        Running::start(command, &self.sandbox.path(""), name)
    }

    /// Starts a line of a shell that finds `scalable` and `kubectl`, with this kubeconfig.
    pub fn shell(&self, kubeconfig: &Path, line: &str) -> Running {
        let mut command = self.sandbox.command(Path::new("/bin/sh"));
        let beside =
            [binary("scalable"), self.kubectl.clone()].into_iter().filter_map(|program| Some(program.parent()?.to_owned()));
        // A kubectl without a directory is found in the PATH.
        let beside = beside.filter(|directory| !directory.as_os_str().is_empty());
        let inherited = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(beside.chain(std::env::split_paths(&inherited))).unwrap();
        command.args(["-c", line]).env("PATH", path).env("KUBECONFIG", kubeconfig);
        let number = self.lines.fetch_add(1, Ordering::Relaxed);
        Running::start(command, &self.sandbox.path(""), &format!("line-{number:02}"))
    }

    /// Writes a line for each change of a worker pod, until it is dropped: what happened, the pod's name, since when it is being deleted,
    /// and what `path` (of JSONPath, from the pod) says.
    pub fn watch_pods(&self, path: &str) -> Running {
        let line = path.replace("{.", "{.object.");
        let line = format!("jsonpath={{.type}} {{.object.metadata.name}} {{.object.metadata.deletionTimestamp}} {line}{{'\\n'}}");
        let arguments = ["get", "pods", "-l", "scalable.io/role=worker", "--watch", "--output-watch-events", "-o", &line];
        let mut command = self.kubectl_command(&self.admin, "0");
        command.args(arguments);
        Running::start(command, &self.sandbox.path(""), "watch")
    }

    fn kubectl_command(&self, kubeconfig: &Path, timeout: &str) -> Command {
        let mut command = self.sandbox.command(&self.kubectl);
        command.arg("--kubeconfig").arg(kubeconfig).arg("--cache-dir").arg(self.sandbox.path("kubectl-cache"));
        command.args(["--namespace", &self.namespace, "--request-timeout", timeout]);
        command
    }

    /// Applies objects.
    #[track_caller]
    pub fn apply(&self, yaml: &str) {
        let file = self.sandbox.write("apply.yaml", yaml);
        self.kubectl(&["apply", "-f", &file.display().to_string()]);
    }

    /// Writes scalable.yaml: one target of the namespace with small pods, `target` as further keys of it, and `body`.
    pub fn manifest(&self, target: &str, body: &str) {
        let mut keys = "    provider: kubernetes\n".to_owned();
        for (key, default) in [
            ("namespace:", self.namespace.as_str()),
            ("image:", IMAGE),
            ("adaptive:", "{ minimum: 1, maximum: 2 }"),
            ("resources:", "{ requests: { cpu: 200m, memory: 64Mi }, limits: { memory: 128Mi } }"),
        ] {
            if !target.lines().any(|line| line.starts_with(key)) {
                keys.push_str(&format!("    {key} {default}\n"));
            }
        }
        for line in target.lines().filter(|line| !line.trim().is_empty()) {
            keys.push_str(&format!("    {line}\n"));
        }
        self.sandbox.write("scalable.yaml", format!("version: 1\nproject: {{ name: e2e }}\ntargets:\n  k8s:\n{keys}{body}"));
    }

    /// Starts `scalable run --target k8s` with more arguments.
    pub fn run(&self, more: &[&str]) -> Running {
        self.sandbox.start("scalable", &[&["run", "--target", "k8s"], more].concat())
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run_to_end(&self, more: &[&str]) -> Finished {
        self.run(more).wait_within(LONG).calm()
    }

    /// Waits until a run without tasks says that its cluster is ready, and returns its connection file.
    #[track_caller]
    pub fn connection(&self, run: &Running) -> String {
        until_within(LONG, "the cluster to be ready", || {
            let said = run.stdout();
            let file = said.lines().find_map(|line| line.trim().strip_prefix("connection "))?.trim().to_owned();
            said.contains("the cluster is ready").then_some(file)
        })
    }

    /// The pods that a label selector names.
    #[track_caller]
    pub fn pods(&self, selector: &str) -> Vec<Value> {
        let list: Value = serde_json::from_str(&self.kubectl(&["get", "pods", "-l", selector, "-o", "json"])).unwrap();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// The worker pods that run, by name.
    #[track_caller]
    pub fn workers(&self) -> Vec<String> {
        let running = |pod: &&Value| pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null();
        let pods = self.pods("scalable.io/role=worker");
        pods.iter().filter(running).map(name_of).collect()
    }

    /// Runs a shell script in a worker pod; true when it succeeded.
    pub fn exec(&self, pod: &str, script: &str) -> bool {
        self.try_kubectl(&["exec", pod, "-c", "worker", "--", "/bin/sh", "-c", script]).status.success()
    }

    /// Lets the tasks of every worker go on that wait for `$HOME/NAME`, and of those that start, until `run` has ended.
    #[track_caller]
    pub fn open_gate(&self, name: &str, run: Running) -> Finished {
        let mut open = std::collections::BTreeSet::new();
        until_within(LONG, "the end of a run whose gate is open", || {
            if run.ended() {
                return Some(());
            }
            for pod in self.workers() {
                if !open.contains(&pod) && self.exec(&pod, &format!("touch $HOME/{name}")) {
                    open.insert(pod);
                }
            }
            None
        });
        run.wait().calm()
    }

    /// What of ours is in the namespace.
    #[track_caller]
    pub fn ours(&self) -> Vec<String> {
        let names = self.kubectl(&["get", KINDS, "-o", "name"]);
        names.lines().filter(|name| !NOT_OURS.contains(name)).map(str::to_owned).collect()
    }

    /// Asserts that nothing of ours is in the namespace.
    #[track_caller]
    pub fn nothing_is_left(&self) {
        let left = self.ours();
        assert!(left.is_empty(), "still in {}: {left:#?}", self.namespace);
    }

    /// Waits until nothing of ours is in the namespace.
    #[track_caller]
    pub fn becomes_empty(&self, limit: Duration) {
        until_within(limit, &format!("namespace {} to be empty: {:#?}", self.namespace, self.ours()), || {
            self.ours().is_empty().then_some(())
        });
    }

    /// The one run of the sandbox.
    #[track_caller]
    pub fn last_run(&self) -> Run {
        self.sandbox.last_run()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for arguments in [&["get", KINDS, "-o", "wide"][..], &["get", "events", "--sort-by=.lastTimestamp"]] {
                eprintln!("{}", String::from_utf8_lossy(&self.try_kubectl(arguments).stdout));
            }
            let logs = self.try_kubectl(&["logs", "-l", "scalable.io/role=scheduler", "--tail", "30"]);
            eprintln!("{}", String::from_utf8_lossy(&logs.stdout));
        }
        self.try_kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]);
    }
}

/// The name of an object.
fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn said(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
