//! How much of the processor a job takes.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::time::Duration;

/// How much a job puts itself before others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pace {
    /// Half of the processor unless told otherwise, low priority: beside a busy database.
    #[default]
    Polite,
    /// All of the processor unless told otherwise.
    Fast,
}

/// Percent of all cores together, 1 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuPercent(u8);

/// A share that is none. Give a whole number from 1 to 100.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a share of the processor: give a whole number from 1 to 100")]
pub struct CpuPercentError(String);

impl CpuPercent {
    /// As a number from 1 to 100.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for CpuPercent {
    type Error = CpuPercentError;

    fn try_from(percent: u8) -> Result<Self, Self::Error> {
        if (1..=100).contains(&percent) {
            Ok(Self(percent))
        } else {
            Err(CpuPercentError(percent.to_string()))
        }
    }
}

impl FromStr for CpuPercent {
    type Err = CpuPercentError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.strip_suffix('%').unwrap_or(text).parse::<u8>();
        number.ok().and_then(|n| Self::try_from(n).ok()).ok_or_else(|| CpuPercentError(text.to_owned()))
    }
}

impl fmt::Display for CpuPercent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// A number of workers, and how long each rests after working, so that together they keep to a share of the processor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CpuShare {
    workers: NonZeroUsize,
    /// The part of the time, above 0 and at most 1, that each worker works.
    duty: f64,
    pace: Pace,
}

impl CpuShare {
    /// The share for `pace` on a machine with `cores`; `percent` overrides the pace's own.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a number of cores is small and positive"
    )]
    pub fn new(pace: Pace, percent: Option<CpuPercent>, cores: NonZeroUsize) -> Self {
        let default = match pace {
            Pace::Polite => 50,
            Pace::Fast => 100,
        };
        let budget = cores.get() as f64 * f64::from(percent.map_or(default, CpuPercent::get)) / 100.0;
        let workers = NonZeroUsize::new(budget.ceil() as usize).unwrap_or(NonZeroUsize::MIN);
        Self { workers, duty: (budget / workers.get() as f64).min(1.0), pace }
    }

    /// The share for `pace` on this machine, as far as this process may use it (affinity and container limits count).
    pub fn on_this_machine(pace: Pace, percent: Option<CpuPercent>) -> Self {
        Self::new(pace, percent, std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
    }

    /// How many workers to start.
    pub fn workers(&self) -> NonZeroUsize {
        self.workers
    }

    /// How long a worker must rest that used so much processor time in `elapsed` since its last rest, waiting included; zero when whole
    /// cores are its due.
    pub fn rest_after(&self, used: Duration, elapsed: Duration) -> Duration {
        used.div_f64(self.duty).saturating_sub(elapsed.max(used))
    }

    /// Lowers the priority of the calling thread if the pace is polite: nice 10, which lowers its I/O priority along with it
    /// where the I/O scheduler knows priorities. A worker calls it first. A refusal is ignored: it is a courtesy.
    pub fn apply_to_this_thread(&self) {
        if self.pace == Pace::Polite
            && let Err(error) = rustix::process::setpriority_process(None, 10)
        {
            tracing::debug!(%error, "could not lower the priority of a worker");
        }
    }
}

/// Processor time that the calling thread has used so far.
pub fn thread_cpu_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let part = |part: i64| u64::try_from(part).unwrap_or_default();
    Duration::from_secs(part(used.tv_sec)) + Duration::from_nanos(part(used.tv_nsec))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(pace: Pace, percent: Option<u8>, cores: usize) -> CpuShare {
        CpuShare::new(
            pace,
            percent.map(|p| CpuPercent::try_from(p).unwrap()),
            NonZeroUsize::new(cores).unwrap(),
        )
    }

    #[test]
    fn workers_and_rests_together_keep_to_the_share() {
        for cores in [1, 2, 3, 8, 64] {
            for percent in 1..=100 {
                let share = share(Pace::Fast, Some(percent), cores);
                let busy = Duration::from_secs(10);
                let whole = busy + share.rest_after(busy, busy);
                #[expect(clippy::cast_precision_loss, reason = "small numbers")]
                let used = busy.as_secs_f64() / whole.as_secs_f64() * share.workers().get() as f64
                    / cores as f64
                    * 100.0;
                assert!((used - f64::from(percent)).abs() < 0.01, "{used} of {percent} % on {cores} cores");
                assert!(share.workers().get() <= cores);
            }
        }
    }

    #[test]
    fn polite_takes_half_and_fast_takes_all() {
        let second = Duration::from_secs(1);
        assert_eq!(share(Pace::Polite, None, 8).workers().get(), 4);
        assert_eq!(share(Pace::Polite, None, 1).workers().get(), 1);
        assert_eq!(share(Pace::Polite, None, 1).rest_after(second, second), second);
        assert_eq!(share(Pace::Fast, None, 8).workers().get(), 8);
        assert_eq!(share(Pace::Fast, None, 8).rest_after(second, second), Duration::ZERO);
    }

    #[test]
    fn who_waited_has_rested() {
        let (half, second) = (share(Pace::Polite, None, 1), Duration::from_secs(1));
        assert_eq!(half.rest_after(second, second.mul_f64(1.5)), second.mul_f64(0.5));
        assert_eq!(half.rest_after(second, second * 9), Duration::ZERO);
    }

    #[test]
    fn only_work_counts_as_processor_time() {
        let began = thread_cpu_time();
        std::thread::sleep(Duration::from_millis(50));
        let asleep = thread_cpu_time().saturating_sub(began);
        assert!(asleep < Duration::from_millis(25), "{asleep:?}");
        let mut sum = 0_u64;
        while thread_cpu_time().saturating_sub(began) < Duration::from_millis(20) {
            sum = std::hint::black_box(sum.wrapping_mul(31) + 1);
        }
    }

    #[test]
    fn shares_that_are_none_are_refused_with_the_text_that_was_given() {
        for bad in ["0", "101", "-1", "", "half", "50.5", "300"] {
            let error = bad.parse::<CpuPercent>().unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")) && error.contains("1 to 100"), "{error}");
        }
        assert_eq!("25%".parse::<CpuPercent>().unwrap(), "25".parse().unwrap());
    }

    #[test]
    fn a_polite_worker_is_nicer_than_its_process_and_leaves_other_threads_alone() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        let inside = std::thread::spawn(move || {
            share(Pace::Polite, None, 2).apply_to_this_thread();
            nice()
        });
        assert_eq!(inside.join().unwrap(), 10.max(before));
        assert_eq!(nice(), before);
    }
}
