//! One attempt as the agent knows it: from its dispatch to its report. What it may do when is decided by the machine.

use std::borrow::Cow;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use scalable_core::ids::Handle;
use scalable_core::messages::OutcomeClass;
use scalable_proto::v1::{AttemptReport, Builtin, LogReport, MemoryMethod, ObjectRef, OutputReport, StartIn};
use scalable_template::{Builtins, Context, InputDigests, quote_argv, render};

use crate::catalog::{Group, is_ours};
use crate::cgroup::{Cgroup, Seen};
use crate::lane::{End, Which};
use crate::layout::Place;
use crate::logs::{TAIL_BYTES_MAX, TAIL_BYTES_SUCCESS, Tail};
use crate::spawn::Prepared;
use crate::stage::Staged;

/// What the dispatch said.
#[derive(Clone, Debug)]
pub struct Order {
    /// The scheduler's row.
    pub handle: Handle,
    /// Its group; nothing when the scheduler never announced it.
    pub group: Option<Arc<Group>>,
    /// The element.
    pub index: u32,
    /// From 1.
    pub attempt: u32,
    /// The task's number.
    pub task_id: u64,
    /// Strictly increasing over all dispatches of the epoch.
    pub fence: u64,
    /// What it was given, thousandths of a cpu.
    pub milli_cpus: u64,
    /// What it was given, bytes; 0 is none.
    pub memory_bytes: u64,
    /// What it reads, by input; standard input after the last.
    pub objects: Vec<Vec<ObjectRef>>,
}

/// An attempt that is on the worker.
#[derive(Debug)]
pub struct Attempt {
    /// What was asked.
    pub order: Order,
    /// Its directory, where it has one.
    pub staged: Option<Box<Staged>>,
    /// The command, ready.
    pub command: Option<Command>,
    /// Its cgroup, where it has one, and the file through which its process enters it.
    pub cgroup: Option<(Cgroup, std::fs::File)>,
    /// Since when it executes.
    pub began: Option<(SystemTime, Instant)>,
    /// When its last process was gone.
    pub over: Option<Instant>,
    /// How its process ended.
    pub end: Option<End>,
    /// Ends of its output streams.
    pub tails: [Tail; 2],
    /// Bytes on their way to a log file.
    pub unwritten: usize,
    /// Largest sum the watch saw, bytes.
    pub sampled_peak: u64,
    /// Last sum the watch saw, bytes.
    pub sampled_now: u64,
    /// What its cgroup saw, read at its end.
    pub cgroup_seen: Option<Seen>,
    /// Processes of the container that the kernel had killed for memory when it began.
    pub kills_before: u64,
    /// The agent has sent it SIGKILL.
    pub killed: bool,
    /// The container's memory is what ended it, not a limit of its own.
    pub of_container: Option<OfContainer>,
    /// What went wrong, one sentence.
    pub message: String,
    /// Published.
    pub outputs: Vec<OutputReport>,
    /// What its streams are kept as, where the run's directory is not here.
    pub logs: Vec<LogReport>,
    /// Objects it reads that no holder gave.
    pub missing: Vec<ObjectRef>,
    /// Where its directory was kept, relative to the run's.
    pub kept: Option<PathBuf>,
    /// The earlier run whose outputs were taken over.
    pub taken_over_from: String,
    /// The machine's wish to settle, put off until the logs are written.
    pub settle: Option<Settle>,
}

/// How the memory of the container ended an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfContainer {
    /// What was in use, bytes, when the agent ended it; nothing where the kernel did.
    pub used_bytes: Option<u64>,
    /// The container's limit, bytes.
    pub limit_bytes: u64,
}

/// What is to be done with a directory at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settle {
    /// Outputs are to be published.
    Publish,
    /// The attempt ended like this.
    Discard(OutcomeClass),
}

/// A command laid out for the lane, and as people would type it.
#[derive(Debug)]
pub struct Command {
    /// For the lane, which takes it.
    pub prepared: Option<Prepared>,
    /// For a report.
    pub rerun: String,
}

impl Attempt {
    /// A new one.
    pub fn new(order: Order) -> Self {
        Attempt {
            order,
            staged: None,
            command: None,
            cgroup: None,
            began: None,
            over: None,
            end: None,
            tails: Default::default(),
            unwritten: 0,
            sampled_peak: 0,
            sampled_now: 0,
            cgroup_seen: None,
            kills_before: 0,
            killed: false,
            of_container: None,
            message: String::new(),
            outputs: Vec::new(),
            logs: Vec::new(),
            missing: Vec::new(),
            kept: None,
            taken_over_from: String::new(),
            settle: None,
        }
    }

