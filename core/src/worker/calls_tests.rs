//! Cases and random sequences for calls, alone and beside processes.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::calls::{CALLS_MAX, CallBatch, CallId, CallOutput, LaneId, Over, Part};
use super::*;
use crate::ids::SECOND;

const SMALL: ShapeId = ShapeId(1);
const LARGE: ShapeId = ShapeId(2);

fn cpus(milli: u64) -> Resources {
    Resources { milli_cpus: milli, ..Resources::default() }
}

fn handle(n: u64) -> Handle {
    Handle { slot: n as u32, generation: 1 }
}

/// A worker of two cpus with shapes of one and of two.
fn worker() -> Worker {
    let mut worker = Worker::new(cpus(2_000));
    assert!(worker.shape(SMALL, cpus(1_000)));
    assert!(worker.shape(LARGE, cpus(2_000)));
    worker
}

/// Dispatches calls `first .. first + count` to one lane.
fn dispatch(worker: &mut Worker, lane: LaneId, first: u64, count: u32, timeout_ms: u64) -> Vec<CallOutput> {
    let numbers = || first..first + u64::from(count);
    let batch = CallBatch {
        serial: first,
        handles: numbers().map(|n| handle(n).to_u64()).collect(),
        attempts: numbers().map(|_| 1).collect(),
        timeouts_ms: numbers().map(|_| timeout_ms).collect(),
        parts: vec![Part { first: 0, count, lane, fetching: false }],
    };
    worker.take_done(&mut Vec::new());
    worker.dispatch_calls(batch);
    outputs(worker)
}

fn outputs(worker: &mut Worker) -> Vec<CallOutput> {
    let mut out = Vec::new();
    worker.take_calls(&mut out);
    out
}

fn feed(worker: &mut Worker, lane: LaneId, max: u32, fresh: u32) -> Vec<CallId> {
    let mut fed = Vec::new();
    worker.feed(lane, max, fresh, &mut fed);
    fed
}

fn over(n: u64, cause: Option<OutcomeClass>) -> Over {
    Over { handle: handle(n), attempt: 1, cause }
}

fn step(worker: &mut Worker, now: Micros, input: Input) -> Vec<Output> {
    let mut out = Vec::new();
    worker.step(now, input, &mut out);
    out
}

#[test]
fn calls_from_dispatch_to_return() {
    let mut w = worker();
    let lane = w.open_lane(SMALL).expect("it fits");
    assert_eq!(dispatch(&mut w, lane, 1, 5, 0), [CallOutput::Slot(lane); 2], "as many slots as fit");
    let fed = feed(&mut w, lane, 3, 1);
    assert_eq!(fed, [0, 1, 2].map(|at| CallId { batch: 0, at }));
    assert_eq!((w.counts().executing, w.counts().queued), (2, 3));
    let mut out = Vec::new();
    assert_eq!(w.call_over(fed[1], &mut out), Some(over(2, None)));
    assert_eq!(w.call_over(fed[1], &mut out), None, "once");
    let rest = feed(&mut w, lane, 10, 1);
    assert_eq!(rest.len(), 2);
    assert!(feed(&mut w, lane, 10, 0).is_empty());
    for call in [fed[0], fed[2], rest[0], rest[1]] {
        assert!(w.call_over(call, &mut out).is_some());
    }
    assert!(w.is_empty() && w.used() == &cpus(2_000), "a slot takes what it takes until it is given up");
    w.slot_free(lane, false, 0, &mut out);
    w.slot_free(lane, false, 0, &mut out);
    assert_eq!(w.used(), &Resources::default());
    let mut done = Vec::new();
    w.take_done(&mut done);
    assert_eq!((done, w.close_lane(lane), w.close_lane(lane)), (vec![0], true, false));
}

