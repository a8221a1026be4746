//! The journals of one capture.
//!
//! The newest one of an image is always a copy, because the engine opens it for append. Its bytes up to the last whole
//! batch are copied at leisure before the window, since they never change; what follows is read inside the window,
//! together with the end, because later bytes may belong to a keyspace that the image does not have. All others are
//! sealed: whatever is behind their last batch is zeros, so they are only held open in the window and copied after it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::CaptureError;
use crate::capture::check;
use crate::image::create_new;
use crate::pin::{FileMeta, SourceDir};

use super::journal::{ScanError, Sound, Tail, scan, whole_batch_behind};
use super::log_end::{block_rounded_end, log_end};
use super::sabotage::Sabotage;

/// Everything known of the source's journals, kept from attempt to attempt.
#[derive(Debug)]
pub(super) struct Journals {
    scratch: PathBuf,
    /// By number.
    known: BTreeMap<u64, Journal>,
    /// Asked while journals are copied and checked.
    cancel: CancellationToken,
}

/// One journal of the source, held open.
#[derive(Debug)]
pub(super) struct Journal {
    pub(super) name: OsString,
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) meta: FileMeta,
    /// How far it is known to be whole.
    pub(super) sound: Sound,
    /// A copy of its beginning, if it was the newest at some time.
    pub(super) copy: Option<PrefixCopy>,
}

/// A copy of the first bytes of a journal.
#[derive(Debug)]
pub(super) struct PrefixCopy {
    pub(super) path: PathBuf,
    file: File,
}

/// The journals of one attempt: those that were listed and still there.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    /// Numbers, oldest first. The last one is the newest.
    pub(super) numbers: Vec<u64>,
    /// The noted end of the newest.
    pub(super) end: u64,
}

/// What a look at the journals gave.
pub(super) enum Look {
    Found(Listed),
    /// The newest went away since it was listed.
    Fleeting,
    /// There are none.
    Nothing,
}

/// What is behind the last whole batch of the newest journal.
pub(super) enum Behind {
    /// Nothing, or a batch that was being written.
    Fine,
    /// Something that may be a batch in the middle of being written, or damage; where and what.
    Doubtful(String),
}

impl Journals {
    pub(super) fn new(scratch: PathBuf, cancel: CancellationToken) -> Self {
        Self { scratch, known: BTreeMap::new(), cancel }
    }

    /// Copies and checks what there is of the newest journal, so that the window finds little left to read.
    pub(super) fn prepare(&mut self, root: &SourceDir) -> Result<(), CaptureError> {
        let Some((number, name)) = list(root)?.pop_last() else { return Ok(()) };
        if !self.open(root, number, &name)? {
            return Ok(());
        }
        let journal = self.known.get_mut(&number).expect("open() put it there");
        let end = log_end(&journal.file, 0).map_err(CaptureError::io("read", &journal.path))?;
        journal.copy_to(end, &self.scratch, number, &self.cancel)?;
        // Damage is for the window to judge: what looks like it may be a batch that is being written.
        let _ = journal.advance(end, &self.cancel)?;
        Ok(())
    }

    /// Lists the journals once, newest first, holds them open, notes the newest one's end and copies up to it.
    pub(super) fn look(&mut self, root: &SourceDir, sabotage: Sabotage) -> Result<Look, CaptureError> {
        let mut numbers = Vec::new();
        let mut end = 0;
        for (number, name) in list(root)?.into_iter().rev() {
            let newest = numbers.is_empty();
            if !self.open(root, number, &name)? {
                if newest {
                    return Ok(Look::Fleeting);
                }
                // Deleted since the listing: the tables contain all of it.
                continue;
            }
            numbers.push(number);
            if newest {
                let journal = self.known.get_mut(&number).expect("open() put it there");
                end = log_end(&journal.file, journal.sound.end)
                    .map_err(CaptureError::io("read", &journal.path))?;
                if sabotage == Sabotage::None || sabotage == Sabotage::NoSecondLook {
                    journal.copy_to(end, &self.scratch, number, &self.cancel)?;
                }
            }
        }
        numbers.reverse();
        Ok(if numbers.is_empty() { Look::Nothing } else { Look::Found(Listed { numbers, end }) })
    }

