//! Large open runs in virtual time: what a million pending tasks hold, nodes with a thousand dependants, long and short tasks side
//! by side, ten thousand workers, a worker that dies with everything.

use super::super::group::Group;
use super::super::{Config, Happening, Scheduler};
use super::rng::Rng;
use crate::ids::*;
use crate::messages::*;
use crate::resources::Resources;
use crate::spec::*;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

fn growing(name: &str) -> GroupSpec {
    GroupSpec {
        name: name.to_owned(),
        component: "c".to_owned(),
        length: Length::Growing,
        dependencies: Vec::new(),
        priority: 0,
        max_parallel: 0,
        always: false,
        policy: Policy::default(),
        resources: Resources { milli_cpus: 1_000, ..Resources::default() },
    }
}

/// An attempt that executes: its end, its order, its worker, its handle, its number and its task.
type Executing = (Micros, u64, usize, u64, u32, TaskRef);

/// A cluster in virtual time: every worker executes what it was sent in order, as many at a time as it has cpus.
struct Cluster {
    machine: Scheduler,
    now: Micros,
    out: Outbox,
    slots: usize,
    /// What each worker was sent and has not started, and how many it executes.
    queues: Vec<(std::collections::VecDeque<Dispatch>, usize)>,
    ends: BinaryHeap<Reverse<Executing>>,
    order: u64,
    ended: Vec<(Micros, TaskRef)>,
    restored: u32,
}

impl Cluster {
    fn new(groups: Vec<GroupSpec>, workers: usize, slots: usize) -> Self {
        let machine = Scheduler::new(Config::standard(), 0);
        let mut cluster = Cluster {
            machine,
            now: 0,
            out: Vec::new(),
            slots,
            queues: Vec::new(),
            ends: BinaryHeap::new(),
            order: 0,
            ended: Vec::new(),
            restored: 0,
        };
        cluster.submit(1, groups);
        (0..workers).for_each(|_| cluster.join());
        cluster
    }

    fn submit(&mut self, number: u8, groups: Vec<GroupSpec>) {
        let spec = RunSpec {
            name: format!("r{number}"),
            owner: String::new(),
            weight: 1,
            client_key: [number; 16],
            max_failures: 0,
            totals: Vec::new(),
            open: true,
            keeps: false,
            groups,
        };
        self.feed(Input::Submit(Box::new(spec)));
    }

    fn join(&mut self) {
        let session = SessionId(self.queues.len() as u64 + 1);
        let capacity = Resources { milli_cpus: self.slots as u64 * 1_000, memory_bytes: u64::MAX, ..Resources::default() };
        let name = format!("w{}", session.0);
        let worker = WorkerSpec { name, pool: "p".to_owned(), components: vec!["*".to_owned()], capacity };
        self.queues.push(Default::default());
        self.feed(Input::Join { session, worker });
        self.feed(Input::Attach { session, connection: Connection::Data });
    }

    fn feed(&mut self, input: Input) {
        self.machine.step(self.now, input, &mut self.out);
    }

    fn append(&mut self, group: u32, first: u32, count: u32, edges: Vec<Edge>) {
        self.feed(Input::Append { run: RunId(1), group: GroupId(group), first, count, edges, last: false });
    }

    /// Runs until nothing is left to do, or `until`; `takes` says how long each task executes and what it returns.
    fn run(&mut self, until: Micros, takes: impl Fn(TaskRef) -> (Micros, Stored)) {
        loop {
            for output in std::mem::take(&mut self.out) {
                match output {
                    Output::Dispatch { session, dispatch } => self.queues[session.0 as usize - 1].0.push_back(dispatch),
                    Output::Retract { session, handles } => self.give_back(session, handles),
                    Output::Committed { task, .. } => self.ended.push((self.now, task)),
                    Output::Restored { .. } => self.restored += 1,
                    _ => {}
                }
            }
            if !self.out.is_empty() {
                continue;
            }
            for at in 0..self.queues.len() {
                while self.queues[at].1 < self.slots {
                    let Some(dispatch) = self.queues[at].0.pop_front() else { break };
                    self.queues[at].1 += 1;
                    self.order += 1;
                    let end = self.now + takes(dispatch.task).0;
                    let entry = (end, self.order, at, dispatch.handle.to_u64(), dispatch.attempt, dispatch.task);
                    self.ends.push(Reverse(entry));
                }
            }
            let Some(&Reverse((next, _, at, ..))) = self.ends.peek() else { return };
            if next > until {
                self.now = until;
                return;
            }
            self.now = next;
            let mut events = Vec::new();
            // Ends of one worker within a tenth of a millisecond come together.
            while let Some(&Reverse((end, _, other, handle, attempt, task))) = self.ends.peek()
                && (end <= self.now + 100 && other == at)
            {
                self.ends.pop();
                self.queues[at].1 -= 1;
                let (wall, result) = takes(task);
                let finish = Finish {
                    class: OutcomeClass::Succeeded,
                    exit_code: None,
                    signalled: false,
                    wall,
                    cpu: wall,
                    peak_memory_bytes: 0,
                    length: None,
                    token: 0,
                    result,
                    missing: None,
                };
                events.push(WorkerEvent { handle: Handle::from_u64(handle), attempt, kind: EventKind::Finished(finish) });
            }
            self.feed(Input::Events { session: SessionId(at as u64 + 1), events });
        }
    }

