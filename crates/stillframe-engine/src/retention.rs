//! Which backups a policy keeps, and why.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};
use stillframe_repo::{BackupId, Manifest};

/// How many backups to keep, and of what. A backup is kept that any of the rules keeps; hours, days, weeks (from Monday), months and
/// years are those of UTC, so that every machine decides the same.
#[derive(Debug, Clone, Copy, Default)]
pub struct Retention {
    /// The newest ones.
    pub last: u32,
    /// The newest of each of the newest hours that have any.
    pub hourly: u32,
    /// …of days.
    pub daily: u32,
    /// …of weeks.
    pub weekly: u32,
    /// …of months.
    pub monthly: u32,
    /// …of years.
    pub yearly: u32,
    /// All that are not older than the newest one by more than this. (The newest and not now: where backups have stopped, time alone
    /// takes none.)
    pub within: Option<Span>,
}

impl Retention {
    /// Whether it keeps nothing at all.
    pub fn is_none(&self) -> bool {
        let counts = [self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly];
        self.within.is_none() && counts.iter().all(|count| *count == 0)
    }

    /// Why each of `backups`, which have the same sources, is kept; one that is not named is not. Any order: what counts is the time of the
    /// state that a backup shows. (The time of its making follows that of the one before, whatever clock that was made by.)
    pub(crate) fn keeps(&self, backups: &[&Manifest]) -> BTreeMap<BackupId, Vec<String>> {
        let mut newest_first: Vec<(Zoned, BackupId)> = backups
            .iter()
            .map(|manifest| (manifest.instant().to_zoned(TimeZone::UTC), manifest.id))
            .collect();
        newest_first.sort_unstable_by(|a, b| b.cmp(a));
        let mut kept: BTreeMap<BackupId, Vec<String>> = BTreeMap::new();
        let mut keep = |id: BackupId, why: String| kept.entry(id).or_default().push(why);
        for (number, (_, id)) in newest_first.iter().take(self.last as usize).enumerate() {
            keep(*id, if number == 0 { "last".to_owned() } else { format!("last {}", number + 1) });
        }
        let rules: [(u32, &str, &str); 5] = [
            (self.hourly, "hour", "%Y-%m-%d %Hh"),
            (self.daily, "day", "%Y-%m-%d"),
            (self.weekly, "week", "%G-W%V"),
            (self.monthly, "month", "%Y-%m"),
            (self.yearly, "year", "%Y"),
        ];
        for (count, word, format) in rules {
            let mut seen = BTreeSet::new();
            for (made, id) in &newest_first {
                if seen.len() == count as usize {
                    break;
                }
                let period = made.strftime(format).to_string();
                if seen.insert(period.clone()) {
                    keep(*id, format!("{word} {period}"));
                }
            }
        }
        if let (Some(within), Some((newest, _))) = (self.within, newest_first.first()) {
            let earliest = newest.checked_sub(within).map_or(Timestamp::MIN, |earliest| earliest.timestamp());
            for (made, id) in newest_first.iter().filter(|(made, _)| made.timestamp() >= earliest) {
                keep(
                    *id,
                    format!("within {within:#} of the newest, {}", made.strftime("%Y-%m-%d %H:%M:%SZ")),
                );
            }
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stillframe_repo::{ManifestDraft, SourceManifest};

    use super::*;
    use crate::made_up::backup;

    fn kept(retention: &Retention, made: &[&str]) -> Vec<(String, Vec<String>)> {
        let backups: Vec<Manifest> = (1..)
            .zip(made)
            .map(|(number, made)| backup(number, made.parse().unwrap(), ManifestDraft::default()))
            .collect();
        let keeps = retention.keeps(&backups.iter().collect::<Vec<_>>());
        let mut kept: Vec<_> = backups
            .iter()
            .filter_map(|backup| Some((backup.created.to_string(), keeps.get(&backup.id)?.clone())))
            .collect();
        kept.sort();
        kept
    }

    fn times(kept: &[(String, Vec<String>)]) -> Vec<&str> {
        kept.iter().map(|(made, _)| made.as_str()).collect()
    }

    /// A clock that was a year ahead for one run dates all later backups right after that one.
    #[test]
    fn periods_are_those_of_the_state_that_a_backup_shows() {
        let made: jiff::Timestamp = "2027-11-30T12:00:00Z".parse().unwrap();
        let backups: Vec<Manifest> = (1..=3_u8)
            .map(|day| {
                let instant = format!("2026-11-0{day}T02:00:00Z").parse().unwrap();
                let source = SourceManifest { instant, ..SourceManifest::new("db", "sqlite", "sqlite:/db") };
                let draft = ManifestDraft { sources: vec![source], ..ManifestDraft::default() };
                backup(day, made + jiff::SignedDuration::from_micros(day.into()), draft)
            })
            .collect();
        let daily = Retention { daily: 2, ..Retention::default() };
        let kept = daily.keeps(&backups.iter().collect::<Vec<_>>());
        let reasons: Vec<String> = kept.into_values().flatten().collect();
        assert_eq!(reasons, ["day 2026-11-02", "day 2026-11-03"]);
    }

    #[test]
    fn of_each_period_the_newest_is_kept() {
        let made = [
            "2026-01-01T10:00:00Z",
            "2026-01-01T23:59:59Z",
            "2026-01-02T00:00:00Z",
            "2026-01-05T08:00:00Z",
            "2026-01-05T08:59:00Z",
            "2026-01-05T09:00:00Z",
            "2025-12-31T23:00:00Z",
        ];
        let of = |retention: Retention| kept(&retention, &made);
        let daily = of(Retention { daily: 3, ..Retention::default() });
        assert_eq!(times(&daily), ["2026-01-01T23:59:59Z", "2026-01-02T00:00:00Z", "2026-01-05T09:00:00Z"]);
        assert_eq!(daily[0].1, ["day 2026-01-01"]);
        let hourly = of(Retention { hourly: 2, ..Retention::default() });
        assert_eq!(times(&hourly), ["2026-01-05T08:59:00Z", "2026-01-05T09:00:00Z"]);
        // The last of December and the first of January are of one week, whose year is 2026.
        let weekly = of(Retention { weekly: 9, ..Retention::default() });
        assert_eq!(
            weekly.iter().map(|(_, why)| why[0].as_str()).collect::<Vec<_>>(),
            ["week 2026-W01", "week 2026-W02"]
        );
        let yearly = of(Retention { yearly: 2, monthly: 1, last: 1, ..Retention::default() });
        assert_eq!(times(&yearly), ["2025-12-31T23:00:00Z", "2026-01-05T09:00:00Z"]);
        assert_eq!(yearly[1].1, ["last", "month 2026-01", "year 2026"]);
        assert!(of(Retention::default()).is_empty() && Retention::default().is_none());
    }

    #[test]
    fn time_is_counted_from_the_newest_and_not_from_now() {
        let made = ["2020-01-01T00:00:00Z", "2020-01-31T00:00:00Z", "2020-02-29T00:00:00Z"];
        let within = |text: &str| Retention { within: Some(text.parse().unwrap()), ..Retention::default() };
        assert_eq!(times(&kept(&within("1 month"), &made)), ["2020-01-31T00:00:00Z", "2020-02-29T00:00:00Z"]);
        assert_eq!(times(&kept(&within("28d"), &made)), ["2020-02-29T00:00:00Z"]);
        assert_eq!(kept(&within("1y"), &made).len(), 3);
        assert_eq!(kept(&within("9000y"), &made).len(), 3, "before the beginning of all times");
    }

    proptest! {
        /// More of anything never keeps less, and the newest is kept by every rule.
        #[test]
        fn more_never_keeps_less(
            seconds in proptest::collection::vec(0_i64..200_000_000, 1..40),
            counts in proptest::array::uniform6(0_u32..5),
            more in proptest::array::uniform6(0_u32..3),
        ) {
            let retention = |counts: [u32; 6]| Retention {
                last: counts[0], hourly: counts[1], daily: counts[2], weekly: counts[3], monthly: counts[4], yearly: counts[5],
                within: None,
            };
            let made: Vec<String> = seconds.iter().map(|s| Timestamp::from_second(*s).unwrap().to_string()).collect();
            let made: Vec<&str> = made.iter().map(String::as_str).collect();
            let few = kept(&retention(counts), &made);
            let larger: Vec<u32> = counts.iter().zip(more).map(|(a, b)| a + b).collect();
            let many = kept(&retention(larger.try_into().unwrap()), &made);
            let many: BTreeSet<&String> = many.iter().map(|(made, _)| made).collect();
            prop_assert!(few.iter().all(|(made, _)| many.contains(made)));
            if counts.iter().any(|count| *count > 0) {
                let newest = Timestamp::from_second(*seconds.iter().max().unwrap()).unwrap().to_string();
                prop_assert!(few.iter().any(|(made, _)| *made == newest));
            }
        }
    }
}
