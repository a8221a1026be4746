//! The second phase: the database into staging, inside the read transaction.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use stillframe_storage::{RelativePath, failpoint};

use crate::image::{FileCopy, ImageBuilder, create_new, set_attributes};
use crate::snapshot::{FileKind, Pointer, Role, SNAPSHOT_VERSION, Snapshot, SnapshotFile};
use crate::{CaptureError, CaptureOptions, Context, Engine, Event, Image};

use super::begin::open_own;
use super::error::failed;
use super::header::Header;
use super::open_databases::OpenDatabase;
use super::wal::{Layers, Wal};
use super::{PROFILE, Reader, State, Transaction};

/// How much is copied between two looks at time, cancellation and the log's length.
const STEP_BYTES: u32 = 4 << 20;

/// Copies the database as it was when the transaction began.
pub(crate) fn finish(
    transaction: Transaction,
    options: &CaptureOptions,
    context: &Context<'_>,
) -> Result<Image, CaptureError> {
    let Transaction { path, meta, header, staging, instant, began, attempts, state } = transaction;
    let mut builder = ImageBuilder::new(staging);
    let name = path.file_name().unwrap_or_default();
    let in_image = RelativePath::from_path(Path::new(name))
        .map_err(|error| CaptureError::Refused { path: path.clone(), what: error.to_string() })?;
    let place = builder.make_place(&in_image)?;
    let mode = match state {
        State::Empty => {
            create_new(&place)?;
            "empty"
        }
        State::Copied(copy) => {
            std::fs::rename(&copy, &place).map_err(CaptureError::io("move", &place))?;
            "wal, copied while it was closed"
        }
        State::Reading { reader, wal, bytes, open } => {
            create_new(&place)?;
            let copying =
                Copying { path: &path, bytes: &bytes, place: &place, open: &open, options, context };
            let mode = match reader {
                Reader::Free(connection) => {
                    copying.run(connection, Limits { wal: wal.as_ref(), until: None }).map(|()| "wal")
                }
                Reader::Watched(watch) => match watch.stop() {
                    None => Err(copying.locked_too_long()),
                    Some(connection) => {
                        let until = Some(began + options.sqlite_lock_timeout);
                        copying.run(connection, Limits { wal: None, until }).map(|()| "rollback")
                    }
                },
            };
            // The connection is closed: only now may its files be closed, and others of this process open it again.
            drop((bytes, wal));
            drop(open);
            mode?
        }
    };
    let window = context.clock.monotonic().saturating_sub(began);
    failpoint("sqlite::copied");
    let size = check_copy(&path, &place)?;
    let file = std::fs::File::open(&place).map_err(CaptureError::io("open", &place))?;
    set_attributes(&file, &place, &meta)?;
    let snapshot = Snapshot {
        version: SNAPSHOT_VERSION,
        engine: Engine::Sqlite,
        profile: PROFILE,
        engine_version: header.and_then(|header| header.library_version()),
        source: path.clone(),
        instant,
        window_us: u64::try_from(window.as_micros()).unwrap_or(u64::MAX),
        attempts,
        lineage: None,
        directory: None,
        directories: Vec::new(),
        pointers: vec![Pointer {
            path: in_image.to_string(),
            value: match header {
                None => "empty".to_owned(),
                Some(header) => format!(
                    "journal mode {mode}, page size {}, change counter {} when it was opened",
                    header.page_size, header.change_counter
                ),
            },
        }],
        weakening: Vec::new(),
        files: vec![SnapshotFile {
            path: in_image,
            kind: FileKind::File,
            role: Role::Database,
            directory: String::new(),
            size,
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            modified: meta.modified,
            identity: None,
        }],
    };
    Ok(builder.finish(snapshot))
}

struct Copying<'a> {
    path: &'a Path,
    bytes: &'a File,
    place: &'a PathBuf,
    open: &'a OpenDatabase,
    options: &'a CaptureOptions,
    context: &'a Context<'a>,
}

/// What bounds a copy.
#[derive(Clone, Copy)]
struct Limits<'a> {
    wal: Option<&'a Wal>,
    /// The monotonic time at which the database must be let go.
    until: Option<Duration>,
}

