//! Captures of a made-up engine that writes, flushes, compacts and deletes at full speed, in the order in which RocksDB does.
//!
//! Its records are 0, 1, 2, …; a table holds ranges of them. So an image is right if and only if its tables and logs hold
//! all numbers from 0 to some last one that was acknowledged when the capture began or later.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use stillframe_storage::{Clock, SystemClock};

use super::capture_with;
use super::log_end::{Dialect, LogScan, ZeroHeader};
use super::log_format::writer::append;
use super::log_format::{HEADER, Place, RECYCLABLE_HEADER, RecordReader, Role as RecordRole, look};
use super::manifest_writer::EditBytes;
use super::sabotage::Sabotage;
use super::version_fold::VersionFold;
use crate::test_support::Surroundings;
use crate::{CaptureError, CaptureOptions, Engine, Image, Role, Source};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    Plain,
    /// Overwrites old logs.
    Recycling,
    /// Renames what it deletes, and cuts it bit by bit.
    DeletingSlowly,
    /// Makes the next log before it is needed, writes slowly and flushes rarely.
    PreparingLogs,
    /// The same with short logs, of which many are waiting.
    ManyLogs,
}

impl Habit {
    fn prepares_logs(self) -> bool {
        matches!(self, Self::PreparingLogs | Self::ManyLogs)
    }
}

/// What became of one capture.
#[derive(Debug)]
enum Verdict {
    /// An exact prefix, after so many attempts.
    Exact(u32),
    Wrong(String),
    Refused(CaptureError),
}

/// The engine, in a thread of its own until it is dropped.
struct BusyEngine {
    root: tempfile::TempDir,
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BusyEngine {
    fn start(habit: Habit, seed: u64) -> Self {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("db");
        std::fs::create_dir(&dir).unwrap();
        let acknowledged = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let mut work = Work::open(dir, habit, seed);
        let thread = std::thread::spawn({
            let (acknowledged, stop) = (Arc::clone(&acknowledged), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::SeqCst) {
                    work.step();
                    acknowledged.store(work.next_record, Ordering::SeqCst);
                }
            }
        });
        let engine = Self { root, acknowledged, stop, thread: Some(thread) };
        while engine.acknowledged.load(Ordering::SeqCst) < 1000 {
            std::thread::sleep(Duration::from_millis(1));
        }
        engine
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("db")
    }

    fn capture(&self, sabotage: Sabotage, surroundings: &Surroundings) -> Verdict {
        let before = self.acknowledged.load(Ordering::SeqCst);
        let source = Source { engine: Engine::RocksDb, path: self.dir() };
        // A mistake that is never accepted shows nothing; a capture that is right may take its time on a busy machine.
        let right = matches!(sabotage, Sabotage::None | Sabotage::Slowly);
        let deadline = Duration::from_secs(if right { 60 } else { 2 });
        let options = CaptureOptions { deadline, ..CaptureOptions::default() };
        let captured = surroundings.with(|context| capture_with(&source, &options, context, sabotage));
        let image = match captured {
            Ok(image) => image,
            Err(error) => return Verdict::Refused(error),
        };
        let after = self.acknowledged.load(Ordering::SeqCst);
        match records_in(&image) {
            Err(wrong) => Verdict::Wrong(wrong),
            Ok(end) if end < before || end > after + 1 => {
                Verdict::Wrong(format!("{end} records, between {before} and {after} were acknowledged"))
            }
            Ok(_) => Verdict::Exact(image.snapshot().attempts),
        }
    }
}

impl Drop for BusyEngine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the engine failed");
        }
    }
}

