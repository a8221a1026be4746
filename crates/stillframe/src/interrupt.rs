//! Ctrl-C: once ends cleanly, twice at once. The same for SIGTERM, and for SIGHUP unless it was to be ignored (`nohup`).

use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use stillframe_jobs::Canceller;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::console::{Console, say};
use crate::failure::{Failure, Kind, exit_code};

/// Two signals within this time are one wish.
const SAME_WISH: Duration = Duration::from_millis(200);

/// What such a signal means now.
static DOING: Mutex<Doing> = Mutex::new(Doing::Other);

enum Doing {
    /// It ends the process, which leaves what there is to the next run's sweep.
    Other,
    /// The same, but the terminal must show again what is typed.
    Asking(Termios),
    /// It cancels the job; the next one ends the process.
    Job(Canceller),
}

/// Heeds these signals from now on.
pub fn start(console: Arc<Console>) {
    tokio::spawn(async move {
        loop {
            asked().await;
            match turn_to(Doing::Other) {
                Doing::Job(job) => {
                    job.cancel();
                    // A full standard error must not keep the next wish from being heard.
                    std::thread::spawn(|| say("stillframe: cancelling; once more to stop at once"));
                    // timeout(1) and some shells signal both the process and its group: that is one wish.
                    tokio::time::sleep(SAME_WISH).await;
                }
                Doing::Asking(before) => {
                    let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &before);
                    say("");
                    end(&console);
                }
                Doing::Other => end(&console),
            }
        }
    });
}

/// Ends the process, in the same words as a command that was cancelled, unless nobody takes them: whoever holds standard output may
/// wait for a reader for ever.
fn end(console: &Arc<Console>) -> ! {
    let console = Arc::clone(console);
    let (said, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        console.failure(&Failure::new(Kind::Cancelled, "cancelled"));
        // Nobody waits any more when the time is over.
        let _ = said.send(());
    });
    let _ = heard.recv_timeout(SAME_WISH);
    std::process::exit(exit_code(Kind::Cancelled).into())
}

/// From now on a signal cancels this job.
pub fn cancels(job: Canceller) {
    turn_to(Doing::Job(job));
}

/// Asks on the terminal: a signal meanwhile gives it back as it was.
pub fn while_asking<T>(ask: impl FnOnce() -> T) -> T {
    if let Ok(before) = tcgetattr(rustix::stdio::stdin()) {
        turn_to(Doing::Asking(before));
    }
    let answer = ask();
    turn_to(Doing::Other);
    answer
}

/// What was done before.
fn turn_to(doing: Doing) -> Doing {
    std::mem::replace(&mut *DOING.lock().unwrap_or_else(PoisonError::into_inner), doing)
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
