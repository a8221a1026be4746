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

impl Pace {
    /// Where the system weighs sessions against each other before threads (Linux: autogroup), a polite process that leads its own, as a service or
    /// a line of cron does, makes all of it nice: how nice its threads are means nothing to those of other sessions. Not where others share it.
    pub fn apply_to_own_session(self) {
        const PLACE: &str = "/proc/self/autogroup";
        let leads = rustix::process::getsid(None).is_ok_and(|session| session == rustix::process::getpid());
        if self == Self::Polite
            && leads
            && std::path::Path::new(PLACE).exists()
            && let Err(error) = std::fs::write(PLACE, NICE.to_string())
        {
            tracing::debug!(%error, "could not lower the priority of the session");
        }
    }

    /// Lowers the priority of the calling thread, and of those that it starts from then on, if the pace is polite: nice 10, which lowers the I/O
    /// priority along with it where the I/O scheduler knows priorities. A thread cannot go back. A refusal is ignored: it is a courtesy.
    pub fn apply_to_this_thread(self) {
        if self == Self::Polite
            && let Err(error) = rustix::process::setpriority_process(None, NICE)
        {
            tracing::debug!(%error, "could not lower the priority of a thread");
        }
    }
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

    /// How long a worker must rest that spent so much in `elapsed` since its last rest, waiting included: zero when whole cores are its due and,
    /// where the pace is polite, nobody else wanted them. A polite worker that had to wait for a processor is in somebody's way, and stays away
    /// as long again, up to twenty times what it worked: so its part shrinks as others need more, and never to nothing.
    pub fn rest_after(&self, spent: ThreadTime, elapsed: Duration) -> Duration {
        let due = spent.used.div_f64(self.duty).saturating_sub(elapsed.max(spent.used));
        match self.pace {
            Pace::Polite => due + spent.waited.min(spent.used * MOST_GIVEN),
            Pace::Fast => due,
        }
    }

    /// For each worker: [`Pace::apply_to_this_thread`].
    pub fn pace(&self) -> Pace {
        self.pace
    }
}

/// Of 0 to 19.
const NICE: i32 = 10;
/// A polite worker stays away for at most so many times as long as it worked.
const MOST_GIVEN: u32 = 20;

/// What the processors were to a thread since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ThreadTime {
    /// It ran.
    pub used: Duration,
    /// It could have run, and others did. Zero where the system does not say.
    pub waited: Duration,
}

impl ThreadTime {
    /// Of the calling thread, up to now.
    pub fn now() -> Self {
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let part = |part: i64| u64::try_from(part).unwrap_or_default();
        let used = Duration::from_secs(part(used.tv_sec)) + Duration::from_nanos(part(used.tv_nsec));
        // Linux: time on a processor, time waiting for one, both in nanoseconds, and how often.
        let said = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let waited = said.split_ascii_whitespace().nth(1).and_then(|text| text.parse().ok());
        Self { used, waited: Duration::from_nanos(waited.unwrap_or_default()) }
    }

    /// What came since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            used: self.used.saturating_sub(earlier.used),
            waited: self.waited.saturating_sub(earlier.waited),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(used: Duration) -> ThreadTime {
        ThreadTime { used, waited: Duration::ZERO }
    }

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
                let whole = busy + share.rest_after(used(busy), busy);
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
        assert_eq!(share(Pace::Polite, None, 1).rest_after(used(second), second), second);
        assert_eq!(share(Pace::Fast, None, 8).workers().get(), 8);
        assert_eq!(share(Pace::Fast, None, 8).rest_after(used(second), second), Duration::ZERO);
    }

    #[test]
    fn who_waited_has_rested() {
        let (half, second) = (share(Pace::Polite, None, 1), Duration::from_secs(1));
        assert_eq!(half.rest_after(used(second), second.mul_f64(1.5)), second.mul_f64(0.5));
        assert_eq!(half.rest_after(used(second), second * 9), Duration::ZERO);
    }

    #[test]
    fn whom_others_kept_waiting_stays_away_as_long_again_if_it_is_polite() {
        let second = Duration::from_secs(1);
        let waited = |seconds| ThreadTime { used: second, waited: second * seconds };
        let polite = share(Pace::Polite, None, 2);
        assert_eq!(polite.rest_after(waited(3), second * 4), second * 3);
        assert_eq!(polite.rest_after(waited(100), second * 101), second * MOST_GIVEN);
        assert_eq!(share(Pace::Fast, None, 2).rest_after(waited(3), second * 4), Duration::ZERO);
    }

    #[test]
    fn a_thread_that_shares_a_processor_with_another_is_told_that_it_waited() {
        // One processor for both.
        let mut one = rustix::thread::CpuSet::new();
        let all = rustix::thread::sched_getaffinity(None).unwrap();
        one.set((0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).unwrap());
        let busy = || {
            rustix::thread::sched_setaffinity(None, &one).unwrap();
            let began = ThreadTime::now();
            while ThreadTime::now().since(began).used < Duration::from_millis(50) {}
            ThreadTime::now().since(began).waited
        };
        let waited = std::thread::scope(|scope| {
            [scope.spawn(busy), scope.spawn(busy)].map(|thread| thread.join().unwrap())
        });
        assert!(waited.iter().sum::<Duration>() > Duration::from_millis(20), "{waited:?}");
    }

    #[test]
    fn only_work_counts_as_processor_time() {
        let began = ThreadTime::now();
        std::thread::sleep(Duration::from_millis(50));
        let asleep = ThreadTime::now().since(began).used;
        assert!(asleep < Duration::from_millis(25), "{asleep:?}");
        let mut sum = 0_u64;
        while ThreadTime::now().since(began).used < Duration::from_millis(20) {
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
            Pace::Polite.apply_to_this_thread();
            nice()
        });
        assert_eq!(inside.join().unwrap(), 10.max(before));
        assert_eq!(nice(), before);
    }
}
