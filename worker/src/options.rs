//! Flags of `scalable-worker`, and quantities as people write them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use scalable_proto::v1::{NamedAmount, Resources};

use crate::limits::Limits;

/// The agent: registers with a scheduler and runs its tasks as child processes.
///
/// SIGTERM and SIGINT drain it: no new work, what runs may finish within the deadline, the rest is handed back. SIGHUP is ignored,
/// so that a worker started by hand outlives its terminal.
#[derive(Clone, Debug, Parser)]
#[command(name = "scalable-worker", version)]
pub struct Options {
    /// Address of the scheduler (port 8786); https with --credentials. Its name is resolved anew for every connection.
    #[arg(
        long,
        visible_alias = "scheduler",
        env = "SCALABLE_ADDRESS",
        default_value = "http://127.0.0.1:8786",
        value_name = "URL"
    )]
    pub address: String,
    /// File with the run's token.
    #[arg(long, env = "SCALABLE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Directory of the workers' credentials (docs/security.md): TLS and a certificate instead of the token.
    #[arg(long, env = "SCALABLE_CREDENTIALS", value_name = "DIR", conflicts_with = "token_file")]
    pub credentials: Option<PathBuf>,
    /// Name of this worker, unique in its cluster [default: host and process id].
    #[arg(long, env = "SCALABLE_WORKER_NAME")]
    pub name: Option<String>,
    /// The platform's id of this instance, such as a pod's uid; needed with --credentials.
    #[arg(long, env = "SCALABLE_WORKER_UID")]
    pub uid: Option<String>,
    /// Pool it belongs to.
    #[arg(long, env = "SCALABLE_POOL", default_value = "default")]
    pub pool: String,
    /// Components it serves, separated by commas; `*` is every one.
    #[arg(long, env = "SCALABLE_COMPONENTS", value_delimiter = ',', default_value = "*")]
    pub components: Vec<String>,
    /// Cpus it offers: `2`, `0.5` or `500m` [default: those of this machine].
    #[arg(long, env = "SCALABLE_CPUS", value_parser = milli_cpus)]
    pub cpus: Option<u64>,
    /// Memory it offers: `4GiB`, `512M` or bytes; without it memory is not accounted.
    #[arg(long, env = "SCALABLE_MEMORY", value_parser = bytes)]
    pub memory: Option<u64>,
    /// What --cpus and --memory do not say is the limit of this process's cgroup: one cpu without one, of memory less a reserve for
    /// the agent.
    #[arg(long, env = "SCALABLE_FROM_CGROUP")]
    pub from_cgroup: bool,
    /// Gpus it offers.
    #[arg(long, env = "SCALABLE_GPUS", default_value_t = 0)]
    pub gpus: u64,
    /// A custom resource it offers; may be repeated.
    #[arg(
        long = "resource",
        env = "SCALABLE_RESOURCES",
        value_name = "NAME=AMOUNT",
        value_delimiter = ',',
        value_parser = named_amount
    )]
    pub resources: Vec<NamedAmount>,
    /// How long what executes may go on after SIGTERM.
    #[arg(
        long,
        visible_alias = "drain-timeout",
        env = "SCALABLE_DRAIN_DEADLINE",
        default_value = "30s",
        value_parser = duration
    )]
    pub drain_deadline: Duration,
    /// How memory limits of tasks are enforced.
    #[arg(long, value_enum, default_value_t = MemoryLimit::Auto)]
    pub memory_limit: MemoryLimit,
    /// Silence of the scheduler after which it must have given this worker up: its tasks are ended.
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub fence_after: Duration,
    /// Refuse any other cluster than this one.
    #[arg(long, value_name = "ID")]
    pub cluster_id: Option<String>,
    /// Directory of programs that functions are part of, each named by its BLAKE3 digest.
    #[arg(long, value_name = "DIR")]
    pub executables: Option<PathBuf>,
    /// Directory for results that do not fit into memory and for programs that are fetched; of this worker alone [default: a new one
    /// for temporary files, removed at the end].
    #[arg(long, env = "SCALABLE_WORKER_DIRECTORY", value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Memory for results that stay here [default: a quarter of `--memory`, else of this machine's].
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub object_memory: Option<u64>,
    /// Where it listens for other workers and clients, which fetch results; beyond loopback only with --credentials.
    #[arg(long, env = "SCALABLE_PEER_ADDRESS", value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub peer_address: SocketAddr,
    /// Where they reach it, when that is somewhere else.
    #[arg(long, env = "SCALABLE_ADVERTISE", value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Send results to workers on the same host over the network as to any other, for measurements.
    #[arg(long, hide = true)]
    pub no_short_cuts: bool,
    /// End at once when the process that started this one ends.
    #[arg(long)]
    pub die_with_parent: bool,
}