    fn give_back(&mut self, session: SessionId, handles: Vec<Handle>) {
        let queue = &mut self.queues[session.0 as usize - 1].0;
        let asked: BTreeSet<Handle> = handles.iter().copied().collect();
        let there: BTreeSet<Handle> = queue.iter().map(|dispatch| dispatch.handle).collect();
        queue.retain(|dispatch| !asked.contains(&dispatch.handle));
        let (given_back, kept) = handles.into_iter().partition(|handle| there.contains(handle));
        self.feed(Input::RetractReply { session, given_back, kept });
    }
}

fn bytes(machine: &Scheduler, group: &Group) -> usize {
    let sets = [&group.waiting, &group.queues[0].ready, &group.succeeded, &group.let_go, &group.released];
    machine.edges.bytes() + group.cells.bytes() + sets.into_iter().map(|set| set.bytes()).sum::<usize>()
}

/// Elements with 1 to 3 edges each to random earlier ones.
fn random_edges(rng: &mut Rng, first: u32, count: u32) -> Vec<Edge> {
    let mut edges = Vec::new();
    for element in (first..first + count).filter(|element| *element > 0) {
        for _ in 0..1 + rng.below(3) {
            let upstream = TaskRef { group: GroupId(1), index: rng.below(u64::from(element)) as u32 };
            edges.push(Edge { element, upstream, data: true });
        }
    }
    edges
}

#[test]
fn a_million_pending_tasks_hold_little() {
    const TASKS: u32 = 1_000_000;
    let mut cluster = Cluster::new(vec![growing("array")], 0, 1);
    cluster.append(1, 0, TASKS, Vec::new());
    let held = bytes(&cluster.machine, cluster.machine.group_of(GroupId(1)));
    assert!(held <= TASKS as usize / 100, "{held} bytes for a million elements of an array");

    let mut cluster = Cluster::new(vec![growing("dag")], 0, 1);
    let mut rng = Rng::new(1);
    for first in (0..TASKS).step_by(1_000) {
        let edges = random_edges(&mut rng, first, 1_000);
        cluster.append(1, first, 1_000, edges);
    }
    let group = cluster.machine.group_of(GroupId(1));
    assert_eq!(group.waiting.len(), TASKS - 1);
    let held = bytes(&cluster.machine, group);
    assert!(held <= 160 * TASKS as usize, "{} bytes for a task of a million with 1 to 3 edges", held / TASKS as usize);
    println!("{} bytes for a pending task with 1 to 3 edges", held / TASKS as usize);

    // It runs to the end, is let go of, and leaves nothing.
    (0..2).for_each(|_| cluster.join());
    cluster.slots = 64;
    cluster.feed(Input::Release { group: GroupId(1), first: 0, count: TASKS });
    cluster.run(u64::MAX, |_| (1_000, Stored::Inline(8)));
    let group = cluster.machine.group_of(GroupId(1));
    assert_eq!((group.succeeded.len(), group.released.len()), (TASKS, TASKS));
    assert_eq!((cluster.machine.edges.len(), group.cells.is_empty()), (0, true));
    assert_eq!((group.succeeded.range_count(), group.released.range_count()), (1, 1));
}

#[test]
fn a_thousand_dependants_a_node() {
    const NODES: u32 = 300;
    let mut rng = Rng::new(7);
    let mut cluster = Cluster::new(vec![growing("nodes")], 4, 8);
    cluster.append(1, 0, NODES, Vec::new());
    // Three layers, each of whose elements reads a hundred random ones of the layer before: a thousand dependants for each.
    let mut before = (0, NODES);
    for _ in 0..3 {
        let first = before.1;
        let count = NODES * 10;
        let mut edges = Vec::new();
        for element in first..first + count {
            for _ in 0..100 {
                let index = before.0 + rng.below(u64::from(NODES)) as u32;
                edges.push(Edge { element, upstream: TaskRef { group: GroupId(1), index }, data: true });
            }
        }
        cluster.append(1, first, count, edges);
        before = (first, first + count);
    }
    let total = before.1;
    cluster.run(u64::MAX, |_| (1_000, Stored::Inline(8)));
    assert_eq!(cluster.ended.len() as u32, total);
    let mut at = vec![0; total as usize];
    cluster.ended.iter().for_each(|(time, task)| at[task.index as usize] = *time);
    assert!(at[..NODES as usize].iter().max() < at[NODES as usize..].iter().max(), "dependants end after what they read");
    cluster.feed(Input::Release { group: GroupId(1), first: 0, count: total });
    assert_eq!(cluster.machine.group_of(GroupId(1)).released.len(), total);
    assert_eq!(cluster.machine.edges.len(), 0);
}

