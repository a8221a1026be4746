//! What a verb takes from its surroundings.

use std::fmt;
use std::sync::Arc;

use stillframe_jobs::CpuShare;
use stillframe_storage::Clock;

use crate::Event;

/// Clock, chance, share of the machine, and somebody to tell. The same for all verbs.
#[derive(Clone)]
pub struct Surroundings {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Takes events. Called from several threads, in the middle of the work: must be quick.
    pub report: Arc<dyn Fn(Event) + Send + Sync>,
    /// Gives a new random name (hexadecimal digits) at each call; for staging directories.
    pub random_name: Arc<dyn Fn() -> String + Send + Sync>,
    /// How much of the processor the work may take.
    pub share: CpuShare,
}

impl Surroundings {
    pub(crate) fn tell(&self, event: Event) {
        (self.report)(event);
    }

    pub(crate) fn warn(&self, text: String) {
        self.tell(Event::Warning(text));
    }
}

impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings")
            .field("clock", &self.clock)
            .field("share", &self.share)
            .finish_non_exhaustive()
    }
}
