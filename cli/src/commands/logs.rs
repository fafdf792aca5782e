//! `scalable logs`: what tasks have written to stdout and stderr, of runs that live and of runs that are over. Log files are
//! read where they lie, so no scheduler is needed; only those of a run that lives on Kubernetes are fetched from it first.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use scalable_proto::v1;

use super::Context;
use crate::args::{LogsArgs, StreamChoice};
use crate::connect::{self, Found, Session, block_on};
use crate::exit::{CommandResult, Failure, code};
use crate::kubernetes::{self, Live};
use crate::records::{self, TaskRecord};
use crate::runs::RunDirectory;
use crate::ui::harmless;
use crate::which::{self, Which};

/// How often files that are followed are looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);
/// How often logs are fetched that are followed.
const FETCH_EVERY: Duration = Duration::from_secs(1);
/// Tasks that a scheduler is asked for at a time.
const TASKS_PER_CALL: u32 = 1000;
/// Files that are followed at a time; of more, those of the first tasks.
const FOLLOWED_MAX: usize = 10_000;
/// Bytes read at a time.
const CHUNK_BYTES: u64 = 64 << 10;

/// Prints logs; with `-f` until the run is over.
pub fn run(context: &Context, args: &LogsArgs) -> CommandResult {
    if args.elsewhere.is_given() {
        return block_on(async {
            let (mut which, found) = connect::named(context, &args.elsewhere, &args.run, args.what.as_deref()).await?;
            let Found::Live(Session::Forwarded(live)) = found else {
                return Err(super::status::unreachable(&which.directory.name, None));
            };
            which.directory = super::attach::adopt(context, &which.directory, &which.record)?;
            print_fetched(context, args, &which, &live).await
        });
    }
    let which = match &args.what {
        Some(what) => which::any(&context.runs_dir, &args.run, what)?,
        None => which::run(&context.runs_dir, &args.run)?,
    };
    if let Some(at) = which.record.kubernetes.as_ref().filter(|_| !which.record.is_over()) {
        return block_on(async {
            let live = kubernetes::attach(at, &which.directory.name).await?;
            print_fetched(context, args, &which, &live).await
        });
    }
    let mut printer = Printer::new(&which, args);
    loop {
        // First whether it is over, then the files: what is written in between is seen in the next round.
        let over = which.directory.record().map_or(true, |record| record.is_over());
        let failed = if args.failed { Some(failed_tasks(&which.directory)?) } else { None };
        let new = printer.print(&Wanted { which: &which, args, failed })?;
        if !args.follow || (over && !new) {
            break;
        }
        if !new {
            std::thread::sleep(FOLLOW_EVERY);
        }
    }
    printer.say_the_rest(context, args, &which);
    Ok(code::OK)
}

/// The logs of a run whose scheduler does not see its directory here: they come here first.
async fn print_fetched(context: &Context, args: &LogsArgs, which: &Which, live: &Live) -> CommandResult {
    let run = &which.directory.name;
    let mut printer = Printer::new(which, args);
    loop {
        let over = tokio::select! {
            over = fetch(which, live) => over?,
            gone = live.gone() => {
                return Err(Failure { message: format!("the scheduler of {run} is gone: {}", gone.message), ..gone });
            }
        };
        let failed = if args.failed { Some(failed_by_now(which, live).await?) } else { None };
        let new = printer.print(&Wanted { which, args, failed })?;
        if !args.follow || (over && !new) {
            break;
        }
        tokio::time::sleep(FETCH_EVERY).await;
    }
    printer.say_the_rest(context, args, which);
    Ok(code::OK)
}

/// Fetches what is there of whole logs and then of those that are being written. True when the run is over.
async fn fetch(which: &Which, live: &Live) -> Result<bool, scalable::Error> {
    let (run, group) = (&which.directory.name, which.group.as_deref().unwrap_or_default());
    let over = live.client.fetch_logs(run, group, &which.directory.path).await?;
    if !over {
        live.client.fetch_live_logs(run, group, which.index, &which.directory.path).await?;
    }
    Ok(over)
}

