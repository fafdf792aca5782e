//! What a pool's note says of the workers that it lost.

use scalable_provider::Boxed;

use super::*;

/// A platform on which nothing happens.
struct Nothing;

impl Provider for Nothing {
    fn observe(&self) -> mpsc::Receiver<Observation> {
        mpsc::channel(1).1
    }

    fn apply(&self, _: Vec<Operation>) -> Boxed<'_, Vec<(Operation, Reason)>> {
        Box::pin(async { Vec::new() })
    }

    fn shutdown(&self) -> Boxed<'_, ()> {
        Box::pin(async {})
    }
}

/// The note at `later` after a worker that was there and that somebody (not) here had asked to leave has died.
fn note_after(leaving: bool, later: Micros) -> String {
    let (seen, _seen) = mpsc::channel(8);
    let pool = Pool {
        name: "p".to_owned(),
        components: vec!["p".to_owned()],
        capacity: v1::Resources::default(),
        minimum: 0,
        maximum: 1,
        minimum_at_once: false,
    };
    let scale = Scale { pools: vec![pool], parameters: Parameters::default(), max_total: None };
    let mut driver = Driver::new(Nothing, scale, seen);
    driver.started(0, "w1".to_owned(), 1, "p", 0);
    for member in driver.members.values_mut() {
        (member.registered_at, member.leaving) = (Some(0), leaving);
    }
    let at = 600 * SECOND;
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(driver.died(at, "w1".to_owned(), "p", Cause::OutOfMemory, "OOMKilled: the memory limit is 1Gi".to_owned()));
    let snapshot = driver.snapshot(vec![Vec::new()]);
    let plan = driver.planner.plan(at + later, &snapshot).pools.remove(0);
    driver.note(at + later, 0, &plan)
}

#[test]
fn an_end_that_nobody_asked_for_is_told_for_a_minute() {
    const SAID: &str = "worker w1 is gone: OOMKilled: the memory limit is 1Gi";
    assert_eq!(note_after(false, 0), SAID);
    assert_eq!(note_after(false, 59 * SECOND), SAID);
    assert_eq!(note_after(false, 61 * SECOND), "");
    assert_eq!(note_after(true, 0), "");
}
