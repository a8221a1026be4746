//! Content of any length as a tree of chunks, and the reference that names it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ChunkId;
use crate::bytes_reader::BytesReader;

/// The largest chunk: 16 MiB.
pub const MAX_CHUNK_LEN: usize = 16 << 20;
/// A node has at most so many children.
pub(crate) const NODE_CHILDREN: usize = 1024;
/// 1024^8 chunks are more than there can be.
pub(crate) const MAX_LEVEL: u8 = 8;
const CHILD_LEN: usize = 40;

/// A chunk that is stored, and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkRef {
    /// Its name.
    pub id: ChunkId,
    /// Its length in bytes before compression: 1 to [`MAX_CHUNK_LEN`].
    pub length: u64,
}

/// Some content, whatever its length: the top of a tree of chunks.
///
/// Level 0 is a data chunk itself, level n a node whose children are of level n - 1. As text (in JSON) it is
/// `level:id:length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ContentRef {
    /// Height of the tree.
    pub level: u8,
    /// The chunk at its top.
    pub id: ChunkId,
    /// Bytes of content below it.
    pub length: u64,
}

/// Text that is not a content reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a content reference: level:id:length was expected")]
pub struct ParseContentRefError;

impl ContentRef {
    /// No bytes at all. No chunk stands for it.
    pub const EMPTY: Self = Self { level: 0, id: ChunkId([0; 32]), length: 0 };

    /// Whether the parts fit each other: empty content is [`Self::EMPTY`], one chunk is not longer than a chunk may be.
    pub(crate) fn is_consistent(&self) -> bool {
        match (self.level, self.length) {
            (_, 0) => *self == Self::EMPTY,
            (0, length) => length <= MAX_CHUNK_LEN as u64,
            (level, _) => level <= MAX_LEVEL,
        }
    }

    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.push(self.level);
        bytes.extend_from_slice(&self.id.0);
        bytes.extend_from_slice(&self.length.to_le_bytes());
    }

    pub(crate) fn decode(reader: &mut BytesReader<'_>) -> Option<Self> {
        let content = Self { level: reader.u8()?, id: ChunkId(reader.array()?), length: reader.u64()? };
        content.is_consistent().then_some(content)
    }

    /// The children that a node chunk of this content holds. `None`: this chunk is no such node.
    pub(crate) fn decode_node(&self, node: &[u8]) -> Option<Vec<Self>> {
        let level = self.level.checked_sub(1)?;
        let count = node.len() / CHILD_LEN;
        if !node.len().is_multiple_of(CHILD_LEN) || !(1..=NODE_CHILDREN).contains(&count) {
            return None;
        }
        let mut reader = BytesReader::new(node);
        let mut children = Vec::with_capacity(count);
        let mut total = 0_u64;
        while !reader.is_empty() {
            let child = Self { level, id: ChunkId(reader.array()?), length: reader.u64()? };
            total = total.checked_add(child.length)?;
            if child.length == 0 || !child.is_consistent() {
                return None;
            }
            children.push(child);
        }
        (total == self.length).then_some(children)
    }
}

/// The bytes of a node with these children.
pub(crate) fn encode_node(children: &[ChunkRef]) -> Vec<u8> {
    let mut node = Vec::with_capacity(children.len() * CHILD_LEN);
    for child in children {
        node.extend_from_slice(&child.id.0);
        node.extend_from_slice(&child.length.to_le_bytes());
    }
    node
}

impl fmt::Display for ContentRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.level, self.id, self.length)
    }
}

impl FromStr for ContentRef {
    type Err = ParseContentRefError;

    fn from_str(text: &str) -> Result<Self, ParseContentRefError> {
        let mut parts = text.split(':');
        let mut next = || parts.next().ok_or(ParseContentRefError);
        let content = Self {
            level: decimal(next()?)?.try_into().map_err(|_| ParseContentRefError)?,
            id: next()?.parse().map_err(|_| ParseContentRefError)?,
            length: decimal(next()?)?,
        };
        let whole = parts.next().is_none() && content.is_consistent();
        whole.then_some(content).ok_or(ParseContentRefError)
    }
}

/// Digits only: `u64::from_str` takes a plus sign, too.
fn decimal(text: &str) -> Result<u64, ParseContentRefError> {
    let digits = text.bytes().all(|c| c.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or(ParseContentRefError)
}

impl TryFrom<String> for ContentRef {
    type Error = ParseContentRefError;

    fn try_from(text: String) -> Result<Self, ParseContentRefError> {
        text.parse()
    }
}

impl From<ContentRef> for String {
    fn from(content: ContentRef) -> Self {
        content.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn content(level: u8, length: u64) -> ContentRef {
        ContentRef { level, id: ChunkId([7; 32]), length }
    }

    #[test]
    fn a_node_must_add_up() {
        let children =
            [ChunkRef { id: ChunkId([1; 32]), length: 5 }, ChunkRef { id: ChunkId([2; 32]), length: 6 }];
        let node = encode_node(&children);
        assert_eq!(content(1, 11).decode_node(&node).unwrap().len(), 2);
        assert_eq!(content(1, 12).decode_node(&node), None, "another length");
        assert_eq!(content(0, 11).decode_node(&node), None, "a data chunk has no children");
        assert_eq!(content(1, 11).decode_node(&node[1..]), None, "a piece");
        assert_eq!(content(1, 0).decode_node(&[]), None, "no children");
        let wrapped = [u64::MAX, 12].map(|length| ChunkRef { id: ChunkId([1; 32]), length });
        assert_eq!(content(3, 11).decode_node(&encode_node(&wrapped)), None, "lengths that wrap around");
        let long = [ChunkRef { id: ChunkId([1; 32]), length: 17 << 20 }];
        assert_eq!(content(1, 17 << 20).decode_node(&encode_node(&long)), None, "a chunk above the limit");
        let empty = [ChunkRef { id: ChunkId([0; 32]), length: 0 }, children[0]];
        assert_eq!(content(1, 5).decode_node(&encode_node(&empty)), None, "an empty child");
    }

    proptest! {
        #[test]
        fn text_and_bytes_read_back(level in 0_u8..10, id in any::<[u8; 32]>(), length in 0_u64..40_000_000) {
            let content = ContentRef { level, id: ChunkId(id), length };
            let mut bytes = Vec::new();
            content.encode(&mut bytes);
            prop_assert_eq!(bytes.len(), 41);
            let expected = content.is_consistent().then_some(content);
            prop_assert_eq!(ContentRef::decode(&mut BytesReader::new(&bytes)), expected);
            prop_assert_eq!(content.to_string().parse::<ContentRef>().ok(), expected);
        }

        #[test]
        fn hostile_text_and_nodes_never_panic(
            text in "[0-9a-f:+ ]{0,90}",
            node in proptest::collection::vec(any::<u8>(), 0..200),
            level: u8,
            length: u64,
        ) {
            let _ = text.parse::<ContentRef>();
            let _ = content(level, length).decode_node(&node);
        }
    }
}
