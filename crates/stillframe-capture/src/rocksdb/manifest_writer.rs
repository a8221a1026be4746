//! Writes MANIFESTs; for tests.

use super::log_format::writer::append;

pub(crate) fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    bytes.push(value.to_le_bytes()[0]);
}

pub(crate) fn put_string(bytes: &mut Vec<u8>, string: &[u8]) {
    put_varint(bytes, string.len() as u64);
    bytes.extend_from_slice(string);
}

/// One edit in the making.
#[derive(Debug, Clone, Default)]
pub(crate) struct EditBytes(Vec<u8>);

impl EditBytes {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn tag(&mut self, tag: u64) -> &mut Self {
        self.raw_varint(tag)
    }

    pub(crate) fn raw_varint(&mut self, value: u64) -> &mut Self {
        put_varint(&mut self.0, value);
        self
    }

    pub(crate) fn raw_string(&mut self, string: &[u8]) -> &mut Self {
        put_string(&mut self.0, string);
        self
    }

    pub(crate) fn number(&mut self, tag: u64, value: u64) -> &mut Self {
        self.tag(tag).raw_varint(value)
    }

    pub(crate) fn string_field(&mut self, tag: u64, string: &[u8]) -> &mut Self {
        self.tag(tag).raw_string(string)
    }

    pub(crate) fn deleted(&mut self, level: u64, number: u64) -> &mut Self {
        self.tag(6).raw_varint(level).raw_varint(number)
    }

    fn keys(&mut self) -> &mut Self {
        self.raw_string(b"a\x01\0\0\0\0\0\0\0").raw_string(b"z\x01\0\0\0\0\0\0\0")
    }

    pub(crate) fn table_1(&mut self, level: u64, number: u64, size: u64) -> &mut Self {
        self.tag(7).raw_varint(level).raw_varint(number).raw_varint(size).keys()
    }

    pub(crate) fn table_2(&mut self, level: u64, number: u64, size: u64) -> &mut Self {
        self.tag(100).raw_varint(level).raw_varint(number).raw_varint(size).keys().raw_varint(1).raw_varint(2)
    }

    pub(crate) fn table_3(&mut self, level: u64, number: u64, path: u64, size: u64) -> &mut Self {
        self.tag(102).raw_varint(level).raw_varint(number).raw_varint(path).raw_varint(size);
        self.keys().raw_varint(1).raw_varint(2)
    }

    pub(crate) fn table_4(
        &mut self,
        level: u64,
        number: u64,
        size: u64,
        fields: &[(u64, &[u8])],
    ) -> &mut Self {
        self.tag(103)
            .raw_varint(level)
            .raw_varint(number)
            .raw_varint(size)
            .keys()
            .raw_varint(1)
            .raw_varint(2);
        for (field, value) in fields {
            self.raw_varint(*field).raw_string(value);
        }
        self.raw_varint(1)
    }

    pub(crate) fn blob(&mut self, tag: u64, number: u64, count: u64, bytes: u64) -> &mut Self {
        self.tag(tag).raw_varint(number).raw_varint(count).raw_varint(bytes);
        self.raw_string(b"").raw_string(b"").raw_varint(5).raw_string(b"skipped").raw_varint(0)
    }

    pub(crate) fn garbage(&mut self, tag: u64, number: u64, count: u64) -> &mut Self {
        self.tag(tag).raw_varint(number).raw_varint(count).raw_varint(count * 10).raw_varint(0)
    }
}

/// A MANIFEST made of these edits.
pub(crate) fn manifest(edits: &[EditBytes]) -> Vec<u8> {
    let mut file = Vec::new();
    for edit in edits {
        append(&mut file, edit.as_bytes(), None);
    }
    file
}
