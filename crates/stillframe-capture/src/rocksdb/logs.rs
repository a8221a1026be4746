//! The logs of one capture: found newest first, their ends noted, copied up to these.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, linkat};
use rustix::io::Errno;
use stillframe_storage::RelativePath;
use tokio_util::sync::CancellationToken;

use super::file_name::FileName;
use super::log_end::{Dialect, LogFile, LogScan, ScanError, ZeroHeader};
use super::log_format::{HEADER, RECYCLABLE_HEADER};
use super::recycled_copy::RecycledCopy;
use crate::CaptureError;
use crate::pin::{FileMeta, SourceDir};
use crate::staging::Staging;

/// The directory, inside the staging directory, for links to logs. Not part of an image: logs are always copied, because
/// opening an image cuts and deletes its logs in place.
pub(crate) const LINKS: &str = ".log-links";

/// How logs have to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// Their bytes never change; what lies below the noted end can be copied whenever.
    Never,
    /// The engine writes new logs over old ones: what counts is copied before the pointers are read again.
    Recycles(ZeroHeader),
}

/// One log that is needed.
#[derive(Debug)]
pub(crate) struct NotedLog {
    pub(crate) name: OsString,
    pub(crate) path: PathBuf,
    /// The size is the end that was noted.
    pub(crate) meta: FileMeta,
    file: File,
    link: Option<PathBuf>,
    copy: Option<RecycledCopy>,
}

/// All logs that are needed, by number.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    by_number: BTreeMap<u64, NotedLog>,
}

impl Logs {
    /// Takes hold of log `number` and notes its end. `false`: it is gone.
    pub(crate) fn note(
        &mut self,
        staging: &mut Staging,
        dir: &SourceDir,
        number: u64,
        name: &OsStr,
        reuse: Reuse,
    ) -> Result<bool, CaptureError> {
        let Some(now) = dir.stat(name)? else { return Ok(false) };
        let same = self.by_number.get(&number).is_some_and(|log| {
            (log.meta.device, log.meta.inode) == (now.device, now.inode) && log.name == name
        });
        if !same {
            self.release(number);
            let Some(log) = NotedLog::hold(staging, dir, name, &now)? else { return Ok(false) };
            self.by_number.insert(number, log);
        }
        let log = self.by_number.get_mut(&number).expect("it was there or was inserted");
        log.meta = FileMeta::of(&log.file).map_err(CaptureError::io("read", &log.path))?;
        if let Reuse::Recycles(zero_header) = reuse {
            log.copy_now(staging, number, zero_header)?;
        }
        Ok(true)
    }

    /// Whether the name of each log still is the file that was noted. Returns what is not.
    pub(crate) fn find_moved(&self, dir: &SourceDir) -> Result<Option<&OsStr>, CaptureError> {
        for log in self.by_number.values() {
            if !log.is_named(dir)? {
                return Ok(Some(&log.name));
            }
        }
        Ok(None)
    }

    /// Whether one of the logs is of the kind that is written over older ones.
    pub(crate) fn are_recycled(&self) -> Result<bool, CaptureError> {
        for log in self.by_number.values() {
            if log.begins_recyclable()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Lets go of all that `needed` does not want.
    pub(crate) fn retain(&mut self, needed: impl Fn(u64) -> bool) {
        let dead: Vec<u64> = self.by_number.keys().copied().filter(|&number| !needed(number)).collect();
        dead.into_iter().for_each(|number| self.release(number));
    }

    fn release(&mut self, number: u64) {
        if let Some(log) = self.by_number.remove(&number) {
            log.release();
        }
    }

    /// Lets go of everything.
    pub(crate) fn release_all(&mut self) {
        std::mem::take(&mut self.by_number).into_values().for_each(NotedLog::release);
    }

    /// Newest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &NotedLog)> {
        self.by_number.iter().rev().map(|(&number, log)| (number, log))
    }

    pub(crate) fn get(&self, number: u64) -> Option<&NotedLog> {
        self.by_number.get(&number)
    }
}

/// The logs that are needed, newest first, by two listings of one directory, the second begun after the first had ended. `None`: they do
/// not fit each other.
///
/// A listing of a large directory is many system calls, and may show a log without the older one that was made just before it. What is older
/// than a log of the first listing was there before the second one began: if it still is, the second one shows it.
pub(crate) fn needed_logs(
    first: &[OsString],
    second: Vec<OsString>,
    needs: impl Fn(u64) -> bool,
) -> Option<Vec<(u64, OsString)>> {
    let needed = |name: &OsString| match FileName::parse(name.as_bytes()) {
        Some(FileName::Log(number)) if needs(number) => Some(number),
        _ => None,
    };
    let newest = first.iter().filter_map(needed).max();
    let logs = second.into_iter().filter_map(|name| Some((needed(&name)?, name)));
    let mut logs: Vec<(u64, OsString)> =
        logs.filter(|(number, _)| newest.is_none_or(|newest| *number <= newest)).collect();
    logs.sort_unstable_by(|a, b| b.cmp(a));
    (logs.first().map(|(number, _)| *number) == newest).then_some(logs)
}

/// What becomes of what is not whole at the end of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TornEnd {
    /// No younger log holds anything, so it was just being written when the moment came, and was not acknowledged. It is left out, so
    /// that every recovery mode opens the copy.
    Cut,
    /// Younger logs go on. It is kept and told: an engine that met a clean end there would go on with the next log over a gap; where it
    /// meets the damage, it goes on only if the numbers of the writes do.
    Tell,
    /// It is kept without a word. Wrong: for negative controls only.
    Keep,
}

