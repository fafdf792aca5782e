//! Runs of a namespace, found by what is there and not by a directory on this machine.

use std::path::Path;
use std::time::Duration;

use kube::Client as Api;
use scalable_manifest::suggestion;
use scalable_proto::v1;
use scalable_provider_k8s::{Access, Run, names, namespace_end};

use super::{KubernetesRecord, Live, Way};
use crate::args::{ElsewhereArgs, WayArgs};
use crate::exit::Failure;
use crate::records::{GroupRecord, RunRecord, SCHEMA_VERSION};
use crate::runs::{self, RunDirectory};
use crate::which;

/// Runs whose schedulers are asked at once.
const AT_ONCE: usize = 8;
/// Longest wait for what one of many schedulers says of its run.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// A namespace whose runs are looked for.
pub struct Namespace {
    /// Its name.
    pub name: String,
    api: Api,
    access: Access,
    said: WayArgs,
    way: Way,
}

/// A run of a namespace, as it is now.
#[derive(Debug)]
pub struct Seen {
    /// The run.
    pub run: Run,
    /// `running` and the other states of a run; `idle`: a cluster without a run; `starting`; `lost` and `ended`: the scheduler is over;
    /// `unreachable`.
    pub state: &'static str,
    /// Why it is lost, unreachable or not there yet.
    pub why: String,
    /// Worker pods that run.
    pub workers: usize,
    /// Tasks that are over and tasks in all, where the scheduler was reached.
    pub tasks: Option<(u64, u64)>,
}

impl Namespace {
    /// The namespace that the options name; nothing where they name none.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub async fn of(args: &ElsewhereArgs) -> Result<Option<Namespace>, Failure> {
        if !args.is_given() {
            return Ok(None);
        }
        // It is remembered in run.json, and read from other directories.
        let kubeconfig = args.cluster.kubeconfig.as_deref().map(runs::absolute).transpose()?;
        let access = Access { kubeconfig, context: args.cluster.context.clone() };
        let connection = access.connect().await?;
        let name = args.namespace.clone().unwrap_or(connection.namespace);
        let said = args.way.clone();
        let way = said.way(connection.inside);
        Ok(Some(Namespace { name, api: connection.client, access, said, way }))
    }

    /// What asks the API.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// How its schedulers are reached.
    pub fn way(&self) -> &Way {
        &self.way
    }

    /// The runs that are there, oldest first.
    ///
    /// # Errors
    /// When they may not be listed.
    pub async fn runs(&self) -> Result<Vec<Run>, Failure> {
        Ok(scalable_provider_k8s::list(&self.api, &self.name).await?)
    }

    /// The run that is meant: by `what` where that names one, else by `run`; each a name, a unique beginning of it, the name of its Job, or
    /// `@last`. With `what` where that means something of the run.
    ///
    /// # Errors
    /// When there is none, or several; with the names that there are.
    pub async fn find<'w>(&self, run: &str, what: Option<&'w str>) -> Result<(Run, Option<&'w str>), Failure> {
        let runs = self.runs().await?;
        if runs.is_empty() {
            let message = match namespace_end(&self.api, &self.name).await {
                Some(end) => end,
                None => format!("there is no run in namespace {}", self.name),
            };
            return Err(Failure::usage(message).help(
                "what has ended is kept there for some minutes only; `scalable report` reads what came of a run where it was fetched to",
            ));
        }
        let (wanted, what) = match what {
            None => (run, None),
            Some(what) if which::is_run(what) || runs.iter().any(|known| known.run == what) => (what, None),
            Some(what) => (which::run_in(what)?.unwrap_or(run), Some(what)),
        };
        Ok((choose(&runs, wanted, &self.name)?.clone(), what))
    }

    /// Where that run is, for run.json.
    pub fn place(&self, run: &Run) -> KubernetesRecord {
        KubernetesRecord {
            namespace: self.name.clone(),
            cluster_id: run.cluster_id.clone(),
            kubeconfig: self.access.kubeconfig.clone(),
            context: self.access.context.clone(),
            scheduler_address: self.said.scheduler_address.clone(),
            store_address: self.said.store_address.clone(),
        }
    }

    /// What is known here of a run that was started elsewhere.
    pub fn record(&self, run: &Run, progress: Option<&v1::RunProgress>) -> RunRecord {
        let group =
            |group: &v1::GroupCounts| GroupRecord { name: group.group.clone(), length: group.length, ..Default::default() };
        RunRecord {
            schema_version: SCHEMA_VERSION,
            run_id: run.run.clone(),
            project_name: run.project.clone(),
            target_name: run.target.clone(),
            provider_name: "kubernetes".to_owned(),
            started_at: run.created_at.clone(),
            status: "running".to_owned(),
            tasks_recorded: "all".to_owned(),
            groups: progress.map(|progress| progress.groups.iter().map(group).collect()).unwrap_or_default(),
            // From elsewhere nobody sees this directory.
            fetched: true,
            submitted: progress.is_some(),
            kubernetes: Some(self.place(run)),
            ..RunRecord::default()
        }
    }

    /// Every run as it is now. Schedulers that do not answer are said to be so.
    ///
    /// # Errors
    /// When the runs may not be listed.
    pub async fn look(&self) -> Result<Vec<Seen>, Failure> {
        let runs = self.runs().await?;
        let workers = scalable_provider_k8s::workers(&self.api, &self.name).await?;
        let mut seen = Vec::new();
        for some in runs.chunks(AT_ONCE) {
            let asked: Vec<_> =
                some.iter().map(|run| tokio::spawn(state_of(self.api.clone(), run.clone(), self.way.clone()))).collect();
            for (asked, run) in asked.into_iter().zip(some) {
                let (state, why, tasks) =
                    asked.await.unwrap_or_else(|error| ("unreachable", format!("it could not be asked: {error}"), None));
                let workers = workers.get(&run.cluster_id).copied().unwrap_or(0);
                seen.push(Seen { run: run.clone(), state, why, workers, tasks });
            }
        }
        Ok(seen)
    }
}

