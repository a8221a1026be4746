//! What can stop a run.

use std::path::{Path, PathBuf};

/// A run that cannot go on. Nothing is skipped: a table with holes would compare nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// A file of ours could not be read or written.
    #[error("{doing} {path}: {source}", path = path.display())]
    Io {
        /// The verb.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A program that the comparison needs is not there.
    #[error("{0} is missing: {1}")]
    Missing(String, &'static str),
    /// A program failed.
    #[error("`{command}` failed ({how}): {said}")]
    Failed {
        /// The words it was called with.
        command: String,
        /// Its exit.
        how: String,
        /// The end of what it printed.
        said: String,
    },
    /// What came back is not what went in: no time of such a run counts.
    #[error("{tool} did not bring the data back: {what}")]
    Different {
        /// Whose restore.
        tool: &'static str,
        /// The first difference.
        what: String,
    },
    /// The fjall data could not be made or read.
    #[error("{path}: {source}", path = path.display())]
    Fjall {
        /// Its directory.
        path: PathBuf,
        /// What fjall said.
        source: Box<fjall::Error>,
    },
    /// The SQLite data could not be made or read.
    #[error("{path}: {source}", path = path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A program printed something that cannot be understood.
    #[error("{program} printed no {wanted}: {said}")]
    Unreadable {
        /// Which program.
        program: &'static str,
        /// What was looked for.
        wanted: &'static str,
        /// What was there.
        said: String,
    },
    /// The busy writer did not get far enough in time, or ended.
    #[error("the busy writer {0}")]
    Writer(String),
}

impl BenchError {
    /// Makes the error of a file operation: `.map_err(BenchError::io("writing", path))`.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    /// Makes the error of a SQLite call.
    pub(crate) fn sqlite(path: &Path) -> impl Fn(rusqlite::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Sqlite { path: path.clone(), source }
    }

    /// Makes the error of a fjall call.
    pub(crate) fn fjall(path: &Path) -> impl Fn(fjall::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Fjall { path: path.clone(), source: Box::new(source) }
    }
}
