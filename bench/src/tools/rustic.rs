//! rustic, from the registry of Rust crates.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{PASSPHRASE, Tool, in_shop, repository};
use crate::error::BenchError;
use crate::measurement::call;
use crate::results::Work;
use crate::source::Source;
use crate::tool_name::ToolName;
use crate::tree::need;
use crate::workshop::Workshop;

/// The version that `bench/install.sh` builds.
const VERSION: &str = "0.11.4";

/// rustic with its own defaults: encrypted, compressed.
#[derive(Debug)]
pub(crate) struct Rustic {
    program: PathBuf,
}

impl Rustic {
    /// What `bench/install.sh` has built.
    pub(crate) fn installed(workshop: &Workshop) -> Result<Self, BenchError> {
        let program = workshop.cache().join(format!("rustic-{VERSION}/bin/rustic"));
        need(&program, "run bench/install.sh")?;
        Ok(Self { program })
    }

    fn command(&self, shop: &Path) -> Command {
        let mut command = in_shop(&self.program, shop);
        command.env("RUSTIC_PASSWORD", PASSPHRASE).arg("--repository").arg(repository(shop));
        command.arg("--cache-dir").arg(shop.join("cache")).args(["--no-progress", "--log-level", "warn"]);
        command
    }
}

impl Tool for Rustic {
    fn name(&self) -> ToolName {
        ToolName::Rustic
    }

    fn version(&self) -> Result<String, BenchError> {
        Ok(call(Command::new(&self.program).arg("--version"))?.trim().to_owned())
    }

    fn takes_part(&self, work: Work, _source: &Source) -> bool {
        work != Work::Unlock
    }

    fn prepare(&self, shop: &Path) -> Result<(), BenchError> {
        call(self.command(shop).arg("init")).map(drop)
    }

    fn backup(&self, source: &Source, shop: &Path) -> Command {
        let mut command = self.command(shop);
        command.arg("backup").arg(source.path());
        command
    }

    fn restore(&self, _source: &Source, shop: &Path, to: &Path) -> Command {
        let mut command = self.command(shop);
        command.args(["restore", "latest"]).arg(to);
        command
    }
}
