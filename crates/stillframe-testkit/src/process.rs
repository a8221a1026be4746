//! A child that can be killed at a known moment.

use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use stillframe_storage::{Clock, SystemClock};

use crate::{LedgerError, Marks};

const POLL: Duration = Duration::from_millis(2);

/// A child process of ours. It is killed and waited for when this is dropped: no test leaves one behind.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

/// What went wrong with a child.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It could not be started, signalled or waited for.
    #[error("{name}: {source}")]
    Io {
        /// The program.
        name: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It ended before what was waited for had happened.
    #[error("{name} ended ({status}) while {waiting_for}")]
    Ended {
        /// The program.
        name: String,
        /// How.
        status: ExitStatus,
        /// What was being waited for.
        waiting_for: String,
    },
    /// It did not get that far in time.
    #[error("{name}: gave up {waiting_for} after {waited:?}")]
    TooSlow {
        /// The program.
        name: String,
        /// What was being waited for.
        waiting_for: String,
        /// How long.
        waited: Duration,
    },
    /// Its ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl Process {
    /// Starts a program.
    pub fn spawn(command: &mut Command) -> Result<Self, ProcessError> {
        let name = Path::new(command.get_program())
            .file_name()
            .map_or_else(|| "child".into(), |name| name.to_string_lossy().into_owned());
        match command.spawn() {
            Ok(child) => Ok(Self { child, name }),
            Err(source) => Err(ProcessError::Io { name, source }),
        }
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits until its ledger shows that transaction `n` was acknowledged.
    pub fn wait_for_acked(
        &mut self,
        ledger: &Path,
        n: u64,
        at_most: Duration,
    ) -> Result<Marks, ProcessError> {
        let waiting_for = || format!("waiting for transaction {n} in {}", ledger.display());
        let clock = SystemClock::new();
        loop {
            // Ended first: what it acknowledged before its end counts.
            let ended = self.ended()?;
            let marks = Marks::read(ledger)?;
            if marks.acked >= n {
                return Ok(marks);
            }
            if let Some(status) = ended {
                return Err(ProcessError::Ended {
                    name: self.name.clone(),
                    status,
                    waiting_for: waiting_for(),
                });
            }
            let waited = clock.monotonic();
            if waited > at_most {
                return Err(ProcessError::TooSlow {
                    name: self.name.clone(),
                    waiting_for: waiting_for(),
                    waited,
                });
            }
            std::thread::sleep(POLL);
        }
    }

    /// kill -9, and waits until it is gone. One that has ended already is left as it is.
    pub fn kill(&mut self) -> Result<ExitStatus, ProcessError> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        self.child.kill().map_err(|source| self.error(source))?;
        self.child.wait().map_err(|source| self.error(source))
    }

    /// Stops it where it is (SIGSTOP) until [`Self::resume`]. When this returns every thread of it stands still: the signal
    /// alone only asks for that, and a copy of its files made right after it would race with them.
    pub fn stop(&mut self) -> Result<(), ProcessError> {
        self.signal(Signal::STOP, "stopping it")?;
        let pid = Pid::from_child(&self.child);
        // Only stops are asked for, and not taken: its end is left for the child's own wait, and stopping it twice is fine.
        let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        loop {
            match waitid(WaitId::Pid(pid), options) {
                Ok(Some(status)) if status.stopped() => return Ok(()),
                Ok(_) | Err(Errno::INTR | Errno::CHILD) => {}
                Err(errno) => return Err(self.error(errno.into())),
            }
            if let Some(status) = self.ended()? {
                return Err(ProcessError::Ended {
                    name: self.name.clone(),
                    status,
                    waiting_for: "stopping it".into(),
                });
            }
            std::thread::sleep(POLL);
        }
    }

    /// Lets it go on (SIGCONT).
    pub fn resume(&mut self) -> Result<(), ProcessError> {
        self.signal(Signal::CONT, "letting it go on")
    }

    /// Asks it to stop as Ctrl-C does (SIGINT).
    pub fn interrupt(&mut self) -> Result<(), ProcessError> {
        self.signal(Signal::INT, "interrupting it")
    }

    /// Waits for its end.
    pub fn wait(&mut self, at_most: Duration) -> Result<ExitStatus, ProcessError> {
        let clock = SystemClock::new();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            let waited = clock.monotonic();
            if waited > at_most {
                let waiting_for = "waiting for its end".into();
                return Err(ProcessError::TooSlow { name: self.name.clone(), waiting_for, waited });
            }
            std::thread::sleep(POLL);
        }
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>, ProcessError> {
        self.child.try_wait().map_err(|source| self.error(source))
    }

    fn signal(&mut self, signal: Signal, what: &str) -> Result<(), ProcessError> {
        // As long as it was not waited for its pid cannot belong to another process.
        if let Some(status) = self.ended()? {
            return Err(ProcessError::Ended { name: self.name.clone(), status, waiting_for: what.into() });
        }
        kill_process(Pid::from_child(&self.child), signal).map_err(|errno| self.error(errno.into()))
    }

    fn error(&self, source: std::io::Error) -> ProcessError {
        ProcessError::Io { name: self.name.clone(), source }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A child that cannot be killed is not there any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    const LONG: Duration = Duration::from_mins(1);

    fn state_of(pid: u32) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(')').next()?.trim_start().chars().next()
    }

    #[test]
    fn a_child_stops_goes_on_and_dies_when_told_and_is_reaped() {
        let mut sleeper = Process::spawn(Command::new("sleep").arg("600")).unwrap();
        let pid = sleeper.child().id();
        for _ in 0..50 {
            sleeper.stop().unwrap();
            assert_eq!(state_of(pid), Some('T'), "stopped when stop() returns, not some time later");
            sleeper.resume().unwrap();
        }
        sleeper.stop().unwrap();
        sleeper.stop().unwrap();
        sleeper.resume().unwrap();
        while state_of(pid) == Some('T') {
            std::thread::sleep(POLL);
        }
        assert_eq!(sleeper.kill().unwrap().signal(), Some(9));
        assert_eq!(state_of(pid), None, "not even a zombie is left");
        assert!(matches!(sleeper.stop(), Err(ProcessError::Ended { .. })));
    }

    #[test]
    fn a_stopped_process_writes_nothing_more_until_it_is_resumed() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().display();
        let script = format!("while :; do echo x >> {place}/out; done");
        let mut writer = Process::spawn(Command::new("sh").args(["-c", &script])).unwrap();
        let length = || std::fs::metadata(dir.path().join("out")).map_or(0, |meta| meta.len());
        while length() == 0 {
            std::thread::sleep(POLL);
        }
        for _ in 0..50 {
            writer.stop().unwrap();
            let at_stop = length();
            std::thread::sleep(Duration::from_millis(5));
            assert_eq!(length(), at_stop);
            writer.resume().unwrap();
            while length() == at_stop {
                std::thread::sleep(POLL);
            }
        }
    }

    #[test]
    fn dropping_kills_even_a_stopped_child() {
        let mut sleeper = Process::spawn(Command::new("sleep").arg("600")).unwrap();
        let pid = sleeper.child().id();
        sleeper.stop().unwrap();
        drop(sleeper);
        assert_eq!(state_of(pid), None);
    }

    #[test]
    fn waiting_says_when_the_child_ended_first_or_is_too_slow() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = dir.path().join("ledger");
        let mut ended = Process::spawn(&mut Command::new("false")).unwrap();
        let error = ended.wait_for_acked(&ledger, 1, LONG).unwrap_err();
        assert!(matches!(error, ProcessError::Ended { .. }), "{error}");
        let mut slow = Process::spawn(Command::new("sleep").arg("600")).unwrap();
        let error = slow.wait_for_acked(&ledger, 1, Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, ProcessError::TooSlow { .. }), "{error}");
        assert!(slow.wait(Duration::from_millis(20)).is_err());
        let mut writer = crate::LedgerWriter::open(&ledger).unwrap();
        writer.acked(1, 5).unwrap();
        assert_eq!(slow.wait_for_acked(&ledger, 1, LONG).unwrap().acked_hash, 5);
    }
}
