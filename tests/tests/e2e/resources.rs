//! Resources as admission control: exact counts, seen from inside the tasks.

use tests::Sandbox;

/// Most tasks between their start and their end at one time, from notes in the order they were written.
fn most_at_once(notes: &[String]) -> usize {
    let (mut now, mut most) = (0usize, 0);
    for note in notes {
        match note.split(' ').next() {
            Some("start") => now += 1,
            Some("end") => now -= 1,
            _ => {}
        }
        most = most.max(now);
    }
    most
}

#[test]
fn two_workers_with_two_gpus_each() {
    let sandbox = Sandbox::new();
    sandbox.token();
    let (_scheduler, address) = super::by_hand::scheduler(&sandbox);
    let workers: Vec<_> = (0..2)
        .map(|_| {
            let arguments = ["--scheduler", &address, "--token-file", "token", "--cpus", "16", "--memory", "4G", "--gpus", "2"];
            sandbox.start("scalable-worker", &arguments)
        })
        .collect();
    // Every task waits until four have started: fewer than four at once would never end, and more than four must not be.
    sandbox.manifest(
        r#"
targets: { local: { provider: local, max_workers: 2, threads_per_worker: 16, gpus: 2 } }
tasks:
  train:
    foreach: { n: { range: [0, 24] } }
    command: ["PROBE", meet, "HERE/notes", "{n}", "4"]
    gpus: 1
    cpus: 100m
    memory: 10M
"#,
    );
    sandbox.scalable(&["run", "--address", &address, "--token-file", "token"]).expect(0);
    let notes = sandbox.lines("notes");
    assert_eq!(notes.len(), 48);
    assert_eq!(most_at_once(&notes), 4);
    for worker in workers {
        let parent = worker.pid();
        let mine: Vec<String> = notes.iter().filter(|note| note.ends_with(&format!("parent={parent}"))).cloned().collect();
        assert!(most_at_once(&mine) <= 2, "{mine:#?}");
    }
}

#[test]
fn a_licence_for_the_whole_run() {
    let sandbox = Sandbox::new();
    sandbox.manifest(
        r#"
targets: { local: { provider: local, max_workers: 2, threads_per_worker: 8, totals: { licence: 3 } } }
tasks:
  solve:
    foreach: { n: { range: [0, 12] } }
    command: ["PROBE", meet, "HERE/notes", "{n}", "3"]
    cpus: 100m
    memory: 10M
    resources: { licence: 1 }
"#,
    );
    sandbox.scalable(&["run"]).expect(0);
    assert_eq!(most_at_once(&sandbox.lines("notes")), 3);
}

#[test]
fn max_parallel_of_a_group() {
    let sandbox = Sandbox::new();
    sandbox.manifest(
        r#"
targets: { local: { provider: local, max_workers: 2, threads_per_worker: 8 } }
tasks:
  polite:
    foreach: { n: { range: [0, 12] } }
    command: ["PROBE", meet, "HERE/notes", "{n}", "3"]
    cpus: 100m
    memory: 10M
    max_parallel: 3
"#,
    );
    sandbox.scalable(&["run"]).expect(0);
    assert_eq!(most_at_once(&sandbox.lines("notes")), 3);
}

#[test]
fn cpus_are_never_given_twice() {
    let sandbox = Sandbox::new();
    sandbox.manifest(
        r#"
targets: { local: { provider: local, max_workers: 2, threads_per_worker: 2 } }
tasks:
  one:
    foreach: { n: { range: [0, 20] } }
    command: ["PROBE", meet, "HERE/notes", "{n}", "4"]
    cpus: 1
    memory: 10M
"#,
    );
    sandbox.scalable(&["run"]).expect(0);
    assert_eq!(most_at_once(&sandbox.lines("notes")), 4);
}
