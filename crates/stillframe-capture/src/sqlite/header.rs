//! The first 100 bytes of a database.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::CaptureError;

const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const LEN: usize = 100;

/// What the header says. Numbers in it are big endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes.
    pub(super) page_size: u32,
    /// Reading needs the write-ahead log.
    pub(super) wal: bool,
    /// Raised at commits in rollback mode only.
    pub(super) change_counter: u32,
    /// Absent where an old library wrote last, which did not keep it.
    pub(super) pages: Option<u32>,
    /// Version number of the library that wrote last, e.g. 3054001.
    pub(super) library: u32,
}

impl Header {
    /// Reads and closes the file: never while this process has the database open through SQLite. The inner error says why it
    /// is no database.
    pub(super) fn read(path: &Path) -> Result<Result<Self, String>, CaptureError> {
        let mut bytes = Vec::with_capacity(LEN);
        let file = File::open(path).map_err(CaptureError::io("open", path))?;
        file.take(LEN as u64).read_to_end(&mut bytes).map_err(CaptureError::io("read", path))?;
        Ok(Self::parse(&bytes))
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() < LEN {
            return Err(format!("it has only {} bytes", bytes.len()));
        }
        if !bytes.starts_with(MAGIC) {
            return Err(
                "it does not begin like a database; an encrypted one (SQLCipher) or another format cannot \
                        be captured while it is open: stop its program and use files:"
                    .to_owned(),
            );
        }
        let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
        let number = |at: usize| u32::from_be_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)]);
        let page_size = match u32::from(u16::from_be_bytes([byte(16), byte(17)])) {
            1 => 65_536,
            size if size.is_power_of_two() && size >= 512 => size,
            size => return Err(format!("its header names the page size {size}, which does not exist")),
        };
        Ok(Self {
            page_size,
            wal: byte(18) == 2 || byte(19) == 2,
            change_counter: number(24),
            pages: (number(24) == number(92)).then(|| number(28)),
            library: number(96),
        })
    }

    /// The library's version as text.
    pub(super) fn library_version(&self) -> Option<String> {
        let library = self.library;
        (library > 0).then(|| format!("{}.{}.{}", library / 1_000_000, library / 1000 % 1000, library % 1000))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn page_sizes_from_512_to_65536_are_read_and_others_refused() {
        let mut bytes = [0; LEN];
        bytes[..16].copy_from_slice(MAGIC);
        for (stored, size) in [(512_u16, 512), (4096, 4096), (32768, 32768), (1, 65_536)] {
            bytes[16..18].copy_from_slice(&stored.to_be_bytes());
            assert_eq!(Header::parse(&bytes).unwrap().page_size, size);
        }
        for stored in [0_u16, 2, 256, 513, 65535] {
            bytes[16..18].copy_from_slice(&stored.to_be_bytes());
            assert!(Header::parse(&bytes).is_err(), "{stored}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), magic: bool) {
            let mut bytes = bytes;
            if magic && bytes.len() >= 16 {
                bytes[..16].copy_from_slice(MAGIC);
            }
            if let Ok(header) = Header::parse(&bytes) {
                prop_assert!(header.page_size.is_power_of_two());
                let _ = header.library_version();
            }
        }
    }
}
