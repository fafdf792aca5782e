//! Run directories: where they lie, how they are found by name, and how a new one is made.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::exit::Failure;
use crate::records::{self, RunRecord};

/// The directory of one run.
#[derive(Clone, Debug)]
pub struct RunDirectory {
    /// Absolute.
    pub path: PathBuf,
    /// The run's name: the last part of the path.
    pub name: String,
}

impl RunDirectory {
    /// A file of it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Its run.json.
    ///
    /// # Errors
    /// When it cannot be read: the run was never started, or the file is damaged.
    pub fn record(&self) -> Result<RunRecord, Failure> {
        let path = self.file("run.json");
        records::read_json(&path).map_err(|error| Failure::io(format!("read {}", path.display()), &error))
    }

    /// Writes run.json.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn write_record(&self, record: &RunRecord) -> Result<(), Failure> {
        let path = self.file("run.json");
        records::write_json(&path, record).map_err(|error| Failure::io(format!("write {}", path.display()), &error))
    }
}

/// Makes a new run directory for `name`.
///
/// # Errors
/// When it exists or cannot be made.
pub fn create(runs_dir: &Path, name: &str) -> Result<RunDirectory, Failure> {
    check_name(name)?;
    let runs_dir = absolute(runs_dir)?;
    fs::create_dir_all(&runs_dir).map_err(|error| Failure::io(format!("make {}", runs_dir.display()), &error))?;
    let path = runs_dir.join(name);
    match fs::DirBuilder::new().mode(0o755).create(&path) {
        Ok(()) => Ok(RunDirectory { path, name: name.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(Failure::usage(format!("a run of the name {name:?} exists already")).help("choose another --name, or none"))
        }
        Err(error) => Err(Failure::io(format!("make {}", path.display()), &error)),
    }
}

/// A name becomes a directory and a part of task names: letters, digits, `.`, `_` and `-`.
fn check_name(name: &str) -> Result<(), Failure> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !name.is_empty() && name.len() <= 128 && name.chars().all(fine) && !name.starts_with(['.', '-']) {
        return Ok(());
    }
    Err(Failure::usage(format!("{:?} cannot be the name of a run", crate::ui::one_line(name, 80)))
        .help("use letters, digits, '.', '_' and '-', at most 128, not beginning with '.' or '-'"))
}

/// `run-<UTC time>-<project>-<8 hex digits>`.
///
/// # Errors
/// When the system gives no random bytes.
pub fn new_name(project: &str, now: Timestamp) -> Result<String, Failure> {
    let mut random = [0; 4];
    getrandom::fill(&mut random).map_err(|error| Failure::infrastructure(format!("no random bytes: {error}")))?;
    let clean = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let project: String = project.chars().map(clean).take(64).collect();
    Ok(format!("run-{}-{project}-{:08x}", now.strftime("%Y%m%dT%H%M%SZ"), u32::from_be_bytes(random)))
}

/// Writes a token only its owner can read and returns its path.
///
/// # Errors
/// When there are no random bytes or the file cannot be made.
pub fn make_token(directory: &RunDirectory) -> Result<(PathBuf, String), Failure> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| Failure::infrastructure(format!("no random bytes: {error}")))?;
    let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = directory.file("token");
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(token.as_bytes())
    };
    write().map_err(|error| Failure::io(format!("write {}", path.display()), &error))?;
    Ok((path, token))
}

/// Reads a token.
///
/// # Errors
/// When the file is not there or not readable by this user.
pub fn read_token(path: &Path) -> Result<String, Failure> {
    let token = fs::read_to_string(path).map_err(|error| {
        Failure::io(format!("read the token {}", path.display()), &error).help(
            "the token lies in the run's directory and belongs to the user who started the run; name another with --token-file",
        )
    })?;
    Ok(token.trim().to_owned())
}

/// `path` from the root.
///
/// # Errors
/// When the current directory is gone.
pub fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::io(format!("find {}", path.display()), &error))
}

/// Every run, newest first by the time in run.json.
///
/// # Errors
/// When the directory cannot be listed; one that is not there has no runs.
pub fn list(runs_dir: &Path) -> Result<Vec<(RunDirectory, RunRecord)>, Failure> {
    let runs_dir = absolute(runs_dir)?;
    let entries = match fs::read_dir(&runs_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Failure::io(format!("list {}", runs_dir.display()), &error)),
    };
    let mut runs: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let directory = RunDirectory { path: entry.path(), name: entry.file_name().into_string().ok()? };
            let record = directory.record().ok()?;
            Some((directory, record))
        })
        .collect();
    // Compared as times: the texts have as many digits as they need.
    let started = |record: &RunRecord| record.started_at.parse::<Timestamp>().ok();
    runs.sort_by_cached_key(|(directory, record)| std::cmp::Reverse((started(record), directory.name.clone())));
    Ok(runs)
}