    /// What a sabotaged capture does instead of copying inside the window.
    pub(super) fn copy_late(&mut self, listed: &mut Listed, sabotage: Sabotage) -> Result<(), CaptureError> {
        let Some(number) = listed.numbers.last() else { return Ok(()) };
        let Some(journal) = self.known.get_mut(number) else { return Ok(()) };
        let failed = CaptureError::io("read", &journal.path);
        listed.end = match sabotage {
            Sabotage::BlockRoundedEnds => block_rounded_end(&journal.file, 0).map_err(failed)?.min(
                // Only what lies in the last block is later than the window.
                listed.end.next_multiple_of(4096),
            ),
            _ => log_end(&journal.file, 0).map_err(failed)?,
        };
        journal.sound = Sound::default();
        journal.copy_to(listed.end, &self.scratch, *number, &self.cancel)
    }

    /// Checks what was copied of the newest journal of an attempt.
    pub(super) fn judge(&mut self, listed: &Listed) -> Result<Behind, CaptureError> {
        let number = listed.numbers.last().expect("an attempt has found at least one journal");
        let journal = self.known.get_mut(number).expect("look() put it there");
        journal.advance(listed.end, &self.cancel)
    }

    /// The journals of the accepted attempt, oldest first, and all others let go.
    pub(super) fn into_listed(mut self, listed: &Listed) -> Vec<(u64, Journal)> {
        listed.numbers.iter().filter_map(|number| self.known.remove_entry(number)).collect()
    }

    /// Makes sure that the journal of this name is open. `false`: it is gone.
    fn open(&mut self, root: &SourceDir, number: u64, name: &OsString) -> Result<bool, CaptureError> {
        let Some(now) = root.stat(name)? else { return Ok(false) };
        if let Some(known) = self.known.get(&number)
            && (known.meta.device, known.meta.inode) == (now.device, now.inode)
        {
            return Ok(true);
        }
        self.forget(number);
        let path = root.path().join(name);
        let Some(file) = root.open_file(name)? else { return Ok(false) };
        let meta = FileMeta::of(&file).map_err(CaptureError::io("read", &path))?;
        if meta.kind != rustix::fs::FileType::RegularFile {
            return Err(CaptureError::Refused {
                path,
                what: "it has a journal's name and is not a regular file".to_owned(),
            });
        }
        let journal = Journal { name: name.clone(), path, file, meta, sound: Sound::default(), copy: None };
        self.known.insert(number, journal);
        Ok(true)
    }

    fn forget(&mut self, number: u64) {
        if let Some(Journal { copy: Some(copy), .. }) = self.known.remove(&number) {
            // What stays behind is removed with the staging directory.
            let _ = std::fs::remove_file(copy.path);
        }
    }
}

impl Journal {
    /// Brings the copy to exactly `end` bytes: what is known to be whole stays, the rest is read now.
    fn copy_to(
        &mut self,
        end: u64,
        scratch: &Path,
        number: u64,
        cancel: &CancellationToken,
    ) -> Result<(), CaptureError> {
        if self.copy.is_none() {
            let path = scratch.join(format!("{number}.jnl"));
            let file = create_new(&path)?;
            self.copy = Some(PrefixCopy { path, file });
        }
        let copy = self.copy.as_ref().expect("made above");
        let written = CaptureError::io("write", &copy.path);
        let mut buffer = vec![0; 1 << 20];
        let mut at = self.sound.end;
        while at < end {
            check(cancel)?;
            let wanted =
                usize::try_from((end - at).min(buffer.len() as u64)).expect("at most the buffer's length");
            let part = buffer.get_mut(..wanted).expect("at most the buffer's length");
            let got = match self.file.read_at(part, at) {
                Ok(0) => break,
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(CaptureError::from_io("read", &self.path, error)),
            };
            let part = part.get(..got).expect("read_at returns at most what was asked for");
            copy.file.write_all_at(part, at).map_err(CaptureError::io("write", &copy.path))?;
            at += got as u64;
        }
        // What an earlier attempt wrote behind the end, or what a restart of the engine cut off meanwhile.
        copy.file.set_len(at.max(self.sound.end)).map_err(written)
    }

    /// Reads on from the last whole batch to `end`, in the copy.
    fn advance(&mut self, end: u64, cancel: &CancellationToken) -> Result<Behind, CaptureError> {
        let Some(copy) = &self.copy else { return Ok(Behind::Fine) };
        let doubt = judge(&copy.file, &copy.path, &mut self.sound, end, cancel)?;
        Ok(doubt.map_or(Behind::Fine, Behind::Doubtful))
    }
}

