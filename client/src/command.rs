//! Commands as tasks: what a manifest calls a task, from Rust.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use scalable_proto::v1;
use serde::{Deserialize, Serialize};
use v1::piece::Kind;

use crate::backend::Backend;
use crate::handle::Handle;
use crate::options::Options;
use crate::outbox::Elements;
use crate::session::{Session, refused};
use crate::task_error::Attempt;
use crate::{Error, TaskError, codec, template};

/// A command that a session runs as a task: a program and its arguments, environment, outputs and [`Options`].
///
/// ```no_run
/// # async fn example() -> Result<(), scalable::Error> {
/// let session = scalable::Session::start().directory("runs/fair").await?;
/// let command = scalable::Command::new("python3")
///     .args(["simulate.py", "ssp245"])
///     .output_file("series", "--out=", "")
///     .env("OMP_NUM_THREADS", "1")
///     .options(scalable::Options::new().memory("512MB").timeout("5m").retries(1));
/// let done = session.command(command).await?.await?;
/// let series = std::fs::read_to_string(done.output("series")?).unwrap();
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Command {
    argv: Vec<v1::Text>,
    env: Vec<(String, v1::Text)>,
    outputs: Vec<v1::Output>,
    success_codes: Vec<i32>,
    options: Options,
}

fn literal(text: impl Into<String>) -> v1::Piece {
    v1::Piece { kind: Some(Kind::Literal(text.into())) }
}

fn text(pieces: impl IntoIterator<Item = v1::Piece>) -> v1::Text {
    v1::Text { pieces: pieces.into_iter().collect() }
}

impl Command {
    /// The program, by path or to be found in the worker's `PATH`.
    pub fn new(program: impl Into<String>) -> Command {
        let argv = vec![text([literal(program)])];
        Command { argv, env: Vec::new(), outputs: Vec::new(), success_codes: Vec::new(), options: Options::new() }
    }

    /// One more argument.
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.argv.push(text([literal(argument)]));
        self
    }

    /// More arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.argv.extend(arguments.into_iter().map(|argument| text([literal(argument)])));
        self
    }

    /// A variable of its environment.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), text([literal(value)])));
        self
    }

    /// An argument that is the path of a file which the command writes, between `before` and `after`: its output `name`. A command that
    /// succeeds and has not written it has failed.
    pub fn output_file(self, name: &str, before: &str, after: &str) -> Self {
        self.output(name, v1::OutputKind::File, before, after)
    }

    /// As [`Command::output_file`], for a directory.
    pub fn output_dir(self, name: &str, before: &str, after: &str) -> Self {
        self.output(name, v1::OutputKind::Dir, before, after)
    }

    fn output(mut self, name: &str, kind: v1::OutputKind, before: &str, after: &str) -> Self {
        self.outputs.push(v1::Output { name: name.to_owned(), kind: kind.into(), ..Default::default() });
        let output = v1::Piece { kind: Some(Kind::Output(name.to_owned())) };
        let around = |text: &str| Some(text).filter(|text| !text.is_empty()).map(literal);
        self.argv.push(text(around(before).into_iter().chain([output]).chain(around(after))));
        self
    }

    /// Exit codes that mean success; 0 unless said.
    pub fn success_codes(mut self, codes: impl IntoIterator<Item = i32>) -> Self {
        self.success_codes = codes.into_iter().collect();
        self
    }

    /// What it takes, and what happens when it ends badly.
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// What it is called in tables: the program's file name.
    fn name(&self) -> String {
        let program = match self.argv.first().and_then(|text| text.pieces.first()?.kind.clone()) {
            Some(Kind::Literal(program)) => program,
            _ => String::new(),
        };
        let name = Path::new(&program).file_name().unwrap_or_default().to_string_lossy();
        let safe: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect();
        if safe.trim_start_matches('.').is_empty() { "command".to_owned() } else { safe.trim_start_matches('.').to_owned() }
    }

    fn spec(&self, name: String) -> v1::GroupSpec {
        let template = v1::TaskTemplate {
            component: template::component(&self.options),
            command: Some(v1::task_template::Command::Argv(v1::Argv { args: self.argv.clone() })),
            env: self.env.iter().cloned().collect(),
            outputs: self.outputs.clone(),
            success_codes: self.success_codes.clone(),
            ..Default::default()
        };
        let spec = v1::GroupSpec { name, template: Some(template), growing: true, deliver: true, ..Default::default() };
        template::with_options(spec, &self.options)
    }
}

