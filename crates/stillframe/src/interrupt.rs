//! Ctrl-C: once ends cleanly, twice at once.

use stillframe_jobs::Canceller;
use tokio::signal::unix::{SignalKind, signal};

/// Cancels the job at the first SIGINT or SIGTERM; ends the process at the second (exit code 130), leaving what there is to
/// the next run's sweep.
pub fn watch(job: Canceller) {
    tokio::spawn(async move {
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            tracing::warn!("signals cannot be watched; Ctrl-C ends at once");
            return;
        };
        let mut seen = 0;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            seen += 1;
            if seen > 1 {
                std::process::exit(130);
            }
            eprintln!("stillframe: cancelling; once more to stop at once");
            job.cancel();
        }
    });
}
