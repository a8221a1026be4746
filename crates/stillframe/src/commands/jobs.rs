//! `jobs`.

use jiff::Timestamp;
use serde_json::json;
use stillframe_jobs::Record;

use crate::cli::Jobs;
use crate::failure::{Failure, Kind};
use crate::session::Session;
use crate::sizes::{bytes, span};

/// Prints the history, newest first.
pub fn run(session: &Session, options: &Jobs) -> Result<(), Failure> {
    let history = session.history()?;
    let records = history
        .list(options.limit as usize)
        .map_err(|error| Failure::new(Kind::Failed, format!("cannot read the job history: {error}")))?;
    if records.is_empty() {
        session.console.line("no job has run yet");
    }
    for record in &records {
        session.console.answer(line(record, session.clock.now()));
        session.console.object("job", object(record, session.clock.now()));
    }
    Ok(())
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
    let started = record.started.strftime("%Y-%m-%d %H:%M:%SZ");
    format!("{:>4}  {started}  {:8} {}  {}{took}{tail}", record.id, record.kind, record.subject, record.state)
}

fn object(record: &Record, now: Timestamp) -> serde_json::Value {
    json!({
        "id": record.id.get(), "kind": record.kind, "subject": record.subject, "state": record.state.to_string(),
        "started": record.started, "ended": record.ended, "heartbeat": record.heartbeat,
        "overdue": record.overdue(now),
        "bytes_done": record.progress.bytes_done, "files_done": record.progress.files_done,
        "error": record.failure.as_ref().map(|failure| json!({ "kind": failure.kind, "message": failure.text })),
        "outcome": record.outcome,
    })
}