#[test]
fn a_slot_waits_its_turn_behind_an_older_process() {
    let mut w = worker();
    let lane = w.open_lane(LARGE).expect("it fits");
    assert_eq!(dispatch(&mut w, lane, 1, 10, 0), [CallOutput::Slot(lane)]);
    let first = feed(&mut w, lane, 4, 1);
    let attempt = Attempt { serial: Serial(5), handle: handle(50), attempt: 1, shape: SMALL, timeout: 0, grace: SECOND };
    assert_eq!(step(&mut w, 0, Input::Dispatch(attempt)), [], "no room beside the slot");
    // Call 5 (serial 5 would tie) is younger than the process: the slot yields.
    let mut out = Vec::new();
    for call in first {
        w.call_over(call, &mut out);
    }
    assert_eq!(feed(&mut w, lane, 1, 0).len(), 1, "serial 5 of the lane is no younger");
    assert!(feed(&mut w, lane, 1, 0).is_empty(), "the process is older now");
    w.call_over(CallId { batch: 0, at: 4 }, &mut out);
    w.slot_free(lane, false, 0, &mut out);
    assert_eq!(out, [Output::Stage(Serial(5))]);
    step(&mut w, 0, Input::Staged(Serial(5)));
    step(&mut w, 0, Input::Exited(Serial(5), OutcomeClass::Succeeded));
    step(&mut w, 0, Input::Settled(Serial(5), None));
    assert_eq!(outputs(&mut w), [CallOutput::Slot(lane)], "then the lane goes on");
}

#[test]
fn a_large_process_is_overtaken_a_bounded_number_of_times() {
    let mut w = worker();
    let lane = w.open_lane(SMALL).expect("it fits");
    dispatch(&mut w, lane, 10, 2_000, 0);
    let attempt = Attempt { serial: Serial(1), handle: handle(5_000), attempt: 1, shape: LARGE, timeout: 0, grace: SECOND };
    step(&mut w, 0, Input::Dispatch(attempt));
    let (mut out, mut fed) = (Vec::new(), 0);
    loop {
        let calls = feed(&mut w, lane, 1, u32::from(fed < 2));
        let Some(&call) = calls.first() else { break };
        fed += 1;
        w.call_over(call, &mut out);
    }
    assert!(fed > 2 && fed <= OVERTAKEN_MAX, "{fed}");
    w.slot_free(lane, false, 0, &mut out);
    assert_eq!(out, [], "the other slot is still there");
    w.slot_free(lane, false, 0, &mut out);
    assert_eq!(out, [Output::Stage(Serial(1))]);
}

#[test]
fn retract_cancel_and_what_came_before_its_dispatch() {
    let mut w = worker();
    let lane = w.open_lane(LARGE).expect("it fits");
    step(&mut w, 0, Input::Retract(vec![handle(3)]));
    step(&mut w, 0, Input::Cancel(vec![handle(4)]));
    let out = dispatch(&mut w, lane, 1, 6, 0);
    assert_eq!(out, [CallOutput::Over(over(4, Some(OutcomeClass::Cancelled))), CallOutput::Slot(lane)]);
    let fed = feed(&mut w, lane, 2, 1);
    let reply = step(&mut w, 0, Input::Retract(vec![handle(1), handle(5), handle(3)]));
    assert_eq!(reply, [Output::Retracted { given_back: vec![handle(5)], kept: vec![handle(1), handle(3)] }]);
    // The agent could take call 2 back before the retract: it waits again, at the front.
    assert_eq!(w.held_call(handle(2)), Some(fed[1]));
    w.call_back(fed[1]);
    let reply = step(&mut w, 0, Input::Retract(vec![handle(2)]));
    assert_eq!(reply, [Output::Retracted { given_back: vec![handle(2)], kept: vec![] }]);
    step(&mut w, 0, Input::Cancel(vec![handle(1), handle(6)]));
    assert_eq!(outputs(&mut w), [CallOutput::End(fed[0]), CallOutput::Over(over(6, Some(OutcomeClass::Cancelled)))]);
    assert!(w.is_unwanted(fed[0]));
    w.call_back(fed[0]);
    assert_eq!(outputs(&mut w), [CallOutput::Over(over(1, Some(OutcomeClass::Cancelled)))], "it was not begun");
    assert!(w.is_empty());
}

