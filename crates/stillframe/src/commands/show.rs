//! `show`.

use std::time::Duration;

use serde_json::json;
use stillframe_repo::{FileKind, Repository, SourceManifest};

use crate::cli::Show;
use crate::commands::snapshots::{self, Notes};
use crate::failure::Failure;
use crate::repository::{open_repository, pick};
use crate::session::Session;
use crate::sizes::{bytes, count, span};

/// Everything about one backup.
pub async fn run(session: &Session, args: &Show) -> Result<(), Failure> {
    let repo = open_repository(&args.repo).await?;
    let id = pick(session, &repo, &args.backup, &args.labels).await?;
    let manifest = repo.manifest(id).await?;
    let (draft, statistics) = (&manifest.draft, &manifest.statistics);
    let console = &session.console;
    let notes = Notes::of(&repo, id).await?;
    console.object("snapshot", snapshots::object(&manifest, &notes));
    console.answer(format!("backup   {id}"));
    console.answer(format!(
        "created  {} by {}@{} with {}",
        manifest.created, draft.user, draft.host, draft.program
    ));
    if let Some(name) = &draft.name {
        console.answer(format!("name     {name}"));
    }
    if !draft.tags.is_empty() {
        console.answer(format!("tags     {}", draft.tags.join(", ")));
    }
    console.answer(format!(
        "work     {} read, {} taken over unread ({}), {} new, {} stored",
        bytes(statistics.bytes_read),
        bytes(statistics.bytes_taken_over),
        count(draft.files_skipped, "file"),
        bytes(statistics.bytes_new),
        bytes(statistics.bytes_stored),
    ));
    for source in &draft.sources {
        console.answer(format!(
            "source   {}: {} at {}, {}, {}, window {} ({})",
            source.name,
            source.url,
            source.instant,
            count(source.file_count, "file"),
            bytes(source.bytes),
            span(Duration::from_micros(source.window_us)),
            count(source.attempts.into(), "attempt"),
        ));
        if args.files {
            list_files(session, &repo, source).await?;
        }
    }
    for words in notes.words(id) {
        console.answer(format!("state    {words}"));
    }
    for warning in &draft.warnings {
        console.answer(format!("warning  {warning}"));
    }
    Ok(())
}

async fn list_files(session: &Session, repo: &Repository, source: &SourceManifest) -> Result<(), Failure> {
    let mut list = repo.files(source.files);
    let lost = |error: stillframe_repo::Error| {
        let is_damage = error.is_damage();
        let mut failure = Failure::from(error);
        if is_damage {
            failure.message = format!(
                "the file list of {} cannot be read: {}; `stillframe verify` names all that is lost, and another backup may have it",
                source.name, failure.message
            );
        }
        failure
    };
    while let Some(entry) = list.next().await.map_err(lost)? {
        let kind = match &entry.kind {
            FileKind::File { .. } => "file",
            FileKind::Directory => "directory",
            FileKind::Symlink { .. } => "symlink",
        };
        session.console.answer(format!(
            "  {:04o} {:>5}:{:<5} {:>10}  {}  {}",
            entry.mode,
            entry.uid,
            entry.gid,
            bytes(entry.size()),
            entry.role,
            entry.display_path(),
        ));
        session.console.object(
            "file",
            json!({ "source": source.name, "directory": entry.directory, "path": entry.path, "kind": kind,
                "role": entry.role, "size": entry.size(), "mode": entry.mode, "uid": entry.uid, "gid": entry.gid,
                "mtime": entry.modified().map(|time| time.to_string()) }),
        );
    }
    Ok(())
}
