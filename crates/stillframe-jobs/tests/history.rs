//! The history as a file: what it remembers, what it survives.
#![expect(clippy::unwrap_used, reason = "the functions that the tests share are tests too")]

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::Connection;
use serde_json::json;
use stillframe_jobs::{
    Deadlines, EnterError, History, HistoryError, JobOptions, Limit, Liveness, Phase, Progress, State,
    StopReason,
};
use stillframe_storage::{Clock, SystemClock};

#[derive(Debug, Default)]
struct ManualClock(Mutex<Duration>);

impl ManualClock {
    fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(1_700_000_000).unwrap() + self.monotonic()
    }
    fn monotonic(&self) -> Duration {
        *self.0.lock().unwrap()
    }
}

fn open(path: &Path) -> History {
    History::open(path, Arc::new(SystemClock::new())).unwrap()
}

/// Heartbeats come once a second; waits for one to have done what is expected.
fn eventually(what: &str, done: impl Fn() -> bool) {
    for _ in 0..400 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    panic!("never happened: {what}");
}

fn states(history: &History, job: stillframe_jobs::JobId) -> Vec<&'static str> {
    history.get(job).unwrap().unwrap().history.iter().map(|(state, _)| state.name()).collect()
}

#[test]
fn a_job_is_remembered_with_every_state_its_numbers_and_its_outcome() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state/jobs.db");
    let clock = Arc::new(ManualClock::default());
    let history = History::open(&path, clock.clone()).unwrap();
    let job = history.start("create", "rocksdb:/db");
    let id = job.id().unwrap();
    for phase in [Phase::Capturing, Phase::Transferring, Phase::Sealing] {
        clock.advance(Duration::from_secs(2));
        job.enter(phase).unwrap();
        if phase == Phase::Transferring {
            job.progress(&Progress {
                files_done: 3,
                files_total: Some(4),
                bytes_done: 700,
                bytes_total: Some(1000),
                ..Progress::new(phase)
            });
        }
    }
    job.succeed(json!({ "backup": "abc" }));

    let record = open(&path).get(id).unwrap().unwrap();
    assert_eq!((record.kind.as_str(), record.subject.as_str()), ("create", "rocksdb:/db"));
    assert_eq!(record.state, State::Succeeded);
    assert_eq!(states(&history, id), ["started", "capturing", "transferring", "sealing", "succeeded"]);
    let times: Vec<_> = record.history.iter().map(|(_, at)| at.as_second() - 1_700_000_000).collect();
    assert_eq!(times, [0, 2, 4, 6, 6]);
    assert_eq!(record.outcome, Some(json!({ "backup": "abc" })));
    assert_eq!(record.fraction.to_bits(), 1.0_f64.to_bits());
    assert_eq!(record.ended, Some(record.started + Duration::from_secs(6)));
    assert_eq!((&record.failure, record.deadline), (&None, None));
    assert_eq!(record.liveness(), Liveness::Alive);
}

#[test]
fn numbers_and_heartbeat_of_a_running_job_are_seen_by_another_handle() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.db");
    let (writer, reader) = (open(&path), open(&path));
    let job = writer.start("verify", "all");
    let id = job.id().unwrap();
    job.enter(Phase::Transferring).unwrap();
    let first = reader.get(id).unwrap().unwrap().heartbeat;
    job.progress(&Progress { bytes_done: 42, bytes_total: Some(100), ..Progress::new(Phase::Transferring) });
    eventually("numbers arrive without another call", || {
        let record = reader.get(id).unwrap().unwrap();
        record.progress.bytes_done == 42 && record.heartbeat > first
    });
    // Opening again repairs nothing: the owner lives.
    assert_eq!(open(&path).opening().repaired, []);
    assert_eq!(reader.get(id).unwrap().unwrap().state, State::Working(Phase::Transferring));
    job.succeed(json!(null));
}

