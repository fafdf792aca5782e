//! `scalable submit -- COMMAND`: one task for a scheduler that runs already.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::path::Path;

use jiff::Timestamp;
use scalable_proto::v1;
use serde_json::json;

use super::Context;
use super::run::finish_watching;
use crate::args::SubmitArgs;
use crate::connect::{self, Place, block_on};
use crate::drive::{End, Watched, drive};
use crate::exit::{CommandResult, Failure, code};
use crate::interrupt::Signals;
use crate::records::{self, GroupRecord, RunRecord, SCHEMA_VERSION, TaskRecord};
use crate::runs::{self, RunDirectory};
use crate::ui::harmless;

/// Bytes of a line that are copied at a time.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// Submits the task and, unless told to detach, watches it.
pub fn run(context: &Context, args: &SubmitArgs) -> CommandResult {
    let place = match connect::asked_for(&args.scheduler, &context.runs_dir)? {
        Some(place) => place,
        None => connect::newest(&context.runs_dir)?.1,
    };
    let directory = runs::create(&context.runs_dir, &runs::new_name("submit", Timestamp::now())?)?;
    let mut record = record(&directory, &place, args);
    directory.write_record(&record)?;
    let outcome = block_on(submit(context, args, &place, &directory, &mut record));
    match outcome {
        Ok(Some(ended)) if context.ui.json() || !matches!(ended.end, End::Over) => finish_watching(context, &directory, ended),
        Ok(Some(ended)) => {
            show_streams(&directory, args)?;
            context.ui.say(format!("{} {}", directory.name, super::status::state_word(ended.progress.state())));
            Ok(ended.exit_code())
        }
        Ok(None) => {
            if context.ui.json() {
                let document = json!({ "schema": "scalable.submitted.v1", "run": directory.name, "directory": directory.path });
                context.ui.out_json(&document)?;
            } else {
                context.ui.out(&directory.name)?;
            }
            Ok(code::OK)
        }
        Err(failure) => {
            if record.submitted {
                return Err(failure);
            }
            // A run that never began is over; the scheduler has not taken its record.
            let finished = Some(Timestamp::now().to_string());
            directory.write_record(&RunRecord { status: "failed".to_owned(), finished_at: finished, ..record })?;
            Err(failure)
        }
    }
}

/// What the attempt that counts has written, to the streams it was written to: the one that succeeded, else the last that wrote anything.
/// Its number may be any: an attempt whose worker left or was lost is no retry.
fn show_streams(directory: &RunDirectory, args: &SubmitArgs) -> Result<(), Failure> {
    let logs = directory.file("logs").join(&args.name);
    let Some(attempt) = attempt_that_succeeded(directory).or_else(|| last_attempt_with_logs(&logs)) else { return Ok(()) };
    let open = |stream: &str| File::open(logs.join(format!("0.{attempt}.{stream}"))).ok();
    copy_to(open("stdout"), io::stdout().lock(), io::stdout().is_terminal())?;
    copy_to(open("stderr"), io::stderr().lock(), io::stderr().is_terminal())
}

fn attempt_that_succeeded(directory: &RunDirectory) -> Option<u32> {
    let mut tasks = records::read_lines::<TaskRecord>(&directory.file("tasks.jsonl")).ok()?;
    tasks.find(|task| task.state == "succeeded").map(|task| task.attempt)
}

fn last_attempt_with_logs(logs: &Path) -> Option<u32> {
    let names = fs::read_dir(logs).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| name.strip_prefix("0.")?.split_once('.')?.0.parse().ok()).max()
}

fn copy_to(from: Option<File>, mut to: impl Write, terminal: bool) -> Result<(), Failure> {
    let Some(from) = from else { return Ok(()) };
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    while Read::by_ref(&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? > 0 {
        if terminal {
            to.write_all(harmless(&String::from_utf8_lossy(&line)).as_bytes())?;
        } else {
            to.write_all(&line)?;
        }
        line.clear();
    }
    Ok(to.flush()?)
}

async fn submit(
    context: &Context,
    args: &SubmitArgs,
    place: &Place,
    directory: &RunDirectory,
    record: &mut RunRecord,
) -> Result<Option<crate::drive::Ended>, Failure> {
    let mut signals = Signals::new()?;
    let client = place.connect().await?;
    let path = directory.path.display().to_string();
    let fetched = !client.shares(&directory.path).await?;
    if fetched {
        record.fetched = true;
        "running".clone_into(&mut record.status);
        directory.write_record(record)?;
    }
    let here = std::env::current_dir().map_err(|error| Failure::io("find the current directory", &error))?;
    let task = v1::TaskSpec {
        name: args.name.clone(),
        argv: args.command.clone(),
        env: args.env.iter().cloned().collect::<HashMap<_, _>>(),
        resources: Some(v1::Resources { milli_cpus: args.cpus, memory_bytes: args.memory, gpus: args.gpus, custom: Vec::new() }),
        policy: Some(v1::Policy {
            retries: args.retries,
            timeout_ms: args.timeout.map_or(0, |timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            ..v1::Policy::default()
        }),
        component: args.component.clone(),
        // Elsewhere there is no such directory: the task works in one of its own.
        directory: if fetched { String::new() } else { here.display().to_string() },
        after: Vec::new(),
    };
    let request = v1::SubmitTasks {
        run: directory.name.clone(),
        client_key: Default::default(),
        tasks: vec![task],
        directory: path.clone(),
        fetched,
    };
    client.submit_tasks(request).await?;
    if fetched {
        record.submitted = true;
        directory.write_record(record)?;
    }
    if args.detach {
        return Ok(None);
    }
    let watched =
        Watched { ui: context.ui, client: &client, run: &directory.name, directory: &path, scheduler: None, outlives: true };
    let ended = drive(&watched, &mut signals).await?;
    if fetched && matches!(ended.end, End::Over) {
        signals.unless(crate::fetch::fetch_run(context.ui, &client, directory)).await?;
    }
    Ok(Some(ended))
}

fn record(directory: &RunDirectory, place: &Place, args: &SubmitArgs) -> RunRecord {
    RunRecord {
        schema_version: SCHEMA_VERSION,
        run_id: directory.name.clone(),
        project_name: "submit".to_owned(),
        started_at: Timestamp::now().to_string(),
        status: "starting".to_owned(),
        address: Some(place.address.clone()),
        token_file: Some(place.token_file.display().to_string()),
        groups: vec![GroupRecord { name: args.name.clone(), length: 1, parameters: Vec::new() }],
        tasks_recorded: "all".to_owned(),
        ..RunRecord::default()
    }
}
