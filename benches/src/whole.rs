//! A real scheduler and real workers, as processes of their own, and runs of commands submitted to them.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use scalable::{Client, Event, Session};
use scalable_proto::v1;
use scalable_tls::NewCluster;
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

/// How the processes know each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wire {
    /// By a token, over plain connections, as on one machine.
    #[default]
    Plain,
    /// By certificates and tokens, over TLS, as between pods.
    Tls,
}

/// The processes and a client of them; all end when this is dropped.
pub struct Whole {
    scheduler: Child,
    workers: Vec<Child>,
    /// Where the scheduler listens.
    pub address: String,
    connection: Connection,
    /// What a worker is told of it.
    credentials: [String; 2],
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
        Self::over(Wire::Plain, programs, workers, worker_arguments)
    }

    /// As [`Whole::with`], over such connections.
    pub fn over(wire: Wire, programs: &Path, workers: Workers, worker_arguments: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let names: Vec<String> = (0..workers.number).map(|number| format!("bench-{number}")).collect();
        let secrets = Secrets::new(wire, directory.path(), &names)?;
        let mut scheduler = Command::new(programs.join("scalable-scheduler"))
            .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .args(&secrets.scheduler)
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
            let connection = secrets.connection(&address);
            Ok((runtime.block_on(connection.client())?, address, connection))
        });
        let (client, address, connection) = connected.inspect_err(|_| drop(scheduler.kill()))?;
        // From here on dropping it ends the scheduler.
        let mut whole = Whole {
            scheduler,
            workers: Vec::new(),
            address,
            connection,
            credentials: secrets.worker,
            client,
            runtime,
            directory,
            programs: programs.to_owned(),
            runs: 0,
        };
        for name in names {
            let worker = whole.worker(&name, workers.cpus, worker_arguments).spawn();
            whole.workers.push(worker.context("start scalable-worker")?);
        }
        Ok(whole)
    }

    /// What starts a further worker, which is the caller's.
    pub fn worker(&self, name: &str, cpus: u32, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("scalable-worker"));
        command
            .args(["--address", &self.address, "--memory", "4GiB", "--name", name, "--cpus", &cpus.to_string()])
            .args(&self.credentials)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if matches!(self.connection, Connection::Tls(_)) {
            // A worker's certificate is for one of those that were admitted.
            command.args(["--uid", name, "--peer-address", "127.0.0.1:0"]);
        }
        command
    }

    /// A session of this program, which lives no longer than the processes.
    pub async fn session(&self) -> Result<Session> {
        self.connection.session(self.directory.path()).await
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

/// What reaches a scheduler.
pub enum Connection {
    /// Its address and its token.
    Plain(String, String),
    /// A connection file's content.
    Tls(Box<scalable_tls::Connection>),
}

impl Connection {
    /// A client.
    pub async fn client(&self) -> Result<Client> {
        Ok(match self {
            Connection::Plain(address, token) => Client::connect(address, token).await?,
            Connection::Tls(connection) => Client::connect_with(connection).await?,
        })
    }

    /// A session. A file for it is made in `directory` where it needs one.
    pub async fn session(&self, directory: &Path) -> Result<Session> {
        Ok(match self {
            Connection::Plain(address, token) => Session::connect(address, token).await?,
            Connection::Tls(connection) => {
                let file = directory.join("connection.json");
                connection.write(&file)?;
                Session::connect_with_file(&file).await?
            }
        })
    }
}

/// Tokens or credentials, as files and arguments.
struct Secrets {
    scheduler: Vec<String>,
    worker: [String; 2],
    token: String,
    cluster: Option<NewCluster>,
}

impl Secrets {
    fn new(wire: Wire, directory: &Path, workers: &[String]) -> Result<Secrets> {
        let at = |name: &str| directory.join(name).display().to_string();
        let token = "0123456789abcdef".repeat(4);
        if wire == Wire::Plain {
            scalable_tls::write_private(&directory.join("token"), &token)?;
            let told = ["--token-file".to_owned(), at("token")];
            return Ok(Secrets { scheduler: told.to_vec(), worker: told, token, cluster: None });
        }
        let cluster = NewCluster::create(&NewCluster::random_id()?)?;
        for (name, files) in [("scheduler", cluster.scheduler_files()), ("workers", cluster.worker_files())] {
            std::fs::create_dir_all(directory.join(name))?;
            for (file, content) in files {
                scalable_tls::write_private(&directory.join(name).join(file), &content)?;
            }
        }
        let admitted: String = workers.iter().map(|name| format!("{name} {name} *\n")).collect();
        std::fs::write(directory.join("admitted"), admitted)?;
        let scheduler = ["--credentials", &at("scheduler"), "--admit", &at("admitted"), "--trust-loopback"].map(str::to_owned);
        let worker = ["--credentials".to_owned(), at("workers")];
        Ok(Secrets { scheduler: scheduler.to_vec(), worker, token, cluster: Some(cluster) })
    }

    fn connection(&self, address: &str) -> Connection {
        match &self.cluster {
            Some(cluster) => Connection::Tls(Box::new(cluster.submitter(address))),
            None => Connection::Plain(address.to_owned(), self.token.clone()),
        }
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

/// A run of `count` such tasks, a cpu each.
pub fn spec(name: &str, directory: &Path, count: u32, tasks: Tasks) -> v1::RunSpec {
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
