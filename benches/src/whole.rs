//! A real scheduler and real workers, as processes of their own, and runs of commands submitted to them.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use scalable::{Client, Event};
use scalable_proto::v1;
use tokio_stream::StreamExt;

/// What each task of a run is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tasks {
    /// Program and arguments.
    pub argv: &'static [&'static str],
    /// Each writes its standard output as a declared output.
    pub output: bool,
    /// Memory limit of each, bytes; 0 is none.
    pub memory: u64,
}

/// Which workers.
#[derive(Clone, Copy, Debug)]
pub struct Workers {
    /// How many processes.
    pub number: u32,
    /// Slots of each.
    pub cpus: u32,
}

/// The processes and a client of them; all end when this is dropped.
pub struct Whole {
    scheduler: Child,
    workers: Vec<Child>,
    /// Where the scheduler listens.
    pub address: String,
    /// What it asks for.
    pub token: String,
    client: Client,
    runtime: tokio::runtime::Runtime,
    directory: tempfile::TempDir,
    programs: PathBuf,
    runs: u32,
}

impl Whole {
    /// Builds the programs like this one and starts them, with one worker of two cpus and `worker_arguments`.
    pub fn start(worker_arguments: &[&str]) -> Result<Self> {
        Self::with(&build()?, Workers { number: 1, cpus: 2 }, worker_arguments)
    }

    /// Starts scheduler and workers; their programs lie in `programs`.
    pub fn with(programs: &Path, workers: Workers, worker_arguments: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let token_file = directory.path().join("token");
        let token = "0123456789abcdef".repeat(4);
        std::fs::write(&token_file, &token)?;
        std::fs::set_permissions(&token_file, PermissionsExt::from_mode(0o600))?;
        let mut scheduler = Command::new(programs.join("scalable-scheduler"))
            .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--token-file"])
            .arg(&token_file)
            .arg("--state-dir")
            .arg(directory.path().join("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start scalable-scheduler")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut said = String::new();
        let stdout = scheduler.stdout.take().context("it is piped")?;
        let connected = BufReader::new(stdout).read_line(&mut said).map_err(anyhow::Error::from).and_then(|_| {
            let line: serde_json::Value = serde_json::from_str(&said).with_context(|| format!("the scheduler said {said:?}"))?;
            let address = line["address"].as_str().context("the scheduler said no address")?.to_owned();
            Ok((runtime.block_on(Client::connect(&address, &token))?, address))
        });
        let (client, address) = connected.inspect_err(|_| drop(scheduler.kill()))?;
        // From here on dropping it ends the scheduler.
        let mut whole = Whole {
            scheduler,
            workers: Vec::new(),
            address,
            token,
            client,
            runtime,
            directory,
            programs: programs.to_owned(),
            runs: 0,
        };
        for number in 0..workers.number {
            let worker = whole.worker(&format!("bench-{number}"), workers.cpus, worker_arguments).spawn();
            whole.workers.push(worker.context("start scalable-worker")?);
        }
        Ok(whole)
    }

    /// What starts a further worker, which is the caller's.
    pub fn worker(&self, name: &str, cpus: u32, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("scalable-worker"));
        command
            .args(["--address", &self.address, "--memory", "4GiB", "--token-file"])
            .arg(self.directory.path().join("token"))
            .args(["--name", name, "--cpus", &cpus.to_string()])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// The scheduler's process.
    pub fn scheduler_pid(&self) -> u32 {
        self.scheduler.id()
    }

    /// The workers' processes, without those that they have started.
    pub fn worker_pids(&self) -> impl Iterator<Item = u32> {
        self.workers.iter().map(Child::id)
    }

    /// Wall time of a run of `count` such tasks, from its submit to its end.
    pub fn run(&mut self, count: u32, tasks: Tasks) -> Result<Duration> {
        self.runs += 1;
        let name = format!("run-bench-{}", self.runs);
        let directory = self.directory.path().join(&name);
        std::fs::create_dir_all(&directory)?;
        let spec = spec(&name, &directory, count, tasks);
        let client = self.client.clone();
        let wall = self.runtime.block_on(async {
            let begin = Instant::now();
            client.submit_run(spec).await?;
            let mut events = client.watch(&name).await?;
            let mut wall = None;
            while let Some(event) = events.next().await {
                match event? {
                    Event::Progress(progress) => match progress.state() {
                        v1::RunState::Succeeded => {
                            let wall = *wall.get_or_insert_with(|| begin.elapsed());
                            // Its records are written before its directory may be removed.
                            if progress.complete {
                                return Ok(wall);
                            }
                        }
                        v1::RunState::Failed | v1::RunState::Cancelled => bail!("the run ended badly: {}", progress.note),
                        _ => {}
                    },
                    Event::Failed(failed) => bail!("a task failed: {}", failed.report.unwrap_or_default().message),
                    Event::Missed(_) => {}
                }
            }
            bail!("the scheduler did not say the run's end")
        })?;
        std::fs::remove_dir_all(&directory)?;
        Ok(wall)
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        for child in self.workers.iter_mut().chain([&mut self.scheduler]) {
            // It may have ended already, which is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Builds the programs in this program's profile, and says where they lie.
pub fn build() -> Result<PathBuf> {
    let here = std::env::current_exe()?.parent().context("this program lies in a directory")?.to_owned();
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--quiet", "-p", "scalable-scheduler", "-p", "scalable-worker", "-p", "scalable-cli"])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    ensure!(
        cargo.status().context("start cargo")?.success(),
        "scalable, scalable-scheduler and scalable-worker could not be built"
    );
    Ok(here)
}

fn spec(name: &str, directory: &Path, count: u32, tasks: Tasks) -> v1::RunSpec {
    let literal = |text: &&str| v1::Text { pieces: vec![v1::Piece { kind: Some(v1::piece::Kind::Literal((*text).to_owned())) }] };
    let mut template = v1::TaskTemplate {
        component: "bench".to_owned(),
        command: Some(v1::task_template::Command::Argv(v1::Argv { args: tasks.argv.iter().map(literal).collect() })),
        ..v1::TaskTemplate::default()
    };
    if tasks.output {
        template.outputs = vec![v1::Output { name: "said".to_owned(), ..v1::Output::default() }];
        template.stdout = "said".to_owned();
    }
    let group = v1::GroupSpec {
        name: "task".to_owned(),
        template: Some(template),
        length: count,
        policy: Some(v1::Policy::default()),
        resources: Some(v1::Resources { milli_cpus: 1000, memory_bytes: tasks.memory, ..v1::Resources::default() }),
        ..v1::GroupSpec::default()
    };
    v1::RunSpec {
        name: name.to_owned(),
        project: "bench".to_owned(),
        directory: directory.display().to_string(),
        base_directory: directory.display().to_string(),
        groups: vec![group],
        ..v1::RunSpec::default()
    }
}
