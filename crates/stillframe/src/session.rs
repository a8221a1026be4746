//! One run of the program: what every command needs.

use std::sync::Arc;

use rand::Rng;
use serde_json::Value;
use stillframe_engine::{EngineError, Event, Surroundings};
use stillframe_jobs::{CpuShare, History, HistoryError, Job, JobOptions, Pace, Phase};
use stillframe_storage::{Clock, SystemClock, sweep_leftovers};

use crate::console::Console;
use crate::failure::{Failure, Kind};
use crate::{interrupt, place};

/// Clock, console and history.
pub struct Session {
    /// What the user sees.
    pub console: Arc<Console>,
    /// The system's.
    pub clock: Arc<dyn Clock>,
}

impl Session {
    /// For one run.
    pub fn new(json: bool, quiet: bool) -> Self {
        let clock = SystemClock::new();
        Self { console: Arc::new(Console::new(json, quiet, Box::new(clock))), clock: Arc::new(clock) }
    }

    /// Opens the job history.
    pub fn history(&self) -> Result<History, Failure> {
        let path = place::state_dir()?.join("jobs.db");
        let history = History::open(&path, Arc::clone(&self.clock)).map_err(|error| unusable(&error))?;
        if let Some(aside) = &history.opening().set_aside {
            let (path, reason) = (aside.path.display(), &aside.reason);
            self.console.warn(format!(
                "the job history was damaged ({reason}) and lies at {path} now; a new one begins"
            ));
        }
        Ok(history)
    }

    /// Runs one piece of work as a job: recorded, cancellable with Ctrl-C, with its leftovers swept first. What it returns is
    /// the outcome, for people and for machines.
    pub async fn run_job<T>(
        &self,
        kind: &str,
        subject: &str,
        phases: &[Phase],
        share: CpuShare,
        work: impl AsyncFnOnce(&Job, &Surroundings) -> Result<(T, Value), Failure>,
    ) -> Result<T, Failure> {
        // A history that cannot be used is no reason not to work.
        let history = match self.history() {
            Ok(history) => history,
            Err(failure) => {
                self.console.warn(format!("{}; this run will not be in the job history", failure.message));
                History::in_memory(Arc::clone(&self.clock)).map_err(|error| unusable(&error))?
            }
        };
        sweep_known_places(&history);
        let options = JobOptions { phases: phases.to_vec(), ..JobOptions::default() };
        let job = history.start_with(kind, subject, &options);
        interrupt::cancels(job.canceller());
        let noted = Arc::new(history);
        let (console, for_events) = (Arc::clone(&self.console), Arc::clone(&noted));
        let surroundings = Surroundings {
            clock: Arc::clone(&self.clock),
            report: Arc::new(move |event| {
                if let Event::Staging(parent) = &event
                    && let Err(error) = for_events.note_staging(parent)
                {
                    tracing::warn!(%error, "a staging place cannot be noted for the next sweep");
                }
                console.event(&event);
            }),
            random_name: Arc::new(random_name),
            share,
        };
        let result = work(&job, &surroundings).await;
        self.console.clear_bar();
        match result {
            Ok((value, outcome)) => {
                job.succeed(outcome);
                Ok(value)
            }
            Err(failure) if failure.kind == Kind::Cancelled => {
                // Whoever was stopped cannot tell by whom.
                let reason = job.stop_reason();
                job.cancelled();
                Err(reason.map_or(failure, |reason| EngineError::from(reason).into()))
            }
            Err(failure) => {
                job.fail(failure.kind.word(), &failure.message);
                Err(failure)
            }
        }
    }

    /// Notes a failure that kept a job from beginning, so that the history tells of a run that came to nothing. What was merely
    /// mistyped is no run.
    pub fn recorded<T>(&self, kind: &str, subject: &str, prepared: Result<T, Failure>) -> Result<T, Failure> {
        if let Err(failure) = &prepared
            && !matches!(failure.kind, Kind::Usage | Kind::Cancelled)
            && let Ok(history) = self.history()
        {
            history.start(kind, subject).fail(failure.kind.word(), &failure.message);
        }
        prepared
    }
}

fn unusable(error: &HistoryError) -> Failure {
    let kind = match error {
        HistoryError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Kind::Permission
        }
        _ => Kind::Failed,
    };
    Failure::new(kind, format!("cannot use the job history: {error}"))
}

/// 16 hexadecimal digits from the operating system's generator.
pub fn random_name() -> String {
    format!("{:016x}", rand::rng().next_u64())
}

/// The share for work that nobody asked to be polite.
pub fn full_share() -> CpuShare {
    CpuShare::on_this_machine(Pace::Fast, None)
}

/// Removes what earlier runs left in the places they noted, if they died.
fn sweep_known_places(history: &History) {
    for root in history.staging_roots().unwrap_or_default() {
        let swept = sweep_leftovers(&root);
        match swept {
            Ok(swept) => {
                for dir in swept {
                    tracing::info!(dir = %dir.display(), "swept a leftover");
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                // Nothing can be left in a place that is gone.
                let _ = history.forget_staging(&root);
            }
            Err(error) => tracing::debug!(root = %root.display(), %error, "a place could not be swept"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use jiff::Timestamp;

    use super::*;

    /// The system's, moved on by some hours.
    #[derive(Debug, Default)]
    struct MovedOn(AtomicU64);

    impl Clock for MovedOn {
        fn now(&self) -> Timestamp {
            SystemClock::new().now()
        }

        fn monotonic(&self) -> Duration {
            Duration::from_hours(self.0.load(Ordering::Relaxed))
        }
    }

    /// What was stopped sees only its token. Whoever waits for a backup must learn whether somebody stopped it or it hung.
    #[tokio::test]
    async fn a_job_that_took_too_long_is_not_called_cancelled() {
        let clock = Arc::new(MovedOn::default());
        let console = Arc::new(Console::new(false, true, Box::new(SystemClock::new())));
        let session = Session { console, clock: Arc::clone(&clock) as Arc<dyn Clock> };
        let stopped = async |hours: u64| {
            let phases = [Phase::Transferring];
            let run = session.run_job("test", "test", &phases, full_share(), async |job, _| {
                job.enter(Phase::Transferring).map_err(EngineError::from)?;
                clock.0.fetch_add(hours, Ordering::Relaxed);
                if hours == 0 {
                    job.cancel();
                }
                job.token().cancelled().await;
                Err::<((), Value), _>(Failure::from(EngineError::Cancelled))
            });
            run.await.unwrap_err()
        };
        let failure = stopped(2).await;
        assert_eq!(failure.kind, Kind::Failed);
        assert!(
            failure.message.contains("transferring took longer than its limit of 60 minutes"),
            "{failure}"
        );
        assert_eq!(stopped(0).await.kind, Kind::Cancelled);
    }
}