#[test]
fn what_comes_back_keeps_its_place() {
    let mut w = worker();
    let lane = w.open_lane(LARGE).expect("it fits");
    dispatch(&mut w, lane, 1, 6, 0);
    let fed = feed(&mut w, lane, 4, 1);
    for call in fed[1..].iter().rev() {
        w.call_back(*call);
    }
    assert_eq!(feed(&mut w, lane, 10, 0), [1, 2, 3, 4, 5].map(|at| CallId { batch: 0, at }));
}

#[test]
fn a_call_seen_executing_is_told_once_and_has_its_timeout() {
    let mut w = worker();
    let lane = w.open_lane(LARGE).expect("it fits");
    dispatch(&mut w, lane, 1, 2, 1_000);
    let fed = feed(&mut w, lane, 2, 1);
    assert_eq!(w.call_seen(fed[0], 100), Some(over(1, None)));
    assert_eq!((w.call_seen(fed[0], 100), w.next_deadline()), (None, Some(SECOND + 100)));
    step(&mut w, SECOND + 99, Input::Tick);
    assert_eq!(outputs(&mut w), []);
    step(&mut w, SECOND + 100, Input::Tick);
    assert_eq!((outputs(&mut w), w.next_deadline()), (vec![CallOutput::End(fed[0])], None));
    step(&mut w, SECOND + 101, Input::Cancel(vec![handle(1)]));
    let mut out = Vec::new();
    assert_eq!(w.call_over(fed[0], &mut out), Some(over(1, Some(OutcomeClass::Timeout))), "the first reason is the one");
    assert_eq!(w.call_seen(fed[1], 100), Some(over(2, None)));
    assert_eq!(w.call_over(fed[1], &mut out), Some(over(2, None)));
    assert_eq!(w.next_deadline(), None, "one that has ended has none");
}

#[test]
fn a_drain_and_a_void_leave_nothing() {
    let mut w = worker();
    let lane = w.open_lane(LARGE).expect("it fits");
    dispatch(&mut w, lane, 1, 3, 0);
    let fed = feed(&mut w, lane, 1, 1);
    step(&mut w, 0, Input::Drain { deadline: SECOND });
    let preempted = Some(OutcomeClass::Preempted);
    assert_eq!(outputs(&mut w), [2, 3].map(|n| CallOutput::Over(over(n, preempted))));
    assert_eq!(dispatch(&mut w, lane, 10, 1, 0), [CallOutput::Over(over(10, preempted))]);
    step(&mut w, SECOND, Input::Tick);
    assert_eq!(outputs(&mut w), [CallOutput::End(fed[0])]);
    let mut out = Vec::new();
    assert_eq!(w.call_over(fed[0], &mut out), Some(over(1, preempted)));
    assert_eq!(out, [Output::Drained]);

    let mut w = worker();
    let lane = w.open_lane(LARGE).expect("it fits");
    dispatch(&mut w, lane, 1, 3, 0);
    let fed = feed(&mut w, lane, 1, 1);
    step(&mut w, 0, Input::Void);
    assert!(w.is_empty() && outputs(&mut w).is_empty());
    assert_eq!(w.call_over(fed[0], &mut Vec::new()), None);
    assert_eq!(w.used(), &cpus(2_000), "its host still has to end");
    w.slot_free(lane, false, 0, &mut Vec::new());
    assert_eq!(w.used(), &Resources::default());
}

#[test]
fn a_call_waits_for_what_it_reads_and_takes_nothing_meanwhile() {
    let mut w = worker();
    let lane = w.open_lane(LARGE).expect("it fits");
    let part = |first, fetching| Part { first, count: 1, lane, fetching };
    let handles = (1..5).map(|n| handle(n).to_u64()).collect();
    let parts = vec![part(0, true), part(1, true), part(2, false), part(3, true)];
    w.dispatch_calls(CallBatch { serial: 1, handles, attempts: vec![1; 4], timeouts_ms: Vec::new(), parts });
    assert_eq!((outputs(&mut w), w.counts().queued), (vec![CallOutput::Slot(lane)], 4));
    let id = |at| CallId { batch: 0, at };
    assert_eq!(feed(&mut w, lane, 10, 1), [id(2)]);
    assert!(w.call_ready(id(1)));
    assert_eq!(feed(&mut w, lane, 10, 0), [id(1)]);
    assert_eq!(w.call_over(id(0), &mut Vec::new()), Some(over(1, None)), "what it reads is lost");
    let reply = step(&mut w, 0, Input::Retract(vec![handle(4)]));
    assert_eq!(reply, [Output::Retracted { given_back: vec![handle(4)], kept: vec![] }]);
    assert!(!w.call_ready(id(3)) && w.counts().queued == 1, "one of two that a slot holds");
}

