//! The table for people (Markdown) and for machines (JSON): one object a row.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::judge::{Judge, Verdict, void};
use super::machine::Machine;
use super::measure::Series;
use super::rows::{Figure, Work};
use super::stats::{median, spread};
use crate::peers::Cell;

/// One row, as it is written.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The figure.
    pub id: &'static str,
    /// What is done.
    pub what: &'static str,
    /// Median of the runs.
    pub ours: Option<f64>,
    /// Of every figure in the row.
    pub unit: &'static str,
    /// What is to be reached, absolutely, and by what it is decided.
    pub goal: &'static str,
    /// What was asked in this run, in the unit.
    pub asked: Option<f64>,
    /// Whether it was reached; none for a row without a goal, and where nothing can be said.
    pub met: Option<bool>,
    /// By name: median, spread, number of tasks, or why there is none.
    pub peers: Map<String, Value>,
    /// Median of the limit that decides, where one does.
    pub limit: Option<f64>,
    /// Medians of all limits, by name.
    pub limits: Map<String, Value>,
    /// Smallest and largest of our runs.
    pub spread: Option<[f64; 2]>,
    /// Number of our runs.
    pub runs: usize,
    /// CPU microseconds a task of each of our processes: where the time goes.
    pub cpu_us_per_task: Map<String, Value>,
    /// Whether anything is asked of it.
    #[serde(skip)]
    pub judged: bool,
    /// Of a row that is not known to be reached: functions by their CPU time, a line for each process.
    pub profile: Vec<String>,
    /// Why it failed, is void or is not judged, and by how much it fails.
    pub note: String,
}

impl Row {
    /// It was measured, something is asked of it, and it is not known to be reached: the report says where its time goes.
    pub fn asks_why(&self) -> bool {
        self.judged && self.met != Some(true) && self.ours.is_some()
    }
}

/// The rows of a piece of work.
pub fn rows(work: &Work, series: &[Series], cells: &[(String, Cell)]) -> Vec<Row> {
    work.figures.iter().enumerate().map(|(at, figure)| row(work, figure, at, series, cells)).collect()
}

fn row(work: &Work, figure: &'static Figure, at: usize, series: &[Series], cells: &[(String, Cell)]) -> Row {
    let ours = series.iter().find(|series| series.name == "ours");
    let values = ours.map(|ours| ours.of_figure(at)).unwrap_or_default();
    let limits: Vec<(String, f64)> = series
        .iter()
        .filter(|series| series.name != "ours" && !series.runs.is_empty())
        .map(|series| {
            // A limit with one value is the same for every figure.
            let single = series.runs.iter().all(|run| run.len() == 1);
            (series.name.clone(), median(&series.of_figure(if single { 0 } else { at })))
        })
        .collect();
    let of_cells: Vec<(String, f64)> = cells
        .iter()
        .filter_map(|(peer, cell)| Some((peer.clone(), median(cell.values.get(figure.id).filter(|values| !values.is_empty())?))))
        .collect();
    let of = |name: &str| limits.iter().find(|(of, _)| of == name).map(|(_, figure)| *figure);
    let judge = || figure.judge.judge(figure.better, median(&values), &limits, &of_cells);
    let verdict = match work.relay.map(|(relay, plain)| (of(relay), of(plain))) {
        _ if values.is_empty() => Verdict::open(""),
        Some((Some(relay), Some(plain))) => match void(figure.better, relay, plain) {
            None => judge(),
            Some(why) => match judge() {
                Verdict { met: Some(false), note, .. } => Verdict::open(format!("{why}; held against it all the same: {note}")),
                _ => Verdict::open(why),
            },
        },
        Some((None, _) | (_, None)) => Verdict::open("void: the relay was not measured beside a plain one"),
        None => judge(),
    };
    let failed =
        series.iter().filter(|series| !series.failed.is_empty()).map(|series| format!("{}: {}", series.name, series.failed));
    let missing = work.ours.is_none().then(|| "ours cannot be measured yet".to_owned());
    let notes: Vec<String> =
        missing.into_iter().chain(failed).chain(Some(verdict.note.clone()).filter(|note| !note.is_empty())).collect();
    let deciding = match figure.judge {
        Judge::Limit(name, _) => of(name),
        _ => None,
    };
    Row {
        id: figure.id,
        what: work.what,
        ours: (!values.is_empty()).then(|| median(&values)),
        unit: figure.unit,
        goal: figure.goal,
        asked: verdict.asked,
        met: verdict.met,
        judged: !matches!(figure.judge, Judge::Nothing),
        peers: cells.iter().map(|(peer, cell)| (peer.clone(), cell_json(cell, figure.id))).collect(),
        limit: deciding,
        limits: limits.into_iter().map(|(name, figure)| (name, json!(figure))).collect(),
        spread: (!values.is_empty()).then(|| spread(&values)),
        runs: values.len(),
        cpu_us_per_task: ours.iter().flat_map(|ours| &ours.cpu).map(|(name, cpu)| (name.clone(), json!(cpu))).collect(),
        profile: Vec::new(),
        note: notes.join("; "),
    }
}

