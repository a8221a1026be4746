//! The bars that Stillframe is held to, against what was measured.

use crate::captures::Captures;
use crate::foreground;
use crate::open_loop::Felt;
use crate::part::Part;
use crate::results::{Facts, Results, Row, Work};
use crate::statistics::median;
use crate::tool_name::ToolName::{self, Cp, Ldb, Polite, Restic, Stillframe};

const MIB: f64 = 1_048_576.0;

/// One bar and how it came out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    /// What was done, on what.
    pub(crate) work: String,
    /// What is asked.
    pub(crate) bar: String,
    /// What was found.
    pub(crate) found: String,
    /// Whether that is enough.
    pub(crate) met: bool,
}

/// All bars of which both sides were measured.
pub(crate) fn verdicts(results: &Results) -> Vec<Verdict> {
    let mut bars = Bars { results, verdicts: Vec::new() };
    for captures in &results.captures {
        bars.capture(captures);
    }
    bars.foreground();
    bars.full();
    for part in [Part::Half, Part::Incompressible, Part::Tables] {
        bars.unchanged(part);
        bars.changed(part);
    }
    bars.unchanged(Part::Fjall);
    bars.sqlite();
    for part in [Part::Half, Part::Incompressible, Part::Fjall, Part::Sqlite, Part::Tables] {
        bars.faster("restore", part, Work::Restore, Stillframe, Cp, 0.9);
        bars.faster("restore", part, Work::Restore, Stillframe, Restic, 1.5);
    }
    bars.memory();
    bars.verdicts
}

struct Bars<'a> {
    results: &'a Results,
    verdicts: Vec<Verdict>,
}

