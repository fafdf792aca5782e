//! The first commands of a group as people read them: paths are those of the run's output store, whatever the worker will use.

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::PathBuf;

use scalable_proto::v1::{Builtin, OutputKind};
use scalable_template::{Axes, Builtins, Context};

use crate::model::{Amounts, Manifest, Select, Task, TaskInput};

/// Paths of a fan-in that are shown.
const PATHS_SHOWN: usize = 3;

/// One element, before there is a run.
pub(crate) struct Preview<'a> {
    pub manifest: &'a Manifest,
    pub task: &'a Task,
    pub index: u32,
    pub takes: &'a Amounts,
}

impl Preview<'_> {
    fn stored(task: &Task, index: u32, output: &str) -> PathBuf {
        let mut path = PathBuf::from("outputs").join(&task.name);
        let element = task.space().element_name(index);
        if !element.is_empty() {
            path.push(element);
        }
        path.join(output)
    }

    fn paths(&self, input: &TaskInput) -> Vec<PathBuf> {
        if !input.as_path.is_empty() {
            return vec![PathBuf::from(&input.as_path)];
        }
        let Some(upstream) = self.manifest.tasks.get(input.upstream) else { return Vec::new() };
        let (elements, count): (Vec<u32>, u32) = match &input.select {
            Select::All => ((0..upstream.len()).take(PATHS_SHOWN).collect(), upstream.len()),
            Select::Projection(projection) => match Axes::new(projection) {
                Ok(axes) => (axes.upstream(self.index).take(PATHS_SHOWN).collect(), axes.count()),
                Err(_) => return Vec::new(),
            },
        };
        let list = upstream.outputs.iter().any(|output| output.name == input.output && output.kind() == OutputKind::List);
        let mut paths: Vec<PathBuf> = elements
            .iter()
            .map(|&index| {
                let path = Preview::stored(upstream, index, &input.output);
                if list { path.join("*") } else { path }
            })
            .collect();
        let more = count as usize - elements.len();
        if more > 0 {
            paths.push(format!("…({more} more)").into());
        }
        paths
    }
}

impl Context for Preview<'_> {
    fn input(&self, name: &str) -> Option<Cow<'_, [PathBuf]>> {
        let input = self.task.inputs.iter().find(|input| input.name == name)?;
        Some(self.paths(input).into())
    }

    fn input_list(&self, name: &str) -> Option<PathBuf> {
        Some(format!("<list of {name}>").into())
    }

    fn output(&self, name: &str) -> Option<PathBuf> {
        let output = self.task.outputs.iter().find(|output| output.name == name)?;
        Some(if output.path.is_empty() { Preview::stored(self.task, self.index, name) } else { PathBuf::from(&output.path) })
    }

    fn parameter(&self, name: &str) -> Option<Cow<'_, str>> {
        self.task.space().value(self.index, name)
    }

    fn builtin(&self, builtin: Builtin) -> Option<OsString> {
        match builtin {
            Builtin::Workdir => return Some("<workdir>".into()),
            Builtin::TaskId => return Some("<task_id>".into()),
            _ => {}
        }
        let figures = Builtins {
            run: "<run>",
            group: &self.task.name,
            index: self.index,
            attempt: 1,
            task_id: 0,
            milli_cpus: self.takes.milli_cpus,
            memory_bytes: self.takes.memory_bytes,
            workdir: None,
        };
        figures.get(builtin)
    }
}
