//! `key add`, `key list`, `key remove` and `key rotate`.

use serde_json::json;

use stillframe_repo::{ObjectId, PassphraseCost, Repository, RotateOptions};

use crate::cli::KeyCommand;
use crate::failure::{Failure, Kind};
use crate::passphrase::{Question, obtain};
use crate::repository::{Opening, open_repository, open_to_write, passphrase};
use crate::session::Session;
use crate::sizes::{count, time};

/// Runs one of them.
pub async fn run(session: &Session, command: &KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::Add { repo: args, new_passphrase_file, label } => {
            let (repo, _uploads) = open_to_write(args).await?;
            let question =
                Question { prompt: "New passphrase: ", variable: "STILLFRAME_NEW_PASSPHRASE", twice: true };
            let secret = obtain(new_passphrase_file.as_deref(), question)?.ok_or_else(|| {
                Failure::new(
                    Kind::Passphrase,
                    "no new passphrase: set STILLFRAME_NEW_PASSPHRASE or use --new-passphrase-file",
                )
            })?;
            let id = repo
                .add_key(passphrase(&secret), PassphraseCost::default(), label, session.clock.as_ref())
                .await?;
            session.console.line(format!("key {id} added"));
            session.console.object("key", json!({ "id": id.to_string(), "label": label }));
        }
        KeyCommand::Remove { key, repo: args } => {
            let (repo, _uploads) = open_to_write(args).await?;
            let id = find(&repo, key).await?;
            repo.remove_key(id).await?;
            session.console.line(format!("key {id} removed: its passphrase opens the repository no more"));
            session.console.note(
                "whoever copied the repository's keys while it was there can read what is written until `stillframe key rotate`",
            );
            session.console.object("key-removed", json!({ "id": id.to_string() }));
        }
        KeyCommand::Rotate { repo: args, remove_others, label } => {
            let opening = Opening::prepare(args).await?;
            let _uploads = opening.uploads();
            let passphrase = opening.passphrase();
            let repo = opening.open().await?;
            let passphrase = passphrase.ok_or_else(|| {
                Failure::new(Kind::Usage, "the repository is not encrypted: it has no keys to rotate")
            })?;
            let options = RotateOptions {
                cost: PassphraseCost::default(),
                label: label.as_deref(),
                remove_others: *remove_others,
                clock: session.clock.as_ref(),
            };
            let done = repo.rotate_key(passphrase, &options).await?;
            session.console.line(format!(
                "key {} is in use from now on, with the same passphrase, in place of the one before{}",
                done.key,
                match done.removed.saturating_sub(1) {
                    0 => String::new(),
                    others => format!("; of others removed: {}", count(others, "key")),
                },
            ));
            session.console.object(
                "key-rotated",
                json!({ "id": done.key.to_string(), "epoch": done.epoch, "removed": done.removed }),
            );
        }
        KeyCommand::List { repo: args } => {
            let repo = open_repository(args).await?;
            let mut damaged = None;
            for key in repo.keys().await? {
                let key = match key {
                    Ok(key) => key,
                    Err(error) => {
                        session.console.warn(error.to_string());
                        damaged = Some(error);
                        continue;
                    }
                };
                let created = time(key.created);
                let current = if key.current { "  (in use)" } else { "" };
                session.console.answer(format!("{}  {created}  {}{current}", key.id, key.label));
                session.console.object(
                    "key",
                    json!({ "id": key.id.to_string(), "label": key.label, "created": key.created, "current": key.current }),
                );
            }
            if let Some(error) = damaged {
                return Err(error.into());
            }
        }
    }
    Ok(())
}

/// By the beginning of its id.
async fn find(repo: &Repository, text: &str) -> Result<ObjectId, Failure> {
    let mut ids = Vec::new();
    for key in repo.keys().await? {
        match key {
            Ok(key) => ids.push(key.id),
            // A damaged one may be meant; its whole id names it.
            Err(_) => ids.extend(text.parse::<ObjectId>().ok()),
        }
    }
    ids.retain(|id| !text.is_empty() && id.to_string().starts_with(text));
    ids.sort_unstable();
    ids.dedup();
    match ids.as_slice() {
        [id] => Ok(*id),
        [] => Err(Failure::new(
            Kind::Usage,
            format!("there is no key {text:?}; `stillframe key list` lists them"),
        )),
        _ => Err(Failure::new(Kind::Usage, format!("{text:?} fits several keys; give more of the id"))),
    }
}
