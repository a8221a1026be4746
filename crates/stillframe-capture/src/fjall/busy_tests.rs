//! Captures of databases that are written to as fast as can be; and captures that make known mistakes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions};

use tokio_util::sync::CancellationToken;

use super::sabotage::Sabotage;
use super::test_sample::{capture_sabotaged, keep, value};
use super::validate;
use crate::test_support::{again, child_argument, inventory};
use crate::{Role, Snapshot};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// Rows of one batch in each keyspace.
const PER: u64 = 3;
/// Batches over a passing keyspace and its permanent partner.
const CHURN_BATCHES: u64 = 20;

/// A database that is written to until it is dropped.
struct Busy {
    path: PathBuf,
    begun: Arc<AtomicU64>,
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    value_len: usize,
}

struct Load {
    separated: bool,
    churn: bool,
    value_len: usize,
    memtable: u64,
    pause: Duration,
}

impl Busy {
    fn start(path: &Path, load: &Load) -> Self {
        let db = Database::builder(path).worker_threads(2).open().unwrap();
        let options = || {
            let separation = load.separated.then(|| KvSeparationOptions::default().file_target_size(1 << 20));
            KeyspaceCreateOptions::default().max_memtable_size(u64::MAX).with_kv_separation(separation)
        };
        let keyspaces: Vec<Keyspace> = NAMES.iter().map(|name| db.keyspace(name, options).unwrap()).collect();
        let mut busy = Self {
            path: path.to_owned(),
            begun: Arc::default(),
            acknowledged: Arc::default(),
            stop: Arc::default(),
            threads: Vec::new(),
            value_len: load.value_len,
        };
        busy.write(db.clone(), keyspaces.clone(), load.pause);
        busy.rotate(keyspaces, load.memtable);
        if load.churn {
            busy.churn(db);
        }
        while busy.acknowledged.load(Ordering::SeqCst) < 200 {
            std::thread::sleep(Duration::from_millis(1));
        }
        busy
    }

    fn write(&mut self, db: Database, keyspaces: Vec<Keyspace>, pause: Duration) {
        let (begun, acknowledged, stop) = (self.begun.clone(), self.acknowledged.clone(), self.stop.clone());
        let value_len = self.value_len;
        self.threads.push(std::thread::spawn(move || {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                begun.store(n, Ordering::SeqCst);
                let mut batch = db.batch();
                for (keyspace, name) in keyspaces.iter().zip(NAMES) {
                    batch.insert(keyspace, "counter", n.to_be_bytes());
                    for j in 0..PER {
                        // Never the same slot twice: replay could repair a hole otherwise.
                        let slot = n * PER + j;
                        batch.insert(keyspace, slot.to_be_bytes(), value(slot, name, value_len));
                    }
                }
                batch.commit().unwrap();
                acknowledged.store(n, Ordering::SeqCst);
                std::thread::sleep(pause);
            }
        }));
    }

    /// The engine's own rotation can lock up for good when several keyspaces pass the limit at once.
    fn rotate(&mut self, keyspaces: Vec<Keyspace>, limit: u64) {
        let stop = self.stop.clone();
        self.threads.push(std::thread::spawn(move || {
            use lsm_tree::AbstractTree;
            while !stop.load(Ordering::Relaxed) {
                for keyspace in &keyspaces {
                    if keyspace.tree.active_memtable().size() > limit {
                        keyspace.rotate_memtable().unwrap();
                    }
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }));
    }

    /// Keyspaces that come and go, each row with a partner in a keyspace that stays.
    fn churn(&mut self, db: Database) {
        let stop = self.stop.clone();
        self.threads.push(std::thread::spawn(move || {
            let partner = db.keyspace("partner", KeyspaceCreateOptions::default).unwrap();
            let mut living = std::collections::VecDeque::new();
            let mut i = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                let passing = db.keyspace(&format!("tmp {i}"), KeyspaceCreateOptions::default).unwrap();
                for row in 0..CHURN_BATCHES {
                    let mut batch = db.batch();
                    batch.insert(&passing, row.to_be_bytes(), b"1");
                    batch.insert(&partner, [i.to_be_bytes(), row.to_be_bytes()].concat(), b"1");
                    batch.commit().unwrap();
                }
                living.push_back(passing);
                if living.len() > 5 {
                    db.delete_keyspace(living.pop_front().unwrap()).unwrap();
                }
                i += 1;
                std::thread::sleep(Duration::from_millis(60));
            }
        }));
    }

    fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }

    /// One capture, kept, checked, opened with the engine, and every row compared. Returns what is known of it, or what is wrong.
    fn round(&self, target: &Path, sabotage: Sabotage) -> Result<Snapshot, String> {
        let least = self.acknowledged.load(Ordering::SeqCst);
        let image = capture_sabotaged(&self.path, sabotage).map_err(|error| error.to_string())?;
        let most = self.begun.load(Ordering::SeqCst);
        let snapshot = keep(image, target);
        validate(target, &CancellationToken::new()).map_err(|error| error.to_string())?;
        let outcome = check_rows(target, self.value_len, least, most);
        std::fs::remove_dir_all(target).unwrap();
        outcome.map(|()| snapshot)
    }
}

