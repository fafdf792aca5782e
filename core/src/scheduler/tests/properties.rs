//! Properties: range sets against a plain set, projections against brute force, the link against a lossy wire, and the machine
//! against shrinking lists of operations.

use super::super::interval_set::IntervalSet;
use super::super::projection::{Projection, downstream_of, upstream_of};
use super::super::{Config, Scheduler};
use super::oracle::{Oracle, Report};
use super::rng::Rng;
use super::specs::random_run;
use crate::ids::*;
use crate::link::{Arrival, Receiver, Sender};
use crate::messages::*;
use crate::resources::Resources;
use crate::spec::Axis;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[derive(Clone, Debug)]
enum SetOp {
    Insert(u32, u32),
    Remove(u32, u32),
    TakeFirst(u32),
    Mend,
}

fn set_op() -> impl Strategy<Value = SetOp> {
    let range = || (0u32..60, 0u32..12).prop_map(|(first, count)| (first, first + count));
    prop_oneof![
        3 => range().prop_map(|(first, end)| SetOp::Insert(first, end)),
        2 => range().prop_map(|(first, end)| SetOp::Remove(first, end)),
        1 => (0u32..8).prop_map(SetOp::TakeFirst),
        1 => Just(SetOp::Mend),
    ]
}

/// A space of up to four axes and which of them each side has.
fn axes() -> impl Strategy<Value = Vec<Axis>> {
    prop::collection::vec((1u32..4, 0u8..3), 0..5).prop_map(|dims| {
        let (mut up, mut down) = (1, 1);
        let mut axes: Vec<Axis> = Vec::new();
        // Built from the axis that varies fastest.
        for (length, who) in dims.into_iter().rev() {
            let (upstream_stride, downstream_stride) = match who {
                0 => (up, down),
                1 => (up, 0),
                _ => (0, down),
            };
            up *= if who == 2 { 1 } else { length };
            down *= if who == 1 { 1 } else { length };
            axes.push(Axis { length, upstream_stride, downstream_stride });
        }
        axes.reverse();
        axes
    })
}

fn lengths(axes: &[Axis]) -> (u32, u32) {
    let of = |has: fn(&Axis) -> bool| axes.iter().filter(|axis| has(axis)).map(|axis| axis.length).product();
    (of(|axis| axis.upstream_stride > 0), of(|axis| axis.downstream_stride > 0))
}

/// What may be done to a cluster of one run and up to three workers; numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Op {
    Join(u8),
    Attach(u8, bool),
    Reset(u8, bool),
    Start(u8, u8),
    Finish(u8, u8, u8),
    GiveBack(u8, u8),
    Keep(u8, u8),
    Drain(u8),
    Left(u8),
    Die(u8),
    Cancel(u8, u8),
    Wait(u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => any::<u8>().prop_map(Op::Join),
        3 => any::<(u8, bool)>().prop_map(|(worker, control)| Op::Attach(worker, control)),
        1 => any::<(u8, bool)>().prop_map(|(worker, control)| Op::Reset(worker, control)),
        6 => any::<(u8, u8)>().prop_map(|(worker, which)| Op::Start(worker, which)),
        6 => any::<(u8, u8, u8)>().prop_map(|(worker, which, how)| Op::Finish(worker, which, how)),
        1 => any::<(u8, u8)>().prop_map(|(worker, which)| Op::GiveBack(worker, which)),
        1 => any::<(u8, u8)>().prop_map(|(worker, which)| Op::Keep(worker, which)),
        1 => any::<u8>().prop_map(Op::Drain),
        1 => any::<u8>().prop_map(Op::Left),
        1 => any::<u8>().prop_map(Op::Die),
        1 => any::<(u8, u8)>().prop_map(|(group, index)| Op::Cancel(group, index)),
        3 => any::<u8>().prop_map(Op::Wait),
    ]
}

/// Sends operations to a machine, well formed or not, with the checker and the oracle behind.
struct Bench {
    machine: Scheduler,
    oracle: Oracle,
    now: Micros,
    sessions: u64,
    /// Everything ever dispatched to a session: a worker may speak of it at any time, truthfully or late.
    sent: BTreeMap<SessionId, Vec<Dispatch>>,
    finished: BTreeSet<Handle>,
    token: u32,
    run: RunId,
}

impl Bench {
    fn new(seed: u64) -> Result<Self, String> {
        let mut bench = Bench {
            machine: Scheduler::new(Config::standard(), 0),
            oracle: Oracle::new(false),
            now: 1,
            sessions: 0,
            sent: BTreeMap::new(),
            finished: BTreeSet::new(),
            token: 0,
            run: RunId(0),
        };
        let spec = random_run(&mut Rng::new(seed), bench.machine.names_mut(), 1);
        bench.feed(Input::Submit(Box::new(spec)))?;
        Ok(bench)
    }

    fn feed(&mut self, input: Input) -> Result<(), String> {
        self.oracle.before(&input);
        let mut out = Vec::new();
        self.machine.step(self.now, input, &mut out);
        self.machine.check()?;
        self.oracle.after(self.now, &out)?;
        for output in out {
            match output {
                Output::Dispatch { session, dispatch } => self.sent.entry(session).or_default().push(dispatch),
                Output::Submitted { run, .. } => self.run = run,
                _ => {}
            }
        }
        Ok(())
    }

