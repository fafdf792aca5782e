//! Command tasks, and the start of things.

use std::fmt::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::TWO_SLOTS;
use crate::limits::rows::from_a_shell;
use crate::table::{Measure, Scale};
use crate::whole::{Tasks, Whole};

/// Files of the row `touch`.
const FILES: u32 = 2000;

/// Processes of one run of the row `command`.
pub fn count(scale: &Scale) -> u32 {
    scale.of(6000, 2000)
}

/// No-op commands through scheduler and worker, tasks a second.
pub fn command(scale: &Scale) -> Result<Measure> {
    let mut whole = Whole::with(&scale.programs, TWO_SLOTS, &[])?;
    let count = count(scale);
    let tasks = Tasks { argv: &["/bin/true"], ..Tasks::default() };
    Ok(Box::new(move || Ok((f64::from(count) / whole.run(count, tasks)?.as_secs_f64()).into())))
}

/// `scalable run` of a manifest with one `foreach`, from its start to its end, seconds.
pub fn touch(scale: &Scale) -> Result<Measure> {
    let program = scale.programs.join("scalable");
    let mut manifest =
        String::from("version: 1\nproject: { name: touch }\ntargets:\n  local: { provider: local, max_workers: 2 }\n");
    write!(
        manifest,
        "components:\n  shell: {{ cpus: 1 }}\ntasks:\n  touch:\n    component: shell\n    foreach: {{ i: {{ range: [0, {FILES}] }} }}\n    \
         command: [touch, \"{{outputs.file}}\"]\n    outputs: {{ file: file }}\n"
    )?;
    Ok(Box::new(move || {
        let directory = tempfile::tempdir()?;
        std::fs::write(directory.path().join("scalable.yaml"), &manifest)?;
        let begin = Instant::now();
        let output = Command::new(&program)
            .args(["run", "scalable.yaml", "--target", "local", "--no-progress", "--name", "run-touch"])
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("start {}", program.display()))?;
        let seconds = begin.elapsed().as_secs_f64();
        ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        let outputs = directory.path().join(".scalable/runs/run-touch/outputs/touch");
        let files = std::fs::read_dir(&outputs).with_context(|| format!("read {}", outputs.display()))?.count();
        ensure!(files == FILES as usize, "{files} outputs instead of {FILES}");
        Ok(seconds.into())
    }))
}

/// A session with processes of its own and two workers, to the first result, ms.
pub fn start(scale: &Scale) -> Result<Measure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // SAFETY: nothing else runs in this process yet.
    unsafe { std::env::set_var("SCALABLE_BIN_DIR", &scale.programs) };
    Ok(Box::new(move || {
        runtime.block_on(async {
            let begin = Instant::now();
            let session = scalable::Session::start().workers(2).cpus(1).await?;
            // Ready is who has answered.
            let one = session.submit(super::functions::noop, (1,)).await?;
            ensure!(one.await? == 1, "a wrong result");
            Ok((begin.elapsed().as_secs_f64() * 1e3).into())
        })
    }))
}

/// `scalable --help` from a shell, ms.
pub fn help(scale: &Scale) -> Result<Measure> {
    let command = format!("'{}' --help", scale.programs.join("scalable").display());
    Ok(Box::new(move || Ok(from_a_shell(&command)?.into())))
}
