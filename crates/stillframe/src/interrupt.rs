//! Ctrl-C: once ends cleanly, twice at once. The same for SIGTERM, and for SIGHUP unless it was to be ignored (`nohup`).

use std::sync::LazyLock;
use std::time::Duration;

use stillframe_jobs::Canceller;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Two signals within this time are one wish.
const SAME_WISH: Duration = Duration::from_millis(200);

/// Cancels the job at the first of these signals; ends the process at the second (exit code 130), leaving what there is to
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

/// Waits for one of these signals that comes from now on.
pub async fn asked() {
    let watched = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()), hangup());
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) = watched else {
        tracing::warn!("signals cannot be watched; Ctrl-C ends at once");
        return std::future::pending().await;
    };
    let hung_up = async {
        match &mut hangup {
            Some(signal) => signal.recv().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hung_up => {}
    }
}

/// The terminal went away. `None` where whoever started this wants it to go on.
fn hangup() -> std::io::Result<Option<Signal>> {
    // Watching would undo what nohup(1) did, so it is looked at before the first watch. Bit 0 is SIGHUP.
    static IGNORED: LazyLock<bool> = LazyLock::new(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
    });
    if *IGNORED { Ok(None) } else { signal(SignalKind::hangup()).map(Some) }
}
