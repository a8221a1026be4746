//! restic as Debian ships it.

use std::path::Path;
use std::process::Command;

use super::{PASSPHRASE, Tool, in_shop, repository};
use crate::error::BenchError;
use crate::measurement::call;
use crate::results::Work;
use crate::source::Source;
use crate::tool_name::ToolName;

/// restic with its own defaults: encrypted, compressed (repository version 2).
#[derive(Debug)]
pub(crate) struct Restic;

impl Restic {
    fn command(shop: &Path) -> Command {
        let mut command = in_shop("restic", shop);
        command.env("RESTIC_PASSWORD", PASSPHRASE).arg("--repo").arg(repository(shop));
        command.arg("--cache-dir").arg(shop.join("cache"));
        command
    }
}

impl Tool for Restic {
    fn name(&self) -> ToolName {
        ToolName::Restic
    }

    fn version(&self) -> Result<String, BenchError> {
        let said = call(Command::new("restic").arg("version"))?;
        Ok(format!("{} (Debian's; upstream is at 0.19)", said.trim()))
    }

    fn takes_part(&self, work: Work, _source: &Source) -> bool {
        work != Work::Unlock
    }

    fn prepare(&self, shop: &Path) -> Result<(), BenchError> {
        call(Self::command(shop).arg("init")).map(drop)
    }

    fn backup(&self, source: &Source, shop: &Path) -> Command {
        let mut command = Self::command(shop);
        command.args(["backup", "--quiet"]).arg(source.path());
        command
    }

    fn restore(&self, _source: &Source, shop: &Path, to: &Path) -> Command {
        let mut command = Self::command(shop);
        command.args(["restore", "latest", "--quiet", "--target"]).arg(to);
        command
    }
}