/// State, why, and tasks over and in all.
async fn state_of(api: Api, run: Run, way: Way) -> (&'static str, String, Option<(u64, u64)>) {
    if let Some(end) = &run.ended {
        return (if end.starts_with("Complete") { "ended" } else { "lost" }, end.clone(), None);
    }
    let scheduler = match scalable_provider_k8s::attach(&api, run).await {
        Ok(scheduler) => scheduler,
        Err(error) => return ("starting", error.message, None),
    };
    let asked = async {
        let live = Live::open(scheduler, &way).await?;
        Ok::<_, Failure>(live.client.list_runs().await?)
    };
    match tokio::time::timeout(ANSWER_WITHIN, asked).await {
        Ok(Ok(runs)) => match runs.first() {
            Some(progress) => {
                let over = progress.groups.iter().map(|group| u64::from(crate::progress::over(group))).sum();
                let tasks = progress.groups.iter().map(|group| u64::from(group.length)).sum();
                (crate::commands::status::state_word(progress.state()), progress.note.clone(), Some((over, tasks)))
            }
            None => ("idle", String::new(), None),
        },
        Ok(Err(failure)) => ("unreachable", failure.message, None),
        Err(_) => ("unreachable", format!("nothing was answered within {} s", ANSWER_WITHIN.as_secs()), None),
    }
}

/// The run that is meant.
fn choose<'r>(runs: &'r [Run], wanted: &str, namespace: &str) -> Result<&'r Run, Failure> {
    let is_name = |run: &&Run| run.run == wanted || run.root.name == wanted;
    if let Some(run) = if wanted == "@last" { runs.last() } else { runs.iter().rev().find(is_name) } {
        return Ok(run);
    }
    let begins = |run: &&Run| !wanted.is_empty() && (run.run.starts_with(wanted) || run.root.name.starts_with(wanted));
    let beginning: Vec<&Run> = runs.iter().filter(begins).collect();
    let known = || runs.iter().map(|run| run.run.as_str());
    match beginning[..] {
        [only] => Ok(only),
        [] => {
            let near = suggestion(wanted, known()).map(|near| format!("{near} ")).unwrap_or_default();
            Err(Failure::usage(format!("there is no run {wanted:?} in namespace {namespace}"))
                .help(format!("{near}there {}", some_names(known()))))
        }
        _ => Err(Failure::usage(format!("{wanted:?} is the beginning of {} runs in namespace {namespace}", beginning.len()))
            .help(format!("there {}", some_names(beginning.iter().map(|run| run.run.as_str()))))),
    }
}

