//! A database and the writer that keeps to a schedule, whatever the database does.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{ChildStdout, Command, Stdio};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use stillframe_testkit::Process;

use crate::error::BenchError;
use crate::measurement::call;
use crate::rocks_data::{ROW, VALUE, java};
use crate::workshop::Workshop;

/// For how long the writer shows what it can do.
const BEST: Duration = Duration::from_mins(1);

/// What compacting may take after the last put.
const COMING_TO_REST: Duration = Duration::from_mins(10);

/// A RocksDB with its own defaults, and who writes to it. Between two runs nobody has it open, and nothing is left to compact.
#[derive(Debug)]
pub(crate) struct OpenLoop {
    /// The directory of the database.
    pub(crate) db: PathBuf,
    java: Vec<String>,
    words: Vec<String>,
    runs: u32,
}

/// What the writer felt: seconds from the moment at which a put was due until it was done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Felt {
    /// Puts that were done in time, a second.
    pub(crate) throughput: f64,
    /// The median.
    pub(crate) p50: f64,
    /// The 99th percentile.
    pub(crate) p99: f64,
    /// One put in a thousand took longer.
    pub(crate) p999: f64,
    /// The longest.
    pub(crate) longest: f64,
}

/// A writer at work.
#[derive(Debug)]
pub(crate) struct Writing {
    process: Process,
    output: BufReader<ChildStdout>,
}

/// What `best` says.
#[derive(Debug, Deserialize)]
struct Best {
    puts_per_second: f64,
}

/// What `run` says.
#[derive(Debug, Deserialize)]
struct Said {
    puts_per_second: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
}

impl OpenLoop {
    /// Writes a database of about that many bytes at `db`, half of which cannot be compressed.
    pub(crate) fn fill(workshop: &Workshop, db: PathBuf, bytes: u64) -> Result<Self, BenchError> {
        let words = vec![
            format!("rows={}", (bytes / ROW).max(1000)),
            format!("value={VALUE}"),
            "noise=0.5".to_owned(),
            format!("seed={}", workshop.seed),
        ];
        let mut made = Self { db, java: java(workshop, "OpenLoopWriter.java")?, words, runs: 0 };
        call(&mut made.command("fill"))?;
        Ok(made)
    }

    /// How many puts it can do a second when it waits for nothing but the database.
    pub(crate) fn best(&mut self) -> Result<f64, BenchError> {
        let said = call(self.command("best").arg(format!("seconds={}", BEST.as_secs())))?;
        Ok(last_line::<Best>(&said)?.puts_per_second)
    }

    /// Starts the writer, and returns when its schedule has begun. What is due in the first part, the `lead`, is not counted.
    pub(crate) fn start(
        &mut self,
        rate: u64,
        lead: Duration,
        counted: Duration,
    ) -> Result<Writing, BenchError> {
        let mut command = self.command("run");
        command.args([
            format!("rate={rate}"),
            format!("lead={}", lead.as_secs()),
            format!("seconds={}", counted.as_secs()),
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = Process::spawn(&mut command).map_err(lost)?;
        let output = process.child().stdout.take().expect("its output was asked for");
        let mut writing = Writing { process, output: BufReader::new(output) };
        let mut line = String::new();
        writing.output.read_line(&mut line).map_err(lost)?;
        if line.trim() == "begun" {
            Ok(writing)
        } else {
            Err(BenchError::Writer(format!("did not begin: {}", line.trim())))
        }
    }

    /// Each time with other puts than before.
    fn command(&mut self, mode: &str) -> Command {
        let mut command = Command::new("java");
        command
            .args(&self.java)
            .arg(mode)
            .arg(&self.db)
            .args(&self.words)
            .arg(format!("round={}", self.runs));
        self.runs += 1;
        command
    }
}

impl Writing {
    /// Waits until the writer is done and its database has come to rest.
    pub(crate) fn finish(mut self) -> Result<Felt, BenchError> {
        let mut said = String::new();
        self.output.read_to_string(&mut said).map_err(lost)?;
        let status = self.process.wait(COMING_TO_REST).map_err(lost)?;
        if status.success() {
            Ok(last_line::<Said>(&said)?.into())
        } else {
            Err(BenchError::Writer(format!("ended ({status})")))
        }
    }
}

impl From<Said> for Felt {
    fn from(said: Said) -> Self {
        Self {
            throughput: said.puts_per_second,
            p50: said.p50_us / 1e6,
            p99: said.p99_us / 1e6,
            p999: said.p999_us / 1e6,
            longest: said.max_us / 1e6,
        }
    }
}

fn lost(error: impl std::fmt::Display) -> BenchError {
    BenchError::Writer(format!("is lost: {error}"))
}

fn last_line<T: DeserializeOwned>(said: &str) -> Result<T, BenchError> {
    let line = said.lines().last().unwrap_or_default();
    serde_json::from_str(line).map_err(|_| BenchError::Unreadable {
        program: "OpenLoopWriter",
        wanted: "rate",
        said: said.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_writer_says_is_read_in_seconds() {
        let said = "{\"puts_per_second\":100.5,\"p50_us\":50.0,\"p99_us\":2000.0,\"p999_us\":30000.0,\"max_us\":4e6}\n";
        let felt = Felt::from(last_line::<Said>(said).unwrap());
        let found = [felt.throughput, felt.p50, felt.p99, felt.p999, felt.longest];
        for (found, wanted) in found.into_iter().zip([100.5, 0.00005, 0.002, 0.03, 4.0]) {
            assert!((found - wanted).abs() < 1e-9, "{felt:?}");
        }
    }

    #[test]
    fn a_writer_that_says_nothing_is_an_error() {
        assert!(last_line::<Best>("").is_err());
        assert!(last_line::<Best>("begun\n").is_err());
    }
}
