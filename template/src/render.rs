//! From a template and one element to what is executed: arguments and environment.

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use scalable_proto::v1::{Builtin, Piece, StartIn, TaskTemplate, Text, piece::Kind, task_template::Command};

use crate::shell::{ShellError, check_shell, quote_into};

/// What one attempt knows beyond the template: where its inputs, outputs and directory are.
///
/// Names that the template does not declare are answered with `None`.
pub trait Context {
    /// Paths of an input, in index order; none for one whose optional output was not written.
    fn input(&self, name: &str) -> Option<Cow<'_, [PathBuf]>>;
    /// A file with the input's paths, one a line.
    fn input_list(&self, name: &str) -> Option<PathBuf>;
    /// Path the output is to be written to.
    fn output(&self, name: &str) -> Option<PathBuf>;
    /// The element's value of a parameter.
    fn parameter(&self, name: &str) -> Option<Cow<'_, str>>;
    /// A figure of the attempt; [`Builtins::get`] answers all but [`Builtin::Workdir`].
    fn builtin(&self, builtin: Builtin) -> Option<OsString>;
}

/// Figures of an attempt that a command can name.
#[derive(Clone, Debug)]
pub struct Builtins<'a> {
    /// Name of the run.
    pub run: &'a str,
    /// Name of the group.
    pub group: &'a str,
    /// Index in the group.
    pub index: u32,
    /// From 1.
    pub attempt: u32,
    /// The task's number.
    pub task_id: u64,
    /// What it was given, thousandths of a cpu.
    pub milli_cpus: u64,
    /// What it was given, bytes.
    pub memory_bytes: u64,
    /// The attempt's own directory, where it has one.
    pub workdir: Option<&'a Path>,
}

impl Builtins<'_> {
    /// The value as text.
    pub fn get(&self, builtin: Builtin) -> Option<OsString> {
        match builtin {
            Builtin::Unspecified => None,
            Builtin::Workdir => self.workdir.map(|path| path.as_os_str().to_owned()),
            Builtin::Index => Some(self.index.to_string().into()),
            Builtin::Run => Some(self.run.into()),
            Builtin::Group => Some(self.group.into()),
            Builtin::Attempt => Some(self.attempt.to_string().into()),
            Builtin::TaskId => Some(self.task_id.to_string().into()),
            Builtin::Cpus => Some(format_cpus(self.milli_cpus).into()),
            Builtin::Memory => Some(self.memory_bytes.to_string().into()),
        }
    }
}

/// Milli-cpus as a decimal without trailing zeros: `2`, `0.5`, `1.25`.
pub fn format_cpus(milli_cpus: u64) -> String {
    let (whole, rest) = (milli_cpus / 1000, milli_cpus % 1000);
    if rest == 0 { whole.to_string() } else { format!("{whole}.{rest:03}").trim_end_matches('0').to_owned() }
}

/// A command ready to be executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// Program and arguments, at least one; `["/bin/sh", "-c", text]` for `shell:`.
    pub argv: Vec<OsString>,
    /// The template's environment, sorted by name.
    pub env: Vec<(String, OsString)>,
    /// Where it starts.
    pub start_in: StartIn,
}

/// Why a command could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// No command at all, or one without a program.
    #[error("the task has no command")]
    NoCommand,
    /// A name the element, template or context does not know.
    #[error("the command names {kind} `{name}`, which the task does not have")]
    Unknown {
        /// `parameter`, `input`, `output`, `builtin`.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A NUL byte, which no argument and no environment variable can hold.
    #[error("{0} contains a NUL byte, which a command cannot be given")]
    Nul(String),
    /// A path in a shell text that is not UTF-8.
    #[error("a path for {0} is not UTF-8 and cannot stand in a shell text")]
    NotUtf8(String),
    /// A name of an environment variable that is empty or holds `=`.
    #[error("`{0}` is not a name of an environment variable")]
    BadEnvName(String),
    /// A substitution in a shell text where it is not one word.
    #[error(transparent)]
    Shell(#[from] ShellError),
}

/// Makes the command of one element.
///
/// An argument that is nothing but one `{inputs.x}` becomes one argument a path (none for an input that is absent). Inside a larger
/// argument and in the environment several paths are joined by one space; `{inputs.x.list}` is the form that any path survives.
///
/// # Errors
/// See [`RenderError`].
pub fn render(template: &TaskTemplate, context: &dyn Context) -> Result<Rendered, RenderError> {
    let argv = match &template.command {
        // A function is called in a lane host; there is nothing to start.
        Some(Command::Function(_)) | None => return Err(RenderError::NoCommand),
        Some(Command::Argv(argv)) => {
            let mut made = Vec::with_capacity(argv.args.len());
            for text in &argv.args {
                argument(text, context, &mut made)?;
            }
            made
        }
        Some(Command::Shell(text)) => vec!["/bin/sh".into(), "-c".into(), shell_text(text, context)?.into()],
    };
    if argv.first().is_none_or(|program| program.is_empty()) {
        return Err(RenderError::NoCommand);
    }
    let mut env = Vec::with_capacity(template.env.len());
    for (name, text) in &template.env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(RenderError::BadEnvName(name.chars().take(100).collect()));
        }
        env.push((name.clone(), render_text(text, context)?));
    }
    env.sort_unstable();
    Ok(Rendered { argv, env, start_in: template.start_in() })
}