    /// `group[index]`, for messages.
    pub fn name(&self) -> String {
        match &self.order.group {
            Some(group) => format!("{}[{}]", group.name, self.order.index),
            None => format!("?[{}]", self.order.index),
        }
    }

    /// The end of one stream.
    pub fn tail(&mut self, which: Which) -> &mut Tail {
        &mut self.tails[if which == Which::Stdout { 0 } else { 1 }]
    }

    /// How the process's own end counts, and the sentence for it. What ended it from outside is the machine's to say.
    pub fn class_of_end(&mut self, end: &End) -> OutcomeClass {
        if let Some(failure) = &end.failure {
            self.message = failure.clone();
            return OutcomeClass::InfraStart;
        }
        let codes = self.order.group.as_ref().map(|g| g.template.success_codes.as_slice()).unwrap_or_default();
        let success = end.exit_code.is_some_and(|code| if codes.is_empty() { code == 0 } else { codes.contains(&code) });
        if success {
            return OutcomeClass::Succeeded;
        }
        if self.cgroup_seen.is_some_and(|seen| seen.killed) {
            self.message = format!("a process went above the task's memory limit of {}", size(self.order.memory_bytes));
            return OutcomeClass::Oom;
        }
        if self.of_container.is_some() {
            return OutcomeClass::Oom;
        }
        self.message = match (end.exit_code, end.signal) {
            (Some(code), _) => format!("the command ended with exit code {code}"),
            (None, Some(signal)) => format!("the command was ended by signal {signal}{}", signal_name(signal)),
            (None, None) => "the command ended, and how is not known".to_owned(),
        };
        OutcomeClass::AppError
    }

    /// True when a plain success has nothing to tell beyond its figures.
    pub fn is_brief(&self) -> bool {
        self.outputs.is_empty()
            && self.tails.iter().all(|tail| tail.total == 0)
            && self.order.objects.is_empty()
            && self.taken_over_from.is_empty()
            && self.end.as_ref().is_some_and(|end| end.exit_code == Some(0))
            && self.order.group.as_ref().is_some_and(|group| group.template.inputs.is_empty() && group.template.stdin.is_none())
    }

    /// The five figures of a brief success.
    pub fn brief(&self, agent_memory: u64) -> [u64; 5] {
        let (started, wall) = self.times();
        let end = self.end.clone().unwrap_or_default();
        [started.max(0) as u64, wall, end.user_us, end.system_us, self.peak(agent_memory).0]
    }

    /// When it began (microseconds since the Unix epoch) and how long it executed. Nothing executed: now, and zero.
    fn times(&self) -> (i64, u64) {
        match self.began {
            Some((at, instant)) => {
                let wall = self.over.unwrap_or_else(Instant::now).saturating_duration_since(instant);
                (micros_of(at), wall.as_micros() as u64)
            }
            None => (unix_micros(), 0),
        }
    }

    /// Peak memory and how it was measured: its cgroup, else the larger of the watch's sum and the kernel's figure for one process.
    /// The latter counts from the agent's own size at the start, so where it is no larger than that a sum the watch saw is better.
    fn peak(&self, agent_memory: u64) -> (u64, MemoryMethod) {
        if let Some(peak) = self.cgroup_seen.and_then(|seen| seen.peak) {
            return (peak, MemoryMethod::Cgroup);
        }
        let rusage = self.end.as_ref().map_or(0, |end| end.max_rss_bytes);
        if self.sampled_peak > 0 && (self.sampled_peak >= rusage || rusage <= agent_memory) {
            (self.sampled_peak, MemoryMethod::Sampled)
        } else if rusage > 0 {
            (rusage, MemoryMethod::Rusage)
        } else {
            (0, MemoryMethod::Unspecified)
        }
    }

    /// All there is to tell. `agent_memory` is the agent's own largest size.
    pub fn report(&self, class: OutcomeClass, limit: u64, agent_memory: u64) -> AttemptReport {
        let (started_us, wall) = self.times();
        let end = self.end.clone().unwrap_or_default();
        let (peak_memory_bytes, method) = self.peak(agent_memory);
        let success = class == OutcomeClass::Succeeded;
        let of_container = self.of_container.filter(|_| limit == 0 && class == OutcomeClass::Oom);
        let tail = if success { TAIL_BYTES_SUCCESS } else { TAIL_BYTES_MAX };
        let message = if success { String::new() } else { self.sentence(class, limit, peak_memory_bytes) };
        AttemptReport {
            class: class.number(),
            exit_code: end.exit_code.filter(|_| end.failure.is_none()),
            signal: end.signal,
            started_us,
            finished_us: started_us.saturating_add(wall as i64),
            user_us: end.user_us,
            system_us: end.system_us,
            peak_memory_bytes,
            memory_method: method as i32,
            memory_limit_bytes: of_container.map_or(limit, |of| of.limit_bytes),
            message,
            stdout_tail: Bytes::from(self.tails[0].last(tail)),
            stderr_tail: Bytes::from(self.tails[1].last(tail)),
            stdout_bytes: self.tails[0].total,
            stderr_bytes: self.tails[1].total,
            key: self.key().map(|key| Bytes::copy_from_slice(&key)).unwrap_or_default(),
            outputs: self.outputs.clone(),
            kept_directory: self.kept.as_ref().map(|kept| kept.display().to_string()).unwrap_or_default(),
            length: None,
            rerun: self.rerun(success),
            taken_over_from: self.taken_over_from.clone(),
            logs: self.logs.clone(),
            missing: self.missing.clone(),
            ..AttemptReport::default()
        }
    }

