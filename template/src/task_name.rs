//! Names of tasks as people type them: `run/group[index]`, `group[scenario=rcp45,member=7]`, `group`.

use crate::name::unescape;

/// A task's name taken apart. Borrowed from what was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskName<'a> {
    /// The run, when one was named.
    pub run: Option<&'a str>,
    /// The group.
    pub group: &'a str,
    /// Which element.
    pub element: Element,
}

/// Which element of a group a name means; see [`crate::Space::find_element`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Element {
    /// None was named: the group, or its only element.
    Whole,
    /// By number.
    Index(u32),
    /// By parameters, unescaped.
    Values(Vec<(String, String)>),
    /// By a readable name that had been cut: it ends in `~` and a digest.
    Cut(String),
}

/// Why a task's name could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{name}` is not a task: write `group`, `group[7]`, `group[scenario=rcp45,member=7]`, each with `run/` before it if need be"
)]
pub struct TaskNameError {
    name: String,
}

/// Reads a task's name. Whether run, group and element exist is not its business.
///
/// # Errors
/// When it has not the form of one.
pub fn parse_task_name(name: &str) -> Result<TaskName<'_>, TaskNameError> {
    parse(name.trim()).ok_or_else(|| TaskNameError { name: name.chars().take(200).collect() })
}

fn parse(name: &str) -> Option<TaskName<'_>> {
    let (path, element) = match name.split_once('[') {
        Some((path, rest)) => (path, parse_element(rest.strip_suffix(']')?)?),
        None => (name, Element::Whole),
    };
    let (run, group) = match path.rsplit_once('/') {
        Some((run, group)) => (Some(run).filter(|run| !run.is_empty() && !run.contains('/')).map(Some)?, group),
        None => (None, path),
    };
    (!group.is_empty()).then_some(TaskName { run, group, element })
}

fn parse_element(text: &str) -> Option<Element> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().map(Element::Index);
    }
    if text.contains('~') {
        return Some(Element::Cut(text.to_owned()));
    }
    let pair = |part: &str| {
        let (name, value) = part.split_once('=')?;
        Some((unescape(name.trim_start())?, unescape(value)?))
    };
    text.split(',').map(pair).collect::<Option<Vec<_>>>().map(Element::Values)
}