/// One text with its substitutions; several paths are joined by one space.
///
/// # Errors
/// See [`RenderError`].
pub fn render_text(text: &Text, context: &dyn Context) -> Result<OsString, RenderError> {
    let mut out = OsString::new();
    for piece in &text.pieces {
        for (nth, value) in values(piece, context)?.into_iter().enumerate() {
            if nth > 0 {
                out.push(" ");
            }
            out.push(value);
        }
    }
    Ok(out)
}

fn argument(text: &Text, context: &dyn Context, argv: &mut Vec<OsString>) -> Result<(), RenderError> {
    if let [Piece { kind: Some(Kind::Input(_)) }] = text.pieces.as_slice() {
        argv.extend(values(&text.pieces[0], context)?);
    } else {
        argv.push(render_text(text, context)?);
    }
    Ok(())
}

fn shell_text(text: &Text, context: &dyn Context) -> Result<String, RenderError> {
    check_shell(text)?;
    let mut out = String::new();
    for piece in &text.pieces {
        if let Some(Kind::Literal(literal)) = &piece.kind {
            no_nul("the shell text", literal.as_bytes())?;
            out.push_str(literal);
            continue;
        }
        for (nth, value) in values(piece, context)?.iter().enumerate() {
            if nth > 0 {
                out.push(' ');
            }
            quote_into(&mut out, value.to_str().ok_or_else(|| RenderError::NotUtf8(describe(piece)))?);
        }
    }
    Ok(out)
}

/// What a piece stands for: one value, or the paths of an input.
fn values(piece: &Piece, context: &dyn Context) -> Result<Vec<OsString>, RenderError> {
    let unknown = |kind, name: &str| RenderError::Unknown { kind, name: name.chars().take(200).collect() };
    let made: Vec<OsString> = match &piece.kind {
        None => Vec::new(),
        Some(Kind::Literal(literal)) => vec![literal.into()],
        Some(Kind::Parameter(name)) => {
            vec![context.parameter(name).ok_or_else(|| unknown("parameter", name))?.into_owned().into()]
        }
        Some(Kind::Input(name)) => {
            let paths = context.input(name).ok_or_else(|| unknown("input", name))?;
            paths.iter().map(|path| path.as_os_str().to_owned()).collect()
        }
        Some(Kind::InputList(name)) => vec![context.input_list(name).ok_or_else(|| unknown("input", name))?.into()],
        Some(Kind::Output(name)) => vec![context.output(name).ok_or_else(|| unknown("output", name))?.into()],
        Some(Kind::Builtin(raw)) => {
            let builtin = Builtin::try_from(*raw).unwrap_or_default();
            vec![context.builtin(builtin).ok_or_else(|| unknown("builtin", builtin.as_str_name()))?]
        }
    };
    for value in &made {
        no_nul(&describe(piece), value.as_encoded_bytes())?;
    }
    Ok(made)
}

fn no_nul(what: &str, bytes: &[u8]) -> Result<(), RenderError> {
    if bytes.contains(&0) { Err(RenderError::Nul(what.to_owned())) } else { Ok(()) }
}

fn describe(piece: &Piece) -> String {
    let (kind, name) = match &piece.kind {
        Some(Kind::Parameter(name)) => ("parameter", name.as_str()),
        Some(Kind::Input(name) | Kind::InputList(name)) => ("input", name.as_str()),
        Some(Kind::Output(name)) => ("output", name.as_str()),
        _ => return "an argument".to_owned(),
    };
    format!("{kind} `{}`", name.chars().take(200).collect::<String>())
}

/// True when an attempt of this template needs a directory of its own: it has outputs, inputs, files or a standard input, starts in
/// it, or its command or environment names it or a list of paths.
pub fn needs_directory(template: &TaskTemplate) -> bool {
    let names_it = |text: &Text| {
        text.pieces.iter().any(|piece| match &piece.kind {
            Some(Kind::Builtin(builtin)) => *builtin == Builtin::Workdir as i32,
            Some(Kind::Input(_) | Kind::InputList(_) | Kind::Output(_)) => true,
            _ => false,
        })
    };
    let command = match &template.command {
        Some(Command::Argv(argv)) => argv.args.iter().any(names_it),
        Some(Command::Shell(text)) => names_it(text),
        Some(Command::Function(_)) | None => false,
    };
    command
        || template.start_in() == StartIn::Work
        || !(template.outputs.is_empty() && template.inputs.is_empty() && template.files.is_empty())
        || template.stdin.is_some()
        || template.env.values().any(names_it)
}
