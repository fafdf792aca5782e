//! A manifest without tasks: the cluster runs, says how to connect, and ends by Ctrl-C or after a time without work.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use scalable::Client;
use scalable_proto::v1;

use crate::carry_out::verify_gone;
use crate::commands::Context;
use crate::exit::{CommandResult, Failure, code};
use crate::interrupt::{Signals, Told};
use crate::launcher::LocalScheduler;
use crate::records::{Pids, RunRecord};
use crate::runs::RunDirectory;
use crate::ui::Ui;

/// How often it is looked whether anything runs.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Why a cluster ended.
enum Why {
    Told(Told),
    Idle,
    Ended(CommandResult),
}

/// A cluster of its own without a run that the command line watches.
pub struct Cluster<'a> {
    /// How to speak.
    pub context: &'a Context,
    /// Where its records are.
    pub directory: &'a RunDirectory,
    /// What run.json says of it.
    pub record: &'a RunRecord,
    /// A session with its scheduler.
    pub client: Client,
    /// The scheduler.
    pub scheduler: LocalScheduler,
}

impl Cluster<'_> {
    /// Ends what is left of it, says in run.json how it ended, and sees that nothing is left.
    ///
    /// # Errors
    /// What is left, or what could not be written.
    pub async fn take_down(self, status: &str) -> Result<(), Failure> {
        let mut pids = vec![self.scheduler.ready.pid];
        if !self.scheduler.has_exited() {
            if let Ok(status) = self.client.status("").await {
                pids.extend(status.workers.iter().map(|worker| worker.pid));
            }
            // Without an answer the closed pipe says the same.
            let _ = self.client.shutdown(true).await;
        }
        let stopped = self.scheduler.stop_meanwhile().await;
        self.directory.write_record(&RunRecord {
            status: status.to_owned(),
            finished_at: Some(Timestamp::now().to_string()),
            address: None,
            http: None,
            token_file: None,
            pids: Pids::default(),
            ..self.record.clone()
        })?;
        stopped?;
        verify_gone(&pids)
    }

    /// The failure of a scheduler that ended by itself.
    pub fn ended(&self, status: std::process::ExitStatus) -> Failure {
        Failure::infrastructure(format!("the scheduler ended: {status}\n{}", self.scheduler.log_tail().trim_end()))
    }
}

/// Keeps the cluster until it is told to end, was idle for `idle_ttl`, or is gone.
pub async fn serve(cluster: Cluster<'_>, signals: &mut Signals, idle_ttl: Duration) -> CommandResult {
    let Cluster { context, directory, record, client, scheduler } = &cluster;
    let ui = context.ui;
    let token_file = record.token_file.clone().unwrap_or_default();
    if ui.json() {
        ui.out_json(&serde_json::json!({
            "schema": "scalable.cluster_started.v1", "run": directory.name, "address": scheduler.ready.address,
            "http": scheduler.ready.http, "token_file": token_file, "directory": directory.path,
        }))?;
    } else {
        ui.out(format!(
            "the cluster is ready; the manifest has no tasks, so it waits for work\n  address     {}\n  token file  {token_file}\n  \
             page        {}\nto give it work, from another terminal:\n  scalable submit --address {} --token-file {token_file} -- COMMAND\n\
             it ends with Ctrl-C, or after {} without work",
            scheduler.ready.address,
            scheduler.ready.http,
            scheduler.ready.address,
            crate::ui::span(idle_ttl.as_secs_f64()),
        ))?;
    }
    let gone = async {
        match scheduler.exited().await {
            status if status.success() => Ok(code::OK),
            status => Err(cluster.ended(status)),
        }
    };
    let result = until_over(ui, client, signals, idle_ttl, gone).await;
    let status = match &result {
        Ok(code::OK) => "completed",
        Ok(_) => "cancelled",
        Err(_) => "failed",
    };
    cluster.take_down(status).await?;
    result
}

/// Waits until a cluster is to end: it was told to, it had no work for `idle_ttl`, or it is `gone`.
///
/// # Errors
/// What `gone` says.
pub async fn until_over(
    ui: Ui,
    client: &Client,
    signals: &mut Signals,
    idle_ttl: Duration,
    gone: impl Future<Output = CommandResult>,
) -> CommandResult {
    match wait(client, signals, idle_ttl, gone).await {
        Why::Told(told) if client.list_runs().await.is_ok_and(|runs| runs.iter().any(is_live)) => Ok(told.exit_code()),
        Why::Told(_) => Ok(code::OK),
        Why::Idle => {
            ui.say(format!("no work for {}: the cluster ends", crate::ui::span(idle_ttl.as_secs_f64())));
            Ok(code::OK)
        }
        Why::Ended(result) => result,
    }
}

fn is_live(run: &v1::RunProgress) -> bool {
    matches!(run.state(), v1::RunState::Running | v1::RunState::Cancelling)
}

async fn wait(client: &Client, signals: &mut Signals, idle_ttl: Duration, gone: impl Future<Output = CommandResult>) -> Why {
    let mut busy_until = Instant::now();
    let mut look = tokio::time::interval(LOOK_EVERY.min(idle_ttl.max(Duration::from_millis(50))));
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tokio::pin!(gone);
    loop {
        tokio::select! {
            told = signals.next() => return Why::Told(told),
            result = &mut gone => return Why::Ended(result),
            _ = look.tick() => match client.list_runs().await {
                Ok(runs) if runs.iter().any(is_live) => busy_until = Instant::now(),
                _ if busy_until.elapsed() >= idle_ttl => return Why::Idle,
                _ => {}
            },
        }
    }
}
