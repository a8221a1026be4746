//! Which tables and blob files one version of a tree consists of.
//!
//! Two files per keyspace folder say it. `current`, the pointer, is 25 bytes: version id, XXH3-128 of the version file,
//! a zero. `vN`, the version file, is an archive: sections, then a table of contents, then a trailer of 38 bytes.
//! ```text
//! trailer      "SFA!" | u8 1 | u8 0 | u128 XXH3-128 of the contents | u64 position of the contents | u64 length
//! contents     "TOC!" | u32 n | n x { u64 position | u64 length | u16 name length | name }
//! tables       u8 levels x { u8 runs x { u32 tables x { u64 id | u8 0 | u128 checksum | u64 global seqno }}}
//! blob_files   u32 n x { u64 id | u8 0 | u128 checksum }
//! ```
//! Everything is little endian. The checksums are XXH3-128 over whole files. The engine checks none of them when it
//! opens a database, so they are checked here.

use xxhash_rust::xxh3::xxh3_128;

/// Length of a `current` file.
pub(crate) const CURRENT_LEN: usize = 25;
/// A version file longer than this is not believed: it would name seven million tables.
pub(crate) const MAX_VERSION_FILE: u64 = 256 << 20;
const TRAILER_LEN: usize = 38;

/// What is wrong with the bytes of a file, in words that follow the file's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Fault(pub(crate) String);

fn fault<T>(what: impl Into<String>) -> Result<T, Fault> {
    Err(Fault(what.into()))
}

/// The contents of a `current` file. Two are equal exactly if nothing in the tree's set of files has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Current {
    /// The version file is `v<version>`.
    pub(crate) version: u64,
    /// XXH3-128 of the version file.
    pub(crate) checksum: u128,
    /// As read.
    pub(crate) bytes: [u8; CURRENT_LEN],
}

impl Current {
    /// Reads the pointer. It must be exactly 25 bytes long.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let Ok(bytes) = <[u8; CURRENT_LEN]>::try_from(bytes) else {
            return fault(format!("is {} bytes long, not {CURRENT_LEN}", bytes.len()));
        };
        let mut fields = Fields(&bytes);
        let version = fields.u64()?;
        let checksum = fields.u128()?;
        match fields.u8()? {
            0 => Ok(Self { version, checksum, bytes }),
            other => fault(format!("names checksum kind {other}, which this program does not know")),
        }
    }

    /// Name of the version file it points at.
    pub(crate) fn version_file(&self) -> String {
        format!("v{}", self.version)
    }
}

/// One table of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableEntry {
    /// The file is `tables/<id>`.
    pub(crate) id: u64,
    /// XXH3-128 of the whole file.
    pub(crate) checksum: u128,
    /// Sequence number that all rows of an ingested table have; part of the version, not of the file.
    pub(crate) global_seqno: u64,
}

/// One blob file of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlobEntry {
    /// The file is `blobs/<id>`.
    pub(crate) id: u64,
    /// XXH3-128 of the whole file.
    pub(crate) checksum: u128,
}

/// What a version file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VersionFile {
    /// Version of the library that wrote it, as it wrote it.
    pub(crate) crate_version: String,
    /// The tree keeps large values in blob files.
    pub(crate) key_value_separated: bool,
    /// Live tables, newest level first.
    pub(crate) tables: Vec<TableEntry>,
    /// Live blob files.
    pub(crate) blobs: Vec<BlobEntry>,
}

impl VersionFile {
    /// Checks the bytes against the pointer's checksum and reads them.
    pub(crate) fn parse(bytes: &[u8], checksum: u128) -> Result<Self, Fault> {
        let actual = xxh3_128(bytes);
        if actual != checksum {
            return fault(format!("has checksum {actual:032x}, but `current` says {checksum:032x}"));
        }
        Self::parse_unchecked(bytes)
    }

    fn parse_unchecked(bytes: &[u8]) -> Result<Self, Fault> {
        let archive = Archive::parse(bytes)?;
        match archive.section("format_version")? {
            [3] => {}
            other => {
                return fault(format!("has format {}, and this program knows 3 only", printable(other)));
            }
        }
        let key_value_separated = match archive.section("tree_type")? {
            [0] => false,
            [1] => true,
            other => return fault(format!("names tree type {}, which is unknown", printable(other))),
        };
        Ok(Self {
            crate_version: printable(archive.section("crate_version")?),
            key_value_separated,
            tables: parse_tables(archive.section("tables")?)?,
            blobs: parse_blobs(archive.section("blob_files")?)?,
        })
    }
}

