//! A validated view of a group's parameters: mixed radix over axes, or rows of a table. An element's values are computed from its
//! index, so a group of a hundred million elements costs what its axes cost.

use std::borrow::Cow;
use std::collections::HashSet;

use scalable_proto::v1::{IntRange, ParameterSpace, Table, parameter_axis, parameter_space};

use crate::name::{element_name, join_name};
use crate::task_name::Element;

/// Most tasks in one group and in one run.
pub const TASKS_MAX: u32 = 1 << 27;
/// Most parameters of one group.
pub const PARAMETERS_MAX: usize = 256;

/// Why a parameter space was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpaceError {
    /// More than [`PARAMETERS_MAX`] parameters.
    #[error("a group has {0} parameters, at most {PARAMETERS_MAX} are possible")]
    TooManyParameters(usize),
    /// More than [`TASKS_MAX`] elements.
    #[error("the parameters make more than {TASKS_MAX} elements")]
    TooManyElements,
    /// An axis without values.
    #[error("parameter `{0}` has no values")]
    NoValues(String),
    /// Two parameters with one name.
    #[error("parameter `{0}` is named twice")]
    DuplicateName(String),
    /// A range whose values leave 64 bits, or that stands still.
    #[error("the range of parameter `{0}` repeats a value or leaves 64 bits")]
    BadRange(String),
    /// Cells that do not make whole rows.
    #[error("a parameter table of {rows} rows and {names} columns has {cells} cells")]
    BadTable {
        /// Rows announced.
        rows: u32,
        /// Columns announced.
        names: usize,
        /// Cells sent.
        cells: usize,
    },
    /// The group's length is not what its parameters make.
    #[error("the parameters make {made} elements, the group says {said}")]
    BadLength {
        /// Elements made by the parameters.
        made: u32,
        /// Length the group gave.
        said: u32,
    },
}

#[derive(Clone, Debug, PartialEq)]
enum Values {
    Strings(Vec<String>),
    Range { start: i64, step: i64 },
}

#[derive(Clone, Debug)]
struct Axis {
    name: String,
    values: Values,
    length: u32,
    /// What one step along this axis adds to the index.
    stride: u32,
}

#[derive(Clone, Debug)]
enum Kind {
    /// No parameters: elements differ by their index only.
    Plain,
    Product(Vec<Axis>),
    Table {
        names: Vec<String>,
        cells: Vec<String>,
    },
}

/// A group's parameters, checked once; every question afterwards is answered without failing.
#[derive(Clone, Debug)]
pub struct Space {
    kind: Kind,
    length: u32,
    /// False where two elements have equal values: their index then is part of their name.
    distinct: bool,
}

impl Space {
    /// Checks a parameter space from the wire.
    ///
    /// Without parameters the length is 1; see [`Space::with_length`] for groups that are merely numbered.
    ///
    /// # Errors
    /// Whatever breaks a bound or contradicts itself; see [`SpaceError`].
    pub fn new(space: &ParameterSpace) -> Result<Space, SpaceError> {
        match &space.kind {
            None => Ok(Space { kind: Kind::Plain, length: 1, distinct: true }),
            Some(parameter_space::Kind::Product(product)) => product_space(&product.axes),
            Some(parameter_space::Kind::Table(table)) => table_space(table),
        }
    }

    /// Like [`Space::new`] for a group of `length` elements. A group without parameters may have any length up to [`TASKS_MAX`];
    /// 0 is an open group, whose length is not known yet.
    ///
    /// # Errors
    /// As [`Space::new`], and [`SpaceError::BadLength`] when parameters make another number of elements.
    pub fn with_length(space: &ParameterSpace, length: u32) -> Result<Space, SpaceError> {
        if length > TASKS_MAX {
            return Err(SpaceError::TooManyElements);
        }
        let mut made = Space::new(space)?;
        match made.kind {
            Kind::Plain => made.length = length,
            _ if made.length != length => return Err(SpaceError::BadLength { made: made.length, said: length }),
            _ => {}
        }
        Ok(made)
    }

    /// Number of elements; 0 for an open group.
    pub fn len(&self) -> u32 {
        self.length
    }

    /// True for an open group, or a table without rows.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// True when elements have no parameters.
    pub fn is_plain(&self) -> bool {
        matches!(self.kind, Kind::Plain)
    }

    /// Names of the parameters in their order.
    pub fn names(&self) -> Vec<&str> {
        match &self.kind {
            Kind::Plain => Vec::new(),
            Kind::Product(axes) => axes.iter().map(|axis| axis.name.as_str()).collect(),
            Kind::Table { names, .. } => names.iter().map(String::as_str).collect(),
        }
    }

