//! `snapshots`.

use std::collections::BTreeMap;

use serde_json::json;
use stillframe_repo::{BackupId, Error as RepoError, Manifest, Pin, Repository, Verified};

use crate::cli::Snapshots;
use crate::failure::{Failure, Kind};
use crate::repository::{UNFINISHED, open_repository, unfinished_words};
use crate::session::Session;
use crate::sizes::{self, bytes, count, short, time};

/// Lists the backups, oldest first.
pub async fn run(session: &Session, args: &Snapshots) -> Result<(), Failure> {
    let repo = open_repository(&args.repo).await?;
    let list = repo.backups().await?;
    let verified = match repo.all_verified().await {
        // What is said of backups hides none of them.
        Err(error @ RepoError::PermissionDenied { .. }) => {
            session.console.warn(format!("how backups were verified is not known: {error}"));
            BTreeMap::new()
        }
        verified => verified?,
    };
    let notes = Notes { pins: repo.pins().await?, verified };
    let mut count = 0;
    for manifest in list.readable.iter().filter(|manifest| args.labels.fit(&manifest.draft)) {
        count += 1;
        session.console.answer(line(manifest, &notes));
        session.console.object("snapshot", object(manifest, &notes));
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
    for (id, error) in &list.unreadable {
        session.console.warn(format!("backup {id} cannot be read: {error}"));
    }
    let is_forbidden =
        |(_, error): &(BackupId, RepoError)| matches!(error, RepoError::PermissionDenied { .. });
    let kind = match list.unreadable.as_slice() {
        [] => return Ok(()),
        unreadable if unreadable.iter().all(is_forbidden) => Kind::Permission,
        _ => Kind::Damaged,
    };
    Err(Failure::new(
        kind,
        format!("{} cannot be read", sizes::count(list.unreadable.len() as u64, "backup")),
    ))
}

/// What was said of backups since they were made.
#[derive(Debug, Default)]
pub struct Notes {
    /// Those that are not to be forgotten.
    pub pins: BTreeMap<BackupId, Option<Pin>>,
    /// Those that were looked at.
    pub verified: BTreeMap<BackupId, Verified>,
}

impl Notes {
    /// Of one backup.
    pub async fn of(repo: &Repository, id: BackupId) -> Result<Self, Failure> {
        let mut pins = repo.pins().await?;
        pins.retain(|pinned, _| *pinned == id);
        let verified = repo.verified(id).await?.map(|verified| (id, verified));
        Ok(Self { pins, verified: verified.into_iter().collect() })
    }

    /// In words, one for each.
    pub fn words(&self, id: BackupId) -> Vec<String> {
        let mut words = Vec::new();
        if let Some(pin) = self.pins.get(&id) {
            words.push(Pin::words(pin.as_ref()));
        }
        if let Some((level, verification)) = self.verified.get(&id).and_then(Verified::verdict) {
            let found = match (verification.sound, verification.whole) {
                (true, _) => "sound",
                (false, true) => "whole, not sound",
                (false, false) => "damaged",
            };
            let when = time(verification.at);
            words.push(format!("{found} at level {level} on {when}"));
        }
        words
    }
}

fn line(manifest: &Manifest, notes: &Notes) -> String {
    let draft = &manifest.draft;
    let sources: Vec<&str> = draft.sources.iter().map(|source| source.url.as_str()).collect();
    let size: u64 = draft.sources.iter().map(|source| source.bytes).sum();
    let name = draft.name.as_deref().unwrap_or("-");
    let tags = if draft.tags.is_empty() { String::new() } else { format!("  [{}]", draft.tags.join(", ")) };
    let short = short(manifest.id);
    let mut words = notes.words(manifest.id);
    words.extend(repaired(manifest));
    let notes = words.join(", ");
    let notes = if notes.is_empty() { notes } else { format!("  ({notes})") };
    let when = time(manifest.instant());
    format!(
        "{short}  {when}  {name}  {}  {} ({} stored)  {}{tags}{notes}",
        draft.host,
        bytes(size),
        bytes(manifest.statistics.bytes_stored),
        sources.join(" "),
    )
}

/// Of a backup that is what was left of another one.
pub fn repaired(manifest: &Manifest) -> Option<String> {
    let lost = manifest.draft.lost_files;
    manifest
        .draft
        .repaired_from
        .map(|from| format!("repaired from {}, without {}", short(from), count(lost, "lost file")))
}

/// A backup for machines.
pub fn object(manifest: &Manifest, notes: &Notes) -> serde_json::Value {
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
    let pin = notes.pins.get(&manifest.id);
    let pin = pin.map(
        |pin| json!({ "why": pin.as_ref().map(|pin| &pin.why), "since": pin.as_ref().map(|pin| pin.since) }),
    );
    let verified: Vec<_> = notes
        .verified
        .get(&manifest.id)
        .iter()
        .flat_map(|verified| &verified.levels)
        .map(|(level, verification)| {
            json!({ "level": level, "at": verification.at, "host": verification.host, "sound": verification.sound,
                "whole": verification.whole })
        })
        .collect();
    json!({
        "id": manifest.id.to_string(), "created": manifest.created, "name": draft.name, "tags": draft.tags,
        "host": draft.host, "user": draft.user, "program": draft.program, "sources": sources,
        "base": manifest.base.map(|id| id.to_string()), "statistics": manifest.statistics,
        "files_taken_over": draft.files_skipped, "warnings": draft.warnings,
        "pinned": pin, "verified": verified,
        "repaired_from": draft.repaired_from, "lost_files": draft.lost_files,
    })
}
