//! Parameters of a group: `foreach` (product), `zip` and `from` (rows).

use std::collections::HashSet;
use std::path::Path;

use scalable_proto::v1::{IntRange, ParameterAxis, ParameterSpace, Product, Strings, Table, parameter_axis, parameter_space};
use scalable_template::{PARAMETERS_MAX, Space, SpaceError, TASKS_MAX};

use crate::diagnostic::{At, Sink, show};
use crate::fields::{Fields, check_field_name};
use crate::node::{Kind, Node};
use crate::paths;
use crate::substitution::BUILTINS;

/// Most bytes of all values of one group: what fits into one message with the rest of the group.
const VALUES_BYTES_MAX: usize = 8 << 20;
/// What each value costs beside its bytes.
const VALUE_OVERHEAD: usize = 4;

/// Parameters as read, with the checked view of them.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// As on the wire.
    pub(crate) wire: ParameterSpace,
    /// The checked view.
    pub(crate) space: Space,
}

impl Parameters {
    /// No parameters: one element.
    pub(crate) fn none() -> Parameters {
        let wire = ParameterSpace::default();
        let space = Space::with_length(&wire, 1).unwrap_or_else(|_| unreachable!("one element without parameters is valid"));
        Parameters { wire, space }
    }

    fn checked(wire: ParameterSpace, path: &str, at: At, sink: &mut Sink) -> Option<Parameters> {
        match Space::new(&wire) {
            Ok(space) => Some(Parameters { wire, space }),
            Err(SpaceError::TooManyElements) => {
                let message = format!("'{path}' makes more than {TASKS_MAX} elements, which is the most one run can have");
                sink.error("E_TOO_MANY_TASKS", path, at, message);
                None
            }
            Err(error) => {
                sink.error("E_BAD_PARAMETERS", path, at, format!("'{path}': {error}"));
                None
            }
        }
    }

    /// The first element alone, for `--stub`.
    pub(crate) fn first(&self) -> Parameters {
        let values = self.space.values(0);
        if values.is_empty() {
            return Parameters::none();
        }
        let axis = |name: &str, value: &str| ParameterAxis {
            name: name.to_owned(),
            values: Some(parameter_axis::Values::Strings(Strings { values: vec![value.to_owned()] })),
        };
        let axes = values.iter().map(|(name, value)| axis(name, value)).collect();
        let wire = ParameterSpace { kind: Some(parameter_space::Kind::Product(Product { axes })) };
        let space = Space::new(&wire).unwrap_or_else(|_| self.space.clone());
        Parameters { wire, space }
    }
}

/// Reads whichever of `foreach`, `zip`, `from` a task has. Nothing when they are wrong, which is then in the sink.
pub(crate) fn read(task: &Fields<'_>, directory: &Path, sink: &mut Sink) -> Option<Parameters> {
    let present: Vec<_> = ["foreach", "zip", "from"].into_iter().filter(|key| task.get(key).is_some()).collect();
    if let [first, second, ..] = present[..] {
        let message = format!("'{}' has both `{first}` and `{second}`; a group has one of foreach, zip, from", task.path);
        sink.error("E_BAD_PARAMETERS", &task.child(second), task.key_at(second), message);
    }
    match present.first().copied() {
        Some("foreach") => foreach(task, sink),
        Some("zip") => zip(task, sink),
        Some("from") => from_file(task, directory, sink),
        _ => Some(Parameters::none()),
    }
}

fn check_parameter_name(name: &str, path: &str, at: At, sink: &mut Sink) -> bool {
    if !check_field_name(name, "parameter", path, at, sink) {
        return false;
    }
    let reserved = BUILTINS.iter().any(|(builtin, _)| *builtin == name) || matches!(name, "inputs" | "outputs");
    if reserved {
        let message = format!("a parameter cannot be named `{name}`: `{{{name}}}` has a meaning of its own");
        sink.error("E_RESERVED_NAME", path, at, message).help(format!("for example `{name}_value`"));
    }
    !reserved
}

