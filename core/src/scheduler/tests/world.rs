//! Transcripts: lines that begin with `>` are commands, the lines below are what the machine must answer. One place touches the
//! API; cases are text.
//!
//! ```text
//! submit NAME:LENGTH [key=value …]; …   cpus mem(MiB) comp prio after(whole) each(same index) into(all into one) from(length)
//!                                       edges=a:0-1+1-1 retries backoff(s) parallel always oom(factor:max MiB) timeout(s) grow
//!                                       takes=NAME:N on=exit:75|lost|oom|… lost(budget)
//!                                       and for the run: run=NAME weight max_failures totals=NAME:N
//! join W [cpus mem gpus comp pool has=NAME:N] (`half`: without data)     attach|reset W control|data
//! frame|left|draining|drain|die W       die W oom|taken   taken W   shares W T=MiB …   full W [no]
//! start|ok T [length=N] [wall=ms]       fail T CLASS [exit=N] [peak=MiB]  T is a[0], or a[0]#1 for that attempt
//! back|keep W T …                       cancel run|GROUP|T                wait SECONDS
//! open runs: submit … open, NAME:grow is a growing group, `reads` before after|each|one makes it data (reads=after:a)
//! group NAME:LENGTH [key=value …]       append GROUP COUNT [0<a[1] reads, 0~a[1] follows] [last]       close
//! release GROUP FIRST COUNT             pause|resume   copied W T   holders T
//! empty W …                             kept W T       notkept W T
//! ok T held=MiB (or files=MiB)          fail T lost missing=T@W
//! explain T     counts GROUP     forgotten     used W     pool P comp=C starting=N note=WORD [scaled]     load P
//! ```

use super::super::{Config, Scheduler};
use crate::ids::*;
use crate::messages::*;
use crate::resources::Resources;
use crate::spec::*;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Runs a transcript and compares.
pub(super) fn check(name: &str, transcript: &str) {
    check_keeping(Config::standard().groups_kept, name, transcript);
}

/// The same with so many groups of an open run kept that could be forgotten.
pub(super) fn check_keeping(groups_kept: usize, name: &str, transcript: &str) {
    let wanted: Vec<&str> = transcript.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut world = World::new(groups_kept);
    let mut got = String::new();
    for line in &wanted {
        if let Some(command) = line.strip_prefix("> ") {
            let _ = writeln!(got, "> {command}");
            for answer in world.command(command) {
                let _ = writeln!(got, "{answer}");
            }
        }
    }
    let wanted = wanted.join("\n") + "\n";
    assert!(got == wanted, "{name}\n--- wanted\n{wanted}\n--- got\n{got}");
}

/// A machine and the names that a transcript uses.
struct World {
    machine: Scheduler,
    now: Micros,
    sessions: BTreeMap<String, SessionId>,
    workers: BTreeMap<SessionId, String>,
    groups: BTreeMap<String, GroupId>,
    group_names: BTreeMap<GroupId, String>,
    run: RunId,
    /// Groups of the latest run.
    specs: Vec<GroupSpec>,
    run_names: BTreeMap<RunId, String>,
    /// Latest dispatch of a task, and all by task and attempt.
    dispatches: BTreeMap<(TaskRef, u32), (SessionId, Dispatch)>,
    handles: BTreeMap<Handle, (TaskRef, u32)>,
    tokens: u32,
    keys: u8,
}

impl World {
    fn new(groups_kept: usize) -> Self {
        World {
            machine: Scheduler::new(Config { groups_kept, ..Config::standard() }, 0),
            now: SECOND,
            sessions: BTreeMap::new(),
            workers: BTreeMap::new(),
            groups: BTreeMap::new(),
            group_names: BTreeMap::new(),
            run: RunId(0),
            specs: Vec::new(),
            run_names: BTreeMap::new(),
            dispatches: BTreeMap::new(),
            handles: BTreeMap::new(),
            tokens: 0,
            keys: 0,
        }
    }

