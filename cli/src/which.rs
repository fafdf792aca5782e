//! From what was typed to a run, a group, an element.

use std::path::Path;

use scalable_template::{Element, Space, parse_task_name};

use crate::exit::Failure;
use crate::records::{self, GroupRecord, Parameters, ParametersRecord, RunRecord};
use crate::runs::{self, RunDirectory};

/// What a name means.
#[derive(Debug)]
pub struct Which {
    pub directory: RunDirectory,
    pub record: RunRecord,
    /// A group of it.
    pub group: Option<String>,
    /// An element of that group.
    pub index: Option<u32>,
}

impl Which {
    /// The task that is meant.
    ///
    /// # Errors
    /// When a run or a whole group was named.
    pub fn task(&self) -> Result<(&str, u32), Failure> {
        match (&self.group, self.index) {
            (Some(group), Some(index)) => Ok((group, index)),
            (Some(group), None) => {
                let length = self.record.groups.iter().find(|known| known.name == *group).map_or(0, |known| known.length);
                Err(Failure::usage(format!("{group} has {length} tasks; which one?"))
                    .help(format!("write {group}[0], or name its parameters: {group}[name=value,…]")))
            }
            _ => Err(Failure::usage("no task was named").help("write group[index], or group[name=value,…]")),
        }
    }
}

/// Finds the run alone.
///
/// # Errors
/// When there is none of the name.
pub fn run(runs_dir: &Path, wanted: &str) -> Result<Which, Failure> {
    let directory = runs::find(runs_dir, wanted)?;
    let record = directory.record()?;
    Ok(Which { directory, record, group: None, index: None })
}

/// Finds what `what` names: a run (`@last`, `run-…`), `group`, `group[…]`, `run/group`, `run/group[…]`. `default_run` is meant
/// where no run is named.
///
/// # Errors
/// When run, group or element are not there; the known groups are named.
pub fn any(runs_dir: &Path, default_run: &str, what: &str) -> Result<Which, Failure> {
    if is_run(what) || (what.contains('/') && Path::new(what).join("run.json").is_file()) {
        return run(runs_dir, what);
    }
    of_run(run(runs_dir, run_in(what)?.unwrap_or(default_run))?, what)
}

/// It can only be the name of a run.
pub fn is_run(what: &str) -> bool {
    !what.contains(['/', '[']) && (what == "@last" || what.starts_with("run-"))
}

/// The run that the name of a task or group has before it.
///
/// # Errors
/// When it is no such name.
pub fn run_in(what: &str) -> Result<Option<&str>, Failure> {
    Ok(parse_task_name(what).map_err(|error| Failure::usage(error.to_string()))?.run)
}

/// The group or element of this run that `what` names.
///
/// # Errors
/// When it is not there; the known groups are named.
pub fn of_run(mut which: Which, what: &str) -> Result<Which, Failure> {
    let name = parse_task_name(what).map_err(|error| Failure::usage(error.to_string()))?;
    let Some(group) = which.record.groups.iter().find(|group| group.name == name.group) else {
        let known: Vec<&str> = which.record.groups.iter().take(20).map(|group| group.name.as_str()).collect();
        return Err(Failure::usage(format!("{} has no group {:?}", which.directory.name, name.group))
            .help(format!("its groups are {}", if known.is_empty() { "none".to_owned() } else { known.join(", ") })));
    };
    which.index = element(&which, group, &name.element)?;
    which.group = Some(group.name.clone());
    Ok(which)
}

fn element(which: &Which, group: &GroupRecord, element: &Element) -> Result<Option<u32>, Failure> {
    if let Element::Index(index) = element {
        // The length of a group that is open on a result may have become known since.
        if group.length > 0 && *index >= group.length {
            return Err(Failure::usage(format!("{} has {} tasks, there is no [{index}]", group.name, group.length))
                .help(format!("the last one is {}[{}]", group.name, group.length - 1)));
        }
        return Ok(Some(*index));
    }
    if *element == Element::Whole {
        return Ok((group.length == 1).then_some(0));
    }
    let known: ParametersRecord = records::read_json(&which.directory.file("parameters.json")).unwrap_or_default();
    let space = match known.groups.get(&group.name) {
        None if group.parameters.is_empty() && !which.record.is_from_elsewhere() => Parameters::None.to_wire(),
        None => None,
        Some(parameters) => parameters.to_wire(),
    };
    let Some(space) = space else {
        return Err(Failure::usage(format!("the elements of {} cannot be looked up by their values", group.name))
            .help(format!("name the number of the element: {}[0]", group.name)));
    };
    let space = Space::with_length(&space, group.length)
        .map_err(|error| Failure::infrastructure(format!("run.json is damaged: group {}: {error}", group.name)))?;
    match space.find_element(element) {
        None => {
            let example =
                if group.length > 0 { format!("for example {}", space.task_name(&group.name, 0)) } else { String::new() };
            Err(Failure::usage(format!("{} has no element with these parameters", group.name)).help(example))
        }
        found => Ok(found),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A run of which only the scheduler's counts are known.
    fn elsewhere() -> Which {
        let group = |name: &str, length| GroupRecord { name: name.to_owned(), length, parameters: Vec::new() };
        let record = RunRecord {
            kubernetes: Some(crate::kubernetes::KubernetesRecord::default()),
            groups: vec![group("one", 1), group("many", 3)],
            ..RunRecord::default()
        };
        let directory = RunDirectory { path: "/nowhere/r".into(), name: "r".to_owned() };
        Which { directory, record, group: None, index: None }
    }

    #[test]
    fn tasks_of_a_run_from_elsewhere_are_named_by_their_numbers() {
        for (what, group, index) in [("one", "one", Some(0)), ("many", "many", None), ("r/many[2]", "many", Some(2))] {
            let which = of_run(elsewhere(), what).unwrap();
            assert_eq!((which.group.as_deref(), which.index), (Some(group), index), "{what}");
        }
        for (what, words) in [
            ("many[n=1]", "cannot be looked up by their values"),
            ("many[3]", "many has 3 tasks"),
            ("other", "has no group \"other\""),
        ] {
            let failure = of_run(elsewhere(), what).unwrap_err();
            assert!(failure.message.contains(words), "{what}: {}", failure.message);
        }
    }

    #[test]
    fn what_names_a_run_and_what_a_task() {
        assert!(is_run("@last") && is_run("run-x") && !is_run("run-x/a") && !is_run("work[0]") && !is_run("work"));
        assert_eq!((run_in("work[0]").unwrap(), run_in("r/work").unwrap()), (None, Some("r")));
    }
}
