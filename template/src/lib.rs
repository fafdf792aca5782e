//! What one element of a group means: its parameters, its readable name, its command, its key.
//!
//! Pure functions over the wire's types, used alike by the command line (plan, explain), the scheduler (names of outputs) and the
//! worker (commands, keys). No I/O, no YAML. Everything here takes data a peer may have sent: malformed input is an error, never a
//! panic, and every size is bounded before it is used.
#![forbid(unsafe_code)]

mod key;
mod name;
mod projection;
mod render;
mod shell;
mod space;
mod task_name;

pub use key::{InputDigests, KEY_VERSION, Key, key};
pub use name::{ELEMENT_NAME_BYTES_MAX, file_safe};
pub use projection::{Axes, ProjectionError, projection_upstream};
pub use render::{Builtins, Context, RenderError, Rendered, format_cpus, needs_directory, render, render_text};
pub use shell::{ShellError, check_shell, quote, quote_argv};
pub use space::{PARAMETERS_MAX, Space, SpaceError, TASKS_MAX};
pub use task_name::{Element, TaskName, TaskNameError, parse_task_name};
