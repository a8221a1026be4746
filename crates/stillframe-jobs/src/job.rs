//! One running piece of work.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, params};
use stillframe_storage::Clock;
use tokio_util::sync::CancellationToken;

use crate::heartbeat::Heartbeat;
use crate::history::Store;
use crate::record::{JobFailure, JobId, signed};
use crate::{Deadlines, Limit, Owner, Phase, Progress, ProgressMeter, Reading, State};

/// How a job is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobOptions {
    /// The phases that it may enter; [`Phase::Started`] is understood.
    pub phases: Vec<Phase>,
    /// How long each may take.
    pub deadlines: Deadlines,
}

impl Default for JobOptions {
    fn default() -> Self {
        Self { phases: Phase::ALL.to_vec(), deadlines: Deadlines::default() }
    }
}

/// Why a job is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// Somebody asked for it.
    Cancelled,
    /// A state took too long.
    Deadline {
        /// The state.
        state: State,
        /// What it was allowed.
        limit: Duration,
        /// Since the last progress, however long it ran.
        is_progress: bool,
    },
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => f.write_str("cancelled"),
            Self::Deadline { state, limit, is_progress } => {
                write!(
                    f,
                    "stopped: {state} took longer than its limit of {}{}",
                    describe(*limit),
                    if *is_progress { " without progress" } else { "" }
                )
            }
        }
    }
}

/// Why a phase cannot be entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnterError {
    /// The job is to stop: join what runs, clean up, call [`Job::cancelled`].
    #[error("the job is being cancelled")]
    Stopping(StopReason),
    /// A mistake in the program: phases do not go back and do not repeat, and this one must be among the job's.
    #[error("a job that is {from} cannot go on to {to}")]
    Illegal {
        /// Where it stands.
        from: State,
        /// Where it was to go.
        to: Phase,
    },
}

/// One running piece of work. It ends with [`Job::succeed`], [`Job::fail`] or [`Job::cancelled`]; one that is dropped without
/// is recorded as failed.
///
/// While it lives, a thread of its own writes a heartbeat and the newest numbers about once a second. Its methods write to
/// the history at once and may wait for another process's write (5 s at most); [`Job::progress`] and [`Job::token`] never do.
#[derive(Debug)]
pub struct Job {
    shared: Arc<Shared>,
    heartbeat: Heartbeat,
}

/// Cancels a job from elsewhere: a signal handler, a route.
#[derive(Debug, Clone)]
pub struct Canceller(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    id: Option<JobId>,
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    token: CancellationToken,
    options: JobOptions,
    /// The last write failed, which was said.
    unwritable: AtomicBool,
    /// Never held while waiting for the history; who needs both takes the history's lock first.
    live: Mutex<Live>,
}

#[derive(Debug)]
struct Live {
    state: State,
    /// On the monotonic clock.
    entered: Duration,
    progressed: Duration,
    stop: Option<StopReason>,
    meter: ProgressMeter,
    transitions: Vec<(State, Timestamp)>,
    failure: Option<JobFailure>,
    outcome: Option<String>,
    overdue_was_said: bool,
}

/// Copied under the lock, written without it.
struct Snapshot {
    state: State,
    reading: Reading,
    transitions: Vec<(State, Timestamp)>,
    failure: Option<JobFailure>,
    outcome: Option<String>,
    now: Timestamp,
    deadline: Option<Timestamp>,
}

impl Job {
    pub(crate) fn start(
        store: Arc<Store>,
        clock: Arc<dyn Clock>,
        kind: &str,
        subject: &str,
        options: &JobOptions,
    ) -> Self {
        let now = clock.now();
        let inserted = insert(&store.lock(), kind, subject, now);
        if let Err(error) = &inserted {
            tracing::warn!(%error, "a job cannot be recorded in the history; it runs all the same");
        }
        let state = State::Working(Phase::Started);
        let entered = clock.monotonic();
        let live = Live {
            state,
            entered,
            progressed: entered,
            stop: None,
            meter: ProgressMeter::new(Arc::clone(&clock), &options.phases),
            transitions: vec![(state, now)],
            failure: None,
            outcome: None,
            overdue_was_said: false,
        };
        let shared = Arc::new(Shared {
            id: inserted.ok(),
            store,
            clock,
            token: CancellationToken::new(),
            options: options.clone(),
            unwritable: AtomicBool::new(false),
            live: Mutex::new(live),
        });
        shared.write();
        let beating = Arc::clone(&shared);
        let heartbeat = Heartbeat::start(move || beating.beat());
        Self { shared, heartbeat }
    }

    /// Its number in the history; none if it could not be written there.
    pub fn id(&self) -> Option<JobId> {
        self.shared.id
    }

    /// What every task of the job looks at, at every chunk.
    pub fn token(&self) -> &CancellationToken {
        &self.shared.token
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.shared.live().state
    }

