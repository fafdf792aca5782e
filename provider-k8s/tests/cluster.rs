//! Against a real cluster, which `SCALABLE_TEST_KUBECONFIG` names: a whole run with stand-ins for the programs, every reason that Kubernetes
//! gives, and what is found before anything exists. The user has one namespaced Role, and the scheduler the one its run makes.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::time::Instant;

use common::{Ground, kubeconfig, manifest, pools, until};
use futures_util::StreamExt;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::runtime::{WatchStreamExt, watcher};
use scalable_manifest::KubernetesOptions;
use scalable_provider::{Cause, Observation, Operation, Provider, ReasonClass};
use scalable_provider_k8s::settings::Settings;
use scalable_provider_k8s::{
    KubernetesLauncher, KubernetesProvider, Limits, Progress, ProviderOptions, Run, Scheduler, attach, destroy, find, left, list,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A worker that ends when it is told, and with code 7 when a file appears.
const STAND_IN: &str = r#"inject: false
resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 32Mi}}
pod_patch:
  spec:
    containers:
    - name: worker
      command: [/bin/sh, -c]
      args:
      - |
        echo "worker $SCALABLE_POD_NAME at $SCALABLE_POD_IP with $(cat /scalable/credentials/token)"
        trap 'exit 0' TERM
        until [ -e "$HOME/die" ]; do sleep 0.1; done
        exit 7
"#;

async fn provider_of(ground: &Ground, scheduler: &Scheduler, logs: &std::path::Path) -> (KubernetesProvider, Settings) {
    let files = scheduler.credentials().await.unwrap();
    let settings = Settings::parse(&files["settings.json"]).unwrap();
    let account = format!("system:serviceaccount:{}:{}", ground.name, scheduler.run.root.name);
    let options = ProviderOptions {
        settings: settings.clone(),
        config: ground.config_of(&account),
        log_directory: Some(logs.to_owned()),
        limits: Limits::default(),
    };
    (KubernetesProvider::start(options).unwrap(), settings)
}

fn create(pool: &str, ordinal: u32) -> Operation {
    Operation::Create { pool: pool.to_owned(), ordinal }
}

async fn start(launcher: &KubernetesLauncher) -> (Scheduler, Vec<Progress>) {
    let found = launcher.check().await.unwrap_or_else(|error| panic!("{error}\n{:?}", error.help));
    assert!(found.name_free && found.not_now.is_empty(), "{found:?}");
    let mut told = Vec::new();
    let started = launcher.start_telling(&mut |progress| told.push(progress)).await;
    (started.unwrap_or_else(|error| panic!("{error}")), told)
}

