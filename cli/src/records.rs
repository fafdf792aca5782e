//! The records of a run as they lie in its directory: what the command line writes first, and what it reads afterwards. Every
//! field that may be missing has a default, so that directories of other versions stay readable.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use scalable_proto::v1;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Version of run.json's shape.
pub const SCHEMA_VERSION: u32 = 1;
/// Longest line that is read from a record file, bytes: a task's parameters and tails fit many times.
const LINE_BYTES_MAX: u64 = 4 << 20;
/// Cells of a parameter table that are written into parameters.json; of a larger one only its shape.
const TABLE_CELLS_MAX: usize = 100_000;

/// `run.json`. Written by the command line with status `starting`, then owned by the scheduler.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RunRecord {
    pub schema_version: u32,
    pub run_id: String,
    pub project_name: String,
    pub target_name: String,
    pub provider_name: String,
    pub manifest_lock: String,
    /// The manifest as it was named; empty for a run without one.
    pub source_manifest_path: String,
    /// Where its relative paths begin.
    pub base_directory: String,
    pub overlay: Option<String>,
    pub strict: bool,
    /// RFC 3339.
    pub started_at: String,
    pub finished_at: Option<String>,
    /// `starting`, `running`, `completed`, `failed`, `cancelled`.
    pub status: String,
    /// While the run lives: where the scheduler answers.
    pub address: Option<String>,
    pub http: Option<String>,
    pub token_file: Option<String>,
    pub pids: Pids,
    pub groups: Vec<GroupRecord>,
    /// `all`, or `failures` for runs above a million tasks.
    pub tasks_recorded: String,
    /// The run whose committed outputs this one took over.
    pub takes_over: Option<String>,
    /// A workflow that was only checked.
    pub stub: bool,
    /// The scheduler does not see this directory: what the run leaves is fetched from it.
    pub fetched: bool,
    /// The scheduler has taken it: from then on its own word counts how it ended.
    pub submitted: bool,
    /// Why its scheduler was lost before the run was over, and the run with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
    /// Where on Kubernetes it is, or was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<crate::kubernetes::KubernetesRecord>,
}

/// Processes of a run while it lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pids {
    pub scheduler: Option<u32>,
    pub workers: Vec<u32>,
}

/// A group of `run.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupRecord {
    pub name: String,
    /// 0 for a group that is open on a result.
    pub length: u32,
    /// Names of the parameters; their values are in `parameters.json`.
    pub parameters: Vec<String>,
}

/// `parameters.json`: by group what its elements' parameters are made of, so that elements are found by their values. Written by
/// the command line before submit.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ParametersRecord {
    pub schema_version: u32,
    pub groups: BTreeMap<String, Parameters>,
}

/// What an element's parameters are made of.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parameters {
    #[default]
    None,
    /// The last axis varies fastest.
    Product(Vec<AxisRecord>),
    /// One row an element. Cells are left out above a bound.
    Table { names: Vec<String>, rows: u32, cells: Option<Vec<String>> },
}

/// An axis of a product: values, or start, step and count of a range.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AxisRecord {
    Values { name: String, values: Vec<String> },
    Range { name: String, start: i64, step: i64, count: u32 },
}

impl AxisRecord {
    /// The parameter.
    pub fn name(&self) -> &str {
        match self {
            AxisRecord::Values { name, .. } | AxisRecord::Range { name, .. } => name,
        }
    }
}

impl Parameters {
    /// From the wire.
    pub fn from_wire(space: Option<&v1::ParameterSpace>) -> Parameters {
        use v1::parameter_axis::Values;
        match space.and_then(|space| space.kind.as_ref()) {
            None => Parameters::None,
            Some(v1::parameter_space::Kind::Product(product)) => {
                let axis = |axis: &v1::ParameterAxis| match &axis.values {
                    Some(Values::Range(range)) => {
                        AxisRecord::Range { name: axis.name.clone(), start: range.start, step: range.step, count: range.count }
                    }
                    Some(Values::Strings(strings)) => {
                        AxisRecord::Values { name: axis.name.clone(), values: strings.values.clone() }
                    }
                    None => AxisRecord::Values { name: axis.name.clone(), values: Vec::new() },
                };
                Parameters::Product(product.axes.iter().map(axis).collect())
            }
            Some(v1::parameter_space::Kind::Table(table)) => Parameters::Table {
                names: table.names.clone(),
                rows: table.rows,
                cells: (table.cells.len() <= TABLE_CELLS_MAX).then(|| table.cells.clone()),
            },
        }
    }

    /// Back, where everything is known.
    pub fn to_wire(&self) -> Option<v1::ParameterSpace> {
        use v1::parameter_axis::Values;
        let kind = match self {
            Parameters::None => return Some(v1::ParameterSpace::default()),
            Parameters::Product(axes) => {
                let axis = |axis: &AxisRecord| match axis.clone() {
                    AxisRecord::Range { name, start, step, count } => {
                        v1::ParameterAxis { name, values: Some(Values::Range(v1::IntRange { start, step, count })) }
                    }
                    AxisRecord::Values { name, values } => {
                        v1::ParameterAxis { name, values: Some(Values::Strings(v1::Strings { values })) }
                    }
                };
                v1::parameter_space::Kind::Product(v1::Product { axes: axes.iter().map(axis).collect() })
            }
            Parameters::Table { names, rows, cells } => {
                v1::parameter_space::Kind::Table(v1::Table { names: names.clone(), rows: *rows, cells: cells.clone()? })
            }
        };
        Some(v1::ParameterSpace { kind: Some(kind) })
    }
}