impl Bars<'_> {
    fn say(&mut self, work: String, bar: String, found: String, met: bool) {
        self.verdicts.push(Verdict { work, bar, found, met });
    }

    /// At most that many seconds.
    fn within(&mut self, work: String, bar: &str, found: f64, allowed: f64) {
        let (bar, found_text) = (format!("{bar} = {}", seconds(allowed)), seconds(found));
        self.say(work, bar, found_text, found <= allowed);
    }

    fn capture(&mut self, captures: &Captures) {
        let tables = captures.middle(|shot| shot.tables);
        let allowed = 0.010 + 25e-6 * tables;
        let work = |what: &str| format!("{what}, {}", captures.writer);
        let middle = captures.middle(|shot| shot.window);
        let worst = captures.worst(|shot| shot.window);
        self.within(
            work("capture window p50"),
            &format!("10 ms + 25 µs × {tables:.0} tables"),
            middle,
            allowed,
        );
        self.within(work("capture window p99"), "the same + 100 ms", worst, allowed + 0.100);
        // Image by image, because the logs differ from one to the next.
        let over = captures.middle(|shot| shot.wall - captures.least(shot));
        self.within(
            work("image create p50, beyond window and logs at the disk's rate"),
            "100 ms",
            over,
            0.100,
        );
    }

    fn foreground(&mut self) {
        let Some(foreground) = &self.results.foreground else { return };
        let ratios = |of: fn(&Felt) -> f64| foreground.ratios(Polite, of);
        let (throughput, p999) = (ratios(|felt| felt.throughput), ratios(|felt| felt.p999));
        if throughput.is_empty() {
            return;
        }
        let (rounds, wanted) = (throughput.len(), foreground::ROUNDS);
        let few = if count(rounds) < f64::from(wanted) {
            format!(" ({rounds} of {wanted} rounds)")
        } else {
            String::new()
        };
        let work = |what: &str| format!("foreground beside polite backups, {what}");
        let (throughput, p999) = (median(throughput), median(p999));
        let found = |ratio: f64| format!("{ratio:.2} ×");
        self.say(work("throughput"), format!("≥ 0.95 × alone{few}"), found(throughput), throughput >= 0.95);
        self.say(work("p99.9"), format!("≤ 1.5 × alone{few}"), found(p999), p999 <= 1.5);
    }

    fn full(&mut self) {
        for (part, restic, copy) in [(Part::Half, 5.0, 1.3), (Part::Incompressible, 3.0, 0.95)] {
            self.faster("full", part, Work::Full, Stillframe, Restic, restic);
            self.faster("full", part, Work::Full, Stillframe, Cp, copy);
        }
        self.faster("full", Part::Half, Work::Full, Stillframe, Ldb, 2.0);
        if let (Some(ours), Some(theirs)) =
            (self.row(Part::Half, Work::Full, Stillframe), self.row(Part::Half, Work::Full, Restic))
        {
            let (ours, theirs) = (ours.cpu(), theirs.cpu());
            self.ratio("full, per CPU second", Part::Half, Restic, theirs, ours, 6.0);
        }
        for part in [Part::Half, Part::Incompressible] {
            self.faster("full, polite", part, Work::Full, Polite, Restic, 3.0);
        }
    }

    fn unchanged(&mut self, part: Part) {
        let (Some(unchanged), Some(unlock), Some(facts)) = (
            self.row(part, Work::Unchanged, Stillframe),
            self.row(part, Work::Unlock, Stillframe),
            self.results.facts(part),
        ) else {
            return;
        };
        let allowed = 0.1 + 60e-6 * count(facts.tables);
        let found = (unchanged.wall() - unlock.wall()).max(0.0);
        let bar =
            format!("0.1 s + 60 µs × {} tables after unlocking ({})", facts.tables, seconds(unlock.wall()));
        self.within(format!("nothing changed, {}", part.title()), &bar, found, allowed);
    }

    /// Bytes: no more than what changed. Time: what an unchanged backup takes, and twice the changed part of a full one.
    fn changed(&mut self, part: Part) {
        let row = |work| self.row(part, work, Stillframe);
        let (Some(full), Some(unchanged), Some(changed), Some(facts)) =
            (row(Work::Full), row(Work::Unchanged), row(Work::Changed), self.results.facts(part))
        else {
            return;
        };
        let share = facts.changed / size(facts);
        let allowed = unchanged.wall() + 2.0 * share * full.wall() + 0.05;
        let (found, written, bytes) = (changed.wall(), changed.written(), facts.changed + MIB / 4.0);
        let work = |what: &str| format!("1 % changed, {what}, {}", part.title());
        let bar = format!("nothing changed + 2 × {:.1} % of full + 50 ms", share * 100.0);
        self.within(work("time"), &bar, found, allowed);
        self.at_most_bytes(work("bytes"), "what changed + 0.25 MiB", written, bytes);
    }

    fn sqlite(&mut self) {
        self.faster("full", Part::Sqlite, Work::Full, Stillframe, Restic, 5.0);
        let Some(copy) = self.row(Part::Sqlite, Work::Full, Cp).map(Row::wall) else { return };
        for work in [Work::Unchanged, Work::Changed] {
            if let Some(ours) = self.row(Part::Sqlite, work, Stillframe) {
                let found = ours.wall();
                self.within(
                    format!("{}, SQLite", work.title()),
                    "1.5 × `cp -a` of the whole",
                    found,
                    1.5 * copy,
                );
            }
        }
        if let (Some(ours), Some(facts)) =
            (self.row(Part::Sqlite, Work::Changed, Stillframe), self.results.facts(Part::Sqlite))
        {
            let (written, allowed) = (ours.written(), 3.0 * facts.changed);
            self.at_most_bytes(
                "1 % changed, bytes, SQLite".into(),
                "3 × the changed chunks",
                written,
                allowed,
            );
        }
    }

    fn memory(&mut self) {
        let Some(most) =
            self.results.rows.iter().filter(|row| row.tool == Stillframe).map(Row::peak_rss).max()
        else {
            return;
        };
        let bytes = bytes_as_f64(most);
        self.at_most_bytes("peak memory, all of the above".into(), "256 MiB", bytes, 256.0 * MIB);
        for work in [Work::Full, Work::Restore] {
            let rows = self.results.rows.iter().filter(|row| row.part == Part::Memory && row.work == work);
            let peaks: Vec<f64> = rows.map(Row::usual_peak).collect();
            if let [small, large] = peaks[..] {
                let work = format!("peak memory, {}, at eight times the data", work.title());
                self.at_most_bytes(work, "10 % more", large, 1.1 * small);
            }
        }
    }

    fn faster(
        &mut self,
        what: &str,
        part: Part,
        work: Work,
        ours: ToolName,
        theirs: ToolName,
        at_least: f64,
    ) {
        if let (Some(mine), Some(other)) = (self.row(part, work, ours), self.row(part, work, theirs)) {
            let (mine, other) = (mine.wall(), other.wall());
            self.ratio(what, part, theirs, other, mine, at_least);
        }
    }

    fn ratio(&mut self, what: &str, part: Part, theirs: ToolName, other: f64, mine: f64, at_least: f64) {
        let found = other / mine;
        let bar = format!("≥ {at_least} × {}", theirs.title());
        self.say(format!("{what}, {}", part.title()), bar, format!("{found:.2} ×"), found >= at_least);
    }

    fn at_most_bytes(&mut self, work: String, bar: &str, found: f64, allowed: f64) {
        let bar = format!("{bar} = {:.1} MiB", allowed / MIB);
        self.say(work, bar, format!("{:.1} MiB", found / MIB), found <= allowed);
    }

    fn row(&self, part: Part, work: Work, tool: ToolName) -> Option<&Row> {
        self.results.row(part, work, tool)
    }
}

