//! A climate model in Python, driven from typed Rust: each member of the ensemble is a command task that runs FaIR, and what it writes
//! comes back as numbers. `examples/climate` has the Python side; its `run` makes the environment:
//!
//! ```text
//! $ cargo build --release     # the scheduler and the worker, once
//! $ CLIMATE_PYTHON=examples/climate/.venv/bin/python cargo run --release -p scalable --example fair
//! rcp26: 1.6 K in 2100 (1.2 to 2.2 K)
//! rcp85: 4.9 K in 2100 (3.7 to 6.2 K)
//! ```

#![allow(clippy::print_stdout, reason = "what an example has to say")]

use std::fs;
use std::path::{Path, PathBuf};

use scalable::{Command, Options, Session};

/// What one member of the ensemble believes of the climate, kelvin.
#[derive(Clone, Copy)]
struct Member {
    /// Equilibrium climate sensitivity.
    ecs: f64,
    /// Transient climate response.
    tcr: f64,
}

const MEMBERS: [Member; 3] = [Member { ecs: 2.2, tcr: 1.4 }, Member { ecs: 3.0, tcr: 1.8 }, Member { ecs: 4.2, tcr: 2.2 }];

/// Warming above the level before industry, by year.
type Series = Vec<(i32, f64)>;

/// Runs FaIR once for each member of a pathway, all at a time.
async fn ensemble(session: &Session, model: &Model, pathway: &str) -> Result<Vec<Series>, Box<dyn std::error::Error>> {
    let mut running = Vec::new();
    for member in 0..MEMBERS.len() {
        let command = Command::new(&model.python)
            .arg(model.script.to_string_lossy())
            .args([pathway, &member.to_string()])
            .arg(model.table.to_string_lossy())
            .output_file("series", "", "")
            .env("OMP_NUM_THREADS", "1")
            .options(Options::new().name(&format!("{pathway}-{member}")).timeout("5m").retries(1));
        running.push(session.command(command).await?);
    }
    let mut ensemble = Vec::new();
    for member in running {
        ensemble.push(read_series(member.await?.output("series")?)?);
    }
    Ok(ensemble)
}

/// Where the model is and what it reads.
struct Model {
    python: String,
    script: PathBuf,
    table: PathBuf,
}

impl Model {
    fn new(directory: &Path) -> std::io::Result<Model> {
        let table = directory.join("members.csv");
        let rows = MEMBERS.iter().enumerate().map(|(number, member)| format!("{number},{},{},0\n", member.ecs, member.tcr));
        fs::write(&table, format!("member,ecs,tcr,seed\n{}", rows.collect::<String>()))?;
        Ok(Model {
            python: std::env::var("CLIMATE_PYTHON").unwrap_or_else(|_| "python3".to_owned()),
            script: Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/climate/simulate.py"),
            table,
        })
    }
}

fn read_series(path: &Path) -> Result<Series, Box<dyn std::error::Error>> {
    let text = fs::read_to_string(path)?;
    let rows = text.lines().filter(|line| !line.starts_with('#')).skip(1);
    rows.map(|row| {
        let (year, kelvin) = row.split_once(',').ok_or_else(|| format!("no comma in {row:?}"))?;
        Ok((year.parse()?, kelvin.trim().parse()?))
    })
    .collect()
}

/// The example itself: `main` runs it, and a test.
pub async fn run(session: &Session, directory: &Path) -> Result<String, Box<dyn std::error::Error>> {
    let model = Model::new(directory)?;
    let mut said = String::new();
    for pathway in ["rcp26", "rcp85"] {
        let mut last = Vec::new();
        for series in ensemble(session, &model, pathway).await? {
            let (year, kelvin) = *series.last().ok_or("an empty series")?;
            last.push(kelvin);
            assert_eq!(year, 2100);
        }
        last.sort_by(f64::total_cmp);
        said += &format!("{pathway}: {:.1} K in 2100 ({:.1} to {:.1} K)\n", last[1], last[0], last[2]);
    }
    Ok(said)
}

#[allow(dead_code)]
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    scalable::init!();
    let directory = std::env::temp_dir().join(format!("fair-{}", std::process::id()));
    let session = Session::start().directory(&directory).await?;
    let said = run(&session, &directory).await;
    session.close().await;
    print!("{}", said?);
    Ok(())
}