fn cell_json(cell: &Cell, id: &str) -> Value {
    match cell.values.get(id) {
        Some(values) if !values.is_empty() => {
            json!({ "median": median(values), "spread": spread(values), "n": cell.n, "runs": values.len(), "note": cell.note })
        }
        _ if cell.failed.is_empty() => json!({ "failed": "it has no such figure" }),
        _ => json!({ "failed": cell.failed }),
    }
}

/// One line about a peer's cell, for who is watching.
pub fn cell_line(cell: &Cell) -> String {
    if cell.values.is_empty() {
        return cell.failed.clone();
    }
    let each = cell.values.iter().map(|(id, values)| format!("{id} {}", number(median(values))));
    format!("{} (n = {})", each.collect::<Vec<_>>().join(", "), cell.n)
}

/// All rows and what they were measured on.
pub fn json(machine: &Machine, versions: &BTreeMap<&str, String>, rows: &[Row], took: Duration) -> Result<Vec<u8>> {
    let rows: Vec<Value> = rows.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
    let whole = json!({ "machine": machine, "peer_versions": versions, "seconds": took.as_secs_f64(), "rows": rows });
    Ok(serde_json::to_vec_pretty(&whole)?)
}

/// Three digits that count, thousands apart.
pub fn number(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude != 0.0 && magnitude < 100.0 {
        let digits = (2 - magnitude.log10().floor() as i32).max(0) as usize;
        return format!("{value:.digits$}");
    }
    let digits = format!("{magnitude:.0}");
    let mut text = String::from(if value < 0.0 { "-" } else { "" });
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The table, with what it was measured on before and what is to be said about single rows after it.
pub fn markdown(machine: &Machine, versions: &BTreeMap<&str, String>, rows: &[Row], took: Duration, quick: bool) -> String {
    let mut text = String::new();
    let peers: Vec<String> = versions.iter().map(|(peer, version)| format!("{peer} {version}")).collect();
    let mut line = |of: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = text.write_fmt(of);
        text.push('\n');
    };
    let Machine { cpu, cores, memory_mib, kernel, load_before, scalable, profile } = machine;
    line(format_args!("{cpu}, {cores} cores, {memory_mib} MiB, kernel {kernel}, load before {load_before}"));
    line(format_args!("scalable {scalable} ({profile}){}", peers.iter().map(|peer| format!(", {peer}")).collect::<String>()));
    line(format_args!(
        "{}: {:.0} s in all; medians of the runs, smallest to largest in brackets\n",
        if quick { "quick" } else { "full" },
        took.as_secs_f64()
    ));
    line(format_args!("| row | ours | unit | met | asked | to reach; decided by | limits | peers |"));
    line(format_args!("|---|---|---|---|---|---|---|---|"));
    for row in rows {
        let ours = match (row.ours, row.spread) {
            (Some(ours), Some([low, high])) => format!("**{}** ({}–{})", number(ours), number(low), number(high)),
            _ => "–".to_owned(),
        };
        let met = row.met.map_or("–", |met| if met { "yes" } else { "NO" });
        let asked = row.asked.map_or("–".to_owned(), number);
        let limits = row.limits.iter().map(|(name, value)| format!("{name} {}", number(value.as_f64().unwrap_or_default())));
        let limits = limits.collect::<Vec<_>>().join("; ");
        let peers = row.peers.iter().map(|(peer, cell)| match cell["median"].as_f64() {
            Some(figure) => format!("{peer} {} (n = {})", number(figure), cell["n"]),
            None => format!("{peer}: {}", cell["failed"].as_str().unwrap_or_default()),
        });
        let peers = peers.collect::<Vec<_>>().join("; ").replace('|', "/");
        line(format_args!("| `{}` | {ours} | {} | {met} | {asked} | {} | {limits} | {peers} |", row.id, row.unit, row.goal));
    }
    line(format_args!(""));
    for row in rows {
        if !row.note.is_empty() {
            line(format_args!("- `{}`: {}", row.id, row.note));
        }
        if !row.cpu_us_per_task.is_empty() && row.met == Some(false) {
            let each = row.cpu_us_per_task.iter().map(|(of, cpu)| format!("{of} {}", number(cpu.as_f64().unwrap_or_default())));
            line(format_args!("  CPU, µs a task: {}", each.collect::<Vec<_>>().join(", ")));
        }
        for process in &row.profile {
            line(format_args!("  - {process}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::judge::Better;
    use super::*;

    static FIGURES: [Figure; 1] = [Figure {
        id: "rate",
        unit: "tasks/s",
        better: Better::More,
        goal: "≥ 1 M/s; judged by ≥ 1/2 × the relay",
        judge: Judge::Limit("relay", 0.5),
    }];

    fn work() -> Work {
        Work {
            name: "rate",
            what: "tasks",
            figures: &FIGURES,
            ours: Some(|_| anyhow::bail!("not measured here")),
            limits: &[],
            relay: Some(("relay", "TCP relay")),
            peers: &["dask", "ray"],
        }
    }

    fn series(name: &str, runs: &[f64], failed: &str) -> Series {
        let runs = runs.iter().map(|run| vec![*run]).collect();
        Series {
            name: name.to_owned(),
            runs,
            cpu: vec![("client".to_owned(), 0.25)],
            failed: failed.to_owned(),
            ..Series::default()
        }
    }

    fn cells() -> Vec<(String, Cell)> {
        let values = [("rate".to_owned(), vec![100.0, 300.0, 200.0])].into();
        let dask = Cell { values, n: 5000, ..Cell::default() };
        vec![("dask".to_owned(), dask), ("ray".to_owned(), Cell::unavailable("no wheel"))]
    }

    fn check(ours: &Series, relay: f64, expected: (Option<f64>, Option<bool>, Option<f64>), note: &str) -> Row {
        let series = [ours, &series("relay", &[relay], ""), &series("TCP relay", &[2000.0], "")].map(|of| Series {
            name: of.name.clone(),
            runs: of.runs.clone(),
            cpu: of.cpu.clone(),
            failed: of.failed.clone(),
            ..Series::default()
        });
        let mut rows = rows(&work(), &series, &cells());
        let row = rows.remove(0);
        assert_eq!((row.ours, row.met, row.asked), expected);
        assert_eq!(row.note, note);
        row
    }

    #[test]
    fn a_row_is_the_median_judged_by_its_limit() {
        let row = check(&series("ours", &[700.0, 500.0, 900.0], ""), 1200.0, (Some(700.0), Some(true), Some(600.0)), "");
        assert_eq!((row.spread, row.runs, row.limit), (Some([500.0, 900.0]), 3, Some(1200.0)));
        let json = serde_json::to_value(&row).unwrap();
        assert_eq!(json["peers"]["dask"]["median"], 200.0);
        assert_eq!(json["peers"]["ray"]["failed"], "not available: no wheel");
        let ours = series("ours", &[300.0], "");
        check(&ours, 1200.0, (Some(300.0), Some(false), Some(600.0)), "not reached by a factor of 2.00");
    }

    #[test]
    fn a_row_with_a_bad_relay_is_void_and_one_that_failed_says_why() {
        let void = "void: the relay reaches only 0.45 of a plain TCP relay of the same frames";
        let row = check(&series("ours", &[700.0], ""), 900.0, (Some(700.0), None, None), void);
        assert!(row.asks_why(), "nobody knows whether it is reached");
        let fails = format!("{void}; held against it all the same: not reached by a factor of 1.50");
        check(&series("ours", &[300.0], ""), 900.0, (Some(300.0), None, None), &fails);
        check(&series("ours", &[], "it broke"), 1200.0, (None, None, None), "ours: it broke");
    }

    #[test]
    fn the_table_has_a_line_for_each_row_and_says_what_failed() {
        let row = check(
            &series("ours", &[300.0], ""),
            1200.0,
            (Some(300.0), Some(false), Some(600.0)),
            "not reached by a factor of 2.00",
        );
        let versions = [("dask", "1.2".to_owned())].into();
        let text = markdown(&Machine::here(), &versions, &[row], Duration::from_secs(61), true);
        let line = "| `rate` | **300** (300–300) | tasks/s | NO | 600 | ≥ 1 M/s; judged by ≥ 1/2 × the relay | relay 1,200; \
                    TCP relay 2,000 | dask 200 (n = 5000); ray: not available: no wheel |";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("quick: 61 s in all"), "{text}");
        assert!(text.contains("- `rate`: not reached by a factor of 2.00\n  CPU, µs a task: client 0.250"), "{text}");
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        let cases = [
            (0.0, "0"),
            (0.01234, "0.0123"),
            (1.0, "1.00"),
            (45.67, "45.7"),
            (99.99, "100.0"),
            (100.4, "100"),
            (1234.6, "1,235"),
            (5_000_000.0, "5,000,000"),
            (-1500.0, "-1,500"),
        ];
        for (value, expected) in cases {
            assert_eq!(number(value), expected);
        }
    }
}
