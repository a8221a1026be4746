//! Reading one stored object from end to end: its hash, and the chunks in it that somebody needs.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::chunk_reader::decode_chunk;
use crate::envelope::{HASH_LEN, Header};
use crate::error::{Error, Result};
use crate::index::blocking;
use crate::index_cache::Location;
use crate::key_ring::KeyRing;
use crate::layout::{Kind, ObjectName};
use crate::object_io::ObjectIo;
use crate::{ChunkId, PackId};

/// How much is read at a time.
const PIECE: u64 = 4 << 20;

/// What is wrong with a pack.
pub(crate) struct PackFault {
    pub(crate) why: String,
    /// It is not there at all, which is nothing bad if its chunks are elsewhere: it was rewritten meanwhile.
    pub(crate) missing: bool,
    /// Needed chunks that did not come out of it.
    pub(crate) chunks: Vec<LostChunk>,
}

/// A chunk that a pack does not give any more.
pub(crate) struct LostChunk {
    pub(crate) id: ChunkId,
    pub(crate) why: String,
}

/// What came of reading a pack.
pub(crate) struct PackCheck {
    pub(crate) pack: PackId,
    pub(crate) bytes_read: u64,
    pub(crate) fault: Option<PackFault>,
    /// Chunks that came out of it, if that was asked for.
    pub(crate) decoded: HashSet<ChunkId>,
}

/// Reads a pack once and compares its hash; decodes `needed`, too, when asked to, or when the hash shows damage.
/// `needed` is in order of position and not empty.
pub(crate) async fn check_pack(
    io: ObjectIo,
    ring: Arc<KeyRing>,
    pack: PackId,
    needed: Vec<Location>,
    decode: bool,
) -> Result<PackCheck> {
    let name = ObjectName::new(Kind::Pack, pack);
    let size = needed.first().map_or(0, |first| first.pack_size);
    let decoded = if decode { needed.iter().map(|place| place.entry.id).collect() } else { HashSet::new() };
    let needed: Arc<[Location]> = needed.into();
    let mut bytes_read = size;
    let mut scan =
        scan(&io, &ring, name, size, if decode { Arc::clone(&needed) } else { Arc::default() }).await?;
    if scan.fault.is_some() && !decode {
        // The hash says that something is wrong; the chunks say whether it concerns us.
        scan.lost = self::scan(&io, &ring, name, size, needed).await?.lost;
        bytes_read += size;
    }
    let fault = match (scan.fault, scan.lost) {
        (None, lost) if lost.is_empty() => None,
        (why, chunks) => {
            let why = why.unwrap_or_else(|| "its hash fits, but chunks in it do not decrypt".to_owned());
            Some(PackFault { why, missing: scan.missing, chunks })
        }
    };
    tracing::debug!(%pack, bytes = bytes_read, sound = fault.is_none(), "read a pack");
    Ok(PackCheck { pack, bytes_read, fault, decoded })
}

/// Checks the frame of any stored object, which needs no keys. `None`: it is as it was written.
pub(crate) async fn check_frame(io: &ObjectIo, name: ObjectName, size: u64) -> Result<Option<String>> {
    // Nothing is decoded, so no key of this ring is ever used.
    let no_ring = Arc::new(KeyRing::generate(crate::ObjectId([0; 16])));
    Ok(scan(io, &no_ring, name, size, Arc::default()).await?.fault)
}

struct Scan {
    fault: Option<String>,
    missing: bool,
    lost: Vec<LostChunk>,
}

/// Reads the object piece by piece. Damage and absence are found; a failure of the store is an error.
async fn scan(
    io: &ObjectIo,
    ring: &Arc<KeyRing>,
    name: ObjectName,
    size: u64,
    needed: Arc<[Location]>,
) -> Result<Scan> {
    let mut state = State {
        next: 0,
        window: BytesMut::new(),
        window_start: 0,
        hasher: blake3::Hasher::new(),
        tail: Vec::new(),
        lost: Vec::new(),
        fault: None,
    };
    let mut position = 0;
    while position < size {
        let end = (position + PIECE).min(size);
        let piece = match io.get_range(name, position..end).await {
            Ok(piece) => piece,
            Err(Error::Damaged { why, .. }) => return Ok(state.all_lost(&needed, why, false)),
            Err(error) if error.is_absent() => {
                return Ok(state.all_lost(&needed, "it is missing".to_owned(), true));
            }
            Err(error) => return Err(error),
        };
        let (ring, wanted) = (Arc::clone(ring), Arc::clone(&needed));
        state = blocking(move || {
            state.take(&ring, name, position, size, &piece, &wanted);
            Ok(state)
        })
        .await?;
        position = end;
    }
    Ok(state.finish(name, &needed))
}

struct State {
    /// The needed chunk that comes next.
    next: usize,
    /// Bytes of the object from `window_start` on that chunks still need.
    window: BytesMut,
    window_start: u64,
    hasher: blake3::Hasher,
    /// The hash at the end.
    tail: Vec<u8>,
    lost: Vec<LostChunk>,
    fault: Option<String>,
}

impl State {
    fn take(
        &mut self,
        ring: &KeyRing,
        name: ObjectName,
        start: u64,
        size: u64,
        piece: &Bytes,
        needed: &[Location],
    ) {
        if start == 0
            && let Err(error) = Header::decode(name, piece)
        {
            self.fault = Some(match error {
                Error::Damaged { why, .. } => why,
                error => error.to_string(),
            });
        }
        let hashed =
            usize::try_from(size.saturating_sub(HASH_LEN as u64).saturating_sub(start)).unwrap_or(usize::MAX);
        let (content, tail) = piece.split_at(hashed.min(piece.len()));
        self.hasher.update(content);
        self.tail.extend_from_slice(tail);
        if needed.is_empty() {
            return;
        }
        self.window.extend_from_slice(piece);
        while let Some(place) = needed.get(self.next) {
            // Nothing before the next chunk is needed any more.
            let skip = usize::try_from(place.offset.saturating_sub(self.window_start)).unwrap_or(usize::MAX);
            let skip = skip.min(self.window.len());
            drop(self.window.split_to(skip));
            self.window_start += skip as u64;
            let len = usize::try_from(place.entry.stored_len).unwrap_or(usize::MAX);
            if self.window_start != place.offset || self.window.len() < len {
                return;
            }
            let stored = self.window.split_to(len);
            self.window_start += len as u64;
            if let Err(error) = decode_chunk(ring, place, stored) {
                let why = match error {
                    Error::Damaged { why, .. } => why,
                    error => error.to_string(),
                };
                self.lost.push(LostChunk { id: place.entry.id, why });
            }
            self.next += 1;
        }
        self.window_start += self.window.len() as u64;
        self.window.clear();
    }

    fn finish(mut self, name: ObjectName, needed: &[Location]) -> Scan {
        if self.fault.is_none() && self.hasher.finalize().as_bytes().as_slice() != self.tail {
            self.fault = Some("its hash does not match its bytes".to_owned());
        }
        for place in needed.iter().skip(self.next) {
            let why = format!("{name} ends before the chunk");
            self.lost.push(LostChunk { id: place.entry.id, why });
        }
        Scan { fault: self.fault, missing: false, lost: self.lost }
    }

    fn all_lost(mut self, needed: &[Location], why: String, missing: bool) -> Scan {
        let rest = needed.iter().skip(self.next);
        self.lost.extend(rest.map(|place| LostChunk { id: place.entry.id, why: why.clone() }));
        Scan { fault: Some(why), missing, lost: self.lost }
    }
}
