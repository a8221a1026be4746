//! Where the files of an image are cut into chunks.

use std::ops::Range;

use stillframe_capture::Role;

/// How files of one role are cut: at fixed distances from the beginning, so that equal ranges at equal places give equal
/// chunks, and a change in one place costs one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Bytes of one chunk.
    pub(crate) chunk: u64,
    /// Bytes that one task reads and cuts: a multiple of `chunk`, so that small chunks do not cost a task each.
    span: u64,
}

const MIB: u64 = 1 << 20;

impl Cut {
    /// Files that are written once are never changed in part: large chunks cost less to keep account of. Logs grow at their
    /// end. A database that is changed page by page pays for every chunk that holds a changed page.
    pub(crate) fn of(role: Role) -> Self {
        match role {
            Role::Table | Role::Blob | Role::Other => Self { chunk: 4 * MIB, span: 4 * MIB },
            Role::Log | Role::Pointer => Self { chunk: MIB, span: 4 * MIB },
            Role::Database => Self { chunk: MIB / 16, span: 2 * MIB },
        }
    }

    /// The parts of a file of `size` bytes, in order. An empty file has none.
    pub(crate) fn spans(self, size: u64) -> impl Iterator<Item = Range<u64>> {
        (0..size.div_ceil(self.span)).map(move |n| n * self.span..((n + 1) * self.span).min(size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_cover_every_byte_once_and_begin_at_chunk_borders() {
        for role in [Role::Table, Role::Log, Role::Database] {
            let cut = Cut::of(role);
            for size in [0, 1, cut.chunk, cut.span - 1, cut.span, 3 * cut.span + 5] {
                let mut at = 0;
                for span in cut.spans(size) {
                    assert_eq!((span.start, span.start % cut.chunk), (at, 0));
                    assert!(span.end > span.start && span.end - span.start <= cut.span);
                    at = span.end;
                }
                assert_eq!(at, size);
            }
        }
    }
}