    /// One sentence: what, why.
    fn sentence(&self, class: OutcomeClass, limit: u64, peak: u64) -> String {
        match class {
            OutcomeClass::Timeout => {
                let (_, wall) = self.times();
                format!("the command ran into its timeout and was ended after {:.1} s", wall as f64 / 1e6)
            }
            OutcomeClass::Oom => match &self.of_container {
                Some(of) => of.sentence("the task", peak, self.order.memory_bytes),
                None => format!(
                    "out of memory: the task took {} and its limit is {}; ask for more with `memory:`, or let it grow with `on_oom:`",
                    size(peak),
                    size(limit)
                ),
            },
            OutcomeClass::Cancelled => "it was cancelled".to_owned(),
            OutcomeClass::Preempted if self.began.is_some() => "its worker drains and the deadline was over".to_owned(),
            OutcomeClass::Preempted => "its worker drains, it had not started".to_owned(),
            _ if self.message.is_empty() => format!("the attempt could not be run ({class:?})"),
            _ => self.message.clone(),
        }
    }

    /// What to type to run it again by hand: in its kept directory, where it has one.
    fn rerun(&self, success: bool) -> String {
        let Some(command) = self.command.as_ref().filter(|_| !success) else { return String::new() };
        let (Some(kept), Some(staged), Some(group)) = (&self.kept, &self.staged, &self.order.group) else {
            return command.rerun.clone();
        };
        let kept = group.run.directory().join(kept);
        command.rerun.replace(&*staged.directory.to_string_lossy(), &kept.to_string_lossy())
    }

    /// Digest of all that decides the result; nothing for a group that was refused.
    pub fn key(&self) -> Option<[u8; 32]> {
        let group = self.order.group.as_ref().filter(|group| group.refusal.is_none())?;
        let digests: Vec<Vec<&[u8]>> = self
            .order
            .objects
            .iter()
            .map(|objects| objects.iter().filter(|o| o.attempt > 0).map(|o| &o.digest[..]).collect())
            .collect();
        let of = |ordinal: usize| digests.get(ordinal).map(Vec::as_slice).unwrap_or_default();
        let mut inputs: Vec<InputDigests<'_>> = group
            .template
            .inputs
            .iter()
            .enumerate()
            .map(|(ordinal, input)| InputDigests { name: &input.name, digests: of(ordinal) })
            .collect();
        if group.template.stdin.is_some() {
            inputs.push(InputDigests { name: "", digests: of(group.template.inputs.len()) });
        }
        let values = group.space.values(self.order.index);
        Some(scalable_template::key(&group.template, self.order.index, &values, &inputs))
    }

    /// Where everything of it lies.
    pub fn place(&self) -> Option<Place> {
        let group = self.order.group.as_ref()?;
        Some(Place {
            run: group.run.directory().to_owned(),
            group: group.name.clone(),
            index: self.order.index,
            attempt: self.order.attempt,
        })
    }
}

impl OfContainer {
    /// One sentence: `who` took `taken` bytes and had asked for `request`, 0 is not known and none.
    pub fn sentence(&self, who: &str, taken: u64, request: u64) -> String {
        let limit = size(self.limit_bytes);
        let most = if taken > request { "most beyond its request" } else { "most" };
        let how = match self.used_bytes {
            Some(used) => {
                let used = size(used);
                format!(
                    "the worker had {used} of its {limit} in use, and {who} took {most}, so it was ended before the kernel would have \
                     ended everything"
                )
            }
            None => format!("the worker had reached its limit of {limit}, and the kernel ended {who}"),
        };
        let took = if taken == 0 { "how much it took is not known".to_owned() } else { format!("it took {}", size(taken)) };
        let asked = if request == 0 { "had not asked for any".to_owned() } else { format!("had asked for {}", size(request)) };
        format!("out of memory: {how}; {took} and {asked}: declare what it takes with `memory:`, or let it grow with `on_oom:`")
    }
}

