//! A hash of a number: the finalizer of SplitMix64 (Steele, Lea, Flood 2014). Equal numbers give equal results on every
//! machine and in every version, which is all that is asked of it here.

/// Spreads a number over 64 bits; a bijection.
#[inline]
pub(crate) fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The hash of several numbers in order.
pub(crate) fn mix_all(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0x0073_6673_6565_6421, |state, number| mix(state ^ mix(*number)))
}
