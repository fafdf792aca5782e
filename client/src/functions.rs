//! The functions of this program: every `#[scalable::task]` of it and of the crates it is linked with, found without a central
//! list. `inventory` collects them: each is put into a list by a few instructions that run before `main`. (`linkme` would do it
//! without, but needs a section of the linker's that is dropped or kept depending on platform and flags.)

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::function::Task;
use crate::macro_support::Registered;
use crate::session::refused;
use crate::signature;
use crate::{Error, codec};

/// How often a name is used.
static NAMES: LazyLock<HashMap<&'static str, u32>> = LazyLock::new(|| {
    let mut names = HashMap::new();
    for Registered(function) in inventory::iter::<Registered> {
        *names.entry(function.name).or_insert(0) += 1;
    }
    names
});

/// The signature of a task, when it can be called at all.
///
/// # Errors
/// [`Error::Refused`] when its name is used twice, or when one of its types cannot travel.
pub(crate) fn signature<F: Task>() -> Result<[u8; 32], Error> {
    let name = F::FUNCTION.name;
    if NAMES.get(name).is_some_and(|count| *count > 1) {
        let message = format!("two tasks of this program are named {name}");
        return Err(refused("NAME_USED_TWICE", message, "give one of them another name: #[scalable::task(name = \"…\")]"));
    }
    signature::checked::<F>().map_err(|message| {
        let help = format!("{} needs types that do not ask the format what comes next: no untagged, no flatten", codec::NAME);
        refused("TYPE_CANNOT_TRAVEL", format!("{name}: {message}"), &help)
    })
}
