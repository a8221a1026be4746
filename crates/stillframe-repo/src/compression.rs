//! zstd where it pays, raw where it does not; contexts are kept per thread.

use std::cell::RefCell;
use std::io;

use zstd::bulk::{Compressor, Decompressor};

/// The bytes of a chunk that are tried before all of them are compressed.
const PROBE_LEN: usize = 64 << 10;
/// Shorter chunks gain nothing: a frame has a dozen bytes of its own.
const SMALLEST: usize = 48;
/// Into how many places of the chunk the probe is spread.
const PROBE_PARTS: usize = 4;

/// How the bytes of a chunk are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Raw = 0,
    Zstd = 1,
}

impl Compression {
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

struct Scratch {
    level: i32,
    compressor: Option<Compressor<'static>>,
    output: Vec<u8>,
    probe: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> =
        const { RefCell::new(Scratch { level: 0, compressor: None, output: Vec::new(), probe: Vec::new() }) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Gives `store` the bytes as they are to be stored. They lie in memory of this thread: `store` must not compress.
pub(crate) fn with_compressed<T>(bytes: &[u8], level: i32, store: impl FnOnce(Compression, &[u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| {
        // Failing to get a context or to compress costs room, never data: the bytes are stored raw.
        if scratch.try_compress(bytes, level).unwrap_or(false) {
            store(Compression::Zstd, &scratch.output)
        } else {
            store(Compression::Raw, bytes)
        }
    })
}

impl Scratch {
    /// Leaves the compressed bytes in `output`. `false`: not worth it.
    fn try_compress(&mut self, bytes: &[u8], level: i32) -> io::Result<bool> {
        if bytes.len() < SMALLEST {
            return Ok(false);
        }
        if self.level != level {
            self.compressor = None;
            self.level = level;
        }
        let compressor = match &mut self.compressor {
            Some(compressor) => compressor,
            none => none.insert(Compressor::new(level)?),
        };
        self.output.clear();
        if bytes.len() > 2 * PROBE_LEN {
            self.probe.clear();
            let part = PROBE_LEN / PROBE_PARTS;
            for start in (0..PROBE_PARTS).map(|n| n * (bytes.len() - part) / (PROBE_PARTS - 1)) {
                self.probe.extend(bytes.iter().skip(start).take(part));
            }
            self.output.reserve(zstd::zstd_safe::compress_bound(PROBE_LEN));
            compressor.compress_to_buffer(&self.probe, &mut self.output)?;
            if !pays(self.output.len(), self.probe.len()) {
                return Ok(false);
            }
            self.output.clear();
        }
        self.output.reserve(zstd::zstd_safe::compress_bound(bytes.len()));
        compressor.compress_to_buffer(bytes, &mut self.output)?;
        Ok(pays(self.output.len(), bytes.len()))
    }
}

/// Less than a thirty-second saved is not worth decompressing for.
fn pays(compressed: usize, plain: usize) -> bool {
    compressed + plain / 32 < plain
}

/// Decompresses into exactly `plain_len` bytes, which the caller has bounded. `None`: it does not.
pub(crate) fn decompress(bytes: &[u8], plain_len: usize) -> Option<Vec<u8>> {
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            none => none.insert(Decompressor::new().ok()?),
        };
        let mut plain = Vec::with_capacity(plain_len);
        let len = decompressor.decompress_to_buffer(bytes, &mut plain).ok()?;
        (len == plain_len && plain.len() == plain_len).then_some(plain)
    })
}

/// Decompresses into at most `max_len` bytes, whatever the frame announces. `None`: more, or not a frame.
pub(crate) fn decompress_bounded(bytes: &[u8], max_len: usize) -> Option<Vec<u8>> {
    zstd::bulk::decompress(bytes, max_len).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn compress(bytes: &[u8], level: i32) -> (Compression, Vec<u8>) {
        with_compressed(bytes, level, |compression, stored| (compression, stored.to_vec()))
    }

    #[test]
    fn text_is_compressed_and_noise_is_not() {
        let text = b"some text that repeats itself ".repeat(20_000);
        let (compression, stored) = compress(&text, 1);
        assert_eq!(compression, Compression::Zstd);
        assert!(stored.len() < text.len() / 10);
        assert_eq!(decompress(&stored, text.len()).unwrap(), text);
        assert_eq!(decompress(&stored, text.len() - 1), None, "a bomb ends where its length was announced");
        assert_eq!(decompress_bounded(&stored, text.len() - 1), None);

        let mut noise = vec![0; 500_000];
        rand::rngs::StdRng::seed_from_u64(1).fill_bytes(&mut noise);
        let (compression, stored) = compress(&noise, 1);
        assert_eq!((compression, stored == noise), (Compression::Raw, true));
    }

    #[test]
    fn a_change_of_level_takes_effect() {
        let words = ["still", "frame", "moving", "database", "while", "writers", "write", "on"];
        let mut rng = rand::rngs::StdRng::seed_from_u64(2);
        let text: Vec<u8> = (0..50_000).flat_map(|_| words[rng.next_u32() as usize % 8].bytes()).collect();
        let (_, fast) = compress(&text, 1);
        let (_, small) = compress(&text, 15);
        assert!(small.len() < fast.len(), "{} {}", small.len(), fast.len());
    }

    proptest! {
        #[test]
        fn what_is_stored_reads_back(bytes in proptest::collection::vec(0_u8..4, 1..2000)) {
            let (compression, stored) = compress(&bytes, 1);
            match compression {
                Compression::Raw => prop_assert_eq!(stored, bytes),
                Compression::Zstd => prop_assert_eq!(decompress(&stored, bytes.len()).unwrap(), bytes),
            }
        }

        #[test]
        fn hostile_frames_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd];
            frame.extend(&bytes);
            let _ = decompress(&frame, 1000);
            if let Some(plain) = decompress_bounded(&frame, 1000) {
                prop_assert!(plain.len() <= 1000);
            }
        }
    }
}
