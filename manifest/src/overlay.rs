//! Overlays: mappings are merged key by key, lists and single values are replaced.

use crate::node::{Node, Value};

/// Lays `over` on `base`. What comes from `over` keeps its own place in the file, so that errors point there.
pub(crate) fn merge(base: &mut Node, over: &Node) {
    match (&mut base.value, &over.value) {
        (Value::Map(entries), Value::Map(new)) => {
            for (key, value) in new {
                match entries.iter_mut().find(|(k, _)| k.text == key.text) {
                    Some((_, old)) => merge(old, value),
                    None => entries.push((key.clone(), value.clone())),
                }
            }
        }
        _ => *base = over.clone(),
    }
}
