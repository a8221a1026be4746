//! Where a run works and what it works with.

use std::path::{Path, PathBuf};

use stillframe_storage::SystemClock;
use tempfile::TempDir;

use crate::arguments::Arguments;
use crate::error::BenchError;
use crate::foreground;
use crate::tool_name::ToolName;
use crate::tree::need;

/// The surroundings of one run. Everything it makes lies in one directory, which goes away with it.
#[derive(Debug)]
pub(crate) struct Workshop {
    root: TempDir,
    project: PathBuf,
    /// What is compared, in the order of the table.
    pub(crate) tools: Vec<ToolName>,
    /// The program that is measured.
    pub(crate) stillframe: PathBuf,
    /// Where the table goes.
    pub(crate) results: PathBuf,
    /// The only source of time.
    pub(crate) clock: SystemClock,
    /// Part of the full size.
    pub(crate) scale: f64,
    /// How often each run is repeated.
    pub(crate) rounds: u32,
    /// How often the writer of the foreground takes its turns.
    pub(crate) foreground_rounds: u32,
    /// Whether what takes long is wanted too.
    pub(crate) full: bool,
    /// Images per busy writer.
    pub(crate) captures: u32,
    /// Of the data.
    pub(crate) seed: u64,
}

impl Workshop {
    /// Makes the working directory.
    pub(crate) fn open(arguments: &Arguments) -> Result<Self, BenchError> {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
        let built = project.join("target");
        let work = arguments.work.clone().unwrap_or_else(|| built.join("bench"));
        std::fs::create_dir_all(&work).map_err(BenchError::io("making", &work))?;
        let work = work.canonicalize().map_err(BenchError::io("finding", &work))?;
        let root = tempfile::Builder::new().prefix("run-").tempdir_in(&work);
        let workshop = Self {
            root: root.map_err(BenchError::io("making a directory in", &work))?,
            project: project.to_owned(),
            tools: arguments.tools(),
            stillframe: arguments.stillframe.clone().unwrap_or_else(|| built.join("release/stillframe")),
            results: arguments.results.clone().unwrap_or_else(|| built.join("bench/RESULTS.md")),
            clock: SystemClock::new(),
            scale: arguments.scale,
            rounds: arguments.rounds.unwrap_or(3),
            foreground_rounds: arguments.rounds.unwrap_or(foreground::ROUNDS),
            full: arguments.full,
            captures: arguments.captures,
            seed: arguments.seed,
        };
        need(&workshop.stillframe, "build it with `cargo build --release`")?;
        Ok(workshop)
    }

    /// A place in the working directory; nothing is made.
    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// An empty directory of that name; what was there is removed.
    pub(crate) fn empty_dir(&self, name: &str) -> Result<PathBuf, BenchError> {
        let path = self.place(name);
        self.remove(&path)?;
        std::fs::create_dir_all(&path).map_err(BenchError::io("making", &path))?;
        Ok(path)
    }

    /// Removes a directory of ours, if it is there.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), BenchError> {
        debug_assert!(path.starts_with(self.root.path()), "only what is ours");
        match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(BenchError::io("removing", path)(error))
            }
            _ => Ok(()),
        }
    }

    /// That part of the number which the scale asks for, at least 1.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "sizes of data, to a part in 2^53"
    )]
    pub(crate) fn scaled(&self, number: u64) -> u64 {
        (number as f64 * self.scale).round().max(1.0) as u64
    }

    /// Where `bench/install.sh` puts what is no Debian package.
    pub(crate) fn cache(&self) -> PathBuf {
        self.project.join(".ci/cache")
    }

    /// The sources of the bench.
    pub(crate) fn bench(&self) -> PathBuf {
        self.project.join("bench")
    }
}

/// One line about what is going on, beside the table.
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}
