//! What can be typed. Only declarations: what a command does lives in `commands/`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::kubernetes::Way;
use crate::ui::Format;

/// Runs scientific workflows, from a laptop to a cluster.
#[derive(Debug, Parser)]
#[command(name = "scalable", version, arg_required_else_help = true, max_term_width = 120)]
#[command(
    after_help = "Exit codes: 0 all succeeded or detached; 1 a task failed or somebody else cancelled; 2 usage or manifest;\n\
    3 infrastructure; 130 cancelled by Ctrl-C; 143 cancelled by SIGTERM.\nRUN is the name of a run, a unique beginning of it, or @last."
)]
pub struct Cli {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Globals {
    /// How data is written to stdout: for people, or one JSON document with a `schema`
    #[arg(short = 'o', long = "output-format", value_enum, default_value = "text", global = true, value_name = "FORMAT")]
    #[arg(help_heading = "Options of every command")]
    pub format: Format,
    /// Directory of the run directories
    #[arg(
        long,
        env = "SCALABLE_RUNS_DIR",
        default_value = ".scalable/runs",
        global = true,
        value_name = "DIR",
        hide_env_values = true
    )]
    #[arg(help_heading = "Options of every command")]
    pub runs_dir: PathBuf,
    /// No progress on stderr
    #[arg(long, global = true, help_heading = "Options of every command")]
    pub no_progress: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check a manifest
    Validate(ValidateArgs),
    /// Show what a run would do
    Plan(PlanArgs),
    /// Run a workflow
    Run(RunArgs),
    /// Give one command to a running scheduler
    Submit(SubmitArgs),
    /// Show the state of a run
    Status(StatusArgs),
    /// Show what tasks have written
    Logs(LogsArgs),
    /// Say why a task is in the state it is in
    Explain(ExplainArgs),
    /// Cancel a run, a group or a task
    Cancel(CancelArgs),
    /// Run again what failed
    Retry(RetryArgs),
    /// Watch a run that goes on without a command line
    Attach(AttachArgs),
    /// Sum up a run that is over
    Report(ReportArgs),
    /// Open a shell where a task failed
    Shell(ShellArgs),
    /// Stop the scheduler and the workers of a run
    Down(DownArgs),
    /// What an administrator of Kubernetes is asked for
    K8s(K8sArgs),
    /// Print a completion script
    Completions(CompletionsArgs),
    /// Print the version
    Version,
}

/// Which manifest, and how it is read.
#[derive(Clone, Debug, Args)]
pub struct ManifestArgs {
    /// The manifest
    #[arg(env = "SCALABLE_MANIFEST", default_value = "scalable.yaml", hide_env_values = true)]
    pub manifest: PathBuf,
    /// Where to run: a name under `targets`
    #[arg(long, env = "SCALABLE_TARGET", hide_env_values = true)]
    pub target: Option<String>,
    /// An overlay of the manifest
    #[arg(long, value_name = "NAME")]
    pub overlay: Option<String>,
    /// Warnings are errors
    #[arg(long)]
    pub strict: bool,
}

#[derive(Debug, Args)]
pub struct ValidateArgs {
    #[command(flatten)]
    pub manifest: ManifestArgs,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub manifest: ManifestArgs,
    /// Accepted for compatibility: a plan never runs anything
    #[arg(long)]
    pub dry_run: bool,
    /// Write the plan there, and manifest.lock beside it
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub manifest: ManifestArgs,
    /// Plan only
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub how: HowArgs,
    /// Check the whole workflow in seconds: one element a group, declared outputs touched, nothing executed
    #[arg(long)]
    pub stub: bool,
    /// A manifest without tasks: end after so much time without work, for example 30m
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = parse_duration)]
    pub idle_ttl: std::time::Duration,
    /// Start the target's cluster and run COMMAND, which drives it, instead of the manifest's tasks
    #[arg(long, requires = "command", conflicts_with_all = ["detach", "stub", "dry_run"])]
    pub workflow: bool,
    /// The driver: finds SCALABLE_ADDRESS, SCALABLE_TOKEN_FILE, SCALABLE_TARGET and SCALABLE_RUN in its environment
    #[arg(last = true, requires = "workflow", value_name = "COMMAND")]
    pub command: Vec<std::ffi::OsString>,
}

