//! What can never work ends the command before, or soon after, anything exists, says why, and leaves nothing.

use tests::{Ground, LONG};

use crate::lifecycle::ONE;

#[test]
fn a_namespace_that_is_not_there() {
    let Some(ground) = Ground::new("nowhere") else { return };
    ground.manifest("namespace: scalable-nowhere-at-all", ONE);
    // Who may not look is told what is missing there.
    ground.run_to_end(&[]).expect(3).says(&["scalable-nowhere-at-all", "you may not", "check the namespace's name"]);
    ground.nothing_is_left();
}

#[test]
fn no_right_to_create_pods() {
    let Some(ground) = Ground::without_rights("rights") else { return };
    ground.manifest("", ONE);
    ground.run_to_end(&[]).expect(3).says(&["you may not create pods", "kind: Role", "name: scalable-user"]);
    ground.nothing_is_left();
}

#[test]
fn a_quota_of_nothing() {
    let Some(ground) = Ground::new("none") else { return };
    ground.kubectl(&["create", "quota", "none", "--hard", "pods=0"]);
    ground.manifest("", ONE);
    ground.run_to_end(&[]).expect(3).says(&["quota", "none", "pods"]);
    ground.nothing_is_left();
}

#[test]
fn no_image_of_the_scheduler() {
    let Some(ground) = Ground::new("unnamed") else { return };
    let ground = ground.env("SCALABLE_SCHEDULER_IMAGE", "");
    ground.manifest("", ONE);
    ground.run_to_end(&[]).expect(2).says(&["SCALABLE_SCHEDULER_IMAGE", "docker/build", "push"]);
    ground.nothing_is_left();
}

#[test]
fn a_scheduler_whose_image_never_comes() {
    let Some(ground) = Ground::new("absent") else { return };
    ground.manifest("scheduler_image: localhost/nothing:1\nstart_deadline: 8s", ONE);
    ground.run_to_end(&[]).expect(3).says(&["ErrImagePull", "localhost/nothing:1"]);
    ground.nothing_is_left();
}

#[test]
fn a_program_that_the_image_does_not_have() {
    let Some(ground) = Ground::new("program") else { return };
    ground.manifest("", "tasks:\n  absent: { cpus: 0.1, command: [/opt/demeter/run] }\n");
    ground.run_to_end(&[]).expect(1).says(&["absent", "/opt/demeter/run", "was not found"]);
    ground.nothing_is_left();
}

/// Names that Kubernetes does not take are made into some that it does.
#[test]
fn names_of_any_kind() {
    let Some(ground) = Ground::new("names") else { return };
    let component = format!("GCAM_{}.Core", "x".repeat(70));
    ground.manifest(
        "",
        &format!(
            "components:\n  {component}: {{}}\n  gcam_core: {{}}\n  GCAM-core: {{}}\ntasks:\n  One_task.A: {{ component: {component}, command: [/bin/hostname] }}\n  \
             b: {{ component: gcam_core, command: [/bin/hostname] }}\n  c: {{ component: GCAM-core, command: [/bin/hostname] }}\n"
        ),
    );
    let name = format!("My_Run.{}", "y".repeat(60));
    ground.run_to_end(&["--name", &name]).expect(0);
    ground.nothing_is_left();
    let run = ground.last_run();
    let workers: std::collections::BTreeSet<String> =
        run.tasks().iter().map(|task| task["worker"].as_str().unwrap_or_default().to_owned()).collect();
    assert_eq!((run.name(), workers.len()), (name, 3), "each component has pods of its own: {workers:?}");
    assert!(workers.iter().all(|name| name.len() <= 63), "{workers:?}");
}

/// Two runs of one manifest do not see each other, and the second leaves the alias of the first alone.
#[test]
fn two_runs_at_once() {
    let Some(ground) = Ground::new("two") else { return };
    ground.manifest("adaptive: { minimum: 1, maximum: 1 }", crate::lifecycle::ENSEMBLE);
    let both = [ground.run(&["--name", "first"]), ground.run(&["--name", "second"])];
    for run in both {
        run.wait_within(LONG).calm().expect(0);
    }
    ground.nothing_is_left();
    for run in ground.sandbox.runs() {
        let table = run.outputs().into_iter().find(|path| path.starts_with("all")).unwrap();
        assert_eq!(run.output(&table), "0\n1\n2\n3\n", "{}", run.name());
    }
}

/// What a patch makes of a pod is asked of the API before anything exists.
#[test]
fn a_patch_that_kubernetes_refuses() {
    let Some(ground) = Ground::new("patch") else { return };
    let spread = "{ maxSkew: 0, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway }";
    ground.manifest(&format!("pod_patch: {{ spec: {{ topologySpreadConstraints: [{spread}] }} }}"), ONE);
    ground.run_to_end(&[]).expect(3).says(&["topologySpreadConstraints", "maxSkew", "nothing was created"]);
    ground.manifest("pod_patch: { spec: { hostNetwork: true } }", ONE);
    ground.run_to_end(&[]).expect(3).says(&["violates PodSecurity", "nothing was created"]);
    ground.nothing_is_left();
}