/// What a command leaves behind that has succeeded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// Its exit code.
    pub exit_code: i32,
    /// The end of what it wrote to its output, at most 4 KiB. Whole outputs are in the run's logs, where there is a directory.
    pub stdout: String,
    /// The end of what it wrote to its error output, at most 4 KiB.
    pub stderr: String,
    /// How long it ran.
    pub wall: Duration,
    /// Highest memory seen, bytes.
    pub peak_memory_bytes: u64,
    outputs: Vec<(String, PathBuf)>,
}

impl Finished {
    /// Where one of its outputs is.
    ///
    /// # Errors
    /// [`Error::Refused`] when the command has no output of that name.
    pub fn output(&self, name: &str) -> Result<&Path, Error> {
        let found = self.outputs.iter().find(|(known, _)| known == name).map(|(_, path)| path.as_path());
        found.ok_or_else(|| {
            let names: Vec<&str> = self.outputs.iter().map(|(known, _)| known.as_str()).collect();
            refused("NO_OUTPUT", format!("the command has no output {name:?}; it has {names:?}"), "")
        })
    }
}

/// What a report says, as the bytes of a [`Finished`].
pub(crate) fn encoded(report: &v1::AttemptReport) -> Result<Bytes, Error> {
    let finished = Finished {
        exit_code: report.exit_code.unwrap_or_default(),
        stdout: String::from_utf8_lossy(&report.stdout_tail).into_owned(),
        stderr: String::from_utf8_lossy(&report.stderr_tail).into_owned(),
        wall: Duration::from_micros(u64::try_from(report.finished_us - report.started_us).unwrap_or(0)),
        peak_memory_bytes: report.peak_memory_bytes,
        outputs: Vec::new(),
    };
    let mut bytes = Vec::new();
    codec::encode(&finished, &mut bytes).map_err(|error| {
        let (message, attempt) = (error.to_string(), Arc::new(Attempt::default()));
        Error::Task(TaskError::Undecodable { message, attempt })
    })?;
    Ok(bytes.into())
}

/// A command that was submitted: awaiting it gives what it leaves behind.
#[derive(Debug)]
#[must_use = "a handle that is dropped says that nobody needs the result"]
pub struct Running {
    handle: Handle<Finished>,
    outputs: Vec<String>,
    directory: Option<PathBuf>,
}

impl Running {
    /// The task's handle.
    pub fn handle(&self) -> &Handle<Finished> {
        &self.handle
    }

    async fn finish(self) -> Result<Finished, Error> {
        let mut finished = (&self.handle).await?;
        for name in &self.outputs {
            if let Some(path) = self.directory.as_deref().and_then(|directory| self.committed(directory, name)) {
                finished.outputs.push((name.clone(), path));
            }
        }
        Ok(finished)
    }

    /// Where an output is: of the attempts that have written it the last, which is the one that succeeded.
    fn committed(&self, directory: &Path, name: &str) -> Option<PathBuf> {
        let group = self.handle.group().name();
        let attempts = directory.join("objects").join(group).join(self.handle.index().to_string());
        let numbers = std::fs::read_dir(&attempts).ok()?.flatten();
        let newest = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).max()?;
        Some(attempts.join(newest.to_string()).join(name))
    }
}

impl std::future::IntoFuture for Running {
    type Output = Result<Finished, Error>;
    type IntoFuture = std::pin::Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.finish())
    }
}

impl Session {
    /// Submits a command as a task.
    ///
    /// # Errors
    /// As [`Session::submit`]; [`Error::Refused`] when it has outputs and the session no directory, and inside a process.
    pub async fn command(&self, command: Command) -> Result<Running, Error> {
        if let Some(fault) = &command.options.fault {
            return Err(refused("BAD_OPTION", fault.clone(), ""));
        }
        let Backend::Remote(remote) = &self.inner.backend else {
            let message = "a session inside a process runs functions only".to_owned();
            return Err(refused("NO_COMMANDS", message, "use Session::start(), which has workers"));
        };
        if !command.outputs.is_empty() && remote.directory.is_none() {
            let message = "the command has outputs, and the session has no directory to put them".to_owned();
            return Err(refused("NO_DIRECTORY", message, "name one: Session::start().directory(…)"));
        }
        let name = if command.options.name.is_empty() { command.name() } else { command.options.name.clone() };
        let spec = self.in_component(command.spec(self.unique_name(&name)), &command.options)?;
        let group = self.add_group(spec, false);
        let mut elements = Elements::default();
        elements.push(&[]);
        self.append_elements(&group, &mut Some(elements), true).await?;
        let outputs = command.outputs.into_iter().map(|output| output.name).collect();
        Ok(Running { handle: Handle::new(group, 0, true), outputs, directory: remote.directory.clone() })
    }
}
