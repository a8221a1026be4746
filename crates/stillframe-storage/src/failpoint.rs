//! Named places where a test may kill the process.

/// Marks a place between two durable steps. Without the feature `failpoints` it is nothing.
///
/// With it, every place passed is counted over the whole process; the test that enumerates them sets
/// `STILLFRAME_FAILPOINT_LOG` to a file to learn how many there are and their names, then runs again with
/// `STILLFRAME_KILL_AT=N`: the process sends itself SIGKILL at the N-th (counted from 1). `STILLFRAME_HANG_AT=NAME`: whoever comes to a
/// place of that name stays there.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn failpoint(_name: &str) {}

/// Marks a place between two durable steps; see the documentation of the build without failpoints.
#[cfg(feature = "failpoints")]
pub fn failpoint(name: &str) {
    use std::io::Write;
    use std::sync::atomic::{AtomicU64, Ordering};

    static PASSED: AtomicU64 = AtomicU64::new(0);
    let number = PASSED.fetch_add(1, Ordering::SeqCst) + 1;
    if let Some(log) = std::env::var_os("STILLFRAME_FAILPOINT_LOG") {
        let line = format!("{number} {name}\n");
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the failpoint log is writable");
    }
    if std::env::var("STILLFRAME_HANG_AT").is_ok_and(|place| place == name) {
        loop {
            std::thread::park();
        }
    }
    let kill_at = std::env::var("STILLFRAME_KILL_AT").ok().and_then(|n| n.parse::<u64>().ok());
    if kill_at == Some(number) {
        let me = rustix::process::getpid();
        rustix::process::kill_process(me, rustix::process::Signal::KILL).expect("a process may kill itself");
        loop {
            std::thread::park();
        }
    }
}
