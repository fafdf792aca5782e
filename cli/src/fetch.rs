//! A scheduler that does not see this machine's disk: what a run needs is brought to it before the submit, and what the run leaves comes
//! into the run's directory here when it is over.

use std::fs;
use std::path::Path;

use scalable::{Client, FetchedFiles};
use serde_json::{Map, Value};

use crate::exit::Failure;
use crate::records;
use crate::runs::RunDirectory;
use crate::ui::Ui;

/// What run.json says only while its run lives.
const ONLY_LIVE: [&str; 5] = ["address", "http", "token_file", "pids", "submitted"];

/// Brings the files of a submission to the scheduler's store.
///
/// # Errors
/// What could not be brought.
pub async fn bring_files(
    client: &Client,
    directory: &RunDirectory,
    files: &[scalable_manifest::FileToStore],
) -> Result<(), Failure> {
    for file in files {
        let name: String = file.digest.iter().map(|byte| format!("{byte:02x}")).collect();
        client.bring_file(&directory.file("files").join(name), file.digest, file.size).await?;
    }
    Ok(())
}

/// Fetches what a run has left on the scheduler's side into its directory here, and says there that it is here.
///
/// # Errors
/// What could not be fetched. What has come is kept, and another call goes on from there.
pub async fn fetch_run(ui: Ui, client: &Client, directory: &RunDirectory) -> Result<FetchedFiles, Failure> {
    let own = read(&directory.file("run.json"));
    let mut told = 0;
    let fetched = client
        .fetch_run(&directory.name, &directory.path, |so_far| {
            if so_far.files >= told + 1000 {
                told = so_far.files;
                ui.say(format!("fetched {} files, {} bytes", so_far.files, so_far.bytes));
            }
        })
        .await?;
    // The scheduler knows how the run went, this side where it came from.
    let path = directory.file("run.json");
    let merged = merged(own, read(&path));
    records::write_json(&path, &Value::Object(merged))
        .map_err(|error| Failure::io(format!("write {}", path.display()), &error))?;
    client.acknowledge_run(&directory.name).await?;
    Ok(fetched)
}

fn read(path: &Path) -> Map<String, Value> {
    fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

fn merged(mut own: Map<String, Value>, theirs: Map<String, Value>) -> Map<String, Value> {
    for key in ONLY_LIVE {
        own.shift_remove(key);
    }
    for (key, value) in theirs {
        // Paths of the other machine mean nothing here.
        if key != "base_directory" || !own.contains_key(&key) {
            own.insert(key, value);
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_sides_of_run_json_are_kept_where_they_know_better() {
        let object = |value: Value| value.as_object().cloned().unwrap_or_default();
        let own =
            object(json!({ "status": "running", "address": "x", "source_manifest_path": "m.yaml", "base_directory": "/here" }));
        let theirs = object(json!({ "status": "completed", "base_directory": "/there", "finished_at": "now" }));
        let expected = object(json!({
            "status": "completed", "source_manifest_path": "m.yaml", "base_directory": "/here", "finished_at": "now"
        }));
        assert_eq!(merged(own, theirs), expected);
    }
}