impl Copying<'_> {
    fn run(&self, source: Connection, limits: Limits<'_>) -> Result<(), CaptureError> {
        let copied = self.copy(&source, limits).and_then(|()| self.check_locks());
        // Ends the transaction, whatever came out. Closing does not checkpoint: the connection is read-only.
        let closed = source.close().map_err(|(_, error)| failed(self.path)(error));
        copied?;
        closed
    }

    fn copy(&self, source: &Connection, limits: Limits<'_>) -> Result<(), CaptureError> {
        let number = |pragma: &str| source.query_row(pragma, [], |row| row.get(0)).map_err(failed(self.path));
        let (page_size, pages): (u32, u32) = (number("PRAGMA page_size")?, number("PRAGMA page_count")?);
        if self.copy_bytes(page_size, pages, limits)? {
            return Ok(());
        }
        tracing::debug!(path = %self.path.display(), "SQLite copies it page by page");
        let emptied = File::options().write(true).truncate(true).open(self.place);
        emptied.map_err(CaptureError::io("empty", self.place))?;
        let mut target = open_own(self.place)?;
        // The file is worth nothing until the image is whole: no journal, no syncs.
        target
            .execute_batch("PRAGMA journal_mode=off; PRAGMA synchronous=off; PRAGMA locking_mode=exclusive;")
            .map_err(failed(self.place))?;
        self.copy_pages(source, &mut target, page_size, limits)?;
        target.close().map_err(|(_, error)| failed(self.place)(error))
    }

    /// The file's bytes, and over them the log's. `false`: SQLite itself must do it.
    fn copy_bytes(&self, page_size: u32, pages: u32, limits: Limits<'_>) -> Result<bool, CaptureError> {
        let layers = limits.wal.map_or(Ok(Layers::FileAlone), |wal| wal.layers(page_size))?;
        let pages = match &layers {
            Layers::FileAlone => pages,
            Layers::FileAndLog(overlay) => overlay.database_pages,
            Layers::Unclear => return Ok(false),
        };
        let size = u64::from(pages) * u64::from(page_size);
        let opened = File::options().write(true).open(self.place);
        let target = opened.map_err(CaptureError::io("open", self.place))?;
        let copy = FileCopy { from: self.bytes, from_path: self.path, target: &target, to: self.place };
        let mut look = |done| self.look(done, size, limits);
        let copied = copy.prefix(size, &mut look)?;
        look(copied)?;
        let (Some(wal), Layers::FileAndLog(overlay)) = (limits.wal, &layers) else {
            return Ok(copied == size);
        };
        // Pages that were added are in the log alone.
        target.set_len(size).map_err(CaptureError::io("write", self.place))?;
        let whole = wal.put_over(overlay, &target, self.place)?;
        look(size)?;
        Ok(whole)
    }

    fn copy_pages(
        &self,
        source: &Connection,
        target: &mut Connection,
        page_size: u32,
        limits: Limits<'_>,
    ) -> Result<(), CaptureError> {
        let pages = i32::try_from((STEP_BYTES / page_size.max(512)).max(1)).expect("at most 8192 pages");
        let backup = Backup::new(source, target).map_err(failed(self.place))?;
        loop {
            let result = backup.step(pages).map_err(failed(self.place))?;
            let progress = backup.progress();
            let bytes = |pages: i32| u64::try_from(pages).unwrap_or(0) * u64::from(page_size);
            let total = bytes(progress.pagecount);
            self.look(total.saturating_sub(bytes(progress.remaining)), total, limits)?;
            match result {
                StepResult::Done => return Ok(()),
                StepResult::More => {}
                // Inside our own read transaction only the target could be busy, and nobody else knows it.
                _ => return Err(super::error::locked(self.path)),
            }
        }
    }

    /// Tells how far it is, and ends it when it was cancelled, the time is over, or the log grew too long.
    fn look(&self, done: u64, total: u64, limits: Limits<'_>) -> Result<(), CaptureError> {
        self.context.check_cancelled()?;
        (self.context.events)(Event::Copied { done, total });
        if done < total && limits.until.is_some_and(|until| self.context.clock.monotonic() >= until) {
            return Err(self.locked_too_long());
        }
        limits.wal.map_or(Ok(()), |wal| self.check_growth(wal))
    }

    /// Without its locks the copy may be of several moments.
    fn check_locks(&self) -> Result<(), CaptureError> {
        if self.open.locks_were_lost() {
            return Err(CaptureError::Locked {
                path: self.path.to_owned(),
                what: "this process lost its locks on it, because another part of it closed the same file; capture it \
                       again while nothing else of this process reads it"
                    .to_owned(),
            });
        }
        Ok(())
    }

    /// While the transaction lives the log can only grow, and stays that long on the disk of the application.
    fn check_growth(&self, wal: &Wal) -> Result<(), CaptureError> {
        let grown = wal.growth();
        if grown <= self.options.sqlite_wal_cap {
            return Ok(());
        }
        Err(CaptureError::TooBusy {
            path: self.path.to_owned(),
            moved: format!(
                "{} grew by {grown} bytes while the database was copied, more than the {} allowed",
                wal.path().display(),
                self.options.sqlite_wal_cap
            ),
            attempts: 1,
            waited: Duration::ZERO,
        })
    }

    fn locked_too_long(&self) -> CaptureError {
        CaptureError::Locked {
            path: self.path.to_owned(),
            what: format!(
                "it uses a rollback journal, so its application's commits wait or fail while it is copied, and the \
                 copy was not done after {:?} (--sqlite-lock-timeout); let the application use PRAGMA \
                 journal_mode=WAL, where nobody waits, or allow more time",
                self.options.sqlite_lock_timeout
            ),
        }
    }
}

/// The copy is whole pages and nothing beside it. Returns its size.
fn check_copy(path: &Path, place: &PathBuf) -> Result<u64, CaptureError> {
    for suffix in ["-wal", "-shm", "-journal"] {
        match std::fs::remove_file(super::beside(place, suffix)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(CaptureError::from_io("remove", place, error));
            }
            _ => {}
        }
    }
    let size = std::fs::metadata(place).map_err(CaptureError::io("read", place))?.len();
    if size == 0 {
        return Ok(0);
    }
    let corrupt = |what| CaptureError::Corrupt { path: path.to_owned(), what };
    let header = Header::read(place)?.map_err(corrupt)?;
    let least = u64::from(header.page_size) * u64::from(header.pages.unwrap_or(1));
    if size >= least {
        Ok(size)
    } else {
        Err(corrupt(format!("its copy has {size} bytes and should have {least}")))
    }
}