#[test]
fn a_lane_whose_calls_wait_for_what_they_read_is_not_closed() {
    let mut w = worker();
    let lane = w.open_lane(LARGE).expect("it fits");
    let waiting = |serial, n| CallBatch {
        serial,
        handles: vec![handle(n).to_u64()],
        attempts: vec![1],
        timeouts_ms: Vec::new(),
        parts: vec![Part { first: 0, count: 1, lane, fetching: true }],
    };
    let batch = w.dispatch_calls(waiting(1, 1));
    assert!(!w.close_lane(lane), "its number would be another lane's when the objects have come");
    let call = CallId { batch, at: 0 };
    assert!(w.call_ready(call) && !w.close_lane(lane));
    assert_eq!(outputs(&mut w), [CallOutput::Slot(lane)]);
    assert_eq!(feed(&mut w, lane, 1, 1), [call]);
    assert!(w.call_over(call, &mut Vec::new()).is_some());
    w.slot_free(lane, false, 0, &mut Vec::new());
    w.dispatch_calls(waiting(2, 2));
    let reply = step(&mut w, 0, Input::Retract(vec![handle(2)]));
    assert_eq!(reply, [Output::Retracted { given_back: vec![handle(2)], kept: vec![] }]);
    w.dispatch_calls(waiting(3, 3));
    step(&mut w, 0, Input::Void);
    assert!(w.close_lane(lane), "nothing of it is left");
}

#[test]
fn a_paused_worker_starts_nothing_new() {
    let mut w = worker();
    let lane = w.open_lane(SMALL).expect("it fits");
    let mut out = Vec::new();
    w.pause(true, 0, &mut out);
    assert_eq!(dispatch(&mut w, lane, 1, 2, 0), []);
    let attempt = Attempt { serial: Serial(9), handle: handle(50), attempt: 1, shape: SMALL, timeout: 0, grace: SECOND };
    assert_eq!(step(&mut w, 0, Input::Dispatch(attempt)), []);
    w.pause(false, 0, &mut out);
    assert_eq!((out, outputs(&mut w)), (vec![], vec![CallOutput::Slot(lane); 2]), "in order: the process is younger");
}

#[test]
fn more_than_the_bound_is_given_back_at_once() {
    let mut w = worker();
    let lane = w.open_lane(LARGE).expect("it fits");
    let out = dispatch(&mut w, lane, 1, CALLS_MAX as u32 + 2, 0);
    let refused =
        out.iter().filter(|output| matches!(output, CallOutput::Over(Over { cause: Some(OutcomeClass::Preempted), .. })));
    assert_eq!(refused.count(), 2);
    w.shape(ShapeId(9), cpus(2_001));
    assert_eq!((w.open_lane(ShapeId(9)), w.open_lane(ShapeId(10))), (None, None));
}

#[derive(Clone, Debug)]
enum Do {
    Calls { lane: usize, count: u32, timeout: bool, fetching: bool },
    Process { shape: u32 },
    Fetched { at: usize, lost: bool },
    Pause(bool),
    Feed { lane: usize, max: u32 },
    Return(usize),
    Back(usize),
    GiveUp(usize),
    See(usize),
    Retract(u64),
    Cancel(u64),
    Progress(usize),
    Drain,
    Void,
    Pass(u64),
}