/// How a run is carried out.
#[derive(Clone, Debug, Args)]
pub struct HowArgs {
    /// Return as soon as the run is accepted
    #[arg(long)]
    pub detach: bool,
    /// Start nothing new after so many failed tasks; 0 is no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub max_failures: u32,
    /// Directories of failed attempts to keep
    #[arg(long, value_name = "N")]
    pub keep_failed: Option<u32>,
    /// Name of the run instead of one made from time and project
    #[arg(long)]
    pub name: Option<String>,
    #[command(flatten)]
    pub scheduler: SchedulerArgs,
    #[command(flatten)]
    pub kubernetes: KubernetesArgs,
    #[command(flatten)]
    pub way: WayArgs,
}

/// How a scheduler on Kubernetes is reached, where not by ports that the API server forwards.
#[derive(Clone, Debug, Default, Args)]
pub struct WayArgs {
    /// Reach the scheduler's port 8786 at this address, where an ingress, a load balancer or a node passes its TLS on as it is
    #[arg(long, value_name = "HOST:PORT", requires = "store_address", value_parser = parse_address)]
    pub scheduler_address: Option<String>,
    /// Reach its port 8788, from which files come, at this one
    #[arg(long, value_name = "HOST:PORT", requires = "scheduler_address", value_parser = parse_address)]
    pub store_address: Option<String>,
}

