//! Watching a run to its end: events to the display, the first failure in full, signals to decisions, decisions to the
//! scheduler. Used by `run`, `retry`, `submit` and `attach`.

use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use scalable::{Client, Event};
use scalable_proto::v1;
use tokio_stream::StreamExt;

use crate::exit::{Failure, code};
use crate::failure_text::FailureText;
use crate::interrupt::{Decision, Keys, Policy, Signals, Told};
use crate::launcher::LocalScheduler;
use crate::progress::Progress;
use crate::records::{self, TaskRecord};
use crate::ui::Ui;

/// Failures shown with a line each; the records have all of them.
const FAILURE_LINES_MAX: u32 = 20;
/// Longest wait for the end of a cancelled run: the grace of its tasks is usually far shorter.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(300);
/// How often held back progress and the time since a cancel are looked at.
const TICK: Duration = Duration::from_secs(1);

/// A run to be watched.
pub struct Watched<'a> {
    /// For output.
    pub ui: Ui,
    /// A session with its scheduler.
    pub client: &'a Client,
    /// Its name.
    pub run: &'a str,
    /// Its directory: relative paths in messages begin there.
    pub directory: &'a str,
    /// The scheduler, where this process has started it.
    pub scheduler: Option<&'a LocalScheduler>,
    /// The run goes on when the command line is gone without a word.
    pub outlives: bool,
}

/// How watching ended.
#[derive(Debug)]
pub enum End {
    /// The run is over and its records are written.
    Over,
    /// The user left; the run goes on.
    Detached,
    /// The user does not wait for a cancelled run any more, or it took too long.
    Forced(Told),
    /// The scheduler is gone.
    Lost(Failure),
}

/// A watched run at the end of watching.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub end: End,
    /// The last state seen.
    pub progress: v1::RunProgress,
    /// This command line cancelled it.
    pub cancelled_by: Option<Told>,
}

impl Ended {
    /// The exit code of the command.
    pub fn exit_code(&self) -> u8 {
        match &self.end {
            End::Detached => code::OK,
            End::Forced(told) => told.exit_code(),
            End::Lost(failure) => failure.code,
            End::Over => match (self.progress.state(), self.cancelled_by) {
                (v1::RunState::Succeeded, _) => code::OK,
                (_, Some(told)) => told.exit_code(),
                _ => code::FAILED,
            },
        }
    }
}

/// Watches until the run is over, the user leaves, or the scheduler is gone.
///
/// # Errors
/// When the scheduler does not know the run or does not answer at all.
pub async fn drive(watched: &Watched<'_>, signals: &mut Signals) -> Result<Ended, Failure> {
    drive_until(watched, signals, std::future::pending()).await
}

/// As [`drive`], and ends also when somebody else comes to know that the scheduler is `gone`: a connection that is silent is given up much
/// later.
///
/// # Errors
/// As [`drive`].
pub async fn drive_until(
    watched: &Watched<'_>,
    signals: &mut Signals,
    gone: impl Future<Output = Failure>,
) -> Result<Ended, Failure> {
    tokio::pin!(gone);
    let mut events = watched.client.watch(watched.run).await?;
    let terminal = watched.ui.stderr_is_terminal && std::io::IsTerminal::is_terminal(&std::io::stdin());
    let mut driver = Driver {
        watched,
        progress: Progress::new(watched.ui),
        policy: Policy::new(terminal, watched.outlives),
        keys: None,
        shown: Shown::default(),
        cancelled: None,
    };
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let end = loop {
        let step = tokio::select! {
            event = events.next() => driver.event(event),
            told = signals.next() => driver.signal(told).await,
            key = key(driver.keys.as_ref()), if driver.keys.is_some() => driver.key(key).await,
            status = exited(watched.scheduler) => Some(End::Lost(driver.scheduler_ended(status))),
            failure = &mut gone => Some(End::Lost(failure)),
            _ = tick.tick() => driver.tick(),
        };
        if let Some(end) = step {
            break end;
        }
    };
    driver.keys = None;
    driver.show_recorded_failure();
    driver.progress.finish();
    Ok(Ended { end, progress: driver.progress.last().clone(), cancelled_by: driver.cancelled.map(|(told, _)| told) })
}

async fn key(keys: Option<&Keys>) -> Option<u8> {
    match keys {
        Some(keys) => keys.next().await,
        None => std::future::pending().await,
    }
}

async fn exited(scheduler: Option<&LocalScheduler>) -> ExitStatus {
    match scheduler {
        Some(scheduler) => scheduler.exited().await,
        None => std::future::pending().await,
    }
}

#[derive(Default)]
struct Shown {
    first: bool,
    first_final: bool,
    lines: u32,
}

struct Driver<'a> {
    watched: &'a Watched<'a>,
    progress: Progress,
    policy: Policy,
    keys: Option<Keys>,
    shown: Shown,
    cancelled: Option<(Told, Instant)>,
}