    /// Why it is to stop, if it is. Cancelling the token from anywhere counts.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.shared.notice_stop(&mut self.shared.live());
        self.shared.live().stop
    }

    /// Goes on to the next phase.
    pub fn enter(&self, phase: Phase) -> Result<(), EnterError> {
        {
            let mut live = self.shared.live();
            self.shared.notice_stop(&mut live);
            if let Some(reason) = live.stop {
                return Err(EnterError::Stopping(reason));
            }
            let next = State::Working(phase);
            if !live.state.may_become(next) || !self.shared.options.phases.contains(&phase) {
                return Err(EnterError::Illegal { from: live.state, to: phase });
            }
            self.shared.go(&mut live, next);
            live.meter.update(&Progress::new(phase));
        }
        tracing::debug!(%phase, "a job goes on");
        self.shared.write();
        Ok(())
    }

    /// Takes new numbers and says what to show. They may come from any thread in any order; numbers of a phase that the job is
    /// not in change nothing.
    pub fn progress(&self, progress: &Progress) -> Reading {
        let mut live = self.shared.live();
        if live.state == State::Working(progress.phase) && live.meter.update(progress) {
            live.progressed = self.shared.clock.monotonic();
        }
        live.meter.read()
    }

    /// What to show now.
    pub fn reading(&self) -> Reading {
        self.shared.live().meter.read()
    }

    /// Asks it to stop: cancels the token. Asking again changes nothing.
    pub fn cancel(&self) {
        self.canceller().cancel();
    }

    /// A handle that can cancel it from elsewhere.
    pub fn canceller(&self) -> Canceller {
        Canceller(Arc::clone(&self.shared))
    }

    /// It did what it was asked; `outcome` is what it made. Also right after a cancel that came too late.
    pub fn succeed(mut self, outcome: serde_json::Value) {
        self.end(State::Succeeded, None, Some(outcome));
    }

    /// It failed: `kind` is a word for programs, `text` is for people. Everything it started must be joined.
    pub fn fail(mut self, kind: &str, text: &str) {
        self.end(State::Failed, Some((kind, text)), None);
    }

    /// It stopped before the end, as it was told: every task is joined and nothing temporary is left. To be called only then.
    /// Returns how that is recorded: cancelled, or failed where the reason was a deadline.
    pub fn cancelled(mut self) -> State {
        let reason = self.stop_reason();
        if let Some(reason @ StopReason::Deadline { .. }) = reason {
            self.end(State::Failed, Some(("deadline", &reason.to_string())), None);
            return State::Failed;
        }
        self.cancel();
        self.end(State::Cancelled, None, None);
        State::Cancelled
    }

    fn end(&mut self, state: State, failure: Option<(&str, &str)>, outcome: Option<serde_json::Value>) {
        // No beat may come after the last word.
        self.heartbeat.stop();
        {
            let mut live = self.shared.live();
            if !live.state.may_become(state) {
                return;
            }
            self.shared.go(&mut live, state);
            live.failure =
                failure.map(|(kind, text)| JobFailure { kind: kind.to_owned(), text: text.to_owned() });
            live.outcome = outcome.map(|outcome| outcome.to_string());
            if state == State::Succeeded {
                live.meter.finish();
            }
        }
        self.shared.write();
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.state().is_ended() {
            self.end(
                State::Failed,
                Some(("no-outcome", "it ended without an outcome: the program stopped working on it")),
                None,
            );
        }
    }
}

impl Canceller {
    /// Asks the job to stop: cancels its token. Asking again, or after the end, changes nothing.
    pub fn cancel(&self) {
        self.0.token.cancel();
        {
            let mut live = self.0.live();
            if !self.0.notice_stop(&mut live) {
                return;
            }
        }
        self.0.write();
    }
}

impl Shared {
    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn go(&self, live: &mut Live, state: State) {
        live.state = state;
        live.entered = self.clock.monotonic();
        live.progressed = live.entered;
        live.transitions.push((state, self.clock.now()));
    }

    /// Moves on to cancelling if the token was cancelled, by whomever. Returns whether that was news.
    fn notice_stop(&self, live: &mut Live) -> bool {
        if !self.token.is_cancelled() || !live.state.may_become(State::Cancelling) {
            return false;
        }
        live.stop.get_or_insert(StopReason::Cancelled);
        self.go(live, State::Cancelling);
        true
    }

    fn beat(&self) {
        if self.cancel_is_requested() {
            self.token.cancel();
        }
        {
            let mut live = self.live();
            self.notice_stop(&mut live);
            self.enforce_deadline(&mut live);
        }
        self.write();
    }

    /// Whether somebody asked for it through the history. One that cannot be read asks for nothing.
    fn cancel_is_requested(&self) -> bool {
        let Some(id) = self.id.filter(|_| !self.token.is_cancelled()) else { return false };
        let connection = self.store.lock();
        let asked = connection
            .prepare_cached("SELECT cancel_ms IS NOT NULL FROM jobs WHERE id = ?1")
            .and_then(|mut statement| statement.query_row([id.get()], |row| row.get(0)));
        asked.unwrap_or(false)
    }

