//! Cases and random sequences for the worker machine.

use super::*;
use crate::ids::SECOND;
use proptest::prelude::*;

const SMALL: ShapeId = ShapeId(1);
const LARGE: ShapeId = ShapeId(2);

fn cpus(milli: u64) -> Resources {
    Resources { milli_cpus: milli, ..Resources::default() }
}

fn handle(n: u32) -> Handle {
    Handle { slot: n, generation: 1 }
}

fn attempt(n: u64, shape: ShapeId) -> Attempt {
    Attempt { serial: Serial(n), handle: handle(n as u32), attempt: 1, shape, timeout: 0, grace: 10 * SECOND }
}

/// A worker of two cpus with shapes of one and of two.
fn worker() -> Worker {
    let mut worker = Worker::new(cpus(2_000));
    assert!(worker.shape(SMALL, cpus(1_000)));
    assert!(worker.shape(LARGE, cpus(2_000)));
    worker
}

fn step(worker: &mut Worker, now: Micros, input: Input) -> Vec<Output> {
    let mut out = Vec::new();
    worker.step(now, input, &mut out);
    out
}

/// Dispatches and says `Staged`, so that it executes where it fits.
fn execute(worker: &mut Worker, attempt: Attempt) {
    let serial = attempt.serial;
    step(worker, 0, Input::Dispatch(attempt));
    step(worker, 0, Input::Staged(serial));
}

#[test]
fn one_attempt_from_dispatch_to_report() {
    let mut w = worker();
    let s = Serial(1);
    assert_eq!(step(&mut w, 0, Input::Dispatch(attempt(1, SMALL))), [Output::Stage(s)]);
    assert_eq!(step(&mut w, 0, Input::Staged(s)), [Output::Started(s), Output::Spawn(s)]);
    assert_eq!(step(&mut w, 5, Input::Exited(s, OutcomeClass::Succeeded)), [Output::Publish(s)]);
    assert_ne!(w.used(), &Resources::default(), "resources are its own until its end is reported");
    assert_eq!(step(&mut w, 6, Input::Settled(s, None)), [Output::Finished(s, OutcomeClass::Succeeded)]);
    assert_eq!(w.used(), &Resources::default());
    assert!(w.is_empty());
}

#[test]
fn a_missing_output_replaces_success() {
    let mut w = worker();
    execute(&mut w, attempt(1, SMALL));
    step(&mut w, 1, Input::Exited(Serial(1), OutcomeClass::Succeeded));
    let out = step(&mut w, 1, Input::Settled(Serial(1), Some(OutcomeClass::MissingOutput)));
    assert_eq!(out, [Output::Finished(Serial(1), OutcomeClass::MissingOutput)]);
}

#[test]
fn the_first_that_fits_starts_in_dispatch_order() {
    let mut w = worker();
    execute(&mut w, attempt(1, SMALL));
    assert_eq!(step(&mut w, 0, Input::Dispatch(attempt(2, LARGE))), []);
    assert_eq!(step(&mut w, 0, Input::Dispatch(attempt(3, SMALL))), [Output::Stage(Serial(3))]);
    assert_eq!(step(&mut w, 0, Input::Dispatch(attempt(4, SMALL))), []);
    step(&mut w, 0, Input::Staged(Serial(3)));
    assert_eq!(step(&mut w, 1, Input::Exited(Serial(1), OutcomeClass::Succeeded)), [Output::Publish(Serial(1))]);
    let out = step(&mut w, 1, Input::Settled(Serial(1), None));
    assert_eq!(out, [Output::Finished(Serial(1), OutcomeClass::Succeeded), Output::Stage(Serial(4))]);
}

