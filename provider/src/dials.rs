//! The planner's dials on their way from a manifest to the scheduler's command line: JSON, durations in milliseconds, what is absent
//! has its default.

use scalable_core::planner::Parameters;
use serde::{Deserialize, Serialize};

/// How pools scale. [`Parameters`] says what each dial means; its bounds hold here too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "each has the name and the meaning of the planner's")]
pub struct Dials {
    pub target_duration_ms: Option<u64>,
    pub expected_duration_ms: Option<u64>,
    pub expected_start_ms: Option<u64>,
    pub scale_down_delay_ms: Option<u64>,
    pub idle_timeout_ms: Option<u64>,
    pub scale_up_burst: Option<u32>,
    pub scale_up_interval_ms: Option<u64>,
    pub max_unschedulable: Option<u32>,
    pub unschedulable_grace_ms: Option<u64>,
    pub unschedulable_probe: Option<u32>,
    pub start_failures: Option<u32>,
    /// Most workers of all pools together.
    pub max_total: Option<u32>,
    /// Least workers of a local pool; pools of a platform say it themselves.
    pub minimum: Option<u32>,
    /// Most workers of a local pool.
    pub maximum: Option<u32>,
}

impl Dials {
    /// Reads them.
    ///
    /// # Errors
    /// What is no such JSON, or out of its bounds.
    pub fn parse(json: &str) -> Result<Dials, String> {
        let dials: Dials = serde_json::from_str(json).map_err(|error| error.to_string())?;
        dials.parameters().check()?;
        Ok(dials)
    }

    /// What a manifest says.
    pub fn of(parameters: &Parameters, max_total: Option<u32>) -> Dials {
        Dials {
            target_duration_ms: Some(parameters.target_duration / 1000),
            expected_duration_ms: Some(parameters.expected_duration / 1000),
            expected_start_ms: Some(parameters.expected_start / 1000),
            scale_down_delay_ms: Some(parameters.scale_down_delay / 1000),
            idle_timeout_ms: Some(parameters.idle_timeout / 1000),
            scale_up_burst: Some(parameters.scale_up_burst),
            scale_up_interval_ms: Some(parameters.scale_up_interval / 1000),
            max_unschedulable: Some(parameters.max_unschedulable),
            unschedulable_grace_ms: Some(parameters.unschedulable_grace / 1000),
            unschedulable_probe: Some(parameters.unschedulable_probe),
            start_failures: Some(parameters.start_failures),
            max_total,
            minimum: None,
            maximum: None,
        }
    }

    /// As the planner takes them.
    pub fn parameters(&self) -> Parameters {
        let base = Parameters::DEFAULT;
        let micros = |millis: Option<u64>, default| millis.map_or(default, |millis: u64| millis.saturating_mul(1000));
        Parameters {
            target_duration: micros(self.target_duration_ms, base.target_duration),
            expected_duration: micros(self.expected_duration_ms, base.expected_duration),
            expected_start: micros(self.expected_start_ms, base.expected_start),
            scale_down_delay: micros(self.scale_down_delay_ms, base.scale_down_delay),
            idle_timeout: micros(self.idle_timeout_ms, base.idle_timeout),
            scale_up_burst: self.scale_up_burst.unwrap_or(base.scale_up_burst),
            scale_up_interval: micros(self.scale_up_interval_ms, base.scale_up_interval),
            max_unschedulable: self.max_unschedulable.unwrap_or(base.max_unschedulable),
            unschedulable_grace: micros(self.unschedulable_grace_ms, base.unschedulable_grace),
            unschedulable_probe: self.unschedulable_probe.unwrap_or(base.unschedulable_probe),
            start_failures: self.start_failures.unwrap_or(base.start_failures),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_s_dials_come_through() {
        let parameters = Parameters { target_duration: 5_000_000, scale_up_burst: 7, ..Parameters::DEFAULT };
        let json = serde_json::to_string(&Dials::of(&parameters, Some(9))).expect("plain figures");
        let read = Dials::parse(&json).expect("it is its own");
        assert_eq!((read.parameters(), read.max_total), (parameters, Some(9)));
        assert_eq!(Dials::parse("{}").expect("all have defaults").parameters(), Parameters::DEFAULT);
    }

    #[test]
    fn what_is_unknown_or_out_of_bounds_is_refused() {
        assert!(Dials::parse(r#"{"minimun": 1}"#).is_err_and(|problem| problem.contains("minimun")));
        assert!(Dials::parse(r#"{"target_duration_ms": 0}"#).is_err_and(|problem| problem.contains("target_duration")));
    }
}
