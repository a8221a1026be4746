//! One edit of a MANIFEST: what files and column families came and went (`db/version_edit.cc` in both engines).

use super::decoder::{CutOff, Decoder};
use super::log_format::FramingError;

/// Tags from here on are followed by a length, so that readers may skip those they do not know.
const IGNORABLE_TAGS: u32 = 1 << 13;
/// Custom fields with this bit change the meaning of a file; readers that do not know them must stop.
const CRITICAL_FIELD: u32 = 1 << 6;

/// One edit. Fields that a capture does not need are read over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct VersionEdit {
    /// The column family that the edit is about.
    pub(crate) family: u32,
    /// The edit creates the family, under this name.
    pub(crate) family_added: Option<Vec<u8>>,
    /// The edit drops the family.
    pub(crate) family_dropped: bool,
    pub(crate) db_id: Option<Vec<u8>>,
    /// Logs below this hold nothing of the family that is not in tables.
    pub(crate) log_number: Option<u64>,
    pub(crate) previous_log_number: Option<u64>,
    /// The same for the whole database. Largest one in the edit.
    pub(crate) min_log_to_keep: Option<u64>,
    pub(crate) next_file_number: Option<u64>,
    pub(crate) last_sequence: Option<u64>,
    pub(crate) deleted: Vec<DeletedTable>,
    pub(crate) added: Vec<NewTable>,
    pub(crate) blobs_added: Vec<NewBlobFile>,
    pub(crate) blob_garbage: Vec<BlobGarbage>,
    pub(crate) logs_added: Vec<LogAddition>,
    /// Logs below this are gone.
    pub(crate) logs_deleted_before: Option<u64>,
    /// The edit belongs to a group of edits that count together; so many follow.
    pub(crate) group_remaining: Option<u32>,
}

/// A table that is no longer live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeletedTable {
    pub(crate) level: u32,
    pub(crate) number: u64,
}

/// A table that became live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct NewTable {
    pub(crate) level: u32,
    pub(crate) number: u64,
    /// Which of the family's paths it is in.
    pub(crate) path_id: u32,
    /// Exact length of the file in bytes.
    pub(crate) size: u64,
    /// The first blob file that it refers to.
    pub(crate) oldest_blob: Option<u64>,
    /// Made of the database's id, the session's and the number the table was born with; since 7.3.
    pub(crate) unique_id: Option<[u8; 16]>,
}

/// A blob file that became live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NewBlobFile {
    pub(crate) number: u64,
    pub(crate) count: u64,
    /// Bytes of all blobs with their headers.
    pub(crate) bytes: u64,
}

/// More of a blob file is no longer referred to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlobGarbage {
    pub(crate) number: u64,
    pub(crate) count: u64,
}

/// A log, and its length if it is closed and synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogAddition {
    pub(crate) number: u64,
    pub(crate) synced_size: Option<u64>,
}

/// Why a MANIFEST cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ManifestError {
    /// It was written by an engine that this reader does not know; going on would be guessing.
    #[error("it was written by a newer RocksDB ({what} {tag})")]
    Newer {
        /// What is unknown.
        what: &'static str,
        /// Its tag.
        tag: u32,
    },
    /// The bytes are no edit, or edits contradict each other.
    #[error("{0}")]
    Corrupt(String),
    /// The bytes are no record.
    #[error(transparent)]
    Framing(#[from] FramingError),
}

impl ManifestError {
    pub(crate) fn corrupt(reason: impl Into<String>) -> Self {
        Self::Corrupt(reason.into())
    }
}