fn what() -> impl Strategy<Value = Do> {
    prop_oneof![
        6 => (0..3usize, 1..20u32, any::<bool>(), prop::bool::weighted(0.3))
            .prop_map(|(lane, count, timeout, fetching)| Do::Calls { lane, count, timeout, fetching }),
        6 => (0..64usize, prop::bool::weighted(0.2)).prop_map(|(at, lost)| Do::Fetched { at, lost }),
        1 => any::<bool>().prop_map(Do::Pause),
        3 => (1..4u32).prop_map(|shape| Do::Process { shape }),
        12 => (0..3usize, 1..8u32).prop_map(|(lane, max)| Do::Feed { lane, max }),
        12 => (0..64usize).prop_map(Do::Return),
        3 => (0..64usize).prop_map(Do::Back),
        6 => (0..3usize).prop_map(Do::GiveUp),
        2 => (0..64usize).prop_map(Do::See),
        3 => (0..300u64).prop_map(Do::Retract),
        3 => (0..300u64).prop_map(Do::Cancel),
        8 => (0..64usize).prop_map(Do::Progress),
        1 => Just(Do::Drain),
        1 => Just(Do::Void),
        2 => (0..SECOND * 2).prop_map(Do::Pass),
    ]
}

/// What the outside knows.
struct World {
    worker: Worker,
    lanes: [LaneId; 3],
    granted: [u32; 3],
    fresh: [u32; 3],
    /// With hosts.
    held: Vec<(usize, CallId)>,
    /// On the worker, with what they read on its way, until it is found that they are not any more.
    fetching: Vec<CallId>,
    /// By number: ends that were told, and whether one is still to come.
    ends: BTreeMap<u64, (u32, bool)>,
    processes: Vec<(Serial, bool)>,
    ended: bool,
}

impl World {
    fn take(&mut self, out: Vec<Output>) -> Result<(), TestCaseError> {
        for output in out {
            match output {
                Output::Stage(serial) => self.processes.push((serial, false)),
                Output::Retracted { given_back, .. } => {
                    for handle in given_back {
                        if let Some(end) = self.ends.get_mut(&u64::from(handle.slot)).filter(|end| end.1) {
                            *end = (end.0 + 1, false);
                        }
                    }
                }
                _ => {}
            }
        }
        for output in outputs(&mut self.worker) {
            match output {
                CallOutput::Slot(lane) => {
                    let at = self.lanes.iter().position(|one| *one == lane).expect("one of these");
                    self.granted[at] += 1;
                    self.fresh[at] += 1;
                }
                CallOutput::End(call) => {
                    prop_assert!(self.held.iter().any(|(_, held)| *held == call), "only what is held is ended")
                }
                CallOutput::Over(over) => self.over(over)?,
            }
        }
        Ok(())
    }

    fn over(&mut self, over: Over) -> Result<(), TestCaseError> {
        let end = self.ends.get_mut(&u64::from(over.handle.slot)).expect("a call of these");
        prop_assert!(end.1, "{over:?} ends twice, or was given back");
        *end = (end.0 + 1, false);
        Ok(())
    }

    /// Gives up slots of a lane that have nothing to do.
    fn give_up(&mut self, at: usize) -> Result<(), TestCaseError> {
        let held = self.held.iter().filter(|(of, _)| *of == at).count() as u32;
        while self.granted[at] > held {
            self.granted[at] -= 1;
            let fresh = self.fresh[at] > 0;
            self.fresh[at] -= u32::from(fresh);
            let mut out = Vec::new();
            self.worker.slot_free(self.lanes[at], fresh, 0, &mut out);
            // Not what is granted in answer: one time around.
            let granted = self.granted[at];
            self.take(out)?;
            if self.granted[at] > granted {
                break;
            }
        }
        Ok(())
    }

    fn give_back(&mut self, at: usize) -> Result<(), TestCaseError> {
        if !self.held.is_empty() {
            let (_, call) = self.held.remove(at % self.held.len());
            let mut out = Vec::new();
            let over = self.worker.call_over(call, &mut out);
            // Nothing for what was forgotten with its session.
            if let Some(over) = over {
                self.over(over)?;
            }
            self.take(out)?;
        }
        Ok(())
    }

