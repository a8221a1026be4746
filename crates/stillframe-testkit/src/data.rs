//! Bytes of set entropy.

use crate::splitmix::mix;

/// Words of 8 bytes in a block; each block has the same part of noise.
const BLOCK_WORDS: u64 = 128;

/// Endless bytes of which a set part cannot be compressed, a function of the seed and the position: any stretch can be made
/// again for comparison. The noise comes first in every block of 1 KiB, the rest repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    seed: u64,
    noise_words: u64,
}

impl Content {
    /// `noise` is the part that cannot be compressed, 0.0 to 1.0, kept to 1/128.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to 0..=128"
    )]
    pub fn new(seed: u64, noise: f64) -> Self {
        Self { seed: mix(seed), noise_words: (noise.clamp(0.0, 1.0) * BLOCK_WORDS as f64).round() as u64 }
    }

    /// Fills `buffer` with the bytes from `position`, which must be a multiple of 8 for speed's sake.
    pub fn fill(&self, position: u64, buffer: &mut [u8]) {
        assert!(position.is_multiple_of(8), "positions are those of whole words");
        let mut number = position / 8;
        let mut words = buffer.chunks_exact_mut(8);
        for bytes in &mut words {
            bytes.copy_from_slice(&self.word(number).to_le_bytes());
            number += 1;
        }
        let rest = words.into_remainder();
        let last = self.word(number).to_le_bytes();
        rest.copy_from_slice(&last[..rest.len()]);
    }

    /// The first `length` bytes.
    pub fn bytes(&self, length: usize) -> Vec<u8> {
        let mut buffer = vec![0; length];
        self.fill(0, &mut buffer);
        buffer
    }

    #[inline]
    fn word(&self, number: u64) -> u64 {
        // The part that repeats differs from seed to seed, so that unequal contents share no block.
        if number % BLOCK_WORDS < self.noise_words { mix(self.seed ^ number) } else { self.seed }
    }
}

#[cfg(test)]
mod tests {
    use stillframe_storage::{Clock, SystemClock};

    use super::*;

    fn compressed_part(noise: f64) -> f64 {
        let bytes = Content::new(7, noise).bytes(1 << 20);
        let packed = zstd::encode_all(&bytes[..], 1).unwrap().len();
        f64::from(u32::try_from(packed).unwrap()) / f64::from(1 << 20)
    }

    #[test]
    fn compressibility_is_what_was_asked_for() {
        for noise in [0.0, 0.25, 0.5, 0.75, 1.0] {
            let part = compressed_part(noise);
            assert!((part - noise).abs() < 0.03, "asked for {noise}, zstd leaves {part}");
        }
    }

    #[test]
    fn any_stretch_is_the_same_as_in_the_whole() {
        let content = Content::new(3, 0.6);
        let whole = content.bytes(10_000);
        for (from, length) in [(0, 1), (8, 7), (1016, 16), (4096, 5904), (9992, 8)] {
            let mut part = vec![0; length];
            content.fill(from, &mut part);
            assert_eq!(part, whole[usize::try_from(from).unwrap()..][..length]);
        }
        assert_ne!(whole, Content::new(4, 0.6).bytes(10_000));
    }

    #[test]
    fn a_gigabyte_takes_less_than_four_seconds_even_beside_other_tests() {
        let mut buffer = vec![0; 1 << 20];
        let content = Content::new(1, 0.5);
        let clock = SystemClock::new();
        for block in 0..256 {
            content.fill(block << 20, &mut buffer);
        }
        let gigabyte = clock.monotonic() * 4;
        assert!(gigabyte.as_secs_f64() < 4.0, "{gigabyte:?} per GiB");
    }
}