#[test]
fn long_and_short_tasks_share_a_pool_and_neither_starves() {
    const LONG: u32 = 1_000;
    const SHORT: u32 = 1_000_000;
    // In one run, whichever is first; and in two.
    for (long, short, runs) in [(1, 2, 1), (2, 1, 1), (1, 2, 2)] {
        let groups = if runs == 1 { vec![growing("a"), growing("b")] } else { vec![growing("a")] };
        let mut cluster = Cluster::new(groups, 4, 4);
        if runs == 2 {
            cluster.submit(2, vec![growing("b")]);
        }
        let run = |group: u32| RunId(if runs == 2 { group } else { 1 });
        for (group, count) in [(long, LONG), (short, SHORT)] {
            let id = GroupId(group);
            cluster.feed(Input::Append { run: run(group), group: id, first: 0, count, edges: Vec::new(), last: true });
        }
        let takes = |task: TaskRef| (if task.group.0 == long { 10 * SECOND } else { MILLISECOND }, Stored::Inline(8));
        cluster.run(100 * SECOND, takes);
        let ended = |group: u32| cluster.ended.iter().filter(|(_, task)| task.group.0 == group).count();
        let (longs, shorts) = (ended(long), ended(short));
        // Sixteen slots for 100 s are 160 long ones or 1.6 million short ones: each has at least a quarter of what it could.
        assert!(longs >= 40, "{longs} long tasks of group {long} have ended in 100 s, in {runs} runs");
        assert!(shorts >= 400_000, "{shorts} short tasks of group {short} have ended in 100 s, in {runs} runs");
    }
}

#[test]
fn ten_thousand_workers_are_not_looked_at_for_every_task() {
    let mut cluster = Cluster::new(vec![growing("f")], 10_000, 1);
    // One at a time on an idle cluster, then a burst for all of it.
    for index in 0..5_000 {
        cluster.append(1, index, 1, Vec::new());
        if index % 100 == 0 {
            cluster.run(u64::MAX, |_| (MILLISECOND, Stored::None));
        }
    }
    cluster.append(1, 5_000, 20_000, Vec::new());
    cluster.run(u64::MAX, |_| (MILLISECOND, Stored::None));
    assert_eq!(cluster.ended.len(), 25_000);
    assert_eq!(cluster.machine.workers().filter(|view| view.queued + view.executing == 0).count(), 10_000);
}

#[test]
fn the_only_copies_of_a_hundred_results_are_made_again_once_each() {
    let mut cluster = Cluster::new(vec![growing("f"), growing("g")], 1, 4);
    cluster.append(1, 0, 100, Vec::new());
    let takes = |task: TaskRef| match task.group.0 {
        1 => (10 * MILLISECOND, Stored::Held(1 << 20)),
        _ => (10 * MILLISECOND, Stored::Inline(8)),
    };
    cluster.run(u64::MAX, takes);
    assert_eq!(cluster.ended.len(), 100);
    cluster.feed(Input::Died { worker: "w1".to_owned(), cause: DeathCause::Failed, reason: "signal 9".to_owned() });
    cluster.join();
    let edges = (0..100).map(|index| Edge { element: index, upstream: TaskRef { group: GroupId(1), index }, data: true });
    let (edges, group) = (edges.collect(), GroupId(2));
    cluster.feed(Input::Append { run: RunId(1), group, first: 0, count: 100, edges, last: true });
    cluster.run(u64::MAX, takes);
    assert_eq!((cluster.ended.len(), cluster.restored), (200, 100));
    assert_eq!(cluster.machine.counts().of(Happening::MadeAgain), 100);
    cluster.feed(Input::CloseRun { run: RunId(1) });
    let end = cluster.out.iter().find_map(|output| match output {
        Output::RunEnded { end, .. } => Some(*end),
        _ => None,
    });
    assert_eq!(end, Some(RunEnd::Succeeded));
    cluster.machine.check().unwrap_or_else(|what| panic!("{what}"));
}