    fn session(&self, worker: u8) -> SessionId {
        SessionId(u64::from(worker) % self.sessions.max(1) + 1)
    }

    fn dispatch(&self, worker: u8, which: u8) -> Option<(SessionId, Dispatch)> {
        let session = self.session(worker);
        let sent = self.sent.get(&session)?;
        Some((session, sent[usize::from(which) % sent.len()].clone()))
    }

    fn apply(&mut self, op: &Op) -> Result<(), String> {
        let connection = |control: bool| if control { Connection::Control } else { Connection::Data };
        match *op {
            Op::Join(kind) => {
                self.sessions += 1;
                let capacity = Resources {
                    milli_cpus: 1_000 * (1 + u64::from(kind % 4)),
                    memory_bytes: if kind > 128 { u64::MAX } else { 4 << 30 },
                    gpus: u64::from(kind % 2),
                    ..Resources::default()
                };
                let worker = WorkerSpec {
                    name: format!("w{}", kind % 3),
                    pool: "p".to_owned(),
                    components: vec!["*".to_owned()],
                    capacity,
                };
                self.feed(Input::Join { session: SessionId(self.sessions), worker })
            }
            Op::Attach(worker, control) => {
                self.feed(Input::Attach { session: self.session(worker), connection: connection(control) })
            }
            Op::Reset(worker, control) => {
                self.feed(Input::Reset { session: self.session(worker), connection: connection(control) })
            }
            Op::Start(worker, which) => match self.dispatch(worker, which) {
                Some((session, Dispatch { handle, attempt, .. })) => {
                    let events = vec![WorkerEvent { handle, attempt, kind: EventKind::Started }];
                    self.feed(Input::Events { session, events })
                }
                None => Ok(()),
            },
            Op::Finish(worker, which, how) => self.finish(worker, which, how),
            Op::GiveBack(worker, which) => match self.dispatch(worker, which) {
                Some((session, Dispatch { handle, .. })) => {
                    self.feed(Input::RetractReply { session, given_back: vec![handle], kept: Vec::new() })
                }
                None => Ok(()),
            },
            Op::Keep(worker, which) => match self.dispatch(worker, which) {
                Some((session, Dispatch { handle, .. })) => {
                    self.feed(Input::RetractReply { session, given_back: Vec::new(), kept: vec![handle] })
                }
                None => Ok(()),
            },
            Op::Drain(worker) => self.feed(Input::Draining { session: self.session(worker) }),
            Op::Left(worker) => self.feed(Input::Left { session: self.session(worker) }),
            Op::Die(worker) => self.feed(Input::Died {
                worker: format!("w{}", worker % 3),
                cause: DeathCause::Failed,
                reason: "gone".to_owned(),
            }),
            Op::Cancel(group, index) => {
                let groups = self.oracle.group_count(self.run).max(1);
                let group = GroupId(self.oracle.first_group(self.run) + u32::from(group) % groups);
                let index = (index < 200).then_some(u32::from(index) % 5);
                self.feed(Input::Cancel { run: self.run, group: Some(group), index })
            }
            Op::Wait(tenths) => {
                self.now += u64::from(tenths) * SECOND / 10;
                self.feed(Input::Tick)
            }
        }
    }