#[test]
fn a_large_attempt_is_overtaken_a_bounded_number_of_times() {
    let mut w = worker();
    execute(&mut w, attempt(1, SMALL));
    step(&mut w, 0, Input::Dispatch(attempt(2, LARGE)));
    let mut overtaken = 0;
    let mut last = 1;
    for n in 3.. {
        if !step(&mut w, 0, Input::Dispatch(attempt(n, SMALL))).contains(&Output::Stage(Serial(n))) {
            break;
        }
        overtaken += 1;
        step(&mut w, 0, Input::Staged(Serial(n)));
        step(&mut w, 0, Input::Exited(Serial(last), OutcomeClass::Succeeded));
        step(&mut w, 0, Input::Settled(Serial(last), None));
        last = n;
    }
    assert_eq!(overtaken, OVERTAKEN_MAX);
    step(&mut w, 0, Input::Exited(Serial(last), OutcomeClass::Succeeded));
    let out = step(&mut w, 0, Input::Settled(Serial(last), None));
    assert!(out.contains(&Output::Stage(Serial(2))), "{out:?}");
}

#[test]
fn what_can_never_fit_or_was_never_announced_is_said_at_once() {
    let mut w = worker();
    w.shape(ShapeId(3), cpus(2_001));
    let refused = |n| [Output::Finished(Serial(n), OutcomeClass::InfraStart)];
    assert_eq!(step(&mut w, 0, Input::Dispatch(attempt(1, ShapeId(3)))), refused(1));
    assert_eq!(step(&mut w, 0, Input::Dispatch(attempt(2, ShapeId(99)))), refused(2));
}

#[test]
fn retract_gives_back_only_what_has_not_started() {
    let mut w = worker();
    execute(&mut w, attempt(1, LARGE));
    step(&mut w, 0, Input::Dispatch(attempt(2, SMALL)));
    let out = step(&mut w, 0, Input::Retract(vec![handle(1), handle(2)]));
    let reply = Output::Retracted { given_back: vec![handle(2)], kept: vec![handle(1)] };
    assert_eq!(out, [Output::Forget(Serial(2)), reply]);
    step(&mut w, 1, Input::Exited(Serial(1), OutcomeClass::Succeeded));
    step(&mut w, 1, Input::Settled(Serial(1), None));
    let out = step(&mut w, 2, Input::Retract(vec![handle(1), handle(2)]));
    assert_eq!(out, [Output::Retracted { given_back: vec![], kept: vec![handle(1), handle(2)] }], "both have ended");
}

#[test]
fn a_retract_or_cancel_that_overtakes_its_dispatch_is_kept_for_it() {
    let mut w = worker();
    let out = step(&mut w, 0, Input::Retract(vec![handle(1)]));
    assert_eq!(out, [Output::Retracted { given_back: vec![handle(1)], kept: vec![] }]);
    assert_eq!(step(&mut w, 0, Input::Cancel(vec![handle(2)])), []);
    assert_eq!(step(&mut w, 0, Input::Dispatch(attempt(1, SMALL))), [Output::Forget(Serial(1))]);
    let out = step(&mut w, 0, Input::Dispatch(attempt(2, SMALL)));
    assert_eq!(out, [Output::Finished(Serial(2), OutcomeClass::Cancelled)]);
    let mut next = attempt(3, SMALL);
    next.handle = Handle { slot: 1, generation: 2 };
    assert_eq!(step(&mut w, 0, Input::Dispatch(next)), [Output::Stage(Serial(3))], "the slot's next generation is another row");
}

#[test]
fn what_is_kept_for_the_unseen_is_bounded() {
    let mut w = worker();
    let all: Vec<Handle> = (0..UNSEEN_MAX as u32 + 5).map(handle).collect();
    let out = step(&mut w, 0, Input::Retract(all));
    let [Output::Retracted { given_back, kept }] = &out[..] else { panic!("{out:?}") };
    assert_eq!((given_back.len(), kept.len()), (UNSEEN_MAX, 5));
}

