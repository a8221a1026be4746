//! Medians and percentiles of small samples.

/// The middle of the values (the mean of the two middle ones), 0 of none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let sorted = sorted(values);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.len() % 2) {
        (Some(value), 1) => *value,
        (Some(value), _) => f64::midpoint(*value, sorted.get(middle - 1).copied().unwrap_or(*value)),
        (None, _) => 0.0,
    }
}

/// The smallest value that at least `percent` of the values do not exceed (nearest rank), 0 of none.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "ranks of small samples"
)]
pub(crate) fn percentile(values: impl IntoIterator<Item = f64>, percent: f64) -> f64 {
    let sorted = sorted(values);
    let rank = (percent / 100.0 * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).or(sorted.last()).copied().unwrap_or(0.0)
}

fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(left: f64, right: f64) -> bool {
        (left - right).abs() < 1e-9
    }

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        assert!(same(median([3.0, 1.0, 2.0]), 2.0));
        assert!(same(median([4.0, 1.0, 2.0, 3.0]), 2.5));
        assert!(same(median([7.0]), 7.0));
        assert!(same(median([]), 0.0));
    }

    #[test]
    fn percentiles_are_values_of_the_sample() {
        let hundred = || (1..=100).map(f64::from);
        assert!(same(percentile(hundred(), 50.0), 50.0));
        assert!(same(percentile(hundred(), 99.0), 99.0));
        assert!(same(percentile(hundred(), 100.0), 100.0));
        assert!(same(percentile([5.0, 1.0], 99.0), 5.0));
        assert!(same(percentile([], 99.0), 0.0));
    }
}
