//! The dials of the adaptive planner: the `adaptive` section of a target.

use crate::ids::{Micros, SECOND};

/// How eagerly a pool scales. Every duration is in micros; the key of the manifest's `adaptive` section has the field's name.
/// [`Parameters::check`] says whether the figures are within their bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// How soon queued work should be done once workers have started: the price of speed. The window is one worker start plus
    /// this. Larger is thriftier and slower. 60 s; 1 s to 24 h.
    pub target_duration: Micros,
    /// How long a task is taken to last before anything is known about its group. Runtimes seen and the manifest's own word on a
    /// group come before it. 15 s; 1 ms to 24 h.
    pub expected_duration: Micros,
    /// How long a worker takes from its creation to its registration, until three have done so. 60 s; 1 ms to 1 h.
    pub expected_start: Micros,
    /// A worker is let go only when, for this long, fewer were wanted than there are. 60 s; 0 to 24 h.
    pub scale_down_delay: Micros,
    /// ... and when it has been idle for this long. 30 s; 0 to 24 h.
    pub idle_timeout: Micros,
    /// Within [`Parameters::scale_up_interval`] at most this many workers are created, or as many as there are, whichever is
    /// more. The minimum is created at once. 10; 1 to 10,000.
    pub scale_up_burst: u32,
    /// See [`Parameters::scale_up_burst`]. 15 s; 0 to 1 h.
    pub scale_up_interval: Micros,
    /// No worker is created while this many of the pool wait for room in the cluster. 10; 1 to 10,000.
    pub max_unschedulable: u32,
    /// After this long without room those above [`Parameters::unschedulable_probe`] are given up until one gets room.
    /// 300 s; 1 s to 24 h.
    pub unschedulable_grace: Micros,
    /// How many go on waiting for room. 3; 1 to 10,000.
    pub unschedulable_probe: u32,
    /// After this many starts in a row failed the pool is paused: one worker at a time is tried after each wait. Also the number
    /// of workers stuck in their start at which no more are created. 3; 1 to 100.
    pub start_failures: u32,
}

impl Parameters {
    /// The defaults.
    pub const DEFAULT: Parameters = Parameters {
        target_duration: 60 * SECOND,
        expected_duration: 15 * SECOND,
        expected_start: 60 * SECOND,
        scale_down_delay: 60 * SECOND,
        idle_timeout: 30 * SECOND,
        scale_up_burst: 10,
        scale_up_interval: 15 * SECOND,
        max_unschedulable: 10,
        unschedulable_grace: 300 * SECOND,
        unschedulable_probe: 3,
        start_failures: 3,
    };

    /// Checks every bound.
    ///
    /// # Errors
    /// Key, figure and bounds of the first that is out of them. The planner itself takes any figures.
    pub fn check(&self) -> Result<(), String> {
        const HOUR: Micros = 3600 * SECOND;
        const DAY: Micros = 24 * HOUR;
        let duration = |key: &str, value: Micros, least: Micros, most: Micros| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(format!("{key} is {} ms, must be {} to {} ms", value / 1000, least / 1000, most / 1000))
        };
        let count = |key: &str, value: u32, most: u32| {
            if (1..=most).contains(&value) { Ok(()) } else { Err(format!("{key} is {value}, must be 1 to {most}")) }
        };
        duration("target_duration", self.target_duration, SECOND, DAY)?;
        duration("expected_duration", self.expected_duration, SECOND / 1000, DAY)?;
        duration("expected_start", self.expected_start, SECOND / 1000, HOUR)?;
        duration("scale_down_delay", self.scale_down_delay, 0, DAY)?;
        duration("idle_timeout", self.idle_timeout, 0, DAY)?;
        count("scale_up_burst", self.scale_up_burst, 10_000)?;
        duration("scale_up_interval", self.scale_up_interval, 0, HOUR)?;
        count("max_unschedulable", self.max_unschedulable, 10_000)?;
        duration("unschedulable_grace", self.unschedulable_grace, SECOND, DAY)?;
        count("unschedulable_probe", self.unschedulable_probe, 10_000)?;
        count("start_failures", self.start_failures, 100)
    }
}

impl Default for Parameters {
    fn default() -> Self {
        Self::DEFAULT
    }
}
