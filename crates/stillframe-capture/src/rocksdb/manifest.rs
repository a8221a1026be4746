//! A MANIFEST that is read again and again while its engine appends to it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::log_format::{HEADER, Place, RecordReader, Role, look};
use super::setback::Setback;
use super::version_edit::ManifestError;
use super::version_fold::VersionFold;
use crate::CaptureError;
use crate::capture::check;
use crate::pin::{FileMeta, SourceDir, os};

const CHUNK: u64 = 256 * 1024;

/// Where the first whole record behind the first byte of `bytes` begins, which themselves begin at `from`. They end within a block.
fn whole_record_in(bytes: &[u8], from: u64) -> Option<u64> {
    let mut behind = (1..bytes.len()).zip(from + 1..);
    let is_whole = |(skipped, at): &(usize, u64)| {
        let bytes = bytes.get(*skipped..).unwrap_or_default();
        matches!(look(bytes, *at, HEADER), Place::Record(record)
            if record.log_number.is_none() && matches!(record.role, Role::Full | Role::First | Role::Middle | Role::Last))
    };
    behind.find(is_whole).map(|(_, at)| at)
}

/// One MANIFEST, open, with what its edits say up to the length at which it was last looked at.
#[derive(Debug)]
pub(crate) struct Manifest {
    name: String,
    path: PathBuf,
    file: File,
    /// As at the last look; the size is the length that counts.
    meta: FileMeta,
    records: RecordReader,
    fold: VersionFold,
}

impl Manifest {
    /// Opens `name` and reads all of it. `None`: there is no such file.
    pub(crate) fn open(
        dir: &SourceDir,
        name: &str,
        cancel: &CancellationToken,
    ) -> Result<Option<Self>, Setback> {
        let path = dir.path().join(name);
        let Some(file) = dir.open_file(os(name))? else { return Ok(None) };
        let meta = FileMeta::of(&file).map_err(CaptureError::io("read", &path))?;
        let (records, fold) = (RecordReader::default(), VersionFold::default());
        let mut manifest = Self { name: name.to_owned(), path, file, meta, records, fold };
        manifest.read_on(cancel)?;
        Ok(Some(manifest))
    }

    /// Reads what was appended since. `false`: `name` is another file now, or it became shorter; open it anew.
    pub(crate) fn advance(
        &mut self,
        dir: &SourceDir,
        name: &str,
        cancel: &CancellationToken,
    ) -> Result<bool, Setback> {
        if name != self.name {
            return Ok(false);
        }
        let Some(now) = dir.stat(os(name))? else { return Ok(false) };
        if !self.is_same_file(&now) || now.size < self.meta.size {
            return Ok(false);
        }
        self.meta = now;
        self.read_on(cancel)?;
        Ok(true)
    }

    fn read_on(&mut self, cancel: &CancellationToken) -> Result<(), Setback> {
        let mut buffer = vec![0; usize::try_from(CHUNK).expect("256 KiB fit a usize")];
        while self.records.offset() < self.meta.size {
            check(cancel)?;
            let from = self.records.offset();
            let wanted = usize::try_from((self.meta.size - from).min(CHUNK)).expect("at most 256 KiB");
            let (chunk, _) = buffer.split_at_mut(wanted);
            self.file.read_exact_at(chunk, from).map_err(CaptureError::io("read", &self.path))?;
            let fold = &mut self.fold;
            self.records.feed(chunk, |record| fold.push(record)).map_err(|error| self.explain(&error))?;
            if self.records.offset() == from {
                // Half a record: its writer is in the middle of it, or died there. Nothing was done on its account yet. But if
                // something whole follows, it only looks like half a one: its length is damaged.
                if let Some(at) = whole_record_in(chunk, from) {
                    let what =
                        format!("the record at byte {from} is damaged: whole records follow at byte {at}");
                    return Err(Setback::Wrong(CaptureError::Corrupt { path: self.path.clone(), what }));
                }
                break;
            }
        }
        self.fold.check_complete().map_err(|error| self.explain(&error))
    }

    fn explain(&self, error: &ManifestError) -> Setback {
        let path = self.path.clone();
        match error {
            ManifestError::Newer { .. } => {
                Setback::Fatal(CaptureError::UnknownFormat { path, what: error.to_string() })
            }
            _ if self.fold.edits() == 0 => {
                let what = "it does not begin like a MANIFEST; is the database encrypted by its own Env?";
                Setback::Wrong(CaptureError::UnknownFormat { path, what: what.to_owned() })
            }
            _ => Setback::Wrong(CaptureError::Corrupt { path, what: error.to_string() }),
        }
    }

    /// Whether this is the file that was read.
    pub(crate) fn is_same_file(&self, other: &FileMeta) -> bool {
        (other.device, other.inode) == (self.meta.device, self.meta.inode)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn meta(&self) -> &FileMeta {
        &self.meta
    }

    pub(crate) fn fold(&self) -> &VersionFold {
        &self.fold
    }
}
