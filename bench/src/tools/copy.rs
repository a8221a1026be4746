//! `cp -a`: no backup, but what a copy on the same disk costs.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Tool, repository};
use crate::error::BenchError;
use crate::measurement::call;
use crate::results::Work;
use crate::source::Source;
use crate::tool_name::ToolName;

/// `cp -a`, of whole directories and without reflinks.
#[derive(Debug)]
pub(crate) struct Copy;

impl Tool for Copy {
    fn name(&self) -> ToolName {
        ToolName::Cp
    }

    fn version(&self) -> Result<String, BenchError> {
        Ok(call(Command::new("cp").arg("--version"))?.lines().next().unwrap_or_default().to_owned())
    }

    fn takes_part(&self, work: Work, _source: &Source) -> bool {
        // A copy knows nothing of the copy before.
        matches!(work, Work::Full | Work::Restore)
    }

    fn prepare(&self, shop: &Path) -> Result<(), BenchError> {
        let repository = repository(shop);
        std::fs::create_dir_all(&repository).map_err(BenchError::io("making", &repository))
    }

    fn backup(&self, source: &Source, shop: &Path) -> Command {
        copy(source.path(), &repository(shop))
    }

    /// The data have changed since they were copied: a copy of what is there now.
    fn before_restore(&self, source: &Source, shop: &Path) -> Result<(), BenchError> {
        let latest = latest(shop);
        std::fs::create_dir_all(&latest).map_err(BenchError::io("making", &latest))?;
        call(&mut copy(source.path(), &latest)).map(drop)
    }

    fn restore(&self, source: &Source, shop: &Path, to: &Path) -> Command {
        let name = source.path().file_name().unwrap_or_default();
        copy(&latest(shop).join(name), to)
    }
}

fn latest(shop: &Path) -> PathBuf {
    shop.join("latest")
}

fn copy(from: &Path, into: &Path) -> Command {
    let mut command = Command::new("cp");
    command.args(["-a", "--reflink=never"]).arg(from).arg(into);
    command
}
