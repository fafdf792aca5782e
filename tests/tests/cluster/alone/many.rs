//! Hundreds of workers that exist only in the API: what they cost the scheduler and the API server. On a cluster of its own, whose further
//! nodes are played.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::{ApiProxy, Fate, Ground, LONG, until_within};

/// How many.
const WORKERS: usize = 200;
/// How long the steady state is looked at.
const LOOKED_AT: Duration = Duration::from_secs(20);
/// Most of one core that it may take meanwhile.
const SHARE: f64 = 0.05;

/// A cluster that ends with this.
struct Cluster {
    directory: tempfile::TempDir,
}

fn program(name: &str) -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster").join(name))
}

impl Cluster {
    /// Starts one node that is real and ten that are not, with the images in `archives`.
    fn start(archives: &Path) -> Cluster {
        let cluster = Cluster { directory: tempfile::Builder::new().prefix("scalable-many-").tempdir().unwrap() };
        let up = program("up").args(["--fake", "10"]).arg(cluster.directory.path()).arg("1").output().unwrap();
        assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
        let images = std::fs::read_dir(archives).unwrap().flatten().map(|entry| entry.path());
        let images = images.filter(|path| path.to_string_lossy().contains("scalable-scheduler-"));
        let load = program("load").arg(cluster.directory.path()).args(images).output().unwrap();
        assert!(load.status.success(), "{}", String::from_utf8_lossy(&load.stderr));
        cluster
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = program("down").arg(self.directory.path()).output();
    }
}

/// The process of the scheduler's pod, as this machine counts.
fn scheduler(ground: &Ground) -> i32 {
    let pods = ground.pods("scalable.io/role=scheduler");
    let uid = pods[0]["metadata"]["uid"].as_str().unwrap().to_owned();
    let marks = [uid.clone(), uid.replace('-', "_")];
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    let of_pod = |pid: &i32| {
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let program = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        marks.iter().any(|mark| cgroups.contains(mark.as_str()))
            && String::from_utf8_lossy(&program).contains("scalable-scheduler")
    };
    pids.into_iter().find(of_pod).expect("the scheduler is a process of this machine")
}

/// CPU seconds that a process has used.
fn cpu(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // SAFETY: sysconf reads a constant of the system.
    ticks as f64 / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
}

#[test]
fn two_hundred_workers() {
    let Some(archives) = std::env::var_os("SCALABLE_TEST_ARCHIVES").map(PathBuf::from) else {
        println!("skipped two hundred workers: SCALABLE_TEST_ARCHIVES names no directory of images");
        return;
    };
    let cluster = Cluster::start(&archives);
    let directory = cluster.directory.path().to_owned();
    let ground = Ground::at(directory.join("admin.kubeconfig"), "many").with_rights();
    let proxy = ApiProxy::before(&directory, ground.admin(), |_| Fate::Pass);
    ground.fault(&directory, "api-through", &[&proxy.port().to_string()]);
    ground.manifest(
        &format!(
            "adaptive: {{ minimum: {WORKERS}, maximum: {WORKERS}, scale_up_burst: {WORKERS}, max_unschedulable: {WORKERS} }}\n\
             pod_patch: {{ spec: {{ nodeSelector: {{ type: kwok }}, tolerations: [{{ key: kwok.x-k8s.io/node, operator: Exists }}] }} }}"
        ),
        "",
    );
    let run = ground.run(&[]);
    until_within(2 * LONG, "every pod to run", || (ground.workers().len() == WORKERS).then_some(()));
    let (_, to_start) = proxy.disturbed();
    let (process, begun) = (scheduler(&ground), Instant::now());
    let before = cpu(process);
    std::thread::sleep(LOOKED_AT);
    let share = (cpu(process) - before) / begun.elapsed().as_secs_f64();
    let meanwhile = proxy.disturbed().1 - to_start;
    println!(
        "{WORKERS} workers: {to_start} requests until all run; then {:.1} % of a core and {meanwhile} requests in {LOOKED_AT:?}",
        share * 100.0
    );
    assert!(share <= SHARE, "{:.1} % of a core with nothing to do", share * 100.0);
    // One for each pod's creation, although it changes some times until it runs, and what a start takes by itself.
    assert!(to_start <= 2 * WORKERS as u64, "{to_start} requests for {WORKERS} pods");
    assert!(meanwhile <= 10, "{meanwhile} requests while nothing changed");
    run.signal(Signal::SIGINT);
    run.wait_within(2 * LONG).calm().expect(0);
    // How fast played nodes let go of two hundred pods is theirs: the command line does not wait for nodes that do not answer.
    ground.becomes_empty(2 * LONG);
}
