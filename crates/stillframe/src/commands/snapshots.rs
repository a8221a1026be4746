//! `snapshots`.

use serde_json::json;
use stillframe_repo::Manifest;

use crate::cli::Snapshots;
use crate::failure::{Failure, Kind};
use crate::repository::{UNFINISHED, open_repository, unfinished_words};
use crate::session::Session;
use crate::sizes::bytes;

/// Lists the backups, oldest first.
pub async fn run(session: &Session, args: &Snapshots) -> Result<(), Failure> {
    let repo = open_repository(&args.repo).await?;
    let list = repo.backups().await?;
    let mut count = 0;
    for manifest in list.readable.iter().filter(|manifest| args.labels.fit(&manifest.draft)) {
        count += 1;
        session.console.answer(line(manifest));
        session.console.object("snapshot", object(manifest));
    }
    if !list.unfinished.is_empty() {
        let ids: Vec<String> = list.unfinished.iter().map(ToString::to_string).collect();
        session.console.object("unfinished", json!({ "manifests": ids.len(), "ids": ids }));
    }
    if count == 0 {
        let unfinished = list.unfinished.len();
        if let Some(words) = args.labels.words().filter(|_| !list.readable.is_empty()) {
            session.console.line(format!("no backup {words}"));
        } else if unfinished == 0 {
            session.console.line("no backups");
        } else {
            // Nothing was ever written, or seals were lost: who looks for a backup must be able to tell.
            session.console.line(format!("no backups; {unfinished} {UNFINISHED}"));
        }
    }
    if count > 0 && !list.unfinished.is_empty() {
        session.console.warn(unfinished_words(&list.unfinished));
    }
    let damaged = list.unreadable.len();
    for (id, error) in &list.unreadable {
        session.console.warn(format!("backup {id} cannot be read: {error}"));
    }
    if damaged > 0 {
        return Err(Failure::new(Kind::Damaged, format!("{damaged} of the backups cannot be read")));
    }
    Ok(())
}

fn line(manifest: &Manifest) -> String {
    let draft = &manifest.draft;
    let sources: Vec<&str> = draft.sources.iter().map(|source| source.url.as_str()).collect();
    let size: u64 = draft.sources.iter().map(|source| source.bytes).sum();
    let name = draft.name.as_deref().unwrap_or("-");
    let tags = if draft.tags.is_empty() { String::new() } else { format!("  [{}]", draft.tags.join(", ")) };
    let short: String = manifest.id.to_string().chars().take(12).collect();
    let when = manifest.created.strftime("%Y-%m-%d %H:%M:%SZ");
    format!(
        "{short}  {when}  {name}  {}  {} ({} stored)  {}{tags}",
        draft.host,
        bytes(size),
        bytes(manifest.statistics.bytes_stored),
        sources.join(" "),
    )
}

/// A backup for machines.
pub fn object(manifest: &Manifest) -> serde_json::Value {
    let draft = &manifest.draft;
    let sources: Vec<_> = draft
        .sources
        .iter()
        .map(|source| {
            json!({ "name": source.name, "engine": source.engine, "url": source.url, "instant": source.instant,
                "window_us": source.window_us, "attempts": source.attempts, "files": source.file_count,
                "bytes": source.bytes })
        })
        .collect();
    json!({
        "id": manifest.id.to_string(), "created": manifest.created, "name": draft.name, "tags": draft.tags,
        "host": draft.host, "user": draft.user, "program": draft.program, "sources": sources,
        "base": manifest.base.map(|id| id.to_string()), "statistics": manifest.statistics,
        "files_taken_over": draft.files_skipped, "warnings": draft.warnings,
    })
}
