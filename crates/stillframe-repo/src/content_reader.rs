//! Reading content back, checked chunk by chunk, a little ahead of who asks for it.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio_util::task::AbortOnDropHandle;

use crate::chunk_reader::ChunkReader;
use crate::error::{Error, Result};
use crate::{ChunkRef, ContentRef, Repository};

/// Neighbouring chunks are fetched together up to so many bytes before compression.
const GROUP_BYTES: u64 = 4 << 20;
const GROUP_CHUNKS: usize = 256;
/// How many groups are on their way.
const GROUPS_AHEAD: usize = 3;

/// Walks the tree of some content and gives its chunks in order, without reading them.
#[derive(Debug)]
pub struct LeafReader {
    chunks: ChunkReader,
    /// What is left of each node on the way from the top, innermost last; each in reverse.
    path: Vec<Vec<ContentRef>>,
}

impl LeafReader {
    pub(crate) fn new(chunks: ChunkReader, content: ContentRef) -> Self {
        let top = if content == ContentRef::EMPTY { Vec::new() } else { vec![content] };
        Self { chunks, path: vec![top] }
    }

    /// The next chunk of the content; `None` at its end.
    pub async fn next(&mut self) -> Result<Option<ChunkRef>> {
        loop {
            match self.step().await? {
                None => return Ok(None),
                Some(content) if content.level == 0 => {
                    return Ok(Some(ChunkRef { id: content.id, length: content.length }));
                }
                Some(_) => {}
            }
        }
    }

    /// The next node or chunk, nodes before what is below them.
    pub(crate) async fn step(&mut self) -> Result<Option<ContentRef>> {
        let next = loop {
            let Some(siblings) = self.path.last_mut() else { return Ok(None) };
            match siblings.pop() {
                Some(next) => break next,
                None => drop(self.path.pop()),
            }
        };
        if !next.is_consistent() {
            return Err(Error::inconsistent("content", format!("{next} contradicts itself")));
        }
        if next.level > 0 {
            let node = self.chunks.read(&next.id).await?;
            let mut children = children(&next, &node)?;
            children.reverse();
            self.path.push(children);
        }
        Ok(Some(next))
    }
}

/// What the bytes of a node say is below it.
pub(crate) fn children(node: &ContentRef, bytes: &[u8]) -> Result<Vec<ContentRef>> {
    let why = || format!("chunk {} is not the node that {node} names", node.id);
    node.decode_node(bytes).ok_or_else(|| Error::inconsistent("content", why()))
}

/// Gives the bytes of some content, chunk by chunk, reading ahead. Holds at most some 30 MiB.
#[derive(Debug)]
pub struct ContentReader {
    leaves: LeafReader,
    chunks: ChunkReader,
    /// A chunk that did not fit into the last group.
    pending: Option<ChunkRef>,
    ahead: VecDeque<AbortOnDropHandle<Result<VecDeque<Bytes>>>>,
    ready: VecDeque<Bytes>,
    exhausted: bool,
}

impl ContentReader {
    pub(crate) fn new(chunks: ChunkReader, content: ContentRef) -> Self {
        let leaves = LeafReader::new(chunks.clone(), content);
        Self {
            leaves,
            chunks,
            pending: None,
            ahead: VecDeque::new(),
            ready: VecDeque::new(),
            exhausted: false,
        }
    }

    /// The next chunk's bytes, which are as they were written; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Ok(Some(bytes));
            }
            while self.ahead.len() < GROUPS_AHEAD && !self.exhausted {
                let group = self.next_group().await?;
                if group.is_empty() {
                    self.exhausted = true;
                } else {
                    let chunks = self.chunks.clone();
                    let task = tokio::spawn(async move { chunks.read_group(&group).await });
                    self.ahead.push_back(AbortOnDropHandle::new(task));
                }
            }
            let Some(task) = self.ahead.pop_front() else { return Ok(None) };
            self.ready = match task.await {
                Ok(result) => result?,
                Err(failure) => match failure.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => return Err(Error::Cancelled),
                },
            };
        }
    }

    async fn next_group(&mut self) -> Result<Vec<ChunkRef>> {
        let mut group = Vec::new();
        let mut bytes = 0;
        loop {
            let chunk = match self.pending.take() {
                Some(chunk) => chunk,
                None => match self.leaves.next().await? {
                    Some(chunk) => chunk,
                    None => return Ok(group),
                },
            };
            if bytes > 0 && (bytes + chunk.length > GROUP_BYTES || group.len() >= GROUP_CHUNKS) {
                self.pending = Some(chunk);
                return Ok(group);
            }
            bytes += chunk.length;
            group.push(chunk);
        }
    }
}

impl Repository {
    /// The chunks of some content in order, without reading them.
    pub fn leaves(&self, content: ContentRef) -> LeafReader {
        LeafReader::new(self.chunk_reader(), content)
    }

    /// The bytes of some content in order. Must be called on a tokio runtime.
    pub fn content(&self, content: ContentRef) -> ContentReader {
        ContentReader::new(self.chunk_reader(), content)
    }

    /// All bytes of a small content, which may have at most `max_len`.
    pub async fn read_content(&self, content: ContentRef, max_len: u64) -> Result<Vec<u8>> {
        if content.length > max_len {
            return Err(Error::inconsistent(
                "content",
                format!("{content} is longer than the {max_len} expected"),
            ));
        }
        let mut bytes = Vec::new();
        let mut reader = self.content(content);
        while let Some(chunk) = reader.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}
