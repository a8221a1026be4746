//! A copy of a log whose file the engine will write over, made while the log is in use.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::log_end::{Dialect, LogScan, ZeroHeader};
use super::log_format::{BLOCK_LENGTH, RECYCLABLE_HEADER, left_in_block};
use crate::CaptureError;
use crate::capture::check;
use crate::image::create_new;
use crate::staging::Staging;

const CHUNK: usize = 16 * BLOCK_LENGTH;

/// The records of one log, copied as far as they carry its number and a right checksum; goes on where it ended as the log
/// grows. The file under the log's name is this log from before its first record until the engine renames it, so what
/// was copied under an unchanged name stays right.
#[derive(Debug)]
pub(crate) struct RecycledCopy {
    path: PathBuf,
    file: File,
    scan: LogScan,
    /// The bytes where the scan had to stop, up to the end of that block or of the file.
    left: Vec<u8>,
    cancel: CancellationToken,
}

impl RecycledCopy {
    pub(crate) fn create(
        staging: &Staging,
        number: u64,
        zero_header: ZeroHeader,
    ) -> Result<Self, CaptureError> {
        // Beside the image, on its file system, so that the copy can be moved into it.
        let path = staging.image_dir().with_file_name(format!("recycled-{number:06}.log"));
        // The log of this number may have been another file in an earlier attempt.
        let _ = std::fs::remove_file(&path);
        let file = create_new(&path)?;
        let cancel = staging.cancel.clone();
        Ok(Self {
            path,
            file,
            scan: LogScan::new(number, zero_header, Dialect::RocksDb),
            left: Vec::new(),
            cancel,
        })
    }

    /// Copies what was written since.
    pub(crate) fn extend(&mut self, log: &File, log_path: &Path) -> Result<(), CaptureError> {
        self.scan.resume();
        self.left.clear();
        let mut buffer = vec![0; CHUNK];
        while !self.scan.is_finished() {
            check(&self.cancel)?;
            let from = self.scan.offset();
            let length = read_up_to(log, &mut buffer, from).map_err(CaptureError::io("read", log_path))?;
            let bytes = buffer.get(..length).unwrap_or_default();
            self.scan.feed(bytes);
            let accepted = self.scan.accepted().saturating_sub(from);
            let accepted = usize::try_from(accepted).ok().and_then(|n| bytes.get(..n)).unwrap_or_default();
            self.file.write_all_at(accepted, from).map_err(CaptureError::io("write", &self.path))?;
            if length < CHUNK || self.scan.is_finished() || self.scan.offset() == from {
                let left = self.scan.offset().saturating_sub(from);
                let left = usize::try_from(left).ok().and_then(|n| bytes.get(n..)).unwrap_or_default();
                let block = usize::try_from(left_in_block(self.scan.offset())).unwrap_or(BLOCK_LENGTH);
                self.left.extend_from_slice(left.get(..block).unwrap_or(left));
                break;
            }
        }
        Ok(())
    }

    /// Whether the copy is the log. Not so for a log of an older session that did not recycle: such a log is never
    /// written again, and ends where its file does.
    pub(crate) fn holds_the_log(&self) -> bool {
        !self.scan.is_plain()
    }

    /// How far the log was read.
    pub(crate) fn scan(&self) -> &LogScan {
        &self.scan
    }

    /// Behind the last whole record.
    pub(crate) fn end(&self) -> u64 {
        self.scan.end()
    }

    /// Whether there is something of this log behind what was copied: a record that is not whole, or damaged.
    pub(crate) fn is_cut_short(&self) -> bool {
        self.scan.has_begun(&self.left)
    }

    /// Whether there are some bytes of this log, or of an older one that was so much longer: too few to tell.
    pub(crate) fn may_be_cut_short(&self) -> bool {
        self.left.len() < RECYCLABLE_HEADER && self.left.iter().any(|&byte| byte != 0)
    }

    /// Whether not one record could be read, and it is not because the file still holds an older log from its beginning.
    pub(crate) fn is_unreadable(&self) -> bool {
        !self.left.is_empty() && self.scan.is_formless() && !self.scan.is_of_another(&self.left)
    }

    /// Moves the copy to `place`, and returns its length: that of the last whole record, or with what follows of its block.
    pub(crate) fn move_to(&self, place: &Path, with_left: bool) -> Result<(&File, u64), CaptureError> {
        let failed = || CaptureError::io("write", &self.path);
        let end = if with_left {
            // Behind padding, which is zeros in the copy as it was in the log.
            self.file.write_all_at(&self.left, self.scan.offset()).map_err(failed())?;
            self.scan.offset() + self.left.len() as u64
        } else {
            self.scan.end()
        };
        self.file.set_len(end).map_err(failed())?;
        std::fs::rename(&self.path, place).map_err(CaptureError::io("move to", place))?;
        Ok((&self.file, end))
    }

    pub(crate) fn remove(self) {
        // What stays behind is removed with the staging directory.
        let _ = std::fs::remove_file(self.path);
    }
}

fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
