//! The data of one part.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::error::BenchError;
use crate::fjall_data::FjallData;
use crate::part::Part;
use crate::rocks_data::{RocksData, RocksShape};
use crate::source::Source;
use crate::sqlite_data::SqliteData;
use crate::tool_name::ToolName;
use crate::tree::{bytes_below, files_below, length};
use crate::workshop::Workshop;

/// One row in so many is written anew between the runs: one percent.
const ONE_IN: u64 = 100;

const GIB: u64 = 1 << 30;

/// Generated data that can be changed a little and compared with what a restore brought.
#[derive(Debug)]
pub(crate) enum Data {
    /// A RocksDB at rest.
    Rocks(RocksData),
    /// A fjall database at rest.
    Fjall(FjallData),
    /// A SQLite database at rest.
    Sqlite(SqliteData),
}

/// What a change came to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Changed {
    /// Bytes that an incremental backup must at least look at: new files of a RocksDB, changed chunks of a SQLite file.
    pub(crate) bytes: u64,
}

impl Data {
    /// Makes the data of a part that compares tools; none for the others.
    pub(crate) fn of(workshop: &Workshop, part: Part) -> Result<Option<Self>, BenchError> {
        let rocks = |bytes, table, noise| {
            let shape = RocksShape { bytes: workshop.scaled(bytes), table, noise };
            RocksData::fill(workshop, "data", shape).map(|data| Some(Self::Rocks(data)))
        };
        match part {
            Part::Half => rocks(GIB, 64 << 20, 0.5),
            Part::Incompressible => rocks(GIB, 64 << 20, 1.0),
            // With 37 rows each, 10 000 of them.
            Part::Tables => rocks(10_000 * 37 * 1022, 32 << 10, 0.5),
            Part::Sqlite => {
                let data = SqliteData::fill(workshop, "data", workshop.scaled(500_000_000), 0.5)?;
                Ok(Some(Self::Sqlite(data)))
            }
            Part::Fjall => {
                let data = FjallData::fill(workshop, "data", workshop.scaled(500_000_000), 0.5)?;
                Ok(Some(Self::Fjall(data)))
            }
            Part::Capture | Part::Foreground | Part::Memory | Part::Index => Ok(None),
        }
    }

    /// What tools are asked to back up.
    pub(crate) fn source(&self) -> Source {
        match self {
            Self::Rocks(data) => Source::RocksDb(data.dir.clone()),
            Self::Fjall(data) => Source::Fjall(data.dir.clone()),
            Self::Sqlite(data) => Source::Sqlite(data.file.clone()),
        }
    }

    /// Its size.
    pub(crate) fn bytes(&self) -> Result<u64, BenchError> {
        bytes_below(self.source().path())
    }

    /// Tables, 0 of SQLite.
    pub(crate) fn tables(&self) -> Result<usize, BenchError> {
        match self {
            Self::Rocks(data) => data.tables(),
            Self::Fjall(data) => data.tables(),
            Self::Sqlite(_) => Ok(0),
        }
    }

    /// Writes one percent of the rows anew.
    pub(crate) fn change(&self, round: u32) -> Result<Changed, BenchError> {
        match self {
            Self::Rocks(data) => new_files(&data.dir, || data.change(ONE_IN, round)),
            Self::Fjall(data) => new_files(&data.dir, || data.change(ONE_IN, round)),
            Self::Sqlite(data) => Ok(Changed { bytes: data.change(ONE_IN, round)? }),
        }
    }

    /// That the same data lie somewhere below `restored`.
    pub(crate) fn demand_same(&self, tool: ToolName, restored: &Path) -> Result<(), BenchError> {
        let difference = match self {
            Self::Rocks(data) => data.difference(restored)?,
            Self::Fjall(data) => data.difference(restored)?,
            Self::Sqlite(data) => data.difference(restored)?,
        };
        difference.map_or(Ok(()), |what| Err(BenchError::Different { tool: tool.title(), what }))
    }
}

/// How many bytes are in files that were not there before.
fn new_files(dir: &Path, change: impl FnOnce() -> Result<(), BenchError>) -> Result<Changed, BenchError> {
    let before: BTreeSet<PathBuf> = files_below(dir)?.into_iter().collect();
    change()?;
    let new = files_below(dir)?.into_iter().filter(|path| !before.contains(path));
    let bytes = new.map(|path| length(&path)).sum::<Result<u64, _>>()?;
    Ok(Changed { bytes })
}
