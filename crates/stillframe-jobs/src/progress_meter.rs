//! Rate, remaining time and a fraction that never goes back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use stillframe_storage::Clock;

use crate::{Phase, Progress};

/// The rate is that of this much time, so that a stall shows and a hiccup does not.
const WINDOW: Duration = Duration::from_secs(15);
const SAMPLE_EVERY: Duration = Duration::from_millis(250);

/// Turns reports of progress into what a person wants to see.
///
/// Numbers never go back within a phase, phases never go back, the fraction never goes back at all and is 1 only after
/// [`ProgressMeter::finish`]: reports may come late, from many threads, with totals that still grow.
#[derive(Debug)]
pub struct ProgressMeter {
    clock: Arc<dyn Clock>,
    started: Duration,
    /// The phases that will come, each with the part of the whole that it is thought to take.
    spans: Vec<(Phase, f64, f64)>,
    progress: Progress,
    fraction: f64,
    /// Time and bytes done of this phase, oldest first.
    samples: VecDeque<(Duration, u64)>,
    finished: bool,
}

/// What a meter shows at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// The numbers, made monotonic.
    pub progress: Progress,
    /// The part of the whole job that is done: 0 to 1, and 1 only at the end.
    pub fraction: f64,
    /// Bytes per second over the last seconds; 0 in a stall.
    pub bytes_per_second: u64,
    /// Time until this phase is done, if the rate lasts; unknown without a total or in a stall.
    pub eta: Option<Duration>,
    /// Time since the meter was made.
    pub elapsed: Duration,
}

impl Reading {
    /// Whole percent: 100 only at the end.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the fraction is within 0 and 1"
    )]
    pub fn percent(&self) -> u8 {
        if self.fraction >= 1.0 { 100 } else { (self.fraction * 100.0).min(99.0) as u8 }
    }
}

impl ProgressMeter {
    /// A meter for a job that passes through `phases`.
    pub fn new(clock: Arc<dyn Clock>, phases: &[Phase]) -> Self {
        let weight = |phase: &Phase| match phase {
            Phase::Started => 0.0,
            Phase::Capturing => 10.0,
            Phase::Transferring => 88.0,
            Phase::Sealing => 2.0,
        };
        let whole: f64 = phases.iter().map(weight).sum::<f64>().max(1.0);
        let mut begin = 0.0;
        let spans = phases
            .iter()
            .map(|phase| {
                let end = begin + weight(phase) / whole;
                (*phase, std::mem::replace(&mut begin, end), end)
            })
            .collect();
        let started = clock.monotonic();
        let samples = VecDeque::from([(started, 0)]);
        let progress = Progress::new(Phase::Started);
        Self { clock, started, spans, progress, fraction: 0.0, samples, finished: false }
    }

    /// Takes a report. One of an earlier phase, or after the end, changes nothing; one of a later phase begins that phase.
    /// Returns whether anything was done since the last one.
    pub fn update(&mut self, report: &Progress) -> bool {
        if self.finished || report.phase < self.progress.phase {
            return false;
        }
        let now = self.clock.monotonic();
        let before = self.progress;
        if report.phase > self.progress.phase {
            // Sealing counts nothing of its own: the numbers are of what is sealed.
            let kept =
                if report.phase == Phase::Sealing { self.progress } else { Progress::new(report.phase) };
            self.progress = Progress { phase: report.phase, ..kept };
            self.samples.clear();
            self.samples.push_back((now, kept.bytes_done));
        }
        self.progress.advance(report);
        if self.samples.back().is_none_or(|(time, _)| now.saturating_sub(*time) >= SAMPLE_EVERY) {
            self.samples.push_back((now, self.progress.bytes_done));
        }
        self.forget_old_samples(now);
        let (begin, end) = self.span();
        // A hair below 1: whoever sees 100 % may take the result to be there.
        let fraction = (begin + (end - begin) * self.progress.fraction()).min(0.999);
        self.fraction = self.fraction.max(fraction);
        (before.phase, before.files_done, before.bytes_done)
            != (self.progress.phase, self.progress.files_done, self.progress.bytes_done)
    }

    /// The job succeeded: 100 %.
    pub fn finish(&mut self) {
        self.finished = true;
        self.fraction = 1.0;
    }