    fn fetched(&mut self, at: usize, lost: bool) -> Result<(), TestCaseError> {
        if self.fetching.is_empty() {
            return Ok(());
        }
        let call = self.fetching.remove(at % self.fetching.len());
        if !lost {
            self.worker.call_ready(call);
        } else if let Some(over) = self.worker.call_over(call, &mut Vec::new()) {
            self.over(over)?;
        }
        self.take(Vec::new())
    }

    fn progress(&mut self, at: usize) -> Result<(), TestCaseError> {
        if self.processes.is_empty() {
            return Ok(());
        }
        let at = at % self.processes.len();
        let (serial, staged) = self.processes[at];
        if !staged {
            self.processes[at].1 = true;
            let out = step(&mut self.worker, 0, Input::Staged(serial));
            return self.take(out);
        }
        self.processes.remove(at);
        for input in [Input::Exited(serial, OutcomeClass::Succeeded), Input::Settled(serial, None)] {
            let out = step(&mut self.worker, 0, input);
            self.take(out)?;
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order, beside processes: never over-committed, every call ends exactly once, nothing is left.
    #[test]
    fn calls_never_over_commit_and_end_once(steps in prop::collection::vec(what(), 1..150)) {
        let capacity = cpus(2_000);
        let mut worker = Worker::new(capacity.clone());
        for (n, milli) in [500, 1_000, 2_000].into_iter().enumerate() {
            prop_assert!(worker.shape(ShapeId(n as u32 + 1), cpus(milli)));
        }
        let lanes = [1, 2, 3].map(|shape| worker.open_lane(ShapeId(shape)).expect("it fits"));
        let mut world = World {
            worker,
            lanes,
            granted: [0; 3],
            fresh: [0; 3],
            held: Vec::new(),
            fetching: Vec::new(),
            ends: BTreeMap::new(),
            processes: Vec::new(),
            ended: false,
        };
        let (mut now, mut next) = (0, 1u64);
        for one in steps {
            match one {
                Do::Calls { lane, count, timeout, fetching } => {
                    let numbers = next..next + u64::from(count);
                    next = numbers.end;
                    world.ends.extend(numbers.clone().map(|n| (n, (0, true))));
                    let batch = CallBatch {
                        serial: numbers.start,
                        handles: numbers.clone().map(|n| handle(n).to_u64()).collect(),
                        attempts: numbers.map(|_| 1).collect(),
                        timeouts_ms: vec![u64::from(timeout) * 500; count as usize],
                        parts: vec![Part { first: 0, count, lane: lanes[lane], fetching }],
                    };
                    world.worker.take_done(&mut Vec::new());
                    let before: Vec<u64> = batch.handles.clone();
                    let number = world.worker.dispatch_calls(batch);
                    // A batch of that number that is over can have left some.
                    world.fetching.retain(|call| call.batch != number);
                    if fetching {
                        world.fetching.extend((0..count).map(|at| CallId { batch: number, at }));
                    }
                    // One that was retracted before it came is gone without a word.
                    for handle in before {
                        let handle = Handle::from_u64(handle);
                        if world.worker.calls.find(handle).is_none()
                            && !world.worker.calls.out.iter().any(|out| matches!(out, CallOutput::Over(over) if over.handle == handle))
                        {
                            world.ends.insert(u64::from(handle.slot), (1, false));
                        }
                    }
                    world.take(Vec::new())?;
                }
                Do::Process { shape } => {
                    let attempt = Attempt {
                        serial: Serial(next),
                        handle: Handle { slot: 100_000 + next as u32, generation: 1 },
                        attempt: 1,
                        shape: ShapeId(shape),
                        timeout: 0,
                        grace: SECOND,
                    };
                    next += 1;
                    let out = step(&mut world.worker, now, Input::Dispatch(attempt));
                    world.take(out)?;
                }
                Do::Fetched { at, lost } => world.fetched(at, lost)?,
                Do::Pause(paused) => {
                    let mut out = Vec::new();
                    world.worker.pause(paused, now, &mut out);
                    world.take(out)?;
                }
                Do::Feed { lane, max } => {
                    let held = world.held.iter().filter(|(of, _)| *of == lane).count() as u32;
                    // A call in each slot, at least.
                    if world.granted[lane] > held || (world.granted[lane] > 0 && held > 0) {
                        let fresh = world.fresh[lane].min(1);
                        let fed = feed(&mut world.worker, lanes[lane], max, fresh);
                        if !fed.is_empty() {
                            world.fresh[lane] -= fresh;
                        }
                        world.held.extend(fed.into_iter().map(|call| (lane, call)));
                    }
                }
                Do::Return(at) => world.give_back(at)?,
                Do::Back(at) => if !world.held.is_empty() {
                    let (_, call) = world.held.remove(at % world.held.len());
                    world.worker.call_back(call);
                    let mut out = Vec::new();
                    world.worker.wake(now, &mut out);
                    world.take(out)?;
                }
                Do::GiveUp(lane) => world.give_up(lane)?,
                Do::See(at) => if !world.held.is_empty() {
                    let (_, call) = world.held[at % world.held.len()];
                    world.worker.call_seen(call, now);
                }
                Do::Retract(n) => {
                    let out = step(&mut world.worker, now, Input::Retract(vec![handle(n)]));
                    world.take(out)?;
                }
                Do::Cancel(n) => {
                    let out = step(&mut world.worker, now, Input::Cancel(vec![handle(n)]));
                    world.take(out)?;
                }
                Do::Progress(at) => world.progress(at)?,
                Do::Drain => {
                    let out = step(&mut world.worker, now, Input::Drain { deadline: now + SECOND });
                    world.take(out)?;
                }
                Do::Void => {
                    let out = step(&mut world.worker, now, Input::Void);
                    for end in world.ends.values_mut() {
                        end.1 = false;
                    }
                    // Its hosts are ended, and say nothing of calls any more.
                    world.held.clear();
                    world.fetching.clear();
                    world.take(out)?;
                }
                Do::Pass(time) => {
                    now += time;
                    let out = step(&mut world.worker, now, Input::Tick);
                    world.take(out)?;
                }
            }
            let mut used = world.worker.calls.taken();
            for (serial, _) in &world.processes {
                if let Some(row) = world.worker.rows.get(serial) {
                    used.add(&world.worker.shapes[&row.shape].request);
                }
            }
            prop_assert_eq!(world.worker.used(), &used, "the books agree with what was said");
            prop_assert!(capacity.fits(&Resources::default(), &used), "over-committed");
            let live = world.ends.values().filter(|(_, live)| *live).count();
            prop_assert_eq!(world.worker.calls.count, live, "conservation");
            prop_assert_eq!(world.worker.all_calls().len(), live);
        }
        // Everything that can go on does, until nothing is left.
        let mut out = Vec::new();
        world.worker.pause(false, now, &mut out);
        world.take(out)?;
        while !world.fetching.is_empty() {
            world.fetched(0, false)?;
        }
        for round in 0.. {
            prop_assert!(round < 20_000, "something waits for ever");
            for (lane, id) in lanes.into_iter().enumerate() {
                if world.granted[lane] > 0 {
                    let fresh = world.fresh[lane];
                    let fed = feed(&mut world.worker, id, world.granted[lane], fresh);
                    if !fed.is_empty() {
                        world.fresh[lane] = 0;
                    }
                    world.held.extend(fed.into_iter().map(|call| (lane, call)));
                }
            }
            world.ended = world.held.is_empty() && world.processes.is_empty() && world.worker.is_empty();
            while !world.held.is_empty() {
                world.give_back(0)?;
            }
            for lane in 0..3 {
                world.give_up(lane)?;
            }
            while !world.processes.is_empty() {
                world.progress(0)?;
            }
            if world.ended && world.granted == [0; 3] {
                break;
            }
        }
        prop_assert!(world.ends.values().all(|(ends, live)| !live && *ends <= 1));
        prop_assert_eq!(world.worker.used(), &Resources::default());
    }
}