/// Whether the database at `path` is the state after exactly some batch n with least ≤ n ≤ most.
fn check_rows(path: &Path, value_len: usize, least: u64, most: u64) -> Result<(), String> {
    let db = Database::builder(path).open().map_err(|error| error.to_string())?;
    let mut counters = Vec::new();
    for name in NAMES {
        if !db.keyspace_exists(name) {
            return Err(format!("keyspace {name} is missing"));
        }
        let keyspace =
            db.keyspace(name, KeyspaceCreateOptions::default).map_err(|error| error.to_string())?;
        let counter = keyspace.get("counter").unwrap().ok_or("no counter")?;
        let n = u64::from_be_bytes((*counter).try_into().unwrap());
        counters.push(n);
        let mut expected = PER..(n + 1) * PER;
        for row in keyspace.iter() {
            let (key, found) = row.into_inner().map_err(|error| error.to_string())?;
            if *key == *b"counter" {
                continue;
            }
            let slot = u64::from_be_bytes((*key).try_into().unwrap());
            if expected.next() != Some(slot) {
                return Err(format!("{name}: slot {slot} follows a hole, or is later than {n}"));
            }
            if *found != *value(slot, name, value_len) {
                return Err(format!("{name}: slot {slot} holds something else"));
            }
        }
        if let Some(slot) = expected.next() {
            return Err(format!("{name}: slots from {slot} on are missing, counter is {n}"));
        }
    }
    let n = counters[0];
    if counters.iter().any(|other| *other != n) {
        return Err(format!("counters differ: {counters:?}"));
    }
    if !(least..=most).contains(&n) {
        return Err(format!("state {n} is not between {least} and {most}"));
    }
    check_churn(&db)
}

/// A row of a passing keyspace and its partner were written in one batch.
fn check_churn(db: &Database) -> Result<(), String> {
    if !db.keyspace_exists("partner") {
        return Ok(());
    }
    let partner = db.keyspace("partner", KeyspaceCreateOptions::default).unwrap();
    let Some(last) = partner.last_key_value() else { return Ok(()) };
    let last = u64::from_be_bytes(last.key().unwrap()[..8].try_into().unwrap());
    for i in last.saturating_sub(4)..=last {
        let rows = partner.prefix(i.to_be_bytes()).count() as u64;
        let name = format!("tmp {i}");
        if !db.keyspace_exists(&name) {
            return Err(format!("{name} is missing, its partner has {rows} rows"));
        }
        let passing = db.keyspace(&name, KeyspaceCreateOptions::default).unwrap().len().unwrap() as u64;
        if passing != rows || (i < last && rows != CHURN_BATCHES) {
            return Err(format!("{name} has {passing} rows, its partner {rows}"));
        }
    }
    Ok(())
}

/// Captures for a while; every image must be exact. Prints the windows.
fn soak(load: &Load, rounds: u32) {
    let dir = tempfile::tempdir().unwrap();
    let busy = Busy::start(&dir.path().join("db"), load);
    let (mut windows, mut attempts) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let target = dir.path().join("image");
        let snapshot =
            busy.round(&target, Sabotage::None).unwrap_or_else(|wrong| panic!("round {round}: {wrong}"));
        windows.push(snapshot.window_us);
        attempts.push(snapshot.attempts);
        std::thread::sleep(Duration::from_millis(50));
    }
    let rows = busy.acknowledged.load(Ordering::SeqCst);
    busy.stop();
    windows.sort_unstable();
    attempts.sort_unstable();
    let middle = windows.len() / 2;
    println!(
        "{rounds} images exact of {rows} batches; window p50 {} us, max {} us; attempts p50 {}, max {}",
        windows[middle],
        windows[windows.len() - 1],
        attempts[middle],
        attempts[attempts.len() - 1]
    );
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["db"], "nothing of ours stays beside the source");
}

const PLAIN: Load = Load {
    separated: false,
    churn: false,
    value_len: 100,
    memtable: 256 << 10,
    pause: Duration::from_micros(100),
};

