//! Names that nobody has to agree on: 128 random bits for objects, a keyed hash for chunks.

use std::fmt;
use std::str::FromStr;

use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

/// Text that is not an id of the kind that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an id: {digits} lower-case hexadecimal digits were expected")]
pub struct ParseIdError {
    digits: usize,
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(pub(crate) [u8; $len]);

        impl $name {
            /// The raw bytes.
            pub fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl From<[u8; $len]> for $name {
            fn from(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let mut bytes = [0; $len];
                let whole = decode_hex(text.as_bytes(), &mut bytes);
                whole.then_some(Self(bytes)).ok_or(ParseIdError { digits: 2 * $len })
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;

            fn try_from(text: String) -> Result<Self, ParseIdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
    };
}

id_type!(
    /// The name of a stored object: 128 random bits, written once, never used again.
    ObjectId,
    16
);
id_type!(
    /// What a chunk is called: the keyed BLAKE3 of its bytes. Equal in one repository means equal bytes.
    ChunkId,
    32
);

/// A repository, for life.
pub type RepositoryId = ObjectId;
/// A backup; its manifest and its seal carry the same one.
pub type BackupId = ObjectId;
/// A pack of chunks.
pub type PackId = ObjectId;

impl ObjectId {
    /// A new one from the operating system's generator.
    pub fn random() -> Self {
        Self(random_bytes())
    }
}

/// Bytes from the operating system: for names, salts and keys, which must never come from an injected generator.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

fn decode_hex(text: &[u8], bytes: &mut [u8]) -> bool {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * bytes.len() {
        return false;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        match pair {
            [high, low] => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => *byte = high << 4 | low,
                _ => return false,
            },
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_id_reads_back_from_its_text_and_nothing_else_does(bytes in any::<[u8; 16]>(), text in ".{0,40}") {
            let id = ObjectId(bytes);
            prop_assert_eq!(id.to_string().parse::<ObjectId>().unwrap(), id);
            if let Ok(id) = text.parse::<ObjectId>() {
                prop_assert_eq!(id.to_string(), text);
            }
            prop_assert!(id.to_string().parse::<ChunkId>().is_err());
        }
    }

    #[test]
    fn upper_case_is_refused_so_that_one_id_has_one_name() {
        assert!("ABCDEF00ABCDEF00ABCDEF00ABCDEF00".parse::<ObjectId>().is_err());
    }
}