    /// The element's parameters in their order. An index outside the group has none.
    pub fn values(&self, index: u32) -> Vec<(&str, Cow<'_, str>)> {
        if index >= self.length {
            return Vec::new();
        }
        match &self.kind {
            Kind::Plain => Vec::new(),
            Kind::Product(axes) => axes.iter().map(|axis| (axis.name.as_str(), axis.at(index))).collect(),
            Kind::Table { names, cells } => {
                let row = index as usize * names.len();
                names.iter().zip(&cells[row..]).map(|(name, cell)| (name.as_str(), Cow::Borrowed(cell.as_str()))).collect()
            }
        }
    }

    /// One parameter of the element; nothing for an unknown name or an index outside the group.
    pub fn value(&self, index: u32, name: &str) -> Option<Cow<'_, str>> {
        if index >= self.length {
            return None;
        }
        match &self.kind {
            Kind::Plain => None,
            Kind::Product(axes) => axes.iter().find(|axis| axis.name == name).map(|axis| axis.at(index)),
            Kind::Table { names, cells } => {
                let column = names.iter().position(|n| n == name)?;
                Some(Cow::Borrowed(cells[index as usize * names.len() + column].as_str()))
            }
        }
    }

    /// The element's readable name, safe as one component of a path and unique in the group: `scenario=rcp45,member=7`.
    ///
    /// Without parameters it is the index, and empty for a group of exactly one: its outputs lie at `outputs/<group>/<output>`.
    /// Where two elements have equal values (rows of a table), `,index=N` is added to every name. Values are escaped as by
    /// [`crate::file_safe`] and names above [`crate::ELEMENT_NAME_BYTES_MAX`] bytes end in `~` and a digest.
    pub fn element_name(&self, index: u32) -> String {
        if self.is_plain() {
            return if self.length == 1 && index == 0 { String::new() } else { index.to_string() };
        }
        let values = self.values(index);
        if self.distinct { element_name(&values, None) } else { element_name(&values, Some(index)) }
    }

    /// The element with exactly these parameters, in any order; the first where several have them.
    pub fn find<N: AsRef<str>, V: AsRef<str>>(&self, wanted: &[(N, V)]) -> Option<u32> {
        let wanted_value = |name: &str| wanted.iter().find(|(n, _)| n.as_ref() == name).map(|(_, value)| value.as_ref());
        match &self.kind {
            Kind::Plain => None,
            Kind::Product(axes) if axes.len() == wanted.len() => {
                axes.iter().try_fold(0u32, |index, axis| Some(index + axis.position(wanted_value(&axis.name)?)? * axis.stride))
            }
            Kind::Table { names, cells } if names.len() == wanted.len() => {
                let row = names.iter().map(|name| wanted_value(name)).collect::<Option<Vec<_>>>()?;
                let found =
                    cells.chunks_exact(names.len()).position(|cells| cells.iter().map(String::as_str).eq(row.iter().copied()));
                found.and_then(|row| u32::try_from(row).ok())
            }
            _ => None,
        }
    }

    /// The element that part of a task's name means. A name that was cut (it has a `~`) is looked for among all elements.
    pub fn find_element(&self, element: &Element) -> Option<u32> {
        match element {
            Element::Whole if self.length == 1 => Some(0),
            Element::Whole => None,
            Element::Index(index) => (*index < self.length).then_some(*index),
            Element::Values(values) => self.find(values).or_else(|| {
                // Elements with equal values carry their index as well.
                let (last, rest) = values.split_last()?;
                let index = last.1.parse().ok().filter(|_| last.0 == "index" && !self.distinct)?;
                let same = self
                    .values(index)
                    .iter()
                    .map(|(n, v)| (*n, v.as_ref()))
                    .eq(rest.iter().map(|(n, v)| (n.as_str(), v.as_str())));
                same.then_some(index)
            }),
            Element::Cut(name) => (0..self.length).find(|&index| self.element_name(index) == *name),
        }
    }

    /// For each parameter of a product its name, number of values and stride: what an element-wise dependency is made of.
    /// Nothing for a table or a group without parameters.
    pub fn axes(&self) -> Vec<(&str, u32, u32)> {
        match &self.kind {
            Kind::Product(axes) => axes.iter().map(|axis| (axis.name.as_str(), axis.length, axis.stride)).collect(),
            _ => Vec::new(),
        }
    }

    /// The values of one parameter in the order of its axis (product) or of the rows (table), without collecting them.
    pub fn column(&self, name: &str) -> Option<impl Iterator<Item = Cow<'_, str>>> {
        let (length, stride) = match &self.kind {
            Kind::Plain => return None,
            Kind::Product(axes) => axes.iter().find(|axis| axis.name == name).map(|axis| (axis.length, axis.stride))?,
            Kind::Table { names, .. } => names.iter().any(|n| n == name).then_some((self.length, 1))?,
        };
        let name = name.to_owned();
        Some((0..length).filter_map(move |step| self.value(step * stride, &name)))
    }

    /// True when both have the parameter with the same values in the same order (of the axis, or of the rows).
    pub fn same_values(&self, other: &Space, name: &str) -> bool {
        if let (Some(one), Some(two)) = (self.axis(name), other.axis(name)) {
            let ranges = matches!((&one.values, &two.values), (Values::Range { .. }, Values::Range { .. }));
            // A range of a hundred million values is compared by its bounds.
            if ranges && one.length > 1 && two.length > 1 {
                return one.values == two.values && one.length == two.length;
            }
        }
        match (self.column(name), other.column(name)) {
            (Some(one), Some(two)) => one.eq(two),
            _ => false,
        }
    }

    fn axis(&self, name: &str) -> Option<&Axis> {
        match &self.kind {
            Kind::Product(axes) => axes.iter().find(|axis| axis.name == name),
            _ => None,
        }
    }

    /// A name of the element for messages: `group[scenario=rcp45,member=7]`, `group[3]`, `group`.
    pub fn task_name(&self, group: &str, index: u32) -> String {
        join_name(group, &self.element_name(index))
    }
}

