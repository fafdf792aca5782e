//! What attempts that execute have written so far, where the run's directory is not seen from here: it is asked for piece by piece, and
//! put where the whole log will be when its attempt has ended.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use scalable_proto::v1;
use tonic::Code;

use crate::run_files::{checked, disk};
use crate::{Client, Error};

/// Tasks whose logs are asked for in one call; of more that execute, those of the first.
const TASKS_MAX: u32 = 1_000;
/// Bytes taken of one stream in one call: who writes faster than that is read again, and does not keep others from being read.
const BYTES_MAX: u64 = 16 << 20;

impl Client {
    /// Fetches what attempts that execute have written since the last call, into the run's directory `into`: of one group where that is not
    /// empty, and of one element of it. At most 1,000 tasks, and 16 MiB of each of their streams. A worker that does not answer now
    /// has nothing new.
    ///
    /// # Errors
    /// The disk; those of a unary call.
    pub async fn fetch_live_logs(&self, run: &str, group: &str, index: Option<u32>, into: &Path) -> Result<(), Error> {
        let request = v1::ListTasksRequest {
            run: run.to_owned(),
            group: group.to_owned(),
            states: vec!["running".to_owned()],
            first: index.unwrap_or(0),
            limit: if index.is_some() { 1 } else { TASKS_MAX },
        };
        for task in self.list_tasks(request).await? {
            if index.is_some_and(|wanted| wanted != task.index) {
                continue;
            }
            for stream in ["stdout", "stderr"] {
                self.fetch_live_log(run, &task, stream, into).await?;
            }
        }
        Ok(())
    }

    async fn fetch_live_log(&self, run: &str, task: &v1::TaskStatus, stream: &str, into: &Path) -> Result<(), Error> {
        let path = format!("logs/{}/{}.{}.{stream}", task.group, task.index, task.attempt);
        let target = into.join(checked(&path)?);
        let here = |error: io::Error| disk(&target, &error);
        // Kept open: when the whole log takes its name meanwhile, what is written goes nowhere.
        let mut file = match File::options().write(true).open(&target) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(here(error)),
        };
        let mut offset = file.as_ref().map_or(Ok(0), |file| file.metadata().map(|found| found.len())).map_err(here)?;
        let end = offset.saturating_add(BYTES_MAX);
        while offset < end {
            let request = v1::ReadLogRequest {
                run: run.to_owned(),
                group: task.group.clone(),
                index: task.index,
                attempt: task.attempt,
                stderr: stream == "stderr",
                offset,
            };
            let data = match self.control().read_log(self.endpoint().request(request)).await {
                Ok(reply) => reply.into_inner().data,
                Err(status) if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted) => {
                    tracing::debug!(%path, %status, "no answer from the attempt's worker");
                    return Ok(());
                }
                Err(status) => return Err(self.failed(status)),
            };
            if data.is_empty() {
                return Ok(());
            }
            let file = match &mut file {
                Some(file) => file,
                None => match begin(&target) {
                    Ok(begun) => file.insert(begun),
                    // The whole log is there by now.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
                    Err(error) => return Err(here(error)),
                },
            };
            // Not appended: another reader of the same log writes the same bytes to the same place.
            file.write_all_at(&data, offset).map_err(here)?;
            offset += data.len() as u64;
        }
        Ok(())
    }
}

fn begin(target: &Path) -> io::Result<File> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    File::create_new(target)
}
