//! The examples of the Rust library as a user runs them: each brings up processes of its own. `fair`, which needs Python packages, is
//! run by `scripts/test` with the environment of the climate example.

use tests::{Running, Sandbox, example};

/// Runs an example to its end and returns its one line.
#[track_caller]
fn run(name: &str) -> String {
    let sandbox = Sandbox::new();
    let finished = Running::start(sandbox.command(&example(name)), &sandbox.path("."), name).wait().calm().expect(0);
    sandbox.nothing_is_left();
    finished.stdout
}

#[test]
fn pi() {
    let said = run("pi");
    assert!(said.starts_with("π is about 3.14") && said.ends_with("(64 tasks, 64000000 darts)\n"), "{said}");
}

#[test]
fn matrix() {
    assert_eq!(run("matrix"), "512 × 512 in 16 blocks: 96 tasks, largest difference 0.0e0\n");
}

#[test]
fn sweep() {
    let said = run("sweep");
    assert!(said.starts_with("best of ") && said.ends_with(" evaluations: f(1.5000) = -2.2500\n"), "{said}");
}