fn foreach(task: &Fields<'_>, sink: &mut Sink) -> Option<Parameters> {
    let path = task.child("foreach");
    let fields = Fields::open(task.get("foreach")?, &path, sink)?;
    check_count(fields.entries().len(), &path, fields.at, sink)?;
    let mut axes = Vec::with_capacity(fields.entries().len());
    let mut budget = Budget::new();
    for (key, node) in fields.entries() {
        let path = fields.child(&key.text);
        let named = check_parameter_name(&key.text, &path, key.at, sink);
        let values = axis(node, &path, &mut budget, sink).filter(|values| no_value_twice(values, node, &path, sink));
        if let Some(values) = values.filter(|_| named) {
            axes.push(ParameterAxis { name: key.text.clone(), values: Some(values) });
        }
    }
    if axes.len() < fields.entries().len() {
        return None;
    }
    let wire = ParameterSpace { kind: Some(parameter_space::Kind::Product(Product { axes })) };
    Parameters::checked(wire, &path, task.key_at("foreach"), sink)
}

fn zip(task: &Fields<'_>, sink: &mut Sink) -> Option<Parameters> {
    let path = task.child("zip");
    let fields = Fields::open(task.get("zip")?, &path, sink)?;
    check_count(fields.entries().len(), &path, fields.at, sink)?;
    let mut columns: Vec<(&str, Vec<String>, At)> = Vec::new();
    let mut budget = Budget::new();
    for (key, node) in fields.entries() {
        let path = fields.child(&key.text);
        let named = check_parameter_name(&key.text, &path, key.at, sink);
        let values = match axis(node, &path, &mut budget, sink) {
            Some(parameter_axis::Values::Strings(strings)) => Some(strings.values),
            Some(parameter_axis::Values::Range(range)) if budget.take(range.count as usize * 8) => {
                Some((0..i64::from(range.count)).map(|step| (range.start + range.step * step).to_string()).collect())
            }
            Some(parameter_axis::Values::Range(_)) => {
                too_many_values(&path, node.at, sink);
                None
            }
            None => None,
        };
        if let Some(values) = values.filter(|_| named) {
            columns.push((&key.text, values, key.at));
        }
    }
    if columns.len() < fields.entries().len() {
        return None;
    }
    let rows = columns.first()?.1.len();
    if let Some((name, values, at)) = columns.iter().find(|(_, values, _)| values.len() != rows) {
        let message =
            format!("'{path}' needs lists of one length: `{}` has {rows} values, `{name}` has {}", columns[0].0, values.len());
        sink.error("E_BAD_PARAMETERS", &fields.child(name), *at, message).help("for every combination use foreach");
        return None;
    }
    let names = columns.iter().map(|(name, _, _)| (*name).to_owned()).collect();
    let mut cells = Vec::with_capacity(rows * columns.len());
    for row in 0..rows {
        cells.extend(columns.iter_mut().map(|(_, values, _)| std::mem::take(&mut values[row])));
    }
    let wire = table(names, cells);
    Parameters::checked(wire, &path, task.key_at("zip"), sink)
}

fn table(names: Vec<String>, cells: Vec<String>) -> ParameterSpace {
    let rows = u32::try_from(cells.len() / names.len().max(1)).unwrap_or(u32::MAX);
    ParameterSpace { kind: Some(parameter_space::Kind::Table(Table { names, rows, cells })) }
}

fn check_count(count: usize, path: &str, at: At, sink: &mut Sink) -> Option<()> {
    if count == 0 {
        sink.error("E_BAD_PARAMETERS", path, at, format!("'{path}' names no parameter")).help("leave it out for a single task");
        return None;
    }
    if count > PARAMETERS_MAX {
        let message = format!("'{path}' has {count} parameters, at most {PARAMETERS_MAX} are possible");
        sink.error("E_TOO_LARGE", path, at, message);
        return None;
    }
    Some(())
}

struct Budget(usize);

impl Budget {
    fn new() -> Budget {
        Budget(VALUES_BYTES_MAX)
    }

    fn take(&mut self, bytes: usize) -> bool {
        self.0.checked_sub(bytes).map(|left| self.0 = left).is_some()
    }
}

fn too_many_values(path: &str, at: At, sink: &mut Sink) {
    let message = format!("the values of '{path}' take more than {} MiB", VALUES_BYTES_MAX >> 20);
    sink.error("E_TOO_LARGE", path, at, message)
        .help("use a range, or give each task the name of a file and let it read its values there");
}

