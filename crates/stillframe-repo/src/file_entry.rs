//! One file of an image, as file lists hold it.

use stillframe_storage::{RelativePath, RelativePathError};

use crate::ContentRef;
use crate::bytes_reader::BytesReader;
use crate::error::{Error, Result};

const MAX_ENTRY_LEN: usize = 64 << 10;
const MAX_ROLE_LEN: usize = 32;
const MAX_IDENTITY_LEN: usize = 1024;
const MAX_TARGET_LEN: usize = 4095;
const NO_IDENTITY: u16 = u16::MAX;

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File {
        /// Its bytes. Their length is the file's size.
        content: ContentRef,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it points: bytes of the source, never to be followed or trusted.
        target: Vec<u8>,
    },
}

/// A file, directory or link of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// The named directory that it came from, one part of a path; empty for the main one.
    pub directory: String,
    /// Where it is below that directory.
    pub path: RelativePath,
    /// What it is.
    pub kind: FileKind,
    /// What the engine profile calls it (`table`, `log`, …); at most 32 bytes.
    pub role: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification, seconds since 1970.
    pub mtime: i64,
    /// Nanoseconds of it, below 10^9.
    pub mtime_nanos: u32,
    /// Proof, opaque here, that two files of one lineage with equal path, size and proof have equal bytes. At most
    /// 1024 bytes.
    pub identity: Option<Vec<u8>>,
}

impl FileEntry {
    /// When it was modified last. `None`: no time that there is.
    pub fn modified(&self) -> Option<jiff::Timestamp> {
        jiff::Timestamp::new(self.mtime, i32::try_from(self.mtime_nanos).ok()?).ok()
    }

    /// The size of a file; 0 for directories and links.
    pub fn size(&self) -> u64 {
        match &self.kind {
            FileKind::File { content } => content.length,
            FileKind::Directory | FileKind::Symlink { .. } => 0,
        }
    }

    /// What the entries of a list are ordered by.
    pub fn key(&self) -> (&[u8], &[u8]) {
        (self.directory.as_bytes(), self.path.as_bytes())
    }

    /// Where it is, for people: `path`, or `directory:path` outside the main one.
    pub fn display_path(&self) -> String {
        match self.directory.as_str() {
            "" => self.path.to_string(),
            directory => format!("{directory}:{}", self.path),
        }
    }

