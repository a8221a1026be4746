//! Whether all that some contents consist of is in the repository, without reading the data themselves.

use tokio_util::sync::CancellationToken;

use crate::content_reader::children;
use crate::error::{Error, Result};
use crate::index_cache::Location;
use crate::{ContentRef, Repository};

/// Looked up together. Nodes among them are fetched together, so this also bounds what is held: each may have a thousand children.
const BATCH: usize = 128;

impl Repository {
    /// Looks whether every chunk of `contents` is in a pack that is listed with its full length; reads the nodes of their trees, no
    /// data. The first that is not there is an [`Error::ChunkLost`]; one of another length than the trees say, an
    /// [`Error::Inconsistent`].
    pub async fn check_presence(
        &self,
        contents: impl IntoIterator<Item = ContentRef>,
        cancel: &CancellationToken,
    ) -> Result<()> {
        let mut contents = contents.into_iter().peekable();
        if contents.peek().is_none() {
            return Ok(());
        }
        // The index forgets packs that are not listed with the length that they were written with.
        self.index().refresh().await?;
        self.look_for_all(contents, cancel).await
    }

    /// The same, as far as the index knows.
    pub(crate) async fn look_for_all(
        &self,
        contents: impl IntoIterator<Item = ContentRef>,
        cancel: &CancellationToken,
    ) -> Result<()> {
        let mut contents = contents.into_iter().filter(|content| *content != ContentRef::EMPTY);
        let (chunks, distrusted) = (self.chunk_reader(), self.index().distrust().all());
        let mut open: Vec<ContentRef> = Vec::new();
        loop {
            if open.is_empty() {
                open.extend(contents.by_ref().take(BATCH));
            }
            if open.is_empty() {
                return Ok(());
            }
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let batch = open.split_off(open.len().saturating_sub(BATCH));
            let ids: Vec<_> = batch.iter().map(|content| content.id).collect();
            let located = self.index().locate_all(&ids)?;
            let mut nodes = Vec::new();
            for (content, places) in batch.into_iter().zip(&located) {
                let trusted = |place: &&Location| !distrusted.contains(&place.pack) && fits(&content, place);
                match places.iter().find(trusted) {
                    Some(_) if content.level > 0 => nodes.push(content),
                    Some(_) => {}
                    // Looks once more, since a sweep may be moving it, or only its neighbours may be damaged, and says what is wrong.
                    None => {
                        let bytes = chunks.read(&content.id).await?;
                        if content.level > 0 {
                            open.extend(children(&content, &bytes)?);
                        } else if bytes.len() as u64 != content.length {
                            let why = format!("{content} names a chunk of {} bytes", bytes.len());
                            return Err(Error::inconsistent("content", why));
                        }
                    }
                }
            }
            let ids: Vec<_> = nodes.iter().map(|node| node.id).collect();
            for (node, bytes) in nodes.iter().zip(chunks.read_all(&ids).await?) {
                open.extend(children(node, &bytes)?);
            }
        }
    }
}

/// Whether what is there can be what the tree says; how long a node is, the tree does not say.
fn fits(content: &ContentRef, place: &Location) -> bool {
    content.level > 0 || u64::from(place.entry.plain_len) == content.length
}
