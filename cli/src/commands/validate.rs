//! `scalable validate`.

use super::Context;
use crate::args::ValidateArgs;
use crate::diagnostics;
use crate::exit::{CommandResult, code};
use crate::workflow;

/// Says everything that is wrong with a manifest, in one go; what only the plan can know too.
pub fn run(context: &Context, args: &ValidateArgs) -> CommandResult {
    let loaded = workflow::read(&args.manifest);
    let (found, plan) = workflow::judge(&loaded);
    let ok = plan.is_some();
    if context.ui.json() {
        let mut document = serde_json::json!({ "schema": "scalable.validate.v1", "manifest": args.manifest.manifest });
        let findings = scalable_manifest::report(&found);
        for key in ["ok", "errors", "warnings"] {
            document[key] = findings[key].clone();
        }
        context.ui.out_json(&document)?;
    } else {
        workflow::show_diagnostics(context.ui, &args.manifest.manifest, &loaded.source_text, &found);
        let word = if ok { "is valid" } else { "is not valid" };
        context.ui.out(format!("{} {word}: {}", args.manifest.manifest.display(), diagnostics::count(&found)))?;
    }
    Ok(if ok { code::OK } else { code::USAGE })
}