/// How many records an image holds, if it holds all up to some number.
fn records_in(image: &Image) -> Result<u64, String> {
    let files = &image.snapshot().files;
    let read = |path: &str| -> Result<Vec<u8>, String> {
        let file =
            files.iter().find(|file| file.path.to_string() == path).ok_or(format!("{path} is missing"))?;
        let mut bytes = vec![0; usize::try_from(file.size).unwrap()];
        let opened = image.open(&file.path).map_err(|error| error.to_string())?;
        opened.read_exact_at(&mut bytes, 0).map_err(|error| format!("{path}: {error}"))?;
        Ok(bytes)
    };
    let current = String::from_utf8(read("CURRENT")?).unwrap();
    let mut fold = VersionFold::default();
    let fed = RecordReader::default().feed(&read(current.trim_end())?, |record| fold.push(record));
    fed.map_err(|error| error.to_string())?;
    let mut ranges = Vec::new();
    for (number, table) in fold.families().flat_map(|(_, family)| &family.tables) {
        let bytes = read(&format!("{number:06}.sst"))?;
        if bytes.len() as u64 != table.size {
            return Err(format!("table {number} was cut"));
        }
        ranges.extend(ranges_of(&bytes));
    }
    for file in files.iter().filter(|file| file.role == Role::Log) {
        let name = file.path.to_string();
        let number = name.trim_end_matches(".log").parse().unwrap();
        ranges.extend(records_of(&read(&name)?, number).into_iter().map(|record| (record, record + 1)));
    }
    ranges.sort_unstable();
    let mut end = 0;
    for (from, to) in ranges {
        if from > end {
            return Err(format!("records {end} to {from} are missing"));
        }
        end = end.max(to);
    }
    Ok(end)
}

fn ranges_of(table: &[u8]) -> Vec<(u64, u64)> {
    let word = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
    let count = usize::try_from(word(&table[..8])).unwrap();
    table[8..].chunks_exact(16).take(count).map(|range| (word(&range[..8]), word(&range[8..]))).collect()
}

/// The first words of the whole records of a log, as the engine's recovery would find them.
fn records_of(log: &[u8], number: u64) -> Vec<u64> {
    let mut scan = LogScan::new(number, ZeroHeader::Skips, Dialect::RocksDb);
    scan.feed(log);
    let (mut records, mut offset, mut header, mut payload) = (Vec::new(), 0, HEADER, Vec::new());
    while offset < scan.end() {
        match look(&log[usize::try_from(offset).unwrap()..], offset, header) {
            Place::Record(record) => {
                payload.extend_from_slice(record.payload);
                if matches!(record.role, RecordRole::Full | RecordRole::Last) {
                    records.push(u64::from_be_bytes(payload[..8].try_into().unwrap()));
                    payload.clear();
                }
                header = if record.log_number.is_some() { RECYCLABLE_HEADER } else { HEADER };
                offset += record.length as u64;
            }
            Place::Padding => offset = (offset / 32_768 + 1) * 32_768,
            other => panic!("{other:?} below the end"),
        }
    }
    records
}

struct Log {
    number: u64,
    file: File,
    /// What the log logically holds.
    bytes: Vec<u8>,
    from: u64,
}

/// Number, size and ranges.
type Table = (u64, u64, Vec<(u64, u64)>);

struct Work {
    dir: PathBuf,
    habit: Habit,
    random: StdRng,
    next_record: u64,
    next_number: u64,
    log: Log,
    /// Full logs that are not flushed yet, oldest first.
    waiting: VecDeque<Log>,
    /// Recycled files that are free, by their last name.
    free: Vec<u64>,
    tables: Vec<Table>,
    manifest: (u64, File, Vec<u8>),
    edits: u32,
    records_in_log: u64,
    prepared: Option<u64>,
}

