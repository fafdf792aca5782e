//! A program's own functions on a cluster of real processes.

use std::path::Path;

use nix::sys::signal::Signal;
use tests::{Finished, Running, Sandbox, binary};

const TARGET: &str = "targets: { local: { provider: local, max_workers: 2 } }\n";

fn drive(sandbox: &Sandbox, words: &[&str]) -> Finished {
    sandbox.manifest(TARGET);
    let program = binary("functions").display().to_string();
    let mut arguments = vec!["run", "--target", "local", "--workflow", "--", &program];
    arguments.extend(words);
    let finished = sandbox.scalable(&arguments).expect(0);
    sandbox.nothing_is_left();
    finished
}

fn lines(finished: &Finished) -> Vec<&str> {
    finished.stdout.lines().collect()
}

#[test]
fn results_come_back_and_feed_others() {
    let sandbox = Sandbox::new();
    let finished = drive(&sandbox, &["results"]);
    assert_eq!(lines(&finished), ["3 5 6 75", "999000", "true"]);
}

#[test]
fn whatever_a_function_does_to_its_process_it_fails_alone() {
    let sandbox = Sandbox::new();
    let finished = drive(&sandbox, &["ends"]);
    let said = lines(&finished);
    let after = |what: &str| {
        let line = said.iter().find_map(|line| line.strip_prefix(&format!("{what}: ")));
        line.unwrap_or_else(|| panic!("nothing about {what} in {said:?}"))
    };
    assert!(after("panic").starts_with("panicked: it was asked to panic"), "{said:?}");
    for (how, words) in [("abort", "signal 6"), ("segfault", "signal 11"), ("exit", "9")] {
        assert!(after(how).starts_with("failed: ") && after(how).contains(words), "{how}: {said:?}");
    }
    assert_eq!(after("refuse"), "failed: 7 is not to my liking");
    assert!(after("after").starts_with("not run because of "), "{said:?}");
    assert_eq!(said.iter().filter(|line| **line == "neighbours: 20").count(), 4);
}

#[test]
fn a_tight_loop_ends_within_a_second_of_its_cancel() {
    let sandbox = Sandbox::new();
    let finished = drive(&sandbox, &["cancel"]);
    assert_eq!(lines(&finished), ["cancelled true", "2"]);
}

#[test]
fn large_results_go_from_worker_to_worker_and_to_the_client() {
    let sandbox = Sandbox::new();
    let finished = drive(&sandbox, &["objects", "8", "300000"]);
    assert_eq!(lines(&finished), ["true", "true"]);
}

/// Starts a program of the project in a mount namespace in which `hidden` is empty.
fn start_blind(sandbox: &Sandbox, hidden: &Path, program: &str, arguments: &[&str]) -> Running {
    let mut command = sandbox.command(Path::new("unshare"));
    if !nix::unistd::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command
        .args(["--mount", "sh", "-c", "mount -t tmpfs none \"$0\" && exec \"$@\""])
        .arg(hidden)
        .arg(binary(program))
        .args(arguments);
    Running::start(command, &sandbox.path("."), program)
}

#[test]
fn a_program_reaches_workers_that_cannot_see_it() {
    let sandbox = Sandbox::new();
    sandbox.token();
    let program = sandbox.path("program/functions");
    // Where the driver works is nowhere on the worker's side.
    let elsewhere = sandbox.path("program/elsewhere");
    std::fs::create_dir_all(&elsewhere).unwrap();
    std::fs::copy(binary("functions"), &program).unwrap();
    let hidden = sandbox.path("program");
    let scheduler = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--token-file", "token"];
    let scheduler = start_blind(&sandbox, &hidden, "scalable-scheduler", &scheduler);
    let address = scheduler.address();
    let worker = ["--scheduler", &address, "--token-file", "token", "--cpus", "2", "--memory", "1G"];
    let worker = start_blind(&sandbox, &hidden, "scalable-worker", &worker);
    let mut driver = sandbox.command(&program);
    driver
        .arg("results")
        .current_dir(elsewhere)
        .env("SCALABLE_ADDRESS", &address)
        .env("SCALABLE_TOKEN_FILE", sandbox.path("token"));
    let finished = Running::start(driver, &sandbox.path("."), "driver").wait().expect(0);
    assert_eq!(lines(&finished), ["3 5 6 75", "999000", "true"]);
    worker.signal(Signal::SIGTERM);
    worker.wait();
    scheduler.signal(Signal::SIGTERM);
    scheduler.wait();
    sandbox.nothing_is_left();
}
