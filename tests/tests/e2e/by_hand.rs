//! Scheduler and workers started by hand, in "terminals" of their own.

use tests::{Running, Sandbox, until};

/// Starts a scheduler on any free port with the token in `token`, and returns it with its address.
pub fn scheduler(sandbox: &Sandbox) -> (Running, String) {
    scheduler_with(sandbox, &[]).0
}

/// As [`scheduler`] with more arguments; also the address people and monitoring use.
pub fn scheduler_with(sandbox: &Sandbox, more: &[&str]) -> ((Running, String), String) {
    let mut arguments = vec!["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--token-file", "token"];
    arguments.extend(more);
    let running = sandbox.start("scalable-scheduler", &arguments);
    let addresses = until("the scheduler to say where it listens", || {
        let text = format!("{}\n{}", running.stdout(), running.stderr());
        let mut found: Vec<String> = Vec::new();
        for word in text.split(|c: char| c.is_whitespace() || matches!(c, ',' | '"' | '/' | ';' | '=')) {
            let port = word
                .strip_prefix("127.0.0.1:")
                .map(|port| port.trim_end_matches('.'))
                .filter(|port| port.parse::<u16>().is_ok_and(|port| port != 0));
            if let Some(port) = port {
                let address = format!("127.0.0.1:{port}");
                if !found.contains(&address) {
                    found.push(address);
                }
            }
        }
        (found.len() >= 2).then_some(found)
    });
    ((running, addresses[0].clone()), addresses[1].clone())
}

#[test]
fn two_terminals() {
    let sandbox = Sandbox::new();
    sandbox.token();
    let (scheduler, address) = scheduler(&sandbox);
    let worker =
        sandbox.start("scalable-worker", &["--scheduler", &address, "--token-file", "token", "--cpus", "2", "--memory", "1G"]);
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
    for _ in 0..2 {
        sandbox.scalable(&["run", "--address", &address, "--token-file", "token"]).expect(0);
        assert_eq!(sandbox.last_run().output("simulate/n=7/value"), "7");
    }
    // They are the user's: a run that ends leaves them alone.
    for program in ["scalable-scheduler", "scalable-worker"] {
        assert_eq!(sandbox.processes_of(program).len(), 1, "{program}");
    }
    worker.signal(nix::sys::signal::Signal::SIGTERM);
    worker.wait().calm().expect(0);
    scheduler.signal(nix::sys::signal::Signal::SIGTERM);
    scheduler.wait().calm();
    sandbox.nothing_is_left();
}
