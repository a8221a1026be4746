//! From an accepted attempt to an image: logs up to their ends, pointers as they were read, a description.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use stillframe_storage::{RelativePath, failpoint};

use super::attempt::{Accepted, Capture, PinnedFile, SmallFile};
use super::logs::{LINKS, LogBytes, LogPart, TornEnd};
use super::options_file::with_wal_dir;
use super::sabotage::Sabotage;
use super::table_identity::TableIdentity;
use crate::pin::{FileMeta, Located};
use crate::snapshot::{
    FileKind, NamedDirectory, Pointer, Role, SNAPSHOT_VERSION, Snapshot, SnapshotFile, Weakening,
};
use crate::window::Still;
use crate::{CaptureError, Engine, Event, Image};

/// Version of this profile. Rises when images of the same source would come out differently.
const PROFILE: u32 = 1;

/// Everything of the image that was made, as opposed to pinned.
#[derive(Debug, Default)]
pub(crate) struct Made {
    files: Vec<SnapshotFile>,
    pointers: Vec<Pointer>,
    weakening: Vec<Weakening>,
}

impl Capture<'_> {
    /// Makes everything that is not pinned. `None`: a file was cut meanwhile; what was made is gone, look again.
    pub(crate) fn assemble(&mut self, accepted: &Accepted) -> Result<Option<Made>, CaptureError> {
        let mut made = Made::default();
        failpoint("rocksdb::accepted");
        let whole = self.add_logs(&mut made)?
            && self.add_pointers(accepted, &mut made)?
            && self.tables_are_whole()?;
        if !whole {
            for file in &made.files {
                if let Some(place) = self.builder.made(&file.path) {
                    std::fs::remove_file(place).map_err(CaptureError::io("remove", place))?;
                }
            }
            self.logs.release_all();
            return Ok(None);
        }
        failpoint("rocksdb::assembled");
        Ok(Some(made))
    }

    fn add_logs(&mut self, made: &mut Made) -> Result<bool, CaptureError> {
        self.sabotage.pause(Sabotage::RecycledLogsLate);
        let directory = self.directories.logs().name.clone();
        let total: u64 = self.logs.iter().map(|(_, log)| log.noted_end()).sum();
        let (mut done, mut younger_records) = (0, false);
        for (number, log) in self.logs.iter() {
            self.context.check_cancelled()?;
            let path = relative(log.name.as_bytes());
            let dir = &self.directories.logs().dir;
            let torn_end = match self.sabotage {
                Sabotage::RecycledLogsLate => TornEnd::Keep,
                _ if younger_records => TornEnd::Tell,
                // The youngest may be there before the one in use is full, and hold nothing.
                _ => TornEnd::Cut,
            };
            let LogPart { bytes, damage } =
                log.part(number, torn_end, dir, self.dialect(), self.context.cancel)?;
            if let Some(effect) = &damage {
                let setting = format!("damaged log {}", log.path.display());
                made.weakening.push(Weakening { setting, effect: effect.clone() });
            }
            let end = match bytes {
                LogBytes::Original { file, end } => {
                    let end = self.late_end(end, file);
                    if !self.builder.copy(&path, file, &log.path, end, &log.meta)? {
                        return Ok(false);
                    }
                    end
                }
                LogBytes::Copied { copy, with_left } => {
                    let place = self.builder.make_place(&path)?;
                    let (file, end) = copy.move_to(&place, with_left)?;
                    crate::image::set_attributes(file, &place, &log.meta)?;
                    end
                }
            };
            failpoint("rocksdb::log copied");
            tracing::debug!(path = %log.path.display(), end, of = log.noted_end(), "copied a log");
            done += end;
            (self.context.events)(Event::Copied { done, total: total.max(done) });
            if end < log.noted_end() {
                let value = format!("{} bytes were there, {end} of them in whole records", log.noted_end());
                made.pointers.push(Pointer { path: path.to_string(), value });
            }
            made.files.push(file(path, Role::Log, &directory, end, &log.meta));
            younger_records |= end > 0;
            // A damaged one is copied as its file is now, which may have been made another log's meanwhile.
            if damage.is_some() && !log.is_named(dir)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The end that a capture without care would take.
    fn late_end(&self, end: u64, file: &std::fs::File) -> u64 {
        if self.sabotage == Sabotage::RecycledLogsLate {
            return file.metadata().map_or(end, |meta| end.min(meta.len()));
        }
        end
    }

    fn add_pointers(&mut self, accepted: &Accepted, made: &mut Made) -> Result<bool, CaptureError> {
        let manifest = self.manifest.as_ref().expect("an accepted attempt has read a MANIFEST");
        let path = relative(manifest.name().as_bytes());
        let length = accepted.manifest_length;
        if !self.builder.copy(&path, manifest.file(), manifest.path(), length, manifest.meta())? {
            return Ok(false);
        }
        failpoint("rocksdb::manifest copied");
        let current = String::from_utf8_lossy(&accepted.current.bytes).trim_end().to_owned();
        made.pointers.push(Pointer { path: "CURRENT".to_owned(), value: current });
        let value =
            format!("inode {}, {length} bytes, {} edits", manifest.meta().inode, manifest.fold().edits());
        made.pointers.push(Pointer { path: path.to_string(), value });
        made.files.push(file(path, Role::Pointer, "", length, manifest.meta()));
        let current = &accepted.current;
        self.builder.write(&relative(b"CURRENT"), &current.bytes, &current.meta)?;
        made.files.push(small(current, Role::Pointer, &current.bytes));
        if let Some(identity) = &accepted.identity {
            self.builder.write(&relative(b"IDENTITY"), &identity.bytes, &identity.meta)?;
            made.files.push(small(identity, Role::Other, &identity.bytes));
        }
        if let Some(options) = &self.settings.file {
            // An image that is opened with its options must not touch the logs of the original.
            let bytes = with_wal_dir(&options.bytes, None);
            self.builder.write(&relative(options.name.as_bytes()), &bytes, &options.meta)?;
            made.files.push(small(options, Role::Other, &bytes));
        }
        Ok(true)
    }

    /// Compares every pin with the length that the MANIFEST gives once more: engines that delete slowly cut files in place, and
    /// RocksDB 5.14 did so whatever their link count was.
    fn tables_are_whole(&mut self) -> Result<bool, CaptureError> {
        self.release_dead();
        if self.sabotage == Sabotage::HandlesInsteadOfLinks {
            self.sabotage.pause(Sabotage::HandlesInsteadOfLinks);
            return Ok(true);
        }
        let mut cut = Vec::new();
        for (number, pinned) in self.live() {
            let pin = self.builder.pins.get(&pinned.path).expect("a live file is pinned");
            let length = match &pin.located {
                Located::Path(path) => path.metadata().map_err(CaptureError::io("read", path))?.len(),
                Located::Handle(file) => {
                    file.metadata().map_err(CaptureError::io("read", pinned.path.as_path()))?.len()
                }
            };
            if length != pinned.size {
                cut.push(number);
            }
        }
        cut.iter().for_each(|&number| self.forget(number));
        Ok(cut.is_empty())
    }

    /// The image.
    pub(crate) fn finish(mut self, still: &Still<Accepted>, made: Made) -> Result<Image, CaptureError> {
        let mut files = made.files;
        for (number, pinned) in self.live() {
            files.push(self.describe(number, pinned)?);
        }
        self.copy_from_handles(&mut files)?;
        self.logs.release_all();
        // Left over when it is not empty or was never made; the image does not list it either way.
        let _ = std::fs::remove_dir(self.builder.staging.image_dir().join(LINKS));
        let snapshot = Snapshot {
            version: SNAPSHOT_VERSION,
            engine: Engine::RocksDb,
            profile: PROFILE,
            engine_version: self.settings.options.rocksdb_version(),
            source: self.path.clone(),
            instant: still.instant,
            window_us: u64::try_from(still.window.as_micros()).unwrap_or(u64::MAX),
            attempts: still.attempts,
            lineage: self.lineage(&still.value),
            directory: None,
            directories: self.named_directories(&files),
            pointers: made.pointers,
            weakening: self.weakening(&files, made.weakening),
            files,
        };
        Ok(self.builder.finish(snapshot))
    }

    fn describe(&self, number: u64, pinned: &PinnedFile) -> Result<SnapshotFile, CaptureError> {
        let directory = &self.directories.get(pinned.dir).name;
        let role = if pinned.is_blob { Role::Blob } else { Role::Table };
        let Some(pin) = self.builder.pins.get(&pinned.path) else {
            let (_, meta) = self.handles.get(&pinned.path).expect("a live file is pinned");
            return Ok(file(pinned.path.clone(), role, directory, pinned.size, meta));
        };
        let mut described = file(pinned.path.clone(), role, directory, pinned.size, &pin.meta);
        if !pinned.is_blob {
            described.identity = self.identity(number, pinned, &pin.located)?;
        }
        Ok(described)
    }

    /// What proves that a table is the one that an earlier backup holds: its unique id, which the MANIFEST has since 7.3, or
    /// the properties that id is made of.
    fn identity(
        &self,
        number: u64,
        pinned: &PinnedFile,
        located: &Located,
    ) -> Result<Option<String>, CaptureError> {
        if let Some(id) = pinned.unique_id {
            return Ok(Some(format!("{:032x}-{number}", u128::from_be_bytes(id))));
        }
        if self.is_leveldb() {
            return Ok(None);
        }
        let table = located.open().map_err(CaptureError::io("open", pinned.path.as_path()))?;
        let identity = TableIdentity::read(&table, pinned.size);
        let identity = identity.map_err(CaptureError::io("read", pinned.path.as_path()))?;
        Ok(identity.map(|identity| {
            let TableIdentity { db_id, session_id, original_number, properties_hash } = identity;
            format!("{db_id}-{session_id}-{original_number}-{properties_hash:016x}-{number}")
        }))
    }

    /// The directory and the id that the database gave itself.
    fn lineage(&self, accepted: &Accepted) -> Option<String> {
        let stat = std::fs::metadata(&self.path).ok()?;
        let identity = accepted.identity.as_ref().map(|file| file.bytes.trim_ascii());
        let id = self.fold()?.db_id().or(identity).unwrap_or_default();
        let id = String::from_utf8_lossy(id);
        Some(format!("rocksdb:{}:{}:{id}:{}", stat.dev(), stat.ino(), self.path.display()))
    }

    fn named_directories(&self, files: &[SnapshotFile]) -> Vec<NamedDirectory> {
        let used = |name: &str| files.iter().any(|file| file.directory == name);
        let named = self.directories.all().filter(|dir| !dir.name.is_empty() && used(&dir.name));
        let named = named.map(|dir| NamedDirectory {
            name: dir.name.clone(),
            original: dir.dir.path().to_owned(),
            option: dir.option.clone(),
        });
        named.collect()
    }

    fn weakening(&self, files: &[SnapshotFile], mut weakening: Vec<Weakening>) -> Vec<Weakening> {
        let options = &self.settings.options;
        let mut add = |setting: &str, effect: &str| {
            weakening.push(Weakening { setting: setting.to_owned(), effect: effect.to_owned() });
        };
        if options.manual_wal_flush() {
            add(
                "manual_wal_flush",
                "Writes since the program's last FlushWAL were in its memory only and are not in this image.",
            );
        }
        if options.best_efforts_recovery() {
            add(
                "best_efforts_recovery",
                "A program that opens a copy with this setting does not replay logs: what was not in tables yet is lost to it.",
            );
        }
        if !files.iter().any(|file| file.role == Role::Log) {
            add("no log", "There was no log beside the tables, as in a checkpoint that was never opened.");
        }
        weakening
    }

    /// For [`Sabotage::HandlesInsteadOfLinks`]: what the handles still show.
    fn copy_from_handles(&mut self, files: &mut [SnapshotFile]) -> Result<(), CaptureError> {
        for (path, (handle, meta)) in &self.handles {
            let size = handle.metadata().map_err(CaptureError::io("read", path.as_path()))?.len();
            self.builder.copy(path, handle, path.as_path(), size, meta)?;
            files.iter_mut().filter(|file| file.path == *path).for_each(|file| file.size = size);
        }
        Ok(())
    }
}

fn relative(name: &[u8]) -> RelativePath {
    RelativePath::from_bytes(name).expect("the engines' names are single plain words")
}

fn small(of: &SmallFile, role: Role, bytes: &[u8]) -> SnapshotFile {
    file(relative(of.name.as_bytes()), role, "", bytes.len() as u64, &of.meta)
}

fn file(path: RelativePath, role: Role, directory: &str, size: u64, meta: &FileMeta) -> SnapshotFile {
    SnapshotFile {
        path,
        kind: FileKind::File,
        role,
        directory: directory.to_owned(),
        size,
        mode: meta.mode,
        uid: meta.uid,
        gid: meta.gid,
        modified: meta.modified,
        identity: None,
    }
}
