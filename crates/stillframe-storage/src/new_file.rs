//! A file that is made and filled once, past the page cache where that is worth it and the file system can do it (`O_DIRECT`).
//!
//! Through the page cache each byte would be copied into fresh memory, and would push out what a database beside it has there.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

/// Smaller files are not worth it.
const DIRECT_FROM: u64 = 1 << 20;
/// Memory, places and lengths of direct writes are multiples of this: the largest block that disks have.
const BLOCK: usize = 4096;
/// Written at a time.
const PIECE: usize = 4 << 20;

/// A file that was not there before.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    /// Bytes that it will have.
    length: u64,
    is_direct: AtomicBool,
    /// Held while the file becomes one that is written as usual.
    changing: Mutex<()>,
    /// Where the last bytes that were written end.
    end: AtomicU64,
}

impl NewFile {
    /// Makes a file that will have `length` bytes. There must be none.
    pub fn create(path: &Path, mode: u32, length: u64) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        let is_direct = length >= DIRECT_FROM && set_direct(&file, true).is_ok();
        Ok(Self {
            file,
            length,
            is_direct: is_direct.into(),
            changing: Mutex::new(()),
            end: AtomicU64::new(0),
        })
    }

    /// Writes `parts`, one behind the other, from `offset` on. Several threads may write to different places.
    pub fn write_at<'a>(
        &self,
        parts: impl IntoIterator<Item = &'a [u8]>,
        offset: u64,
        buffers: &WriteBuffers,
    ) -> io::Result<()> {
        let end = if self.is_direct.load(Ordering::Acquire) {
            self.write_pieces(parts, offset, buffers)?
        } else {
            self.write_parts(parts, offset)?
        };
        self.end.fetch_max(end, Ordering::AcqRel);
        Ok(())
    }

    /// The file, with its length, when everything is written. What was not written is zeros.
    pub fn finish(&self) -> io::Result<&File> {
        if self.end.load(Ordering::Acquire) != self.length {
            self.file.set_len(self.length)?;
        }
        Ok(&self.file)
    }

    fn write_parts<'a>(&self, parts: impl IntoIterator<Item = &'a [u8]>, mut at: u64) -> io::Result<u64> {
        for part in parts {
            self.file.write_all_at(part, at)?;
            at += part.len() as u64;
        }
        Ok(at)
    }

    fn write_pieces<'a>(
        &self,
        parts: impl IntoIterator<Item = &'a [u8]>,
        mut at: u64,
        buffers: &WriteBuffers,
    ) -> io::Result<u64> {
        let mut buffer = buffers.take();
        let mut filled = 0;
        for mut rest in parts {
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(PIECE - filled));
                buffer.piece()[filled..filled + now.len()].copy_from_slice(now);
                filled += now.len();
                rest = later;
                if filled == PIECE {
                    self.write_piece(buffer.piece(), filled, at)?;
                    at += filled as u64;
                    filled = 0;
                }
            }
        }
        if filled > 0 {
            self.write_piece(buffer.piece(), filled, at)?;
        }
        buffers.give_back(buffer);
        Ok(at + filled as u64)
    }

    /// What the file's last block has too much is cut off at the end.
    fn write_piece(&self, piece: &mut [u8], filled: usize, at: u64) -> io::Result<()> {
        let is_last = at + filled as u64 == self.length;
        let is_whole = at.is_multiple_of(BLOCK as u64) && (is_last || filled.is_multiple_of(BLOCK));
        if is_whole && self.is_direct.load(Ordering::Acquire) {
            let blocks = filled.next_multiple_of(BLOCK);
            piece[filled..blocks].fill(0);
            match self.file.write_all_at(&piece[..blocks], at) {
                Ok(()) => {
                    self.end.fetch_max(at + blocks as u64, Ordering::AcqRel);
                    return Ok(());
                }
                // Some file systems take the flag and then want larger blocks, or no direct writes at all.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {}
                Err(error) => return Err(error),
            }
        }
        {
            // Whoever comes second waits until the file has changed.
            let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
            if self.is_direct.load(Ordering::Acquire) {
                set_direct(&self.file, false)?;
                self.is_direct.store(false, Ordering::Release);
            }
        }
        self.file.write_all_at(&piece[..filled], at)
    }
}

fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, direct);
    Ok(fcntl_setfl(file, flags)?)
}