/// Which Kubernetes cluster, for targets of that provider.
#[derive(Clone, Debug, Default, Args)]
pub struct KubernetesArgs {
    /// The kubeconfig; else KUBECONFIG, ~/.kube/config, or the pod's own service account
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// A context of it instead of its current one
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// Runs on Kubernetes that are found in their namespace, whatever directory or machine they were started from.
#[derive(Clone, Debug, Default, Args)]
pub struct ElsewhereArgs {
    /// Find the run in this namespace of Kubernetes, wherever it was started; with --kubeconfig or --context alone: the context's namespace
    #[arg(short = 'n', long, value_name = "NAME")]
    pub namespace: Option<String>,
    #[command(flatten)]
    pub cluster: KubernetesArgs,
    #[command(flatten)]
    pub way: WayArgs,
}

impl WayArgs {
    /// How a scheduler is reached, from inside its cluster or not.
    pub fn way(&self, inside: bool) -> Way {
        Way::of(self.scheduler_address.as_deref(), self.store_address.as_deref(), inside)
    }
}

impl ElsewhereArgs {
    /// Something of it was given.
    pub fn is_given(&self) -> bool {
        self.namespace.is_some() || self.cluster.kubeconfig.is_some() || self.cluster.context.is_some()
    }
}

/// A scheduler that runs already.
#[derive(Clone, Debug, Args)]
pub struct SchedulerArgs {
    /// Use the scheduler at this address
    #[arg(long, env = "SCALABLE_ADDRESS", hide_env_values = true, value_name = "HOST:PORT")]
    pub address: Option<String>,
    /// File with that scheduler's token; found by itself for schedulers started from here
    #[arg(long, env = "SCALABLE_TOKEN_FILE", hide_env_values = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Use the cluster that this connection file names, beyond this machine
    #[arg(long, env = "SCALABLE_CONNECTION", hide_env_values = true, value_name = "FILE", conflicts_with_all = ["address", "token_file"])]
    pub connection: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct SubmitArgs {
    #[command(flatten)]
    pub scheduler: SchedulerArgs,
    /// Name of the task
    #[arg(long, default_value = "task")]
    pub name: String,
    /// Component the task runs in
    #[arg(long, default_value = "default")]
    pub component: String,
    /// Cpus: 1, 0.5 or 500m
    #[arg(long, default_value = "1", value_parser = parse_cpus)]
    pub cpus: u64,
    /// Memory: 512M, 2G
    #[arg(long, default_value = "0", value_parser = parse_bytes)]
    pub memory: u64,
    /// Gpus
    #[arg(long, default_value_t = 0)]
    pub gpus: u64,
    /// Further attempts after a failure
    #[arg(long, default_value_t = 0)]
    pub retries: u32,
    /// Longest time of an attempt, for example 10m
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<std::time::Duration>,
    /// A variable of the task's environment
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub env: Vec<(String, String)>,
    /// Return as soon as the task is accepted
    #[arg(long)]
    pub detach: bool,
    /// The command, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The run; @last, or with --namespace a list of the runs that are there
    pub run: Option<String>,
    #[command(flatten)]
    pub scheduler: SchedulerArgs,
    #[command(flatten)]
    pub elsewhere: ElsewhereArgs,
    /// List all runs
    #[arg(long, conflicts_with = "run")]
    pub all: bool,
}

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// A run, group[index], group[name=value,…] or run/group[index]
    pub what: Option<String>,
    /// The run, where TASK does not name it
    #[arg(long, default_value = "@last")]
    pub run: String,
    /// Go on with what is written from now on, until the run is over
    #[arg(short, long)]
    pub follow: bool,
    /// Only tasks that have failed
    #[arg(long)]
    pub failed: bool,
    /// Which attempt; the last one by default
    #[arg(long, value_name = "N")]
    pub attempt: Option<u32>,
    /// Which stream
    #[arg(long, value_enum, default_value = "both")]
    pub stream: StreamChoice,
    #[command(flatten)]
    pub elsewhere: ElsewhereArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum StreamChoice {
    Both,
    Stdout,
    Stderr,
}

#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// group[index], group[name=value,…], run/group[index], or a plan.json
    pub what: String,
    /// The run, where TASK does not name it
    #[arg(long, default_value = "@last")]
    pub run: String,
    #[command(flatten)]
    pub elsewhere: ElsewhereArgs,
}

#[derive(Debug, Args)]
pub struct CancelArgs {
    /// A run, run/group or run/group[index]
    #[arg(default_value = "@last")]
    pub what: String,
    /// Written into the records
    #[arg(long, default_value = "cancelled by the user")]
    pub reason: String,
    #[command(flatten)]
    pub elsewhere: ElsewhereArgs,
}

#[derive(Debug, Args)]
pub struct RetryArgs {
    /// The run
    #[arg(default_value = "@last")]
    pub run: String,
    /// Take over every committed output and run the rest
    #[arg(long, required = true)]
    pub failed: bool,
    #[command(flatten)]
    pub how: HowArgs,
}

#[derive(Debug, Args)]
pub struct AttachArgs {
    /// The run
    #[arg(default_value = "@last")]
    pub run: String,
    #[command(flatten)]
    pub elsewhere: ElsewhereArgs,
}

#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The run; the newest one by default
    #[arg(long, value_name = "RUN", conflicts_with_all = ["latest", "last", "compare"])]
    pub run_id: Option<String>,
    /// The newest run
    #[arg(long)]
    pub latest: bool,
    /// The newest run
    #[arg(long)]
    pub last: bool,
    /// Only the failures, each in full
    #[arg(long)]
    pub failures: bool,
    /// Two runs side by side
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    pub compare: Option<Vec<String>>,
    /// As -o
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Write the report there
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ShellArgs {
    /// group[index], group[name=value,…] or run/group[index]
    pub task: String,
    /// The run, where TASK does not name it
    #[arg(long, default_value = "@last")]
    pub run: String,
    /// Which attempt; the last one that was kept by default
    #[arg(long, value_name = "N")]
    pub attempt: Option<u32>,
    /// Instead of a shell: this command, after --
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct DownArgs {
    /// The run
    #[arg(default_value = "@last")]
    pub run: String,
    #[command(flatten)]
    pub elsewhere: ElsewhereArgs,
    /// Every run in the namespace
    #[arg(long, conflicts_with = "run")]
    pub all: bool,
    /// Do not ask before every run is taken down
    #[arg(long, requires = "all")]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct K8sArgs {
    #[command(subcommand)]
    pub command: K8sCommand,
}

#[derive(Debug, Subcommand)]
pub enum K8sCommand {
    /// Print the Role that whoever starts runs needs, and NetworkPolicies, for `kubectl apply -f -`
    Manifests(ManifestsArgs),
}

#[derive(Debug, Args)]
pub struct ManifestsArgs {
    /// For this namespace; else that of the kubeconfig's context
    #[arg(short = 'n', long, value_name = "NAME")]
    pub namespace: Option<String>,
    #[command(flatten)]
    pub cluster: KubernetesArgs,
    /// Give the Role to this user
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// A service account for schedulers, which a target names as `service_account`: then users need no right to make accounts and Roles
    #[arg(long, value_name = "NAME")]
    pub service_account: Option<String>,
}

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// For which shell
    pub shell: clap_complete::Shell,
}

/// `10`, `30s`, `10m`, `2h`, `1d`.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let bad = || format!("{text:?} is not a time: write for example 30s, 10m or 2h");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 = digits.trim().parse().map_err(|_| bad())?;
    let unit = match &text[digits.len()..] {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(bad()),
    };
    std::time::Duration::try_from_secs_f64(number * unit).map_err(|_| bad())
}