impl VersionEdit {
    /// Reads one edit, which must fill `bytes`.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let mut edit = Self::default();
        let mut decoder = Decoder::new(bytes);
        while !decoder.is_empty() {
            let tag = decoder.varint32().map_err(|_| ManifestError::corrupt("an edit's tag is cut off"))?;
            edit.field(tag, &mut decoder).map_err(|fault| match fault {
                FieldFault::CutOff => {
                    ManifestError::Corrupt(format!("the field with tag {tag} of an edit is malformed"))
                }
                FieldFault::Newer(what, tag) => ManifestError::Newer { what, tag },
            })?;
        }
        Ok(edit)
    }

    fn field(&mut self, tag: u32, decoder: &mut Decoder<'_>) -> Result<(), FieldFault> {
        match tag {
            1 => {
                // The name of the key order.
                decoder.string()?;
            }
            2 => self.log_number = Some(decoder.varint64()?),
            3 => self.next_file_number = Some(decoder.varint64()?),
            4 => self.last_sequence = Some(decoder.varint64()?),
            5 => {
                // Where compaction goes on; only the engine cares.
                decoder.varint32()?;
                decoder.string()?;
            }
            6 => self.deleted.push(DeletedTable { level: decoder.varint32()?, number: decoder.varint64()? }),
            7 | 100 | 102 | 103 => self.new_table(tag, decoder)?,
            9 => self.previous_log_number = Some(decoder.varint64()?),
            10 => self.keep_logs_from(decoder.varint64()?),
            200 => self.family = decoder.varint32()?,
            201 => self.family_added = Some(decoder.string()?.to_vec()),
            202 => self.family_dropped = true,
            203 => {
                decoder.varint32()?;
            }
            300 => self.group_remaining = Some(decoder.varint32()?),
            400 | 8194 => self.new_blob_file(decoder)?,
            401 | 8195 => {
                let garbage = BlobGarbage { number: decoder.varint64()?, count: decoder.varint64()? };
                decoder.varint64()?;
                blob_fields(decoder)?;
                self.blob_garbage.push(garbage);
            }
            8193 => self.db_id = Some(decoder.string()?.to_vec()),
            8196 => self.log_addition(decoder)?,
            8197 => self.logs_gone_before(decoder.varint64()?),
            8199 => self.log_addition(&mut Decoder::new(decoder.string()?))?,
            8200 => self.logs_gone_before(Decoder::new(decoder.string()?).varint64()?),
            IGNORABLE_TAGS.. => {
                decoder.string()?;
            }
            _ => return Err(FieldFault::Newer("edit tag", tag)),
        }
        Ok(())
    }

    fn keep_logs_from(&mut self, number: u64) {
        self.min_log_to_keep = self.min_log_to_keep.max(Some(number));
    }

    fn logs_gone_before(&mut self, number: u64) {
        self.logs_deleted_before = self.logs_deleted_before.max(Some(number));
    }

    fn new_table(&mut self, tag: u32, decoder: &mut Decoder<'_>) -> Result<(), FieldFault> {
        let mut table =
            NewTable { level: decoder.varint32()?, number: decoder.varint64()?, ..NewTable::default() };
        if tag == 102 {
            table.path_id = decoder.varint32()?;
        }
        table.size = decoder.varint64()?;
        // Smallest and largest key.
        decoder.string()?;
        decoder.string()?;
        if tag != 7 {
            // Smallest and largest sequence number.
            decoder.varint64()?;
            decoder.varint64()?;
        }
        if tag == 103 {
            self.table_fields(&mut table, decoder)?;
        }
        self.added.push(table);
        Ok(())
    }

    fn table_fields(&mut self, table: &mut NewTable, decoder: &mut Decoder<'_>) -> Result<(), FieldFault> {
        loop {
            let field = decoder.varint32()?;
            if field == 1 {
                return Ok(());
            }
            let value = decoder.string()?;
            match field {
                3 => self.keep_logs_from(Decoder::new(value).fixed64()?),
                4 => {
                    // Zero stands for "refers to none" in the engine.
                    table.oldest_blob = Some(Decoder::new(value).varint64()?).filter(|&number| number != 0);
                }
                12 => {
                    let id: [u8; 16] = value.try_into().map_err(|_| FieldFault::CutOff)?;
                    table.unique_id = Some(id).filter(|id| id.iter().any(|&byte| byte != 0));
                }
                65 => match value {
                    &[path_id @ 0..=3] => table.path_id = u32::from(path_id),
                    _ => return Err(FieldFault::CutOff),
                },
                _ if field & CRITICAL_FIELD != 0 => return Err(FieldFault::Newer("file field", field)),
                _ => {}
            }
        }
    }

    fn new_blob_file(&mut self, decoder: &mut Decoder<'_>) -> Result<(), FieldFault> {
        let blob = NewBlobFile {
            number: decoder.varint64()?,
            count: decoder.varint64()?,
            bytes: decoder.varint64()?,
        };
        // Checksum method and value.
        decoder.string()?;
        decoder.string()?;
        blob_fields(decoder)?;
        self.blobs_added.push(blob);
        Ok(())
    }

    fn log_addition(&mut self, decoder: &mut Decoder<'_>) -> Result<(), FieldFault> {
        let number = decoder.varint64()?;
        let mut synced_size = None;
        loop {
            match decoder.varint32()? {
                1 => break,
                2 => synced_size = Some(decoder.varint64()?),
                unknown => return Err(FieldFault::Newer("log field", unknown)),
            }
        }
        self.logs_added.push(LogAddition { number, synced_size });
        Ok(())
    }
}

fn blob_fields(decoder: &mut Decoder<'_>) -> Result<(), FieldFault> {
    loop {
        let field = decoder.varint32()?;
        if field == 0 {
            return Ok(());
        }
        if field & CRITICAL_FIELD != 0 {
            return Err(FieldFault::Newer("blob file field", field));
        }
        decoder.string()?;
    }
}

