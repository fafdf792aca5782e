//! What the machine does not keep: the arguments of elements, the sources of their inputs, and results.

use std::collections::VecDeque;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use scalable_core::ids::{GroupId, TaskRef};
use scalable_core::messages::Edge;
use scalable_lane::host::{Function, GroupOfCalls};
use scalable_proto::v1;
use v1::input_source::Select;

use super::{Blob, Read};

/// One frame's elements.
#[derive(Debug)]
struct Appended {
    first: u32,
    count: u32,
    ends: Vec<u32>,
    args: Blob,
    /// For each input that is said for each element: its number and (group, index) of each.
    inputs: Vec<(u32, Vec<TaskRef>)>,
    /// Elements that somebody may still need.
    left: u32,
}

/// How an input of a group is found.
#[derive(Clone, Copy, Debug)]
enum Source {
    Element,
    One(TaskRef),
    All(GroupId),
}

/// A group of the session's run.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) ordinal: u32,
    pub(super) function: Function,
    pub(super) of: Arc<GroupOfCalls>,
    sources: Vec<Source>,
    appended: VecDeque<Appended>,
    pub(super) length: u32,
    results: FxHashMap<u32, Blob>,
    /// What [`Source::All`] reads, once it was put together.
    all: Option<Arc<[Blob]>>,
}

impl Group {
    pub(super) fn new(
        ordinal: u32,
        function: Function,
        of: Arc<GroupOfCalls>,
        template: &v1::TaskTemplate,
        id: impl Fn(u32) -> Option<GroupId>,
    ) -> Option<Group> {
        let sources = template.inputs.iter().map(|input| {
            let source = input.source.as_ref()?;
            Some(match source.select.as_ref()? {
                Select::All(_) => Source::All(id(source.group)?),
                Select::Index(index) => Source::One(TaskRef { group: id(source.group)?, index: *index }),
                _ => Source::Element,
            })
        });
        Some(Group {
            ordinal,
            function,
            of,
            sources: sources.collect::<Option<Vec<Source>>>()?,
            appended: VecDeque::new(),
            length: 0,
            results: FxHashMap::default(),
            all: None,
        })
    }

    /// Takes elements; returns what they wait for.
    fn append(&mut self, append: v1::Append, id: impl Fn(u32) -> Option<GroupId>) -> Option<Vec<Edge>> {
        let mut edges = Vec::new();
        let mut inputs = Vec::new();
        for input in append.inputs {
            let tasks =
                input.group.iter().zip(&input.index).map(|(group, index)| Some(TaskRef { group: id(*group)?, index: *index }));
            let tasks = tasks.collect::<Option<Vec<TaskRef>>>()?;
            let edge =
                |(at, upstream): (usize, &TaskRef)| Edge { element: append.first + at as u32, upstream: *upstream, data: true };
            edges.extend(tasks.iter().enumerate().map(edge));
            inputs.push((input.input, tasks));
        }
        self.length = append.first + append.count;
        self.appended.push_back(Appended {
            first: append.first,
            count: append.count,
            ends: append.args_end,
            args: append.args,
            inputs,
            left: append.count,
        });
        Some(edges)
    }

    fn frame(&self, index: u32) -> Option<&Appended> {
        let at = self.appended.partition_point(|appended| appended.first + appended.count <= index);
        self.appended.get(at).filter(|appended| appended.first <= index)
    }

    /// An element's own arguments.
    pub(super) fn values(&self, index: u32) -> Blob {
        let Some(appended) = self.frame(index) else { return Blob::new() };
        let at = (index - appended.first) as usize;
        let Some(end) = appended.ends.get(at) else { return Blob::new() };
        let start = if at == 0 { 0 } else { appended.ends[at - 1] };
        appended.args.slice(start as usize..*end as usize)
    }

    /// Nobody needs these any more.
    pub(super) fn released(&mut self, first: u32, count: u32) {
        for index in first..first + count {
            self.results.remove(&index);
            let at = self.appended.partition_point(|appended| appended.first + appended.count <= index);
            if let Some(appended) = self.appended.get_mut(at) {
                appended.left = appended.left.saturating_sub(1);
            }
        }
        self.all = None;
        self.appended.retain(|appended| appended.left > 0);
    }
}

/// All groups.
#[derive(Debug, Default)]
pub(super) struct Book {
    groups: FxHashMap<GroupId, Group>,
    /// By ordinal, without those that were refused or forgotten.
    ids: FxHashMap<u32, GroupId>,
    announced: u32,
}

impl Book {
    pub(super) fn id(&self, ordinal: u32) -> Option<GroupId> {
        self.ids.get(&ordinal).copied()
    }

    /// How many groups there were: the ordinal of the next one.
    pub(super) fn announced(&self) -> u32 {
        self.announced
    }

    /// The next group has this id, or none: it was refused.
    pub(super) fn announce(&mut self, id: Option<GroupId>) {
        self.ids.extend(id.map(|id| (self.announced, id)));
        self.announced += 1;
    }

    /// Nobody can want anything of a group any more.
    pub(super) fn forget(&mut self, id: GroupId) {
        if let Some(group) = self.groups.remove(&id) {
            self.ids.remove(&group.ordinal);
        }
    }

    /// Takes elements of a group; returns what they wait for.
    pub(super) fn append(&mut self, id: GroupId, append: v1::Append) -> Option<Vec<Edge>> {
        let ids = &self.ids;
        self.groups.get_mut(&id)?.append(append, |ordinal| ids.get(&ordinal).copied())
    }

    pub(super) fn insert(&mut self, id: GroupId, group: Group) {
        self.groups.insert(id, group);
    }

    pub(super) fn get(&self, id: GroupId) -> Option<&Group> {
        self.groups.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: GroupId) -> Option<&mut Group> {
        self.groups.get_mut(&id)
    }

    pub(super) fn keep(&mut self, task: TaskRef, result: Blob) {
        if let Some(group) = self.groups.get_mut(&task.group) {
            group.results.insert(task.index, result);
        }
    }

    fn result(&self, task: TaskRef) -> Option<Blob> {
        self.groups.get(&task.group)?.results.get(&task.index).cloned()
    }

    /// What an element reads: nothing when a result is not there, which the machine does not let happen.
    pub(super) fn reads(&mut self, task: TaskRef) -> Option<Vec<Read>> {
        let sources = self.get(task.group)?.sources.clone();
        let mut reads = Vec::with_capacity(sources.len());
        for (number, source) in sources.into_iter().enumerate() {
            reads.push(match source {
                Source::One(task) => Read::One(self.result(task)?),
                Source::All(group) => Read::Many(self.all(group)?),
                Source::Element => {
                    let frame = self.get(task.group)?.frame(task.index)?;
                    let (_, tasks) = frame.inputs.iter().find(|(input, _)| *input as usize == number)?;
                    Read::One(self.result(tasks[(task.index - frame.first) as usize])?)
                }
            });
        }
        Some(reads)
    }

    fn all(&mut self, group: GroupId) -> Option<Arc<[Blob]>> {
        let group = self.groups.get_mut(&group)?;
        if group.all.is_none() {
            let results = (0..group.length).map(|index| group.results.get(&index).cloned());
            group.all = Some(results.collect::<Option<Vec<Blob>>>()?.into());
        }
        group.all.clone()
    }
}
