//! Why there are not more workers, and why a task failed: in Kubernetes' own words, soon after Kubernetes has said so itself.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{Ground, LONG, Run, Running, until_within};

use crate::lifecycle::{GATED, running};

/// Longest time from Kubernetes' knowing a reason to the user's seeing it.
const SOON: Duration = Duration::from_secs(10);

/// Tasks that take a whole worker each.
const WHOLE: &str = "tasks:\n  work: { foreach: { n: { range: [0, 2] } }, command: [/bin/sh, -c, 'until [ -e $HOME/gate ]; do sleep 0.1; done'] }\n";

/// Waits until `knows` is true of what Kubernetes says, and returns a time at which that was not yet so: what is counted from there is
/// counted too long rather than too short.
#[track_caller]
fn known(what: &str, mut knows: impl FnMut() -> bool) -> Instant {
    let mut before = Instant::now();
    until_within(LONG, &format!("Kubernetes to know: {what}"), || {
        let asked = Instant::now();
        if knows() {
            return Some(());
        }
        before = asked;
        None
    });
    before
}

/// What `scalable status -o json` says of the pools.
fn pool_notes(ground: &Ground) -> String {
    let status = ground.sandbox.start("scalable", &["status", "-o", "json"]).wait_within(LONG);
    let document: Value = serde_json::from_str(&status.stdout).unwrap_or_default();
    let notes = document["pools"].as_array().into_iter().flatten().filter_map(|pool| pool["note"].as_str());
    notes.collect::<Vec<_>>().join("\n")
}

/// Every place where a user looks has the words, soon after `known`. They are looked at one after the other, so that the last of them has
/// the time that the others took counted too.
#[track_caller]
fn told_everywhere(ground: &Ground, run: &Running, known: Instant, words: &[&str]) {
    let events = [
        "get",
        "events",
        "--field-selector",
        "involvedObject.kind=Job",
        "-o",
        "jsonpath={range .items[*]}{.reason} {.message}{'\\n'}{end}",
    ];
    let explain = || ground.sandbox.start("scalable", &["explain", "pool/default"]).wait_within(LONG).stdout;
    let places: [(&str, &dyn Fn() -> String); 4] = [
        ("the status line", &|| run.stderr()),
        ("status -o json", &|| pool_notes(ground)),
        ("explain", &explain),
        ("an event of the Job", &|| ground.kubectl(&events)),
    ];
    let times = places.map(|(place, look)| {
        until_within(LONG, &format!("{words:?} in {place}"), || {
            let text = look();
            words.iter().all(|word| text.contains(word)).then_some(())
        });
        (place, known.elapsed())
    });
    println!("{words:?}, after Kubernetes knew: {times:.1?}");
    assert!(times.iter().all(|(_, time)| *time <= SOON), "{words:?} came too late: {times:?}");
}

/// What Kubernetes says of the worker pods: reasons and messages of their conditions and containers.
fn pods_say(ground: &Ground) -> String {
    let of_condition = "{range .status.conditions[*]}{.reason} {.message}{'\\n'}{end}";
    let of_container = "{range .status.containerStatuses[*]}{.state.waiting.reason} {.state.waiting.message}{'\\n'}{end}";
    let path = format!("jsonpath={{range .items[*]}}{of_condition}{of_container}{{end}}");
    ground.kubectl(&["get", "pods", "-l", "scalable.io/role=worker", "-o", &path])
}

#[track_caller]
fn interrupted(ground: &Ground, run: Running) {
    run.signal(Signal::SIGINT);
    run.wait_within(LONG).calm().expect(130);
    ground.nothing_is_left();
}

#[test]
fn no_node_has_room() {
    let Some(ground) = Ground::new("unschedulable") else { return };
    // More than any node of any test cluster has.
    ground.manifest("resources: { requests: { cpu: 900, memory: 64Mi }, limits: { memory: 128Mi } }", WHOLE);
    let run = ground.run(&[]);
    let known = known("Unschedulable", || pods_say(&ground).contains("Insufficient cpu"));
    told_everywhere(&ground, &run, known, &["nodes are available", "Insufficient cpu"]);
    interrupted(&ground, run);
}

#[test]
fn an_image_that_does_not_exist() {
    let Some(ground) = Ground::new("image") else { return };
    ground.manifest("image: localhost/nothing:1", WHOLE);
    let run = ground.run(&[]);
    let known = known("ErrImagePull", || pods_say(&ground).contains("ErrImagePull"));
    told_everywhere(&ground, &run, known, &["ErrImagePull", "localhost/nothing:1"]);
    interrupted(&ground, run);
}