/// `is A`, `are A, B and 3 more`.
fn some_names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const SHOWN_MAX: usize = 10;
    let names: Vec<&str> = names.collect();
    let more = names.len().saturating_sub(SHOWN_MAX);
    let verb = if names.len() == 1 { "is" } else { "are" };
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{verb} {}{rest}", names[..names.len() - more].join(", "))
}

/// The directory of a run here, where there is one; `None` where there is none, or it is another run's.
pub fn directory_here(runs_dir: &Path, run: &Run) -> Option<(RunDirectory, RunRecord)> {
    let directory = runs::find(runs_dir, &run.run).ok().filter(|directory| directory.name == run.run)?;
    let record = directory.record().ok()?;
    let same = record.kubernetes.as_ref().is_some_and(|at| names::label_value(&at.cluster_id) == run.cluster_id);
    same.then_some((directory, record))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use scalable_provider_k8s::settings::Root;

    fn run(name: &str) -> Run {
        Run {
            namespace: "n".to_owned(),
            root: Root { name: format!("scalable-scheduler-{name}"), uid: format!("uid-{name}") },
            cluster_id: format!("c-{name}"),
            run: name.to_owned(),
            project: "p".to_owned(),
            target: "t".to_owned(),
            created_at: "2026-01-01T00:00:00Z".to_owned(),
            ended: None,
        }
    }

    #[test]
    fn a_run_is_named_in_full_by_its_beginning_by_its_job_or_as_the_last() {
        let runs = ["energy-1", "energy-10", "water-2"].map(run);
        for (wanted, expected) in
            [("energy-1", "energy-1"), ("w", "water-2"), ("scalable-scheduler-energy-10", "energy-10"), ("@last", "water-2")]
        {
            assert_eq!(choose(&runs, wanted, "n").unwrap().run, expected, "{wanted}");
        }
    }

    #[test]
    fn a_wrong_name_is_answered_with_what_there_is() {
        let runs = ["energy-1", "energy-10", "water-2"].map(run);
        for (wanted, message, help) in [
            (
                "enrgy-1",
                "there is no run \"enrgy-1\" in namespace n",
                "did you mean `energy-1`? there are energy-1, energy-10, water-2",
            ),
            ("x", "there is no run \"x\" in namespace n", "there are energy-1, energy-10, water-2"),
            ("en", "\"en\" is the beginning of 2 runs in namespace n", "there are energy-1, energy-10"),
        ] {
            let failure = choose(&runs, wanted, "n").unwrap_err();
            assert_eq!((failure.message.as_str(), failure.help.as_deref()), (message, Some(help)));
            assert_eq!(failure.code, crate::exit::code::USAGE);
        }
        let many: Vec<String> = (0..12).map(|n| format!("r{n}")).collect();
        assert_eq!(some_names(many.iter().map(String::as_str)), "are r0, r1, r2, r3, r4, r5, r6, r7, r8, r9 and 2 more");
    }

    #[test]
    fn a_directory_of_the_same_name_may_be_another_runs() {
        let runs_dir = tempfile::tempdir().unwrap();
        let of_run = run("energy-1");
        assert!(directory_here(runs_dir.path(), &of_run).is_none());
        let directory = runs::create(runs_dir.path(), "energy-1").unwrap();
        let at = |cluster_id: &str| {
            let kubernetes = Some(KubernetesRecord { cluster_id: cluster_id.to_owned(), ..KubernetesRecord::default() });
            RunRecord { kubernetes, ..RunRecord::default() }
        };
        directory.write_record(&at("c-another")).unwrap();
        assert!(directory_here(runs_dir.path(), &of_run).is_none());
        directory.write_record(&at("c-energy-1")).unwrap();
        assert_eq!(directory_here(runs_dir.path(), &of_run).unwrap().0.name, "energy-1");
    }
}
