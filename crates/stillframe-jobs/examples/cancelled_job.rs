//! Runs two jobs, cancels the second in the middle of its work, and prints what their history keeps of them.
//!
//! `cargo run --release -p stillframe-jobs --example cancelled_job`

use std::error::Error;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use stillframe_jobs::{EnterError, History, Job, Phase, Progress};
use stillframe_storage::SystemClock;

const BYTES: u64 = 100;

/// Goes through its phases and stops where it is told to. It returns only when nothing of it runs any more.
fn work(job: &Job, pause: Duration) -> Result<(), EnterError> {
    job.enter(Phase::Capturing)?;
    job.enter(Phase::Transferring)?;
    for bytes_done in 1..=BYTES {
        if job.token().is_cancelled() {
            break;
        }
        thread::sleep(pause);
        job.progress(&Progress {
            bytes_done,
            bytes_total: Some(BYTES),
            ..Progress::new(Phase::Transferring)
        });
    }
    // Of a job that is to stop, no further phase can be entered.
    job.enter(Phase::Sealing)
}

/// Says how the work ended: that is the part of whoever started it.
fn finish(job: Job, done: Result<(), EnterError>) {
    match done {
        Ok(()) => job.succeed(serde_json::json!({ "bytes": BYTES })),
        Err(EnterError::Stopping(reason)) => {
            println!("job told to stop: {reason:?}");
            job.cancelled();
        }
        Err(error) => job.fail("bug", &error.to_string()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let history = History::open(&dir.path().join("jobs.db"), Arc::new(SystemClock::new()))?;

    let job = history.start("create", "left alone");
    let done = work(&job, Duration::ZERO);
    finish(job, done);

    let job = history.start("create", "cancelled");
    let canceller = job.canceller();
    let impatient = thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        canceller.cancel();
    });
    let done = work(&job, Duration::from_millis(20));
    finish(job, done);
    impatient.join().map_err(|_| "the impatient one panicked")?;

    for record in history.list(10)? {
        let states: Vec<_> = record.history.iter().map(|(state, _)| state.name()).collect();
        println!(
            "job {}, {}: {}; {} of {BYTES} bytes done",
            record.id,
            record.subject,
            states.join(", "),
            record.progress.bytes_done,
        );
    }
    Ok(())
}