#[test]
fn two_handles_write_at_once_and_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.db");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let path = &path;
            scope.spawn(move || {
                let history = open(path);
                for number in 0..25 {
                    let job = history.start("create", &format!("{thread}/{number}"));
                    assert!(job.id().is_some());
                    job.enter(Phase::Transferring).unwrap();
                    job.succeed(json!(number));
                }
            });
        }
    });
    let all = open(&path).list(1000).unwrap();
    assert_eq!(all.len(), 100);
    assert!(all.iter().all(|record| record.state == State::Succeeded && record.history.len() == 3));
    assert!(all.windows(2).all(|pair| pair[0].id > pair[1].id), "newest first");
    assert_eq!(open(&path).list(3).unwrap(), all[..3]);
}

#[test]
fn a_job_that_is_dropped_is_recorded_as_failed() {
    let history = History::in_memory(Arc::new(SystemClock::new())).unwrap();
    let job = history.start("restore", "latest");
    let id = job.id().unwrap();
    drop(job);
    let record = history.get(id).unwrap().unwrap();
    assert_eq!(record.state, State::Failed);
    let failure = record.failure.unwrap();
    assert_eq!(failure.kind, "no-outcome");
    assert!(failure.text.contains("ended without an outcome"), "{}", failure.text);
}

#[test]
fn a_failure_keeps_its_kind_and_text_and_where_it_happened() {
    let history = History::in_memory(Arc::new(SystemClock::new())).unwrap();
    let job = history.start("create", "x");
    let id = job.id().unwrap();
    job.enter(Phase::Capturing).unwrap();
    job.fail("too-busy", "CURRENT moved 50 times");
    let record = history.get(id).unwrap().unwrap();
    assert_eq!(states(&history, id), ["started", "capturing", "failed"]);
    assert_eq!(record.progress.phase, Phase::Capturing);
    let failure = record.failure.unwrap();
    assert_eq!((failure.kind.as_str(), failure.text.as_str()), ("too-busy", "CURRENT moved 50 times"));
}

#[test]
fn cancelling_is_idempotent_and_cancelled_comes_only_from_the_owner() {
    let history = History::in_memory(Arc::new(SystemClock::new())).unwrap();
    let job = history.start("create", "x");
    let id = job.id().unwrap();
    job.enter(Phase::Transferring).unwrap();
    let canceller = job.canceller();
    canceller.cancel();
    canceller.cancel();
    job.cancel();
    assert!(job.token().is_cancelled());
    assert_eq!(job.state(), State::Cancelling);
    assert_eq!(job.enter(Phase::Sealing), Err(EnterError::Stopping(StopReason::Cancelled)));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(history.get(id).unwrap().unwrap().state, State::Cancelling, "tasks may still run");
    assert_eq!(job.cancelled(), State::Cancelled);
    canceller.cancel();
    assert_eq!(states(&history, id), ["started", "transferring", "cancelling", "cancelled"]);
}

#[test]
fn cancelling_the_bare_token_shows_in_the_history_too() {
    let history = History::in_memory(Arc::new(SystemClock::new())).unwrap();
    let job = history.start("create", "x");
    let id = job.id().unwrap();
    job.token().clone().cancel();
    eventually("the heartbeat notices", || history.get(id).unwrap().unwrap().state == State::Cancelling);
    assert_eq!(job.stop_reason(), Some(StopReason::Cancelled));
    job.cancelled();
}

#[test]
fn a_cancel_that_comes_too_late_does_not_deny_the_result() {
    let history = History::in_memory(Arc::new(SystemClock::new())).unwrap();
    let job = history.start("create", "x");
    let id = job.id().unwrap();
    job.enter(Phase::Sealing).unwrap();
    job.cancel();
    job.succeed(json!({ "sealed": true }));
    assert_eq!(history.get(id).unwrap().unwrap().state, State::Succeeded);
}

#[test]
fn phases_that_go_back_repeat_or_are_not_the_jobs_own_are_refused() {
    let history = History::in_memory(Arc::new(SystemClock::new())).unwrap();
    let options = JobOptions { phases: vec![Phase::Transferring], ..JobOptions::default() };
    let job = history.start_with("verify", "x", &options);
    assert!(matches!(job.enter(Phase::Capturing), Err(EnterError::Illegal { .. })), "not its own");
    job.enter(Phase::Transferring).unwrap();
    for phase in Phase::ALL {
        let error = job.enter(phase).unwrap_err();
        assert_eq!(error, EnterError::Illegal { from: State::Working(Phase::Transferring), to: phase });
    }
    job.succeed(json!(null));
}

