//! The commands of docs/kubernetes.md: each is run here as it stands there, but for names, or is marked in the guide as one that is not.

use std::collections::BTreeMap;

use tests::{Finished, Ground, IMAGE, LONG, Running, scheduler_image, until, until_within};

use crate::lifecycle::{http, running};

const GUIDE: &str = include_str!("../../../docs/kubernetes.md");

/// Who runs a command.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Who {
    /// Has the one Role of the guide.
    User,
    /// Is marked `administrator` there.
    Administrator,
}

/// The commands that were not run yet, with what the guide says behind them.
struct Guide<'g> {
    ground: &'g Ground,
    left: BTreeMap<String, String>,
    /// What stands for a name in capitals.
    names: BTreeMap<&'static str, String>,
}

impl<'g> Guide<'g> {
    fn new(ground: &'g Ground) -> Guide<'g> {
        // Indented by four: the guide's only such lines outside of fences are commands.
        let plain = GUIDE.split("```").step_by(2).flat_map(str::lines).filter_map(|line| line.strip_prefix("    "));
        let split = |line: &str| {
            let (command, said) = line.split_once(" # ").unwrap_or((line, ""));
            (command.trim().to_owned(), said.trim().to_owned())
        };
        let left: BTreeMap<String, String> = plain.map(split).collect();
        assert!(left.len() > 20, "{left:#?}");
        Guide { ground, left, names: BTreeMap::new() }
    }

    /// The guide's manifest, with names and sizes of the test's cluster.
    fn manifest(&self) -> String {
        let manifest = GUIDE.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
        assert!(manifest.contains("cpu: \"4\", memory: 16Gi"), "{manifest}");
        self.exchanged(manifest).replace("cpu: \"4\", memory: 16Gi", "cpu: \"0.2\", memory: 128Mi")
    }

    fn exchanged(&self, text: &str) -> String {
        let mut text = text
            .replace("registry.example.org/demeter:2.0.1", IMAGE)
            .replace(&format!("registry.example.org/scalable-scheduler:{}", env!("CARGO_PKG_VERSION")), &scheduler_image())
            .replace("team-energy", &self.ground.namespace)
            .replace("somebody@example.org", "scientist")
            // A port that is free.
            .replace(" 8787:8787", " :8787");
        for (name, value) in &self.names {
            text = text.replace(&format!(" {name} "), &format!(" {value} "));
        }
        text
    }

    /// Starts a command of the guide.
    #[track_caller]
    fn start(&mut self, who: Who, command: &str) -> Running {
        let said = self.left.remove(command).unwrap_or_else(|| panic!("the guide has no (second) command {command:?}"));
        assert!(!said.contains("not run here"), "{command:?} is run here, and the guide says that it is not");
        assert_eq!(said.contains("administrator"), who == Who::Administrator, "whose is {command:?}? The guide says: {said}");
        let kubeconfig = match who {
            Who::User => self.ground.sandbox.path("kubeconfig"),
            Who::Administrator => self.ground.admin().to_owned(),
        };
        let line = self.exchanged(command);
        println!("{who:?}: {line}");
        self.ground.shell(&kubeconfig, &line)
    }

    /// Runs one to its end.
    #[track_caller]
    fn run(&mut self, who: Who, command: &str) -> Finished {
        self.start(who, command).wait_within(LONG).calm()
    }

    /// Runs one that goes on, until it has said this.
    #[track_caller]
    fn until_said(&mut self, command: &str, words: &str) {
        let going = self.start(Who::User, command);
        until_within(LONG, &format!("{words:?} from {command:?}"), || going.stdout().contains(words).then_some(()));
    }

    /// A run of the guide's manifest that waits for its gate and goes on by itself.
    fn detached(&mut self) {
        let body = "echo \"$0\" > \"$1\"";
        let manifest = self.manifest();
        assert!(manifest.contains(body), "{manifest}");
        let waits = manifest.replace(body, &format!("until [ -e $HOME/gate ]; do sleep 0.1; done; {body}"));
        // A deleted worker would wait for its task.
        let waits = waits.replace("    adaptive:", "    drain_timeout: 3s\n    adaptive:");
        self.ground.sandbox.write("scalable.yaml", waits);
        self.ground.run_to_end(&["--detach"]).expect(0);
        until_within(LONG, "a task that runs", || (running(self.ground) > 0).then_some(()));
        self.names.insert("RUN", self.ground.last_run().name());
    }
}

#[test]
fn every_command_of_the_guide() {
    let Some(ground) = Ground::without_rights("guide") else { return };
    let mut guide = Guide::new(&ground);
    use Who::{Administrator, User};
    let granted = "scalable k8s manifests -n team-energy --user somebody@example.org | kubectl apply -f -";
    guide.run(Administrator, granted).expect(0).says(&["role.rbac.authorization.k8s.io/scalable-user created"]);
    let given = ground.ours();

    ground.sandbox.write("scalable.yaml", guide.manifest());
    guide.run(User, "scalable run ./scalable.yaml --target k8s").expect(0);
    assert_eq!((ground.last_run().outputs().len(), ground.ours()), (4, given.clone()));

    guide.detached();
    guide.run(User, "scalable explain pool/demeter").expect(0).says(&["pool demeter: ", "workers"]);
    guide.until_said("kubectl get pods -n team-energy -w", "scalable-worker-demeter-");
    guide.until_said("kubectl get pods -n team-energy -l scalable.io/role=worker -w", "scalable-worker-demeter-");
    let forward = guide.start(User, "kubectl port-forward -n team-energy svc/scalable-scheduler 8787:8787");
    let port = until("the forward", || Some(forward.stdout().split_once("127.0.0.1:")?.1.split_once(' ')?.0.to_owned()));
    let page = until("the page", || http(&port, "/"));
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    drop(forward);
    let run = guide.names["RUN"].clone();
    guide.run(User, "kubectl describe job -n team-energy -l scalable.io/role=scheduler").expect(0).says(&["Events:", &run]);
    guide.run(User, "kubectl logs -n team-energy -l scalable.io/role=scheduler").expect(0).says(&["worker"]);
    guide.run(User, "scalable status -n team-energy").expect(0).says(&[&run, "running"]);
    guide.run(User, "scalable status RUN -n team-energy").expect(0).says(&["simulate", "demeter"]);
    guide.run(User, "scalable explain 'simulate[0]' --run RUN -n team-energy").expect(0).says(&["simulate[0] is running"]);
    guide.run(User, "scalable logs RUN -n team-energy").expect(0);

    let worker = until_within(LONG, "a worker's pod", || ground.workers().pop());
    guide.names.insert("POD", worker.clone());
    guide.run(User, "kubectl describe pod POD -n team-energy").expect(0).says(&[&worker, "scalable.io/component=demeter"]);
    guide.run(User, "kubectl logs POD -n team-energy").expect(0);
    guide.run(User, "kubectl delete pod POD -n team-energy").expect(0).says(&["deleted"]);
    until_within(LONG, "the workers after one was deleted", || {
        let workers = ground.workers();
        (workers.len() >= 2 && !workers.contains(&worker)).then_some(())
    });
    guide.run(Administrator, "kubectl get resourcequota -n team-energy").expect(0);
    guide.run(Administrator, "kubectl get nodes").expect(0).says(&["Ready"]);
    guide.run(Administrator, "kubectl get namespaces").expect(0).says(&[&ground.namespace]);

    guide.run(User, "scalable cancel RUN -n team-energy").expect(0);
    guide.run(User, "scalable attach RUN -n team-energy").expect(1).says(&["cancelled"]);
    assert_eq!(ground.ours(), given);

    guide.detached();
    guide.run(User, "scalable down --all -n team-energy").expect(2).says(&["--yes"]);
    guide.run(User, "scalable down RUN -n team-energy").expect(0);
    assert_eq!(ground.ours(), given);

    let unmarked: Vec<_> = guide.left.iter().filter(|(_, said)| !said.contains("not run here")).collect();
    assert!(unmarked.is_empty(), "commands of the guide that no test runs, and that it does not say so of: {unmarked:#?}");
    println!("not run here, as the guide says: {:#?}", guide.left);
}