/// What of a log makes it into the image.
pub(crate) struct LogPart<'a> {
    pub(crate) bytes: LogBytes<'a>,
    /// What is damaged or may be, for people.
    pub(crate) damage: Option<String>,
}

/// Where the bytes are.
pub(crate) enum LogBytes<'a> {
    /// The first `end` bytes of this file.
    Original { file: &'a File, end: u64 },
    /// A copy that was made in the window, and whether what could not be read belongs to it.
    Copied { copy: &'a RecycledCopy, with_left: bool },
}

/// A log that is damaged before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BrokenLog {
    /// From here on it cannot be read.
    pub(crate) from: u64,
    /// A whole record that was written later.
    pub(crate) whole_at: u64,
}

impl BrokenLog {
    /// Looks behind the place where `scan` had to stop, in the first `length` bytes.
    pub(crate) fn find(log: LogFile<'_>, scan: &LogScan, length: u64) -> Result<Option<Self>, ScanError> {
        let found = log.record_behind(scan, length)?;
        Ok(found.map(|whole_at| Self { from: scan.end(), whole_at }))
    }
}

impl std::fmt::Display for BrokenLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { from, whole_at } = self;
        write!(
            f,
            "it cannot be read from byte {from} on, and whole records follow at byte {whole_at}: engines drop records there, or \
             refuse to open"
        )
    }
}

/// What is said of a log whose end is not whole, and behind which younger ones go on.
pub(crate) fn not_whole(end: u64) -> String {
    format!(
        "its whole records end at byte {end}, and younger logs go on: if no crash left it so, it is damaged, and engines drop what \
         follows"
    )
}

impl NotedLog {
    fn hold(
        staging: &mut Staging,
        dir: &SourceDir,
        name: &OsStr,
        now: &FileMeta,
    ) -> Result<Option<Self>, CaptureError> {
        let path = dir.path().join(name);
        if now.kind != rustix::fs::FileType::RegularFile {
            return Err(CaptureError::Refused { path, what: "it is not a regular file".to_owned() });
        }
        let mut below = OsString::from(LINKS);
        below.push("/");
        below.push(name);
        let below =
            RelativePath::from_path(below.as_ref()).expect("the name of a log is digits and an ending");
        let link = staging.place(now.device, dir.path(), &below)?;
        let (file, link) = match linkat(CWD, &path, CWD, &link, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => {
                let file = File::open(&link).map_err(CaptureError::io("open", &path))?;
                (Some(file), Some(link))
            }
            Err(Errno::NOENT) => (None, None),
            // A handle will do where a link is refused: the engine may cut the file before it is copied, which shows.
            Err(Errno::PERM | Errno::ACCESS | Errno::XDEV | Errno::MLINK | Errno::OPNOTSUPP) => {
                (dir.open_file(name)?, None)
            }
            Err(error) => return Err(CaptureError::from_io("link", &link, error.into())),
        };
        let Some(file) = file else { return Ok(None) };
        let meta = FileMeta::of(&file).map_err(CaptureError::io("read", &path))?;
        Ok(Some(Self { name: name.to_owned(), path, meta, file, link, copy: None }))
    }

    fn copy_now(
        &mut self,
        staging: &Staging,
        number: u64,
        zero_header: ZeroHeader,
    ) -> Result<(), CaptureError> {
        let copy = match &mut self.copy {
            Some(copy) => copy,
            none => none.insert(RecycledCopy::create(staging, number, zero_header)?),
        };
        copy.extend(&self.file, &self.path)
    }

    /// The end that was noted: what the log held at that moment.
    pub(crate) fn noted_end(&self) -> u64 {
        self.copy.as_ref().filter(|copy| copy.holds_the_log()).map_or(self.meta.size, RecycledCopy::end)
    }

    fn begins_recyclable(&self) -> Result<bool, CaptureError> {
        // A record that sets the compression may come first; it has a plain header and four bytes.
        let mut head = [0; HEADER + 4 + RECYCLABLE_HEADER];
        let length = self.file.read_at(&mut head, 0).map_err(CaptureError::io("read", &self.path))?;
        let kind = |at: usize| head.get(..length).and_then(|head| head.get(at + HEADER - 1)).copied();
        let is_recyclable = |kind: Option<u8>| matches!(kind, Some(5..=8 | 11 | 131));
        Ok(is_recyclable(kind(0)) || (kind(0) == Some(9) && is_recyclable(kind(HEADER + 4))))
    }

