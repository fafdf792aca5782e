//! `scalable version`.

use serde_json::json;

use super::Context;
use crate::exit::{CommandResult, code};

/// Prints the version of the program, of the protocol and of the manifest.
pub fn run(context: &Context) -> CommandResult {
    let version = env!("CARGO_PKG_VERSION");
    let protocol = scalable_proto::PROTOCOL;
    if context.ui.json() {
        context.ui.out_json(&json!({
            "schema": "scalable.version.v1",
            "version": version,
            "protocol": { "min": protocol.start(), "max": protocol.end() },
            "manifest": 1,
        }))?;
    } else {
        context.ui.out(format!(
            "scalable {version} (protocol {} to {}, manifest version 1)",
            protocol.start(),
            protocol.end()
        ))?;
    }
    Ok(code::OK)
}
