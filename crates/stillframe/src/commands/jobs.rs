//! `jobs`, `jobs show` and `jobs cancel`.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use stillframe_jobs::{History, HistoryError, JobId, Liveness, Record, State};

use crate::cli::{Jobs, JobsCommand};
use crate::failure::{Failure, Kind};
use crate::session::Session;
use crate::sizes::{bytes, count, span, time};

/// How often a job that was asked to stop is looked at, and for how long.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const LOOK_FOR: Duration = Duration::from_mins(2);

/// Prints the history, newest first, or looks after one job.
pub async fn run(session: &Session, options: &Jobs) -> Result<(), Failure> {
    let history = session.history()?;
    match &options.command {
        None => list(session, &history, options.limit as usize),
        Some(JobsCommand::Show { job }) => show(session, &history, *job),
        Some(JobsCommand::Cancel { job }) => cancel(session, &history, *job).await,
    }
}

fn list(session: &Session, history: &History, limit: usize) -> Result<(), Failure> {
    let records = history.list(limit).map_err(|error| unreadable(&error))?;
    if records.is_empty() {
        session.console.line("no job has run yet");
    }
    for record in &records {
        session.console.answer(line(record, session.clock.now()));
        session.console.object("job", object(record, session.clock.now()));
    }
    Ok(())
}

fn show(session: &Session, history: &History, id: JobId) -> Result<(), Failure> {
    let record = history.get(id).map_err(|error| unreadable(&error))?.ok_or_else(|| unknown(id))?;
    let (console, now) = (&session.console, session.clock.now());
    let progress = &record.progress;
    console.answer(format!("job      {id}: {} {}", record.kind, record.subject));
    for (state, at) in &record.history {
        console.answer(format!("{}  {state}", time(*at)));
    }
    let mut done = format!("{}, {}", count(progress.files_done, "file"), bytes(progress.bytes_done));
    if let Some(total) = progress.bytes_total {
        done = format!("{done} of {}", bytes(total));
    }
    console.answer(format!("done     {done} ({:.0} %)", (record.fraction * 100.0).floor()));
    if record.ended.is_none() {
        let since = now.duration_since(record.heartbeat).unsigned_abs();
        let lives = match record.liveness() {
            Liveness::Alive => "runs",
            Liveness::Gone => "is gone",
            Liveness::Unknown => "cannot be seen from here",
        };
        console.answer(format!("process  {} {lives}; heard of it {} ago", record.owner.pid, span(since)));
        if record.overdue(now) {
            console.answer("overdue  it has been in its state for longer than it may");
        }
    }
    if let Some(failure) = &record.failure {
        console.answer(format!("error    {} ({})", failure.text, failure.kind));
    }
    if let Some(outcome) = &record.outcome {
        console.answer(format!("outcome  {outcome}"));
    }
    console.object("job", object(&record, now));
    Ok(())
}

/// Asks, and waits until the job says that nothing of it runs any more.
async fn cancel(session: &Session, history: &History, id: JobId) -> Result<(), Failure> {
    let before =
        history.request_cancel(id).map_err(|error| unreadable(&error))?.ok_or_else(|| unknown(id))?;
    if before.ended.is_some() {
        return Err(Failure::new(Kind::Failed, format!("job {id} had ended already: {}", before.state)));
    }
    session.console.line(format!("asked job {id} to stop: {} {}", before.kind, before.subject));
    let began = session.clock.monotonic();
    loop {
        let record = history.get(id).map_err(|error| unreadable(&error))?.ok_or_else(|| unknown(id))?;
        if record.ended.is_some() {
            session.console.object("job", object(&record, session.clock.now()));
            return match record.state {
                State::Cancelled => {
                    session.console.line(format!("job {id} was cancelled; nothing of it is left running"));
                    Ok(())
                }
                state => Err(Failure::new(
                    Kind::Failed,
                    format!("job {id} ended before it could be cancelled: {state}"),
                )),
            };
        }
        let waited = session.clock.monotonic().saturating_sub(began);
        if record.liveness() == Liveness::Gone || waited > LOOK_FOR {
            let (pid, state) = (record.owner.pid, record.state);
            return Err(Failure::new(
                Kind::Failed,
                format!(
                    "job {id} is {state} still; its process {pid} is stopped, busy or gone; `stillframe jobs show {id}` tells more"
                ),
            ));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn unreadable(error: &HistoryError) -> Failure {
    Failure::new(Kind::Failed, format!("cannot use the job history: {error}"))
}

fn unknown(id: JobId) -> Failure {
    Failure::new(Kind::Usage, format!("there is no job {id}; `stillframe jobs` lists them"))
}

fn line(record: &Record, now: Timestamp) -> String {
    let took = record.ended.map_or_else(String::new, |ended| {
        let took = ended.duration_since(record.started).unsigned_abs();
        format!(" in {}", span(took))
    });
    let tail = match (&record.failure, record.ended) {
        (Some(failure), _) => format!(": {}", failure.text),
        (None, None) if record.overdue(now) => {
            format!(", {} done, for longer than it may", bytes(record.progress.bytes_done))
        }
        (None, None) => format!(", {} done", bytes(record.progress.bytes_done)),
        (None, Some(_)) => String::new(),
    };
    let started = time(record.started);
    format!("{:>4}  {started}  {:8} {}  {}{took}{tail}", record.id, record.kind, record.subject, record.state)
}

fn object(record: &Record, now: Timestamp) -> serde_json::Value {
    let states: Vec<_> =
        record.history.iter().map(|(state, at)| json!({ "state": state.to_string(), "at": at })).collect();
    json!({
        "id": record.id.get(), "kind": record.kind, "subject": record.subject, "state": record.state.to_string(),
        "started": record.started, "ended": record.ended, "heartbeat": record.heartbeat,
        "overdue": record.overdue(now), "fraction": record.fraction, "pid": record.owner.pid, "states": states,
        "bytes_done": record.progress.bytes_done, "files_done": record.progress.files_done,
        "error": record.failure.as_ref().map(|failure| json!({ "kind": failure.kind, "message": failure.text })),
        "outcome": record.outcome,
    })
}