enum FieldFault {
    CutOff,
    Newer(&'static str, u32),
}

impl From<CutOff> for FieldFault {
    fn from(_: CutOff) -> Self {
        Self::CutOff
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::manifest_writer::{EditBytes, put_string, put_varint};
    use super::*;

    #[test]
    fn every_tag_of_the_format_is_read() {
        let mut bytes = EditBytes::default();
        bytes.string_field(1, b"leveldb.BytewiseComparator").number(2, 11).number(3, 12).number(4, 13);
        bytes.tag(5).raw_varint(1).raw_string(b"cursor12");
        bytes.deleted(2, 7).table_1(0, 20, 100).table_2(1, 21, 101).table_3(2, 22, 3, 102);
        bytes.number(9, 14).number(10, 15).number(200, 3).string_field(201, b"pears").tag(202).number(203, 9);
        bytes
            .number(300, 4)
            .blob(400, 30, 5, 500)
            .blob(8194, 31, 6, 600)
            .garbage(401, 30, 1)
            .garbage(8195, 31, 2);
        bytes.string_field(8193, b"id").tag(8196).raw_varint(40).raw_varint(2).raw_varint(41).raw_varint(1);
        bytes.tag(8197).raw_varint(42).string_field(8198, b"ts").string_field(8199, &[43, 1]);
        bytes.string_field(8200, &[44]).string_field(8201, &[1]).string_field(8202, b"progress");
        bytes.string_field(8203, &[1]).string_field(20_000, b"unknown, may be ignored");
        let edit = VersionEdit::decode(bytes.as_bytes()).unwrap();
        let table =
            |level, number, path_id, size| NewTable { level, number, path_id, size, ..NewTable::default() };
        let expected = VersionEdit {
            family: 3,
            family_added: Some(b"pears".to_vec()),
            family_dropped: true,
            db_id: Some(b"id".to_vec()),
            log_number: Some(11),
            previous_log_number: Some(14),
            min_log_to_keep: Some(15),
            next_file_number: Some(12),
            last_sequence: Some(13),
            deleted: vec![DeletedTable { level: 2, number: 7 }],
            added: vec![table(0, 20, 0, 100), table(1, 21, 0, 101), table(2, 22, 3, 102)],
            blobs_added: vec![
                NewBlobFile { number: 30, count: 5, bytes: 500 },
                NewBlobFile { number: 31, count: 6, bytes: 600 },
            ],
            blob_garbage: vec![BlobGarbage { number: 30, count: 1 }, BlobGarbage { number: 31, count: 2 }],
            logs_added: vec![
                LogAddition { number: 40, synced_size: Some(41) },
                LogAddition { number: 43, synced_size: None },
            ],
            logs_deleted_before: Some(44),
            group_remaining: Some(4),
        };
        assert_eq!(edit, expected);
    }

    #[test]
    fn custom_fields_are_read_skipped_or_refused() {
        let mut bytes = EditBytes::default();
        bytes.table_4(
            0,
            5,
            99,
            &[
                (2, &[0]),
                (3, &9_u64.to_le_bytes()),
                (4, &[6]),
                (12, &[7; 16]),
                (65, &[2]),
                (17, b"x"),
                (33, b"new"),
            ],
        );
        let edit = VersionEdit::decode(bytes.as_bytes()).unwrap();
        let table = NewTable {
            level: 0,
            number: 5,
            path_id: 2,
            size: 99,
            oldest_blob: Some(6),
            unique_id: Some([7; 16]),
        };
        assert_eq!(edit.added, [table]);
        assert_eq!(edit.min_log_to_keep, Some(9));

        for bad in [(66, &b""[..]), (65, &[4]), (65, &[]), (12, b"short"), (3, b"short")] {
            let mut bytes = EditBytes::default();
            bytes.table_4(0, 5, 99, &[bad]);
            assert!(VersionEdit::decode(bytes.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_tag_that_may_not_be_ignored_is_refused_by_name() {
        let mut bytes = EditBytes::default();
        bytes.number(2, 1).number(777, 1);
        let error = VersionEdit::decode(bytes.as_bytes()).unwrap_err();
        assert_eq!(error, ManifestError::Newer { what: "edit tag", tag: 777 });
        assert!(matches!(VersionEdit::decode(&[8, 0]), Err(ManifestError::Newer { tag: 8, .. })));
    }

    #[test]
    fn an_edit_cut_anywhere_but_between_fields_is_corrupt() {
        let mut bytes = EditBytes::default();
        bytes.table_4(3, 500, 70_000, &[(12, &[1; 16])]);
        for cut in 1..bytes.as_bytes().len() {
            assert!(
                matches!(VersionEdit::decode(&bytes.as_bytes()[..cut]), Err(ManifestError::Corrupt(_))),
                "{cut}"
            );
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = VersionEdit::decode(&bytes);
        }

        #[test]
        fn fields_with_arbitrary_contents_never_panic(
            fields in proptest::collection::vec(
                (prop_oneof![0_u64..12, 98_u64..105, 198_u64..205, 300_u64..302, 398_u64..403, 8190_u64..8206],
                 proptest::collection::vec(any::<u8>(), 0..30)), 0..8),
        ) {
            let mut bytes = Vec::new();
            for (tag, contents) in &fields {
                put_varint(&mut bytes, *tag);
                bytes.extend_from_slice(contents);
            }
            let _ = VersionEdit::decode(&bytes);
            let mut bytes = Vec::new();
            for (tag, contents) in &fields {
                put_varint(&mut bytes, *tag);
                put_string(&mut bytes, contents);
            }
            let _ = VersionEdit::decode(&bytes);
        }
    }
}