    fn finish(&mut self, worker: u8, which: u8, how: u8) -> Result<(), String> {
        let Some((session, Dispatch { handle, attempt, .. })) = self.dispatch(worker, which) else { return Ok(()) };
        use OutcomeClass::*;
        let classes = [Succeeded, Succeeded, Succeeded, AppError, Oom, Timeout, InfraStart, Preempted, Cancelled, MissingOutput];
        let class = classes[usize::from(how) % classes.len()];
        self.token += 1;
        // A second end of the same attempt is one that no worker could truthfully report.
        let genuine = self.finished.insert(handle);
        self.oracle.report(self.token, Report { session, handle, attempt, class, genuine, result: Stored::None });
        let finish = Finish {
            class,
            exit_code: None,
            signalled: false,
            wall: 1_000,
            cpu: 1_000,
            peak_memory_bytes: u64::from(how) << 24,
            length: (!how.is_multiple_of(3)).then_some(u32::from(how) % 5),
            token: self.token,
            result: Stored::None,
            missing: None,
        };
        let events = vec![WorkerEvent { handle, attempt, kind: EventKind::Finished(finish) }];
        self.feed(Input::Events { session, events })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_range_set_is_a_set(ops in prop::collection::vec(set_op(), 0..60)) {
        let (mut set, mut plain) = (IntervalSet::new(), BTreeSet::new());
        for op in ops {
            match op {
                SetOp::Insert(first, end) => {
                    let new = (first..end).filter(|index| plain.insert(*index)).count();
                    prop_assert_eq!(set.insert_range(first, end) as usize, new);
                }
                SetOp::Remove(first, end) => {
                    let gone = (first..end).filter(|index| plain.remove(index)).count();
                    prop_assert_eq!(set.remove_range(first, end) as usize, gone);
                }
                SetOp::TakeFirst(count) => {
                    let taken = set.take_first(count);
                    let taken: Vec<u32> = taken.into_iter().flat_map(|(first, count)| first..first + count).collect();
                    let expected: Vec<u32> = plain.iter().copied().take(taken.len()).collect();
                    prop_assert_eq!(&taken, &expected);
                    prop_assert!(count == 0 || plain.is_empty() || !taken.is_empty());
                    taken.iter().for_each(|index| { plain.remove(index); });
                }
                SetOp::Mend => {
                    set.mend();
                    // All of it is in one block.
                    prop_assert!(set.range_count() > 1 || set.bytes() < 512, "{} bytes for one run", set.bytes());
                }
            }
            prop_assert_eq!(set.len() as usize, plain.len());
            prop_assert_eq!(set.iter_from(0).collect::<Vec<_>>(), plain.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.first(), plain.first().copied());
            let ranges: Vec<(u32, u32)> = set.ranges().collect();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0), "ranges touch: {:?}", ranges);
            for (first, end) in [(0, 80), (10, 20), (33, 34), (50, 50)] {
                let within: Vec<u32> = set.within(first, end).flat_map(|(first, end)| first..end).collect();
                prop_assert_eq!(within, plain.range(first..end).copied().collect::<Vec<_>>());
                prop_assert_eq!(set.contains_range(first, end), (first..end).all(|index| plain.contains(&index)));
            }
            prop_assert!((0..80).all(|index| set.contains(index) == plain.contains(&index)));
        }
    }

    #[test]
    fn a_projection_is_what_its_axes_say(axes in axes()) {
        let (up, down) = lengths(&axes);
        let mut pairs = BTreeSet::from([(0u32, 0u32)]);
        for axis in &axes {
            pairs = pairs
                .iter()
                .flat_map(|(u, d)| (0..axis.length).map(move |s| (u + s * axis.upstream_stride, d + s * axis.downstream_stride)))
                .collect();
        }
        let plan = Projection::new(&axes, up, down).map_err(TestCaseError::fail)?;
        for index in 0..down {
            let of: BTreeSet<u32> = upstream_of(&axes, index).into_iter().collect();
            let brute: BTreeSet<u32> = pairs.iter().filter(|(_, d)| *d == index).map(|(u, _)| *u).collect();
            prop_assert_eq!(of.len() as u32, plan.fan_in);
            prop_assert_eq!(of, brute);
        }
        for index in 0..up {
            let of: BTreeSet<u32> = downstream_of(&axes, index).into_iter().collect();
            let brute: BTreeSet<u32> = pairs.iter().filter(|(u, _)| *u == index).map(|(_, d)| *d).collect();
            let ranges = plan.downstream_ranges(plan.cell(index));
            let ranged: BTreeSet<u32> = ranges.iter().flat_map(|(first, end)| *first..*end).collect();
            prop_assert_eq!(&of, &brute);
            prop_assert_eq!(ranged, brute);
            prop_assert!(!plan.is_identity() || of == BTreeSet::from([index]));
        }
        prop_assert!(Projection::new(&axes, up + 1, down).is_err());
        prop_assert!(Projection::new(&axes, up, down + 1).is_err());
    }

    #[test]
    fn a_link_loses_and_doubles_nothing(drops in prop::collection::vec((0u8..6, any::<bool>(), any::<bool>()), 1..60)) {
        let (mut sender, mut receiver) = (Sender::new(64), Receiver::default());
        let (mut wire, mut got, mut sent): (VecDeque<u64>, Vec<u64>, u64) = (VecDeque::new(), Vec::new(), 0);
        for (delivered, cut, acked) in drops {
            if let Ok(frame) = sender.push(|seq| seq) {
                sent += 1;
                wire.push_back(frame);
            }
            for _ in 0..delivered {
                let Some(seq) = wire.pop_front() else { break };
                prop_assert_ne!(receiver.arrive(seq), Arrival::Gap);
                if got.last().is_none_or(|last| *last < seq) {
                    got.push(seq);
                }
            }
            if acked {
                sender.acked(receiver.received());
            }
            if cut {
                wire.clear();
                wire.extend(sender.resume(receiver.received()));
            }
        }
        while let Some(seq) = wire.pop_front() {
            if receiver.arrive(seq) == Arrival::New {
                got.push(seq);
            }
        }
        prop_assert_eq!(got, (1..=sent).collect::<Vec<_>>());
        sender.acked(receiver.received());
        prop_assert!(sender.is_empty());
    }

    #[test]
    fn the_machine_keeps_its_promises_whatever_is_said(seed in any::<u64>(), ops in prop::collection::vec(op(), 0..120)) {
        let mut bench = Bench::new(seed).map_err(TestCaseError::fail)?;
        for (at, op) in ops.iter().enumerate() {
            bench.apply(op).map_err(|what| TestCaseError::fail(format!("operation {at}, {op:?}: {what}")))?;
        }
    }
}
