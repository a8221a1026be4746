//! Ctrl-C: once ends cleanly, twice at once.

use std::time::Duration;

use stillframe_jobs::Canceller;
use tokio::signal::unix::{SignalKind, signal};

/// Two signals within this time are one wish.
const SAME_WISH: Duration = Duration::from_millis(200);

/// Cancels the job at the first SIGINT or SIGTERM; ends the process at the second (exit code 130), leaving what there is to
/// the next run's sweep.
pub fn watch(job: Canceller) {
    tokio::spawn(async move {
        asked().await;
        eprintln!("stillframe: cancelling; once more to stop at once");
        job.cancel();
        // timeout(1) and some shells signal both the process and its group: that is one wish.
        tokio::time::sleep(SAME_WISH).await;
        asked().await;
        std::process::exit(130);
    });
}

/// Waits for a SIGINT or SIGTERM that comes from now on.
pub async fn asked() {
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        },
        _ => {
            tracing::warn!("signals cannot be watched; Ctrl-C ends at once");
            std::future::pending::<()>().await;
        }
    }
}