    fn enforce_deadline(&self, live: &mut Live) {
        let Some(limit) = self.options.deadlines.of(live.state) else { return };
        if self.clock.monotonic() <= limit.passes_at(live.entered, live.progressed) {
            return;
        }
        match live.state {
            State::Working(_) => {
                tracing::warn!(state = %live.state, "a job takes longer than its limit and is being stopped");
                let is_progress = matches!(limit, Limit::WithoutProgress(_));
                live.stop =
                    Some(StopReason::Deadline { state: live.state, limit: limit.length(), is_progress });
                self.token.cancel();
                self.go(live, State::Cancelling);
            }
            _ if !live.overdue_was_said => {
                tracing::warn!("a job that was cancelled takes longer than its limit to stop");
                live.overdue_was_said = true;
            }
            _ => {}
        }
    }

    /// Writes the whole row, so that whatever was missed or overwritten is right again. The history's lock is taken first: an
    /// older picture never replaces a newer one.
    fn write(&self) {
        let Some(id) = self.id else { return };
        let mut connection = self.store.lock();
        let snapshot = self.snapshot();
        match update(&mut connection, id, &snapshot) {
            Ok(()) => self.unwritable.store(false, Ordering::Relaxed),
            // Once, not with every heartbeat.
            Err(error) if !self.unwritable.swap(true, Ordering::Relaxed) => {
                tracing::warn!(job = id.get(), %error, "could not write to the history of jobs; the job goes on");
            }
            Err(_) => {}
        }
    }

    fn snapshot(&self) -> Snapshot {
        let live = self.live();
        let now = self.clock.now();
        let deadline = self.options.deadlines.of(live.state).and_then(|limit| {
            let rest = limit.passes_at(live.entered, live.progressed).saturating_sub(self.clock.monotonic());
            now.checked_add(SignedDuration::try_from(rest).ok()?).ok()
        });
        Snapshot {
            state: live.state,
            reading: live.meter.read(),
            transitions: live.transitions.clone(),
            failure: live.failure.clone(),
            outcome: live.outcome.clone(),
            now,
            deadline,
        }
    }
}

fn insert(connection: &Connection, kind: &str, subject: &str, now: Timestamp) -> rusqlite::Result<JobId> {
    let owner = Owner::this_process();
    connection.execute(
        "INSERT INTO jobs (kind, subject, state, phase, owner_pid, owner_start, owner_boot, owner_namespace, started_ms,
             heartbeat_ms) VALUES (?1, ?2, ?3, ?3, ?4, ?5, ?6, ?7, ?8, ?8)",
        params![
            kind,
            subject,
            Phase::Started.name(),
            owner.pid,
            owner.start_time.map(signed),
            owner.boot_id,
            owner.namespace,
            now.as_millisecond()
        ],
    )?;
    Ok(JobId(connection.last_insert_rowid()))
}

fn update(connection: &mut Connection, id: JobId, job: &Snapshot) -> rusqlite::Result<()> {
    if job.state.is_ended() {
        // The last word should outlive a power loss; heartbeats need not.
        connection.execute_batch("PRAGMA synchronous = FULL")?;
    }
    let result = update_in_transaction(connection, id, job);
    if job.state.is_ended() {
        connection.execute_batch("PRAGMA synchronous = NORMAL")?;
    }
    result
}

fn update_in_transaction(connection: &mut Connection, id: JobId, job: &Snapshot) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let progress = &job.reading.progress;
    let rate = if job.state.is_ended() { 0 } else { job.reading.bytes_per_second };
    transaction
        .prepare_cached(
            "UPDATE jobs SET state = ?2, phase = ?3, files_done = ?4, files_total = ?5, bytes_done = ?6, bytes_total = ?7,
                 bytes_per_second = ?8, fraction = ?9, error_kind = ?10, error_text = ?11, outcome = ?12, ended_ms = ?13,
                 heartbeat_ms = ?14, deadline_ms = ?15 WHERE id = ?1",
        )?
        .execute(params![
            id.get(),
            job.state.name(),
            progress.phase.name(),
            signed(progress.files_done),
            progress.files_total.map(signed),
            signed(progress.bytes_done),
            progress.bytes_total.map(signed),
            signed(rate),
            job.reading.fraction,
            job.failure.as_ref().map(|failure| &failure.kind),
            job.failure.as_ref().map(|failure| &failure.text),
            job.outcome,
            job.state.is_ended().then(|| job.now.as_millisecond()),
            job.now.as_millisecond(),
            job.deadline.map(Timestamp::as_millisecond),
        ])?;
    let mut insert = transaction.prepare_cached(
        "INSERT INTO transitions (job, number, state, at_ms) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (job, number) DO UPDATE SET state = excluded.state, at_ms = excluded.at_ms",
    )?;
    for (number, (state, at)) in (0_i64..).zip(&job.transitions) {
        insert.execute(params![id.get(), number, state.name(), at.as_millisecond()])?;
    }
    drop(insert);
    // What others added while they took this process for dead.
    transaction.execute(
        "DELETE FROM transitions WHERE job = ?1 AND number >= ?2",
        params![id.get(), i64::try_from(job.transitions.len()).unwrap_or(i64::MAX)],
    )?;
    transaction.commit()
}

fn describe(limit: Duration) -> String {
    let seconds = limit.as_secs();
    if seconds >= 120 { format!("{} minutes", seconds / 60) } else { format!("{seconds} s") }
}
