//! Medians, percentiles and spreads.

/// The value below which the fraction `p` of `values` lies (nearest rank); 0 without any.
pub fn percentile(values: &[f64], p: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (p * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).or(sorted.last()).copied().unwrap_or(0.0)
}

/// The middle one; of an even number the mean of the two in the middle; 0 without any.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len() / 2, sorted.len() % 2) {
        (_, _) if sorted.is_empty() => 0.0,
        (middle, 1) => sorted[middle],
        (middle, _) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The smallest and the largest; zeros without any.
pub fn spread(values: &[f64]) -> [f64; 2] {
    [percentile(values, 0.0), percentile(values, 1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[f64], expected_median: f64, expected_p99: f64, expected_spread: [f64; 2]) {
        assert_eq!(median(values), expected_median, "{values:?}");
        assert_eq!(percentile(values, 0.99), expected_p99, "{values:?}");
        assert_eq!(spread(values), expected_spread, "{values:?}");
    }

    #[test]
    fn figures_of_a_few_values() {
        check(&[], 0.0, 0.0, [0.0, 0.0]);
        check(&[7.0], 7.0, 7.0, [7.0, 7.0]);
        check(&[3.0, 1.0], 2.0, 3.0, [1.0, 3.0]);
        check(&[5.0, 1.0, 4.0, 2.0, 3.0], 3.0, 5.0, [1.0, 5.0]);
    }

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!([0.5, 0.99, 0.995, 1.0].map(|p| percentile(&values, p)), [100.0, 198.0, 199.0, 200.0]);
    }
}
