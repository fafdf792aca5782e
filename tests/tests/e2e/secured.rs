//! A cluster beyond loopback: TLS between all its parts, workers that get their certificates by themselves, a program and the command
//! line that know it by a connection file.

use std::net::{IpAddr, UdpSocket};

use nix::sys::signal::Signal;
use scalable_tls::{Connection, NewCluster, write_private};
use serde_json::Value;
use tests::{Running, Sandbox, binary, until};

/// An address of this machine that is not loopback; loopback where it has no other.
fn address() -> IpAddr {
    // Connecting a socket for datagrams sends nothing: it chooses the address that would be used.
    let chosen = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr()));
    chosen.map_or(IpAddr::from([127, 0, 0, 1]), |address| address.ip())
}

struct Cluster {
    new: NewCluster,
    scheduler: Running,
    said: Value,
    ip: IpAddr,
}

/// Starts a scheduler beyond loopback, whose credentials are in `scheduler`, those of workers in `workers`, admitted ones in `admitted`.
fn cluster(sandbox: &Sandbox) -> Cluster {
    let new = NewCluster::create(&NewCluster::random_id().unwrap()).unwrap();
    for (directory, files) in [("scheduler", new.scheduler_files()), ("workers", new.worker_files())] {
        std::fs::create_dir_all(sandbox.path(directory)).unwrap();
        for (name, content) in files {
            write_private(&sandbox.path(directory).join(name), &content).unwrap();
        }
    }
    let ip = address();
    let at = format!("{ip}:0");
    let mut arguments = vec!["--credentials", "scheduler", "--listen", &at, "--store", &at, "--https", &at];
    arguments.extend(["--http", "127.0.0.1:0", "--trust-loopback", "--admit", "admitted"]);
    let scheduler = sandbox.start("scalable-scheduler", &arguments);
    let said = scheduler.ready();
    Cluster { new, scheduler, said, ip }
}

impl Cluster {
    fn worker(&self, sandbox: &Sandbox, name: &str, uid: &str) -> Running {
        let peers = format!("{}:0", self.ip);
        let address = self.said["address"].as_str().unwrap();
        let mut arguments = vec!["--credentials", "workers", "--address", address, "--name", name, "--uid", uid];
        arguments.extend(["--peer-address", &peers, "--cpus", "2", "--memory", "1G"]);
        sandbox.start("scalable-worker", &arguments)
    }

    fn admit(&self, sandbox: &Sandbox, lines: &[(&str, &str)]) {
        let text: String = lines.iter().map(|(name, uid)| format!("{name} {uid} {}\n", self.ip)).collect();
        // In one step: it is read while it is written.
        let beside = sandbox.write("admitted.new", text);
        std::fs::rename(beside, sandbox.path("admitted")).unwrap();
    }

    fn connection(&self, sandbox: &Sandbox) -> Connection {
        let connection = self.new.submitter(self.said["address"].as_str().unwrap());
        connection.write(&sandbox.path("connection.json")).unwrap();
        connection
    }

    fn drive(&self, sandbox: &Sandbox, words: &[&str]) -> Vec<String> {
        self.connection(sandbox);
        let mut command = sandbox.command(&binary("functions"));
        command.args(words).env("SCALABLE_CONNECTION", sandbox.path("connection.json"));
        let finished = Running::start(command, &sandbox.path("."), "functions").wait().expect(0);
        finished.stdout.lines().map(str::to_owned).collect()
    }

    fn end(self, workers: Vec<Running>) {
        for worker in workers {
            worker.signal(Signal::SIGTERM);
            worker.wait().expect(0);
        }
        self.scheduler.signal(Signal::SIGTERM);
        self.scheduler.wait();
    }
}

#[test]
fn functions_and_objects_over_tls() {
    let sandbox = Sandbox::new();
    let cluster = cluster(&sandbox);
    cluster.admit(&sandbox, &[("w-1", "u-1"), ("w-2", "u-2")]);
    let workers = vec![cluster.worker(&sandbox, "w-1", "u-1"), cluster.worker(&sandbox, "w-2", "u-2")];
    assert_eq!(cluster.drive(&sandbox, &["results"]), ["3 5 6 75", "999000", "true"]);
    assert_eq!(cluster.drive(&sandbox, &["objects", "8", "300000"]), ["true", "true"]);
    // Nothing secret is in a log.
    for text in workers.iter().map(Running::stderr).chain([cluster.scheduler.stderr(), cluster.scheduler.stdout()]) {
        for (name, secret) in cluster.new.scheduler_files().iter().filter(|(name, _)| name.ends_with("-token")) {
            assert!(!text.contains(secret.as_str()), "{name} is in a log: {text}");
        }
    }
    cluster.end(workers);
    sandbox.nothing_is_left();
}

