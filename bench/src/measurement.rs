//! One measured run of a program.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde::{Deserialize, Serialize};
use stillframe_storage::{Clock, SystemClock};

use crate::error::BenchError;

/// The first word of the command line under which this program runs another one and reports what it cost.
pub(crate) const MEASURED: &str = "--measured";

/// When a run is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    /// When `sync` has returned after it: what it wrote is on the disk.
    Synced,
    /// When the program has ended: it makes durable what it says it did.
    Itself,
}

/// What one run cost.
#[derive(Debug, Clone)]
pub(crate) struct Measurement {
    /// From start to end, in seconds.
    pub(crate) wall: f64,
    /// User and system time of the whole process tree, in seconds.
    pub(crate) cpu: f64,
    /// The largest resident set of any one process of the tree, in bytes; none of the tools uses two large ones.
    pub(crate) peak_rss: u64,
    /// Processor time that others used meanwhile, as a part of what the machine has. Writing to disk counts here too.
    pub(crate) others: f64,
    /// Bytes by which the repository grew; filled in by who knows the repository.
    pub(crate) written: u64,
    /// What it printed on standard output.
    pub(crate) said: String,
}

/// What [`run_measured`] hands over.
#[derive(Debug, Serialize, Deserialize)]
struct Cost {
    wall: f64,
    cpu: f64,
    peak_rss: u64,
    code: Option<i32>,
}

/// Runs a program to its end and says what it cost.
///
/// The program runs below a process that does nothing else, whose account of its children is then exactly this tree.
pub(crate) fn measure(command: &Command, ends: Ends) -> Result<Measurement, BenchError> {
    let own = std::env::current_exe().map_err(BenchError::io("finding", Path::new("this program")))?;
    let account =
        tempfile::NamedTempFile::new().map_err(BenchError::io("making a file in", &std::env::temp_dir()))?;
    let mut measured = Command::new(&own);
    measured.args([MEASURED, if ends == Ends::Synced { "sync" } else { "no-sync" }]);
    measured.arg(account.path()).arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => measured.env(name, value),
            None => measured.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        measured.current_dir(dir);
    }
    let busy_before = busy_seconds()?;
    let output = measured.output().map_err(BenchError::io("starting", &own))?;
    let busy = busy_seconds()? - busy_before;
    let account = std::fs::read(account.path()).map_err(BenchError::io("reading", account.path()))?;
    let Ok(cost) = serde_json::from_slice::<Cost>(&account) else {
        return Err(failed(command, "could not be started".into(), &output.stderr));
    };
    if cost.code != Some(0) {
        let how = cost.code.map_or_else(|| "killed".into(), |code| format!("exit {code}"));
        return Err(failed(
            command,
            how,
            if output.stderr.is_empty() { &output.stdout } else { &output.stderr },
        ));
    }
    Ok(Measurement {
        wall: cost.wall,
        cpu: cost.cpu,
        peak_rss: cost.peak_rss,
        others: ((busy - cost.cpu) / (cost.wall * cores())).clamp(0.0, 1.0),
        written: 0,
        said: String::from_utf8_lossy(&output.stdout).into_owned(),
    })
}

/// Runs a program that must succeed, without measuring it, and returns what it printed.
pub(crate) fn call(command: &mut Command) -> Result<String, BenchError> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(BenchError::io("starting", Path::new(command.get_program())))?;
    if !output.status.success() {
        return Err(failed(command, output.status.to_string(), &output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The other side of [`measure`]: `sync|no-sync ACCOUNT PROGRAM WORD…`.
pub(crate) fn run_measured(mut words: impl Iterator<Item = OsString>) -> ExitCode {
    let (Some(sync), Some(account), Some(program)) = (words.next(), words.next(), words.next()) else {
        return ExitCode::FAILURE;
    };
    let clock = SystemClock::new();
    let ended = match Command::new(&program).args(words).status() {
        Ok(status) => status,
        Err(error) => {
            eprintln!("{}: {error}", program.display());
            return ExitCode::FAILURE;
        }
    };
    if sync == "sync" {
        rustix::fs::sync();
    }
    let wall = clock.monotonic().as_secs_f64();
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else { return ExitCode::FAILURE };
    let kibibytes = u64::try_from(usage.max_rss()).unwrap_or(0);
    let cost = Cost {
        wall,
        cpu: seconds(usage.user_time()) + seconds(usage.system_time()),
        peak_rss: kibibytes * 1024,
        code: ended.code(),
    };
    match serde_json::to_vec(&cost).map(|bytes| std::fs::write(account, bytes)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

#[expect(clippy::cast_precision_loss, reason = "seconds of a run")]
fn seconds(time: TimeVal) -> f64 {
    time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "a number of processors")]
fn cores() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64)
}

/// Seconds that all processors together were not idle since the machine started.
fn busy_seconds() -> Result<f64, BenchError> {
    let path = Path::new("/proc/stat");
    let text = std::fs::read_to_string(path).map_err(BenchError::io("reading", path))?;
    Ok(busy_ticks(&text) / 100.0)
}

/// The columns of `cpu` are user, nice, system, idle, iowait, irq, softirq, steal, in hundredths of a second (proc(5)).
fn busy_ticks(stat: &str) -> f64 {
    let columns = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8);
    columns
        .enumerate()
        .filter(|(at, _)| ![3, 4].contains(at))
        .filter_map(|(_, ticks)| ticks.parse::<f64>().ok())
        .sum()
}

/// A program that did not do what it was asked to, with its last words.
pub(crate) fn failed(command: &Command, how: String, said: &[u8]) -> BenchError {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let command = words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    let said = String::from_utf8_lossy(said);
    let said = said.trim();
    let from = said.char_indices().rev().nth(600).map_or(0, |(at, _)| at);
    BenchError::Failed { command, how, said: said.get(from..).unwrap_or(said).to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_waiting_processors_do_not_count_as_busy() {
        let stat = "cpu  100 20 30 4000 500 6 7 8 9 10\ncpu0 1 1 1 1\n";
        assert!((busy_ticks(stat) - 171.0).abs() < 1e-9);
        assert!(busy_ticks("").abs() < 1e-9);
    }

    #[test]
    fn a_program_that_fails_is_an_error_with_its_last_words() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo so it goes >&2; exit 3"]);
        let error = call(&mut command).unwrap_err().to_string();
        assert!(error.contains("so it goes") && error.contains('3'), "{error}");
    }

    #[test]
    fn the_measured_side_accounts_for_the_whole_process_tree() {
        let account = tempfile::NamedTempFile::new().unwrap();
        let spin = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        let words =
            ["no-sync", account.path().to_str().unwrap(), "sh", "-c", &format!("sh -c '{spin}'; exit 4")]
                .map(OsString::from);
        let _ = run_measured(words.into_iter());
        let cost: Cost = serde_json::from_slice(&std::fs::read(account.path()).unwrap()).unwrap();
        assert_eq!(cost.code, Some(4));
        assert!(cost.cpu > 0.01 && cost.wall > 0.01, "{cost:?}");
        assert!(cost.peak_rss > 500_000, "{cost:?}");
    }
}