#[test]
fn a_phase_without_progress_is_stopped_at_its_deadline_and_fails_with_its_name() {
    let clock = Arc::new(ManualClock::default());
    let history = History::in_memory(clock.clone()).unwrap();
    let limit = Duration::from_mins(30);
    let deadlines = Deadlines { transferring: Limit::WithoutProgress(limit), ..Deadlines::default() };
    let options = JobOptions { deadlines, ..JobOptions::default() };
    let job = history.start_with("create", "x", &options);
    let id = job.id().unwrap();
    job.enter(Phase::Transferring).unwrap();
    // Slow, but not stuck.
    for step in 1..=10 {
        clock.advance(Duration::from_mins(20));
        job.progress(&Progress { bytes_done: step, ..Progress::new(Phase::Transferring) });
    }
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(job.stop_reason(), None);
    assert!(!history.get(id).unwrap().unwrap().overdue(clock.now()));

    clock.advance(Duration::from_mins(31));
    // The same number again is no progress.
    job.progress(&Progress { bytes_done: 10, ..Progress::new(Phase::Transferring) });
    eventually("the heartbeat stops it", || job.token().is_cancelled());
    let state = State::Working(Phase::Transferring);
    assert_eq!(job.stop_reason(), Some(StopReason::Deadline { state, limit, is_progress: true }));
    assert_eq!(job.cancelled(), State::Failed);
    let failure = history.get(id).unwrap().unwrap().failure.unwrap();
    assert_eq!(failure.kind, "deadline");
    assert!(failure.text.contains("transferring") && failure.text.contains("30 minutes"), "{}", failure.text);
}

#[test]
fn rows_of_the_dead_are_repaired_and_rows_of_the_living_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.db");
    let history = open(&path);
    let mut sleeper = Command::new("sleep").arg("600").spawn().unwrap();
    let ours = history.start("create", "ours");
    let theirs = history.start("create", "theirs");
    let reused = history.start("create", "a pid that was used again");
    let rebooted = history.start("create", "before the reboot");
    let id = |job: &stillframe_jobs::Job| job.id().unwrap();
    theirs.enter(Phase::Transferring).unwrap();
    let ids = [id(&theirs), id(&reused), id(&rebooted)];
    let our_id = id(&ours);
    // Their owners must not write any more: what they are now is put there by hand.
    for job in [theirs, reused, rebooted] {
        job.succeed(json!(null));
    }
    let raw = Connection::open(&path).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", sleeper.id())).unwrap();
    let since: i64 = stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap().parse().unwrap();
    raw.execute_batch(
        "UPDATE jobs SET state = 'transferring', ended_ms = NULL, outcome = NULL WHERE subject <> 'ours'",
    )
    .unwrap();
    raw.execute(
        "UPDATE jobs SET owner_pid = ?1, owner_start = ?2 WHERE id = ?3",
        (sleeper.id(), since, ids[0].get()),
    )
    .unwrap();
    raw.execute("UPDATE jobs SET owner_start = owner_start - 1 WHERE id = ?1", [ids[1].get()]).unwrap();
    raw.execute("UPDATE jobs SET owner_boot = 'earlier' WHERE id = ?1", [ids[2].get()]).unwrap();

    // The sleeper lives: its row stays.
    assert_eq!(open(&path).opening().repaired, ids[1..]);
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert_eq!(open(&path).opening().repaired, ids[..1]);
    assert_eq!(open(&path).opening().repaired, [], "once is enough");

    let texts: Vec<_> = ids
        .iter()
        .map(|id| history.get(*id).unwrap().unwrap())
        .map(|record| {
            assert_eq!((record.state, record.outcome), (State::Failed, None));
            assert_eq!(record.history.last().unwrap().0, State::Failed);
            let failure = record.failure.unwrap();
            assert_eq!(failure.kind, "owner-gone");
            failure.text
        })
        .collect();
    assert!(texts.iter().all(|text| text.contains("its process ended while transferring")), "{texts:?}");
    assert!(texts[0].contains(&sleeper.id().to_string()), "{texts:?}");
    assert!(texts[2].contains("started anew"), "{texts:?}");
    assert_eq!(history.get(our_id).unwrap().unwrap().state, State::Working(Phase::Started));
    ours.succeed(json!(null));
}