#[test]
fn cancel_asks_then_kills() {
    let mut w = worker();
    execute(&mut w, attempt(1, SMALL));
    assert_eq!(step(&mut w, SECOND, Input::Cancel(vec![handle(1)])), [Output::Terminate(Serial(1))]);
    assert_eq!(step(&mut w, 2 * SECOND, Input::Cancel(vec![handle(1)])), []);
    assert_eq!(w.next_deadline(), Some(11 * SECOND), "a second cancel does not prolong the grace");
    assert_eq!(step(&mut w, 11 * SECOND, Input::Tick), [Output::Kill(Serial(1))]);
    let out = step(&mut w, 11 * SECOND, Input::Exited(Serial(1), OutcomeClass::AppError));
    assert_eq!(out, [Output::Discard(Serial(1), OutcomeClass::Cancelled)]);
    let out = step(&mut w, 11 * SECOND, Input::Settled(Serial(1), None));
    assert_eq!(out, [Output::Finished(Serial(1), OutcomeClass::Cancelled)]);
}

#[test]
fn a_timeout_is_reported_as_one_even_when_a_cancel_follows() {
    let mut w = worker();
    let mut a = attempt(1, SMALL);
    a.timeout = 5 * SECOND;
    execute(&mut w, a);
    assert_eq!(w.next_deadline(), Some(5 * SECOND));
    assert_eq!(step(&mut w, 5 * SECOND - 1, Input::Tick), []);
    assert_eq!(step(&mut w, 5 * SECOND, Input::Tick), [Output::Terminate(Serial(1))]);
    step(&mut w, 6 * SECOND, Input::Cancel(vec![handle(1)]));
    let out = step(&mut w, 7 * SECOND, Input::Exited(Serial(1), OutcomeClass::Succeeded));
    assert_eq!(out, [Output::Discard(Serial(1), OutcomeClass::Timeout)], "exit code 0 after SIGTERM is no success");
}

#[test]
fn over_memory_kills_and_is_reported_as_oom() {
    let mut w = worker();
    execute(&mut w, attempt(1, SMALL));
    assert_eq!(step(&mut w, 1, Input::OverMemory(Serial(1))), [Output::Kill(Serial(1))]);
    assert_eq!(step(&mut w, 1, Input::OverMemory(Serial(1))), []);
    let out = step(&mut w, 2, Input::Exited(Serial(1), OutcomeClass::AppError));
    assert_eq!(out, [Output::Discard(Serial(1), OutcomeClass::Oom)]);
}

#[test]
fn ten_drains_and_what_runs_still_finishes() {
    let mut w = worker();
    execute(&mut w, attempt(1, LARGE));
    step(&mut w, 0, Input::Dispatch(attempt(2, SMALL)));
    for n in 0..10 {
        let out = step(&mut w, n, Input::Drain { deadline: 30 * SECOND + n });
        let expected: &[Output] = if n == 0 { &[Output::Finished(Serial(2), OutcomeClass::Preempted)] } else { &[] };
        assert_eq!(out, expected);
    }
    assert_eq!(step(&mut w, 20, Input::Dispatch(attempt(3, SMALL))), [Output::Finished(Serial(3), OutcomeClass::Preempted)]);
    assert_eq!(step(&mut w, 30, Input::Exited(Serial(1), OutcomeClass::Succeeded)), [Output::Publish(Serial(1))]);
    let out = step(&mut w, 31, Input::Settled(Serial(1), None));
    assert_eq!(out, [Output::Finished(Serial(1), OutcomeClass::Succeeded), Output::Drained]);
}

#[test]
fn the_drain_deadline_hands_back_what_still_runs() {
    let mut w = worker();
    execute(&mut w, attempt(1, SMALL));
    step(&mut w, 0, Input::Dispatch(attempt(2, SMALL)));
    step(&mut w, 1, Input::Drain { deadline: 30 * SECOND });
    assert_eq!(w.next_deadline(), Some(30 * SECOND));
    let staged = step(&mut w, 2, Input::Staged(Serial(2)));
    assert_eq!(staged, [Output::Discard(Serial(2), OutcomeClass::Preempted)], "nothing of it had run");
    step(&mut w, 2, Input::Settled(Serial(2), None));
    assert_eq!(step(&mut w, 30 * SECOND, Input::Tick), [Output::Terminate(Serial(1))]);
    step(&mut w, 31 * SECOND, Input::Exited(Serial(1), OutcomeClass::AppError));
    let out = step(&mut w, 31 * SECOND, Input::Settled(Serial(1), None));
    assert_eq!(out, [Output::Finished(Serial(1), OutcomeClass::Preempted), Output::Drained]);
}

