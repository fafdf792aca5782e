//! The environment a task has: the names the agent sets and what the manifest says, with paths as they are in a kept directory.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use scalable_proto::v1;
use scalable_template::{Builtins, Context, Space, render_text};

use crate::exit::Failure;
use crate::ui::Ui;
use crate::which::Which;
use crate::workflow::{self, Wanted};

/// What every task has.
pub fn standard(run: &str, group: &str, index: u32, attempt: u32, work: &Path) -> Vec<(String, OsString)> {
    vec![
        ("SCALABLE_RUN".to_owned(), run.into()),
        ("SCALABLE_GROUP".to_owned(), group.into()),
        ("SCALABLE_INDEX".to_owned(), index.to_string().into()),
        ("SCALABLE_ATTEMPT".to_owned(), attempt.to_string().into()),
        ("SCALABLE_WORKDIR".to_owned(), work.into()),
    ]
}

/// What a task of a run has, from the run's manifest.
///
/// # Errors
/// When the manifest is gone or not valid any more.
pub fn of_task(
    ui: Ui,
    which: &Which,
    group: &str,
    index: u32,
    attempt: u32,
    kept: &Path,
) -> Result<Vec<(String, OsString)>, Failure> {
    let workflow = workflow::load_of_run(ui, &which.directory, &which.record)?;
    let submission = workflow.submission(ui, &which.directory, &Wanted::default())?;
    let groups = &submission.spec.groups;
    let spec = groups.iter().find(|spec| spec.name == group);
    let spec = spec.ok_or_else(|| Failure::usage(format!("the manifest of the run has no group {group}")))?;
    let template = spec.template.as_ref().ok_or_else(|| Failure::usage(format!("group {group} has no template")))?;
    let space = Space::with_length(&spec.parameters.clone().unwrap_or_default(), spec.length)
        .map_err(|error| Failure::usage(format!("group {group}: {error}")))?;
    let work = kept.join("work");
    let resources = spec.resources.clone().unwrap_or_default();
    let figures = Builtins {
        run: &which.directory.name,
        group,
        index,
        attempt,
        task_id: 0,
        milli_cpus: resources.milli_cpus,
        memory_bytes: resources.memory_bytes,
        workdir: Some(&work),
    };
    let kept = Kept { directory: kept, template, space: &space, figures };
    let mut environment = standard(&which.directory.name, group, index, attempt, &work);
    for (name, text) in &template.env {
        let value =
            render_text(text, &kept).map_err(|error| Failure::usage(format!("variable {name} of {group}[{index}]: {error}")))?;
        environment.push((name.clone(), value));
    }
    Ok(environment)
}

/// An attempt's directory as the worker has left it: `work`, `in/<input>`, `out/<output>`.
struct Kept<'a> {
    directory: &'a Path,
    template: &'a v1::TaskTemplate,
    space: &'a Space,
    figures: Builtins<'a>,
}

impl Context for Kept<'_> {
    fn input(&self, name: &str) -> Option<Cow<'_, [PathBuf]>> {
        let input = self.template.inputs.iter().find(|input| input.name == name)?;
        let at = if input.r#as.is_empty() {
            self.directory.join("in").join(name)
        } else {
            self.directory.join("work").join(&input.r#as)
        };
        let many =
            matches!(input.source.as_ref().and_then(|source| source.select.as_ref()), Some(v1::input_source::Select::All(_)));
        if !many {
            return Some(if at.exists() { vec![at] } else { Vec::new() }.into());
        }
        let mut elements: Vec<(u32, PathBuf)> = fs::read_dir(&at)
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                Some((path.file_name()?.to_str()?.parse().ok()?, path))
            })
            .collect();
        elements.sort();
        Some(elements.into_iter().map(|(_, path)| path).collect::<Vec<_>>().into())
    }

    fn input_list(&self, name: &str) -> Option<PathBuf> {
        Some(self.directory.join("in").join(format!(".{name}.list")))
    }

    fn output(&self, name: &str) -> Option<PathBuf> {
        let output = self.template.outputs.iter().find(|output| output.name == name)?;
        Some(if output.path.is_empty() {
            self.directory.join("out").join(name)
        } else {
            self.directory.join("work").join(&output.path)
        })
    }

    fn parameter(&self, name: &str) -> Option<Cow<'_, str>> {
        self.space.value(self.figures.index, name)
    }

    fn builtin(&self, builtin: v1::Builtin) -> Option<OsString> {
        self.figures.get(builtin)
    }
}
