//! Where a preallocated journal ends.
//!
//! A journal is created 64 MiB long and sparse, so its length says nothing. The end of its last data extent is right up
//! to a block; the last byte below it that is not zero is exact, because every whole batch ends in a byte that is not.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// How much is read at once while zeros are trimmed.
const STEP: u64 = 64 << 10;

/// The offset behind the last byte of `file` that is not zero, and at least `from`, which the caller knows to be a
/// place where a batch ended. Starting there spares the search of everything before it, which file systems that walk
/// page by page charge for.
pub(crate) fn log_end(file: &File, from: u64) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let end = match last_data_end(file, from) {
        Ok(end) => end.min(length),
        // No support for holes: everything is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => length,
        Err(error) => return Err(error.into()),
    };
    trim_zeros(file, from, end)
}

/// The end of the last data extent behind `from`, rounded up to a block by the file system.
pub(crate) fn block_rounded_end(file: &File, from: u64) -> io::Result<u64> {
    Ok(last_data_end(file, from)?.min(file.metadata()?.len()).max(from))
}

fn last_data_end(file: &File, from: u64) -> Result<u64, Errno> {
    let mut end = from;
    loop {
        // ENXIO: nothing but a hole behind `end`, or `end` is behind the end of the file.
        let data = match seek(file, SeekFrom::Data(end)) {
            Err(Errno::NXIO) => return Ok(end),
            other => other?,
        };
        let hole = match seek(file, SeekFrom::Hole(data)) {
            // Truncated between the two calls.
            Err(Errno::NXIO) => return Ok(end),
            other => other?,
        };
        if hole <= end {
            return Ok(end);
        }
        end = hole;
    }
}

fn trim_zeros(file: &File, from: u64, mut end: u64) -> io::Result<u64> {
    let mut buffer = vec![0; usize::try_from(STEP).expect("64 KiB fit")];
    while end > from {
        let start = end.saturating_sub(STEP).max(from);
        let wanted = usize::try_from(end - start).expect("a step at most");
        let part = buffer.get_mut(..wanted).expect("a step at most");
        let read = read_full_at(file, part, start)?;
        let part = part.get(..read).unwrap_or_default();
        if let Some(last) = part.iter().rposition(|&byte| byte != 0) {
            return Ok(start + last as u64 + 1);
        }
        end = start;
    }
    Ok(from)
}

/// Reads until the buffer is full or the file ends; says how much.
fn read_full_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sparse(parts: &[(u64, &[u8])], length: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    #[test]
    fn the_end_is_the_last_byte_that_is_not_zero_whatever_the_length_says() {
        let file = sparse(&[(0, b"abc\x03\0\0")], 64 << 20);
        assert_eq!(log_end(&file, 0).unwrap(), 4);
        assert!(block_rounded_end(&file, 0).unwrap() > 4, "the extent alone is rounded");
        assert_eq!(log_end(&file, 4).unwrap(), 4, "from the end itself");
        assert_eq!(log_end(&sparse(&[], 64 << 20), 0).unwrap(), 0);
        assert_eq!(log_end(&sparse(&[], 0), 0).unwrap(), 0);
        assert_eq!(log_end(&sparse(&[], 0), 100).unwrap(), 100, "a place behind the end of the file stays");
    }

    #[test]
    fn holes_and_long_zeros_before_the_end_do_not_end_it() {
        let file = sparse(&[(0, b"a"), (5 << 20, &vec![0; 300_000]), (9 << 20, b"z")], 64 << 20);
        assert_eq!(log_end(&file, 0).unwrap(), (9 << 20) + 1);
        let written_zeros = sparse(&[(0, b"a"), (1, &vec![0; 1 << 20])], 2 << 20);
        assert_eq!(log_end(&written_zeros, 0).unwrap(), 1);
    }

    #[test]
    fn without_holes_the_length_is_trimmed() {
        let file = sparse(&[(70_000, b"end")], 1 << 20);
        assert_eq!(trim_zeros(&file, 0, 1 << 20).unwrap(), 70_003);
        assert_eq!(trim_zeros(&file, 0, 3 << 20).unwrap(), 70_003, "a file that became shorter meanwhile");
    }

    proptest! {
        #[test]
        fn it_equals_the_simple_search(
            bytes in proptest::collection::vec(prop_oneof![9 => Just(0_u8), 1 => any::<u8>()], 0..20_000),
            at in 0_u64..200_000,
        ) {
            let file = sparse(&[(at, &bytes)], 1 << 20);
            let expected = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| at + last as u64 + 1);
            prop_assert_eq!(log_end(&file, 0).unwrap(), expected);
        }
    }
}