#[test]
fn images_of_a_busy_database_are_exact_prefixes() {
    soak(&PLAIN, 12);
}

#[test]
fn images_are_exact_while_keyspaces_come_and_go() {
    soak(&Load { churn: true, ..PLAIN }, 12);
}

#[test]
fn images_of_key_value_separated_trees_are_exact() {
    soak(
        &Load {
            separated: true,
            value_len: 2500,
            memtable: 2 << 20,
            pause: Duration::from_micros(400),
            ..PLAIN
        },
        8,
    );
}

#[test]
fn images_are_exact_across_journal_rotations() {
    // A journal of 64 MB is full after some 1300 batches.
    let load = Load { value_len: 4000, memtable: 8 << 20, pause: Duration::from_micros(200), ..PLAIN };
    let dir = tempfile::tempdir().unwrap();
    let busy = Busy::start(&dir.path().join("db"), &load);
    let mut newest = std::collections::BTreeSet::new();
    let mut rounds = 0;
    while newest.len() < 3 && rounds < 60 {
        let snapshot = busy.round(&dir.path().join("image"), Sabotage::None).unwrap();
        let journals = snapshot.files.iter().filter(|file| file.role == Role::Log);
        newest.extend(journals.map(|file| file.path.to_string()));
        rounds += 1;
    }
    busy.stop();
    assert!(newest.len() >= 3, "journals were rotated between captures: {newest:?}");
}

/// Captures a database with a mistake, and does `meanwhile` while the capture dawdles. Returns the opened image.
fn mistaken(dir: &Path, path: &Path, sabotage: Sabotage, meanwhile: impl FnOnce()) -> Database {
    let capturing = {
        let path = path.to_owned();
        std::thread::spawn(move || capture_sabotaged(&path, sabotage).unwrap())
    };
    while !path.with_extension("dawdling").exists() && !capturing.is_finished() {
        std::thread::sleep(Duration::from_millis(2));
    }
    meanwhile();
    std::fs::write(path.with_extension("go"), "").unwrap();
    let target = dir.join("image");
    keep(capturing.join().unwrap(), &target);
    validate(&target, &CancellationToken::new()).unwrap();
    Database::builder(&target).open().unwrap()
}

/// Whether rows are lost that were there before the capture began, while a journal is rotated and deleted during it.
fn rows_are_lost(sabotage: Sabotage) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let db = Database::builder(&path).open().unwrap();
    let keyspace = db.keyspace("rows", KeyspaceCreateOptions::default).unwrap();
    (0..100_u64).for_each(|n| keyspace.insert(n.to_be_bytes(), "before").unwrap());
    let image = mistaken(dir.path(), &path, sabotage, || {
        // One journal full, a flush that seals it, and one that lets it go.
        for n in 100..170_u64 {
            keyspace.insert(n.to_be_bytes(), value(n, "large", 1 << 20)).unwrap();
        }
        keyspace.rotate_memtable_and_wait().unwrap();
        keyspace.insert("after", "1").unwrap();
        keyspace.rotate_memtable_and_wait().unwrap();
        let first = path.join("0.jnl");
        for _ in 0..500 {
            if !first.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!first.exists(), "the journal was deleted");
    });
    let rows = image.keyspace("rows", KeyspaceCreateOptions::default).unwrap();
    let left = (0..100_u64).filter(|n| rows.contains_key(n.to_be_bytes()).unwrap()).count();
    left < 100
}

#[test]
fn without_a_second_look_at_the_pointers_rows_are_lost() {
    assert!(rows_are_lost(Sabotage::NoSecondLook));
    assert!(!rows_are_lost(Sabotage::None));
}

/// Whether the image holds half of a batch over an old keyspace and one that was made while the capture dawdled.
fn batch_over_a_new_keyspace_is_torn(sabotage: Sabotage) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let db = Database::builder(&path).open().unwrap();
    let old = db.keyspace("old", KeyspaceCreateOptions::default).unwrap();
    old.insert("before", "1").unwrap();
    let image = mistaken(dir.path(), &path, sabotage, || {
        let new = db.keyspace("new", KeyspaceCreateOptions::default).unwrap();
        let mut batch = db.batch();
        batch.insert(&old, "half", "1");
        batch.insert(&new, "half", "1");
        batch.commit().unwrap();
    });
    let has = |name: &str| {
        image.keyspace_exists(name)
            && image.keyspace(name, KeyspaceCreateOptions::default).unwrap().contains_key("half").unwrap()
    };
    assert!(image.keyspace("old", KeyspaceCreateOptions::default).unwrap().contains_key("before").unwrap());
    has("old") != has("new")
}

