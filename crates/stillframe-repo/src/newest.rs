//! The time of the newest backup that this machine knows of: a clock that was set back must not make a new backup an old one.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use stillframe_storage::make_private_dirs;

#[derive(Debug)]
pub(crate) struct Newest {
    path: PathBuf,
}

impl Newest {
    pub(crate) fn new(state: &Path) -> Self {
        Self { path: state.join("newest") }
    }

    /// `None` where nothing is known, as on a new machine.
    pub(crate) fn get(&self) -> Option<Timestamp> {
        std::fs::read_to_string(&self.path).ok()?.trim().parse().ok()
    }

    /// Takes note of a backup.
    pub(crate) fn note(&self, created: Timestamp) {
        if self.get().is_some_and(|known| known >= created) {
            return;
        }
        let draft = self.path.with_extension(format!("{}", std::process::id()));
        let written = make_private_dirs(self.path.parent().unwrap_or(Path::new(".")))
            .and_then(|()| std::fs::write(&draft, created.to_string()))
            .and_then(|()| std::fs::rename(&draft, &self.path));
        if let Err(error) = written {
            tracing::debug!(%error, "the time of the newest backup could not be noted");
        }
    }
}
