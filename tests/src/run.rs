//! A run's directory, as a user reads it.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// The directory of a run.
#[derive(Debug, Clone)]
pub struct Run {
    /// `.scalable/runs/<run>`.
    pub directory: PathBuf,
}

impl Run {
    /// The run's name.
    pub fn name(&self) -> String {
        self.directory.file_name().unwrap().to_string_lossy().into_owned()
    }

    /// A document of it: `run.json`, `summary.json`, `plan.json`.
    #[track_caller]
    pub fn document(&self, name: &str) -> Value {
        self.try_document(name).unwrap_or_else(|| panic!("{} has no readable {name}", self.directory.display()))
    }

    /// As [`Run::document`], or nothing when it is not there yet.
    pub fn try_document(&self, name: &str) -> Option<Value> {
        serde_json::from_slice(&std::fs::read(self.directory.join(name)).ok()?).ok()
    }

    /// The lines of `tasks.jsonl`.
    #[track_caller]
    pub fn tasks(&self) -> Vec<Value> {
        self.lines("tasks.jsonl")
    }

    /// The lines of a record file; a file that is not there has none.
    #[track_caller]
    pub fn lines(&self, name: &str) -> Vec<Value> {
        let path = self.directory.join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{}: {error}: {line}", path.display())))
            .collect()
    }

    /// The one line of `tasks.jsonl` that is about `group[index]`.
    #[track_caller]
    pub fn task(&self, id: &str) -> Value {
        let mut found: Vec<Value> = self.tasks().into_iter().filter(|task| task["task_id"] == id).collect();
        assert_eq!(found.len(), 1, "lines about {id} in {}/tasks.jsonl: {found:#?}", self.directory.display());
        found.remove(0)
    }

    /// States of all tasks as `group[index] state`, sorted.
    #[track_caller]
    pub fn states(&self) -> Vec<String> {
        let mut states: Vec<String> = self
            .tasks()
            .iter()
            .map(|task| format!("{} {}", task["task_id"].as_str().unwrap_or("?"), task["state"].as_str().unwrap_or("?")))
            .collect();
        states.sort();
        states
    }

    /// Every published file as `path below outputs/`, sorted.
    pub fn outputs(&self) -> Vec<String> {
        let root = self.directory.join("outputs");
        let mut found = Vec::new();
        walk(&root, &mut |path| found.push(path.strip_prefix(&root).unwrap().to_string_lossy().into_owned()));
        found.sort();
        found
    }

    /// Content of a published file.
    #[track_caller]
    pub fn output(&self, path: &str) -> String {
        let path = self.directory.join("outputs").join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

fn walk(directory: &Path, see: &mut dyn FnMut(&Path)) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() { walk(&path, see) } else { see(&path) }
    }
}