#[test]
fn an_owner_that_cannot_be_seen_is_given_up_only_after_a_long_silence_and_may_take_its_row_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.db");
    let history = open(&path);
    let job = history.start("create", "in a container");
    let id = job.id().unwrap();
    let raw = Connection::open(&path).unwrap();
    raw.busy_timeout(Duration::from_secs(5)).unwrap();
    raw.execute("UPDATE jobs SET owner_namespace = 'pid:[1]'", []).unwrap();
    assert_eq!(open(&path).opening().repaired, []);

    let later = Arc::new(ManualClock::default());
    later.advance(
        SystemClock::new().now().duration_since(later.now()).unsigned_abs() + Duration::from_hours(1),
    );
    assert_eq!(History::open(&path, later).unwrap().opening().repaired, [id]);
    eventually("the living owner says so", || {
        history.get(id).unwrap().unwrap().state == State::Working(Phase::Started)
    });
    assert_eq!(states(&history, id), ["started"]);
    assert_eq!(history.get(id).unwrap().unwrap().failure, None);
    job.succeed(json!(null));
    assert_eq!(history.get(id).unwrap().unwrap().state, State::Succeeded);
}

#[test]
fn a_damaged_history_is_set_aside_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.db");
    let noise: Vec<u8> = (0..8192_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&path, &noise).unwrap();
    std::fs::write(dir.path().join("jobs.db-wal"), "of the damaged one").unwrap();
    let history = open(&path);
    let aside = history.opening().set_aside.clone().unwrap();
    assert_eq!(std::fs::read(&aside.path).unwrap(), noise, "nothing is thrown away");
    assert!(!aside.reason.is_empty());
    history.start("create", "x").succeed(json!(null));
    assert_eq!(open(&path).list(10).unwrap().len(), 1);
    assert_eq!(open(&path).opening().set_aside, None);
}

#[test]
fn a_history_with_a_damaged_page_or_without_a_table_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.db");
    for number in 0..200 {
        open(&path).start("create", &format!("{number} {}", "x".repeat(200))).succeed(json!(null));
    }
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    drop(connection);
    let mut bytes = std::fs::read(&path).unwrap();
    assert!(bytes.len() > 5 * 4096);
    bytes[3 * 4096..4 * 4096].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    assert!(open(&path).opening().set_aside.is_some());

    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("DROP TABLE staging_roots").unwrap();
    drop(connection);
    let history = open(&path);
    assert!(history.opening().set_aside.as_ref().unwrap().reason.contains("staging_roots"));
    history.note_staging(Path::new("/x")).unwrap();
}

#[test]
fn another_programs_database_and_a_newer_history_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.db");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE precious (x)").unwrap();
    let error = History::open(&path, Arc::new(SystemClock::new())).unwrap_err();
    assert!(matches!(error, HistoryError::Foreign { .. }), "{error}");

    let path = dir.path().join("newer.db");
    drop(open(&path));
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 9).unwrap();
    let error = History::open(&path, Arc::new(SystemClock::new())).unwrap_err();
    assert!(matches!(error, HistoryError::Newer { found: 9, .. }), "{error}");
    assert!(error.to_string().contains("newer.db"), "{error}");
}

#[test]
fn a_history_that_vanishes_or_is_locked_does_not_stop_the_job() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.db");
    let history = open(&path);
    let raw = Connection::open(&path).unwrap();
    raw.execute_batch("DROP TABLE transitions; DROP TABLE jobs").unwrap();
    let job = history.start("create", "x");
    assert_eq!(job.id(), None);
    job.enter(Phase::Transferring).unwrap();
    assert_eq!(job.state(), State::Working(Phase::Transferring));
    job.succeed(json!(null));
}

#[test]
fn a_place_that_cannot_hold_a_history_is_an_error_that_names_it_and_memory_takes_over() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let clock = Arc::new(SystemClock::new());
    let error = History::open(&file.join("jobs.db"), clock.clone()).unwrap_err();
    assert!(matches!(error, HistoryError::Io { .. }), "{error}");
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    let history = History::in_memory(clock).unwrap();
    let job = history.start("create", "x");
    assert!(job.id().is_some());
    job.succeed(json!(null));
}