/// Makes the command of an attempt: arguments, environment, directory.
///
/// # Errors
/// One sentence: a name the template does not have, a NUL byte.
pub fn command(order: &Order, group: &Group, staged: Option<&Staged>) -> Result<Command, String> {
    let knows = Knows { order, group, staged };
    let rendered = render(&group.template, &knows).map_err(|error| error.to_string())?;
    let directory = match (rendered.start_in, staged) {
        (StartIn::Work, Some(staged)) => Some(staged.work.as_path()),
        // The manifest's directory is not here: a directory of its own is nearer to that than the agent's.
        (_, Some(staged)) if !group.run.is_shared() => group.run.base_directory().or(Some(staged.work.as_path())),
        _ => group.run.base_directory(),
    };
    let ours = own_environment(order, group, staged).into_iter().map(|(name, value)| (format!("SCALABLE_{name}"), value));
    let theirs = rendered.env.into_iter().filter(|(name, _)| !is_ours(name));
    let set: Vec<(String, OsString)> = ours.chain(theirs).collect();
    let mut own = Vec::with_capacity(set.len());
    for (name, value) in &set {
        let entry = [name.as_bytes(), b"=", value.as_bytes()].concat();
        own.push(CString::new(entry).map_err(|_| format!("the environment variable {name} contains a NUL byte"))?);
    }
    let argv: Vec<&OsStr> = rendered.argv.iter().map(OsString::as_os_str).collect();
    let prepared =
        Prepared::new(argv.iter().copied(), group.environment.clone(), own, directory).map_err(|error| error.to_string())?;
    let words = quote_argv(&argv);
    let rerun = match directory {
        Some(directory) => format!("cd {} && {words}", quote_argv(&[directory])),
        None => words,
    };
    Ok(Command { prepared: Some(prepared), rerun })
}

/// `NAME=value` that no other attempt of the cluster has.
pub fn marker(order: &Order) -> Vec<u8> {
    format!("SCALABLE_FENCE={}", order.fence).into_bytes()
}

fn own_environment(order: &Order, group: &Group, staged: Option<&Staged>) -> Vec<(&'static str, OsString)> {
    let mut own: Vec<(&'static str, OsString)> = vec![
        ("RUN", group.run.name.clone().into()),
        ("GROUP", group.name.clone().into()),
        ("INDEX", order.index.to_string().into()),
        ("TASK_ID", order.task_id.to_string().into()),
        ("ATTEMPT", order.attempt.to_string().into()),
        ("FENCE", order.fence.to_string().into()),
    ];
    if let Some(staged) = staged {
        own.push(("WORKDIR", staged.work.clone().into()));
    }
    own
}

struct Knows<'a> {
    order: &'a Order,
    group: &'a Group,
    staged: Option<&'a Staged>,
}

impl Context for Knows<'_> {
    fn input(&self, name: &str) -> Option<Cow<'_, [PathBuf]>> {
        self.staged?.inputs.iter().find(|(n, _)| n == name).map(|(_, paths)| Cow::Borrowed(paths.as_slice()))
    }

    fn input_list(&self, name: &str) -> Option<PathBuf> {
        self.staged?.lists.iter().find(|(n, _)| n == name).map(|(_, path)| path.clone())
    }

    fn output(&self, name: &str) -> Option<PathBuf> {
        self.staged?.outputs.iter().find(|(n, _)| n == name).map(|(_, path)| path.clone())
    }

    fn parameter(&self, name: &str) -> Option<Cow<'_, str>> {
        self.group.space.value(self.order.index, name)
    }

    fn builtin(&self, builtin: Builtin) -> Option<OsString> {
        let workdir: Option<&Path> = self.staged.map(|staged| staged.work.as_path());
        let builtins = Builtins {
            run: &self.group.run.name,
            group: &self.group.name,
            index: self.order.index,
            attempt: self.order.attempt,
            task_id: self.order.task_id,
            milli_cpus: self.order.milli_cpus,
            memory_bytes: self.order.memory_bytes,
            workdir,
        };
        builtins.get(builtin)
    }
}

fn micros_of(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

/// Now, microseconds since the Unix epoch.
pub fn unix_micros() -> i64 {
    micros_of(SystemTime::now())
}

/// Bytes as people write them.
pub fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// A signal's name in brackets, where it has one.
pub fn signal_name(signal: i32) -> String {
    nix::sys::signal::Signal::try_from(signal).map(|signal| format!(" ({signal})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 << 20, "64.0 MiB"), (3 << 40, "3.0 TiB")] {
            assert_eq!(size(bytes), text);
        }
    }
}
