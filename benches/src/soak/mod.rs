//! A long time under load: no-ops, objects that are made, read and released, and workers that join and leave all the while. What is
//! judged is whether the memory of every process that stays is flat.

mod flat;
mod guests;
mod load;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::json;

use crate::ours::process::{resident_bytes, resident_bytes_below};
use crate::whole::{Whole, Workers, build};
use flat::{Series, Verdict};

/// Per minute: 10^8 no-ops and 10^5 objects in 20 minutes. Without optimisation much less is possible.
const NOOPS: u64 = if cfg!(debug_assertions) { 200_000 } else { 5_000_000 };
const OBJECTS: u64 = if cfg!(debug_assertions) { 1_000 } else { 5_000 };
/// Workers that stay from the beginning to the end.
const STAY: Workers = Workers { number: 2, cpus: 1 };
/// Little memory for results, so that spilling is part of it.
const WORKER: &[&str] = &["--object-memory", "64MiB", "--drain-deadline", "2s"];
/// A look at every process.
const LOOK: Duration = Duration::from_millis(500);

/// How long and how much.
#[derive(Args)]
pub struct SoakOptions {
    /// How long it takes at least; the work is spread over that time.
    #[arg(long, default_value_t = 20.0, value_parser = minutes)]
    minutes: f64,
    /// No-ops a minute.
    #[arg(long, default_value_t = NOOPS)]
    noops: u64,
    /// Objects a minute.
    #[arg(long, default_value_t = OBJECTS)]
    objects: u64,
    /// Directory with the programs, built already.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Also write the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|_| "a number of minutes".to_owned())?;
    if (0.1..=1e4).contains(&minutes) { Ok(minutes) } else { Err("0.1 to 10000 minutes".to_owned()) }
}

/// What is to be done in which time, and how far it is.
pub(crate) struct Plan {
    begun: Instant,
    length: Duration,
    noops: u64,
    objects: u64,
    noops_done: AtomicU64,
    objects_done: AtomicU64,
    over: AtomicBool,
}

impl Plan {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Waits while more is done than the time that has passed allows.
    async fn paced(&self, done: u64, all: u64) {
        let due = self.length.mul_f64((done as f64 / all as f64).min(1.0));
        tokio::time::sleep(due.saturating_sub(self.begun.elapsed())).await;
    }
}

/// Runs it, prints a table, and fails when something is not flat.
pub fn run(options: &SoakOptions) -> Result<()> {
    let programs = options.programs.clone().map_or_else(build, Ok)?;
    let whole = Whole::with(&programs, STAY, WORKER)?;
    let all = |a_minute: u64| (a_minute as f64 * options.minutes).ceil() as u64;
    let plan = Plan {
        begun: Instant::now(),
        length: Duration::from_secs_f64(options.minutes * 60.0),
        noops: all(options.noops),
        objects: all(options.objects),
        noops_done: AtomicU64::new(0),
        objects_done: AtomicU64::new(0),
        over: AtomicBool::new(false),
    };
    let (worked, guests, series) = std::thread::scope(|scope| {
        let looking = scope.spawn(|| look(&whole, &plan));
        let coming = scope.spawn(|| guests::come_and_go(&whole, &plan));
        let worked = work(&whole, &plan);
        plan.over.store(true, Ordering::Relaxed);
        let guests = coming.join().unwrap_or_else(|_| bail!("the thread of the guests panicked"));
        let series = looking.join().unwrap_or_else(|_| bail!("the thread that looks panicked"));
        (worked, guests, series)
    });
    let seconds = plan.begun.elapsed().as_secs_f64();
    let (series, guests) = (series?, guests?);
    let done = (plan.noops_done.into_inner(), plan.objects_done.into_inner());
    let verdicts: Vec<Verdict> = series.iter().map(Series::judge).collect();
    report(&verdicts, done, &guests, seconds);
    if let Some(file) = &options.json {
        let report = json!({
            "seconds": seconds,
            "noops": done.0,
            "objects": done.1,
            "guests": guests,
            "processes": verdicts,
        });
        std::fs::write(file, serde_json::to_string_pretty(&report)?).with_context(|| format!("write {}", file.display()))?;
    }
    worked?;
    let rising: Vec<&str> = verdicts.iter().filter(|verdict| !verdict.flat).map(|verdict| verdict.process.as_str()).collect();
    ensure!(rising.is_empty(), "memory is not flat: {}", rising.join(", "));
    Ok(())
}

fn work(whole: &Whole, plan: &Plan) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let session = whole.session().await?;
        let all = async { tokio::try_join!(load::noops(&session, plan), load::objects(&session, plan)) };
        // Twice the time is enough for everything that goes on at all.
        let done = tokio::time::timeout(plan.length * 2 + Duration::from_secs(60), all).await;
        done.context("not even twice the time was enough")??;
        session.close().await;
        Ok(())
    })
}

/// Samples every process that stays until it is over.
fn look(whole: &Whole, plan: &Plan) -> Result<Vec<Series>> {
    let mut series = vec![Series::new("client"), Series::new("scheduler")];
    for number in 0..STAY.number {
        series.extend([Series::new(&format!("worker {number}")), Series::new(&format!("lane hosts of worker {number}"))]);
    }
    while !plan.is_over() {
        let mut now = vec![resident_bytes(std::process::id())?, resident_bytes(whole.scheduler_pid())?];
        for pid in whole.worker_pids() {
            now.extend([resident_bytes(pid)?, resident_bytes_below(pid)]);
        }
        series.iter_mut().zip(now).for_each(|(series, bytes)| series.push(bytes));
        std::thread::sleep(LOOK);
    }
    Ok(series)
}

#[allow(clippy::print_stdout, reason = "the table is what it was started for")]
fn report(verdicts: &[Verdict], done: (u64, u64), guests: &guests::Guests, seconds: f64) {
    println!(
        "{} no-ops, {} objects, {} workers joined, {} killed and {} drained, in {seconds:.0} s\n",
        done.0, done.1, guests.joined, guests.killed, guests.drained
    );
    println!("Resident MiB, medians of the three thirds of the time; flat: the last at most 10 % + 4 MiB above the second.\n");
    println!("| process | first | second | last | peak | flat |\n|---|---|---|---|---|---|");
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    for verdict in verdicts {
        let [first, second, last] = verdict.thirds.map(mib);
        let flat = if verdict.flat { "yes" } else { "NO" };
        println!("| {} | {first:.1} | {second:.1} | {last:.1} | {:.1} | {flat} |", verdict.process, mib(verdict.peak));
    }
}
