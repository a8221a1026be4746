//! RocksDB's own BackupEngine, through Debian's `ldb`.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Tool, repository};
use crate::error::BenchError;
use crate::measurement::call;
use crate::results::Work;
use crate::source::Source;
use crate::tool_name::ToolName;
use crate::tree::files_below;

/// `ldb backup` and `ldb restore`: neither encrypted nor compressed, and only of a database that nobody else has open.
#[derive(Debug)]
pub(crate) struct Ldb;

impl Ldb {
    /// `ldb` opens the database it backs up, which makes new files and removes old ones, so it gets a stand-in: the tables are the
    /// same files, the rest are copies.
    fn stand_in(shop: &Path) -> PathBuf {
        shop.join("stand-in")
    }

    fn command(verb: &str, db: &Path, shop: &Path) -> Command {
        let mut command = Command::new("ldb");
        command.args([verb, "--ignore_unknown_options"]).arg(format!("--db={}", db.display()));
        command.arg(format!("--backup_dir={}", repository(shop).display()));
        command
    }
}

impl Tool for Ldb {
    fn name(&self) -> ToolName {
        ToolName::Ldb
    }

    fn version(&self) -> Result<String, BenchError> {
        Ok(call(Command::new("ldb").arg("--version"))?.lines().next().unwrap_or_default().trim().to_owned())
    }

    fn takes_part(&self, work: Work, source: &Source) -> bool {
        work != Work::Unlock && matches!(source, Source::RocksDb(_))
    }

    fn prepare(&self, shop: &Path) -> Result<(), BenchError> {
        let repository = repository(shop);
        std::fs::create_dir_all(&repository).map_err(BenchError::io("making", &repository))
    }

    fn before_backup(&self, source: &Source, shop: &Path) -> Result<(), BenchError> {
        let stand_in = Self::stand_in(shop);
        if stand_in.exists() {
            std::fs::remove_dir_all(&stand_in).map_err(BenchError::io("removing", &stand_in))?;
        }
        std::fs::create_dir(&stand_in).map_err(BenchError::io("making", &stand_in))?;
        for file in files_below(source.path())? {
            let to = stand_in.join(file.file_name().unwrap_or_default());
            let done = if file.extension().is_some_and(|it| it == "sst") {
                std::fs::hard_link(&file, &to)
            } else {
                std::fs::copy(&file, &to).map(drop)
            };
            done.map_err(BenchError::io("making", &to))?;
        }
        Ok(())
    }

    fn backup(&self, _source: &Source, shop: &Path) -> Command {
        Self::command("backup", &Self::stand_in(shop), shop)
    }

    fn restore(&self, _source: &Source, shop: &Path, to: &Path) -> Command {
        Self::command("restore", to, shop)
    }
}