#[test]
fn journals_copied_after_the_window_tear_a_batch() {
    assert!(batch_over_a_new_keyspace_is_torn(Sabotage::LateJournals));
    assert!(!batch_over_a_new_keyspace_is_torn(Sabotage::None));
}

#[test]
fn ends_rounded_to_blocks_tear_a_batch() {
    assert!(batch_over_a_new_keyspace_is_torn(Sabotage::BlockRoundedEnds));
}

/// Commits batches `from..to` as [`Busy`] does, and flushes now and then.
fn write_some(db: &Database, from: u64, to: u64, value_len: usize, mut committed: impl FnMut(u64)) {
    let keyspaces: Vec<Keyspace> =
        NAMES.iter().map(|name| db.keyspace(name, KeyspaceCreateOptions::default).unwrap()).collect();
    for n in from..to {
        let mut batch = db.batch();
        for (keyspace, name) in keyspaces.iter().zip(NAMES) {
            batch.insert(keyspace, "counter", n.to_be_bytes());
            for slot in n * PER..(n + 1) * PER {
                batch.insert(keyspace, slot.to_be_bytes(), value(slot, name, value_len));
            }
        }
        batch.commit().unwrap();
        committed(n);
        if n % 97 == 0 {
            keyspaces[usize::try_from(n % 4).unwrap()].rotate_memtable().unwrap();
        }
    }
}

#[test]
fn images_are_exact_while_the_program_is_closed_and_opened_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let (acknowledged, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let program = std::thread::spawn({
        let (path, acknowledged, stop) = (path.clone(), acknowledged.clone(), stop.clone());
        move || {
            let mut next = 1;
            while !stop.load(Ordering::Relaxed) {
                let db = Database::builder(&path).worker_threads(2).open().unwrap();
                let to = next + 60;
                write_some(&db, next, to, 80, |n| acknowledged.store(n, Ordering::SeqCst));
                next = to;
            }
        }
    });
    while acknowledged.load(Ordering::SeqCst) < 100 {
        std::thread::sleep(Duration::from_millis(5));
    }
    for round in 0..25 {
        let least = acknowledged.load(Ordering::SeqCst);
        let target = dir.path().join("image");
        let image = capture_sabotaged(&path, Sabotage::None).unwrap();
        let most = acknowledged.load(Ordering::SeqCst) + 1;
        keep(image, &target);
        validate(&target, &CancellationToken::new()).unwrap_or_else(|error| panic!("round {round}: {error}"));
        check_rows(&target, 80, least, most).unwrap_or_else(|wrong| panic!("round {round}: {wrong}"));
        std::fs::remove_dir_all(&target).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    program.join().unwrap();
}

#[test]
fn a_killed_program_s_database_is_captured_with_all_that_it_acknowledged() {
    use std::io::{BufRead, BufReader, Write};
    let test = "fjall::busy_tests::a_killed_program_s_database_is_captured_with_all_that_it_acknowledged";
    if let Some(dir) = child_argument() {
        let db = Database::builder(dir.join("db")).worker_threads(2).open().unwrap();
        let first = db.keyspace(NAMES[0], KeyspaceCreateOptions::default).unwrap();
        let done = first.get("counter").unwrap().map_or(0, |n| u64::from_be_bytes((*n).try_into().unwrap()));
        let mut out = std::io::stdout();
        write_some(&db, done + 1, u64::MAX, 300, |n| writeln!(out, "done {n}").unwrap());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let mut acknowledged = 0;
    for round in 0..4_u64 {
        let mut child = again(test, dir.path()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut number = || lines.find_map(|line| line.strip_prefix("done ")?.parse::<u64>().ok());
        let until = acknowledged + 300 + round * 170;
        while acknowledged < until {
            acknowledged = number().unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        while let Some(n) = number() {
            acknowledged = n;
        }
        let before = inventory(&path);
        let target = dir.path().join("image");
        keep(capture_sabotaged(&path, Sabotage::None).unwrap(), &target);
        let released: Vec<_> =
            inventory(&path).into_iter().filter(|(path, now)| before.get(path) != Some(now)).collect();
        assert!(
            released.iter().all(|(path, _)| path.components().any(|part| part.as_os_str() == "tables")),
            "{released:?}"
        );
        validate(&target, &CancellationToken::new()).unwrap();
        check_rows(&target, 300, acknowledged, acknowledged + 1).unwrap();
        std::fs::remove_dir_all(&target).unwrap();
        assert_eq!(inventory(&path), before, "the source is as the dead program left it");
    }
}
