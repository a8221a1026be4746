//! Images of a database that `db_bench` keeps as busy as it can.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;
use stillframe_storage::Clock;
use stillframe_testkit::Process;

use crate::disk_rate::synced_rate;
use crate::error::BenchError;
use crate::measurement::{Ends, measure};
use crate::source::Source;
use crate::statistics::{median, percentile};
use crate::tools::{Pace, Stillframe};
use crate::tree::{bytes_below, names_with_extension};
use crate::workshop::{Workshop, say};

/// Bytes of a value that db_bench writes.
const VALUE: u64 = 1000;

/// How long a writer may take to fill its database.
const FILLING: Duration = Duration::from_mins(10);

/// One way of being busy.
struct Writer {
    name: &'static str,
    /// Different keys at full size.
    keys: u64,
    flags: &'static [&'static str],
}

const WRITERS: [Writer; 2] = [
    Writer { name: "db_bench, defaults", keys: 1_000_000, flags: &[] },
    Writer {
        name: "db_bench, 1 MiB tables",
        keys: 1_000_000,
        flags: &[
            "--write_buffer_size=1048576",
            "--target_file_size_base=1048576",
            "--max_bytes_for_level_base=16777216",
        ],
    },
];

/// What the images of one writer's database cost.
#[derive(Debug)]
pub(crate) struct Captures {
    /// Which writer.
    pub(crate) writer: &'static str,
    /// One an image.
    pub(crate) shots: Vec<Shot>,
    /// Bytes per second at which the disk takes durable writes while the writer is at work.
    pub(crate) synced_rate: f64,
}

/// One image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shot {
    /// Seconds from the first to the last look at the pointers of the accepted attempt.
    pub(crate) window: f64,
    /// How often it was tried.
    pub(crate) attempts: f64,
    /// Tables in the image.
    pub(crate) tables: f64,
    /// Bytes of logs in the image.
    pub(crate) log_bytes: f64,
    /// Bytes of the whole image.
    pub(crate) bytes: f64,
    /// Seconds that `image create` took from start to end.
    pub(crate) wall: f64,
}

impl Captures {
    /// The median of something about the images.
    pub(crate) fn middle(&self, of: impl Fn(&Shot) -> f64) -> f64 {
        median(self.shots.iter().map(of))
    }

    /// The 99th percentile of something about the images.
    pub(crate) fn worst(&self, of: impl Fn(&Shot) -> f64) -> f64 {
        percentile(self.shots.iter().map(of), 99.0)
    }

    /// Seconds that an image could have taken by its window and its logs alone, at the disk's rate.
    pub(crate) fn least(&self, shot: &Shot) -> f64 {
        shot.window + shot.log_bytes / self.synced_rate.max(1.0)
    }
}

/// What `image create --json` says at its end; more fields are there.
#[derive(Debug, Deserialize)]
struct Said {
    window_us: f64,
    attempts: f64,
}

/// Takes images of each writer's database, one after the other.
pub(crate) fn run(workshop: &Workshop) -> Result<Vec<Captures>, BenchError> {
    WRITERS.iter().map(|writer| captures_of(workshop, writer)).collect()
}

fn captures_of(workshop: &Workshop, writer: &Writer) -> Result<Captures, BenchError> {
    let root = workshop.empty_dir("busy")?;
    let db = root.join("db");
    let keys = workshop.scaled(writer.keys);
    let mut busy = start(&db, keys, writer.flags)?;
    wait_until_filled(workshop, &mut busy, &db, keys * VALUE * 6 / 10)?;
    let synced_rate = synced_rate(workshop)?;
    let program = Stillframe::new(&workshop.stillframe, Pace::Fast);
    let image = root.join("image");
    let mut shots = Vec::new();
    for _ in 0..workshop.captures {
        demand_alive(&mut busy)?;
        let mut command = program.command(&root);
        command.args(["image", "create", &Source::RocksDb(db.clone()).url(), "--to"]).arg(&image);
        let measured = measure(&command, Ends::Itself)?;
        shots.push(shot(&measured.said, measured.wall, &image)?);
        workshop.remove(&image)?;
    }
    drop(busy);
    workshop.remove(&root)?;
    let captures = Captures { writer: writer.name, shots, synced_rate };
    say(&format!(
        "   {}: window p50 {:.1} ms, p99 {:.1} ms, {:.0} tables",
        writer.name,
        captures.middle(|shot| shot.window) * 1e3,
        captures.worst(|shot| shot.window) * 1e3,
        captures.middle(|shot| shot.tables),
    ));
    Ok(captures)
}