/// A quota that is used up stops the growth, and not what is there.
#[test]
fn a_quota_that_is_used_up() {
    let Some(ground) = Ground::new("quota") else { return };
    ground.kubectl(&["create", "quota", "few", "--hard", "pods=2"]);
    ground.manifest("adaptive: { minimum: 2, maximum: 2 }", WHOLE);
    let run = ground.run(&[]);
    // The scheduler and one worker: the other is refused from then on.
    let known =
        known("the quota is used up", || ground.kubectl(&["get", "quota", "few", "-o", "jsonpath={.status.used.pods}"]) == "2");
    told_everywhere(&ground, &run, known, &["exceeded quota: few", "limited: pods=2"]);
    ground.open_gate("gate", run).expect(0);
    ground.nothing_is_left();
}

/// One worker with room for all of a test's tasks.
const ROOMY: &str =
    "resources: { requests: { cpu: 400m, memory: 64Mi }, limits: { memory: 128Mi } }\nadaptive: { minimum: 1, maximum: 1 }";

/// A task that takes memory slowly is ended by the agent before the kernel ends its whole container: its neighbour does not notice.
#[test]
fn memory_that_grows() {
    let Some(ground) = Ground::new("hog") else { return };
    ground.manifest(ROOMY, &format!("{GATED}{}", hog("memory: 24Mi")));
    let run = ground.run(&[]);
    until_within(LONG, "the hog's end", || run.stderr().contains("hog[0]").then_some(()));
    let explained = ground.sandbox.scalable(&["explain", "hog[0]"]).expect(0);
    println!("{}", explained.stdout);
    assert!(explained.stdout.contains("oom"), "{}", explained.stdout);
    let finished = ground.open_gate("gate", run);
    finished.expect(1).says(&["hog", "oom"]);
    let run = ground.last_run();
    neighbours_did_not_notice(&run);
    ground.nothing_is_left();
}

/// A task that takes memory faster than anybody looks brings its whole container down, agent included: it is to blame, and those beside it
/// are executed again without a charge.
#[test]
fn memory_that_bursts() {
    let Some(ground) = Ground::new("burst") else { return };
    let burst = "  burst: { cpus: 0.1, memory: 24Mi, command: [/bin/sh, -c, 'until [ -e $HOME/burst ]; do sleep 0.1; done; exec tail /dev/zero'] }\n";
    ground.manifest(ROOMY, &format!("{GATED}{burst}"));
    let run = ground.run(&[]);
    let watch = ground.watch_pods("{.status.containerStatuses[*].state.terminated.reason}");
    until_within(LONG, "three tasks that run", || (running(&ground) == 3).then_some(()));
    let worker = until_within(LONG, "the worker's pod", || ground.workers().pop());
    assert!(ground.exec(&worker, "touch $HOME/burst"));
    let mut by_the_kernel = false;
    until_within(LONG, "the end of the burst", || {
        by_the_kernel |= watch.stdout().contains("OOMKilled");
        run.stderr().contains("burst[0]").then_some(())
    });
    println!("ended by the kernel: {by_the_kernel}");
    ground.open_gate("gate", run).expect(1).says(&["burst", "oom"]);
    let run = ground.last_run();
    assert_eq!(run.states(), ["burst[0] failed", "work[0] succeeded", "work[1] succeeded"]);
    only_oom_is_charged(&run, "burst[0]");
    ground.nothing_is_left();
}

/// A task that says nothing of memory and takes all there is costs its neighbours nothing.
#[test]
fn memory_that_nobody_asked_for() {
    let Some(ground) = Ground::new("unasked") else { return };
    ground.manifest(ROOMY, &format!("{GATED}{}", hog("")));
    let run = ground.run(&[]);
    until_within(LONG, "the hog's end", || run.stderr().contains("hog[0]").then_some(()));
    ground.open_gate("gate", run).expect(1).says(&["hog", "oom"]);
    neighbours_did_not_notice(&ground.last_run());
    ground.nothing_is_left();
}

/// Containers that are smaller than what tasks may ask for of them.
const TIGHT: &str = "resources: { requests: { cpu: 400m, memory: 64Mi }, limits: { memory: 192Mi } }\nadaptive: { minimum: 1, maximum: 1 }\n\
                     pod_patch: { spec: { containers: [{ name: worker, resources: { limits: { memory: 128Mi } } }] } }";

/// Nobody is above his request and the container is full: the agent ends who takes most before the kernel ends everything.
#[test]
fn memory_that_fills_the_container() {
    let Some(ground) = Ground::new("full") else { return };
    let work = GATED.replace("cpus: 0.1", "cpus: 0.1\n    memory: 8Mi");
    ground.manifest(TIGHT, &format!("{work}{}", hog("memory: 120Mi")));
    let run = ground.run(&[]);
    until_within(LONG, "the hog's end", || run.stderr().contains("hog[0]").then_some(()));
    ground.open_gate("gate", run).expect(1).says(&["hog", "oom"]);
    let run = ground.last_run();
    neighbours_did_not_notice(&run);
    let first = run.lines("failures.jsonl").remove(0);
    let message = first["error_message"].as_str().unwrap_or_default();
    assert!(message.contains("of its 128.0 MiB in use") && message.contains("had asked for 120.0 MiB"), "{first:#}");
    ground.nothing_is_left();
}