/// Memory for direct writes, used again and again: as many buffers as there were writers at a time.
#[derive(Debug, Default)]
pub struct WriteBuffers(Mutex<Vec<WriteBuffer>>);

#[derive(Debug)]
struct WriteBuffer(Vec<u8>);

impl WriteBuffers {
    fn take(&self) -> WriteBuffer {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| WriteBuffer(vec![0; PIECE + BLOCK]))
    }

    fn give_back(&self, buffer: WriteBuffer) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

impl WriteBuffer {
    /// Begins at a block's border.
    fn piece(&mut self) -> &mut [u8] {
        let start = self.0.as_ptr().align_offset(BLOCK);
        self.0.get_mut(start..start + PIECE).expect("a block more than a piece was made")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a disk, and on a file system that has none.
    fn dirs() -> [tempfile::TempDir; 2] {
        [std::env::temp_dir(), "/dev/shm".into()].map(|parent| tempfile::tempdir_in(parent).unwrap())
    }

    fn content(len: usize) -> Vec<u8> {
        (1..=250).cycle().step_by(31).take(len).collect()
    }

    #[test]
    fn whatever_the_lengths_and_the_order_the_file_has_what_was_written() {
        for dir in dirs() {
            let buffers = WriteBuffers::default();
            for (number, (length, cuts)) in [
                (0, vec![]),
                (1, vec![]),
                (DIRECT_FROM, vec![4096, 8192]),
                (DIRECT_FROM + 1, vec![65536]),
                (DIRECT_FROM + 1, vec![1, 4096, 4097, 70000]),
                (3 * PIECE as u64 + 4097, vec![PIECE as u64, PIECE as u64 + 4096]),
                (2 * PIECE as u64, vec![PIECE as u64 + 1]),
            ]
            .into_iter()
            .enumerate()
            {
                let bytes = content(usize::try_from(length).unwrap());
                let mut borders = vec![0];
                borders.extend(&cuts);
                borders.push(length);
                let ranges: Vec<(u64, u64)> =
                    borders.array_windows().map(|[from, to]| (*from, *to)).collect();
                for backwards in [false, true] {
                    let path = dir.path().join(format!("{number}-{backwards}"));
                    let file = NewFile::create(&path, 0o600, length).unwrap();
                    let write = |(from, to): &(u64, u64)| {
                        let part = &bytes[usize::try_from(*from).unwrap()..usize::try_from(*to).unwrap()];
                        file.write_at(part.chunks(100_003), *from, &buffers).unwrap();
                    };
                    if backwards {
                        ranges.iter().rev().for_each(write);
                    } else {
                        ranges.iter().for_each(write);
                    }
                    file.finish().unwrap();
                    assert!(std::fs::read(&path).unwrap() == bytes, "{length}, {cuts:?}, {backwards}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_written_is_zeros_and_the_length_is_right() {
        for dir in dirs() {
            let (path, length) = (dir.path().join("holes"), 3 * DIRECT_FROM + 77);
            let file = NewFile::create(&path, 0o600, length).unwrap();
            let part = content(65536);
            file.write_at([part.as_slice()], DIRECT_FROM, &WriteBuffers::default()).unwrap();
            file.finish().unwrap();
            let mut expected = vec![0; usize::try_from(length).unwrap()];
            expected[1 << 20..(1 << 20) + 65536].copy_from_slice(&part);
            assert!(std::fs::read(&path).unwrap() == expected);
        }
    }

    #[test]
    fn threads_that_write_no_whole_blocks_do_not_get_into_each_others_way() {
        const PART: u64 = (128 << 10) + 1;
        for dir in dirs() {
            for n in 0..50 {
                let path = dir.path().join(n.to_string());
                let file = NewFile::create(&path, 0o600, 8 * PART).unwrap();
                let (buffers, part) = (WriteBuffers::default(), content(usize::try_from(PART).unwrap()));
                std::thread::scope(|scope| {
                    for turn in 0..8 {
                        let (file, buffers, part) = (&file, &buffers, part.as_slice());
                        scope.spawn(move || file.write_at([part], turn * PART, buffers).unwrap());
                    }
                });
                file.finish().unwrap();
                assert!(std::fs::read(&path).unwrap() == part.repeat(8));
            }
        }
    }

    #[test]
    fn a_file_that_is_there_stays() {
        let [dir, _] = dirs();
        let path = dir.path().join("file");
        std::fs::write(&path, "x").unwrap();
        let error = NewFile::create(&path, 0o600, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
    }
}
