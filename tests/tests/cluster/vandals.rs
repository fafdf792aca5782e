//! A user who deletes what a run needs.

use tests::{Ground, LONG, until_within};

use crate::lifecycle::{GATED, running};

/// Worker pods that somebody deletes are replaced; their tasks are executed again and none of their attempts is charged.
#[test]
fn the_workers_are_deleted() {
    let Some(ground) = Ground::new("deleted") else { return };
    // A pod that is deleted may finish what it executes: here it is not given the time.
    ground.manifest("drain_timeout: 1s", GATED);
    let run = ground.run(&[]);
    until_within(LONG, "two tasks that run", || (running(&ground) == 2).then_some(()));
    let before = ground.workers();
    ground.kubectl(&["delete", "pods", "-l", "scalable.io/role=worker", "--wait=false"]);
    until_within(LONG, "both tasks on other pods", || {
        let others = ground.workers().iter().all(|worker| !before.contains(worker));
        (others && running(&ground) == 2).then_some(())
    });
    ground.open_gate("gate", run).expect(0);
    ground.nothing_is_left();
    assert_eq!(ground.last_run().states(), ["work[0] succeeded", "work[1] succeeded"]);
}
