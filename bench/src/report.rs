//! The table, as text that is also Markdown.

use std::fmt::Write;

use crate::bars::verdicts;
use crate::captures::Captures;
use crate::error::BenchError;
use crate::foreground::{self, Foreground, TURN};
use crate::machine::Machine;
use crate::open_loop::Felt;
use crate::part::Part;
use crate::results::{Results, Row};
use crate::statistics::median;
use crate::tool_name::ToolName;
use crate::workshop::{Workshop, say};

const MIB: f64 = 1_048_576.0;

/// From this line on, what stands in the file is written by people and kept.
const REMARKS: &str = "## Remarks";

/// Puts everything together.
pub(crate) fn markdown(workshop: &Workshop, machine: &Machine, results: &Results) -> String {
    let mut text = String::from("# Results\n\n");
    text += &head(workshop, machine, results);
    text += &table_of_rows(&results.rows);
    text += &table_of_captures(&results.captures);
    text += &results.foreground.as_ref().map(table_of_foreground).unwrap_or_default();
    text += &table_of_bars(results);
    text
}

/// Writes the results, and keeps the remarks of whoever has commented on earlier ones.
pub(crate) fn write(workshop: &Workshop, text: &str) -> Result<(), BenchError> {
    let path = &workshop.results;
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).map_err(BenchError::io("making", dir))?;
    }
    let old = match std::fs::read_to_string(path) {
        Ok(old) => old,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(BenchError::io("reading", path)(error)),
    };
    std::fs::write(path, with_remarks(text, &old)).map_err(BenchError::io("writing", path))?;
    say(&format!("written to {}", path.display()));
    Ok(())
}

fn with_remarks(text: &str, old: &str) -> String {
    let from =
        if old.starts_with(REMARKS) { Some(0) } else { old.find(&format!("\n{REMARKS}")).map(|at| at + 1) };
    match from.and_then(|at| old.get(at..)) {
        Some(remarks) => format!("{text}\n{remarks}"),
        None => text.to_owned(),
    }
}

fn head(workshop: &Workshop, machine: &Machine, results: &Results) -> String {
    let mut lines = vec![
        format!(
            "{}, commit {}. {}; the disk takes {:.0} MB/s durably.",
            machine.date,
            machine.commit,
            machine.hardware,
            machine.synced_rate / 1e6
        ),
        format!("{}.", machine.versions.join("; ")),
        format!(
            "Scale {}, {} rounds, tools take turns, medians (peak memory: the largest; others: the largest). Every run begins with nothing \
             left to write and all it reads in the page cache, and ends when `sync` has returned (unlock and list, and image create: when the \
             program has ended). What was restored was compared with the data. CPU and memory are those of the whole process tree. \
             *Others* is processor time not spent by the tool, writing to disk included. *Ratio* is wall time against `stillframe`.",
            workshop.scale, workshop.rounds,
        ),
    ];
    for facts in &results.facts {
        let tables =
            if facts.tables > 0 { format!(" in {} tables at the end", facts.tables) } else { String::new() };
        lines.push(format!(
            "{}: {} MiB{tables}; a change touches {:.1} MiB.",
            facts.part.title(),
            facts.bytes >> 20,
            facts.changed / MIB,
        ));
    }
    if let Some(foreground) = &results.foreground {
        lines.push(facts_of_foreground(foreground));
    }
    let loads =
        machine.loads.iter().map(|(when, load)| format!("{load} ({when})")).collect::<Vec<_>>().join(", ");
    lines.push(format!("Load average before each part and at the end: {loads}."));
    format!("- {}\n\n", lines.join("\n- "))
}

fn table_of_rows(rows: &[Row]) -> String {
    let mut table = Table::new(
        [
            "Data",
            "Work",
            "Tool",
            "Wall s",
            "Min–max s",
            "CPU s",
            "Peak MiB",
            "Written MiB",
            "Others",
            "Ratio",
        ],
        3,
    );
    for row in rows {
        let walls = || row.runs.iter().map(|run| run.wall);
        let ours = rows
            .iter()
            .find(|it| it.part == row.part && it.work == row.work && it.tool == ToolName::Stillframe);
        let ratio = ours
            .filter(|_| !matches!(row.part, Part::Memory | Part::Index))
            .map(|ours| format!("{:.2}", row.wall() / ours.wall()));
        table.line([
            row.size.map_or_else(|| row.part.title().to_owned(), |size| format!("files, {} MiB", size >> 20)),
            row.work.title().to_owned(),
            row.tool.title().to_owned(),
            format!("{:.3}", row.wall()),
            format!("{:.3}–{:.3}", walls().fold(f64::INFINITY, f64::min), walls().fold(0.0, f64::max)),
            format!("{:.3}", row.cpu()),
            (row.peak_rss() >> 20).to_string(),
            format!("{:.1}", row.written() / MIB),
            format!("{:.0} %", row.others() * 100.0),
            ratio.unwrap_or_default(),
        ]);
    }
    if rows.is_empty() { String::new() } else { table.text() }
}