/// The run that `wanted` names: `@last`, a name, a unique beginning of one, or the path of a run directory.
///
/// # Errors
/// When there is none, or several.
pub fn find(runs_dir: &Path, wanted: &str) -> Result<RunDirectory, Failure> {
    if wanted == "@last" {
        return list(runs_dir)?.into_iter().next().map(|(directory, _)| directory).ok_or_else(|| {
            Failure::usage(format!("there is no run in {}", runs_dir.display())).help(
                "start one with `scalable run`, say with --runs-dir where the runs are, or with --namespace where on Kubernetes",
            )
        });
    }
    if wanted.contains('/') && Path::new(wanted).join("run.json").is_file() {
        let path = absolute(Path::new(wanted))?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        return Ok(RunDirectory { path, name });
    }
    let mut beginning = Vec::new();
    for (directory, _) in list(runs_dir)? {
        if directory.name == wanted {
            return Ok(directory);
        }
        if directory.name.starts_with(wanted) && !wanted.is_empty() {
            beginning.push(directory);
        }
    }
    match beginning.len() {
        1 => Ok(beginning.remove(0)),
        0 => Err(Failure::usage(format!("there is no run {wanted:?} in {}", runs_dir.display()))
            .help("`scalable status --all` lists the runs; @last is the newest")),
        count => {
            let names: Vec<&str> = beginning.iter().take(5).map(|directory| directory.name.as_str()).collect();
            Err(Failure::usage(format!("{wanted:?} is the beginning of {count} runs: {}", names.join(", ")))
                .help("write more of the name"))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn make(runs_dir: &Path, name: &str, started_at: &str) {
        let directory = create(runs_dir, name).unwrap();
        directory.write_record(&RunRecord { run_id: name.into(), started_at: started_at.into(), ..Default::default() }).unwrap();
    }

    #[test]
    fn runs_are_found_by_name_beginning_and_age() {
        let directory = tempfile::tempdir().unwrap();
        let runs_dir = directory.path().join("runs");
        assert!(find(&runs_dir, "@last").is_err());
        make(&runs_dir, "run-b", "2026-01-01T00:00:00Z");
        make(&runs_dir, "run-a", "2026-01-02T00:00:00.12Z");
        make(&runs_dir, "run-ab", "2026-01-02T00:00:00.1Z");
        fs::create_dir(runs_dir.join("stray")).unwrap();
        assert_eq!(find(&runs_dir, "@last").unwrap().name, "run-a");
        assert_eq!(find(&runs_dir, "run-a").unwrap().name, "run-a", "an exact name wins over a longer one");
        assert_eq!(find(&runs_dir, "run-b").unwrap().name, "run-b");
        assert_eq!(find(&runs_dir, "run-ab").unwrap().name, "run-ab");
        assert!(find(&runs_dir, "run-").unwrap_err().message.contains("3 runs"));
        assert!(find(&runs_dir, "").is_err());
        assert!(find(&runs_dir, "stray").is_err());
        let by_path = runs_dir.join("run-b");
        assert_eq!(find(Path::new("/nowhere"), by_path.to_str().unwrap()).unwrap().name, "run-b");
        assert!(create(&runs_dir, "run-a").unwrap_err().message.contains("exists already"));
    }

    #[test]
    fn names_stay_inside_the_runs_directory() {
        for bad in ["", ".", "..", "../x", "a/b", "-x", "a b", "a\nb", "é", &"x".repeat(129)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        let name = new_name("my project/../x", "2026-11-24T08:09:28Z".parse().unwrap()).unwrap();
        assert!(name.starts_with("run-20261124T080928Z-my-project-..-x-"), "{name}");
        assert!(check_name(&name).is_ok());
    }

    #[test]
    fn the_token_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let run = create(directory.path(), "r").unwrap();
        let (path, token) = make_token(&run).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(token.len(), 64);
        assert_eq!(read_token(&path).unwrap(), token);
        assert!(make_token(&run).is_err(), "an existing token is not overwritten");
    }
}