/// Tasks that have failed for good, as their scheduler knows it.
async fn failed_by_now(which: &Which, live: &Live) -> Result<BTreeSet<(String, u32)>, Failure> {
    let groups = which.record.groups.iter().map(|group| &group.name);
    let mut failed = BTreeSet::new();
    for group in groups.filter(|group| which.group.as_ref().is_none_or(|wanted| wanted == *group)) {
        let mut first = 0;
        loop {
            let request = v1::ListTasksRequest {
                run: which.directory.name.clone(),
                group: group.clone(),
                states: vec!["failed".to_owned()],
                first,
                limit: TASKS_PER_CALL,
            };
            let tasks = live.client.list_tasks(request).await?;
            let Some(last) = tasks.last() else { break };
            first = last.index.saturating_add(1);
            failed.extend(tasks.into_iter().map(|task| (task.group, task.index)));
        }
    }
    Ok(failed)
}

/// A log file by what its name says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct LogFile {
    group: String,
    index: u32,
    attempt: u32,
    stream: String,
}

impl LogFile {
    /// `logs/<group>/<index>.<attempt>.<stream>`.
    fn parse(group: &str, name: &str) -> Option<LogFile> {
        let mut parts = name.split('.');
        let (index, attempt, stream) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || !matches!(stream, "stdout" | "stderr") {
            return None;
        }
        Some(LogFile {
            group: group.to_owned(),
            index: index.parse().ok()?,
            attempt: attempt.parse().ok()?,
            stream: stream.to_owned(),
        })
    }

    fn path(&self, directory: &RunDirectory) -> PathBuf {
        directory.file("logs").join(&self.group).join(format!("{}.{}.{}", self.index, self.attempt, self.stream))
    }
}

/// Which tasks are meant.
struct Wanted<'a> {
    which: &'a Which,
    args: &'a LogsArgs,
    failed: Option<BTreeSet<(String, u32)>>,
}

impl Wanted<'_> {
    fn files(&self) -> Result<Vec<LogFile>, Failure> {
        let logs = self.which.directory.file("logs");
        let groups = match &self.which.group {
            Some(group) => vec![group.clone()],
            None => names_in(&logs)?,
        };
        let mut files = Vec::new();
        for group in groups {
            let of_group: Vec<LogFile> = names_in(&logs.join(&group))?
                .iter()
                .filter_map(|name| LogFile::parse(&group, name))
                .filter(|file| self.wants(file))
                .collect();
            files.extend(if self.args.attempt.is_none() && !self.args.follow { last_attempts(of_group) } else { of_group });
        }
        files.sort();
        Ok(files)
    }

    fn wants(&self, file: &LogFile) -> bool {
        let stream = match self.args.stream {
            StreamChoice::Both => true,
            StreamChoice::Stdout => file.stream == "stdout",
            StreamChoice::Stderr => file.stream == "stderr",
        };
        stream
            && self.which.index.is_none_or(|index| file.index == index)
            && self.args.attempt.is_none_or(|attempt| file.attempt == attempt)
            && self.failed.as_ref().is_none_or(|failed| failed.contains(&(file.group.clone(), file.index)))
    }
}

fn last_attempts(files: Vec<LogFile>) -> Vec<LogFile> {
    let mut last: BTreeMap<u32, u32> = BTreeMap::new();
    for file in &files {
        let attempt = last.entry(file.index).or_default();
        *attempt = (*attempt).max(file.attempt);
    }
    files.into_iter().filter(|file| last.get(&file.index) == Some(&file.attempt)).collect()
}

/// Tasks with a failed attempt, from both record files: the one of tasks is written when a task is over for good.
fn failed_tasks(directory: &RunDirectory) -> Result<BTreeSet<(String, u32)>, Failure> {
    let mut failed = BTreeSet::new();
    for name in ["failures.jsonl", "tasks.jsonl"] {
        let path = directory.file(name);
        let lines =
            records::read_lines::<TaskRecord>(&path).map_err(|error| Failure::io(format!("read {}", path.display()), &error))?;
        let lines = lines.filter(|record| name == "failures.jsonl" || record.state == "failed");
        failed.extend(lines.map(|record| (record.group().to_owned(), record.index())));
    }
    Ok(failed)
}

fn names_in(directory: &Path) -> Result<Vec<String>, Failure> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Failure::io(format!("list {}", directory.display()), &error)),
    }
}

/// Prints what is new in files, each under a heading where there are several.
struct Printer {
    directory: RunDirectory,
    single: bool,
    terminal: bool,
    files: BTreeMap<LogFile, u64>,
    under: Option<LogFile>,
    left_out: bool,
}