impl RunRecord {
    /// True when it was begun from another directory or machine: what its elements' parameters are was written down only there.
    pub fn is_from_elsewhere(&self) -> bool {
        self.kubernetes.is_some() && self.source_manifest_path.is_empty()
    }

    /// True when nothing more will happen.
    pub fn is_over(&self) -> bool {
        matches!(self.status.as_str(), "completed" | "failed" | "cancelled")
    }
}

/// A line of `tasks.jsonl`, and of `failures.jsonl` with one more: the tails.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskRecord {
    pub run_id: String,
    /// `group[index]`.
    pub task_id: String,
    pub task_name: String,
    pub index: u32,
    /// In the order of the manifest.
    pub parameters: Map<String, Value>,
    pub component: String,
    /// `succeeded`, `failed`, `skipped`, `cancelled`.
    pub state: String,
    pub attempt: u32,
    pub worker: Option<String>,
    pub queued_at: Option<String>,
    pub started_at: Option<String>,
    pub finished_at: Option<String>,
    pub duration_s: Option<f64>,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub user_s: Option<f64>,
    pub system_s: Option<f64>,
    pub peak_memory_bytes: Option<u64>,
    pub memory_method: Option<String>,
    pub memory_limit_bytes: Option<u64>,
    /// Class of the failure.
    pub error_type: Option<String>,
    pub error_message: Option<String>,
    /// The failure for which a task was skipped.
    pub root: Option<String>,
    pub key: Option<String>,
    pub outputs: Map<String, Value>,
    pub log_stdout: Option<String>,
    pub log_stderr: Option<String>,
    pub stdout_tail: Option<String>,
    pub stderr_tail: Option<String>,
    /// In `failures.jsonl`: false for an attempt that was tried again.
    pub last: Option<bool>,
    pub kept_directory: Option<String>,
    pub rerun: Option<String>,
}

impl TaskRecord {
    /// The group's name.
    pub fn group(&self) -> &str {
        self.task_id.split_once('[').map_or(self.task_id.as_str(), |(group, _)| group)
    }

    /// The index in the name: failures.jsonl has it nowhere else.
    pub fn index(&self) -> u32 {
        let index = self.task_id.split_once('[').and_then(|(_, index)| index.strip_suffix(']')?.parse().ok());
        index.unwrap_or(self.index)
    }

    /// The parameters as they are shown: `scenario=rcp45,member=7`.
    pub fn parameters_text(&self) -> String {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        self.parameters.iter().map(|(name, value)| format!("{name}={}", text(value))).collect::<Vec<_>>().join(",")
    }
}

/// A file of one JSON document.
///
/// # Errors
/// When it cannot be read or is not what it should be.
pub fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<T> {
    let file = File::open(path)?;
    serde_json::from_reader(BufReader::new(file)).map_err(io::Error::from)
}

/// The records of a file with one JSON document a line. A last line that is still being written, and lines that are no records,
/// are left out.
///
/// # Errors
/// When the file cannot be opened; a file that is not there has no records.
pub fn read_lines<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<impl Iterator<Item = T> + use<T>> {
    let reader = match File::open(path) {
        Ok(file) => Some(BufReader::with_capacity(1 << 16, file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let mut lines = Lines { reader, line: Vec::new() };
    Ok(std::iter::from_fn(move || {
        loop {
            if let Ok(record) = serde_json::from_slice(lines.next()?) {
                return Some(record);
            }
        }
    }))
}

struct Lines {
    reader: Option<BufReader<File>>,
    line: Vec<u8>,
}

impl Lines {
    fn next(&mut self) -> Option<&[u8]> {
        let reader = self.reader.as_mut()?;
        self.line.clear();
        let read = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line).ok()?;
        (read > 0).then_some(&self.line)
    }
}

/// Writes a file that is either the old one or the whole new one.
///
/// # Errors
/// When the directory is not writable or full.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    std::fs::write(&beside, content)?;
    std::fs::rename(&beside, path)
}

/// Writes a document, indented.
///
/// # Errors
/// As [`write_atomically`].
pub fn write_json(path: &Path, document: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(document)?;
    text.push(b'\n');
    write_atomically(path, &text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_last_line_and_garbage_are_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tasks.jsonl");
        std::fs::write(&path, "{\"task_id\":\"a[0]\"}\nnonsense\n{\"task_id\":\"a[1]\",\"more\":1}\n{\"task_id\":\"a[2").unwrap();
        let ids: Vec<String> = read_lines::<TaskRecord>(&path).unwrap().map(|record| record.task_id).collect();
        assert_eq!(ids, ["a[0]", "a[1]"]);
        assert_eq!(read_lines::<TaskRecord>(&directory.path().join("none")).unwrap().count(), 0);
    }

    #[test]
    fn parameters_survive_their_file() {
        use v1::parameter_axis::Values;
        let space = v1::ParameterSpace {
            kind: Some(v1::parameter_space::Kind::Product(v1::Product {
                axes: vec![
                    v1::ParameterAxis {
                        name: "s".into(),
                        values: Some(Values::Strings(v1::Strings { values: vec!["a".into()] })),
                    },
                    v1::ParameterAxis {
                        name: "m".into(),
                        values: Some(Values::Range(v1::IntRange { start: 0, step: 1, count: 9 })),
                    },
                ],
            })),
        };
        let text = serde_json::to_string(&Parameters::from_wire(Some(&space))).unwrap();
        let back: Parameters = serde_json::from_str(&text).unwrap();
        assert_eq!(back.to_wire(), Some(space));
    }
}