    /// Appends the entry as a list holds it. Fails for what no reader would accept.
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) -> Result<()> {
        if let Some(fault) = self.fault() {
            return Err(Error::Invalid(format!("cannot record {}: {fault}", self.display_path())));
        }
        let start = bytes.len();
        bytes.extend_from_slice(&[0; 4]);
        bytes.push(match self.kind {
            FileKind::File { .. } => 0,
            FileKind::Directory => 1,
            FileKind::Symlink { .. } => 2,
        });
        for text in [&self.role, &self.directory] {
            bytes.push(u8::try_from(text.len()).expect("checked: at most 255 bytes"));
            bytes.extend_from_slice(text.as_bytes());
        }
        put_with_len(bytes, self.path.as_bytes());
        bytes.extend_from_slice(&self.size().to_le_bytes());
        for number in [self.mode, self.uid, self.gid] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.mtime.to_le_bytes());
        bytes.extend_from_slice(&self.mtime_nanos.to_le_bytes());
        match &self.identity {
            None => bytes.extend_from_slice(&NO_IDENTITY.to_le_bytes()),
            Some(identity) => put_with_len(bytes, identity),
        }
        match &self.kind {
            FileKind::File { content } => content.encode(bytes),
            FileKind::Directory => {}
            FileKind::Symlink { target } => put_with_len(bytes, target),
        }
        let len =
            u32::try_from(bytes.len() - start - 4).expect("checked: the parts add up to less than 64 KiB");
        if let Some(place) = bytes.get_mut(start..start + 4) {
            place.copy_from_slice(&len.to_le_bytes());
        }
        Ok(())
    }

    /// Why no reader would accept the entry.
    fn fault(&self) -> Option<&'static str> {
        if self.role.len() > MAX_ROLE_LEN {
            return Some("its role is too long");
        }
        if !is_directory_name(&self.directory) {
            return Some("its named directory is not one safe part of a path");
        }
        if self.mtime_nanos >= 1_000_000_000 {
            return Some("its time has too many nanoseconds");
        }
        if self.identity.as_ref().is_some_and(|identity| identity.len() > MAX_IDENTITY_LEN) {
            return Some("its proof of being unchanged is too long");
        }
        match &self.kind {
            FileKind::File { content } if !content.is_consistent() => Some("its content is inconsistent"),
            FileKind::Symlink { target } if !is_target(target) => {
                Some("its target is empty, too long or has NUL")
            }
            _ => None,
        }
    }

    /// Reads the next entry of a list.
    pub(crate) fn decode(reader: &mut BytesReader<'_>) -> Result<Self> {
        Self::parse(reader).map_err(|why| Error::inconsistent("file list", why))
    }

    /// The entries of one chunk of a list.
    pub(crate) fn decode_all(list: &[u8]) -> Result<Vec<Self>> {
        let mut reader = BytesReader::new(list);
        let mut entries = Vec::new();
        while !reader.is_empty() {
            entries.push(Self::decode(&mut reader)?);
        }
        Ok(entries)
    }

    fn parse(reader: &mut BytesReader<'_>) -> Result<Self, String> {
        let short = || "an entry is cut short".to_owned();
        let entry = reader.long().filter(|entry| entry.len() <= MAX_ENTRY_LEN).ok_or_else(short)?;
        let parts = Parts::read(&mut BytesReader::new(entry)).ok_or_else(short)?;
        let path =
            RelativePath::from_bytes(parts.path).map_err(|error: RelativePathError| error.to_string())?;
        let text = |bytes: &[u8]| {
            String::from_utf8(bytes.to_vec()).map_err(|_| format!("{path}: text is not UTF-8"))
        };
        let kind = match (parts.content, parts.target) {
            (Some(content), _) => FileKind::File { content },
            (None, Some(target)) => FileKind::Symlink { target: target.to_vec() },
            (None, None) => FileKind::Directory,
        };
        let entry = Self {
            directory: text(parts.directory)?,
            role: text(parts.role)?,
            kind,
            mode: parts.mode,
            uid: parts.uid,
            gid: parts.gid,
            mtime: parts.mtime,
            mtime_nanos: parts.mtime_nanos,
            identity: parts.identity.map(<[u8]>::to_vec),
            path,
        };
        if entry.size() != parts.size {
            return Err(format!("{}: its size is not the length of its content", entry.display_path()));
        }
        match entry.fault() {
            None => Ok(entry),
            Some(fault) => Err(format!("{}: {fault}", entry.display_path())),
        }
    }
}

/// An entry's fields as they lie in the list, not yet checked.
struct Parts<'a> {
    role: &'a [u8],
    directory: &'a [u8],
    path: &'a [u8],
    size: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: i64,
    mtime_nanos: u32,
    identity: Option<&'a [u8]>,
    content: Option<ContentRef>,
    target: Option<&'a [u8]>,
}

impl<'a> Parts<'a> {
    fn read(entry: &mut BytesReader<'a>) -> Option<Self> {
        let kind = entry.u8()?;
        let (role, directory) = (entry.short()?, entry.short()?);
        let path = with_len(entry)?;
        let size = entry.u64()?;
        let (mode, uid, gid) = (entry.u32()?, entry.u32()?, entry.u32()?);
        let (mtime, mtime_nanos) = (entry.i64()?, entry.u32()?);
        let identity = match entry.u16()? {
            NO_IDENTITY => None,
            len => Some(entry.take(usize::from(len))?),
        };
        let (content, target) = match kind {
            0 => (Some(ContentRef::decode(entry)?), None),
            1 => (None, None),
            2 => (None, Some(with_len(entry)?)),
            _ => return None,
        };
        Some(Self {
            role,
            directory,
            path,
            size,
            mode,
            uid,
            gid,
            mtime,
            mtime_nanos,
            identity,
            content,
            target,
        })
    }
}