/// How memory limits of tasks are enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MemoryLimit {
    /// A cgroup where this process may make one, else the watch.
    Auto,
    /// A cgroup; the agent does not start where it may not make one.
    Cgroup,
    /// The agent looks at the sizes of its tasks now and then.
    Watch,
    /// Not at all.
    None,
}

impl Options {
    /// Variables that say what this agent is. A worker that a task starts is another one. The scheduler's address is for everybody.
    pub fn variables() -> Vec<String> {
        let command = <Options as clap::CommandFactory>::command();
        let names = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str().map(str::to_owned));
        names.filter(|name| name != "SCALABLE_ADDRESS").collect()
    }

    /// What would be open to others, or cannot work: one sentence.
    ///
    /// # Errors
    /// Which option, and what to do.
    pub fn check(&self) -> Result<(), String> {
        let https = self.url().starts_with("https://");
        match &self.credentials {
            None if https => return Err(format!("--address {}: https needs --credentials DIR", self.address)),
            None if !self.peer_address.ip().is_loopback() => {
                let address = self.peer_address;
                return Err(format!(
                    "--peer-address {address} is beyond loopback, where nothing is served without --credentials DIR"
                ));
            }
            Some(_) if !https => {
                return Err(format!("--address {}: with --credentials it begins with https://", self.address));
            }
            Some(_) if self.name.is_none() || self.uid.is_none() => {
                return Err("--credentials goes with --name and --uid, which the scheduler's provider knows".to_owned());
            }
            _ => {}
        }
        if self.peer_address.ip().is_unspecified() && self.advertise.is_none() {
            return Err(format!("--peer-address {}: say where peers reach it with --advertise HOST:PORT", self.peer_address));
        }
        Ok(())
    }

    /// What the worker offers, as the wire has it.
    pub fn capacity(&self) -> Resources {
        let here = || match self.limits() {
            Some(limits) => limits.milli_cpus.unwrap_or(1000),
            None => std::thread::available_parallelism().map_or(1, |n| n.get() as u64) * 1000,
        };
        Resources {
            milli_cpus: self.cpus.unwrap_or_else(here),
            // Not accounted: the scheduler reads 0 as that.
            memory_bytes: self.memory_for_tasks().unwrap_or(0),
            gpus: self.gpus,
            custom: self.resources.clone(),
        }
    }

    fn limits(&self) -> Option<Limits> {
        self.from_cgroup.then(Limits::own)
    }

    fn memory_for_tasks(&self) -> Option<u64> {
        self.memory.or_else(|| self.limits()?.memory_for_tasks())
    }

    /// Bytes of memory for results.
    pub fn object_memory(&self) -> u64 {
        // The machine's memory says nothing about a container's.
        let machine = || if self.from_cgroup { None } else { machine_memory() };
        let of = self.memory_for_tasks().or_else(machine).unwrap_or(OBJECT_MEMORY * 4);
        self.object_memory.unwrap_or(of / 4)
    }

    /// The worker's name.
    pub fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("{}-{}", host(), std::process::id()))
    }

    /// The scheduler's address with a scheme.
    pub fn url(&self) -> String {
        if self.address.contains("://") { self.address.clone() } else { format!("http://{}", self.address) }
    }
}

/// Memory for results where nothing is known of the machine's, bytes.
const OBJECT_MEMORY: u64 = 512 << 20;

/// The machine's memory, bytes.
fn machine_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Name of this machine.
pub fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "host".to_owned() } else { name.trim().to_owned() }
}

/// Splits `12.5GiB` into its number (as whole and thousandths) and its unit.
fn number(text: &str) -> Result<(u64, &str), String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let bad = || format!("{text:?} does not begin with a number");
    if whole.is_empty() || part.len() > 3 || (digits.contains('.') && part.is_empty()) {
        return Err(bad());
    }
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    let part: u64 = if part.is_empty() { 0 } else { format!("{part:0<3}").parse().map_err(|_| bad())? };
    let milli = whole.checked_mul(1000).and_then(|w| w.checked_add(part)).ok_or_else(|| format!("{text:?} is too large"))?;
    Ok((milli, unit.trim()))
}