#[tokio::test]
async fn a_run_from_its_start_until_nothing_is_left() {
    let Some(kubeconfig) = kubeconfig("a run on a cluster") else { return };
    let ground = Ground::new(kubeconfig, "run").await.with_role().await;
    let manifest = manifest(STAND_IN, "  GCAM_core: {}\n");
    let launcher = ground.launcher("energy-1", pools(&manifest, "energy-1"), manifest.target.kubernetes.clone().unwrap());
    let begun = Instant::now();
    let (scheduler, told) = start(&launcher).await;
    println!("scheduler ready after {:?}: {told:?}", begun.elapsed());

    // It is found, and reached.
    let runs = list(&launcher.client, &ground.name).await.unwrap();
    assert_eq!((runs.len(), runs[0].run.as_str(), &runs[0].ended), (1, "energy-1", &None));
    let again = attach(&launcher.client, named(&launcher, "energy-1").await.unwrap()).await.unwrap();
    assert_eq!(again.pod, scheduler.pod);
    let forward = scheduler.forward(8787, 0).await.unwrap();
    for _ in 0..3 {
        let mut connection = tokio::net::TcpStream::connect(forward.address()).await.unwrap();
        connection.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("ready\n"), "{answer:?} {:?}", forward.problem());
    }
    let taken = launcher.start_telling(&mut |_| {}).await.err().map(|error| error.message).unwrap_or_default();
    assert_eq!(taken, format!("a run named `energy-1` exists already in namespace `{}`", ground.name));

    // Workers start, and the deadline of the start is lifted.
    let logs = tempfile::tempdir().unwrap();
    let (provider, settings) = provider_of(&ground, &scheduler, logs.path()).await;
    let mut seen = provider.observe();
    let begun = Instant::now();
    assert_eq!(provider.apply(vec![create("GCAM_core", 0), create("GCAM_core", 1), create("GCAM_core", 1)]).await, vec![]);
    let unknown = provider.apply(vec![create("other", 0)]).await;
    assert_eq!(unknown[0].1.class, ReasonClass::Never, "{unknown:?}");
    let mut workers = Vec::new();
    while workers.len() < 2 {
        let started = until(&mut seen, "a worker that runs", |o| match o {
            Observation::Running { name, .. } => Some(name.clone()),
            _ => None,
        });
        workers.push(started.await);
    }
    println!("two workers run after {:?}: {workers:?}", begun.elapsed());
    workers.sort();
    let known = provider.workers().get(&workers[0]).unwrap();
    let pod = ground.pods().get(&workers[0]).await.unwrap();
    assert_eq!(pod.metadata.uid, Some(known.uid.clone()));
    assert!(known.ip.is_some() && !known.ending);
    let jobs: Api<Job> = Api::namespaced(ground.admin.clone(), &ground.name);
    let job = jobs.get(&settings.root.name).await.unwrap();
    assert_eq!(job.spec.and_then(|spec| spec.active_deadline_seconds), None);

    // One fails: its log is kept, its pod goes, and the next at its place has another name.
    ground.exec(&workers[0], "touch $HOME/die").await;
    let (cause, reason) = until(&mut seen, "the death of a worker", |o| match o {
        Observation::Died { name, cause, reason, .. } if *name == workers[0] => Some((*cause, reason.clone())),
        _ => None,
    })
    .await;
    assert_eq!((cause, reason.as_str()), (Cause::Failed, "the worker ended with code 7"));
    assert_eq!(provider.apply(vec![create("GCAM_core", 0)]).await, vec![]);
    let next = until(&mut seen, "its successor", |o| match o {
        Observation::Running { name, .. } => Some(name.clone()),
        _ => None,
    })
    .await;
    assert!(next.ends_with("-0-1"), "{next}");
    let log = std::fs::read_to_string(logs.path().join(format!("{}.log", workers[0]))).unwrap();
    assert!(log.starts_with(&format!("worker {} at ", workers[0])) && log.ends_with("with w\n"), "{log:?}");

    // One is deleted by somebody, one by us, by its unique id.
    ground.pods().delete(&workers[1], &DeleteParams::default()).await.unwrap();
    let cause = until(&mut seen, "somebody's delete", |o| match o {
        Observation::Leaving { name, cause, .. } if *name == workers[1] => Some(*cause),
        _ => None,
    });
    assert_eq!(cause.await, Cause::Removed);
    let uid = scalable_uid(&provider, &next);
    provider.apply(vec![Operation::Delete { name: next.clone(), uid: uid ^ 1 }]).await;
    provider.apply(vec![Operation::Mark { name: next.clone(), busy: false }]).await;
    wait_for(&ground, &next, |pod| {
        let annotations = pod.metadata.annotations.as_ref().unwrap();
        annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "true"
            && !annotations.contains_key("karpenter.sh/do-not-disrupt")
    })
    .await;
    provider.apply(vec![Operation::Delete { name: next.clone(), uid }]).await;
    let cause = until(&mut seen, "our delete", |o| match o {
        Observation::Died { name, cause, .. } if *name == next => Some(*cause),
        Observation::Leaving { name, .. } => panic!("{name} was asked to go"),
        _ => None,
    });
    assert_eq!(cause.await, Cause::Removed);
    provider.shutdown().await;
    assert_eq!(workers_left(&ground).await, 0);

    // All of it goes, and workers that are left go with it.
    assert!(provider.apply(vec![create("GCAM_core", 7)]).await.is_empty());
    drop(forward);
    destroy(&launcher.client, &scheduler.run).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(left(&ground.admin, &scheduler.run).await.unwrap(), [""; 0]);
    assert!(ground.is_empty().await);
    assert_eq!(named(&launcher, "energy-1").await, None);
    assert!(attach(&launcher.client, scheduler.run).await.is_err());
    ground.finish().await;
}