/// Journals are numbered one by one and deleted from the oldest on: one that is missing between two others was lost, and replay would go on
/// behind it as if nothing were. Says so.
pub(super) fn missing_between(numbers: impl Iterator<Item = u64>) -> Option<String> {
    let numbers: Vec<u64> = numbers.collect();
    let gap = numbers.windows(2).find_map(|pair| match pair {
        [one, next] if one + 1 < *next => Some((*one, *next)),
        _ => None,
    });
    gap.map(|(one, next)| {
        let lost = if one + 2 == next {
            format!("{}.jnl is", one + 1)
        } else {
            format!("{}.jnl to {}.jnl are", one + 1, next - 1)
        };
        format!(
            "{lost} missing between {one}.jnl and {next}.jnl: replay would go on without what was in there"
        )
    })
}

/// Checks the bytes of a newest journal from `sound.end` to `end`. What speaks against them is returned as text; a torn
/// batch at the very end does not.
pub(super) fn judge(
    file: &File,
    path: &Path,
    sound: &mut Sound,
    end: u64,
    cancel: &CancellationToken,
) -> Result<Option<String>, CaptureError> {
    let begin = sound.end;
    let tail = scan(ReadAt { file, at: begin, end, cancel }, sound);
    let found = match tail {
        Ok(Tail::Clean) => return Ok(None),
        Ok(Tail::Torn) => whole_batch_behind(sound, end, |at| Ok(ReadAt { file, at, end, cancel })),
        Err(error) => Err(error),
    };
    match found {
        Ok(None) => Ok(None),
        Ok(Some(at)) => Ok(Some(format!(
            "it cannot be read from offset {} on, and whole batches follow at offset {at}: replay would drop them",
            sound.end
        ))),
        Err(ScanError::Damaged(fault)) => Ok(Some(fault.0)),
        Err(ScanError::Io(error)) => Err(unread(path, error, cancel)),
    }
}

/// Checks a sealed journal as a whole: nothing but whole batches and zeros. Returns where its batches end.
pub(super) fn judge_sealed(
    file: &File,
    path: &Path,
    cancel: &CancellationToken,
) -> Result<Result<Sound, String>, CaptureError> {
    let length = file.metadata().map_err(CaptureError::io("read", path))?.len();
    let end = log_end(file, 0).map_err(CaptureError::io("read", path))?;
    let mut sound = Sound::default();
    Ok(match scan(ReadAt { file, at: 0, end: end.min(length), cancel }, &mut sound) {
        Ok(Tail::Clean) if sound.end == end => Ok(sound),
        Ok(_) => Err(format!(
            "it is sealed and cannot be read from offset {} to its end at {end}: replay would leave a hole there",
            sound.end
        )),
        Err(ScanError::Damaged(fault)) => Err(fault.0),
        Err(ScanError::Io(error)) => return Err(unread(path, error, cancel)),
    })
}

/// Why the file at `path` could not be read to its end.
fn unread(path: &Path, error: io::Error, cancel: &CancellationToken) -> CaptureError {
    check(cancel).err().unwrap_or_else(|| CaptureError::from_io("read", path, error))
}

/// Reads a range of a file at explicit offsets, so that several readers may share the handle.
struct ReadAt<'a> {
    file: &'a File,
    at: u64,
    end: u64,
    /// Makes a read fail; [`unread`] knows why it did.
    cancel: &'a CancellationToken,
}

impl Read for ReadAt<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        check(self.cancel).map_err(io::Error::other)?;
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let wanted = left.min(buffer.len());
        let part = buffer.get_mut(..wanted).expect("at most the buffer's length");
        let got = self.file.read_at(part, self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

/// The journals in a database's directory, by number. The engine takes any number for one, and fails on other names.
pub(super) fn list(root: &SourceDir) -> Result<BTreeMap<u64, OsString>, CaptureError> {
    let mut journals = BTreeMap::new();
    for name in root.list()? {
        let number = name.to_str().and_then(|name| name.strip_suffix(".jnl")?.parse::<u64>().ok());
        let Some(number) = number else { continue };
        if let Some(other) = journals.insert(number, name.clone()) {
            return Err(CaptureError::Refused {
                path: root.path().join(name),
                what: format!("{} has the same number", other.display()),
            });
        }
    }
    Ok(journals)
}