impl Driver<'_> {
    fn event(&mut self, event: Option<Result<Event, scalable::Error>>) -> Option<End> {
        match event {
            Some(Ok(Event::Progress(progress))) => {
                let complete = progress.complete;
                self.progress.update(progress);
                complete.then_some(End::Over)
            }
            Some(Ok(Event::Failed(failed))) => {
                self.failed(&failed);
                None
            }
            Some(Ok(Event::Missed(count))) => {
                self.progress.say(&format!("{count} more failures came faster than they could be shown; the records have them"));
                None
            }
            Some(Err(error)) => Some(End::Lost(self.lost(error.into()))),
            None => Some(End::Over),
        }
    }

    /// A failure from before this watch began is told by nobody but the records.
    fn show_recorded_failure(&mut self) {
        let failed = self.progress.last().groups.iter().any(|group| group.failed > 0);
        if !failed || self.shown.first_final {
            return;
        }
        let path = Path::new(self.watched.directory).join("failures.jsonl");
        let first =
            records::read_lines::<TaskRecord>(&path).ok().and_then(|mut lines| lines.find(|line| line.last != Some(false)));
        if let Some(record) = first {
            self.shown.first = true;
            self.shown.first_final = true;
            self.progress.say(&FailureText::from_record(&record).full(self.watched.directory));
        }
    }

    /// The first failure, and the first that is final, are shown in full; some more with a line each.
    fn failed(&mut self, failed: &v1::TaskFailed) {
        let text = FailureText::from_wire(failed);
        let in_full = !self.shown.first || (failed.r#final && !self.shown.first_final);
        self.shown.first = true;
        self.shown.first_final |= failed.r#final;
        if in_full {
            self.progress.say(&text.full(self.watched.directory));
        } else if self.shown.lines < FAILURE_LINES_MAX {
            self.shown.lines += 1;
            self.progress.say(&format!("failed: {}", text.line()));
        } else if self.shown.lines == FAILURE_LINES_MAX {
            self.shown.lines += 1;
            self.progress.say(&format!(
                "further failures are not shown one by one; see `scalable logs --failed --run {}`",
                self.watched.run
            ));
        }
    }

    async fn signal(&mut self, told: Told) -> Option<End> {
        let decision = self.policy.signal(told, Instant::now());
        self.decide(decision).await
    }

    async fn key(&mut self, key: Option<u8>) -> Option<End> {
        self.keys = None;
        let decision = match key {
            Some(key) => self.policy.answer(key),
            // The terminal is gone: SIGHUP says what that means.
            None => Decision::GoOn,
        };
        if decision == Decision::GoOn {
            self.progress.say("going on");
        }
        self.decide(decision).await
    }

    async fn decide(&mut self, decision: Decision) -> Option<End> {
        match decision {
            Decision::GoOn => None,
            Decision::Ask => {
                if self.keys.is_none() {
                    self.keys = self.progress.suspended(Keys::open);
                }
                if self.keys.is_none() {
                    // No key can be read, so nobody can be asked.
                    self.policy.terminal = false;
                    let decision = self.policy.signal(Told::Interrupt, Instant::now());
                    return Box::pin(self.decide(decision)).await;
                }
                self.progress.say("Ctrl-C: d = detach (the run goes on), c = cancel the run, any other key = go on watching; Ctrl-C again cancels");
                None
            }
            Decision::Detach => Some(End::Detached),
            Decision::Cancel(told) => {
                self.keys = None;
                self.cancel(told).await
            }
            Decision::Force(told) => Some(End::Forced(told)),
        }
    }

    async fn cancel(&mut self, told: Told) -> Option<End> {
        self.progress.say(&format!("cancelling {}; once more to leave without waiting", self.watched.run));
        self.cancelled = Some((told, Instant::now()));
        match self.watched.client.cancel(self.watched.run, "", None, told.reason()).await {
            Ok(_) => None,
            Err(error) if error.is_transient() => Some(End::Forced(told)),
            Err(error) => {
                self.progress.say(&format!("the scheduler did not take the cancel: {error}"));
                Some(End::Forced(told))
            }
        }
    }

    fn tick(&mut self) -> Option<End> {
        self.show_recorded_failure();
        self.progress.tick();
        let (told, at) = self.cancelled?;
        (at.elapsed() > CANCEL_TIMEOUT).then_some(End::Forced(told))
    }

    fn scheduler_ended(&self, status: ExitStatus) -> Failure {
        self.lost(Failure::infrastructure(format!("the scheduler ended before the run was over: {status}")))
    }

    fn lost(&self, failure: Failure) -> Failure {
        let tail = self.watched.scheduler.map(LocalScheduler::log_tail).unwrap_or_default();
        let message = if tail.trim().is_empty() { failure.message } else { format!("{}\n{}", failure.message, tail.trim_end()) };
        Failure { code: code::INFRASTRUCTURE, message, help: failure.help }
    }
}
