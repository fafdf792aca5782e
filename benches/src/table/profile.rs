//! Where the time of a row goes: functions by the CPU time that each process spends in them while the row runs once more under
//! `perf record`. Without perf there is no profile, and the report says so.

use std::collections::HashMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::NamedTempFile;

/// Samples a second.
const RATE: &str = "999";
/// Perf has begun by then.
const BEGINS_WITHIN: Duration = Duration::from_secs(10);
/// Functions named of each process.
const FUNCTIONS: usize = 5;

/// Perf, watching processes.
pub struct Profile {
    perf: Child,
    samples: NamedTempFile,
}

impl Profile {
    /// Begins to watch this machine, because a row may start processes of its own; where only root may do that, this process and all
    /// below it.
    pub fn begin() -> Result<Self> {
        let begun = Instant::now();
        if let Some(profile) = Profile::attempt(begun, &["-a".to_owned()])? {
            return Ok(profile);
        }
        loop {
            let pids: Vec<String> = tree().iter().map(u32::to_string).collect();
            if let Some(profile) = Profile::attempt(begun, &["-p".to_owned(), pids.join(",")])? {
                return Ok(profile);
            }
            // Perf refuses a process that has ended since it was named, as those of an earlier round do at any moment.
            ensure!(begun.elapsed() < BEGINS_WITHIN, "perf cannot watch these processes");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Nothing when perf has given up.
    fn attempt(begun: Instant, whom: &[String]) -> Result<Option<Self>> {
        let samples = NamedTempFile::new()?;
        let mut perf = Command::new("perf");
        perf.args(["record", "--quiet", "-F", RATE]).args(whom).arg("-o").arg(samples.path());
        let perf = perf.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut profile = Profile { perf: perf.context("perf cannot be started")?, samples };
        // It watches once it has written the head of its file.
        while profile.samples.as_file().metadata()?.len() == 0 {
            if profile.perf.try_wait()?.is_some() {
                return Ok(None);
            }
            ensure!(begun.elapsed() < BEGINS_WITHIN, "perf does not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Some(profile))
    }

    /// Ends it: of each process, the largest first, its share of all samples and its functions with their shares of its own.
    pub fn end(mut self) -> Result<Vec<String>> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.perf.id())?);
        // SIGINT is how perf is told to write what it has.
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
        self.perf.wait()?;
        let mut report = Command::new("perf");
        report.args(["report", "--stdio", "-g", "none", "--sort", "comm,sym", "-F", "overhead,comm,sym", "-t", "\t", "-i"]);
        let report = report.arg(self.samples.path()).stdin(Stdio::null()).output().context("perf report")?;
        ensure!(report.status.success(), "perf has no samples: {}", String::from_utf8_lossy(&report.stderr).trim());
        Ok(summed_up(&String::from_utf8_lossy(&report.stdout)))
    }
}

/// This process and those below it.
fn tree() -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        children.entry(parent.unwrap_or(0)).or_default().push(pid);
    }
    let (mut all, mut at) = (vec![std::process::id()], 0);
    while at < all.len() {
        all.extend(children.remove(&all[at]).unwrap_or_default());
        at += 1;
    }
    all
}

/// Percent of all samples.
struct Process {
    comm: String,
    share: f64,
    functions: Vec<(String, f64)>,
}

/// Lines of `overhead, comm, symbol` as sentences.
fn summed_up(report: &str) -> Vec<String> {
    let mut processes: Vec<Process> = Vec::new();
    for line in report.lines().filter(|line| !line.starts_with('#')) {
        let mut fields = line.split('\t').map(str::trim);
        let (Some(share), Some(comm), Some(symbol)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let Ok(share) = share.trim_end_matches('%').parse::<f64>() else { continue };
        let at = processes.iter().position(|of| of.comm == comm).unwrap_or_else(|| {
            processes.push(Process { comm: comm.to_owned(), share: 0.0, functions: Vec::new() });
            processes.len() - 1
        });
        let of = &mut processes[at];
        of.share += share;
        // "[.] name" or "[k] name".
        let name = symbol.split_once(' ').map_or(symbol, |(_, name)| name.trim());
        of.functions.push((name.to_owned(), share));
    }
    // What idles, and what watches, is no part of it.
    let (others, mut processes): (Vec<Process>, Vec<Process>) =
        processes.into_iter().partition(|of| matches!(of.comm.as_str(), "swapper" | "perf"));
    let rest = 100.0 - others.iter().map(|of| of.share).sum::<f64>();
    for of in &mut processes {
        of.share *= 100.0 / rest;
        of.functions.iter_mut().for_each(|(_, share)| *share *= 100.0 / rest);
    }
    processes.sort_by(|a, b| b.share.total_cmp(&a.share));
    let sentence = |Process { comm, share: all, mut functions }: Process| {
        // Perf reports them in the order of their names.
        functions.sort_by(|a, b| b.1.total_cmp(&a.1));
        let each = functions.iter().take(FUNCTIONS).map(|(name, share)| format!("{name} {:.0} %", share / all * 100.0));
        format!("{comm} {all:.0} %: {}", each.collect::<Vec<_>>().join(", "))
    };
    processes.into_iter().filter(|of| of.share >= 1.0).map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_named_by_process() {
        let report = "# Overhead\n\n 20.00%\tscheduler\t[.] malloc\n 40.00%\tscheduler\t[.] step\n 10.00%\tworker\t[k] copy\n\
                      0.10%\tother\t[.] x\n";
        assert_eq!(summed_up(report), ["scheduler 60 %: step 67 %, malloc 33 %", "worker 10 %: copy 100 %"]);
        let idle = format!("50.00%\tswapper\t[k] halt\n{}", report.replace("20.00", "10.00").replace("40.00", "20.00"));
        assert_eq!(summed_up(&idle), ["scheduler 60 %: step 67 %, malloc 33 %", "worker 20 %: copy 100 %"]);
        assert!(summed_up("").is_empty());
    }

    #[test]
    fn this_process_is_in_its_tree() {
        assert_eq!(tree().first(), Some(&std::process::id()));
    }
}
