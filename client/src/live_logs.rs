//! What attempts that execute have written so far, where the run's directory is not seen from here: it is asked for piece by piece, and
//! put where the whole log will be when its attempt has ended.

use std::fs;
use std::io::Write;
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
        let mut offset = match fs::symlink_metadata(&target) {
            Ok(found) => found.len(),
            Err(_) => 0,
        };
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
            append(&target, &data).map_err(|error| disk(&target, &error))?;
            offset += data.len() as u64;
        }
        Ok(())
    }
}

fn append(target: &Path, data: &[u8]) -> std::io::Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::OpenOptions::new().create(true).append(true).open(target)?.write_all(data)
}
