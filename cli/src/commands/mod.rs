//! A file a command.

pub mod attach;
pub mod cancel;
pub mod completions;
pub mod down;
pub mod explain;
pub mod k8s;
pub mod logs;
pub mod plan;
pub mod report;
pub mod retry;
pub mod run;
pub mod shell;
pub mod status;
pub mod submit;
pub mod validate;
pub mod version;

use std::path::{Path, PathBuf};

use crate::ui::Ui;

/// What every command is given besides its own arguments.
#[derive(Clone, Debug)]
pub struct Context {
    /// Where output goes.
    pub ui: Ui,
    /// Where run directories lie.
    pub runs_dir: PathBuf,
}

impl Context {
    /// ` --runs-dir DIR` for a command that is to be typed, where the runs are not in the usual place.
    pub fn runs_dir_option(&self) -> String {
        let usual = self.runs_dir == Path::new(".scalable/runs") || std::env::var_os("SCALABLE_RUNS_DIR").is_some();
        if usual {
            String::new()
        } else {
            format!(" --runs-dir {}", scalable_template::quote(&self.runs_dir.display().to_string()))
        }
    }
}
