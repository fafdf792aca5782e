//! How soon a pool without workers has one: from the submit of a task to the registration of the worker that a pod of its own runs, on a
//! real cluster, beside the start of a plain pod of the same shape.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use scalable::Client;
use scalable_proto::v1;
use serde_json::json;

use crate::table::percentile;
use crate::whole;

/// Longest wait for anything.
const LONG: Duration = Duration::from_secs(120);
/// What a worker in an empty pool may take, seconds.
const GOAL: f64 = 3.0;

/// What is measured, and where.
#[derive(Args, Debug)]
pub struct KubernetesOptions {
    /// Kubeconfig of a cluster's administrator; kubectl lies in `bin` beside it or on PATH
    #[arg(long, env = "SCALABLE_TEST_KUBECONFIG", value_name = "FILE")]
    kubeconfig: PathBuf,
    /// Image of the scheduler
    #[arg(long, env = "SCALABLE_TEST_SCHEDULER_IMAGE", default_value_t = format!("scalable-scheduler:{}", env!("CARGO_PKG_VERSION")), value_name = "IMAGE")]
    scheduler_image: String,
    /// Image of the workers, with a shell, which every node has
    #[arg(long, default_value = "localhost/busybox:1", value_name = "IMAGE")]
    image: String,
    /// How often
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Also write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Take the programs from here instead of building them
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

/// A namespace that is deleted when this is dropped.
struct Namespace {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    name: String,
}

impl Namespace {
    fn new(kubeconfig: &Path) -> Result<Self> {
        let beside = kubeconfig.with_file_name("bin").join("kubectl");
        let kubectl = if beside.is_file() { beside } else { PathBuf::from("kubectl") };
        let name = format!("scalable-bench-{}", std::process::id());
        let namespace = Namespace { kubectl, kubeconfig: kubeconfig.to_owned(), name };
        namespace.run(&["create", "namespace", &namespace.name])?;
        Ok(namespace)
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(["--namespace", &self.name]).args(arguments);
        let output = command.output().context("start kubectl")?;
        ensure!(output.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Seconds from a pod's creation to its running, with an init container as a worker's has one.
    fn pod(&self, number: u32, image: &str) -> Result<f64> {
        let name = format!("plain-{number}");
        let container = |name: &str, command: &str| {
            let limits = json!({ "requests": { "cpu": "200m", "memory": "64Mi" }, "limits": { "memory": "128Mi" } });
            json!({ "name": name, "image": image, "command": ["/bin/sh", "-c", command], "resources": limits })
        };
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
            "spec": {
                "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
                "initContainers": [container("install", "true")], "containers": [container("worker", "sleep 3600")],
            },
        });
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), pod.to_string())?;
        let begin = Instant::now();
        self.run(&["create", "-f", &file.path().display().to_string()])?;
        self.run(&["wait", "--for=jsonpath={.status.phase}=Running", "--timeout=120s", &format!("pod/{name}")])?;
        let took = begin.elapsed().as_secs_f64();
        self.run(&["delete", "pod", &name, "--wait=true"])?;
        Ok(took)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = self.run(&["delete", "namespace", &self.name, "--wait=false"]) {
            eprintln!("{error}");
        }
    }
}

/// `scalable run` of a cluster without tasks, which is interrupted when this is dropped.
struct Cluster(Child);

impl Cluster {
    /// Starts it, and returns the connection file that it names.
    fn start(programs: &Path, directory: &Path, options: &KubernetesOptions) -> Result<(Self, PathBuf)> {
        let mut command = Command::new(programs.join("scalable"));
        command.args(["run", "--target", "k8s"]).current_dir(directory).env("SCALABLE_SCHEDULER_IMAGE", &options.scheduler_image);
        command.env("KUBECONFIG", &options.kubeconfig).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("start scalable")?;
        let stdout = child.stdout.take().context("it is piped")?;
        let cluster = Cluster(child);
        for line in BufReader::new(stdout).lines() {
            if let Some(file) = line?.trim().strip_prefix("connection ") {
                return Ok((cluster, PathBuf::from(file.trim())));
            }
        }
        bail!(
            "the cluster did not say how to connect: run `scalable run --target k8s` with the manifest of this benchmark by hand"
        )
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT);
        let _ = self.0.wait();
    }
}