async fn named(launcher: &KubernetesLauncher, run: &str) -> Option<Run> {
    find(&launcher.client, &launcher.launch.namespace, |known| known.run == run).await.unwrap()
}

fn scalable_uid(provider: &KubernetesProvider, name: &str) -> u64 {
    let uid: String = provider.workers().get(name).unwrap().uid.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&uid, 16).unwrap()
}

/// Waits until the pod is so, as its watch tells.
async fn wait_for(ground: &Ground, pod: &str, holds: impl Fn(&Pod) -> bool) {
    let so = await_condition(ground.pods(), pod, move |pod: Option<&Pod>| pod.is_some_and(&holds));
    let seen = tokio::time::timeout(common::LONG, so).await;
    seen.unwrap_or_else(|_| panic!("{pod} did not become so")).unwrap();
}

async fn workers_left(ground: &Ground) -> usize {
    ground.pods().list(&ListParams::default().labels("scalable.io/role=worker")).await.unwrap().items.len()
}

#[tokio::test]
async fn nothing_waits_in_silence() {
    let Some(kubeconfig) = kubeconfig("the reasons of pods that wait and die") else { return };
    let ground = Ground::new(kubeconfig, "reasons").await.with_role().await;
    // One pool for each misfortune.
    let mut all = Vec::new();
    let base = "inject: false\nresources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 32Mi}}\n";
    let command = |script: &str| {
        format!("pod_patch: {{spec: {{containers: [{{name: worker, command: [/bin/sh, -c], args: ['{script}']}}]}}}}\n")
    };
    for (name, options, component) in [
        ("image", command("sleep 1000"), "{image: 'localhost/nothing:1'}"),
        ("nodes", format!("node_selector: {{nothing: here}}\n{}", command("sleep 1000")), "{}"),
        ("secret", format!("env: {{A: {{secretKeyRef: {{name: nothing, key: k}}}}}}\n{}", command("sleep 1000")), "{}"),
        ("volume", format!("volumes: [{{name: v, config_map: nothing, mount: /v}}]\n{}", command("sleep 1000")), "{}"),
        ("memory", command("tail /dev/zero"), "{}"),
        ("program", "pod_patch: {spec: {containers: [{name: worker, command: [/nowhere], args: []}]}}\n".to_owned(), "{}"),
        ("late", format!("start_deadline: 4s\nnode_selector: {{nothing: here}}\n{}", command("sleep 1000")), "{}"),
    ] {
        let manifest = manifest(&format!("{base}{options}"), &format!("  {name}: {component}\n"));
        all.extend(pools(&manifest, "reasons"));
    }
    let launcher = ground.launcher("reasons", all.clone(), KubernetesOptions::default());
    let (scheduler, _) = start(&launcher).await;
    let logs = tempfile::tempdir().unwrap();
    let (provider, _) = provider_of(&ground, &scheduler, logs.path()).await;
    let mut seen = provider.observe();
    let begun = Instant::now();
    assert_eq!(provider.apply(all.iter().map(|pool| create(&pool.name, 0)).collect()).await, vec![]);
    let mut wanted = vec![
        ("image", "wait NotNow ErrImagePull", "localhost/nothing:1"),
        ("nodes", "wait NotNow Unschedulable", "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."),
        ("secret", "wait NotNow CreateContainerConfigError", "secret \"nothing\" not found"),
        ("volume", "wait NotNow FailedMount", "configmap \"nothing\" not found"),
        ("memory", "died OutOfMemory", "OOMKilled: the memory limit is 32Mi"),
        ("program", "died NotStarted", "/nowhere"),
        ("late", "died NotStarted", "the pod did not start within 4 s: Unschedulable: 0/2 nodes"),
    ];
    while !wanted.is_empty() {
        let (pool, kind, words) = until(&mut seen, &format!("{wanted:?}"), |o| match o {
            Observation::Waiting { pool, class, reason, message, .. } => {
                Some((pool.clone(), format!("wait {class:?} {reason}"), message.clone()))
            }
            Observation::Died { pool, cause, reason, .. } => Some((pool.clone(), format!("died {cause:?}"), reason.clone())),
            _ => None,
        })
        .await;
        if let Some(at) = wanted.iter().position(|(p, k, part)| *p == pool && *k == kind && words.contains(part)) {
            println!("{pool} after {:?}: {kind}: {words}", begun.elapsed());
            wanted.swap_remove(at);
        }
    }
    // A quota that is used up is not now, one that is too small is never; neither hurts what is there.
    let quotas: Api<ResourceQuota> = Api::namespaced(ground.admin.clone(), &ground.name);
    let quota = |pods: usize| -> ResourceQuota {
        serde_json::from_value(json!({ "metadata": { "name": "q" }, "spec": { "hard": { "pods": pods.to_string() } } })).unwrap()
    };
    quotas.create(&PostParams::default(), &quota(1)).await.unwrap();
    let refused = loop {
        let refused = provider.apply(vec![create("memory", 5)]).await;
        match refused.into_iter().next() {
            Some((_, reason)) => break reason,
            // The quota is not counted yet.
            None => assert!(begun.elapsed() < common::LONG),
        }
    };
    assert_eq!(refused.class, ReasonClass::NotNow, "{refused:?}");
    assert!(refused.message.contains("exceeded quota: q, requested: pods=1, used: pods="), "{refused:?}");
    // What looks at the Job sees it too.
    let events: Api<k8s_openapi::api::core::v1::Event> = Api::namespaced(ground.admin.clone(), &ground.name);
    let about = format!("involvedObject.uid={}", scheduler.run.root.uid);
    let mut wanted = vec!["Unschedulable", "ErrImagePull", "WorkerOutOfMemory", "PodCreateFailed"];
    let mut told = watcher(events, watcher::Config::default().fields(&about)).applied_objects().boxed();
    while !wanted.is_empty() {
        let event = tokio::time::timeout(common::LONG, told.next()).await.unwrap_or_else(|_| panic!("{wanted:?} was not told"));
        let reason = event.expect("the watch goes on").unwrap().reason;
        wanted.retain(|wanted| reason.as_deref() != Some(wanted));
    }
    destroy(&launcher.client, &scheduler.run).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(ground.is_empty().await);
    ground.finish().await;
}