/// A list of scalars or `{range: [first, beyond]}` / `{range: [first, beyond, step]}`.
fn axis(node: &Node, path: &str, budget: &mut Budget, sink: &mut Sink) -> Option<parameter_axis::Values> {
    if node.map().is_some() {
        return range(node, path, sink).map(parameter_axis::Values::Range);
    }
    let Some(items) = node.seq() else {
        let message = format!("'{path}' must be a list of values or {{range: [first, beyond]}} (got {})", node.type_name());
        sink.error("E_TYPE", path, node.at, message);
        return None;
    };
    if items.is_empty() {
        sink.error("E_BAD_PARAMETERS", path, node.at, format!("'{path}' has no values"));
        return None;
    }
    let mut values = Vec::with_capacity(items.len());
    for item in items {
        let Some(text) = item.as_text() else {
            let message = format!("a value of '{path}' must be a single value, got {}", item.type_name());
            sink.error("E_TYPE", path, item.at, message);
            return None;
        };
        if !check_value(text, path, item.at, sink) {
            return None;
        }
        if !budget.take(text.len() + VALUE_OVERHEAD) {
            too_many_values(path, item.at, sink);
            return None;
        }
        values.push(text.to_owned());
    }
    Some(parameter_axis::Values::Strings(Strings { values }))
}

/// A value twice in a product would make two tasks of one name. (Rows of a table may be equal.)
fn no_value_twice(values: &parameter_axis::Values, node: &Node, path: &str, sink: &mut Sink) -> bool {
    let parameter_axis::Values::Strings(strings) = values else { return true };
    let mut seen = HashSet::with_capacity(strings.values.len());
    let twice = strings.values.iter().position(|value| !seen.insert(value.as_str()));
    if let Some(nth) = twice {
        let at = node.seq().and_then(|items| items.get(nth)).map_or(node.at, |item| item.at);
        sink.error("E_BAD_PARAMETERS", path, at, format!("'{path}' has the value `{}` twice", show(&strings.values[nth])));
    }
    twice.is_none()
}

fn check_value(text: &str, path: &str, at: At, sink: &mut Sink) -> bool {
    if text.contains('\0') {
        let message = format!("a value of '{path}' contains a NUL byte, which no command can be given: `{}`", show(text));
        sink.error("E_NUL", path, at, message);
        return false;
    }
    true
}

fn range(node: &Node, path: &str, sink: &mut Sink) -> Option<IntRange> {
    let fields = Fields::open(node, path, sink)?;
    fields.only(&["range"], sink);
    let bounds = fields.get("range").and_then(Node::seq).unwrap_or_default();
    let numbers: Vec<i64> = bounds.iter().filter_map(Node::as_int).collect();
    let (start, beyond, step) = match numbers[..] {
        [start, beyond] if bounds.len() == 2 => (start, beyond, 1),
        [start, beyond, step] if bounds.len() == 3 && step != 0 => (start, beyond, step),
        _ => {
            let message =
                format!("'{path}.range' must be [first, beyond] or [first, beyond, step] with integers and a step other than 0");
            sink.error("E_BAD_PARAMETERS", path, node.at, message).help("{range: [0, 50]} is 0 to 49");
            return None;
        }
    };
    let distance = i128::from(beyond) - i128::from(start);
    let step_wide = i128::from(step);
    let count =
        if distance.signum() == step_wide.signum() { (distance.abs() + step_wide.abs() - 1) / step_wide.abs() } else { 0 };
    if count == 0 {
        let message = format!("'{path}.range' from {start} up to, but not including, {beyond} has no values");
        sink.error("E_BAD_PARAMETERS", path, node.at, message).help("{range: [0, 50]} is 0 to 49");
        return None;
    }
    match u32::try_from(count).ok().filter(|count| *count <= TASKS_MAX) {
        Some(count) => Some(IntRange { start, step, count }),
        None => {
            let message = format!("'{path}.range' has {count} values; a run can have at most {TASKS_MAX} tasks");
            sink.error("E_TOO_MANY_TASKS", path, node.at, message);
            None
        }
    }
}