#[test]
fn the_command_line_runs_a_manifest_with_a_connection_file() {
    let sandbox = Sandbox::new();
    let cluster = cluster(&sandbox);
    cluster.connection(&sandbox);
    // It asks again until it is known here.
    let worker = cluster.worker(&sandbox, "w-1", "u-1");
    until("the worker to be told that it is not known yet", || worker.stderr().contains("admitted").then_some(()));
    cluster.admit(&sandbox, &[("w-1", "u-1")]);
    sandbox.manifest(
        r#"
targets: { local: { provider: local } }
tasks:
  simulate:
    foreach: { n: { range: [0, 10] } }
    command: ["PROBE", write, "{outputs.value}", "{n}"]
    outputs: { value: file }
"#,
    );
    sandbox.scalable(&["run", "--connection", "connection.json"]).expect(0);
    assert_eq!(sandbox.last_run().output("simulate/n=7/value"), "7");
    sandbox.scalable(&["status", "--connection", "connection.json"]).expect(0);
    cluster.end(vec![worker]);
    sandbox.nothing_is_left();
}

#[test]
fn a_worker_renews_its_certificate_while_its_tasks_go_on() {
    let sandbox = Sandbox::new().env("SCALABLE_CERTIFICATE_LIFETIME_MS", "6000");
    let cluster = cluster(&sandbox);
    cluster.admit(&sandbox, &[("w-1", "u-1")]);
    let worker = cluster.worker(&sandbox, "w-1", "u-1");
    let signed = || worker.stderr().matches("has signed this worker's certificate").count();
    until("the first certificate", || (signed() > 0).then_some(()));
    // Whoever it is now, nobody else gets in by its name.
    cluster.admit(&sandbox, &[]);
    until("two renewals, by which the first has expired", || (signed() >= 3).then_some(()));
    assert_eq!(worker.stderr().matches("registered").count(), 1, "its session went on: {}", worker.stderr());
    assert!(!worker.stderr().contains("connection to the scheduler closed"), "{}", worker.stderr());
    assert_eq!(
        cluster.drive(&sandbox, &["results"]),
        ["3 5 6 75", "999000", "true"],
        "new connections are made with new certificates"
    );
    cluster.end(vec![worker]);
    sandbox.nothing_is_left();
}

#[test]
fn workers_that_are_not_ours_are_sent_away() {
    let sandbox = Sandbox::new();
    let cluster = cluster(&sandbox);
    sandbox.write("admitted", format!("w-1 u-1 {}\nw-2 u-2 192.0.2.7\n", cluster.ip));
    for (name, uid, words) in [("w-1", "u-9", "another uid"), ("w-2", "u-2", "which is not its address")] {
        let finished = cluster.worker(&sandbox, name, uid).wait().expect(3);
        assert!(finished.stderr.contains(words), "{}", finished.stderr);
    }
    let other = NewCluster::create("c-other").unwrap();
    for (name, content) in other.worker_files() {
        write_private(&sandbox.path("workers").join(name), &content).unwrap();
    }
    let stranger = cluster.worker(&sandbox, "w-1", "u-1");
    until("it does not believe this scheduler", || stranger.stderr().contains("invalid peer certificate").then_some(()));
    // A token of another cluster under this one's authority.
    write_private(&sandbox.path("workers/cluster-id"), cluster.said["cluster_id"].as_str().unwrap()).unwrap();
    write_private(&sandbox.path("workers/ca.crt"), cluster.new.authority().certificate()).unwrap();
    let finished = cluster.worker(&sandbox, "w-1", "u-1").wait().expect(3);
    assert!(finished.stderr.contains("refuses this worker"), "{}", finished.stderr);
    cluster.end(vec![stranger]);
    sandbox.nothing_is_left();
}