#[tokio::test]
async fn what_is_found_before_anything_exists() {
    let Some(kubeconfig) = kubeconfig("what is found before a run on a cluster") else { return };
    let ground = Ground::new(kubeconfig, "before").await;
    let manifest = manifest(STAND_IN, "  c: {}\n");
    let options = manifest.target.kubernetes.clone().unwrap();
    let launcher = ground.launcher("before", pools(&manifest, "before"), options);
    let refusal = |launcher: KubernetesLauncher| async move {
        let error = launcher.check().await.expect_err("it cannot work");
        (error.message, error.help.unwrap_or_default())
    };
    // Without a right.
    let (message, help) = refusal(launcher.clone()).await;
    assert!(message.starts_with("you may not create pods, get pods, "), "{message}");
    assert!(help.contains("kind: Role\nmetadata:\n  name: scalable-user\n"), "{help}");
    let ground = ground.with_role().await;
    // A namespace that is not there, as somebody who can see that.
    let mut elsewhere = launcher.clone();
    elsewhere.client = ground.admin.clone();
    elsewhere.launch.namespace = "scalable-nowhere".to_owned();
    assert_eq!(refusal(elsewhere).await.0, "there is no namespace `scalable-nowhere`");
    // A pod that the namespace does not take.
    let privileged = STAND_IN.replace("  spec:\n", "  spec:\n    hostNetwork: true\n");
    let manifest = common::manifest(&privileged, "  c: {}\n");
    let mut refused = launcher.clone();
    refused.launch.pools = pools(&manifest, "before");
    let (message, _) = refusal(refused).await;
    assert!(message.contains("violates PodSecurity") && message.contains("worker of component `c`"), "{message}");
    // A quota that never suffices.
    let quota: ResourceQuota =
        serde_json::from_value(json!({ "metadata": { "name": "q" }, "spec": { "hard": { "pods": "1" } } })).unwrap();
    let quotas: Api<ResourceQuota> = Api::namespaced(ground.admin.clone(), &ground.name);
    quotas.create(&PostParams::default(), &quota).await.unwrap();
    let mut seeing = launcher.clone();
    seeing.client = ground.admin.clone();
    let (message, _) = refusal(seeing).await;
    assert_eq!(message, "quota `q`: pods is limited to 1, and 0 is used; the scheduler and one worker need 2");
    quotas.delete("q", &DeleteParams::default()).await.unwrap();
    assert!(ground.is_empty().await);
    ground.finish().await;
}

