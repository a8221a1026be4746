//! Whether memory stays bounded when the data grow.

use std::process::Command;

use crate::comparison::settle;
use crate::error::BenchError;
use crate::measurement::{Ends, call, measure};
use crate::part::Part;
use crate::results::{Row, Work};
use crate::source::Source;
use crate::tools::{self, Pace, Stillframe, Tool};
use crate::tree::bytes_below;
use crate::workshop::{Workshop, say};

const FILE: u64 = 16 << 20;
const GIB: u64 = 1 << 30;

/// Backs up and restores files of 1 GiB together and, where what takes long is wanted, of 8 GiB.
pub(crate) fn run(workshop: &Workshop) -> Result<Vec<Row>, BenchError> {
    let mut rows = at_size(workshop, workshop.scaled(GIB))?;
    if workshop.full {
        rows.extend(at_size(workshop, workshop.scaled(8 * GIB))?);
    }
    Ok(rows)
}

fn at_size(workshop: &Workshop, bytes: u64) -> Result<Vec<Row>, BenchError> {
    let dir = workshop.empty_dir("data")?;
    stillframe_testkit::write_files(&dir, bytes.div_ceil(FILE), FILE.min(bytes), workshop.seed, 0.5)
        .map_err(BenchError::io("writing below", &dir))?;
    let size = Some(bytes_below(&dir)?);
    let source = Source::Files(dir.clone());
    let tool = Stillframe::new(&workshop.stillframe, Pace::Fast);
    let row = |work| Row { part: Part::Memory, size, work, tool: tool.name(), runs: Vec::new() };
    let (mut full, mut restore) = (row(Work::Full), row(Work::Restore));
    for _ in 0..workshop.rounds {
        let shop = workshop.empty_dir("shop")?;
        let repository = tools::repository(&shop);
        tool.prepare(&shop)?;
        settle(&dir)?;
        let mut run = measure(&tool.backup(&source, &shop), Ends::Synced)?;
        run.written = bytes_below(&repository)?;
        full.runs.push(run);
        let to = workshop.empty_dir("restored")?;
        settle(&repository)?;
        let mut run = measure(&tool.restore(&source, &shop, &to), Ends::Synced)?;
        run.written = bytes_below(&to)?;
        restore.runs.push(run);
        workshop.remove(&shop)?;
        workshop.remove(&to)?;
    }
    workshop.remove(&dir)?;
    let rows = vec![full, restore];
    for row in &rows {
        say(&format!("   {}: {} MiB", row.work.title(), row.peak_rss() >> 20));
    }
    Ok(rows)
}

/// Chunks of the repository that others have filled.
const CHUNKS: u64 = 10_000_000;

/// A backup of 1 GiB into a repository that has very many chunks already, on a machine that knows nothing of them; then one more.
pub(crate) fn beside_large_index(workshop: &Workshop) -> Result<Vec<Row>, BenchError> {
    let (shop, dir) = (workshop.empty_dir("shop")?, workshop.empty_dir("data")?);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut writer = Command::new(cargo);
    writer.args([
        "run",
        "--release",
        "--locked",
        "--quiet",
        "--package",
        "stillframe-repo",
        "--example",
        "large_index",
        "--",
    ]);
    call(writer.args(["write", &workshop.scaled(CHUNKS).to_string()]).arg(&shop))?;
    let (made, repository) = (shop.join("store"), tools::repository(&shop));
    std::fs::rename(&made, &repository).map_err(BenchError::io("moving", &made))?;
    workshop.remove(&shop.join("cache"))?;
    let before = bytes_below(&repository)?;
    stillframe_testkit::write_files(&dir, GIB / FILE, FILE, workshop.seed, 0.5)
        .map_err(BenchError::io("writing below", &dir))?;
    let source = Source::Files(dir.clone());
    let tool = Stillframe::new(&workshop.stillframe, Pace::Fast);
    let mut rows = Vec::new();
    for work in [Work::Full, Work::Unchanged] {
        settle(&dir)?;
        let mut run = measure(&tool.backup(&source, &shop), Ends::Synced)?;
        run.written = bytes_below(&repository)?.saturating_sub(before);
        say(&format!("   {}: {} MiB", work.title(), run.peak_rss >> 20));
        rows.push(Row { part: Part::Index, size: None, work, tool: tool.name(), runs: vec![run] });
    }
    workshop.remove(&shop)?;
    workshop.remove(&dir)?;
    Ok(rows)
}