/// The kernel ends a whole container, agent included: the task that took the memory is charged, in the end, and no other. In version 1 of
/// cgroups the kernel ends one process, which is the agent here because the task makes it the likeliest and takes little with each of its own.
/// Each takes what it takes in one go: near the limit the agent looks fifty times a second, and would end the task before the kernel ends it.
#[test]
fn memory_that_ends_the_whole_worker() {
    let Some(ground) = Ground::new("whole") else { return };
    let tasks = r#"
tasks:
  work:
    cpus: 0.1
    memory: 8Mi
    foreach: { n: { range: [0, 2] } }
    command: [/bin/sh, -c, 'sleep 6; echo "$0" > "$1"', "{n}", "{outputs.done}"]
    outputs: { done: file }
  all:
    cpus: 0.1
    memory: 120Mi
    on_oom: { factor: 1.5, max: 120Mi }
    command:
      - /bin/sh
      - -c
      - |
        sleep 2
        cat /proc/1/oom_score_adj > /proc/self/oom_score_adj
        echo 1000 > /proc/1/oom_score_adj
        for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
          awk 'BEGIN {{ a = sprintf("%6553600s", ""); system("sleep 1000") }}' &
        done
        wait
"#;
    ground.manifest(TIGHT, tasks);
    let run = ground.run(&[]);
    let watch = ground.watch_pods("{.status.containerStatuses[*].state.terminated.reason}");
    let known = known("OOMKilled", || watch.stdout().contains("OOMKilled"));
    // At the first such end, although nothing has failed for good yet.
    told_everywhere(&ground, &run, known, &["OOMKilled"]);
    until_within(LONG, "the status line to say who took the memory", || {
        let said = run.stderr();
        (said.contains("all[0]") && said.contains("oom")).then_some(())
    });
    // Where the first such end does not say whose it was it is the second that does.
    println!("oom in the status line {:.1?} after Kubernetes knew of the first", known.elapsed());
    run.wait_within(LONG).expect(1).says(&["all", "oom"]);
    let run = ground.last_run();
    assert_eq!(run.states(), ["all[0] failed", "work[0] succeeded", "work[1] succeeded"]);
    only_oom_is_charged(&run, "all[0]");
    ground.nothing_is_left();
}

/// A task that takes ten MiB a second for ever.
fn hog(memory: &str) -> String {
    format!(
        "  hog:\n    cpus: 0.1\n    {memory}\n    command: [awk, 'BEGIN {{{{ while (1) {{{{ for (n = 0; n < 16; n++) a[i++] = sprintf(\"%65536s\", \"\"); \
         system(\"sleep 0.1\") }}}} }}}}']\n"
    )
}

/// The hog failed of memory in every attempt, and those beside it were executed once.
#[track_caller]
fn neighbours_did_not_notice(run: &Run) {
    assert_eq!(run.states(), ["hog[0] failed", "work[0] succeeded", "work[1] succeeded"]);
    only_oom_is_charged(run, "hog[0]");
    for work in ["work[0]", "work[1]"] {
        assert_eq!(run.task(work)["attempt"], 1, "{work} was executed once");
    }
}

/// Every attempt that failed in the run is this task's, and ended as `oom`.
#[track_caller]
fn only_oom_is_charged(run: &Run, task: &str) {
    let failures = run.lines("failures.jsonl");
    println!("{failures:#?}");
    assert!(!failures.is_empty());
    for failure in failures {
        assert_eq!((failure["task_id"].as_str(), failure["error_type"].as_str()), (Some(task), Some("oom")), "{failure:#}");
    }
}

/// The scheduler's volume has no room for what the tasks write: copying stops before the kubelet evicts the pod, the run says so and goes on.
#[test]
fn the_schedulers_storage_is_full() {
    let Some(ground) = Ground::new("storage") else { return };
    ground.manifest(
        "scheduler_storage: 32Mi\nadaptive: { minimum: 1, maximum: 1 }",
        "tasks:\n  large:\n    cpus: 0.1\n    max_parallel: 1\n    foreach: { n: { range: [0, 4] } }\n    \
         command: [/bin/sh, -c, 'head -c 12000000 /dev/urandom > \"$0\"', \"{outputs.field}\"]\n    outputs: { field: file }\n",
    );
    let run = ground.run(&[]);
    until_within(LONG, "that storage limits the run", || {
        run.stderr().contains("limited: storage: the output store has").then_some(())
    });
    until_within(LONG, "every task to be over", || run.stderr().contains("large 4/4").then_some(()));
    let explained = ground.sandbox.scalable(&["explain", "large[3]"]).expect(0).stdout;
    assert!(explained.contains("limited: storage"), "{explained}");
    let scheduler = ground.pods("scalable.io/role=scheduler");
    assert_eq!(scheduler[0]["status"]["phase"], "Running", "{scheduler:#?}");
    interrupted(&ground, run);
}