fn table_of_captures(captures: &[Captures]) -> String {
    let mut table = Table::new(
        [
            "Busy writer",
            "Images",
            "Tables",
            "Logs MiB",
            "Image MiB",
            "Window p50 ms",
            "Window p99 ms",
            "Attempts p50",
            "Attempts p99",
            "Create p50 s",
            "Create p99 s",
            "Durable MB/s beside it",
        ],
        1,
    );
    for of in captures {
        table.line([
            of.writer.to_owned(),
            of.shots.len().to_string(),
            format!("{:.0}", of.middle(|shot| shot.tables)),
            format!("{:.1}", of.middle(|shot| shot.log_bytes) / MIB),
            format!("{:.0}", of.middle(|shot| shot.bytes) / MIB),
            format!("{:.1}", of.middle(|shot| shot.window) * 1e3),
            format!("{:.1}", of.worst(|shot| shot.window) * 1e3),
            format!("{:.0}", of.middle(|shot| shot.attempts)),
            format!("{:.0}", of.worst(|shot| shot.attempts)),
            format!("{:.3}", of.middle(|shot| shot.wall)),
            format!("{:.3}", of.worst(|shot| shot.wall)),
            format!("{:.0}", of.synced_rate / 1e6),
        ]);
    }
    if captures.is_empty() { String::new() } else { table.text() }
}

fn facts_of_foreground(of: &Foreground) -> String {
    let rounds = of.rounds.len();
    let few = if of.rounds.len() < foreground::ROUNDS as usize {
        format!(", where a verdict wants {}", foreground::ROUNDS)
    } else {
        String::new()
    };
    format!(
        "Foreground: a RocksDB of {} MiB; its writer's best is {:.0} puts/s, {} puts/s were due for {} s a turn; {rounds} paired rounds{few}. \
         Seconds count from the moment at which a put was due. *× alone* is the median of the ratios to the turn alone of the same round. \
         restic and rustic backed up an image made before the turn.",
        of.bytes >> 20,
        of.best,
        of.rate,
        TURN.as_secs(),
    )
}

#[expect(clippy::cast_precision_loss, reason = "sizes that are printed")]
fn table_of_foreground(of: &Foreground) -> String {
    let mut table = Table::new(
        [
            "Writer beside",
            "Puts/s",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "Longest ms",
            "Puts/s × alone",
            "p99 × alone",
            "p99.9 × alone",
            "Min–max",
            "Stored MiB/s",
            "Backups",
        ],
        1,
    );
    for beside in of.company() {
        let ratios = |what: fn(&Felt) -> f64| beside.map(|tool| of.ratios(tool, what));
        let middle = |what| ratios(what).map_or_else(String::new, |them| format!("{:.2}", median(them)));
        let millis =
            |what: fn(&Felt) -> f64| format!("{:.2}", of.middle(beside, |turn| what(&turn.felt)) * 1e3);
        let span = ratios(|felt| felt.p999).map(|them| {
            let least = them.iter().copied().fold(f64::INFINITY, f64::min);
            format!("{least:.2}–{:.2}", them.iter().copied().fold(0.0, f64::max))
        });
        let work = |text: String| if beside.is_some() { text } else { String::new() };
        table.line([
            foreground::title(beside).to_owned(),
            format!("{:.0}", of.middle(beside, |turn| turn.felt.throughput)),
            millis(|felt| felt.p50),
            millis(|felt| felt.p99),
            millis(|felt| felt.p999),
            millis(|felt| felt.longest),
            middle(|felt| felt.throughput),
            middle(|felt| felt.p99),
            middle(|felt| felt.p999),
            span.unwrap_or_default(),
            work(format!(
                "{:.1}",
                of.middle(beside, |turn| turn.load.stored as f64) / MIB / TURN.as_secs_f64()
            )),
            work(format!("{:.0}", of.middle(beside, |turn| f64::from(turn.load.backups)))),
        ]);
    }
    table.text()
}

fn table_of_bars(results: &Results) -> String {
    let mut table = Table::new(["Work", "Bar", "Measured", ""], 2);
    let verdicts = verdicts(results);
    for verdict in &verdicts {
        let met = if verdict.met { "met" } else { "**missed**" };
        table.line([verdict.work.clone(), verdict.bar.clone(), verdict.found.clone(), met.to_owned()]);
    }
    let missed = verdicts.iter().filter(|verdict| !verdict.met).count();
    format!("{}{} of {} bars are met.\n", table.text(), verdicts.len() - missed, verdicts.len())
}

/// Columns of equal width, so that the Markdown is also readable as it is.
struct Table<const N: usize> {
    lines: Vec<[String; N]>,
    /// So many columns from the left are words; the others are numbers.
    words: usize,
}

impl<const N: usize> Table<N> {
    fn new(head: [&str; N], words: usize) -> Self {
        Self { lines: vec![head.map(str::to_owned)], words }
    }

    fn line(&mut self, cells: [String; N]) {
        self.lines.push(cells);
    }

    fn text(&self) -> String {
        let mut widths = [3; N];
        for line in &self.lines {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for (number, line) in self.lines.iter().enumerate() {
            for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
                let padded = if column < self.words {
                    format!("| {cell:<width$} ")
                } else {
                    format!("| {cell:>width$} ")
                };
                text.push_str(&padded);
            }
            text.push_str("|\n");
            if number == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let rule = "-".repeat(*width);
                    let end = if column < self.words { "-" } else { ":" };
                    // Writing to a String does not fail.
                    let _ = write!(text, "|-{rule}{end}");
                }
                text.push_str("|\n");
            }
        }
        text + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_numbers_stand_right() {
        let mut table = Table::new(["Tool", "s"], 1);
        table.line(["cp".into(), "10.5".into()]);
        assert_eq!(table.text(), "| Tool |    s |\n|------|-----:|\n| cp   | 10.5 |\n\n");
    }

    #[test]
    fn remarks_of_people_outlive_a_new_run() {
        let old = "# Results\n\nold table\n\n## Remarks\n\nThe bar is missed because.\n";
        assert_eq!(with_remarks("new\n", old), "new\n\n## Remarks\n\nThe bar is missed because.\n");
        assert_eq!(with_remarks("new\n", "nothing here"), "new\n");
    }
}