fn start(db: &Path, keys: u64, flags: &[&str]) -> Result<Process, BenchError> {
    let mut command = Command::new("db_bench");
    command.args(["--benchmarks=overwrite", "--duration=3600", "--compression_type=none"]);
    command
        .arg(format!("--db={}", db.display()))
        .arg(format!("--num={keys}"))
        .arg(format!("--value_size={VALUE}"));
    command.args(flags).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Process::spawn(&mut command).map_err(|error| BenchError::Writer(format!("did not start: {error}")))
}

fn wait_until_filled(
    workshop: &Workshop,
    busy: &mut Process,
    db: &Path,
    bytes: u64,
) -> Result<(), BenchError> {
    let ends = workshop.clock.monotonic() + FILLING;
    while table_bytes(db) < bytes {
        demand_alive(busy)?;
        if workshop.clock.monotonic() > ends {
            return Err(BenchError::Writer(format!(
                "made no {bytes} bytes of tables in {} s",
                FILLING.as_secs()
            )));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// Tables come and go while they are counted; what is gone counts nothing.
fn table_bytes(db: &Path) -> u64 {
    let entries = std::fs::read_dir(db).into_iter().flatten().flatten();
    let tables = entries.filter(|entry| entry.path().extension().is_some_and(|it| it == "sst"));
    tables.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

fn demand_alive(busy: &mut Process) -> Result<(), BenchError> {
    match busy.child().try_wait() {
        Ok(None) => Ok(()),
        Ok(Some(status)) => Err(BenchError::Writer(format!("ended ({status})"))),
        Err(error) => Err(BenchError::Writer(format!("is lost: {error}"))),
    }
}

#[expect(clippy::cast_precision_loss, reason = "sizes and counts that are printed")]
fn shot(said: &str, wall: f64, image: &Path) -> Result<Shot, BenchError> {
    let last = said.lines().rev().find_map(|line| serde_json::from_str::<Said>(line).ok());
    let Some(last) = last else {
        return Err(BenchError::Unreadable {
            program: "stillframe",
            wanted: "window",
            said: said.to_owned(),
        });
    };
    let logs = |path: &PathBuf| bytes_below(&image.join(path));
    let log_bytes = names_with_extension(image, "log")?.iter().map(logs).sum::<Result<u64, _>>()?;
    Ok(Shot {
        window: last.window_us / 1e6,
        attempts: last.attempts,
        tables: names_with_extension(image, "sst")?.len() as f64,
        log_bytes: log_bytes as f64,
        bytes: bytes_below(image)? as f64,
        wall,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_described_by_what_was_said_and_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        for (name, length) in [("000012.sst", 100), ("000013.sst", 50), ("000014.log", 7), ("CURRENT", 16)] {
            std::fs::write(dir.path().join(name), vec![0; length]).unwrap();
        }
        let said = "{\"type\":\"progress\",\"percent\":3}\n{\"type\":\"image\",\"window_us\":2500,\"attempts\":2,\"files\":4}\n";
        let shot = shot(said, 0.2, dir.path()).unwrap();
        let found = [shot.window, shot.attempts, shot.tables, shot.log_bytes, shot.bytes, shot.wall];
        for (found, wanted) in found.into_iter().zip([0.0025, 2.0, 2.0, 7.0, 173.0, 0.2]) {
            assert!((found - wanted).abs() < 1e-9, "{shot:?}");
        }
    }

    #[test]
    fn a_program_that_says_nothing_of_its_window_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(shot("{\"type\":\"image\"}\n", 0.2, dir.path()).is_err());
    }
}
