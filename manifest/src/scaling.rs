//! `n_workers` and `adaptive` of the cluster providers: how many workers a pool has, and how it scales.

use crate::diagnostic::Sink;
use crate::fields::Fields;
use crate::model::{Scaling, Target};

/// Most workers of a cluster.
const WORKERS_MAX: i64 = 100_000;

/// Keys of the section `adaptive`.
pub(crate) const KEYS: [&str; 14] = [
    "minimum",
    "maximum",
    "max_total",
    "target_duration",
    "expected_duration",
    "expected_start",
    "scale_down_delay",
    "idle_timeout",
    "scale_up_burst",
    "scale_up_interval",
    "max_unschedulable",
    "unschedulable_grace",
    "unschedulable_probe",
    "start_failures",
];

/// Reads both. `adaptive` wins; the original's `true` is 1 to 10 workers.
pub(crate) fn workers(fields: &Fields<'_>, target: &mut Target, sink: &mut Sink) {
    let count = fields.int("n_workers", 1..=WORKERS_MAX, "E_BAD_N_WORKERS", sink).unwrap_or(1) as u32;
    (target.workers_min, target.workers_max) = (count, count);
    let Some(node) = fields.get("adaptive") else { return };
    if let Some(on) = node.as_bool() {
        (target.workers_min, target.workers_max) = if on { (1, 10) } else { (count, count) };
        return;
    }
    let Some(adaptive) = Fields::open(node, &fields.child("adaptive"), sink) else { return };
    adaptive.only(&KEYS, sink);
    let mut int = |key: &str, least: i64, most: i64| {
        adaptive.int(key, least..=most, "E_BAD_ADAPTIVE", sink).and_then(|count| u32::try_from(count).ok())
    };
    let minimum = int("minimum", 0, WORKERS_MAX).unwrap_or(1);
    let maximum = int("maximum", 1, WORKERS_MAX).unwrap_or(minimum.max(10));
    let mut scaling = Scaling { max_total: int("max_total", 1, WORKERS_MAX), ..Scaling::default() };
    let parameters = &mut scaling.parameters;
    for (key, field) in [
        ("scale_up_burst", &mut parameters.scale_up_burst),
        ("max_unschedulable", &mut parameters.max_unschedulable),
        ("unschedulable_probe", &mut parameters.unschedulable_probe),
        ("start_failures", &mut parameters.start_failures),
    ] {
        *field = int(key, 1, i64::from(u32::MAX)).unwrap_or(*field);
    }
    for (key, field) in [
        ("target_duration", &mut parameters.target_duration),
        ("expected_duration", &mut parameters.expected_duration),
        ("expected_start", &mut parameters.expected_start),
        ("scale_down_delay", &mut parameters.scale_down_delay),
        ("idle_timeout", &mut parameters.idle_timeout),
        ("scale_up_interval", &mut parameters.scale_up_interval),
        ("unschedulable_grace", &mut parameters.unschedulable_grace),
    ] {
        *field = adaptive.duration(key, sink).map_or(*field, |millis| millis.saturating_mul(1000));
    }
    if minimum > maximum {
        let message = format!("'{}': minimum {minimum} is above maximum {maximum}", adaptive.path);
        sink.error("E_BAD_ADAPTIVE", &adaptive.path, adaptive.at, message);
    }
    if let Err(problem) = scaling.parameters.check() {
        sink.error("E_BAD_ADAPTIVE", &adaptive.path, adaptive.at, format!("'{}': {problem}", adaptive.path));
    }
    (target.workers_min, target.workers_max) = (minimum, maximum.max(minimum));
    target.scaling = scaling;
}
