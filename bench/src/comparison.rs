//! All tools, all work, on the data of one part.

use std::path::{Path, PathBuf};

use crate::data::Data;
use crate::error::BenchError;
use crate::measurement::{Ends, Measurement, measure};
use crate::part::Part;
use crate::results::{Facts, Row, Work};
use crate::source::Source;
use crate::statistics::median;
use crate::tool_name::ToolName;
use crate::tools::{self, Tool};
use crate::tree::{bytes_below, warm};
use crate::workshop::{Workshop, say};

/// Data of more tables than this are made of so many files that removing a copy makes the next one slow: for minutes ext4 looks
/// through the inodes that were just freed before it gives out new ones. Their copies stay until the part is over.
const MANY_TABLES: usize = 500;

/// A tool and the directory it works in.
struct Contestant {
    tool: Box<dyn Tool>,
    shop: PathBuf,
}

/// Makes the data, lets the tools take turns at each work, and repeats that with new repositories in each round.
pub(crate) fn run(workshop: &Workshop, part: Part) -> Result<(Vec<Row>, Facts), BenchError> {
    let data = Data::of(workshop, part)?.expect("only parts that compare tools come here");
    let bytes = data.bytes()?;
    let source = data.source();
    let keep = data.tables()? > MANY_TABLES;
    let mut kept = Vec::new();
    let mut rows = Vec::new();
    let mut changed = Vec::new();
    for round in 1..=workshop.rounds {
        let mut contestants = contestants(workshop, &source, round)?;
        // Whoever comes first meets another disk than who comes last.
        let turn = round as usize % contestants.len().max(1);
        contestants.rotate_left(turn);
        for work in Work::ALL {
            if work == Work::Changed {
                changed.push(data.change(round)?.bytes);
            }
            for contestant in contestants.iter().filter(|it| it.tool.takes_part(work, &source)) {
                let measured = contestant.run(work, &data, keep)?;
                let name = contestant.tool.name();
                say(&format!(
                    "   round {round}  {:<16} {:<20} {:>8.3} s  {:>8.3} s CPU",
                    work.title(),
                    name.title(),
                    measured.wall,
                    measured.cpu,
                ));
                note(&mut rows, part, work, name, measured);
            }
        }
        kept.extend(contestants.into_iter().map(|contestant| contestant.shop));
        if !keep {
            kept.drain(..).try_for_each(|shop| workshop.remove(&shop))?;
        }
    }
    let tables = data.tables()?;
    kept.push(workshop.place("data"));
    kept.drain(..).try_for_each(|path| workshop.remove(&path))?;
    rows.sort_by_key(|row| (Work::ALL.iter().position(|it| *it == row.work), row.tool));
    #[expect(clippy::cast_precision_loss, reason = "a size that is printed")]
    let changed = median(changed.into_iter().map(|bytes| bytes as f64));
    Ok((rows, Facts { part, bytes, tables, changed }))
}

fn contestants(workshop: &Workshop, source: &Source, round: u32) -> Result<Vec<Contestant>, BenchError> {
    let mut contestants = Vec::new();
    for (number, tool) in tools::chosen(workshop)?.into_iter().enumerate() {
        if tool.takes_part(Work::Full, source) {
            let shop = workshop.empty_dir(&format!("shop-{round}-{number}"))?;
            tool.prepare(&shop)?;
            contestants.push(Contestant { tool, shop });
        }
    }
    Ok(contestants)
}

impl Contestant {
    fn run(&self, work: Work, data: &Data, keep: bool) -> Result<Measurement, BenchError> {
        let source = data.source();
        match work {
            Work::Restore => self.restore(&source, data, keep),
            Work::Unlock => {
                let command =
                    self.tool.unlock(&self.shop).expect("who takes part in unlocking has a command for it");
                settle(&tools::repository(&self.shop))?;
                measure(&command, Ends::Itself)
            }
            Work::Full | Work::Unchanged | Work::Changed => self.backup(&source),
        }
    }

    fn backup(&self, source: &Source) -> Result<Measurement, BenchError> {
        self.tool.before_backup(source, &self.shop)?;
        let repository = tools::repository(&self.shop);
        let before = bytes_below(&repository)?;
        settle(source.path())?;
        let mut measured = measure(&self.tool.backup(source, &self.shop), Ends::Synced)?;
        measured.written = bytes_below(&repository)?.saturating_sub(before);
        Ok(measured)
    }

    fn restore(&self, source: &Source, data: &Data, keep: bool) -> Result<Measurement, BenchError> {
        self.tool.before_restore(source, &self.shop)?;
        let to = self.shop.join("restored");
        std::fs::create_dir(&to).map_err(BenchError::io("making", &to))?;
        settle(&self.shop)?;
        let mut measured = measure(&self.tool.restore(source, &self.shop, &to), Ends::Synced)?;
        measured.written = bytes_below(&to)?;
        data.demand_same(self.tool.name(), &to)?;
        if !keep {
            std::fs::remove_dir_all(&to).map_err(BenchError::io("removing", &to))?;
        }
        Ok(measured)
    }
}

/// Nothing left to write, everything to be read in memory: the same beginning for all.
pub(crate) fn settle(to_be_read: &Path) -> Result<(), BenchError> {
    warm(to_be_read)?;
    rustix::fs::sync();
    Ok(())
}

fn note(rows: &mut Vec<Row>, part: Part, work: Work, tool: ToolName, measured: Measurement) {
    match rows.iter_mut().find(|row| row.work == work && row.tool == tool) {
        Some(row) => row.runs.push(measured),
        None => rows.push(Row { part, size: None, work, tool, runs: vec![measured] }),
    }
}