#[test]
fn a_void_session_ends_everything_and_reports_nothing() {
    let mut w = worker();
    execute(&mut w, attempt(1, LARGE));
    step(&mut w, 0, Input::Dispatch(attempt(2, SMALL)));
    let out = step(&mut w, 1, Input::Void);
    assert_eq!(out, [Output::Kill(Serial(1)), Output::Forget(Serial(2))]);
    let mut fresh = attempt(3, LARGE);
    fresh.handle = handle(1);
    assert_eq!(step(&mut w, 2, Input::Dispatch(fresh)), [], "the old process still takes its cpus");
    let out = step(&mut w, 3, Input::Exited(Serial(1), OutcomeClass::AppError));
    assert_eq!(out, [Output::Discard(Serial(1), OutcomeClass::Cancelled)]);
    assert_eq!(step(&mut w, 3, Input::Settled(Serial(1), None)), [Output::Forget(Serial(1)), Output::Stage(Serial(3))]);
    assert_eq!(step(&mut w, 4, Input::Staged(Serial(3))), [Output::Started(Serial(3)), Output::Spawn(Serial(3))]);
}

#[derive(Clone, Debug)]
enum Do {
    Dispatch { shape: u32, timeout: bool },
    Retract(usize),
    Cancel(usize),
    Progress { at: usize, class: bool },
    OverMemory(usize),
    Drain,
    Void,
    Pass(u64),
}

fn what() -> impl Strategy<Value = Do> {
    prop_oneof![
        8 => (1..4u32, any::<bool>()).prop_map(|(shape, timeout)| Do::Dispatch { shape, timeout }),
        2 => (0..64usize).prop_map(Do::Retract),
        2 => (0..64usize).prop_map(Do::Cancel),
        16 => (0..64usize, any::<bool>()).prop_map(|(at, class)| Do::Progress { at, class }),
        1 => (0..64usize).prop_map(Do::OverMemory),
        1 => Just(Do::Drain),
        1 => Just(Do::Void),
        2 => (0..SECOND * 4).prop_map(Do::Pass),
    ]
}