    fn command(&mut self, line: &str) -> Vec<String> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let words: Vec<&str> = rest.split_whitespace().collect();
        let input = match verb {
            "submit" => self.submit(rest),
            "join" => self.join(&words),
            "attach" => Input::Attach { session: self.session(words[0]), connection: connection(words[1]) },
            "reset" => Input::Reset { session: self.session(words[0]), connection: connection(words[1]) },
            "frame" => Input::Frame { session: self.session(words[0]) },
            "left" => Input::Left { session: self.session(words[0]) },
            "full" => Input::Full { session: self.session(words[0]), full: words.get(1) != Some(&"no") },
            "draining" => Input::Draining { session: self.session(words[0]) },
            "drain" => Input::Drain { session: self.session(words[0]) },
            "die" => {
                let (cause, reason) = match words.get(1) {
                    Some(&"oom") => (DeathCause::OutOfMemory, "OOMKilled: the memory limit is 128Mi"),
                    Some(&"taken") => (DeathCause::Taken, "Preempting: for a pod of more priority"),
                    _ => (DeathCause::Failed, "killed by signal 9"),
                };
                Input::Died { worker: words[0].to_owned(), cause, reason: reason.to_owned() }
            }
            "taken" => Input::BeingTaken { worker: words[0].to_owned(), reason: "its node is gone".to_owned() },
            "shares" => {
                let share = |word: &&str| {
                    let (task, mib) = word.split_once('=').unwrap();
                    (self.dispatch(task).1.handle, mib.parse::<u64>().unwrap() << 20)
                };
                Input::MemoryShares { session: self.session(words[0]), shares: words[1..].iter().map(share).collect() }
            }
            "pool" => Input::Pool {
                pool: words[0].to_owned(),
                components: vec![value(&words, "comp").unwrap_or("*").to_owned()],
                capacity: Resources { milli_cpus: 1_000, memory_bytes: u64::MAX, ..Resources::default() },
                starting: number(&words, "starting", 0) as u32,
                scaled: words.contains(&"scaled"),
                note: value(&words, "note").unwrap_or_default().replace('_', " "),
            },
            "start" | "ok" | "fail" => self.event(verb, &words),
            "back" | "keep" => {
                let session = self.session(words[0]);
                let handles: Vec<Handle> = words[1..].iter().map(|task| self.dispatch(task).1.handle).collect();
                match verb {
                    "back" => Input::RetractReply { session, given_back: handles, kept: Vec::new() },
                    _ => Input::RetractReply { session, given_back: Vec::new(), kept: handles },
                }
            }
            "cancel" => {
                let (group, index) = match words[0] {
                    "run" => (None, None),
                    task if task.contains('[') => {
                        let task = self.task(task).0;
                        (Some(task.group), Some(task.index))
                    }
                    group => (Some(self.groups[group]), None),
                };
                Input::Cancel { run: self.run, group, index }
            }
            "forget" => Input::Forget { run: self.run },
            "group" => {
                let (name, length) = words[0].split_once(':').unwrap();
                let specs = self.specs.clone();
                let spec = self.group(name, length, &words, &specs);
                self.specs.push(spec.clone());
                Input::AddGroup { run: self.run, ordinal: self.specs.len() as u32 - 1, spec: Box::new(spec) }
            }
            "append" => {
                let group = self.groups[words[0]];
                let first = self.machine.group(group).unwrap().length.unwrap();
                let count = words[1].parse().unwrap();
                let edges = words[2..].iter().filter_map(|word| {
                    let data = word.contains('<');
                    let (element, upstream) = word.split_once(['<', '~'])?;
                    let element = first + element.parse::<u32>().unwrap();
                    Some(Edge { element, upstream: self.task(upstream).0, data })
                });
                let first = value(&words, "first").map_or(first, |first| first.parse().unwrap());
                Input::Append { run: self.run, group, first, count, edges: edges.collect(), last: words.contains(&"last") }
            }
            "close" => Input::CloseRun { run: self.run },
            "release" => Input::Release {
                group: self.groups[words[0]],
                first: words[1].parse().unwrap(),
                count: words[2].parse().unwrap(),
            },
            "pause" | "resume" => Input::Pause { run: self.run, paused: verb == "pause" },
            "copied" => Input::ObjectCopied { session: self.session(words[0]), task: self.task(words[1]).0 },
            "empty" => Input::MoveObjects { sessions: words.iter().map(|worker| self.session(worker)).collect() },
            "kept" => Input::ObjectKept { session: self.session(words[0]), task: self.task(words[1]).0 },
            "notkept" => Input::ObjectNotKept { session: self.session(words[0]), task: self.task(words[1]).0 },
            "secured" => {
                let task = self.task(words[0]).0;
                Input::ObjectSecured { task, attempt: words[1].parse().unwrap() }
            }
            "holders" => {
                let holders = self.machine.holders(self.task(words[0]).0);
                let holders: Vec<&str> = holders.map(|session| self.workers[&session].as_str()).collect();
                return vec![if holders.is_empty() { "nobody".to_owned() } else { holders.join(" ") }];
            }
            "wait" => {
                self.now += (words[0].parse::<f64>().unwrap() * 1e6) as u64;
                Input::Tick
            }
            "explain" => {
                let task = self.task(words[0]).0;
                let said = self.machine.explain(task, self.now);
                return vec![said.map_or("nothing".to_owned(), |said| format!("{}: {}", said.state.word(), said.sentence))];
            }
            "counts" => return vec![self.counts(words[0])],
            "forgotten" => {
                let sum = self.machine.run(self.run).unwrap().forgotten;
                return vec![format!(
                    "{} groups: {} succeeded, {} failed, {} skipped, {} cancelled, {} retried",
                    sum.groups, sum.succeeded, sum.failed, sum.skipped, sum.cancelled, sum.retried
                )];
            }
            "used" => {
                let session = self.session(words[0]);
                let view = self.machine.workers().find(|view| view.session == session).unwrap();
                let mib = view.used.memory_bytes >> 20;
                return vec![format!(
                    "{} milli-cpus, {mib} MiB, {} execute, {} queue",
                    view.used.milli_cpus, view.executing, view.queued
                )];
            }
            "load" => return self.load(words[0]),
            "attempts" => {
                let task = self.task(words[0]).0;
                return vec![format!(
                    "{}, committed {:?}",
                    self.machine.task_attempt(task),
                    self.machine.committed_attempt(task)
                )];
            }
            other => panic!("no such command: {other}"),
        };
        let mut answers = self.step(line, input);
        if verb == "join" && !words.contains(&"half") {
            let session = self.session(words[0]);
            answers.extend(self.step(line, Input::Attach { session, connection: Connection::Data }));
            let active = format!("{} is Active", words[0]);
            answers.retain(|answer| *answer != active);
        }
        answers
    }

    fn step(&mut self, line: &str, input: Input) -> Vec<String> {
        let mut out = Vec::new();
        self.machine.step(self.now, input, &mut out);
        self.machine.check().unwrap_or_else(|what| panic!("{line}: {what}"));
        out.iter().filter_map(|output| self.render(output)).collect()
    }

    fn session(&self, name: &str) -> SessionId {
        self.sessions[name]
    }

    fn task(&self, word: &str) -> (TaskRef, Option<u32>) {
        let (task, attempt) = word.split_once('#').map_or((word, None), |(task, attempt)| (task, Some(attempt.parse().unwrap())));
        let (group, index) = task.strip_suffix(']').unwrap().split_once('[').unwrap();
        (TaskRef { group: self.groups[group], index: index.parse().unwrap() }, attempt)
    }

    fn dispatch(&self, word: &str) -> &(SessionId, Dispatch) {
        let (task, attempt) = self.task(word);
        match attempt {
            Some(attempt) => &self.dispatches[&(task, attempt)],
            None => {
                self.dispatches
                    .range((task, 0)..=(task, u32::MAX))
                    .next_back()
                    .unwrap_or_else(|| panic!("{word} was not dispatched"))
                    .1
            }
        }
    }

    fn event(&mut self, verb: &str, words: &[&str]) -> Input {
        let (session, dispatch) = self.dispatch(words[0]).clone();
        self.tokens += 1;
        let class = match verb {
            "fail" => class(words[1]),
            _ => OutcomeClass::Succeeded,
        };
        let finish = Finish {
            class,
            exit_code: value(words, "exit").map(|code| code.parse().unwrap()),
            signalled: words.contains(&"signalled"),
            wall: number(words, "wall", 1_000) * MILLISECOND,
            cpu: number(words, "wall", 1_000) * MILLISECOND,
            peak_memory_bytes: number(words, "peak", 0) << 20,
            length: value(words, "length").map(|length| length.parse().unwrap()),
            token: self.tokens,
            result: match (value(words, "held"), value(words, "files")) {
                (Some(mib), _) => Stored::Held(mib.parse::<u64>().unwrap() << 20),
                (None, Some(mib)) => Stored::Files(mib.parse::<u64>().unwrap() << 20),
                (None, None) => Stored::None,
            },
            missing: value(words, "missing").map(|missing| {
                let (task, worker) = missing.split_once('@').unwrap();
                Box::new(Missing(vec![(self.task(task).0, self.session(worker))]))
            }),
        };
        let kind = if verb == "start" { EventKind::Started } else { EventKind::Finished(finish) };
        Input::Events { session, events: vec![WorkerEvent { handle: dispatch.handle, attempt: dispatch.attempt, kind }] }
    }

    fn join(&mut self, words: &[&str]) -> Input {
        let session = SessionId(self.workers.len() as u64 + 1);
        self.sessions.insert(words[0].to_owned(), session);
        self.workers.insert(session, words[0].to_owned());
        let mut capacity = Resources {
            milli_cpus: number(words, "cpus", 1) * 1_000,
            memory_bytes: value(words, "mem").map_or(u64::MAX, |mem| mem.parse::<u64>().unwrap() << 20),
            gpus: number(words, "gpus", 0),
            ..Resources::default()
        };
        if let Some((name, amount)) = value(words, "has").and_then(|has| has.split_once(':')) {
            capacity.custom.push((self.machine.names_mut().intern(name).unwrap(), amount.parse().unwrap()));
        }
        let worker = WorkerSpec {
            name: words[0].to_owned(),
            pool: value(words, "pool").unwrap_or("p").to_owned(),
            components: vec![value(words, "comp").unwrap_or("*").to_owned()],
            capacity,
        };
        Input::Join { session, worker }
    }

    fn submit(&mut self, rest: &str) -> Input {
        self.keys += 1;
        let all: Vec<&str> = rest.split_whitespace().collect();
        let totals: Vec<_> = value(&all, "totals")
            .map(|total| total.split_once(':').unwrap())
            .map(|(name, amount)| (self.machine.names_mut().intern(name).unwrap(), amount.parse().unwrap()))
            .into_iter()
            .collect();
        let mut groups: Vec<GroupSpec> = Vec::new();
        for text in rest.split(';') {
            let words: Vec<&str> = text.split_whitespace().collect();
            let (name, length) = words[0].split_once(':').unwrap();
            let group = self.group(name, length, &words, &groups);
            groups.push(group);
        }
        self.specs = groups.clone();
        let key = number(&all, "key", u64::from(self.keys)) as u8;
        Input::Submit(Box::new(RunSpec {
            name: value(&all, "run").unwrap_or("r").to_owned(),
            owner: "me".to_owned(),
            weight: number(&all, "weight", 1) as u32,
            client_key: [key; 16],
            max_failures: number(&all, "max_failures", 0) as u32,
            open: all.contains(&"open"),
            keeps: false,
            totals,
            groups,
        }))
    }

    fn group(&mut self, name: &str, length: &str, words: &[&str], earlier: &[GroupSpec]) -> GroupSpec {
        let ordinal = |name: &str| earlier.iter().position(|group| group.name == name).unwrap_or(99);
        let fixed = |at: usize| match earlier.get(at).map(|group| group.length) {
            Some(Length::Fixed(length)) => length,
            _ => 0,
        };
        let own: u32 = length.parse().unwrap_or(0);
        let mut dependencies = Vec::new();
        for word in words.iter().filter_map(|word| word.split_once('=')) {
            let (data, word) = match word {
                ("reads", rest) => (true, rest.split_once(':').unwrap()),
                word => (false, word),
            };
            let (key, on) = (word.0, word.1.split([':', '[']).next().unwrap());
            let at = ordinal(on);
            let kind = match key {
                "after" => DependencyKind::Whole,
                "one" => DependencyKind::One(word.1.split_once('[').unwrap().1.strip_suffix(']').unwrap().parse().unwrap()),
                "each" => DependencyKind::Projection(vec![Axis { length: fixed(at), upstream_stride: 1, downstream_stride: 1 }]),
                "into" => DependencyKind::Projection(vec![
                    Axis { length: own, upstream_stride: fixed(at) / own.max(1), downstream_stride: 1 },
                    Axis { length: fixed(at) / own.max(1), upstream_stride: 1, downstream_stride: 0 },
                ]),
                "edges" => DependencyKind::Edges(
                    word.1
                        .split_once(':')
                        .unwrap()
                        .1
                        .split('+')
                        .map(|edge| edge.split_once('-').unwrap())
                        .map(|(from, to)| (from.parse().unwrap(), to.parse().unwrap()))
                        .collect(),
                ),
                _ => continue,
            };
            dependencies.push(Dependency { group: at, kind, data });
        }
        let mut resources = Resources {
            milli_cpus: number(words, "cpus", 1) * 1_000,
            memory_bytes: number(words, "mem", 0) << 20,
            gpus: number(words, "gpus", 0),
            ..Resources::default()
        };
        if let Some((name, amount)) = value(words, "takes").and_then(|takes| takes.split_once(':')) {
            resources.custom.push((self.machine.names_mut().intern(name).unwrap(), amount.parse().unwrap()));
        }
        let mut policy = Policy {
            retries: number(words, "retries", 0) as u32,
            timeout: number(words, "timeout", 0) * SECOND,
            lost_worker_budget: number(words, "lost", 3) as u32,
            ..Policy::default()
        };
        policy.backoff.initial = number(words, "backoff", 0) * SECOND;
        if let Some((factor, max)) = value(words, "oom").and_then(|oom| oom.split_once(':')) {
            policy.on_oom = Growth { factor_milli: factor.parse().unwrap(), max: max.parse::<u64>().unwrap() << 20 };
        }
        policy.on_timeout.factor_milli = number(words, "grow", 1_000) as u32;
        policy.retry_on = value(words, "on")
            .into_iter()
            .map(|on| match on {
                "signal" => RetryOn::Signal,
                "lost" => RetryOn::Lost,
                "oom" => RetryOn::Oom,
                "timeout" => RetryOn::Timeout,
                "missing_output" => RetryOn::MissingOutput,
                exit => RetryOn::Exit(exit.strip_prefix("exit:").unwrap().parse().unwrap()),
            })
            .collect();
        GroupSpec {
            name: name.replace('_', " "),
            component: value(words, "comp").unwrap_or("c").to_owned(),
            length: match value(words, "from") {
                Some(from) => Length::From(ordinal(from)),
                None if length == "grow" => Length::Growing,
                None => Length::Fixed(own),
            },
            dependencies,
            priority: value(words, "prio").map_or(0, |prio| prio.parse().unwrap()),
            max_parallel: number(words, "parallel", 0) as u32,
            always: words.contains(&"always"),
            policy,
            resources,
        }
    }

    /// What the planner is shown of a pool.
    fn load(&self, pool: &str) -> Vec<String> {
        let load = self.machine.pool_load(pool);
        let groups = load.groups.iter().enumerate().map(|(at, group)| {
            let (queued, slots) = (group.queued, group.slots);
            let mut line = format!("{at}: {queued} queued, {slots} a worker");
            if group.soon > 0 {
                let _ = write!(line, ", {} in {} ms", group.soon, group.soon_in / MILLISECOND);
            }
            line
        });
        let workers = load.workers.iter().map(|worker| {
            let running: Vec<u32> = worker.running.iter().map(|running| running.group).collect();
            let state = match (worker.draining, worker.idle) {
                (true, _) => "draining",
                (_, true) => "idle",
                _ => "busy",
            };
            format!("{}: {state}, runs {running:?}, was sent {}, {} B", worker.name, worker.dispatched, worker.only_bytes)
        });
        groups.chain(workers).collect()
    }

    fn counts(&self, name: &str) -> String {
        let view = self.machine.group(self.groups[name]).unwrap();
        let counts = [
            (view.waiting, "waiting"),
            (view.ready, "ready"),
            (view.backoff, "backoff"),
            (view.assigned, "assigned"),
            (view.running, "running"),
            (view.succeeded, "succeeded"),
            (view.failed, "failed"),
            (view.skipped, "skipped"),
            (view.cancelled, "cancelled"),
            (view.retried, "retried"),
        ];
        let counts: Vec<String> =
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
        counts.join(", ")
    }

    fn name(&self, task: TaskRef) -> String {
        format!("{}[{}]", self.group_names[&task.group], task.index)
    }

    fn span(&self, group: GroupId, first: u32, count: u32) -> String {
        let name = &self.group_names[&group];
        match count {
            0 => name.clone(),
            1 => format!("{name}[{first}]"),
            _ => format!("{name}[{first}..{}]", first + count),
        }
    }

    fn attempts(&self, handles: &[Handle]) -> String {
        let name = |handle: &Handle| {
            let (task, attempt) = self.handles[handle];
            format!("{}#{attempt}", self.name(task))
        };
        handles.iter().map(name).collect::<Vec<_>>().join(" ")
    }

    fn render(&mut self, output: &Output) -> Option<String> {
        let line = match output {
            Output::Submitted { run, first_group, known, .. } => {
                self.run = *run;
                let view = self.machine.run(*run)?;
                self.run_names.insert(*run, view.name);
                for id in (first_group.0..first_group.0 + view.groups).map(GroupId) {
                    let name = self.machine.group(id)?.name;
                    self.groups.insert(name.clone(), id);
                    self.group_names.insert(id, name);
                }
                return known.then(|| "known".to_owned());
            }
            Output::Refused { code, message, .. } => format!("refused {code}: {message}"),
            Output::Dispatch { session, dispatch } => {
                self.dispatches.insert((dispatch.task, dispatch.attempt), (*session, dispatch.clone()));
                self.handles.insert(dispatch.handle, (dispatch.task, dispatch.attempt));
                let shape = self.machine.shape(dispatch.shape)?;
                let mut line = format!("{} <- {}#{}", self.workers[session], self.name(dispatch.task), dispatch.attempt);
                if shape.memory_bytes > 0 {
                    let _ = write!(line, " with {} MiB", shape.memory_bytes >> 20);
                }
                if dispatch.timeout > 0 {
                    let _ = write!(line, " for {} s", dispatch.timeout / SECOND);
                }
                line
            }
            Output::Retract { session, handles } => format!("{} retract {}", self.workers[session], self.attempts(handles)),
            Output::CancelAttempts { session, handles } => format!("{} cancel {}", self.workers[session], self.attempts(handles)),
            Output::DrainWorker { session } => format!("{} drain", self.workers[session]),
            Output::CloseSession { session, reason } => format!("{} close: {reason}", self.workers[session]),
            Output::AttemptStarted { task, attempt, session } => {
                format!("{}#{attempt} starts on {}", self.name(*task), self.workers[session])
            }
            Output::AttemptEnded { task, attempt, class, retry_at, why, .. } => {
                let again = match retry_at {
                    None => "for good".to_owned(),
                    Some(at) if *at <= self.now => "again".to_owned(),
                    Some(at) => format!("again in {} s", (at - self.now) / SECOND),
                };
                let why = why.as_deref().map_or(String::new(), |why| format!(": {why}"));
                format!("{}#{attempt} ends {class:?}, {again}{why}", self.name(*task))
            }
            Output::Committed { task, attempt, .. } => format!("{}#{attempt} committed", self.name(*task)),
            Output::Superseded { .. } => "superseded".to_owned(),
            Output::TaskFailed { task, attempts, class } => format!("{} failed after {attempts}: {class:?}", self.name(*task)),
            Output::Skipped { group, first, count, root } => {
                format!("{} skipped because of {}", self.span(*group, *first, *count), self.name(*root))
            }
            Output::Cancelled { group, first, count } => format!("{} cancelled", self.span(*group, *first, *count)),
            Output::LengthKnown { group, length } => format!("{} has {length}", self.group_names[group]),
            Output::GroupAdded { group, .. } => {
                let name = self.machine.group(*group)?.name;
                self.groups.insert(name.clone(), *group);
                self.group_names.insert(*group, name);
                return None;
            }
            Output::Rejected { ordinal, first, count, code, message, .. } => {
                let name = self.specs.get(*ordinal as usize).map_or("?", |spec| spec.name.as_str());
                match count {
                    0 => format!("{name} rejected {code}: {message}"),
                    count => format!("{name}[{first}..{}] rejected {code}: {message}", first + count),
                }
            }
            Output::Restored { task, attempt, .. } => format!("{}#{attempt} restored", self.name(*task)),
            Output::Released { group, first, count } => format!("{} released", self.span(*group, *first, *count)),
            Output::GroupForgotten { group, .. } => format!("{} forgotten", self.group_names[group]),
            Output::Fetch { session, task, attempt } => {
                format!("{} is to keep {}#{attempt}", self.workers[session], self.name(*task))
            }
            Output::DropObject { session, task } => format!("{} may drop {}", self.workers[session], self.name(*task)),
            Output::RunEnded { run, end } => format!("run {} {end:?}", self.run_names[run]),
            Output::WorkerChanged { state: WorkerState::Joining, .. } => return None,
            Output::WorkerChanged { session, state } => format!("{} is {state:?}", self.workers[session]),
        };
        Some(line)
    }
}

fn connection(word: &str) -> Connection {
    match word {
        "control" => Connection::Control,
        _ => Connection::Data,
    }
}

fn value<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.trim_end_matches(';').strip_prefix(key)?.strip_prefix('='))
}

fn number(words: &[&str], key: &str, otherwise: u64) -> u64 {
    value(words, key).map_or(otherwise, |value| value.parse().unwrap())
}

fn class(word: &str) -> OutcomeClass {
    match word {
        "error" => OutcomeClass::AppError,
        "oom" => OutcomeClass::Oom,
        "timeout" => OutcomeClass::Timeout,
        "missing" => OutcomeClass::MissingOutput,
        "infra" => OutcomeClass::InfraStart,
        "preempted" => OutcomeClass::Preempted,
        "cancelled" => OutcomeClass::Cancelled,
        "lost" => OutcomeClass::InputLost,
        other => panic!("no such class: {other}"),
    }
}