#[test]
fn an_opening_that_another_process_holds_up_gives_up_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.db");
    drop(open(&path));
    let lock = std::fs::File::open(dir.path().join("jobs.db.lock")).unwrap();
    lock.lock().unwrap();
    let clock = SystemClock::new();
    let error = History::open(&path, Arc::new(clock)).unwrap_err();
    assert!(matches!(error, HistoryError::Busy { .. }), "{error}");
    assert!((9..60).contains(&clock.monotonic().as_secs()), "{:?}", clock.monotonic());
    lock.unlock().unwrap();
    drop(open(&path));
}

#[test]
fn staging_roots_are_remembered_until_they_are_forgotten_even_with_odd_names() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.db");
    let odd = Path::new(std::ffi::OsStr::from_bytes(b"/b/\xff\n"));
    let history = open(&path);
    for root in [Path::new("/b/2"), odd, Path::new("/b/2")] {
        history.note_staging(root).unwrap();
    }
    let other = open(&path);
    assert_eq!(other.staging_roots().unwrap(), [Path::new("/b/2"), odd]);
    other.forget_staging(odd).unwrap();
    other.forget_staging(odd).unwrap();
    assert_eq!(history.staging_roots().unwrap(), [Path::new("/b/2")]);
}

#[test]
fn the_history_is_for_its_user_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state/jobs.db");
    let history = open(&path);
    history.start("create", "secret place").succeed(json!(null));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    for entry in std::fs::read_dir(path.parent().unwrap()).unwrap() {
        let entry = entry.unwrap().path();
        assert_eq!(mode(&entry), 0o600, "{}", entry.display());
    }
}

#[test]
fn old_jobs_are_forgotten_but_never_running_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.db");
    let history = open(&path);
    let running = history.start("create", "running");
    let raw = Connection::open(&path).unwrap();
    raw.execute_batch(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500)
         INSERT INTO jobs (kind, subject, state, phase, owner_pid, started_ms, heartbeat_ms, ended_ms)
         SELECT 'create', i, 'succeeded', 'sealing', 1, 0, 0, 1 FROM n",
    )
    .unwrap();
    let all = open(&path).list(10_000).unwrap();
    assert_eq!(all.len(), 2001);
    assert_eq!(all[0].subject, "2500");
    assert_eq!(all.last().unwrap().subject, "running");
    running.succeed(json!(null));
}

#[test]
fn a_job_is_stopped_from_another_process_through_the_history() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.db");
    let (here, elsewhere) = (open(&path), open(&path));
    let job = here.start("create", "db");
    let id = job.id().unwrap();
    assert_eq!(here.get(id).unwrap().unwrap().cancel_requested, None);
    let asked = elsewhere.request_cancel(id).unwrap().unwrap();
    assert!(asked.cancel_requested.is_some() && asked.ended.is_none());
    eventually("the token is cancelled", || job.token().is_cancelled());
    assert_eq!(job.stop_reason(), Some(stillframe_jobs::StopReason::Cancelled));
    job.cancelled();
    assert_eq!(states(&elsewhere, id), ["started", "cancelling", "cancelled"]);
    // Too late changes nothing, and asking again keeps the first time.
    let after = elsewhere.request_cancel(id).unwrap().unwrap();
    assert_eq!((after.state.name(), after.cancel_requested), ("cancelled", asked.cancel_requested));
    assert_eq!(elsewhere.request_cancel("999".parse().unwrap()).unwrap(), None);
}

#[test]
fn a_history_of_the_format_before_is_taken_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.db");
    let id = {
        let history = open(&path);
        let job = history.start("create", "db");
        let id = job.id().unwrap();
        job.succeed(serde_json::Value::Null);
        id
    };
    let database = rusqlite::Connection::open(&path).unwrap();
    database.execute_batch("ALTER TABLE jobs DROP COLUMN cancel_ms; PRAGMA user_version = 1").unwrap();
    drop(database);
    let history = open(&path);
    assert_eq!(history.opening().set_aside, None);
    assert_eq!(history.get(id).unwrap().unwrap().state.name(), "succeeded");
}