impl Printer {
    fn new(which: &Which, args: &LogsArgs) -> Printer {
        Printer {
            directory: which.directory.clone(),
            single: which.index.is_some() && args.stream != StreamChoice::Both,
            terminal: io::stdout().is_terminal(),
            files: BTreeMap::new(),
            under: None,
            left_out: false,
        }
    }

    /// True when something was printed.
    fn print(&mut self, wanted: &Wanted<'_>) -> Result<bool, Failure> {
        let mut new = false;
        for log in wanted.files()? {
            if !self.files.contains_key(&log) && self.files.len() >= FOLLOWED_MAX {
                self.left_out = true;
                continue;
            }
            let from = self.files.get(&log).copied().unwrap_or(0);
            let to = self.print_file(&log, from)?;
            new |= to > from;
            self.files.insert(log, to);
        }
        Ok(new)
    }

    /// That nothing was printed, or not everything.
    fn say_the_rest(&self, context: &Context, args: &LogsArgs, which: &Which) {
        if self.files.is_empty() {
            context.ui.say(match (&which.group, args.failed) {
                (_, true) => "no failed task has written anything".to_owned(),
                (Some(_), false) => {
                    "nothing was written, or it has not been started: a log file begins with the first byte".to_owned()
                }
                (None, false) => format!("no task of {} has written anything", which.directory.name),
            });
        }
        if self.left_out {
            let logs = which.directory.file("logs");
            context.ui.warn(format!("more than {FOLLOWED_MAX} log files; the others lie in {}", logs.display()));
        }
    }

    fn print_file(&mut self, log: &LogFile, from: u64) -> Result<u64, Failure> {
        let path = log.path(&self.directory);
        let doing = || format!("read {}", path.display());
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(from),
            Err(error) => return Err(Failure::io(doing(), &error)),
        };
        file.seek(SeekFrom::Start(from)).map_err(|error| Failure::io(doing(), &error))?;
        let mut at = from;
        let mut chunk = Vec::new();
        loop {
            chunk.clear();
            Read::by_ref(&mut file).take(CHUNK_BYTES).read_to_end(&mut chunk).map_err(|error| Failure::io(doing(), &error))?;
            // Cut between lines where there are any, so that no character or escape sequence is torn apart.
            let full = chunk.len() as u64 == CHUNK_BYTES;
            let line_feed = chunk.iter().rposition(|byte| *byte == b'\n').filter(|_| full);
            let whole = line_feed.map_or(chunk.len(), |at| at + 1);
            if whole == 0 {
                return Ok(at);
            }
            self.heading(log)?;
            let mut stdout = io::stdout().lock();
            if self.terminal {
                stdout.write_all(harmless(&String::from_utf8_lossy(&chunk[..whole])).as_bytes())?;
            } else {
                stdout.write_all(&chunk[..whole])?;
            }
            stdout.flush()?;
            at += whole as u64;
            file.seek(SeekFrom::Start(at)).map_err(|error| Failure::io(doing(), &error))?;
        }
    }

    fn heading(&mut self, log: &LogFile) -> Result<(), Failure> {
        if !self.single && self.under.as_ref() != Some(log) {
            let gap = if self.under.is_some() { "\n" } else { "" };
            writeln!(io::stdout().lock(), "{gap}==> {}[{}] attempt {} {} <==", log.group, log.index, log.attempt, log.stream)?;
            self.under = Some(log.clone());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_log_files() {
        let file = |index, attempt, stream: &str| Some(LogFile { group: "g".into(), index, attempt, stream: stream.into() });
        assert_eq!(LogFile::parse("g", "12.3.stderr"), file(12, 3, "stderr"));
        for bad in ["12.3", "12.3.stdlog", "a.3.stdout", "1.2.3.stdout", "", "-1.1.stdout"] {
            assert_eq!(LogFile::parse("g", bad), None, "{bad:?}");
        }
        let files = vec![file(1, 1, "stdout"), file(1, 2, "stderr"), file(2, 1, "stdout")].into_iter().flatten().collect();
        let last: Vec<_> = last_attempts(files).iter().map(|file| (file.index, file.attempt)).collect();
        assert_eq!(last, [(1, 2), (2, 1)]);
    }
}