#[tokio::test]
async fn a_scheduler_that_does_not_start_leaves_nothing() {
    let Some(kubeconfig) = kubeconfig("a scheduler that does not start on a cluster") else { return };
    let ground = Ground::new(kubeconfig, "failed").await.with_role().await;
    let options = KubernetesOptions { start_deadline_ms: 8_000, ..KubernetesOptions::default() };
    let mut launcher = ground.launcher("no-image", Vec::new(), options.clone());
    launcher.launch.scheduler_image = "localhost/nothing:1".to_owned();
    let mut told = Vec::new();
    let error = launcher.start_telling(&mut |progress| told.push(progress)).await.err().expect("there is no such image");
    assert!(error.message.contains("DeadlineExceeded") || error.message.contains("not ready within 8 s"), "{error}");
    let pull = |p: &Progress| matches!(p, Progress::Waiting { reason, message } if reason.contains("Image") && message.contains("localhost/nothing:1"));
    assert!(told.iter().any(pull), "{told:?}");
    assert!(ground.is_empty().await);
    // One that ends at once is told with what it said.
    let mut launcher = ground.launcher("ends", Vec::new(), options);
    launcher.launch.scheduler_command = Some(["/bin/sh", "-c", "echo no licence >&2; exit 9"].map(str::to_owned).to_vec());
    let error = launcher.start_telling(&mut |_| {}).await.err().expect("it ends");
    assert!(error.message.contains("ended with code 9") && error.message.ends_with("\nno licence"), "{error}");
    assert!(ground.is_empty().await);
    // A command line that is gone after its first request: the deadline runs although there is no pod.
    let options = KubernetesOptions { start_deadline_ms: 2_000, ..KubernetesOptions::default() };
    let launcher = ground.launcher("gone", Vec::new(), options);
    let jobs: Api<Job> = Api::namespaced(ground.admin.clone(), &ground.name);
    jobs.create(&PostParams::default(), &launcher.launch.job()).await.unwrap();
    let over = |job: Option<&Job>| {
        let conditions = job.and_then(|job| job.status.as_ref()?.conditions.as_ref());
        conditions.into_iter().flatten().any(|condition| condition.type_ == "Failed" && condition.status == "True")
    };
    let name = launcher.launch.name();
    let ended = tokio::time::timeout(common::LONG, await_condition(jobs, &name, over)).await;
    ended.expect("the deadline runs").unwrap();
    let ended = list(&launcher.client, &ground.name).await.unwrap()[0].ended.clone().unwrap_or_default();
    assert!(ended.starts_with("Failed: DeadlineExceeded"), "{ended}");
    ground.finish().await;
}