fn parse_tables(section: &[u8]) -> Result<Vec<TableEntry>, Fault> {
    let mut fields = Fields(section);
    let mut tables = Vec::new();
    for _level in 0..fields.u8()? {
        for _run in 0..fields.u8()? {
            // No capacity from the number: it is foreign, and each entry proves itself by its bytes.
            for _table in 0..fields.u32()? {
                let id = fields.u64()?;
                let checksum = fields.checksum()?;
                tables.push(TableEntry { id, checksum, global_seqno: fields.u64()? });
            }
        }
    }
    fields.finish("tables")?;
    Ok(tables)
}

fn parse_blobs(section: &[u8]) -> Result<Vec<BlobEntry>, Fault> {
    let mut fields = Fields(section);
    let mut blobs = Vec::new();
    for _blob in 0..fields.u32()? {
        let id = fields.u64()?;
        blobs.push(BlobEntry { id, checksum: fields.checksum()? });
    }
    fields.finish("blob_files")?;
    Ok(blobs)
}

fn printable(bytes: &[u8]) -> String {
    let short = bytes.get(..32).unwrap_or(bytes);
    if !short.is_empty() && short.iter().all(u8::is_ascii_graphic) {
        String::from_utf8_lossy(short).into_owned()
    } else {
        short.escape_ascii().map(char::from).collect()
    }
}

/// The sections of an archive, by name.
struct Archive<'a> {
    sections: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Archive<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Fault> {
        let Some((body, trailer)) = bytes.len().checked_sub(TRAILER_LEN).map(|at| bytes.split_at(at)) else {
            return fault(format!("is only {} bytes long", bytes.len()));
        };
        let mut fields = Fields(trailer);
        if fields.take(4)? != b"SFA!" {
            return fault("does not end like a version file");
        }
        if (fields.u8()?, fields.u8()?) != (1, 0) {
            return fault("is an archive of a version that this program does not know");
        }
        let checksum = fields.u128()?;
        let (position, length) = (fields.u64()?, fields.u64()?);
        let contents = slice(body, position, length)?;
        if xxh3_128(contents) != checksum {
            return fault("has a damaged table of contents");
        }
        let mut fields = Fields(contents);
        if fields.take(4)? != b"TOC!" {
            return fault("has no table of contents where its trailer says");
        }
        let mut sections = Vec::new();
        for _ in 0..fields.u32()? {
            let (position, length) = (fields.u64()?, fields.u64()?);
            let name_len = fields.u16()?;
            let name = fields.take(usize::from(name_len))?;
            sections.push((name, slice(body, position, length)?));
        }
        Ok(Self { sections })
    }

    fn section(&self, name: &str) -> Result<&'a [u8], Fault> {
        match self.sections.iter().find(|(own, _)| *own == name.as_bytes()) {
            Some((_, bytes)) => Ok(bytes),
            None => fault(format!("has no section {name}")),
        }
    }
}

fn slice(bytes: &[u8], position: u64, length: u64) -> Result<&[u8], Fault> {
    let range = usize::try_from(position)
        .ok()
        .zip(usize::try_from(length).ok())
        .and_then(|(start, length)| Some(start..start.checked_add(length)?));
    match range.and_then(|range| bytes.get(range)) {
        Some(part) => Ok(part),
        None => fault("names a part that lies outside of it"),
    }
}