/// `1`, `0.5`, `500m` as thousandths.
pub fn parse_cpus(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a number of cpus: write for example 1, 0.5 or 500m");
    let milli = match text.strip_suffix('m') {
        Some(milli) => milli.parse::<f64>().map_err(|_| bad())?,
        None => text.parse::<f64>().map_err(|_| bad())? * 1000.0,
    };
    if milli.is_finite() && (0.0..=1e9).contains(&milli) { Ok(milli.ceil() as u64) } else { Err(bad()) }
}

/// A host's name or address and a port.
fn parse_address(text: &str) -> Result<String, String> {
    let good = text.rsplit_once(':').is_some_and(|(host, port)| {
        let named = !host.is_empty() && !host.contains(['/', '@', ' ']) && (!host.contains(':') || host.starts_with('['));
        named && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    good.then(|| text.to_owned())
        .ok_or_else(|| format!("{text:?} is not HOST:PORT, such as runs.example.org:8786 or 192.0.2.7:30086"))
}

/// `512M` (10^6), `512Mi` or `512MiB` (2^20), plain bytes.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not an amount of memory: write for example 512M or 2Gi");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 = digits.trim().parse().map_err(|_| bad())?;
    let unit = match text[digits.len()..].trim_end_matches(['B', 'b']) {
        "" => 1.0,
        "k" | "K" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        "Ti" => 1_099_511_627_776.0,
        _ => return Err(bad()),
    };
    let bytes = number * unit;
    if bytes.is_finite() && (0.0..=1e18).contains(&bytes) { Ok(bytes.ceil() as u64) } else { Err(bad()) }
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not NAME=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_declarations_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn amounts() {
        assert_eq!(parse_cpus("0.5"), Ok(500));
        assert_eq!(parse_cpus("500m"), Ok(500));
        assert_eq!(parse_bytes("512Mi"), Ok(512 << 20));
        assert_eq!(parse_bytes("1.5GB"), Ok(1_500_000_000));
        assert_eq!(parse_duration("1.5m"), Ok(std::time::Duration::from_secs(90)));
        for bad in ["", "-1", "x", "1e400", "nan", "inf", "1q", "é"] {
            assert!(parse_cpus(bad).is_err() && parse_bytes(bad).is_err() && parse_duration(bad).is_err(), "{bad:?}");
        }
    }
}
