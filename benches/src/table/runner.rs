//! Measures row by row: ours and the limits in a process of their own, their runs interleaved so that a disturbance of the
//! machine hits all alike; then the peers, one after the other. A row that fails or hangs says why and ends alone.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::machine::Machine;
use super::measure::{Measure, Scale, Series};
use super::profile::Profile;
use super::report;
use super::rows::{WORKS, Work};
use super::{RowOptions, TableOptions, of_name};
use crate::peers::{self, Budget, Cell, Environment};

/// Runs of every measurement.
const RUNS: u32 = 5;
/// A profile watches a row for at least so long.
const PROFILE_AT_LEAST: Duration = Duration::from_secs(1);
/// Longest that a profile of one row may take.
const PROFILE_WITHIN: Duration = Duration::from_secs(30);

/// The whole table.
pub fn run(options: &TableOptions) -> Result<()> {
    let begin = Instant::now();
    let works: Vec<&Work> = WORKS.iter().filter(|work| chosen(work, &options.only)).collect();
    ensure!(!works.is_empty(), "no row begins with {:?}", options.only);
    let programs = match &options.programs {
        Some(programs) => programs.canonicalize().with_context(|| format!("no programs in {}", programs.display()))?,
        None => crate::whole::build()?,
    };
    let environment = (!options.no_peers && works.iter().any(|work| !work.peers.is_empty()))
        .then(|| options.venv.clone().map_or_else(default_venv, Ok))
        .transpose()?
        .map(|venv| Environment::set_up(&venv));
    // Set-up is done once and profiles are no figures; the bound is on measuring.
    let measuring = Instant::now();
    let bound = Duration::from_secs(if options.quick { 8 * 60 } else { 60 * 60 });
    // The largest number of tasks that ends in 10 s: of each run, or when it must be quick of all runs of a cell together.
    let seconds_per_run = if options.quick { 0.6 } else { 10.0 };
    let budget = Budget { seconds_per_run, runs: RUNS };
    let scale = Scale { quick: options.quick, runs: RUNS, profile: false, programs };
    let machine = Machine::here();
    let mut rows = Vec::new();
    let mut not_met = Vec::new();
    for (at, work) in works.iter().enumerate() {
        // What is left is shared among the rows that are left, so that a slow one does not take the time of the last.
        let share = bound.saturating_sub(measuring.elapsed()) / (works.len() - at) as u32 * work.shares();
        let row_ends = Instant::now() + share.min(bound.saturating_sub(measuring.elapsed()));
        eprintln!("[{}/{}] {} s: {}: {}", at + 1, works.len(), measuring.elapsed().as_secs(), work.name, work.what);
        let series = in_a_process(work, &scale, row_ends.saturating_duration_since(Instant::now()))
            .unwrap_or_else(|error| vec![Series { name: "ours".to_owned(), failed: format!("{error:#}"), ..Series::default() }]);
        let mut cells = Vec::new();
        for peer in work.peers {
            let cell = match &environment {
                None => continue,
                Some(_) if options.quick && !work.is_decided_by(peer) => {
                    Cell::unavailable("decides nothing here, and it must be quick")
                }
                Some(_) if Instant::now() > row_ends => Cell::unavailable("the time for this row was over"),
                Some(environment) => ask(environment, work, peer, budget, row_ends),
            };
            eprintln!("    {peer}: {}", report::cell_line(&cell));
            cells.push(((*peer).to_owned(), cell));
        }
        let of_work = report::rows(work, &series, &cells);
        if of_work.iter().any(report::Row::asks_why) {
            not_met.push((*work, rows.len()..rows.len() + of_work.len()));
        }
        rows.extend(of_work);
    }
    // After all figures are there: no row loses its peers to the profile of another.
    for (work, at) in not_met {
        eprintln!("{} s: where the time of {} goes", measuring.elapsed().as_secs(), work.name);
        let profile = profile_of(work, &scale, PROFILE_WITHIN);
        rows[at].iter_mut().filter(|row| row.asks_why()).for_each(|row| row.profile.clone_from(&profile));
    }
    let versions = environment.map(|environment| environment.versions).unwrap_or_default();
    let markdown = report::markdown(&machine, &versions, &rows, begin.elapsed(), options.quick);
    show(&markdown);
    if let Some(path) = &options.markdown {
        std::fs::write(path, &markdown).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &options.json {
        let json = report::json(&machine, &versions, &rows, begin.elapsed())?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Where the time of a row goes that was not reached.
fn profile_of(work: &Work, scale: &Scale, limit: Duration) -> Vec<String> {
    let series = in_a_process(work, &Scale { profile: true, ..scale.clone() }, limit);
    let ours = series.map(|series| series.into_iter().next().unwrap_or_default());
    match ours {
        Ok(ours) if ours.failed.is_empty() => ours.profile,
        Ok(ours) => vec![format!("there is no profile: {}", ours.failed)],
        Err(error) => vec![format!("there is no profile: {error:#}")],
    }
}

/// A peer's name and how it is started: `snakemake --scheduler greedy` is another way of `snakemake`.
fn ask(environment: &Environment, work: &Work, peer: &str, budget: Budget, ends: Instant) -> Cell {
    let (program, way) = peer.split_once(" --").map_or((peer, ""), |(program, way)| (program, way));
    let row = match way.rsplit(' ').next() {
        Some(way) if !way.is_empty() => format!("{}.{way}", work.name),
        _ => work.name.to_owned(),
    };
    peers::measure(environment, program, &row, budget, ends)
}

fn chosen(work: &Work, only: &[String]) -> bool {
    let named = |name: &str| only.iter().any(|only| name.starts_with(only.as_str()));
    only.is_empty() || named(work.name) || work.figures.iter().any(|figure| named(figure.id))
}

fn default_venv() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    // …/target/release/benches
    let target = here.ancestors().nth(2).context("this program lies in a target directory")?;
    Ok(target.join("peers/venv"))
}

#[allow(clippy::print_stdout)]
fn show(text: &str) {
    println!("{text}");
}

fn in_a_process(work: &Work, scale: &Scale, limit: Duration) -> Result<Vec<Series>> {
    let said = tempfile::NamedTempFile::new()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["row", work.name, "--programs"]).arg(&scale.programs).args(["--runs", &scale.runs.to_string()]);
    if scale.quick {
        command.arg("--quick");
    }
    if scale.profile {
        command.arg("--profile");
    }
    let mut child = command.stdin(Stdio::null()).stdout(said.reopen()?).process_group(0).spawn()?;
    let status = peers::wait(&mut child, limit);
    peers::end_group(&mut child);
    let mut text = String::new();
    said.reopen()?.read_to_string(&mut text)?;
    let status = status.with_context(|| format!("it had not ended after {} s", limit.as_secs()))?;
    ensure!(status.success(), "its process ended with {status}");
    Ok(serde_json::from_str(&text)?)
}

/// The process of one row: measures and prints the series.
pub fn run_row(options: &RowOptions) -> Result<()> {
    let work = of_name(&options.work).with_context(|| format!("there is no row {:?}", options.work))?;
    let series = match options.scale.profile {
        true => vec![profiled(work, &options.scale)],
        false => measured(work, &options.scale),
    };
    show(&serde_json::to_string(&series)?);
    Ok(())
}

/// Ours once to warm up, and under perf.
fn profiled(work: &Work, scale: &Scale) -> Series {
    let profile = || {
        let mut run = work.ours.context("it is not measured")?(scale)?;
        run()?;
        let profile = Profile::begin()?;
        let begun = Instant::now();
        run()?;
        // What takes a few milliseconds leaves no samples to speak of.
        while begun.elapsed() < PROFILE_AT_LEAST {
            run()?;
        }
        profile.end()
    };
    let name = "ours".to_owned();
    match profile() {
        Ok(profile) => Series { name, profile, ..Series::default() },
        Err(error) => Series { name, failed: format!("{error:#}"), ..Series::default() },
    }
}

fn measured(work: &Work, scale: &Scale) -> Vec<Series> {
    let starts = work.ours.map(|ours| ("ours", ours)).into_iter().chain(work.limits.iter().copied());
    let mut all: Vec<(Series, Option<Measure>)> = starts
        .map(|(name, start)| {
            let (measure, failed) = match start(scale) {
                Ok(measure) => (Some(measure), String::new()),
                Err(error) => (None, format!("{error:#}")),
            };
            (Series { name: name.to_owned(), failed, ..Series::default() }, measure)
        })
        .collect();
    // The first round warms everything up and is not kept.
    for round in 0..=scale.runs {
        for (series, measure) in &mut all {
            let Some(run) = measure.as_mut() else { continue };
            match run() {
                Ok(sample) if round > 0 => {
                    series.runs.push(sample.values);
                    series.cpu = sample.cpu.into_iter().map(|(name, cpu)| (name.to_owned(), cpu)).collect();
                }
                Ok(_) => {}
                Err(error) => {
                    series.failed = format!("{error:#}");
                    *measure = None;
                }
            }
        }
    }
    all.into_iter().map(|(series, _)| series).collect()
}