/// Fixed-size fields taken from the front of a slice.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Fault> {
        match self.0.split_at_checked(n) {
            Some((taken, rest)) => {
                self.0 = rest;
                Ok(taken)
            }
            None => fault("ends in the middle of an entry"),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        Ok(self.take(N)?.try_into().expect("take returns as many bytes as asked for"))
    }

    fn u8(&mut self) -> Result<u8, Fault> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u16(&mut self) -> Result<u16, Fault> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn u128(&mut self) -> Result<u128, Fault> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    /// A checksum with its kind before it.
    fn checksum(&mut self) -> Result<u128, Fault> {
        match self.u8()? {
            0 => self.u128(),
            other => fault(format!("names checksum kind {other}, which this program does not know")),
        }
    }

    fn finish(&self, section: &str) -> Result<(), Fault> {
        if self.0.is_empty() {
            Ok(())
        } else {
            fault(format!("has {} bytes too many in its section {section}", self.0.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Writes an archive as the engine does.
    fn archive(sections: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut contents = b"TOC!".to_vec();
        contents.extend(u32::try_from(sections.len()).unwrap().to_le_bytes());
        for (name, body) in sections {
            contents.extend((bytes.len() as u64).to_le_bytes());
            contents.extend((body.len() as u64).to_le_bytes());
            contents.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
            contents.extend(name.as_bytes());
            bytes.extend(body);
        }
        let position = bytes.len() as u64;
        bytes.extend(&contents);
        bytes.extend(b"SFA!\x01\x00");
        bytes.extend(xxh3_128(&contents).to_le_bytes());
        bytes.extend(position.to_le_bytes());
        bytes.extend((contents.len() as u64).to_le_bytes());
        bytes
    }

    fn version(tables: Vec<u8>, blobs: Vec<u8>) -> Vec<u8> {
        archive(&[
            ("format_version", vec![3]),
            ("crate_version", b"3.1.10".to_vec()),
            ("tree_type", vec![1]),
            ("tables", tables),
            ("blob_files", blobs),
        ])
    }

    #[test]
    fn a_version_file_of_the_engine_is_read_and_its_checksums_are_those_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let db = fjall::Database::builder(dir.path()).open().unwrap();
        let options = || {
            fjall::KeyspaceCreateOptions::default()
                .with_kv_separation(Some(fjall::KvSeparationOptions::default()))
        };
        let keyspace = db.keyspace("big", options).unwrap();
        for n in 0..50_u32 {
            keyspace.insert(n.to_be_bytes(), vec![7; 5000]).unwrap();
        }
        keyspace.rotate_memtable_and_wait().unwrap();
        let mut ingestion = keyspace.start_ingestion().unwrap();
        ingestion.write(b"z".to_vec(), b"1".to_vec()).unwrap();
        ingestion.finish().unwrap();
        drop((keyspace, db));

        let folder = dir.path().join("keyspaces/1");
        let current = Current::parse(&std::fs::read(folder.join("current")).unwrap()).unwrap();
        let bytes = std::fs::read(folder.join(current.version_file())).unwrap();
        let version = VersionFile::parse(&bytes, current.checksum).unwrap();
        assert_eq!(version.crate_version, "3.1.10");
        assert!(version.key_value_separated);
        assert_eq!(version.tables.len(), 2);
        assert_eq!(version.blobs.len(), 1);
        assert!(version.tables.iter().any(|table| table.global_seqno > 0), "the ingested one has one");
        for table in &version.tables {
            let bytes = std::fs::read(folder.join("tables").join(table.id.to_string())).unwrap();
            assert_eq!(xxh3_128(&bytes), table.checksum);
        }
        for blob in &version.blobs {
            let bytes = std::fs::read(folder.join("blobs").join(blob.id.to_string())).unwrap();
            assert_eq!(xxh3_128(&bytes), blob.checksum);
        }
        let mut damaged = bytes;
        damaged[3] ^= 1;
        assert!(VersionFile::parse(&damaged, current.checksum).unwrap_err().0.contains("checksum"));
    }

    #[test]
    fn a_number_of_tables_that_the_file_cannot_hold_is_refused_without_making_room_for_them() {
        let tables = [&[1, 1][..], &u32::MAX.to_le_bytes()].concat();
        let error = VersionFile::parse_unchecked(&version(tables, 0_u32.to_le_bytes().to_vec())).unwrap_err();
        assert_eq!(error.0, "ends in the middle of an entry");
        let blobs = u32::MAX.to_le_bytes().to_vec();
        assert!(VersionFile::parse_unchecked(&version(vec![0], blobs)).is_err());
    }

    #[test]
    fn formats_and_checksum_kinds_that_are_unknown_are_refused_by_name() {
        let other = archive(&[("format_version", vec![4])]);
        assert!(VersionFile::parse_unchecked(&other).unwrap_err().0.contains("has format"));
        let mut table = vec![1, 1];
        table.extend(1_u32.to_le_bytes());
        table.extend(9_u64.to_le_bytes());
        table.push(1);
        table.extend([0; 24]);
        let error = VersionFile::parse_unchecked(&version(table, vec![0; 4])).unwrap_err();
        assert!(error.0.contains("checksum kind 1"));
        assert!(Current::parse(&[1; CURRENT_LEN]).is_err());
        assert!(Current::parse(&[0; CURRENT_LEN - 1]).is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = VersionFile::parse(&bytes, xxh3_128(&bytes));
            let _ = Current::parse(&bytes);
        }

        #[test]
        fn hostile_sections_in_a_sound_archive_never_panic(
            tables in proptest::collection::vec(any::<u8>(), 0..200),
            blobs in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let bytes = version(tables, blobs);
            let _ = VersionFile::parse(&bytes, xxh3_128(&bytes));
        }

        #[test]
        fn a_changed_byte_never_panics_and_never_passes_the_checksum(at in 0_usize..120, bit in 0_u8..8) {
            let mut bytes = version(vec![0; 8], 0_u32.to_le_bytes().to_vec());
            let checksum = xxh3_128(&bytes);
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let _ = VersionFile::parse_unchecked(&bytes);
            prop_assert!(VersionFile::parse(&bytes, checksum).is_err());
        }
    }
}
