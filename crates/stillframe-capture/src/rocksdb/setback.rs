//! What can come between an attempt and its acceptance.

use crate::CaptureError;

/// Why an attempt came to nothing.
#[derive(Debug)]
pub(crate) enum Setback {
    /// Something moved, as it does in a live database: again.
    Moved(String),
    /// A live table or blob file is not where it should be. Explained by a pointer that moved; else it is an error.
    Missing {
        /// Its column family.
        family: u32,
        number: u64,
    },
    /// The same for anything else.
    Wrong(CaptureError),
    /// No attempt will do better.
    Fatal(CaptureError),
}

impl From<CaptureError> for Setback {
    fn from(error: CaptureError) -> Self {
        Self::Fatal(error)
    }
}

/// How often pointers may stand still while something is wrong before it is called an error. The file system shows a
/// pointer's move before the deletions that follow it, so one look is enough on a local one; others may lag.
const PATIENCE: u32 = 3;

/// Tells a state that is only passing from one that is wrong for good.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    last_pointers: Option<Vec<u8>>,
    rounds: u32,
}

impl Patience {
    /// Something was wrong while the pointers were `pointers`. Whether it is time to believe it.
    pub(crate) fn is_over(&mut self, pointers: Vec<u8>) -> bool {
        if self.last_pointers.as_ref() != Some(&pointers) {
            self.last_pointers = Some(pointers);
            self.rounds = 0;
        }
        self.rounds += 1;
        if self.rounds < PATIENCE {
            std::thread::sleep(std::time::Duration::from_millis(10 * u64::from(self.rounds)));
        }
        self.rounds >= PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_wrong_while_pointers_stand_still_is_believed() {
        let mut patience = Patience::default();
        for pointers in [b"1", b"1", b"2", b"2", b"1", b"1"] {
            assert!(!patience.is_over(pointers.to_vec()));
        }
        assert!(patience.is_over(b"1".to_vec()));
    }
}
