//! The tools that are compared: for each, how its users call it.

mod copy;
mod ldb;
mod restic;
mod rustic;
mod stillframe;

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::BenchError;
use crate::results::Work;
use crate::source::Source;
use crate::tool_name::ToolName;
use crate::workshop::Workshop;

pub(crate) use copy::Copy;
pub(crate) use ldb::Ldb;
pub(crate) use restic::Restic;
pub(crate) use rustic::Rustic;
pub(crate) use stillframe::{Pace, Stillframe};

/// One tool. A `shop` is a directory of its own, in which it keeps its repository and whatever else it wants to keep.
pub(crate) trait Tool {
    /// Which one it is.
    fn name(&self) -> ToolName;

    /// What it says its version is.
    fn version(&self) -> Result<String, BenchError>;

    /// Whether it can do this kind of work, and is asked to, on this kind of source.
    fn takes_part(&self, work: Work, source: &Source) -> bool;

    /// Makes an empty repository in the shop. Not measured.
    fn prepare(&self, shop: &Path) -> Result<(), BenchError>;

    /// What must be done before each backup that is no part of it. Not measured.
    fn before_backup(&self, _source: &Source, _shop: &Path) -> Result<(), BenchError> {
        Ok(())
    }

    /// The command that backs up, whether for the first time or again.
    fn backup(&self, source: &Source, shop: &Path) -> Command;

    /// What must be done before a restore that is no part of it. Not measured.
    fn before_restore(&self, _source: &Source, _shop: &Path) -> Result<(), BenchError> {
        Ok(())
    }

    /// The command that brings the last backup back into `to`, an empty directory.
    fn restore(&self, source: &Source, shop: &Path, to: &Path) -> Command;

    /// The command that only unlocks the repository and looks at what is in it, where that is to be measured.
    fn unlock(&self, _shop: &Path) -> Option<Command> {
        None
    }
}

/// The tools that take part in this run.
pub(crate) fn chosen(workshop: &Workshop) -> Result<Vec<Box<dyn Tool>>, BenchError> {
    let of = |name: ToolName| -> Result<Box<dyn Tool>, BenchError> {
        Ok(match name {
            ToolName::Stillframe => Box::new(Stillframe::new(&workshop.stillframe, Pace::Fast)),
            ToolName::Polite => Box::new(Stillframe::new(&workshop.stillframe, Pace::Polite)),
            ToolName::Cp => Box::new(Copy),
            ToolName::Restic => Box::new(Restic),
            ToolName::Rustic => Box::new(Rustic::installed(workshop)?),
            ToolName::Ldb => Box::new(Ldb),
        })
    };
    workshop.tools.iter().map(|name| of(*name)).collect()
}

/// Where a tool keeps its backups: what is counted as written.
pub(crate) fn repository(shop: &Path) -> PathBuf {
    shop.join("repository")
}

/// A command that finds no settings of the user who runs the bench.
fn in_shop(program: impl AsRef<std::ffi::OsStr>, shop: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env("HOME", shop)
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("XDG_CACHE_HOME")
        .env_remove("XDG_STATE_HOME");
    command
}

/// Of every repository here.
const PASSPHRASE: &str = "not a secret: only for measuring";
