//! Pools on a real cluster: each scales with its own work, between its bounds, and no worker that executes is ever taken away.

use std::collections::{BTreeMap, BTreeSet};

use nix::sys::signal::Signal;
use tests::{Finished, Ground, LONG, Running, until_within};

/// As short as windows can be, so that a test sees many of them.
const QUICK: &str = "adaptive: { minimum: 1, maximum: 3, target_duration: 1s, expected_duration: 1s, expected_start: 1s, scale_down_delay: 1s, \
                     idle_timeout: 1s, scale_up_interval: 1s }\ndrain_timeout: 5s";

/// Pool `long` has one task that executes all the time, pool `short` gets bursts of three and nothing between them: it grows to its maximum
/// and goes back to its minimum, four events a burst, while the busy worker of the other stays what it is. Twenty events; 200 with `--long`.
#[test]
fn two_pools() {
    let Some(ground) = Ground::new("pools") else { return };
    let bursts = if tests::long() { 50 } else { 5 };
    bursts_beside_a_long_task(&ground, |done| done < bursts);
}

/// Gives bursts to one pool while `more`, which is told how many there were, wants more.
pub fn bursts_beside_a_long_task(ground: &Ground, mut more: impl FnMut(usize) -> bool) {
    ground.manifest(QUICK, "components: { long: {}, short: {} }\n");
    let run = ground.run(&[]);
    let connection = ground.connection(&run);
    let watch = ground.watch_pods("{.metadata.labels.scalable\\.io/component} {.status.phase}");
    let submit = |component: &str, gate: &str| {
        let script = format!("touch $HOME/at-{gate}; until [ -e $HOME/{gate} ]; do sleep 0.1; done");
        let arguments =
            ["submit", "--connection", &connection, "--component", component, "--cpus", "0.2", "--", "/bin/sh", "-c", &script];
        ground.sandbox.start("scalable", &arguments)
    };
    let of = |component: &str| {
        let pods = ground.pods(&format!("scalable.io/component={component}"));
        let running =
            pods.iter().filter(|pod| pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null());
        running.filter_map(|pod| pod["metadata"]["name"].as_str()).map(str::to_owned).collect::<BTreeSet<String>>()
    };
    let long = submit("long", "end");
    let busy = until_within(LONG, "the long task's pod", || Some(of("long")).filter(|pods| pods.len() == 1));

    let mut bursts = 0;
    while more(bursts) {
        let gate = format!("gate-{bursts}");
        bursts += 1;
        let tasks: Vec<Running> = (0..3).map(|_| submit("short", &gate)).collect();
        let grown = until_within(LONG, "the maximum of pool short, each with a task", || {
            let pods = of("short");
            let all = pods.len() == 3 && pods.iter().all(|pod| ground.exec(pod, &format!("test -e $HOME/at-{gate}")));
            all.then_some(pods)
        });
        for pod in &grown {
            assert!(ground.exec(pod, &format!("touch $HOME/{gate}")), "{pod}");
        }
        for task in tasks {
            succeeded(task);
        }
        until_within(LONG, "the minimum of pool short", || (of("short").len() == 1).then_some(()));
    }

    assert_eq!(of("long"), busy, "the busy worker is the one of the beginning");
    assert!(ground.exec(busy.first().unwrap(), "touch $HOME/end"));
    succeeded(long);
    run.signal(Signal::SIGINT);
    run.wait_within(LONG).calm().expect(0);
    ground.nothing_is_left();

    // Every change of every pod, as the API told it: the bounds held at all times. A pod that is being deleted counts for nobody.
    let (mut alive, mut created, mut events) = (BTreeMap::<String, BTreeSet<String>>::new(), BTreeSet::new(), 0);
    let history = watch.stdout();
    for line in history.lines() {
        let [kind, name, rest @ ..] = &line.split_whitespace().collect::<Vec<_>>()[..] else { continue };
        let [.., component, phase] = rest else { continue };
        let pods = alive.entry((*component).to_owned()).or_default();
        let there = *kind != "DELETED" && rest.len() == 2 && matches!(*phase, "Pending" | "Running");
        assert!(*kind != "ADDED" || created.insert((*name).to_owned()), "{name} was created twice\n{history}");
        let changed = if there { pods.insert((*name).to_owned()) } else { pods.remove(*name) };
        events += usize::from(changed && *component == "short");
        assert!(pods.len() <= 3, "more than the maximum of {component}: {pods:?} at {line}\n{history}");
    }
    assert!(events >= 4 * bursts, "{events} scaling events of pool short in {bursts} bursts:\n{history}");
}

#[track_caller]
fn succeeded(task: Running) -> Finished {
    task.wait_within(LONG).calm().expect(0)
}