fn milli_cpus(text: &str) -> Result<u64, String> {
    match number(text)? {
        (milli, "") if milli > 0 => Ok(milli),
        (milli, "m") if milli >= 1000 && milli % 1000 == 0 => Ok(milli / 1000),
        _ => Err(format!("{text:?} is no number of cpus; write 2, 0.5 or 500m")),
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    let (milli, unit) = number(text)?;
    let factor: u64 = match unit.trim_end_matches(['B', 'b']) {
        "" => 1,
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return Err(format!("{text:?} is no amount of memory; write 4GiB, 512M or bytes")),
    };
    let bytes = u128::from(milli) * u128::from(factor) / 1000;
    u64::try_from(bytes).ok().filter(|b| *b > 0).ok_or_else(|| format!("{text:?} is no amount of memory a worker can have"))
}

fn duration(text: &str) -> Result<Duration, String> {
    let (milli, unit) = number(text)?;
    let factor = match unit {
        "ms" => 1,
        "s" | "" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("{text:?} is no duration; write 30s, 10m or 500ms")),
    };
    let millis = u128::from(milli) * factor / 1000;
    // A year: sums with the clock stay far from its end.
    u64::try_from(millis)
        .ok()
        .filter(|ms| *ms <= 31_536_000_000)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is too long"))
}

fn named_amount(text: &str) -> Result<NamedAmount, String> {
    let parsed = text.split_once('=').and_then(|(name, amount)| Some((name, amount.parse::<u64>().ok()?)));
    match parsed {
        Some((name, amount)) if !name.is_empty() && amount > 0 => Ok(NamedAmount { name: name.to_owned(), amount }),
        _ => Err(format!("{text:?} is no resource; write NAME=AMOUNT with a whole amount above 0")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_served_beyond_loopback_without_credentials() {
        let check = |args: &str, expected: &str| {
            let options = Options::try_parse_from(std::iter::once("scalable-worker").chain(args.split_whitespace()));
            let said = match options {
                Ok(options) => options.check().err().unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            assert!(if expected.is_empty() { said.is_empty() } else { said.contains(expected) }, "{args}: {said}");
        };
        check("", "");
        check("--token-file t", "");
        check("--peer-address 10.0.0.1:8788", "beyond loopback");
        check("--peer-address 0.0.0.0:8788", "beyond loopback");
        check("--address https://s:8786", "https needs --credentials");
        check("--token-file t --credentials c", "cannot be used with");
        let pod = "--credentials c --address https://s:8786 --name w --uid u";
        check(pod, "");
        check(&format!("{pod} --peer-address 10.0.0.1:8788"), "");
        check(&format!("{pod} --peer-address 0.0.0.0:8788"), "--advertise");
        check(&format!("{pod} --peer-address 0.0.0.0:8788 --advertise 10.0.0.1:8788"), "");
        check("--credentials c --address http://s:8786 --name w --uid u", "begins with https");
        check("--credentials c --address https://s:8786 --name w", "--uid");
    }

    #[test]
    fn quantities_as_people_write_them() {
        assert_eq!(milli_cpus("2"), Ok(2000));
        assert_eq!(milli_cpus("0.5"), Ok(500));
        assert_eq!(milli_cpus("500m"), Ok(500));
        for bad in ["", "0", "m", "2x", "1.", ".5", "1.0005", "-1", "0.5m"] {
            assert!(milli_cpus(bad).is_err(), "{bad}");
        }
        assert_eq!(bytes("4GiB"), Ok(4 << 30));
        assert_eq!(bytes("1.5Gi"), Ok(3 << 29));
        assert_eq!(bytes("512M"), Ok(512_000_000));
        assert_eq!(bytes("1024"), Ok(1024));
        for bad in ["", "0", "4 lightyears", "99999999999999999999G", "18446744073709551615T"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("100ms"), Ok(Duration::from_millis(100)));
        assert!(duration("3 fortnights").is_err() && duration("99999999h").is_err());
        assert!(named_amount("licence=2").is_ok_and(|r| r.name == "licence" && r.amount == 2));
        assert!(named_amount("licence").is_err() && named_amount("=2").is_err() && named_amount("x=0").is_err());
    }
}
