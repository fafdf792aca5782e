//! Results of a program's functions that lie on a worker alone, and that worker killed.

use nix::sys::signal::Signal;
use tests::{Running, Sandbox, binary, until};

use crate::by_hand;

/// How many there are.
const OBJECTS: usize = 100;

/// A scheduler, a worker of one cpu, and a program that has had everything made there and wants it read by tasks of two cpus.
struct Scene {
    sandbox: Sandbox,
    scheduler: Running,
    address: String,
    driver: Running,
}

impl Scene {
    /// It, and the worker that has everything.
    fn made() -> (Scene, Running) {
        let sandbox = Sandbox::new().short_leases();
        sandbox.token();
        let (scheduler, address) = by_hand::scheduler(&sandbox);
        let maker = worker(&sandbox, &address, "1");
        let mut driver = sandbox.command(&binary("functions"));
        driver
            .args(["lose", &sandbox.path(".").display().to_string(), &OBJECTS.to_string(), "300000"])
            .env("SCALABLE_ADDRESS", &address)
            .env("SCALABLE_TOKEN_FILE", sandbox.path("token"));
        let driver = Running::start(driver, &sandbox.path("."), "driver");
        until("everything to be made", || driver.stdout().lines().any(|line| line == "made").then_some(()));
        let mut made = numbers(&sandbox, "made");
        made.sort_unstable();
        assert_eq!(made, (0..OBJECTS).collect::<Vec<_>>(), "each once");
        (Scene { sandbox, scheduler, address, driver }, maker)
    }

    /// Waits for the program's end and returns how often each object was made.
    fn ends_right(self, reader: Running) -> Vec<usize> {
        let finished = self.driver.wait().calm().expect(0);
        assert_eq!(finished.stdout.lines().collect::<Vec<_>>(), ["made", "true", "true"]);
        let mut times = vec![0; OBJECTS];
        for n in numbers(&self.sandbox, "made") {
            times[n] += 1;
        }
        for running in [reader, self.scheduler] {
            running.signal(Signal::SIGTERM);
            running.wait().calm();
        }
        self.sandbox.nothing_is_left();
        times
    }
}

fn worker(sandbox: &Sandbox, address: &str, cpus: &str) -> Running {
    sandbox.start("scalable-worker", &["--scheduler", address, "--token-file", "token", "--cpus", cpus, "--memory", "1G"])
}

/// The numbers that tasks have noted in a file.
fn numbers(sandbox: &Sandbox, file: &str) -> Vec<usize> {
    sandbox.lines(file).iter().map(|line| line.parse().unwrap()).collect()
}

#[track_caller]
fn killed(worker: Running) {
    worker.signal(Signal::SIGKILL);
    assert_eq!(worker.wait().code, 128 + 9);
}

#[test]
fn objects_that_nobody_has_read_are_each_made_once_more() {
    let (scene, maker) = Scene::made();
    killed(maker);
    for gate in ["go on", "read now"] {
        scene.sandbox.write(gate, "");
    }
    let reader = worker(&scene.sandbox, &scene.address, "2");
    assert_eq!(scene.ends_right(reader), [2; OBJECTS]);
}

#[test]
fn objects_lost_while_they_are_being_read_are_made_at_most_once_more() {
    let (scene, maker) = Scene::made();
    let reader = worker(&scene.sandbox, &scene.address, "2");
    scene.sandbox.write("read now", "");
    until("ten of them to be read", || (numbers(&scene.sandbox, "read").len() >= 10).then_some(()));
    killed(maker);
    scene.sandbox.write("go on", "");
    let times = scene.ends_right(reader);
    assert!(times.iter().all(|times| (1..=2).contains(times)), "{times:?}");
    assert!(times.contains(&2), "none was lost");
}