/// What the outside knows of an attempt from the outputs alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Dispatched,
    Staging,
    Running,
    Settling,
    Over,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order: never over-committed, every attempt ends exactly once, nothing is left.
    #[test]
    fn never_over_committed_and_every_attempt_ends_once(steps in prop::collection::vec(what(), 1..120)) {
        let capacity = cpus(2_000);
        let requests = [cpus(500), cpus(1_000), cpus(2_000)];
        let mut w = Worker::new(capacity.clone());
        for (n, request) in requests.iter().enumerate() {
            prop_assert!(w.shape(ShapeId(n as u32 + 1), request.clone()));
        }
        let mut seen: Vec<(Seen, u32)> = Vec::new();
        let mut now = 0;
        let mut drained = 0;
        let mut all = steps;
        // At the end everything that can end is made to end.
        all.push(Do::Void);
        all.extend((0..seen.len().max(400)).map(|at| Do::Progress { at, class: false }));
        for one in all {
            let pick = |at: usize, seen: &[(Seen, u32)]| if seen.is_empty() { None } else { Some(at % seen.len()) };
            let mut out = Vec::new();
            let input = match one {
                Do::Dispatch { shape, timeout } => {
                    let n = seen.len() as u64;
                    seen.push((Seen::Dispatched, shape));
                    let timeout = if timeout { 3 * SECOND } else { 0 };
                    Some(Input::Dispatch(Attempt { timeout, grace: SECOND, ..attempt(n, ShapeId(shape)) }))
                }
                // One more than there are: an unseen handle too.
                Do::Retract(at) => Some(Input::Retract(vec![handle((at % (seen.len() + 1)) as u32)])),
                Do::Cancel(at) => Some(Input::Cancel(vec![handle((at % (seen.len() + 1)) as u32)])),
                Do::Progress { at, class } => pick(at, &seen).and_then(|at| {
                    let s = Serial(at as u64);
                    match seen[at].0 {
                        Seen::Staging if class => Some(Input::StageFailed(s, OutcomeClass::InfraStart)),
                        Seen::Staging => Some(Input::Staged(s)),
                        Seen::Running if class => Some(Input::Exited(s, OutcomeClass::AppError)),
                        Seen::Running => Some(Input::Exited(s, OutcomeClass::Succeeded)),
                        Seen::Settling => Some(Input::Settled(s, None)),
                        Seen::Dispatched | Seen::Over => None,
                    }
                }),
                Do::OverMemory(at) => pick(at, &seen).map(|at| Input::OverMemory(Serial(at as u64))),
                Do::Drain => Some(Input::Drain { deadline: now + 5 * SECOND }),
                Do::Void => Some(Input::Void),
                Do::Pass(time) => {
                    now += time;
                    Some(Input::Tick)
                }
            };
            let Some(input) = input else { continue };
            w.step(now, input, &mut out);
            for output in out {
                let (serial, to) = match output {
                    Output::Stage(s) => (s, Seen::Staging),
                    Output::Spawn(s) => (s, Seen::Running),
                    Output::Publish(s) | Output::Discard(s, _) => (s, Seen::Settling),
                    Output::Finished(s, _) | Output::Forget(s) => (s, Seen::Over),
                    Output::Terminate(s) | Output::Kill(s) => {
                        prop_assert_eq!(seen[s.0 as usize].0, Seen::Running, "only a process can be signalled");
                        continue;
                    }
                    Output::Drained => {
                        drained += 1;
                        continue;
                    }
                    Output::Started(_) | Output::Retracted { .. } => continue,
                };
                let from = seen[serial.0 as usize].0;
                let legal = matches!(
                    (from, to),
                    (Seen::Dispatched, Seen::Staging | Seen::Over)
                        | (Seen::Staging, Seen::Running | Seen::Settling)
                        | (Seen::Running, Seen::Settling)
                        | (Seen::Settling, Seen::Over)
                );
                prop_assert!(legal, "{serial:?}: {from:?} -> {to:?}");
                seen[serial.0 as usize].0 = to;
            }
            let mut used = Resources::default();
            for (state, shape) in &seen {
                if matches!(state, Seen::Staging | Seen::Running | Seen::Settling) {
                    used.add(&requests[*shape as usize - 1]);
                }
            }
            prop_assert_eq!(w.used(), &used, "the books agree with what was said");
            prop_assert!(capacity.fits(&Resources::default(), &used), "over-committed");
            let live = seen.iter().filter(|(state, _)| *state != Seen::Over).count() as u32;
            let counts = w.counts();
            prop_assert_eq!(counts.queued + counts.executing + counts.settling, live, "conservation");
            prop_assert!(w.next_deadline().is_none_or(|at| at > now), "a deadline that has passed is still there");
        }
        for _ in 0..4 {
            for (at, (state, _)) in seen.clone().into_iter().enumerate() {
                let s = Serial(at as u64);
                let input = match state {
                    Seen::Staging => Input::Staged(s),
                    Seen::Running => Input::Exited(s, OutcomeClass::Succeeded),
                    Seen::Settling => Input::Settled(s, None),
                    Seen::Dispatched | Seen::Over => continue,
                };
                let mut out = Vec::new();
                w.step(now, input, &mut out);
                for output in out {
                    match output {
                        Output::Publish(s) | Output::Discard(s, _) => seen[s.0 as usize].0 = Seen::Settling,
                        Output::Finished(s, _) | Output::Forget(s) => seen[s.0 as usize].0 = Seen::Over,
                        Output::Drained => drained += 1,
                        other => prop_assert!(false, "nothing starts after a void: {:?}", other),
                    }
                }
            }
        }
        prop_assert!(w.is_empty());
        prop_assert!(drained <= 1);
    }
}
