//! The program that all this is about.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{PASSPHRASE, Tool, in_shop, repository};
use crate::error::BenchError;
use crate::measurement::call;
use crate::results::Work;
use crate::source::Source;
use crate::tool_name::ToolName;

/// How much of the machine it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// All of it (`--fast`).
    Fast,
    /// What others leave: the default.
    Polite,
}

/// Stillframe with its own defaults, encrypted.
#[derive(Debug)]
pub(crate) struct Stillframe {
    program: PathBuf,
    pace: Pace,
}

impl Stillframe {
    /// As the program at `program` does it.
    pub(crate) fn new(program: &Path, pace: Pace) -> Self {
        Self { program: program.to_owned(), pace }
    }

    /// The program, keeping what it keeps in the shop.
    pub(crate) fn command(&self, shop: &Path) -> Command {
        let mut command = in_shop(&self.program, shop);
        command.env("STILLFRAME_PASSPHRASE", PASSPHRASE);
        command
            .env("STILLFRAME_STATE_DIR", shop.join("state"))
            .env("STILLFRAME_CACHE_DIR", shop.join("cache"));
        command.arg("--json");
        command
    }
}

impl Tool for Stillframe {
    fn name(&self) -> ToolName {
        match self.pace {
            Pace::Fast => ToolName::Stillframe,
            Pace::Polite => ToolName::Polite,
        }
    }

    fn version(&self) -> Result<String, BenchError> {
        Ok(call(Command::new(&self.program).arg("--version"))?.trim().to_owned())
    }

    fn takes_part(&self, work: Work, _source: &Source) -> bool {
        // Restoring and unlocking have one pace only.
        self.pace == Pace::Fast || !matches!(work, Work::Restore | Work::Unlock)
    }

    fn prepare(&self, shop: &Path) -> Result<(), BenchError> {
        call(self.command(shop).args(["repo", "init"]).arg(repository(shop))).map(drop)
    }

    fn backup(&self, source: &Source, shop: &Path) -> Command {
        let mut command = self.command(shop);
        command.arg("backup").arg(source.url()).arg("--repo").arg(repository(shop));
        // The bench fills disks that are nobody's live data.
        command.args(["--reserve", "0"]);
        if self.pace == Pace::Fast {
            command.arg("--fast");
        }
        command
    }

    fn restore(&self, _source: &Source, shop: &Path, to: &Path) -> Command {
        let mut command = self.command(shop);
        command.args(["restore", "latest", "--repo"]).arg(repository(shop)).arg("--to").arg(to);
        command
    }

    fn unlock(&self, shop: &Path) -> Option<Command> {
        let mut command = self.command(shop);
        command.args(["snapshots", "--repo"]).arg(repository(shop));
        Some(command)
    }
}