/// Rows of a CSV file beside the manifest (tab-separated when it is named `.tsv`): the header names the parameters.
fn from_file(task: &Fields<'_>, directory: &Path, sink: &mut Sink) -> Option<Parameters> {
    let key = task.child("from");
    let node = task.get("from")?;
    let text = task.text("from", sink)?;
    let relative = match paths::relative(&text) {
        Ok(relative) if !relative.is_empty() => relative,
        _ => {
            let message = format!("'{key}' must name a file below the manifest's directory, got '{}'", show(&text));
            sink.error("E_PATH_ESCAPES", &key, node.at, message);
            return None;
        }
    };
    let fail = |sink: &mut Sink, line: Option<u64>, why: String| {
        let place = line.map(|line| format!(" line {line}")).unwrap_or_default();
        sink.error("E_BAD_CSV", &key, node.at, format!("{}{place}: {why}", show(&relative)));
    };
    let file = directory.join(&relative);
    let size = match std::fs::metadata(&file) {
        Ok(found) if found.is_file() => found.len(),
        Ok(_) => {
            sink.error("E_FILE", &key, node.at, format!("'{}' is not a file", show(&relative)));
            return None;
        }
        Err(error) => {
            sink.error("E_FILE", &key, node.at, format!("could not read '{}': {error}", show(&relative)));
            return None;
        }
    };
    if size > 4 * VALUES_BYTES_MAX as u64 {
        too_many_values(&key, node.at, sink);
        return None;
    }
    let bytes = match std::fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) => {
            sink.error("E_FILE", &key, node.at, format!("could not read '{}': {error}", show(&relative)));
            return None;
        }
    };
    // Spreadsheets write a byte order mark.
    let content = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes);
    let delimiter = if relative.ends_with(".tsv") { b'\t' } else { b',' };
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(content);
    let names: Vec<String> = match reader.headers() {
        Ok(header) => header.iter().map(|name| name.trim().to_owned()).collect(),
        Err(error) => {
            fail(sink, csv_line(content, error.position()), csv_reason(&error));
            return None;
        }
    };
    if names.iter().all(String::is_empty) {
        fail(sink, None, "the file has no header with the names of the parameters".to_owned());
        return None;
    }
    check_count(names.len(), &key, node.at, sink)?;
    for (at, name) in names.iter().enumerate() {
        if names[..at].contains(name) {
            fail(sink, Some(1), format!("column `{}` is named twice in the header", show(name)));
            return None;
        }
        if !check_parameter_name(name, &key, node.at, sink) {
            fail(sink, Some(1), format!("column {} cannot be a parameter: rename it in the header", at + 1));
            return None;
        }
    }
    let mut cells = Vec::new();
    let mut budget = Budget::new();
    for record in reader.records() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                fail(sink, csv_line(content, error.position()), csv_reason(&error));
                return None;
            }
        };
        for cell in &record {
            if cell.contains('\0') {
                fail(sink, csv_line(content, record.position()), "a value contains a NUL byte".to_owned());
                return None;
            }
            if !budget.take(cell.len() + VALUE_OVERHEAD) {
                too_many_values(&key, node.at, sink);
                return None;
            }
            cells.push(cell.to_owned());
        }
    }
    if cells.is_empty() {
        fail(sink, None, "the file has a header but no rows".to_owned());
        return None;
    }
    Parameters::checked(table(names, cells), &key, node.at, sink)
}

/// The line a record begins in. Empty lines before it belong to no record, but the reader's position is before them.
fn csv_line(content: &[u8], position: Option<&csv::Position>) -> Option<u64> {
    let start = usize::try_from(position?.byte()).ok()?.min(content.len());
    let empty = content[start..].iter().take_while(|byte| matches!(byte, b'\n' | b'\r')).count();
    Some(1 + content[..start + empty].iter().filter(|byte| **byte == b'\n').count() as u64)
}

fn csv_reason(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => format!("has {len} values, the header names {expected_len}"),
        csv::ErrorKind::Utf8 { .. } => "is not UTF-8".to_owned(),
        _ => show(&error.to_string()),
    }
}

/// The number a scalar stands for in a `resources` mapping.
pub(crate) fn amount(node: &Node) -> Option<u64> {
    match node.scalar()?.kind {
        Kind::Int(n) => u64::try_from(n).ok(),
        _ => None,
    }
}
