//! How far a job is, in numbers.

use crate::Phase;

/// How far a phase is. Each phase counts from zero, but for sealing, which keeps the numbers of what is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The phase that is counted.
    pub phase: Phase,
    /// Files dealt with.
    pub files_done: u64,
    /// Files there are, once that is known; it may still grow.
    pub files_total: Option<u64>,
    /// Bytes dealt with, before compression.
    pub bytes_done: u64,
    /// Bytes there are, once that is known; it may still grow.
    pub bytes_total: Option<u64>,
}

impl Progress {
    /// The beginning of `phase`: nothing done, totals unknown.
    pub fn new(phase: Phase) -> Self {
        Self { phase, files_done: 0, files_total: None, bytes_done: 0, bytes_total: None }
    }

    /// The larger of both in each number, for reports that arrive out of order. A total is never below what is done.
    pub(crate) fn advance(&mut self, report: &Self) {
        self.files_done = self.files_done.max(report.files_done);
        self.bytes_done = self.bytes_done.max(report.bytes_done);
        self.files_total = report.files_total.or(self.files_total).map(|total| total.max(self.files_done));
        self.bytes_total = report.bytes_total.or(self.bytes_total).map(|total| total.max(self.bytes_done));
    }

    /// The part that is done, 0 to 1: by bytes, by files where no bytes are known, 0 where nothing is.
    #[expect(clippy::cast_precision_loss, reason = "for a bar on a screen")]
    pub(crate) fn fraction(&self) -> f64 {
        match (self.bytes_total, self.files_total) {
            (Some(total), _) if total > 0 => self.bytes_done as f64 / total as f64,
            (_, Some(total)) if total > 0 => self.files_done as f64 / total as f64,
            _ => 0.0,
        }
        .min(1.0)
    }
}