fn seconds(seconds: f64) -> String {
    if seconds.abs() < 1.0 { format!("{:.1} ms", seconds * 1e3) } else { format!("{seconds:.2} s") }
}

fn size(facts: &Facts) -> f64 {
    bytes_as_f64(facts.bytes.max(1))
}

#[expect(clippy::cast_precision_loss, reason = "a size that is printed")]
fn bytes_as_f64(bytes: u64) -> f64 {
    bytes as f64
}

#[expect(clippy::cast_precision_loss, reason = "a count that is printed")]
fn count(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::foreground::{Foreground, Load, Turn};
    use crate::measurement::Measurement;

    fn row(part: Part, work: Work, tool: ToolName, wall: f64, cpu: f64) -> Row {
        let run = |wall| Measurement {
            wall,
            cpu,
            peak_rss: 100 << 20,
            others: 0.0,
            written: 20 << 20,
            said: String::new(),
        };
        // The middle of three is what counts.
        Row { part, size: None, work, tool, runs: [wall, wall * 9.0, wall / 9.0].map(run).to_vec() }
    }

    fn verdict(results: &Results, work: &str, bar: &str) -> Verdict {
        let found = verdicts(results).into_iter().find(|it| it.work.contains(work) && it.bar.contains(bar));
        found.unwrap_or_else(|| panic!("no bar for {work} {bar}"))
    }

    #[test]
    fn a_ratio_is_met_at_the_bar_and_missed_below_it() {
        let rows = |ours| {
            vec![
                row(Part::Half, Work::Full, Stillframe, ours, 1.0),
                row(Part::Half, Work::Full, Restic, 10.0, 5.0),
                row(Part::Half, Work::Full, Cp, 2.0, 1.0),
            ]
        };
        let fine = Results { rows: rows(2.0), ..Results::default() };
        assert!(verdict(&fine, "full", "restic").met);
        assert!(!verdict(&fine, "full", "cp -a").met);
        assert!(!verdict(&fine, "per CPU second", "restic").met);
        let slow = Results { rows: rows(2.1), ..Results::default() };
        assert!(!verdict(&slow, "full", "restic").met);
    }

    #[test]
    fn unlocking_is_taken_off_and_tables_are_added_for_an_unchanged_backup() {
        let facts = vec![Facts { part: Part::Tables, bytes: 1 << 30, tables: 10_000, changed: 0.0 }];
        let rows = vec![
            row(Part::Tables, Work::Unchanged, Stillframe, 0.9, 0.1),
            row(Part::Tables, Work::Unlock, Stillframe, 0.25, 0.1),
        ];
        let verdict =
            verdict(&Results { rows, facts, ..Results::default() }, "nothing changed", "10000 tables");
        assert!(verdict.met, "{verdict:?}");
    }

    #[test]
    fn what_was_not_measured_has_no_verdict() {
        assert_eq!(verdicts(&Results::default()), []);
    }

    #[test]
    fn an_incremental_sqlite_backup_is_held_against_the_changed_chunks() {
        let facts = |changed| vec![Facts { part: Part::Sqlite, bytes: 500 << 20, tables: 0, changed }];
        let rows = || {
            vec![
                row(Part::Sqlite, Work::Changed, Stillframe, 1.0, 1.0),
                row(Part::Sqlite, Work::Full, Cp, 1.0, 1.0),
            ]
        };
        let few = Results { rows: rows(), facts: facts(1e6), ..Results::default() };
        assert!(!verdict(&few, "bytes", "changed chunks").met);
        let many = Results { rows: rows(), facts: facts(1e7), ..Results::default() };
        assert!(verdict(&many, "bytes", "changed chunks").met);
    }

    #[test]
    fn the_foreground_is_judged_by_the_polite_backup_and_few_rounds_are_told() {
        let turn = |beside, throughput, p999| {
            let felt = Felt { throughput, p50: 0.1, p99: 0.2, p999, longest: 9.0 };
            Turn { beside, felt, load: Load::default() }
        };
        let round =
            || vec![turn(None, 100.0, 1.0), turn(Some(Polite), 95.0, 1.6), turn(Some(Restic), 40.0, 9.0)];
        let of_rounds = |rounds: u32| {
            let rounds = (0..rounds).map(|_| round()).collect();
            let foreground = Foreground { bytes: 1 << 30, best: 200.0, rate: 100, rounds };
            Results { foreground: Some(foreground), ..Results::default() }
        };
        let few = verdict(&of_rounds(2), "foreground", "2 of 9 rounds");
        assert!(few.met && few.work.contains("throughput"), "{few:?}");
        let enough = verdict(&of_rounds(9), "p99.9", "alone");
        assert!(!enough.met && !enough.bar.contains("rounds"), "{enough:?}");
    }
}
