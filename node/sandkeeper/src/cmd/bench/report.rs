//! What is told of the rounds.

use sandkeeper_load::Summary;

use crate::output;

/// The table for people.
pub fn table(rows: &[Summary]) -> String {
    let header = ["WORK", "CALLERS", "/S", "SLOWEST-QUICKEST", "P50 MS", "P99", "P99.9", "MAX", "ERRORS"];
    let lines = rows.iter().map(|told| {
        let millis = |value: f64| format!("{value:.2}");
        vec![
            told.work.clone(),
            told.concurrency.to_string(),
            format!("{:.0}", told.per_second),
            format!("{:.0}-{:.0}", told.per_second_min, told.per_second_max),
            millis(told.p50_ms),
            millis(told.p99_ms),
            millis(told.p999_ms),
            millis(told.max_ms),
            told.errors.values().sum::<u64>().to_string(),
        ]
    });
    output::table(&header, lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_for_each_work_and_concurrency() {
        let row = Summary {
            work: "create".to_owned(),
            concurrency: 16,
            rounds: 3,
            per_second: 200.4,
            per_second_min: 100.0,
            per_second_max: 400.0,
            p50_ms: 2.0,
            p99_ms: 3.456,
            p999_ms: 4.0,
            max_ms: 10.0,
            errors: [("UNAVAILABLE".to_owned(), 1), ("RESOURCE_EXHAUSTED".to_owned(), 2)].into(),
        };
        insta::assert_snapshot!(table(&[row]), @r"
        WORK     CALLERS   /S    SLOWEST-QUICKEST   P50 MS   P99    P99.9   MAX     ERRORS
        create   16        200   100-400            2.00     3.46   4.00    10.00   3
        ");
    }
}