#[tokio::test]
async fn an_api_that_is_away_costs_no_worker() {
    let Some(kubeconfig) = kubeconfig("an API server that does not answer") else { return };
    let ground = Ground::new(kubeconfig, "away").await.with_role().await;
    let manifest = manifest(STAND_IN, "  c: {}\n");
    let launcher = ground.launcher("away", pools(&manifest, "away"), manifest.target.kubernetes.clone().unwrap());
    let (scheduler, _) = start(&launcher).await;
    let settings = Settings::parse(&scheduler.credentials().await.unwrap()["settings.json"]).unwrap();
    let account = format!("system:serviceaccount:{}:{}", ground.name, scheduler.run.root.name);
    let proxy = common::Proxy::before(&ground.config_of(&account)).await;
    let provider = || {
        let (settings, config) = (settings.clone(), proxy.config.clone());
        KubernetesProvider::start(ProviderOptions { settings, config, log_directory: None, limits: Limits::default() }).unwrap()
    };
    let first = provider();
    let mut seen = first.observe();
    assert_eq!(first.apply(vec![create("c", 0), create("c", 1)]).await, vec![]);
    let mut names = Vec::new();
    for _ in 0..2 {
        let running = until(&mut seen, "a worker", |o| match o {
            Observation::Running { name, .. } => Some(name.clone()),
            _ => None,
        });
        names.push(running.await);
    }
    names.sort();

    // It is away: what is asked for now is not now, nobody is declared dead, and what happens meanwhile is seen afterwards.
    proxy.set_open(false);
    let refused = first.apply(vec![create("c", 2)]).await;
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].1.class, ReasonClass::NotNow, "{refused:?}");
    let problem = until(&mut seen, "that it does not answer", |o| match o {
        Observation::Reach { problem } => Some(problem.clone()),
        Observation::Died { name, .. } => panic!("{name} was declared dead"),
        _ => None,
    });
    println!("the API is away: {:?}", problem.await);
    first.apply(vec![Operation::Drain { name: names[1].clone() }]).await;
    ground.pods().delete(&names[0], &DeleteParams::default().grace_period(0)).await.unwrap();
    proxy.set_open(true);
    let mut ended = Vec::new();
    while ended.len() < 2 {
        let (name, cause) = until(&mut seen, "two ends", |o| match o {
            Observation::Died { name, cause, .. } => Some((name.clone(), *cause)),
            _ => None,
        })
        .await;
        assert_eq!(cause, Cause::Removed);
        ended.push(name);
    }
    ended.sort();
    assert_eq!(ended, names);

    // A provider that begins anew takes over what is there.
    assert_eq!(first.apply(vec![create("c", 2), create("c", 3)]).await, vec![]);
    let there: Vec<_> = ground.pods().list(&ListParams::default().labels("scalable.io/role=worker")).await.unwrap().items;
    assert_eq!(there.len(), 2, "no pod was created twice");
    drop((first, seen));
    let second = provider();
    let mut seen = second.observe();
    let mut taken = Vec::new();
    while taken.len() < 2 {
        let started = until(&mut seen, "what is there", |o| match o {
            Observation::Started { name, ordinal, .. } => Some((*ordinal, name.clone())),
            _ => None,
        });
        taken.push(started.await);
    }
    taken.sort();
    assert_eq!(taken.iter().map(|(ordinal, _)| *ordinal).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(second.apply(vec![create("c", 2), create("c", 3)]).await, vec![]);
    second.shutdown().await;
    assert_eq!(workers_left(&ground).await, 0);
    destroy(&launcher.client, &scheduler.run).await.unwrap_or_else(|error| panic!("{error}"));
    ground.finish().await;
}
