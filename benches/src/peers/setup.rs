//! Installs the peers. A peer that cannot be installed is a cell that says why.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// What is installed for each peer, pinned so that figures can be compared from one day to the next. `futures` is Python's own
/// `concurrent.futures`.
const PACKAGES: [(&str, &[&str]); 6] = [
    ("dask", &["dask==2026.8.0", "distributed==2026.8.0"]),
    ("ray", &["ray==2.60.0"]),
    ("parsl", &["parsl==2026.10.26"]),
    ("snakemake", &["snakemake==9.27.1"]),
    ("hyperqueue", &["hyperqueue==0.27.0"]),
    ("futures", &[]),
];

/// The peers' Python environment.
#[derive(Debug)]
pub struct Environment {
    python: PathBuf,
    /// Why a peer is not there.
    missing: BTreeMap<&'static str, String>,
    /// The version of every peer that is there.
    pub versions: BTreeMap<&'static str, String>,
}

impl Environment {
    /// Makes the environment in `directory` where it is missing and installs what is missing in it, saying so on stderr. Nothing
    /// outside `directory` is changed.
    pub fn set_up(directory: &Path) -> Self {
        let python = directory.join("bin/python");
        let mut environment = Environment { python, missing: BTreeMap::new(), versions: BTreeMap::new() };
        let made = if environment.python.exists() { Ok(()) } else { make(directory) };
        for (peer, packages) in PACKAGES {
            let version = match &made {
                Ok(()) => environment.install(peer, packages),
                Err(why) => Err(anyhow::anyhow!("{why:#}")),
            };
            match version {
                Ok(version) => drop(environment.versions.insert(peer, version)),
                Err(why) => drop(environment.missing.insert(peer, format!("{why:#}"))),
            }
        }
        environment
    }

    /// The interpreter, when `peer` is installed for it; else why it is not.
    pub fn python(&self, peer: &str) -> Result<PathBuf, String> {
        self.missing.get(peer).map_or(Ok(self.python.clone()), |why| Err(why.clone()))
    }

    fn install(&self, peer: &str, packages: &[&str]) -> Result<String> {
        let Some(first) = packages.first() else {
            return self.said(&["-c", "import platform; print(platform.python_version())"]);
        };
        let (name, pinned) = first.split_once("==").context("packages are pinned")?;
        let ask = format!("import importlib.metadata; print(importlib.metadata.version({name:?}))");
        let installed = self.said(&["-c", &ask]).ok();
        if installed.as_deref() != Some(pinned) {
            eprintln!("installing {} into {}", packages.join(" "), self.python.display());
            let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"];
            self.said(&[&pip, packages].concat()).with_context(|| format!("{peer} cannot be installed"))?;
        }
        self.said(&["-c", &ask])
    }

    fn said(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.python).args(arguments).output().context("start the peers' Python")?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        ensure!(output.status.success(), "{}: {}", output.status, last.chars().take(200).collect::<String>());
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

fn make(directory: &Path) -> Result<()> {
    eprintln!("making a Python environment in {}", directory.display());
    let output = Command::new("python3").args(["-m", "venv"]).arg(directory).output().context("start python3")?;
    ensure!(output.status.success(), "python3 -m venv: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