    /// What to show now.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate for people; never negative"
    )]
    pub fn read(&self) -> Reading {
        let now = self.clock.monotonic();
        let (since, bytes) = self.samples.front().copied().unwrap_or((self.started, 0));
        let seconds = now.saturating_sub(since).as_secs_f64();
        let done = self.progress.bytes_done.saturating_sub(bytes) as f64;
        let rate = if seconds > 0.0 { done / seconds } else { 0.0 };
        let eta = match self.progress.bytes_total {
            _ if self.finished => Some(Duration::ZERO),
            // Before that, how long the whole will take is not known.
            Some(total) if rate >= 1.0 && self.progress.phase >= Phase::Transferring => {
                let rest = total.saturating_sub(self.progress.bytes_done) as f64;
                Duration::try_from_secs_f64(rest / rate).ok()
            }
            _ => None,
        };
        Reading {
            progress: self.progress,
            fraction: self.fraction,
            bytes_per_second: rate as u64,
            eta,
            elapsed: now.saturating_sub(self.started),
        }
    }

    fn span(&self) -> (f64, f64) {
        let found = self.spans.iter().find(|(phase, _, _)| *phase == self.progress.phase);
        found.map_or((self.fraction, self.fraction), |(_, begin, end)| (*begin, *end))
    }

    fn forget_old_samples(&mut self, now: Duration) {
        let horizon = now.saturating_sub(WINDOW);
        // The newest sample at or before the horizon stays: it is where the window begins.
        while self.samples.get(1).is_some_and(|(time, _)| *time <= horizon) {
            self.samples.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Default)]
    struct Manual(Mutex<Duration>);

    impl Manual {
        fn advance(&self, by: Duration) {
            *self.0.lock().unwrap() += by;
        }
    }

    impl Clock for Manual {
        fn now(&self) -> Timestamp {
            Timestamp::UNIX_EPOCH
        }
        fn monotonic(&self) -> Duration {
            *self.0.lock().unwrap()
        }
    }

    fn bytes(done: u64, total: u64) -> Progress {
        Progress { bytes_done: done, bytes_total: Some(total), ..Progress::new(Phase::Transferring) }
    }

    proptest! {
        #[test]
        fn whatever_is_reported_nothing_goes_back_and_the_end_comes_last(
            reports in proptest::collection::vec(
                (0..4_usize, 0..100_u64, proptest::option::of(0..100_u64), any::<u64>(), proptest::option::of(any::<u64>()), 0..20_000_u64),
                0..60,
            ),
            phases in proptest::sample::subsequence(Phase::ALL.to_vec(), 0..=4),
        ) {
            let clock = Arc::new(Manual::default());
            let mut meter = ProgressMeter::new(clock.clone(), &phases);
            let mut last = meter.read();
            for (phase, files_done, files_total, bytes_done, bytes_total, wait) in reports {
                clock.advance(Duration::from_millis(wait));
                meter.update(&Progress { phase: Phase::ALL[phase], files_done, files_total, bytes_done, bytes_total });
                let now = meter.read();
                prop_assert!(now.fraction >= last.fraction);
                prop_assert!(now.fraction < 1.0 && now.percent() < 100);
                prop_assert!(now.progress.phase >= last.progress.phase);
                if now.progress.phase == last.progress.phase {
                    prop_assert!(now.progress.bytes_done >= last.progress.bytes_done);
                    prop_assert!(now.progress.files_done >= last.progress.files_done);
                }
                prop_assert!(now.progress.bytes_total.is_none_or(|total| total >= now.progress.bytes_done));
                last = now;
            }
            meter.finish();
            prop_assert_eq!(meter.read().percent(), 100);
            prop_assert_eq!(meter.read().eta, Some(Duration::ZERO));
        }
    }

    #[test]
    fn a_steady_transfer_shows_its_rate_and_the_time_that_remains() {
        let clock = Arc::new(Manual::default());
        let mut meter = ProgressMeter::new(clock.clone(), &Phase::ALL);
        meter.update(&bytes(0, 100_000_000));
        for second in 1..=40 {
            clock.advance(Duration::from_secs(1));
            meter.update(&bytes(second * 1_000_000, 100_000_000));
        }
        let reading = meter.read();
        assert_eq!(reading.bytes_per_second, 1_000_000);
        assert_eq!(reading.eta, Some(Duration::from_mins(1)));
        assert_eq!(reading.elapsed, Duration::from_secs(40));
    }

    #[test]
    fn a_stall_brings_the_rate_down_without_another_report() {
        let clock = Arc::new(Manual::default());
        let mut meter = ProgressMeter::new(clock.clone(), &Phase::ALL);
        meter.update(&bytes(0, 1_000_000));
        clock.advance(Duration::from_secs(1));
        meter.update(&bytes(500_000, 1_000_000));
        assert_eq!(meter.read().bytes_per_second, 500_000);
        clock.advance(Duration::from_hours(1000));
        assert_eq!(meter.read().bytes_per_second, 0);
        assert_eq!(meter.read().eta, None);
    }

    #[test]
    fn a_growing_total_holds_the_bar_still_and_does_not_move_it_back() {
        let clock = Arc::new(Manual::default());
        let mut meter = ProgressMeter::new(clock.clone(), &[Phase::Transferring]);
        meter.update(&bytes(50, 100));
        assert_eq!(meter.read().percent(), 50);
        meter.update(&bytes(60, 1000));
        assert_eq!(meter.read().percent(), 50);
        assert_eq!(meter.read().progress.bytes_total, Some(1000));
    }

    #[test]
    fn late_reports_of_an_earlier_phase_change_nothing() {
        let mut meter = ProgressMeter::new(Arc::new(Manual::default()), &Phase::ALL);
        meter.update(&Progress::new(Phase::Sealing));
        let before = meter.read();
        assert!(!meter.update(&bytes(50, 100)));
        assert_eq!(meter.read(), before);
    }
}
