//! `demo`: the main job on two busy databases, with proof. The only module that uses the testkit.

mod stage;
mod writer;

use std::time::Duration;

use serde_json::json;

use crate::failure::{Failure, Kind};
use crate::interrupt;
use crate::session::Session;
use crate::sizes::{bytes, span};
use stage::{Backup, Restored, Stage};

pub use writer::writer;

/// How long the writers go on before the first backup, then until the second, and until their end.
const WRITING: [Duration; 3] = [Duration::from_secs(8), Duration::from_secs(2), Duration::from_secs(1)];

/// Runs it. Fails if anything is off; ends and clears up when it is interrupted.
pub async fn run(session: &Session) -> Result<(), Failure> {
    let mut stage = Stage::set(session)?;
    tokio::select! {
        played = play(&mut stage, session) => played?,
        () = interrupt::asked() => {
            stage.kill_writers().await?;
            return Err(Failure::new(Kind::Cancelled, "cancelled; nothing is left behind"));
        }
    }
    stage.clear()?;
    session.console.line("everything held; nothing is left behind");
    Ok(())
}

async fn play(stage: &mut Stage, session: &Session) -> Result<(), Failure> {
    let console = &session.console;
    console.line(format!("Two databases in {}, each with a busy writer:", stage.root().display()));
    stage.start_writers()?;
    stage.let_write(WRITING[0]).await?;
    stage.run_program(&["repo", "init", &stage.repo()]).await?;

    let first = stage.back_up("first").await?;
    console.line(told(&first));
    stage.let_write(WRITING[1]).await?;
    let second = stage.back_up("second").await?;
    console.line(told(&second));
    stage.let_write(WRITING[2]).await?;

    let done = stage.kill_writers_and_destroy().await?;
    console.line(format!(
        "killed both writers after {} and {} transactions; both databases are gone",
        done[0], done[1]
    ));

    let mut rows = Vec::new();
    for backup in [&first, &second] {
        let restored = stage.restore(backup).await?;
        let proof = stage.prove(backup, &restored)?;
        console.line(format!(
            "restored {:6} in {}: exact prefixes, {} and {} transactions, each row compared, nothing acknowledged is missing",
            backup.name,
            span(restored.took),
            proof[0],
            proof[1],
        ));
        rows.push((backup, restored));
    }
    let output = stage.run_program(&["verify", "latest", "--level", "open"]).await?;
    if output.last().is_none_or(|last| last["type"] != "verified") {
        return Err(Failure::new(Kind::Failed, "the second backup could not be verified"));
    }

    console.line("");
    console.line("backup   windows             took      of data     stored      ratio   restore");
    for (backup, restored) in &rows {
        console.line(format!(
            "{:7}  {:>8}, {:>8}  {:>8}  {:>10}  {:>10}  {:>6}  {:>8}",
            backup.name,
            span(backup.windows[0]),
            span(backup.windows[1]),
            span(backup.took),
            bytes(backup.bytes),
            bytes(backup.stored),
            ratio(backup.stored, backup.bytes),
            span(restored.took),
        ));
    }
    let backups: Vec<_> = rows.iter().map(|(backup, restored)| object(backup, restored)).collect();
    console.object("demo", json!({ "backups": backups }));
    Ok(())
}

fn object(backup: &Backup, restored: &Restored) -> serde_json::Value {
    let micros = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
    json!({ "name": backup.name, "windows_us": backup.windows.map(micros), "backup_us": micros(backup.took),
        "bytes": backup.bytes, "bytes_stored": backup.stored, "restore_us": micros(restored.took) })
}

fn told(backup: &Backup) -> String {
    format!(
        "backup {:6} in {}: windows of {} (fjall) and {} (SQLite), {} of data, {} stored",
        backup.name,
        span(backup.took),
        span(backup.windows[0]),
        span(backup.windows[1]),
        bytes(backup.bytes),
        bytes(backup.stored),
    )
}

#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
fn ratio(part: u64, whole: u64) -> String {
    format!("{:.2}", part as f64 / whole.max(1) as f64)
}
