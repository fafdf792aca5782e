//! `scalable submit -- COMMAND`: one task for a scheduler that runs already.

use std::collections::HashMap;

use jiff::Timestamp;
use scalable_proto::v1;
use serde_json::json;

use super::Context;
use super::run::finish_watching;
use crate::args::SubmitArgs;
use crate::connect::{self, Place, block_on};
use crate::drive::{Watched, drive};
use crate::exit::{CommandResult, Failure, code};
use crate::interrupt::Signals;
use crate::records::{GroupRecord, RunRecord, SCHEMA_VERSION};
use crate::runs::{self, RunDirectory};

/// Submits the task and, unless told to detach, watches it.
pub fn run(context: &Context, args: &SubmitArgs) -> CommandResult {
    let place = match connect::asked_for(&args.scheduler, &context.runs_dir)? {
        Some(place) => place,
        None => connect::newest(&context.runs_dir)?.1,
    };
    let directory = runs::create(&context.runs_dir, &runs::new_name("submit", Timestamp::now())?)?;
    let record = record(&directory, &place, args);
    directory.write_record(&record)?;
    let outcome = block_on(submit(context, args, &place, &directory));
    match outcome {
        Ok(Some(ended)) => finish_watching(context, &directory, ended),
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
            // A run that never began is over; the scheduler has not taken its record.
            let finished = Some(Timestamp::now().to_string());
            directory.write_record(&RunRecord { status: "failed".to_owned(), finished_at: finished, ..record })?;
            Err(failure)
        }
    }
}

async fn submit(
    context: &Context,
    args: &SubmitArgs,
    place: &Place,
    directory: &RunDirectory,
) -> Result<Option<crate::drive::Ended>, Failure> {
    let mut signals = Signals::new()?;
    let client = place.connect().await?;
    let path = directory.path.display().to_string();
    let here = std::env::current_dir().map_err(|error| Failure::io("find the current directory", &error))?;
    let task = v1::TaskSpec {
        name: args.name.clone(),
        argv: args.command.clone(),
        env: args.env.iter().cloned().collect::<HashMap<_, _>>(),
        resources: Some(v1::Resources {
            milli_cpus: args.cpus,
            memory_bytes: args.memory,
            gpus: args.gpus,
            custom: Vec::new(),
        }),
        policy: Some(v1::Policy {
            retries: args.retries,
            timeout_ms: args.timeout.map_or(0, |timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            ..v1::Policy::default()
        }),
        component: args.component.clone(),
        directory: here.display().to_string(),
        after: Vec::new(),
    };
    let request =
        v1::SubmitTasks { run: directory.name.clone(), client_key: Default::default(), tasks: vec![task], directory: path.clone() };
    client.submit_tasks(request).await?;
    if args.detach {
        return Ok(None);
    }
    let watched =
        Watched { ui: context.ui, client: &client, run: &directory.name, directory: &path, scheduler: None, outlives: true };
    drive(&watched, &mut signals).await.map(Some)
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
