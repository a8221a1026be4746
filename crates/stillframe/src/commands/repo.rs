//! `repo init` and `repo info`.

use std::sync::Arc;

use serde_json::json;

use crate::cli::RepoCommand;
use crate::failure::{Failure, Kind};
use crate::passphrase::is_given;
use crate::repository::{PASSPHRASE, UNFINISHED, init_repository, open_repository, place_text};
use crate::session::Session;
use crate::sizes::{bytes, count, time};

/// Runs either.
pub async fn run(session: &Session, command: &RepoCommand) -> Result<(), Failure> {
    match command {
        RepoCommand::Init { url, passphrase, no_encryption } => {
            // Checked by hand: it may have come from the environment, which a parser of options does not say.
            if *no_encryption && is_given(passphrase.passphrase_file.as_deref(), PASSPHRASE) {
                let message = "--no-encryption: a passphrase is given, too (--passphrase-file, or STILLFRAME_PASSPHRASE_FILE or \
                               STILLFRAME_PASSPHRASE in the environment); leave one of them away";
                return Err(Failure::new(Kind::Usage, message));
            }
            let repo = init_repository(url, passphrase, *no_encryption, Arc::clone(&session.clock)).await?;
            let kind = if *no_encryption { "not encrypted" } else { "encrypted" };
            session.console.line(format!("repository {} made in {url}, {kind}", repo.id()));
            if !no_encryption {
                session.console.note("keep the passphrase: without it nobody can read the backups");
            }
            session.console.object(
                "repository",
                json!({ "id": repo.id().to_string(), "url": place_text(url), "encrypted": !no_encryption }),
            );
        }
        RepoCommand::Info { repo: args } => {
            let repo = open_repository(args).await?;
            let info = repo.info().await?;
            let encrypted = if info.encrypted { "encrypted" } else { "not encrypted" };
            let created = time(info.created);
            session.console.answer(format!(
                "repository {}, format {}, {encrypted}, made {created}",
                info.id, info.format
            ));
            session.console.answer(format!("{}, {}", count(info.backups, "backup"), count(info.keys, "key")));
            if info.unfinished > 0 {
                session.console.answer(format!("{} {UNFINISHED}", info.unfinished));
            }
            session.console.answer(format!(
                "{} of at most {}, {}, {}",
                count(info.packs, "pack"),
                bytes(info.pack_size),
                bytes(info.pack_bytes),
                count(info.index_segments, "index segment"),
            ));
            if info.marks > 0 {
                session.console.answer(format!(
                    "{}: something is being deleted, or was to be",
                    count(info.marks, "mark")
                ));
            }
            session.console.object(
                "repository",
                json!({ "id": info.id.to_string(), "url": place_text(&args.repo), "format": info.format, "encrypted": info.encrypted,
                    "backups": info.backups, "unfinished": info.unfinished, "keys": info.keys, "packs": info.packs,
                    "pack_bytes": info.pack_bytes, "pack_size": info.pack_size, "index_segments": info.index_segments,
                    "marks": info.marks, "created": info.created, "epochs": info.epochs }),
            );
        }
    }
    Ok(())
}