/// Empty, or one part of a path: it becomes a directory on restore.
fn is_directory_name(name: &str) -> bool {
    name.is_empty()
        || (name.len() <= 255 && !name.contains('/') && RelativePath::from_bytes(name.as_bytes()).is_ok())
}

fn is_target(target: &[u8]) -> bool {
    (1..=MAX_TARGET_LEN).contains(&target.len()) && !target.contains(&0)
}

fn put_with_len(bytes: &mut Vec<u8>, part: &[u8]) {
    let len = u16::try_from(part.len()).expect("checked: at most 4096 bytes");
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(part);
}

fn with_len<'a>(reader: &mut BytesReader<'a>) -> Option<&'a [u8]> {
    let len = reader.u16()?;
    reader.take(usize::from(len))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ChunkId;

    fn file(path: &str) -> FileEntry {
        FileEntry {
            directory: String::new(),
            path: path.parse().unwrap(),
            kind: FileKind::File { content: ContentRef { level: 0, id: ChunkId([3; 32]), length: 9 } },
            role: "table".into(),
            mode: 0o644,
            uid: 1,
            gid: 2,
            mtime: -5,
            mtime_nanos: 999_999_999,
            identity: Some(vec![1, 2, 3]),
        }
    }

    fn encoded(entry: &FileEntry) -> Vec<u8> {
        let mut bytes = Vec::new();
        entry.encode(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn entries_of_each_kind_read_back() {
        let link = FileEntry {
            kind: FileKind::Symlink { target: b"/etc/\xff".to_vec() },
            identity: None,
            directory: "wal_dir".into(),
            ..file("a/b")
        };
        let directory = FileEntry { kind: FileKind::Directory, ..file("d") };
        let empty = FileEntry { kind: FileKind::File { content: ContentRef::EMPTY }, ..file("e") };
        for entry in [file("000001.sst"), link, directory, empty] {
            let bytes = encoded(&entry);
            let mut reader = BytesReader::new(&bytes);
            assert_eq!(FileEntry::decode(&mut reader).unwrap(), entry);
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn what_a_later_version_appends_to_an_entry_is_passed_over() {
        let mut bytes = encoded(&file("a"));
        bytes.extend_from_slice(b"new");
        let len = u32::try_from(bytes.len() - 4).unwrap();
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        assert_eq!(FileEntry::decode(&mut BytesReader::new(&bytes)).unwrap(), file("a"));
    }

    #[test]
    fn unsafe_entries_are_neither_written_nor_read() {
        for directory in ["..", ".", "a/b", "/", "\0"] {
            let entry = FileEntry { directory: directory.into(), ..file("a") };
            assert!(entry.encode(&mut Vec::new()).is_err(), "{directory:?}");
        }
        // The path of a well-formed entry, changed to one of the same length that climbs out.
        let mut bytes = encoded(&file("abcdef"));
        let at = bytes.windows(6).position(|window| window == b"abcdef").unwrap();
        bytes[at..at + 6].copy_from_slice(b"../../");
        let error = FileEntry::decode(&mut BytesReader::new(&bytes)).unwrap_err();
        assert!(error.to_string().contains("unsafe path"), "{error}");
        let mut bytes = encoded(&file("abcdef"));
        bytes[at + 6] ^= 1;
        let error = FileEntry::decode(&mut BytesReader::new(&bytes)).unwrap_err();
        assert!(error.to_string().contains("size"), "{error}");
    }

    proptest! {
        #[test]
        fn hostile_entries_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            at in 0_usize..150,
            value: u8,
        ) {
            let _ = FileEntry::decode(&mut BytesReader::new(&bytes));
            let mut nearly = encoded(&file("some/path"));
            if let Some(byte) = nearly.get_mut(at) {
                *byte = value;
            }
            if let Ok(entry) = FileEntry::decode(&mut BytesReader::new(&nearly)) {
                prop_assert!(entry.encode(&mut Vec::new()).is_ok());
            }
        }
    }
}