impl Work {
    fn open(dir: PathBuf, habit: Habit, seed: u64) -> Self {
        let recycle = if habit == Habit::Recycling { 4 } else { 0 };
        let options = format!("[DBOptions]\n  recycle_log_file_num={recycle}\n");
        std::fs::write(dir.join("OPTIONS-000001"), options).unwrap();
        std::fs::write(dir.join("LOCK"), "").unwrap();
        let log = Log { number: 3, file: new_file(&dir.join("000003.log")), bytes: Vec::new(), from: 0 };
        let manifest = (2, new_file(&dir.join("MANIFEST-000002")), Vec::new());
        let mut work = Self {
            dir,
            habit,
            random: StdRng::seed_from_u64(seed),
            next_record: 0,
            next_number: 4,
            log,
            waiting: VecDeque::new(),
            free: Vec::new(),
            tables: Vec::new(),
            manifest,
            edits: 0,
            records_in_log: 100,
            prepared: None,
        };
        work.write_edit(|e| {
            e.number(2, 3).number(3, 4).number(4, 0);
        });
        std::fs::write(work.dir.join("CURRENT"), "MANIFEST-000002\n").unwrap();
        work
    }

    fn path(&self, number: u64, ending: &str) -> PathBuf {
        self.dir.join(format!("{number:06}.{ending}"))
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    fn step(&mut self) {
        self.write_record();
        if self.next_record - self.log.from >= self.records_in_log {
            self.switch_log();
        }
        if self.habit.prepares_logs() {
            std::thread::sleep(Duration::from_micros(150));
            let many = if self.habit == Habit::ManyLogs { 30 } else { 4 };
            if self.waiting.len() > many {
                (0..many).for_each(|_| self.flush());
            }
        } else if self.waiting.len() > self.random.random_range(0..4) && self.random.random_bool(0.05) {
            self.flush();
        }
        if self.tables.len() > 8 {
            self.compact();
        }
        if self.edits > 40 {
            self.roll_over();
        }
        if self.random.random_bool(0.1) {
            std::thread::sleep(Duration::from_micros(300));
        }
    }

    fn write_record(&mut self) {
        let mut payload = self.next_record.to_be_bytes().to_vec();
        payload.resize(8 + self.random.random_range(0..400), 0);
        let number = u32::try_from(self.log.number).unwrap();
        let before = self.log.bytes.len();
        append(&mut self.log.bytes, &payload, (self.habit == Habit::Recycling).then_some(number));
        self.log.file.write_all_at(&self.log.bytes[before..], before as u64).unwrap();
        self.next_record += 1;
    }

    fn switch_log(&mut self) {
        self.records_in_log = match self.habit {
            Habit::ManyLogs => 40,
            _ => self.random.random_range(20..300),
        };
        let number = self.prepared.take().unwrap_or_else(|| self.number());
        let path = self.path(number, "log");
        if self.habit.prepares_logs() {
            let next = self.number();
            new_file(&self.path(next, "log"));
            self.prepared = Some(next);
        }
        let file = match self.free.pop() {
            None if path.exists() => File::options().write(true).open(&path).unwrap(),
            Some(old) => {
                let file = File::options().write(true).open(self.path(old, "log")).unwrap();
                std::fs::rename(self.path(old, "log"), &path).unwrap();
                file
            }
            None => new_file(&path),
        };
        let log = Log { number, file, bytes: Vec::new(), from: self.next_record };
        self.waiting.push_back(std::mem::replace(&mut self.log, log));
    }

    fn flush(&mut self) {
        let log = self.waiting.pop_front().unwrap();
        let next = self.waiting.front().unwrap_or(&self.log);
        let (to, oldest) = (next.from, next.number);
        let table = self.write_table(vec![(log.from, to)]);
        let (number, size, _) = self.tables.last().unwrap();
        let (number, size) = (*number, *size);
        assert_eq!(number, table);
        self.write_edit(|e| {
            e.number(2, oldest).table_2(0, number, size);
        });
        if self.habit == Habit::Recycling && self.free.len() < 3 {
            self.free.push(log.number);
        } else {
            self.delete(&self.path(log.number, "log"));
        }
    }

    fn write_table(&mut self, ranges: Vec<(u64, u64)>) -> u64 {
        let number = self.number();
        let mut bytes = (ranges.len() as u64).to_be_bytes().to_vec();
        for (from, to) in &ranges {
            bytes.extend(from.to_be_bytes());
            bytes.extend(to.to_be_bytes());
        }
        bytes.resize(bytes.len() + self.random.random_range(0..5000), 7);
        std::fs::write(self.path(number, "sst"), &bytes).unwrap();
        self.tables.push((number, bytes.len() as u64, ranges));
        number
    }

    fn compact(&mut self) {
        let inputs: Vec<_> = self.tables.drain(..self.random.random_range(2..8)).collect();
        let mut ranges: Vec<_> = inputs.iter().flat_map(|(.., ranges)| ranges).copied().collect();
        ranges.sort_unstable();
        ranges.dedup_by(|next, range| {
            let joins = next.0 <= range.1;
            if joins {
                range.1 = range.1.max(next.1);
            }
            joins
        });
        let number = self.write_table(ranges);
        let size = self.tables.last().unwrap().1;
        self.write_edit(|e| {
            inputs.iter().for_each(|(input, ..)| {
                e.deleted(0, *input);
            });
            e.table_2(0, number, size);
        });
        for (input, ..) in inputs {
            self.delete(&self.path(input, "sst"));
        }
    }

    fn delete(&mut self, path: &Path) {
        if self.habit != Habit::DeletingSlowly {
            return std::fs::remove_file(path).unwrap();
        }
        let trash = path.with_extension("trash");
        std::fs::rename(path, &trash).unwrap();
        let file = File::options().write(true).open(&trash).unwrap();
        let meta = file.metadata().unwrap();
        if meta.nlink() == 1 {
            file.set_len(meta.len() / 2).unwrap();
        }
        std::fs::remove_file(trash).unwrap();
    }

    fn write_edit(&mut self, build: impl FnOnce(&mut EditBytes)) {
        let mut edit = EditBytes::default();
        build(&mut edit);
        let (_, file, bytes) = &mut self.manifest;
        let before = bytes.len();
        append(bytes, edit.as_bytes(), None);
        file.write_all_at(&bytes[before..], before as u64).unwrap();
        self.edits += 1;
    }

    fn roll_over(&mut self) {
        let number = self.number();
        let file = new_file(&self.dir.join(format!("MANIFEST-{number:06}")));
        let (old, ..) = std::mem::replace(&mut self.manifest, (number, file, Vec::new()));
        let oldest = self.waiting.front().unwrap_or(&self.log).number;
        let (tables, next) = (self.tables.clone(), self.next_number);
        self.write_edit(|e| {
            e.number(2, oldest).number(3, next).number(4, 0);
            tables.iter().for_each(|(table, size, _)| {
                e.table_2(0, *table, *size);
            });
        });
        let temporary = self.path(number, "dbtmp");
        std::fs::write(&temporary, format!("MANIFEST-{number:06}\n")).unwrap();
        std::fs::rename(temporary, self.dir.join("CURRENT")).unwrap();
        std::fs::remove_file(self.dir.join(format!("MANIFEST-{old:06}"))).unwrap();
        self.edits = 0;
    }
}

fn new_file(path: &Path) -> File {
    File::create_new(path).unwrap()
}

/// Whether it is not over yet. However fast or slow the machine is: what is waited for comes several times a second.
fn a_minute() -> impl Fn() -> bool {
    let clock = SystemClock::new();
    let end = clock.monotonic() + Duration::from_mins(1);
    move || clock.monotonic() < end
}

#[test]
fn every_image_of_a_busy_engine_is_an_exact_prefix() {
    for (habit, seed) in
        [(Habit::Plain, 1), (Habit::Recycling, 2), (Habit::DeletingSlowly, 3), (Habit::PreparingLogs, 4)]
    {
        let engine = BusyEngine::start(habit, seed);
        let surroundings = Surroundings::default();
        let mut attempts = 0;
        for turn in 0..40 {
            let pace = if turn % 2 == 0 { Sabotage::None } else { Sabotage::Slowly };
            match engine.capture(pace, &surroundings) {
                Verdict::Exact(more) => attempts += more,
                Verdict::Wrong(wrong) => panic!("{habit:?}, capture {turn}: {wrong}"),
                Verdict::Refused(error) => panic!("{habit:?}, capture {turn}: {error}"),
            }
        }
        let moved = habit == Habit::PreparingLogs || attempts > 40;
        assert!(moved, "{habit:?}: nothing ever moved, so nothing was tested");
        let left: Vec<_> =
            std::fs::read_dir(engine.root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["db"], "{habit:?}: nothing is left beside the source");
    }
}

/// While one log after the other is taken, the engine goes on to the next, which may be listed already: who takes the oldest first has a hole then.
#[test]
fn logs_that_are_written_to_and_left_while_others_are_taken_leave_no_hole() {
    let engine = BusyEngine::start(Habit::ManyLogs, 7);
    let surroundings = Surroundings::default();
    for turn in 0..100 {
        match engine.capture(Sabotage::Slowly, &surroundings) {
            Verdict::Exact(_) => {}
            Verdict::Wrong(wrong) => panic!("capture {turn}: {wrong}"),
            Verdict::Refused(error) => panic!("capture {turn}: {error}"),
        }
    }
}

#[test]
fn each_known_mistake_shows() {
    for (sabotage, habit) in [
        (Sabotage::NoSecondLook, Habit::Plain),
        (Sabotage::LogsOldestFirst, Habit::PreparingLogs),
        (Sabotage::RecycledLogsLate, Habit::Recycling),
        (Sabotage::HandlesInsteadOfLinks, Habit::DeletingSlowly),
    ] {
        let engine = BusyEngine::start(habit, 5);
        let surroundings = Surroundings::default();
        let in_time = a_minute();
        let mut captures =
            std::iter::repeat_with(|| engine.capture(sabotage, &surroundings)).take_while(|_| in_time());
        assert!(captures.any(|verdict| matches!(verdict, Verdict::Wrong(_))), "{sabotage:?} went unnoticed");
    }
}

#[test]
fn a_source_that_never_stands_still_is_an_error_that_names_what_moved() {
    let engine = BusyEngine::start(Habit::Plain, 5);
    let source = Source { engine: Engine::RocksDb, path: engine.dir() };
    let options = CaptureOptions { deadline: Duration::ZERO, ..CaptureOptions::default() };
    let surroundings = Surroundings::default();
    // It moves a few times a second; a capture takes less than a millisecond.
    let in_time = a_minute();
    let mut named = false;
    while !named {
        assert!(in_time(), "a minute of captures of a busy engine without a single move");
        let result = surroundings.with(|context| capture_with(&source, &options, context, Sabotage::None));
        match result {
            Err(CaptureError::TooBusy { moved, .. }) => named |= !moved.is_empty(),
            Err(other) => panic!("{other}"),
            Ok(_) => {}
        }
    }
}

#[test]
fn a_source_that_is_removed_meanwhile_vanishes_and_is_not_called_corrupt() {
    let engine = BusyEngine::start(Habit::Plain, 6);
    let source = Source { engine: Engine::RocksDb, path: engine.dir() };
    let surroundings = Surroundings::default();
    let dir = engine.dir();
    drop_engine_and_keep(engine, |_root| {
        let began = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !began.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                let _ = std::fs::remove_file(dir.join("CURRENT"));
            });
            let in_time = a_minute();
            while in_time() {
                let result = surroundings.with(|context| {
                    capture_with(&source, &CaptureOptions::default(), context, Sabotage::None)
                });
                began.store(true, Ordering::SeqCst);
                match result {
                    Ok(_) => {}
                    Err(CaptureError::Vanished { .. } | CaptureError::NotADatabase { .. }) => return,
                    Err(other) => panic!("{other}"),
                }
            }
            panic!("a database without CURRENT was captured");
        });
    });
}

/// Stops the engine and goes on with its directory.
fn drop_engine_and_keep(mut engine: BusyEngine, work: impl FnOnce(&Path)) {
    engine.stop.store(true, Ordering::SeqCst);
    engine.thread.take().unwrap().join().unwrap();
    work(engine.root.path());
}