/// Measures, prints and judges.
#[allow(clippy::print_stdout, reason = "the table is what it is for")]
pub fn run(options: &KubernetesOptions) -> Result<()> {
    let programs = options.programs.clone().map_or_else(whole::build, Ok)?;
    let namespace = Namespace::new(&options.kubeconfig)?;
    let directory = tempfile::tempdir()?;
    let manifest = format!(
        "version: 1\nproject: {{ name: bench }}\ntargets:\n  k8s:\n    provider: kubernetes\n    namespace: {}\n    image: {}\n    \
         resources: {{ requests: {{ cpu: 200m, memory: 64Mi }}, limits: {{ memory: 128Mi }} }}\n    \
         adaptive: {{ minimum: 0, maximum: 1, scale_down_delay: 1s, idle_timeout: 1s, scale_up_interval: 1s }}\n",
        namespace.name, options.image
    );
    std::fs::write(directory.path().join("scalable.yaml"), manifest)?;
    let (cluster, connection) = Cluster::start(&programs, directory.path(), options)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut registered, mut plain) = (Vec::new(), Vec::new());
    let client = runtime.block_on(async {
        let connection = scalable_tls::Connection::read(&connection)?;
        anyhow::Ok(Client::connect_with(&connection).await?)
    })?;
    // The first of each pays for what is made once.
    for round in 0..=options.rounds {
        let worker = runtime.block_on(first_worker(&client, round))?;
        let pod = namespace.pod(round, &options.image)?;
        if round > 0 {
            registered.push(worker);
            plain.push(pod);
        }
    }
    drop(cluster);
    let of = |seconds: &[f64]| (percentile(seconds, 0.5), seconds.iter().copied().fold(0.0, f64::max));
    let ((worker, worst), (pod, worst_pod)) = (of(&registered), of(&plain));
    println!("{:40} {:>8} {:>8}", "seconds", "median", "worst");
    println!("{:40} {worker:8.2} {worst:8.2}", "submit to registered worker");
    println!("{:40} {pod:8.2} {worst_pod:8.2}", "a plain pod of that shape, running");
    println!("{:40} {:8.2}", "ratio of the medians", worker / pod);
    let met = worker <= GOAL;
    println!("goal: at most {GOAL} s: {}", if met { "met" } else { "NOT met" });
    let figures = json!({
        "empty_pool_s": { "median": worker, "worst": worst, "all": registered }, "plain_pod_s": { "median": pod, "worst": worst_pod, "all": plain },
        "ratio": worker / pod, "goal_s": GOAL, "met": met,
    });
    println!("{figures}");
    if let Some(file) = &options.json {
        std::fs::write(file, format!("{figures:#}\n"))?;
    }
    ensure!(met, "a worker of an empty pool took {worker:.2} s");
    Ok(())
}

/// Seconds from a submit to the first worker, in a cluster that has none and goes back to none.
async fn first_worker(client: &Client, round: u32) -> Result<f64> {
    let begin = Instant::now();
    client.submit_run(task(round)).await?;
    until(client, |status| !status.workers.is_empty()).await?;
    let took = begin.elapsed().as_secs_f64();
    until(client, |status| status.workers.is_empty()).await?;
    Ok(took)
}

async fn until(client: &Client, holds: impl Fn(&v1::StatusReply) -> bool) -> Result<()> {
    let begin = Instant::now();
    while !holds(&client.status("").await?) {
        ensure!(begin.elapsed() < LONG, "waited {LONG:?} for a worker to come or to go");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// A task that fits into the smallest worker, of a run whose directory is not shared.
fn task(round: u32) -> v1::RunSpec {
    let mut spec =
        whole::spec(&format!("bench-{round}"), Path::new(""), 1, whole::Tasks { argv: &["/bin/true"], ..Default::default() });
    spec.fetched = true;
    for group in &mut spec.groups {
        group.resources = Some(v1::Resources { milli_cpus: 100, ..v1::Resources::default() });
    }
    spec
}
