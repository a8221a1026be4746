//! Building the tree over the chunks of some content, bottom up, with a few kilobytes of memory per level.

use crate::content::{NODE_CHILDREN, encode_node};
use crate::error::{Error, Result};
use crate::session::WriteSession;
use crate::{ChunkRef, ContentRef};

/// Takes the chunks of one content in order and gives the reference to all of it.
#[derive(Debug)]
pub struct ContentWriter<'a> {
    session: &'a WriteSession,
    /// Children that have no node yet, level by level.
    levels: Vec<Vec<ChunkRef>>,
}

impl<'a> ContentWriter<'a> {
    /// For a new content.
    pub fn new(session: &'a WriteSession) -> Self {
        Self { session, levels: Vec::new() }
    }

    /// Appends a chunk. Blocks as [`WriteSession::put`] does.
    pub fn push(&mut self, chunk: ChunkRef) -> Result<()> {
        self.push_at(0, chunk)
    }

    /// The whole content. Blocks as [`WriteSession::put`] does.
    pub fn finish(mut self) -> Result<ContentRef> {
        for level in 0.. {
            let is_top = level + 1 >= self.levels.len();
            let Some(children) = self.levels.get_mut(level).map(std::mem::take) else {
                break;
            };
            match children.as_slice() {
                [] => {}
                [only] if is_top => {
                    let level = u8::try_from(level).expect("u64 bytes of content need fewer than 8 levels");
                    return Ok(ContentRef { level, id: only.id, length: only.length });
                }
                _ => {
                    let node = self.put_node(&children)?;
                    self.push_at(level + 1, node)?;
                }
            }
        }
        Ok(ContentRef::EMPTY)
    }

    fn push_at(&mut self, level: usize, chunk: ChunkRef) -> Result<()> {
        let mut carry = Some((level, chunk));
        while let Some((level, chunk)) = carry.take() {
            if self.levels.len() <= level {
                self.levels.resize_with(level + 1, Vec::new);
            }
            let Some(children) = self.levels.get_mut(level) else { break };
            children.push(chunk);
            if children.len() == NODE_CHILDREN {
                let children = std::mem::take(children);
                carry = Some((level + 1, self.put_node(&children)?));
            }
        }
        Ok(())
    }

    fn put_node(&self, children: &[ChunkRef]) -> Result<ChunkRef> {
        let length = children.iter().try_fold(0_u64, |sum, child| sum.checked_add(child.length));
        let length = length.ok_or_else(|| Error::Invalid("the content is longer than 2^64 bytes".into()))?;
        let node = self.session.put(&encode_node(children))?;
        Ok(ChunkRef { id: node.id, length })
    }
}
