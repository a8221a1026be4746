//! Little-endian integers, varints and length-prefixed strings, as RocksDB and LevelDB write them.

/// The bytes end too early, or the value does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CutOff;

/// Reads from the front of a byte slice. After an error the decoder is of no further use.
#[derive(Debug, Clone)]
pub(crate) struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], CutOff> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(CutOff)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, CutOff> {
        let (&first, rest) = self.rest.split_first().ok_or(CutOff)?;
        self.rest = rest;
        Ok(first)
    }

    pub(crate) fn fixed32(&mut self) -> Result<u32, CutOff> {
        self.take(4)?.try_into().map(u32::from_le_bytes).map_err(|_| CutOff)
    }

    pub(crate) fn fixed64(&mut self) -> Result<u64, CutOff> {
        self.take(8)?.try_into().map(u64::from_le_bytes).map_err(|_| CutOff)
    }

    pub(crate) fn varint64(&mut self) -> Result<u64, CutOff> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(CutOff);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(CutOff)
    }

    pub(crate) fn varint32(&mut self) -> Result<u32, CutOff> {
        u32::try_from(self.varint64()?).map_err(|_| CutOff)
    }

    /// A varint32 length and that many bytes.
    pub(crate) fn string(&mut self) -> Result<&'a [u8], CutOff> {
        let length = usize::try_from(self.varint32()?).map_err(|_| CutOff)?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        let ten_bytes_too_large = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        assert_eq!(Decoder::new(&ten_bytes_too_large).varint64(), Err(CutOff));
        assert_eq!(Decoder::new(&[0x80; 11]).varint64(), Err(CutOff));
        assert_eq!(Decoder::new(&[0xff, 0xff, 0xff, 0xff, 0x1f]).varint32(), Err(CutOff));
        assert_eq!(Decoder::new(&[0xff, 0xff, 0xff, 0xff, 0x0f]).varint32(), Ok(u32::MAX));
        assert_eq!(
            Decoder::new(&[0xff; 4]).string(),
            Err(CutOff),
            "a string longer than the input allocates nothing"
        );
    }

    proptest! {
        #[test]
        fn every_number_reads_back(value: u64) {
            let mut bytes = Vec::new();
            super::super::manifest_writer::put_varint(&mut bytes, value);
            let mut decoder = Decoder::new(&bytes);
            prop_assert_eq!(decoder.varint64(), Ok(value));
            prop_assert!(decoder.is_empty());
        }
    }
}