impl Axis {
    fn at(&self, index: u32) -> Cow<'_, str> {
        let step = (index / self.stride) % self.length;
        match &self.values {
            Values::Strings(values) => Cow::Borrowed(values[step as usize].as_str()),
            Values::Range { start, step: by } => Cow::Owned((start + by * i64::from(step)).to_string()),
        }
    }

    fn position(&self, value: &str) -> Option<u32> {
        match &self.values {
            Values::Strings(values) => values.iter().position(|v| v == value).and_then(|at| u32::try_from(at).ok()),
            Values::Range { start, step } => {
                let distance = value.parse::<i64>().ok()?.checked_sub(*start)?;
                let at = if *step == 0 { 0 } else { distance.checked_div(*step)? };
                let at = u32::try_from(at).ok().filter(|at| *at < self.length)?;
                (start + step * i64::from(at) == value.parse::<i64>().ok()?).then_some(at)
            }
        }
    }
}

fn check_names<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> Result<(), SpaceError> {
    if names.len() > PARAMETERS_MAX {
        return Err(SpaceError::TooManyParameters(names.len()));
    }
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name.as_str()) {
            return Err(SpaceError::DuplicateName(name.clone()));
        }
    }
    Ok(())
}

fn product_space(axes: &[scalable_proto::v1::ParameterAxis]) -> Result<Space, SpaceError> {
    check_names(axes.iter().map(|axis| &axis.name))?;
    let mut made = Vec::with_capacity(axes.len());
    let mut distinct = true;
    let mut length: u32 = 1;
    for axis in axes.iter().rev() {
        let (values, count) = match &axis.values {
            Some(parameter_axis::Values::Strings(strings)) => {
                let count = u32::try_from(strings.values.len()).map_err(|_| SpaceError::TooManyElements)?;
                distinct &= strings.values.iter().collect::<HashSet<_>>().len() == strings.values.len();
                (Values::Strings(strings.values.clone()), count)
            }
            Some(parameter_axis::Values::Range(range)) => (range_values(&axis.name, range)?, range.count),
            None => return Err(SpaceError::NoValues(axis.name.clone())),
        };
        if count == 0 {
            return Err(SpaceError::NoValues(axis.name.clone()));
        }
        made.push(Axis { name: axis.name.clone(), values, length: count, stride: length });
        length = length.checked_mul(count).filter(|length| *length <= TASKS_MAX).ok_or(SpaceError::TooManyElements)?;
    }
    made.reverse();
    let kind = if made.is_empty() { Kind::Plain } else { Kind::Product(made) };
    Ok(Space { kind, length, distinct })
}

fn range_values(name: &str, range: &IntRange) -> Result<Values, SpaceError> {
    let steps = i64::from(range.count.saturating_sub(1));
    let last = range.step.checked_mul(steps).and_then(|distance| range.start.checked_add(distance));
    if last.is_none() || (range.step == 0 && steps > 0) {
        return Err(SpaceError::BadRange(name.to_owned()));
    }
    Ok(Values::Range { start: range.start, step: range.step })
}

fn table_space(table: &Table) -> Result<Space, SpaceError> {
    check_names(table.names.iter())?;
    if table.rows > TASKS_MAX {
        return Err(SpaceError::TooManyElements);
    }
    let cells = table.cells.len();
    if table.names.is_empty() || (table.rows as usize).checked_mul(table.names.len()) != Some(cells) {
        return Err(SpaceError::BadTable { rows: table.rows, names: table.names.len(), cells });
    }
    let mut seen = HashSet::with_capacity(table.rows as usize);
    let distinct = table.cells.chunks_exact(table.names.len()).all(|row| seen.insert(row));
    Ok(Space { kind: Kind::Table { names: table.names.clone(), cells: table.cells.clone() }, length: table.rows, distinct })
}