    /// What of this log belongs into the image.
    ///
    /// Where something that is no record stands before the noted end, all is kept: to judge it is the engine's business.
    pub(crate) fn part(
        &self,
        number: u64,
        torn_end: TornEnd,
        dir: &SourceDir,
        dialect: Dialect,
        cancel: &CancellationToken,
    ) -> Result<LogPart<'_>, CaptureError> {
        let log = LogFile { file: &self.file, cancel, dialect };
        let original = |end| LogBytes::Original { file: &self.file, end };
        let told = |broken: BrokenLog| broken.to_string();
        if let Some(copy) = self.copy.as_ref().filter(|copy| copy.holds_the_log()) {
            let length = self.file.metadata().map_err(CaptureError::io("read", &self.path))?.len();
            let broken = self.broken(BrokenLog::find(log, copy.scan(), length), dir)?;
            let is_unreadable = torn_end == TornEnd::Tell && copy.is_unreadable();
            if broken.is_some() || is_unreadable {
                let damage = broken.map_or_else(|| not_whole(0), told);
                return Ok(LogPart { bytes: original(length), damage: Some(damage) });
            }
            let cut_short = torn_end == TornEnd::Tell && copy.is_cut_short();
            // The engine shall meet what it would meet in the source, whatever that is.
            let with_left = cut_short || torn_end == TornEnd::Tell && copy.may_be_cut_short();
            let damage = cut_short.then(|| not_whole(copy.end()));
            return Ok(LogPart { bytes: LogBytes::Copied { copy, with_left }, damage });
        }
        let noted = self.meta.size;
        match log.scan(number, noted, ZeroHeader::Skips) {
            Ok(scan) => {
                let broken = self.broken(BrokenLog::find(log, &scan, noted), dir)?;
                let torn = torn_end == TornEnd::Cut && !scan.is_finished() && broken.is_none();
                let cut_short = torn_end == TornEnd::Tell && scan.end() < noted;
                let damage = broken.map(told).or_else(|| cut_short.then(|| not_whole(scan.end())));
                Ok(LogPart { bytes: original(if torn { scan.end() } else { noted }), damage })
            }
            // Copying will find it short as well.
            Err(error) if error.is_short() => Ok(LogPart { bytes: original(noted), damage: None }),
            Err(error) => Err(error.of(&self.path)),
        }
    }

    /// A find counts if the file has been this log all the time: once it has another name, another log is written over it.
    fn broken(
        &self,
        found: Result<Option<BrokenLog>, ScanError>,
        dir: &SourceDir,
    ) -> Result<Option<BrokenLog>, CaptureError> {
        match found {
            Ok(Some(broken)) => Ok(self.is_named(dir)?.then_some(broken)),
            Ok(None) => Ok(None),
            Err(error) if error.is_short() => Ok(None),
            Err(error) => Err(error.of(&self.path)),
        }
    }

    /// Whether its name still is the file that was noted.
    pub(crate) fn is_named(&self, dir: &SourceDir) -> Result<bool, CaptureError> {
        let noted = (self.meta.device, self.meta.inode);
        Ok(dir.stat(&self.name)?.is_some_and(|now| (now.device, now.inode) == noted))
    }

    fn release(self) {
        // What stays behind is removed with the staging directory.
        if let Some(link) = self.link {
            let _ = std::fs::remove_file(link);
        }
        if let Some(copy) = self.copy {
            copy.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_one_listing_missed_is_seen_and_what_is_newer_than_the_first_one_is_left() {
        let names = |numbers: &[u64]| {
            let logs = numbers.iter().map(|number| OsString::from(format!("{number:06}.log")));
            logs.chain(["CURRENT".into(), "000007.sst".into()]).collect::<Vec<_>>()
        };
        let needed = |first: &[u64], second: &[u64]| {
            let logs = needed_logs(&names(first), names(second), |number| number >= 5)?;
            Some(logs.into_iter().map(|(number, _)| number).collect::<Vec<_>>())
        };
        assert_eq!(needed(&[4, 5, 6, 8], &[5, 6, 7, 8]), Some(vec![8, 7, 6, 5]), "7 was missed");
        // The second listing may have missed 9 where it saw 10.
        assert_eq!(needed(&[5, 6, 8], &[10, 8, 6, 7, 5]), Some(vec![8, 7, 6, 5]));
        assert_eq!(needed(&[5, 6], &[5, 6]), Some(vec![6, 5]));
        assert_eq!(needed(&[4], &[]), Some(vec![]));
        // Gone, or none was there: whatever there is now may have a hole.
        assert_eq!(needed(&[5, 6], &[5, 7]), None);
        assert_eq!(needed(&[5, 6], &[4]), None);
        assert_eq!(needed(&[4], &[5]), None);
    }
}
